"""What whoever can send a datagram may do: neither loops, nor memory, nor time of others can be had from the server."""

import contextlib
import itertools
import json
import os
import pathlib
import socket
import struct
import subprocess
import threading
import time

import pytest
from conftest import PLUGINS, free_port, needs, needs_root, wait_for

import midatagram as mi

UDP = 'modparam("midatagram", "listen", "{udp}")\n'


def spoof(source, target, data):
    """Send a UDP datagram from whatever source (host, port)."""
    def header(host):
        return socket.inet_aton(host)
    udp = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    packet = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + header(source[0]) + header(
        target[0]) + udp
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        raw.sendto(packet, (target[0], 0))


@pytest.fixture
def udp_server(start):
    """A server that also listens on UDP, and that UDP address."""
    port = free_port()
    server = start(UDP.replace("{udp}", f"udp:127.0.0.1:{port}"))
    return server, ("127.0.0.1", port)


REPLIES = [
    b"200 OK\n", b"500 command not available\n", b"404 \n\n", b"400\n", b"999 x", b"000 ",
    b'{"jsonrpc":"2.0","result":"OK","id":1}', b' \n{"RESULT":null}',
    b'{"jsonrpc":"2.0","error":{"code":1,"message":"m"},"id":null}',
    b'[{"result":1,"id":1},{"error":{},"id":2}]', b'{"id":{"method":1},"result":[{"method":"uptime"}]}',
]
NO_REPLIES = [
    b"5000 x", b"50 x", b"500x", b"\n500 x", b"x500 ",
    b'{"jsonrpc":"2.0","result":1,"method":"nosuch","id":1}', b"[]", b"[1]", b"{}",
    b'[{"result":1,"id":1},{"jsonrpc":"2.0","method":"nosuch","id":2}]', b'"result"', b'{"results":1}', b'{"result":1', b"-32 x",
]


@pytest.mark.parametrize("dialect", ["auto", "text", "jsonrpc"])
def test_what_is_evidently_a_reply_gets_no_answer(start, dialect):
    server = start(f'modparam("midatagram", "dialect", "{dialect}")')
    client = server.client()
    for data in REPLIES:
        client.send(data)
    for data in NO_REPLIES:
        assert client.ask(data), data
    good = {"jsonrpc": b'{"jsonrpc":"2.0","method":"get_statistics","params":{"statistics":["looped"]},"id":1}'}
    assert b"%d" % len(REPLIES) in server.ask(good.get(dialect, b":get_statistics:\nlooped\n"))
    assert server.log.count("not answered") == 1


@pytest.mark.parametrize("data", [b"x", b":uptime:\n", b'{"jsonrpc":"2.0","method":"uptime","id":1}', b":nosuch:\n"])
def test_a_datagram_from_the_servers_own_address_is_not_answered(udp_server, data):
    server, address = udp_server
    for _ in range(3):
        spoof(address, address, data)
    wait_for(lambda: server.statistic("looped") == 3, what="three dropped datagrams")
    assert server.statistic("requests") < 20  # those of this test alone


def test_nor_is_one_from_any_address_of_a_wildcard_or_of_another_listener(start):
    ports = [free_port(), free_port()]
    server = start(f'modparam("midatagram", "listen", "udp:0.0.0.0:{ports[0]}")\n'
                   f'modparam("midatagram", "listen", "udp:127.0.0.1:{ports[1]}")')
    sources = [("127.0.0.1", ports[0]), ("127.3.4.5", ports[0]), ("127.0.0.1", ports[1]), ("127.0.0.1", 0)]
    for source, port in itertools.product(sources, ports):
        spoof(source, ("127.0.0.1", port), b":uptime:\n")
    wait_for(lambda: server.statistic("looped") == 8, what="eight dropped datagrams")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:  # another address with another port is a client
        client.bind(("127.3.4.5", free_port()))
        client.settimeout(5)
        client.sendto(b":uptime:\n", ("127.0.0.1", ports[0]))
        assert client.recv(1000).startswith(b"200 OK")


