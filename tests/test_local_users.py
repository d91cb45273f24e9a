"""Local users: what root does in folders that strangers can write must not be turned on root's own files.

The strangers here are real processes of the user nobody; those that race do so for a bounded time.
"""

import contextlib
import ctypes  # noqa: F401 - imported now: a test that has become another user may not read Python's files
import os
import pathlib
import socket
import stat
import subprocess
import sys
import tempfile

import pytest
from conftest import needs_root, readable_python, wait_for

import midatagram as mi

NOBODY = 65534
RACE_S = 1.0  # how long a stranger tries


@pytest.fixture
def folder():
    """A folder that every user can write, with a short name."""
    needs_root()
    with tempfile.TemporaryDirectory(prefix="mi-test-") as made:
        os.chmod(made, 0o777)
        yield pathlib.Path(made)


@pytest.fixture
def precious(tmp_path):
    """A file of root's, in a folder of root's: what strangers would like to have opened to them."""
    path = tmp_path / "precious"
    path.write_text("root's")
    path.chmod(0o600)
    return path


def is_untouched(path):
    """Whether a file of root's is as the fixture made it."""
    status = path.lstat()
    return (status.st_mode, status.st_uid, path.read_text()) == (stat.S_IFREG | 0o600, 0, "root's")


@contextlib.contextmanager
def stranger(code, *arguments, seconds=RACE_S, uid=NOBODY):
    """Run Python code again and again as another user while the block runs, for some seconds at most."""
    text = ("import os, socket, sys, time\n_, *a = sys.argv\nend = time.monotonic() + float(a.pop())\nprint(flush=True)\n"
            "while time.monotonic() < end:\n try:\n" + "".join(f"  {line}\n" for line in code.splitlines())
            + " except OSError: pass\n")
    process = subprocess.Popen([*readable_python(), sys.executable, "-c", text, *map(str, arguments), str(seconds)], cwd="/",
                               stdout=subprocess.PIPE, user=uid, group=uid, extra_groups=[])
    with process:
        process.stdout.readline()  # it has begun
        try:
            yield process
        finally:
            process.kill()


def place_at(path, mode=0o660, uid=-1, gid=-1):
    return mi.Place(mi.Address(str(path)), socket.AF_UNIX, str(path), mode, uid, gid)


# Sockets


RACES = {
    "a link": "os.unlink(a[0])\nos.symlink(a[1], a[0])",
    "a link, at once": "if os.access(a[0], 0):\n os.path.islink(a[0] + 'l') or os.symlink(a[1], a[0] + 'l')\n"
                       " os.rename(a[0] + 'l', a[0])",
    "a link, and back": "os.rename(a[0], a[0] + 'a')\nos.symlink(a[1], a[0])\nos.rename(a[0] + 'a', a[0])",
}


@pytest.mark.parametrize("uid", [-1, NOBODY])
@pytest.mark.parametrize("race", RACES)
def test_a_socket_that_is_exchanged_while_root_opens_it(folder, precious, race, uid):
    place, tries = folder / "mi.sock", 0
    with stranger(RACES[race], place, precious) as process:
        while process.poll() is None:
            tries += 1
            with contextlib.suppress(mi.StartError):
                endpoint = mi.open_endpoint(place_at(place, 0o666, uid), {})
                endpoint.move(place_at(place, 0o606, uid))
                endpoint.close(remove=True)
            place.unlink(missing_ok=True)
            assert is_untouched(precious)
    assert tries > 100


def test_a_server_of_root_s_whose_socket_is_exchanged_again_and_again(start, folder, precious):
    place = folder / "mi.sock"
    server = start(f'modparam("midatagram", "listen", "{place};mode=0600")')
    with stranger(RACES["a link, and back"] + "\ntime.sleep(0.001)", place, precious):
        for number in range(1, 6):
            server.write(f'modparam("midatagram", "listen", "{place};mode=06{number % 2}6;user=nobody")')
            server.signal(1)
            wait_for(lambda: server.log.count("reloaded") + server.log.count("reload refused") >= number)  # noqa: B023
    assert is_untouched(precious)
    assert server.ask(b":uptime:\n")


