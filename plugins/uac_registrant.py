"""uac_registrant -- what OpenSIPS registers elsewhere, as its module shows it.

The table is read at the start and by reg_reload. No REGISTER is sent: what would come of one is said by a lab command.
"""
from __future__ import annotations

import collections
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

LEAST_BYTES = 150  # of a record in a reply
STATES = [f"{word}_STATE" for word in (
    "NOT_REGISTERED", "REGISTERING", "AUTHENTICATING", "REGISTERED", "REGISTER_TIMEOUT", "INTERNAL_ERROR", "WRONG_CREDENTIALS",
    "REGISTRAR_ERROR", "UNREGISTERING", "AUTHENTICATING_UNREGISTER")]
NOT_REGISTERED, REGISTERING, AUTHENTICATING, REGISTERED, *_, UNREGISTERING, AUTHENTICATING_UNREGISTER = STATES
TABLE = opensips.table("registrant", [1, 2, 3], """registrar proxy? aor third_party_registrant? binding_URI binding_params?
    expiry#? forced_socket? cluster_shtag?@2 state#@3""", "%s_column")

PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("table_name", "registrant", mi.string, "name of the table"),
    mi.Param("hash_size", 1, mi.integer(1, 20), "number of buckets of the table as a power of two; lists are in their order"),
    mi.Param("timer_interval", 100, mi.integer(10),
             "shortest expiry of a record, seconds; records with a shorter one are left out"),
    *opensips.columns(TABLE),
    *opensips.without_effect("""default_expires enable_clustering failure_retry_interval password_column
        reregister_expiry_percentage username_column"""),
]
EVENTS = [mi.Event(f"E_REGISTRANT_{name}", "never raised here") for name in (
    "REGISTERING", "AUTHENTICATING", "REGISTERED", "REGISTER_TIMEOUT", "INTERNAL_ERROR", "WRONG_CREDENTIALS", "REGISTRAR_ERROR",
    "UNREGISTERING", "AUTHENTICATING_UNREGISTER")]


class Record(NamedTuple):
    """A registration as the store has it; expires: seconds; sent and timeout: seconds since the epoch; nth: how many of the same
    AOR, contact and registrar stand before it."""

    aor: str
    binding: str
    registrar: str
    expires: int
    enabled: bool = True
    params: str = ""
    third_party: str = ""
    socket: str = ""
    proxy: str = ""
    tag: str = ""
    state: str = NOT_REGISTERED
    sent: int = 0
    timeout: int = 0
    nth: int = 0

    @property
    def key(self) -> str:
        """What tells it from others."""
        return key_of(self.aor, self.binding, self.registrar) + "\0" * self.nth

    def shown(self, with_socket: bool) -> dict:
        """The record as 3.4 shows it, and 4.0 with its socket."""
        name, _, cluster = self.tag.partition("/")
        given = {"binding_params": self.params, "third_party_registrant": self.third_party,
                 "socket": self.socket if with_socket else "", "proxy": self.proxy, "shtag": name.strip(),
                 "cluster_id": int(cluster) if name else ""}
        return {"AOR": self.aor, "expires": self.expires, "state": self.state, "enabled": "yes" if self.enabled else "no",
                "last_register_sent": time.ctime(self.sent), "registration_t_out": time.ctime(self.timeout),
                "registrar": self.registrar, "binding": self.binding,
                **{name: value for name, value in given.items() if value != ""}}


###############################################################################
# State
###############################################################################


RECORDS = opensips.Tables("uac_registrant_table", Record, ("enabled", "state", "sent", "timeout"))
REPLACED = (RECORDS.space,)  # by load(), in one step
NO_RECORD = mi.Error(404, "No such registrant")


def key_of(aor: str, binding: str, registrar: str) -> str:
    """The key of a record; no text of these has a NUL."""
    return "\0".join((aor, binding, registrar))


def bucket(ctx, aor: str) -> int:
    """The bucket of the original's table in which the records of an AOR are."""
    return opensips.core_hash(mi.encode(aor)) & 2**ctx.param("hash_size") - 1


def records(ctx) -> list[Record]:
    """The records in the order in which the original's table has them."""
    return sorted(RECORDS.table(ctx).ones, key=lambda one: bucket(ctx, one.aor))


def key_in(ctx, ones: list[Record], aor: str, binding: str, registrar: str) -> str:
    """The key of the record that is meant: as in the original, the first in the bucket of the AOR with this contact and
    registrar, whatever its own AOR."""
    return next((one.key for one in ones if (one.binding, one.registrar) == (binding, registrar)
                 and bucket(ctx, one.aor) == bucket(ctx, aor)), key_of(aor, binding, registrar))


def moved(ctx, one: Record, state: str) -> Record:
    """A record in another state, with the moments that go with it."""
    now_s = int(ctx.store.time_s())
    is_sent = state in (REGISTERING, AUTHENTICATING, AUTHENTICATING_UNREGISTER) or not one.sent and state == REGISTERED
    ends_s = {REGISTERED: now_s + one.expires - ctx.param("timer_interval"), NOT_REGISTERED: 0}
    return one._replace(state=state, sent=now_s if is_sent else one.sent, timeout=ends_s.get(state, one.timeout))


