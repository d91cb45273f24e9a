"""Access: who may ask what, over UDP by network, over UNIX by what the kernel says of the sender."""

import os
import pathlib
import pickle
import re
import shutil
import socket
import tempfile

import pytest
from conftest import PLUGINS, free_port, needs_root, run, wait_for

import midatagram as mi

TROUBLE = ("-p", str(PLUGINS))
UPTIME = b":uptime:\n"
FORBIDDEN = b"403 Forbidden\n\n"
NOBODY, DAEMON = 65534, 1
CLOSED = b"500 command not available\n"


def own(name, value):
    """A modparam line of midatagram."""
    return f'modparam("midatagram", "{name}", "{value}")\n'


@pytest.fixture
def open_folder():
    """A folder that every user can enter."""
    folder = tempfile.mkdtemp(prefix="mi-test-")
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder)


def ask_from(host, port, request=UPTIME, target="127.0.0.1", timeout_s=5.0):
    """The reply to a UDP request that comes from one address of loopback; None when there is none."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.bind((host, 0))
        client.settimeout(timeout_s)
        client.sendto(request, (target, port))
        try:
            return client.recv(1 << 17)
        except TimeoutError:
            return None


def ask_as(uid, gid, groups, place, request):
    """The reply to a UNIX request of another user, asked by a process that has become that user."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        result = None
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
                client.bind("")
                client.settimeout(5)
                client.sendto(request, place)
                result = client.recv(1 << 17)
        except OSError as error:
            result = error
        finally:
            os.write(write, pickle.dumps(result))
            os._exit(0)
    os.close(write)
    with open(read, "rb") as pipe:
        result = pickle.load(pipe)
    os.waitpid(pid, 0)
    assert isinstance(result, bytes), result
    return result


# Networks


def test_allow_from_drops_unread_what_comes_from_elsewhere(start):
    port = free_port()
    server = start(own("listen", f"udp:127.0.0.1:{port}") + own("allow_from", "127.0.0.2/32, 127.9.0.0/16"), *TROUBLE)
    assert ask_from("127.0.0.2", port).startswith(b"200 OK\n")
    assert ask_from("127.9.200.1", port).startswith(b"200 OK\n")
    requests = server.statistic("requests")
    for host in ("127.0.0.1", "127.0.0.1", "127.0.0.3", "127.8.255.255"):
        assert ask_from(host, port, timeout_s=0.1) is None
    assert server.statistic("refused") == 4
    assert server.statistic("requests") == requests + 2  # those that asked for the statistics, over UNIX
    for host, times in (("127.0.0.1", 1), ("127.0.0.3", 1), ("127.8.255.255", 1), ("127.0.0.2", 0)):
        assert server.log.count(f"datagrams from {host} are refused by allow_from") == times


def test_allow_from_with_ipv6(start):
    ports = []
    for networks in ("::1", "fe80::/10, 127.0.0.0/8"):
        ports.append(free_port(socket.AF_INET6))
        start(own("listen", f"udp:[::1]:{ports[-1]}") + own("allow_from", networks), *TROUBLE)
    assert ask_from("::1", ports[0], target="::1").startswith(b"200 OK\n")
    assert ask_from("::1", ports[1], target="::1", timeout_s=0.1) is None


def test_allow_from_knows_ipv4_on_an_ipv6_socket(start):
    port = free_port(socket.AF_INET6)
    start(own("listen", f"udp:[::]:{port}") + own("allow_from", "127.0.0.2"), *TROUBLE)
    assert ask_from("127.0.0.2", port).startswith(b"200 OK\n")
    assert ask_from("127.0.0.1", port, timeout_s=0.1) is None


def test_allow_from_is_not_for_unix_sockets(start):
    server = start(own("allow_from", "10.0.0.0/8"), *TROUBLE)
    assert server.ask(UPTIME).startswith(b"200 OK\n")