@pytest.mark.parametrize("client, ours", [
    (("224.0.0.1", 5000), True), (("ff02::1", 5000, 0, 0), True), (("255.255.255.255", 5000), True), (("0.0.0.0", 5000), True),
    (("::ffff:224.0.0.1", 5000, 0, 0), True), (("127.0.0.1", 0), True), (("127.0.0.1", 8080), True), (("::", 5000, 0, 0), True),
    (("127.0.0.2", 8080), False), (("127.0.0.1", 8081), False), (("192.0.2.1", 1), False), (("fe80::1%lo", 5000, 0, 1), False),
])
def test_addresses_that_no_single_client_has(client, ours):
    place = mi.Place(mi.Address("127.0.0.1", 8080), socket.AF_INET, ("127.0.0.1", 8080), 0, -1, -1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        endpoint = mi.Endpoint(place, sock)
        assert mi.Screen(None, [endpoint], None).is_ours(endpoint, client) is ours


@pytest.mark.parametrize("error", [b"ERROR: bad request", b"\x05\0\x81\x01", b'{"status": "error"}', b"echo"])
def test_a_service_that_answers_errors_does_not_keep_the_server_busy(udp_server, error):
    """Whatever such a service says to our errors, they end, or become few."""
    server, address = udp_server
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as service:
        service.bind(("127.0.0.1", 0))
        service.settimeout(0.5)
        service.sendto(error, address)
        answered, end_s = 0, time.monotonic() + 2
        with contextlib.suppress(TimeoutError):
            while time.monotonic() < end_s:
                data = service.recv(65536)
                answered += 1
                service.sendto(data if error == b"echo" else error, address)
    assert answered <= 3 * mi.MOST_ERRORS + 1  # of three seconds at most
    assert server.statistic("looped") >= 1


def resident_kb(pid):
    """The memory of a process."""
    return int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def json_request(method, params):
    """A JSON-RPC request with an id."""
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()


FLOODS = {  # name -> the request of a number: as long as may be, and a little different each time
    "a group many times": lambda n: b":get_statistics:\n" + b"mi_datagram:\n" * 1900 + b"load:\n" * (n % 1000),
    "statistics": lambda n: b":get_statistics:\n" + b"requests\nreplies\n" * 1900 + b"errors\n" * (n % 100),
    "unknown statistics": lambda n: b":get_statistics:\nrequests\n" + b"%d\n" % n * 3900,
    "short ones": lambda n: b":get_statistics:\nrequests\n" + b"%d\n" % n * 100,
    "JSON": lambda n: json_request("get_statistics", {"statistics": ["core:"] * 150 + ["replies"] * n}),
    "arguments": lambda n: b":help:\nhelp\n" + b"%d\n" % n * 9000,
    "keys": lambda n: b":cache_fetch:\nlocal\n" + b"%d" % n * 9000,
    "unknown commands": lambda n: b":%d:\n" % n * 6000,
    "globs": lambda n: b":cache_remove_chunk:\n[%d]*?" % n + b"a" * 200,
    "list": lambda n: b":list_statistics:\n" + b"requests\n" * 3000 + b"%d\n" % n,
    "events": lambda n: b":event_subscribe:\nE_MI_STOP\nudp:127.0.0.1:9\n%d\n" % n + b"x\n" * 9000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_memory_is_bounded_whatever_is_asked_for(start, name):
    server = start()
    pid, = server.children()
    client = server.client()
    for number in range(200):
        for _ in range(3):
            assert client.ask(FLOODS[name](number))
    settled = resident_kb(pid)
    assert settled < 120_000  # kB, of a child that has 37,000 at its start
    for number in range(200, 500):
        for _ in range(3):
            client.ask(FLOODS[name](number))
    assert resident_kb(pid) < settled + 25_000


def cpu_s(pid):
    """The CPU time a process has had."""
    return int(pathlib.Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9


def longest_turn_s(server, data):
    """How much CPU time the only child uses at most between two pings while it answers a datagram; its answer."""
    pid, = server.children()
    replies, longest = [], 0.0
    asker, pinger = server.client(), server.client()
    pinger.ask(b":uptime:\n")
    def ask():
        asker.send(data)
        asker.send(b":which:\n")  # of a datagram without an answer this one comes first
        replies.append(asker.receive(60))

    thread = threading.Thread(target=ask)
    began, least = time.monotonic(), 5
    thread.start()
    while thread.is_alive() or least:
        least -= bool(least)
        before = cpu_s(pid)
        assert pinger.ask(b":uptime:\n", 60)
        longest = max(longest, cpu_s(pid) - before)
    assert time.monotonic() - began < 60
    return longest, replies[0]


def batch(request, most=mi.LIMIT):
    """As many requests as fit into a batch."""
    return b"[" + b",".join([request] * ((most - 2) // (len(request) + 1))) + b"]"


HOSTILE = {
    "all": b":get_statistics:\n" + b"all\n" * 16000,
    "all, within the limit": b":get_statistics:\n" + b"all\n" * 40,
    "groups": b":get_statistics:\n" + b"mi_datagram:\n" * 4900,
    "4,000 statistics": b":get_statistics:\n" + b"requests\n" * 4000,
    "4,000 in JSON": json_request("get_statistics", {"statistics": ["requests", "replies"] * 1999}),
    "list": b":list_statistics:\n" + b"requests\n" * 7000,
    "list of groups": b":list_statistics:\n" + b"core:\n" * 10000,
    "reset": b":reset_statistics:\n" + b"requests\n" * 7000,
    "reset other": b":reset_statistics:\n" + b"a\n" * 3900 + b"requests\n" * 50,
    "polls": batch(json_request("get_statistics", {"statistics": ["all"]})),
    "lists": batch(json_request("list_statistics", [])),
    "which": batch(b'{"jsonrpc":"2.0","method":"which","id":1}'),
    "no requests": batch(b"1"), "empty": batch(b"{}"), "notifications": batch(b'{"jsonrpc":"2.0","method":"ps"}'),
    "resets": batch(b'{"jsonrpc":"2.0","method":"reset_all_statistics"}'),
    "deep": b"[" * 60000, "deep and closed": b'{"a":' * 10000 + b"1" + b"}" * 10000,
    "mixed": b'{"a":[' * 8000 + b"1" + b"]}" * 8000, "hexadecimal": b'{"a":0x1' + b',"b":1' * 10000 + b"}",
    "names": b"{" + b'"a":1,' * 10000 + b'"b":1}',
    "numbers": b"[" + b"9" * 60000 + b"]", "escapes": b'["' + b"\\u0041" * 10000 + b'"]',
    "lone": b'["' + b"\\ud800" * 10000 + b'"]',
    "arguments": b":help:\n" + b"a\n" * 32000, "quotes": b":help:\n" + b'"a"\n' * 16000,
    "names of text": b":help:\n" + b"a::b\n" * 13000,
    "colons": b":help:\n" + b":" * 65000, "blanks": b":help:\n" + b" " * 65000, "backslashes": b':help:\n"' + b'\\"' * 32000,
    "glob": b":cache_remove_chunk:\n" + b"[a" * 20000, "stars": b":cache_remove_chunk:\n" + b"*a" * 120 + b"b",
    "event": b":raise_event:\nE_MI_STOP\n" + b"a::b\n" * 12000, "no event": b":raise_event:\n" + b"E" * 60000,
    "subscription": b":event_subscribe:\nE_MI_STOP\nudp:" + b"1" * 60000 + b":9\n", "log level": b":log_level:\n" + b"9" * 60000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_datagram_keeps_others_waiting(start, name):
    server = start()
    for _ in range(3):  # a busy machine makes pauses of its own
        longest_s, reply = longest_turn_s(server, HOSTILE[name])
        assert reply or name in ("notifications", "resets")
        if longest_s < 0.1:  # the promise is 0.05
            return
    raise AssertionError(f"others waited for {longest_s:.3f} s")


def test_a_batch_has_one_time_limit(start):
    server = start('loadmodule "mi_echo.so"\nmodparam("midatagram", "handler_timeout", 300)', "-p", str(PLUGINS))
    waits = [{"jsonrpc": "2.0", "method": "msleep", "params": ["250"], "id": number} for number in range(20)]
    began = time.monotonic()
    replies = json.loads(server.ask(json.dumps(waits).encode()))
    assert time.monotonic() - began < 3
    assert [reply["id"] for reply in replies] == list(range(20))
    assert "result" in replies[0] and all(reply["error"]["data"] == "Command timed out" for reply in replies[2:])
    assert server.log.count("ran longer than handler_timeout") == 1


@pytest.mark.parametrize("statistics, fits", [(["requests"] * 3000, True), (["requests"] * 4001, False), (["all"] * 200, False)])
def test_statistics_of_a_request_are_limited(start, statistics, fits):
    server = start()
    text = server.ask(b":get_statistics:\n" + "".join(f"{name}\n" for name in statistics).encode())
    found = json.loads(server.ask(json_request("get_statistics", {"statistics": statistics})))
    if fits:
        assert text.startswith(b"500 reply of") and list(found["result"]) == ["mi_datagram:requests"]
    else:
        assert text == b"400 more than 4000 statistics\n\n"
        assert found["error"] == {"code": 400, "message": "more than 4000 statistics"}


def test_a_reply_that_cannot_fit_is_given_up_while_it_grows(start, tmp_path):
    (tmp_path / "endless.py").write_text('''
import itertools
import midatagram as mi

@mi.command
def endless(ctx, deep=""):
    """Nodes without end."""
    nodes = (mi.Node("name", number) for number in itertools.count())
    return mi.Reply(nodes=(mi.Node("top", number, (), nodes) for number in itertools.count()) if deep else nodes)

@mi.command
def large(ctx, count):
    """So many nodes of ten bytes."""
    return mi.Reply(nodes=[mi.Node("name", "xxx")] * int(count))
''')
    server = start('loadmodule "endless.so"', "-p", str(tmp_path))
    limit = f"500 reply of more than {mi.GIVE_UP} bytes exceeds {mi.LIMIT}\\n".encode().replace(b"\\n", b"\n")
    assert [server.ask(b":endless:\n"), server.ask(b":endless:\nx\n")] == [limit] * 2
    assert server.ask(json_request("endless", [])) == server.ask(json_request("endless", ["x"])) == b"500 Internal error"
    assert server.ask(b":large:\n7000\n") == b"500 reply of 77008 bytes exceeds 65457\n"
    longest_s, reply = longest_turn_s(server, b":large:\n3000000\n")
    assert reply == limit and longest_s < 0.1


def test_readers_of_nothing_leave_the_socket_to_others(start, tmp_path):
    """More clients than there are sockets for, each with a large reply that it never reads."""
    server = start()
    all_groups = b":get_statistics:\n" + b"mi_datagram:\n" * 60
    for _ in range(900):
        server.client().send(all_groups)
    for _ in range(20):
        assert server.ask(b":uptime:\n", 2).startswith(b"200 OK")


def test_events_that_wait_are_bounded_in_memory(udp_server):
    server, address = udp_server
    pid, = server.children()
    client = server.client()
    for number in range(64):  # they never read
        client.ask(b":event_subscribe:\nE_MI_STOP\nunix:/nowhere/%d\n" % number)
    notifications = batch(b'{"jsonrpc":"2.0","method":"raise_event","params":["E_MI_STOP"]}')
    for _ in range(15):
        client.send(notifications)
        server.ask(b":uptime:\n", 20)
    assert resident_kb(pid) < 120_000


def test_a_udp_host_has_few_subscriptions_however_they_are_spelt(udp_server):
    server, address = udp_server
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.connect(address)

        def ask(request):
            client.send(request)
            return client.recv(65536)
        for zeros in range(20):
            assert ask(b":event_subscribe:\nE_MI_STOP\nudp:127.0.0.1:%s9\n" % (b"0" * (zeros % 4))) == b"200 OK\n\n"
        assert ask(b":subscribers_list:\nE_MI_STOP\n").count(b"Subscriber") == 1
        replies = [ask(b":event_subscribe:\nE_MI_STOP\nudp:127.0.0.1:%d\n" % port) for port in range(2000, 2020)]
        assert replies.count(b"200 OK\n\n") == mi.FEW_SUBSCRIBERS - 1 and replies[-1] == b"500 Too many subscribers\n\n"
        assert ask(b":event_subscribe:\nE_MI_STOP\nudp:example.net:9\n") == b"400 Bad parameter\n\n"  # nothing is looked up


def test_a_client_that_sets_the_log_level_cannot_fill_the_log(start):
    server = start()
    client = server.client()
    client.ask(b":log_level:\n4\n")
    wait_for(lambda: client.ask(b":uptime:\n") and "DEBUG" in server.log, what="a line for debugging")
    for _ in range(2000):
        client.ask(b":list_statistics:\n")
    assert server.log.count("DEBUG") < 100 and len(server.log) < 400_000


FORGER = """
import pathlib, socket, time
forger, until_s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), time.monotonic() + 20
print("begins", flush=True)
while time.monotonic() < until_s:
    for line in pathlib.Path("/proc/net/unix").read_text().splitlines():
        if line.split()[-1].startswith("@") and len(line.split()[-1]) == 6:
            try:
                forger.sendto(b"200 OK\\nforged\\n\\n", "\\0" + line.split()[-1][1:])
            except OSError:
                pass
"""


def test_no_other_user_can_answer_a_client(start):
    """Nor keep it waiting for longer than it wants to."""
    needs_root()
    server = start()
    command = [needs("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", FORGER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as forger, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        assert forger.stdout.readline() == b"begins\n"
        replies = [mi.ask(mi.Address(server.place), b":uptime:\n", 5) for _ in range(200)]
        deaf.bind(f"{server.folder}/deaf")
        with pytest.raises(TimeoutError):
            mi.ask(mi.Address(f"{server.folder}/deaf"), b":uptime:\n", 0.5)
        forger.terminate()
    assert not [reply for reply in replies if b"forged" in reply]
