"""dialog beyond the recordings: a table, states and their counters, profiles, what ends; and the lab commands."""

import json
import re
import time

import pytest
from conftest import wait_for
from test_modules import differs, lab, rows_of, subscribed

import midatagram as mi

opensips = mi.shared("opensips_base")
LINES = ('loadmodule "dialog.so"\nloadmodule "lab_sip.so"\nmodparam("dialog", "profiles_with_value", "caller; gw/b")\n'
         'modparam("dialog", "profiles_no_value", "inbound")\n')


@pytest.fixture
def trial():
    """A trial with dialog and two profiles: trial(further lines)."""
    made = []

    def make(lines=""):
        made.append(mi.Trial(LINES + lines))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask(lab(*words)).decode()


def rpc(trial, method, params=None):
    """The result of a JSON-RPC request, or its error."""
    request = {"jsonrpc": "2.0", "method": method, "id": 1, **({} if params is None else {"params": params})}
    reply = json.loads(trial.ask(json.dumps(request).encode()))
    return reply.get("result", reply.get("error"))


def call(trial, callid="c1", *options):
    """Begin a call."""
    assert ask(trial, "lab_call", callid, "sip:alice@a", "sip:bob@b", *options) == "200 OK\n\n"


def statistics(trial):
    """The statistics that are not 0."""
    found = re.findall(r"dialog:(\w+)_dialogs:: (\d+)", ask(trial, "get_statistics", "dialog:"))
    return {name: int(number) for name, number in found if number != "0"}


def shown(trial, callid="c1"):
    """A dialog with its context."""
    return rpc(trial, "dlg_list_ctx", {"callid": callid})["Dialog"]


@pytest.mark.parametrize("state, counted", [
    (1, {"processed": 1}), (2, {"processed": 1, "early": 1}), (3, {"processed": 1, "active": 1}),
    (4, {"processed": 1, "active": 1}), (5, {"processed": 1})])
def test_a_call_goes_through_the_states_and_is_counted(trial, state, counted):
    one = trial()
    call(one, "c1", f"state::{state}")
    assert statistics(one) == counted
    listed = rpc(one, "dlg_list")["Dialogs"][0]
    assert listed["state"] == state
    assert ("datestart" in listed, "dateout" in listed) == (state in (3, 4, 5), state in (3, 4))


def test_states_move_on_and_never_back(trial):
    one = trial()
    call(one, "c1", "state::2", "timeout::60")
    assert ask(one, "lab_call_state", "c1", "4") == "200 OK\n\n"
    listed = shown(one)
    assert (listed["state"], listed["timeout"] - listed["timestart"]) == (4, 60)
    assert time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(listed["timeout"])) == listed["dateout"]
    assert ask(one, "lab_call_state", "c1", "2") == "400 Dialog is in state 4\n\n"
    assert ask(one, "lab_call_state", "none", "4") == "404 Dialog not found\n\n"
    assert ask(one, "lab_hangup", "c1") == "200 OK\n\n"
    assert ask(one, "lab_hangup", "c1") == "404 Dialog not found\n\n"
    assert statistics(one) == {"processed": 1}


def test_a_call_and_its_moves_are_one_change_each_which_no_child_sees_half(trial):
    one, changes = trial(), []
    for request in (("lab_call", "c1", "sip:a", "sip:b", "state::2"), ("lab_call_state", "c1", "4"), ("lab_hangup", "c1"),
                    ("lab_call", "c2", "sip:a", "sip:b", "state::1")):
        before = one.server.store.newest()
        assert ask(one, *request) == "200 OK\n\n"
        changes.append(one.server.store.newest() - before)
    assert changes == [1, 1, 1, 1]


def test_an_id_ends_a_dialog_in_the_form_of_the_dialect(trial):
    one = trial()
    call(one)
    call(one, "c2")
    ids = {dialog["callid"]: (dialog["ID"], dialog["db_id"]) for dialog in rpc(one, "dlg_list")["Dialogs"]}
    entry, number = (int(half[::-1], 16) for half in ids["c1"][0].split("."))
    assert (entry << 32) + number == int(ids["c1"][1])
    assert entry == opensips.core_hash(b"c1") & 4095
    assert rpc(one, "dlg_end_dlg", [ids["c1"][1]])["code"] == 404
    assert ask(one, "dlg_end_dlg", ids["c2"][0]) == "404 Requested Dialog not found\n\n"
    assert rpc(one, "dlg_end_dlg", [ids["c1"][0]]) == "OK"
    assert ask(one, "dlg_end_dlg", ids["c2"][1]) == "200 OK\n\n"
    assert ask(one, "dlg_list", "c1") == "404 No such dialog\n\n"
    assert [dialog["state"] for dialog in rpc(one, "dlg_list")["Dialogs"]] == [5, 5]


