#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "gevent==26.9.0",
#     "configobj==5.0.9",
#     "setproctitle==1.3.8",
# ]
# ///
"""midatagram -- OpenSIPS' Management Interface over UNIX and UDP datagrams.

Serves the MI commands of its core and of its plug-ins as the module mi_datagram of OpenSIPS 2.4 documents
it, from opensips-style modparam lines. Data flows one way, from the top of this file to its bottom:

    bytes -> Request -> Command -> Reply -> bytes

    PART ONE - what a datagram means          PART TWO - where datagrams come from
     1 Errors            6 Declarations       10 Shared state    14 Plug-ins         18 Child
     2 Values            7 Registry           11 Logging         15 Core commands    19 Supervisor
     3 Reading           8 Answering          12 Events          16 Sockets          20 Command line
     4 Writing           9 Configuration      13 Access          17 Outbox
     5 Converters

A plug-in imports this file as `midatagram` and uses what `__all__` names. `midatagram.py NAME ...` runs plugins/NAME.py,
if that has a main(): so the client `call` is one.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # run as a script: plug-ins that import midatagram get this very module
    sys.modules["midatagram"] = sys.modules["__main__"]
    if not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
        del sys.path[0]  # the script's folder: who may write there must not have his modules run, by root for one

import contextlib
import difflib
import fnmatch
import functools
import inspect
import ipaddress
import itertools
import json
import operator
import pathlib
import re
import struct
import types
from collections.abc import Callable, Container, Iterable, Iterator
from math import inf
from typing import Any, NamedTuple

__version__ = "2.0.0"
__all__ = [  # what plug-ins may use
    # errors and values
    "Error", "Failed", "NOT_AVAILABLE", "Node", "Reply", "LIVE", "CONSTANT", "Request", "Exchange", "Answer", "LATER", "leaves",
    "encode", "decode",
    # dialects
    "first_line", "read_first_line", "read_arguments", "JSON_START", "JSON_BLANKS", "read_envelope", "text_of", "shown_address",
    "read_json", "json_object", "json_text", "json_tree", "json_nodes", "write_argument", "write_jsonrpc",
    "right_form", "json_int", "json_string", "json_array", "bounded", "node_lines", "JsonText", "TooLong",
    # converters
    "string", "integer", "boolean", "one_of", "file_mode", "account", "address", "words", "names_or_none", "networks",
    # declarations
    "tagged", "Param", "Stat", "Event", "JsonForm", "command", "around", "every", "trace_destination", "Trace", "Context",
    # what is remembered, files, and the standard library as it was before gevent
    "Memo", "VALUE_BYTES", "StoreError", "open_to_append", "original", "shared", "if_there", "AsyncResult",  # noqa: F822 - see __getattr__()
    # other servers, tests
    "ask", "socket_of", "read_tree", "write_request", "Trial", "Address", "LIMIT", "GIVE_UP",  # noqa: F822
    # what a Trial is made of
    "ConfigReader", "Loader", "Processes", "Counters", "core_stats", "Store", "Server", "event_pair", "answers_of",
    # files of a plug-in's own format
    "Module", "ConfigError", "ParseError", "import_plugin", "read_source", "line_of", "nearest", "BAD_PARAMETER", "WRONG_COUNT",
    # what around.py is made of
    "Interrupted", "Call", "NO_COMMAND", "COMMAND_FAILED", "TIMED_OUT",
    # what a gateway, translation and cachedb_redis are made of
    "Answers", "Command", "Patterns", "patterns", "Refusal", "NOT_SENDABLE", "PARSE_ERROR",
    "UDP_LIMIT", "reply_too_long", "invalid_params", "write_text", "write_event", "check_cache",
    "cache_fetch", "cache_remove", "cache_store", "event_subscribe", "log_level", "host_address", "with_id",
    # tools: a plug-in with main(argv), and what the script has one for
    "StartError", "EXIT_OK", "EXIT_CRASH", "EXIT_USAGE", "EXIT_NOT_RUNNING", "EXIT_IN_USE", "EXIT_CANNOT_CREATE", "EXIT_RUNNING",
    "EXIT_PERMISSION", "EXIT_CONFIG", "plugin_code", "walk", "follow_roots", "identity_of", "remove_own", "clear_path",
    "LogHandler", "check_unshared", "Directive", "serve", "server_parser",
    # what asking.py, status.py, background.py and access.py are made of
    "built_in_modules", "directives_of", "configuration_of", "name_pattern", "is_live", "preferred", "run_places",
    "log_handlers", "account_numbers", "in_networks",
    # what _core_commands.py, store_file.py, checks.py and loading.py are made of
    "INTERNAL", "STATISTICS", "NO_STATISTICS", "within_limit", "c_integer", "has_ended", "Events", "SLICE_ROWS", "give_way",
    "ROW_BYTES", "SPACES", "NEWEST", "DONE", "USED", "NAMES_FILE", "Registry", "Setup", "PLUGIN_PREFIX",
    "Where", "FORMS", "BESIDE", "SUFFIXES", "find_plugin", "refusal",
]

###############################################################################
###############################################################################
## PART ONE - what a datagram means: no socket, no clock, no file #############
###############################################################################
###############################################################################

###############################################################################
# 1. Errors ###################################################################
###############################################################################
# Strategy: an error knows what its reader will see. What a handler raises
# becomes a reply in section 8 and nowhere else; what a configuration raises
# becomes one line with the place where it stands.


class Error(Exception):
    """A command's refusal: `raise Error(404, "AOR not found")` is answered with that code and reason."""

    def __init__(self, code: int, reason: str, data: Any = None):
        super().__init__(code, reason)
        self.code, self.reason, self.data = code, reason, data  # data: the detail that JSON-RPC clients get beside the reason


def invalid_params(detail: str) -> Error:
    """What is wrong with the params of a JSON-RPC request, as clients of OpenSIPS 3.x know it."""
    return Error(-32602, "Invalid params", detail)


class Failed(Exception):
    """The handler could not do its work: answered `500 command failed`, like a NULL of OpenSIPS' C handlers."""


class ParseError(Exception):
    """A datagram that is not in its dialect's grammar."""


class Interrupted(BaseException):
    """Thrown into a handler that ran longer than handler_timeout; not an Exception, so no plug-in catches it."""


class TooLong(Exception):
    """A reply that cannot fit is given up while it is written; the argument is its size so far, in bytes."""


class ConfigError(Exception):
    """A mistake in what the user wrote: printed as `path:line: message`, exit status 78."""

    def __init__(self, path: str, line: int, message: str):
        super().__init__(path, line, message)
        self.path, self.line, self.message = path, line, message

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}" if self.line else f"{self.path}: {self.message}"


###############################################################################
# 2. Values ###################################################################
###############################################################################
# Strategy: frozen tuples. Text is UTF-8 with surrogateescape, which carries
# any bytes there and back; bytes exist only at the edges.

LIMIT = 65457  # bytes, the manual's "maximum length" of a request and of a reply, which socket_buf_size changes
GIVE_UP = 4 * LIMIT  # bytes; below it the size error names the exact size of a reply


def decode(data: bytes) -> str:
    """Bytes to text; encode() gives exactly these bytes back."""
    return data.decode("utf-8", "surrogateescape")


def encode(text: str) -> bytes:
    """Text to bytes; UnicodeEncodeError for surrogates that decode() does not make."""
    return text.encode("utf-8", "surrogateescape")


class Node(NamedTuple):
    """A node of an MI tree. A name or value of None is absent; attributes are (name, value) pairs."""

    name: str | None = None
    value: Any = None
    attributes: tuple = ()
    children: Any = ()


def leaves(values: Iterable, names: Iterable | None = None) -> list[tuple]:
    """A node of name and value for each value, as plain tuples, which are made five times as fast as a Node."""
    nothing = itertools.repeat(())
    return list(zip(names or itertools.repeat(None), values, nothing, nothing))


class JsonText(str):
    """A JSON value that is written already, without blanks."""


LIVE = JsonText("\ud800")  # stands for a value of a cached reply that is read anew each time; no text that can be sent has one
CONSTANT = tuple  # the `live` of a reply that never changes: no values to read


class Reply(NamedTuple):
    """An answer: first line and MI tree. One with `live` is cached, and sent again until live() returns other values."""

    code: int = 200
    reason: str = "OK"
    nodes: Any = ()
    live: Any = None  # returns a tuple of the values that stand at the LIVE places of its nodes, in writing order
    result: Any = None  # what JSON-RPC clients get where the tree does not say it: a JSON value, or an Error
    depends: tuple = ()  # spaces of the store: the reply is sent again until one of them changes in any child,
    until_s: float | None = None  # or until then, of the steady clock
    send: Any = None  # send(written) returns the datagrams to send in its place, as an Answer has them


class Refusal(NamedTuple):
    """A built-in error. Text clients get one line, without the empty line of other replies."""

    code: int
    reason: str
    error: Error | None = None  # what JSON-RPC clients get; with None the line too, as 3.x sends it where a request is no JSON
    shows_values: bool = True  # whether traces show the values of the arguments,
    shows_reply: bool = False  # and the reply


class Request(NamedTuple):
    """What was asked: the values of the arguments in order, each text or None, and their names if any has one."""

    name: str
    values: tuple = ()
    names: tuple | None = None
    dialect: str = "text"  # or jsonrpc
    id: Any = None  # of its JSON type
    answered: bool = True  # else it is a notification
    params: Any = None  # of a JSON-RPC request that names no command, for a catch-all

    @property
    def arguments(self) -> tuple:
        """The arguments as (name, value) pairs in order, each text or None."""
        return tuple(zip(self.names or itertools.repeat(None), self.values))


new = tuple.__new__  # new(Request, (...)) with all fields takes a third of the time of Request(...)

NOT_AVAILABLE = Refusal(500, "command not available", Error(-32601, "Method not found"))
PARSE_ERROR = Refusal(400, "parse_error", shows_values=False)
COMMAND_FAILED = Refusal(500, "command failed", Error(-32000, "Server error", "Command handler returned null"), False)
TIMED_OUT = Refusal(500, "command timed out", Error(-32000, "Server error", "Command timed out"))
NO_JSON = Refusal(400, "Parse_error")
NOT_SENDABLE = Refusal(500, "Internal error")
INVALID_REQUEST = Refusal(-32600, "Invalid Request", Error(-32600, "Invalid Request"), shows_reply=True)


def request_too_long(size: int, limit: int = LIMIT) -> Refusal:
    """The answer to a text request of `size` bytes, which is more than the limit."""
    return Refusal(400, f"request of {size} bytes exceeds {limit}")


def reply_too_long(size: int, limit: int = LIMIT) -> Refusal:
    """The answer in place of a text reply of `size` bytes, which is more than the limit."""
    return Refusal(500, f"reply of {'more than ' if size > GIVE_UP else ''}{min(size, GIVE_UP)} bytes exceeds {limit}")


class Exchange(NamedTuple):
    """What was asked and answered; one object for as long as a client asks and gets the same."""

    request: bytes
    command: str  # empty for a request that names none of ours
    parameters: tuple | None  # its values, text or None each; None where a trace has none
    code: int
    reason: str
    reply: bytes | None  # None for built-in errors


class Answer(NamedTuple):
    """What a datagram leads to."""

    datagrams: list  # to send, each as (delay_s, bytes); in place of a delay may stand a function that returns when it is time
    exchanges: list  # an Exchange for each request in it
    again: Callable | None = None  # of LATER: takes (bytes, caller, id) of a same request; returns another or None: call it


SILENCE = Answer([], [])  # for a datagram that is a reply itself
LATER = Answer([], [], lambda *again: None)  # returned by a command that is going to call conclude() of the Child with its Answer


###############################################################################
# 3. Reading ##################################################################
###############################################################################
# Strategy: a parser takes one whole datagram and gives its parts, or raises
# ParseError. A datagram is never continued, so nothing is kept between calls.
#
# The text dialect of OpenSIPS 2.x:
#
#     request  = ":" name ":" LF *argument
#     argument = [name "::"] value, up to LF or the end
#     value    = plain, or "quoted" where \" is a quote; it may span lines
#
# The manual's grammar is followed where the C code trips over it: "" is an
# empty value, \" is a quote wherever it stands, name:: may end the datagram.

BLANKS = " \t\n\v\f\r"  # isspace() in the C locale, and nothing else
INLINE_BLANKS = " \t\v\f\r"
NAMES = re.compile(r"[^:\0]*|[^:\0\s]+:[^:\0\s]+")  # of commands; with the module in front, as 4.0 has them
ARGUMENT = re.compile(r"""
    (?:(?P<name>[^":\n]*(?::(?!:)[^":\n]*)*)::)?[ \t\v\f\r]*"(?P<quoted>[^"]*(?:(?<=\\)"[^"]*)*)(?<!\\)"[ \t\v\f\r]*(?:\n|\Z)
  | (?P<line>[^"\n]*)(?:\n|\Z)""", re.X)


def first_line(name: str) -> bytes | None:
    """The first line of the text requests for a command, None for a name that they cannot carry."""
    return encode(f":{name}:\n") if NAMES.fullmatch(name) else None


def read_first_line(data: bytes) -> bytes:
    """What names the command in a text request: up to the first colon at the end of a line, for a name may span lines."""
    return data[:data.find(b":\n", 1) + 2]


def read_arguments(data: bytes) -> tuple[tuple, tuple | None]:
    """Read the arguments of a text request: their values in order, and their names, or None if none has a name."""
    if data[:1] == b"\0":
        return (), None
    body = decode(data)
    if '"' in body:
        pairs = quoted_pairs(body)
    else:
        lines = tuple(filter(None, [line.strip(INLINE_BLANKS) for line in body.split("\n")]))
        if "::" not in body:
            return lines, None
        pairs = [*map(read_line, lines)]
    names, values = zip(*pairs) if pairs else ((), ())
    return values, names if any(names) else None


def read_line(line: str) -> tuple:
    """Read the argument of a line without quotes, nor blanks around it."""
    name, colons, value = line.partition("::")
    if not colons:
        return None, line
    name, value = name.rstrip(INLINE_BLANKS), value.lstrip(INLINE_BLANKS)
    if not (name or value):
        raise ParseError("neither name nor value")
    return name or None, value or None


def quoted_pairs(body: str) -> list[tuple]:
    """Read arguments of which some have quotes."""
    pairs, at = [], 0
    while at < len(body):
        match = ARGUMENT.match(body, at)
        if not match:
            raise ParseError("a quote that is not around a whole value")
        if match["quoted"] is not None:
            pairs.append(((match["name"] or "").strip(BLANKS) or None, match["quoted"].replace('\\"', '"')))
        elif line := match["line"].strip(BLANKS):
            pairs.append(read_line(line))
        at = match.end()
    return pairs


# The JSON-RPC dialect of OpenSIPS 3.x: the first value of a datagram counts, up
# to the first NUL, and of a repeated name the first member. The standard library
# reads nearly every request. Where it says yes, OpenSIPS' parser says yes with
# the same value, but for the escapes in DOUBTFUL; where it says no, cjson.py
# among the script's own plug-ins decides.

JSON_START = re.compile(rb"[\x01-\x20]*[{\[]")  # how a datagram begins that is JSON-RPC when the dialect is "auto"
JSON_BLANKS = bytes(range(1, 33))
DOUBTFUL = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")  # escapes of a NUL or surrogate: cJSON knows no lone one


class Repeating(dict):
    """A JSON object that has a name more than once: the first value of each name; `members` counts all."""

    members = 0


def json_object(pairs: list) -> dict:
    """A JSON object from its (name, value) pairs."""
    members = dict(pairs)
    if len(members) < len(pairs):
        members = tagged(Repeating({**members, **dict(reversed(pairs))}), members=len(pairs))
    return members


DECODER = json.JSONDecoder(object_pairs_hook=json_object, strict=False, parse_constant=int)  # which refuses NaN and Infinity


def read_json(data: bytes):
    """Read the JSON value a datagram begins with; ParseError if there is none."""
    text = decode(data.partition(b"\0")[0].lstrip(JSON_BLANKS))
    if text.startswith(("{", "[")) and not DOUBTFUL.search(text):
        try:
            return DECODER.raw_decode(text)[0]
        except (ValueError, RecursionError):  # not JSON, or nested too deep for the decoder
            pass
    return lenient_reader()(text)


def read_envelope(value) -> tuple[Request, Any]:
    """A request and its params (list or dict, None when absent or empty, a Refusal when it is invalid) from a JSON value."""
    members: dict[str, Any] = {}  # by their names in any case, like in cJSON
    for name, item in value.items() if isinstance(value, dict) else ():
        members.setdefault(name.lower(), item)
    request_id, method, params = members.get("id"), members.get("method"), members.get("params", {})
    if type(request_id) not in (str, int, float, type(None)):
        return Request("", dialect="jsonrpc"), INVALID_REQUEST
    if members.get("jsonrpc") != "2.0" or not isinstance(method, str) or not isinstance(params, (list, dict)):
        return Request("", dialect="jsonrpc", id=request_id), INVALID_REQUEST
    return Request(method, dialect="jsonrpc", id=request_id, answered="id" in members), params or None


###############################################################################
# 4. Writing ##################################################################
###############################################################################
# Strategy: a reply becomes text in one pass without recursion, since depth is
# the plug-in's choice. Nothing is escaped: what a node holds goes out raw.


def write_text(reply: Reply | Refusal, indent: str = "\t") -> str:
    """The text dialect's form of a reply; in a live one LIVE values become %s and all else is made safe for `%`."""
    if isinstance(reply, Refusal):
        return f"{reply.code} {reply.reason}\n"
    text = f"{reply.code & 0xFFFFFFFF} {reply.reason}\n{''.join(node_lines(reply.nodes, indent)) if reply.nodes else ''}\n"
    return text if reply.live is None else as_template(text)


LINES_AT_ONCE = 100  # lines of a reply that are written before its size is looked at


def node_lines(nodes: Iterable[Node], indent: str) -> list[str]:
    """One line a node, depth first: indent for each level, `NAME:: `, value, ` NAME=VALUE` for each attribute. TooLong."""
    lines: list[str] = []
    levels, margin, size, measured = [iter(nodes)], "", 0, 0
    add = lines.append
    while levels:
        if len(lines) > measured + LINES_AT_ONCE:
            size += sum(map(len, lines[measured:]))
            measured = len(lines)
            if size > GIVE_UP:
                raise TooLong(size)
        first = len(lines)
        for name, value, attributes, children in itertools.islice(levels[-1], LINES_AT_ONCE):
            if not (attributes or children or value is None):  # what follows, for what most nodes are
                add(f"{margin}{name}:: {value}\n" if name else f"{margin}{value}\n")
                continue
            line = f"{margin}{name}:: " if name else margin
            if value is not None:
                line = f"{line}{value}"
            for key, text in attributes:
                if key and text is not None:
                    line = f"{line} {key}={text}"
                else:
                    line += f" {key}=" if key else "" if text is None else f"{text}"
            add(f"{line}\n")
            if children:
                levels.append(iter(children))
                margin += indent
                break
        else:
            if len(lines) < first + LINES_AT_ONCE:
                levels.pop()
                margin = indent * (len(levels) - 1)
    return lines


def as_template(text: str) -> str:
    """A live reply as written, as a `%` template with %s for each LIVE value."""
    return text.replace("%", "%%").replace(LIVE, "%s")


def write_argument(name: str | None, value: str | None) -> str:
    """One argument line, in quotes where the grammar needs them."""
    label = "" if name is None else f"{name}::"
    if name is not None and ('"' in name or "\n" in name or f"{label}:".index("::") < len(name)
                             or name.strip(BLANKS) != name or not name or name.startswith("\0")):
        raise ValueError(f"not a name that can be sent: {name!r}")
    if value is None:
        if name is None:
            raise ValueError("an argument needs a name or a value")
        return f"{label}\n"
    if value and value.strip(BLANKS) == value and '"' not in value and "\n" not in value and (
            label or not ("::" in value or value.startswith("\0"))):
        return f"{label}{value}\n"
    if value.endswith("\\"):
        raise ValueError(f"a value that needs quotes cannot end in a backslash: {value!r}")
    quoted = value.replace('"', '\\"')
    return f'{label}"{quoted}"\n'


# The bytes are those of cJSON's printer. Each array or object is written in one
# go, with a HOLE for every array or object in it, and then the holes are filled,
# depth first and without recursion.

HOLE = "\0"  # no JSON text has one of its own: in a string it is written \u0000


def json_text(value, pretty: bool = False) -> str:
    """A value as JSON text; TypeError for what JSON has not. pretty: a line for each member of an object, tabs for its depth."""
    pieces, levels = [], [json_level(value, 1, pretty)]
    while levels:
        texts, nested = levels[-1]
        pieces.append(next(texts))
        for inner in nested:
            levels.append(json_level(inner, len(levels) + 1, pretty))
            break
        else:
            levels.pop()
    return "".join(pieces)


def json_level(value, depth: int, pretty: bool) -> tuple[Iterator[str], Iterator]:
    """A value's text around its holes, and the arrays and objects that fill them; depth: 1 for the outermost."""
    line, colon, space = ("\n" + "\t" * depth, ":\t", " ") if pretty else ("", ":", "")
    if isinstance(value, dict):
        members = [f"{quoted(name)}{colon}{WRITERS[type(item)](item)}" for name, item in value.items()]
        text = f"{{{line if members else ''}{f',{line}'.join(members)}{line[:-1]}}}"
    elif isinstance(value, (list, tuple)):
        text = f"[{f',{space}'.join([WRITERS[type(item)](item) for item in value])}]"
    else:
        text = WRITERS[type(value)](value)
    if HOLE not in text:
        return iter((text,)), iter(())
    items = value.values() if isinstance(value, dict) else value
    return iter(text.split(HOLE)), (item for item in items if isinstance(item, (dict, list, tuple)))


def json_float(value: float) -> str:
    """A float as OpenSIPS writes its doubles; where %f or %e would lose digits, the shortest text that does not."""
    if value - value != 0:  # not a number, or infinite
        return "null"
    if value.is_integer() and abs(value) < 1e60:
        return str(int(value))
    text = ("%e" if abs(value) < 1e-6 or abs(value) > 1e9 else "%f") % value
    return text if float(text) == value else float.__repr__(value)


class Writers(dict):
    """type -> function that writes a value of it; a type that is not listed is written as the one it derives from."""

    def __missing__(self, kind: type):
        for base in kind.__mro__:
            if base in self:
                return self[base]
        raise TypeError(f"no JSON for a {kind.__name__}")


quoted = json.encoder.encode_basestring  # escapes quote, backslash and controls: \b \f \n \r \t, else \u00xx
WRITERS: dict[type, Callable] = Writers({
    str: quoted, JsonText: str.__str__, int: int.__repr__, float: json_float, bool: {True: "true", False: "false"}.get,
    type(None): lambda none: "null",
    dict: lambda nested: HOLE, list: lambda nested: HOLE, tuple: lambda nested: HOLE})


def write_jsonrpc(reply: Reply | Refusal, request: Request, form: JsonForm, pretty: bool = False) -> str:
    """The JSON-RPC form of a reply; in a live one LIVE values become %s and all else is made safe for `%`."""
    if isinstance(reply, Refusal) and reply.error is None:
        return f"{reply.code} {reply.reason}"
    outcome = json_outcome(reply, form)
    body = {"result": outcome}
    if isinstance(outcome, Error):
        body = {"error": {"code": outcome.code, "message": outcome.reason, **({"data": outcome.data} if outcome.data else {})}}
    text = json_text({"jsonrpc": "2.0", **body, "id": request.id}, pretty)
    return text if isinstance(reply, Refusal) or reply.live is None else as_template(text)


def json_outcome(reply: Reply | Refusal, form: JsonForm) -> Any:
    """The result of a reply as a JSON value, or an Error."""
    if isinstance(reply, Refusal):
        return reply.error
    if reply.result is not None:
        return reply.result
    if reply.code // 100 != 2:
        return form.errors.get(reply.reason) or Error(reply.code, reply.reason)
    if form.listing:
        return [value for _, value, _, _ in bounded(reply.nodes)]
    return json_tree(reply.nodes, form, "OK")


def bounded(nodes: Iterable) -> Iterator:
    """The nodes of one level of a JSON reply; TooLong when there are more than can fit."""
    for count, node in enumerate(nodes):
        if 2 * count > LIMIT:  # a node takes a comma and a character at least
            raise TooLong(2 * count)
        yield node


def json_tree(nodes: Iterable[Node], form: JsonForm, nothing=None):
    """Nodes as JSON, as 3.x does: an object of the names, a name that comes again an array; values alone an array."""
    if nothing and not nodes:
        return {plural: [] for plural, _ in form.plurals.values()} or nothing
    members: dict[str, list] = {}
    values = []
    for node in bounded(nodes):
        if node[0]:
            plural, _ = form.plurals.get(node[0], (form.renamed.get(node[0], node[0]), ""))
            members.setdefault(plural, []).append(json_node(node, form))
        else:
            values.append(node[1])
    if not members:
        return values or nothing
    plurals = {plural for plural, _ in form.plurals.values()}
    tree = {name: items if name in plurals else json_member(name, items) for name, items in members.items()}
    return {**tree, "values": values} if values else tree


def json_node(node: tuple, form: JsonForm):
    """A named node as JSON: its value, or an object of its value, attributes and children."""
    name, value, attributes, children = node
    if not (attributes or children):
        return "" if value is None else value
    _, key = form.plurals.get(name, ("", name))
    item = {} if value is None else {key: value}
    item.update((label or "value", "" if text is None else text) for label, text in attributes)
    inner = json_tree(children, form)
    item.update(inner if isinstance(inner, dict) else {"values": inner} if inner else {})
    return item


def json_nodes(value: Any) -> list[Node]:
    """The MI tree of a JSON value, json_tree() the other way round: an object is nodes by its names, an array one per item."""
    members = value.items() if isinstance(value, dict) else [(None, value)]
    return [node for name, item in members for node in named_nodes(name, item)]


def named_nodes(name: str | None, value: Any) -> list[Node]:
    """The nodes that a member of an object becomes."""
    if isinstance(value, (list, tuple)):
        return [node for item in value for node in named_nodes(name, item)]
    if isinstance(value, dict):
        return [Node(name, None, (), json_nodes(value))] if name else json_nodes(value)
    return [Node(name, json_text(value) if isinstance(value, (bool, float)) else value)]


def json_member(name: str, items: list):
    """The nodes of one name as a member: the node itself, or an array; if one of these is an object, then all are."""
    if len(items) == 1:
        return items[0]
    if any(isinstance(item, dict) for item in items):
        return [item if isinstance(item, dict) else {name: item} for item in items]
    return items


LIMIT_ROOM = 100  # bytes; no dialect's limit of a reply is more than that below the limit of all
NUMBER_ROOM = 21  # bytes that cJSON wants free before it prints any integer but 0


###############################################################################
# 5. Converters ###############################################################
###############################################################################
# Strategy: a converter takes text (of a modparam also an int) and returns a
# value, or raises ValueError that says what would be right: "takes an integer
# from 1 to 9". It checks the form only; part two checks that users, files and
# hosts exist.

WORDS = {"yes": 1, "true": 1, "on": 1, "enable": 1, "no": 0, "false": 0, "off": 0, "disable": 0}


class Written(int):
    """An integer of a configuration that remembers how it was written, as `text`."""

    text: str


def string(value) -> str:
    """Converter: text as it is."""
    if isinstance(value, int):
        raise ValueError(f'takes a string, in quotes: "{value}"')
    return value


def tagged(function: Any, /, **attributes: Any) -> Any:
    """The function, or another object, with attributes of ours."""
    vars(function).update(attributes)
    return function


def integer(lo: float = -inf, hi: float = inf) -> Callable:
    """Converter: an int, or decimal or 0x text, within lo..hi, both included."""
    least = f" of at least {lo}" if lo > -inf else ""
    span = least if hi == inf else f" from {lo} to {hi}" if least else f" of at most {hi}"

    def convert(value) -> int:
        if isinstance(value, str) and re.fullmatch(r"[+-]?(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,20})", value):
            value = int(value, 16 if "x" in value else 10)
        if isinstance(value, str) or not lo <= value <= hi:
            raise ValueError(f"takes an integer{span}")
        return int(value)

    return tagged(convert, kind="integer")


def boolean(value) -> bool:
    """Converter: 0 or 1, or one of OpenSIPS' words (yes no true false on off enable disable)."""
    digit = str(WORDS.get(value, value))
    if digit not in ("0", "1"):
        raise ValueError("takes yes or no (1 or 0)")
    return digit == "1"


def one_of(*words: str) -> Callable:
    """Converter: one of these words."""

    def convert(value) -> str:
        if value not in words:
            raise ValueError(f"takes one of {', '.join(words)}{nearest(value, words)}")
        return value

    return convert


