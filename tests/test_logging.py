"""Logging: one line is one line, whatever it holds; strangers fill no log; nothing waits for who reads it; root opens no link."""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import threading
import tracemalloc

import pytest
from conftest import PLUGINS, ROOT, Server, free_port, needs, needs_root, readable_python, run, wait_for
from hypothesis import given
from hypothesis import strategies as some
from test_operations import JOURNAL, SYSLOG, needs_mount_namespaces
from traces import FakeContext

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import trace_file

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
    server.wait_log("xxx...\n")
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


LOOSE = '''
"""loose -- starts a greenlet that fails."""

import gevent


def fail():
    raise ValueError("loose")


def child_init(ctx):
    gevent.spawn(fail)
'''


def test_a_greenlet_that_fails_is_logged(start, tmp_path):
    (tmp_path / "loose.py").write_text(LOOSE)
    server = start('loadmodule "loose.so"\n', "-p", str(tmp_path))
    server.wait_log("ValueError: loose")
    server.stop(tracebacks=True)
    assert all(LINE.match(line) for line in server.lines), server.log


# Limits


def test_of_each_kind_so_many_lines_are_logged():
    limit = mi.LineLimit()
    limit.over()
    logged = [limit.allows(record("client %s", number, line=line)) for line in (1, 2) for number in range(100)]
    assert logged == ([True] * mi.LINES + [False] * (100 - mi.LINES)) * 2
    limit.ends_s = 0.0
    assert [line.getMessage() for line in limit.over()] == [f"... {100 - mi.LINES} more such lines left out: client %s"] * 2
    assert limit.allows(record("client %s", 101))
    limit.ends_s = 0.0
    assert limit.over() == []


def test_lines_about_the_same_are_counted():
    limit = mi.LineLimit()
    limit.over()
    logged = [limit.allows(record("%s is refused", port, about=0)) for port in range(9)]
    assert logged == [True] * mi.EACH + [False] * (9 - mi.EACH)
    assert limit.allows(record("%s is refused", 9, about=1))
    assert limit.allows(record("it failed", line=2)) and not limit.allows(record("it failed", line=2))
    assert limit.allows(record("it failed", line=2, raised=raised_with(KeyError)))
    assert not limit.allows(record("it failed", line=2, raised=raised_with(KeyError)))
    assert limit.allows(record("it failed", line=2, raised=raised_with(ValueError)))
    limit.ends_s = 0.0
    assert [line.args[0] for line in limit.over()] == [9 - mi.EACH, 2]
    assert limit.allows(record("%s is refused", 1, about=0))


def test_what_is_logged_once_is_forgotten_oldest_first():
    limit = mi.LineLimit()

    def logged(client):
        limit.ends_s = 0.0
        assert limit.over() == []
        return limit.allows(record("client %s", client, once=client))

    assert all(logged(client) for client in range(mi.ONCE))
    assert not any(logged(client) for client in range(mi.ONCE))
    assert logged("one more") and logged(0) and logged(1)
    assert not any(logged(client) for client in range(3, mi.ONCE))


def test_lines_for_debugging_are_limited_where_the_operator_did_not_ask_for_them():
    for debugging in (True, False):
        limit = mi.LineLimit(debugging)
        assert [limit.allows(record("asked", level=logging.DEBUG)) for _ in range(1000)] == [True] + [debugging] * 999


def test_what_is_remembered_of_lines_is_bounded_in_bytes():
    limit = mi.LineLimit()
    tracemalloc.start()
    for number in range(20000):
        limit.ends_s *= number % 10 != 0
        limit.over()
        path = f"{number}".ljust(10000, "x")
        assert limit.allows(record("client %s", path, once=path)) == limit.allows(record(path, line=2))
    size_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size_bytes < 1 << 20


def left_out(log, text):
    """How many lines of a kind the log says were left out."""
    return sum(int(number) for number in re.findall(rf"\.\.\. (\d+) more such lines left out: {text}", log))


def ask_from(hosts, port, server, statistic):
    """Send a request from an address of loopback each, from a socket of its own; wait until the server has counted them."""
    for number, host in enumerate(hosts, 1):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind((host, 0))
            client.sendto(UPTIME, ("127.0.0.1", port))
        if number % 100 == 0:  # so many the kernel's queue holds
            wait_for(lambda number=number: server.statistic(statistic) == number, what="all of them")


