"""midatagram.py record and verify: recordings of Kamailio and of midatagram, with the same bytes, and what differs."""

import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import threading

import pytest
from conftest import PLUGINS, ROOT, free_port, needs, needs_root, placed, run, session_of, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import record
import verify

PAGE = (ROOT / "docs" / "recordings.md").read_text()
KAMAILIO = """#!KAMAILIO
debug=0
log_stderror=yes
children=1
disable_tcp=yes
listen=udp:127.0.0.1:{port}
loadmodule "pv.so"
loadmodule "htable.so"
loadmodule "jsonrpcs.so"
modparam("htable", "htable", "lab=>size=4;")
modparam("jsonrpcs", "transport", 4)
modparam("jsonrpcs", "dgram_socket", "{socket}")
{more}
request_route {{ exit; }}
"""


def record_from(place, output, *arguments, status=0):
    """Record a server; gives what the tool printed."""
    done = run("record", "-s", place, "-o", output, *arguments)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def verify_with(place, recording, status=0):
    """Verify a server; gives what the tool printed."""
    done = run("verify", "-s", place, recording)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def asking(method, *params, request_id="1"):
    """A JSON-RPC request."""
    message = {"jsonrpc": "2.0", "method": method, **({"params": list(params)} if params else {})}
    return f'{json.dumps(message)[:-1]},"id":{request_id}}}'.encode()


###############################################################################
# Kamailio
###############################################################################


@contextlib.contextmanager
def kamailio_in(folder, more=""):
    """A running Kamailio; gives the path of its socket."""
    place, conf, log = f"{folder}/k.sock", folder / "kamailio.cfg", folder / "log"
    conf.write_text(KAMAILIO.format(port=free_port(), socket=place, more=more))
    with open(log, "wb") as output:
        process = subprocess.Popen([needs("kamailio"), "-f", conf, "-DD", "-E", "-m", "32", "-M", "8", "-Y", folder,
                                    "-P", folder / "pid"], cwd=folder, stdout=subprocess.DEVNULL, stderr=output)

    def answers():
        assert process.poll() is None, log.read_text(errors="replace")
        with contextlib.suppress(OSError):
            return mi.ask(place, asking("core.version"), 1.0)

    try:
        wait_for(answers, 20, "kamailio")
        yield place
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)


@pytest.fixture(scope="module")
def kamailio(tmp_path_factory):
    """A Kamailio that writes JSON in many lines, as it does by itself."""
    with kamailio_in(tmp_path_factory.mktemp("kamailio")) as place:
        yield place


@pytest.mark.parametrize("pretty", [True, False])
def test_a_recording_of_kamailio_is_played_back_with_the_same_bytes(start, tmp_path, kamailio, pretty):
    with contextlib.ExitStack() as stack:
        place = kamailio
        if not pretty:
            place = stack.enter_context(kamailio_in(tmp_path, 'modparam("jsonrpcs", "pretty_format", 0)'))
        requests = [asking("core.version"), asking("core.info"), asking("core.sockets_list"), asking("system.listMethods"),
                    asking("htable.listTables"), asking("system.methodHelp", "core.uptime"), asking("core.tcp_info"),
                    asking("htable.get", "lab", 'no "such" key'), asking("core.echo", "a b", "\xe9\n'\"", "", "100")]
        lines = [shlex.join([message["method"], *message.get("params", ())]) for message in map(json.loads, requests)]
        recording = tmp_path / "played.conf"
        printed = record_from(place, recording, *lines)
        assert f"{recording}: 9 requests, 9 replies; read back, it answers with the same bytes" in printed
        assert ("pretty_printing" in recording.read_text()) is pretty
        server = start(f'modparam("mi_datagram", "pretty_printing", {int(pretty)})\nloadmodule "{recording}"')
        for request in requests:
            for request_id in (b"1", b"0", b"-7", b'"a7"', b'""'):
                asked = request.replace(b'"id":1', b'"id":' + request_id)
                assert server.ask(asked) == mi.ask(place, asked, 5.0)
        assert "9 asked, 0 different" in verify_with(server.place, recording)


