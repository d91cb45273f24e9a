"""status -- whether the server of a configuration runs: `--if-not-running`, and `--status`, which prints how it is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator

import midatagram as mi

asking = mi.shared("asking", __file__)


def is_running(options: argparse.Namespace) -> bool:
    """Whether a server of this configuration runs: its pid file is locked, or its socket answers; ConfigError."""
    if options.pidfile:
        return mi.shared("pid_file", "-P", "for a pid file, ").PidFile(options.pidfile, options.status).locked_elsewhere()
    place = asking.socket_of(options)
    if place.port is None:
        return mi.is_live(place.host)
    try:
        return bool(asking.ask(place, b":uptime:\n", 1.0))
    except OSError:
        return False


def report(options: argparse.Namespace) -> int:
    """Print whether the server of this configuration runs, and how it is; returns the exit status."""
    running = is_running(options)
    print("\n".join(["running", *lines(options)] if running else ["not running"]))
    return mi.EXIT_OK if running else mi.EXIT_NOT_RUNNING


def lines(options: argparse.Namespace) -> Iterator[str]:
    """What the server of this configuration wrote about itself, if we may read it and its user or root must have written it."""
    user, _ = mi.shared("privileges", "--status", "for the user of -u, ").account_of(options)
    address = asking.socket_of(options)
    places, trusted = {*mi.run_places(), "/run/midatagram"} - {""}, {0, os.geteuid(), user.pw_uid if user else 0}
    with contextlib.suppress(OSError):
        if address.port is None:
            places.add(os.path.dirname(address.host) or ".")
            trusted.add(os.stat(address.host).st_uid)
    for folder in [folder for place in places for folder in pathlib.Path(place).glob("midatagram-*")]:
        with contextlib.suppress(OSError, ValueError):
            if folder.lstat().st_uid in trusted:
                pid, started_s, status, served = json.loads((folder / "status").read_text())
                if str(address) in served and os.path.exists(f"/proc/{pid}"):
                    yield f"pid {pid}, uptime {time.time() - started_s:.0f} s"
                    yield from status.split("; ")
