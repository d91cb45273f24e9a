"""The store that all children share: bounded, never stale, steady, and in nobody's way."""

import contextlib
import copy
import fnmatch
import os
import pathlib
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import tracemalloc
import types

import gevent
import pytest
from conftest import ROOT, Client, needs, needs_root, wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import midatagram as mi

THREE = 'modparam("mi_datagram", "children_count", 3)\n'
SMALL = 'modparam("midatagram", "store_size", 1048576)\n'
OK = b"200 OK\n\n"
FAILED = b"500 Cache store command failed\n\n"


def text(*words):
    """A text request."""
    return f":{words[0]}:\n{''.join(word + chr(10) for word in words[1:])}".encode()


@pytest.fixture
def clock(monkeypatch):
    """The steady clock, which a test sets; there is no other one, so who asks for the time of day fails."""
    clock = types.SimpleNamespace(now_s=1000.0, monotonic=lambda: clock.now_s)
    monkeypatch.setattr(mi, "time", clock)
    return clock


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of this process alone."""
    monkeypatch.setattr(mi, "gevent", gevent, raising=False)
    store = mi.Store(str(tmp_path), 64 << 20)
    yield store
    store.close()


@pytest.fixture
def tmpfs(tmp_path):
    """A file system of 1 MB, for the server's RUNTIME_DIRECTORY."""
    needs_root()
    needs("mount")
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def values(store, space):
    """The (key, value) pairs of a space, those that changed last at the end."""
    return [(key, value) for key, value, _ in store.changes(space)[2]]


