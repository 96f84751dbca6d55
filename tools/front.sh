#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Inside the sysroot: build what a target of the Makefile needs, then do it.
#
# Building is done under a lock and on a mirror of the checkout, in which a file is written only when
# its content changes. So a fresh clone with equal content rebuilds nothing, and what one clone built
# is never taken for another's. What runs afterwards is a private copy in /tmp, without the lock.
set -eu
target=$1
here=$(dirname "$(readlink -f "$0")")/sysroot
# shellcheck source=tools/sysroot/common.sh
. "$here/common.sh"

work=$cache/work
run=/tmp/run
tools=devcache-kernel
case $target in
kernel) ;;
run | shell) tools="$tools devcache-vm vsvm-gpu" ;;
demo) tools="$tools devcache-vm vsvm-gpu devcache-demo" ;;
test)
	tools="$tools devcache-vm vsvm-gpu devcache-demo devcache-check devcache-selftests"
	CONFIG=${CONFIG:-test}
	export CONFIG
	;;
*) die "unknown target $target" ;;
esac
if [ "$target" = run ] && [ -z "${CMD:-}" ]; then die "nothing to run: make run CMD='<command>'"; fi

build_tools() {
	cd "$work/tools"
	set --
	for tool in $tools; do set -- "$@" --package "$tool"; done
	cargo build --release --locked --target-dir "$cache/work-target" "$@"
}

exec 9>"$cache/lock"
flock --nonblock 9 || {
	echo "waiting for another build in $shown_cache"
	flock 9
}
rsync -rlpc --delete --exclude=/.git --exclude=target /devcache/src/ "$work/"
stage "tools: build" tools.log build_tools
PATH=$cache/work-target/release:$PATH
mkdir -p "$run/guest/bin"
devcache-kernel --checkout "$work" --out "$run/kernel"
[ "$target" != kernel ] || exit 0

mv "$run/kernel/lib" "$run/guest/lib"
for tool in $tools; do cp "$cache/work-target/release/$tool" "$run/guest/bin/"; done
PATH=$run/guest/bin:/usr/bin:/usr/sbin
exec 9>&-

vm() { exec devcache-vm --kernel "$run/kernel/bzImage" --guest "$run/guest" "$@"; }
case $target in
run) vm -- "$CMD" ;;
shell) vm ;;
demo) vm -- devcache-demo ;;
esac
