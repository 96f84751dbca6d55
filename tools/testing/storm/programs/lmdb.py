# SPDX-License-Identifier: GPL-2.0
# LMDB, which reads through a mapping, and in every second round writes through it too. All entries must be
# those of a dictionary that is not in the database; LMDB itself walks its tree to make a compact copy.
import os
import pickle
import random
import sys

import lmdb

word, number = sys.argv[1], int(sys.argv[2])
kept = os.path.join(os.environ["SAFE"], "entries")
copy = os.path.join(os.environ["SAFE"], "copy.mdb")


def connect(path="data.mdb", writemap=False):
    return lmdb.open(path, map_size=64 << 20, subdir=False, writemap=writemap)


def check(db, entries):
    with db.begin() as read:
        assert read.stat()["entries"] == len(entries)
        assert dict(read.cursor()) == entries


def load():
    with open(kept, "rb") as file:
        return pickle.load(file)


if word == "work":
    rng = random.Random(number)
    db = connect(writemap=number % 2 == 1)
    entries = load() if os.path.exists(kept) else {}
    for _ in range(3):
        with db.begin(write=True) as write:
            for _ in range(60):
                key = str(rng.randrange(600)).encode()
                entries[key] = rng.randbytes(rng.randrange(1, 4000))
                write.put(key, entries[key])
                key = str(rng.randrange(600)).encode()
                assert write.delete(key) == (entries.pop(key, None) is not None)
        check(db, entries)
    db.sync(True)
    with open(kept, "wb") as file:
        pickle.dump(entries, file)
elif word == "check":
    entries = load()
    db = connect()
    check(db, entries)
    if os.path.exists(copy):
        os.remove(copy)
    db.copy(copy, compact=True)
    check(connect(copy), entries)
