"""dispatcher -- sets of destinations and their states, as OpenSIPS' module shows them.

The tables are read at the start and by ds_reload. A partition is a table of the store, which has its sets one after the other.
"""
from __future__ import annotations

import itertools
import re
from typing import NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

LEAST_BYTES = 40  # of a destination in a reply, besides its URI
INACTIVE, PROBING = 1, 2  # flags of a destination
DISPATCHER = opensips.table("dispatcher", [7, 8, 9], """setid#? destination! socket? state#? weight? priority#? attrs?
    description?=-""", "%s_col")


SETTINGS = ("db_url", "table_name", "dst_avp", "grp_avp", "cnt_avp", "sock_avp", "attrs_avp", "script_attrs_avp",
            "ds_define_blacklist")


def partition_line(value):
    """Converter: as opensips.partition_line(); of settings alone those of `default`, and a name alone, with None, is that of the
    partition in the place of `default`."""
    text = mi.string(value).strip(" ;")
    if text and not {":", "="} & set(text):
        return text, None
    name, settings = opensips.partition_line(value if ":" in text or not text else f"default:{text}")
    wrong = [one for one in settings if one not in SETTINGS or not settings[one]]
    if wrong:
        raise ValueError(f"takes the settings {', '.join(SETTINGS)}, each with a value, not {wrong[0]!r}")
    return name, settings


PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("table_name", "dispatcher", mi.string, "name of the table"),
    mi.Param("partition", (), partition_line, "another set of sets: `NAME: db_url = URL; table_name = TABLE`; `NAME` alone "
             "makes it the default one", repeat=True),
    mi.Param("persistent_state", 1, mi.integer(0, 1), "0: ignore the column `state`: all destinations are active"),
    mi.Param("ds_probing_threshhold", 3, mi.integer(0),
             "how many times ds_set_state must set a destination to probing before it is probing"),
    mi.Param("ds_probing_threshold", 0, mi.integer(0), "the same, as 3.0 spells it; 0: see ds_probing_threshhold"),
    *opensips.columns(DISPATCHER),
    *opensips.without_effect("""algo_route attrs_avp cluster_id cluster_probing_mode cluster_sharing_tag cnt_avp description_col
        ds_define_blacklist ds_ping_from ds_ping_interval ds_ping_maxfwd ds_ping_method ds_probing_list ds_probing_mode
        ds_probing_sock dst_avp fetch_freeswitch_stats flags flags_col force_dst grp_avp hash_pvar max_freeswitch_weight
        options_reply_codes probe_mode_col pvar_algo_pattern script_attrs_avp setid_pvar sock_avp
        use_default"""),
]
NOT_FOUND = mi.Error(404, "destination not found")
EVENTS = [mi.Event("E_DISPATCHER_STATUS", "a destination became active or inactive")]


class Destination(NamedTuple):
    """A destination as the store has it; number: of its set; failures: how often it was set to probing."""

    number: int
    uri: str
    flags: int = 0
    failures: int = 0
    socket: str | None = None
    attrs: str | None = None
    weight: int = 0
    priority: int = 0
    description: str = ""
    ip: str = ""
    port: int = 0
    script_attrs: str | None = None

    @property
    def key(self) -> str:
        """What tells it from others of its partition."""
        return key_of(self.number, self.uri)

    @property
    def state(self) -> str:
        """What ds_list calls it."""
        return "Inactive" if self.flags & INACTIVE else "Probing" if self.flags & PROBING else "Active"

    def shown(self, is_json: bool, full: bool) -> dict:
        """The destination as 3.4 shows it, in 2.4 without addresses."""
        item = {"URI": self.uri, "state": self.state, "first_hit_counter": 0, "socket": self.socket, "attr": self.attrs,
                "script_attr": self.script_attrs}
        if full:
            item.update(weight=self.weight, priority=self.priority & 0xFFFF, description=self.description or None)
        addresses = {"resolved_addresses": [f"{self.ip}:{self.port}"] if self.ip else []} if is_json else {}
        return {**{name: value for name, value in item.items() if value is not None}, **addresses}


def key_of(number: int, uri: str) -> str:
    """The key of a destination of a set."""
    return f"{number}\n{uri.lower()}"


###############################################################################
# State
###############################################################################

PARTITIONS = opensips.Tables("dispatcher_partitions", Destination, ("flags", "failures", "script_attrs"))
REPLACED = (PARTITIONS.space,)  # by load(), in one step


def partitions(ctx) -> dict[str, tuple]:
    """The database and the table of each partition, in the order of ds_list: `default` last, if there is one."""
    declared: dict[str, dict] = {}
    for name, settings in ctx.param("partition"):
        declared.setdefault(name, {}).update(settings or {})
    has_default = default_of(ctx) == "default" and (
        ctx.param("db_url") or ctx.own.default_db[0] or "default" in declared or not declared)
    last = declared.pop("default", {})
    table = DISPATCHER if ctx.param("persistent_state") else DISPATCHER.without("state")
    return {name: (opensips.url_of(ctx, settings.get("db_url", "")),
                   table.named(ctx, settings.get("table_name") or ctx.param("table_name")))
            for name, settings in (*declared.items(), *([("default", last)] if has_default else []))}


