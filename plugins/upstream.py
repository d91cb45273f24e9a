"""upstream -- a gateway: forwards requests to other servers, and sends back their replies.

    loadmodule "upstream.so"
    modparam("upstream", "server", "[main]/run/opensips/socket;timeout=2000")

    request -> Gateway: may this client, which server -> Upstream: a socket of its own -> reply -> client

A command goes to a server once: what cannot be sent is refused, what is not answered in time is answered with an error.
"""
from __future__ import annotations

import collections
import contextlib
import copy
import fcntl
import functools
import ipaddress
import itertools
import json
import os
import re
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import midatagram as mi

events = mi.shared("upstream_events")
behind = events.behind  # not another one, which would look up hosts anew
translation, refused = behind.translation, behind.refused
mi.shared("cjson")  # what servers read in another way than the standard library must not get past the access lists
NAMES, FIGURES, LEVELS = behind.NAMES, behind.FIGURES, behind.LEVELS

###############################################################################
# Configuration
###############################################################################

FORM = ('"[NAME]ADDRESS[;dialect=auto|text|jsonrpc][;timeout=MS][;inflight=N][;events=udp:IP:PORT][;senders=NETWORKS]'
        '[;folder=DIRECTORY]"')
EXAMPLE = '"[main]/run/opensips/socket"'
DECLARATION = re.compile(r"\s*\[\s*([\w.-]+)\s*\]\s*([^;]+?)\s*((?:;[^;]*)*)")


def events_place(value) -> mi.Address:
    """Converter: `udp:IP:PORT`, an address that a server can send to."""
    place = mi.address(value)
    try:
        if place.port is not None and not ipaddress.ip_address(place.host).is_unspecified:
            return place
    except ValueError:
        pass
    raise ValueError("takes an address of this host, which the server sends to: udp:IP:PORT")


SETTINGS: dict[str, Callable] = {
    "dialect": mi.one_of("auto", "text", "jsonrpc"), "timeout": mi.integer(1, 3600000), "inflight": mi.integer(1, 10000),
    "events": events_place, "senders": mi.networks, "folder": mi.string}


def server(value) -> Any:
    """Converter: `[NAME]ADDRESS[;KEY=VALUE]`, the keys being those of SETTINGS."""
    declared = mi.string(value).strip()
    match = DECLARATION.fullmatch(declared)
    if not match:
        missing = "" if declared.startswith("[") else f'; the name is missing: "[main]{declared}"'
        raise ValueError(f"takes {FORM}{missing}")
    settings = {}
    for item in filter(None, match[3].split(";")):
        key, equals, text = item.strip().partition("=")
        if key not in SETTINGS or not equals:
            raise ValueError(f"takes {FORM}, not {item}{mi.nearest(key, SETTINGS)}")
        try:
            settings[key] = SETTINGS[key](text)
        except ValueError as error:
            raise ValueError(f"{key} {error}") from None
    return behind.Target(match[1], mi.address(match[2]), **settings)


def route(value) -> tuple:
    """Converter: `PATTERN[, PATTERN]: NAME` as (patterns, name)."""
    patterns, _, name = mi.string(value).rpartition(":")
    if not patterns.strip() or not name.strip():
        raise ValueError('takes patterns of commands and a server: "dlg_*, profile_*: main"')
    return mi.patterns(patterns), name.strip()


PARAMS = [
    mi.Param("server", (), server, f"server to forward to: {FORM[1:-1]}; the first is the default", repeat=True),
    mi.Param("route", (), route, "commands to forward to another server than the first: PATTERN[, PATTERN]: NAME", repeat=True),
    mi.Param("keep", mi.Patterns(), mi.patterns, "commands that the gateway answers itself, comma-separated"),
    mi.Param("record", None, mi.string,
             "file for the replies of the servers: canned replies, as `midatagram.py record` writes them"),
]
JUDGED_BYTES = 1 << 20  # of what is decided for names
FILES = 600  # that a child has open at most besides: Outbox.OWN_SOCKETS and the few of its own
OWN_STATISTICS = {one for name in ("get_statistics", "list_statistics", "reset_statistics") for one in NAMES[name]}
OWN_ABOUT = {*OWN_STATISTICS, *NAMES["help"]}  # answered here as far as they ask about what is ours