def test_all_that_kamailio_lists_is_recorded_but_for_what_changes_something(tmp_path, kamailio):
    listed = json.loads(mi.ask(kamailio, asking("system.listMethods"), 5.0))["result"]
    before = mi.ask(kamailio, asking("htable.dump", "lab"), 5.0)
    recording = tmp_path / "all.conf"
    record_from(kamailio, recording)
    text = recording.read_text()
    recorded = re.findall(r"(?m)^\[(.*)\]$", text)
    left_out = re.search(r"may change something: (.*)", text)[1].split(", ")
    assert sorted(recorded + left_out) == sorted(listed)
    assert {"core.kill", "htable.sets", "htable.flush", "pv.shvSet", "dns.delete_all"} <= set(left_out)
    assert {"core.uptime", "core.psx", "htable.dump", "pv.shvGet", "system.listMethods"} <= set(recorded)
    assert mi.ask(kamailio, asking("htable.dump", "lab"), 5.0) == before


def test_verify_tells_a_planted_change_of_kamailio_by_its_node(tmp_path, kamailio):
    recording = tmp_path / "k.conf"
    mi.ask(kamailio, asking("htable.sets", "lab", "alice", "busy"), 5.0)
    try:
        record_from(kamailio, recording, "core.version", "htable.get lab alice")
        assert verify_with(kamailio, recording) == "2 asked, 0 different\n"
        mi.ask(kamailio, asking("htable.sets", "lab", "alice", "idle"), 5.0)
        assert verify_with(kamailio, recording, 1) == (
            'htable.get lab alice (jsonrpc)\n  result/item/value: "busy" in the file, "idle" from the server\n'
            "2 asked, 1 different\n")
    finally:
        mi.ask(kamailio, asking("htable.delete", "lab", "alice"), 5.0)
    printed = verify_with(kamailio, recording, 1)
    assert 'result/item/value: "busy" in the file, absent from the server' in printed
    assert 'error/message: absent in the file, "Key name doesn\'t exist in htable." from the server' in printed


###############################################################################
# midatagram
###############################################################################

ODD = ["quotes", "quotes in reason", "bytes", "blank", "lines", "code", "two", "null", "data", "negative", "200"]


@pytest.fixture
def turns(start):
    """A server with mi_turns.py and the canned replies that are shipped."""
    return start('loadmodule "mi_turns.so"\nloadmodule "canned.so"\n', "-p", str(PLUGINS))


def test_a_recording_of_midatagram_is_played_back_with_the_same_bytes(start, tmp_path, turns):
    lines = ["ul_show_contact location alice", "ul_show_contact location bob", "ul_show_contact nowhere x y", "ds_list", "which",
             "version", "help which", "help nosuch", *(f"odd '{word}'" for word in ODD)]
    recording = tmp_path / "played.conf"
    assert f"{len(lines)} requests, {2 * len(lines)} replies" in record_from(turns.place, recording, *lines)
    server = start(f'loadmodule "{recording}"')
    for line in lines:
        name, *values = shlex.split(line)
        requests = [mi.write_request(name, [(None, value) for value in values]),
                    *(asking(name, *values, request_id=number) for number in ("1", '"x"', "null", "0"))]
        for request in requests:
            assert server.ask(request) == turns.ask(request), request
    assert f"{2 * len(lines)} asked, 0 different" in verify_with(server.place, recording)
    assert f"{2 * len(lines)} asked, 0 different" in verify_with(turns.place, recording)


def test_without_requests_it_asks_what_which_lists_and_nothing_changes(start, tmp_path, turns):
    listed = turns.ask(b":which:\n").decode().split("\n")[1:-2]
    turns.ask(b":cache_store:\nlocal\na\nb\n")
    recording = tmp_path / "all.conf"
    record_from(turns.place, recording)
    text = recording.read_text()
    recorded, left_out = re.findall(r"(?m)^\[(.*)\]$", text), re.search(r"may change something: (.*)", text)[1].split(", ")
    assert sorted(recorded + left_out) == sorted(listed)
    assert set(left_out) == {"reset_statistics", "reset_all_statistics", "kill", "cache_store", "cache_fetch",
                             "cache_fetch_chunk", "cache_remove", "cache_remove_chunk", "event_subscribe", "raise_event",
                             "ds_reload", "tcp:close"}
    assert turns.process.poll() is None and turns.ask(b":cache_fetch:\nlocal\na\n") == b"200 OK\nkey:: a\nvalue:: b\n\n"
    server = start(f'loadmodule "{recording}"')
    assert server.ask(b":which:\n") == turns.ask(b":which:\n")
    assert b"mi_datagram:requests::" in server.ask(b":get_statistics:\nall\n")


