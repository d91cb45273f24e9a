"""store_file: what the store holds survives restarts, also those after kill -9; bad files are not harmed."""

import os
import pathlib
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import SCRIPT, free_port, needs_root, readable_python, run, wait_for
from test_modules import FOLDER, configuration, lab

EXPECTED = [  # what a request shows after a restart
    (b":ul_show_contact:\nlocation\nalice\n", b"Contact:: sip:alice@10.0.0.9 Q=0.5"),
    (b":dlg_list:\ncall-1\n", b"state:: 4"), (b":ds_list:\n", b"sip:127.0.0.1:5171 state=Inactive"),
    (b":cache_fetch:\nlocal\nk\n", b"value:: two words"), (b":subscribers_list:\n", b"E_UL_AOR_INSERT"),
    (b":profile_get_size:\ncaller\nalice\n", b"count=1"), (b":address_dump:\n", b"ip=192.0.2.7")]


def kept(path, *more):
    """The settings of a recording server with a store_file and two children."""
    return "\n".join([configuration("24.cfg", SOCK="{socket}").replace('"children_count",1)', '"children_count",2)'),
                      f'modparam("midatagram", "store_file", "{path}")', *more, ""])


def plain(path, *more):
    """A configuration with a store_file alone."""
    return "\n".join([f'modparam("midatagram", "store_file", "{path}")', *more, ""])


def store(server, key="k", value="v", *expire):
    """Store a cached value."""
    assert server.ask("\n".join([":cache_store:", "local", key, value, *map(str, expire), ""]).encode()) == b"200 OK\n\n"


def fetched(server, key="k"):
    """A cached value, None if there is none."""
    match = re.search(rb"value:: (.*)", server.ask(f":cache_fetch:\nlocal\n{key}\n".encode()))
    return match and match[1].decode()


