"""usrloc and registrar beyond the recordings: state, tables, timers, lab_register; and the form of what is asked seldom."""

import json
import re

import pytest
from conftest import run, wait_for
from test_modules import differs, rows_of, subscribed

import midatagram as mi

opensips = mi.shared("opensips_base")
LINES = 'loadmodule "usrloc.so"\nloadmodule "registrar.so"\nloadmodule "lab_sip.so"\n'
ADD = ":ul_add:\nlocation\n{}\nsip:{}@10.0.0.1\n{}\n0.5\n0\n0\n0\n1\n"


@pytest.fixture
def trial():
    """Make a trial with usrloc and some parameters: trial(parameter=value)."""
    made = []

    def make(lines="", **params):
        values = {name: f'"{value}"' if isinstance(value, str) else value for name, value in params.items()}
        lines = LINES + lines + "".join(f'modparam("usrloc", "{name}", {value})\n' for name, value in values.items())
        made.append(mi.Trial(lines))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(trial, text):
    """The reply to a text request."""
    return trial.ask(text.encode()).decode()


def rpc(trial, method, params=None):
    """The result of a JSON-RPC request, or its error."""
    request = {"jsonrpc": "2.0", "method": method, "id": 1, **({} if params is None else {"params": params})}
    reply = json.loads(trial.ask(json.dumps(request).encode()))
    return reply.get("result", reply.get("error"))


def contacts(trial, aor="alice"):
    """The contacts of an AOR."""
    return rpc(trial, "ul_show_contact", ["location", aor])["Contacts"]


@pytest.mark.parametrize("version", ["24", "34"])
def test_with_use_domain(trial, version):
    with_domain = trial(use_domain=1, hash_size=2)
    rows = [row for row in rows_of(f"variants{version}.jsonl") if row["id"].startswith("usedom")]
    free = [{**row, "reply": re.sub(rb'(ContactID(?:::|":") ?)(\d+)', rb"\1N", row["reply"])} for row in rows]
    wrong = [differs(row, re.sub(rb'(ContactID(?:::|":") ?)(\d+)', rb"\1N", with_domain.ask(row["request"]))) for row in free]
    assert rows and [text for text in wrong if text] == []


def test_contact_ids_count_aors_in_a_bucket_and_contacts_of_an_aor(trial):
    one = trial(hash_size=1)
    labels = {}
    for name in ("alice", "bob", "carol", "dave"):
        ask(one, ADD.format(name, "x", 0))
        ask(one, ADD.format(name, "y", 0))
        first, second = (int(contact["ContactID"]) for contact in contacts(one, name))
        assert (second - first) & 0x3FFF == 1
        assert first >> 14 == second >> 14
        labels.setdefault(opensips.core_hash(name.encode()) & 1, []).append(first >> 14 & 0xFFFFFFFF)
    assert all(numbers == [*range(len(numbers))] for numbers in labels.values())
    ask(one, ":ul_rm:\nlocation\ndave\n")
    ask(one, ADD.format("dave", "x", 0))
    assert int(contacts(one, "dave")[0]["ContactID"]) >> 14 & 0xFFFFFFFF == len(labels[opensips.core_hash(b"dave") & 1])


@pytest.mark.parametrize("added, shown", [
    ("a.5 b.7 c.5 d1", "d1 b.7 a.5 c.5"), ("a.5 b.7 c.5 b.5", "b.5 a.5 c.5"), ("a.9 b.5 c.3 b.6", "a.9 b.6 c.3"),
    ("a.9 b.5 c.3 c.6", "c.6 a.9 b.5"), ("a.9 b.5 c.3 a.1", "a.1 b.5 c.3"), ("a.9 b.5 a.1 b1", "a.1 b1")])
def test_contacts_stand_by_q_and_an_update_may_move_one(trial, added, shown):
    one = trial()
    for uri, q in re.findall(r"(\w)(\S+)", added):
        assert ask(one, f":ul_add:\nlocation\nalice\nsip:{uri}\n0\n{q}\n0\n0\n0\n1\n") == "200 OK\n\n"
    assert [(contact["Contact"][4:], float(contact["Q"])) for contact in contacts(one)] == [
        (uri, float(q)) for uri, q in re.findall(r"(\w)(\S+)", shown)]


def test_the_newest_contact_comes_first_if_wanted(trial):
    one = trial(desc_time_order=1)
    for uri, q, shown in (("a", "1", "a"), ("b", "0.1", "ba"), ("c", "0.1", "cba"), ("a", "0.1", "acb"), ("a", "0.1", "acb")):
        ask(one, f":ul_add:\nlocation\nalice\nsip:{uri}\n0\n{q}\n0\n0\n0\n1\n")
        assert [contact["Contact"] for contact in contacts(one)] == [f"sip:{uri}" for uri in shown]


