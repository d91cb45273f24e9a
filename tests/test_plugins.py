"""Plug-ins in both forms: what is wrong with one ends the start with its file and line; what it raises does not end a child."""

import collections
import os
import re
import signal

import pytest
from conftest import PLUGINS, ROOT, run, wait_for

import midatagram as mi

PYTHON_MISTAKES = [
    ('import midatagram as mi\n@mi.every(1, where="eech")\ndef f(ctx):\n    pass\n', 2, 'where is "each" or "one", not "eech"'),
    ('import midatagram as mi\n@mi.command(json=mi.JsonForm([["a"], ["b"]]))\ndef f(ctx, a, b=None):\n    "F."\n', 2,
     'has a JSON recipe without "a", which it requires'),
    ("import midatagram as mi\ndef f(:\n", 2, "syntax error"), ("x = 1\nx.y\n", 2, "AttributeError"),
    ("raise SystemExit(3)\n", 1, "SystemExit"), ("PARAMS = [1]\n", 1, "PARAMS is a list of midatagram.Param rows"),
    ("import midatagram as mi\n\n\n@mi.command\ndef f(ctx):\n    return mi.Reply()\n", 4, "needs a docstring"),
    ('import midatagram as mi\n@mi.command(nam=mi.string)\ndef f(ctx, name):\n    "F."\n', 2, 'did you mean "name"?'),
    ('import midatagram as mi\n@mi.command\ndef f(ctx, *, key):\n    "F."\n', 2, "takes a context"),
    ('import midatagram as mi\n@mi.command("ps")\ndef f(ctx):\n    "F."\n', 2, "is there already"),
    ('import midatagram as mi\nSTATS = [mi.Stat("a", "A."), mi.Stat("a", "B.")]\n', 2, 'names "a" twice'),
    ("import midatagram as mi\ndef init(ctx):\n    raise ValueError('no')\n", 3, "init: ValueError: no"),
    ("import nosuchmodule\n", 1, "No module named 'nosuchmodule'"),
    ("import midatagram as mi\n@mi.trace_destination\ndef d(ctx):\n    return {}[1]\n", 4, "KeyError: 1"),
    ('import midatagram as mi\n@mi.command\ndef f():\n    "F."\n', 2, "takes a context"),
    ('import midatagram as mi\n@mi.command("ps")\ndef f(ctx):\n    "F."\n    return {}\n', 2, "; @mi.command(replace=True), "),
    ('import midatagram as mi\nPARAMS = [mi.Param("a", "", "help")]\n', 2, "converter is 'help'; write mi.string, "),
]
SHAPES = [  # text below the import, its line with the mistake (the first is 3), what is said; in the order of declarations.py
    ('BRINGS = "other"', 3, 'write BRINGS = ("other",)'), ("BRINGS = ('b', 'badd')", 3, 'no b.py beside this file'),
    ("X = 1\nBRINGS = ['badd']", 4, 'did you mean "bad"?'), ("BRINGS = 5", 3, 'write BRINGS = ("NAME",)'),
    ('PARAMS = [\n    mi.Param("a", 1, mi.integer()),\n    mi.Param("b", "B", "help")]', 5,
     """mi.Param "b": converter is 'help'; write mi.string, mi.integer(), mi.boolean, """),
    ('PARAMS = [mi.Param("n", 5, mi.integer)]', 3, "converter is mi.integer; write it with parentheses: mi.integer(1, 9)"),
    ('PARAMS = [mi.Param("n", 5, lambda: 5)]', 3, "or a function of the text"),
    ('PARAMS = [mi.Param(1, 2)]', 3, "name is 1; write text"),
    ('PARAMS = [mi.Param(name, "") for name in (b"a",)]', 3, "name is b'a'; write text"),
    ('PARAMS = [mi.Param("a", "", advice="a")]', 3, "advice is 'a'; write a function"),
    ('STATS = [\n    mi.Stat("a", "A.", read=5)]', 4, 'mi.Stat "a": read is 5; write a function: lambda: FIGURE'),
    ('STATS = [mi.Stat("a", "A.", read=lambda a, b: 1)]', 3, "it is called as read() or read(ctx)"),
    ('STATS = [mi.Stat("a", "A.", read=lambda *, a=1: 1)]', 3, "it is called as read() or read(ctx)"),
    ('STATS = [mi.Stat("a", "A.", read=max)]', 3, "write a function"),
    ('STATS = [mi.Stat("a", "A.", dialect="json")]', 3, '"jsonrpc"'),
    ('STATS = [mi.Stat("a", "A.", resettable="no")]', 3, "write True or False"),
    ('EVENTS = [mi.Event("E_A", None)]', 3, "help is None"),
    ("def child_init():\n    pass", 3, "child_init, the name of a hook, gets ctx; write def child_init(ctx)"),
    ("def registered(ctx):\n    pass", 3, "write def registered(ctx, registry)"),
    ("cache = {}", 3, "cache, the name of a hook, is {}; write def cache(ctx, system)"),
    ("async def load(ctx):\n    pass", 3, "is an async def, which nobody awaits; write def load(ctx)"),
    ("X = 1\n\n@mi.every\ndef tick(ctx):\n    pass", 5, "@mi.every is written with its seconds: @mi.every(5)"),
    ('@mi.every("5")\ndef tick(ctx):\n    pass', 3, "@mi.every('5') takes a number of seconds above 0"),
    ("@mi.every(0)\ndef tick(ctx):\n    pass", 3, "@mi.every(0) takes a number of seconds above 0"),
    ("@mi.every(float('nan'))\ndef tick(ctx):\n    pass", 3, "takes a number of seconds above 0"),
    ("@mi.every(1)\ndef tick():\n    pass", 3, "a function of @mi.every gets ctx; write def tick(ctx)"),
    ("@mi.around\ndef lose(ctx):\n    pass", 3, "write def lose(ctx, request, proceed)"),
    ('@mi.around(["ps"])\ndef lose(ctx, request, proceed):\n    pass', 3, "takes names of commands"),
    ("@mi.around(cached=lambda ctx: 1)\ndef lose(ctx, request, proceed):\n    pass", 3, "write def note(ctx, trace)"),
    ("@mi.trace_destination\ndef mine():\n    pass", 3, "write def mine(ctx)"),
    ('@mi.command(x="int")\ndef f(ctx, x):\n    "F."', 3, "the converter of x is 'int'; write mi.string"),
    ('@mi.command(x=mi.one_of)\ndef f(ctx, *x):\n    "F."', 3, "the converter of x is mi.one_of; write it with parentheses"),
    ('@mi.command(replce=True)\ndef which(ctx):\n    "F."', 3, 'no option of @mi.command; did you mean "replace"?'),
    ('@mi.command(time=3)\ndef f(ctx):\n    "F."', 3, 'did you mean "timed"?'),
    ('@mi.command(inpt=False)\ndef f(ctx):\n    "F."', 3, '"input"?'),
    ('@mi.command(timed=3)\ndef f(ctx):\n    "F."', 3, 'command "f": timed is 3; write True or False'),
    ('@mi.command(5)\ndef f(ctx):\n    "F."', 3, "name is 5; write text"),
    ('@mi.command(help=5)\ndef f(ctx):\n    "F."', 3, "help is 5"),
    ('@mi.command(json={"a"})\ndef f(ctx):\n    "F."', 3, "write mi.JsonForm(...)"),
    ('import functools\n@mi.command\n@functools.lru_cache\ndef f(ctx):\n    "F."', 4, "stands right above a def"),
]
CANNED_MISTAKES = [
    ("[one]\ncode = many\n", 2, "code"), ("[one]\nreply = a\nrepyl = b\n", 3, 'did you mean "reply"?'), ("[one\n", 1, ""),
    ("[one]\narguments = '('\n", 2, "not a pattern"), ("[one]\ndelay = -1\n", 2, "delay"), ("top = 1\n[one]\n", 1, "top"),
    ("[one]\njson = '{'\n", 2, "not JSON"), ("[one]\n[one]\n", 2, "Duplicate"), ("[one]\nreply = x\nreply = y\n", 3, "Duplicate"),
    ("[one]\nreply = '''\nx\n", 2, ""), ("[one]\ndelay = 9..3\n", 2, "delay"), ("[one]\ntimes = 0\n", 2, "times"),
    ("[one]\ndialect = xml\n", 2, "dialect"), ("[ps]\nreply = x\n", 1, "is there already"),
    ("[ps]\nreply = x\n", 1, "replace = yes in a .conf, takes its place"),
]


