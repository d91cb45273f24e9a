"""What releases of OpenSIPS call things and how they differ: names of 4.0, `imitate`, and the bytes of single commands."""

import json
import pathlib
import platform
import shutil
import subprocess
import sys
import time

import pytest
from conftest import SCRIPT, run, wait_for
from test_recorded import recordings

import midatagram as mi

DATA = pathlib.Path(__file__).parent / "data"
MAP = json.loads((DATA / "map40.json").read_text())  # full name, name in 3.4, aliases, recipes
IMITATE = 'modparam("midatagram", "imitate", "%s")\n'
MACHINE = f"{platform.machine()}/linux"


def text(*words):
    """A text request."""
    return f":{words[0]}:\n{''.join(word + chr(10) for word in words[1:])}".encode()


def rpc(method, *params):
    """A JSON-RPC request."""
    return json.dumps({"jsonrpc": "2.0", "method": method, **({"params": params} if params else {}), "id": 1}).encode()


def ok(result):
    """The reply with a result."""
    return mi.json_text({"jsonrpc": "2.0", "result": result, "id": 1}).encode()


def error(code, message, **data):
    """The reply with an error."""
    return mi.json_text({"jsonrpc": "2.0", "error": {"code": code, "message": message, **data}, "id": 1}).encode()


@pytest.fixture(params=["midatagram", "2.4", "3.4", "4.0"])
def any_trial(request):
    with mi.Trial(IMITATE % request.param) as trial:
        yield trial


@pytest.fixture
def trial():
    with mi.Trial("") as trial:
        yield trial


@pytest.fixture
def trial40():
    with mi.Trial(IMITATE % "4.0") as trial:
        yield trial


# Names.


def test_every_command_has_the_full_name_of_4_0(any_trial):
    """In both dialects, and whatever is imitated."""
    known = {full: old for full, old, _, _ in MAP}
    ours = {command.name: command.full_name for command in any_trial.server.registry.commands.values()}
    for name, full in ours.items():
        assert known.get(full) in (name, "(new)"), full
        if name not in ("kill", "which", "version"):
            assert any_trial.server.registry.names[full] is any_trial.server.registry.names[name]
    assert {"core:uptime", "statistics:get", "cache:store", "evi:subscribe", "tcp:list"} <= set(ours.values())
    for name in ("core:pwd", "evi:list", "tcp:list", "blacklists:list", "core:xlog_level"):
        old = next(short for short, full in ours.items() if full == name)
        assert any_trial.ask(text(name)) == any_trial.ask(text(old)) != b"500 command not available\n"
        assert any_trial.ask(rpc(name)) == any_trial.ask(rpc(old))
    assert any_trial.ask(text("core:nosuch")) == any_trial.ask(text("Core:pwd")) == b"500 command not available\n"


def test_old_names_work_whatever_is_imitated(any_trial):
    for name in ("pwd", "events_list", "list_tcp_conns"):
        assert any_trial.ask(text(name)).startswith(b"200 OK\n")


@pytest.mark.parametrize("row", recordings("opensips40.jsonl"), ids=lambda row: row["id"])
def test_recorded_from_4_0(trial40, row):
    wanted = row["reply"].replace(b"x86_64/linux", MACHINE.encode())
    assert trial40.ask(row["request"]) == wanted


def test_short_names_that_commands_of_the_core_share_in_4_0(trial40):
    """Also with those that are not here."""
    names = "statistics:get, status_report:get"
    assert trial40.ask(rpc("get")) == error(-32001, "Method ambiguous", data=f"supported names: {names}")
    assert trial40.ask(rpc("which", "get")) == error(404, "unknown MI command")
    with mi.Trial(IMITATE % "4.0" + 'loadmodule "load_balancer.so"') as trial:
        names = "status_report:status, load_balancer:status"
        assert trial.ask(rpc("status")) == error(-32001, "Method ambiguous", data=f"supported names: {names}")


