"""Real processes and sockets: families, children, permissions, counters, and clients that come and go."""

import os
import pwd
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from conftest import PLUGINS, free_port, needs_root, wait_for

import midatagram as mi

ECHO = 'loadmodule "mi_echo.so"\n'
PATHS = ("-p", str(PLUGINS))
BUSY = """if True:  # ask without waiting for each reply, until killed
    import socket, sys
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.bind(sys.argv[2])
    client.connect(sys.argv[1])
    for _ in range(8):
        client.send(b":uptime:\\n")
    while client.recv(4096):
        client.send(b":uptime:\\n")
"""


@pytest.mark.parametrize("children", [1, 3])
@pytest.mark.parametrize("host, family", [(None, None), ("127.0.0.1", socket.AF_INET), ("[::1]", socket.AF_INET6)])
def test_each_family_is_served(start, children, host, family):
    place = f"udp:{host}:{free_port(family)}" if host else None
    server = start(f'modparam("mi_datagram", "children_count", {children})\n{ECHO}', *PATHS, place=place)
    assert server.ask(b":echo:\nx\n").startswith(b"200 OK\nx len_name=0")
    assert server.ask(b"nonsense") == b"500 command not available\n"
    assert len(server.children()) == children


def test_ps_and_titles_tell_what_each_process_is(start):
    server = start('modparam("mi_datagram", "children_count", 2)')
    lines = server.ask(b":ps:\n").decode().splitlines()[1:-1]
    first, second = server.children()
    assert lines == [f"Process::  ID=0 PID={server.pid} Type=attendant", f"Process::  ID=1 PID={first} Type=MI Datagram",
                     f"Process::  ID=2 PID={second} Type=MI Datagram"]
    titles = {pid: open(f"/proc/{pid}/cmdline").read().strip("\0") for pid in (server.pid, first, second)}  # noqa: SIM115
    assert titles == {server.pid: f"midatagram: attendant {server.place}", first: f"midatagram: MI Datagram 1 {server.place}",
                      second: f"midatagram: MI Datagram 2 {server.place}"}


@pytest.mark.parametrize("written, mode", [("", 0o660), ("0666", 0o666), ("0600", 0o600), ("384", 0o600)])
def test_mode_of_the_socket(start, written, mode):
    line = f'modparam("mi_datagram", "unix_socket_mode", {written})' if written else ""
    server = start(line)
    assert stat.S_IMODE(os.stat(server.place).st_mode) == mode
    assert ("is decimal and means mode 0600" in server.log) == (written == "384")


def test_owner_of_the_socket(start):
    needs_root()
    nobody = pwd.getpwnam("nobody")
    server = start('modparam("mi_datagram", "unix_socket_user", "nobody")')
    assert (os.stat(server.place).st_uid, os.stat(server.place).st_gid) == (nobody.pw_uid, nobody.pw_gid)
    server = start('modparam("mi_datagram", "unix_socket_user", 1234)\nmodparam("mi_datagram", "unix_socket_group", "daemon")')
    assert (os.stat(server.place).st_uid, os.stat(server.place).st_gid) == (1234, 1)


def test_counters_are_exact_under_three_children(start):
    server = start(f'modparam("mi_datagram", "children_count", 3)\n{ECHO}loadmodule "hello.so"\n', *PATHS)
    before = {name: server.statistic(name) for name in ("greetings", "errors")}
    requests = server.statistic("requests")

    def work():
        with_own = server.client()
        for number in range(300):
            assert with_own.ask(b":hello:\nBob\n2\n" if number % 3 else b"no command")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.statistic("greetings") - before["greetings"] == 6 * 200 * 2
    assert server.statistic("errors") - before["errors"] == 6 * 100
    assert server.statistic("requests") - requests == 6 * 300 + 3  # and the three that asked


def test_what_a_child_counts_is_never_seen_half_written(start):
    server = start('modparam("mi_datagram", "children_count", 2)')
    path, deadline_s, seen, polls = f"{server.folder}/busy", time.monotonic() + 3, [0, 0], 0
    busy = subprocess.Popen([sys.executable, "-c", BUSY, server.place, path])
    try:
        client = server.client()
        while time.monotonic() < deadline_s:
            reply = client.ask(b":get_statistics:\nrequests\nbytes_received\n")
            now = [int(line.rpartition(b" ")[2]) for line in reply.splitlines()[1:3]]
            assert all(new >= old for new, old in zip(now, seen, strict=True)), polls
            seen, polls = now, polls + 1
    finally:
        busy.kill()
        busy.wait()
    assert seen[0] > polls + 100, "the other client asked as well"


