"""Operations: command line and exit statuses, systemd's protocols, Debian's supervisor and cron, all for real."""

import contextlib
import fcntl
import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import (
    NO_SKIP,
    PLUGINS,
    ROOT,
    SCRIPT,
    STOP_S,
    Client,
    free_port,
    is_alive,
    needs,
    needs_root,
    readable_python,
    run,
    wait_for,
)

import midatagram as mi

NOBODY = 65534
WHOAMI = b":whoami:\n"
TROUBLE = 'loadmodule "mi_trouble.so"\n'


@pytest.fixture
def open_folder():
    """A folder that every user can enter, with a short name."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="mi-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def ids(pid):
    """The real, effective and saved uid, the same of gids, and the groups of a process."""
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return tuple({int(number) for number in fields[name].split()} for name in ("Uid", "Gid", "Groups"))


def asked(place, folder, request=b":uptime:\n"):
    """The reply of a server that may not be there yet."""
    with Client(str(place), folder) as client, contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
        return client.ask(request, 1.0)


# Cron: first and last in this file, because it takes a minute


class Installed:
    """A private copy as install.sh makes it, and the lines that it prints."""

    def __init__(self, folder):
        self.folder = folder
        done = subprocess.run([ROOT / "install.sh", "system", "--prefix", folder, "--systemd"], capture_output=True, text=True,
                              env={**os.environ, "PYTHON": sys.executable}, timeout=60)
        assert done.returncode == 0, done.stderr
        self.printed = done.stdout
        self.place, self.pid_path = folder / "run/midatagram/midatagram.sock", folder / "run/midatagram.pid"

    def lines(self, first):
        """The printed lines from the one that starts with `first` to the next empty one."""
        return self.printed[self.printed.index(f"\n{first}") + 1:].split("\n\n")[0] + "\n"

    def serves(self):
        """Whether the server answers."""
        return asked(self.place, self.folder)

    def pid(self):
        """The pid in the pid file, 0 if there is none."""
        with contextlib.suppress(FileNotFoundError, ValueError):
            return int(self.pid_path.read_text())
        return 0

    def remove(self):
        """Stop the server, delete the copy."""
        if self.pid() and is_alive(self.pid()):
            os.kill(self.pid(), signal.SIGTERM)
            wait_for(lambda: not is_alive(self.pid()), what="the server to stop")
        shutil.rmtree(self.folder)


@pytest.fixture
def installed():
    copy = Installed(pathlib.Path(tempfile.mkdtemp(prefix="mi-test-")))
    yield copy
    copy.remove()


CRON_ENVIRONMENT = {"HOME": "/root", "LOGNAME": "root", "PATH": "/usr/bin:/bin", "SHELL": "/bin/sh"}
# The daemon sees an /etc/crontab, crontabs and /run of its own: nothing else is run, and nobody else's is touched.
CRON = """
set -e
mount --make-rprivate /
mount -t tmpfs none /run
mount -t tmpfs none /etc/cron.d
mount --bind /dev/null /etc/crontab
mount -t tmpfs none /var/spool/cron/crontabs
printf '%s' "$1" >/var/spool/cron/crontabs/root
chmod 0600 /var/spool/cron/crontabs/root
exec cron -f
"""


def needs_mount_namespaces():
    """Skip the test where the kernel allows no mount namespaces; where all must run, fail."""
    if subprocess.run([needs("unshare"), "-m", "true"], capture_output=True).returncode:
        (pytest.fail if NO_SKIP else pytest.skip)("no mount namespaces here")


@pytest.fixture(scope="module")
def cron():
    """Debian's cron at work on the printed lines; its @reboot line has started the server, which was then killed."""
    needs_root()
    needs("cron")
    needs_mount_namespaces()
    copy = Installed(pathlib.Path(tempfile.mkdtemp(prefix="mi-test-")))
    daemon = subprocess.Popen(["unshare", "-m", "sh", "-c", CRON, "sh", copy.lines("@reboot")])
    try:
        wait_for(copy.serves, 20, "the server that @reboot starts")
        copy.first_pid = copy.pid()
        os.kill(copy.first_pid, signal.SIGKILL)
        yield copy
    finally:
        daemon.terminate()
        daemon.wait()
        copy.remove()


def test_cron_s_reboot_line_starts_the_server(cron):
    assert cron.first_pid


def test_once_a_minute_line_as_cron_runs_it(installed):
    [line] = [line for line in installed.lines("@reboot").splitlines() if line.startswith("* * * * *")]
    command = line.removeprefix("* * * * * ")

    def tick():
        """What cron does: /bin/sh, hardly any environment, output collected for a mail."""
        with open(installed.folder / "mail", "w+") as mail:
            subprocess.run(["/bin/sh", "-c", command], stdin=subprocess.DEVNULL, stdout=mail, stderr=mail, check=True,
                           cwd="/", timeout=20, env=CRON_ENVIRONMENT)
            mail.seek(0)
            return mail.read()

    tick()
    assert installed.serves()
    first = installed.pid()
    assert [tick(), tick()] == ["", ""]  # it runs: quiet, and left alone
    assert installed.pid() == first and installed.serves()
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: not is_alive(first), what="the end of the server")
    wait_for(lambda: not installed.serves(), what="the end of its children")
    tick()
    assert installed.serves()
    assert installed.pid() != first


