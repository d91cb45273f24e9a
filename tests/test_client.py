"""The client, `midatagram.py call`: both dialects, lines from a pipe, --repeat, and the prompt in a real terminal."""

import contextlib
import functools
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
import threading

import pexpect
import pytest
from conftest import ROOT, SCRIPT, needs_root, run

import midatagram as mi

PROMPT = "midatagram> "
TAB, CTRL_C, CTRL_D, UP = "\t", "\x03", "\x04", "\x1b[A"
ENDING = (pexpect.EOF, pexpect.TIMEOUT)


def call(place, *arguments, lines=None):
    """Run the client to its end; gives what subprocess.run() gives."""
    return subprocess.run([sys.executable, str(SCRIPT), "call", "-s", str(place), *arguments], input=lines,
                          stdin=subprocess.DEVNULL if lines is None else None, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def stand_in(path, answer):
    """A datagram server of one thread: answer(request, number from 1, client) gives (datagram, client) pairs to send."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(str(path))
        server.settimeout(0.1)
        stop = threading.Event()

        def serve():
            number = 0
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    request, client = server.recvfrom(1 << 18)
                    number += 1
                    for reply, to in answer(request, number, client):
                        with contextlib.suppress(OSError):
                            server.sendto(reply, to)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            stop.set()
            thread.join(5)


@pytest.fixture
def terminal(tmp_path):
    """Start the client in a terminal of its own, its home in the test's folder; all are ended with the test."""
    spawned = []

    def open_terminal(place, *arguments, ready=True):
        environment = {**os.environ, "HOME": str(tmp_path), "TERM": "dumb", "INPUTRC": "/dev/null"}
        child = pexpect.spawn(sys.executable, [str(SCRIPT), "call", "-s", str(place), *arguments], env=environment,
                              encoding="utf-8", timeout=10, dimensions=(50, 200),
                              preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))  # it may be ignored here
        spawned.append(child)
        if ready:
            child.expect_exact(PROMPT)
        return child

    yield open_terminal
    for child in spawned:
        child.close(force=True)


@pytest.fixture
def server(start):
    """A server with one child."""
    return start("")


def end_of(child):
    """Wait for the end of a client; gives its exit status."""
    child.expect(pexpect.EOF)
    child.close()
    return child.exitstatus


# One request ----------------------------------------------------------------


def test_text_is_printed_as_received(server):
    done = call(server.place, "which")
    assert done.returncode == 0 and done.stdout.encode() == server.ask(b":which:\n")


def test_options_may_follow_the_command(server):
    assert call(server.place, "help", "-t", "3", "which").stdout.startswith("200 OK\nHelp:: which")


def test_an_error_reply_gives_status_1(server):
    done = call(server.place, "nosuch")
    assert (done.returncode, done.stdout) == (1, "500 command not available\n")


def test_no_reply_gives_status_3(tmp_path):
    done = call(tmp_path / "nobody", "uptime")
    assert done.returncode == 3 and done.stdout == "" and "no reply from" in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_timeout_of_t(tmp_path):
    with stand_in(tmp_path / "s", lambda *_: []) as place:
        assert call(place, "-t", "0.2", "uptime").returncode == 3


@pytest.mark.parametrize("option, wanted", [
    (("-t", "0"), "takes seconds"), (("-t", "nan"), "takes seconds"), (("--repeat", "0"), "an integer of at least 1"),
    (("--repeat", "2.5"), "an integer of at least 1"), (("--every", "-1"), "takes seconds"), (("-s", "udp:x"), "udp:HOST:PORT"),
])
def test_a_wrong_number_or_address_is_a_usage_error(tmp_path, option, wanted):
    done = call(tmp_path / "nobody", *option, "uptime")
    assert done.returncode == 2 and wanted in done.stderr


def test_without_a_command_lines_are_read_whatever_the_options(server):
    assert call(server.place, "--repeat", "2", lines="pwd\n").stdout.count("200 OK") == 1


