"""Supervision: nothing that a plug-in does, and no series of deaths, ends a server of which a child can serve."""

import contextlib
import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import PLUGINS, ROOT, STOP_S, free_port, needs_root, readable_python, run, wait_for
from test_healing import GREETER, NEW_GREETER, Load, children_count, is_alive, own

TROUBLE = 'loadmodule "mi_trouble.so"\n'
HELLO, GOOD_DAY = b"200 OK\ngreeting:: hello\n\n", b"200 OK\ngreeting:: good day\n\n"


@pytest.fixture
def greeter(start, plug_in):
    """A server with the plug-in `greeter`, whose source greeter.write_plug_in(text) changes."""
    folder = plug_in("greeter", GREETER)
    text = 'loadmodule "greeter.so"\n' + TROUBLE + children_count(2) + own("start_timeout", 2000)
    server = start(text, "-p", folder, "-p", str(PLUGINS))
    server.write_plug_in = lambda text: plug_in("greeter", text)
    return server


def has_no_hub(pid):
    """Whether a process runs neither a hub nor threads."""
    links = [os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    return len(os.listdir(f"/proc/{pid}/task")) == 1 and not any("eventpoll" in link or "io_uring" in link for link in links)


def loaders_of(server):
    """The pids of the processes that fork children, and of children that have their title for a moment."""
    for pid in pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if b"midatagram: loader" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                yield int(pid)


def loader_of(server):
    """The pid of the one process that forks the children."""
    return wait_for(lambda: len(pids := [*loaders_of(server)]) == 1 and pids, what="one loader")[0]


# Reloads

SLEEPS = """

@mi.command
def nap(ctx):
    \"\"\"Sleep for half a second.\"\"\"
    import gevent
    gevent.sleep(0.5)
    return mi.Reply()
"""
HANG = "import midatagram\nmidatagram.original('time', 'sleep')(3600)\n"
DEAF = "import signal\nsignal.signal(15, signal.SIG_IGN)\n"
CRASH = "import ctypes\nctypes.string_at(0)\n"


def body(hook, code):
    """A function of a plug-in."""
    return f"\n\ndef {hook}:\n" + "".join(f"    {line}\n" for line in code.splitlines())


AFTER_A_WHILE = "\n\n@mi.every(0.2)" + "{}"
BAD = {  # what is added to a good plug-in, and what the log says
    "import: Timeout": ("import gevent\nraise gevent.Timeout(1)\n", "refused"),
    "import: CancelledError": ("import asyncio\nraise asyncio.CancelledError('no')\n", "refused"),
    "import: GreenletExit": ("import gevent\nraise gevent.GreenletExit\n", "refused"),
    "import: hangs": (HANG, "taken back"),
    "import: hangs cooperatively": ("import time\ntime.sleep(3600)\n", "taken back"),
    "import: hangs in a loop": ("while True:\n    pass\n", "taken back"),
    "import: crashes": (CRASH, "signal SIGSEGV"),
    "import: aborts": ("import os\nos.abort()\n", "signal SIGABRT"),
    "import: exits": ("import os\nos._exit(0)\n", "exit status 0"),
    "import: closes what is not its own": ("import os\nos.closerange(3, 1000)\n", "refused"),
    "init: Timeout": (body("init(ctx)", "import gevent\nraise gevent.Timeout(1)"), "refused"),
    "init: KeyboardInterrupt": (body("init(ctx)", "raise KeyboardInterrupt"), "refused"),
    "init: BaseException": (body("init(ctx)", "raise BaseException('no')"), "refused"),
    "init: hangs": (body("init(ctx)", HANG), "taken back"),
    "init: hangs with TERM ignored": (body("init(ctx)", DEAF + HANG), "taken back"),
    "init: crashes": (body("init(ctx)", CRASH), "signal SIGSEGV"),
    "init: exits": (body("init(ctx)", "import os\nos._exit(3)"), "exit status 3"),
    "init: aborts": (body("init(ctx)", "import os\nos.abort()"), "signal SIGABRT"),
    "init: a signal without a name": (body("init(ctx)", "import os\nos.kill(os.getpid(), 37)"), "signal 37"),
    "init: an exception that cannot be shown": (
        body("init(ctx)", "class Odd(Exception):\n    def __str__(self):\n        raise self\nraise Odd"), "refused"),
    "child_init: raises": (body("child_init(ctx)", "raise OSError('no database')"), "OSError: no database"),
    "child_init: Timeout": (body("child_init(ctx)", "import gevent\nraise gevent.Timeout(1)"), "Timeout"),
    "child_init: SystemExit": (body("child_init(ctx)", "raise SystemExit(0)"), "SystemExit"),
    "child_init: hangs": (body("child_init(ctx)", HANG), "taken back"),
    "child_init: hangs cooperatively": (body("child_init(ctx)", "import time\ntime.sleep(3600)"), "taken back"),
    "child_init: crashes": (body("child_init(ctx)", CRASH), "SIGSEGV"),
    "child_init: exits": (body("child_init(ctx)", "import os\nos._exit(0)"), "exit status 0"),
    "child_init: aborts": (body("child_init(ctx)", "import os\nos.abort()"), "signal SIGABRT"),
    "load: hangs": (body("load(ctx)", HANG), "taken back"),
    "load: raises": (body("load(ctx)", "raise OSError('no table')"), "OSError: no table"),
    "soon: crashes": (AFTER_A_WHILE.format(body("soon(ctx)", CRASH)), "SIGSEGV"),
    "soon: exits": (AFTER_A_WHILE.format(body("soon(ctx)", "import os\nos._exit(1)")), "exit status 1"),
    "soon: kills itself": (AFTER_A_WHILE.format(body("soon(ctx)", "import os\nos.kill(os.getpid(), 9)")), "taken back"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_new_cannot_harm_what_runs(greeter, kind):
    source, why = BAD[kind]
    before = greeter.children()
    with Load(greeter, b":greet:\n", 2) as load:
        greeter.write_plug_in(NEW_GREETER + source)
        greeter.signal(signal.SIGHUP)
        greeter.wait_log(": reload ")
        load.wait(50)
    assert set(load.replies) <= {HELLO, GOOD_DAY} and load.lost <= 1  # what a child that died had in hand
    [line] = [line for line in greeter.lines if ": reload " in line]
    assert ("reload refused" in line or "reload taken back" in line) and why in line
    wait_for(lambda: greeter.children() == before, what="the old children alone")
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(set(greeter.children()) - set(before)) == 1, what="a child in its place")
    assert greeter.ask(b":greet:\n") == HELLO
    assert (greeter.statistic("reload_errors"), greeter.statistic("reloads")) == (1, 0)
    assert has_no_hub(greeter.pid)
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    assert greeter.ask(b":greet:\n") == GOOD_DAY
    greeter.stop(tracebacks=True)


@pytest.mark.parametrize("kind", ["import: hangs", "init: hangs with TERM ignored", "child_init: hangs"])
def test_a_reload_that_hangs_is_replaced_by_the_next_one(greeter, kind):
    greeter.write(greeter.config_path.read_text() + own("start_timeout", 60000))
    greeter.reload()
    greeter.write_plug_in(GREETER + BAD[kind][0])
    greeter.signal(signal.SIGHUP)
    time.sleep(0.5)
    assert greeter.ask(b":greet:\n") == HELLO
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    assert greeter.ask(b":greet:\n") == GOOD_DAY
    assert greeter.log.count("replaced by another one") == 1
    assert loader_of(greeter)  # the only one


GOOD = {  # what a plug-in may do as it is loaded, and the server serves with it
    "ignores SIGCHLD": "import midatagram, signal\nmidatagram.original('signal', 'signal')(signal.SIGCHLD, signal.SIG_IGN)",
    "blocks signals": "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())",
    "writes to every descriptor but its report": "import os, stat\nfor number in range(3, 40):\n    try:\n"
        "        if stat.S_ISFIFO(os.fstat(number).st_mode):\n            os.write(number, b'7 x\\n\\xff9')\n"
        "    except OSError:\n        pass",
    "leaves a timer": "import gevent\ngevent.Timeout(1.2).start()",
    "closes its streams": "import os\nos.closerange(0, 3)",
}


@pytest.mark.parametrize("hook", ["init", "child_init"])
@pytest.mark.parametrize("kind", GOOD)
def test_what_is_odd_but_can_serve_serves(greeter, kind, hook):
    greeter.write_plug_in(NEW_GREETER + body(f"{hook}(ctx)", GOOD[kind]))
    greeter.reload()
    wait_for(lambda: greeter.ask(b":greet:\n", 1.0) == GOOD_DAY, what="the new children")
    before = wait_for_children(greeter, 2)
    time.sleep(1.5)  # more than the timer
    assert greeter.children() == before
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(set(greeter.children()) - set(before)) == 1, what="a child in its place")
    assert "cannot fork" not in greeter.log
    greeter.stop(tracebacks=True)


def test_a_candidate_whose_loader_is_killed_while_its_child_starts(greeter):
    greeter.write_plug_in(NEW_GREETER + BAD["child_init: hangs"][0])
    before = greeter.children()
    first = loader_of(greeter)
    greeter.signal(signal.SIGHUP)
    wait_for(lambda: greeter.ask(b":ps:\n").count(b"MI Datagram") == 3, what="the child on trial")
    second = wait_for(lambda: len(others := {*loaders_of(greeter)} - {first}) == 1 and others, what="one more loader").pop()
    os.kill(second, signal.SIGKILL)
    greeter.wait_log("reload refused, the old configuration stays: the process that loads it ended with signal SIGKILL")
    wait_for(lambda: greeter.children() == before, what="the old children alone")
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()


def test_a_reload_mends_a_rank_that_pauses(greeter, plug_in):
    """The child on trial, of rank 1, does not wait for the pause of rank 1; one that was refused does not stay in its place."""
    greeter.write(greeter.config_path.read_text() + own("start_timeout", 3000))
    flag = pathlib.Path(greeter.place + ".flag")
    greeter.write_plug_in(GREETER + "\nimport os\n" + body(
        "child_init(ctx)", f"""
if ctx.server.processes.get(ctx.server.row, "rank") == 1 and os.path.exists({str(flag)!r}):
    raise OSError("away")"""))
    greeter.reload()
    flag.touch()
    os.kill(greeter.children()[0], signal.SIGKILL)
    greeter.wait_log("died: exit status 70", times=6)
    greeter.write_plug_in(NEW_GREETER)
    greeter.signal(signal.SIGHUP)
    wait_for(lambda: greeter.ask(b":greet:\n") == GOOD_DAY, what="the child on trial")
    greeter.write_plug_in("def (")
    greeter.reload("reload refused")
    wait_for(lambda: len(greeter.children()) == 1, what="one child alone")
    assert greeter.ask(b":greet:\n") == HELLO
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    wait_for_children(greeter, 2)
    greeter.stop(tracebacks=True)


@pytest.mark.parametrize("kind", ["import: hangs", "init: hangs with TERM ignored", "child_init: hangs"])
def test_term_ends_a_server_whose_reload_hangs(greeter, kind):
    greeter.write_plug_in(GREETER + BAD[kind][0])
    greeter.signal(signal.SIGHUP)
    time.sleep(0.5)
    pids = list(map(int, pathlib.Path(f"/proc/{greeter.pid}/task/{greeter.pid}/children").read_text().split()))
    greeter.stop()
    wait_for(lambda: not any(map(is_alive, pids)), 1.0, "all to end")
    assert not os.path.exists(greeter.place)


INIT = {
    "sleeps": "import time\ntime.sleep(0.01)",
    "runs a program": "import subprocess\nsubprocess.run(['true'], check=True)",
    "uses sockets": "import socket\nsocket.socketpair()[1].close()\nsocket.gethostbyname('localhost')",
    "spawns a greenlet": "import gevent\ngevent.spawn(gevent.sleep, 3600)\ngevent.sleep(0.01)",
    "spawns a thread": "import threading\nthreading.Thread(target=print, daemon=True).start()",
}


@pytest.mark.parametrize("kind", INIT)
def test_the_attendant_has_no_hub_whatever_init_does(start, plug_in, kind):
    folder = plug_in("busy", GREETER + SLEEPS + body("init(ctx)", INIT[kind]))
    server = start('loadmodule "busy.so"\n' + TROUBLE + children_count(2), "-p", folder, "-p", str(PLUGINS))
    for _ in range(2):
        assert has_no_hub(server.pid)
        assert server.ask(b":greet:\n") == HELLO
        slow = server.client()
        assert slow.ask(b":nap:\n") == b"200 OK\n\n"
        server.reload()


# Deaths


def wait_for_children(server, count, timeout_s=5.0):
    """Wait until so many children serve; gives their pids."""
    return wait_for(lambda: len(pids := server.children()) == count and pids, timeout_s, f"{count} children")


def longest_silence_s(load_s, ask):
    """The longest time that no request was answered."""
    deadline_s, longest_s = time.monotonic() + load_s, 0.0
    last_s = time.monotonic()
    while time.monotonic() < deadline_s:
        if ask():
            longest_s, last_s = max(longest_s, time.monotonic() - last_s), time.monotonic()
    return max(longest_s, time.monotonic() - last_s)


def test_both_children_of_two_killed_twice_within_a_second(start):
    server = start(TROUBLE + children_count(2), "-p", str(PLUGINS))
    for _ in range(2):
        for pid in server.children():
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    assert longest_silence_s(1.0, lambda: server.ask(b":whoami:\n", 0.2)) < 0.6
    wait_for_children(server, 2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_kills_from_outside_are_no_crash_loop(start, number):
    server = start(TROUBLE + children_count(3) + own("crash_limit", 3), "-p", str(PLUGINS))
    for _ in range(20):
        os.kill(wait_for(server.children)[0], number)
        time.sleep(0.2)
    wait_for_children(server, 3)
    assert server.process.poll() is None


def test_kills_of_children_that_start_are_no_crash_loop(start, plug_in):
    folder = plug_in("slow", "import time\n" + body("child_init(ctx)", "time.sleep(0.3)"))
    server = start('loadmodule "slow.so"\n' + children_count(2) + own("crash_limit", 3), "-p", folder)
    children = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children")
    for _ in range(30):
        for pid in map(int, children.read_text().split()):
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                if b"MI Datagram" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    wait_for(lambda: server.ask(b":uptime:\n", 0.5), what="a child that serves")
    wait_for_children(server, 2)
    server.stop()


def test_a_start_that_hangs_each_time_ends_the_server(start, plug_in):
    folder = plug_in("hangs", body("child_init(ctx)", HANG))
    server = start('loadmodule "hangs.so"\n' + own("crash_limit", 2) + own("start_timeout", 500), "-p", folder, ready=False)
    server.wait_log("none serves, giving up")
    assert server.process.wait(STOP_S) == 1


@pytest.mark.parametrize("hold", ["files", "sockets"])
def test_a_reload_for_which_there_are_no_descriptors(start, tmp_path, hold):
    server = start(TROUBLE + children_count(2), "-p", str(PLUGINS))
    used = len(os.listdir(f"/proc/{server.pid}/fd"))
    before, good = server.children(), server.config_path.read_text()
    if hold == "sockets":  # room for the loader, not for all of these
        server.write(good + "".join(own("listen", f"{tmp_path}/{number}.sock") for number in range(20)))
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (used + (0 if hold == "files" else 8), 1024))
    server.reload("reload refused")
    resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (1024, 1024))
    assert server.children() == before
    server.write(good)
    server.reload()
    server.stop()


