"""plugins/trace_file.py: lines, files that are full, moved away or unusable, and a server that writes them."""

import errno
import json
import os
import signal
import sys
import time

import pytest
from conftest import PLUGINS, ROOT, free_port, run, wait_for
from hypothesis import given, settings
from traces import TRACE, TRACES, FakeContext

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import trace_file


def lines_of(path):
    """The traces in a file, as mi.Trace."""
    return [read_back(text) for text in path.read_text("ascii").splitlines() if text]


def read_back(text):
    """The trace of a line."""
    row = json.loads(text)
    exchange = mi.Exchange(**{name: row.pop(name) for name in mi.Exchange._fields})
    return mi.Trace(**row, exchange=exchange)


@settings(deadline=None)
@given(TRACES)
def test_a_line_holds_the_whole_trace(trace):
    text = trace_file.line(trace)
    assert text.endswith("\n") and "\n" not in text[:-1] and text.isascii()
    found, asked = read_back(text), trace.exchange
    assert found._replace(exchange=None, client=None, server=None) == trace._replace(exchange=None, client=None, server=None)
    assert mi.encode(found.exchange.request) == asked.request
    assert found.exchange.reply is None if asked.reply is None else mi.encode(found.exchange.reply) == asked.reply
    assert found.exchange[1:2] + found.exchange[3:5] == asked[1:2] + asked[3:5]
    assert found.exchange.parameters == (None if asked.parameters is None else list(asked.parameters))


def test_it_appends_and_is_opened_again(tmp_path):
    path, moved = tmp_path / "trace.jsonl", tmp_path / "trace.jsonl.1"
    one, other = (trace_file.TraceFile(str(path), FakeContext()) for _ in range(2))
    one.reopen()  # not open yet: nothing to do
    assert not path.exists()
    one.open()
    other.open()
    one.write([TRACE] * 2)
    other.write([TRACE])
    path.rename(moved)
    one.write([TRACE])
    one.reopen()
    one.write([TRACE])
    assert (len(lines_of(moved)), len(lines_of(path))) == (4, 1)
    one.close()
    one.close()
    other.close()
    assert path.stat().st_mode & 0o777 & ~0o640 == 0


def test_it_stays_with_the_old_file_when_a_new_one_cannot_be_opened(tmp_path, caplog):
    folder = tmp_path / "log"
    folder.mkdir()
    file = trace_file.TraceFile(str(folder / "trace.jsonl"), FakeContext())
    file.open()
    folder.rename(tmp_path / "moved")
    file.reopen()
    file.write([TRACE])
    file.close()
    assert "cannot be opened again" in caplog.text
    assert len(lines_of(tmp_path / "moved" / "trace.jsonl")) == 1


def test_a_line_after_a_torn_one_is_whole(tmp_path, monkeypatch):
    path = tmp_path / "trace.jsonl"
    file = trace_file.TraceFile(str(path), FakeContext())
    file.open()
    written, write = [], os.write

    def full_after_ten_bytes(descriptor, data):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(descriptor, data[:10]))
        return 10

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(os, "write", full_after_ten_bytes)
        file.write([TRACE])
    file.close()
    file.open()
    file.write([TRACE])
    file.close()
    torn, whole = path.read_text().splitlines()
    assert len(torn) == 10 and json.loads(whole)["command"] == "which"


def test_a_fifo_that_nobody_reads_is_an_error_not_a_wait(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="fifo"):
        trace_file.TraceFile(str(tmp_path / "fifo"), FakeContext()).open()


@pytest.mark.parametrize("value", ["trace.jsonl", "", 7])
def test_a_path_is_absolute(value):
    with pytest.raises(ValueError, match="takes a"):
        trace_file.absolute_path(value)


def test_without_a_path_there_is_no_destination():
    module = mi.Module("trace_file", vars(trace_file))
    assert trace_file.destinations(mi.Context(module)) == {}
    module.set("path", "/tmp/x", "f", 1)
    assert list(trace_file.destinations(mi.Context(module))) == ["trace_file"]


def test_a_server_writes_it_and_opens_it_again_on_sigusr1(start, tmp_path):
    path, moved = tmp_path / "trace.jsonl", tmp_path / "trace.jsonl.1"
    server = start('modparam("mi_datagram", "children_count", 2)\nloadmodule "trace_file.so"\n'
                   f'modparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\n')
    for number in range(50):
        assert server.ask(f":nosuch{number}:\n".encode()) == b"500 command not available\n"
    wait_for(lambda: path.exists() and len(lines_of(path)) == 50, what="50 lines")
    path.rename(moved)
    server.signal(signal.SIGUSR1)
    wait_for(path.exists, what="a new file")
    reply = server.ask(b":get_statistics:\nrequests\nreplies\n")

    def new_lines():
        return [trace for trace in lines_of(path) if trace.exchange.command == "get_statistics"]
    trace = wait_for(new_lines, what="a line in the new file")[0]
    assert trace.exchange[2:] == (["requests", "replies"], 200, "OK", reply.decode())
    assert trace.requested_s <= trace.replied_s and trace.server == server.place
    assert len(lines_of(moved)) == 50


