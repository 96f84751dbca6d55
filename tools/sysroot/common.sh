# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=sh disable=SC2034 # used by those who source it
# Sourced with $here as this folder: where things are, one line of progress per stage.

cache=${DEVCACHE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/devcache}
# What the user sees as the cache folder: inside the sysroot it is mounted elsewhere.
shown_cache=${DEVCACHE_CACHE_SHOWN:-$cache}

# What decides the sysroot's content, and so its folder: a changed list gives a new sysroot, an equal
# one is reused by other checkouts too.
suite=trixie
pin='Package: qemu-* seabios\nPin: release n=%s-backports\nPin-Priority: 900\n'
# shellcheck disable=SC2154 # see above
packages=$(sed 's/#.*//' "$here/packages" | xargs | tr ' ' ,)
sysroot=$cache/sysroot-$(printf '%s' "$suite $pin $packages" | sha256sum | cut -c1-12)

die() {
	echo "devcache: $*" >&2
	exit 1
}

# stage NAME LOG COMMAND...: run COMMAND with its output in $cache/log/LOG; say how long it took, or
# where the log is.
stage() {
	stage_name=$1
	stage_log=$cache/log/$2
	shift 2
	mkdir -p "$cache/log"
	stage_start=$(date +%s)
	printf '%s ... ' "$stage_name"
	if "$@" >"$stage_log" 2>&1 </dev/null; then
		stage_time=$(($(date +%s) - stage_start))
		printf '%dm%02ds\n' $((stage_time / 60)) $((stage_time % 60))
	else
		printf 'failed\n'
		tail -n 20 "$stage_log" >&2
		die "$stage_name failed; full log: $shown_cache/log/${stage_log##*/}"
	fi
}
