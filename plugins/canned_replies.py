"""canned_replies -- reads files of replies that are written down beforehand: plugins/NAME.conf.

A file is in ConfigObj's format and is checked against a specification. Each section becomes a tagged function, so that its
command differs from a Python one in nothing.
"""

import pathlib
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import configobj

import midatagram as mi

try:
    from configobj.validate import Validator
except ImportError:  # before configobj 5.0.9
    from validate import Validator

CANNED_KEYS = """
arguments = force_list(default=None)
code = integer(min=100, max=999, default=200)
reason = string(default="OK")
reply = string(default="")
json = string(default="")
delay = integer(min=0, max=86400000, default=0)
"""
CANNED_SPEC = f'[__many__]\nhelp = string(default=""){CANNED_KEYS}[[__many__]]{CANNED_KEYS}'


class Canned(NamedTuple):
    """One canned reply: the patterns of its arguments (None: any arguments), its delay in ms."""

    patterns: list[re.Pattern] | None
    reply: mi.Reply
    delay_ms: int

    def fits(self, values: tuple) -> bool:
        """Whether the arguments match the patterns, one each."""
        return self.patterns is None or (len(values) == len(self.patterns) and all(
            pattern.fullmatch(value) for pattern, value in zip(self.patterns, values)))


def read_file(path: str) -> mi.Module:
    """A file of canned replies as a Module; ConfigError."""
    text = mi.read_source(path)
    spec = configobj.ConfigObj(CANNED_SPEC.splitlines(), interpolation=False, list_values=False, _inspec=True)
    try:
        content = configobj.ConfigObj(text.split("\n"), configspec=spec, interpolation=False, raise_errors=True)
    except configobj.ConfigObjError as error:
        what = str(error).split(" at line")[0]
        form = "; the form is KEY = VALUE, and several lines stand between ''' and '''" if "Invalid line" in what else ""
        raise mi.ConfigError(path, error.line_number or 0, f"{what}{form}") from None
    check_canned(content, path, text)
    commands = {name: canned_command(content[name], path, text) for name in content.sections}
    module = mi.Module(pathlib.Path(path).stem, commands, path)
    module.notes = [note for name in content.sections for note in doubts(content[name], text)]
    return module


def doubts(section: Any, text: str) -> Iterator[tuple[int, str]]:
    """What will not work as it is meant: (line, text). Blanks that indent, and cases that an earlier one leaves nothing."""
    cases = cases_of(section)
    for case in cases:
        for line in case["reply"].split("\n"):
            if re.match("\t* +[^ ]", line):
                yield (mi.line_of(text, line) or mi.line_of(text, "reply"),
                       f"{case.name}: a line of the reply is indented with blanks; each level takes one TAB")
    for nth, late in enumerate(cases):
        if any(case["arguments"] in (None, late["arguments"]) for case in cases[:nth]):
            line = mi.line_of(text, f"[[{late.name}") or mi.line_of(text, f"[{late.name}]")
            yield line, f"{late.name} is never reached: an earlier case fits all that it fits"


def cases_of(section: Any) -> list:
    """The sections of a command's cases; its own keys, if it has any or no cases, are the last one."""
    cases = [section[name] for name in section.sections]
    own = set(section.scalars) - set(section.defaults) - {"help"}
    return cases if cases and not own else [*cases, section]


def check_canned(content: Any, path: str, text: str) -> None:
    """Check the values of a ConfigObj against its specification, then its keys; ConfigError."""
    results = content.validate(Validator(), preserve_errors=True)
    for sections, key, problem in configobj.flatten_errors(content, results):
        form = f"; the form is {key} = NUMBER" if key in ("code", "delay") else ""
        raise mi.ConfigError(path, mi.line_of(text, key or f"[{sections[-1]}"), f"{'/'.join(sections)}: {key}: {problem}{form}")
    for sections, name in configobj.get_extra_values(content):
        kind, keys = "section" if sections else "command", content.configspec["__many__"].scalars
        raise mi.ConfigError(path, mi.line_of(text, name), f'"{name}" is no key of a {kind}; '
                                                     f"keys are {', '.join(keys)}{mi.nearest(name, keys)}")


def canned_command(section: Any, path: str, text: str) -> Callable:
    """The handler of a command: the first case whose patterns fit answers. ConfigError."""
    cases = [canned_case(case, path, text) for case in cases_of(section)]

    def answer(ctx, *arguments):
        case = next((case for case in cases if case.fits(arguments)), None)
        if case is None:
            counts = [len(case.patterns or ()) for case in cases]
            raise mi.BAD_PARAMETER if len(arguments) in counts else mi.WRONG_COUNT
        if case.delay_ms:
            time.sleep(case.delay_ms / 1000)
        return case.reply

    function: Any = mi.command(section.name, help=section["help"], pure=not any(case.delay_ms for case in cases),
                       json=mi.JsonForm(nameless=True))(answer)
    function.mi_line = mi.line_of(text, f"[{section.name}]")
    function.mi_delay_ms = max(case.delay_ms for case in cases)
    return function


def canned_case(section: Any, path: str, text: str) -> Canned:
    """One case of a command; its text becomes a node as it is, so the wire has just these bytes. ConfigError."""
    arguments = section["arguments"]
    try:
        patterns = None if arguments is None else [re.compile(pattern, re.S) for pattern in arguments]
    except re.error as error:
        line = mi.line_of(text, "arguments")
        raise mi.ConfigError(path, line, f"arguments of {section.name}: not a pattern: {error}") from None
    body = section["reply"].removeprefix("\n").removesuffix("\n")
    try:
        result = mi.read_json(mi.encode(section["json"])) if section["json"] else None
    except mi.ParseError as error:
        raise mi.ConfigError(path, mi.line_of(text, "json"), f"json of {section.name}: not JSON: {error}") from None
    if result is None and section["code"] // 100 == 2:
        result = mi.json_tree(mi.read_tree(body), mi.JsonForm(), "OK")
    nodes = (mi.Node(None, body),) if body else ()
    return Canned(patterns, mi.Reply(section["code"], section["reason"], nodes, result=result), section["delay"])
