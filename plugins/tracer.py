"""tracer -- where SIP is traced to, as OpenSIPS' module shows it; no SIP message is ever traced.

The plug-in siptrace, as the module was called until 2.4, has its parameters and its command from here. What is said by commands
is a key of the store, in a space that has the name of the module.
"""
from __future__ import annotations

import ipaddress
import json
import re
from typing import Any, NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

KINDS = {"hep": "HEP", "sip": "SIP", "fil": "File", "sys": "Syslog"}  # by what a URI begins with; others are databases
HEP_URI = re.compile("[^;:]+(?::[0-9]+)?(?:;(?:transport=(?i:udp|tcp|tls)|version=[123]))*;?")  # behind hep:
BAD_MODE = mi.Error(500, "Bad parameter value", "trace mode should be 'on' or 'off'")


class Destination(NamedTuple):
    """Where an id is traced to; kind: one of KINDS or Database; uri: without `hep:`; filters: of a dynamic one, as shown; table:
    of a database."""

    name: str
    kind: str
    uri: str
    filters: tuple = ()
    table: str = ""

    @property
    def mark(self) -> tuple:
        """What the original tells it from others by: its kind and a hash, which different ones may share."""
        uri = f"hep:{self.uri}" if self.kind == "HEP" else self.uri
        table = hash_of(uri, self.table or "sip_trace") >> 3 if self.kind == "Database" else 0
        return self.kind, hash_of(self.name, uri) ^ table

    def shown(self, state: str, collectors: dict) -> dict:
        """The destination as 3.4 shows it; collectors: the places of those for HEP that are declared."""
        host, _, port = self.uri.partition(";")[0].partition(":")
        uris = {"HEP": collectors.get(self.uri, f"{host}:{port or 9060}"), "SIP": sip_place(self.uri), "Database": self.uri}
        typed = {"type": self.kind, "uri": uris[self.kind]} if self.kind in uris else {}
        return {"name": self.name, **typed, "state": state, **({"filters": self.filters} if self.filters else {})}


def hash_of(first: str, second: str) -> int:
    """OpenSIPS' hash of two texts: its groups of four bytes begin anew with the second."""
    data = mi.encode(first)
    whole = len(data) & -4
    return opensips.core_hash(data[:whole] + (data[whole:].rjust(4, b"\0") if data[whole:] else b"") + mi.encode(second))


def sip_place(uri: str) -> str:
    """The host and port of a SIP URI, as they stand there."""
    match = re.match(r"sips?:(?:[^@]*@)?(\[[^\]]*\]|[^:;?]*)(?::(\d*))?", uri, re.I)
    return f"{match[1]}:{match[2] or ''}" if match else ":"


def destination(name: str, uri: str) -> Destination:
    """The destination of an id and a URI."""
    kind = KINDS.get(uri[:3].lower(), "Database")
    return Destination(name, kind, uri[4:] if kind == "HEP" else uri)


def trace_id(value) -> Destination:
    """Converter: `[NAME]uri=hep:NAME|sip:HOST:PORT|DATABASE;table=NAME` to a destination."""
    match = re.fullmatch(r"\s*\[\s*([^\]\s]+)\s*\]\s*uri\s*=\s*(.*?)\s*(?:;\s*table\s*=([^;]*).*)?", mi.string(value), re.S)
    if not match or not match[2]:
        raise ValueError('takes "[NAME]uri=hep:NAME", or a SIP URI or a database in place of hep:NAME')
    return destination(match[1], match[2])._replace(table=(match[3] or "").strip())


def params(names: str) -> list:
    """The parameters that tracer and siptrace have in common, and others without effect."""
    return [
        mi.Param("trace_id", (), trace_id, "an id and its destination: `[NAME]uri=...`", repeat=True),
        mi.Param("trace_on", 1, mi.integer(), "whether tracing is on at the start; 0: it is off"),
        *opensips.without_effect(f"""callid_column date_column direction_column fromip_column fromport_column fromproto_column
            fromtag_column method_column msg_column status_column toip_column toport_column toproto_column trace_attrs_column
            trace_local_ip {names}"""),
    ]