def test_one_kill_of_all_ten_children_in_the_first_second(start):
    server = start(TROUBLE + children_count(10), "-p", str(PLUGINS))
    before = server.children()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: len(set(server.children()) - set(before)) == 10, what="ten others")


FAILING = """
import os


def child_init(ctx):
    if os.path.exists({flag!r}):
        raise OSError("no database at db.example")
"""


@pytest.mark.parametrize("why", ["killed", "max_requests"])
def test_a_child_init_that_fails_later_stops_nobody(start, plug_in, tmp_path, why):
    flag, folder = tmp_path / "flag", plug_in("db", FAILING.format(flag=str(tmp_path / "flag")))
    limit = own("max_requests", 30) if why == "max_requests" else ""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        server = start('loadmodule "db.so"\n' + TROUBLE + children_count(2) + own("crash_limit", 2) + limit, "-p", folder,
                       "-p", str(PLUGINS), environment={"NOTIFY_SOCKET": manager.getsockname()})
        flag.touch()
        if why == "killed":
            os.kill(server.children()[1], signal.SIGKILL)
        client = server.client()
        for _ in range(100):
            assert client.ask(b":whoami:\n", 1.0)
        server.wait_log("died: exit status 70", times=4)
        assert b"cannot start: OSError: no database at db.example" in drained(manager)
        assert client.ask(b":whoami:\n", 1.0)
        flag.unlink()
        wait_for_children(server, 2, 10)
        server.stop(tracebacks=True)


