"""Every exchange recorded from real OpenSIPS 2.4.11, replayed against a running server."""

import json
import pathlib
import re

import pytest
from conftest import PLUGINS, free_port

import midatagram as mi

DATA = pathlib.Path(__file__).parent / "data"


def expand(pieces):
    """Bytes of a recording: latin-1 text, or a list of texts and [text, times]; None stays None."""
    if pieces is None:
        return None
    parts = [pieces] if isinstance(pieces, str) else [p if isinstance(p, str) else p[0] * p[1] for p in pieces]
    return "".join(parts).encode("latin-1")


def recordings(name):
    """The exchanges of one file, with their request and reply as bytes."""
    with open(DATA / name, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{**row, "request": expand(row["request"]), "reply": expand(row["reply"])} for row in rows]


def shape(reply):
    """First line, and the set of names per level: statistic names, attribute names, without values and numbers."""
    first, *lines = reply.decode("latin-1").rstrip("\n").split("\n")
    levels = {}
    for line in lines:
        level = len(line) - len(line.lstrip("\t"))
        name, mark, rest = line.lstrip("\t").partition(":: ")
        attributes = re.findall(r"(?:^| )([A-Za-z ]+?)=", rest)
        levels.setdefault(level, set()).update([name] if mark else ["(value)"], attributes)
    return first, levels


GRAMMAR = recordings("text_grammar.jsonl")
CORE = recordings("text_core.jsonl")


def intended(row):
    """The answer wanted where the original's is a bug: what the manual's grammar means."""
    request = row["request"]
    if len(request) > mi.LIMIT:
        return f"400 request of {len(request)} bytes exceeds {mi.LIMIT}\n".encode()
    if row["id"] in WANTED:
        return WANTED[row["id"]]
    return expand(row.get("reply_if_newline_added"))


def big_reply(place, number):
    """The reply to `big`, or the error in its place: 65457 bytes fit, one less did in the original."""
    text = b"x" * number
    reply = {"value": b"200 OK\n" + text + b"\n\n", "name": b"200 OK\n" + text + b":: \n\n",
             "attr": b"200 OK\nn:: v a=" + text + b"\n\n", "attrname": b"200 OK\nn:: v " + text + b"=\n\n",
             "kid": b"200 OK\nn:: v\n\t" + text + b"\n\n", "reason": b"200 " + text + b"\n\n",
             "lines": b"200 OK\n" + b"xxxxxxxxx\n" * number + b"\n"}[place]
    return reply if len(reply) <= mi.LIMIT else f"500 reply of {len(reply)} bytes exceeds {mi.LIMIT}\n".encode()


def big_row(row):
    """Whether a finding is about a reply that did not fit; its place and number."""
    match = re.fullmatch(rb":big:\n(\d+)\n(\w+)\n", row["request"])
    return (match.group(2).decode(), int(match.group(1))) if match and row["reply"] is None else None


def echoed(*pairs):
    """The reply of echo to arguments given as (name, value)."""
    def line(name, value):
        label = "" if name is None else f"{name}:: "
        flags = f" len_name={len(name or '')} len_value={len(value or '')} null_name={int(name is None)}"
        return f"{label}{value or ''}{flags} null_value={int(value is None)}\n"
    return ("200 OK\n" + "".join(line(*pair) for pair in pairs) + "\n").encode("latin-1")


