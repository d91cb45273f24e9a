"""Local users: what root does in folders that strangers can write must not be turned on root's own files.

The strangers here are real processes of the user nobody; those that race do so for a bounded time.
"""

import contextlib
import ctypes  # noqa: F401 - imported now: a test that has become another user may not read Python's files
import json
import os
import pathlib
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile

import pytest
from conftest import NO_SKIP, ROOT, SCRIPT, Server, life_of, needs, needs_root, readable_python, run, wait_for
from test_access import ask_as
from test_recordings import asking

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


CAP_NET_ADMIN = 12


def can(capability):
    """Whether we may do what root usually may; in a container it is less."""
    bits = pathlib.Path("/proc/self/status").read_text().partition("CapEff:")[2].split()[0]
    return bool(int(bits, 16) >> capability & 1)


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
            with contextlib.suppress(mi.StartError, OSError):
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
    exact = uid == 0 and can(CAP_NET_ADMIN)
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
            with contextlib.nullcontext() if exact else pytest.raises(FileExistsError):
                endpoint.move(place_at(place, 0o606))
            assert (folder / "aside").stat().st_mode & 0o777 == (0o606 if exact else 0o600)
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
    late = (uid, gid) != (-1, -1)  # then it is closed until it has its owner
    closed = {line for line in seen if line.startswith("('0o0',")} if late else set()
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


# Plug-ins, configuration, and what else is run


HARMFUL = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n"


def put(path, text="", mode=0o644, uid=0):
    """A new file, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, uid, uid)
    return path


def refused(*arguments):
    """What a start says that is refused because of its configuration, in one line."""
    done = run("-c", *arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (78, "", 1), done.stderr
    return done.stderr


def test_a_plug_in_that_is_exchanged_while_root_reads_it(folder, tmp_path):
    """Neither what it is nor where it lies can change between the look at it and its use."""
    mine, theirs = put(tmp_path / "hello.py", "MINE = 1"), put(folder / "theirs" / "hello.py", "THEIRS = 1", uid=NOBODY)
    (folder / "plug-ins").symlink_to(mine.parent)
    os.chown(folder / "theirs", NOBODY, NOBODY)
    tries = 0
    with stranger("for place in a[1:]:\n os.symlink(place, a[0] + 'l')\n os.rename(a[0] + 'l', a[0])",
                  folder / "plug-ins", theirs.parent, mine.parent) as process:
        while process.poll() is None:
            tries += 1
            with pytest.raises(mi.ConfigError, match=f"its folder {folder} can be written by others than root"):
                mi.read_source(f"{folder}/plug-ins/hello.py")
    assert tries > 100
    assert f"its folder {folder} can be written by others" in refused("-s", tmp_path / "mi.sock", "-p", folder / "plug-ins")


WRONG = {  # what is done to the folders around a plug-in, and what of it is refused
    "a folder further up, by all": lambda top: [top.chmod(0o757), "its folder {0} can"],
    "a folder further up, by its group": lambda top: [top.chmod(0o775), "its folder {0} can"],
    "a folder further up, by its owner": lambda top: [os.chown(top, NOBODY, 0), "its folder {0} can"],
    "the last folder, sticky": lambda top: [(top / "a/b").chmod(0o1777), "its folder {0}/a/b can"],
    "a link": lambda top: [(top / "a/b").rename(top / "b"), (top / "a/b").symlink_to(top / "b"),
                           os.lchown(top / "a/b", NOBODY, NOBODY), "its link {0}/a/b can"],
    "a link in a sticky folder": lambda top: [(top / "a/b").rename(top / "b"), (top / "a/b").symlink_to(top / "b"),
                                              (top / "a").chmod(0o1777), "its folder {0}/a can"],
    "where a link leads": lambda top: [(top / "a/b").rename(top / "b"), (top / "a/b").symlink_to("../b"),
                                       (top / "b").chmod(0o777), "its folder {0}/b can"],
    "the file that a link leads to": lambda top: [
        (top / "a/b/one.py").rename(top / "one.py"), (top / "a/b/one.py").symlink_to(top / "one.py"),
        (top / "one.py").chmod(0o666), "it can"],
}


@pytest.mark.parametrize("what", WRONG)
def test_a_plug_in_that_strangers_could_exchange_is_refused(tmp_path, what):
    needs_root()
    top = tmp_path / "top"
    put(top / "a/b/one.py", HARMFUL)
    os.chmod(top, 0o755)
    wanted = WRONG[what](top)[-1].format(top)
    said = refused("-s", tmp_path / "mi.sock", "-p", top / "a/b")
    assert f"{wanted} be written by others than root, who runs this" in said
    assert "chmod go-w" not in said or "sticky" not in what
    assert not list(top.rglob("ran"))


def test_a_plug_in_that_root_alone_could_have_put_there_is_loaded(tmp_path):
    """Through links of root's, by a relative path, and below a sticky folder."""
    needs_root()
    one = put(tmp_path / "sticky" / "of root" / "one.py", HARMFUL)
    (tmp_path / "sticky").chmod(0o1777)
    (tmp_path / "link").symlink_to("sticky/../sticky/of root")
    done = run("-c", "-s", tmp_path / "mi.sock", "-p", "link", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and one.with_name("ran").exists()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="Too many levels"):
        mi.walk(tmp_path / "loop", mi.follow_roots)


