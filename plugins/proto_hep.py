"""proto_hep -- traces MI commands to HEP collectors: Homer, heplify-server, Kamailio's sipcapture and others.

    loadmodule "proto_hep.so"
    modparam("proto_hep", "hep_id", "[hep_dest]collector.example.net:9060;transport=tcp")
    modparam("mi_datagram", "trace_destination", "hep_dest")

A command gives two HEPv3 packets, one for the request and one for the reply, with one correlation id. A packet is
"HEP3", its length and a row of chunks (vendor, type, length, value), all big endian:
https://github.com/sipcapture/HEP/blob/master/docs/HEP3Network_Protocol_Specification_REV_36.pdf

    Trace -> payloads -> packets -> udp, tcp or tls
"""

import binascii
import contextlib
import ipaddress
import itertools
import os
import random
import re
import socket
import ssl
import struct
import time
from collections.abc import Iterable, Iterator
from json.encoder import encode_basestring
from typing import Any, NamedTuple

import midatagram as mi

###############################################################################
# Declarations of destinations ################################################
###############################################################################
# Strategy: two parameters declare destinations in one grammar: hep_id is
# OpenSIPS' own, trace_destination the one in the manual of mi_datagram. The
# manual's example has no host, so that one may lack it, and is warned of.

FORM = '"[NAME]HOST[:PORT][;transport=udp|tcp|tls][;version=3]"'
DECLARATION = re.compile(r"\s*\[\s*(?P<name>[^][\s:;,=]+)\s*\](?P<place>[^;]*)(?:;(?P<keys>.*))?", re.S)
PLACE = re.compile(r"\s*(?P<host>\[[^][\s]*\]|[^][\s:,=]+)?\s*(?::\s*(?P<port>[^][\s:,=]*)\s*)?")
KEYS = {"transport": ("udp", "tcp", "tls"), "version": ("1", "2", "3")}


class Collector(NamedTuple):
    """A destination as declared; its host is empty where the line has none."""

    name: str
    host: str
    port: int = 9060
    transport: str = "tcp"
    version: int = 3


def declaration(value) -> Collector:
    """Converter: `[NAME]HOST[:PORT][;transport=udp|tcp|tls][;version=1|2|3]`; the host may be missing."""
    declared = mi.string(value).strip()
    match = DECLARATION.fullmatch(declared)
    if not match:
        raise ValueError(f"takes {FORM}; the name is " + (
            "one word without colons, commas or =" if declared.startswith("[") else f'missing: "[hep_dest]{declared}"'))
    keys = dict(setting(item) for item in split_keys(match["keys"]))
    version = int(keys.get("version", 3))
    transport = "udp" if version < 3 else keys.get("transport", "tcp")
    return Collector(match["name"], *host_and_port(match["place"]), transport, version)


def hep_id(value) -> Collector:
    """Converter: as declaration(), with a host."""
    found = declaration(value)
    if not found.host:
        raise ValueError(f"takes {FORM}; the host is missing")
    return found


def split_keys(text) -> list[str]:
    """The settings behind the place; the last may end in a semicolon."""
    items = text.split(";") if text else []
    return items[:-1] if items and not items[-1].strip() else items


def setting(item: str) -> tuple[str, str]:
    """One `key=value`; ValueError tells the keys and values there are."""
    key, _, value = (part.strip() for part in item.partition("="))
    if key not in KEYS:
        raise ValueError(f'takes {FORM}; "{item.strip()}" is none of its settings')
    if value.lower() not in KEYS[key]:
        raise ValueError(f'takes {key}={"|".join(KEYS[key])}, not "{value}"')
    return key, value.lower()


