"""command_options -- keyword-only arguments of a command are given by name: `def dump(ctx, table, *, limit=10)`."""
from __future__ import annotations

from typing import Any

import midatagram as mi


class Options:
    """Takes the options out of the requests for a command, which binds the other arguments as ever."""

    def __init__(self, command: Any):
        self.command, self.written, self.bind_others = command, command.function, command.bind_json
        mi.tagged(command, function=self.call, bind=self.bind_text, bind_json=self.bind_json)

    def call(self, ctx: mi.Context, given: dict, *values: Any) -> Any:
        """Call the function as it is written."""
        return self.written(ctx, *values, **given)

    def bind_text(self, request: mi.Request) -> list:
        """The options, and the values of the arguments by position; Error."""
        names, known = self.command.options, (*self.command.options, *self.command.names, self.command.rest)
        named = [(name if name in names else None, value) for name, value in request.arguments]
        unknown = [name for name in request.names or () if name and name not in known]
        if unknown:
            raise mi.Error(400, f'no option "{unknown[0]}"{mi.nearest(unknown[0], names)}')
        values = tuple(value or "" for name, value in named if name is None)
        options = self.values({name: value for name, value in named if name})
        return [options, *self.command.bind_text(request._replace(values=values, names=None))]

    def bind_json(self, params: Any) -> tuple[tuple, tuple, list]:
        """As Command.bind_json(), with the options before the values; Error."""
        options = {name: params[name] for name in self.command.options if name in params} if isinstance(params, dict) else {}
        others = {name: params[name] for name in params if name not in options} if options else params
        shown, names, called = self.bind_others(others)
        return (*shown, *map(mi.text_of, options.values())), (*names, *options), [self.values(options), *called]

    def values(self, given: dict) -> dict:
        """The options that are given, through their converters; Error."""
        values, name = {}, ""
        try:
            for name, value in given.items():
                values[name] = self.command.tag.converters.get(name, mi.string)(mi.text_of(value) or "")
        except ValueError as error:
            raise mi.Error(400, f"{name} {error}") from None
        return values