def test_each_request_of_a_burst_finds_all_before_it_counted(start):
    server = start(place=f"udp:127.0.0.1:{free_port()}")
    poll, [child] = b":get_statistics:\nrequests\nbytes_received\n", server.children()
    with server.client() as client:
        for _ in range(3):
            last = client.ask(poll)  # is remembered by now
        os.kill(child, signal.SIGSTOP)
        for number in range(40):
            client.send(b":uptime:\n" if number % 4 == 3 else poll)
        os.kill(child, signal.SIGCONT)
        replies = [client.receive() for _ in range(40)]
    requests, received = (int(line.rpartition(b" ")[2]) for line in last.splitlines()[1:3])
    for number, reply in enumerate(replies):
        requests, received = requests + 1, received + (len(b":uptime:\n") if number % 4 == 3 else len(poll))
        if number % 4 != 3:
            assert reply == b"200 OK\nmi_datagram:requests:: %d\nmi_datagram:bytes_received:: %d\n\n" % (requests, received)
    assert server.statistic("replies") == requests


def test_counters_are_reset_and_go_on(start):
    server = start('modparam("mi_datagram", "children_count", 3)\nloadmodule "hello.so"')
    for _ in range(10):
        server.ask(b":hello:\nBob\n")
    assert server.ask(b":reset_statistics:\ngreetings\n") == b"200 OK\n\n"
    assert server.statistic("greetings") == 0
    server.ask(b":hello:\nBob\n3\n")
    assert server.statistic("greetings") == 3


def test_a_blocking_handler_holds_up_nobody(start):
    server = start(ECHO, *PATHS)
    slow, quick = server.client(), server.client()
    slow.send(b":msleep:\n700\n")
    asked_s = time.monotonic()
    assert quick.ask(b":echo:\n") == b"200 OK\n\n"
    assert time.monotonic() - asked_s < 0.6
    assert slow.receive() == b"200 OK\nslept:: 700\n\n"


def test_a_full_pool_loses_nothing(start):
    server = start(f'modparam("midatagram", "pool_size", 2)\n{ECHO}', *PATHS)
    clients = [server.client() for _ in range(8)]
    for client in clients:
        client.send(b":msleep:\n50\n")
    assert [client.receive() for client in clients] == [b"200 OK\nslept:: 50\n\n"] * 8


def test_a_hundred_slow_requests_at_once(start):
    server = start(ECHO, *PATHS)
    clients, asked_s = [server.client() for _ in range(100)], time.monotonic()
    for client in clients:
        client.send(b":msleep:\n300\n")
    assert all(client.receive() == b"200 OK\nslept:: 300\n\n" for client in clients)
    assert time.monotonic() - asked_s < 15  # one after the other they would take 30 s


def test_clients_that_are_not_there(start):
    server = start(ECHO, *PATHS)
    server.client(bound=False).send(b":uptime:\n")
    gone = server.client()
    gone.send(b":msleep:\n50\n")
    gone.close()
    os.unlink(gone.path)
    server.client().send(b"")
    wait_for(lambda: server.statistic("unreachable") == 2)
    assert server.statistic("empty") == 1
    assert server.ask(b":echo:\n") == b"200 OK\n\n"
    server.wait_log("is not bound")
    assert server.log.count("is not bound") == 1


def test_kill_answers_and_stops(start):
    server = start()
    assert server.ask(b":kill:\n") == b"200 OK\n\n"
    assert server.process.wait(5) == 0
    assert not os.path.exists(server.place)


def test_log_level_reaches_all_children_or_one(start):
    server = start('log_level=2\nmodparam("mi_datagram", "children_count", 2)')
    first, second = server.children()
    assert server.ask(b":log_level:\n4\n%d\n" % first) == b"200 OK\nNew log level:: 4\n\n"
    lines = server.ask(b":log_level:\n").decode()
    assert f"PID={first} Log level=4" in lines and f"PID={second} Log level=2" in lines
    assert server.ask(b":log_level:\n4\n") == b"200 OK\nNew global log level:: 4\n\n"
    wait_for(lambda: server.ask(b":pwd:\n") and "b':pwd:\\n' from" in server.log)  # seen within half a second
    assert server.ask(b":log_level:\n1\n") == b"200 OK\nNew global log level:: 1\n\n"
    assert f"PID={first} Log level=1" in server.ask(b":log_level:\n").decode()