def host_and_port(text: str) -> tuple[str, int]:
    """The host, empty if there is none, and the port of `HOST[:PORT]`, an IPv6 address being in brackets."""
    match = PLACE.fullmatch(text)
    if not match:
        raise ValueError(f"takes {FORM}; a line declares one destination, and an IPv6 address has brackets: [::1]:9060")
    port = match["port"] if match["port"] is not None else "9060"
    if not re.fullmatch("[0-9]{1,9}", port) or not 1 <= int(port) <= 65535:
        raise ValueError(f'takes a port from 1 to 65535, not "{port}"')
    return checked_host(match["host"] or ""), int(port)


def checked_host(host: str) -> str:
    """A host without brackets; ValueError for what is neither an address nor a name that can be looked up."""
    try:
        if host.startswith("["):
            ipaddress.IPv6Address(host[1:-1])
        elif re.fullmatch("[0-9.]+", host):
            ipaddress.IPv4Address(host)
        else:
            host.encode("idna")
    except ValueError as error:
        raise ValueError(f'takes {FORM}; "{host}" is no host: {error}') from None
    return host.strip("[]")


def declaration_advice(value):
    """What to warn of in a declaration that is accepted, or None."""
    found = declaration(value)
    if not found.host:
        return f"[{found.name}] has no host, so nothing can be traced to it; write {FORM}"
    if found.version < 3:
        return f"[{found.name}]: HEP version {found.version} carries no MI content, so nothing is sent; use version=3"
    return None


###############################################################################
# Parameters ##################################################################
###############################################################################

LONGEST = 255  # bytes of a parameter that stands in each packet, so that the rest of it finds room


def short_string(value) -> str:
    """Converter: text of at most LONGEST bytes."""
    if len(mi.encode(mi.string(value))) > LONGEST:
        raise ValueError(f"takes at most {LONGEST} bytes")
    return value


def protocol_type(value) -> int:
    """Converter: 87 or 100."""
    number = mi.integer()(value)
    if number not in (87, 100):
        raise ValueError("takes 87 (MI, as OpenSIPS has it) or 100 (LOG, which Homer 7 and 10 show)")
    return number


def unused(name: str, default: int, reason: str) -> mi.Param:
    """A parameter of OpenSIPS that has nothing to set here."""
    return mi.Param(name, default, mi.integer(0), f"accepted without effect: {reason}")


SENDER = "traces are sent beside the replies, with time limits of their own"
LISTENER = "this server receives no HEP"

PARAMS = [
    mi.Param("hep_id", (), hep_id, f"destination: {FORM[1:-1]}", repeat=True, advice=declaration_advice),
    mi.Param("trace_destination", (), declaration, "same as hep_id, as the manual of mi_datagram spells it",
             repeat=True, advice=declaration_advice),
    mi.Param("hep_capture_id", 1, mi.integer(0, 0xFFFFFFFF), "number of this server in chunk 0x000c"),
    mi.Param("homer5_on", 1, mi.integer(), "0: JSON payloads; otherwise text, separated by homer5_delim"),
    mi.Param("homer5_delim", ":", short_string, "separator between the parts of a text payload"),
    mi.Param("hep_proto_type", 87, protocol_type, "protocol type in chunk 0x000b: 87 (MI) or 100 (LOG)"),
    mi.Param("hep_node_name", "", short_string, "name of this server in chunk 0x0013"),
    mi.Param("hep_auth_key", "", short_string, "key for the collector in chunk 0x000e"),
    mi.Param("hep_tls_ca_file", None, mi.string, "file of the CA certificates for collectors; default: those of the system"),
    mi.Param("hep_tls_server_name", None, mi.string, "name in the certificate of the collector; default: its host"),
    mi.Param("hep_tls_certificate", None, mi.string, "file of the client certificate, for collectors that ask for one"),
    mi.Param("hep_tls_private_key", None, mi.string,
             "file of the key of that certificate; default: the key is in hep_tls_certificate"),
    mi.Param("compressed_payload", 0, mi.integer(), "accepted without effect: MI payloads are never compressed",
             advice=lambda value: "compressed_payload: MI payloads are never compressed" if int(value) else None),
    unused("hep_port", 9060, LISTENER),
    unused("hep_max_msg_chunks", 32, LISTENER),
    unused("hep_async", 1, SENDER),
    unused("hep_send_timeout", 100, SENDER),
    unused("hep_async_max_postponed_chunks", 32, SENDER),
    unused("hep_async_local_connect_timeout", 100, SENDER),
    unused("hep_async_local_write_timeout", 10, SENDER),
    unused("hep_max_retries", 5, SENDER),
    unused("hep_retry_cooldown", 3600, SENDER),
]

