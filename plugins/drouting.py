"""drouting -- gateways, carriers and the rules that lead to them, as OpenSIPS' module shows them.

The tables are read at the start and by dr_reload. A partition is a key of three spaces of the store: its gateways, its carriers,
and its rules, which only a reload changes.
"""
from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

RULES, PROBING = "drouting_rules", "drouting_probing"
DEFAULT = "Default"  # the partition where there are none
LEAST_BYTES = {"text": 18, "jsonrpc": 27}  # of a gateway or a carrier in a reply, besides its name
GATEWAYS_TABLE = opensips.table("dr_gateways", [6], "gwid! address! attrs? probe_mode# socket? state#", "")
CARRIERS_TABLE = opensips.table("dr_carriers", [2, 3], "carrierid! gwlist! attrs? state#", "")
RULES_TABLE = opensips.table("dr_rules", [3, 4], "groupid! prefix? priority# gwlist! attrs?", "")
PARTITIONS = opensips.table("dr_partitions", [1], "partition_name db_url? drd_table? drr_table? drc_table?", "")

PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the tables: text://DIRECTORY or sqlite://FILE"),
    mi.Param("drd_table", "dr_gateways", mi.string, "name of the table of gateways"),
    mi.Param("drr_table", "dr_rules", mi.string, "name of the table of rules"),
    mi.Param("drc_table", "dr_carriers", mi.string, "name of the table of carriers"),
    mi.Param("use_partitions", 0, mi.integer(0, 1), "1: a table lists partitions, each with its own tables"),
    mi.Param("db_partitions_url", "", mi.string, "database with the table of partitions"),
    mi.Param("db_partitions_table", "dr_partitions", mi.string, "name of the table of partitions"),
    mi.Param("persistent_state", 1, mi.integer(0, 1), "0: ignore the column `state`: all gateways and carriers are enabled"),
    mi.Param("extra_prefix_chars", "", mi.string, "characters that a prefix may have besides digits"),
    mi.Param("gw_socket_filter_mode", "none", mi.string, "matched-only: leave out gateways whose socket is none of the server's"),
    mi.Param("extra_id_chars", "_-.", mi.string, "characters that the name of a gateway may have besides letters and digits"),
    *opensips.without_effect("""accept_replicated_status carrier_attrs_avp carrier_id_avp cluster_id
        cluster_probing_mode cluster_sharing_tag default_group define_blacklist drg_domain_col drg_grpid_col drg_table
        drg_user_col enable_restart_persistency force_dns generate_data_checksum gw_attrs_avp gw_id_avp gw_priprefix_avp
        gw_sock_avp no_concurrent_reload partition_id_pvar probing_from probing_interval probing_method probing_reply_codes
        probing_socket replicate_status_to rule_attrs_avp rule_id_avp rule_prefix_avp rule_tables_query
        ruri_avp status_replication_cluster use_domain"""),
]
EVENTS = [mi.Event("E_DROUTING_STATUS", "a gateway is in another state")]


class Gateway(NamedTuple):
    """A gateway as the store has it; probed: whether it is probed while it is off; by_mi: whether it is to stay off."""

    name: str
    address: str
    attrs: str = ""
    probed: bool = False
    off: bool = False
    by_mi: bool = False

    @property
    def key(self) -> str:
        """What tells it from others."""
        return self.name

    @property
    def state(self) -> str:
        """What dr_gw_status calls it."""
        return "Active" if not self.off else "Disabled MI" if self.by_mi else "Probing" if self.probed else "Inactive"

    def switched(self, on: bool) -> Gateway:
        """The gateway as a command leaves it."""
        return self._replace(off=not on, by_mi=not on)

    def shown(self, listed: bool) -> dict:
        """The gateway as 3.4 shows it, in a list or alone."""
        head = {"ID": self.name, "IP": self.address} if listed else {}
        return {**head, **({"ATTRS": self.attrs} if self.attrs else {}), "State": self.state}


