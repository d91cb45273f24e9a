"""plugins/proto_hep.py without a server: recordings, payloads, packets, declarations, transports, TLS."""

import base64
import contextlib
import ipaddress
import json
import pathlib
import re
import select
import socket
import ssl
import struct
import subprocess
import sys
import threading
import types

import pytest
from certificates import make
from conftest import ROOT, free_port, needs, run
from hep_walk import members, split, walk
from hypothesis import given, settings
from hypothesis import strategies as st
from traces import TRACE, TRACES, FakeContext, exchanged

import midatagram as mi

sys.path.insert(0, str(ROOT / "plugins"))
import proto_hep

ID = b"MICORR" + base64.b64encode(bytes(20))

###############################################################################
# The recordings
###############################################################################

NO_INPUT = {"ps", "uptime", "version", "which"}
COMMANDS = NO_INPUT | {"get_statistics", "cache_store", "cache_fetch", "ul_dump", "ul_show_contact", "help",
                       "log_level"}
BARE = [mi.encode(mi.write_text(reply)) for reply in (mi.NOT_AVAILABLE, mi.PARSE_ERROR, mi.COMMAND_FAILED)]
LEFT_OUT = {"udp4-udp3-json/aor_mutated": "that handler cut its argument at the @, and OpenSIPS shows what is left"}


def recordings():
    """The recorded exchanges, with their bytes as bytes."""
    with open(pathlib.Path(__file__).parent / "data" / "hep.jsonl", encoding="utf-8") as file:
        rows = [json.loads(text) for text in file]
    for row in rows:
        row["request"] = bytes.fromhex(row["mi_request_hex"])
        row["reply"] = bytes.fromhex(row["mi_reply_hex"] or "")
        row["packets"] = [bytes.fromhex(packet) for packet in row["packets"]]
    return rows


ROWS = recordings()


def trace_of(row):
    """The Trace of a recorded exchange, as the rules of the text dialect give it."""
    line = mi.read_first_line(row["request"])
    command, bare = next((name for name in COMMANDS if mi.first_line(name) == line), ""), row["reply"] in BARE
    body = row["request"][len(line):]
    shown = command and not bare and command not in NO_INPUT
    values = mi.read_arguments(body)[0] if shown else None
    code, reason = re.match(r"(\d+) (.*)\n", mi.decode(row["reply"])).groups()
    asked, answered = (walk(packet) for packet in row["packets"])
    times = (packet.seconds + packet.micros / 1e6 for packet in (asked, answered))
    exchange = mi.Exchange(row["request"], command, values, int(code), reason, None if bare else row["reply"])
    return mi.Trace(*times, asked.source, asked.target, exchange)


def configured(row):
    """The destination that a recording's parameters configure, None when there is none."""
    module = mi.Module("proto_hep", vars(proto_hep))
    for name, value in {"hep_id": row["hep_id"], **row["hep_params"]}.items():
        module.set(name, value.strip('"') if isinstance(value, str) else value, "opensips.cfg", 1)
    return proto_hep.destinations(mi.Context(module)).get("hep_dest")


@pytest.mark.parametrize("row", [row for row in ROWS if len(row["packets"]) == 2 and row["version"] == 3
                                 and row["id"] not in LEFT_OUT], ids=lambda row: row["id"])
def test_the_encoder_writes_the_recorded_packets(row):
    destination = configured(row)
    assert type(destination) is proto_hep.TRANSPORTS[row["transport"]]
    assert destination.encoder.packets(trace_of(row), walk(row["packets"][0]).correlation_id) == row["packets"]


@pytest.mark.parametrize("row", [row for row in ROWS if row["version"] < 3], ids=lambda row: row["id"])
def test_old_versions_send_nothing(row):
    assert configured(row) is None


@pytest.mark.parametrize("row", [row for row in ROWS if row["mi_params"]], ids=lambda row: row["id"])
def test_the_list_decides_what_was_recorded(row):
    white, names = mi.trace_list(row["mi_params"]["trace_bwlist"].strip('"'))
    name = row["request"].split(b":")[1].decode() if row["request"].count(b":") > 1 else ""
    traced = name not in COMMANDS or not row["request"].endswith(b"\n") or (name in names) == white
    assert traced == bool(row["packets"])


def test_every_recording_has_its_test():
    covered = [row for row in ROWS if row["version"] < 3 or row["mi_params"] or len(row["packets"]) == 2]
    assert [row["id"] for row in ROWS if row not in covered] == ["udp4-udp3/async_ok"]  # answered later: nothing sent
    assert {row["id"] for row in ROWS} >= set(LEFT_OUT)