PARSE_ERROR = b"400 parse_error\n"
# What the findings about quotes and the end of a datagram are to give, by the rules of docs/differences.md.
WANTED = {
    "nv-016": echoed(("n", None)), "nv-018": echoed(("n", None)), "nv-019": echoed(("n", None)),
    "nv-020": echoed((None, "a"), ("n", None)), "nv-021": echoed(("n", None)), "nv-023": PARSE_ERROR,
    "nv-024": PARSE_ERROR, "qs-023": echoed((None, "")), "qs-025": echoed((None, ""), (None, "x")),
    "qs-026": echoed((None, "x"), (None, "")), "qs-030": echoed((None, ""), (None, "")), "qs-031": PARSE_ERROR,
    "qs-032": PARSE_ERROR, "qs-068": echoed((None, 'a"b')), "qs-078": PARSE_ERROR,
    "qs-088": echoed((None, 'a"b'), (None, "foo")), "qs-096": echoed((None, 'a"b'), (None, "n:")),
    "qs-101": echoed(("n", 'a"b')), "qs-112": echoed((None, '"Alice" <sip:a@b>')), "qs-117": echoed((None, 'x"')),
    "qs-121": echoed((None, 'a"b'), ("n", "v:")), "ex-014": PARSE_ERROR, "ex-021": echoed((None, "")),
    "ex-127": PARSE_ERROR, "ex-135": PARSE_ERROR, "fz-209": echoed(("x", None), (None, "")),
    "co-027": b"200 OK\nkey:: key4\nvalue:: ab\0cd\n\n", "co-034": b"200 OK\nkey:: big2\nvalue:: " + b"b" * 2048 + b"\n\n",
    "co-022": b"200 OK\n\n",
}


