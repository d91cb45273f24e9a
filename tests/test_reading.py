"""The grammar of text requests: a table read in both directions, and a second reader, byte by byte, for any bytes."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as some

import midatagram as mi

write_request = mi.write_request
# What write_request() writes exactly so: body -> arguments, each (name, value).
CANONICAL = [
    (b"", ()),
    (b"a\n", [(None, "a")]),
    (b"a b\n", [(None, "a b")]),
    (b"a\nb\nc\n", [(None, "a"), (None, "b"), (None, "c")]),
    (b"n::v\n", [("n", "v")]),
    (b"n::\n", [("n", None)]),
    (b'n::""\n', [("n", "")]),
    (b'""\n', [(None, "")]),
    (b'" a"\n', [(None, " a")]),
    (b'"a\t"\n', [(None, "a\t")]),
    (b'"a\nb"\n', [(None, "a\nb")]),
    (b'"a::b"\n', [(None, "a::b")]),
    (b"a::b::c\n", [("a", "b::c")]),
    (b"a:b\n", [(None, "a:b")]),
    (b'"\\"a\\" b"\n', [(None, '"a" b')]),
    (b'"\\"\\""\n', [(None, '""')]),
    (b'n::"\\"x"\n', [("n", '"x')]),
    (b'"\\\\"b"\n', [(None, '\\"b')]),
    (b"a\\\n", [(None, "a\\")]),
    (b"two words::v\n", [("two words", "v")]),
    (b"\x1c\x85\x08\n", [(None, "\x1c\udc85\x08")]),
    (b'"\0a"\n', [(None, "\0a")]),
    (b"n::\0\n", [("n", "\0")]),
    (b"'a'\n", [(None, "'a'")]),
    (b"# a, b; \\n\n", [(None, "# a, b; \\n")]),
    ("é ✓\n".encode(), [(None, "é ✓")]),
    (b"\xff\xfe\n", [(None, "\udcff\udcfe")]),
]
# What only reads so.
READ = [
    (b"a", [(None, "a")]),
    (b"a\n\n\n", [(None, "a")]),
    (b"\n \n\t\n\v\f\r\n", ()),
    (b"  a  \r\n", [(None, "a")]),
    (b"a\r\nb\r\n", [(None, "a"), (None, "b")]),
    (b"n::", [("n", None)]),
    (b"n::  \r", [("n", None)]),
    (b"n ::  v  ", [("n", "v")]),
    (b":: v\n", [(None, "v")]),
    (b":::v\n", [(None, ":v")]),
    (b"a:::b\n", [("a", ":b")]),
    (b"a::::\n", [("a", "::")]),
    (b"n::\n\n v\n", [("n", None), (None, "v")]),
    (b'"a"', [(None, "a")]),
    (b'"a"  \r\n', [(None, "a")]),
    (b'"a" \n"b"', [(None, "a"), (None, "b")]),
    (b'n:: "a"\n', [("n", "a")]),
    (b'n ::\t"a\r\nb"', [("n", "a\r\nb")]),
    (b'"a\\"b"\nfoo', [(None, 'a"b'), (None, "foo")]),
    (b'"a\\"b"\nn:', [(None, 'a"b'), (None, "n:")]),
    (b'"\\""', [(None, '"')]),
    (b'"a\\\\n"\n', [(None, "a\\\\n")]),
    (b'"" \n""', [(None, ""), (None, "")]),
    (b"\0anything\n\"", ()),
    (b"a\0b\n\0c\n", [(None, "a\0b"), (None, "\0c")]),
    (b'"a"\n\0', [(None, "a"), (None, "\0")]),
    (b"[::1]:5060\n", [("[", "1]:5060")]),
]
REFUSED = [
    b"::", b"::\n", b" ::  ", b"a\n::\n", b'"', b'"a', b'"a\n', b'"a\\"', b'"a\\\\"', b'"\\"', b'"""', b'""""', b'""a"',
    b'"a"b', b'"a" b\n', b'"a"::b', b'"a""b"\n', b'a"b', b'a "b"\n', b'a"b::c', b'n::a"b\n', b'n::v "w"', b'n::"v" w\n',
    b'n::"v', b'n::"', b'n"::v\n', b'a\nb\n"c\n', b'::"\\"\n',
]


def read(body):
    """The arguments of a body as pairs of name and value."""
    return list(mi.Request("", *mi.read_arguments(body)).arguments)


@pytest.mark.parametrize("body, arguments", CANONICAL)
def test_both_directions(body, arguments):
    assert read(body) == list(arguments)
    assert write_request("cmd", arguments) == b":cmd:\n" + body


@pytest.mark.parametrize("body, arguments", READ)
def test_reading(body, arguments):
    assert read(body) == list(arguments)


@pytest.mark.parametrize("body", REFUSED)
def test_refused(body):
    with pytest.raises(mi.ParseError):
        mi.read_arguments(body)


@pytest.mark.parametrize("request_, name, body", [
    (b":a:\n", "a", ""), (b":a:\nb", "a", "b"), (b":with space:\n", "with space", ""), (b"::\n", "", ""),
    (b":a\nb:\nc", "a\nb", "c"), (b":\xff:\n", "\udcff", ""), (b":a:\n:b:\n", "a", ":b:\n"),
])
def test_first_line(request_, name, body):
    line = mi.read_first_line(request_)
    assert (line, mi.decode(request_[len(line):])) == (mi.first_line(name), body)


@pytest.mark.parametrize("request_", [
    b"", b":", b"a", b":a", b":a:", b"a:\n", b" :a:\n", b"\n:a:\n", b"\xef\xbb\xbf:a:\n", b":a:\r\n", b":a: \n", b":a:b\n",
    b":a::\n", b":a\0:\n", b":a\nb", b"\0:a:\n",
])
def test_no_first_line(request_):
    line = mi.read_first_line(request_)
    assert line[:1] != b":" or line[-2:] != b":\n" or len(line) < 3 or mi.first_line(mi.decode(line[1:-2])) is None


# A second reader, written from the rules for bytes, without regular expressions or a fast way for plain values.

SPACE, INLINE = b" \t\n\v\f\r", b" \t\v\f\r"


class Refused(Exception):
    """The second reader's parse error."""


