"""servers -- the processes that a measurement needs: built, started, asked, ended by their own pid.

All that is made lives in one temporary folder, which goes when the Lab is left. Nothing here knows a figure's
meaning: bench/run and bench/soak do.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

HERE = pathlib.Path(__file__).resolve().parent
SCRIPT = HERE.parent / "midatagram.py"
LARGEST = 1 << 16  # bytes, no datagram is larger
PATIENCE_S = 10  # for a server to start, and to end

MIDATAGRAM_CONF = """\
mpath="{plugins}/"
loadmodule "bench_stats.so"
modparam("mi_datagram", "socket_name", "{socket}")
modparam("mi_datagram", "children_count", {children})
"""
TRACE_CONF = """\
loadmodule "proto_hep.so"
modparam("proto_hep", "hep_id", "[collector] 127.0.0.1:{port}; transport=tcp; version=3")
modparam("mi_datagram", "trace_destination", "collector")
"""
KAMAILIO_CONF = """\
debug=0
log_stderror=yes
children=1
disable_tcp=yes
listen=udp:127.0.0.1:{port}
loadmodule "jsonrpcs.so"
modparam("jsonrpcs", "transport", 4)
modparam("jsonrpcs", "dgram_socket", "{socket}")
request_route {{ exit; }}
"""
UPTIME = b'{"jsonrpc": "2.0", "method": "core.uptime", "id": 1}'


class NotMeasured(Exception):
    """A figure that should be there and is not: the reason."""


class Unavailable(NotMeasured):
    """A figure that needs what this machine does not have: the reason."""


class Server(NamedTuple):
    """A datagram server that answers: its socket's path, its first process, all pids, seconds to the first reply."""

    socket: str
    process: subprocess.Popen
    pids: tuple
    start_s: float = 0


###############################################################################
# Asking ######################################################################
###############################################################################


def client(timeout_s=1.0):
    """A UNIX datagram socket with an abstract address of its own; BlockingIOError when something takes too long.

    The kernel keeps the time: settimeout() would poll, and an unconnected UNIX socket seems writable all the time.
    """
    mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    mine.bind("")
    limit = struct.pack("@ll", int(timeout_s), int(timeout_s % 1 * 1e6))
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
    return mine


def ask(path, request, timeout_s=1.0):
    """Send one request, give its reply; OSError, BlockingIOError when none comes in time."""
    with client(timeout_s) as mine:
        mine.sendto(request, path)
        return mine.recv(LARGEST)


def first_reply(process, path, request):
    """Ask a process that is starting until it answers; NotMeasured when it ends or takes too long."""
    give_up = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < give_up:
        try:
            return ask(path, request, PATIENCE_S)
        except (FileNotFoundError, ConnectionRefusedError):
            time.sleep(0.002)
        except BlockingIOError:
            break
    raise NotMeasured(f"{process.args[0]} did not answer {request!r}: status {process.poll()}")


def processes(path):
    """What the command ps lists, {pid: type}."""
    reply = ask(path, b":ps:\n").decode()
    return {int(pid): kind for pid, kind in re.findall(r"PID=(\d+) Type=(.*)", reply)}


def all_of(path, children):
    """The pids of the attendant and so many children, once all are there; NotMeasured when that takes too long."""
    give_up = time.monotonic() + PATIENCE_S
    while len(pids := processes(path)) <= children:
        if time.monotonic() > give_up:
            raise NotMeasured(f"{len(pids) - 1} of {children} children started")
        time.sleep(0.01)
    return tuple(pids)


###############################################################################
# Looking from outside ########################################################
###############################################################################


def descendants(pid):
    """The pids of a process and of all below it."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], check=True, capture_output=True, text=True).stdout
    parent_of = dict(tuple(map(int, line.split())) for line in listed.splitlines())
    found = [pid]
    for one in found:
        found += [child for child, parent in parent_of.items() if parent == one]
    return tuple(found)


@contextlib.contextmanager
def on_core(pids, core):
    """Keep processes on one core while this lasts."""
    before = {pid: os.sched_getaffinity(pid) for pid in pids}
    for pid in pids:
        os.sched_setaffinity(pid, {core})
    try:
        yield
    finally:
        for pid, cores in before.items():
            os.sched_setaffinity(pid, cores)


@contextlib.contextmanager
def stopped(pids):
    """Have processes stand still while this lasts; children of a server for less than its stall_timeout."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def memory_kb(pid):
    """Resident and private memory of a process in kB; None when it is gone."""
    try:
        text = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    figures = {name: int(kb) for name, kb in re.findall(r"^(\w+): +(\d+) kB", text, re.M)}
    return figures["Rss"], figures["Private_Clean"] + figures["Private_Dirty"]


