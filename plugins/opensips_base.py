"""opensips_base -- what the plug-ins of OpenSIPS' modules share: tables, forms, the order of lists, converters, events.

A plug-in loads it with mi.shared("opensips_base"). It has no commands and no state of its own.
"""
from __future__ import annotations

import contextlib
import fcntl
import functools
import inspect
import ipaddress
import itertools
import json
import math
import operator
import os
import random
import re
import sqlite3
import stat
import struct
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import midatagram as mi

forms = mi.shared("opensips_forms")

###############################################################################
# Order
###############################################################################
# Most lists of OpenSIPS walk a hash table, bucket by bucket.

LONG = 1000  # bytes
PROTOCOLS = ("any", "udp", "tcp", "tls", "sctp", "ws", "wss", "ipsec", "bin", "bins", "hep_udp", "hep_tcp", "hep_tls", "smpp",
             "msrp", "msrps")


def core_hash(data: bytes) -> int:
    """OpenSIPS' hash of a string: 32-bit sums over groups of four bytes, which are taken as signed, and over what is left."""
    return (hash_of if len(data) < LONG else hash_of.__wrapped__)(data)


@functools.lru_cache(4096)
def hash_of(data: bytes) -> int:
    """See core_hash(); remembers what is not long."""
    whole = len(data) & -4
    words = [*struct.unpack(f">{whole // 4}I", data[:whole]), int.from_bytes(data[whole:], "big")]
    if not data.isascii():  # a byte from 0x80 on borrows from the one before it
        words = [word - ((word & 0x808080) << 1) & 0xFFFFFFFF for word in words]
    total = sum([word ^ word >> 3 for word in words]) & 0xFFFFFFFF
    return total + (total >> 11) + (total >> 13) + (total >> 23) & 0xFFFFFFFF


###############################################################################
# Converters
###############################################################################
# 2.4 has text or None, 3.4 a JSON value; handlers convert in the order in which the original looks at its arguments.


def uint(text: str | None) -> int:
    """An unsigned integer as 2.4 reads it: digits alone, which wrap around at 32 bits; ValueError."""
    if not (text and text.isascii() and text.isdigit()):
        raise ValueError("takes digits")
    return int(text[-32:]) & 0xFFFFFFFF  # 10**32 is a multiple of 2**32


def hexuint(text: str | None) -> int:
    """An unsigned integer as 2.4 reads it where it may be hexadecimal, as 0x1f; ValueError."""
    digits = re.fullmatch("0x([0-9a-fA-F]+)", text or "")
    return int(digits[1][-8:], 16) if digits else uint(text)


def number(ctx: Any, name: str, value: Any, convert: Callable = uint) -> int:
    """An argument that is a number; convert: how 2.4 reads it. Error."""
    if ctx.request.dialect == "jsonrpc":
        return mi.json_int(value, name)
    try:
        return convert(value)
    except ValueError:
        raise mi.Error(400, "Bad parameter") from None


def text(ctx: Any, name: str, value: Any) -> str:
    """An argument that is a text, empty for none; Error."""
    return c_text(mi.json_string(value, name) if ctx.request.dialect == "jsonrpc" else value or "")


def if_text(ctx: Any, name: str, value: Any) -> str | None:
    """An argument where 3.4 passes over what is no text: None for that, and for none."""
    try:
        return None if value is None else text(ctx, name, value)
    except mi.Error:
        return None


def c_text(value: Any) -> Any:
    """A text as C reads it, up to a NUL; what is none as it is."""
    return value.partition("\0")[0] if isinstance(value, str) else value


def keeps_states(value: Any) -> bool:
    """Whether a reload keeps states, by 3.4's argument `inherit_state`: all but 0, n and N mean yes."""
    try:
        return mi.json_string(value, "inherit_state") not in ("0", "n", "N")
    except mi.Error:
        return True


def flag_bits(names: str) -> int:
    """Flags as a number from their names, of which OpenSIPS knows 32."""
    return 2**min(len(names.split()), 32) - 1


Q = re.compile(r"[ \t]*(?:0*(?:\.([0-9]*))?|0*(1)(?:\.0*)?)")


def q_value(value: str) -> int:
    """A q times 1000, as the parameter of a contact has it; ValueError."""
    match = Q.fullmatch(value)
    if not match or not value.strip(" \t"):
        raise ValueError("takes a number from 0 to 1")
    return 1000 if match[2] else int((match[1] or "").ljust(3, "0")[:3])


def shown_q(thousandths: int) -> str:
    """A q as it is printed: the shortest form, from 0 to 1, nothing for one that is not set."""
    return "" if thousandths == -1 else f"{min(max(thousandths, 0), 1000) / 1000:.3f}".rstrip("0").rstrip(".")


HOST = r"(?:\[[^@\[\]]+\]|[^:;?@\[\]]+)"
URI = re.compile(rf"(?:sips?|tel|urn:(?:nena:)?service):(?:[^:@\[][^@\[]*@{HOST}(?::(\d*))?(?:[;?].*)?|"
                 rf"{HOST}(?::(\d*))?|{HOST}(?::\d*)?[;?][^@]*)", re.I | re.S)