STATS = [mi.Stat("udp_refusals", "datagrams refused by collectors: nothing listened there")]

###############################################################################
# Packets #####################################################################
###############################################################################
# Strategy: monitoring asks the same again and again, so the packets of a trace
# are remembered but for what is never the same: times and correlation id. The
# order of the chunks is OpenSIPS'; extra ones go before the payload. The
# payload is cut in the one part that has no limit of its own.

LIMIT = 8192  # bytes of a packet; collectors read no more than that at once
PARAMETERS, REPLY = 127, 128  # bytes of the parameters and of the reply that OpenSIPS shows
IP_FAMILY, IP_PROTOCOL, SOURCE_PORT, TARGET_PORT, SECONDS, MICROSECONDS = 0x1, 0x2, 0x7, 0x8, 0x9, 0xA
PROTOCOL_TYPE, CAPTURE_ID, AUTH_KEY, PAYLOAD, CORRELATION_ID, NODE_NAME = 0xB, 0xC, 0xE, 0xF, 0x11, 0x13
TCP = 6  # what OpenSIPS says, whatever MI came over
FAMILIES = {  # IP version -> value of IP_FAMILY, which is Linux' own, types of source and target
    4: (socket.AF_INET, 0x3, 0x4), 6: (socket.AF_INET6, 0x5, 0x6)}
NOWHERE = (("127.0.0.1", 0), ("127.0.0.2", 0))  # client and server over UNIX sockets: OpenSIPS' "no address"
PAIRS_BYTES = 1 << 20  # of what is cached about pairs of addresses
FRAMES_BYTES = 8 << 20  # and of packets
ASKING, TELLING = ("command", "backend", "parameters"), ("code", "reason", "reply")
JSON_FRAME = 64  # bytes, not less than what JSON payloads have besides their values
ID_SIZE = 34  # bytes of a correlation id: "MICORR" and 28 of base64
CORRELATED = struct.pack("!HHH", 0, CORRELATION_ID, 6 + ID_SIZE)
MICROS = struct.pack("!HHH", 0, MICROSECONDS, 10)
SECOND_US = 1_000_000
TIME = struct.Struct("!I6sI")  # seconds, MICROS, microseconds
pack_time = TIME.pack
PARTS = 4  # of a packet: what stands before the time, the time, what stands behind it, the correlation id
WELL_FORMED = re.compile(rb":[^:\0]*(:)\n")
CUT = re.compile(r"((?:[^\\]|\\u[0-9a-f]{4}|\\[^u])*).*", re.S)  # a JSON string, and of its last escape what a cut leaves


def chunk(kind: int, value: bytes) -> bytes:
    """One chunk; its length counts its head."""
    return struct.pack("!HHH", 0, kind, 6 + len(value)) + value


def correlation_ids(pid: int, started_s: int):
    """Correlation ids of one process, without end: no two are alike, since they are counted. Its uptime in them is that of
    the first of 256."""
    pack, base64, since_s = struct.Struct("<IIQH").pack, binascii.b2a_base64, time.monotonic()
    endings = [base64(bytes([random.getrandbits(8), number]), newline=False) for number in range(256)]
    for block in itertools.count(random.getrandbits(16)):
        uptime_us = int((time.monotonic() - since_s) * SECOND_US)
        beginning = b"MICORR" + base64(pack(pid, started_s, uptime_us, block & 0xFFFF), newline=False)
        for ending in endings:
            yield beginning + ending