def script(folder, code):
    """Run code in a process of its own, with a store in `folder` that it may share with children; its output."""
    prelude = f"""
        import os, random, signal, sqlite3, sys, time
        import gevent
        import midatagram as mi
        mi.gevent = gevent
        store = mi.Store({str(folder)!r}, 64 << 20)
        def fork(act):
            pid = os.fork()
            if pid:
                return pid
            try:
                store.cursor = None  # that is the other process'
                act()
            finally:
                os._exit(0)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)], cwd=ROOT, timeout=60,
                          capture_output=True, text=True, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def database(folder):
    """The file of the one server whose shared files are in a folder."""
    return wait_for(lambda: list(pathlib.Path(folder).glob("midatagram-*/store.sqlite")))[0]


# Changes.


def test_no_change_is_lost_between_three_children(start, tmp_path):
    (tmp_path / "tally.py").write_text(textwrap.dedent("""
        import os
        import midatagram as mi

        @mi.command
        def tally(ctx):
            "Count."
            count = ctx.store.change("tally", "count", lambda text: str(int(text or 0) + 1))
            return mi.Reply(nodes=[mi.Node("count", count), mi.Node("pid", os.getpid())])
    """))
    server = start(f'{THREE}loadmodule "tally.so"', "-p", str(tmp_path))
    clients, replies = [server.client() for _ in range(12)], []
    for _ in range(50):
        for client in clients:
            client.send(b":tally:\n")
        replies += [client.receive().decode().split() for client in clients]
    assert sorted(int(reply[3]) for reply in replies) == list(range(1, 601))
    assert len({reply[5] for reply in replies}) > 1  # children


def test_no_change_is_lost_between_three_processes_that_do_nothing_else(tmp_path):
    assert script(tmp_path, """
        def count():
            for _ in range(1000):
                store.change("s", "k", lambda text: str(int(text or 0) + 1))
        for pid in [fork(count) for _ in range(3)]:
            os.waitpid(pid, 0)
        print(store.get("s", "k"))
    """) == "3000\n"


def test_a_change_gets_and_returns_values(store):
    assert store.change("s", "k", lambda text: f"{text}!") == "None!"
    assert store.change("s", "k", lambda text: f"{text}!") == "None!!" == store.get("s", "k")
    assert store.change("s", "k", lambda text: None) is None
    assert store.get("s", "k") is None and values(store, "s") == []


def test_a_change_that_raises_changes_nothing(store):
    store.put("s", "k", "v")
    with pytest.raises(ZeroDivisionError):
        store.change("s", "k", lambda text: 1 // 0)
    assert store.get("s", "k") == "v"
    store.put("s", "k", "w")
    assert store.get("s", "k") == "w"


# Versions.


def test_items_are_the_last_changed_first(store):
    for key in "abcd":
        store.put("s", key, key.upper(), 0.05 if key == "d" else 0)
    store.put("s", "a", "again")
    store.remove("s", "b")
    store.put("other", "x", "y")
    time.sleep(0.06)
    assert store.items("s") == [("a", "again"), ("c", "C")]


def test_what_has_not_changed_is_not_read_again(store):
    statements = []
    store.put("s", "k", "v")
    store.put("t", "k", "v")
    store.cursor.connection.set_trace_callback(statements.append)
    assert [store.get("s", key) for key in ("k", "none")] == ["v", None]
    read = len(statements)
    assert [store.get("s", key) for key in ("k", "none") * 100] == ["v", None] * 100
    assert len(statements) == read == 2
    store.put("t", "k", "w")
    del statements[:]
    assert store.get("s", "k") == "v" and not statements  # another space


def test_what_another_process_changed_is_read_again(tmp_path):
    assert script(tmp_path, """
        store.put("s", "k", "0")
        for number in range(1, 200):
            os.waitpid(fork(lambda: store.put("s", "k", str(number))), 0)
            assert store.get("s", "k") == store.get("s", "k") == str(number)
        os.waitpid(fork(lambda: store.remove("s", "k")), 0)
        assert store.get("s", "k") is None
    """) == ""


@pytest.mark.parametrize("when, value", [("before", "one"), ("after", "two")])
def test_a_writer_that_is_killed_as_it_commits_leaves_nothing_stale(tmp_path, when, value):
    assert script(tmp_path, f"""
        class Dying:
            def __init__(self, cursor):
                self.cursor = cursor
            def execute(self, statement, *values):
                if statement == "COMMIT":
                    if {when!r} == "after":
                        self.cursor.execute(statement)
                    os.kill(os.getpid(), signal.SIGKILL)
                return self.cursor.execute(statement, *values)
        def die():
            store.cursor = Dying(store.open())
            store.put("s", "k", "two")
        store.put("s", "k", "one")
        assert store.get("s", "k") == store.get("s", "k") == "one"
        assert os.waitpid(fork(die), 0)[1] == signal.SIGKILL
        assert store.get("s", "k") == store.get("s", "k") == {value!r}
        assert store.version("s") == -1
        store.put("s", "k", "three")
        assert store.get("s", "k") == store.get("s", "k") == "three"
    """) == ""


def test_readers_follow_writers_that_are_killed_at_any_moment(tmp_path):
    assert script(tmp_path, """
        def count():
            while True:
                store.change("s", "k", lambda text: str(int(text or 0) + 1))
        seen = 0
        store.put("s", "k", "0")
        for _ in range(100):
            pids, until_s = [fork(count), fork(count)], time.monotonic() + random.uniform(0.001, 0.02)
            while time.monotonic() < until_s:
                value = int(store.get("s", "k"))
                assert value >= seen
                seen = value
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            value, = sqlite3.connect(store.path).execute("SELECT value FROM item").fetchone()
            assert store.get("s", "k") == store.get("s", "k") == value.decode()
        assert seen > 100
    """) == ""


def test_what_is_remembered_of_values_is_bounded(store):
    values = {f"key{number}": chr(97 + number % 26) * 100_000 for number in range(200)}
    for key, value in values.items():
        store.put("s", key, value)
    tracemalloc.start()
    assert all(store.get("s", key) == value for key, value in values.items())
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < mi.READ_BYTES * 1.5


def test_fetched_values_follow_those_that_are_stored(start):
    """All children have the reply of a repeated request, and none may send it when another child stored anew."""
    server = start(THREE)
    clients = [server.client() for _ in range(6)]
    for number in range(30):
        assert server.ask(text("cache_store", "local", "k", f"{number}")) == OK
        for _ in range(4):
            for client in clients:
                client.send(text("cache_fetch", "local", "k"))
            assert {client.receive() for client in clients} == {b"200 OK\nkey:: k\nvalue:: %d\n\n" % number}
            json = b'{"jsonrpc":"2.0","method":"cache_fetch","params":["local","k"],"id":1}'
            assert b'"value":"%d"' % number in server.ask(json)
    assert server.ask(text("cache_remove", "local", "k")) == OK
    assert {server.ask(text("cache_fetch", "local", "k")) for _ in range(9)} == {b"200 OK\nValue not found\n\n"}


# What changed.


def picture(store, space, view, since):
    """Bring a picture of a space up to date; its next `since`, and whether it was made anew."""
    anew, since, rows = store.changes(space, since)
    if anew:
        view.clear()
    for key, value, _ in rows:
        view.pop(key, None)
        if value is not None:
            view[key] = value
    return since, anew


def test_changes_since_a_version(store):
    store.put("s", "old", "1")
    store.put("other", "k", "1")
    anew, since, rows = store.changes("s")
    assert (anew, rows) == (True, [("old", "1", None)])
    assert store.changes("s", since) == (False, since, [])
    store.put("s", "new", "2")
    store.put("other", "k", "2")
    store.put("s", "old", "3")
    store.remove("s", "none")
    anew, later, rows = store.changes("s", since)
    assert (anew, rows) == (False, [("new", "2", None), ("old", "3", None)]) and later > since
    store.remove("s", "new")
    store.put("s", "old", "4")
    store.put("s", "old", "5")
    anew, last, rows = store.changes("s", later)
    assert (anew, rows) == (False, [("new", None, rows[0][2]), ("old", "5", None)])
    assert store.changes("s", last) == (False, last, [])
    assert store.get("s", "new") is None and values(store, "s") == [("old", "5")]
    assert [key for key, *_ in store.changes("s", since)[2]] == ["new", "old"]  # for somebody who looks seldom


def test_a_key_that_was_removed_can_come_back(store):
    assert store.changes("s") == (True, 0, [])
    store.put("s", "other", "v")
    _, since, _ = store.changes("s")
    for value in ("1", "2"):
        store.put("s", "k", value)
        anew, since, rows = store.changes("s", since)
        assert (anew, rows) == (False, [("k", value, None)])
        store.remove("s", "k")
        anew, since, rows = store.changes("s", since)
        assert not anew and [row[:2] for row in rows] == [("k", None)]


def test_who_looks_too_late_gets_all_anew(store, clock):
    store.put("s", "first", "v")
    _, since, _ = store.changes("s")
    store.remove("s", "first")
    clock.now_s += mi.REMOVED_S
    store.purge()
    anew, since, rows = store.changes("s", since)
    assert (anew, rows) == (True, [])
    for key in "abc":
        store.put("s", key, key, 1000)
    store.remove("s", "a")
    clock.now_s += mi.REMOVED_S - 1
    store.purge()
    assert [row[:2] for row in store.changes("s", since)[2]] == [("b", "b"), ("c", "c"), ("a", None)]
    clock.now_s += 1
    store.purge()
    anew, later, rows = store.changes("s", since)
    assert anew and sorted(row[:2] for row in rows) == [("b", "b"), ("c", "c")]
    assert store.changes("s", later) == (False, later, [])
    store.remove_fitting("s", "b")
    anew, later, rows = store.changes("s", later)
    assert anew and rows == [("c", "c", 2060.0)]


def test_keys_that_are_removed_while_somebody_asks_are_not_missed(store, tmp_path):
    other = mi.Store(str(tmp_path), 64 << 20)  # as another process, at the moment when this one reads
    other.shared, other.begun, other.committed, other.forgotten = store.shared, store.begun, store.committed, store.forgotten
    store.put("s", "a", "1")
    _, since, _ = store.changes("s")

    def change(statement):
        if "version >" in statement:
            other.remove_fitting("s", "*")
            other.put("s", "b", "2")

    store.cursor.connection.set_trace_callback(change)
    anew, since, rows = store.changes("s", since)
    store.cursor.connection.set_trace_callback(None)
    other.close()
    assert anew and rows == [("b", "2", None)]
    assert store.changes("s", since) == (False, since, [])


def test_a_full_store_deletes_what_was_removed(store):
    """Where there is no room nothing is written down, and views start anew."""
    store.put("s", "a", "1")
    store.put("s", "b", "2")
    _, since, _ = store.changes("s")
    store.remove("s", "a")
    assert not store.changes("s", since)[0]
    store.size_bytes = 0
    with pytest.raises(mi.StoreError):
        store.put("s", "c", "3")
    assert store.changes("s", since)[::2] == (True, [("b", "2", None)])
    assert store.cursor.execute("SELECT key FROM item").fetchall() == [(b"b",)]
    assert store.shared[mi.USED] == 2 + 1 + mi.ROW_BYTES


def test_pictures_follow_three_processes(tmp_path):
    assert script(tmp_path, """
        sys.path.insert(0, "tests")
        from test_store import picture, values
        def change():
            for number in range(2000):
                key = str(random.randrange(50))
                if random.random() < 0.4:
                    store.remove("s", key)
                else:
                    store.put("s", key, f"{os.getpid()}.{number}")
                if number == 1000:
                    store.remove_fitting("s", "1*")
        pids, view, since, anew = [fork(change) for _ in range(3)], {}, 0, 0
        while pids:
            known = since > 0  # there is something by then
            since, made = picture(store, "s", view, since)
            anew += made and known
            pids = [pid for pid in pids if not os.waitpid(pid, os.WNOHANG)[0]]
        picture(store, "s", view, since)
        assert view == dict(values(store, "s")) and view
        assert anew <= 30, anew  # once for each slice of the removals at most
    """) == ""


# Time.


def test_values_expire_by_the_steady_clock(store, clock):
    store.put("s", "brief", "v", 10)
    store.put("s", "long", "v")
    clock.now_s += 9.9
    assert store.get("s", "brief") == store.get("s", "brief") == "v"
    clock.now_s += 0.1
    assert store.get("s", "brief") is None and store.get("s", "long") == "v"
    assert store.change("s", "brief", lambda text: f"{text}") == "None"


def test_a_change_keeps_the_expiry_or_sets_it_anew(store, clock):
    store.put("s", "k", "v", 10)
    clock.now_s += 5
    store.change("s", "k", lambda text: "w")
    clock.now_s += 5
    assert store.get("s", "k") is None
    store.put("s", "k", "v", 10)
    clock.now_s += 5
    store.put("s", "k", "w", 10)
    clock.now_s += 5
    assert store.get("s", "k") == "w"
    store.put("s", "k", "w")
    clock.now_s += 1e6
    assert store.get("s", "k") == "w"


def test_what_expired_is_deleted_and_nothing_else(store, clock):
    for number in range(5000):
        store.put("s", f"{number}", "v", 10 if number % 2 else 1000)
    clock.now_s += 10
    store.purge()
    rows = store.cursor.execute("SELECT count(*), min(expires) FROM item").fetchone()
    assert rows == (2500, 2000.0)
    assert store.shared[mi.USED] == sum(2 * len(f"{number}") + 1 + mi.ROW_BYTES for number in range(0, 5000, 2))


# Full.


def fill(server, size, *expire):
    """Store values until there is no room; how many there was room for."""
    for number in range(100_000):
        reply = server.ask(text("cache_store", "local", f"k{number}", "v" * size, *expire))
        if reply != OK:
            assert reply == FAILED
            return number
    raise AssertionError("it is never full")


def fits(server, key, size):
    """Whether a value can be stored."""
    reply = server.ask(text("cache_store", "local", key, "v" * size))
    assert reply in (OK, FAILED)
    return reply == OK


def fill_disk(path):
    """A file that takes all that is left of a file system."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


