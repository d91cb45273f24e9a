"""load_balancer beyond the recordings: loads by the profiles of dialog, reloads, what is wrong with a table."""

import json
import re
import sqlite3

import pytest
from test_modules import wrong_pairs

import midatagram as mi

HEADER = "id(int,auto) group_id(int) dst_uri(string) resources(string) probe_mode(int)"
MORE = {2: "description(string,null)", 3: "attrs(string,null) description(string,null)"}
ONE = "1:1:sip\\:127.0.0.1\\:5171:pstn=32;transc=16:at1"
MANY = (ONE, "2:1:sip\\:127.0.0.2\\:5060:pstn=10:", "3:2:sip\\:127.0.0.3\\:5060:vm=5:")

ENABLE = {"text": b":lb_status:\n1\n1\n", "json": b'{"jsonrpc":"2.0","method":"lb_status","params":[1,1],"id":1}'}


def table(folder, *rows, version=3):
    """A folder with a table of rows `id:group:uri:resources:attrs`."""
    (folder / "version").write_text(f"table_name(string) table_version(int)\nload_balancer:{version}\n")
    made = [re.sub(r":([^:]*)$", r":0:\1:" if version == 3 else ":0:", row) for row in rows]
    (folder / "load_balancer").write_text("\n".join([f"{HEADER} {MORE[version]}", *made, ""]))
    return f"text://{folder}"


def lines(url, *more):
    """A configuration with dialog and lab commands."""
    return "\n".join([*[f'loadmodule "{name}.so"' for name in ("dialog", "load_balancer", "lab_sip")],
                      'modparam("dialog", "profiles_no_value", "inbound")', f'modparam("load_balancer", "db_url", "{url}")',
                      *more, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or the values of its error."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return reply["result"] if "result" in reply else tuple(reply["error"].values())


def loads(trial):
    """The loads that lb_list shows, by the number of the destination and the resource; both dialects agree."""
    listed = {(one["id"], resource["name"]): resource["load"] for one in rpc(trial, "lb_list")["Destinations"]
              for resource in one["Resources"]}
    assert re.findall(r"load=(\d+)", ask(trial, "lb_list")) == [str(load) for load in listed.values()]
    return listed


@pytest.mark.parametrize("dialect, version", [("text", 2), ("json", 3)])
def test_the_same_questions_to_both_versions(tmp_path, dialect, version):
    """With a table that is empty, has one row and many; a row between them that enables a destination again is not there."""
    with mi.Trial(lines(table(tmp_path, version=version),
                        f'modparam("midatagram", "dialect", "{"jsonrpc" if version == 3 else "text"}")')) as trial:
        def before(row):
            if row["id"] in ("p0126", "p0143"):  # which reload
                table(tmp_path, *(MANY if row["id"] == "p0143" else [ONE]), version=version)
            if row["id"] == "p0271":
                trial.ask(ENABLE[dialect])

        assert wrong_pairs(trial, dialect, "lb_", before) == []


###############################################################################
# Load
###############################################################################


def test_the_load_is_how_many_dialogs_have_the_destination_in_the_profile_of_the_resource(tmp_path):
    """Its number is hexadecimal there; a dialog that ended is no load."""
    with mi.Trial(lines(table(tmp_path, ONE, "26:2:sip\\:b:pstn=3;ab=1:"))) as trial:
        call = ("sip:a@x", "sip:b@x", "profiles::lbXpstn=1A, lbXab=1A, inbound")
        for name in ("c1", "c2"):
            assert ask(trial, "lab_call", name, *call) == "200 OK\n\n"
        assert ask(trial, "lab_call", "c3", "sip:a@x", "sip:b@x", "profiles::lbXpstn=1", "state::2") == "200 OK\n\n"
        assert loads(trial) == {(1, "pstn"): 1, (1, "transc"): 0, (26, "pstn"): 2, (26, "ab"): 2}
        assert ask(trial, "lab_hangup", "c1") == "200 OK\n\n"
        assert loads(trial) == {(1, "pstn"): 1, (1, "transc"): 0, (26, "pstn"): 1, (26, "ab"): 1}
        assert ask(trial, "profile_get_size", "lbXpstn", "1A") == (
            "200 OK\nprofile::  name=lbXpstn value=1A count=1 shared=no replicated=no\n\n")
        assert ask(trial, "profile_get_values", "lbXpstn").count("count=1") == 2


def test_dialog_has_the_profiles_of_all_resources_that_there_ever_were(tmp_path):
    with mi.Trial(lines(table(tmp_path, *MANY))) as trial:
        wanted = "200 OK\ninbound:: 0\nlbXpstn:: 1\nlbXtransc:: 1\nlbXvm:: 1\n"
        assert ask(trial, "list_all_profiles") == f"{wanted}\n"
        table(tmp_path, "1:1:sip\\:127.0.0.1:new=1;transc=1:")
        assert ask(trial, "lb_reload") == "200 OK\n\n"
        assert ask(trial, "list_all_profiles") == f"{wanted}lbXnew:: 1\n\n"
        assert rpc(trial, "list_all_profiles")["Profiles"][-1] == {"name": "lbXnew", "has value": True}


def test_without_dialog_there_is_no_load(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE)).replace('loadmodule "dialog.so"\n', "").replace(
            'modparam("dialog", "profiles_no_value", "inbound")\n', "")) as trial:
        assert loads(trial) == {(1, "pstn"): 0, (1, "transc"): 0}