@pytest.mark.parametrize("uri, good", [
    ("sip:a@10.0.0.1", True), ("sips:host", True), ("tel:+123", True), ("SIP:A@B:5060;x=y?h=v", True), ("sip:[::1]:5070", True),
    ("<sip:a@b>", False), ("a@b", False), ("", False), ("sip:", False), ("sip:a@", False), ("sip:a@b:port", False)])
def test_a_contact_is_a_uri(trial, uri, good):
    assert (rpc(trial(), "ul_add", ["location", "x", uri, 0, "0.5", 0, 0, 0]) == "OK") == good


def test_arguments_are_looked_at_in_the_order_of_the_original(trial):
    one = trial()
    bad = "\nalice\nnotauri\nx\n7\n0\nx\nx\nx\n"
    assert ask(one, f":ul_add:\nnosuch{bad}") == "404 Table not found\n\n"
    assert ask(one, f":ul_add:\nlocation{bad}") == "400 Bad parameter\n\n"
    assert rpc(one, "ul_add", ["nosuch", "alice", "notauri", "x", "7", "x", "x", "x"])["message"] == "Table not found"
    assert rpc(one, "ul_add", ["location", "a", "b", "x", "7", 0, 0, 0])["data"] == "Bad type for parameter 'expires'"
    assert rpc(one, "ul_add", ["location", "a", "b", 0, "7", "x", 0, 0]) == {"code": 400, "message": "Bad parameter value"}
    assert ask(one, ":ul_add:\nlocation\nx::\nsip:a\n0\n1\n0\n0\n0\n1\n") == "200 OK\n\n"  # crashes the original
    assert ask(one, ":ul_rm:\nx::\nalice\n") == "404 Table not found\n\n"


@pytest.mark.parametrize("other, is_same", [
    ("SIP:AL%65X@HOST.EXAMPLE:5060;TRANSPORT=UDP;LR", True), ("sip:alex@Host.Example:5060;lr;transport=UDP", True),
    ("sip:al%65x@host.example:5060;transport=udp", True), ("sip:al%65x@host.example:5060;transport=udp;lr;x=1", True),
    ("sip:al%65x@host.example:5060;lr", False), ("sip:al%65x@host.example;transport=udp;lr", False),
    ("sips:al%65x@host.example:5060;transport=udp;lr", False), ("sip:Alex@host.example:5060;transport=udp;lr;y", False),
    ("sip:al%65x@host.example:5060;transport=udp;lr?h=1", False), ("sip:al%65x:pw@host.example:5060;transport=udp;lr", False),
])
def test_contacts_of_3_x_are_compared_as_uris(trial, other, is_same):
    """As seen of a real one. The contact that is there keeps its text; 2.4 compares texts."""
    one, first = trial(), "sip:al%65x@host.example:5060;transport=udp;lr"
    for contact in (first, other):
        assert rpc(one, "ul_add", ["location", "a", contact, 0, "0", 0, 0, 0]) == "OK"
    shown = [contact["Contact"] for contact in rpc(one, "ul_show_contact", ["location", "a"])["Contacts"]]
    assert sorted(shown) == sorted([first] if is_same else [first, other])
    assert ask(one, f":ul_rm_contact:\nlocation\na\n{other}\n") == ("404 Contact not found\n\n" if is_same else "200 OK\n\n")
    assert (rpc(one, "ul_rm_contact", ["location", "a", other]) == "OK") == is_same


@pytest.mark.parametrize("here, there, is_same", [("x=1", "x=2", False), ("x=1", "x=1;y=2", True), ("x=1", "y=2", True)])
def test_parameters_that_both_uris_have_are_compared(trial, here, there, is_same):
    one = trial()
    for params in (here, there):
        assert rpc(one, "ul_add", ["location", "a", f"sip:b@c;{params}", 0, "0", 0, 0, 0]) == "OK"
    assert len(rpc(one, "ul_show_contact", ["location", "a"])["Contacts"]) == 2 - is_same


def test_a_repeated_dump_shows_what_is_left_each_second(trial):
    one = trial()
    ask(one, ADD.format("alice", "a", 100))
    seen = set()
    wait_for(lambda: seen.add(re.search(r"Expires:: (\d+)", ask(one, ":ul_dump:\n"))[1]) or len(seen) > 1, 9, "a second to pass")
    assert seen <= set(map(str, range(80, 101)))
    assert isinstance(contacts(one)[0]["Expires"], int)