@pytest.mark.parametrize("uid", [0, NOBODY])
def test_a_mode_goes_to_the_socket_that_is_ours_wherever_it_is(folder, precious, uid):
    """Root is given the file by the kernel; others look whether it is the one they made."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.setgid(uid)
            os.setuid(uid)
            place = folder / "mi.sock"
            endpoint = mi.open_endpoint(place_at(place), {})
            endpoint.move(place_at(place, 0o600))
            assert place.stat().st_mode & 0o777 == 0o600
            place.rename(folder / "aside")
            place.symlink_to(precious)
            with contextlib.nullcontext() if uid == 0 else pytest.raises(FileExistsError):
                endpoint.move(place_at(place, 0o606))
            assert (folder / "aside").stat().st_mode & 0o777 == (0o606 if uid == 0 else 0o600)
            place.unlink()
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
                other.bind(str(place))
                os.chmod(place, 0o600)
                with contextlib.suppress(FileExistsError):
                    endpoint.move(place_at(place, 0o666))
                assert place.stat().st_mode & 0o777 == 0o600
                endpoint.close(remove=True)
                assert place.exists()
            status = 0
        finally:
            sys.excepthook(*sys.exc_info()) if status else None
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert is_untouched(precious)


WATCH = """
import os, sys, time
seen, end, done = set(), time.monotonic() + 10, False
print(flush=True)
while time.monotonic() < end and not done:
    done = os.path.exists(sys.argv[1] + ".end")
    for _ in range(100):
        try:
            status = os.lstat(sys.argv[1])
            seen.add((oct(status.st_mode & 0o7777), status.st_uid, status.st_gid))
        except FileNotFoundError:
            pass
print(*sorted(seen), sep="\\n")
"""


@pytest.mark.parametrize("uid, gid", [(-1, -1), (NOBODY, NOBODY), (NOBODY, -1), (-1, NOBODY)])
@pytest.mark.parametrize("folder_mode", [0o755, 0o777, 0o2777])
def test_nobody_meets_a_socket_with_another_mode_or_owner(tmp_path, uid, gid, folder_mode):
    needs_root()
    tmp_path.chmod(folder_mode)
    os.chown(tmp_path, 1, 1)
    place = tmp_path / "mi.sock"
    with subprocess.Popen([sys.executable, "-c", WATCH, place], stdout=subprocess.PIPE, text=True) as watcher:
        watcher.stdout.readline()
        for _ in range(300):
            mi.open_endpoint(place_at(place, 0o646, uid, gid), {}).close(remove=True)
        endpoint = mi.open_endpoint(place_at(place, 0o646, uid, gid), {})
        pathlib.Path(f"{place}.end").touch()
        seen = set(watcher.stdout.read().splitlines())
        endpoint.close(remove=True)
    usual = 1 if folder_mode & stat.S_ISGID else 0  # such a folder gives what is made in it its own group
    wanted = str(("0o646", max(uid, 0), gid if gid >= 0 else usual))
    closed = {line for line in seen if line.startswith("('0o0',")} if usual and gid >= 0 else set()
    assert wanted in seen and seen - closed == {wanted}


def test_a_folder_that_was_exchanged_keeps_its_files(folder):
    """Who ends removes its own socket and pid file, not what has their names elsewhere by now."""
    place = folder / "run" / "mi.sock"
    place.parent.mkdir()
    endpoint = mi.open_endpoint(place_at(place), {})
    (folder / "other").mkdir()
    (folder / "other" / "mi.sock").write_text("theirs")
    place.parent.rename(folder / "aside")
    place.parent.symlink_to(folder / "other")
    endpoint.close(remove=True)
    assert (folder / "other" / "mi.sock").read_text() == "theirs"


def test_a_dead_socket_that_comes_alive_is_left_alone(folder, monkeypatch):
    """Another one may be bound between the look at the path and the removal."""
    place = folder / "mi.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as alive:
        dead.bind(str(place))
        dead.close()

        def bind_meanwhile(path, was_live=mi.is_live):
            live = was_live(path)
            os.unlink(path)
            alive.bind(path)
            return live

        monkeypatch.setattr(mi, "is_live", bind_meanwhile)
        with pytest.raises(mi.StartError, match="in use by another program"):
            mi.open_endpoint(place_at(place), {})
        monkeypatch.undo()
        assert mi.is_live(str(place))
