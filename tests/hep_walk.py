"""Reads HEPv3 packets and refuses whatever is not exactly as OpenSIPS 2.4 writes them."""

import base64
import ipaddress
import re
import struct
from typing import NamedTuple

ORDERS = {2: [1, 2, 7, 8, 9, 10, 11, 12, 3, 4, 15, 17], 10: [1, 2, 7, 8, 9, 10, 11, 12, 5, 6, 15, 17]}
SIZES = {1: 1, 2: 1, 3: 4, 4: 4, 5: 16, 6: 16, 7: 2, 8: 2, 9: 4, 10: 4, 11: 1, 12: 4, 17: 34}
EXTRA = (14, 19)  # key and node name, in that order before the payload
LIMIT = 8192
WHOLE = re.compile(r'(?:[^\x00-\x1f"\\]|\\["\\bfnrt]|\\u00[01][0-9a-f])*')
JSON = re.compile(r'\{\n\t(?P<members>"[a-z]+":\t".*"(?:,\n\t"[a-z]+":\t".*")*)\n\}')


class Packet(NamedTuple):
    """A packet taken apart: the fields by name, extra chunks None where there are none."""

    source: tuple
    target: tuple
    seconds: int
    micros: int
    proto_type: int
    capture_id: int
    payload: bytes
    correlation_id: bytes
    key: bytes | None
    node: bytes | None


def chunks(data):
    """The (type, value) of all chunks; their lengths add up to the packet, and all are of vendor 0."""
    assert data[:4] == b"HEP3", data[:4]
    assert len(data) <= LIMIT, len(data)
    assert struct.unpack_from("!H", data, 4)[0] == len(data)
    at, found = 6, []
    while at < len(data):
        vendor, kind, size = struct.unpack_from("!HHH", data, at)
        assert vendor == 0, (at, vendor)
        assert size >= 6, (at, size)
        assert at + size <= len(data), (at, size)
        found.append((kind, data[at + 6 : at + size]))
        at += size
    return found


def walk(data):
    """The Packet of some bytes; AssertionError for what is not as it should be."""
    found = chunks(data)
    values = dict(found)
    assert len(values) == len(found), "a chunk stands twice"
    family = values[1][0]
    expected = ORDERS[family][:-2] + [kind for kind in EXTRA if kind in values] + [15, 17]
    assert [kind for kind, _ in found] == expected
    assert all(len(values[kind]) == size for kind, size in SIZES.items() if kind in values), found
    assert values[2] == b"\x06"
    correlation_id = values[17]
    assert re.fullmatch(rb"MICORR[A-Za-z0-9+/]{27}=", correlation_id), correlation_id
    assert len(base64.b64decode(correlation_id[6:])) == 20
    source, target = (str(ipaddress.ip_address(values[kind])) for kind in ORDERS[family][8:10])
    ports = [int.from_bytes(values[kind], "big") for kind in (7, 8)]
    numbers = [int.from_bytes(values[kind], "big") for kind in (9, 10, 11, 12)]
    assert numbers[1] < 1_000_000
    return Packet((source, ports[0]), (target, ports[1]), *numbers, values[15], correlation_id,
                  values.get(14), values.get(19))


def split(stream):
    """The packets of a TCP stream, and the bytes of one that has not arrived wholly."""
    found, at = [], 0
    while len(stream) - at >= 6:
        assert stream[at : at + 4] == b"HEP3", (at, stream[at : at + 20])
        size = struct.unpack_from("!H", stream, at + 4)[0]
        if len(stream) - at < size:
            break
        found.append(stream[at : at + size])
        at += size
    return found, stream[at:]


def members(payload):
    """A JSON payload in OpenSIPS' layout as (name, raw value) pairs, the values with their escapes."""
    match = JSON.fullmatch(payload.decode("latin-1"))
    assert match, payload
    pairs = [re.fullmatch(r'"([a-z]+)":\t"(.*)"', text).groups() for text in match["members"].split(",\n\t")]
    assert all(WHOLE.fullmatch(value) for _, value in pairs), payload
    return pairs
