"""Logging: one line is one line, whatever it holds; strangers fill no log; nothing waits for who reads it; root opens no link."""

import contextlib
import logging
import os
import pathlib
import re
import shutil
import socket
import sys
import tempfile
import threading

import pytest
from conftest import ROOT, needs_root, wait_for
from hypothesis import given
from hypothesis import strategies as some
from test_operations import JOURNAL, SYSLOG, needs_mount_namespaces

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))

NOBODY, DAEMON = 65534, 1
LINE = re.compile(r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \[\d+\] [A-Z]+:midatagram(\.\w+)?: |  ")
UPTIME = b":uptime:\n"
FORGED = "\n<4>Nov 26 00:00:00 [1] ERROR:midatagram: forged\r\x1b[2J\x85"


def own(name, value):
    """A modparam line of midatagram."""
    return f'modparam("midatagram", "{name}", "{value}")\n'


@pytest.fixture
def folder():
    """A short path to a folder of root's that every user can enter."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="mi-", dir="/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def record(message, *arguments, level=logging.WARNING, line=1, raised=None, **extra):
    """What a call of a logger makes."""
    made = logging.LogRecord("midatagram", level, "x.py", line, message, arguments, raised)
    vars(made).update(extra)
    return made


# Lines


@pytest.mark.parametrize("text, wanted", [
    ("Grüße, 日本 \\n", "Grüße, 日本 \\n"), ("a\nb\r", r"a\nb\r"), ("\t\0\x1b[2J\x7f", r"\t\x00\x1b[2J\x7f"),
    ("\x85\x9b", r"\x85\x9b"), ("\u2028\u2029", r"\u2028\u2029"), ("\u202e\u2066\u200f\ufeff", r"\u202e\u2066\u200f\ufeff"),
    (mi.decode(b"\xff\xc3\xbc"), r"\xffü"), ("\ud800", r"\ud800"), ("\U000e0001", r"\U000e0001"),
])
def test_what_is_not_printable_is_escaped(text, wanted):
    assert mi.escaped(text) == wanted


@given(some.text(some.characters()), some.booleans(), some.booleans())
def test_any_text_is_one_printable_line(text, dated, journal):
    written = mi.LineFormatter(dated, journal).format(record("%s", text))
    assert written.isprintable() and len(written.encode()) <= mi.LINE + 3


def raised_with(make):
    """sys.exc_info() of an exception that was raised and caught."""
    try:
        raise make()
    except BaseException:
        return sys.exc_info()


class Noted(Exception):
    """An exception with a note, as Python 3.11 has them."""

    __notes__ = [f"note{FORGED}"]


@pytest.mark.parametrize("make", [
    lambda: ValueError(FORGED), lambda: Noted("x"), lambda: type(f"Odd{FORGED}", (Exception,), {})("x"),
    lambda: SyntaxError("bad", (f"file{FORGED}", 1, 1, f"text{FORGED}")), lambda: KeyError("\u2028"),
])
@pytest.mark.parametrize("journal", [False, True])
def test_the_lines_of_a_traceback_pass_for_no_other_line(make, journal):
    first, *others = mi.LineFormatter(False, journal).format(record("it raised", raised=raised_with(make))).split("\n")
    assert first.endswith("it raised") and "Traceback" in others[0] and "    raise make()" in others[2]
    assert all(line.startswith("<4>  " if journal else "  ") and line.isprintable() for line in others)


def test_the_text_of_an_exception_is_one_line():
    lines = mi.LineFormatter(False, False).format(record("x", raised=raised_with(lambda: ValueError("a\nb")))).split("\n")
    assert lines[-1] == r"  ValueError: a\nb"


def test_a_long_line_is_cut(start):
    server = start("", "-d")
    server.ask(b":which:\n" + b"x" * 60000)
    line = next(line for line in server.log.splitlines() if "xxx" in line)
    assert line.endswith("...") and len(line) == mi.LINE


ODD = '''
"""odd -- fails with the words of who asks."""

import midatagram as mi

EVENTS = [mi.Event("E_ODD", "one")]


@mi.command
def odd(ctx, text):
    """Log it, then raise it."""
    ctx.log.warning("odd " + text)
    raise ValueError(text)


@mi.command
def fails(ctx, text):
    """Fail with it."""
    raise mi.Failed(text)
'''


def syslog_lines(folder, start, *arguments):
    """A server that logs to a socket of ours instead of syslog's, and a function that gives what came there."""
    needs_root()
    needs_mount_namespaces()
    syslog = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    syslog.bind(f"{folder}/log")
    lines = []

    def read():
        with contextlib.suppress(OSError):
            while True:
                lines.append(syslog.recv(1 << 16).decode())
    threading.Thread(target=read, daemon=True).start()
    server = start("log_stderror=no\n" + arguments[0], *arguments[1:], ready=False,
                   wrapper=["unshare", "-m", "sh", "-c", SYSLOG, "sh", str(folder)])
    wait_for(lambda: any("ready:" in line for line in lines), what="the server")
    return server, lambda: [line for text in lines for line in text.rstrip("\0").split("\n")]


@pytest.mark.parametrize("sink", ["stderr", "journal", "file", "syslog"])
def test_clients_forge_no_line(start, folder, sink):
    """By their paths, abstract names, arguments, events, targets of events; each marks the line it is in."""
    (folder / "odd.py").write_text(ODD)
    text = 'loadmodule "odd.so"\n' + own("allow_command", "version: uid:12345")
    arguments, path = ("-p", str(folder)), f"{folder}/mi.log"
    if sink == "syslog":
        server, lines = syslog_lines(folder, start, text, *arguments)
    elif sink == "file":
        server = start(text + own("log_file", path), *arguments, ready=False)
        wait_for(lambda: os.path.exists(path) and "ready:" in pathlib.Path(path).read_text(), what="the server")
        lines = lambda: pathlib.Path(path).read_text().split("\n")[:-1]  # noqa: E731
    else:
        server = start(text, *arguments, wrapper=[sys.executable, "-c", JOURNAL % 0] if sink == "journal" else ())
        lines = lambda: server.log.split("\n")[:-1]  # noqa: E731
    for name in (f"{folder}/c{FORGED}"[:107], f"\0c{FORGED}"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            client.bind(name)
            client.sendto(b":version:\n", server.place)
            client.settimeout(5)
            assert client.recv(99) == b"403 Forbidden\n\n"
    quoted = FORGED.encode().replace(b"\r", b"")
    assert server.ask(b':odd:\n"%b"\n' % quoted) == b"500 command failed\n"
    assert server.ask(b':fails:\n"%b"\n' % quoted) == b"500 command failed\n"
    assert server.ask(b':event_subscribe:\nE_ODD\nunix:"%b"\n' % quoted) is not None
    target = f"unix:/absent{FORGED}".encode().replace(b"\r", b"")
    assert server.ask(b':event_subscribe:\nE_ODD\n"%b"\n' % target).startswith(b"200 OK")
    server.ask(b":raise_event:\nE_ODD\n")
    server.stop(tracebacks=True)
    if sink == "syslog":
        wait_for(lambda: any("stopping" in line for line in lines()), what="the last line")
    marks = ("audit: command version refused to /", "audit: command version refused to @c", "odd \\n<4>Nov", "odd raised",
             "ValueError: \\n<4>Nov", "fails failed: \\n<4>Nov", "E_ODD not sent to unix:/absent\\n<4>Nov")
    assert [mark for mark in marks if not any(mark in line for line in lines())] == []
    starts = {"journal": r"<\d>(\[\d+\] |  )", "syslog": r"<\d+>midatagram: \[\d+\] |  "}.get(sink, LINE.pattern)
    assert all(re.match(starts, line) and line.isprintable() for line in lines()), lines()
    assert not any(line.lstrip("<0123456789>").startswith(("Nov 26 00:00:00", "[1]")) for line in lines())