###############################################################################
# Payloads
###############################################################################


def payloads(trace, delim=b":", **options):
    """The payloads of the two packets of a trace."""
    return [walk(packet).payload for packet in proto_hep.Encoder(delim=delim, **options).packets(trace, ID)]


REQUESTS = [  # whole request, command, values -> text payload of the request
    (b":which:\n", "which", None, b"which:datagram"),
    (b":x:\na\n", "x", ("a",), b"x:datagram:a"),
    (b":x:\n", "x", (), b"x:datagram"),
    (b":x:\n", "x", (None,), b"x:datagram"),
    (b":x:\n", "x", ("",), b"x:datagram"),
    (b":x:\n", "x", (None, "k1"), b"x:datagram:,k1"),
    (b":x:\n", "x", ("k1", None), b"x:datagram:k1,"),
    (b":x:\n", "x", ("a,b", "c"), b"x:datagram:a,b,c"),
    (b":x:\n", "x", ("a\0b", "c\0"), b"x:datagram:a,c"),
    (b":x:\n", "x", ("\udcff\udcfe",), b"x:datagram:\xff\xfe"),
    (b":x:\n", "x", ("\ud800",), b"x:datagram:?"),
    (b":x:\n", "x", ("a" * 126,), b"x:datagram:" + b"a" * 126),
    (b":x:\n", "x", ("a" * 127,), b"x:datagram:" + b"a" * 127),
    (b":x:\n", "x", ("a" * 128,), b"x:datagram:" + b"a" * 127),
    (b":x:\n", "x", ("a" * 126, "b"), b"x:datagram:" + b"a" * 126 + b","),
    (b":x:\n", "x", ("é" * 64,), b"x:datagram:" + "é".encode() * 63 + b"\xc3"),
    (b":nosuch:\na\n", "", None, b":nosuch\0\na\n:datagram"),
    (b"::\n", "", None, b":\0\n:datagram"),
    (b":a\nb:\n", "", None, b":a\nb\0\n:datagram"),
    (b":nosuch:", "", None, b":nosuch::datagram"),
    (b":nosuch:\r\n", "", None, b":nosuch:\r\n:datagram"),
    (b":no\0such:\n", "", None, b":no\0such:\n:datagram"),
    (b"ps\n", "", None, b"ps\n:datagram"),
    (b'{"jsonrpc":"2.0"}', "", None, b'{"jsonrpc":"2.0"}:datagram'),
]


@pytest.mark.parametrize("request_bytes, command, values, payload", REQUESTS)
def test_requests_as_text(request_bytes, command, values, payload):
    trace = exchanged(request=request_bytes, command=command, parameters=values)
    assert payloads(trace)[0] == payload


REPLIES = [  # code, reason, reply -> text payload of the reply
    (200, "OK", b"200 OK\n\n", b"200:OK:200 OK\n\n"),
    (500, "command not available", None, b"500:command not available"),
    (404, "", b"404 \n\n", b"404:404 \n\n"),
    (200, "OK", b"x" * 127, b"200:OK:" + b"x" * 127),
    (200, "OK", b"x" * 128, b"200:OK:" + b"x" * 128),
    (200, "OK", b"x" * 129, b"200:OK:" + b"x" * 128),
    (4294967295, "-1", b"a\0b", b"4294967295:-1:a\0b"),
]


@pytest.mark.parametrize("code, reason, reply, payload", REPLIES)
def test_replies_as_text(code, reason, reply, payload):
    assert payloads(exchanged(code=code, reason=reason, reply=reply))[1] == payload


@pytest.mark.parametrize("delim", [b"", b"##", b"\xff"])
def test_any_delimiter(delim):
    trace = exchanged(command="x", parameters=("a", "b"))
    assert payloads(trace, delim) == [delim.join(parts) for parts in (
        (b"x", b"datagram", b"a,b"), (b"200", b"OK", b"200 OK\n\n"))]


ESCAPES = {**{code: f"\\u{code:04x}" for code in range(1, 32)}, 8: "\\b", 9: "\\t", 10: "\\n", 12: "\\f", 13: "\\r",
           34: '\\"', 92: "\\\\"}


@pytest.mark.parametrize("code", range(256))
def test_json_escapes(code):
    shown = {0: ""}.get(code, ESCAPES.get(code, chr(code)))
    payload = payloads(exchanged(reply=b"a" + bytes([code]) + b"z"), None)[1]
    assert dict(members(payload))["reply"] == "a" + shown + ("z" if code else "")


