"""around -- puts functions of plug-ins around the answering of datagrams: those that `@midatagram.around` tags."""
from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import midatagram as mi


def settle(registry: mi.Registry) -> None:
    """Have the functions around the answering, each around the commands that it names, under all of their names."""
    registry.around = Around
    registry.wrappers = [(module, function, frozenset(itertools.chain.from_iterable(map(registry.names_of, names))))
                         for module, function, names in registry.wrappers]


class Around:
    """Stands for wrapped() of `answers`, which it asks to answer where a function does not."""

    def __init__(self, answers: Any):
        self.answers = answers

    def wrapped(self, data: bytes, calls: Any, caller: Any, proceed: Callable[[], mi.Answer]) -> mi.Answer:
        """What proceed() returns, with the functions around it that want these calls; the first loaded is the outermost."""
        request = calls[0].request if len(calls) == 1 else mi.Request("", dialect="jsonrpc")
        asked = {name for call in calls for name in (call.request.name, call.command.name)}
        for module, function, names in reversed(self.answers.wrappers):
            if not names or names & asked:
                ctx = mi.Context(module, request, caller, data)
                ctx.calls = calls
                proceed = functools.partial(self.wrap, function, ctx, proceed)
        try:
            return proceed()
        except mi.Interrupted:
            return self.answers.finish(data, calls[0]._replace(refusal=mi.TIMED_OUT))

    def wrap(self, function: Callable, ctx: mi.Context, proceed: Callable[[], mi.Answer]) -> mi.Answer:
        """What a function around others returns; Interrupted."""
        try:
            answer = function(ctx, ctx.request, proceed)
            if isinstance(answer, mi.Reply):
                return self.refused(ctx, self.answers.commands.get(ctx.request.name, mi.NO_COMMAND), answer)
            if isinstance(answer, mi.Answer):
                return answer
            raise TypeError(f"it returned {type(answer).__name__}, which is no midatagram.Answer")
        except mi.Interrupted:
            raise
        except BaseException:  # a plug-in's seam
            self.answers.log.exception("%s of %s, which is around %s, raised", function.__name__, ctx.own.name,
                                       ctx.request.name or "all")
            return self.refused(ctx, mi.NO_COMMAND, mi.COMMAND_FAILED)

    def refused(self, ctx: mi.Context, command: Any, reply: Any) -> mi.Answer:
        """A reply in the place of that of a command."""
        return self.answers.finish(ctx.data, mi.Call(self.answers.dialect_of(ctx.data), command, ctx.request, None, reply))
