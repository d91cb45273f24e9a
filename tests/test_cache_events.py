"""What all children share: the cache with its expiry, and subscriptions to events."""

import os
import pathlib
import select
import signal
import socket
import textwrap
import time

import pytest
from conftest import PLUGINS, STOP_S, Client, free_port, wait_for

import midatagram as mi

THREE = 'modparam("mi_datagram", "children_count", 3)\n'


@pytest.fixture
def listener(tmp_path):
    """A UDP socket that receives events, and the place to subscribe for it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock, f"udp:127.0.0.1:{sock.getsockname()[1]}"


def text(*words):
    """A text request."""
    return f":{words[0]}:\n{''.join(word + chr(10) for word in words[1:])}".encode()


def test_cached_values_are_seen_by_all_children(start):
    server = start(THREE)
    assert server.ask(text("cache_store", "local", "k", "v")) == b"200 OK\n\n"
    for _ in range(30):
        assert server.ask(text("cache_fetch", "local", "k")) == b"200 OK\nkey:: k\nvalue:: v\n\n"
    assert server.ask(text("cache_remove", "local", "k")) == b"200 OK\n\n"
    assert server.ask(text("cache_fetch", "local", "k")) == b"200 OK\nValue not found\n\n"


def test_a_cached_value_expires(start):
    server = start()
    server.ask(text("cache_store", "local", "short", "v", "1"))
    server.ask(text("cache_store", "local", "long", "v", "1000"))
    wait_for(lambda: server.ask(text("cache_fetch", "local", "short")) == b"200 OK\nValue not found\n\n")
    assert server.ask(text("cache_fetch", "local", "long")) == b"200 OK\nkey:: long\nvalue:: v\n\n"


@pytest.mark.parametrize("first, second, stays", [("1", "1000", True), ("1", "0", True), ("1", None, True), ("1000", "1", False),
                                                  ("0", "1", False), (None, "1", False)])
def test_a_key_that_is_stored_again_has_the_new_expiry(start, first, second, stays):
    server = start()
    for value, expiry in (("old", first), ("new", second)):
        server.ask(text("cache_store", "local", "k", value, *filter(None, [expiry])))
    server.ask(text("cache_store", "local", "last", "v", "1"))
    assert server.ask(text("cache_fetch", "local", "k")) == b"200 OK\nkey:: k\nvalue:: new\n\n"
    wait_for(lambda: server.ask(text("cache_fetch", "local", "last")) == b"200 OK\nValue not found\n\n")
    assert (b"new" in server.ask(text("cache_fetch", "local", "k"))) == stays


def test_a_value_that_was_fetched_once_is_sent_again_until_one_changes():
    with mi.Trial("") as trial:
        for key in "ab":
            trial.ask(text("cache_store", "local", key, "v"))
        fetches = [text("cache_fetch", "local", key) for key in "ab"]
        replies = [trial.ask(fetch) for fetch in fetches]
        assert trial.answers.at_once(fetches[1])[1] == replies[1] == b"200 OK\nkey:: b\nvalue:: v\n\n"
        trial.ask(text("cache_store", "local", "a", "w"))
        assert trial.answers.at_once(fetches[1])[1] is None
        assert list(map(trial.ask, fetches)) == [b"200 OK\nkey:: a\nvalue:: w\n\n", replies[1]]


def test_values_that_are_fetched_once_have_no_other_reply_forgotten():
    with mi.Trial("") as trial:
        for number in range(3000):
            trial.server.store.put("cache:default", f"k{number}", "v")
        for request in [text("which")] * 2 + [text("cache_fetch", "local", f"k{number}") for number in range(3000)]:
            assert trial.ask(request)[:3] == b"200"
        assert text("which") in trial.answers.cache.young
        assert len(trial.answers.cache) > 1000 and trial.answers.cache.bytes < mi.CACHE_BYTES // 3


def test_of_more_replies_than_fit_most_are_not_cached():
    """Each of them would be forgotten before it is asked for again."""
    with mi.Trial("") as trial:
        for number in range(10000):
            trial.server.store.put("cache:default", f"k{number}", "v")
        fetches, written = [text("cache_fetch", "local", f"k{number}") for number in range(10000)], []
        for request in fetches * 2:
            before = trial.answers.cache.get(request)
            trial.ask(request)
            written.append(trial.answers.cache.get(request) is not before)
        assert 0 < sum(written) < 4000
        assert trial.ask(fetches[0]) == trial.ask(fetches[0]) == b"200 OK\nkey:: k0\nvalue:: v\n\n"


def test_collections_are_apart(start):
    server = start('modparam("cachedb_local", "cache_collections", "c2 = 9")\n'
                   'modparam("cachedb_local", "cachedb_url", "local:two:///c2")\n')
    server.ask(text("cache_store", "local:two", "k1", "two"))
    server.ask(text("cache_store", "local", "k1", "one"))
    assert b"two" in server.ask(text("cache_fetch", "local:two", "k1"))
    assert server.ask(text("cache_remove_chunk", "c2", "k*")) == b"200 OK\n\n"
    assert server.ask(text("cache_fetch", "local:two", "k1")) == b"200 OK\nValue not found\n\n"
    assert b"one" in server.ask(text("cache_fetch", "local", "k1"))


def test_an_event_reaches_its_subscribers(start, listener, tmp_path):
    sock, place = listener
    server = start(f'{THREE}loadmodule "opensips_core.so"', "-p", str(PLUGINS))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
        local.bind(str(tmp_path / "events"))
        local.settimeout(5)
        for target in (place, f"unix:{tmp_path}/events"):
            assert server.ask(text("event_subscribe", "E_PIKE_BLOCKED", target)) == b"200 OK\n\n"
        raised = server.ask(text("raise_event", "E_PIKE_BLOCKED", "ip::192.0.2.1", 'why::"too  many\n"', "left::a b"))
        assert raised == b"200 OK\n\n"
        wanted = b'E_PIKE_BLOCKED\nip::192.0.2.1\nwhy::"too  many\n"\nleft::a b\n\n'
        assert (sock.recv(9999), local.recv(9999)) == (wanted, wanted)


def test_an_event_that_cannot_be_written_is_lost_for_its_subscriber_alone(start, listener, tmp_path):
    """A value that needs quotes and ends in a backslash has no text form; a JSON-RPC subscriber gets it."""
    (tmp_path / "shouts.py").write_text("""
