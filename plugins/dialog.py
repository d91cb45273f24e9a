"""dialog -- calls, their profiles and values, as OpenSIPS' module shows them.

Each dialog is a key of the store. What SIP would bring about is done by call(), move() and hang_up(), for lab commands.
"""
from __future__ import annotations

import bisect
import collections
import itertools
import json
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, MADE = "dialog", "dialog profiles"  # spaces of the store: dialogs, and profiles that only rows of the table name
READ, ENDED = "dialog tables", "dialog rows"  # and the names of tables that were read to the end, rows of them that ended
UNCONFIRMED, EARLY, CONFIRMED_NA, CONFIRMED, DELETED = range(1, 6)
LEAST_BYTES, LEAST_VALUE = 230, 16  # of a dialog in a reply, of a value of a profile
ENDED_S = 5.0  # for which a dialog that ended is listed
DIALOG = opensips.table("dialog", [10, 12], """dlg_id## callid=call_id_column from_uri from_tag to_uri to_tag
    caller_cseq=from_cseq_column callee_cseq=to_cseq_column caller_route_set?=from_route_column
    callee_route_set?=to_route_column caller_contact?=from_contact_column callee_contact?=to_contact_column
    caller_sock=from_sock_column callee_sock=to_sock_column state# start_time# timeout# vars? profiles?
    script_flags=sflags_column""", "%s_column")


def profile_names(value) -> tuple:
    """Converter: names of profiles, semicolon-separated; what stands behind a slash says where they are shared."""
    return tuple(name.partition("/")[0].strip() for name in mi.string(value).split(";") if name.strip())


PARAMS = [
    mi.Param("profiles_with_value", (), profile_names, "profiles that have values, semicolon-separated"),
    mi.Param("profiles_no_value", (), profile_names, "profiles without values, semicolon-separated"),
    mi.Param("default_timeout", 43200, mi.integer(1), "how long a call may last, seconds"),
    mi.Param("delete_delay", 0, mi.integer(0), "how long dlg_list shows a dialog after its end, seconds"),
    mi.Param("hash_size", 4096, mi.integer(1), "number of buckets of the table; a power of two"),
    mi.Param("db_mode", 0, mi.integer(0, 3), "0: no table; else dialogs come from the table at the start"),
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("table_name", "dialog", mi.string, "name of the table"),
    *opensips.columns(DIALOG),
    *opensips.without_effect("""accept_replicated_dialogs accept_replicated_profile_timeout accept_replicated_profiles auth_check
        auto_prack_fr_timeout auto_prack_hangup_on_failure cachedb_url cluster_auto_sync db_flush_vals_profiles db_update_period
        dialog_replication_cluster dlg_extra_hdrs dlg_match_mode dlg_sharing_tag enable_stats event_id_format flags_column
        h_entry_column h_id_column log_profile_hash_size mflags_column options_ping_interval own_timer_proc ping_interval
        profile_no_value_prefix profile_replication_cluster profile_size_prefix profile_timeout profile_value_prefix
        race_condition_timeout reinvite_ping_interval replicate_dialogs_to replicate_profiles_buffer replicate_profiles_check
        replicate_profiles_expire replicate_profiles_timer replicate_profiles_to replication_auth_check rr_param timeout_avp
        timer_bulk_del_no"""),
]
EVENTS = [mi.Event("E_DLG_STATE_CHANGED", "a dialog is in another state")]


def figures(ctx):
    """The statistics that count what there is."""
    states = calls(ctx).states
    return {"active_dialogs": states[CONFIRMED_NA] + states[CONFIRMED], "early_dialogs": states[EARLY]}


STATS = [
    *opensips.SIP_STATS,
    mi.Stat("active_dialogs", "calls that are answered", read=figures),
    mi.Stat("early_dialogs", "calls that ring", read=figures),
    mi.Stat("processed_dialogs", "calls since the start"),
    mi.Stat("expired_dialogs", "calls that lasted too long"),
    mi.Stat("failed_dialogs", "calls that were never answered"),
    *[mi.Stat(f"{what}_{way}", "always 0: midatagram does not replicate dialogs") for way in ("sent", "recv")
      for what in ("create", "update", "delete")],
]

###############################################################################
# State
###############################################################################


