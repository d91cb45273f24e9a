"""checks -- what is most likely a mistake in a configuration, and in a plug-in: a command that answers nothing; and `-c`."""
from __future__ import annotations

import builtins
import collections
import contextlib
import dis
import inspect
import logging
import os
import types
from collections.abc import Iterator
from typing import Any

import midatagram as mi

###############################################################################
# What OpenSIPS knows
###############################################################################


def opensips_names() -> collections.defaultdict[str, frozenset]:
    """The modules, words of a configuration and commands that OpenSIPS knows; nothing without the file of them."""
    names: collections.defaultdict[str, frozenset] = collections.defaultdict(frozenset)
    with contextlib.suppress(OSError), open(mi.NAMES_FILE, encoding="utf-8") as file:
        for section in file.read().split("\n[")[1:]:
            kind, _, listed = section.partition("]")
            names[kind] = frozenset(listed.split())
    return names


def calls(script: list) -> Iterator[tuple]:
    """The calls in the tokens of a script whose first arguments are strings: the name, and these strings, or flags, which 2.4 has
    without quotes; of a socket the word and the rest."""
    if script[0].value in ("listen", "socket"):
        yield script[0].value, " ".join([token.value for token in script[2:]])
    for at, (name, paren) in enumerate(zip(script, script[1:]), 2):
        if (name.kind, paren.kind) == ("word", "("):
            kinds = ("string", ",", "word", "number") if name.value.endswith(("setbflag", "isbflagset")) else ("string", ",")
            end = next((to for to, token in enumerate(script[at:at + 20], at) if token.kind not in kinds), at + 20)
            texts = [token.value for token in script[at:end] if token.kind in ("string", "word")]
            if texts:
                yield (name.value, *texts)


###############################################################################
# Parameters
###############################################################################


def note_parameter(loader: mi.Loader, module: mi.Module, where: tuple, name: str, value: Any, before: tuple) -> None:
    """Note what is likely a mistake in a line that set a parameter; before: where it was set until then, and to what."""
    advice = ADVICE[module.name, name](value) if (module.name, name) in ADVICE else None
    if advice:
        loader.note(where, advice)
    earlier, old = before
    if (module.name, name) in DROPPED and where[1] and old and old != module.settings[name]:
        loader.note(where, "{} drops that of {}:{}; {}".format(name, *earlier, DROPPED[module.name, name]))


def decimal_mode(value: Any) -> str | None:
    """The warning for a file mode written in decimal; None for the octal form."""
    text = getattr(value, "text", "0")
    if text.startswith("0"):
        return None
    octal = f"; octal is written 0{text}" if set(text) <= set("01234567") else ""
    return f"{text} is decimal and means mode {value:04o}{octal}"


def odd_scheme(value: Any) -> str | None:
    """The warning for a path that looks like another kind of address."""
    right = mi.right_form(value)
    return f'"{value}" is the path of a UNIX socket; UDP is written udp:HOST:PORT, in lower case: {right}' if right else None


def no_size(value: Any) -> str | None:
    """The warning for a socket_buf_size of nothing."""
    return None if mi.integer()(value) > 0 else f"socket_buf_size is to be above 0; it is {mi.LIMIT}"


ADVICE = {("mi_datagram", "socket_name"): odd_scheme, ("mi_datagram", "unix_socket_mode"): decimal_mode,
          ("mi_datagram", "socket_buf_size"): no_size}
DROPPED = {  # what a second line of these is for
    ("mi_datagram", "socket_name"): 'modparam("midatagram", "listen", ...) adds a socket',
    ("mi_datagram", "trace_destination"): "several destinations stand in one line, with commas between them"}


###############################################################################
# Commands
###############################################################################


def check_commands(loader: mi.Loader, registry: mi.Registry) -> None:
    """ConfigError for the first command of which it can be seen that it cannot be bound, or answers nothing; a note for what
    fails for another reason."""
    for command in dict.fromkeys([*registry.known.values(), *registry.catch_alls]):
        check_tag(command)
        if inspect.iscoroutinefunction(command.written):
            raise command.refusal("is an async def, which nobody awaits; write def, gevent lets others have their turn")
        if command.name != "*" and returns_nothing(command.written):
            raise command.refusal("returns nothing; it must return a Reply")
    note_failures(loader, registry)


def check_tag(command: mi.Command) -> None:
    """ConfigError when the converters or the JSON recipes of a command do not fit its arguments."""
    names = [*command.names, command.rest, *command.options]
    unknown = [name for name in command.tag.converters if name not in names]
    if unknown:
        hint = mi.nearest(unknown[0], command.names)
        raise command.refusal(f'has a converter for "{unknown[0]}", which it does not take{hint}')
    lacking = [name for recipe in command.recipes for name in command.required if command.input and name not in recipe]
    if lacking:
        raise command.refusal(f'has a JSON recipe without "{lacking[0]}", which it requires')


def returns_nothing(function: Any) -> bool:
    """Whether it is sure that a function ends with None unless it raises: all that it names are modules, classes and built-in
    functions. Others may be there to raise, or to end the process."""
    code = getattr(function, "__code__", None)
    if not code or code.co_freevars or any(isinstance(constant, types.CodeType) for constant in code.co_consts) or \
            code.co_flags & (inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    known = {**vars(mi), **vars(builtins), **function.__globals__}
    steps = list(dis.get_instructions(code))
    ends = [step if step.opname == "RETURN_CONST" else before for before, step in zip(steps, steps[1:])
            if step.opname in ("RETURN_CONST", "RETURN_VALUE")]
    return bool(ends) and all("CONST" in step.opname and step.argval is None for step in ends) and all(
        isinstance(known.get(name), (type, types.ModuleType, types.BuiltinFunctionType)) for name in code.co_names)


def note_failures(loader: mi.Loader, registry: mi.Registry) -> None:
    """Note what is going to fail: folders of mpath that are missing, unless they are OpenSIPS' own, and commands that wait
    longer than they may."""
    for folder, where in loader.mpaths:
        if not os.path.isdir(folder) and not loader.passed & (loader.opensips["modules"] or loader.passed):
            loader.note(where, f"mpath: there is no folder {folder}", logging.ERROR)
    most_ms = loader.own.settings["handler_timeout"]
    for command in registry.commands.values():
        delay_ms = getattr(command.function, "mi_delay_ms", 0)
        if command.timed and delay_ms > most_ms:
            text = f'command "{command.name}" waits {delay_ms} ms, but handler_timeout ends it after {most_ms}'
            loader.note((command.path, command.line), text, logging.ERROR)


###############################################################################
# -c
###############################################################################


def report(setup: Any) -> int:
    """Print what a check says of a configuration that could be loaded; returns the exit status. It makes no log file."""
    path = setup.own["log_file"]
    place = path if path and os.path.exists(path) else os.path.dirname(path or "") or "."
    if path and (os.path.isdir(path) or not os.access(place, os.W_OK)):
        setup.notes.append((logging.ERROR, f"log_file {path} cannot be opened for writing"))
    for level, text in setup.notes:
        print(f"{logging.getLevelName(level)}: {text}")
    worst = max([level for level, _ in setup.notes], default=0)
    print(f"{setup.path}: {'see the errors above' if worst >= logging.ERROR else 'OK'}"
          + (", with the warnings above" if worst == logging.WARNING else ""))
    return mi.EXIT_CONFIG if worst >= logging.ERROR else mi.EXIT_OK
