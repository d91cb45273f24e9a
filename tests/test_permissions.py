"""permissions, domain and db_text beyond the recordings: partitions, rule files, bad tables, when a file is read."""

import json
import os
import re

import pytest
from test_modules import FOLDER, differs, rows_of

import midatagram as mi

HEADERS = {
    "address": "id(int,auto) grp(int) ip(string) mask(int) port(int) proto(string) pattern(string,null) "
               "context_info(string,null)",
    "domain": "id(int,auto) domain(string) attrs(string,null) last_modified(int)",
}
VERSIONS = {"address": 5, "domain": 3}
ONE = {"address": ("1:0:10.1.2.0:24:0:any:^sip:office \"a\"",), "domain": ("1:example.com::0",)}
MANY = {"address": ("1:1:127.0.0.1:32:5060:udp::", "2:1:192.0.2.7:32:0:tcp::x", *ONE["address"],
                    "4:2:2001\\:db8\\:\\::32:0:any::", "5:3:2001\\:db8\\:\\:1:128:5061:tls:a b:"),
        "domain": (*ONE["domain"], "2:sip.example.org:attr=1;x y:0")}
ROUTE = f'route {{ if (allow_uri("{FOLDER}/pol/p1", "$ru")) exit; allow_routing("{FOLDER}/pol/p2"); }}'


def tables(folder, rows):
    """A folder with tables, each with its rows; a name may have a copy: `address2`."""
    kinds = {name: name.rstrip("0123456789") for name in rows}
    versions = "".join(f"{name}:{VERSIONS[kind]}\n" for name, kind in kinds.items())
    (folder / "version").write_text(f"table_name(string) table_version(int)\n{versions}")
    for name, kind in kinds.items():
        (folder / name).write_text("\n".join([HEADERS[kind], *rows[name], ""]))
    return f"text://{folder}"


def lines(url, *more, db_text=True):
    """A configuration with the three modules."""
    return "\n".join(['loadmodule "db_text.so"' if db_text else "", 'loadmodule "permissions.so"', 'loadmodule "domain.so"',
                      f'modparam("permissions|domain", "db_url", "{url}")', 'modparam("domain", "db_mode", 1)', *more, ""])


def ask(trial, *words):
    """The reply to a text request of these words."""
    return trial.ask("\n".join([f":{words[0]}:", *words[1:], ""]).encode()).decode()


def ask_json(trial, method, params=None):
    """The result or the error of a JSON-RPC request."""
    reply = json.loads(trial.ask(json.dumps({"jsonrpc": "2.0", "method": method, "id": 1,
                                             **({} if params is None else {"params": params})}).encode()))
    return reply.get("result") or reply["error"]


COMMANDS = "address_", "subnet_", "allow_uri", "domain_", "dbt_"


@pytest.mark.parametrize("kind, imitate", [("text", "2.4"), ("json", "3.4"), ("json40", "4.0")])
@pytest.mark.parametrize("rows, first, last", [({"address": (), "domain": ()}, "p0102", "p0102"), (ONE, "p0124", "p0132"),
                                               (MANY, "p0149", "p0179"), (MANY, "p0659", "p0664")])
def test_recorded_side_by_side(tmp_path, kind, imitate, rows, first, last):
    (tmp_path / "db").mkdir()
    url, wrong = tables(tmp_path / "db", rows), []
    with mi.Trial(lines(url, ROUTE, f'modparam("midatagram", "imitate", "{imitate}")')) as trial:
        asked = [row for row in rows_of("pairs.jsonl") if first <= row["id"] <= last and row["command"].startswith(COMMANDS)]
        for row in asked:
            request = row[f"{kind}_request"].replace("@DIR@/db", f"{tmp_path}/db").replace("@DIR@", str(FOLDER))
            row = {**row, "reply": row[f"{kind}_reply"].encode(), "request": request}
            wrong.append(differs(row, trial.ask(request.encode())))
    assert asked and [text for text in wrong if text] == []


