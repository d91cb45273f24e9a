"""upstream -- a gateway: forwards what is asked here to other servers, and answers with what they answer.

    loadmodule "upstream.so"
    modparam("upstream", "server", "[main]/run/opensips/mi.sock;timeout=2000")

    request -> Gateway: may this client, which server -> Upstream: a socket of its own -> reply -> client

A command goes to a server once: what cannot be sent is refused, what is not answered in time is answered with an error.
"""
from __future__ import annotations

import collections
import contextlib
import copy
import errno
import fcntl
import functools
import itertools
import json
import os
import re
import resource
import socket
import struct
import time
import types
from collections.abc import Callable, Iterator
from math import log2
from typing import Any, NamedTuple

import midatagram as mi

translation = mi.shared("translation")
NAMES = mi.shared("opensips_forms").NAMES

###############################################################################
# Configuration
###############################################################################

FORM = '"[NAME]ADDRESS[;dialect=auto|text|jsonrpc][;timeout=MS][;inflight=N][;events=udp:IP:PORT][;folder=DIRECTORY]"'
DECLARATION = re.compile(r"\s*\[\s*([\w.-]+)\s*\]\s*([^;]+?)\s*((?:;[^;]*)*)")


class Target(NamedTuple):
    """A server as declared. `inflight`: requests that wait for it at a time, for each child; `folder`: for the sockets that it
    replies to, where it reaches no abstract ones."""

    name: str
    address: mi.Address
    dialect: str = "auto"
    timeout: int = 2000  # ms
    inflight: int = 64
    events: mi.Address | None = None
    folder: str = ""


SETTINGS: dict[str, Callable] = {"dialect": mi.one_of("auto", "text", "jsonrpc"), "timeout": mi.integer(1, 3600000),
                                 "inflight": mi.integer(1, 10000), "events": mi.address, "folder": mi.string}


def server(value) -> Target:
    """Converter: `[NAME]ADDRESS[;KEY=VALUE]`, the keys being those of SETTINGS."""
    match = DECLARATION.fullmatch(mi.string(value))
    if not match:
        raise ValueError(f"takes {FORM}")
    settings = {}
    for item in filter(None, match[3].split(";")):
        key, equals, text = item.strip().partition("=")
        if key not in SETTINGS or not equals:
            raise ValueError(f"takes {FORM}, not {item}{mi.nearest(key, SETTINGS)}")
        try:
            settings[key] = SETTINGS[key](text)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
    return Target(match[1], mi.address(match[2]), **settings)


def route(value) -> tuple:
    """Converter: `PATTERN[, PATTERN]: NAME` as (patterns, name)."""
    patterns, _, name = mi.string(value).rpartition(":")
    if not patterns.strip() or not name.strip():
        raise ValueError('takes patterns of commands and a server: "dlg_*, profile_*: main"')
    return mi.patterns(patterns), name.strip()


PARAMS = [
    mi.Param("server", (), server, f"server to forward to: {FORM[1:-1]}; the first is the default", repeat=True),
    mi.Param("route", (), route, "commands that another server than the first gets: PATTERN[, PATTERN]: NAME", repeat=True),
    mi.Param("keep", mi.Patterns(), mi.patterns, "commands to answer here, not to forward, comma-separated"),
    mi.Param("record", None, mi.string, "file to write with what passes: canned replies, as the tool record writes them"),
]
FIGURES = {  # of each server, in the group upstream
    "requests": "requests for it", "replies": "replies from it", "errors": "requests that it did not answer, or not with a reply",
    "timeouts": "of these, requests without a reply in time", "late": "replies that came too late, or to no request",
    "in_flight": "requests it has not answered yet", "down": "1 while it does not answer, else 0",
}
LEVELS = ("in_flight", "down")
FILES = 600  # that a child has open at most besides: Outbox.OWN_SOCKETS and the few of its own
SHORT: dict[str, tuple] = {}  # a name without the module, as 4.0 knows it -> all names of the commands it may mean
for _names in NAMES.values():
    for _name in _names:
        if ":" in _name:
            SHORT.update({_name.partition(":")[2]: tuple(dict.fromkeys((*SHORT.get(_name.partition(":")[2], ()), *_names)))})
OWN_ABOUT = ("get_statistics", "list_statistics", "reset_statistics", "help")  # answered here when they ask about what is ours


def init(ctx):
    """Declare the statistics of each server."""
    names = [target.name for target in ctx.param("server")]
    for nth, name in enumerate(names):
        if name in names[:nth]:
            ctx.refuse("server", f'server: there are two with the name "{name}"', nth)
    for nth, (_, name) in enumerate(ctx.param("route")):
        if name not in names:
            ctx.refuse("route", f'route: there is no server "{name}"{mi.nearest(name, names)}', nth)
    ctx.own.stats += [mi.Stat(f"{name}-{word}", text, "upstream", word not in LEVELS)
                      for name in names for word, text in FIGURES.items()]


