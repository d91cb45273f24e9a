"""Tables with states, of drouting, load_balancer, dispatcher, uac_registrant: what changes and reloads write and keep."""

import contextlib
import json
import logging
import os
import re
import select
import signal
import sqlite3
import threading

import pytest
from conftest import is_alive, wait_for

import midatagram as mi

opensips = mi.shared("opensips_base")
TEXTS = {"dr_gateways": "gwid address attrs probe_mode# state#", "dr_carriers": "carrierid gwlist attrs state#",
         "dr_rules": "groupid prefix priority# gwlist attrs", "load_balancer": "id# group_id# dst_uri resources",
         "dispatcher": "setid# destination socket state# weight priority# attrs description",
         "registrant": "registrar proxy aor third_party_registrant binding_URI binding_params expiry# forced_socket",
         "address": "grp# ip mask# port# proto pattern context_info", "domain": "domain attrs",
         "location": """contact_id# username domain contact received path expires# q callid cseq# flags# cflags user_agent
            socket methods# sip_instance kv_store attr"""}
VERSIONS = {"dr_gateways": 6, "dr_carriers": 2, "dr_rules": 3, "load_balancer": 2, "dispatcher": 8, "registrant": 1, "address": 5,
            "domain": 3, "location": 1013}
# module -> its space, what switches a row off, what shows whether it is, what reloads; `@` stands for the row's number
CASES = {
    "drouting": ("drouting_gateways", 'dr_gw_status {"gw_id": "@", "status": 0}', ('dr_gw_status {"gw_id": "@"}', "Disabled MI"),
                 "dr_reload {}"),
    "load_balancer": ("load_balancer_table", "lb_status [@, 0]", ("lb_status [@]", '"enable":"no"'), "lb_reload []"),
    "dispatcher": ("dispatcher_partitions", 'ds_set_state ["i", "@", "sip:d@"]', ("ds_list []", '"sip:d@","state":"Inactive"'),
                   "ds_reload []"),
    "uac_registrant": ("uac_registrant_table", 'reg_disable ["sip:u@@h", "sip:u@", "sip:r"]',
                       ('reg_list ["sip:u@@h", "sip:u@", "sip:r"]', '"enabled":"no"'), None),
}
ROWS = {"dr_gateways": "@:10.0.0.1::0:0", "load_balancer": "@:1:sip\\:d@:pstn=5", "dispatcher": "@:sip\\:d@::0:1:0::",
        "registrant": "sip\\:r::sip\\:u@@h::sip\\:u@::3600:", "address": "1:10.1.0.1:32:5060:any::", "domain": "d@:",
        "location": "ID:u@::sip\\:u@:::0:1:c:1:0:::::::"}


def numbered(text, number):
    """A text with a number for each `@` that is one: u@@h is an address; ID is the contact_id of the AOR u@."""
    contact_id = (opensips.core_hash(f"u{number}".encode()) & 0xFFFF) << 46
    return re.sub("@(?!h)", str(number), re.sub("^ID", str(contact_id), text))


def request(text, number=0):
    """The JSON-RPC request for `METHOD PARAMS`."""
    method, _, params = numbered(text, number).partition(" ")
    return f'{{"jsonrpc":"2.0","method":"{method}","params":{params},"id":1}}'.encode()


def configuration(module, folder, rows=300, *more):
    """A configuration with tables of which one has so many rows."""
    (folder / "version").write_text("\n".join(["table_name(string) table_version(int)",
                                               *[f"{name}:{version}" for name, version in VERSIONS.items()], ""]))
    for name, columns in TEXTS.items():
        header = " ".join(f"{one.rstrip('#')}({'int' if '#' in one else 'string'},null)" for one in columns.split())
        lines = [numbered(ROWS[name], at) for at in range(rows)] if name in ROWS else []
        (folder / name).write_text("\n".join([header, *lines, ""]))
    mode = {"usrloc": '"db_mode", 1', "domain": '"db_mode", 1', "permissions": '"address_table", "address"'}.get(module)
    return "\n".join([f'loadmodule "{module}.so"', f'modparam("{module}", {mode})' if mode else "",
                      f'modparam("midatagram", "db_url", "text://{folder}")', *more, ""])


def is_off(ask, module, number):
    """Whether a row is off, as a client sees it."""
    shown, mark = CASES[module][2]
    return numbered(mark, number) in ask(request(shown, number)).decode()