@pytest.mark.parametrize("place, allow, warned", [
    ("udp:0.0.0.0:{}", "", True), ("udp:[::]:{}", "", True), ("udp:0.0.0.0:{}", "127.0.0.0/8", False),
    ("udp:127.0.0.1:{}", "", False), ("udp:127.0.0.7:{}", "", False), ("udp:[::1]:{}", "", False),
])
def test_warning_when_bound_beyond_loopback_without_a_list(start, place, allow, warned):
    place = place.format(free_port(socket.AF_INET6 if "[" in place else socket.AF_INET))
    server = start((own("allow_from", allow) if allow else "") + own("listen", place), *TROUBLE)
    warning = f"WARNING:midatagram: {place} can be reached from other machines and allow_from is not set"
    assert (warning in server.log) == warned


@pytest.mark.parametrize("place", ["udp:0.0.0.0:8094", "udp:[::]:8094", "udp:192.0.2.77:8094"])
@pytest.mark.parametrize("way", ["socket_name", "listen", "-s", "-s with -f"])
def test_a_check_warns_of_each_socket_that_others_can_reach(tmp_path, place, way):
    """However it is named; with a list of networks there is nothing to warn of."""
    for allow in ("", own("allow_from", "127.0.0.0/8")):
        path = tmp_path / "c"
        path.write_text(allow + (own("listen", place) if way == "listen" else "") + 'modparam("mi_datagram", "socket_name", "'
                        + (place if way == "socket_name" else f"{tmp_path}/mi.sock") + '")\n')
        done = run("-c", *{"-s": ["-s", place], "-s with -f": ["-f", path, "-s", place]}.get(way, ["-f", path]))
        warned = allow == "" or way == "-s"
        assert done.returncode == 0
        assert (f"WARNING: {place} can be reached from other machines and allow_from is not set" in done.stdout) == warned
        assert ("OK, with the warnings above" in done.stdout) == warned


# Commands


def test_allow_command_by_network(start):
    port = free_port()
    server = start(own("listen", f"udp:127.0.0.1:{port}")
                   + own("allow_command", "uptime, kill: 127.0.0.2, 127.9.0.0/16"), *TROUBLE)
    for host in ("127.0.0.2", "127.9.1.1"):
        assert ask_from(host, port).startswith(b"200 OK\n")
    assert ask_from("127.0.0.1", port) == FORBIDDEN
    assert ask_from("127.0.0.1", port, b":kill:\n") == FORBIDDEN
    assert ask_from("127.0.0.1", port, b":version:\n").startswith(b"200 OK\n")
    assert server.ask(UPTIME) == FORBIDDEN  # a UNIX client is in no network
    assert server.statistic("forbidden") == 3
    audit = r"WARNING:midatagram: audit: command uptime refused to 127\.0\.0\.1:\d+ \(127\.0\.0\.1\)\n"
    assert re.search(audit, server.log)
    assert re.search(r"audit: command kill refused to 127\.0\.0\.1:\d+ ", server.log)
    assert server.process.poll() is None


def test_a_reply_that_one_may_see_is_not_given_to_another(start):
    port = free_port()
    start(own("listen", f"udp:127.0.0.1:{port}") + own("allow_command", "which, uptime: 127.0.0.2"), *TROUBLE)
    for request in (b":which:\n", UPTIME) * 3:  # replies that are kept, and the same bytes each time
        assert ask_from("127.0.0.2", port, request).startswith(b"200 OK\n")
        assert ask_from("127.0.0.1", port, request) == FORBIDDEN


RULES = [
    ("uid:root", (0, 0, []), True),
    ("uid:root", (NOBODY, NOBODY, []), False),
    ("uid:0", (0, 5, []), True),
    ("uid:nobody", (NOBODY, NOBODY, []), True),
    ("uid:nobody", (0, 0, []), False),  # root is no exception: a rule names who may
    ("uid:daemon, uid:65534", (NOBODY, NOBODY, []), True),
    ("gid:daemon", (NOBODY, DAEMON, []), True),
    ("gid:1", (NOBODY, DAEMON, []), True),
    ("gid:daemon", (NOBODY, NOBODY, []), False),
    ("127.0.0.0/8", (0, 0, []), False),
    ("127.0.0.0/8, gid:nogroup", (NOBODY, NOBODY, []), True),
]


