#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Inside the sysroot: build what a target of the Makefile needs, then do it.
#
# Building is done under a lock and on a mirror of the checkout, in which a file is written only when
# its content changes. So a fresh clone with equal content rebuilds nothing, and what one clone built
# is never taken for another's. What runs afterwards is a private copy in /tmp, without the lock.
set -eu
target=$1
shift
here=$(dirname "$(readlink -f "$0")")/sysroot
# shellcheck source=tools/sysroot/common.sh
. "$here/common.sh"

work=$cache/work
run=/tmp/run
export CARGO_TARGET_DIR="$cache/work-target"
tools=devcache-kernel
in_guest="devcache-vm vsvm-gpu devcache-demo devcache-selftests devcache-coherence devcache-storm gpufsx"
case $target in
kernel) ;;
run | shell | demo) tools="$tools $in_guest" ;;
test)
	tools="$tools $in_guest devcache-powercut devcache-check"
	export CONFIG="${CONFIG:-test}" GPU="${GPU:-2}"
	;;
power-cuts) tools="$tools vsvm-gpu devcache-powercut" ;;
soak)
	tools="$tools $in_guest devcache-powercut devcache-check"
	# What KASAN needs does the other kernel no harm.
	export CONFIG=kasan GPU="${GPU:-2}"
	;;
upstream-tests)
	tools="$tools devcache-vm devcache-check"
	export CONFIG="${CONFIG:-test}"
	set -- --base
	;;
*) die "unknown target $target" ;;
esac
if [ "$target" = run ] && [ -z "${CMD:-}" ]; then die "nothing to run: make run CMD='<command>'"; fi

patience=1 append=
if [ "${CONFIG:-}" = kasan ]; then
	# While identify_cpu() has the features of the boot processor cleared, an interrupt looks for
	# KASAN's shadow where it is with four levels of page tables.
	patience=4 append=no5lvl
fi

build_tools() {
	cd "$work/tools"
	set --
	for tool in $tools; do set -- "$@" --package "$tool"; done
	cargo build --release --locked "$@"
}

exec 9>"$cache/lock"
flock --nonblock 9 || {
	echo "waiting for another build in $shown_cache"
	flock 9
}
rsync -rlpc --delete --exclude=/.git --exclude=target /devcache/src/ "$work/"
stage "tools: build" tools.log build_tools
PATH=$CARGO_TARGET_DIR/release:$PATH
devcache-kernel --checkout "$work" --out "$run" "$@"
[ "$target" != kernel ] || exit 0

guest=$run/guest
mkdir -p "$guest/bin"
for tool in $tools; do cp "$CARGO_TARGET_DIR/release/$tool" "$guest/bin/"; done
if [ "$target" = soak ]; then
	CONFIG="test" devcache-kernel --checkout "$work" --out "$run/test"
	cp -r "$guest/bin" "$run/test/guest/"
fi
PATH=$guest/bin:/usr/bin:/usr/sbin
if [ "$target" = test ]; then
	devcache-check --results "$run/results" host \
		--checkout "$work" --tree "$cache/tree" --warnings "$run/warnings"
fi
exec 9>&-

set -- --kernel "$run/bzImage" --append "$append" --guest "$guest"
case $target in
run) devcache-vm "$@" -- "$CMD" ;;
shell) devcache-vm "$@" ;;
demo) devcache-vm "$@" -- devcache-demo ;;
power-cuts) devcache-powercut cut "$@" ;;
soak)
	devcache-check --results "$cache/log/soak" soak --kasan "$run" --test "$run/test" \
		--patience "$patience" --append "$append" --logs "$cache/log"
	;;
upstream-tests)
	devcache-check --results "$cache/log/upstream-tests" upstream \
		--patched "$run" --base "$run/base" --logs "$cache/log"
	;;
test)
	devcache-check --results "$run/results" guest --patience "$patience" --logs "$cache/log" "$@"
	devcache-check --results "$run/results" sum
	;;
esac
