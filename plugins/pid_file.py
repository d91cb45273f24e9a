"""pid_file -- the file of `-P`, which is locked while a server runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

import midatagram as mi

PID_TRIES = 20


class PidFile:
    """A file with the attendant's pid; who holds its lock is running, so a file that is left behind means nothing.

    Who can open it for reading can lock it: hence it is its owner's alone. of_others: another user's may be looked at.
    """

    def __init__(self, path: str, of_others: bool = False):
        self.path, self.of_others, self.file = path, of_others, -1

    def open(self, flags: int) -> int:
        """A descriptor of the file: a plain one with no other name, which is ours or root's; OSError."""
        folder = mi.walk(os.path.dirname(self.path) or ".", mi.follow_roots)
        try:
            flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
            file = os.open(os.path.basename(self.path), flags, 0o600, dir_fd=folder)
        finally:
            os.close(folder)
        status = os.fstat(file)
        owned = self.of_others or status.st_uid in (0, os.geteuid())
        if stat.S_ISREG(status.st_mode) and status.st_nlink < 2 and owned:
            return file
        os.close(file)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))

    def locked_elsewhere(self) -> bool:
        """Whether another process holds the lock."""
        try:
            file = self.open(os.O_RDONLY)
        except FileNotFoundError:
            return False
        except PermissionError as error:
            return self.listed_as_locked(error)
        except OSError as error:
            raise self.trouble(error) from None
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(file)
        return False

    def listed_as_locked(self, refusal: PermissionError) -> bool:
        """Whether the kernel lists a lock on the file, for who may not open it."""
        try:
            status = os.stat(self.path)
            with open("/proc/locks") as file:
                device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}"
                return any(f"{device}:{status.st_ino}" in line.split() for line in file)
        except OSError:
            raise self.trouble(refusal) from None

    def trouble(self, error: OSError) -> mi.StartError:
        """Why the file cannot be used."""
        status = mi.EXIT_PERMISSION if isinstance(error, PermissionError) else mi.EXIT_CANNOT_CREATE
        linked = "is no plain file of our own; remove it or choose another path"
        return mi.StartError(status, f"pid file {self.path}: {linked if error.errno == errno.ELOOP else error.strerror}")

    def lock(self) -> None:
        """Take the lock, and room for a pid; StartError when a server runs or the file cannot be written."""
        for _ in range(PID_TRIES):  # who asks for the status has the lock for a moment
            try:
                self.file = self.open(os.O_RDWR | os.O_CREAT)
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if mi.identity_of(self.path) == mi.identity_of(self.file):
                    os.fchmod(self.file, 0o600)
                    return self.write("")
            except BlockingIOError:
                mi.original("time", "sleep")(0.01)
            except OSError as error:
                raise self.trouble(error) from None
            os.close(self.file)  # locked, or removed meanwhile by one that ended
        raise mi.StartError(mi.EXIT_RUNNING, f"already running: {self.path} is locked")

    def write(self, pid: str) -> None:
        """Write a pid; StartError, and the file is gone."""
        try:
            os.ftruncate(self.file, os.pwrite(self.file, mi.encode(f"{pid}\n"), 0))
        except OSError as error:
            self.remove()
            raise self.trouble(error) from None

    def remove(self) -> None:
        """Delete the file and give up the lock."""
        with contextlib.suppress(OSError):
            mi.remove_own(self.path, mi.identity_of(self.file))
        with contextlib.suppress(OSError):
            os.close(self.file)
        self.file = -1
