"""What all children share: the cache with its expiry, and subscriptions to events."""

import os
import select
import signal
import socket

import pytest
from conftest import PLUGINS, wait_for

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


def test_events_of_the_server_itself(start, listener):
    sock, place = listener
    server = start()
    for event in ("E_MI_CHILD_DIED", "E_MI_RELOAD", "E_MI_STOP"):
        assert server.ask(text("event_subscribe", event, place, "0")) == b"200 OK\n\n"
    victim = server.children()[0]
    os.kill(victim, signal.SIGKILL)
    assert sock.recv(999) == f"E_MI_CHILD_DIED\npid::{victim}\nreason::signal SIGKILL\n\n".encode()
    wait_for(lambda: server.children() not in ([], [victim]))
    server.signal(signal.SIGHUP)
    assert sock.recv(999) == b"E_MI_RELOAD\nchildren::1\n\n"
    server.stop()
    assert sock.recv(999) == b"E_MI_STOP\n\n"
