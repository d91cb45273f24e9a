"""JSON-RPC beyond the recordings: batches, notifications, sizes, choosing the dialect, plug-ins, events."""

import json
import socket

import pytest
from conftest import PLUGINS, wait_for

TEXT_ERROR = b"500 command not available\n"


def rpc(method, params=None, **more):
    """A request as bytes; id 1 unless told."""
    return json.dumps({"jsonrpc": "2.0", "method": method, **({} if params is None else {"params": params}),
                       **({"id": 1} if "id" not in more else {}), **more}).encode()


def note(method, params=None):
    """A notification."""
    return rpc(method, params, id=0).replace(b', "id": 0', b"")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """One server with the shipped plug-ins and some of the tests'."""
    from conftest import Server

    folder = tmp_path_factory.mktemp("beyond")
    (folder / "lab.conf").write_text(LAB)
    (folder / "named.py").write_text(NAMED)
    found = Server(folder, 'loadmodule "hello.so"\nloadmodule "lab.so"\nloadmodule "named.so"\nloadmodule "mi_echo.so"\n'
                   'loadmodule "opensips_core.so"\n', "-p", str(folder), "-p", str(PLUGINS))
    yield found
    found.stop()
    found.close()


LAB = """
[dump]
reply = '''
Process::  ID=0 Type=one two
Process::  ID=1 Type=three
AOR:: a b=c
	Contact:: sip:x
	Contact:: sip:y
'''
[exact]
reply = "as text"
json = '{"as": ["json", 1.5, null]}'
[gone]
code = 404
reason = Not here
"""
NAMED = '''
import midatagram as mi

@mi.command(level=mi.integer(0, 5))
def mixed(ctx, user, level=3, *others):
    """Show what was bound."""
    return mi.Reply(result=[user, level, list(others)], nodes=[mi.Node(None, f"{user} {level} {others}")])

@mi.command(json=mi.JsonForm(recipes=[("b", "a")]))
def swapped(ctx, a, b):
    """Show the order."""
    return mi.Reply(nodes=[mi.Node("a", a), mi.Node("b", b)])
'''


def result(server, request):
    """The result of a request."""
    return json.loads(server.ask(request))["result"]


def test_a_batch_is_answered_in_order_without_its_notifications(server):
    batch = b"[%s, %s, 5, %s]" % (rpc("mixed", ["x"], id="a"), note("mixed", ["y"]), rpc("nosuch", id=2.5))
    replies = json.loads(server.ask(batch))
    assert [reply["id"] for reply in replies] == ["a", None, 2.5]
    assert replies[0]["result"] == ["x", 3, []]
    assert [reply["error"]["code"] for reply in replies[1:]] == [-32600, -32601]


def test_batches_with_nothing_to_answer(server):
    before = server.statistic("notifications")
    client = server.client()
    client.send(b"[%s,%s]" % (note("uptime"), note("nosuch")))
    assert client.receive(0.3) is None
    assert server.statistic("notifications") == before + 1
    invalid = {"jsonrpc": "2.0", "error": {"code": -32600, "message": "Invalid Request"}, "id": None}
    assert json.loads(client.ask(b"[]")) == invalid
    assert json.loads(client.ask(b"[[]]")) == [invalid]


@pytest.mark.parametrize("request_", [note("cache_fetch", ["local", "none"]), note("nosuch"), note("ps", [1]), note("fail")])
def test_a_notification_gets_nothing_not_even_an_error(server, request_):
    client = server.client()
    client.send(request_)
    assert client.receive(0.2) is None
    assert client.ask(rpc("pwd"))


@pytest.mark.parametrize("request_id", [0, -1, 2**63, 10**40, "0", "", "é\n", None, 1.5])
def test_ids_come_back_as_they_are(server, request_id):
    assert json.loads(server.ask(rpc("pwd", id=request_id)))["id"] == request_id


def test_sizes(server):
    assert server.ask(b'{"jsonrpc":"2.0","method":"pwd","id":1' + b" " * 66000 + b"}") == b"400 Parse_error"
    assert server.ask(rpc("big", ["70000"])) == b"500 Internal error"
    assert server.ask(b"[%s]" % b",".join([rpc("big", ["9000"])] * 8)) == b"500 Internal error"
    assert len(server.ask(rpc("big", ["65000"]))) > 65000


@pytest.mark.parametrize("value", ["9" * 60000, "[" * 30000 + "]" * 30000, "[" * 65000, '{"a":' * 10000])
def test_a_hard_request_stalls_nobody(server, value):
    client = server.client()
    client.send(b'{"jsonrpc":"2.0","method":"pwd","id":1,"x":%s}' % value.encode()[:65400])
    assert server.ask(b":pwd:\n").startswith(b"200")
    assert client.receive() is not None


