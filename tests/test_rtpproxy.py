"""rtpproxy and nathelper beyond the recordings: sets, the table, what is wrong with them."""

import json

import pytest
from test_modules import subscribed, wrong_pairs

import midatagram as mi

ONE = ("udp:127.0.0.1:5199", "udp:127.0.0.1:5198")


def lines(*sets, **params):
    """A configuration with a set a line."""
    more = [f'modparam("rtpproxy", "{name}", {json.dumps(value)})' for name, value in params.items()]
    given = [f'modparam("rtpproxy", "rtpproxy_sock", "{one}")' for one in sets]
    return "\n".join(['loadmodule "rtpproxy.so"', *given, *more, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def rpc(trial, method, **params):
    """The result of a JSON-RPC request, or the values of its error."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "params": params, "id": 1}).encode()))
    return reply["result"] if "result" in reply else tuple(reply["error"].values())


def shown(trial):
    """What rtpproxy_show shows: number of the set -> (URL, index, whether it is disabled, weight) of each proxy."""
    return {one["Set"]: [(node["url"], node["index"], node["disabled"], node["weight"]) for node in one["Nodes"]]
            for one in rpc(trial, "rtpproxy_show")}


@pytest.mark.parametrize("dialect", ["text", "json"])
def test_the_same_questions_to_both_versions(dialect):
    dialect_line = f'modparam("midatagram", "dialect", "{"jsonrpc" if dialect == "json" else "text"}")'
    with mi.Trial(f'{lines("1 == " + " ".join(ONE))}{dialect_line}') as trial:
        assert wrong_pairs(trial, dialect, "rtpproxy_") == []
    with mi.Trial(f'loadmodule "nathelper.so"\nmodparam("nathelper", "natping_interval", 60)\n{dialect_line}') as trial:
        assert wrong_pairs(trial, dialect, "nh_") == []


def test_sets_are_those_of_the_lines():
    """In their order; a set may go on in another line; without a number it is default_set. A weight has 32 bits."""
    sets = ("2 == udp:a=5  tcp:b|1.2.3.4=6", " unix:/c=x", "2==udp:d udp:e=-1", "")
    with mi.Trial(lines(*sets, default_set=7, rtpproxy_disable_tout=9)) as trial:
        assert shown(trial) == {2: [("udp:a", 0, 1, 5), ("tcp:b", 1, 1, 6), ("udp:d", 3, 1, 1),
                                    ("udp:e", 4, 1, 2**32 - 1)], 7: [("unix:/c", 2, 1, 0)]}
        assert ask(trial, "rtpproxy_show").count("recheck_ticks=9\n") == 5


@pytest.mark.parametrize("line", ["x == udp:a", "1 ==", " == udp:a", "-1 == udp:a"])
def test_a_set_has_a_number_and_proxies(line):
    with pytest.raises(mi.ConfigError, match="rtpproxy_sock takes"):
        mi.Trial(lines(line))


def test_a_proxy_is_enabled_in_all_sets_or_in_one():
    with mi.Trial(lines("1 == udp:a udp:b", "2 == udp:a")) as trial:
        assert ask(trial, "rtpproxy_enable", "udp:a", "2", "0x1", "ignored") == "200 OK\n\n"
        assert shown(trial) == {1: [("udp:a", 0, 1, 1), ("udp:b", 1, 1, 1)], 2: [("udp:a", 2, 0, 1)]}
        assert rpc(trial, "rtpproxy_enable", url="udp:a", enable=5) == "OK"
        assert [one[2] for ones in shown(trial).values() for one in ones] == [0, 1, 0]
        assert rpc(trial, "rtpproxy_enable", url="udp:a", enable=0, setid=-1) == "OK"
        assert [one[2] for ones in shown(trial).values() for one in ones] == [1, 1, 1]
        assert ask(trial, "rtpproxy_enable", "udp:b", "2", "1") == "404 RTP proxy not found\n\n"


@pytest.mark.parametrize("words, wanted", [
    (("x::",), "400 Bad parameter"), (("udp:a", "0x"), "400 Bad parameter"), (("udp:a", "1", "y"), "400 Bad parameter"),
    (("udp:a", "y", "1"), "400 Bad parameter"), (("UDP:a", "1"), "404 RTP proxy not found"),
    ((), "400 Too few or too many arguments")])
def test_what_is_wrong_is_looked_for_in_the_order_of_the_original(words, wanted):
    with mi.Trial(lines("1 == udp:a")) as trial:
        assert ask(trial, "rtpproxy_enable", *words) == f"{wanted}\n\n"
        assert rpc(trial, "rtpproxy_enable", url="", enable="x", setid="y")[-1] == "Bad type for parameter 'setid'"
        assert rpc(trial, "rtpproxy_enable", url="", enable="x") == (400, "Empty url")
        assert rpc(trial, "rtpproxy_enable", url="udp:a", enable=1, setid=None)[-1] == "Bad type for parameter 'setid'"


def test_without_proxies_none_is_there():
    with mi.Trial(lines()) as trial:
        assert ask(trial, "rtpproxy_show") == "200 OK\n\n"
        assert rpc(trial, "rtpproxy_show") == []
        assert ask(trial, "rtpproxy_enable", "udp:a", "1") == "404 RTP proxy not found\n\n"


def test_an_event_for_each_set_and_states_are_shared_and_survive_a_reload_of_the_configuration(start):
    server = start(lines("1 == udp:a udp:b", "2 == udp:a") + 'modparam("mi_datagram", "children_count", 3)\n')
    listener, clients = subscribed(server, "text", "E_RTPPROXY_STATUS"), [server.client() for _ in range(6)]
    assert clients[0].ask(b":rtpproxy_enable:\nudp:a\n1\n") == b"200 OK\n\n"
    for _ in range(2):
        assert listener.receive() == b"E_RTPPROXY_STATUS\nsocket::udp:a\nstatus::inactive\n\n"
    assert len({client.ask(b":rtpproxy_show:\n") for client in clients}) == 1
    server.reload()
    assert server.ask(b":rtpproxy_show:\n").count(b"disabled=0 weight=1 recheck_ticks=0") == 2
    assert listener.receive(0.1) is None


def table(folder, *rows):
    """A folder with a table of rows."""
    (folder / "version").write_text("table_name(string) table_version(int)\nrtpproxy_sockets:0\n")
    (folder / "rtpproxy_sockets").write_text("\n".join(["id(int,auto) rtpproxy_sock(string) set_id(int)", *rows, ""]))
    return f"text://{folder}"


def test_proxies_of_a_table_stand_in_for_those_of_the_lines(tmp_path):
    """A reload keeps the sets that there were."""
    url = table(tmp_path, "1:udp\\:x=3:2", "2:udp\\:y udp\\:z:1")
    with mi.Trial(lines("1 == udp:a", db_url=url)) as trial:
        assert shown(trial) == {2: [("udp:x", 0, 1, 3)], 1: [("udp:y", 1, 1, 1), ("udp:z", 2, 1, 1)]}
        ask(trial, "rtpproxy_enable", "udp:x", "1")
        table(tmp_path, "1:udp\\:x=3:2")
        assert ask(trial, "rtpproxy_reload") == "200 OK\n\n"
        assert shown(trial) == {2: [("udp:x", 0, 1, 3)], 1: []}
        table(tmp_path, "1:udp\\:z:5", "2:udp\\:y:1")
        assert ask(trial, "rtpproxy_reload") == "200 OK\n\n"
        assert [*shown(trial).items()] == [(2, []), (1, [("udp:y", 1, 1, 1)]), (5, [("udp:z", 0, 1, 1)])]
        table(tmp_path, "1:udp\\:x:y")
        assert ask(trial, "rtpproxy_reload") == "500 Server Internal Error\n\n"
        assert rpc(trial, "rtpproxy_reload") == (500, "Internal error")
        assert [*shown(trial)] == [2, 1, 5]
    with pytest.raises(mi.ConfigError, match="rtpproxy_sockets:2: set_id is 'y'"):
        mi.Trial(lines(db_url=url))


def test_sets_of_a_table_stand_in_the_order_of_its_rows(tmp_path):
    """And a set below 0 means default_set."""
    rows = (f"{number}:udp\\:127.0.0.1\\:780{number}:{set_id}" for number, set_id in enumerate((5, 2, 5, -1, 0), 1))
    with mi.Trial(lines(db_url=table(tmp_path, *rows))) as trial:
        assert [*shown(trial).items()] == [
            (number, [(f"udp:127.0.0.1:780{at + 1}", at, 1, 1) for at in places]) for number, places in (
                (5, (0, 2)), (2, (1,)), (0, (3, 4)))]


def test_pinging_is_refused_unless_there_is_an_interval():
    with mi.Trial('loadmodule "nathelper.so"\n') as trial:
        assert ask(trial, "nh_enable_ping", "x") == "400 NATping disabled from script\n\n"
        assert rpc(trial, "nh_enable_ping") == (400, "NATping disabled from script")


def test_the_names_of_40():
    text = lines("1 == udp:a") + 'loadmodule "nathelper.so"\nmodparam("nathelper", "natping_interval", 60)\n'
    with mi.Trial(f'{text}modparam("midatagram", "imitate", "4.0")\n') as trial:
        assert rpc(trial, "rtpproxy:enable", url="udp:a", enable=1) == "OK"
        assert rpc(trial, "rtpproxy:show")[0]["Nodes"][0]["disabled"] == 0
        assert ask(trial, "rtpproxy:show").startswith("200 OK\nSet:: 1\n\tnode:: udp:a index=0 disabled=0 ")
        assert rpc(trial, "nathelper:enable_ping") == {"Status": 1}
        assert ask(trial, "nathelper:enable_ping") == "200 OK\nStatus:: 1\n\n"


def test_dtmf_can_be_subscribed_to():
    with mi.Trial(lines("1 == udp:a")) as trial:
        assert rpc(trial, "event_subscribe", event="E_RTPPROXY_DTMF", socket="udp:127.0.0.1:9", expire=60) == "OK"
