"""log_syslog -- sends the log to a syslog daemon."""
from __future__ import annotations

import errno
import logging.handlers
import socket
from collections.abc import Callable
from typing import Any

import midatagram as mi


def facility(where: tuple[str, int], word: str, value: Any) -> str:
    """The facility that a logging line names, as syslog spells it; ConfigError."""
    name = str(value).removeprefix("LOG_").lower()
    if name in logging.handlers.SysLogHandler.facility_names:
        return name
    raise mi.ConfigError(*where, f"{word} takes LOG_DAEMON, LOG_LOCAL0 ..., not {value}")


def handler(settings: dict, place: str) -> Any:
    """What logs to the daemon at a place, under the facility of logging lines."""
    name = settings.get("log_facility") or settings.get("syslog_facility") or "daemon"
    return mi.LogHandler(syslog_sender(place), facility=logging.handlers.SysLogHandler.facility_names[name])


def syslog_sender(place: str) -> Callable[[bytes], int]:
    """A function that sends to a syslog daemon without a hub, and connects anew when there is another one; OSError."""
    new_socket = mi.original("socket", "socket")
    sock = new_socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    def send(data: bytes) -> int:
        nonlocal sock
        try:
            return sock.send(data)
        except BlockingIOError:
            raise
        except OSError:  # it is not connected, or the daemon is gone
            sock = new_socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            if sock.connect_ex(place) == errno.EPROTOTYPE:
                sock = new_socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                sock.connect(place)
        return sock.send(data)

    return send
