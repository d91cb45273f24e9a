"""dispatcher beyond the recordings: partitions, reloads, states, what is wrong with a table."""

import json
import re

import pytest
from conftest import ROOT
from test_modules import differs, rows_of, subscribed

import midatagram as mi

HEADER = {24: "id(int,auto) setid(int) destination(string) socket(string,null) state(int) weight(string) priority(int) "
              "attrs(string) description(string)",
          34: "id(int,auto) setid(int) destination(string) socket(string,null) state(int) probe_mode(int) weight(string) "
              "priority(int) attrs(string) description(string)"}
VERSIONS = {24: 8, 34: 9}
MAIN = ("1:1:sip\\:127.0.0.1\\:5171::0:5:0:key=a:d1",)
P2 = ("1:7:sip\\:10.0.0.1::2:x:1:n:d", "2:7:sip\\:10.0.0.2;transport=tcp::1:x:9:q:e f")


def tables(folder, version=24, **rows):
    """A folder with a table for each keyword; dispatcher and p2 unless they are given."""
    rows = {"dispatcher": MAIN, "ds_p2": P2, **rows}
    names = "".join(f"{name}:{VERSIONS[version]}\n" for name in rows)
    (folder / "version").write_text(f"table_name(string) table_version(int)\n{names}")
    for name, lines in rows.items():
        if version == 34:  # with a column more
            lines = [line.replace("::0:5:", "::0:0:5:").replace("::2:x", "::2:0:x").replace("::1:x", "::1:0:x") for line in lines]
        (folder / name).write_text("\n".join([HEADER[version], *lines, ""]))
    return f"text://{folder}"