@pytest.mark.parametrize("module", CASES)
def test_a_change_writes_what_one_row_has(tmp_path, module):
    """However many rows there are; a reload takes the states into the table."""
    space, off, _, reload = CASES[module]
    with mi.Trial(configuration(module, tmp_path)) as trial:
        since = trial.server.store.newest()
        for number in (7, 8, 7):
            assert b'"OK"' in trial.ask(request(off, number))
        _, _, written = trial.server.store.changes(space, since)
        assert len(written) == 2 and len(json.dumps(written)) < 400
        assert [is_off(trial.ask, module, number) for number in (6, 7, 8)] == [False, True, True]
        if reload:
            assert b'"OK"' in trial.ask(request(reload))
            assert [is_off(trial.ask, module, number) for number in (6, 7, 8)] == [False, True, True]
            assert [key for key, _ in trial.server.store.items(space) if "\n" in key] == []


@pytest.mark.parametrize("module", CASES)
def test_no_change_is_lost_when_children_switch_and_reload_at_once(start, tmp_path, module):
    """Nor where the configuration is read again."""
    _, off, _, reload = CASES[module]
    server = start(configuration(module, tmp_path, 60, 'modparam("mi_datagram", "children_count", 3)'))
    wrong = []

    def switch(first):
        with server.client() as client:
            for number in range(first, 60, 3):
                if b'"OK"' not in client.ask(request(off, number)):
                    wrong.append(number)

    threads = [threading.Thread(target=switch, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(10 if reload else 0):
        assert b'"OK"' in server.ask(request(reload))
    for thread in threads:
        thread.join()
    clients = [server.client() for _ in range(6)]
    assert wrong == [] and all(is_off(client.ask, module, number) for number in range(60) for client in clients)
    server.reload()
    assert all(is_off(server.ask, module, number) for number in range(60))


def test_a_state_that_changes_while_a_table_is_made_anew_is_in_it(tmp_path):
    """The table is made once more, while nobody can write."""
    with mi.Trial(configuration("load_balancer", tmp_path, 3)) as trial:
        module = trial.server.registry.modules_by_name["load_balancer"]
        ctx, tables, states = mi.Context(module), module.namespace.BALANCE, []

        def make(old, each):
            states.append([one.enabled for one in old.ones])
            if len(states) == 1:
                assert b'"OK"' in trial.ask(request("lb_status [@, 0]", 1))
            return old.head, old.ones

        tables.replace(ctx, "", make)
        assert states == [[True, True, True], [True, False, True]]
        assert [is_off(trial.ask, "load_balancer", number) for number in range(3)] == [False, True, False]


def test_a_state_of_a_table_that_was_replaced_is_not_taken(tmp_path):
    """What a child writes that has not taken in a reload yet."""
    space, off, _, reload = CASES["drouting"]
    with mi.Trial(configuration("drouting", tmp_path, 3)) as trial:
        trial.ask(request(off, 1))
        key, value = next((key, value) for key, value in trial.server.store.items(space) if "\n" in key)
        assert b'"OK"' in trial.ask(request('dr_reload {"inherit_state": "0"}'))
        trial.server.store.put(space, key, value)
        assert not is_off(trial.ask, "drouting", 1)


def test_states_of_a_later_reload_stay(tmp_path, monkeypatch):
    """Of another configuration, while those of the table before are removed: a child that reads all anew sees what is served."""
    with mi.Trial(configuration("load_balancer", tmp_path, 3)) as trial:
        module, removed = trial.server.registry.modules_by_name["load_balancer"], []
        namespace, tables = module.namespace, module.namespace.BALANCE
        assert b'"OK"' in trial.ask(request("lb_status [@, 0]", 1))

        def in_turns(rows):
            rows = [*rows]
            if rows == ["1"] and not removed:
                removed.extend(rows)
                module.hooks["load"](mi.Context(module))
                assert b'"OK"' in trial.ask(request("lb_status [@, 1]", 1))
            return iter(rows)

        monkeypatch.setattr(namespace.opensips, "in_turns", in_turns)
        assert b'"OK"' in trial.ask(request("lb_reload []"))
        fresh = mi.shared("views").View(trial.server.store, tables.space, tables.take_in).now()
        assert removed and [one.enabled for one in fresh[""].ones] == [True, True, True]
        assert not is_off(trial.ask, "load_balancer", 1)


def removed_and_added(server):
    """Whether u0 is there, and the number of contacts in `second`."""
    shown = server.ask(b":ul_show_contact:\nlocation\nu0\n"), server.ask(b":get_statistics:\nsecond-contacts\n")
    return b"200" in shown[0], shown[1].split()[-1]


def test_a_reload_brings_back_no_contact_and_reads_further_tables(start, tmp_path):
    lines = configuration("usrloc", tmp_path, 1)
    (tmp_path / "second").write_bytes((tmp_path / "location").read_bytes())
    with open(tmp_path / "version", "a") as file:
        file.write("second:1013\n")
    server = start(lines)
    assert server.ask(b":ul_rm:\nlocation\nu0\n") == b"200 OK\n\n"
    server.reload()
    assert not removed_and_added(server)[0]
    server.write(lines + 'modparam("usrloc", "tables", "location;second")\n')
    server.reload()
    assert removed_and_added(server) == (False, b"1")


def test_a_table_that_was_read_in_part_is_read_again(tmp_path):
    """Its child was killed. What changed meanwhile stays."""
    with mi.Trial(configuration("usrloc", tmp_path, 3)) as trial:
        module = trial.server.registry.modules_by_name["usrloc"]
        for key in ("location\nu1", "location\nu2"):
            trial.server.store.remove(module.namespace.SPACE, key)
        trial.server.store.remove(module.namespace.READ, "location")
        trial.ask(b":ul_add:\nlocation\nu1\nsip:new@h\n0\n1\n0\n0\n0\n1\n")
        module.hooks["load"](mi.Context(module))
        shown = trial.ask(b":ul_dump:\n")
        assert shown.count(b"AOR::") == 3 and b"sip:new@h" in shown and b"sip:u1" not in shown and b"sip:u2" in shown


def test_contacts_of_a_table_that_is_no_longer_there_count_nowhere(tmp_path):
    with mi.Trial(configuration("usrloc", tmp_path, 1)) as trial:
        namespace = trial.server.registry.modules_by_name["usrloc"].namespace
        record = namespace.Record()
        record.contacts = [namespace.Contact("sip:x@y", 1, 5)]
        trial.server.store.put(namespace.SPACE, "second\nx", record.value())
        assert trial.ask(b":ul_flush:\n") == b"200 OK\n\n"
        assert trial.ask(b":get_statistics:\nregistered_users\n").endswith(b"registered_users:: 1\n\n")


def test_a_file_of_versions_with_one_column_has_none(tmp_path):
    lines = configuration("usrloc", tmp_path, 1)
    (tmp_path / "version").write_text("table_name(string)\nlocation\n")
    with pytest.raises(mi.ConfigError, match="table location has version none"):
        mi.Trial(lines)


def test_a_row_without_a_name_is_a_row(tmp_path):
    database = sqlite3.connect(tmp_path / "db")
    database.executescript("""CREATE TABLE version (table_name TEXT, table_version INTEGER);
        INSERT INTO version VALUES ('dr_gateways', 6), ('dr_carriers', 3), ('dr_rules', 4);
        CREATE TABLE dr_gateways (gwid TEXT, address TEXT, attrs TEXT, probe_mode INTEGER, state INTEGER);
        CREATE TABLE dr_carriers (carrierid TEXT, gwlist TEXT, attrs TEXT, state INTEGER);
        CREATE TABLE dr_rules (groupid TEXT, prefix TEXT, priority INTEGER, gwlist TEXT, attrs TEXT);
        INSERT INTO dr_gateways VALUES ('a', 'h', NULL, 0, 0), ('', 'h', NULL, 0, 0), ('b', 'h', NULL, 0, 0);""")
    database.close()
    with mi.Trial(f'loadmodule "drouting.so"\nmodparam("drouting", "db_url", "sqlite://{tmp_path}/db")') as trial:
        assert b'"OK"' in trial.ask(request('dr_gw_status {"gw_id": "", "status": 0}'))
        assert b"Disabled MI" in trial.ask(request('dr_gw_status {"gw_id": ""}'))
        assert trial.ask(b":dr_gw_status:\n").count(b"Active") == 2


@pytest.mark.parametrize("module, wanted", [
    *[(module, case[3] or "reg_reload []") for module, case in CASES.items()], ("permissions", "address_reload []"),
    ("domain", "domain_reload []"), ("usrloc", 'ul_sync ["location"]')])
def test_others_have_their_turn_while_a_table_is_read(start, tmp_path, module, wanted):
    """Another client of the one child has several replies before the reload has its own."""
    server = start(configuration(module, tmp_path, 20000 if module == "domain" else 4000))
    client, other = server.client(), server.client()
    client.send(request(wanted))
    replies = 0
    while not select.select([client.socket], [], [], 0)[0]:
        assert other.ask(b":pwd:\n").startswith(b"200 OK\n")
        replies += 1
    assert b'"OK"' in client.receive() and replies > 3


BAD = "import midatagram as mi\nx = 1\n\n\ndef {}(ctx):\n    raise OSError('no database')\n"


@pytest.mark.parametrize("hook", ["load", "child_init"])
def test_a_reload_that_is_taken_back_leaves_the_tables_of_the_old_configuration(start, plug_in, tmp_path, hook):
    """Also if one of them cannot be read any more: the others can."""
    old, new, folder = tmp_path / "old", tmp_path / "new", plug_in("odd", BAD.format(hook))
    for made in (old, new):
        made.mkdir()
    text = configuration("domain", old, 1, 'loadmodule "load_balancer.so"', 'modparam("mi_datagram", "children_count", 2)')
    server = start(text, "-p", folder)
    server.write(configuration("domain", new, 2, 'loadmodule "load_balancer.so"', 'loadmodule "odd.so"'))
    (old / "load_balancer").write_text("no header\n")
    before = server.children()
    server.reload("reload taken back")
    server.wait_log("load() after a reload that was taken back: load_balancer: ")
    wait_for(lambda: not all(map(is_alive, before)), what="the end of a child, whose successor serves")
    assert server.ask(b":domain_dump:\n").split()[2:] == [b"d0"]
    assert len(set(before) & set(server.children())) == 1
    for victim in server.children():  # the others need no load()
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda pid=victim: pid not in server.children() and len(server.children()) == 2, what="a child in its place")
    assert server.log.count("after a reload that was taken back") == 1
    server.stop(tracebacks=True)


COUNTED = """import pathlib
import time
import midatagram as mi
PARAMS = [mi.Param("slow", 0, mi.integer(0), "seconds")]

def init(ctx):
    time.sleep(ctx.param("slow"))

def load(ctx):
    with open({!r}, "a") as file:
        file.write("load")
"""


def test_a_reload_that_never_had_a_child_leaves_load_alone(start, plug_in, tmp_path):
    """Nor does it matter that a child of the old configuration is replaced meanwhile."""
    path = tmp_path / "loads"
    text = "\n".join(['loadmodule "counted.so"', 'modparam("midatagram", "start_timeout", 1500)',
                      'modparam("mi_datagram", "children_count", 2)', ""])
    server = start(text, "-p", plug_in("counted", COUNTED.format(f"{path}")))
    server.write(text + 'modparam("counted", "slow", 60)\n')
    server.signal(signal.SIGHUP)
    victim, other = server.children()
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: victim not in server.children() and len(server.children()) == 2, what="a child in its place")
    server.wait_log("reload taken back")
    stay = server.children()
    server.write(text)
    server.reload()  # by then a successor would have come
    assert path.read_text() == "loadload" and other in stay