###############################################################################
# State
###############################################################################


def test_a_reload_keeps_what_is_enabled_and_brings_sizes_back(tmp_path):
    """A destination is the same with the same number, group and URI, in any case."""
    with mi.Trial(lines(table(tmp_path, *MANY))) as trial:
        for number in "123":
            ask(trial, "lb_status", number, "0")
        ask(trial, "lb_resize", "1", "pstn", "7")
        table(tmp_path, ONE.replace("sip", "SIP"), MANY[1].replace("2:1:", "2:9:"), MANY[2].replace("5060", "5061"))
        assert rpc(trial, "lb_reload") == "OK"
        listed = rpc(trial, "lb_list")["Destinations"]
        assert [one["enabled"] for one in listed] == ["no", "yes", "yes"]
        assert [one["auto-reenable"] for one in listed] == ["off", "on", "on"]
        assert listed[0]["Resources"][0]["max"] == 32


def test_states_are_shared_by_children_and_survive_a_reload_of_the_configuration(start, tmp_path):
    server = start(lines(table(tmp_path, *MANY), 'modparam("mi_datagram", "children_count", 3)'))
    clients = [server.client() for _ in range(6)]
    assert clients[0].ask(b":lb_status:\n2\n0\n") == b"200 OK\n\n"
    assert clients[0].ask(b":lb_resize:\n1\npstn\n7\n") == b"200 OK\n\n"
    assert {client.ask(b":lb_status:\n2\n") for client in clients} == {b"200 OK\nenable:: no\n\n"}
    server.reload()
    assert server.ask(b":lb_status:\n2\n") == b"200 OK\nenable:: no\n\n"
    assert b"pstn max=7 " in server.ask(b":lb_list:\n")
    assert server.ask(b":lb_reload:\n") == b"200 OK\n\n"
    assert b"pstn max=32 " in server.ask(b":lb_list:\n")