@pytest.mark.parametrize("state", [1, 2])
def test_a_call_that_is_not_answered_is_cancelled(trial, state):
    one = trial()
    call(one, "c1", f"state::{state}")
    assert ask(one, "dlg_end_dlg", "c1") == "200 OK\n\n"
    assert statistics(one) == {"processed": 1, "failed": 1}
    assert rpc(one, "dlg_list")["Dialogs"][0]["state"] == 5


def test_a_call_without_a_reply_has_no_callee(trial):
    one = trial()
    call(one, "c1", "state::1")
    assert ask(one, "dlg_list").endswith("\tCALLEES:: \n\n")
    assert shown(one)["CALLEES"] == [{"callee_tag": "", "callee_contact": "", "caller_cseq": "", "callee_route_set": "",
                                      "callee_bind_addr": None}]


def test_the_contact_of_the_callee_comes_with_the_answer(trial):
    one = trial()
    call(one, "c1", "state::2", "callee_contact::sip:b@127.0.0.1")
    assert shown(one)["CALLEES"][0]["callee_contact"] == ""
    ask(one, "lab_call_state", "c1", "3")
    assert shown(one)["CALLEES"][0]["callee_contact"] == "sip:b@127.0.0.1"


def test_a_dialog_that_ended_goes_and_so_does_a_cached_list(trial):
    one = trial()
    one.server.registry.modules_by_name["dialog"].commands[0].function.__globals__["ENDED_S"] = 0.3
    call(one)
    ask(one, "lab_hangup", "c1")
    assert ask(one, "dlg_list").startswith("200 OK\ndialog:: ") and ask(one, "dlg_list") == ask(one, "dlg_list")
    wait_for(lambda: ask(one, "dlg_list") == "200 OK\n\n", 5, "the dialog to go")


def test_profiles_count_and_list_and_end(trial):
    one = trial()
    for callid, profiles in (("c1", "caller=alice, inbound"), ("c2", "caller=bob"), ("c3", "caller=alice, gw=gw 1"), ("c4", "")):
        call(one, callid, f"profiles::{profiles}")
    assert rpc(one, "list_all_profiles") == {"Profiles": [
        {"name": "inbound", "has value": False}, {"name": "caller", "has value": True}, {"name": "gw", "has value": True}]}
    assert ask(one, "profile_get_size", "caller", "alice") == (
        "200 OK\nprofile::  name=caller value=alice count=2 shared=no replicated=no\n\n")
    values = {value: (opensips.core_hash(value.encode()) & 15, value) for value in ("alice", "bob")}
    assert [row["value"] for row in rpc(one, "profile_get_values", ["caller"])] == sorted(values, key=values.get)
    assert {row["callid"] for row in rpc(one, "profile_list_dlgs", ["caller", "alice"])["Dialogs"]} == {"c1", "c3"}
    assert ask(one, "profile_end_dlgs", "caller", "alice") == "200 OK\n\n"
    assert statistics(one) == {"processed": 4, "active": 2}
    assert rpc(one, "profile_get_size", ["caller"])["Profile"]["count"] == 1
    assert ask(one, "list_all_profiles", "x") == "401 Too few or too many arguments\n\n"


def test_values_have_the_newest_first_and_escapes_in_text(trial):
    one = trial()
    call(one, "c1", "values::a=1, b=tab\there\u00e9", "profiles::caller=x, inbound")
    assert shown(one)["context"] == {"values": [{"b": "tab\there\u00e9"}, {"a": "1"}],
                                     "profiles": [{"inbound": ""}, {"caller": "x"}]}
    assert "\t\t\tb:: tab\\there\\xc3\\xa9\n\t\t\ta:: 1\n" in ask(one, "dlg_list_ctx")
    identifier = shown(one)["ID"]
    assert rpc(one, "dlg_push_var", {"dlg_val_name": "n", "dlg_val_value": "v", "DID": ["none", identifier, "c1"]}) == "OK"
    assert shown(one)["context"]["values"][0] == {"n": "v"}
    assert len(shown(one)["context"]["values"]) == 3