def killed(server):
    """A server whose processes are killed at once: none has a chance to write anything."""
    pids = [server.pid, *server.children()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    server.process.wait(5)
    wait_for(lambda: not any(pathlib.Path(f"/proc/{pid}/exe").exists() for pid in pids[1:]), 5, "the children to end")


@pytest.mark.parametrize("end", [killed, lambda server: server.stop()], ids=["kill", "stop"])
def test_what_commands_changed_survives(start, tmp_path, end):
    path = tmp_path / "store"
    server = start(kept(path))
    store(server, "k", '"two words"')
    for words in (("ul_add", "location", "alice", "sip:alice@10.0.0.9", "0", "0.5", "0", "0", "0", "1"),
                  ("lab_call", "call-1", "sip:a@b", "sip:b@c", "profiles::caller=alice"),
                  ("ds_set_state", "i", "1", "sip:127.0.0.1:5171"),
                  ("event_subscribe", "E_UL_AOR_INSERT", f"unix:{tmp_path}/listener", "3600"), ("ul_rm", "location", "nobody")):
        assert server.ask(lab(*words)) == b"200 OK\n\n", words
    end(server)
    again = start(kept(path))
    for request, shown in EXPECTED:
        assert shown in again.ask(request), request
    assert again.ask(b":ul_rm:\nlocation\nalice\n") == b"200 OK\n\n"
    assert b"AOR" not in again.ask(b":ul_dump:\n")
    store(again, "k", "new")
    end(again)
    assert fetched(start(plain(path))) == "new"


def test_each_reply_that_was_sent_is_kept(start, tmp_path):
    """Killed in the midst of changes."""
    path, last = tmp_path / "store", -1
    for _ in range(2):
        server = start(plain(path))
        assert fetched(server, "n") == (None if last < 0 else f"{last}")
        client = server.client()
        until_s = time.monotonic() + 0.2
        while time.monotonic() < until_s:
            last += 1
            assert client.ask(f":cache_store:\nlocal\nn\n{last}\n".encode()) == b"200 OK\n\n"
        killed(server)


def test_a_server_that_is_killed_may_start_again_at_once(start, tmp_path):
    """Its children may not have ended by then."""
    server = start(plain(tmp_path / "store"))
    store(server)
    server.process.kill()
    assert fetched(start(plain(tmp_path / "store"))) == "v"


def test_expiries_go_on(start, tmp_path):
    """Whatever the steady clock of the next run is, which another boot begins anew."""
    path = tmp_path / "store"
    server = start(plain(path))
    listener, end_s = server.client(), time.monotonic() + 1
    store(server, "short", "v", 1)
    store(server, "long", "v", 1000)
    assert server.ask(f":event_subscribe:\nE_MI_RELOAD\nunix:{listener.path}\n1000\n".encode()) == b"200 OK\n\n"
    server.stop()
    connection = sqlite3.connect(path)
    rows = dict(connection.execute("SELECT key, expires FROM item WHERE expires IS NOT NULL"))
    earlier_s = 10**7  # that boot was so much longer ago: its clock shows more
    connection.execute("UPDATE item SET expires = expires + ?", (earlier_s,))
    since = connection.execute("SELECT value FROM item WHERE space = ?", (b"events",)).fetchone()[0].decode()
    since = re.sub(r'(?<="since": )[\d.]+', lambda match: f"{float(match[0]) + earlier_s}", since)
    connection.execute("UPDATE item SET value = ? WHERE space = ?", (since.encode(), b"events"))
    connection.execute("UPDATE clock SET behind_s = behind_s - ?", (earlier_s,))
    connection.commit()
    connection.close()
    again = start(plain(path))
    wait_for(lambda: fetched(again, "short") is None, 5, "the value to expire")
    assert time.monotonic() >= end_s and fetched(again, "long") == "v" and len(rows) == 2
    shown = again.ask(b'{"jsonrpc":"2.0","method":"subscribers_list","id":1}')
    assert 900 < int(re.search(rb'"ttl":(\d+)', shown)[1]) <= 1000
    again.stop()
    connection = sqlite3.connect(path)
    (expires_s,), = connection.execute("SELECT expires FROM item WHERE key = ?", (b"long",))
    connection.close()
    assert expires_s == pytest.approx(rows[b"long"], abs=0.5)


def test_the_clock_of_a_lab_is_kept(start, tmp_path):
    """Values expire as long after the restart as they would have in the lab."""
    path = tmp_path / "store"
    server = start(plain(path, 'loadmodule "lab.so"'))
    assert server.ask(b":lab_clock:\n500\n") == b"200 OK\nmoved:: 500\n\n"
    store(server, "k", "v", 300)
    killed(server)
    again = start(plain(path, 'loadmodule "lab.so"'))
    assert again.ask(b":lab_clock:\n280\n") and fetched(again) == "v"
    assert again.ask(b":lab_clock:\n30\n") and fetched(again) is None


def test_the_journal_of_a_lab_is_not_kept(start, tmp_path):
    path = tmp_path / "store"
    server = start(plain(path, 'loadmodule "lab.so"'))
    server.ask(b":pwd:\n")
    assert b"pwd" in server.ask(b":lab_journal:\n")
    server.stop()
    assert {file.name for file in tmp_path.glob("store*")} <= {"store", "store-wal", "store-shm"}
    assert b"pwd" not in start(plain(path, 'loadmodule "lab.so"')).ask(b":lab_journal:\n")


def test_the_file_is_private_and_so_is_what_belongs_to_it(start, tmp_path):
    path = tmp_path / "store"
    path.touch(0o666)
    server = start(plain(path), wrapper=("sh", "-c", 'umask 0; exec "$@"', "sh"))
    store(server)
    files = [file for file in tmp_path.iterdir() if file.name.startswith("store")]
    assert {file.name for file in files} == {"store", "store-wal", "store-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_the_folder_of_the_run_has_no_store_and_is_removed(start, tmp_path):
    environment = {"RUNTIME_DIRECTORY": str(tmp_path / "run")}
    (tmp_path / "run").mkdir()
    server = start(plain(tmp_path / "store", 'loadmodule "domain.so"'), environment=environment)
    store(server)
    folder, = (tmp_path / "run").iterdir()
    assert {file.name for file in folder.iterdir()} == {"status", "load"}
    server.stop()
    assert not [*(tmp_path / "run").iterdir()] and {file.name for file in tmp_path.glob("store*")} == {"store"}


def test_a_reload_keeps_it(start, tmp_path):
    server = start(plain(tmp_path / "store"))
    store(server)
    server.write(plain(tmp_path / "store", 'modparam("mi_datagram", "children_count", 3)'))
    server.reload()
    assert fetched(server) == "v"
    store(server, "k", "w")
    killed(server)
    assert fetched(start(plain(tmp_path / "store"))) == "w"


def refused(tmp_path, path, *arguments, wrapper=()):
    """Exit status and only line of a server that does not start with a store_file."""
    (tmp_path / "refused.conf").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/r.sock")\n{plain(path)}')
    done = subprocess.run([*wrapper, sys.executable, SCRIPT, "-f", tmp_path / "refused.conf", *arguments], capture_output=True,
                          text=True, timeout=30)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1].partition("store_file ")[2]


def checked(tmp_path):
    """Exit status of -c for the configuration of refused(), and the end of its first line."""
    done = run("-c", "-f", tmp_path / "refused.conf")
    return done.returncode, done.stdout.splitlines()[0].partition("store_file ")[2]


def test_two_servers_cannot_have_one_file(start, tmp_path):
    server = start(plain(tmp_path / "store"))
    store(server)
    assert refused(tmp_path, tmp_path / "store") == (69, f"{tmp_path}/store: another server has it")
    assert checked(tmp_path) == (0, "")
    assert fetched(server) == "v"


def later(path):
    """A file of a later release."""
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA application_id = {int.from_bytes(b'midg', 'big')}")
    connection.execute("PRAGMA user_version = 2")
    connection.close()


def of_others(path):
    """A database of another program."""
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE item (a)")
    connection.close()


@pytest.mark.parametrize("make, why", [
    (lambda path: path.write_text("my letters\n"), "was not written by midatagram; name another file, or remove this one"),
    (lambda path: path.write_bytes(b"\0" * 5000), "was not written by midatagram; name another file, or remove this one"),
    (of_others, "was not written by midatagram; name another file, or remove this one"),
    (later, "was written by a later release of midatagram")])
def test_what_is_not_ours_is_left_as_it_is(tmp_path, make, why):
    path = tmp_path / "file"
    make(path)
    before = path.read_bytes()
    assert refused(tmp_path, path) == (78, f"{path}: {why}") == checked(tmp_path)
    assert path.read_bytes() == before and not [*tmp_path.glob("file?*")]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: os.mkfifo(path), lambda path: path.symlink_to("x")])
