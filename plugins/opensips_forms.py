"""opensips_forms -- how the commands of OpenSIPS' modules look in 2.4 and in 3.4, as data.

A Form says which arguments a command takes in either version and how 2.4's tree and 3.4's JSON relate. It is data beside the
command, which can be read without the module's plug-in and used in both directions: to_nodes() makes the tree of a JSON value,
to_json() the JSON value of a tree.
"""
from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

# A member of an object is written as its name. Behind the name, `#` marks a number in JSON, which may be a word where it is
# not all digits; `!` what only JSON has. Where the tree has another name, that stands before: `IP=address`.


class Rows(NamedTuple):
    """Nodes of one name in the tree, and the objects of one array in JSON.

    member: the name of the array, or empty where one object stands for itself; node: the name of the nodes; value: the member
    that is the value of the node, or empty; attributes: members that are attributes of the node; children: members that are
    nodes below it, and Rows; order: the members as JSON has them, where that differs; shown: whether JSON has the array when
    there is nothing in it.
    """

    member: str
    node: str
    value: str
    attributes: tuple = ()
    children: tuple = ()
    order: tuple = ()
    shown: bool = True


class Form(NamedTuple):
    """What a command takes and gives.

    text: the names of 2.4's arguments in order, `[name]` may be left out, `-` is not looked at, `...` stands for any number
    that are ignored; None: arguments are never read. recipes: the names that 3.4 takes together. numbers: arguments that are
    numbers in JSON. tree: what a reply with data has. errors: 2.4's text -> code and text of 3.4, where they differ.
    """

    text: str | None
    recipes: tuple = ("",)
    numbers: str = ""
    tree: Rows | None = None
    errors: dict = {}


@functools.lru_cache(1000)
def split(mark: str) -> tuple[str, str, bool]:
    """The names that a mark has in the tree and in JSON, and whether it is a number there."""
    label, _, member = mark.rpartition("=")
    name = member.rstrip("#!")
    return label or name, name, "#" in member


def in_json(text: str | None, is_number: bool) -> Any:
    """The text of a node or an attribute as JSON has it."""
    return int(text) if is_number and text and text.isdigit() else text or ""


def to_nodes(rows: Rows, value: Any) -> list[tuple]:
    """The nodes of a JSON value, as plain tuples: name, value, attributes and children."""
    objects = value.get(rows.member, ()) if rows.member else [value]
    return [node_of(rows, item) for item in objects]


def node_of(rows: Rows, item: dict) -> tuple:
    """The node of one object."""
    attributes = [(label, item[name]) for label, name, _ in map(split, rows.attributes) if name in item]
    children: list = []
    for child in rows.children:
        if isinstance(child, Rows):
            children += to_nodes(child, item)
        elif not child.endswith("!"):
            label, name, _ = split(child)
            if name in item:
                children.append((label, item[name], (), ()))
    return rows.node, item[split(rows.value)[1]] if rows.value else None, attributes, children


def to_json(rows: Rows, nodes: Iterable[tuple]) -> Any:
    """The JSON value of nodes: an object with the array, or the object that stands for itself."""
    objects = [object_of(rows, node) for node in nodes if node[0] == rows.node]
    if not rows.member:
        return objects[0] if objects else {}
    return {rows.member: objects} if objects or rows.shown else {}


def object_of(rows: Rows, node: tuple) -> dict:
    """The object of one node."""
    value, texts, children = node[1], dict(node[2]), node[3]
    item: dict = {}
    if rows.value:
        for label, _, _ in map(split, reversed(rows.attributes)):  # read_tree() leaves them in the value
            head, mark, tail = (value or "").rpartition(f" {label}=")
            if mark:
                value, texts[label] = head, tail
        _, name, is_number = split(rows.value)
        item[name] = in_json(value, is_number)
    item.update({name: in_json(texts[label], is_number) for label, name, is_number in map(split, rows.attributes)
                 if label in texts})
    leaves = {child[0]: child[1] for child in children if not child[3]}
    for child in rows.children:
        if isinstance(child, Rows):
            item.update(to_json(child, children))
        else:
            label, name, is_number = split(child)
            if label in leaves:
                item[name] = in_json(leaves[label], is_number)
    return {name: item[name] for name in rows.order if name in item} if rows.order else item


BAD_PARAMETER = {"Bad parameter": (400, "Bad parameter value")}

CONTACTS = Rows("Contacts", "Contact", "Contact", ("Q",), (
    "ContactID", "Expires#", "Callid", "Cseq#", "User-agent", "Received", "Path", "State", "Flags#", "Cflags", "Socket",
    "Methods#", "Attr", "SIP_instance", "Ping-Latency#", "KV-Store"), (
    "Contact", "ContactID", "Expires", "Q", "Callid", "Cseq", "User-agent", "Received", "Path", "State", "Flags", "Cflags",
    "Socket", "Methods", "Attr", "SIP_instance", "Ping-Latency", "KV-Store"), shown=False)
DESTINATIONS = Rows("Destinations", "URI", "URI", ("state", "first_hit_counter#"), (
    "socket", "attr", "script_attr!", "weight#", "priority#", "description", "resolved_addresses!"))

FORMS = {
    # usrloc
    "ul_add": Form("table_name aor contact expires q - flags cflags methods",
                   ("table_name aor contact expires q flags cflags methods",), "expires flags cflags methods",
                   errors={**BAD_PARAMETER, "Server Internal Error": (500, "Internal Error")}),
    "ul_rm": Form("table_name aor", ("table_name aor",)),
    "ul_rm_contact": Form("table_name aor contact", ("table_name aor contact",)),
    "ul_show_contact": Form("table_name aor", ("table_name aor",), tree=Rows("", "AOR", "AOR", (), (CONTACTS, "KV-Store"))),
    "ul_dump": Form("[brief]", ("", "brief"), "brief", Rows("Domains", "Domain", "name", ("hash_size#",), (
        Rows("AORs", "AOR", "AOR", (), (CONTACTS, "KV-Store")),))),
    "ul_flush": Form(None),
    "ul_sync": Form("[table_name] [aor] ...", ("table_name", "table_name aor")),
    "ul_cluster_sync": Form(None),
    # dispatcher
    "ds_set_state": Form("[state] [group] [address] ...", ("state group address",)),
    "ds_list": Form("[partition] [full] ...", ("", "partition", "full", "full partition"), "full",
                    Rows("PARTITIONS", "PARTITION", "name", (), (
                        Rows("SETS", "SET", "id#", (), (DESTINATIONS,), shown=False),)),
                    errors={"Bad parameter": (500, "ERROR Unknown partition")}),
    "ds_reload": Form("[partition]", ("", "inherit_state", "partition", "partition inherit_state")),
    "ds_push_script_attrs": Form("attrs ip port set [partition]", ("attrs ip port set", "attrs ip port set partition"),
                                 "port set"),
}
# The attributes that an event has in 2.4, all of those that it has in 3.4.
CONTACT_EVENT = "aor uri received path qval socket bflags expires callid cseq attr latency"
EVENT_FORMS = {
    "E_UL_AOR_INSERT": "aor", "E_UL_AOR_DELETE": "aor", "E_UL_CONTACT_INSERT": CONTACT_EVENT,
    "E_UL_CONTACT_UPDATE": CONTACT_EVENT, "E_UL_CONTACT_DELETE": CONTACT_EVENT, "E_UL_LATENCY_UPDATE": CONTACT_EVENT,
    "E_DISPATCHER_STATUS": "partition group address status",
}