def registered(ctx, registry):
    """Leave to the servers all commands but ours, those to keep, and those of the lab."""
    targets, keep = ctx.param("server"), ctx.param("keep")
    if not targets:
        return
    for name, command in list(registry.names.items()):
        own = command.module is ctx.own or command.name.startswith("lab_")
        if not own and command.name not in keep and command.full_name not in keep:
            del registry.names[name]
    if "which" not in keep:
        listing = mi.command("which", input=False, json=mi.JsonForm(recipes=[(), ("command",)], listing=True))(which)
        registry.names["which"] = registry.names["core:which"] = mi.Command(ctx.own, listing)
    registry.names_of = functools.partial(all_names, registry)
    midatagram = registry.modules_by_name["midatagram"]
    for nth, listener in enumerate(midatagram.settings["listen"]):
        if listener.upstream and listener.upstream not in [target.name for target in targets]:
            path, line = midatagram.lines["listen"][nth]
            raise mi.ConfigError(path, line, f'listen: there is no server "{listener.upstream}"')


def all_names(registry: Any, name: str) -> tuple:
    """All names that the command of a name may have, on this server and on those of any release."""
    command = registry.known.get(name)
    own = (command.name, command.full_name) if command else ()
    return tuple(dict.fromkeys((name, *own, *NAMES.get(name, ()), *SHORT.get(name, ()))))


def load(ctx):
    """Have enough file descriptors, or log that there are not."""
    need = files_of(ctx)
    if ctx.param("server") and raise_limit(need) < need:
        ctx.log.error("inflight needs %d open files in a child, which may have %d: see ulimit -n", need, raise_limit(need))


def child_init(ctx):
    """Connect this child to the servers."""
    if ctx.param("server"):
        raise_limit(files_of(ctx))
        gateway_of(ctx.server)


def destroy(ctx):
    """Close all sockets, and write what is recorded."""
    if ctx.param("server"):
        gateway_of(ctx.server).close()


def files_of(ctx: Any) -> int:
    """How many files a child has open at most: a socket for each request in flight, and for as many that came too late."""
    return FILES + sum(2 * target.inflight for target in ctx.param("server"))


def raise_limit(need: int) -> int:
    """How many files this process may have open, once that is raised to `need` as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = resource.RLIM_INFINITY
    for most in (need, need if hard == endless else min(need, hard)):  # root may raise the hard limit
        if soft != endless and soft < most:
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard if hard == endless else max(most, hard)))
                break
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return need if soft == endless else soft


###############################################################################
# Commands
###############################################################################


@functools.cache
def gateway_of(server: Any) -> Gateway:
    """This child's gateway."""
    return Gateway(server)


@mi.command("*", input=False)
def forward(ctx):
    """Forward a command to the server that has it."""
    return gateway_of(ctx.server).forward(ctx) if ctx.param("server") else None


def which(ctx):
    """List all commands of the servers and of the gateway; over JSON-RPC also the parameters of one command."""
    return gateway_of(ctx.server).list_commands(ctx)


@mi.command
def upstream_list(ctx):
    """List the servers with their addresses, states, figures, and the p50 and p99 of their replies of the last minute, ms."""
    rows = list(gateway_of(ctx.server).rows()) if ctx.param("server") else []
    nodes = [mi.Node("Server", row["name"], tuple(list(row.items())[1:])) for row in rows]
    return mi.Reply(nodes=nodes, result={"Servers": rows})


@mi.command
def upstream_reset(ctx, name=""):
    """Set the statistics of a server, or of all, to 0, but for what is a level."""
    gateway = gateway_of(ctx.server) if ctx.param("server") else None
    servers = [one for one in (gateway.servers.values() if gateway else ()) if name in ("", one.target.name)]
    if not servers:
        raise mi.Error(404, "no such server")
    for one in servers:
        one.reset()
    return mi.Reply()


@mi.every(2)
def publish(ctx):
    """Let other children know how long replies took, and what was recorded."""
    if ctx.param("server"):
        gateway_of(ctx.server).publish()


###############################################################################
# A server
###############################################################################
# A request has a socket of its own for as long as it waits, so no reply can get to another client. Sockets are used again, the
# one that rested longest first; one whose request timed out is not: it waits for the late reply, to count it, and is closed.
# Where the server's queue is full, requests wait in ours; a socket connected to the server becomes writable when it has read.

LEARN_S = 30.0  # after which it is asked again for its commands, if it is asked for anything
LATE_S = 10.0  # how long a socket waits for a late reply
QUEUE = 10000  # requests that wait to be sent to a server, at most, in each child
RETRY_S = 0.005  # how often those are tried that nothing wakes up
TICKS = 50  # how often in its time limit it is looked whether a request is too old
PLAIN_REPLY = re.compile(rb"[0-9]{1,10}[ \n]")  # the first line of a text reply
CREDENTIALS = socket.CMSG_SPACE(struct.calcsize("3i"))
FULL = (errno.EAGAIN, errno.ENOBUFS)


LISTINGS = ("jsonrpc", "which"), ("jsonrpc", "system.listMethods"), ("text", "which")  # the second is Kamailio's


