"""lab_sip -- lab commands that leave what SIP traffic would.

Options are named arguments.
"""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips")


def flags(value) -> dict:
    """Converter: branch flags as their names, or as a number."""
    names = mi.string(value)
    return {"cflags": int(names)} if names.isdigit() else {"cflags": 2**len(names.split()) - 1, "flag_names": names}


@mi.command(expires=opensips.uint, q=opensips.q_value, cseq=opensips.uint, flags=opensips.uint, cflags=flags,
            methods=opensips.uint)
def lab_register(ctx, table, aor, contact, *, expires=None, q=None, callid=None, cseq=None, user_agent=None, received=None,
                 path=None, socket=None, flags=None, cflags=None, methods=None, attr=None, sip_instance=None):
    """Register a CONTACT for an AOR in a TABLE as a REGISTER would."""
    given = {"expires": expires, "q": q, "callid": callid, "cseq": cseq, "user_agent": user_agent, "received": received,
             "path": path, "socket": socket, "flags": flags, "methods": methods, "attr": attr, "sip_instance": sip_instance}
    fields = {name: value for name, value in given.items() if value is not None}
    try:
        register = ctx.module("usrloc").register
    except KeyError:
        raise mi.Error(500, "module usrloc is not loaded") from None
    register(ctx, table, aor, contact, **fields, **(cflags or {}))
    return mi.Reply()
