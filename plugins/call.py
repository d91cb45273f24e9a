"""call -- a client: `midatagram.py call COMMAND [ARG...]` asks a server as any other client does.

It learns the commands of the server from `which` and `help`. A terminal gets a prompt; a pipe gets plain lines.
"""

from __future__ import annotations

import argparse
import cmd
import contextlib
import functools
import itertools
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterable
from math import inf
from typing import Any

import midatagram as mi

HERE = os.path.dirname(os.path.dirname(__file__))  # the script's folder
CONFIGURATIONS = (f"{HERE}/midatagram.conf", f"{HERE}/midatagram.conf.example", "/etc/midatagram/midatagram.conf")
ENDS = ("quit", "exit")  # lines that end the input

# The parameters of OpenSIPS' commands that are arrays: the command's names, the parameter's place and name.
ARRAYS = {name: where for names, *where in (
    ("get_statistics list_statistics reset_statistics statistics:get statistics:list statistics:reset", 0, "statistics"),
    ("raise_event evi:raise", 1, "params"),
    ("fs_subscribe fs_unsubscribe freeswitch_scripting:subscribe freeswitch_scripting:unsubscribe", 1, "events"),
    ("dlg_push_var dialog:push_var", 2, "DID"),
    ("trace_start tracer:start", 2, "filter"),
    ("cluster_broadcast_mi clusterer:broadcast_mi", 2, "cmd_params"),
    ("b2b_trigger_scenario b2b_logic:trigger_scenario", 3, "scenario_params"),
    ("dfks_set_feature presence_dfks:set_feature", 4, "values"),
) for name in names.split()}


class Client:
    """Asks one server in one dialect, and prints its replies unless `quiet`."""

    def __init__(self, place: mi.Address, timeout_s: float, json_rpc: bool, quiet: bool = False):
        self.place, self.timeout_s, self.json_rpc, self.quiet = place, timeout_s, json_rpc, quiet

    def ask(self, words: list[str], most_s: float = inf) -> tuple[str, bool]:
        """The reply to COMMAND [ARG...] [-- ARG...] as it is shown, and whether it is a success. OSError, ValueError.

        most_s: wait no longer than this, even if the time-out is longer.
        """
        reply = mi.decode(mi.ask(self.place, request_of(words, self.json_rpc), min(self.timeout_s, most_s)))
        return shown_json(reply) if self.json_rpc else (reply, re.match(r"2\d\d ", reply) is not None)

    def run(self, command: list[str] | str) -> int:
        """Send a command, its words or a line quoted as in a shell; print the reply, or one line for none; return the status."""
        try:
            words = words_of(command) if isinstance(command, str) else command
            if words in ([], ["--"]):
                return mi.EXIT_OK
            text, success = self.ask(words)
        except OSError as error:
            return self.no_reply(error)
        except ValueError as error:
            print(f"midatagram: {error}", file=sys.stderr, flush=True)
            return mi.EXIT_USAGE
        if not self.quiet:
            show(text)
        return mi.EXIT_OK if success else mi.EXIT_CRASH

    def no_reply(self, error: OSError) -> int:
        """Print why no reply came; return the status."""
        print(f"midatagram: no reply from {self.place}: {error.strerror or error}", file=sys.stderr, flush=True)
        return mi.EXIT_NOT_RUNNING

    def run_lines(self, lines: Iterable[bytes]) -> int:
        """Run lines up to the last one or `quit`; return the status of the last that failed."""
        status = mi.EXIT_OK
        for line in itertools.takewhile(lambda line: line.strip() not in ENDS, map(mi.decode, lines)):
            status = self.run(line) or status
        return status

    def repeat(self, words: list[str], count: float, pause_s: float) -> int:
        """Send a command `count` times or until Ctrl-C, print replies and a summary; return 0 when no reply was lost."""
        times_ms: list[float] = []
        sent, start_s = 0, time.monotonic()
        with contextlib.suppress(KeyboardInterrupt):
            while sent < count:
                time.sleep(max(0.0, start_s + sent * pause_s - time.monotonic()))
                asked_s = time.monotonic()
                status = self.run(words)
                if status == mi.EXIT_USAGE:
                    return status
                sent += 1  # one that Ctrl-C cut short is neither received nor lost
                if status != mi.EXIT_NOT_RUNNING:
                    times_ms.append((time.monotonic() - asked_s) * 1000)
        show(summary(sent, sorted(times_ms)))
        return mi.EXIT_OK if sent == len(times_ms) else mi.EXIT_NOT_RUNNING