# Command line


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"midatagram {mi.__version__}\n", "")


@pytest.mark.parametrize("arguments", [["--no-such-option"], ["-P"], ["extra"], ["call", "-t", "soon", "ps"]])
def test_usage_is_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert "usage: midatagram.py" in done.stderr


def test_configuration_is_78(tmp_path):
    (tmp_path / "c").write_text('\nmodparam("mi_datagram", "socket_nam", "/tmp/x")\n')
    done = run("-f", tmp_path / "c")
    assert done.returncode == 78
    assert f"midatagram: {tmp_path}/c:2: " in done.stderr
    assert run("-f", tmp_path / "absent").returncode == 78


def run_as_nobody(*arguments):
    """Run a copy of the script and of its plug-ins, which all can read, as the user nobody."""
    with tempfile.TemporaryDirectory(prefix="mi-test-") as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(ROOT / "plugins", f"{folder}/plugins", ignore=shutil.ignore_patterns("__pycache__"))
        copy = shutil.copy(SCRIPT, folder)
        return subprocess.run([*readable_python(), sys.executable, copy, *arguments], capture_output=True, text=True,
                              user=NOBODY, group=NOBODY, extra_groups=[], timeout=20, cwd=folder)


def test_permission_is_77(open_folder):
    needs_root()
    done = run_as_nobody("-s", f"{open_folder}/mi.sock")
    assert done.returncode == 77
    assert f"{open_folder}/mi.sock is not permitted to uid {NOBODY}" in done.stderr
    pid_path = open_folder / "pid"
    assert run_as_nobody("-s", f"{open_folder}/mi.sock", "-P", pid_path).returncode == 77
    open_folder.chmod(0o777)
    done = run_as_nobody("-s", f"{open_folder}/mi.sock", "-u", "daemon")
    assert done.returncode == 77
    assert "only root can" in done.stderr
    (open_folder / "c").write_text(f'modparam("mi_datagram", "socket_name", "{open_folder}/mi.sock")\n'
                                   'modparam("mi_datagram", "unix_socket_user", "root")\n')
    done = run_as_nobody("-f", open_folder / "c")
    assert done.returncode == 77 and done.stderr == (
        f"midatagram: {open_folder}/c:2: socket {open_folder}/mi.sock cannot be given to that unix_socket_user or group by uid "
        f"{NOBODY}; only root can (Operation not permitted)\n")
    assert [path.name for path in open_folder.iterdir()] == ["c"]


def test_a_check_names_what_it_may_not_write(open_folder):
    """By the line that names it; where a socket is there, a server runs or leaves it to us."""
    needs_root()
    for name in ("mine", "roots"):
        (open_folder / name).mkdir()
    os.chown(open_folder / "mine", NOBODY, NOBODY)
    (open_folder / "roots" / "log").write_text("")
    lines = [f'modparam("mi_datagram", "socket_name", "{open_folder}/mine/mi.sock")',
             'modparam("mi_datagram", "unix_socket_user", "root")',
             f'modparam("midatagram", "listen", "{open_folder}/roots/mi.sock")',
             f'modparam("midatagram", "log_file", "{open_folder}/roots/log")',
             f'modparam("midatagram", "store_file", "{open_folder}/roots/store")']
    (open_folder / "c").write_text("\n".join(lines))
    may_not = f"cannot be made: uid {NOBODY} may not write {open_folder}/roots;"
    done = run_as_nobody("-c", "-f", open_folder / "c")
    assert done.returncode == 78
    for line, text in ((2, "mine/mi.sock cannot be given to that unix_socket_user"), (3, f"roots/mi.sock {may_not}"),
                       (4, f"roots/log cannot be opened for writing by uid {NOBODY}"), (5, f"roots/store {may_not}")):
        assert re.search(rf"(?m)^ERROR: {open_folder}/c:{line}: (socket|log_file|store_file) {open_folder}/{re.escape(text)}",
                         done.stdout), done.stdout
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        one.bind(f"{open_folder}/mine/mi.sock")
        other.bind(f"{open_folder}/roots/mi.sock")
        (open_folder / "c").write_text("\n".join(lines[:3]))
        done = run_as_nobody("-c", "-f", open_folder / "c")
        assert (done.returncode, done.stdout) == (0, f"{open_folder}/c: OK\n")


def test_call_that_gets_no_reply_is_3(tmp_path):
    assert run("call", "-s", tmp_path / "absent", "uptime").returncode == 3
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as silent:
        silent.bind(str(tmp_path / "silent"))
        assert run("call", "-t", "0.2", "-s", tmp_path / "silent", "uptime").returncode == 3


def test_call_gives_1_for_a_reply_that_is_no_2xx(start):
    server = start()
    assert run("call", "-s", server.place, "no_such_command").returncode == 1
    done = run("call", "-s", server.place, "cache_store", "local", "key", "a value")
    assert (done.returncode, done.stdout) == (0, "200 OK\n\n")


# In the background