def test_size_errors_late_replies_and_json_are_traced_too(start, tmp_path):
    path = tmp_path / "traces"
    server = start('loadmodule "mi_echo.so"\nloadmodule "trace_file.so"\n'
                   f'modparam("trace_file", "path", "{path}")\nmodparam("mi_datagram", "trace_destination", "trace_file")',
                   "-p", str(PLUGINS))
    slow = server.client()
    for _ in range(40):  # more than the client's queue holds: the last ones are late
        slow.send(b":echo:\nlate\n")
    server.ask(b":big:\n70000\n")
    server.ask(b":echo:\n" + b"x" * 70000)
    server.ask(b'{"jsonrpc":"2.0","method":"empty","params":["a"],"id":7}')
    server.ask(b'[{"jsonrpc":"2.0","method":"empty","id":8},{"jsonrpc":"2.0","method":"nosuch","id":9}]')
    assert [slow.receive() for _ in range(40)].count(None) == 0
    server.stop()
    traces = [json.loads(line) for line in path.read_text().splitlines()]
    found = [(trace["command"], trace["code"], trace["reason"]) for trace in traces]
    assert found.count(("echo", 200, "OK")) == 40
    assert ("big", 500, "reply of 70009 bytes exceeds 65457") in found
    assert ("", 400, "request of 70007 bytes exceeds 65457") in found
    assert max(len(trace["request"]) for trace in traces) == mi.LIMIT  # behind that is memory of ours
    assert found.count(("empty", 200, "OK")) == 2
    assert ("", 500, "command not available") in found


def test_each_trace_of_remembered_requests_tells_of_its_own(start, tmp_path):
    path = tmp_path / "traces"
    server = start(f'loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")')
    told = {
        b":get_statistics:\nrequests\n": ("get_statistics", ["requests"]),
        b":get_statistics:\nrequests\nreplies\n": ("get_statistics", ["requests", "replies"]),
        b":uptime:\n": ("uptime", []), b":get_statistics:\nnosuch\n": ("get_statistics", ["nosuch"]),
        b'{"jsonrpc":"2.0","method":"uptime","id":1}': ("uptime", []), b":nosuch:\n": ("", []),
        b'{"jsonrpc":"2.0","method":"get_statistics","params":{"statistics":["requests"]},"id":"a"}':
            ("get_statistics", ['["requests"]']),
    }
    asked = []
    for request in [*told, *told, *told, *[request for request in told for _ in range(5)]]:
        asked.append((request.decode(), server.ask(request).decode()))
    server.stop()
    traces = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(trace["request"], trace["reply"] or f"{trace['code']} {trace['reason']}\n") for trace in traces] == asked
    for trace in traces:
        command, parameters = told[trace["request"].encode()]
        assert (trace["command"], trace["parameters"] or []) == (command, parameters)


def test_parameters_that_are_traced(start, tmp_path):
    """Those of commands that read theirs; none where they are malformed, and where the handler failed."""
    path = tmp_path / "traces"
    server = start(f'loadmodule "mi_echo.so"\nloadmodule "trace_file.so"\nmodparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\nmodparam("midatagram", "handler_timeout", 100)',
                   "-p", str(PLUGINS))
    asked = [  # request, command, parameters, code
        (b":noinput:\na\n", "noinput", None, 200), (b":fail:\na\n", "fail", None, 500), (b":echo:\n\"a\n", "echo", None, 400),
        (b":code:\n500\nparse_error\n", "code", ["500", "parse_error"], 500), (b":big:\n70000\n", "big", ["70000"], 500),
        (b":msleep:\n60000\nx\n", "msleep", ["60000", "x"], 500), (b":echo:\nn::v\nw\n", "echo", ["v", "w"], 200),
        (b":nosuch:\na\n", "", None, 500),
    ]
    for request, *_ in asked:
        assert server.ask(request)
    server.stop()
    traces = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(trace["request"].encode(), trace["command"], trace["parameters"], trace["code"]) for trace in traces] == asked


