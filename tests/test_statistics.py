"""statistics and sl: the statistics of a script, the SIP counters of the core, and what moves them."""

import json
import shutil
import sys

import pytest
from conftest import SCRIPT, life_of, wait_for
from test_modules import configuration

import midatagram as mi

SCRIPT_LINES = """loadmodule "statistics.so"
loadmodule "lab_sip.so"
modparam("statistics", "stat_groups", "packet, method")
modparam("statistics", "variable", "register_counter")
modparam("statistics", "variable", "calls/no_reset")
modparam("statistics", "variable", "packet:udp")
modparam("statistics", "variable", "other:udp")
modparam("statistics", "variable", "register_counter")
modparam("statistics", "stat_series_profile", "x: algorithm=avg")
"""
CORE = ("rcv_requests", "rcv_replies", "fwd_requests", "fwd_replies", "drop_requests", "drop_replies", "err_requests",
        "err_replies", "bad_URIs_rcvd")


@pytest.fixture
def trial():
    with mi.Trial(SCRIPT_LINES) as one:
        yield one


def ask(trial, *words):
    """The lines of the reply to a text request, without the first if it is 200 OK."""
    lines = trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode().splitlines()
    return [line for line in lines if line] if lines[0] != "200 OK" else [line for line in lines[1:] if line]


def rpc(trial, method, *params):
    """The result of a JSON-RPC request."""
    request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    reply = json.loads(trial.ask(json.dumps(request).encode()))
    return reply.get("result", reply.get("error"))


def test_variables_are_in_the_group_script_the_last_one_first(trial):
    assert ask(trial, "get_statistics", "script:") == [
        f"script:{name}:: 0" for name in ("other:udp", "packet:udp", "calls", "register_counter")]
    assert rpc(trial, "list_statistics", ["script:"]) == {
        "script:other:udp": "incremental", "script:packet:udp": "incremental", "script:calls": "non-incremental",
        "script:register_counter": "incremental"}
    assert rpc(trial, "get_statistics", ["other:udp", "udp"]) == {"script:other:udp": 0, "packet:udp": 0}


def test_a_variable_of_a_group_is_counted_in_that_group(trial):
    assert ask(trial, "lab_count", "packet:udp", "3") == []
    assert ask(trial, "get_statistics", "packet:", "packet:udp") == ["packet:udp:: 3", "script:packet:udp:: 0"]
    assert ask(trial, "get_statistics", "method:", "other:") == ["404 Statistics Not Found"]


def test_lab_count_adds_to_a_counter_by_its_name_or_with_its_group(trial):
    for words in (("calls",), ("script:calls", "5"), ("rcv_requests", "100"), ("core:rcv_requests", "-1"), ("waiting_udp", "9")):
        assert ask(trial, "lab_count", *words) == []
    assert rpc(trial, "lab:count", "register_counter", 2) == "OK"
    assert ask(trial, "get_statistics", "calls", "register_counter", "rcv_requests", "waiting_udp") == [
        "script:calls:: 6", "script:register_counter:: 2", "core:rcv_requests:: 99", "net:waiting_udp:: 9"]
    assert ask(trial, "reset_statistics", "calls", "register_counter", "rcv_requests", "waiting_udp") == []
    assert ask(trial, "get_statistics", "calls", "register_counter", "rcv_requests", "waiting_udp") == [
        "script:calls:: 6", "script:register_counter:: 0", "core:rcv_requests:: 0", "net:waiting_udp:: 9"]


@pytest.mark.parametrize("name, wanted", [
    ("nosuch", "404 Statistics Not Found"), ("core:", "404 Statistics Not Found"), ("all", "404 Statistics Not Found"),
    ("core:calls", "404 Statistics Not Found"), ("timestamp", "400 timestamp is no counter, it shows what there is")])
def test_what_is_no_counter_is_not_moved(trial, name, wanted):
    assert ask(trial, "lab_count", name) == [wanted]


