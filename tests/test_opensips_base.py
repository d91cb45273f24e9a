"""What the plug-ins of OpenSIPS' modules share: the order of lists, numbers, forms in both directions, tables."""

import os
import re
import sqlite3
import time

import pytest
from conftest import OPENSIPS_MODULES, ROOT, run

import midatagram as mi

opensips = mi.shared("opensips_base")
forms = opensips.forms
T = opensips.table("things", [3], "id# name note? size#? share~?", "%s_col")
HEADER = "id(int,auto) name(string) note(string,null) size(int,null) share(double,null)"


@pytest.mark.parametrize("text, bits", [("alice", 63453), ("carol", 46966), ("bob", 13251), ("", 0)])
def test_the_hash_is_that_of_recorded_contact_ids(text, bits):
    assert opensips.core_hash(text.encode()) & 0xFFFF == bits


@pytest.mark.parametrize("data, groups", [
    (b"\x01\xff\x01\x01", [(1, -1, 1, 1)]), (b"\xff", [(-1,)]), (b"\x80abc\xfe\x7f", [(-128, 97, 98, 99), (-2, 127)]),
    (b"\xff\xff\xff\xff", [(-1, -1, -1, -1)]), ("jürgen".encode(), [(106, -61, -68, 114), (103, 101, 110)])])
def test_the_hash_takes_bytes_as_signed(data, groups):
    values = [sum(byte << 8 * at for at, byte in enumerate(reversed(group))) & 0xFFFFFFFF for group in groups]
    total = sum(value ^ value >> 3 for value in values) & 0xFFFFFFFF
    assert opensips.core_hash(data) == total + (total >> 11) + (total >> 13) + (total >> 23) & 0xFFFFFFFF


@pytest.mark.parametrize("text, wanted", [("0", 0), ("007", 7), ("4294967295", 2**32 - 1), ("4294967297", 1), ("1" + "0" * 40, 0),
                                          ("", None), (None, None), ("-1", None), ("+1", None), (" 1", None), ("0x1", None),
                                          ("1\n", None), ("\u0661", None)])
def test_uint(text, wanted):
    if wanted is None:
        with pytest.raises(ValueError, match="digits"):
            opensips.uint(text)
    else:
        assert opensips.uint(text) == wanted


@pytest.mark.parametrize("text, wanted, shown", [
    ("0", 0, "0"), ("0.5", 500, "0.5"), (".5", 500, "0.5"), ("0.", 0, "0"), ("1.", 1000, "1"), ("00.5", 500, "0.5"),
    ("01", 1000, "1"), ("1.000", 1000, "1"), ("0.12345", 123, "0.123"), ("0.25", 250, "0.25"), (" \t0.7", 700, "0.7"),
    ("0.001", 1, "0.001"), ("1.5", None, ""), ("2", None, ""), ("1.001", None, ""), ("", None, ""), (" ", None, ""),
    ("x", None, ""), ("0.5x", None, ""), ("-0", None, ""), ("0,5", None, ""), ("0.5 ", None, "")])
def test_q(text, wanted, shown):
    if wanted is None:
        with pytest.raises(ValueError, match="from 0 to 1"):
            opensips.q_value(text)
    else:
        assert opensips.q_value(text) == wanted
        assert opensips.shown_q(wanted) == shown


###############################################################################
# Forms
###############################################################################


def test_forms_are_read_without_the_modules():
    """The two files alone: neither the plug-in of a module nor a configuration."""
    done = run("-c", "-s", "/tmp/never", cwd=ROOT)
    assert done.returncode == 0
    assert {"ul_add", "ul_dump", "ds_list"} <= set(forms.FORMS)
    assert not [name for name in vars(forms) if name.startswith(("ul_", "ds_"))]


def test_every_command_of_the_modules_has_a_form():
    for name in OPENSIPS_MODULES:
        for command in mi.load_plugin(str(ROOT / "plugins" / f"{name}.py")).commands:
            form = forms.FORMS[command.name]
            assert [*map(list, command.recipes)] == [recipe.split() for recipe in form.recipes]
            names = set(" ".join(form.recipes).split())
            assert set(form.numbers.split()) <= names


###############################################################################
# Tables
###############################################################################


def folder_of(tmp_path, *lines, header=HEADER, version="things:3"):
    """A folder of db_text with one table."""
    (tmp_path / "version").write_text(f"table_name(string) table_version(int)\nother:9\n{version}\n")
    (tmp_path / "things").write_text("\n".join([header, *lines, ""]))
    return f"text://{tmp_path}"


def test_a_text_table_has_rows_of_its_columns_kinds(tmp_path):
    url = folder_of(tmp_path, r"1:a\:b\\c\n\r\t\0d:note:7:0.5", "2:x:::", "", "-3:\u00e9 \\\\x:n::1")
    assert opensips.read_table(url, T) == [
        {"id": 1, "name": "a:b\\c\n\r\t\0d", "note": "note", "size": 7, "share": 0.5},
        {"id": 2, "name": "x", "note": None, "size": None, "share": None},
        {"id": -3, "name": "\u00e9 \\x", "note": "n", "size": None, "share": 1.0}]


def test_the_order_of_columns_is_that_of_the_header(tmp_path):
    header = "name(str) share(double) id(int) more(blob,null) size(long) note(s,null)"
    url = folder_of(tmp_path, "n:0.25:9:extra:5:x", header=header)
    assert opensips.read_table(url, T) == [{"id": 9, "name": "n", "note": "x", "size": 5, "share": 0.25}]


