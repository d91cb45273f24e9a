"""usrloc -- the contacts that users are registered with, as OpenSIPS' module shows them.

A table of contacts is a space of the store: a key for each AOR, whose value has all its contacts. What a REGISTER would leave
is done by register(), for lab commands.
"""
from __future__ import annotations

import bisect
import itertools
import json
import math
import random
import re
import urllib.parse
from collections.abc import Container, Iterator
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, READ = "usrloc", "usrloc tables"  # the latter has the names of tables that were read to the end
MI_CALLID, MI_AGENT = "dfjrewr12386fd6-343@opensips.mi", "OpenSIPS MI Server"
UNSET_Q, ALL_METHODS, DELETED = -1, 2**32 - 1, 10
NEW, SYNC, DIRTY = "CS_NEW", "CS_SYNC", "CS_DIRTY"
LOCATION = opensips.table("location", [1013], """contact_id## username=user_column domain? contact received? path? expires#
    q~ callid cseq# flags# cflags? user_agent socket? methods#? sip_instance? kv_store? attr?""", "%s_column")
TABLE_CALLS = ("save", "lookup", "remove", "registered", "is_registered", "is_contact_registered", "is_ip_registered")
FLAG_CALLS = ("setbflag", "resetbflag", "isbflagset")
PARTS = re.compile(r"([^:]*):(?:([^@:]*)(?::([^@]*))?@)?(\[[^\]]*\]|[^:;?]*)(?::(\d*))?((?:;[^?]*)?)(.*)", re.S)
COMPARED = ("transport", "ttl", "user", "maddr", "method", "lr", "r2", "gr", "pn-provider", "pn-prid", "pn-param", "pn-purr")
PRESETS = {"single-instance-sql-write-through": 1, "single-instance-sql-write-back": 2, "sql-only-cluster": 3}


def table_names(value) -> tuple:
    """Converter: names, semicolon-separated."""
    return tuple(name.strip() for name in mi.string(value).split(";") if name.strip())


def hash_bits(value) -> int:
    """Converter: the number of bits that a hash table of OpenSIPS has buckets for."""
    return mi.integer(1, 24)(value)


PARAMS = [
    mi.Param("tables", ("location",), table_names,
             "tables of contacts, semicolon-separated; unless set, those that the script uses; ul_dump shows the last first"),
    mi.Param("use_domain", None, mi.boolean, "whether an AOR has a domain; default: yes with imitate 4.0, else no"),
    mi.Param("hash_size", 9, hash_bits, "the number of buckets of the table as a power of two: 9 is 512"),
    mi.Param("timer_interval", 60, mi.integer(1), "how often contacts that expired are removed, seconds"),
    mi.Param("desc_time_order", False, mi.boolean, "whether the newest contact comes first, regardless of q"),
    mi.Param("matching_mode", 0, mi.integer(0, 1), "what identifies a contact: 0: its URI; 1: its URI and Call-ID"),
    mi.Param("db_mode", 0, mi.integer(0, 3), "0: no table; 1: write-through; 2: write-back; the table is read, never written"),
    mi.Param("working_mode_preset", "", mi.string, "preset in place of db_mode: single-instance-sql-write-through, ..."),
    mi.Param("db_url", "", mi.string, "database with the tables: text://DIRECTORY or sqlite://FILE"),
    mi.Param("nat_bflag", "", mi.string, "a branch flag that contacts of the table may have, as those that the script names"),
    mi.Param("mi_dump_kv_store", False, mi.boolean, "whether a contact from the table shows its KV-Store"),
    *opensips.columns(LOCATION),
    *opensips.without_effect("""accept_replicated_contacts cachedb_url cluster_mode contact_refresh_timer contactid_column
        cseq_delay ha_cluster ha_shtag latency_event_min_us latency_event_min_us_delta location_cluster max_contact_delete
        pinging_mode regen_broken_contactid repl_auth_check replicate_contacts_to restart_persistency shared_pinging
        skip_replicated_db_ops sql_write_mode"""),
]
EVENTS = [
    mi.Event("E_UL_AOR_INSERT", "an AOR has its first contact"),
    mi.Event("E_UL_AOR_DELETE", "an AOR has no contact any more"),
    mi.Event("E_UL_CONTACT_INSERT", "a contact is new"),
    mi.Event("E_UL_CONTACT_UPDATE", "a contact is registered again"),
    mi.Event("E_UL_CONTACT_DELETE", "a contact is removed, or expired"),
    mi.Event("E_UL_CONTACT_REFRESH", "never raised here"),
    mi.Event("E_UL_LATENCY_UPDATE", "never raised here"),
]


