"""Traces of a running server, as collectors see them: independent ones (kamailio, hep-js, sngrep), and bad ones."""

import contextlib
import itertools
import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import threading
import time

import pytest
from certificates import make
from conftest import NO_SKIP, Client, free_port, needs, wait_for
from hep_walk import split, walk

###############################################################################
# What is asked, and what a collector has to see of it
###############################################################################

NOBODY = (("127.0.0.1", 0), ("127.0.0.2", 0))  # client and server of UNIX sockets
ASKED = [  # request -> what the request packet shows: command, backend and, if there are any, parameters
    (b":get_statistics:\nrequests\nreplies\n", [b"get_statistics", b"datagram", b"requests,replies"]),
    (b":which:\n", [b"which", b"datagram"]),
    (b":which:\nignored\n", [b"which", b"datagram"]),
    (b":cache_store:\nlocal\nk\n\"a\tb, c\"\n", [b"cache_store", b"datagram", b"local,k,a\tb, c"]),
    (b":cache_fetch:\nlocal\nk\n", [b"cache_fetch", b"datagram", b"local,k"]),
    (b":cache_fetch:\nx::\nk\n", [b"cache_fetch", b"datagram", b",k"]),
    (b":cache_fetch:\nlocal\n\xd0\xba\xd0\xbb\n", [b"cache_fetch", b"datagram", b"local,\xd0\xba\xd0\xbb"]),
    (b":get_statistics:\n" + b"x" * 200 + b"\n", [b"get_statistics", b"datagram", b"x" * 127]),
    (b":get_statistics:\n\"abc\n", [b"get_statistics", b"datagram"]),
    (b":nosuch:\nr\nx\n", [b":nosuch\0\nr\nx\n", b"datagram"]),
    (b"ps\n", [b"ps\n", b"datagram"]),
]
BARE = (b"500 command not available\n", b"400 parse_error\n")


class Exchange:
    """One request that was asked and answered, and what its two packets have to show."""

    def __init__(self, client, server, asked, reply):
        self.client, self.server, self.asked = client, server, asked
        code, _, reason = reply.split(b"\n")[0].partition(b" ")
        self.told = [code, reason] + ([] if reply in BARE else [reply[:128]])

    def packets(self):
        """Source, target and parts of each packet, by what stands in the payload first."""
        return [(self.client, self.server, self.asked), (self.server, self.client, self.told)]


def ask_all(server, places):
    """Ask everything at each place; the Exchanges."""
    done = []
    for place in places:
        for request, asked in ASKED:
            with Client(place, server.folder) as client:
                reply = client.ask(request)
                assert reply, request
                ends = NOBODY
                if place.startswith("udp:"):
                    port = client.socket.getsockname()[1]
                    host = "::1" if "[" in place else "127.0.0.1"
                    ends = (host, port), (host, int(place.rpartition(":")[2]))
            done.append(Exchange(*ends, asked, reply))
    return done


def parts_of(payload, as_json):
    """The parts of a payload as bytes; of text all in one, since its parts may hold the delimiter."""
    return [value.encode("latin-1") for value in json.loads(payload.decode("latin-1")).values()] if as_json else payload


def check(found, exchanges, as_json=False, **fields):
    """Packets (source, target, payload, correlation_id ...) have to show the exchanges, in any order."""
    assert len(found) == 2 * len(exchanges)
    expected = [packet for exchange in exchanges for packet in exchange.packets()]
    seen = [(packet.source, packet.target, parts_of(packet.payload, as_json)) for packet in found]
    for source, target, parts in expected:
        shown = [part.partition(b"\0")[0] for part in parts] if as_json else b":".join(parts)
        assert (source, target, shown) in seen, (source, target, shown, seen)
        seen.remove((source, target, shown))
    by_id = {}
    for packet in found:
        by_id.setdefault(packet.correlation_id, []).append(packet)
        for name, value in fields.items():
            assert getattr(packet, name) == value
        assert abs(packet.seconds - time.time()) < 120
    assert len(by_id) == len(exchanges)
    assert all({(a.source, a.target), (b.source, b.target)} == {(a.source, a.target), (a.target, a.source)}
               for a, b in by_id.values())