@pytest.fixture(scope="module")
def echo_server(tmp_path_factory):
    """A server with mi_echo, on a UNIX socket and on UDP."""
    from conftest import Server

    port = free_port()
    configuration = ('loadmodule "mi_echo.so"\nmodparam("midatagram", "dialect", "text")\n'
                     f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")')
    server = Server(tmp_path_factory.mktemp("echo"), configuration, "-p", str(PLUGINS))
    server.udp = f"udp:127.0.0.1:{port}"
    yield server
    server.stop()
    server.close()


@pytest.mark.parametrize("row", GRAMMAR, ids=[row["id"] for row in GRAMMAR])
def test_grammar(echo_server, row):
    client = echo_server.client()
    reply = client.ask(row["request"])
    client.close()
    if "finding" in row:
        wanted = big_reply(*big_row(row)) if big_row(row) else intended(row)
        if wanted is None:  # a quote that can be read two ways: our own reading must be what is served
            wanted = own_reading(row["request"])
        assert reply == wanted
    elif row.get("compare") == "shape":
        assert shape(reply) == shape(row["reply"])
    else:
        assert reply == row["reply"]


def own_reading(request):
    """The reply of echo as the grammar of docs/differences.md gives it, from an independent reading by regex."""
    body = request.split(b"\n", 1)[1].decode("latin-1")
    if body.startswith("\0"):
        return echoed()
    argument = re.compile(
        r'[ \t\n\v\f\r]*(?:(?P<name>[^"\n]*?)(?P<colons>::)[ \t\v\f\r]*)??'
        r'(?:"(?P<quoted>(?:[^"]|(?<=\\)")*)(?<!\\)"[ \t\v\f\r]*|(?P<plain>[^"\n]*))(?:\n|\Z)')
    pairs, at = [], 0
    while at < len(body):
        if not body[at:].strip(" \t\n\v\f\r"):
            break
        match = argument.match(body, at)
        if not match:
            return PARSE_ERROR
        at = match.end()
        if match["quoted"] is not None:
            name = (match["name"] or "").rstrip(" \t\v\f\r") or None
            pairs.append((name, match["quoted"].replace('\\"', '"')))
            continue
        line = match["plain"] if match["colons"] is None else match["name"] + "::" + match["plain"]
        head, colons, tail = line.partition("::")
        blanks = " \t\n\v\f\r"
        pair = (head.strip(blanks) or None, tail.strip(blanks) or None) if colons else (None, head.strip(blanks))
        if pair == (None, None):
            return PARSE_ERROR
        pairs.append(pair)
    return echoed(*pairs)


PLAIN = [row for row in GRAMMAR if "finding" not in row and "compare" not in row and row["reply"]]


def test_grammar_over_udp(echo_server):
    client = echo_server.client(echo_server.udp)
    for row in PLAIN[::7]:
        assert client.ask(row["request"]) == row["reply"], row["id"]


def test_grammar_again(echo_server):
    """From their second time on requests are remembered, and it must not show."""
    rows = [row for row in GRAMMAR if 0 < len(row["request"]) <= mi.KEPT_REQUEST and b"sleep" not in row["request"]]
    client, plain = echo_server.client(), {row["id"] for row in PLAIN}  # what the others store, these may show
    for _ in range(3):
        assert not [row["id"] for row in rows if client.ask(row["request"]) != row["reply"] and row["id"] in plain]
    assert len(plain.intersection(row["id"] for row in rows)) > 400


def test_requests_that_get_no_reply(echo_server):
    """An empty datagram is the only one; what comes behind it is answered."""
    assert {row["request"] for row in GRAMMAR if row["reply"] is None and "finding" not in row} <= {b""}
    client = echo_server.client()
    client.send(b"")
    assert client.ask(b":empty:\n") == b"200 OK\n\n"


@pytest.mark.parametrize("written, number", [
    ("", 7), ("5", 5), (" \t+5x", 5), ("-3", -3), ("x", 0), ("0x10", 0), ("\u0663", 0), ("2147483648", -2**31),
    ("4294967295", -1),
    ("99999999999999999999", -1), ("-99999999999999999999", 0),
])
def test_numbers_are_read_as_c_does(written, number):
    assert atoi()(written, 7) == number


def atoi():
    """The function of that name in mi_echo."""
    namespace = {}
    exec(compile((PLUGINS / "mi_echo.py").read_text(), "mi_echo.py", "exec"), namespace)
    return namespace["atoi"]


LEFT_OUT = {
    "core-017": "blacklists stay empty here", "core-018": "blacklists stay empty here",
    "auto-163": "blacklists stay empty here", "auto-164": "blacklists stay empty here",
    "auto-169": "blacklists stay empty here", "core-146": "there are no TCP connections here",
    "core-045": "a command of drouting, which this server has not", "core-046": "a command of siptrace",
    "core-044": "a command of usrloc",
}
OWN_LISTS = {  # lists of what a server has: only the first line and the form are common
    "core-009", "core-010", "auto-064", "auto-065", "auto-067", "auto-069", "auto-070",
    "statistics-018", "statistics-022", "statistics-023", "statistics-036", "auto-010", "statistics-038", "statistics-007",
    "statistics-008",
}


@pytest.mark.parametrize("children, udp", [(1, False), (3, False), (3, True)])
def test_core(start, children, udp):
    """In file order, since commands change state; which child answers must not matter."""
    server = start('loadmodule "opensips_core.so"\nlog_level=2\n'
                   f'modparam("mi_datagram", "children_count", {children})\n'
                   'modparam("cachedb_local", "cache_collections", "default; c1; c2")\n'
                   'modparam("cachedb_local", "cachedb_url", "local:two:///c2")\n', "-p", str(PLUGINS),
                   place=f"udp:127.0.0.1:{free_port()}" if udp else None)
    client = server.client()
    wrong = []
    for row in CORE:
        if row["id"] in LEFT_OUT:
            continue
        reply = client.ask(adapted(row["request"], server))
        if not fits(row, reply):
            wrong.append((row["id"], row["request"], reply, row["reply"]))
    assert not wrong


def adapted(request, server):
    """Requests that name a pid of the recorded server name one of ours."""
    return re.sub(rb"\n80\d\d\n", lambda match: b"\n%d\n" % server.children()[0], request)


def fits(row, reply):
    """Whether a reply is what was recorded, as its `compare` says."""
    if row.get("finding") and "quotes" in row["finding"]:
        return reply == b"200 OK\nUsage:: help mi_cmd - returns information about 'mi_cmd'\n\n"
    if row["compare"] == "bytes":
        return reply == row["reply"]
    ours, theirs = shape(reply), shape(row["reply"])
    if row["id"] in OWN_LISTS:
        return ours[0] == theirs[0] and ours[1].keys() == theirs[1].keys()
    return ours == theirs


def test_left_out_exists():
    known = {row["id"] for row in CORE}
    assert set(LEFT_OUT) <= known and known >= OWN_LISTS
