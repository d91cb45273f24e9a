"""drouting beyond the recordings: partitions, reloads, rules, what is wrong with a table."""

import json
import re

import pytest
from test_modules import subscribed, wrong_pairs

import midatagram as mi

GATEWAYS = ("id(int,auto) gwid(string) type(int) address(string) strip(int) pri_prefix(string,null) attrs(string,null) "
            "probe_mode(int) state(int) socket(string,null) description(string,null)")
CARRIERS = {24: "id(int,auto) carrierid(string) gwlist(string) flags(int) state(int) attrs(string,null) description(string,null)",
            34: "id(int,auto) carrierid(string) gwlist(string) flags(int) sort_alg(string) state(int) attrs(string,null)"}
RULES = {24: "ruleid(int,auto) groupid(string) prefix(string,null) timerec(string,null) priority(int) routeid(string,null) "
             "gwlist(string) attrs(string,null)",
         34: "ruleid(int,auto) groupid(string) prefix(string,null) timerec(string,null) priority(int) routeid(string,null) "
             "gwlist(string,null) sort_alg(string) sort_profile(int,null) attrs(string,null)"}
PARTITIONS = "id(int,auto) partition_name(string) db_url(string,null) drd_table(string,null) drr_table(string,null) " \
             "drc_table(string,null)"
VERSIONS = {"dr_gateways": {24: 6, 34: 6}, "dr_carriers": {24: 2, 34: 3}, "dr_rules": {24: 3, 34: 4}, "dr_partitions": {24: 1}}
GW = ("gw1:127.0.0.1\\:5171::0:0", "gw2:127.0.0.2\\:5060:attr2:0:1", 'gw3:127.0.0.3\\:5060:a b"c:1:2')  # as gateways() has them
CR = ("cr1:gw1,gw2:0:", "cr2:gw3:1:cattr")
DR = ("0:49:0:gw1,gw2:rattr", "0:4930:0:#cr1:", "1:49:0:gw3:")


def gateways(*rows):
    """Rows of a table of gateways from `name:address:attrs:probe_mode:state`."""
    split = [re.fullmatch(r"([^:]*):((?:[^:\\]|\\.)*):([^:]*):(\d+):(\w+)", row).groups() for row in rows]
    return [f"{at}:{name}:1:{address}:0::{attrs}:{probe}:{state}::" for at, (name, address, attrs, probe, state)
            in enumerate(split, 1)]


def carriers(version, *rows):
    """Rows of a table of carriers from `name:gwlist:state:attrs`."""
    split = [row.split(":") for row in rows]
    more = ("0:{}:{}:", "0:N:{}:{}")[version == 34]
    return [f"{at}:{name}:{listed}:{more.format(state, attrs)}" for at, (name, listed, state, attrs) in enumerate(split, 1)]


def rules(version, *rows):
    """Rows of a table of rules from `groups:prefix:priority:gwlist:attrs`."""
    split = [row.split(":") for row in rows]
    more = ("{}:{}", "{}:N::{}")[version == 34]
    return [f"{at}:{groups}:{prefix}::{priority}::{more.format(listed, attrs)}" for at, (groups, prefix, priority, listed, attrs)
            in enumerate(split, 1)]


def tables(folder, version=24, gw=GW, cr=CR, dr=DR, prefix="dr", **more):
    """A folder of db_text with the tables, whose names begin with a prefix; more: further tables, header and rows."""
    made = {"gateways": (GATEWAYS, gateways(*gw)), "carriers": (CARRIERS[version], carriers(version, *cr)),
            "rules": (RULES[version], rules(version, *dr))}
    with open(folder / "version", "a") as file:
        file.write("" if file.tell() else "table_name(string) table_version(int)\n")
        for name, (header, rows) in [*((f"{prefix}_{name}", one) for name, one in made.items()), *more.items()]:
            kind = VERSIONS.get(f"dr_{name.rpartition('_')[2]}")
            file.write(f"{name}:{kind.get(version, kind[24])}\n")
            (folder / name).write_text("\n".join([header, *rows, ""]))
    return f"text://{folder}"


def lines(url, *more):
    """A configuration without partitions."""
    return "\n".join(['loadmodule "drouting.so"', f'modparam("drouting", "db_url", "{url}")', *more, ""])