def test_tcp_connections_of_4_0(trial40):
    """There are none, of any protocol that is known; what can be none is refused."""
    for known in ("any", "TCP", "hep_tls"):
        assert trial40.ask(rpc("tcp:list", known)) == ok({"Connections": []})
    for unknown in ("", "none"):
        assert trial40.ask(rpc("tcp:list", unknown)) == error(400, "Bad protocol")
    for good in ("1", "tcp:127.0.0.1:1", "[::1]:5"):
        assert trial40.ask(rpc("tcp:close", good)) == ok(None)
    for bad in ("", ":", "127.0.0.1:x", "-1", "a:b", "host:5", "udp:127.0.0.1:1"):
        assert trial40.ask(rpc("tcp:close", bad)) == error(400, "Bad tcp connection")


def test_chunks_of_an_unknown_collection(trial40):
    failed = error(-32000, "Server error", data="Failed to handle parameter")
    assert trial40.ask(rpc("cachedb_local:fetch_chunk", "*", "no")) == failed
    assert trial40.ask(rpc("cachedb_local:remove_chunk", "*", "no")) == error(500, "Internal error")


def test_events_of_4_0_can_be_subscribed_to():
    with mi.Trial(IMITATE % "4.0" + 'loadmodule "rtpproxy.so"\nloadmodule "uac_registrant.so"') as trial:
        for event in ("E_RTPPROXY_DTMF", "E_REGISTRANT_REGISTERED", "E_REGISTRANT_AUTHENTICATING_UNREGISTER"):
            assert trial.ask(rpc("evi:subscribe", event, "udp:127.0.0.1:5999")) == ok("OK")


def test_short_names_of_4_0(trial40):
    """One that several commands have is refused and says which; a single one is known."""
    names = "statistics:list, tcp:list, evi:list, blacklists:list"
    assert trial40.ask(rpc("list")) == error(-32001, "Method ambiguous", data=f"supported names: {names}")
    assert trial40.ask(text("list")) == b"500 command not available\n"
    assert trial40.ask(rpc("raise", "E_NO")) == error(404, "Event not registered")
    assert b'"cache_store' not in trial40.ask(rpc("which"))


@pytest.mark.parametrize("imitated", ["midatagram", "2.4", "3.4"])
def test_short_names_are_unknown_before_4_0(imitated):
    with mi.Trial(IMITATE % imitated) as trial:
        for name in ("list", "get", "raise"):
            assert trial.ask(rpc(name)) == error(-32601, "Method not found")
        assert b"get_statistics\n" in trial.ask(text("which")) and b"statistics:get" not in trial.ask(text("which"))


def test_which_of_4_0(trial40):
    listed = json.loads(trial40.ask(rpc("which")))["result"]
    assert set(listed) <= {full for full, *_ in MAP} and len(listed) == len(set(listed)) > 20
    events = ["evi:subscribe", "evi:list", "evi:subscribers", "evi:raise"]
    assert json.loads(trial40.ask(rpc("which", "evi:")))["result"] == events
    recipes = {full: recipes for full, _, _, recipes in MAP}
    for name in ("cache:store", "event_subscribe", *events[:1], "cachedb_local:remove_chunk", "cache_fetch_chunk", "core:help"):
        full = next(full for full, old, aliases, _ in MAP if name in (full, old, *aliases))
        assert json.loads(trial40.ask(rpc("which", name)))["result"] == recipes[full], name


@pytest.mark.parametrize("imitated, exported", [("2.4", "core"), ("4.0", "evi")])
def test_help_under_every_name(imitated, exported):
    with mi.Trial(IMITATE % imitated) as trial:
        for name in ("event_subscribe", "evi:subscribe"):
            assert f"Exported by:: {exported}\n" in trial.ask(text("help", name)).decode()


def plugin(folder, name, source):
    """A plug-in in a folder."""
    (folder / f"{name}.py").write_text(f"import midatagram as mi\n{source}\n")


def test_a_plugin_says_its_name_of_4_0(tmp_path):
    plugin(tmp_path, "usrloc", '@mi.command(also="usrloc:add")\ndef ul_add(ctx):\n    "Add."\n    return mi.Reply()\n'
                               '@mi.command\ndef mine(ctx):\n    "Mine."\n    return mi.Reply()\n')
    plugin(tmp_path, "proto_x", '@mi.command("trace")\ndef f(ctx):\n    "Trace."\n    return mi.Reply()\n')
    lines = 'loadmodule "usrloc.so"\nloadmodule "proto_x.so"\n'
    with mi.Trial(lines, str(tmp_path)) as trial:
        for name in ("ul_add", "usrloc:add", "mine", "usrloc:mine", "trace", "x:trace"):
            assert trial.ask(text(name)) == b"200 OK\n\n" and trial.ask(rpc(name)) == ok("OK")
        for name in ("usrloc:ul_add", "usrloc:", "proto_x:trace"):
            assert trial.ask(rpc(name)) == error(-32601, "Method not found")


