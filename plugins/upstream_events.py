"""upstream_events -- the events of a server behind the gateway, for the plug-in upstream.

    client -> event_subscribe -> rows in the store      server -> events=udp:IP:PORT -> Relay -> each subscriber, in its dialect

The subscriptions of clients stay here. The server has one for each event that somebody here wants, with our address, made anew
every few seconds: so a server that was restarted has it again, and one that nobody wants any more ends by itself if the gateway
dies. The first child does that, and has the socket; at a reload its successor binds another one before this one is closed.
"""
from __future__ import annotations

import contextlib
import copy
import socket
from collections.abc import Iterator
from typing import Any

import midatagram as mi

behind = mi.shared("upstream_server")
translation = behind.translation
core = translation.core

EXPIRE_S = 60  # of a subscription at the server
RENEW_S = 3.0  # after which it is made anew
TEND_S = 1.0  # between two looks at what is to be done
AT_ONCE = 64  # events that are read before others get their turn
AWAY = (503, 504)  # what stands in the place of a reply when there is none
COMMANDS = ("event_subscribe", "subscribers_list", "events_list")


class Relay:
    """The events of one server, as a child sees them: `upstream` is that server, `server` this one."""

    def __init__(self, upstream: Any, server: Any):
        self.upstream, self.log = upstream, upstream.ctx.log
        self.family, self.place = behind.sockaddr_of(upstream.target.events)
        self.column, self.row = upstream.ctx.own.columns[f"{upstream.name}-events"], upstream.ctx.own.row
        self.socket: Any = None  # of the first child
        self.watcher: Any = None
        self.believed: set[str] = set()  # hosts that events are taken from
        self.space = f"upstream {upstream.name}"  # of the store: event -> when the server was last asked for it
        self.server = copy.copy(server)
        self.events = self.server.events = mi.Events(self.server, (None, None))
        self.events.SPACE, self.events.write = f"{self.space} events", self.write
        self.answers = self.answers_for(server.registry)
        if getattr(server.child, "rank", 1) == 1:
            self.open()

    # What clients ask for.

    def answers_for(self, registry: Any) -> mi.Answers:
        """What answers to COMMANDS, as the script does, with the events of the server in place of its own."""

        def event_subscribe(ctx, event, socket, expire=3600):
            self.learn_names()
            if expire and event in self.server.registry.events and event not in {*self.at_server(), *self.wanted()}:
                self.subscribe(event)
            return mi.event_subscribe(ctx, event, socket, expire)

        def subscribers_list(ctx, event=None, socket=None):
            self.learn_names()
            return core.subscribers_list(ctx, event, socket)

        def events_list(ctx):
            self.learn_names()
            return core.events_list(ctx)._replace(live=None)

        module, own = copy.copy(registry.modules_by_name["mi_datagram"]), copy.copy(registry)
        module.server, self.server.registry = self.server, own
        ours = event_subscribe, subscribers_list, events_list
        tagged = [mi.tagged(function, **vars(getattr(core, function.__name__, mi.event_subscribe))) for function in ours]
        own.names = {name: mi.Command(module, function) for function in tagged
                     for name in translation.names_of(function.__name__)}
        own.wrappers, own.around, own.catch_all = [], None, None
        return mi.answers_of(self.server)

    def learn_names(self) -> None:
        """Know which events the server has: as it says, or last said to any child. mi.Error if it never did."""
        store, space = self.upstream.ctx.store, f"{self.space} names"
        try:
            names = {event["name"]: event["id"] for event in self.upstream.result_of("events_list", {})["Events"]}
            if names != self.server.registry.events:
                store.put(space, "", mi.json_text(names))
        except mi.Error:
            if not store.get(space, ""):
                raise
            names = mi.read_json(mi.encode(store.get(space, "")))
        except (KeyError, TypeError):
            raise mi.Error(502, f"upstream {self.upstream.name} lists no events") from None
        self.server.registry.events = names

    # What the server is asked for.

    def at_server(self) -> dict[str, float]:
        """The events that the server was asked for, and how long ago, s."""
        store = self.upstream.ctx.store
        rows = store.items(self.space) if store.version(self.space) else ()
        return {event: store.now_s() - float(since) for event, since in rows}

    def subscribe(self, event: str, expire: int = EXPIRE_S) -> None:
        """Have the server send an event here, or (0) no more; waits. mi.Error."""
        store, place = self.upstream.ctx.store, f"{self.upstream.target.events}"
        try:
            self.upstream.result_of("event_subscribe", {"event": event, "socket": place, "expire": f"{expire}"})
        finally:
            if not expire:  # should it fail, the subscription ends by itself
                store.remove(self.space, event)
        if expire:
            store.put(self.space, event, f"{store.now_s()}", EXPIRE_S)

    def renew(self) -> None:
        """Have the server asked for all events at the next look: it may have forgotten them. Never waits."""
        import gevent

        gevent.spawn(self.age)

    def age(self) -> None:
        """Make all events due at the server."""
        with contextlib.suppress(mi.StoreError):  # which is logged already
            for event in self.at_server():
                self.upstream.ctx.store.put(self.space, event, "0", EXPIRE_S)

    def wanted(self) -> list[str]:
        """The events that somebody here wants."""
        self.events.subscribers("")  # which reads the rows
        return [event for event in self.events.rows if self.events.subscribers(event)]

    def due(self) -> Iterator[tuple[str, int]]:
        """What to ask the server for now: an event, and how long, 0 if nobody here wants it any more. StoreError."""
        for event, age_s in self.at_server().items():
            if age_s >= TEND_S and event not in self.wanted():  # the subscriber of a younger one may be just coming
                yield event, 0
        ages = self.at_server()
        for event in self.wanted():
            if ages.get(event, RENEW_S) >= RENEW_S:
                yield event, EXPIRE_S

    def tend(self) -> None:
        """Have the server send what is wanted here, and nothing else; waits. StoreError."""
        self.open()
        for event, expire in self.due():
            try:
                self.subscribe(event, expire)
            except mi.Error as error:
                if error.code in AWAY:
                    break
                self.log.warning("event %s of upstream %s: %s", event, self.upstream.name, error.reason,
                                 extra={"once": f"{self.upstream.name} {event} {error.reason}"})

    # What the server sends.

    def open(self) -> None:
        """Bind the socket that the server sends to, unless that is done; log if it cannot be."""
        if self.socket:
            return
        new = mi.original("socket", "socket")(self.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            new.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            new.bind(self.place)
        except OSError as error:
            new.close()
            self.log.error("events of upstream %s: %s: %s", self.upstream.name, self.upstream.target.events, error.strerror,
                           extra={"once": self.upstream.name})
            return
        self.socket = new
        self.watcher = self.upstream.loop.io(new.fileno(), 1)
        self.watcher.start(self.receive)

    def receive(self, most: int = AT_ONCE) -> None:
        """Hand on the events that came. Runs in the hub."""
        with contextlib.suppress(OSError):
            for _ in range(most):
                data, sender = self.socket.recvfrom(65536)
                if self.is_believed(sender[0]):
                    self.hand_on(data)

    def is_believed(self, host: str) -> bool:
        """Whether events are taken from a host: that of the server, this one, and those of `senders`."""
        if host in self.believed:
            return True
        target, address = self.upstream.target, mi.host_address(host)
        hosts = [self.place[0], *([] if target.address.port is None else [behind.sockaddr_of(target.address)[1][0]])]
        if address.is_loopback or address in map(mi.host_address, hosts) or mi.in_networks(host, target.senders):
            self.believed.add(host)
            return True
        self.log.warning("an event from %s is dropped: that is not upstream %s", host, self.upstream.name,
                         extra={"once": f"{self.upstream.name} {host}"})
        return False

    def hand_on(self, data: bytes) -> None:
        """Send an event to its subscribers."""
        name: Any = mi.decode(data.partition(b"\n")[0])
        if data.startswith(b"{"):
            with contextlib.suppress(mi.ParseError):
                name = mi.read_json(data).get("method")
        if not name or not isinstance(name, str):
            self.log.warning("upstream %s sent what is no event: %a", self.upstream.name, data[:80],
                             extra={"once": self.upstream.name})
            return
        self.row[self.column] += 1
        self.events.put(name, data)

    def write(self, name: str, data: bytes, dialect: str) -> bytes:
        """An event in a dialect, unchanged if it is in that; ValueError."""
        if data.startswith(b"{") == (dialect == "jsonrpc"):
            return data
        try:
            return translation.event_to_jsonrpc(data) if dialect == "jsonrpc" else translation.event_to_text(data)
        except mi.Error as error:
            raise ValueError(error.reason) from None
        except Exception:  # the seam: a mistake in the translation costs one event
            self.log.exception("event %s cannot be translated", name)
            raise ValueError("it cannot be translated") from None

    def close(self) -> None:
        """Hand on what came, and receive no more."""
        if self.socket:
            self.receive(1 << 16)
            self.watcher.close()
            self.socket.close()
        self.events.send(0.1)
