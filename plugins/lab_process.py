"""lab_process -- a lab for the life of a test: a real server with lab.so, on a UNIX socket and a UDP port of its own.

`midatagram.py lab -- COMMAND...` runs a command beside one; _pytest_midatagram makes fixtures of it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from typing import Any

HERE = pathlib.Path(__file__).resolve().parent
if "midatagram" not in sys.modules and str(HERE.parent) not in sys.path:
    sys.path.append(str(HERE.parent))  # where the script lies, from a checkout as well as installed

import midatagram as mi  # noqa: E402

write_request = mi.write_request
START_S, STOP_S, REPLY_S = 10.0, 5.0, 15.0
PORT_TRIES = 5
SUFFIXES = (".py", ".conf")


class Lab:
    """A server for tests. `with Lab(...)` starts it and leaves nothing behind.

    lines: more lines of configuration; folders: of plug-ins, of which all are loaded unless there is a file; file: a
    configuration; imitate: the release whose answers are wanted. RuntimeError with the server's log when it does not start,
    and with its exit status as `status`.
    """

    def __init__(self, lines: str = "", folders: Iterable[str] = (), file: str | None = None, imitate: str | None = None):
        self.lines, self.folders, self.file, self.imitate = lines, [os.path.abspath(one) for one in folders], file, imitate
        self.folder = self.address = ""
        self.udp = ("127.0.0.1", 0)
        self.process: subprocess.Popen | None = None

    # Start and stop.

    def __enter__(self) -> Lab:
        self.folder = tempfile.mkdtemp(prefix="mi-lab-")
        self.address = os.path.join(self.folder, "socket")
        try:
            for _ in range(PORT_TRIES):  # another program may get the port first
                status = self.start()
                if status is None:
                    return self
                if status != mi.EXIT_IN_USE:
                    break
            raise mi.tagged(RuntimeError(f"the lab did not start, exit status {status}:\n{self.log()}"), status=status)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exception: Any) -> None:
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> int | None:
        """Start the server; returns its exit status if it ends before it answers."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.udp = probe.getsockname()
        path = pathlib.Path(self.folder, "lab.conf")
        path.write_text(self.configuration())
        options = [word for folder in self.folders for word in ("-p", folder)]
        with open(os.path.join(self.folder, "log"), "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE.parent / "midatagram.py"), "-f", str(path), "-s", self.address, *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)  # Ctrl-C is for the test
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s and self.process.poll() is None:
            with contextlib.suppress(OSError):
                mi.ask(self.address, write_request("which", ()), REPLY_S)
                return None
            time.sleep(0.01)
        return self.process.poll() if self.process.poll() is not None else -1

    def configuration(self) -> str:
        """The lines that make a server the lab."""
        text = text_of(self.file) if self.file else ""
        loaded = re.search(r'(?m)^\s*loadmodule\s+"(?:[^"]*/)?lab(?:\.so)?"', text + self.lines)
        names = [] if self.file else [os.path.join(folder, name) for folder in self.folders
                                      for name in sorted(os.listdir(folder)) if name.endswith(SUFFIXES) and name[0] not in "_."]
        return "\n".join([
            *([f'include_file "{os.path.abspath(self.file)}"'] if self.file else []),
            *([] if loaded else ['loadmodule "lab.so"']), *[f'loadmodule "{name}"' for name in names],
            *([f'modparam("midatagram", "imitate", "{self.imitate}")'] if self.imitate else []),
            'modparam("midatagram", "listen", "udp:{}:{}")'.format(*self.udp), self.lines, ""])

    def log(self) -> str:
        """What the server logged."""
        return pathlib.Path(self.folder, "log").read_text(errors="replace")

    # What a test does with it.

    def ask(self, request: str | bytes, /, *values: Any, **named: Any) -> Any:
        """Send a command as text and return the reply; bytes are sent as they are, and the reply is bytes. TimeoutError."""
        if isinstance(request, bytes):
            return mi.ask(self.address, request, REPLY_S)
        arguments = [(None, f"{value}") for value in values] + [(name, f"{value}") for name, value in named.items()]
        return mi.decode(mi.ask(self.address, write_request(request, arguments), REPLY_S))

    def json(self, method: str, /, **params: Any) -> Any:
        """The result of a command over JSON-RPC; mi.Error for an error. TimeoutError."""
        request = {"jsonrpc": "2.0", "id": 1, "method": method, **({"params": params} if params else {})}
        reply = json.loads(mi.ask(self.address, json.dumps(request).encode(), REPLY_S))
        if "error" in reply:
            raise mi.Error(reply["error"]["code"], reply["error"]["message"], reply["error"].get("data"))
        return reply["result"]

    def run(self, command: str, /, *values: Any, **named: Any) -> str:
        """Send a command of lab.so and return the reply; AssertionError for an error."""
        reply = self.ask(command, *values, **named)
        assert reply.startswith("200 "), f"{command}: {reply}"
        return reply

    def reset(self) -> None:
        """Forget faults, replies, the journal and what modules know."""
        self.run("lab_reset")

    def reply(self, command: str, /, *arguments: Any, **options: Any) -> None:
        """Have a command answered so: reply= json= code= reason= times= ms=; see lab_reply."""
        self.run("lab_reply", command, *arguments, **options)

    def fault(self, **options: Any) -> int:
        """Add a rule, see lab_fault_add: command= argument= client= action= ms= ...; returns its id."""
        return int(self.run("lab_fault_add", **options).split("id:: ")[1].split()[0])

    def journal(self, **options: Any) -> str:
        """What clients sent, and what became of it; see lab_journal."""
        return self.run("lab_journal", **options)

    def verify(self, command: str, /, *arguments: Any, **options: Any) -> None:
        """Check that a command came: times= at_least= at_most=; AssertionError that says what came instead."""
        reply = self.ask("lab_verify", command, *arguments, **options)
        assert reply.startswith("200 "), f"verify {command} {' '.join(map(str, arguments))}: {reply}"

    def order(self, *commands: str) -> None:
        """Check that these commands came in this order; AssertionError."""
        reply = self.ask("lab_order", *commands)
        assert reply.startswith("200 "), f"order {' '.join(commands)}: {reply}"


def text_of(path: str) -> str:
    """The text of a configuration, empty for what cannot be read: the server says why."""
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text(errors="replace") if os.path.isfile(path) else ""
    return ""


def run_beside(argv: list[str]) -> int:
    """`midatagram.py lab [-p DIR] [-f FILE] -- COMMAND...`: run a command beside a lab; returns its exit status."""
    options = parser().parse_args(argv)
    command = options.command[options.command[:1] == ["--"]:]
    if not command:
        parser().error("which COMMAND is to run?")
    for folder in options.plugins:
        if not os.path.isdir(folder):
            raise mi.StartError(mi.EXIT_CONFIG, f"-p: there is no folder {folder}")
    if options.file and not os.path.exists(options.file):
        raise mi.StartError(mi.EXIT_CONFIG, f"{options.file}: no such file")
    try:
        with Lab(folders=options.plugins, file=options.file) as lab:
            environment = {**os.environ, "MI_SOCKET": lab.address, "MI_UDP": "{}:{}".format(*lab.udp)}
            status = run_to_end(command, environment)
            if status:
                print(f"midatagram: {command[0]} ended with {status}; what the lab was asked:", file=sys.stderr)
                print(lab.journal(), file=sys.stderr)
    except (RuntimeError, OSError) as error:
        raise mi.StartError(max(getattr(error, "status", 0), mi.EXIT_CRASH), f"lab: {error}") from None
    return status


def run_to_end(command: list[str], environment: dict[str, str]) -> int:
    """Run a command and return its exit status, 128 and the signal if one ended it. Ctrl-C reaches it, too. OSError."""
    with subprocess.Popen(command, env=environment) as process:
        while True:
            try:
                status = process.wait()
                return status if status >= 0 else 128 - status
            except KeyboardInterrupt:  # it decides what that means
                continue


def parser() -> argparse.ArgumentParser:
    """The command line of `lab`."""
    parser = argparse.ArgumentParser(
        "midatagram.py lab", description="Start a lab, and run COMMAND with MI_SOCKET (a path) and MI_UDP (HOST:PORT) in its "
        "environment. If COMMAND fails, print the journal.",
        epilog="Exit status: that of COMMAND, or 128 plus the number of the signal that ended it; that of the server if the lab "
        "does not start.")
    parser.add_argument("-p", dest="plugins", metavar="DIR", action="append", default=[],
                        help="search this folder for plug-ins; without -f, load all plug-ins in it")
    parser.add_argument("-f", dest="file", metavar="FILE", help="read this configuration; the lab has a socket of its own")
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER,
                        help="command to run, with its arguments; write -- before it")
    return parser
