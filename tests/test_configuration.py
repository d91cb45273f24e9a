"""opensips.cfg as it is written: tokens, directives, and what a mistake is told."""

import json
import logging
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from conftest import PLUGINS, ROOT, SCRIPT, START_S, STOP_S, free_port, needs_root, run, wait_for

import midatagram as mi

WHOLE = r'''
####### Global Parameters #########
log_level=3   /* levels: -3 /* nested */ ... 4 */
log_stderror=yes
children=4
listen=udp:127.0.0.1:5060   # CUSTOMIZE ME
alias="example.com:5060"
mpath="/usr/lib/x86_64-linux-gnu/opensips/modules/"
loadmodule "signaling.so"
loadmodule "maxfwd.so"
modparam("maxfwd", "max_limit", 5)
loadmodule "mi_datagrm.so"
loadmodule "mi_datagram.so"
modparam("mi_datagram", "socket_name",
    "{path}")
modparam("mi_datagram|maxfwd", "children_count", 0x2)
route{
    if (!mf_process_maxfwd_header(10)) { send_reply(483, "Too Many } Hops"); exit; }
    # modparam("mi_datagram", "children_count", 7)
    log_level = 4;
}
onreply_route[handle_nat] {
    xlog("incoming reply\n");
}
'''


def read(text, **files):
    """The directives of a configuration, and of the files it includes."""
    return mi.ConfigReader({"main": text, **files}.get).read("main")


@pytest.mark.parametrize("written, value", [
    (r'"a\tb\n\"\\"', 'a\tb\n"\\'), (r'"\x41\x4a\101\06"', "AJA\x06"), (r'"\q\b\7"', r"\q\b\7"), (r'"a\
b"', "ab"), ('"a\nb"', "a\nb"), (r"'a\tb'", r"a\tb"), (r'"cut\x00here"', "cut"), ("0660", 0o660), ("0x1F", 31), ("- 5", -5),
    ("+7", 7), ("yes", 1), ("disable", 0), ('"-"', "-"), ('"+"', "+"), ("'-'", "-"), ('"yes"', "yes"), ('""', ""),
    ("+ 0x10", 16), ("0", 0), ("2147483647", 2147483647), (r'"\x4"', "\x04"), (r'"\x"', r"\x"), (r'"\0"', r"\0"),
    (r"""'"'""", '"'),
    ('"$var @ ; //"', "$var @ ; //"), ('"a\r\nb"', "a\r\nb"), ("'cut\0here'", "cut"),
    ('"# no comment /* nor this */"', "# no comment /* nor this */"),
])
def test_values(written, value):
    assert read(f'modparam("m", "p", {written})')[0].args == ("m", "p", value)


@pytest.mark.parametrize("text, line, wanted", [
    ('modparam("m", "p", 0890)', 1, "not an integer"),
    ('modparam("m", "p", 0988)', 1, "below 2^31); after a first 0, which means octal, come digits from 0 to 7"),
    ('modparam("m", "p", Yes)', 1, 'did you mean "yes"?'), ('modparam("m":"p":1)', 1, 'expected ",", found ":"'),
    ('log_level: 3', 1, 'expected "=", found ":"'), ('modparam("m", "p", 4294967296)', 1, "below 2^31"),
    ('\nmodparam("m", "p" 1)', 2, 'expected ","'), ('modparam("m", "p", word)', 1, "neither in quotes nor an integer"),
    ('loadmodule "x', 1, "no closing"), ("/* never\nclosed", 1, "no closing */"), ("\n\nroute {\n {\n}", 3, "no closing"),
    ("log_level 3", 1, "the form is log_level=VALUE"), ("log_stderror=maybe", 1, "neither in quotes nor an integer"),
    ("}", 1, 'without its "{"'), ('loadmodule ("x.so")', 1, 'the form is loadmodule "NAME.so"'),
    ('modparam("m", unix_socket_mode, 660)', 1, 'expected "PARAMETER", found unix_socket_mode, which has no straight quotes; the '
                                                'form is modparam("MODULE", "PARAMETER", VALUE)'),
    ('\nmodparam(\u201cm\u201d, \u201cp\u201d, 1)', 2, 'expected "MODULE", found m, which has no straight quotes'),
    ("loadmodule tm.so", 1, 'expected "NAME.so", found tm, which has no straight quotes'),
    ('include_file "missing"', 1, "import_file would pass over"), ('include_file "main"', 1, "more than 10 deep"),
])
def test_mistakes_name_line_and_form(text, line, wanted):
    with pytest.raises(mi.ConfigError) as caught:
        read(text)
    assert caught.value.line == line and wanted in caught.value.message


def test_included_files_are_read_in_place_and_named_in_mistakes():
    found = read('mpath="a"\nimport_file "missing"\ninclude_file "other"\nmpath="c"', other='mpath="b"')
    assert [(directive.args[0], directive.path) for directive in found] == [("a", "main"), ("b", "other"), ("c", "main")]
    with pytest.raises(mi.ConfigError, match="other:2"):
        read('include_file "other"', other='\nmodparam(1')