def traced(destinations, *lines, children=1):
    """The configuration of a server that traces, over UNIX and over UDP of both families, and the two UDP places."""
    places = [f"udp:127.0.0.1:{free_port()}", f"udp:[::1]:{free_port(socket.AF_INET6)}"]
    named = {f"d{number}": destination for number, destination in enumerate(destinations)}
    rows = [f'modparam("midatagram", "listen", "{place}")' for place in places]
    rows += [f'modparam("mi_datagram", "children_count", {children})', 'loadmodule "proto_hep.so"']
    rows += [f'modparam("proto_hep", "hep_id", "[{name}]{place}")' for name, place in named.items()]
    rows += [f'modparam("mi_datagram", "trace_destination", "{", ".join(named)}")', *lines]
    return "\n".join(rows) + "\n", places


class UdpCollector:
    """Collects datagrams in a thread."""

    def __init__(self, port=0):
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self.socket.bind(("127.0.0.1", port))
        self.port, self.packets = self.socket.getsockname()[1], []
        self.going = True
        self.thread = threading.Thread(target=self.collect, daemon=True)
        self.thread.start()

    def collect(self):
        while self.going:
            if select.select([self.socket], [], [], 0.05)[0]:
                self.packets.append(self.socket.recv(1 << 16))

    def close(self):
        self.going = False
        self.thread.join(5)
        self.socket.close()


class TcpCollector:
    """Collects the stream of each connection in a thread; with reads=False it accepts and never reads."""

    def __init__(self, port=0, reads=True):
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not reads:
            self.server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.server.bind(("127.0.0.1", port))
        self.server.listen()
        self.port, self.reads = self.server.getsockname()[1], reads
        self.connections, self.streams, self.going = [], [], True
        self.thread = threading.Thread(target=self.collect, daemon=True)
        self.thread.start()

    def collect(self):
        while self.going:
            watched = [self.server, *(self.connections if self.reads else ())]
            for ready in select.select(watched, [], [], 0.05)[0]:
                self.take(ready)

    def take(self, ready):
        """A new connection, or more of the stream of an old one."""
        if ready is self.server:
            self.connections.append(ready.accept()[0])
            self.streams.append(b"")
            return
        number = self.connections.index(ready)
        more = ready.recv(1 << 16)
        self.streams[number] += more
        if not more:
            self.connections[number].close()
            self.connections[number] = self.server  # keeps the numbers of the others

    @property
    def packets(self):
        """The whole packets of all streams; each has to begin with a whole one."""
        return [packet for stream in self.streams for packet in split(stream)[0]]

    def close(self):
        self.going = False
        self.thread.join(5)
        for connection in [self.server, *self.connections]:
            connection.close()


@pytest.fixture
def collectors():
    """Collectors that end with the test: collectors(UdpCollector, ...)."""
    with contextlib.ExitStack() as stack:
        yield lambda kind, *arguments, **options: stack.enter_context(contextlib.closing(kind(*arguments, **options)))


def whole(collector, count):
    """Wait for so many packets; each walked."""
    wait_for(lambda: len(collector.packets) >= count, what=f"{count} packets, got {len(collector.packets)}")
    return [walk(packet) for packet in collector.packets]


###############################################################################
# The strict walker
###############################################################################


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("transport, kind", [("udp", UdpCollector), ("tcp", TcpCollector)])
def test_every_packet_is_strictly_right(start, collectors, transport, kind, as_json):
    collector = collectors(kind)
    configuration, places = traced(
        [f"127.0.0.1:{collector.port};transport={transport}"], 'modparam("proto_hep", "hep_capture_id", 70000)',
        f'modparam("proto_hep", "homer5_on", {int(not as_json)})', children=2)
    server = start(configuration)
    exchanges = ask_all(server, [server.place, *places])
    found = whole(collector, 2 * len(exchanges))
    check(found, exchanges, as_json, capture_id=70000, proto_type=87, node=None, key=None)