def profiles_of(trial, callid="c1"):
    return shown(trial, callid)["context"].get("profiles", [])


def test_profiles_are_set_and_unset(trial):
    """As 4.0 documents it; the newest first, by Call-ID or ID, in both dialects."""
    one = trial()
    call(one)
    identifier = shown(one)["ID"]
    for params in (["c1", "inbound"], [identifier, "caller", "alice"], ["c1", "caller", "bob"]):
        assert rpc(one, "dlg_set_profile", params) == "OK"
    assert profiles_of(one) == [{"caller": "bob"}, {"caller": "alice"}, {"inbound": ""}]
    assert rpc(one, "dialog:set_profile", ["c1", "caller", "carl", 1]) == "OK"
    assert profiles_of(one) == [{"caller": "carl"}, {"inbound": ""}]
    assert ask(one, "dlg_set_profile", "c1", "caller", "dora") == "200 OK\n\n"
    assert rpc(one, "dialog:unset_profile", ["c1", "caller", "carl"]) == "OK"
    assert profiles_of(one) == [{"caller": "dora"}, {"inbound": ""}]
    assert rpc(one, "dlg_set_profile", ["c1", "caller", "eve"]) == rpc(one, "dlg_unset_profile", ["c1", "caller"]) == "OK"
    assert ask(one, "dlg_unset_profile", "c1", "inbound") == "200 OK\n\n"
    assert profiles_of(one) == [] and rpc(one, "profile_get_size", ["caller"])["Profile"]["count"] == 0


@pytest.mark.parametrize("command, params, code, reason", [
    ("set", ["c1", "nosuch"], 400, "Bad param"), ("unset", ["c1", "nosuch"], 400, "Bad param"),
    ("set", ["c2", "inbound"], 404, "Dialog Not Found"), ("unset", ["c2", "inbound"], 404, "Dialog Not Found"),
    ("set", ["ended", "inbound"], 404, "Dialog Not Found"), ("set", ["c1", "caller"], 403, "Dialog Error"),
    ("unset", ["c1", "inbound"], 403, "Dialog Error"), ("unset", ["c1", "caller", "bob"], 403, "Dialog Error")])
def test_profiles_that_cannot_be_set_or_unset(trial, command, params, code, reason):
    one = trial()
    call(one), call(one, "ended", "state::5")
    assert rpc(one, f"dlg_{command}_profile", params) == {"code": code, "message": reason}
    assert ask(one, f"dlg_{command}_profile", *params) == f"{code} {reason}\n\n"


def test_profiles_in_4_0(trial):
    """Its handlers look for a parameter that their recipes do not have."""
    one = trial('modparam("midatagram", "imitate", "4.0")')
    call(one)
    for method in ("dialog:set_profile", "unset_profile", "dlg_set_profile"):
        assert rpc(one, method, ["c1", "inbound"]) == {
            "code": -32000, "message": "Server error", "data": "Failed to handle parameter"}
        assert rpc(one, method, ["c1"])["data"] == "Too few or too many parameters"
    params = {"callid": "c1", "method": "INFO", "body": "none", "mode": "caller", "headers": "X: y"}
    assert rpc(one, "send_sequential", params) == {"Code": 200, "Reason": "OK"}
    assert rpc(one, "which", ["dialog:send_sequential"])[-1] == ["callid", "method", "body", "mode", "headers"]


def test_a_call_without_values_has_an_empty_context(trial):
    one = trial()
    call(one)
    assert ask(one, "dlg_list_ctx").endswith("\tcontext:: \n\n")