def test_what_is_no_file_is_refused(tmp_path, make):
    make(tmp_path / "file")
    status, why = refused(tmp_path, tmp_path / "file")
    assert status in (73, 77) and why.startswith(f"{tmp_path}/file: ")
    assert checked(tmp_path) == (78, f"{tmp_path}/file is a folder; name a file in it" if (tmp_path / "file").is_dir() else why)
    status, why = refused(tmp_path, tmp_path / "no" / "file")
    missing = f"No such file or directory (uid {os.geteuid()}); mend: mkdir -p {tmp_path}/no"
    assert (status, why) == (73, f"{tmp_path}/no/file: {missing}")


def test_root_uses_no_file_that_others_can_exchange(tmp_path):
    needs_root()
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    assert refused(tmp_path, folder / "file")[0] == 77
    folder.chmod(0o755)
    (folder / "file").touch()
    os.chown(folder / "file", 4321, 4321)
    assert refused(tmp_path, folder / "file") == (77, f"{folder}/file: is not a file of uid 0, who runs this")


@pytest.fixture
def nobodys():
    """A folder of user nobody, who can get to it."""
    needs_root()
    folder = pathlib.Path(tempfile.mkdtemp())
    os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


def test_the_user_of_u_has_the_file(start, nobodys):
    for value in ("v", "w"):
        server = start(plain(nobodys / "store"), "-u", "nobody", wrapper=readable_python(), place=f"udp:127.0.0.1:{free_port()}")
        store(server, "k", value) if value == "v" else None
        assert fetched(server) == "v" and (nobodys / "store").stat().st_uid == 65534
        server.stop()


def test_the_user_of_u_must_be_able_to_write_its_folder(tmp_path, nobodys):
    """Else one line says so."""
    (nobodys / "roots").mkdir()
    status, why = refused(tmp_path, nobodys / "roots" / "file", "-u", "nobody", wrapper=readable_python())
    assert (status, why) == (77, f"{nobodys}/roots/file: Permission denied (uid 65534)")


def spoil(path, start=5000, end=None):
    """Overwrite a part of a file, the header being left."""
    data = bytearray(path.read_bytes())
    data[start:end or len(data)] = b"\xff" * ((end or len(data)) - start)
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [spoil, lambda path: os.truncate(path, 6000), lambda path: spoil(path, 100, 200)])
def test_a_damaged_file_is_set_aside(start, tmp_path, harm):
    """With a line in the log; the next run begins empty."""
    path = tmp_path / "store"
    server = start(plain(path))
    for number in range(300):
        store(server, f"k{number}", "x" * 100)
    server.stop()
    harm(path)
    before = path.read_bytes()
    again = start(plain(path))
    again.wait_log(f"store_file: {path} is damaged (")
    aside, = tmp_path.glob("store.damaged-*")
    assert aside.read_bytes() == before
    assert fetched(again, "k1") is None
    store(again, "k1", "new")


