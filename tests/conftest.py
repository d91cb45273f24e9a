"""Real servers for the tests: each is a process of its own, in a folder of its own, on loopback or a UNIX path."""

import contextlib
import fcntl
import itertools
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "midatagram.py"
PLUGINS = ROOT / "tests" / "plugins"
OPENSIPS_MODULES = ("usrloc", "registrar", "dialog", "dispatcher", "sl", "tm", "drouting", "load_balancer", "permissions",
                    "domain", "db_text", "ratelimit", "nathelper", "rtpproxy", "uac_registrant", "siptrace", "tracer", "pike")
SYSTEM_PYTHON = "/usr/bin/python3"
NO_SKIP = os.environ.get("MIDATAGRAM_NO_SKIP") == "1"
START_S = 20  # how long a start may take on a busy machine
STOP_S = 5  # the longest stop that is promised
numbers = itertools.count(1)


def needs(program):
    """Skip the test when a program is not on this machine; where all must run, fail."""
    path = shutil.which(program)
    if not path:
        (pytest.fail if NO_SKIP else pytest.skip)(f"{program} is not installed")
    return path


def needs_root():
    """Skip the test when it is not run by root; where all must run, fail."""
    if os.geteuid() != 0:
        (pytest.fail if NO_SKIP else pytest.skip)("only root can do this")


def needs_system_packages():
    """Skip the test where the distribution's packages are not installed; where all must run, fail."""
    for package in ("gevent", "configobj", "setproctitle"):
        if subprocess.run([SYSTEM_PYTHON, "-c", f"import {package}"], capture_output=True).returncode:
            (pytest.fail if NO_SKIP else pytest.skip)(f"python3-{package} is not installed")


def readable_python():
    """Words to put before a server's command line, so that the Python that runs it can be read by all users."""
    homes = "/root/", "/home/"
    if not os.path.realpath(sys.executable).startswith(homes) and not sys.prefix.startswith(homes):
        return []
    return ["/bin/sh", "-c", 'shift; exec /usr/bin/python3 "$@"', "sh"]


def free_port(family=socket.AF_INET):
    """A UDP port of loopback that nobody has."""
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition, timeout_s=10.0, what="the condition"):
    """The first true value of condition(); fails the test when there is none in time."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited {timeout_s} s for {what}")


def life_of(place, *command):
    """Start a server, stop it once its socket is there; its exit status and what it logged."""
    process = subprocess.Popen([str(word) for word in command], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: os.path.exists(place) or process.poll() is not None, what="the socket")
    finally:
        process.terminate()
    log = process.communicate(timeout=20)[1]
    return process.returncode, log


class Client:
    """A datagram socket that asks a server; UNIX ones are bound to a path of the test's folder."""

    def __init__(self, place, folder, connected=False, bound=True):
        if place.startswith("udp:"):
            host, _, port = place[4:].rpartition(":")
            family, _, _, _, self.target = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_DGRAM)[0]
            self.socket = socket.socket(family, socket.SOCK_DGRAM)
        else:
            self.target = place
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            if bound:
                self.path = f"{folder}/c{next(numbers)}"
                self.socket.bind(self.path)
        self.connected = connected
        if connected:
            self.socket.connect(self.target)

    def send(self, request):
        """Send bytes to the server."""
        self.socket.send(request) if self.connected else self.socket.sendto(request, self.target)

    def receive(self, timeout_s=5.0):
        """The next datagram, None when there is none in time."""
        self.socket.settimeout(timeout_s)
        try:
            return self.socket.recv(1 << 18)
        except TimeoutError:
            return None

    def ask(self, request, timeout_s=5.0):
        """Send a request and give its reply, None when there is none in time."""
        self.send(request)
        return self.receive(timeout_s)

    def close(self):
        """Close the socket."""
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