def test_extra_chunks(start, collectors):
    collector = collectors(UdpCollector)
    lines = ['modparam("proto_hep", "hep_proto_type", 100)', 'modparam("proto_hep", "hep_node_name", "lab1")',
             'modparam("proto_hep", "hep_auth_key", "sesame")', 'modparam("proto_hep", "homer5_delim", "##")']
    configuration, _ = traced([f"localhost:{collector.port};transport=udp"], *lines)
    start(configuration).ask(b":nosuch:\n")
    for packet in whole(collector, 2):
        assert (packet.proto_type, packet.node, packet.key) == (100, b"lab1", b"sesame")
        assert packet.payload in (b":nosuch\0\n##datagram", b"500##command not available")


RECORDED = pathlib.Path(__file__).parent / "data" / "hep.jsonl"
OURS = re.compile(rb":(uptime|version|which|get_statistics|cache_store|cache_fetch|help|log_level):|:nosuch|:?ps|::")


def test_a_running_server_sends_the_recorded_requests(start, collectors):
    with open(RECORDED, encoding="utf-8") as file:
        rows = [row for row in map(json.loads, file) if row["id"].startswith(("udp4-udp3/", "udp4-tcp3/"))]
    rows = [row for row in rows if row["packets"] and OURS.match(bytes.fromhex(row["mi_request_hex"]))]
    assert len(rows) > 25
    collector = collectors(TcpCollector)
    server = start(traced([f"127.0.0.1:{collector.port}"])[0])
    for number, row in enumerate(rows):
        reply = server.ask(bytes.fromhex(row["mi_request_hex"]))
        asked, answered = whole(collector, 2 * number + 2)[-2:]
        first_line = bytes.fromhex(row["mi_reply_hex"]).partition(b"\n")[0]
        if reply.startswith(first_line + b"\n"):  # where our reply is another one, the parameters may be, too
            assert asked.payload == walk(bytes.fromhex(row["packets"][0])).payload, row["id"]
        assert answered.payload.startswith(b":".join(reply.partition(b"\n")[0].split(b" ", 1))), row["id"]


###############################################################################
# Independent consumers
###############################################################################


@pytest.fixture(scope="module")
def tls_folder(tmp_path_factory):
    """A folder with certificates."""
    return make(tmp_path_factory.mktemp("tls"))


KAMAILIO = """#!KAMAILIO
debug=2
log_stderror=yes
fork=yes
children=1
tcp_children=1
auto_aliases=no
dns=no
tcp_accept_hep3=yes
tcp_accept_no_cl=yes
listen=udp:127.0.0.1:{port}
listen=tcp:127.0.0.1:{port}
listen=tls:127.0.0.1:{tls_port}
enable_tls=yes
loadmodule "pv.so"
loadmodule "xlog.so"
loadmodule "textops.so"
loadmodule "db_text.so"
loadmodule "tls.so"
loadmodule "sipcapture.so"
modparam("tls", "private_key", "{tls}/server.key")
modparam("tls", "certificate", "{tls}/server.pem")
modparam("tls", "ca_list", "{tls}/ca.pem")
modparam("tls", "tls_method", "TLSv1.2+")
modparam("tls", "verify_certificate", 1)
modparam("tls", "require_certificate", 1)
modparam("sipcapture", "db_url", "text://{folder}/db")
modparam("sipcapture", "capture_on", 1)
modparam("sipcapture", "hep_capture_on", 1)
modparam("sipcapture", "nonsip_hook", 1)
request_route {{ drop; }}
event_route[sipcapture:request] {{
    xlog("L_NOTICE", "HEP|$proto|{chunks}|$(hep(0x00f){{s.encode.hexa}})|\\n");
    drop;
}}
"""
capture_ids = itertools.count(1000)  # tells apart what one kamailio sees in several tests
CHUNKS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 17)


class Seen:
    """A packet as kamailio told it."""

    def __init__(self, fields):
        self.transport, *values, payload, _ = fields
        chunk = dict(zip(CHUNKS, values, strict=True))
        sides = (5, 6) if chunk[1] == "10" else (3, 4)
        self.source, self.target = ((chunk[host], int(chunk[port])) for host, port in zip(sides, (7, 8), strict=True))
        self.seconds, self.micros, self.proto_type, self.capture_id = (int(chunk[kind]) for kind in (9, 10, 11, 12))
        self.ip_protocol, self.key = int(chunk[2]), chunk[14]
        self.correlation_id, self.payload = chunk[17], bytes.fromhex(payload)


