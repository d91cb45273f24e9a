"""plugins/lab.py with three real children: each fault as a client sees it, the journal, verification, seed, clock, reset."""

import contextlib
import itertools
import json
import os
import re
import signal
import threading
import time

import pytest
from conftest import ROOT, blocks_of, free_port, run, session_of, wait_for

import midatagram as mi

THREE = 'modparam("mi_datagram", "children_count", 3)\nloadmodule "lab.so"\n'
OK = b"200 OK\n\n"
COMMANDS = [f"lab_{word}" for word in ("fault_add", "fault_list", "fault_rm", "reply", "reply_rm", "journal", "verify", "order",
                                       "seed", "clock", "reset")]
PWD = b":pwd:\n"


def rpc(method, params=None, number=1):
    """A JSON-RPC request; one without a number is a notification."""
    request = {"jsonrpc": "2.0", "method": method, "id": number, "params": params}
    return json.dumps({name: value for name, value in request.items() if value is not None}).encode()


def text(command, /, *values, **options):
    """A text request."""
    named = [(name, str(value)) for name, value in options.items()]
    return mi.write_request(command, [*((None, value) for value in values), *named])


def both(server, command, /, **options):
    """Ask in both dialects; the reply to the text request, and the outcome for JSON-RPC."""
    reply = json.loads(server.ask(rpc(command, options)))
    return server.ask(text(command, **options)), reply.get("result", reply.get("error"))


def add(server, **options):
    """Add a fault; its id."""
    reply = server.ask(text("lab_fault_add", **options))
    assert reply.startswith(b"200 OK\nid:: "), reply
    return int(reply.split()[-1])


def journal(server, **options):
    """The journal, as JSON-RPC clients get it."""
    return json.loads(server.ask(rpc("lab_journal", options or None)))["result"]


def outcomes(server, **options):
    """(command, outcome, code) of each request in the journal."""
    return [(one["command"], one["outcome"], one["code"]) for one in journal(server, **options)["requests"]]


@pytest.fixture
def lab(start):
    """A lab of three children."""
    return start(THREE)


###############################################################################
# Faults
###############################################################################


def usual(server):
    """The reply to `pwd`, before any fault."""
    return server.ask(PWD)


def test_drop(lab):
    add(lab, action="drop")
    assert lab.ask(PWD, 0.2) is None
    assert lab.ask(rpc("pwd"), 0.2) is None


@pytest.mark.parametrize("ms, least, most", [("100", 0.1, 0.1), ("100..300", 0.1, 0.3)])
def test_delay(lab, ms, least, most):
    reply = usual(lab)
    add(lab, action="delay", ms=ms)
    for _ in range(4):
        began_s = time.monotonic()
        assert lab.ask(PWD) == reply
        assert least <= time.monotonic() - began_s < most + 1


def test_delayed_replies_hold_up_nobody(start):
    lab = start('modparam("midatagram", "pool_size", 2)\nloadmodule "lab.so"\n')
    add(lab, command="pwd", action="delay", ms=800)
    clients = [lab.client() for _ in range(10)]
    began_s = time.monotonic()
    for client in clients:
        client.send(PWD)
    assert lab.ask(b":version:\n").startswith(b"200 OK\n")
    assert time.monotonic() - began_s < 0.7
    assert all(client.receive() for client in clients)
    assert 0.8 <= time.monotonic() - began_s < 5


def test_error(lab):
    add(lab, action="error", code=503, reason="Try later")
    assert lab.ask(PWD) == b"503 Try later\n\n"
    assert json.loads(lab.ask(rpc("pwd", number="x"))) == {
        "jsonrpc": "2.0", "error": {"code": 503, "message": "Try later"}, "id": "x"}
    assert lab.ask(b":no_such_command:\n") == b"503 Try later\n\n"
    assert lab.ask(b"malformed") == b"503 Try later\n\n"
    assert lab.ask(rpc("pwd", number=None), 0.2) is None


def test_an_error_without_code_is_500(lab):
    add(lab, action="error")
    assert lab.ask(PWD) == b"500 command failed\n\n"


def test_a_negative_code_is_for_json(lab):
    add(lab, action="error", code=-32099, reason="Odd")
    assert json.loads(lab.ask(rpc("pwd")))["error"] == {"code": -32099, "message": "Odd"}


def test_empty(lab):
    add(lab, action="empty")
    assert lab.ask(PWD) == b""


def test_cut(lab):
    reply = usual(lab)
    add(lab, action="cut", bytes=9)
    assert lab.ask(PWD) == reply[:9]


def test_garbage(lab):
    reply = usual(lab)
    add(lab, action="garbage")
    client = lab.client()
    first, second = client.ask(PWD), client.ask(PWD)
    assert len(first) == len(second) == len(reply)
    assert reply not in (first, second) and first != second


def test_duplicate(lab):
    reply = usual(lab)
    add(lab, action="duplicate")
    client = lab.client()
    assert [client.ask(PWD), client.receive(), client.receive(0.2)] == [reply, reply, None]


def test_late(lab):
    reply = usual(lab)
    add(lab, action="late", ms=300)
    client = lab.client()
    began_s = time.monotonic()
    assert client.ask(PWD) == reply
    assert time.monotonic() - began_s < 0.3
    assert client.receive() == reply
    assert time.monotonic() - began_s >= 0.3


@pytest.mark.parametrize("release", [("lab_fault_rm", "1"), ("lab_fault_rm",), ("lab_reset",)])
def test_stall(start, release):
    """More requests than there are workers, and longer than handler_timeout."""
    lab = start('modparam("midatagram", "pool_size", 3)\nmodparam("midatagram", "handler_timeout", 100)\n' + THREE)
    reply = usual(lab)
    add(lab, command="pwd", action="stall")
    clients = [lab.client() for _ in range(20)]
    for client in clients:
        client.send(PWD)
    assert clients[0].receive(0.4) is None
    assert lab.ask(text(*release)) == OK
    assert [client.receive() for client in clients] == [reply] * 20
    assert lab.ask(PWD) == reply