@pytest.mark.parametrize("words, sent", [
    (["f", "a", "b c"], b":f:\na\nb c\n"),
    (["f", "x=1", "y="], b':f:\nx::1\ny::""\n'),
    (["f", " a"], b':f:\n" a"\n'),
    (["f", "a=b", "--", "c=d", "-x", "--json", "--", "e="], b':f:\na::b\nc=d\n-x\n--json\n--\ne=\n'),
    (["--", "f", "-x", "a::b"], b':f:\n-x\n"a::b"\n'),
    (["--", "-f"], b":-f:\n"),
])
def test_arguments_in_text(tmp_path, words, sent):
    got = []
    with stand_in(tmp_path / "s", lambda request, _, client: got.append(request) or [(b"200 OK\n\n", client)]) as place:
        assert call(place, *words).returncode == 0
    assert got == [sent]


def test_nothing_is_left_behind(tmp_path):
    clients = []

    def answer(request, _, client):
        clients.append(client)
        return [(b"200 OK\n\n", client)]

    with stand_in(tmp_path / "s", answer) as place:
        call(place, "uptime")
        assert os.listdir(tmp_path) == ["s"]
    assert clients[0][:1] == b"\0"


# JSON-RPC ---------------------------------------------------------------------


def test_json_result_is_printed_pretty(server):
    done = call(server.place, "--json", "which")
    assert done.returncode == 0
    assert done.stdout == json.dumps(json.loads(done.stdout), indent=2) + "\n" and "uptime" in json.loads(done.stdout)


def test_json_error_is_printed_and_gives_status_1(server):
    done = call(server.place, "--json", "nosuch")
    message = json.loads(done.stdout)
    assert done.returncode == 1 and message["error"]["code"] == -32601 and done.stdout.count("\n") > 4


@pytest.mark.parametrize("words, params", [
    ([], None),
    (["a", "7"], ["a", "7"]),
    (["x=1", "y=b c"], {"x": "1", "y": "b c"}),
    (["x=1", "b"], ["x=1", "b"]),
    (['["core:"]'], [["core:"]]),
    (['statistics=["core:"]'], {"statistics": ["core:"]}),
    (["[no", "{"], ["[no", "{"]),
    (["[1]", "--", "[1]", "a=b"], [[1], "[1]", "a=b"]),
    (["x=1", "--"], {"x": "1"}),
])
def test_json_params(tmp_path, words, params):
    check_params(tmp_path, "f", words, params)


@pytest.mark.parametrize("word", ['["core:"', 'statistics=["core:"', '{"a": 1,}', "[[1]"])
def test_json_that_is_broken_is_not_sent(tmp_path, word):
    done = run("call", "-s", tmp_path / "none", "--json", "f", word)
    assert done.returncode == 2 and done.stderr.startswith(f"midatagram: {word.removeprefix('statistics=')} is no JSON: ")
    assert done.stderr.endswith("; a text that is meant as it is comes after --\n")
    assert run("call", "-s", tmp_path / "none", "--json", "f", "[::1]:5060", "--", word).returncode == 3


@pytest.mark.parametrize("command, words, params", [
    ("get_statistics", ["core:"], [["core:"]]), ("get_statistics", ["core:", "shmem:"], [["core:", "shmem:"]]),
    ("statistics:get", ["statistics=core: shmem:"], {"statistics": ["core:", "shmem:"]}),
    ("get_statistics", ['["core:"]'], [["core:"]]), ("get_statistics", ['statistics=["a b"]'], {"statistics": ["a b"]}),
    ("list_statistics", [], None), ("reset_statistics", ["--", "a=b"], [["a=b"]]),
    ("raise_event", ["E_X"], ["E_X"]), ("raise_event", ["E_X", "a", "b"], ["E_X", ["a", "b"]]),
    ("raise_event", ["E_X", '{"a": "b"}'], ["E_X", {"a": "b"}]), ("evi:raise", ["event=E_X", "params=a"],
                                                                  {"event": "E_X", "params": ["a"]}),
    ("dlg_push_var", ["name", "value", "1", "2"], ["name", "value", ["1", "2"]]),
    ("b2b_trigger_scenario", ["s", "1", "2", "3"], ["s", "1", "2", ["3"]]),
])
def test_what_opensips_takes_as_an_array_only_is_one(tmp_path, command, words, params):
    check_params(tmp_path, command, words, params)


