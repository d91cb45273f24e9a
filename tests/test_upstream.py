"""The gateway: real servers and a puppet behind it, whose replies the test writes."""

import contextlib
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, SCRIPT, Client, Server, free_port, needs, needs_root, placed, run, wait_for
from test_access import ask_as
from test_recordings import asking, kamailio_in

import midatagram as mi

NOBODY = 65534
VERSION, PS, UPTIME = b":version:\n", b":ps:\n", b":uptime:\n"
TEXT_503, TEXT_504 = b"503 upstream main is not reachable\n\n", b"504 upstream main did not answer in %d ms\n\n"


def gateway_to(*servers, more=""):
    """The lines of a gateway to these places; the first is called main."""
    lines = [f'modparam("upstream", "server", "[{name}]{place}")' for name, place in zip(("main", "other", "third"), servers)]
    return "\n".join(['loadmodule "upstream.so"', *lines, more, ""])


def error(code, message, number=1):
    """An error as JSON-RPC has it."""
    return {"jsonrpc": "2.0", "error": {"code": code, "message": message}, "id": number}


class Puppet:
    """A server whose replies the test writes."""

    def __init__(self, path):
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.settimeout(5)

    LISTS = {b'{"jsonrpc":"2.0","method":"which","id":1}': b'{"result":["which"],"id":1}', b":which:\n": b"200 OK\nwhich\n\n"}

    def hear(self):
        """The next request, and where its reply goes to; the gateway's own questions are answered here."""
        while True:
            request, client = self.socket.recvfrom(1 << 18)
            if request not in self.LISTS:
                return request, client
            with contextlib.suppress(OSError):  # it does not wait any more
                self.socket.sendto(self.LISTS[request], client)

    def play(self, *replies):
        """Answer as many requests; gives them."""
        heard = []
        for reply in replies:
            request, client = self.hear()
            heard.append(request)
            if reply is not None:
                self.socket.sendto(reply, client)
        return heard

    def is_quiet(self, for_s=0.2):
        """Whether nothing comes for a while."""
        self.socket.settimeout(for_s)
        try:
            return not self.hear()
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(5)

    def close(self):
        self.socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)