def drained(sock):
    """All that waits in a socket, and comes within two seconds."""
    data, sock_deadline_s = [], time.monotonic() + 2
    while time.monotonic() < sock_deadline_s:
        sock.settimeout(0.1)
        with contextlib.suppress(TimeoutError):
            data.append(sock.recv(9999))
    return b"\n".join(data)


def test_who_waits_for_the_load_of_another_is_not_stalled(start, plug_in, tmp_path):
    source = GREETER + "\nimport os\nimport time\n" + body("load(ctx)", f"""
try:
    os.mkdir({str(tmp_path / "first")!r})
except FileExistsError:
    time.sleep(1)
else:
    time.sleep(3600)
ctx.store.put("loads", str(time.time()), "1")""")
    server = start('loadmodule "greeter.so"\n' + TROUBLE + children_count(3) + own("start_timeout", 3000),
                   "-p", plug_in("greeter", source), "-p", str(PLUGINS))
    assert server.statistic("child_stalls") == 1 and server.log.count("stalled") == 1
    server.reload()
    server.stop()


def test_the_process_that_forks_the_children_is_replaced_when_it_dies(greeter):
    before = greeter.children()
    os.kill(loader_of(greeter), signal.SIGKILL)
    os.kill(before[0], signal.SIGKILL)
    wait_for(lambda: len(greeter.children()) == 2 and not set(greeter.children()) & set(before), what="other children")
    assert greeter.ask(b":greet:\n") == HELLO and loader_of(greeter)


