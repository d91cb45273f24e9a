"""opensips_forms -- how the commands of OpenSIPS' modules look in 2.4 and in 3.4, as data.

A Form says which arguments a command takes in either version and how 2.4's tree and 3.4's JSON relate. It is data beside the
command, which can be read without the module's plug-in and used in both directions: to_nodes() makes the tree of a JSON value,
to_json() the JSON value of a tree.
"""
from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

# A member of an object is written as its name. Behind the name, `#` marks a number in JSON, which may be a word where it is
# not all digits; `!` what only JSON has; `+` what the tree always has, JSON only if it is not empty; `*` the same, the tree has a
# dot for it; `?` what is null in JSON where there is nothing in the tree; `~` a number in the tree that is words in JSON, which
# cannot be told from each other;
# `@NAME` what a pair of functions in CONVERTERS turns into each other. Where the tree has another name, that stands before:
# `IP=address`.


class Rows(NamedTuple):
    """Nodes of one name in the tree, and the objects of one array in JSON.

    member: the name of the array, or empty where one object stands for itself, or `*` where the array does; node: the name of
    the nodes, None for lines without one; value: the member that is the value of the node, or empty; attributes: members that
    are attributes of the node;
    children: members that are nodes below it, and further parts; order: the members as JSON has them, where that differs.
    shown: whether JSON has the array when there is nothing in it; single: the member for one that was asked for by name, `*`
    where it stands for itself;
    container: the node around the nodes; nothing: the value of a node for null; made: members that JSON makes of others,
    with the name of the function in MAKERS.
    """

    member: str
    node: str | None
    value: str = ""
    attributes: tuple = ()
    children: tuple = ()
    order: tuple = ()
    shown: bool = True
    single: str = ""
    container: str = ""
    nothing: str = ""
    made: tuple = ()

    def nodes(self, value: Any) -> list[tuple]:
        """The nodes of a JSON value that has the array, the single object, or is what it stands for."""
        if self.single and self.single in value:
            objects = [value[self.single]]
        else:
            objects = value if self.member == "*" else value.get(self.member, ()) if self.member else [value]
        made = [self.node_of(item) for item in objects]
        return [(self.container, "", (), made)] if self.container else made

    def node_of(self, item: dict) -> tuple:
        """The node of one object."""
        attributes = [(label, in_tree(item[name], "", marks)) for label, name, marks in map(split, self.attributes)
                      if name in item and "!" not in marks]
        value = in_tree(item[split(self.value)[1]], self.nothing) if self.value else "" if self.container else None
        return self.node, value, attributes, nodes_of(self.children, item)

    def members(self, nodes: Iterable[tuple], named: bool = False) -> Any:
        """What these nodes are in JSON; named: one that was asked for by name."""
        nodes = list(nodes)
        if self.container:
            nodes = [child for node in nodes if node[0] == self.container for child in node[3]]
        objects = [self.object_of(node) for node in nodes if node[0] == self.node]
        if self.single and (named or not self.member):
            return {} if not objects else objects[0] if self.single == "*" else {self.single: objects[0]}
        if self.member in ("", "*"):
            return objects if self.member else objects[0] if objects else {}
        return {self.member: objects} if objects or self.shown else {}

    def object_of(self, node: tuple) -> dict:
        """The object of one node."""
        value, texts = "".join([node[1] or "", *(f" {label}={text}" for label, text in node[2])]), {}
        item: dict = {}
        for label, _, _ in map(split, reversed(self.attributes)):  # read_tree() knows neither blanks in labels nor their order
            head, mark, tail = value.rpartition(f" {label}=")
            if mark:
                value, texts[label] = head, tail
        if self.value:
            _, name, marks = split(self.value)
            item[name] = in_json(value, marks, self.nothing)
        item.update({name: in_json(texts[label], marks) for label, name, marks in map(split, self.attributes) if label in texts})
        item.update(members_of(self.children, node[3]))
        made = {name: MAKERS[function](item[source]) for name, source, function in self.made if source in item}
        item = {**made, **item}
        return {name: item[name] for name in self.order if name in item} if self.order else item


class Group(NamedTuple):
    """A node without a value whose children are the members of an object."""

    name: str
    children: tuple

    def nodes(self, item: dict) -> list[tuple]:
        """The node of a member, if there is one."""
        return [(self.name, "", (), nodes_of(self.children, item[self.name]))] if self.name in item else []

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The member that the node is, if there is one."""
        objects = [members_of(self.children, node[3]) for node in nodes if node[0] == self.name]
        return {self.name: objects[0]} if objects else {}


class Pairs(NamedTuple):
    """Names and values, in JSON an array of objects with one member each; in the tree the children of a node unless they are
    not wrapped."""

    name: str
    wrapped: bool = True

    def nodes(self, item: dict) -> list[tuple]:
        """The nodes of a member, if there is one."""
        pairs = [(key, value, (), ()) for pair in item.get(self.name, ()) for key, value in pair.items()]
        return [(self.name, "", (), pairs)] if pairs and self.wrapped else pairs

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The member that the nodes are, if there is one."""
        lists = [node[3] for node in nodes if node[0] == self.name] if self.wrapped else [nodes]
        return {self.name: [{node[0]: node[1] or ""} for node in lists[0]]} if lists else {}