def most_port(ctx: Any) -> float:
    """The largest port of a URI, to which 2.4 sets no limit."""
    return math.inf if ctx.request.dialect == "text" else 65535


def is_uri(text: str, most_port: float) -> bool:
    """Whether OpenSIPS can read a text as a URI with a port of at most so much; without a user and with parameters, of any."""
    match = URI.fullmatch(text)
    return match is not None and int((match[1] or match[2] or "0")[-9:]) <= most_port


###############################################################################
# Commands, replies and events in both dialects
###############################################################################


def command(function: Callable | None = None, **options: Any) -> Any:
    """Make a function an MI command with its Form: it takes a context and 3.4's arguments, which it converts itself.

    Of a text request it gets text, or None for a value that is NULL or not there.
    """
    def tag(function: Callable) -> Callable:
        form = forms.FORMS[function.__name__]
        names = [*inspect.signature(function).parameters][1:]
        errors = {reason: mi.Error(*error) for reason, error in form.errors.items()}
        errors.setdefault("Server Internal Error", mi.Error(500, "Internal error"))
        json = mi.JsonForm(recipes=[recipe.split() for recipe in form.recipes], raw=tuple(names), named=form.named,
                           check=functools.partial(judge, form.first.split()), errors=errors)
        how = {"json": json, "input": form.text is not None, **options}
        if form.text is not None:
            how.setdefault("bind", binder(form.text, names))
        how.setdefault("also", full_name(function))
        return mi.command(function.__name__, **how)(function)

    return tag(function) if function else tag


class Null:
    """A JSON null, a value of a bad type for every parameter; None stands for what is not given."""


NULL = Null()


def judge(first: list[str], values: dict) -> None:
    """Have NULL in the place of each null among the values of a JSON-RPC request; Error for one of `first` that is no text."""
    values.update({name: NULL for name, value in values.items() if value is None})
    for name in first:
        mi.json_string(values.get(name, ""), name)


def is_40(ctx: Any) -> bool:
    """Whether OpenSIPS 4.0 is imitated."""
    return ctx.server.setup.own.get("imitate") == "4.0"


def is_24(ctx: Any) -> bool:
    """Whether OpenSIPS 2.4 is imitated; it takes more for a URI and a name than its successors."""
    return ctx.server.setup.own.get("imitate") == "2.4"


PORT = re.compile(r"(?:\[[^\]]*\]|[^:;?\[\]]*):0*([0-9]+)")  # behind a host


def has_port(place: str) -> bool:
    """Whether the port of `HOST:PORT;...` can be one, or there is none."""
    match = PORT.match(place)
    return not match or len(match[1]) < 6 and int(match[1]) < 65536


def is_sip_uri(ctx: Any, text: str) -> bool:
    """Whether a text is a URI of SIP that a server can send to."""
    place = re.sub("(?i)^sips?:(?:[^@]*@)?", "", text)
    return is_uri(text, math.inf) and place != text and (is_24(ctx) or has_port(place))


def full_name(function: Any) -> str:
    """The name of a command in 4.0: the module's, and the old one without its prefix."""
    module = function.__module__.rpartition("plugin_")[2]
    return f"{module}:{re.sub('^(?:ul|dlg|ds|dr|lb|t|rl|reg|nh|pike|rtpproxy|domain|dbt)_', '', function.__name__)}"


def binder(text: str, names: list[str]) -> Callable:
    """What binds the values of a text request by their positions to arguments by name; Error for a wrong count."""
    words = text.removesuffix("...").split()
    least = sum(not word.startswith("[") for word in words)
    most = float("inf") if text.endswith("...") else len(words)
    bare = [word.strip("[]") for word in words]
    places = [bare.index(name) if name in bare else None for name in names]

    def bind(request: Any) -> list:
        values = request.values
        if not least <= len(values) <= most:
            raise mi.WRONG_COUNT
        return [values[at] if at is not None and at < len(values) else None for at in places]

    return bind


def no_values(request: Any) -> tuple:
    """A binder for commands that look at the values of a text request themselves."""
    return ()


def reply(ctx: Any, value: Any, depends: tuple = (), until_s: float | None = None) -> Any:
    """A reply that has 3.4's result, or 2.4's tree of it."""
    if ctx.request.dialect == "jsonrpc":
        return mi.Reply(result=value, depends=depends, until_s=until_s)
    form = forms.FORMS[ctx.server.registry.names[ctx.request.name].name]  # it may be asked for by a name of 4.0
    nodes = () if value == form.nothing else forms.to_nodes(form.tree, value)
    return mi.Reply(nodes=nodes, depends=depends, until_s=until_s)


def check_size(ctx: Any, count: int, least_bytes: int, texts: Iterable[str] = ()) -> None:
    """Give up a reply of so many parts, each of so many bytes at least, and of texts, before it is made; mi.TooLong."""
    limit = mi.LIMIT if ctx.request.dialect == "jsonrpc" else mi.GIVE_UP
    if count * least_bytes > limit or count * least_bytes + sum(map(len, texts)) > limit:
        raise mi.TooLong(limit + 1)