def test_a_dump_that_cannot_fit_is_the_size_error_in_both_dialects(trial):
    one = trial()
    for number in range(600):
        ask(one, ADD.format(f"u{number}", "x", 0))
    assert re.fullmatch(r"500 reply of 1\d{5} bytes exceeds 65457\n", ask(one, ":ul_dump:\n"))
    assert one.ask(b'{"jsonrpc":"2.0","method":"ul_dump","id":1}') == b"500 Internal error"
    assert len(ask(one, ":ul_dump:\nbrief\n").splitlines()) == 603
    assert len(rpc(one, "ul_dump", [1])["Domains"][0]["AORs"]) == 600


def test_pretty_printing_has_the_same_values(trial):
    plain, pretty = trial(), trial('modparam("mi_datagram", "pretty_printing", 1)\n')
    for one in (plain, pretty):
        for name in ("alice", "bob"):
            ask(one, ADD.format(name, "x", 3600))
    free = [re.sub(r'("(?:ContactID|Expires)": ?)"?\d+"?', r"\1 0", json.dumps(rpc(one, "ul_dump"))) for one in (plain, pretty)]
    assert free[0] == free[1]
    assert b"\n" in pretty.ask(b'{"jsonrpc":"2.0","method":"ul_dump","id":1}')


def test_who_wrote_contacts_shows_them_as_one_who_reads_them(trial):
    one = trial(hash_size=2)
    requests = [ADD.format(f"u{number}", "x", number % 2 * 3600) for number in range(9)]
    requests += [ADD.format("u3", "y", 0), ADD.format("u4", "x", 60), ADD.format("ü", "x", 0), ":ul_rm:\nlocation\nu5\n",
                 ":ul_rm_contact:\nlocation\nu3\nsip:x@10.0.0.1\n", ":ul_rm_contact:\nlocation\nu7\nsip:x@10.0.0.1\n"]

    def shown():
        return [re.sub(r"(Expires\W+)\d+", r"\1N", text) for text in (
            ask(one, ":ul_dump:\n"), json.dumps(rpc(one, "ul_dump")), ask(one, ":get_statistics:\nusrloc:\n"))]

    for request in requests:
        assert ask(one, request) == "200 OK\n\n"
        ours = shown()
        one.server.view_of.cache_clear()  # what is shown next is read from the store
        one.answers = mi.answers_of(one.server)
        assert ours == shown()
    assert ours[0].count("AOR::") == 8


def test_a_percent_sign_in_a_contact_is_one(trial):
    one = trial()
    ask(one, ":ul_add:\nlocation\n100%s\nsip:%41%%s@x\n0\n0.5\n0\n0\n0\n1\n")
    for _ in range(3):
        assert "AOR:: 100%s\n\t\tContact:: sip:%41%%s@x Q=0.5\n" in ask(one, ":ul_dump:\n")


def test_further_tables_have_statistics_of_their_own(trial):
    one = trial(tables="aliases;location")
    assert ask(one, ":ul_add:\naliases\nalice\nsip:a\n0\n0.5\n0\n0\n0\n1\n") == "200 OK\n\n"
    assert ask(one, ":ul_dump:\nbrief\n") == (
        "200 OK\nDomain:: location hash_size=512\nDomain:: aliases hash_size=512\n\tAOR:: alice\n\n")
    names = re.findall(r"usrloc:(\S+):: (\d)", ask(one, ":get_statistics:\nusrloc:\n"))
    assert names == [("registered_users", "1"), ("aliases-users", "1"), ("aliases-contacts", "1"), ("aliases-expires", "0"),
                     ("location-users", "0"), ("location-contacts", "0"), ("location-expires", "0")]


def test_statistics_that_count_what_there_is_are_not_reset(trial):
    one = trial()
    ask(one, ADD.format("alice", "a", 0))
    assert ask(one, ":reset_statistics:\nlocation-users\n") == "200 OK\n\n"
    assert ask(one, ":get_statistics:\nlocation-users\n") == "200 OK\nusrloc:location-users:: 1\n\n"
    assert "location-expires:: incremental" in ask(one, ":list_statistics:\n")
    assert "location-users:: non-incremental" in ask(one, ":list_statistics:\n")


@pytest.mark.parametrize("line, message", [
    ('"db_urll", "x"', 'did you mean "db_url"'), ('"timer_interval", 0', "of at least 1"), ('"hash_size", 25', "from 1 to 24"),
    ('"working_mode_preset", "single-instance-nodb"', "did you mean"), ('"matching_mode", 7', "from 0 to 1")])
def test_a_wrong_parameter_ends_the_start(line, message):
    with pytest.raises(mi.ConfigError, match=message):
        mi.Trial(f'loadmodule "usrloc.so"\nmodparam("usrloc", {line})')


