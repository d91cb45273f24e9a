"""ratelimit and pike: pipes and blocked IPs, in both dialects."""

import json

import pytest
from conftest import wait_for
from test_modules import configuration, lab, rows_of, subscribed

import midatagram as mi

LINES = 'loadmodule "ratelimit.so"\nloadmodule "pike.so"\nloadmodule "lab_sip.so"\n'
BEFORE = {  # pair -> what SIP traffic did before it
    "p0476": [("lab_block", "127.0.0.1")], "p0480": [("pike_rm", "127.0.0.1")],
    "p0481": [("lab_pipe", "pipe1", "taildrop", "100")],
    "p0482": [("lab_pipe", "pipe2", "RED", "3"), ("lab_pipe", "pipe3", "SBT", "50")],
    "p0483": [("lab_pipe", "pipe1", "TAILDROP", "100", "3"), ("lab_pipe", "pipe2", "RED", "3", "2"),
              ("lab_pipe", "pipe3", "SBT", "50", "2")],
}


@pytest.fixture
def trial():
    with mi.Trial(LINES) as one:
        yield one


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask(lab(*words)).decode()


def rpc(trial, command, /, *params, **named):
    """The result or error of a JSON-RPC request."""
    request = {"jsonrpc": "2.0", "method": command, "params": named or list(params), "id": 1}
    reply = json.loads(trial.ask(json.dumps(request).encode()))
    return reply.get("result", reply.get("error"))


@pytest.mark.parametrize("kind", ["text", "json", "json40", "json_strings", "positional"])
def test_the_pairs_in_file_order(kind):
    wrong, seen = [], 0
    with mi.Trial(configuration("24.cfg")) as trial:
        for row in rows_of("pairs.jsonl"):
            if not row["command"].startswith(("rl_", "pike")):
                continue
            for words in BEFORE.get(row["id"], ()):
                assert ask(trial, *words) == "200 OK\n\n"
            if row["command"] == "rl_get_pid" and row["note"].startswith("a value"):  # after one that is not recorded here
                ask(trial, "rl_set_pid", "0", "0", "0")
            request = row.get("json_request_positional" if kind == "positional" else f"{kind}_request")
            wanted = row.get(f"{kind}_reply")
            wanted = row["json_reply"] if wanted == "same" else wanted
            if row["command"] == "rl_set_pid" and row["note"] == "success":
                request = request or row["text_request"]
                wanted = wanted or row["text_reply"]
            if request and wanted:
                reply, seen = trial.ask(request.encode()).decode(), seen + 1
                wrong += [(row["id"], reply, wanted)] if reply != wanted else []
    assert wrong == [] and seen > 0


def test_pid_is_read_as_c_reads_numbers_and_cut(trial):
    assert ask(trial, "rl_get_pid") == "200 OK\nPID::  ki=-25.000 kp=0.000 kd=0.000\n\n"
    for words, wanted in ((("2.75", "-1.5", "1e2"), "ki=2.000 kp=-1.000 kd=100.000"),
                          ((".9", "x1", " 7x"), "ki=0.000 kp=0.000 kd=7.000"),
                          (("nan", "-inf", "1e99"), "ki=-2147483648.000 kp=-2147483648.000 kd=-2147483648.000"),
                          (("infi", "0x1p", "9e9"), "ki=-2147483648.000 kp=1.000 kd=-2147483648.000"),
                          (("1e9", "-1e9", "1e+"), "ki=1000000000.000 kp=-1000000000.000 kd=1.000"),
                          (("1", "2", "3", "more"), "ki=1.000 kp=2.000 kd=3.000")):
        assert ask(trial, "rl_set_pid", *words) == "200 OK\n\n"
        assert ask(trial, "rl_get_pid") == f"200 OK\nPID::  {wanted}\n\n"
    assert ask(trial, "rl_set_pid", "1", "2") == "400 Too few or too many arguments\n\n"
    assert ask(trial, "rl_set_pid", "1", "12345", "3") == "400 Bad parameter\n\n"
    assert rpc(trial, "rl_set_pid", "1", "", "3") == {"code": 400, "message": "Bad parameter value"}
    assert rpc(trial, "rl_set_pid", "1", None, "3")["data"] == "Bad type for parameter 'kp'"


def test_filters_are_shell_patterns(trial):
    for name in ("in-a", "in-b", "out"):
        ask(trial, "lab_pipe", name, "RED", "5")

    def ids(**params):
        return {pipe["id"] for pipe in rpc(trial, "rl_list", **params)["Pipes"]}

    assert ids(filter="in-*") == {"in-a", "in-b"} and ids(filter_out="in-*") == {"out"}
    assert ids(filter="") == ids(filter_out="") == {"in-a", "in-b", "out"}
    assert rpc(trial, "rl_list", filter="*", pipe="out")["data"] == "Too few or too many parameters"
    assert rpc(trial, "rl_list", pipe=None)["data"] == "Bad type for parameter 'pipe'"
    out = {"id": "out", "algorithm": "RED", "limit": 5, "counter": 0}
    assert rpc(trial, "rl_list", pipe="out") == {"Pipe": out, "drop_rate": 0}


def test_a_reset_pipe_counts_from_0(trial):
    ask(trial, "lab_pipe", "p", "SBT", "5", "77")
    assert rpc(trial, "rl_dump_pipe", "p") == {
        "Pipe": "p", "Algorithm": "SBT", "Counter": 77, "Replication Nodes": [], "Total": 77}
    assert ask(trial, "rl_reset_pipe", "p", "more") == "200 OK\n\n"
    assert rpc(trial, "rl_list", pipe="p")["Pipe"]["counter"] == 0
    assert ask(trial, "rl_reset_pipe", "x::") == "400 Bad parameter\n\n"
    assert rpc(trial, "rl_dump_pipe", "nosuch") == {"code": 404, "message": "Pipe not found"}
    assert ask(trial, "lab_pipe", "p", "NONE", "5") == "400 algorithm is one of TAILDROP, RED, SBT, NETWORK, FEEDBACK\n\n"
    assert ask(trial, "lab_pipe", "p", "RED", "x") == "400 Bad parameter\n\n"


