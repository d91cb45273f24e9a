"""Replies as text: every form of a node, the first line, the same as a template; and requests that cannot be written."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as some

import midatagram as mi

write_request = mi.write_request
N = mi.Node
LINES = [  # nodes -> the lines behind `200 OK`, without the final empty one
    ([], ""),
    ([N("name", "value")], "name:: value\n"),
    ([N("name")], "name:: \n"),
    ([N("name", "")], "name:: \n"),
    ([N(None, "value")], "value\n"),
    ([N(None, "")], "\n"),
    ([N("n", 0)], "n:: 0\n"),
    ([N("n", "v", (("a", "1"), ("b", "2")))], "n:: v a=1 b=2\n"),
    ([N("Process", None, (("ID", 0), ("PID", 7)))], "Process::  ID=0 PID=7\n"),
    ([N(None, "v", (("a", "1"),))], "v a=1\n"),
    ([N(None, None, (("a", "1"),))], " a=1\n"),
    ([N("n", "v", (("noval", None), (None, "noname"), ("empty", ""), ("k", "v w")))], "n:: v noval=noname empty= k=v w\n"),
    ([N("a", 1, (), [N("b", 2, (), [N("c", 3)]), N("d", 4)]), N("e", 5)], "a:: 1\n\tb:: 2\n\t\tc:: 3\n\td:: 4\ne:: 5\n"),
    ([N("a", None, (("k", 1),), (N(None, "x"),))], "a::  k=1\n\tx\n"),
    ([N("raw", 'a\n\n"b"::\t\\ \0 \r')], 'raw:: a\n\n"b"::\t\\ \0 \r\n'),
]


@pytest.mark.parametrize("nodes, lines", LINES)
def test_nodes(nodes, lines):
    assert mi.write_text(mi.Reply(nodes=nodes)) == f"200 OK\n{lines}\n"


@pytest.mark.parametrize("nodes, lines", LINES)
def test_kept_nodes(nodes, lines):
    """As a template, filled with no values, a kept reply says the same."""
    assert mi.write_text(mi.Reply(nodes=nodes, live=mi.CONSTANT)) % () == f"200 OK\n{lines}\n"


@pytest.mark.parametrize("code, reason, line", [
    (200, "OK", "200 OK\n"), (404, "", "404 \n"), (0, "zero", "0 zero\n"), (-1, "x", "4294967295 x\n"), (7, "a\nb", "7 a\nb\n"),
    (200, "100% of %s", "200 100% of %s\n"),
])
@pytest.mark.parametrize("live", [None, mi.CONSTANT])
def test_first_line(code, reason, line, live):
    text = mi.write_text(mi.Reply(code, reason, live=live))
    assert (text if live is None else text % ()) == f"{line}\n"


@pytest.mark.parametrize("reply, line", [
    (mi.NOT_AVAILABLE, "500 command not available\n"), (mi.PARSE_ERROR, "400 parse_error\n"),
    (mi.COMMAND_FAILED, "500 command failed\n"), (mi.TIMED_OUT, "500 command timed out\n"),
    (mi.Text(mi.Registry([])).too_long(70000), "500 reply of 70000 bytes exceeds 65457\n"),
    (mi.Text(mi.Registry([])).request_too_long(65458), "400 request of 65458 bytes exceeds 65457\n"),
])
def test_built_in_errors_have_no_empty_line(reply, line):
    assert mi.write_text(reply) == line


@pytest.mark.parametrize("indent", ["\t", "", "  ", "%", "%s", "é"])
@pytest.mark.parametrize("live", [None, mi.CONSTANT])
def test_indent_is_written_once_a_level(indent, live):
    text = mi.write_text(mi.Reply(nodes=[N("a", 1, (), [N("b", 2, (), [N(None, "c")])])], live=live), indent)
    assert (text if live is None else text % ()) == f"200 OK\na:: 1\n{indent}b:: 2\n{indent}{indent}c\n\n"


@given(some.text(some.characters(codec="utf-8"), max_size=20))
def test_a_kept_reply_says_what_it_says_when_not_kept(text):
    """Whatever stands in reason, name, value and attributes."""
    reply = mi.Reply(200, text, [N(text, text, ((text, text),), [N(text, text)])])
    assert mi.write_text(reply._replace(live=mi.CONSTANT)) % () == mi.write_text(reply)


def test_live_values_stand_where_their_node_has_them():
    reply = mi.Reply(nodes=[N("a", mi.LIVE, (("100%", mi.LIVE),)), N(None, mi.LIVE, (), [N("50%", mi.LIVE)])], live=tuple)
    assert mi.write_text(reply) % (1, "%", "x", "%s") == "200 OK\na:: 1 100%=%\nx\n\t50%:: %s\n\n"


# Requests that the grammar cannot carry.


@pytest.mark.parametrize("name, arguments", [
    ("a:b:c", []), ("a:", []), (":a", []), ("a b:c", []), ("a\0b", []),
    ("a", [("", "v")]), ("a", [(" n", "v")]), ("a", [("n ", "v")]), ("a", [("n\nm", "v")]),
    ("a", [('n"', "v")]),
    ("a", [("n::m", "v")]), ("a", [("n:", "v")]), ("a", [("\0n", "v")]), ("a", [(None, None)]), ("a", [(None, " \\")]),
    ("a", [("n", '"\\')]), ("a", [(None, "x" * mi.LIMIT)]),
])
def test_what_cannot_be_sent_is_refused(name, arguments):
    with pytest.raises(ValueError):
        write_request(name, arguments)


def test_every_short_request_reads_back():
    """All arguments of up to three of the bytes that mean something."""
    texts = [None, *("".join(letters) for size in range(4) for letters in itertools.product('a:"\\\n ', repeat=size))]
    written = refused = 0
    for name, value in itertools.product(texts[:60], texts):
        try:
            body = write_request("c", [(name, value)])[4:]
        except ValueError:
            refused += 1
            continue
        written += 1
        assert mi.read_arguments(body) == ((value,), name and (name,))
    assert written > 500 and refused > 500