def default_of(ctx) -> str:
    """The name of the partition that a request means which names none."""
    return [name for name, settings in (("default", None), *ctx.param("partition")) if settings is None][-1]


def destination(row: dict, ctx, ports: dict) -> Destination:
    """The destination of a row; ports: by protocol; ValueError."""
    if row["setid"] is None:
        raise ValueError("has no setid")
    uri, flags = row["destination"], {1: INACTIVE, 2: PROBING}.get(row.get("state") or 0, 0)
    if not opensips.is_sip_uri(ctx, uri):
        raise ValueError(f"has the destination {uri!r}, which is no SIP URI")
    return Destination(row["setid"], uri, flags, 0, opensips.own_socket(ctx, row), row["attrs"] or None,
                       weight_of(row["weight"] or ""), row["priority"] or 0, row["description"] or "", *address_of(uri, ports))


def address_of(uri: str, ports: dict) -> tuple[str, int]:
    """The address and port that a URI names itself, no name is looked up; an empty address for none."""
    match = re.match(r"(sips?):(?:[^@]*@)?(\[[^\]]*\]|[^:;?]*)(?::(\d+))?(?:[^?]*;transport=([^;?]*))?", uri, re.I)
    scheme, host, port, transport = match.groups("") if match else ("", "", "", "")
    try:
        ip = opensips.shown_ip(host.strip("[]"))
    except ValueError:
        return "", 0
    protocol = transport or ("tls" if scheme.lower() == "sips" else "udp")
    return ip, int(port or 0) or ports.get(protocol.lower(), 0)


def destinations_of(ctx, rows: list) -> list:
    """The destinations that the rows of a table make, in the order of ds_list."""
    sets: dict[int, list] = {}
    for one in opensips.good(ctx, rows, destination, ctx, opensips.ports(ctx)):
        sets.setdefault(one.number, []).append(one)
    return [one for made in reversed(sets.values()) for one in by_priority(made)]


def by_priority(made: list) -> list:
    """The destinations of a set, those with a larger priority first. One below 0 comes behind all of the rows before it; then it
    counts as a large one, and comes before all of the rows behind it."""
    parts = itertools.accumulate(one.priority < 0 for one in made)
    return [one for _, one in sorted(zip(parts, made), key=lambda pair: (pair[0], -(pair[1].priority & 0xFFFF)))]


def weight_of(text: str) -> int:
    """The weight that a row means: the digits that it begins with, 1 for none and for a FreeSWITCH server."""
    if not text or text.startswith("fs://"):
        return 1
    return opensips.uint("0" + re.sub("[^0-9].*", "", text, flags=re.S))


def read_partition(ctx, name: str, inherits: tuple) -> None:
    """Read the table of a partition; inherits: the fields that destinations have that stay. TableError."""
    made = destinations_of(ctx, opensips.rows_of(ctx, *partitions(ctx)[name]))
    PARTITIONS.put(ctx, name, None, made, inherits)


def init(ctx):
    """Check the tables."""
    opensips.check_tables(ctx, *partitions(ctx).values())


def load(ctx):
    """Read the tables."""
    for name in partitions(ctx):
        read_partition(ctx, name, PARTITIONS.state)


def child_init(ctx):
    """Have the table before a request wants it."""
    PARTITIONS.now(ctx)


###############################################################################
# Commands
###############################################################################


@opensips.command
def ds_set_state(ctx, state, group, address):
    """Set the STATE (inactive, active or probing) of the destination ADDRESS in a GROUP, `7` or `PARTITION:7`."""
    values = {"state": state, "group": group, "address": address}
    wanted = argument(ctx, values, "state", "")[:1].lower()
    word = {"0": "i", "1": "a", "2": "p"}.get(wanted, wanted)
    if word not in ("i", "a", "p"):
        raise mi.Error(500, "Bad state value")
    partition, number = group_of(ctx, argument(ctx, values, "group", "group not found"))
    uri = argument(ctx, values, "address", "address not found")
    flips: list[bool] = []

    def change(one: Destination) -> Destination:
        one, flips[:] = switched(one, word, ctx.param("ds_probing_threshold") or ctx.param("ds_probing_threshhold"))
        return one

    PARTITIONS.change(ctx, partition, key_of(number, uri), change, NOT_FOUND)
    for is_set in flips:
        attributes = {} if partition == default_of(ctx) else {"partition": partition}
        opensips.raise_event(ctx, "E_DISPATCHER_STATUS", **attributes, group=number, address=uri,
                             status="inactive" if is_set else "active", reason="MI command")
    return mi.Reply()