def interpreter():
    """The Python that has the server's packages: the virtual environment beside the script, else this one."""
    for folder in (".venv", "venv"):
        found = SCRIPT.parent / folder / "bin" / "python"
        if found.exists():
            return str(found)
    return sys.executable


def subscriber():
    """The port of a UDP socket on 127.0.0.1 that reads all it is sent, for as long as this process lives."""
    mine = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    mine.bind(("127.0.0.1", 0))

    def read():
        while True:
            mine.recv(LARGEST)

    threading.Thread(target=read, daemon=True).start()
    return mine.getsockname()[1]


class Collector:
    """A HEP collector on 127.0.0.1 that reads all it is sent over TCP and counts packets and bytes."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.listener.getsockname()[1]
        self.packets = self.bytes = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        """Read every connection in a thread of its own until the listener is closed."""
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.read, args=(connection,), daemon=True).start()

    def read(self, connection):
        """Count to the end of one connection; a mark may lie across two reads, so three bytes are kept."""
        buffer = bytearray(3 + (1 << 20))
        room = memoryview(buffer)[3:]
        with connection:
            while size := self.received(connection, room):
                with self.lock:
                    self.packets += buffer.count(b"HEP3", 0, 3 + size)
                    self.bytes += size
                buffer[:3] = buffer[size:size + 3]

    @staticmethod
    def received(connection, room):
        """How many bytes came; 0 at the end, also when the other side was killed."""
        try:
            return connection.recv_into(room)
        except ConnectionResetError:
            return 0

    def settle(self, quiet_s=0.2):
        """Wait until nothing has come for a while."""
        seen = -1
        while seen != self.bytes:
            seen = self.bytes
            time.sleep(quiet_s)

    def close(self):
        """End listening; connections end with their servers."""
        self.listener.close()


###############################################################################
# The laboratory ##############################################################
###############################################################################


class Lab:
    """Starts servers once, keeps them side by side, ends them when it is left.

    script, python: the server and the interpreter that runs it; install: whether Kamailio may be installed.
    """

    def __init__(self, script=SCRIPT, python=None, install=True):
        self.script, self.python, self.install = pathlib.Path(script).resolve(), python or interpreter(), install
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="midatagram-bench."))
        self.folder.chmod(0o755)
        self.running, self.servers, self.programs, self.started = [], {}, {}, 0
        self.bare = set()  # sockets where nothing understands a request
        self.collector = None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in reversed(self.running):
            self.end(process)
        if self.collector:
            self.collector.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, name):
        """A path in the temporary folder."""
        return str(self.folder / name)

    def program(self, name):
        """The C program NAME.c, compiled once."""
        if name not in self.programs:
            made = self.path(name)
            command = [os.environ.get("CC", "cc"), "-O2", "-o", made, str(HERE / f"{name}.c")]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise NotMeasured(f"{' '.join(command)}: {done.stderr.strip()}")
            self.programs[name] = made
        return self.programs[name]

    def start(self, argv):
        """Start a process of ours; what it prints goes to a file, see log()."""
        self.started += 1
        with open(self.path(f"log.{self.started}"), "wb") as log:
            process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder,
                                       env={**os.environ, "TMPDIR": str(self.folder)})
        process.log = log.name
        self.running.append(process)
        return process

    def log(self, process):
        """What a process has printed."""
        return pathlib.Path(process.log).read_text(errors="replace")

    def end(self, process):
        """End a process with SIGTERM, in the worst case with SIGKILL; gives its exit status."""
        if process in self.running:
            self.running.remove(process)
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def once(self, key, make):
        """The server of that key, made when it is first wanted; a failure is remembered too."""
        if key not in self.servers:
            try:
                self.servers[key] = make()
            except NotMeasured as why:
                self.servers[key] = why
        if isinstance(self.servers[key], NotMeasured):
            raise self.servers[key]
        return self.servers[key]

    def end_servers(self):
        """End the servers that once() made, and make them anew when they are wanted again."""
        for key, server in list(self.servers.items()):
            if isinstance(server, Server):
                self.end(server.process)
                del self.servers[key]

    def echo(self, reply_bytes):
        """The C program that answers with so many bytes."""
        return self.once(("echo", reply_bytes), lambda: self.start_echo(reply_bytes))

    def floor(self, *what):
        """The same in Python with gevent; with names in place of a size, statistics of these names."""
        return self.once(("floor", *what), lambda: self.start_echo(*what, program=[self.python, str(HERE / "floor.py")]))

    def forwarder(self, server):
        """The same as a gateway that only passes on, to Kamailio."""
        program = [self.python, str(HERE / "floor.py")]
        return self.once(("forwarder", server.socket), lambda: self.start_echo(server.socket, program=program, first=UPTIME))

    def start_echo(self, *what, program=None, first=b"x"):
        path = self.path(f"echo.{self.started}")
        process = self.start([*(program or [self.program("echo")]), path, *map(str, what)])
        first_reply(process, path, first)
        self.bare.add(path)
        return Server(path, process, (process.pid,))

    def midatagram(self, children=1):
        """The server under test."""
        return self.once(("midatagram", children), lambda: self.start_midatagram(children))

    def traced(self, children=1):
        """The server under test that traces all commands to a live collector over TCP."""
        return self.once(("traced", children), lambda: self.start_traced(children))

    def start_traced(self, children):
        self.collector = self.collector or Collector()
        before = self.collector.packets
        server = self.start_midatagram(children, TRACE_CONF.format(port=self.collector.port))
        self.collector.settle()
        if self.collector.packets == before:
            raise NotMeasured(f"no trace came to the collector; {last_line(self.log(server.process))}")
        return server

    def start_midatagram(self, children=1, further_lines=""):
        """A server of its own, which the caller may end."""
        path, conf = self.path(f"mi.{self.started}"), self.folder / f"conf.{self.started}"
        text = MIDATAGRAM_CONF.format(plugins=HERE / "plugins", socket=path, children=children)
        conf.write_text(text + further_lines)
        start = time.perf_counter()
        process = self.start([self.python, str(self.script), "-f", str(conf)])
        try:
            first_reply(process, path, b":uptime:\n")
        except NotMeasured as why:
            raise NotMeasured(f"{why}; {last_line(self.log(process))}") from None
        taken = time.perf_counter() - start
        return Server(path, process, all_of(path, children), taken)

    def gateway(self, server, settings=""):
        """The server under test as a gateway to another one."""
        return self.once(("gateway", server.socket, settings), lambda: self.start_gateway(server, settings))

    def start_gateway(self, server, settings):
        return self.start_midatagram(1, 'loadmodule "upstream.so"\nmodparam("upstream", "keep", "ps, uptime")\n'
                                     f'modparam("upstream", "server", "[main]{server.socket}{settings}")\n')

    def kamailio(self):
        """Kamailio with its jsonrpcs on a UNIX datagram socket; Unavailable where it is not and cannot be had."""
        return self.once("kamailio", self.start_kamailio)

    def start_kamailio(self):
        if not shutil.which("kamailio"):
            self.install_kamailio()
        path, conf = self.path("kamailio"), self.folder / "kamailio.cfg"
        conf.write_text(KAMAILIO_CONF.format(port=free_port(), socket=path))
        process = self.start(["kamailio", "-f", str(conf), "-DD", "-E", "-m", "64", "-Y", str(self.folder)])
        first_reply(process, path, UPTIME)
        return Server(path, process, descendants(process.pid))

    def install_kamailio(self):
        """Install the distribution's package, as root only."""
        if not self.install or os.getuid() or not shutil.which("apt-get"):
            raise Unavailable("kamailio is not installed")
        print("installing kamailio", file=sys.stderr)
        for step in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", "kamailio"]):
            done = subprocess.run(["apt-get", *step], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                                  capture_output=True, text=True)
            if done.returncode:
                raise Unavailable(f"apt-get {step[0]}: {last_line(done.stderr)}")

    def start_load(self, server, request, clients, seconds, distinct=False):
        """Start closed-loop clients that send `request` (bytes; distinct: another one each time, or one of so many)."""
        self.started += 1
        request_file = self.folder / f"request.{self.started}"
        request_file.write_bytes(request)
        argv = [self.program("load"), *distinct_option(distinct), server.socket, str(clients), str(seconds)]
        return self.start([*argv, str(request_file), *map(str, server.pids)])

    def load_figures(self, process):
        """Wait for a load to end; gives what load.c prints, {name: number}."""
        status = process.wait()
        self.running.remove(process)
        printed = self.log(process)
        if status:
            raise NotMeasured(f"load: {last_line(printed)}")
        return {key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", printed)}

    def load(self, server, request, clients, seconds, distinct=False):
        """Put load on a server, give the figures; see start_load()."""
        return self.load_figures(self.start_load(server, request, clients, seconds, distinct))


def distinct_option(distinct):
    """The option of load.c: False, True for requests that are never the same, or how many there are."""
    return [] if not distinct else ["-u"] if distinct is True else [f"-u{distinct}"]


def last_line(text):
    """The last line that says something, or that nothing was said."""
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it printed nothing"


def free_port():
    """A UDP port of 127.0.0.1 that nobody has at the moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