def test_events_are_listed_in_the_order_of_the_original(trial):
    one = trial()
    listed = [event["name"] for event in rpc(one, "events_list")["Events"] if event["name"].startswith("E_UL_")]
    assert listed == ["E_UL_AOR_INSERT", "E_UL_AOR_DELETE", "E_UL_CONTACT_INSERT", "E_UL_CONTACT_UPDATE", "E_UL_CONTACT_DELETE",
                      "E_UL_CONTACT_REFRESH", "E_UL_LATENCY_UPDATE"]
    assert rpc(one, "event_subscribe", ["E_UL_CONTACT_REFRESH", "udp:127.0.0.1:9"]) == "OK"


def test_parameters_without_effect_are_accepted(trial):
    assert rpc(trial(cluster_mode="none", latency_event_min_us=5), "ul_flush") == "OK"


###############################################################################
# Processes: children, reloads, the timer
###############################################################################


def test_all_children_have_the_same_contacts_which_survive_a_reload(start):
    server = start(LINES + 'modparam("mi_datagram", "children_count", 3)\n')
    clients = [server.client() for _ in range(9)]
    for number, client in enumerate(clients):
        assert client.ask(ADD.format(f"u{number}", "x", 0).encode()) == b"200 OK\n\n"
    dumps = {client.ask(b":ul_dump:\nbrief\n") for client in clients * 3}
    assert len(dumps) == 1 and dumps.pop().count(b"AOR::") == 9
    server.reload()
    assert server.statistic("location-contacts") == 9


def test_children_that_add_at_once_lose_nothing(start):
    server = start(LINES + 'modparam("mi_datagram", "children_count", 3)\n')
    clients = [server.client() for _ in range(8)]
    for turn in range(20):
        for number, client in enumerate(clients):
            client.send(f":ul_add:\nlocation\nalice\nsip:c{turn}-{number}\n0\n0.5\n0\n0\n0\n1\n".encode())
        assert {client.receive() for client in clients} == {b"200 OK\n\n"}
    assert server.statistic("location-contacts") == 160
    numbers = re.findall(rb"ContactID:: (\d+)", server.ask(b":ul_show_contact:\nlocation\nalice\n"))
    assert len(set(numbers)) == 160


def test_the_timer_removes_what_expired(start):
    server = start(LINES + 'modparam("usrloc", "timer_interval", 1)\nmodparam("mi_datagram", "children_count", 2)\n')
    text, rpc = (subscribed(server, dialect, "E_UL_CONTACT_DELETE", "E_UL_AOR_DELETE") for dialect in ("text", "jsonrpc"))
    server.ask(ADD.format("alice", "a", 1).encode())
    server.ask(ADD.format("bob", "b", 0).encode())
    assert text.receive(5).startswith(b"E_UL_CONTACT_DELETE\naor::alice\nuri::sip:a@10.0.0.1\nreceived::\n")
    assert text.receive() == b"E_UL_AOR_DELETE\naor::alice\n\n"
    assert json.loads(rpc.receive())["params"]["aor"] == "alice"
    assert json.loads(rpc.receive())["params"] == {"domain": "location", "aor": "alice"}
    assert server.statistic("location-expires") == 1
    assert server.statistic("registered_users") == 1


###############################################################################
# A table
###############################################################################

LOCATION = """contact_id(long) username(string) domain(string,null) contact(string) received(string,null) path(string,null)
expires(int) q(double) callid(string) cseq(int) last_modified(time) flags(int) cflags(string,null) user_agent(string)
socket(string,null) methods(int,null) sip_instance(string,null) kv_store(string,null) attr(string,null)""".replace("\n", " ")


def contact_id(aor, label=5, number=100):
    """A ContactID of an AOR."""
    return ((opensips.core_hash(aor.encode()) & 0xFFFF) << 46) + (label << 14) + number


def with_table(tmp_path, *rows, version=1013):
    """A folder with a table `location`."""
    (tmp_path / "version").write_text(f"table_name(string) table_version(int)\nlocation:{version}\n")
    (tmp_path / "location").write_text("\n".join([LOCATION, *rows, ""]))
    return f"text://{tmp_path}"


FIRST = contact_id("alice")
ROWS = (f"{FIRST}:alice:example.com:sip\\:a@10.0.0.1:::0:-1:cid:7:0:3:NAT:agent:udp\\:127.0.0.1\\:5060:::{{\"k\"\\:1}}:at",
        f"{FIRST + 1}:alice:example.com:sip\\:b@10.0.0.1:sip\\:r:<sip\\:p>:2000000000:0.5:cid2:8:0:0::agent::31:urn\\:x::")


