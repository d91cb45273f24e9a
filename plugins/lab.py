"""lab -- fails on purpose, remembers what clients sent, and verifies it: for tests of MI clients.

    loadmodule "lab.so"
    modparam("lab", "fault", "command=dlg_list;action=drop;every=3")

Requests for its own commands, lab_..., have no faults and are not in the journal. The commands of lab_sip are there, too.
"""

import contextlib
import difflib
import fcntl
import fnmatch
import functools
import inspect
import itertools
import json
import mmap
import os
import pathlib
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import midatagram as mi

canned = mi.import_plugin(str(pathlib.Path(__file__).with_name("canned_replies.py")))
loading = mi.shared("loading")

BRINGS = ("lab_sip",)  # modules that are loaded with this one
RULES = "lab_rules"  # the space of the store: "fault 000000001" or "reply 000000001" -> JSON of its options
NEAREST, COMPARED = 3, 200  # requests that are shown beside a failed verification, and the last ones they are chosen from
MOST_DIFFERENCES = 10  # of each
SHOWN, FEW = 2000, 200  # characters of a value that are shown: in the journal, in a failed verification
ROOM = mi.LIMIT // 3  # bytes of the JSON of what lab_journal shows at once, but for the last entry, which may be as long


###############################################################################
# Journal #####################################################################
###############################################################################
# Strategy: a ring in memory that all children share, a file beside the store.
# An entry is written when its request is received and completed before its
# reply is sent, both under a lock that the kernel takes from a child that dies.

HEAD, TAIL, NUMBER = range(3)  # words at the start: where the next entry goes, where the oldest is, the last number
START = 64  # bytes of words
ENTRY = struct.Struct("=IIqd")  # bytes of the entry, bytes of the client's name in it, number, time
END = struct.Struct("=dqiI")  # ms, rule, code, outcome; then the client's name and the request
OUTCOMES = ("pending", "answered", "notification", *filter(None, canned.ACTIONS))
LEAST_SIZE = 1 << 17  # bytes; every request fits


class Entry(NamedTuple):
    """A request in the journal. ms and code are 0 until it is answered; rule is the fault that acted, or 0."""

    number: int
    time_s: float
    client: str
    raw: bytes
    ms: float
    rule: int
    code: int
    outcome: str


class Journal:
    """The last requests, as many as fit; OSError where there is no room for it."""

    def __init__(self, path: str, size_bytes: int):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.posix_fallocate(self.file, 0, START + size_bytes)
        self.memory, self.size = mmap.mmap(self.file, START + size_bytes), size_bytes
        self.words, self.ring = memoryview(self.memory)[:START].cast("q"), memoryview(self.memory)[START:]

    @contextlib.contextmanager
    def locked(self) -> Iterator[memoryview]:
        """The words at the start, while no other child changes them; nothing in here may wait."""
        fcntl.lockf(self.file, fcntl.LOCK_EX)
        try:
            yield self.words
        finally:
            fcntl.lockf(self.file, fcntl.LOCK_UN)

    def put(self, at: int, data: bytes) -> None:
        """Write bytes to the ring."""
        at %= self.size
        room = self.size - at
        self.ring[at:at + len(data)] = data[:room]
        if len(data) > room:
            self.ring[:len(data) - room] = data[room:]

    def take(self, at: int, count: int) -> bytes:
        """Read bytes from the ring."""
        at %= self.size
        first = self.ring[at:at + count].tobytes()
        return first + self.ring[:count - len(first)].tobytes()

    def add(self, client: str, raw: bytes, time_s: float, end: bytes) -> int:
        """Add an entry; returns its place."""
        name = mi.encode(client)
        size = ENTRY.size + END.size + len(name) + len(raw)
        with self.locked() as words:
            place = words[HEAD]
            while place + size - words[TAIL] > self.size:
                words[TAIL] += ENTRY.unpack(self.take(words[TAIL], ENTRY.size))[0]
            self.put(place, ENTRY.pack(size, len(name), words[NUMBER] + 1, time_s) + end + name + raw)
            words[NUMBER] += 1
            words[HEAD] += size
        return place

    def complete(self, place: int | None, end: bytes) -> None:
        """Write how a request ended, unless it is forgotten, or None for one that is not in the journal."""
        with self.locked() as words:
            if place is not None and place >= words[TAIL]:
                self.put(place + ENTRY.size, end)

    def close(self) -> None:
        """Let go of the file; the memory goes with its last user."""
        os.close(self.file)

    def clear(self) -> None:
        """Forget all; numbers start at 1 again."""
        with self.locked() as words:
            words[TAIL], words[NUMBER] = words[HEAD], 0

    def entries(self) -> tuple[int, list[Entry]]:
        """How many are forgotten, and all others, the oldest first."""
        with self.locked() as words:
            last, data = words[NUMBER], self.take(words[TAIL], words[HEAD] - words[TAIL])
        entries, at = [], 0
        while at < len(data):
            size, name, number, time_s = ENTRY.unpack_from(data, at)
            ms, rule, code, outcome = END.unpack_from(data, at + ENTRY.size)
            start = at + ENTRY.size + END.size
            client, raw = mi.decode(data[start:start + name]), data[start + name:at + size]
            entries.append(Entry(number, time_s, client, raw, ms, rule, code, OUTCOMES[outcome]))
            at += size
        return entries[0].number - 1 if entries else last, entries