def test_two_commands_with_one_full_name_are_a_mistake(tmp_path):
    plugin(tmp_path, "twin", '@mi.command(also="core:uptime")\ndef other(ctx):\n    "Other."\n    return mi.Reply()\n')
    with pytest.raises(mi.ConfigError, match='"other" is there already'):
        mi.Trial('loadmodule "twin.so"', str(tmp_path))


@pytest.mark.parametrize("written", ["uptime", "core:uptime"])
def test_disable_and_allow_command_hold_under_every_name(written):
    with mi.Trial(f'{IMITATE % "4.0"}modparam("midatagram", "disable", "{written}")') as trial:
        for name in ("uptime", "core:uptime"):
            assert trial.ask(text(name)) == b"500 command not available\n"
            assert trial.ask(rpc(name)) == error(-32601, "Method not found")


@pytest.mark.parametrize("written", ["uptime", "core:uptime", "pwd, core:uptime"])
def test_allow_command_holds_under_every_name(start, written):
    server = start(f'modparam("midatagram", "allow_command", "{written}: uid:4242")\n')
    for name in ("uptime", "core:uptime"):
        for request in (text(name), rpc(name)):
            assert b"Forbidden" in server.ask(request)
    assert server.ask(text("core:version")).startswith(b"200 OK")


@pytest.mark.parametrize("written, traced", [
    *((text, ("pwd", "core:pwd")) for text in ("w: core:pwd", "w: pwd")),
    *((text, ("version", "core:version")) for text in ("b: pwd", "b: core:pwd")),
    ("w:", ()), ("b:", ("pwd", "core:pwd", "version", "core:version")),
])
def test_trace_bwlist_holds_under_every_name(start, tmp_path, written, traced):
    log = tmp_path / "traces"
    server = start(f'loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{log}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\n'
                   f'modparam("mi_datagram", "trace_bwlist", "{written}")')
    for name in ("pwd", "core:pwd", "version", "core:version"):
        server.ask(text(name))
    server.stop()
    commands = [json.loads(line)["command"] for line in (log.read_text().splitlines() if log.exists() else ())]
    assert tuple(commands) == traced


USRLOC_40 = f'{IMITATE % "4.0"}loadmodule "usrloc.so"\n'
NAMES = ("ul_dump", "usrloc:dump", "dump")
CATCH_ALL = """
@mi.command("*")
def caught(ctx):
    "Answer what no command does."
    return mi.Reply(reason=f"caught {ctx.request.name}", live=mi.CONSTANT)
"""


def in_all_ways(name):
    """The requests for a command: in both dialects, and in a batch."""
    return text(name), rpc(name), b"[%b]" % rpc(name)


@pytest.mark.parametrize("catching", [False, True])
@pytest.mark.parametrize("written", [*NAMES, "d?mp"])
def test_disable_holds_for_a_short_name_too(tmp_path, written, catching):
    plugin(tmp_path, "catching", CATCH_ALL if catching else "")
    lines = f'{USRLOC_40}loadmodule "catching.so"\nmodparam("midatagram", "disable", "{written}")'
    with mi.Trial(lines, str(tmp_path)) as trial:
        for name in NAMES:
            refusal = error(-32601, "Method not found")
            assert [*map(trial.ask, in_all_ways(name))] == [b"500 command not available\n", refusal, b"[%b]" % refusal], name
        assert trial.ask(text("flush")) != b"500 command not available\n"


def test_a_short_name_that_several_have_stands_for_all_of_them():
    with mi.Trial(f'{USRLOC_40}loadmodule "domain.so"\nmodparam("midatagram", "disable", "dump")') as trial:
        for name in (*NAMES, "domain:dump"):
            assert trial.ask(text(name)) == b"500 command not available\n", name
        assert trial.ask(text("domain:reload")) != b"500 command not available\n"