import midatagram as mi

EVENTS = [mi.Event("E_SHOUT", "a shout")]

@mi.command
def shout(ctx, text):
    "Raise an event; answer how many it was sent to."
    return mi.Reply(nodes=[mi.Node("sent", ctx.raise_event("E_SHOUT", text=text))])
""")
    sock, place = listener
    server = start('loadmodule "shouts.so"', "-p", str(tmp_path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as local:
        local.bind(str(tmp_path / "events"))
        local.settimeout(5)
        assert server.ask(text("event_subscribe", "E_SHOUT", place)) == b"200 OK\n\n"
        place = f"unix:{tmp_path}/events".encode()
        server.ask(b'{"jsonrpc":"2.0","method":"event_subscribe","params":["E_SHOUT","%b"],"id":1}' % place)
        assert server.ask(text("shout", "fine")) == b"200 OK\nsent:: 2\n\n"
        assert sock.recv(999) == b"E_SHOUT\ntext::fine\n\n"
        assert local.recv(999) == b'{"jsonrpc":"2.0","method":"E_SHOUT","params":{"text":"fine"}}'
        assert server.ask(b':shout:\n"\\"a\\" b\\c"\n') == b"200 OK\nsent:: 2\n\n"
        assert sock.recv(999) == b'E_SHOUT\ntext::"\\"a\\" b\\c"\n\n'
        assert local.recv(999) == b'{"jsonrpc":"2.0","method":"E_SHOUT","params":{"text":"\\"a\\" b\\\\c"}}'
        server.ask(b'{"jsonrpc":"2.0","method":"shout","params":["\\" \\\\"],"id":1}')
        assert local.recv(999) == b'{"jsonrpc":"2.0","method":"E_SHOUT","params":{"text":"\\" \\\\"}}'
    assert server.statistic("events_lost") == 1


def test_a_subscriber_that_is_gone_costs_nobody_else(start, listener, tmp_path):
    sock, place = listener
    server = start(f'{THREE}loadmodule "opensips_core.so"', "-p", str(PLUGINS))
    for target in (f"unix:{tmp_path}/nobody", place, f"unix:{tmp_path}/no/folder"):
        assert server.ask(text("event_subscribe", "E_PIKE_BLOCKED", target)) == b"200 OK\n\n"
    assert server.ask(text("raise_event", "E_PIKE_BLOCKED", "ip::192.0.2.1")) == b"200 OK\n\n"
    assert sock.recv(999) == b"E_PIKE_BLOCKED\nip::192.0.2.1\n\n"
    assert server.statistic("events_lost") == 2


def test_a_subscription_of_the_same_socket_takes_the_place_of_the_old(start, listener):
    sock, place = listener
    server = start(f'{THREE}loadmodule "opensips_core.so"', "-p", str(PLUGINS))
    for expire in ("100", "200"):
        server.ask(text("event_subscribe", "E_PIKE_BLOCKED", place, expire))
    assert server.ask(text("subscribers_list", "E_PIKE_BLOCKED")).count(b"socket=") == 1
    server.ask(text("raise_event", "E_PIKE_BLOCKED"))
    server.ask(text("raise_event", "E_PIKE_BLOCKED", "last::1"))
    assert (sock.recv(999), sock.recv(999)) == (b"E_PIKE_BLOCKED\n\n", b"E_PIKE_BLOCKED\nlast::1\n\n")


@pytest.mark.parametrize("value", [b"x" * 60000, bytes(range(1, 256)).replace(b'"', b"").replace(b"\\", b""), "é✓".encode()],
                         ids=["long", "bytes", "utf8"])
def test_a_cached_value_comes_back_as_it_was(start, value):
    server = start(THREE)
    assert server.ask(b':cache_store:\nlocal\nk\n"%s"\n' % value) == b"200 OK\n\n"
    assert server.ask(text("cache_fetch", "local", "k")) == b"200 OK\nkey:: k\nvalue:: %s\n\n" % value


def test_a_subscription_ends(start, listener):
    sock, place = listener
    server = start('loadmodule "opensips_core.so"', "-p", str(PLUGINS))
    server.ask(text("event_subscribe", "E_PIKE_BLOCKED", place, "1"))
    assert f"socket={place} expire=1".encode() in server.ask(text("subscribers_list"))
    wait_for(lambda: server.ask(text("subscribers_list")) == b"200 OK\n\n")
    assert server.ask(text("raise_event", "E_PIKE_BLOCKED")) == b"480 Temporarily Unavailable\n\n"


def test_subscriptions_hold_at_once_in_all_children(start, listener):
    """Also in those that have sent the event before."""
    server = start(f'{THREE}loadmodule "opensips_core.so"', "-p", str(PLUGINS))

    def raise_for(*sockets):
        for number in range(12):
            assert server.ask(text("raise_event", "E_PIKE_BLOCKED", f"n::{number}")) == b"200 OK\n\n"
            assert {sock.recv(99) for sock in sockets} == {b"E_PIKE_BLOCKED\nn::%d\n\n" % number}

    (one, place), other = listener, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(5)
        server.ask(text("event_subscribe", "E_PIKE_BLOCKED", place))
        raise_for(one)
        server.ask(text("event_subscribe", "E_PIKE_BLOCKED", f"udp:127.0.0.1:{other.getsockname()[1]}"))
        raise_for(one, other)
        server.ask(b'{"jsonrpc":"2.0","method":"event_subscribe","params":["E_PIKE_BLOCKED","%b",0],"id":1}' % place.encode())
        raise_for(other)
    assert not select.select([one], [], [], 0)[0]


@pytest.mark.parametrize("first, second, stays", [("1", "1000", True), ("1", "", True), ("1000", "1", False), ("", "1", False)])
def test_a_subscription_that_is_renewed_has_the_new_expiry(start, listener, first, second, stays):
    sock, place = listener
    server = start('loadmodule "opensips_core.so"', "-p", str(PLUGINS))
    for expiry in (first, second):
        server.ask(text("event_subscribe", "E_PIKE_BLOCKED", place, *filter(None, [expiry])))
    server.ask(text("event_subscribe", "E_PIKE_BLOCKED", "udp:127.0.0.1:9", "1"))
    wait_for(lambda: b"127.0.0.1:9 " not in server.ask(text("subscribers_list")))
    server.ask(text("raise_event", "E_PIKE_BLOCKED"))
    assert (place.encode() in server.ask(text("subscribers_list"))) == stays == bool(select.select([sock], [], [], 0.1)[0])


def test_json_clients_see_how_long_a_subscription_lasts(start):
    server = start()
    assert b'"OK"' in server.ask(rpc("event_subscribe", "E_MI_STOP", "udp:127.0.0.1:9", 1000))
    shown = server.ask(rpc("subscribers_list", "E_MI_STOP"))
    assert b'"expire":1000,"ttl":1000}' in shown or b'"expire":1000,"ttl":999}' in shown


def test_events_of_the_server_itself(start, listener):
    sock, place = listener
    server = start()
    for event in ("E_MI_CHILD_DIED", "E_MI_RELOAD", "E_MI_STOP"):
        assert server.ask(text("event_subscribe", event, place, "3600")) == b"200 OK\n\n"
    victim = server.children()[0]
    os.kill(victim, signal.SIGKILL)
    assert sock.recv(999) == f"E_MI_CHILD_DIED\npid::{victim}\nreason::signal SIGKILL\n\n".encode()
    wait_for(lambda: server.children() not in ([], [victim]))
    server.signal(signal.SIGHUP)
    assert sock.recv(999) == b"E_MI_RELOAD\nchildren::1\n\n"
    server.stop()
    assert sock.recv(999) == b"E_MI_STOP\n\n"


# Who may subscribe what, and how many may.


def rpc(method, *params):
    """A JSON-RPC request."""
    return mi.json_text({"jsonrpc": "2.0", "method": method, "params": [*params], "id": 1}).encode()


def bound(host):
    """A UDP socket of a host of loopback."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((host, 0))
    return sock