def end_of(outcome: str, code: int = 0, ms: float = 0.0, rule: int = 0) -> bytes:
    """How a request ended, as it is written."""
    return END.pack(ms, rule, code, OUTCOMES.index(outcome))


PENDING = end_of("pending")


@functools.cache
def journal_of(server: Any) -> Journal:
    """This child's view of the journal."""
    size = server.registry.modules_by_name["lab"].settings["journal_size"]
    return Journal(f"{server.store.folder}/journal-{size}", size)


def child_init(ctx):
    """Open the journal, so that a lack of room is met at the start."""
    journal_of(ctx.server)


def destroy(ctx):
    """Close the journal."""
    journal_of(ctx.server).close()


###############################################################################
# Requests ####################################################################
###############################################################################


def is_json(ctx: mi.Context, raw: bytes) -> bool:
    """Whether a datagram is in the JSON-RPC dialect."""
    dialect = ctx.server.setup.own["dialect"]
    return dialect == "jsonrpc" or (dialect == "auto" and bool(mi.JSON_START.match(raw)))


def read_request(ctx: mi.Context, raw: bytes) -> mi.Request:
    """What a datagram asks for, whether there is such a command or not; an array among the arguments counts as its
    items. The name is empty for what is malformed."""
    if is_json(ctx, raw):
        with contextlib.suppress(mi.ParseError):
            return read_json_request(mi.read_json(raw))
        return mi.Request("", dialect="jsonrpc")
    line = mi.read_first_line(raw)
    name, values, names = mi.decode(line[1:-2]), (), None
    if mi.first_line(name) != line:
        return mi.Request("")
    with contextlib.suppress(mi.ParseError):
        values, names = mi.read_arguments(raw[len(line):])
    return mi.Request(name, values, names)


def read_json_request(value: Any) -> mi.Request:
    """The same from a JSON value."""
    request, params = mi.read_envelope(value)
    pairs = list(params.items()) if isinstance(params, dict) else [
        (None, item) for item in (params if isinstance(params, list) else ())]
    flat = [(name, item) for name, value in pairs for item in (value if isinstance(value, list) else [value])]
    names = tuple(name for name, _ in flat)
    return request._replace(values=tuple(mi.text_of(item) for _, item in flat), names=names if any(names) else None)


def requests_in(ctx: mi.Context) -> list[tuple[bytes, mi.Request]]:
    """The requests in a datagram, which are itself or the items of a batch: as bytes, and without their arguments."""
    items: Any = None
    if ctx.data.lstrip(mi.JSON_BLANKS)[:1] == b"[" and is_json(ctx, ctx.data):
        with contextlib.suppress(mi.ParseError):
            items = mi.read_json(ctx.data)
    if not isinstance(items, list) or not items:
        return [(ctx.data, ctx.request)]
    return [(mi.encode(mi.json_text(item)), mi.read_envelope(item)[0]) for item in items]