@pytest.mark.parametrize("params, wanted", [
    ({"callid": "c1"}, {"Code": 200, "Reason": "OK"}),
    ({"callid": "c1", "method": "INFO", "mode": "caller"}, {"Code": 200, "Reason": "OK"}),
    ({"callid": "c1", "mode": "x"}, {"code": 400, "message": "Invalid mode"}),
    ({"callid": "c1", "body": "x"}, {"code": 400, "message": "Invalid body mode"}),
    ({"callid": "c1", "mode": "challenge", "method": "INFO"}, {"code": 406, "message": "Not Acceptable"}),
    ({"callid": "zz"}, {"code": 404, "message": "Dialog Not Found"}),
    *[({"callid": "c1", "mode": mode}, {"Code": 200, "Reason": "OK"}) for mode in (
        "CALLER", "CHALLENGE", "Challenge;callee", "challengexcaller")],
    *[({"callid": "c1", "mode": mode}, {"code": 400, "message": "Invalid mode"}) for mode in ("challenge,", "callers", "")],
    *[({"callid": "zz", "body": body}, {"code": 404, "message": "Dialog Not Found"}) for body in (
        "NONE", "Inbound", "Custom:a:b", "custom:ab:", "customxabc:d", "custom:abcdefg", "custom:::::")],
    *[({"callid": "zz", "body": body}, {"code": 400, "message": "Invalid body mode"}) for body in (
        "custom:a:", "CUSTOM", "noneX", "")],
    *[({"callid": "zz", "mode": "challenge", "method": method}, {"code": 404, "message": "Dialog Not Found"})
      for method in ("invite", "UPDATE", "update")],
    ({"callid": "zz", "mode": "challenge", "method": ""}, {"code": 406, "message": "Not Acceptable"}),
    (["c1"], {"code": -32602, "message": "Invalid params", "data": "Command only supports named parameters"})])
def test_dlg_send_sequential(trial, params, wanted):
    one = trial()
    call(one)
    assert rpc(one, "dlg_send_sequential", params) == wanted


def test_children_share_dialogs_which_survive_a_reload_and_expire(start):
    server = start(f'{LINES}modparam("mi_datagram", "children_count", 3)\n')
    listener = subscribed(server, "text", "E_DLG_STATE_CHANGED")
    clients = [server.client() for _ in range(6)]
    for number, client in enumerate(clients):
        assert client.ask(lab("lab_call", f"c{number}", "sip:a@a", "sip:b@b")) == b"200 OK\n\n"
    assert {client.ask(b":dlg_list:\n").count(b"callid::") for client in clients} == {6}
    server.reload()
    assert server.statistic("active_dialogs") == 6
    events = [listener.receive() for _ in range(18)]
    assert [event.partition(b"old_state::")[2].split() for event in events[:3]] == [
        [b"1", b"new_state::2"], [b"2", b"new_state::3"], [b"3", b"new_state::4"]]
    assert server.ask(lab("lab_call", "short", "sip:a@a", "sip:b@b", "timeout::1")) == b"200 OK\n\n"
    wait_for(lambda: server.statistic("expired_dialogs") == 1, 5, "the dialog to expire")
    events = [listener.receive() for _ in range(4)]
    assert events[-1].endswith(b"old_state::4\nnew_state::5\n\n")
    assert server.ask(lab("lab_call", "over", "sip:a@a", "sip:b@b", "state::5")) == b"200 OK\n\n"
    states = [re.findall(rb"_state::(\d)", listener.receive()) for _ in range(4)]
    assert states == [[b"1", b"2"], [b"2", b"3"], [b"3", b"4"], [b"4", b"5"]]


###############################################################################
# A table
###############################################################################

COLUMNS = {
    24: "dlg_id(long) callid(string) from_uri(string) from_tag(string) to_uri(string) to_tag(string) "
        "mangled_from_uri(string,null) mangled_to_uri(string,null) caller_cseq(string) callee_cseq(string) "
        "caller_ping_cseq(int) callee_ping_cseq(int) "
        "caller_route_set(string,null) callee_route_set(string,null) caller_contact(string,null) callee_contact(string,null) "
        "caller_sock(string) callee_sock(string) state(int) start_time(int) timeout(int) vars(blob,null) profiles(string,null) "
        "script_flags(int) module_flags(int) flags(int)"}
COLUMNS[34] = COLUMNS[24].replace("script_flags(int)", "script_flags(string,null)") + (
    " rt_on_answer(string,null) rt_on_timeout(string,null) rt_on_hangup(string,null)")