@pytest.mark.parametrize("catching", [False, True])
@pytest.mark.parametrize("written", NAMES)
def test_allow_command_holds_for_a_short_name_too(start, tmp_path, written, catching):
    plugin(tmp_path, "catching", CATCH_ALL if catching else "")
    server = start(f'{USRLOC_40}loadmodule "catching.so"\nmodparam("midatagram", "allow_command", "{written}: uid:4242")\n',
                   "-p", str(tmp_path))
    for name in NAMES:
        for request in in_all_ways(name) * 2:
            assert b"Forbidden" in server.ask(request), request
    server.client().send(b'{"jsonrpc":"2.0","method":"dump"}')
    wait_for(lambda: server.statistic("forbidden") == 19, what="the notification")
    assert b"200 OK" in server.ask(text("core:version"))


def test_access_lists_hold_for_what_a_catch_all_is_asked(start, tmp_path):
    plugin(tmp_path, "catching", CATCH_ALL)
    server = start('loadmodule "catching.so"\nmodparam("midatagram", "disable", "off, o?f")\n'
                   'modparam("midatagram", "allow_command", "ul_*: uid:4242")\n', "-p", str(tmp_path))
    for _ in range(3):  # from the third time on requests are cached
        assert server.ask(text("off")) == server.ask(text("oaf")) == b"500 command not available\n"
        assert b"Method not found" in server.ask(rpc("off"))
        assert server.ask(text("ul_x")) == b"403 Forbidden\n\n" and b"Forbidden" in server.ask(b"[%b]" % rpc("ul_x"))
        assert server.ask(text("other")) == b"200 caught other\n\n"
    assert "audit: command ul_x refused to" in server.log


@pytest.mark.parametrize("written, traced", [
    ("w: dump", True), ("w: usrloc:dump", True), ("b: dump", False), ("b: ul_dump", False)])
def test_trace_bwlist_holds_for_a_short_name_too(start, tmp_path, written, traced):
    log = tmp_path / "traces"
    server = start(f'{USRLOC_40}loadmodule "trace_file.so"\nmodparam("trace_file", "path", "{log}")\n'
                   'modparam("mi_datagram", "trace_destination", "trace_file")\n'
                   f'modparam("mi_datagram", "trace_bwlist", "{written}")')
    for name in (*NAMES, "version", "core:version", "uptime"):
        server.ask(text(name))
    server.stop()
    lines = log.read_text().splitlines()
    assert len(lines) == 3 and all(("dump" in line) == traced for line in lines)


def test_around_holds_under_every_name(tmp_path):
    plugin(tmp_path, "mute", '@mi.around("pwd")\ndef mute(ctx, request, proceed):\n    return mi.Answer([], [])\n')
    with mi.Trial('loadmodule "mute.so"', str(tmp_path)) as trial:
        assert [trial.ask(request) for request in (text("pwd"), text("core:pwd"), rpc("core:pwd"))] == [b""] * 3
        assert trial.ask(text("core:version"))


def test_around_holds_for_what_is_cached(start, tmp_path):
    plugin(tmp_path, "mute", '@mi.around("version")\ndef mute(ctx, request, proceed):\n    proceed()\n'
                             '    return mi.Answer([], [])\n')
    server = start('loadmodule "mute.so"', "-p", str(tmp_path))
    client = server.client()
    for _ in range(4):
        client.send(text("core:version"))
        client.send(text("version"))
    assert client.ask(text("pwd")).startswith(b"200 OK\nWD::")


def test_the_client_asks_by_every_name(start):
    server = start()
    for name in ("uptime", "core:uptime"):
        for more in ((), ("--json",)):
            done = run("call", "-s", server.place, *more, name)
            assert done.returncode == 0 and "Up since" in done.stdout, done.stderr
    done = run("call", "-s", server.place, "core:nosuch")
    assert done.returncode == 1 and done.stdout == "500 command not available\n"


# What imitate changes.


