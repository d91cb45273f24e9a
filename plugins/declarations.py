"""declarations -- checks what a plug-in declares while it is loaded: rows, tagged functions, hooks, BRINGS."""
from __future__ import annotations

import ast
import functools
import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import midatagram as mi

###############################################################################
# What would be right
###############################################################################
# Strategy: a check of a value returns what would be right, or nothing if the
# value is. All that a plug-in has called later is called with positional
# arguments, so that binding these to its signature shows whether it can be.

CONVERTERS = 'mi.string, mi.integer(), mi.boolean, mi.one_of("a", "b") or a function of the text'
FACTORIES = mi.integer, mi.one_of  # which return a converter, and can themselves be called like one


def takes(function: Any, *arguments: str) -> bool:
    """Whether it can be called with these arguments, and does something then: an async def does not."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # it is written in C, and does not say
        return True
    return not inspect.iscoroutinefunction(function)


def text(value: Any) -> str:
    """For names and help."""
    return "" if isinstance(value, str) else "write text, in quotes"


def flag(value: Any) -> str:
    """For what is so or not."""
    return "" if value in (True, False) else "write True or False"


def converter(value: Any) -> str:
    """For converters of parameters and arguments."""
    if value in FACTORIES:
        return 'write it with parentheses: mi.integer(1, 9), mi.one_of("a", "b")'
    return "" if takes(value, "text") else f"write {CONVERTERS}"


def reader(value: Any) -> str:
    """For functions that return a figure: with a Context, if they have parameters at all."""
    try:
        arguments = ("ctx",) if value and inspect.signature(value).parameters else ()
    except (TypeError, ValueError):
        return "write a function: lambda: FIGURE"
    return "" if value is None or takes(value, *arguments) else "it is called as read() or read(ctx)"


def text_or_none(value: Any) -> str:
    """For the help of a command, which may have a docstring."""
    return text("" if value is None else value)


def function_or_none(value: Any) -> str:
    """For what else is called."""
    return "" if value is None or callable(value) else "write a function"


def json_form(value: Any) -> str:
    """For what is different for JSON-RPC clients."""
    return "" if isinstance(value, mi.JsonForm) else "write mi.JsonForm(...)"


def dialect(value: Any) -> str:
    """For those that see a statistic."""
    return "" if value in ("", "text", "jsonrpc") else 'write "text" or "jsonrpc"'


ROWS: dict[str, tuple] = {  # list -> the kind of its rows, and the check of each field
    "PARAMS": (mi.Param, {"name": text, "converter": converter, "help": text, "repeat": flag, "advice": function_or_none}),
    "STATS": (mi.Stat, {"name": text, "help": text, "group": text, "resettable": flag, "read": reader, "dialect": dialect,
                        "shared": flag}),
    "EVENTS": (mi.Event, {"name": text, "help": text})}
TAG: dict[str, Callable[[Any], str]] = {
    "name": text, "help": text_or_none, "input": flag, "pure": flag, "bind": function_or_none, "json": json_form, "timed": flag,
    "also": text, "replace": flag}
OPTIONS = [name for name in inspect.signature(mi.command).parameters if name != "converters"]
HOOKS = {word: ("ctx", *{"registered": ["registry"], "cache": ["system"]}.get(word, [])) for word in mi.Module.HOOKS}
TAGGED = {"mi_every": ("@mi.every", ("ctx",)), "mi_around": ("@mi.around", ("ctx", "request", "proceed")),
          "mi_trace_destination": ("@mi.trace_destination", ("ctx",))}


def shown(value: Any) -> str:
    """A value in a message: a function by its name."""
    return f"mi.{value.__name__}" if value in FACTORIES else getattr(value, "__name__", "") or repr(value)[:60]


###############################################################################
# A plug-in
###############################################################################


def check(path: str, namespace: dict, own: dict) -> None:
    """ConfigError for the first mistake in what a plug-in declares; own: those names that it does not import."""
    plugin = Plugin(path)
    plugin.check_brings(own.get("BRINGS", ()))
    for word, (kind, checks) in ROWS.items():
        rows = own.get(word, [])
        for row in rows if isinstance(rows, (list, tuple)) else ():
            if isinstance(row, kind):  # else a Module says so
                line = functools.partial(plugin.line_of_row, word, row.name)
                plugin.check_fields(f'mi.{kind.__name__} "{row.name}"', row, checks, line)
    for word, arguments in HOOKS.items():
        if word in own:
            plugin.check_call(word, own[word], f"{word}, the name of a hook,", arguments)
    for name, value in namespace.items():
        if isinstance(value, functools.partial) and callable(value.keywords.get("mi_every", [None])[0]):
            at = plugin.line_of(name, value.keywords["mi_every"][0])
            raise plugin.refusal(at, "@mi.every is written with its seconds: @mi.every(5)")
    for name, value in own.items():
        if callable(value):
            plugin.check_function(name, value)


class Plugin:
    """A plug-in's file, with what looks for mistakes in it."""

    def __init__(self, path: str):
        self.path = path

    def refusal(self, line: int, message: str) -> mi.ConfigError:
        """What is wrong in a line of the file."""
        return mi.ConfigError(self.path, line, message)

    def line_of(self, name: str, function: Any = None) -> int:
        """Where a function stands, or what else has a name."""
        code = getattr(inspect.unwrap(function) if callable(function) else None, "__code__", None)
        if code and code.co_filename == self.path:
            return code.co_firstlineno
        return mi.line_of(mi.read_source(self.path), name)

    def line_of_row(self, word: str, name: Any) -> int:
        """Where the row of that name stands; the list of rows, if it is not written out."""
        for node in ast.walk(ast.parse(mi.read_source(self.path))):
            if isinstance(node, ast.Call) and ROWS[word][0].__name__ == shown_call(node) and any(
                    isinstance(argument, ast.Constant) and argument.value == name for argument in node.args):
                return node.lineno
        return self.line_of(word)

    def check_fields(self, label: str, row: Any, checks: dict[str, Callable[[Any], str]], line: Callable[[], int]) -> None:
        """ConfigError for a field of a row, or of the tag of a command, that is of another kind."""
        for field, right in checks.items():
            value = getattr(row, field)
            if right(value):
                raise self.refusal(line(), f"{label}: {field} is {shown(value)}; {right(value)}")

    def check_call(self, name: str, function: Any, label: str, arguments: tuple) -> None:
        """ConfigError for what cannot be called with these arguments."""
        if not takes(function, *arguments):
            why = f"is {shown(function)}"
            if callable(function):
                is_async = inspect.iscoroutinefunction(function)
                why = "is an async def, which nobody awaits" if is_async else f"gets {' and '.join(arguments)}"
            form = f"def {name}({', '.join(arguments)})"
            raise self.refusal(self.line_of(name, function), f"{label} {why}; write {form}")

    def check_function(self, name: str, function: Any) -> None:
        """ConfigError for a tagged function that cannot be what its tags say."""
        for tag, (label, arguments) in TAGGED.items():
            if hasattr(function, tag):
                self.check_call(name, function, f"a function of {label}", arguments)
        line = functools.partial(self.line_of, name, function)
        seconds = getattr(function, "mi_every", [1])[0]
        if not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise self.refusal(line(), f"@mi.every({seconds!r}) takes a number of seconds above 0: @mi.every(5)")
        if not all(isinstance(command, str) for command in getattr(function, "mi_around", ())):
            raise self.refusal(line(), '@mi.around takes names of commands: @mi.around("ps", "uptime")')
        if getattr(function, "mi_cached", None):
            self.check_call("note", function.mi_cached, "a function of @mi.around(cached=...)", ("ctx", "trace"))
        if hasattr(function, "mi_command"):
            self.check_command(function, line)

    def check_command(self, function: Any, line: Callable[[], int]) -> None:
        """ConfigError for what @mi.command got that is of another kind, or for another function."""
        tag, label = function.mi_command, f'command "{function.mi_command.name}"'
        if not hasattr(function, "__code__"):
            raise self.refusal(line(), f"{label} is a {type(function).__name__}; @mi.command stands right above a def")
        self.check_fields(label, tag, TAG, line)
        arguments = [*inspect.signature(function).parameters][1:]
        for name, value in tag.converters.items():
            if name not in arguments:
                hint = mi.nearest(name, [*arguments, *OPTIONS])
                raise self.refusal(line(), f'{label} has "{name}", which is no argument of it and no option of @mi.command{hint}')
            if converter(value):
                raise self.refusal(line(), f"{label}: the converter of {name} is {shown(value)}; {converter(value)}")

    def check_brings(self, names: Any) -> None:
        """ConfigError for what BRINGS names but is not there, or no tuple of names."""
        if not isinstance(names, (tuple, list)) or not all(isinstance(name, str) for name in names):
            form = f'("{names}",)' if isinstance(names, str) else '("NAME",)'
            raise self.refusal(self.line_of("BRINGS"), f"BRINGS is a tuple of names; write BRINGS = {form}")
        folder = os.path.dirname(self.path)
        for name in names:
            if not os.path.isfile(os.path.join(folder, f"{name}.py")):
                beside = [file.removesuffix(".py") for file in os.listdir(folder or ".") if file.endswith(".py")]
                hint = mi.nearest(name, beside)
                raise self.refusal(self.line_of("BRINGS"), f"BRINGS: there is no {name}.py beside this file{hint}")


def shown_call(node: ast.Call) -> str:
    """The last name of what is called."""
    return getattr(node.func, "attr", "") or getattr(node.func, "id", "")