def test_an_ip_that_is_blocked_no_more_is_known_for_a_while(start):
    server = start(f'{LINES}loadmodule "lab.so"\nmodparam("pike", "remove_latency", 60)\n'
                   'modparam("mi_datagram", "children_count", 2)\n')
    listener = subscribed(server, "text", "E_PIKE_BLOCKED")
    for ip in ("10.0.0.2", "10.0.0.10", "2001:DB8::1"):
        assert server.ask(lab("lab_block", f'"{ip}"')) == b"200 OK\n\n"
        assert listener.receive() == f"E_PIKE_BLOCKED\nip::{ip.lower()}\n\n".encode()
    assert server.ask(b":pike_list:\n") == b"200 OK\n10.0.0.10\n10.0.0.2\n2001:db8::1\n\n"
    replies = [server.ask(lab("pike_rm", "10.0.0.2")) for _ in range(2)]
    assert replies == [b"200 OK\n\n", b"400 IP not blocked\n\n"]
    assert server.ask(b":pike_list:\n") == b"200 OK\n10.0.0.10\n2001:db8::1\n\n"
    server.ask(lab("lab_clock", "61"))
    wait_for(lambda: server.ask(lab("pike_rm", "10.0.0.2")) == b"404 Match not found\n\n", 5, "the IP to be forgotten")
    assert server.ask(lab("lab_block", "zz")) == b"400 Bad IP\n\n"


def test_ips_stand_in_the_order_of_the_originals_tree():
    """By their first byte, then the newest branch first; one that is blocked again is where it was."""
    ips = ("127.0.0.1", "127.1.0.9", "127.0.0.2", "10.0.0.1", "127.1.0.4", "127.0.7.1")
    with mi.Trial(LINES) as trial:
        for ip in ips:
            ask(trial, "lab_block", ip)
        listed = ["10.0.0.1", "127.1.0.4", "127.1.0.9", "127.0.7.1", "127.0.0.2", "127.0.0.1"]
        assert ask(trial, "pike_list").split("\n")[1:-2] == listed
        ask(trial, "pike_rm", "127.1.0.9")
        assert ask(trial, "pike_list").split("\n")[1:-2] == [ip for ip in listed if ip != "127.1.0.9"]
        ask(trial, "lab_block", "127.1.0.9")
        assert ask(trial, "pike_list").split("\n")[1:-2] == listed


@pytest.mark.parametrize("pattern, names", [("", "abp"), ("[^p]", "ab"), ("[!p]", "ab"), ("[[:alpha:]]", "abp"), ("\\a", "a"),
                                            ("[", ""), ("A", "")])
def test_patterns_are_those_of_a_shell(pattern, names):
    with mi.Trial(LINES) as trial:
        for name in "abp":
            ask(trial, "lab_pipe", name, "RED", "5")
        assert {one["id"] for one in rpc(trial, "rl_list", filter=pattern)["Pipes"]} == {*names}
        rest = {*"abp"} - {*names} if pattern else {*"abp"}
        assert {one["id"] for one in rpc(trial, "rl_list", filter_out=pattern)["Pipes"]} == rest


def test_what_the_lab_brought_about_survives_a_reload(start):
    """In these modules, and in tm."""
    server = start(f'{LINES}loadmodule "tm.so"\nmodparam("mi_datagram", "children_count", 2)\n')
    for words in (("lab_pipe", "p", "RED", "5", "6"), ("lab_block", "10.0.0.1"), ("rl_set_pid", "1", "2", "3"),
                  ("lab_transaction", "7", "8", "c", "1", "INVITE"), ("lab_answer", "*", "*", "603")):
        assert server.ask(lab(*words)) == b"200 OK\n\n"
    server.reload()
    assert b"limit=5 counter=6" in server.ask(b":rl_list:\n") and b"10.0.0.1\n" in server.ask(b":pike_list:\n")
    assert b"ki=1.000 kp=2.000 kd=3.000" in server.ask(b":rl_get_pid:\n")
    headers = '"From: <sip:a@b>\r\nTo: <sip:c@d>\r\n"'
    assert b"Status:: 603 Decline\n" in server.ask(lab("t_uac_dlg", "OPTIONS", "sip:a@b", ".", ".", headers))
    assert server.ask(lab("t_reply", "200", "OK", "7:8", "t", ".")) == b"200 OK\n\n"


def test_lists_that_cannot_fit_are_given_up_before_they_are_made(trial):
    """And what a part takes at least is no more than one takes."""
    ask(trial, "lab_pipe", "p", "RED", "1")
    assert len(ask(trial, "rl_list")) - len("200 OK\nPIPE::  drop_rate=0\n\n") == 45
    for number in range(6000):
        trial.server.store.put("ratelimit", f"pipe{number}", '["TAILDROP", 1, 1]')
    assert ask(trial, "rl_list") == "500 reply of more than 261828 bytes exceeds 65457\n"
    assert trial.ask(b'{"jsonrpc":"2.0","method":"rl_list","id":1}') == b"500 Internal error"
    one = trial.ask(b'{"jsonrpc":"2.0","method":"rl_list","params":{"filter":"pipe77"},"id":1}')
    assert b'"Pipes":[{"id":"pipe77",' in one  # as that of a few of them can
