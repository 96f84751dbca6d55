#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# fio storing through a mapping, in random order; each block has a header and a sum. A copy of what it wrote,
# which no storm touches, must pass the same test and stay equal.
set -eu

job() {
	fio --name=storm --size=512k --bs=4k --rw=randwrite --ioengine=mmap --verify=crc32c --verify_fatal=1 \
		--randseed="$number" --output="$SAFE/output" "$@" || {
		cat "$SAFE/output"
		exit 1
	}
}

number=$2
case $1 in
work)
	job --filename=data --do_verify=1
	cp data "$SAFE/data"
	job --filename="$SAFE/data" --verify_only
	;;
check)
	job --filename=data --verify_only
	cmp data "$SAFE/data"
	;;
esac
