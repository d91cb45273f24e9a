"""Self-healing: children that die, an attendant that dies, reloads, stops, and what may lie at a socket's path."""

import collections
import contextlib
import fcntl
import itertools
import os
import pathlib
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from conftest import PLUGINS, SCRIPT, STOP_S, Client, free_port, is_alive, needs_root, run, wait_for

import midatagram as mi

TROUBLE = ("-p", str(PLUGINS))
PLUG_INS = 'loadmodule "mi_echo.so"\nloadmodule "mi_trouble.so"\n'
WHOAMI = b":whoami:\n"


def own(name, value):
    """A modparam line of midatagram."""
    return f'modparam("midatagram", "{name}", {value})\n'


def children_count(count):
    """The modparam line that says how many children serve."""
    return f'modparam("mi_datagram", "children_count", {count})\n'


class Load:
    """Clients in closed loops; `lost` counts requests without a reply within a second, `replies` what came."""

    def __init__(self, server, request, clients=6):
        self.over, self.losses, self.replies = threading.Event(), [], collections.Counter()
        self.threads = [threading.Thread(target=self.ask, args=(server.place, server.folder, request))
                        for _ in range(clients)]
        for thread in self.threads:
            thread.start()

    def ask(self, place, folder, request):
        while not self.over.is_set():
            with Client(place, folder) as client:  # a new one after a loss, so that no late reply is taken for the next
                while not self.over.is_set() and self.ask_once(client, request):
                    pass

    def ask_once(self, client, request):
        """Whether a reply came; what did not is counted."""
        reply = None
        with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
            reply = client.ask(request, 1.0)
        if reply is None:
            self.losses.append(request)
            return self.over.wait(0.05)
        self.replies[reply] += 1
        return True

    @property
    def lost(self):
        """How many requests got no reply."""
        return len(self.losses)

    @property
    def answered(self):
        """How many replies came."""
        return sum(self.replies.values())

    def wait(self, more):
        """Wait until so many more replies came."""
        wanted = self.answered + more
        wait_for(lambda: self.answered >= wanted, what=f"{more} more replies")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.over.set()
        for thread in self.threads:
            thread.join()


# Children that die


def test_killed_children_under_load_lose_at_most_what_they_had_in_hand(start):
    server = start(PLUG_INS + children_count(3), *TROUBLE)
    with Load(server, WHOAMI) as load:
        load.wait(500)
        for victim in server.children():
            os.kill(victim, signal.SIGKILL)
            killed_s = time.monotonic()
            wait_for(lambda: len(set(server.children()) - {victim}) == 3, what="a new child")  # noqa: B023
            assert time.monotonic() - killed_s < 1.0
            load.wait(500)
    assert load.lost <= 3  # a child has one request of these in hand
    assert server.statistic("child_deaths") == 3
    assert server.log.count("died: signal SIGKILL") == 3
    assert server.process.poll() is None


def test_killed_child_loses_what_it_had_in_hand_and_nothing_else(start):
    server = start(PLUG_INS, *TROUBLE)
    slow, quick = server.client(), server.client()
    for _ in range(5):
        slow.send(b":msleep:\n3000\n")
    assert quick.ask(WHOAMI)  # of one child: the five before are in hand
    [child] = server.children()
    os.kill(child, signal.SIGSTOP)
    for _ in range(5):
        quick.send(WHOAMI)  # these wait in the kernel's queue
    os.kill(child, signal.SIGKILL)
    replies = [quick.receive() for _ in range(5)]
    assert all(reply.startswith(b"200 OK\npid:: ") for reply in replies)
    assert b"%d" % child not in b"".join(replies)
    assert slow.receive(0.1) is None
    assert slow.ask(WHOAMI)


def test_counters_outlive_a_child(start):
    server = start(PLUG_INS, *TROUBLE)
    for _ in range(50):
        server.ask(WHOAMI)
    before = server.statistic("requests")
    os.kill(server.children()[0], signal.SIGKILL)
    server.wait_log("died: signal SIGKILL")
    assert server.statistic("requests") >= before + 2


LEVELS = """
import midatagram as mi

STATS = [mi.Stat("here", "how many are here", resettable=False), mi.Stat("came", "how many came")]


@mi.command
def come(ctx):
    \"\"\"Come, and stay.\"\"\"
    ctx.count("here")
    ctx.count("came")
    return mi.Reply()
"""


@pytest.mark.parametrize("end", ["death", "reload", "reload without its plug-in"])
def test_levels_go_with_their_child_and_counters_stay(start, plug_in, end):
    """A level is a statistic that cannot be reset: it says how things are, in the children that live."""
    folder = plug_in("levels", LEVELS)
    server = start(PLUG_INS + 'loadmodule "levels.so"\n', "-p", folder, *TROUBLE)
    [child], good = server.children(), server.config_path.read_text()
    for _ in range(3):
        server.ask(b":come:\n")
    assert (server.statistic("here"), server.statistic("came")) == (3, 3)
    if end == "death":
        os.kill(child, signal.SIGKILL)
    else:
        server.write(good.replace('loadmodule "levels.so"\n', "") if "without" in end else good)
        server.reload()
        server.write(good)
        server.reload()
    wait_for(lambda: server.statistic("here") == 0, what="the level to go")
    server.ask(b":come:\n")
    assert (server.statistic("here"), server.statistic("came")) == (1, 4)


