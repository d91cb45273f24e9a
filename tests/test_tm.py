"""tm: requests that a lab answers, transactions to reply to, in both dialects, in any child."""

import json
import re
import signal
import sqlite3
import sys
import threading

import gevent
import pytest
from conftest import ROOT, wait_for
from test_modules import configuration, differs, lab, rows_of

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
tm = mi.import_plugin(str(ROOT / "plugins" / "tm.py"))
forms = tm.opensips.forms

LINES = 'loadmodule "tm.so"\nloadmodule "lab_sip.so"\n'
HEADERS = '"From: <sip:mi@example.com>\r\nTo: <sip:bob@example.com>\r\n%s"'
URI = "sip:bob@192.0.2.1"


@pytest.fixture
def trial():
    with mi.Trial(LINES) as one:
        yield one


@pytest.fixture(scope="module")
def refusing():
    """For requests that change nothing."""
    with mi.Trial(LINES) as one:
        yield one


def text(*words):
    """A text request."""
    return lab(*words)


def uac(method="OPTIONS", more="", uri=URI, next_hop=".", socket=".", body=()):
    """A request for t_uac_dlg in text."""
    return text("t_uac_dlg", method, uri, next_hop, socket, HEADERS % more, *body)


def rpc(trial, command, /, **params):
    """The result or error of a JSON-RPC request."""
    request = {"jsonrpc": "2.0", "method": command, "params": params, "id": 1}
    reply = json.loads(trial.ask(json.dumps(request).encode()))
    return reply.get("result", reply.get("error"))


JSON_HEADERS = "From: <sip:mi@example.com>\r\nTo: <sip:bob@example.com>\r\n"


###############################################################################
# Recorded
###############################################################################


def timeless(reply):
    """A reply without branch, tags and a made Call-ID."""
    reply = re.sub(rb"branch=[^\r\\]+", b"branch=B", re.sub(rb";tag=[^\r\\]+", b";tag=T", reply or b""))
    return re.sub(rb"Call-ID: [0-9a-f]{8,}-[0-9]+@", b"Call-ID: C@", reply)


def in_one_order(reply):
    """The same with the headers of a message sorted, which peers have in different orders."""
    return b"\\r\\n".join(sorted(timeless(reply).split(b"\\r\\n")))


PAIRS = [row for row in rows_of("pairs.jsonl") if row["command"].startswith("t_")]
BUSY = {"p0540"}  # rows before which the peer answers 486
TRANSACTIONS = {"p0567": (33514, 1739254954, 1379647670, 1746275515, 1122367243),
                "p0569": (33511, 737178745, 14116727, 1907519788, 761362121)}


def prepare(trial, row):
    """Bring about what a row of the pairs wants: a peer, and held requests."""
    code = "486" if row["id"] in BUSY else "200"
    trial.ask(text("lab_answer", "*", "*", code, 'headers::"Contact: <sip:uas@127.0.0.1:5171>"'))
    index, *labels = TRANSACTIONS.get(row["id"], (0,))
    for label in labels:
        trial.ask(text("lab_transaction", str(index), str(label), "hold-1", "1", "OPTIONS"))


@pytest.mark.parametrize("kind", ["text", "json", "json40", "json_strings"])
def test_the_pairs_in_file_order(kind):
    """In JSON, whose peer had its headers in another order than the one of jsonrpc.jsonl, in any order."""
    wrong, seen, clean = [], 0, timeless if kind == "text" else in_one_order
    with mi.Trial(configuration("24.cfg")) as trial:
        for row in PAIRS:
            prepare(trial, row)
            request, wanted = row.get(f"{kind}_request"), row.get(f"{kind}_reply")
            wanted = row["json_reply"] if wanted == "same" else wanted
            if not request or row["command"] == "t_hash" and kind != "text":
                continue
            reply, seen = trial.ask(request.encode("latin-1")), seen + 1
            if clean(reply) != clean(wanted.encode("latin-1")):
                wrong.append((row["id"], reply, wanted))
    assert wrong == [] and seen > 5