def test_contacts_come_from_a_table(trial, tmp_path):
    one = trial(db_mode=1, nat_bflag="NAT", mi_dump_kv_store=1, db_url=with_table(tmp_path, *ROWS))
    second, first = contacts(one)
    assert first == {"Contact": "sip:a@10.0.0.1", "ContactID": str(FIRST), "Expires": "permanent", "Q": "", "Callid": "cid",
                     "Cseq": 7, "User-agent": "agent", "State": "CS_SYNC", "Flags": 3, "Cflags": "NAT",
                     "Socket": "udp:127.0.0.1:5060", "Methods": 4294967295, "Attr": "at", "KV-Store": '{"k":1}'}
    assert (second["Received"], second["Path"], second["SIP_instance"], second["Methods"], second["Q"]) == (
        "sip:r", "<sip:p>", "urn:x", 31, "0.5")
    ask(one, ADD.format("alice", "c", 0))
    added = next(contact for contact in contacts(one) if contact["Contact"] == "sip:c@10.0.0.1")
    assert (int(added["ContactID"]), added["State"]) == (FIRST + 2, "CS_SYNC")


def test_with_use_domain_the_domain_is_in_the_aor(trial, tmp_path):
    rows = [re.sub(r"^\d+", f"{contact_id('alice@example.com', number=number)}", row) for number, row in enumerate(ROWS)]
    one = trial(db_mode=1, use_domain=1, db_url=with_table(tmp_path, *rows))
    assert len(contacts(one, "alice@example.com")) == 2


LEFT_OUT = [  # in a row, what stands for it, and why that leaves the row out
    ("sip\\:a@10.0.0.1", "a@10.0.0.1", "has the contact 'a@10.0.0.1', which is no URI"),
    ("sip\\:a@10.0.0.1", r"\0", "has no contact"),
    (f"{FIRST}", f"{FIRST + (1 << 46)}", f"has the contact_id {FIRST + (1 << 46)}, which is none of 'alice'"),
    (":alice:", r":\0x:", "has no username"), (":cid:", r":\0:", "has no callid")]


@pytest.mark.parametrize("use_domain, wrong", [(0, LEFT_OUT), (1, [("example.com", "", "has no domain")])])
def test_rows_that_the_original_leaves_out_are_logged(start, tmp_path, use_domain, wrong):
    url = with_table(tmp_path, *[ROWS[0].replace(old, new) for old, new, _ in wrong])
    server = start(f'{LINES}modparam("usrloc", "db_mode", 1)\nmodparam("usrloc", "db_url", "{url}")\n'
                   f'modparam("usrloc", "use_domain", {use_domain})\n')
    for number, (_, _, why) in enumerate(wrong, 2):
        server.wait_log(f"location:{number}: the row is left out: it {why}")
    assert server.ask(b":ul_dump:\n") == b"200 OK\nDomain:: location hash_size=512\n\n"


@pytest.mark.parametrize("column, shown", [
    ('{"b":"x\\"y","a":-7,"c":[1]}', '{"a":-7,"b":"x\\"y"}'), ("{}", None), ("[1]", None), ("kv", None), ("", None)])
def test_the_kv_store_of_a_row_is_shown_if_wanted(trial, tmp_path, column, shown):
    field = column.replace("\\", "\\\\").replace(":", "\\:")
    url = with_table(tmp_path, ROWS[0].replace('{"k"\\:1}', field))
    assert contacts(trial(db_mode=1, mi_dump_kv_store=1, db_url=url))[0].get("KV-Store") == shown
    assert "KV-Store" not in contacts(trial(db_mode=1, db_url=url))[0]


@pytest.mark.parametrize("lines, shown", [
    ("", ""), ('modparam("usrloc", "nat_bflag", "NAT")', "NAT"),
    ('route { resetbflag("NAT"); }', "NAT"),
    ("route { if (isbflagset(1, NAT)) exit; }", "NAT"), ('route { setbflag("NAT", 1); }', "NAT"), ("route { setbflag(N); }", "")])
def test_the_flags_of_a_row_are_those_that_the_configuration_has(trial, tmp_path, lines, shown):
    one = trial(f"{lines}\n", db_mode=1, db_url=with_table(tmp_path, *ROWS))
    assert contacts(one)[1]["Cflags"] == shown


def test_written_back_contacts_are_in_the_table_after_a_flush(trial, tmp_path):
    one = trial(working_mode_preset="single-instance-sql-write-back", db_url=with_table(tmp_path, *ROWS))
    ask(one, ADD.format("alice", "a", 0))
    ask(one, ADD.format("bob", "b", 0))
    assert [contact["State"] for contact in contacts(one)] == ["CS_SYNC", "CS_DIRTY"]
    assert contacts(one, "bob")[0]["State"] == "CS_NEW"
    ask(one, ":ul_flush:\n")
    assert {contact["State"] for contact in [*contacts(one), *contacts(one, "bob")]} == {"CS_SYNC"}
    assert ask(one, ":ul_sync:\nnosuch\n") == "404 Table not found\n\n"
    assert ask(one, ":ul_sync:\nlocation\nnobody\n") == "404 AOR not found\n\n"
    assert ask(one, ":ul_sync:\nlocation\nbob\n") == "200 OK\n\n"
    assert contacts(one, "bob")[0]["State"] == "CS_NEW"
    assert rpc(one, "ul_sync", ["location"]) == "OK"
    assert {contact["State"] for contact in contacts(one)} == {"CS_NEW"}