def test_each_dialect_sees_the_counters_of_its_release(trial):
    shown = ask(trial, "get_statistics", "core:", "net:")
    assert [line.partition("::")[0] for line in shown] == [
        *[f"core:{name}" for name in (*CORE, "unsupported_methods", "bad_msg_hdr", "timestamp")],
        "net:waiting_udp", "net:waiting_tcp", "net:waiting_tls"]
    assert [*rpc(trial, "get_statistics", ["core:"])] == [
        f"core:{name}" for name in (*CORE, "bad_msg_hdr", "slow_messages", "timestamp")]
    assert rpc(trial, "get_statistics", ["unsupported_methods"]) == rpc(trial, "list_statistics", ["unsupported_methods"]) == {}
    assert ask(trial, "list_statistics", "slow_messages") == ["404 Statistics Not Found"]
    assert rpc(trial, "list_statistics", ["net:"])["net:waiting_udp"] == "non-incremental"
    assert rpc(trial, "get_statistics", ["dns:", "sql:", "cdb:"]) == {
        f"{group}:{group}_{kind}_queries": 0 for group in ("dns", "sql", "cdb") for kind in ("total", "slow")}
    assert ask(trial, "get_statistics", "dns:", "sql_total_queries") == ["404 Statistics Not Found"]


def test_an_opensips_cfg_has_the_counters_once():
    """Several of its modules declare them."""
    with mi.Trial(configuration("24.cfg")) as trial:
        shown = [line.partition("::")[0] for line in ask(trial, "get_statistics", "all")]
        assert len(shown) == len(set(shown)) and shown.count("core:rcv_requests") == 1
        assert ask(trial, "get_statistics", "script:") == ["script:my_stat:: 0"]
        assert ask(trial, "list_statistics", "sl:") == [f"sl:{name}:: incremental" for name in (
            "1xx_replies", "2xx_replies", "3xx_replies", "4xx_replies", "5xx_replies", "6xx_replies", "sent_replies",
            "sent_err_replies", "received_ACKs")]
        assert ask(trial, "help", "get_statistics")[-1] == "Exported by:: statistics"


@pytest.mark.parametrize("module", ["statistics", "sl", "tm", "registrar", "dialog", "lab_sip"])
def test_each_of_these_modules_has_them(module):
    with mi.Trial(f'loadmodule "{module}.so"') as trial:
        assert ask(trial, "get_statistics", "rcv_requests", "waiting_udp") == ["core:rcv_requests:: 0", "net:waiting_udp:: 0"]


def test_what_the_lab_counts_outlives_children_and_reloads(start):
    """The ones that cannot be reset as well."""
    server = start(f'{SCRIPT_LINES}modparam("mi_datagram", "children_count", 2)\n')
    for name in (b"calls", b"waiting_tls", b"register_counter"):
        assert server.ask(b":lab_count:\n%s\n4\n" % name) == b"200 OK\n\n"
    server.reload()
    wait_for(lambda: len(server.children()) == 2, 10, "the new children alone")
    assert [server.statistic(name) for name in ("calls", "waiting_tls", "register_counter")] == [4, 4, 4]


@pytest.mark.parametrize("value", ["", "/no_reset", "x/reset"])
def test_a_variable_has_a_name_and_no_other_flag(value):
    with pytest.raises(mi.ConfigError, match='takes "NAME", "NAME/no_reset" or "GROUP:NAME"'):
        mi.Trial(f'loadmodule "statistics.so"\nmodparam("statistics", "variable", "{value}")')


def test_a_script_alone_passes_over_what_it_lacks(tmp_path):
    """As it does with all modules."""
    shutil.copy(SCRIPT, tmp_path)
    (tmp_path / "opensips.cfg").write_text(f'{SCRIPT_LINES}modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n')
    words = [sys.executable, tmp_path / "midatagram.py", "-f", tmp_path / "opensips.cfg"]
    status, log = life_of(tmp_path / "mi.sock", *words)
    assert status == 0 and "stopping" in log and "ERROR" not in log, log


def test_the_module_is_loaded_for_its_parameters():
    with pytest.raises(mi.ConfigError, match='module statistics is not loaded; put loadmodule "statistics.so" before'):
        mi.Trial('modparam("statistics", "variable", "x")')


def test_groups_are_listed_as_opensips_lists_them(trial):
    """Memory and the core come before the modules; the script's statistics, the load and the processes come last."""
    names = [line.rpartition(":: ")[0] for line in ask(trial, "list_statistics")]
    groups = list(dict.fromkeys(name.partition(":")[0] for name in names))
    assert groups[:3] == ["shmem", "core", "net"] and "mi_datagram" in groups[3:-3] and groups[-3:] == ["script", "load", "pkmem"]
    assert [name for name in names if name.startswith("core:")][-1] == "core:timestamp"
    assert list(rpc(trial, "list_statistics"))[-1] == names[-1]