class Attributes(dict):
    """The attributes of an event as 3.4 has them; `text` are those of 2.4, made when a subscriber wants them."""

    event = ""
    text_only: dict = {}

    @property
    def text(self) -> dict:
        """The attributes as 2.4 has them."""
        known = {**self, **self.text_only}
        return {name: in_text(known[name]) for name in forms.EVENT_FORMS[self.event].split() if name in known}


def has_subscribers(ctx: Any) -> bool:
    """Whether anybody ever subscribed to an event; if not, no attributes need be put together."""
    return bool(ctx.store.version(ctx.server.events.SPACE))


def raise_event(ctx: Any, name: str, text_only: dict | None = None, **attributes: Any) -> None:
    """Raise an event, which is given as 3.4 has it, in the form of each subscriber's dialect; text_only: what only 2.4 has."""
    both = Attributes(attributes)
    both.event, both.text_only = name, text_only or {}
    ctx.server.raise_event(name, both)


def in_text(value: Any) -> Any:
    """The value of an attribute in 2.4, where a negative number is an unsigned one of 64 bits and an empty text is none."""
    return value % 2**64 if isinstance(value, int) else value or None


def context_of(ctx: Any, name: str) -> Any:
    """The context of another module, with its parameters and statistics; None if it is not loaded."""
    module = ctx.server.registry.modules_by_name.get(name)
    return type(ctx)(module, ctx.request, ctx.caller, ctx.data) if module else None


###############################################################################
# Statistics
###############################################################################
# What the core of OpenSIPS counts has no module of its own. Each module with SIP traffic declares it; it is there once.


def counters(names: str, help: str, group: str = "", dialect: str = "") -> list:
    """Statistics that count, by their names."""
    return [mi.Stat(name, help, group, dialect=dialect) for name in names.split()]


SIP_STATS = [stat._replace(shared=True) for stat in (
    *counters("""rcv_requests rcv_replies fwd_requests fwd_replies drop_requests drop_replies err_requests err_replies
        bad_URIs_rcvd""", "SIP messages", "core"),
    *counters("unsupported_methods", "SIP messages; of 2.4", "core", "text"),
    *counters("bad_msg_hdr", "SIP messages", "core"),
    *counters("slow_messages", "SIP messages; of 3.4", "core", "jsonrpc"),
    *[mi.Stat(f"waiting_{way}", "bytes that wait in sockets", "net", False) for way in ("udp", "tcp", "tls")],
    *[one for group in ("dns", "sql", "cdb") for one in counters(
        f"{group}_total_queries {group}_slow_queries", "queries; of 3.4", group, "jsonrpc")],
)]

###############################################################################
# Parameters
###############################################################################
WITHOUT_EFFECT = "accepted without effect"


def anything(value: Any) -> Any:
    """Converter: any value."""
    return value


def without_effect(names: str) -> list:
    """Parameters that OpenSIPS has and nothing here depends on."""
    return [mi.Param(name, None, anything, WITHOUT_EFFECT, repeat=True) for name in names.split()]


def columns(table: Table) -> list:
    """Parameters that rename the columns of a table, those that have one."""
    return [mi.Param(column.param, column.name, mi.string, f"name of the column {column.name}")
            for column in table.columns if column.param]


def partition_line(value: Any) -> tuple[str, dict]:
    """Converter: `NAME: db_url = URL; table_name = TABLE` to the name and its settings."""
    name, colon, rest = mi.string(value).partition(":")
    pairs = [item.partition("=") for item in rest.split(";") if item.strip()]
    if not colon or not name.strip() or not all(sign for _, sign, _ in pairs):
        raise ValueError('takes "NAME: db_url = URL; table_name = TABLE"')
    return name.strip(), {key.strip(): text.strip() for key, _, text in pairs}


###############################################################################
# Sockets
###############################################################################
# The routing script's `listen=` and `socket=` lines say which ones the server has; without any it has all.

# PROTOCOL:ADDRESS:PORT, in a line with a second address and port, to which peers send.
SOCKET = re.compile(r"(?:(\w+):)?(\*|\[[^\]]*\]|[^:\[\]*\s]+)(?::(\d+))?(?:.*?\bas\s*(\[[^\]]*\]|[^:\[\s]+)(?::(\d+))?)?")
PORTS = {"udp": 5060, "tcp": 5060, "sctp": 5060, "tls": 5061, "ws": 80, "wss": 443}  # of the protocols of SIP, without a port


def socket_lines(ctx: Any) -> list:
    """What these lines name, as SOCKET matches it, None for what it does not match."""
    return [SOCKET.match(re.sub(r"\s*([:[\]])\s*", r"\1", rest)) for word, rest, *_ in ctx.own.calls
            if word in ("listen", "socket")]