def test_hosts_that_allow_from_refuses_do_not_fill_the_log(start):
    """As with spoofed sources; none is lost from the count."""
    port = free_port()
    server = start(own("listen", f"udp:127.0.0.1:{port}") + own("allow_from", "10.0.0.0/8"))
    ask_from([f"127.9.{number >> 8}.{number & 255}" for number in range(3000)], port, server, "refused")
    server.stop()
    logged = server.log.count("refused by allow_from\n") - server.log.count("left out: ")
    assert logged + left_out(server.log, "datagrams from %s are refused by allow_from") == 3000
    assert mi.LINES <= logged <= 4 * mi.LINES, "a few periods at most"


def test_refused_commands_of_one_client_are_counted_and_those_of_another_are_logged(start):
    """One that asks from many sockets is one client."""
    port = free_port()
    server = start(own("listen", f"udp:127.0.0.1:{port}") + own("allow_command", "uptime: 127.0.0.99"))
    ask_from(["127.0.0.2"] * 300 + ["127.0.0.3"] * 300, port, server, "forbidden")
    server.wait_log("left out", mi.PERIOD_S + 5)
    server.stop()
    logged = len(re.findall(r"audit: command uptime refused to 127", server.log))
    assert "(127.0.0.2)" in server.log and "(127.0.0.3)" in server.log
    assert logged + left_out(server.log, "audit: command %s refused") == 600 and 2 * mi.EACH <= logged <= 6 * mi.EACH


def test_refused_commands_of_one_user_are_counted(start):
    server = start(own("allow_command", "uptime: 127.0.0.99"))
    for _ in range(50):  # another path each time
        server.ask(UPTIME)
    server.stop()
    assert server.log.count(f" uid {os.getuid()} ") + left_out(server.log, "audit:") == 50
    assert server.log.count(f" uid {os.getuid()} ") <= 2 * mi.EACH


def test_exceptions_of_one_command_are_counted(start):
    server = start('loadmodule "mi_trouble.so"\n', "-p", str(PLUGINS))
    client = server.client()
    for _ in range(200):
        assert client.ask(b":stumble:\n") == b"500 command failed\n"
    server.stop(tracebacks=True)
    tracebacks = server.log.count("Traceback")
    assert tracebacks <= 3 and tracebacks + left_out(server.log, "command %s raised") == 200


def test_events_that_cannot_be_sent_do_not_fill_the_log(start):
    server = start()
    for number in range(60):
        server.ask(f":event_subscribe:\nE_MI_RELOAD\nunix:/absent/{number}\n".encode())
    for _ in range(5):
        server.ask(b":raise_event:\nE_MI_RELOAD\n")
    wait_for(lambda: server.statistic("events_lost") == 300, what="all of them to be lost")  # they are sent in slices
    server.stop()
    logged = server.log.count("not sent to unix:/absent/")
    assert mi.LINES <= logged <= 3 * mi.LINES
    assert logged + left_out(server.log, "event %s not sent to") == 60  # once about each subscriber


# Nothing waits


class Sink:
    """What a server logs to: a descriptor, or a socket, that nobody reads until read() is called."""

    def __init__(self, kind):
        self.master = None
        if kind == "pipe":
            self.read_end, self.write_end = os.pipe()
        elif kind == "socket":
            self.pair = socket.socketpair()
            self.read_end, self.write_end = (sock.fileno() for sock in self.pair)
        else:
            self.read_end, self.write_end = os.openpty()
            modes = termios.tcgetattr(self.write_end)
            modes[1] &= ~termios.OPOST
            termios.tcsetattr(self.write_end, termios.TCSANOW, modes)
            if kind == "stopped terminal":
                termios.tcflow(self.write_end, termios.TCOOFF)  # as ^S does

    def read(self):
        """Read it from now on; gives a list that gets longer."""
        got = []
        with contextlib.suppress(termios.error):
            termios.tcflow(self.write_end, termios.TCOON)

        def work():
            with contextlib.suppress(OSError):
                while data := os.read(self.read_end, 4096):
                    got.append(data)
        threading.Thread(target=work, daemon=True).start()
        return got