@pytest.mark.parametrize("who, client, allowed", RULES)
def test_allow_command_by_user_and_group(start, open_folder, who, client, allowed):
    needs_root()
    server = start('modparam("mi_datagram", "unix_socket_mode", 0666)\n' + own("allow_command", f"uptime: {who}"),
                   *TROUBLE, place=f"{open_folder}/mi.sock")
    reply = ask_as(*client, server.place, UPTIME)
    assert reply.startswith(b"200 OK\n") if allowed else reply == FORBIDDEN
    assert ask_as(*client, server.place, b":version:\n").startswith(b"200 OK\n")
    audit = re.search(r"audit: command uptime refused to @\w+ \(pid (\d+) uid (\d+) gid (\d+)\)\n", server.log)
    assert bool(audit) == (not allowed)
    assert allowed or (int(audit[2]), int(audit[3])) == client[:2]


def test_allow_command_on_each_socket(start, open_folder):
    needs_root()
    second = f"{open_folder}/second.sock"
    server = start(own("listen", f"{second};mode=0666") + own("allow_command", "uptime: uid:nobody")
                   + own("allow_command", "version: uid:root"))
    for place in (server.place, second):
        assert server.ask(UPTIME, place=place) == FORBIDDEN
        assert server.ask(b":version:\n", place=place).startswith(b"200 OK\n")
    assert ask_as(NOBODY, NOBODY, [], second, UPTIME).startswith(b"200 OK\n")
    assert ask_as(NOBODY, NOBODY, [], second, b":version:\n") == FORBIDDEN


def test_unix_mode_keeps_other_users_out(start, open_folder):
    needs_root()
    server = start(place=f"{open_folder}/mi.sock")
    with pytest.raises(AssertionError, match="Permission denied"):
        ask_as(NOBODY, NOBODY, [], server.place, UPTIME)


def test_rule_that_names_nobody_known_is_refused(tmp_path):
    main = f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
    for rule in ("uptime: uid:no_such_user", "uptime: gid:no_such_group", "uptme: uid:root", "uptime: 127.0.0.1/40",
                 "uptime"):
        (tmp_path / "c").write_text(main + own("allow_command", rule))
        done = run("-c", "-f", tmp_path / "c")
        assert done.returncode == 78
        assert f"{tmp_path}/c:2: " in done.stderr, done.stderr
        assert "allow_command" in done.stderr


def test_disabled_commands_are_not_there(start):
    server = start(own("disable", "kill, log_level"), *TROUBLE)
    assert server.ask(b":kill:\n") == server.ask(b":log_level:\n") == CLOSED
    names = server.ask(b":which:\n").split(b"\n")
    assert b"kill" not in names and b"log_level" not in names and b"uptime" in names
    assert server.ask(b":help:\nkill\n") == b"404 unknown MI command\n\n"
    assert server.process.poll() is None


def test_kill_works_where_it_is_not_switched_off(start):
    server = start()
    assert server.ask(b":kill:\n").startswith(b"200 OK\n")
    assert server.process.wait(5) == 0
    assert not os.path.exists(server.place)


# Plug-ins that others could have written


WRITABLE = {
    "file, by all": lambda folder, path: path.chmod(0o646),
    "file, by its group": lambda folder, path: path.chmod(0o664),
    "file, by its owner": lambda folder, path: os.chown(path, NOBODY, 0),
    "folder, by all": lambda folder, path: folder.chmod(0o757),
    "folder, by its group": lambda folder, path: folder.chmod(0o775),
    "folder, by its owner": lambda folder, path: os.chown(folder, NOBODY, 0),
}
SOURCES = {"hello.py": "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\n",
           "hello.conf": "[hi]\nreply = hi\n"}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("kind", WRITABLE)