@pytest.mark.parametrize("word", ["include_file", "import_file"])
def test_an_included_fifo_is_a_mistake_and_holds_nothing_up(tmp_path, word):
    os.mkfifo(tmp_path / "more")
    for name in (f"{tmp_path}/more", "more"):
        (tmp_path / "c").write_text(f'{word} "{name}"\n')
        done = run("-c", "-f", tmp_path / "c", "-s", tmp_path / "mi.sock", timeout_s=10)
        assert (done.returncode, done.stderr) == (78, f"midatagram: {tmp_path}/more: cannot be read by uid {os.geteuid()}: "
                                                  'no regular file, as include_file "FILE" takes one\n')


def test_a_configuration_may_be_a_pipe(tmp_path):
    """As a shell makes one of `-f <(command)`."""
    done = subprocess.run(["bash", "-c", '"$@" -c -f <(sleep 0.1; echo log_level=2)', "bash", sys.executable, str(SCRIPT), "-s",
                           str(tmp_path / "mi.sock")], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(": OK\n")


def test_a_whole_opensips_cfg(start, tmp_path):
    path = tmp_path / "mi.sock"
    server = start(WHOLE.replace("{path}", str(path)), place=str(path))
    assert len(server.children()) == 2
    for line, text in ((5, "children: passed over"), (6, "listen: not opened here"), (9, "module signaling has no plug-in"),
                       (17, "route: passed over"), (22, "onreply_route: passed over")):
        assert server.log.count(f"INFO:midatagram: {server.config_path}:{line}: {text}") == 1, text
    assert server.log.count('WARNING:midatagram:') == 1
    assert 'mi_datagrm has no plug-in here, passed over; did you mean "mi_datagram"?' in server.log
    assert "module maxfwd has" in server.log and "modparam for maxfwd" not in server.log


@pytest.mark.parametrize("written, mark", [
    ("{}?;", ";"), ("{};", ";"), ("{}:", ":"), ("{}\n: what\nlog_level=3", ":"), ("{}\n)", ")"), ("{}, 5", ","), ("{}}", None),
])
def test_a_stray_mark_is_named(tmp_path, written, mark):
    """As in OpenSIPS a question mark is a blank, and any other mark a mistake, which harms nobody here."""
    path = tmp_path / "stray.cfg"
    path.write_text(written.replace("{}", f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")'))
    done = run("-c", "-f", path)
    line = 1 + written.startswith("{}\n")
    if mark is None:
        assert done.returncode == 78 and done.stderr.endswith(':1: a "}" without its "{"\n')
    else:
        assert (done.returncode, done.stdout) == (
            0, f'WARNING: {path}:{line}: stray "{mark}", passed over; nothing ends a statement but the next one\n'
               f"{path}: OK, with the warnings above\n")


@pytest.mark.parametrize("text, line, wanted", [
    ('modparam("mi_datagram", "sokcet_name", "/tmp/x")', 1, 'did you mean "socket_name"?'),
    ('loadmodule "hello.so"\nmodparam("hello", "x", 1)', 2, 'parameter "x" not found in module hello; it has greeting'),
    ('\n\nmodparam("mi_datagram", "children_count", "many")', 3,
     'modparam("mi_datagram", "children_count", "many"): children_count takes an integer from 1 to 128'),
    ('modparam("mi_datagram", "children_count", 0x0)', 1, '"children_count", 0x0): children_count takes'),
    ('modparam("mi_datagram", "children_count", 0)', 1, "from 1"),
    ('modparam("mi_datagram", "socket_name", 7)', 1, "udp:HOST:PORT"),
    ('modparam("mi_datagram", "socket_name", "udp:127.0.0.1:80")', 1, "from 1024 to 65535, as in OpenSIPS"),
    ('modparam("mi_datagram", "socket_name", "udp:127.0.0.1")', 1, "needs a host and a port"),
    (f'modparam("mi_datagram", "socket_name", "/{"x" * 107}")', 1, "108 bytes"),
    ('modparam("mi_datagram", "unix_socket_mode", "rw")', 1, "in octal, without quotes: 0660"),
    ('modparam("mi_datagram", "unix_socket_mode", "0660")', 1, "in octal, without quotes: 0660"),
    ('modparam("mi_datagram", "pretty_printing", "maybe")', 1, "pretty_printing takes yes or no (1 or 0)"),
    ('modparam("mi_datagram", "pretty_printing", 2)', 1, "pretty_printing takes yes or no (1 or 0)"),
    ('modparam("mi_datagram", "trace_bwlist", "x: ps")', 1, '"w: NAME, NAME"'),
    ('modparam("mi_datagram", "trace_bwlist", "b: nosuch")', 1, 'names the command "nosuch"'),
    ('modparam("midatagram", "allow_from", "10.0.0.0/33")', 1, "takes networks"),
    ('modparam("midatagram", "disable", "kil")', 1, 'did you mean "kill"?'),
    ('modparam("hello", "greeting", "x")', 1, 'put loadmodule "hello.so" before'),
    ('loadmodule "nosuch"', 1, 'no plug-in "nosuch"'), ('loadmodule "hello.py"\nloadmodule "hello.so"', 2, "loaded already"),
    ('log_facility=LOG_NOWHERE', 1, "LOG_DAEMON"),
])
def test_a_mistake_ends_the_start_with_one_line(tmp_path, text, line, wanted):
    path = tmp_path / "bad.cfg"
    good = "" if "socket_name" in text else f'\nmodparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")'
    path.write_text(text + good)
    for arguments in ((), ("-c",)):
        done = run("-f", path, *arguments)
        assert done.returncode == 78
        assert done.stderr.startswith(f"midatagram: {path}:{line}: ") and done.stderr.count("\n") == 1
        assert wanted in done.stderr
    assert not (tmp_path / "mi.sock").exists()


@pytest.mark.parametrize("line, wanted", [
    ('modparam("mi_datagram", "unix_socket_user", "no-such-user")', 'no user "no-such-user"'),
    ('modparam("mi_datagram", "unix_socket_group", "no-such-group")', 'no group "no-such-group"'),
    ('modparam("midatagram", "listen", "udp:no-such-host.invalid:8080")', "no such host"),
    ('modparam("midatagram", "allow_command", "kill: uid:no-such-user")', 'no user "no-such-user"'),
])
def test_c_checks_what_only_the_system_knows(tmp_path, line, wanted):
    path = tmp_path / "bad.cfg"
    path.write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n{line}')
    done = run("-c", "-f", path)
    assert done.returncode == 78 and done.stderr.startswith(f"midatagram: {path}:2: ") and wanted in done.stderr


def test_a_mistake_on_the_command_line_shows_no_modparam():
    done = run("-s", "udp:127.0.0.1:80")
    assert (done.returncode, done.stderr) == (
        78, 'midatagram: -s: "udp:127.0.0.1:80": socket_name port must be a number from 1024 to 65535, as in OpenSIPS, '
            'not 80: udp:127.0.0.1:8080\n')


def test_no_socket_is_a_mistake(tmp_path):
    path = tmp_path / "empty.cfg"
    path.write_text("# nothing\n")
    done = run("-f", path)
    assert done.returncode == 78 and "no socket" in done.stderr


@pytest.mark.parametrize("line, hint", [
    ('modparam("mi_datagramm", "socket_name", "/run/x")',
     'modparam for mi_datagramm, which has no plug-in here, passed over; did you mean "mi_datagram"?'),
    ('modparm("mi_datagram", "socket_name", "/run/x")',
     'modparm: passed over, it is not for midatagram; did you mean "modparam"?'),
])
def test_no_socket_for_a_misspelt_line_names_it(tmp_path, line, hint):
    path = tmp_path / "odd.cfg"
    path.write_text(f"log_levle=3\n{line}\n")
    for arguments in ((), ("-c",)):
        done = run("-f", path, *arguments)
        assert done.returncode == 78 and done.stderr.startswith(f"midatagram: {path}: no socket: ")
        assert done.stderr.endswith(f" is needed; {path}:2: {hint}\n")


@pytest.mark.parametrize("options, owner", [
    ("user=root;group=5", (0, 5)), ("user=root", (0, 0)), ("user=7", (7, 2)), ("group=root", (9, 0)), ("group=-1", (9, 2)),
])
def test_the_owners_of_a_listener(options, owner):
    """A user by name brings its group, unless a group is set; what the line lacks is as unix_socket_* say."""
    module = next(module for module in mi.built_in_modules() if module.name == "mi_datagram")
    module.set("unix_socket_user", 9, "f", 1)
    if "root" not in options:
        module.set("unix_socket_group", 2, "f", 2)
    place = mi.place_of(mi.listener(f"/run/mi.sock;{options}"), ("f", 3), module)
    assert (place.uid, place.gid) == owner


def test_a_rule_for_an_unknown_command_is_named_by_its_line(tmp_path):
    path = tmp_path / "bad.cfg"
    rules = ["kill: uid:root", "kil: uid:root", "ps: uid:root"]
    path.write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                    + "\n".join(f'modparam("midatagram", "allow_command", "{rule}")' for rule in rules))
    done = run("-c", "-f", path)
    assert done.returncode == 78 and done.stderr.startswith(f'midatagram: {path}:3: allow_command names the command "kil"')


# A whole opensips.cfg, really.


def trial(lines, *folders):
    """What a configuration is: the notes of the start as text, and its Setup."""
    with mi.Trial(lines, *folders) as it:
        notes = [f"{logging.getLevelName(level)} {text}" for level, text in it.server.setup.notes]
        return [note for note in notes if not note.startswith("INFO")], it


def known_parameters():
    """Each parameter that a release gives to a module we stand for: module, parameter, kind."""
    lines = (pathlib.Path(__file__).parent / "data" / "modparams.tsv").read_text().splitlines()
    return [line.split("\t") for line in lines if not line.startswith("#")]


VALUES = {"cachedb_url": '"local://"', "trace_bwlist": '"b: ps"', "socket_name": '"/run/x.sock"', "variable": '"calls"',
          "unix_socket_user": '"root"', "unix_socket_group": '"root"', "hep_id": '"[x]127.0.0.1:9060"', "trace_destination": '""',
          "unix_socket_mode": "0600", "compressed_payload": "0"}


@pytest.mark.parametrize("module, name, kind", known_parameters())
def test_every_parameter_of_every_release_is_accepted(module, name, kind):
    value = VALUES.get(name, '"default"' if kind == "string" else "1")
    notes, _ = trial(f'loadmodule "{module}.so"\nmodparam("{module}", "{name}", {value})\n')
    assert [note for note in notes if "drops that" not in note] == []
    documented = (ROOT / "docs" / "configuration.md").read_text().partition(f"\n## {module}\n")[2].partition("\n## ")[0]
    assert re.search(rf"^(\| |Accepted without effect[^:]*: .*)`{name}`", documented, re.M)


MANUAL = '''
modparam("mi_datagram", "socket_name", "{path}")
modparam("mi_datagram", "children_count", 3)
modparam("mi_datagram", "unix_socket_mode", 0600)
modparam("mi_datagram", "unix_socket_group", 0)
modparam("mi_datagram", "unix_socket_group", "root")
modparam("mi_datagram", "unix_socket_user", 0)
modparam("mi_datagram", "unix_socket_user", "root")
modparam("mi_datagram", "socket_timeout", 2000)
modparam("mi_datagram", "reply_indent", "    ")
modparam("mi_datagram", "pretty_printing", 1)
modparam("mi_datagram", "socket_buf_size", 8192)
modparam("mi_datagram", "trace_bwlist", "b: ps, which")
modparam("mi_datagram", "trace_bwlist", "w: sip_trace")
modparam("proto_hep", "trace_destination", "[hep_dest]10.0.0.2;transport=tcp;version=3")
modparam("mi_datagram", "trace_destination", "hep_dest")
'''.strip().splitlines()


@pytest.mark.parametrize("line", [*MANUAL, 'modparam("mi_datagram", "socket_name", "udp:127.0.0.1:{port}")', "\n".join(MANUAL)])
def test_the_manuals_own_lines(start, tmp_path, line):
    needs_root()
    line = line.replace("{path}", str(tmp_path / "mi.sock")).replace("{port}", str(free_port()))
    if '"trace_destination"' in line and "[hep_dest]" not in line:
        line = MANUAL[-2] + "\n" + line
    place = re.search(r'"(udp:[^"]+)"', line)
    place = place[1] if place else str(tmp_path / "mi.sock") if "socket_name" in line else None
    server = start('loadmodule "proto_hep.so"\n' + line, place=place)
    assert server.ask(b":which:\n").startswith(b"200 OK\n")
    assert server.log.count("WARNING") == ("sip_trace" in line) and "ERROR" not in server.log


@pytest.mark.parametrize("line, wanted", [
    ('modparam("mi_datagram", "trace_bwlist", "w: %s")', 'WARNING trial:1: trace_bwlist names the command "%s"'),
    ('modparam("midatagram", "disable", "%s")', 'WARNING trial:1: disable names the command "%s"'),
    ('modparam("midatagram", "allow_command", "%s: 127.0.0.1")', 'WARNING trial:1: allow_command names the command "%s"'),
])
@pytest.mark.parametrize("name", ["sip_trace", "ul_dump", "usrloc:dump", "nh_enable_ping", "mem_shm_dump", "dlg_list"])
def test_a_command_of_opensips_that_no_plugin_has(line, wanted, name):
    notes, _ = trial(line % name)
    assert notes == [f"{wanted % name}; no plug-in here has it"]
    with pytest.raises(mi.ConfigError, match=f'names the command "{name}x", which does not exist'):
        trial(line % f"{name}x")


def test_without_the_list_of_names_a_copied_script_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(mi, "NAMES_FILE", str(tmp_path / "none"))
    notes, _ = trial('loadmodule "tm.so"\nloadmodule "mi_datagrm.so"\n'
                     'modparam("mi_datagram", "trace_bwlist", "w: sip_trace, psx")')
    assert [note.partition(", passed over")[0] for note in notes] == [
        "WARNING trial:2: module mi_datagrm has no plug-in here",
        'WARNING trial:3: trace_bwlist names the command "sip_trace"; no plug-in here has it',
        'WARNING trial:3: trace_bwlist names the command "psx"; no plug-in here has it']


@pytest.mark.parametrize("url, system", [
    ("local://", "local"), ("local:///c1", "local"), ("local:two:///c1", "local:two"), ("local:two://", "local:two"),
    ("local:g-1.x://host/c1", "local:g-1.x")])
def test_cachedb_url_in_all_its_forms(url, system):
    with mi.Trial('modparam("cachedb_local", "cache_collections", "c1/r; c2/r = 5")\n'
                  f'modparam("cachedb_local", "cachedb_url", "{url}")') as it:
        assert it.ask(b":cache_store:\n%s\nk\nv\n" % system.encode()) == b"200 OK\n\n"
        collection = b"c1" if url.endswith("c1") else b"default"
        for name in (b"default", b"c1", b"c2"):
            assert (b"k value=v" in it.ask(b":cache_fetch_chunk:\nk\n%s\n" % name)) == (name == collection)


@pytest.mark.parametrize("size", [1000, 200000])
def test_socket_buf_size_limits_requests_and_replies(start, size):
    server = start(f'loadmodule "mi_echo.so"\nmodparam("mi_datagram", "socket_buf_size", {size})\n', "-p", str(PLUGINS))
    head = b":count:\n"
    client = server.client()
    for _ in range(3):
        assert b"value_bytes:: %d\n" % (size - len(head)) in client.ask(head + b"x" * (size - len(head)))
        assert client.ask(head + b"x" * (size + 1 - len(head))) == b"400 request of %d bytes exceeds %d\n" % (size + 1, size)
        assert len(client.ask(b":big:\n%d\n" % (size - 9))) == size
        assert client.ask(b":big:\n%d\n" % (size - 8)) == b"500 reply of %d bytes exceeds %d\n" % (size + 1, size)
        assert len(client.ask(b'{"jsonrpc":"2.0","method":"big","params":["%d"],"id":""}' % (size - 40))) > size - 40
        assert client.ask(b'{"jsonrpc":"2.0","method":"big","params":["%d"],"id":""}' % size) == b"500 Internal error"
        assert client.ask(b":get_statistics:\nall\n").endswith(b" bytes exceeds 1000\n") == (size == 1000)  # a live reply


@pytest.mark.parametrize("size", ["0", "-5"])
def test_a_socket_buf_size_that_is_none(size):
    notes, it = trial(f'modparam("mi_datagram", "socket_buf_size", {size})')
    assert notes == ["WARNING trial:1: socket_buf_size is to be above 0; it is 65457"] and it.server.setup.most == 65457


def test_what_udp_cannot_carry_is_no_limit(start):
    server = start('modparam("mi_datagram", "socket_buf_size", 200000)\nloadmodule "mi_echo.so"', "-p", str(PLUGINS),
                   place=f"udp:127.0.0.1:{free_port()}")
    assert server.ask(b":big:\n70000\n") == b"500 reply of 70009 bytes exceeds 65507\n"


def test_patterns_match_modules_loaded_so_far(tmp_path):
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text('import midatagram as mi\nPARAMS = [mi.Param("children_count", 0, mi.integer())]\n')
    notes, it = trial('loadmodule "one.so"\nmodparam(".*", "children_count", 2)\nloadmodule "two.so"', str(tmp_path))
    modules = it.server.registry.modules_by_name
    assert notes == []
    assert [modules[name].settings["children_count"] for name in ("mi_datagram", "one", "two")] == [2, 2, 0]
    with pytest.raises(mi.ConfigError, match='"children_count" not found in module cachedb_local'):
        trial('loadmodule "cachedb_local.so"\nmodparam("mi_.*|cache.*", "children_count", 2)')
    assert trial('modparam("MI_Datagram", "children_count", 2)\nmodparam("CacheDB_Local", "cache_table_size", 9)')[0] == []


@pytest.mark.parametrize("text, values", [
    ('modparam("m", "p", "SELECT *"\n  " FROM t"\n  \' WHERE 1\')', ("m", "p", "SELECT * FROM t WHERE 1")),
    ('mpath="/a/":"/b/" : "/c"', ("/a/", "/b/", "/c")), ("syslog_facility=LOG_LOCAL3", ("LOG_LOCAL3",)),
    ("stderror_level_filter=-1", (-1,)), ("syslog_level_filter=3", (3,)),
])
def test_statements_of_newer_releases(text, values):
    assert [directive.args for directive in read(text)] == [values]


def test_lines_with_a_hash_and_an_exclamation_mark():
    lines = read('#!/usr/sbin/opensips -f\n#!define X 1\nlog_level=3\n#!ifdef X')
    assert [directive.word for directive in lines] == ["log_level"]


def test_plugins_are_found_in_all_folders_of_mpath(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"in_{folder}.py").write_text("import midatagram as mi\n")
    notes, it = trial(f'mpath="{tmp_path}/a":"{tmp_path}/b/"\nmpath="{tmp_path}/c/"\n'
                      + "".join(f'loadmodule "in_{folder}.so"\n' for folder in "abc"))
    assert notes == [] and {"in_a", "in_b", "in_c"} <= set(it.server.registry.modules_by_name)


def test_the_level_filter_of_stderr(start):
    server = start('log_level=4\nstderror_level_filter=2\nmodparam("mi_datagram", "trace_destination", "nowhere")\n', ready=False)
    server.wait_log("no tracing destination", START_S)
    wait_for(lambda: server.ask(b":uptime:\n", 0.5) if pathlib.Path(server.place).exists() else None, START_S)
    server.stop()
    assert "INFO" not in server.log and "DEBUG" not in server.log


@pytest.mark.parametrize("m4", ["divert(-1)", "define(`X', `1')", "changequote([,])", "dnl a comment", "include(`other.m4')"])
def test_an_m4_source_is_told_to_be_one(m4):
    with pytest.raises(mi.ConfigError, match=r"main:2: .* is for m4.*run `m4 main > opensips.cfg`"):
        read(f"log_level=3\n{m4}\nloadmodule \"tm.so\"")


@pytest.mark.parametrize("text, line", [
    ('log_level=3\nmodparam("a", "b", "c)\nmodparam("mi_datagram", "x", "y")\n', 2),
    ('loadmodule "tm.so\nloadmodule "sl.so"\n', 1),
    ('mpath="/usr/lib\nmpath="/usr/lib"\n', 1), ('route {\n xlog("a);\n xlog("$ru");\n}\n', 2), ('# a\n\nloadmodule "x\n', 3),
    ("modparam('a', 'b', 'c)\nmodparam('mi_datagram', 'x', 'y')\n", 1), ('route {\n xlog("a);\n xlog("[$ci] b");\n}\n', 2),
])
def test_an_unclosed_string_is_reported_where_it_opened(text, line):
    with pytest.raises(mi.ConfigError, match=f"main:{line}: no closing .* for the string that starts here"):
        read(text)


def test_strings_over_several_lines_are_read():
    assert read('modparam("m", "p", "a\nb")\nmodparam("m", "q", "c\n")')[1].args == ("m", "q", "c\n")


OWN = ["proto_udp", "xlog", "mi_fifo", "sl", "tm", "siptrace", "httpd", "mi_html", "db_mysql", "event_datagram", "cachedb_redis"]
GLOBALS = ["xlog_level=3", "log_name=\"x\"", "log_stdout=yes", "xlog_buf_size=9", "stderror_log_format=\"json\"",
           "log_prefix=\"x\"",
           "mem_log=1", "memlog=1", "syslog_enabled=yes", "log_event_level_filter=2", "db_default_url=\"x\"", "loose=1"]


def test_what_opensips_has_gets_no_advice():
    lines = [f'loadmodule "{name}.so"' for name in OWN] + GLOBALS
    lines += [f'modparam("{name}", "x", 1)' for name in ("auth_db", "usrloc|nathelper", "proto_bin")]
    assert trial("\n".join(lines))[0] == []


@pytest.mark.parametrize("line, wanted", [
    ('loadmodule "mi_datagrm.so"', 'module mi_datagrm has no plug-in here, passed over; did you mean "mi_datagram"?'),
    ('loadmodule "dialg.so"', 'module dialg has no plug-in here, passed over; did you mean "dialog"?'),
    ('loadmodule "qqqqq.so"', "module qqqqq has no plug-in here, passed over; OpenSIPS has no such module either"),
    ("children_count = 3", 'children_count: passed over, it is not for midatagram; for the server it is '
                           'modparam("mi_datagram", "children_count", VALUE)'),
    ("set children_count 3", 'set: passed over, it is not for midatagram; for the server it is '
                             'modparam("mi_datagram", "children_count", VALUE)'),
    ('allow_from = "::1"', 'allow_from: passed over, it is not for midatagram; for the server it is '
                           'modparam("midatagram", "allow_from", VALUE)'),
    ("log_levl=3", 'log_levl: passed over, it is not for midatagram; did you mean "log_level"?'),
    ('modparam("mi_datagrm", "x", 1)',
     'modparam for mi_datagrm, which has no plug-in here, passed over; did you mean "mi_datagram"?'),
])
def test_what_opensips_has_not_is_warned_of(line, wanted):
    searched = f"; searched: {ROOT}/plugins" if line.startswith("loadmodule") else ""
    assert trial(line)[0] == [f"WARNING trial:1: {wanted}{searched}"]


@pytest.mark.parametrize("place", ["mine.py", "mine.conf", "plugins/mine.py"])
def test_a_plug_in_that_is_not_searched_for_is_named_with_the_cure(tmp_path, place):
    """One beside the configuration, which is in none of the folders."""
    (tmp_path / "plugins").mkdir()
    (tmp_path / place).write_text("[word]\nreply = w\n" if place.endswith("conf") else "import midatagram as mi\n")
    path, folder = tmp_path / "my.cfg", (tmp_path / place).parent
    path.write_text(f'loadmodule "mine.so"\nmodparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n')
    done = run("-c", "-f", path)
    assert done.returncode == 0 and done.stdout.startswith(
        f"WARNING: {path}:1: module mine has no plug-in here, passed over; {tmp_path}/{place} is in no folder that is searched: "
        f'-p {folder}, or mpath="{folder}/" before this line\n')
    assert run("-c", "-f", path, "-p", folder).stdout == f"{path}: OK\n"
    path.write_text(f'mpath="{folder}/"\n{path.read_text()}')
    assert run("-c", "-f", path).stdout == f"{path}: OK\n"


def test_the_children_of_opensips_are_not_ours():
    """A server's own opensips.cfg may well have such a line: it is no mistake."""
    with mi.Trial("children=4\nlisten=udp:127.0.0.1:5060") as it:
        assert it.server.setup.notes == [
            (logging.INFO, 'trial:1: children: passed over, it is not for midatagram; for the server it is '
                           'modparam("mi_datagram", "children_count", VALUE)'),
            (logging.INFO, "trial:2: listen: not opened here; OpenSIPS' modules, such as dispatcher and tm, take it for a "
                           "socket of the server")]


@pytest.mark.parametrize("lines, wanted", [
    ('modparam("midatagram", "log_level", 9)', "log_level is no parameter but a global, outside of modparam: log_level=VALUE"),
    ('modparam("mi_datagram", "log_facility", "x")', "log_facility is no parameter but a global, outside of modparam: log_facil"),
    ('modparam("midatagram", "allow_command", "uptime: root")',
     '"root" is no network; a user is written uid:root, a group gid:root'),
    ('modparam("midatagram", "allow_command", "uptime: 10.0.0.0/33")', "takes networks with commas between them"),
    ('modparam("mi_datagram", "listen", "/x")', 'listen is a parameter of midatagram: modparam("midatagram", "listen", ...)'),
    ('modparam("midatagram", "children_count", 2)', 'children_count is a parameter of mi_datagram: modparam("mi_datagram", '),
    ('modparam("midatagram", "listen", "UDP:127.0.0.1:8080")', "listen is written udp:127.0.0.1:8080, not UDP:127.0.0.1:8080"),
    ('modparam("midatagram", "listen", "127.0.0.1:8080")', "listen is written udp:127.0.0.1:8080"),
    ('modparam("midatagram", "listen", "unix:/run/x")', "listen is written /run/x"),
])
def test_refused_with_the_right_form(lines, wanted):
    with pytest.raises(mi.ConfigError, match=re.escape(wanted)):
        trial(lines)


@pytest.mark.parametrize("lines, wanted", [
    ('modparam("mi_datagram", "trace_destination", "a")\nmodparam("mi_datagram", "trace_destination", "b")',
     "trace_destination drops that of trial:1; several destinations stand in one line"),
    ('modparam("mi_datagram", "socket_name", "/a")\nmodparam("mi_datagram", "socket_name", "/b")',
     'socket_name drops that of trial:1; modparam("midatagram", "listen", ...) adds a socket'),
])
def test_a_second_line_that_drops_the_first(lines, wanted):
    assert [note for note in trial(lines)[0] if note.startswith(f"WARNING trial:2: {wanted}")]
    again = trial(lines.replace("b\"", "a\""))[0]
    assert not [note for note in again if note.startswith("WARNING trial:2") and "drops that of" in note]


@pytest.mark.parametrize("place", ["UDP:127.0.0.1:8080", "127.0.0.1:8080", "localhost:8080"])
def test_an_address_of_another_form_is_refused_everywhere(start, place):
    right = f"udp:{place.rpartition('UDP:')[2]}"
    done = run("-s", place)
    assert done.returncode == 78 and right in done.stderr and done.stderr.count("\n") == 1
    done = run("call", "-s", place, "uptime")
    assert done.returncode == 2 and right in done.stderr
    server = start()
    assert server.ask(b":event_subscribe:\nE_MI_STOP\nudp:*:9000\n") == b"400 Bad parameter\n\n"
    for request in (f":event_subscribe:\nE_MI_STOP\n{place}\n",
                    f'{{"jsonrpc":"2.0","method":"event_subscribe","params":["E_MI_STOP","{place}"],"id":1}}'):
        reply = server.ask(request.encode()).decode()
        assert "400" in reply and right in reply
    path = server.folder / "odd.conf"
    path.write_text(f'modparam("mi_datagram", "socket_name", "{place}")\n')
    done = run("-c", "-f", path)
    assert done.returncode == 0 and f"in lower case: {right}" in done.stdout


def test_a_star_is_all_addresses(start):
    port = free_port()
    server = start(f'modparam("mi_datagram", "socket_name", "udp:*:{port}")\n', place=f"udp:127.0.0.2:{port}")
    assert server.ask(b":uptime:\n").startswith(b"200 OK\n")
    assert f"udp:0.0.0.0:{port} can be reached from other machines" in server.log


def test_standard_input_is_a_configuration(tmp_path):
    text = f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\nmodparam("mi_datagram", "children_count", %s)\n'
    for count, status, said in (("2", 0, "-: OK\n"), ('"many"', 78, "midatagram: -:2: ")):
        done = subprocess.run([sys.executable, ROOT / "midatagram.py", "-c", "-f", "-"], input=text % count, text=True,
                              capture_output=True, timeout=20)
        assert done.returncode == status and (done.stdout + done.stderr).startswith(said)


def test_a_reload_has_what_standard_input_held(tmp_path):
    with subprocess.Popen([sys.executable, ROOT / "midatagram.py", "-f", "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as server:
        server.stdin.write(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n')
        server.stdin.close()
        lines = iter(server.stderr.readline, "")
        assert any("ready:" in line for line in lines)
        server.send_signal(signal.SIGHUP)
        assert any("reloaded" in line for line in lines)
        server.terminate()
        assert server.wait(STOP_S) == 0


CANNED = "[one]\nreply = '''\nA:: 1\n%s'''\n"


@pytest.mark.parametrize("lines, canned, wanted", [
    ('modparam("mi_datagram", "trace_destination", "nowhere")', "", 'no tracing destination "nowhere"'),
    ('mpath="/no/such/folder/"', "", "mpath: there is no folder /no/such/folder/"),
    ('modparam("midatagram", "log_file", "/no/such/folder/log")', "", "lab.cfg:3: log_file /no/such/folder/log"),
    ('modparam("midatagram", "log_file", "/")', "", "lab.cfg:3: log_file /"),
    ('modparam("midatagram", "store_file", "/no/such/folder/s")', "", "lab.cfg:3: store_file /no/such/folder/s"),
    ('modparam("midatagram", "store_file", "/")', "", "lab.cfg:3: store_file /"),
    ('modparam("midatagram", "listen", "/no/such/folder/mi.sock")', "",
     "lab.cfg:3: socket /no/such/folder/mi.sock has no folder; mend: mkdir -p /no/such/folder"),
    ('modparam("midatagram", "listen", "/etc/passwd/mi.sock")', "",
     "lab.cfg:3: socket /etc/passwd/mi.sock has a file where its folder should be"),
    ("", "[one]\ndelay = 20000\n", 'lab.conf:1: command "one" waits 20000 ms, but handler_timeout ends it after 10000'),
    ("", "[one]\n[[a]]\nreply = a\n[[b]]\narguments = x,\n", "lab.conf:4: b is never reached"),
    ("", "[one]\nreply = own\n[[a]]\ncode = 201\n", "lab.conf:1: one is never reached"),
    ("", "[one]\n[[a]]\narguments = x,\n[[b]]\narguments = x,\n", "lab.conf:4: b is never reached"),
    ("", CANNED % "    B:: 2\n", "lab.conf:4: one: a line of the reply is indented with blanks"),
    ("", CANNED % "\t  B:: 2\n", "lab.conf:4: one: a line of the reply is indented with blanks"),
    ("", "[one]\ncode = 99999\n", "lab.conf:2: one: code: "),
])
def test_c_fails_for_what_would_not_work(tmp_path, lines, canned, wanted):
    path = tmp_path / "lab.cfg"
    (tmp_path / "lab.conf").write_text(canned)
    path.write_text(f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\nloadmodule "lab.so"\n{lines}\n')
    done = run("-c", "-f", path, "-p", tmp_path)
    assert done.returncode == 78 and wanted in done.stdout + done.stderr, done.stdout + done.stderr


def test_c_warns_of_what_a_start_warns_of(start, tmp_path):
    """Nor does a check fail without a package that a start goes without."""
    (tmp_path / "setproctitle.py").write_text("raise ImportError\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    lines = f'modparam("midatagram", "listen", "udp:0.0.0.0:{free_port()}")\nlog_levl=3\n'
    server = start(lines, environment=environment)
    done = run("-c", "-f", server.config_path, environment=environment)
    warnings = [line.partition("WARNING: ")[2] for line in done.stdout.splitlines() if line.startswith("WARNING: ")]
    assert done.returncode == 0 and len(warnings) == 3 == server.log.count("WARNING:"), done.stdout + server.log
    assert all(warning in server.log for warning in warnings) and "can be reached from other machines" in server.log
    assert "setproctitle is missing" in done.stdout


def test_what_a_check_calls_an_error_is_logged_as_one_by_a_start(start):
    server = start('mpath="/no/such/folder"\n')
    assert f"ERROR:midatagram: {server.config_path}:2: mpath: there is no folder /no/such/folder" in server.log
    assert server.ask(b":uptime:\n").startswith(b"200 OK")


def test_c_is_content_with_what_works(tmp_path):
    path = tmp_path / "lab.cfg"
    (tmp_path / "lab.conf").write_text("[one]\nreply = x\n[[a]]\narguments = x,\n[[b]]\narguments = y,\ndelay = 5\n"
                                       "[two]\nreply = '''\nA:: 1\n\tB:: 2\n'''\n"
                                       "[three]\n[[a]]\ndialect = text\nreply = x\n[[b]]\ndialect = jsonrpc\nreply = y\n")
    path.write_text(f'mpath="/usr/lib/no/opensips/modules/"\nloadmodule "maxfwd.so"\nloadmodule "lab.so"\n'
                    f'modparam("mi_datagram", "socket_name", "{tmp_path}/mi.sock")\n'
                    f'modparam("midatagram", "log_file", "{tmp_path}/log")\n')
    done = run("-c", "-f", path, "-p", tmp_path)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"{path}: OK") and not (tmp_path / "log").exists()


@pytest.mark.parametrize("script, wanted", [
    ("children=4", []), ('route { xlog("a"); }', [("xlog", "a")]), ('route { f("a", "b", 3, "c"); }', [("f", "a", "b")]),
    ('route { if (a(b("x"))) { c($ru, "d"); } }', [("b", "x")]), ("route { f(); (\"x\"); } # g(\"y\")", []),
    ('route[1] { f("a"); }\nroute[2] { g(\'b\'); }', [("f", "a"), ("g", "b")]),
    ("listen=udp:[::1]:5060 as 1.2.3.4", [("listen", "udp : [ : : 1 ] : 5060 as 1.2.3.4")])])
def test_plug_ins_learn_the_calls_of_a_script(tmp_path, script, wanted):
    """Those whose first arguments are texts; and the sockets."""
    (tmp_path / "asks.py").write_text("import json\nimport midatagram as mi\n@mi.command\ndef asked(ctx):\n    'Show.'\n"
                                      "    return mi.Reply(nodes=[mi.Node(None, json.dumps(ctx.own.calls))])\n")
    with mi.Trial(f'loadmodule "asks.so"\n{script}', str(tmp_path)) as trial:
        shown = trial.ask(b":asked:\n").decode().split("\n")[1]
        assert [tuple(call) for call in json.loads(shown)] == wanted
