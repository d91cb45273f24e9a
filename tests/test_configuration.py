"""opensips.cfg as it is written: tokens, directives, and what a mistake is told."""

import pytest
from conftest import run

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
loadmodule "tm.so"
modparam("tm", "fr_timeout", 5)
loadmodule "mi_datagrm.so"
loadmodule "mi_datagram.so"
modparam("mi_datagram", "socket_name",
    "{path}")
modparam("mi_datagram|tm", "children_count", 0x2)
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


def test_a_whole_opensips_cfg(start, tmp_path):
    path = tmp_path / "mi.sock"
    server = start(WHOLE.replace("{path}", str(path)), place=str(path))
    assert len(server.children()) == 2
    for line, text in ((5, "children: passed over"), (6, "listen: passed over"), (9, "module signaling has no plug-in"),
                       (17, "route: passed over"), (22, "onreply_route: passed over")):
        assert server.log.count(f"INFO:midatagram: {server.config_path}:{line}: {text}") == 1, text
    assert server.log.count('WARNING:midatagram:') == 1
    assert 'mi_datagrm has no plug-in here, passed over; did you mean "mi_datagram"?' in server.log
    assert server.log.count("tm") >= 1 and "modparam for tm" not in server.log


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