def to_bytes(text: str) -> bytes:
    """The bytes of a text, `?` for what no bytes stand for, as a JSON-RPC client can send it."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "replace")


def shown_request(data: bytes) -> bytes:
    """A request that named no command, as OpenSIPS shows it: a well-formed first line ends in NUL, not in a colon."""
    match = WELL_FORMED.match(data)
    return data[: match.start(1)] + b"\0" + data[match.end(1) :] if match else data


def shown_parameters(values: tuple) -> bytes:
    """Values joined by commas, each up to its first NUL, None being empty."""
    text = ",".join([value or "" for value in values])
    if "\0" in text:
        text = ",".join([(value or "").partition("\0")[0] for value in values])
    return to_bytes(text[:PARAMETERS])[:PARAMETERS]


def write_text(values: tuple, names: tuple, limited: int, room: int, delim: bytes) -> bytes:
    """Values as text; empty ones are left out, and the limited one is cut so that all fit."""
    parts = [value for value in values if value]
    payload = delim.join(parts)
    if len(payload) > room:
        parts[limited] = parts[limited][: room - len(payload)]
        payload = delim.join(parts)
    return payload


def write_json(values: tuple, names: tuple, limited: int, room: int, delim: None) -> bytes:
    """Values by their names as JSON, each ending at its first NUL; empty ones are left out, the limited one is cut."""
    quoted = [encode_basestring(value.partition(b"\0")[0].decode("latin-1")) for value in values]
    excess = sum(map(len, quoted)) + JSON_FRAME - room
    if excess > 0:
        quoted[limited] = CUT.sub(r'\1"', quoted[limited][:-1 - excess], 1)
    members = [f'"{name}":\t{value}' for name, value in zip(names, quoted, strict=True) if value != '""']
    return ("{\n\t" + ",\n\t".join(members) + "\n}").encode("latin-1")


class Frame(NamedTuple):
    """The packets of a trace, of request and reply, without their times and correlation id."""

    asked: bytes
    asking: bytes  # behind the time
    told: bytes
    telling: bytes


class Encoder:
    """Turns traces into packets; without effects, but that it remembers what it met.

    delim: what parts the text of payloads, None for JSON; node and key: chunks that each packet has besides.
    """

    def __init__(self, capture_id: int = 1, proto_type: int = 87, delim=b":", node: bytes = b"", key: bytes = b""):
        self.delim, self.write = delim, write_json if delim is None else write_text
        self.fixed = chunk(PROTOCOL_TYPE, bytes([proto_type])) + chunk(CAPTURE_ID, struct.pack("!I", capture_id))
        self.extra = b"".join(chunk(kind, value) for kind, value in ((AUTH_KEY, key), (NODE_NAME, node)) if value)
        self.pairs = mi.Memo(PAIRS_BYTES)  # (client, server) -> head of requests, head of replies, room for payloads
        self.frames = mi.Memo(FRAMES_BYTES)

    def packets(self, trace: mi.Trace, correlation_id: bytes) -> list[bytes]:
        """The packets of one trace: its request and its reply, each of at most LIMIT bytes."""
        return joined(self.encode([trace], itertools.repeat(correlation_id)))

    def encode(self, batch: Iterable[mi.Trace], correlation_ids: Iterator[bytes]) -> list[bytes]:
        """The packets of traces, of request and reply in turn, as their PARTS: to join them later means to copy only once."""
        parts: list[bytes] = []
        last_exchange = last_ends = None
        for (requested_s, replied_s, client, server, exchange), correlation_id in zip(batch, correlation_ids):
            ends = (client, server) if type(client) is tuple else NOWHERE
            if exchange is not last_exchange or ends != last_ends:
                last_exchange, last_ends = exchange, ends
                asked, asking, told, telling = self.frame(ends, exchange)
            asked_us = int(requested_s * 1e6 + 0.5)
            asked_at = told_at = pack_time(asked_us // SECOND_US, MICROS, asked_us % SECOND_US)
            if replied_s != requested_s:
                told_us = int(replied_s * 1e6 + 0.5)
                told_at = pack_time(told_us // SECOND_US, MICROS, told_us % SECOND_US)
            parts += (asked, asked_at, asking, correlation_id, told, told_at, telling, correlation_id)
        return parts

    def frame(self, ends: tuple, exchange: mi.Exchange) -> Frame:
        """The packets of an exchange between two socket addresses but for what is never the same."""
        request, command, values, code, reason, reply = exchange
        asked_for = (command, values) if command and request[:1] != b":" else request  # JSON-RPC has another id each time
        key = ends, asked_for, code, reason, reply and reply[:REPLY]
        return self.frames.get(key) or self.learn(key, ends, request, command, values, code, reason, reply)

    def learn(self, key: tuple, ends: tuple, request: bytes, command: str, values, code: int, reason: str, reply) -> Frame:
        """Make and remember the packets of all traces that have the key in common."""
        asked, answered, room = self.pairs.get(ends) or self.meet(ends)
        shown = to_bytes(command) if command else shown_request(request)
        asking = shown, b"datagram", shown_parameters(values) if values else b""
        telling = b"%d" % code, to_bytes(reason), reply[:REPLY] if reply else b""
        frame = Frame(*packet(asked, self.write(asking, ASKING, 0, room, self.delim)),
                      *packet(answered, self.write(telling, TELLING, 1, room, self.delim)))
        size = 3 * sum(map(len, frame)) + 4 * len(request) + mi.VALUE_BYTES * len(values or ())  # the key holds these
        return self.frames.keep(key, frame, size)

    def meet(self, ends: tuple) -> tuple:
        """Remember how packets between two socket addresses begin."""
        asked, answered = self.head(*ends), self.head(*reversed(ends))
        room = LIMIT - sum(map(len, packet(asked, b""))) - TIME.size - ID_SIZE
        return self.pairs.keep(ends, (asked, answered, room), 4 * (LIMIT - room))

    def head(self, source: tuple, target: tuple) -> tuple[bytes, bytes]:
        """The chunks of packets from source to target before the time, and those between it and the payload."""
        addresses = [ipaddress.ip_address(host.partition("%")[0]) for host, *_ in (source, target)]
        family, source_kind, target_kind = FAMILIES[addresses[0].version]
        before = (chunk(IP_FAMILY, bytes([family])) + chunk(IP_PROTOCOL, bytes([TCP]))
                  + chunk(SOURCE_PORT, struct.pack("!H", source[1])) + chunk(TARGET_PORT, struct.pack("!H", target[1]))
                  + struct.pack("!HHH", 0, SECONDS, 10))
        after = self.fixed + chunk(source_kind, addresses[0].packed) + chunk(target_kind, addresses[1].packed) + self.extra
        return before, after


def joined(parts: list[bytes]) -> list[bytes]:
    """The packets of which these are the PARTS."""
    return [b"".join(parts[at:at + PARTS]) for at in range(0, len(parts), PARTS)]


def packet(head: tuple, payload: bytes) -> tuple[bytes, bytes]:
    """One packet of a head and a payload: what stands before the time, and what between it and the correlation id."""
    before, after = head
    behind = after + chunk(PAYLOAD, payload) + CORRELATED
    return b"HEP3" + struct.pack("!H", 6 + len(before) + TIME.size + len(behind) + ID_SIZE) + before, behind


###############################################################################
# Transports ##################################################################
###############################################################################
# Strategy: a transport opens, writes and closes, or raises OSError. Queue,
# pauses, time limits and counters are the script's. A name is looked up at
# each open. A stream that broke is never resumed: the next one begins with a
# whole packet.

CONNECT_S = 2.0  # for each address of a name
KEEPALIVE = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
             (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
             (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20000),  # ms that what was sent may stay without an answer
             (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1))
TALK, TALKS = 16384, 256  # bytes of what a collector says that are read at once, and how often before each batch
REFUSED_S = 30.0  # refusals that are closer together are one state, told once; then the name is looked up again


class Transport:
    """What all transports have: a collector, an encoder and, once open, a socket."""

    packets_per_trace = 2
    kind = socket.SOCK_STREAM

    def __init__(self, collector: Collector, encoder: Encoder, ctx: mi.Context):
        self.collector, self.encoder, self.ctx = collector, encoder, ctx
        self.place = collector.host, collector.port
        self.socket: Any = None
        self.ids: Any = None  # correlation_ids() of this process

    def open(self) -> None:
        """Look the name up and connect; OSError when no address of it can be reached."""
        self.ids = self.ids or correlation_ids(os.getpid(), int(time.time()))
        self.socket = self.connect()

    def connect(self) -> socket.socket:
        """A socket connected to the first address that can be reached."""
        failure = OSError("no address")
        for family, address in self.addresses():
            sock = socket.socket(family, self.kind)
            sock.settimeout(CONNECT_S)
            try:
                sock.connect(address)
                sock.settimeout(None)
                return sock
            except OSError as error:
                failure = error
                sock.close()
        raise failure

    def addresses(self) -> list[tuple]:
        """The (family, socket address) pairs of the collector. Only a name is looked up: that needs a thread, and in a process
        that has had one all system calls are dearer, those for replies as well."""
        host, port = self.place
        with contextlib.suppress(ValueError):
            if "%" not in host:
                return [(FAMILIES[ipaddress.ip_address(host).version][0], (host, port))]
        return [(family, address) for family, *_, address in socket.getaddrinfo(host, port, type=self.kind)]

    def close(self) -> None:
        """Close the socket, if there is one."""
        if self.socket:
            self.socket.close()
            self.socket = None


class Udp(Transport):
    """A collector over UDP: one packet a datagram, from a connected socket."""

    kind = socket.SOCK_DGRAM
    refused_s = opened_s = float("-inf")

    def open(self) -> None:
        """As Transport, and note when."""
        self.opened_s = time.monotonic()
        super().open()

    def write(self, batch: list) -> None:
        """Send all packets; OSError when one cannot be sent."""
        refusals = sum(map(self.send, joined(self.encoder.encode(batch, self.ids))))
        if refusals:
            self.refused(refusals)

    def send(self, packet: bytes) -> bool:
        """Send a packet; True when the kernel told that an earlier one was refused, which does not hold up this one."""
        try:
            while not self.socket.send(packet):  # gevent's gives 0 when the buffer is full again
                pass
            return False
        except ConnectionRefusedError:
            self.socket.send(packet)
            return True

    def refused(self, times: int) -> None:
        """Count refusals, tell of the first, and look now and then whether the name has moved."""
        self.ctx.count("udp_refusals", times)
        now_s = time.monotonic()
        if now_s - self.refused_s > REFUSED_S:
            self.ctx.log.warning("[%s]: %s refuses datagrams to port %d", self.collector.name, *self.place)
        self.refused_s = now_s
        if now_s - self.opened_s > REFUSED_S:
            self.close()
            self.open()


class Tcp(Transport):
    """A collector over TCP: packets one behind the other."""

    def connect(self) -> socket.socket:
        """As Transport, with keep-alive."""
        sock = super().connect()
        for option in KEEPALIVE:
            sock.setsockopt(*option)
        return sock

    def write(self, batch: list) -> None:
        """Write all packets at once; OSError when the collector is gone or cannot be written to."""
        self.socket.sendall(b"".join(self.encoder.encode(batch, self.ids)))

    def check(self) -> None:
        """Read what the collector says, which is nothing to us, and raise OSError if it has closed the connection: a write
        would not notice until the next one, and would not know why."""
        self.socket.settimeout(0)
        try:
            for _ in range(TALKS):
                if not self.socket.recv(TALK):
                    raise ConnectionResetError("closed by the collector")
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        finally:
            self.socket.settimeout(None)

    def close(self) -> None:
        """Close; what is unread then, the kernel would tell the collector of as a reset."""
        if self.socket:
            with contextlib.suppress(OSError):
                self.check()
        super().close()


class Tls(Tcp):
    """A collector over TLS: its certificate is checked at each connect."""

    def open(self) -> None:
        """As Tcp; OSError also when the collector's certificate or ours is not good."""
        super().open()
        name = self.ctx.param("hep_tls_server_name") or self.collector.host
        self.socket = tls_context(self.ctx).wrap_socket(self.socket, server_hostname=name)