def is_alive(pid):
    """Whether a process runs (a zombie that nobody has taken leave of does not)."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Server:
    """A running midatagram: `python midatagram.py -f CONFIGURATION ARGUMENTS...`."""

    def __init__(self, folder, configuration, *arguments, place=None, environment=None, wrapper=(), pass_fds=(),
                 ready=True):
        self.folder = folder
        self.place = place or f"{folder}/mi.sock"
        self.config_path = folder / "test.conf"
        self.write(configuration)
        self.written, self.reading, self.clients, self.process = b"", threading.Lock(), [], None
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})}
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, str(SCRIPT), "-f", str(self.config_path), *arguments],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, cwd=folder, pass_fds=pass_fds)
        self.pid = self.process.pid
        self.reader = threading.Thread(target=self.read_log, daemon=True)
        self.reader.start()
        if ready:
            self.wait_log("ready:", START_S)

    def write(self, configuration):
        """Write the configuration; `{socket}` in it is the server's socket."""
        text = configuration.replace("{socket}", self.place)
        if "socket_name" not in text:
            text = f'modparam("mi_datagram", "socket_name", "{self.place}")\n{text}'
        self.config_path.write_text(text, errors="surrogateescape")

    def read_log(self):
        pipe = self.process.stderr.fileno()
        more = True
        while more:
            select.select([pipe], [], [])
            with self.reading:
                more = b"" if self.process.stderr.closed else os.read(pipe, 1 << 16)
                self.written += more

    @property
    def lines(self):
        """The lines of the log."""
        return self.log.splitlines(keepends=True)

    @property
    def log(self):
        """What the server logged so far, to the last byte that it wrote."""
        while True:
            with self.reading:  # so what is not in the pipe has been kept
                try:
                    unread, = struct.unpack("i", fcntl.ioctl(self.process.stderr, termios.FIONREAD, b"\0\0\0\0"))
                except (OSError, ValueError):  # the pipe is closed already
                    unread = 0
                if not unread:
                    return self.written.decode("utf-8", "backslashreplace")
            time.sleep(0.001)

    def wait_log(self, text, timeout_s=10.0, times=1):
        """Wait until the log holds a text so many times."""
        def found():
            return self.log.count(text) >= times or self.process.poll() is not None
        wait_for(found, timeout_s, f"{text!r} in the log:\n{self.log}")
        self.reader.join(1) if self.process.poll() is not None else None
        assert self.log.count(text) >= times, f"no {text!r} in the log:\n{self.log}"

    def client(self, place=None, **options):
        """A new client, closed with the server."""
        self.clients.append(Client(place or self.place, self.folder, **options))
        return self.clients[-1]

    def ask(self, request, timeout_s=5.0, place=None):
        """The reply to a request, asked by a new client; None when there is none."""
        with Client(place or self.place, self.folder) as client:
            return client.ask(request, timeout_s)

    def statistic(self, name, place=None):
        """The value of one statistic."""
        reply = self.ask(f":get_statistics:\n{name}\n".encode(), place=place).decode()
        assert reply.startswith("200 OK\n"), reply
        return int(reply.split("\n")[1].rpartition(":: ")[2])

    def children(self):
        """The pids of the children, by rank."""
        lines = self.ask(b":ps:\n").decode().splitlines()
        return [int(line.split("PID=")[1].split()[0]) for line in lines if "MI Datagram" in line]

    def signal(self, number):
        """Send a signal to the attendant."""
        self.process.send_signal(number)

    def reload(self, refused=""):
        """SIGHUP, and wait until the new children serve alone; or until the log says that it was refused."""
        text = refused or "ready:"
        before, times = self.children(), self.log.count(text)
        self.signal(signal.SIGHUP)
        self.wait_log(text, times=times + 1)
        wait_for(lambda: refused or not any(map(is_alive, before)), what="the old children to end")

    def stop(self, status=0, tracebacks=False):
        """SIGTERM: it must end in time with that status, and its log must hold no traceback."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        assert self.process.wait(STOP_S) == status, self.log
        self.reader.join(2)
        assert tracebacks or "Traceback" not in self.log, self.log

    def close(self):
        """Leave nothing behind, whatever the test did."""
        for client in self.clients:
            client.close()
        if self.process and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.process.wait(5)
        with self.reading:
            self.process.stderr.close()


@pytest.fixture
def start(tmp_path):
    """Start servers: start(configuration, *arguments, **options); those that still run are stopped and checked."""
    running = []

    def start_one(configuration="", *arguments, **options):
        folder = tmp_path / f"s{len(running)}"
        folder.mkdir()
        running.append(Server(folder, configuration, *arguments, **options))
        return running[-1]

    yield start_one
    try:
        for server in running:
            if server.process.poll() is None:
                server.stop()
    finally:
        for server in running:
            server.close()


def run(*arguments, timeout_s=START_S, environment=None, cwd=None):
    """Run the script to its end: a CompletedProcess with text output."""
    return subprocess.run([sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, cwd=cwd,
                          timeout=timeout_s, env={**os.environ, **(environment or {})}, errors="surrogateescape")


def blocks_of(page, language):
    """The fenced blocks of a page in one language ("" for none)."""
    return [text for name, text in re.findall(r"^```(\w*)\n(.*?)^```$", page, re.S | re.M) if name == language]


def session_of(page):
    """What stands behind the prompts of a page, and what it prints: (command, output)."""
    sessions = "".join(blocks_of(page, "sh"))
    return re.findall(r"^\$ ((?:.*<<'END'\n[^$]*?\nEND|.*))\n((?:(?!\$ ).*\n)*)", sessions, re.M)


def placed(text, places):
    """A text with the places that it names replaced by others."""
    for written, here in places.items():
        text = text.replace(written, str(here))
    return text


@pytest.fixture
def plug_in(tmp_path):
    """Write a plug-in's source: plug_in("name", text) gives the folder."""
    folder = tmp_path / "plug-ins"
    folder.mkdir()

    def write(name, text):
        (folder / f"{name}.py").write_text(text)
        return str(folder)

    return write