def test_a_negative_size_is_shown_as_the_original_shows_it(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        assert rpc(trial, "lb_resize", destination_id=1, res_name="pstn", new_capacity=-4) == "OK"
        assert "pstn max=4294967292 load=0" in ask(trial, "lb_list")


@pytest.mark.parametrize("words, wanted", [
    ((), "400 Too few or too many arguments"), (("1", "x", "y"), "400 Too few or too many arguments"),
    (("x", "y", "z"), "400 Bad parameter"), (("1", "x::"), "400 Bad parameter"), (("9", "x"), "400 Bad parameter"),
    (("9",), "404 Destination ID not found"), (("9", "1"), "404 Destination ID not found")])
def test_what_is_wrong_is_looked_for_in_the_order_of_the_original(tmp_path, words, wanted):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        assert ask(trial, "lb_status", *words) == f"{wanted}\n\n"


def test_null_is_no_status(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        assert rpc(trial, "lb_status", destination_id=1, new_status=None)[-1] == "Bad type for parameter 'new_status'"


###############################################################################
# Tables
###############################################################################


@pytest.mark.parametrize("row, wrong", [
    ("2:1:b:pstn=1:", "has the URI 'b'"), ("2:1:sip\\:b:pstn:", "has the resource 'pstn'"),
    ("2:1:sip\\:b:=1:", "has the resource '=1'"), ("2:1:sip\\:b:pstn=x:", "has the resource 'pstn=x'"),
    ("2:1:sip\\:b:a=1;;b=2:", "has the resource ''"), ("2:1:sip\\:b:a b=1:", "has the resource 'a b=1'"),
    ("2:1:sip\\:b:a-b=1:", "has the resource 'a-b=1'"), ("2:1:sip\\:b:\u00e9=1:", "has the resource '\u00e9=1'"),
    ("2:1:sip\\:[\\:\\:1:pstn=1:", "has the URI 'sip:[::1'"), ("2:1:sip\\:u@:pstn=1:", "has the URI 'sip:u@'"),
    ("2:1:sip\\:h\\:70000:pstn=1:", "has the URI 'sip:h:70000'"), ("2:1:tel\\:+49:pstn=1:", "has the URI 'tel:+49'"),
    ("2:1:sip\\:b:a=fs\\://h:", "has the resource 'a=fs://h'")])
def test_a_row_that_is_no_good_is_left_out_with_a_line_in_the_log(caplog, tmp_path, row, wrong):
    with mi.Trial(lines(table(tmp_path, row, "3:1:SIPS\\:c: a = 1 ; b=2; :"))) as trial:
        assert [(one["id"], one["Resources"]) for one in rpc(trial, "lb_list")["Destinations"]] == [
            (3, [{"name": "a", "max": 1, "load": 0}, {"name": "b", "max": 2, "load": 0}])]
    assert f"/load_balancer:2: the row is left out: it {wrong}" in caplog.text


@pytest.mark.parametrize("name, row", [("dst_uri", "1:1::a=1:0::"), ("resources", "1:1:sip\\:a::0::")])
def test_no_row_counts_if_one_has_no_uri_or_no_resources(tmp_path, name, row):
    """Also where a table allows it."""
    url = table(tmp_path)
    header = (tmp_path / "load_balancer").read_text().splitlines()[0].replace("(string)", "(string,null)")
    (tmp_path / "load_balancer").write_text(f"{header}\n{row}\n")
    with pytest.raises(mi.ConfigError, match=f"load_balancer:2: {name} is NULL"):
        mi.Trial(lines(url))


def test_numbers_below_0_are_shown_without_a_sign(tmp_path):
    """And a destination is known by its number as it is shown, in 3.4 as well with its sign."""
    with mi.Trial(lines(table(tmp_path, "-5:-1:sip\\:127.0.0.1\\:5171:pstn=10:"))) as trial:
        assert ask(trial, "lb_list").startswith("200 OK\nDestination:: sip:127.0.0.1:5171 id=4294967291 group=4294967295 ")
        listed = rpc(trial, "lb_list")["Destinations"][0]
        assert (listed["id"], listed["group"]) == (4294967291, 4294967295)
        assert ask(trial, "lb_status", "4294967291") == "200 OK\nenable:: yes\n\n"
        assert ask(trial, "lb_status", "-5") == "400 Bad parameter\n\n"
        for number in (-5, "-5", "4294967291"):  # a number is cut to 32 bits with a sign
            assert rpc(trial, "lb_status", destination_id=number) == {"enable": "yes"}
            assert rpc(trial, "lb_resize", destination_id=number, res_name="pstn", new_capacity=9) == "OK"


def test_the_first_resource_of_a_name_gets_another_size(tmp_path):
    with mi.Trial(lines(table(tmp_path, "1:1:sip\\:127.0.0.1\\:5171:pstn=10;voip=5;pstn=7:"))) as trial:
        assert ask(trial, "lb_resize", "1", "pstn", "9") == "200 OK\n\n"
        assert re.findall(r"(\w+) max=(\d+)", ask(trial, "lb_list")) == [("pstn", "9"), ("voip", "5"), ("pstn", "7")]


def test_a_resource_on_a_freeswitch_server_is_alone(tmp_path):
    url = table(tmp_path, "1:1:sip\\:b:a=1;f=fs\\://h;c=3:")
    with mi.Trial(lines(url, 'modparam("load_balancer", "fetch_freeswitch_stats", 1)',
                        'modparam("load_balancer", "initial_freeswitch_load", 70)')) as trial:
        assert rpc(trial, "lb_list")["Destinations"][0]["Resources"] == [{"name": "f", "max": 70, "load": 0}]


def test_a_table_that_cannot_be_read_leaves_what_there_is(start, tmp_path):
    server = start(lines(table(tmp_path, ONE)))
    table(tmp_path, "x:1:sip\\:b:a=1:")
    assert server.ask(b":lb_reload:\n") == b"500 Failed to reload\n\n"
    server.wait_log(f"lb_reload: {tmp_path}/load_balancer:2: id is 'x', which is no number")
    assert server.ask(b":lb_status:\n1\n") == b"200 OK\nenable:: yes\n\n"


def test_a_table_that_cannot_be_read_ends_the_start(tmp_path):
    with pytest.raises(mi.ConfigError, match="load_balancer:2: group_id is 'x'"):
        mi.Trial(lines(table(tmp_path, "1:x:sip\\:b:a=1:")))
    url = table(tmp_path, ONE)
    (tmp_path / "version").write_text("table_name(string) table_version(int)\nother:4\n")
    with pytest.raises(mi.ConfigError, match="table other has version 4, not 2 or 3"):
        mi.Trial(lines(url, 'modparam("load_balancer", "db_table", "other")'))


@pytest.mark.parametrize("version", [2, 3])
def test_an_sqlite_table_of_both_versions(tmp_path, version):
    base = sqlite3.connect(tmp_path / "o.db")
    base.executescript(f"""CREATE TABLE version (table_name TEXT, table_version INTEGER);
        INSERT INTO version VALUES ('load_balancer', {version});
        CREATE TABLE load_balancer (id INTEGER, group_id INTEGER, dst_uri TEXT, resources TEXT, probe_mode INTEGER
                                    {", attrs TEXT" if version == 3 else ""});
        INSERT INTO load_balancer VALUES (1, 1, 'sip:a', 'x=1', 0{", 'at'" if version == 3 else ""});""")
    base.close()
    with mi.Trial(lines(f"sqlite://{tmp_path}/o.db")) as trial:
        assert rpc(trial, "lb_status", destination_id=1) == {"enable": "yes", **({"attrs": "at"} if version == 3 else {})}


def test_a_list_that_cannot_fit_is_given_up_before_it_is_made(tmp_path):
    """And what a destination takes at least is no more than one takes."""
    with mi.Trial(lines(table(tmp_path, "1:1:sip\\:a:x=1:"))) as trial:
        assert len(ask(trial, "lb_list")) - len("200 OK\n\n") > 70
    with mi.Trial(lines(table(tmp_path, *[f"{number}:1:sip\\:d{number}:x=1:" for number in range(4000)]))) as trial:
        assert ask(trial, "lb_list") == "500 reply of more than 261828 bytes exceeds 65457\n"
        assert trial.ask(b'{"jsonrpc":"2.0","method":"lb_list","id":1}') == b"500 Internal error"


def test_the_names_of_40(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE), 'modparam("midatagram", "imitate", "4.0")')) as trial:
        for name in ("load_balancer:status", "lb_status"):
            assert rpc(trial, name, destination_id=1) == {"enable": "yes", "attrs": "at1"}
        assert ask(trial, "load_balancer:resize", "1", "pstn", "5") == "200 OK\n\n"
