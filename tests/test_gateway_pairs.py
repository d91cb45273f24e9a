"""The gateway between clients and servers of other releases: recorded servers, the library `opensips`, and a real server."""

import contextlib
import json
import os
import select

import pytest
from conftest import free_port
from test_clients import OpenSIPSMI, OpenSIPSMIException
from test_recordings import asking
from test_translation import JSON_DIFFERS, NAMES_34, PAIRS, TEXT_DIFFERS, WHICH, free_json, free_text, ids, raw
from test_upstream import Puppet, gateway_to

import midatagram as mi


class Replay(Puppet):
    """A server that answers what it is asked with a recorded reply."""

    def __init__(self, path, dialect, listing):
        super().__init__(path)
        self.request = asking("which") if dialect == "jsonrpc" else b":which:\n"
        self.listing = raw(listing)

    def between(self, client, request, reply):
        """What a client gets, if this server gives that reply; and what it was asked, None if nothing."""
        client.send(request)
        heard = None
        while True:
            ready = select.select([self.socket, client.socket], [], [], 10)[0]
            if self.socket in ready:
                asked, place = self.socket.recvfrom(1 << 18)
                own = mi.decode(asked).replace(" ", "") == mi.decode(self.request).replace(" ", "")
                heard = heard if own else asked
                self.socket.sendto(self.listing if own else reply, place)
            if client.socket in ready:
                return client.receive(), heard
            assert ready, f"no reply to {request!r}"


@pytest.fixture
def replay(start, tmp_path):
    """A gateway in front of a recorded server: replay(dialect, listing) gives both."""
    with contextlib.ExitStack() as stack:
        def begin(dialect, listing):
            server = stack.enter_context(contextlib.closing(Replay(tmp_path / "replay.sock", dialect, listing)))
            return server, start(gateway_to(f"{server.path};dialect={dialect};timeout=10000")).client()
        yield begin


ROWS = [row for row in PAIRS if row["command"] != "which"]  # which has the gateway's commands as well


def test_text_clients_of_a_recorded_34(replay):
    """They get what 2.4 says, byte for byte, but for what varies."""
    server, client = replay("jsonrpc", WHICH["json_reply"])
    differing, asked = [], 0
    for row in ROWS:
        reply, heard = server.between(client, raw(row["text_request"]), raw(row["json_reply"]))
        differing += [row["id"]] if free_text(reply.decode("latin-1")) != free_text(row["text_reply"]) else []
        if heard:
            assert json.loads(heard)["method"] == json.loads(row["json_request"])["method"]
            asked += 1
    assert sorted(differing) == [row for row in ids(TEXT_DIFFERS) if row != WHICH["id"]]
    assert asked > 300


def test_jsonrpc_clients_of_a_recorded_24(replay):
    server, client = replay("text", WHICH["text_reply"])
    differing, asked = [], 0
    for row in ROWS:
        reply, heard = server.between(client, raw(row["json_request"]), raw(row["text_reply"]))
        made = json.loads(reply.decode("latin-1"))
        differing += [row["id"]] if free_json(made) != free_json(json.loads(row["json_reply"])) else []
        if heard:
            assert heard.partition(b"\n")[0] == raw(row["text_request"]).partition(b"\n")[0]
            asked += 1
    assert sorted(differing) == [row for row in ids(JSON_DIFFERS) if row != WHICH["id"]]
    assert asked > 250


def test_clients_of_24_and_34_of_a_recorded_40(replay):
    """By the names that they know: what the server says has another form for text clients alone."""
    server, client = replay("jsonrpc", WHICH["json40_reply"])
    asked = 0
    for row in [row for row in ROWS if row["json40_reply"] and "-32601" not in row["json40_reply"]]:
        there = json.loads(row["json40_request"])["method"]
        reply, heard = server.between(client, raw(row["json_request"]), raw(row["json40_reply"]))
        end = b'},"id":1}' if row["id"] == "p0582" else b""  # all statistics, those of the gateway behind them
        assert reply.removesuffix(end).startswith(raw(row["json40_reply"]).removesuffix(end)), row["id"]
        assert end or reply == raw(row["json40_reply"]), row["id"]
        assert heard is None or json.loads(heard)["method"] == there
        reply, heard = server.between(client, raw(row["text_request"]), raw(row["json40_reply"]))
        if heard and row["json40_same_as_34"] and row["id"] not in ids(TEXT_DIFFERS):
            assert free_text(reply.decode("latin-1")) == free_text(row["text_reply"]), row["id"]
            assert json.loads(heard)["method"] == there
            asked += 1
    assert asked > 200