def two_partitions(folder, version=24):
    """A configuration with the partitions pstn and wholesale, the tables of the second with names of their own."""
    tables(folder, version, prefix="ws", gw=("w1:10.0.0.1::0:0",), cr=(), dr=("7::0:w1:",))
    rows = ["1:pstn:::dr_rules:", "2:wholesale::ws_gateways:ws_rules:ws_carriers"]
    url = tables(folder, version, dr_partitions=(PARTITIONS, rows))
    return lines(url, 'modparam("drouting", "use_partitions", 1)', f'modparam("drouting", "db_partitions_url", "{url}")')


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or the values of its error."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return reply["result"] if "result" in reply else tuple(reply["error"].values())


LEFT_OUT = ("p0139", "p0248", "p0256")  # 2.4 shows what else is in that place of the datagram, not the prefix


@pytest.mark.parametrize("dialect, version", [("text", 24), ("json", 34)])
def test_the_same_questions_to_both_versions(tmp_path, dialect, version):
    """With tables that are empty, have one row and many."""
    steps = {"p0127": {"gw": GW[:1], "cr": (), "dr": ("0:49:0:gw1:rattr",)}, "p0151": {}}
    reload = {"text": b":dr_reload:\n", "json": b'{"jsonrpc":"2.0","method":"dr_reload","id":1}'}[dialect]
    url = tables(tmp_path, version, (), (), ())
    with mi.Trial(lines(url, f'modparam("midatagram", "dialect", "{"jsonrpc" if version == 34 else "text"}")')) as trial:
        def before(row):
            if row["id"] in steps:
                tables(tmp_path, version, **steps[row["id"]])
                assert b"OK" in trial.ask(reload)

        wrong = wrong_pairs(trial, dialect, "dr_", before)
    assert [text for text in wrong if dialect == "json" or not text.startswith(LEFT_OUT)] == []


NUMBERS = [  # number, group, prefix and destinations
    ("491", 0, "49", "gw1 gw2"), ("4930", 0, "4930", "#cr1"), ("49301", 0, "4930", "#cr1"), ("49", 0, "49", "gw1 gw2"),
    ("4", 0, "", "gw9"), ("49a30", 0, "", "gw9"), ("49a30", 1, None, ""), ("4930 1", 0, "4930", "#cr1"), ("+4930", 1, None, ""),
    ("493", 1, "49", "gw3"), ("4930", 1, "49", "gw3"), ("4939", 0, "49", "gw1 gw2"), ("", 0, "", "gw9"), ("", 1, None, ""),
    ("391", 2, "39", "gw2"), ("391", 3, "39", "gw2"), ("391", 4, "39", "gw2"), ("391", 5, None, ""), ("49", 4294967295, None, ""),
    ("*21", 0, "*2", "gw3"), ("#2", 0, "", "gw9"),
]


@pytest.fixture(scope="module")
def routing(tmp_path_factory):
    """Rules with more than one group, a priority, without a prefix, with other characters."""
    url = tables(tmp_path_factory.mktemp("dr"), gw=(*GW, "gw9:10.0.0.9::0:0"), dr=(
        *DR, "2,3| 4:39:0:gw1:", "4294967298, 3 4:39:5:none,gw2=3,gw1x:", "0::0:gw9:", "0:*2:0:gw3:"))
    with mi.Trial(lines(url, 'modparam("drouting", "extra_prefix_chars", "*")')) as trial:
        yield trial


@pytest.mark.parametrize("number, group, prefix, listed", NUMBERS)
def test_a_number_is_routed_by_the_longest_prefix_of_its_group(routing, number, group, prefix, listed):
    found = [("CARRIER", one[1:]) if one[0] == "#" else ("GATEWAY", one) for one in listed.split()]
    tree = "".join(f"\t{kind}:: {name}\n" for kind, name in found)
    wanted = "200 OK\n\n" if prefix is None else f"200 OK\nMatched Prefix:: {prefix}\n{tree}\n"
    assert ask(routing, "dr_number_routing", str(group), number or "n::") == wanted
    result = rpc(routing, "dr_number_routing", group_id=group, number=number)
    if prefix is None:
        assert result == "No match"
    else:
        attrs = {"ATTRS": "rattr"} if prefix == "49" and group == 0 else {}
        assert result == {"Matched Prefix": prefix, "GW List": [{kind: name} for kind, name in found], **attrs}