def table(folder, version):
    """The table of the recording server: a confirmed call, an early one and one whose time is over."""
    now_s, port = int(time.time()), 5170 if version == 24 else 5480
    vars_ = r"my#v1|k2#two words|esc#a\\|b\\#c|" if version == 24 else r"my#1#v1|k2#1#two words|n#2#42|esc#1#a\\|b|"
    (folder / "version").write_text(f"table_name(string) table_version(int)\ndialog:{10 if version == 24 else 12}\n")
    rows = []
    for number, callid, caller, state, timeout, profiles in (
            (7876970020964, "db-1@x", "alice", 4, 600, "caller#alice|inbound#|"), (0, "db-2@x", "carl", 4, -10, "caller#carl|"),
            (7868380086374, "db-3@x", "eve", 2, 600, ""), (1, "db-4@x", "old", 5, 600, "")):
        number = number or ((opensips.core_hash(callid.encode()) & 4095) << 32) + 101
        values = vars_ if number != 7868380086374 or version == 34 else ""
        fields = [number, callid, f"sip\\:{caller}@example.com", "ft1", "sip\\:bob@example.com", "tt1", "", "", 1, 0, 0, 0, "",
                  "<sip\\:rr;lr>", f"sip\\:{caller}@127.0.0.1\\:5171", "sip\\:uas@127.0.0.1\\:5171", f"udp\\:127.0.0.1\\:{port}",
                  f"udp\\:127.0.0.1\\:{port}", state, now_s, now_s + timeout, values, profiles, 5 if version == 24 else "", 0, 0,
                  *([] if version == 24 else ["", "", ""])]
        rows.append(":".join(map(str, fields)))
    (folder / "dialog").write_text("\n".join([COLUMNS[version], *rows, ""]))
    return f'modparam("dialog", "db_mode", 1)\nmodparam("dialog", "db_url", "text://{folder}")\n'


def timeless(text):
    """A reply without what differs in time."""
    text = re.sub(rb"(timestart|timeout)(::|\":) ?[1-9]\d+", rb"\1", text)
    return re.sub(rb"(datestart|dateout)(::|\":\") ?[\d: -]+", rb"\1", text)


OTHER = {("34", "dlgdb-011"): "a restore changes callee_cseq", ("34", "dlgdb-015"): "a restore changes callee_cseq"}


@pytest.mark.parametrize("version", [24, 34])
def test_dialogs_from_a_table_as_recorded(start, tmp_path, version):
    dialect = "text" if version == 24 else "jsonrpc"
    server = start(LINES + table(tmp_path, version))
    listener, client, wrong = subscribed(server, dialect, "E_DLG_STATE_CHANGED"), server.client(), []
    for row in rows_of(f"variants{version}.jsonl"):
        if row["id"].startswith("dlgdb") and (str(version), row["id"]) not in OTHER:
            reply = client.ask(row["request"])
            wrong.append(differs({**row, "reply": timeless(row["reply"])}, timeless(reply)))
            for event in row["events"]:
                assert listener.receive() == event.encode("latin-1"), row["id"]
    assert len(wrong) > 10 and [text for text in wrong if text] == []


def test_what_a_column_of_values_may_hold():
    module = mi.load_plugin(str(opensips.__file__).replace("opensips_base.py", "dialog.py")).namespace
    assert module.stored_pairs(r"a#1|b#|c\#d#x\|y\\|") == [("c#d", "x|y\\"), ("b", ""), ("a", "1")]
    assert module.stored_pairs("a#1#t|n#2#42|m#2#-1|") == [("m", -1), ("n", 42), ("a", "t")]
    assert module.stored_pairs(None) == module.stored_pairs("") == []


@pytest.mark.parametrize("old, new", [
    ("caller#alice|inbound#|", "caller|"), ("n#2#42|", "n#2#x|"), ("7876970020964:", "-1:"),
    ("7876970020964:", "7881264988260:")])
def test_a_row_that_is_no_dialog_is_left_out(tmp_path, old, new, caplog):
    """And the others are shown."""
    lines = LINES + table(tmp_path, 34)
    path = tmp_path / "dialog"
    path.write_text(path.read_text().replace(old, new, 1))
    with mi.Trial(lines) as one:
        assert [item["callid"] for item in rpc(one, "dlg_list")["Dialogs"]] == ["db-3@x"]
    assert f"{path}:2: the row is left out: it has " in caplog.text


