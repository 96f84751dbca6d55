# SPDX-License-Identifier: GPL-2.0
# SQLite reading through a mapping while it writes by system calls, with and without a log that is in
# shared memory. The database has its own check, and a second one, not under the storm, has the same rows.
import os
import random
import sqlite3
import sys

word, number = sys.argv[1], int(sys.argv[2])
kept = os.path.join(os.environ["SAFE"], "data.db")


def connect(path="data.db", mapped=256 << 20):
    db = sqlite3.connect(path, timeout=60)
    db.execute(f"PRAGMA mmap_size = {mapped}")
    return db


def rows(db):
    return db.execute("SELECT key, body FROM t ORDER BY key").fetchall()


def check(db, expected):
    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert rows(db) == expected


if word == "work":
    rng = random.Random(number)
    both = connect(), connect(kept)
    both[0].execute("PRAGMA journal_mode = " + ("WAL" if number % 2 else "DELETE"))
    reader = connect()
    for _ in range(3):
        changes = [
            (
                "INSERT OR REPLACE INTO t VALUES (?, ?)",
                (rng.randrange(500), rng.randbytes(rng.randrange(1, 8000))),
            )
            for _ in range(40)
        ]
        changes.append(("DELETE FROM t WHERE key % 31 = ?", (rng.randrange(31),)))
        for db in both:
            with db:
                db.execute("CREATE TABLE IF NOT EXISTS t (key INTEGER PRIMARY KEY, body BLOB)")
                for change in changes:
                    db.execute(*change)
        check(reader, rows(both[1]))
elif word == "check":
    for mapped in 256 << 20, 0:
        check(connect(mapped=mapped), rows(connect(kept)))