class Dialog(NamedTuple):
    """A dialog as the store has it. age: tells older ones from newer; values and profiles: (name, value), the newest first;
    start and timeout: seconds since the epoch; lasts_s: how long it may last once it is answered; has_peer: whether a BYE can be
    sent."""

    db_id: int
    age: int
    callid: str
    from_uri: str
    to_uri: str
    from_tag: str
    to_tag: str
    state: int = UNCONFIRMED
    flags: int = 0
    flag_names: str = ""
    start: int = 0
    timeout: int = 0
    caller_contact: str = ""
    callee_contact: str = ""
    caller_cseq: str = "1"
    callee_cseq: str = "0"
    caller_route_set: str = ""
    callee_route_set: str = ""
    caller_sock: str = ""
    callee_sock: str = ""
    values: tuple = ()
    profiles: tuple = ()
    lasts_s: int = 0
    has_peer: bool = True

    def shown(self, is_json: bool, context: bool) -> dict:
        """The dialog as 3.4 shows it, with the flags and values of the version."""
        dates = {name: time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(moment)) for name, moment in
                 (("datestart", self.start), ("dateout", self.timeout)) if moment}
        item = {"ID": opensips.forms.dialog_id(self.db_id), "db_id": str(self.db_id), "state": self.state,
                "user_flags": self.flag_names if is_json else self.flags, "timestart": self.start,
                "datestart": dates.get("datestart"), "timeout": self.timeout, "dateout": dates.get("dateout"),
                "callid": self.callid, "from_uri": self.from_uri, "to_uri": self.to_uri, "caller_tag": self.from_tag,
                "caller_contact": self.caller_contact, "callee_cseq": self.callee_cseq,
                "caller_route_set": self.caller_route_set, "caller_bind_addr": self.caller_sock}
        item = {name: value for name, value in item.items() if value is not None}
        contact = self.callee_contact if self.start or not self.has_peer else ""  # it comes with the answer
        callee = {"callee_tag": self.to_tag, "callee_contact": contact, "caller_cseq": self.caller_cseq,
                  "callee_route_set": self.callee_route_set, "callee_bind_addr": self.callee_sock or None}
        if self.state == UNCONFIRMED and self.has_peer:  # no reply has named a callee: 2.4 shows none, 3.4 an empty one
            callee = dict.fromkeys(callee, "") | {"callee_bind_addr": None} if is_json else {}
        item["CALLEES"] = [callee] if callee else []
        if context:
            pairs = {"values": [{name: value if is_json else escaped(value)} for name, value in self.values],
                     "profiles": [{name: value or ""} for name, value in self.profiles if self.state != DELETED]}
            item["context"] = {name: listed for name, listed in pairs.items() if listed}
        return item


ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r"}


def escaped(value: Any) -> str:
    """A value as 2.4 prints it: with escapes for what is not printable ASCII."""
    text = mi.encode(f"{value}").decode("latin-1")
    return re.sub(r"[\x00-\x1f\x7f-\xff]", lambda match: ESCAPES.get(match[0]) or f"\\x{ord(match[0]):02x}", text)