def test_the_time_a_reply_took_is_its_delay(tmp_path, turns):
    recording = tmp_path / "slow.conf"
    record_from(turns.place, recording, "ds_reload", "version")
    least = re.search(r"(?s)\[ds_reload\].*?delay = (\d+)", recording.read_text())[1]
    assert 200 <= int(least) < 2000


@pytest.mark.parametrize("dialect", ["text", "jsonrpc"])
def test_it_asks_in_the_dialects_that_are_answered(start, tmp_path, dialect):
    server = start(f'modparam("midatagram", "dialect", "{dialect}")\nloadmodule "canned.so"')
    recording = tmp_path / "one.conf"
    assert "2 requests, 2 replies" in record_from(server.place, recording, "ds_list", "ul_show_contact location alice")
    assert recording.read_text().count(f"dialect = {dialect}\n") == 2
    assert "2 asked, 0 different" in verify_with(server.place, recording)


def test_udp_and_a_list_of_requests(start, tmp_path):
    server = start('loadmodule "canned.so"', place=f"udp:127.0.0.1:{free_port()}")
    (tmp_path / "list").write_text("# what is asked\nds_list\n\nul_show_contact location 'alice'\n")
    recording = tmp_path / "list.conf"
    assert "3 requests, 6 replies" in record_from(server.place, recording, "--from", tmp_path / "list", "version")
    assert "6 asked, 0 different" in verify_with(server.place, recording)


