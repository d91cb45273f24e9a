"""Delivery: every request of a client that can be reached gets its one reply, in order, however slowly it reads."""

import os
import pathlib
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time

import pytest
from conftest import PLUGINS, free_port, needs_root, readable_python, wait_for

import midatagram as mi

NOBODY = 65534
ECHO = ("-p", str(PLUGINS))
PLUG_INS = 'loadmodule "mi_echo.so"\nloadmodule "mi_trouble.so"\n'
UNREAD = 11  # replies that the kernel keeps for a UNIX client: net.unix.max_dgram_qlen and the one more it lets pass


def own(name, value):
    """A modparam line of midatagram."""
    return f'modparam("midatagram", "{name}", {value})\n'


def base(name, value):
    """A modparam line of mi_datagram."""
    return f'modparam("mi_datagram", "{name}", {value})\n'


def numbered(number):
    """A request that no other is like."""
    return b":echo:\n%d\n" % number


def number_in(reply):
    """The number that a numbered request's reply gives back."""
    return int(reply.split(b"\n")[1].split()[0])


def received(client, count, timeout_s=5.0):
    """So many replies, fewer when no more come in time."""
    replies = []
    while len(replies) < count and (reply := client.receive(timeout_s)) is not None:
        replies.append(reply)
    return replies


@pytest.fixture
def open_folder():
    """A folder that users other than root can enter; pytest's own cannot be."""
    folder = tempfile.mkdtemp(prefix="mi-test-")
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


# Slow readers


@pytest.mark.parametrize("connected", [False, True])
def test_500_of_500_in_order_when_read_after_half_a_second(start, connected):
    server = start(PLUG_INS, *ECHO)
    client = server.client(connected=connected)
    for number in range(500):
        client.send(numbered(number))
    time.sleep(0.5)
    assert [number_in(reply) for reply in received(client, 500)] == list(range(500))
    assert client.receive(0.1) is None
    assert server.statistic("timeouts") == 0
    if not connected:  # the kernel sets no limit to what a socket may send to one that is connected to it
        assert server.statistic("delayed") >= 500 - UNREAD - 1