def test_json_layout():
    trace = exchanged(command="ps", parameters=("a", "b"))
    assert payloads(trace, None) == [
        b'{\n\t"command":\t"ps",\n\t"backend":\t"datagram",\n\t"parameters":\t"a,b"\n}',
        b'{\n\t"code":\t"200",\n\t"reason":\t"OK",\n\t"reply":\t"200 OK\\n\\n"\n}']
    bare = exchanged(request=b":nosuch:\na\n", command="", code=500, reason="command not available", reply=None)
    assert payloads(bare, None) == [b'{\n\t"command":\t":nosuch",\n\t"backend":\t"datagram"\n}',
                                    b'{\n\t"code":\t"500",\n\t"reason":\t"command not available"\n}']


@pytest.mark.parametrize("delim", [b":", None])
@pytest.mark.parametrize("filling", [b"x", b"\n", b'"', b"\x01", b"\xff"])
def test_what_is_too_long_fills_the_packet(delim, filling):
    trace = exchanged(request=filling * 65457, command="", parameters=None, reason=mi.decode(filling * 65000),
                           reply=filling * 200)
    for packet in proto_hep.Encoder(delim=delim, node=b"n" * 255, key=b"k" * 255).packets(trace, ID):
        assert proto_hep.LIMIT - 64 < len(packet) <= proto_hep.LIMIT
        payload = walk(packet).payload
        if delim is None:
            members(payload)
        else:
            assert payload.endswith((b":datagram", b":" + filling * 128))


###############################################################################
# Packets
###############################################################################


def test_unix_sockets_are_traced_with_stand_in_addresses():
    for client, server in (("/tmp/c", "/run/mi.sock"), (b"\0abstract", "/run/mi.sock"), (None, "/run/mi.sock")):
        trace = TRACE._replace(client=client, server=server)
        asked, answered = map(walk, proto_hep.Encoder().packets(trace, ID))
        assert (asked.source, asked.target) == (("127.0.0.1", 0), ("127.0.0.2", 0))
        assert (answered.source, answered.target) == (("127.0.0.2", 0), ("127.0.0.1", 0))


@pytest.mark.parametrize("client, server", [
    (("192.0.2.7", 65535), ("0.0.0.0", 8080)),
    (("2001:db8::1:2", 1024, 0, 0), ("::", 8080, 0, 0)),
    (("::ffff:c000:207", 5, 0, 0), ("::", 8080, 0, 0)),
    (("fe80::1%lo", 5, 0, 1), ("fe80::2", 8080, 0, 1))])
def test_addresses_of_udp(client, server):
    asked, answered = map(walk, proto_hep.Encoder().packets(TRACE._replace(client=client, server=server), ID))
    host = str(ipaddress.ip_address(client[0].partition("%")[0]))  # how this Python writes it
    assert asked.source == answered.target == (host, client[1])
    assert asked.target == answered.source == server[:2]


def test_times_are_those_of_request_and_reply():
    asked, answered = map(walk, proto_hep.Encoder().packets(TRACE._replace(requested_s=5.0, replied_s=6.9999999), ID))
    assert (asked.seconds, asked.micros, answered.seconds, answered.micros) == (5, 0, 7, 0)


def test_node_name_and_key_stand_before_the_payload():
    for packet in proto_hep.Encoder(70000, 100, b":", b"lab1", b"sesame").packets(TRACE, ID):
        found = walk(packet)
        assert (found.capture_id, found.proto_type, found.node, found.key) == (70000, 100, b"lab1", b"sesame")


def test_correlation_ids_are_opensips_and_never_the_same():
    ids = proto_hep.correlation_ids(4711, 1795396991)
    some = [next(ids) for _ in range(10000)]
    assert len(set(some)) == len(some)
    pid, started_s, uptime_us, _ = struct.unpack("<IIQI", base64.b64decode(some[-1][6:]))
    assert (pid, started_s) == (4711, 1795396991) and 0 < uptime_us < 60_000_000


def test_addresses_met_are_forgotten_some_day():
    encoder = proto_hep.Encoder()
    for port in range(9000):
        encoder.packets(TRACE._replace(client=("127.0.0.1", port)), ID)
    assert 100 < len(encoder.pairs) <= proto_hep.PAIRS_BYTES // mi.ENTRY_BYTES
    assert 100 < len(encoder.frames) <= proto_hep.FRAMES_BYTES // mi.ENTRY_BYTES


SHORT = st.binary(max_size=255)


