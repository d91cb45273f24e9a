"""command_options -- keyword-only arguments of a command are given by name: `def dump(ctx, table, *, limit=10)`."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
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
        names = self.command.options
        named = [(name if name in names else None, value) for name, value in request.arguments]
        if trouble := self.unknown(request.names or ()):
            raise mi.Error(400, trouble)
        values = tuple(value or "" for name, value in named if name is None)
        if trouble := self.nameless(values):
            raise mi.Error(400, trouble)
        options = self.values({name: value for name, value in named if name})
        return [options, *self.command.bind_text(request._replace(values=values, names=None))]

    def bind_json(self, params: Any) -> tuple[tuple, tuple, list]:
        """As Command.bind_json(), with the options before the values; Error."""
        values = [] if isinstance(params, dict) else [mi.text_of(value) or "" for value in params or ()]
        if trouble := self.nameless(values) or isinstance(params, dict) and self.unknown(params):
            raise mi.invalid_params(trouble)
        options = {name: params[name] for name in self.command.options if name in params} if isinstance(params, dict) else {}
        others = {name: params[name] for name in params if name not in options} if options else params
        shown, names, called = self.bind_others(others)
        return (*shown, *map(mi.text_of, options.values())), (*names, *options), [self.values(options), *called]

    def unknown(self, names: Iterable[str | None]) -> str:
        """What is wrong with the names of arguments, empty for nothing."""
        known = (*self.command.options, *self.command.names, self.command.rest)
        name = next((name for name in names if name and name not in known), "")
        return f'no option "{name}"{mi.nearest(name, self.command.options)}' if name else ""

    def nameless(self, values: Sequence[str]) -> str:
        """What is wrong with values without a name for a command that has options alone, empty for nothing."""
        if not values or self.command.names or self.command.rest:
            return ""
        return f'"{values[0]}" has no name; this takes {" ".join([f"{name}=" for name in self.command.options])}'

    def values(self, given: dict) -> dict:
        """The options that are given, through their converters; Error."""
        values, name = {}, ""
        try:
            for name, value in given.items():
                values[name] = self.command.tag.converters.get(name, mi.string)(mi.text_of(value) or "")
        except ValueError as error:
            raise mi.Error(400, f"{name} {error}") from None
        return values