def local_socket(ctx: Any, place: str) -> str | None:
    """The server's socket that a text means, PROTOCOL:ADDRESS:PORT where a line tells these; None if there is none. Where a line
    does not tell the address, it may be any."""
    lines, wanted = socket_lines(ctx), SOCKET.fullmatch(place)
    if not (lines and wanted):
        return None if lines else place
    for line in lines:
        if is_same(wanted, line):
            return place if line is None else full_socket(line, None if is_address(line[2]) else wanted[2])
    return None


def has_socket(ctx: Any, place: str) -> bool:
    """Whether the server has a socket."""
    return local_socket(ctx, place) is not None


def full_socket(line: Any, host: str | None = None) -> str:
    """A socket, as SOCKET matches it, with its protocol and its port; host: in the place of its own."""
    protocol = (line[1] or "udp").lower()
    return f"{protocol}:{shown_host(host or line[2])}:{line[3] or PORTS.get(protocol, 5060)}"


def shown_host(host: str) -> str:
    """The host of a socket as OpenSIPS prints it."""
    try:
        return f"[{shown_ip(host[1:-1])}]" if host.startswith("[") else host.lower()
    except ValueError:
        return host


def is_address(host: str) -> bool:
    """Whether a line of the configuration names an address, not a name, an interface or `*`."""
    return re.fullmatch(r"[\d.]+|\[.*\]", host) is not None


def ports(ctx: Any) -> dict[str, int]:
    """The ports of SIP by the protocols for which the server has sockets; without a line these are UDP and TCP."""
    used = {(line[1] or "udp").lower() for line in socket_lines(ctx) if line} or {"udp", "tcp"}
    return {protocol: port for protocol, port in PORTS.items() if protocol in used}


def first_socket(ctx: Any) -> dict[str, str]:
    """The first socket for SIP whose address a line tells, as {"socket": PROTOCOL:ADDRESS:PORT}, {} without one."""
    lines = [line for line in socket_lines(ctx) if line and (line[1] or "udp") in PORTS and is_address(line[2])]
    return {"socket": full_socket(lines[0])} if lines else {}


def is_same(wanted: Any, line: Any) -> bool:
    """Whether a socket is that of a line of the configuration, both as SOCKET matches them; without a protocol or port any."""
    if line is None:
        return True
    protocol, own_port = (line[1] or "udp").lower(), int(line[3] or PORTS.get(line[1], 5060))
    return (wanted[1] or protocol).lower() == protocol \
        and (int(wanted[3] or 0) or own_port) in (own_port, int(line[5] or own_port)) \
        and (shown_host(wanted[2]) in map(shown_host, (line[2], line[4] or line[2])) if is_address(line[2])
             else not wanted[2].isdigit())


def own_socket(ctx: Any, row: Row) -> str | None:
    """The socket that a row names, None with a log line if the server does not have it."""
    place = row["socket"] and local_socket(ctx, row["socket"])
    if row["socket"] and place is None:
        ctx.log.error("%s: socket %s is none of this server's, passed over", row.where, row["socket"])
    return place or None


def shown_ip(text: Any) -> str:
    """An address as OpenSIPS prints it: IPv6 in capitals and with all its groups, without leading zeros; ValueError."""
    address = ipaddress.ip_address(text)
    if address.version == 4:
        return f"{address}"
    return ":".join(f"{int(group, 16):X}" for group in address.exploded.split(":"))


###############################################################################
# Tables
###############################################################################
# A database is a folder of db_text files or an SQLite file with OpenSIPS' schema. It is read as a whole, at the start and when a
# command asks for it.


class TableError(Exception):
    """What is wrong with a table: a file, a row and what it is."""


class Column(NamedTuple):
    """A column: `kind` is int32, int64, fraction, needed or plain; `null`: whether it may be empty; `param`: what renames it,
    `source`: to what; `since`: the first version of the table that has it."""

    name: str
    kind: Callable
    null: bool = False
    param: str = ""
    source: str = ""
    since: int = 0


def int32(value: Any) -> int:
    """An integer of 32 bits, with a sign or without; ValueError, OverflowError."""
    number = int(value)
    if not -2**31 <= number < 2**32:
        raise OverflowError
    return number


def int64(value: Any) -> int:
    """An integer of 64 bits, with a sign or without; ValueError, OverflowError."""
    number = int(value)
    if not -2**63 <= number < 2**64:
        raise OverflowError
    return number


def fraction(value: Any) -> float:
    """A number that is not infinite; ValueError, OverflowError."""
    number = float(value)
    if not math.isfinite(number):
        raise OverflowError
    return number


def needed(value: Any) -> str:
    """A text that may not be NULL."""
    return plain(value)


def plain(value: Any) -> str:
    """A text, which SQLite may have as bytes or as a number."""
    return mi.decode(value) if isinstance(value, bytes) else f"{value}"


class Table(NamedTuple):
    """A table of OpenSIPS' schema; versions that can be read."""

    name: str
    versions: tuple
    columns: tuple

    def named(self, ctx: Any, name: str | None = None) -> Table:
        """The table with the names that parameters of a module give to it and to its columns."""
        mine = [column._replace(source=ctx.param(column.param)) if column.param else column for column in self.columns]
        return self._replace(name=name or self.name, columns=tuple(mine))

    def without(self, *names: str) -> Table:
        """The table but for some columns, which need not be there."""
        return self._replace(columns=tuple(column for column in self.columns if column.name not in names))