def test_partitions(tmp_path):
    """The default one first, then as declared; each is read again alone."""
    rows = {**MANY, "address2": ("1:7:10.0.0.2:32:1:udp::",), "address3": ("1:8:10.0.0.3:32:1:udp::",)}
    url = tables(tmp_path, rows)
    more = [f'modparam("permissions", "partition", "{name}: db_url = {url}; table_name = {table};")'
            for name, table in (("zz", "address3"), ("part", "address2"))]
    with mi.Trial(lines(url, *more, db_text=False)) as trial:
        dumped = ask(trial, "address_dump").splitlines()
        assert [line for line in dumped if line.startswith("part::")] == ["part:: default", "part:: zz", "part:: part"]
        assert ask(trial, "address_dump", "part").splitlines()[1:3] == [
            "part:: part", "dest::  grp=7 ip=10.0.0.2 mask=32 port=1 proto=udp pattern= context_info="]
        assert ask_json(trial, "subnet_dump", ["zz"]) == {"part": "zz", "Destinations": []}
        tables(tmp_path, {**rows, "address2": ("1:7:10.0.0.5:32:1:udp::",), "address3": ("1:8:10.0.0.6:32:1:udp::",)})
        assert ask(trial, "address_reload", "part") == "200 OK\n\n"
        assert "ip=10.0.0.5 " in ask(trial, "address_dump", "part") and "ip=10.0.0.3 " in ask(trial, "address_dump", "zz")
        assert ask(trial, "address_reload") == "200 OK\n\n" and "ip=10.0.0.6 " in ask(trial, "address_dump", "zz")


def test_a_partition_without_a_table_has_that_of_the_parameter(tmp_path):
    """Which alone makes none."""
    url = tables(tmp_path, {**MANY, "address2": ("1:7:10.0.0.2:32:1:udp::",)})
    line = 'loadmodule "permissions.so"\nmodparam("permissions", "address_table", "address2")\n' \
           f'modparam("permissions", "partition", "p: db_url = {url}")\n'
    with mi.Trial(line) as trial:
        assert ask(trial, "address_dump").split("\n")[1:-2] == [
            "part:: p", "\tdest::  grp=7 ip=10.0.0.2 mask=32 port=1 proto=udp pattern= context_info="]


def test_without_a_database_there_is_no_partition():
    with mi.Trial('loadmodule "permissions.so"') as trial:
        assert ask(trial, "address_dump") == "200 OK\n\n" == ask(trial, "address_reload")
        assert ask_json(trial, "subnet_dump") == {"Partitions": []}
        assert ask(trial, "address_dump", "default") == "404 No such partition\n\n"


def test_addresses_and_subnets(tmp_path, caplog):
    """What is none is passed over with a warning; a network has no more bits than its mask; subnets by group."""
    rows = ("1:9:10.1.2.3:16:0:any::", "2:1:fe80\\:\\:a00\\:1:128:0:sctp::", "3:1:10.0.0.1:33:0:udp::", "4:1:nohost:32:0:udp::",
            "5:1:10.0.0.1:32:0:none::", "6:0:\\:\\::0:0:any::", "7:0:10.0.0.0:8:1:ws:p\\:1:i")
    with mi.Trial(lines(tables(tmp_path, {"address": rows, "domain": ()}))) as trial:
        assert ask_json(trial, "address_dump")["Partitions"][0]["Destinations"] == [
            {"grp": 1, "ip": "FE80:0:0:0:0:0:A00:1", "mask": "128", "port": 0, "proto": "sctp", "pattern": "",
             "context_info": ""}]
        listed = ask_json(trial, "subnet_dump")["Partitions"][0]["Destinations"]
        assert [(item["grp"], item["ip"], item["mask"], item["pattern"]) for item in listed] == [
            (0, "0:0:0:0:0:0:0:0", "0:0:0:0:0:0:0:0", ""), (0, "10.0.0.0", "255.0.0.0", "p:1"),
            (9, "10.1.0.0", "255.255.0.0", "")]
    assert caplog.text.count("passed over") == 3