def test_a_number_without_a_group_is_not_routed(routing):
    assert ask(routing, "dr_number_routing", "491") == "200 OK\n\n"
    assert rpc(routing, "dr_number_routing", number="491") == "No match"
    assert ask(routing, "dr_number_routing") == "400 Too few or too many arguments\n\n"
    assert ask(routing, "dr_number_routing", "0", "491", "x", "y").startswith("200 OK\nMatched Prefix:: 49\n")
    assert ask(routing, "dr_number_routing", "-1", "491") == "400 Bad parameter\n\n"


###############################################################################
# Partitions
###############################################################################


def test_partitions_in_text(tmp_path):
    """The partition stands before all other values; what is wrong with it has another text in each command."""
    with mi.Trial(two_partitions(tmp_path)) as trial:
        assert ask(trial, "dr_gw_status") == ask(trial, "dr_carrier_status") == "400 Partition mandatory\n\n"
        assert ask(trial, "dr_gw_status", "gw1") == ask(trial, "dr_carrier_status", "x::") == "404 Partition not found\n\n"
        assert ask(trial, "dr_gw_status", "wholesale") == "200 OK\nID:: w1 IP=10.0.0.1 State=Active\n\n"
        assert ask(trial, "dr_gw_status", "pstn", "gw3") == "200 OK\nState:: Probing\n\n"
        assert ask(trial, "dr_gw_status", "wholesale", "gw3") == "404 GW ID not found\n\n"
        assert ask(trial, "dr_gw_status", "pstn", "gw1", "0", "1") == "400 Too few or too many arguments\n\n"
        assert ask(trial, "dr_gw_status", "pstn", "gw1", "x") == "400 Bad parameter\n\n"
        assert ask(trial, "dr_carrier_status", "pstn", "cr2", "1") == "200 OK\n\n"
        assert ask(trial, "dr_carrier_status", "pstn") == "200 OK\nID:: cr1 Enabled=yes\nID:: cr2 Enabled=yes\n\n"
        assert ask(trial, "dr_carrier_status", "wholesale") == "200 OK\n\n"
        for words in ((), ("pstn",)):
            assert ask(trial, "dr_number_routing", *words) == "400 Too few or too many arguments\n\n"
        assert ask(trial, "dr_number_routing", "no", "1") == "400 Bad parameter\n\n"
        assert ask(trial, "dr_number_routing", "pstn", "491") == "200 OK\n\n"
        assert ask(trial, "dr_number_routing", "wholesale", "7", "491") == "200 OK\nMatched Prefix:: \n\tGATEWAY:: w1\n\n"
        date = r"Date=\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}\n"
        assert re.fullmatch(f"200 OK\nPartition:: pstn {date}Partition:: wholesale {date}\n", ask(trial, "dr_reload_status"))
        assert re.fullmatch(f"200 OK\nPartition:: wholesale {date}\n", ask(trial, "dr_reload_status", "wholesale", "x"))
        assert ask(trial, "dr_reload_status", "no") == "400 Bad parameter\n\n"
        assert ask(trial, "dr_reload", "no") == "500 Failed to reload\n\n"
        assert ask(trial, "dr_reload", "pstn", "x") == ask(trial, "dr_reload") == "200 OK\n\n"


