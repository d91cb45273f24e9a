"""Cached values in Redis: a real one, which several nodes share, which goes away and comes back."""

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import time

import pytest
from conftest import NO_SKIP, ROOT, free_port, needs, run, wait_for

import midatagram as mi

PASSWORD = "sesame"


class Redis:
    """A Redis of the test's own."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None
        self.start()

    def start(self):
        """Start it, empty."""
        self.process = subprocess.Popen(
            [needs("redis-server"), "--port", f"{self.port}", "--bind", "127.0.0.1", "--requirepass", PASSWORD, "--save", "",
             "--dir", str(self.folder)], stdout=subprocess.DEVNULL)
        wait_for(self.listens, 10, "redis-server")

    def listens(self):
        """Whether it takes connections."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True

    def stop(self):
        """Kill it."""
        self.process.kill()
        self.process.wait(5)

    def configuration(self, password=PASSWORD):
        """Lines of a server that keeps values in it."""
        return (f'loadmodule "cachedb_redis.so"\nmodparam("cachedb_redis", "cachedb_url", '
                f'"redis:group://:{password}@127.0.0.1:{self.port}/3")\n')

    def client(self):
        """A client of its own, to look."""
        import redis

        return redis.Redis("127.0.0.1", self.port, 3, PASSWORD)


@pytest.fixture
def redis(tmp_path):
    """A running Redis."""
    if importlib.util.find_spec("redis") is None:
        (pytest.fail if NO_SKIP else pytest.skip)("redis-py is not installed")
    server = Redis(tmp_path)
    yield server
    server.stop()


def text(*words):
    """A text request."""
    return "\n".join([f":{words[0]}:", *words[1:], ""]).encode()


def rpc(method, *params):
    """A JSON-RPC request."""
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()


FETCH = text("cache_fetch", "redis:group", "k")
FAILED = b"500 Cache fetch command failed\n\n"


def test_values_in_both_dialects(redis):
    with mi.Trial(redis.configuration()) as trial, redis.client() as client:
        assert trial.ask(text("cache_store", "redis:group", "k", "two words", "60")) == b"200 OK\n\n"
        assert client.get("k") == b"two words"
        assert 0 < client.ttl("k") <= 60
        assert trial.ask(FETCH) == b"200 OK\nkey:: k\nvalue:: two words\n\n"
        assert b'"result":"OK"' in trial.ask(rpc("cache_store", "redis:group", "k", "9\u20ac"))
        assert client.ttl("k") == -1
        assert b'"result":{"key":"k","value":"9\xe2\x82\xac"}' in trial.ask(rpc("cache_fetch", "redis:group", "k"))
        client.set("k", b"\xff\x00\x01")
        assert trial.ask(FETCH) == b"200 OK\nkey:: k\nvalue:: \xff\x00\x01\n\n"  # others' changes are seen at once
        assert trial.ask(text("cache_remove", "redis:group", "k")) == b"200 OK\n\n"
        assert trial.ask(FETCH) == b"200 OK\nValue not found\n\n"
        assert b'"code":400,"message":"Value not found"' in trial.ask(rpc("cache:fetch", "redis:group", "k"))


def test_other_systems_and_refusals_are_as_before(redis):
    with mi.Trial(redis.configuration()) as trial:
        assert trial.ask(text("cache_store", "local", "k", "v")) == b"200 OK\n\n"
        assert trial.ask(text("cache_fetch", "local", "k")) == b"200 OK\nkey:: k\nvalue:: v\n\n"
        assert trial.ask(text("cache_remove", "local", "k")) == b"200 OK\n\n"
        assert trial.ask(text("cache_fetch", "redis:other", "k")) == FAILED
        assert trial.ask(text("cache_store", "redis:group", "k")) == b"404 Too few arguments\n\n"
        assert trial.ask(text("cache_store", "redis:group", "k", "v", "x")) == b"404 Bad format for expires argument\n\n"
        assert b"Negative expire value" in trial.ask(rpc("cache_store", "redis:group", "k", "v", -1))


def test_what_redis_refuses_is_an_error(redis):
    with mi.Trial(redis.configuration()) as trial, redis.client() as client:
        client.lpush("list", "x")
        assert trial.ask(text("cache_fetch", "redis:group", "list")) == FAILED
        assert trial.ask(text("cache_store", "redis:group", "k", "v")) == b"200 OK\n\n"  # the connection is still good
    with mi.Trial(redis.configuration("wrong")) as trial:
        assert trial.ask(text("cache_store", "redis:group", "k", "v")) == b"500 Cache store command failed\n\n"
        assert trial.ask(text("cache_remove", "redis:group", "k")) == b"500 Cache remove command failed\n\n"