class Background:
    """A server started with -D, and stopped by its pid."""

    def __init__(self, folder, configuration="", *arguments):
        self.folder, self.place, self.pid_path = folder, folder / "mi.sock", folder / "pid"
        self.log_path, self.config_path = folder / "log", folder / "c"
        self.config_path.write_text(f'modparam("mi_datagram", "socket_name", "{self.place}")\n{configuration}')
        self.arguments = ["-f", self.config_path, "-P", self.pid_path, *arguments]

    def start(self, *arguments):
        """The exit status of a start in the background."""
        with open(self.log_path, "w") as log:
            return subprocess.run([sys.executable, SCRIPT, *self.arguments, "-D", *arguments], stderr=log, stdout=log,
                                  stdin=subprocess.DEVNULL, timeout=20).returncode

    def pid(self):
        return int(self.pid_path.read_text())

    def stop(self):
        """SIGTERM, and wait for its end."""
        pid = self.pid()
        os.kill(pid, signal.SIGTERM)
        wait_for(lambda: not is_alive(pid), STOP_S, "the server to stop")


@pytest.fixture
def background(tmp_path):
    made = []

    def make(*arguments):
        made.append(Background(tmp_path, *arguments))
        return made[-1]

    yield make
    for server in made:
        if server.pid_path.exists() and server.pid_path.read_text().strip() and is_alive(server.pid()):
            server.stop()


def test_background_start_returns_when_all_children_serve(background):
    server = background('modparam("mi_datagram", "children_count", 3)\n')
    assert server.start() == 0
    assert asked(server.place, server.folder)  # at once, not after a while
    pid = server.pid()
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(f"/proc/{pid}/fd/0") == os.readlink(f"/proc/{pid}/fd/1") == "/dev/null"
    server.stop()
    assert not server.pid_path.exists()
    assert not server.place.exists()


def test_background_server_lets_go_of_stderr_when_it_logs_elsewhere(background):
    server = background()
    log_line = f'modparam("midatagram", "log_file", "{server.log_path}")\n'
    server.config_path.write_text(server.config_path.read_text() + log_line)
    starter = subprocess.Popen([sys.executable, SCRIPT, *server.arguments, "-D"], stderr=subprocess.PIPE)
    with starter.stderr:
        assert starter.wait(20) == 0
        assert select.select([starter.stderr], [], [], 2)[0], "who waits for the end of stderr (ssh) waits for ever"
        assert starter.stderr.read() == b""