def test_a_server_that_replies_from_another_socket(tmp_path):
    """As OpenSIPS does over UNIX; a client that connected its socket hears nothing of it."""
    place, recording = f"{tmp_path}/mi.sock", tmp_path / "other.conf"
    replies = {b":which:\n": b"200 OK\nwhich\nps\n\n", b":ps:\n": b"200 OK\nProcess::  ID=0\n\n"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        server.bind(place)

        def serve():
            while True:
                request, client = server.recvfrom(65536)
                if not request:
                    return
                other.sendto(replies.get(request, b"500 command not available\n"), client)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            assert "2 requests, 2 replies" in record_from(place, recording)
            assert "2 asked, 0 different" in verify_with(place, recording)
        finally:
            other.sendto(b"", place)
            thread.join()


def test_nobody_but_the_server_and_root_is_believed(tmp_path):
    needs_root()
    place = f"{tmp_path}/mi.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(place)
        os.chmod(place, 0o777)

        def serve():
            _, client = server.recvfrom(65536)
            forge = "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); " \
                    "s.sendto(b'forged', b'\\0' + bytes.fromhex(sys.argv[1]))"
            subprocess.run(["/usr/bin/python3", "-c", forge, client[1:].hex()], check=True, timeout=20)
            server.sendto(b"true", client)

        thread = threading.Thread(target=serve)
        thread.start()
        assert mi.ask(mi.Address(place), b"x", 20.0) == b"true"
        thread.join()


###############################################################################
# Sequences
###############################################################################


@pytest.mark.parametrize("children", [1, 3])
def test_rounds_are_played_back_in_turn(start, tmp_path, turns, children):
    recording = tmp_path / "turns.conf"
    record_from(turns.place, recording, "--repeat", "4", "--every", "0.01", "turn 5", "ds_list")
    text = recording.read_text()
    assert text.count("# varies: turn\n") == 1 and text.count("# varies: result/turn\n") == 1
    assert "varies: same" not in text and "varies: result/same" not in text
    assert text.partition("[ds_list]")[2].count("no_arguments = yes") == 1
    server = start(f'modparam("mi_datagram", "children_count", {children})\nloadmodule "{recording}"')
    replies = [server.ask(b":turn:\n5\n") for _ in range(5)]
    assert replies == [b"200 OK\nturn:: %d\nsame:: x\n\n" % number for number in (1, 3, 5, 5, 5)]
    replies = [server.ask(asking("turn", "5")) for _ in range(4)]
    assert [json.loads(reply)["result"]["turn"] for reply in replies] == [2, 4, 5, 5]


def test_verify_passes_over_what_varied(tmp_path, turns):
    recording = tmp_path / "turns.conf"
    record_from(turns.place, recording, "--repeat", "2", "--every", "1.1", "turn 100", "uptime")
    assert "0 different" in verify_with(turns.place, recording)
    record_from(turns.place, recording, "turn 100")
    printed = verify_with(turns.place, recording, 1)
    assert re.match(r"turn 100 \(text\)\n  turn: 9 in the file, 11 from the server\nturn 100 \(jsonrpc\)", printed)


def test_verify_reaches_the_last_of_a_sequence(start, tmp_path, turns):
    recording = tmp_path / "turns.conf"
    record_from(turns.place, recording, "--repeat", "3", "--every", "0.01", "slow_turn")
    text = recording.read_text()
    assert "times = 2\n" in text
    server = start(f'loadmodule "{recording}"')
    recording.write_text("same:: y".join(text.rsplit("same:: x", 1)))
    assert verify_with(server.place, recording, 1) == (
        "slow_turn (text)\n  same: y in the file, x from the server\n5 asked, 1 different\n")


def test_verify_asks_by_name_what_was_asked_by_name(tmp_path, turns):
    recording = tmp_path / "named.conf"
    record_from(turns.place, recording, "pair second=b first=a", "list_statistics core:", "pair c d")
    text = recording.read_text()
    assert text.count("# asked: ") == 3 and ":pair:\\nsecond::b\\nfirst::a\\n" in text
    assert verify_with(turns.place, recording) == "6 asked, 0 different\n"


###############################################################################
# Traces
###############################################################################


def test_a_trace_becomes_a_recording(start, tmp_path):
    trace, recording = tmp_path / "trace.jsonl", tmp_path / "traced.conf"
    server = start(f'loadmodule "mi_turns.so"\nloadmodule "canned.so"\nloadmodule "trace_file.so"\n'
                   f'modparam("trace_file", "path", "{trace}")\nmodparam("mi_datagram", "trace_destination", "trace_file")\n',
                   "-p", str(PLUGINS))
    requests = [b":ul_show_contact:\nlocation\nalice", asking("ul_show_contact", "location", "alice", request_id='"7"'),
                b":turn:\n", b":turn:\n", asking("ds_list", request_id="0"), b":odd:\nbytes\n", b":nosuch:\n", b"x", b"{",
                b'{"jsonrpc":"2.0","method":"ds_list"}', b":odd:\nx\n", b':odd:\n"\n', b":version:\nignored\n"]
    replies = [server.ask(request, timeout_s=1.0) for request in requests]
    wait_for(lambda: trace.exists() and trace.read_text().count("\n") >= len(requests), what="the traces")
    server.stop(tracebacks=True)
    done = run("record", "--trace", trace, "-o", recording)
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 requests, 7 replies" in done.stdout or "5 requests, 7 replies" in done.stdout
    player = start(f'loadmodule "{recording}"')
    for request, reply in list(zip(requests, replies))[:6]:
        assert player.ask(request) == reply, request


@pytest.mark.parametrize("text", ["", "no json\n", '{"request": 1}\n'])
def test_what_is_no_trace_is_one_line(tmp_path, text):
    (tmp_path / "trace").write_text(text)
    done = run("record", "--trace", tmp_path / "trace", "-o", tmp_path / "x.conf")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert not (tmp_path / "x.conf").exists()


###############################################################################
# Scrubbing
###############################################################################

PRIVATE = r"""
[ul_dump]
reply = '''
Domain:: location hash_size=512
	AOR:: alice
		Contact:: sip:alice@203.0.114.9:5060;transport=udp Q=1
		Received:: sip:10.1.2.3:42817
		Socket:: udp:203.0.114.9:5060
		Path:: <sip:edge.provider.net:5060;lr>
	AOR:: 100
		Contact:: <sip:100@[2a00:1450::17]:5060>
		Expires:: 100
	AOR:: +4930123456@sip.provider.net
		Contact:: sip:+4930123456@10.1.2.3
		Callid:: 8f2c-alice@10.1.2.3
'''
[secrets]
reply = '''
db_url:: mysql://opensips:geheim77@db.provider.net/opensips
auth password=geheim77 user=alice
auth_token:: 1234
time:: 10:25:33 version 3.4.18 localhost 127.0.0.1
'''
json = '{"password":"geheim77","n":1234,"contact":"sip:alice@10.1.2.3"}'
[ul_show_contact]
arguments = 'location', '.*'
code = 404
reason = AOR not found
"""


def test_scrubbing_leaves_no_name_address_or_secret_and_is_consistent(start, tmp_path):
    (tmp_path / "private.conf").write_text(PRIVATE)
    server = start('loadmodule "private.so"', "-p", str(tmp_path))
    recording = tmp_path / "scrubbed.conf"
    record_from(server.place, recording, "--scrub", "ul_dump", "secrets", "ul_show_contact location bob",
                "ul_show_contact location alice", "ul_show_contact location 100")
    text = recording.read_text()
    for word in ("alice", "bob", "4930123456", "203.0.114.9", "10.1.2.3", "2a00:1450", "provider.net", "geheim77"):
        assert word not in text, word
    for word in ("Expires:: 100", "10:25:33", "3.4.18", "127.0.0.1", "hash_size=512", "transport=udp Q=1", ":42817", '"n":1234'):
        assert word in text, word
    alice = re.search(r"AOR:: (user\d+)\n", text)[1]
    assert re.search(rf"sip:{alice}@(192\.0\.2\.\d+):5060", text) and f"user={alice}" in text
    assert f"arguments = 'location', '{alice}'" in text and "auth_token:: secret" in text
    inner = re.search(r"Received:: sip:([\d.]+):42817", text)[1]
    assert text.count(inner) >= 4 and f"-{alice}@{inner}" in text
    assert re.search(r"sip:(\d{3})@\[2001:db8::1\]:5060", text)[1] in re.findall(r"AOR:: (\d+)", text)
    assert "0 different" in verify_with(start(f'loadmodule "{recording}"').place, recording)


###############################################################################
# What is left out
###############################################################################

CHANGING = """reset_statistics reset_all_statistics kill cache_store cache_remove cache_remove_chunk event_subscribe raise_event
    ul_add ul_rm ul_rm_contact ul_flush ul_sync ul_cluster_sync dlg_end_dlg dlg_db_sync dlg_restore_db dlg_push_var
    dlg_send_sequential dlg_set_sharing_tag_active profile_end_dlgs t_uac_dlg t_uac_cancel t_reply ds_set_state ds_reload
    ds_push_script_attrs dr_reload dr_enable_probing lb_reload lb_resize address_reload domain_reload dbt_reload dbt_dump
    nh_enable_ping pike_rm rl_reset_pipe rl_set_pid reg_reload reg_enable reg_disable rtpproxy_enable rtpproxy_reload
    trace_start trace_stop refreshWatchers mem_shm_dump mem_pkg_dump shm_check reload_routes add_blacklist_rule
    usrloc:add usrloc:rm_contact dialog:end_dlg tm:uac_dlg cache:store evi:subscribe evi:raise tcp:close mem:shm_dump
    statistics:reset_all dialog:set_profile dialog:unset_profile uac_registrant:force_register uac_registrant:upsert
    db_text:dump htable.setxs htable.seti pv.shvSet core.kill dispatcher.set_state lab_reset lab_reply"""
READING = """get_statistics list_statistics which help ps uptime version pwd arg log_level xlog_level events_list subscribers_list
    list_tcp_conns list_blacklists check_blacklists ul_dump ul_show_contact dlg_list dlg_list_ctx list_all_profiles
    profile_get_size profile_list_dlgs profile_get_values t_hash ds_list dr_gw_status dr_carrier_status dr_number_routing
    lb_list lb_status address_dump subnet_dump allow_uri domain_dump pike_list rl_list rl_get_pid reg_list rtpproxy_show
    sr_get_status sr_list_reports usrloc:dump usrloc:show_contact dialog:list tm:hash cache:list statistics:get
    uac_registrant:list load_balancer:list tcp:list mem_info core.uptime dns.view stats.get_statistics ul.dump"""


def test_commands_that_change_something_are_known_by_their_names():
    assert [name for name in CHANGING.split() if not record.changes_state(name)] == []
    assert [name for name in READING.split() if record.changes_state(name)] == []


def test_the_page_lists_the_words():
    listed = re.search(r"(?s)leaves out.*?```\n(.*?)```", PAGE)[1]
    assert listed.split() == record.CHANGING.split()


###############################################################################
# Read back
###############################################################################

TEXT = st.text(st.sampled_from("ab01 '\"\\#,=[]{}$%\n\r\t\0\x7f\xe9\u2028\udcff") | st.characters(), max_size=30)
UTF8 = TEXT.map(lambda text: mi.decode(text.encode("utf-8", "surrogatepass")))
NUMBERS = st.integers(-2**31, 2**31) | st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(st.none() | st.booleans() | NUMBERS | UTF8,
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(UTF8, inner, max_size=3), max_leaves=6)
TEXT_REPLIES = st.binary(min_size=1, max_size=60) | st.builds(
    lambda code, reason, body: mi.encode(f"{code} {reason}\n{body}\n"),
    st.integers(0, 2**33), UTF8, UTF8 | UTF8.map("{}\n".format))
JSON_REPLIES = st.builds(lambda result, spaced: mi.encode(
    f'{{"jsonrpc":"2.0",{" " * spaced}"result":{mi.json_text(result)},"id":1}}'), JSON, st.booleans()) | st.builds(
    lambda code, message, data: mi.encode(mi.json_text({"jsonrpc": "2.0", "error": {"code": code, "message": message, **data},
                                                         "id": 1})),
    st.integers(-33000, 900), UTF8, st.dictionaries(st.just("data"), JSON, max_size=1))
VALUES = UTF8.filter(lambda text: not ("\\" in text[-1:] or "\0" in text))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(st.sampled_from(["one", "two.three", "a[b]", "c d", "'", "#"]), st.lists(VALUES, max_size=2),
                          st.tuples(st.just("text"), TEXT_REPLIES) | st.tuples(st.just("jsonrpc"), JSON_REPLIES),
                          st.just(0.0)), min_size=1, max_size=6))