def test_rows_as_real_servers_took_them(tmp_path, caplog):
    """A protocol in any case, listed in small letters; a group below 0 and an IPv6 address with dots are none."""
    rows = ("1:1:127.0.0.1:32:5060:UDP::", "2:1:192.0.2.7:32:0:ANY::", "3:1:10.1.0.0:16:-5:Tcp::", "4:-1:10.2.0.1:32:0:udp::",
            "5:1:\\:\\:ffff\\:1.2.3.4:128:0:udp::", "6:2:1.2.3.4:32:-5:None::", "7:2147483648:1.2.3.5:32:0:udp::",
            "8:1:1.2.3.6:32:99999:sctp::", "10:3:1.2.3.9:32:0:HEP_udp::", "13:3:2001\\:db8\\:\\::128:0:WSS::")
    with mi.Trial(lines(tables(tmp_path, {"address": rows, "domain": ()}))) as trial:
        assert [re.findall(r"(?:ip|port|proto)=(\S+)", line) for line in ask(trial, "address_dump").split("\n")[2:-2]] == [
            ["2001:DB8:0:0:0:0:0:0", "0", "wss"], ["1.2.3.6", "99999", "sctp"], ["1.2.3.9", "0", "hep_udp"],
            ["127.0.0.1", "5060", "udp"], ["192.0.2.7", "0", "any"]]
        assert "ip=10.1.0.0 mask=255.255.0.0 port=4294967291 proto=tcp " in ask(trial, "subnet_dump")
        assert ask_json(trial, "subnet_dump")["Partitions"][0]["Destinations"][0]["port"] == 4294967291
    assert caplog.text.count("passed over") == 4


def test_rows_of_which_only_some_are_listed(tmp_path):
    """An IPv6 address may be in brackets, NULL is passed over where there must be something, and a table has 128 subnets."""
    rows = ("1:1:[\\:\\:1]:128:0:udp::", "2:1:[10.0.0.1]:32:0:udp::", "3:1:10.0.0.2:32:0:::", "4::10.0.0.3:32:0:udp::",
            "5:1:10.0.0.4::0:udp::", "6:1:10.0.0.5:32::udp::", "7:1::32:0:udp::",
            *(f"{number}:{200 - number}:10.{number}.0.0:16:0:any::" for number in range(8, 140)))
    url = tables(tmp_path, {"address": rows})
    (tmp_path / "address").write_text(re.sub(r"\((int|string)\)", r"(\1,null)", (tmp_path / "address").read_text()))
    with mi.Trial(f'loadmodule "permissions.so"\nmodparam("permissions", "db_url", "{url}")') as trial:
        assert re.findall(r"ip=(\S+)", ask(trial, "address_dump")) == ["0:0:0:0:0:0:0:1"]
        subnets = ask_json(trial, "subnet_dump", ["default"])["Destinations"]
        assert [item["grp"] for item in subnets] == [*range(65, 193)]


def test_a_reload_does_not_look_at_the_version_of_a_table(tmp_path):
    """As in the original, which does at its start."""
    with mi.Trial(lines(tables(tmp_path, {"address": (), "domain": ()}), db_text=False)) as trial:
        tables(tmp_path, MANY)
        (tmp_path / "version").write_text("table_name(string) table_version(int)\naddress:9\n")
        assert ask(trial, "address_reload") == ask(trial, "domain_reload") == "200 OK\n\n"
        assert len(ask_json(trial, "address_dump")["Partitions"][0]["Destinations"]) == 3


def test_a_table_that_cannot_be_read_again(tmp_path):
    """2.4 says which partition it is where all are read."""
    with mi.Trial(lines(tables(tmp_path, MANY), db_text=False)) as trial:
        (tmp_path / "address").write_text("x\n")
        assert ask(trial, "address_reload") == "400 failed to reload partition  default!\n\n"
        assert ask(trial, "address_reload", "default") == "400 Trusted table reload failed\n\n"
        assert ask(trial, "address_reload", "none") == "400 Trusted table reload failed\n\n"
        assert ask_json(trial, "address_reload") == {"code": 400, "message": "failed to reload partition  default!"}
        assert ask_json(trial, "address_reload", ["default"]) == {"code": 500, "message": "Failed to reolad"}
        assert ask_json(trial, "address_reload", ["none"]) == {"code": 400, "message": "Trusted table reload failed"}


def test_a_bucket_has_the_newest_first(tmp_path):
    """Of one address, which has one bucket."""
    rows = [f"{number}:{number}:10.0.0.1:32:0:any::" for number in range(4)]
    with mi.Trial(lines(tables(tmp_path, {"address": rows, "domain": ("1:a::0", "2:A:x:0")}))) as trial:
        listed = ask_json(trial, "address_dump")["Partitions"][0]["Destinations"]
        assert [item["grp"] for item in listed] == [3, 2, 1, 0]
        assert ask(trial, "domain_dump") == "200 OK\nA attributes=x\na\n\n"