def move(ctx, aor: str, state: str) -> None:
    """Take the records of an AOR to a state, for lab commands; ctx: of any module. mi.Error if there are none."""
    own = opensips.context_of(ctx, "uac_registrant")
    fitting = [one for one in RECORDS.table(own).ones if one.aor == aor]
    if not fitting:
        raise NO_RECORD
    for one in fitting:
        RECORDS.change(own, "", one.key, lambda one: moved(own, one, state), NO_RECORD)


###############################################################################
# The table
###############################################################################


FIELDS = {"registrar": "sips?:[^@]+", "proxy": "(?:sips?:[^@]+)?", "aor": ".+", "binding_URI": ".+",
          "third_party_registrant": ".*", "cluster_shtag": r"(?:[^/]+/\s*\d+\s*)?"}


def record(row: dict, ctx: Any) -> Record:
    """The record of a row; ValueError."""
    for name, pattern in FIELDS.items():
        text = row.get(name) or ""
        if not re.fullmatch(pattern, text, re.I | re.S) or text and name != "cluster_shtag" and not opensips.is_uri(text, 65535):
            raise ValueError(f"has the {name} {row[name]!r}")
    expiry = (row["expiry"] or 0) & 0xFFFFFFFF
    if expiry <= ctx.param("timer_interval"):
        raise ValueError(f"has an expiry of {row['expiry']} seconds, which must be more than timer_interval")
    if row["forced_socket"] and not opensips.has_socket(ctx, row["forced_socket"]):
        raise ValueError(f"has the socket {row['forced_socket']}, which is none of this server's")
    return Record(row["aor"], row["binding_URI"], row["registrar"], expiry, not row.get("state"),
                  row["binding_params"] or "", row["third_party_registrant"] or "", row["forced_socket"] or "",
                  row["proxy"] or "", row.get("cluster_shtag") or "")


def inherit(new: Record, old: Record | None, *, all_of_it: bool = False) -> Record:
    """A record with the state of an older one, if that is registered, or with all of it."""
    if old is None or not all_of_it and old.state != REGISTERED:
        return new
    return new._replace(state=old.state, sent=old.sent, timeout=old.timeout,
                        enabled=old.enabled if all_of_it else new.enabled)


def update(new: Record, old: Record | None) -> Record:
    """A record in the place of one, which stays registered unless one of both is disabled."""
    return inherit(new, old) if old and old.enabled and new.enabled else new


def read_table(ctx, key: str | None = None, *, keeps_states: bool = False) -> bool:
    """Read the table, or the row of one record; what is registered stays so. keeps_states: all states stay, and the records that
    commands put and deleted. Returns whether there is a row; TableError."""
    url, table = opensips.place(ctx, TABLE, "table_name")
    rows = [row for row in opensips.rows_of(ctx, url, table)
            if not key or [row["aor"], row["binding_URI"], row["registrar"]] == key.split("\0")]
    made, counts = [], collections.Counter[str]()
    for one in opensips.good(ctx, rows[:1] if key else rows, record, ctx):
        made.append(one._replace(nth=counts[one.key]))
        counts[one.key] += 1

    def merged(old: Any, each: Callable) -> tuple:
        before = {one.key: one for one in old.ones} if old else {}
        by_command = old.head or {} if old and (key or keeps_states) else {}
        if key:
            at = key_in(ctx, [*before.values()], *key.split("\0"))
            for one in made:
                before[at] = update(one, before.get(at))
            return {name: is_there for name, is_there in by_command.items() if name != key}, [*before.values()]
        registered = {one.aor: one for one in each(before.values()) if one.state == REGISTERED}
        new = {one.key: inherit(one, before.get(one.key), all_of_it=True) if keeps_states else
               inherit(one, registered.get(one.aor)) for one in each(made)}
        put = {name: before[name] for name, is_there in by_command.items() if is_there}
        return by_command, [one for name, one in {**new, **put}.items() if by_command.get(name, True)]

    RECORDS.replace(ctx, "", merged)
    return bool(rows)


def init(ctx):
    """Check the table."""
    opensips.check_tables(ctx, opensips.place(ctx, TABLE, "table_name"))


def load(ctx):
    """Read the table; what commands changed stays."""
    read_table(ctx, keeps_states=True)


def child_init(ctx):
    """Have the table before a request wants it."""
    RECORDS.now(ctx)


###############################################################################
# Commands
###############################################################################


def asked(ctx, aor: Any, contact: Any, registrar: Any) -> list[str]:
    """The AOR, contact and registrar of a request; mi.Error."""
    return [opensips.text(ctx, name, value) for name, value in (("aor", aor), ("contact", contact), ("registrar", registrar))]