def test_without_the_process_that_forks_and_with_a_broken_plug_in_the_others_serve(greeter):
    [first, second] = greeter.children()
    greeter.write_plug_in("def (")
    os.kill(loader_of(greeter), signal.SIGKILL)
    greeter.wait_log("reload refused", times=2)
    os.kill(first, signal.SIGKILL)
    for _ in range(20):
        assert greeter.ask(b":greet:\n") == HELLO
    greeter.write_plug_in(NEW_GREETER)
    wait_for(lambda: len(greeter.children()) == 2 and second not in greeter.children(), what="two children")


# The attendant does not wait for anybody


def test_a_notify_socket_that_nobody_reads(start, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        server = start(TROUBLE + children_count(2), "-p", str(PLUGINS), environment={"NOTIFY_SOCKET": manager.getsockname()})
        time.sleep(8)
        victim = server.children()[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: len(set(server.children()) - {victim}) == 2, 3, "another child")
        server.stop()
        assert b"READY=1" in drained(manager)


# Children


CHILDREN = """
import gevent
import midatagram as mi


@mi.command
def close_socket(ctx):
    \"\"\"Close what is served.\"\"\"
    import gc, os, socket
    for number in range(3, 100):
        try:
            with socket.socket(fileno=os.dup(number)) as sock:
                if sock.family == socket.AF_UNIX and str(sock.getsockname()).endswith("mi.sock"):
                    os.close(number)
        except OSError:
            pass
    return mi.Reply()


@mi.command
def shut_socket(ctx):
    \"\"\"Shut what is served, for all children.\"\"\"
    import os, socket
    for number in range(3, 100):
        try:
            with socket.socket(fileno=os.dup(number)) as sock:
                name = str(sock.getsockname()) if sock.family == socket.AF_UNIX else "mi.sock"
                if sock.type == socket.SOCK_DGRAM and name.endswith("mi.sock"):
                    sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
    return mi.Reply()


@mi.command
def close_all(ctx):
    \"\"\"Close whatever is open.\"\"\"
    import os
    os.closerange(3, 100)
    return mi.Reply()


@mi.command
def raise_in_greenlet(ctx, name):
    \"\"\"Raise in a greenlet of its own.\"\"\"
    def fail():
        raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "SystemError": SystemError}[name]("on request")
    gevent.spawn(fail)
    return mi.Reply()


@mi.command
def raise_here(ctx, name):
    \"\"\"Raise.\"\"\"
    raise {"SystemExit": SystemExit, "KeyboardInterrupt": KeyboardInterrupt, "SystemError": SystemError}[name]("on request")
"""


@pytest.mark.parametrize("count", [1, 2])
def test_a_child_whose_socket_a_plug_in_closes_is_replaced(start, plug_in, count):
    server = start('loadmodule "odd.so"\n' + TROUBLE + children_count(count), "-p", plug_in("odd", CHILDREN), "-p", str(PLUGINS))
    before = server.children()
    server.client().send(b":close_socket:\n")
    server.wait_log("closed the socket")
    wait_for(lambda: len(pids := server.children()) == count and set(pids) != set(before), what="another child")
    assert server.statistic("child_deaths") == 1
    server.stop(tracebacks=True)


def test_a_socket_that_a_plug_in_shuts_for_all_is_bound_again(start, plug_in):
    server = start('loadmodule "odd.so"\n' + TROUBLE + children_count(2), "-p", plug_in("odd", CHILDREN), "-p", str(PLUGINS))
    before = server.children()
    server.client().send(b":shut_socket:\n")
    server.wait_log("bound again")
    wait_for(lambda: not any(map(is_alive, before)), what="the end of the children of the old socket")
    wait_for_children(server, 2)
    server.stop(tracebacks=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "[::1]"])