class Asked:
    """A request on its way. done() is called with (self, its reply, or the Reply that stands in the place of one).

    ctx: what it came with, None for what the gateway asks for itself; asked_s: when, for traces; back: makes the client's reply
    of the server's, where that is translated, and origin: the client's request.
    """

    __slots__ = ("data", "request", "origin", "back", "done", "ctx", "asked_s", "deadline_s", "sent_s")

    def __init__(self, data: bytes, request: mi.Request, origin: bytes = b"", back: Any = None):
        self.data, self.request, self.origin, self.back = data, request, origin, back
        self.done: Any = None
        self.ctx: Any = None
        self.asked_s = self.deadline_s = self.sent_s = 0.0

    def has(self, reply: bytes) -> bool | None:
        """Whether these bytes may be its reply; None for what is no reply at all."""
        if self.request.dialect == "text":
            return True if PLAIN_REPLY.match(reply) else None
        number = self.request.id
        request_id = b"%d" % number if type(number) is int else mi.encode(mi.json_text(number))
        end = reply[-len(request_id) - 64:].rstrip(b"} \t\r\n")
        if end.endswith(request_id) and end[:-len(request_id)].rstrip(b": \t\r\n").endswith(b'"id"'):
            return True
        try:
            message = mi.read_json(reply)
        except mi.ParseError:
            return True if PLAIN_REPLY.match(reply) else None
        if not isinstance(message, dict) or not {"result", "error"} & message.keys():
            return True if PLAIN_REPLY.match(reply) else None
        is_cut = isinstance(number, float) or isinstance(number, int) and not -2**31 <= number < 2**31  # 3.x has 32 bits
        return "id" in message and (is_cut or message["id"] == number)