class Kamailio:
    """Debian's kamailio with sipcapture, telling each packet in its log."""

    def __init__(self, folder, tls):
        (folder / "db").mkdir()
        self.port, self.tls_port = free_port(), free_port()
        chunks = "|".join(f"$hep(0x{kind:03x})" for kind in CHUNKS)
        (folder / "kamailio.cfg").write_text(
            KAMAILIO.format(port=self.port, tls_port=self.tls_port, folder=folder, tls=tls, chunks=chunks))
        self.log = folder / "log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [needs("kamailio"), "-f", "kamailio.cfg", "-DD", "-E", "-m", "32", "-M", "8", "-Y", folder,
                 "-P", folder / "pid"], cwd=folder, stdout=subprocess.DEVNULL, stderr=log)
        wait_for(self.listens, 20, "kamailio")

    def listens(self):
        """Whether it accepts connections; fails when it has ended."""
        assert self.process.poll() is None, self.log.read_text(errors="replace")
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self.tls_port), 1):
            return True

    def packets(self, capture_id):
        """The packets of one capture id so far."""
        lines = re.findall(r"HEP\|(.*)\n", self.log.read_text(errors="replace"))
        return [seen for seen in map(Seen, (text.split("|") for text in lines)) if seen.capture_id == capture_id]

    def close(self):
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(5)


@pytest.fixture(scope="module")
def kamailio(tmp_path_factory, tls_folder):
    """A running kamailio."""
    needs("kamailio")
    with contextlib.closing(Kamailio(tmp_path_factory.mktemp("kamailio"), tls_folder)) as running:
        yield running


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
@pytest.mark.parametrize("transport", ["udp", "tcp", "tls"])
def test_kamailio(start, kamailio, tls_folder, transport, as_json):
    capture_id = next(capture_ids)
    port = kamailio.tls_port if transport == "tls" else kamailio.port
    configuration, places = traced(
        [f"localhost:{port};transport={transport}"], f'modparam("proto_hep", "homer5_on", {int(not as_json)})',
        f'modparam("proto_hep", "hep_capture_id", {capture_id})', 'modparam("proto_hep", "hep_auth_key", "sesame")',
        f'modparam("proto_hep", "hep_tls_ca_file", "{tls_folder}/ca.pem")',
        f'modparam("proto_hep", "hep_tls_certificate", "{tls_folder}/client.pem")',
        f'modparam("proto_hep", "hep_tls_private_key", "{tls_folder}/client.key")')
    server = start(configuration)
    exchanges = ask_all(server, [server.place, *places])
    wait_for(lambda: len(kamailio.packets(capture_id)) >= 2 * len(exchanges), what="kamailio to tell all packets")
    found = kamailio.packets(capture_id)
    check(found, exchanges, as_json, proto_type=87, ip_protocol=6, key="sesame", transport=transport)


def hep_js():
    """The folder of the npm package hep-js, which MIDATAGRAM_HEP_JS names."""
    folder = os.environ.get("MIDATAGRAM_HEP_JS", "")
    if not os.path.exists(f"{folder}/package.json"):
        (pytest.fail if NO_SKIP else pytest.skip)("hep-js is not installed: MIDATAGRAM_HEP_JS does not name its folder")
    return folder


DECAPSULATE = """
const hep = require(process.env.MIDATAGRAM_HEP_JS);
const lines = require("fs").readFileSync(0, "utf8").trim().split("\\n");
console.log(JSON.stringify(lines.map(line => hep.decapsulate(Buffer.from(line, "hex")))));
"""


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "json"])
def test_hep_js(start, collectors, as_json):
    environment = {**os.environ, "MIDATAGRAM_HEP_JS": hep_js()}
    collector = collectors(UdpCollector)
    configuration, places = traced([f"127.0.0.1:{collector.port};transport=udp"],
                                   f'modparam("proto_hep", "homer5_on", {int(not as_json)})')
    server = start(configuration)
    exchanges = ask_all(server, [server.place, *places])
    ours = whole(collector, 2 * len(exchanges))
    lines = "\n".join(packet.hex() for packet in collector.packets)
    done = subprocess.run([needs("node"), "-e", DECAPSULATE], input=lines, text=True, capture_output=True, timeout=30,
                          env=environment)
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    assert len(theirs) == len(ours) == 2 * len(exchanges)
    for packet, seen in zip(ours, theirs, strict=True):
        info = seen["rcinfo"]
        assert seen["payload"].encode() == packet.payload
        assert (info["protocolFamily"], info["protocol"]) == (10 if ":" in packet.source[0] else 2, 6)
        assert (info["srcPort"], info["dstPort"]) == (packet.source[1], packet.target[1])
        assert (info["timeSeconds"], info["timeUseconds"]) == (packet.seconds, packet.micros)
        assert (info["payloadType"], info["captureId"]) == (87, 1)
        assert info["correlation_id"].encode() == packet.correlation_id
        if info["protocolFamily"] == 2:  # it does not read IPv6 addresses
            assert (info["srcIp"], info["dstIp"]) == (packet.source[0], packet.target[0])


