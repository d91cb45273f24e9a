"""record -- writes a file of canned replies from what a live server answers, or from what trace_file wrote.

    midatagram.py record -s SOCKET -o FILE.conf [REQUEST...]
    midatagram.py record --trace FILE.jsonl -o FILE.conf

Strategy: wherever it comes from, what was asked and answered is a row. Rows of one request become cases, cases become text,
and the text is read back by canned_replies itself and asked for each row, before there is a file.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import midatagram as mi

call = mi.import_plugin(os.path.join(os.path.dirname(__file__), "call.py"))
read_tree = mi.shared("text_dialect").read_tree

# A command is not asked unless it is named when one of these words is in its name (`set` also as setx, seti). Words are parted
# by `_`, `.`, `:` or a capital: cache_store, cache:store, htable.setxs, pv.shvSet.
CHANGING = (
    "add answer block bridge broadcast cancel cleanup clear close cluster commit crash create del delete destroy "
    "disable drop enable end execute fetch fix flush force hold insert invite kill lab lock mute notify ping pop "
    "publish push raise refer refresh register release reload remove reply reset resize restore rm rollback "
    "rotate run send set shutdown start stop store subscribe switch sync teardown terminate transfer trigger uac "
    "unblock unhold unlock unmute unset unsubscribe update upsert write")
DUMPING = r"^(?:mem|mod|pkg|shm|rpm|dbt|db_text).*(?:dump|mem|check)"  # these write to the log or to files
CHANGES = re.compile(rf"(?:^|[_.:])(?:{'|'.join(CHANGING.split())}|(?:un)?set[a-z]{{0,2}})(?:$|[_.:])|{DUMPING}")
READING = {"uac_registrant:list"}  # in spite of its name
ARGUMENTS = dict.fromkeys(("get_statistics", "statistics:get", "stats.get_statistics"), "all")  # they say nothing without
PROBE_S = 2.0  # a server that speaks a dialect answers `which` sooner


class Row(NamedTuple):
    """A request and its reply, which took `ms`. dialect: "text" or "jsonrpc"; values: of the arguments, by position."""

    dialect: str
    name: str
    values: tuple[str, ...]
    request: bytes
    reply: bytes
    ms: float

    def __str__(self) -> str:
        return f"{shlex.join([self.name, *self.values])} ({self.dialect})"


def row_of(request: bytes, reply: bytes, ms: float) -> Row | None:
    """The row of an exchange; None for a request that no command can be given, or a reply that is empty."""
    try:
        if mi.JSON_START.match(request):
            asked, params = mi.read_envelope(mi.read_json(request))
            given = params.values() if isinstance(params, dict) else params or ()
            items = [item for value in given for item in (value if isinstance(value, list) else [value])]
            return Row("jsonrpc", asked.name, tuple(mi.text_of(item) or "" for item in items), request, reply, ms) \
                if asked.name and reply else None
        line = mi.read_first_line(request)
        values, _ = mi.read_arguments(request[len(line):])
        return Row("text", mi.decode(line[1:-2]), tuple(value or "" for value in values), request, reply, ms) \
            if mi.first_line(mi.decode(line[1:-2])) == line and reply else None
    except mi.ParseError:
        return None


###############################################################################
# A live server
###############################################################################


class Live:
    """A server that is asked in the dialects in which it answers; `names`: dialect -> what it lists. StartError if none."""

    def __init__(self, place: mi.Address, timeout_s: float):
        self.place, self.timeout_s, self.why = place, timeout_s, "it answers neither text nor JSON-RPC"
        listed = {dialect: self.list_names(dialect) for dialect in ("text", "jsonrpc")}
        self.names = {dialect: names for dialect, names in listed.items() if names is not None}
        if not self.names:
            raise mi.StartError(mi.EXIT_NOT_RUNNING, f"no reply from {place}: {self.why}")

    def send(self, request: bytes, most_s: float = 1e6) -> tuple[bytes, float]:
        """The reply to a request, and how many ms it took; OSError for none."""
        start_s = time.monotonic()
        reply = mi.ask(self.place, request, min(self.timeout_s, most_s))
        return reply, (time.monotonic() - start_s) * 1000

    def list_names(self, dialect: str) -> list[str] | None:
        """The commands that `which` lists, or Kamailio's system.listMethods; None if the dialect is not answered."""
        for command in ("which", "system.listMethods") if dialect == "jsonrpc" else ("which",):
            try:
                reply = mi.decode(self.send(request_for(dialect, command, ()), PROBE_S)[0])
            except OSError as error:
                self.why = error.strerror or str(error)
                return None
            if dialect == "text":
                return reply.split("\n")[1:-2] if re.match(r"\d+ [^\n]*\n", reply) else None
            try:
                message = json.loads(reply)
            except ValueError:
                return None
            if isinstance(message, dict) and isinstance(message.get("result"), list):
                return message["result"]
        return []

    def harmless(self) -> tuple[list[list[str]], list[str]]:
        """What is asked when nothing is named, as words, and the commands that are left out."""
        names = list(dict.fromkeys(itertools.chain.from_iterable(self.names.values())))
        changing = [name for name in names if changes_state(name)]
        return [[name, *ARGUMENTS.get(name, "").split()] for name in names if name not in changing], changing

    def rows(self, requests: list[list[str]], rounds: int, every_s: float) -> Iterator[Row]:
        """Ask all requests in all dialects, and that again in each round."""
        start_s = time.monotonic()
        for number in range(rounds):
            time.sleep(max(0.0, start_s + number * every_s - time.monotonic()))
            for words, dialect in itertools.product(requests, self.names):
                request = written(dialect, words)
                try:
                    row = request and row_of(request, *self.send(request))
                except OSError:
                    print(f"midatagram: no reply to {shlex.join(words)} ({dialect})", file=sys.stderr, flush=True)
                    continue
                if row:
                    yield row