def test_a_udp_socket_that_a_plug_in_shuts_for_all_is_bound_again(start, plug_in, host):
    port = free_port(socket.AF_INET6 if ":" in host else socket.AF_INET)
    server = start('loadmodule "odd.so"\n' + TROUBLE + children_count(2), "-p", plug_in("odd", CHILDREN), "-p", str(PLUGINS),
                   place=f"udp:{host}:{port}")
    for nth in (1, 2):
        before = server.children()
        server.client().send(b":shut_socket:\n")
        server.wait_log(f"udp:{host}:{port} was shut down; bound again", times=nth)
        wait_for(lambda: not any(map(is_alive, before)), what="the end of the children of the old socket")  # noqa: B023
        assert server.ask(b":uptime:\n").startswith(b"200 OK\n")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            other.bind((host.strip("[]"), port))
    server.stop(tracebacks=True)


def test_a_child_that_a_plug_in_leaves_without_descriptors_is_replaced(start, plug_in):
    server = start('loadmodule "odd.so"\n' + TROUBLE + children_count(2) + own("stall_timeout", 1000), "-p",
                   plug_in("odd", CHILDREN), "-p", str(PLUGINS))
    before = server.children()
    server.client().send(b":close_all:\n")
    wait_for(lambda: len(set(server.children()) - set(before)) == 1 and len(server.children()) == 2, what="another child")
    server.stop(tracebacks=True)