def test_partitions_in_jsonrpc(tmp_path):
    with mi.Trial(two_partitions(tmp_path, 34)) as trial:
        missing = (400, "Missing parameter: 'partition_name'", "'partition_name' is required when 'use_partitions' is set")
        for method in ("dr_gw_status", "dr_carrier_status"):
            assert rpc(trial, method) == rpc(trial, method, **{f"{'gw' if 'gw' in method else 'carrier'}_id": "x"}) == missing
            assert rpc(trial, method, partition_name="no") == (404, "Partition not found")
        assert rpc(trial, "dr_number_routing", number="1") == rpc(trial, "dr_number_routing", number="1", group_id="x") == missing
        assert rpc(trial, "dr_gw_status", partition_name="wholesale") == {
            "Gateways": [{"ID": "w1", "IP": "10.0.0.1", "State": "Active"}]}
        assert rpc(trial, "dr_gw_status", partition_name="pstn", gw_id="gw2") == {"ATTRS": "attr2", "State": "Disabled MI"}
        assert rpc(trial, "dr_gw_status", partition_name="pstn", gw_id="gw2", status=7) == "OK"
        assert rpc(trial, "dr_gw_status", partition_name="pstn", gw_id=None)[-1] == "Bad type for parameter 'gw_id'"
        assert rpc(trial, "dr_gw_status", partition_name=None)[-1] == "Bad type for parameter 'partition_name'"
        assert rpc(trial, "dr_gw_status", partition_name="pstn", gw_id="no", status="x")[-1] == "Bad type for parameter 'status'"
        assert rpc(trial, "dr_carrier_status", partition_name="pstn", carrier_id="cr2") == {"ATTRS": "cattr", "Enabled": "no "}
        assert rpc(trial, "dr_number_routing", partition_name="wholesale", group_id=7, number="1") == {
            "Matched Prefix": "", "GW List": [{"GATEWAY": "w1"}]}
        assert rpc(trial, "dr_number_routing", partition_name="pstn", number="49") == "No match"
        assert [one["name"] for one in rpc(trial, "dr_reload_status")["Partitions"]] == ["pstn", "wholesale"]
        assert [*rpc(trial, "dr_reload_status", partition_name="pstn")] == ["name", "Date"]
        assert rpc(trial, "dr_reload_status", partition_name="no") == (404, "Partition not found")
        assert rpc(trial, "dr_reload", partition_name="no") == (404, "Partition not found")
        assert rpc(trial, "dr_reload", partition_name="pstn", inherit_state="n") == "OK"
        assert rpc(trial, "dr_gw_status", partition_name="pstn", gw_id="gw2")["State"] == "Disabled MI"


def test_midatagrams_database_stands_in_for_that_of_the_partitions(tmp_path):
    text = two_partitions(tmp_path).replace("text://", "mysql://")
    with mi.Trial(f'{text}\nmodparam("midatagram", "db_url", "text://{tmp_path}")\n') as trial:
        assert ask(trial, "dr_gw_status", "wholesale", "w1") == "200 OK\nState:: Active\n\n"


###############################################################################
# State
###############################################################################


def test_a_reload_keeps_states_and_reads_one_partition_or_all(tmp_path):
    with mi.Trial(two_partitions(tmp_path)) as trial:
        ask(trial, "dr_gw_status", "pstn", "gw1", "0")
        ask(trial, "dr_carrier_status", "pstn", "cr1", "0")
        tables(tmp_path, gw=("gw1:new::0:0", "gw4:n::0:0"), cr=("cr1:gw1:0:", "cr3:gw4:0:"))
        tables(tmp_path, prefix="ws", gw=(), cr=(), dr=())
        assert ask(trial, "dr_reload", "pstn") == "200 OK\n\n"
        assert ask(trial, "dr_gw_status", "pstn") == "200 OK\nID:: gw1 IP=new State=Disabled MI\nID:: gw4 IP=n State=Active\n\n"
        assert ask(trial, "dr_carrier_status", "pstn") == "200 OK\nID:: cr1 Enabled=no \nID:: cr3 Enabled=yes\n\n"
        assert ask(trial, "dr_gw_status", "wholesale", "w1").startswith("200")
        assert ask(trial, "dr_reload") == "200 OK\n\n"
        assert ask(trial, "dr_gw_status", "wholesale") == ask(trial, "dr_number_routing", "wholesale", "7", "1") == "200 OK\n\n"


def test_states_are_shared_by_children_and_survive_a_reload_of_the_configuration(start, tmp_path):
    """Partitions that are gone from their table go."""
    server = start(two_partitions(tmp_path) + 'modparam("mi_datagram", "children_count", 3)\n')
    clients = [server.client() for _ in range(6)]
    assert clients[0].ask(b":dr_gw_status:\npstn\ngw1\n0\n") == b"200 OK\n\n"
    assert {client.ask(b":dr_gw_status:\npstn\ngw1\n") for client in clients} == {b"200 OK\nState:: Disabled MI\n\n"}
    (tmp_path / "dr_partitions").write_text(f"{PARTITIONS}\n1:pstn::::\n")
    server.reload()
    assert server.ask(b":dr_gw_status:\npstn\ngw1\n") == b"200 OK\nState:: Disabled MI\n\n"
    assert server.ask(b":dr_gw_status:\nwholesale\n") == b"404 Partition not found\n\n"