def copy_to(folder):
    """The project as a new user has it: what is under version control, no virtual environment."""
    folder.mkdir(exist_ok=True)
    names = ["midatagram.py", "midatagram.conf.example", "plugins", "install.sh", "LICENSE", "README.md", "pyproject.toml"]
    for name in names:
        source = ROOT / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copy(source, folder / name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.suffix in (".sh", ".py") else 0o644)
    return folder


class Reader:
    """Does what a page says, in a folder of its own with a copy of the project beside it: not as root if that can be."""

    def __init__(self, folder, user, python):
        self.folder, self.user, self.processes = folder, user, []
        self.places = {"./midatagram.py": f"{python} {copy_to(folder / 'midatagram')}/midatagram.py"}  # as written -> as here
        self.environment = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}

    def write(self, name, text):
        """Write a file, as the page has it but for places."""
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(placed(text, self.places))
        if self.user:
            os.chown(path.parent, 65534, 65534)
            os.chown(path, 65534, 65534)

    def begin(self, command, there):
        """Start what runs on, until the file `there` of the folder is there."""
        words = [*self.user, "sh", "-c", f"exec {placed(command, self.places)}"]
        self.processes.append(subprocess.Popen(words, cwd=self.folder, env=self.environment, stderr=subprocess.DEVNULL))
        wait_for((self.folder / there).exists, what=f"{there} of {command}")

    def run(self, command):
        """What a command prints on stdout and stderr."""
        done = subprocess.run([*self.user, "sh", "-c", placed(command, self.places)], cwd=self.folder, env=self.environment,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=30)
        return done.stdout

    def close(self):
        """End what still runs."""
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(STOP_S)
        shutil.rmtree(self.folder)


@pytest.fixture
def reader():
    """Who reads a page, and does what it says."""
    folder, user, python = pathlib.Path(tempfile.mkdtemp(prefix="midatagram-")), [], sys.executable  # pytest's own are closed
    if os.geteuid() == 0:
        needs_system_packages()
        user, python = [needs("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups"], SYSTEM_PYTHON
        os.chown(folder, 65534, 65534)
    one = Reader(folder, user, python)
    yield one
    one.close()