@pytest.mark.parametrize("suffix, text, line, wanted", [("py", *row) for row in PYTHON_MISTAKES]
                         + [("conf", *row) for row in CANNED_MISTAKES])
def test_a_mistake_ends_the_start_with_file_and_line(tmp_path, suffix, text, line, wanted):
    path = tmp_path / f"bad.{suffix}"
    path.write_text(text)
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"midatagram: {path}:{line}: ") and wanted in done.stderr


@pytest.mark.parametrize("text, line, wanted", SHAPES)
def test_what_a_plug_in_declares_has_another_shape(tmp_path, text, line, wanted):
    path = tmp_path / "bad.py"
    path.write_text(f"import midatagram as mi\n\n{text}\n")
    with pytest.raises(mi.ConfigError, match=f"^{re.escape(f'{path}:{line}: ')}.*{re.escape(wanted)}"):
        mi.load_plugin(str(path))


@pytest.mark.parametrize("converter, value, place, raised", [
    ("def convert(value):\n    return value.nope", '"x"', ":3", "AttributeError: "), ("convert = len", "5", "", "TypeError: "),
    ("def convert(value):\n    raise SystemExit(0)", '"x"', ":3", "SystemExit: ")])
def test_a_converter_raises_something_else(tmp_path, converter, value, place, raised):
    """The line of the plug-in is named, if it has one there, and that of the parameter."""
    row = 'mi.Param("word", "", convert, "A word.")'
    (tmp_path / "bad.py").write_text(f"import midatagram as mi\n{converter}\nPARAMS = [{row}]\n")
    config = tmp_path / "test.conf"
    config.write_text(f'loadmodule "bad.so"\nmodparam("bad", "word", {value})\n')
    done = run("-c", "-f", config, "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    wanted = f"converter of word may raise ValueError only; for {config}:2 it raised {raised}"
    assert done.stderr.startswith(f"midatagram: {tmp_path}/bad.py{place}: {wanted}")


@pytest.mark.parametrize("lines, call, place", [
    (["one", "two"], 'ctx.refuse("word", "not that")', "{folder}/test.conf:3"),
    (["one", "two"], 'ctx.refuse("word", "not that", 0)', "{folder}/test.conf:2"),
    ([], 'ctx.refuse("word", "not that")', "{folder}/refuses.py"),
    ([], 'ctx.refuse("nosuch", "not that", 0)', "{folder}/refuses.py"),
])
def test_a_plugin_refuses_a_line_of_the_configuration(tmp_path, lines, call, place):
    """The last of its parameter's, or the nth; where it has none the file of the plug-in is named."""
    (tmp_path / "refuses.py").write_text(f"""
import midatagram as mi

PARAMS = [mi.Param("word", [], help="A word.", repeat=True)]

def init(ctx):
    {call}
""")
    (tmp_path / "test.conf").write_text('loadmodule "refuses.so"\n' + "".join(
        f'modparam("refuses", "word", "{word}")\n' for word in lines))
    done = run("-c", "-f", tmp_path / "test.conf", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert (done.returncode, done.stderr) == (78, f"midatagram: {place.format(folder=tmp_path)}: not that\n")


def test_canned_replies_are_sent_to_the_byte(start, tmp_path):
    (tmp_path / "lab.conf").write_bytes(b"""
[one]
help = "One of them."
arguments = 'a.*', '\\d+'
code = 202
reason = Accepted
reply = '''
name:: value  \n\t\tindented :: ::\n\xff\xc3\xa9 "quoted" 'single' % $x
'''
[two]
delay = 30
    [[first]]
    arguments = 'x'
    reply = x
    [[second]]
    arguments = '.', '.'
    reply = two of them
[three]
arguments = ,
[four]
reason = 50% of %s
    [[late]]
    arguments = 'late'
    delay = 1
    reason = 50% of %s
""")
    server = start('loadmodule "lab.so"', "-p", str(tmp_path))
    body = b"name:: value  \n\t\tindented :: ::\n\xff\xc3\xa9 \"quoted\" 'single' % $x\n"
    assert server.ask(b":one:\nabc\n17\n") == b"202 Accepted\n" + body + b"\n"
    assert server.ask(b":one:\nabc\nx\n") == b"400 Bad parameter\n\n"
    assert server.ask(b":one:\nabc\n") == b"400 Too few or too many arguments\n\n"
    assert server.ask(b":two:\nx\n") == b"200 OK\nx\n\n"
    assert server.ask(b":two:\nx\ny\n") == b"200 OK\ntwo of them\n\n"
    assert server.ask(b":three:\n") == b"200 OK\n\n"
    assert server.ask(b":three:\nx\n") == b"400 Too few or too many arguments\n\n"
    for request in (b":four:\nlate\n", b":four:\n"):
        assert server.ask(request) == b"200 50% of %s\n\n"
    assert server.ask(b":help:\none\n") == b"200 OK\nHelp:: one [ARGUMENTS...] - One of them.\nExported by:: lab\n\n"


def test_a_case_for_one_dialect_some_times_and_whole_datagrams(start, tmp_path):
    (tmp_path / "lab.conf").write_text(r"""
[turns]
    [[first]]
    times = 2
    delay = 1..2
    reply = first
    [[then]]
    reply = then
[both]
    [[one]]
    dialect = text
    raw = 'a\x00\xff\r\n\t\x5c${id}'
    [[other]]
    dialect = jsonrpc
    template = yes
    raw = '{"id":${id},"more":"$${id}"}'
""")
    server = start('modparam("mi_datagram", "children_count", 3)\nloadmodule "lab.so"', "-p", str(tmp_path))
    assert [server.ask(b":turns:\n") for _ in range(4)] == [b"200 OK\n%b\n\n" % word for word in
                                                          (b"first", b"first", b"then", b"then")]
    assert server.ask(b":both:\n") == b"a\0\xff\r\n\t\\${id}"
    for request_id in (b"7", b'"x"', b"null"):
        request = b'{"jsonrpc":"2.0","method":"both","id":%b}' % request_id
        assert server.ask(request) == b'{"id":%b,"more":"${id}"}' % request_id
    assert server.ask(b'{"jsonrpc":"2.0","method":"both"}', timeout_s=0.3) is None


def test_a_canned_reply_stands_in_for_a_command_and_takes_arrays_as_their_items(start, tmp_path):
    (tmp_path / "lab.conf").write_text("[get_statistics]\nreplace = yes\narguments = 'core:', 'x'\nreply = canned\n"
                                       "[ps]\nreplace = yes\nreply = none\n")
    for order in ("hello lab", "lab hello"):
        server = start("".join(f'loadmodule "{name}.so"\n' for name in order.split()), "-p", str(tmp_path))
        assert server.ask(b":get_statistics:\ncore:\nx\n") == b"200 OK\ncanned\n\n"
        assert server.ask(b":ps:\n") == b"200 OK\nnone\n\n"
        for params in (b'[["core:","x"]]', b'{"statistics":["core:","x"]}', b'["core:","x"]'):
            request = b'{"jsonrpc":"2.0","method":"get_statistics","params":%b,"id":1}' % params
            assert server.ask(request) == b'{"jsonrpc":"2.0","result":["canned"],"id":1}'


ODD = '''
import midatagram as mi

@mi.command
def raises(ctx):
    "Raise."
    return 1 / 0

@mi.command
def nothing(ctx):
    "Return nothing, which a check cannot see."
    return None if ctx else mi.Reply()

@mi.command
def unwritable(ctx):
    "Return what cannot be written."
    return mi.Reply(200, "OK", [("too", "short")])

@mi.command
def surrogate(ctx):
    "Return what is no text."
    return mi.Reply(200, "OK", [mi.Node("x", chr(0xD800))])

@mi.command(number=mi.integer(1, 9))
def checked(ctx, number, text="x"):
    "Check."
    return mi.Reply(200, f"{number} {text}")
'''


def test_what_a_handler_does_wrong_costs_one_reply(start, tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    server = start('loadmodule "odd.so"', "-p", str(tmp_path))
    for command in ("raises", "nothing", "unwritable", "surrogate"):
        assert server.ask(f":{command}:\n".encode()) == b"500 command failed\n"
    server.wait_log("ZeroDivisionError")
    server.wait_log("command nothing failed: its handler returned nothing")
    server.wait_log("gave a reply that cannot be written", times=2)
    assert server.statistic("errors") == 4
    assert server.ask(b":checked:\n7\n") == b"200 7 x\n\n"
    assert server.ask(b":checked:\n10\n") == b"400 Bad parameter\n\n"
    assert server.ask(b":checked:\nx::\n") == b"400 Bad parameter\n\n"
    assert server.ask(b":checked:\n") == server.ask(b":checked:\n1\n2\n3\n") == b"400 Too few or too many arguments\n\n"
    server.stop(tracebacks=True)


ANYTHING = '''
import gevent

import midatagram as mi

@mi.command
def raises(ctx, what):
    "Raise one of those that are no Exception, or one that is rare."
    if what == "Timeout":
        with gevent.Timeout(0.01):
            gevent.sleep(5)
    elif what == "killed":
        greenlet = gevent.spawn(gevent.sleep, 5)
        gevent.spawn_later(0.01, greenlet.kill)
        return greenlet
    elif what == "recursion":
        return raises(ctx, what)
    raise {"exit": SystemExit(3), "GreenletExit": gevent.GreenletExit(), "memory": MemoryError()}[what]

VALUES = iter([(1,), (2,)])

@mi.command
def breaks(ctx):
    "Break where a kept reply is filled with its values, from the third time on."
    return mi.Reply(nodes=[mi.Node("n", mi.LIVE)], live=lambda: next(VALUES))
'''


def test_a_handler_may_raise_anything(start, tmp_path):
    """More often than there are workers, and nobody else notices."""
    (tmp_path / "anything.py").write_text(ANYTHING)
    server = start('modparam("midatagram", "pool_size", 3)\nloadmodule "anything.so"', "-p", str(tmp_path))
    child = server.children()
    for what in ("Timeout", "killed", "recursion", "exit", "GreenletExit", "memory"):
        for _ in range(4):
            assert server.ask(f":raises:\n{what}\n".encode(), 2) == b"500 command failed\n", what
    assert server.children() == child
    assert server.statistic("errors") == 6 * 4
    server.stop(tracebacks=True)


JOBS = '''
import os

import midatagram as mi

PARAMS = [mi.Param("path", "", mi.string, "where work is written down")]

def write(ctx, where):
    with open(ctx.param("path"), "a") as file:
        file.write(f"{where} {os.getpid()}\\n")

@mi.every(0.02)
def in_each(ctx):
    write(ctx, "each")

@mi.every(0.02, where="one")
def in_one(ctx):
    write(ctx, "one")

@mi.every(0.02, where="one")
def fails(ctx):
    raise OSError("not today")
'''


def test_background_work_runs_in_each_child_or_in_one(start, tmp_path):
    """Again and again, whatever it raises; when the one dies, in its successor."""
    (tmp_path / "jobs.py").write_text(JOBS)
    path = tmp_path / "work"
    server = start(f'modparam("mi_datagram", "children_count", 3)\nloadmodule "jobs.so"\nmodparam("jobs", "path", "{path}")\n',
                   "-p", str(tmp_path))

    def times(where):
        lines = path.read_text().splitlines() if path.exists() else []
        return collections.Counter(int(line.split()[1]) for line in lines if line.startswith(where))

    def all_work():
        return len(server.children()) == 3 and all(times("each")[child] > 5 for child in server.children())
    wait_for(all_work, what="each child to work")
    [(one, count)] = times("one").items()
    assert one in server.children() and count > 2
    os.kill(one, signal.SIGKILL)
    wait_for(lambda: one not in server.children() and all_work(), what="its successor to work")
    [other] = set(times("one")) - {one}
    assert other in server.children()
    server.wait_log("fails raised", times=3)  # a child logs the same line once in five seconds
    server.stop(tracebacks=True)


def test_a_plugin_may_have_dataclasses(start, tmp_path):
    """With annotations as they are and as text; they are looked up in the plug-in's own module."""
    source = """
from dataclasses import dataclass
import sys

import midatagram as mi

@dataclass
class Point:
    x: int = 1
    y: "int" = 2

@mi.command
def point(ctx):
    "Show a point."
    return mi.Reply(nodes=[mi.Node(Point.__annotations__["x"].__name__ if NAME == "one" else "text", Point().y)])
"""
    (tmp_path / "one.py").write_text(source + "NAME = 'one'\n")
    (tmp_path / "json.py").write_text("from __future__ import annotations\n" + source.replace("point(", "dot(") + "NAME = ''\n")
    server = start('loadmodule "one.so"\nloadmodule "json.so"', "-p", str(tmp_path))  # and json stays what it is
    assert server.ask(b":point:\n") == b"200 OK\nint:: 2\n\n"
    assert server.ask(b":dot:\n") == b"200 OK\ntext:: 2\n\n"
    assert server.ask(b'{"jsonrpc":"2.0","method":"dot","id":1}') == b'{"jsonrpc":"2.0","result":{"text":2},"id":1}'


def test_a_handler_that_returns_no_reply(start, tmp_path):
    (tmp_path / "words.py").write_text('import midatagram as mi\n@mi.command\ndef words(ctx):\n    "W."\n    return "words"\n')
    server = start('loadmodule "words.so"', "-p", str(tmp_path))
    assert server.ask(b":words:\n") == b"500 command failed\n"
    server.wait_log("command words failed: its handler returned str, which is no midatagram.Reply")


def test_a_kept_reply_whose_values_fail(start, tmp_path):
    (tmp_path / "anything.py").write_text(ANYTHING)
    server = start('loadmodule "anything.so"', "-p", str(tmp_path))
    found = [server.ask(b":breaks:\n", 1) for _ in range(4)]
    assert found == [b"200 OK\nn:: 1\n\n", b"200 OK\nn:: 2\n\n", b"500 command failed\n", b"500 command failed\n"]
    server.stop(tracebacks=True)


def test_a_statistic_that_cannot_be_read(start, tmp_path):
    (tmp_path / "odd_stat.py").write_text(
        "import midatagram as mi\nSTATS = [mi.Stat('good', 'G.'), mi.Stat('bad', 'B.', read=lambda: 1 // 0)]\n")
    server = start('loadmodule "odd_stat.so"', "-p", str(tmp_path))
    for _ in range(4):
        assert server.ask(b":get_statistics:\nodd_stat:\n", 2) == b"500 command failed\n"
    assert server.ask(b":get_statistics:\ngood\n") == b"200 OK\nodd_stat:good:: 0\n\n"
    server.stop(tracebacks=True)


TOGETHER = """
import midatagram as mi
figures, calls = {"in": 5, "out": 7}, []

def read():
    calls.append(None)
    figures["in"] += 1
    return figures

def number():
    calls.append(None)
    return len(calls)

STATS = [mi.Stat("in", "I.", read=read), mi.Stat("out", "O.", read=read), mi.Stat("gone", "G.", read=read),
         mi.Stat("calls", "C.", read=number), mi.Stat("again", "A.", read=number), mi.Stat("counted", "C.")]
"""


def test_statistics_with_one_function_are_read_together(start, tmp_path):
    (tmp_path / "together.py").write_text(TOGETHER)
    server = start('loadmodule "together.so"', "-p", str(tmp_path))
    for turn in range(1, 5):
        assert server.ask(b":get_statistics:\nout\nin\ncounted\nagain\ncalls\n").decode() == (
            f"200 OK\ntogether:out:: 7\ntogether:in:: {5 + turn}\ntogether:counted:: 0\n"
            f"together:again:: {2 * turn}\ntogether:calls:: {2 * turn}\n\n")
    assert server.ask(b":get_statistics:\ngone\n") == b"500 command failed\n"
    server.stop(tracebacks=True)


def test_kinds_of_statistics(start, tmp_path):
    """A counter that can be reset is incremental; a level and a figure that is read are not, and stay as they are."""
    (tmp_path / "kinds.py").write_text("""
import midatagram as mi

STATS = [mi.Stat("counter", "C."), mi.Stat("level", "L.", resettable=False), mi.Stat("figure", "F.", read=lambda: 7),
         mi.Stat("other", "O.", group="Others")]

@mi.command
def add(ctx):
    "Add 1 and 2."
    ctx.count("counter")
    ctx.count("level", 2)
    return mi.Reply()
""")
    server = start('loadmodule "kinds.so"', "-p", str(tmp_path))
    assert server.ask(b":list_statistics:\nkinds:\nothers:\n") == (
        b"200 OK\nkinds:counter:: incremental\nkinds:level:: non-incremental\nkinds:figure:: non-incremental\n"
        b"Others:other:: incremental\n\n")
    server.ask(b":add:\n")
    for reset, values in ((b"other", (1, 2, 7)), (b"counter\nlevel\nfigure", (0, 2, 7))):
        assert server.ask(b":reset_statistics:\n%s\n" % reset) == b"200 OK\n\n"
        assert server.ask(b":get_statistics:\nKINDS:\n") == (
            b"200 OK\nkinds:counter:: %d\nkinds:level:: %d\nkinds:figure:: %d\n\n" % values)


@pytest.mark.parametrize("file", ["{0}/mine/mine.so", "mine/mine.so", "mine.so", "{0}/mine/mine.conf"])
def test_a_module_in_a_folder(start, tmp_path, file):
    """loadmodule takes a path, a path below the plug-in folders, and the name of a folder with a plug-in of that name."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.conf").write_text("[mine]\nreply = here\n")
    if file.endswith(".conf"):  # that file is meant, no other
        (tmp_path / "mine" / "mine.py").write_text("no Python\n")
    server = start(f'loadmodule "{file.format(tmp_path)}"', "-p", str(tmp_path))
    assert server.ask(b":mine:\n") == b"200 OK\nhere\n\n"


def test_rows_give_a_module():
    module = mi.load_plugin(str(PLUGINS / "mi_echo.py"))
    assert module.name == "mi_echo" and [command.name for command in module.commands][:3] == ["echo", "count", "tree"]


def test_all_names_each_name_once():
    assert [name for name, count in collections.Counter(mi.__all__).items() if count > 1] == []


def test_plugins_use_what_all_names():
    """Our own plug-ins and those of the tests and of the bench are written against `__all__` alone."""
    for folder in ("plugins", "tests/plugins", "bench/plugins"):
        for path in (ROOT / folder).glob("*.py"):
            assert set(re.findall(r"\bmi\.(\w+)", path.read_text())) <= set(mi.__all__), path
    assert all(hasattr(mi, name) for name in mi.__all__)
    assert mi.ask is mi.ask  # which a handler uses again and again