@pytest.mark.parametrize("request_", [b":log_level:\n", b'{"jsonrpc":"2.0","method":"log_level","id":1}'])
def test_a_log_level_that_another_child_sets_shows_at_once(start, request_):
    server = start('log_level=2\nmodparam("mi_datagram", "children_count", 2)')
    first, second = server.children()
    client, level = server.client(), re.compile(rb'Log level"?[=:](\d)')

    def ask_child(pid, request):
        for child in (first, second):
            os.kill(child, signal.SIGCONT if child == pid else signal.SIGSTOP)
        wait_for(lambda: open(f"/proc/{first + second - pid}/stat").read().rpartition(")")[2].split()[0] == "T")  # noqa: SIM115
        return client.ask(request)

    for set_by, asked, word in ((first, second, b"4"), (second, first, b"1")):
        before = [ask_child(asked, request_) for _ in range(4)]  # is remembered by now
        assert len(set(before)) == 1 and word not in level.findall(before[0])
        assert ask_child(set_by, b":log_level:\n%b\n" % word).startswith(b"200")
        assert level.findall(ask_child(asked, request_)) == [word] * 3
    os.kill(second, signal.SIGCONT)


@pytest.mark.parametrize("request_", [b":ps:\n", b'{"jsonrpc":"2.0","method":"ps","id":1}'])
def test_a_child_that_is_killed_and_replaced_shows_in_a_remembered_ps(start, request_):
    server = start('modparam("mi_datagram", "children_count", 2)')
    first, second = server.children()
    client, pids = server.client(), re.compile(rb'PID"?[=:](\d+)')
    os.kill(second, signal.SIGSTOP)
    for _ in range(4):
        before = client.ask(request_)  # is remembered by now
    assert pids.findall(before) == [b"%d" % pid for pid in (server.pid, first, second)]
    os.kill(second, signal.SIGKILL)
    server.wait_log(f"(pid {second}) died")
    assert b"%d" % second not in pids.findall(client.ask(request_))
    replies = [wait_for(lambda: len(pids.findall(reply := client.ask(request_))) == 3 and reply) for _ in range(4)]
    [child] = server.children()[1:]
    assert {tuple(pids.findall(reply)) for reply in replies} == {(b"%d" % server.pid, b"%d" % first, b"%d" % child)}


def test_a_kept_process_table_is_good_until_a_field_or_the_number_of_rows_changes():
    processes = mi.Processes()
    changes = [lambda: processes.set(1, pid=7), lambda: processes.set(0, level=1), lambda: processes.set(1, state=2),
               lambda: processes.claim(), lambda: processes.set(2, own_level=1), lambda: processes.claim()]
    for change in changes:
        shape = mi.Shape(mi.Reply(live=processes.unchanged()), "a table")
        processes.beats[1] += 1
        assert [shape.now() for _ in range(3)] == [b"a table"] * 3
        change()
        assert shape.now() is shape.now() is None


def test_the_process_table_shows_by_rank_who_starts_and_who_serves():
    processes = mi.Processes()
    states = processes.SERVING, processes.STOPPING, processes.STARTING, processes.FREE
    for rank, state in zip((4, 3, 2, 1), states, strict=True):
        processes.set(processes.claim(), rank=rank, pid=100 + rank, state=state)
    processes.claim()  # its process is not there yet
    processes.set(mi.ATTENDANT, pid=100, state=processes.SERVING)
    assert processes.living() == [(0, 100, "attendant", 1), (2, 102, "MI Datagram", 4), (4, 104, "MI Datagram", 2)]


def test_a_process_table_that_changes_while_the_reply_is_made_is_read_again():
    processes = mi.Processes()
    shape = mi.Shape(mi.Reply(live=processes.unchanged()), "made before")
    processes.set(1, pid=7)
    assert [shape.now(), shape.now()] == [b"made before", None]


def test_d_logs_requests_and_replies_escaped(start):
    server = start(ECHO, "-d", *PATHS)
    server.ask(b":echo:\n\x01\xff\n")
    server.wait_log(r"b':echo:\n\x01\xff\n' from")
    server.wait_log("null_value=0")


def test_figures_of_the_operating_system(start):
    server = start()
    child = server.children()[0]
    with open(f"/proc/{child}/status") as status:
        resident = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
    assert abs(server.statistic("1-real_used_size") - resident) < 4 << 20
    assert 0 <= server.statistic("timestamp") < 60
    assert server.statistic("total_size") == server.statistic("used_size") + server.statistic("free_size")
    assert 0 <= server.statistic("load-proc-1") <= 100


def test_memory_of_processes(start):
    server = start('modparam("mi_datagram", "children_count", 2)')
    reply = server.ask(b":get_statistics:\nshmem:\npkmem:\n").decode()
    figures = {name: int(value) for name, value in re.findall(r"^\w+:(.*):: (\d+)$", reply, re.M)}
    for part, pid in (("0-", server.pid), *zip(("1-", "2-"), server.children(), strict=True)):
        with open(f"/proc/{pid}/maps") as maps:
            fragments = sum(line.split()[1].endswith("p") for line in maps)
        assert abs(figures[f"{part}fragments"] - fragments) < 20
        assert figures[f"{part}total_size"] == figures[f"{part}real_used_size"] + figures[f"{part}free_size"]
        assert 1 << 20 < figures[f"{part}used_size"] < figures[f"{part}real_used_size"] <= figures[f"{part}max_used_size"]
    assert figures["total_size"] == figures["used_size"] + figures["free_size"] and figures["fragments"] >= 2