def test_replies_by_position_are_refused():
    with mi.Trial(configuration("24.cfg")) as trial:
        rows = [row for row in PAIRS if row.get("positional_reply", "same") != "same"]
        assert len(rows) > 10
        for row in rows:
            assert trial.ask(row["json_request_positional"].encode()) == row["positional_reply"].encode(), row["id"]


def test_a_tree_becomes_the_json_of_34_and_back():
    """The message as well, which goes on over lines that are no nodes."""
    tree, count = forms.FORMS["t_uac_dlg"].tree, 0
    for row in PAIRS:
        if row["command"] == "t_uac_dlg" and '"result"' in row["json_reply"]:
            nodes, count = row["text_reply"].removeprefix("200 OK\n").removesuffix("\n\n"), count + 1
            made = forms.to_json(tree, mi.read_tree(nodes))
            wanted = json.loads(row["json_reply"])["result"]
            assert made["Message"].startswith("Via: ") and made["Message"].endswith("\r\n\r\n")
            assert list(made) == list(wanted) and made["Status"] == wanted["Status"]
            assert "".join(mi.node_lines(forms.to_nodes(tree, made), "\t")) == nodes + "\n"
    assert count == 5


@pytest.mark.parametrize("result, lines", [
    ({"Status": "408 Request Timeout"}, ["Status:: 408 Request Timeout", *[f"{name}:: ." for name in (
        "RURI", "Next-hop", "Routes", "Message")]]),
    ({"Status": "200 OK", "RURI": "sip:a", "Next-hop": "sip:b", "Routes": ["<sip:b;lr>", "<sip:c>"], "Message": "A: b\r\n\r\nx"},
     ["Status:: 200 OK", "RURI:: sip:a", "Next-hop:: sip:b", "Routes:: Route: <sip:b;lr>, <sip:c>", "Message:: A: b\r", "\r",
      "x"])])
def test_what_json_lacks_is_a_dot_in_the_tree(result, lines):
    tree = forms.FORMS["t_uac_dlg"].tree
    assert "".join(mi.node_lines(forms.to_nodes(tree, result), "\t")) == "\n".join(lines) + "\n"
    assert forms.to_json(tree, mi.read_tree("\n".join(lines))) == result


def test_the_recorded_invite_rings_until_it_is_cancelled(start):
    """tm-021 to tm-028 as they were asked, over two children; what waits gets its 487, and handler_timeout does not end it."""
    server = start(configuration("24.cfg", SOCK="{socket}").replace('"children_count",1', '"children_count",2')
                   + 'modparam("midatagram", "handler_timeout", 100)\n')
    rows = {row["id"]: row for row in rows_of("text.jsonl")}
    contact = 'headers::"Contact: <sip:uas@127.0.0.1:5171>"'
    client, asker = server.client(), server.client()
    assert client.ask(text("lab_answer", "INVITE", "sip:bob@*", "200", contact)) == b"200 OK\n\n"
    assert differs(rows["tm-021"], client.ask(rows["tm-021"]["request"])) is None
    assert client.ask(text("lab_answer", "INVITE", "sip:bob@*", "180")) == b"200 OK\n\n"
    asker.send(rows["tm-022"]["request"])
    wait_for(lambda: server.statistic("inuse_transactions") == 2, 5, "the INVITE to be sent")
    assert asker.receive(0.3) is None
    for number in ("tm-023", "tm-024", "tm-026", "tm-028"):
        assert client.ask(rows[number]["request"]) == rows[number]["reply"], number
    reply = asker.receive()
    assert reply.startswith(b"200 OK\nStatus:: 487 Request Terminated\nRURI:: .\nNext-hop:: .\nRoutes:: .\nMessage:: Via: ")
    assert b"Call-ID: mi-inv-2\r\nCSeq: 6 INVITE\r\n" in reply
    assert [server.statistic(name) for name in ("2xx_transactions", "4xx_transactions", "received_replies")] == [1, 1, 3]
    assert [server.statistic(name) for name in ("relayed_replies", "local_replies")] == [2, 0]  # the final ones
    assert server.statistic("interrupted") == 0


###############################################################################
# What t_uac_dlg is told
###############################################################################