@pytest.mark.parametrize("lines, options, where", [
    (["x:a:::"], {}, "things:2: id is 'x'"), (["1:a:b:c:"], {}, "things:2: size is 'c'"), (["1:a:::y"], {}, "share is 'y'"),
    (["1:a:::", "2::::"], {}, "things:3: name is empty"), (["1:a"], {}, "things:2: has 2 fields, not 5"),
    (["1:a::::"], {}, "has 6 fields"), ([f"{2**32}:a:::"], {}, "things:2: id is '4294967296', which is too large"),
    (["1:a:::1e400"], {}, "share is '1e400', which is no number"), ([f"1:a:::1{'0' * 400}"], {}, "which is too large"),
    (["+1:a:::"], {}, "things:2: id is '+1'"),
    (["1:a\\x:::"], {}, "things:2: \\x is no escape"), (["1:a:::\\"], {}, "things:2: \\ is no"),
    (["", "1:a:::", "", "y:a:::"], {}, "things:5: id is 'y'"),
    (["1:a::::z"], {"header": f"{HEADER} unread(int,null)"}, "things:2: unread is 'z', which is no number"),
    ([], {"header": "id(foo) name(string)"}, "things:1: is no header"),
    (["1:a::\u00b2:"], {}, "size is '\u00b2', which is no number"),
    ([f"{'9' * 5000}:a:::"], {}, "things:2: id is '99999"),
    ([], {"version": "things:2"}, "version 2, not 3"), ([], {"version": ""}, "version none"),
    ([], {"header": "id(int) name"}, "things:1: is no header"), ([], {"header": ""}, "things:1: no column id"),
    ([], {"header": "id(int)"}, "things:1: no column name")])
def test_what_is_wrong_with_a_text_table_is_named_with_file_and_row(tmp_path, lines, options, where):
    with pytest.raises(opensips.TableError, match=re.escape(where)):
        opensips.read_table(folder_of(tmp_path, *lines, **options), T)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(opensips.TableError, match="No such file"):
        opensips.read_table(f"text://{tmp_path}", T)
    with pytest.raises(opensips.TableError, match="no such file"):
        opensips.read_table(f"sqlite://{tmp_path}/none", T)


@pytest.mark.parametrize("name", ["things", "version"])
def test_a_fifo_in_the_place_of_a_table_is_named(tmp_path, name):
    url = folder_of(tmp_path, "1:a:::")
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    with pytest.raises(opensips.TableError, match=f"{tmp_path}/{name}: is a FIFO or a device; name a regular file"):
        opensips.read_table(url, T)
    with pytest.raises(opensips.TableError, match=f"{tmp_path}/{name}: is no regular file; the form is sqlite://FILE"):
        opensips.read_table(f"sqlite://{tmp_path}/{name}", T)


def database(path, version=3):
    """An SQLite file with the table."""
    base = sqlite3.connect(path)
    base.executescript(f"""CREATE TABLE version (table_name TEXT, table_version INTEGER);
        INSERT INTO version VALUES ('things', {version});
        CREATE TABLE things (share REAL, id INTEGER PRIMARY KEY, name TEXT, note TEXT, size INTEGER);
        INSERT INTO things VALUES (0.5, 1, 'a', 'b', 7), (NULL, 2, 'x', NULL, NULL);""")
    base.commit()
    base.close()
    return f"sqlite://{path}"


def test_an_sqlite_file_has_the_same_rows(tmp_path):
    assert opensips.read_table(database(tmp_path / "a?#b.db"), T) == [
        {"id": 1, "name": "a", "note": "b", "size": 7, "share": 0.5},
        {"id": 2, "name": "x", "note": None, "size": None, "share": None}]


def test_a_text_that_sqlite_has_as_bytes_is_one(tmp_path):
    url = database(tmp_path / "a.db")
    with sqlite3.connect(tmp_path / "a.db") as base:
        base.execute("UPDATE things SET note = ?, name = 7 WHERE id = 1", (b"caf\xc3\xa9",))
    base.close()
    assert [(row["name"], row["note"]) for row in opensips.read_table(url, T)] == [("7", "caf\u00e9"), ("x", None)]


def test_a_locked_sqlite_file_is_not_waited_for_long(tmp_path):
    url, base, began_s = database(tmp_path / "a.db"), sqlite3.connect(tmp_path / "a.db"), time.monotonic()
    base.execute("BEGIN EXCLUSIVE")
    with pytest.raises(opensips.TableError, match="is locked"):
        opensips.read_table(url, T)
    assert time.monotonic() - began_s < 3
    base.close()


def test_what_is_wrong_with_an_sqlite_file_is_named(tmp_path):
    with pytest.raises(opensips.TableError, match="version 2, not 3"):
        opensips.read_table(database(tmp_path / "a.db", 2), T)
    (tmp_path / "b.db").write_text("no database" * 100)
    with pytest.raises(opensips.TableError, match="not a database"):
        opensips.read_table(f"sqlite://{tmp_path}/b.db", T)
    url = database(tmp_path / "c.db")
    with pytest.raises(opensips.TableError, match="no such table: others"):
        opensips.read_table(url, T._replace(name="others", versions=(None,)))


def test_the_names_of_40():
    """Those of the commands that 4.0 has, from their old ones."""
    names = {"ul_add": "usrloc:add", "ul_show_contact": "usrloc:show_contact", "dlg_end_dlg": "dialog:end_dlg",
             "profile_get_size": "dialog:profile_get_size", "ds_set_state": "dispatcher:set_state", "ds_list": "dispatcher:list"}
    for old, new in names.items():
        module = mi.load_plugin(str(ROOT / "plugins" / f"{new.partition(':')[0]}.py"))
        assert opensips.full_name(getattr(module.namespace, old)) == new