class Pipes(NamedTuple):
    """Pipes, and the drop rate of all in a last node of their name."""

    pipes: Rows

    def nodes(self, value: dict) -> list[tuple]:
        """The nodes of an object."""
        return [*self.pipes.nodes(value), (self.pipes.node, None, (("drop_rate", value["drop_rate"]),), ())]

    def members(self, nodes: Iterable[tuple], named: bool = False) -> dict:
        """The object of the nodes; named: of one pipe that was asked for."""
        *pipes, last = nodes
        return {**self.pipes.members(pipes, named), "drop_rate": in_json(dict(last[2]).get("drop_rate"), "#")}


class Switches(NamedTuple):
    """Nodes whose names are values and whose values are 0 or 1, in JSON an array of objects with a boolean."""

    member: str
    name: str
    switch: str

    def nodes(self, value: dict) -> list[tuple]:
        """The nodes of the array."""
        return [(item[self.name], int(item[self.switch]), (), ()) for item in value[self.member]]

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The array of the nodes."""
        return {self.member: [{self.name: node[0], self.switch: node[1] == "1"} for node in nodes]}


class Joined(NamedTuple):
    """A node whose value is the items of an array, with a word before them, or a dot where JSON has no array."""

    name: str
    word: str

    def nodes(self, item: dict) -> list[tuple]:
        """The node of an array."""
        return [(self.name, self.word + ", ".join(item[self.name]) if item.get(self.name) else ".", (), ())]

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The array of the node, if it has any items."""
        values = [node[1] for node in nodes if node[0] == self.name and node[1] != "."]
        return {self.name: values[0].removeprefix(self.word).split(", ")} if values else {}