FAULTS = [  # what is different about a request -> the reply in text, and in JSON
    ({"uri": "zz"}, "400 Invalid RURI", "400 Invalid ruri"), ({"uri": "<sip:a@b>"}, "400 Invalid RURI", "400 Invalid ruri"),
    ({"next_hop": "zz"}, "400 Invalid NEXTHOP", "400 Invalid next_hop"),
    ({"next_hop": "x::"}, "400 Invalid NEXTHOP", None), ({"socket": "x::"}, "404 Invalid local socket", None),
    *[({"socket": socket}, "404 Invalid local socket", "404 Local socket not found") for socket in (
        "udp:1.2.3.4:x", "foo:1.1.1.1:5", "udp:127.0.0.1:", "x:y:z:1")],
    ({"more": "garbage"}, "400 Bad headers", "same"), ({"more": "CSeq: 5\r\n"}, "400 Bad headers", "same"),
    ({"body": ("x",)}, "400 Content-Type missing", "same"),
    ({"body": ("x",), "more": "c: text/plain\r\nContent-Length: 1\r\n"}, "400 Content-Length disallowed", "same"),
    ({"more": "CSeq: x OPTIONS\r\n"}, "400 Bad CSeq number", "same"),
    ({"more": "CSeq: 1 INVITE\r\n"}, "400 CSeq method mismatch", "same"),
]


@pytest.mark.parametrize("change, wanted, in_json", FAULTS)
def test_the_first_fault_of_a_request_is_what_is_replied(refusing, change, wanted, in_json):
    assert refusing.ask(uac(**change)).decode() == f"{wanted}\n\n"
    if in_json:
        params = {"method": "OPTIONS", "ruri": change.get("uri", URI), "headers": JSON_HEADERS + change.get("more", "")}
        params.update({name: change[name] for name in ("next_hop", "socket") if name in change})
        params.update({"body": change["body"][0]} if "body" in change else {})
        code, _, message = (wanted if in_json == "same" else in_json).partition(" ")
        assert rpc(refusing, "t_uac_dlg", **params) == {"code": int(code), "message": message}


@pytest.mark.parametrize("headers, wanted", [
    (".", "400 To missing"), ('"To: <sip:a@b>\r\n"', "400 From missing"), ('"From: <sip:a@b>\r\n"', "400 To missing"),
    ('"To: <sip:a\r\nFrom: <sip:a@b>\r\n"', "400 Bad headers"), ('"To: <sip:a@b>\r\nFrom: <sip:\r\n"', "400 Error in From"),
    ('"To: <sip:a@b>\r\nFrom: <sip:a@b>"', "400 Bad headers")])
def test_headers_that_a_request_needs(refusing, headers, wanted):
    assert refusing.ask(text("t_uac_dlg", "OPTIONS", URI, ".", ".", headers)).decode() == f"{wanted}\n\n"


@pytest.mark.parametrize("method", ["A B", "", "A:B"])
def test_a_method_may_be_anything(refusing, method):
    for headers, fault in (("From: <sip:a@b>\r\n", "To missing"), (JSON_HEADERS + "CSeq: 5 A\r\n", "CSeq method mismatch")):
        assert rpc(refusing, "t_uac_dlg", method=method, ruri=URI, headers=headers) == {"code": 400, "message": fault}
        if method:
            request = text("t_uac_dlg", method, URI, ".", ".", f'"{headers}"')
            assert refusing.ask(request).decode() == f"400 {fault}\n\n"


@pytest.mark.parametrize("uri, is_good", [
    ("sip:h:99999", False), ("sip:1.1.1.1:65536", False), ("sip:1.1.1.1:65535", True), ("sip:[::1]:99999", False),
    ("sip:h:9999999999", False), ("sip:a@h:99999;x", False), ("sip:h:99999;x=y", True), ("sips:h:99999?a=b", True)])
def test_ports_of_uris(refusing, uri, is_good):
    """2.4 takes any; 3.4 looks at none before parameters if there is no user."""
    for name, word in (("ruri", "ruri"), ("next_hop", "next_hop")):
        reply = rpc(refusing, "t_uac_dlg", **{"method": "OPTIONS", "ruri": URI, "headers": "", name: uri})
        assert reply == {"code": 400, "message": "To missing" if is_good else f"Invalid {word}"}
    assert refusing.ask(text("t_uac_dlg", "OPTIONS", f'"{uri}"', f'"{uri}"', ".", ".")) == b"400 To missing\n\n"