@pytest.mark.parametrize("module, table, reload, listed", [
    ("domain", "domain", "domain_reload", "domain_dump"), ("dispatcher", "dispatcher", "ds_reload", "ds_list"),
    ("permissions", "address", "address_reload", "address_dump"), ("load_balancer", "load_balancer", "lb_reload", "lb_list")])
def test_of_two_reloads_at_once_the_later_one_counts(start, tmp_path, module, table, reload, listed):
    """The first has read the table, which then is another one, and the second has less to read."""
    server, path = start(configuration(module, tmp_path, 60000 if module == "domain" else 15000)), tmp_path / table
    first, second, other = server.client(), server.client(), server.client()
    first.send(f":{reload}:\n".encode())
    for _ in range(5):
        assert other.ask(b":pwd:\n").startswith(b"200 OK\n")
    path.write_text("\n".join([*path.read_text().split("\n")[:3], ""]))
    assert not select.select([first.socket], [], [], 0)[0]
    assert second.ask(f":{reload}:\n".encode()) == first.receive() == b"200 OK\n\n"
    reply = other.ask(f":{listed}:\n".encode())
    assert reply.startswith(b"200 OK\n") and reply.count(b"\n") < 10


@pytest.mark.parametrize("module, command, table, row, size", [
    ("drouting", "dr_gw_status", "dr_gateways", "@:10.0.0.1::0:0", lambda name: len(f"ID:: {name} IP=10.0.0.1 State=Active\n")),
    ("drouting", "dr_carrier_status", "dr_carriers", "@:g:attrs:0", lambda name: len(f"ID:: {name} Enabled=yes\n")),
    ("dispatcher", "ds_list", "dispatcher", "1:sip\\:@::0:1:0::",
     lambda name: len(f"\t\tURI:: sip:{name} state=Active first_hit_counter=0\n")),
    ("domain", "domain_dump", "domain", "@:", lambda name: len(f"{name}\n")),
    ("domain", "domain_dump", "domain", "@:a=1", lambda name: len(f"{name} attributes=a=1\n"))])