class Message(NamedTuple):
    """The last node, whose value goes on over further lines; a dot where JSON has none."""

    name: str

    def nodes(self, item: dict) -> list[tuple]:
        """The node of a text."""
        return [(self.name, item.get(self.name, "."), (), ())]

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The text of the node and of all behind it, which read_tree() takes for nodes."""
        lines: list[str] = []
        for name, value, *_ in nodes:
            if lines or name == self.name:
                lines.append(f"{name}:: {value}" if lines and name else value or "")
        return {self.name: "\n".join(lines)} if lines and lines != ["."] else {}


class Lines(NamedTuple):
    """Nodes without a name, in JSON an array of texts, or without a member the result itself."""

    member: str = ""

    def nodes(self, value: Any) -> list[tuple]:
        """The nodes of the array."""
        return [(None, text, (), ()) for text in (value[self.member] if self.member else value)]

    def members(self, nodes: Iterable[tuple], named: bool = False) -> Any:
        """The array of the nodes."""
        lines = [node[1] or "" for node in nodes]
        return {self.member: lines} if self.member else lines


class Twice(dict):
    """An object some of whose members come again, as of statistics that are asked for twice: items() has all."""

    def __init__(self, members: list[tuple[str, Any]]):
        super().__init__(members)
        self.every = members

    def items(self) -> Any:
        """All members, in their order."""
        return self.every


class Members(NamedTuple):
    """Nodes of any names, in JSON the members of an object; marks: those of each member; twice: one may come again."""

    marks: str = ""
    twice: bool = False

    def nodes(self, value: dict) -> list[tuple]:
        """The nodes of the members."""
        return [(name, item, (), ()) for name, item in value.items()]

    def members(self, nodes: Iterable[tuple], named: bool = False) -> dict:
        """The members that the nodes are."""
        members = [(node[0], in_json(node[1], self.marks)) for node in nodes if node[0]]
        return Twice(members) if self.twice and len(dict(members)) < len(members) else dict(members)


class Addresses(NamedTuple):
    """Destinations by partition. In 2.4 those of one that was asked for stand beside its node, or `twice` below it."""

    twice: bool

    def nodes(self, value: dict) -> list[tuple]:
        """The nodes of all partitions, or of one."""
        if "part" not in value:
            return PARTITIONS.nodes(value)
        listed = ADDRESSES.nodes(value)
        return [("part", value["part"], (), listed * 2)] if self.twice else [("part", value["part"], (), ()), *listed]

    def members(self, nodes: Iterable[tuple], named: bool = False) -> dict:
        """What the nodes are in JSON; named: those of one partition that was asked for."""
        if not named:
            return PARTITIONS.members(nodes)
        head, *beside = nodes
        return {"part": head[1], **ADDRESSES.members(head[3][:len(head[3]) // 2] if self.twice else beside)}


class Named(NamedTuple):
    """Nodes whose names are a member of the objects of an array, and that have the other members as attributes."""

    member: str
    name: str
    attributes: tuple

    def nodes(self, value: dict) -> list[tuple]:
        """The nodes of the array."""
        return [(item[self.name], None, [(name, item[name]) for name in self.attributes if name in item], ())
                for item in value[self.member]]

    def members(self, nodes: Iterable[tuple]) -> dict:
        """The array of the nodes."""
        return {self.member: [{self.name: node[0], **dict(node[2])} for node in nodes if node[2]]}


class Form(NamedTuple):
    """What a command takes and gives.

    text: the names of 2.4's arguments in order, `[name]` may be left out, `-` is not looked at, `...` stands for any number
    that are ignored; None: arguments are never read. recipes: the names that 3.4 takes together. numbers: arguments that are
    numbers in JSON. tree: the parts of a reply with data. errors: 2.4's text -> code and text of 3.4, where they differ.
    named: whether 3.4 takes them by name only; nothing: what 3.4 says where 2.4 has an empty tree; first: the arguments whose
    type 3.4 judges before it looks at any.
    """

    text: str | None
    recipes: tuple = ("",)
    numbers: str = ""
    tree: tuple = ()
    errors: dict = {}
    named: bool = False
    nothing: str | None = None
    first: str = ""


@functools.lru_cache(1000)
def split(mark: str) -> tuple[str, str, str]:
    """The names that a mark has in the tree and in JSON, and the marks behind it."""
    label, _, member = mark.rpartition("=")
    name = re.split("[#!+*?~@]", member)[0]
    return label or name, name, member[len(name):]


def in_json(text: str | None, marks: str, nothing: str = "") -> Any:
    """The text of a node or an attribute as JSON has it."""
    if "@" in marks:
        return CONVERTERS[marks.partition("@")[2]][0](text or "")
    if "#" in marks and text and text.lstrip("-").isdigit():
        return int(text)
    return None if "?" in marks and (text or "") == nothing else "" if "~" in marks else text or ""


def in_tree(value: Any, nothing: str, marks: str = "") -> Any:
    """A JSON value as the tree has it."""
    return CONVERTERS[marks.partition("@")[2]][1](value) if "@" in marks else nothing if value is None else value


def nodes_of(parts: tuple, item: dict) -> list[tuple]:
    """The nodes of the parts of an object, as plain tuples: name, value, attributes and children."""
    nodes: list = []
    for part in parts:
        if not isinstance(part, str):
            nodes += part.nodes(item)
            continue
        label, name, marks = split(part)
        if (name in item or "+" in marks or "*" in marks) and "!" not in marks:
            value = item.get(name, "." if "*" in marks else "")
            nodes.append((label, 0 if "~" in marks and not f"{value}".isdigit() else in_tree(value, "", marks), (), ()))
    return nodes


def members_of(parts: tuple, nodes: Iterable[tuple]) -> dict:
    """The members that nodes are, by the parts of an object."""
    nodes = list(nodes)
    leaves, item = {node[0]: node[1] for node in nodes if not node[3]}, {}
    for part in parts:
        if not isinstance(part, str):
            item.update(part.members(nodes))
            continue
        label, name, marks = split(part)
        if label in leaves and not ("+" in marks and not leaves[label] or "*" in marks and leaves[label] == "."):
            item[name] = in_json(leaves[label], marks)
    return item


def to_nodes(tree: tuple, value: Any) -> list[tuple]:
    """The tree of 2.4 for a result of 3.4."""
    return tree[0].nodes(value) if isinstance(value, list) else nodes_of(tree, value)


def to_json(tree: tuple, nodes: Iterable[tuple], named: bool = False) -> Any:
    """The result of 3.4 for a tree of 2.4; named: what was asked for by its name."""
    nodes, last = list(nodes), tree[-1]
    is_whole = len(tree) == 1 or named and last.single if isinstance(last, Rows) else \
        isinstance(last, (Addresses, Lines, Members, Pipes))
    if is_whole:
        return last.members(nodes, named)
    return members_of(tuple(part for part in tree if not named or getattr(part, "single", part)), nodes)


def dialog_id(db_id: Any) -> str:
    """The ID of a dialog in 3.4: both halves of the number in hexadecimal, the digits of each reversed."""
    return ".".join(f"{half:x}"[::-1] for half in divmod(int(db_id), 2**32))


def dialog_number(dialog_id: str) -> int:
    """The number of a dialog in 2.4, of its ID in 3.4."""
    entry, number = [int(half[::-1], 16) for half in dialog_id.split(".")]
    return entry * 2**32 + number


MAKERS = {"dialog_id": dialog_id}
PROTOCOLS = ["any", "udp", "tcp", "tls", "sctp", "ws", "wss"]


def number_of(words: list[str], word: str, other: int = 0) -> int:
    """The number of a word, `other` for one that is not known."""
    return words.index(word) if word in words else other


CONVERTERS: dict = {  # (of the tree, of JSON) -> the other
    "process": (lambda text: text.rstrip(" "), lambda word: f"{word} " if word.startswith("SIP receiver ") else word),
    "protocol": (lambda text: PROTOCOLS[int(text)] if text.isdigit() and int(text) < len(PROTOCOLS) else text,
                 lambda word: number_of(PROTOCOLS, word)),
    "owner": (lambda text: "script" if text == "13" else text, lambda word: 13 if word == "script" else word),
    "flags": (lambda text: (int(text) + 2**31) % 2**32 - 2**31 if text.isdigit() else text,
              lambda flags: flags % 2**64),  # 2.4 extends the sign to 64 bits
    "list_flags": (lambda text: ["read-only"] if text == "1" else [], lambda words: int("read-only" in words)),
}
BAD_PARAMETER = {"Bad parameter": (400, "Bad parameter value")}

CONTACTS = Rows("Contacts", "Contact", "Contact", ("Q",), (
    "ContactID", "Expires#", "Callid", "Cseq#", "User-agent", "Received", "Path", "State", "Flags@flags", "Cflags", "Socket",
    "Methods#", "Attr", "SIP_instance", "Ping-Latency#", "KV-Store"), (
    "Contact", "ContactID", "Expires", "Q", "Callid", "Cseq", "User-agent", "Received", "Path", "State", "Flags", "Cflags",
    "Socket", "Methods", "Attr", "SIP_instance", "Ping-Latency", "KV-Store"), shown=False)
DESTINATIONS = Rows("Destinations", "URI", "URI", ("state", "first_hit_counter#"), (
    "socket", "attr", "script_attr!", "weight#", "priority#", "description", "resolved_addresses!"))
CALLEES = Rows("CALLEES", "callee", "", (), (
    "callee_tag", "callee_contact", "caller_cseq", "callee_route_set", "callee_bind_addr?", "callee_sdp+"), container="CALLEES")
DIALOGS = Rows("Dialogs", "dialog", "", ("ID=db_id",), (
    "state#", "user_flags~", "timestart#", "datestart", "timeout#", "dateout", "callid", "from_uri", "to_uri", "caller_tag",
    "caller_contact", "callee_cseq", "caller_route_set", "caller_bind_addr", "caller_sdp+", CALLEES,
    Group("context", (Pairs("values"), Pairs("profiles")))), single="Dialog", made=(("ID", "db_id", "dialog_id"),))
DIALOG_LISTS = ("", "callid", "callid from_tag", "index counter")
PROFILE = ("profile", "profile value")
REGISTRANT = ("aor contact registrar proxy third_party_registrant username password binding_params expiry forced_socket"
              " cluster_shtag state")
ADDRESSES = Rows("Destinations", "dest", "", ("grp#", "ip", "mask", "port#", "proto", "pattern", "context_info"))
PARTITIONS = Rows("Partitions", "part", "name", (), (ADDRESSES,))

TRACES = Form("[id] [mode] ...", ("", "id", "mode", "id mode"), tree=(
    "global", Named("trace destinations", "name", ("type", "uri", "state"))), named=True,
              errors={"Bad parameter": (400, "Bad trace id value")})

PROCESSES = Rows("Processes", "Process", "", ("ID#", "PID#", "Log level#", "Type@process"), shown=False)
SUBSCRIBERS = Rows("Subscribers", "Subscriber", "", ("socket", "expire#", "ttl!"), single="Subscriber")
CACHE_ERRORS = dict.fromkeys(("Too few arguments", "Too many arguments", "Too many parameters"),
                             (-32602, "Invalid params", "Too few or too many parameters"))

FORMS: dict[str, Form] = {
    # core
    "version": Form(None, ("", "revision"), tree=("Server",)),
    "uptime": Form(None, tree=("Now", "Up since", "Up time")),
    "pwd": Form(None, tree=("WD",)),
    "arg": Form(None, tree=(Lines(),)),
    "which": Form(None, ("", "command"), tree=(Lines(),)),
    "ps": Form(None, tree=(PROCESSES,)),
    "kill": Form(None),
    "log_level": Form("[level] [pid] ...", ("", "level", "level pid"), "level pid",
                      (PROCESSES, "New global log level#", "New log level=Log level#"),
                      errors={"Bad parameter": (-32602, "Invalid params", "Bad PID")}),
    "xlog_level": Form("[level]", ("", "level"), "level", ("xLog Level#", "New xLog level#")),
    "help": Form("[mi_cmd] ...", ("", "mi_cmd"), tree=("Usage", "Help", "Exported by")),
    "list_blacklists": Form(None, ("", "name"), tree=(Rows("Lists", "List", "name", ("owner@owner", "flags@list_flags"), (
        Rows("Rules", "Rule", "", ("flags#",), ("IP", "Mask", "Proto@protocol", "Port#", "Match")),)),)),
    "list_tcp_conns": Form(None, tree=(Rows("Connections", "Connection", "", (
        "ID#", "Type", "State#", "Remote", "Local", "Lifetime"), ("Alias port#",)),)),
    "tcp_trace": Form("[trace_mode]", ("", "trace_mode"), tree=("TCP tracing",), errors={
        "Server Internal Error": (-32602, "Invalid params", "trace_mode should be 'on' or 'off'")}),
    "get_statistics": Form("statistics ...", ("statistics",), tree=(Members("#", True),)),
    "list_statistics": Form("[statistics] ...", ("", "statistics"), tree=(Members(),)),
    "reset_statistics": Form("statistics ...", ("statistics",)),
    "reset_all_statistics": Form(None),
    "cache_store": Form("system attr value [expire]", ("system attr value", "system attr value expire"), "expire",
                        errors=CACHE_ERRORS),
    "cache_fetch": Form("system attr", ("system attr",), tree=("key", "value"), errors=CACHE_ERRORS),
    "cache_remove": Form("system attr", ("system attr",), errors=CACHE_ERRORS),
    "cache_remove_chunk": Form("[collection] glob ...", ("glob", "glob collection")),
    "event_subscribe": Form("event socket [expire] ...", ("event socket", "event socket expire"), "expire", errors=BAD_PARAMETER),
    "events_list": Form(None, tree=(Rows("Events", "Event", "name", ("id#",)),)),
    "subscribers_list": Form("[event] [socket]", ("", "event", "event socket"), tree=(
        Rows("Events", "Event", "name", ("id#",), (SUBSCRIBERS,), single="Event"),)),
    "raise_event": Form("event ...", ("event", "event params")),
    # usrloc
    "ul_add": Form("table_name aor contact expires q - flags cflags methods",
                   ("table_name aor contact expires q flags cflags methods",), "expires flags cflags methods",
                   errors={**BAD_PARAMETER, "Server Internal Error": (500, "Internal Error")}),
    "ul_rm": Form("table_name aor", ("table_name aor",)),
    "ul_rm_contact": Form("table_name aor contact", ("table_name aor contact",)),
    "ul_show_contact": Form("table_name aor", ("table_name aor",), tree=(Rows("", "AOR", "AOR", (), (CONTACTS, "KV-Store")),)),
    "ul_dump": Form("[brief]", ("", "brief"), "brief", (Rows("Domains", "Domain", "name", ("hash_size#",), (
        Rows("AORs", "AOR", "AOR", (), (CONTACTS, "KV-Store")),)),)),
    "ul_flush": Form(None),
    "ul_sync": Form("[table_name] [aor] ...", ("table_name", "table_name aor")),
    "ul_cluster_sync": Form(None),
    # dialog
    "dlg_list": Form("[callid] [from_tag] ...", DIALOG_LISTS, "index counter", ("dlg_counter=count#", DIALOGS), named=True,
                     errors={"Invalid Call-ID specified": (404, "No such dialog")}),
    "dlg_list_ctx": Form("[callid] [from_tag] ...", DIALOG_LISTS, "index counter", ("dlg_counter=count#", DIALOGS), named=True,
                         errors={"Invalid Call-ID specified": (404, "No such dialog")}),
    "dlg_end_dlg": Form("dialog_id [extra_hdrs] ...", ("dialog_id", "dialog_id extra_hdrs"), first="extra_hdrs"),
    "dlg_db_sync": Form("..."),
    "dlg_restore_db": Form("..."),
    "dlg_cluster_sync": Form("[sharing_tag] ...", ("", "sharing_tag")),
    "dlg_set_sharing_tag_active": Form("[tag] ...", ("tag",)),
    "dlg_list_sharing_tags": Form("..."),
    "dlg_push_var": Form("dlg_val_name dlg_val_value DID", ("dlg_val_name dlg_val_value DID",)),
    "dlg_send_sequential": Form("callid [mode] [method] [body]", (
        "callid", "callid mode", "callid method", "callid body", "callid mode method", "callid mode body", "callid method body",
        "callid mode method body"), named=True, first="callid"),
    "dlg_set_profile": Form("dlg_id profile [value] [clear_values]", (
        "dlg_id profile", "dlg_id profile value", "dlg_id profile value clear_values"), "clear_values"),
    "dlg_unset_profile": Form("dlg_id profile [value]", ("dlg_id profile", "dlg_id profile value")),
    "profile_get_size": Form("[profile] [value] ...", PROFILE, tree=(Rows(
        "", "profile", "", ("name", "value?", "count#", "shared", "replicated"), single="Profile"),), first="value"),
    "profile_get_values": Form("[profile] [value] ...", ("profile",), tree=(Rows(
        "*", "value", "value?", ("count#",), nothing="WITHOUT VALUE"),)),
    "profile_list_dlgs": Form("[profile] [value] ...", PROFILE, tree=(DIALOGS,), first="value"),
    "profile_end_dlgs": Form("[profile] [value] ...", PROFILE, first="value"),
    "list_all_profiles": Form("...", tree=(Switches("Profiles", "name", "has value"),)),
    # dispatcher
    "ds_set_state": Form("[state] [group] [address] ...", ("state group address",)),
    "ds_list": Form("[partition] [full] ...", ("", "partition", "full", "full partition"), "full",
                    (Rows("PARTITIONS", "PARTITION", "name", (), (
                        Rows("SETS", "SET", "id#", (), (DESTINATIONS,), shown=False),)),),
                    errors={"Bad parameter": (500, "ERROR Unknown partition")}),
    "ds_reload": Form("[partition] ...", ("", "inherit_state", "partition", "partition inherit_state")),
    "ds_push_script_attrs": Form("attrs ip port set [partition]", ("attrs ip port set", "attrs ip port set partition"),
                                 "port set"),
    # drouting; with use_partitions the name of a partition stands before all other values of a text request
    "dr_reload": Form("...", ("", "inherit_state", "partition_name", "partition_name inherit_state")),
    "dr_gw_status": Form("[gw_id] [status] ...", (
        "", "partition_name", "gw_id", "gw_id status", "partition_name gw_id", "partition_name gw_id status"), "status", (
        "State", Rows("Gateways", "ID", "ID", ("IP", "State"), order=("ID", "IP", "ATTRS", "State"))), named=True),
    "dr_carrier_status": Form("[carrier_id] [status] ...", (
        "", "partition_name", "carrier_id", "carrier_id status", "partition_name carrier_id",
        "partition_name carrier_id status"), "status", (
        "Enabled", Rows("Carriers", "ID", "ID", ("Enabled",), order=("ID", "ATTRS", "Enabled"))), named=True),
    "dr_number_routing": Form("[group_id] number ...", (
        "number", "group_id number", "partition_name number", "partition_name group_id number"), "group_id", (
        Rows("", "Matched Prefix", "Matched Prefix", (), (Pairs("GW List", wrapped=False),)),), named=True, nothing="No match"),
    "dr_reload_status": Form("...", ("", "partition_name"), tree=(
        "Date", Rows("Partitions", "Partition", "name", ("Date",), shown=False, single="*"))),
    "dr_enable_probing": Form("[status]", ("", "status"), "status", ("Status#",)),
    # permissions
    "address_reload": Form("[partition] ...", ("", "partition")),
    "address_dump": Form("[partition] ...", ("", "partition"), tree=(Addresses(False),)),
    "subnet_dump": Form("[partition] ...", ("", "partition"), tree=(Addresses(True),)),
    "allow_uri": Form("basename uri contact", ("basename uri contact",)),
    # domain
    "domain_reload": Form(None),
    "domain_dump": Form(None, tree=(Rows("Domains", None, "name", ("attributes",)),)),
    # db_text
    "dbt_reload": Form("[db_name] [table_name]", ("", "db_name", "db_name table_name"), errors=BAD_PARAMETER),
    "dbt_dump": Form("..."),
    # load_balancer
    "lb_reload": Form(None),
    "lb_list": Form(None, tree=(Rows("Destinations", "Destination", "uri", ("id#", "group#", "enabled", "auto-reenable"), (
        Rows("Resources", "Resource", "name", ("max#", "load#"), container="Resources"), "attrs!")),)),
    "lb_resize": Form("destination_id res_name new_capacity", ("destination_id res_name new_capacity",),
                      "destination_id new_capacity"),
    "lb_status": Form("destination_id [new_status] ...", ("destination_id", "destination_id new_status"),
                      "destination_id new_status", ("enable", "attrs!")),
    # nathelper
    "nh_enable_ping": Form("[status] ...", ("", "status"), "status", ("Status#",)),
    # rtpproxy
    "rtpproxy_enable": Form("url [setid] enable ...", ("url enable", "url enable setid"), "enable setid",
                            errors={"Bad parameter": (400, "Empty url")}),
    "rtpproxy_show": Form(None, tree=(Rows("*", "Set", "Set#", (), (
        Rows("Nodes", "node", "url", ("index#", "disabled#", "weight#", "recheck_ticks#")),)),)),
    "rtpproxy_reload": Form(None, errors={"Bad parameter": (400, "Dynamic loading not enabled")}),
    # uac_registrant
    "reg_list": Form("...", ("", "aor contact registrar"), tree=(Rows("Records", "AOR", "AOR", ("expires#",), (
        "state", "enabled!", "last_register_sent", "registration_t_out", "registrar", "binding", "binding_params!",
        "third_party_=third_party_registrant", "socket!", "proxy", "shtag!", "cluster_id!"), single="Registrant"),)),
    "reg_reload": Form("...", ("", "aor contact registrar")),
    "reg_enable": Form("aor contact registrar", ("aor contact registrar",)),
    "reg_disable": Form("aor contact registrar", ("aor contact registrar",)),
    "reg_force_register": Form("aor contact registrar", ("aor contact registrar",)),
    "reg_upsert": Form(REGISTRANT, (REGISTRANT,), "expiry state",
                       errors={"Bad parameter": (-32000, "Server error", "Failed to handle parameter")}),
    "reg_delete": Form("aor contact registrar", ("aor contact registrar",)),
    # ratelimit
    "rl_list": Form("[pipe] ...", ("", "pipe", "filter", "filter_out"), tree=(Pipes(
        Rows("Pipes", "PIPE", "", ("id", "algorithm", "limit#", "counter#"), single="Pipe")),),
                    errors={"command failed": (404, "Pipe Not Found")}),
    "rl_reset_pipe": Form("pipe ...", ("pipe",), errors={"Bad parameter": (500, "Internal error")}),
    "rl_set_pid": Form("ki [kp] [kd] ...", ("ki kp kd",), errors=BAD_PARAMETER, first="ki kp kd"),
    "rl_get_pid": Form(None, tree=(Rows("", "PID", "", ("ki", "kp", "kd"), single="PID"),)),
    "rl_bin_status": Form(None),
    "rl_dump_pipe": Form("pipe", ("pipe",), tree=("Pipe", "Algorithm", "Counter#", "Replication Nodes!", "Total#")),
    # pike
    "pike_list": Form(None, tree=(Lines("IPs"),)),
    "pike_rm": Form("ip ...", ("ip",)),
    # siptrace, tracer
    "sip_trace": TRACES, "trace": TRACES,
    "trace_start": Form("id uri [filter] [scope] [type]", ("id uri", "id uri filter", "id uri filter scope type")),
    "trace_stop": Form("id", ("id",)),
    # tm
    "t_uac_dlg": Form("method ruri next_hop socket headers [body]", tuple(f"method ruri headers {more}" for more in (
        "", "next_hop", "socket", "body", "next_hop socket", "next_hop body", "socket body", "next_hop socket body")),
                      tree=("Status", "RURI*", "Next-hop*", Joined("Routes", "Route: "), Message("Message")), named=True,
                      errors={"Invalid RURI": (400, "Invalid ruri"), "Invalid NEXTHOP": (400, "Invalid next_hop")},
                      first="next_hop socket body"),
    "t_uac_cancel": Form("callid cseq", ("callid cseq",)),
    "t_hash": Form(None),
    "t_reply": Form("code reason trans_id to_tag new_headers [body]", tuple(f"code reason trans_id to_tag {more}" for more in (
        "", "new_headers", "body", "new_headers body")), "code", named=True, errors={
            "Invalid label": (400, "Invalid label in trans_id"),  # of 3.4's own form of an ID
            **{f"Invalid {part} in trans_id": (400, f"Invalid {part} in old trans_id") for part in ("index", "label")}},
                    first="new_headers body"),
}
# The attributes that an event has in 2.4, all of those that it has in 3.4.
CONTACT_EVENT = "aor uri received path qval socket bflags expires callid cseq attr latency"
EVENT_FORMS = {
    "E_UL_AOR_INSERT": "aor", "E_UL_AOR_DELETE": "aor", "E_UL_CONTACT_INSERT": CONTACT_EVENT,
    "E_UL_CONTACT_UPDATE": CONTACT_EVENT, "E_UL_CONTACT_DELETE": CONTACT_EVENT, "E_UL_LATENCY_UPDATE": CONTACT_EVENT,
    "E_DLG_STATE_CHANGED": "hash_entry hash_id callid from_tag to_tag old_state new_state",
    "E_DISPATCHER_STATUS": "partition group address status", "E_DROUTING_STATUS": "partition gwid address status",
    "E_LOAD_BALANCER_STATUS": "group uri status", "E_PIKE_BLOCKED": "ip", "E_RTPPROXY_STATUS": "socket status",
}
# The names of a command in 4.0 and before, a line for each module of 4.0: `MODULE PREFIX: NAME...`. MODULE:NAME was PREFIX
# and NAME before, or what stands behind `=`, where further names follow.
NAMES_40 = """
blacklists -: list=list_blacklists check_all=check_blacklists check=check_blacklist add_rule=add_blacklist_rule
  del_rule=del_blacklist_rule
