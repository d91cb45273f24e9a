"""background -- `-D`: away from the terminal, while the process that was started waits until the start is over."""
from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable
from typing import Any

import midatagram as mi

log = logging.getLogger("midatagram")


def close_inherited(given: Iterable[int]) -> None:
    """Close all inherited descriptors but the standard streams and the sockets of systemd."""
    for descriptor in map(int, os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else ()):
        if descriptor > 2 and descriptor not in given:
            with contextlib.suppress(OSError):  # the descriptor that listdir used
                os.close(descriptor)


def let_go(*descriptors: int) -> None:
    """Point descriptors of standard streams at /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)


class Starter:
    """The process that was started, as its child knows it: it waits, and exits as the start ends."""

    def __init__(self):
        """Fork, away from the terminal. Until release() stderr stays, for what goes wrong."""
        read, self.write = os.pipe()
        pid, status = mi.original("os", "fork")(), mi.EXIT_CRASH
        if pid:
            os.close(self.write)
            try:  # whatever happens here, the pid file is the server's
                status = 0 if os.read(read, 1) else os.waitstatus_to_exitcode(mi.original("os", "waitpid")(pid, 0)[1])
            finally:
                os._exit(status)
        os.setsid()
        os.close(read)
        let_go(0, 1)

    def release(self, loader: Any) -> None:
        """Let it exit, since the start is over; loader: the Generation whose process lets go of stderr, too."""
        if any(handler.on_stderr for handler in mi.log_handlers()):
            log.warning("the log ends here, as -D lets go of stderr; log to a file (log_file) or to syslog instead")
        self.let_go_of_stderr()
        with contextlib.suppress(OSError):  # the loader is being replaced
            loader.ask("let_go", ())
        with contextlib.suppress(OSError):  # who started us did not wait
            os.write(self.write, b".")
        os.close(self.write)

    def let_go_of_stderr(self) -> None:
        """Let go of stderr, under each of its numbers; in each process."""
        let_go(2, *[handler.descriptor for handler in mi.log_handlers() if handler.on_stderr])