class Carrier(NamedTuple):
    """A carrier as the store has it."""

    name: str
    attrs: str = ""
    off: bool = False

    @property
    def key(self) -> str:
        """What tells it from others."""
        return self.name

    def switched(self, on: bool) -> Carrier:
        """The carrier as a command leaves it."""
        return self._replace(off=not on)

    def shown(self, listed: bool) -> dict:
        """The carrier as 3.4 shows it, in a list or alone."""
        head = {"ID": self.name} if listed else {}
        return {**head, **({"ATTRS": self.attrs} if self.attrs else {}), "Enabled": "no " if self.off else "yes"}


GATEWAYS = opensips.Tables("drouting_gateways", Gateway, ("off", "by_mi"))
CARRIERS = opensips.Tables("drouting_carriers", Carrier, ("off",))
REPLACED = (GATEWAYS.space, CARRIERS.space, RULES)  # by load(), each in one step


class Partition(NamedTuple):
    """What a partition has besides gateways, carriers and rules; at: its place among the others; url and tables: where it comes
    from; loaded_s: when it was read, seconds since the epoch."""

    at: int
    url: str
    tables: tuple
    loaded_s: int

    @property
    def date(self) -> str:
        """When it was read, as replies show it."""
        return time.ctime(self.loaded_s)


class Rules:
    """The rules of a partition as a child sees them: the destinations and attributes of each prefix and group."""

    def __init__(self, value: str):
        self.rules: dict[tuple, tuple] = {}
        self.inner: set[str] = set()  # what longer prefixes begin with
        for _, prefix, groups, destinations, attrs in json.loads(value):
            for group in groups:
                self.rules.setdefault((prefix, group), (destinations, attrs))
            while len(prefix) > 1 and prefix[:-1] not in self.inner:
                prefix = prefix[:-1]
                self.inner.add(prefix)

    def find(self, number: str, group: int, digits: str) -> tuple[str, tuple] | None:
        """The longest prefix of a number with a rule of a group, and that rule. None too where a number goes on with something
        else than digits before the prefixes end, unless the group has a rule without prefix."""
        end = 0
        for char in number:
            if end and number[:end] not in self.inner:
                break
            if char not in digits:
                end = 0
                break
            end += 1
        for length in range(end, -1, -1):
            rule = self.rules.get((number[:length], group & 0xFFFFFFFF))
            if rule:
                return number[:length], rule
        return None


take_in_rules = opensips.kept(Rules)  # a view is {name of a partition: Rules}


def partitions(ctx) -> dict[str, Partition]:
    """The partitions by name, in the order of their table."""
    heads = {name: Partition(*rows.head) for name, rows in GATEWAYS.now(ctx).items()}
    return dict(sorted(heads.items(), key=lambda item: item[1].at))


###############################################################################
# Tables
###############################################################################
# A row that is no good is left out, with a line in the log.


def declared(ctx) -> dict[str, tuple]:
    """The database and the names of the tables of each partition; TableError."""
    names = tuple(ctx.param(name) for name in ("drd_table", "drc_table", "drr_table"))
    if not ctx.param("use_partitions"):
        return {DEFAULT: (opensips.url_of(ctx), names)}
    own = ctx.param("db_partitions_url")
    rows = opensips.rows_of(ctx, opensips.url_of(ctx, own), PARTITIONS.named(ctx, ctx.param("db_partitions_table")))
    return {row["partition_name"] or "": (opensips.url_of(ctx, row["db_url"] or own), tuple(
        row[name] or default for name, default in zip(("drd_table", "drc_table", "drr_table"), names))) for row in rows}


def tables_of(ctx, url: str, names: Iterable) -> list[tuple]:
    """The tables of a partition, each with its database."""
    unread = [*([] if ctx.param("persistent_state") else ["state"]), *([] if wants_sockets(ctx) else ["socket"])]
    return [(url, table.without(*unread).named(ctx, name))
            for table, name in zip((GATEWAYS_TABLE, CARRIERS_TABLE, RULES_TABLE), names)]


def wants_sockets(ctx) -> bool:
    """Whether gateways with sockets of others are left out."""
    return ctx.param("gw_socket_filter_mode") == "matched-only"


def names_of(ctx) -> str:
    """A pattern of a character of a name; 2.4 wants it only where a list has the name."""
    return f"[A-Za-z0-9{re.escape('_-' if opensips.is_24(ctx) else ctx.param('extra_id_chars'))}]"