def test_kill(lab):
    children = lab.children()
    add(lab, command="version", action="kill", times=1)
    assert lab.ask(b":version:\n", 0.3) is None
    wait_for(lambda: len(set(lab.children()) - set(children)) == 1)
    assert outcomes(lab, command="version") == [("version", "kill", 0)]
    assert lab.ask(b":version:\n").startswith(b"200 OK\n")


def test_faults_hold_for_cached_replies_too(lab):
    """A reply that every child has cached."""
    client, request = lab.client(), b":get_statistics:\nrequests\n"
    for _ in range(60):
        assert client.ask(request).startswith(b"200 OK\n")
    number = add(lab, command="get_statistics", action="error", code=503, reason="No")
    assert [client.ask(request) for _ in range(20)] == [b"503 No\n\n"] * 20
    lab.ask(text("lab_fault_rm", str(number)))
    assert all(client.ask(request).startswith(b"200 OK\n") for _ in range(20))


def test_commands_of_the_lab_have_no_faults(lab):
    add(lab, action="drop")
    for command in COMMANDS:
        assert lab.ask(text(command), 2) is not None
    assert lab.ask(PWD) is not None  # lab_fault_rm was among them


###############################################################################
# When a fault acts
###############################################################################


def acts(server, count, request=PWD):
    """Which of `count` requests met a fault whose reply is 599."""
    client = server.client()
    return [nth for nth in range(1, count + 1) if client.ask(request).startswith(b"599")]


@pytest.mark.parametrize("options, expected", [
    ({"times": 3}, [1, 2, 3]), ({"every": 3}, [3, 6, 9, 12]), ({"after": 9}, [10, 11, 12]),
    ({"every": 2, "after": 3}, [5, 7, 9, 11]), ({"every": 3, "times": 2}, [3, 6]), ({"after": 2, "times": 1}, [3]),
    ({"probability": 1}, list(range(1, 13))), ({"probability": 0}, []), ({"probability": "0.0"}, [])])
def test_when(lab, options, expected):
    add(lab, action="error", code=599, **options)
    assert acts(lab, 12) == expected


def test_probability(lab):
    add(lab, action="error", code=599, probability=0.3)
    assert 30 <= len(acts(lab, 200)) <= 90