def test_the_library_of_3x_over_a_server_of_24(start):
    """opensips of PyPI speaks JSON-RPC alone."""
    port = free_port()
    behind = start('loadmodule "usrloc.so"\nmodparam("midatagram", "dialect", "text")\n')
    start(gateway_to(behind.place, more=f'modparam("midatagram", "listen", "udp:127.0.0.1:{port}")'))
    client = OpenSIPSMI("datagram", datagram_ip="127.0.0.1", datagram_port=port, datagram_timeout=5)
    assert client.execute("version")["Server"].startswith("midatagram (")
    assert client.execute("cache_store", {"system": "local", "attr": "a", "value": "é\n"}) == "OK"
    assert client.execute("cache_fetch", ["local", "a"]) == {"key": "a", "value": "é\n"}
    contact = ["location", "bob", "sip:bob@192.0.2.1", 0, "0.5", 0, 0, 1]
    assert client.execute("ul_add", contact) == "OK"
    shown = client.execute("ul_show_contact", {"table_name": "location", "aor": "bob"})["Contacts"]
    assert [(one["Contact"], one["Q"]) for one in shown] == [("sip:bob@192.0.2.1", "0.5")]
    assert {"ul_dump", "upstream_list"} <= set(client.execute("which"))
    for command, params, error in (("no_such_command", [], "-32601"), ("ul_rm", ["location"], "-32602"),
                                   ("ul_show_contact", ["location", "carol"], "404")):
        with pytest.raises(OpenSIPSMIException, match=error):
            client.execute(command, params)


REAL = os.environ.get("MIDATAGRAM_OPENSIPS")  # the address of a real server's mi_datagram: a UNIX path or udp:HOST:PORT

if REAL:
    def test_a_real_server_in_both_dialects(start):
        front = start(gateway_to(REAL))
        for command in ("version", "uptime", "pwd", "ps", "events_list", "list_statistics"):
            text, reply = front.ask(f":{command}:\n".encode()), json.loads(front.ask(asking(command)))
            assert text.startswith(b"200 OK\n") and text.endswith(b"\n\n") and reply["result"], command
        names = json.loads(front.ask(asking("which")))["result"]
        assert front.ask(b":which:\n").decode().split("\n")[1:-2] == names
        assert {"uptime", "upstream_list"} <= {name.rpartition(":")[2] for name in names}
        assert front.ask(b":no_such_command:\n").startswith(b"500 command not available")
        assert json.loads(front.ask(asking("no_such_command")))["error"]["code"] == -32601
        assert any(name in NAMES_34 for name in names) or any(":" in name for name in names)

    def test_events_of_a_real_server(start):
        from test_upstream_events import Ear

        place = f"udp:127.0.0.1:{free_port()}"
        front = start(gateway_to(f"{REAL};events={place}"))
        names = [event["name"] for event in json.loads(front.ask(asking("events_list")))["result"]["Events"]]
        name, cause = names[0], f":raise_event:\n{names[0]}\nx::1\n"
        if "E_UL_AOR_INSERT" in names:  # 2.4 has no raise_event
            name, cause = "E_UL_AOR_INSERT", f":ul_add:\nlocation\n{os.urandom(4).hex()}\nsip:a@192.0.2.1\n9\n1\n0\n0\n0\n1\n"
        with contextlib.closing(Ear(front.folder)) as text, contextlib.closing(Ear(front.folder)) as jsonrpc:
            assert text.subscribe(front, "text", name) == b"200 OK\n\n"
            assert json.loads(jsonrpc.subscribe(front, "jsonrpc", name))["result"] == "OK"
            assert place in mi.ask(REAL, asking("subscribers_list"), 5.0).decode() or \
                place in mi.ask(REAL, b":subscribers_list:\n", 5.0).decode()
            front.ask(cause.encode())
            assert text.hear().startswith(name.encode() + b"\n")
            assert json.loads(jsonrpc.hear())["method"] == name
