#!/usr/bin/env python3
"""floor -- what Python and gevent cost at least, without any server around.

    floor.py SOCKET-PATH REPLY-BYTES    receive, send a reply of that size, nothing else, as echo.c does
    floor.py SOCKET-PATH NAME...        receive, look up the names in the request, send a line with a number for each
    floor.py SOCKET-PATH SERVER-PATH    pass each request on to that server, from a socket of its own, and its reply back
"""

import contextlib
import socket
import sys

import gevent

BURST = 64


def constant(receive, send, reply_bytes):
    """A function that sends the same reply to all who ask."""
    reply = b"x" * reply_bytes

    def drain():
        for _ in range(BURST):
            _, client = receive(65536)
            send(reply, client)

    return drain


def poll(receive, send, names):
    """A function that reads each request and writes its reply: statistics by name, as get_statistics shows them."""
    shown = {name: (f"bench_stats:{name}:: ", 12345) for name in names}

    def drain():
        for _ in range(BURST):
            data, client = receive(65536)
            found = map(shown.get, data.decode().split("\n"))
            lines = "".join([f"{label}{value}\n" for label, value in filter(None, found)])
            send(f"200 OK\n{lines}\n".encode(), client)

    return drain


def bound(path):
    """A socket of ours."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    sock.setblocking(False)
    return sock


def forward(receive, send, server):
    """A function that passes requests on, each from a socket that nobody else has meanwhile."""
    free, clients, watchers = [], {}, []

    def back(sock):
        send(sock.recv(65536), clients.pop(sock))
        free.append(sock)

    def another():
        sock = bound("")
        watchers.append(gevent.get_hub().loop.io(sock.fileno(), 1))
        watchers[-1].start(back, sock)
        return sock

    def drain():
        for _ in range(BURST):
            data, client = receive(65536)
            sock = free.pop() if free else another()
            clients[sock] = client
            sock.sendto(data, server)

    return drain


def serve(path, arguments):
    """Answer every datagram until killed."""
    sock, first = bound(path), arguments[0]
    make, what = (constant, int(first)) if first.isdigit() else (forward, first) if first[0] == "/" else (poll, arguments)
    drain = make(sock.recvfrom, sock.sendto, what)

    def readable():
        with contextlib.suppress(BlockingIOError):
            drain()

    hub = gevent.get_hub()
    watcher = hub.loop.io(sock.fileno(), 1)
    watcher.start(readable)
    hub.join()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
