"""store_file -- takes over the file that midatagram's parameter store_file names, before the first child is forked.

What was in the store of an earlier run is in it then: contacts, dialogs, states, cached values, subscriptions.
"""
from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from typing import Any

import midatagram as mi

log = logging.getLogger("midatagram.store_file")

MAGIC, VERSION = b"midg", 1  # SQLite's application_id and user_version, at these places of the file:
MAGIC_AT, VERSION_AT, HEADER_BYTES = 68, 60, 100
SUBSCRIPTIONS = b"events"  # the space of subscriptions
LOCK_S = 2.0  # for which the children of a run that was killed have time to end

###############################################################################
# The file
###############################################################################


def adopt(store: Any, setup: mi.Setup) -> int:
    """Have the store in the file of a configuration, with what is in it; returns a descriptor that locks it. StartError."""
    with named(setup) as path:
        return take_file(store, path)


def why_not(setup: mi.Setup) -> str:
    """What adopt() would say of a file that is there, as far as reading shows it; empty for nothing."""
    try:
        with named(setup) as path:
            if os.path.lexists(path):
                with open(opened(path, os.O_RDONLY), "rb") as file:
                    if os.geteuid():  # root may run this with -u
                        check_owner(path, file.fileno())
                    check_header(path, file.read(HEADER_BYTES))
    except mi.StartError as error:
        return f"{error}"
    return ""


@contextlib.contextmanager
def named(setup: mi.Setup) -> Iterator[str]:
    """The path of the file, which an error about it names, with the line of the configuration; StartError."""
    path = os.path.abspath(setup.own["store_file"])
    try:
        yield path
    except (OSError, mi.StartError) as error:
        refused = error if isinstance(error, mi.StartError) else refusal_of(path, error)
        raise mi.StartError(refused.status, f"{mi.ConfigError(*setup.lines['store_file'][-1], str(refused))}") from None


def take_file(store: Any, path: str) -> int:
    """As adopt(), also OSError. A file of something else is left alone; a damaged one gets another name, and one is made anew."""
    descriptor = open_locked(path)
    check_header(path, os.pread(descriptor, HEADER_BYTES, 0))
    store.path = path
    try:
        take_over(store)
    except sqlite3.OperationalError as error:  # of the file system, mostly
        raise refusal(mi.EXIT_CANNOT_CREATE, path, f"{error}") from None
    except sqlite3.DatabaseError as error:
        aside = f"{path}.damaged-{time.strftime('%Y%m%d-%H%M%S')}"
        log.error("%s is damaged (%s): it is %s now, and the store begins empty", path, error, aside)
        set_aside(path, aside)
        os.close(descriptor)
        return take_file(store, path)
    return descriptor


def refusal(status: int, path: str, why: str) -> mi.StartError:
    """An error about the file."""
    return mi.StartError(status, f"store_file {path}: {why}")


def refusal_of(path: str, error: OSError) -> mi.StartError:
    """An error about the file that the system has."""
    status = mi.EXIT_PERMISSION if isinstance(error, PermissionError) else mi.EXIT_CANNOT_CREATE
    mend = f"; mend: mkdir -p {os.path.dirname(path)}" if isinstance(error, FileNotFoundError) else ""
    return refusal(status, path, f"{error.strerror} (uid {os.geteuid()}){mend}")


def opened(path: str, flags: int) -> int:
    """Open the file, without waiting for anybody; OSError, and StartError for another kind of file."""
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise refusal(mi.EXIT_PERMISSION, path, "is no regular file; name another one")
    return descriptor


def check_owner(path: str, descriptor: int) -> None:
    """Refuse a file of another user; StartError."""
    if os.fstat(descriptor).st_uid != os.geteuid():
        raise refusal(mi.EXIT_PERMISSION, path, f"is not a file of uid {os.geteuid()}, who runs this")


