#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# dd writing past the page cache, while another program reads through it and so brings pages back that the
# write is about to make stale.
set -eu

case $1 in
work)
	[ -e data ] || head -c 1048576 /dev/urandom >data
	rm -f "$SAFE/done"
	while [ ! -e "$SAFE/done" ]; do cat data >/dev/null; done &
	reader=$!
	stale=0
	for _ in $(seq 4); do
		head -c 1048576 /dev/urandom >"$SAFE/new"
		dd if="$SAFE/new" of=data bs=64k oflag=direct conv=notrunc status=none
		cmp data "$SAFE/new" || stale=1
	done
	: >"$SAFE/done"
	wait "$reader"
	[ "$stale" = 0 ]
	;;
check) cmp data "$SAFE/new" ;;
esac
