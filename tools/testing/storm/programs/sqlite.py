# SPDX-License-Identifier: GPL-2.0
# SQLite reading through a mapping while it writes by system calls, with and without a log that is in
# shared memory. Each row has a sum of its content; the database has its own check.
import hashlib
import os
import random
import sqlite3
import sys

word, number = sys.argv[1], int(sys.argv[2])
kept = os.path.join(os.environ["SAFE"], "rows")


def connect():
    db = sqlite3.connect("data.db", timeout=60)
    db.execute("PRAGMA mmap_size = 268435456")
    return db


def check(db, rows):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert db.execute("SELECT count(*) FROM t").fetchone() == (rows,)
    for key, body, digest in db.execute("SELECT key, body, digest FROM t"):
        assert hashlib.sha1(body).hexdigest() == digest, f"row {key}"


if word == "work":
    rng = random.Random(number)
    db = connect()
    db.execute("PRAGMA journal_mode = " + ("WAL" if number % 2 else "DELETE"))
    db.execute("CREATE TABLE IF NOT EXISTS t (key INTEGER PRIMARY KEY, body BLOB, digest TEXT)")
    reader = connect()
    for _ in range(3):
        with db:
            for _ in range(40):
                body = rng.randbytes(rng.randrange(1, 8000))
                db.execute(
                    "INSERT OR REPLACE INTO t VALUES (?, ?, ?)",
                    (rng.randrange(500), body, hashlib.sha1(body).hexdigest()),
                )
            db.execute("DELETE FROM t WHERE key % 31 = ?", (rng.randrange(31),))
            rows = db.execute("SELECT count(*) FROM t").fetchone()[0]
        check(reader, rows)
    with open(kept, "w") as file:
        file.write(str(rows))
elif word == "check":
    with open(kept) as file:
        check(connect(), int(file.read()))