def show(text: str) -> None:
    """Print a text with the very bytes it was decoded from."""
    sys.stdout.buffer.write(mi.encode(text))
    sys.stdout.flush()


def summary(sent: int, times_ms: list[float]) -> str:
    """The end of `--repeat`: how many requests were sent, how many got no reply, and the sorted times of the others."""
    received = len(times_ms)
    lost = sent - received
    text = f"--- {sent} sent, {received} received, {lost} lost ({100 * lost / max(sent, 1):.0f}%)\n"
    if received:
        p50, p99 = (times_ms[-(-received * percent // 100) - 1] for percent in (50, 99))
        text += f"--- ms: p50 {p50:.2f}, p99 {p99:.2f}, min {times_ms[0]:.2f}, max {times_ms[-1]:.2f}\n"
    return text


def split_argument(text: str) -> tuple[str | None, str]:
    """`name=value` of the command line as (name, value); other text is a value alone."""
    match = re.fullmatch(r"([A-Za-z_][\w.-]*)=(.*)", text, re.S)
    return (match.group(1), match.group(2)) if match else (None, text)


def words_of(line: str) -> list[str]:
    """The words of a line, which are quoted as in a shell; none of a comment. ValueError."""
    return [] if line.lstrip().startswith("#") else shlex.split(line)


def request_of(words: list[str], json_rpc: bool) -> bytes:
    """The request for COMMAND [ARG...] [-- ARG...] in one dialect; ValueError if it cannot be written."""
    at = words.index("--") if "--" in words else len(words)
    plain, literal = words[:at], words[at + 1:]
    name = (plain or literal).pop(0)
    return (json_request if json_rpc else text_request)(name, plain, literal)


def text_request(name: str, words: list[str], literal: list[str]) -> bytes:
    """The text request for a command with the arguments `words`, and `literal`, which are values as they are. ValueError."""
    return write_request(name, [*map(split_argument, words), *((None, word) for word in literal)])


def write_request(name: str, arguments: Iterable[tuple]) -> bytes:
    """The text request that reads back as this command and these (name, value) pairs; ValueError if none can."""
    request = mi.encode(f":{name}:\n" + "".join(mi.write_argument(*pair) for pair in arguments))
    if mi.first_line(name) is None:
        raise ValueError(f"a command's name cannot hold NUL, and a colon only as MODULE:NAME: {name!r}")
    if len(request) > mi.LIMIT:
        raise ValueError(f"the request has {len(request)} bytes, {mi.LIMIT} is the most")
    return request


def json_request(name: str, words: list[str], literal: list[str]) -> bytes:
    """The JSON-RPC request for that; params by name when all arguments have one. ValueError if it is too long."""
    arguments = [split_argument(word) for word in words]
    params: Any = [*map(json_argument, words), *literal]
    if not literal and all(key is not None for key, _ in arguments):
        params = {key: json_argument(value) for key, value in arguments}
    message = {"jsonrpc": "2.0", "id": 1, "method": name, **({"params": wrapped(name, params)} if params else {})}
    request = mi.encode(json.dumps(message, ensure_ascii=False))
    if len(request) > mi.LIMIT:
        raise ValueError(f"the request has {len(request)} bytes, {mi.LIMIT} is the most")
    return request


def wrapped(command: str, params: Any) -> Any:
    """The params of a command, with words as an array where OpenSIPS takes nothing else."""
    at, name = ARRAYS.get(command, (len(params), None))
    if isinstance(params, dict):
        return {key: shlex.split(value) if key == name and isinstance(value, str) else value for key, value in params.items()}
    words = params[at:]
    return [*params[:at], words] if words and all(isinstance(word, str) for word in words) else params


def json_argument(text: str):
    """An argument as a JSON value: an array or object where it is written as one, else the text itself; ValueError for one
    that is not written to its end."""
    if text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            if re.match(r'[\[{]\s*["\[{]', text):  # unlike [::1]:5060
                raise ValueError(f"{text} is no JSON: {error}; a text that is meant as it is comes after --") from None
    return text


def shown_json(reply: str) -> tuple[str, bool]:
    """The result of a JSON-RPC reply, or its error, indented, and whether it is a result; what is no JSON as received."""
    try:
        message = json.loads(reply)
    except (ValueError, RecursionError):
        return reply, False
    success = isinstance(message, dict) and "result" in message
    text = json.dumps(message["result"] if success else message, indent=2, ensure_ascii=False)
    return mi.decode(text.encode("utf-8", "backslashreplace")) + "\n", success


# What the prompt completes. The patterns fit the replies of both dialects as they
# are shown: `Process::  ID=1 PID=77`, and `"PID": 77`.

HISTORY_LINES = 1000
COMPLETION_S = 1.0  # TAB waits no longer for the server
COMMAND_NAMES = (("which",), r'(?m)^\s*"?([^\s",\[\]{}]+)"?,?$')
SIGNATURE = r'Help"?::? "?(.*?) - '
VALUES = {  # parameter: the command that lists its values, and where they are in its reply
    "statistics": (("list_statistics",), r'([\w.-]+:[\w.-]+)(?=::|")'),
    "event": (("events_list",), r"\b(E_\w+)"),
    "pid": (("ps",), r'PID"?[=:] ?(\d+)'),
    "mi_cmd": COMMAND_NAMES,
    "command": COMMAND_NAMES,
}


def history_file() -> str:
    """The file of the prompt's history: of a home that is another user's, as sudo may leave it, none is used; OSError."""
    home = os.path.expanduser("~")
    return os.path.join(home, ".midatagram_history") if os.stat(home).st_uid == os.geteuid() else os.devnull


class Prompt(cmd.Cmd):
    """Reads commands from a terminal, with history and completion where Python has readline."""

    prompt = "midatagram> "

    def __init__(self, client: Client):
        super().__init__()
        self.client = client
        self.listed = functools.lru_cache(self.list_values)  # for one line: the next one sees a reload or a restart
        with contextlib.suppress(ImportError, OSError):
            import readline

            readline.set_completer_delims(" \t\n=")
            if "libedit" in (readline.__doc__ or ""):  # some builds of Python have it instead
                readline.parse_and_bind("bind ^I rl_complete")
            readline.set_history_length(HISTORY_LINES)
            readline.read_history_file(history_file())

    def run(self) -> int:
        """Answer what is typed until `quit` or Ctrl-D; Ctrl-C drops a line, or ends the wait for a reply."""
        self.greet()
        while True:
            try:
                self.cmdloop()
                return mi.EXIT_OK
            except KeyboardInterrupt:
                print()

    def greet(self) -> None:
        """Print which server answers, or that none does."""
        try:
            text, _ = self.client.ask(["version"], COMPLETION_S)
        except OSError as error:
            self.client.no_reply(error)
            return
        server = re.search(r'(?m)Server"?::? "?(.+?)"?$', text)
        print(f"{server.group(1) if server else 'a server'} at {self.client.place}\n"
              "help or ? lists the commands, help COMMAND shows one, TAB completes, exit or Ctrl-D leaves")

    def list_commands(self) -> None:
        """Print the commands of the server in columns."""
        names = self.listed(*COMMAND_NAMES)
        self.columnize(names, shutil.get_terminal_size().columns) if names else self.client.run("which")

    def onecmd(self, line: str) -> bool:
        """Run a line; True ends the prompt. The history is written at once, for a lost connection ends the process."""
        if line == "EOF":
            print()
        line = re.sub(r"^\s*\?", "help ", line).strip()
        if line in (*ENDS, "EOF"):
            return True
        with contextlib.suppress(ImportError, OSError):
            import readline

            readline.write_history_file(history_file())
        try:
            self.list_commands() if line == "help" else self.client.run(line)
        except KeyboardInterrupt:
            print("\nmidatagram: interrupted", file=sys.stderr, flush=True)
        self.listed.cache_clear()
        return False

    def list_values(self, words: tuple, pattern: str) -> list[str]:
        """What a pattern matches in the reply to a command; nothing without a successful one."""
        try:
            text, success = self.client.ask(list(words), COMPLETION_S)
        except (OSError, ValueError):
            return []
        return re.findall(pattern, text) if success else []

    def parameters(self, command: str) -> list[tuple[str, bool]]:
        """(name, whether it may be repeated) of each parameter, from `help COMMAND`."""
        signature = "".join(self.listed(("help", command), SIGNATURE)[:1])
        return [(word.strip("[].").lower(), "..." in word) for word in signature.split()[1:]]

    def values(self, parameter: str) -> list[str]:
        """The values the server lists for a parameter."""
        return [f"{value} " for value in self.listed(*VALUES[parameter])] if parameter in VALUES else []

    def candidates(self, before: str) -> list[str]:
        """All that may follow the text of a line."""
        words = before.split()
        if not words:
            return [f"{name} " for name in [*self.listed(*COMMAND_NAMES), *ENDS]]
        if before.endswith("="):
            return self.values(words[-1][:-1])
        parameters = self.parameters(words[0])
        at = len(words) - 1
        here = parameters[at:at + 1] or [pair for pair in parameters[-1:] if pair[1]]
        named = here  # the text dialect goes by position, whatever the names are
        if self.client.json_rpc:
            used = {word.partition("=")[0] for word in words[1:]}
            named = [pair for pair in parameters if pair[0] not in used]
        return [*(value for name, _ in here for value in self.values(name)), *(f"{name}=" for name, _ in named)]

    def completenames(self, text: str, *where: Any) -> list[str]:
        """The candidates that start with the text; where: the line, and where the text begins and ends."""
        line, begin, _ = where
        return [word for word in self.candidates(line[:begin]) if word.startswith(text)]

    completedefault = complete_help = completenames


def place_of(options: argparse.Namespace) -> mi.Address:
    """The socket of -s or -f, else that of the first of CONFIGURATIONS whose server answers, else of the first; StartError."""
    if options.socket or options.file:
        return options.socket or mi.socket_of(options)
    first = None
    for path in filter(os.path.exists, CONFIGURATIONS):
        place = mi.socket_of(argparse.Namespace(file=path, socket=None))
        with contextlib.suppress(OSError):
            mi.ask(place, write_request("version", ()), COMPLETION_S)
            return place
        first = first or place
    return first or mi.socket_of(options)


def main(argv: list[str]) -> int:
    """`midatagram.py call`: send a request, print the reply; 0 for a success, 1 for an error, 3 for no reply."""
    at = argv.index("--") if "--" in argv else len(argv)
    options = call_parser().parse_intermixed_args(argv[:at])
    words = [word for word in (options.command, *options.arguments) if word is not None] + argv[at:]
    place = place_of(options)
    client = Client(place, options.timeout, options.json, options.quiet)
    try:
        if words in ([], ["--"]):
            return Prompt(client).run() if sys.stdin.isatty() and sys.stdout.isatty() else client.run_lines(sys.stdin.buffer)
        if options.count or options.every:
            return client.repeat(words, options.count or inf, options.every or 1.0)
        return client.run(words)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk under standard output
        raise mi.StartError(mi.EXIT_CRASH, str(error.strerror)) from None


def argument(converter: Callable) -> Callable:
    """A converter as the parsers want it, which then show what is wrong."""

    def convert(text: str) -> Any:
        try:
            return converter(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def seconds(text: str) -> float:
    """Converter: seconds, more than none and at most 1e6."""
    if not 0 < float(text) <= 1e6:
        raise ValueError("takes seconds, more than 0 and at most 1000000")
    return float(text)


def add_server(option: Callable) -> None:
    """Add the options that name a server."""
    option("-f", dest="file", metavar="FILE", help="ask the server of this configuration (default: midatagram.conf or "
           "midatagram.conf.example beside the script, or /etc/midatagram/midatagram.conf: the first whose server answers)")
    option("-s", dest="socket", metavar="SOCKET", type=argument(mi.address),
           help="ask the server at this socket, a UNIX path or udp:HOST:PORT")
    option("-t", dest="timeout", metavar="SECONDS", type=argument(seconds), default=5.0,
           help="wait at most this long for a reply (default: 5)")


def call_parser() -> argparse.ArgumentParser:
    """The command line of `call`."""
    parser = argparse.ArgumentParser(
        "midatagram.py call", description="Send an MI command to a server and print the reply. Without COMMAND, read "
        "commands from the terminal, or line by line from standard input.",
        epilog="Exit status: 0 the reply is 2xx or a result, 1 it is another, 2 usage, 3 no reply. With --repeat, 0 means that "
               "no reply was lost. With several lines, the status is that of the last line that failed.")
    option = parser.add_argument
    add_server(option)
    option("--json", action="store_true", help="use JSON-RPC: send an ARG that is a JSON array or object as such, "
           "and as an array what OpenSIPS takes only as an array, such as statistics")
    option("--repeat", dest="count", metavar="N", type=argument(mi.integer(1)),
           help="send the command N times, then print a summary")
    option("--every", metavar="S", type=argument(seconds),
           help="seconds between two requests (default: 1); without --repeat, repeat until Ctrl-C")
    option("--quiet", action="store_true", help="print no replies; with --repeat, print only the summary")
    option("command", metavar="COMMAND", nargs="?", help="MI command to send")
    option("arguments", metavar="ARG", nargs="*", help="argument of the command; NAME=VALUE sends VALUE by name "
           "(as NAME::VALUE in text); words after -- are sent unchanged")
    return parser
