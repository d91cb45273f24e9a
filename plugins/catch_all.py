"""catch_all -- asks the commands "*" of plug-ins for names that no command has."""
from __future__ import annotations

from typing import Any

import midatagram as mi

JUDGED_BYTES = 1 << 20  # of the names for which it is remembered whether they are switched off


def command_of(registry: mi.Registry) -> mi.Command:
    """The command that stands where a request names none: it asks the catch-alls in turn."""
    judged = mi.Memo(JUDGED_BYTES)

    def is_off(name: str) -> bool:
        """Whether a command is switched off, under any of its names."""
        known = judged.get(name) or judged.keep(
            name, (any(one in registry.switched_off for one in registry.names_of(name)),), 8 * len(name))
        return known[0]

    @mi.command("*", input=bool(registry.wrappers) or any(one.input for one in registry.catch_alls),
                timed=all(one.timed for one in registry.catch_alls))
    def ask_all(ctx: mi.Context, *values: str) -> Any:
        """Ask for a name that no command has."""
        for one in () if is_off(ctx.request.name) else registry.catch_alls:
            reply = one.function(mi.Context(one.module, ctx.request, ctx.caller, ctx.data), *(values if one.rest else ()))
            if reply is not None:
                return reply
        return mi.NOT_AVAILABLE

    return mi.Command(mi.Module("", {}), ask_all)
