#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Make the sysroot: a Debian with the compilers, QEMU and the guest's userland, so that nothing
# depends on what is installed on this machine. Does nothing when it is there already.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tools/sysroot/common.sh
. "$here/common.sh"

# The host's own Debian archive as apt knows it: serves "main" and is not the security archive.
host_mirror() {
	# shellcheck disable=SC2016 # apt's own variables
	apt-get indextargets --format '$(LABEL)|$(COMPONENT)|$(REPO_URI)' 'Created-By: Packages' |
		sed -n 's/^Debian|main|//p' | head -n 1
}

install_mmdebstrap() {
	apt-get update &&
		DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends mmdebstrap
}

bootstrap() {
	# How to reach the archive (proxies, clock) is the host's business and holds inside too.
	apt-config dump | grep -E '^Acquire::(Check-|http|https|Retries)' >"$sysroot.apt"
	# shellcheck disable=SC2016 # the hook's own $1
	mmdebstrap --variant=apt --components=main --include="$packages" \
		--aptopt='APT::Install-Recommends "false"' --aptopt="$sysroot.apt" \
		--setup-hook="printf '$pin' $suite >\"\$1/etc/apt/preferences.d/backports\"" \
		--customize-hook='mkdir -p "$1/devcache" "$1/host" "$1/usr/lib/modules"' \
		"$suite" "$sysroot.new" "deb $mirror $suite main" "deb $mirror $suite-backports main"
}

[ "$(id -u)" = 0 ] || die "must be run as root: the sysroot is entered with chroot"
mkdir -p "$cache"
exec 8>"$cache/sysroot.lock"
flock 8
[ ! -d "$sysroot" ] || exit 0

command -v apt-get >/dev/null || die "no apt-get on this machine: the sysroot is made on Debian"
command -v mmdebstrap >/dev/null || stage "sysroot: install mmdebstrap" mmdebstrap.log install_mmdebstrap
mirror=${MIRROR:-$(host_mirror)}
if [ -z "$mirror" ]; then # apt learns the labels of its archives by an update
	stage "sysroot: apt-get update" apt-update.log apt-get update
	mirror=$(host_mirror)
fi
[ -n "$mirror" ] || die "apt has no Debian archive configured here; name one: make MIRROR=<url>"
rm -rf "$sysroot.new"
stage "sysroot: Debian $suite from $mirror" sysroot.log bootstrap
rm "$sysroot.apt"
mv "$sysroot.new" "$sysroot"