RULES = r'''# comment
"^sip:361[0-9]*@abc\.com$" : "^sip:361[0-9]*@abc\.com$" , "^sip:[[:digit:]]+@xyz$"   # ALL : ALL
ALL EXCEPT "^sip:no", "^sip:never" : "^sip:any@" EXCEPT "#", ":"
no rule
"(" : ALL
'''


@pytest.mark.parametrize("uri, contact, allowed", [
    ("sip:3615@abc.com", "sip:361@abc.com", True), ("sip:3615@ABC.com", "SIP:42@xyz", True),
    ("sip:3615@abc.com", "sip:x@xyz", False),
    ("sip:b", "sip:any@x", False), ("tel:b", "x sip:any@x", False), ("sip:b", "sip:any@x:5", False),
    ("sip:no", "sip:any@", False),
    ("tel1", "tel2", True)])
def test_rule_files(tmp_path, caplog, uri, contact, allowed):
    """Patterns are found anywhere in any case; what is no rule is logged with its line."""
    (tmp_path / "r.yes").write_text(RULES.replace('"^sip:any@"', '"sip:any@$"'))
    (tmp_path / "r.no").write_text('"sip:" : ALL\nALL : "sip:"\n')
    params = {"allow_suffix": ".yes", "deny_suffix": ".no", "rule_files": f"{tmp_path}/r"}
    text = "".join(f'modparam("permissions", "{name}", "{value}")\n' for name, value in params.items())
    with mi.Trial(f'loadmodule "permissions.so"\n{text}') as trial:
        assert ask(trial, "allow_uri", f"{tmp_path}/r", uri, contact) == ("200 OK\n\n" if allowed else "403 Forbidden\n\n")
    assert 'r.yes:4: is no rule: "URI" : "CONTACT", passed over' in caplog.text and "r.yes:5: missing )" in caplog.text


@pytest.mark.parametrize("line, uri, contact", [
    ("^a, ^b : ^c", "b", "c"), ('"a,b" : "#"  # : "z"', "a,b", "#"), ("ALL, x : ALL", "allo", "y"), ('"a:b" : "c', "a:b", "cc"),
    ('x:"a" : "b"', 'x:"a', "b"), ("ALL\tEXCEPT b : ALL", "all\texcept b", "y")])
def test_a_rule_needs_few_quotes(tmp_path, line, uri, contact):
    """The last colon outside of them counts, ALL stands alone, and EXCEPT between spaces."""
    (tmp_path / "a.allow").write_text(f"{line}\n")
    (tmp_path / "a.deny").write_text("ALL : ALL\n")
    script = f'route {{ allow_uri("{tmp_path}/a", "$ru"); }}'
    with mi.Trial(f'loadmodule "permissions.so"\n{script}') as trial:
        assert ask_json(trial, "allow_uri", [f"{tmp_path}/a", uri, contact]) == "OK"
        assert ask_json(trial, "allow_uri", [f"{tmp_path}/a", "none", "none"]) == {"code": 403, "message": "Forbidden"}


def test_rule_files_that_the_script_names(tmp_path):
    """In any of its functions; the default files are always read; one that is not there has no rules."""
    for name in ("a", "b", "c", "d"):
        (tmp_path / f"{name}.deny").write_text("ALL : ALL\n")
    route = 'route { allow_uri("T/a", "$ru"); if (allow_register("T/b")) { x("T/none"); } ' \
            'allow_routing("T/c.allow", "T/d.deny"); allow_uri("T/free", "$ru"); }'.replace("T", str(tmp_path))
    defaults = f'modparam("permissions", "default_allow_file", "{tmp_path}/d.allow")\n' \
               f'modparam("permissions", "default_deny_file", "{tmp_path}/d.deny")\n'
    with mi.Trial(f'loadmodule "permissions.so"\n{defaults}{route}') as trial:
        def outcome(name):
            return ask(trial, "allow_uri", f"{tmp_path}/{name}", "sip:a", "sip:b")

        assert outcome("free") == "200 OK\n\n"
        assert [outcome(name) for name in ("a", "b", "c", "d", "none", "x")] == ["403 Forbidden\n\n"] * 6


