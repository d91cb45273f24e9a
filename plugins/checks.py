"""checks -- what is most likely a mistake in a configuration, and in a plug-in: a command that answers nothing; and `-c`."""
from __future__ import annotations

import builtins
import collections
import contextlib
import dis
import errno
import inspect
import logging
import os
import pathlib
import socket
import stat
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
    if script[0].value == "set" and len(script) > 1:  # as other programs have it; see passed()
        yield "set", script[1].value
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


def passed(loader: mi.Loader, first: str, *calls: tuple) -> tuple[str, str]:
    """What to say of a statement that is passed over, by its first word and what calls() has of it, and a hint of what it may be
    meant to be where it is likely a mistake."""
    if first in ("listen", "socket"):
        return f"{first}: not opened here; OpenSIPS' modules, such as dispatcher and tm, take it for a socket of the server", ""
    text = f"{first}: passed over, it is not for midatagram"
    name = calls[0][1] if calls and calls[0][0] == "set" else {"children": "children_count"}.get(first, first)
    module = next((module.name for module in (loader.mi, loader.own) if name in module.params), "")
    ours = f'; for the server it is modparam("{module}", "{name}", VALUE)' if module else ""
    if first in loader.opensips["words"] and first != "set":
        return text + ours, ""
    return text, ours or mi.nearest(first, mi.FORMS, 0.85)


def check_parameter(loader: mi.Loader, module: mi.Module, where: mi.Where, name: str) -> None:
    """ConfigError for a parameter that is one of the other of our two modules, or a global."""
    others = {loader.mi: loader.own, loader.own: loader.mi}
    if module not in others or name in module.params:
        return
    other = others[module]
    if name in other.params:
        raise mi.ConfigError(*where, f'{name} is a parameter of {other.name}: modparam("{other.name}", "{name}", ...)')
    if name in mi.FORMS:
        raise mi.ConfigError(*where, f"{name} is no parameter but a global, outside of modparam: {mi.FORMS[name]}")


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


def misspelt(loader: mi.Loader) -> str:
    """The line that may be meant to name the socket, for a configuration without one; empty where there is none."""
    wanted = 'did you mean "mi_datagram"', 'did you mean "modparam"'
    return next((f"; {text}" for _, text in loader.notes if any(words in text for words in wanted)), "")


def other_module(loader: mi.Loader, file: str, name: str) -> str:
    """What else loadmodule may be meant to name where there is no plug-in: one in a folder that is not searched, or of another
    name; empty for a module of OpenSIPS."""
    known, near = loader.opensips["modules"], os.path.dirname(os.path.abspath(loader.path))
    lost = mi.find_plugin(os.path.basename(file), [near, os.path.join(near, "plugins")])
    if lost and lost != os.path.abspath(loader.path):
        folder = os.path.dirname(lost)
        return f'; {lost} is in no folder that is searched: -p {folder}, or mpath="{folder}/" before this line'
    if name in known and file.endswith(".so"):
        return ""
    paths = [path for folder in loader.folders for suffix in mi.SUFFIXES for path in pathlib.Path(folder).glob(f"*{suffix}")]
    hint = mi.nearest(name, {*loader.modules, *[path.stem for path in paths], *known})
    if not known or not file.endswith(".so"):
        return hint
    return f"{hint or '; OpenSIPS has no such module either'}; searched: {', '.join(loader.folders)}"


###############################################################################
# Commands
###############################################################################


def check_commands(loader: mi.Loader, registry: mi.Registry) -> None:
    """ConfigError for the first command of which it can be seen that it cannot be bound, or answers nothing; a note for what
    fails for another reason."""
    for command in dict.fromkeys([*registry.known.values(), *registry.catch_alls]):
        check_recipes(command)
        if inspect.iscoroutinefunction(command.written):
            raise command.refusal("is an async def, which nobody awaits; write def, gevent lets others have their turn")
        if command.name != "*" and returns_nothing(command.written):
            raise command.refusal("returns nothing; it must return a Reply")
    note_failures(loader, registry)


