#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# fio storing through a mapping, in random order; each block has a header and a sum.
set -eu

job() {
	fio --name=storm --filename=data --size=512k --bs=4k --rw=randwrite --ioengine=mmap --verify=crc32c \
		--verify_fatal=1 --randseed="$number" --output="$SAFE/output" "$@" || {
		cat "$SAFE/output"
		exit 1
	}
}

number=$2
case $1 in
work) job --do_verify=1 ;;
check) job --verify_only ;;
esac