def test_a_list_that_is_too_long_says_how_long_to_the_byte(tmp_path, module, command, table, row, size):
    """Up to four times the limit, whether names are short or long."""
    for letters, total in ((0, mi.LIMIT), (0, mi.GIVE_UP - 300), (900, mi.GIVE_UP - 2000), (0, mi.GIVE_UP + 300)):
        names = [f"{'n' * letters}{at:05}" for at in range(total // size("n" * letters + "00000"))]
        text = configuration(module, tmp_path)
        header = (tmp_path / table).read_text().partition("\n")[0]
        (tmp_path / table).write_text("\n".join([header, *[numbered(row, name) for name in names], ""]))
        with mi.Trial(text) as trial:
            reply = trial.ask(f":{command}:\n".encode()).decode()
        head = len("PARTITION:: default\n\tSET:: 1\n") if module == "dispatcher" else 0
        length = len("200 OK\n\n") + head + sum(map(size, names))
        assert reply == f"500 {mi.reply_too_long(length).reason}\n" if length > mi.LIMIT else len(reply) == length


@pytest.mark.parametrize("module", CASES)
def test_a_reset_of_the_lab_leaves_no_gap(start, tmp_path, module):
    """Another child always sees the table, with the states of before or without."""
    _, off, (shown, _), _ = CASES[module]
    server = start(configuration(module, tmp_path, 300, 'loadmodule "lab.so"', 'modparam("mi_datagram", "children_count", 2)'))
    whole = b"sip:d299" if module == "dispatcher" else b"result"
    replies, is_over = set(), threading.Event()

    def look():
        with server.client() as client:
            while not is_over.is_set():
                replies.add(whole in client.ask(request(shown, 299)))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(10):
        assert b'"OK"' in server.ask(request(off, 1))
        assert server.ask(b":lab_reset:\n") == b"200 OK\n\n"
        assert not is_off(server.ask, module, 1)
    is_over.set()
    thread.join()
    assert replies == {True}


def test_a_column_that_an_sqlite_file_lacks(tmp_path):
    """SQLite alone would take its name for a text."""
    path = tmp_path / "tables.db"
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("CREATE TABLE version (table_name, table_version)")
        made.execute("INSERT INTO version VALUES ('domain', 4)")
        made.execute("CREATE TABLE domain (id, domai, attrs, accept_subdomain, last_modified)")
        made.execute("INSERT INTO domain VALUES (1, 'a.example', NULL, 0, 0)")
    lines = f'loadmodule "domain.so"\nmodparam("domain", "db_url", "sqlite://{path}")\nmodparam("domain", "db_mode", 1)\n'
    with pytest.raises(mi.ConfigError, match="no such column: one.domain"):
        mi.Trial(lines)
    with contextlib.closing(sqlite3.connect(path)) as made, made:
        made.execute("ALTER TABLE domain RENAME COLUMN domai TO domain")
    with mi.Trial(lines) as trial:
        assert trial.ask(b":domain_dump:\n").startswith(b"200 OK\na.example\n")
        with contextlib.closing(sqlite3.connect(path)) as made, made:
            made.execute("ALTER TABLE domain RENAME COLUMN domain TO domai")
        assert trial.ask(b":domain_reload:\n").startswith(b"500 ")
        assert trial.ask(b":domain_dump:\n").startswith(b"200 OK\na.example\n")


@pytest.mark.parametrize("lines, line", [
    ('loadmodule "dispatcher.so"\nmodparam("midatagram", "db_url", "{url}")', 2),
    ('modparam("midatagram", "db_url", "{url}")\nloadmodule "usrloc.so"\nmodparam("usrloc", "db_mode", 1)', 1),
    ('loadmodule "dispatcher.so"\n\nmodparam("dispatcher", "db_url", "{url}")', 3),
    ('loadmodule "dispatcher.so"\nmodparam("dispatcher", "partition", "a: table_name = x")\n'
     'modparam("dispatcher", "partition", "p: db_url = {url}")', 3),
])
@pytest.mark.parametrize("url, why", [("text:///no/such", "No such file or directory"), ("sqlite:///no/such.db", "no such file")])
def test_a_database_that_is_not_there_is_named_by_the_line_that_names_it(lines, line, url, why):
    with pytest.raises(mi.ConfigError) as caught:
        mi.Trial(lines.replace("{url}", url))
    assert (caught.value.path, caught.value.line) == ("trial", line) and why in caught.value.message
    assert caught.value.message.endswith("; a database is text://DIRECTORY, with files as db_text has them, or sqlite://FILE, "
                                         f'not "{url}"')


###############################################################################
# db_default_url
###############################################################################

OF_DEFAULT = {"usrloc": ["location"], "dialog": ["dialog"], "dispatcher": ["dispatcher"], "domain": ["domain"],
              "drouting": ["dr_gateways", "dr_carriers", "dr_rules"], "load_balancer": ["load_balancer"],
              "uac_registrant": ["registrant"], "permissions": [], "rtpproxy": []}
EMPTY = ("table {} of mysql://...@host/db is taken as empty; midatagram's db_url, as text://DIRECTORY, names a dump of it")


@pytest.mark.parametrize("module", OF_DEFAULT)
def test_a_module_without_a_database_has_that_of_db_default_url(module):
    """Those that have it in OpenSIPS; what cannot be read is said at its line."""
    lines = (f'\ndb_default_url="mysql://user:secret@host/db"\nloadmodule "{module}.so"\n'
             + (f'modparam("{module}", "db_mode", 1)\n' if module in ("usrloc", "dialog", "domain") else ""))
    with mi.Trial(lines) as trial:
        assert trial.server.setup.notes == [(logging.WARNING, f"trial:2: {EMPTY.format(name)}") for name in OF_DEFAULT[module]]


def domains(lines):
    """The domains that a configuration has."""
    with mi.Trial(f'{lines}\nloadmodule "domain.so"\nmodparam("domain", "db_mode", 1)\n') as trial:
        return re.findall(rb"^d\d$", trial.ask(b":domain_dump:\n"), re.M)


def test_the_database_of_a_module_comes_before_db_default_url(tmp_path):
    for name, rows in (("one", 1), ("two", 2), ("three", 3)):
        (tmp_path / name).mkdir()
        configuration("domain", tmp_path / name, rows)
    default = f'db_default_url = "text://{tmp_path}/one"'
    own = f'loadmodule "domain.so"\nmodparam("domain", "db_url", "text://{tmp_path}/two")\nmodparam("domain", "db_mode", 1)'
    with mi.Trial(f"{default}\n{own}") as trial:
        assert trial.ask(b":domain_dump:\n").count(b"\nd") == 2
    assert domains(default) == [b"d0"]
    assert len(domains(f'{default}\nmodparam("midatagram", "db_url", "text://{tmp_path}/three")')) == 3


def test_db_default_url_names_its_line_and_its_form(tmp_path):
    for line, wanted in ((f'db_default_url="text://{tmp_path}/none"', "trial:2: .*/none/version: No such file.*; a database is "),
                         ("db_default_url=mysql", 'trial:2: expected "URL", found mysql, .* the form is db_default_url="URL"')):
        with pytest.raises(mi.ConfigError, match=wanted):
            domains(f"\n{line}")


def test_partitions_have_db_default_url(tmp_path):
    """Of permissions those that are declared; dispatcher's default partition is there by it."""
    configuration("permissions", tmp_path, 1)
    with mi.Trial(f'db_default_url="text://{tmp_path}"\nloadmodule "permissions.so"\nloadmodule "dispatcher.so"\n'
                  'modparam("permissions", "partition", "p: table_name = address")\n'
                  'modparam("dispatcher", "partition", "q: table_name = dispatcher")\n') as trial:
        assert re.findall(rb"PARTITION:: (\w+)", trial.ask(b":ds_list:\n")) == [b"q", b"default"]
        dump = trial.ask(b":address_dump:\n")
        assert b"10.1.0.1" in dump and b"default" not in dump