def destinations(ctx: Any, row: Any, known: dict) -> list:
    """The kinds and names in the `gwlist` of a row, as `gw1=10,#cr1`, of those that are known; ValueError."""
    found = []
    for item in re.split("[|,]", row["gwlist"].rstrip("|,")) if row["gwlist"] else ():
        match = re.fullmatch(rf"\s*(#?)({names_of(ctx)}+)\s*(?:=\s*[-+]?\d+\s*)?", item)
        if not match:
            raise ValueError(f"has the destination {item!r}")
        kind = "CARRIER" if match[1] else "GATEWAY"
        if match[2] in known[kind]:
            found.append((kind, match[2]))
        else:
            ctx.log.warning("%s: there is no %s %s, passed over", row.where, kind.lower(), match[2])
    return found


def gateway(row: dict, ctx: Any) -> Gateway:
    """The gateway of a row; ValueError."""
    state = row.get("state", 0)
    match = re.fullmatch(r"(?:sips?:)?(?:[^@]*@)?([^@]+)", row["address"], re.I)
    if not match or state not in (0, 1, 2) or row["probe_mode"] not in (0, 1, 2):
        raise ValueError(f"has address {row['address']!r}, state {state}, probe_mode {row['probe_mode']}")
    name, is_strict = row["gwid"], not opensips.is_24(ctx)
    if row.get("socket") and not opensips.has_socket(ctx, row["socket"]):
        raise ValueError(f"has the socket {row['socket']}, which is none of this server's")
    if is_strict and not re.fullmatch(f"{names_of(ctx)}*", name):
        raise ValueError(f"has the gwid {name!r}; it may have letters, digits and {ctx.param('extra_id_chars')}")
    if not re.match(r"\[[0-9A-Fa-f:.]+\]|[\w.-]+(?![^:;?])", match[1]) or is_strict and not opensips.has_port(match[1]):
        raise ValueError(f"has address {row['address']!r}, which is no host")
    return Gateway(name, match[1], row["attrs"] or "", row["probe_mode"] == 1, state != 0, state == 1)


def carrier(row: Any, ctx: Any, gateways: dict) -> Carrier:
    """The carrier of a row; ValueError."""
    if "#" in row["gwlist"]:
        raise ValueError("leads to a carrier")
    destinations(ctx, row, {"GATEWAY": gateways})
    return Carrier(row["carrierid"], row["attrs"] or "", row.get("state", 0) != 0)


def rule(row: Any, ctx: Any, known: dict, digits: str) -> tuple:
    """Minus the priority, and the prefix, groups, destinations and attributes of a row; ValueError."""
    groups, prefix = re.split(r"\s*[|,]\s*|\s+", row["groupid"].strip().rstrip("|,")), row["prefix"] or ""
    if set(prefix) - set(digits):
        raise ValueError(f"has the prefix {prefix!r}")
    if not all(re.fullmatch("[-+]?[0-9]+", group) for group in groups):
        raise ValueError(f"has the groups {row['groupid']!r}")
    numbers = [int(group) & 0xFFFFFFFF for group in groups]
    return -(row["priority"] & 0xFFFFFFFF), prefix, numbers, destinations(ctx, row, known), row["attrs"] or ""


def digits_of(ctx) -> str:
    """What a prefix may have."""
    return "0123456789" + ctx.param("extra_prefix_chars")


def read_partition(ctx, name: str, at: int, url: str, names: tuple, inherits: bool = True) -> None:
    """Read the tables of a partition; inherits: gateways and carriers that stay have the state that they had. TableError."""
    rows = [opensips.rows_of(ctx, *table) for table in tables_of(ctx, url, names)]
    gateways = by_name(opensips.good(ctx, rows[0], gateway, ctx))
    carriers = by_name(opensips.good(ctx, rows[1], carrier, ctx, gateways))
    known = {"GATEWAY": gateways, "CARRIER": carriers}
    rules = sorted(opensips.good(ctx, rows[2], rule, ctx, known, digits_of(ctx)), key=lambda one: one[0])
    head = Partition(at, url, names, int(ctx.store.time_s()))
    CARRIERS.put(ctx, name, None, carriers.values(), CARRIERS.state if inherits else ())
    GATEWAYS.put(ctx, name, head, gateways.values(), GATEWAYS.state if inherits else ())
    ctx.store.put(RULES, name, json.dumps(rules))  # last: none leads to what there was no room for