def test_a_udp_client_subscribes_its_own_host_only(start):
    place = f"udp:127.0.0.1:{free_port()}"
    server = start(THREE, place=place)
    with bound("127.0.0.1") as own, bound("127.0.0.2") as other:
        own.settimeout(5)
        other.setblocking(False)
        for third in (f"udp:127.0.0.2:{other.getsockname()[1]}", "udp:192.0.2.1:9", "udp:[::1]:9", "unix:/dev/log"):
            assert server.ask(text("event_subscribe", "E_MI_RELOAD", f'"{third}"')) == b"403 Forbidden\n\n"
            assert b'"error":{"code":403,"message":"Forbidden"}' in server.ask(rpc("event_subscribe", "E_MI_RELOAD", third))
        for mine in ("127.0.0.1", "localhost"):
            assert server.ask(text("event_subscribe", "E_MI_RELOAD", f"udp:{mine}:{own.getsockname()[1]}")) == b"200 OK\n\n"
        assert server.ask(text("raise_event", "E_MI_RELOAD")) == b"200 OK\n\n"
        assert own.recv(999) == b"E_MI_RELOAD\n\n"  # one subscription, however its address is spelt
        with pytest.raises(BlockingIOError):
            other.recv(999)
        assert server.statistic("forbidden") == 8
        assert server.log.count("audit: events for 'unix:/dev/log' refused to 127.0.0.1:") == 2
        assert b"127.0.0.2" not in server.ask(text("subscribers_list"))


