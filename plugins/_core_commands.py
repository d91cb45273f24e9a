"""_core_commands -- commands of OpenSIPS' core and of cachedb_local that a script alone goes without."""
from __future__ import annotations

import fnmatch
import itertools
import json
import operator
import os
import re
import sys
from collections.abc import Iterable, Iterator

import midatagram as mi

###############################################################################
# The process, and what is always empty
###############################################################################


@mi.command("pwd", input=False)
def pwd(ctx):
    """Show the working directory of the server."""
    return mi.Reply(nodes=(mi.Node("WD", os.getcwd()),))


@mi.command("arg", input=False, json=mi.JsonForm(listing=True))
def arg(ctx):
    """Show the command line of the server, one argument per line."""
    return mi.Reply(nodes=[mi.Node(None, argument) for argument in sys.argv], live=mi.CONSTANT)


@mi.command("xlog_level", level=mi.c_integer)
def xlog_level(ctx, level=None):
    """Show or set the xlog level, which has no effect: there is no script."""
    if level is None:
        return mi.Reply(nodes=(mi.Node("xLog Level", ctx.server.processes.get(0, "xlog_level")),))
    ctx.server.processes.set(0, xlog_level=level)
    return mi.Reply(nodes=(mi.Node("New xLog level", level),))


def no_blacklist(values: dict) -> None:
    """Refuse a JSON-RPC request that asks for one blacklist."""
    if "name" in values:
        raise mi.Error(404, "Unknown name")


@mi.command("list_blacklists", also="blacklists:list", input=False,
            json=mi.JsonForm(plurals={"List": ("Lists", "name")}, check=no_blacklist))
def list_blacklists(ctx, name=None):
    """List blacklists; always empty."""
    return mi.Reply(live=mi.CONSTANT)


def check_protocol(values: dict) -> None:
    """Refuse a JSON-RPC request for the connections of an unknown protocol."""
    if str(values.get("proto", "any")).lower() not in mi.shared("opensips_base").PROTOCOLS:
        raise mi.Error(400, "Bad protocol")


@mi.command("list_tcp_conns", also="tcp:list", input=False,
            json=mi.JsonForm(recipes=[()], raw=("proto",), plurals={"Connection": ("Connections", "ID")}, check=check_protocol))
def list_tcp_conns(ctx, proto=None):
    """List TCP connections; always empty."""
    return mi.Reply(live=mi.CONSTANT)


@mi.command("tcp:close")
def tcp_close(ctx, ipport):
    """Close a TCP connection; there are none."""
    if not re.fullmatch(r"\d+|(?:[a-z_]+:)?(?:[\d.]+|\[[\da-fA-F:.]+\]):\d+", ipport) or ipport.startswith("udp:"):
        raise mi.Error(400, "Bad tcp connection")
    return mi.Reply(result=mi.JsonText("null"))


###############################################################################
# Help
###############################################################################


def signature_line(command: mi.Command) -> str:
    """A command with its arguments, as help shows it."""
    parts = [command.name, *(name.upper() for name in command.required), *(f"[{name.upper()}]" for name in command.optional)]
    parts += [f"[{command.rest.upper()}...]"] if command.rest else []
    return " ".join(parts + [f"[{name}={name.upper()}]" for name in command.options])


USAGE = "help mi_cmd - returns information about 'mi_cmd'"


@mi.command("help", bind=lambda request: [value for value in request.values[:1] if value])  # further arguments are ignored
def show_help(ctx, mi_cmd=None):
    """Show what a command does and which module exports it."""
    if mi_cmd is None:
        return mi.Reply(nodes=(mi.Node("Usage", USAGE),), live=mi.CONSTANT, result=f"Usage: {USAGE}")
    command = ctx.server.registry.names.get(mi_cmd)
    if command is None:
        raise mi.Error(404, "unknown MI command")
    text = " ".join(command.help.split())
    module = command.full_name.partition(":")[0] if ctx.server.registry.full_names else command.module.name
    return mi.Reply(nodes=(mi.Node("Help", f"{signature_line(command)} - {text}" if text else "not available for this command"),
                           mi.Node("Exported by", module)), live=mi.CONSTANT)


###############################################################################
# Statistics
###############################################################################


def kind_of(stat: mi.Stat) -> str:
    """How list_statistics calls a statistic."""
    return "incremental" if stat.resettable and stat.read is None else "non-incremental"