CRASHES = """
import os
import midatagram as mi


@mi.every({every_s}, where="one")
def crash(ctx):
    os._exit(7)
"""


def test_crash_loop_ends_the_server_with_a_clear_error(start, plug_in):
    folder = plug_in("crashes", CRASHES.format(every_s=0.01))
    server = start('loadmodule "crashes.so"\n' + own("crash_limit", 4), "-p", folder, ready=False)
    assert server.process.wait(15) == 1
    server.reader.join(2)
    assert server.log.count("died: exit status 7") == 4
    assert re.search(r"CRITICAL.* 4 children died .*giving up", server.log)
    assert not os.path.exists(server.place)


def test_child_that_cannot_start_ends_the_server_with_a_clear_error(start, plug_in):
    folder = plug_in("boot", "def child_init(ctx):\n    raise OSError('no database at db.example')\n")
    server = start('loadmodule "boot.so"\n' + children_count(3), "-p", folder, ready=False)
    assert server.process.wait(10) == 1
    server.reader.join(2)
    assert "no database at db.example" in server.log
    assert "a child cannot start, giving up" in server.log
    assert "ready:" not in server.log
    assert not os.path.exists(server.place)


def test_pauses_between_starts_grow_in_a_crash_loop(start, plug_in):
    """Of the rank that keeps dying, while the other serves."""
    folder = plug_in("crashes", CRASHES.format(every_s=0.01))
    server = start('loadmodule "crashes.so"\n' + own("crash_limit", 2) + children_count(2), "-p", folder, ready=False)
    deaths = []
    for times in range(1, 6):
        server.wait_log("died:", times=times)
        deaths.append(time.monotonic())
    gaps = [after - before for before, after in itertools.pairwise(deaths)]
    assert gaps[-1] > gaps[0] + 0.2
    assert server.ask(b":uptime:\n")


def test_max_requests_replaces_children_at_jittered_numbers_and_loses_nothing(start):
    limit, generations, burst = 2000, 8, 64  # a child counts on to the end of a burst
    server = start(PLUG_INS + own("max_requests", limit), *TROUBLE)
    client, taken, full = server.client(), collections.Counter(), {}
    while len(full) < generations:
        reply = client.ask(WHOAMI)
        assert reply is not None
        pid, state = (int(line.rpartition(b" ")[2]) for line in reply.split(b"\n")[1:3])
        if state == 2:
            taken[pid] += 1
        elif pid not in full:  # it waits for its successor, and serves on
            full[pid] = taken[pid]
    limits = list(full.values())
    assert all(limit * 0.9 - 1 <= number <= limit * 1.1 + burst for number in limits), limits
    assert max(limits) - min(limits) > burst + 1, limits
    assert server.statistic("child_deaths") == 0
    wait_for(lambda: len(server.children()) == 1, what="one child")


def test_max_requests_under_load_loses_nothing(start):
    server = start(PLUG_INS + own("max_requests", 300) + children_count(2), *TROUBLE)
    with Load(server, WHOAMI) as load:
        wait_for(lambda: len(load.replies) > 6, what="some generations of children")
    assert load.lost == 0
    assert server.statistic("child_deaths") == 0


# An attendant that dies


def test_children_end_within_a_second_of_their_attendant_even_when_stuck(start):
    server = start(PLUG_INS + children_count(2), *TROUBLE)
    children = server.children()
    server.client().send(b":block:\n60000\n")
    wait_for(lambda: server.ask(WHOAMI, 0.2) == server.ask(WHOAMI, 0.2), what="one child to be stuck")
    server.process.kill()
    killed_s = time.monotonic()
    server.process.wait()
    wait_for(lambda: not any(map(is_alive, children)), what="the children to end")
    assert time.monotonic() - killed_s < 1.0


@pytest.mark.parametrize("stuck", [False, True])
def test_usr2_is_nobody_s_signal(start, stuck):
    """Children are sent it by the kernel when their attendant dies; from anybody else it means nothing."""
    server = start(PLUG_INS + children_count(2), *TROUBLE)
    children = server.children()
    if stuck:
        server.client().send(b":block:\n1500\n")
    for pid in (server.pid, *children) * 3:
        os.kill(pid, signal.SIGUSR2)
    time.sleep(1.2)  # more than a child has when its attendant is gone
    assert server.children() == children and server.statistic("child_deaths") == 0
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(map(is_alive, children)), 1.0, "the children to end")