def written(dialect: str, words: list[str]) -> bytes | None:
    """The request for COMMAND [ARG...]; None if it cannot be written in that dialect."""
    with contextlib.suppress(ValueError):
        return call.request_of(words, dialect == "jsonrpc")
    return None


def request_for(dialect: str, name: str, values: Iterable[str]) -> bytes:
    """The request for a command with values by position; ValueError if it cannot be written in that dialect."""
    if dialect == "text":
        return call.write_request(name, [(None, value) for value in values])
    params = {"params": list(values)} if values else {}
    return mi.encode(mi.json_text({"jsonrpc": "2.0", "method": name, **params, "id": 1}))


def changes_state(name: str) -> bool:
    """Whether a command may change something, as far as its name says."""
    return CHANGES.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) is not None and name not in READING


def traced(path: str) -> list[Row]:
    """The rows of a file that trace_file wrote; what has no reply there, as an unknown command, is left out. ValueError."""
    rows = []
    with open(path, encoding="ascii") as file:
        for number, line in enumerate(filter(str.strip, file), 1):
            try:
                trace = json.loads(line)
                ms = (trace["replied_s"] - trace["requested_s"]) * 1000
                row = row_of(mi.encode(trace["request"]), mi.encode(trace["reply"] or ""), ms) if trace["command"] else None
            except (ValueError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{path}:{number}: no line of trace_file") from None
            rows += [row] if row else []
    return rows


###############################################################################
# What nobody else is to know
###############################################################################

SECRET = r"""(?i:\b[\w.-]*(?:password|passwd|secret|token|ha1|api_?key)[\w.-]*(?:::? ?|=|"\s*:\s*"))"""  # then its value
USER = r"""(?:\bsips?:|\btel:|\b(?i:aor|username|user)(?:::? ?|=|"\s*:\s*"))"""  # then a user part, perhaps @ and a host
AORS = re.compile(r"ul_|usrloc:")  # the second argument of these commands is an address of record
IP = r"(?<![\w.])(?:\d{1,3}(?:\.\d{1,3}){3}(?!\.?\d)|(?<!:)[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:]))"
NETWORKS = ("192.0.2.", "198.51.100.", "203.0.113.")  # for documentation
LONG = 5  # digits of a number that is replaced wherever it stands; a shorter one may be something else


class Scrubber:
    """Replaces user parts, addresses and secrets: the same one always by the same."""

    def __init__(self, rows: Iterable[Row]):
        self.stands_for: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.users: set[str] = set()
        texts = [mi.decode(data) for row in rows for data in (row.request, row.reply)]
        for row in rows:
            if AORS.match(row.name) and len(row.values) > 1:
                texts.append(f"aor:: {row.values[1]}")
        for text in texts:
            self.learn(text)
        words = [word for word in self.stands_for if len(word) >= (LONG if word.isdigit() else 3)]
        longest = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) or r"(?!)"
        self.pattern = re.compile(rf"({SECRET})([^\s\"&;,]+)|({USER})([^\s@\";:,<>&]+)|(?<![\w.])({longest})(?![\w])")

    def learn(self, text: str) -> None:
        """Choose what stands for each user part, host, address and secret of a text."""
        for value in re.findall(rf"{SECRET}([^\s\"&;,]+)", text):
            self.choose(value, "secret")
        for value, host in re.findall(r"://(?:[^\s/:@]+:([^\s/@]+)@)?([\w.-]+)", text):
            self.choose(value, "secret")
            self.choose_host(host)
        for lead, user, host in re.findall(rf"({USER})([^\s@\";:,<>&]+)(?:@([\w.-]+))?", text):
            if lead.startswith("sip") and not host:
                host = user
            elif not is_address(user):
                self.users.add(user)
                self.choose(user, "user")
            self.choose_host(host)
        for place in filter(is_address, re.findall(IP, text)):
            self.choose(place, "address")

    def choose_host(self, host: str) -> None:
        """Choose what stands for the name of a host."""
        if re.search(r"[A-Za-z]", host) and "." in host:
            self.choose(host, "host")

    def choose(self, word: str, kind: str) -> None:
        """Choose what stands for a word."""
        kind = "address6" if kind == "address" and ":" in word else kind
        if not word or word in self.stands_for:
            return
        number = self.counts[kind] = self.counts.get(kind, 0) + 1
        network, last = divmod(number - 1, 254)
        self.stands_for[word] = {
            "address": f"{NETWORKS[network]}{last + 1}" if network < len(NETWORKS) else f"10.{network}.0.{last + 1}",
            "address6": f"2001:db8::{number:x}", "host": f"host{number}.example",
            "user": f"{number:0{len(word)}d}" if word.isdigit() else f"user{number}"}.get(kind, f"{kind}{number}")

    def text(self, text: str) -> str:
        """A text with all of it replaced."""
        def replaced(match: re.Match) -> str:
            lead, word = (match[1] or match[3] or ""), (match[2] or match[4] or match[5])
            return f"{lead}{self.stands_for.get(word, word)}"

        return self.pattern.sub(replaced, text)

    def argument(self, value: Any) -> Any:
        """An argument with all of it replaced: text, or what is in an array or object."""
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if isinstance(value, dict):
            return {name: self.argument(item) for name, item in value.items()}
        if not isinstance(value, str):
            return value
        user, at, host = value.partition("@")
        return f"{self.stands_for[user]}{at}{self.text(host)}" if user in self.users else self.text(value)

    def row(self, row: Row) -> Row:
        """A row with all of it replaced."""
        if row.dialect == "text":
            values, names = mi.read_arguments(row.request[len(mi.read_first_line(row.request)):])
            request = call.write_request(row.name, zip(names or itertools.repeat(None), map(self.argument, values)))
        else:
            message = mi.read_json(row.request)
            params = {"params": self.argument(message["params"])} if "params" in message else {}
            request = mi.encode(mi.json_text({**message, **params}))
        return row_of(request, mi.encode(self.text(mi.decode(row.reply))), row.ms) or row