def meant(ctx, *given: Any) -> str:
    """The key of the record that a request means; mi.Error."""
    return key_in(ctx, RECORDS.table(ctx).ones, *asked(ctx, *given))


@opensips.command
def reg_list(ctx, aor=..., contact=..., registrar=...):
    """Show all records, in JSON-RPC one as well."""
    with_socket = opensips.is_40(ctx)
    if ctx.request.dialect == "jsonrpc" and aor is not ...:
        found = RECORDS.table(ctx).find(meant(ctx, aor, contact, registrar))
        if found is None:
            raise NO_RECORD
        return opensips.reply(ctx, {"Registrant": found.shown(with_socket)}, depends=(RECORDS.space,))
    opensips.check_size(ctx, len(RECORDS.table(ctx).ones), LEAST_BYTES)
    shown = [one.shown(with_socket) for one in opensips.in_turns(records(ctx))]
    return opensips.reply(ctx, {"Records": shown}, depends=(RECORDS.space,))


@opensips.command(timed=False)
def reg_reload(ctx, aor=..., contact=..., registrar=...):
    """Read the table again, in JSON-RPC also the row of one record; what is registered stays so."""
    is_one = ctx.request.dialect == "jsonrpc" and aor is not ...
    with opensips.reloading(ctx):
        if not read_table(ctx, key_of(*asked(ctx, aor, contact, registrar)) if is_one else None) and is_one:
            raise mi.Error(404, "No such registrant in database")
    return mi.Reply()


def switch(ctx, key: str, on: bool) -> mi.Reply:
    """Enable or disable a record; mi.Error if there is none."""
    before, after = (NOT_REGISTERED, REGISTERING) if on else (REGISTERED, UNREGISTERING)

    def switched(one: Record) -> Record:
        if one.enabled == on:
            return one
        return (moved(ctx, one, after) if one.state == before else one)._replace(enabled=on)

    old, new = RECORDS.change(ctx, "", key, switched, NO_RECORD)
    if old != new:  # as in the original, all rows of the AOR
        opensips.write_rows(ctx, *opensips.place(ctx, TABLE, "table_name"), {"aor": new.aor}, {"state": f"{int(not on)}"})
    return mi.Reply()


@opensips.command
def reg_enable(ctx, aor, contact, registrar):
    """Enable a record: it is registered again."""
    return switch(ctx, meant(ctx, aor, contact, registrar), True)


@opensips.command
def reg_disable(ctx, aor, contact, registrar):
    """Disable a record: its registration ends."""
    return switch(ctx, meant(ctx, aor, contact, registrar), False)


@opensips.command
def reg_force_register(ctx, aor, contact, registrar):
    """Have a record registered again."""
    RECORDS.change(ctx, "", meant(ctx, aor, contact, registrar),
                   lambda one: one._replace(timeout=0) if one.enabled else one, NO_RECORD)
    return mi.Reply()


@opensips.command
def reg_upsert(ctx, aor, contact, registrar, proxy, third_party_registrant, username, password, binding_params, expiry,
               forced_socket, cluster_shtag, state):
    """Add a record, or change it; state 0 enables it. The database stays as it is."""
    given = {"aor": aor, "contact": contact, "registrar": registrar, "proxy": proxy,
             "third_party_registrant": third_party_registrant, "username": username, "password": password,
             "binding_params": binding_params}
    row = {name: opensips.text(ctx, name, value) for name, value in given.items()}
    row["expiry"] = opensips.number(ctx, "expiry", expiry)
    row |= {"binding_URI": row["contact"], "forced_socket": opensips.text(ctx, "forced_socket", forced_socket),
            "cluster_shtag": opensips.text(ctx, "cluster_shtag", cluster_shtag)}
    row["state"] = opensips.number(ctx, "state", state)
    try:
        new = record(row, ctx)
    except ValueError as error:
        ctx.log.error("reg_upsert: the record %s", error)
        raise mi.Error(400, "Bad parameter") from None
    edit(ctx, new.key, lambda old: update(new, old))
    return mi.Reply()


@opensips.command
def reg_delete(ctx, aor, contact, registrar):
    """Remove a record. The database stays as it is."""
    def removed(old: Record | None) -> None:
        if old is None:
            raise NO_RECORD

    edit(ctx, key_of(*asked(ctx, aor, contact, registrar)), removed)
    return mi.Reply()


def edit(ctx, key: str, how: Callable[[Record | None], Record | None]) -> None:
    """Put what how(the record, None if there is none) returns in its place, None to remove it; a reload keeps that."""
    def edited(old: Any, each: Callable) -> tuple:
        ones = {one.key: one for one in each(old.ones if old else ())}
        new = how(ones.get(key))
        by_command = {**(old.head or {} if old else {}), key: new is not None}
        if new is None:
            return by_command, [one for name, one in ones.items() if name != key]
        return by_command, [*{**ones, key: new}.values()]

    RECORDS.replace(ctx, "", edited)