def client_of(ctx: mi.Context) -> str:
    """The address of who asks."""
    endpoint, client = ctx.caller or (None, None)
    return shown_client(endpoint.address_of(client) if endpoint else None)


def shown_client(address: Any) -> str:
    """An address as the journal shows it and faults match it: HOST:PORT, a path, or `-` for a socket without one."""
    return mi.shown_address(address) if address else "-"


def is_own(ctx: mi.Context, name: str) -> bool:
    """Whether a command is one of the lab's, by any of its names."""
    command = ctx.server.registry.names.get(name)
    return (command.name if command else name).startswith(("lab_", "lab:"))


def like(value: str | None, pattern: str) -> bool:
    """Whether a value is what is wanted: the same, or fits it as a shell pattern."""
    return value == pattern or fnmatch.fnmatchcase(value or "", pattern)


def is_called(ctx: mi.Context, name: str, pattern: str) -> bool:
    """Whether a command is one that is wanted, by any of its names."""
    command = ctx.server.registry.names.get(name)
    return any(like(one, pattern) for one in ((name, command.name, command.full_name) if command else (name,)))


def are_like(values: tuple, patterns: list[str]) -> bool:
    """Whether arguments are those wanted, one each; without patterns any are."""
    return not patterns or (len(values) == len(patterns) and all(map(like, values, patterns)))


###############################################################################
# Faults and stubs ############################################################
###############################################################################

CODE = mi.integer(-2147483648, 4294967295)
FAULT_OPTIONS = {"command": mi.string, "argument": mi.string, "client": mi.string, **canned.OPTIONS, "code": CODE,
                 "reason": mi.string}
REPLY_OPTIONS = {"reply": mi.string, "json": mi.string, "code": CODE, "reason": mi.string, "times": mi.integer(1),
                 "ms": canned.span(0, canned.LONGEST_MS)}


class Fault(NamedTuple):
    """A rule of lab_fault_add; `options` are as the user gave them."""

    number: int
    options: dict
    command: str
    argument: str | None
    client: str
    when: Any  # When of canned_replies
    effect: Any  # Effect of canned_replies
    reply: mi.Reply

    @property
    def name(self) -> str:
        """By which it is counted and draws."""
        return f"fault {self.number}"

    @property
    def is_of_requests(self) -> bool:
        """Whether the requests of a batch are asked for it, not the batch as a whole."""
        return self.command != "*" or self.argument is not None

    def fits(self, ctx: mi.Context, request: mi.Request, client: str) -> bool:
        """Whether it is for a request."""
        return (is_called(ctx, request.name, self.command) and like(client, self.client)
                and (self.argument is None or any(like(value, self.argument) for value in request.values)))


class Stub(NamedTuple):
    """A reply of lab_reply."""

    number: int
    command: str
    patterns: list
    when: Any  # When of canned_replies
    effect: Any  # Effect of canned_replies
    reply: mi.Reply

    @property
    def name(self) -> str:
        """By which it is counted and draws."""
        return f"reply {self.number}"

    def fits(self, ctx: mi.Context, request: mi.Request, client: str) -> bool:
        """Whether it is for a request."""
        return is_called(ctx, request.name, self.command) and are_like(request.values, self.patterns)


def converted(options: dict, converters: dict) -> dict:
    """The options that are given, through their converters; ValueError."""
    values, name = dict.fromkeys(converters), ""
    try:
        for name, text in options.items():
            values[name] = converters[name](text)
    except KeyError:
        raise ValueError(f'there is no option "{name}"{mi.nearest(name, converters)}') from None
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None
    return values


def fault_of(number: int, options: dict) -> Fault:
    """A fault from its options as text; ValueError."""
    values = converted(options, FAULT_OPTIONS)
    if values["action"] is None:
        raise ValueError(f"action is missing: one of {', '.join(filter(None, canned.ACTIONS))}")
    when, effect = canned.read_options(values)
    reply = mi.Reply(500 if values["code"] is None else values["code"], values["reason"] or "command failed")
    return Fault(number, options, values["command"] or "*", values["argument"], values["client"] or "*", when, effect, reply)