def is_address(word: str) -> bool:
    """Whether a word is the IP address of another host than this one."""
    with contextlib.suppress(ValueError):
        place = ipaddress.ip_address(word.strip("[]"))
        return not (place.is_loopback or place.is_unspecified)
    return False


###############################################################################
# Rows become cases, cases become text
###############################################################################


class Case(NamedTuple):
    """One case of a command: its keys as they are written. The comments before the first one of a request are for verify: the
    places whose values differ from round to round, and what was asked, where arguments by position say it otherwise."""

    keys: dict[str, str]
    comments: list[str]


def form_of(row: Row, pretty: bool) -> dict[str, str]:
    """The keys of a canned reply that has a row's bytes; the whole datagram where nothing else says it."""
    reply = mi.decode(row.reply)
    try:
        return text_form(reply) if row.dialect == "text" else json_form(reply, pretty)
    except (ValueError, mi.ParseError, AttributeError, KeyError, TypeError):  # of JSON that is no JSON-RPC
        return raw_form(row)


def text_form(reply: str) -> dict[str, str]:
    """The keys for a text reply; ValueError for one that is not written as a tree is."""
    match = re.fullmatch(r"([1-9]\d\d) ([^\n\r\0]*)\n([^\r\0]*\n|)\n", reply)
    if match is None or match[3] == "\n":
        raise ValueError("no tree")
    body = {"reply": quoted(f"\n{match[3]}")} if match[3] else {}
    return {**heading(int(match[1]), match[2]), **body}