def children_of(pid):
    """The pids of the children that serve."""
    children = set()
    for child in map(int, pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # one that just ended
            if b"MI Datagram" in pathlib.Path(f"/proc/{child}/cmdline").read_bytes():
                children.add(child)
    return children


def descriptors(pid):
    """What a process has open: number -> where it leads."""
    return {int(link.name): os.readlink(link) for link in pathlib.Path(f"/proc/{pid}/fd").iterdir()}


@pytest.mark.parametrize("children", [1, 3])
def test_a_shell_that_reads_what_a_start_in_the_background_says(background, children):
    """out=$(midatagram.py -D ...) returns: nobody is left who could say more."""
    server = background(f'log_stderror=yes\nmodparam("mi_datagram", "children_count", {children})\n')
    command = shlex.join(map(str, [sys.executable, SCRIPT, *server.arguments, "-D"]))
    done = subprocess.run(["sh", "-c", f'out=$({command} 2>&1); printf "%s" "$out"'], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "")
    assert "ready: " in done.stdout and done.stdout.endswith(
        "WARNING:midatagram: the log ends here, as -D lets go of stderr; log to a file (log_file) or to syslog instead")
    pids = [server.pid(), *children_of(server.pid())]
    assert len(pids) == children + 1
    for pid in pids:
        assert {descriptors(pid)[number] for number in (0, 1, 2)} == {"/dev/null"}
    os.kill(pids[-1], signal.SIGKILL)  # what is started later has nothing either
    [last] = wait_for(lambda: children_of(pids[0]) - set(pids), what="another child")
    assert descriptors(last)[2] == "/dev/null"


def test_a_start_in_the_background_keeps_nothing_that_it_inherited(background):
    server = background()
    with open(server.folder / "lock", "w") as lock, open(server.folder / "lock") as again:
        os.set_inheritable(lock.fileno(), True)
        fcntl.flock(lock, fcntl.LOCK_EX)
        far = os.dup2(lock.fileno(), 777)
        assert subprocess.run([sys.executable, SCRIPT, *server.arguments, "-D"], pass_fds=[lock.fileno(), far]).returncode == 0
        os.close(far)
        lock.close()
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert not [where for where in descriptors(server.pid()).values() if where.startswith(f"{server.folder}/lock")]
    assert asked(server.place, server.folder)


def test_a_start_in_the_background_keeps_the_sockets_of_systemd(background):
    server = background()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ours, open(server.folder / "other", "w") as other:
        ours.bind(str(server.place))
        start = activated(ours)
        done = subprocess.run([*start["wrapper"], sys.executable, SCRIPT, *server.arguments, "-D"],
                              pass_fds=[*start["pass_fds"], other.fileno()], timeout=20)
        assert done.returncode == 0
    assert f"{server.folder}/other" not in descriptors(server.pid()).values()
    assert asked(server.place, server.folder)


@pytest.mark.parametrize("fails, status", [("port", 69), ("folder", 73), ("child", 1)])
def test_background_start_that_fails_says_so_to_who_started_it(background, fails, status):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        boot = "def child_init(ctx):\n    raise OSError('no database')\n"
        (pathlib.Path(background().folder) / "boot.py").write_text(boot)
        server = background({"port": f'modparam("midatagram", "listen", "udp:127.0.0.1:{other.getsockname()[1]}")\n',
                             "folder": 'modparam("midatagram", "listen", "/no/such/folder/x")\n',
                             "child": 'loadmodule "boot.so"\n'}[fails], "-p", background().folder)
        assert server.start() == status
    text = server.log_path.read_text()
    assert {"port": "in use", "folder": "mkdir -p /no/such/folder", "child": "no database"}[fails] in text
    assert not server.place.exists()
    wait_for(lambda: not server.pid_path.exists(), what="the pid file to go")


@pytest.mark.parametrize("locked", [True, False])
def test_of_two_starts_at_once_one_is_quiet(background, locked):
    """As those of @reboot and of the next minute in a crontab."""
    server = background()
    arguments = server.arguments if locked else server.arguments[:2]
    both = [subprocess.Popen([sys.executable, SCRIPT, *arguments, "-D", "--if-not-running"], stderr=subprocess.PIPE)
            for _ in range(2)]
    try:
        assert [starter.wait(20) for starter in both] == [0, 0]
    finally:
        assert run("call", "-s", server.place, "kill").returncode == 0
    text = b"".join(starter.communicate(timeout=20)[1] for starter in both)
    assert text.count(b"ready:") == 1 and b"already" not in text and b"socket of a running" not in text


def test_a_starter_that_does_not_wait(background):
    server = background()
    log = server.folder / "mi.log"
    (server.folder / "late.py").write_text("import gevent\n\ndef child_init(ctx):\n    gevent.sleep(1.5)\n")
    server.config_path.write_text(f'{server.config_path.read_text()}modparam("midatagram", "log_file", "{log}")\n'
                                  'loadmodule "late.so"\n')
    starter = subprocess.Popen([sys.executable, SCRIPT, *server.arguments, "-p", server.folder, "-D"])
    wait_for(lambda: server.pid_path.exists() and server.pid_path.read_text().strip(), what="the attendant")
    starter.kill()
    starter.wait()
    wait_for(lambda: "ready:" in log.read_text(), what="the children to serve")
    time.sleep(0.5)
    assert is_alive(server.pid()) and asked(server.place, server.folder)
    assert "gone" not in log.read_text()


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full"])
@pytest.mark.parametrize("where", ["in the foreground", "-D"])
def test_standard_streams_that_are_closed_or_full(background, closed, where):
    server = background()
    log = server.folder / "mi.log"
    server.config_path.write_text(f'{server.config_path.read_text()}modparam("midatagram", "log_file", "{log}")\n'
                                  if where == "-D" else server.config_path.read_text())
    command = shlex.join(map(str, [sys.executable, SCRIPT, *server.arguments]))
    shell = subprocess.Popen(["sh", "-c", f"exec {command} {'-D' if where == '-D' else ''} {closed}"])
    wait_for(lambda: asked(server.place, server.folder) if server.place.exists() else None, what="an answer")
    if where == "-D":
        assert shell.wait(10) == 0
        server.stop()
        assert "stopping" in log.read_text()
    else:
        os.kill(shell.pid, signal.SIGTERM)
        assert shell.wait(10) == 0
    assert not server.place.exists()


def test_a_starter_that_ignores_its_children(background):
    """As processes do that were started with SIGCHLD ignored: the pid file is the server's all the same."""
    server = background()
    command = shlex.join(map(str, [sys.executable, SCRIPT, *server.arguments, "-D"]))
    assert subprocess.run(["sh", "-c", f"trap '' CHLD; exec {command}"], timeout=20).returncode == 0
    assert is_alive(server.pid()) and asked(server.place, server.folder)


@pytest.mark.parametrize("path, status", [("{0}", 73), ("{0}/c/pid", 73)])
def test_status_with_a_pid_file_that_is_none(background, path, status):
    server = background()
    done = run("--status", "-f", server.config_path, "-P", path.format(server.folder))
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and "pid file" in done.stderr


@pytest.mark.parametrize("streams, status", [(">&-", 0), (">/dev/full", 1), ("<&-", 0), ("<&- >&- 2>&-", 0)])
def test_a_client_without_streams(background, streams, status):
    server = background()
    assert server.start() == 0
    command = shlex.join(map(str, [sys.executable, SCRIPT, "call", "-s", server.place, "uptime"]))
    done = subprocess.run(["sh", "-c", f"exec {command} {streams}"], stderr=subprocess.PIPE, timeout=20)
    assert done.returncode == status and b"Traceback" not in done.stderr


def test_a_name_with_several_addresses_means_the_same_to_server_and_client():
    """The IPv4 one, wherever the resolver puts it."""
    six, four = (socket.AF_INET6, 2, 17, "", ("::1", 9, 0, 0)), (socket.AF_INET, 2, 17, "", ("127.0.0.1", 9))
    assert mi.preferred([six, four]) is mi.preferred([four, six]) is four and mi.preferred([six]) is six


@pytest.mark.parametrize("path, status, why", [("/no/such/folder/log", 73, "No such file"), ("/dev", 73, "Is a directory")])
def test_a_log_file_that_cannot_be_opened(tmp_path, path, status, why):
    (tmp_path / "c").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                                f'modparam("midatagram", "log_file", "{path}")\n')
    done = run("-f", tmp_path / "c")
    assert (done.returncode, done.stderr.count("\n")) == (status, 1) and f"log_file {path}: {why}" in done.stderr
    assert not (tmp_path / "mi.sock").exists()