STATS = [mi.Stat("traced_requests", "SIP requests that were traced, always 0"),
         mi.Stat("traced_replies", "SIP replies that were traced, always 0")]
PARAMS = params("file_mode syslog_default_facility syslog_default_level")


def load(ctx):
    """Warn of destinations for HEP that are not declared."""
    for one in ctx.param("trace_id"):
        if one.kind == "HEP" and one.uri not in collectors(ctx):
            ctx.log.warning("trace_id names hep:%s, which no hep_id of proto_hep declares", one.uri)


###############################################################################
# State
###############################################################################


class State(NamedTuple):
    """What commands said: whether tracing is on, whether ids are, and dynamic destinations, in the order of lists."""

    on: bool
    ids: dict
    dynamic: list


def read_state(ctx, value: str | None) -> State:
    """The state of a value of the store, or the one at the start."""
    on, ids, dynamic = json.loads(value) if value else (bool(ctx.param("trace_on")), {}, [])
    return State(on, dict(ids), [Destination(*row) for row in dynamic])


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep the text of the state in a view, which is {"": text}."""
    view[key] = value


def state_of(ctx) -> State:
    """The state of now."""
    return read_state(ctx, ctx.view(ctx.own.name, take_in).get(""))


def change(ctx, how: Any) -> None:
    """Put how(state) in the place of the state."""
    ctx.store.change(ctx.own.name, "", lambda value: json.dumps(how(read_state(ctx, value))))


def place_of(name: str) -> int:
    """Lists are ordered by the hash of the id."""
    return opensips.core_hash(mi.encode(name))


def declared(ctx) -> list[Destination]:
    """The destinations of the configuration, in the order of lists."""
    found: dict[tuple, Destination] = {}
    for one in ctx.param("trace_id"):
        found.setdefault(one.mark, one)
    return sorted(found.values(), key=lambda one: place_of(one.name))


def collectors(ctx) -> dict[str, str]:
    """The places of the destinations that proto_hep has, by their names."""
    module = ctx.server.registry.modules_by_name.get("proto_hep")
    found = [one for name in ("hep_id", "trace_destination") for one in module.settings[name]] if module else []
    return {one.name: f"{one.host}:{one.port}" for one in found}


###############################################################################
# Commands
###############################################################################


def registered(ctx, registry):
    """Have the command of 2.4, too."""
    share_name(registry, "trace", "sip_trace")


def share_name(registry: Any, name: str, other: str) -> None:
    """Have a command under the name of another, if that is not there."""
    command, names_of = registry.names.get(name), registry.names_of

    def all_names(asked: str) -> tuple:
        names = names_of(asked)
        return (*names, other) if name in names and other not in names else names

    if command and other not in registry.names:
        registry.names[other] = registry.known[other] = command
        registry.names_of = all_names


def is_on(mode: str) -> bool | None:
    """Whether a mode means on, in any case; None for what is neither on nor off."""
    return {"on": True, "off": False}.get(mode.lower())


def show(ctx, name: str | None) -> mi.Reply:
    """The reply with all destinations, or those of an id; mi.Error."""
    state, places, at_start = state_of(ctx), collectors(ctx), bool(ctx.param("trace_on"))
    fixed = [one.shown("on" if state.ids.get(one.name, at_start) else "off", places) for one in declared(ctx)
             if name in (None, one.name)]
    dynamic = [one.shown("dynamic", {}) for one in state.dynamic if name in (None, one.name)]
    if name is None:
        value = {"global": "on" if state.on else "off", "trace destinations": fixed + dynamic}
    elif fixed or dynamic:
        value = {"trace destinations": fixed or dynamic}
    else:
        raise mi.Error(400, "Bad parameter")
    return opensips.reply(ctx, value, depends=(ctx.own.name,))


def switch(ctx, name: str | None, on: bool) -> mi.Reply:
    """Switch tracing on or off, all of it or that of an id of the configuration; mi.Error."""
    if name is None:
        change(ctx, lambda state: state._replace(on=on))
    elif name in [one.name for one in declared(ctx)]:
        change(ctx, lambda state: state._replace(ids={**state.ids, name: on}))
    else:
        raise mi.Error(400, "Bad parameter value" if ctx.request.dialect == "jsonrpc" else "Bad parameter")
    return mi.Reply()


def show_or_switch(ctx, name: Any, mode: Any) -> mi.Reply:
    """The reply of `trace`, and of `sip_trace` of 2.4, where one value is an id or a mode; mi.Error."""
    if ctx.request.dialect == "jsonrpc":
        given = None if name is ... else opensips.text(ctx, "id", name)
        if mode is ...:
            return show(ctx, given)
        on = is_on(opensips.text(ctx, "mode", mode))
        if on is None:
            raise BAD_MODE
        return switch(ctx, given, on)
    values = [value or "" for value in ctx.request.values]
    on = is_on(values[-1]) if values else None
    if len(values) > 2 or len(values) == 2 and on is None:
        raise mi.BAD_PARAMETER
    if on is None:
        return show(ctx, values[0] if values else None)
    return switch(ctx, values[0] if len(values) == 2 else None, on)


@opensips.command(bind=opensips.no_values, also="tracer:trace")
def trace(ctx, id=..., mode=...):
    """Show where SIP is traced to, or switch tracing or that of an ID on or off."""
    return show_or_switch(ctx, id, mode)


def filters_of(value: Any) -> tuple:
    """The filters of an array of `caller=`, `callee=` and `ip=`, the last first; what is none of them is left out."""
    found = []
    for text in value if isinstance(value, list) else ():
        match = re.fullmatch("(caller|callee|ip)=(.+)", text, re.I | re.S) if isinstance(text, str) else None
        if match and (match[1].lower() != "ip" or is_address(match[2])):
            found.append({match[1].lower(): match[2]})
    return tuple(found[::-1])


def is_address(text: str) -> bool:
    """Whether a text is an IPv4 address."""
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False


@opensips.command(also="tracer:start")
def trace_start(ctx, id, uri, filter=..., scope=..., type=...):
    """Trace to a URI under an ID that is new."""
    new = destination(opensips.text(ctx, "id", id), opensips.text(ctx, "uri", uri))
    if new.kind == "Database":
        raise mi.Error(406, "DB not acceptable", "dynamic DB tracing is not yet available")
    if new.mark in [one.mark for one in declared(ctx)]:
        raise mi.Error(500, "Bad parameter value", "trace id already used")
    if new.kind == "HEP" and "proto_hep" not in ctx.server.registry.modules_by_name:
        raise mi.Error(500, "No transport protocol", "HEP module was not loaded")

    def step(state: State) -> State:
        if new.mark in [one.mark for one in state.dynamic]:
            raise mi.Error(500, "Bad parameter value", "dynamic trace id already used")
        in_use = [*collectors(ctx), *[one.name for one in state.dynamic if one.kind == "HEP"]]
        if new.kind == "HEP" and (new.name in in_use or not HEP_URI.fullmatch(new.uri)):
            raise mi.Error(500, "Bad parameter value", "error while alocating new hep_id")  # so written
        if new.kind != "HEP" and not (new.kind == "SIP" and opensips.is_uri(new.uri, 65535)):
            raise mi.Failed(f"{new.uri} cannot be traced to")
        added = [new._replace(filters=filters_of(filter)), *state.dynamic]
        return state._replace(dynamic=sorted(added, key=lambda one: place_of(one.name)))

    change(ctx, step)
    return mi.Reply()


@opensips.command(also="tracer:stop")
def trace_stop(ctx, id):
    """Stop tracing under an ID that was started. As in the original, that works for the first of the list only."""
    name = opensips.text(ctx, "id", id)

    def step(state: State) -> State:
        if name not in [one.name for one in state.dynamic]:
            raise mi.Error(400, "Bad parameter value")
        return state._replace(dynamic=[one for one in state.dynamic if one.name != name or name != state.dynamic[0].name])

    change(ctx, step)
    return mi.Reply()
