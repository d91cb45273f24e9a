"""upstream_server -- what the plug-in upstream knows of a server, in a child: sockets, requests on their way, what it speaks.

A request has a socket of its own for as long as it waits, so no reply can get to another client. Sockets are used again, the one
that rested longest first, if it heard nothing since; one whose request timed out waits for the late reply, to count it, and is
closed. If the server ever answers a request twice, no socket is used again. Where the server's queue is full, requests wait in
ours; a socket connected to the server is writable when that has read.
"""
from __future__ import annotations

import collections
import contextlib
import errno
import functools
import glob
import ipaddress
import os
import re
import socket
import struct
import time
from math import log2
from typing import Any, NamedTuple

import midatagram as mi

translation = mi.shared("translation")
NAMES = mi.shared("opensips_forms").NAMES
write_request = mi.write_request  # here: a child of another user may not be able to read its file

FIGURES = {  # of each server, in the group upstream
    "requests": "requests for it", "replies": "replies from it", "errors": "requests that it did not answer, or not with a reply",
    "timeouts": "of these, requests without a reply in time", "late": "replies that came too late, or to no request",
    "in_flight": "requests it has not answered yet", "down": "1 while it does not answer, else 0",
}
LEVELS = ("in_flight", "down")
UNREACHABLE = 503
NO_REPLY = (502, UNREACHABLE, 504)  # codes of the errors that stand in the place of a reply
LEARN_S = 30.0  # after which it is asked again for its commands, if it is asked for anything
LATE_S = 10.0  # how long a socket waits for a late reply
QUEUE_BYTES = 16 << 20  # of requests that wait to be sent to a server, in each child, and of those of one client:
CLIENT_BYTES = QUEUE_BYTES // 4
REQUEST_BYTES = 1000  # that a request takes besides its own
RESTING = 64  # sockets that rest, so that a second reply to a request meets none that waits for another
RECIPES_BYTES = 4 << 20  # of what commands take
SAME_REPLIES = 50  # that are not translated anew when they come again
RETRY_S = 0.005  # how often those are tried that nothing wakes up
TICKS = 50  # how often in its time limit it is looked whether a request is too old
CHANGES = 20  # of its state that are logged within seconds, if they read the same
PLAIN_REPLY = re.compile(rb"[0-9]{1,10}[ \n]")  # the first line of a text reply
FOREIGN = {"text": b"400 Parse_error", "jsonrpc": b"500 command not available\n"}  # what is said to it in the other dialect
PLAIN_ERROR = re.compile(rb"[3-9][0-9]{2} [^\n]+\n?")  # of a server of JSON-RPC, which has but a few of these
STARTS = tuple(b'{%b"jsonrpc":%b"2.0",%b"%b":' % (line, blank, line, member) for line, blank in ((b"", b""), (b"\n\t", b"\t"))
               for member in (b"result", b"error"))  # of a JSON-RPC reply, as OpenSIPS and Kamailio write it
CREDENTIALS = socket.CMSG_SPACE(struct.calcsize("3i"))
FULL = (errno.EAGAIN, errno.ENOBUFS)
LISTINGS = ("jsonrpc", "which"), ("jsonrpc", "system.listMethods"), ("text", "which")  # the second is Kamailio's


class Target(NamedTuple):
    """A server as declared. `inflight`: requests that wait for it at a time, for each child; `folder`: for the sockets that it
    replies to, where it reaches no abstract ones; `events`: where it sends them, `senders`: networks that it may do so from."""

    name: str
    address: mi.Address
    dialect: str = "auto"
    timeout: int = 2000  # ms
    inflight: int = 64
    events: mi.Address | None = None
    folder: str = ""
    senders: tuple = ()


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

    def size(self) -> int:
        """The bytes of memory that it takes, about."""
        values = self.ctx.request.values if self.ctx else ()
        return REQUEST_BYTES + len(self.data) + len(self.origin) + mi.VALUE_BYTES * len(values)

    def has(self, reply: bytes) -> bool | None:
        """Whether these bytes may be its reply; None for what is no reply at all."""
        if self.request.dialect == "text":
            return True if PLAIN_REPLY.match(reply) else None
        number = self.request.id
        request_id = b"%d" % number if type(number) is int else mi.encode(mi.json_text(number))
        if reply.startswith(STARTS) and reply.endswith((b',"id":%b}' % request_id, b',\n\t"id":\t%b\n}' % request_id)):
            return True  # which spares reading it
        if PLAIN_ERROR.fullmatch(reply):
            return True
        try:
            message = mi.read_json(reply)
        except mi.ParseError:
            return None
        if not isinstance(message, dict) or not {"result", "error"} & message.keys():
            return None
        is_cut = isinstance(number, float) or isinstance(number, int) and not -2**31 <= number < 2**31  # 3.x has 32 bits
        if message.get("id", 0) is None and "error" in message:  # of who could not read the id
            return True
        return "id" in message and (is_cut or message["id"] == number or number is None and message["id"] == 0)  # of Kamailio


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
                bind_for_all(self.socket, self.path)
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