def json_form(reply: str, pretty: bool) -> dict[str, str]:
    """The keys for a JSON-RPC reply; ValueError for one that is written otherwise than cJSON writes it, or has what no key
    says; ParseError, AttributeError, KeyError, TypeError for what is no reply."""
    message = mi.read_json(mi.encode(reply))
    told, data = mi.Reply(result=message.get("result")), message.get("result")
    if "error" in message:
        code, reason, data = message["error"]["code"], message["error"]["message"], message["error"].get("data")
        if type(code) is not int or code // 100 == 2 or not (-2**31 <= code < 0 or 100 <= code <= 999):
            raise ValueError("no code of an error")
        told = mi.Reply(code, reason, result=mi.Error(code, reason, data))
    elif data is None:
        raise ValueError("no result")
    if mi.write_jsonrpc(told, mi.Request("", id=message.get("id")), mi.JsonForm(), pretty) != reply:
        raise ValueError("written otherwise")
    value = {} if data is None else {"json": quoted(mi.json_text(data).replace("'", "\\u0027"))}
    return {**heading(told.code, told.reason), **value}


def heading(code: int, reason: str) -> dict[str, str]:
    """The keys for code and reason, where they are not 200 OK."""
    return {**({} if code == 200 else {"code": f"{code}"}), **({} if reason == "OK" else {"reason": quoted(reason)})}


def raw_form(row: Row) -> dict[str, str]:
    """The keys for a whole datagram, with the place of the id of JSON-RPC."""
    reply = mi.decode(row.reply)
    if row.dialect == "text":
        return {"raw": quoted(escaped(reply))}
    asked, _ = mi.read_envelope(mi.read_json(row.request))
    written = mi.json_text(asked.id)
    match = re.fullmatch(rf'(.*"id":\s*){re.escape(written)}(\s*}}\s*)', reply, re.S)
    if match is None:
        return {"raw": quoted(escaped(reply))}
    return {"raw": quoted(escaped(match[1]).replace("${", "$${") + "${id}" + escaped(match[2])), "template": "yes"}


def quoted(text: str) -> str:
    """A value as ConfigObj reads it back; ValueError if it cannot."""
    for quote in ("'''", '"""') if "\n" in text else ("'", '"', "'''", '"""'):
        if quote not in text and text[-1:] != quote[0]:
            return f"{quote}{text}{quote}"
    raise ValueError(f"no quotes for {text!r}")