def test_any_reply_is_read_back_to_the_byte(exchanges):
    rows = []
    for name, values, (dialect, reply), ms in exchanges:
        with contextlib.suppress(ValueError):
            rows.append(record.row_of(record.request_for(dialect, name, values), reply, ms))
    if not rows or None in rows:
        return
    with tempfile.TemporaryDirectory() as folder:
        text = record.write_cases(record.cases_of(rows, False), [])
        record.write_checked(f"{folder}/x.conf", text, rows, False)  # raises when a reply is not the same
        assert os.listdir(folder) == ["x.conf"]
        asked, passed = verify.questions(f"{folder}/x.conf")
        assert passed == 0 and {question.words for question in asked} == {(row.name, *row.values) for row in rows}


@given(st.binary(max_size=60))
def test_escapes_are_read_back(data):
    assert record.unescaped(record.escaped(mi.decode(data))) == data
    assert record.escaped(mi.decode(data)).isascii() and record.escaped(mi.decode(data)).isprintable()


def test_a_file_that_would_answer_otherwise_is_not_written(tmp_path, kamailio):
    recording = tmp_path / "x.conf"
    recording.write_text("as it was\n")
    printed = record_from(kamailio, recording, "core.version", 'core.echo \'{"a":1}\'', status=1)
    assert f"{recording} is not written" in printed and "core.echo" in printed and "core.version" not in printed
    assert recording.read_text() == "as it was\n" and sorted(os.listdir(tmp_path)) == ["x.conf"]