def tls_context(ctx: mi.Context) -> ssl.SSLContext:
    """TLS as the parameters have it, of 1.2 or later; OSError for files that are missing or of another kind."""
    context = ssl.create_default_context(cafile=ctx.param("hep_tls_ca_file"))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    certificate = ctx.param("hep_tls_certificate")
    if certificate:  # a key with a passphrase is refused: nobody is there to type it
        context.load_cert_chain(certificate, ctx.param("hep_tls_private_key"), password=lambda: "")
    return context


###############################################################################
# What the script asks for ####################################################
###############################################################################

TRANSPORTS = {"udp": Udp, "tcp": Tcp, "tls": Tls}
SPELLINGS = ("hep_id", "trace_destination")


def collectors(ctx: mi.Context) -> list[tuple]:
    """All declarations: (parameter, number of its line, Collector)."""
    return [(param, nth, found) for param in SPELLINGS for nth, found in enumerate(ctx.param(param))]


def init(ctx: mi.Context) -> None:
    """Refuse what shows only when all lines are known."""
    seen = set()
    for param, nth, found in collectors(ctx):
        if found.name in seen:
            ctx.refuse(param, f"{param}: [{found.name}] is declared twice; each destination has a name of its own", nth)
        seen.add(found.name)
    if any(found.transport == "tls" for _, _, found in collectors(ctx)):
        check_tls(ctx)