core -: uptime version pwd arg which ps kill log_level xlog_level profiling_proc log_level_filter log_mute_state reload_routes
  help
tcp -: list=list_tcp_conns close trace=tcp_trace
mem mem_: shm_check=shm_check=mem_shm_check pkg_dump shm_dump rpm_dump
cache cache_: store fetch remove
status_report sr_list_: get=sr_get_status status reports identifiers
evi event_: subscribe list=events_list subscribers=subscribers_list raise=raise_event
statistics -: get=get_statistics list=list_statistics reset=reset_statistics reset_all=reset_all_statistics
aaa_diameter -: fd_log_level
auth_aka aka_: av_add av_drop av_drop_all av_fail
b2b_entities -: list=b2be_list ua_session_client_start ua_session_update ua_session_reply ua_session_terminate
  ua_session_list
b2b_logic b2b_: trigger_scenario bridge list terminate_call
b2b_sca sca_: list
benchmark bm_: enable_global enable_timer granularity loglevel poll_results
cachedb_local cache_: remove_chunk fetch_chunk
call_center cc_: reload agent_login list_queue list_flows list_agents list_calls reset_stats dispatch_call_to_agent
  internal_call_dispatching
callops call_: transfer hold unhold
carrierroute cr_: reload_routes dump_routes replace_host deactivate_host activate_host add_host delete_host
cfgutils -: rand_set_prob rand_reset_prob rand_get_prob get_config_hash check_config_hash shv_get shv_set
clusterer clusterer_: reload set_status list list_topology send_mi=cluster_send_mi broadcast_mi=cluster_broadcast_mi
  list_cap set_cap_status list_shtags shtag_set_active remove_node