def table(name: str, versions: Iterable[int], columns: str, renamed: str = "%s") -> Table:
    """A table from the words `column`, `column#` (an integer), `column##` (one of 64 bits), `column~` (a float), `column!` (a
    text, not NULL); `?` behind it: may be NULL; `@3` behind that: from version 3 on. A parameter of the form `renamed`, if it is
    not empty, renames a column, or the one behind `=`, or behind `=-` none."""
    made = []
    for word in columns.split():
        place, _, param = word.partition("=")
        mark, _, since = place.partition("@")
        bare = mark.rstrip("#~!?")
        kind = int64 if "##" in mark else int32 if "#" in mark else fraction if "~" in mark else needed if "!" in mark else plain
        param = (param or renamed and renamed % bare).removeprefix("-")
        made.append(Column(bare, kind, "?" in mark, param, bare, int(since or 0)))
    return Table(name, tuple(versions), tuple(made))


def can_read(url: str) -> bool:
    """Whether a database is one that can be read here."""
    return url.startswith(("text://", "sqlite://"))


TURN_S, TURN_ROWS = 0.005, 32  # for which rows are read before others get their turn, and rows between two looks at the clock


def in_turns(rows: Iterable) -> Iterator:
    """The rows; others get their turn between them. For what a child does while it serves."""
    until_s = time.monotonic() + TURN_S
    for number, row in enumerate(rows):
        if not number % TURN_ROWS and time.monotonic() > until_s:
            mi.give_way()
            until_s = time.monotonic() + TURN_S
        yield row


class Row(dict):
    """A row of a table as {column: value}, by the names that the schema has. where: its file, and line or number."""

    where = ""


def read_table(url: str, table: Table, read_file: Callable | None = None, each: Callable = iter) -> list[Row]:
    """The rows of a table; read_file: as read_fields(); each: what they are gone through with, such as in_turns(). TableError."""
    place = url.partition("://")[2]
    try:
        return read_text_table(place, table, read_file or read_fields, each) if url.startswith("text://") \
            else read_sqlite_table(place, table, each)
    except OSError as error:
        raise TableError(f"table {table.name}: {error.filename or place}: {error.strerror}") from None
    except (UnicodeError, sqlite3.Error) as error:
        raise TableError(f"{place}: table {table.name}: {error}") from None


def of_version(place: str, table: Table, version: Any) -> Table:
    """The table with the columns that this version has; TableError for a version that cannot be read."""
    if table.versions and version not in table.versions:
        wanted = " or ".join(map(str, table.versions))
        raise TableError(f"{place}: table {table.name} has version {version if version is not None else 'none'}, not {wanted}")
    return table._replace(columns=tuple(column for column in table.columns if column.since <= (version or 0)))


LOCKED_S = 0.5  # for which a table is waited for that another program has locked; the child does nothing else meanwhile


def read_sqlite_table(path: str, table: Table, each: Callable) -> list[Row]:
    """A table of an SQLite file; TableError, sqlite3.Error."""
    if not os.path.isfile(path):
        raise TableError(f"{path}: {'is no regular file; the form is sqlite://FILE' if os.path.exists(path) else 'no such file'}")
    connection = sqlite3.connect(f"file:{path.replace('?', '%3f').replace('#', '%23')}?mode=ro", uri=True,
                                 timeout=LOCKED_S)
    try:
        versions = connection.execute("SELECT table_version FROM version WHERE table_name = ?", (table.name,)).fetchone()
        table = of_version(path, table, versions and versions[0])
        names = ", ".join(f'one."{column.source}"' for column in table.columns)  # alone, an unknown name would be a text
        rows = connection.execute(f'SELECT {names} FROM "{table.name}" one').fetchall()
    finally:
        connection.close()
    return [typed(f"{path}: table {table.name}, row {number}", table.columns, row)
            for number, row in enumerate(each(rows), 1)]


def read_text_table(folder: str, table: Table, read_file: Callable, each: Callable) -> list[Row]:
    """A table of db_text, and its version; TableError, OSError."""
    version = None
    if table.name != "version":
        for name, number, *_ in read_file(os.path.join(folder, "version"), each)[1]:
            is_number = isinstance(number, str) and re.fullmatch("[0-9]+", number)  # of one column it is the number of the line
            version = int(number) if name == table.name and is_number else version
        table = of_version(folder, table, version)
    path = os.path.join(folder, table.name)
    header, rows = read_file(path, each)
    places = []
    for column in table.columns:
        if column.source not in header:
            raise TableError(f"{path}:1: no column {column.source}")
        places.append(header.index(column.source))
    return [typed(f"{path}:{row[-1]}", table.columns, [row[at] for at in places]) for row in each(rows)]