def bind_for_all(sock: Any, path: str) -> None:
    """Bind a socket to a file that all users may write to, from its first moment: others may exchange it; OSError."""
    mask = os.umask(0)
    try:
        os.fchmod(sock.fileno(), 0o777)
        sock.bind(path)
    finally:
        os.umask(mask)


def clear_folder(folder: str) -> None:
    """Remove the sockets that killed children left behind."""
    for path in glob.glob(os.path.join(glob.escape(folder), "mi-*.sock")) if folder else ():
        with contextlib.suppress(OSError, mi.StartError):  # it has an owner, or is something else
            mi.clear_path(path)


@functools.cache
def sockaddr_of(address: mi.Address) -> tuple:
    """Family and socket address of a server; OSError for a host that cannot be resolved."""
    if address.port is None:
        return socket.AF_UNIX, address.host
    family, _, _, _, place = mi.original("socket", "getaddrinfo")(address.host, address.port, type=socket.SOCK_DGRAM)[0]
    return family, place


def is_same_socket(one: mi.Address, other: mi.Address) -> bool:
    """Whether what is sent to one address comes to the other, which is served here; OSError for an unknown host."""
    if one.port is None or other.port is None:
        return one.port is other.port and os.path.realpath(one.host) == os.path.realpath(other.host)
    host, own_host = (ipaddress.ip_address(sockaddr_of(address)[1][0].partition("%")[0]) for address in (one, other))
    return one.port == other.port and (host == own_host or own_host.is_unspecified and (host.is_loopback or host.is_unspecified))


def one_request(request: mi.Request) -> bytes:
    """A JSON-RPC request by itself, as it would be in no batch."""
    params = {} if request.params is None else {"params": request.params}
    number = {"id": request.id} if request.answered else {}
    return mi.encode(mi.json_text({"jsonrpc": "2.0", "method": request.name, **params, **number}))


