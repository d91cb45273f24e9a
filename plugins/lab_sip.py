"""lab_sip -- lab commands that do what SIP traffic would.

Options are named arguments.
"""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips_base")
STATS = opensips.SIP_STATS


def flags(value) -> dict:
    """Converter: branch flags as their names, or as a number."""
    names = mi.string(value)
    try:
        return {"cflags": opensips.uint(names)}
    except ValueError:
        return {"cflags": opensips.flag_bits(names), "flag_names": names}


def functions(ctx, module: str):
    """The functions of a module; mi.Error."""
    try:
        return ctx.module(module)
    except KeyError:
        raise mi.Error(500, f"module {module} is not loaded") from None


@mi.command(expires=opensips.uint, q=opensips.q_value, cseq=opensips.uint, flags=opensips.uint, cflags=flags,
            methods=opensips.uint, also="lab:register")
def lab_register(ctx, table, aor, contact, *, expires=None, q=None, callid=None, cseq=None, user_agent=None, received=None,
                 path=None, socket=None, flags=None, cflags=None, methods=None, attr=None, sip_instance=None):
    """Register a CONTACT for an AOR in a TABLE as a REGISTER would."""
    given = {"expires": expires, "q": q, "callid": callid, "cseq": cseq, "user_agent": user_agent, "received": received,
             "path": path, "socket": socket, "flags": flags, "methods": methods, "attr": attr, "sip_instance": sip_instance}
    fields = {**opensips.first_socket(ctx),
              **{name: opensips.c_text(value) for name, value in given.items() if value is not None}}
    functions(ctx, "usrloc").register(ctx, table, opensips.c_text(aor), opensips.c_text(contact), **fields, **(cflags or {}))
    return mi.Reply()


def pairs(value) -> tuple:
    """Converter: `name=value, name` to names and values, empty where there is none."""
    items = [item.partition("=") for item in mi.string(value).split(",") if item.strip()]
    return tuple((name.strip(), text.strip()) for name, _, text in items)


@mi.command(state=mi.integer(1, 5), timeout=mi.integer(1, 2**31 - 1), profiles=pairs, values=pairs, also="lab:call")
def lab_call(ctx, callid, from_uri, to_uri, *, from_tag=None, to_tag=None, state=None, socket=None, caller_contact=None,
             callee_contact=None, timeout=None, profiles=None, values=None):
    """Begin a call and take it to STATE: 1 unconfirmed, 2 early, 3 answered, 4 confirmed (the default), 5 ended."""
    given = {"from_tag": from_tag, "to_tag": to_tag, "state": state, "socket": socket, "caller_contact": caller_contact,
             "callee_contact": callee_contact, "timeout": timeout, "profiles": profiles, "values": values}
    fields = {**opensips.first_socket(ctx), **{name: value for name, value in given.items() if value is not None}}
    functions(ctx, "dialog").call(ctx, callid, from_uri, to_uri, **fields)
    return mi.Reply()


@mi.command(state=mi.integer(1, 5), also="lab:call_state")
def lab_call_state(ctx, callid, state):
    """Take a call to a later STATE."""
    functions(ctx, "dialog").move(ctx, callid, state)
    return mi.Reply()


@mi.command(also="lab:hangup")
def lab_hangup(ctx, callid):
    """End a call."""
    functions(ctx, "dialog").hang_up(ctx, callid)
    return mi.Reply()


@mi.command(code=mi.integer(100, 699), ms=mi.integer(0, 86400000), also="lab:answer")
def lab_answer(ctx, method, uri_pattern, code, reason=None, *, headers=None, body=None, ms=None):
    """Answer requests of t_uac_dlg whose METHOD and URI fit these shell patterns; the newest answer that matches counts. A CODE
    below 200 lets them ring."""
    functions(ctx, "tm").add_answer(ctx, method, uri_pattern, code, reason, headers or "", body or "", ms or 0)
    return mi.Reply()


@mi.command(index=mi.integer(0, 2**32 - 1), label=mi.integer(0, 2**32 - 1), also="lab:transaction")
def lab_transaction(ctx, index, label, callid, cseq, method):
    """Make a received transaction without an answer, for t_reply and t_uac_cancel."""
    functions(ctx, "tm").begin(ctx, index, label, callid, cseq, method)
    return mi.Reply()


@mi.command(limit=opensips.uint, counter=opensips.uint, also="lab:pipe")
def lab_pipe(ctx, name, algorithm, limit, counter=0):
    """Make or change a pipe of ratelimit."""
    functions(ctx, "ratelimit").put_pipe(ctx, name, algorithm, limit, counter)
    return mi.Reply()


@mi.command(also="lab:block")
def lab_block(ctx, ip):
    """Make pike block an IP."""
    functions(ctx, "pike").block(ctx, ip)
    return mi.Reply()


@mi.command(by=mi.integer(-2**31, 2**31), also="lab:count")
def lab_count(ctx, name, by=1):
    """Add BY (1) to the statistic NAME, or GROUP:NAME, as SIP traffic or a script would."""
    known = ctx.server.registry.stats[ctx.request.dialect]
    group, _, rest = name.partition(":")
    found = [stat for stat in known[f"{group}:"] if stat.name == rest] or [stat for stat in known[name] if stat.name == name]
    if not found:
        raise mi.Error(404, "Statistics Not Found")
    if found[0].read:
        raise mi.Error(400, f"{name} is no counter, it shows what there is")
    counters, column = ctx.server.counters, ctx.server.counters.column(found[0].group, found[0].name)
    if found[0].resettable:
        ctx.own.row[column] += by
    else:  # which would go with this child; in a step, since others may do the same
        ctx.store.change("lab_count", name, lambda _: counters.set(column, *(
            value + by for value in ctx.server.values_of(found[:1])())))
    return mi.Reply()


@mi.command(also="lab:registrant")
def lab_registrant(ctx, aor, state):
    """Set the STATE of a registration of uac_registrant: registered, wrong_credentials, ..."""
    try:
        module = ctx.module("uac_registrant")
    except KeyError:
        raise mi.Error(500, "module uac_registrant is not loaded") from None
    name = f"{state.upper().removesuffix('_STATE')}_STATE"
    if name not in module.STATES:
        raise mi.BAD_PARAMETER
    module.move(ctx, aor, name)
    return mi.Reply()
