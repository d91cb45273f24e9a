"""uac_registrant beyond the recordings: states, reloads, what is wrong with a table."""

import json
import time

import pytest
from test_modules import wrong_pairs

import midatagram as mi

HEADER = ("id(int,auto) registrar(string) proxy(string,null) aor(string) third_party_registrant(string,null) "
          "username(string,null) password(string,null) binding_URI(string) binding_params(string,null) expiry(int,null) "
          "forced_socket(string,null)")
MORE = {1: "", 2: " cluster_shtag(string,null)", 3: " cluster_shtag(string,null) state(int)"}
ONE = {"registrar": "sip:127.0.0.1:5171", "aor": "sip:reg1@example.com", "binding_URI": "sip:reg1@127.0.0.1:5170", "expiry": 3600}
TWO = {"registrar": "sip:127.0.0.1:5172", "proxy": "sip:127.0.0.1:5171", "aor": "sip:reg2@example.com",
       "third_party_registrant": "sip:third@example.com", "binding_URI": "sip:reg2@127.0.0.1:5170", "binding_params": ";q=0.5",
       "expiry": 7200, "forced_socket": "udp:127.0.0.1:5170"}
KEY = {"aor": ONE["aor"], "contact": ONE["binding_URI"], "registrar": ONE["registrar"]}


def table(folder, *rows, version=3):
    """A folder with a table of these rows."""
    header = HEADER + MORE[version]
    (folder / "version").write_text(f"table_name(string) table_version(int)\nregistrant:{version}\n")
    lines = []
    for row in rows:
        row = {"id": 1, "state": 0, **row}
        lines.append(":".join(str(row.get(name.partition("(")[0], "")).replace(":", "\\:") for name in header.split()))
    (folder / "registrant").write_text("\n".join([header, *lines, ""]))
    return f"text://{folder}"