def test_statistics_over_json(server):
    assert json.loads(call(server.place, "--json", "get_statistics", "core:").stdout)["core:timestamp"] >= 0


def check_params(tmp_path, command, words, params):
    """The client must send a command with these words as that request."""
    got = []

    def answer(request, _, client):
        got.append(json.loads(request))
        return [(b'{"jsonrpc":"2.0","result":"\xc3\xa9","id":1}', client)]

    with stand_in(tmp_path / "s", answer) as place:
        done = call(place, "--json", command, *words)
    assert (done.returncode, done.stdout) == (0, '"é"\n')
    assert got[0]["method"] == command and got[0]["jsonrpc"] == "2.0" and "id" in got[0] and got[0].get("params") == params


def test_a_reply_that_is_not_json_is_printed_as_received(tmp_path):
    with stand_in(tmp_path / "s", lambda request, _, client: [(b"400 Parse_error\n", client)]) as place:
        done = call(place, "--json", "f")
    assert (done.returncode, done.stdout) == (1, "400 Parse_error\n")


# --repeat ---------------------------------------------------------------------


def test_repeat_ends_with_a_summary(server):
    done = call(server.place, "--repeat", "5", "--every", "0.01", "uptime")
    assert done.returncode == 0 and done.stdout.count("200 OK") == 5
    assert "5 sent, 5 received, 0 lost (0%)" in done.stdout
    figures = re.search(r"p50 ([\d.]+), p99 ([\d.]+), min ([\d.]+), max ([\d.]+)", done.stdout)
    p50, p99, least, most = map(float, figures.groups())
    assert 0 < least <= p50 <= p99 <= most