def test_one_line_stands_in_for_the_databases_of_all_modules(tmp_path):
    lines = (f'{LINES}modparam("usrloc", "db_mode", 1)\nmodparam("usrloc", "db_url", "mysql://u:p@localhost/opensips")\n'
             f'modparam("midatagram", "db_url", "{with_table(tmp_path, *ROWS)}")\n')
    with mi.Trial(lines) as one:
        assert len(contacts(one)) == 2


@pytest.mark.parametrize("rows, version, message", [
    (ROWS, 1012, "table location has version 1012, not 1013"),
    ((ROWS[0].replace(":7:", ":x:"),), 1013, "location:2: cseq is 'x'")])
def test_a_table_that_cannot_be_read_ends_the_start(trial, tmp_path, rows, version, message):
    with pytest.raises(mi.ConfigError, match=message):
        trial(db_mode=1, db_url=with_table(tmp_path, *rows, version=version))


def test_a_text_ends_where_c_has_it_end(trial, tmp_path):
    """A NUL in a table or in what is registered; and flags of which there are too many."""
    one = trial(db_mode=1, db_url=with_table(tmp_path, ROWS[1].replace(":agent:", r":ag\0ent:")))
    assert "User-agent:: ag\n" in ask(one, ":ul_show_contact:\nlocation\nalice\n")
    ask(one, ":lab_register:\nlocation\nbob\nsip:b@c\nuser_agent::x\0y\nattr::\0\ncflags::" + "a " * 20000 + "\n")
    text = ask(one, ":ul_show_contact:\nlocation\nbob\n")
    assert re.search("Expires:: 3600\n.*User-agent:: x\n.*Cflags:: a a.*Methods:: 4294967295\n\n$", text, re.S)


def test_columns_may_have_other_names(trial, tmp_path):
    url = with_table(tmp_path, *ROWS)
    (tmp_path / "location").write_text((tmp_path / "location").read_text().replace("username(", "who("))
    assert len(contacts(trial(db_mode=1, db_url=url, user_column="who"))) == 2


def test_a_database_of_another_kind_is_taken_as_empty(start):
    server = start(f'{LINES}modparam("usrloc", "db_mode", 1)\nmodparam("usrloc", "db_url", "mysql://user:secret@host/db")\n')
    assert f"{server.config_path}:6: table location of mysql://...@host/db is taken as empty" in server.log
    assert server.log.count("is taken as empty") == 1
    done = run("-c", "-f", server.config_path)
    assert done.returncode == 0 and ":6: table location of mysql://...@host/db is taken as empty" in done.stdout
    assert b"Domain:: location" in server.ask(b":ul_dump:\n")
    assert "secret" not in server.log


###############################################################################
# What real servers answered
###############################################################################


def lab_register(dialect, given):
    """The request for what a REGISTER did, given as the arguments of lab_register."""
    if dialect == "jsonrpc":
        return json.dumps({"jsonrpc": "2.0", "method": "lab_register", "params": given, "id": 1}).encode()
    words = [f"{name}::{value}" if name not in ("table", "aor", "contact") else value for name, value in given.items()]
    return "\n".join([":lab_register:", *words, ""]).encode()


@pytest.mark.parametrize("version, dialect, port", [("24", "text", 5170), ("34", "jsonrpc", 5480)])
@pytest.mark.parametrize("group", ["back", "order", "newest", "matching", "kept", "min", "minmax", "max", "least", "loaded",
                                   "newestloaded", "kvstore", "flags", "domains", "tables"])
def test_as_recorded(start, tmp_path, group, version, dialect, port):
    """The replies and the events, with the parameters and the rows of the table that the recording server had."""
    head, *rows = [row for row in rows_of(f"usrloc{version}.jsonl") if row["id"].startswith(f"{group}-")]
    url = with_table(tmp_path, *head["location"])
    lines = [f"socket=udp:127.0.0.1:{port}", LINES, f'modparam("usrloc", "db_url", "{url}")', *head["lines"], ""]
    server = start("\n".join(lines))
    listener = subscribed(server, dialect, "E_UL_AOR_INSERT", "E_UL_AOR_DELETE", "E_UL_CONTACT_INSERT", "E_UL_CONTACT_UPDATE",
                          "E_UL_CONTACT_DELETE")
    client = server.client()
    for row in rows:
        reply = client.ask(row["request"] or lab_register(dialect, row["lab"]))
        assert b"OK" in reply if row["reply"] is None else differs(row, reply) is None, (row, reply)
        for event in row["events"]:
            assert moment_free(listener.receive()) == moment_free(event.encode())
    assert listener.receive(0.1) is None