def test_socket_that_a_killed_server_left_is_replaced(start):
    first = start()
    children = first.children()
    first.process.kill()
    first.process.wait()
    wait_for(lambda: not any(map(is_alive, children)), what="the children to end")
    left = os.stat(first.place).st_ctime_ns
    second = start(place=first.place)
    assert second.ask(b":uptime:\n").startswith(b"200 OK\n")
    assert os.stat(first.place).st_ctime_ns != left


# Reloads

GREETER = """
import midatagram as mi

STATS = [mi.Stat("greetings", "how many")]


@mi.command(pure=True)
def greet(ctx):
    \"\"\"Greet.\"\"\"
    return mi.Reply(nodes=[mi.Node("greeting", "hello")])


@mi.command
def greeted(ctx):
    \"\"\"Count a greeting.\"\"\"
    ctx.count("greetings")
    return mi.Reply()
"""
BOWS = 'STATS = [mi.Stat("bows", "how many"), '
NEW_GREETER = GREETER.replace('"hello"', '"good day"').replace("STATS = [", BOWS) + """

@mi.command
def bow(ctx):
    \"\"\"Bow.\"\"\"
    ctx.count("bows")
    return mi.Reply(nodes=[mi.Node(None, ctx.param("depth"))])


PARAMS = [mi.Param("depth", 1, mi.integer(1, 9), "how deep")]
"""


@pytest.fixture
def greeter(start, plug_in):
    """A server with the plug-in `greeter`, whose source greeter.write(text) changes."""
    folder = plug_in("greeter", GREETER)
    server = start('loadmodule "greeter.so"\n' + PLUG_INS + children_count(2), "-p", folder, *TROUBLE)
    server.write_plug_in = lambda text: plug_in("greeter", text)
    return server


def test_reload_under_load_loses_no_datagram_and_keeps_what_was_counted(greeter):
    before = greeter.children()
    for _ in range(7):
        greeter.ask(b":greeted:\n")
    greeter.ask(b":cache_store:\nlocal\nkey\nvalue\n")
    greeter.ask(b":reset_statistics:\nbytes_sent\n")
    slow = greeter.client()
    with Load(greeter, b":greet:\n") as load:
        load.wait(500)
        requests, sent = greeter.statistic("requests"), greeter.statistic("bytes_sent")
        for _ in range(5):
            slow.send(b":msleep:\n700\n")
        greeter.write_plug_in(NEW_GREETER)
        greeter.write(greeter.config_path.read_text() + 'modparam("greeter", "depth", 3)\n')
        greeter.reload()
        load.wait(500)
        greeter.reload()
        load.wait(500)
    assert load.lost == 0
    assert set(load.replies) == {b"200 OK\ngreeting:: hello\n\n", b"200 OK\ngreeting:: good day\n\n"}
    assert [slow.receive() for _ in range(5)] == [b"200 OK\nslept:: 700\n\n"] * 5
    assert greeter.statistic("requests") >= requests + 1000
    assert sent <= greeter.statistic("bytes_sent") < greeter.statistic("requests") * 40  # the reset holds
    assert greeter.statistic("greetings") == 7
    assert greeter.ask(b":cache_fetch:\nlocal\nkey\n") == b"200 OK\nkey:: key\nvalue:: value\n\n"
    assert greeter.statistic("reloads") == 2
    wait_for(lambda: not any(map(is_alive, before)), what="the old children to end")


def test_reload_brings_new_code_and_room_for_new_statistics(greeter):
    assert b"bow" not in greeter.ask(b":which:\n")
    assert greeter.ask(b":greet:\n") == b"200 OK\ngreeting:: hello\n\n"
    greeter.ask(b":greeted:\n")
    statistics = "".join(f', mi.Stat("many{number}", "one of many")' for number in range(500))
    greeter.write_plug_in(NEW_GREETER.replace('"how many")]', f'"how many"){statistics}]'))
    greeter.reload()
    assert greeter.ask(b":greet:\n") == b"200 OK\ngreeting:: good day\n\n"
    assert greeter.ask(b":bow:\n") == greeter.ask(b":bow:\n") == b"200 OK\n1\n\n"
    assert (greeter.statistic("bows"), greeter.statistic("greetings"), greeter.statistic("many499")) == (2, 1, 0)
    greeter.write_plug_in(GREETER)
    greeter.reload()
    assert greeter.ask(b":bow:\n") == b"500 command not available\n"
    assert greeter.statistic("greetings") == 1
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    assert greeter.statistic("bows") == 2


def is_closed(client):
    """Whether nobody has the UDP port that a client is connected to."""
    try:
        client.ask(WHOAMI, 0.05)
    except ConnectionRefusedError:
        return True
    return False