def quoted_end(body, at):
    """Where the quoted value that starts behind a quote at `at` ends."""
    while at < len(body):
        if body[at] == ord('"') and body[at - 1] != ord("\\"):
            return at
        at += 1
    raise Refused


def second_reading(body):
    """The arguments of a request's body, as pairs of bytes or None."""
    pairs, at = [], 0
    if body[:1] == b"\0":
        return pairs
    while True:
        while at < len(body) and body[at] in SPACE:
            at += 1
        if at == len(body):
            return pairs
        name, start = None, at
        if body[at] != ord('"'):
            while at < len(body) and body[at] != ord("\n") and body[at:at + 2] != b"::":
                if body[at] == ord('"'):
                    raise Refused
                at += 1
            if body[at:at + 2] != b"::":
                pairs.append((None, body[start:at].rstrip(SPACE)))
                continue
            name, at = body[start:at].rstrip(SPACE) or None, at + 2
            while at < len(body) and body[at] in INLINE:
                at += 1
        if body[at:at + 1] == b'"':
            end = quoted_end(body, at + 1)
            pairs.append((name, body[at + 1:end].replace(b'\\"', b'"')))
            at = end + 1
            while at < len(body) and body[at] in INLINE:
                at += 1
            if at < len(body) and body[at] != ord("\n"):
                raise Refused
            continue
        start = at
        while at < len(body) and body[at] != ord("\n"):
            if body[at] == ord('"'):
                raise Refused
            at += 1
        value = body[start:at].rstrip(SPACE) or None
        if name is None and value is None:
            raise Refused
        pairs.append((name, value))


PIECES = some.sampled_from([b'"', b'\\"', b"\\", b"::", b":", b"\n", b" ", b"\t", b"\r", b"\v", b"a", b"bc", b"\0", b"\xff",
                            b"\xc3",
                            b"\xa9", b'"x"\n', b"n::", b'""'])
BODIES = some.lists(PIECES, max_size=14).map(b"".join) | some.binary(max_size=40)


@settings(max_examples=1500)
@given(BODIES)
@example(b"\x1d\n\x85 ")
def test_any_bytes_are_read_as_the_rules_say(body):
    try:
        wanted = second_reading(body)
    except Refused:
        with pytest.raises(mi.ParseError):
            mi.read_arguments(body)
        return
    assert [tuple(part if part is None else mi.encode(part) for part in pair) for pair in read(body)] == wanted


@pytest.mark.parametrize("body", [b for b, _ in CANONICAL + READ])
def test_a_newline_at_the_end_changes_nothing(body):
    assert mi.read_arguments(body + b"\n") == mi.read_arguments(body)