def check_recipes(command: mi.Command) -> None:
    """ConfigError when the JSON recipes of a command do not fit its arguments."""
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
    longer than they may; and what modules have doubts of."""
    for module in loader.modules.values():
        for where, text in vars(module)["doubts"]:
            place = where or loader.loaded.get(module.name, ("-p", 0))
            if place[0] != "-p":  # which loads all that there are
                loader.note(place, text)
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
# The command line
###############################################################################


def other_than(name: str) -> str:
    """What to write in place of `midatagram.py NAME`, which is no tool: -f for a file, or the name of one of the tools."""
    if "." in name or "/" in name or os.path.exists(name):
        return f"; a configuration is read with -f: midatagram.py -f {name}"
    tools = sorted(path.stem for path in pathlib.Path(mi.BESIDE).glob("[!_]*.py") if "\ndef main(argv" in path.read_text("utf-8"))
    return f"; the tools are {', '.join(tools)}{mi.nearest(name, tools)}"


###############################################################################
# -c
###############################################################################


def unwritable(setup: mi.Setup) -> Iterator[str]:
    """What keeps a start from making the files that a configuration names, as far as can be seen without opening one."""
    for place in [place for place in setup.listeners if place.family == socket.AF_UNIX]:
        if why := why_no_socket(place.spot):
            yield f"{mi.ConfigError(*place.lines[0], f'socket {place.spot} {why}')}"
        elif os.geteuid() and place.uid not in (-1, os.geteuid()) and not os.path.exists(place.spot):
            yield f"{mi.refusal(place, OSError(errno.EPERM, os.strerror(errno.EPERM)))}"
    for name in ("log_file", "store_file"):
        path = setup.own[name]
        if why := path and (why_no_folder(path) or why_no_file(path)):
            yield f"{mi.ConfigError(*setup.lines[name][-1], f'{name} {path} {why}')}"
        elif path and name == "store_file" and (why := mi.shared("store_file", setup.path, "for store_file, ").why_not(setup)):
            yield why


def why_no_socket(path: str) -> str:
    """What keeps a UNIX socket from being bound, empty for nothing."""
    if not os.path.lexists(path):
        return why_no_folder(path)
    is_socket = stat.S_ISSOCK(os.lstat(path).st_mode)
    return "" if is_socket else "is something else, which is left as it is; remove it or choose another path"


def why_no_file(path: str) -> str:
    """What keeps a file from being opened for writing, empty for nothing."""
    if os.path.isdir(path):
        return "is a folder; name a file in it"
    return "" if not os.path.exists(path) or os.access(path, os.W_OK) else f"cannot be opened for writing by uid {os.geteuid()}"


def why_no_folder(path: str) -> str:
    """What keeps a file that is not there yet from being made in its folder, empty for nothing."""
    folder = os.path.dirname(os.path.abspath(path))
    if not os.path.isdir(folder):
        return f"has a file where its folder should be: {folder}" if os.path.exists(folder) \
            else f"has no folder; mend: mkdir -p {folder}"
    can_make = os.path.exists(path) or os.access(folder, os.W_OK | os.X_OK)
    return "" if can_make else f"cannot be made: uid {os.geteuid()} may not write {folder}; choose another user or folder"


def report(setup: Any) -> int:
    """Print what a check says of a configuration that could be loaded; returns the exit status. It makes no log file."""
    setup.notes.extend([(logging.ERROR, text) for text in unwritable(setup)])
    for level, text in setup.notes:
        print(f"{logging.getLevelName(level)}: {text}")
    worst = max([level for level, _ in setup.notes], default=0)
    print(f"{setup.path}: {'see the errors above' if worst >= logging.ERROR else 'OK'}"
          + (", with the warnings above" if worst == logging.WARNING else ""))
    return mi.EXIT_CONFIG if worst >= logging.ERROR else mi.EXIT_OK