def row_of(version, callid, state=4, profiles="", flags="5"):
    """A row of the table, whose Cseqs are 1 and 7."""
    number, now_s = ((opensips.core_hash(callid.encode()) & 4095) << 32) + 101, int(time.time())
    fields = [number, callid, "sip:a@x", "ft", "sip:b@x", "tt", "", "", 1, 7, 0, 0, "", "<sip:rr;lr>", "sip:a@y", "sip:b@y",
              "udp:127.0.0.1:5170", "udp:127.0.0.1:5170", state, now_s, now_s + 600, "", profiles, flags, 0, 0,
              *([] if version == 24 else ["", "", ""])]
    return ":".join(f"{field}".replace(":", "\\:") for field in fields)


@pytest.fixture
def tabled(trial, tmp_path):
    """A trial with rows in the table: tabled(version, rows)."""
    def make(version, *rows):
        lines = table(tmp_path, version)
        (tmp_path / "dialog").write_text("\n".join([COLUMNS[version], *rows, ""]))
        return trial(lines)

    return make


def test_a_dialog_of_the_table_has_the_cseqs_of_the_original(tabled):
    one = tabled(24, row_of(24, "r1"))
    assert "\tcallee_cseq:: 0\n" in ask(one, "dlg_list") and "\tcaller_cseq:: 7\n" in ask(one, "dlg_list")
    shown = rpc(one, "dlg_list")["Dialogs"][0]
    assert (shown["callee_cseq"], shown["CALLEES"][0]["caller_cseq"]) == ("0", "7")


@pytest.mark.parametrize("state, shown", [(6, 6), (-7, 4294967289)])
def test_a_row_in_a_state_that_is_none_is_a_dialog(tabled, state, shown):
    """It is in no counter, and cannot be ended."""
    one = tabled(24, row_of(24, "r1", state, "caller#x|"))
    assert f"\tstate:: {shown}\n" in ask(one, "dlg_list", "r1")
    assert statistics(one) == {}
    assert ask(one, "dlg_end_dlg", "r1") == "404 Requested Dialog not found\n\n"
    assert ask(one, "dlg_end_dlg", rpc(one, "dlg_list")["Dialogs"][0]["db_id"]) == "500 Operation failed\n\n"
    assert ask(one, "profile_end_dlgs", "caller") == "400 Dialog internal error\n\n"
    assert rpc(one, "profile_end_dlgs", ["caller"]) == "OK"
    assert f"\tstate:: {shown}\n" in ask(one, "dlg_list")


def test_a_row_makes_the_profiles_that_the_script_lacks(tabled):
    """With values if the first has one; they stay, and a value is none where the profile has none."""
    one = tabled(24, row_of(24, "r1", 4, "caller#al|mine#v|inbound#5|plain#|"),
                 row_of(24, "r2", 4, "mine#|mine/b#w|plain#q|caller#|o ne#x|gw/b#g|"))
    assert ask(one, "list_all_profiles") == "200 OK\ninbound:: 0\ncaller:: 1\ngw:: 1\nmine:: 1\nplain:: 0\n\n"
    assert profiles_of(one, "r1") == [{"plain": ""}, {"inbound": ""}, {"mine": "v"}, {"caller": "al"}]
    assert ask(one, "profile_get_values", "mine") == "200 OK\nvalue::  count=1\nvalue:: v count=1\n\n"
    assert ask(one, "profile_get_values", "plain") == "200 OK\nvalue:: WITHOUT VALUE count=2\n\n"
    assert ask(one, "profile_get_size", "mine", "v") == "200 OK\nprofile::  name=mine value=v count=1 shared=no replicated=no\n\n"
    assert profiles_of(one, "r2") == [{"gw": "g"}, {"caller": ""}, {"plain": ""}, {"mine": ""}]
    assert rpc(one, "profile_get_size", ["o ne"])["code"] == rpc(one, "profile_get_size", ["mine/b"])["code"] == 404


def test_a_restore_makes_profiles_too(tabled, tmp_path):
    one = tabled(24)
    assert "mine" not in ask(one, "list_all_profiles")
    (tmp_path / "dialog").write_text("\n".join([COLUMNS[24], row_of(24, "r1", 4, "mine#v|"), ""]))
    assert ask(one, "dlg_restore_db") == "200 OK\n\n"
    assert ask(one, "list_all_profiles").endswith("\nmine:: 1\n\n")


