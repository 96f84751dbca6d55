# SPDX-License-Identifier: GPL-2.0
# numpy.memmap: the same operations on an array in a file and on one in memory.
import os
import sys

# Not this script's own folder, where it could be taken for the library.
sys.path.pop(0)
import numpy

word, number = sys.argv[1], int(sys.argv[2])
kept = os.path.join(os.environ["SAFE"], "array.npy")
LENGTH = 1 << 15

if word == "work":
    rng = numpy.random.default_rng(number)
    if not os.path.exists(kept):
        numpy.memmap("array", numpy.uint32, "w+", shape=LENGTH)
        numpy.save(kept, numpy.zeros(LENGTH, numpy.uint32))
    mapped = numpy.memmap("array", numpy.uint32, "r+")
    array = numpy.load(kept)
    for step in range(4):
        start, end = sorted(rng.integers(0, LENGTH, 2))
        value = rng.integers(0, 1 << 32, dtype=numpy.uint32)
        other = rng.integers(0, LENGTH, 1000)
        for target in mapped, array:
            target[start:end] += value
            target[::511] ^= value
            target[other] = target[other[::-1]]
        assert numpy.array_equal(mapped, array), f"step {step}"
        assert mapped.sum() == array.sum()
    mapped.flush()
    numpy.save(kept, array)
elif word == "check":
    array = numpy.load(kept)
    for how in "r", "c":
        assert numpy.array_equal(numpy.memmap("array", numpy.uint32, how), array)
    assert numpy.array_equal(numpy.fromfile("array", numpy.uint32), array)
