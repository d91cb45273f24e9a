"""Converters: what each takes, the value it gives, and what it says of anything else."""

import functools
import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as some

import midatagram as mi

A, L = mi.Address, mi.Listener
CHECKS = mi.shared("checks")
GOOD = [
    (mi.string, "", ""), (mi.string, " a\n", " a\n"),
    (mi.integer(), "0", 0), (mi.integer(), "+7", 7), (mi.integer(), "-0x1F", -31), (mi.integer(), "010", 10),
    (mi.integer(), 5, 5),
    (mi.integer(1, 9), "1", 1), (mi.integer(1, 9), 9, 9), (mi.integer(lo=0), "99999999999", 99999999999),
    (mi.integer(hi=0), "-3", -3),
    (mi.boolean, 1, True), (mi.boolean, 0, False), (mi.boolean, "1", True), (mi.boolean, "0", False),
    *((mi.boolean, word, True) for word in ("yes", "true", "on", "enable")),
    *((mi.boolean, word, False) for word in ("no", "false", "off", "disable")),
    (mi.one_of("auto", "text"), "text", "text"),
    (mi.file_mode, 0o660, 0o660), (mi.file_mode, 0, 0), (mi.file_mode, 0o7777, 0o7777),
    (mi.account, "nobody", "nobody"), (mi.account, "0", 0), (mi.account, 1000, 1000), (mi.account, -1, None),
    (mi.account, "-1", None),
    (mi.address, "/run/mi.sock", A("/run/mi.sock")), (mi.address, "mi.sock", A("mi.sock")),
    (mi.address, "./UDP:x:1", A("./UDP:x:1")),
    (functools.partial(mi.address, strict=False), "UDP:x:1", A("UDP:x:1")), (mi.address, "udp:*:8080", A("0.0.0.0", 8080)),
    (mi.address, "/run/a:8080", A("/run/a:8080")), (mi.address, "@name", A("@name")),
    (mi.address, "x" * 107, A("x" * 107)), (mi.address, "é" * 53, A("é" * 53)),
    (mi.address, "udp:127.0.0.1:1024", A("127.0.0.1", 1024)), (mi.address, "udp:localhost:65535", A("localhost", 65535)),
    (mi.address, "udp:[::1]:8080", A("::1", 8080)), (mi.address, "udp:::1:8080", A("::1", 8080)),
    (mi.address, "udp::::8080", A("::", 8080)),
    (mi.address, "udp:127.0.0.1:08080", A("127.0.0.1", 8080)),
    (mi.listener, "/mi", L(A("/mi"))), (mi.listener, "/mi;mode=0600;user=nobody;group=7", L(A("/mi"), 0o600, "nobody", 7)),
    (mi.listener, "/mi;user=-1", L(A("/mi"), None, None, None)), (mi.listener, "udp:[::]:8080", L(A("::", 8080))),
    (mi.words, "a", ("a",)), (mi.words, " a , b", ("a", "b")), (mi.names_or_none, "", ()), (mi.names_or_none, "a,b", ("a", "b")),
    (mi.networks, "127.0.0.0/8, ::1", (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1"))),
    (mi.access_rule, "kill, ps: 10.0.0.0/8, uid:root, gid:7",
     (("kill", "ps"), (ipaddress.ip_network("10.0.0.0/8"),), ("root",), (7,))),
    (mi.access_rule, "kill: ::1", (("kill",), (ipaddress.ip_network("::1"),), (), ())),
    (mi.trace_list, "w: ps,which", (True, ("ps", "which"))), (mi.trace_list, " B\t:ps , which,", (False, ("ps", "which"))),
    (mi.trace_list, "b:", (False, ())), (mi.trace_list, "W:", (True, ())),
    (mi.c_integer, "-", 0), (mi.c_integer, "+2", 2), (mi.c_integer, "99999999999", 1215752191), (mi.c_integer, "-1", -1),
    (mi.collections_of, "c1 = 9; c2;", ("default", "c1", "c2")), (mi.cachedb_url, "local:two:///c2", ("local:two", "c2")),
    (mi.cachedb_url, "local:two://host/", ("local:two", "default")), (mi.cachedb_url, "local://", ("local", "default")),
    (mi.cachedb_url, "local:///c2", ("local", "c2")), (mi.cachedb_url, "local:my-2://", ("local:my-2", "default")),
    (mi.collections_of, "c1/r; c2/r = 5; c3 = 4", ("default", "c1", "c2", "c3")),
]
BAD = [
    (mi.string, 7, "takes a string"),
    *((mi.integer(), text, "takes an integer") for text in ("", " 1", "1 ", "1.5", "0x", "--1", "1_0", "٣", "1\n", "yes",
                                                            "9" * 21)),
    (mi.integer(1, 9), "10", "an integer from 1 to 9"), (mi.integer(1, 9), 0, "from 1 to 9"),
    (mi.integer(lo=1), 0, "of at least 1"),
    (mi.integer(hi=1), "2", "of at most 1"), (mi.boolean, "Yes", "yes or no"), (mi.boolean, 2, "yes or no"),
    (mi.boolean, "", "yes or no"),
    (mi.one_of("auto", "text"), "txt", 'auto, text; did you mean "text"?'),
    (mi.one_of("auto", "text"), "", "takes one of auto, text"),
    (mi.file_mode, "0660", "in octal, without quotes: 0660"),
    (mi.file_mode, -1, "0 to 07777"), (mi.file_mode, 0o10000, "0 to 07777"),
    (mi.account, "", "not an empty string"), (mi.account, -2, "from 0"), (mi.account, "-2", "from 0"),
    (mi.account, 2**32 - 1, "from 0"),
    (mi.address, "", "udp:HOST:PORT"), (mi.address, 8080, "udp:HOST:PORT"), (mi.address, "x" * 108, "108 bytes"),
    (mi.address, "é" * 54, "108 bytes"),
    (mi.address, "udp:", "needs a host and a port"), (mi.address, "udp:8080", "needs a host"),
    (mi.address, "udp::8080", "needs a host"),
    (mi.address, "udp:127.0.0.1:", "not empty"), (mi.address, "udp:127.0.0.1:1023", "1024 to 65535"),
    (mi.address, "udp:h:65536", "1024 to 65535"),
    (mi.address, "udp:h:4294975476", "1024 to 65535"), (mi.address, "udp:h:x", "1024 to 65535"),
    (mi.address, "udp:h:+8080", "1024 to 65535"),
    (mi.address, "udp:::1", "1024 to 65535"),
    (mi.listener, "/mi;mode", "ADDRESS;mode=0660"), (mi.listener, "/mi;mode=rw", "in octal"),
    (mi.listener, "/mi;mode=0999", "in octal"),
    (mi.listener, "/mi;owner=x", "ADDRESS;mode=0660"), (mi.listener, "udp:127.0.0.1:8080;mode=0600", "UNIX sockets only"),
    (mi.listener, 7, "string"),
    (mi.words, "", "commas between them"), (mi.words, "a,,b", "commas between them"), (mi.words, "a,", "commas between them"),
    (mi.networks, "10.0.0.0/33", "takes networks"), (mi.networks, "10.0.0.1/8", "takes networks"),
    (mi.networks, "localhost", "takes networks"),
    (mi.access_rule, "kill", "who may use them"), (mi.access_rule, "kill:", "who may use them"),
    (mi.access_rule, ": uid:root", "commas"),
    (mi.access_rule, "kill: uid:", "empty string"), (mi.access_rule, "kill: root", "takes networks"),
    *((mi.trace_list, text, '"w: NAME, NAME"') for text in ("", "ps", "x: ps", "bw:ps", ": ps")),
    *((mi.trace_list, text, "empty name") for text in ("b: ", "b:,ps", "b:ps,,which", "w:ps,,")),
    *((mi.c_integer, text, "takes an integer") for text in ("", "1x", "0x1", "1 2", "1.5", "٣")),
    (mi.collections_of, "a b", "names of collections"), (mi.cachedb_url, "local:two", "local:ID:///COLLECTION"),
    (mi.cachedb_url, "redis:x:///c", "local:ID"),
    (mi.address, "UDP:127.0.0.1:8080", "is written udp:127.0.0.1:8080"), (mi.address, "tcp:x:1", "is written udp:x:1"),
    (mi.address, "127.0.0.1:8080", "is written udp:127.0.0.1:8080"), (mi.address, "localhost:80", "is written udp:localhost:80"),
    (mi.address, "[::1]:8080", "is written udp:[::1]:8080"), (mi.address, "unix:/run/mi", "is written /run/mi"),
    (mi.listener, "UDP:x:8080", "is written udp:x:8080"), (mi.listener, "10.0.0.1:8080", "is written udp:10.0.0.1:8080"),
]


def name_of(value):
    """A readable id for a case."""
    return getattr(value, "__qualname__", None) or repr(value)[:40]


@pytest.mark.parametrize("converter, written, value", GOOD, ids=name_of)
def test_taken(converter, written, value):
    assert converter(written) == value and type(converter(written)) is type(value)


@pytest.mark.parametrize("converter, written, wanted", BAD, ids=name_of)
def test_refused_with_what_would_be_right(converter, written, wanted):
    with pytest.raises(ValueError) as caught:
        converter(written)
    assert wanted in str(caught.value)


@pytest.mark.parametrize("converter", list(dict.fromkeys(case[0] for case in GOOD)), ids=name_of)
@given(written=some.text(max_size=12) | some.text("uwb:;,=[]/0123456789abcdep. -@x", max_size=25) | some.integers(-2**40, 2**40))
def test_anything_is_taken_or_refused(converter, written):
    try:
        converter(written)
    except ValueError as error:
        assert str(error)


@pytest.mark.parametrize("written, said", [
    ("0660", None), ("0", None), ("384", "384 is decimal and means mode 0600"),
    ("600", "600 is decimal and means mode 1130; octal is written 0600"),
])
def test_a_decimal_mode_is_told(written, said):
    assert CHECKS.decimal_mode(mi.read_number(written, "file", 1)) == said


@pytest.mark.parametrize("written, told", [
    ("/run/mi", False), ("udp:h:8080", False), ("UDP:h:8080", True), ("unix:/run/mi", True), ("tcp:h:1", True),
    ("udp6:::1:8080", True),
    ("./udp:x", False),
])
def test_a_path_that_looks_like_another_address_is_told(written, told):
    assert bool(CHECKS.odd_scheme(written)) == told


@pytest.mark.parametrize("address, text", [
    (A("/run/mi"), "/run/mi"), (A("127.0.0.1", 8080), "udp:127.0.0.1:8080"), (A("::1", 8080), "udp:[::1]:8080"),
])
def test_an_address_is_shown_as_it_is_written(address, text):
    assert str(address) == text and mi.address(text) == address