def test_reload_takes_more_or_fewer_children_and_other_sockets(start):
    ports = free_port(), free_port()
    text = PLUG_INS + children_count("{}") + own("listen", '"udp:127.0.0.1:{}"')
    server = start(text.format(2, ports[0]), *TROUBLE)
    assert server.ask(WHOAMI, place=f"udp:127.0.0.1:{ports[0]}")
    for count, here, there in ((4, ports[1], ports[0]), (1, ports[0], ports[1])):
        server.write(text.format(count, here))
        server.reload()
        assert len(server.children()) == count
        assert server.ask(b":get_statistics:\nload:\n").count(b"load-proc-") == count + 1
        assert server.ask(WHOAMI, place=f"udp:127.0.0.1:{here}")
        old = server.client(f"udp:127.0.0.1:{there}", connected=True)
        wait_for(lambda: is_closed(old), what="the old one to be closed")  # noqa: B023


LATE = """
import gevent


def child_init(ctx):
    gevent.sleep(1)
"""


@pytest.mark.parametrize("why", ["a reload", "max_requests"])
def test_a_child_serves_until_its_successor_does(start, plug_in, why):
    """The successor takes a second to start, and no request waits for that."""
    limit = own("max_requests", 20) if why == "max_requests" else ""
    server = start('loadmodule "late.so"\n' + PLUG_INS + limit, "-p", plug_in("late", LATE), *TROUBLE)
    client, [old], waits_s = server.client(), server.children(), []
    if why == "a reload":
        server.signal(signal.SIGHUP)
    began_s = time.monotonic()
    while is_alive(old):
        asked_s = time.monotonic()
        assert client.ask(WHOAMI), "the old child is dismissed and nobody serves"
        waits_s.append(time.monotonic() - asked_s)
        assert time.monotonic() - began_s < 10, "the old child is never dismissed"
    reply = client.ask(WHOAMI, 0.5)
    assert reply and b"%d" % old not in reply, "its successor serves"
    assert max(waits_s) < 0.5 and time.monotonic() - began_s > 0.9


SLOW_AND_BAD = GREETER + """
import gevent

def child_init(ctx):
    gevent.sleep(1)
    raise OSError("no database")
"""


@pytest.mark.parametrize("second", ["a mistake in the configuration", "the same again", "a good one"])
def test_a_reload_while_another_is_under_way(greeter, second):
    """It is replaced; what is gone back to is what served before, whatever the order."""
    before, good = greeter.children(), greeter.config_path.read_text()
    greeter.write_plug_in(SLOW_AND_BAD)
    greeter.signal(signal.SIGHUP)
    wait_for(lambda: set(greeter.children()) - set(before), what="the first child of the reload")
    if second == "a mistake in the configuration":
        greeter.write(good + 'modparam("mi_datagram", "children_count", "many")\n')
    elif second == "a good one":
        greeter.write_plug_in(NEW_GREETER)
    greeter.signal(signal.SIGHUP)
    greeter.wait_log("replaced by another one")
    if second == "the same again":
        greeter.wait_log("reload taken back")
    if second == "a mistake in the configuration":
        greeter.wait_log("reload refused")
    if second == "a good one":
        greeter.wait_log("ready:", times=2)
        assert greeter.ask(b":greet:\n") == b"200 OK\ngreeting:: good day\n\n"
    wait_for(lambda: len(greeter.children()) == len(before), what="as many children as before")
    os.kill(greeter.children()[0], signal.SIGKILL)
    greeter.wait_log("died: signal SIGKILL")
    wait_for(lambda: len(greeter.children()) == len(before), what="a child in its place")
    assert greeter.statistic("reloads") == (1 if second == "a good one" else 0)
    greeter.stop(tracebacks=True)


def test_a_reload_that_is_taken_back_changes_no_mode_and_no_log_level(greeter):
    good = greeter.config_path.read_text()
    greeter.write(good + 'modparam("mi_datagram", "unix_socket_mode", 0600)\nlog_level=3\n')
    greeter.reload()
    assert stat.S_IMODE(os.stat(greeter.place).st_mode) == 0o600
    levels = greeter.ask(b":log_level:\n").count(b"Log level=3")
    greeter.write(good + 'modparam("mi_datagram", "unix_socket_mode", 0666)\nlog_level=1\n')
    greeter.write_plug_in(GREETER + "def child_init(ctx):\n    raise OSError('no database')\n")
    greeter.reload("reload taken back")
    greeter.write(good + 'modparam("mi_datagram", "unix_socket_mode", 0666)\n' + own("listen", '"/nowhere/at/all"'))
    greeter.reload("reload refused")
    assert stat.S_IMODE(os.stat(greeter.place).st_mode) == 0o600
    wait_for(lambda: greeter.ask(b":log_level:\n").count(b"Log level=3") == levels, what="the log levels as before")
    greeter.stop(tracebacks=True)