@pytest.mark.parametrize("size", [200, 1000, 5000, 60000])
def test_a_full_store_answers_errors_until_something_is_removed(start, tmp_path, size):
    server = start(SMALL + THREE, environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    count = fill(server, size)
    assert count * size > 250_000
    used = sum(path.stat().st_blocks * 512 for path in database(tmp_path).parent.iterdir())
    assert used < (1 << 20) + 2 * mi.JOURNAL_BYTES
    assert server.ask(b'{"jsonrpc":"2.0","method":"cache_store","params":["local","x","%s"],"id":1}' % (b"v" * size)) == \
        b'{"jsonrpc":"2.0","error":{"code":500,"message":"Cache store command failed"},"id":1}'
    assert server.ask(text("cache_fetch", "local", f"k{count - 1}")).startswith(b"200 OK\nkey")
    numbers = range(0, count - 1, max(1, count // 20))
    for number in numbers:
        assert server.ask(text("cache_remove", "local", f"k{number}")) == OK
        assert fits(server, f"n{number}", size)
        assert not fits(server, f"m{number}", size)
    assert server.ask(text("cache_remove_chunk", "k*")) == OK
    assert fits(server, "more", size)
    assert server.log.count("the store fails: ") == 1
    assert server.statistic("store_errors") == 2 + len(numbers)


def test_a_full_store_refuses_subscriptions_and_goes_on_sending_events(start):
    """But a full cache refuses none."""
    server = start(f'{SMALL}modparam("midatagram", "max_subscribers", 10000)\n')
    reader = server.client()
    reader.socket.bind("")
    assert server.ask(text("event_subscribe", "E_MI_RELOAD", f"unix:{reader.path}", "3600")) == OK
    fill(server, 60000)
    fill(server, 2000)
    fill(server, 1)
    place = "udp:127.0.0.1:9999"
    replies = [server.ask(text("event_subscribe", "E_MI_STOP", f"udp:127.0.0.1:{port}")) for port in range(1000, 1600)]
    assert replies[0] == OK and set(replies) == {OK, b"500 Server Internal Error\n\n"}
    assert server.ask(text("event_subscribe", "E_MI_RELOAD", place)) == b"500 Server Internal Error\n\n"
    assert server.ask(b'{"jsonrpc":"2.0","method":"event_subscribe","params":["E_MI_RELOAD","%s"],"id":1}' % place.encode()) == \
        b'{"jsonrpc":"2.0","error":{"code":500,"message":"Internal error"},"id":1}'
    assert server.ask(text("raise_event", "E_MI_RELOAD", "a::1")) == OK
    assert reader.receive() == b"E_MI_RELOAD\na::1\n\n"
    assert server.ask(text("cache_remove_chunk", "*")) == OK
    assert server.ask(text("event_subscribe", "E_MI_RELOAD", place)) == OK


def test_a_full_store_recovers_when_something_expires(start):
    server = start(SMALL)
    fill(server, 60000, "2")
    wait_for(lambda: fits(server, "new", 60000))
    assert server.log.count("the store fails: ") == 1


@pytest.mark.parametrize("size", [200, 1000, 30000])
def test_a_store_that_fills_its_file_system_recovers(start, tmpfs, size):
    server = start(THREE, environment={"RUNTIME_DIRECTORY": str(tmpfs)})
    count = fill(server, size)
    for number in range(0, count, max(1, count // 10)):
        assert server.ask(text("cache_remove", "local", f"k{number}")) == OK
        assert fits(server, f"n{number}", size)
    assert server.ask(text("cache_remove_chunk", "*")) == OK
    assert fill(server, size) == count


def test_a_store_recovers_on_a_file_system_that_others_fill(start, tmpfs):
    server = start(THREE, environment={"RUNTIME_DIRECTORY": str(tmpfs)})
    for number in range(80):
        assert fits(server, f"k{number}", 2000)
    fill_disk(tmpfs / "big")
    count = 0
    while fits(server, f"new{count}", 2000):
        count += 1
    assert count < 70
    for number in range(40):
        assert server.ask(text("cache_store", "local", f"k{number}", "w" * 2000)) == OK  # takes no more room
        assert server.ask(text("cache_remove", "local", f"k{number}")) == OK
    assert all(fits(server, f"new{count + number}", 2000) for number in range(20))
    assert server.ask(text("cache_remove_chunk", "*")) == OK
    assert fits(server, "last", 60000)
    (tmpfs / "big").unlink()
    assert fill(server, 2000) > 100
    server.stop()


def test_a_server_starts_on_a_full_file_system_and_stores_when_there_is_room(start, tmpfs):
    fill_disk(tmpfs / "big")
    server = start(environment={"RUNTIME_DIRECTORY": str(tmpfs)})
    assert not fits(server, "k", 10)
    assert server.ask(text("cache_fetch", "local", "k")) == b"200 OK\nValue not found\n\n"
    assert server.ask(text("cache_remove", "local", "k")) == OK
    (tmpfs / "big").unlink()
    assert fits(server, "k", 60000)


# Locked.


def test_a_view_reads_no_more_than_others_changed(store):
    """What its own process changed last it has without a look into the file, unless another process changed something too."""
    def apply(picture, key, value):
        picture[key] = value

    other, view, statements = copy.copy(store), mi.shared("views").View(store, "s", apply), []
    other.cursor = None  # with its own connection it is another process
    store.put("s", "a", "1")
    assert view.now() == {"a": "1"}
    store.cursor.connection.set_trace_callback(statements.append)
    for change, reads in ((lambda: store.put("s", "b", "2", 60), 0), (lambda: store.remove("s", "a"), 0),
                          (lambda: other.put("s", "c", "3"), 1), (lambda: store.put("t", "b", "3"), 0),
                          (lambda: (other.put("s", "d", "4"), store.put("s", "e", "5")), 1),
                          (lambda: (store.put("s", "f", "6"), store.put("s", "g", "7")), 1)):
        change()
        statements.clear()
        view.now()
        assert len(statements) == reads
        whole = mi.shared("views").View(other, "s", apply).now()
        assert {key: value for key, value in view.now().items() if value} == whole
    other.close()
    assert view.ends_s.keys() == {"b"}


def test_who_has_read_holds_no_lock(store):
    other = copy.copy(store)
    other.cursor = None
    store.put("s", "a", "1")
    for read in (lambda: store.get("s", "a"), lambda: store.items("s"), lambda: store.changes("s", 1), store.spaces):
        assert read()
        other.put("s", "b", "2")
    other.close()


def test_keys_of_a_view_expire_when_their_times_change(store):
    def apply(picture, key, value):
        picture.update({key: value}) if value is not None else picture.pop(key, None)

    view = mi.shared("views").View(store, "s", apply)
    for key, lifetime_s in (("a", 10), ("b", 20), ("c", 30)):
        store.put("s", key, "1", lifetime_s)
    assert "".join(view.now()) == "abc"
    for key, lifetime_s in (("a", 0), ("b", 40)):
        store.put("s", key, "2", lifetime_s)
    for moved_s, left in ((0, "abc"), (15, "abc"), (31, "ab"), (41, "a"), (1000, "a")):
        store.move_clock(moved_s)
        assert "".join(sorted(view.now())) == left


@pytest.fixture
def kept(store, tmp_path):
    """A store_file as two processes have it, of which one can read while the other writes; kept(act) -> both: the one that
    writes calls act() before each commit."""
    reader = copy.copy(store)
    reader.path = store.path = str(tmp_path / "kept" / "store")
    os.mkdir(tmp_path / "kept")

    def make(act):
        store.open().connection.set_trace_callback(lambda statement: act() if statement == "COMMIT" else None)
        reader.open()
        return store, reader

    yield make
    reader.close()


def test_a_view_forgets_what_another_process_deletes_while_it_reads(kept):
    pictures = []
    writer, reader = kept(lambda: pictures.append(dict(view.now())))
    view = mi.shared("views").View(reader, "s", dict.__setitem__)
    for key in "abc":
        writer.put("s", key, "1")
    writer.remove_fitting("s", "[ab]")
    assert pictures[3] == {"a": "1", "b": "1", "c": "1"} and view.now() == {"c": "1"}


def test_a_reply_made_while_another_process_commits_does_not_last(kept):
    made = []
    writer, reader = kept(lambda: made.append((reader.newest(), reader.get("s", "k"))))
    for value in "12":
        writer.put("s", "k", value)
    since, value = made[-1]
    old = reader.unchanged(("s",), since, None)
    assert value == "1" and old() == ()
    with pytest.raises(LookupError):
        old()
    now = reader.unchanged(("s",), reader.newest(), None)
    assert now() == now() == ()


@pytest.fixture
def holder(tmp_path):
    """A server's store that is locked by this process: holder(statement, ...) -> the connection that has the lock."""
    connections = []

    def hold(*statements):
        connections.append(sqlite3.connect(database(tmp_path), isolation_level=None))
        for statement in statements:
            connections[-1].execute(statement).fetchall()
        return connections[-1]

    yield hold
    for connection in connections:
        connection.close()


@pytest.mark.parametrize("lock", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_locked_store_costs_those_alone_who_write(start, tmp_path, holder, lock):
    server = start('modparam("midatagram", "pool_size", 20)\n', environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert server.ask(text("cache_store", "local", "k", "v")) == OK
    assert b"value:: v" in server.ask(text("cache_fetch", "local", "k"))  # who fetches it again needs no lock
    connection = holder(f"BEGIN {lock}")
    writers = [server.client() for _ in range(10)]
    started_s = time.monotonic()
    for client in writers:
        client.send(text("cache_store", "local", "k", "w"))
    slowest_s, writing_s = 0.0, None
    with Client(server.place, tmp_path) as client:
        while writing_s is None or time.monotonic() - started_s < 1.5:
            asked_s = time.monotonic()
            assert client.ask(b":uptime:\n").startswith(b"200 OK")
            assert b"value:: v" in client.ask(text("cache_fetch", "local", "k"))
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
            if writing_s is None and writers[0].receive(0.001) == FAILED:
                writing_s = time.monotonic() - started_s
    assert {writer.receive() for writer in writers[1:]} == {FAILED}
    assert slowest_s < 0.5 < writing_s < 3 * mi.LOCK_S
    assert server.ask(text("cache_remove", "local", "k")) == b"500 Cache remove command failed\n\n"
    connection.execute("ROLLBACK")
    assert server.ask(text("cache_store", "local", "k", "x")) == OK
    assert server.log.count("the store fails: ") == 1
    assert server.statistic("store_errors") == 11


def test_who_waits_for_a_lock_gets_it(start, tmp_path, holder):
    server = start(environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert server.ask(text("cache_store", "local", "k", "v")) == OK
    connection = holder("BEGIN IMMEDIATE")
    client = server.client()
    client.send(text("cache_store", "local", "k", "w"))
    assert server.ask(b":uptime:\n").startswith(b"200 OK")  # by then the other one waits
    connection.execute("ROLLBACK")
    assert client.receive() == OK
    assert server.statistic("store_errors") == 0


def test_the_attendant_never_opens_the_store(start, tmp_path):
    server = start(THREE, environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert server.ask(text("event_subscribe", "E_MI_CHILD_DIED", "udp:127.0.0.1:9")) == OK
    os.kill(server.children()[0], signal.SIGKILL)
    server.wait_log("died: signal SIGKILL")
    server.reload()

    def opened(pid):
        links = [os.readlink(entry.path) for entry in os.scandir(f"/proc/{pid}/fd") if os.path.lexists(entry.path)]
        return [link for link in links if "store.sqlite" in link]

    assert not opened(server.pid)
    for _ in range(20):
        server.ask(text("cache_store", "local", "k", "v"))
    assert any(opened(pid) for pid in server.children())


# Patterns.

LETTERS = "ab[]!-*?^\\.\n é✓\udc80\udcff\U0001f600"
HOSTILE = ["*a*a*a*a*b", "*" + "a" * 250 + "b", "*" + "?" * 250 + "b", "[a" * 128, "*" * 255 + "b", "*[!b]" * 50 + "b",
           "?a" * 120 + "*b", "*a?" * 80 + "b", "[" + "a-z" * 84 + "]*b", "".join(map(chr, range(0x100, 0x17f))) + "*"]


def fitting_ones(store, pattern, names):
    """Those of some names that a pattern removes."""
    for name in names:
        store.put("s", name, "v")
    store.remove_fitting("s", pattern)
    return [name for name in names if store.get("s", name) is None]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(LETTERS, max_size=12), st.lists(st.text(LETTERS, max_size=8), min_size=1, max_size=8))
def test_patterns_mean_what_fnmatch_says(store, pattern, names):
    names = [*names, pattern]
    assert fitting_ones(store, pattern, names) == [name for name in names if fnmatch.fnmatchcase(name, pattern)]


@pytest.mark.parametrize("pattern, name, fitting", [
    ("[!a]", "b", True), ("[!a]", "a", False), ("[^a]", "^", True), ("[^a]", "b", False), ("[]a]", "]", True), ("[]", "[]", True),
    ("[!]", "[!]", True), ("[!]]", "a", True), ("[!]]", "]", False), ("[z-a]", "m", False), ("[!z-a]", "m", True),
    ("[a-]", "-", True), ("[--a]", "0", True), ("[a-c-e]", "d", False), ("[a", "[a", True), ("\\*", "\\x", True), ("", "", True),
    ("", "a", False), ("*", "", True), ("?", "é", True), ("?", "\udcc3", True), ("??", "é", False), ("a*", "a\nb", True),
])
def test_patterns_by_name(store, pattern, name, fitting):
    assert bool(fitting_ones(store, pattern, [name])) == fitting


@pytest.mark.parametrize("pattern", HOSTILE, ids=range(len(HOSTILE)))
def test_twice_the_name_takes_twice_the_time(store, pattern):
    times_s = []
    for size in (20_000, 40_000):
        store.put(f"{size}", "a" * size, "v")
        best_s = 1e9
        for _ in range(5):
            started_s = time.thread_time()
            store.remove_fitting(f"{size}", pattern)
            best_s = min(best_s, time.thread_time() - started_s)
        times_s.append(best_s)
    assert times_s[1] < 3 * times_s[0] + 0.0005 and times_s[1] < 0.05


@pytest.mark.parametrize("start, count, pattern, left", [
    ("key", 100_000, "key*", 0), ("key", 100_000, "*a*a*b", 100_000), ("key", 50_000, "*7", 45_000),
    ("a" * 60_000, 100, HOSTILE[1], 100),
], ids=["all", "none", "some", "long"])
def test_keys_are_removed_in_slices(store, monkeypatch, start, count, pattern, left):
    keys = [f"{start}{number}" for number in range(count)]
    store.put("s", "first", "v")
    store.cursor.execute("BEGIN")
    store.cursor.executemany(mi.Store.PUT, [(b"s", key.encode(), b"v", None, 2) for key in keys])
    store.cursor.execute("COMMIT")
    slices_s, clock = [], time.thread_time
    monkeypatch.setattr(gevent, "sleep", lambda pause_s: slices_s.append(clock()))
    slices_s.append(clock())
    store.remove_fitting("s", pattern)
    lengths_s = sorted(end - begin for begin, end in zip(slices_s, slices_s[1:]))
    assert len(values(store, "s")) == left + 1
    assert len(lengths_s) >= 10 and lengths_s[-1] < 0.05, lengths_s[-5:]


def test_others_are_served_while_keys_are_removed(start, tmp_path):
    (tmp_path / "many.py").write_text(textwrap.dedent("""
        import gevent
        import midatagram as mi

        @mi.command
        def many(ctx):
            "Store many values."
            for number in range(100_000):
                ctx.store.put("cache:default", f"{number}", "v")
                if number % 100 == 0:
                    gevent.sleep(0)
            return mi.Reply()
    """))
    server = start('loadmodule "many.so"\nmodparam("midatagram", "handler_timeout", 60000)\n', "-p", str(tmp_path))
    assert server.ask(b":many:\n", 60) == OK
    remover, slowest_s, done = server.client(), 0.0, None
    remover.send(text("cache_remove_chunk", "default", "*[0-9]*[0-9]?"))
    with Client(server.place, tmp_path) as client:
        while done is None:
            asked_s = time.monotonic()
            assert client.ask(b":uptime:\n").startswith(b"200 OK")
            slowest_s = max(slowest_s, time.monotonic() - asked_s)
            done = remover.receive(0.001)
    assert done == OK and slowest_s < 0.3
    assert server.ask(text("cache_fetch", "local", "99999")) == b"200 OK\nValue not found\n\n"
    assert server.ask(text("cache_fetch", "local", "9")) == b"200 OK\nkey:: 9\nvalue:: v\n\n"


def test_patterns_have_256_bytes_at_most(start):
    server = start()
    rpc = b'{"jsonrpc":"2.0","method":"cache_remove_chunk","params":["%s"],"id":1}'
    server.ask(text("cache_store", "local", "k", "v"))
    for long in (b"*" * 257, "é".encode() * 128 + b"*"):
        assert server.ask(b":cache_remove_chunk:\n%s\n" % long) == b"400 Pattern longer than 256 bytes\n\n"
        assert server.ask(rpc % long) == (b'{"jsonrpc":"2.0","error":{"code":-32602,"message":"Invalid params",'
                                          b'"data":"Pattern longer than 256 bytes"},"id":1}')
    assert b"value:: v" in server.ask(text("cache_fetch", "local", "k"))
    assert server.ask(b":cache_remove_chunk:\n%s\n" % (b"*" * 256)) == OK
    assert server.ask(rpc % (b"*" * 256)) == b'{"jsonrpc":"2.0","result":"OK","id":1}'
    assert b"Value not found" in server.ask(text("cache_fetch", "local", "k"))


def test_nothing_of_the_store_is_left(start, tmp_path):
    server = start(THREE, environment={"RUNTIME_DIRECTORY": str(tmp_path)})
    assert server.ask(text("cache_store", "local", "k", "v")) == OK
    folder = database(tmp_path).parent
    server.stop()
    assert not folder.exists()
    assert shutil.disk_usage(tmp_path)
