#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# gcc and lld build a program inside the file system, of which the linker maps inputs and output. The
# program runs from there too, and sums up its own tables.
set -eu

FILES=2 WORDS=20000

number=$2
case $1 in
work)
	# Each table is an arithmetic series, so that its sum is known.
	expected=0
	rm -rf build
	mkdir build
	for file in $(seq $FILES); do
		first=$((file * 1000 + number))
		seq -s , $first $((first + WORDS - 1)) >build/table.h
		cat >"build/part$file.c" <<-END
			static const unsigned int table[] = {
			#include "table.h"
			};
			unsigned long long part$file(void)
			{
				unsigned long long sum = 0;
				for (unsigned int i = 0; i < sizeof(table) / sizeof(*table); i++)
					sum += ((const volatile unsigned int *)table)[i];
				return sum;
			}
		END
		gcc -g -c -o "build/part$file.o" "build/part$file.c"
		expected=$((expected + WORDS * first + WORDS * (WORDS - 1) / 2))
	done
	cat >build/main.c <<-END
		#include <stdio.h>
		$(for file in $(seq $FILES); do echo "unsigned long long part$file(void);"; done)
		int main(void)
		{
			printf("%llu\n", 0$(for file in $(seq $FILES); do printf '+part%d()' "$file"; done));
			return 0;
		}
	END
	gcc -g -fuse-ld=lld -o build/program build/main.c build/part*.o
	gcc -g -fuse-ld=lld -o "$SAFE/program" build/main.c build/part*.o
	echo "$expected" >"$SAFE/expected"
	;;
check)
	cmp build/program "$SAFE/program"
	for _ in $(seq 3); do
		[ "$(build/program)" = "$(cat "$SAFE/expected")" ]
	done
	;;
esac