def open_regular(path: str, flags: int) -> int:
    """For open(): open a regular file, for nothing says when others end; TableError, OSError."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise TableError(f"{path}: is a FIFO or a device; name a regular file")


FIELD = re.compile(r"(?:^|:)((?:[^:\\]+|\\.)*\\?)")
ESCAPE = re.compile(r"\\(.?)")
ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", ":": ":", "\\": "\\"}
COLUMN = re.compile(r"(\w+)\(([sbiltd])\w*(?:,([na])[\w,]*)?\)", re.I)  # name(type,null)
INTEGER, DECIMAL = re.compile("-?[0-9]+"), re.compile(r"-?[0-9]+(?:\.[0-9]*)?")
NUMBERS = {"i": INTEGER, "l": INTEGER, "t": INTEGER, "d": DECIMAL}  # int, long, time, double


def read_fields(path: str, each: Callable = iter) -> tuple[list[str], list[list]]:
    """The names of the columns of a db_text file, and the fields of its rows, None for NULL, each row with the number of its line
    behind them. As in the original no row may have a wrong field, also in a column that nobody reads. TableError, OSError."""
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n", opener=open_regular) as file:
        first, *lines = file.read().split("\n")
    if not (first or lines):  # an empty file is a table without columns
        return [], []
    columns = [match for match in map(COLUMN.fullmatch, first.split()) if match]
    if len(columns) != len(first.split()):  # an empty file is a table without columns
        raise TableError(f"{path}:1: is no header of a table: name(type) name(type,null) ...; a type is string, int, long, "
                         "double, time or blob")
    needed = [(at, match[1]) for at, match in enumerate(columns) if not match[3]]
    numbers = [(at, match[1], NUMBERS[match[2].lower()]) for at, match in enumerate(columns) if match[2].lower() in NUMBERS]
    rows: list[list] = []
    for number, line in enumerate(each(lines), 2):
        line = line.removesuffix("\r")
        if not line:
            continue
        try:
            row = fields_of(line)
        except KeyError as error:
            raise TableError(f"{path}:{number}: \\{error.args[0]} is no escape, but \\n \\r \\t \\0 \\: \\\\ are") from None
        if len(row) != len(columns):
            raise TableError(f"{path}:{number}: has {len(row)} fields, not {len(columns)}")
        for at, name in needed:
            if row[at] is None:
                raise TableError(f"{path}:{number}: {name} is empty, and may not be NULL")
        for at, name, pattern in numbers:
            field = row[at]
            if field is not None and not pattern.fullmatch(field):
                raise TableError(f"{path}:{number}: {name} is {field!r:.60}, which is no number")
        rows.append([*row, number])
    return [match[1] for match in columns], rows


def fields_of(line: str) -> list[str | None]:
    """The fields of a line of a db_text file, None for those that are empty; KeyError with an unknown escape."""
    if "\\" not in line:
        return [field or None for field in line.split(":")]
    return [ESCAPE.sub(lambda match: ESCAPES[match[1]], field) if "\\" in field else field or None
            for field in FIELD.findall(line)]


def typed(where: str, columns: tuple, values: Iterable) -> Row:
    """A row with values of the kinds that its columns have; TableError."""
    row = Row()
    row.where = where
    for column, value in zip(columns, values):
        if value is None and not column.null and column.kind is not plain:
            raise TableError(f"{where}: {column.name} is NULL")
        try:
            row[column.name] = None if value is None else column.kind(value)
        except ValueError:
            raise TableError(f"{where}: {column.name} is {value!r:.60}, which is no number") from None
        except OverflowError:
            raise TableError(f"{where}: {column.name} is {value!r:.60}, which is too large") from None
    return row


def url_of(ctx: Any, own: str = "") -> str:
    """The database to read: midatagram's db_url, else the one given, else the module's, else that of db_default_url."""
    return ctx.own.db_url or own or ctx.param("db_url") or ctx.own.default_db[0]


def place(ctx: Any, table: Table, param: str) -> tuple[str, Table]:
    """The database, and a table, whose name a parameter has: for check_tables() and rows_of()."""
    return url_of(ctx), table.named(ctx, ctx.param(param))


def line_of(ctx: Any, url: str) -> tuple[str, int]:
    """The line of the configuration that names a database: midatagram's db_url, one of the module, or db_default_url."""
    if ctx.own.db_url:
        return ctx.own.db_url_at
    if url == ctx.own.default_db[0] and not ctx.param("db_url"):
        return ctx.own.default_db[1]
    for name, lines in ctx.own.lines.items():
        value = ctx.own.settings[name]
        values = value if ctx.own.params[name].repeat else [value]
        for line, one in zip(lines[-len(values):], values):
            if url in f"{one}":
                return line
    return ctx.own.where("db_url")


FORM = "a database is text://DIRECTORY, with files as db_text has them, or sqlite://FILE"


def check_tables(ctx: Any, *wanted: tuple[str, Table]) -> None:
    """Refuse to start with tables, each with its database, that cannot be read; for init()."""
    for url, table in wanted:
        try:
            read_table(url, table) if can_read(url) else doubt(ctx, url, table)
        except TableError as error:
            missing = "" if os.path.exists(url.partition("://")[2]) else f'; {FORM}, not "{url}"'
            raise mi.ConfigError(*line_of(ctx, url), f"{error}{missing}") from None