@settings(max_examples=400, deadline=None)
@given(TRACES, st.none() | SHORT, SHORT, SHORT, st.sampled_from([87, 100]), st.integers(0, 2**32 - 1))
def test_any_trace_gives_two_good_packets(trace, delim, node, key, proto_type, capture_id):
    packets = proto_hep.Encoder(capture_id, proto_type, delim, node, key).packets(trace, ID)
    asked, answered = map(walk, packets)
    assert (asked.source, asked.target) == (answered.target, answered.source)
    for found in (asked, answered):
        assert (found.capture_id, found.proto_type, found.correlation_id) == (capture_id, proto_type, ID)
        assert ((found.node or b""), (found.key or b"")) == (node, key)
        if delim is None:
            json.loads(found.payload.decode("latin-1"))
            members(found.payload)
    if delim is None and trace.exchange.reply is not None:
        shown = trace.exchange.reply[:128].partition(b"\0")[0]
        assert json.loads(answered.payload.decode("latin-1")).get("reply", "") == shown.decode("latin-1")
    elif trace.exchange.reply:
        assert answered.payload.endswith(delim + trace.exchange.reply[:128])


@settings(deadline=None)
@given(st.lists(TRACES, max_size=5))
def test_a_stream_is_packets_one_behind_the_other(traces):
    encoder = proto_hep.Encoder()
    packets = [packet for trace in traces for packet in encoder.packets(trace, ID)]
    stream = b"".join(packets)
    assert split(stream) == (packets, b"")
    assert split(stream[:-1])[0] == packets[:-1]


###############################################################################
# Declarations
###############################################################################

ACCEPTED = [
    ("[a]host", ("a", "host", 9060, "tcp", 3)),
    ("[hep_dest] 127.0.0.1:8001; transport=tcp; version=3", ("hep_dest", "127.0.0.1", 8001, "tcp", 3)),
    ("[hep_dst] 1.2.3.4:5000; version=2", ("hep_dst", "1.2.3.4", 5000, "udp", 2)),
    ("[a]h;version=1;transport=tcp", ("a", "h", 9060, "udp", 1)),
    ("[a]h;", ("a", "h", 9060, "tcp", 3)),
    (" [ a ] h : 9061 ; version = 3 ; transport = UDP ; ", ("a", "h", 9061, "udp", 3)),
    ("[a]h;transport=udp;transport=TLS", ("a", "h", 9060, "tls", 3)),
    ("[a][::1]:9360", ("a", "::1", 9360, "tcp", 3)),
    ("[a] [2001:db8::1]", ("a", "2001:db8::1", 9060, "tcp", 3)),
    ("[a]collector-1.example.net:65535;transport=tls", ("a", "collector-1.example.net", 65535, "tls", 3)),
    ("[a-b_c.1]h:1", ("a-b_c.1", "h", 1, "tcp", 3)),
]
REFUSED = [  # value, a word of what would be right
    ("", "NAME"), ("host:9060", "NAME"), ("a]host", "NAME"), ("[]host", "NAME"), ("[ ]host", "NAME"),
    ("[a b]host", "NAME"), ("[a,b]host", "NAME"), ("x[a]host", "NAME"),
    ("[a]", "host is missing"), ("[a];transport=tcp", "host is missing"),
    ("[a]:9060", "host is missing"), ("[a]h;colour=red", "colour=red"), ("[a]h;uri=1.2.3.4", "uri=1.2.3.4"),
    ("[a]uri=1.2.3.4", "HOST"), ("[a]h;Transport=udp", "Transport=udp"), ("[a]h;VERSION=3", "VERSION=3"),
    ("[a]h;transport=", "udp|tcp|tls"), ("[a]h;transport=sctp", "udp|tcp|tls"), ("[a]h;version=", "1|2|3"),
    ("[a]h;version=0", "1|2|3"), ("[a]h;version=4", "1|2|3"), ("[a]h;version=3x", "1|2|3"), ("[a]h;version", "1|2|3"),
    ("[a]h;;version=3", "none of its settings"), ("[a]h:", "1 to 65535"), ("[a]h:port", "1 to 65535"),
    ("[a]h:0", "1 to 65535"), ("[a]h:65536", "1 to 65535"), ("[a]h:99999", "1 to 65535"), ("[a]h:-1", "1 to 65535"),
    ("[a]h:90 60", "one destination"), ("[a]h i", "one destination"), ("[a]h1:1,h2:2", "one destination"),
    ("[a]h1,h2", "one destination"), ("[a]::1:9360", "brackets"), ("[a][::1", "brackets"), ("[a][1.2.3.4]", "1.2.3.4"),
    ("[a][]:1", "no host"), ("[a]300.1.1.1", "300.1.1.1"), ("[a]1.2.3", "1.2.3"), ("[a]a..b", "a..b"),
    ("[a]" + "x" * 64, "no host"), (9060, "string"),
]