BAD = {  # what is added to the configuration, the new source of the plug-in, what the log says
    "value": ('modparam("mi_datagram", "children_count", "many")\n', None, r"test\.conf:\d+: .*children_count"),
    "syntax": ('modparam("mi_datagram"\n', None, r"test\.conf:\d+: "),
    "no such plug-in": ('loadmodule "absent.py"\n', None, r"test\.conf:\d+: .*absent"),
    "folder of a socket": (own("listen", '"/nowhere/at/all.sock"'), None, "/nowhere/at/all.sock"),
    "plug-in's syntax": ("", "def (:\n", r"greeter\.py:1: "),
    "plug-in's import": ("", "import no_such_module\n", r"greeter\.py:1: .*no_such_module"),
    "plug-in's exit": ("", GREETER + "def init(ctx):\n    raise SystemExit('bad')\n", r"greeter\.py:\d+: .*SystemExit: bad"),
    "plug-in's init": ("", GREETER + "def init(ctx):\n    1 / 0\n", r"greeter\.py:\d+: .*ZeroDivisionError"),
}


@pytest.mark.parametrize("kind", BAD)
def test_reload_with_a_mistake_keeps_the_old_and_says_why(greeter, kind):
    text, source, why = BAD[kind]
    before, good = greeter.children(), greeter.config_path.read_text()
    with Load(greeter, b":greet:\n", 2) as load:
        load.wait(50)
        greeter.write(good + text)
        if source:
            greeter.write_plug_in(source)
        greeter.reload("reload refused, the old configuration stays: ")
        load.wait(50)
    assert load.lost == 0
    assert (greeter.log.count("ready:"), greeter.log.count("reloaded")) == (1, 0)
    assert re.search(f"reload refused, the old configuration stays: .*{why}", greeter.log)
    assert greeter.children() == before
    assert (greeter.statistic("reload_errors"), greeter.statistic("reloads")) == (1, 0)
    greeter.write(good)
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    assert b"good day" in greeter.ask(b":greet:\n")


def test_reload_whose_children_cannot_start_is_taken_back(greeter):
    with Load(greeter, b":greet:\n", 3) as load:
        load.wait(100)
        greeter.write_plug_in(NEW_GREETER + "def child_init(ctx):\n    raise OSError('no database')\n")
        greeter.write(greeter.config_path.read_text().replace('children_count", 2', 'children_count", 3'))
        greeter.reload("reload taken back")
        load.wait(200)
    assert load.lost == 0
    assert set(load.replies) == {b"200 OK\ngreeting:: hello\n\n"}
    assert "no database" in greeter.log
    assert len(greeter.children()) == 2
    assert (greeter.statistic("reload_errors"), greeter.statistic("reloads")) == (1, 0)
    greeter.write_plug_in(NEW_GREETER)
    greeter.reload()
    assert b"good day" in greeter.ask(b":greet:\n")
    greeter.stop(tracebacks=True)


def test_many_reloads_at_once_lose_nothing(greeter):
    with Load(greeter, b":greet:\n", 3) as load:
        for _ in range(10):
            load.wait(10)
            greeter.signal(signal.SIGHUP)
        load.wait(500)
        wait_for(lambda: len(greeter.children()) == 2, what="two children")
    assert load.lost == 0
    assert greeter.statistic("child_deaths") == 0


def test_reload_gets_rid_of_a_child_that_is_stuck(start):
    server = start(PLUG_INS + own("stop_timeout", 300) + children_count(2), *TROUBLE)
    before = server.children()
    server.client().send(b":block:\n60000\n")
    wait_for(lambda: server.ask(WHOAMI, 0.2), what="the other child")
    server.reload()
    assert server.log.count("does not stop, killed") >= 1
    assert not set(before) & set(server.children())
    assert len(server.children()) == 2


def open_files(pid):
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_reloads_and_deaths_leave_nothing_behind_in_the_attendant(start):
    server = start(PLUG_INS + children_count(2) + own("listen", f'"udp:127.0.0.1:{free_port()}"'), *TROUBLE)
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1  # no hub, no threads
    server.reload()
    files = open_files(server.pid)
    for _ in range(5):
        server.reload()
    assert open_files(server.pid) == files
    victim = server.children()[0]
    time.sleep(max(0, 1.1 - process_age_s(victim)))  # what dies later than a second after its start is replaced at once
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: len(set(server.children()) - {victim}) == 2, what="a new child")
    assert open_files(server.pid) == files
    assert len(os.listdir(f"/proc/{server.pid}/task")) == 1