@mi.command("list_statistics", also="statistics:list", json=mi.JsonForm(recipes=[(), ("statistics",)]))
def list_statistics(ctx, *statistics):
    """List all statistics, or those named, and whether each is incremental."""
    stats_of = ctx.server.registry.stats[ctx.request.dialect].__getitem__
    stats = [(f"{stat.group}:{stat.name}", stat) for stat in stats_of("all") if not statistics] or mi.within_limit(
        (f"{stat.group}:{stat.name}" if name.endswith(":") else name, stat)
        for name in mi.within_limit(statistics) if name != "all" for stat in stats_of(name))
    if not stats and ctx.request.dialect == "jsonrpc":
        return mi.NO_STATISTICS
    if not stats:
        raise mi.Error(404, "Statistics Not Found")
    shown = dict(stats).items() if ctx.request.dialect == "jsonrpc" else stats
    return mi.Reply(nodes=[mi.Node(name, kind_of(stat)) for name, stat in shown], live=mi.CONSTANT)


@mi.command("reset_statistics", also="statistics:reset", json=mi.STATISTICS)
def reset_statistics(ctx, *statistics):
    """Reset statistics to 0, except those that cannot be reset."""
    if not statistics:
        raise mi.WRONG_COUNT
    stats = {id(stat): stat for name in mi.within_limit(statistics) if not name.endswith(":") and name != "all"
             for stat in ctx.server.registry.stats[ctx.request.dialect][name]}
    if not stats:
        raise mi.Error(404, "Statistics Not Found")
    return reset(ctx, stats.values())


@mi.command("reset_all_statistics", also="statistics:reset_all")
def reset_all_statistics(ctx):
    """Reset all statistics to 0, except those that cannot be reset."""
    return reset(ctx, itertools.chain.from_iterable([stats["all"] for stats in ctx.server.registry.stats.values()]))


def reset(ctx, stats: Iterable[mi.Stat]) -> mi.Reply:
    """Reset those of the statistics that can be."""
    for stat in stats:
        if kind_of(stat) == "incremental":
            ctx.server.counters.reset(ctx.server.counters.column(stat.group, stat.name))
    return mi.Reply()


###############################################################################
# Cached values whose keys match a pattern
###############################################################################


def bind_chunk(request: mi.Request) -> Iterable:
    """[COLLECTION] GLOB of a text request; further arguments are not looked at."""
    values = request.values[:2]
    if not values:
        raise mi.WRONG_COUNT
    if not values[0]:
        raise mi.BAD_PARAMETER
    return [value or "" for value in values[::-1]]


GLOB_BYTES = 256  # of a pattern
LONG_GLOB = mi.Error(400, f"Pattern longer than {GLOB_BYTES} bytes")
CHUNK = mi.JsonForm(order=("collection",), errors={**mi.INTERNAL, LONG_GLOB.reason: mi.invalid_params(LONG_GLOB.reason)})


@mi.command("cache_remove_chunk", also="cachedb_local:remove_chunk", bind=bind_chunk, json=CHUNK)
def cache_remove_chunk(ctx, glob, collection="default"):
    """Remove the values whose keys match a pattern (in text requests COLLECTION comes before GLOB)."""
    ctx.store.remove_fitting(chunk_space(ctx, glob, collection), glob)
    return mi.Reply()


CHUNK_KEYS = CHUNK._replace(plurals={"key": ("keys", "name")}, errors={
    **CHUNK.errors, "Server Internal Error": mi.Error(-32000, "Server error", "Failed to handle parameter")})


@mi.command("cache_fetch_chunk", also="cachedb_local:fetch_chunk", json=CHUNK_KEYS)
def cache_fetch_chunk(ctx, glob, collection="default"):
    """Fetch the values whose keys match a pattern."""
    nodes, size = [], 0
    for key, value in fitting(ctx.store, chunk_space(ctx, glob, collection), glob):
        nodes.append(mi.Node("key", key, (("value", value),)))
        size += len(key) + len(value)
        if size > mi.GIVE_UP:
            raise mi.TooLong(size)
    return mi.Reply(nodes=nodes)


def chunk_space(ctx, glob: str, collection: str) -> str:
    """The space of the store that a collection means; Error for an unknown one, and for a pattern that is too long."""
    if collection not in ctx.server.registry.modules_by_name["cachedb_local"].settings["cache_collections"]:
        raise mi.Error(500, "Server Internal Error")
    if len(mi.encode(glob)) > GLOB_BYTES:
        raise LONG_GLOB
    return f"cache:{collection}"


def fitting(store: mi.Store, space: str, pattern: str) -> Iterator[tuple[str, str]]:
    """The (key, value) pairs whose keys fit a pattern, read in slices as in remove_fitting(); StoreError."""
    fits, name, start = re.compile(fnmatch.translate(pattern)).match, mi.encode(space), b""
    while rows := store.attempt(operator.methodcaller("__call__", store.KEYS, (name, start, mi.SLICE_ROWS))).fetchall():
        now_s, start = store.now_s(), rows[-1][0] + b"\0"
        yield from [(mi.decode(key), mi.decode(value)) for key, value, expires_s in rows
                    if value is not None and (expires_s is None or expires_s > now_s) and fits(mi.decode(key))]
        mi.give_way()