def figures(ctx):
    """The statistics that count what there is."""
    view, names = ctx.view(SPACE, take_in), {"registered_users": 0}
    for name in ctx.param("tables"):
        domain = view.get(name) or Domain()
        names["registered_users"] += len(domain.records)
        names.update({f"{name}-users": len(domain.records), f"{name}-contacts": domain.contacts})
    return names


def table_stats(name: str) -> list:
    """The statistics of a table."""
    return [mi.Stat(f"{name}-users", f"AORs in {name}", read=figures),
            mi.Stat(f"{name}-contacts", f"contacts in {name}", read=figures),
            mi.Stat(f"{name}-expires", f"contacts in {name} that expired since the start")]


STATS = [mi.Stat("registered_users", "AORs in all tables", read=figures), *table_stats("location")]

###############################################################################
# State
###############################################################################


class Contact(NamedTuple):
    """A contact as the store has it; expires: seconds since the epoch, 0 for ever; q: times 1000, -1 if there is none."""

    uri: str
    contact_id: int
    expires: int = 0
    q: int = UNSET_Q
    callid: str = MI_CALLID
    cseq: int = 1
    user_agent: str | None = MI_AGENT
    received: str | None = None
    path: str | None = None
    state: str = NEW
    flags: int = 0
    cflags: int = 0
    flag_names: str = ""
    socket: str | None = None
    methods: int = ALL_METHODS
    attr: str | None = None
    sip_instance: str | None = None
    latency: int = 0
    kv_store: str | None = None

    def is_valid(self, now_s: float) -> bool:
        """Whether it has not expired."""
        return not self.expires or self.expires > now_s

    def shown(self, expires: Any) -> dict:
        """The contact as 3.4 shows it."""
        optional = {"User-agent": self.user_agent, "Received": self.received, "Path": self.path}
        last = {"Attr": self.attr, "SIP_instance": self.sip_instance, "Ping-Latency": self.latency, "KV-Store": self.kv_store}
        return {"Contact": self.uri, "ContactID": str(self.contact_id), "Expires": expires, "Q": opensips.shown_q(self.q),
                "Callid": self.callid, "Cseq": self.cseq, **{name: value for name, value in optional.items() if value},
                "State": self.state, "Flags": (self.flags + 2**31) % 2**32 - 2**31, "Cflags": self.flag_names,
                **({"Socket": self.socket} if self.socket else {}), "Methods": self.methods & 0xFFFFFFFF,
                **{name: value for name, value in last.items() if value}}

    def attributes(self, table: str, aor: str) -> dict:
        """What an event says of it, as 3.4 does."""
        return {"domain": table, "aor": aor, "uri": self.uri, "received": self.received, "path": self.path, "qval": self.q,
                "user_agent": self.user_agent or "", "socket": self.socket or "", "bflags": self.cflags,
                "expires": self.expires, "callid": self.callid, "cseq": self.cseq, "attr": self.attr or "",
                "latency": self.latency, "shtag": ""}


class Stored(str):
    """A record as the store has it, with the Record itself: the child that writes it need not read it."""

    record: Record