def short_names() -> dict[str, tuple]:
    """All names of the commands that a name without its module may mean in 4.0."""
    short: dict[str, tuple] = {}
    for names in NAMES.values():
        for name in names:
            _, colon, alone = name.partition(":")
            if colon:
                short[alone] = tuple(dict.fromkeys((*short.get(alone, ()), *names)))
    return short


SHORT = short_names()


@functools.cache
def recording() -> Any:
    """What writes files of canned replies; to be called first by a process that may read it."""
    return mi.shared("record")


def init(ctx):
    """Declare the statistics of each server."""
    if ctx.param("record"):
        recording()
    names = [target.name for target in ctx.param("server")]
    if not names:
        text = f'module upstream forwards nothing without a server: modparam("upstream", "server", {EXAMPLE})'
        ctx.own.doubts.append((None, text))
    for nth, target in enumerate(ctx.param("server")):
        if target.name in names[:nth]:
            ctx.refuse("server", f'server: there are two with the name "{target.name}"', nth)
        try:
            behind.sockaddr_of(target.address)  # here, once: a child must not wait for a name server
        except OSError as error:
            ctx.refuse("server", f"server: {target.address.host} cannot be resolved: {error.strerror}", nth)
    for nth, (_, name) in enumerate(ctx.param("route")):
        if name not in names:
            ctx.refuse("route", f'route: there is no server "{name}"{mi.nearest(name, names)}', nth)
    ctx.own.stats += [mi.Stat(f"{name}-{word}", text, "upstream", word not in LEVELS)
                      for name in names for word, text in FIGURES.items()]
    ctx.own.stats += [mi.Stat(f"{target.name}-events", "events from it", "upstream", True)
                      for target in ctx.param("server") if target.events]


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
    refuse_own(ctx, [registry.modules_by_name["mi_datagram"].settings["socket_name"],
                     *[listener.address for listener in midatagram.settings["listen"]]])
    for nth, listener in enumerate(midatagram.settings["listen"]):
        if listener.upstream and listener.upstream not in [target.name for target in targets]:
            path, line = midatagram.lines["listen"][nth]
            raise mi.ConfigError(path, line, f'listen: there is no server "{listener.upstream}"')


def refuse_own(ctx: Any, places: list[mi.Address]) -> None:
    """Refuse a server that is one of our own sockets, from which each request would come back; ConfigError."""
    for nth, target in enumerate(ctx.param("server")):
        with contextlib.suppress(OSError):  # a socket of an unknown host is refused by another line
            if any(behind.is_same_socket(target.address, place) for place in places):
                ctx.refuse("server", f"server: {target.address} is a socket of this gateway itself; name the socket of the "
                                     f"server behind it: {EXAMPLE}", nth)


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
    """Set the counters of a server, or of all servers, to 0."""
    gateway = gateway_of(ctx.server) if ctx.param("server") else None
    servers = [one for one in (gateway.servers.values() if gateway else ()) if name in ("", one.target.name)]
    if not servers:
        raise mi.Error(404, "no such server")
    for one in servers:
        one.reset()
    return mi.Reply()


@mi.every(events.TEND_S, where="one")
def tend(ctx):
    """Have the servers send the events that somebody wants."""
    for upstream in gateway_of(ctx.server).servers.values() if ctx.param("server") else ():
        with contextlib.suppress(mi.StoreError):  # which is logged already
            if upstream.relay:
                upstream.relay.tend()


@mi.every(2)
def publish(ctx):
    """Let other children know how long replies took, and what was recorded."""
    if ctx.param("server"):
        gateway_of(ctx.server).publish()


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
        self.tool = recording()

    def keep(self, request: bytes, reply: bytes, ms: float) -> None:
        """One more exchange."""
        if len(self.latest) < MOST_RECORDED or request in self.latest:
            self.latest[request] = reply, ms

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
        if self.server.store.version(RECORDED) in (0, self.version):  # 0: nothing passed, what an earlier run wrote stays
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
    """What is decided for a name: whether it is switched off or restricted, or about events, and which server has it."""

    is_off: bool
    is_restricted: bool
    is_events: bool
    upstream: Any


class Plan(NamedTuple):
    """What becomes of a request, whatever its id: `request` is the client's, `there` what the server gets, `data` its bytes if
    they are not the client's, `back` makes the client's reply of the server's; `epoch` is that of the server."""

    upstream: Any
    epoch: int
    request: mi.Request
    there: mi.Request
    data: bytes
    back: Any