@pytest.mark.parametrize("name, value", [("method", 1.5), ("next_hop", None), ("body", True), ("socket", [])])
def test_types_of_json(refusing, name, value):
    params = {"method": "OPTIONS", "ruri": URI, "headers": JSON_HEADERS, name: value}
    if name == "method":  # a number becomes a text
        assert rpc(refusing, "t_uac_dlg", **{**params, "ruri": "x"}) == {"code": 400, "message": "Invalid ruri"}
    else:
        assert rpc(refusing, "t_uac_dlg", **params)["data"] == f"Bad type for parameter '{name}'"


@pytest.mark.parametrize("lines, good, bad", [
    ("listen=udp:10.0.0.1:5060\nlisten=tcp:10.0.0.1:5070 as 192.0.2.9:5070\n",
     ("udp:10.0.0.1:5060", "10.0.0.1", "10.0.0.1:70596", ":5060", "UDP:10.0.0.1"),
     ("udp:10.0.0.1:5061", "tcp:10.0.0.1:5060", "10.0.0.2", "tls:10.0.0.1", "tcp:10.0.0.1", "10.0.0.1:5070",
      "10.0.0.1:" + "9" * 5000)),
    ("listen=udp:10.0.0.1:5170\nlisten=tls:10.0.0.1:5061\n", ("tls:10.0.0.1", ":5170"),
     ("udp:10.0.0.1", "10.0.0.1", "tcp:10.0.0.1")),
    ("socket=udp:[::1]:5060 use_workers 4\nsocket=hep_udp:10.0.0.7:9060\n", ('"udp:[::1]:5060"', '"[::1]"'), ("10.0.0.7",)),
    ("", ("udp:10.0.0.1:5060", "10.9.9.9", "tls:h:1"), ())])
def test_local_sockets_are_those_of_the_configuration(lines, good, bad):
    with mi.Trial(LINES + lines) as trial:
        trial.ask(text("lab_answer", "*", "*", "200"))
        for socket in good:
            assert b"Status:: 200 OK" in trial.ask(uac(socket=socket)), socket
        for socket in bad:
            assert trial.ask(uac(socket=socket)) == b"404 Local socket not found\n\n", socket


def test_a_local_socket_of_3_4_is_any_that_fits():
    with mi.Trial(f"{LINES}listen=tcp:10.0.0.1:5070\nlisten=udp:10.0.0.1:5170\n") as trial:
        trial.ask(text("lab_answer", "*", "*", "200"))
        for socket, via in (("tcp:10.0.0.1", "TCP 10.0.0.1:5070"), ("10.0.0.1", "TCP 10.0.0.1:5070"), ("", "TCP 10.0.0.1:5070"),
                            (":5170", "UDP 10.0.0.1:5170"), ("udp:10.0.0.1:70706", "UDP 10.0.0.1:5170")):
            reply = rpc(trial, "t_uac_dlg", method="OPTIONS", ruri=URI, headers=JSON_HEADERS, socket=socket)
            assert reply["Message"].startswith(f"Via: SIP/2.0/{via};"), socket
        for socket in ("*", "tls:10.0.0.1", "udp::5", "10.0.0.1:99999"):
            assert rpc(trial, "t_uac_dlg", method="OPTIONS", ruri=URI, headers=JSON_HEADERS, socket=socket) == {
                "code": 404, "message": "Local socket not found"}