def test_quiet_leaves_the_summary(server):
    done = call(server.place, "--quiet", "--repeat", "5", "--every", "0.01", "uptime")
    assert done.returncode == 0 and re.fullmatch("--- 5 sent, 5 received, .*\n--- ms: .*\n", done.stdout)
    done = call(server.place, "nosuch", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


def test_a_late_reply_is_not_the_next_ones(tmp_path):
    waiting = []

    def answer(request, number, client):
        if number == 1:
            waiting.append(client)
            return []
        return [(b"200 late\n\n", waiting[0]), (b"200 number %d\n\n" % number, client)]

    with stand_in(tmp_path / "s", answer) as place:
        done = call(place, "-t", "0.3", "--repeat", "3", "--every", "0.01", "f")
    assert done.returncode == 3 and "3 sent, 2 received, 1 lost (33%)" in done.stdout
    assert "late" not in done.stdout and "number 2" in done.stdout and "number 3" in done.stdout


def test_a_reply_from_another_socket_is_one(tmp_path):
    """As OpenSIPS sends it over UNIX."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        server.bind(f"{tmp_path}/mi.sock")
        server.settimeout(20)
        thread = threading.Thread(target=lambda: other.sendto(b"200 OK\n\n", server.recvfrom(1000)[1]))
        thread.start()
        assert call(f"{tmp_path}/mi.sock", "uptime").stdout == "200 OK\n\n"
        thread.join()


def test_ctrl_c_ends_repeat_with_the_summary(server, terminal):
    child = terminal(server.place, "--every", "30", "uptime", ready=False)
    child.expect_exact("200 OK")
    child.expect("Up time.*\n")
    child.send(CTRL_C)
    child.expect_exact("1 sent, 1 received, 0 lost")
    assert end_of(child) == 0


# Lines from a pipe ------------------------------------------------------------


def test_lines_of_a_pipe_are_commands(server):
    done = call(server.place, lines="cache_store local k 'a b'\n\ncache_fetch local k\n")
    assert done.returncode == 0 and "a b" in done.stdout
    assert PROMPT not in done.stdout + done.stderr and "\x1b" not in done.stdout


@pytest.mark.parametrize("lines, status", [
    ("# nosuch\n  #nosuch 'it\nuptime\n", 0), ("uptime\nexit\nnosuch\n", 0), ("--\nuptime -- -x=y\n", 0),
    ("nosuch\nuptime\n", 1), ("uptime 'open\nuptime\n", 2), ("uptime\nquit\nnosuch\n", 0), ("", 0)])
def test_the_status_of_several_lines(server, lines, status):
    assert call(server.place, lines=lines).returncode == status


# The prompt -------------------------------------------------------------------


def test_prompt_answers_and_quits(server, terminal):
    child = terminal(server.place)
    child.sendline("uptime")
    child.expect_exact("200 OK")
    child.expect_exact(PROMPT)
    child.sendline("help cache_store")
    child.expect_exact("cache_store SYSTEM ATTR VALUE [EXPIRE]")
    child.expect_exact(PROMPT)
    child.sendline("quit")
    assert end_of(child) == 0


@pytest.mark.parametrize("dialect", [(), ("--json",)])
def test_prompt_says_who_answers(server, terminal, dialect):
    child = terminal(server.place, *dialect)
    assert f"midatagram ({mi.__version__} (x86_64/linux)) at {server.place}" in child.before.replace(os.uname().machine, "x86_64")


@pytest.mark.parametrize("typed", ["help", " ? ", "?"])
@pytest.mark.parametrize("dialect", [(), ("--json",)])
def test_help_alone_lists_the_commands(server, terminal, dialect, typed):
    child = terminal(server.place, *dialect)
    child.sendline(typed)
    child.expect_exact(PROMPT)
    names = server.ask(b":which:\n").decode().split()[2:]
    assert set(names) <= set(child.before.split()) and child.before.count("\n") < len(names)


def test_prompt_knows_exit_and_comments(server, terminal):
    child = terminal(server.place)
    child.sendline("# what 'follows")
    child.expect_exact(PROMPT)
    assert child.before.count("\n") == 1
    child.sendline("?which")
    child.expect_exact("Help:: which")
    child.expect_exact(PROMPT)
    child.sendline(" exit ")
    assert end_of(child) == 0


def test_ctrl_d_ends_the_prompt(server, terminal):
    child = terminal(server.place)
    child.send(CTRL_D)
    assert end_of(child) == 0


def test_ctrl_c_drops_the_line(server, terminal):
    child = terminal(server.place)
    child.send("nosuch")
    child.expect_exact("nosuch")
    child.send(CTRL_C)
    child.expect_exact(PROMPT)
    child.sendline("pwd")
    child.expect_exact("200 OK")


def test_ctrl_c_ends_the_waiting(tmp_path, terminal):
    asked = threading.Event()
    with stand_in(tmp_path / "s", lambda request, *_: request == b":uptime:\n" and asked.set() or []) as place:
        child = terminal(place, "-t", "60")
        child.sendline("uptime")
        assert asked.wait(10)
        child.send(CTRL_C)
        child.expect_exact("interrupted")
        child.expect_exact(PROMPT)
        child.send(CTRL_D)
        assert end_of(child) == 0


@pytest.mark.parametrize("typed, shown", [
    ("upt", "uptime "),
    ("cache_s", "cache_store "),
    ("help list_b", "help list_blacklists "),
    ("cache_fetch sys", "cache_fetch system="),
    ("event_subscribe E_MI_S", "event_subscribe E_MI_STOP "),
    ("event_subscribe event=E_MI_R", "event_subscribe event=E_MI_RELOAD "),
    ("get_statistics core:timest", "get_statistics core:timestamp "),
    ("qu", "quit "),
])
@pytest.mark.parametrize("dialect", [(), ("--json",)])
def test_tab_completes(server, terminal, dialect, typed, shown):
    child = terminal(server.place, *dialect)
    child.send(typed + TAB)
    child.expect_exact(shown)


def test_tab_completes_a_process(server, terminal):
    pid, attendant = str(server.children()[0]), str(server.pid)
    least = pid[:len(os.path.commonprefix([pid, attendant])) + 1]
    child = terminal(server.place)
    child.send(f"log_level 3 {least}{TAB}")
    child.expect_exact(f"log_level 3 {pid} ")  # the blank at least is not what was typed


def test_help_of_the_command_line():
    done = subprocess.run([sys.executable, str(SCRIPT), "call", "--help"], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and "--repeat" in done.stdout


def test_json_completes_any_name_that_is_left(server, terminal):
    child = terminal(server.place, "--json")
    child.send(f"cache_fetch attr=k sys{TAB}")
    child.expect_exact("system=")


def test_history_is_kept(server, terminal, tmp_path):
    child = terminal(server.place)
    child.sendline("help which")
    child.expect_exact(PROMPT)
    child.kill(signal.SIGHUP)  # a lost connection
    child.expect(list(ENDING))
    assert (tmp_path / ".midatagram_history").read_text().splitlines()[-1] == "help which"
    again = terminal(server.place)
    again.send(UP)
    again.expect_exact("help which")


def test_history_is_bounded(server, terminal, tmp_path):
    history = tmp_path / ".midatagram_history"
    history.write_text("".join(f"line {number}\n" for number in range(3000)))
    child = terminal(server.place)
    child.sendline("pwd")
    child.expect_exact("200 OK")
    lines = history.read_text().splitlines()
    assert len(lines) == 1000 and lines[-2:] == ["line 2999", "pwd"]


def test_history_that_cannot_be_written_is_no_matter(server, terminal, tmp_path):
    (tmp_path / ".midatagram_history").mkdir()
    child = terminal(server.place)
    child.sendline("pwd")
    child.expect_exact("200 OK")
    assert "history" not in child.before and "Traceback" not in child.before


def test_unreachable_server_gives_one_line_and_the_prompt_goes_on(tmp_path, terminal):
    child = terminal(tmp_path / "nobody")
    assert child.before.endswith(f"no reply from {tmp_path}/nobody: No such file or directory\r\n")
    for _ in range(2):
        child.sendline("uptime")
        child.expect_exact("no reply from")
        child.expect_exact(PROMPT)
        assert child.before.count("\n") == 1
    with stand_in(tmp_path / "nobody", lambda request, _, client: [(b"200 back\n\n", client)]):
        child.sendline("uptime")
        child.expect_exact("200 back")


def test_tab_without_a_server_only_offers_quit(tmp_path, terminal):
    child = terminal(tmp_path / "nobody")
    child.send(f"qu{TAB}")
    child.expect_exact("quit ")


def test_a_quote_left_open_gives_one_line(server, terminal):
    child = terminal(server.place)
    child.sendline("uptime 'open")
    child.expect_exact("No closing quotation")
    child.expect_exact(PROMPT)


# Without -s --------------------------------------------------------------------


def test_call_without_s_finds_what_runs_beside_it(start, tmp_path):
    script = copied(tmp_path, **{name: (ROOT / f"plugins/{name}.py").read_text() for name in ("call", "asking")})
    asking = functools.partial(run_tool, script, "call", "whose")
    for name, file in (("example", "midatagram.conf.example"), ("own", "midatagram.conf")):
        (tmp_path / f"{name}.py").write_text(f'import midatagram as mi\n@mi.command\ndef whose(ctx):\n    "W."\n'
                                             f'    return mi.Reply(200, "{name}")\n')
        (tmp_path / file).write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/{name}.sock")\n')
    done = asking()
    assert done.returncode == 3 and f"no reply from {tmp_path}/own.sock" in done.stderr
    example = start(f'loadmodule "{tmp_path}/example.py"', place=f"{tmp_path}/example.sock")
    assert asking().stdout == "200 example\n\n"
    start(f'loadmodule "{tmp_path}/own.py"', place=f"{tmp_path}/own.sock")
    assert asking().stdout == "200 own\n\n"
    assert asking("-f", f"{tmp_path}/midatagram.conf.example").stdout == "200 example\n\n"
    example.stop()
    assert asking("-f", f"{tmp_path}/midatagram.conf.example").returncode == 3


# Tools: plug-ins that `midatagram.py NAME` runs.


def copied(folder, **tools):
    """A copy of the script in a folder, and these plug-ins beside it."""
    (folder / "plugins").mkdir()
    for name, code in tools.items():
        (folder / "plugins" / f"{name}.py").write_text(code)
    return shutil.copy(SCRIPT, folder)


def run_tool(script, *words):
    """Run `midatagram.py WORDS...` of a copy."""
    return subprocess.run([sys.executable, script, *words], capture_output=True, text=True, timeout=30)


def test_a_plug_in_with_main_is_a_tool(tmp_path):
    script = copied(tmp_path, twice="import midatagram as mi\ndef main(argv):\n    print(argv, mi.LIMIT)\n    return 7\n",
                    plain="X = 1\n", broken="def main(:\n")
    done = run_tool(script, "twice", "a", "-c")
    assert (done.returncode, done.stdout, done.stderr) == (7, "['a', '-c'] 65457\n", "")
    for name in ("plain", "none", "call", "../twice/x"):
        done = run_tool(script, name)
        assert done.returncode == 2 and done.stderr.startswith("usage: midatagram.py ")
        assert done.stderr.endswith(f'error: there is no tool "{name}" in {tmp_path}/plugins\n')
    done = run_tool(script, "broken")
    assert done.returncode == 78 and done.stderr.startswith(f"midatagram: {tmp_path}/plugins/broken.py:1: syntax error")


@pytest.mark.parametrize("name, wanted", [
    ("lab.cfg", "a configuration is read with -f: midatagram.py -f lab.cfg"),
    ("call.conf", "a configuration is read with -f: midatagram.py -f call.conf"),
    ("/etc/opensips/opensips.cfg", "a configuration is read with -f: midatagram.py -f /etc/opensips/opensips.cfg"),
    ("settings", "a configuration is read with -f: midatagram.py -f settings"),
    ("callx", 'the tools are call, gateway, lab, record, verify; did you mean "call"?'),
    ("hello", "the tools are call, gateway, lab, record, verify"),
])
def test_what_is_no_tool_gets_the_right_form(tmp_path, name, wanted):
    """A file that is called as a tool, too."""
    (tmp_path / "settings").write_text("")
    done = subprocess.run([sys.executable, SCRIPT, name], capture_output=True, text=True, timeout=30, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.endswith(f'there is no tool "{name}" in {ROOT}/plugins; {wanted}\n')


def test_a_lone_script_says_what_canned_replies_need(tmp_path):
    script = copied(tmp_path)
    (tmp_path / "mine.conf").write_text("[x]\nreply = y\n")
    done = run_tool(script, "-c", "-s", f"{tmp_path}/s", "-p", str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert f"mine.conf: to read canned replies, canned_replies.py is needed in {tmp_path}/plugins" in done.stderr


def test_a_lone_plug_in_says_what_tracing_needs(tmp_path):
    files = {name: (ROOT / f"plugins/{name}.py").read_text() for name in ("trace_file", "log_file")}
    script = copied(tmp_path, **files)
    configuration = tmp_path / "mi.conf"
    configuration.write_text('loadmodule "trace_file.so"\nmodparam("trace_file", "path", "/tmp/trace")\n')
    done = run_tool(script, "-c", "-f", str(configuration), "-s", f"{tmp_path}/s")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert f"trace_file.py: to trace, tracing.py is needed in {tmp_path}/plugins" in done.stderr


def test_a_lone_plug_in_says_what_standing_around_commands_needs(tmp_path):
    script = copied(tmp_path, mine="import midatagram as mi\n\n@mi.around\ndef all(ctx, request, proceed):\n    return\n")
    done = run_tool(script, "-c", "-s", f"{tmp_path}/s", "-p", f"{tmp_path}/plugins")
    assert (done.returncode, done.stderr.count("\n")) == (78, 1)
    assert f"mine.py: to stand around commands, around.py is needed in {tmp_path}/plugins" in done.stderr


def test_root_runs_tools_of_who_owns_the_script():
    needs_root()
    place = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    try:
        script = copied(place, mine="def main(argv):\n    return 5\n")
        os.chmod(place, 0o755)
        for path in (place, place / "plugins", place / "plugins" / "mine.py"):
            os.chown(path, 65534, 65534)
        done = run_tool(script, "mine")
        assert done.returncode == 78 and "can be written by others than root" in done.stderr
        os.chown(script, 65534, 65534)
        assert run_tool(script, "mine").returncode == 5
    finally:
        shutil.rmtree(place)