def test_three_children_count_as_one(lab):
    add(lab, action="error", code=599, times=10)
    met = []
    threads = [threading.Thread(target=lambda: met.extend(acts(lab, 20))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(met) == 10
    fault = {"action": "error", "code": "599", "times": "10", "matched": "120", "acted": "10"}
    shown = b"200 OK\nfault:: 1 action=error code=599 times=10 matched=120 acted=10\n\n"
    assert both(lab, "lab_fault_list") == (shown, {"faults": [{"id": 1, **fault}]})


@pytest.mark.parametrize("options, fitting, other", [
    ({"command": "ver*"}, b":version:\n", PWD), ({"command": "pwd"}, rpc("pwd"), rpc("version")),
    ({"command": "no_such"}, b":no_such:\nx\n", b":no_such_one:\n"),
    ({"argument": "a?"}, b":which:\nx\nab\n", b":which:\nx\nabc\n"), ({"argument": "Core:"}, b":get_statistics:\nCore:\n", PWD),
    ({"argument": "[ab]"}, rpc("get_statistics", [["b"]]), rpc("get_statistics", [["c"]])),
    ({"client": "*/c*"}, b":pwd:\n", None), ({"client": "127.0.0.1:*"}, None, b":pwd:\n")])
def test_patterns(start, options, fitting, other):
    port = free_port()
    lab = start(THREE + f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")')
    add(lab, action="error", code=599, **options)
    by_udp = f"udp:127.0.0.1:{port}"
    fails = re.compile(rb'599 |.*"code":599').match
    assert fails(lab.ask(fitting) if fitting else lab.ask(other, place=by_udp))
    assert not fails(lab.ask(other) if other else lab.ask(fitting, place=by_udp))


def test_the_first_that_fits_and_applies_acts(lab):
    add(lab, command="pwd", action="error", code=501, every=2)
    add(lab, command="*", action="error", code=502)
    assert [lab.ask(PWD)[:3] for _ in range(4)] == [b"502", b"501", b"502", b"501"]
    assert lab.ask(text("lab_fault_rm", "1")) == OK
    assert lab.ask(PWD)[:3] == b"502"
    assert add(lab, action="drop") == 3  # numbers are not used twice
    assert lab.ask(text("lab_fault_rm")) == OK
    assert lab.ask(b":lab_fault_list:\n") == b"200 OK\n\n"
    assert json.loads(lab.ask(rpc("lab_fault_list")))["result"] == {"faults": []}
    assert lab.ask(PWD)[:3] == b"200"


def test_both_dialects_add_the_same_fault(lab):
    options = {"command": "pwd", "action": "delay", "ms": "1..2", "probability": "0.5"}
    assert both(lab, "lab_fault_add", **options) == (b"200 OK\nid:: 2\n\n", {"id": 1})
    one, two = json.loads(lab.ask(rpc("lab_fault_list")))["result"]["faults"]
    assert {**one, "id": 2} == two == {"id": 2, **options, "matched": "0", "acted": "0"}
    assert json.loads(lab.ask(rpc("lab_fault_add", {"action": "drop", "probability": 0.25, "times": 2})))["result"] == {"id": 3}


@pytest.mark.parametrize("options, wrong", [
    ({}, "action is missing: one of"), ({"action": "dorp"}, 'action takes one of .*; did you mean "drop"?'),
    ({"action": "drop", "tmies": 1}, 'no option "tmies"; did you mean "times"?'), ({"action": "cut"}, "action cut needs bytes"),
    ({"action": "delay"}, "action delay needs ms"), ({"action": "late"}, "action late needs ms"),
    ({"action": "delay", "ms": "3..1"}, "ms takes an integer from 0 to"),
    ({"action": "drop", "times": 0}, "times takes an integer"),
    ({"action": "drop", "every": "x"}, "every takes an integer"), ({"action": "drop", "after": -1}, "after takes an integer"),
    ({"action": "drop", "probability": 2}, "probability takes a number from 0 to 1"),
    ({"action": "cut", "bytes": 70000}, "bytes takes an integer"), ({"action": "error", "code": "x"}, "code takes an integer")])
def test_what_is_wrong_is_said(lab, options, wrong, tmp_path):
    reply = lab.ask(text("lab_fault_add", **options)).decode()
    assert re.match(f"400 .*{wrong}", reply), reply
    if "tmies" not in options:
        error = json.loads(lab.ask(rpc("lab_fault_add", options or None)))["error"]
        assert error["code"] == 400 and reply.startswith(f"400 {error['message']}\n")
    else:
        error = json.loads(lab.ask(rpc("lab_fault_add", options)))["error"]
        assert (error["code"], reply) == (-32602, f"400 {error['data']}\n\n")
    line = ";".join(f"{name}={value}" for name, value in options.items())
    (tmp_path / "lab.cfg").write_text(f'loadmodule "lab.so"\nmodparam("lab", "fault", "{line}")\n')
    done = run("-c", "-f", tmp_path / "lab.cfg", "-s", tmp_path / "x.sock")
    assert done.returncode == 78 and f"{tmp_path}/lab.cfg:2: " in done.stderr


def test_a_fault_of_the_configuration(start):
    lab = start(THREE + 'modparam("lab", "fault", "command=pwd;action=error;every=3;code=599;reason=a=b, c")')
    assert acts(lab, 9) == [3, 6, 9]
    assert lab.ask(PWD) and lab.ask(PWD) and lab.ask(PWD) == b"599 a=b, c\n\n"
    assert lab.ask(b":lab_fault_list:\n").startswith(b"200 OK\nfault:: 1 command=pwd action=error every=3 ")


###############################################################################
# Replies at run time
###############################################################################


def test_a_reply_stands_before_all_others(lab):
    assert lab.ask(text("lab_reply", "pwd", reply="wd:: /here")) == b"200 OK\nid:: 1\n\n"
    assert lab.ask(text("lab_reply", "no_such", "al*", reply="AOR:: alice\n\tContact:: sip:a")) == b"200 OK\nid:: 2\n\n"
    for _ in range(6):
        assert lab.ask(PWD) == b"200 OK\nwd:: /here\n\n"
        assert json.loads(lab.ask(rpc("pwd")))["result"] == {"wd": "/here"}
        assert lab.ask(b":no_such:\nalice\n") == b"200 OK\nAOR:: alice\n\tContact:: sip:a\n\n"
        assert lab.ask(b":no_such:\nbob\n") == b"500 command not available\n"
        assert json.loads(lab.ask(rpc("no_such", {"aor": "alice"})))["result"] == {"AOR": {"AOR": "alice", "Contact": "sip:a"}}
        assert json.loads(lab.ask(rpc("no_such", ["bob"])))["error"]["code"] == -32601
    assert lab.ask(text("lab_reply_rm", "1")) == OK
    assert lab.ask(PWD) != b"200 OK\nwd:: /here\n\n"
    assert lab.ask(text("lab_reply_rm")) == OK
    assert lab.ask(b":no_such:\nalice\n") == b"500 command not available\n"


def test_a_sequence_of_replies(lab):
    for options in ({"reply": "one", "times": 1}, {"code": 404, "reason": "Gone", "times": 2}, {"reply": "else"}):
        lab.ask(text("lab_reply", "seq", **options))
    client = lab.client()
    assert [client.ask(b":seq:\n") for _ in range(5)] == [
        b"200 OK\none\n\n", b"404 Gone\n\n", b"404 Gone\n\n", b"200 OK\nelse\n\n", b"200 OK\nelse\n\n"]


def test_the_same_reply_again_replaces_the_first(lab):
    for word in ("one", "two"):
        lab.ask(text("lab_reply", "again", reply=word))
    assert lab.ask(b":again:\n") == b"200 OK\ntwo\n\n"
    assert lab.ask(text("lab_reply_rm", "1")) == b"404 no reply 1\n\n"


def test_a_reply_has_json_code_and_time(lab):
    params = {"command": "x", "argument": ["1"], "json": {"a": [1, 2.5]}, "reply": "text", "ms": "100..120"}
    assert json.loads(lab.ask(rpc("lab_reply", params)))["result"] == {"id": 1}
    began_s = time.monotonic()
    assert json.loads(lab.ask(rpc("x", [1])))["result"] == {"a": [1, 2.5]}
    assert time.monotonic() - began_s >= 0.1
    assert lab.ask(b":x:\n1\n") == b"200 OK\ntext\n\n"
    lab.ask(text("lab_reply", "y", code=404, reason="No", json='{"why": "gone"}'))
    assert json.loads(lab.ask(rpc("y")))["error"] == {"code": 404, "message": "No", "data": {"why": "gone"}}
    assert lab.ask(text("lab_reply", "z", json="{")).startswith(b"400 json is not JSON")
    assert lab.ask(text("lab_reply")) == b"400 Too few or too many arguments\n\n"


@pytest.mark.parametrize("options", [{}, {"times": 1}, {"ms": 5}])
def test_lab_reply_wants_a_reply(lab, options):
    """One that is empty is one; what is given without a name is an argument of the command."""
    wanted = "reply is missing: reply=TEXT, json=JSON, or code=CODE and reason=REASON; an empty reply= means OK"
    assert lab.ask(text("lab_reply", "pwd", "wd:: /here", **options)) == f"400 {wanted}\n\n".encode()
    assert both(lab, "lab_reply", command="pwd", **options)[1] == {"code": 400, "message": wanted}
    assert lab.ask(PWD) != OK
    for how in ({"reply": ""}, {"json": "{}"}, {"code": 200}, {"reason": "OK"}):
        assert lab.ask(text("lab_reply", "pwd", **how, **options)).startswith(b"200 OK\n")
        assert lab.ask(PWD) == OK
        lab.ask(text("lab_reply_rm"))


def batch(*calls):
    """A batch of requests, with ids from 1 on; one of the name None is no request."""
    return b"[%b]" % b",".join(rpc(name, params, number) if name else b"7" for number, (name, *params) in enumerate(calls, 1))


def results(reply):
    """What a batch is answered with, by id: results, and codes of errors."""
    return {one["id"]: one.get("result", one.get("error", {}).get("code")) for one in json.loads(reply)}


def test_replies_and_errors_stand_in_batches(lab):
    """For single requests of a batch; the others are answered as usual, in order, and the commands do not run."""
    lab.ask(text("lab_reply", "ul_show_contact", "*", "alice", reply="Contact:: sip:alice@a"))
    lab.ask(text("lab_reply", "cache_store", code=403, reason="Not now"))
    number = add(lab, command="core:pwd", action="error", code=503, reason="No way", times=2)
    asked = batch(("pwd",), ("ul_show_contact", "location", "alice"), (None,), ("ul_show_contact", "location", "bob"),
                  ("cache_store", "local", "a", "b"), ("cache_fetch", "local", "a"), ("pwd",), ("pwd",))
    reply = lab.ask(asked)
    assert [one["id"] for one in json.loads(reply)] == [1, 2, None, 4, 5, 6, 7, 8]
    assert results(reply) == {1: 503, 2: {"Contact": "sip:alice@a"}, None: -32600, 4: -32601, 5: 403, 6: 400, 7: 503,
                              8: {"WD": str(lab.folder)}}
    assert [(one["command"], one["outcome"], one["code"], one.get("fault")) for one in journal(lab)["requests"]] == [
        ("pwd", "error", 503, number), ("ul_show_contact", "answered", 200, None), ("", "answered", -32600, None),
        ("ul_show_contact", "answered", 500, None), ("cache_store", "answered", 403, None),
        ("cache_fetch", "answered", 200, None),
        ("pwd", "error", 503, number), ("pwd", "answered", 200, None)]


def test_a_fault_of_a_request_in_a_batch_acts_on_its_datagram(lab):
    asked = batch(("version",), ("pwd",))
    client = lab.client()
    usual = client.ask(asked)
    for action, check in {"drop": lambda: client.receive(0.2) is None, "cut": lambda: client.receive() == usual[:9],
                          "duplicate": lambda: client.receive() == client.receive() == usual}.items():
        number = add(lab, command="pwd", action=action, times=1, **({"bytes": 9} if action == "cut" else {}))
        client.send(batch(("version",), ("uptime",)))
        assert len(json.loads(client.receive())) == 2
        client.send(asked)
        assert check(), action
        assert client.ask(asked) == usual
        assert outcomes(lab)[-4:-2] == [("version", "drop" if action == "drop" else "answered", 200), ("pwd", action, 200)]
        lab.ask(text("lab_fault_rm", str(number)))
    lab.ask(text("lab_reply", "pwd", reply="WD:: /", ms="150"))
    started_s = time.monotonic()
    assert results(client.ask(asked))[2] == {"WD": "/"} and time.monotonic() - started_s >= 0.15


def test_a_fault_without_a_command_counts_a_batch_once(lab):
    add(lab, action="error", code=503, every=2)
    asked = batch(("version",), ("pwd",))
    assert [isinstance(json.loads(lab.ask(asked)), list) for _ in range(4)] == [True, False] * 2


def test_commands_of_the_lab_have_no_faults_in_batches(lab):
    lab.ask(text("lab_reply", "*", code=403, reason="No"))
    add(lab, command="lab_*", action="error")
    assert results(lab.ask(batch(("lab_seed", 5), ("pwd",)))) == {1: "OK", 2: 403}
    assert outcomes(lab) == [("pwd", "answered", 403)]


def test_a_file_of_replies_in_a_batch(start, tmp_path):
    """Its replies as always; of what happens to them on the way, what can happen to one of several."""
    cases = "\n".join(f"[{action}]\nreply = x:: 1\naction = {action}\nms = 60000\nbytes = 24"
                      for action in ("drop", "empty", "cut", "delay", "duplicate", "late", "stall"))
    (tmp_path / "page.conf").write_text(f"[good]\narguments = '[ab]'\nreply = x:: 1\n[[first]]\ntimes = 1\ncode = 503\n{cases}\n")
    server = start('loadmodule "page.so"\n', "-p", str(tmp_path))
    assert results(server.ask(batch(("good", ["a"]), ("good", ["b"]), ("good", ["c"])))) == {1: 503, 2: {"x": "1"}, 3: 500}
    assert results(server.ask(batch(("drop",), ("delay",), ("empty",), ("duplicate",), ("late",), ("stall",)))) == {
        number: {"x": "1"} for number in (2, 4, 5, 6)}
    assert server.ask(batch(("cut",), ("delay",))).startswith(b'[{"jsonrpc":"2.0","result,{')


@pytest.mark.parametrize("blanks", [b"", b"\x01 "])
def test_a_batch_of_one_request(lab, blanks):
    lab.ask(text("lab_reply", "pwd", code=403, reason="No"))
    number = add(lab, command="version", action="error", code=503)
    assert [results(lab.ask(blanks + batch((name,)))) for name in ("pwd", "version")] == [{1: 403}, {1: 503}]
    assert [(one["command"], one["outcome"], one.get("fault")) for one in journal(lab)["requests"]] == [
        ("pwd", "answered", None), ("version", "error", number)]


def test_a_reply_to_a_notification_in_a_batch_is_none(lab):
    lab.ask(text("lab_reply", "pwd", reply="WD:: /"))
    assert results(lab.ask(b'[{"jsonrpc":"2.0","method":"pwd"},%b]' % rpc("pwd", number=2))) == {2: {"WD": "/"}}


def test_a_fault_of_a_reply(lab):
    lab.ask(text("lab_reply", "x", reply="hello", ms=100))
    add(lab, command="x", action="duplicate")
    client = lab.client()
    assert [client.ask(b":x:\n"), client.receive()] == [b"200 OK\nhello\n\n"] * 2


###############################################################################
# Journal
###############################################################################


def test_what_a_client_has_the_reply_to_is_in_the_journal(lab):
    """Whichever child answered, from its cache or not; three clients at once."""
    lab.ask(b":lab_reset:\n")

    def poll():
        client, own = lab.client(), f":pwd:\n{threading.get_ident()}\n".encode()
        for nth in range(1, 60):
            client.ask(own if nth % 2 else b":get_statistics:\nrequests\n")
            count = client.ask(text("lab_verify", "pwd", str(threading.get_ident()), times=(nth + 1) // 2))
            met.append(count if count != OK else None)

    met = []
    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(met) == 3 * 59 and not any(met), [one for one in met if one][:2]
    numbers = [one["number"] for since in (0, 60, 120) for one in journal(lab, since=since, limit=60)["requests"]]
    assert numbers == list(range(1, 3 * 59 + 1))


def test_cached_replies_are_in_the_journal(lab):
    client = lab.client()
    for nth in range(1, 100):
        assert client.ask(b":get_statistics:\nrequests\n").startswith(b"200 OK\n")
        assert client.ask(text("lab_verify", "get_statistics", times=nth)) == OK
    one = journal(lab)["requests"][-1]
    assert (one["client"], one["raw"], one["outcome"], one["code"]) == (
        client.path, ":get_statistics:\\nrequests\\n", "answered", 200)


def test_every_kind_of_request_is_in_the_journal(lab):
    add(lab, command="version", action="drop")
    lab.ask(b":pwd:\n")
    lab.ask(b":no_such:\na b\nname:: c\n")
    lab.ask(b"malformed \xff\n")
    lab.ask(b":help:\nbroken\"quote\n")
    lab.ask(rpc("pwd", number=None), 0.2)
    lab.ask(rpc("nothing", {"a": 1, "b": ["x", "y"]}))
    lab.ask(b"{not json")
    lab.ask(b":version:\n", 0.2)
    lab.ask(b"[%b,%b]" % (rpc("pwd", ["?"]).replace(b"?", b"\xff"), rpc("pwd", number=None)))
    keys = "dialect", "command", "arguments", "outcome", "code"
    assert [tuple(one[key] for key in keys) for one in journal(lab)["requests"]] == [
        ("text", "pwd", [], "answered", 200), ("text", "no_such", ["a b", "name=c"], "answered", 500),
        ("text", "", [], "answered", 500), ("text", "help", [], "answered", 400),
        ("jsonrpc", "pwd", [], "notification", 200), ("jsonrpc", "nothing", ["a=1", "b=x", "b=y"], "answered", 500),
        ("jsonrpc", "", [], "answered", 400), ("text", "version", [], "drop", 200),
        ("jsonrpc", "pwd", ["\\udcff"], "answered", -32602), ("jsonrpc", "pwd", [], "notification", 200)]
    raws = [one["raw"] for one in journal(lab)["requests"]]
    assert raws[-2] == '{"jsonrpc":"2.0","method":"pwd","id":1,"params":["\\xff"]}'
    assert raws[2] == "malformed \\xff\\n" and raws[3] == ':help:\\nbroken"quote\\n'


def test_the_journal_in_text(start):
    port = free_port()
    lab = start(THREE + f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")')
    lab.ask(b':cache_store:\nlocal\nkey\n"two\nlines"\n', place=f"udp:127.0.0.1:{port}")
    shown = lab.ask(b":lab_journal:\n").decode()
    assert re.fullmatch(r"""200 OK
forgotten:: 0
left:: 0
request:: 1
	time:: \d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z
	client:: 127\.0\.0\.1:\d+
	dialect:: text
	command:: cache_store
	argument:: local
	argument:: key
	argument:: two\\nlines
	raw:: :cache_store:\\nlocal\\nkey\\n"two\\nlines"\\n
	outcome:: answered
	code:: 200
	ms:: [\d.]+

""", shown), shown


def test_a_request_is_in_the_journal_before_it_is_answered(start, tmp_path):
    (tmp_path / "slow.conf").write_text("[slow]\ndelay = 1500\n")
    lab = start(THREE + 'loadmodule "slow.so"', "-p", str(tmp_path))
    client = lab.client()
    client.send(b":slow:\n")
    wait_for(lambda: outcomes(lab) == [("slow", "pending", 0)])
    assert client.receive() == OK
    assert outcomes(lab) == [("slow", "answered", 200)]
    assert journal(lab)["requests"][0]["ms"] >= 1400


def test_the_journal_is_bounded_and_tells_what_is_forgotten(start):
    lab = start(THREE + 'modparam("lab", "journal_size", 131072)')
    client = lab.client()
    for nth in range(300):
        assert client.ask(b":no_such:\n%b%d\n" % (b"x" * 1000, nth)) == b"500 command not available\n"
    shown = journal(lab)
    count = shown["left"] + len(shown["requests"])
    assert shown["forgotten"] + count == 300 and 100 < count < 131
    assert shown["requests"][0]["number"] == shown["forgotten"] + 1
    since, numbers = 0, []
    while True:
        shown = journal(lab, since=since)
        numbers += [one["number"] for one in shown["requests"]]
        if not shown["left"]:
            break
        since = numbers[-1]
    assert numbers == list(range(301 - count, 301))
    assert lab.ask(b":version:\n" + b"y" * 65400).startswith(b"200 OK\n")
    assert "characters" in journal(lab, command="version")["requests"][0]["raw"]


ODD = [b"", b"\0", b":pwd", b":a\0b:\nx\n", b":pwd:\n\xff\xfe\n", b':no:\n"\xff\x01"\n', b"[]", b"[1]", b"[[[[]]]]", b'{"id": 1}',
       b'{"jsonrpc":"2.0","method":"\\ud800","id":1,"params":["\\ud800", {"a":[null]}, 1.5, true]}', b"[" * 5000, b'"x"', b"-",
       b'[{"jsonrpc":"2.0","method":"pwd","id":1,"params":["\\udfff"]},{"jsonrpc":"2.0","method":"pwd","id":2}, 7]',
       b'{"jsonrpc":"2.0","method":"pwd","id":"\\udc80"}', b":no:\n" + b"a\n" * 30000, b":no:\n" + b"\x01" * 60000,
       b":" + b"n" * 60000 + b":\n", b'{"jsonrpc":"2.0","method":"no","id":1,"params":[%b1]}' % (b"1," * 20000),
       b"[" + b",".join([rpc("pwd")] * 300) + b"]",
       b'{"jsonrpc":"2.0","method":"no","id":1,"params":%b}' % (b"[" * 900 + b"]" * 900)]


@pytest.mark.parametrize("fault", [None, {"command": "never", "argument": "x", "action": "drop"}])
def test_odd_requests_get_the_same_replies_and_are_shown(start, fault):
    plain, lab = start(THREE.replace('loadmodule "lab.so"', "")), start(THREE)
    if fault:
        add(lab, **fault)
    for request in ODD:
        one, two = plain.ask(request, 1 if request else 0.2), lab.ask(request, 1 if request else 0.2)
        assert one is two is None or one.replace(b"/s0", b"/s1") == two, request
        last = journal(lab)
        while last["left"]:
            last = journal(lab, since=last["requests"][-1]["number"])
        assert last["requests"][-1]["outcome"] == "answered" if request else True
        assert lab.ask(b":lab_journal:\n").startswith(b"200 OK\n")
        assert lab.ask(text("lab_verify", "never", "a", "b")).startswith(b"417 expected 1, found 0\n")
        assert json.loads(lab.ask(rpc("lab_verify", ["never"])))["error"]["code"] == 417
        assert lab.ask(text("lab_verify", "never", *["a"] * 5000)).startswith(b"417 ")


def test_since_limit_and_command(lab):
    for request in (b":pwd:\n", b":version:\n", b":pwd:\n", b":which:\n"):
        lab.ask(request)
    assert [one[0] for one in outcomes(lab, command="pwd")] == ["pwd", "pwd"]
    assert [one[0] for one in outcomes(lab, since=2)] == ["pwd", "which"]
    assert journal(lab, limit=3)["left"] == 1 and len(journal(lab, limit=3)["requests"]) == 3
    assert lab.ask(text("lab_journal", since=9)) == b"200 OK\nforgotten:: 0\nleft:: 0\n\n"


def test_the_journal_survives_children_that_are_killed(start):
    """With the lock in hand as well: what a client has the reply to is there, and the children go on."""
    lab = start(THREE + 'modparam("lab", "journal_size", 131072)')
    answered, ends = [], threading.Event()

    def poll():
        client, own = lab.client(), threading.get_ident()
        for nth in itertools.count():
            if ends.is_set():
                return
            with contextlib.suppress(TimeoutError):  # nobody reads at the moment
                if client.ask(f":uptime:\n{own}\n{nth}\n".encode(), 0.2):
                    answered.append((str(own), str(nth)))

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(6):
        for pid in wait_for(lambda: lab.ask(b":ps:\n", 0.5) and lab.children())[:1]:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
    ends.set()
    for thread in threads:
        thread.join()
    shown = wait_for(lambda: lab.ask(b":ps:\n", 0.5) and journal(lab))
    entries = list(shown["requests"])
    while shown["left"]:
        shown = journal(lab, since=entries[-1]["number"])
        entries += shown["requests"]
    there = {tuple(one["arguments"]) for one in entries if one["outcome"] == "answered" and one["command"] == "uptime"}
    assert len(answered) > 100 and len(there) > 100
    for own in {own for own, _ in answered}:
        mine = [pair for pair in answered if pair[0] == own]
        first = next((nth for nth, pair in enumerate(mine) if pair in there), len(mine))  # what waited at the end is forgotten
        assert set(mine[first:]) <= there


def test_the_journal_survives_a_reload(lab):
    lab.ask(PWD)
    lab.signal(1)
    lab.wait_log("reloaded")
    wait_for(lambda: lab.log.count("ready:") == 2)
    assert lab.ask(text("lab_verify", "pwd", times=1)) == OK


###############################################################################
# Verification
###############################################################################


def test_verify(lab):
    for user in (b"alice", b"bob", b"bob"):
        lab.ask(b":ul_rm:\nlocation\n%b\n" % user)
    for command, values, options in [
            ("ul_rm", (), {}), ("ul_rm", (), {"times": 3}), ("ul_rm", ("location", "bob"), {"times": 2}),
            ("ul_rm", ("*", "a*"), {"times": 1}), ("ul_*", (), {"at_least": 2, "at_most": 3}), ("other", (), {"times": 0}),
            ("other", (), {"at_most": 0})]:
        assert lab.ask(text("lab_verify", command, *values, **options)) == OK, (command, values, options)
    for command, values, options, expected in [
            ("other", (), {}, "expected 1, found 0"), ("ul_rm", (), {"times": 1}, "expected 1, found 3"),
            ("ul_rm", (), {"at_least": 4}, "expected at least 4, found 3"),
            ("ul_rm", (), {"at_most": 2}, "expected at most 2, found 3"),
            ("ul_rm", ("location", "carol"), {}, "expected 1, found 0")]:
        assert lab.ask(text("lab_verify", command, *values, **options)).startswith(f"417 {expected}\n".encode())


def test_what_differs_is_said(lab):
    lab.ask(b":pwd:\n")
    lab.ask(b":ul_rm:\nlocation\nbob\n")
    assert lab.ask(text("lab_verify", "ul_rm", "location", "alice")) == (
        b"417 expected 1, found 0\nnearest:: ul_rm location bob\n\tdiffers:: argument 2 is bob, not alice\n"
        b"nearest:: pwd\n\tdiffers:: command is pwd, not ul_rm\n\tdiffers:: 0 arguments, not 2\n\n")
    error = json.loads(lab.ask(rpc("lab_verify", {"command": "ul_rm", "argument": ["location", "alice"], "times": 1})))["error"]
    assert (error["code"], error["message"]) == (417, "expected 1, found 0")
    assert error["data"][0] == {"request": "ul_rm location bob", "differs": ["argument 2 is bob, not alice"]}


def test_json_params_by_name_and_arrays_are_arguments(lab):
    lab.ask(rpc("get_statistics", {"statistics": ["core:", "x"]}))
    assert lab.ask(text("lab_verify", "get_statistics", "core:", "x", times=1)) == OK


def test_order(lab):
    for command in (b"pwd", b"version", b"which", b"pwd"):
        lab.ask(b":%b:\n" % command)
    for names in (("pwd",), ("pwd", "which"), ("version", "pwd"), ("pwd", "version", "which", "pwd"), ("w*", "p*")):
        assert lab.ask(text("lab_order", *names)) == OK
    assert lab.ask(text("lab_order", "which", "version")) == b"417 expected version after which, found none\n\n"
    error = json.loads(lab.ask(rpc("lab_order", ["pwd", "pwd", "pwd"])))["error"]
    assert error["message"] == "expected pwd after pwd, found none"
    assert lab.ask(text("lab_order", "kill")) == b"417 expected kill at all, found none\n\n"


###############################################################################
# Seed, clock, reset
###############################################################################


def replies(server):
    """What a client gets in a run with draws of all kinds."""
    client = server.client()
    server.ask(text("lab_seed", "42"))
    add(server, command="pwd", action="garbage", probability=0.4)
    add(server, command="pwd", action="error", code=503, probability=0.5)
    add(server, command="version", action="drop", probability=0.5)
    asked = [client.ask(PWD) for _ in range(40)]
    return asked + [client.ask(b":version:\n", 0.1) for _ in range(12)]


def test_two_runs_with_one_seed_are_equal(start):
    first, second = start(THREE), start(THREE)
    one = replies(first)
    two = [reply.replace(bytes(second.folder), bytes(first.folder)) if reply else reply for reply in replies(second)]
    assert one == two and len(set(one)) > 5
    first.ask(text("lab_reset"))
    assert replies(first) == one
    first.ask(text("lab_reset"))
    first.ask(text("lab_seed", "43"))
    add(first, command="pwd", action="garbage", probability=0.4)
    assert [first.ask(PWD) for _ in range(40)] != one[:40]


def test_a_value_without_a_name_gets_the_names_of_the_options(lab):
    reply = lab.ask(text("lab_fault_add", "drop")).decode()
    assert reply.startswith('400 "drop" has no name; this takes command= argument= client= ') and " action= " in reply
    error = json.loads(lab.ask(rpc("lab_fault_add", ["drop"])))["error"]
    assert (error["code"], reply) == (-32602, f"400 {error['data']}\n\n")


def test_the_clock_does_not_go_back(lab):
    assert lab.ask(text("lab_clock", "-5")).startswith(b"400 seconds takes an integer of at least 0: the clock moves forward")
    assert lab.ask(text("lab_clock", "0")) == b"200 OK\nmoved:: 0\n\n"


def test_a_reload_leaves_the_clock_where_it_is(lab):
    assert lab.ask(text("lab_clock", "3600")) == b"200 OK\nmoved:: 3600\n\n"
    lab.reload()
    assert lab.ask(text("lab_clock", "10")) == b"200 OK\nmoved:: 3610\n\n"


def test_the_clock_moves_expiries_and_times(lab):
    lab.ask(b":cache_store:\nlocal\nkey\nvalue\n600\n")
    lab.ask(b":event_subscribe:\nE_MI_RELOAD\nudp:127.0.0.1:9\n600\n")
    fetch = b":cache_fetch:\nlocal\nkey\n"
    assert all(b"value" in lab.ask(fetch) for _ in range(9))
    assert lab.ask(text("lab_clock", "599")) == b"200 OK\nmoved:: 599\n\n"
    assert b"value" in lab.ask(fetch)
    assert json.loads(lab.ask(rpc("lab_clock", [1])))["result"] == {"moved": 600}
    assert all(b"Value not found" in lab.ask(fetch) for _ in range(9))
    assert int(re.search(rb"Up time:: (\d+)", lab.ask(b":uptime:\n"))[1]) >= 600 <= lab.statistic("timestamp")
    assert b"udp:" not in lab.ask(b":subscribers_list:\n")
    lab.ask(b":cache_store:\nlocal\nkey\nnew\n5\n")
    assert b"new" in lab.ask(fetch)
    lab.ask(b":lab_reset:\n")
    assert int(re.search(rb"Up time:: (\d+)", lab.ask(b":uptime:\n"))[1]) < 600 > lab.statistic("timestamp")


def test_reset_forgets(start):
    lab = start(THREE + 'modparam("lab", "fault", "command=which;action=error;code=599")\nloadmodule "hello.so"')
    add(lab, command="pwd", action="drop")
    lab.ask(text("lab_reply", "x", reply="x"))
    lab.ask(b":cache_store:\nlocal\nkey\nvalue\n")
    lab.ask(b":hello:\nBob\n")
    lab.ask(b":which:\n")
    assert lab.ask(b":lab_reset:\n") == OK
    assert journal(lab) == {"forgotten": 0, "left": 0, "requests": []}
    assert lab.ask(b":lab_fault_list:\n") == b"200 OK\nfault:: 1 command=which action=error code=599 matched=0 acted=0\n\n"
    assert lab.ask(PWD).startswith(b"200 OK\n")
    assert lab.ask(b":x:\n") == b"500 command not available\n"
    assert b"Value not found" in lab.ask(b":cache_fetch:\nlocal\nkey\n")
    assert lab.statistic("greetings") == 0
    assert journal(lab)["requests"][0]["number"] == 1


###############################################################################
# What it costs
###############################################################################


@pytest.mark.parametrize("module, is_quick", [("", True), ('loadmodule "lab.so"', True), ('loadmodule "other.so"', False)])
def test_cached_replies_keep_their_quick_way(module, is_quick, tmp_path):
    """With the lab as without it; a function around all that takes no cached replies is asked each time."""
    (tmp_path / "other.py").write_text(
        '"""other"""\nimport midatagram as mi\n\n@mi.around\ndef all(ctx, request, proceed):\n    return proceed()\n')
    request = b":get_statistics:\nrequests\n"
    with mi.Trial(module, str(tmp_path)) as trial:
        for _ in range(3):
            trial.ask(request)
        assert (trial.answers.cache.get(request).now() is not None) is is_quick
        for _ in range(4):
            data = b'{"jsonrpc":"2.0","method":"uptime","id":1}'
            cached, reply = trial.answers.at_once(data)
            assert b'"result"' in trial.ask(data)
        assert (reply is not None) is is_quick and (data in trial.answers.cache.young) is (not module)


def test_help_names_the_options(lab):
    assert b"lab_verify COMMAND [ARGUMENT...] [times=TIMES] [at_least=AT_LEAST]" in lab.ask(b":help:\nlab_verify\n")
    assert set(COMMANDS) <= set(lab.ask(b":which:\n").decode().split("\n"))


###############################################################################
# docs/lab.md
###############################################################################

PAGE = (ROOT / "docs" / "lab.md").read_text()


def test_the_page_from_nothing_to_red_and_back_to_green(reader):
    """The configuration, the client, and what stands behind the prompts, as written but for places."""
    configuration, client = blocks_of(PAGE, "")[0], blocks_of(PAGE, "python")[0]
    reader.places["/tmp/lab.sock"] = f"{reader.folder}/lab.sock"
    reader.write("client.py", client)
    reader.write("lab.cfg", configuration)
    [start] = re.findall(r"and run `(\./midatagram\.py .*?)` in another terminal", PAGE)
    reader.begin(start, "lab.sock")
    session = session_of(PAGE)
    for command, reply in session:
        assert reader.run(command).rstrip("\n") == reply.rstrip("\n"), command
    assert len(session) == 13


def test_the_file_of_the_page(start, tmp_path):
    file = next(text for text in blocks_of(PAGE, "") if "[:statistics]" in text)
    (tmp_path / "page.conf").write_text(file)
    server = start(THREE + 'loadmodule "page.so"', "-p", str(tmp_path))
    assert server.statistic("early_dialogs") == 2
    assert json.loads(server.ask(rpc("login", {"user": "bob"})))["error"] == {"code": 503, "message": "Try again, later"}
    assert json.loads(server.ask(rpc("login", {"user": "bob"})))["result"]["user"] == "bob"


def test_the_page_names_all_that_there_is():
    module = mi.load_plugin(str(ROOT / "plugins" / "lab.py"))
    reader = module.namespace.canned
    for command in module.commands:
        row = next(line for line in PAGE.splitlines() if line.startswith("| ") and f"`{command.name}" in line)
        assert command.name == "lab_fault_add" or all(f"`{option}=`" in row for option in command.options)
    for action in filter(None, reader.ACTIONS):
        assert re.search(rf"^\| `{action}`", PAGE, re.M)
    for name in module.namespace.FAULT_OPTIONS:
        assert f"`{name}=" in PAGE
    keys = re.findall(r"^(\w+) = ", reader.CANNED_SPEC, re.M)
    assert len(keys) > 15 and all(re.search(rf"^\| .*`{key}\b.* \| ", PAGE, re.M) for key in keys)


@pytest.mark.parametrize("lines", ["lab", "lab lab_sip", "lab_sip lab"])
def test_the_lab_has_the_commands_for_what_sip_would_bring(lines):
    lines = "".join(f'loadmodule "{name}.so"\n' for name in ["usrloc", *lines.split()])
    with mi.Trial(lines) as trial:
        assert trial.ask(b":lab_register:\nlocation\nalice\nsip:a@b\n") == b"200 OK\n\n"
        assert b"sip:a@b" in trial.ask(b":ul_dump:\n")
        assert trial.ask(b":lab_journal:\n").startswith(b"200 OK\n")
        assert b"lab_count" in trial.ask(b":which:\n")


@pytest.mark.parametrize("name", ["lab_fault_list", "lab:fault_list", "fault_list"])
def test_its_own_commands_have_no_faults_by_any_name(name):
    with mi.Trial('loadmodule "lab.so"\nmodparam("midatagram", "imitate", "4.0")\n'
                  'modparam("lab", "fault", "action=error;code=599")\n') as trial:
        assert json.loads(trial.ask(rpc("pwd")))["error"]["code"] == 599
        assert "result" in json.loads(trial.ask(rpc(name))) and "result" in json.loads(trial.ask(b"[%b]" % rpc(name)))[0]
        assert [one["command"] for one in json.loads(trial.ask(rpc("lab_journal")))["result"]["requests"]] == ["pwd"]