###############################################################################
# Mistakes
###############################################################################


def test_exit_statuses_and_one_line_each(start, tmp_path):
    server = start('loadmodule "canned.so"')
    good, bad = tmp_path / "good.conf", tmp_path / "bad.conf"
    record_from(server.place, good, "ds_list")
    bad.write_text("[x]\nrepyl = y\n")
    for status, arguments in [
        (3, ("record", "-s", tmp_path / "none", "-o", tmp_path / "x.conf")), (3, ("verify", "-s", tmp_path / "none", good)),
        (1, ("record", "-s", server.place, "-o", tmp_path / "no" / "x.conf", "ds_list")),
        (1, ("record", "-s", server.place, "-o", tmp_path / "x.conf", "--from", tmp_path / "none")),
        (1, ("record", "-s", server.place, "-o", tmp_path / "x.conf", "an 'open quote")),
        (78, ("verify", "-s", server.place, tmp_path / "none.conf")), (78, ("verify", "-s", server.place, bad)),
    ]:
        done = run(*arguments)
        assert done.returncode == status and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr, done.stderr
        assert not (tmp_path / "x.conf").exists()
    for tool in ("record", "verify"):
        assert run(tool).returncode == 2 and run(tool, "--help").returncode == 0


BY_HAND = """
[a]
reply = x
[b]
    [[1]]
    arguments = 'x.y', 'a|b'
    reply = y
    [[2]]
    arguments = 'sip:a@b.c'
    reply = z
    [[3]]
    action = drop
    arguments = 'x'
    # varies: value
    # varies: result[1]
    [[4]]
    arguments = 'now'
    template = yes
    reply = ${random 1..999999}
"""


