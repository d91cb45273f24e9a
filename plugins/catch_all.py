"""catch_all -- asks the commands "*" of plug-ins for names that no command has."""
from __future__ import annotations

import functools
from typing import Any

import midatagram as mi


def command_of(registry: mi.Registry) -> mi.Command:
    """The command that stands where a request names none: it asks the catch-alls in turn."""
    is_off = functools.lru_cache(1000)(lambda name: any(one in registry.switched_off for one in registry.names_of(name)))

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
