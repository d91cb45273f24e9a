"""lab_sip -- lab commands that leave what SIP traffic would.

`lab_register` takes its options as named arguments.
"""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips")

OPTIONS = {"expires": opensips.uint, "q": opensips.q_value, "callid": str, "cseq": opensips.uint, "user_agent": str,
           "received": str, "path": str, "socket": str, "flags": opensips.uint, "cflags": str, "methods": opensips.uint,
           "attr": str, "sip_instance": str}


def bind_named(request) -> list:
    """The arguments of a text request: three by position, options by name; mi.Error."""
    plain = [value or "" for name, value in request.arguments if name not in OPTIONS]
    if len(plain) != 3:
        raise mi.WRONG_COUNT
    named = {name: value or "" for name, value in request.arguments if name in OPTIONS}
    return [*plain, *(named.get(name) for name in OPTIONS)]


@mi.command(bind=bind_named, json=mi.JsonForm(recipes=[["table", "aor", "contact"]], options=tuple(OPTIONS)))
def lab_register(ctx, table, aor, contact, expires=None, q=None, callid=None, cseq=None, user_agent=None, received=None,
                 path=None, socket=None, flags=None, cflags=None, methods=None, attr=None, sip_instance=None):
    """Register a CONTACT for an AOR in a TABLE as a REGISTER would: options are named arguments, `expires::600`."""
    given = dict(zip(OPTIONS, (expires, q, callid, cseq, user_agent, received, path, socket, flags, cflags, methods, attr,
                               sip_instance)))
    try:
        fields = {name: OPTIONS[name](value) for name, value in given.items() if value is not None}
    except ValueError:
        raise mi.BAD_PARAMETER from None
    names = fields.pop("cflags", "")
    if names.isdigit():
        fields.update(cflags=int(names))
    else:
        fields.update(cflags=2**len(names.split()) - 1, flag_names=names)
    try:
        register = ctx.module("usrloc").register
    except KeyError:
        raise mi.Error(500, "module usrloc is not loaded") from None
    register(ctx, table, aor, contact, **fields)
    return mi.Reply()