def nearest(name: Any, names: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean "x"?` with the name closest to a misspelt one, or nothing."""
    close = difflib.get_close_matches(str(name).lower(), list(names), 1, cutoff)
    return f'; did you mean "{close[0]}"?' if close else ""


def file_mode(value) -> int:
    """Converter: the permission bits of a file, an integer as OpenSIPS takes it (0660 is octal)."""
    if isinstance(value, str):
        raise ValueError("takes an integer in octal, without quotes: 0660")
    if not 0 <= value <= 0o7777:
        raise ValueError("takes permission bits in octal, 0 to 07777: 0660")
    return int(value)


def account(value):
    """Converter: a user or group: a name, or a number; None (-1) leaves it as it is."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,10}", value):
        value = int(value)
    if isinstance(value, int):
        if not -1 <= value < 2**32 - 1:
            raise ValueError("takes a name, or a number from 0 (-1: leave as it is)")
        return None if value == -1 else int(value)
    if not value:
        raise ValueError("takes a name or a number, not an empty string")
    return value


# The values of JSON-RPC parameters are converted exactly as OpenSIPS 3.4 does, then by the argument's own converter.

INT_MIN, INT_MAX = -2**31, 2**31 - 1
BAD_TYPE = "Bad type for parameter '%s'"


def json_int(value, name: str, problem: str = BAD_TYPE) -> int:
    """The 32-bit int of parameter `name`: a number, or a string of digits, which wraps around like C's int."""
    if type(value) in (int, float):
        return saturated(value)
    if not isinstance(value, str) or not re.fullmatch(r"(?=.)[+-]?[0-9]*", value):
        raise invalid_params(problem % name)
    digits = int(value.lstrip("+-")[-32:] or 0)  # 10**32 is a multiple of 2**32: digits before those change nothing
    return ((-digits if value[0] == "-" else digits) - INT_MIN) % 2**32 + INT_MIN


def json_string(value, name: str, problem: str = BAD_TYPE) -> str:
    """The text of parameter `name`: a string, or a number as a 32-bit int."""
    if isinstance(value, str):
        return value
    if type(value) in (int, float):
        return str(saturated(value))
    raise invalid_params(problem % name)


def json_array(value, name: str, item=json_string) -> list:
    """The items of parameter `name`, a JSON array of at least one, each converted by `item`."""
    if not isinstance(value, list):
        raise invalid_params(BAD_TYPE % name)
    if not value:
        raise invalid_params(f"Empty array in parameter '{name}'")
    return [item(one, name, "Bad type for array item in parameter '%s'") for one in value]


def saturated(number) -> int:
    """A number as a 32-bit int: cut toward zero, or the nearest limit."""
    return int(max(INT_MIN, min(INT_MAX, number)))


class Address(NamedTuple):
    """Where a datagram socket is: a UNIX path (port None), or a host and port of UDP."""

    host: str
    port: int | None = None

    def __str__(self) -> str:
        if self.port is None:
            return self.host
        return f"udp:[{self.host}]:{self.port}" if ":" in self.host else f"udp:{self.host}:{self.port}"


def address(value, strict: bool = True) -> Address:
    """Converter: an Address as mi_datagram's socket_name has it; `strict` refuses a path that looks like another address."""
    if not isinstance(value, str) or not value:
        raise ValueError('takes a UNIX path as "/run/midatagram/mi.sock" or "udp:HOST:PORT"')
    if strict and (right := right_form(value)):
        raise ValueError(f"is written {right}, not {value}")
    if not value.startswith("udp:"):
        size = len(encode(value))
        if size > 107:
            raise ValueError(f"path has {size} bytes, a UNIX socket's has at most 107")
        return Address(value)
    host, colon, port = value[4:].rpartition(":")
    if not colon or not host:
        raise ValueError(f"needs a host and a port: udp:HOST:PORT, not {value}")
    if not re.fullmatch(r"[0-9]{1,20}", port) or not 1024 <= int(port) <= 65535:
        raise ValueError(f"port must be a number from 1024 to 65535, as in OpenSIPS, not {port or 'empty'}: udp:{host}:8080")
    bracketed = re.fullmatch(r"\[(.*)\]", host)
    return Address(bracketed.group(1) if bracketed else "0.0.0.0" if host == "*" else host, int(port))


def right_form(value) -> str | None:
    """How to write what looks like another kind of address (UDP:..., HOST:PORT, unix:PATH); None for what does not."""
    match = re.match(r"(?i)(?:udp|unix|tcp|udp4|udp6):(?=(.*))|([^/:]+|\[[^]/]+\]):[0-9]{1,5}\Z", str(value), re.S)
    if not match or value.startswith("udp:"):
        return None
    return match[1] if value[:5].lower() == "unix:" else f"udp:{match[1] or value}"


class Listener(NamedTuple):
    """A socket to serve: its address and, for a UNIX socket, mode and owners (None: as unix_socket_* say); and the server to
    which the module upstream forwards what is asked there."""

    address: Address
    mode: int | None = None
    user: Any = None
    group: Any = None
    upstream: str = ""


def listener(value) -> Listener:
    """Converter: `ADDRESS[;mode=0660][;user=NAME][;group=NAME][;upstream=NAME]`."""
    text, *options = string(value).split(";")
    settings: dict[str, Any] = {}
    for option in filter(None, options):
        key, equals, setting = option.partition("=")
        if key == "mode" and re.fullmatch("[0-7]{3,5}", setting):
            settings[key] = int(setting, 8)
        elif key in ("user", "group") and equals:
            settings[key] = account(setting)
        elif key == "upstream" and setting:
            settings[key] = setting
        else:
            raise ValueError(f'takes ADDRESS;mode=0660;user=NAME;group=NAME with the mode in octal, not "{option}"')
    place = address(text)
    if settings.keys() - {"upstream"} and place.port is not None:
        raise ValueError("mode, user and group are for UNIX sockets only")
    return Listener(place, **settings)


class Patterns(tuple):
    """Names of commands, in which * ? and [ ] stand for others, as in a shell: `"ul_dump" in Patterns(["ul_*"])`."""

    def __contains__(self, name: Any) -> bool:
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self)


def patterns(value) -> Patterns:
    """Converter: a comma list of names of commands, or patterns of them."""
    return Patterns(words(value))


def words(value) -> tuple:
    """Converter: a comma list of names, blanks around them allowed."""
    names = tuple(name.strip(" ") for name in string(value).split(","))
    if not all(names):
        raise ValueError(f'takes names with commas between them: "one, two"; there is an empty name in "{value}"')
    return names


def names_or_none(value) -> tuple:
    """Converter: as words(), or an empty text for no name at all."""
    return words(value) if value else ()


def networks(value) -> tuple:
    """Converter: a comma list of networks: `127.0.0.0/8, ::1`."""
    try:
        return tuple(ipaddress.ip_network(text) for text in words(value))
    except ValueError as error:
        raise ValueError(f'takes networks with commas between them: "127.0.0.0/8, ::1" ({error})') from None


def access_rule(value) -> tuple:
    """Converter: `COMMAND[, COMMAND]: WHO[, WHO]`, WHO being a network, `uid:NAME` or `gid:NAME`."""
    return shared("access", "allow_command", "for access lists, ").read_rule(value)


def trace_list(value) -> tuple[bool, tuple]:
    """Converter: `b: NAME, NAME` or `w: NAME, NAME` to (whether these commands are traced, or else all others; their names)."""
    return shared("tracing", "trace_bwlist", "to trace, ").read_list(value)


###############################################################################
# 6. Declarations #############################################################
###############################################################################
# Strategy: a plug-in is a module of rows and tagged functions. Importing it
# does nothing; a decorator leaves its function as it was and adds a tag, and
# Module collects rows and tags. All that can be wrong is found at that moment.


class Param(NamedTuple):
    """A modparam: `repeat` makes its value the list of all lines; `advice(value)` gives a warning or None."""

    name: str
    default: Any
    converter: Callable = string
    help: str = ""
    repeat: bool = False
    advice: Callable = lambda value: None


class Stat(NamedTuple):
    """A statistic: a counter that ctx.count adds to, or with `read` a figure asked for when wanted. dialect: the one whose
    requests it is shown to, text or jsonrpc; empty: both. shared: several modules may declare it."""

    name: str
    help: str
    group: str = ""
    resettable: bool = True
    read: Callable[..., int | dict[str, int]] | None = None  # the figure, or {name: figure} of all that have this function
    dialect: str = ""
    shared: bool = False


class Event(NamedTuple):
    """An event that clients subscribe to and ctx.raise_event raises."""

    name: str
    help: str


class JsonForm(NamedTuple):
    """What is different about a command for JSON-RPC clients; the defaults follow from its signature and tree."""

    recipes: list | None = None  # lists of parameter names it can be called with; the name of *rest takes an array
    order: tuple = ()  # parameters whose types are checked before the others
    raw: tuple = ()  # parameters that get JSON values as they are
    check: Callable[[dict], None] | None = None  # called with the values by name before the command
    plurals: dict = {}  # node name -> (name of the array, name of the node's own value)
    renamed: dict = {}  # node name -> member name
    errors: dict = {}  # reason -> Error
    listing: bool = False  # the values as an array
    nameless: bool = False  # params are taken in the order in which they come, whatever their names, and an array as its items
    named: bool = False  # params are by name only


class CommandTag(NamedTuple):
    """What @command keeps on a function."""

    name: str  # "*" for a catch-all, which is asked, in load order, for names that no command has; None passes them on
    help: str | None
    input: bool  # False: arguments are never read, even malformed ones
    pure: bool  # the reply depends on the request alone
    bind: Callable[[Request], Iterable] | None  # makes the values from a text request's arguments itself
    json: JsonForm
    timed: bool  # whether handler_timeout holds
    converters: dict  # of arguments and options
    also: str = ""  # its name in OpenSIPS 4.0, MODULE:NAME unless given
    replace: bool = False  # it takes the place of another module's command


def command(name=None, *, input=True, pure=False, help=None, bind=None, json=None, timed=True, also="", replace=False,
            **converters):
    """Make a function an MI command: `@command`, or `@command("name", times=integer(1, 9))`.

    The function takes a Context and the arguments; its signature says which are required, keyword-only ones are options by
    name, its docstring is the help. It returns a Reply, a dict or list, or what has get(), which waits. Keywords that are
    arguments of the function name their converters, all others are fields of CommandTag.
    """

    def tag(function, name=name):
        return tagged(function, mi_command=CommandTag(
            function.__name__ if name is None else name, function.__doc__ if help is None else help, input, pure, bind,
            json or JsonForm(), timed, converters, also, replace))

    return tag(name, name.__name__) if callable(name) else tag


def around(*names, cached=None):
    """Put a function around the answering of all datagrams, or of those with these commands: `@around`, `@around("ps")`.

    f(ctx, request, proceed) returns a Reply or an Answer: that of proceed(), changed or not, or another. It is called once for
    each datagram, with an unnamed request for a batch and for what is malformed. With `cached`, cached(ctx, trace) is called
    before a cached reply is sent, and f only if that returns False.
    """
    if names and callable(names[0]):
        return tagged(names[0], mi_around=(), mi_cached=cached)
    return functools.partial(tagged, mi_around=names, mi_cached=cached)


def every(seconds: float, where: str = "each"):
    """Run a function of a Context again and again, in each child or in one of them; ValueError for another `where`."""
    if where not in ("each", "one"):
        raise ValueError(f'where is "each" or "one", not "{where}"')
    return functools.partial(tagged, mi_every=(seconds, where))


def trace_destination(function):
    """Tag the function of a Context that gives {name: destination} for tracing, see plugins/tracing.py.

    A destination has open(), write(list of Trace) and close(), which may block and raise OSError; reopen() for SIGUSR1,
    check() before each write and packets_per_trace if it wants. One that is None cannot be traced to.
    """
    return tagged(function, mi_trace_destination=True)


class Trace(NamedTuple):
    """When an exchange took place, and between which sockets."""

    requested_s: float  # seconds since the epoch
    replied_s: float
    client: Any  # a socket address: (host, port, ...) of UDP, a path or None of UNIX
    server: Any
    exchange: Exchange


class Context:
    """What a handler gets first: its module's parameters and counters, and the request in hand."""

    __slots__ = ("own", "request", "caller", "data", "calls")
    calls: list[Call]  # of a function around a batch, which may replace some by others

    def __init__(self, module: Module, request: Request | None = None, caller: Any = None, data: bytes = b""):
        self.own, self.caller, self.data = module, caller, data
        self.request = request or NO_REQUEST

    def param(self, name: str):
        """The value of this module's parameter."""
        return self.own.settings[name]

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of this module's statistics."""
        self.own.row[self.own.columns[name]] += by

    def set(self, name: str, value: int) -> None:
        """Set one of this module's statistics that is a level, to the same in all processes: the last value counts."""
        self.own.server.counters.set(self.own.columns[name], value)

    def module(self, name: str) -> Any:
        """The functions of another plug-in, by their names; AttributeError if it is not loaded."""
        return self.own.server.registry.modules_by_name[name].namespace

    def view(self, space: str, apply: Callable[[dict, str, str | None], None]) -> dict:
        """This child's picture of a space of the store: apply(view, key, value or None) is called for each key that changed."""
        return self.own.server.view_of(space, apply).now()

    def raise_event(self, name: str, **attributes) -> int:
        """Send one of the declared events to its subscribers; gives how many were sent to."""
        return self.own.server.raise_event(name, attributes)

    log = property(operator.attrgetter("own.log"), doc="The logger of this module.")
    store = property(operator.attrgetter("own.server.store"), doc="The key-value store that all children share.")
    server = property(operator.attrgetter("own.server"), doc="The process that serves; for the core's own commands.")

    def refuse(self, param: str, message: str, nth: int = -1):
        """End the start, naming the nth modparam line of `param` (init only)."""
        raise ConfigError(*self.own.lines.get(param, [(self.own.path, 0)])[nth], message)


class Module:
    """A plug-in as loaded, from the names its file defines: rows and tagged functions, settings, later counters; ConfigError."""

    HOOKS = ("init", "registered", "load", "child_init", "destroy", "cache")

    def __init__(self, name: str, namespace: dict, path: str = "midatagram.py", line_of: Callable = lambda word: 0):
        self.name, self.path = name, path
        kinds = {"PARAMS": Param, "STATS": Stat, "EVENTS": Event}
        rows = {word: self.checked_rows(namespace, word, kind, line_of) for word, kind in kinds.items()}
        self.params = {param.name: param for param in rows["PARAMS"]}
        reads = {read: functools.partial(read, Context(self)) if read and inspect.signature(read).parameters else read
                 for read in [stat.read for stat in rows["STATS"]]}
        self.stats = [stat._replace(group=stat.group or name, read=reads[stat.read]) for stat in rows["STATS"]]
        self.events = rows["EVENTS"]
        functions = [value for value in namespace.values() if callable(value)]
        self.commands = [Command(self, function) for function in functions if hasattr(function, "mi_command")]
        self.every = [function for function in functions if hasattr(function, "mi_every")]
        self.around = [function for function in functions if hasattr(function, "mi_around")]
        self.namespace = types.SimpleNamespace(**namespace)
        self.destinations = [function for function in functions if hasattr(function, "mi_trace_destination")]
        self.hooks = {word: namespace[word] for word in self.HOOKS if word in namespace}
        self.settings = {param.name: [] if param.repeat else param.default for param in rows["PARAMS"]}
        self.notes: list[tuple[int, str]] = []  # (line, what is wrong) of what ends no start, but will not work
        self.lines: dict[str, list[tuple[str, int]]] = {}  # parameter -> (path, line) of each of its modparam lines
        self.columns: dict[str, int] = {}  # statistic -> its column of the counters
        self.row: Any = None  # this process' row of the counters
        self.server: Any = None
        self.log: Any = None  # its logger
        self.settle: Callable[[Iterable[Module]], None] = lambda modules: None  # called with all modules once they are set up

    def checked_rows(self, namespace: dict, word: str, kind: Any, line_of: Callable) -> list:
        """The rows a plug-in lists under `word`, all of one kind and with names of their own."""
        rows, names = namespace.get(word, []), set()
        for row in rows if isinstance(rows, (list, tuple)) else [rows]:
            if not isinstance(row, kind):
                raise ConfigError(self.path, line_of(word), f"{word} is a list of midatagram.{kind.__name__} rows")
            key = (row.name, getattr(row, "group", None))
            if key in names:
                raise ConfigError(self.path, line_of(word), f'{word} names "{row.name}" twice')
            names.add(key)
        return list(rows)

    def where(self, param: str) -> tuple[str, int]:
        """Where the last modparam line of a parameter stands: path and line."""
        return self.lines.get(param, [(self.path, 0)])[-1]

    def set(self, name: str, value, path: str, line: int) -> str | None:
        """Take one modparam line; gives a warning or None, raises ConfigError."""
        param = self.params.get(name)
        if param is None:
            raise ConfigError(path, line, f'parameter "{name}" not found in module {self.name}'
                              + (nearest(name, self.params) or f"; it has {', '.join(self.params) or 'none'}"))
        try:
            converted = param.converter(value)
        except ValueError as error:
            shown = value.text if isinstance(value, Written) else f'"{value}"'
            given = f'modparam("{self.name}", "{name}", {shown})' if line else shown
            raise ConfigError(path, line, f"{given}: {name} {error}") from None
        if param.repeat:
            self.settings[name].append(converted)
        else:
            self.settings[name] = converted
        self.lines.setdefault(name, []).append((path, line))
        return param.advice(value)


###############################################################################
# 7. Registry #################################################################
###############################################################################
# Strategy: everything that can be asked for is found here by name, in the
# order of registration. A Command binds the arguments of either dialect to
# the signature of its function.

WRONG_COUNT = Error(400, "Too few or too many arguments")  # raised again and again: its traceback grows until somebody clears it
BAD_PARAMETER = Error(400, "Bad parameter")
GROUPS = {"shmem": -6, "core": -5, "net": -4, "dns": -3, "sql": -2, "cdb": -1, "script": 1, "load": 2, "pkmem": 3}  # as listed


class Command:
    """A command as registered: the function, and what its signature and tag say; ConfigError for what cannot be one."""

    def __init__(self, module: Module, function: Any):
        tag: CommandTag = function.mi_command
        self.module, self.function, self.written, self.tag = module, function, function, tag
        self.name, self.input, self.pure, self.form, self.timed = tag.name, tag.input, tag.pure, tag.json, tag.timed
        self.is_slow = False  # it has made a reply from the store, which takes longer than to cache it
        group = module.name.removeprefix("proto_")
        self.full_name = tag.also or (self.name if ":" in self.name else f"{group}:{self.name.removeprefix(f'{group}_')}")
        self.path, self.line = module.path, getattr(function, "mi_line", 0)
        if not self.line:  # it may be of a file that several modules share
            self.path, self.line = function.__code__.co_filename, function.__code__.co_firstlineno
        if tag.help is None and sys.flags.optimize < 2:
            raise self.refusal("needs a docstring, which is its help")
        self.help = inspect.cleandoc(tag.help or "python -OO has removed its help.")
        self.required, self.optional, self.rest = self.signature()
        self.most = None if self.rest else len(self.required) + len(self.optional)
        names = self.names = [*self.required, *self.optional]
        self.converters = [*map(tag.converters.get, names)], itertools.repeat(tag.converters.get(self.rest))
        self.bind = tag.bind or self.bind_text
        optional = [*self.optional, *([self.rest] if self.rest else [])]
        natural = [(*self.required, *optional[:count]) for count in range(len(optional) + 1)]
        self.recipes = [tuple(recipe) for recipe in tag.json.recipes or natural]
        if self.options:
            shared("command_options", self.path, f'command "{self.name}" has options, ').Options(self)

    def refusal(self, message: str) -> ConfigError:
        """What is wrong with this command."""
        return ConfigError(self.path, self.line, f'command "{self.name}" {message}')

    def signature(self) -> tuple[list, list, str]:
        """Names of the required and optional arguments and of *rest (empty: none), without the Context."""
        parameters = list(inspect.signature(self.function).parameters.values())
        plain = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        rest = [p.name for p in parameters if p.kind == p.VAR_POSITIONAL]
        self.options = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is not p.empty]
        if not plain or len(plain) + len(rest) + len(self.options) != len(parameters):
            raise self.refusal("takes a context, then arguments by position: def name(ctx, required, optional=None, *rest)")
        required = [p.name for p in plain[1:] if p.default is p.empty]
        self.defaults = {p.name: p.default for p in plain}
        return required, [p.name for p in plain[1 + len(required):]], rest[0] if rest else ""

    def bind_json(self, params) -> tuple[tuple, tuple, list]:
        """The arguments' values and names, and the values to call the function with, from JSON-RPC params."""
        given, rest = self.named_params(params)
        form, values = self.form, {}
        for name in sorted(given, key=lambda name: name not in form.order):  # as OpenSIPS' handlers look at them
            values[name] = given[name] if name in form.raw else self.json_value(name, given[name])
        if form.check:
            form.check(values)
        shown, names = tuple(map(text_of, [*given.values(), *rest])), (*given, *[None] * len(rest))
        if not self.input:
            return shown, names, []
        called = [values.get(name, self.defaults[name]) for name in self.names]
        more = values.get(self.rest, []) if self.rest else []
        return shown, names, [*called, *more, *[self.json_value(self.rest, value, alone=True) for value in rest]]

    def named_params(self, params) -> tuple[dict, list]:
        """Params by the names of the recipe that fits them; and, for *rest without a recipe, what is beyond those."""
        params = params or {}
        if self.form.nameless:
            given = params.values() if isinstance(params, dict) else params
            params = [item for value in given for item in (value if isinstance(value, list) else [value])]
        by_position, count = isinstance(params, list), getattr(params, "members", len(params))
        if by_position and self.rest and not self.tag.json.recipes and count > len(self.required):
            names = self.names[:count]
            return dict(zip(names, params)), params[len(names):]
        if by_position and count and self.form.named:
            raise invalid_params("Command only supports named parameters")
        fitting = [recipe for recipe in self.recipes if len(recipe) == count]
        if not fitting:
            raise invalid_params("Too few or too many parameters")
        if by_position and len(fitting) > 1:
            raise invalid_params("Ambiguous call, use named parameters instead")
        recipe = next((recipe for recipe in fitting if by_position or all(name in params for name in recipe)), None)
        if recipe is None:
            raise invalid_params("Named parameters do not match")
        return dict(zip(recipe, params if by_position else map(params.get, recipe))), []

    def json_value(self, name: str, value, alone: bool = False):
        """One JSON value as its argument's converter wants it; an array for *rest, unless it is one `alone`."""
        converter, is_array = self.tag.converters.get(name), name == self.rest and not alone
        read = json_int if getattr(converter, "kind", "") == "integer" else json_string
        items = json_array(value, name, read) if is_array else [read(value, name)]
        try:
            items = [converter(item) for item in items] if converter else items
        except ValueError:
            raise invalid_params(BAD_TYPE % name) from None
        return items if is_array else items[0]

    def bind_text(self, request: Request) -> Iterable:
        """The values to call the function with, from a text request: by position, names are ignored."""
        count = len(request.values)
        if count < len(self.required) or (self.most is not None and count > self.most):
            raise WRONG_COUNT
        if not (request.names or self.tag.converters):  # a value can be absent only where there is a name
            return request.values
        converters = itertools.chain(*self.converters)
        try:
            return [convert(value or "") if convert else value or "" for convert, value in zip(converters, request.values)]
        except ValueError:
            raise BAD_PARAMETER from None


def text_of(value) -> str | None:
    """A JSON value as tracing and handlers see it among the request's arguments."""
    return value if value is None or isinstance(value, str) else json_text(value)


class Statistics(dict):
    """Lists of Stat, by what get_statistics can be asked for: a name, a group in any case as `core:`, or `all`."""

    def __missing__(self, name: str) -> list[Stat]:
        return self.get(name.lower(), []) if name.endswith(":") else []


class Registry:
    """All commands, statistics and events of the modules by name, but for commands that are switched off; ConfigError for a name
    used twice. registered(ctx, registry) of a plug-in may leave out others, and replace names_of(). full_names: see Release."""

    def __init__(self, modules: Iterable[Module], switched_off: Container[str] = (), full_names: bool = False):
        self.modules, self.switched_off, self.full_names = list(modules), switched_off, full_names
        self.modules_by_name = {module.name: module for module in self.modules}
        self.names: dict[str, Command] = {}  # by all names of each
        self.ambiguous: dict[str, Error] = {}  # short names that several have
        self.catch_alls: list[Command] = []
        self.wrappers: list[tuple] = []  # (module, function, names of commands or none for all)
        self.around: Any = None  # what puts them around the answering
        self.stats = {"text": Statistics(all=[]), "jsonrpc": Statistics(all=[])}
        self.events: dict[str, int] = {}
        for module in self.modules:
            self.wrappers += [(module, function, frozenset(function.mi_around)) for function in module.around]
            for command in module.commands:
                self.add_command(command)
            for stat in module.stats:
                self.add_stat(module, stat)
            for event in module.events:
                if event.name in self.events:
                    raise ConfigError(module.path, 0, f'event "{event.name}" is there already')
                self.events[event.name] = len(self.events)
        for stats in [stats[name] for stats in self.stats.values() for name in ("core:", "all")]:
            stats.sort(key=lambda stat: (GROUPS.get(stat.group, 0), stat.name == "timestamp"))
        self.catch_all: Command | None = None  # stands where a request names no command
        if self.catch_alls:
            self.catch_all = shared("catch_all", self.catch_alls[0].path, 'for @command("*"), ').command_of(self)
        self.known = dict(self.names)  # with those that are switched off
        for module in self.modules:
            if "registered" in module.hooks:
                module.hooks["registered"](Context(module), self)
        off = self.listed(switched_off)
        self.names = {name: command for name, command in self.names.items() if command not in off}
        self.commands = {command.name: command for command in self.names.values()}  # as listed

    def add_command(self, command: Command) -> None:
        """Register a command under its names, or as a catch-all."""
        if command.name == "*":
            self.catch_alls.append(command)
        for name in () if command.name == "*" else (command.name, command.full_name):
            first = self.names.setdefault(name, command)
            if first is not command and command.tag.replace == first.tag.replace:
                mend = "" if first.tag.replace else "; @mi.command(replace=True), or replace = yes in a .conf, takes its place"
                raise command.refusal(f"is there already: {first.path}:{first.line}{mend}")
            if command.tag.replace and not first.tag.replace:
                self.names[name] = command

    def listed(self, names: Container[str]) -> dict[Command, None]:
        """The commands that a list has, by any of their names."""
        return dict.fromkeys(command for name, command in [*self.known.items(), *self.names.items()] if name in names
                             or self.full_names and command.full_name.partition(":")[2] in names)

    def names_of(self, name: str) -> tuple:
        """All names of the command that has this one, for lists of commands."""
        command = self.known.get(name)
        return (command.name, command.full_name) if command else (name,)

    def add_stat(self, module: Module, stat: Stat) -> None:
        """Register a statistic under its group; its name alone means the first of that name."""
        group = f"{stat.group.lower()}:"
        for stats in [stats for dialect, stats in self.stats.items() if stat.dialect in ("", dialect)]:
            if stat.shared and stat in stats[group]:
                continue
            if any(other.name == stat.name for other in stats[group]):
                raise ConfigError(module.path, 0, f'statistic "{stat.group}:{stat.name}" is there already')
            stats["all"].append(stat)
            stats.setdefault(group, []).append(stat)
            stats.setdefault(stat.name, [stat])


###############################################################################
# 8. Answering ################################################################
###############################################################################
# Strategy: the seam between bytes and bytes, and the only place that turns
# errors into replies. What the dialects differ in is behind two objects with
# the same methods; nothing else here asks which dialect a request is in.
#
# Monitoring asks the same thing again and again, so what a request teaches is
# cached by those of its bytes that matter (not the id of a JSON-RPC request,
# nor arguments that are not read): which command it is with which arguments,
# and for replies that say so (Reply.live) the text around their values. A
# cached reply depends on nothing but what live() reads.

CACHE_BYTES = 8 << 20  # of all that is cached of requests and their replies, per child
SEEN_BYTES = 1 << 18  # of the hashes of requests that came once, each about 100: of more, few would be cached for long
ENTRY_BYTES = 400  # what an entry of a Memo takes besides its key and value; about what Python needs
VALUE_BYTES = 120  # the same for a value of a request
KEPT_REQUEST = 4096  # bytes; a longer request is read anew each time


class Memo:
    """A cache that is bounded in bytes, in two generations: when the young one is full it becomes the old one, whose
    entries are forgotten unless they are asked for again.

    `young` is a dict for those who look up at the least cost, and ask get() when they do not find a key there.
    """

    def __init__(self, size_bytes: int):
        self.most, self.largest = size_bytes // 2, size_bytes // 16  # bytes of a generation, and of a value
        self.young: dict[Any, Any] = {}
        self.old: dict[Any, Any] = {}
        self.sizes: dict[Any, int] = {}  # of both
        self.bytes = 0  # of the young ones

    def __len__(self) -> int:
        return len(self.young) + len(self.old)

    def get(self, key: Any) -> Any:
        """The value of a key, which is young again from now on; None if there is none."""
        value = self.young.get(key)
        if value is None and key in self.old:
            value = self.keep(key, self.old[key], self.sizes[key])
        return value

    def keep(self, key: Any, value: Any, size: int) -> Any:
        """Add a value of so many bytes, with its key, unless it is too large; returns it."""
        self.forget(key)
        whole = size + ENTRY_BYTES
        if whole > self.largest:
            return value
        if self.bytes + whole > self.most:
            self.old, self.sizes, self.bytes = dict(self.young), {key: self.sizes[key] for key in self.young}, 0
            self.young.clear()  # it stays the same dict for those who hold it
        self.young[key], self.sizes[key] = value, size
        self.bytes += whole
        return value

    def forget(self, key: Any) -> None:
        """Remove a key, if it is there."""
        if self.young.pop(key, None) is not None:
            self.bytes -= self.sizes[key] + ENTRY_BYTES
        self.old.pop(key, None)
        self.sizes.pop(key, None)


TEXT_REPLY = re.compile(rb"[0-9]{3}[ \n]")


def is_reply(data: bytes, value: Any = None) -> bool:
    """Whether a datagram that is no request, or the JSON value in it, is evidently a reply, or a batch of them: two servers must
    not go on answering each other."""
    with contextlib.suppress(ParseError):
        value = read_json(data) if value is None and JSON_START.match(data) else value
    items = value if isinstance(value, list) and value else [value]
    names = [set(map(str.lower, item)) if isinstance(item, dict) else set() for item in items]
    return bool(TEXT_REPLY.match(data)) or all("method" not in one and one & {"result", "error"} for one in names)


class Call(NamedTuple):
    """A request bound to its command, and to the values to call it with, or to what it is answered with instead."""

    dialect: Text | JsonRpc
    command: Command
    request: Request
    values: Any
    refusal: Reply | Refusal | None = None


@command("", input=False)
def no_command(ctx):
    """Stand where a request names no command."""


NO_COMMAND, NO_REQUEST = Command(Module("", {}), no_command), Request("")


def refused(error: Error, result: Error | None = None) -> Reply:
    """The reply to a request that ended in an Error; one that is raised each time would hold the frames of all times."""
    error.__traceback__ = None
    return Reply(error.code, error.reason, result=result)


class Text:
    """The text dialect of OpenSIPS 2.x, for the commands of a registry."""

    id_of = staticmethod(lambda call: b"")  # what stands between the two parts of a shape
    join = staticmethod(b"".join)  # the reply to a batch
    is_key_of = staticmethod(lambda key, call: True)  # whether all requests with this key mean this call

    def __init__(self, registry: Registry, indent: str = "\t", most: int = LIMIT):
        self.indent, self.most, self.catch_all = indent, most, registry.catch_all
        self.limit = lambda call: most  # bytes of the reply
        self.too_long = functools.partial(reply_too_long, limit=most)  # what a reply of so many bytes becomes
        self.request_too_long = functools.partial(request_too_long, limit=most)  # what such a request is answered with
        self.lines = {first_line(name): command for name, command in registry.names.items()}

    def key(self, data: bytes) -> tuple[bytes, bytes]:
        """What tells a request from others, and its id (none)."""
        line = read_first_line(data)
        command = self.lines.get(line)
        return (data if command is None or command.input else line), b""

    def read(self, data: bytes) -> Call | None:
        """The call that a datagram means, None for a reply."""
        line = read_first_line(data)
        command, name = self.lines.get(line), decode(line[1:-2])
        if command is None:
            command = self.catch_all if first_line(name) == line else None
        if command is None:
            return None if is_reply(data) else Call(self, NO_COMMAND, NO_REQUEST, None, NOT_AVAILABLE)
        request = Request(name)
        if not command.input:
            return Call(self, command, request, ())
        try:
            values, names = read_arguments(data[len(line):])
            request = new(Request, (name, values, names, "text", None, True, None))
            return new(Call, (self, command, request, command.bind(request), None))
        except ParseError:
            return Call(self, command, request, None, PARSE_ERROR)
        except Error as error:
            return Call(self, command, request, None, refused(error))

    def write(self, reply: Reply | Refusal, call: Call) -> str:
        """A reply as text; a `%` template if it is live."""
        return write_text(reply, self.indent)

    def shape(self, reply: Reply, call: Call, key: Any) -> Shape:
        """A live reply as written; a Watched one is the same for all who ask for it."""
        if not isinstance(reply.live, Watched):
            return Shape(reply, self.write(reply, call), most=self.most)
        reply.live.text, reply.live.most = reply.live.text or self.write(reply, call), self.most
        return reply.live


class JsonRpc:
    """The JSON-RPC dialect of OpenSIPS 3.x, for the commands of a registry."""

    too_long, request_too_long = staticmethod(lambda size: NOT_SENDABLE), staticmethod(lambda size: NO_JSON)

    PLAIN_ID = re.compile(  # replied with as it is written: an integer of at most 18 digits, or a string without escapes
        rb'"id"[\x01-\x20]*:[\x01-\x20]*(0|-?[1-9][0-9]{0,17}|"[ !#-\[\]-~]*")(?=[\x01-\x20]*[,}])')

    def __init__(self, registry: Registry, pretty: bool = False, most: int = LIMIT):
        self.commands, self.ambiguous, self.catch_all = registry.names, registry.ambiguous, registry.catch_all
        self.pretty, self.most = pretty, most

    def key(self, data: bytes) -> tuple[Any, bytes]:
        """What tells a request from others, which is what stands around its id, and the id; None if that is not plain."""
        match = self.PLAIN_ID.search(data)
        if match is None:
            return None, b""
        start, end = match.span(1)
        return (data[:start], data[end:]), data[start:end]

    def read(self, data: bytes) -> Call | Iterator[Call] | None:
        """The call that a datagram means, or those of a batch; None for a reply."""
        try:
            value = read_json(data)
        except ParseError:
            value = Call(self, NO_COMMAND, Request("", dialect="jsonrpc"), None, NO_JSON)
        if is_reply(data, value):
            return None
        if isinstance(value, Call):
            return value
        return map(self.bound, value) if isinstance(value, list) and value else self.bound(value)

    def bound(self, value: Any) -> Call:
        """The call that one request object means."""
        request, params = read_envelope(value)
        command = self.commands.get(request.name, NO_COMMAND)
        if command is NO_COMMAND and request.name not in ("", *self.ambiguous) and self.catch_all:
            items, names = (params.values(), tuple(params)) if isinstance(params, dict) else (params or (), None)
            values = tuple(map(text_of, items))
            return Call(self, self.catch_all, request._replace(values=values, names=names, params=params), values)
        if command is NO_COMMAND:
            error = self.ambiguous.get(request.name, NOT_AVAILABLE.error)
            refusal = params if isinstance(params, Refusal) else NOT_AVAILABLE._replace(error=error)
            return Call(self, NO_COMMAND, request, None, refusal)
        try:
            values, names, called = command.bind_json(params)
        except Error as error:
            return Call(self, command, request, None, refused(error, error))
        return Call(self, command, request._replace(values=values, names=names), called)

    def is_key_of(self, key: tuple, call: Call) -> bool:
        """Whether all requests with this key mean this call: it is the request's own id that the key leaves out."""
        request, _ = read_envelope(read_json(b'%b"?"%b' % key))
        return request == call.request._replace(id="?", values=(), names=None)

    def write(self, reply: Reply | Refusal, call: Call) -> str:
        """A reply as JSON, nothing for a notification; a `%` template if it is live."""
        return write_jsonrpc(reply, call.request, call.command.form, self.pretty) if call.request.answered else ""

    def shape(self, reply: Reply, call: Call, key: Any) -> Shape:
        """A live reply as written, with the id if the key is a whole datagram."""
        text, tail = self.write(reply, call), ""
        if not isinstance(key, bytes):
            text, _, tail = self.write(reply, call._replace(request=call.request._replace(id=LIVE))).rpartition("%s")
        return Shape(reply, text, encode(tail), json_text, self.most - NUMBER_ROOM)

    def id_of(self, call: Call) -> bytes:
        """The id as it is written."""
        return encode(json_text(call.request.id))

    def limit(self, call: Call) -> int:
        """How many bytes the reply may have: 3.x' buffer has the limit with a NUL, and room to print a number for an id."""
        request_id = call.request.id
        if isinstance(request_id, str) or not request_id:
            return self.most - 1
        return min(self.most - 1, self.most - NUMBER_ROOM + len(self.id_of(call)) + len("\n}" if self.pretty else "}"))

    def join(self, parts: list[bytes]) -> bytes:
        """The reply to a batch, nothing if all its requests are notifications."""
        return b"[%b]" % (b", " if self.pretty else b",").join(parts) if parts else b""


class Shape:
    """A live reply as written: its text around the values, the values of last time, and the bytes with these.

    Of a JSON-RPC reply it is the text before the id; `tail` is what stands behind that.
    """

    look: Callable[[], Any]  # returns a cheap snapshot to compare with that of last time
    text, tail, data = "", b"", b""
    snapshot: Any = object()  # none yet; a plug-in's live() may give anything
    values: Any = snapshot
    write_value: Callable | None = None
    most = LIMIT  # bytes

    def __init__(self, reply: Reply, text: str, tail: bytes = b"", write_value: Callable | None = None, most: int = LIMIT):
        self.text, self.tail, self.write_value, self.live, self.most = text, tail, write_value, reply.live, most
        self.look = reply.live.look if isinstance(reply.live, Watched) else reply.live

    def sums(self, snapshot: Any) -> tuple:
        """The values of a snapshot."""
        if not isinstance(self.live, Watched):
            return tuple(snapshot)
        values, self.look = self.live.sums(snapshot), self.live.look  # there may be more to look at by now
        return values

    def now(self, request_id: bytes = b"") -> bytes | None:
        """The reply with the values of now. None if they fail or are too long: then the command is to be called, and
        meets it again where it is logged and answered."""
        try:
            snapshot = self.look()
            data = self.data if snapshot == self.snapshot else self.fill(snapshot)
        except Exception:
            return None
        if request_id:
            data = data + request_id + self.tail
        return data if len(data) <= self.most else None

    def fill(self, snapshot: Any) -> bytes:
        """Put the values of a snapshot into the text, if they are others than last time."""
        values = self.sums(snapshot)
        if values != self.values:
            written = tuple(map(self.write_value, values)) if self.write_value else values
            self.data, self.values = encode(self.text % written), values
        kept = snapshot if isinstance(snapshot, bytes) else values  # a list could become another one behind our back
        self.snapshot = kept if len(self.data) <= self.most else Shape.snapshot
        return self.data


class Watched(Shape):
    """The live values of a reply in two steps: look() returns bytes, sums() their values. It is itself the shape of the text
    replies that have them: one that it refers to, and that refers to it, would live until the collector comes."""

    def __call__(self) -> tuple:
        return self.sums(self.look())


class Cached:
    """What is cached of a request: the call, and if its reply says so its shape, and its first line."""

    __slots__ = ("key", "call", "size", "shape", "now", "again", "reply", "exchange", "last_id")

    def __init__(self, key: Any, call: Call, size: int):
        self.key, self.call, self.size = key, call, size
        self.now: Callable[..., bytes | None] = lambda *request_id: None  # that of the shape if it may go out at once
        self.shape: Shape | None = None
        self.again: Callable | None = None  # that of its Answer
        self.reply: tuple = ()  # its code and reason
        self.exchange: Exchange | None = None  # of last time
        self.last_id = b""

    def exchanged(self, request: bytes, reply: bytes) -> Exchange:
        """The exchange of now, a new one only when the request or the reply is."""
        if self.exchange is None or self.exchange.reply is not reply or self.exchange.request != request:
            self.exchange = exchange_of(self.call, self.reply, request, reply)
        return self.exchange


def with_id(request: Request, request_id: bytes) -> Request:
    """A request that is the same but for its id, which is empty where requests have none."""
    if not request_id:
        return request
    number = json.loads(request_id) if request_id[0] == ord('"') else int(request_id)
    return new(Request, (*request[:4], number, *request[5:]))


def call_with_id(call: Call, request_id: bytes) -> Call:
    """The call for such a request."""
    return new(Call, (call.dialect, call.command, with_id(call.request, request_id), call.values, call.refusal))


def exchange_of(call: Call, reply: tuple, request: bytes, written: bytes) -> Exchange:
    """What was asked and answered."""
    command, name = call.command, call.request.name
    values, shown = call.request.values if command.input else None, written or None
    if isinstance(reply, Refusal):
        values, shown = values if reply.shows_values else None, shown if reply.shows_reply else None
        name = command.name.strip("*")
    return new(Exchange, (request, name, values, reply[0], reply[1], shown))


class Answers:
    """Answers datagrams from the commands of a registry.

    log: a logger for what handlers raise; dialect: auto, text or jsonrpc; indent and pretty: how either is written; most:
    bytes of the longest request and reply; failed(): called for each built-in error; allowed(command, caller, name): whether
    one in `restricted` may be used; pause(): gives others their turn between the requests of a batch; untimed(): called when
    handler_timeout does not hold for what follows; spaces: the store, for replies that depend on spaces.
    """

    def __init__(self, registry: Registry, log, dialect: str = "auto", indent: str = "\t", pretty: bool = False,
                 most: int = LIMIT, restricted: Iterable[str] = (), allowed=None, failed: Callable[[], None] = lambda: None,
                 pause: Callable[[], None] = lambda: None, untimed: Callable[[], None] = lambda: None, spaces: Any = None):
        self.restricted = frozenset([*restricted, "*"] if restricted else ())  # of a catch-all, its rules are asked each time
        self.log, self.allowed, self.failed = log, allowed, failed
        self.pause, self.untimed, self.spaces = pause, untimed, spaces
        self.interrupted = functools.partial(log.error, "command %s ran longer than handler_timeout and was ended")
        self.wrapped = registry.around(self).wrapped if registry.around else lambda data, calls, caller, proceed: proceed()
        self.commands, self.wrappers = registry.commands, registry.wrappers
        self.most, text, jsonrpc = most, Text(registry, indent, most), JsonRpc(registry, pretty, most)
        self.dialect_of: Callable[[bytes], Text | JsonRpc] = {
            "auto": lambda data: jsonrpc if JSON_START.match(data) else text,
            "text": lambda data: text, "jsonrpc": lambda data: jsonrpc}[dialect]
        self.seen: set[int] = set()  # hashes of keys that came once
        self.cache = Memo(CACHE_BYTES)  # Cached by the keys of their dialect, or by a whole datagram

    def at_once(self, data: bytes) -> tuple[Cached | None, bytes | None]:
        """What is cached for a datagram that is not cached whole, and its reply of now; None for what takes answer()."""
        if len(data) > KEPT_REQUEST:
            return None, None
        key, request_id = self.dialect_of(data).key(data)
        cached = self.cache.get(key)
        reply = cached.now(request_id) if cached else None
        if request_id and cached:
            if (reply or cached.again) and request_id == cached.last_id and not self.wrappers:  # the same bytes again need no
                whole = Cached(data, call_with_id(cached.call, request_id), 2 * len(data))  # look at their id
                whole.again, whole.last_id = cached.again, request_id
                self.cache.keep(data, whole, whole.size)
            cached.last_id = request_id
        return cached, reply

    def answer(self, data: bytes, caller: Any = None, cached: Cached | None = None) -> Answer:
        """What a datagram leads to; `cached` is what a child knows of it, which has no reply of now."""
        if cached is not None and not self.wrappers:
            answer = cached.again(data, caller, cached.last_id) if cached.again else None
            if answer or cached.key == data:
                return answer or self.finish(data, cached.call, caller, cached)
        dialect = self.dialect_of(data)
        if len(data) > self.most:  # of such a request only the first byte is looked at
            call = Call(dialect, NO_COMMAND, NO_REQUEST, None, dialect.request_too_long(len(data)))
            data = data[:self.most]
            return self.wrapped(data, [call], caller, functools.partial(self.finish, data, call))
        key, request_id = dialect.key(data)
        cached = self.cache.get(key)
        if cached:
            call = call_with_id(cached.call, request_id)
            return self.wrapped(data, [call], caller, functools.partial(self.again, data, call, caller, cached, request_id))
        calls = dialect.read(data)
        if calls is None:
            return SILENCE
        if isinstance(calls, Call):
            cached = None if calls.refusal else self.remember(data, key, calls)
            return self.wrapped(data, [calls], caller, functools.partial(self.finish, data, calls, caller, cached))
        batch = [call for call in calls if not self.pause()] if self.wrappers else calls
        return self.wrapped(data, batch, caller, functools.partial(self.batch, data, dialect, batch, caller))

    def again(self, data: bytes, call: Call, caller: Any, cached: Cached, request_id: bytes) -> Answer:
        """Answer a request that is cached."""
        written = cached.shape.now(request_id) if cached.shape else None
        if written is None:
            return self.finish(data, call, caller, cached)
        return new(Answer, ([(0, written)], [cached.exchanged(data, written)], None))

    def batch(self, data: bytes, dialect: Text | JsonRpc, calls: Iterable[Call], caller: Any) -> Answer:
        """Answer the requests of a batch one after the other; notifications have no part in the reply.

        handler_timeout holds for all together: when one is interrupted, those behind it are not run.
        """
        parts, size, late = [], 0, False
        exchanges: list[Exchange] = []
        for call in calls:
            try:
                if not late:
                    self.pause()
            except Interrupted:
                late = True
                self.interrupted(call.command.name)
            if size > self.most and call.refusal:  # nobody is going to see it
                continue
            reply, written, datagrams = self.outcome(data, call._replace(refusal=TIMED_OUT) if late else call, caller)
            late = late or reply is TIMED_OUT
            exchanges.extend(reply.exchanges if isinstance(reply, Answer) else [exchange_of(call, reply, data, written)])
            written = written if datagrams is None else b"".join(part for _, part in datagrams[:1])
            size += len(written)
            if written and size <= self.most:  # a reply that cannot fit is given up while it grows
                parts.append(written)
        written = dialect.join(parts)
        if size > self.most or len(written) >= self.most:
            self.failed()
            written = encode(f"{NOT_SENDABLE.code} {NOT_SENDABLE.reason}")
        return Answer([(0, written)] if written else [], exchanges)

    def remember(self, data: bytes, key: Any, call: Call) -> Cached | None:
        """Cache what a request teaches, from its second time on; what a slow command answers from its first while it has room."""
        if key is None or len(data) > KEPT_REQUEST:
            return None
        if once := hash(key) not in self.seen:
            if len(self.seen) >= SEEN_BYTES // 100:
                self.seen.clear()
            self.seen.add(hash(key))
        if once and not (call.command.is_slow and self.cache.bytes < CACHE_BYTES // 4) or not call.dialect.is_key_of(key, call):
            return None
        cached = Cached(key, call, 2 * len(data) + VALUE_BYTES * len(call.request.values))
        return cached if once else self.cache.keep(key, cached, cached.size)

    def finish(self, data: bytes, call: Call, caller: Any = None, cached: Cached | None = None) -> Answer:
        """Answer a request."""
        reply, written, datagrams = self.outcome(data, call, caller, cached)
        if isinstance(reply, Answer):
            if reply.again and cached:
                if not cached.again:
                    self.cache.keep(cached.key, cached, self.cache.sizes.get(cached.key, 0) + 8 * len(data) + 1000)
                cached.again = reply.again
            return reply
        sent = datagrams if datagrams is not None else [(0, written)] if written else []
        return new(Answer, (sent, [exchange_of(call, reply, data, written)], None))

    def outcome(self, data: bytes, call: Call, caller: Any, cached: Cached | None = None) -> tuple:
        """Run a command: its reply, how that is written, which is empty for a notification, and what goes out in its place."""
        dialect = call.dialect
        reply: Any = call.refusal
        try:
            if reply is None:
                reply = self.run(call, caller, data, cached)
            if isinstance(reply, Answer):  # of who has forwarded the request
                return reply, b"", reply.datagrams
            if isinstance(reply, Reply):
                written = self.write(reply, call, cached)
                if len(written) > self.most - LIMIT_ROOM and len(written) > dialect.limit(call):
                    raise TooLong(len(written))
                return reply, written, reply.send(written) if written and reply.send else None
        except Interrupted:
            self.interrupted(call.command.name)
            reply = TIMED_OUT
        except TooLong as error:
            reply = dialect.too_long(error.args[0])
        except BaseException:  # the seam: whatever a plug-in raises, a Timeout of gevent or an exit, costs one reply
            self.log.exception("command %s raised, or gave a reply that cannot be written", call.command.name)
            reply = COMMAND_FAILED
        self.failed()
        return reply, encode(dialect.write(reply, call)), None

    def write(self, reply: Reply, call: Call, cached: Cached | None) -> bytes:
        """A reply as bytes; one that is live, or is made by a pure command, is cached with its request."""
        dialect, command = call.dialect, call.command
        if cached and command.pure and reply.live is None and not reply.send:
            reply = reply._replace(live=CONSTANT)
        if reply.live is None or not call.request.answered:
            return encode(dialect.write(reply, call))
        shape = dialect.shape(reply, call, cached and cached.key)
        snapshot = shape.look()
        data = shape.data if snapshot == shape.snapshot else shape.fill(snapshot)
        if cached and cached.shape is not shape and command.name not in self.restricted:
            cached.shape, cached.reply = shape, reply[:2]
            if not self.wrappers or not any(not names or names & {call.request.name, command.name}
                                            for _, function, names in self.wrappers if not function.mi_cached):
                cached.now = shape.now  # else what is around it is asked each time
            size = cached.size + 2 * (len(shape.text) + len(shape.data)) + 1000
            self.cache.keep(cached.key, cached, size)
        return data + dialect.id_of(call) + shape.tail if shape.tail else data

    def run(self, call: Call, caller: Any, data: bytes, cached: Cached | None) -> Reply | Refusal | Answer:
        """Call the handler; a refusal that it raises becomes a reply."""
        command = call.command
        if command.name in self.restricted and not self.allowed(command, caller, call.request.name):
            return Reply(403, "Forbidden")
        if not command.timed:
            self.untimed()
        since = self.spaces.newest() if self.spaces else 0
        try:
            reply = command.function(Context(command.module, call.request, caller, data), *call.values)
            if not isinstance(reply, Reply):
                reply = reply.get() if hasattr(reply, "get") and not isinstance(reply, dict) else reply
                reply = Reply(nodes=json_nodes(reply), result=reply) if isinstance(reply, (dict, list)) else reply
            if isinstance(reply, Reply) and reply.depends:
                command.is_slow, live = True, cached and self.spaces.unchanged(reply.depends, since, reply.until_s)
                return new(Reply, (*reply[:3], live, *reply[4:]))
            if isinstance(reply, (Reply, Refusal, Answer)):
                return reply
            kind = "nothing" if reply is None else f"{type(reply).__name__}, which is no midatagram.Reply"
            raise Failed(f"its handler returned {kind}")
        except Error as error:
            return refused(error, error if error.data else None)
        except Failed as why:
            self.log.warning("command %s failed: %s", call.request.name, why)
        return COMMAND_FAILED


###############################################################################
# 9. Configuration ############################################################
###############################################################################
# Strategy: text -> tokens -> directives with file and line. The lexer follows
# opensips.cfg's rules; what is not ours (routes, globals, other modules) is
# passed over as a whole and named once, so that a server's own opensips.cfg
# can be given as it is. Applying directives to modules is part two's loader.

TOKEN = re.compile(
    r"""(?P<blank>[ \t\r\n]+ | \#[^\n]* | [^!-~] | [@?`\\])   # characters that fit no rule are blanks
      | (?P<comment>/\*)
      | (?P<string>"(?:[^"\\]|\\.)*" | '[^']*')
      | (?P<number>[0-9][A-Za-z0-9_.]*)
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<mark>.)""",
    re.X | re.S,
)
COMMENT_MARK = re.compile(r"/\*|\*/")
ESCAPE = re.compile(r'\\([nrat"\\\n]|x[0-9a-fA-F]{1,2}|[0-7]{2,3})')
ESCAPED = {"n": "\n", "r": "\r", "a": "\a", "t": "\t", '"': '"', "\\": "\\", "\n": ""}
INCLUDE_DEPTH = 10  # files within files, as in opensips.cfg

# The statements that are ours, by their first word. A statement has the tokens of its form: the same marks, a string
# for a string, any value for VALUE, a value or a bare word for NAME.
FORMS = {re.split(r"\W", form)[0]: form for form in (
    'loadmodule "NAME.so"', 'mpath="DIRECTORY"', 'modparam("MODULE", "PARAMETER", VALUE)', 'include_file "FILE"',
    'import_file "FILE"', "log_level=VALUE", "log_stderror=VALUE", "stderror_enabled=VALUE", "log_facility=NAME",
    "syslog_facility=NAME", "stderror_level_filter=VALUE", "syslog_level_filter=VALUE", 'db_default_url="URL"')}
M4 = re.compile(r"^(?:(?:define|undefine|divert|changequote|s?include|ifdef|ifelse)\(|dnl\b)", re.M)  # what an m4 source has


class Token(NamedTuple):
    """A piece of a configuration."""

    kind: str  # string, number, word, end, or itself: a mark, a word of FORMS
    value: str
    line: int  # that it starts on


class Directive(NamedTuple):
    """A statement."""

    word: str  # the first of one of ours; for another `passed`, or `stray` if that is a mark
    args: tuple  # of one of ours the values, of another its first word and its calls
    path: str
    line: int


def unescaped(match: re.Match) -> str:
    """What an ESCAPE in a "string" stands for."""
    escape = match[1]
    return ESCAPED[escape] if escape in ESCAPED else decode(bytes([int(f"0{escape}", 16 if escape[0] == "x" else 8) & 255]))


def read_number(text: str, path: str, line: int) -> Written:
    """An integer as opensips.cfg has it: decimal, 0x hexadecimal, 0 octal."""
    digits = text.lstrip("+-")
    base = 16 if digits.startswith("0x") else 8 if digits.startswith("0") else 10
    if not re.fullmatch(r"0|[1-9][0-9]*|0x[0-9a-fA-F]+|0[0-7]+", digits) or int(digits, base) >= 2**31:
        octal = "; after a first 0, which means octal, come digits from 0 to 7" if re.fullmatch("0[0-9]+", digits) else ""
        raise ConfigError(path, line, f"not an integer: {digits} (decimal 10, octal 0660 or 0x1f, below 2^31){octal}")
    return tagged(Written(int(text, base)), text=text.lstrip("+"))


def read_comment(text: str, at: int, path: str, line: int) -> str:
    """The whole /* comment */ that starts at `at`; they nest."""
    depth = 0
    for mark in COMMENT_MARK.finditer(text, at):
        depth += 1 if mark.group() == "/*" else -1
        if depth == 0:
            return text[at:mark.end()]
    raise ConfigError(path, line, "no closing */ for the comment that starts here")


def tokens(text: str, path: str) -> Iterator[Token]:
    """The tokens of a configuration, without blanks and comments; a string ends at a NUL."""
    at, line = 0, 1
    while match := TOKEN.match(text, at):
        kind, body = str(match.lastgroup), match.group()
        if kind == "comment":
            body = read_comment(text, at, path, line)
        elif kind == "string":
            if "\n" in body and re.match(r"[\w$/\[]", text[match.end():match.end() + 1]):  # that quote opens another one
                raise ConfigError(path, line, f"no closing {body[0]} for the string that starts here")
            inner = body[1:-1] if body[0] == "'" else ESCAPE.sub(unescaped, body[1:-1])
            yield Token(kind, inner.partition("\0")[0], line)
        elif body in ("'", '"'):
            raise ConfigError(path, line, f"no closing {body} for the string that starts here")
        elif kind != "blank":
            yield Token(body if kind == "mark" or body in FORMS else kind, body, line)
        at += len(body)
        line += body.count("\n")


class ConfigReader:
    """Reads a configuration and the files it includes into directives; read: path -> text, or None for no file; calls: what is
    wanted of the tokens of a statement that is not ours. ConfigError."""

    def __init__(self, read: Callable[[str], str | None], calls: Callable = lambda script: (), depth: int = 0):
        self.read_file, self.calls, self.depth = read, calls, depth
        self.directives: list[Directive] = []

    def read(self, path: str) -> list[Directive]:
        """The directives of a file."""
        text = self.read_file(path)
        if text is None:
            raise ConfigError(path, 0, "no such file")
        if m4 := M4.search(text):
            raise ConfigError(path, text.count("\n", 0, m4.start()) + 1, f'"{m4[0]}" is for m4, and this file its source: '
                              f"run `m4 {path} > opensips.cfg` and give that")
        self.path, self.at, self.tokens = path, 0, [*tokens(text, path)]
        self.tokens.append(Token("end", "end of file", self.tokens[-1].line if self.tokens else 1))
        while (kind := self.tokens[self.at].kind) != "end":
            self.statement(FORMS[kind]) if kind in FORMS else self.pass_over()
        return self.directives

    def next(self) -> Token:
        """The next token, which is read then."""
        self.at += 1
        return self.tokens[self.at - 1]

    def statement(self, form: str) -> None:
        """Read a statement of ours, which has that form."""
        word, _, line = self.tokens[self.at]
        args = self.arguments(form, form)
        while word == "mpath" and self.tokens[self.at].kind == ":":
            args += self.arguments(':"DIRECTORY"', form)
        if word in ("include_file", "import_file"):
            self.include(word, args[0], line)
        else:
            self.directives.append(Directive(word, tuple(args), self.path, line))

    def arguments(self, part: str, form: str) -> list[Any]:
        """Read the tokens of a part of a form; the values in it."""
        args: list[Any] = []
        for wanted in tokens(part, self.path):
            if wanted.value in ("VALUE", "NAME"):
                args.append(self.value(form, wanted.value == "NAME"))
                continue
            token = self.next()
            if token.kind != wanted.kind:
                bare = (wanted.kind, token.kind) == ("string", "word")
                found = f"{token.value}, which has no straight quotes" if bare else f'"{token.value}"'
                raise ConfigError(self.path, token.line, f'expected "{wanted.value}", found {found}; the form is {form}')
            if token.kind == "string":
                args.append(token.value)
        return args

    def value(self, form: str, is_name: bool) -> str | Written:
        """Read a value: text, which may be folded into several strings, an integer with its sign, one of WORDS, or a name."""
        token = self.next()
        if token.kind in ("+", "-") and self.tokens[self.at].kind == "number":
            token = Token("number", token.value + self.next().value, token.line)
        if token.kind == "number":
            return read_number(token.value, self.path, token.line)
        if token.kind == "word" and token.value in WORDS:
            return tagged(Written(WORDS[token.value]), text=token.value)
        if token.kind == "string":
            parts = [token.value]
            while self.tokens[self.at].kind == "string":
                parts.append(self.next().value)
            return "".join(parts)
        if token.kind == "word" and is_name:
            return token.value
        raise ConfigError(self.path, token.line, f'"{token.value}" is neither in quotes nor an integer; '
                          f"the form is {form}{nearest(token.value, WORDS)}")

    def include(self, word: str, name: str, line: int) -> None:
        """Read a file in place: as named, else beside the including file; import_file may be missing."""
        if self.depth >= INCLUDE_DEPTH:
            raise ConfigError(self.path, line, f"files include each other more than {INCLUDE_DEPTH} deep")
        beside = str(pathlib.PurePosixPath(self.path).parent / name)
        place = next((path for path in (name, beside) if self.read_file(path) is not None), None)
        if place is not None:
            self.directives += ConfigReader(self.read_file, self.calls, self.depth + 1).read(place)
        elif word == "include_file":
            raise ConfigError(self.path, line, f'no file "{name}"; import_file would pass over a missing one')

    def pass_over(self) -> None:
        """Skip a statement that is not ours: to the end of its line or its block, or to a word that is ours."""
        first, start, depth, inside = self.tokens[self.at], self.at, 0, True
        while inside:
            last, following = self.next(), self.tokens[self.at]
            depth += {"{": 1, "}": -1}.get(last.kind, 0)
            if depth < 0:
                raise ConfigError(self.path, last.line, 'a "}" without its "{"')
            goes_on = last.kind != "}" and (following.line == last.line or following.kind in ("{", "=", ",", "|"))
            inside = following.kind != "end" and (depth > 0 or (goes_on and following.kind not in FORMS))
        if depth:
            raise ConfigError(self.path, first.line, f'no closing "}}" for the block that {first.value} starts')
        kind = "passed" if first.kind in ("word", "string", "number") else "stray"
        self.directives.append(Directive(kind, (first.value, *self.calls(self.tokens[start:self.at])), self.path, first.line))


###############################################################################
###############################################################################
## PART TWO - where datagrams come from: sockets, processes, files ############
###############################################################################
###############################################################################

import _socket
import argparse
import collections
import errno
import fcntl
import gc
import grp
import importlib
import logging
import mmap
import os
import pickle
import pwd
import random
import signal
import socket
import sqlite3
import tempfile
import termios
import time
import traceback
from stat import S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IMODE, S_ISDIR, S_ISLNK, S_ISREG, S_ISSOCK, S_ISVTX

log = logging.getLogger("midatagram")

# The exit statuses, after BSD's sysexits where it has a name for the case.
EXIT_OK, EXIT_CRASH, EXIT_USAGE, EXIT_NOT_RUNNING = 0, 1, 2, 3
EXIT_IN_USE, EXIT_CANNOT_CREATE, EXIT_RUNNING, EXIT_PERMISSION, EXIT_CONFIG = 69, 73, 75, 77, 78


class StartError(Exception):
    """What keeps the server from starting: one line for the user, and the exit status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