config config_: reload list push push_bulk flush
cpl_c -: load=LOAD_CPL remove=REMOVE_CPL get=GET_CPL
db_berkeley bdb_: reload
db_flatstore flat_: rotate
db_text dbt_: dump reload
db_virtual db_: get set
dialog dlg_: list list_ctx end_dlg db_sync restore_db cluster_sync profile_get_size=profile_get_size
  profile_list_dlgs=profile_list_dlgs profile_get_values=profile_get_values list_all_profiles=list_all_profiles
  profile_end_dlgs=profile_end_dlgs push_var send_sequential set_profile unset_profile
dialplan dp_: reload translate show_partition
dispatcher ds_: set_state list reload push_script_attrs
domain domain_: reload dump
drouting dr_: reload gw_status carrier_status number_routing reload_status enable_probing
event_flatstore evi_flat_: rotate
fraud_detection fraud_: show_stats=show_fraud_stats reload
freeswitch_scripting fs_: subscribe unsubscribe list reload
gflags -: set=set_gflag reset=reset_gflag check=is_gflag get=get_gflags
httpd httpd_: list_root_path
imc imc_: list_rooms list_members
load_balancer lb_: reload resize list status
lua -: watch
media_exchange media_: fork_from_call_to_uri from_call_to_uri=media_exchange_from_call_to_uri
  from_call_to_uri_body=media_exchange_from_call_to_uri_body terminate
