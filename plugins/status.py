"""status -- whether the server of a configuration runs: `--if-not-running`, and `--status`, which prints how it is."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import socket
import struct
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
    """What the server of this configuration wrote about itself, if we may read it and its user or root must have written it.

    Without -u, root learns the user from the process that holds the socket."""
    user, _ = mi.shared("privileges", "--status", "for the user of -u, ").account_of(options)
    address = asking.socket_of(options)
    places, trusted = {*mi.run_places(), "/run/midatagram"} - {""}, {0, os.geteuid(), user.pw_uid if user else 0}
    with contextlib.suppress(OSError):
        if address.port is None:
            places.add(os.path.dirname(address.host) or ".")
            trusted.add(os.stat(address.host).st_uid)
    for folder in [folder for place in places for folder in pathlib.Path(place).glob("midatagram-*")]:
        with contextlib.suppress(OSError, ValueError):
            if folder.lstat().st_uid in trusted or is_of_the_server(folder, address):
                pid, started_s, texts, served = json.loads((folder / "status").read_text())
                if str(address) in served and os.path.exists(f"/proc/{pid}"):
                    yield f"pid {pid}, uptime {time.time() - started_s:.0f} s"
                    yield from texts


def is_of_the_server(folder: pathlib.Path, address: mi.Address) -> bool:
    """Whether a folder belongs to the user of its process, which alone holds the socket of that address; OSError, ValueError,
    for one as root sees no process of others."""
    process, held = pathlib.Path("/proc", folder.name.split("-")[1]), sockets_at(address)
    uids = (process / "status").read_text().partition("\nUid:")[2].split()
    return len(held) == 1 and uids[0] == f"{folder.lstat().st_uid}" and any(
        os.readlink(file) == f"socket:[{held[0]}]" for file in (process / "fd").iterdir())


def sockets_at(address: mi.Address) -> list[str]:
    """The inodes of the sockets that are bound to an address; OSError."""
    if address.port is None:
        rows = [line.split(maxsplit=7) for line in pathlib.Path("/proc/net/unix").read_bytes().split(b"\n")]
        return [row[6].decode() for row in rows if row[7:] == [os.fsencode(address.host)]]
    family, _, _, _, (host, *_) = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    packed = socket.inet_pton(family, str(host).partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)  # as the kernel prints them
    name = "".join(f"{word:08X}" for word in words) + f":{address.port:04X}"
    table = pathlib.Path("/proc/net/udp6" if family == socket.AF_INET6 else "/proc/net/udp")
    return [row[9] for row in map(str.split, table.read_text().splitlines()) if row[1] == name]