def lines(url, *more):
    """A configuration with lab commands."""
    return "\n".join(['loadmodule "uac_registrant.so"', 'loadmodule "lab_sip.so"',
                      f'modparam("uac_registrant", "db_url", "{url}")', *more, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or the values of its error."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return reply["result"] if "result" in reply else tuple(reply["error"].values())


def state(trial, **key):
    """The state of a record, and whether it is enabled."""
    shown = rpc(trial, "reg_list", **(key or KEY))["Registrant"]
    return shown["state"].removesuffix("_STATE"), shown["enabled"]


@pytest.mark.parametrize("dialect, version", [("text", 1), ("json", 3)])
def test_the_same_questions_to_both_versions(tmp_path, dialect, version):
    """With a table that is empty, has one row and two; lists are in the order of the original's table."""
    url = table(tmp_path, version=version)
    with mi.Trial(lines(url, f'modparam("midatagram", "dialect", "{"jsonrpc" if version == 3 else "text"}")')) as trial:
        def before(row):
            if row["id"] in ("p0129", "p0146"):  # which reload
                table(tmp_path, *[ONE, TWO][:1 if row["id"] == "p0129" else 2], version=version)

        assert wrong_pairs(trial, dialect, "reg_", before) == []


def test_disabled_and_enabled_again(tmp_path):
    """What is registered unregisters; what is not registers. It stays on the way until a lab command says what came of it."""
    with mi.Trial(lines(table(tmp_path, ONE, {**TWO, "state": 1}))) as trial:
        assert state(trial) == ("NOT_REGISTERED", "yes")
        assert rpc(trial, "reg_disable", **KEY) == rpc(trial, "reg_disable", **KEY) == "OK"
        assert state(trial) == ("NOT_REGISTERED", "no")
        assert rpc(trial, "reg_enable", **KEY) == "OK"
        assert state(trial) == ("REGISTERING", "yes")
        assert ask(trial, "lab_registrant", KEY["aor"], "registered") == "200 OK\n\n"
        assert rpc(trial, "reg_enable", **KEY) == "OK"
        assert state(trial) == ("REGISTERED", "yes")
        assert ask(trial, "reg_disable", *KEY.values()) == "200 OK\n\n"
        assert state(trial) == ("UNREGISTERING", "no")
        assert ask(trial, "reg_list").count("state:: NOT_REGISTERED_STATE") == 1
        assert rpc(trial, "reg_disable", **{**KEY, "registrar": "sip:x"}) == (404, "No such registrant")
        assert rpc(trial, "reg_disable", **{**KEY, "aor": None})[-1] == "Bad type for parameter 'aor'"


@pytest.mark.parametrize("word, wanted", [
    ("registered", "REGISTERED"), ("REGISTER_TIMEOUT_STATE", "REGISTER_TIMEOUT"), ("wrong_credentials", "WRONG_CREDENTIALS"),
    ("Registrar_Error", "REGISTRAR_ERROR"), ("authenticating", "AUTHENTICATING"), ("not_registered", "NOT_REGISTERED"),
    ("authenticating_unregister", "AUTHENTICATING_UNREGISTER")])
def test_a_lab_command_says_what_came_of_a_register(tmp_path, word, wanted):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        assert rpc(trial, "lab_registrant", aor=KEY["aor"], state=word) == "OK"
        assert state(trial)[0] == wanted


def test_the_lab_command_knows_records_and_states(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        assert ask(trial, "lab_registrant", "sip:no", "registered") == "404 No such registrant\n\n"
        assert ask(trial, "lab_registrant", KEY["aor"], "well") == "400 Bad parameter\n\n"
    with mi.Trial('loadmodule "lab_sip.so"') as other:
        assert ask(other, "lab_registrant", "a", "registered") == "500 module uac_registrant is not loaded\n\n"


def test_the_moments_of_a_registration(tmp_path):
    """It is to end timer_interval seconds before it expires."""
    with mi.Trial(lines(table(tmp_path, ONE), 'modparam("uac_registrant", "timer_interval", 1000)')) as trial:
        ask(trial, "lab_registrant", KEY["aor"], "registered")
        shown = rpc(trial, "reg_list", **KEY)["Registrant"]
        sent, ends = (time.mktime(time.strptime(shown[name])) for name in ("last_register_sent", "registration_t_out"))
        assert ends - sent == 2600


def test_a_reload_keeps_what_is_registered(tmp_path):
    """Of all records by their AOR, though they are disabled in the table; one that is read alone is not registered then."""
    with mi.Trial(lines(table(tmp_path, ONE, TWO))) as trial:
        for one in (ONE, TWO):
            ask(trial, "lab_registrant", one["aor"], "registered")
        table(tmp_path, {**ONE, "expiry": 5000}, {**TWO, "state": 1}, {**ONE, "aor": "sip:new@x"})
        assert rpc(trial, "reg_reload", **KEY) == "OK"
        assert [one["expires"] for one in rpc(trial, "reg_list")["Records"]] == [7200, 5000]
        assert state(trial) == ("REGISTERED", "yes")
        assert ask(trial, "reg_reload") == "200 OK\n\n"
        assert sorted((one["AOR"], one["state"], one["enabled"]) for one in rpc(trial, "reg_list")["Records"]) == [
            ("sip:new@x", "NOT_REGISTERED_STATE", "yes"), ("sip:reg1@example.com", "REGISTERED_STATE", "yes"),
            ("sip:reg2@example.com", "REGISTERED_STATE", "no")]
        table(tmp_path, {**ONE, "state": 1}, {**ONE, "binding_URI": "sip:other@x"})
        assert rpc(trial, "reg_reload", **KEY) == "OK" and state(trial) == ("NOT_REGISTERED", "no")
        ask(trial, "lab_registrant", ONE["aor"], "registered")
        assert rpc(trial, "reg_reload") == "OK"
        assert [one["state"] for one in rpc(trial, "reg_list")["Records"]] == ["REGISTERED_STATE"] * 2
        assert rpc(trial, "reg_reload", aor="sip:new2@x", contact="c", registrar="r") == (404, "No such registrant in database")


def test_a_record_is_meant_by_the_bucket_of_the_aor_the_contact_and_the_registrar(tmp_path):
    """As in the original, where the AOR itself is not compared."""
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        replies = [rpc(trial, "reg_list", **{**KEY, "aor": f"sip:{number}@x"}) for number in range(8)]
        assert {str(reply): reply for reply in replies if reply != (404, "No such registrant")}.popitem()[1] == {
            "Registrant": rpc(trial, "reg_list")["Records"][0]}
        assert (404, "No such registrant") in replies
        other = next(f"sip:{number}@x" for number, reply in enumerate(replies) if isinstance(reply, dict))
        assert rpc(trial, "reg_disable", **{**KEY, "aor": other}) == "OK" and state(trial) == ("NOT_REGISTERED", "no")
        table(tmp_path, ONE, {**ONE, "aor": other, "expiry": 7200})
        assert rpc(trial, "reg_reload", **{**KEY, "aor": other}) == "OK"
        assert [(one["AOR"], one["expires"]) for one in rpc(trial, "reg_list")["Records"]] == [(other, 7200)]


def test_a_reload_keeps_what_is_disabled_until_the_file_is_read_again(tmp_path):
    """For the original writes that into its table, into all rows of the AOR."""
    url = table(tmp_path, ONE, {**TWO, "state": 1}, {**ONE, "binding_URI": "sip:other@x"})
    with mi.Trial(f'loadmodule "db_text.so"\n{lines(url)}') as trial:
        assert rpc(trial, "reg_disable", **KEY) == rpc(trial, "reg_reload") == "OK" and state(trial)[1] == "no"
        assert rpc(trial, "reg_reload", **KEY) == "OK" and state(trial)[1] == "no"
        assert state(trial, **{**KEY, "contact": "sip:other@x"})[1] == "no"
        key = {"aor": TWO["aor"], "contact": TWO["binding_URI"], "registrar": TWO["registrar"]}
        assert rpc(trial, "reg_enable", **key) == rpc(trial, "reg_reload") == "OK" and state(trial, **key)[1] == "yes"
        assert rpc(trial, "dbt_reload") == rpc(trial, "reg_reload") == "OK" and state(trial)[1] == "yes"
        assert state(trial, **key)[1] == "no"


def test_states_are_shared_by_children_and_survive_a_reload_of_the_configuration(start, tmp_path):
    server = start(lines(table(tmp_path, ONE, {**ONE, "aor": "sip:reg3@x"}), 'modparam("mi_datagram", "children_count", 3)'))
    clients = [server.client() for _ in range(6)]
    assert clients[0].ask(b":lab_registrant:\nsip:reg1@example.com\nregistered\n") == b"200 OK\n\n"
    other = {"aor": "sip:reg3@x", "contact": ONE["binding_URI"], "registrar": ONE["registrar"]}
    request = {"jsonrpc": "2.0", "method": "reg_disable", "params": other, "id": 1}
    assert b"OK" in clients[0].ask(json.dumps(request).encode())
    assert len({client.ask(b":reg_list:\n") for client in clients}) == 1
    server.reload()
    assert b"state:: REGISTERED_STATE\n" in server.ask(b":reg_list:\n")
    assert b'"enabled":"no"' in server.ask(json.dumps({**request, "method": "reg_list"}).encode())


@pytest.mark.parametrize("row, wrong", [
    ({"expiry": 100}, "has an expiry of 100 seconds"), ({"expiry": ""}, "has an expiry of None seconds"),
    ({"registrar": "sip:u@h"}, "has the registrar 'sip:u@h'"), ({"aor": "reg1"}, "has the aor 'reg1'"),
    ({"binding_URI": "x"}, "has the binding_URI 'x'"), ({"proxy": "sip:u@h"}, "has the proxy"),
    ({"cluster_shtag": "vip"}, "has the cluster_shtag 'vip'")])
def test_a_row_that_is_no_good_is_left_out_with_a_line_in_the_log(caplog, tmp_path, row, wrong):
    with mi.Trial(lines(table(tmp_path, {**ONE, **row}, {**TWO, "cluster_shtag": "vip/3"}))) as trial:
        listed = rpc(trial, "reg_list")["Records"]
    assert [(one["AOR"], one["shtag"], one["cluster_id"]) for one in listed] == [("sip:reg2@example.com", "vip", 3)]
    assert f"/registrant:2: the row is left out: it {wrong}" in caplog.text


def test_a_row_with_the_socket_of_another_server_is_left_out(caplog, tmp_path):
    """A socket without a protocol or a port means any."""
    sockets = ("", "udp:10.9.9.9:5170", "udp:127.0.0.1:5170", "UDP:127.0.0.1", "127.0.0.1:5170", "zz:1:2", "tls:127.0.0.1:5170")
    rows = [{**ONE, "aor": f"sip:{number}@h", "forced_socket": socket} for number, socket in enumerate(sockets)]
    with mi.Trial(lines(table(tmp_path, *rows), "listen=udp:127.0.0.1:5170")) as trial:
        assert sorted(one["AOR"] for one in rpc(trial, "reg_list")["Records"]) == ["sip:0@h", "sip:2@h", "sip:3@h", "sip:4@h"]
    assert "/registrant:3: the row is left out: it has the socket udp:10.9.9.9:5170, which is none of" in caplog.text
    assert caplog.text.count("the row is left out") == 3


def test_records_of_the_same_aor_contact_and_registrar_are_all_listed(tmp_path):
    """Commands mean the first."""
    with mi.Trial(lines(table(tmp_path, ONE, {**ONE, "expiry": 3700}, TWO))) as trial:
        def listed():
            return [(one["expires"], one["enabled"]) for one in rpc(trial, "reg_list")["Records"] if one["AOR"] == ONE["aor"]]

        assert listed() == [(3600, "yes"), (3700, "yes")]
        assert rpc(trial, "reg_disable", **KEY) == "OK"
        assert listed() == [(3600, "no"), (3700, "yes")]
        assert rpc(trial, "reg_list", **KEY)["Registrant"]["expires"] == 3600
        table(tmp_path, {**ONE, "expiry": 3601}, {**ONE, "expiry": 3701}, TWO)
        assert rpc(trial, "reg_reload", **KEY) == "OK"
        assert listed() == [(3601, "yes"), (3700, "yes")]
        assert rpc(trial, "reg_reload") == "OK"
        assert listed() == [(3601, "yes"), (3701, "yes")]
        assert rpc(trial, "lab_registrant", aor=ONE["aor"], state="registered") == "OK"
        assert ask(trial, "reg_list").count("state:: REGISTERED_STATE") == 2


def test_a_table_that_cannot_be_read_leaves_what_there_is(start, tmp_path):
    server = start(lines(table(tmp_path, ONE)))
    table(tmp_path, {**ONE, "expiry": "x"})
    assert server.ask(b":reg_reload:\n") == b"500 command failed\n"
    server.wait_log("registrant:2: expiry is 'x', which is no number")
    assert b"AOR:: sip:reg1@example.com expires=3600" in server.ask(b":reg_list:\n")


def test_a_table_that_cannot_be_read_ends_the_start(tmp_path):
    with pytest.raises(mi.ConfigError, match="registrant:2: state is 'x'"):
        mi.Trial(lines(table(tmp_path, {**ONE, "state": "x"})))


def test_a_list_that_cannot_fit_is_given_up_before_it_is_made(tmp_path):
    """And what a record takes at least is no more than one takes."""
    short = {"registrar": "sip:r", "aor": "sip:a", "binding_URI": "sip:b", "expiry": 101}
    with mi.Trial(lines(table(tmp_path, short))) as trial:
        assert len(ask(trial, "reg_list")) - len("200 OK\n\n") >= 150
    with mi.Trial(lines(table(tmp_path, *[{**short, "aor": f"sip:a{number}"} for number in range(2000)]))) as trial:
        assert ask(trial, "reg_list") == "500 reply of more than 261828 bytes exceeds 65457\n"


def test_the_names_of_40_and_the_socket_that_it_shows(tmp_path):
    with mi.Trial(lines(table(tmp_path, TWO), 'modparam("midatagram", "imitate", "4.0")')) as trial:
        shown = [*rpc(trial, "uac_registrant:list")["Records"][0].items()]
        assert shown[-2:] == [("socket", "udp:127.0.0.1:5170"), ("proxy", "sip:127.0.0.1:5171")]
        assert rpc(trial, "uac_registrant:reload") == "OK"
        assert ask(trial, "uac_registrant:list").startswith("200 OK\nAOR:: sip:reg2@example.com expires=7200\n\tstate::")


# What 4.0 added.

NEW = {"aor": "sip:new@example.com", "contact": "sip:new@192.0.2.1", "registrar": "sip:192.0.2.2", "proxy": "",
       "third_party_registrant": "", "username": "u", "password": "p", "binding_params": "", "expiry": 600, "forced_socket": "",
       "cluster_shtag": "", "state": 0}
NEW_KEY = {name: NEW[name] for name in KEY}


def asked(trial, method, **params):
    """The result of a command, or its error."""
    request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    message = json.loads(trial.ask(json.dumps(request if params else {**request, "params": []}).encode()))
    return message.get("result") or message["error"]


def aors(trial):
    return [one["AOR"] for one in asked(trial, "reg_list")["Records"]]


def test_records_are_put_changed_and_deleted(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE, TWO))) as trial:
        assert asked(trial, "reg_upsert", **NEW) == "OK"
        assert sorted(aors(trial)) == sorted([ONE["aor"], TWO["aor"], NEW["aor"]])
        shown = asked(trial, "reg_list", **NEW_KEY)["Registrant"]
        assert shown["expires"] == 600 and shown["enabled"] == "yes" and shown["state"] == "NOT_REGISTERED_STATE"
        trial.ask(f":lab_registrant:\n{NEW['aor']}\nregistered\n".encode())
        assert asked(trial, "uac_registrant:upsert", **{**NEW, "expiry": "700", "proxy": "sip:192.0.2.3"}) == "OK"
        shown = asked(trial, "reg_list", **NEW_KEY)["Registrant"]
        assert shown["expires"] == 700 and shown["proxy"] == "sip:192.0.2.3" and shown["state"] == "REGISTERED_STATE"
        assert asked(trial, "reg_upsert", **{**NEW, "state": 1}) == "OK"
        shown = asked(trial, "reg_list", **NEW_KEY)["Registrant"]
        assert shown["enabled"] == "no" and shown["state"] == "NOT_REGISTERED_STATE"
        values = [f"{value}" or '""' for value in {**NEW, "aor": "sip:text@example.com"}.values()]
        assert trial.ask("\n".join([":reg_upsert:", *values, ""]).encode()) == b"200 OK\n\n"
        assert "sip:text@example.com" in aors(trial)
        assert asked(trial, "reg_delete", **NEW_KEY) == "OK"
        assert asked(trial, "uac_registrant:delete", **NEW_KEY) == {"code": 404, "message": "No such registrant"}
        assert NEW["aor"] not in aors(trial)
        assert trial.ask(b":reg_reload:\n") == b"200 OK\n\n"
        assert sorted(aors(trial)) == sorted([ONE["aor"], TWO["aor"]])


@pytest.mark.parametrize("name, value", [
    ("registrar", "192.0.2.2"), ("registrar", "sip:user@192.0.2.2"), ("proxy", "sip:user@192.0.2.2"), ("aor", "new"),
    ("contact", ""), ("third_party_registrant", "x"), ("cluster_shtag", "vip"), ("cluster_shtag", "vip/x"), ("expiry", 100)])
def test_a_record_that_cannot_be(tmp_path, name, value):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        error = {"code": -32000, "message": "Server error", "data": "Failed to handle parameter"}
        assert asked(trial, "reg_upsert", **{**NEW, name: value}) == error
        values = [f"{value}" or '""' for value in {**NEW, name: value}.values()]
        assert trial.ask("\n".join([":reg_upsert:", *values, ""]).encode()) == b"400 Bad parameter\n\n"
        assert aors(trial) == [ONE["aor"]]
        assert asked(trial, "reg_upsert", **{**NEW, "state": "on"})["data"] == "Bad type for parameter 'state'"


def test_a_record_is_registered_again(tmp_path):
    with mi.Trial(lines(table(tmp_path, ONE))) as trial:
        trial.ask(f":lab_registrant:\n{ONE['aor']}\nregistered\n".encode())
        assert "1970" not in asked(trial, "reg_list", **KEY)["Registrant"]["registration_t_out"]
        assert asked(trial, "reg_force_register", **KEY) == "OK"
        assert asked(trial, "reg_list", **KEY)["Registrant"]["registration_t_out"] == "Thu Jan  1 00:00:00 1970"
        assert asked(trial, "reg_force_register", **NEW_KEY) == {"code": 404, "message": "No such registrant"}


def test_what_commands_put_and_deleted_stays_over_a_reload_of_the_server(start, tmp_path):
    server = start(lines(table(tmp_path, ONE, TWO)))
    assert asked(server, "reg_upsert", **NEW) == asked(server, "reg_delete", **KEY) == "OK"
    assert asked(server, "reg_upsert", **{**NEW, "aor": TWO["aor"], "contact": TWO["binding_URI"],
                                          "registrar": TWO["registrar"]}) == "OK"
    before = asked(server, "reg_list")
    assert sorted(aors(server)) == sorted([TWO["aor"], NEW["aor"]])
    for _ in range(2):
        server.reload()
        assert asked(server, "reg_list") == before
    assert asked(server, "reg_reload", **KEY) == "OK"
    assert sorted(aors(server)) == sorted([ONE["aor"], TWO["aor"], NEW["aor"]])