def process_age_s(pid):
    """How long ago a process was started."""
    ticks = int(pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def shared_folders(pid):
    """The folders with what a server's processes share."""
    return list(pathlib.Path("/dev/shm").glob(f"midatagram-{pid}-*"))


def test_shared_files_go_with_the_server_and_those_of_a_killed_one_with_the_next(start):
    first = start(PLUG_INS, *TROUBLE)
    assert len(shared_folders(first.pid)) == 1
    first.stop()
    assert not shared_folders(first.pid)
    second = start(PLUG_INS, *TROUBLE)
    second.process.kill()
    second.process.wait()
    assert len(shared_folders(second.pid)) == 1
    third = start(PLUG_INS, *TROUBLE)
    assert not shared_folders(second.pid)
    assert len(shared_folders(third.pid)) == 1


# Stops


@pytest.mark.parametrize("how", ["time.sleep(3600)", "mi.original('time', 'sleep')(3600)"])
def test_term_ends_a_server_whose_children_never_start(start, plug_in, how):
    folder = plug_in("late", f"import time\nimport midatagram as mi\n\n\ndef child_init(ctx):\n    {how}\n")
    server = start('loadmodule "late.so"\n', "-p", folder, ready=False)
    children = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children")
    wait_for(children.read_text, what="a child")
    wait_for(lambda: os.path.exists(server.place), what="the socket")
    server.stop()
    assert not os.path.exists(server.place)


def test_child_that_takes_long_to_start_is_not_taken_for_a_stalled_one(start, plug_in):
    folder = plug_in("late", "import time\n\n\ndef child_init(ctx):\n    time.sleep(1.2)\n")
    server = start('loadmodule "late.so"\n' + own("stall_timeout", 300), "-p", folder)
    assert "stalled" not in server.log
    assert server.statistic("child_stalls") == 0


@pytest.mark.parametrize("connected", [False, True])
def test_term_finishes_what_is_in_hand_and_removes_the_socket(start, connected):
    server = start(PLUG_INS + children_count(2), *TROUBLE)
    client = server.client(connected=connected)
    for number in (500, 600, 700, 800, 500):
        client.send(b":msleep:\n%d\n" % number)
    wait_for(lambda: server.statistic("requests") >= 6, what="five requests in hand")
    server.signal(signal.SIGTERM)
    server.wait_log("stopping")
    assert server.process.wait(STOP_S) == 0
    assert sorted(client.receive(0.1) or b"" for _ in range(5)) == [b"200 OK\nslept:: %d\n\n" % number
                                                                     for number in (500, 500, 600, 700, 800)]
    assert not os.path.exists(server.place)


@pytest.mark.parametrize("stuck", [b":msleep:\n60000\n", b":block:\n60000\n"])
def test_term_ends_the_server_in_time_whatever_a_handler_does(start, stuck):
    server = start(PLUG_INS + children_count(2), *TROUBLE)
    children = server.children()
    server.client().send(stuck)
    wait_for(lambda: server.ask(WHOAMI, 0.2), what="the other child")
    told_s = time.monotonic()
    server.stop()
    assert time.monotonic() - told_s < STOP_S
    assert not any(map(is_alive, children))
    assert not os.path.exists(server.place)


def test_term_delivers_what_waits_for_a_slow_reader(start):
    server = start(PLUG_INS, *TROUBLE)
    client = server.client()
    for _ in range(40):
        client.send(WHOAMI)
    assert server.statistic("delayed") == 29
    server.signal(signal.SIGTERM)
    server.wait_log("stopping")
    assert all(client.receive(1) for _ in range(40))
    assert server.process.wait(STOP_S) == 0


def test_int_is_quick(start):
    server = start(PLUG_INS + children_count(2), *TROUBLE)
    for _ in range(3):
        server.client().send(b":msleep:\n60000\n")
    wait_for(lambda: server.statistic("requests") >= 4, what="three requests in hand")
    told_s = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.process.wait(STOP_S) == 0
    assert time.monotonic() - told_s < 1.0
    assert not os.path.exists(server.place)


def test_usr1_opens_the_log_file_again_in_all_processes(start, tmp_path):
    path, moved = tmp_path / "mi.log", tmp_path / "mi.log.1"
    server = start(PLUG_INS + own("log_file", f'"{path}"'), *TROUBLE, ready=False)
    wait_for(lambda: path.exists() and "ready:" in path.read_text(), what="the log file")
    server.ask(b":stumble:\n")
    assert "ZeroDivisionError" in path.read_text()
    path.rename(moved)
    server.ask(b":fail:\n")
    assert "command fail failed" in moved.read_text()
    server.signal(signal.SIGUSR1)
    wait_for(path.exists, what="a new file")
    wait_for(lambda: server.ask(b":fail:\n") and "command fail failed" in path.read_text(), what="the child to use it")
    size = moved.stat().st_size
    server.stop()
    assert "stopping" in path.read_text()
    assert moved.stat().st_size == size
    assert server.log == ""


def test_usr1_with_a_log_that_cannot_be_opened_goes_on_with_the_old_one(start, tmp_path):
    """As after -u, when the folder is root's."""
    folder, moved = tmp_path / "logs", tmp_path / "gone"
    folder.mkdir()
    server = start(PLUG_INS + own("log_file", f'"{folder}/mi.log"'), *TROUBLE, ready=False)
    wait_for(lambda: (folder / "mi.log").exists() and "ready:" in (folder / "mi.log").read_text(), what="the log file")
    child = server.children()
    folder.rename(moved)
    server.signal(signal.SIGUSR1)
    wait_for(lambda: (moved / "mi.log").read_text().count("cannot be opened again") == 3, what="all processes to say so")
    assert server.children() == child
    server.ask(b":fail:\n")
    assert "command fail failed" in (moved / "mi.log").read_text()
    folder.mkdir()
    server.signal(signal.SIGUSR1)
    wait_for(lambda: server.ask(b":fail:\n") and (folder / "mi.log").exists()
             and "command fail failed" in (folder / "mi.log").read_text(), what="the new file")


def test_usr1_does_not_end_a_child_that_starts(start, tmp_path):
    (tmp_path / "late.py").write_text("import gevent\n\ndef child_init(ctx):\n    gevent.sleep(1)\n")
    server = start('loadmodule "late.so"\n', "-p", str(tmp_path), ready=False)
    wait_for(lambda: is_alive(server.pid) and pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text(),
             what="a child")
    time.sleep(0.3)
    server.signal(signal.SIGUSR1)
    server.wait_log("ready:")
    assert "died" not in server.log


def test_term_during_a_reload_leaves_no_socket(greeter, tmp_path):
    greeter.write_plug_in(SLOW_AND_BAD)
    greeter.write(greeter.config_path.read_text().replace(greeter.place, f"{tmp_path}/other.sock"))
    greeter.signal(signal.SIGHUP)
    wait_for(lambda: os.path.exists(f"{tmp_path}/other.sock"), what="the new socket")
    greeter.signal(signal.SIGTERM)
    assert greeter.process.wait(STOP_S) == 0
    assert not os.path.exists(greeter.place) and not os.path.exists(f"{tmp_path}/other.sock")


def sleeps(pid):
    """How often a process has gone to sleep."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"\nvoluntary_ctxt_switches:\t(\d+)", status)[1])


def test_children_that_were_frozen_with_the_attendant_are_not_stalled(start, tmp_path):
    """The attendant says WATCHDOG=1 each time it finds that all children beat, but not before it has given them the time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        server = start(PLUG_INS + own("stall_timeout", 1000), *TROUBLE, environment={"NOTIFY_SOCKET": manager.getsockname()})
        pids = [server.pid, *server.children()]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(2.5)
        while select.select([manager], [], [], 0)[0]:
            manager.recv(999)
        before = sleeps(server.pid)
        os.kill(server.pid, signal.SIGCONT)
        wait_for(lambda: sleeps(server.pid) > before, what="the attendant to have looked around")
        os.kill(pids[1], signal.SIGCONT)
        assert [b"WATCHDOG=1" in manager.recv(999) for _ in range(3)] == [False, True, True]
    assert server.children() == pids[1:] and "stalled" not in server.log


def test_only_folders_of_dead_runs_are_cleared_away(tmp_path, monkeypatch):
    """A pid says nothing about a run in another container, but its lock does."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    dead, locked = tmp_path / "midatagram-4194305-x", tmp_path / "midatagram-4194306-x"
    for folder in (dead, locked):
        folder.mkdir()
        (folder / "store.sqlite").touch()
    holder = os.open(locked, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    made, descriptor = mi.run_folder()
    assert sorted(map(str, tmp_path.iterdir())) == sorted(map(str, [locked, made]))
    second, other = mi.run_folder()
    assert sorted(map(str, tmp_path.iterdir())) == sorted(map(str, [locked, made, second]))
    for number in (holder, descriptor, other):
        os.close(number)


def test_a_lock_on_the_folder_that_nobody_gives_up_does_not_keep_us_from_starting(start, tmp_path):
    (tmp_path / "held").mkdir()
    holder = os.open(tmp_path / "held", os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    server = start(PLUG_INS, *TROUBLE, place=f"{tmp_path}/held/mi.sock")
    assert server.ask(WHOAMI) and "somebody holds the lock" in server.log
    os.close(holder)


# What lies at the path


def test_socket_file_deleted_under_the_server_is_bound_again(start):
    needs_root()
    server = start(PLUG_INS + 'modparam("mi_datagram", "unix_socket_mode", 0606)\n'
                   'modparam("mi_datagram", "unix_socket_user", "daemon")\n', *TROUBLE)
    waiting = server.client(connected=True)
    os.unlink(server.place)
    waiting.send(b":msleep:\n1500\n")  # through the old socket
    server.wait_log("was deleted; bound again", 3)
    server.wait_log("ready:", times=2)
    assert server.ask(WHOAMI).startswith(b"200 OK\n")
    status = os.stat(server.place)
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o606, 1)
    assert waiting.receive() == b"200 OK\nslept:: 1500\n\n"
    server.stop()
    assert not os.path.exists(server.place)


def test_another_server_s_socket_at_our_path_is_left_alone(start):
    server = start()
    os.unlink(server.place)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(server.place)
        server.wait_log("somebody put another file there", 3)
        theirs = os.stat(server.place).st_ino
        server.stop()
        assert os.stat(server.place).st_ino == theirs


def snapshot(path):
    """What tells whether anybody touched a path."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return None
    content = pathlib.Path(path).read_bytes() if stat.S_ISREG(status.st_mode) else b""
    return status.st_ino, status.st_mode, status.st_uid, status.st_mtime_ns, content


def put_regular_file(path):
    path.write_text("precious")


def put_link(path):
    path.symlink_to(path.parent / "elsewhere")


def put_dead_socket(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))