###############################################################################
# 10. Shared state ############################################################
###############################################################################
# Strategy: what processes share is of three kinds, each with one home.
# Counters and the process table are anonymous shared memory made before the
# first fork: each process writes only its own row, so nothing is locked and
# nothing is lost; who reads, adds up. Values with names (cache, subscribers,
# what plug-ins keep) are in one key-value store.

ROWS = 512  # rows of counters: one a process, and as many again while a reload replaces children
BLOCK = 32  # columns that lie together, row after row, so that a poll of one module's statistics is one slice
BLOCKS = 256  # 7,936 statistics at most, over all reloads
SLOT = 8  # bytes of a counter
ATTENDANT = 1  # the parent's row; row 0 holds the sums of the last reset, which are subtracted


class Counters:
    """64-bit counters in shared memory: BLOCKS of ROWS of BLOCK columns. Each block's first slot is the rows in use. They are
    set one by one, which no other process can see half done; struct.pack_into() would zero them first."""

    def __init__(self):
        self.slots = memoryview(mmap.mmap(-1, BLOCKS * ROWS * BLOCK * SLOT)).cast("q")
        self.columns: dict[str, int] = {}  # "group:name" -> column, for the life of the server
        self.room: dict[str, list[int]] = {}  # group -> free columns in its last block
        self.blocks = 0  # that are in use
        self.slots[0] = ATTENDANT + 1

    def use(self, row: int) -> memoryview:
        """All slots from a row's first one on: slots[column] is that row's counter of the column."""
        if row >= self.slots[0]:  # never in a child: the attendant calls this before it forks
            for block in range(self.blocks):
                self.slots[block * ROWS * BLOCK] = row + 1
        return self.slots[row * BLOCK:]

    def column(self, group: str, name: str) -> int:
        """The column of a statistic, which it keeps over reloads; those of a group share blocks with no other."""
        key = f"{group}:{name}"
        if key not in self.columns:
            room = self.room.setdefault(group, [])
            if not room:
                if self.blocks == BLOCKS:
                    raise StartError(EXIT_CONFIG, f"no room for statistic {key}, reloads included; restart the server")
                first = self.blocks * ROWS * BLOCK
                room.extend(range(first + BLOCK - 1, first, -1))
                self.slots[first] = self.slots[0]
                self.blocks += 1
            self.columns[key] = room.pop()
        return self.columns[key]

    def set(self, column: int, value: int) -> None:
        """Make the sum of a column that nobody adds to `value`: in row 0, which all processes write."""
        self.slots[column] = -value

    def reset(self, column: int) -> None:
        """Make a sum start again from 0, without touching what other processes write; at once in two processes as well."""
        self.slots[column] = sum(self.slots[row * BLOCK + column] for row in range(ATTENDANT, self.slots[0]))


class Reader(Watched):
    """The present sums of columns of one block; what is looked at is a copy of the block."""

    def __init__(self, counters: Counters, columns: Iterable[int]):
        columns, stride = tuple(columns), ROWS * BLOCK
        self.slots, self.start = counters.slots, columns[0] // stride * stride
        places = [column % stride for column in columns]
        self.pick = operator.itemgetter(*places) if len(places) > 1 else lambda row: (row[places[0]],)
        self.copy, self.last = b"", ()  # the values of that copy
        self.widen(counters.slots[0])

    def widen(self, rows: int) -> None:
        """Look at so many rows of the block."""
        self.look = self.slots[self.start:self.start + rows * BLOCK].tobytes

    def sums(self, copy: bytes) -> tuple:
        """The sums in a copy of the block. When there are more rows by now, they are looked at as well, as from now on."""
        if copy == self.copy:
            return self.last
        view = memoryview(copy).cast("q")
        if view[0] * BLOCK != len(view):
            self.widen(view[0])
            return self()
        zero, *rows = [self.pick(view[at:at + BLOCK]) for at in range(0, len(view), BLOCK)]
        self.copy, self.last = copy, tuple(map(operator.sub, map(sum, zip(*rows)), zero))
        return self.last


def unless_changed(look: Callable[[], Any], holds: Callable[[Any], bool] = lambda snapshot: True) -> Callable[[], tuple]:
    """The `live` of a reply that holds as long as look() returns what it does now, and that holds(): it returns no values, or
    raises LookupError, for which the command is called again. Not the first time, when the reply is written."""
    calls, snapshot = itertools.count(), look()
    snapshot = snapshot if holds(snapshot) else object()

    def live() -> tuple:
        if next(calls) and look() != snapshot:
            raise LookupError
        return ()

    return live


class Processes:
    """The process table: a row each, as in Counters. Row 0 has the number of rows in use, and the levels that hold for all."""

    FIELDS = ("pid", "rank", "state", "own_level", "level", "xlog_level")
    FREE, STARTING, SERVING, STOPPING = range(4)

    def __init__(self):
        self.slots = memoryview(mmap.mmap(-1, ROWS * (len(self.FIELDS) + 1) * SLOT)).cast("q")
        self.beats = self.slots[ROWS * len(self.FIELDS):]  # ms, when each was last in its hub; apart, for it changes all the time
        self.torn = mmap.mmap(-1, 1)  # whether the last line of the log lacks its end, see LogHandler
        self.set(0, pid=ATTENDANT + 1, xlog_level=2)

    def get(self, row: int, field: str) -> int:
        """One field of one process."""
        return self.slots[row * len(self.FIELDS) + self.FIELDS.index(field)]

    def set(self, row: int, **fields: int) -> None:
        """Write fields of one process."""
        for field, value in fields.items():
            self.slots[row * len(self.FIELDS) + self.FIELDS.index(field)] = value

    def unchanged(self) -> Callable[[], tuple]:
        """The `live` of a reply that shows the table as it is now; the next one is made when the table is another."""
        return unless_changed(self.slots[:self.slots[0] * len(self.FIELDS)].tobytes)

    def claim(self) -> int | None:
        """A free row for a new child, None when there is none."""
        for row in range(ATTENDANT + 1, ROWS):
            if not self.get(row, "pid") and self.get(row, "state") == self.FREE:
                self.set(row, state=self.STARTING, own_level=0)
                self.slots[0] = max(self.slots[0], row + 1)
                return row
        return None

    def living(self) -> list[tuple]:
        """(rank, pid, type, row) of each process that is not on its way out, the attendant first, then by rank."""
        return sorted((self.get(row, "rank"), self.get(row, "pid"), "MI Datagram" if row != ATTENDANT else "attendant", row)
                      for row in range(ATTENDANT, self.slots[0])
                      if self.get(row, "pid") and self.get(row, "state") in (self.STARTING, self.SERVING))

    def log_level(self, row: int) -> int:
        """The log level in force in a process: its own, else the global one (kept in row 0)."""
        return self.get(row, "level") if self.get(row, "own_level") else self.get(0, "level")


class StoreError(Error):
    """The store cannot do what it is asked for: it is full, or another process holds it."""