class Slot:
    """A socket that one request at a time has. OSError."""

    __slots__ = ("socket", "watcher", "path")

    def __init__(self, target: Target, loop: Any, act: Any):
        family, self.path = sockaddr_of(target.address)[0], ""
        self.socket = mi.original("socket", "socket")(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            if family == socket.AF_UNIX:
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                self.path = os.path.join(target.folder, f"mi-{os.urandom(8).hex()}.sock") if target.folder else ""
                self.socket.bind(self.path)
                if self.path:
                    os.chmod(self.path, 0o777)  # the server may be another user
            else:
                self.socket.connect(sockaddr_of(target.address)[1])
        except OSError:
            self.remove()
            raise
        self.watcher = loop.io(self.socket.fileno(), 1)
        self.watcher.start(act, self)

    def close(self) -> None:
        """Close the socket, and remove its file."""
        self.watcher.close()
        self.remove()

    def remove(self) -> None:
        """Close what has no watcher."""
        self.socket.close()
        if self.path:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


@functools.cache
def sockaddr_of(address: mi.Address) -> tuple:
    """Family and socket address of a server; OSError for a host that cannot be resolved."""
    if address.port is None:
        return socket.AF_UNIX, address.host
    family, _, _, _, place = mi.original("socket", "getaddrinfo")(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    return family, place


def one_request(request: mi.Request) -> bytes:
    """A JSON-RPC request by itself, as it would be in no batch."""
    params = {} if request.params is None else {"params": request.params}
    number = {"id": request.id} if request.answered else {}
    return mi.encode(mi.json_text({"jsonrpc": "2.0", "method": request.name, **params, **number}))


def listed(reply: bytes) -> list[str] | None:
    """The names in a reply that lists commands; None for another reply."""
    if re.match(rb"2[0-9]{2} [^\n]*\n", reply):
        return mi.decode(reply).rstrip("\n").split("\n")[1:]
    try:
        message = mi.read_json(reply)
    except mi.ParseError:
        return None
    names = message.get("result") if isinstance(message, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else None


class Known(NamedTuple):
    """What a server is: the dialects that it speaks, none where that is unknown, and its commands, None where it lists none."""

    dialects: frozenset
    listed: list | None
    names: frozenset | None
    is_kamailio: bool

    def other_name(self, name: str) -> str:
        """The name under which the server has a command that it has not under this one; empty where there is none."""
        if self.names is None or name in self.names:
            return ""
        return next((other for other in NAMES.get(name, ()) if other in self.names), "")


class Upstream:
    """One server, as a child sees it."""

    def __init__(self, ctx: Any, target: Target, loop: Any, recorder: Any):
        self.ctx, self.target, self.loop, self.name = ctx, target, loop, target.name
        self.row, self.columns = ctx.own.row, {word: ctx.own.columns[f"{target.name}-{word}"] for word in FIGURES}
        self.counters = ctx.server.counters
        self.timeout_s, self.unix = target.timeout / 1000, target.address.port is None
        self.free: collections.deque[Slot] = collections.deque()
        self.in_flight: dict[Slot, Asked] = {}  # the oldest first
        self.waiting: collections.deque[Asked] = collections.deque()
        self.late: dict[Slot, float] = {}  # until when their late replies are waited for
        self.mute: Slot | None = None  # sends notifications, and hears what a server may answer to them
        tick_s = max(0.005, min(0.5, self.timeout_s / TICKS))
        self.timer = loop.timer(tick_s, tick_s)
        self.ticking = False
        self.room: Any = None  # wakes us when the server may have read
        self.gate: Any = None  # the socket that it watches
        self.buffer = bytearray(mi.GIVE_UP + 1)
        self.view, self.believed = memoryview(self.buffer), frozenset[bytes]()
        self.recorder = recorder
        self.known: Known | None = None  # until it is found out
        self.recipes: dict[str, tuple | None] = {}
        self.questions = 0  # of our own that it has not answered
        self.learner: Any = None  # the greenlet that finds out what is known
        self.learn_s = 0.0  # when to find out again
        self.replied_s = self.down_s = 0.0  # when it last answered, and was last marked as down
        self.latencies = Latencies()
        self.row[self.columns["in_flight"]] = 0

    def count(self, word: str, asked: Asked | None = None) -> None:
        """Add to one of the figures, unless it is about what the gateway asks for itself."""
        if asked is None or asked.ctx:
            self.row[self.columns[word]] += 1

    def level(self) -> None:
        """Set the figure of requests in flight."""
        self.row[self.columns["in_flight"]] = len(self.in_flight) + len(self.waiting) - self.questions

    # Sending.

    def put(self, asked: Asked) -> None:
        """Send a request, now or when there is room; its time limit begins."""
        self.count("requests", asked)
        asked.deadline_s = asked.deadline_s or time.monotonic() + self.timeout_s
        if self.waiting or not self.send(asked):
            if len(self.waiting) >= QUEUE:
                return self.fail(asked, mi.Reply(503, f"upstream {self.name} has too many requests"))
            self.waiting.append(asked)
        self.level()
        if not self.ticking:
            self.ticking = True
            self.timer.start(self.tick)
        return None

    def send(self, asked: Asked) -> bool:
        """Send a request, or fail it; False if it has to wait."""
        slot = self.mute
        try:
            if asked.request.answered or slot is None:
                slot = self.free.popleft() if self.free else self.new_slot()
            if slot is None:
                return False
            if self.unix:
                slot.socket.sendto(asked.data, self.target.address.host)
            else:
                slot.socket.send(asked.data)
        except OSError as error:
            if slot and slot is not self.mute:
                self.free.appendleft(slot)
            if error.errno in FULL:
                self.wait_for_room()
                return False
            if error.errno == errno.EMSGSIZE:
                self.fail(asked, mi.Reply(400, f"request of {len(asked.data)} bytes is too long for upstream {self.name}"))
            else:
                self.lose(asked, error)
            return True
        asked.sent_s = time.monotonic()
        if asked.request.answered:
            self.in_flight[slot] = asked
        else:
            self.mute = slot
            asked.done((asked, b""))
        return True

    def new_slot(self) -> Slot | None:
        """A new socket; None if there are as many as may be. OSError."""
        if len(self.in_flight) >= self.target.inflight:
            return None
        try:
            return Slot(self.target, self.loop, self.receive)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and self.in_flight:
                return None
            raise

    def wait_for_room(self) -> None:
        """Send what waits as soon as the server has read, or on a timer where the kernel does not tell."""
        if self.room:
            return
        try:
            if not self.unix:
                raise BlockingIOError
            self.gate = mi.original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.gate.connect(self.target.address.host)
            self.room = self.loop.io(self.gate.fileno(), 2)
        except OSError:
            self.room = self.loop.timer(RETRY_S)
        self.room.start(self.flush)

    def flush(self) -> None:
        """Send what waits, as long as there is room."""
        if self.room:
            self.room.close()
            self.room = None
        if self.gate:
            self.gate.close()
            self.gate = None
        while self.waiting and self.send(self.waiting[0]):
            self.waiting.popleft()
        self.level()

    # Replies, and requests that get none.

    def receive(self, slot: Slot) -> None:
        """A datagram came on a socket, or an error: answer whom it is for."""
        try:
            reply = self.read(slot)
        except BlockingIOError:
            return
        except OSError as error:  # of UDP: nobody listens there
            asked = self.forget(slot)
            if asked:
                self.lose(asked, error)
            return
        if reply is None or slot is self.mute:
            return
        asked = self.in_flight.get(slot)
        fits = asked.has(reply) if asked else False
        if asked is None:
            self.forget(slot)
        if asked is None or fits is False:
            self.count("late")
            return
        del self.in_flight[slot]
        self.free.append(slot)
        self.replied(asked, reply, fits is None)
        if self.waiting and not self.room:
            self.flush()

    def read(self, slot: Slot) -> bytes | None:
        """The datagram that came, None if it is from somebody else than the server; OSError."""
        if not self.unix:
            return bytes(self.view[:slot.socket.recv_into(self.buffer)])
        size, ancillary, _, _ = slot.socket.recvmsg_into([self.buffer], CREDENTIALS)
        sender = ancillary[0][2][4:8] if ancillary else b""
        if sender not in self.believed:
            self.believed = frozenset(struct.pack("I", uid) for uid in (0, os.geteuid(), self.owner()))
            if sender not in self.believed:
                self.ctx.log.warning("a reply of uid %s is dropped: it does not own the socket of upstream %s",
                                     *struct.unpack("I", sender or b"\xff" * 4), self.name, extra={"once": sender})
                return None
        return bytes(self.view[:size])

    def owner(self) -> int:
        """Who owns the server's socket; if it is gone, we."""
        try:
            return os.stat(self.target.address.host).st_uid
        except OSError:
            return os.geteuid()

    def replied(self, asked: Asked, reply: bytes, is_garbage: bool) -> None:
        """Answer a request with its reply, or that this is none."""
        self.replied_s = now_s = time.monotonic()
        if asked.ctx:
            self.latencies.add(now_s, now_s - asked.sent_s)
            if now_s > self.learn_s:
                self.learn()
        self.level()
        if self.counters.slots[self.columns["down"]]:
            self.change(None)
        if is_garbage:
            self.ctx.log.warning("upstream %s answered garbage: %a", self.name, reply[:80], extra={"once": self.name})
            return self.fail(asked, mi.Reply(502, f"upstream {self.name} answered garbage"))
        self.count("replies", asked)
        if self.recorder and asked.ctx:
            self.recorder.keep(asked.data, reply, (now_s - asked.sent_s) * 1000)
        return asked.done((asked, reply))

    def fail(self, asked: Asked, reply: mi.Reply) -> None:
        """Answer a request with an error of ours."""
        self.count("errors", asked)
        asked.done((asked, reply))

    def lose(self, asked: Asked, error: OSError) -> None:
        """A request cannot be sent, or nobody was there."""
        self.change(f"is not reachable: {error.strerror or error}")
        self.fail(asked, mi.Reply(503, f"upstream {self.name} is not reachable"))

    def forget(self, slot: Slot) -> Asked | None:
        """Close a socket, and return its request, if it has one."""
        self.late.pop(slot, None)
        if slot is self.mute:
            self.mute = None
        with contextlib.suppress(ValueError):
            self.free.remove(slot)
        slot.close()
        return self.in_flight.pop(slot, None)

    def tick(self) -> None:
        """Answer requests that are too old with an error, and close sockets that have waited for late replies."""
        now_s = time.monotonic()
        for slot, asked in list(itertools.takewhile(lambda item: item[1].deadline_s <= now_s, self.in_flight.items())):
            del self.in_flight[slot]
            self.late[slot] = now_s + LATE_S
            self.expire(asked)
            if not asked.ctx:
                self.forget(slot)
        while self.waiting and self.waiting[0].deadline_s <= now_s:
            self.expire(self.waiting.popleft())
        for slot in [slot for slot, until_s in self.late.items() if until_s <= now_s]:
            self.forget(slot)
        while len(self.late) > self.target.inflight:
            self.forget(next(iter(self.late)))
        if self.waiting and not self.room:
            self.flush()
        self.level()
        if not (self.in_flight or self.waiting or self.late):
            self.ticking = False
            self.timer.stop()

    def expire(self, asked: Asked) -> None:
        """A request is not answered in time."""
        why = f"did not answer in {self.target.timeout} ms"
        self.level()
        self.count("timeouts", asked)
        if asked.ctx and (asked.sent_s >= self.replied_s or not asked.sent_s):
            self.change(why)
        self.fail(asked, mi.Reply(504, f"upstream {self.name} {why}"))

    def change(self, why: str | None) -> None:
        """Log that the server does not answer (why), or answers again (None), once for all children."""
        down = self.columns["down"]
        if bool(why) == bool(self.counters.slots[down]):
            return
        self.counters.set(down, int(bool(why)))
        if why:
            self.down_s = time.monotonic()
            self.ctx.log.error("upstream %s %s", self.name, why)
        else:
            after = f" after {time.monotonic() - self.down_s:.1f} s" if self.down_s else ""
            self.ctx.log.warning("upstream %s answers again%s", self.name, after)
            self.recipes.clear()  # it may be another one
            self.learn_s = 0.0

    # What it is.

    def learn(self) -> None:
        """Find out, in the background, which dialects the server speaks and which commands it has."""
        import gevent

        self.learn_s = time.monotonic() + LEARN_S
        if not self.learner:
            self.learner = gevent.spawn(self.list_names)

    def ask(self, request: mi.Request) -> bytes | mi.Reply:
        """Ask for something ourselves; waits."""
        result = mi.AsyncResult()
        asked = Asked(mi.write_request(request.name, ()) if request.dialect == "text" else one_request(request), request)
        asked.done = result.set
        self.questions += 1
        self.put(asked)
        try:
            return result.get()[1]
        finally:
            self.questions -= 1
            self.level()

    def list_names(self) -> list[str] | mi.Reply:
        """The commands that the server lists, or the Reply that stands in place of the list; waits. Learns from it."""
        dialects, names, is_kamailio = [] if self.target.dialect == "auto" else [self.target.dialect], None, False
        for dialect, command in LISTINGS:
            if self.target.dialect not in ("auto", dialect) or is_kamailio or names and command == LISTINGS[1][1]:
                continue
            reply = self.ask(mi.Request(command, dialect=dialect, id=1))
            if isinstance(reply, mi.Reply) and not dialects:
                return reply
            listing = listed(reply) if isinstance(reply, bytes) else None
            if listing is not None or isinstance(reply, bytes) and dialect == "jsonrpc" and reply[:1] == b"{":
                dialects.append(dialect)
            if listing is not None and names is None:
                names, is_kamailio = listing, command == LISTINGS[1][1]
        if not self.known or names != self.known.listed:
            self.recipes.clear()
        self.known = Known(frozenset(dialects), names, None if names is None else frozenset(names), is_kamailio)
        return mi.Reply(502, f"upstream {self.name} lists no commands") if names is None else names

    def recipes_of(self, name: str) -> tuple | None:
        """The sets of parameters that the server takes for a command, each a text of names, or None; asked for once. Waits."""
        if name not in self.recipes:
            reply = self.ask(mi.Request("which", dialect="jsonrpc", id=1, params=[name]))
            self.recipes[name] = translation.recipes_in(reply) if isinstance(reply, bytes) else None
        return self.recipes[name]

    def asked_of(self, request: mi.Request, data: bytes) -> Asked:
        """A request as the server is to get it: as it is, under another name, or translated; mi.Error. May wait."""
        known = self.known
        if known is None or request.dialect in known.dialects or not known.dialects:
            name = known.other_name(request.name) if known else ""
            return Asked(translation.renamed(data, name) if name else data, request)
        name = translation.name_on(request.name, known.names, request.dialect)
        if request.dialect == "jsonrpc":
            there = mi.Request(name, dialect="text", answered=request.answered)
            return Asked(translation.to_text(data, name), there, data, translation.reply_to_jsonrpc)
        recipes = self.recipes_of(name) if translation.needs_recipes(request.name) and not known.is_kamailio else None
        there = mi.Request(name, dialect="jsonrpc", id=1)
        return Asked(translation.to_jsonrpc(data, name, recipes, known.is_kamailio), there, data, translation.reply_to_text)

    def figures(self) -> dict[str, int]:
        """The present figures, over all children."""
        stats = [stat for stat in self.ctx.own.stats if stat.name in [f"{self.name}-{word}" for word in FIGURES]]
        return dict(zip(FIGURES, self.ctx.server.values_of(stats)()))

    def reset(self) -> None:
        """Set all figures to 0 that are no levels, and forget how long replies took."""
        for word in FIGURES.keys() - set(LEVELS):
            self.counters.reset(self.columns[word])
        self.ctx.store.put(SPACE, f"{self.name} since", f"{int(time.monotonic() / PART_S)}", MINUTE_S)

    def close(self) -> None:
        """Close all sockets."""
        self.timer.close()
        if self.room:
            self.room.close()
        for slot in [*self.free, *self.in_flight, *self.late, *([self.mute] if self.mute else [])]:
            slot.close()


SPACE = "upstream"  # of the store, where children put how long replies took
PART_S, MINUTE_S = 2, 60
STEPS = 8  # sizes of latencies in each doubling, so they are known to 9 %


class Latencies:
    """How long replies took in the last minute: how many of which size, for each two seconds."""

    def __init__(self):
        self.parts: dict[int, collections.Counter[int]] = {}  # by the steady clock, which all processes share

    def add(self, now_s: float, took_s: float) -> None:
        """One more."""
        part = self.parts.get(int(now_s / PART_S))
        if part is None:
            part = self.parts[int(now_s / PART_S)] = collections.Counter()
            for old in [number for number in self.parts if number < (now_s - MINUTE_S) / PART_S]:
                del self.parts[old]
        part[int(STEPS * log2(took_s * 1e6 + 1))] += 1


def percentiles(parts: dict[int, collections.Counter[int]], since: int) -> list[float | None]:
    """p50 and p99 in ms of the parts from a number on; None each where there are none."""
    sizes: collections.Counter[int] = sum((part for number, part in parts.items() if number >= since), collections.Counter())
    found: list[float | None] = []
    for share in (0.5, 0.99):
        left, size = share * sizes.total(), None
        for size in sorted(sizes):
            left -= sizes[size]
            if left <= 0:
                break
        found.append(None if size is None else round(2 ** ((size + 0.5) / STEPS) / 1000, 3))
    return found


###############################################################################
# What passes, as canned replies
###############################################################################

RECORDED = "upstream_record"  # the space of the store for rows: the last reply to each request
MOST_RECORDED = 2000  # requests


class Recorder:
    """Writes a file of canned replies with what passes: the last reply to each request, of all children."""

    def __init__(self, server: Any, path: str, log: Any):
        self.server, self.path, self.log = server, os.path.abspath(path), log
        self.latest: dict[bytes, tuple[bytes, float]] = {}  # request -> reply and ms, until they are in the store
        self.version: Any = None
        self.tool = mi.shared("record")

    def keep(self, request: bytes, reply: bytes, ms: float) -> None:
        """One more exchange."""
        self.latest[request] = reply, ms
        if len(self.latest) >= MOST_RECORDED:
            self.flush()

    def flush(self) -> None:
        """Bring what came since the last time to the store."""
        latest, self.latest = self.latest, {}
        known = dict(self.server.store.items(RECORDED)) if latest else {}
        for request, (reply, ms) in latest.items():
            row = self.tool.row_of(request, reply, ms)
            key = row and json.dumps([row.dialect, row.name, row.values])
            if key and (key in known or len(known) < MOST_RECORDED):
                known[key] = json.dumps([mi.decode(request), mi.decode(reply), ms])
                self.server.store.put(RECORDED, key, known[key])

    def write(self) -> None:
        """Write the file if there is something new; one child after the other."""
        if self.version == self.server.store.version(RECORDED):
            return
        new = f"{self.path}.new"
        try:
            with open(f"{self.server.store.path}-record", "ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.version = self.server.store.version(RECORDED)
                rows = [self.tool.row_of(mi.encode(request), mi.encode(reply), ms) for request, reply, ms in
                        map(json.loads, sorted(value for _, value in self.server.store.items(RECORDED)))]
                pretty = any(row.dialect == "jsonrpc" and row.reply.startswith(b"{\n") for row in rows)
                text = self.tool.write_cases(self.tool.cases_of(rows, pretty), ["Recorded by the module upstream."])
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(new)
                with open(new, "xb") as file:
                    file.write(mi.encode(text))
                os.replace(new, self.path)
        except OSError as error:
            self.log.error("%s cannot be written: %s", self.path, error.strerror, extra={"once": self.path})


###############################################################################
# The gateway
###############################################################################


class Judgement(NamedTuple):
    """What is decided for a name: whether it is switched off or restricted, and which server has it."""

    names: tuple
    is_off: bool
    is_restricted: bool
    upstream: Upstream


class Gateway:
    """All servers, as a child sees them."""

    def __init__(self, server: Any):
        import gevent

        self.server, self.module = server, server.registry.modules_by_name["upstream"]
        ctx, settings = mi.Context(self.module), self.module.settings
        self.recorder = Recorder(server, settings["record"], ctx.log) if settings["record"] else None
        self.servers = {target.name: Upstream(ctx, target, gevent.get_hub().loop, self.recorder) for target in settings["server"]}
        self.default = next(iter(self.servers.values()))
        self.routes = [(patterns, self.servers[name]) for patterns, name in settings["route"]]
        self.by_socket = {listener.address: self.servers[listener.upstream]
                          for listener in server.setup.own["listen"] if listener.upstream}
        self.access, self.off = mi.Access(server.setup.own), server.setup.own["disable"]
        self.judge = functools.lru_cache(1000)(self.judged)
        self.indent, self.pretty = server.setup.mi["reply_indent"], server.setup.mi["pretty_printing"]
        self.wraps = bool(server.registry.wrappers)  # what is around others wants an Answer from them
        self.own_names = {*server.registry.names, *(stat.name for stat in self.module.stats)}
        for upstream in self.servers.values():
            upstream.learn()

    @functools.cached_property
    def own(self) -> mi.Answers:
        """Answers with the commands of this server that are left to others."""
        registry, server = copy.copy(self.server.registry), copy.copy(self.server)
        registry.names = {name: command for name, command in registry.known.items() if not self.judge(name).is_off}
        registry.wrappers, registry.catch_all, server.registry = [], None, registry
        return mi.answers_of(server, self.access)

    def judged(self, name: str) -> Judgement:
        """What is decided for the name of a command, under all names that it may have."""
        names = self.server.registry.names_of(name)
        chosen = (upstream for patterns, upstream in self.routes if any(one in patterns for one in names))
        return Judgement(names, any(one in self.off for one in names),
                         any(one in rule.commands for rule in self.access.rules for one in names), next(chosen, self.default))

    def upstream_of(self, caller: Any, upstream: Upstream) -> Upstream:
        """The server of the socket that was asked, if it has one."""
        return self.by_socket.get(caller[0].place.address, upstream) if self.by_socket and caller[0] else upstream

    def forward(self, ctx: Any) -> Any:
        """Send a request to its server, and have its client answered with the reply."""
        request = ctx.request
        names, is_off, is_restricted, upstream = self.judge(request.name)
        if is_off:
            return mi.NOT_AVAILABLE
        if is_restricted and not self.access.allows(types.SimpleNamespace(name=request.name, module=ctx.own), ctx.caller, *names):
            return mi.Reply(403, "Forbidden")
        if request.name in OWN_ABOUT and self.is_about_us(ctx):
            return self.own.answer(ctx.data, ctx.caller)
        if self.by_socket:
            upstream = self.upstream_of(ctx.caller, upstream)
        deadline_s = time.monotonic() + upstream.timeout_s
        if upstream.known is None and upstream.learner:
            upstream.learner.join(upstream.timeout_s)
        data, child = ctx.data, self.server.child
        batch = data[:1] not in (b"{", b":") and request.dialect == "jsonrpc" and data.lstrip(BLANKS)[:1] == b"["
        try:
            asked = upstream.asked_of(request, one_request(request) if batch else data)
        except mi.Error as error:
            return refused(error)
        asked.ctx, asked.deadline_s = ctx, deadline_s
        if child and not batch and not self.wraps:
            self.server.later += 1
            asked.done, asked.asked_s = self.conclude, time.time() if child.is_tracing else 0.0
            upstream.put(asked)
            return mi.LATER
        result = mi.AsyncResult()
        asked.done = result.set
        upstream.put(asked)
        done = result.get()
        return self.answer(done[0], done[1], True)

    def conclude(self, done: tuple) -> None:
        """A request is answered, by a reply or what stands in its place: answer its client."""
        asked, reply = done
        child = self.server.child
        self.server.later -= 1
        child.conclude(asked.asked_s, *asked.ctx.caller, self.answer(asked, reply, child.is_tracing))
        if child.traces:
            child.settle()

    def answer(self, asked: Asked, reply: Any, is_traced: bool) -> mi.Answer:
        """The Answer to a client: the reply of a server, translated if the request was, or one of ours."""
        ctx = asked.ctx
        request, endpoint = ctx.request, ctx.caller[0]
        if asked.back and reply and isinstance(reply, bytes):
            try:
                reply = asked.back(asked.origin, reply)
            except mi.Error as error:
                reply = refused(error)
        limit = mi.GIVE_UP if endpoint is None or endpoint.unix else mi.UDP_LIMIT
        if len(reply) > limit:  # a Reply has but a few members
            reply = mi.reply_too_long(len(reply), limit) if request.dialect == "text" else mi.NOT_SENDABLE
        written = reply if isinstance(reply, bytes) else self.written(request, reply)
        exchanges = [mi.Exchange(ctx.data, request.name, values_of(ctx), *outcome(reply), written or None)] if is_traced else []
        return mi.Answer([(0, written)] if written and request.answered else [], exchanges)

    def written(self, request: mi.Request, reply: Any) -> bytes:
        """A reply of ours in the dialect of its client."""
        if request.dialect == "text":
            return mi.encode(mi.write_text(reply, self.indent))
        return mi.encode(mi.write_jsonrpc(reply, request, mi.NO_FORM, self.pretty))

    def is_about_us(self, ctx: Any) -> bool:
        """Whether all that a command asks for is ours: statistics of the group upstream, our commands."""
        values: Any = values_of(ctx) or ()
        if ctx.request.dialect == "jsonrpc":
            params = ctx.request.params or ()
            given = params.values() if isinstance(params, dict) else params
            values = [item for value in given for item in (value if isinstance(value, list) else [value])]
        return bool(values) and all(f"{value}".lower() == "upstream:" or value in self.own_names for value in values)

    def list_commands(self, ctx: Any) -> Any:
        """All commands that clients may ask for: those that the servers list, and ours."""
        names = self.server.registry.commands
        if ctx.request.values:
            return mi.Reply(result=names[ctx.request.values[0]].recipes) if ctx.request.values[0] in names else self.forward(ctx)
        only = self.upstream_of(ctx.caller, self.default)
        several = [only] if only is not self.default else dict.fromkeys([only, *(upstream for _, upstream in self.routes)])
        lists = [upstream.list_names() for upstream in several]
        found = [names for names in lists if isinstance(names, list)]
        if not found:
            return lists[0]
        every = dict.fromkeys(itertools.chain(*found, names))
        return mi.Reply(nodes=[mi.Node(None, name) for name in every if not self.judge(name).is_off])

    def rows(self) -> Iterator[dict[str, Any]]:
        """What upstream_list shows of each server."""
        self.publish()
        published = dict(self.server.store.items(SPACE))
        for upstream in self.servers.values():
            target, figures = upstream.target, upstream.figures()
            parts: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
            for key, text in published.items():
                for number, sizes in json.loads(text).items() if key.startswith(f"{target.name}:") else ():
                    parts[int(number)].update({int(size): count for size, count in sizes.items()})
            since = max(int(published.get(f"{target.name} since", 0)), int((time.monotonic() - MINUTE_S) / PART_S))
            state = "down" if figures.pop("down") else "up"
            p50, p99 = percentiles(parts, since)
            yield {"name": target.name, "address": f"{target.address}", "dialect": target.dialect, "state": state, **figures,
                   "p50": p50, "p99": p99}

    def publish(self) -> None:
        """Let all children know how long replies took in this one, and what it recorded."""
        if self.recorder:
            self.recorder.flush()
            if getattr(self.server.child, "rank", 1) == 1:
                self.recorder.write()
        for upstream in self.servers.values():
            if upstream.replied_s > time.monotonic() - MINUTE_S:
                key = f"{upstream.name}:{self.server.row}"
                self.server.store.put(SPACE, key, json.dumps(upstream.latencies.parts), MINUTE_S)

    def close(self) -> None:
        """End it with its child."""
        if self.recorder:
            self.recorder.flush()
            self.recorder.write()
        for upstream in self.servers.values():
            upstream.close()


def refused(error: mi.Error) -> Any:
    """The reply for an error, which is a built-in one if it reads as such."""
    for refusal in (mi.NOT_AVAILABLE, mi.PARSE_ERROR):
        if (error.code, error.reason) == refusal[:2]:
            return refusal
    return mi.Reply(error.code, error.reason, result=error)


BLANKS = bytes(range(1, 33))  # what 3.x passes over before a request


def values_of(ctx: Any) -> tuple | None:
    """The values of a request's arguments; None for a text request whose arguments are malformed."""
    if ctx.request.dialect == "jsonrpc":
        return ctx.request.values
    try:
        return mi.read_arguments(ctx.data[len(mi.read_first_line(ctx.data)):])[0]
    except mi.ParseError:
        return None


def outcome(reply: Any) -> tuple[int, str]:
    """Code and reason of a reply, for traces."""
    if not isinstance(reply, bytes):
        return reply.code, reply.reason
    match = re.match(rb"([0-9]{1,10}) ?([^\n]*)", reply)
    if match:
        return int(match[1]), mi.decode(match[2])
    try:
        error = mi.read_json(reply)["error"]
        return int(error["code"]), f"{error['message']}"
    except (mi.ParseError, KeyError, TypeError, ValueError):
        return 200, "OK"
