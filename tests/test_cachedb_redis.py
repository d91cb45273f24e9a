"""plugins/cachedb_redis.py: nodes that share cached values through a real redis-server, which goes away and comes back."""

import importlib.util
import json
import re
import signal
import socket
import subprocess
import time

import pytest
from conftest import NO_SKIP, ROOT, free_port, needs, run, wait_for

import midatagram as mi


class Redis:
    """A redis-server on loopback with a password."""

    def __init__(self, folder):
        self.folder, self.port, self.process = folder, free_port(), None

    def start(self):
        """Start it, and wait until it answers."""
        command = [needs("redis-server"), "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", "secret",
                   "--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(lambda: self.ask("PING") == b"+PONG\r\n", what="redis-server")

    def ask(self, *words):
        """What it answers; empty while it is away."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), 5) as connection:
                connection.sendall(b"AUTH secret\r\n")
                connection.recv(100)
                connection.sendall(" ".join(words).encode() + b"\r\n")
                return connection.recv(1000)
        except OSError:
            return b""

    def stop(self):
        """End it."""
        self.process.kill()
        self.process.wait()

    @property
    def configuration(self):
        """The lines of a node."""
        return ('loadmodule "cachedb_redis.so"\nmodparam("mi_datagram", "children_count", 2)\n'
                f'modparam("cachedb_redis", "cachedb_url", "redis:group://:secret@127.0.0.1:{self.port}/3")\n')


@pytest.fixture
def redis(tmp_path):
    """A redis-server, for servers that have the package redis."""
    if not importlib.util.find_spec("redis"):
        (pytest.fail if NO_SKIP else pytest.skip)("the package redis is not installed")
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


def text(*words):
    return "\n".join([f":{words[0]}:", *words[1:], ""]).encode()


def rpc(method, *params):
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()


def test_two_nodes_share_values(start, redis):
    one, two = start(redis.configuration), start(redis.configuration)
    assert one.ask(text("cache_store", "redis:group", "key", "a value", "60")) == b"200 OK\n\n"
    assert two.ask(text("cache_fetch", "redis:group", "key")) == b"200 OK\nkey:: key\nvalue:: a value\n\n"
    assert json.loads(two.ask(rpc("cache_fetch", "redis:group", "key")))["result"] == {"key": "key", "value": "a value"}
    assert 0 < int(redis.ask("SELECT 3\r\nTTL", "key").split(b":")[1]) <= 60
    one.stop()
    assert two.ask(text("cache:store", "redis:group", "key", "b\xe9")) == b"200 OK\n\n"
    assert two.ask(text("cache_fetch", "redis:group", "key")) == "200 OK\nkey:: key\nvalue:: b\xe9\n\n".encode()
    assert redis.ask("SELECT 3\r\nTTL", "key").split(b":")[1] == b"-1\r\n"
    assert two.ask(text("cache_remove", "redis:group", "key")) == b"200 OK\n\n"
    assert two.ask(text("cache_fetch", "redis:group", "key")) == b"200 OK\nValue not found\n\n"
    assert b"400" in two.ask(rpc("cache_fetch", "redis:group", "key"))


def test_the_local_cache_is_another(start, redis):
    server = start(redis.configuration)
    assert server.ask(text("cache_store", "redis:group", "key", "theirs")) == b"200 OK\n\n"
    assert server.ask(text("cache_fetch", "local", "key")) == b"200 OK\nValue not found\n\n"
    assert server.ask(text("cache_store", "redis", "key", "value")) == b"500 Cache store command failed\n\n"
    assert server.ask(text("cache_fetch", "redis:other", "key")) == b"500 Cache fetch command failed\n\n"


def test_a_value_that_another_node_changes_is_seen_at_once(start, redis):
    """No reply is kept."""
    one, two = start(redis.configuration), start(redis.configuration)
    client = two.client()
    for number in range(20):
        assert one.ask(text("cache_store", "redis:group", "key", str(number))) == b"200 OK\n\n"
        assert client.ask(text("cache_fetch", "redis:group", "key")).endswith(b"value:: %d\n\n" % number)


def test_redis_goes_away_and_comes_back(start, redis):
    server = start(redis.configuration.replace("children_count\", 2", "children_count\", 1"))
    assert server.ask(text("cache_store", "redis:group", "key", "value")) == b"200 OK\n\n"
    redis.stop()
    for _ in range(3):
        assert server.ask(text("cache_fetch", "redis:group", "key")) == b"500 Cache fetch command failed\n\n"
    assert json.loads(server.ask(rpc("cache_store", "redis:group", "key", "value")))["error"]["code"] == 500
    assert server.log.count(f"redis at 127.0.0.1:{redis.port}: ") == 1
    redis.start()
    assert server.ask(text("cache_store", "redis:group", "key", "value")) == b"200 OK\n\n"
    assert server.ask(text("cache_fetch", "redis:group", "key")) == b"200 OK\nkey:: key\nvalue:: value\n\n"
    server.wait_log("answers again")


def test_a_redis_that_refuses_one_key_is_not_away(start, redis):
    server = start(redis.configuration.replace("children_count\", 2", "children_count\", 1"))
    assert redis.ask("SELECT 3\r\nRPUSH list x").endswith(b":1\r\n")
    for _ in range(2):
        assert server.ask(text("cache_fetch", "redis:group", "list")) == b"500 Cache fetch command failed\n\n"
        assert server.ask(text("cache_store", "redis:group", "key", "value")) == b"200 OK\n\n"
    assert server.log.count(f"redis at 127.0.0.1:{redis.port} refuses get: WRONGTYPE") == 1 and "answers again" not in server.log
    redis.stop()
    assert server.ask(text("cache_fetch", "redis:group", "list")) == b"500 Cache fetch command failed\n\n"
    server.wait_log(f"redis at 127.0.0.1:{redis.port}: ")


def test_a_redis_that_hangs_holds_up_nobody(start, redis):
    """The error within half a second, and other requests of the same child meanwhile."""
    server = start(redis.configuration.replace("children_count\", 2", "children_count\", 1"))
    server.ask(text("cache_store", "redis:group", "key", "value"))
    redis.process.send_signal(signal.SIGSTOP)
    try:
        waiting, other = server.client(), server.client()
        start_s = time.monotonic()
        waiting.send(text("cache_fetch", "redis:group", "key"))
        assert other.ask(text("uptime"), 0.15).startswith(b"200 OK\n")
        assert waiting.receive(2) == b"500 Cache fetch command failed\n\n"
        assert time.monotonic() - start_s < 1
    finally:
        redis.process.send_signal(signal.SIGCONT)
    assert wait_for(lambda: server.ask(text("cache_fetch", "redis:group", "key")).endswith(b"value:: value\n\n"))


@pytest.mark.parametrize("url, wanted", [
    ("redis://localhost/", ("redis", "localhost", 6379, 0, None, None)),
    ("redis:group://:pass:word@192.0.2.1:7000/12", ("redis:group", "192.0.2.1", 7000, 12, None, "pass:word")),
    ("redis:a://user:pw@[::1]:7000", ("redis:a", "::1", 7000, 0, "user", "pw")),
])
def test_urls(url, wanted):
    module = mi.load_plugin(str(ROOT / "plugins" / "cachedb_redis.py"))
    assert tuple(module.namespace.redis_url(url)) == wanted


@pytest.mark.parametrize("url", ["", "localhost", "redis:", "redis://", "mongodb://x/", "redis://x:0/", "redis://x:99999/",
                                 "redis://x/a"])
def test_wrong_urls_are_named(tmp_path, url):
    path = tmp_path / "x.conf"
    path.write_text('loadmodule "cachedb_redis.so"\nmodparam("mi_datagram", "socket_name", "/tmp/x.sock")\n'
                    f'modparam("cachedb_redis", "cachedb_url", "{url}")\n')
    done = run("-c", "-f", path)
    assert done.returncode == 78 and re.search(rf'{path}:3: .*cachedb_url takes "redis:GROUP://', done.stderr)


def test_a_missing_package_is_named(tmp_path):
    (tmp_path / "redis.py").write_text("raise ImportError('none', name='redis')\n")
    path = tmp_path / "x.conf"
    path.write_text('loadmodule "cachedb_redis.so"\nmodparam("mi_datagram", "socket_name", "/tmp/x.sock")\n'
                    'modparam("cachedb_redis", "cachedb_url", "redis://localhost/")\n')
    done = run("-c", "-f", path, environment={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 78
    assert re.search(rf"{path}:3: .*the package redis is missing: \S+/python\S* -m pip install redis", done.stderr)
