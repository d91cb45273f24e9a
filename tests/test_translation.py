"""What one release's client and another's server say to each other: requests, replies, errors and events, both ways."""

import contextlib
import json
import re
import socket
import subprocess

import pytest
from conftest import free_port, needs, wait_for
from hypothesis import given
from hypothesis import strategies as st
from test_modules import before, configuration, rows_of
from test_opensips import MAP
from test_recorded import DATA, recordings

import midatagram as mi

translation = mi.shared("translation")
forms = translation.forms


def lines_of(name):
    """The rows of a file whose texts are bytes as latin-1."""
    with open(DATA / "modules" / name, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def raw(text):
    """The bytes of a recording."""
    return text.encode("latin-1")


# What differs between two servers by nature: ids, times, ports, paths.
VOLATILE = ("ContactID", "Expires", "ID", "db_id", "PID", "id", "timestart", "datestart", "timeout", "dateout", "Lifetime",
            "Remote", "expires", "Now", "Up since", "Up time", "Server", "WD", "Date", "last_register_sent",
            "registration_t_out", "ttl", "Alias port")
VALUE = re.compile(rf"\b({'|'.join(VOLATILE)})(:: ?|=)[^\n]*?(?= \w+=|\n)")
SIP = re.compile(r"branch=\S+|tag=[-0-9a-f]+|Call-ID: \S+|(?<=To: )\S+")  # 2.4 has no brackets around the URI of To


def free_text(reply):
    """A text reply without what varies."""
    return SIP.sub("V", VALUE.sub(r"\1V", reply))


def free_json(value):
    """A JSON value without what varies, in order."""
    if isinstance(value, dict):
        return [(name, "V" if name in VOLATILE else free_json(item)) for name, item in value.items()]
    return [*map(free_json, value)] if isinstance(value, list) else SIP.sub("V", value) if isinstance(value, str) else value


PAIRS = [row for row in lines_of("pairs.jsonl") if row["text_reply"] and row["json_reply"]]
WHICH = next(row for row in PAIRS if row["command"] == "which")
NAMES_24, NAMES_34, NAMES_40 = (translation.names_in(raw(WHICH[name])) for name in ("text_reply", "json_reply", "json40_reply"))


def for_text_client(row):
    """What a client of 2.4 gets from a server of 3.4."""
    request = raw(row["text_request"])
    try:
        name = translation.name_on(translation.read_text(request).name, NAMES_34)
        translation.to_jsonrpc(request, name)
    except mi.Error as error:
        return f"{error.code} {error.reason}\n" + ("" if error.reason in ("parse_error", "command not available") else "\n")
    return translation.reply_to_text(request, raw(row["json_reply"])).decode("latin-1")


def for_json_client(row):
    """What a client of 3.4 gets from a server of 2.4."""
    request = raw(row["json_request"])
    try:
        name = translation.name_on(json.loads(request)["method"], NAMES_24, "jsonrpc")
        translation.to_text(request, name)
    except mi.Error as error:
        return json.loads(mi.write_jsonrpc(mi.Reply(result=error), mi.Request("", id=1), mi.JsonForm()))
    return json.loads(translation.reply_to_jsonrpc(request, raw(row["text_reply"])).decode("latin-1"))


def ids(reasons):
    """The ids of all rows that a table of reasons names."""
    return sorted(" ".join(reasons.values()).split())


# Where a client gets something else than what the other server said, and why.
ASKED = "the recordings ask something else: 2.4 ignores what 3.4 refuses, or takes no input"
STATE = "the servers were in different states, or list what their release has"
MINUS = "2.4 takes no minus sign: it is asked for the number without one"
ONLY_24 = "3.4 does not have the command"
WRAPS = "4294967297 is 1 in a text, and 2147483647 as a JSON number"
PREFIX = "2.4 shows a part of the memory behind the prefix, here `: 30` for 4930"
TEXT_DIFFERS = {
    ASKED: """p0004 p0015 p0024 p0025 p0029 p0030 p0156 p0157 p0160 p0161 p0165 p0166 p0170 p0171 p0190 p0216 p0217 p0256 p0261
        p0279 p0294 p0316 p0338 p0365 p0386 p0447 p0450 p0451 p0464 p0488 p0494 p0503 p0507 p0508 p0509 p0511 p0587 p0591 p0608
        p0667 p0668 p0684 p0685""",
    STATE: "p0006 p0007 p0036 p0052 p0424 p0573 p0582", PREFIX: "p0139 p0248", ONLY_24: "p0504", WRAPS: "p0673",
    "three values begin with a partition, if there are any partitions": "p0235",
    "2.4 cuts blanks off, which 3.4 takes for no number": "p0671",
}
JSON_DIFFERS = {
    ASKED: "p0002 p0307", STATE: "p0006 p0007 p0036 p0052 p0424 p0573 p0582",
    MINUS: "p0278 p0287 p0325 p0449", ONLY_24: "p0504", WRAPS: "p0673",
    "2.4 does not say how long a subscription lasts": "p0087 p0088 p0090",
    "2.4 does not show resolved addresses": "p0136 p0138 p0186 p0189 p0193",
    "2.4 does not show attributes": "p0133 p0139 p0151 p0238 p0241 p0267 p0268 p0282 p0666",
    "2.4 does not show parameters of a binding, nor whether a record is enabled": "p0154 p0507",
    "2.4 has one text for a bad identifier and a bad mode": "p0523",
}


REFUSED = ("dialog-053",)  # one value more than 3.4 takes


def test_every_command_of_the_pairs_has_a_form():
    assert {row["command"] for row in PAIRS if not translation.form_of(row["command"])} == {"nosuch"}


def test_clients_of_24_get_from_34_what_24_says():
    differing = sorted(row["id"] for row in PAIRS if free_text(for_text_client(row)) != free_text(row["text_reply"]))
    assert differing == ids(TEXT_DIFFERS)
    assert (len(PAIRS), len(PAIRS) - len(differing)) == (368, 312)


def test_clients_of_34_get_from_24_what_34_says():
    differing = sorted(row["id"] for row in PAIRS if free_json(for_json_client(row)) != free_json(json.loads(row["json_reply"])))
    assert differing == ids(JSON_DIFFERS)
    assert (len(PAIRS), len(PAIRS) - len(differing)) == (368, 333)


def test_what_24_says_comes_back_from_json():
    """Replies of all recordings of 2.4 with data, bytes for bytes."""
    lost = {f"dlgdb-{number:03}" for number in (1, 2, 10, 14)}  # user_flags
    count, differing = 0, set()
    for row in [*rows_of("text.jsonl"), *rows_of("variants24.jsonl"), *recordings("text_core.jsonl")]:
        text, reply = row["request"], row["reply"]
        if not (text and reply and reply.startswith(b"200 OK\n") and len(reply) > 8):
            continue
        name = mi.decode(mi.read_first_line(text)[1:-2])
        if translation.form_of(name) and row["id"] not in REFUSED:
            made = translation.reply_to_jsonrpc(translation.to_jsonrpc(text), reply)
            differing |= {row["id"]} if translation.reply_to_text(text, made) != reply else set()
            count += 1
    assert differing == lost
    assert count > 150


LACKS = "2.4 lacks the command or the parameter"
JSON_TWINS_DIFFER = {
    **dict.fromkeys(("ul-030", "ul-031"), MINUS),
    **dict.fromkeys(("ds-030", "ds-031", "ds-033", "dlg-030", "dlg-051", "dlg-055", "par-051"), LACKS),
}
TWINS_DIFFER = {  # id -> why; those that change the state are asked of neither
    "usrloc-013": MINUS, "dialog-008": ONLY_24, "dialog-053": ASKED,
}


@pytest.mark.parametrize("group", ["usrloc", "dispatcher", "dialog"])
def test_a_server_behind_the_translation_answers_as_one_that_is_asked_itself(group):
    """Two of the same state: one is asked in text, the other in JSON-RPC, in the order of the recordings."""
    lines = configuration("24.cfg")
    rows = [row for row in rows_of("text.jsonl") if row["id"].startswith(group) and row["request"]]
    with mi.Trial(lines) as plain, mi.Trial(lines) as behind:
        for row in rows:
            before(plain, row)
            before(behind, row)
            if row["id"] not in TWINS_DIFFER:
                text = row["request"].replace(b"4294967295", b"7")  # which is -1 in 3.4
                try:
                    reply = translation.reply_to_text(text, behind.ask(translation.to_jsonrpc(text)))
                except mi.Error as error:
                    reply = f"{error.code} {error.reason}\n\n".encode()
                assert free_text(reply.decode("latin-1")) == free_text(plain.ask(text).decode("latin-1")), row["id"]
    assert len(rows) > 20


@pytest.mark.parametrize("group", ["ul", "ds", "dlg", "par"])
def test_a_text_server_behind_the_translation_answers_as_one_of_jsonrpc(group):
    """But for what only JSON has."""
    only = ("resolved_addresses", "ATTRS", "attrs", "script_attr")
    lines, rows = configuration("34.cfg"), [row for row in rows_of("jsonrpc.jsonl") if row["id"].startswith(f"{group}-")]
    with mi.Trial(lines) as plain, mi.Trial(lines) as behind:
        for row in rows:
            before(plain, row)
            before(behind, row)
            if row["id"] not in JSON_TWINS_DIFFER and (wanted := plain.ask(row["request"])):
                asked = row["request"]
                try:
                    made = mi.read_json(translation.reply_to_jsonrpc(asked, behind.ask(translation.to_text(asked))))
                except mi.Error as error:
                    made = mi.read_json(mi.write_jsonrpc(mi.Reply(result=error), mi.Request("", id=1), mi.JsonForm()).encode())
                assert free_json(without(made, *only)) == free_json(without(mi.read_json(wanted), *only)), row["id"]
    assert len(rows) > 4


def without(value, *names):
    """A JSON value without members of some names."""
    if isinstance(value, dict):
        return {name: without(item, *names) for name, item in value.items() if name not in names}
    return [without(item, *names) for item in value] if isinstance(value, list) else value


def test_replies_of_40_are_as_those_of_34():
    """By the names of 4.0, but for what is another release's: versions, ids of events, one more process."""
    other = {"version", "which", "arg", "ps", "log_level", "events_list", "address_dump", "reg_list", "get_statistics",
             "list_statistics"}
    differing = set()
    for row in PAIRS:
        request = raw(row["text_request"])
        if row["json40_reply"] and row["json_reply"] and "-32601" not in row["json40_reply"]:
            assert translation.name_on(row["command"], NAMES_40) == json.loads(row["json40_request"])["method"]
            made = [free_text(translation.reply_to_text(request, raw(row[name])).decode("latin-1"))
                    for name in ("json_reply", "json40_reply")]
            differing |= {row["command"]} if made[0] != made[1] else set()
    assert differing <= other


def test_events_in_both_directions():
    only_34 = {"domain", "user_agent", "shtag", "reason"}  # 2.4 does not have them
    varies = {"hash_entry", "hash_id", "id", "db_id", "expires"}
    count = 0
    for row in lines_of("event_pairs.jsonl"):
        for text, notification, of_40 in zip(row["events24"], row["events34"], row["events40"]):
            made = translation.event_to_text(raw(notification)).decode("latin-1")
            assert [re.sub("::.*", "", line) if line.partition("::")[0] in varies else line for line in made.split("\n")] == \
                [re.sub("::.*", "", line) if line.partition("::")[0] in varies else line for line in text.split("\n")]
            assert translation.event_to_text(raw(of_40)).count(b"\n") == made.count("\n")
            wanted, made = json.loads(notification), json.loads(translation.event_to_jsonrpc(raw(text)))
            assert made["method"] == wanted["method"]
            assert [(name, value) for name, value in made["params"].items() if name not in varies] == \
                [(name, value) for name, value in wanted["params"].items() if name not in varies | only_34]
            assert [*made["params"]] == [name for name in wanted["params"] if name not in only_34]
            count += 1
    assert count == 35


def test_an_event_keeps_the_id_of_its_dialog():
    text = b"E_DLG_STATE_CHANGED\nhash_entry::1376\nhash_id::905864619\nold_state::1\n\n"
    assert translation.event_to_jsonrpc(text) == (
        b'{"jsonrpc":"2.0","method":"E_DLG_STATE_CHANGED","params":{"id":"065.bad6ef53","db_id":"5910780863915","old_state":1}}'
        .replace(b"065.bad6ef53", forms.dialog_id(5910780863915).encode()))
    assert translation.event_to_text(translation.event_to_jsonrpc(text)) == text


def test_numbers_below_0_have_64_bits_in_24():
    text = b"E_UL_CONTACT_INSERT\naor::a\nqval::18446744073709551615\n\n"
    assert json.loads(translation.event_to_jsonrpc(text))["params"] == {"aor": "a", "qval": -1}
    asked = request("ul_show_contact", ["location", "a"])
    text = b"200 OK\nAOR:: a\n\tContact:: sip:a@b Q=1\n\t\tFlags:: %d\n\t\tMethods:: 4294967295\n\n"
    for flags, shown in ((-1, 2**64 - 1), (-2**31, 2**64 - 2**31), (5, 5)):
        reply = translation.reply_to_jsonrpc(asked, text % shown)
        contact = json.loads(reply)["result"]["Contacts"][0]
        assert (contact["Flags"], contact["Methods"]) == (flags, 4294967295)
        assert translation.reply_to_text(b":ul_show_contact:\nlocation\na\n", reply) == text % shown


@pytest.mark.parametrize("text, notification", [
    (b"E_MINE\na::1\nb::x y\n\n", b'{"jsonrpc":"2.0","method":"E_MINE","params":{"a":"1","b":"x y"}}'),
    (b"E_MINE\nx y\n5\n\n", b'{"jsonrpc":"2.0","method":"E_MINE","params":["x y","5"]}'),
    (b"E_MINE\n\n", b'{"jsonrpc":"2.0","method":"E_MINE"}'),
    (b'E_MINE\na::"b\n\\"c"\n\n', b'{"jsonrpc":"2.0","method":"E_MINE","params":{"a":"b\\n\\"c"}}')])
def test_an_event_without_a_form(text, notification):
    assert translation.event_to_jsonrpc(text) == notification
    assert translation.event_to_text(notification) == text


def test_the_first_line_of_an_event_decides_whether_all_have_names():
    assert json.loads(translation.event_to_jsonrpc(b"E_X\nname::1\nbare\n"))["params"] == {"name": "1", "": "bare"}
    assert json.loads(translation.event_to_jsonrpc(b"E_X\nbare\nname::1\n"))["params"] == ["bare", "1"]


# Requests.


def params(text, **how):
    """The params that a text request becomes."""
    return json.loads(translation.to_jsonrpc(text, **how)).get("params")


@pytest.mark.parametrize("text, wanted", [
    (b":ul_add:\nlocation\nal\nsip:a@b\n0\n0.5\nunused\n1\n2\n3\n", {"table_name": "location", "aor": "al", "contact": "sip:a@b",
     "expires": "0", "q": "0.5", "flags": "1", "cflags": "2", "methods": "3"}),
    (b":ds_list:\n", None), (b":ds_list:\nfull\n", {"full": "1"}), (b":ds_list:\np\n", {"partition": "p"}),
    (b":ds_list:\np\nfull\n", {"partition": "p", "full": "1"}), (b":ds_list:\nx::\n", {"partition": "default"}),
    (b':t_uac_dlg:\nINVITE\nsip:a\n.\nudp:h:1\n"X: 1\r\n"\n', {"method": "INVITE", "ruri": "sip:a", "socket": "udp:h:1",
                                                               "headers": "X: 1\r\n"}),
    (b":ul_dump:\nBrief\n", {"brief": "1"}), (b":ul_dump:\nlong\n", None),
    (b":dlg_list:\n1\n2\n", {"index": "1", "counter": "2"}), (b":dlg_list:\nc\nt\n", {"callid": "c", "from_tag": "t"}),
    (b":dr_gw_status:\ngw1\n0\n", {"gw_id": "gw1", "status": "0"}), (b":dr_carrier_status:\n", None),
    (b":dr_gw_status:\npstn\ngw1\n0\n", {"partition_name": "pstn", "gw_id": "gw1", "status": "0"}),
    (b":profile_get_values:\np\nignored\n", {"profile": "p"}), (b":ds_reload:\np\nignored\n", {"partition": "p"}),
    (b":nh_enable_ping:\n0x1F\n", {"status": "31"}), (b":rtpproxy_enable:\nudp:h:1\n2\n1\n", {"url": "udp:h:1", "setid": "2",
                                                                                          "enable": "1"}),
    (b":dlg_end_dlg:\n5910780863915\n", {"dialog_id": forms.dialog_id(5910780863915)}),
    (b':dlg_end_dlg:\nc@x\n"X: 1\r\n"\n', {"dialog_id": "c@x", "extra_hdrs": "X: 1\r\n"}),
    (b":get_statistics:\na\nb:\n", {"statistics": ["a", "b:"]}), (b":list_statistics:\n", None),
    (b":cache_remove_chunk:\n*\n", {"glob": "*"}), (b":cache_remove_chunk:\nc1\n*\n", {"collection": "c1", "glob": "*"}),
    (b":cache_store:\nlocal\nk\n4294967297\n", {"system": "local", "attr": "k", "value": "4294967297"}),
    (b":raise_event:\nE_X\n1\n2\n", {"event": "E_X", "params": ["1", "2"]}),
    (b":raise_event:\nE_X\na::1\n", {"event": "E_X", "params": '{"a":"1"}'}),
    (b":pwd:\nignored\n", None), (b":usrloc:rm:\nlocation\na\n", {"table_name": "location", "aor": "a"})])
def test_values_of_a_text_request_go_by_name_and_as_texts(text, wanted):
    assert params(text) == wanted


@pytest.mark.parametrize("text, code, reason", [
    (b":ul_rm:\nlocation\n", 400, "Too few or too many arguments"), (b":ds_list:\na\nb\n", 400, "Bad parameter"),
    (b":cache_store:\nlocal\nk\n", 404, "Too few arguments"), (b":cache_fetch:\na\nb\nc\n", 404, "Too many arguments"),
    (b":dlg_list:\n1\n2\n3\n", 400, "Too few or too many arguments"),
    (b":lb_status:\n1\n1\nx\n", 400, "Too few or too many arguments"),
    (b":list_all_profiles:\nx\n", 401, "Too few or too many arguments"),
    (b":t_reply:\n-1\nr\n1:2\nt\n.\n", 400, "Invalid reply code"),
    (b':ul_rm:\na"b\n', 400, "parse_error"), (b":raise_event:\n", 400, "Too few or too many arguments"),
    (b":cache_store:\nlocal\nk\nx::\n", 404, "Empty value argument"),
    (b":cache_fetch:\nx::\nk\n", 404, "Empty memory cache id"),
    (b":cache_store:\nlocal\nk\nv\n-1\n", 404, "Bad format for expires argument"),
    (b":dlg_end_dlg:\nx::\n", 400, "Bad parameter"),
    (b":event_subscribe:\nE_X\nudp:h:1\nx\n", 400, "Bad parameter"), (b":dlg_list:\nx::\n", 400, "Invalid Call-ID specified"),
    (b":profile_get_size:\nx::\n", 400, "Too few or too many arguments"),
    (b":profile_list_dlgs:\np\nx::\n", 400, "Bad parameter"),
    (b":lb_status:\n-1\n", 400, "Bad parameter"), (b":lb_status:\n0x1\n", 400, "Bad parameter"),
    (b":ds_set_state:\ni\nx::\nsip:a\n", 500, "group not found"), (b":log_level:\nx\n", 400, "Bad parameter"),
    (b":t_hash:\n", 500, "command not available: OpenSIPS 3.x is mute after it")])
def test_what_cannot_be_asked_in_json_is_refused_as_24_does(text, code, reason):
    with pytest.raises(mi.Error) as refused:
        translation.to_jsonrpc(text)
    assert (refused.value.code, refused.value.reason) == (code, reason)


def test_a_command_without_a_form_goes_by_the_recipes_of_the_server():
    """As `which COMMAND` of 3.4 tells them; names in the request count."""
    recipes = translation.recipes_in(b'{"jsonrpc":"2.0","result":[["ip"],["proto","ip"],["port","ip"]],"id":1}')
    assert recipes == ("ip", "proto ip", "port ip")
    assert translation.recipes_in(b'{"jsonrpc":"2.0","error":{"code":404,"message":"unknown MI command"},"id":1}') is None
    for garbage in (b'"x" "id":1}', b"x", b"[]", b'{"result":[1],"id":1}', b'{"result":[[{}]],"id":1}'):
        assert translation.recipes_in(garbage) is None, garbage
    assert translation.needs_recipes("check_it")
    assert not translation.needs_recipes("ul_dump")
    assert params(b":check_it:\n1.2.3.4\n", recipes=recipes) == {"ip": "1.2.3.4"}
    assert params(b":check_it:\nport:: 5060\nip:: 1.2.3.4\n", recipes=recipes) == {"port": "5060", "ip": "1.2.3.4"}
    assert params(b":check_it:\n1\n2\n3\n") == ["1", "2", "3"]  # a server that tells none
    with pytest.raises(mi.Error, match="Ambiguous call, give names, as proto::VALUE: proto ip or port ip"):
        params(b":check_it:\ntcp\n1.2.3.4\n", recipes=recipes)
    with pytest.raises(mi.Error, match="Too few or too many arguments"):
        params(b":check_it:\n", recipes=recipes)


def request(method, given=None):
    """A JSON-RPC request."""
    return json.dumps({"jsonrpc": "2.0", "method": method, **({} if given is None else {"params": given}), "id": 1}).encode()


@pytest.mark.parametrize("method, given, wanted", [
    ("ul_add", {"table_name": "location", "aor": "al", "contact": 'sip:a;x="b c"', "expires": 60, "q": 0.5, "flags": 0,
                "cflags": 0, "methods": "+7"}, b':ul_add:\nlocation\nal\n"sip:a;x=\\"b c\\""\n60\n0\n0\n0\n0\n7\n'),
    ("ds_list", {"full": 1, "partition": "p"}, b":ds_list:\np\nfull\n"), ("ds_list", {"full": 0}, b":ds_list:\n"),
    ("ul_dump", [1], b":ul_dump:\nbrief\n"), ("ul_dump", {"brief": "0"}, b":ul_dump:\n"),
    ("dlg_list", {"counter": 5, "index": 0}, b":dlg_list:\n0\n5\n"),
    ("dlg_end_dlg", {"dialog_id": "065.34ca3677"}, b":dlg_end_dlg:\n5911878020163\n"),
    ("dlg_end_dlg", {"dialog_id": "c@x", "extra_hdrs": "X: 1\r\n"}, b':dlg_end_dlg:\nc@x\n"X: 1\r\n"\n'),
    ("get_statistics", {"statistics": ["a", "b:"]}, b":get_statistics:\na\nb:\n"),
    ("cache_remove_chunk", {"glob": "*", "collection": "c1"}, b":cache_remove_chunk:\nc1\n*\n"),
    ("cache_store", {"system": "local", "attr": "k", "value": 4294967297}, b":cache_store:\nlocal\nk\n2147483647\n"),
    ("dlg_send_sequential", {"callid": "c", "method": "INFO"}, b":dlg_send_sequential:\nc\nx::\nINFO\n"),
    ("t_uac_dlg", {"method": "OPTIONS", "ruri": "sip:a", "headers": "X: 1\r\n"},
     b':t_uac_dlg:\nOPTIONS\nsip:a\n.\n.\n"X: 1\r\n"\n'),
    ("raise_event", ["E_X", ["1", 2]], b":raise_event:\nE_X\n1\n2\n"), ("raise_event", ["E_X"], b":raise_event:\nE_X\n"),
    ("raise_event", ["E_X", '{"a":"x y","b":2}'], b":raise_event:\nE_X\na::x y\nb::2\n"),
    ("list_blacklists", {"name": "x"}, b":list_blacklists:\n"), ("pwd", None, b":pwd:\n"),
    ("theirs", {"a": 1, "b": [True, "x::y"], "c": ""}, b':theirs:\n1\ntrue\n"x::y"\nx::\n'),
    ("raise_event", ["E_X", '{"a":""}'], b":raise_event:\nE_X\na::\n"),
    ("lb_status", [-1, "4294967295"], b":lb_status:\n4294967295\n4294967295\n"), ("log_level", [-1], b":log_level:\n-1\n"),
    ("pike_rm", [""], b":pike_rm:\nx::\n"), ("ul_rm", ["location", ""], b":ul_rm:\nlocation\n@\n")])
def test_params_go_by_position(method, given, wanted):
    assert translation.to_text(request(method, given)) == wanted


@pytest.mark.parametrize("method, given, code, message, data", [
    ("ul_rm", {"table_name": "l"}, -32602, "Invalid params", "Too few or too many parameters"),
    ("ul_rm", {"table": "l", "aor": "a"}, -32602, "Invalid params", "Named parameters do not match"),
    ("ds_list", ["x"], -32602, "Invalid params", "Ambiguous call, use named parameters instead"),
    ("dlg_list", ["x"], -32602, "Invalid params", "Command only supports named parameters"),
    ("log_level", ["x"], -32602, "Invalid params", "Bad type for parameter 'level'"),
    ("get_statistics", {"statistics": []}, -32602, "Invalid params", "Empty array in parameter 'statistics'"),
    ("event_subscribe", ["E", "udp:h:1", -1], -32602, "Invalid params", "Negative expire value"),
    ("ds_reload", {"inherit_state": "0"}, 400, "Invalid parameter: 'inherit_state'", "OpenSIPS 2.4 has no such parameter"),
    ("cache_store", ["local", "k", 'a"\\'], 400, "Bad parameter value",
     "a value that needs quotes cannot end in a backslash: 'a\"\\\\'"),
    ("raise_event", {"event": "E_X", "params": 5}, 400, "Bad Params", None),
    ("allow_uri", ["p", "", "sip:c"], 404, "Basename is empty", None),
    ("dlg_end_dlg", [""], 404, "Requested Dialog not found", None),
    ("profile_get_size", [""], 404, "Profile not found", None),
    ("ds_set_state", ["i", "1", ""], 404, "destination not found", None),
    ("cache_store", ["local", "k", ""], -32602, "Invalid params", "Empty value"),
    ("rl_reset_pipe", [""], 500, "Internal error", None), ("t_uac_cancel", ["c", ""], 481, "No such transaction", None),
    ("trace", {"id": "", "mode": "on"}, 400, "Bad trace id value", None),
    ("pwd", 5, -32600, "Invalid Request", None)])
def test_what_cannot_be_asked_in_text_is_refused_as_34_does(method, given, code, message, data):
    with pytest.raises(mi.Error) as refused:
        translation.to_text(request(method, given))
    assert (refused.value.code, refused.value.reason, refused.value.data) == (code, message, data)


@given(st.lists(st.binary(min_size=1, max_size=20).map(mi.decode), min_size=3, max_size=3))
def test_values_come_back_from_either_dialect(values):
    try:
        text = mi.write_request("cache_store", [(None, value) for value in values])
    except ValueError:
        return  # what no text request carries
    if any("\0" in value for value in values):
        with pytest.raises(mi.Error, match="Bad parameter"):
            translation.to_jsonrpc(text)
        return
    asked = translation.to_jsonrpc(text)
    assert json.loads(mi.decode(asked))["params"] == dict(zip(("system", "attr", "value"), values))
    assert translation.to_text(asked) == text


# Names.


def test_names_of_40_and_before_lead_to_each_other():
    """All that the map of 4.0 has, and those whose old name 4.0 dropped."""
    for full, old, aliases, _ in MAP:
        if old != "(new)":
            assert translation.name_on(full, {old}) == old
            assert translation.name_on(old, {full}) == full
            assert all(translation.name_on(alias, {full}) == full for alias in aliases if ":" not in alias)
    for name in ("sip_trace", "tracer:trace", "trace"):
        assert {translation.name_on(name, {other}) for other in ("sip_trace", "trace", "tracer:trace")} == \
            {"sip_trace", "trace", "tracer:trace"}
    assert translation.name_on("pike_list", {"pike:list"}) == "pike:list"
    assert translation.name_on("what.ever", None) == "what.ever"  # a server that does not list its commands
    assert translation.form_of("usrloc:dump") is forms.FORMS["ul_dump"]


@pytest.mark.parametrize("name, dialect, code, reason, data", [
    ("nosuch", "text", 500, "command not available", None), ("nosuch", "jsonrpc", -32601, "Method not found", None),
    ("rl_bin_status", "text", 500, "command not available: OpenSIPS has it up to 2.4", None),
    ("dlg_list_sharing_tags", "text", 500, "command not available: OpenSIPS has it up to 2.4, then clusterer_list_shtags", None),
    ("ratelimit:dump_pipe", "jsonrpc", -32601, "Method not found", "OpenSIPS has it since 3.0")])
def test_a_command_that_a_server_lacks_is_refused_with_the_reason(name, dialect, code, reason, data):
    with pytest.raises(mi.Error) as refused:
        translation.name_on(name, NAMES_34 if dialect == "text" else NAMES_24, dialect)
    assert (refused.value.code, refused.value.reason, refused.value.data) == (code, reason, data)


def test_each_command_is_on_each_server_or_has_a_reason():
    """By what `which` lists on three real servers of the same modules."""
    for known in (NAMES_24, NAMES_34, NAMES_40):
        for name in {*NAMES_24, *NAMES_34, *NAMES_40}:
            with contextlib.suppress(mi.Error):
                translation.name_on(name, known)
                continue
            assert any(other in translation.REASONS for other in translation.names_of(name)), name


def test_a_request_gets_another_name_and_stays_the_same():
    assert translation.renamed(b':ul_rm:\nlocation\n"a\nb"\n', "usrloc:rm") == b':usrloc:rm:\nlocation\n"a\nb"\n'
    assert translation.renamed(b'{"jsonrpc":"2.0","Method":"ul_rm","params":["a"],"id":"x"}', "usrloc:rm") == \
        b'{"jsonrpc":"2.0","Method":"usrloc:rm","params":["a"],"id":"x"}'


def test_which_is_read_in_both_dialects():
    assert NAMES_24[:2] == NAMES_34[:2] == ["get_statistics", "list_statistics"]
    assert "usrloc:dump" in NAMES_40
    assert NAMES_24[-1]
    for reply in (b"500 command not available\n", b'{"jsonrpc":"2.0","error":{"code":-32601},"id":1}', b"", b"[]", b"\xff"):
        with pytest.raises(mi.Error):
            translation.names_in(reply)


@pytest.mark.parametrize("command, wanted", [
    ("ul_rm", [["table_name", "aor"]]), ("usrloc:rm", [["table_name", "aor"]]), ("nosuch", None)])
def test_the_recipes_of_a_text_server_are_those_of_the_forms(command, wanted):
    reply = json.loads(translation.reply_to_jsonrpc(request("which", [command]), raw(WHICH["text_reply"])))
    assert reply.get("result") == wanted
    assert wanted or reply["error"] == {"code": 404, "message": "unknown MI command"}


# Replies without a form.


@pytest.mark.parametrize("result, tree", [
    ("OK", ""), (None, ""), ("a text", "a text\n"), (5, "5\n"), (True, "true\n"), (1.5, "1.500000\n"), (["a", 2], "a\n2\n"),
    ([], ""), ({}, ""), ({"a": "x", "b": None, "c": False}, "a:: x\nb:: \nc:: false\n"),
    ({"Caches": [{"name": "n", "size": 5}, {"name": "m"}]}, "Cache:: \n\tname:: n\n\tsize:: 5\nCache:: \n\tname:: m\n"),
    ({"entries": ["x", "y"], "o": {"p": {"q": 1}}}, "entry:: x\nentry:: y\no:: \n\tp:: \n\t\tq:: 1\n"),
    ([{"a": 1}, [2]], "item:: \n\ta:: 1\nitem:: 2\n"),
    ({"Processes": [1], "status": "s", "address": [2], "Boxes": [3]}, "Process:: 1\nstatus:: s\naddress:: 2\nBox:: 3\n")])
def test_a_result_without_a_form_becomes_a_tree(result, tree):
    reply = mi.json_text({"jsonrpc": "2.0", "result": result, "id": 1}).encode()
    assert translation.reply_to_text(b":theirs:\n", reply) == f"200 OK\n{tree}\n".encode()


@pytest.mark.parametrize("tree, result", [
    ("", "OK"), ("a:: x\n", {"a": "x"}), ("x\ny\n", ["x", "y"]), ("n:: 1\nn:: 2\n", {"n": ["1", "2"]}),
    ("n:: v a=1\n\tk:: w\n", {"n": {"n": "v a=1", "k": "w"}}), ("n::  a=1 b=x y\n", {"n": {"a": "1", "b": "x y"}})])
def test_a_tree_without_a_form_becomes_a_result(tree, result):
    reply = translation.reply_to_jsonrpc(request("theirs"), f"200 OK\n{tree}\n".encode())
    assert json.loads(reply) == {"jsonrpc": "2.0", "result": result, "id": 1}


def test_a_reply_that_has_not_the_form_of_its_command_is_translated_by_the_rule():
    assert translation.reply_to_text(b":ul_dump:\n", b'{"jsonrpc":"2.0","result":{"Domains":[{"new":1}]},"id":1}') == \
        b"200 OK\nDomain:: \n\tnew:: 1\n\n"
    reply = translation.reply_to_jsonrpc(request("dlg_list"), b"200 OK\ndialog::  ID=x\n\n")
    assert json.loads(reply)["result"] == {"dialog": {"ID": "x"}}


def test_statistics_that_are_asked_for_twice_come_twice():
    [row] = [row for row in PAIRS if row["id"] == "p0576"]
    assert translation.reply_to_jsonrpc(raw(row["json_request"]), raw(row["text_reply"])) == raw(row["json_reply"])
    for text, reply in ((b"a:b:: 1\na:b:: 2\na:c:: 3\n", b'{"a:b":1,"a:b":2,"a:c":3}'), (b"a:b:: \n", b'{"a:b":""}'),
                        (b"a:b:: x\n", b'{"a:b":"x"}'), (b"a:\":: 1\n", b'{"a:\\"":1}')):
        assert translation.reply_to_text(b":get_statistics:\na:\n", b'\n{"result":%b,"id":1}' % reply) == b"200 OK\n%b\n" % text


# Errors.


@pytest.mark.parametrize("name, error, reply", [
    ("x", {"code": -32601, "message": "Method not found"}, b"500 command not available\n"),
    ("x", {"code": -32602, "message": "Invalid params", "data": "Too few or too many parameters"},
     b"400 Too few or too many arguments\n\n"),
    ("x", {"code": -32602, "message": "Invalid params", "data": "Bad type for parameter 'x'"}, b"400 Bad parameter\n\n"),
    ("x", {"code": -32000, "message": "Server error", "data": "Command handler returned null"}, b"500 command failed\n"),
    ("x", {"code": -32001, "message": "Method ambiguous", "data": "supported names: a:x, b:x"},
     b"500 Method ambiguous: supported names: a:x, b:x\n\n"),
    ("x", {"code": 404, "message": "AOR\nnot found", "data": "more"}, b"404 AOR not found\n\n"),
    ("x", {"code": 500, "message": "Internal error"}, b"500 Server Internal Error\n\n"),
    ("x", "odd", b"500 odd\n\n"), ("x", {}, b"500 command failed\n"),
    ("x", {"code": -32602, "message": "Bad PID"}, b"400 Bad PID\n\n"), ("x", {"code": -32602}, b"400 Bad parameter\n\n"),
    ("x", {"code": 99999999999, "message": "far"}, b"500 far\n\n"), ("x", {"code": 99, "message": "near"}, b"500 near\n\n"),
    ("cache_fetch", {"code": 400, "message": "Value not found"}, b"200 OK\nValue not found\n\n"),
    ("ul_sync", {"code": 200, "message": "Contacts already synced"}, b"200 Contacts already synced\n\n")])
def test_errors_of_a_jsonrpc_server(name, error, reply):
    answer = json.dumps({"jsonrpc": "2.0", "error": error, "id": 1}).encode()
    assert translation.reply_to_text(f":{name}:\n".encode(), answer) == reply


def test_what_34_says_without_json_is_passed_on():
    assert translation.reply_to_text(b":x:\n", b"400 Parse_error") == b"400 Parse_error\n\n"
    assert translation.reply_to_text(b":x:\n", b"500 Internal error") == b"500 Internal error\n\n"


@pytest.mark.parametrize("name, reply, error", [
    ("x", b"500 command not available\n", {"code": -32601, "message": "Method not found"}),
    ("x", b"500 command failed\n", {"code": -32000, "message": "Server error", "data": "Command handler returned null"}),
    ("x", b"400 Too few or too many arguments\n\n",
     {"code": -32602, "message": "Invalid params", "data": "Too few or too many parameters"}),
    ("x", b"404 AOR not found\n\n", {"code": 404, "message": "AOR not found"}),
    ("x", b"500 reply of 70000 bytes exceeds 65457\n", {"code": 500, "message": "reply of 70000 bytes exceeds 65457"}),
    ("log_level", b"400 Bad parameter\n\n", {"code": -32602, "message": "Invalid params", "data": "Bad PID"}),
    ("dlg_list", b"400 Invalid Call-ID specified\n\n", {"code": 404, "message": "No such dialog"})])
def test_errors_of_a_text_server(name, reply, error):
    assert json.loads(translation.reply_to_jsonrpc(request(name), reply)) == {"jsonrpc": "2.0", "error": error, "id": 1}


def test_the_id_of_a_request_comes_back():
    for written in ('"a"', "7", "null"):
        asked = f'{{"jsonrpc":"2.0","method":"pwd","id":{written}}}'.encode()
        assert json.loads(translation.reply_to_jsonrpc(asked, b"200 OK\nWD:: /\n\n"))["id"] in ("a", 7, None)


@given(st.binary(max_size=60) | st.text("{}[]\":,0abE\n\\t =", max_size=60).map(str.encode), st.sampled_from(
    [b":ul_dump:\n", b":dlg_list:\n", b":t_uac_dlg:\n", b":x:\n", b":get_statistics:\n"]))
def test_whatever_a_server_answers_is_translated_or_an_error(data, text):
    asked = request(text.decode()[1:-2])
    for function, arguments in (
            (translation.reply_to_text, (text, data)), (translation.reply_to_jsonrpc, (asked, data)),
            (translation.reply_to_text, (text, b'{"jsonrpc":"2.0","result":' + data + b',"id":1}')),
            (translation.reply_to_jsonrpc, (asked, b"200 OK\n" + data + b"\n\n")), (translation.to_text, (data,)),
            (translation.to_jsonrpc, (text + data,)), (translation.event_to_text, (data,)),
            (translation.event_to_jsonrpc, (data,))):
        with contextlib.suppress(mi.Error):
            assert isinstance(function(*arguments), bytes)


@pytest.mark.parametrize("text", [b":x:\n", b":ul_dump:\n"])
def test_what_is_nested_deep_or_too_long_is_an_error(text):
    deep = b'{"jsonrpc":"2.0","result":' + b"[" * 5000 + b"]" * 5000 + b"}"
    many = b'{"jsonrpc":"2.0","result":[' + b'"x",' * 200000 + b'"x"]}'
    for reply, reason in ((deep, "nested too deep"), (many, "reply of more than")):
        with pytest.raises(mi.Error, match=reason):
            translation.reply_to_text(text, reply)
    with pytest.raises(mi.Error, match="reply of "):
        translation.reply_to_jsonrpc(request("x"), b"200 OK\n" + b"x\n" * 40000 + b"\n")


# Kamailio.


def test_kamailio_gets_values_by_position_with_their_types(tmp_path):
    """From a real one: digits are numbers, which it does not take for texts; `s:` makes a text."""
    (tmp_path / "kamailio.cfg").write_text(f"""listen=udp:127.0.0.1:{free_port(socket.AF_INET)}
children=1
loadmodule "jsonrpcs.so"
loadmodule "kex.so"
modparam("jsonrpcs", "transport", 4)
modparam("jsonrpcs", "dgram_socket", "{tmp_path}/mi.sock")
modparam("jsonrpcs", "pretty_format", 1)
request_route {{ drop; }}
""")
    command = [needs("kamailio"), "-f", "kamailio.cfg", "-DD", "-E", "-m", "32", "-M", "8", "-Y", tmp_path]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as kamailio, \
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        try:
            client.bind(f"{tmp_path}/client.sock")
            client.settimeout(5)
            wait_for(lambda: (tmp_path / "mi.sock").exists(), 20, "kamailio")
            wait_for(lambda: client.connect_ex(f"{tmp_path}/mi.sock") == 0, 5, "kamailio")

            def asked(text):
                client.send(translation.to_jsonrpc(text, kamailio=True))
                return translation.reply_to_text(text, client.recv(65536))

            assert re.fullmatch(rb"200 OK\nnow:: .*\nup_since:: .*\nuptime:: \d+\n\n", asked(b":core.uptime:\n"))
            assert asked(b":core.printi:\n5\n-7\n") == b"200 OK\n5\n-7\n\n"
            assert asked(b":core.prints:\ns:5\nx y\n") == b"200 OK\n5\nx y\n\n"
            assert asked(b":nosuch:\n") == b"500 Method Not Found\n\n"
        finally:
            kamailio.terminate()