def test_a_rule_file_that_is_a_fifo_is_passed_over(start, tmp_path):
    os.mkfifo(tmp_path / "a.deny")
    server = start(f'loadmodule "permissions.so"\nroute {{ allow_uri("{tmp_path}/a", "$ru"); }}\n')
    assert f"{tmp_path}/a.deny: is a FIFO or a device; name a regular file" in server.log
    assert server.ask(f":allow_uri:\n{tmp_path}/a\nsip:a\nsip:b\n".encode()) == b"200 OK\n\n"


def test_a_rule_file_without_a_folder_is_beside_the_opensips_cfg(start, tmp_path):
    """Which may be included."""
    (tmp_path / "base.deny").write_text("ALL : ALL\n")
    (tmp_path / "opensips.cfg").write_text('loadmodule "permissions.so"\nmodparam("permissions", "db_url", "mysql://x")\n'
                                           'route { allow_uri("base", "$ru"); allow_uri("other", "$ru"); }\n')
    server = start(f'include_file "{tmp_path}/opensips.cfg"')
    assert server.ask(b":allow_uri:\nbase\nsip:a\nsip:b\n") == b"403 Forbidden\n\n"
    assert server.ask(b":allow_uri:\nother\nsip:a\nsip:b\n") == b"200 OK\n\n"


def test_arguments_of_allow_uri():
    """Counted in bytes; what is empty is refused in JSON."""
    with mi.Trial(f'loadmodule "permissions.so"\n{ROUTE}') as trial:
        name, uri = "p" * 121, "é" * 512
        assert ask(trial, "allow_uri", name, uri, uri) == "403 Forbidden\n\n" == ask(trial, "allow_uri", "x::", "x::", "x::")
        assert ask(trial, "allow_uri", name + "p", "x", "x") == "404 Basename is too long\n\n"
        assert ask(trial, "allow_uri", name, uri + "u", uri + "u") == "404 URI is too long\n\n"
        for empty in range(3):
            params = ["p", "u", "c"]
            params[empty] = ""
            assert ask_json(trial, "allow_uri", params) == {"code": 404, "message": "Basename is empty"}


def test_a_table_that_cannot_be_read_leaves_what_there_is(start, tmp_path):
    server = start(lines(tables(tmp_path, MANY), db_text=False))
    tables(tmp_path, {"address": ("1:x:a:b:c:d:e:f",), "domain": ("1::a:0",)})
    assert server.ask(b":address_reload:\n") == b"400 failed to reload partition  default!\n\n"
    server.wait_log(f"{tmp_path}/address:2: grp is 'x', which is no number")
    assert server.ask(b":domain_reload:\n") == b"500 Domain table reload failed\n\n"
    server.wait_log(f"{tmp_path}/domain:2: domain is empty, and may not be NULL")
    assert b"ip=192.0.2.7" in server.ask(b":address_dump:\n") and b"example.com" in server.ask(b":domain_dump:\n")


@pytest.mark.parametrize("rows, wrong", [({**MANY, "address": ("1:1:a:x:0:any::",)}, "address:2: mask is 'x'"),
                                         ({**MANY, "domain": ("1:a:b",)}, "domain:2: has 3 fields, not 4")])
def test_a_table_that_cannot_be_read_ends_the_start(tmp_path, rows, wrong):
    with pytest.raises(mi.ConfigError, match=wrong):
        mi.Trial(lines(tables(tmp_path, rows)))


@pytest.mark.parametrize("imitate, reason", [("3.4", "command not activated"), ("4.0", "DB is disabled (db_mode=0)")])
def test_domain_without_db_mode(tmp_path, imitate, reason):
    with mi.Trial(f'loadmodule "domain.so"\nmodparam("midatagram", "imitate", "{imitate}")') as trial:
        for command in ("domain:dump", "domain:reload"):
            assert ask(trial, command) == f"500 {reason}\n\n"


def test_tables_are_shared_by_children_and_survive_a_reload_of_the_configuration(start, tmp_path):
    """A reload of the configuration reads files again, too."""
    server = start(lines(tables(tmp_path, ONE), 'modparam("mi_datagram", "children_count", 3)'))
    clients = [server.client() for _ in range(6)]
    tables(tmp_path, MANY)
    assert clients[0].ask(b":dbt_reload:\n") == clients[0].ask(b":domain_reload:\n") == b"200 OK\n\n"
    dumps = {client.ask(b":domain_dump:\n") for client in clients}
    assert dumps == {b"200 OK\nexample.com\nsip.example.org attributes=attr=1;x y\n\n"}
    assert clients[0].ask(b":address_reload:\n") == b"200 OK\n\n"
    assert len({client.ask(b":address_dump:\n") for client in clients}) == 1
    tables(tmp_path, {**ONE, "domain": ("1:new::0",)})
    server.reload()
    assert server.ask(b":domain_dump:\n") == b"200 OK\nnew\n\n"