def test_an_event_names_the_partition(start, tmp_path):
    server = start(two_partitions(tmp_path))
    listener, client = subscribed(server, "text", "E_DROUTING_STATUS"), server.client()
    for words in (b"pstn\ngw3\n1", b"pstn\ngw3\n5", b"wholesale\nw1\n0"):
        assert client.ask(b":dr_gw_status:\n%s\n" % words) == b"200 OK\n\n"
    assert listener.receive() == b"E_DROUTING_STATUS\npartition::pstn\ngwid::gw3\naddress::127.0.0.3:5060\nstatus::active\n\n"
    assert listener.receive() == b"E_DROUTING_STATUS\npartition::wholesale\ngwid::w1\naddress::10.0.0.1\nstatus::disabled MI\n\n"
    assert listener.receive(0.1) is None


def test_a_gateway_that_is_off_for_good_is_no_longer_probed(tmp_path):
    """Inactive and Probing become Disabled MI, which is another state."""
    with mi.Trial(lines(tables(tmp_path))) as trial:
        assert ask(trial, "dr_gw_status", "gw3") == "200 OK\nState:: Probing\n\n"
        ask(trial, "dr_gw_status", "gw3", "0")
        assert ask(trial, "dr_gw_status", "gw3") == "200 OK\nState:: Disabled MI\n\n"


def test_states_of_the_table_are_read_unless_the_configuration_says_no(tmp_path):
    with mi.Trial(lines(tables(tmp_path), 'modparam("drouting", "persistent_state", 0)')) as trial:
        assert ask(trial, "dr_gw_status").count("State=Active") == 3
        assert ask(trial, "dr_carrier_status").count("Enabled=yes") == 2


def test_probing_is_shown_and_switched(tmp_path):
    with mi.Trial(lines(tables(tmp_path), 'modparam("drouting", "probing_interval", 0)')) as trial:
        assert rpc(trial, "dr_enable_probing") == {"Status": 1}
        assert rpc(trial, "dr_enable_probing", status=0) == "OK"
        assert rpc(trial, "dr_enable_probing") == {"Status": 0}
        assert rpc(trial, "dr_enable_probing", status=None)[-1] == "Bad type for parameter 'status'"
        assert ask(trial, "dr_enable_probing", "5") == "200 OK\n\n"
        assert ask(trial, "dr_enable_probing") == "200 OK\nStatus:: 1\n\n"


###############################################################################
# Tables
###############################################################################


def test_gateways_are_listed_by_the_bytes_of_their_names_and_without_what_is_around_the_host(tmp_path):
    url = tables(tmp_path, gw=("b:sip\\:u@10.0.0.1::0:0", "B:SIPS\\:10.0.0.2\\:5061;transport=tls::0:0", "ab:x@h::0:0",
                               "\u00e9:h::0:0", "a:[2001\\:db8\\:\\:1]\\:5060::0:0"))
    with mi.Trial(lines(url, IMITATES % "2.4")) as trial:
        assert [line.split()[1:3] for line in ask(trial, "dr_gw_status").splitlines()[1:-1]] == [
            ["B", "IP=10.0.0.2:5061;transport=tls"], ["a", "IP=[2001:db8::1]:5060"], ["ab", "IP=h"], ["b", "IP=10.0.0.1"],
            ["\u00e9", "IP=h"]]


IMITATES = 'modparam("midatagram", "imitate", "%s")'


@pytest.mark.parametrize("imitated, names", [("midatagram", "ok"), ("2.4", "b b, ok, port, x;y"), ("3.4", "ok"), ("4.0", "ok")])
def test_later_releases_take_less_for_a_gateway(tmp_path, imitated, names):
    url = tables(tmp_path, cr=(), dr=(), gw=(
        "ok:h::0:0", "x;y:h::0:0", "b b:h::0:0", "port:h\\:70000::0:0", "c:not a host!::0:0"))
    with mi.Trial(lines(url, IMITATES % imitated)) as trial:
        assert ", ".join(re.findall("(?m)^ID:: (.*) IP=", ask(trial, "dr_gw_status"))) == names


@pytest.mark.parametrize("more, names", [
    ("", "a.b a_b-c"), ('modparam("drouting", "extra_id_chars", ".#")', "a.b"),
    ('modparam("drouting", "extra_id_chars", "")', "")])
