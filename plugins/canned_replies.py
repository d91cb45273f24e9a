"""canned_replies -- reads files of replies that are written down beforehand: plugins/NAME.conf.

A file is in ConfigObj's format and is checked against a specification. Each section becomes a tagged function, so that its
command differs from a Python one in nothing. When a case applies, and what becomes of its reply on the way, is decided by
When and Effect, which the faults of lab.py are made of too.
"""

import functools
import inspect
import os
import pathlib
import random
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import configobj

import midatagram as mi

try:
    from configobj.validate import Validator
except ImportError:  # before configobj 5.0.9
    from validate import Validator

read_tree = mi.shared("text_dialect").read_tree

###############################################################################
# When ########################################################################
###############################################################################
# Strategy: each match of a rule is counted in the store, in one step for all
# children. The n-th match draws from (seed, rule, n), so that a run repeats
# whichever child gets a request.

COUNTS = "lab_counts"  # the space of the store: name of a rule -> "MATCHED ACTED"
SETTINGS = "lab_settings"  # the space of what holds for all rules: the seed
LONGEST_MS = 86400000
POLL_S = 0.02  # how often a stalled reply looks whether it may go


class Turn(NamedTuple):
    """A match to which a rule applies: its draws, and how often the rule has applied, this time included."""

    draws: random.Random
    nth: int


class When(NamedTuple):
    """When a rule applies: to `times` of its matches at most, to each `every`th one behind the first `after`, and to each
    of these with a probability."""

    times: int | None = None
    every: int = 1
    after: int = 0
    probability: float = 1.0

    def turn(self, ctx: mi.Context, name: str) -> Turn | None:
        """Count a match of the rule of that name, in all children; None if the rule does not apply to it."""
        seed, turn = ctx.store.get(SETTINGS, "seed") or "0", None

        def count(value: str | None) -> str:
            nonlocal turn
            matched, acted = map(int, (value or "0 0").split())
            nth, draws = matched + 1 - self.after, random.Random(f"{seed} {name} {matched + 1}")
            drawn = draws.random() < self.probability
            applies = nth > 0 and nth % self.every == 0 and drawn and (self.times is None or acted < self.times)
            turn = Turn(draws, acted + 1) if applies else None
            return f"{matched + 1} {acted + applies}"

        ctx.store.change(COUNTS, name, count)
        return turn


def probability(value: str) -> float:
    """Converter: a number from 0 to 1."""
    try:
        number = float(value)
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1:
        raise ValueError("takes a number from 0 to 1")
    return number


def span(lo: int, hi: int) -> Callable[[str], tuple[int, int]]:
    """Converter: `N`, or `N..M` to draw from, within lo..hi; as (least, most)."""
    bound = mi.integer(lo, hi)

    def convert(value: str) -> tuple[int, int]:
        first, dots, last = str(value).partition("..")
        try:
            least, most = bound(first.strip()), bound((last if dots else first).strip())
        except ValueError:
            least, most = 1, 0
        if least > most:
            raise ValueError(f"takes an integer from {lo} to {hi}, or a range such as 100..300")
        return least, most

    return convert


###############################################################################
# Effect ######################################################################
###############################################################################
# Strategy: an action turns the datagrams of an answer into others. `error` is
# none of these, for a reply with another code is written as any reply is.


class Effect(NamedTuple):
    """What becomes of a reply: an action, and what it needs."""

    action: str = ""
    ms: tuple[int, int] = (0, 0)
    bytes: int = 0

    def on(self, ctx: mi.Context, name: str, draws: random.Random, datagrams: list) -> list:
        """The datagrams that are sent in the place of these, for the rule of that name."""
        return ACTIONS[self.action](datagrams, self, draws, functools.partial(until_removed, ctx, name))


def until_removed(ctx: mi.Context, name: str) -> None:
    """Wait until a rule is removed, or all are."""
    while ctx.store.get(COUNTS, name) is not None:
        time.sleep(POLL_S)


def seconds(effect: Effect, draws: random.Random) -> float:
    """The time that an action takes."""
    return draws.randint(*effect.ms) / 1000


