#!/usr/bin/env python3
"""fuzz -- sends mutated recordings to a running server and checks that each gets its one answer.

    .venv/bin/python tests/fuzz.py                         a million requests
    .venv/bin/python tests/fuzz.py --count N --seconds N   as many, and no longer than that
    .venv/bin/python tests/fuzz.py --seed N                the same ones again

The requests are those recorded from OpenSIPS (tests/data), changed by a few random edits each. They go out over
UNIX and UDP sockets, many at a time. The exit status is 0 when

 - each non-empty datagram got one answer, but for JSON-RPC notifications and what is evidently a reply, of which the
   server counted as many as there were requests without an answer, and each empty one got none;
 - no answer is longer than the limit, and each looks like one;
 - the server lived on, with the same children, and its log has no traceback.
"""

import argparse
import collections
import json
import pathlib
import random
import re
import sys
import tempfile
import time

from conftest import PLUGINS, Server, free_port

LIMIT = 65457  # bytes of the longest answer
DATA = pathlib.Path(__file__).resolve().parent / "data"
# What is switched off would end or silence the server, reset the counters that are compared with in the end, or have
# datagrams sent to whatever address a mutation made.
CONFIGURATION = """
loadmodule "mi_echo.so"
loadmodule "opensips_core.so"
modparam("mi_datagram", "children_count", 2)
modparam("midatagram", "disable", "kill, log_level, reset_statistics, reset_all_statistics, event_subscribe")
modparam("midatagram", "listen", "{udp}")
"""
BATCH = {"unix": 32, "connected": 32, "udp": 4}  # requests a socket has in flight; UDP loses what is not read in time
KINDS = ("unix", "unix", "unix", "connected", "connected", "udp", "udp")
LARGE = 2048  # bytes; longer recordings are rarely chosen, and not for UDP
LARGE_SHARE = 0.002
WAIT_S = 15.0  # for an answer, on a busy machine
TOKENS = [b":", b"::", b":\n", b"\n", b'"', b'\\"', b"\\", b"\\\\", b"\0", b" ", b"\t", b"\r", b"\v", b"\xff",
          b"\xc3\xa9", b"%s", b"%", b"{", b"}", b"[", b"]", b",", b'"id":', b'"jsonrpc":"2.0"', b"null", b"1e400", b"-1",
          b"99999999999999999999", b"\\u0000", b"\\ud800"]
# Commands whose cost is a number of the request, and so many digits make it too dear.
DEAR = {b"msleep": 3, b"deep": 4, b"big": 6}


class Wrong(Exception):
    """The server did not do what it promises."""


def recorded_requests():
    """The requests of all recordings, as bytes."""
    def expand(pieces):
        parts = [pieces] if isinstance(pieces, str) else [p if isinstance(p, str) else p[0] * p[1] for p in pieces]
        return "".join(parts).encode("latin-1")

    files = [*sorted(DATA.glob("text_*.jsonl")), DATA / "jsonrpc.jsonl"]
    return sorted({expand(json.loads(line)["request"]) for path in files
                   for line in path.read_text(encoding="utf-8").splitlines()})


def is_too_dear(request):
    """Whether a request asks for so much time or memory that this would test the machine."""
    return any(name in request and (not request.startswith(b":") or re.search(rb"\d{%d}" % digits, request))
               for name, digits in DEAR.items())


