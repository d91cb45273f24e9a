"""What holds for any bytes, by Hypothesis: parsers refuse or read, what is written reads back, answers always come."""

import contextlib
import json
import logging
import re
import types

import pytest
from conftest import PLUGINS
from hypothesis import given, settings
from hypothesis import strategies as some

import midatagram as mi

write_request = mi.write_request
BYTES = some.binary(max_size=300) | some.text(':"\\ \n\t\r\0a=é{}[],', max_size=60).map(lambda text: text.encode())
TEXTS = some.binary(max_size=40).map(mi.decode)
COMMANDS = ("echo", "count", "tree", "code", "fail", "noinput", "nosuch", "empty", "big", "deep")


@pytest.fixture(scope="module")
def answers():
    """Answers from the commands of mi_echo, in this process."""
    module = mi.load_plugin(str(PLUGINS / "mi_echo.py"))
    module.server = types.SimpleNamespace(logger=logging.getLogger)
    return mi.Answers(mi.Registry([module]), logging.getLogger("test"))


@given(BYTES)
def test_any_bytes_parse_or_are_refused(data):
    assert mi.encode(mi.decode(data)) == data
    assert data.startswith(mi.read_first_line(data))
    with contextlib.suppress(mi.ParseError):
        mi.read_arguments(data)


CHARACTERS = some.text(some.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
NUMBERS = some.integers() | some.floats(allow_nan=False, allow_infinity=False)
JSON = some.recursive(some.none() | some.booleans() | NUMBERS | CHARACTERS,
                      lambda inner: some.lists(inner) | some.dictionaries(CHARACTERS, inner), max_leaves=12)


@given(JSON, some.sampled_from([None, 1, "\t"]), some.sampled_from(["", "\U0001f600"]))
def test_json_is_read_as_it_was_written(value, indent, doubtful):
    """By the standard library's decoder, and with an escaped pair of surrogates by our own."""
    written = json.dumps([value, doubtful], indent=indent)
    assert mi.read_json(written.encode()) == [value, doubtful]
    assert mi.read_json(mi.json_text([value, doubtful], bool(indent)).encode()) == [value, doubtful]


@given(some.lists(some.tuples(TEXTS | some.none(), TEXTS | some.none()), max_size=6))
def test_a_written_request_reads_back(arguments):
    try:
        request = write_request("echo", arguments)
    except ValueError:
        return  # a name or value that the grammar cannot carry
    line = mi.read_first_line(request)
    assert line == b":echo:\n"
    assert mi.Request("echo", *mi.read_arguments(request[len(line):])).arguments == tuple(arguments)


@given(some.lists(some.text("abc :\"=\\\t", min_size=1).filter(lambda text: not text.endswith("\\")), min_size=1, max_size=6))
def test_every_value_without_a_backslash_at_its_end_can_be_sent(values):
    request = write_request("echo", [(None, value) for value in values])
    assert mi.read_arguments(request[len(b":echo:\n"):]) == (tuple(values), None)


@settings(max_examples=300)
@given(some.sampled_from(COMMANDS), BYTES, some.booleans())
def test_an_answer_always_comes_and_fits(answers, command, body, whole):
    data = body if whole else b":%s:\n%s" % (command.encode(), body.replace(b"9", b"1"))
    first = answers.answer(data)
    assert [answers.answer(data) for _ in range(2)] == [first] * 2  # remembered or not
    assert all(0 < len(written) <= mi.LIMIT for _, written in first.datagrams)
    if not mi.JSON_START.match(data):
        assert bool(first.exchanges) is not mi.is_reply(data)
        assert all(re.match(rb"[0-9]+ ", written) for _, written in first.datagrams) and len(first.datagrams) <= 1


@given(some.recursive(some.tuples(TEXTS | some.none(), TEXTS | some.integers() | some.none()),
                      lambda inner: some.lists(inner, max_size=3).map(tuple), max_leaves=8))
def test_any_tree_is_written_with_a_line_a_node(tree):
    def node(item):
        if len(item) == 2 and not isinstance(item[0], tuple):
            return mi.Node(*item)
        return mi.Node("n", None, (), [node(part) for part in item])

    nodes = [node(tree)]
    text = mi.write_text(mi.Reply(nodes=nodes))
    assert text.startswith("200 OK\n") and text.endswith("\n\n")
    live = mi.write_text(mi.Reply(nodes=nodes, live=mi.CONSTANT))
    assert live % () == text  # as a template it says the same


def test_a_deep_tree_needs_no_recursion():
    chain = ()
    for number in range(5000):
        chain = (mi.Node("d", number, (), chain),)
    assert mi.write_text(mi.Reply(nodes=chain), "").count("\n") == 5002