def open_locked(path: str) -> int:
    """Open or make the file for this user alone, and lock it; OSError, StartError."""
    descriptor = opened(path, os.O_RDWR | os.O_CREAT)
    if os.geteuid() == 0:
        os.close(mi.walk(path, mi.check_unshared))
    check_owner(path, descriptor)
    os.fchmod(descriptor, 0o600)
    until_s = time.monotonic() + LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except OSError:
            if time.monotonic() > until_s:
                raise refusal(mi.EXIT_IN_USE, path, "another server has it") from None
            time.sleep(0.05)


def check_header(path: str, header: bytes) -> None:
    """Refuse a file that this program did not write, or a later release of it; StartError."""
    if header and not (header.startswith(b"SQLite format 3\0") and header[MAGIC_AT:MAGIC_AT + 4] == MAGIC):
        raise refusal(mi.EXIT_CONFIG, path, "was not written by midatagram; name another file, or remove this one")
    if int.from_bytes(header[VERSION_AT:VERSION_AT + 4], "big") > VERSION:
        raise refusal(mi.EXIT_CONFIG, path, "was written by a later release of midatagram")


def set_aside(path: str, aside: str) -> None:
    """Give the file another name, and what belongs to it; StartError."""
    try:
        for suffix in ("-wal", "-shm", ""):
            if os.path.lexists(path + suffix):
                os.rename(path + suffix, aside + suffix)
    except OSError as error:
        raise refusal(mi.EXIT_CANNOT_CREATE, path, f"is damaged, and cannot be renamed: {error.strerror}") from None


###############################################################################
# What is in it
###############################################################################


def take_over(store: Any) -> None:
    """Make what is missing in the file, and the store know what is in it; sqlite3.Error."""
    connection = sqlite3.connect(store.path, isolation_level=None, timeout=LOCK_S)
    try:
        run = connection.execute
        if not run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            run(f"PRAGMA application_id = {int.from_bytes(MAGIC, 'big')}")
            run(f"PRAGMA user_version = {VERSION}")
        trouble = run("PRAGMA quick_check(1)").fetchone()[0]
        if trouble != "ok":
            raise sqlite3.DatabaseError(trouble)
        for statement in (*store.ON_DISK, *store.OPEN, "CREATE TABLE IF NOT EXISTS clock (behind_s REAL)"):
            run(statement)
        begin_clock(run, time.time() - store.now_s())
        recount(store, run)
    finally:
        connection.close()


def begin_clock(run: Any, behind_s: float) -> None:
    """Turn the times of the steady clock of an earlier run into those of this one, and forget what was removed; sqlite3.Error.

    behind_s: how far this run's clock is behind the time of day.
    """
    run("BEGIN IMMEDIATE")
    earlier_s = (run("SELECT behind_s FROM clock").fetchone() or (behind_s,))[0]
    shift_s = earlier_s - behind_s
    run("DELETE FROM item WHERE value IS NULL")
    if abs(shift_s) > 0.01:
        run("UPDATE item SET expires = expires + ? WHERE expires IS NOT NULL", (shift_s,))
        for key, value in run("SELECT key, value FROM item WHERE space = ?", (SUBSCRIPTIONS,)).fetchall():
            rows = [{**row, "since": row["since"] + shift_s} for row in json.loads(value)]
            run("UPDATE item SET value = ? WHERE space = ? AND key = ?", (json.dumps(rows).encode(), SUBSCRIPTIONS, key))
    run("DELETE FROM clock")
    run("INSERT INTO clock VALUES (?)", (behind_s,))
    run("COMMIT")


def recount(store: Any, run: Any) -> None:
    """Know of what an earlier run left in a store_file: the versions of its spaces, and how large they are; sqlite3.Error."""
    for space, version in run("SELECT space, max(version) FROM item GROUP BY space").fetchall():
        slot = hash(mi.decode(space)) % mi.SPACES
        store.begun[slot] = store.committed[slot] = max(store.begun[slot], version)
        store.shared[mi.NEWEST] = store.shared[mi.DONE] = max(store.shared[mi.NEWEST], version)
    size = "SELECT coalesce(sum(2 * length(key) + length(value)), 0) + ? * count(*) FROM item"
    store.shared[mi.USED] = run(size, (mi.ROW_BYTES,)).fetchone()[0]