def put_link_to_dead_socket(path):
    put_dead_socket(f"{path}.real")
    path.symlink_to(f"{path}.real")


REFUSED = {
    "regular file": (put_regular_file, 73, "is a file, which is left as it is; remove it or choose another path"),
    "link": (put_link, 73, "is a symbolic link, which is left as it is"),
    "link to a dead socket": (put_link_to_dead_socket, 73, "is a symbolic link, which is left as it is"),
    "folder": (pathlib.Path.mkdir, 73, "is a folder, which is left as it is"),
    "fifo": (os.mkfifo, 73, "is a FIFO, which is left as it is"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_start_refuses_what_is_no_dead_socket_and_touches_nothing(tmp_path, kind):
    put, status, message = REFUSED[kind]
    path = tmp_path / "mi.sock"
    put(path)
    before = snapshot(path)
    done = run("-s", path)
    assert (done.returncode, done.stdout) == (status, "")
    assert f"midatagram: {path} {message}" in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(path) == before


def test_start_refuses_a_missing_folder(tmp_path):
    done = run("-s", tmp_path / "absent" / "mi.sock")
    assert done.returncode == 73
    assert f"mkdir -p {tmp_path}/absent" in done.stderr
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("kind", ["our own", "another program's"])
def test_start_refuses_a_live_socket(start, tmp_path, kind):
    with contextlib.ExitStack() as stack:
        if kind == "our own":
            place = start(PLUG_INS, *TROUBLE).place
        else:
            place = str(tmp_path / "theirs.sock")
            stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)).bind(place)
        before = snapshot(place)
        done = run("-s", place)
        assert done.returncode == 69
        assert f"{place} is the socket of a running server; stop that one or choose another path" in done.stderr
        assert snapshot(place) == before


