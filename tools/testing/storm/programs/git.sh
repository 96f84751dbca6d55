#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# git, which maps packs and its index: a repository that grows, a clone of it, and both checked.
set -eu

export GIT_AUTHOR_NAME=storm GIT_AUTHOR_EMAIL=storm GIT_COMMITTER_NAME=storm GIT_COMMITTER_EMAIL=storm

# A file of this name in all places: those under the storm must equal that which is not.
files() {
	mkdir -p "$SAFE/tree"
	for file in $(seq 8); do
		head -c $((file * 997)) /dev/urandom | od -x >"$SAFE/tree/text-$file-$number"
	done
	head -c 300000 /dev/urandom >"$SAFE/tree/binary"
	cp -r "$SAFE/tree/." source
}

number=$2
case $1 in
work)
	[ -e source ] || git init --quiet source
	files
	git -C source add .
	git -C source commit --quiet --message="$number"
	git -C source repack -adq
	rm -rf clone
	git clone --quiet --no-local source clone
	;;
check)
	for repository in source clone; do
		git -C $repository fsck --full --strict --no-progress
		[ -z "$(git -C $repository status --porcelain)" ]
		diff -r --exclude=.git "$SAFE/tree" $repository
	done
	;;
esac