@pytest.fixture
def puppet(tmp_path):
    with contextlib.closing(Puppet(tmp_path / "puppet.sock")) as one:
        yield one


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A server and a gateway to it, for tests that leave both as they are."""
    folders = [tmp_path_factory.mktemp(name) for name in ("behind", "front")]
    behind = Server(folders[0], 'modparam("midatagram", "imitate", "2.4")\n')
    front = Server(folders[1], gateway_to(behind.place, more='modparam("upstream", "keep", "pwd")'))
    yield behind, front
    for server in (front, behind):
        server.stop()
        server.close()


# What passes, and how.

SAME = [
    VERSION, b":events_list:\n", b":help:\nps\n", b":nope:\n", b":which", b":log_level:\nx\n", b":cache_fetch:\nlocal\nnothing\n",
    b":help:\n\"ps\"", b":get_statistics:\nno_such\n", b":core:version:\n", b":log_level:\n\"broken\n",
    asking("version"), asking("events_list"), asking("help", "ps"), asking("nope"), asking("log_level", "x"), b"{", b"[]", b"{}",
    b'{"jsonrpc": "2.0", "method": "version", "id": "a b"}', b'{"jsonrpc": "2.0", "id": 1.5, "method": "version"}',
    b' \n{"METHOD": "version", "jsonrpc": "2.0", "id": null}', b'{"jsonrpc": "2.0", "method": "version", "id": 99999999999}',
    b'{"jsonrpc": "2.0", "method": "version", "id": "\\u00e9"}', b'{"jsonrpc": "2.0", "method": "version", "params": 1, "id": 1}',
]


@pytest.mark.parametrize("request_", SAME, ids=[f"{request[:60]!r}" for request in SAME])
def test_a_reply_is_the_one_of_the_server(pair, request_):
    behind, front = pair
    for _ in range(3):  # what repeats goes another way
        assert front.ask(request_) == behind.ask(request_)


def test_everything_is_forwarded_but_what_is_kept(pair):
    behind, front = pair
    assert front.ask(PS) == behind.ask(PS)
    assert front.ask(b":pwd:\n") == f"200 OK\nWD:: {front.folder}\n\n".encode()
    assert front.ask(b":cache_store:\nlocal\nkey\nvalue\n") == b"200 OK\n\n"
    assert b"value:: value\n" in behind.ask(b":cache_fetch:\nlocal\nkey\n")


REQUESTS = [b":x:\na  \nb", b":t_uac_dlg:\n\"a\r\n\r\nb\"",
            b' { "method":"a b","params":[1.50,"\\u0041"] , "jsonrpc":"2.0","id":7}',
            b'{"jsonrpc":"2.0","id":"x","method":"m","params":{"a":[]}}']


def test_bytes_pass_unchanged(start, puppet):
    client = start(gateway_to(puppet.path)).client()
    for request in [*REQUESTS, *REQUESTS, *REQUESTS]:
        reply = b"200 Odd \x00 reply\n\xff\n" if request[:1] == b":" else b'{"result" : "\xff", "id":  %b }\n' % (
            b"7" if b"7" in request else b'"x"')
        client.send(request)
        assert puppet.play(reply) == [request]
        assert client.receive() == reply


def test_a_server_at_udp(start):
    behind = start(place=f"udp:127.0.0.1:{free_port()}")
    front = start(gateway_to(behind.place), place=f"udp:127.0.0.1:{free_port()}")
    for request in (PS, asking("ps")):
        assert front.ask(request) == behind.ask(request)


def test_kamailio(start, tmp_path):
    with kamailio_in(tmp_path) as place:
        front = start(gateway_to(place, more='modparam("upstream", "route", "core.nothing: main")'))
        for request in (asking("core.version"), asking("nope"), asking("core.echo", "a", 1)):
            assert front.ask(request) == mi.ask(place, request, 5.0)
        nothing = asking("core.version", request_id="null")
        assert front.ask(nothing) == mi.ask(place, nothing, 5.0)  # whose id is 0
        client = front.client()
        client.send(b'{"jsonrpc": "2.0", "method": "core.version"}')  # it answers that
        assert json.loads(client.ask(asking("core.echo", "x")))["result"] == ["x"]
        assert client.receive(0.1) is None
        batch = json.loads(client.ask(b'[%b, {"jsonrpc": "2.0", "method": "core.version"}, %b]'
                                      % (asking("core.echo", "x"), asking("core.echo", "y"))))
        assert [one["result"] for one in batch] == [["x"], ["y"]]
        names = json.loads(client.ask(asking("which")))["result"]
        assert {"core.version", "system.listMethods", "upstream_list"} <= set(names)


def test_large_replies_pass_where_the_side_of_the_client_carries_them(start, puppet):
    udp = f"udp:127.0.0.1:{free_port()}"
    front = start(gateway_to(puppet.path, more=f'modparam("midatagram", "listen", "{udp}")'))
    reply = b"200 OK\n%b\n\n" % (b"x" * 150000)
    for place, passed in ((front.place, reply), (udp, b"500 reply of 150009 bytes exceeds 65507\n")):
        client = front.client(place)
        client.send(UPTIME)
        puppet.play(reply)
        assert client.receive() == passed
    client.send(asking("uptime"))
    puppet.play(b'{"result":"%b","id":1}' % (b"x" * 70000))
    assert client.receive() == b"500 Internal error"


def test_many_in_flight(start, plug_in):
    folder = plug_in("slow", '"""slow"""\nimport gevent, midatagram as mi\n@mi.command\ndef nap(ctx):\n    """Sleep."""\n'
                     "    gevent.sleep(0.1)\n    return mi.Reply()\n")
    behind = start('loadmodule "slow.so"\n', "-p", folder)
    front = start(gateway_to(f"{behind.place};inflight=1000"))
    clients, begun_s = [front.client() for _ in range(300)], time.monotonic()
    for client in clients:
        client.send(b":nap:\n")
    assert {client.receive() for client in clients} == {b"200 OK\n\n"}
    assert time.monotonic() - begun_s < 5  # one after the other takes 30 s
    assert "open files" not in front.log


def test_more_requests_than_may_be_in_flight_wait_for_their_turn(start, puppet):
    front = start(gateway_to(f"{puppet.path};inflight=2"))
    clients = [front.client() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(b":c%d:\n" % number)
    first = [puppet.hear() for _ in range(2)]
    assert puppet.is_quiet()
    assert b"in_flight=5" in front.ask(b":upstream_list:\n")
    for request, client in first:
        puppet.socket.sendto(b"200 %b\n\n" % request[1:3], client)
    for _ in range(3):
        request, client = puppet.hear()
        puppet.socket.sendto(b"200 %b\n\n" % request[1:3], client)
    assert [client.receive() for client in clients] == [b"200 c%d\n\n" % number for number in range(5)]


# A server that is away, or does not do as it should.

@pytest.mark.parametrize("place", ["{folder}/none.sock", "{folder}/dead.sock", "udp:127.0.0.1:{port}"])
def test_a_server_that_is_not_there(start, tmp_path, place):
    Puppet(tmp_path / "dead.sock").socket.close()
    address = place.format(folder=tmp_path, port=free_port())
    front = start(gateway_to(address))
    for _ in range(3):
        assert front.ask(UPTIME) == TEXT_503
        assert json.loads(front.ask(asking("uptime"))) == error(503, "upstream main is not reachable")
    assert front.log.count("upstream main is not reachable") == front.log.count(f"main is not reachable: {address}: ") == 1
    listing = front.ask(b":upstream_list:\n")
    assert b"state=down requests=6 replies=0 errors=6 timeouts=0" in listing
    front.client().send(b'{"jsonrpc": "2.0", "method": "uptime"}')
    assert front.ask(b'[{"jsonrpc": "2.0", "method": "uptime"}, %b]' % asking("uptime")) == b"[%b]" % front.ask(asking("uptime"))


def test_a_server_that_comes_back(start):
    behind = start()
    front = start(gateway_to(f"{behind.place};timeout=500", more='modparam("mi_datagram", "children_count", 2)'))
    assert front.ask(VERSION).startswith(b"200 OK")
    for number in (signal.SIGKILL, signal.SIGTERM):
        behind.signal(number)
        behind.process.wait(5)
        while front.ask(VERSION) != TEXT_503:  # children of a killed attendant live on for a moment
            pass
        with contextlib.suppress(FileNotFoundError):
            os.unlink(behind.place)  # so that another file takes its place
        behind = start(place=behind.place)
        assert front.ask(VERSION) == behind.ask(VERSION)
        assert json.loads(front.ask(asking("ps"))) == json.loads(behind.ask(asking("ps")))
        assert b"state=up" in front.ask(b":upstream_list:\n")
    assert front.log.count("answers again") == 2
    assert front.log.count("is not reachable") <= 3


def test_each_change_of_its_state_is_logged(start, tmp_path):
    front = start(gateway_to(f"{tmp_path}/puppet.sock;dialect=text"))
    client = front.client()
    for number in range(1, 5):
        assert client.ask(UPTIME) == TEXT_503
        with contextlib.closing(Puppet(tmp_path / "puppet.sock")) as puppet:
            client.send(UPTIME)
            assert puppet.play(b"200 OK\n\n") == [UPTIME] and client.receive() == b"200 OK\n\n"
            puppet.is_quiet()  # it lists its commands
        front.wait_log("answers again")
        assert front.log.count("is not reachable: ") == front.log.count("answers again") == number
    assert "left out" not in front.log


def test_a_server_that_stands_still_is_flooded(start):
    behind = start()
    front = start(gateway_to(f"{behind.place};timeout=400;inflight=20", more='modparam("upstream", "keep", "ps")'))
    children = behind.children()
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    clients, begun_s = [front.client() for _ in range(200)], time.monotonic()
    for number, client in enumerate(clients):
        key = f"k{number}"
        client.send(asking("cache_store", "local", key, "v") if number % 2 else f":cache_store:\nlocal\n{key}\nv\n".encode())
    replies = [client.receive() for client in clients]
    assert time.monotonic() - begun_s < 5
    assert set(replies[::2]) == {TEXT_504 % 400}
    assert {json.loads(reply)["error"]["message"] for reply in replies[1::2]} == {"upstream main did not answer in 400 ms"}
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    stored = wait_for(lambda: behind.statistic("requests"), what="its children")
    wait_for(lambda: front.ask(VERSION) == behind.ask(VERSION))
    assert stored <= 30  # those in its queue; what could not be sent is not sent later
    assert all(client.receive(0.01) is None for client in clients)
    assert front.log.count("did not answer") == front.log.count("answers again") == 1
    assert len(os.listdir(f"/proc/{front.children()[0]}/fd")) < 150 + 2 * 20


def test_a_late_reply_reaches_nobody(start, puppet):
    front = start(gateway_to(f"{puppet.path};timeout=600"))
    first, second = front.client(), front.client()
    first.send(b":one:\n")
    request, late = puppet.hear()
    assert first.receive() == TEXT_504 % 600
    second.send(b":two:\n")
    _, other = puppet.hear()
    assert other != late
    puppet.socket.sendto(b"200 late\n\n", late)
    puppet.socket.sendto(b"200 two\n\n", other)
    assert second.receive() == b"200 two\n\n"
    wait_for(lambda: b"timeouts=1 late=1" in front.ask(b":upstream_list:\n"))
    with pytest.raises(ConnectionRefusedError):  # it is closed by now
        puppet.socket.sendto(b"200 later\n\n", late)
    assert first.receive(0.05) is None


def test_two_replies_to_one_request(start, puppet):
    front = start(gateway_to(puppet.path, more=""))
    client = front.client()
    client.send(asking("one"))
    _, place = puppet.hear()
    puppet.socket.sendto(b'{"result":"first","id":1}', place)
    assert client.receive() == b'{"result":"first","id":1}'
    puppet.socket.sendto(b'{"result":"second","id":1}', place)  # to a socket that is free
    wait_for(lambda: b"late=1" in front.ask(b":upstream_list:\n"))
    for number in (2, 3):
        client.send(b'{"jsonrpc":"2.0","method":"two","id":%d}' % number)
        _, place = puppet.hear()
        puppet.socket.sendto(b'{"result":"of another","id":11}', place)
        puppet.socket.sendto(b'{"result":"mine","id":%d}' % number, place)
        assert client.receive() == b'{"result":"mine","id":%d}' % number
    assert b"late=3" in front.ask(b":upstream_list:\n")


def test_a_second_reply_meets_no_other_request(start, puppet):
    client = start(gateway_to(puppet.path)).client()
    client.send(b":one:\n")
    _, first = puppet.hear()
    puppet.socket.sendto(b"200 one\n\n", first)
    assert client.receive() == b"200 one\n\n"
    client.send(b":two:\n")
    _, second = puppet.hear()
    puppet.socket.sendto(b"200 one again\n\n", first)
    puppet.socket.sendto(b"200 two\n\n", second)
    assert client.receive() == b"200 two\n\n"


def test_a_second_reply_that_comes_much_later_meets_no_other_request(start, puppet):
    front, places = start(gateway_to(puppet.path, more='modparam("upstream", "keep", "ps")')), []
    client, other = front.client(), front.client()

    def ask(request):
        client.send(request)
        places.append(puppet.hear()[1])
        puppet.socket.sendto(b"200 OK\n\n", places[-1])
        assert client.receive() == b"200 OK\n\n"

    for request in [*14 * [UPTIME], b":twice:\n", *60 * [UPTIME]]:
        ask(request)
    other.send(b":slow:\n")
    _, place = puppet.hear()
    puppet.socket.sendto(b"200 of another\n\n", places[14])
    puppet.socket.sendto(b"200 slow\n\n", place)
    assert other.receive() == b"200 slow\n\n"
    wait_for(lambda: b"late=1" in front.ask(b":upstream_list:\n"))
    places.clear()
    for _ in range(70):  # such a server never gets a socket again
        ask(UPTIME)
    assert len({*places}) == len(places) and front.log.count("answers requests twice") == 1
    puppet.socket.sendto(b"200 of another\n\n", places[-1])
    wait_for(lambda: b"late=2" in front.ask(b":upstream_list:\n"))


def test_a_server_that_stood_still_is_asked_in_its_dialect(start):
    behind = start('modparam("midatagram", "dialect", "text")')
    front = start(gateway_to(f"{behind.place};timeout=300"))
    assert json.loads(front.ask(asking("pwd")))["result"] == {"WD": str(behind.folder)}
    children = behind.children()
    for pid in children:
        os.kill(pid, signal.SIGSTOP)
    for _ in range(5):  # longer than the gateway asks what the server is
        assert front.ask(b":which:\n") == TEXT_504 % 300
    for pid in children:
        os.kill(pid, signal.SIGCONT)
    assert json.loads(front.ask(asking("pwd")))["result"] == {"WD": str(behind.folder)}


@pytest.mark.parametrize("order", [1, -1])
def test_a_second_reply_that_is_not_read_yet_meets_no_other_request(start, puppet, order):
    front, places = start(gateway_to(f"{puppet.path};timeout=9000;inflight=1", more='modparam("upstream", "keep", "ps")')), []
    client, other = front.client(), front.client()
    while len(places) < 2 or places[-1] != places[0]:  # the socket that rested longest is used again
        client.send(b":one:\n")
        places.append(puppet.hear()[1])
        if places[-1] != places[0] or len(places) == 1:
            puppet.socket.sendto(b"200 OK\n\n", places[-1])
            assert client.receive() == b"200 OK\n\n"
    other.send(b":two:\n")
    wait_for(lambda: b"in_flight=2" in front.ask(b":upstream_list:\n"))
    child = front.children()[0]
    os.kill(child, signal.SIGSTOP)
    for reply, place in [(b"200 OK\n\n", places[-1]), (b"200 of one\n\n", places[1])][::order]:
        puppet.socket.sendto(reply, place)  # the second goes to the socket that is next
    os.kill(child, signal.SIGCONT)
    puppet.play(b"200 two\n\n")
    assert (client.receive(), other.receive()) == (b"200 OK\n\n", b"200 two\n\n")
    assert b"late=1" in front.ask(b":upstream_list:\n")


def test_what_waits_is_bounded_in_bytes_and_for_each_client(start, puppet):
    front = start(gateway_to(f"{puppet.path};timeout=3000;inflight=1"))
    client, other = front.client(), front.client()
    client.send(b":first:\n")
    puppet.hear()
    for _ in range(80):
        client.send(b":long:\n" + b"x" * 59993)  # of which 68 are less than 4 MiB
    other.send(b":two:\n")
    replies = [client.receive() for _ in range(81)]
    assert replies[:12] == [b"503 upstream main has too many requests\n\n"] * 12 and set(replies[12:]) == {TEXT_504 % 3000}
    assert other.receive() == TEXT_504 % 3000
    client.send(b":again:\n")
    place = next(place for request, place in iter(puppet.hear, None) if request == b":again:\n")
    puppet.socket.sendto(b"200 OK\n\n", place)
    assert client.receive() == b"200 OK\n\n"


def test_what_waits_takes_little_more_than_its_bytes(start, puppet):
    front = start(gateway_to(f"{puppet.path};timeout=9000;inflight=1", more='modparam("upstream", "keep", "ps")\n'
                             'modparam("midatagram", "stop_timeout", 100)'))
    client, status = front.client(), pathlib.Path(f"/proc/{front.children()[0]}/status")

    def resident_kb():
        return int(re.search(r"VmRSS:\s+(\d+)", status.read_text())[1])

    client.send(b":first:\n")
    puppet.hear()
    before_kb, lists = resident_kb(), [[]] * 16000
    for _ in range(24):
        client.send(asking("deep", lists).replace(b" ", b""))  # one value, of which each takes a megabyte as an object
    wait_for(lambda: b"in_flight=25" in front.ask(b":upstream_list:\n"))
    assert resident_kb() - before_kb < 16000
    for _ in range(2):
        client.send(asking("wide", *lists).replace(b" ", b""))  # as many values, which count
    assert json.loads(client.receive())["error"]["message"] == "upstream main has too many requests"


GARBAGE = b"\x00\x01", b"hello", b"", b"[", b"[]", b'"x"', b'{"a":1}'


def test_garbage_is_an_error(start, puppet):
    client = start(gateway_to(puppet.path)).client()
    for garbage in GARBAGE:
        client.send(UPTIME)
        puppet.play(garbage)
        assert client.receive() == b"502 upstream main answered garbage\n\n"
        client.send(asking("x"))
        puppet.play(garbage)
        assert json.loads(client.receive()) == error(502, "upstream main answered garbage")
    for garbage in (b'%$#! not json "id":1}', b'\0\0\0"id":1}', b'{"jsonrpc":"2.0","result":{"a":"id":1}',
                    b'{"jsonrpc":"2.0","id":1}', b"200 OK\nx:: 1\n\n", b"200 ", b"400 two\nlines\n\n"):
        client.send(asking("x"))
        puppet.play(garbage)
        assert json.loads(client.receive()) == error(502, "upstream main answered garbage"), garbage
    for reply in (b"400 Parse_error", b"500 Internal error", b'\n{ "id": 1, "result": {"id": 2}}', b'{"error": {}, "id": 1}',
                  b'{"jsonrpc":"2.0","error":{"code":-32600,"message":"Invalid Request"},"id":null}'):
        client.send(asking("x"))  # plain as 3.x has them; without an id from who could not read it
        puppet.play(reply)
        assert client.receive() == reply


def test_only_the_owner_of_the_socket_is_believed(start, puppet):
    needs_root()
    front, uid = start(gateway_to(puppet.path)), 1
    os.chown(puppet.path, uid, uid)
    client = front.client()
    client.send(UPTIME)
    _, place = puppet.hear()
    send = f"import os,socket; os.setuid({{}}); socket.socket(1, 2).sendto(b'200 from {{}}\\n\\n', {place!r})"
    for user in (NOBODY, uid):
        subprocess.run(["/usr/bin/python3", "-c", send.format(user, user)], check=True)
    assert client.receive() == b"200 from 1\n\n"
    assert "a reply of uid 65534 is dropped" in front.log


def test_a_folder_for_a_server_that_reaches_no_abstract_sockets(start, puppet, tmp_path):
    folder = tmp_path / "replies"
    folder.mkdir()
    front = start(gateway_to(f"{puppet.path};folder={folder}", more='modparam("upstream", "keep", "ps")'))
    client = front.client()
    client.send(UPTIME)
    request, place = puppet.hear()
    assert os.path.dirname(place) == str(folder) and os.stat(place).st_mode & 0o777 == 0o777
    puppet.socket.sendto(b"200 OK\n\n", place)
    assert client.receive() == b"200 OK\n\n"
    os.kill(front.children()[0], signal.SIGKILL)
    wait_for(lambda: not os.path.exists(place), what="the next child to remove what the killed one left")
    client.send(UPTIME)
    request, place = puppet.hear()
    puppet.socket.sendto(b"200 OK\n\n", place)
    assert client.receive() == b"200 OK\n\n"
    front.stop()
    assert not list(folder.iterdir())


def test_a_socket_in_a_folder_of_others_changes_nothing_that_they_put_in_its_place(tmp_path):
    secret, path = tmp_path / "secret", tmp_path / "mi-x.sock"
    secret.touch(0o600)

    class Exchanged(socket.socket):
        """A socket whose file is exchanged as soon as it is there."""

        def bind(self, place):
            super().bind(place)
            assert os.stat(place).st_mode & 0o777 == 0o777
            os.unlink(place)
            os.symlink(secret, place)

    with Exchanged(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        mi.shared("upstream_server").bind_for_all(one, str(path))
    assert secret.stat().st_mode & 0o777 == 0o600


def test_a_stop_waits_for_replies(start, puppet):
    front = start(gateway_to(puppet.path))
    client = front.client()
    client.send(UPTIME)
    request, place = puppet.hear()
    front.signal(signal.SIGTERM)
    front.wait_log("stopping")
    assert puppet.is_quiet(0.5) and front.process.poll() is None
    puppet.socket.sendto(b"200 OK\n\n", place)
    assert client.receive() == b"200 OK\n\n"


# Batches and notifications.

def test_a_batch_is_split(start, puppet):
    front = start(gateway_to(puppet.path, more='modparam("midatagram", "disable", "b*")'))
    client = front.client()
    client.send(b' [%b, {"jsonrpc":"2.0","method":"note","params":{"x":1}}, %b, %b, 1]'
                % (asking("one", "a", 1.5), asking("bad"), b'{"jsonrpc":"2.0","method":"two","id":"q"}'))
    heard = puppet.play(b'{"result":"one","id":1}', None, b'{"result":"two","id":"q"}')
    assert [json.loads(request) for request in heard] == [
        json.loads(asking("one", "a", 1.5)), {"jsonrpc": "2.0", "method": "note", "params": {"x": 1}},
        {"jsonrpc": "2.0", "method": "two", "id": "q"}]
    replies = json.loads(client.receive())
    assert replies[0] == {"result": "one", "id": 1} and replies[2] == {"result": "two", "id": "q"}
    assert [reply["error"]["code"] for reply in replies[1::2]] == [-32601, -32600]


def test_the_time_limit_of_a_batch_is_one_for_all(start, puppet):
    front = start(gateway_to(f"{puppet.path};timeout=600"))
    client = front.client()
    client.send(b"[%b]" % b",".join(b'{"jsonrpc":"2.0","method":"x","id":%d}' % number for number in range(6)))
    assert puppet.play(b'{"result":"OK","id":0}', None)[1] == b'{"jsonrpc":"2.0","method":"x","id":1}'
    message = "upstream main did not answer in 600 ms"
    assert json.loads(client.receive()) == [{"result": "OK", "id": 0}, *[error(504, message, number) for number in range(1, 6)]]
    assert puppet.is_quiet() and b"requests=6 replies=1 errors=5 timeouts=5" in front.ask(b":upstream_list:\n")
    client.send(b"[%b]" % asking("y"))  # another batch has a limit of its own
    puppet.play(b'{"result":"OK","id":1}')
    assert json.loads(client.receive()) == [{"result": "OK", "id": 1}]


def test_notifications(start, puppet):
    front = start(gateway_to(puppet.path))
    client = front.client()
    for _ in range(100):  # more than inflight
        client.send(b'{"jsonrpc":"2.0","method":"note"}')
        assert puppet.play(b'{"result":"unwanted"}') == [b'{"jsonrpc":"2.0","method":"note"}']
    client.send(asking("x"))
    puppet.play(b'{"result":"x","id":1}')
    assert client.receive() == b'{"result":"x","id":1}'
    assert client.receive(0.05) is None
    assert b"in_flight=0" in front.ask(b":upstream_list:\n")


# Which server.

def test_servers_by_command_and_by_socket(start, tmp_path):
    places = [f"{tmp_path}/{name}.sock" for name in "abc"]
    puppets, second = [Puppet(place) for place in places], f"{tmp_path}/second.sock"
    sockets = [puppet.socket for puppet in puppets]
    front = start(gateway_to(*places, more='modparam("upstream", "route", "dlg_*, usrloc:*: other")\n'
                             f'modparam("midatagram", "listen", "{second};upstream=third")'))

    def who(request, place=None):
        client = front.client(place)
        client.send(request)
        reply = b"200 OK\n\n" if request[:1] == b":" else b'{"result":1,"id":1}'
        while True:
            asked = select.select(sockets, [], [], 5)[0][0]
            heard, asker = asked.recvfrom(1 << 18)
            with contextlib.suppress(OSError):  # the gateway's own questions, which it may have given up
                asked.sendto(Puppet.LISTS.get(heard, reply), asker)
            if heard not in Puppet.LISTS:
                assert client.receive()
                return sockets.index(asked)

    assert [who(request) for request in (UPTIME, b":dlg_list:\n", asking("dialog:list"), b":ul_dump:\n", asking("ul_rm"),
                                         asking("end_dlg"), asking("ds_list"))] == [0, 1, 1, 1, 1, 1, 0]
    for _ in range(4):  # a request that comes again is not looked at anew
        assert [who(request, second) for request in (UPTIME, b":dlg_list:\n")] == [2, 2]
        assert [who(request) for request in (UPTIME, b":dlg_list:\n")] == [0, 1]
    for puppet in puppets:
        puppet.close()


def test_which_is_the_list_of_the_servers_and_ours(start):
    behind, other = start('loadmodule "lab.so"\n'), start('loadmodule "dialog.so"\nmodparam("midatagram", "disable", "uptime")\n')
    front = start(gateway_to(behind.place, other.place, more='modparam("upstream", "route", "dlg_*: other")\n'
                             'modparam("midatagram", "disable", "kill,ds_*")'))
    listed = behind.ask(b":which:\n").decode().split("\n")[1:-2]
    more = [name for name in other.ask(b":which:\n").decode().split("\n")[1:-2] if name not in listed]
    expected = [name for name in [*listed, *more, "upstream_list", "upstream_reset"] if name != "kill"]
    text = front.ask(b":which:\n")
    assert text.decode().split("\n")[1:-2] == expected and text.startswith(b"200 OK\n") and "dlg_list" in more
    assert json.loads(front.ask(asking("which")))["result"] == expected
    assert json.loads(front.ask(asking("which", "upstream_reset")))["result"] == [[], ["name"]]
    assert front.ask(asking("which", "log_level")) == behind.ask(asking("which", "log_level"))
    for server in (behind, other):
        server.stop()
    assert front.ask(b":which:\n") == TEXT_503


# Who may, and who sees it.

def test_access_lists_hold_under_every_name(start, puppet):
    needs_root()
    front = start(gateway_to(puppet.path, more='modparam("midatagram", "allow_command", "ul_*, dialog:*: uid:1")\n'
                             'modparam("midatagram", "disable", "rtpproxy:*, kill, which")\n'))
    os.chmod(front.folder, 0o755)
    client = front.client()
    for name in ("ul_dump", "usrloc:dump", "dump", "ul_new", "dlg_list", "dialog:list", "list_ctx", "profile_end_dlgs"):
        assert client.ask(f":{name}:\n".encode()) == b"403 Forbidden\n\n", name
        assert json.loads(client.ask(asking(name)))["error"] == {"code": 403, "message": "Forbidden"}, name
    assert json.loads(client.ask(b"[%b]" % asking("dump")))[0]["error"]["code"] == 403
    client.send(b'{"jsonrpc":"2.0","method":"usrloc:dump"}')
    for name in ("rtpproxy_show", "rtpproxy:enable", "kill", "core:kill", "which", "core:which"):
        assert client.ask(f":{name}:\n".encode()) == b"500 command not available\n", name
        assert json.loads(client.ask(asking(name)))["error"]["code"] == -32601, name
    client.send(b'{"jsonrpc":"2.0","method":"kill"}')
    client.send(b":ds_list:\n")
    assert puppet.play(b"200 OK\n\n") == [b":ds_list:\n"]  # and nothing before
    assert client.receive() == b"200 OK\n\n"
    assert "audit: command usrloc:dump refused to" in front.log


@pytest.mark.parametrize("keep", ["", 'loadmodule "usrloc.so"\nmodparam("upstream", "keep", "usrloc:dump")\n'])
def test_access_lists_hold_for_a_short_name_of_4_0(start, puppet, keep):
    """Of a command behind the gateway, and of one that it answers itself."""
    for line, refusal in (('modparam("midatagram", "disable", "dump")', b"500 command not available\n"),
                          ('modparam("midatagram", "allow_command", "dump: uid:1")', b"403 Forbidden\n\n")):
        front = start(gateway_to(puppet.path, more=f'{keep}{line}\nmodparam("midatagram", "imitate", "4.0")\n'))
        for name in ("dump", "usrloc:dump", "ul_dump", "domain:dump"):
            assert front.ask(f":{name}:\n".encode()) == refusal, name
            assert b'"error"' in front.ask(asking(name)) and b'"error"' in front.ask(b"[%b]" % asking(name))
            front.client().send(b'{"jsonrpc":"2.0","method":"%b"}' % name.encode())
    assert puppet.is_quiet()


def test_access_lists_hold_for_a_short_name_of_a_command_that_only_the_server_knows(start, puppet):
    """4.0 runs it as the one command of that name."""
    needs_root()
    listed = "which", "tcp:close", "core:profiling_proc", "bins:trace", "new:turn", "new:read", "other:write"
    puppet.LISTS = {**puppet.LISTS, [*puppet.LISTS][0]: json.dumps({"result": listed, "id": 1}).encode()}
    front = start(gateway_to(puppet.path, more='modparam("midatagram", "allow_command", "tcp:*, bins:*, new:r*: uid:12345")\n'
                             'modparam("midatagram", "disable", "core:profiling_proc, new:t*, later:do")\n'))
    client = front.client()

    def passes(name):
        client.send(asking(name))
        assert puppet.play(b'{"result":"OK","id":1}') == [asking(name)]
        return client.receive() == b'{"result":"OK","id":1}'

    assert passes("write")  # meanwhile it says what it has
    for name in ("tcp:close", "close", "bins:trace", "tls_trace", "trace", "new:read", "read"):
        assert json.loads(client.ask(asking(name)))["error"] == {"code": 403, "message": "Forbidden"}, name
        assert client.ask(f":{name}:\n".encode()) == b"403 Forbidden\n\n", name
    for name in ("core:profiling_proc", "profiling_proc", "new:turn", "turn", "later:do", "do"):
        assert json.loads(client.ask(asking(name)))["error"]["code"] == -32601, name
        assert client.ask(f":{name}:\n".encode()) == b"500 command not available\n", name
        assert json.loads(client.ask(b"[%b]" % asking(name)))[0]["error"]["code"] == -32601, name
    assert passes("other:write")  # and nothing before


def open_to_all(folder):
    """Let other users reach what is in a folder."""
    for one in [folder, *list(folder.parents)[:-2]]:
        os.chmod(one, 0o755)


def test_another_user_who_may(start, puppet):
    needs_root()
    front = start(gateway_to(puppet.path, more='modparam("midatagram", "allow_command", "ul_*: uid:1")\n'
                             'modparam("mi_datagram", "unix_socket_mode", 0666)'))
    open_to_all(front.folder)
    player = threading.Thread(target=puppet.play, args=(b"200 OK\n\n",))
    player.start()
    assert ask_as(1, 1, [], front.place, b":usrloc:dump:\n") == b"200 OK\n\n"
    player.join()


def test_what_one_user_may_is_refused_to_another_however_often_it_is_asked(start, puppet):
    """Nothing that is remembered of a request passes the access lists by, whoever asks first."""
    needs_root()
    front = start(gateway_to(puppet.path, more='modparam("midatagram", "allow_command", "ul_*, dump: uid:1")\n'
                             'modparam("mi_datagram", "children_count", 1)\nmodparam("mi_datagram", "unix_socket_mode", 0666)'))
    open_to_all(front.folder)
    for request, reply in ((b":ul_dump:\n", b"200 OK\n\n"), (asking("ul_dump"), b'{"result":"OK","id":1}'),
                           (asking("dump"), b'{"result":"OK","id":1}')):
        for uid in (2, 2, 2, 1, 1, 1, 1, 2, 2, 1, 2):
            player = threading.Thread(target=puppet.play, args=(reply,)) if uid == 1 else None
            if player:
                player.start()
            said = ask_as(uid, uid, [], front.place, request)
            assert said == reply if player else b"403" in said and b"Forbidden" in said
            if player:
                player.join()
    assert puppet.is_quiet()


def test_traces(start, puppet, tmp_path):
    trace = tmp_path / "trace.jsonl"
    front = start(gateway_to(puppet.path, more=f'loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{trace}")\n'
                             'modparam("mi_datagram", "trace_destination", "trace_file")\n'
                             'modparam("mi_datagram", "trace_bwlist", "b: ds_*, core:uptime")'))
    client = front.client()
    rounds = [(b":ul_show:\nlocation\nbob\n", b"404 AOR not found\n\n"), (b":dispatcher:list:\n", b"200 OK\n\n"),
              (UPTIME, b"200 OK\n\n"), (asking("ul_show", "location"), b'{"error":{"code":404,"message":"none"},"id":1}'),
              (asking("ps"), b'{"result":"OK","id":1}')]
    for request, reply in 4 * rounds:
        client.send(request)
        puppet.play(reply)
        assert client.receive() == reply
    client.send(b"[%b]" % asking("ps"))
    puppet.play(b'{"result":"OK","id":1}')
    client.receive()
    client.send(b'{"jsonrpc":"2.0","method":"note","params":["x"]}')
    puppet.play(None)
    rows = wait_for(lambda: trace.exists() and trace.read_text().count("\n") == 14 and trace.read_text(), what="traces")
    keys = "command", "parameters", "code", "reason", "reply"
    seen = [tuple(map(json.loads(row).get, keys)) for row in rows.splitlines()]
    ps = "ps", [], 200, "OK", '{"result":"OK","id":1}'
    assert seen == [*4 * [("ul_show", ["location", "bob"], 404, "AOR not found", "404 AOR not found\n\n"),
                          ("ul_show", ["location"], 404, "none", '{"error":{"code":404,"message":"none"},"id":1}'), ps],
                    ps, ("note", ["x"], 200, "OK", None)]


def test_requests_that_are_the_same_but_for_their_ids(start):
    behind, others = start(), start('modparam("midatagram", "dialect", "text")\n')
    front = start(gateway_to(behind.place, others.place, more='modparam("upstream", "route", "version: other")'))
    numbers = [1, 2, "a b", "7", 7, -3, 2, 2, 2, 2]
    for number in numbers:
        assert json.loads(front.ask(asking("pwd", request_id=json.dumps(number)))) == {
            "jsonrpc": "2.0", "result": {"WD": str(behind.folder)}, "id": number}
        assert json.loads(front.ask(asking("version", request_id=json.dumps(number))))["id"] == number
    behind.stop(), others.stop()
    for number in numbers:
        for method, name in (("pwd", "main"), ("version", "other")):
            reply = json.loads(front.ask(asking(method, request_id=json.dumps(number))))
            assert reply == error(503, f"upstream {name} is not reachable", number)


def test_the_lab_sees_what_is_forwarded(start, puppet):
    front = start(gateway_to(puppet.path, more='loadmodule "lab.so"'))
    client = front.client()
    client.send(b":ul_show:\nbob\n")
    puppet.play(b"404 AOR not found\n\n")
    assert client.receive() == b"404 AOR not found\n\n"
    assert client.ask(b":lab_verify:\nul_show\nbob\n") == b"200 OK\n\n"
    assert client.ask(b":lab_verify:\nul_show\nalice\n").startswith(b"417 ")
    assert b"command:: ul_show\n\targument:: bob\n" in (journal := client.ask(b":lab_journal:\n")) and b"code:: 404" in journal
    assert client.ask(b":lab_fault_add:\ncommand::ul_show\naction::drop\ntimes::1\n").startswith(b"200 OK")
    client.send(b":ul_show:\nbob\n")  # it is forwarded, and its reply is dropped
    client.send(asking("ul_show", "carol"))
    puppet.play(b"200 OK\n\n", b'{"result":1,"id":1}')
    assert client.receive() == b'{"result":1,"id":1}'
    assert client.ask(b":lab_verify:\nul_show\ncarol\n") == b"200 OK\n\n"


# Clients of another dialect than the server's.

TRANSLATED = [
    VERSION, b":events_list:\n", b":cache_store:\nlocal\nk\nv\n", b":cache_fetch:\nlocal\nk\n", b":cache_fetch:\nlocal\nnone\n",
    b":nope:\n", b":cache_store:\nlocal\n", b":get_statistics:\nrequests\nno_such\n", b":ul_show_contact:\nlocation\nbob\n",
    b":ul_add:\nlocation\nbob\nsip:bob@192.0.2.1\n0\n0.5\n0\n0\n0\n1\n", b":ul_show_contact:\nlocation\nbob\n",
    asking("version"), asking("events_list"), asking("nope"), asking("cache_fetch", "local", "none"), asking("ul_rm", "location"),
    asking("ul_show_contact", "location", "bob"), asking("ul_rm", "location", "bob"), asking("get_statistics", ["requests"]),
    b'[%b,%b]' % (asking("version"), asking("nope")),
]


def shape(reply):
    """A reply without figures that differ, and without what differs in spelling."""
    return re.sub(rb"(requests(?:::|\":) ?)[0-9]+", rb"\1N", reply)


def test_what_a_client_of_another_dialect_gets(start):
    """As if it had asked the server in its own."""
    behind = start('loadmodule "usrloc.so"\n')
    fronts = {dialect: start(gateway_to(f"{behind.place};dialect={dialect}")) for dialect in ("text", "jsonrpc")}
    for request in TRANSLATED:
        front = fronts["jsonrpc" if request[:1] == b":" else "text"]
        if b"ul_add" not in request and b"ul_rm" not in request:
            assert shape(front.ask(request)) == shape(behind.ask(request)), request
        else:
            front.ask(request)
    client = fronts["text"].client()
    client.send(b'{"jsonrpc": "2.0", "method": "cache_store", "params": ["local", "note", "d"]}')
    wait_for(lambda: b"value:: d" in behind.ask(b":cache_fetch:\nlocal\nnote\n"), what="the notification")
    assert client.receive(0.05) is None


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_which_dialect_a_server_speaks_is_found_out(start, dialect):
    behind = start(f'modparam("midatagram", "dialect", "{dialect}")\n')
    front = start(gateway_to(behind.place, more='modparam("midatagram", "disable", "kill")'))
    mine = [VERSION, asking("version")]
    for request in mine:
        reply = front.ask(request)
        assert b"midatagram (" in reply and (request[:1] == b":") == reply.startswith(b"200 OK\n"), reply
    names = front.ask(b":which:\n").decode().split("\n")[1:-2]
    assert "cache_store" in names and "kill" not in names
    assert json.loads(front.ask(asking("which")))["result"] == names


def test_a_server_that_speaks_another_dialect_after_a_restart(start):
    behind = start('modparam("midatagram", "dialect", "text")\n')
    front = start(gateway_to(behind.place))
    for _ in range(4):
        assert front.ask(asking("pwd")) == f'{{"jsonrpc":"2.0","result":{{"WD":"{behind.folder}"}},"id":1}}'.encode()
        assert front.ask(b":pwd:\n") == f"200 OK\nWD:: {behind.folder}\n\n".encode()
    behind.stop()
    assert json.loads(front.ask(asking("pwd"))) == error(503, "upstream main is not reachable")
    behind = start('modparam("midatagram", "dialect", "jsonrpc")\n', place=behind.place)
    assert front.ask(b":pwd:\n") == f"200 OK\nWD:: {behind.folder}\n\n".encode()
    behind.stop()
    assert front.ask(b":pwd:\n") == TEXT_503
    behind = start('modparam("midatagram", "dialect", "text")\n', place=behind.place)
    assert json.loads(front.ask(asking("pwd")))["result"] == {"WD": f"{behind.folder}"}


@pytest.mark.parametrize("dialect, other", [("text", "jsonrpc"), ("jsonrpc", "text")])
def test_a_server_in_whose_place_comes_one_of_the_other_dialect(start, dialect, other):
    """Between two requests, so that none is lost and nothing else tells."""
    behind = start(f'modparam("midatagram", "dialect", "{dialect}")\n')
    front = start(gateway_to(behind.place))
    requests = asking("pwd"), b":pwd:\n", b"[%b]" % asking("pwd")
    for _ in range(4):
        before = [front.ask(request) for request in requests]
    behind.stop()
    start(f'modparam("midatagram", "dialect", "{other}")\n', place=behind.place)
    folder = re.compile(rb'WD(:: |":")[^"\n]+')
    for _ in range(3):
        assert [folder.sub(b"", front.ask(request)) for request in requests] == [folder.sub(b"", reply) for reply in before]
    assert front.log.count(f"upstream main speaks {other} now") == 1


def test_what_a_server_of_the_known_dialect_refuses_like_another_one_is_passed_on(start, puppet):
    front = start(gateway_to(puppet.path))
    client = front.client()
    for _ in range(3):
        client.send(b":x:\n")
        assert puppet.play(b"400 Parse_error") == [b":x:\n"] and puppet.is_quiet() and client.receive() == b"400 Parse_error"
        client.send(asking("x"))
        assert puppet.play(b"500 command not available\n") == [asking("x")] and puppet.is_quiet()
        assert client.receive() == b"500 command not available\n"
    assert "speaks" not in front.log


def test_a_server_that_is_there_later_and_speaks_another_dialect(start, tmp_path):
    front = start(gateway_to(f"{tmp_path}/later.sock"))
    assert front.ask(VERSION) == TEXT_503
    start('modparam("midatagram", "dialect", "jsonrpc")\n', place=f"{tmp_path}/later.sock")
    assert front.ask(VERSION).startswith(b"200 OK\nServer:: ")


def test_a_server_that_lists_no_commands(start, tmp_path):
    behind = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    behind.bind(f"{tmp_path}/mute.sock")
    behind.settimeout(0.5)
    front = start(gateway_to(f"{tmp_path}/mute.sock;timeout=300"))
    client = front.client()
    assert client.ask(UPTIME) == TEXT_504 % 300
    assert client.ask(b":which:\n") == TEXT_504 % 300

    def is_asked():  # it is not, as long as the gateway has questions of its own
        client.send(b":mine:\n")
        with contextlib.suppress(TimeoutError):
            while (heard := behind.recvfrom(1000))[0] != b":mine:\n":
                pass
            return heard[1]

    behind.sendto(b"200 mine\n\n", wait_for(is_asked, what="a request that passes"))
    while (reply := client.receive()) == TEXT_504 % 300:
        pass
    assert reply == b"200 mine\n\n"
    behind.close()


def test_a_server_that_is_mute_from_the_start_is_down(start, tmp_path):
    behind = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    behind.bind(f"{tmp_path}/mute.sock")
    front = start(gateway_to(f"{tmp_path}/mute.sock;timeout=400;dialect=jsonrpc"))
    clients = [front.client() for _ in range(20)]
    for client in clients:
        client.send(asking("x"))
    assert all(b'"code":504' in client.receive() for client in clients)
    assert b"state=down requests=20 replies=0 errors=20 timeouts=20" in front.ask(b":upstream_list:\n")
    assert front.log.count("upstream main did not answer in 400 ms") == 1
    behind.close()


def test_names_of_other_releases(start):
    old = start('loadmodule "usrloc.so"\nmodparam("midatagram", "imitate", "3.4")\n')
    front = start(gateway_to(old.place))
    for name in ("ul_dump", "usrloc:dump"):
        assert b'"Domains":' in front.ask(asking(name)), name
        assert b"Domain:: location" in front.ask(f":{name}:\n".encode()), name


def test_text_clients_of_kamailio(start, tmp_path):
    with kamailio_in(tmp_path) as place:
        front = start(gateway_to(place))
        assert front.ask(b":core.version:\n").startswith(b"200 OK\nkamailio 5")
        assert front.ask(b":core.echo:\na\n5\ns:5\n") == b"200 OK\na\n5\n5\n\n"
        assert front.ask(b":nope:\n") == b"500 command not available\n"
        assert b"\ncore.uptime\n" in front.ask(b":which:\n")


# What the gateway says of itself.

def test_statistics(start, puppet):
    front = start(gateway_to(f"{puppet.path};timeout=800", more='modparam("mi_datagram", "children_count", 2)'))
    client = front.client()
    for _ in range(20):
        client.send(UPTIME)
        puppet.play(b"200 OK\n\n")
        client.receive()
    client.send(UPTIME)
    assert client.receive() == TEXT_504 % 800
    figures = dict(line.split(":: ") for line in front.ask(b":get_statistics:\nupstream:\n").decode().split("\n")[1:-2])
    assert figures == {f"upstream:main-{name}": value for name, value in {
        "requests": "21", "replies": "20", "errors": "1", "timeouts": "1", "late": "0", "in_flight": "0", "down": "1"}.items()}
    assert front.ask(b":get_statistics:\nmain-replies\n") == b"200 OK\nupstream:main-replies:: 20\n\n"
    batch = front.ask(b"[%b,%b]" % (asking("get_statistics", ["main-replies"]), asking("help", "upstream_list")))
    assert [*json.loads(batch)[0]["result"].values()] == [20] and "Help" in json.loads(batch)[1]["result"]

    def row():
        return json.loads(front.ask(asking("upstream_list")))["result"]["Servers"][0]

    shown = wait_for(lambda: row()["p50"] and row(), what="what the other child published")
    assert 0 < shown.pop("p50") <= shown.pop("p99") < 1000
    assert shown == {"name": "main", "address": puppet.path, "dialect": "auto", "state": "down", "requests": 21, "replies": 20,
                     "errors": 1, "timeouts": 1, "late": 0, "in_flight": 0}
    assert front.ask(b":upstream_reset:\nnobody\n") == b"404 no such server\n\n"
    assert front.ask(b":upstream_reset:\nmain\n") == b"200 OK\n\n"
    assert (row()["requests"], row()["state"], row()["timeouts"]) == (0, "down", 0)
    assert front.ask(b":reset_statistics:\nmain-requests\n") == b"200 OK\n\n"
    client.send(b":get_statistics:\nupstream:\nrcv_requests\n")  # this is not ours alone
    assert puppet.hear()[0].startswith(b":uptime") or puppet.hear()


@pytest.mark.parametrize("dialect", ["auto", "text", "jsonrpc"])
def test_statistics_of_ours_with_those_of_the_server(start, dialect):
    behind = start()
    front = start(gateway_to(f"{behind.place};dialect={dialect}"))
    ours = [line.split(b"::")[0] for line in front.ask(b":get_statistics:\nupstream:\n").split(b"\n")[1:-2]]
    assert len(ours) == 7
    for values in (["upstream:", "mi_datagram:"], ["all"], ["nothing", "main-late", "requests"], ["nothing", "UPSTREAM:"]):
        theirs = [value for value in values if "UPSTREAM:" != value != "upstream:" and value != "main-late"]
        more = [b"upstream:main-late"] if "main-late" in values else ours
        for _ in range(4):  # none of it is remembered with a figure of now
            line = mi.write_request("get_statistics", [(None, value) for value in theirs])
            names = [line.split(b"::")[0] for line in behind.ask(line).split(b"\n")[1:-2] if b"::" in line]
            reply = front.ask(mi.write_request("get_statistics", [(None, value) for value in values]))
            assert reply.startswith(b"200 OK\n") and reply.endswith(b"\n\n") and b"\n\n" not in reply[:-2]
            assert [line.split(b"::")[0] for line in reply.split(b"\n")[1:-2]] == [*names, *more]
            for request in (asking("statistics:get", values), asking("get_statistics", values, request_id='"x"')):
                reply = json.loads(front.ask(request))
                assert [name.encode() for name in reply["result"]] == [*names, *more] and reply["id"] in (1, "x")
    for request in (asking("get_statistics", {"a": 1}, "upstream:"), asking("get_statistics", 1, ["upstream:"])):
        assert b'"error"' in front.ask(request) or b"upstream:main-late" in front.ask(request)
    assert front.ask(b":reset_statistics:\nmain-replies\nrequests\n") == b"200 OK\n\n"
    assert front.ask(b":get_statistics:\nmain-replies\n") == b"200 OK\nupstream:main-replies:: 1\n\n"


def test_what_the_server_says_instead_of_statistics_is_passed_on(start, puppet):
    client = start(gateway_to(puppet.path)).client()
    for reply in (b"500 Internal error", b'{"jsonrpc":"2.0","error":{"code":500,"message":"x"},"id":1}'):
        client.send(asking("get_statistics", ["upstream:", "x"]))
        assert puppet.play(reply) == [b'{"jsonrpc":"2.0","method":"get_statistics","params":{"statistics":["x"]},"id":1}']
        assert client.receive() == reply


def test_help_for_our_commands_is_ours(pair):
    behind, front = pair
    assert front.ask(b":help:\nupstream_list\n").startswith(b"200 OK\nHelp:: upstream_list - List the servers")
    assert front.ask(b":help:\nlog_level\n") == behind.ask(b":help:\nlog_level\n")


def test_a_list_of_commands_comes_in_time_and_is_asked_for_once(start, puppet):
    puppet.LISTS = {}
    front = start(gateway_to(f"{puppet.path};timeout=1000"))
    clients, begun_s = [front.client() for _ in range(5)], time.monotonic()
    for client in clients:
        client.send(b":which:\n")
    assert {client.receive() for client in clients} == {TEXT_504 % 1000}
    assert time.monotonic() - begun_s < 2.5  # three questions without an answer take 3 s
    puppet.socket.settimeout(0.05)
    heard = []
    with contextlib.suppress(TimeoutError):
        while True:
            heard.append(puppet.hear()[0])
    assert b"which" in heard[0] and len(heard) == len({*heard}) <= 3


def test_help_for_what_is_no_name_is_not_ours(start, puppet):
    front = start(gateway_to(puppet.path))
    front.client().send(asking("help", {}))
    assert puppet.hear()[0] == asking("help", {})


def test_parameters_are_asked_for_again_where_the_server_did_not_answer(start, puppet):
    puppet.LISTS = dict.fromkeys(puppet.LISTS, b'{"result":["which","mine"],"id":1}')
    client = start(gateway_to(f"{puppet.path};dialect=jsonrpc;timeout=300")).client()
    client.send(b":mine:\n1\n")
    assert puppet.hear()[0] == b'{"jsonrpc":"2.0","method":"which","params":["mine"],"id":1}'
    assert client.receive() == TEXT_504 % 300
    client.send(b":mine:\n1\n")
    for reply in (b'{"result":[["number"]],"id":1}', b'{"result":"OK","id":1}'):
        request, place = puppet.hear()
        puppet.socket.sendto(reply, place)
    assert json.loads(request)["params"] == {"number": "1"}
    assert client.receive() == b"200 OK\n\n"


def test_parameters_are_asked_for_again_with_the_list_of_commands(start, puppet):
    puppet.LISTS = dict.fromkeys(puppet.LISTS, b'{"result":["which","mine"],"id":1}')
    client = start(gateway_to(f"{puppet.path};dialect=jsonrpc")).client()
    for name in (b"before", b"after"):  # the server was restarted, and lists the same commands
        for nth in range(4):
            client.send(b":mine:\n1\n")
            question = [b'{"result":[["%b"]],"id":1}' % name] if not nth else []
            request = puppet.play(*question, b'{"result":"OK","id":1}')[-1]
            assert json.loads(request)["params"] == {name.decode(): "1"} and client.receive() == b"200 OK\n\n"
        client.send(b":which:\n")
        puppet.is_quiet()
        assert b"mine\n" in client.receive()


def test_what_knows_a_server_is_loaded_once():
    """So the host of a server is looked up at the start, and never again while a child serves."""
    upstream = mi.shared("upstream")
    assert upstream.behind is upstream.events.behind


def test_a_request_that_waits_while_the_server_becomes_another_one_is_looked_at_anew(start, puppet):
    """One of text, for which a server of JSON-RPC is asked what it takes; by the time of its reply it speaks text."""
    which, mine = [*puppet.LISTS][0], b":mine:\n1\n"
    puppet.LISTS = {which: b'{"result":["which","mine"],"id":1}', b":which:\n": b"no"}
    front = start(gateway_to(f"{puppet.path};timeout=1500"))
    client, other = front.client(), front.client()
    client.send(mine)
    assert b'["mine"]' in puppet.hear()[0] and client.receive() == TEXT_504 % 1500
    other.send(asking("ps"))
    assert puppet.hear()[0] == asking("ps")
    assert puppet.is_quiet(1)
    client.send(mine)
    question, place = puppet.hear()
    assert b'["mine"]' in question and b'"code":504' in other.receive()  # it is down
    puppet.LISTS = {which: b"no", which.replace(b"which", b"system.listMethods"): b"no", b":which:\n": b"200 OK\nmine\n\n"}
    other.send(asking("ps"))
    puppet.play(b'{"result":[],"id":1}')
    other.receive()
    assert puppet.is_quiet()  # it has listed its commands
    puppet.socket.sendto(b'{"result":[["number"]],"id":1}', place)
    assert b'"number"' in puppet.play(b'{"result":"OK","id":1}')[0] and client.receive() == b"200 OK\n\n"
    for _ in range(2):
        client.send(mine)
        assert puppet.play(b"200 OK\n\n") == [mine] and client.receive() == b"200 OK\n\n"


def test_an_error_without_a_possible_code_is_traced_as_well():
    assert mi.shared("upstream").outcome(b'{"error":{"code":1e999,"message":"x"},"id":1}') == (200, "OK")


def test_what_is_recorded_is_bounded_until_it_is_in_the_store():
    upstream = mi.shared("upstream")
    recorder = upstream.Recorder(None, "passed.conf", None)
    for number in range(upstream.MOST_RECORDED + 9):
        recorder.keep(b":x%d:\n" % number, b"200 OK\n\n", 1.0)
    recorder.keep(b":x1:\n", b"200 new\n\n", 1.0)
    assert len(recorder.latest) == upstream.MOST_RECORDED and recorder.latest[b":x1:\n"] == (b"200 new\n\n", 1.0)


def test_without_the_reader_of_odd_json_there_is_no_gateway(tmp_path):
    shutil.copy(SCRIPT, tmp_path)
    shutil.copytree(ROOT / "plugins", tmp_path / "plugins", ignore=shutil.ignore_patterns("cjson.py"))
    (tmp_path / "x.conf").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/s")\n{gateway_to(tmp_path / "b")}')
    done = subprocess.run([sys.executable, "midatagram.py", "-c", "-f", "x.conf"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 78 and f"cjson.py is needed in {tmp_path}/plugins" in done.stderr


def test_what_passes_becomes_canned_replies(start, tmp_path):
    behind, path = start('modparam("midatagram", "version_text", "OpenSIPS (of the test)")'), tmp_path / "passed.conf"
    front = start(gateway_to(behind.place, more=f'modparam("upstream", "record", "{path}")'))
    requests = [VERSION, asking("version"), b":cache_fetch:\nlocal\nx\n", asking("help", "ps"), b":nope:\n"]
    replies = [front.ask(request) for request in requests]
    front.ask(b":cache_store:\nlocal\nx\n1\n")
    replies[2] = front.ask(requests[2])  # the last reply counts
    assert wait_for(path.exists, what="the file")
    front.stop()
    again = start(f'loadmodule "{path}"\n')
    assert [again.ask(request) for request in requests] == replies


def test_a_recording_stays_until_there_is_a_new_one(start, tmp_path):
    """A start alone does not empty the file."""
    behind, path = start(), tmp_path / "passed.conf"
    lines = gateway_to(behind.place, more=f'modparam("upstream", "record", "{path}")')
    front = start(lines)
    front.ask(VERSION)
    front.stop()
    before = path.read_text()
    assert "[version]" in before
    start(lines).stop()
    assert path.read_text() == before


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_what_is_recorded_of_a_server_of_another_dialect_is_what_its_clients_got(start, tmp_path, dialect):
    behind, path = start(f'modparam("midatagram", "dialect", "{dialect}")'), tmp_path / "passed.conf"
    front = start(gateway_to(behind.place, more=f'modparam("upstream", "record", "{path}")'))
    requests = [VERSION, asking("version"), asking("help", "ps"), asking("help", "x"), asking("get_statistics", ["all"])]
    replies = [front.ask(request) for request in requests[:-1]]
    batch = front.ask(b"[%b]" % asking("help", "kill"))
    statistics = json.loads(front.ask(requests[-1]))["result"]
    front.stop()
    again = start(f'loadmodule "{path}"\n')
    assert [again.ask(request) for request in requests[:-1]] == replies
    assert again.ask(b"[%b]" % asking("help", "kill")) == batch
    assert json.loads(again.ask(requests[-1]))["result"].keys() == statistics.keys() > {"upstream:main-late"}


# The start.

@pytest.mark.parametrize("line, message", [
    ('"server", "/x"', "takes \"[NAME]ADDRESS"), ('"server", "udp:127.0.0.1:8080"', 'missing: "[main]udp:127.0.0.1:8080"'),
    ('"server", "[a]udp:x"', "needs a host and a port"),
    ('"server", "[a]/x;timeout=0"', "timeout takes an integer from 1"), ('"server", "[a]/x;dialect=xml"', "dialect takes one of"),
    ('"server", "[a]/x;timout=1"', 'did you mean "timeout"'), ('"server", "[main]/x"', 'there are two with the name "main"'),
    ('"server", "[a]udp:nowhere.invalid:8080"', "server: nowhere.invalid cannot be resolved"),
    ('"listen", "/tmp/z;upstream=oter"', 'listen: there is no server "oter"'),
    ('"server", "[a]/x;events=x:1"', "events is written"),
    ('"route", "x"', "takes patterns of commands and a server"), ('"route", "x: mian"', 'no server "mian"; did you mean "main"'),
])
def test_what_is_wrong_is_named_with_its_line(line, message):
    module = "midatagram" if line.startswith('"listen"') else "upstream"
    with pytest.raises(mi.ConfigError) as raised:
        mi.Trial(gateway_to("/tmp/x", more=f'modparam("{module}", {line})'))
    assert str(raised.value).startswith("trial:3: ") and message in str(raised.value)


@pytest.mark.parametrize("own, server", [
    ("{folder}/mi.sock", "{folder}/mi.sock"), ("{folder}/mi.sock", "{folder}/./mi.sock"),
    ("udp:127.0.0.1:8093", "udp:localhost:8093"), ("udp:*:8093", "udp:127.0.0.2:8093"), ("udp:[::1]:8093", "udp:[::1]:8093"),
])
@pytest.mark.parametrize("line", ['modparam("mi_datagram", "socket_name", "{}")', 'modparam("midatagram", "listen", "{}")'])
def test_a_gateway_to_itself_is_refused(tmp_path, own, server, line):
    """From which each request would come back."""
    server = server.format(folder=tmp_path)
    path = tmp_path / "gateway.cfg"
    path.write_text(gateway_to("/run/other", server) + line.format(own.format(folder=tmp_path)) + "\n"
                    + f'modparam("mi_datagram", "socket_name", "{tmp_path}/another.sock")\n' * ("listen" in line))
    for arguments in ((), ("-c",)):
        done = run("-f", path, *arguments)
        assert done.returncode == 78 and done.stderr.startswith(f"midatagram: {path}:3: server: ")
        assert "is a socket of this gateway itself; name the socket of the server behind it: " in done.stderr


def test_without_a_server_it_changes_nothing():
    with mi.Trial('\nloadmodule "upstream.so"\n') as front:
        assert [text for _, text in front.server.setup.notes] == [
            'trial:2: module upstream forwards nothing without a server: modparam("upstream", "server", '
            '"[main]/run/opensips/socket")']
        assert front.ask(UPTIME).startswith(b"200 OK") and front.ask(b":nope:\n") == b"500 command not available\n"
        assert front.ask(b":upstream_list:\n") == b"200 OK\n\n" and b"\nps\n" in front.ask(b":which:\n")


def test_too_few_files_are_named(start, puppet):
    needs_root()
    few = start(gateway_to(f"{puppet.path};inflight=1000"), "-u", "nobody", wrapper=["prlimit", "--nofile=700:700"])
    few.wait_log("inflight needs 2600 open files in a child, which may have 700: see ulimit -n")
    assert few.log.count("open files") == 1
    raised = start(gateway_to(f"{puppet.path};inflight=1000", more='modparam("upstream", "keep", "ps")'),
                   wrapper=["prlimit", "--nofile=700:4000"])
    limits = pathlib.Path(f"/proc/{raised.children()[0]}/limits").read_text()
    limit = int(re.search(r"Max open files +(\d+)", limits)[1])
    assert limit >= 2600 and "open files" not in raised.log


def test_the_tool_needs_no_file(start, tmp_path):
    behind, place = start(), f"{tmp_path}/gateway.sock"
    process = subprocess.Popen([sys.executable, str(SCRIPT), "gateway", "--to", behind.place,
                                "--to", f"[b]{behind.place};timeout=9", "-s", place], stderr=subprocess.PIPE)
    try:
        wait_for(lambda: os.path.exists(place), what="the gateway")
        with Client(place, tmp_path) as client:
            assert client.ask(PS) == behind.ask(PS)
            servers = json.loads(client.ask(asking("upstream_list")))["result"]["Servers"]
            assert [row["name"] for row in servers] == ["server", "b"]
    finally:
        process.terminate()
        process.wait(5)
        process.stderr.close()
    assert run("gateway").returncode == 2
    done = run("gateway", "--to", place, "-s", place)
    assert done.returncode == 78 and done.stderr.startswith(f"midatagram: --to: server: {place} is a socket of this gateway")
    assert run("gateway", "--to", "udp:1", "-s", place).returncode == 78


# The page.

PAGE = (ROOT / "docs" / "gateway.md").read_text()


def test_the_page_is_true(reader):
    """Its commands, in a shell, one after the other."""
    needs("socat")
    shutil.copytree(ROOT / "tests" / "data" / "modules" / "db24", reader.folder / "tables")
    folder = str(reader.folder)
    reader.places.update({"/run/opensips/mi.sock": f"{folder}/opensips.sock", "/run/opensips/new.sock": f"{folder}/new.sock",
                          "/var/log/midatagram": folder})
    reader.write("new.conf", 'loadmodule "dispatcher.so"\nmodparam("midatagram", "dialect", "jsonrpc")\n'
                             f'modparam("dispatcher", "db_url", "text://{folder}/tables")\n')
    reader.begin("./midatagram.py -f new.conf -s new.sock", "new.sock")
    reader.write("old.conf", 'loadmodule "canned.so"\n')
    reader.begin("./midatagram.py -f old.conf -s opensips.sock -P opensips.pid", "opensips.sock")
    for file, language, block in re.findall(r"(?ms)^(?:`(\w+\.conf)`:\n\n)?```(\w*)\n(.*?)^```$", PAGE):
        if file:
            reader.write(file, block)
        for command, printed in re.findall(r"(?m)^\$ (.*)\n((?:(?!\$ ).*\n)*)", block if language == "sh" else ""):
            run_command(reader, command, printed)
            if command.startswith("kill"):
                wait_for(lambda: not (reader.folder / "opensips.sock").exists(), what="the end of the server")


def run_command(reader, command, printed):
    """Run a command of the page; one that ends in & runs on."""
    if command.endswith(" &"):
        text = command if " -s " in command else (reader.folder / command.split()[-2]).read_text()
        reader.begin(command[:-2], re.search(r'(?:-s |"socket_name", ")(\w+\.sock)', text)[1])
    else:
        shown, expected = (re.sub(r"(p\d\d)=[\d.]+", r"\1=N", text) for text in (
            reader.run(command), placed(printed, reader.places)))
        assert shown == expected, command


def test_the_configuration_of_the_page_is_good(tmp_path):
    blocks = [block for _, block in re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", PAGE)]
    page = next(block for block in blocks if '"route"' in block)
    (tmp_path / "page.conf").write_text(page.replace("/run/midatagram", str(tmp_path)))
    done = run("-c", "-f", tmp_path / "page.conf", "-s", tmp_path / "mi.sock")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_the_gateway_of_the_readme(reader):
    """Its command line: a client at the new socket gets what the server answers."""
    reader.places.update({"/run/opensips/mi.sock": "opensips.sock", "/tmp/old_clients.sock": "gateway.sock"})
    reader.write("server.conf", 'loadmodule "canned.so"\n')
    reader.begin("./midatagram.py -f server.conf -s opensips.sock", "opensips.sock")
    [line] = re.findall(r"^\./midatagram\.py gateway .*", (ROOT / "README.md").read_text(), re.M)
    reader.begin(line, "gateway.sock")
    replies = [reader.run(f"./midatagram.py call -s {name} ds_list") for name in ("opensips.sock", "gateway.sock")]
    assert replies[0] == replies[1] and replies[0].startswith("200 OK\n")