class Gateway:
    """All servers, as a child sees them."""

    def __init__(self, server: Any):
        import gevent
        from gevent.local import local

        self.batch = local()
        self.server, self.module = server, server.registry.modules_by_name["upstream"]
        ctx, settings = mi.Context(self.module), self.module.settings
        self.recorder = Recorder(server, settings["record"], ctx.log) if settings["record"] else None
        loop = gevent.get_hub().loop
        self.servers = {target.name: behind.Upstream(ctx, target, loop) for target in settings["server"]}
        self.default = next(iter(self.servers.values()))
        self.routes = [(patterns, self.servers[name]) for patterns, name in settings["route"]]
        self.by_socket = {listener.address: self.servers[listener.upstream]
                          for listener in server.setup.own["listen"] if listener.upstream}
        self.access, self.off = server.access, server.setup.own["disable"]
        self.restricted = mi.Patterns(server.access.restricted if server.access else ())
        self.judgements = mi.Memo(JUDGED_BYTES)
        self.indent, self.pretty = server.setup.mi["reply_indent"], server.setup.mi["pretty_printing"]
        self.wraps = bool(server.registry.wrappers)  # what is around others wants an Answer from them
        self.own_names = {*server.registry.names, *(stat.name for stat in self.module.stats)}
        self.event_names = {one for name in events.COMMANDS for one in (name, *NAMES.get(name, ()))}
        for upstream in self.servers.values():
            upstream.learn()
            upstream.relay = events.Relay(upstream, server) if upstream.target.events else None

    @functools.cached_property
    def own(self) -> mi.Answers:
        """Answers with the commands of this server that are left to others."""
        registry, server = copy.copy(self.server.registry), copy.copy(self.server)
        registry.names = {name: command for name, command in registry.known.items() if not self.judge(name).is_off}
        registry.wrappers, registry.around, registry.catch_all, server.registry = [], None, None, registry
        return mi.answers_of(server)

    def judge(self, name: str) -> Judgement:
        """What is decided for the name of a command."""
        return self.judgements.get(name) or self.judgements.keep(name, self.judged(name), 8 * len(name))

    def judged(self, name: str) -> Judgement:
        """What is decided for it, under all names that it may have."""
        names = self.server.registry.names_of(name)
        chosen = (upstream for patterns, upstream in self.routes if any(one in patterns for one in names))
        return Judgement(any(one in self.off for one in names), any(one in self.restricted for one in names),
                         name in self.event_names, next(chosen, self.default))

    def upstream_of(self, caller: Any, upstream: Any) -> Any:
        """The server of the socket that was asked, if it has one."""
        return self.by_socket.get(caller[0].place.address, upstream) if self.by_socket and caller[0] else upstream

    def forward(self, ctx: Any) -> Any:
        """Send a request to its server, and have its client answered with the reply."""
        request = ctx.request
        _, is_restricted, is_events, upstream = self.judge(request.name)
        data = ctx.data
        batch = data[:1] not in (b"{", b":") and request.dialect == "jsonrpc" and data.lstrip(mi.JSON_BLANKS)[:1] == b"["
        if batch:
            data = behind.one_request(request)
        ours, theirs = self.shared_out(ctx) if request.name in OWN_ABOUT else ([], [])
        if ours and not theirs:
            return self.own.answer(data, ctx.caller)
        if request.params:  # which may take many times their bytes
            request = ctx.request = request._replace(params=None)
        if self.by_socket:
            upstream = self.upstream_of(ctx.caller, upstream)
        if is_events and upstream.relay:
            return upstream.relay.answers.answer(data, ctx.caller)
        begun_s = self.batch_begun_s(ctx) if batch else time.monotonic()
        deadline_s = begun_s + upstream.timeout_s
        try:
            if upstream.known is None:
                upstream.wait(deadline_s)
            epoch = upstream.epoch  # before what may wait
            for full in upstream.full_names.get(request.name, ()):
                is_restricted |= self.is_restricted_as(full, ctx)
            asked = self.asked_with(upstream, ctx, data, ours, theirs) if ours else upstream.asked_of(request, data)
        except mi.Error as error:
            if error.code in behind.NO_REPLY:
                upstream.missed(error, begun_s)
            return refused(error)
        asked.ctx, asked.deadline_s = ctx, deadline_s
        if self.server.child and not batch and not self.wraps:
            plan = Plan(upstream, epoch, request, asked.request, asked.data if asked.back else b"", asked.back)
            self.send(asked, upstream)
            lasts = not is_restricted and not ours and request.answered and (asked.back or asked.data is data)
            return mi.LATER._replace(again=functools.partial(self.again, plan)) if lasts else mi.LATER
        result = mi.AsyncResult()
        asked.done = result.set
        upstream.put(asked) if time.monotonic() < deadline_s else upstream.skip(asked)
        done = result.get()
        return self.answer(done[0], done[1], True)

    def batch_begun_s(self, ctx: Any) -> float:
        """When the first request of a batch came here: one time limit holds for them all, which one greenlet asks for."""
        if getattr(self.batch, "data", None) is not ctx.data:
            self.batch.data, self.batch.begun_s = ctx.data, time.monotonic()
        return self.batch.begun_s

    def is_restricted_as(self, full: str, ctx: Any) -> bool:
        """Whether a command is restricted under the full name that the server has for the one that was asked for; mi.Error if
        it is switched off, or this client may not use it."""
        is_off, is_restricted, _, _ = self.judge(full)
        if is_off:
            raise translation.not_there("", ctx.request.dialect)
        if is_restricted and not self.access.allows(self.server.registry.catch_all, ctx.caller, full):
            raise mi.Error(403, "Forbidden")
        return is_restricted

    def again(self, plan: Plan, data: bytes, caller: Any, request_id: bytes) -> mi.Answer | None:
        """Send a request that is the same as another one but for its id; None if it has to be looked at anew."""
        upstream = plan.upstream
        if upstream.epoch != plan.epoch:
            return None
        if self.by_socket and upstream is not self.upstream_of(caller, self.judge(plan.request.name).upstream):
            return None
        request = mi.with_id(plan.request, request_id)
        asked = behind.Asked(plan.data or data, plan.there if plan.back else request, data if plan.back else b"", plan.back)
        asked.ctx = mi.Context(self.module, request, caller, data)
        self.send(asked, upstream)
        return mi.LATER

    def send(self, asked: Any, upstream: Any) -> None:
        """Send a request whose Answer comes later."""
        self.server.later += 1
        asked.done, asked.asked_s = self.conclude, time.time() if self.server.child.is_tracing else 0.0
        upstream.put(asked)

    def conclude(self, done: tuple) -> None:
        """A request is answered, by a reply or what stands in its place: answer its client."""
        asked, reply = done
        child = self.server.child
        self.server.later -= 1
        child.conclude(asked.asked_s, *asked.ctx.caller, self.answer(asked, reply, child.is_tracing))
        if child.traces:
            child.settle()

    def answer(self, asked: Any, reply: Any, is_traced: bool) -> mi.Answer:
        """The Answer to a client: the reply of a server, translated if the request was, or one of ours."""
        ctx = asked.ctx
        request, endpoint = ctx.request, ctx.caller[0]
        if asked.back and reply and isinstance(reply, bytes):
            try:
                reply = asked.back(asked.origin, reply)
            except mi.Error as error:
                reply = refused(error)
            except Exception:  # the seam: a mistake in the translation costs one reply
                ctx.log.exception("the reply to %s cannot be translated", request.name)
                reply = mi.COMMAND_FAILED
        if self.recorder and reply and isinstance(reply, bytes):
            self.recorder.keep(asked.origin or asked.data, reply, (time.monotonic() - asked.sent_s) * 1000)
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
        return mi.encode(mi.write_jsonrpc(reply, request, mi.JsonForm(), self.pretty))

    def shared_out(self, ctx: Any) -> tuple[list, list]:
        """What a command asks for that is ours, statistics of the group upstream and our commands, and what is the server's."""
        values: Any = values_of(ctx) or ()
        if ctx.request.dialect == "jsonrpc":
            params = ctx.request.params or ()
            given = params.values() if isinstance(params, dict) else params
            values = [item for value in given for item in (value if isinstance(value, list) else [value])]
        ours: list[Any] = []
        theirs: list[Any] = []
        for value in values:
            is_ours = isinstance(value, str) and (value.lower() == "upstream:" or value in self.own_names)
            (ours if is_ours else theirs).append(value)
        if ctx.request.name not in OWN_STATISTICS:
            return ([], []) if theirs else (ours, [])
        return [*ours, *(["upstream:"] if "all" in theirs else [])], theirs

    def asked_with(self, upstream: Any, ctx: Any, data: bytes, ours: list, theirs: list) -> Any:
        """A request for statistics as the server is to get it: without ours, which its reply gets here; mi.Error. May wait."""
        own = self.own.answer(request_with(ctx.request, ours), ctx.caller).datagrams
        asked = upstream.asked_of(ctx.request, request_with(ctx.request, theirs))
        if own:
            back = asked.back and functools.partial(asked.back, asked.origin)
            asked.origin, asked.back = data, functools.partial(self.joined, ctx.request, own[0][1], back)
        return asked

    def joined(self, request: mi.Request, own: bytes, back: Any, whole: bytes, reply: bytes) -> bytes:
        """The reply of the server with our statistics behind its own; mi.Error."""
        reply = back(reply) if back else reply
        if request.dialect == "text":
            return reply[:-1] + own[7:] if reply[:7] == own[:7] == b"200 OK\n" else own if reply.startswith(b"404 ") else reply
        if reply[:1] != b"{":
            return reply
        theirs, ours = [mi.read_json(one).get("result") for one in (reply, own)]
        both = isinstance(theirs, dict) and isinstance(ours, dict)
        return self.written(request, mi.Reply(result={**theirs, **ours})) if both else reply

    def list_commands(self, ctx: Any) -> Any:
        """All commands that clients may ask for: those that the servers list, and ours."""
        names = self.server.registry.commands
        if ctx.request.values:
            return mi.Reply(result=names[ctx.request.values[0]].recipes) if ctx.request.values[0] in names else self.forward(ctx)
        only = self.upstream_of(ctx.caller, self.default)
        several = [only] if only is not self.default else dict.fromkeys([only, *(upstream for _, upstream in self.routes)])
        for upstream in several:
            upstream.learn()
        lists = [upstream.listing(time.monotonic() + upstream.timeout_s) for upstream in several]
        found = [names for names in lists if isinstance(names, list)]
        if not found:
            return lists[0]
        every = dict.fromkeys(itertools.chain(*found, names))
        return mi.Reply(nodes=[mi.Node(None, name) for name in every if not self.judge(name).is_off])

    def rows(self) -> Iterator[dict[str, Any]]:
        """What upstream_list shows of each server."""
        self.publish()
        published = dict(self.server.store.items(behind.SPACE))
        for upstream in self.servers.values():
            target, figures = upstream.target, upstream.figures()
            parts: dict[int, collections.Counter[int]] = collections.defaultdict(collections.Counter)
            for key, text in published.items():
                for number, sizes in json.loads(text).items() if key.startswith(f"{target.name}:") else ():
                    parts[int(number)].update({int(size): count for size, count in sizes.items()})
            since = max(int(published.get(f"{target.name} since", 0)), int((time.monotonic() - behind.MINUTE_S) / behind.PART_S))
            state = "down" if figures.pop("down") else "up"
            p50, p99 = behind.percentiles(parts, since)
            yield {"name": target.name, "address": f"{target.address}", "dialect": target.dialect, "state": state, **figures,
                   "p50": p50, "p99": p99}

    def publish(self) -> None:
        """Let all children know how long replies took in this one, and what it recorded."""
        if self.recorder:
            self.recorder.flush()
            if getattr(self.server.child, "rank", 1) == 1:
                self.recorder.write()
        for upstream in self.servers.values():
            if upstream.replied_s > time.monotonic() - behind.MINUTE_S:
                key = f"{upstream.name}:{self.server.row}"
                self.server.store.put(behind.SPACE, key, json.dumps(upstream.latencies.parts), behind.MINUTE_S)

    def close(self) -> None:
        """End it with its child."""
        if self.recorder:
            self.recorder.flush()
            self.recorder.write()
        for upstream in self.servers.values():
            if upstream.relay:
                upstream.relay.close()
            upstream.close()


def request_with(request: mi.Request, values: list) -> bytes:
    """The same request for some of the statistics."""
    if request.dialect == "text":
        return behind.write_request(request.name, [(None, value or "") for value in values])
    return behind.one_request(request._replace(params={"statistics": values}))


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
    except (mi.ParseError, KeyError, TypeError, ValueError, OverflowError):
        return 200, "OK"