def by_name(made: list) -> dict:
    """Gateways or carriers by their names, in the order of these."""
    return {one.name: one for one in sorted(made, key=lambda one: mi.encode(one.name))}


def init(ctx):
    """Check the tables."""
    try:
        for url, names in declared(ctx).values():
            opensips.check_tables(ctx, *tables_of(ctx, url, names))
    except opensips.TableError as error:
        ctx.refuse("db_partitions_url", f"{error}")


def load(ctx):
    """Read the tables; what partitions are gone go from the store."""
    named = declared(ctx)
    for name, _ in ctx.store.items(RULES):
        if name not in named:
            ctx.store.remove(RULES, name)
    for one in (GATEWAYS, CARRIERS):
        one.remove_others(ctx, named)
    for at, (name, place) in enumerate(named.items()):
        read_partition(ctx, name, at, *place)


def child_init(ctx):
    """Have the tables before a request wants them."""
    GATEWAYS.now(ctx)
    CARRIERS.now(ctx)
    ctx.view(RULES, take_in_rules)


###############################################################################
# Arguments
###############################################################################
# In 2.4 a partition stands before all other values, in 3.4 it is a parameter that must be there, or must not.
# What 3.4's clients did not give is `...`, since null is a value of a bad type.


def is_text(ctx) -> bool:
    """Whether a request is in the dialect of 2.4."""
    return ctx.request.dialect == "text"


def named_partition(ctx, name: Any) -> str:
    """The partition that a JSON-RPC request names; mi.Error."""
    if not ctx.param("use_partitions"):
        raise mi.Error(400, "Invalid parameter: 'partition_name'",
                       "'partition_name' supported only when 'use_partitions' is set")
    return opensips.text(ctx, "partition_name", name)


def asked(ctx, partition_name: Any, *values: Any, unknown: mi.Error | None = None) -> tuple[str, list]:
    """The name of the partition that a request means, and its other values; mi.Error, in 2.4 the one for an unknown partition."""
    not_found = mi.Error(404, "Partition not found")
    if is_text(ctx):
        not_found, given = unknown or not_found, [value or "" for value in ctx.request.values]
        if ctx.param("use_partitions") and not given:
            raise mi.Error(400, "Partition mandatory")
        name = given.pop(0) if ctx.param("use_partitions") else DEFAULT
    else:
        given = [value for value in values if value is not ...]
        if ctx.param("use_partitions") and partition_name is ...:
            raise mi.Error(400, "Missing parameter: 'partition_name'",
                           "'partition_name' is required when 'use_partitions' is set")
        name = DEFAULT if partition_name is ... else named_partition(ctx, partition_name)
    if name not in GATEWAYS.now(ctx):
        raise not_found if ctx.param("use_partitions") else mi.Error(404, "No Data available yet")
    return name, given


###############################################################################
# Commands
###############################################################################


KINDS = {"gw": (GATEWAYS, "Gateways", "GW ID not found"), "carrier": (CARRIERS, "Carriers", "Carrier ID not found")}


def show_or_switch(ctx, kind: str, *given: Any) -> mi.Reply:
    """The reply to a command that shows all gateways (carriers) of a partition, shows one, or switches it on or off; mi.Error.
    given: the partition, the ID and the status of a JSON-RPC request."""
    tables, member, text = KINDS[kind]
    unknown, id_name = mi.Error(404, text), f"{kind}_id"
    partition, values = asked(ctx, *given)
    rows = tables.table(ctx, partition)
    if not values:
        texts = rows.texts(0, 1) if kind == "gw" else rows.texts(0)  # names and addresses, or names
        opensips.check_size(ctx, len(rows.ones), LEAST_BYTES[ctx.request.dialect], texts)
        shown = [one.shown(True) for one in opensips.in_turns(rows.ones)]
        return opensips.reply(ctx, {member: shown}, depends=(tables.space,))
    name = opensips.text(ctx, id_name, values[0])
    if len(values) > 1 and not is_text(ctx):
        values[1] = opensips.number(ctx, "status", values[1])  # 2.4 looks at it last
    found = rows.find(name)
    if found is None:
        raise unknown
    if len(values) == 1:
        return opensips.reply(ctx, found.shown(False), depends=(tables.space,))
    if len(values) > 2:
        raise mi.WRONG_COUNT
    on = opensips.number(ctx, "status", values[1]) != 0
    old, new = tables.change(ctx, partition, name, lambda one: one.switched(on), unknown)
    if new != old and kind == "gw":
        opensips.raise_event(ctx, "E_DROUTING_STATUS", partition=partition, gwid=name, address=new.address,
                             status="active" if on else "disabled MI", reason="MI command")
    return mi.Reply()


