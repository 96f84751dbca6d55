#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Run a command inside the sysroot, where everything has the same path whatever the checkout:
# the checkout is /devcache/src, the cache folder /devcache/cache, KSRC /devcache/ksrc, SHARE
# /devcache/share, and the sysroot itself, without these mounts, /devcache/root. Mounts and
# processes are in namespaces of their own: they are gone when the command ends, however it ends.
set -eu
here=$(dirname "$(readlink -f "$0")")
# shellcheck source=tools/sysroot/common.sh
. "$here/common.sh"

[ "$(id -u)" = 0 ] || die "must be run as root: the sysroot is entered with chroot"
[ -d "$sysroot" ] || die "no sysroot yet: run tools/sysroot/make-sysroot.sh"

if [ "${DEVCACHE_NAMESPACE:-}" != 1 ]; then
	# Given before the mounts hide what the user meant by them.
	[ -z "${KSRC:-}" ] || KSRC=$(readlink -f "$KSRC") || die "KSRC: no such file or folder: $KSRC"
	[ -z "${SHARE:-}" ] || SHARE=$(readlink -f "$SHARE") || die "SHARE: no such folder: $SHARE"
	[ -z "${KSRC:-}" ] || [ -e "$KSRC" ] || die "KSRC: no such file or folder: $KSRC"
	[ -z "${SHARE:-}" ] || [ -d "$SHARE" ] || die "SHARE: no such folder: $SHARE"
	export KSRC="${KSRC:-}" SHARE="${SHARE:-}" DEVCACHE_NAMESPACE=1
	exec unshare --mount --propagation private --pid --fork --kill-child "$0" "$@"
fi

# bind SOURCE NAME: show the file or folder SOURCE as /devcache/NAME.
bind() {
	if [ -d "$1" ]; then mkdir -p "$inside/$2"; else : >>"$inside/$2"; fi
	mount --bind "$1" "$inside/$2"
}

inside=$sysroot/devcache
mount -t tmpfs -o size=16k,mode=755 devcache "$inside"
bind "$cache" cache
bind "$(dirname "$(dirname "$here")")" src
bind "$sysroot" root
[ -z "$KSRC" ] || bind "$KSRC" ksrc
[ -z "$SHARE" ] || bind "$SHARE" share
mount --rbind /dev "$sysroot/dev"
mount -t proc proc "$sysroot/proc"
mount --rbind /sys "$sysroot/sys"
mount -t tmpfs tmp "$sysroot/tmp"
# Names and certificates as this machine has them.
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt; do
	if [ -e "$file" ] && [ -e "$sysroot$file" ]; then mount --bind "$file" "$sysroot$file"; fi
done

# A clean environment, except for what the user tells this project and how to reach the network. An
# empty variable is an unset one.
passed=$(env | sed -nE 's/^(CARGO_(HTTP|NET|REGISTR|SOURCE)[A-Z0-9_]*|(https?|no|all|HTTPS?|NO|ALL)_(proxy|PROXY)|CONFIG|CMD|TIMEOUT|MEM|ACCEL|GPU|GPU_ARGS|IOMMU|TESTS|CUTS|SEED|MINUTES|MIRROR|TERM)=.+/\1/p')
set -- HOME=/root LANG=C.UTF-8 PATH=/usr/bin:/usr/sbin DEVCACHE_CACHE=/devcache/cache \
	DEVCACHE_CACHE_SHOWN="$shown_cache" CCACHE_DIR=/devcache/cache/ccache \
	CARGO_HOME=/devcache/cache/cargo CARGO_TARGET_DIR=/devcache/cache/target \
	"$@"
[ -z "$KSRC" ] || set -- KSRC=/devcache/ksrc KSRC_SHOWN="$KSRC" "$@"
[ -z "$SHARE" ] || set -- SHARE=/devcache/share "$@"
for name in $passed; do eval "set -- \"$name=\$$name\" \"\$@\""; done
exec chroot "$sysroot" env -i "$@"