@pytest.mark.parametrize("wrong", ["file", "folder", "included", "owner"])
def test_a_configuration_that_everyone_can_write_is_refused_as_root(tmp_path, wrong):
    needs_root()
    place = tmp_path / "run" / "x.conf"
    put(place, f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\ninclude_file "more.conf"\n')
    more = put(place.with_name("more.conf"))
    place.parent.chmod(0o1777)
    assert run("-c", "-f", place).returncode == 0
    if wrong == "owner":  # who may have put it there before root came to look for it
        os.chown(place, NOBODY, 0)
    else:
        {"file": place, "folder": place.parent, "included": more}[wrong].chmod(0o777 if wrong == "folder" else 0o646)
    assert f"{more if wrong == 'included' else place}: can be written by everyone" in refused("-f", place)


@pytest.mark.parametrize("owner, mode, is_refused", [
    (0, 0o755, False), (NOBODY, 0o755, True), (0, 0o775, True), (0, 0o1777, True)])
def test_root_includes_nothing_that_others_put_into_the_current_folder(tmp_path, owner, mode, is_refused):
    """Where a relative name is looked up first, as OpenSIPS does; else beside the file that includes it."""
    needs_root()
    place = put(tmp_path / "etc" / "x.conf", f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                'include_file "more.conf"\n')
    put(place.with_name("more.conf"), "log_level=4\n")
    current = tmp_path / "current"
    current.mkdir(mode=mode)
    current.chmod(mode)
    os.chown(current, owner, 0)
    assert run("-c", "-f", place, cwd=current).returncode == 0
    put(current / "more.conf", "log_level=5\n")
    done = run("-c", "-f", place, cwd=current)
    assert done.returncode == (78 if is_refused else 0)
    assert is_refused == (f"more.conf: cannot be read by uid 0: its folder {current} can be written by others than root"
                          in done.stderr), done.stderr
    os.chown(place, NOBODY, NOBODY)  # whom root trusts then
    assert run("-c", "-f", place, cwd=current).returncode == (78 if mode != 0o755 else 0)


def test_a_configuration_that_is_no_file(tmp_path):
    assert run("-c", "-f", "/dev/null", "-s", tmp_path / "mi.sock").returncode == 0


def test_modules_beside_the_script_are_not_run(folder):
    """Who can write the folder of a script that root tries could have put them there."""
    copy = shutil.copy(SCRIPT, folder)
    for name in ("difflib", "gevent", "configobj", "ctypes", "setproctitle", "sqlite3"):
        put(folder / f"{name}.py", HARMFUL + "raise SystemExit(9)\n", uid=NOBODY)
    status, log = life_of(folder / "mi.sock", sys.executable, copy, "-s", folder / "mi.sock")
    assert status == 0 and "stopping" in log and not (folder / "ran").exists(), log


# The pid file


def status_of(place, *arguments, uid=0):
    """Run the script with a configuration of one socket, as a user, to its end."""
    with tempfile.TemporaryDirectory(prefix="mi-test-") as made:
        os.chmod(made, 0o755)
        shutil.copytree(ROOT / "plugins", f"{made}/plugins", ignore=shutil.ignore_patterns("__pycache__"))
        return subprocess.run([*readable_python(), sys.executable, shutil.copy(SCRIPT, made), "-s", place, *map(str, arguments)],
                              capture_output=True, text=True, user=uid, group=uid, extra_groups=[], timeout=20, cwd="/")


LAID = {  # what a stranger lays where root's pid file is to be
    "a link to a file": lambda path, precious: path.symlink_to(precious),
    "a link to nothing": lambda path, precious: path.symlink_to(precious.with_name("new")),
    "another name of a file": lambda path, precious: os.link(precious, path),
    "a FIFO": lambda path, precious: os.mkfifo(path),
    "a device": lambda path, precious: os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3)),
    "a socket": lambda path, precious: socket.socket(socket.AF_UNIX).bind(str(path)),
    "a file of its own": lambda path, precious: put(path, "1\n", 0o666, NOBODY),
    "a folder": lambda path, precious: path.mkdir(),
}


def snapshot(path):
    """What tells whether anybody touched a file."""
    status = path.lstat()
    return status.st_ino, status.st_mode, status.st_uid, status.st_size, status.st_mtime_ns