@pytest.mark.parametrize("arguments, status, why", [
    (["-f", "{0}"], 78, "{0}: cannot be read by uid {1}: Is a directory"), (["-f", "{0}/none"], 78, "{0}/none: no such file"),
    (["-s", "{0}/mi.sock", "-p", "{0}/none"], 78, "-p: there is no folder {0}/none"),
    (["-s", "udp:127.0.0.1:x"], 78, '-s: "udp:127.0.0.1:x": socket_name port must be a number'),
    (["-s", "{0}/mi.sock", "-u", "no_such_user"], 78, 'midatagram: -u: no user "no_such_user" on this system'),
    (["-s", "{0}/mi.sock", "-g", "no_such_group"], 78, 'midatagram: -g: no group "no_such_group" on this system'),
    (["-s", "127.0.0.1:8080"], 78, "-s: a UDP socket is written udp:HOST:PORT, a path ./127.0.0.1:8080: udp:127.0.0.1:8080"),
    (["call", "-f", "{0}/pattern", "uptime"], 78, '{0}/pattern:1: "(mi" is not a pattern of module names'),
    (["--status", "-f", "{0}/pattern"], 78, '{0}/pattern:1: "(mi" is not a pattern of module names'),
    (["-c", "-f", "{0}/twice"], 78, "{0}/twice:3: the socket udp:127.0.0.1:8090 is there already, at {0}/twice:2"),
])
def test_what_cannot_be_meant(tmp_path, arguments, status, why):
    (tmp_path / "pattern").write_text('modparam("(mi", "socket_name", "/tmp/x")\n')
    (tmp_path / "twice").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                                    + 'modparam("midatagram", "listen", "udp:127.0.0.1:8090")\n' * 2)
    done = run(*(argument.format(tmp_path) for argument in arguments))
    assert (done.returncode, done.stderr.count("\n")) == (status, 1)
    assert why.format(tmp_path, os.getuid()) in done.stderr


def test_a_check_tells_what_is_odd(tmp_path):
    (tmp_path / "c").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\nlog_levl=3\n'
                                'modparm("mi_datagram", "children_count", 2)\n'
                                'modparam("mi_datagram", "trace_destination", "hep_dest")\n'
                                'modparam("midatagram", "listen", "udp:0.0.0.0:8091")\n')
    done = run("-c", "-f", tmp_path / "c")
    assert done.returncode == 78 and done.stdout.endswith("c: see the errors above\n")
    for text in ('did you mean "log_level"?', 'did you mean "modparam"?', "can be reached from other machines",
                 'no tracing destination "hep_dest", is its module loaded?'):
        assert text in done.stdout


def test_pid_file_is_locked_and_a_second_start_is_75(background):
    server = background()
    assert run(*server.arguments, "--status").returncode == 3
    assert server.start() == 0
    first = server.pid()
    done = run(*server.arguments)
    assert done.returncode == 75
    assert f"already running: {server.pid_path} is locked" in done.stderr
    done = run(*server.arguments, "-D", "--if-not-running")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    done = run(*server.arguments, "--status")
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "running")
    assert server.pid() == first and asked(server.place, server.folder)
    server.stop()
    done = run(*server.arguments, "--status")
    assert (done.returncode, done.stdout) == (3, "not running\n")


def test_pid_file_that_a_killed_server_left_means_nothing(background):
    server = background()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as other:  # it ends with the block
        server.pid_path.write_text(f"{other.pid}\n")  # the number is in use again, by what is no server
        assert run(*server.arguments, "--status").returncode == 3
        assert server.start("--if-not-running") == 0
        assert server.pid() != other.pid
    os.kill(server.pid(), signal.SIGKILL)
    wait_for(lambda: not asked(server.place, server.folder), what="the children to end")
    assert run(*server.arguments, "--status").returncode == 3
    assert server.start("--if-not-running") == 0
    assert asked(server.place, server.folder)


def test_pid_file_in_a_missing_folder_is_73(tmp_path):
    assert run("-s", tmp_path / "mi.sock", "-P", tmp_path / "absent" / "pid").returncode == 73
    assert not (tmp_path / "mi.sock").exists()


