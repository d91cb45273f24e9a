"""What real servers answered to the commands of OpenSIPS' modules, asked again in the order of the recordings."""

import json
import re

import pytest
from conftest import OPENSIPS_MODULES, ROOT, wait_for
from test_recorded import DATA, expand, recordings, shape

import midatagram as mi

FOLDER = DATA / "modules"
# Groups of text.jsonl whose modules are here.
TEXT = ("usrloc", "dispatcher", "dialog", "permissions", "domain", "db_text", "drouting", "load_balancer", "rtpproxy",
        "nathelper", "uac_registrant", "siptrace", "tm", "ratelimit")
TOGETHER = {"registrar": "usrloc", "pike": "ratelimit"}  # modules whose rows stand among those of another
JSON = ("ul", "ds", "par", "dlg", "misc", "perm", "domain", "dbt", "dr", "lb", "rtpp", "nat", "reg", "trace", "tm", "rl", "pike")
# Of the rows that were recorded on a fresh server, and of groups of several modules.
COMMANDS = ("ul_", "ds_", "dlg_", "profile_", "list_all_", "address_", "subnet_", "allow_uri", "domain_", "dbt_", "dr_", "lb_",
            "rtpproxy_", "nh_", "reg_", "sip_trace", '"trace', "t_uac_", "t_hash", "t_reply", "rl_", "pike_")
LEFT_OUT = {"tm-022": "stays open, see test_tm"}  # id -> why


def rows_of(name):
    """The rows of a file, with their request and reply as bytes."""
    with open(FOLDER / name, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{**row, "request": expand(row.get("request")), "reply": expand(row.get("reply"))} for row in rows]


def configuration(name, **values):
    """The settings of a recording server, and lab commands."""
    text = (FOLDER / name).read_text().replace("log_level=1", "log_level=3")
    for mark, value in {"DIR": FOLDER, "SOCK": "unused", "PP": 0, **values}.items():
        text = text.replace(f"@{mark}@", str(value))
    return f'{text}\nloadmodule "lab_sip.so"\n'


def is_asked(row):
    """Whether a request is for a module that is here."""
    return any(command.encode() in (row["request"] or b"") for command in COMMANDS)


def differs(row, reply):
    """What is wrong with a reply, None for nothing."""
    wanted = row["reply"]
    if row.get("compare") == "shape":
        right = shape(reply) == shape(wanted)
    elif row.get("reply_re"):
        right = re.fullmatch(row["reply_re"].encode("latin-1"), reply)
    else:
        right = stable(reply) == stable(wanted)
    return None if right else f"{row['id']}: {row['request']!r}\n     is {reply!r}\n not {wanted!r}"


