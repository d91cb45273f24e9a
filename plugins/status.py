"""status -- what `midatagram.py --status` prints of a server that runs."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator

import midatagram as mi


def report(options: argparse.Namespace, running: bool) -> int:
    """Print whether the server of this configuration runs, and how it is; returns the exit status."""
    print("\n".join(["running", *lines(options)] if running else ["not running"]))
    return mi.EXIT_OK if running else mi.EXIT_NOT_RUNNING


def lines(options: argparse.Namespace) -> Iterator[str]:
    """What the server of this configuration wrote about itself, if we may read it and its user or root must have written it."""
    address, user = mi.socket_of(options), mi.account_of(options)[0]
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