def escaped(text: str) -> str:
    r"""Bytes as `raw` has them: \n, \r, \t, and \xNN for each byte that is not plain."""
    names = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return re.sub(r"[^ -&(-\[\]-~]", lambda match: names.get(match[0]) or "".join(
        f"\\x{byte:02x}" for byte in mi.encode(match[0])), text)


def unescaped(text: str) -> bytes:
    """The bytes that escaped() wrote."""
    names = {b"n": b"\n", b"r": b"\r", b"t": b"\t"}
    return re.sub(rb"\\(?:x([0-9a-f]{2})|([nrt]))", lambda match: names[match[2]] if match[2] else bytes([int(match[1], 16)]),
                  mi.encode(text))


def literal(value: str) -> str:
    """The pattern that fits a value alone, in characters that need no quotes of another kind."""
    def escape(match: re.Match) -> str:
        char, code = match[0], ord(match[0])
        if "!" <= char <= "~" and char not in "'\"":
            return f"\\{char}"
        return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return re.sub(r"[^A-Za-z0-9_@/:;=,~!%&<> -]", escape, value)


def cases_of(rows: Iterable[Row], pretty: bool) -> dict[str, list[Case]]:
    """The cases of each command, in the order of the requests."""
    asked: dict[tuple, dict[str, list[Row]]] = {}
    for row in rows:
        asked.setdefault((row.name, row.values), {}).setdefault(row.dialect, []).append(row)
    cases: dict[str, list[Case]] = {}
    for (name, values), by_dialect in asked.items():
        arguments = {"arguments": ", ".join(f"'{literal(value)}'" for value in values)} if values else {"no_arguments": "yes"}
        runs = {dialect: runs_of(same, pretty) for dialect, same in by_dialect.items()}
        both = merged({dialect: found[0][0] for dialect, found in runs.items() if len(found) == 1})
        if both is not None:
            every = [row for same in by_dialect.values() for row in same]
            comments = [comment for same in by_dialect.values() for comment in as_asked(same[0])]
            found = [Case({**arguments, **delay_of(every), **both}, comments)]
        else:
            found = [case for dialect, run in runs.items()
                     for case in sequence({**arguments, "dialect": dialect}, run)]
        cases.setdefault(name, []).extend(found)
    return cases


def runs_of(rows: list[Row], pretty: bool) -> list[tuple[dict, list[Row]]]:
    """Rows of one request, those in a row with one reply together."""
    forms = [(form_of(row, pretty), row) for row in rows]
    return [(form, [row for _, row in group]) for form, group in itertools.groupby(forms, key=lambda pair: pair[0])]


def merged(forms: dict[str, dict]) -> dict[str, str] | None:
    """The keys of one case for both dialects, None where one case cannot say it."""
    text, jsonrpc = forms.get("text"), forms.get("jsonrpc")
    if text is None or jsonrpc is None or "raw" in text or "raw" in jsonrpc:
        return None
    success = text.get("code", "2").startswith("2") and "code" not in jsonrpc
    return {**text, **jsonrpc} if success or heading_of(text) == heading_of(jsonrpc) else None


def heading_of(form: dict) -> tuple:
    """Code and reason of some keys."""
    return form.get("code"), form.get("reason")


def sequence(keys: dict[str, str], runs: list[tuple[dict, list[Row]]]) -> Iterator[Case]:
    """A case for each reply of a request, in turn; the last one stays."""
    places = [values_of(row.reply) for _, same in runs for row in same[:1]]
    names = list(dict.fromkeys(itertools.chain.from_iterable(places)))
    varies = [f"varies: {escaped(name)}" for name in names if len({found.get(name) for found in places}) > 1]
    comments = [*as_asked(runs[0][1][0]), *varies]
    for number, (form, same) in enumerate(runs, 1):
        times = {} if number == len(runs) else {"times": f"{len(same)}"}
        yield Case({**keys, **times, **delay_of(same), **form}, comments if number == 1 else [])


