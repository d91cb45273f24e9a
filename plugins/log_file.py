"""log_file -- the file of the parameter log_file, which SIGUSR1 opens again."""

from __future__ import annotations

import argparse
import contextlib
import errno
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import midatagram as mi

APPENDING = os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_CREAT


def open_to_append(path: str, access: int = os.O_WRONLY, mode: int = 0o640) -> int:
    """Open or create a file to append to, without waiting for the reader of a FIFO; OSError. Root opens what no other user
    can have put there: in a folder that others may write, only a file of root's that has no other name."""
    only_roots = 0
    if os.geteuid() == 0 and path not in ("/dev/stdout", "/dev/stderr"):  # they lead to what root was started with
        try:
            os.close(mi.walk(path, mi.check_unshared))
        except (FileNotFoundError, PermissionError):
            os.close(mi.walk(os.path.dirname(path), mi.check_unshared))
            only_roots = os.O_NOFOLLOW
    descriptor = os.open(path, access | APPENDING | only_roots, mode)
    status = os.fstat(descriptor)
    if only_roots and (status.st_uid != 0 or status.st_nlink != 1):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "others than root can write its folder, and may have put it there")
    return descriptor


def open_log(path: str) -> int:
    """Open a log file, which may be a FIFO that nobody reads yet; OSError."""
    try:
        return open_to_append(path)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return open_to_append(path, os.O_RDWR)


def handler(setup: mi.Setup, options: argparse.Namespace) -> mi.LogHandler:
    """Logs to the file of a configuration, opened as the user of -u, or by root where that user may not; StartError.

    One that root makes is the user's, so that it can be opened again.
    """
    user, gid = mi.shared("privileges", "log_file", "for the user of -u, ").account_of(options)
    path = os.path.abspath(setup.own["log_file"])
    is_new = not os.path.lexists(path)
    try:
        try:
            with acting_as(user, gid):
                descriptor = open_log(path)
        except PermissionError:
            descriptor = open_log(path)
            if user and is_new:
                os.fchown(descriptor, user.pw_uid, gid)
    except OSError as error:
        status = mi.EXIT_PERMISSION if isinstance(error, PermissionError) else mi.EXIT_CANNOT_CREATE
        mend = f"; mend: mkdir -p {os.path.dirname(path)}" if isinstance(error, FileNotFoundError) else ""
        refusal = mi.ConfigError(*setup.lines["log_file"][-1], f"log_file {path}: {error.strerror}{mend}")
        raise mi.StartError(status, f"{refusal}") from None
    return mi.LogHandler(functools.partial(os.write, descriptor), descriptor, reopen=functools.partial(reopen, path, descriptor))


@contextlib.contextmanager
def acting_as(user: Any, gid: int) -> Iterator[None]:
    """Be a user of -u for a while, to do with files what that one could; only root can."""
    with contextlib.ExitStack() as stack:
        if user and os.geteuid() == 0:
            stack.callback(os.setgroups, os.getgroups())
            stack.callback(os.setegid, os.getegid())
            stack.callback(os.seteuid, 0)
            os.setgroups(os.getgrouplist(user.pw_name, gid))
            os.setegid(gid)
            os.seteuid(user.pw_uid)
        yield


def reopen(path: str, descriptor: int) -> None:
    """Open a log file again by its name. A signal may come in the midst of a line: the descriptor keeps its number."""
    try:
        fresh = open_log(path)
        os.dup2(fresh, descriptor, inheritable=False)
        os.close(fresh)
    except OSError as error:  # as when -u may not write the folder: better the old file than none
        log = logging.getLogger("midatagram")
        log.error("%s cannot be opened again, the log goes on to the old file: %s", path, error.strerror)