class Record:
    """An AOR with its contacts, and its text as written last time.

    label: its running number in its bucket; following: the last 14 bits of the next ContactID.
    """

    def __init__(self, value: str | None = None):
        self.label, self.following, self.kv_store, rows = json.loads(value) if value else (0, 0, None, [])
        self.contacts = [Contact(*row) for row in rows]
        self.written: dict[str, list[str]] = {}  # what stands between the lines -> text around the times of expiry
        self.timed = False  # whether a contact expires, of a record in a Domain

    def value(self) -> Stored | None:
        """The record as the store has it, which may not change any more."""
        if not self.contacts:
            return None
        value = Stored(json.dumps([self.label, self.following, self.kv_store, self.contacts]))
        value.record = self
        return value

    def shown(self, aor: str, times: list) -> dict:
        """The AOR as 3.4 shows it; times: what to write for the expiry of each contact."""
        contacts = [contact.shown(expires) for contact, expires in zip(self.contacts, times)]
        return {"AOR": aor, "Contacts": contacts, **({"KV-Store": self.kv_store} if self.kv_store else {})}

    def times(self, now_s: int) -> list:
        """What to show for the expiry of each contact."""
        return [time_left(contact.expires, now_s) for contact in self.contacts]

    def write(self, kind: str, aor: str, now_s: int, make: Any, mark: str) -> str:
        """The AOR in a kind of writing: make(object) writes it once with a mark for each expiry, which is then filled in."""
        parts = self.written.get(kind)
        if parts is None:
            times = ["\0"] * len(self.contacts) if self.timed else self.times(now_s)
            parts = self.written[kind] = make(self.shown(aor, times)).split(mark)
        if len(parts) == 1:
            return parts[0]
        words = [json.dumps(word) if kind == "json" else f"{word}" for word in self.times(now_s)]
        return "".join(itertools.chain(*zip(parts, words), parts[-1:]))

    def text(self, aor: str, indent: str, margin: str, now_s: int) -> str:
        """The AOR as 2.4 writes it, with a margin before all lines but the first."""
        return self.write(margin, aor, now_s, lambda item: margin.join(tree_lines(item, indent))[:-1], "\0")

    def json(self, aor: str, now_s: int) -> str:
        """The AOR as 3.4 writes it."""
        return self.write("json", aor, now_s, mi.json_text, '"\\u0000"')


def tree_lines(item: dict, indent: str) -> list[str]:
    """The lines of an AOR in 2.4's tree."""
    return mi.node_lines(opensips.forms.to_nodes(opensips.forms.FORMS["ul_show_contact"].tree, item), indent)


def time_left(expires: int, now_s: int) -> int | str:
    """What is shown for an expiry: seconds from now, or a word."""
    if expires in (0, DELETED):
        return "deleted" if expires else "permanent"
    return "expired" if now_s > expires else expires - now_s