@pytest.mark.parametrize("mode", ["", "modparam(\"db_text\", \"db_mode\", 1)"])
def test_a_file_is_read_once_by_db_text(tmp_path, mode):
    """And again when dbt_reload asks for all, for its folder or for it; each time without db_text, or with its db_mode."""
    url = tables(tmp_path, ONE)
    for db_text in (True, False):
        tables(tmp_path, ONE)
        with mi.Trial(lines(url, mode if db_text else "", db_text=db_text)) as trial:
            for number, words in enumerate([(), (f"{tmp_path}",), (f"{tmp_path}".upper(), "domain")]):
                tables(tmp_path, {**ONE, "domain": (f"1:d{number}::0",)})
                before = ask(trial, "domain_dump")
                assert ask(trial, "domain_reload") == "200 OK\n\n"
                assert (ask(trial, "domain_dump") == before) is (db_text and not mode)
                if db_text:
                    assert ask(trial, "dbt_reload", *words) == ask(trial, "domain_reload") == "200 OK\n\n"
                    assert ask(trial, "dbt_reload", f"{tmp_path}", "DOMAIN") == "400 Bad parameter\n\n"
                assert ask(trial, "domain_dump") == f"200 OK\nd{number}\n\n"


def test_dbt_reload_of_a_file_that_cannot_be_read(start, tmp_path):
    """Is refused, and the table stays; the others are read. An empty one is a table without columns."""
    server = start(lines(tables(tmp_path, ONE)))
    tables(tmp_path, {"address": ("1:0",), "domain": ("1:new::0",)})
    assert server.ask(b":dbt_reload:\n") == b"500 Server Internal Error\n\n"
    server.wait_log(f"dbt_reload: {tmp_path}/address:2: has 2 fields, not 8")
    assert server.ask(b":address_reload:\n") == server.ask(b":domain_reload:\n") == b"200 OK\n\n"
    assert b"office" in server.ask(b":subnet_dump:\n") and server.ask(b":domain_dump:\n") == b"200 OK\nnew\n\n"
    for words in (f"{tmp_path}\nlocation\n".encode(), b"x::\n"):
        assert server.ask(b":dbt_reload:\n" + words) == b"400 Bad parameter\n\n"
    (tmp_path / "domain").write_text("")
    assert server.ask(f":dbt_reload:\n{tmp_path}\ndomain\n".encode()) == b"200 OK\n\n"
    assert server.ask(b":domain_reload:\n") == b"500 Domain table reload failed\n\n"
    server.wait_log("domain:1: no column domain")
    assert ask_json(server, "db_text:reload", ["zz"]) == {"code": 400, "message": "Bad parameter value"}


def test_an_empty_file_is_a_table_without_columns(tmp_path):
    """dbt_reload takes it, and no module can read it."""
    with mi.Trial(lines(tables(tmp_path, ONE))) as trial:
        (tmp_path / "domain").write_text("")
        before = ask(trial, "domain_dump")
        assert ask(trial, "dbt_reload") == "200 OK\n\n" and ask(trial, "domain_reload").startswith("500 ")
        assert ask(trial, "domain_dump") == before


def test_a_dump_that_cannot_fit_is_given_up_before_it_is_made(tmp_path):
    """And what an address takes at least is no more than one takes."""
    with mi.Trial(lines(tables(tmp_path, {"address": ("1:1:1.1.1.1:32:0:ws::",), "domain": ()}))) as trial:
        assert len(ask(trial, "address_dump", "default")) - len("200 OK\npart:: default\n\n") > 60
    many = [f"{number}:1:10.0.{number // 256}.{number % 256}:32:1:any::" for number in range(6000)]
    with mi.Trial(lines(tables(tmp_path, {"address": many, "domain": ()}))) as trial:
        assert ask(trial, "address_dump") == "500 reply of more than 261828 bytes exceeds 65457\n"
        assert trial.ask(b'{"jsonrpc":"2.0","method":"address_dump","id":1}') == b"500 Internal error"