class Mutator:
    """Makes requests: a recording and up to four edits."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        requests = recorded_requests()
        self.small = [request for request in requests if len(request) <= LARGE]
        self.large = [request for request in requests if len(request) > LARGE]
        self.edits = [self.flip, self.insert, self.delete, self.double, self.splice, self.cut, self.swap]

    def request(self, large=True):
        """A request; `large`: it may be of any size."""
        while True:
            source = self.large if large and self.random.random() < LARGE_SHARE else self.small
            request = self.random.choice(source)
            for _ in range(self.random.choice((0, 1, 1, 1, 2, 2, 3, 4))):
                request = self.random.choice(self.edits)(request)
            if not is_too_dear(request) and (large or len(request) <= LARGE):
                return request

    def place(self, request):
        """A place in a request."""
        return self.random.randint(0, len(request))

    def flip(self, request):
        """Another byte somewhere."""
        at = self.place(request)
        return request[:at] + bytes([self.random.randrange(256)]) + request[at + 1:]

    def insert(self, request):
        """Something with a meaning, somewhere."""
        at = self.place(request)
        return request[:at] + self.random.choice(TOKENS) + request[at:]

    def delete(self, request):
        """Some bytes fewer."""
        at = self.place(request)
        return request[:at] + request[at + self.random.randint(1, 8):]

    def double(self, request):
        """A piece twice."""
        at = self.place(request)
        return request[:at] + request[at:at + self.random.randint(1, 40)] * 2 + request[at:]

    def splice(self, request):
        """The end of another request."""
        other = self.random.choice(self.small)
        return request[:self.place(request)] + other[self.place(other):]

    def cut(self, request):
        """The beginning alone."""
        return request[:self.place(request)]

    def swap(self, request):
        """Two neighbouring pieces the other way round."""
        at, size = self.place(request), self.random.randint(1, 6)
        return request[:at] + request[at + size:at + 2 * size] + request[at:at + size] + request[at + 2 * size:]


class Talker:
    """One socket and what it has in flight."""

    def __init__(self, kind, client, mutator):
        self.kind, self.client, self.mutator = kind, client, mutator
        self.fences, self.sent = 0, []
        self.open = 0  # requests of earlier batches that may yet be answered, or were notifications

    def send(self, count):
        """Send a batch of at most `count` requests; gives how many."""
        self.sent = [self.mutator.request(self.kind != "udp") for _ in range(min(count, BATCH[self.kind]))]
        for request in self.sent:
            self.client.send(request)
        return len(self.sent)

    def collect(self, figures):
        """Read the answers of the batch; Wrong when one is missing or too many.

        A request of the text dialect surely has one; any other may be a notification, or be answered by one child
        after the other child has answered the fence. What is open in the end is settled by check_server().
        """
        filled = [request for request in self.sent if request]
        got = [self.next() for request in filled if request.startswith(b":")]
        self.fences += 1
        fence = b"fence-%d" % self.fences
        self.client.send(b":echo:\n" + fence)
        while not (reply := self.next()).startswith(b"200 OK\n" + fence):
            got.append(reply)
        self.open += len(filled) - len(got)
        if self.open < 0:
            raise Wrong(f"{-self.open} answers too many; sent: {self.sent}")
        figures.add(got, len(filled), len(self.sent) - len(filled))

    def drain(self, figures):
        """Read what comes late."""
        while (reply := self.client.receive(0.3)) is not None:
            figures.add([reply])

    def next(self):
        """The next datagram."""
        reply = self.client.receive(WAIT_S)
        if reply is None:
            raise Wrong(f"an answer is missing on a {self.kind} socket; sent: {self.sent}")
        if len(reply) > LIMIT or not re.match(rb"\d+ |\{|\[", reply):
            raise Wrong(f"not an answer: {len(reply)} bytes, {reply[:200]}; sent: {self.sent}")
        return reply


class Figures:
    """What was counted."""

    def __init__(self):
        self.requests = self.empty = self.replies = self.bytes = self.longest = 0
        self.codes = collections.Counter()

    def add(self, replies, requests=0, empty=0):
        """Count replies, requests, and empty datagrams."""
        self.requests += requests
        self.empty += empty
        for reply in replies:
            self.replies += 1
            self.bytes += len(reply)
            self.longest = max(self.longest, len(reply))
            self.codes["JSON" if reply[:1] in b"{[" else reply.split(b" ", 1)[0][:10].decode()] += 1


def bombard(talkers, count, seconds):
    """Send `count` requests in at most so many seconds; gives the Figures. Raises Wrong."""
    figures, end_s = Figures(), time.monotonic() + seconds
    while count and time.monotonic() < end_s:
        for talker in talkers:
            count -= talker.send(count)
        for talker in talkers:
            talker.collect(figures)
    for talker in talkers:
        talker.drain(figures)
    return figures


def check_server(server, figures, children):
    """What the server itself says of it all; Wrong if that does not fit."""
    notifications, looped = server.statistic("notifications"), server.statistic("looped")
    if figures.replies + notifications + looped != figures.requests:
        raise Wrong(f"{figures.requests} requests, {figures.replies} answers, {notifications} notifications, {looped} looped")
    if server.statistic("empty") != figures.empty:
        raise Wrong(f"{figures.empty} empty datagrams, {server.statistic('empty')} counted")
    if server.children() != children:
        raise Wrong(f"children died: {server.log[-2000:]}")
    server.stop()  # checks the log for tracebacks and the exit status
    return notifications, looped


def fuzz(folder, count, seconds, seed):
    """Start a server, bombard it, check it, print figures."""
    udp = f"udp:127.0.0.1:{free_port()}"
    server = Server(folder, CONFIGURATION.replace("{udp}", udp), "-p", str(PLUGINS))
    try:
        mutator, children = Mutator(seed), server.children()
        talkers = [Talker(kind, server.client(udp if kind == "udp" else None, connected=kind == "connected"), mutator)
                   for kind in KINDS]
        began_s = time.monotonic()
        figures = bombard(talkers, count, seconds)
        elapsed_s = time.monotonic() - began_s
        notifications, looped = check_server(server, figures, children)
    except AssertionError as error:
        raise Wrong(str(error)) from None
    finally:
        server.close()
    print(f"{figures.requests} requests, {figures.replies} answers, {notifications} notifications, {looped} replies and "
          f"{figures.empty} empty datagrams without one, in {elapsed_s:.1f} s ({figures.requests / elapsed_s:.0f}/s)")
    print(f"{figures.bytes} bytes of answers, the longest {figures.longest}; codes: "
          + ", ".join(f"{code} {times}" for code, times in figures.codes.most_common(12)))


def main(argv):
    """Run the command line; gives the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1_000_000, help="requests to send (1000000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="send no longer than that")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32), help="of the random edits")
    options = parser.parse_args(argv)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="mi-fuzz-") as folder:
        try:
            fuzz(pathlib.Path(folder), options.count, options.seconds, options.seed)
        except Wrong as why:
            print(f"WRONG: {why}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