def test_5000_of_5000_from_ten_slow_readers(start):
    # A longer socket_timeout, because on a busy machine just sending 5,000 requests may take these readers seconds.
    server = start(PLUG_INS + base("children_count", 2) + base("socket_timeout", 20000), *ECHO)
    found = {}

    def ask_and_read_slowly(first):
        client = server.client()
        for number in range(first, first + 500):
            client.send(numbered(number))
        replies = []
        for _ in range(10):
            time.sleep(0.1)
            replies += received(client, 50)
        found[first] = sorted(map(number_in, replies)), client.receive(0.1)

    threads = [threading.Thread(target=ask_and_read_slowly, args=(first,)) for first in range(0, 5000, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {first: (list(range(first, first + 500)), None) for first in range(0, 5000, 500)}


def test_order_holds_between_large_and_small_replies(start):
    server = start(PLUG_INS, *ECHO)
    client = server.client()
    wanted = [(50000, 10, 9000, 100, 60000, 1)[number % 6] for number in range(60)]
    for size in wanted:
        client.send(b":big:\n%d\n" % size)
    assert server.statistic("delayed") > 0  # asked of the same child, so all are answered
    assert [len(reply) - len("200 OK\n\n\n") for reply in received(client, 60)] == wanted


# 212992 is what the kernel grants whoever is not root.
@pytest.mark.parametrize("send_buffer", [65536, 212992, 4194304])
@pytest.mark.parametrize("connected", [False, True])
def test_unread_large_replies_do_not_hold_up_another_client(start, send_buffer, connected):
    server = start(PLUG_INS + own("send_buffer", send_buffer), *ECHO)
    behind, other = server.client(connected=connected), server.client()
    for _ in range(4):
        behind.send(b":big:\n60000\n")
    for number in range(20):
        began_s = time.monotonic()
        assert number_in(other.ask(numbered(number))) == number
        assert time.monotonic() - began_s < 0.5
    assert [len(reply) for reply in received(behind, 4)] == [60009] * 4


def test_a_connected_client_that_does_not_read_holds_up_no_other_connected_one(start):
    server = start(PLUG_INS + own("send_buffer", 212992), *ECHO)
    behind, other = server.client(connected=True), server.client(connected=True)
    for _ in range(12):
        behind.send(b":big:\n60000\n")
    for number in range(20):
        began_s = time.monotonic()
        assert number_in(other.ask(numbered(number))) == number
        assert time.monotonic() - began_s < 0.5
    assert [len(reply) for reply in received(behind, 12)] == [60009] * 12


def test_many_clients_with_unread_large_replies_do_not_hold_up_another(start):
    server = start(PLUG_INS + own("send_buffer", 212992), *ECHO)
    behind = [server.client() for _ in range(20)]
    for client in behind:
        for _ in range(4):
            client.send(b":big:\n60000\n")
    began_s = time.monotonic()
    assert number_in(server.ask(numbered(1))) == 1
    assert time.monotonic() - began_s < 0.5
    for client in behind:
        assert len(received(client, 4)) == 4


def test_what_waits_for_one_client_is_bounded_in_bytes(start):
    server = start(PLUG_INS + own("peer_queue", 300000) + base("socket_timeout", 60000), *ECHO)
    client = server.client()
    for _ in range(100):
        client.send(b":big:\n60000\n")
    assert server.statistic("requests") == 101  # one child answers one after the other: those of before are done
    assert server.statistic("delayed") == 4  # of 60,009 bytes in 300,000
    lost = server.statistic("timeouts")
    assert 100 - UNREAD - 4 <= lost <= 95
    assert server.log.count("reads too slowly and its queue is full") == 1
    assert len(received(client, 100, 0.3)) == 100 - lost
    assert len(client.ask(b":big:\n60000\n")) == 60009


def test_what_waits_for_all_clients_is_bounded_in_bytes(start):
    server = start(PLUG_INS + own("reply_queue", 65536) + own("peer_queue", 65536)
                   + base("socket_timeout", 60000), *ECHO)
    clients = [server.client() for _ in range(4)]
    for client in clients:
        for _ in range(UNREAD):
            client.send(numbered(0))
        client.send(b":big:\n20000\n")
    assert server.statistic("requests") == 4 * (UNREAD + 1) + 1
    assert (server.statistic("delayed"), server.statistic("timeouts")) == (3, 1)
    assert sum(len(received(client, UNREAD + 1, 0.2)) for client in clients) == 4 * UNREAD + 3


def test_replies_that_a_child_delivers_while_it_stops_are_counted(start):
    server = start(PLUG_INS, *ECHO)
    client, before = server.client(), server.children()
    for number in range(UNREAD + 5):
        client.send(numbered(number))
    wait_for(lambda: server.statistic("delayed") == 5, what="five replies that wait")
    server.signal(signal.SIGHUP)
    server.wait_log("reloaded")
    assert len(received(client, UNREAD + 5)) == UNREAD + 5
    wait_for(lambda: not pathlib.Path(f"/proc/{before[0]}").exists(), what="the first child to be gone")
    counts = dict(line.split(":: ") for line in server.ask(b":get_statistics:\nrequests\nreplies\n").decode().split("\n")[1:3])
    assert int(counts["mi_datagram:replies"]) == int(counts["mi_datagram:requests"]) - 1


def test_a_reply_that_expires_is_counted_and_logged_once_per_peer(start):
    server = start(PLUG_INS + base("socket_timeout", 200), *ECHO)
    for peers in (1, 2):
        client = server.client()
        for number in range(100):
            client.send(numbered(number))
        wait_for(lambda: server.statistic("timeouts") == peers * (100 - UNREAD), what="every reply to expire")  # noqa: B023
        assert server.log.count("did not read for 0.2 s") == peers
        assert server.log.count(f"client {client.path} of ") == 1
        assert [number_in(reply) for reply in received(client, UNREAD)] == list(range(UNREAD))
        assert client.receive(0.1) is None
        assert number_in(client.ask(numbered(7))) == 7


def test_udp_500_of_500(start):
    port = free_port()
    server = start(PLUG_INS, *ECHO, place=f"udp:127.0.0.1:{port}")
    client = server.client()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    numbers = []
    for first in range(0, 500, 50):  # UDP has no back-pressure: as many as the server's own queue holds
        for number in range(first, first + 50):
            client.send(numbered(number))
        numbers += map(number_in, received(client, 50))
    assert numbers == list(range(500))


# Whom a reply can reach


@pytest.mark.parametrize("large", [False, True])
def test_client_that_is_connected_to_the_socket(start, large):
    server = start(PLUG_INS, *ECHO)
    client = server.client(connected=True)
    request = b":big:\n65447\n" if large else numbered(5)
    reply = client.ask(request)
    assert len(reply) == 65456 if large else number_in(reply) == 5
    assert client.socket.getpeername() == server.place


def test_client_with_an_abstract_address(start):
    server = start(PLUG_INS, *ECHO)
    client = server.client(bound=False)
    client.socket.bind("")
    assert number_in(client.ask(numbered(5))) == 5
    assert len(client.ask(b":big:\n60000\n")) == 60009


def test_unbound_client_is_served_without_a_reply_and_logged_once(start):
    server = start(PLUG_INS, *ECHO)
    for client in [server.client(bound=False) for _ in range(3)]:
        client.send(b":cache_store:\nlocal\nkey\nvalue\n")
    assert b"value:: value" in server.ask(b":cache_fetch:\nlocal\nkey\n")
    assert server.statistic("unreachable") == 3
    assert server.log.count("is not bound, so it has no address to reply to") == 1


@pytest.mark.parametrize("size", [10, 60000])
def test_client_that_went_away_harms_nobody(start, size):
    server = start(PLUG_INS, *ECHO)
    children = server.children()
    for child in children:  # which reply when the clients are gone
        os.kill(child, signal.SIGSTOP)
    for _ in range(3):
        client = server.client()
        client.send(b":msleep:\n100\n")
        client.send(b":big:\n%d\n" % size)
        client.close()
        os.unlink(client.path)
    for child in children:
        os.kill(child, signal.SIGCONT)
    wait_for(lambda: server.statistic("unreachable") == 6, what="six replies to nobody")
    assert number_in(server.ask(numbered(1))) == 1


def test_client_that_binds_its_path_anew_while_it_is_behind(start):
    server = start(PLUG_INS, *ECHO)
    client = server.client()
    for number in range(UNREAD + 5):
        client.send(numbered(number))
    wait_for(lambda: server.statistic("delayed") == 5, what="five replies that wait")
    client.close()
    os.unlink(client.path)
    again = server.client(bound=False)
    again.socket.bind(client.path)
    assert number_in(again.ask(numbered(99))) in range(UNREAD, UNREAD + 5)  # what waited comes first, in order
    assert [number_in(reply) for reply in received(again, 5)][-1] == 99


def hammered(server):
    """A client that has asked so often at once that it is served through a socket of its own."""
    client = server.client()
    for _ in range(100):
        for number in range(UNREAD - 1):
            client.send(numbered(number))
        answers = [client.socket.recvfrom(1 << 17) for _ in range(UNREAD - 1)]
        assert [number_in(reply) for reply, _ in answers] == list(range(UNREAD - 1))
        if answers[-1][1] is None:  # such a socket is not bound
            return client
    pytest.fail("all replies came from the socket that was asked")


def test_client_that_asks_again_at_once_is_served_through_a_socket_of_its_own_for_a_while(start):
    server = start(PLUG_INS, *ECHO)
    folder = f"/proc/{server.children()[0]}/fd"
    first = server.client()
    first.send(numbered(1))
    assert first.socket.recvfrom(1 << 17)[1] == server.place
    before = len(os.listdir(folder))
    clients = [hammered(server) for _ in range(5)]
    assert len(os.listdir(folder)) == before + len(clients)
    wait_for(lambda: len(os.listdir(folder)) == before, what="their sockets to be closed")
    assert [number_in(client.ask(numbered(7))) for client in clients] == [7] * len(clients)


@pytest.mark.parametrize("request_", [b":echo:\n5\n", b":big:\n60000\n"])
def test_client_that_binds_its_path_anew_and_leaves_its_old_socket_open(start, request_):
    server = start(PLUG_INS, *ECHO)
    client = hammered(server)
    assert client.ask(request_)
    os.unlink(client.path)
    again = server.client(bound=False)
    again.socket.bind(client.path)
    time.sleep(2 * mi.MOMENT_S)
    assert again.ask(request_)
    assert client.receive(0.1) is None


def test_client_that_connects_after_a_while(start):
    server = start(PLUG_INS, *ECHO)
    client = hammered(server)
    client.socket.connect(server.place)
    client.connected = True
    assert [number_in(client.ask(numbered(number))) for number in range(50)] == list(range(50))
    assert len(client.ask(b":big:\n60000\n")) == 60009


def test_client_that_went_away_while_it_was_hammering(start):
    server = start(PLUG_INS, *ECHO)
    client = hammered(server)
    client.send(b":msleep:\n50\n")
    client.close()
    os.unlink(client.path)
    wait_for(lambda: server.statistic("unreachable") == 1, what="a reply to nobody")
    assert server.log.count(f"client {client.path} of ") == 1
    assert hammered(server)


@pytest.mark.parametrize("pattern, asked", [
    ("udp:0.0.0.0:{}", "127.0.0.1"), ("udp:0.0.0.0:{}", "127.0.0.2"), ("udp:0.0.0.0:{}", "127.77.0.9"),
    ("udp:[::]:{}", "::1"),
])
@pytest.mark.parametrize("size", [10, 60000])
def test_udp_reply_leaves_from_the_address_that_was_asked(start, pattern, asked, size):
    family = socket.AF_INET6 if ":" in asked else socket.AF_INET
    port = free_port(family)
    start(PLUG_INS + own("allow_from", '"127.0.0.0/8, ::1"'), *ECHO, place=pattern.format(port))
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.sendto(b":big:\n%d\n" % size, (asked, port))
        reply, source = client.recvfrom(1 << 17)
    assert len(reply) == size + len("200 OK\n\n\n")
    assert source[:2] == (asked, port)


def test_udp_client_whose_port_is_closed_harms_nobody(start):
    server = start(PLUG_INS, *ECHO, place=f"udp:127.0.0.1:{free_port()}")
    for _ in range(5):
        client = server.client()
        client.send(b":msleep:\n20\n")
        client.close()  # the kernel answers the reply with an ICMP error
    assert server.ask(b":msleep:\n50\n")  # of the same child: it has answered the others before
    assert [number_in(server.ask(numbered(number))) for number in range(5)] == list(range(5))


def test_path_that_we_may_not_write_to_is_one_log_line(start, open_folder):
    needs_root()
    server = start(PLUG_INS, *ECHO, "-u", "nobody", place=f"{open_folder}/mi.sock", wrapper=readable_python())
    client, other = server.client(bound=False), server.client(bound=False)
    path = f"{open_folder}/private"
    client.socket.bind(path)
    os.chmod(path, 0o600)
    os.chown(path, 1, 1)
    for _ in range(3):
        client.send(numbered(1))
    other.socket.bind("")
    assert b"unreachable:: 3\n" in other.ask(b":get_statistics:\nunreachable\n")
    server.wait_log(path)
    lines = [line for line in server.lines if path in line]
    assert len(lines) == 1
    assert f"may not be written to by uid {NOBODY}, its owner is uid 1" in lines[0]
    assert client.receive(0.05) is None


# What gets none


def test_empty_datagram_is_counted_and_gets_no_reply(start):
    port = free_port()
    server = start(PLUG_INS + own("listen", f'"udp:127.0.0.1:{port}"'), *ECHO)
    for client in (server.client(), server.client(f"udp:127.0.0.1:{port}")):
        client.send(b"")
        assert number_in(client.ask(numbered(3))) == 3
        assert client.receive(0.1) is None
    assert server.statistic("empty") == 2


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_request_that_is_too_long_is_answered_with_an_error(start, kind):
    port = free_port()
    server = start(PLUG_INS + own("listen", f'"udp:127.0.0.1:{port}"'), *ECHO)
    client = server.client() if kind == "unix" else server.client(f"udp:127.0.0.1:{port}")
    head = b":count:\n"
    whole = head + b"x" * (mi.LIMIT - len(head))
    assert b"value_bytes:: %d\n" % (mi.LIMIT - len(head)) in client.ask(whole)
    sizes = [mi.LIMIT + 1, 65507] + [200000] * (kind == "unix")
    for size in sizes:
        reply = client.ask(head + b"x" * (size - len(head)))
        assert reply == b"400 request of %d bytes exceeds 65457\n" % size
        assert client.receive(0.05) is None
    assert server.statistic("errors") == len(sizes)


# Replies that are sent later

LATER = """
import midatagram as mi

answer_now = mi.Answers.answer

def answer(self, data, *rest):
    found = answer_now(self, data, *rest)
    if not data.startswith(b":echo:"):
        return found
    return found._replace(datagrams=[(float(data.split()[1]), reply) for _, reply in found.datagrams])

mi.Answers.answer = answer
"""


def test_a_datagram_with_a_delay_is_sent_after_it_and_holds_up_nobody(start, tmp_path):
    (tmp_path / "later.py").write_text(LATER)
    server = start(PLUG_INS + 'loadmodule "later.so"\n', *ECHO, "-p", str(tmp_path))
    client, began_s = server.client(), time.monotonic()
    for delay in (b"0.6", b"0.3", b"0"):
        client.send(b":echo:\n%b\n" % delay)
    assert [float(reply.split()[2]) for reply in received(client, 2)] == [0, 0.3]
    assert 0.3 <= time.monotonic() - began_s < 0.6
    assert float(client.receive().split()[2]) == 0.6 and time.monotonic() - began_s >= 0.6
    assert server.statistic("replies") == 3
    client.send(b":echo:\n60\n")
    assert server.statistic("requests") == 6
    began_s = time.monotonic()
    server.stop()  # what is to be sent later is dropped
    assert time.monotonic() - began_s < 5 and client.receive(0.1) is None


# Handlers that take too long


def test_handler_timeout_ends_a_handler_and_nobody_else(start):
    server = start(PLUG_INS + own("handler_timeout", 300), *ECHO)
    slow, other = server.client(), server.client()
    began_s = time.monotonic()
    for _ in range(3):
        slow.send(b":msleep:\n60000\n")
    slow.send(b":msleep:\n100\n")
    assert number_in(other.ask(numbered(1))) == 1
    assert time.monotonic() - began_s < 0.2
    assert slow.receive() == b"200 OK\nslept:: 100\n\n"
    assert received(slow, 3) == [b"500 command timed out\n"] * 3
    assert 0.3 <= time.monotonic() - began_s < 1.0
    assert slow.receive(0.1) is None
    assert server.statistic("interrupted") == 3
    assert "msleep ran longer than handler_timeout" in server.log


def test_handler_timeout_answers_for_a_promise_that_is_not_kept(start):
    server = start(PLUG_INS + own("handler_timeout", 200), *ECHO)
    client = server.client()
    assert client.ask(b":never:\n") == b"500 command timed out\n"
    assert client.ask(b'{"jsonrpc":"2.0","method":"never","id":7}').startswith(b'{"jsonrpc":"2.0","error":{')
    assert client.receive(0.1) is None
    assert server.statistic("interrupted") == 2


def test_more_requests_than_the_pool_has_room_for_wait_and_lose_nothing(start):
    server = start(PLUG_INS + own("pool_size", 2), *ECHO)
    client = server.client()
    began_s = time.monotonic()
    for _ in range(6):
        client.send(b":msleep:\n200\n")
    assert received(client, 6) == [b"200 OK\nslept:: 200\n\n"] * 6
    assert time.monotonic() - began_s >= 0.6  # two at a time
    assert number_in(client.ask(numbered(1))) == 1


@pytest.mark.parametrize("children", [1, 2])
def test_stall_timeout_replaces_a_child_that_is_away_from_its_hub(start, children):
    server = start(PLUG_INS + own("stall_timeout", 500) + base("children_count", children), *ECHO)
    before = server.children()
    stuck, other = server.client(), server.client()
    stuck.send(b":block:\n60000\n")
    began_s = time.monotonic()
    answers = [number_in(other.ask(numbered(number))) for number in range(5)]  # with one child these wait in the queue
    assert answers == list(range(5))
    server.wait_log("is stalled for 0.5 s, killed")
    server.wait_log("ready:", times=1)
    assert time.monotonic() - began_s < 3
    wait_for(lambda: len(server.children()) == children and len(set(server.children()) - set(before)) == 1, what="a new child")
    assert server.statistic("child_stalls") == 1
    assert server.statistic("child_deaths") == 1


def test_a_busy_child_is_not_taken_for_a_stalled_one(start):
    server = start(PLUG_INS + own("stall_timeout", 500), *ECHO)
    client, before = server.client(), server.children()
    for _ in range(8):  # 1.6 s of work, none of which takes long
        client.send(b":block:\n200\n")
    assert received(client, 8) == [b"200 OK\n\n"] * 8
    assert server.children() == before
    assert server.statistic("child_stalls") == 0


# Several sockets


def test_several_sockets_with_their_own_mode_and_owner(start, tmp_path):
    needs_root()
    ports = free_port(), free_port(socket.AF_INET6)
    places = [f"{tmp_path}/public.sock", f"{tmp_path}/plain.sock", f"udp:127.0.0.1:{ports[0]}", f"udp:[::1]:{ports[1]}"]
    server = start(PLUG_INS + base("unix_socket_mode", "0600") + base("children_count", 2)
                   + own("listen", f'"{places[0]};mode=0606;user=daemon;group=nogroup"')
                   + "".join(own("listen", f'"{place}"') for place in places[1:]), *ECHO)
    for number, place in enumerate([server.place, *places]):
        assert number_in(server.ask(numbered(number), place=place)) == number
    found = [(stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid)
             for status in map(os.stat, (server.place, *places[:2]))]
    assert found == [(0o600, 0, 0), (0o606, 1, 65534), (0o600, 0, 0)]
    assert all(place in server.log for place in places)
    server.stop()
    assert not any(pathlib.Path(path).exists() for path in (server.place, *places[:2]))


KEPT = """
import midatagram as mi

@mi.command(pure=True, size=mi.integer())
def kept(ctx, size):
    "So many bytes, the empty line included."
    return mi.Reply(nodes=[mi.Node(None, "x" * (size - 9))])

LONG = [10]

@mi.command
def grows(ctx, size):
    "Answer with a value that was made so long by the last who asked with another size."
    LONG[0] = int(size)
    return mi.Reply()

@mi.command
def long(ctx):
    "That value."
    return mi.Reply(nodes=[mi.Node(None, mi.LIVE)], live=lambda: ("x" * LONG[0],))
"""


@pytest.mark.parametrize("udp", [False, True])
def test_the_limit_holds_for_replies_that_are_kept(start, tmp_path, udp):
    (tmp_path / "kept.py").write_text(KEPT)
    server = start('loadmodule "kept.so"', "-p", str(tmp_path), place=f"udp:127.0.0.1:{free_port()}" if udp else None)
    for size, wanted in ((mi.LIMIT, mi.LIMIT), (mi.LIMIT + 1, len(b"500 reply of 65458 bytes exceeds 65457\n")), (65600, 39)):
        assert [len(server.ask(b":kept:\n%d\n" % size)) for _ in range(5)] == [wanted] * 5
    assert [len(server.ask(b":long:\n")) for _ in range(4)] == [19] * 4
    server.ask(b":grows:\n70000\n")
    assert [server.ask(b":long:\n") for _ in range(3)] == [b"500 reply of 70009 bytes exceeds 65457\n"] * 3
    server.ask(b":grows:\n1\n")
    assert server.ask(b":long:\n") == b"200 OK\nx\n\n"


def test_descriptors_that_a_client_sends_are_not_kept(start):
    server = start('modparam("midatagram", "allow_command", "kill: uid:root")\n')
    child = server.children()[0]
    before = len(os.listdir(f"/proc/{child}/fd"))
    client = server.client(connected=True)
    with open(os.devnull) as null:
        for _ in range(50):
            socket.send_fds(client.socket, [b":version:\n"], [null.fileno()] * 4)
            assert client.receive().startswith(b"200 OK\nServer:: ")
    assert len(os.listdir(f"/proc/{child}/fd")) == before