def lines(url, *more):
    """A configuration with two partitions."""
    return "\n".join(['loadmodule "dispatcher.so"', f'modparam("dispatcher", "db_url", "{url}")',
                      f'modparam("dispatcher", "partition", "p2: db_url={url}; table_name = ds_p2")',
                      'modparam("dispatcher", "ds_probing_threshhold", 1)', *more, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def states(trial, *words):
    """The states that ds_list shows, by URI."""
    listed = [line.split() for line in ask(trial, "ds_list", *words).splitlines() if "URI::" in line]
    return {line[1]: line[2].removeprefix("state=") for line in listed}


@pytest.mark.parametrize("version", [24, 34])
def test_partitions_as_recorded_with_their_events(start, tmp_path, version):
    dialect = "text" if version == 24 else "jsonrpc"
    server = start(f'loadmodule "db_text.so"\n{lines(tables(tmp_path, version))}')
    listener, client, wrong = subscribed(server, dialect, "E_DISPATCHER_STATUS"), server.client(), []
    rows = [row for row in rows_of(f"variants{version}.jsonl") if row["id"].startswith("dspart")]
    for row in rows:
        if b"dbt_reload" in row["request"]:  # of a file that has gone bad, which leaves what there is
            (tmp_path / "ds_p2").write_text("bad")
        wrong.append(differs(row, client.ask(row["request"])))
        for event in row["events"]:
            assert listener.receive() == event.encode("latin-1"), row["id"]
    assert rows and [text for text in wrong if text] == []
    assert listener.receive(0.1) is None


def test_a_reload_reads_the_table_again_and_keeps_states(tmp_path):
    url = tables(tmp_path)
    with mi.Trial(lines(url)) as trial:
        ask(trial, "ds_set_state", "i", "1", "sip:127.0.0.1:5171")
        ask(trial, "ds_set_state", "a", "p2:7", "sip:10.0.0.1")
        tables(tmp_path, dispatcher=("1:1:sip\\:127.0.0.1\\:5171::0:5:0:k:d", "2:3:sip\\:new::0:5:0:k:d"),
               ds_p2=(P2[0], "3:7:sip\\:10.0.0.3::1:x:0:z:z"))
        assert ask(trial, "ds_reload", "p2") == "200 OK\n\n"
        assert states(trial) == {"sip:10.0.0.1": "Active", "sip:10.0.0.3": "Inactive", "sip:127.0.0.1:5171": "Inactive"}
        assert ask(trial, "ds_reload") == "200 OK\n\n"
        assert states(trial, "default") == {"sip:new": "Active", "sip:127.0.0.1:5171": "Inactive"}
        request = {"jsonrpc": "2.0", "method": "ds_reload", "params": {"inherit_state": "0"}, "id": 1}
        assert b'"OK"' in trial.ask(json.dumps(request).encode())
        assert states(trial)["sip:127.0.0.1:5171"] == "Active"


def test_a_table_that_cannot_be_read_leaves_what_there_is(start, tmp_path):
    server = start(lines(tables(tmp_path)))
    tables(tmp_path, dispatcher=("1:x:sip\\:a::0:5:0:k:d",))
    assert server.ask(b":ds_reload:\n") == b"500 ERROR Reloading data\n\n"
    server.wait_log(f"{tmp_path}/dispatcher:2: setid is 'x', which is no number")
    assert b"sip:127.0.0.1:5171" in server.ask(b":ds_list:\n")


@pytest.mark.parametrize("weight, shown", [
    ("\u00b2", 0), ("1" + "0" * 5000, 0), ("-1", 0), ("x", 0), ("0", 0), ("007", 7), ("12x", 12), (" 5", 0), ("4294967297", 1),
    ("", 1), ("fs\\://u\\:p@h", 1)])
def test_a_weight_is_the_digits_that_it_begins_with(tmp_path, monkeypatch, weight, shown):
    """And 1 without a text, and for a FreeSWITCH server."""
    monkeypatch.setitem(HEADER, 24, HEADER[24].replace("weight(string)", "weight(string,null)"))
    with mi.Trial(lines(tables(tmp_path, dispatcher=[f"1:1:sip\\:a::0:{weight}:0:k:d"]))) as trial:
        assert f"weight:: {shown}\n" in ask(trial, "ds_list", "default", "full")


def test_fields_without_a_value_have_one_that_the_module_gives_them(tmp_path, monkeypatch):
    """But without a set a row is left out, and no row counts if one has no destination."""
    for name in ("setid", "state", "priority"):
        monkeypatch.setitem(HEADER, 24, HEADER[24].replace(f"{name}(int)", f"{name}(int,null)"))
    monkeypatch.setitem(HEADER, 24, HEADER[24].replace("destination(string)", "destination(string,null)"))
    rows = ["1:1:sip\\:a::1:5:0:k:d", "2::sip\\:b::0:5:0:k:d", "3:1:sip\\:c:::5::k:d", "4:1:sip\\:e::0:5:-1:k:d"]
    with mi.Trial(lines(tables(tmp_path, dispatcher=rows))) as trial:
        assert states(trial, "default") == {"sip:a": "Inactive", "sip:c": "Active", "sip:e": "Active"}
        assert re.findall("priority:: (.*)", ask(trial, "ds_list", "default", "full")) == ["0", "0", "65535"]
    url = tables(tmp_path, dispatcher=[*rows, "4:1:::0:5:0:k:d"])
    with pytest.raises(mi.ConfigError, match="dispatcher:6: destination is NULL"):
        mi.Trial(lines(url))


def test_without_persistent_state_the_column_is_not_read(tmp_path, monkeypatch):
    rows = ["1:1:sip\\:a::1:5:0:k:d", "2:1:sip\\:b::2:5:0:k:d"]
    off = 'modparam("dispatcher", "persistent_state", 0)'
    with mi.Trial(lines(tables(tmp_path, dispatcher=rows), off)) as trial:
        assert states(trial, "default") == {"sip:a": "Active", "sip:b": "Active"}
        assert ask(trial, "ds_set_state", "i", "1", "sip:b") == ask(trial, "ds_reload") == "200 OK\n\n"
        assert states(trial, "default") == {"sip:a": "Active", "sip:b": "Inactive"}
    monkeypatch.setitem(HEADER, 24, HEADER[24].replace("state(int)", "condition(int)"))
    with mi.Trial(lines(tables(tmp_path, dispatcher=rows), off)) as trial:
        assert states(trial, "default") == {"sip:a": "Active", "sip:b": "Active"}


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or its error."""
    answer = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return answer.get("result") or answer["error"]


@pytest.mark.parametrize("uri, address", [
    ("sip:127.0.0.1", "127.0.0.1:5060"), ("sip:u:p@127.0.0.1:05070;x=y", "127.0.0.1:5070"), ("SIP:127.0.0.1:0", "127.0.0.1:5060"),
    ("sip:[2001:db8:0:0::1]:5070", "2001:DB8:0:0:0:0:0:1:5070"), ("sip:u@[::1]", "0:0:0:0:0:0:0:1:5060"), ("sip:a.b", None),
    ("sip:127.0.0.1;lr;transport=TCP;x=y", "127.0.0.1:5060"), ("sip:127.0.0.1;transport=tls", "127.0.0.1:0"),
    ("sip:127.0.0.1:5070;transport=tls", "127.0.0.1:5070"), ("sip:127.0.0.1;transport=nope", "127.0.0.1:0"),
    ("sips:127.0.0.1", "127.0.0.1:0"), ("sips:127.0.0.1;transport=udp", "127.0.0.1:5060"),
    ("sip:127.0.0.1?a=;transport=ws", "127.0.0.1:5060"), ("sip:127.0.0.1;transport=ws", "127.0.0.1:80")])
def test_an_address_has_the_port_of_a_protocol_that_the_server_speaks(tmp_path, uri, address):
    """0 of another one."""
    escaped = uri.replace(":", "\\:")
    sockets = "listen=udp:127.0.0.1:5062\nlisten=tcp:127.0.0.1:5062\nlisten=ws:127.0.0.1:8080\n"
    with mi.Trial(sockets + lines(tables(tmp_path, dispatcher=[f"1:1:{escaped}::0:5:0:k:d"]))) as trial:
        one, = rpc(trial, "ds_list", partition="default")["PARTITIONS"][0]["SETS"][0]["Destinations"]
    assert one["resolved_addresses"] == ([address] if address else [])


def test_script_attributes_are_for_addresses_and_end_with_a_reload(tmp_path):
    """Set -1 is all sets, port 0 any port; a reload keeps whether a destination is active, but not how often it failed."""
    rows = ["1:1:sip\\:127.0.0.1::0:5:0:k:d", "2:2:sip\\:u@127.0.0.1\\:5070::0:5:0:k:d", "3:2:sip\\:[\\:\\:1]::0:5:0:k:d",
            "4:2:sips\\:127.0.0.1::0:5:0:k:d"]
    with mi.Trial(lines(tables(tmp_path, dispatcher=rows)).replace("threshhold\", 1", "threshhold\", 2")) as trial:
        def attributes():
            sets = rpc(trial, "ds_list", partition="default")["PARTITIONS"][0]["SETS"]
            return {one["URI"]: one["script_attr"] for group in sets for one in group["Destinations"] if "script_attr" in one}

        assert rpc(trial, "ds_push_script_attrs", attrs="x", ip="127.0.0.1", port=5070, set=-1) == "OK"
        assert attributes() == {"sip:u@127.0.0.1:5070": "x", "sips:127.0.0.1": "x"}
        assert rpc(trial, "ds_push_script_attrs", attrs="y", ip="127.0.0.1", port=0, set=2, partition="default") == "OK"
        assert rpc(trial, "ds_push_script_attrs", attrs="z", ip="[0::1]", port=5060, set=2) == "OK"
        assert attributes() == {"sip:u@127.0.0.1:5070": "y", "sips:127.0.0.1": "y", "sip:[::1]": "z"}
        for wrong in ("", "nope"):
            assert rpc(trial, "ds_push_script_attrs", attrs="y", ip="::1", port=0, set=2, partition=wrong)["code"] == 404
        ask(trial, "ds_set_state", "p", "1", "sip:127.0.0.1")
        ask(trial, "ds_set_state", "i", "2", "sips:127.0.0.1")
        assert rpc(trial, "ds_reload", partition="") == "OK" and attributes() == {}
        ask(trial, "ds_set_state", "p", "1", "sip:127.0.0.1")
        assert [uri for uri, state in states(trial, "default").items() if state != "Active"] == ["sips:127.0.0.1"]


def test_a_reset_of_the_lab_names_the_table_that_cannot_be_read(tmp_path):
    """And brings what other modules have back."""
    url = tables(tmp_path)
    drouting = (ROOT / "tests" / "data" / "modules" / "db24").as_uri().replace("file://", "text://")
    more = f'loadmodule "lab.so"\nloadmodule "drouting.so"\nmodparam("drouting", "db_url", "{drouting}")'
    with mi.Trial(lines(url, more)) as trial:
        (tmp_path / "dispatcher").write_text(f"{HEADER[24]}\nx\n")
        assert ask(trial, "lab_reset") == f"500 dispatcher: {tmp_path}/dispatcher:2: has 1 fields, not 9\n\n"
        assert ask(trial, "dr_gw_status", "gw1") == "200 OK\nState:: Active\n\n"
        tables(tmp_path)
        assert ask(trial, "lab_reset") == "200 OK\n\n"
        assert states(trial, "default") == {"sip:127.0.0.1:5171": "Active"}


def test_a_table_that_cannot_be_read_ends_the_start(tmp_path):
    url = tables(tmp_path, dispatcher=("1:1:sip\\:a::0:5:0::d",))
    with pytest.raises(mi.ConfigError, match="dispatcher:2: attrs is empty, and may not be NULL"):
        mi.Trial(lines(url))


def test_states_are_shared_by_children_and_survive_a_reload_of_the_configuration(start, tmp_path):
    server = start(lines(tables(tmp_path), 'modparam("mi_datagram", "children_count", 3)'))
    clients = [server.client() for _ in range(6)]
    assert clients[0].ask(b":ds_set_state:\ni\n1\nsip:127.0.0.1:5171\n") == b"200 OK\n\n"
    assert len({client.ask(b":ds_list:\n") for client in clients}) == 1
    server.reload()
    assert b"sip:127.0.0.1:5171 state=Inactive" in server.ask(b":ds_list:\n")


def test_sets_and_destinations_have_the_original_order(tmp_path):
    rows = [f"{at}:{number}:sip\\:d{at}::0:5:{priority}:k:d" for at, (number, priority) in
            enumerate([(5, 0), (2, 0), (5, 3), (9, 0), (2, 0), (5, 3), (8, 1), (8, -1), (8, 2), (8, 3), (8, 0), (8, -2), (8, 7)])]
    url = tables(tmp_path, dispatcher=rows)
    with mi.Trial(lines(url)) as trial:
        lines_ = ask(trial, "ds_list", "default").splitlines()
        listed = [line.split()[1] for line in lines_ if ":: " in line and "attr" not in line]
    assert listed == ["default", "8", "sip:d6", "sip:d7", "sip:d9", "sip:d8", "sip:d10", "sip:d11", "sip:d12", "9", "sip:d3",
                      "2", "sip:d1", "sip:d4", "5", "sip:d2", "sip:d5", "sip:d0"]


def test_an_address_is_the_same_in_any_case_and_a_set_must_have_it(tmp_path):
    with mi.Trial(lines(tables(tmp_path))) as trial:
        assert ask(trial, "ds_set_state", "i", "p2:7", "SIP:10.0.0.2;Transport=TCP") == "200 OK\n\n"
        assert ask(trial, "ds_set_state", "i", "1", "sip:10.0.0.1") == "404 destination not found\n\n"
        assert ask(trial, "ds_set_state", "i", "no:1", "sip:10.0.0.1") == "404 ERROR Unknown partition\n\n"


@pytest.mark.parametrize("steps, wanted", [
    ("i", "Inactive"), ("ip", "Active"), ("pp", "Active"), ("ppp", "Probing"), ("pppi", "Inactive"), ("pppa", "Active"),
    ("pppap", "Probing"), ("ipppp", "Probing"), ("ippp", "Active")])
def test_three_times_probing_is_probing(tmp_path, steps, wanted):
    text = lines(tables(tmp_path)).replace("ds_probing_threshhold\", 1", "ds_probing_threshhold\", 3")
    with mi.Trial(text) as trial:
        for step in steps:
            ask(trial, "ds_set_state", step, "1", "sip:127.0.0.1:5171")
        assert states(trial)["sip:127.0.0.1:5171"] == wanted


@pytest.mark.parametrize("line", ["", "p2: db_url", ": table_name=x", "p2: table=x", "p2: table_name=", "table=x"])
def test_a_partition_has_a_name_and_settings(line):
    with pytest.raises(mi.ConfigError, match="partition takes"):
        mi.Trial(f'loadmodule "dispatcher.so"\nmodparam("dispatcher", "partition", "{line}")')


def test_an_empty_partition_is_shown_without_sets(tmp_path):
    with mi.Trial(lines(tables(tmp_path, ds_p2=()))) as trial:
        assert ask(trial, "ds_list", "p2") == "200 OK\nPARTITION:: p2\n\n"
        reply = trial.ask(b'{"jsonrpc":"2.0","method":"ds_list","params":{"partition":"p2"},"id":1}')
        assert json.loads(reply)["result"] == {"PARTITIONS": [{"name": "p2"}]}


def test_a_list_that_cannot_fit_is_given_up_before_it_is_made(tmp_path):
    """And what a destination takes at least is no more than one takes."""
    with mi.Trial(lines(tables(tmp_path, dispatcher=["1:1:sip\\:d::0:5:0:y:z"]))) as trial:
        assert len(ask(trial, "ds_list", "default")) - len("200 OK\nPARTITION:: default\n\tSET:: 1\n\n") > 45
    many = [f"{number}:1:sip\\:d{number}::0:5:0:key:d" for number in range(6000)]
    with mi.Trial(lines(tables(tmp_path, dispatcher=many))) as trial:
        assert ask(trial, "ds_list") == "500 reply of more than 261828 bytes exceeds 65457\n"
        assert trial.ask(b'{"jsonrpc":"2.0","method":"ds_list","id":1}') == b"500 Internal error"


SOCKETS = """listen=udp:127.0.0.1:5062 use_children 2 as 1.2.3.4:5060
listen = tcp:127.0.0.1
socket=tls:[2001:DB8::1] anycast
socket=ws:eth0:8080
listen=sctp:*:5080
listen=10.0.0.1:5070"""


@pytest.mark.parametrize("place, shown", [
    ("udp:127.0.0.1:5062", "udp:127.0.0.1:5062"), ("127.0.0.1:5062", "udp:127.0.0.1:5062"), ("udp:127.0.0.1:5061", None),
    ("udp:127.0.0.1", "udp:127.0.0.1:5062"), ("UDP:1.2.3.4:5060", "udp:127.0.0.1:5062"), ("127.0.0.1:5060", "udp:127.0.0.1:5062"),
    ("udp:127.0.0.1:0", "udp:127.0.0.1:5062"), ("udp:1.2.3.5:5060", None),
    ("tcp:127.0.0.1:5060", "tcp:127.0.0.1:5060"), ("tcp:127.0.0.1", "tcp:127.0.0.1:5060"), ("tcp:127.0.0.1:5062", None),
    ("tls:[2001:db8:0::1]", "tls:[2001:DB8:0:0:0:0:0:1]:5061"), ("tls:[2001:db8::2]:5061", None),
    ("tls:[2001:db8::1]:5060", None), ("ws:9.9.9.9:8080", "ws:9.9.9.9:8080"),
    ("ws:9.9.9.9:80", None), ("sctp:9.9.9.9:5080", "sctp:9.9.9.9:5080"),
    ("udp:10.0.0.1:5070", "udp:10.0.0.1:5070"), ("udp:x:y:z", None), ("5060", None), ("nonsense here", None)])
def test_a_socket_is_shown_as_the_server_has_it(tmp_path, place, shown, caplog):
    """By the lines of the configuration, also by what is behind `as`; what is none is logged. Without a line any socket is the
    server's, and shown as it is."""
    escaped = place.replace(":", "\\:")
    row = f"1:1:sip\\:a:{escaped}:0:5:0:k:d"
    with mi.Trial(f"{SOCKETS}\n{lines(tables(tmp_path, dispatcher=(row,)))}") as trial:
        listed = ask(trial, "ds_list", "default")
    assert "URI:: sip:a state=Active" in listed and re.findall("socket:: (.*)", listed) == ([shown] if shown else [])
    assert (f"socket {place} is none of this server's" in caplog.text) is not bool(shown)
    with mi.Trial(lines(tables(tmp_path, dispatcher=(row,)))) as trial:
        assert f"socket:: {place}\n" in ask(trial, "ds_list", "default")


def test_a_change_is_a_row_of_its_own(tmp_path):
    """Which a reload takes into the partition; one for a set that is gone is forgotten."""
    many = [f"{number}:{number % 5}:sip\\:d{number}::0:5:0:key:d" for number in range(1000)]
    url = tables(tmp_path, dispatcher=many)
    with mi.Trial(lines(url)) as trial:
        store = trial.server.store
        for number in range(0, 1000, 10):
            assert ask(trial, "ds_set_state", "i", f"{number % 5}", f"SIP:D{number}") == "200 OK\n\n"
        written = [value for key, value in store.items("dispatcher_partitions") if "\n" in key]
        assert len(written) == 100 and max(map(len, written)) < 60
        tables(tmp_path, dispatcher=many[500:])
        assert ask(trial, "ds_reload", "default") == "200 OK\n\n"
        assert [key for key, _ in store.items("dispatcher_partitions") if key.startswith("default")] == ["default"]
        found = states(trial, "default")
        assert [uri for uri, state in found.items() if state == "Inactive"] == [
            f"sip:d{number}" for rest in (5, 0) for number in range(500, 1000, 10) if number % 10 == rest] and len(found) == 500
        assert ask(trial, "ds_set_state", "a", "0", "sip:d500") == "200 OK\n\n"
        assert ask(trial, "ds_set_state", "a", "0", "sip:d0") == "404 destination not found\n\n"
        assert list(states(trial, "default").values()).count("Inactive") == 49


def test_states_of_a_set_that_was_replaced_are_not_taken(tmp_path):
    """What a child writes that has not taken in a reload yet."""
    with mi.Trial(lines(tables(tmp_path))) as trial:
        ask(trial, "ds_set_state", "i", "1", "sip:127.0.0.1:5171")
        key, value = next((key, value) for key, value in trial.server.store.items("dispatcher_partitions") if "\n" in key)
        request = {"jsonrpc": "2.0", "method": "ds_reload", "params": {"inherit_state": "0"}, "id": 1}
        trial.ask(json.dumps(request).encode())
        trial.server.store.put("dispatcher_partitions", key, value)
        assert states(trial)["sip:127.0.0.1:5171"] == "Active"


def test_children_change_states_of_one_partition_at_the_same_time(start, tmp_path):
    """No change is lost."""
    many = [f"{number}:1:sip\\:d{number}::0:5:0:key:d" for number in range(60)]
    server = start(lines(tables(tmp_path, dispatcher=many), 'modparam("mi_datagram", "children_count", 3)'))
    clients = [server.client() for _ in range(6)]
    for number in range(60):
        clients[number % 6].send(f":ds_set_state:\ni\n1\nsip:d{number}\n".encode())
    for number in range(60):
        assert clients[number % 6].receive() == b"200 OK\n\n"
    assert {client.ask(b":ds_list:\ndefault\n").count(b"state=Inactive") for client in clients} == {60}


def test_a_text_request_by_the_name_of_40_gets_the_same(tmp_path):
    with mi.Trial(lines(tables(tmp_path))) as trial:
        assert ask(trial, "dispatcher:list") == ask(trial, "ds_list") != "200 OK\n\n"


ODD = ["1:1:nonsense here::0:5:0:y:z", "2:1:10.0.0.4::0:5:0:y:z", "3:1:tel\\:+49::0:5:0:y:z",
       "4:1:sip\\:10.0.0.3\\:99999::0:5:0:y:z",
       "5:1:sip\\:u@10.0.0.4\\:99999::0:5:0:y:z", "6:1:sip\\:10.0.0.5::7:5:0:y:z", "7:-2:sips\\:10.0.0.7::0:5:0:y:z"]


@pytest.mark.parametrize("imitated, left_out", [("midatagram", 5), ("2.4", 3), ("3.4", 5)])
def test_a_destination_that_is_no_sip_uri_is_left_out(tmp_path, caplog, imitated, left_out):
    with mi.Trial(lines(tables(tmp_path, dispatcher=ODD), f'modparam("midatagram", "imitate", "{imitated}")')) as trial:
        reply = ask(trial, "ds_list", "default")
        request = b'{"jsonrpc":"2.0","method":"ds_list","params":{"partition":"default"},"id":1}'
        partition, = json.loads(trial.ask(request))["result"]["PARTITIONS"]
    assert reply.count("URI:: ") == len(ODD) - left_out and "URI:: sip:10.0.0.5 state=Active" in reply
    assert "\tSET:: 18446744073709551614\n" in reply and [one["id"] for one in partition["SETS"]] == [-2, 1]
    assert partition["SETS"][0]["Destinations"][0]["resolved_addresses"] == ["10.0.0.7:0"]
    assert caplog.text.count("the row is left out") == left_out
    assert "/dispatcher:3: the row is left out: it has the destination '10.0.0.4', which is no SIP URI" in caplog.text


def test_partitions_are_listed_as_they_are_declared_and_the_default_one_last(tmp_path):
    url = tables(tmp_path, zz=P2, aa=P2)
    more = [f'modparam("dispatcher", "partition", "{name}: db_url={url}; table_name = {name}")' for name in ("zz", "aa")]
    with mi.Trial(lines(url, *more)) as trial:
        assert re.findall("PARTITION:: (.*)", ask(trial, "ds_list")) == ["p2", "zz", "aa", "default"]


def test_a_name_alone_makes_a_partition_the_default_one(start, tmp_path):
    """Settings alone are for `default`, and lines for one partition add to each other."""
    url = tables(tmp_path)
    more = [f'modparam("dispatcher", "partition", "{line}")'
            for line in ("table_name=nope", "p3", "p3: db_url=x", f"p3: db_url={url}")]
    server = start(lines(url, *more))
    listener = subscribed(server, "text", "E_DISPATCHER_STATUS")
    replies = [server.ask(request).decode() for request in (
        b":ds_list:\n", b":ds_list:\ndefault\n", b":ds_set_state:\na\ndefault:1\nsip:a\n", b":ds_reload:\n",
        b":ds_set_state:\ni\n1\nsip:127.0.0.1:5171\n")]
    assert re.findall("PARTITION:: (.*)", replies[0]) == ["p2", "p3"] and replies[1] == "400 Bad parameter\n\n"
    assert replies[2:] == ["404 ERROR Unknown partition\n\n", "200 OK\n\n", "200 OK\n\n"]
    assert listener.receive() == b"E_DISPATCHER_STATUS\ngroup::1\naddress::sip:127.0.0.1:5171\nstatus::inactive\n\n"


def test_without_a_database_for_it_there_is_no_default_partition(tmp_path):
    """Beside others."""
    text = re.sub('modparam.*"db_url".*\n', "", lines(tables(tmp_path)))
    with mi.Trial(text) as trial:
        assert re.findall("PARTITION:: (.*)", ask(trial, "ds_list")) == ["p2"]
        assert ask(trial, "ds_list", "default") == ask(trial, "ds_list", '""') == "400 Bad parameter\n\n"
        assert ask(trial, "ds_set_state", "i", "7", "sip:10.0.0.1") == "404 ERROR Unknown partition\n\n"
        assert ask(trial, "ds_reload", "default") == "500 ERROR Unknown partition\n\n"
        assert rpc(trial, "ds_push_script_attrs", attrs="x", ip="10.0.0.1", port=0, set=7)["code"] == 404