@pytest.mark.parametrize("value, collector", ACCEPTED)
def test_declarations_that_are_accepted(value, collector):
    assert proto_hep.hep_id(value) == proto_hep.declaration(value) == collector


@pytest.mark.parametrize("value, hint", REFUSED)
def test_declarations_that_are_refused(value, hint):
    with pytest.raises(ValueError, match=re.escape(hint)):
        proto_hep.hep_id(value)


@pytest.mark.parametrize("value", ["[hep_dest];transport=tcp;version=3", "[hep_dest]", "[hep_dest]:9060;"])
def test_the_manuals_form_without_a_host_is_accepted_and_warned_of(value):
    assert proto_hep.declaration(value).host == ""
    assert "has no host" in proto_hep.declaration_advice(value)


@pytest.mark.parametrize("value, hint", [
    ("[a]h", None), ("[a]h;version=2", "no MI content"), ("[a]h;version=1", "version 1")])
def test_advice(value, hint):
    advice = proto_hep.declaration_advice(value)
    assert hint in advice if hint else advice is None


@given(st.text(st.sampled_from("[]:;=, ab19.tcpudvrsion"), max_size=40))
def test_any_declaration_is_a_collector_or_refused(text):
    with contextlib.suppress(ValueError):
        found = proto_hep.declaration(text)
        assert found.name and 0 < found.port < 65536 and found.transport in proto_hep.TRANSPORTS


def module_with(*lines):
    """The plug-in as loaded, with its (parameter, value) lines; line n of the file is the nth of them."""
    module = mi.Module("proto_hep", vars(proto_hep))
    for number, (name, value) in enumerate(lines, 1):
        module.set(name, value, "midatagram.conf", number)
    return module


@pytest.mark.parametrize("lines, line", [
    ([("hep_id", "[a]h"), ("hep_id", "[b]h"), ("hep_id", "[a]i")], 3),
    ([("trace_destination", "[a]h"), ("trace_destination", "[a]h")], 2),
    ([("hep_id", "[a]h"), ("trace_destination", "[a]")], 2)])
def test_a_name_that_is_declared_twice_is_refused(lines, line):
    with pytest.raises(mi.ConfigError, match="declared twice") as caught:
        proto_hep.init(mi.Context(module_with(*lines)))
    assert f"midatagram.conf:{line}" in str(caught.value)


def test_both_spellings_declare_destinations():
    module = module_with(("hep_id", "[a]h;transport=udp"), ("trace_destination", "[b]h"), ("hep_id", "[c]h;version=2"),
                         ("trace_destination", "[d];transport=tcp;version=3"), ("hep_id", "[e]h;transport=tls"))
    proto_hep.init(mi.Context(module))
    found = proto_hep.destinations(mi.Context(module))
    assert {name: type(found[name]) for name in found} == {"a": proto_hep.Udp, "b": proto_hep.Tcp, "c": type(None),
                                                            "e": proto_hep.Tls}


@pytest.mark.parametrize("name, value", [
    ("hep_capture_id", -1), ("hep_capture_id", 2**32), ("homer5_on", "x"), ("homer5_delim", "x" * 256),
    ("homer5_delim", 1), ("hep_proto_type", 1), ("hep_node_name", "é" * 128), ("hep_auth_key", "x" * 256),
    ("hep_async", "maybe"), ("hep_port", -1)])
def test_parameters_that_are_refused(name, value):
    with pytest.raises(mi.ConfigError, match=name):
        module_with((name, value))


OPENSIPS = {  # parameter of proto_hep 2.4 -> default
    "hep_port": 9060, "hep_async": 1, "hep_send_timeout": 100, "hep_max_msg_chunks": 32,
    "hep_async_max_postponed_chunks": 32, "hep_async_local_connect_timeout": 100, "hep_async_local_write_timeout": 10,
    "hep_capture_id": 1, "compressed_payload": 0, "homer5_on": 1, "homer5_delim": ":"}


def test_all_parameters_of_opensips_are_accepted():
    rows = {param.name: param for param in proto_hep.PARAMS}
    assert {name: rows[name].default for name in OPENSIPS} == OPENSIPS
    module_with(*OPENSIPS.items())
    assert all(param.help for param in proto_hep.PARAMS)
    assert rows["compressed_payload"].advice(1) and not rows["compressed_payload"].advice(0)


