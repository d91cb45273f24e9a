"""systemd -- the sockets that systemd opened for the server, see sd_listen_fds(3), and what it is told, see sd_notify(3)."""
from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Callable
from typing import Any

import midatagram as mi

log = logging.getLogger("midatagram")


VARIABLES = "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC"


def begin() -> tuple[dict, Callable[..., None]]:
    """The sockets as given_sockets() has them, and what tells systemd states; its variables are handed on to nobody."""
    given, notify = given_sockets(), Notifier().send
    for name in VARIABLES:
        os.environ.pop(name, None)
    return given, notify


def given_sockets() -> dict:
    """The sockets that systemd opened for this process: path or address -> descriptor."""
    given, count = {}, int(os.environ.get("LISTEN_FDS", 0))
    for descriptor in range(3, 3 + count) if os.environ.get("LISTEN_PID") == str(os.getpid()) else ():
        os.set_inheritable(descriptor, False)
        with socket.socket(fileno=os.dup(descriptor)) as probe:
            given[probe.getsockname()] = descriptor
    return given


class Notifier:
    """Tells systemd how we are, if it asked to be told, without waiting for it."""

    def __init__(self):
        self.target = os.environ.get("NOTIFY_SOCKET", "")
        self.unsent: dict[str, Any] = {}  # for which systemd has had no room

    def send(self, **states: Any) -> None:
        """Send states, and those that wait and are not out of date."""
        if not self.target:
            return
        self.unsent.update(states)
        text = "\n".join(f"{name}={value}" for name, value in self.unsent.items())
        try:
            with mi.original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sender:
                sender.sendto(mi.encode(text), re.sub("^@", "\0", self.target))
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot notify %s: %s", self.target, error)
        self.unsent.clear()