def test_what_a_request_lacks_is_made():
    with mi.Trial(f"{LINES}listen=tcp:10.0.0.1:5070\n") as trial:
        trial.ask(text("lab_answer", "*", "*", "200"))
        reply = trial.ask(uac()).decode()
        assert re.search(r"Message:: Via: SIP/2\.0/TCP 10\.0\.0\.1:5070;branch=z9hG4bK[0-9a-f]+\.[0-9a-f]+\.0\r\n"
                         r"From: <sip:mi@example\.com>;tag=[0-9a-f]{32}-[0-9a-f]{4}\r\nTo: sip:bob@example\.com;tag=uastag\r\n"
                         r"Call-ID: [0-9a-f]{16}-\d+@10\.0\.0\.1\r\nCSeq: 10 OPTIONS\r\nContent-Length: 0\r\n\r\n\n\n$", reply)
        headers = 'f: \\"A, B\\" <sip:a@b>;tag=1\r\nt: \\"C\\" <sip:c@d>;tag=2\r\ni: me\r\nCSeq: 7 OPTIONS\r\n'
        reply = trial.ask(text("t_uac_dlg", "OPTIONS", URI, ".", ".", f'"{headers}"')).decode()
        assert 'From: "A, B" <sip:a@b>;tag=1\r\nTo: "C" <sip:c@d>;tag=2\r\nCall-ID: me\r\nCSeq: 7 OPTIONS\r\n' in reply


def test_the_message_is_the_same_in_json_with_brackets_around_a_lone_uri(trial):
    rpc(trial, "lab_answer", method="*", uri_pattern="*", code=200, body="hi")
    result = rpc(trial, "t_uac_dlg", method="OPTIONS", ruri=URI, headers=JSON_HEADERS)
    assert list(result) == ["Status", "RURI", "Next-hop", "Message"]
    assert re.search(r"\r\nTo: <sip:bob@example\.com>;tag=uas1\r\nFrom: .*\r\nCSeq: 10 OPTIONS\r\nCall-ID: .*\r\n"
                     r"Content-Length: 2\r\n\r\nhi$", result["Message"])


###############################################################################
# What lab_answer answers
###############################################################################


def status(trial, **request):
    """The Status that a request is answered with."""
    return trial.ask(uac(**request)).decode().split("\n")[1].removeprefix("Status:: ")


def test_the_newest_answer_that_fits_is_taken(trial):
    for words in (("OPTIONS", "sip:*@192.0.2.1", "200"), ("*", "*", "404"), ("OPTIONS", "sip:bob@*", "486", "Gone Fishing"),
                  ("MESSAGE", "*", "202"), ("OPTIONS", '"sip:[2001:db8::1]"', "603")):
        assert trial.ask(text("lab_answer", *words)) == b"200 OK\n\n"
    assert status(trial) == "486 Gone Fishing"
    assert status(trial, uri="sip:al@192.0.2.1") == "404 Not Found"
    assert status(trial, method="MESSAGE") == "202 Accepted"
    assert status(trial, uri='"sip:[2001:db8::1]"') == "603 Decline"
    trial.ask(text("lab_answer", "OPTIONS", "sip:*@192.0.2.1", "699"))  # again, so that it is the newest
    assert status(trial) == "699 Unknown"
    classes = [trial.ask(text("get_statistics", f"{digit}xx_transactions")) for digit in (2, 4, 6)]
    assert [reply.split()[-1] for reply in classes] == [b"1", b"2", b"2"]


@pytest.mark.parametrize("headers, wanted", [
    ("", ("sip:bob@example.com", "sip:bob@example.com", ".")),
    ("Contact: <sip:u@h;x=y>;q=1", ("sip:u@h;x=y", "sip:u@h;x=y", ".")),
    ("m: sip:u@h;q=1", ("sip:u@h", "sip:u@h", ".")),
    (r"Contact: <sip:u@h>\r\nRecord-Route: <sip:r2;lr>, <sip:r1;lr>\r\nRecord-Route: <sip:r0;lr=on>",
     ("sip:u@h", "sip:r0;lr=on", "Route: <sip:r0;lr=on>, <sip:r1;lr>, <sip:r2;lr>")),
    (r"Contact: <sip:u@h>\nRecord-Route: <sip:r2;lr>\nRecord-Route: <sip:strict>",
     ("sip:strict", "sip:strict", "Route: <sip:r2;lr>, <sip:u@h>")),
])
def test_where_a_further_request_would_go(trial, headers, wanted):
    trial.ask(text("lab_answer", "*", "*", "200", f'headers::"{headers}"'))
    shown = trial.ask(uac()).decode().split("\n")[2:5]
    assert shown == [f"{name}:: {value}" for name, value in zip(("RURI", "Next-hop", "Routes"), wanted)]
    trial.ask(text("lab_answer", "*", "*", "486", f'headers::"{headers}"'))
    assert trial.ask(uac()).decode().split("\n")[2:5] == ["RURI:: .", "Next-hop:: .", "Routes:: ."]