def as_asked(row: Row) -> list[str]:
    """A comment with the request, unless it is the one for its values by position."""
    if row.dialect == "jsonrpc":
        _, params = mi.read_envelope(mi.read_json(row.request))
        usual = (params or []) == list(row.values)
    else:
        try:
            usual = row.request == request_for("text", row.name, row.values)
        except ValueError:
            usual = False
    return [] if usual else [f"asked: {escaped(mi.decode(row.request))}"]


def delay_of(rows: list[Row]) -> dict[str, str]:
    """The key for how long replies took; none for less than a millisecond."""
    least, most = (round(pick(row.ms for row in rows)) for pick in (min, max))
    return {"delay": f"{least}" if least == most else f"{least}..{most}"} if most > 0 else {}


def values_of(reply: bytes) -> dict[str, Any]:
    """What a reply of either dialect says: place -> value, as `AOR[2]/Contact/Expires`. Its id is left out."""
    text = mi.decode(reply)
    with contextlib.suppress(mi.ParseError):
        message = mi.read_json(reply)
        if isinstance(message, dict):
            return dict(json_places("", {name: value for name, value in message.items() if name not in ("id", "jsonrpc")}))
    first, _, body = text.partition("\n")
    return {"first line": first, **dict(tree_places("", read_tree(body.removesuffix("\n").removesuffix("\n"))))}