def test_a_restore_leaves_out_rows_of_dialogs_that_have_ended(tabled):
    """By a command or because of their age, which is counted once."""
    late = re.sub(r":\d+::caller#x", f":{int(time.time()) - 9}::caller#x", row_of(24, "r2", 4, "caller#x|"))
    one = tabled(24, row_of(24, "r1"), late)
    assert ask(one, "dlg_end_dlg", rpc(one, "dlg_list")["Dialogs"][0]["db_id"]) == "500 Operation failed\n\n"
    one.server.store.move_clock(60)  # it is listed no longer
    for _ in range(2):
        assert ask(one, "dlg_restore_db") == "200 OK\n\n"
        assert (rpc(one, "dlg_list")["Dialogs"], statistics(one)["expired"]) == ([], 1)


def test_flags_are_shown_from_the_one_that_came_last(tabled):
    one = tabled(34, row_of(34, "r1", flags="F1 F2"), row_of(34, "r2", flags="F3 F2 F1"), row_of(34, "r3", flags=""))
    assert {row["callid"]: row["user_flags"] for row in rpc(one, "dlg_list")["Dialogs"]} == {
        "r1": "F2 F1", "r2": "F3 F2 F1", "r3": ""}


def test_2_4_ends_dialogs_of_a_profile_up_to_one_that_cannot_be_ended(tabled):
    """In the order of buckets; 3.4 ends all others. The one is early, and from the table."""
    first, second, third = sorted(("c1", "c2", "c3"), key=lambda callid: opensips.core_hash(callid.encode()) & 4095)
    one = tabled(24, row_of(24, second, 2, "caller#x|"))
    for callid in (first, third):
        call(one, callid, "profiles::caller=x")
    assert ask(one, "profile_end_dlgs", "caller") == "400 Dialog internal error\n\n"
    assert [row["state"] for row in rpc(one, "dlg_list")["Dialogs"]] == [5, 2, 4]
    assert rpc(one, "profile_end_dlgs", ["caller"]) == "OK"
    assert [row["state"] for row in rpc(one, "dlg_list")["Dialogs"]] == [5, 2, 5]


def test_digits_alone_are_an_id_in_2_4(trial):
    one = trial()
    call(one, "12345")
    for name in ("12345", " 12345", "+012345", "9" * 5000):
        assert ask(one, "dlg_end_dlg", name) == "404 Requested Dialog not found\n\n"
    assert ask(one, "dlg_end_dlg", " +00" + rpc(one, "dlg_list")["Dialogs"][0]["db_id"]) == "200 OK\n\n"
    call(one, "6789")
    assert rpc(one, "dlg_end_dlg", ["6789"]) == "OK"


def test_a_dialog_that_is_twice_in_a_profile_is_listed_once(trial):
    one = trial()
    call(one, "c1", "profiles::caller=a, caller=b")
    assert len(rpc(one, "profile_list_dlgs", ["caller"])["Dialogs"]) == 1
    assert rpc(one, "profile_get_size", ["caller"])["Profile"]["count"] == 2


def test_a_call_has_values_and_profiles_as_they_are_declared(trial):
    one = trial()
    call(one, "c1", "values::v=1=2, w", "profiles::inbound=5, caller")
    assert shown(one)["context"] == {"values": [{"w": ""}, {"v": "1=2"}], "profiles": [{"caller": ""}, {"inbound": ""}]}
    assert "\t\t\tw:: \n\t\t\tv:: 1=2\n" in ask(one, "dlg_list_ctx")
    assert rpc(one, "profile_get_size", ["caller", ""])["Profile"]["count"] == 1
    assert ask(one, "lab_call", "c2", "sip:a", "sip:b", "profiles::inbound, nosuch=3") == "404 Profile not found\n\n"
    assert statistics(one) == {"processed": 1, "active": 1}


def test_a_list_from_an_index_below_0_is_empty(trial):
    one = trial()
    call(one)
    assert rpc(one, "dlg_list", {"index": -1, "counter": 5}) == {"count": 1, "Dialogs": []}


def test_a_call_may_not_last_longer_than_dates_go(trial):
    one = trial()
    wanted = "400 timeout takes an integer from 1 to 2147483647\n\n"
    assert ask(one, "lab_call", "c", "sip:a", "sip:b", "timeout::99999999999999999999") == wanted
    call(one, "c2", "timeout::2147483647")
    assert len(rpc(one, "dlg_list")["Dialogs"]) == 1