@pytest.mark.parametrize("line, shown", [
    ("", f"midatagram ({mi.__version__} ({MACHINE}))"), (IMITATE % "2.4", f"OpenSIPS (2.4.11 ({MACHINE}))"),
    (IMITATE % "3.4", f"OpenSIPS (3.4.18 ({MACHINE}))"), (IMITATE % "4.0", f"OpenSIPS (4.0.1 ({MACHINE}))"),
    (IMITATE % "4.0" + 'modparam("midatagram", "version_text", "OpenSIPS (3.1.0 (arm/linux))")', "OpenSIPS (3.1.0 (arm/linux))"),
])
def test_version(line, shown):
    with mi.Trial(line) as trial:
        assert trial.ask(text("version")) == f"200 OK\nServer:: {shown}\n\n".encode()


def test_imitate_takes_releases_only(tmp_path):
    with pytest.raises(mi.ConfigError, match="takes one of midatagram, 2.4, 3.4, 4.0"):
        mi.Trial(IMITATE % "3.9")


@pytest.mark.parametrize("lines, value", [
    ("", b"0"), (IMITATE % "3.4", b"0"), (IMITATE % "4.0", b"1"),
    (IMITATE % "4.0" + 'modparam("usrloc", "use_domain", 0)', b"0")])
def test_defaults_that_changed(tmp_path, lines, value):
    plugin(tmp_path, "usrloc", 'PARAMS = [mi.Param("use_domain", 0, mi.integer(0, 1), "AORs have a domain")]\n'
                               '@mi.command\ndef domain(ctx):\n    "Show."\n    return [ctx.param("use_domain")]\n')
    with mi.Trial(f'loadmodule "usrloc.so"\n{lines}', str(tmp_path)) as trial:
        assert trial.ask(text("domain")) == b"200 OK\n" + value + b"\n\n"


def test_a_script_alone_names_the_plugin_that_imitates(tmp_path):
    (tmp_path / "c").write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n' + IMITATE % "3.4")
    done = subprocess.run([sys.executable, shutil.copy(SCRIPT, tmp_path), "-c", "-f", tmp_path / "c"],
                          capture_output=True, text=True, timeout=20)
    assert done.returncode == 78 and "to imitate, releases.py is needed in" in done.stderr


ALONE = """
import midatagram as mi
for data in (rb'["\\ud83d\\ude00"]', b'["\\x01"] x', b"[1,]", b'["a', b"[0x1]", b"[" * 9999 + b"]" * 9999):
    try:
        print(ascii(mi.read_json(data)))
    except mi.ParseError:
        print("refused")
"""


def test_a_script_alone_reads_what_the_standard_library_reads(tmp_path):
    """Without the plug-in cjson; with it, what OpenSIPS 3.x takes is taken, see test_jsonrpc_beyond.py."""
    shutil.copy(SCRIPT, tmp_path)
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, capture_output=True, text=True, timeout=20)
    lines = done.stdout.split("\n")
    assert (lines[0], lines[1], lines[2:5]) == (r"['\U0001f600']", r"['\x01']", ["refused"] * 3), done.stderr


def test_the_table_of_releases_is_documented():
    documented = (pathlib.Path(mi.__file__).parent / "docs" / "configuration.md").read_text()
    for name, release in mi.shared("releases").RELEASES.items():
        assert f"| `{name}` | " in documented and release.version in documented


# Bytes.




def test_subscribers_list_looks_up_the_event_first(trial):
    assert trial.ask(text("subscribers_list", "E_NO", "a", "b", "c")) == b"404 Event not published\n\n"
    for more in (["b"], ["b", "c"]):
        assert trial.ask(text("subscribers_list", "E_MI_STOP", "a", *more)) == b"400 Too few or too many arguments\n\n"
    assert trial.ask(text("subscribers_list", "E_MI_STOP", "a")) == b"404 Subscriber does not exist\n\n"


def test_an_empty_method_is_one_that_is_not_found(trial):
    assert trial.ask(rpc("")) == error(-32601, "Method not found")
    assert trial.ask(b'{"jsonrpc":"2.0","method":""}') == b""
    assert trial.ask(b'{"jsonrpc":"2.0","id":1}') == error(-32600, "Invalid Request")