def stable(reply):
    """A reply without the last 14 bits of ContactIDs, which are random, and without seconds that passed."""
    reply = re.sub(rb'(?<=ContactID:: |ContactID":")\d+', lambda match: b"%d" % (int(match[0]) >> 14), reply)
    return re.sub(rb'(Expires(?::: |":))(\d+)', lambda match: match[1] + b"%d" % (-(-int(match[2]) // 20) * 20), reply)


DATE = re.compile(r"\w{3} \w{3} [ \d]\d [\d:]{8} \d{4}")


def wrong_pairs(trial, dialect, prefix, before=lambda row: None):
    """What is wrong with the replies to the questions that both versions were asked in one state, to commands of a prefix in the
    order of the recording; before(row) brings about what a row wants before it."""
    wrong = []
    for row in [row for row in rows_of("pairs.jsonl") if row["command"].startswith(prefix)]:
        before(row)
        reply, wanted = trial.ask(row[f"{dialect}_request"].encode()).decode(), row[f"{dialect}_reply"]
        if DATE.sub("DATE", reply) != DATE.sub("DATE", wanted):
            wrong.append(f"{row['id']}: {row['note']}\n     is {reply!r}\n not {wanted!r}")
    return wrong


CALLS = {  # id -> calls before it
    "dialog-014": [("call-1@corpus", "alice"), ("call-2@corpus", "carl")], "dialog-077": [("call-3@corpus", "alice")],
    "dlg-036": [("call-1@h", "alice")], "dlg-055": [("call-2@h", "carol")],
}


CONTACT = "headers::\"Contact: <sip:uas@127.0.0.1:5171>\r\n\""
JSON_HEADERS = 'Contact: <sip:bob@127.0.0.1:5482>\r\nX-Test: a"b'
TM = {  # id -> requests before it
    "tm-003": [("lab_answer", "*", "sip:*@127.0.0.1:5171", "200", CONTACT)],
    "tm-023": [("lab_transaction", "1", "2", "mi-inv-2", "6", "INVITE")],
    "tm-038": [("lab_transaction", "12120", "237107357", "held", "1", "OPTIONS")],
}
PIPES = (("pipe1", 100), ("pipe2", 3))
TM_ANSWERS = {"tm-002": 200, "tm-004": 486}  # the code that the peer of 3.4 answers with from then on


def begin_call(trial, callid, caller, is_text):
    """A call as the recording server had it."""
    if is_text:
        words = [callid, f"sip:{caller}@example.com", "sip:bob@example.com", "from_tag::ft1", "to_tag::uastag",
                 "socket::udp:127.0.0.1:5170", f"caller_contact::sip:{caller}@127.0.0.1:5171",
                 "callee_contact::sip:uas@127.0.0.1:5171", "profiles::caller=alice, inbound", "values::my=v1, k2=two words"]
        assert trial.ask("\n".join([":lab_call:", *words, ""]).encode()) == b"200 OK\n\n"
        return
    params = {"callid": callid, "from_uri": f"sip:{caller}@127.0.0.1", "to_uri": "sip:bob@127.0.0.1", "from_tag": "ft1",
              "to_tag": "uas1", "socket": "udp:127.0.0.1:5480", "caller_contact": f"sip:{caller}@127.0.0.1:5483",
              "callee_contact": "sip:bob@127.0.0.1:5482", "profiles": f"caller={caller}, inbound", "values": 'foo=bar"\\/x'}
    assert b'"OK"' in trial.ask(json.dumps({"jsonrpc": "2.0", "method": "lab_call", "params": params, "id": 1}).encode())


def before(trial, row):
    """Bring about what a row wants before it."""
    for callid, caller in CALLS.get(row["id"], ()):
        begin_call(trial, callid, caller, row["id"].startswith("dialog"))
    many = {"usrloc-053": 60, "usrloc-056": 400, "usrloc-055": 400}.get(row["id"], 0)
    for number in range(many):
        trial.ask(b":ul_add:\nlocation\nu%03d\nsip:u%03d@10.0.0.9\n0\n0.5\n0\n0\n0\n1\n" % (number, number))
    for words in TM.get(row["id"], ()) if row.get("module") else ():
        assert trial.ask(lab(*words)) == b"200 OK\n\n"
    if row["id"] in TM_ANSWERS and not row.get("module"):
        params = {"method": "*", "uri_pattern": "sip:x@*", "code": TM_ANSWERS[row["id"]], "headers": JSON_HEADERS}
        assert b'"OK"' in trial.ask(json.dumps({"jsonrpc": "2.0", "method": "lab_answer", "params": params, "id": 1}).encode())
    if row["id"] in ("pike-002", "rl-002"):
        requests = [("lab_block", "127.0.0.1"), *[("lab_pipe", name, "TAILDROP", str(limit)) for name, limit in PIPES]]
        for command, *words in requests:
            request = {"jsonrpc": "2.0", "method": command, "params": words, "id": 1}
            assert b"OK" in trial.ask(lab(command, *words) if row.get("module") else json.dumps(request).encode())
    if row["id"] == "registrar-002":
        trial.ask(b":lab_register:\nlocation\nreggie\nsip:reggie@127.0.0.1:5171\nexpires::600\nuser_agent::corpus UA\n"
                  b"callid::regcid1\nsocket::udp:127.0.0.1:5170\n")


@pytest.mark.parametrize("group", [*TEXT, "auto"])
def test_text(group):
    rows = [row for row in rows_of("text.jsonl") if group in (row["module"], TOGETHER.get(row["module"]))]
    rows = [row for row in rows if row["id"] not in LEFT_OUT and (group != "auto" or is_asked(row))]
    wrong = []
    with mi.Trial(configuration("24.cfg")) as trial:
        if group == "auto":  # the tables as the rows before left them
            trial.ask(b":ds_set_state:\na\n2\nsip:127.0.0.3\n")
            trial.ask(b":ds_set_state:\ni\n1\nsip:127.0.0.1:5171\n")
        for row in rows:
            before(trial, row)
            wrong.append(differs(row, trial.ask(row["request"])))
    assert rows and [text for text in wrong if text] == []


@pytest.mark.parametrize("group", JSON)
def test_jsonrpc(group):
    rows = [row for name in ("jsonrpc.jsonl", "jsonrpc_more.jsonl") for row in rows_of(name)
            if row["id"].startswith(f"{group}-") and is_asked(row)]
    wrong = []
    with mi.Trial(f'{configuration("34.cfg")}\nmodparam("midatagram", "dialect", "jsonrpc")') as trial:
        for row in rows:
            before(trial, row)
            listed = re.search(rb'"ID":"([0-9a-f.]+)"', trial.ask(b'{"jsonrpc":"2.0","method":"dlg_list","id":1}'))
            request = row["request"].replace(b"f2d.078df381", listed[1] if listed else b"")  # the ID of the recording
            request = request.replace(b"@DIR@", str(FOLDER).encode())
            wrong.append(differs(row, trial.ask(request)))
    assert rows and [text for text in wrong if text] == []


@pytest.mark.parametrize("name, dialect", [("24", "text"), ("34", "jsonrpc")])
def test_what_random_requests_brought_to_light(name, dialect):
    """Odd values, and which of two mistakes in a request is named."""
    rows = rows_of(f"edges{name}.jsonl")
    with mi.Trial(f'{configuration(f"{name}.cfg")}\nmodparam("midatagram", "dialect", "{dialect}")') as trial:
        wrong = [differs(row, trial.ask(row["request"])) for row in rows]
    assert rows and [text for text in wrong if text] == []


def test_an_opensips_cfg_is_a_lab_in_a_minute(start, tmp_path):
    """The block of docs/modules.md, as written but for places."""
    page = (ROOT / "docs" / "modules.md").read_text()
    block = next(block for block in re.findall(r"^```\n(.*?)^```$", page, re.S | re.M) if "include_file" in block)
    (tmp_path / "opensips.cfg").write_text(configuration("24.cfg", DIR="/nowhere", SOCK=f"{tmp_path}/mi.sock").replace(
        'loadmodule "lab_sip.so"\n', ""))
    block = block.replace("/etc/opensips/opensips.cfg", f"{tmp_path}/opensips.cfg").replace(
        "/etc/opensips/tables", f"{FOLDER}/db24")
    server = start(f"# {{socket}} socket_name\n{block}", place=f"{tmp_path}/mi.sock")
    assert b"URI:: sip:127.0.0.1:5171 state=Active" in server.ask(b":ds_list:\n")
    assert server.ask(b":lab_register:\nlocation\nalice\nsip:a@b\n") == b"200 OK\n\n"
    assert b"Contact:: sip:a@b Q=" in server.ask(b":ul_dump:\n")


def test_every_parameter_of_all_releases_is_accepted():
    """Of the modules that are here; and each has its row in docs/modules.md."""
    page = (ROOT / "docs" / "modules.md").read_text()
    for name in ("statistics", *OPENSIPS_MODULES):
        module = mi.load_plugin(str(ROOT / "plugins" / f"{name}.py"))
        assert {param.help for param in module.params.values()} >= {"accepted without effect"}
        assert re.search(rf"^\| {name} \|", page, re.M)


@pytest.mark.parametrize("method, params, name", [
    ("ul_dump", {"brief": None}, "brief"), ("ul_sync", ["location", None], "aor"), ("dlg_list", {"callid": None}, "callid"),
    ("dlg_list", {"callid": "c1", "from_tag": None}, "from_tag"), ("dlg_list", {"index": None, "counter": 1}, "index"),
    ("profile_get_size", ["caller", None], "value"), ("ds_list", {"full": None}, "full"),
    ("ds_reload", {"partition": None}, "partition"),
    ("ds_push_script_attrs", ["a", "127.0.0.1", 5482, 1, None], "partition"), ("address_dump", [None], "partition"),
    ("rl_list", {"pipe": None}, "pipe"), ("dr_enable_probing", [None], "status"), ("ul_rm", ["location", None], "aor")])
def test_a_null_is_a_value_of_a_bad_type(method, params, name):
    """And not the same as a parameter that is not given."""
    lines = configuration("34.cfg").replace('"working_mode_preset","single-instance-no-db"', '"db_mode",1')
    request = {"jsonrpc": "2.0", "method": method, "params": params, "id": 1}
    with mi.Trial(lines) as trial:
        begin_call(trial, "c1", "alice", False)
        assert json.loads(trial.ask(json.dumps(request).encode()))["error"] == {
            "code": -32602, "message": "Invalid params", "data": f"Bad type for parameter '{name}'"}


IN_EXAMPLES = {  # what example configurations of OpenSIPS set, some of them of releases that no longer know it
    "registrar": """append_branches expires_max_deviation max_aor_len max_contact_len max_domain_len max_username_len
        method_filtering path_mode path_use_received pn_ct_match_params pn_enable pn_enable_purr pn_inv_timeout
        pn_pnsreg_interval pn_providers pn_refresh_timeout pn_skip_pn_interval pn_trigger_interval use_domain use_path""",
    "permissions": "db_mode from_col peer_tag_avp source_col tag_col trusted_table",
    "nathelper": "rtpproxy_disable_tout rtpproxy_retr rtpproxy_sock rtpproxy_tout",
}


def test_parameters_of_example_configurations_are_accepted():
    lines = [f'modparam("{module}", "{name}", 1)' for module, names in IN_EXAMPLES.items() for name in names.split()]
    with mi.Trial("\n".join([*[f'loadmodule "{module}.so"' for module in IN_EXAMPLES], *lines])) as trial:
        assert trial.ask(b":address_dump:\n") == b"200 OK\n\n"


###############################################################################
# Events, and the statistics after them
###############################################################################


def lab(*words):
    """A request for a lab command."""
    return "\n".join([f":{words[0]}:", *words[1:], ""]).encode()


CALL = "sip:alice@example.com", "sip:bob@example.com", "from_tag::ft1", "to_tag::uastag", "profiles::caller=alice, inbound"
REGISTER = ("lab_register", "location", "reggie", "sip:reggie@127.0.0.1:5171", "callid::regcid1", "user_agent::corpus UA",
            "socket::udp:127.0.0.1:5170")
LAB = {  # what SIP traffic did on the recording servers
    "SIP: REGISTER": lab(*REGISTER, "expires::600"), "SIP: REGISTER again": lab(*REGISTER, "expires::600", "cseq::2"),
    "SIP: unREGISTER": lab(*REGISTER, "expires::0"), "SIP: call": lab("lab_call", "c1@x", *CALL),
    "SIP: pike flood": lab("lab_block", "127.0.0.1"), "SIP: failed call 486": lab("lab_hangup", "c2@x"),
}
BEFORE = {"SIP: failed call 486": lab("lab_call", "c2@x", *CALL, "state::1")}
VOLATILE = re.compile(rb"Expires|timestart")


def timeless(event):
    """An event without what differs: the moment of an expiry, half of a dialog's ID, the ports of the recording server."""
    event = re.sub(rb'(expires(?:::|":))[1-9]\d+', rb"\1T", event)
    event = re.sub(rb"hash_id::\d+", b"hash_id::N", re.sub(rb'("id":"[0-9a-f]+\.)[0-9a-f]+","db_id":"\d+"', rb"\1", event))
    return re.sub(rb":(?:54|51)\d\d(?=[\n\"])", b":P", event)


def subscribed(server, dialect, *events):
    """A UDP client that gets events in a dialect."""
    listener = server.client("udp:127.0.0.1:9")
    listener.socket.bind(("127.0.0.1", 0))
    target = f"udp:127.0.0.1:{listener.socket.getsockname()[1]}"
    for event in events:
        request = f":event_subscribe:\n{event}\n{target}\n".encode()
        if dialect == "jsonrpc":
            request = json.dumps({"jsonrpc": "2.0", "method": "event_subscribe", "params": [event, target], "id": 1}).encode()
        assert b"OK" in server.ask(request)
    return listener


@pytest.mark.parametrize("dialect, version", [("text", 24), ("jsonrpc", 34)])
def test_events(start, dialect, version):
    """In the form of the subscriber's dialect; and the statistics after them."""
    rows = [row for row in rows_of(f"events{version}.jsonl") if is_asked(row) or row["note"].partition(" (")[0] in LAB]
    missing = ("upper case", "ds_reload", "ds_list")  # rows that change states are, which these tell of
    server = start(configuration(f"{version}.cfg", SOCK="{socket}"))
    listener = subscribed(server, dialect, "E_UL_AOR_INSERT", "E_UL_AOR_DELETE", "E_UL_CONTACT_INSERT", "E_UL_CONTACT_UPDATE",
                          "E_UL_CONTACT_DELETE", "E_DISPATCHER_STATUS", "E_DLG_STATE_CHANGED", "E_DROUTING_STATUS",
                          "E_LOAD_BALANCER_STATUS", "E_RTPPROXY_STATUS", "E_PIKE_BLOCKED")
    client = server.client()
    for row in rows:
        if any(word in row["note"] for word in missing):
            continue
        if "before the timer" in row["note"]:
            wait_for(lambda asked=row["request"]: b"expired" in client.ask(asked), 5, "the contact to expire")
        if row["note"] in BEFORE:
            client.ask(BEFORE[row["note"]])
        reply = client.ask(row["request"] or LAB[row["note"].partition(" (")[0]])
        if row["reply"] and not VOLATILE.search(row["reply"]):
            assert reply == row["reply"], row["note"]
        for event in row["events"]:
            assert timeless(listener.receive()) == timeless(event.encode("latin-1")), row["note"]
        if row.get("stats_request"):
            assert client.ask(statistics_request(dialect, row["stats_request"])) == row["stats_after"].encode("latin-1")
    assert listener.receive(0.1) is None


def statistics_request(dialect, group):
    """A request for the statistics of a group."""
    if dialect == "text":
        return f":get_statistics:\n{group}\n".encode()
    return json.dumps({"jsonrpc": "2.0", "method": "get_statistics", "id": 1, "params": [[group]]}).encode()


###############################################################################
# 4.0
###############################################################################

ORDER_40 = ("usrloc", "dialog", "db_text", "dispatcher", "permissions", "domain", "drouting", "uac_registrant")  # if here
ROWS_40 = {0: ("v40-016", "v40-018", "v40-028", "v40-029", "v40-047", "v40-053", "v40-054", "v40-104", "v40-106", "v40-107",
               "v40-108", "v40-120", "v40-121", "v40-122", "v40-123", "v40-127", "v40-128", "v40-129"),
           1: ("v40-132", "v40-119")}  # by whether use_domain is off


@pytest.mark.parametrize("without_domain", [0, 1])
def test_recorded_from_4_0(without_domain, tmp_path):
    """With the use_domain of 4.0, or as the recording server had it set later."""
    for table in (FOLDER / "db34").iterdir():
        (tmp_path / table.name).write_text(table.read_text().replace("5482", "5492").replace("5480", "5490"))
    lines = [*[f'loadmodule "{name}.so"' for name in ORDER_40], f'modparam("midatagram", "db_url", "text://{tmp_path}")',
             'modparam("midatagram", "imitate", "4.0")', 'modparam("domain", "db_mode", 1)',
             'modparam("usrloc", "use_domain", 0)' if without_domain else ""]
    rows = {row["id"]: row for row in rows_of("opensips40.jsonl")}
    with mi.Trial("\n".join(lines)) as trial:
        if without_domain:
            trial.ask(b":ul_add:\nlocation\na\nsip:a@h\n0\n0.5\n0\n0\n0\n1\n")
        asked = [(rows[name], trial.ask(rows[name]["request"])) for name in ROWS_40[without_domain]]
    wrong = [differs(with_free_ids(row), free_ids(reply)) for row, reply in asked]
    assert [text for text in wrong if text] == []


def test_which_of_4_0_is_in_its_order():
    """As recorded; what is not here is left out there too."""
    recorded = json.loads(next(row["reply"] for row in rows_of("opensips40.jsonl") if row["id"] == "v40-112"))["result"]
    modules = [*dict.fromkeys(name.partition(":")[0] for name in recorded)]
    loaded = [name for name in modules if (ROOT / "plugins" / f"{name}.py").exists() and name != "cachedb_local"]
    lines = [f'loadmodule "{name}.so"' for name in loaded if name != "statistics"]
    with mi.Trial("\n".join(['modparam("midatagram", "imitate", "4.0")', *lines])) as trial:
        names = json.loads(trial.ask(b'{"jsonrpc":"2.0","method":"which","id":1}'))["result"]
    in_order = [name for name in recorded if name in names and not name.startswith("cachedb_local")]
    assert [name for name in names if not name.startswith("cachedb_local")] == in_order and len(in_order) > 80


def free_ids(reply):
    """A reply without ContactIDs."""
    return re.sub(rb'"ContactID":"\d+"', b'"ContactID":""', reply)


def with_free_ids(row):
    """A row, likewise."""
    return {**row, "reply": free_ids(row["reply"])}


def test_names_of_4_0():
    """Every command has the one of the map; the old one is gone where 4.0 has dropped it, and stays whatever else is imitated."""
    known = {full: (old, aliases, recipes) for full, old, aliases, recipes in json.loads((FOLDER / "map40.json").read_text())}
    modules = "".join(f'loadmodule "{name}.so"\n' for name in ORDER_40)
    for imitated in ("3.4", "4.0"):
        with mi.Trial(f'{modules}modparam("midatagram", "imitate", "{imitated}")') as trial:
            registry = trial.server.registry
            for command in [command for name in ORDER_40 for command in registry.modules_by_name[name].commands]:
                full = command.full_name
                if full in known:  # dlg_set_sharing_tag_active and the like are of 2.4 alone
                    old, aliases, recipes = known[full]
                    gone = imitated == "4.0" and command.name not in (*aliases, full.partition(":")[2])
                    assert gone is (imitated == "4.0" and command.module.name == "domain")
                    assert (command.name in registry.names) is not gone and registry.names[full] is command
                    assert old == "(new)" or command.name in (old, *aliases)
                    if full != "dialog:send_sequential":  # which takes `headers` too
                        assert [" ".join(recipe) for recipe in command.recipes] == [" ".join(recipe) for recipe in recipes], full


###############################################################################
# Files for a dashboard
###############################################################################

OWN_GROUPS = "shmem", "pkmem", "load", "script", "grp1", "mi_datagram", "core:timestamp"  # which the program has, or a script


def groups_of(names):
    """The names of statistics but those of our own groups."""
    return {name for name in names if not name.startswith(OWN_GROUPS)}


@pytest.mark.parametrize("version, file, row", [(24, "text_core.jsonl", "statistics-018"), (34, "jsonrpc.jsonl", "stat-006")])
def test_one_line_has_the_statistics_of_a_release(version, file, row):
    """Of all groups that the recording server showed. And what a module that is loaded has is the module's."""
    recorded = next(found for found in recordings(file) if found["id"] == row)["reply"].decode()
    wanted = groups_of(re.findall(r"^([a-z]+:[^:\n]+):: " if version == 24 else r'"([a-z]+:[^":]+)":', recorded, re.M))
    for more in ("", "".join(f'loadmodule "{name}.so"\n' for name in ("usrloc", "registrar", "dialog"))):
        with mi.Trial(f'loadmodule "opensips{version}.so"\n{more}') as trial:
            reply = trial.ask(statistics_request("text" if version == 24 else "jsonrpc", "all")).decode()
            line = r"^(\w+:[^:\n]+):: (\d+)$" if version == 24 else r'"(\w+:[^":]+)":(\d+)'
            shown = {name: int(number) for name, number in re.findall(line, reply, re.M)}
            missing = wanted - {*shown}
            assert len(wanted) > 50 and missing == set()
            assert groups_of(shown) - wanted <= {"siptrace:traced_requests", "siptrace:traced_replies",
                                                 "tracer:traced_requests", "tracer:traced_replies"}
            assert (shown["dialog:active_dialogs"] == 0) is bool(more)


@pytest.mark.parametrize("version", [24, 34])
def test_one_line_has_commands_without_a_plug_in(version):
    with mi.Trial(f'loadmodule "opensips{version}.so"\n') as trial:
        for words in (("dp_reload",), ("clusterer_list",), ("refresh_watchers", "sip:a@b", "presence", "1"), ("cleanup",),
                      ("rls_update_subscriptions", "sip:a@b")):
            assert trial.ask(lab(*words)) == b"200 OK\n\n"
        assert trial.ask(lab("refresh_watchers", "sip:a@b", "presence", "2")) == b"400 Bad parameter\n\n"
        assert json.loads(trial.ask(b'{"jsonrpc":"2.0","method":"clusterer_list","id":1}'))["result"] == {"Clusters": []}


def test_both_files_at_once_with_all_modules():
    names = [path.stem for path in sorted((ROOT / "plugins").glob("*.py"))
             if re.search(r"^opensips = mi\.shared", path.read_text(), re.M)]
    lines = "".join(f'loadmodule "{name}.so"\n' for name in ("opensips24", *names, "opensips34"))
    with mi.Trial(lines) as trial:
        assert trial.ask(b":dp_reload:\n") == b"200 OK\n\n"