def test_the_characters_of_names_are_a_setting(tmp_path, more, names):
    """Of gateways, and of what rules lead to."""
    known = ("a.b", "a_b-c")
    url = tables(tmp_path, cr=(), gw=[f"{name}:h::0:0" for name in known], dr=[
        f"0:{at}:0:{name}=5:" for at, name in enumerate(known)])
    with mi.Trial(lines(url, IMITATES % "3.4", more)) as trial:
        assert " ".join(re.findall("(?m)^ID:: (.*) IP=", ask(trial, "dr_gw_status"))) == names
        for at, name in enumerate(known):
            shown = rpc(trial, "dr_number_routing", group_id=0, number=f"{at}")
            assert shown == ({"Matched Prefix": f"{at}", "GW List": [{"GATEWAY": name}]} if name in names else "No match")


@pytest.mark.parametrize("mode, names", [("none", "a b c"), ("matched-only", "a c")])
def test_gateways_with_sockets_of_others_are_left_out_on_demand(tmp_path, mode, names):
    url = tables(tmp_path, cr=(), dr=())
    rows = [f"{at}:{name}:1:h:0:::0:0:{socket}:" for at, (name, socket) in
            enumerate([("a", "udp\\:127.0.0.1\\:5062"), ("b", "udp\\:127.0.0.2\\:5062"), ("c", "")])]
    (tmp_path / "dr_gateways").write_text("\n".join([GATEWAYS, *rows, ""]))
    text = lines(url, "listen=udp:127.0.0.1:5062", f'modparam("drouting", "gw_socket_filter_mode", "{mode}")')
    with mi.Trial(text) as trial:
        assert " ".join(re.findall("(?m)^ID:: (.*) IP=", ask(trial, "dr_gw_status"))) == names


def test_a_negative_priority_is_the_highest(tmp_path):
    """As a number without a sign."""
    with mi.Trial(lines(tables(tmp_path, dr=("0:1:9:gw1:", "0:1:-1:gw2:", "0:1:0:gw3:")))) as trial:
        assert ask(trial, "dr_number_routing", "0", "1") == "200 OK\nMatched Prefix:: 1\n\tGATEWAY:: gw2\n\n"


@pytest.mark.parametrize("table, line, wrong", [
    ("dr_gateways", "1::1:h:0:::0:0::", "gwid"), ("dr_gateways", "1:a:1::0:::0:0::", "address"),
    ("dr_carriers", "1::gw1:0:N:0:", "carrierid"), ("dr_carriers", "1:c::0:N:0:", "gwlist"),
    ("dr_rules", "1::4::0::gw1:N::", "groupid"), ("dr_rules", "1:0:4::0:::N::", "gwlist")])
def test_no_row_counts_if_one_has_no_name_or_no_destinations(tmp_path, table, line, wrong):
    """Also where a table allows it."""
    url = tables(tmp_path, version=34)
    header = (tmp_path / table).read_text().splitlines()[0].replace("(string)", "(string,null)")
    (tmp_path / table).write_text(f"{header}\n{line}\n")
    with pytest.raises(mi.ConfigError, match=f"{table}:2: {wrong} is NULL"):
        mi.Trial(lines(url))


def test_without_persistent_state_the_columns_need_not_be_there(tmp_path):
    url = tables(tmp_path)
    for name in ("dr_gateways", "dr_carriers"):
        (tmp_path / name).write_text((tmp_path / name).read_text().replace("state(int)", "condition(int)"))
    with mi.Trial(lines(url, 'modparam("drouting", "persistent_state", 0)')) as trial:
        assert ask(trial, "dr_gw_status", "gw3") == "200 OK\nState:: Active\n\n"
        assert ask(trial, "dr_carrier_status", "cr2") == "200 OK\nEnabled:: yes\n\n"
    with pytest.raises(mi.ConfigError, match="no column state"):
        mi.Trial(lines(url))


