#!/usr/bin/env python3
"""floor -- what Python and gevent cost at least: receive, send a reply of a given size, nothing else, as echo.c does.

    floor.py SOCKET-PATH REPLY-BYTES
"""

import socket
import sys

import gevent

BURST = 64


def serve(path, reply_bytes):
    """Answer every datagram until killed."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(path)
    sock.setblocking(False)
    receive, send, reply = sock.recvfrom, sock.sendto, b"x" * reply_bytes

    def drain():
        try:
            for _ in range(BURST):
                _, client = receive(65536)
                send(reply, client)
        except BlockingIOError:
            pass

    hub = gevent.get_hub()
    watcher = hub.loop.io(sock.fileno(), 1)
    watcher.start(drain)
    hub.join()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