def kill(datagrams: list, effect: Effect, draws: random.Random, wait: Callable) -> list:
    """End this child at once, as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)
    return datagrams


ACTIONS: dict[str, Callable[[list, Effect, random.Random, Callable], list]] = {
    "": lambda sent, effect, draws, wait: sent,
    "error": lambda sent, effect, draws, wait: sent,
    "drop": lambda sent, effect, draws, wait: [],
    "delay": lambda sent, effect, draws, wait: [(seconds(effect, draws), data) for _, data in sent],
    "empty": lambda sent, effect, draws, wait: [(delay, b"") for delay, _ in sent],
    "cut": lambda sent, effect, draws, wait: [(delay, data[:effect.bytes]) for delay, data in sent],
    "garbage": lambda sent, effect, draws, wait: [(delay, draws.randbytes(len(data))) for delay, data in sent],
    "duplicate": lambda sent, effect, draws, wait: [*sent, *sent],
    "late": lambda sent, effect, draws, wait: [*sent, *[(seconds(effect, draws), data) for _, data in sent]],
    "stall": lambda sent, effect, draws, wait: [(wait, data) for _, data in sent],
    "kill": kill,
}
NEEDS = {"delay": "ms", "late": "ms", "cut": "bytes"}  # what an action cannot do without
OPTIONS = {  # of a rule and of a canned case
    "times": mi.integer(1), "every": mi.integer(1), "after": mi.integer(0), "probability": probability,
    "action": mi.one_of(*filter(None, ACTIONS)), "ms": span(0, LONGEST_MS), "bytes": mi.integer(0, mi.LIMIT),
}


def read_options(options: dict) -> tuple[When, Effect]:
    """When and Effect of options as converted, None where one is absent; ValueError when one is missing."""
    given = {name: value for name, value in options.items() if value is not None}
    need = NEEDS.get(given.get("action", ""))
    if need and need not in given:
        raise ValueError(f"action {given['action']} needs {need}")
    when, effect = ({name: given[name] for name in kind._fields if name in given} for kind in (When, Effect))
    return When(**when), Effect(**effect)


###############################################################################
# Templates ###################################################################
###############################################################################

PLACE = re.compile(r"\$\$\{|\$\{([^{}]*)\}")  # a literal ${, or a place that is filled
PLACES = re.compile(r"[0-9]+|now(?:[+-][0-9]+)?|date|counter|id|random -?[0-9]+\.\.-?[0-9]+|[A-Za-z_][\w.-]*")


class Asked(NamedTuple):
    """What a template is filled from; `names` are those of the values by position."""

    ctx: mi.Context
    values: tuple
    names: tuple
    turn: Turn

    def value(self, place: str) -> str:
        """What stands at `${place}`; nothing for an argument that is not there."""
        word, _, rest = place.partition(" ")
        arguments = dict(zip(self.names, self.values))
        arguments.update((name, value) for name, value in self.ctx.request.arguments if name)
        if word.isdecimal():
            return (("", *self.values)[int(word):] or ("",))[0]
        if word.startswith("now") and word[3:4] in ("", "+", "-"):
            return str(int(self.ctx.store.time_s()) + int(word[3:] or 0))
        if word == "random":
            return str(self.turn.draws.randint(*map(int, rest.split(".."))))
        made = {"date": lambda: time.ctime(self.ctx.store.time_s()), "counter": lambda: str(self.turn.nth)}
        return made[word]() if word in made else arguments.get(word) or ""

    def fill(self, text: str, as_json: bool = False) -> str:
        """A template with its values, which are made safe for strings of JSON if need be."""
        def replaced(match: re.Match) -> str:
            if match[1] is None:
                return "${"
            if match[1] == "id":
                return mi.json_text(self.ctx.request.id)
            value = self.value(match[1])
            return mi.json_text(value)[1:-1] if as_json else value

        return PLACE.sub(replaced, text)


def check_template(text: str) -> None:
    """ValueError for a place that nothing can fill."""
    for match in PLACE.finditer(text):
        if match[1] is not None and not PLACES.fullmatch(match[1]):
            raise ValueError(f"has {match[0]}, which is none of ${{1}} ${{name}} ${{now}} ${{now+3600}} ${{date}} ${{counter}} "
                             "${random 1..9} ${id}")


###############################################################################
# Cases #######################################################################
###############################################################################

ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|[rnt\\])")  # in `raw`
ESCAPED = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
NEVER_COUNTED = Turn(random.Random(0), 0)
NO_CASE = mi.Error(500, "No case applies")


def reply_of(code: int, reason: str, body: str, json: str, send: Callable | None = None) -> mi.Reply:
    """A reply whose text is sent as it is; a node of that text, so that the wire has just these bytes. ParseError."""
    result = mi.read_json(mi.encode(json)) if json else None
    if code // 100 != 2 and result is not None:
        result = mi.Error(code, reason, result)
    elif result is None and code // 100 == 2:
        result = mi.JsonText("null") if json else mi.json_tree(read_tree(body), mi.JsonForm(), "OK")
    return mi.Reply(code, reason, (mi.Node(None, body),) if body else (), result=result, send=send)


class Canned(NamedTuple):
    """One canned reply: the patterns of its arguments (None: any arguments), its dialect (None: both), when it applies, and
    what is sent."""

    name: str
    patterns: list[re.Pattern] | None
    dialect: str | None
    when: When
    effect: Effect
    delay_ms: tuple[int, int]
    template: bool
    text: tuple  # code, reason, reply, json
    raw: str | None
    reply: mi.Reply  # as it is without a template

    @property
    def is_counted(self) -> bool:
        """Whether a match of it is to be counted."""
        return (self.when, self.effect) != (When(), Effect()) or self.template or self.delay_ms[0] < self.delay_ms[1]

    @property
    def is_pure(self) -> bool:
        """Whether the reply depends on the request alone."""
        return not self.is_counted and not self.delay_ms[1]

    def fits(self, request: mi.Request, values: tuple) -> bool:
        """Whether the request has its dialect, and the arguments match the patterns, one each."""
        return self.dialect in (None, request.dialect) and (
            self.patterns is None or (len(values) == len(self.patterns) and all(
                pattern.fullmatch(value) for pattern, value in zip(self.patterns, values))))

    def turn(self, ctx: mi.Context) -> Turn | None:
        """Whether it applies to a request that it fits."""
        return self.when.turn(ctx, self.name) if self.is_counted else NEVER_COUNTED

    def answer(self, ctx: mi.Context, values: tuple, names: tuple, turn: Turn) -> mi.Reply:
        """The reply to a request."""
        if self.delay_ms[1]:
            time.sleep(turn.draws.randint(*self.delay_ms) / 1000)
        reply, raw = self.reply, self.raw
        if self.template:
            fill = Asked(ctx, values, names, turn).fill
            code, reason, body, json = self.text
            reply = reply_of(code, fill(reason), fill(body), fill(json, as_json=True))
            raw = None if raw is None else fill(raw, as_json=ctx.request.dialect == "jsonrpc")
        if raw is None and not self.effect.action:
            return reply

        def send(written: bytes) -> list:
            data = written if raw is None else mi.encode(raw)
            return self.effect.on(ctx, self.name, turn.draws, [(0, data)])

        return reply._replace(send=send)


def unescape(text: str) -> str:
    """Text of `raw` with its escapes replaced by the bytes that they mean."""
    return mi.decode(ESCAPE.sub(lambda match: ESCAPED.get(match[1]) or bytes([int(match[1][1:], 16)]), mi.encode(text)))


###############################################################################
# Files #######################################################################
###############################################################################

CANNED_KEYS = """
arguments = force_list(default=None)
no_arguments = boolean(default=False)
dialect = option("text", "jsonrpc", default=None)
code = integer(min=-2147483648, max=999, default=200)
reason = string(default="OK")
reply = string(default="")
json = string(default="")
raw = string(default=None)
template = boolean(default=False)
delay = string(default="0")
""" + "".join(f"{name} = string(default=None)\n" for name in OPTIONS)
CANNED_SPEC = f"""[__many__]\nhelp = string(default="")\nnames = force_list(default=None)\nreplace = boolean(default=False)
{CANNED_KEYS}[[__many__]]{CANNED_KEYS}"""
COMMAND_KEYS = {"help", "names", "replace"}
OTHER_SECTIONS = (":statistics", ":events")


class Source(NamedTuple):
    """A file of canned replies, to say where a mistake is."""

    path: str
    text: str

    @property
    def stem(self) -> str:
        """The name of its module."""
        return pathlib.Path(self.path).stem

    def mistake(self, word: str, message: str) -> mi.ConfigError:
        """What is wrong in the first line that starts with a word."""
        return mi.ConfigError(self.path, mi.line_of(self.text, word), message)


def read_file(path: str) -> mi.Module:
    """A file of canned replies as a Module; ConfigError."""
    source = Source(path, mi.read_source(path))
    spec = configobj.ConfigObj(CANNED_SPEC.splitlines(), interpolation=False, list_values=False, _inspec=True)
    try:
        content = configobj.ConfigObj(source.text.split("\n"), configspec=spec, interpolation=False, raise_errors=True)
    except configobj.ConfigObjError as error:
        what = str(error).split(" at line")[0]
        form = "; the form is KEY = VALUE, and several lines stand between ''' and '''" if "Invalid line" in what else ""
        raise mi.ConfigError(path, error.line_number or 0, f"{what}{form}") from None
    others = {name: content.pop(name) for name in OTHER_SECTIONS if name in content}
    try:
        gives_way = mi.boolean(content.pop("gives_way", "no"))
    except ValueError as error:
        raise source.mistake("gives_way", f"gives_way {error}") from None
    check_canned(content, source)
    names: dict[str, Any] = {name: canned_command(content[name], source) for name in content.sections}
    names.update(read_statistics(others.get(":statistics", {}), source), load=forget_counts)
    names.update(read_events(others[":events"], source) if ":events" in others else {})
    module = mi.Module(source.stem, names, path)
    module.notes = [note for name in content.sections for note in doubts(content[name], source.text)]
    if gives_way:
        module.settle = functools.partial(give_way, module)
    return module


def give_way(own: mi.Module, modules: Iterable[mi.Module]) -> None:
    """Leave out what other modules have: commands, statistics and events of a name."""
    others = [module for module in modules if module is not own]
    commands = {command.name for module in others for command in module.commands}
    stats = {(stat.group, stat.name) for module in others for stat in module.stats}
    events = {event.name for module in others for event in module.events}
    own.commands = [command for command in own.commands if command.name not in commands]
    own.stats = [stat for stat in own.stats if (stat.group, stat.name) not in stats]
    own.events = [event for event in own.events if event.name not in events]


def doubts(section: Any, text: str) -> Iterator[tuple[int, str]]:
    """What will not work as it is meant: (line, text). Blanks that indent, and cases that an earlier one leaves nothing."""
    cases = cases_of(section)
    for case in cases:
        for line in case["reply"].split("\n"):
            if re.match("\t* +[^ ]", line):
                yield (mi.line_of(text, line) or mi.line_of(text, "reply"),
                       f"{case.name}: a line of the reply is indented with blanks; each level takes one TAB")
    for nth, late in enumerate(cases):
        if any(patterns_of(case) in (None, patterns_of(late)) and case["dialect"] in (None, late["dialect"])
               and not any(case[key] for key in When._fields) for case in cases[:nth]):
            line = mi.line_of(text, f"[[{late.name}") or mi.line_of(text, f"[{late.name}]")
            yield line, f"{late.name} is never reached: an earlier case fits all that it fits"


def cases_of(section: Any) -> list:
    """The sections of a command's cases; its own keys, if it has any or no cases, are the last one."""
    cases = [section[name] for name in section.sections]
    own = set(section.scalars) - set(section.defaults) - COMMAND_KEYS
    return cases if cases and not own else [*cases, section]