PAGE = 4096  # bytes
JOURNAL_BYTES = 64 * PAGE  # set aside for SQLite's journal, for which a full file system has no room
SLICE_ROWS, FEW_ROWS = 25, 5  # that are deleted in one transaction; the few never need more room for the journal
SLICE_S = 0.005  # for which keys are compared in one transaction
ROW_BYTES = 100  # of a row in the file, beyond its value and twice its key
SPACES = 1024  # versions in shared memory; two spaces that share one are read a little more often
NEWEST, DONE, USED, ROOM, FULL_S, FAILED_S, MOVED_S, FIRST = range(8)  # the last version, the last one committed, bytes, ...
OTHERS = 16  # one part in so many of the store is not for cached values: a full cache refuses no subscriptions
LOCK_S = 1.0  # for which requests wait for a locked store, all of them at the same time
READ_BYTES = 4 << 20  # of values that were read, per child
REMOVED_S = 60  # for which changes() reports a removed key
INCIDENT_S = 60  # without a failure, and the next one is logged again
FULL = "database or disk is full"  # SQLite's words


class Store:
    """A key-value store with expiry that all processes share; keys and values are text, a key belongs to a space.

    Each child has one connection, so none of its greenlets gives way within a transaction. Times are of the steady clock.
    A row has the version of its last change. One of a removed key has no value, and minus the time of removal as its expiry.
    """

    IN_RAM = ("PRAGMA journal_mode = PERSIST", f"PRAGMA journal_size_limit = {JOURNAL_BYTES}", "PRAGMA synchronous = OFF",
              "PRAGMA secure_delete = OFF")  # with which each page that is let go would be in the journal
    ON_DISK = ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = NORMAL")  # for store_file
    OPEN = ("""CREATE TABLE IF NOT EXISTS item
               (space BLOB, key BLOB, value BLOB, expires REAL, version INTEGER, PRIMARY KEY (space, key))""",
            "CREATE INDEX IF NOT EXISTS expiring ON item (expires) WHERE expires IS NOT NULL",
            "CREATE INDEX IF NOT EXISTS changed ON item (space, version)")
    GET = "SELECT value, expires FROM item WHERE space = ? AND key = ?"
    PUT = """INSERT INTO item VALUES (?, ?, ?, ?, ?) ON CONFLICT (space, key)
        DO UPDATE SET value = excluded.value, expires = excluded.expires, version = excluded.version"""
    DELETE = "DELETE FROM item WHERE space = ? AND key = ?"
    CHANGES = "SELECT key, value, expires, version FROM item WHERE space = ? AND version > ? ORDER BY version"
    KEYS = "SELECT key, value, expires FROM item WHERE space = ? AND key >= ? ORDER BY key LIMIT ?"
    EXPIRED = "SELECT space, key, value, iif(value IS NULL, version, 0) FROM item WHERE expires BETWEEN ? AND ? LIMIT ?"

    def __init__(self, folder: str, size_bytes: int):
        self.folder, self.path = folder, os.path.join(folder, "store.sqlite")
        self.cursor: sqlite3.Cursor | None = None  # of this process' connection
        self.shared = memoryview(mmap.mmap(-1, (FIRST + 3 * SPACES) * SLOT)).cast("q")
        self.begun, self.committed, self.forgotten = [self.shared[FIRST + nth * SPACES:][:SPACES] for nth in range(3)]
        self.memo = Memo(READ_BYTES)
        self.mine: tuple = ()  # this process' last change: its space, the version before it and its own, and the row
        self.size_bytes, self.locked_s = size_bytes, 0.0
        self.failed: Callable[[], None] = lambda: None  # called for each StoreError

    @property
    def is_kept(self) -> bool:
        """Whether the store is a store_file, which the next run finds."""
        return os.path.dirname(self.path) != self.folder

    # What others use.

    def version(self, space: str) -> int:
        """A number that every change of a space raises; -1 while one is under way, 0 if nothing was ever in it. Who remembers
        what it reads asks for it before. A writer sets `begun` and then commits, and `committed` if it is not killed."""
        slot = hash(space) % SPACES
        begun = self.begun[slot]
        return begun if self.committed[slot] == begun else -1

    def now_s(self) -> float:
        """The steady clock, as far as a lab moved it; of expiries."""
        return time.monotonic() + self.shared[MOVED_S]

    def time_s(self) -> float:
        """The time of day, seconds since the epoch, moved as well; for what replies show."""
        return time.time() + self.shared[MOVED_S]

    def move_clock(self, seconds: int) -> None:
        """Move both clocks so far from what they really are, in all processes."""
        self.shared[MOVED_S] = seconds
        self.keep_clock()

    def keep_clock(self) -> None:
        """Have a store_file know how far the steady clock is behind the time of day: the next run has another one."""
        if self.is_kept:
            behind_s = time.time() - self.now_s()
            self.attempt(lambda run: run("UPDATE clock SET behind_s = ?1 WHERE abs(behind_s - ?1) > 0.01", (behind_s,)))

    def get(self, space: str, key: str, patient: bool = True) -> str | None:
        """The value of a key, None if there is none or it expired. `patient`: wait for a locked store."""
        return self.entry(space, key, patient)[0]

    def entry(self, space: str, key: str, patient: bool = True) -> tuple[str | None, float]:
        """As get(), and when the value expires."""
        version, name = self.version(space), (space, key)
        known, value, expires_s = (self.memo.get(name) if version else None) or (0, None, 0.0)
        if known != version:
            data, expires_s = self.attempt(lambda run: run(self.GET, [*map(encode, name)]).fetchone(), patient) or (None, None)
            value, expires_s = None if data is None else decode(data), inf if expires_s is None else expires_s
            if version > 0:
                self.memo.keep(name, (version, value, expires_s), sys.getsizeof(key) + sys.getsizeof(value))
        return value if expires_s > self.now_s() else None, expires_s

    def put(self, space: str, key: str, value: str, lifetime_s: float = 0) -> None:
        """Keep a value, for a time or (0) for good."""
        self.change(space, key, lambda old: value, lifetime_s)

    def remove(self, space: str, key: str) -> None:
        """Forget a key."""
        if self.version(space):  # else nothing was ever in the space, not even where there is no room for a file
            self.change(space, key, lambda old: None)

    def change(self, space: str, key: str, function: Callable, lifetime_s: float | None = None) -> str | None:
        """Put function(value) in the place of a value, in one step for all processes; returns the new value.

        The function must not wait, and is called again if the store is full; None is no value. lifetime_s: how long the new
        value lasts, 0: for good, None: as the old one.
        """
        names = encode(space), encode(key)
        mine: tuple = ()

        def step(run: Callable, version: int, full: bool) -> tuple:
            nonlocal mine
            mine, now_s, row = (), self.now_s(), run(self.GET, names).fetchone()
            data, expires_s = row or (b"", -1)
            size = row_bytes(names[1], data) if row else 0
            gone = expires_s is not None and expires_s <= now_s
            value = function(None if gone else decode(data))
            if value is None and (gone or full):
                return None, 0 if gone else self.delete(run, [(*names, size, version)])
            if value is None:
                expires_s = -now_s
            elif gone or lifetime_s is not None:
                expires_s = now_s + lifetime_s if lifetime_s else None
            data = None if value is None else encode(value)
            run(self.PUT, (*names, data, expires_s, version))
            mine = space, self.begun[hash(space) % SPACES], version, (key, value, expires_s)
            return value, row_bytes(names[1], data) - size

        value = self.write(space, step)
        self.mine, mine = mine, ()  # what step() refers to may stay for long
        return value

    def items(self, space: str) -> list[tuple[str, str]]:
        """The (key, value) pairs of a space, the last changed first; StoreError."""
        _, _, rows = self.changes(space)
        now_s = self.now_s()
        return [(key, value) for key, value, expires_s in reversed(rows) if expires_s is None or expires_s > now_s]

    def changes(self, space: str, since: int = 0) -> tuple[bool, int, list[tuple]]:
        """What changed in a space since a version: whether all that came before is void, the `since` of the next call, and
        (key, value or None, when it expires or None) of each key that changed, the newest last."""
        slot, name = hash(space) % SPACES, encode(space)
        forgotten = min(self.forgotten[slot], self.committed[slot])  # a store_file is read while another process deletes
        rows = self.attempt(lambda run: run(self.CHANGES, (name, since)).fetchall())
        if 0 < since < self.forgotten[slot]:
            return self.changes(space)
        return (not since, max([since, forgotten, *[version for *_, version in rows]]),
                [(decode(key), None if value is None else decode(value), expires_s) for key, value, expires_s, _ in rows
                 if since or value is not None])

    def newest(self) -> int:
        """The version of the last change that all can read."""
        return self.shared[DONE]

    def unchanged(self, spaces: tuple, since: int, until_s: float | None) -> Callable[[], tuple]:
        """See unless_changed(): the reply holds as long as these spaces are as they were at `since`, and until a moment."""
        def look() -> list | None:
            return list(map(self.version, spaces)) if until_s is None or self.now_s() < until_s else None

        return unless_changed(look, lambda versions: versions is not None and 0 <= min(versions) <= max(versions) <= since)

    def remove_fitting(self, space: str, pattern: str) -> None:
        """Forget the keys that fit a pattern as fnmatch.fnmatchcase() reads it, in slices between which others get their turn."""
        fits, start = re.compile(fnmatch.translate(pattern)).match, b""  # in linear time, whatever the pattern is

        def step(run: Callable, version: int, full: bool) -> tuple:
            until_s, fitting, after = time.monotonic() + SLICE_S, [], None
            for key, value, _ in run(self.KEYS, (encode(space), start, FEW_ROWS if full else SLICE_ROWS)).fetchall():
                after = key + b"\0"
                if fits(decode(key)):
                    fitting.append((encode(space), key, row_bytes(key, value), version))
                if time.monotonic() > until_s:
                    break
            return after, self.delete(run, fitting)

        while start is not None:
            start = self.write(space, step)
            give_way()

    def spaces(self) -> list[str]:
        """The spaces that have keys."""
        return [decode(space) for space, in self.attempt(lambda run: run("SELECT DISTINCT space FROM item").fetchall())]

    def purge(self) -> None:
        """Delete what expired, in slices as well."""
        while self.write("", self.purge_slice):
            give_way()
        self.keep_clock()

    def close(self) -> None:
        """Close this process' connection."""
        if self.cursor:
            self.cursor.connection.close()
        self.cursor = None

    # A step gets run(statement, values), the new version, and whether the store is full; it returns its result and the growth.

    def purge_slice(self, run: Callable, version: int, full: bool) -> tuple:
        """Delete some of what expired, and of what was removed a while ago, or at any time if full; returns if there was any."""
        now_s = self.now_s()
        rows = run(self.EXPIRED, (-now_s if full else REMOVED_S - now_s, now_s, FEW_ROWS if full else SLICE_ROWS)).fetchall()
        return bool(rows), self.delete(run, [(space, key, row_bytes(key, value), seq) for space, key, value, seq in rows])

    def delete(self, run: Callable, rows: list[tuple]) -> int:
        """Delete rows: (space, key, row_bytes(), version that changes() can report no more); by how much the store grows."""
        for space, key, _, version in rows:
            run(self.DELETE, (space, key))
            slot = hash(decode(space)) % SPACES
            self.forgotten[slot] = max(version, self.forgotten[slot])
        return -sum(size for _, _, size, _ in rows)

    def attempt(self, act: Callable[[Callable], Any], patient: bool = True) -> Any:
        """What act(run) returns. While another process has the lock, others get their turn before each new try."""
        tries = 0
        while True:
            try:
                result = act((self.cursor or self.open()).execute)
                self.locked_s = 0.0
                return result
            except (sqlite3.Error, OSError) as error:
                if "locked" in str(error) and patient:
                    self.locked_s = self.locked_s or time.monotonic()
                waited_s = time.monotonic() - self.locked_s if tries > 2 else 0.0
                if "locked" not in str(error) or not patient or waited_s > LOCK_S:
                    raise self.failure(str(error)) from None
            import gevent
            gevent.sleep(0.0005 * min(tries, 32))
            tries += 1

    def open(self) -> sqlite3.Cursor:
        """Connect this process; sqlite3.Error, OSError."""
        connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)
        try:
            for statement in (*(self.ON_DISK if self.is_kept else self.IN_RAM), *self.OPEN,
                              f"PRAGMA max_page_count = {self.size_bytes // PAGE}"):
                connection.execute(statement)
            if not self.is_kept:
                with open(f"{self.path}-journal", "ab") as journal:
                    os.posix_fallocate(journal.fileno(), 0, JOURNAL_BYTES)
        except BaseException:
            connection.close()
            raise
        self.cursor = connection.cursor()
        return self.cursor

    def write(self, space: str, step: Callable) -> Any:
        """Do a step in one transaction, which gives the space a new version; returns the result of the step. If the store is
        full it is done anew once what expired is deleted."""
        def act(run: Callable, full: bool = False) -> Any:
            try:
                return self.transact(run, space, step, full)
            except sqlite3.OperationalError as error:
                if full or str(error) != FULL:
                    raise
            while self.transact(run, "", self.purge_slice, True):
                give_way()
            return act(run, True)

        return self.attempt(act)

    def transact(self, run: Callable, space: str, step: Callable, full: bool) -> Any:
        """See write(); sqlite3.Error, and what the step raises: then nothing has changed."""
        shared, slot, version, growth = self.shared, hash(space) % SPACES, 0, 0
        run("BEGIN EXCLUSIVE")
        try:
            result, growth = step(run, shared[NEWEST] + 1, full)
            if growth > 0 and not self.has_room(space, growth):
                raise sqlite3.OperationalError(FULL)
            version = self.begun[slot] = shared[NEWEST] = shared[NEWEST] + 1  # in this order
            shared[USED] += growth
            run("COMMIT")
        except BaseException:
            shared[USED] -= growth if version else 0
            with contextlib.suppress(sqlite3.OperationalError):  # SQLite may have done it already
                run("ROLLBACK")
            raise
        finally:
            self.committed[slot], shared[DONE] = max(version, self.committed[slot]), max(version, shared[DONE])
        return result

    def has_room(self, space: str, growth: int) -> bool:
        """Whether there is room for more bytes of keys and values: half of what the file may grow to is for these, since its
        pages are seldom full. A disk that others fill later does not make it less."""
        shared, used = self.shared, self.shared[USED] + growth
        if used > shared[ROOM]:
            disk, ours = os.statvfs(os.path.dirname(self.path)), os.stat(self.path).st_blocks * 512
            shared[ROOM] = max(shared[ROOM], (disk.f_bavail * disk.f_frsize + ours) // 2)
        room = min(shared[ROOM], self.size_bytes // 2)
        return used <= (room - room // OTHERS if space.startswith("cache:") else room)

    def failure(self, error: str) -> StoreError:
        """What a request gets for an error, which is logged once for all processes as long as it lasts."""
        now_s, slot = int(time.monotonic()), FULL_S if error == FULL else FAILED_S
        if not self.shared[slot] or now_s - self.shared[slot] > INCIDENT_S:
            log.error("the store fails: %s", error)
        self.shared[slot] = now_s or 1
        if error != FULL and "locked" not in error:
            self.close()  # and open it anew for the next request
        self.failed()
        return StoreError(500, "Server Internal Error")


def row_bytes(key: bytes, value: bytes | None) -> int:
    """About what a row takes in the file."""
    return 2 * len(key) + len(value or b"") + ROW_BYTES


# Files where others may write: a path is looked up once, and what is checked is what is used.


def identity_of(path: str | int, folder: int | None = None) -> tuple | None:
    """What tells a file from another one of the same name; None when there is none."""
    with contextlib.suppress(OSError):
        status = os.fstat(path) if isinstance(path, int) else os.stat(path, dir_fd=folder, follow_symlinks=False)
        return status.st_dev, status.st_ino
    return None


def remove_own(path: str, identity: tuple | None) -> None:
    """Delete a file if it is still the one of that identity; OSError. Who exchanges it meanwhile loses what is his own."""
    folder = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY)
    try:
        if identity_of(os.path.basename(path), folder) == identity:
            os.unlink(os.path.basename(path), dir_fd=folder)
    finally:
        os.close(folder)


def walk(path: str, check: Callable[[int, int], None], flags: int = os.O_PATH) -> int:
    """Follow a path, through links too, and open what it leads to; OSError. check(folder, step) raises for a forbidden step."""
    with contextlib.ExitStack() as stack:  # each step is opened in the folder before it: nobody can exchange what was checked
        def descriptor_of(name: str, folder: int | None = None) -> int:
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=folder)
            stack.callback(os.close, descriptor)
            return descriptor

        at, names = descriptor_of("/"), list(pathlib.Path(path).absolute().parts)
        for _ in range(256):  # steps that a path may have, those of its links included
            if not names:
                return os.open(f"/proc/self/fd/{at}", flags)
            step = descriptor_of(names.pop(0), at)
            check(at, step)
            if S_ISLNK(os.fstat(step).st_mode):
                names[:0] = pathlib.Path(os.readlink("", dir_fd=step)).parts
            else:
                at = step
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))


def name_of(descriptor: int) -> str:
    """The path of what a descriptor is open on."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


def follow_roots(folder: int, step: int) -> None:
    """For walk(): as root follow root's own links only; OSError."""
    status = os.fstat(step)
    if os.geteuid() == 0 != status.st_uid and S_ISLNK(status.st_mode):
        raise NotADirectoryError(errno.ENOTDIR, f"{name_of(step)} is a link of uid {status.st_uid}, which root does not follow")


def run_places() -> Iterator[str]:
    """Where the folder of a run may be, the best first; empty for none."""
    yield os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    yield "/dev/shm"
    with contextlib.suppress(FileNotFoundError):
        yield tempfile.gettempdir()


def check_unshared(folder: int, step: int, trusted: tuple = (0,)) -> None:
    """For walk(): refuse a step that others can exchange; PermissionError. A trusted one's folder in /tmp is none."""
    outer, inner = os.fstat(folder), os.fstat(step)
    sticky = outer.st_mode & S_ISVTX
    if outer.st_uid not in trusted or (
            outer.st_mode & 0o022 and not (sticky and S_ISDIR(inner.st_mode) and inner.st_uid in trusted)):
        raise exposed("its folder {0}", folder, "move it to another" if sticky else "mend: chown root {0}; chmod go-w {0}")


def check_roots(folder: int, step: int, *more: int) -> None:
    """For walk() to what root runs: as check_unshared(), and links and files are root's alone, or of users that are trusted."""
    inner, trusted = os.fstat(step), (0, os.stat(__file__).st_uid, *more)  # root runs this script: its owner is trusted as well
    check_unshared(folder, step, trusted)
    if S_ISLNK(inner.st_mode) and inner.st_uid not in trusted:
        raise exposed("its link {0}", step, "mend: chown -h root {0}")
    if S_ISREG(inner.st_mode) and (inner.st_uid not in trusted or inner.st_mode & 0o022):
        raise exposed("it", step, "mend: chown root {0}; chmod go-w {0}")


def exposed(what: str, step: int, mend: str) -> PermissionError:
    """Why root does not go that way; {0} stands for the path of the step."""
    text = f"{what} can be written by others than root, who runs this; {mend}".format(name_of(step))
    return PermissionError(errno.EPERM, text)


def run_folder() -> tuple[str, int]:
    """Make the folder of this run's shared files, in RAM where there is a tmpfs; clear away what dead runs left. Returns its
    path, and a descriptor that locks it for as long as a process of this run lives."""
    for place in run_places():
        with contextlib.suppress(OSError):
            for name in os.listdir(place):
                if re.fullmatch(r"midatagram-\d+-\w+", name):
                    with contextlib.suppress(OSError):
                        folder = os.path.join(place, name)
                        remove_run(folder, locked(folder))
            hidden = tempfile.mkdtemp(prefix=f".midatagram-{os.getpid()}-", dir=place)  # until it is locked
            descriptor, folder = locked(hidden), os.path.join(place, os.path.basename(hidden)[1:])
            os.rename(hidden, folder)
            return folder, descriptor
    raise StartError(EXIT_CANNOT_CREATE, "no folder for shared files: neither /dev/shm nor the temporary folder has room for one")


def locked(folder: str) -> int:
    """Lock a folder of ours; returns the descriptor. OSError when another run has it, which may be in another container."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "is not ours")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_run(folder: str, descriptor: int) -> None:
    """Remove the folder of a run, and the files that are in what the descriptor is open on; OSError."""
    try:
        for name in os.listdir(descriptor):
            os.unlink(name, dir_fd=descriptor)
        os.rmdir(folder)
    finally:
        os.close(descriptor)


def give_way() -> None:
    """Let others have their turn, requests in sockets as well: for these gevent.sleep(0) looks once in 50 times."""
    import gevent

    gevent.sleep(1e-6)


def original(module: str, name: str):
    """A function of the standard library as it was before gevent's patching, if that happened."""
    monkey = sys.modules.get("gevent.monkey")
    return monkey.get_original(module, name) if monkey else getattr(sys.modules[module], name)


MOST_STATISTICS = 4000  # of a request; as many do not fit into a reply
PLAN_BYTES = 600  # of a statistic in a reply that is cached
NO_STATISTICS = Reply(live=CONSTANT, result={})  # of unknown names alone, for JSON-RPC clients


def within_limit(items: Iterable) -> list:
    """The items, if they are no more than a request may ask for; Error."""
    items = list(itertools.islice(items, MOST_STATISTICS + 1))
    if len(items) > MOST_STATISTICS:
        raise Error(400, f"more than {MOST_STATISTICS} statistics")
    return items


def figures_of(read: Callable, names: list[str]) -> tuple:
    """The figures of statistics that have the same Stat.read."""
    figures = read()
    return tuple([figures[name] for name in names]) if isinstance(figures, dict) else (figures,) * len(names)