HANGING = "import gevent, time\nimport midatagram as mi\nhello = 1\n"
WAYS = {"gevent": "time.sleep(99)", "kernel": 'mi.original("time", "sleep")(99)', "busy": "while True: pass"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("hook", ["load", "child_init"])
def test_a_plug_in_that_holds_up_children_is_named(start, plug_in, hook, way):
    server = start('loadmodule "odd.so"\n' + own("start_timeout", 500), "-p",
                   plug_in("odd", f"{HANGING}def {hook}(ctx):\n    {WAYS[way]}\n"), ready=False)
    server.wait_log(f"is stalled for 0.5 s, killed; {hook}() of odd")
    server.stop()


def test_a_plug_in_that_holds_up_a_reload_is_named(greeter):
    greeter.write_plug_in(f"{GREETER}\ndef load(ctx):\n    import time\n    time.sleep(99)\n")
    greeter.reload("reload taken back: nothing serves after start_timeout, 2000 ms; load() of greeter\n")
    assert greeter.ask(b":greet:\n") == HELLO


@pytest.mark.parametrize("line, indent, way", [
    ("", "", "gevent"), ("def init(ctx):", "    ", "gevent"), ("def init(ctx):", "    ", "kernel"), ("", "", "busy")])
def test_a_plug_in_that_holds_up_the_loading_is_named(start, plug_in, line, indent, way):
    folder = plug_in("odd", f"{HANGING}{line}\n{indent}{WAYS[way]}\n")
    server = start('loadmodule "odd.so"\n', "-p", folder, ready=False)
    server.wait_log(f"the configuration is not loaded after 5 s, at {folder}/odd.py:5\n")
    server.process.kill()
    server.process.wait(STOP_S)


@pytest.mark.parametrize("name", ["SystemExit", "KeyboardInterrupt", "SystemError"])
def test_what_a_greenlet_raises_ends_no_child(start, plug_in, name):
    server = start('loadmodule "odd.so"\n' + TROUBLE, "-p", plug_in("odd", CHILDREN + SLEEPS), "-p", str(PLUGINS))
    before, slow = server.children(), server.client()
    slow.send(b":nap:\n")
    server.ask(b":raise_in_greenlet:\n%s\n" % name.encode())
    server.ask(b":raise_here:\n%s\n" % name.encode(), 0.5)
    server.wait_log(f"{name}: on request", times=2)
    assert slow.receive() == b"200 OK\n\n" and server.children() == before
    server.stop(tracebacks=True)


@pytest.mark.parametrize("source, why", [
    ("async def late(ctx):\n    '''Late.'''\n    return mi.Reply()\n", "is an async def"),
    ("def good(ctx):\n    '''Good.'''\n    return mi.Reply()\n\n\n@mi.command('*')\nasync def late(ctx):\n    '''Late.'''\n",
     "is an async def"),
    ("def nothing(ctx):\n    '''Nothing.'''\n    print('x')\n", "returns nothing"),
    ("def nothing(ctx):\n    '''Nothing.'''\n    if ctx:\n        return\n    return None\n", "returns nothing"),
    ("def nothing(ctx):\n    '''Nothing.'''\n    reply = mi.Reply(nodes=[mi.Node('x')])\n", "returns nothing"),
    ("def nothing(ctx, value):\n    '''Nothing.'''\n    if not value:\n        raise mi.Error(400, 'x')\n", "returns nothing"),
])
def test_a_handler_that_cannot_answer_is_refused_by_a_check(tmp_path, source, why):
    (tmp_path / "odd.py").write_text("import midatagram as mi\n\n\n@mi.command\n" + source)
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert done.returncode == 78 and f"{tmp_path}/odd.py:" in done.stderr and why in done.stderr


MAY_ANSWER = """
import functools
import gevent
import os
import sys

import midatagram as mi


def fail():
    raise mi.Error(400, "no")


class Helper:
    def fail(self):
        raise mi.Error(400, "no")


def answered(function):
    @functools.wraps(function)
    def wrapper(ctx):
        return function(ctx) or mi.Reply()
    return wrapper


@mi.command
def by_function(ctx):
    \"\"\"Fail.\"\"\"
    fail()


@mi.command
def by_method(ctx):
    \"\"\"Fail.\"\"\"
    Helper().fail()


@mi.command
def by_inner(ctx):
    \"\"\"Fail.\"\"\"
    def inner():
        raise mi.Error(400, "no")
    inner()


@mi.command
def by_exit(ctx):
    \"\"\"Fail.\"\"\"
    sys.exit()


@mi.command
def by_abort(ctx):
    \"\"\"End the child.\"\"\"
    os.abort()


@mi.command
def by_loop(ctx):
    \"\"\"Never answer.\"\"\"
    while True:
        gevent.sleep(1)


@mi.command
@answered
def by_wrapper(ctx):
    \"\"\"Answer.\"\"\"


@mi.command
def by_try(ctx):
    \"\"\"Answer.\"\"\"
    try:
        return mi.Reply()
    finally:
        print()


@mi.command
def by_choice(ctx, value=""):
    \"\"\"Answer or fail.\"\"\"
    return mi.Reply() if value else fail()
"""


def test_a_handler_that_may_answer_or_raise_is_not_refused(tmp_path):
    (tmp_path / "odd.py").write_text(MAY_ANSWER)
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", tmp_path)
    assert done.returncode == 0, done.stderr


# Who is who


def test_status_tells_how_the_server_is(greeter):
    done = run("--status", "-f", greeter.config_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "running")
    assert f"pid {greeter.pid}" in done.stdout and "uptime" in done.stdout
    assert f"2 of 2 children serve {greeter.place}" in done.stdout and "last reload" not in done.stdout
    greeter.write_plug_in("def (")
    greeter.reload("reload refused")
    wait_for(lambda: "the last reload was refused" in run("--status", "-f", greeter.config_path).stdout, what="the refusal")


def test_status_has_a_mistake_on_a_line_of_its_own(start):
    server = start()
    server.write('modparam("midatagram", "pool_siz", 1)\n')
    server.reload("reload refused")

    def shown():
        lines = run("--status", "-f", server.config_path).stdout.splitlines()
        return [line for line in lines if line.startswith("the last reload was refused")]

    assert "did you mean" in wait_for(shown, what="the refusal")[0]


def test_status_of_a_server_that_has_its_folder_beside_its_socket(start, tmp_path):
    server = start(TROUBLE, "-p", str(PLUGINS), place=str(tmp_path / "mi.sock"), environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert f"pid {server.pid}, " in run("--status", "-f", server.config_path).stdout


@pytest.mark.parametrize("kind", ["file", "fifo", "link"])
def test_status_believes_root_and_the_servers_user_alone(greeter, kind):
    needs_root()
    folder, real = pathlib.Path(f"/dev/shm/midatagram-1-{os.getpid()}"), f"/dev/shm/mi-test-{os.getpid()}"
    folder.mkdir()
    lie = json.dumps([os.getpid(), 0, "all is well", [greeter.place]])
    try:
        if kind == "fifo":
            os.mkfifo(folder / "status")
        else:
            (folder / "status").write_text(lie)
        if kind == "link":
            folder.rename(real)
            folder.symlink_to(real)
        os.chown(folder, 65534, 65534, follow_symlinks=False)
        done = run("--status", "-f", greeter.config_path)
        assert f"pid {greeter.pid}, " in done.stdout and "all is well" not in done.stdout
    finally:
        folder.unlink() if kind == "link" else shutil.rmtree(folder)
        shutil.rmtree(real, ignore_errors=True)


@pytest.mark.parametrize("kind", ["unix", "udp", "udp6"])
def test_root_needs_no_user_for_the_status(start, tmp_path, kind):
    """Of a server that became another user; that user's word is good for his server alone."""
    needs_root()
    port = free_port(socket.AF_INET6 if kind == "udp6" else socket.AF_INET)
    place = {"unix": "", "udp": f"udp:127.0.0.1:{port}", "udp6": f"udp:[::1]:{port}"}[kind]
    server = start("", "-u", "nobody", wrapper=readable_python(), place=place or f"{tmp_path}/mi.sock")
    idle = subprocess.Popen(["/bin/sleep", "100"], user=1, group=1)
    forged = pathlib.Path(f"/dev/shm/midatagram-{idle.pid}-forged")
    try:
        forged.mkdir()
        (forged / "status").write_text(json.dumps([idle.pid, 0, "all is well", [server.place]]))
        os.chown(forged, 1, 1)
        for user in ([], ["-u", "nobody"]):
            done = run("--status", "-f", server.config_path, *user)
            assert f"pid {server.pid}, uptime" in done.stdout and "1 of 1 children serve" in done.stdout
            assert "all is well" not in done.stdout
    finally:
        idle.kill()
        idle.wait()
        shutil.rmtree(forged)


def test_a_dead_socket_of_another_user_is_not_alive(tmp_path):
    needs_root()
    folder = pathlib.Path(f"/tmp/mi-test-{os.getpid()}-dead")
    folder.mkdir(mode=0o755)
    try:
        ours = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        ours.bind(str(folder / "mi.sock"))
        (folder / "mi.sock").chmod(0o600)
        ask = [sys.executable, "-c", f"import os, sys\nsys.path.insert(0, {str(ROOT)!r})\nimport midatagram\n"
               f"os.setuid(65534)\nprint(midatagram.is_live({str(folder / 'mi.sock')!r}))"]
        answers = [subprocess.run(ask, capture_output=True, text=True).stdout]
        ours.close()
        answers.append(subprocess.run(ask, capture_output=True, text=True).stdout)
        assert answers == ["True\n", "False\n"]
    finally:
        (folder / "mi.sock").unlink()
        folder.rmdir()


def test_stop_is_quick_after_all_that(greeter):
    for pid in greeter.children():
        os.kill(pid, signal.SIGKILL)
    greeter.signal(signal.SIGTERM)
    assert greeter.process.wait(STOP_S) == 0
