"""log_file -- the file of the parameter log_file, which SIGUSR1 opens again."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
from collections.abc import Iterator
from typing import Any

import midatagram as mi


def open_log(path: str) -> int:
    """Open a log file, which may be a FIFO that nobody reads yet; OSError."""
    try:
        return mi.open_to_append(path)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return mi.open_to_append(path, os.O_RDWR)


def handler(path: str, user: Any, gid: int) -> mi.LogHandler:
    """Logs to a file, opened as the user of -u, or by root where that user may not; StartError.

    One that root makes is the user's, so that it can be opened again.
    """
    path, is_new = os.path.abspath(path), not os.path.lexists(path)
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
        raise mi.StartError(status, f"log_file {path}: {error.strerror}") from None
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
