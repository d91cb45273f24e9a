"""Plug-ins in both forms: what is wrong with one ends the start with its file and line; what it raises does not end a child."""

import pytest
from conftest import PLUGINS, run

import midatagram as mi

PYTHON_MISTAKES = [
    ("import midatagram as mi\ndef f(:\n", 2, "syntax error"), ("x = 1\nx.y\n", 2, "AttributeError"),
    ("raise SystemExit(3)\n", 1, "SystemExit"), ("PARAMS = [1]\n", 1, "PARAMS is a list of midatagram.Param rows"),
    ("import midatagram as mi\n\n\n@mi.command\ndef f(ctx):\n    return mi.Reply()\n", 4, "needs a docstring"),
    ('import midatagram as mi\n@mi.command(nam=mi.string)\ndef f(ctx, name):\n    "F."\n', 2, 'did you mean "name"?'),
    ('import midatagram as mi\n@mi.command\ndef f(ctx, *, key):\n    "F."\n', 2, "takes a context"),
    ('import midatagram as mi\n@mi.command("ps")\ndef f(ctx):\n    "F."\n', 2, "is there already"),
    ('import midatagram as mi\nSTATS = [mi.Stat("a", "A."), mi.Stat("a", "B.")]\n', 2, 'names "a" twice'),
    ("import midatagram as mi\ndef init(ctx):\n    raise ValueError('no')\n", 3, "init: ValueError: no"),
]
CANNED_MISTAKES = [
    ("[one]\ncode = many\n", 2, "code"), ("[one]\nreply = a\nrepyl = b\n", 3, 'did you mean "reply"?'), ("[one\n", 1, ""),
    ("[one]\narguments = '('\n", 2, "not a pattern"), ("[one]\ndelay = -1\n", 2, "delay"), ("top = 1\n[one]\n", 1, "top"),
    ("[one]\njson = '{'\n", 2, "not JSON"),
]


@pytest.mark.parametrize("suffix, text, line, wanted", [("py", *row) for row in PYTHON_MISTAKES]
                         + [("conf", *row) for row in CANNED_MISTAKES])
def test_a_mistake_ends_the_start_with_file_and_line(tmp_path, suffix, text, line, wanted):
    path = tmp_path / f"bad.{suffix}"
    path.write_text(text)
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"midatagram: {path}:{line}: ") and wanted in done.stderr


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
    assert server.ask(b":help:\none\n") == b"200 OK\nHelp:: one [ARGUMENTS...] - One of them.\nExported by:: lab\n\n"


ODD = '''
import midatagram as mi

@mi.command
def raises(ctx):
    "Raise."
    return 1 / 0

@mi.command
def nothing(ctx):
    "Return nothing."

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


def test_a_conf_and_a_py_of_one_name_and_a_module_in_a_folder(start, tmp_path):
    """loadmodule with a path takes that file's folder first."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.conf").write_text("[mine]\nreply = here\n")
    server = start(f'loadmodule "{tmp_path}/deep/mine.so"')
    assert server.ask(b":mine:\n") == b"200 OK\nhere\n\n"


def test_rows_give_a_module():
    module = mi.load_plugin(str(PLUGINS / "mi_echo.py"))
    assert module.name == "mi_echo" and [command.name for command in module.commands][:3] == ["echo", "count", "tree"]
