#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# rsync --checksum between two folders under the storm, by new files and in place, in turn; a third copy
# is not under it.
set -eu

number=$2
case $1 in
work)
	mkdir -p source target "$SAFE/tree"
	for file in $(seq 5); do
		path="$SAFE/tree/file-$file"
		[ -e "$path" ] || head -c $((file * 54321)) /dev/urandom >"$path"
		dd if=/dev/urandom of="$path" bs=1000 seek=$((number * file % 100)) count=20 conv=notrunc \
			status=none
	done
	rsync -rlt --checksum --inplace --no-whole-file "$SAFE/tree/" source/
	case $((number % 2)) in
	0) rsync -rlt --checksum --delete source/ target/ ;;
	1) rsync -rlt --checksum --delete --inplace --no-whole-file source/ target/ ;;
	esac
	;;
check)
	for folder in source target; do
		[ -z "$(rsync -rln --checksum --delete --itemize-changes "$SAFE/tree/" $folder/)" ]
		diff -r "$SAFE/tree" $folder
	done
	;;
esac