def rows_of(ctx: Any, url: str, table: Table) -> list[Row]:
    """The rows of a table, none of a database that cannot be read here; TableError. For load(), and for commands that
    reload, which as in the original do not look at the version of the table."""
    if ctx.request.name:
        table = table._replace(versions=())
    if can_read(url):
        return read_table(url, table, reader(ctx), in_turns)
    if not ctx.own.server:
        doubt(ctx, url, table)
    elif url and ctx.request.name:  # not in load(), before which it was said
        ctx.log.warning("%s", empty(url, table))
    return []


def empty(url: str, table: Table) -> str:
    """The warning of a table that cannot be read here."""
    shown = re.sub("//.*@", "//...@", url)
    return f"table {table.name} of {shown} is taken as empty; midatagram's db_url, as text://DIRECTORY, names a dump of it"


def doubt(ctx: Any, url: str, table: Table) -> None:
    """Have that warning where the configuration names the database, once it is loaded; for init()."""
    if url:
        ctx.own.doubts.append((line_of(ctx, url), empty(url, table)))


# The module db_text reads a file once, and again when dbt_reload asks for it.
FILES = "db_text"  # the space of the store that has what was read


def reader(ctx: Any) -> Callable | None:
    """What reads a file, as read_fields(): as the module does if it is loaded. In init() there is no store yet."""
    module = ctx.server.registry.modules_by_name.get("db_text") if ctx.server else None
    return module and functools.partial(read_file_anew if module.settings["db_mode"] else read_file_once, ctx)


def read_file_once(ctx: Any, path: str, each: Callable) -> Any:
    """As read_fields(), from the store if the file was read before; TableError, OSError."""
    value = ctx.store.get(FILES, path)
    return read_file_anew(ctx, path, each) if value is None else json.loads(value)


def read_file_anew(ctx: Any, path: str, each: Callable = in_turns) -> Any:
    """As read_fields(), also into the store; TableError, OSError."""
    fields = read_fields(path, each)
    ctx.store.put(FILES, path, json.dumps(fields))
    return fields


def write_rows(ctx: Any, url: str, table: Table, wanted: dict, given: dict) -> None:
    """Give values to the rows of a table that have those that are wanted, in what db_text read of its file, which stays as it is:
    as in the original, the next reload finds them, and dbt_reload reads the file again."""
    path = os.path.join(url.partition("://")[2], table.name)

    def step(value: str | None) -> str | None:
        header, rows = json.loads(value or "[[], []]")
        places = {column.name: header.index(column.source) for column in table.columns if column.source in header}
        for row in rows if {*wanted, *given} <= {*places} else ():
            if all(row[places[name]] == text for name, text in wanted.items()):
                for name, text in given.items():
                    row[places[name]] = text
        return value and json.dumps([header, rows])

    ctx.store.change(FILES, path, step)


@contextlib.contextmanager
def reloading(ctx: Any, failure: mi.Error | None = None) -> Iterator[None]:
    """In commands that read tables again: one after the other for a module, so that what was read last is what stays. What is
    wrong with a table is logged, and `failure` raised; mi.Failed without one."""
    import gevent

    with open(os.path.join(ctx.store.folder, f"reload-{ctx.own.name}"), "ab") as lock:
        waits = True
        while waits:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
                waits = False
            except BlockingIOError:
                gevent.sleep(0.01)
        try:
            yield
        except (TableError, OSError, UnicodeError) as error:
            if failure is None:
                raise mi.Failed(f"{error}") from None
            ctx.log.error("%s: %s", ctx.request.name, error)
            raise failure from None


def good(ctx: Any, rows: Iterable[Row], make: Callable, *more: Any) -> list:
    """What make(row, *more) makes of the rows of a table, but for those for which it raises ValueError: they are logged."""
    made = []
    for row in in_turns(rows):
        try:
            made.append(make(row, *more))
        except ValueError as error:
            ctx.log.error("%s: the row is left out: it %s", row.where, error)
    return made


def kept(make: Callable) -> Callable:
    """The function by which a view, of ctx.view(), has make(value) of each key of a space."""
    def take_in(view: dict, key: str, value: str | None) -> None:
        view.pop(key, None)
        if value is not None:
            view[key] = make(value)

    return take_in


def is_reset(ctx: Any) -> bool:
    """Whether load() is called by a reset of the lab, after which nothing is as commands left it."""
    return getattr(ctx, "is_reset", False)


def switch(ctx: Any, space: str, value: Any, convert: Callable = uint) -> Any:
    """The reply to a command that shows whether something is on, {"Status": 0 or 1}, which it is at the start, or says it; value:
    of its argument `status`, `...` if there is none. Error."""
    if value is ...:
        return reply(ctx, {"Status": int(ctx.store.get(space, "") or 1)}, depends=(space,))
    ctx.store.put(space, "", f"{int(number(ctx, 'status', value, convert) != 0)}")
    return mi.Reply()