@pytest.mark.parametrize("request_, text", [
    (b":pwd:\n", True), (b" :ps:", True), (b"5", True), (b'"x"', True), (b" \t\r\n{", False), (b"\x01[", False), (b"\0{", True)])
def test_the_first_byte_decides(server, request_, text):
    reply = server.ask(request_)
    assert (reply.startswith(b"200 OK\n") or reply == TEXT_ERROR) if text else reply == b"400 Parse_error"


@pytest.mark.parametrize("params, wanted", [
    (["x"], ["x", 3, []]), (["x", 5], ["x", 5, []]), (["x", "2", "y", 7], ["x", 2, ["y", "7"]]), ({"user": "x"}, ["x", 3, []]),
    ({"level": 1, "user": "x"}, ["x", 1, []]), ({"user": "x", "level": 0, "others": ["p", "q"]}, ["x", 0, ["p", "q"]])])
def test_one_handler_binds_by_position_and_by_name(server, params, wanted):
    assert result(server, rpc("mixed", params)) == wanted


@pytest.mark.parametrize("params, data", [
    ([], "Too few or too many parameters"), ({"usr": "x"}, "Named parameters do not match"),
    (["x", 6], "Bad type for parameter 'level'"), ([None], "Bad type for parameter 'user'"),
    ({"user": "x", "level": 1, "others": []}, "Empty array in parameter 'others'")])
def test_what_does_not_bind_is_told(server, params, data):
    assert json.loads(server.ask(rpc("mixed", params)))["error"] == {"code": -32602, "message": "Invalid params", "data": data}


def test_recipes_of_its_own(server):
    assert result(server, rpc("swapped", ["1", "2"])) == {"a": "2", "b": "1"}
    assert result(server, rpc("which", ["swapped"])) == [["b", "a"]]
    assert server.ask(b":swapped:\n1\n2\n") == b"200 OK\na:: 1\nb:: 2\n\n"


def test_canned_replies(server):
    assert result(server, rpc("dump")) == {
        "Process": [{"ID": "0", "Type": "one two"}, {"ID": "1", "Type": "three"}],
        "AOR": {"AOR": "a b=c", "Contact": ["sip:x", "sip:y"]}}
    assert result(server, rpc("exact", {"any": "name"})) == {"as": ["json", 1.5, None]}
    assert json.loads(server.ask(rpc("gone")))["error"] == {"code": 404, "message": "Not here"}
    assert server.ask(b":exact:\n") == b"200 OK\nas text\n\n"


def test_the_same_request_again_is_answered_anew(server):
    request = rpc("get_statistics", [["greetings"]])
    counts = []
    for _ in range(4):
        counts.append(result(server, request)["hello:greetings"])
        server.ask(rpc("hello", ["Bob"]))
    assert counts == list(range(counts[0], counts[0] + 4))
    server.ask(rpc("reset_all_statistics"))
    assert result(server, request) == {"hello:greetings": 0}


def test_a_value_expires(server):
    assert result(server, rpc("cache_store", ["local", "brief", "x", 1])) == "OK"
    assert result(server, rpc("cache_fetch", ["local", "brief"])) == {"key": "brief", "value": "x"}
    wait_for(lambda: b"Value not found" in server.ask(rpc("cache_fetch", ["local", "brief"])))


def test_events_follow_the_dialect_of_their_subscription(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as first, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
        places = []
        for sock in (first, second):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(5)
            places.append(f"udp:127.0.0.1:{sock.getsockname()[1]}")
        server.ask(rpc("event_subscribe", ["E_PIKE_BLOCKED", places[0]]))
        server.ask(f":event_subscribe:\nE_PIKE_BLOCKED\n{places[1]}\n".encode())
        server.ask(rpc("raise_event", ["E_PIKE_BLOCKED", '{"ip": "192.0.2.1", "count": 3}']))
        assert first.recv(999) == b'{"jsonrpc":"2.0","method":"E_PIKE_BLOCKED","params":{"ip":"192.0.2.1","count":3}}'
        assert second.recv(999) == b"E_PIKE_BLOCKED\nip::192.0.2.1\ncount::3\n\n"
        server.ask(rpc("event_subscribe", ["E_PIKE_BLOCKED", places[0], 0]))
        server.ask(rpc("raise_event", ["E_PIKE_BLOCKED"]))
        assert second.recv(999) == b"E_PIKE_BLOCKED\n\n"
        first.settimeout(0.2)
        with pytest.raises(TimeoutError):
            first.recv(999)
