#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make, gcc, as and lld build a program inside the file system. The assembler runs from there, and so does
# the program in the end, which sums up its own tables: code is moved as well as data. What they make must
# be, byte by byte, what they make of the same sources outside the storm.
set -eu

PARTS=3 WORDS=4000

# Tables are arithmetic series that differ from round to round, so that their sums are known.
sources() {
	expected=0
	for part in $(seq $PARTS); do
		first=$((part * 1000 + number))
		expected=$((expected + WORDS * first + WORDS * (WORDS - 1) / 2))
		cat >"part$part.c" <<-END
			static const volatile unsigned int table[] = {
			$(seq -s , $first $((first + WORDS - 1)))
			};
			unsigned long long part$part(void)
			{
				unsigned long long sum = 0;
				for (unsigned int i = 0; i < sizeof(table) / sizeof(*table); i++)
					sum += table[i];
				return sum;
			}
		END
	done
	cat >main.c <<-END
		#include <stdio.h>
		$(for part in $(seq $PARTS); do echo "unsigned long long part$part(void);"; done)
		int main(void)
		{
			printf("%llu\n", 0$(for part in $(seq $PARTS); do printf '+part%d()' "$part"; done));
			return 0;
		}
	END
	cat >Makefile <<-END
		CC = gcc
		CFLAGS = -g -O1 -fdebug-prefix-map=\$(CURDIR)=. \$(PREFIX)
		LDFLAGS = -fuse-ld=lld
		main: main.o $(for part in $(seq $PARTS); do printf 'part%d.o ' "$part"; done)
	END
	echo $expected >expected
}

number=$2
case $1 in
work)
	rm -rf build "$SAFE/build"
	mkdir "$SAFE/build"
	(cd "$SAFE/build" && sources)
	cp -r "$SAFE/build" build
	mkdir build/bin
	cp /usr/bin/as build/bin/
	make --silent -j2 -C build PREFIX=-Bbin/
	make --silent -j2 -C "$SAFE/build"
	;;
check)
	diff -r --exclude=bin build "$SAFE/build"
	cmp build/bin/as /usr/bin/as
	for _ in $(seq 3); do
		[ "$(build/main)" = "$(cat "$SAFE/build/expected")" ]
	done
	;;
esac
