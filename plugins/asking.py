"""asking -- asks a server, whose socket a configuration may name, and waits for its reply: midatagram.ask."""
from __future__ import annotations

import argparse
import os
import socket
import struct
import time

import midatagram as mi


def socket_of(options: argparse.Namespace) -> mi.Address:
    """The socket that a client of this configuration talks to; ConfigError."""
    module = next(module for module in mi.built_in_modules() if module.name == "mi_datagram")
    for directive in mi.directives_of(options):
        if directive.word == "modparam" and mi.name_pattern(directive.args[0], (directive.path, directive.line))(module.name):
            module.set(directive.args[1], directive.args[2], directive.path, directive.line)
    if module.settings["socket_name"] is None:
        raise mi.ConfigError(mi.configuration_of(options), 0, "no socket_name; give a socket with -s")
    return module.settings["socket_name"]


def ask(place: mi.Address | str, request: bytes, timeout_s: float) -> bytes:
    """Send a request to a server, at a UNIX path or udp:HOST:PORT, and return its reply; OSError (TimeoutError) when none comes.

    Each request has a socket of its own, so a late reply is never mistaken for the next one. OpenSIPS replies from another UNIX
    socket than it is asked at: a reply is believed from root, this user, and who owns the server's socket or its folder.
    """
    place = mi.address(place) if isinstance(place, str) else place
    family, target, deadline_s = socket.AF_UNIX, place.host, time.monotonic() + timeout_s
    if place.port is not None:
        family, _, _, _, target = mi.preferred(socket.getaddrinfo(place.host, place.port, type=socket.SOCK_DGRAM))
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(timeout_s)
        if place.port is not None:
            client.connect(target)  # so that the kernel reports refusals, and nobody else can answer
            client.send(request)
            return client.recv(1 << 20)
        believed = {0, os.geteuid(), os.stat(target).st_uid, os.stat(os.path.dirname(target) or ".").st_uid}
        client.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        client.bind("")  # abstract: it leaves no file
        client.sendto(request, target)
        while (left_s := deadline_s - time.monotonic()) > 0:
            client.settimeout(left_s)
            reply, ancillary, _, sender = client.recvmsg(1 << 20, socket.CMSG_SPACE(struct.calcsize("3i")))
            if sender == target or struct.unpack("3i", ancillary[0][2])[1] in believed:
                return reply
    raise TimeoutError("timed out")