def test_headers_of_an_answer_stand_in_the_place_of_the_peers_own(trial):
    trial.ask(text("lab_answer", "*", "*", "200", 'headers::"To: <sip:me>;tag=mine\r\nX-A: 1\r\n"', "body::hello"))
    message = trial.ask(uac()).decode()
    assert message.count("\r\nTo: ") == 1
    assert message.endswith("\r\nTo: <sip:me>;tag=mine\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nhello\n\n")


@pytest.mark.parametrize("words, wanted", [
    (("*", "*", "99"), b"400 Bad parameter\n\n"), (("*", "*", "700"), b"400 Bad parameter\n\n"),
    (("*", "*", "200", "headers::garbage"), b"400 Bad headers\n\n"), (("*", "*"), b"400 Too few or too many arguments\n\n")])
def test_an_answer_that_is_none(refusing, words, wanted):
    assert refusing.ask(text("lab_answer", *words)) == wanted


def test_lab_commands_for_tm_without_tm():
    with mi.Trial('loadmodule "lab_sip.so"') as trial:
        assert trial.ask(text("lab_answer", "*", "*", "200")) == b"500 module tm is not loaded\n\n"
        assert trial.ask(text("lab_transaction", "1", "2", "a", "1", "INVITE")) == b"500 module tm is not loaded\n\n"


def test_a_request_that_nobody_answers_times_out(start):
    """By the lab's clock; others are served meanwhile, and handler_timeout does not hold."""
    server = start(f'{LINES}loadmodule "lab.so"\nmodparam("tm", "fr_inv_timeout", 60)\n'
                   'modparam("midatagram", "handler_timeout", 200)\n')
    clients = [server.client() for _ in range(4)]
    assert server.ask(text("lab_answer", "MESSAGE", "*", "200", "ms::40000")) == b"200 OK\n\n"  # too late
    assert server.ask(text("lab_answer", "INFO", "*", "200", "ms::20000")) == b"200 OK\n\n"
    for client, method in zip(clients, ("OPTIONS", "INVITE", "MESSAGE", "INFO")):
        client.send(uac(method))
    wait_for(lambda: server.statistic("inuse_transactions") == 4, 5, "the requests to be sent")
    assert server.ask(text("lab_clock", "29")) == b"200 OK\nmoved:: 29\n\n"
    assert clients[3].receive().startswith(b"200 OK\nStatus:: 200 OK\n")
    assert clients[0].receive(0.3) is None
    server.ask(text("lab_clock", "2"))
    local = b"200 OK\nStatus:: 408 Request Timeout\nRURI:: .\nNext-hop:: .\nRoutes:: .\nMessage:: .\n\n"
    assert [clients[0].receive(3), clients[2].receive(1)] == [local, local]
    assert clients[1].receive(0.2) is None
    server.ask(text("lab_clock", "30"))
    assert clients[1].receive() == local
    server.ask(text("lab_clock", "6"))  # wt_timer
    assert server.statistic("inuse_transactions") == 0 and server.statistic("interrupted") == 0
    names = b'["local_replies","timeout_finalresponse","timeout_finalresponse_inv"]'
    request = b'{"jsonrpc":"2.0","method":"get_statistics","params":[%s],"id":1}' % names
    assert server.ask(request).endswith(
        b'{"tm:local_replies":3,"tm:timeout_finalresponse":2,"tm:timeout_finalresponse_inv":1},"id":1}')


def test_a_local_timeout_in_json_is_its_status_alone(start):
    server = start(f'{LINES}modparam("tm", "fr_timer", 1)\n')
    request = {"jsonrpc": "2.0", "method": "t_uac_dlg", "id": 7,
               "params": {"method": "OPTIONS", "ruri": URI, "headers": JSON_HEADERS}}
    assert server.ask(json.dumps(request).encode()) == b'{"jsonrpc":"2.0","result":{"Status":"408 Request Timeout"},"id":7}'