def test_nodes_share_values(start, redis):
    """One stores, another fetches, also after the first was killed."""
    first, second = start(redis.configuration()), start(redis.configuration())
    assert first.ask(text("cache_store", "redis:group", "k", "shared")) == b"200 OK\n\n"
    assert second.ask(FETCH) == b"200 OK\nkey:: k\nvalue:: shared\n\n"
    first.signal(signal.SIGKILL)
    first.process.wait(5)
    assert second.ask(FETCH) == b"200 OK\nkey:: k\nvalue:: shared\n\n"


def test_redis_away_and_back(start, redis):
    """Refused within half a second; a line in the log when it goes, and one when it is back."""
    server = start(redis.configuration() + "log_level=3\n")
    assert server.ask(text("cache_store", "redis:group", "k", "v")) == b"200 OK\n\n"
    redis.stop()
    for _ in range(3):
        began_s = time.monotonic()
        assert server.ask(FETCH) == FAILED
        assert time.monotonic() - began_s < 0.5
    assert b'"code":500,"message":"Cache fetch command failed"' in server.ask(rpc("cache_fetch", "redis:group", "k"))
    redis.start()
    wait_for(lambda: server.ask(FETCH) == b"200 OK\nValue not found\n\n", 5, "redis to be asked again")
    assert server.ask(text("cache_store", "redis:group", "k", "w")) == b"200 OK\n\n"
    assert server.log.count("does not answer") == 1
    assert server.log.count("answers again") == 1


def test_a_redis_that_hangs_holds_up_no_child(start, redis):
    """There is one child, which answers other requests at once while many wait for Redis."""
    server = start(redis.configuration())
    assert server.ask(text("cache_store", "redis:group", "k", "v")) == b"200 OK\n\n"
    redis.process.send_signal(signal.SIGSTOP)
    clients = [server.client() for _ in range(20)]
    began_s = time.monotonic()
    for client in clients:
        client.send(FETCH)
    assert server.ask(text("pwd")).startswith(b"200 OK\n")
    assert time.monotonic() - began_s < 0.3  # Redis has 0.4 s
    assert {client.receive(1.0) for client in clients} == {FAILED}
    redis.process.send_signal(signal.SIGCONT)
    wait_for(lambda: server.ask(FETCH) == b"200 OK\nkey:: k\nvalue:: v\n\n", 5, "redis to be asked again")


LOADED = 'modparam("mi_datagram", "socket_name", "/tmp/never")\nloadmodule "cachedb_redis.so"\n'
URL = 'modparam("cachedb_redis", "cachedb_url", "redis:g://localhost")\n'


def test_without_redis_py_the_start_says_so(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['redis'] = None\n")
    (tmp_path / "test.conf").write_text(LOADED + URL)
    done = run("-c", "-f", tmp_path / "test.conf", environment={"PYTHONPATH": str(tmp_path)}, cwd=ROOT)
    assert done.returncode == 78
    assert "test.conf:3: cachedb_redis needs redis-py: pip install redis" in done.stderr


redis_plugin = mi.shared("cachedb_redis")


@pytest.mark.parametrize("url, wanted", [
    ("redis://localhost", ("redis", None, None, "localhost", 6379, 0)),
    ("redis:group1://localhost:6380/", ("redis:group1", None, None, "localhost", 6380, 0)),
    ("redis:g://:p%w@10.0.0.1:1/15", ("redis:g", None, "p%w", "10.0.0.1", 1, 15)),
    ("redis:g://me:pw@[::1]:6379/2", ("redis:g", "me", "pw", "::1", 6379, 2)),
    ("redis:g://a:1,b:2/", None), ("local://", None), ("redis:g://h:0", None), ("redis:g://h:70000", None), ("redis:g://", None),
    ("redis://:pw@", None), (5, None)])
def test_urls(url, wanted):
    if wanted:
        assert tuple(redis_plugin.cachedb_url(url)) == wanted
    else:
        with pytest.raises(ValueError, match="takes"):
            redis_plugin.cachedb_url(url)


def test_a_system_is_declared_once(tmp_path):
    (tmp_path / "redis.py").write_text("")
    (tmp_path / "test.conf").write_text(LOADED + URL + URL)
    done = run("-c", "-f", tmp_path / "test.conf", environment={"PYTHONPATH": str(tmp_path)}, cwd=ROOT)
    assert 'test.conf:4: cachedb_url: there are two cache systems with the name "redis:g"' in done.stderr