def test_traces_of_a_burst_keep_their_order_clients_and_times(start, tmp_path):
    path = tmp_path / "traces"
    server = start(f'loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")', place=f"udp:127.0.0.1:{free_port()}")
    requests = (b":version:\n", b":version:\n", b":version:\n", b":get_statistics:\nreloads\n",
                b":get_statistics:\n reloads\n", b":nosuch:\n")  # the fourth and the fifth get the same reply
    clients, [child] = [server.client() for _ in range(4)], server.children()
    for request in requests * 3:
        server.ask(request)
    wait_for(lambda: path.exists() and path.read_text().count("\n") == 19, what="what was asked before")
    os.kill(child, signal.SIGSTOP)
    sent = [(clients[number % 4], request) for number, request in enumerate(requests * 8)]
    for client, request in sent:
        client.send(request)
    os.kill(child, signal.SIGCONT)
    replies = [client.receive().decode() for client, _ in sent]
    server.stop()
    traces = [json.loads(line) for line in path.read_text().splitlines()][19:]
    told = [(trace["client"][1], trace["request"].encode()) for trace in traces]
    assert told == [(client.socket.getsockname()[1], request) for client, request in sent]
    assert [trace["reply"] or f"{trace['code']} {trace['reason']}\n" for trace in traces] == replies
    times = [time_s for trace in traces for time_s in (trace["requested_s"], trace["replied_s"])]
    assert times == sorted(times) and len(set(times)) > len(sent)


def test_a_lone_request_is_traced_at_once(start, tmp_path):
    path = tmp_path / "traces"
    server = start(f'loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")')
    delays = []
    for number in range(1, 9):
        server.ask(b":version:\n")
        asked_s = time.monotonic()
        wait_for(lambda number=number: path.exists() and path.read_text().count("\n") == number, what="the trace")
        delays.append(time.monotonic() - asked_s)
        time.sleep(0.02)  # the loop waits again
    assert sorted(delays)[4] < 0.1, "the median, while the server looks around twice a second"


SLOW_LIVE = '''
"""slow_live -- a kept reply whose value, always the same, takes a while."""

import time

import midatagram as mi


def read():
    time.sleep(0.01)
    return (7,)


@mi.command
def slow_live(ctx):
    "Seven, after a hundredth of a second."
    return mi.Reply(nodes=[mi.Node("seven", mi.LIVE)], live=read)
'''


def test_replies_whose_values_take_a_while_are_all_traced(start, tmp_path):
    (tmp_path / "slow_live.py").write_text(SLOW_LIVE)
    path = tmp_path / "traces"
    server = start(f'loadmodule "slow_live.so"\nloadmodule "trace_file.so"\nmodparam("trace_file", "path", "{path}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\nmodparam("midatagram", "pool_size", 2)',
                   "-p", str(tmp_path), place=f"udp:127.0.0.1:{free_port()}")
    with server.client() as client:
        for _ in range(3):
            client.ask(b":slow_live:\n")
        for _ in range(40):
            client.send(b":slow_live:\n")
        replies = {client.receive() for _ in range(40)}
    assert replies == {b"200 OK\nseven:: 7\n\n"}
    server.stop()
    traces = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(traces) == 43
    assert all(trace["replied_s"] - trace["requested_s"] > 0.009 for trace in traces)


def test_a_path_that_cannot_be_written_is_said_by_its_line(start, tmp_path):
    """At the start and by -c, where it is no error: the folder may be made later."""
    lines = 'modparam("mi_datagram", "trace_destination", "trace_file")\nloadmodule "trace_file.so"\n'
    for path, why in ((tmp_path / "none" / "trace", f"has no folder; mend: mkdir -p {tmp_path}/none"),
                      (tmp_path, "is a folder; name a file in it")):
        server = start(f'{lines}modparam("trace_file", "path", "{path}")\n')
        wanted = f"{server.config_path}:4: path {path} {why}\n"
        assert f"WARNING:midatagram: {wanted}" in server.log
        done = run("-c", "-f", server.config_path)
        assert (done.returncode, done.stdout) == (0, f"WARNING: {wanted}{server.config_path}: OK, with the warnings above\n")
        server.stop()
    server.write(f'{lines}modparam("trace_file", "path", "{tmp_path}/trace")\n')
    assert run("-c", "-f", server.config_path).stdout == f"{server.config_path}: OK\n"


def test_a_folder_that_is_missing_is_named_whole(tmp_path):
    path = tmp_path / "none" / "trace.jsonl"
    with pytest.raises(FileNotFoundError, match=f"{path}"):
        trace_file.TraceFile(str(path), FakeContext()).open()