class Calls:
    """The dialogs as a child sees them, and their order."""

    def __init__(self):
        self.dialogs: dict[str, Dialog] = {}
        self.order: list[tuple] = []  # bucket, age and key of each
        self.states: collections.Counter = collections.Counter()  # how many are in each
        self.keys: dict[str, list[str]] = {}  # of each Call-ID

    def put(self, key: str, value: str | None) -> None:
        """Take in what a key has now."""
        old = self.dialogs.pop(key, None)
        if value is not None:
            self.dialogs[key] = dialog = Dialog(*json.loads(value))
            self.states[dialog.state] += 1
            if old is None:
                bisect.insort(self.order, (dialog.db_id >> 32, dialog.age, key))
                self.keys.setdefault(dialog.callid, []).append(key)
        elif old is not None:
            del self.order[bisect.bisect_left(self.order, (old.db_id >> 32, old.age, key))]
            self.keys[old.callid].remove(key)
        if old is not None:
            self.states[old.state] -= 1

    def listed(self) -> list[Dialog]:
        """The dialogs in the order in which the original's table has them."""
        return [self.dialogs[key] for _, _, key in self.order]

    def find(self, callid: str, from_tag: str = "") -> Dialog | None:
        """The dialog of a Call-ID, and of a From tag if one is given, that has not ended."""
        dialogs = [self.dialogs[key] for key in self.keys.get(callid, ())]
        return next((dialog for dialog in dialogs if dialog.state != DELETED and from_tag in ("", dialog.from_tag)), None)


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep one dialog in a view, which is {"calls": Calls}."""
    (view.get("calls") or view.setdefault("calls", Calls())).put(key, value)


def calls(ctx) -> Calls:
    """The dialogs of now."""
    return ctx.view(SPACE, take_in).get("calls") or Calls()


def dialogs_reply(ctx, value: dict, dialogs: list[Dialog]) -> mi.Reply:
    """A reply with dialogs, which holds until one that ended goes."""
    ends = [ctx.store.entry(SPACE, str(dialog.db_id))[1] for dialog in dialogs if dialog.state == DELETED]
    return opensips.reply(ctx, value, depends=(SPACE,), until_s=min(ends, default=None))


def change_state(ctx, db_id: int, *states: int, first: Dialog | None = None) -> bool:
    """Take a dialog through states in one step, with an event and counters for each state that it leaves; returns whether it
    leaves any. first: the dialog if it is new."""
    left: list[tuple[Dialog, int]] = []
    ended_s = ENDED_S + ctx.param("delete_delay")

    def step(value: str | None) -> str | None:
        left.clear()
        old = first if value is None else Dialog(*json.loads(value))
        if old is None:
            return None
        for state in states:
            if old.state not in (state, DELETED):
                left.append((old, state))
                old = entered(ctx, old, state)
        return json.dumps(old)

    ctx.store.change(SPACE, str(db_id), step, ended_s if DELETED in states else None)
    for old, state in left:
        entry, number = divmod(old.db_id, 2**32)
        opensips.raise_event(ctx, "E_DLG_STATE_CHANGED", {"hash_entry": str(entry), "hash_id": str(number)},
                             id=opensips.forms.dialog_id(old.db_id), db_id=str(old.db_id), callid=old.callid,
                             from_tag=old.from_tag, to_tag=old.to_tag, old_state=old.state, new_state=state)
        if state == DELETED and old.state < CONFIRMED_NA:
            ctx.count("failed_dialogs")
        if state == DELETED and not old.has_peer:  # in the table it stays
            ctx.store.put(ENDED, str(old.db_id), "")
    return bool(left)


def entered(ctx, dialog: Dialog, state: int) -> Dialog:
    """A dialog as it is once it enters a state."""
    if state == DELETED:
        return dialog._replace(state=state, timeout=0)
    if state in (CONFIRMED_NA, CONFIRMED) and not dialog.start:
        now_s = int(ctx.store.time_s())
        return dialog._replace(state=state, start=now_s, timeout=now_s + (dialog.lasts_s or ctx.param("default_timeout")))
    return dialog._replace(state=state)


###############################################################################
# The start, and the timer
###############################################################################


def init(ctx):
    """Check the table."""
    if ctx.param("hash_size") & ctx.param("hash_size") - 1:
        ctx.refuse("hash_size", "hash_size takes a power of two")
    if ctx.param("db_mode"):
        opensips.check_tables(ctx, opensips.place(ctx, DIALOG, "table_name"))


def load(ctx):
    """Take dialogs from the table, unless that was done before."""
    if ctx.param("db_mode") and not ctx.store.get(READ, ctx.param("table_name")):
        read_dialogs(ctx)
        ctx.store.put(READ, ctx.param("table_name"), "whole")


def read_dialogs(ctx) -> None:
    """Take those dialogs from the table that are not here yet, and have not ended meanwhile; TableError."""
    now_s = ctx.store.time_s()
    ages, flags = itertools.count(), dict[str, int]()
    rows = opensips.rows_of(ctx, *opensips.place(ctx, DIALOG, "table_name"))
    for dialog in opensips.in_turns(opensips.good(ctx, rows, dialog_of, ctx, ages, flags)):
        key = str(dialog.db_id)
        if dialog.state == DELETED or key in calls(ctx).dialogs or ctx.store.get(ENDED, key) is not None:
            continue
        if 0 < dialog.timeout <= now_s:
            ctx.count("expired_dialogs")
            ctx.store.put(ENDED, key, "")
        else:
            dialog = dialog._replace(profiles=stored_profiles(ctx, dialog.profiles))
            ctx.store.put(SPACE, key, json.dumps(dialog))


def bucket_of(ctx, callid: str) -> int:
    """Where the table of dialogs has a Call-ID."""
    return opensips.core_hash(mi.encode(callid)) & ctx.param("hash_size") - 1


def dialog_of(row: dict, ctx: Any, ages: Iterator, known_flags: dict[str, int]) -> Dialog:
    """The dialog that a row of the table means; known_flags: the names of flags, numbered as they came. ValueError."""
    if row["state"] != DELETED and row["dlg_id"] >> 32 != bucket_of(ctx, row["callid"] or ""):
        raise ValueError(f"has dlg_id {row['dlg_id']}, which with this hash_size is not of its callid")
    sockets = {name: row[name] and opensips.local_socket(ctx, row[name]) for name in ("caller_sock", "callee_sock")}
    for name, socket in sockets.items():
        if row[name] and socket is None and row["state"] != DELETED:
            raise ValueError(f"has the socket {row[name]}, which is none of this server's")
    flags = row["script_flags"] or ""
    is_number = flags.isascii() and flags.isdigit()
    names = dict.fromkeys([] if is_number else flags.split())
    for name in names:
        known_flags.setdefault(name, len(known_flags))
    texts: dict[str, Any] = {name: row[name] or "" for name in Dialog._fields
                             if name in row and name not in ("state", "timeout", "profiles")}
    texts |= {"caller_cseq": texts["callee_cseq"], "callee_cseq": "0"}  # as the original has it after a start
    texts |= {name: socket or "" for name, socket in sockets.items()}
    return Dialog(**texts, db_id=row["dlg_id"], age=next(ages), state=row["state"] & 0xFFFFFFFF, start=row["start_time"],
                  timeout=row["timeout"], flags=opensips.uint(flags) if is_number else 0,
                  flag_names=" ".join(sorted(names, key=known_flags.__getitem__, reverse=True)),
                  values=tuple(stored_pairs(row["vars"])), profiles=tuple(stored_pairs(row["profiles"])), has_peer=False)


def stored_pairs(text: str | None) -> list[tuple]:
    """The names and values of a column `vars` or `profiles`, the last first: 2.4's `name#value|`, 3.4's `name#T#value|`.
    ValueError."""
    pairs = []
    for item in re.findall(r"((?:[^|\\]|\\.)+)\|", text or "", re.S):
        parts = [re.sub(r"\\(.)", r"\1", part, flags=re.S) for part in re.findall(r"(?:^|#)((?:[^#\\]|\\.)*)", item, re.S)]
        if len(parts) < 2:
            raise ValueError(f"has {item!r} in vars or profiles")
        name, *kind, value = parts
        if kind == ["2"] and not re.fullmatch("-?[0-9]+", value):
            raise ValueError(f"has the number {value!r} in vars or profiles")
        pairs.append((name, int(value) if kind == ["2"] else value))
    return pairs[::-1]


def stored_profiles(ctx, pairs: Iterable) -> tuple:
    """The profiles of a row as a dialog has them. As the original does, this makes those that the script lacks, and leaves out
    those whose names are more than letters and digits."""
    declared, pairs = {*ctx.param("profiles_no_value"), *ctx.param("profiles_with_value")}, [*pairs]
    for at, (name, value) in reversed([*enumerate(pairs)]):
        bare = name.partition("/")[0]  # what stands behind it is where the profile is shared
        if bare in declared:
            pairs[at] = bare, value
        elif name not in profiles(ctx) and name.isascii() and name.isalnum():
            ctx.store.put(MADE, name, "1" if value else "")
    known = profiles(ctx)
    return of_profiles(ctx, [pair for pair in pairs if pair[0] in known])


def child_init(ctx):
    """Have the dialogs before a request wants them."""
    calls(ctx)


@mi.every(20)
def keep_up(ctx):
    """Take in what is removed before the store forgets it: all dialogs would have to be read anew."""
    calls(ctx)


@mi.every(1, "one")
def expire(ctx):
    """End the dialogs that last too long."""
    now_s = ctx.store.time_s()
    for dialog in opensips.in_turns([*calls(ctx).listed()]):
        if 0 < dialog.timeout <= now_s and dialog.state in (CONFIRMED_NA, CONFIRMED) and change_state(ctx, dialog.db_id, DELETED):
            ctx.count("expired_dialogs")


###############################################################################
# Lists
###############################################################################


def bind_list(request) -> list:
    """The values of dlg_list in a text request: [callid [from_tag]], or index and counter; mi.Error."""
    given = list(request.values)
    if len(given) > 1 and not given[1]:
        given = given[:1]
    if len(given) > 2:
        raise mi.WRONG_COUNT
    if given and not given[0]:
        raise mi.Error(400, "Invalid Call-ID specified")
    try:
        index, counter = map(opensips.uint, given)
    except ValueError:
        return [*given, None, None, None, None][:4]
    return [None, None, index, counter]


def list_dialogs(ctx, callid: Any, from_tag: Any, index: Any, counter: Any, context: bool) -> mi.Reply:
    """The reply of dlg_list and dlg_list_ctx; mi.Error."""
    is_json = ctx.request.dialect == "jsonrpc"
    if callid is not None:
        tag = "" if from_tag is None else opensips.text(ctx, "from_tag", from_tag)
        dialog = calls(ctx).find(opensips.text(ctx, "callid", callid), tag)
        if dialog is None:
            raise mi.Error(404, "No such dialog")
        return dialogs_reply(ctx, {"Dialog": dialog.shown(is_json, context)}, [dialog])
    dialogs, head = calls(ctx).listed(), {}
    if index is not None:
        first, most = ((mi.json_int(index, "index") & 0xFFFFFFFF, mi.json_int(counter, "counter") & 0xFFFFFFFF) if is_json
                       else (index, counter))
        if most > 0:
            head, dialogs = {"count": len(dialogs)}, dialogs[first:first + most]
    opensips.check_size(ctx, len(dialogs), LEAST_BYTES)
    shown = [dialog.shown(is_json, context) for dialog in opensips.in_turns(dialogs)]
    return dialogs_reply(ctx, {**head, "Dialogs": shown}, dialogs)


@opensips.command(bind=bind_list)
def dlg_list(ctx, callid=None, from_tag=None, index=None, counter=None):
    """Show all dialogs, one by its Call-ID (and From tag), or COUNTER of them from INDEX on."""
    return list_dialogs(ctx, callid, from_tag, index, counter, False)


@opensips.command(bind=bind_list)
def dlg_list_ctx(ctx, callid=None, from_tag=None, index=None, counter=None):
    """Show dialogs as dlg_list does, with their values and profiles."""
    return list_dialogs(ctx, callid, from_tag, index, counter, True)


###############################################################################
# The end of dialogs, and values
###############################################################################


@opensips.command
def dlg_end_dlg(ctx, dialog_id, extra_hdrs=None):
    """End a dialog, given by its ID or Call-ID."""
    is_json = ctx.request.dialect == "jsonrpc"
    if dialog_id is None and not is_json:
        raise mi.Error(400, "Bad parameter")
    name = opensips.text(ctx, "dialog_id", dialog_id)
    dialog = by_name(ctx, name, is_json)
    if dialog is None or dialog.state == DELETED:
        raise mi.Error(404, "Requested Dialog not found")
    if not end(ctx, dialog):
        raise mi.Error(500, "Operation failed")
    return mi.Reply()


def by_name(ctx, name: str, is_json: bool) -> Dialog | None:
    """The dialog of an ID or a Call-ID. An ID is two reversed hexadecimal numbers in 3.4, a decimal one in 2.4, where a number is
    no Call-ID."""
    match = re.fullmatch(r"([0-9a-f]{1,8})\.([0-9a-f]{1,8})" if is_json else r"\s*\+?0*([0-9]+)", name)
    key = match and (str((int(match[1][::-1], 16) << 32) + int(match[2][::-1], 16)) if is_json else match[1])
    one = calls(ctx).dialogs.get(key) if key else None
    if one is None and (is_json or not key):
        one = calls(ctx).find(name)
        return one if one and one.state <= CONFIRMED else None
    return one


def end(ctx, dialog: Dialog) -> bool:
    """End a dialog, by BYEs or, before it is answered, by a CANCEL; returns whether they could be sent."""
    can_end = dialog.has_peer or dialog.state in (CONFIRMED_NA, CONFIRMED)  # a CANCEL takes the call's transaction
    return can_end and change_state(ctx, dialog.db_id, DELETED) and dialog.has_peer


@opensips.command
def dlg_push_var(ctx, dlg_val_name, dlg_val_value, DID):
    """Give a value to the dialogs of an array of IDs or Call-IDs."""
    name, value = opensips.text(ctx, "dlg_val_name", dlg_val_name), opensips.text(ctx, "dlg_val_value", dlg_val_value)
    is_json = ctx.request.dialect == "jsonrpc"
    for one in mi.json_array(DID, "DID") if is_json else [DID or ""]:
        dialog = by_name(ctx, one, is_json)
        if dialog:
            def step(text: str | None) -> str | None:
                if text is None:
                    return None
                old = Dialog(*json.loads(text))
                others = [pair for pair in old.values if pair[0] != name]
                return json.dumps(old._replace(values=((name, value), *others)))

            ctx.store.change(SPACE, str(dialog.db_id), step)
    return mi.Reply()


@opensips.command
def dlg_send_sequential(ctx, callid, mode=None, method=None, body=None, headers=None):
    """Send a request within a dialog; it is answered 200."""
    texts = {name: opensips.if_text(ctx, name, value) for name, value in (("mode", mode), ("method", method), ("body", body))}
    given = {name: text for name, text in texts.items() if text is not None}
    if not re.fullmatch("(challenge|(challenge.)?(caller|callee))", given.get("mode", "caller"), re.I | re.S):
        raise mi.Error(400, "Invalid mode")
    if not re.fullmatch("none|inbound|outbound|custom.{4,}", given.get("body", "none"), re.I | re.S):
        raise mi.Error(400, "Invalid body mode")
    challenges = given.get("mode", "").lower().startswith("challenge")
    if challenges and given.get("method", "INVITE").upper() not in ("INVITE", "UPDATE"):
        raise mi.Error(406, "Not Acceptable")
    if calls(ctx).find(opensips.text(ctx, "callid", callid)) is None:
        raise mi.Error(404, "Dialog Not Found")
    return {"Code": 200, "Reason": "OK"}


def database(ctx, problem: str) -> None:
    """Refuse what wants a database; mi.Error."""
    if not ctx.param("db_mode"):
        raise mi.Error(400, problem)


@opensips.command
def dlg_db_sync(ctx):
    """Reply as if the dialogs were written to the table."""
    database(ctx, "Cannot sync in no-db mode")
    return mi.Reply()


@opensips.command(timed=False)
def dlg_restore_db(ctx):
    """Read the dialogs that are missing from the table."""
    database(ctx, "Cannot restore db in no-db mode!")
    with opensips.reloading(ctx, mi.Error(400, "Restore dlg DB failed!")):
        read_dialogs(ctx)
    return mi.Reply()


@opensips.command
def dlg_cluster_sync(ctx, sharing_tag=None):
    """Ask a cluster for all dialogs."""
    raise mi.Error(400, "Dialog replication disabled")


@opensips.command
def dlg_set_sharing_tag_active(ctx, tag=None):
    """Make a sharing tag the active one of a cluster."""
    raise mi.Error(400, "Dialog replication disabled")


@opensips.command
def dlg_list_sharing_tags(ctx):
    """Show the sharing tags of a cluster."""
    raise mi.Error(400, "Dialog replication disabled")


###############################################################################
# Profiles
###############################################################################


def profiles(ctx) -> dict[str, bool]:
    """The profiles, and whether they have values; those of load_balancer are its own."""
    known = {**dict.fromkeys(ctx.param("profiles_no_value"), False), **dict.fromkeys(ctx.param("profiles_with_value"), True)}
    other = ctx.server.registry.modules_by_name.get("load_balancer")
    if other:
        known |= dict.fromkeys(other.namespace.profiles(opensips.context_of(ctx, "load_balancer")), True)
    return {**known, **ctx.view(MADE, take_profile), **known}


def take_profile(view: dict, name: str, value: str | None) -> None:
    """Keep in a view whether a profile has values."""
    view.pop(name, None)
    if value is not None:
        view[name] = bool(value)


def of_profiles(ctx, pairs: Iterable) -> tuple:
    """Names of profiles, each with the value that is given for it, as a dialog has them: a text where the profile has values,
    else None; mi.Error if there is no such profile."""
    known = profiles(ctx)
    for name, _ in pairs:
        if name not in known:
            raise mi.Error(404, "Profile not found")
    return tuple((name, value or "" if known[name] else None) for name, value in pairs)


def asked_profile(ctx, profile: Any, value: Any) -> tuple[str, str | None]:
    """A profile and the value that is asked for, None for any; mi.Error."""
    if ctx.request.dialect == "text":
        if not profile:
            raise mi.WRONG_COUNT
        if len(ctx.request.values) > 1 and not value:
            raise mi.Error(400, "Bad parameter")
        if len(ctx.request.values) > 2:
            raise mi.WRONG_COUNT
    name = opensips.text(ctx, "profile", profile)
    wanted = None if value is None else opensips.text(ctx, "value", value)
    if name not in profiles(ctx):
        raise mi.Error(404, "Profile not found")
    return name, wanted


def in_profile(ctx, name: str, wanted: str | None) -> list[Dialog]:
    """The dialogs that are in a profile, with a value or with any, each as often as it is."""
    return [dialog for dialog in calls(ctx).listed() if dialog.state != DELETED
            for other, value in dialog.profiles if other == name and wanted in (None, value or "")]


def once(dialogs: list[Dialog]) -> list[Dialog]:
    """Dialogs, each once."""
    return [*{dialog.db_id: dialog for dialog in dialogs}.values()]


def profile_sizes(ctx) -> collections.Counter:
    """How many dialogs are in the profiles, by name and value; for load_balancer."""
    return collections.Counter(pair for dialog in calls(ctx).dialogs.values() if dialog.state != DELETED
                               for pair in map(tuple, dialog.profiles))


@opensips.command
def profile_get_size(ctx, profile, value=None):
    """Show how many dialogs are in a profile."""
    name, wanted = asked_profile(ctx, profile, value)
    count = len(in_profile(ctx, name, wanted if profiles(ctx)[name] else None))
    shown = {"name": name, "value": wanted, "count": count, "shared": "no", "replicated": "no"}
    return opensips.reply(ctx, {"Profile": shown}, depends=(SPACE,))


@opensips.command
def profile_get_values(ctx, profile, value=None):
    """Show the values of a profile, and how many dialogs have them."""
    name, _ = asked_profile(ctx, profile, value)
    dialogs = opensips.in_turns([*calls(ctx).dialogs.values()])
    counts = collections.Counter(value or "" for dialog in dialogs if dialog.state != DELETED
                                 for other, value in dialog.profiles if other == name)
    if not profiles(ctx)[name]:
        return opensips.reply(ctx, [{"value": None, "count": sum(counts.values())}], depends=(SPACE,))
    opensips.check_size(ctx, len(counts), LEAST_VALUE, counts)
    keys = {value: (opensips.core_hash(mi.encode(value)) & 15, mi.encode(value)) for value in opensips.in_turns(counts)}
    shown = [{"value": value, "count": counts[value]} for value in sorted(counts, key=keys.__getitem__)]
    return opensips.reply(ctx, shown, depends=(SPACE,))


@opensips.command
def profile_list_dlgs(ctx, profile, value=None):
    """Show the dialogs that are in a profile."""
    dialogs = once(in_profile(ctx, *asked_profile(ctx, profile, value)))
    opensips.check_size(ctx, len(dialogs), LEAST_BYTES)
    shown = [dialog.shown(ctx.request.dialect == "jsonrpc", False) for dialog in opensips.in_turns(dialogs)]
    return dialogs_reply(ctx, {"Dialogs": shown}, dialogs)


@opensips.command
def profile_end_dlgs(ctx, profile, value=None):
    """End the dialogs that are in a profile; 2.4 gives up at the first that cannot be ended."""
    dialogs = once(in_profile(ctx, *asked_profile(ctx, profile, value)))
    dialogs.sort(key=lambda dialog: (dialog.db_id >> 32, -dialog.age))  # of a bucket the newest first
    for dialog in opensips.in_turns(dialogs):
        if not end(ctx, dialog) and ctx.request.dialect == "text":
            raise mi.Error(400, "Dialog internal error")
    return mi.Reply()


def with_profiles(ctx, dlg_id: Any, profile: Any, how: Callable[[str, bool, list], list | None]) -> mi.Reply:
    """Give a dialog the profiles that how(name of the profile, whether it has values, its pairs) returns; mi.Error, also for
    None."""
    is_json = ctx.request.dialect == "jsonrpc"
    if is_json and opensips.is_40(ctx):  # its handler looks for a parameter DID, which its recipes do not have
        raise mi.Error(-32000, "Server error", "Failed to handle parameter")
    wanted, name = opensips.text(ctx, "dlg_id", dlg_id), opensips.text(ctx, "profile", profile)
    if name not in profiles(ctx):
        raise mi.Error(400, "Bad param")
    dialog = by_name(ctx, wanted, is_json)

    def step(text: str | None) -> str:
        old = Dialog(*json.loads(text)) if text else None
        if old is None or old.state == DELETED:
            raise mi.Error(404, "Dialog Not Found")
        pairs = how(name, profiles(ctx)[name], [*map(tuple, old.profiles)])
        if pairs is None:
            raise mi.Error(403, "Dialog Error")
        return json.dumps(old._replace(profiles=tuple(pairs)))

    ctx.store.change(SPACE, str(dialog.db_id) if dialog else "", step)
    return mi.Reply()


@opensips.command
def dlg_set_profile(ctx, dlg_id, profile, value=None, clear_values=None):
    """Put a dialog into a profile, and with clear_values 1 only with this value."""
    given = opensips.if_text(ctx, "value", value)
    clears = clear_values is not None and opensips.number(ctx, "clear_values", clear_values)

    def added(name: str, has_value: bool, pairs: list) -> list | None:
        if has_value and given is None:
            return None
        kept = [pair for pair in pairs if pair[0] != name] if clears and has_value else pairs
        return [(name, given if has_value else None), *kept]

    return with_profiles(ctx, dlg_id, profile, added)


@opensips.command
def dlg_unset_profile(ctx, dlg_id, profile, value=None):
    """Take a dialog out of a profile, out of one with values for all of them or for one."""
    given = opensips.if_text(ctx, "value", value)

    def removed(name: str, has_value: bool, pairs: list) -> list | None:
        if has_value and given is None:
            return [pair for pair in pairs if pair[0] != name]
        pair = (name, given if has_value else None)
        at = next((at for at, one in enumerate(pairs) if one == pair), None)
        return None if at is None else pairs[:at] + pairs[at + 1:]

    return with_profiles(ctx, dlg_id, profile, removed)


@opensips.command
def list_all_profiles(ctx):
    """Show all profiles, and whether they have values."""
    if ctx.request.values:
        raise mi.Error(401, "Too few or too many arguments")
    shown = [{"name": name, "has value": has_value} for name, has_value in profiles(ctx).items()]
    return opensips.reply(ctx, {"Profiles": shown})


###############################################################################
# For lab commands
###############################################################################


def call(ctx, callid: str, from_uri: str, to_uri: str, state: int = CONFIRMED, from_tag: str = "", to_tag: str = "",
         socket: str = "udp:127.0.0.1:5060", timeout: int = 0, values: tuple = (), profiles: tuple = (), **fields: Any) -> None:
    """Begin a call and take it to a state, through those before it. ctx: of any module; fields: caller_contact,
    callee_contact; values and profiles: (name, value, empty if none is given), the first first. mi.Error."""
    own = opensips.context_of(ctx, "dialog")
    db_id = (bucket_of(own, callid) << 32) + random.getrandbits(31)
    contacts = {"caller_contact": from_uri, "callee_contact": to_uri, **fields}
    dialog = Dialog(db_id, time.time_ns(), callid, from_uri, to_uri, from_tag or f"{random.getrandbits(32):08x}",
                    to_tag or f"{random.getrandbits(32):08x}", caller_sock=socket, callee_sock=socket, lasts_s=timeout,
                    values=tuple(values)[::-1], profiles=of_profiles(own, tuple(profiles)[::-1]), **contacts)
    change_state(own, db_id, *range(EARLY, state + 1), first=dialog)
    own.count("processed_dialogs")


def move(ctx, callid: str, state: int) -> None:
    """Take the dialog of a Call-ID to a state, through those before it; mi.Error if there is none."""
    own = opensips.context_of(ctx, "dialog")
    dialog = calls(own).find(callid)
    if dialog is None:
        raise mi.Error(404, "Dialog not found")
    if state <= dialog.state:
        raise mi.Error(400, f"Dialog is in state {dialog.state}")
    change_state(own, dialog.db_id, *([DELETED] if state == DELETED else range(dialog.state + 1, state + 1)))


def hang_up(ctx, callid: str) -> None:
    """End the dialog of a Call-ID; mi.Error if there is none."""
    move(ctx, callid, DELETED)