mqueue mq_: get_sizes get_size fetch
msrp_gateway msrp_gw_: end_session list_sessions
msrp_ua msrp_ua_: send_message end_session list_sessions start_session
nathelper nh_: enable_ping
permissions -: address_reload address_dump subnet_dump allow_uri
pi_http pi_: reload_tbls_and_cmds
pike pike_: list rm
presence -: refresh_watchers=refresh_watchers=refreshWatchers cleanup expose=pres_expose
  phtable_list=pres_phtable_list subs_phtable_list
presence_callinfo sca_: list_lines release_line set_log_level
presence_dfks dfks_: set_feature
msrp msrp_: trace
tls tls_: trace
bins tls_: trace
ws ws_: trace
wss wss_: trace
pua_mi pua_: publish subscribe
qrouting qr_: status reload disable_dst enable_dst
rate_cacher rc_: addVendor deleteVendor getVendorPrice reloadVendorRate deleteVendorRate addClient deleteClient
  getClientPrice reloadClientRate deleteClientRate
ratelimit rl_: list reset_pipe set_pid get_pid dump_pipe
regex regex_: reload match match_group
rls rls_: update_subscriptions
rtp_relay rtp_relay_: list update update_callid
rtpengine rtpengine_: enable show reload teardown=teardown
rtpproxy rtpproxy_: enable show reload
sipcapture sip_: capture
sockets_mgm sockets_: reload list
sql_cacher sql_cacher_: reload
stir_shaken stir_shaken_: ca_reload crl_reload
tcp_mgm tcp_: reload
tls_mgm tls_: reload list
tm t_: uac_dlg uac_cancel hash reply
tracer trace_: trace=trace=sip_trace start stop
trie trie_: reload search reload_status number_delete number_upsert
uac_registrant reg_: list reload enable disable force_register upsert delete
userblacklist -: reload=reload_blacklist
usrloc ul_: rm rm_contact dump flush add show_contact sync cluster_sync
xcap_client -: refreshXcapDoc
"""


def names_of(table: str) -> dict[str, tuple]:
    """The names that a command has in all releases, by each of them."""
    names: dict[str, tuple] = {}
    for module, prefix, words in re.findall(r"^(\w+) (\S+): (.*(?:\n  .*)*)", table, re.M):
        for word in words.split():
            name, *old = word.split("=")
            every = (*(old or [f"{prefix.strip('-')}{name}"]), f"{module}:{name}")
            names.update({one: tuple(dict.fromkeys((*names.get(one, ()), *every))) for one in every})
    return names


NAMES = names_of(NAMES_40)