def test_plug_in_that_others_may_write_is_refused_as_root(tmp_path, kind, name):
    needs_root()
    folder = tmp_path / "plug-ins"
    folder.mkdir(mode=0o755)
    path = folder / name
    path.write_text(SOURCES[name])
    assert run("-c", "-s", tmp_path / "mi.sock", "-p", folder).returncode == 0
    (folder / "ran").unlink(missing_ok=True)
    WRITABLE[kind](folder, path)
    done = run("-s", tmp_path / "mi.sock", "-p", folder)
    assert done.returncode == 78
    wrong = path if kind.startswith("file") else folder
    assert f"{'it' if wrong == path else f'its folder {wrong}'} can be written by others than root" in done.stderr
    assert f"chown root {wrong}; chmod go-w {wrong}" in done.stderr
    assert not (folder / "ran").exists()  # nothing of it was run
    assert not (tmp_path / "mi.sock").exists()


def test_plug_in_that_becomes_writable_is_refused_by_a_reload(start, tmp_path):
    needs_root()
    folder = tmp_path / "plug-ins"
    folder.mkdir()
    path = pathlib.Path(folder / "greet.conf")
    path.write_text("[greet]\nreply = hello\n")
    server = start('loadmodule "greet.so"\n', "-p", str(folder))
    path.write_text("[greet]\nreply = taken over\n")
    path.chmod(0o666)
    server.signal(1)
    server.wait_log("reload refused")
    assert server.ask(b":greet:\n") == b"200 OK\nhello\n\n"
    path.chmod(0o644)
    server.signal(1)
    wait_for(lambda: server.ask(b":greet:\n") == b"200 OK\ntaken over\n\n", what="the new reply")


def test_lists_of_commands_take_patterns():
    lines = own("disable", "cache_*, core:ps") + own("allow_command", "*_statistics: 10.0.0.0/8") + \
        'modparam("mi_datagram", "trace_bwlist", "w: log_*, evi:*")\n'
    with mi.Trial(lines) as trial:
        for name in ("cache_store", "cache:fetch", "ps", "core:ps"):
            assert trial.ask(f":{name}:\n".encode()) == CLOSED
        assert trial.ask(UPTIME).startswith(b"200 OK") and b"\ncache_store\n" not in trial.ask(b":which:\n")
        [[allowed, *_]], (_, traced) = trial.server.setup.own["allow_command"], trial.server.setup.mi["trace_bwlist"]
        assert "reset_statistics" in allowed and "get_statistics" in allowed and "uptime" not in allowed
        assert [name in traced for name in ("log_level", "event_subscribe", "uptime")] == [True, True, False]


def test_a_pattern_that_fits_no_command_is_a_mistake():
    with pytest.raises(mi.ConfigError, match='disable names the command "zz_\\*", which does not exist'):
        mi.Trial(own("disable", "zz_*"))


def test_a_restricted_pattern_of_commands(start, open_folder):
    needs_root()
    server = start(own("allow_command", "*_statistics, cache:*: uid:root"), place=f"{open_folder}/mi.sock")
    os.chmod(server.place, 0o777)
    for request in (b":get_statistics:\nrequests\n", b":statistics:list:\n", b":cache_fetch:\nlocal\nx\n"):
        assert ask_as(NOBODY, NOBODY, [], server.place, request) == FORBIDDEN
        assert server.ask(request) != FORBIDDEN
    assert ask_as(NOBODY, NOBODY, [], server.place, UPTIME).startswith(b"200 OK")


def test_a_lab_does_not_answer_whom_access_lists_refuse(start):
    """Not in a batch either, nor for a command that no plug-in has."""
    needs_root()
    lines = "".join(own("allow_command", f"{name}: uid:{DAEMON}") for name in ("uptime", "dlg_list"))
    server = start('loadmodule "lab.so"\n' + lines)
    for name in ("uptime", "dlg_list", "pwd"):
        assert server.ask(f":lab_reply:\n{name}\nreply::mine\n".encode()).startswith(b"200")
    for request in (UPTIME, b":core:uptime:\n", b":dlg_list:\n"):
        assert server.ask(request) == FORBIDDEN
    batch = b",".join(b'{"jsonrpc":"2.0","method":"%b","id":1}' % name for name in (b"uptime", b"dlg_list", b"pwd"))
    reply = server.ask(b"[%b]" % batch)
    assert reply.count(b'"code":403') == 2 and reply.count(b"mine") == 1
    assert b"mine" in server.ask(b":pwd:\n")
