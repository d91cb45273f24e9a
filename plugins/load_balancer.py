"""load_balancer -- destinations, their resources and their load, as OpenSIPS' module shows them.

The table is read at the start and by lb_reload. The load of a resource is how many dialogs the profile `lbX` and its name of the
module dialog has, with the number of the destination, in hexadecimal, as the value.
"""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

DIALOGS = "dialog"
LEAST_BYTES = 70  # of a destination in a reply
TABLE = opensips.table("load_balancer", [2, 3], "id# group_id# dst_uri! resources! attrs?@3", "")

PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("db_table", "load_balancer", mi.string, "name of the table"),
    mi.Param("fetch_freeswitch_stats", 0, mi.integer(0, 1), "1: a resource may have a FreeSWITCH server instead of a size"),
    mi.Param("initial_freeswitch_load", 1000, mi.integer(0), "size of a resource with a FreeSWITCH server"),
    *opensips.without_effect("""accept_replicated_status cluster_id cluster_sharing_tag lb_define_blacklist probing_from
        probing_interval probing_method probing_reply_codes probing_verbose replicate_status_to status_replication_cluster"""),
]
EVENTS = [mi.Event("E_LOAD_BALANCER_STATUS", "a destination is enabled or disabled")]


class Destination(NamedTuple):
    """A destination as the store has it; resources: pairs of a name and a size; resized: those that lb_resize changed, each the
    first of its name."""

    number: int
    group: int
    uri: str
    resources: list
    attrs: str = ""
    enabled: bool = True
    resized: tuple = ()

    @property
    def key(self) -> str:
        """What tells it from others."""
        return str(self.number)

    def inherits(self, old: Destination | None, keeps_sizes: bool) -> Destination:
        """The destination with the state of the one that was in its place."""
        is_same = old is not None and (self.group, self.uri.lower()) == (old.group, old.uri.lower())
        if old is None or not is_same or old.enabled and not old.resized:
            return self
        return self._replace(enabled=old.enabled, resized=old.resized if keeps_sizes else ())

    def shown(self, loads: dict) -> dict:
        """The destination as 3.4 lists it; loads: by profile and value."""
        sizes, place = dict(self.resized), f"{self.number:X}"
        resources = [{"name": name, "max": sizes.pop(name, size), "load": loads.get((f"lbX{name}", place), 0)}
                     for name, size in self.resources]
        return {"uri": self.uri, "id": self.number, "group": self.group & 0xFFFFFFFF, "enabled": "yes" if self.enabled else "no",
                "auto-reenable": "on" if self.enabled else "off", "Resources": resources,
                **({"attrs": self.attrs} if self.attrs else {})}


###############################################################################
# State
###############################################################################
# It is one table of the store. Its head is the names of all resources that there ever were, as they came: dialog keeps their
# profiles.

BALANCE = opensips.Tables("load_balancer_table", Destination, ("enabled", "resized"))
REPLACED = (BALANCE.space,)  # by load(), in one step


def destinations(ctx) -> list[Destination]:
    """The destinations of now, in the order of the table."""
    return BALANCE.table(ctx).ones


def profiles(ctx) -> list[str]:
    """The profiles that dialog has for the resources."""
    return [f"lbX{name}" for name in BALANCE.table(ctx).head]


def resources(ctx, text: str) -> list[tuple[str, int]]:
    """The names and sizes of a list `pstn=32;transc=16`; ValueError. One on a FreeSWITCH server is alone."""
    found: list[tuple[str, int]] = []
    for item in text.rstrip().removesuffix(";").split(";"):
        name, _, size = (part.strip() for part in item.partition("="))
        if name and size.startswith("fs://") and ctx.param("fetch_freeswitch_stats"):
            return [(name, ctx.param("initial_freeswitch_load"))]
        if not (re.fullmatch("[A-Za-z0-9]+", name) and re.fullmatch("[0-9]+", size)):
            raise ValueError(f"has the resource {item!r}")
        found.append((name, opensips.uint(size)))
    return found