@pytest.mark.parametrize("kind", ["unix", "udp"])
def test_status_without_a_pid_file_asks_the_socket(start, tmp_path, kind):
    place = f"udp:127.0.0.1:{free_port()}" if kind == "udp" else f"{tmp_path}/mi.sock"
    assert run("-s", place, "--status").returncode == 3
    server = start(TROUBLE, "-p", str(PLUGINS), place=place)
    assert run("-s", place, "--status").returncode == 0
    done = run("-s", place, "--if-not-running")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    server.process.kill()
    server.process.wait()
    wait_for(lambda: run("-s", place, "--status").returncode == 3, what="the children to end")


# Users


@pytest.mark.parametrize("arguments, uid, gid", [
    (["-u", "daemon"], 1, 1), (["-u", "daemon", "-g", "nogroup"], 1, 65534), (["-g", "daemon"], 0, 1),
])
def test_privileges_are_dropped_after_binding(start, open_folder, arguments, uid, gid):
    needs_root()
    port = free_port()
    server = start('modparam("mi_datagram", "children_count", 2)\n'
                   f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")\n', *arguments,
                   place=f"{open_folder}/mi.sock", wrapper=readable_python())
    children = children_of(server.pid)
    assert len(children) == 2
    for pid in (server.pid, *children):
        assert ids(pid)[:2] == ({uid}, {gid})
        assert uid == 0 or 0 not in ids(pid)[2]
    assert server.ask(b":uptime:\n", place=f"udp:127.0.0.1:{port}")
    assert os.stat(server.place).st_uid == 0  # bound before


def test_user_or_group_that_is_not_there_is_78(tmp_path):
    for arguments in (["-u", "no_such_user"], ["-g", "no_such_group"]):
        done = run("-s", tmp_path / "mi.sock", *arguments)
        assert done.returncode == 78
        assert arguments[1] in done.stderr
        assert not (tmp_path / "mi.sock").exists()


# systemd


class Systemd:
    """The socket that systemd would listen on for what a service tells it."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def next(self, timeout_s=10.0, watchdog=False):
        """What was told next, as a dict, with the sender as `pid`; None in time. Watchdog calls only when wanted."""
        deadline_s = time.monotonic() + timeout_s
        while (left_s := deadline_s - time.monotonic()) > 0:
            self.socket.settimeout(left_s)
            try:
                data, [(_, _, credentials)], _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(12))
            except TimeoutError:
                return None
            told = dict(line.split("=", 1) for line in data.decode().splitlines())
            if watchdog or told.keys().isdisjoint(("WATCHDOG", "EXTEND_TIMEOUT_USEC")) and [*told] != ["STATUS"]:
                return {**told, "pid": struct.unpack("3i", credentials)[0]}
        return None


@pytest.fixture(params=["path", "abstract"])
def systemd(request, tmp_path):
    address = f"{tmp_path}/notify" if request.param == "path" else f"@midatagram-test-{os.getpid()}"
    manager = Systemd(address)
    manager.environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "3000000"}
    yield manager
    manager.socket.close()


LATE = """
import os
import time