def redirected(descriptor, *words):
    """The words that start a server with its stderr there."""
    return [sys.executable, "-c", "import os, sys; os.dup2(int(sys.argv[1]), 2); os.execv(sys.argv[2], sys.argv[2:])",
            str(descriptor), *words]


def is_there(pid):
    """Whether a process lives."""
    return os.path.exists(f"/proc/{pid}")


def fill(server):
    """Ask until log lines are lost; each request must be answered all the same, and the attendant, which logs too, reload."""
    client, reloads = server.client(), server.statistic("reloads")

    def ask_until_lost():
        lost = server.statistic("log_lost") + 50
        wait_for(lambda: client.ask(b":echo_nothing:\n" + b"x" * 2000, 5) == b"500 command not available\n"
                 and server.statistic("log_lost") > lost, 60, "the log to be full")
    ask_until_lost()
    old = set(server.children())
    server.signal(signal.SIGHUP)
    wait_for(lambda: server.statistic("reloads") == reloads + 1, what="the attendant to reload")
    wait_for(lambda: len(server.children()) == len(old) and old.isdisjoint(server.children()), what="new children")
    wait_for(lambda: not any(map(is_there, old)), what="the end of the old children")
    ask_until_lost()  # by new children


def is_whole(text):
    """Whether the lines are those that the server wrote, none torn and none in another one."""
    lines = text.split("\n")
    return all(LINE.match(line) and len(re.findall(r":midatagram: ", line)) == 1 for line in lines[:-1])


@pytest.mark.parametrize("kind", ["pipe", "socket", "stopped terminal", "terminal"])
def test_a_stderr_that_nobody_reads_holds_nothing_up(start, kind):
    sink = Sink(kind)
    server = start('modparam("mi_datagram", "children_count", 2)\n', "-d", wrapper=redirected(sink.write_end),
                   pass_fds=[sink.write_end], ready=False)
    wait_for(lambda: os.path.exists(server.place), what="the socket")
    fill(server)
    assert not fcntl.fcntl(sink.write_end, fcntl.F_GETFL) & os.O_NONBLOCK, "others have it open too"
    got = sink.read()
    # The attendant and each child say how many lines of theirs were lost.
    wait_for(lambda: len(set(re.findall(rb"\[(\d+)\] WARNING:midatagram: \d+ lines of log were lost", b"".join(got)))) >= 2,
             what="what was lost")
    wait_for(lambda: server.ask(UPTIME) and b":uptime:" in b"".join(got), what="lines as before")
    server.stop()
    wait_for(lambda: b"stopping" in b"".join(got), what="the last line")
    if kind != "terminal":  # one that is stuck may take a part of a line
        assert is_whole(b"".join(got).decode()), b"".join(got)[-20000:]


def test_each_line_that_is_lost_is_counted(start, tmp_path):
    """From the first one on, and to the last one of a child."""
    (tmp_path / "last.py").write_text("def destroy(ctx):\n    ctx.log.warning('the last words')\n")
    sink = Sink("pipe")
    own_end = os.open(f"/proc/self/fd/{sink.write_end}", os.O_WRONLY | os.O_NONBLOCK)
    with contextlib.suppress(BlockingIOError):
        while os.write(own_end, b"x" * 4096):
            pass
    os.close(own_end)
    server = start('loadmodule "last.so"\n', "-p", str(tmp_path), wrapper=redirected(sink.write_end),
                   pass_fds=[sink.write_end], ready=False)
    wait_for(lambda: os.path.exists(server.place) and server.statistic("log_lost") == 1, what="the line that it is ready")
    server.signal(signal.SIGHUP)
    wait_for(lambda: server.statistic("log_lost") == 4, what="that it has reloaded, is ready, and the child's last words")
    got = sink.read()
    server.signal(signal.SIGHUP)
    wait_for(lambda: b" lines of log were lost\n" in b"".join(got), what="what was lost")