def refused(error: mi.Error) -> Any:
    """The reply for an error, which is a built-in one if it reads as such."""
    for refusal in (mi.NOT_AVAILABLE, mi.PARSE_ERROR):
        if (error.code, error.reason) == refusal[:2]:
            return refusal
    return mi.Reply(error.code, error.reason, result=error.with_traceback(None))


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

    def __init__(self, ctx: Any, target: Target, loop: Any):
        self.ctx, self.target, self.loop, self.name = ctx, target, loop, target.name
        self.row, self.columns = ctx.own.row, {word: ctx.own.columns[f"{target.name}-{word}"] for word in FIGURES}
        self.counters = ctx.server.counters
        self.timeout_s, self.unix = target.timeout / 1000, target.address.port is None
        silence = f"did not answer in {target.timeout} ms"
        self.no_reply, self.silence = mi.Reply(504, f"upstream {target.name} {silence}"), f"{silence}: {target.address}"
        self.free: collections.deque[Slot] = collections.deque()
        self.in_flight: dict[Slot, Asked] = {}  # the oldest first
        self.waiting: collections.deque[Asked] = collections.deque()
        self.held: collections.Counter[Any] = collections.Counter()  # bytes of those that wait, by client
        self.bytes = 0  # of them all
        self.late: dict[Slot, float] = {}  # until when their late replies are waited for
        self.answers_twice = False  # it did, so each request gets a new socket
        self.mute: Slot | None = None  # sends notifications, and hears what a server may answer to them
        tick_s = max(0.005, min(0.5, self.timeout_s / TICKS))
        self.timer = loop.timer(tick_s, tick_s)
        self.ticking = False
        self.room: Any = None  # wakes us when the server may have read
        self.gate: Any = None  # the socket that it watches
        self.buffer = bytearray(mi.GIVE_UP + 1)
        self.view, self.believed = memoryview(self.buffer), frozenset[bytes]()
        self.known: Known | None = None  # until it is found out
        self.full_names: dict[str, list[str]] = {}  # of its commands, by the short name that 4.0 runs as well
        self.recipes = mi.Memo(RECIPES_BYTES)  # command -> one of its recipes_of()
        self.epoch = 0  # another one once it may be another server
        self.back_to_text = functools.lru_cache(SAME_REPLIES)(translation.reply_to_text)
        self.questions = 0  # of our own that it has not answered
        self.learner: Any = None  # the greenlet that finds out what is known
        self.learn_s = 0.0  # when to find out again
        self.relay: Any = None  # of its events
        self.replied_s = self.down_s = 0.0  # when it last answered, and was last marked as down
        self.latencies = Latencies()
        self.row[self.columns["in_flight"]] = 0
        clear_folder(target.folder)

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
            if not self.has_room(asked):
                return self.fail(asked, mi.Reply(503, f"upstream {self.name} has too many requests"))
            self.waiting.append(asked)
        self.level()
        if not self.ticking:
            self.ticking = True
            self.timer.start(self.tick)
        return None

    def has_room(self, asked: Asked) -> bool:
        """Whether a request may wait, and if so, count its bytes."""
        client, size = asked.ctx and asked.ctx.caller, asked.size()
        if self.held[client] + size > CLIENT_BYTES or self.bytes + size > QUEUE_BYTES:
            return False
        self.held[client] += size
        self.bytes += size
        return True

    def next_waiting(self) -> Asked:
        """The request that waited longest, which waits no more."""
        asked = self.waiting.popleft()
        client, size = asked.ctx and asked.ctx.caller, asked.size()
        self.bytes -= size
        self.held[client] -= size
        if not self.held[client]:
            del self.held[client]
        return asked

    def send(self, asked: Asked) -> bool:
        """Send a request, or fail it; False if it has to wait."""
        slot = self.mute
        try:
            if asked.request.answered or slot is None:
                slot = len(self.free) > RESTING and self.rested() or self.new_slot() or self.rested()
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

    def rested(self) -> Slot | None:
        """A socket that was used before, None if there is none; one that heard something since is closed."""
        while self.free and len(self.in_flight) < self.target.inflight:
            slot = self.free.popleft()
            try:
                slot.socket.recv(1, socket.MSG_PEEK)
                self.second_reply()
            except BlockingIOError:
                return slot
            except OSError:  # of UDP: nobody listened there
                pass
            self.forget(slot)
        return None

    def new_slot(self) -> Slot | None:
        """A new socket; None if there are as many as may be. OSError."""
        if len(self.in_flight) >= self.target.inflight:
            return None
        try:
            return Slot(self.target, self.loop, self.receive)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE) and (self.in_flight or self.free):
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
            self.next_waiting()
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
        if asked is None or fits is False:
            is_second = slot not in self.late
            if asked is None:
                self.forget(slot)
            return self.second_reply() if is_second else self.count("late")
        del self.in_flight[slot]
        self.rest(slot)
        self.replied(asked, reply, fits is None)
        if self.waiting and not self.room:
            self.flush()

    def second_reply(self) -> None:
        """The server answered a request twice: count it, and use no socket again, because text has no ids to compare."""
        self.count("late")
        if not self.answers_twice:
            self.answers_twice = True
            self.ctx.log.warning("upstream %s answers requests twice: each gets a new socket from now on", self.name)
        for slot in list(self.free):
            self.forget(slot)

    def rest(self, slot: Slot) -> None:
        """Leave a socket whose request is answered for another one, or, if it must not be used again, for a second reply."""
        if not self.answers_twice:
            self.free.append(slot)
            return
        self.late[slot] = time.monotonic() + LATE_S
        if len(self.late) > self.target.inflight:
            self.forget(next(iter(self.late)))

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
        if (is_garbage or reply in FOREIGN.values()) and self.is_foreign(asked, reply):
            return self.repeat(asked, reply, is_garbage)
        return self.accept(asked, reply, is_garbage)

    def accept(self, asked: Asked, reply: bytes, is_garbage: bool) -> None:
        """Answer a request with its reply, or with an error if that is garbage."""
        if is_garbage:
            self.ctx.log.warning("upstream %s answered garbage: %a", self.name, reply[:80], extra={"once": self.name})
            return self.fail(asked, mi.Reply(502, f"upstream {self.name} answered garbage"))
        self.count("replies", asked)
        return asked.done((asked, reply))

    def is_foreign(self, asked: Asked, reply: bytes) -> bool:
        """Whether a reply to a client's request may be of a server of the other dialect, which cannot have run it."""
        is_text = asked.request.dialect == "text"
        return bool(asked.ctx) and self.target.dialect == "auto" and (
            reply == FOREIGN[asked.request.dialect] or is_text and reply.startswith(STARTS))

    def repeat(self, asked: Asked, reply: bytes, is_garbage: bool) -> None:
        """Learn what the server is now, and repeat a request if it speaks the other dialect; else the reply counts."""
        import gevent

        def learn_and_ask() -> None:
            for _ in range(2):  # what is under way may have begun before
                self.learn()
                self.learner.join(max(asked.deadline_s - time.monotonic(), 0))
                name, known = asked.ctx.request.name, self.known
                is_other = known and known.dialects and asked.request.dialect not in known.dialects
                if is_other and (name in NAMES or name not in self.full_names):  # else access lists may hold for another name
                    self.count("replies", asked)
                    return self.ask_anew(asked)
            return self.accept(asked, reply, is_garbage)

        gevent.spawn(learn_and_ask)

    def ask_anew(self, asked: Asked) -> None:
        """Send a client's request in the dialect that the server is known to speak; may wait."""
        try:
            anew = self.asked_of(asked.ctx.request, asked.origin or asked.data)
        except mi.Error as error:
            return asked.done((asked, refused(error)))
        except Exception:  # the seam: a mistake in the translation costs one request
            self.ctx.log.exception("command %s cannot be translated", asked.ctx.request.name)
            return asked.done((asked, mi.COMMAND_FAILED))
        asked.data, asked.request, asked.origin, asked.back = anew.data, anew.request, anew.origin, anew.back
        return self.put(asked)

    def fail(self, asked: Asked, reply: mi.Reply) -> None:
        """Answer a request with an error of ours."""
        self.count("errors", asked)
        asked.done((asked, reply))

    def lose(self, asked: Asked, error: OSError) -> None:
        """A request cannot be sent, or nobody was there."""
        self.change(f"is not reachable: {self.target.address}: {error.strerror or error}")
        self.fail(asked, mi.Reply(UNREACHABLE, f"upstream {self.name} is not reachable"))

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
        for slot, asked in [item for item in self.in_flight.items() if item[1].deadline_s <= now_s]:
            del self.in_flight[slot]
            self.late[slot] = now_s + LATE_S
            self.expire(asked)
            if not asked.ctx:
                self.forget(slot)
        while self.waiting and self.waiting[0].deadline_s <= now_s:
            self.expire(self.next_waiting())
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
        self.level()
        self.count("timeouts", asked)
        if asked.ctx and (asked.sent_s >= self.replied_s or not asked.sent_s):
            self.change(self.silence)
        self.fail(asked, self.no_reply)

    def skip(self, asked: Asked) -> None:
        """A request of a batch is not sent, because the time limit of the batch is over."""
        self.count("requests")
        self.count("timeouts")
        self.fail(asked, self.no_reply)

    def missed(self, error: mi.Error, begun_s: float) -> None:
        """A request is not sent, because the server does not even say what it is, or what the command takes."""
        self.count("requests")
        self.count("errors")
        if error.code == 504:
            self.count("timeouts")
            if self.replied_s < begun_s:
                self.change(self.silence)

    def change(self, why: str | None) -> None:
        """Log that the server does not answer (why), or answers again (None), once for all children."""
        down = self.columns["down"]
        if bool(why) == bool(self.counters.slots[down]):
            return
        self.counters.set(down, int(bool(why)))
        if why:
            self.down_s = time.monotonic()
            self.ctx.log.error("upstream %s %s", self.name, why, extra={"same": CHANGES})
        else:
            after = f" after {time.monotonic() - self.down_s:.1f} s" if self.down_s else ""
            self.ctx.log.warning("upstream %s answers again%s", self.name, after, extra={"same": CHANGES})
            self.forget_recipes()  # it may be another one
            self.learn()
            if self.relay:
                self.relay.renew()

    # What it is.

    def learn(self) -> None:
        """Find out, in the background, which dialects the server speaks and which commands it has."""
        import gevent

        self.learn_s = time.monotonic() + LEARN_S
        if not self.learner:
            self.learner = gevent.spawn(self.list_names)

    def wait(self, deadline_s: float) -> None:
        """Until it is known what the server is, or cannot be reached; mi.Error if that takes too long."""
        self.learn()
        self.learner.join(deadline_s - time.monotonic())
        if self.known is None and self.learner:
            raise mi.Error(*self.no_reply[:2])

    def listing(self, deadline_s: float) -> list[str] | mi.Reply:
        """The commands that the server lists, or the Reply in place of them; waits. Who asks meanwhile gets the same."""
        self.learn()
        self.learner.join(deadline_s - time.monotonic())
        return self.learner.value if self.learner.successful() else self.no_reply

    def result_of(self, name: str, params: dict) -> Any:
        """The result of a command, which we ask for ourselves, as 3.x has it; waits. mi.Error."""
        request = mi.Request(name, dialect="jsonrpc", id=1, params=params)
        if self.known is None:
            self.wait(time.monotonic() + self.timeout_s)
        asked = self.asked_of(request, one_request(request))
        reply = self.ask(asked.request, asked.data)
        if isinstance(reply, mi.Reply):
            raise mi.Error(reply.code, reply.reason)
        try:
            message = mi.read_json(asked.back(asked.origin, reply) if asked.back else reply)
            if "error" not in message:
                return message["result"]
            raise mi.Error(max(int(message["error"]["code"]), 0) or 500, f"{message['error']['message']}")
        except (mi.ParseError, KeyError, TypeError, ValueError):
            raise mi.Error(502, f"upstream {self.name} answered garbage") from None

    def ask(self, request: mi.Request, data: bytes = b"") -> bytes | mi.Reply:
        """Ask for something ourselves, in bytes of its own if it has any; waits."""
        result = mi.AsyncResult()
        data = data or (write_request(request.name, ()) if request.dialect == "text" else one_request(request))
        asked = Asked(data, request)
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
        reply: bytes | mi.Reply = b""
        answers = False
        dialects, names, is_kamailio = [] if self.target.dialect == "auto" else [self.target.dialect], None, False
        for dialect, command in LISTINGS:
            if self.target.dialect not in ("auto", dialect) or is_kamailio or names and command == LISTINGS[1][1]:
                continue
            reply = self.ask(mi.Request(command, dialect=dialect, id=1))
            if isinstance(reply, mi.Reply) and reply.code == UNREACHABLE:
                return reply
            answers = answers or isinstance(reply, bytes)
            listing = listed(reply) if isinstance(reply, bytes) else None
            if listing is not None or isinstance(reply, bytes) and dialect == "jsonrpc" and reply[:1] == b"{":
                dialects.append(dialect)
            if listing is not None and names is None:
                names, is_kamailio = listing, command == LISTINGS[1][1]
        known = Known(frozenset(dialects), names, None if names is None else frozenset(names), is_kamailio)
        if known != self.known and (answers or self.known is None):  # one that stands still is what it was
            self.become(known)
        elif answers and self.recipes:
            self.forget_recipes()  # it may have been restarted in between
        return names if names is not None else reply if isinstance(reply, mi.Reply) else mi.Reply(
            502, f"upstream {self.name} lists no commands")

    def become(self, known: Known) -> None:
        """The server is another one than before."""
        before, self.known, self.full_names = self.known, known, {}
        for name in [one for one in known.listed or () if ":" in one]:
            self.full_names.setdefault(name.partition(":")[2], []).append(name)
        self.forget_recipes()
        if before and before.dialects and known.dialects and known.dialects != before.dialects:
            self.ctx.log.warning("upstream %s speaks %s now", self.name, " and ".join(sorted(known.dialects)))
            if self.relay:
                self.relay.renew()

    def forget_recipes(self) -> None:
        """Ask anew what its commands take."""
        self.recipes = mi.Memo(RECIPES_BYTES)
        self.epoch += 1

    def recipes_of(self, name: str) -> tuple | None:
        """The sets of parameters that the server takes for a command, each a text of names, or None. Waits; mi.Error."""
        if time.monotonic() > self.learn_s:
            self.learn()
        recipes, row = self.recipes, self.recipes.get(name)
        if row is None:
            reply = self.ask(mi.Request("which", dialect="jsonrpc", id=1, params=[name]))
            if isinstance(reply, mi.Reply):
                raise mi.Error(reply.code, reply.reason)
            row = recipes.keep(name, (translation.recipes_in(reply),), 8 * (len(name) + len(reply)))
        return row[0]

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
        return Asked(translation.to_jsonrpc(data, name, recipes, known.is_kamailio), there, data, self.back_to_text)

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