@pytest.mark.parametrize("line, hint", [
    ('modparam("proto_hep", "hep_id", "[a]h:port")', "1 to 65535"),
    ('modparam("proto_hep", "hep_id", "[b]i") modparam("proto_hep", "trace_destination", "[b]h")', "declared twice")])
def test_mistakes_end_the_start_with_file_and_line(tmp_path, line, hint):
    path = tmp_path / "x.conf"
    path.write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/s")\nloadmodule "proto_hep.so"\n\n{line}\n')
    done = run("-c", "-f", path)
    assert done.returncode == 78, done.stderr
    assert f"{path}:4: " in done.stderr and hint in done.stderr


###############################################################################
# Transports
###############################################################################


def transport(name, port, host="127.0.0.1", **params):
    """A transport to a collector of this machine."""
    collector = proto_hep.Collector("a", host, port, name)
    return proto_hep.TRANSPORTS[name](collector, proto_hep.Encoder(), FakeContext(**params))


@contextlib.contextmanager
def opened(destination):
    """Open a transport, and close it however it ends."""
    try:
        destination.open()
        yield destination
    finally:
        destination.close()


def test_udp_sends_one_datagram_a_packet():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(5)
        with opened(transport("udp", collector.getsockname()[1])) as destination:
            destination.write([TRACE] * 2)
        found = [walk(collector.recv(65536)) for _ in range(4)]
    assert [packet.payload[:5] for packet in found] == [b"which", b"200:O"] * 2
    assert found[0].correlation_id == found[1].correlation_id != found[2].correlation_id == found[3].correlation_id


def test_udp_goes_on_when_nobody_listens(caplog):
    with opened(transport("udp", free_port())) as destination:
        for _ in range(3):
            destination.write([TRACE])
        assert 3 <= destination.ctx.counted["udp_refusals"] <= 6
    assert len(caplog.records) == 1 and "refuses datagrams" in caplog.text


def test_udp_loses_no_packet_to_the_refusal_of_an_earlier_one():
    port = free_port()
    with opened(transport("udp", port)) as destination:
        destination.socket.send(b"refused, which the next to send is told")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
            collector.bind(("127.0.0.1", port))
            collector.settimeout(5)
            destination.write([TRACE])
            assert [walk(collector.recv(65536)).payload[:5] for _ in range(2)] == [b"which", b"200:O"]


def test_udp_looks_the_name_up_again_when_refusals_last():
    with opened(transport("udp", free_port())) as destination:
        first = destination.socket
        destination.opened_s -= proto_hep.REFUSED_S + 1
        destination.write([TRACE])
        destination.write([TRACE])
        assert destination.socket is not first


def test_udp_tries_all_addresses_of_a_name(monkeypatch):
    port = free_port()
    rows = [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (host, port))
            for host in ("255.255.255.255", "127.0.0.1")]  # the first is for those who may broadcast
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **options: rows)
    with opened(transport("udp", port, "two.example.net")) as destination:
        assert destination.socket.getpeername() == ("127.0.0.1", port)
    rows.pop()
    with pytest.raises(PermissionError):
        transport("udp", port, "one.example.net").open()


