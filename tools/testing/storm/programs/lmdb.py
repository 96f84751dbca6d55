# SPDX-License-Identifier: GPL-2.0
# LMDB, which reads through a mapping, and in every second round writes through it too. Each value has a
# sum of its content and of its key.
import hashlib
import os
import random
import sys

import lmdb

word, number = sys.argv[1], int(sys.argv[2])
kept = os.path.join(os.environ["SAFE"], "entries")


def connect(writemap=False):
    return lmdb.open("data.mdb", map_size=64 << 20, subdir=False, writemap=writemap)


def digest(key, body):
    return hashlib.sha1(key + body).digest()


def check(db, entries):
    with db.begin() as read:
        assert read.stat()["entries"] == entries
        for key, value in read.cursor():
            assert digest(key, value[20:]) == value[:20], key


if word == "work":
    rng = random.Random(number)
    db = connect(writemap=number % 2 == 0)
    for _ in range(3):
        with db.begin(write=True) as write:
            for _ in range(60):
                key = str(rng.randrange(600)).encode()
                body = rng.randbytes(rng.randrange(1, 4000))
                write.put(key, digest(key, body) + body)
                write.delete(str(rng.randrange(600)).encode())
            entries = write.stat()["entries"]
        check(db, entries)
    db.sync(True)
    with open(kept, "w") as file:
        file.write(str(entries))
elif word == "check":
    with open(kept) as file:
        check(connect(), int(file.read()))