def listens_on_udp(port):
    """Whether somebody of this machine has a UDP port."""
    return f":{port:04X} " in pathlib.Path("/proc/net/udp").read_text()


def shown_by_sngrep(end):
    """Debian's sngrep is built without IPv6: it has the port only."""
    return ("0.0.0.0" if end[0] == "::1" else end[0]), end[1]


def test_sngrep(start, tmp_path):
    port, capture = free_port(), tmp_path / "out.pcap"
    fields = [word for name in ("frame.time_epoch", "ip.src", "udp.srcport", "ip.dst", "udp.dstport", "udp.payload")
              for word in ("-e", name)]
    tshark = [needs("tshark"), "-r", capture, "-T", "fields", *fields]
    process = subprocess.Popen([needs("sngrep"), "-F", "-N", "-q", "-L", f"udp:127.0.0.1:{port}", "-O", capture],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def frames():
        lines = subprocess.run(tshark, capture_output=True, text=True, timeout=30).stdout.splitlines()
        return [text.split("\t") for text in lines]
    try:
        wait_for(lambda: listens_on_udp(port), what="sngrep")
        configuration, places = traced([f"127.0.0.1:{port};transport=udp"])
        server = start(configuration)
        exchanges = ask_all(server, [server.place, *places])
        expected = [(source, target, b":".join(parts)) for exchange in exchanges
                    for source, target, parts in exchange.packets()]
        wait_for(lambda: len(frames()) >= len(expected), 20, "sngrep to write all packets")
    finally:
        process.terminate()
        process.wait(5)
    seen = sorted(((source, int(source_port)), (target, int(target_port)), bytes.fromhex(payload))
                  for _, source, source_port, target, target_port, payload in frames())
    assert seen == sorted((shown_by_sngrep(source), shown_by_sngrep(target), text) for source, target, text in expected)
    assert all(abs(float(frame[0]) - time.time()) < 120 for frame in frames())


###############################################################################
# Bad collectors
###############################################################################
# A collector may do what it likes: replies come as fast as ever, and each
# packet is counted as sent or as dropped.

SLOW_S = 1.0  # a reply that takes longer was held up
WORDS = ("queued", "sent", "dropped", "errors", "reconnects", "depth", "connected")


class Asker:
    """A UNIX client that asks again and again, and keeps the longest time a reply took."""

    def __init__(self, server):
        self.server, self.client, self.asked, self.longest_s = server, server.client(), 0, 0.0

    def ask(self, times, request=b":nosuch:\n"):
        """Ask so many times; each must be answered."""
        for _ in range(times):
            began_s = time.monotonic()
            assert self.client.ask(request), self.server.log
            self.longest_s = max(self.longest_s, time.monotonic() - began_s)
        self.asked += times

    def counters(self, name="d0"):
        """The counters of a destination, which costs one more request."""
        lines = self.client.ask(b":get_statistics:\nproto_hep:\n").decode().splitlines()
        self.asked += 1
        values = dict(text.split(":: ") for text in lines if ":: " in text)
        return {word: int(values[f"proto_hep:{name}-{word}"]) for word in WORDS}

    def settled(self, timeout_s=20.0):
        """Wait until each packet of what was asked before is sent or dropped; the counters then."""
        def counters():
            asked = self.asked
            found = self.counters()
            return found if found["sent"] + found["dropped"] >= 2 * asked else None
        found = wait_for(counters, timeout_s, f"each packet to be sent or dropped:\n{self.server.log}")
        assert self.longest_s < SLOW_S, f"a reply took {self.longest_s} s"
        return found


BIG = b"x" * 8000 + b"\n"  # an unknown command is shown as a whole, so this soon fills a socket


def test_a_collector_that_never_reads(start, collectors):
    collector = collectors(TcpCollector, reads=False)
    server = start(traced([f"127.0.0.1:{collector.port}"])[0])
    asker = Asker(server)
    asker.ask(3000, BIG)  # 24 MB
    found = asker.counters()
    assert found["dropped"] > 0 and found["depth"] <= 2000
    assert asker.longest_s < SLOW_S
    server.wait_log("is lost: timed out", 15)
    assert server.log.count("d0") <= 4, server.log  # connected, lost, connected again


@pytest.mark.parametrize("transport", ["tcp", "tls"])
def test_a_collector_that_refuses(start, tls_folder, transport):
    server = start(traced([f"127.0.0.1:{free_port()};transport={transport}"],
                          f'modparam("proto_hep", "hep_tls_ca_file", "{tls_folder}/ca.pem")')[0])
    asker = Asker(server)
    asker.ask(1500)
    wait_for(lambda: asker.counters()["errors"], what="the first attempt")
    found = asker.counters()
    assert (found["sent"], found["connected"]) == (0, 0)
    assert found["queued"] == found["depth"] == 2000 and found["dropped"] >= 1000
    asker.ask(1500)
    assert asker.longest_s < SLOW_S
    wait_for(lambda: asker.counters()["errors"] >= 2, what="another attempt")
    assert server.log.count("ERROR") == 1 and "refused" in server.log
    server.stop()


def test_a_udp_collector_that_is_not_there_yet(start, collectors):
    port = free_port()
    server = start(traced([f"127.0.0.1:{port};transport=udp"])[0])
    asker = Asker(server)
    asker.ask(50)
    asker.settled()
    assert server.statistic("udp_refusals") > 0
    assert server.log.count("refuses datagrams") == 1
    collector = collectors(UdpCollector, port)
    server.ask(b":which:\n")
    wait_for(lambda: any(b"which:datagram" in packet for packet in collector.packets), what="the packets of which")
    assert all(map(walk, collector.packets))


def test_a_collector_that_dies_and_comes_back(start, collectors):
    first = collectors(TcpCollector)
    server = start(traced([f"127.0.0.1:{first.port}"])[0])
    asker = Asker(server)
    asker.ask(20)
    whole(first, 40)
    first.close()
    asker.ask(20)
    server.wait_log("d0 is lost")
    second = collectors(TcpCollector, first.port)
    asker.ask(20)
    wait_for(lambda: len(second.streams) > 0, what="a new connection")
    found = asker.settled()
    assert found["reconnects"] == 1 and found["connected"] == 1 and found["dropped"] <= 40
    packets = [walk(packet) for packet in second.packets]  # the stream begins with a whole packet
    by_id = [packet.correlation_id for packet in packets]
    assert all(by_id.count(one) == 2 for one in by_id)


def test_a_collector_that_takes_half_a_packet(start, collectors):
    """What broke in the middle of a packet is not resumed: the next connection begins with a whole one."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        server = start(traced([f"127.0.0.1:{port}"])[0])
        asker = Asker(server)
        asker.ask(1500, BIG)  # 12 MB: stuck in the middle of a packet
        connection, _ = listener.accept()
        connection.recv(100)
        connection.close()
    server.wait_log("d0 is lost", 15)
    second = collectors(TcpCollector, port)
    asker.ask(10)
    asker.settled()
    assert len(whole(second, 20)) >= 20


def test_a_collector_that_reads_late_gets_every_packet_whole(start, collectors):
    """What a write cannot bring at once follows as the collector reads."""
    collector = collectors(TcpCollector)
    collector.reads = False
    server = start(traced([f"127.0.0.1:{collector.port}"])[0])
    asker = Asker(server)
    asker.ask(900, BIG)  # 7 MB: more than buffers hold, and fewer than the queue holds
    assert asker.counters()["sent"] < 1800
    collector.reads = True
    found = asker.settled()
    assert (found["dropped"], found["errors"], len(collector.streams)) == (0, 0, 1)
    assert len(whole(collector, found["sent"])) >= 1800


@pytest.mark.parametrize("gone", [1, 2])
def test_levels_go_with_the_children_that_die(start, collectors, gone):
    """How many are connected and what waits in the queues; what is counted stays."""
    collector = collectors(TcpCollector)
    server = start(traced([f"127.0.0.1:{collector.port}", f"127.0.0.1:{free_port()}"],
                          'modparam("mi_datagram", "trace_bwlist", "w: which")', children=2)[0])
    asker, asked = Asker(server), []
    wait_for(lambda: asked.append(server.ask(b":which:\n")) or asker.counters()["connected"] == 2, what="both to connect")
    burst = server.client()
    for _ in range(100):  # at once, so that both children get some
        burst.send(b":which:\n")
    asked += [burst.receive() for _ in range(100)]
    wait_for(lambda: asker.counters("d1")["depth"] == 2 * len(asked), what="all to be queued")
    for child in server.children()[:gone]:
        os.kill(child, signal.SIGKILL)
    wait_for(lambda: asker.counters()["connected"] == 2 - gone, what="those that died not to be counted")
    after = asker.counters("d1")
    assert after["queued"] == 2 * len(asked) > after["depth"] and (gone == 1 or after["depth"] == 0)


def test_a_collector_that_hangs_up_at_once(start):
    """It is not called again and again without a pause."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        server = start(traced([f"127.0.0.1:{listener.getsockname()[1]}"])[0])
        asker, calls, end_s = Asker(server), 0, time.monotonic() + 3
        while time.monotonic() < end_s:
            asker.ask(10)
            with contextlib.suppress(TimeoutError):
                listener.accept()[0].close()
                calls += 1
    assert 1 <= calls <= 6
    assert server.log.count("is lost") <= 6


LATE = '''
"""late -- names are not known until a file is there, and finding them takes its time."""

import os
import socket

import gevent

import midatagram as mi

PARAMS = [mi.Param("file", "", mi.string, "the file")]


class Late:
    """Stands before gevent's resolver."""

    def __init__(self, resolver, path):
        self.resolver, self.path = resolver, path

    def getaddrinfo(self, host, *rest, **more):
        gevent.sleep(0.5)
        if not os.path.exists(self.path):
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return self.resolver.getaddrinfo("127.0.0.1", *rest, **more)

    def __getattr__(self, name):
        return getattr(self.resolver, name)


def child_init(ctx):
    """Put it in place."""
    hub = gevent.get_hub()
    hub.resolver = Late(hub.resolver, ctx.param("file"))
'''


@pytest.mark.parametrize("transport, kind", [("tcp", TcpCollector), ("udp", UdpCollector)])
def test_a_collector_whose_name_is_known_late(start, collectors, tmp_path, transport, kind):
    collector = collectors(kind)
    (tmp_path / "late.py").write_text(LATE)
    configuration, _ = traced([f"collector.example.net:{collector.port};transport={transport}"])
    server = start(f'mpath="{tmp_path}"\nloadmodule "late.so"\nmodparam("late", "file", "{tmp_path}/known")\n'
                   + configuration)
    asker = Asker(server)
    asker.ask(100)
    server.wait_log("Temporary failure in name resolution")
    asker.ask(100)
    (tmp_path / "known").touch()
    found = asker.settled()
    assert found["dropped"] == 0 and found["connected"] == 1 and found["errors"] >= 1
    assert server.log.count("ERROR") == 1
    assert len(whole(collector, 400)) >= 400


ODD = '''
"""odd -- destinations that fail in the first write, each in its way."""

import gevent

import midatagram as mi


class Odd:
    def __init__(self, fail):
        self.fail = fail

    def open(self):
        pass

    def write(self, traces):
        if self.fail:
            fail, self.fail = self.fail, None
            fail()

    def close(self):
        pass


def limited():
    with gevent.Timeout(0.1):
        gevent.sleep(60)


def left():
    raise SystemExit(3)


def deaf():
    try:
        gevent.sleep(60)
    except OSError:
        gevent.sleep(60)


@mi.trace_destination
def destinations(ctx):
    return {function.__name__: Odd(function) for function in (limited, left, deaf)}
'''


def test_whatever_a_destination_raises_it_is_tried_again(start, tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    server = start(f'mpath="{tmp_path}"\nloadmodule "odd.so"\n'
                   'modparam("mi_datagram", "trace_destination", "limited, left, deaf")')
    ask = server.client().ask
    for name, told, timeout_s in (("limited", "0.1 seconds", 5), ("left", "3", 5), ("deaf", "timed out", 15)):
        ask(b":uptime:\n")
        server.wait_log(f"tracing destination {name} is lost: {told}", timeout_s)

    def all_sent():
        ask(b":uptime:\n")
        found = dict(line.split(b":: ") for line in ask(b":get_statistics:\nodd:\n").splitlines()[1:-1])
        return all(int(found[b"odd:%s-sent" % name]) > 0 < int(found[b"odd:%s-dropped" % name])
                   for name in (b"limited", b"left", b"deaf"))
    wait_for(all_sent, what="traces to all three")


def test_a_stop_sends_what_waits(start, collectors):
    collector = collectors(TcpCollector)
    server = start(traced([f"127.0.0.1:{collector.port}"])[0])
    client = server.client()
    for _ in range(300):
        client.send(b":nosuch:\n")
        client.receive()
    server.stop()
    assert len(whole(collector, 600)) == 600


@pytest.mark.parametrize("where", ["refusing", "silent"])
def test_a_stop_does_not_wait_for_a_bad_collector(start, collectors, where):
    port = free_port() if where == "refusing" else collectors(TcpCollector, reads=False).port
    server = start(traced([f"127.0.0.1:{port}"])[0])
    Asker(server).ask(1200, BIG)
    server.stop()  # fails when it takes too long


###############################################################################
# Configurations that cannot trace
###############################################################################

CANNOT = [  # lines -> what the log says
    ('loadmodule "proto_hep.so"\nmodparam("mi_datagram", "trace_destination", "hep_dest")', ["hep_dest"]),
    ('modparam("mi_datagram", "trace_destination", "hep_dest")', ["hep_dest"]),
    ('loadmodule "proto_hep.so"\nmodparam("proto_hep", "hep_id", "[a]127.0.0.1")\n'
     'modparam("mi_datagram", "trace_destination", "b")', ['"b"']),
    ('loadmodule "proto_hep.so"\nmodparam("proto_hep", "trace_destination", "[hep_dest];transport=tcp;version=3")\n'
     'modparam("mi_datagram", "trace_destination", "hep_dest")', ["has no host", "hep_dest"]),
]


@pytest.mark.parametrize("lines, told", CANNOT)
def test_a_server_that_cannot_trace_serves(start, lines, told):
    server = start(lines + "\n")
    assert server.ask(b":which:\n").startswith(b"200 OK\n")
    assert all(text in server.log for text in told)
    assert server.log.count("ERROR") == 1, server.log


def test_old_versions_are_warned_of_and_send_nothing(start, collectors):
    collector = collectors(UdpCollector)
    server = start(traced([f"127.0.0.1:{collector.port};version=2"])[0])
    assert server.ask(b":which:\n").startswith(b"200 OK\n")
    assert "carries no MI content" in server.log
    server.stop()
    assert collector.packets == []


def test_the_manuals_spelling_and_a_list_of_destinations(start, collectors):
    one, other = collectors(UdpCollector), collectors(TcpCollector)
    server = start(f'''loadmodule "proto_hep.so"
        modparam("proto_hep", "trace_destination", "[hep_dest]127.0.0.1:{one.port};transport=udp;version=3")
        modparam("proto_hep", "hep_id", "[second] 127.0.0.1:{other.port}; transport=TCP;")
        modparam("mi_datagram", "trace_destination", "hep_dest, second")
        modparam("mi_datagram", "trace_bwlist", "b: which")
        ''')
    for request in (b":which:\n", b":uptime:\n", b":nosuch:\n"):
        server.ask(request)
    for collector in (one, other):
        payloads = [packet.payload for packet in whole(collector, 4)]
        assert payloads[::2] == [b"uptime:datagram", b":nosuch\0\n:datagram"]
        assert len(payloads) == 4