def test_a_pipe_of_another_user_holds_nothing_up(folder):
    """As from a supervisor of root's; such a pipe cannot be opened anew."""
    needs_root()
    sink = Sink("pipe")
    words = [needs("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *readable_python()]
    server = Server(folder, 'modparam("mi_datagram", "children_count", 2)\n', "-d", place=f"udp:127.0.0.1:{free_port()}",
                    wrapper=redirected(sink.write_end, *words), pass_fds=[sink.write_end], ready=False)
    with contextlib.closing(server):
        wait_for(lambda: server.ask(UPTIME, 0.1), what="an answer")
        fill(server)
        got = sink.read()
        wait_for(lambda: server.ask(UPTIME) and b"lines of log were lost" in b"".join(got), what="what was lost")
        server.stop()
        assert is_whole(b"".join(got).decode())


def test_a_fifo_as_log_file_holds_nothing_up(start, tmp_path):
    """Neither without a reader, nor with one that does not read, nor when that goes and another one comes."""
    os.mkfifo(tmp_path / "fifo")
    server = start(own("log_file", tmp_path / "fifo"), "-d", ready=False)
    wait_for(lambda: os.path.exists(server.place), what="the socket")
    fill(server)
    for _ in range(2):
        with open(tmp_path / "fifo", "rb", buffering=0) as reader:
            wait_for(lambda: server.ask(UPTIME) and b"lines of log were lost" in reader.read(1 << 16), what="what was lost")
        fill(server)
    server.stop()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_syslog_daemon_that_hangs_holds_nothing_up(start, folder, kind):
    needs_root()
    needs_mount_namespaces()
    with socket.socket(socket.AF_UNIX, kind) as syslog:
        syslog.bind(f"{folder}/log")
        if kind == socket.SOCK_STREAM:
            syslog.listen(1)
        server = start("log_stderror=no\nlog_level=4\n", ready=False,
                       wrapper=["unshare", "-m", "sh", "-c", SYSLOG, "sh", str(folder)])
        wait_for(lambda: os.path.exists(server.place), what="the socket")
        fill(server)
        syslog.settimeout(0.01)
        sources, got = [], []

        def read():
            with contextlib.suppress(TimeoutError):
                while kind == socket.SOCK_STREAM:
                    sources.append(syslog.accept()[0])
                    sources[-1].settimeout(0.01)
            for source in sources or [syslog]:
                with contextlib.suppress(TimeoutError):
                    while data := source.recv(1 << 16):
                        got.append(data)
            return b"".join(got)
        wait_for(lambda: server.ask(UPTIME) and b"lines of log were lost\0" in read(), what="what was lost")
        server.stop()
        assert all(re.match(rb"<\d+>midatagram: \[\d+\] |$", line) for line in read().split(b"\0"))


def test_another_syslog_daemon_is_logged_to(tmp_path):
    handler = mi.shared("log_syslog").handler({}, f"{tmp_path}/log")
    handler.setFormatter(mi.LineFormatter(False, False))
    handler.emit(record("nobody is there"))
    for number in range(2):
        with socket.socket(socket.AF_UNIX, (socket.SOCK_DGRAM, socket.SOCK_STREAM)[number]) as syslog:
            syslog.bind(f"{tmp_path}/log")
            if number:
                syslog.listen()
            handler.emit(record("message %d", number))
            source = syslog.accept()[0] if number else syslog
            source.settimeout(5)
            assert (b"1 lines of log were lost" if not number else b"message 1") in source.recv(4096)
        os.unlink(f"{tmp_path}/log")
    handler.close()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, and 8 files."""
    needs_root()
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=8", "none", path], capture_output=True).returncode:
        needs_mount_namespaces()
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def fill_disk(path):
    """Take what room there is."""
    with open(path, "ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"x" * 1000)


def test_a_full_disk_costs_lines_and_nothing_else(start, small_disk):
    path = small_disk / "mi.log"
    server = start('modparam("mi_datagram", "children_count", 2)\n' + own("log_file", path), "-d", ready=False)
    wait_for(lambda: path.exists() and "ready:" in path.read_text(), what="the server")
    children = server.children()
    fill_disk(small_disk / "full")
    fill(server)
    for _ in range(3):
        server.signal(signal.SIGUSR1)
    server.statistic("requests")
    wait_for(lambda: len(server.children()) == len(children), what="all children, after the reload")
    assert server.statistic("child_deaths") == 0
    (small_disk / "full").unlink()
    wait_for(lambda: server.ask(UPTIME) and "lines of log were lost" in path.read_text(), what="lines as before")
    server.stop()
    text = path.read_text()
    assert "NOTICE:midatagram: stopping\n" in text
    assert re.findall(r".[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \[.*", text) == [], "a line that begins in another one"


@pytest.mark.parametrize("what", ["no inodes", "no folder"])
def test_usr1_changes_nothing_when_there_can_be_no_new_file(start, small_disk, what):
    folder, moved = small_disk / "a", small_disk / "b"
    folder.mkdir()
    path = folder / "mi.log"
    server = start('loadmodule "mi_echo.so"\n' + own("log_file", path), "-p", str(PLUGINS), "-d", ready=False)
    wait_for(lambda: path.exists() and "ready:" in path.read_text(), what="the server")
    children = server.children()
    if what == "no folder":
        folder.rename(moved)
        old = moved / "mi.log"
    else:
        old = folder / "mi.log.1"
        path.rename(old)
        with contextlib.suppress(OSError):
            for number in range(9):
                (small_disk / f"{number}").touch()
    server.signal(signal.SIGUSR1)
    wait_for(lambda: old.read_text().count("cannot be opened again, the log goes on to the old file") == 3, what="three lines")
    server.ask(b":such_a_request:\n")
    wait_for(lambda: "such_a_request" in old.read_text(), what="the line of the request")
    assert server.children() == children
    server.stop()
    assert "stopping" in old.read_text() and not path.exists()


# Root and others


@pytest.fixture
def secret(folder):
    """A file of root's that nobody else may write."""
    path = folder / "secret"
    path.write_text("root's\n")
    path.chmod(0o600)
    yield path
    assert path.read_text() == "root's\n" and path.stat().st_uid == 0 and path.stat().st_mode & 0o777 == 0o600


def as_user(uid, act, *values):
    """Run a function as another user."""
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            act(*values)
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


PLANTED = {
    "symbolic link": lambda path, secret: os.symlink(secret, path), "link to a new file":
    lambda path, secret: os.symlink(secret.parent / "created", path), "hard link": lambda path, secret: os.link(secret, path),
    "FIFO": lambda path, secret: as_user(DAEMON, os.mkfifo, path, 0o666), "file":
    lambda path, secret: as_user(DAEMON, os.close, os.open(path, os.O_CREAT)) or os.chown(path, DAEMON, DAEMON),
}


def planted(folder, secret, what, mode):
    """A path in a folder of daemon's at which that put something; links are made by root, whatever the system's settings."""
    theirs = folder / "theirs"
    theirs.mkdir()
    os.chown(theirs, 0 if mode & 0o1000 else DAEMON, 0)
    theirs.chmod(mode)
    path = theirs / "mi.log"
    PLANTED[what](path, secret)
    if path.is_symlink():
        os.chown(path, DAEMON, DAEMON, follow_symlinks=False)
    return path


def refused(folder, path, *arguments):
    """The line that a start with this log_file ends with."""
    (folder / "c").write_text(f'modparam("mi_datagram", "socket_name", "{folder}/mi.sock")\n' + own("log_file", path))
    done = run("-f", folder / "c", *arguments)
    assert done.returncode in (73, 77) and done.stderr.count("\n") == 1, done
    assert f"log_file {path}: " in done.stderr and not (folder / "mi.sock").exists()
    return done.stderr


@pytest.mark.parametrize("user", [(), ("-u", "nobody")])
@pytest.mark.parametrize("mode", [0o755, 0o1777])
@pytest.mark.parametrize("what", PLANTED)
def test_root_logs_to_nothing_that_another_user_put_there(folder, secret, what, mode, user):
    needs_root()
    path = planted(folder, secret, what, mode)
    if user and what == "FIFO":  # nobody may write it as anyone may, and nothing of root's is in it
        return
    refused(folder, path, *user)
    assert not (folder / "created").exists()


@pytest.mark.parametrize("user", [(), ("-u", "nobody")])
def test_root_creates_no_log_through_a_folder_that_another_user_put_there(folder, secret, user):
    needs_root()
    theirs, roots = folder / "theirs", folder / "roots"
    for path in (theirs, roots):
        path.mkdir()
    os.chown(theirs, DAEMON, DAEMON)
    as_user(DAEMON, os.symlink, roots, theirs / "logs")
    refused(folder, theirs / "logs" / "mi.log", *user)
    (roots / "mi.log").touch()
    refused(folder, theirs / "logs" / "mi.log", *user)
    os.symlink(theirs, folder / "link")  # root's, to where others may write
    refused(folder, folder / "link" / "logs" / "mi.log", *user)
    os.symlink(theirs / "logs" / "mi.log", folder / "mi.log")
    refused(folder, folder / "mi.log", *user)
    assert (roots / "mi.log").stat().st_size == 0


def log_of(start, folder, path, *arguments):
    """A server that logs to that file, and has logged its start."""
    server = start(own("log_file", path), *arguments, "-d", ready=False, place=f"{folder}/mi.sock",
                   wrapper=readable_python() if arguments else ())
    wait_for(lambda: path.exists() and "ready:" in path.read_text(), what=f"the log:\n{server.log}")
    return server


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_root_logs_to_its_own_file(start, folder, mode):
    """A new one, and the same again; through links of root's too."""
    needs_root()
    logs = folder / "logs"
    logs.mkdir()
    logs.chmod(mode)
    (folder / "link").symlink_to(logs)
    for path in (logs / "mi.log", logs / "mi.log", folder / "link" / "other.log"):
        server = log_of(start, folder, path)
        path.rename(folder / "moved")
        server.signal(signal.SIGUSR1)
        wait_for(path.exists, what="the new file")
        server.stop()
        assert path.stat().st_uid == 0
        os.remove(folder / "moved")


def test_with_u_a_log_in_a_folder_of_root_s_is_the_user_s(start, folder):
    """So that it can be opened again after a rotation that creates it anew."""
    needs_root()
    path = folder / "mi.log"
    server = log_of(start, folder, path, "-u", "nobody")
    assert (path.stat().st_uid, path.stat().st_gid) == (NOBODY, NOBODY)
    path.rename(folder / "mi.log.1")
    path.touch()
    os.chown(path, NOBODY, NOBODY)
    server.signal(signal.SIGUSR1)
    wait_for(lambda: server.client().send(UPTIME) or ":uptime:" in path.read_text(), what="the new file")
    server.stop()
    assert "stopping" in path.read_text()


def test_with_u_a_log_that_root_has_there_stays_root_s(start, folder):
    needs_root()
    path = folder / "mi.log"
    path.touch()
    log_of(start, folder, path, "-u", "nobody").stop()
    assert path.stat().st_uid == 0 and "stopping" in path.read_text()


def test_with_u_a_log_in_the_user_s_folder_is_opened_by_the_user(start, folder):
    needs_root()
    logs = folder / "logs"
    logs.mkdir()
    os.chown(logs, NOBODY, NOBODY)
    path = logs / "mi.log"
    server = log_of(start, folder, path, "-u", "nobody")
    assert path.stat().st_uid == NOBODY
    path.rename(logs / "mi.log.1")
    server.signal(signal.SIGUSR1)
    wait_for(lambda: server.client().send(UPTIME) or path.exists() and ":uptime:" in path.read_text(), what="the new file")
    server.stop()


@pytest.mark.parametrize("mode", [0o755, 0o1777])
@pytest.mark.parametrize("what", PLANTED)
def test_root_traces_to_nothing_that_another_user_put_there(folder, secret, what, mode):
    needs_root()
    path = planted(folder, secret, what, mode)
    with pytest.raises(OSError) as raised:
        trace_file.TraceFile(str(path), FakeContext()).open()
    assert raised.value.errno in (errno.EPERM, errno.ELOOP, errno.ENXIO, errno.EACCES)
    assert not (folder / "created").exists()


@pytest.mark.parametrize("path, shared", [("/dev/null", False), ("/", False), ("/tmp/absent", True), ("/etc/absent", False)])
def test_what_others_than_root_can_exchange(path, shared):
    needs_root()
    folder, step = (os.open(place, os.O_PATH) for place in (os.path.dirname(path), "/dev/null"))
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, folder)
        stack.callback(os.close, step)
        if shared:
            stack.enter_context(pytest.raises(PermissionError))
        mi.check_unshared(folder, step)


def test_root_logs_to_what_its_stdout_leads_to():
    """Though a pipe has no path that can be walked."""
    needs_root()
    read, write = os.pipe()
    words = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); import os, midatagram as mi\n"
             "os.write(mi.shared('log_file').open_log('/dev/stdout'), b'x')"]
    subprocess.run(words, stdout=write, check=True)
    os.close(write)
    with open(read, "rb") as pipe:
        assert pipe.read() == b"x"