def patterns_of(case: Any) -> list | None:
    """The patterns of a case's arguments as written; None for any arguments."""
    return [] if case["no_arguments"] else case["arguments"]


def forget_counts(ctx: mi.Context) -> None:
    """At each start and reload sequences begin anew."""
    ctx.store.remove_fitting(COUNTS, f"{ctx.own.name}:*")


def check_canned(content: Any, source: Source) -> None:
    """Check the sections of a ConfigObj, their values against its specification, then their keys; ConfigError."""
    for name in content.sections:
        if name.startswith(":"):
            raise source.mistake(f"[{name}", f'"{name}" is none of {", ".join(OTHER_SECTIONS)}')
    results = content.validate(Validator(), preserve_errors=True)
    for sections, key, problem in configobj.flatten_errors(content, results):
        form = "; the form is code = NUMBER" if key == "code" else ""
        if isinstance(functools.reduce(lambda section, name: section[name], sections, content).get(key), list):
            form = "; a value with a comma stands in quotes"
        raise source.mistake(key or f"[{sections[-1]}", f"{'/'.join(sections)}: {key}: {problem}{form}")
    for sections, name in configobj.get_extra_values(content):
        kind, keys = "section" if sections else "command", content.configspec["__many__"].scalars
        raise source.mistake(name, f'"{name}" is no key of a {kind}; keys are {", ".join(keys)}{mi.nearest(name, keys)}')