def test_event_targets_allows_more(start):
    targets = 'modparam("midatagram", "event_targets", "127.0.0.2/32, 192.0.2.0/24")\n'
    server = start(targets, place=f"udp:127.0.0.1:{free_port()}")
    for host, reply in (("127.0.0.2", b"200 OK"), ("192.0.2.7", b"200 OK"), ("127.0.0.3", b"403 Forbidden")):
        assert server.ask(text("event_subscribe", "E_MI_RELOAD", f"udp:{host}:9")) == reply + b"\n\n"


def test_an_address_mapped_into_ipv6_is_the_same_host(start):
    port = free_port(socket.AF_INET6)
    server = start(place=f"udp:[::]:{port}", ready=False)
    server.wait_log("ready:")
    place = f"udp:127.0.0.1:{port}"  # the server sees ::ffff:127.0.0.1
    assert server.ask(text("event_subscribe", "E_MI_RELOAD", "udp:127.0.0.1:9"), place=place) == b"200 OK\n\n"
    assert server.ask(text("event_subscribe", "E_MI_RELOAD", "udp:127.0.0.2:9"), place=place) == b"403 Forbidden\n\n"


@pytest.mark.parametrize("one, other, same", [
    ("::ffff:192.0.2.1", "192.0.2.1", True), ("fe80::1%lo", "fe80::1", True), ("fe80::1%2", "fe80::1%3", True),
    ("::1", "127.0.0.1", False), ("192.0.2.1", "192.0.2.2", False),
])
def test_the_same_host(one, other, same):
    assert (mi.host_address(one) == mi.host_address(other)) == same