@pytest.mark.parametrize("kind", LAID)
def test_what_a_stranger_lays_for_the_pid_file(folder, precious, tmp_path, kind):
    path = folder / "pid"
    LAID[kind](path, precious)
    before = snapshot(path)
    done = run("-s", tmp_path / "mi.sock", "-P", path, "--if-not-running")
    assert (done.returncode, done.stderr.count("\n")) == (73, 1) and f"pid file {path}" in done.stderr
    done = run("-s", tmp_path / "mi.sock", "-P", path, "--status")
    assert done.returncode in (3, 73) and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr
    assert snapshot(path) == before and is_untouched(precious) and sorted(os.listdir(tmp_path)) == ["precious"]


def test_the_folder_of_a_pid_file_that_a_stranger_s_link_leads_to(folder, tmp_path):
    os.symlink(tmp_path, folder / "run")
    assert run("-s", tmp_path / "mi.sock", "-P", folder / "run" / "pid", "--status").returncode == 3  # root's own link
    os.lchown(folder / "run", NOBODY, NOBODY)
    done = run("-s", tmp_path / "mi.sock", "-P", folder / "run" / "pid")
    assert (done.returncode, done.stderr.count("\n")) == (73, 1)
    assert f"{folder}/run is a link of uid {NOBODY}, which root does not follow" in done.stderr
    assert os.listdir(tmp_path) == []


def test_a_pid_file_that_is_exchanged_while_root_opens_it(folder, precious):
    path, tries, pid_file = folder / "pid", 0, mi.shared("pid_file")
    with stranger("os.symlink(a[1], a[0])\nos.unlink(a[0])\nos.mkfifo(a[0])\nos.unlink(a[0])", path, precious) as process:
        while process.poll() is None:
            pidfile, tries = pid_file.PidFile(str(path)), tries + 1
            with contextlib.suppress(mi.StartError):
                pidfile.lock()
                pidfile.write("7")
                pidfile.remove()
    assert tries > 100 and is_untouched(precious)


def test_nobody_but_its_user_can_hold_the_lock_and_all_can_ask(start, folder):
    folder.chmod(0o755)
    path = put(folder / "pid", "7\n")  # of an older version, for all to read
    server = start("", "-P", str(path), place=f"{folder}/mi.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.read_text() == f"{server.pid}\n"
    for uid in (0, NOBODY):
        done = status_of(server.place, "-P", path, "--status", uid=uid)
        details = f"pid {server.pid}, " in done.stdout  # for its own user and root
        assert (done.returncode, done.stdout.splitlines()[0], done.stderr, details) == (0, "running", "", uid == 0)
        done = status_of(server.place, "-P", path, "--if-not-running", uid=uid)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lock = "import fcntl\ntime.sleep(0.01)\nfcntl.flock(os.open(a[0], os.O_RDONLY), fcntl.LOCK_SH)\nend = 0"
    with stranger(lock, path, seconds=60) as process:
        server.process.kill()
        server.process.wait()
        wait_for(lambda: status_of(server.place, "-P", path, "--status", uid=0).returncode == 3, what="the children to end")
        assert path.exists()
        done = status_of(server.place, "-P", path, "--status", uid=NOBODY)
        assert (done.returncode, done.stdout, done.stderr) == (3, "not running\n", "")
        done = status_of(server.place, "-P", path, "--if-not-running", uid=NOBODY)
        assert (done.returncode, done.stderr) == (77, f"midatagram: pid file {path}: Permission denied\n")
        assert process.poll() is None
    folder.chmod(0o700)
    done = status_of(server.place, "-P", path, "--status", uid=NOBODY)
    assert (done.returncode, done.stderr) == (77, f"midatagram: pid file {path}: Permission denied\n")


def test_a_server_that_drops_privileges_removes_its_pid_file_where_it_may(start, folder, tmp_path):
    (folder / "run").mkdir()
    os.chown(folder / "run", NOBODY, NOBODY)
    path = folder / "run" / "pid"
    server = start("", "-P", str(path), "-u", "nobody", place=f"{folder}/mi.sock", wrapper=readable_python())
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o600, 0)
    server.stop()
    assert not path.exists()