def test_many_requests_are_open_at_once_and_a_reset_ends_them(start):
    server = start(f'{LINES}loadmodule "lab.so"\nmodparam("mi_datagram", "children_count", 2)\n')
    clients = [server.client() for _ in range(40)]
    for client in clients:
        client.send(uac("INVITE"))
    wait_for(lambda: server.statistic("inuse_transactions") == 40, 5, "the requests to be sent")
    assert server.ask(text("lab_reset")) == b"200 OK\n\n"
    assert all(b"Status:: 408 Request Timeout" in client.receive() for client in clients)


@pytest.mark.parametrize("more", ["", 'loadmodule "lab.so"\n'])
def test_requests_that_wait_end_in_the_order_of_their_replies(start, more):
    """Whatever is around them, and in a batch."""
    server = start(LINES + more)
    for code, ms in ((202, 400), (486, 200), (603, 1)):
        assert server.ask(text("lab_answer", "INFO", f"sip:{code}@*", str(code), f"ms::{ms}")) == b"200 OK\n\n"
    client = server.client()
    for code in (202, 486, 603):
        client.send(uac("INFO", uri=f"sip:{code}@h"))
    assert [client.receive().split()[3] for _ in range(3)] == [b"603", b"486", b"202"]
    params = {"method": "INFO", "ruri": "sip:486@h", "headers": JSON_HEADERS}
    batch = [{"jsonrpc": "2.0", "method": "t_uac_dlg", "params": params, "id": number} for number in (1, 2)]
    for blanks in (b"", b"\x01 "):
        replies = json.loads(client.ask(blanks + json.dumps(batch).encode()))
        assert [(one["id"], one["result"]["Status"]) for one in replies] == [(1, "486 Busy Here"), (2, "486 Busy Here")]


def test_what_waits_takes_no_place_of_others(start):
    """More requests than a child may have in progress; a stop waits for their replies."""
    server = start(LINES + 'modparam("midatagram", "pool_size", 2)\nmodparam("midatagram", "stop_timeout", 4000)\n')
    assert server.ask(text("lab_answer", "OPTIONS", "*", "200", "ms::1500")) == b"200 OK\n\n"
    clients = [server.client() for _ in range(20)]
    for client in clients:
        client.send(uac())
    wait_for(lambda: server.statistic("inuse_transactions") == 20, 5, "the requests to be sent")
    server.signal(signal.SIGTERM)
    assert all(b"Status:: 200 OK" in client.receive() for client in clients)


def test_a_store_that_fails_costs_one_reply(trial):
    """Of a request that waits, when its reply is due."""
    lock = sqlite3.connect(trial.server.store.path, isolation_level=None)
    trial.ask(text("lab_answer", "OPTIONS", "*", "200", "ms::100"))
    gevent.spawn_later(0.05, lock.execute, "BEGIN EXCLUSIVE")
    assert trial.ask(uac()) == b"500 Server Internal Error\n\n"
    lock.execute("ROLLBACK")
    lock.close()
    assert trial.ask(uac()).startswith(b"200 OK\nStatus:: 200 OK\n")


def test_a_reply_that_comes_later_is_traced(start, tmp_path):
    server = start(f'{LINES}loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{tmp_path}/log")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\n')
    assert server.ask(text("lab_answer", "OPTIONS", "*", "200", "ms::100")) == b"200 OK\n\n"
    assert server.ask(uac()).startswith(b"200 OK\nStatus:: 200 OK\n")
    line = wait_for(lambda: [line for line in (tmp_path / "log").read_text().splitlines() if "t_uac_dlg" in line], 5, "a trace")
    assert "Status:: 200 OK" in line[0]


###############################################################################
# t_reply, t_uac_cancel
###############################################################################


