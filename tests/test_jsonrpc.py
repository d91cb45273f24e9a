"""Every JSON-RPC exchange recorded from real OpenSIPS 3.4.18, replayed against a running server, and what goes beyond."""

import json
import re

import pytest
from conftest import PLUGINS, Server
from test_recorded import recordings

RECORDED = recordings("jsonrpc.jsonl")
STATEFUL = ("core", "cache", "evi", "stat")  # groups that are replayed in file order

LEFT_OUT = {
    "core-093": "there are no TCP connections here",
}


def group(row):
    return row["id"].split("-")[0]


def configuration(extra=""):
    return ('loadmodule "opensips_3x.so"\nmodparam("midatagram", "dialect", "jsonrpc")\n'
            'modparam("cachedb_local", "cache_collections", "default")\n' + extra)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """One server for each modparam the recordings were made with."""
    running = {}

    def get(option):
        if option not in running:
            extra = 'modparam("mi_datagram", "pretty_printing", 1)\n' if option else ""
            running[option] = Server(tmp_path_factory.mktemp("json"), configuration(extra), "-p", str(PLUGINS))
        return running[option]

    yield get
    for server in running.values():
        server.stop()
        server.close()


def names(value):
    """The shape of a JSON value: the names of its members at each level, without values and lengths."""
    if isinstance(value, dict):
        return {name: names(item) for name, item in value.items()}
    if isinstance(value, list):
        inner = [names(item) for item in value if isinstance(item, (dict, list))]
        return ["array", *(inner[:1])]
    return "value"


def same(row, reply):
    """Whether a reply is what was recorded, as its `compare` says."""
    if reply is None or row["reply"] is None or row.get("compare", "bytes") == "bytes":
        return reply == row["reply"]
    ours, theirs = json.loads(reply), json.loads(row["reply"])
    if list(ours) != list(theirs) or ours["id"] != theirs["id"]:
        return False
    if row["id"] in OWN_MEMBERS:
        return type(ours["result"]) is type(theirs["result"])
    return names(ours) == names(theirs)


OWN_MEMBERS = {  # lists of what a server has: only their type is common
    "stat-005", "stat-006", "stat-007", "stat-008", "stat-020", "stat-023",
}

# What is wanted where the original's answer is marked as a finding.
OK = b'{"jsonrpc":"2.0","result":{"xLog Level":2},"id":%s}'
INVALID = b'{"jsonrpc":"2.0","error":{"code":-32600,"message":"Invalid Request"},"id":null}'
WANTED = {
    "env-007": OK % b"-1.900000", "env-008": OK % b"1000", "env-015": OK % b"31", "env-016": OK % b"null",
    "env-017": OK % b"null", "env-018": OK % b"7", "env-019": OK % b"5", "env-021": OK % b"-0.500000",
    "env-028": INVALID, "env-029": INVALID, "env-030": INVALID, "env-031": INVALID,
    "size-005": b"400 Parse_error",
    "env-075": b'[' + OK % b"1" + b"," + OK % b"1" + b"]",
    "stat-009": b'{"jsonrpc":"2.0","result":{"script:myvar":0},"id":1}',
    "evi-032": b'{"jsonrpc":"2.0","error":{"code":400,"message":"Bad parameter value"},"id":1}',
    "evi-038": b'{"jsonrpc":"2.0","result":"OK","id":1}',
}
WANTED["evi-034"] = WANTED["evi-032"]
WANTED["evi-035"] = WANTED["evi-032"]


def check(row, reply):
    wanted = WANTED.get(row["id"], row["reply"]) if "finding" in row else None
    return reply == wanted if "finding" in row else same(row, reply)


@pytest.mark.parametrize("row", [row for row in RECORDED if group(row) not in STATEFUL],
                         ids=[row["id"] for row in RECORDED if group(row) not in STATEFUL])
def test_recorded(servers, row):
    client = servers(row.get("config")).client()
    client.send(row["request"])
    reply = client.receive(0.3 if row["reply"] is None else 5)
    client.close()
    assert check(row, reply), (reply, row["reply"])


@pytest.mark.parametrize("name", STATEFUL)
def test_in_file_order(start, name):
    server = start(configuration(), "-p", str(PLUGINS))
    client, wrong = server.client(), []
    for row in RECORDED:
        if group(row) != name or row["id"] in LEFT_OUT:
            continue
        request = re.sub(rb"\b34\d\d\b", b"%d" % server.pid, row["request"])
        if row["id"] == "cache-007":
            continue  # a value that expired: see test_a_value_expires
        reply = client.ask(request, 0.3 if row["reply"] is None else 5)
        if not check(row, reply):
            wrong.append((row["id"], row["request"], reply, row["reply"]))
    assert not wrong, "\n".join(map(str, wrong))