def test_what_was_cut_off_at_its_end_loses_that_alone(start, tmp_path):
    """A log of changes that a crash of the machine left half written."""
    path = tmp_path / "store"
    server = start(plain(path))
    for number in range(20):
        store(server, f"k{number}", "x" * 5000)
    killed(server)
    os.truncate(f"{path}-wal", os.path.getsize(f"{path}-wal") - 100)
    again = start(plain(path))
    assert fetched(again, "k10") and fetched(again, "k19") is None
    assert "damaged" not in again.log


def test_a_full_file_recovers(start, tmp_path):
    """Its size is known to the next run."""
    path, small = tmp_path / "store", f'modparam("midatagram", "store_size", {1 << 20})'
    server = start(plain(path, small))
    stored = 0
    while server.ask(f":cache_store:\nlocal\nk{stored}\n{'x' * 9000}\n".encode()) == b"200 OK\n\n":
        stored += 1
    server.stop()
    again = start(plain(path, small))
    assert b"500" in again.ask(f":cache_store:\nlocal\nmore\n{'x' * 9000}\n".encode()) and 20 < stored < 60
    assert again.ask(b":cache_remove:\nlocal\nk0\n") == b"200 OK\n\n"
    store(again, "more", "x" * 9000)
    assert path.stat().st_size < 2 << 20


def test_tables_are_read_again_at_a_restart(start, tmp_path):
    """With the states that destinations had."""
    path, url = tmp_path / "store", f'modparam("midatagram", "db_url", "text://{FOLDER}/db24")'
    server = start(kept(path, url))
    assert server.ask(b":ds_set_state:\ni\n1\nsip:127.0.0.1:5171\n") == b"200 OK\n\n"
    server.stop()
    for table in (FOLDER / "db24").iterdir():
        (tmp_path / table.name).write_text(table.read_text().replace("192.0.2.7", "192.0.2.8"))
    again = start(kept(path, f'modparam("midatagram", "db_url", "text://{tmp_path}")'))
    assert b"ip=192.0.2.8" in again.ask(b":address_dump:\n")
    assert b"sip:127.0.0.1:5171 state=Inactive" in again.ask(b":ds_list:\n")


def test_without_the_parameter_nothing_is_kept(start):
    """And the store is where it was."""
    server = start()
    store(server)
    server.stop()
    assert fetched(start()) is None


def test_a_check_makes_no_file(tmp_path):
    (tmp_path / "c.conf").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/s")\n{plain(tmp_path / "store")}')
    assert run("-c", "-f", tmp_path / "c.conf").returncode == 0 and not (tmp_path / "store").exists()
    (tmp_path / "store").touch(0o600)
    (tmp_path / "c.conf").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/s")\n{plain(tmp_path / "store")}')
    assert run("-c", "-f", tmp_path / "c.conf").stdout.endswith(": OK\n") and (tmp_path / "store").read_bytes() == b""


@pytest.mark.parametrize("name", ["store_file", "log_file"])
def test_another_file_at_a_reload_is_for_the_next_start(start, tmp_path, name):
    """One line says so; the file of before is in use until then."""
    server = start(f'modparam("midatagram", "store_file", "{tmp_path}/old")\n')
    store(server)
    server.write(f'modparam("midatagram", "store_file", "{tmp_path}/old")\nmodparam("midatagram", "{name}", "{tmp_path}/new")\n')
    for _ in range(2):
        server.reload()
    assert server.log.count(f"{name} is another one now, which takes effect at the next start") == 1
    assert fetched(server) == "v" and not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["store_file", "log_file"])
def test_a_reload_to_the_file_that_is_open_says_nothing(start, tmp_path, name):
    """After one to another file, which is said each time."""
    def log():
        return (tmp_path / "open").read_text() if name == "log_file" else server.log

    lines = {path: f'modparam("midatagram", "{name}", "{tmp_path}/{path}")\n' for path in ("open", "other")}
    (tmp_path / "open").touch(0o600)
    server = start(lines["open"], ready=name == "store_file")
    wait_for(lambda: "ready:" in log())
    for number, (path, times) in enumerate((("other", 1), ("open", 1), ("other", 2), ("open", 2)), 2):
        server.write(lines[path])
        server.signal(signal.SIGHUP)
        wait_for(lambda number=number: log().count("ready:") == number)
        assert log().count(f"{name} is another one now, which takes effect at the next start") == times