class Server:
    """What the attendant and the children have in common, and handlers reach as ctx.server; pair: see event_pair()."""

    def __init__(self, setup: Setup, counters: Counters, processes: Processes, store: Store, pair: tuple, started_s: float):
        self.setup, self.registry = setup, setup.registry
        self.counters, self.processes, self.store, self.started_s = counters, processes, store, started_s
        self.row, self.attendant_pid = ATTENDANT, os.getpid()  # this process' row of counters and of the process table
        self.plans = Memo(CACHE_BYTES)
        self.events = Events(self, pair)
        self.loads = any("load" in module.hooks for module in self.registry.modules)  # in a child, before it serves
        self.load_once: Callable = shared("loading", setup.path, "for load(), ").once(self) if self.loads else lambda again: None
        lenient_reader()  # now, while this process may read the folder of plug-ins
        rules = setup.own.get("allow_command")
        self.access = shared("access", setup.path, "for allow_command, ").Access(rules, self) if rules else None
        views = if_there("views")
        self.view_of = functools.lru_cache(None)(
            lambda space, apply: (views or shared("views", "ctx.view()")).View(store, space, apply))
        self.child: Any = None  # whose conclude() is called for what was answered with LATER
        self.later = 0  # requests that were, for which a stop waits
        self.tell: Callable[[str], None] = lambda what: None  # called before what may hold up the start of a child
        for module in setup.registry.modules:
            module.server, module.log = self, log.getChild(module.name)
            module.columns = {stat.name: counters.column(stat.group, stat.name) for stat in module.stats if stat.read is None}
        self.become(ATTENDANT)

    def become(self, row: int) -> None:
        """Count in that row from now on."""
        self.row, self.counted = row, self.counters.use(row)
        for module in self.registry.modules:
            module.row = self.counted
        self.core = self.registry.modules_by_name["mi_datagram"].columns
        if row != ATTENDANT:
            self.store.size_bytes = self.setup.own["store_size"]
            self.store.failed = functools.partial(self.count, "store_errors")

    def count(self, name: str, by: int = 1) -> None:
        """Add to one of the statistics of group mi_datagram."""
        self.counted[self.core[name]] += by

    def values_of(self, stats: list[Stat]) -> Callable[[], tuple]:
        """A function that returns the present values of statistics, in their order."""
        counters = self.counters
        runs = itertools.groupby(stats, lambda stat: stat.read or counters.column(stat.group, stat.name) // (ROWS * BLOCK))
        parts = [functools.partial(figures_of, source, [stat.name for stat in run]) if callable(source)
                 else Reader(counters, [counters.column(stat.group, stat.name) for stat in run]) for source, run in runs]
        return parts[0] if len(parts) == 1 else lambda: tuple(itertools.chain.from_iterable([part() for part in parts]))

    def statistics(self, names: tuple, dialect: str) -> Reply:
        """The reply that shows statistics, which is cached: pollers ask for the same ones again. Error when unknown. In JSON one
        that is asked for twice is shown once, as the members of an object are."""
        known, once = self.registry.stats[dialect], dialect == "jsonrpc"
        key = (once, *[name for name in within_limit(names) if known[name]])
        reply = self.plans.get(key)
        if reply:
            return reply
        stats = within_limit(itertools.chain.from_iterable(map(known.__getitem__, key[1:])))
        if not (stats or once):
            raise Error(404, "Statistics Not Found")
        stats = list({id(stat): stat for stat in stats}.values()) if once else stats
        nodes = leaves(itertools.repeat(LIVE, len(stats)), [f"{stat.group}:{stat.name}" for stat in stats])
        reply = Reply(nodes=nodes, live=self.values_of(stats)) if stats else NO_STATISTICS
        return self.plans.keep(key, reply, PLAN_BYTES * (len(key) + len(nodes)))

    def call_hooks(self, word: str) -> None:
        """Call the functions of that name that plug-ins have."""
        for module in self.registry.modules:
            if word in module.hooks:
                self.tell(f"{word}() of {module.name}")
                module.hooks[word](Context(module))

    def raise_event(self, name: str, attributes) -> int:
        """Have an event sent to its subscribers; returns how many it is sent to. Never waits."""
        return self.events.hand_over(name, attributes) if self.row == ATTENDANT else self.events.put(name, attributes)


###############################################################################
# 11. Logging #################################################################
###############################################################################
# Strategy: every record goes through one handler, which never waits, and one
# formatter, which lets no text of a client or file pass for a line of ours.
# What strangers can cause is limited where it is logged, in a child.

LOG_LEVELS = {4: logging.DEBUG, 3: logging.INFO, 2: 25, 1: logging.WARNING, 0: logging.ERROR, -1: logging.ERROR,
              -2: logging.CRITICAL, -3: 60}  # OpenSIPS' log levels and those of Python's logging
NOTICE, LOG_LEVEL_DEFAULT = 25, 3
logging.addLevelName(NOTICE, "NOTICE")
logging.addLevelName(60, "ALERT")
PRIORITIES = {10: 7, 20: 6, 25: 5, 30: 4, 40: 3, 50: 2, 60: 1}  # of syslog and the journal
APPENDING = os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
LINE = 3900  # bytes of a line; further ones are cut
PARTS = re.compile(rb"(?s).{1,4000}(?:\n|\Z)")  # whole lines written at once: with what frames them a pipe takes all or none
PERIOD_S, LINES, EACH = 5.0, 20, 5  # of one kind a child logs so many lines in that time, and so many about one client
ONCE, LABEL = 4096, 100  # lines remembered that are logged once; characters of a line's text that name its kind


def escaped(text: str) -> str:
    """Text on one line, which no reader of logs takes for another one, cut to LINE bytes: what is not printable is escaped."""
    if not text.isprintable():
        text = "".join([char if char.isprintable() else repr(char)[1:-1].replace("\\udc", "\\x") for char in text])
    data = text.encode()
    return text if len(data) <= LINE else f"{data[:LINE - 3].decode(errors='ignore')}..."


class LineFormatter(logging.Formatter):
    """One record as one line, and those of a traceback, which are indented so that none passes for a line of its own.
    `dated`: with the time; `journal`: each line with its priority, as systemd reads it from stderr."""

    def __init__(self, dated: bool, journal: bool):
        when = "%(asctime)s " if dated else ""
        super().__init__(f"{when}[%(process)d] %(levelname)s:%(name)s: %(message)s", "%b %d %H:%M:%S")
        self.journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The text of a record."""
        record.message, record.asctime = record.getMessage(), self.formatTime(record, self.datefmt)
        lines = [self.formatMessage(record)]
        for entry in traceback.format_exception(*record.exc_info) if record.exc_info else ():
            text = entry.strip("\n")  # of a frame: several lines; the text of an exception: one, whatever it holds
            lines += [f"  {line}" for line in (text.split("\n") if text.startswith("  File ") else [text])]
        mark = f"<{PRIORITIES.get(record.levelno, 6)}>" if self.journal else ""
        return "\n".join([mark + escaped(line) for line in lines])


class LineLimit:
    """Which lines a child logs, so that no stranger fills the log; what is remembered has a few bytes each.

    A line is of the kind of the place in the code that logs it. Of each kind LINES are logged in PERIOD_S, EACH about one
    client (extra={"about": CLIENT}), and one (extra={"same": N}) with the same text; others are counted. Lines about what lasts
    (extra={"once": WHAT}) are logged once, and again when ONCE others came since.
    """

    def __init__(self, debugging: bool = False):
        self.debugging = debugging  # the operator wants all lines, not a client by log_level
        self.once: dict[int, None] = {}  # hashes of what is logged once, the oldest first
        self.lines: collections.Counter = collections.Counter()  # of this period, by kind, client and text
        self.left_out: dict[tuple, list] = {}  # kind -> logger, level, text and how many of them
        self.ends_s = 0.0  # the period

    def allows(self, record: logging.LogRecord) -> bool:
        """Whether to log a line; counts those that are left out, but what was logged once is no news."""
        if record.levelno < logging.INFO and self.debugging:
            return True
        kind, text = (record.pathname, record.lineno), (record.getMessage(), record.exc_info and record.exc_info[0])
        once = hash((kind, getattr(record, "once", None)))
        if once in self.once:
            return False
        limits = {kind: LINES, hash((kind, getattr(record, "about", text))): EACH, hash((kind, text)): getattr(record, "same", 1)}
        if any(self.lines[mark] >= most for mark, most in limits.items()):
            self.left_out.setdefault(kind, [record.name, record.levelno, str(record.msg)[:LABEL], 0])[-1] += 1
            return False
        self.lines.update([*limits])
        if hasattr(record, "once"):
            if len(self.once) >= ONCE:
                del self.once[next(iter(self.once))]
            self.once[once] = None
        return True

    def over(self) -> list[logging.LogRecord]:
        """When a period is over, the lines that tell what was left out in it."""
        now_s = time.monotonic()
        if now_s < self.ends_s:
            return []
        self.ends_s, left_out = now_s + PERIOD_S, self.left_out
        self.lines, self.left_out = collections.Counter(), {}
        return [logging.LogRecord(name, level, "", 0, "... %d more such lines left out: %s", (count, text), None)
                for name, level, text, count in left_out.values()]


class LogHandler(logging.Handler):
    """Logs without ever waiting: what cannot be written now is dropped and counted.

    send(data) writes at most PIPE_BUF bytes as os.write() does, whole or not at all where that can be. descriptor: the one
    it writes to, if any; facility: the number of syslog's; reopen: opens a log file again.
    """

    def __init__(self, send: Callable[[bytes], int], descriptor: int = -1, facility: int | None = None,
                 reopen: Callable[[], None] | None = None):
        super().__init__()
        self.send, self.descriptor, self.facility, self.reopen = send, descriptor, facility, reopen
        self.on_stderr = not reopen and facility is None
        self.limit: LineLimit | None = None
        self.torn: Any = bytearray(1)  # whether the last line lacks its end; of all processes, see start_logging()
        self.lost = self.uncounted = 0  # lines since that was logged last, and counted

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record, or count it."""
        try:
            self.flush()
            if self.limit is None or self.limit.allows(record):
                self.write(record)
        except Exception:  # a full disk, an unread pipe, a plug-in's arguments that do not fit: no line is worth a request
            self.lost += 1
            self.uncounted += 1

    def flush(self) -> None:
        """Log how many lines were lost, and were left out in a period that is over; OSError."""
        if self.lost:
            self.write(logging.LogRecord(log.name, logging.WARNING, "", 0, "%d lines of log were lost", (self.lost,), None))
            self.lost = 0
        for record in self.limit.over() if self.limit else ():
            self.write(record)

    def write(self, record: logging.LogRecord) -> None:
        """Write a record; OSError when that is not possible now."""
        for lines in PARTS.findall(self.format(record).encode()):
            data = lines.rstrip(b"\n") + b"\n"
            if self.facility is not None:
                data = b"<%d>midatagram: %b\0" % (self.facility << 3 | PRIORITIES.get(record.levelno, 6), data[:-1])
            data = b"\n" * self.torn[0] + data
            self.torn[0] = self.send(data) < len(data)
            if self.torn[0]:
                raise OSError(errno.ENOSPC, "there was room for a part of a line")

    def close(self) -> None:
        """The process ends, and so does the period."""
        with contextlib.suppress(OSError):
            if self.limit:
                self.limit.ends_s = 0.0
            self.flush()
        super().close()


def stderr_handler() -> LogHandler:
    """Logs to stderr and never waits, while others who have it open may. To be called before privileges are dropped: a pipe
    can be opened anew by its owner only."""
    try:
        descriptor = 2 if S_ISREG(os.fstat(2).st_mode) else os.open("/proc/self/fd/2", os.O_WRONLY | APPENDING)
    except OSError:
        return LogHandler(write_in_turn, 2)
    return LogHandler(functools.partial(os.write, descriptor), descriptor)


def write_in_turn(data: bytes) -> int:
    """Write to a stderr that cannot be opened anew (a socket, a pipe of another user's), if it has room; the lock keeps our
    processes from taking the same room."""
    fcntl.lockf(2, fcntl.LOCK_EX)
    try:
        if not original("select", "select")([], [2], [], 0)[1]:
            raise BlockingIOError(errno.EAGAIN, "nobody reads stderr")
        return os.write(2, data)
    finally:
        fcntl.lockf(2, fcntl.LOCK_UN)


def start_logging(setup: Setup, processes: Processes, options) -> None:
    """Log to stderr, syslog or a file, as the configuration and the command line say; StartError."""
    settings, foreground = setup.globals, not options.background
    processes.set(0, level=4 if options.debug else settings.get("log_level", LOG_LEVEL_DEFAULT))
    to_stderr = settings.get("log_stderror", settings.get("stderror_enabled", foreground)) or options.debug and foreground
    syslog = None if to_stderr or not os.path.exists("/dev/log") else if_there("log_syslog")
    if setup.own["log_file"]:
        handler = shared("log_file", setup.path, "for log_file, ").handler(setup, options)
    else:
        handler = syslog.handler(settings, "/dev/log") if syslog else stderr_handler()
    filtered = settings.get("stderror_level_filter" if handler.on_stderr else "syslog_level_filter", 0)
    if filtered and not handler.reopen:  # 0: all that log_level lets through
        handler.setLevel(LOG_LEVELS[max(-3, min(4, filtered))])
    status = os.fstat(2)
    journal = handler.on_stderr and os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
    handler.setFormatter(LineFormatter(not journal and handler.facility is None, journal))
    handler.torn = processes.torn
    log.handlers[:] = [handler]
    log.setLevel(1)
    log.propagate = False
    log_as(processes, ATTENDANT)


def log_handlers() -> list[LogHandler]:
    """What the log goes through: one handler once start_logging() was called, none before."""
    return [handler for handler in log.handlers if isinstance(handler, LogHandler)]


def log_as(processes: Processes, row: int) -> None:
    """Use the log level of that row of the process table; children, which strangers talk to, limit what they log."""
    for handler in log_handlers():
        handler.filters[:] = [lambda record: record.levelno >= LOG_LEVELS[max(-3, min(4, processes.log_level(row)))]]
        handler.limit = LineLimit(processes.get(0, "level") >= 4) if row != ATTENDANT else None


def reopen_logs() -> None:
    """Open log files again by their names."""
    for handler in log_handlers():
        if handler.reopen:
            handler.reopen()


def tend_logs(server: Server) -> None:
    """Some times a second: count what was lost, and log what was left out."""
    for handler in log_handlers():
        server.count("log_lost", handler.uncounted)
        handler.uncounted = 0
        with contextlib.suppress(OSError):
            handler.flush()


###############################################################################
# 12. Events ##################################################################
###############################################################################
# Strategy: an event is a datagram to each of its subscribers, who are listed
# in the store. Children send them in slices, without waiting for any. The
# attendant sends none: it hands its events to its children, of which the first
# to look sends them.

EVENT_QUEUE = 8 << 20  # bytes of events that are not sent to everybody yet, per child
EVENT_SLICE_S, EVENT_FEW = 0.002, 16  # for which events are sent before others get their turn, and datagrams that always are
EVENT_END_S = 0.1  # for which they are sent when a child ends
FEW_SUBSCRIBERS = 8  # subscriptions that UDP clients may have per host, whose address may be spoofed
GONE_AFTER_S = 60  # how long subscribers_list shows a subscription that a client ended


def event_pair() -> tuple:
    """Two connected sockets that do not block, as the attendant uses to its children, for events, and to a loader."""
    pair = _socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # that of socket makes gevent's, with a hub
    for end in pair:
        end.setblocking(False)
    return pair


class Events:
    """Sends events to their subscribers, one after the other."""

    SPACE, KEY = "events", "subscriptions"  # of the rows in the store, which event_subscribe makes

    def __init__(self, server: Server, pair: tuple):
        self.server, (self.inlet, self.outlet) = server, pair
        self.queue: collections.deque = collections.deque()  # (name, dialect -> datagram, iterator of subscriptions, bytes)
        self.waiting_bytes = 0
        self.senders: dict[int, Any] = {}  # address family -> socket
        self.text: str | None = None
        self.rows: dict[str, list[dict]] = {}  # by event, what the text holds
        self.lists: dict[str, tuple] = {}  # event -> (its rows if none ended, version of the store, since when, until when)
        self.write: Callable = write_event

    def subscribers(self, event: str, ended: bool = False, patient: bool = True) -> list[dict]:
        """The subscriptions to an event, the newest first; with those that a client ended, if wanted. StoreError."""
        version, now_s = self.server.store.version(self.SPACE), self.server.store.now_s()
        rows, of_version, since_s, until_s = self.lists.get(event, ([], 0, -inf, inf))
        if version == of_version and since_s <= now_s < until_s:  # 0: nobody ever subscribed to any
            return rows
        try:
            text = self.server.store.get(self.SPACE, self.KEY, patient)
        except StoreError:
            if patient or self.text is None:
                raise
            text, version = self.text, 0  # another process writes just now: those of a moment ago
        if text is not self.text:
            self.text, self.rows, self.lists = text, {}, {}
            for row in json.loads(text or "[]"):
                self.rows.setdefault(row["event"], []).append(row)
        rows = [row for row in self.rows.get(event, ()) if not is_over(row, now_s)]
        if version > 0 and rows and not any(row["ended"] for row in rows):
            self.lists[event] = rows, version, now_s, min(row["since"] + row["expire"] for row in rows)
        return [row for row in rows if ended or not has_ended(row, now_s)]

    def subscribe(self, *rows: dict) -> None:
        """Add subscriptions, and remove those that are over; Error when there would be too many, StoreError."""
        now_s, limit = self.server.store.now_s(), self.server.setup.own["max_subscribers"]

        def changed(text: str | None) -> str | None:
            listed = {subscription(row): row for row in json.loads(text or "[]") if not is_over(row, now_s)}
            most = max(limit, len(listed))
            for row in rows:
                name = subscription(row)
                if row["by"] and name not in listed and sum(one["by"] == row["by"] for one in listed.values()) >= FEW_SUBSCRIBERS:
                    raise Error(500, "Too many subscribers")
                listed = {**listed, name: row} if name in listed else {name: row, **listed}
            ended = [name for name, row in listed.items() if row["ended"]]
            for name in ended[max(0, len(ended) + most - len(listed)):]:
                del listed[name]
            if len(listed) > most:
                raise Error(500, "Too many subscribers")
            return json.dumps([*listed.values()]) if listed else None

        self.server.store.change(self.SPACE, self.KEY, changed)

    def hand_over(self, name: str, attributes: dict) -> int:
        """In the attendant: have a child send an event. Returns 0."""
        try:
            self.inlet.send(json.dumps([name, attributes]).encode())
        except OSError as error:  # no child has looked for long
            self.lose(name, 1, error)
        return 0

    def receive(self) -> None:
        """Send what the attendant handed over, before what waits here: a child that ends has no time. Runs in the hub."""
        with contextlib.suppress(BlockingIOError):
            while True:
                name, attributes = json.loads(self.outlet.recv(65536))
                rows, datagrams = self.written(name, attributes)
                for row in rows:
                    self.send_to(row, name, datagrams[row["dialect"]])

    def put(self, name: str, attributes, rows: list[dict] | None = None) -> int:
        """Send an event, now or when those before it are sent; returns to how many. Never waits."""
        rows, datagrams = self.written(name, attributes, rows)
        at_once = 0 if self.queue else EVENT_FEW
        for row in rows[:at_once]:
            self.send_to(row, name, datagrams[row["dialect"]])
        rest = rows[at_once:]
        if not rest:
            return len(rows)
        size = sum(map(len, datagrams.values())) + 8 * len(rest)  # a list of rows that all events share
        if self.waiting_bytes + size > EVENT_QUEUE:
            self.lose(name, len(rest), "too many events wait")
            return len(rows) - len(rest)
        self.waiting_bytes += size
        self.queue.append((name, datagrams, iter(rest), size))
        if at_once:
            import gevent
            gevent.spawn(self.go_on)
        return len(rows)

    def written(self, name: str, attributes, rows: list[dict] | None = None) -> tuple[list[dict], dict[str, bytes]]:
        """The subscriptions that an event can be sent to, of these or of all, and its datagram for each dialect."""
        datagrams: dict[str, bytes] = {}
        try:
            rows = self.subscribers(name, patient=False) if rows is None else rows
        except StoreError:  # it must not end who raises an event
            self.lose(name, 1, "the store fails")
            return [], datagrams
        for dialect in {row["dialect"] for row in rows}:
            try:
                datagrams[dialect] = self.write(name, attributes, dialect)
            except ValueError as error:  # text cannot carry one of its attributes
                readers, rows = rows, [row for row in rows if row["dialect"] != dialect]
                self.lose(name, len(readers) - len(rows), error)
        return rows, datagrams

    def lose(self, name: str, count: int, why: Any) -> None:
        """Count and log an event that does not reach so many subscribers."""
        self.server.count("events_lost", count)
        log.info("event %s is lost for %d subscribers: %s", name, count, why)

    def go_on(self) -> None:
        """Send what waits, in slices."""
        while not self.send(EVENT_SLICE_S):
            give_way()

    def send(self, limit_s: float) -> bool:
        """Send what waits, for so long; returns whether nothing waits any more."""
        until_s, sent = time.monotonic() + limit_s, 0
        while self.queue:
            name, datagrams, rows, size = self.queue[0]
            for row in rows:
                self.send_to(row, name, datagrams[row["dialect"]])
                sent += 1
                if sent >= EVENT_FEW and time.monotonic() > until_s:
                    return False
            self.queue.popleft()
            self.waiting_bytes -= size
        return True

    def send_to(self, row: dict, name: str, data: bytes) -> None:
        """Send a datagram to one subscriber; if it is lost count it, and log it if the one before was not lost likewise."""
        family, target = row["family"], row["target"]
        try:
            if family not in self.senders:
                self.senders[family] = original("socket", "socket")(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.senders[family].sendto(data, target if family == socket.AF_UNIX else tuple(target))
            row["trouble"] = None
        except (OSError, ValueError) as error:  # ValueError: a path that no file can have
            self.server.count("events_lost")
            if row.get("trouble") != f"{error}":
                row["trouble"] = f"{error}"
                log.info("event %s not sent to %s: %s", name, row["socket"], error)

    def finish(self) -> None:
        """Send what can be sent at once, since the child ends."""
        self.receive()
        self.send(EVENT_END_S)


def subscription(row: dict) -> tuple:
    """What tells a subscription from others: its event and address, however that is spelt."""
    target = row["target"]
    return row["event"], row["family"], target if isinstance(target, str) else tuple(target)


def is_over(row: dict, now_s: float) -> bool:
    """Whether a subscription can be removed; one that a client ended is shown for a while."""
    return (GONE_AFTER_S if row["ended"] else row["expire"]) <= now_s - row["since"]


def has_ended(row: dict, now_s: float) -> bool:
    """Whether a client ended a subscription; one that did so in text gets the events of that second still, as in 2.4."""
    return row["ended"] and not (row["dialect"] == "text" and int(now_s) == int(row["since"]))


def write_event(name: str, attributes, dialect: str) -> bytes:
    """An event as a datagram, with attributes by name, or a list of values without. Text: `NAME`, `attribute::value` lines
    and an empty line; attributes with a field `text` have others. JSON-RPC: a notification."""
    if dialect == "jsonrpc":
        params = {"params": attributes} if attributes else {}
        return encode(json_text({"jsonrpc": "2.0", "method": name, **params}))
    attributes = getattr(attributes, "text", attributes)
    pairs = attributes.items() if isinstance(attributes, dict) else [(None, value) for value in attributes]
    lines = [write_argument(key, None if key and value is None else f"{value}") for key, value in pairs]
    return encode(f"{name}\n{''.join(lines)}\n")


def event_target(place: str, by_name: bool = True) -> tuple[int, Any]:
    """The socket family and address of `unix:PATH` or `udp:HOST:PORT`, `by_name` a host that has to be looked up; ValueError,
    and OSError for an unknown host."""
    if place.startswith("unix:") and 0 < len(encode(place[5:])) <= 107:
        return socket.AF_UNIX, place[5:]
    match = re.fullmatch(r"udp:((?!\*:).{1,255}):([0-9]{1,5})", place, re.S)
    if not match or not 0 < int(match[2]) < 65536:
        raise ValueError(place)
    match[1].encode("idna")  # UnicodeError is a ValueError; the thread that looks names up would log it
    host = "127.0.0.1" if match[1] == "localhost" else match[1].strip("[]")
    wanted = host, int(match[2]), 0, socket.SOCK_DGRAM
    try:  # gevent has a thread for names, which makes all system calls dearer
        return original("socket", "getaddrinfo")(*wanted, flags=socket.AI_NUMERICHOST)[0][::4]
    except socket.gaierror:
        if not by_name:
            raise
    return preferred(socket.getaddrinfo(*wanted))[::4]


def preferred(entries: list[tuple]) -> tuple:
    """Of what getaddrinfo() returns for a name, the first with an IPv4 address, as OpenSIPS prefers, else the first."""
    return min(entries, key=lambda entry: entry[0] != socket.AF_INET)


###############################################################################
# 13. Access ##################################################################
###############################################################################
# Strategy: Screen drops what must not be answered at all, before anything is
# read, and for most datagrams by one look into a set. The plug-in access asks the
# rules of allow_command, and only for commands that they name.

KNOWN_CLIENTS = 2000  # admitted clients whose addresses are not looked at again
MOST_ERRORS = 100  # a second, for a UDP client that sends what is no request
BROADCAST = ipaddress.ip_address("255.255.255.255")


def host_address(host: str):
    """A numeric host as an address to compare with others: without a scope, and IPv4 where it is mapped into IPv6."""
    address = ipaddress.ip_address(host.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def in_networks(host: str, networks: tuple) -> bool:
    """Whether a numeric host is in one of the networks."""
    address = host_address(host)
    return any(address in network for network in networks)


def is_local(family: int, host: str) -> bool:
    """Whether an address is one of this machine."""
    with original("socket", "socket")(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((host, 0))
        except OSError:
            return False
    return True


class Screen:
    """Tells clients from what must not be answered: refused networks, our own sockets, replies that look for an echo."""

    def __init__(self, server: Server, endpoints: list[Endpoint], networks: tuple | None):
        self.server, self.networks = server, networks
        self.own = {endpoint.place.spot for endpoint in endpoints}
        self.wildcard_ports = {endpoint.place.spot[1] for endpoint in endpoints if endpoint.wildcard}
        self.known: set = set()  # clients that are admitted; cleared when there are many
        self.errors: collections.Counter = collections.Counter()  # by UDP client that sent no request, in this second
        self.second_s = 0.0

    def admits(self, endpoint: Endpoint, client: Any, data: bytes) -> bool:
        """Whether a datagram is to be answered: it is not empty, and its sender is a client that allow_from lets in."""
        address = endpoint.address_of(client)
        if not endpoint.unix and self.networks is not None and not in_networks(address[0], self.networks):
            self.server.count("refused")
            log.warning("datagrams from %s are refused by allow_from", address[0], extra={"once": address[0]})
        elif not data:
            self.server.count("empty")
        elif self.is_ours(endpoint, address):
            self.drop(endpoint, client)
        else:
            if len(self.known) >= KNOWN_CLIENTS:
                self.known.clear()
            self.known.add(client)
            return True
        return False

    def is_ours(self, endpoint: Endpoint, address: Any) -> bool:
        """Whether a sender is one of the sockets served here, or an address that no single client has."""
        if endpoint.unix:
            return address in self.own
        host, port = address[:2]
        ip = host_address(host)
        return (not port or address in self.own or ip.is_multicast or ip.is_unspecified or ip == BROADCAST
                or (port in self.wildcard_ports and is_local(endpoint.socket.family, host)))

    def answers(self, endpoint: Endpoint, client: Any, data: bytes, answer: Answer) -> bool:
        """Whether a datagram gets its answer: errors that answer what is no request at all are limited, for whoever
        answers an error with another one must not go on for ever."""
        if endpoint.unix or not answer.exchanges or answer.exchanges[0].command or data[:1] == b":" or b'"method"' in data:
            return True
        if time.monotonic() > self.second_s + 1:
            self.errors.clear()
            self.second_s = time.monotonic()
        host = endpoint.address_of(client)[:2]
        self.errors[host] += 1
        return self.errors[host] <= MOST_ERRORS and len(self.errors) <= KNOWN_CLIENTS

    def drop(self, endpoint: Endpoint, client: Any) -> None:
        """Count a datagram that is not answered, and name its sender once."""
        self.server.count("looped")
        name = shown_address(endpoint.address_of(client))
        log.warning("datagrams from %s are replies, or come from no client: not answered", name, extra={"once": name})


###############################################################################
# 14. Plug-ins ################################################################
###############################################################################
# Strategy: a plug-in becomes a Module, whichever of its two forms it has: a
# Python file, whose names are collected, or a file of canned replies, which
# the plug-in canned_replies reads. Sources are compiled here and come from no
# cache and not from sys.modules, so a reload is really new.

SUFFIXES = (".py", ".conf")
HERE = os.path.dirname(os.path.realpath(__file__))
AS_PIP_HAS_IT = os.path.join(HERE, "midatagram_plugins")
BESIDE = AS_PIP_HAS_IT if os.path.isdir(AS_PIP_HAS_IT) else os.path.join(HERE, "plugins")
NAMES_FILE = os.path.join(BESIDE, "opensips.names")
PLUGIN_PREFIX = "midatagram_plugin_"  # of the names in sys.modules, so that a plug-in hides no other module

UDP_LIMIT = 65507  # bytes of the longest UDP datagram
MOST_SOCKETS = 250  # as many as fit into one message to a loader
Where = tuple[str, int]  # a file and a line of it


class Setup(NamedTuple):
    """A configuration as loaded: what the attendant needs to serve it."""

    path: str
    registry: Registry
    mi: dict  # settings of mi_datagram
    own: dict  # settings of midatagram
    globals: dict  # logging lines, and db_default_url
    notes: list[tuple[int, str]]  # (logging level, text) to log at the start
    listeners: list[Place]
    destinations: dict  # name -> function that makes a Tracer, of those that are traced to
    lines: dict[str, list[Where]]  # parameter of midatagram -> its lines

    @property
    def most(self) -> int:
        """Bytes of the longest request and reply: socket_buf_size, as far as a datagram goes."""
        udp = any(place.family != socket.AF_UNIX for place in self.listeners)
        return min(self.mi["socket_buf_size"], UDP_LIMIT if udp else GIVE_UP)


@functools.lru_cache(1)
def lenient_reader() -> Callable[[str], Any]:
    """What decides where the standard library is not to be trusted: the plug-in cjson, and where that is missing, the library."""
    def read(text: str) -> Any:
        try:
            return DECODER.raw_decode(text)[0]
        except (ValueError, RecursionError):
            raise ParseError("no JSON") from None

    cjson = if_there("cjson")
    return cjson.read if cjson else read


def load_plugin(path: str, built_in: Module | None = None) -> Module:
    """A plug-in file as a Module, with what a built-in one of its name has; ConfigError."""
    if path.endswith(".conf"):
        return shared("canned_replies", path, "to read canned replies, ").read_file(path)
    namespace = import_plugin(path)
    own = {key: value for key, value in vars(namespace).items()
           if not callable(value) or getattr(value, "__module__", namespace.__name__) == namespace.__name__}
    own = {**vars(built_in.namespace), **own} if built_in else own
    if declarations := if_there("declarations"):
        declarations.check(path, vars(namespace), own)
    return Module(pathlib.Path(path).stem, own, path, functools.partial(line_of, read_source(path)))


def shared(name: str, path: str = "", purpose: str = "") -> Any:
    """The namespace of a file among this script's own plug-ins, for what several of them share; ConfigError, in `path`."""
    file = find_plugin(name, [BESIDE])
    if file is None:
        raise ConfigError(path or f'shared("{name}")', 0, f"{purpose}{name}.py is needed in {BESIDE}")
    return import_plugin(file)


def if_there(name: str) -> Any:
    """As shared(), but None for a file that is missing or not to be trusted: for what goes without as well."""
    with contextlib.suppress(ConfigError):
        return shared(name)
    return None


def import_plugin(path: str) -> Any:
    """The namespace that a Python plug-in makes; ConfigError."""
    namespace = types.ModuleType(f"{PLUGIN_PREFIX}{pathlib.Path(path).stem}")
    namespace.__file__ = path
    sys.modules[namespace.__name__] = namespace  # where dataclasses and pickle look for it
    with plugin_code(path):
        exec(compiled(read_source(path), path), vars(namespace))
    return namespace


@functools.lru_cache(100)
def compiled(source: str, path: str) -> types.CodeType:
    """The code of a plug-in's source, once for all plug-ins that share it."""
    return compile(source, path, "exec", dont_inherit=True)


@contextlib.contextmanager
def plugin_code(path: str, prefix: str = "") -> Iterator[None]:
    """Turn what the code of a plug-in raises into a ConfigError with the line of its file."""
    try:
        yield
    except ConfigError:
        raise
    except SyntaxError as error:
        raise ConfigError(path, error.lineno or 0, f"syntax error: {error.msg}") from None
    except BaseException as error:  # gevent.Timeout and KeyboardInterrupt are no Exceptions
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == path]
        raise ConfigError(path, lines[-1] if lines else 0, f"{prefix}{type(error).__name__}: {error}") from None


def read_source(path: str) -> str:
    """The text of a plug-in; ConfigError, as root also when others could have put it there."""
    try:
        opener = (lambda path, flags: walk(path, check_roots, flags)) if os.geteuid() == 0 else None
        with open(path, "rb", opener=opener) as file:
            return decode(file.read())
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read by uid {os.geteuid()}: {error.strerror}") from None


def line_of(text: str, word: str) -> int:
    """The number of the first line that starts with a word, 0 if none does."""
    pattern = re.compile(rf"\s*{re.escape(word)}(?!\w)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 0)


def find_plugin(file: str, folders: Iterable[str]) -> str | None:
    """The file that loadmodule calls `file`: in one of the folders under this path, its last name, or as NAME/NAME."""
    stem, written = os.path.splitext(file)
    name = os.path.basename(stem)
    paths = (os.path.join(folder, form + suffix) for form in (stem, name, f"{name}/{name}")
             for folder in folders for suffix in ((written,) if written in SUFFIXES else SUFFIXES))
    return next((path for path in paths if os.path.isfile(path)), None)


class Loader:
    """Turns directives into a Setup. core_stats: returns the statistics of the core for a number of children."""

    def __init__(self, path: str, folders: list[str], core_stats: Callable[[int], list[Stat]]):
        self.path, self.options, self.core_stats = path, folders, core_stats
        self.checks, self.mpaths = if_there("checks"), list[tuple[str, Where]]()
        self.opensips = self.checks.opensips_names() if self.checks else collections.defaultdict(frozenset)
        self.calls_of = self.checks.calls if self.checks else lambda script: ()  # for a ConfigReader
        self.modules = {module.name: module for module in built_in_modules()}
        self.mi, self.own = self.modules["mi_datagram"], self.modules["midatagram"]
        self.loaded: dict[str, Where] = {}
        self.passed: set[str] = set()  # modules without a plug-in
        self.calls: list[tuple] = []  # in the routing script
        self.globals: dict[str, Any] = {}
        self.notes: list[tuple[int, str]] = []

    @property
    def folders(self) -> list[str]:
        """Where plug-ins are looked for, the folders of mpath among them."""
        return [*self.options, *[folder for folder, _ in self.mpaths], BESIDE]

    def load(self, directives: Iterable[Directive]) -> Setup:
        """Apply all directives in order, then check the whole; ConfigError."""
        for folder in (*self.options, BESIDE):  # without which all modules would be passed over
            with plugin_code(folder), contextlib.suppress(FileNotFoundError):
                os.stat(os.path.join(folder, "."))
        for word, args, path, line in directives:
            where = path, line
            if word == "loadmodule":
                self.load_module(where, *args)
            elif word == "modparam":
                self.set_parameter(where, *args)
            elif word == "mpath":
                self.mpaths += [(folder, where) for folder in args]
            elif word == "passed":
                self.pass_over(where, *self.checks.passed(self, *args) if self.checks else (f"{args[0]}: passed over", ""))
                self.calls += args[1:]
            elif word == "stray":
                self.note(where, f'stray "{args[0]}", passed over; nothing ends a statement but the next one')
            else:
                self.globals[word] = global_value(where, word, *args)
        return self.checked()

    def load_module(self, where: Where, file: str) -> None:
        """loadmodule: a plug-in of ours, or a module of OpenSIPS that is passed over."""
        name = pathlib.Path(file).stem
        if name in self.loaded and name not in self.passed:
            raise ConfigError(*where, "module {} is loaded already, at {}:{}".format(name, *self.loaded[name]))
        self.loaded[name] = where
        built_in = self.modules.get(name)  # to which a plug-in beside this script may add
        path = find_plugin(file, [BESIDE] if built_in else self.folders)
        if built_in and not path:
            self.passed.update(() if built_in.params else (name,))  # its parameters, too
            return
        if path:
            self.modules[name] = module = load_plugin(path, built_in)
            for other in getattr(module.namespace, "BRINGS", ()):
                self.modules.setdefault(other, load_plugin(str(pathlib.Path(path).with_name(f"{other}.py"))))
            for line, text in module.notes:
                self.note((module.path, line), text, logging.ERROR)
            return
        hint = self.checks.other_module(self, file, name) if self.checks else ""
        if not file.endswith(".so"):
            raise ConfigError(*where, f'no plug-in "{name}" in {", ".join(self.folders)}{hint}')
        self.passed.add(name)
        self.pass_over(where, f"module {name} has no plug-in here, passed over", hint)

    def set_parameter(self, where: Where, pattern: str, name: str, value: Any) -> None:
        """modparam: the name of the module is a regular expression over the modules loaded so far, or one of ours."""
        match = name_pattern(pattern, where)
        modules = [module for module in self.modules.values() if match(module.name)
                   and (module.name in {*self.loaded} - self.passed
                        or module.params and module.name in ("mi_datagram", pattern.lower()))]
        for module in modules:
            self.set_in(module, where, name, value)
        if modules or pattern in self.passed:
            return
        if find_plugin(pattern, self.folders):
            raise ConfigError(*where, f'module {pattern} is not loaded; put loadmodule "{pattern}.so" before')
        self.passed.add(pattern)
        hint = "" if any(map(match, self.opensips["modules"])) else nearest(pattern, {*self.modules, *self.opensips["modules"]})
        self.pass_over(where, f"modparam for {pattern}, which has no plug-in here, passed over", hint)

    def set_in(self, module: Module, where: Where, name: str, value: Any) -> None:
        """Set a parameter of a module; a warning where that drops an earlier line."""
        if self.checks:
            self.checks.check_parameter(self, module, where, name)
        before = module.where(name), module.settings.get(name)
        with plugin_code(module.path, "converter of {} may raise ValueError only; for {}:{} it raised ".format(name, *where)):
            if advice := module.set(name, value, *where):
                self.note(where, advice)
        if self.checks:
            self.checks.note_parameter(self, module, where, name, value, before)

    def note(self, where: Where, text: str, level: int = logging.WARNING) -> None:
        """Have something logged once logging works."""
        self.notes.append((level, "{}:{}: {}".format(*where, text)))

    def pass_over(self, where: Where, text: str, hint: str) -> None:
        """Note that a line is passed over; with a hint it may be a mistake."""
        self.note(where, text + hint, logging.WARNING if hint else logging.INFO)

    def checked(self) -> Setup:
        """Check what needs all lines; ConfigError."""
        mi, own = self.mi.settings, self.own.settings
        if mi["socket_name"] is None:
            raise ConfigError(self.path, 0, 'no socket: modparam("mi_datagram", "socket_name", "/run/midatagram/mi.sock") '
                              'or "udp:127.0.0.1:8080" is needed' + (self.checks.misspelt(self) if self.checks else ""))
        release = None
        if own["imitate"] != "midatagram":
            release = shared("releases", self.path, "to imitate, ").RELEASES[own["imitate"]]
            release.set_defaults(self.modules)
        self.modules["core"].stats += self.core_stats(mi["children_count"])
        for module in self.modules.values():
            tagged(module, db_url=own["db_url"], db_url_at=self.own.where("db_url"), calls=self.calls, doubts=[],
                   default_db=self.globals.get("db_default_url", ("", ("", 0))))
            if "init" in module.hooks:
                with plugin_code(module.path, "init: "):
                    module.hooks["init"](Context(module))
        asking = self.path if mi["trace_destination"] else ""
        path = next((module.path for module in self.modules.values() if module.destinations), asking)
        destinations = shared("tracing", path, "to trace, ").wanted(self) if path else {}
        for module in self.modules.values():
            module.settle(self.modules.values())
        registry = Registry(self.modules.values(), own["disable"], bool(release and release.full_names))
        if release:
            release.rename(registry)
        if registry.wrappers:
            shared("around", registry.wrappers[0][0].path, "to stand around commands, ").settle(registry)
        if own["disable"] or own["allow_command"] or mi["trace_bwlist"][1]:
            shared("command_lists", self.path, "for lists of commands, ").settle(self, registry)
        if self.checks:
            self.checks.check_commands(self, registry)
        return Setup(self.path, registry, mi, own, self.globals, self.notes, self.places(), destinations, self.own.lines)

    def places(self) -> list[Place]:
        """The sockets to open, none twice; a warning for each that other machines can use. ConfigError."""
        lines = [(Listener(self.mi.settings["socket_name"]), self.mi.where("socket_name")),
                 *zip(self.own.settings["listen"], self.own.lines.get("listen", []))]
        places = [place_of(listener, where, self.mi) for listener, where in lines]
        first: dict[Any, Where] = {}
        for place, (_, where) in zip(places, lines):
            if first.setdefault(place.spot, where) is not where:
                raise ConfigError(*where, "the socket {} is there already, at {}:{}".format(place.address, *first[place.spot]))
            if place.family != socket.AF_UNIX and self.own.settings["allow_from"] is None \
                    and not ipaddress.ip_address(place.spot[0].partition("%")[0]).is_loopback:
                self.notes.append((logging.WARNING, f"{place.address} can be reached from other machines and allow_from is not "
                                   "set: all may use all commands, and have large replies sent to others"))
        if len(places) > MOST_SOCKETS:
            raise ConfigError(*where, f"more than {MOST_SOCKETS} sockets")
        return places


def name_pattern(pattern: str, where: Where) -> Callable:
    """What tells whether a modparam is for the module of a name; ConfigError."""
    try:
        return re.compile(f"(?:{pattern})", re.I).fullmatch
    except re.error as error:
        raise ConfigError(*where, f'"{pattern}" is not a pattern of module names: {error}') from None


def global_value(where: Where, word: str, value: Any) -> Any:
    """The value of a logging line of opensips.cfg, or of db_default_url with its place; ConfigError."""
    if word == "db_default_url":
        return value, where
    if word in ("log_facility", "syslog_facility"):
        syslog = if_there("log_syslog")  # without which nothing is sent there
        return syslog and syslog.facility(where, word, value)
    try:
        return integer()(value) if "level" in word else boolean(value)
    except ValueError as error:
        raise ConfigError(*where, f"{word} {error}, not {value}") from None


class Place(NamedTuple):
    """A socket to open: `spot` is a path or what bind() takes; mode and numeric owners are for UNIX sockets. `lines`: where the
    configuration has it, and where its owner."""

    address: Address
    family: int
    spot: Any
    mode: int
    uid: int
    gid: int
    lines: tuple[Where, Where] = ("", 0), ("", 0)


def place_of(listener: Listener, where: Where, mi: Module) -> Place:
    """A Listener, written at `where`, with its names looked up; what it lacks, unix_socket_* of `mi` say. ConfigError."""
    address = listener.address
    if address.port is None:
        (mode, _), (user, user_at), (group, group_at) = (
            (mi.settings[f"unix_socket_{field}"], mi.where(f"unix_socket_{field}")) if value is None else (value, where)
            for field, value in zip(("mode", "user", "group"), listener[1:4]))
        uid, primary = account_numbers(user, pwd.getpwnam, user_at, "unix_socket_user")
        gid = primary if group is None else account_numbers(group, grp.getgrnam, group_at, "unix_socket_group")[0]
        return Place(address, socket.AF_UNIX, address.host, mode, uid, gid, (where, group_at if user is None else user_at))
    try:
        addresses = original("socket", "getaddrinfo")(address.host, address.port, type=socket.SOCK_DGRAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(*where, f"no such host: {address.host} ({error})") from None
    family, _, _, _, spot = preferred(addresses)
    return Place(address, family, spot, 0, -1, -1, (where, where))


def account_numbers(account: str | int | None, look_up: Callable, where: Where, param: str) -> tuple[int, int]:
    """The number of a user or group, and the group of a user by name; -1 where there is none. ConfigError at `where`."""
    if not isinstance(account, str):
        return -1 if account is None else account, -1
    try:
        entry = look_up(account)
    except KeyError:
        kind = "user" if look_up is pwd.getpwnam else "group"
        raise ConfigError(*where, f'{param}: no {kind} "{account}" on this system') from None
    return entry[2], getattr(entry, "pw_gid", -1)


###############################################################################
# 15. Core commands ###########################################################
###############################################################################
# Strategy: the commands of OpenSIPS' own core, written with the tags that any
# plug-in uses, in the order OpenSIPS registers them. Their error texts are
# the original's; where it looks at its arguments one after the other, so do
# these.

STATISTICS = JsonForm(recipes=[("statistics",)])


@command("get_statistics", also="statistics:get", json=STATISTICS)
def get_statistics(ctx, *statistics):
    """Show statistics: each argument is a name, a group such as `core:`, or `all`."""
    if not statistics:
        raise WRONG_COUNT
    return ctx.server.statistics(statistics, ctx.request.dialect)


@command("uptime", input=False)
def uptime(ctx):
    """Show the current time, the start time and the uptime in seconds."""
    started_s, clock = int(ctx.server.started_s), ctx.store.time_s
    figures = functools.lru_cache(1)(lambda now_s: (time.ctime(now_s), f"{now_s - started_s} [sec]"))
    return Reply(nodes=(Node("Now", LIVE), Node("Up since", time.ctime(started_s)), Node("Up time", LIVE)),
                 live=lambda: figures(int(clock())))


@command("version", input=False, json=JsonForm(recipes=[(), ("revision",)], raw=("revision",)))
def version(ctx):
    """Show the name and version of the server."""
    machine, own = os.uname(), ctx.server.setup.own
    name = own["version_text"] or f"midatagram ({__version__} ({machine.machine}/{machine.sysname.lower()}))"
    revision = (Node("unknown", "unknown"),) if ctx.request.values else ()  # as 3.x built from no repository
    return Reply(nodes=(Node("Server", name), *revision), live=CONSTANT)


@command("which", input=False, json=JsonForm(recipes=[(), ("command",)], listing=True))
def which(ctx):
    """List all commands; over JSON-RPC also the parameters of one command, or the commands of a MODULE: of 4.0."""
    registry = ctx.server.registry
    names = list(registry.commands)
    for name in ctx.request.values:
        if name in registry.names:
            return Reply(result=registry.names[name].recipes)
        names = [command.full_name for command in registry.commands.values() if f"{name}".endswith(":")
                 and command.full_name.startswith(name)]
        if not names:
            raise Error(404, "unknown MI command")
    return Reply(nodes=[Node(None, name) for name in names], live=CONSTANT)


PROCESSES = JsonForm(plurals={"Process": ("Processes", "Process")})


@command("ps", input=False, json=PROCESSES)
def list_processes(ctx):
    """List the processes of the server: ID, PID and type."""
    live = ctx.server.processes.unchanged()
    return Reply(nodes=[Node("Process", None, (("ID", rank), ("PID", pid), ("Type", kind)))
                        for rank, pid, kind, _ in ctx.server.processes.living()], live=live)


@command("kill", input=False)
def kill(ctx):
    """Stop the server after it finishes the requests in progress."""
    os.kill(ctx.server.attendant_pid, signal.SIGTERM)
    return Reply()


@functools.partial(tagged, kind="integer")
def c_integer(value) -> int:
    """Converter: a number as OpenSIPS' str2sint reads it: a sign, digits, 32 bits that wrap; a lone sign is 0."""
    try:
        return json_int(value, "")
    except Error:
        raise ValueError("takes an integer") from None


def bind_log_level(request: Request) -> list:
    """LEVEL and PID of a text request, which ignores further arguments."""
    try:
        return [c_integer(value or "") for value in request.values[:2]]
    except ValueError:
        raise BAD_PARAMETER from None


LOG_LEVEL = JsonForm(recipes=[(), ("level",), ("level", "pid")], order=("pid",), renamed={"New log level": "Log level"},
                     plurals=PROCESSES.plurals, errors={BAD_PARAMETER.reason: invalid_params("Bad PID")})


@command("log_level", bind=bind_log_level, json=LOG_LEVEL, level=c_integer, pid=c_integer)
def log_level(ctx, level=None, pid=0):
    """Show the log levels of all processes, or set the level of all processes or of process PID."""
    processes = ctx.server.processes
    if level is None:
        live = processes.unchanged()
        return Reply(nodes=[Node("Process", None, (("PID", pid), ("Log level", processes.log_level(row)), ("Type", kind)))
                            for _, pid, kind, row in processes.living()], live=live)
    rows = [row for _, known, _, row in processes.living() if known == pid]
    if pid and not rows:
        raise BAD_PARAMETER
    if pid:
        processes.set(rows[0], level=level, own_level=1)
        return Reply(nodes=(Node("New log level", level),))
    for row in range(ROWS):
        processes.set(row, level=level, own_level=0)
    return Reply(nodes=(Node("New global log level", level),))


# Cached values: the core has the commands for all cache systems, cachedb_local has the system that is always there.


def in_order(empty: list[str], least: int, too_many: str) -> Callable[[Request], list]:
    """The text binding of a cache command, whose error is about the first argument that is wrong: 404 and the text from
    `empty` for one without a value. Those behind the first `least` are optional."""

    def bind(request: Request) -> list:
        values = request.values
        for index, text in enumerate(empty[:max(least, len(values))]):
            if index == len(values):
                raise Error(404, "Too few arguments")
            if values[index] is None:
                raise Error(404, text)
        expires = values[least:len(empty)]
        if not all(re.fullmatch("[0-9]+", value) for value in expires):
            raise Error(404, "Bad format for expires argument")
        if len(values) > len(empty):
            raise Error(404, too_many)
        return [*values[:least], *(int(value[-32:]) & 0xFFFFFFFF for value in expires)]  # 10**32 is a multiple of 2**32

    return bind


def check_cache(values: dict) -> None:
    """Refuse bad values of a cache command or subscription from a JSON-RPC client, as 3.x does."""
    if values.get("expire", 0) < 0:
        raise invalid_params("Negative expire value")
    for name, text in {"system": "Empty memory cache id", "attr": "Empty attribute name", "value": "Empty value"}.items():
        if values.get(name) == "":
            raise invalid_params(text)


CACHE_KEY = ["Empty memory cache id", "Empty attribute name"]
CACHE = JsonForm(order=("expire",), check=check_cache)


def in_cache(ctx, system: str, failure: str, act: Callable[[Any, str], Any]) -> Any:
    """What act(store, space) returns, for a cache system: `local`, an id that cachedb_url names, or what cache(ctx, system) of a
    plug-in knows. Error for an unknown one, and where the store fails."""
    registry = ctx.server.registry
    urls = registry.modules_by_name["cachedb_local"].settings["cachedb_url"]
    collection = {"local": "default", **dict(urls)}.get("local" if system == "local:" else system)
    others = (module.hooks["cache"](Context(module), system) for module in registry.modules if "cache" in module.hooks)
    store = ctx.store if collection else next(filter(None, others), None)
    if store is None:
        raise Error(500, failure)
    try:
        return act(store, f"cache:{collection}")
    except StoreError:
        raise Error(500, failure) from None


@command("cache_store", also="cache:store", json=CACHE, expire=c_integer, bind=in_order(
    [*CACHE_KEY, "Empty value argument", "Empty expires argument"], 3, "Too many parameters"))
def cache_store(ctx, system, attr, value, expire=0):
    """Store a value in a cache system, for EXPIRE seconds (0: forever)."""
    in_cache(ctx, system, "Cache store command failed", lambda store, space: store.put(space, attr, value, expire))
    return Reply()


@command("cache_fetch", also="cache:fetch", json=CACHE, bind=in_order(CACHE_KEY, 2, "Too many arguments"))
def cache_fetch(ctx, system, attr):
    """Fetch a value from a cache system."""
    value, until_s, *depends = in_cache(ctx, system, "Cache fetch command failed", lambda store, space: (
        (*store.entry(space, attr), space) if store is ctx.store else (store.get(space, attr), None)))
    if value is None:
        return Reply(nodes=(Node(None, "Value not found"),), result=Error(400, "Value not found"))
    return Reply(nodes=leaves((attr, value), ("key", "value")), depends=tuple(depends), until_s=until_s)


@command("cache_remove", also="cache:remove", json=CACHE, bind=in_order(CACHE_KEY, 2, "Too many parameters"))
def cache_remove(ctx, system, attr):
    """Remove a value from a cache system."""
    in_cache(ctx, system, "Cache remove command failed", lambda store, space: store.remove(space, attr))
    return Reply()


INTERNAL = {"Server Internal Error": Error(500, "Internal error")}
@every(60, where="one")
def forget_expired(ctx):
    """Make room in the store."""
    with contextlib.suppress(StoreError):  # which is logged already
        ctx.store.purge()
        ctx.server.events.subscribe()


def collections_of(value) -> tuple:
    """Converter: cachedb_local's `name[/r][=size]; name...`; sizes are not needed here, and /r is for clusters."""
    names = tuple(re.sub(r"\s*(/r\s*)?(=.*)?$", "", item).strip() for item in string(value).split(";") if item.strip())
    if not all(re.fullmatch(r"\w+", name) for name in names):
        raise ValueError('takes names of collections: "default; c1; c2 = 9; c3/r"')
    return ("default", *names)


def cachedb_url(value) -> tuple:
    """Converter: cachedb_local's `local[:ID]://[HOST][/COLLECTION]` to (name of the cache system, COLLECTION)."""
    match = re.fullmatch(r"(local(?::[\w.-]+)?)://[^/]*(?:/(\w*))?", string(value))
    if not match:
        raise ValueError('takes "local://", "local:///COLLECTION" or "local:ID:///COLLECTION"')
    return match.group(1), match.group(2) or "default"


def bind_subscription(request: Request) -> list:
    """EVENT, SOCKET and EXPIRE of a text request; further arguments are ignored."""
    values = [value or "" for value in request.values[:3]]
    if not all(values[:2]) or len(values) < 2:
        raise WRONG_COUNT
    if not re.fullmatch(r"\+?[0-9]{1,9}", (values + ["3600"])[2]):
        raise BAD_PARAMETER
    return [*values[:2], *map(int, values[2:])]


SUBSCRIPTION = JsonForm(errors={BAD_PARAMETER.reason: Error(400, "Bad parameter value"), **INTERNAL}, check=check_cache)


@command("event_subscribe", also="evi:subscribe", bind=bind_subscription, json=SUBSCRIPTION, expire=c_integer)
def event_subscribe(ctx, event, socket, expire=3600):
    """Subscribe SOCKET, udp:HOST:PORT or unix:PATH, to an event for EXPIRE seconds; 0 ends the subscription."""
    if event not in ctx.server.registry.events:
        raise BAD_PARAMETER
    endpoint, client = ctx.caller or (None, None)
    asker = endpoint.address_of(client) if endpoint and not endpoint.unix else None  # of a UDP client
    try:
        family, target = event_target(socket, by_name=not asker)
    except (OSError, ValueError):
        raise Error(400, f"Bad parameter, write {right_form(socket)}") if right_form(socket) else BAD_PARAMETER from None
    if asker and not may_have_events(ctx, asker[0], target):
        ctx.server.count("forbidden")
        log.warning("audit: events for %a refused to %s", socket, shown_address(asker))
        raise Error(403, "Forbidden")
    dialect = ctx.request.dialect
    ctx.server.events.subscribe({
        "event": event, "socket": socket, "expire": expire, "since": ctx.store.now_s(), "dialect": dialect, "family": family,
        "target": target, "ended": expire == 0, "by": target[0] if asker else ""})
    return Reply()


def may_have_events(ctx, host: str, target: Any) -> bool:
    """Whether a UDP client may subscribe an address: of its own host or in event_targets, and no path."""
    return isinstance(target, tuple) and (host_address(target[0]) == host_address(host)
                                          or in_networks(target[0], ctx.server.setup.own["event_targets"]))


def core_stats(counters: Counters, processes: Processes, uptime_s: Callable, figures: Any, children: int) -> list[Stat]:
    """The statistics of OpenSIPS' core: without the plug-in `figures` (None) those of group core alone."""
    core = [Stat("timestamp", "seconds since the start", "core", False, lambda: int(uptime_s()))]
    return figures.stats_of(counters, processes, children, core) if figures else core


def buffer_size(value) -> int:
    """Converter: socket_buf_size, LIMIT for what is not above 0, as 4.0 does."""
    size = integer()(value)
    return size if size > 0 else LIMIT


MI_DATAGRAM_PARAMS = [
    Param("socket_name", None, functools.partial(address, strict=False), "socket to serve: a UNIX path, or udp:HOST:PORT"),
    Param("children_count", 1, integer(1, 128), "number of child processes that serve the socket"),
    Param("unix_socket_mode", 0o660, file_mode, "permissions of the UNIX socket, octal"),
    Param("unix_socket_group", None, account, "group that owns the UNIX socket, by name or number"),
    Param("unix_socket_user", None, account, "user who owns the UNIX socket, by name (sets the group too) or number"),
    Param("socket_timeout", 2000, integer(0, 3600000), "how long to retry a reply, ms"),
    Param("socket_buf_size", LIMIT, buffer_size, "limit of requests and of replies, bytes"),
    Param("pretty_printing", False, boolean, "write JSON-RPC replies over several lines"),
    Param("reply_indent", "\t", string, "indentation per level"),
    Param("trace_destination", (), names_or_none, "tracing destinations, comma-separated"),
    Param("trace_bwlist", (False, ()), trace_list, "commands to trace: w: only these, b: all but these"),
]
MI_DATAGRAM_STATS = [
    Stat("requests", "non-empty datagrams received"),
    Stat("replies", "replies sent"),
    Stat("bytes_received", "bytes of requests received"),
    Stat("bytes_sent", "bytes of replies sent"),
    Stat("errors", "requests that were malformed, too long or unknown, or whose command failed"),
    Stat("timeouts", "replies dropped after socket_timeout"),
    Stat("unreachable", "replies to clients that are gone, not bound or not writable"),
    Stat("empty", "empty datagrams received"),
    Stat("notifications", "JSON-RPC notifications, which get no reply"),
    Stat("looped", "datagrams ignored because they are replies or have no client's address"),
    Stat("refused", "datagrams dropped by allow_from"),
    Stat("forbidden", "commands refused by allow_command, and subscriptions refused by event_targets"),
    Stat("interrupted", "commands ended by handler_timeout"),
    Stat("delayed", "replies that waited for a slow client"),
    Stat("child_deaths", "children that died unexpectedly"),
    Stat("child_stalls", "children killed by stall_timeout"),
    Stat("reloads", "successful reloads"),
    Stat("reload_errors", "reloads rejected because of a mistake"),
    Stat("events_lost", "events that could not be sent to a subscriber"),
    Stat("log_lost", "log lines dropped because they could not be written at once"),
    Stat("store_errors", "requests that failed because the store was full or locked"),
]
MI_DATAGRAM_EVENTS = [
    Event("E_MI_CHILD_DIED", "a child died unexpectedly: pid, reason"),
    Event("E_MI_RELOAD", "the configuration was reloaded: children"),
    Event("E_MI_STOP", "the server stops"),
]
MIDATAGRAM_PARAMS = [
    Param("listen", (), listener, "additional socket: ADDRESS[;mode=0660][;user=NAME][;group=NAME][;upstream=NAME]", repeat=True),
    Param("dialect", "auto", one_of("auto", "text", "jsonrpc"), "auto (by the first byte of each request), text or jsonrpc"),
    Param("imitate", "midatagram", one_of("midatagram", "2.4", "3.4", "4.0"),
          "release of OpenSIPS to look like: midatagram (none), 2.4, 3.4 or 4.0"),
    Param("version_text", None, string, "what version shows, instead of what imitate says"),
    Param("pool_size", 1000, integer(1, 100000), "maximum number of requests in progress, per child"),
    Param("handler_timeout", 10000, integer(1, 86400000), "maximum run time of a command, ms"),
    Param("stall_timeout", 10000, integer(100, 86400000), "how long a child may block its event loop before it is replaced, ms"),
    Param("stop_timeout", 3000, integer(0, 4000), "how long a stop waits for requests in progress, ms"),
    Param("max_requests", 0, integer(0), "number of requests after which a child is replaced, plus or minus 10 %; 0: never"),
    Param("peer_queue", 4 << 20, integer(65536), "maximum size of the replies queued for one slow client, bytes"),
    Param("reply_queue", 64 << 20, integer(65536), "maximum size of the replies queued for all slow clients, per child, bytes"),
    Param("send_buffer", 4 << 20, integer(65536), "size of the socket's send buffer, bytes"),
    Param("allow_from", None, networks, "networks that may send UDP requests; other datagrams are dropped unread"),
    Param("allow_command", (), access_rule, "access rule: COMMAND, ...: NETWORK|uid:NAME|gid:NAME, ...", repeat=True),
    Param("disable", (), patterns, "commands to disable, comma-separated: kill, log_level"),
    Param("log_file", None, string, "log to this file instead of stderr or syslog; SIGUSR1 reopens it"),
    Param("store_size", 64 << 20, integer(1 << 20), "store size limit (cached values, subscriptions, plug-in data), bytes"),
    Param("store_file", None, string, "file for the store, which survives restarts then; a change takes a restart"),
    Param("db_url", "", string, "database of all modules, whatever they name themselves: text://DIRECTORY or sqlite://FILE"),
    Param("max_subscribers", 256, integer(0), "maximum number of event subscriptions"),
    Param("event_targets", (), networks, "networks that UDP clients may subscribe, besides their own host"),
    Param("start_timeout", 10000, integer(100, 3600000), "time limit for the start of a child, and for a reload, ms"),
    Param("crash_limit", 10, integer(1), "exit after this number of children in a row died as they started while none served"),
]

NO_EFFECT = "accepted without effect"
CACHEDB_NUMBERS = [Param(name, 0, integer(), NO_EFFECT) for name in (
    "cache_table_size", "cache_clean_period", "cluster_id", "enable_restart_persistency", "exec_threshold")]


def built_in_modules() -> list[Module]:
    """The modules that are always there, in the order in which OpenSIPS registers their commands."""
    plugin = if_there("_core_commands")

    def more(*names: str) -> list[Callable]:
        return [getattr(plugin, name) for name in names if plugin]

    def module(name: str, *functions: Callable, **rows: list) -> Module:
        return Module(name, {**{function.__name__: function for function in functions}, **rows}, __file__)

    return [
        module("statistics", get_statistics, *more("list_statistics", "reset_statistics", "reset_all_statistics")),
        module("core", uptime, version, *more("pwd", "arg"), which, list_processes, kill, log_level, *more("xlog_level"),
               cache_store, cache_fetch, cache_remove, event_subscribe,
               *more("events_list", "subscribers_list", "raise_event", "list_tcp_conns", "tcp_close", "show_help")),
        module("blacklists", *more("list_blacklists")),
        module("cachedb_local", *more("cache_remove_chunk", "cache_fetch_chunk"), forget_expired, PARAMS=[
            Param("cache_collections", ("default",), collections_of, "names of collections, semicolon-separated"),
            Param("cachedb_url", (), cachedb_url, "cache system, and its collection: local:ID:///COLLECTION; without ID: local",
                  repeat=True), *CACHEDB_NUMBERS, Param("cluster_persistency", None, string, NO_EFFECT)]),
        module("mi_datagram", PARAMS=MI_DATAGRAM_PARAMS, STATS=MI_DATAGRAM_STATS, EVENTS=MI_DATAGRAM_EVENTS),
        module("midatagram", PARAMS=MIDATAGRAM_PARAMS),
    ]


###############################################################################
# 16. Sockets #################################################################
###############################################################################
# Strategy: the attendant binds and checks; children read, and reply from the
# bound socket, so that connected clients hear us too. A socket's file has its
# mode from the first moment; one that is to get another owner is closed to
# all until then. What is changed is the file that our socket is bound to, not
# whatever a stranger has put at its path.

IP_PKTINFO = 8  # linux/in.h; the socket module has it from Python 3.14 on
SIOCUNIXFILE = 0x89E0  # linux/un.h
CREDENTIALS_ROOM, ADDRESS_ROOM = socket.CMSG_SPACE(struct.calcsize("3i")), 64  # bytes of ancillary data
REUSE = socket.SOL_SOCKET, socket.SO_REUSEADDR  # set on two sockets, both can have one UDP port
LOCK_TRIES = 100  # a hundredth of a second apart
POLLRDHUP = 0x2000  # linux/eventpoll.h


class Endpoint:
    """A socket that is served. `kept`: it was given to us (systemd) and outlives us."""

    receive: Callable[[int, int], tuple]
    send: Callable[[bytes, Any], int]

    def __init__(self, place: Place, sock: Any, kept: bool = False, identity: tuple | None = None):
        self.place, self.socket, self.kept, self.identity, self.trouble = place, sock, kept, identity, ""
        self.unix = place.family == socket.AF_UNIX
        self.wildcard = not self.unix and sock.getsockname()[0] in ("0.0.0.0", "::")
        sock.setblocking(False)
        if self.wildcard and sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        elif self.wildcard:
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)

    def prepare(self, credentials: bool) -> None:
        """In a child: choose how to receive and send. Both are as a socket's recvfrom and sendto, but that a client
        of a `paired` one is a pair of its address and the datagram's ancillary data."""
        sock = self.socket
        self.address, self.paired = sock.getsockname(), self.wildcard or (self.unix and credentials)
        self.receive = self.receive_message if self.paired else sock.recvfrom
        self.send = sock.sendto
        if self.wildcard:  # reply from the address that was asked
            self.send = lambda data, client: sock.sendmsg([data], client[1], 0, client[0])
        elif self.paired:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            self.send = lambda data, client: sock.sendto(data, client[0])

    def is_closed(self) -> bool:
        """In a child: whether somebody closed the socket."""
        try:
            return self.socket.getsockname() != self.address
        except OSError:
            return True

    def address_of(self, client: Any) -> Any:
        """The address of a client."""
        return client[0] if self.paired else client

    def receive_message(self, size: int, flags: int) -> tuple:
        """One datagram, and (its sender, ancillary data); there is no room for descriptors that a client may send."""
        data, ancillary, _, client = self.socket.recvmsg(size, CREDENTIALS_ROOM if self.unix else ADDRESS_ROOM, flags)
        return data, (client, tuple(ancillary))

    def send_fairly(self, data: bytes, client: Any) -> int:
        """Send, a large reply only if it leaves half of the send buffer, which pays for what clients have not read; OSError."""
        if self.unix and len(data) > LARGE:
            unread, = struct.unpack("i", fcntl.ioctl(self.socket, termios.TIOCOUTQ, b"\0\0\0\0"))
            if unread + len(data) > self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2:
                raise BlockingIOError(errno.EAGAIN, "other clients need the rest of the send buffer")
        return self.send(data, client)

    def is_lost(self) -> bool:
        """Whether the file of a UNIX socket is no longer ours, or some child shut a socket down for all; it makes room then."""
        poll = original("select", "poll")()
        poll.register(self.socket, POLLRDHUP)
        is_shut = any(events & POLLRDHUP for _, events in poll.poll(0))
        if is_shut and not self.kept:
            with contextlib.suppress(OSError):
                remove_own(self.place.spot, self.identity) if self.unix else self.socket.setsockopt(*REUSE, 1)
        return not self.kept and (identity_of(self.place.spot) != self.identity if self.unix else is_shut)

    def close(self, remove: bool) -> None:
        """Close; remove the socket's file if it is still ours."""
        if remove and self.unix and not self.kept:
            with contextlib.suppress(OSError):
                remove_own(self.place.spot, self.identity)
        self.socket.close()

    def move(self, place: Place) -> None:
        """Give the file of a UNIX socket the mode and owner of another place at the same path; OSError."""
        self.place = place
        if self.unix and not self.kept:
            give_file(self.socket, place, self.identity)


def open_endpoint(place: Place, given: dict, beside_ours: bool = False) -> Endpoint:
    """Open one socket, or use the one given to us; beside_ours: one that made room is there. StartError."""
    new_socket = original("socket", "socket")
    if place.spot in given:
        return Endpoint(place, new_socket(fileno=given.pop(place.spot)), kept=True)
    sock = new_socket(place.family, socket.SOCK_DGRAM)
    sock.setsockopt(*REUSE, beside_ours)
    try:
        identity = bind_unix(place, sock) if place.family == socket.AF_UNIX else sock.bind(place.spot)
    except (OSError, StartError) as error:
        sock.close()
        raise (refusal(place, error) if isinstance(error, OSError) else error) from None
    sock.setsockopt(*REUSE, 0)
    return Endpoint(place, sock, identity=identity)


def refusal(place: Place, error: OSError) -> StartError:
    """Why a socket cannot be bound, and how to mend it."""
    what = {
        errno.EADDRINUSE: (EXIT_IN_USE, "is in use by another program; stop it or choose another"),
        errno.EACCES: (EXIT_PERMISSION, f"is not permitted to uid {os.geteuid()}; run as another user or choose another folder"),
        errno.EPERM: (EXIT_PERMISSION, f"cannot be given to that unix_socket_user or group by uid {os.geteuid()}; only root can"),
        errno.ENOENT: (EXIT_CANNOT_CREATE, f"has no folder; mend: mkdir -p {os.path.dirname(str(place.spot)) or '.'}"),
        errno.ENOTDIR: (EXIT_CANNOT_CREATE, "has a file where its folder should be"),
        errno.EADDRNOTAVAIL: (EXIT_CANNOT_CREATE, "is not an address of this machine"),
    }
    status, text = what.get(error.errno or 0, (EXIT_CANNOT_CREATE, "cannot be opened"))
    where = place.lines[error.errno == errno.EPERM]
    return StartError(status, f"{ConfigError(*where, f'socket {place.address} {text} ({error.strerror})')}")


def bind_unix(place: Place, sock: Any) -> tuple | None:
    """Bind a UNIX socket in place of a dead one at most; returns the identity of its file. OSError, StartError. The folder is
    locked meanwhile, so that of two servers that start at once one meets the other alive."""
    folder = walk(os.path.dirname(os.path.abspath(place.spot)), follow_roots, os.O_RDONLY | os.O_DIRECTORY)
    mask = os.umask(0)
    try:
        wait_for_lock(folder)
        clear_path(place.spot)
        os.fchmod(sock.fileno(), place.mode if (place.uid, place.gid) == (-1, -1) else 0)  # its file gets this mode
        sock.bind(place.spot)
        return give_file(sock, place)
    finally:
        os.umask(mask)
        os.close(folder)


def wait_for_lock(descriptor: int) -> None:
    """Lock a folder; not for ever, since whoever may read it may hold the lock."""
    for _ in range(LOCK_TRIES):
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            original("time", "sleep")(0.01)
    return log.warning("somebody holds the lock of the socket's folder; going on without it")


def clear_path(path: str) -> None:
    """Delete a dead socket at the path; StartError for whatever else is there."""
    try:
        file = os.open(path, os.O_PATH | os.O_NOFOLLOW)  # while it is open no new file can have its identity
    except FileNotFoundError:
        return
    try:
        mode = os.fstat(file).st_mode
        if not S_ISSOCK(mode):
            kinds = {S_IFLNK: "a symbolic link", S_IFDIR: "a folder", S_IFIFO: "a FIFO", S_IFREG: "a file"}
            raise StartError(EXIT_CANNOT_CREATE, f"{path} is {kinds.get(S_IFMT(mode), 'no socket')}, which is left as it is; "
                                                 "remove it or choose another path")
        if is_live(path):
            raise StartError(EXIT_IN_USE, f"{path} is the socket of a running server; stop that one or choose another path")
        remove_own(path, identity_of(file))
    finally:
        os.close(file)


def is_live(path: str) -> bool:
    """Whether somebody holds the socket at a path open; where we may not connect, whether the kernel lists it."""
    with original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(path)
        except PermissionError:
            with open("/proc/net/unix", "rb") as table:
                return any(line.rstrip(b"\n").endswith(b" " + os.fsencode(os.path.abspath(path))) for line in table)
        except OSError as error:
            return error.errno not in (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTDIR)
    return True


def file_of(sock: Any, place: Place, identity: tuple | None) -> int:
    """An O_PATH descriptor of the file that a socket is bound to, of that identity if it is known; OSError. The kernel gives
    it to root alone; others look whether what lies at the path is theirs."""
    with contextlib.suppress(OSError):
        return fcntl.ioctl(sock, SIOCUNIXFILE)
    file = os.open(place.spot, os.O_PATH | os.O_NOFOLLOW)
    status = os.fstat(file)
    made = S_ISSOCK(status.st_mode) and status.st_uid in (os.geteuid(), place.uid) and status.st_nlink == 1
    if identity_of(file) == identity or (made and not identity):
        return file
    os.close(file)
    raise FileExistsError(errno.EEXIST, "somebody put another file there")


def give_file(sock: Any, place: Place, identity: tuple | None = None) -> tuple | None:
    """Give the file of a bound socket its mode and owner; its identity. OSError, and a new file (without one) is gone."""
    file = file_of(sock, place, identity)
    try:
        status, path = os.fstat(file), f"/proc/self/fd/{file}"
        if place.uid not in (-1, status.st_uid) or place.gid not in (-1, status.st_gid):
            os.chmod(path, S_IMODE(status.st_mode) & place.mode)  # nobody gets in between whom one of the modes keeps out
            os.chown(path, place.uid, place.gid)
        os.chmod(path, place.mode)
        return identity_of(file)
    except OSError:
        if identity is None:
            remove_own(place.spot, identity_of(file))
        raise
    finally:
        os.close(file)


###############################################################################
# 17. Outbox ##################################################################
###############################################################################
# Strategy: the kernel charges what a client has not read to the socket that
# sent it. So a client that is behind or gets a large reply is a Peer: it is
# served through a socket of its own, connected to it, which becomes writable
# when the client has read; nobody else waits. One that asks again within a
# moment gets such a socket too, which saves looking up its path for each
# reply. Whether it has bound that path anew is looked at once in a moment.

WAIT = (errno.EAGAIN, errno.ENOBUFS)  # the peer's queue or our buffer is full
REFUSED = (errno.ECONNREFUSED, errno.ENOENT, errno.ENOTCONN, errno.ECONNRESET, errno.EPIPE, errno.ENOTSOCK, errno.EPERM)
LARGE = 8192  # bytes; larger replies to UNIX clients are charged to a socket of their own
IDLE_S = 2.0  # after which a client's own socket is closed
OWN_SOCKETS = 512  # at most; further clients that are behind are retried on a timer
MOMENT_S = 0.01  # how long a client's own socket is used before its path is looked at again
RETRY_S = 0.005  # how often those are retried who cannot be waited for


class Peer:
    """A client that is served through a socket of its own, where there can be one: its waiting replies, in order."""

    def __init__(self, endpoint: Endpoint, client: Any):
        self.endpoint, self.client, self.address = endpoint, client, endpoint.address_of(client)
        self.socket: Any = None
        self.watcher: Any = None
        # Which file the client's path is now, and was; an abstract name is that of one socket as long as this lives:
        self.file = functools.partial(identity_of, self.address) if isinstance(self.address, str) else lambda: None
        self.identity: tuple | None = None
        self.waiting: collections.deque[tuple[float, bytes]] = collections.deque()  # (deadline, data)
        self.bytes, self.used_s = 0, time.monotonic()

    def connect(self) -> None:
        """Get a socket of its own; clients that are connected to us refuse one (EPERM), UDP needs none. OSError."""
        self.close()
        if not self.endpoint.unix:
            return
        self.identity = self.file()
        try:
            self.socket = original("socket", "socket")(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            self.socket.connect(self.address)
        except OSError as error:
            self.close()
            if error.errno not in (errno.EPERM, errno.EMFILE, errno.ENFILE):
                raise

    def send(self, data: bytes) -> int:
        """Send through the own socket, or from the bound one where there is none; OSError as send(2)."""
        self.used_s = time.monotonic()
        if self.socket:
            try:
                if self.identity == self.file():
                    return self.socket.send(data)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
            self.connect()  # the client bound its path anew, or is connected to us now
        if self.socket:
            return self.socket.send(data)
        return self.endpoint.send_fairly(data, self.client)

    def watch(self, loop: Any, act: Callable[[Peer], None]) -> None:
        """Call act(peer) when the client has read, or on a timer where the kernel cannot tell."""
        if not self.watcher:
            self.watcher = loop.io(self.socket.fileno(), 2) if self.socket else loop.timer(RETRY_S, RETRY_S)
            self.watcher.start(act, self)

    def unwatch(self) -> None:
        """End what watch() began."""
        if self.watcher:
            self.watcher.close()
        self.watcher = None

    def close(self) -> None:
        """Close the own socket."""
        self.unwatch()
        if self.socket:
            self.socket.close()
        self.socket = None


class Outbox:
    """Delivers the replies of a child: at once where that works, else as soon as the client has read.

    In order per client; within socket_timeout; bounded per client and in all.
    """

    def __init__(self, server: Server, loop: Any):
        self.server, self.loop, own = server, loop, server.setup.own
        self.timeout_s = server.setup.mi["socket_timeout"] / 1000
        self.peer_limit, self.limit = own["peer_queue"], own["reply_queue"]
        self.peers: dict[tuple, Peer] = {}  # by endpoint and client
        # Clients that got a reply in this moment, and what sends to a Peer among them:
        self.senders: dict[Endpoint, dict[Any, Callable | None]] = collections.defaultdict(dict)
        self.moment_s = 0.0  # when it ends
        self.bytes = 0  # that wait for clients to read

    def begin(self, now_s: float) -> None:
        """Before a burst: when the moment is over, look anew at each client."""
        if now_s >= self.moment_s:
            self.moment_s = now_s + MOMENT_S
            for senders in self.senders.values():
                senders.clear()

    def deliver_of(self, endpoint: Endpoint) -> Callable[[bytes, Any], None]:
        """The function that sends a reply from an endpoint to a client, at once or later."""
        senders, counted, core = self.senders[endpoint], self.server.counted, self.server.core
        replies, sent = core["replies"], core["bytes_sent"]

        def deliver(data: bytes, client: Any) -> None:
            send = senders.get(client)
            try:
                if send is None:
                    return self.post(endpoint, data, client)
                send(data)
            except OSError:  # it is behind, or it is gone
                return self.post(endpoint, data, client)
            counted[replies] += 1
            counted[sent] += len(data)

        return deliver

    def post(self, endpoint: Endpoint, data: bytes, client: Any) -> None:
        """Send a reply, or keep it for later; never blocks."""
        if not endpoint.address_of(client):
            return self.lose(endpoint, client, OSError(errno.EDESTADDRREQ, "is not bound, so it has no address to reply to"))
        senders, peer = self.senders[endpoint], self.peers.get((endpoint, client))
        if peer is None and len(self.peers) < OWN_SOCKETS and (client in senders or endpoint.unix and len(data) > LARGE):
            peer = self.add_peer(endpoint, client)
        try:
            if peer is None:
                endpoint.send_fairly(data, client)
                senders[client] = None
            elif peer.waiting:
                return self.keep(peer, data)
            else:
                peer.send(data)
                senders[client] = peer.socket.send if peer.socket else peer.send
        except OSError as error:
            if error.errno in WAIT:
                return self.keep(peer or self.add_peer(endpoint, client), data)
            return self.lose(endpoint, client, error)
        return self.count(data)

    def add_peer(self, endpoint: Endpoint, client: Any) -> Peer:
        """A new Peer, with a socket of its own if there are not too many."""
        peer = self.peers[endpoint, client] = Peer(endpoint, client)
        if len(self.peers) <= OWN_SOCKETS:
            with contextlib.suppress(OSError):  # what is wrong shows when sending
                peer.connect()
        return peer

    def keep(self, peer: Peer, data: bytes) -> None:
        """Keep a reply for a client that is behind, unless too much waits already."""
        self.senders[peer.endpoint].pop(peer.client, None)  # what comes next waits behind it
        if peer.bytes + len(data) > self.peer_limit or self.bytes + len(data) > self.limit:
            return self.lose(peer.endpoint, peer.client, "reads too slowly and its queue is full")
        peer.waiting.append((time.monotonic() + self.timeout_s, data))
        peer.bytes += len(data)
        self.bytes += len(data)
        self.server.count("delayed")
        return peer.watch(self.loop, self.flush)

    def flush(self, peer: Peer) -> None:
        """Send what waits for a client, until its queue is full again."""
        while peer.waiting:
            data = peer.waiting[0][1]
            try:
                peer.send(data)
                self.count(data)
            except OSError as error:
                if error.errno in WAIT:
                    return peer.watch(self.loop, self.flush)  # on another socket, if it had to connect anew
                self.lose(peer.endpoint, peer.client, error)
            self.drop_first(peer)
        return peer.unwatch()

    def drop_first(self, peer: Peer) -> None:
        """Remove the first waiting reply."""
        _, data = peer.waiting.popleft()
        peer.bytes -= len(data)
        self.bytes -= len(data)

    def sweep(self, now_s: float) -> None:
        """Give up what is too old, and close the sockets of clients that are no longer behind."""
        for key, peer in list(self.peers.items()):
            while peer.waiting and peer.waiting[0][0] <= now_s:
                self.drop_first(peer)
                self.lose(peer.endpoint, peer.client, f"did not read for {self.timeout_s:g} s")
            if not peer.waiting and now_s - peer.used_s > IDLE_S:
                peer.close()
                del self.peers[key]

    def count(self, data: bytes) -> None:
        """Count a reply that is on its way."""
        self.server.count("replies")
        self.server.count("bytes_sent", len(data))

    def lose(self, endpoint: Endpoint, client: Any, why: OSError | str) -> None:
        """Count a reply that cannot be sent, or is not read (a text says why); log it once per client."""
        self.server.count("unreachable" if isinstance(why, OSError) else "timeouts")
        address, place, text = endpoint.address_of(client), endpoint.place.address, f"{why}; replies to it are lost"
        if isinstance(why, OSError):
            text = why.strerror or str(why)
            with contextlib.suppress(OSError):
                if why.errno == errno.EACCES and endpoint.unix:
                    text = f"may not be written to by uid {os.geteuid()}, its owner is uid {os.stat(address).st_uid}"
        name = f"client {shown_address(address)}" if address else "a client"
        log.warning("%s of %s: %s", name, place, text, extra={"once": (name, place, text)})


def shown_address(address: Any) -> str:
    """A socket address for the log: a path, @NAME for an abstract one, HOST:PORT."""
    if isinstance(address, tuple):
        return str(Address(*address[:2])).removeprefix("udp:")
    return "@" + decode(address[1:]) if isinstance(address, bytes) else str(address)


###############################################################################
# 18. Child ###################################################################
###############################################################################
# Strategy: a pool of parked greenlets. When a socket is readable the hub
# switches to an idle one, which receives datagrams until there are none and
# answers them on the spot. A handler that blocks keeps its greenlet, and the
# hub, which finds the socket still readable, wakes the next. When none is
# idle the sockets are not watched: the kernel's queue is the back-pressure.

BURST = 64  # datagrams a worker answers before others get their turn
BURST_S = 0.05  # and for how long, if handlers are slow
TURN_S = 0.02  # how long one request may go on before others get their turn
BOOT_FAILED = 70  # exit status of a child that cannot start; more of them would not either
ORPHAN_S = 0.5  # how long a child may go on when its attendant is gone


class Child:
    """One process that serves the sockets."""

    def __init__(self, server: Server, endpoints: list[Endpoint], row: int, rank: int):
        import gevent.event
        import greenlet

        self.gevent = gevent
        self.server, self.endpoints, self.row, self.rank = server, endpoints, row, rank
        self.setup, self.hub = server.setup, gevent.get_hub()
        self.hub.print_exception = lambda context, *raised: log.error("%s ended", context, exc_info=raised)  # not to stderr
        self.hub.SYSTEM_ERROR, self.hub.NOT_ERROR = (), (gevent.GreenletExit,)  # what a greenlet raises ends no child
        self.trouble = ""  # why this child cannot serve any more
        own = self.setup.own
        self.pool_size, self.timeout_s = own["pool_size"], own["handler_timeout"] / 1000
        self.workers = 0  # greenlets of the pool, of which some are idle
        self.worker, self.current = functools.partial(greenlet.greenlet, self.work, self.hub), greenlet.getcurrent
        self.idle: list[Any] = []
        self.busy: dict[Any, float] = {}  # when a worker last began a request that is not cached
        self.watchers: list = []
        self.stopping, self.limit_s = gevent.event.Event(), own["stop_timeout"] / 1000
        self.outbox, self.send_later = Outbox(server, self.hub.loop), gevent.spawn_later
        self.deliver_of = functools.cache(self.outbox.deliver_of)
        self.answers = answers_of(server, pause=self.pause, untimed=lambda: self.busy.pop(self.current(), None))
        self.screen = Screen(server, endpoints, own["allow_from"])
        self.turn_s = time.monotonic()  # since when this child has not been in its hub
        self.last_request = float("inf")  # count of requests at which this child asks to be replaced
        if own["max_requests"]:  # others that had this row may have served some
            more = max(1, round(own["max_requests"] * random.uniform(0.9, 1.1)))
            self.last_request = server.counted[server.core["requests"]] + more
        self.tracers = [trace() for trace in self.setup.destinations.values()]
        (white, listed), names_of = self.setup.mi["trace_bwlist"], server.registry.names_of
        self.is_traced = functools.lru_cache(100)(  # an unknown command always is
            lambda name: not name or any(one in listed for one in names_of(name)) == white)
        server.child = self
        self.traces: list[Trace] = []  # until settle()
        self.around = [(Context(module), function.mi_cached, names) for module, function, names in server.registry.wrappers
                       if function.mi_cached]
        self.is_tracing = self.debugging = False  # whether requests are traced or logged; and whether they are logged

    def serve(self, ready: Callable[[], None], wake_attendant: Callable[[], None], alive: int) -> None:
        """Serve until this child is to stop.

        ready(): called when all sockets are watched; alive: a descriptor that is closed when the attendant dies.
        """
        self.wake_attendant = wake_attendant
        loop, events = self.hub.loop, self.server.events
        stall_s = self.setup.own["stall_timeout"] / 1000
        interval_s = max(0.01, min(0.5, self.timeout_s / 10, stall_s / 5, self.outbox.timeout_s / 5 or 1))
        watched: list[tuple[Any, ...]] = [
            (loop.timer(interval_s, interval_s), self.sweep), (loop.io(events.outlet.fileno(), 1), events.receive),
            (loop.io(alive, 1), self.end, ORPHAN_S, "the attendant is gone, stopping"), (loop.signal(signal.SIGTERM), self.end),
            (loop.signal(signal.SIGQUIT), self.end, 0), (loop.signal(signal.SIGUSR1), self.reopen)]
        for watcher, handler, *values in watched:
            watcher.start(handler, *values)
        for endpoint in self.endpoints:
            endpoint.prepare(bool(self.server.access))
            self.watchers.append((loop.io(endpoint.socket.fileno(), 1), self.burst_of(endpoint)))
        self.sweep()
        self.watch()
        jobs = [self.gevent.spawn(self.repeat, module, function) for module in self.server.registry.modules
                for function in module.every if function.mi_every[1] == "each" or self.rank == 1]
        ready()
        while not self.stopping.is_set():
            try:
                self.stopping.wait()
            except BaseException:  # as of a gevent.Timeout that child_init started
                log.exception("a plug-in disturbs child %d, which goes on", self.rank)
        self.stop(jobs)
        if self.trouble:
            raise OSError(self.trouble)

    def watch(self) -> None:
        """Be woken by the sockets."""
        for watcher, burst in self.watchers:
            watcher.start(self.wake, burst)

    def unwatch(self) -> None:
        """Leave datagrams in the kernel's queue."""
        for watcher, _ in self.watchers:
            watcher.stop()

    def wake(self, burst: Callable) -> None:
        """A socket is readable: hand it to an idle worker. Runs in the hub."""
        if self.idle:
            self.idle.pop().switch(burst)
        elif self.workers < self.pool_size:
            self.workers += 1
            self.worker().switch(burst)
        else:
            self.unwatch()

    def work(self, burst: Callable) -> None:
        """The life of a worker: answer a burst, and park until there is another."""
        worker = self.current()
        while True:
            try:
                burst(worker)
            except BaseException:  # the last seam: a mistake of ours costs one reply, not the child
                log.exception("a request was lost")
            self.busy.pop(worker, None)
            self.settle()
            if not self.idle and self.workers == self.pool_size and not self.stopping.is_set():
                self.watch()
            self.idle.append(worker)
            burst = self.hub.switch()

    def burst_of(self, endpoint: Endpoint) -> Callable[[Any], None]:
        """The function that answers the datagrams of a socket until there are none, or others must have their turn."""
        receive, known = endpoint.receive, self.screen.known
        cached_of, at_once = self.answers.cache.young.get, self.answers.at_once
        deliver, counted, busy, now = self.outbox.deliver_of(endpoint), self.server.counted, self.busy, time.monotonic
        requests, received = self.server.core["requests"], self.server.core["bytes_received"]
        size, flags = self.setup.most + 1, socket.MSG_TRUNC  # so a cut datagram comes with its full length

        def burst(worker: Any) -> None:
            started_s = self.turn_s = now()
            self.outbox.begin(started_s)
            for _ in range(BURST):
                try:
                    data, client = receive(size, flags)
                except BlockingIOError:
                    return
                except OSError as error:  # an ICMP error for an earlier reply: the next datagram is not worse for it
                    log.debug("receiving on %s: %s", endpoint.place.address, error)
                    continue
                if (client not in known or not data) and not self.screen.admits(endpoint, client, data):
                    continue
                counted[requests] += 1
                counted[received] += len(data)
                requested_s = time.time() if self.is_tracing else 0.0
                cached = cached_of(data)
                if cached:
                    reply = cached.now()
                else:
                    cached, reply = at_once(data)
                if reply is None or (self.is_tracing and not self.may_send(data, requested_s, endpoint, client, cached, reply)):
                    busy[worker] = now()
                    self.answer(endpoint, client, data, requested_s, deliver, cached)
                    if now() > started_s + BURST_S:
                        return
                    continue
                deliver(reply, client)

        return burst

    def answer(self, endpoint: Endpoint, client: Any, data: bytes, requested_s: float, deliver: Callable,
               cached: Cached | None) -> None:
        """Answer a request whose reply is not cached, which may take its time."""
        if self.traces:
            self.settle()
        answer = self.answers.answer(data, (endpoint, client), cached)
        if answer.again:
            return None
        if answer is SILENCE or not self.screen.answers(endpoint, client, data, answer):
            return self.screen.drop(endpoint, client)
        return self.conclude(requested_s, endpoint, client, answer, deliver)

    def conclude(self, requested_s: float, endpoint: Endpoint, client: Any, answer: Answer, deliver: Any = None) -> None:
        """Trace and send an answer, which may come later than its request."""
        deliver = deliver or self.deliver_of(endpoint)
        if self.is_tracing:
            replied_s, address = time.time(), endpoint.address_of(client)
            self.traces += [Trace(requested_s, replied_s, address, endpoint.address, exchange) for exchange in answer.exchanges]
        if not answer.datagrams:
            self.server.count("notifications")
        for delay_s, reply in answer.datagrams:
            if delay_s:
                self.hub.loop.update_now()  # else it counts from when this burst began
                self.send_later(0 if callable(delay_s) else delay_s, self.post, delay_s, endpoint, reply, client)
            else:
                deliver(reply, client)

    def post(self, delay_s: Any, endpoint: Endpoint, reply: bytes, client: Any) -> None:
        """Send a reply whose delay is over, or when it returns."""
        if callable(delay_s):
            delay_s()
        self.outbox.post(endpoint, reply, client)

    def may_send(self, data: bytes, requested_s: float, endpoint: Endpoint, client: Any, cached: Any, reply: bytes) -> bool:
        """Trace a cached reply, unless it may not go out since what is around it is to be asked."""
        exchange = cached.exchanged(data, reply)
        trace = new(Trace, (requested_s, time.time(), endpoint.address_of(client), endpoint.address, exchange))
        for ctx, may_send, names in self.around:
            if (not names or exchange.command in names) and not may_send(ctx, trace):
                return False
        self.traces.append(trace)
        return True

    def pause(self) -> None:
        """Let others have their turn, if this one takes long."""
        if time.monotonic() > self.turn_s + TURN_S:
            give_way()
            self.turn_s = time.monotonic()

    def sweep(self) -> None:
        """Runs in the hub, some times a second: beat, end what takes too long, give up what cannot be delivered."""
        now_s = time.monotonic()
        self.server.processes.beats[self.row] = int(now_s * 1000)
        self.debugging = self.server.processes.log_level(self.row) >= 4
        self.is_tracing = self.debugging or bool(self.tracers or self.around)
        tend_logs(self.server)
        for endpoint in self.endpoints:
            if not self.trouble and endpoint.is_closed():
                self.trouble = f"a plug-in closed the socket {endpoint.place.address}"
                self.end(ORPHAN_S, self.trouble)
        self.outbox.sweep(now_s)
        for worker, since_s in list(self.busy.items()):
            if now_s - since_s >= self.timeout_s:
                self.server.count("interrupted")
                self.busy[worker] = now_s
                worker.throw(Interrupted())

    def settle(self) -> None:
        """After a burst, and before what may take its time: send the traces, and see whether max_requests is reached."""
        for _, _, client, _, exchange in self.traces if self.debugging else ():
            log.debug("%a from %s: %a", exchange.request, shown_address(client), exchange.reply)
        if self.traces:
            traces, self.traces = [trace for trace in self.traces if self.is_traced(trace.exchange.command)], []
            for tracer in self.tracers:
                tracer.put(traces)
        if self.server.counted[self.server.core["requests"]] >= self.last_request:  # serve on until a successor is there
            self.last_request = float("inf")
            self.server.processes.set(self.row, state=Processes.STOPPING)
            self.wake_attendant()

    def repeat(self, module: Module, function: Any) -> None:
        """Run what a plug-in does every so often."""
        while True:
            self.gevent.sleep(function.mi_every[0])
            self.run(module, function)

    def run(self, module: Module, function: Any) -> None:
        """Run a function of a plug-in; what it raises is logged."""
        try:
            function(Context(module))
        except self.gevent.GreenletExit:
            raise
        except BaseException:  # a plug-in's seam: a Timeout of gevent is no Exception
            module.log.exception("%s raised", function.__name__)

    def end(self, limit_s: float = float("inf"), why: str = "") -> None:
        """Have this child stop, within limit_s if that is less than stop_timeout."""
        if why:
            log.critical(why)
        self.server.processes.set(self.row, state=Processes.STOPPING)
        self.limit_s = min(self.limit_s, limit_s)
        self.stopping.set()

    def reopen(self) -> None:
        """SIGUSR1: open logs and trace files again."""
        reopen_logs()
        for tracer in self.tracers:
            getattr(tracer.destination, "reopen", lambda: None)()

    def stop(self, jobs: list) -> None:
        """Read no more, answer what is in hand and deliver what waits, within limit_s; then end what plug-ins began."""
        self.unwatch()
        self.gevent.killall(jobs, block=False)
        deadline_s = time.monotonic() + self.limit_s
        while time.monotonic() < deadline_s and (len(self.idle) < self.workers or self.outbox.bytes or self.server.later):
            self.gevent.sleep(0.005)
        self.settle()
        for tracer in self.tracers:
            tracer.flush(max(0.0, min(1.0, deadline_s - time.monotonic())))
        for module in self.server.registry.modules:
            if "destroy" in module.hooks:
                with contextlib.suppress(self.gevent.GreenletExit):
                    self.run(module, module.hooks["destroy"])
        tend_logs(self.server)
        self.server.events.finish()
        self.server.store.close()


def answers_of(server: Server, **callbacks: Any) -> Answers:
    """What answers for a server, in its dialects."""
    setup, access = server.setup, server.access
    return Answers(server.registry, log, setup.own["dialect"], setup.mi["reply_indent"], setup.mi["pretty_printing"],
                   setup.most, access.restricted if access else (), access and access.allows,
                   functools.partial(server.count, "errors"), spaces=server.store, **callbacks)


###############################################################################
# 19. Supervisor ##############################################################
###############################################################################
# Strategy: the attendant keeps children alive and does nothing else. It runs
# no hub, and no code of a plug-in that a configuration loads: each is loaded
# in a process of its own, the loader, which forks the children of that
# generation twice, so that they are the attendant's to wait for. A reload
# brings a candidate with one child on trial. If that serves well, the
# candidate becomes the current generation, and the others leave, each when its
# successor serves. systemd is told how it is if its variables say so, which
# are handed on to nobody.

EARLY_S = 1.0  # a child that ends so soon after it began to serve may be in a crash loop
FROZEN_S = 2.0  # without a tick: the whole server was stopped
LONGEST_PAUSE_S = 5.0  # between two starts of a child that keeps dying
UNBORN_S = 0.3  # after the end of a loader, when a child that it was asked for must have been forked
KILL_AFTER_S = 0.7  # more than stop_timeout, after which a child that does not stop is killed
EXTEND_S = 10  # by which a start may take longer than systemd's unit says, again and again
PART_BYTES = 1 << 16  # of what processes send each other in one piece
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


class Generation:
    """A configuration and its loader; children of any but the current generation and a candidate leave."""

    setup: Setup
    ranks: range
    levels: list  # the columns of statistics that are levels, not counters
    loads: bool  # whether a plug-in has load()

    def __init__(self, pid: int, control: Any):
        self.pid, self.control = pid, control  # the pid is 0 when the loader is gone
        self.endpoints: list[Endpoint] = []  # none until it is loaded
        self.report, self.has_reported, self.is_accepted = b"", False, False
        self.born_s, self.gone_s = time.monotonic(), 0.0

    def ask(self, verb: str, arguments: tuple, descriptors: Iterable[int] = ()) -> None:
        """Have the loader do something; OSError when it cannot be asked."""
        socket.send_fds(self.control, [pickle.dumps((verb, arguments))], list(descriptors))

    def read_report(self) -> bool:
        """Read what the loader reports; returns whether that is all."""
        with contextlib.suppress(BlockingIOError):
            while not self.has_reported:
                part = self.control.recv(PART_BYTES)
                self.report, self.has_reported = self.report + part, not part
        return self.has_reported

    def end(self) -> None:
        """End the loader; the children stay."""
        if self.pid:
            send_signal(self.pid, signal.SIGKILL)
            self.pid, self.gone_s = 0, time.monotonic()
            self.control.close()


class Record:
    """What the attendant knows of a child; the row in the process table says the rest. Times are 0 until they come."""

    def __init__(self, row: int, rank: int, generation: Generation):
        self.row, self.rank, self.generation, self.endpoints = row, rank, generation, generation.endpoints
        self.served_s = self.dismissed_s = 0.0
        self.is_stalled = False


def send_signal(pid: int, number: int) -> None:
    """Send a process a signal; it may be gone, or be a loader of root's, which ends by itself. 0 is no process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if pid:
            os.kill(pid, number)


def ending(code: int) -> str:
    """How a process ended, from its exit code."""
    names = {number.value: number.name for number in signal.Signals}
    return f"signal {names.get(-code, -code)}" if code < 0 else f"exit status {code}"


def forked(life: Callable[[], int]) -> int:
    """Fork a process that ends with the exit status that `life` returns, and give its pid; OSError. Signals are held back
    until it has handlers of its own."""
    every_signal = signal.valid_signals()
    signal.pthread_sigmask(signal.SIG_BLOCK, every_signal)
    try:
        pid = original("os", "fork")()
        if pid == 0:
            status = EXIT_CRASH
            try:
                status = life()
            except BaseException:  # nothing may pass into the code of the process that forked
                log.exception("a process ends")
            finally:
                logging.shutdown()
                os._exit(status)
        return pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, every_signal)


class Supervisor:
    """The attendant: opens sockets, starts children, replaces those that die, reloads, stops. starter: what to release when a
    start in the background is over, or None; given: path or address -> descriptor of systemd; notify: tells systemd states."""

    current: Generation

    def __init__(self, options: argparse.Namespace, starter: Any, given: dict, notify: Callable[..., None]):
        self.options, self.starter, self.given, self.notify = options, starter, given, notify
        self.processes, self.counters, self.started_s = Processes(), Counters(), time.time()
        self.pair, self.store, self.folder_lock = event_pair(), Store("", 0), -1
        self.figures = if_there("figures")  # see start()
        self.loads = self.figures and self.figures.Loads(self.counters, self.processes)
        self.endpoints: list[Endpoint] = []  # all that are open, of any generation
        self.candidate: Generation | None = None
        self.announced: list[Endpoint] | None = None  # the sockets at which every child served last
        self.children: dict[int, Record] = {}  # by row
        self.signals: collections.deque[int] = collections.deque()
        self.exit_status: int | None = None
        self.stop_signal: int = signal.SIGTERM
        self.ticked_s, self.written, self.last_reload = 0.0, "", ""
        self.deaths: collections.Counter[int] = collections.Counter()  # early ones in a row, by rank; a loader's rank is 0
        self.not_before_s: dict[int, float] = {}  # when a rank is started again, if others serve
        self.crashes = 0  # early deaths in a row after which nobody served
        self.is_disturbed = False  # what the store has, by load() of a candidate
        self.troubles: dict[int, str] = {}  # by rank why its child cannot start
        self.alive_read, self.alive_write = os.pipe()  # closed with the attendant
        self.news_read, self.news_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # written for each signal, and by tell()
        built_in = Setup("", Registry(built_in_modules()), {}, {}, {}, [], [], {}, {})
        self.server = Server(built_in, self.counters, self.processes, self.store, self.pair, self.started_s)

    # The start.

    def load_first(self) -> Setup:
        """Load the configuration, and wait for it; StartError."""
        libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self.current = self.first = generation = self.load_apart()
        while not generation.read_report():
            original("select", "select")([generation.control], [], [])
        if not self.take_report(generation):
            send_signal(generation.pid, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(original("os", "waitpid")(generation.pid, 0)[1])
            raise StartError(EXIT_CONFIG, f"the configuration cannot be loaded: that process ended with {ending(code)}")
        generation.is_accepted = True
        self.install_signals()
        return generation.setup

    def open(self) -> None:
        """Open all sockets; StartError."""
        self.current.endpoints = self.open_sockets(self.current.setup)
        for spot, descriptor in self.given.items():
            log.warning("socket %s was given to us but is not configured, closed", spot)
            os.close(descriptor)

    def make_store(self) -> None:
        """Have a place for what the processes share, as the user that we run as; StartError."""
        store, own = self.store, self.current.setup.own
        store.folder, self.folder_lock = run_folder()
        store.path, store.size_bytes = os.path.join(store.folder, "store.sqlite"), own["store_size"]
        locks = [self.folder_lock]
        if own["store_file"]:
            locks.append(shared("store_file", self.current.setup.path, "for store_file, ").adopt(store, self.current.setup))
        self.current.ask("begin", (store.folder, store.path), locks)

    def run(self) -> int:
        """Serve until a signal ends it; returns the exit status."""
        self.processes.set(ATTENDANT, pid=os.getpid(), rank=0, state=Processes.SERVING)
        while self.exit_status is None or self.children:
            self.manage()
            self.wait()
            while self.signals:
                self.ACTIONS[self.signals.popleft()](self)
            self.reap()
            self.tick()
        return self.exit_status

    def close(self) -> None:
        """Leave nothing behind, however far the start came."""
        for number in self.ACTIONS:  # the way out is not to be cut short
            original("signal", "signal")(number, signal.SIG_IGN)
        for generation in self.generations():
            generation.end()
        for endpoint in self.endpoints:
            endpoint.close(remove=True)
        if self.folder_lock >= 0:
            with contextlib.suppress(OSError):
                remove_run(self.store.folder, self.folder_lock)

    def generations(self) -> list[Generation]:
        """Those whose loaders are wanted."""
        return [generation for generation in (getattr(self, "current", None), self.candidate) if generation]

    # Signals: a handler only queues, the main loop acts.

    def install_signals(self) -> None:
        """Queue signals, and have each wake the main loop."""
        signal.set_wakeup_fd(self.news_write, warn_on_full_buffer=False)
        for number in self.ACTIONS:
            original("signal", "signal")(number, lambda number, frame: self.signals.append(number))
        original("signal", "signal")(signal.SIGCHLD, lambda number, frame: None)
        for number in (signal.SIGPIPE, signal.SIGUSR2):
            original("signal", "signal")(number, signal.SIG_IGN)

    def wait(self) -> None:
        """Sleep until a signal, news, or the next tick."""
        reports = [self.candidate.control] if self.candidate and not self.candidate.has_reported else []
        hurry = self.exit_status is not None or self.candidate or len(self.children) != len(self.current.ranks)
        timeout_s = 0.0 if self.signals else 0.05 if hurry else 0.5
        ready, _, _ = original("select", "select")([self.news_read, *reports], [], [], timeout_s)
        with contextlib.suppress(BlockingIOError):
            news = os.read(self.news_read, PART_BYTES)  # signals are single bytes below the digits
            self.troubles.update((int(rank), why.decode()) for rank, why in re.findall(rb"(\d+) ([ -~]*)\n", news))
        if self.candidate and self.candidate.control in ready:
            self.try_configuration(self.candidate)

    def tell(self, rank: int, why: str = "") -> None:
        """In a child: tell the attendant that it has news, or why it cannot start."""
        with contextlib.suppress(BlockingIOError):
            os.write(self.news_write, f"{rank} {escaped(why)[:500]}\n".encode("ascii", "backslashreplace"))

    def stop(self, status: int, number: int) -> None:
        """Have all children end; run() returns `status` when they are gone."""
        if self.exit_status is None:
            self.notify(STOPPING=1)
            log.log(NOTICE, "stopping")
            self.server.raise_event("E_MI_STOP", {})
            self.exit_status = status
            for generation in self.generations():
                generation.end()
            self.candidate = None
        self.stop_signal = number
        for record in self.children.values():
            self.dismiss(record)

    def handle_usr1(self) -> None:
        """USR1: open logs again, here and in all other processes."""
        reopen_logs()
        for pid in [*map(self.pid_of, self.children.values()), *(generation.pid for generation in self.generations())]:
            send_signal(pid, signal.SIGUSR1)

    # Reloads.

    def handle_hup(self) -> None:
        """HUP: have a candidate; one that is on its way is replaced."""
        if self.exit_status is not None:
            return
        if self.candidate:
            log.log(NOTICE, "the reload under way is replaced by another one")
            self.candidate.end()
        self.notify(RELOADING=1, MONOTONIC_USEC=time.monotonic_ns() // 1000)
        try:
            self.candidate = self.load_apart()
        except OSError as error:
            self.refuse_reload("refused, the old configuration stays", f"{error}")

    def load_apart(self) -> Generation:
        """A generation whose loader has begun to load; OSError."""
        ours, theirs = event_pair()
        try:
            return Generation(forked(Loading(self, ours, theirs).live), ours)
        finally:
            theirs.close()

    def take_report(self, generation: Generation) -> bool:
        """Make what the loader reported the generation's; False if it ended before it was done. StartError for a refusal."""
        try:
            refusal, made = pickle.loads(generation.report)
        except Exception:  # whatever is in it
            return False
        if refusal:
            raise StartError(*refusal)
        generation.setup, generation.levels, generation.loads, counters = made
        self.counters.columns, self.counters.room, self.counters.blocks = counters
        generation.ranks = range(1, generation.setup.mi["children_count"] + 1)
        return True

    def try_configuration(self, candidate: Generation, ended: str = "") -> None:
        """Open the sockets of the candidate when its loader has reported. It must not end."""
        try:
            if candidate.read_report() and not candidate.endpoints and self.take_report(candidate):
                candidate.endpoints = self.open_sockets(candidate.setup)
                for note in candidate.setup.notes:
                    log.log(*note)
            if ended:
                raise StartError(EXIT_CRASH, ended)
        except (StartError, OSError) as error:
            self.refuse_reload("refused, the old configuration stays", f"{error}")

    def refuse_reload(self, what: str, why: str) -> None:
        """Go on as before."""
        if self.candidate:
            self.candidate.end()
        self.candidate = None
        serving = [record for record in self.children.values() if record.generation is self.current and self.serves(record)]
        if self.is_disturbed and self.current.loads and serving:  # a successor has load() run again
            self.processes.set(serving[0].row, state=Processes.STOPPING)
        self.server.count("reload_errors")
        log.error("reload %s: %s", what, why)
        self.last_reload = f"{what}: {why}"
        self.tell_status(READY=1)
        if not self.current.pid:  # it was for another loader
            self.pause(0)

    def accept(self, generation: Generation) -> None:
        """The candidate is good: make it the current generation, and do what could not have been undone."""
        old, self.current, self.candidate, self.is_disturbed = self.current, generation, None, False
        generation.is_accepted = True
        old.end()
        setup = generation.setup
        for record in self.children.values():
            if record.generation is not generation:
                self.processes.set(record.row, state=Processes.STOPPING)
        for endpoint, place in zip(generation.endpoints, setup.listeners):
            hand_over(endpoint, place)
        if setup.globals.get("log_level") != old.setup.globals.get("log_level"):
            for row in range(ROWS):
                self.processes.set(row, level=setup.globals.get("log_level", LOG_LEVEL_DEFAULT), own_level=0)
        for name in ("log_file", "store_file"):  # those of the first generation are open
            if setup.own[name] not in (self.first.setup.own[name], old.setup.own[name]):
                log.warning("%s is another one now, which takes effect at the next start", name)
        for by_rank in (self.deaths, self.not_before_s, self.troubles):
            by_rank.clear()
        self.server.count("reloads")
        self.server.raise_event("E_MI_RELOAD", {"children": len(generation.ranks)})
        log.log(NOTICE, "reloaded %s", setup.path)
        self.last_reload = "good"

    # Children.

    def manage(self) -> None:
        """Bring the children to what is wanted: one for each rank of the current generation, and a candidate's on trial."""
        if self.exit_status is not None:
            return
        wanted = [(self.current, rank) for rank in self.current.ranks]
        if self.candidate and self.candidate.endpoints:
            wanted.append((self.candidate, 1))
        staying = {(record.generation, record.rank): record for record in self.children.values() if not self.leaves(record)}
        serving = {key for key, record in staying.items() if self.serves(record)}
        for generation, rank in wanted:
            if (generation, rank) not in staying and (generation is self.candidate or self.may_start(rank)):
                self.spawn(generation, rank)
        for record in self.children.values():
            replaced = (self.current, record.rank) in serving or record.rank not in self.current.ranks
            if self.leaves(record) and (replaced or not record.generation.is_accepted):
                self.dismiss(record)
        if serving.issuperset(wanted) and self.announced is not self.current.endpoints and not self.candidate:
            self.announce()
        if self.candidate:
            self.try_candidate(self.candidate, staying.get((self.candidate, 1)))
        elif not self.current.pid and self.may_start(0):
            log.error("the process that forks the children is gone; another one loads the configuration")
            self.handle_hup()
        self.close_unused()

    def try_candidate(self, candidate: Generation, child: Record | None) -> None:
        """Accept the candidate if its child has served for a while; take the reload back if that takes too long."""
        now_s, limit_ms = time.monotonic(), self.current.setup.own["start_timeout"]
        if child and child.served_s and now_s >= child.served_s + EARLY_S and self.serves(child):
            self.accept(candidate)
        elif now_s > candidate.born_s + limit_ms / 1000 + (EARLY_S if child and child.served_s else 0):
            text = f"nothing serves after start_timeout, {limit_ms} ms; {self.troubles.pop(1, '')}".rstrip("; ")
            self.refuse_reload("taken back", text)

    def pid_of(self, record: Record) -> int:
        """The pid of a child, 0 until its loader has forked it."""
        return self.processes.get(record.row, "pid")

    def leaves(self, record: Record) -> bool:
        """Whether a child is to go: because of its generation or sockets, or since it asked for a successor."""
        return (record.generation not in (self.current, self.candidate) or record.endpoints is not record.generation.endpoints
                or self.processes.get(record.row, "state") == Processes.STOPPING)

    def has_started(self, record: Record) -> bool:
        """Whether a child came to serving, and so to its beats."""
        return self.processes.get(record.row, "state") in (Processes.SERVING, Processes.STOPPING)

    def serves(self, record: Record) -> bool:
        """Whether a child serves."""
        if not record.served_s and self.has_started(record):
            record.served_s = time.monotonic()
            self.troubles.pop(record.rank, None)
        return self.processes.get(record.row, "state") == Processes.SERVING

    def anyone_serves(self) -> bool:
        """Whether any child serves, be it one that leaves."""
        return any(self.has_started(record) and not record.dismissed_s for record in self.children.values())

    def may_start(self, rank: int) -> bool:
        """Whether a rank may be started now: it makes no pause while nobody serves."""
        return time.monotonic() >= self.not_before_s.get(rank, 0.0) or not self.anyone_serves()

    def pause(self, rank: int) -> None:
        """Wait with the next start of a rank: not after the first of its early deaths, and then longer and longer."""
        self.deaths[rank] += 1
        pause_s = min(LONGEST_PAUSE_S, 0.1 * 2 ** (self.deaths[rank] - 2)) if self.deaths[rank] > 1 else 0.0
        self.not_before_s[rank] = time.monotonic() + pause_s

    def dismiss(self, record: Record) -> None:
        """Have a child stop; one that is not forked yet later."""
        pid = self.pid_of(record)
        if pid and (not record.dismissed_s or self.exit_status is not None):
            record.dismissed_s = record.dismissed_s or time.monotonic()
            self.processes.set(record.row, state=Processes.STOPPING)
            send_signal(pid, self.stop_signal)

    def announce(self) -> None:
        """Say that every child serves."""
        self.announced = self.current.endpoints
        log.log(NOTICE, "ready: %s", self.tell_status(READY=1))
        if self.starter:
            self.starter.release(self.current)
            self.starter = None

    def tell_status(self, **states: Any) -> str:
        """Tell systemd these states and how things are, --status the latter by a file in the folder of this run; returns it."""
        serving = sum(self.serves(record) and record.generation is self.current for record in self.children.values())
        places = [str(endpoint.place.address) for endpoint in self.current.endpoints]
        texts = [f"{serving} of {len(self.current.ranks)} children serve {', '.join(places)}"]
        texts += [f"child {rank} cannot start: {why}" for rank, why in sorted(self.troubles.items()) if why]
        texts += [f"the last reload was {self.last_reload}"] if self.last_reload else []
        status = "; ".join(texts := [escaped(text) for text in texts])
        self.notify(STATUS=status, **states)
        text = json.dumps([os.getpid(), self.started_s, texts, places])
        if text != self.written:
            self.written = text
            set_title(f"midatagram: attendant {places[0]}")
            with contextlib.suppress(OSError):
                pathlib.Path(self.store.folder, "status").write_text(text)
        return status

    def spawn(self, generation: Generation, rank: int) -> None:
        """Have the loader fork a child."""
        row = self.processes.claim() if generation.pid else None
        if row is None:  # no loader, or children that are on their way out still have all rows
            return
        self.counters.use(row)
        self.processes.beats[row] = int(time.monotonic() * 1000)
        places = [(endpoint.place, endpoint.kept) for endpoint in generation.endpoints]
        again = self.is_disturbed and not self.candidate
        try:
            generation.ask("fork", (row, rank, places, again), [endpoint.socket.fileno() for endpoint in generation.endpoints])
        except OSError as error:
            log.error("cannot fork: %s", error)
            self.processes.set(row, state=Processes.FREE)
            self.pause(rank)
        else:
            self.children[row] = Record(row, rank, generation)
            self.is_disturbed = generation is self.candidate or self.is_disturbed and not again

    # Deaths.

    def reap(self) -> None:
        """Take leave of processes that ended, and of children that could not be forked or whose loader is gone."""
        with contextlib.suppress(ChildProcessError):
            while (ended := original("os", "waitpid")(-1, os.WNOHANG))[0]:
                pid, code = ended[0], os.waitstatus_to_exitcode(ended[1])
                if self.candidate and self.candidate.pid == pid:
                    self.try_configuration(self.candidate, f"the process that loads it ended with {ending(code)}")
                if self.current.pid == pid:  # see manage()
                    self.current.end()
                for record in [record for record in self.children.values() if self.pid_of(record) == pid]:
                    self.bury(record, pid, code)
        for record in [record for record in self.children.values() if not self.pid_of(record)]:
            gone_s = record.generation.gone_s
            if self.processes.get(record.row, "state") == Processes.FREE or 0 < gone_s < time.monotonic() - UNBORN_S:
                self.processes.set(record.row, state=Processes.FREE)
                del self.children[record.row]
                self.pause(record.rank)

    def bury(self, record: Record, pid: int, code: int) -> None:
        """Free what an ended child had; find out whether it should have ended."""
        expected = self.exit_status is not None or record.dismissed_s or (code == 0 and self.leaves(record))
        has_started, why = self.has_started(record), ending(code)
        for column in record.generation.levels:
            self.counters.use(record.row)[column] = 0
        self.processes.set(record.row, pid=0, state=Processes.FREE)
        del self.children[record.row]
        if expected:
            return
        log.error("child %d (pid %d) died: %s", record.rank, pid, why)
        self.server.count("child_deaths")
        self.server.raise_event("E_MI_CHILD_DIED", {"pid": pid, "reason": why})
        killed = code in (-signal.SIGTERM, -signal.SIGKILL) and not record.is_stalled  # from outside
        if not has_started:
            self.troubles[record.rank] = self.troubles.get(record.rank) or f"died: {why}"
        early = not killed and (not record.served_s or time.monotonic() <= record.served_s + EARLY_S)
        if record.generation is not self.candidate:
            self.back_off(record.rank, early, code == BOOT_FAILED)
        elif early:
            self.refuse_reload("taken back", f"its child died: {why}; {self.troubles.pop(record.rank, '')}".rstrip("; "))

    def back_off(self, rank: int, early: bool, cannot_start: bool) -> None:
        """Decide after a death whether the rank makes a pause, or whether the server gives up."""
        if not early:
            self.crashes = self.deaths[rank] = 0
            return
        self.pause(rank)
        self.crashes = 0 if self.anyone_serves() else self.crashes + 1
        if cannot_start and self.announced is None:
            log.critical("a child cannot start, giving up; the reason stands above")
            self.stop(EXIT_CRASH, signal.SIGTERM)
        elif self.crashes >= self.current.setup.own["crash_limit"]:
            log.critical("%d children died within %g s of their start and none serves, giving up", self.crashes, EARLY_S)
            self.stop(EXIT_CRASH, signal.SIGTERM)

    # Twice a second.

    def tick(self) -> None:
        """Look after the children and sockets."""
        now_s, stopping = time.monotonic(), self.exit_status is not None
        if now_s - self.ticked_s < (0.1 if stopping else 0.5):
            return
        awake = now_s - (self.ticked_s or now_s) < FROZEN_S  # else the children were frozen too, and get the time to beat
        self.ticked_s = now_s
        tend_logs(self.server)
        states = {} if self.announced else {"EXTEND_TIMEOUT_USEC": EXTEND_S * 1000000}
        if awake and not self.kill_the_stuck(now_s):
            states["WATCHDOG"] = 1
        if stopping:
            for record in self.children.values():
                if not record.dismissed_s:  # was not forked in time to be told
                    self.dismiss(record)
            return
        self.tell_status(**states)
        self.check_sockets()
        if self.loads:
            self.loads.measure(self.server.counted, len(self.current.ranks), now_s)

    def kill_the_stuck(self, now_s: float) -> bool:
        """Kill children that do not stop or are away from their hub, and loaders that do not fork; returns whether any was."""
        stuck = []
        for record in self.children.values():
            own, pid, since_s = record.generation.setup.own, self.pid_of(record), self.processes.beats[record.row] / 1000
            limit_s = own["stall_timeout" if self.has_started(record) else "start_timeout"] / 1000
            if record.dismissed_s and now_s > record.dismissed_s + own["stop_timeout"] / 1000 + KILL_AFTER_S:
                log.warning("child %d (pid %d) does not stop, killed", record.rank, pid)
                stuck.append(pid)
            elif now_s > since_s + limit_s:
                text = f"stalled for {limit_s:g} s, killed; {self.troubles.get(record.rank, '')}".rstrip("; ")
                log.error("child %d (pid %d) is %s", record.rank, pid, text)
                self.server.count("child_stalls")
                record.is_stalled = True
                stuck.append(pid or record.generation.pid)
        for pid in stuck:
            send_signal(pid, signal.SIGKILL)
        return bool(stuck)

    # Sockets.

    def open_sockets(self, setup: Setup) -> list[Endpoint]:
        """The sockets of a configuration: those that are open already, and new ones; StartError."""
        ours = {endpoint.place.spot: endpoint for endpoint in self.endpoints if not endpoint.is_lost()}
        return [ours.get(place.spot) or self.opened(place, setup.own) for place in setup.listeners]

    def opened(self, place: Place, own: dict) -> Endpoint:
        """A new socket, or a given one, with a large send buffer, as root beyond the system's limit; StartError."""
        endpoint = open_endpoint(place, self.given, place.spot in [one.place.spot for one in self.endpoints])
        self.endpoints.append(endpoint)
        if endpoint.unix and own["allow_command"]:
            endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        try:
            endpoint.socket.setsockopt(socket.SOL_SOCKET, getattr(socket, "SO_SNDBUFFORCE", 32), own["send_buffer"])
        except PermissionError:
            endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, own["send_buffer"])
        return endpoint

    def close_unused(self) -> None:
        """Close the sockets that nobody serves any more, and remove their files."""
        users: list[Generation | Record] = [*self.generations(), *self.children.values()]
        for endpoint in set(self.endpoints).difference(*(user.endpoints for user in users)):
            endpoint.close(remove=True)
            self.endpoints.remove(endpoint)

    def check_sockets(self) -> None:
        """Bind lost sockets again; the children are replaced."""
        endpoints = [self.bound_again(endpoint) if endpoint.is_lost() else endpoint for endpoint in self.current.endpoints]
        if endpoints != self.current.endpoints:
            self.current.endpoints = endpoints

    def bound_again(self, endpoint: Endpoint) -> Endpoint:
        """A new socket at the place of a lost one, the old one if that cannot be."""
        spot, what = endpoint.place.address, "deleted" if endpoint.unix else "shut down"
        is_taken = endpoint.unix and os.path.lexists(f"{spot}")
        trouble = f"{spot} is no longer our socket; somebody put another file there" if is_taken else ""
        try:
            fresh = endpoint if trouble else self.opened(endpoint.place, self.current.setup.own)
        except (StartError, OSError) as error:
            fresh, trouble = endpoint, f"{spot} was {what} and cannot be bound again: {error}"
        if not trouble:
            log.warning("%s was %s; bound again", spot, what)
        elif endpoint.trouble != trouble:  # it lasts, and is logged once
            log.error("%s", trouble)
        endpoint.trouble = trouble
        return fresh

    ACTIONS: dict[int, Callable[[Supervisor], None]] = {
        signal.SIGTERM: lambda self: self.stop(EXIT_OK, signal.SIGTERM),  # children finish what is in hand
        **dict.fromkeys((signal.SIGINT, signal.SIGQUIT), lambda self: self.stop(EXIT_OK, signal.SIGQUIT)),
        signal.SIGHUP: handle_hup, signal.SIGUSR1: handle_usr1}


class Loading:
    """A loader: a process that loads a configuration and forks its children, as the attendant asks over `control`."""

    server: Server

    def __init__(self, attendant: Supervisor, other_end: Any, control: Any):
        self.attendant, self.other_end, self.control = attendant, other_end, control

    def live(self) -> int:
        """Load, report, and do what is asked until the attendant is gone."""
        self.leave_attendant()
        loading = if_there("loading")
        report = pickle.dumps(loading.watched(self.load) if loading else self.load())
        for start in range(0, len(report), PART_BYTES):
            self.control.send(report[start:start + PART_BYTES])
        self.control.shutdown(socket.SHUT_WR)
        gc.freeze()  # what was loaded is never garbage in the children; looking for it would copy its pages
        original("signal", "signal")(signal.SIGCHLD, signal.SIG_DFL)  # whatever a plug-in did to it
        verbs: dict[str, Callable] = {"begin": self.begin, "fork": self.fork, "let_go": self.let_go}
        while True:
            request, descriptors, _, _ = socket.recv_fds(self.control, PART_BYTES << 2, 256, socket.MSG_CMSG_CLOEXEC)
            if not request:
                return EXIT_OK
            verb, arguments = pickle.loads(request)
            verbs[verb](*arguments, *([descriptors] if descriptors else []))

    def leave_attendant(self) -> None:
        """Give up what is the attendant's."""
        attendant = self.attendant
        self.control.setblocking(True)
        for number in (*attendant.ACTIONS, signal.SIGCHLD):
            handler = signal.SIG_IGN if number in (signal.SIGINT, signal.SIGHUP) else signal.SIG_DFL
            original("signal", "signal")(number, handler)
        original("signal", "signal")(signal.SIGUSR1, lambda number, frame: reopen_logs())  # while plug-ins start
        signal.set_wakeup_fd(-1)
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
        for descriptor in (attendant.alive_write, *attendant.given.values()):
            os.close(descriptor)
        for sock in (self.other_end, *(generation.control for generation in attendant.generations()),
                     *(endpoint.socket for endpoint in attendant.endpoints)):
            sock.close()
        set_title("midatagram: loader")

    def load(self) -> tuple:
        """Load the configuration; returns what Supervisor.take_report() reads."""
        attendant, counters = self.attendant, self.attendant.counters
        try:
            stats = functools.partial(core_stats, counters, attendant.processes,
                                      lambda: attendant.store.time_s() - attendant.started_s, attendant.figures)
            loader = Loader(configuration_of(attendant.options) or "-s", attendant.options.plugins, stats)
            setup = loader.load(directives_of(attendant.options, loader.calls_of))
            self.server = Server(setup, counters, attendant.processes, attendant.store, attendant.pair, attendant.started_s)
        except (StartError, ConfigError) as error:
            return (getattr(error, "status", EXIT_CONFIG), f"{error}"), None
        except BaseException as error:  # whatever a plug-in does, the server that runs goes on
            log.exception("the configuration cannot be loaded")
            return (EXIT_CONFIG, f"{type(error).__name__}: {error}"), None
        self.server.attendant_pid = attendant.server.attendant_pid
        levels = [stat for module in setup.registry.modules for stat in module.stats if stat.read is None and not stat.resettable]
        columns = [counters.column(stat.group, stat.name) for stat in levels]
        return (), (setup._replace(registry=Registry(()), destinations={}), columns, self.server.loads,
                    (counters.columns, counters.room, counters.blocks))

    def begin(self, folder: str, path: str, locks: list[int]) -> None:
        """At the first start: log, and be the user, as the attendant does by now; hold its locks of the store."""
        start_logging(self.server.setup, self.attendant.processes, self.attendant.options)
        drop_privileges(self.attendant.options)
        libc().prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # another user's process has none
        self.server.store.folder, self.server.store.path = folder, path

    def fork(self, row: int, rank: int, places: list, again: bool, descriptors: Iterable[int]) -> None:
        """Fork a child twice: whose parent ends is given to the attendant, which reads its pid in the process table."""
        processes = self.attendant.processes

        def between() -> int:
            processes.set(row, pid=forked(lambda: self.be_child(row, rank, places, again, descriptors)), rank=rank)
            return EXIT_OK

        status = EXIT_CRASH
        with contextlib.suppress(OSError):  # logged below
            status = original("os", "waitpid")(forked(between), 0)[1]
        if status:
            log.error("cannot fork child %d", rank)
            processes.set(row, state=Processes.FREE)
        for descriptor in descriptors:
            os.close(descriptor)

    def be_child(self, row: int, rank: int, places: list, again: bool, descriptors: Iterable[int]) -> int:
        """The life of a child; returns its exit status. again: load() is to run once more."""
        attendant, server = self.attendant, self.server
        try:
            self.begin_child(row, rank)
            endpoints = [Endpoint(place, original("socket", "socket")(fileno=descriptor), kept)
                         for (place, kept), descriptor in zip(places, descriptors)]
            set_title(f"midatagram: MI Datagram {rank} {places[0][0].address}")
            child = Child(server, endpoints, row, rank)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
            server.tell = functools.partial(attendant.tell, rank)
            server.load_once(again)
            server.call_hooks("child_init")
            child.serve(functools.partial(self.child_serves, row, rank), functools.partial(attendant.tell, rank),
                        attendant.alive_read)
        except BaseException as error:  # the attendant is to know
            log.exception("child %d ends", rank)
            if attendant.processes.get(row, "state") != Processes.STARTING:
                return EXIT_CRASH
            attendant.tell(rank, f"{type(error).__name__}: {error}")
            return BOOT_FAILED
        return EXIT_OK

    def begin_child(self, row: int, rank: int) -> None:
        """Be the process of that row."""
        import gevent

        self.control.close()
        self.server.become(row)
        log_as(self.attendant.processes, row)
        self.attendant.processes.set(row, pid=os.getpid(), rank=rank)
        watch_parent(self.server.attendant_pid)
        gevent.reinit()  # a plug-in's init may have run a hub
        gc.set_threshold(20000, 20, 20)

    def child_serves(self, row: int, rank: int) -> None:
        """A child serves from now on."""
        self.let_go()
        self.attendant.processes.set(row, state=Processes.SERVING)
        self.attendant.tell(rank)

    def let_go(self) -> None:
        """Let go of stderr after a start in the background."""
        if self.attendant.starter:
            self.attendant.starter.let_go_of_stderr()


def libc() -> Any:
    """The C library."""
    import ctypes

    return ctypes.CDLL(None)


def hand_over(endpoint: Endpoint, place: Place) -> None:
    """Give the file of an open socket the mode and owner that its place has now."""
    if endpoint.place[:-1] != place[:-1]:
        try:
            endpoint.move(place)
        except OSError as error:
            log.error("mode and owner of %s stay as they are: %s", place.spot, error.strerror)


def watch_parent(attendant_pid: int) -> None:
    """Have the kernel end this child soon after the attendant, even when it is stuck in a handler.

    PR_SET_PDEATHSIG sends SIGUSR2, whose handler sets an alarm clock that nothing turns off; sent by others it does nothing.
    """
    def handle(number: int, frame: Any) -> None:
        if os.getppid() != attendant_pid:
            signal.setitimer(signal.ITIMER_REAL, ORPHAN_S + 0.3)

    original("signal", "signal")(signal.SIGALRM, signal.SIG_DFL)
    original("signal", "signal")(signal.SIGUSR2, handle)
    libc().prctl(PR_SET_PDEATHSIG, signal.SIGUSR2, 0, 0, 0)


def set_title(title: str) -> None:
    """Name this process for ps(1), if setproctitle is installed."""
    with contextlib.suppress(ImportError):
        import setproctitle

        setproctitle.setproctitle(title)


###############################################################################
# 20. Command line ############################################################
###############################################################################
# Strategy: main(argv) returns the exit status. Everything is checked before
# anything is opened, and everything is opened before the server goes to the
# background, so that whoever starts it sees what is wrong.

VENV = os.path.join(HERE, ".venv")  # as install.sh makes it
PACKAGES = "gevent, configobj and setproctitle are needed: pip install gevent configobj setproctitle, " \
           "or apt install python3-gevent python3-configobj python3-setproctitle"
if os.path.exists(f"{VENV}/bin/python") and sys.prefix != VENV:
    PACKAGES = f"install.sh has put all packages into .venv: run {VENV}/bin/python {os.path.realpath(__file__)}"


def load_packages() -> None:
    """Import all packages, since after -u a child may not read them, and patch the standard library; StartError without one."""
    try:
        import configobj  # noqa: F401 - config plug-ins need it
        import gevent.event
        import gevent.monkey
        import gevent.util
    except ImportError as error:
        raise StartError(EXIT_CRASH, f"{error.name} is missing; {PACKAGES}") from None
    gevent.monkey.patch_all()
    os.close = original("os", "close")  # gevent's leaves that to a hub, and the attendant runs none
    for name in ("loop", "resolver", "threadpool"):
        getattr(gevent.config, name)  # imports it
    with contextlib.suppress(ImportError):
        importlib.import_module("ctypes")
        importlib.import_module("setproctitle")


@functools.lru_cache(1)
def standard_input() -> str:
    """What standard input holds; a reload gets the same."""
    return decode(sys.stdin.buffer.read())


def read_file(path: str, main: str = "") -> str | None:
    """The text of the configuration `main` (-: standard input) or of one it includes, None for no file; ConfigError."""
    if path == "-":
        return standard_input()
    try:
        with open(path, "rb", opener=None if path == main else functools.partial(open_included, main)) as file:
            if os.geteuid() == 0 and is_everyones(file.fileno(), os.path.dirname(path) or "."):
                raise ConfigError(path, 0, "can be written by everyone, or put there, and root runs this; "
                                           f"mend: chown root {path}; chmod o-w {path}, and its folder unless it is sticky")
            return decode(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(path, 0, f"cannot be read by uid {os.geteuid()}: {error.strerror}") from None


def open_included(main: str, path: str, flags: int) -> int:
    """Open a regular file; as root one of the current folder only if nobody but the owner of `main` can put it there. OSError."""
    flags, trusted = flags | os.O_NONBLOCK, () if main == "-" else (os.stat(main).st_uid,)
    is_roots = os.geteuid() == 0 and not os.path.isabs(path)
    descriptor = walk(path, lambda folder, step: check_roots(folder, step, *trusted), flags) if is_roots else os.open(path, flags)
    if S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, 'no regular file, as include_file "FILE" takes one')


def is_everyones(file: int, folder: str) -> bool:
    """Whether every user can write a file, or put one of his own in its place."""
    status, around = os.fstat(file), os.stat(folder).st_mode
    loose = around & 0o002 and not (around & S_ISVTX and status.st_uid == 0)
    return S_ISREG(status.st_mode) and bool(status.st_mode & 0o002 or loose)


def configuration_of(options) -> str:
    """The configuration: -f's, none with -s alone, else the one beside the script or the system's; StartError without one."""
    paths = os.path.join(HERE, "midatagram.conf"), "/etc/midatagram/midatagram.conf"
    if options.file or options.socket:
        return options.file or ""
    for path in filter(os.path.exists, paths):
        return path
    raise StartError(EXIT_CONFIG, f"which socket? give -s SOCKET or -f FILE; there is no {' and no '.join(paths)}")


def directives_of(options, calls: Callable = lambda script: ()) -> list[Directive]:
    """What the command line says to serve: -f's directives, or with -s and no -f a lab with all plug-ins of -p."""
    folders = getattr(options, "plugins", [])
    for folder in folders:
        if not os.path.isdir(folder):
            raise StartError(EXIT_CONFIG, f"-p: there is no folder {folder}")
    if path := configuration_of(options):
        directives = ConfigReader(functools.partial(read_file, main=path), calls).read(path)
    else:
        directives = [Directive("loadmodule", (os.path.join(os.path.abspath(folder), name),), "-p", 0)
                      for folder in folders for name in sorted(os.listdir(folder))
                      if name.endswith(SUFFIXES) and name[0] not in "_."]
    directives += getattr(options, "more", [])
    if options.socket:
        if right := right_form(options.socket):
            raise ConfigError("-s", 0, f"a UDP socket is written udp:HOST:PORT, a path ./{options.socket}: {right}")
        directives.append(Directive("modparam", ("mi_datagram", "socket_name", options.socket), "-s", 0))
    return directives


def server_parser() -> argparse.ArgumentParser:
    """The command line of the server."""
    parser = argparse.ArgumentParser(
        "midatagram.py", description="Serve OpenSIPS' Management Interface over UNIX and UDP datagrams.",
        epilog="The client: midatagram.py call --help. Signals: TERM stops, HUP reloads, USR1 reopens logs. "
               "Exit status: 0 stopped, 1 crash, 2 usage, 3 not running, 69 address in use, 73 cannot create, "
               "75 already running, 77 permission, 78 configuration.")
    option = parser.add_argument
    option("-f", dest="file", metavar="FILE", help="read this configuration, - for standard input (default: midatagram.conf "
           "beside the script, else /etc/midatagram/midatagram.conf)")
    option("-s", dest="socket", metavar="SOCKET", help="serve this socket, a UNIX path or udp:HOST:PORT; -f is optional then")
    option("-p", dest="plugins", metavar="DIR", action="append", default=[],
           help="search this folder for plug-ins before others; without -f, load all plug-ins in it")
    option("-c", dest="check", action="store_true", help="check the configuration and the plug-ins, and open nothing")
    option("-d", dest="debug", action="store_true", help="log each request and reply")
    option("-D", dest="background", action="store_true", help="go to the background when all children serve")
    option("-P", dest="pidfile", metavar="FILE", help="write the pid to this file, and lock it while the server runs")
    option("-u", dest="user", metavar="USER", help="switch to this user when the sockets are open")
    option("-g", dest="group", metavar="GROUP", help="switch to this group when the sockets are open")
    option("--if-not-running", action="store_true", help="exit with status 0 and print nothing if the server already runs")
    option("--status", action="store_true", help="print whether the server runs; exit with status 0 if it does, else 3")
    option("--version", action="version", version=f"midatagram {__version__}", help="print the version and exit")
    return parser


def drop_privileges(options) -> None:
    """Become -u and -g; StartError if that cannot be."""
    if options.user or options.group:
        shared("privileges", "-u, -g", "to run as another user, ").drop(options)


def serve(options) -> int:
    """Check, open, serve; returns the exit status."""
    if options.status:
        return shared("status", "--status", "to know whether it runs, ").report(options)
    status = shared("status", "--if-not-running", "to know whether it runs, ") if options.if_not_running else None
    if status and status.is_running(options):
        return EXIT_OK
    given, notify = {}, lambda **states: None
    if "LISTEN_FDS" in os.environ or "NOTIFY_SOCKET" in os.environ:
        given, notify = shared("systemd", "LISTEN_FDS, NOTIFY_SOCKET", "for systemd, ").begin()
    background = shared("background", "-D", "to go to the background, ") if options.background else None
    if background:
        background.close_inherited(given.values())
    if options.file == "-":
        standard_input()  # once, whatever process loads the configuration
    load_packages()
    original("signal", "signal")(signal.SIGCHLD, signal.SIG_DFL)  # who started us may ignore it
    starter = background.Starter() if background and not options.check else None
    try:
        return start(options, starter, given, notify)
    except StartError as error:  # another one was a little earlier
        if status and error.status in (EXIT_RUNNING, EXIT_IN_USE) and status.is_running(options):
            return EXIT_OK
        raise


def start(options, starter: Any, given: dict, notify: Callable[..., None]) -> int:
    """Load the configuration, open everything, then serve until a signal stops it; returns the exit status."""
    supervisor = Supervisor(options, starter, given, notify)
    setup = supervisor.load_first()
    lacking = {"statistics of load and memory: %s has no figures": supervisor.figures,
               "raise_event and other commands: %s has no _core_commands": "raise_event" in supervisor.server.registry.names}
    texts = [f"no {text % BESIDE}.py, or others than root can write it" for text, there in lacking.items() if not there]
    if "setproctitle" not in sys.modules:
        texts.append(f"setproctitle is missing, processes have no titles; {PACKAGES}")
    setup.notes.extend([(logging.WARNING, text) for text in texts])
    if options.check:
        return shared("checks", "-c", "to check a configuration, ").report(setup)
    pidfile = shared("pid_file", "-P", "for a pid file, ").PidFile(options.pidfile) if options.pidfile else None
    if pidfile:
        pidfile.lock()
    try:
        start_logging(setup, supervisor.processes, options)
        supervisor.open()
        drop_privileges(options)
        supervisor.make_store()
        if pidfile:
            pidfile.write(f"{os.getpid()}")
        for note in setup.notes:
            log.log(*note)
        return supervisor.run()
    finally:
        supervisor.close()
        if pidfile:
            pidfile.remove()


def open_standard_streams() -> None:
    """Put /dev/null where standard streams were closed, so that no socket or log file gets their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - for the life of the process


def flush_standard_streams() -> None:
    """Flush stdout and stderr; one that is gone does not change the exit status."""
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for the rest of the process


def tool(name: str) -> Callable[[list[str]], int]:
    """main() of the plug-in that `midatagram.py NAME` runs; SystemExit for none, ConfigError."""
    path = find_plugin(name, [BESIDE]) if "." not in name else None  # lab.cfg is a file, and not the tool lab
    run = getattr(import_plugin(path), "main", None) if path and path.endswith(".py") else None
    if run is None:
        checks = if_there("checks")
        server_parser().error(f'there is no tool "{name}" in {BESIDE}{checks.other_than(name) if checks else ""}')
    return run


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    open_standard_streams()
    try:
        if argv and argv[0][:1] not in ("", "-"):
            return tool(argv[0])(argv[1:])
        return serve(server_parser().parse_args(argv))
    except (ConfigError, StartError) as error:
        print(f"midatagram: {error}", file=sys.stderr)
        return error.status if isinstance(error, StartError) else EXIT_CONFIG
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return EXIT_CRASH
    finally:
        flush_standard_streams()


def __getattr__(name: str) -> Any:
    """AsyncResult, which a handler returns to answer later: gevent's; others are of plug-ins. Imported where wanted."""
    if name == "AsyncResult":
        return importlib.import_module("gevent.event").AsyncResult
    file = {"Trial": "trial", "ask": "asking", "socket_of": "asking", "open_to_append": "log_file", "read_tree": "text_dialect",
            "write_request": "call"}.get(name)
    if file:
        return globals().setdefault(name, getattr(shared(file, f"midatagram.{name}"), name))  # and is there the next time
    raise AttributeError(f"midatagram has no {name}{nearest(name, __all__)}")


if __name__ == "__main__":
    sys.exit(main())