@opensips.command(bind=opensips.no_values)
def dr_gw_status(ctx, partition_name=..., gw_id=..., status=...):
    """Show all gateways or one, or switch one off (0) or on."""
    return show_or_switch(ctx, "gw", partition_name, gw_id, status)


@opensips.command(bind=opensips.no_values)
def dr_carrier_status(ctx, partition_name=..., carrier_id=..., status=...):
    """Show all carriers or one, or switch one off (0) or on."""
    return show_or_switch(ctx, "carrier", partition_name, carrier_id, status)


@opensips.command(bind=opensips.no_values)
def dr_number_routing(ctx, partition_name=..., group_id=..., number=...):
    """Show where a NUMBER is routed by the rules of a group."""
    if is_text(ctx) and not ctx.request.values:
        raise mi.WRONG_COUNT
    partition, given = asked(ctx, partition_name, group_id, number, unknown=mi.BAD_PARAMETER)
    if not given:
        raise mi.WRONG_COUNT
    group = opensips.number(ctx, "group_id", given.pop(0)) if len(given) > 1 else -1
    found = ctx.view(RULES, take_in_rules)[partition].find(opensips.text(ctx, "number", given[0]), group, digits_of(ctx))
    if found is None:
        return opensips.reply(ctx, "No match", depends=(RULES,))
    prefix, (destinations, attrs) = found
    value = {"Matched Prefix": prefix, "GW List": [{kind: name} for kind, name in destinations],
             **({"ATTRS": attrs} if attrs else {})}
    return opensips.reply(ctx, value, depends=(RULES,))


@opensips.command(bind=opensips.no_values, timed=False)
def dr_reload(ctx, partition_name=..., inherit_state=...):
    """Read the tables of all partitions again, or of one; gateways and carriers that stay have the state that they had."""
    failed = mi.Error(500, "Failed to reload")
    names = [*partitions(ctx)]
    if partition_name is not ... or is_text(ctx) and ctx.param("use_partitions") and ctx.request.values:
        names = [asked(ctx, partition_name, unknown=failed)[0]]
    wrong = []
    for name in names:
        old = partitions(ctx)[name]
        try:
            with opensips.reloading(ctx, failed):
                read_partition(ctx, name, old.at, old.url, tuple(old.tables), opensips.keeps_states(inherit_state))
        except mi.Error:  # the others are read
            wrong.append(name)
    if wrong:
        raise failed
    return mi.Reply()


@opensips.command(bind=opensips.no_values)
def dr_reload_status(ctx, partition_name=...):
    """Show when the tables of all partitions were read, or of one."""
    if is_text(ctx) and ctx.request.values and not ctx.param("use_partitions"):
        raise mi.Error(400, "Too many arguments (use_partitions is 0 so no parameter should be supplied to the MI function)")
    is_named = partition_name is not ... or bool(is_text(ctx) and ctx.request.values)
    known = partitions(ctx)
    names = [*known]
    if is_named or not ctx.param("use_partitions"):
        names = [asked(ctx, partition_name, unknown=mi.BAD_PARAMETER)[0]]
    shown = [{"name": name, "Date": known[name].date} for name in names]
    value: dict = {"Partitions": shown}
    if not ctx.param("use_partitions"):
        value = {"Date": shown[0]["Date"]}
    elif is_named and not is_text(ctx):
        value = shown[0]
    return opensips.reply(ctx, value, depends=(GATEWAYS.space,))


@opensips.command
def dr_enable_probing(ctx, status=...):
    """Show whether gateways are probed, or set it: 0 or 1."""
    return opensips.switch(ctx, PROBING, ... if is_text(ctx) and not ctx.request.values else status)