def canned_command(section: Any, source: Source) -> Callable:
    """The handler of a command: the first case whose patterns fit, and which applies, answers. ConfigError."""
    cases = [canned_case(case, source, section.name if case is section else f"{section.name}/{case.name}")
             for case in cases_of(section)]
    names = tuple(section["names"] or ())

    def answer(ctx, *arguments):
        values, fitting = in_order(ctx.request, arguments, names), False
        for case in cases:
            if case.fits(ctx.request, values):
                fitting, turn = True, case.turn(ctx)
                if turn:
                    return case.answer(ctx, values, names, turn)
        counts = [len(case.patterns or ()) for case in cases]
        raise NO_CASE if fitting else mi.BAD_PARAMETER if len(values) in counts else mi.WRONG_COUNT

    function: Any = mi.command(section.name, help=section["help"], pure=all(case.is_pure for case in cases),
                               json=mi.JsonForm(nameless=not names), replace=section["replace"])(answer)
    function.mi_line = mi.line_of(source.text, f"[{section.name}]")
    function.mi_delay_ms = max(case.delay_ms[1] for case in cases)
    if names:
        function.__signature__ = signature_of(names, source)
    return function


def signature_of(names: tuple, source: Source) -> inspect.Signature:
    """The signature of a handler whose arguments have these names, all of them optional; ConfigError."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    try:
        return inspect.Signature([inspect.Parameter("ctx", kind),
                                  *(inspect.Parameter(name, kind, default=None) for name in names)])
    except ValueError as error:
        raise source.mistake("names", f"names: {error}") from None


def in_order(request: mi.Request, arguments: tuple, names: tuple) -> tuple:
    """The values of a request in the order of `names`, if it gives all by these; one left out in between is empty."""
    given = [value for value in arguments if value is not None]
    if names and request.dialect == "text" and request.names and set(request.names) <= set(names):
        by_name = dict(request.arguments)
        last = max(names.index(name) for name in by_name)
        given = [by_name.get(name) or "" for name in names[:last + 1]]
    return tuple(given)


def canned_case(section: Any, source: Source, name: str) -> Canned:
    """One case of a command; ConfigError."""
    arguments = patterns_of(section)
    if 0 <= section["code"] < 100:
        raise source.mistake("code", f"{name}: code has three digits, or is negative for an error of JSON-RPC")
    try:
        patterns = None if arguments is None else [re.compile(pattern, re.S) for pattern in arguments]
    except re.error as error:
        raise source.mistake("arguments", f"arguments of {section.name}: not a pattern: {error}") from None
    options = {key: convert(source, section, key, converter) for key, converter in OPTIONS.items()}
    try:
        when, effect = read_options(options)
    except ValueError as error:
        raise source.mistake("action", f"{name}: {error}") from None
    delay_ms = convert(source, section, "delay", span(0, LONGEST_MS))
    body = section["reply"].removeprefix("\n").removesuffix("\n")
    text = section["code"], section["reason"], body, section["json"]
    for key in ("reason", "reply", "json", "raw") if section["template"] else ():
        convert(source, section, key, check_template)
    try:
        reply = reply_of(*text[:3], PLACE.sub("0", text[3]) if section["template"] else text[3])
    except mi.ParseError as error:
        raise source.mistake("json", f"json of {section.name}: not JSON: {error}") from None
    raw = None if section["raw"] is None else unescape(section["raw"])
    if raw is not None and len(mi.encode(raw)) > mi.LIMIT:
        raise source.mistake("raw", f"raw of {section.name}: {len(mi.encode(raw))} bytes, {mi.LIMIT} is the most")
    return Canned(f"{source.stem}:{name}", patterns, section["dialect"], when, effect, delay_ms, section["template"], text, raw,
                  reply)


def convert(source: Source, section: Any, key: str, converter: Callable) -> Any:
    """The value of a key through a converter, None if it is absent; ConfigError."""
    try:
        return None if section[key] is None else converter(section[key])
    except ValueError as error:
        raise source.mistake(key, f"{section.name}: {key} {error}") from None


###############################################################################
# Statistics and events #######################################################
###############################################################################

KNOT_S = 10.0  # between two values of a walk that are drawn; between them it goes straight
STEP_S = 0.1  # how often counters with a rate are counted up


def read_statistics(section: Any, source: Source) -> dict:
    """The rows of [:statistics], and the job that counts up those with a rate; ConfigError."""
    stats, rates = [], {}
    for key in section:
        group, _, name = key.rpartition(":")
        word, _, rest = str(section[key]).partition(" ")
        try:
            if word == "rate":
                rates[name], read = positive(rest), None
            else:
                read = statistic(key, word, rest)
        except ValueError as error:
            raise source.mistake(key, f"{key}: {error}") from None
        stats.append(mi.Stat(name, f"canned: {section[key]}", group, read is None, read))
    return {"STATS": stats, **({"count_up": mi.every(STEP_S, where="one")(counting(rates))} if rates else {})}


def positive(text: str) -> float:
    """Converter: a decimal number above 0."""
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) or not float(text):
        raise ValueError("takes a number above 0, such as 12.5")
    return float(text)


def statistic(key: str, word: str, rest: str) -> Callable[[mi.Context], int]:
    """What reads a statistic that is a level; ValueError."""
    if re.fullmatch(r"-?[0-9]{1,18}", word) and not rest:
        return lambda ctx: int(word)
    if word == "walk":
        least, most = span(0, 1 << 53)(rest)
        return lambda ctx: walked(ctx, key, least, most)
    if word == "count" and rest:
        return lambda ctx: nodes_of(ctx, rest)
    raise ValueError("the form is a number, or `rate 12.5`, `walk 0..500` or `count COMMAND`")


def walked(ctx: mi.Context, key: str, least: int, most: int) -> int:
    """The present value of a walk, which is the same in all children."""
    seed = ctx.store.get(SETTINGS, "seed") or "0"
    knot, part = divmod(ctx.store.time_s() / KNOT_S, 1)
    before, after = (random.Random(f"{seed} {key} {int(knot) + step}").randint(least, most) for step in (0, 1))
    return round(before + (after - before) * part)


def nodes_of(ctx: mi.Context, name: str) -> int:
    """How many nodes the reply of a command without arguments has; 0 if there is no such command."""
    command = ctx.server.registry.commands.get(name)
    if command is None:
        return 0
    reply = command.function(mi.Context(command.module, mi.Request(name)))
    if isinstance(reply, mi.Reply):
        return sum(len(read_tree(node[1])) if node[0] is None else 1 for node in reply.nodes)
    return len(reply)


def counting(rates: dict[str, float]) -> Callable[[mi.Context], None]:
    """A job that counts up statistics by their rates per second."""
    counted = dict.fromkeys(rates, 0)
    started_s: list[float] = []

    def count_up(ctx: mi.Context) -> None:
        now_s = ctx.store.time_s()
        if not started_s:
            started_s.append(now_s)
        for name, rate in rates.items():
            if name not in ctx.own.columns:  # another module has it, see give_way()
                continue
            due = max(counted[name], int((now_s - started_s[0]) * rate))
            ctx.count(name, due - counted[name])
            counted[name] = due

    return count_up


def read_events(section: Any, source: Source) -> dict:
    """The events of [:events] and of the sections in it, with the functions that raise them; ConfigError."""
    groups = [section, *(section[name] for name in section.sections)]
    names: dict[str, Any] = {}
    events: dict[str, mi.Event] = {}
    for number, group in enumerate(groups):
        own = {key: attributes_of(group, key, source) for key in group.scalars if key not in ("every", "on")}
        triggers = [key for key in ("every", "on") if key in group.scalars]
        if own and len(triggers) != 1:
            raise source.mistake(next(iter(own)), f"events of [{group.name}] need either every = SECONDS or on = COMMAND")
        events.update((name, mi.Event(name, f"canned, of {source.stem}")) for name in own)
        if "on" in triggers:
            commands = group["on"] if isinstance(group["on"], list) else [group["on"]]
            names[f"on_{number}"] = mi.around(*commands)(raising_after(own))
        elif triggers:
            names[f"every_{number}"] = mi.every(convert(source, group, "every", positive), where="one")(raising(own))
    return {"EVENTS": list(events.values()), **names}


def attributes_of(group: Any, key: str, source: Source) -> dict[str, str]:
    """The attributes of an event; ConfigError."""
    items = group[key] if isinstance(group[key], list) else [group[key]]
    if not key.startswith("E_") or not all("=" in item for item in items if item):
        raise source.mistake(key, f'{key}: the form is E_NAME = "attribute=value", ..., with every = SECONDS or on = COMMAND')
    return dict(item.split("=", 1) for item in items if item)


def raising(events: dict[str, dict]) -> Callable[[mi.Context], None]:
    """A job that raises events."""
    def raise_all(ctx: mi.Context) -> None:
        for name, attributes in events.items():
            ctx.raise_event(name, **attributes)

    return raise_all


def raising_after(events: dict[str, dict]) -> Callable:
    """A function around commands that raises events when one is answered."""
    raise_all = raising(events)

    def answer(ctx: mi.Context, request: mi.Request, proceed: Callable[[], mi.Answer]) -> mi.Answer:
        answered = proceed()
        raise_all(ctx)
        return answered

    return answer