###############################################################################
# Tables with states
###############################################################################
# A table, or a partition of one, is a key of the store. A row whose state a command changed has a key of its own: a change costs
# what one row costs. A reload takes these states into the table.


class Rows:
    """A table as a child sees it: `ones` are its rows with their states of now, `head` is what it has besides.

    generation: tells the states of its rows from those of a table that it replaced; changed: the keys of rows that have one.
    """

    def __init__(self, kind: type, value: str):
        self.generation, self.head, rows = json.loads(value)
        self.ones, self.changed = [kind(*row) for row in rows], set[str]()

    @functools.cached_property
    def places(self) -> dict[str, int]:
        """Where the rows are, the first of each key."""
        return {one.key: at for at, one in reversed([*enumerate(self.ones)])}

    def find(self, key: str) -> Any:
        """The row of a key; None if there is none."""
        at = self.places.get(key)
        return None if at is None else self.ones[at]

    def texts(self, *fields: int) -> Iterator[str]:
        """What the rows have in fields of text, for check_size()."""
        return itertools.chain.from_iterable([map(operator.itemgetter(field), self.ones) for field in fields])


class Tables(NamedTuple):
    """A space of the store with tables. kind: the class of their rows, a NamedTuple with a `key` that tells them from each other;
    state: the names of the fields that commands change."""

    space: str
    kind: type
    state: tuple

    def take_in(self, view: dict, name: str, value: str | None) -> None:
        """Keep a table in a view, which is {name: Rows}, or the state of a row."""
        name, is_row, key = name.partition("\n")
        if not is_row:
            view.pop(name, None)
            if value is not None:
                view[name] = Rows(self.kind, value)
        elif value is not None and name in view:
            rows, (generation, *state) = view[name], json.loads(value)
            if generation == rows.generation:
                at = rows.places[key]
                rows.ones[at] = self.with_state(rows.ones[at], state)
                rows.changed.add(key)

    def now(self, ctx: Any) -> dict[str, Rows]:
        """The tables of now, by name."""
        return ctx.view(self.space, self.take_in)

    def table(self, ctx: Any, name: str = "") -> Rows:
        """The table of a name, an empty one if there is none."""
        return self.now(ctx).get(name) or Rows(self.kind, '["", [], []]')

    def change(self, ctx: Any, name: str, key: str, how: Callable, unknown: mi.Error) -> tuple:
        """Give a row the state that how(row) returns, in one step for all processes; the row before and after. What how() raises,
        and `unknown` if there is no such row."""
        both: tuple = ()

        def step(value: str | None) -> str | None:
            nonlocal both
            rows = self.table(ctx, name)
            old = rows.find(key)
            if old is None:
                raise unknown
            both = old, how(old)
            return value if both[1] == old else json.dumps([rows.generation, *self.state_of(both[1])])

        self.table(ctx, name).find(key)  # what is to be read is read before others wait for the step
        ctx.store.change(self.space, f"{name}\n{key}", step)
        return both

    def replace(self, ctx: Any, name: str, make: Callable) -> None:
        """Put a table in the place of the one of that name, if any: make(Rows or None, each) returns its head and its rows, which
        it goes through with each(). In a reset it does not see what was there."""
        generation, old = f"{random.getrandbits(64):x}", None

        def written(each: Callable) -> str:
            nonlocal old
            old = self.now(ctx).get(name)
            return json.dumps([generation, *make(None if is_reset(ctx) else old, each)])

        version, text = ctx.store.version(self.space), written(in_turns)
        mi.give_way()
        ctx.store.change(self.space, name, lambda _: text if 0 <= version == ctx.store.version(self.space) else written(iter))
        replaced = old.generation if old else ""  # states of a still newer table stay
        for key in in_turns([*old.changed] if old else ()):
            ctx.store.change(self.space, f"{name}\n{key}",
                             lambda value: None if value and json.loads(value)[0] == replaced else value)
        mi.give_way()
        self.now(ctx)  # before a request wants it

    def remove_others(self, ctx: Any, names: Iterable[str]) -> None:
        """Remove the tables that have none of these names."""
        for key, _ in ctx.store.items(self.space):
            if key.partition("\n")[0] not in names:
                ctx.store.remove(self.space, key)

    def put(self, ctx: Any, name: str, head: Any, rows: Iterable, inherits: tuple) -> None:
        """Put rows in the place of a table; inherits: the fields that those have that were there before."""
        def made(old: Rows | None, each: Callable) -> tuple:
            before = [old.find(one.key) for one in each(rows)] if old and inherits else itertools.repeat(None)
            return head, [one if was in (None, one) else one._replace(**{field: getattr(was, field) for field in inherits})
                          for one, was in zip(rows, before)]

        self.replace(ctx, name, made)

    def state_of(self, row: Any) -> list:
        """The state of a row."""
        return [getattr(row, field) for field in self.state]

    def with_state(self, row: Any, state: list) -> Any:
        """A row with a state."""
        return row if state == self.state_of(row) else row._replace(**dict(zip(self.state, state)))