def test_a_unix_client_subscribes_any_address(start):
    server = start()
    for place in ("udp:127.0.0.2:9", "udp:192.0.2.1:9", "unix:/nowhere"):
        assert server.ask(text("event_subscribe", "E_MI_RELOAD", place)) == b"200 OK\n\n"


def test_subscriptions_are_bounded(start):
    server = start(f'{THREE}modparam("midatagram", "max_subscribers", 4)\n')
    full, full_json = b"500 Too many subscribers\n\n", b'"error":{"code":500,"message":"Too many subscribers"}'

    def subscribe(event, port, expire="3600"):
        return server.ask(text("event_subscribe", event, f"udp:127.0.0.1:{port}", expire))

    assert {subscribe("E_MI_RELOAD", port) for port in (1, 2)} == {b"200 OK\n\n"}
    assert {subscribe("E_MI_STOP", port) for port in (1, 2)} == {b"200 OK\n\n"}
    assert subscribe("E_MI_STOP", 3) == subscribe("E_MI_CHILD_DIED", 1) == full
    assert full_json in server.ask(rpc("event_subscribe", "E_MI_STOP", "udp:127.0.0.1:3"))
    assert subscribe("E_MI_STOP", 2, "1") == b"200 OK\n\n"  # it is renewed
    assert server.ask(text("subscribers_list")).count(b"socket=") == 4
    wait_for(lambda: subscribe("E_MI_CHILD_DIED", 9) == b"200 OK\n\n")  # another one is over
    assert subscribe("E_MI_STOP", 3) == full
    assert b'"OK"' in server.ask(rpc("event_subscribe", "E_MI_RELOAD", "udp:127.0.0.1:1", 0))  # a client ends one
    assert subscribe("E_MI_STOP", 3) == b"200 OK\n\n"
    assert subscribe("E_MI_STOP", 4) == full