def moment_free(event):
    """An event without the moment of an expiry."""
    return re.sub(rb'(expires(?:::|":))\d{10}\b', rb"\1T", event)


###############################################################################
# lab_register
###############################################################################


def test_lab_register_leaves_what_a_register_does(trial):
    row = next(row for row in rows_of("pairs.jsonl") if row["id"] == "p0321")
    one = trial()
    assert ask(one, ":lab_register:\nlocation\nnatty@example.com\nsip:natty@10.9.9.9:5060\nexpires::600\nq::0.3\n"
                    "callid::regcid2\nuser_agent::corpus UA\n"
                    "received::sip:192.0.2.9:7000\npath::<sip:192.0.2.50:5060;lr>\ncflags::NAT\n"
                    "socket::udp:127.0.0.1:5170\nattr::attr text\n"
                    "sip_instance::<urn:uuid:00000000-0000-1000-8000-000A95A0E128>\n") == "200 OK\n\n"
    free = re.compile(r"(ContactID|Expires):: \d+")
    assert free.sub("", ask(one, ":ul_show_contact:\nlocation\nnatty\n")) == free.sub("", row["text_reply"])


@pytest.mark.parametrize("given, with_domain, without", [
    ("sip:A%20b@D:5060;x=y", "A b@d", "A b"), ("SIPS:al:secret@[2001:DB8::1]:5061?h=v", "al@[2001:db8::1]", "al"),
    ("sip:a;b?c@h", "a;b?c@h", "a;b?c"), ("Al@D:5060", "Al@D:5060", "Al")])
def test_lab_register_takes_the_aor_from_a_uri(trial, given, with_domain, without):
    for use_domain, aor in ((1, with_domain), (0, without)):
        one = trial(use_domain=use_domain)
        assert rpc(one, "lab_register", ["location", given, "sip:1@h"]) == "OK"
        assert f"\tAOR:: {aor}\n" in ask(one, ":ul_dump:\nbrief\n")


@pytest.mark.parametrize("lines, socket", [
    ("", None), ("listen=*:5060\nsocket=udp:eth0:5060\nlisten=hep_udp:127.0.0.1:9060", None),
    ("listen=udp:127.0.0.1:5170\nlisten=tcp:127.0.0.1:5171", "udp:127.0.0.1:5170"), ("listen=192.0.2.1", "udp:192.0.2.1:5060"),
    ("socket=hep_udp:127.0.0.1:9060\nsocket=tls:[::1] use_workers 2", "tls:[0:0:0:0:0:0:0:1]:5061"),
    ("listen=wss:192.0.2.1", "wss:192.0.2.1:443")])
def test_contacts_and_calls_have_the_first_socket_of_the_server(trial, lines, socket):
    """Unless another is given."""
    one = trial(f'{lines}\nloadmodule "dialog.so"\n')
    for aor, given in (("a", {}), ("b", {"socket": "udp:h:1"}), ("c", {"socket": ""})):
        assert rpc(one, "lab_register", {"table": "location", "aor": aor, "contact": "sip:x@h", **given}) == "OK"
        assert rpc(one, "lab_call", {"callid": aor, "from_uri": "sip:x@h", "to_uri": "sip:y@h", **given}) == "OK"
    assert [contacts(one, aor)[0].get("Socket") for aor in "abc"] == [socket, "udp:h:1", None]
    sockets = [rpc(one, "dlg_list", {"callid": aor})["Dialog"]["caller_bind_addr"] for aor in "ab"]
    assert sockets == [socket or "udp:127.0.0.1:5060", "udp:h:1"]


def test_lab_register_takes_options_by_name_in_jsonrpc(trial):
    one = trial()
    params = {"table": "location", "aor": "sip:alice@x", "contact": "sip:a@b", "expires": 600, "flags": 5}
    assert rpc(one, "lab_register", params) == "OK"
    assert (contacts(one)[0]["Expires"], contacts(one)[0]["Flags"]) in ((600, 5), (599, 5))
    assert rpc(one, "lab_register", {**params, "expire": 1})["data"] == 'no option "expire"; did you mean "expires"?'
    assert rpc(one, "lab_register", {**params, "q": "7"}) == {"code": 400, "message": "q takes a number from 0 to 1"}