@pytest.mark.parametrize("words, wanted, in_json", [
    (("x", "OK", "1:1", "t", "."), "400 Invalid reply code", None),
    (("700", "OK", "1:1", "t", "."), "400 Invalid reply code", "same"),
    (("200", "OK", "1", "t", "."), "400 Invalid trans_id", "same"),
    (("200", "OK", "x::", "t", "."), "400 Invalid trans_id", None),
    (("200", "OK", "x:1", "t", "."), "400 Invalid index in trans_id", "400 Invalid index in old trans_id"),
    (("200", "OK", "1:", "t", "."), "400 Invalid label in trans_id", "400 Invalid label in old trans_id"),
    (("200", "OK", "1:1:1", "t", "."), "400 Invalid label in trans_id", "400 Invalid label in old trans_id"),
    *[(("200", "OK", number, "t", "."), "400 Invalid trans_id", wanted) for number, wanted in (
        ("x.1", "400 Invalid label in trans_id"), ("G.G", "400 Invalid label in trans_id"),
        ("1.x", "400 Invalid label in old trans_id"), ("1.2.3", "400 Invalid label in old trans_id"),
        (".", "404 Transaction not found"), ("1.12345678901", "404 Transaction not found"))],
    (("200", "OK", "1:1", "t", "."), "404 Transaction not found", "same")])
def test_what_t_reply_refuses(refusing, words, wanted, in_json):
    assert refusing.ask(text("t_reply", *words)).decode() == f"{wanted}\n\n"
    if in_json:
        code, _, message = (wanted if in_json == "same" else in_json).partition(" ")
        params = dict(zip(("code", "reason", "trans_id", "to_tag"), words), code=int(words[0]))
        assert rpc(refusing, "t_reply", **params) == {"code": int(code), "message": message}


def test_a_transaction_is_replied_to_once_after_provisional_replies(trial):
    assert trial.ask(text("lab_transaction", "7", "8", "a", "1", "INVITE")) == b"200 OK\n\n"
    for words, wanted in ((("180", "Ringing", "7:8", "t", "."), b"200 OK\n\n"),
                          (("200", "OK", "07:8", "t", ".", "body"), b"200 OK\n\n"),
                          (("200", "OK", "7:8", "t", "."), b"500 Reply failed\n\n")):
        assert trial.ask(text("t_reply", *words)) == wanted
    shown = trial.ask(text("get_statistics", "local_replies", "UAS_transactions", "2xx_transactions", "inuse_transactions"))
    assert [line.split()[-1] for line in shown.splitlines()[1:-1]] == [b"2", b"1", b"1", b"1"]


def test_only_an_invite_is_cancelled_by_call_id_and_number(trial):
    for number, method in enumerate(("OPTIONS", "INVITE")):
        trial.ask(text("lab_transaction", "1", str(number), "cid", str(5 + number), method))
    assert trial.ask(text("t_uac_cancel", "cid", "5")) == b"481 No such transaction\n\n"
    assert trial.ask(text("t_uac_cancel", "cid", "6 INVITE")) == b"481 No such transaction\n\n"
    assert trial.ask(text("t_uac_cancel", "x::", "x::")) == b"481 No such transaction\n\n"
    assert trial.ask(text("t_uac_cancel", "cid", "6")) == b"200 OK\n\n"
    assert rpc(trial, "tm:uac_cancel", callid="cid", cseq=6) == "OK"  # it is there for wt_timer
    assert trial.ask(text("t_reply", "200", "OK", "1:1", "t", ".")) == b"500 Reply failed\n\n"
    assert trial.ask(text("get_statistics", "4xx_transactions", "relayed_replies")) == \
        b"200 OK\ntm:4xx_transactions:: 1\ntm:relayed_replies:: 1\n\n"


def test_headers_of_any_length_are_read_at_once():
    """No pattern looks at them again and again."""
    for text_ in ("From: " + '"' * 60000, "To: " + "a " * 30000, "From: <" * 9000, "A:" + " " * 60000, "A: b\r\n " * 9000):
        reader = threading.Thread(target=lambda text_=text_: [pytest.raises(mi.Error, tm.checked_headers, "A", text_, False)])
        reader.start()
        reader.join(5)
        assert not reader.is_alive(), text_[:20]


def test_a_transaction_that_has_ended_does_not_stay_longer(trial):
    trial.ask(text("lab_transaction", "1", "1", "cid", "6", "INVITE"))
    for _ in range(2):
        assert trial.ask(text("t_uac_cancel", "cid", "6")) == b"200 OK\n\n"
        trial.server.store.move_clock(trial.server.store.shared[mi.MOVED_S] + 3)  # wt_timer is 5
    assert trial.ask(text("t_uac_cancel", "cid", "6")) == b"481 No such transaction\n\n"