def destination(row: dict, ctx: Any) -> Destination:
    """The destination of a row; ValueError."""
    if not opensips.is_sip_uri(ctx, row["dst_uri"]):
        raise ValueError(f"has the URI {row['dst_uri']!r}")
    return Destination(row["id"] & 0xFFFFFFFF, row["group_id"], row["dst_uri"], resources(ctx, row["resources"]),
                       row.get("attrs") or "")


def read_table(ctx, *, keeps_sizes: bool) -> None:
    """Read the table; destinations that stay are enabled or disabled as before; keeps_sizes: and have the sizes that lb_resize
    gave them, else those of the table. TableError."""
    made = opensips.good(ctx, opensips.rows_of(ctx, *opensips.place(ctx, TABLE, "db_table")), destination, ctx)

    def merged(old: Any, each: Callable) -> tuple:
        new = [one.inherits(old.find(one.key), keeps_sizes) for one in each(made)] if old else made
        return [*dict.fromkeys([*(old.head if old else ()), *(name for one in new for name, _ in one.resources)])], new

    BALANCE.replace(ctx, "", merged)


def init(ctx):
    """Check the table."""
    opensips.check_tables(ctx, opensips.place(ctx, TABLE, "db_table"))


def load(ctx):
    """Read the table; what commands changed stays."""
    read_table(ctx, keeps_sizes=True)


def child_init(ctx):
    """Have the table before a request wants it."""
    BALANCE.now(ctx)


###############################################################################
# Commands
###############################################################################


def change(ctx, number: int, how: Callable) -> tuple:
    """Put how(destination) in the place of the destination of a number; returns it as it was and as it is; mi.Error."""
    return BALANCE.change(ctx, "", str(number), how, mi.Error(404, "Destination ID not found"))


@opensips.command
def lb_list(ctx):
    """Show all destinations with their resources, and how many dialogs use these."""
    listed = destinations(ctx)
    opensips.check_size(ctx, len(listed), LEAST_BYTES)
    dialog = opensips.context_of(ctx, "dialog")
    loads = dialog.own.namespace.profile_sizes(dialog) if dialog else {}
    value = {"Destinations": [one.shown(loads) for one in opensips.in_turns(listed)]}
    return opensips.reply(ctx, value, depends=(BALANCE.space, DIALOGS))


@opensips.command
def lb_resize(ctx, destination_id, res_name, new_capacity):
    """Give a resource of a destination another size."""
    number, name = opensips.number(ctx, "destination_id", destination_id) & 0xFFFFFFFF, opensips.text(ctx, "res_name", res_name)
    size = opensips.number(ctx, "new_capacity", new_capacity) & 0xFFFFFFFF

    def resized(one: Destination) -> Destination:
        if name not in dict(one.resources):
            raise mi.Error(404, "Destination has no such resource")
        return one._replace(resized=(*[pair for pair in one.resized if pair[0] != name], (name, size)))

    change(ctx, number, resized)
    return mi.Reply()


@opensips.command
def lb_status(ctx, destination_id, new_status=...):
    """Show whether a destination is enabled, or disable (0) or enable it."""
    number = opensips.number(ctx, "destination_id", destination_id) & 0xFFFFFFFF
    if ctx.request.dialect == "text" and len(ctx.request.values) > 2:
        raise mi.WRONG_COUNT
    is_set = len(ctx.request.values) > 1 if ctx.request.dialect == "text" else new_status is not ...
    if is_set:
        on = opensips.number(ctx, "new_status", new_status) != 0
        old, new = change(ctx, number, lambda one: one._replace(enabled=on))
        if new != old:
            opensips.raise_event(ctx, "E_LOAD_BALANCER_STATUS", group=new.group, uri=new.uri,
                                 status="enabled" if on else "disabled")
        return mi.Reply()
    one = BALANCE.table(ctx).find(str(number))
    if one is None:
        raise mi.Error(404, "Destination ID not found")
    shown = {"enable": "yes" if one.enabled else "no", **({"attrs": one.attrs} if one.attrs else {})}
    return opensips.reply(ctx, shown, depends=(BALANCE.space,))


@opensips.command(timed=False)
def lb_reload(ctx):
    """Read the table again; destinations that stay are enabled or disabled as before."""
    with opensips.reloading(ctx, mi.Error(500, "Failed to reload")):
        read_table(ctx, keeps_sizes=False)
    return mi.Reply()