def test_registrar_counts_and_limits(trial):
    one = trial('modparam("registrar", "max_contacts", 2)\nmodparam("registrar", "min_expires", 30)\n'
                'modparam("registrar", "max_expires", 100)\nmodparam("registrar", "default_q", 700)\n')

    def register(contact, *options, aor="alice"):
        return ask(one, "\n".join([":lab_register:", "location", aor, contact, *options, ""]))

    assert register("sip:a", "expires::1") == register("sip:b", "expires::1000") == register("sip:b") == "200 OK\n\n"
    assert register("sip:c") == "503 Service Unavailable\n\n"
    assert [contact["Q"] for contact in contacts(one)] == ["0.7", "0.7"]
    assert [contact["Expires"] // 10 for contact in contacts(one)] in ([3, 10], [2, 9], [2, 10], [3, 9])
    assert register("sip:a", "expires::0") == "200 OK\n\n"
    assert [contact["Contact"] for contact in contacts(one)] == ["sip:b"]
    assert register("*", "expires::0") == register("*", "expires::0", aor="nobody") == "200 OK\n\n"
    assert ask(one, ":ul_show_contact:\nlocation\nalice\n") == "404 AOR not found\n\n"
    assert register("nouri") == "400 Contact is no URI\n\n"
    assert ask(one, ":get_statistics:\nregistrar:\n") == (
        "200 OK\nregistrar:max_expires:: 100\nregistrar:max_contacts:: 2\nregistrar:default_expire:: 3600\n"
        "registrar:accepted_regs:: 6\nregistrar:rejected_regs:: 2\n\n")


@pytest.mark.parametrize("sensitive, aor", [(1, "Alice"), (0, "alice")])
def test_registrar_may_ignore_the_case_of_an_aor(trial, sensitive, aor):
    one = trial(f'modparam("registrar", "case_sensitive", {sensitive})\n')
    ask(one, ":lab_register:\nlocation\nAlice\nsip:a\n")
    assert len(contacts(one, aor)) == 1


@pytest.mark.parametrize("request_, reply", [
    (":lab_register:\nlocation\nalice\n", "400 Too few or too many arguments\n\n"),
    (":lab_register:\nnosuch\nalice\nsip:a\n", "404 Table not found\n\n"),
    (":lab_register:\nlocation\nalice\nsip:a\nexpires::x\n", "400 expires takes digits\n\n"),
    (":lab_register:\nlocation\nalice\nsip:a\nexpire::1\n", '400 no option "expire"; did you mean "expires"?\n\n')])
def test_lab_register_says_what_is_wrong(trial, request_, reply):
    assert ask(trial(), request_) == reply


def test_lab_register_wants_usrloc():
    with mi.Trial('loadmodule "lab_sip.so"') as one:
        assert ask(one, ":lab_register:\nlocation\nalice\nsip:a\n") == "500 module usrloc is not loaded\n\n"


def test_a_lab_moves_the_clock_of_contacts(trial):
    one = trial('loadmodule "lab.so"\n')
    ask(one, ADD.format("alice", "a", 100))
    ask(one, ":ul_show_contact:\nlocation\nalice\n")
    assert "Expires:: expired" in ask(one, ":lab_clock:\n200\n") + ask(one, ":ul_show_contact:\nlocation\nalice\n")
    assert ask(one, ":ul_flush:\n") == "200 OK\n\n"
    assert ask(one, ":get_statistics:\nusrloc:\n").endswith("location-contacts:: 0\nusrloc:location-expires:: 1\n\n")


def test_a_socket_of_a_row_is_shown_if_the_server_has_it(tmp_path):
    """The contact stays."""
    text = f'loadmodule "usrloc.so"\nmodparam("usrloc", "db_mode", 1)\n' \
           f'modparam("usrloc", "db_url", "{with_table(tmp_path, *ROWS)}")\n'
    for line, is_shown in (("listen=udp:127.0.0.1:5060", True), ("socket=udp:127.0.0.1:5061", False)):
        with mi.Trial(f"{line}\n{text}") as one:
            first = next(contact for contact in contacts(one) if contact["Contact"] == "sip:a@10.0.0.1")
            assert ("Socket" in first) is is_shown


@pytest.mark.parametrize("route, tables", [
    ("", ["location"]), ('route { save("location"); }', ["location"]),
    ('modparam("usrloc", "tables", "a; b")\nroute { save("c"); }', ["b", "a"]),
    ('route { if (is_method("REGISTER")) { save("users", "c1"); } lookup("aliases"); lookup("users"); save($var(x)); }',
     ["aliases", "users"])])
def test_tables_are_those_that_the_script_uses(route, tables):
    """Unless they are set. A dump has the last first."""
    with mi.Trial(f'loadmodule "usrloc.so"\n{route}') as one:
        assert [domain["name"] for domain in rpc(one, "ul_dump")["Domains"]] == tables
        assert f"usrloc:{tables[-1]}-contacts:: 0" in ask(one, ":get_statistics:\nusrloc:\n")