def test_memory_of_a_process_that_is_gone_is_0():
    gone = subprocess.Popen(["true"])
    gone.wait()
    processes = mi.Processes()
    for rank, pid in enumerate((os.getpid(), gone.pid)):
        processes.set(processes.claim(), rank=rank, pid=pid)
    plugin = mi.shared("figures")
    figures = plugin.own_memory(processes, 2)  # of rank 2 there is no process
    assert figures["0-real_used_size"] > 1 << 20
    assert {figures[f"{rank}-{name}"] for rank in (1, 2) for name in plugin.MEMORY} == {0}


def test_figures_of_the_system_are_read_at_most_once_a_second():
    read_s, each_second = [], mi.shared("figures").each_second
    figures, end_s = each_second(lambda: read_s.append(int(time.monotonic())) or {"read": len(read_s)}), time.monotonic() + 1.5
    while time.monotonic() < end_s:
        assert figures() == {"read": len(read_s)}
    assert len(read_s) == len(set(read_s)) >= 2


def test_loads_are_those_of_the_processes(start):
    server = start('modparam("mi_datagram", "children_count", 2)')
    names = ["load", "load-all", "load-proc-0", "load-proc-1", "load-proc-2"]

    def loads():
        reply = server.ask(b":get_statistics:\n%b\n" % "\n".join(names).encode()).decode()
        return [int(value) for value in re.findall(r":: (\d+)$", reply, re.M)]

    assert len(loads()) == 5
    busy = subprocess.Popen([sys.executable, "-c", BUSY, server.place, f"{server.folder}/busy"])
    try:
        wait_for(lambda: sum(loads()[-2:]) > 20, what="children to be busy")
        attendant, first, second = wait_for(lambda: (now := loads())[:2] == [sum(now[3:]) // 2, sum(now[2:]) // 3] and now)[2:]
    finally:
        busy.kill()
        busy.wait()
    assert attendant <= first + second <= 210
    wait_for(lambda: sum(loads()) < 20, what="the load to end")
    assert server.statistic("load1m") > 0


def test_loads_are_means_of_the_last_second_minute_and_ten_minutes():
    loads_of = mi.shared("figures").Loads(mi.Counters(), mi.Processes()).of
    assert loads_of(os.getpid(), 1000.0) == [0, 0, 0]
    end_s = time.process_time() + 1
    while time.process_time() < end_s:
        pass
    for now_s, loads in ((1001.0, (100, 100, 100)), (1002.0, (0, 50, 50)), (1062.0, (0, 0, 2)), (1610.0, (0, 0, 0))):
        assert loads_of(os.getpid(), now_s) == pytest.approx(loads, abs=loads[-1] * 0.1 + 0.5)


def test_the_load_of_a_rank_whose_process_is_gone_is_0():
    gone = subprocess.Popen(["true"])
    gone.wait()
    processes = mi.Processes()
    loads = mi.shared("figures").Loads(counters := mi.Counters(), processes)
    counted = counters.use(mi.ATTENDANT)
    processes.set(processes.claim(), rank=1, pid=gone.pid)  # of rank 2 there is no process at all
    columns = [counters.column("load", f"load-proc-{rank}") for rank in (1, 2)]
    for column in columns:
        counted[column] = 50
    loads.measure(counted, 2, time.monotonic())
    assert [counted[column] for column in columns] == [0, 0] and not loads.samples


@pytest.mark.parametrize("place, credentials, told", [
    ("path", False, False), ("path", True, True), ("127.0.0.1", False, False), ("127.0.0.1", True, False),
    ("0.0.0.0", False, True), ("::", False, True),
])
def test_what_the_kernel_tells_of_a_sender_is_asked_for_only_where_it_is_needed(tmp_path, place, credentials, told):
    """By access lists of UNIX users, and by sockets of all addresses."""
    if place == "path":
        family, spot = socket.AF_UNIX, str(tmp_path / "mi.sock")
    else:
        family, spot = socket.AF_INET6 if ":" in place else socket.AF_INET, (place, free_port())
    listener = mi.Place(mi.Address(place), family, spot, 0o600, -1, -1)
    endpoint = mi.open_endpoint(listener, {})
    endpoint.prepare(credentials)
    assert endpoint.receive == (endpoint.receive_message if told else endpoint.socket.recvfrom)
    endpoint.close(True)
