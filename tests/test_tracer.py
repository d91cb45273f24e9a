"""tracer and siptrace beyond the recordings: dynamic destinations, kinds of URIs, state."""

import json

import pytest
from test_modules import wrong_pairs

import midatagram as mi

IDS = ("[tid]uri=hep:hid", "[tid]uri=sip:127.0.0.1:5171", "[tid2]uri=sip:127.0.0.1:5171")
HEP = 'loadmodule "proto_hep.so"\nmodparam("proto_hep", "hep_id", "[hid] 127.0.0.1:9160;transport=udp;version=3")\n'


def lines(module="tracer", *ids, on=1, hep=HEP):
    """A configuration with ids."""
    given = [f'modparam("{module}", "trace_id", "{one}")' for one in ids or IDS]
    return "\n".join([hep, f'loadmodule "{module}.so"', f'modparam("{module}", "trace_on", {on})', *given, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or the values of its error."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return reply["result"] if "result" in reply else tuple(reply["error"].values())


def states(trial):
    """The names and states that are shown."""
    return [(one["name"], one["state"]) for one in rpc(trial, "trace")["trace destinations"]]


@pytest.mark.parametrize("dialect, module", [("text", "siptrace"), ("json", "tracer")])
def test_the_same_questions_to_both_versions(dialect, module):
    """A row between them that switches all on again is not among them."""
    on = {"text": b":sip_trace:\non\n", "json": b'{"jsonrpc":"2.0","method":"trace","params":{"mode":"on"},"id":1}'}
    with mi.Trial(f'{lines(module)}modparam("midatagram", "dialect", "{"jsonrpc" if dialect == "json" else "text"}")') as trial:
        def before(row):
            if row["id"] == "p0518":
                trial.ask(on[dialect])

        assert wrong_pairs(trial, dialect, "sip_trace", before) == []


def test_a_command_of_24_in_text():
    """One value is a mode or an id, two are both."""
    with mi.Trial(lines("siptrace", on=0)) as trial:
        assert ask(trial, "sip_trace").startswith("200 OK\nglobal:: off\ntid::  type=HEP uri=127.0.0.1:9160 state=off\n")
        assert ask(trial, "sip_trace", "tid2", "ON") == "200 OK\n\n"
        assert ask(trial, "sip_trace", "tid2") == "200 OK\ntid2::  type=SIP uri=127.0.0.1:5171 state=on\n\n"
        assert ask(trial, "sip_trace", "tid2", "OFF") == "200 OK\n\n"
        assert ask(trial, "sip_trace", "tid2") == "200 OK\ntid2::  type=SIP uri=127.0.0.1:5171 state=off\n\n"
        for words in (("x::",), ("no", "on"), ("tid", "x"), ("tid", "on", "x"), ("TID",)):
            assert ask(trial, "sip_trace", *words) == "400 Bad parameter\n\n"


@pytest.mark.parametrize("on, state", [(0, "off"), (1, "on")])
def test_ids_are_at_first_as_tracing_is_at_the_start(on, state):
    """And stay so when all of it is switched."""
    with mi.Trial(lines(on=on)) as trial:
        for mode in ("on", "off"):
            assert rpc(trial, "trace", mode=mode) == "OK"
            assert rpc(trial, "trace")["global"] == mode
            assert {one for _, one in states(trial)} == {state}
        assert rpc(trial, "trace", id="tid2", mode="off" if on else "on") == "OK"
        assert [one == state for _, one in states(trial)] == [True, True, False]


@pytest.mark.parametrize("module", ["tracer", "siptrace"])
def test_either_module_answers_in_both_dialects(module):
    """Under the names that clients of 2.4 and of 3.4 know, which are one command where a list names one of them."""
    with mi.Trial(lines(module)) as trial:
        assert ask(trial, "sip_trace", "tid2") == "200 OK\ntid2::  type=SIP uri=127.0.0.1:5171 state=on\n\n"
        assert ask(trial, "sip_trace", "tid2", "off") == "200 OK\n\n"
        assert rpc(trial, "trace", id="tid2")["trace destinations"][0]["state"] == "off"
        assert rpc(trial, "trace_start", id="d1", uri="sip:h") == rpc(trial, "trace_stop", id="d1") == "OK"
        names = trial.server.registry.names_of
        assert {*names("trace")} == {*names("sip_trace")} >= {"trace", "sip_trace"} and names("pwd") == ("pwd", "core:pwd")


def test_both_modules_are_loaded_together():
    with mi.Trial(lines("siptrace") + lines("tracer", "[other]uri=sip:h", hep="")) as trial:
        assert "other" in ask(trial, "trace") and "other" not in ask(trial, "sip_trace")


def test_errors_of_34():
    with mi.Trial(lines()) as trial:
        mode = (500, "Bad parameter value", "trace mode should be 'on' or 'off'")
        assert rpc(trial, "trace", mode="x") == rpc(trial, "trace", id="no", mode="x") == mode
        assert rpc(trial, "trace", id="no") == (400, "Bad trace id value")
        assert rpc(trial, "trace", id="no", mode="on") == (400, "Bad parameter value")
        assert rpc(trial, "trace", id="tid", mode=None)[-1] == "Bad type for parameter 'mode'"


def test_dynamic_destinations_are_started_and_stopped():
    """Those of one id stand together, by the hash of the id; the first of the list can be stopped, another stays."""
    with mi.Trial(lines()) as trial:
        assert rpc(trial, "trace_start", id="d1", uri="hep:10.0.0.1:9999;transport=tcp") == "OK"
        assert rpc(trial, "trace_start", id="d1", uri="sip:u@h") == "OK"
        assert rpc(trial, "trace_start", id="d2", uri="sips:[::1]:5061;x=y") == "OK"
        assert rpc(trial, "trace", id="d1") == {"trace destinations": [
            {"name": "d1", "type": "SIP", "uri": "h:", "state": "dynamic"},
            {"name": "d1", "type": "HEP", "uri": "10.0.0.1:9999", "state": "dynamic"}]}
        assert rpc(trial, "trace", id="d2")["trace destinations"][0]["uri"] == "[::1]:5061"
        assert rpc(trial, "trace", id="d1", mode="off") == (400, "Bad parameter value")
        assert rpc(trial, "trace_start", id="d1", uri="sip:u@h") == (500, "Bad parameter value", "dynamic trace id already used")
        assert rpc(trial, "trace_start", id="tid2", uri="sip:127.0.0.1:5171") == (
            500, "Bad parameter value", "trace id already used")
        assert rpc(trial, "trace_stop", id="d1") == "OK"
        assert [name for name, _ in states(trial)] == ["tid", "tid", "tid2", "d2", "d1", "d1"]
        assert rpc(trial, "trace_stop", id="d2") == rpc(trial, "trace_stop", id="d1") == "OK"
        assert [name for name, _ in states(trial)] == ["tid", "tid", "tid2"]
        assert rpc(trial, "trace_stop", id="d1") == (400, "Bad parameter value")


def test_filters_are_shown_the_last_first():
    given = ["caller=a", "CALLEE=b", "ip=10.0.0.1", "ip=x", "zz=1", 7, "caller="]
    with mi.Trial(lines()) as trial:
        assert rpc(trial, "trace_start", id="d1", uri="sip:h", filter=given) == "OK"
        shown = rpc(trial, "trace", id="d1")["trace destinations"][0]
        assert [*shown] == ["name", "type", "uri", "state", "filters"]
        assert shown["filters"] == [{"ip": "10.0.0.1"}, {"callee": "b"}, {"caller": "a"}]


def test_what_cannot_be_started():
    with mi.Trial(lines("tracer", "[a]uri=sip:h", hep="")) as trial:
        assert rpc(trial, "trace_start", id="d", uri="mysql://h/x") == (
            406, "DB not acceptable", "dynamic DB tracing is not yet available")
        assert rpc(trial, "trace_start", id="d", uri="hep:h") == (500, "No transport protocol", "HEP module was not loaded")
        for uri in ("sip:", "sip:h:99999", "file:/tmp/x", "syslog:local0"):
            assert rpc(trial, "trace_start", id="d", uri=uri)[:2] == (-32000, "Server error")
        assert rpc(trial, "trace_start", id="d", uri=None)[-1] == "Bad type for parameter 'uri'"


def test_a_dynamic_destination_for_hep_has_a_name_of_its_own():
    """Which no other one for HEP has, and a place with options that proto_hep knows."""
    wrong = (500, "Bad parameter value", "error while alocating new hep_id")
    with mi.Trial(lines()) as trial:
        for uri in ("", ":1", "h:p", "h;x=y", "h;version=4", "h;transport=x"):
            assert rpc(trial, "trace_start", id="d", uri=f"hep:{uri}") == wrong
        assert rpc(trial, "trace_start", id="hid", uri="hep:h") == wrong
        assert rpc(trial, "trace_start", id="d", uri="hep:h:1;transport=UDP;version=2") == "OK"
        assert rpc(trial, "trace_start", id="d", uri="hep:g") == wrong
        assert rpc(trial, "trace_stop", id="d") == rpc(trial, "trace_start", id="d", uri="hep:g") == "OK"


def test_tracing_is_on_at_the_start_unless_trace_on_is_0():
    with mi.Trial('loadmodule "tracer.so"\nmodparam("tracer", "trace_id", "[a]uri=sip:h")\n') as trial:
        assert rpc(trial, "trace")["global"] == "on" and states(trial) == [("a", "on")]


def test_a_database_is_declared_with_each_of_its_tables():
    one = "[a]uri=text:///d"
    with mi.Trial(lines("tracer", one, f"{one};table=t", f"{one}; table = t;", f"{one};table=u")) as trial:
        assert states(trial) == [("a", "on")] * 3


def test_destinations_of_the_same_hash_are_one():
    """As in the original, which keeps the first."""
    with mi.Trial(lines("tracer", "[t1]uri=sip:10.0.0.2", "[t2]uri=sip:10.0.0.1", "[t2]uri=sip:10.0.0.2")) as trial:
        assert [one["uri"] for one in rpc(trial, "trace")["trace destinations"]] == ["10.0.0.2:", "10.0.0.2:"]
        assert rpc(trial, "trace_start", id="t2", uri="sip:10.0.0.1")[-1] == "trace id already used"


def test_kinds_of_uris():
    """A destination that is declared twice is shown once; the table of a database is not shown, nor is a file."""
    ids = ("[ a ] uri = mysql://u:p@h/db ; table = t", "[b]uri=file:/tmp/x", "[c]uri=syslog:local0", "[c]uri=syslog:local0")
    with mi.Trial(lines("tracer", *ids)) as trial:
        listed = {one.pop("name"): one for one in rpc(trial, "trace")["trace destinations"]}
        assert listed == {"a": {"type": "Database", "uri": "mysql://u:p@h/db", "state": "on"}, "b": {"state": "on"},
                          "c": {"state": "on"}}


@pytest.mark.parametrize("line", ["tid", "[tid]", "[]uri=sip:h", "[tid]uri=", "tid uri=sip:h"])
def test_an_id_has_a_uri(line):
    with pytest.raises(mi.ConfigError, match="trace_id takes"):
        mi.Trial(lines("tracer", line))


def test_a_destination_that_is_not_declared_is_warned_of(caplog):
    with mi.Trial(lines("tracer", "[a]uri=hep:hid", "[b]uri=hep:none")) as trial:
        assert [one["uri"] for one in rpc(trial, "trace")["trace destinations"]] == ["127.0.0.1:9160", "none:9060"]
    assert "trace_id names hep:none, which no hep_id of proto_hep declares" in caplog.text and "hep:hid" not in caplog.text


def test_states_are_shared_by_children_and_survive_a_reload_of_the_configuration(start):
    server = start(lines() + 'modparam("mi_datagram", "children_count", 3)\n')
    clients = [server.client() for _ in range(6)]
    assert clients[0].ask(b":trace:\ntid\noff\n") == b"200 OK\n\n"
    assert {client.ask(b":trace:\ntid2\n") for client in clients} == {b"200 OK\ntid2::  type=SIP uri=127.0.0.1:5171 state=on\n\n"}
    assert len({client.ask(b":trace:\n") for client in clients}) == 1
    server.reload()
    assert server.ask(b":trace:\ntid\n").count(b"state=off") == 2
    assert server.ask(b":get_statistics:\ntracer:\n") == b"200 OK\ntracer:traced_requests:: 0\ntracer:traced_replies:: 0\n\n"


def test_the_names_of_40():
    with mi.Trial(f'{lines()}modparam("midatagram", "imitate", "4.0")\n') as trial:
        assert rpc(trial, "tracer:start", id="d1", uri="sip:h") == "OK"
        assert rpc(trial, "tracer:trace", id="d1")["trace destinations"][0]["state"] == "dynamic"
        assert rpc(trial, "tracer:stop", id="d1") == "OK"
        assert ask(trial, "tracer:trace", "tid2") == "200 OK\ntid2::  type=SIP uri=127.0.0.1:5171 state=on\n\n"