def test_a_row_that_is_no_good_is_left_out_with_a_line_in_the_log(start, tmp_path):
    server = start(lines(tables(tmp_path, gw=("ok:h::0:0", "s:h::0:3", "p:h::3:0", "a:@::0:0"),
                                cr=("c1:ok:0:", "c2:#c1:0:", "c3:o k:0:"),
                                dr=("0:1:0:ok:", "x:1:0:ok:", "0:1a:0:ok:", "0:2:0:ok;:", "0:3:0:nobody:"))))
    assert server.ask(b":dr_gw_status:\n") == b"200 OK\nID:: ok IP=h State=Active\n\n"
    assert server.ask(b":dr_carrier_status:\n") == b"200 OK\nID:: c1 Enabled=yes\n\n"
    assert server.ask(b":dr_number_routing:\n0\n1\n") == b"200 OK\nMatched Prefix:: 1\n\tGATEWAY:: ok\n\n"
    assert server.ask(b":dr_number_routing:\n0\n2\n") == b"200 OK\n\n"
    assert server.ask(b":dr_number_routing:\n0\n3\n") == b"200 OK\nMatched Prefix:: 3\n\n"
    for line in ("/dr_gateways:3: the row is left out: it has address 'h', state 3, probe_mode 0",
                 "/dr_gateways:5: the row is left out", "/dr_carriers:3: the row is left out: it leads to a carrier",
                 "/dr_carriers:4: ", "/dr_rules:4: the row is left out: it has the prefix '1a'",
                 "/dr_rules:5: the row is left out: it has the destination 'ok;'",
                 "/dr_rules:6: there is no gateway nobody, passed over",
                 "/dr_rules:3: the row is left out: it has the groups 'x'"):
        server.wait_log(line)


def test_a_table_that_cannot_be_read_leaves_what_there_is(start, tmp_path):
    server = start(lines(tables(tmp_path)))
    tables(tmp_path, gw=("gw1:h::0:x",))
    assert server.ask(b":dr_reload:\n") == b"500 Failed to reload\n\n"
    server.wait_log(f"dr_reload: {tmp_path}/dr_gateways:2: state is 'x', which is no number")
    assert server.ask(b":dr_gw_status:\ngw1\n") == b"200 OK\nState:: Active\n\n"


@pytest.mark.parametrize("table, line, wrong", [
    ("dr_gateways", "1:gw1:1:::x::0:0::", "dr_gateways:2: address is empty"), ("dr_rules", "1:0:4::x::gw1:", "priority is 'x'"),
    ("dr_partitions", "x::::", "dr_partitions:2: has 5 fields, not 6")])
def test_a_table_that_cannot_be_read_ends_the_start(tmp_path, table, line, wrong):
    text = two_partitions(tmp_path)
    path = tmp_path / table
    path.write_text(f"{path.read_text().splitlines()[0]}\n{line}\n")
    with pytest.raises(mi.ConfigError, match=re.escape(wrong)):
        mi.Trial(text)


def test_a_table_of_another_version_ends_the_start(tmp_path):
    url = tables(tmp_path)
    (tmp_path / "version").write_text((tmp_path / "version").read_text().replace("dr_rules:3", "dr_rules:2"))
    with pytest.raises(mi.ConfigError, match="dr_rules has version 2, not 3 or 4"):
        mi.Trial(lines(url))


def test_a_list_that_cannot_fit_is_given_up_before_it_is_made(tmp_path):
    """And what a carrier takes at least is no more than one takes."""
    with mi.Trial(lines(tables(tmp_path, gw=("a:b::0:0",), cr=("c:a:0:",)))) as trial:
        assert len(ask(trial, "dr_carrier_status").splitlines()[1]) + 1 >= 19
    many = [f"g{number}:h::0:0" for number in range(14000)]
    with mi.Trial(lines(tables(tmp_path, gw=many))) as trial:
        assert ask(trial, "dr_gw_status") == "500 reply of more than 261828 bytes exceeds 65457\n"
        assert trial.ask(b'{"jsonrpc":"2.0","method":"dr_gw_status","id":1}') == b"500 Internal error"


def test_the_names_of_40(tmp_path):
    with mi.Trial(lines(tables(tmp_path), 'modparam("midatagram", "imitate", "4.0")')) as trial:
        for name in ("drouting:gw_status", "gw_status", "dr_gw_status"):
            assert rpc(trial, name, gw_id="gw1") == {"State": "Active"}
        assert rpc(trial, "drouting:number_routing", group_id=0, number="4930")["Matched Prefix"] == "4930"
        assert ask(trial, "drouting:gw_status", "gw1") == "200 OK\nState:: Active\n\n"


def test_partitions_of_a_database_of_another_kind_are_warned_of():
    with mi.Trial('loadmodule "drouting.so"\nmodparam("drouting", "use_partitions", 1)\n'
                  'modparam("drouting", "db_partitions_url", "mysql://u:p@h/db")\n') as trial:
        [(_, text)] = trial.server.setup.notes
        assert text.startswith("trial:3: table dr_partitions of mysql://...@h/db is taken as empty; ")