def test_plugins_that_the_user_of_a_server_cannot_read(start, folder):
    """Root has loaded them, with all that its children want later. A reload that cannot read them changes nothing."""
    for name in ("copy", "behind", "run"):
        (folder / name).mkdir()
    shutil.copy(SCRIPT, folder / "copy")
    shutil.copytree(ROOT / "plugins", folder / "copy" / "plugins", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "copy" / "plugins").chmod(0o700)
    os.chown(folder / "run", NOBODY, NOBODY)
    folder.chmod(0o755)
    behind = Server(folder / "behind", 'modparam("midatagram", "dialect", "text")\n'
                                       'modparam("mi_datagram", "unix_socket_mode", 0666)\n')
    front = Server(folder / "run", f'loadmodule "upstream.so"\nmodparam("upstream", "server", "[main]{behind.place}")\n'
                                   f'modparam("upstream", "record", "{folder}/run/record.conf")\n', "-u", "nobody",
                   wrapper=["/bin/sh", "-c", f'shift 2; exec /usr/bin/python3 {folder}/copy/midatagram.py "$@"', "sh"])
    with contextlib.closing(behind), contextlib.closing(front):
        replies = [ask_as(0, 0, [], front.place, asking("pwd")) for _ in range(2)]
        front.signal(signal.SIGHUP)
        front.wait_log("reload refused, the old configuration stays: ")
        replies.append(ask_as(0, 0, [], front.place, asking("pwd")))
        assert {json.loads(reply)["result"]["WD"] for reply in replies} == {f"{folder}/behind"}
        front.stop(), behind.stop()
        assert f"{folder}/copy/plugins" in front.log and "ended" not in front.log


def test_root_asks_for_the_server_of_another_user(folder):
    put(folder / "pid", "7\n", 0o600, NOBODY)
    done = run("-s", folder / "mi.sock", "-P", folder / "pid", "--status")
    assert (done.returncode, done.stdout, done.stderr) == (3, "not running\n", "")


@pytest.fixture
def tiny(tmp_path, request):
    """A file system with hardly any room, as its options say."""
    needs_root()
    place = tmp_path / "tiny"
    place.mkdir()
    if subprocess.run([needs("mount"), "-t", "tmpfs", "-o", request.param, "none", place], stderr=subprocess.DEVNULL).returncode:
        (pytest.fail if NO_SKIP else pytest.skip)("no file system can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("tiny, stale", [("size=4k", False), ("size=4k", True), ("nr_inodes=2", False)], indirect=["tiny"])
def test_no_room_for_the_pid_file(tiny, tmp_path, stale):
    """One line, and nothing is left behind: not even the pid file of an earlier server."""
    put(tiny / "pid") if stale else None
    (tiny / "filler").write_bytes(b"x" * 4096)
    done = run("-s", tmp_path / "mi.sock", "-P", tiny / "pid")
    assert (done.returncode, done.stderr) == (73, f"midatagram: pid file {tiny}/pid: No space left on device\n")
    assert os.listdir(tiny) == ["filler"] and os.listdir(tmp_path) == ["tiny"]


@pytest.mark.parametrize("tiny", ["nr_inodes=3"], indirect=True)
def test_no_room_for_the_socket_after_the_pid_file(tiny):
    put(tiny / "filler")
    done = run("-s", tiny / "mi.sock", "-P", tiny / "pid")
    assert (done.returncode, done.stderr.count("\n")) == (73, 1) and "No space left on device" in done.stderr
    assert os.listdir(tiny) == ["filler"]


@pytest.mark.parametrize("tiny", ["nr_inodes=2"], indirect=True)
def test_no_room_for_the_shared_files_where_they_should_be(start, tiny):
    """They are in the next place where there is room, and what could not be finished is gone."""
    put(tiny / "filler")
    server = start("", environment={"RUNTIME_DIRECTORY": str(tiny)})
    assert server.ask(b":cache_store:\nlocal\na\nb\n") == b"200 OK\n\n"
    server.stop()
    assert os.listdir(tiny) == ["filler"]


# The folder of a run


def test_only_our_own_folders_of_dead_runs_are_cleared_away(folder, precious, monkeypatch):
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(folder))
    theirs, link = put(folder / "midatagram-4194305-x" / "file").parent, folder / "midatagram-4194306-x"
    os.chown(theirs, NOBODY, NOBODY)
    link.symlink_to(precious.parent)
    dead = put(folder / "midatagram-4194307-x" / "store.sqlite").parent
    made, descriptor = mi.run_folder()
    assert (theirs / "file").exists() and is_untouched(precious) and link.is_symlink() and not dead.exists()
    os.rename(made, folder / "aside")
    os.symlink(precious.parent, made)
    with pytest.raises(NotADirectoryError):
        mi.remove_run(made, descriptor)
    assert is_untouched(precious)


def test_root_serves_without_its_own_plugins_where_others_can_write_them(tmp_path):
    needs_root()
    shutil.copytree(SCRIPT.parent / "plugins", tmp_path / "plugins")
    (tmp_path / "plugins").chmod(0o777)
    command = [sys.executable, shutil.copy(SCRIPT, tmp_path), "-s", tmp_path / "mi.sock"]
    status, log = life_of(tmp_path / "mi.sock", *command)
    assert status == 0 and "stopping" in log, log
    for words in (["-p", tmp_path / "plugins"], ["-c"]):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=20)
        assert done.returncode == 78 and "can be written by others than root" in done.stderr