def test_verify_of_a_file_by_hand_asks_what_is_certain(start, tmp_path):
    (tmp_path / "hand.conf").write_text(BY_HAND)
    server = start('loadmodule "hand.so"', "-p", str(tmp_path))
    assert verify_with(server.place, tmp_path / "hand.conf") == (
        "6 asked, 0 different; 2 cases fit more than one request, or apply by chance, and are not asked\n")
    (tmp_path / "hand.conf").write_text("[a]\nreply = y\n")
    assert "a (text)\n  value: y in the file, x from the server\n" in verify_with(server.place, tmp_path / "hand.conf", 1)


def test_verify_tells_what_is_absent_and_what_comes_twice(start, tmp_path):
    def written(name, reply):
        (tmp_path / name).write_text(f"[list]\nreply = '''\n{reply}\n'''\n")
        return tmp_path / name

    server = start('loadmodule "now.so"', "-p", str(tmp_path)) if written("now.conf", (
        "SET:: 1\n\tURI:: sip:a\n\tURI:: sip:c state=Active\nGone:: 1")) else None
    was = written("was.conf", "SET:: 1\n\tURI:: sip:a\n\tURI:: sip:b\n\tURI:: sip:d\nGone:: 2 ")
    printed = verify_with(server.place, was, 1)
    text = printed.partition("list (jsonrpc)")[0]
    assert text == ("list (text)\n  SET/URI[2]: sip:b in the file, sip:c state=Active from the server\n"
                    "  SET/URI[3]: sip:d in the file, absent from the server\n  Gone: 2  in the file, 1 from the server\n")
    assert "2 asked, 2 different" in printed


def test_a_server_that_stops_is_no_reply(start, tmp_path):
    (tmp_path / "lost.py").write_text('import midatagram as mi\n@mi.around("ds_list")\ndef lose(ctx, request, proceed):\n'
                                      '    "Lose."\n    return proceed()._replace(datagrams=[])\n')
    server = start('loadmodule "canned.so"\nloadmodule "lost.so"', "-p", str(tmp_path))
    done = run("record", "-s", server.place, "-t", "0.2", "-o", tmp_path / "x.conf", "ds_list", "version")
    assert done.returncode == 0 and "midatagram: no reply to ds_list (text)" in done.stderr
    (tmp_path / "x.conf").write_text("[ds_list]\nreply = x\n")
    done = run("verify", "-s", server.place, "-t", "0.2", tmp_path / "x.conf")
    assert done.returncode == 1 and "ds_list (text)\n  no reply: timed out" in done.stdout


###############################################################################
# The page
###############################################################################


def test_the_page_is_true(reader):
    """Its commands, in a shell, one after the other."""
    reader.places["/run/opensips/mi.sock"] = f"{reader.folder}/opensips.sock"
    reader.write("server.conf", 'loadmodule "canned.so"\nmodparam("mi_datagram", "socket_name", "/run/opensips/mi.sock")\n')
    reader.begin("./midatagram.py -f server.conf", "opensips.sock")
    reader.write("plugins/none", "")
    for command, printed in session_of(PAGE):
        if command.endswith(" &"):
            reader.begin(command[:-2], "lab.sock")
        else:
            assert reader.run(command) == placed(printed, reader.places), command