def argument(ctx, values: dict, name: str, problem: str) -> str:
    """An argument of ds_set_state; mi.Error if it is missing, and where it is NULL."""
    if ctx.request.dialect == "text" and [*values].index(name) >= len(ctx.request.values):
        raise mi.WRONG_COUNT
    if values[name] is None and problem and ctx.request.dialect == "text":
        raise mi.Error(500, problem)
    return opensips.text(ctx, name, values[name])


def group_of(ctx, group: str) -> tuple[str, int]:
    """The partition and the number that a group means; mi.Error."""
    partition, colon, number = group.partition(":")
    if not number or number.startswith("/"):  # as in a URL
        partition, number = "", group
    else:
        partition, number = partition.strip(" \t\r\n"), number.lstrip(" ")
    partition = partition or default_of(ctx)
    if partition not in partitions(ctx):
        raise mi.Error(404, "ERROR Unknown partition")
    try:
        return partition, opensips.uint(number)
    except ValueError:
        raise mi.Error(500, "bad group value") from None


def switched(one: Destination, word: str, threshold: int) -> tuple[Destination, list[bool]]:
    """A destination in another state, and for each flag that changed whether it is set, in the order of these changes."""
    flags, failures, order = 0, one.failures, (INACTIVE, PROBING)
    if word == "i":
        flags = INACTIVE
    elif word == "p":
        failures, order = failures + (not one.flags & INACTIVE), (PROBING, INACTIVE)
        reached = not one.flags & INACTIVE and failures >= threshold
        flags = PROBING if reached else one.flags & PROBING
    return one._replace(flags=flags, failures=failures), [bool(flags & flag) for flag in order if (flags ^ one.flags) & flag]


def bind_list(request) -> list:
    """The partition and `full` of a text request: `[PARTITION] [full]`, what follows is ignored; mi.Error."""
    first, second = (*request.values, "full", "full")[:2] if request.values else ("full", None)
    if first == "full":
        return [None, 1 if request.values else None]
    if second != "full":
        raise mi.BAD_PARAMETER
    return [first or "", 1 if len(request.values) > 1 else None]


@opensips.command(bind=bind_list)
def ds_list(ctx, partition=None, full=None):
    """Show the destinations of all partitions or of one; `full`: with weight, priority and description."""
    is_json = ctx.request.dialect == "jsonrpc"
    full = bool(full is not None and mi.json_int(full, "full") if is_json else full)
    names = [*partitions(ctx)]
    partition = opensips.if_text(ctx, "partition", partition)
    if partition is not None:
        names = [partition or default_of(ctx)]
        if names[0] not in partitions(ctx):
            raise mi.Error(400, "Bad parameter")
    listed, shown = {name: PARTITIONS.table(ctx, name).ones for name in names}, []
    opensips.check_size(ctx, sum(map(len, listed.values())), LEAST_BYTES, [one.uri for ones in listed.values() for one in ones])
    for name, every in listed.items():
        sets = [{"id": number if is_json else number % 2**64, "Destinations": [one.shown(is_json, full) for one in ones]}
                for number, ones in itertools.groupby(opensips.in_turns(every), lambda one: one.number)]
        shown.append({"name": name, **({"SETS": sets} if sets else {})})
    return opensips.reply(ctx, {"PARTITIONS": shown}, depends=(PARTITIONS.space,))


@opensips.command(timed=False)
def ds_reload(ctx, partition=None, inherit_state=None):
    """Read the tables of all partitions again, or of one; destinations that stay have the state that they had."""
    name = None if partition is None else opensips.text(ctx, "partition", partition) or default_of(ctx)
    if name and name not in partitions(ctx):
        raise mi.Error(500, "ERROR Unknown partition")
    with opensips.reloading(ctx, mi.Error(500, "ERROR Reloading data")):
        for one in [name] if name else partitions(ctx):
            read_partition(ctx, one, ("flags",) if opensips.keeps_states(inherit_state) else ())
    return mi.Reply()


@opensips.command
def ds_push_script_attrs(ctx, attrs, ip, port, set, partition=None):
    """Give ATTRS to the destinations of a SET (-1: of all) that have an IP and PORT (0: any)."""
    attrs = opensips.text(ctx, "attrs", attrs)
    if not attrs:
        raise mi.Error(500, "Bad attrs value")
    ip, port, number = opensips.text(ctx, "ip", ip), opensips.number(ctx, "port", port), opensips.number(ctx, "set", set)
    name = default_of(ctx) if partition is None else opensips.text(ctx, "partition", partition)
    if name not in partitions(ctx):
        raise mi.Error(404, "ERROR Unknown partition")
    try:
        wanted = opensips.shown_ip(ip.strip("[]"))
    except ValueError:
        raise NOT_FOUND from None
    for one in opensips.in_turns([*PARTITIONS.table(ctx, name).ones]):
        if number in (-1, one.number) and one.ip == wanted and (one.port == port or not port or not one.port):
            PARTITIONS.change(ctx, name, one.key, lambda one: one._replace(script_attrs=attrs), NOT_FOUND)
    return mi.Reply()