def stub_of(number: int, command: str, patterns: list, options: dict) -> Stub:
    """A stub from its options as text; ValueError."""
    values = converted(options, REPLY_OPTIONS)
    body = (values["reply"] or "").removeprefix("\n").removesuffix("\n")
    code = 200 if values["code"] is None else values["code"]
    try:
        reply = canned.reply_of(code, values["reason"] or "OK", body, values["json"] or "")
    except mi.ParseError as error:
        raise ValueError(f"json is not JSON: {error}") from None
    when = canned.When(times=values["times"])
    return Stub(number, command, patterns, when, canned.Effect("delay", values["ms"]) if values["ms"] else canned.Effect(), reply)


def fault_text(text: str) -> dict:
    """Converter: the options of a fault, NAME=VALUE with semicolons between."""
    options = dict(item.strip().partition("=")[::2] for item in text.split(";") if item.strip())
    fault_of(0, options)
    return options


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep a fault or stub in a view of RULES."""
    view.pop(key, None)
    if value is not None:
        kind, number = key.split()
        view[key] = (fault_of if kind == "fault" else stub_of)(int(number), *json.loads(value))


def rules_of(ctx: mi.Context, kind: str) -> list:
    """The faults, or the stubs, by their numbers."""
    view = ctx.view(RULES, take_in)
    return [view[key] for key in sorted(view) if key.startswith(kind)] if view else []


def add_rule(ctx: mi.Context, kind: str, *parts: Any) -> int:
    """Store a fault or stub for all children; returns its number."""
    number = int(ctx.store.change(canned.SETTINGS, f"last {kind}", lambda last: str(int(last or 0) + 1)))
    ctx.store.put(RULES, f"{kind} {number:09}", json.dumps(parts))
    return number


def remove_rules(ctx: mi.Context, kind: str, number: int | None) -> mi.Reply:
    """Remove one fault or stub, or all; Error."""
    rules = [rule for rule in rules_of(ctx, kind) if number in (None, rule.number)]
    if number is not None and not rules:
        raise mi.Error(404, f"no {kind} {number}")
    for rule in rules:
        ctx.store.remove(RULES, f"{kind} {rule.number:09}")
        ctx.store.remove(canned.COUNTS, rule.name)  # which also lets go of what it stalls
    return mi.Reply()


def choose(ctx: mi.Context, rules: Iterable, request: mi.Request, client: str) -> tuple[Any, Any]:
    """The first rule that is for a request and applies to it, and its turn; None twice if there is none."""
    for rule in rules:
        if rule.fits(ctx, request, client):
            counted = rule.when != canned.When() or rule.effect.action or isinstance(rule, Fault)
            turn = rule.when.turn(ctx, rule.name) if counted else canned.NEVER_COUNTED
            if turn:
                return rule, turn
    return None, None


###############################################################################
# Around ######################################################################
###############################################################################


def note_cached(ctx: mi.Context, trace: mi.Trace) -> bool:
    """Write a request to the journal whose cached reply is about to be sent; False if there are rules to ask first."""
    try:
        if ctx.view(RULES, take_in):
            return False
    except mi.Error:  # the store fails
        return False
    end = end_of("answered", trace.exchange.code, 1000 * (trace.replied_s - trace.requested_s))
    journal_of(ctx.server).add(shown_client(trace.client), trace.exchange.request, trace.requested_s, end)
    return True


@mi.around(cached=note_cached)
def experiment(ctx, request, proceed):
    """Write a request to the journal, and answer it: by a stub or as usual, but for what a fault does to it."""
    if is_own(ctx, request.name):
        return proceed()
    journal, client, started_s = journal_of(ctx.server), client_of(ctx), time.monotonic()
    requests = requests_in(ctx)
    places = [None if is_own(ctx, one.name) else journal.add(client, raw, time.time(), PENDING) for raw, one in requests]
    ruled = Ruled(ctx, client, places)
    if ctx.view(RULES, take_in):
        ruled.ask_for(requests)
    answer = ruled.answer() or proceed()
    for rule, turn in ruled.effects:
        answer = affected(ctx, answer, rule, turn)
    ms, codes = 1000 * (time.monotonic() - started_s), itertools.chain(codes_of(answer), itertools.repeat(0))
    for nth, (place, (_, one), code) in enumerate(zip(places, requests, codes)):
        fault = ruled.faults.get(nth, ruled.faults.get(None))
        outcome = ("answered" if is_sent(answer) else "drop") if one.answered else "notification"
        journal.complete(place, end_of(fault.effect.action if fault else outcome, code, ms, fault.number if fault else 0))
    return answer


class Ruled:
    """What the rules make of a datagram. Requests in a batch have their numbers from 0 on, the whole datagram has None."""

    def __init__(self, ctx: mi.Context, client: str, places: list):
        self.ctx, self.client, self.places = ctx, client, places  # in the journal
        self.faults: dict[int | None, Fault] = {}
        self.replies: dict[int | None, mi.Reply] = {}  # in the place of those of commands
        self.effects: list[tuple[Fault | Stub, Any]] = []  # on the answer: rules and their turns

    def ask_for(self, requests: list) -> None:
        """Ask the rules for a datagram, and in a batch for each request."""
        faults, stubs = rules_of(self.ctx, "fault"), rules_of(self.ctx, "reply")
        if requests[0][0] is self.ctx.data:
            self.ask(None, self.ctx.data, faults, stubs)
            return
        self.ask(None, self.ctx.data, [fault for fault in faults if not fault.is_of_requests], [])
        faults = [fault for fault in faults if fault.is_of_requests and not self.faults]
        for nth, (raw, _) in enumerate(requests):
            self.ask(nth, raw, faults, stubs)

    def ask(self, nth: int | None, raw: bytes, faults: list, stubs: list) -> None:
        """Ask rules for one request."""
        ctx, request = self.ctx, read_request(self.ctx, raw)
        if is_own(ctx, request.name):
            return
        fault, turn = choose(ctx, faults, request, self.client)
        if fault and fault.effect.action == "kill":
            for place in self.places if nth is None else [self.places[nth]]:
                journal_of(ctx.server).complete(place, end_of("kill", rule=fault.number))
            fault.effect.on(ctx, fault.name, turn.draws, [])
        stub, stub_turn = choose(ctx, stubs, request, self.client)
        if fault and fault.effect.action == "error":
            self.replies[nth] = fault.reply
        elif stub and not self.is_allowed(nth, request.name):
            self.replies[nth] = mi.Reply(403, "Forbidden")
        elif stub:
            self.replies[nth] = stub.reply
            self.effects.append((stub, stub_turn))
        if fault:
            self.faults[nth] = fault
            self.effects.append((fault, turn))

    def is_allowed(self, nth: int | None, name: str) -> bool:
        """Whether the access lists let the client use what a request names."""
        ctx, access = self.ctx, self.ctx.server.access
        return access is None or access.allows(ctx.calls[nth or 0].command, ctx.caller, name)

    def answer(self) -> mi.Reply | None:
        """The reply to the whole datagram, if a rule has one; in a batch those to single requests are put into their calls."""
        for nth, reply in self.replies.items():
            if nth is not None:
                self.ctx.calls[nth] = self.ctx.calls[nth]._replace(refusal=reply)
        return self.replies.get(None)


def codes_of(answer: mi.Answer | mi.Reply) -> list[int]:
    """The code of each request in a datagram."""
    return [answer.code] if isinstance(answer, mi.Reply) else [exchange.code for exchange in answer.exchanges]


def is_sent(answer: mi.Answer | mi.Reply) -> bool:
    """Whether anything is sent."""
    return isinstance(answer, mi.Reply) or bool(answer.datagrams)


def affected(ctx: mi.Context, answer: mi.Answer | mi.Reply, rule: Fault | Stub, turn: Any) -> mi.Answer | mi.Reply:
    """An answer with the effect of a rule on its datagrams, which of a Reply are not written yet."""
    act = functools.partial(rule.effect.on, ctx, rule.name, turn.draws)
    if isinstance(answer, mi.Answer):
        return answer._replace(datagrams=act(answer.datagrams))
    before = answer.send or (lambda written: [(0, written)])
    return answer._replace(send=lambda written: act(before(written)))


###############################################################################
# Commands ####################################################################
###############################################################################


def with_options(converters: dict) -> Callable:
    """Give a function of **options the signature with these options."""
    def tag(function):
        parameters = [one for one in inspect.signature(function).parameters.values() if one.kind != one.VAR_KEYWORD]
        options = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in converters]
        function.__signature__ = inspect.Signature([*parameters, *options])
        return function

    return tag


@mi.command
@with_options(FAULT_OPTIONS)
def lab_fault_add(ctx, **options):
    """Add a fault for requests whose command, argument and client fit shell patterns. Actions: drop, delay, error, empty, cut,
    garbage, duplicate, late, stall, kill. Faults are asked by their id; the first that fits acts."""
    try:
        fault_of(0, options)
    except ValueError as error:
        raise mi.Error(400, str(error)) from None
    return mi.Reply(nodes=[mi.Node("id", add_rule(ctx, "fault", options))])


@mi.command(input=False, json=mi.JsonForm(plurals={"fault": ("faults", "id")}))
def lab_fault_list(ctx):
    """List the faults, with how many requests each matched and how often it acted."""
    def node(fault: Fault) -> mi.Node:
        counts = zip(("matched", "acted"), (ctx.store.get(canned.COUNTS, fault.name) or "0 0").split())
        return mi.Node("fault", fault.number, (*fault.options.items(), *counts))

    return mi.Reply(nodes=list(map(node, rules_of(ctx, "fault"))))


@mi.command(id=mi.integer(1))
def lab_fault_rm(ctx, id=None):
    """Remove the fault of an ID, or all; replies that it stalls are sent."""
    return remove_rules(ctx, "fault", id)


@mi.command
@with_options(REPLY_OPTIONS)
def lab_reply(ctx, command, *argument, **options):
    """Answer COMMAND with this reply, if its arguments fit the shell patterns; before all others, in the order of their ids. One
    without times replaces an earlier one of the same command and arguments."""
    patterns = list(argument)
    if options.keys().isdisjoint(("reply", "json", "code", "reason")):
        raise mi.Error(400, "reply is missing: reply=TEXT, json=JSON, or code=CODE and reason=REASON; an empty reply= means OK")
    try:
        new = stub_of(0, command, patterns, options)
    except ValueError as error:
        raise mi.Error(400, str(error)) from None
    before = rules_of(ctx, "reply")
    number = add_rule(ctx, "reply", command, patterns, options)
    for old in before:
        if new.when == old.when == canned.When() and (old.command, old.patterns) == (command, patterns):
            remove_rules(ctx, "reply", old.number)
    return mi.Reply(nodes=[mi.Node("id", number)])


@mi.command(id=mi.integer(1))
def lab_reply_rm(ctx, id=None):
    """Remove the reply of an ID, or all."""
    return remove_rules(ctx, "reply", id)


def short(text: str | None, most: int = SHOWN) -> str:
    """A value as shown: nothing for none, and what UTF-8 does not have as an escape."""
    text = (text or "").encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= most else f"{text[:most]}... ({len(text)} characters)"


def escaped(raw: bytes) -> str:
    """The bytes of a request as shown: a Python literal without its quotes, so that \\n is a line feed."""
    return short(repr(raw)[2:-1].replace("\\'", "'"))


def on_a_line(value: str | None, most: int = SHOWN) -> str:
    """A value as shown on a line of text."""
    return json.dumps(short(value, most), ensure_ascii=False)[1:-1].replace('\\"', '"')


def shown_entry(ctx: mi.Context, entry: Entry) -> dict:
    """An entry as lab_journal shows it, which is JSON; in text each member is a node."""
    request = read_request(ctx, entry.raw)
    seconds, ms = divmod(round(entry.time_s * 1000), 1000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{ms:03}Z"
    words = [short(f"{name}={value or ''}" if name else value) for name, value in request.arguments]
    if len(mi.json_text(words)) > ROOM // 2:
        words = [f"... ({len(words)} arguments)"]
    fault = {"fault": entry.rule} if entry.rule else {}
    return {"number": entry.number, "time": moment, "client": short(entry.client), "dialect": request.dialect,
            "command": short(request.name, FEW), "arguments": words, "raw": escaped(entry.raw), "outcome": entry.outcome,
            **fault, "code": entry.code, "ms": round(entry.ms, 3)}


def entry_node(shown: dict) -> mi.Node:
    """The same as a node."""
    lines = {**shown, "command": on_a_line(shown["command"]), "arguments": list(map(on_a_line, shown["arguments"]))}
    named = {"argument" if key == "arguments" else key: value for key, value in lines.items() if key != "number"}
    return mi.Node("request", shown["number"], (), mi.json_nodes(named))


@mi.command(since=mi.integer(0), limit=mi.integer(1))
def lab_journal(ctx, *, command=None, since=0, limit=None):
    """Show the requests that came, the oldest first: those of a command (a shell pattern), behind a number, so many at most.
    `left` of them are not shown; ask for these with since."""
    forgotten, entries = journal_of(ctx.server).entries()
    fitting = [entry for entry in entries if entry.number > since
               and (command is None or is_called(ctx, read_request(ctx, entry.raw).name, command))]
    shown, size = [], 0
    for entry in fitting[:limit]:
        shown.append(shown_entry(ctx, entry))
        size += len(mi.json_text(shown[-1]))
        if size > ROOM:
            break
    counts = {"forgotten": forgotten, "left": len(fitting) - len(shown)}
    nodes = [*(mi.Node(name, count) for name, count in counts.items()), *map(entry_node, shown)]
    return mi.Reply(nodes=nodes, result={**counts, "requests": shown})


def requests_of(ctx: mi.Context) -> list[mi.Request]:
    """All requests of the journal, the oldest first."""
    _, entries = journal_of(ctx.server).entries()
    return [read_request(ctx, entry.raw) for entry in entries]


def shown_request(request: mi.Request) -> str:
    """A request on one line."""
    return on_a_line(" ".join(value or "" for value in (request.name, *request.values[:FEW])), FEW)


def differences(ctx: mi.Context, request: mi.Request, command: str, patterns: list[str]) -> list[str]:
    """What is different in a request from what is wanted."""
    found = [] if is_called(ctx, request.name, command) else [
        f"command is {on_a_line(request.name, FEW)}, not {on_a_line(command, FEW)}"]
    if patterns and len(request.values) != len(patterns):
        found.append(f"{len(request.values)} arguments, not {len(patterns)}")
    found += [f"argument {nth} is {on_a_line(value, FEW)}, not {on_a_line(pattern, FEW)}"
              for nth, (value, pattern) in enumerate(zip(request.values, patterns), 1) if not like(value, pattern)]
    return found[:MOST_DIFFERENCES]


def unmet(reason: str, nearest: list[tuple[str, list[str]]]) -> mi.Reply:
    """The reply to an expectation that is not met: 417, with requests and what differs in each."""
    nodes = [mi.Node("nearest", shown, (), [mi.Node("differs", text) for text in texts]) for shown, texts in nearest]
    data = [{"request": shown, "differs": texts} for shown, texts in nearest]
    return mi.Reply(417, reason, nodes, result=mi.Error(417, reason, data))


@mi.command(times=mi.integer(0), at_least=mi.integer(0), at_most=mi.integer(0))
def lab_verify(ctx, command, *argument, times=None, at_least=None, at_most=None):
    """Check that COMMAND came, with these arguments if any are given (shell patterns): so many times, or once at least."""
    requests, patterns = requests_of(ctx), list(argument)
    found = [request for request in requests
             if is_called(ctx, request.name, command) and are_like(request.values, patterns)]
    bounds = [("", times, times), ("at least ", at_least, None), ("at most ", None, at_most)]
    given = [bound for bound in bounds if bound[1:] != (None, None)] or [("", 1, None)]
    for word, least, most in given:
        if (least is not None and len(found) < least) or (most is not None and len(found) > most):
            wanted = " ".join([command, *patterns])[:FEW]
            others = [request for request in requests[-COMPARED:] if request not in found]
            others.sort(key=lambda request: -difflib.SequenceMatcher(None, shown_request(request), wanted).ratio())
            unique = {shown_request(request): differences(ctx, request, command, patterns) for request in others}
            number = most if least is None else least
            return unmet(f"expected {word}{number}, found {len(found)}", list(unique.items())[:NEAREST])
    return mi.Reply()


@mi.command
def lab_order(ctx, command, *more):
    """Check that these commands (shell patterns) came in this order; others may be between them."""
    names = iter([request.name for request in requests_of(ctx)])
    for nth, wanted in enumerate((command, *more)):
        if not any(is_called(ctx, name, wanted) for name in names):
            where = f"after {(command, *more)[nth - 1]}" if nth else "at all"
            return unmet(f"expected {wanted} {where}, found none", [])
    return mi.Reply()


@mi.command(number=mi.integer(0, 1 << 62))
def lab_seed(ctx, number):
    """Draw from another seed: the n-th match of a rule draws from seed, rule and n; counts start again at 1."""
    ctx.store.remove_fitting(canned.COUNTS, "*")
    ctx.store.put(canned.SETTINGS, "seed", str(number))
    return mi.Reply()


@mi.command(seconds=mi.integer(-(1 << 31), 1 << 31))
def lab_clock(ctx, seconds):
    """Move the lab's clock forward by SECONDS: expiries, and times in replies."""
    if seconds < 0:
        raise mi.Error(400, "seconds takes an integer of at least 0: the clock moves forward, and lab_reset sets it back")
    moved_s = int(ctx.store.change(canned.SETTINGS, "clock", lambda moved: str(int(moved or 0) + seconds)))
    ctx.store.move_clock(moved_s)
    return mi.Reply(nodes=[mi.Node("moved", moved_s)])