class Domain:
    """A table as a child sees it: records by AOR, and of each bucket the AORs in order and the next label."""

    def __init__(self):
        self.records: dict[str, Record] = {}
        self.contacts = 0
        self.buckets: dict[int, list[tuple[bytes, str]]] = {}
        self.labels: dict[int, int] = {}

    def order(self) -> Iterator[str]:
        """The AORs bucket by bucket, as they are shown."""
        for _, bucket in sorted(self.buckets.items()):
            for _, aor in bucket:
                yield aor

    def put(self, aor: str, value: str | None, bits: int) -> None:
        """Take in what an AOR has now."""
        old = self.records.pop(aor, None)
        self.contacts -= len(old.contacts) if old else 0
        data = mi.encode(aor)
        number = opensips.core_hash(data) & 2**bits - 1
        bucket = self.buckets.setdefault(number, [])
        if value is not None:
            self.records[aor] = record = value.record if isinstance(value, Stored) else Record(value)
            record.timed = any(contact.expires for contact in record.contacts)
            self.contacts += len(record.contacts)
            self.labels[number] = max(self.labels.get(number, 0), record.label + 1)
            if old is None:
                bisect.insort(bucket, (data, aor))
        elif old:
            del bucket[bisect.bisect_left(bucket, (data, aor))]


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep one AOR in a view, which is {table: Domain}; init() gives this function the number of bits of the hash."""
    table, _, aor = key.partition("\n")
    (view.get(table) or view.setdefault(table, Domain())).put(aor, value, getattr(take_in, "bits", 9))


def db_mode(ctx) -> int:
    """How contacts come into the table, as db_mode has it."""
    preset = ctx.param("working_mode_preset")
    return PRESETS.get(preset, 0) if preset else ctx.param("db_mode")


def edit(ctx, table: str, aor: str, alter: Any, creates: bool = False, counts: str = "") -> None:
    """Have alter(record, happened) change an AOR in one step, then raise the events that it lists in `happened`: names of
    E_UL_CONTACT_..., and the contact. Without `creates` it is called for an AOR that exists only; counts: a statistic of contacts
    that are removed."""
    happened: list = []

    def step(value: str | None) -> str | None:
        happened.clear()
        record = Record(value)
        if value is None and not creates:
            return None
        if value is None:
            domain = ctx.view(SPACE, take_in).get(table) or Domain()  # here, where no other child makes an AOR
            record.label, record.following = domain.labels.get(bucket_of(ctx, aor), 0), random.getrandbits(14)
            happened.append(("AOR_INSERT", None))
        alter(record, happened)
        if not record.contacts:
            happened.append(("AOR_DELETE", None))
        return record.value()

    ctx.store.change(SPACE, f"{table}\n{aor}", step)
    if counts:
        ctx.count(counts, [name for name, _ in happened].count("CONTACT_DELETE"))
    for name, contact in happened if opensips.has_subscribers(ctx) else ():
        attributes = contact.attributes(table, aor) if contact else {"domain": table, "aor": aor}
        opensips.raise_event(ctx, f"E_UL_{name}", **attributes)


def bucket_of(ctx, aor: str) -> int:
    """The bucket of an AOR."""
    return opensips.core_hash(mi.encode(aor)) & 2**ctx.param("hash_size") - 1


def place_of(ctx, record: Record, uri: str, callid: str | None = None) -> int | None:
    """The place of the first contact with a URI, and with a Call-ID if there is one, that is not removed yet."""
    exact = ctx.request.dialect == "text"
    for at, one in enumerate(record.contacts):
        if (one.uri == uri or not exact and is_same(one.uri, uri)) and callid in (None, one.callid) and one.expires != DELETED:
            return at
    return None


def is_same(one: str, other: str) -> bool:
    """Whether 3.x takes two URIs for the same one: parameters that only one of them has do not count, but for COMPARED."""
    if one.lower() == other.lower():
        return True
    (parts, others), (other_parts, further) = parts_of(one), parts_of(other)
    return parts == other_parts and all(further.get(name, value) == value for name, value in others.items())


def parts_of(uri: str) -> tuple[tuple, dict[str, str]]:
    """What of a URI must be the same, and its other parameters."""
    match = PARTS.fullmatch(uri)
    scheme, user, password, host, port, params, headers = match.groups("") if match else ("", "", "", uri, "", "", "")
    pairs = [item.partition("=") for item in params.lower().split(";")[1:]]
    others = {name: value for name, _, value in pairs}
    compared = [others.pop(name, "") for name in COMPARED]
    return (scheme.lower(), urllib.parse.unquote(user), password, host.lower(), port, compared, headers.lower()), others


def callid_to_match(ctx, callid: str) -> str | None:
    """The Call-ID that identifies the contact of a REGISTER beside its URI, if matching_mode has it so."""
    return callid if ctx.param("matching_mode") else None


def put_contact(ctx, record: Record, aor: str, contact: Contact, happened: list, by_mi: bool) -> None:
    """Add a contact to a record, or update the one that it matches, whose Cseq stays if MI does it."""
    at = place_of(ctx, record, contact.uri, None if by_mi else callid_to_match(ctx, contact.callid))
    if at is not None:
        happened.append(("CONTACT_UPDATE", update_contact(ctx, record, at, contact, by_mi)))
        return
    if not opensips.is_uri(contact.uri, opensips.most_port(ctx)):
        return
    first = opensips.core_hash(mi.encode(aor)) & 0xFFFF
    contact = contact._replace(contact_id=(first << 46) + (record.label << 14) + record.following,
                               state=SYNC if db_mode(ctx) == 1 else NEW)
    record.following = record.following + 1 & 0x3FFF
    places = (at for at, other in enumerate(record.contacts) if other.q < contact.q or ctx.param("desc_time_order"))
    record.contacts.insert(next(places, len(record.contacts)), contact)
    happened.append(("CONTACT_INSERT", contact))


def update_contact(ctx, record: Record, at: int, contact: Contact, by_mi: bool) -> Contact:
    """Put a contact in the place of another. If it does not stand right there by its q, it goes before the first whose q is not
    smaller: the original looks from the wrong end."""
    contacts, old = record.contacts, record.contacts[at]
    state = SYNC if db_mode(ctx) == 1 else DIRTY if old.state == SYNC else old.state
    contacts[at] = contact = contact._replace(
        uri=old.uri, contact_id=old.contact_id, state=state, cseq=old.cseq if by_mi else contact.cseq,
        sip_instance=old.sip_instance, latency=old.latency, kv_store=old.kv_store)
    if ctx.param("desc_time_order"):
        contacts.insert(0, contacts.pop(at))
    elif at and contacts[at - 1].q < contact.q or at + 1 < len(contacts) and contacts[at + 1].q > contact.q:
        del contacts[at]
        contacts.insert(next((to for to, one in enumerate(contacts) if one.q >= contact.q), len(contacts)), contact)
    return contact


def remove_contacts(ctx, record: Record, happened: list, places: Container[int | None]) -> None:
    """Remove the contacts in these places. With write-back one in the table stays, as deleted, until the timer has removed it
    there."""
    kept, writes_back = [], db_mode(ctx) == 2
    for at, one in enumerate(record.contacts):
        if at not in places:
            kept.append(one)
        elif writes_back and one.state != NEW:
            kept.append(one._replace(expires=DELETED))
        else:
            happened.append(("CONTACT_DELETE", one))
    record.contacts = kept


###############################################################################
# The start, and the timer
###############################################################################


def init(ctx):
    """Declare the statistics of all tables, set the timer, and check the tables of the database."""
    preset = ctx.param("working_mode_preset")
    if preset and preset not in (*PRESETS, "single-instance-no-db") and "cluster" not in preset:
        ctx.refuse("working_mode_preset", f'working_mode_preset takes single-instance-no-db, {", ".join(PRESETS)} or a cluster'
                                          f'{mi.nearest(preset, PRESETS)}')
    named = [texts[0] for function, *texts in ctx.own.calls if function in TABLE_CALLS]
    if named and "tables" not in ctx.own.lines:
        ctx.own.settings["tables"] = tuple(dict.fromkeys(named))
    ctx.own.stats[1:] = [stat._replace(group="usrloc", read=ctx.own.stats[0].read if stat.read else None)
                         for name in ctx.param("tables") for stat in table_stats(name)]
    mi.tagged(take_in, bits=ctx.param("hash_size"))
    mi.tagged(expire, mi_every=(ctx.param("timer_interval"), "one"))
    if db_mode(ctx):
        opensips.check_tables(ctx, *[(opensips.url_of(ctx), LOCATION.named(ctx, name)) for name in ctx.param("tables")])


def load(ctx):
    """Fill the tables from the database, unless that was done before; what is there already stays."""
    for name in ctx.param("tables") if db_mode(ctx) else ():
        if ctx.store.get(READ, name):
            continue
        records: dict[str, Record] = {}
        rows = opensips.rows_of(ctx, opensips.url_of(ctx), LOCATION.named(ctx, name))
        for aor, contact in opensips.good(ctx, rows, contact_of, ctx, branch_flags(ctx)):
            records.setdefault(aor, Record()).contacts.append(contact)
        for aor, record in records.items():
            record.label = record.contacts[-1].contact_id >> 14 & 0xFFFFFFFF
            record.following = max(contact.contact_id for contact in record.contacts) + 1 & 0x3FFF
            if ctx.param("desc_time_order"):
                record.contacts.reverse()
            else:
                record.contacts.sort(key=lambda contact: -contact.q)
            mine = record.value()
            ctx.store.change(SPACE, f"{name}\n{aor}", lambda value, mine=mine: value or mine)
        ctx.store.put(READ, name, "whole")


def branch_flags(ctx) -> dict[str, int]:
    """The branch flags that the configuration has, with their bits; the original knows no others."""
    names = [ctx.param("nat_bflag"), *[texts[0] for function, *texts in ctx.own.calls if function in FLAG_CALLS]]
    return {name: 1 << bit for bit, name in enumerate(dict.fromkeys(filter(None, names)))}


def contact_of(row: Any, ctx, known: dict[str, int]) -> tuple[str, Contact]:
    """The AOR and the contact that a row of the table means; ValueError for one that the original leaves out."""
    socket, has_domain = opensips.own_socket(ctx, row), uses_domain(ctx)
    row = {name: opensips.c_text(value) for name, value in row.items()}
    for name in ("username", "contact", "callid", *(["domain"] if has_domain else [])):
        if not row[name]:
            raise ValueError(f"has no {name}")
    aor = f"{row['username']}@{row['domain']}" if has_domain else row["username"]
    if row["contact_id"] >> 46 & 0xFFFF != opensips.core_hash(mi.encode(aor)) & 0xFFFF:
        raise ValueError(f"has the contact_id {row['contact_id']}, which is none of {aor!r:.60}")
    if not opensips.is_uri(row["contact"], math.inf):
        raise ValueError(f"has the contact {row['contact']!r:.60}, which is no URI")
    named = [name for name in reversed(known) if name in (row["cflags"] or "").split(" ")]
    return aor, Contact(row["contact"], row["contact_id"], row["expires"], UNSET_Q if row["q"] == -1 else int(row["q"] * 1000),
                        row["callid"], row["cseq"], row["user_agent"], row["received"], row["path"], SYNC, row["flags"],
                        sum(map(known.__getitem__, named)), " ".join(named), socket,
                        ALL_METHODS if row["methods"] is None else row["methods"], row["attr"], row["sip_instance"], 0,
                        kv_text(row["kv_store"]) if ctx.param("mi_dump_kv_store") else None)


def kv_text(column: str | None) -> str | None:
    """What is shown of a column kv_store: its texts and whole numbers by name; None for nothing."""
    try:
        values = json.loads(column or "{}")
    except ValueError:
        return None
    shown = {name: value for name, value in values.items() if type(value) in (str, int)} if isinstance(values, dict) else {}
    return mi.json_text(dict(sorted(shown.items()))) if shown else None


def child_init(ctx):
    """Have the contacts before a request wants them."""
    ctx.view(SPACE, take_in)


@mi.every(20)
def keep_up(ctx):
    """Take in what is removed before the store forgets it: all contacts would have to be read anew."""
    ctx.view(SPACE, take_in)


@mi.every(60, "one")
def expire(ctx):
    """Remove what expired; contacts that are not in the table are written to it."""
    now_s, writes_back = ctx.store.time_s(), db_mode(ctx) == 2

    def alter(record: Record, happened: list) -> None:
        happened += [("CONTACT_DELETE", contact) for contact in record.contacts if not contact.is_valid(now_s)]
        record.contacts = [contact._replace(state=SYNC) if writes_back else contact
                           for contact in record.contacts if contact.is_valid(now_s)]

    for table in ctx.param("tables"):
        domain = ctx.view(SPACE, take_in).get(table) or Domain()
        for aor, record in opensips.in_turns([*domain.records.items()]):
            if any(not contact.is_valid(now_s) or (writes_back and contact.state != SYNC) for contact in record.contacts):
                edit(ctx, table, aor, alter, counts=f"{table}-expires")


###############################################################################
# Commands
###############################################################################


def checked(ctx, table_name: Any, aor: Any) -> tuple[str, str]:
    """A table and an AOR of it; mi.Error."""
    table = opensips.text(ctx, "table_name", table_name)
    if table not in ctx.param("tables"):
        raise mi.Error(404, "Table not found")
    return table, aor_of(ctx, opensips.text(ctx, "aor", aor))


def aor_of(ctx, aor: str) -> str:
    """An AOR as the table has it; mi.Error."""
    if not uses_domain(ctx):
        return aor.partition("@")[0]
    if "@" not in aor:
        raise mi.Error(400, "Domain missing in AOR")
    return aor


def uses_domain(ctx) -> bool:
    """Whether an AOR has a domain, as is the default of 4.0."""
    wanted = ctx.param("use_domain")
    return opensips.is_40(ctx) if wanted is None else wanted


def record_of(ctx, table: str, aor: str) -> Record:
    """What an AOR has now; mi.Error."""
    domain = ctx.view(SPACE, take_in).get(table)
    if domain is None or aor not in domain.records:
        raise mi.Error(404, "AOR not found")
    return domain.records[aor]


@opensips.command
def ul_rm(ctx, table_name, aor):
    """Remove an AOR with all its contacts."""
    table, aor = checked(ctx, table_name, aor)
    edit(ctx, table, aor, lambda record, happened: remove_contacts(ctx, record, happened, range(len(record.contacts))))
    return mi.Reply()


@opensips.command
def ul_rm_contact(ctx, table_name, aor, contact):
    """Remove a contact of an AOR."""
    table, aor = checked(ctx, table_name, aor)
    record_of(ctx, table, aor)
    contact = opensips.text(ctx, "contact", contact)

    def alter(record: Record, happened: list) -> None:
        at = place_of(ctx, record, contact)
        if at is None:
            raise mi.Error(404, "Contact not found")
        remove_contacts(ctx, record, happened, (at,))

    edit(ctx, table, aor, alter)
    return mi.Reply()


@opensips.command
def ul_dump(ctx, brief=None):
    """Show all AORs with their contacts, or with the word `brief` without."""
    is_json = ctx.request.dialect == "jsonrpc"
    brief = brief is not None and (bool(mi.json_int(brief, "brief")) if is_json else brief.lower() == "brief")
    view, now_s, size = ctx.view(SPACE, take_in), ctx.store.time_s(), 2**ctx.param("hash_size")
    domains = [(name, view.get(name) or Domain()) for name in reversed(ctx.param("tables"))]
    timed = not brief and any(record.timed for _, domain in domains for record in domain.records.values())
    reply = mi.Reply(depends=(SPACE,), until_s=next_second(ctx, now_s) if timed else None)
    if is_json:
        shown = [{"name": name, "hash_size": size, "AORs": json_aors(ctx, domain, int(now_s), brief)} for name, domain in domains]
        return reply._replace(result={"Domains": shown})
    return reply._replace(nodes=[("Domain", name, (("hash_size", size),), text_aors(ctx, domain, int(now_s), brief))
                                 for name, domain in domains])


def text_aors(ctx, domain: Domain, now_s: int, brief: bool) -> Any:
    """A node for each AOR of a table, as they are written: what is too long is given up."""
    indent = ctx.server.setup.mi["reply_indent"]
    return ((None, f"AOR:: {aor}" if brief else domain.records[aor].text(aor, indent, indent, now_s), (), ())
            for aor in domain.order())


def json_aors(ctx, domain: Domain, now_s: int, brief: bool) -> Any:
    """The AORs of a table as 3.4 has them; mi.TooLong."""
    if brief:
        opensips.check_size(ctx, len(domain.records), len('{"AOR":""},'))
        return [{"AOR": aor} for aor in domain.order()]
    if ctx.server.setup.mi["pretty_printing"]:
        return [domain.records[aor].shown(aor, domain.records[aor].times(now_s)) for aor in mi.bounded(domain.order())]
    parts, size = [], 0
    for aor in domain.order():
        parts.append(domain.records[aor].json(aor, now_s))
        size += len(parts[-1])
        if size > mi.LIMIT:
            raise mi.TooLong(size)
    return mi.JsonText(f"[{','.join(parts)}]")


def next_second(ctx, now_s: float) -> float:
    """When the next second begins, by the steady clock."""
    return ctx.store.now_s() + 1 - now_s % 1


@opensips.command
def ul_flush(ctx):
    """Remove expired contacts, and mark contacts as written to the table."""
    expire(ctx)
    return mi.Reply()


@opensips.command
def ul_add(ctx, table_name, aor, contact, expires, q, flags, cflags, methods):
    """Add a contact to an AOR: EXPIRES in seconds (0: for ever), Q from 0 to 1, FLAGS, CFLAGS and METHODS as numbers."""
    table, aor = checked(ctx, table_name, aor)
    uri, after_s = opensips.text(ctx, "contact", contact), opensips.number(ctx, "expires", expires)
    try:
        q = opensips.q_value(opensips.text(ctx, "q", q))
    except ValueError:
        raise mi.Error(400, "Bad parameter") from None
    numbers = [opensips.number(ctx, name, value) for name, value in (("flags", flags), ("cflags", cflags), ("methods", methods))]
    added = Contact(uri, 0, after_s and int(ctx.store.time_s()) + after_s, q,
                    flags=numbers[0], cflags=numbers[1], methods=numbers[2])
    if not put(ctx, table, aor, added, by_mi=True):
        raise mi.Error(500, "Server Internal Error")
    return mi.Reply()


def put(ctx, table: str, aor: str, contact: Contact, by_mi: bool = False) -> bool:
    """Add a contact to an AOR or update it; returns whether it is one."""
    done: list = []

    def alter(record: Record, happened: list) -> None:
        before = len(happened)
        put_contact(ctx, record, aor, contact, happened, by_mi)
        done[:] = happened[before:]

    edit(ctx, table, aor, alter, creates=True)
    return bool(done)


@opensips.command
def ul_show_contact(ctx, table_name, aor):
    """Show the contacts of an AOR."""
    table, aor = checked(ctx, table_name, aor)
    record, now_s = record_of(ctx, table, aor), ctx.store.time_s()
    until_s = next_second(ctx, now_s) if record.timed else None
    if ctx.request.dialect == "jsonrpc":
        pretty, at_s = ctx.server.setup.mi["pretty_printing"], int(now_s)
        result = record.shown(aor, record.times(at_s)) if pretty else mi.JsonText(record.json(aor, at_s))
        return mi.Reply(result=result, depends=(SPACE,), until_s=until_s)
    text = record.text(aor, ctx.server.setup.mi["reply_indent"], "", int(now_s))
    return mi.Reply(nodes=[(None, text, (), ())], depends=(SPACE,), until_s=until_s)


@opensips.command
def ul_sync(ctx, table_name=None, aor=None):
    """Have the contacts of a table, or of one AOR, written to the database anew."""
    if not db_mode(ctx):
        message = "Contacts already synced"
        return mi.Reply(200, message, result=mi.Error(200, message))
    if table_name is None and ctx.request.dialect != "jsonrpc":
        raise mi.WRONG_COUNT
    table = opensips.text(ctx, "table_name", table_name)
    if table not in ctx.param("tables"):
        raise mi.Error(404, "Table not found")
    domain = ctx.view(SPACE, take_in).get(table) or Domain()
    aors = [*domain.records]
    if aor is not None:
        aors = [aor_of(ctx, opensips.text(ctx, "aor", aor))]
        record_of(ctx, table, aors[0])

    def alter(record: Record, happened: list) -> None:
        record.contacts = [contact._replace(state=NEW) for contact in record.contacts]

    for one in opensips.in_turns(aors):
        edit(ctx, table, one, alter)
    return mi.Reply()


@opensips.command
def ul_cluster_sync(ctx):
    """Ask a cluster for all contacts."""
    raise mi.Error(400, "Clustering not enabled")


###############################################################################
# For lab commands
###############################################################################


def register(ctx, table: str, aor: str, contact: str, expires: int | None = None, q: int | None = None, **fields: Any) -> None:
    """Do what a REGISTER does: add, update or remove a contact (expires 0; `*` is all), with registrar's settings and counters.

    ctx: of any module; fields: callid cseq user_agent received path socket flags cflags flag_names methods attr sip_instance.
    mi.Error if it is refused.
    """
    own, registrar = opensips.context_of(ctx, "usrloc"), opensips.context_of(ctx, "registrar")
    table, aor = checked_lab(own, table, aor_in(aor))
    has_room, fields = True, {"callid": "lab", "user_agent": None, **fields}
    callid = callid_to_match(own, fields["callid"])
    if registrar:
        rules = ctx.module("registrar")
        aor, expires, q = rules.settled(registrar, aor, expires, q)
        has_room = rules.has_room(registrar, count_others(own, table, aor, contact, callid))
    expires, q = 3600 if expires is None else expires, UNSET_Q if q is None else q
    if expires and not opensips.is_uri(contact, opensips.most_port(ctx)):
        refuse(registrar, mi.Error(400, "Contact is no URI"))
    if expires and not has_room:
        refuse(registrar, mi.Error(503, "Service Unavailable"))
    if expires:
        put(own, table, aor, Contact(contact, 0, int(ctx.store.time_s()) + expires, q, **fields))
    else:
        edit(own, table, aor, lambda record, happened: remove_contacts(
            own, record, happened, range(len(record.contacts)) if contact == "*" else (place_of(own, record, contact, callid),)))
    if registrar:
        registrar.count("accepted_regs")


def aor_in(text: str) -> str:
    """The AOR that a URI means, user@host, or a text that is none as it is."""
    match = re.fullmatch(r"sips?:(?:([^@:]*)(?::[^@]*)?@)?(\[[^\]]*\]|[^:;?]*).*", text, re.I | re.S)
    if not match:
        return text
    user = urllib.parse.unquote(match[1] or "", errors="surrogateescape")
    return f"{user}@{match[2].lower()}" if user else match[2].lower()


def count_others(ctx, table: str, aor: str, contact: str, callid: str | None) -> int:
    """How many valid contacts an AOR has besides one."""
    domain, now_s = ctx.view(SPACE, take_in).get(table) or Domain(), ctx.store.time_s()
    record = domain.records.get(aor) or Record()
    same = place_of(ctx, record, contact, callid)
    return sum(one.is_valid(now_s) for at, one in enumerate(record.contacts) if at != same)


def refuse(registrar: Any, error: mi.Error) -> None:
    """Count and refuse a REGISTER; mi.Error."""
    if registrar:
        registrar.count("rejected_regs")
    raise error


def checked_lab(ctx, table: str, aor: str) -> tuple[str, str]:
    """A table and an AOR of it, which may stand for a URI; mi.Error."""
    if table not in ctx.param("tables"):
        raise mi.Error(404, "Table not found")
    return table, aor_of(ctx, aor)