def check_tls(ctx: mi.Context) -> None:
    """Refuse files for TLS that cannot be used."""
    for param in ("hep_tls_ca_file", "hep_tls_certificate", "hep_tls_private_key"):
        path = ctx.param(param)
        if path and not os.access(path, os.R_OK):
            ctx.refuse(param, f'{param}: "{path}" cannot be read')
    if ctx.param("hep_tls_private_key") and not ctx.param("hep_tls_certificate"):
        ctx.refuse("hep_tls_private_key", "hep_tls_private_key: needs the hep_tls_certificate that it belongs to")
    try:
        tls_context(ctx)
    except OSError as error:
        param = "hep_tls_certificate" if ctx.param("hep_tls_certificate") else "hep_tls_ca_file"
        ctx.refuse(param, f"{param}: takes a file of PEM, with the key that belongs to a certificate: {error}")


@mi.trace_destination
def destinations(ctx: mi.Context) -> dict:
    """The collectors by name; None for those of HEP 1 and 2, which carry no MI content. Those without a host are left out."""
    texts = {key: mi.encode(ctx.param(name)) for key, name in (("node", "hep_node_name"), ("key", "hep_auth_key"))}
    encoder = Encoder(ctx.param("hep_capture_id"), ctx.param("hep_proto_type"),
                      mi.encode(ctx.param("homer5_delim")) if ctx.param("homer5_on") else None, **texts)
    return {found.name: TRANSPORTS[found.transport](found, encoder, ctx) if found.version == 3 else None
            for _, _, found in collectors(ctx) if found.host}