def test_who_ends_subscriptions_cannot_fill_the_list(start):
    server = start('modparam("midatagram", "max_subscribers", 4)\n')
    for port in range(1, 30):
        assert b'"OK"' in server.ask(rpc("event_subscribe", "E_MI_STOP", f"udp:127.0.0.1:{port}", 0))
    assert server.ask(rpc("subscribers_list")).count(b'"expired"') == 4
    for port in range(100, 104):
        assert server.ask(text("event_subscribe", "E_MI_STOP", f"udp:127.0.0.1:{port}")) == b"200 OK\n\n"
    assert server.ask(text("subscribers_list")).count(b"socket=udp:127.0.0.1:10") == 4


def test_there_are_256_subscriptions_by_default(start):
    server = start()
    with Client(server.place, server.folder) as client:
        for port in range(1, 257):
            assert client.ask(text("event_subscribe", "E_MI_STOP", f"udp:127.0.0.1:{port}")) == b"200 OK\n\n"
        assert client.ask(text("event_subscribe", "E_MI_STOP", "udp:127.0.0.1:257")) == b"500 Too many subscribers\n\n"
        assert client.ask(text("event_subscribe", "E_MI_STOP", "udp:127.0.0.1:99")) == b"200 OK\n\n"


def test_what_is_over_is_gone_from_the_store(monkeypatch):
    """forget_expired, which runs once a minute, leaves nothing of it."""
    changes = []
    clock = [1000.0]
    monkeypatch.setattr(mi.time, "monotonic", lambda: clock[0])

    class Stored:
        text = None

        def now_s(self):
            return clock[0]

        def change(self, space, key, function):
            self.text = function(self.text)
            changes.append(self.text)

        def purge(self):
            changes.append("purged")

    server = type("Server", (), {"store": Stored(), "setup": type("Setup", (), {"own": {"max_subscribers": 9}})})()
    server.events = mi.Events(server, (None, None))
    server.events.subscribe({"event": "E", "socket": "unix:s", "expire": 60, "since": 1000.0, "ended": False, "family": 1,
                             "target": "s", "by": ""})
    clock[0] += 60
    context = type("Context", (), {"store": server.store, "server": server})()
    mi.forget_expired(context)
    assert changes[1:] == ["purged", None]


# Nobody waits for events.

SHOUTS = textwrap.dedent("""
    import midatagram as mi

    EVENTS = [mi.Event("E_SHOUT", "a shout")]

    @mi.command
    def shout(ctx, times, size):
        "Raise events; answer how many subscribers the last one goes to."
        for number in range(int(times)):
            sent = ctx.raise_event("E_SHOUT", number=str(number), padding="x" * int(size))
        return mi.Reply(nodes=[mi.Node("sent", sent)])

    def destroy(ctx):
        for number in range(10):
            ctx.raise_event("E_SHOUT", last=str(number))
""")


@pytest.fixture
def shouter(start, tmp_path):
    """Start a server whose command `shout` raises events."""
    (tmp_path / "shouts.py").write_text(SHOUTS)
    return lambda configuration="": start(f'loadmodule "shouts.so"\n{configuration}', "-p", str(tmp_path))