###############################################################################
# Events
###############################################################################


def event_params(value):
    """The attributes of a raised event from JSON-RPC params: an array of values, or an object as a string."""
    if value is None or isinstance(value, dict):
        raise mi.Error(400, "No Params")
    if isinstance(value, str):
        try:
            value = mi.read_json(mi.encode(value))
        except mi.ParseError:
            value = None
        if not isinstance(value, dict):
            raise mi.Error(400, "Bad Params")
        return {name: text if type(text) in (str, int) else mi.json_text(text) for name, text in value.items()}
    if not isinstance(value, list) or not all(type(item) in (str, int, float) for item in value):
        raise mi.Error(400, "Bad Params")
    return [mi.json_string(item, "params") for item in value]


def bind_event(request: mi.Request) -> list:
    """EVENT and the attributes of a text request, NAME::VALUE each."""
    arguments = request.arguments
    if not arguments or arguments[0][1] is None:
        raise mi.WRONG_COUNT
    return [arguments[0][1], {name or f"param{number}": value or "" for number, (name, value) in enumerate(arguments[1:], 1)}]


@mi.command("raise_event", also="evi:raise", bind=bind_event, json=mi.JsonForm(raw=("params",), errors=mi.INTERNAL))
def raise_event(ctx, event, params=()):
    """Send an event with its attributes to its subscribers."""
    server = ctx.server
    if event not in server.registry.events:
        raise mi.Error(404, "Event not registered")
    subscribers = remaining(server.events, event)
    if not subscribers:
        raise mi.Error(480, "Temporarily Unavailable")
    if ctx.request.dialect == "jsonrpc":
        params = event_params(params) if len(ctx.request.values) > 1 else ()
    server.events.put(event, params, subscribers)
    return mi.Reply()


@mi.command("events_list", also="evi:list", input=False, json=mi.JsonForm(plurals={"Event": ("Events", "name")}))
def events_list(ctx):
    """List all events."""
    events = ctx.server.registry.events
    return mi.Reply(nodes=[mi.Node("Event", name, (("id", number),)) for name, number in events.items()], live=mi.CONSTANT)


def bind_subscribers(request: mi.Request) -> list:
    """EVENT and SOCKET of a text request; how many there are is checked after the event."""
    values: list = [value or "" for value in request.values]
    return values if len(values) < 3 else [values[0], mi.WRONG_COUNT]


@mi.command("subscribers_list", also="evi:subscribers", bind=bind_subscribers, json=mi.JsonForm(errors=mi.INTERNAL))
def subscribers_list(ctx, event=None, socket=None):
    """List the subscribers of all events, of one EVENT, or one SOCKET of it."""
    events, server = ctx.server.registry.events, ctx.server
    if event is not None and event not in events:
        raise mi.Error(404, "Event not published")
    if socket is mi.WRONG_COUNT:
        raise mi.WRONG_COUNT
    nodes, members = [], []
    for name in events if event is None else [event]:
        rows = [row for row in server.events.subscribers(name, ended=True) if socket in (None, row["socket"])]
        if rows:
            lines = [mi.Node("Subscriber", None, (("socket", row["socket"]), ("expire", row["expire"]))) for row in rows]
            nodes.append(mi.Node("Event", name, (("id", events[name]),), lines))
            each = [{"socket": row["socket"], "expire": row["expire"], "ttl": time_left(row, ctx.store.now_s())} for row in rows]
            listed = {"Subscribers": each} if socket is None else {"Subscriber": each[0]}
            members.append({"name": name, "id": events[name], **listed})
    if socket is not None and not nodes:
        raise mi.Error(404, "Subscriber does not exist")
    return mi.Reply(nodes=nodes, result={"Events": members} if event is None else {"Event": members[0] if members else {}})


def time_left(row: dict, now_s: float):
    """How long a subscription lasts, as 3.x shows it: seconds, or `expired`."""
    if row["ended"]:
        return "expired"
    return max(0, round(row["since"] + row["expire"] - now_s))


def remaining(events: mi.Events, event: str) -> list[dict]:
    """The subscriptions to an event, after those that clients ended are removed; StoreError."""
    rows = events.subscribers(event, ended=True)
    if not any(row["ended"] for row in rows):
        return rows
    now_s = events.server.store.now_s()
    going_on = [row for row in rows if not mi.has_ended(row, now_s)]
    if len(going_on) < len(rows):
        events.server.store.change(events.SPACE, events.KEY, lambda text: json.dumps(
            [row for row in json.loads(text or "[]") if row["event"] != event or not mi.has_ended(row, now_s)]))
    return going_on