@pytest.mark.parametrize("ours", [False, True])
def test_start_refuses_a_port_in_use(start, ours):
    place = f"udp:127.0.0.1:{free_port()}"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        if ours:
            server = start(PLUG_INS, *TROUBLE, place=place)
        else:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", int(place.rpartition(":")[2])))
        done = run("-s", place)
        assert done.returncode == 69
        assert f"socket {place} is in use by another program; stop it or choose another" in done.stderr
        if ours:
            assert server.ask(WHOAMI).startswith(b"200 OK\n")


def test_start_that_fails_on_a_later_socket_leaves_none_behind(tmp_path):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "c").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                                + own("listen", f'"{tmp_path}/second.sock"') + own("listen", f'"{tmp_path}/file"'))
    assert run("-f", tmp_path / "c").returncode == 73
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "file"]


def test_of_two_servers_started_at_once_on_one_path_one_serves(tmp_path):
    place = tmp_path / "mi.sock"
    for turn in range(4):
        if turn % 2:
            put_dead_socket(place)
        started = [subprocess.Popen([sys.executable, str(SCRIPT), "-s", str(place)], stderr=subprocess.PIPE, text=True)
                   for _ in range(3)]
        try:
            wait_for(lambda: sum(process.poll() is not None for process in started) == 2, 20, "two to give up")  # noqa: B023
            [survivor] = [process for process in started if process.poll() is None]
            for process in started:
                if process is not survivor:
                    assert process.returncode == 69
                    assert "is the socket of a running server" in process.stderr.read()
            with Client(str(place), tmp_path) as client:
                assert client.ask(b":uptime:\n").startswith(b"200 OK\n")
            survivor.terminate()
            assert survivor.wait(STOP_S) == 0
        finally:
            for process in started:
                process.kill()
                process.wait()
                process.stderr.close()
        assert not place.exists()


def has_open(pid, folder):
    """Whether a process has a folder open."""
    links = []
    with contextlib.suppress(FileNotFoundError):
        links = [os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()]
    return str(folder) in links


def test_start_waits_for_another_that_is_looking_at_the_path(tmp_path):
    place, folder = tmp_path / "mi.sock", os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)  # as a server does that has found a dead socket and is about to replace it
    put_dead_socket(place)
    late = subprocess.Popen([sys.executable, str(SCRIPT), "-s", str(place)], stderr=subprocess.PIPE, text=True)
    with late, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        try:
            wait_for(lambda: has_open(late.pid, tmp_path), what="the second server to wait")
            place.unlink()
            first.bind(str(place))
            os.close(folder)
            assert late.wait(10) == 69
            assert "is the socket of a running server" in late.stderr.read()
            first.connect(str(place))
        finally:
            late.kill()


def test_two_servers_share_nothing(start):
    first, second = start(), start()
    first.ask(b":cache_store:\nlocal\nkey\nfirst\n")
    assert b"Value not found" in second.ask(b":cache_fetch:\nlocal\nkey\n")
    second.stop()
    assert b"value:: first" in first.ask(b":cache_fetch:\nlocal\nkey\n")
    assert first.statistic("requests") == 3