def test_what_values_cost_is_linear_in_their_number(trial):
    """Nine times the values never cost sixty times the time; what a value takes at least is no more than one takes."""
    one, spent_s = trial(), []
    module = one.server.registry.modules_by_name["dialog"].namespace
    call(one, "c", "profiles::caller=")
    assert len(ask(one, "profile_get_values", "caller")) - len("200 OK\n\n") >= module.LEAST_VALUE
    for count in (400, 3600):
        for number in range(count):
            value = f"{count + number}"
            dialog = module.Dialog(count + number, 0, "c", "sip:a", "sip:b", "f", "t", profiles=(("caller", value),))
            one.server.store.put("dialog", str(dialog.db_id), json.dumps(dialog))
        began_s = time.process_time()
        ask(one, "profile_get_values", "caller")
        spent_s.append(time.process_time() - began_s)
    assert spent_s[1] < 60 * spent_s[0]
    assert one.ask(b'{"jsonrpc":"2.0","method":"profile_get_values","params":["caller"],"id":1}') == b"500 Internal error"


def test_without_a_table_nothing_is_synced(trial):
    one = trial()
    assert ask(one, "dlg_db_sync", "x") == "400 Cannot sync in no-db mode\n\n"
    assert ask(one, "dlg_restore_db") == "400 Cannot restore db in no-db mode!\n\n"


@pytest.mark.parametrize("line", ['"hash_size", 1000', '"db_mode", 4'])
def test_a_wrong_parameter_ends_the_start(line):
    with pytest.raises(mi.ConfigError):
        mi.Trial(f'loadmodule "dialog.so"\nmodparam("dialog", {line})')


def test_lab_commands_say_what_is_wrong(trial):
    one = trial()
    assert ask(one, "lab_call", "c1", "sip:a") == "400 Too few or too many arguments\n\n"
    assert ask(one, "lab_call", "c1", "sip:a", "sip:b", "state::6") == "400 state takes an integer from 1 to 5\n\n"
    with mi.Trial('loadmodule "lab_sip.so"') as other:
        assert ask(other, "lab_hangup", "c1") == "500 module dialog is not loaded\n\n"


def test_a_list_that_cannot_fit_is_given_up_before_it_is_made(trial):
    """And what a dialog takes at least is no more than one takes."""
    one = trial()
    module = one.server.registry.modules_by_name["dialog"].namespace
    ask(one, "lab_call", "x", "y", "z", "from_tag::f", "to_tag::t", "socket::s", "state::1")
    for reply in (ask(one, "dlg_list"), json.dumps(rpc(one, "dlg_list"))):
        assert len(reply) > module.LEAST_BYTES
    for number in range(900):
        call(one, f"c{number}")
    assert ask(one, "dlg_list") == "500 reply of more than 261828 bytes exceeds 65457\n"
    assert one.ask(b'{"jsonrpc":"2.0","method":"dlg_list","id":1}') == b"500 Internal error"
    assert len(rpc(one, "dlg_list", {"index": 5, "counter": 20})["Dialogs"]) == 20


def test_a_dialog_of_other_sockets_is_passed_over(tmp_path):
    for line, count in (("listen=udp:127.0.0.1:5170", 2), ("socket=tcp:127.0.0.1:5170", 0)):
        with mi.Trial(f'{line}\nloadmodule "dialog.so"\n{table(tmp_path, 24)}') as one:
            assert ask(one, "dlg_list").count("dialog::") == count


def test_a_socket_of_a_dialog_is_shown_in_full(tmp_path):
    """Whatever of it the row leaves out."""
    lines = table(tmp_path, 24)
    rows = tmp_path / "dialog"
    rows.write_text(rows.read_text().replace(r"udp\:127.0.0.1\:5170", r"127.0.0.1"))
    with mi.Trial(f'listen=udp:127.0.0.1:5170\nlisten=tcp:127.0.0.1:5170\nloadmodule "dialog.so"\n{lines}') as one:
        assert ask(one, "dlg_list").count("caller_bind_addr:: udp:127.0.0.1:5170\n") == 2


def test_a_call_that_has_ended_is_in_no_profile(trial):
    """But it still has its values."""
    one = trial()
    call(one, "c", "profiles::caller=alice", "values::my=v1")
    assert "profiles:: " in ask(one, "dlg_list_ctx")
    assert ask(one, "dlg_end_dlg", "c") == "200 OK\n\n"
    shown = ask(one, "dlg_list_ctx")
    assert "my:: v1\n" in shown and "profiles" not in shown