def test_unknown_statistics_alone(trial):
    for name in ("nosuch", "nosuch:", "5", ":"):
        for _ in range(3):
            assert trial.ask(rpc("get_statistics", [name])) == trial.ask(rpc("list_statistics", [name])) == ok({})
        for command in ("get_statistics", "list_statistics", "reset_statistics"):
            assert trial.ask(text(command, name)) == b"404 Statistics Not Found\n\n"
        assert trial.ask(rpc("reset_statistics", [name])) == error(404, "Statistics Not Found")
    assert trial.ask(rpc("get_statistics", ["nosuch", "store_errors"])) == ok({"mi_datagram:store_errors": 0})


def test_cache_fetch_chunk():
    with mi.Trial('modparam("cachedb_local", "cache_collections", "c1")\n'
                  'modparam("cachedb_local", "cachedb_url", "local:one:///c1")') as trial:
        for number in range(60):
            trial.ask(text("cache_store", "local", f"k{number:02}", f"v{number}"))
        trial.ask(text("cache_store", "local", "other", "x"))
        trial.ask(text("cache_store", "local", "gone", "x", "1"))
        trial.ask(text("cache_store", "local:one", "k", "in c1"))
        trial.ask(text("cache_remove", "local", "k59"))
        whole = {"keys": [{"name": f"k{number:02}", "value": f"v{number}"} for number in range(59)]}
        assert trial.ask(rpc("cache_fetch_chunk", "k*")) == ok(whole)
        assert trial.ask(rpc("cachedb_local:fetch_chunk", "k*", "default")) == ok(whole)
        assert trial.ask(text("cache_fetch_chunk", "k0[12]")) == b"200 OK\nkey:: k01 value=v1\nkey:: k02 value=v2\n\n"
        assert trial.ask(rpc("cache_fetch_chunk", "*", "c1")) == ok({"keys": [{"name": "k", "value": "in c1"}]})
        assert trial.ask(rpc("cache_fetch_chunk", "nosuch*")) == ok({"keys": []})
        assert trial.ask(text("cache_fetch_chunk", "*", "c9")) == b"500 Server Internal Error\n\n"
        assert trial.ask(text("cache_fetch_chunk", "x" * 257)).startswith(b"400 Pattern longer")
        time.sleep(1.1)  # until what was stored for a second has expired
        assert trial.ask(rpc("cache_fetch_chunk", "gone")) == ok({"keys": []})


def test_cache_fetch_chunk_of_too_much():
    with mi.Trial("") as trial:
        for number in range(10):
            trial.ask(text("cache_store", "local", f"k{number}", "x" * 60000))
        assert trial.ask(text("cache_fetch_chunk", "*")).startswith(b"500 reply of more than 261828 bytes exceeds")
        assert trial.ask(text("cache_fetch_chunk", "k1")).startswith(b"200 OK\nkey:: k1 value=xxx")


def test_a_text_client_ends_its_subscription(tmp_path, start):
    """An expiry of 0: an event of the same second still comes, later ones do not, and the next one removes the row."""
    import socket

    server = start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        place = f"udp:127.0.0.1:{sock.getsockname()[1]}"
        assert server.ask(text("event_subscribe", "E_MI_RELOAD", place)) == b"200 OK\n\n"
        for _ in range(5):  # a second may end between the two requests
            now_s = time.monotonic()
            assert server.ask(text("event_subscribe", "E_MI_RELOAD", place, "0")) == b"200 OK\n\n"
            shown = server.ask(text("subscribers_list", "E_MI_RELOAD"))
            assert shown == f"200 OK\nEvent:: E_MI_RELOAD id=1\n\tSubscriber::  socket={place} expire=0\n\n".encode()
            reply = server.ask(text("raise_event", "E_MI_RELOAD", "n::1"))
            if int(time.monotonic()) == int(now_s):
                break
        assert (reply, sock.recv(999)) == (b"200 OK\n\n", b"E_MI_RELOAD\nn::1\n\n")
        second = int(time.monotonic())
        while int(time.monotonic()) == second:
            time.sleep(0.01)
        assert server.ask(text("raise_event", "E_MI_RELOAD", "n::2")) == b"480 Temporarily Unavailable\n\n"
        assert server.ask(text("subscribers_list", "E_MI_RELOAD")) == b"200 OK\n\n"
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(999)
