# SPDX-License-Identifier: GPL-2.0
# safetensors: files of tensors that are mapped and read in parts, while others are written. Each must be, byte
# by byte, one that is not under the storm, and the tensors those that were put in.
import filecmp
import json
import os
import sys

# Not this script's own folder, where it could be taken for the library.
sys.path.pop(0)
import numpy
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

word, number = sys.argv[1], int(sys.argv[2])
safe = os.environ["SAFE"]
kept = os.path.join(safe, "seeds")
FILES = 2


def name(file):
    return f"model-{file}.safetensors"


def make(file, seed):
    rng = numpy.random.default_rng([file, seed])
    return {
        f"layer.{layer}.{kind}": rng.standard_normal((100 + layer, 257)).astype(kind)
        for layer in range(2)
        for kind in ("float32", "float16")
    }


def compare(file, tensors):
    assert filecmp.cmp(name(file), os.path.join(safe, name(file)), shallow=False), name(file)
    for key, tensor in load_file(name(file)).items():
        assert numpy.array_equal(tensor, tensors[key]), key
    with safe_open(name(file), framework="np") as opened:
        assert set(opened.keys()) == set(tensors)
        for key in opened.keys():
            part = opened.get_slice(key)
            assert numpy.array_equal(part[7:90, 3:200], tensors[key][7:90, 3:200]), key


if word == "work":
    seeds = {}
    if os.path.exists(kept):
        with open(kept) as file:
            seeds = json.load(file)
    for file in range(FILES):
        if name(file) not in seeds or file == number % FILES:
            seeds[name(file)] = number
            for folder in ".", safe:
                save_file(make(file, number), os.path.join(folder, name(file)))
    with open(kept, "w") as file:
        json.dump(seeds, file)
elif word == "check":
    with open(kept) as file:
        seeds = json.load(file)
    for file in range(FILES):
        compare(file, make(file, seeds[name(file)]))