def deaf(server, count, folder):
    """Subscribe that many UNIX sockets that never read; the sockets."""
    socks = []
    for number in range(count):
        socks.append(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
        socks[-1].bind(f"{folder}/deaf{number}")
        for event in ("E_SHOUT", "E_MI_STOP"):
            assert server.ask(text("event_subscribe", event, f"unix:{folder}/deaf{number}")) == b"200 OK\n\n"
    return socks


def test_events_of_a_child_come_in_their_order(shouter, listener):
    sock, place = listener
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    server = shouter()
    server.ask(text("event_subscribe", "E_SHOUT", place))
    assert server.ask(text("shout", "150", "1")) == b"200 OK\nsent:: 1\n\n"
    assert server.ask(text("shout", "1", "2")) == b"200 OK\nsent:: 1\n\n"
    assert [int(sock.recv(999).split(b"\n")[1][8:]) for _ in range(151)] == [*range(150), 0]
    assert server.statistic("events_lost") == 0


def test_subscribers_that_never_read_delay_nobody(shouter, listener, tmp_path):
    sock, place = listener
    server = shouter('modparam("midatagram", "max_subscribers", 1000)\n')
    server.ask(text("event_subscribe", "E_SHOUT", place))
    server.ask(text("event_subscribe", "E_MI_STOP", place))
    socks = deaf(server, 255, tmp_path)
    slowest_s, shouts = 0.0, server.client()
    shouts.send(text("shout", "1300", "3000"))
    with Client(server.place, tmp_path) as client:
        for _ in range(200):
            asked_s = time.monotonic()
            assert client.ask(b":uptime:\n").startswith(b"200 OK")
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
    assert shouts.receive() == b"200 OK\nsent:: 256\n\n"
    assert slowest_s < 1.5  # where it waited for 256 subscribers, it would be far more
    wait_for(lambda: server.statistic("events_lost") > 255 * 1200, 30)
    server.ask(text("shout", "400", "3000"))  # and some wait when it stops
    started_s = time.monotonic()
    server.stop()
    assert time.monotonic() - started_s < 1.5 < STOP_S
    events = []
    while not events or not events[-1].startswith(b"E_MI_STOP"):
        events.append(sock.recv(9999))
    for one in socks:
        one.close()


def test_events_of_a_child_that_ends_are_sent(shouter, listener, tmp_path):
    """There are more than are sent at once, and no greenlet runs any more."""
    sock, place = listener
    server = shouter()
    server.ask(text("event_subscribe", "E_SHOUT", place))  # the first to subscribe is the last to get them
    socks = deaf(server, 127, tmp_path)
    server.stop()
    assert [sock.recv(999) for _ in range(10)] == [b"E_SHOUT\nlast::%d\n\n" % number for number in range(10)]
    for one in socks:
        one.close()


def test_events_that_too_many_wait_before_are_counted_as_lost(shouter):
    server = shouter('modparam("midatagram", "max_subscribers", 1000)')  # more than get an event in one slice
    for port in range(1, 1001):
        assert server.ask(text("event_subscribe", "E_SHOUT", f"udp:127.0.0.1:{port}")) == b"200 OK\n\n"
    server.ask(text("shout", "1000", "60000"), 30)
    assert server.statistic("events_lost") > 1000 * 100
    memory = pathlib.Path(f"/proc/{server.children()[0]}/status").read_text()
    assert int(memory.partition("VmHWM:")[2].split()[0]) < 60_000  # kB
    wait_for(lambda: server.ask(text("shout", "1", "1")) == b"200 OK\nsent:: 1000\n\n", 60)


def test_a_numeric_host_starts_no_thread(start):
    server = start()
    server.ask(text("cache_store", "local", "k", "v"))
    tasks = pathlib.Path(f"/proc/{server.children()[0]}/task")
    before = len([*tasks.iterdir()])
    for host in ("127.0.0.1", "192.0.2.1", "[::1]", "[fe80::1%lo]", "127.1"):
        assert server.ask(text("event_subscribe", "E_MI_RELOAD", f'"udp:{host}:9"')) == b"200 OK\n\n"
    assert server.ask(text("raise_event", "E_MI_RELOAD")) == b"200 OK\n\n"
    assert len([*tasks.iterdir()]) == before


def test_events_of_the_attendant_wait_for_a_child_that_can_send_them(start, listener):
    """While the only child is stopped nobody sends, and nothing is lost."""
    sock, place = listener
    server = start('modparam("midatagram", "stall_timeout", 500)\n')
    server.ask(text("event_subscribe", "E_MI_CHILD_DIED", place))
    os.kill(server.children()[0], signal.SIGSTOP)  # it is killed as stalled
    assert sock.recv(999).endswith(b"reason::signal SIGKILL\n\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_is_told_by_one_child(start, listener, number):
    sock, place = listener
    server = start(THREE)
    server.ask(text("event_subscribe", "E_MI_STOP", place))
    server.signal(number)
    server.process.wait(5)
    assert sock.recv(999) == b"E_MI_STOP\n\n"
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(999)