def child_init(ctx):
    try:
        os.close(os.open({flag!r} + ".first", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        while not os.path.exists({flag!r}):
            time.sleep(0.01)
"""


def test_systemd_is_told_ready_when_every_child_serves(start, tmp_path, systemd):
    flag, folder = tmp_path / "flag", tmp_path / "plug-ins"
    folder.mkdir()
    (folder / "late.py").write_text(LATE.format(flag=str(flag)))
    # The first child starts at once, the others when they find the flag.
    server = start('loadmodule "late.so"\nmodparam("mi_datagram", "children_count", 3)\n', "-p", str(folder),
                   environment=systemd.environment, ready=False)
    wait_for((tmp_path / "flag.first").exists, what="a child that serves")
    assert systemd.next(0.7) is None, "READY came before all children served"
    assert systemd.next(2.0, watchdog=True)["EXTEND_TIMEOUT_USEC"] == "10000000"
    flag.touch()
    told = systemd.next()
    assert told["READY"] == "1"
    assert told["STATUS"] == f"3 of 3 children serve {server.place}"
    assert told["pid"] == server.pid
    assert len(server.children()) == 3


def test_systemd_is_told_of_reloads_and_the_end(start, systemd):
    server = start(environment=systemd.environment)
    assert systemd.next()["READY"] == "1"
    good = server.config_path.read_text()
    for text in (good, good + "modparam(nonsense", good):
        server.config_path.write_text(text)
        before_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        server.signal(signal.SIGHUP)
        told = systemd.next()
        assert told["RELOADING"] == "1" and told["pid"] == server.pid
        assert before_us <= int(told["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        assert systemd.next()["READY"] == "1"
    server.stop()
    told = systemd.next()
    assert told["STOPPING"] == "1" and told["pid"] == server.pid


def test_systemd_s_watchdog_is_fed(start, systemd):
    server = start(environment=systemd.environment)
    began_s = time.monotonic()
    fed = 0
    while fed < 3:
        told = systemd.next(1.5, watchdog=True)  # half of WATCHDOG_USEC, as systemd advises
        assert told, "no WATCHDOG=1 in time"
        fed += told.get("WATCHDOG") == "1"
        assert told["pid"] == server.pid
    assert time.monotonic() - began_s < 4.5


def test_systemd_s_variables_are_not_handed_on(start, systemd, tmp_path):
    folder = tmp_path / "plug-ins"
    folder.mkdir()
    (folder / "environment.py").write_text(
        "import os\nimport midatagram as mi\n\n\n@mi.command\ndef environment(ctx):\n    '''Show.'''\n"
        "    return mi.Reply(nodes=[mi.Node(name) for name in os.environ])\n")
    server = start('loadmodule "environment.so"\n', "-p", str(folder), environment=systemd.environment)
    assert b"NOTIFY_SOCKET" not in server.ask(b":environment:\n")


# What systemd does between fork and exec: descriptors from 3 on, and a pid that says for whom they are.
ACTIVATE = """
import os, sys
count = int(sys.argv[1])
for number, descriptor in enumerate(sys.argv[2:2 + count]):
    os.dup2(int(descriptor), 3 + number)
os.environ.update(LISTEN_FDS=str(count), LISTEN_PID=str({pid}), LISTEN_FDNAMES="midatagram.socket")
os.execv(sys.argv[2 + count], sys.argv[2 + count:])
"""


def activated(*sockets, pid="os.getpid()"):
    """The words and descriptors that start a server as systemd does with these sockets."""
    numbers = [sock.fileno() for sock in sockets]
    return {"wrapper": [sys.executable, "-c", ACTIVATE.format(pid=pid), str(len(numbers)), *map(str, numbers)],
            "pass_fds": numbers}


def test_sockets_of_systemd_are_served_and_keep_their_queue_over_a_restart(start, tmp_path):
    path, port = f"{tmp_path}/mi.sock", free_port()
    with (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix,
          socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp):
        unix.bind(path)
        os.chmod(path, 0o604)
        udp.bind(("127.0.0.1", port))
        identity = os.stat(path).st_ino
        text = TROUBLE + f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")\n'
        for _ in range(2):
            waiting = Client(path, tmp_path)
            far = Client(f"udp:127.0.0.1:{port}", tmp_path)
            for _ in range(5):
                waiting.send(WHOAMI)  # nobody serves yet
                far.send(WHOAMI)
            server = start(text, "-p", str(PLUGINS), place=path, **activated(unix, udp))
            replies = [client.receive() for client in (waiting, far) for _ in range(5)]
            assert all(reply.startswith(b"200 OK\npid:: ") for reply in replies)
            reload_times = server.log.count("ready:") + 1
            server.signal(signal.SIGHUP)
            server.wait_log("ready:", times=reload_times)
            assert waiting.ask(WHOAMI) and far.ask(WHOAMI)
            server.stop()
            status = os.stat(path)
            assert (status.st_ino, status.st_mode & 0o777) == (identity, 0o604)
            waiting.close()
            far.close()


def test_sockets_that_are_for_another_process_are_left_alone(start, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(f"{tmp_path}/theirs.sock")
        server = start(TROUBLE, "-p", str(PLUGINS), **activated(theirs, pid="os.getppid()"))
        assert server.ask(WHOAMI)
        server.stop()
        assert not os.path.exists(server.place)


def test_socket_of_systemd_that_is_not_configured_is_named(start, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as theirs:
        theirs.bind(f"{tmp_path}/theirs.sock")
        server = start(TROUBLE, "-p", str(PLUGINS), **activated(theirs))
        assert f"{tmp_path}/theirs.sock was given to us but is not configured" in server.log
        assert server.ask(WHOAMI)


JOURNAL = """
import os, sys
status = os.fstat(2)
os.environ["JOURNAL_STREAM"] = f"{status.st_dev}:{status.st_ino + %d}"
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_priorities_stand_before_each_line_when_stderr_is_the_journal(start):
    server = start(TROUBLE, "-p", str(PLUGINS), "-d", wrapper=[sys.executable, "-c", JOURNAL % 0])
    server.ask(b":stumble:\n")
    server.client(bound=True).send(b":no_such_command:\n")
    server.stop(tracebacks=True)
    assert all(re.match(r"<[1-7]>", line) for line in server.lines), server.log
    priorities = {text: line[1] for line in server.lines for text in
                  ("ready:", "stumble raised", "Traceback", "ZeroDivisionError", "no_such_command") if text in line}
    assert priorities == {"ready:": "5", "stumble raised": "3", "Traceback": "3", "ZeroDivisionError": "3",
                          "no_such_command": "7"}
    assert not re.search(r"\d\d:\d\d:\d\d", server.lines[0])  # the journal has the time


def test_no_priorities_when_stderr_is_something_else(start):
    server = start(wrapper=[sys.executable, "-c", JOURNAL % 1])
    assert re.match(r"[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d \[\d+\] NOTICE", server.lines[0])


def test_processes_have_names(start):
    server = start('modparam("mi_datagram", "children_count", 2)\n')
    names = [pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
             for pid in (server.pid, *server.children())]
    processes = "attendant", "MI Datagram 1", "MI Datagram 2"
    assert names == [f"midatagram: {process} {server.place}" for process in processes]


# The server sees a /dev of its own, in which /dev/log is the test's socket.
SYSLOG = """
set -e
mount --make-rprivate /
mkdir "$1/dev"
mount --rbind /dev "$1/dev"
mount -t tmpfs none /dev
mkdir /dev/shm
for name in null zero random urandom; do
    touch "/dev/$name"
    mount --bind "$1/dev/$name" "/dev/$name"
done
touch /dev/log
mount --bind "$1/log" /dev/log
shift
exec "$@"
"""


def test_log_goes_to_syslog_with_its_facility(start, tmp_path):
    needs_root()
    needs_mount_namespaces()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(f"{tmp_path}/log")
        syslog.settimeout(10)
        server = start('log_stderror=no\nlog_facility=LOG_LOCAL0\n' + TROUBLE, "-p", str(PLUGINS), ready=False,
                       wrapper=["unshare", "-m", "sh", "-c", SYSLOG, "sh", str(tmp_path)])
        local0 = 16 << 3
        assert syslog.recv(4096).startswith(b"<%d>midatagram: " % (local0 + 5))  # the notice that it is ready
        server.ask(b":stumble:\n")
        assert syslog.recv(4096).startswith(b"<%d>midatagram: " % (local0 + 3))  # an error, from a child
        server.stop()
        assert server.log == ""


# supervisor


SUPERVISORD = """
[unix_http_server]
file={folder}/supervisor.sock
[supervisord]
logfile={folder}/supervisord.log
pidfile={folder}/supervisord.pid
childlogdir={folder}
nodaemon=true
[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface
[supervisorctl]
serverurl=unix://{folder}/supervisor.sock
"""


@pytest.fixture
def supervisor(installed):
    """supervisorctl of a supervisord that runs the printed section: words -> its output."""
    needs("supervisord")
    config_path = installed.folder / "supervisord.conf"
    config_path.write_text(SUPERVISORD.format(folder=installed.folder) + installed.lines("[program:midatagram]"))
    daemon = subprocess.Popen(["supervisord", "-c", config_path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def control(*words):
        done = subprocess.run(["supervisorctl", "-c", config_path, *words], capture_output=True, text=True, timeout=30)
        return done.stdout

    yield control
    daemon.terminate()
    assert daemon.wait(15) == 0


def test_supervisor_starts_stops_and_restarts_it(supervisor, installed):
    def pid_when_running(*others):
        wait_for(lambda: "RUNNING" in supervisor("status"), 20, "RUNNING")
        wait_for(installed.serves, what="the server")
        pid = int(supervisor("pid", "midatagram"))
        assert pid not in others
        return pid

    first = pid_when_running()
    assert supervisor("stop", "midatagram") == "midatagram: stopped\n"
    assert "STOPPED" in supervisor("status")
    assert not installed.place.exists()
    assert supervisor("start", "midatagram") == "midatagram: started\n"
    second = pid_when_running(first)
    assert supervisor("restart", "midatagram") == "midatagram: stopped\nmidatagram: started\n"
    third = pid_when_running(first, second)
    os.kill(third, signal.SIGKILL)
    wait_for(lambda: not is_alive(third), what="its end")
    pid_when_running(first, second, third)
    log = (installed.folder / "supervisord.log").read_text()
    assert log.count("stopped: midatagram (exit status 0)") == 2


def test_supervisor_does_not_retry_a_mistake_in_the_configuration(supervisor, installed):
    wait_for(installed.serves, 20, what="the server")
    assert supervisor("stop", "midatagram") == "midatagram: stopped\n"
    with open(installed.folder / "etc/midatagram/midatagram.conf", "a") as config:
        config.write("modparam(nonsense")
    supervisor("start", "midatagram")
    wait_for(lambda: "EXITED" in supervisor("status"), 20, "its end")
    log = (installed.folder / "supervisord.log").read_text()
    assert log.count("exited: midatagram (exit status 78; expected)") == 1
    time.sleep(2)  # in which supervisord would start it again
    assert (installed.folder / "supervisord.log").read_text() == log


def test_the_unit_checks_first_is_not_restarted_for_mistakes_and_may_write_where_it_must(installed):
    unit = (installed.folder / "etc/systemd/system/midatagram.service").read_text()
    values = {}
    for name, value in re.findall(r"^(\w+)=(.*)$", unit, re.M):
        values.setdefault(name, []).append(value)
    start, [check, hup] = values["ExecStart"][0], values["ExecReload"]
    assert check == start.replace(" -f ", " -c -f ") and hup == "/bin/kill -HUP $MAINPID"
    assert values["RestartPreventExitStatus"][0].split() == ["2", "73", "77", "78"]
    writable = [path.removeprefix("-") for path in values["ReadWritePaths"][0].split()]
    assert (values["StateDirectory"], values["StateDirectoryMode"]) == (["midatagram"], ["0700"])  # for a store_file
    config = (installed.folder / "etc/midatagram/midatagram.conf").read_text()
    written = re.findall(r'^modparam\("mi_datagram", "socket_name", "(.*)"\)|"log_file", "(.*)"\)', config, re.M)
    assert written and all(any(path.startswith(f"{folder}/") for folder in writable) for pair in written for path in pair if path)
    done = subprocess.run(check.split(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# The end of what the first test began


def test_cron_s_once_a_minute_line_brings_a_killed_server_back(cron):
    wait_for(cron.serves, 70, "cron to start the server again")
    assert cron.pid() != cron.first_pid