class Anew(mi.Context):
    """The context in which a reset calls load(): what commands changed is not to stay."""

    __slots__ = ()
    is_reset = True


@mi.command(timed=False)
def lab_reset(ctx):
    """Go back to the start: forget faults, replies, journal, counters, cached values; faults of the configuration are back,
    modules have what their tables say. Subscriptions stay."""
    ctx.store.move_clock(0)
    modules = ctx.server.registry.modules
    stay = {ctx.server.events.SPACE, *[space for module in modules for space in getattr(module.namespace, "REPLACED", ())]}
    for space in ctx.store.spaces():
        if space not in stay:
            ctx.store.remove_fitting(space, "*")
    ctx.module("statistics").reset_all_statistics(ctx)
    journal_of(ctx.server).clear()
    if wrong := loading.call_each(ctx.server, Anew):
        raise mi.Error(500, "; ".join(wrong))
    return mi.Reply()


def load(ctx):
    """Have the faults and the seed of the configuration, and none else."""
    for space in (RULES, canned.COUNTS, canned.SETTINGS):
        ctx.store.remove_fitting(space, "*")
    ctx.store.put(canned.SETTINGS, "seed", str(ctx.param("seed")))
    ctx.store.put(canned.SETTINGS, "clock", str(round(ctx.store.time_s() - time.time())))  # a reload leaves it as it is
    for options in ctx.param("fault"):
        add_rule(ctx, "fault", options)


PARAMS = [
    mi.Param("fault", [], fault_text, "fault from the start, as lab_fault_add takes it: NAME=VALUE;NAME=VALUE", repeat=True),
    mi.Param("journal_size", 1 << 20, mi.integer(LEAST_SIZE, 1 << 30),
             "size limit of the journal of requests, bytes; the oldest requests go first"),
    mi.Param("seed", 0, mi.integer(0, 1 << 62), "seed of the random numbers for faults with a probability or a range"),
]


def main(argv: list[str]) -> int:
    """`midatagram.py lab`: run a command beside a lab."""
    return mi.import_plugin(str(pathlib.Path(__file__).with_name("lab_process.py"))).run_beside(argv)