@pytest.fixture
def listener():
    """A TCP collector that accepts by itself as the kernel does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


def read_all(connection, size):
    """So many bytes of a stream."""
    connection.settimeout(5)
    data = b""
    while len(data) < size:
        more = connection.recv(1 << 16)
        assert more, "the stream ended"
        data += more
    return data


def test_tcp_writes_a_batch_at_once(listener, monkeypatch):
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()
        with connection:
            sizes = []
            plain = destination.socket
            destination.socket = types.SimpleNamespace(
                settimeout=plain.settimeout, recv=plain.recv, close=plain.close,
                sendall=lambda data: (sizes.append(len(data)), plain.sendall(data)))
            destination.write([TRACE] * 100)
            packets, rest = split(read_all(connection, sum(sizes)))
    assert len(sizes) == 1 and len(packets) == 200 and rest == b""
    assert all(map(walk, packets))


def test_tcp_socket_options(listener):
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        for option in proto_hep.KEEPALIVE:
            assert destination.socket.getsockopt(*option[:2]) == option[2]
        assert destination.socket.gettimeout() is None


def test_tcp_notices_that_the_collector_closed_before_it_writes(listener):
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()
        connection.sendall(b"not a word of HEP")
        destination.write([TRACE])
        read_all(connection, 2)
        destination.check()
        connection.close()
        news = select.poll()
        news.register(destination.socket, select.POLLRDHUP)
        assert news.poll(5000)
        with pytest.raises(ConnectionResetError, match="closed by the collector"):
            destination.check()


MUCH = [exchanged(command="", request=b"x" * 9000)] * 3000  # 25 MB, more than the buffers of a connection hold


def test_tcp_collector_that_closes_in_the_middle_of_a_write_is_told_of(listener):
    """The write ends with an error, and the next connection begins with a whole packet."""
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()

        def hang_up():
            with connection:
                connection.recv(100)
        collector = threading.Thread(target=hang_up)
        collector.start()
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            destination.write(MUCH)
        collector.join()
        destination.close()
        destination.open()
        connection, _ = listener.accept()
        with connection:
            destination.write([TRACE])
            destination.close()
            packets, rest = split(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    assert [walk(packet).payload[:5] for packet in packets] == [b"which", b"200:O"] and rest == b""


def test_tcp_writes_more_than_buffers_hold(listener):
    """All of it, as the collector reads, also when it was looked at what the collector says."""
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()
        connection.settimeout(10)
        streams = []
        collector = threading.Thread(target=lambda: streams.extend(iter(lambda: connection.recv(1 << 16), b"")))
        collector.start()
        destination.check()
        destination.write(MUCH)
    with connection:
        collector.join()
    packets, rest = split(b"".join(streams))
    assert len(packets) == 6000 and rest == b"" and all(map(walk, packets))


def test_tcp_collector_that_spoke_sees_an_end_and_no_reset(listener):
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"not a word of HEP")
            assert select.select([destination.socket], [], [], 5)[0]
            destination.write([TRACE])
            destination.close()
            packets, rest = split(b"".join(iter(lambda: connection.recv(1 << 16), b"")))
    assert len(packets) == 2 and rest == b""


def test_tcp_collector_that_talks_back_is_read(listener):
    with opened(transport("tcp", listener.getsockname()[1])) as destination:
        connection, _ = listener.accept()
        with connection:
            size = 200 * sum(map(len, destination.encoder.packets(TRACE, b"x" * proto_hep.ID_SIZE)))
            for _ in range((16 << 20) // size):  # more than all buffers between them hold
                destination.write([TRACE] * 200)
                destination.check()
                connection.sendall(read_all(connection, size))
            destination.close()
            assert connection.recv(1) == b""


def test_tcp_that_is_refused_and_a_name_that_is_not_there():
    with pytest.raises(ConnectionRefusedError):
        transport("tcp", free_port()).open()
    with pytest.raises(OSError):
        transport("tcp", 9060, "nobody.invalid").open()


def test_a_name_is_looked_up_at_each_open(listener, monkeypatch):
    asked = []
    look_up = socket.getaddrinfo

    def noted(host, *rest, **more):
        asked.append(host)
        return look_up("127.0.0.1", *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", noted)
    destination = transport("tcp", listener.getsockname()[1], "collector.example.net")
    for _ in range(2):
        with opened(destination):
            pass
    assert asked == ["collector.example.net"] * 2


def test_close_may_come_at_any_time(listener):
    destination = transport("tcp", listener.getsockname()[1])
    destination.close()
    destination.open()
    destination.close()
    destination.close()


###############################################################################
# TLS
###############################################################################


@pytest.fixture(scope="session")
def certificates(tmp_path_factory):
    """A folder with the certificates of a CA."""
    return make(tmp_path_factory.mktemp("tls"))


class TlsCollector:
    """A TLS server in a thread: reads one connection to its end."""

    def __init__(self, folder, name="server", asks_for_certificate=False, newest=None):
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        if asks_for_certificate:
            self.context.verify_mode = ssl.CERT_REQUIRED
            self.context.load_verify_locations(folder / "ca.pem")
        if newest:
            self.context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
            self.context.maximum_version = newest
            self.context.set_ciphers("ALL:@SECLEVEL=0")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port, self.data, self.version = self.server.getsockname()[1], b"", None
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        connection, _ = self.server.accept()
        connection.settimeout(5)
        with contextlib.suppress(OSError), self.context.wrap_socket(connection, server_side=True) as wrapped:
            self.version = wrapped.version()
            while more := wrapped.recv(1 << 16):
                self.data += more

    def received(self):
        """All that came; waits for the end."""
        self.thread.join(5)
        self.server.close()
        return self.data


def test_tls_brings_whole_packets(certificates):
    collector = TlsCollector(certificates)
    with opened(transport("tls", collector.port, "localhost", hep_tls_ca_file=certificates / "ca.pem")) as destination:
        destination.write([TRACE])
        destination.write([TRACE] * 3)
    packets, rest = split(collector.received())
    assert len(packets) == 8 and rest == b"" and all(map(walk, packets))
    assert collector.version in ("TLSv1.2", "TLSv1.3")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
@pytest.mark.parametrize("certificate, options, params", [
    ("other", {}, {}),  # signed by somebody else
    ("server", {}, {"hep_tls_server_name": "elsewhere.example.net"}),
    ("server", {"newest": ssl.TLSVersion.TLSv1_1}, {})], ids=["unknown signer", "wrong name", "TLS 1.1"])
def test_tls_refuses(certificates, certificate, options, params):
    collector = TlsCollector(certificates, certificate, **options)
    with pytest.raises(OSError), opened(transport("tls", collector.port, "localhost",
                                                  hep_tls_ca_file=certificates / "ca.pem", **params)):
        pass
    assert collector.received() == b""


def test_tls_begins_with_1_2():
    assert proto_hep.tls_context(FakeContext()).minimum_version == ssl.TLSVersion.TLSv1_2


def test_tls_without_ca_file_trusts_the_system_alone(certificates):
    collector = TlsCollector(certificates)
    with pytest.raises(ssl.SSLCertVerificationError), opened(transport("tls", collector.port, "localhost")):
        pass
    assert collector.received() == b""


def test_tls_server_name_stands_for_the_host(certificates):
    collector = TlsCollector(certificates)
    with opened(transport("tls", collector.port, "127.0.0.1", hep_tls_ca_file=certificates / "ca.pem",
                          hep_tls_server_name="collector.example.net")) as destination:
        destination.write([TRACE])
    assert len(split(collector.received())[0]) == 2


def test_tls_shows_our_certificate(certificates):
    ours = {"hep_tls_certificate": certificates / "client.pem", "hep_tls_private_key": certificates / "client.key"}
    collector = TlsCollector(certificates, asks_for_certificate=True)
    with opened(transport("tls", collector.port, "localhost", hep_tls_ca_file=certificates / "ca.pem",
                          **ours)) as destination:
        destination.write([TRACE])
    assert len(split(collector.received())[0]) == 2


def test_tls_notices_that_the_collector_closed(certificates):
    collector = TlsCollector(certificates)
    with opened(transport("tls", collector.port, "localhost", hep_tls_ca_file=certificates / "ca.pem")) as destination:
        destination.write([TRACE])  # reads the session tickets, which say nothing about the end
        destination.socket.shutdown(socket.SHUT_WR)
        collector.received()
        with pytest.raises(OSError):
            destination.write([TRACE])


def test_tls_tells_why_the_collector_closed(certificates):
    collector = TlsCollector(certificates, asks_for_certificate=True)
    with opened(transport("tls", collector.port, "localhost", hep_tls_ca_file=certificates / "ca.pem")) as destination:
        assert collector.received() == b""
        with pytest.raises(ssl.SSLError, match="(?i)certificate.required"):
            destination.check()


@pytest.mark.parametrize("param, value, hint", [
    ("hep_tls_ca_file", "nowhere.pem", "cannot be read"), ("hep_tls_ca_file", "client.key", "PEM"),
    ("hep_tls_certificate", "ca.pem", "key"), ("hep_tls_certificate", "nowhere.pem", "cannot be read"),
    ("hep_tls_private_key", "client.key", "hep_tls_certificate")])
def test_bad_files_for_tls_are_refused(certificates, param, value, hint):
    lines = [("hep_id", "[a]h;transport=tls"), (param, str(certificates / value))]
    with pytest.raises(mi.ConfigError, match=hint) as caught:
        proto_hep.init(mi.Context(module_with(*lines)))
    assert "midatagram.conf:2" in str(caught.value)
    proto_hep.init(mi.Context(module_with(("hep_id", "[a]h"), lines[1])))  # nobody uses them


def test_a_key_with_a_passphrase_is_refused_without_asking(certificates):
    subprocess.run([needs("openssl"), "ec", "-in", "client.key", "-aes256", "-passout", "pass:x", "-out", "locked.key"],
                   cwd=certificates, check=True, capture_output=True)
    lines = [("hep_id", "[a]h;transport=tls"), ("hep_tls_certificate", str(certificates / "client.pem")),
             ("hep_tls_private_key", str(certificates / "locked.key"))]
    with pytest.raises(mi.ConfigError):
        proto_hep.init(mi.Context(module_with(*lines)))