def json_places(place: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The places and values of a JSON value."""
    if isinstance(value, (dict, list)) and value:
        pairs = value.items() if isinstance(value, dict) else ((f"[{number}]", item) for number, item in enumerate(value, 1))
        for name, item in pairs:
            yield from json_places(f"{place}/{name}" if place and name[:1] != "[" else f"{place}{name}", item)
    else:
        yield place, mi.json_text(value)


def tree_places(place: str, nodes: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    """The places and values of an MI tree; a name that comes again gets its number."""
    counts: dict[str, int] = {}
    for name, value, attributes, children in nodes:
        label = name or "value"
        counts[label] = counts.get(label, 0) + 1
        own = f"{place}{label}" + (f"[{counts[label]}]" if counts[label] > 1 else "")
        yield own, value
        yield from ((f"{own}/{key}", text) for key, text in attributes)
        yield from tree_places(f"{own}/", children)


def write_cases(cases: dict[str, list[Case]], comments: Iterable[str]) -> str:
    """The text of a file of canned replies."""
    lines = [f"# {comment}" for comment in comments]
    for name, own in cases.items():
        lines += ["", f"[{name if re.fullmatch(r'[A-Za-z0-9_.:-]+', name) else quoted(name)}]", "replace = yes"]
        for number, case in enumerate(own, 1):
            lines += ["", *(f"    # {comment}" for comment in case.comments), f"    [[{number}]]"]
            lines += [f"    {key} = {value}" for key, value in case.keys.items()]
    return "\n".join(lines) + "\n"


###############################################################################
# The file is read back
###############################################################################


@contextlib.contextmanager
def replaying(path: str, pretty: bool = False) -> Iterator[mi.Trial]:
    """What answers from a file of canned replies, in this process; ConfigError, OSError."""
    with tempfile.TemporaryDirectory(prefix="midatagram-") as folder:
        copy = shutil.copyfile(path, f"{folder}/recording.conf")
        try:
            trial = mi.Trial(f'loadmodule "{copy}"\nmodparam("mi_datagram", "pretty_printing", {int(pretty)})')
        except mi.ConfigError as error:
            raise mi.ConfigError(path, error.line, error.message) from None
        with trial:
            yield trial


def write_checked(path: str, text: str, rows: list[Row], pretty: bool) -> None:
    """Write the file once it answers every row with the same bytes; StartError if it does not, OSError."""
    new = f"{path}.new"
    try:
        with open(new, "wb") as file:
            file.write(mi.encode(text))
        with replaying(new, pretty) as trial:
            wrong = [f"{row}" for row in rows if trial.ask(row.request) != row.reply]
        if wrong:
            raise mi.StartError(mi.EXIT_CRASH, f"{path} is not written, since these would be answered otherwise than they were: "
                                f"{', '.join(dict.fromkeys(wrong))}")
        os.replace(new, path)
    except mi.ConfigError as error:
        raise mi.StartError(mi.EXIT_CRASH, f"{path} is not written, for it could not be read back: {error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)


###############################################################################
# Command line
###############################################################################


def main(argv: list[str]) -> int:
    """`midatagram.py record`: returns 0 once the file is written and read back."""
    options = record_parser().parse_args(argv)
    try:
        rows, comments = (traced(options.trace), []) if options.trace else live_rows(options)
        if not rows:
            raise mi.StartError(mi.EXIT_CRASH, "nothing is recorded, since nothing was answered")
        if options.scrub:
            rows = list(map(Scrubber(rows).row, rows))
        pretty = any(row.dialect == "jsonrpc" and row.reply.startswith(b"{\n") for row in rows)
        if pretty:
            comments.append('JSON is in many lines, as modparam("mi_datagram", "pretty_printing", 1) has it.')
        text = write_cases(cases_of(rows, pretty), ["Recorded with midatagram.py record.", *comments])
        write_checked(options.output, text, rows, pretty)
    except (OSError, ValueError) as error:
        raise mi.StartError(mi.EXIT_CRASH, f"record: {error}") from None
    requests = {(row.name, row.values) for row in rows}
    print(f"{options.output}: {len(requests)} requests, {len(rows)} replies; read back, it answers with the same bytes")
    return mi.EXIT_OK


def live_rows(options: argparse.Namespace) -> tuple[list[Row], list[str]]:
    """The rows of a live server, and comments on them. OSError, ValueError, StartError."""
    lines = [*options.requests, *(lines_of(options.source) if options.source else [])]
    server = Live(call.place_of(options), options.timeout)
    requests, left_out = ([call.words_of(line) for line in lines], list[str]()) if lines else server.harmless()
    comments = [f"Not asked, since they may change something: {', '.join(left_out)}"] if left_out else []
    return list(server.rows([words for words in requests if words], options.rounds, options.every)), comments


def lines_of(path: str) -> list[str]:
    """The lines of a file, or with - of standard input. OSError."""
    with contextlib.nullcontext(sys.stdin) if path == "-" else open(path, errors="surrogateescape") as file:
        return file.read().splitlines()


def record_parser() -> argparse.ArgumentParser:
    """The command line of `record`."""
    parser = argparse.ArgumentParser(
        "midatagram.py record", description="Record the replies of a server in a file of canned replies, in each dialect that "
        "the server knows.", epilog="Exit status: 0 the file is written and can be read, 1 it is not, 2 usage, 3 no reply.")
    option = parser.add_argument
    call.add_server(option)
    option("-o", dest="output", metavar="FILE.conf", required=True, help="write this file")
    option("--from", dest="source", metavar="LIST", help="read a REQUEST from each line of this file, - for standard input")
    option("--repeat", dest="rounds", metavar="N", type=call.argument(mi.integer(1)), default=1,
           help="send all requests N times, and record each reply that differs")
    option("--every", metavar="S", type=call.argument(call.seconds), default=1.0, help="seconds between two rounds (default: 1)")
    option("--scrub", action="store_true", help="replace user parts, addresses and secrets, each always by the same text")
    option("--trace", metavar="FILE.jsonl", help="record what trace_file wrote to this file; ask no server")
    option("requests", metavar="REQUEST", nargs="*", help='command with its arguments as one word: "ul_show_contact location '
           'alice" (default: all commands of `which` that change nothing)')
    return parser
