"""canned_replies -- reads files of replies that are written down beforehand: plugins/NAME.conf.

A file is in ConfigObj's format and is checked against a specification. Each section becomes a tagged function, so that its
command differs from a Python one in nothing.
"""

import pathlib
import random
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import configobj

import midatagram as mi

try:
    from configobj.validate import Validator, VdtTypeError, VdtValueTooBigError
except ImportError:  # before configobj 5.0.9
    from validate import Validator, VdtTypeError, VdtValueTooBigError

CANNED_KEYS = """
arguments = force_list(default=None)
code = integer(min=0, max=4294967295, default=200)
reason = string(default="OK")
reply = string(default="")
json = string(default="")
raw = string(default=None)
template = boolean(default=False)
delay = range_ms(default="0")
dialect = option("text", "jsonrpc", default=None)
times = integer(min=1, default=None)
"""
CANNED_SPEC = f'[__many__]\nhelp = string(default="")\nreplace = boolean(default=no){CANNED_KEYS}[[__many__]]{CANNED_KEYS}'


class Canned(NamedTuple):
    """One canned reply: the patterns of its arguments (None: any arguments), its dialect (None: both), its delay in ms from
    and to, and how many times it is given (None: always). raw(id): the datagram for a request with that id."""

    name: str
    patterns: list[re.Pattern] | None
    reply: mi.Reply
    delay_ms: tuple[int, int]
    dialect: str | None
    times: int | None
    raw: Callable[[Any], bytes] | None

    @property
    def constant(self) -> bool:
        """Whether it is the same each time for the same request."""
        return self.delay_ms[1] == 0 and (self.dialect, self.times, self.raw) == (None, None, None)

    def fits(self, request: mi.Request, values: tuple) -> bool:
        """Whether the dialect is right, and the arguments match the patterns, one each."""
        return self.dialect in (None, request.dialect) and (
            self.patterns is None or (len(values) == len(self.patterns) and all(
                pattern.fullmatch(value) for pattern, value in zip(self.patterns, values))))

    def is_left(self, ctx: Any) -> bool:
        """Count a use, in all children together; whether it is one of the times."""
        most = self.times
        return most is None or int(ctx.store.change("canned_replies", f"{ctx.request.name}/{self.name}",
                                                    lambda value: f"{min(int(value or 0), most) + 1}")) <= most


def range_ms(value: Any) -> tuple[int, int]:
    """For the Validator: milliseconds, or a range of them: 100..300. VdtTypeError, VdtValueError."""
    match = re.fullmatch(r"(\d{1,8})(?:\.\.(\d{1,8}))?", value if isinstance(value, str) else "")
    if match is None:
        raise VdtTypeError(value)
    least, most = int(match[1]), int(match[2] or match[1])
    if not least <= most <= 86400000:
        raise VdtValueTooBigError(value)
    return least, most


def raw_reply(text: str, is_template: bool) -> Callable[[Any], bytes]:
    """What writes a whole datagram: escapes are bytes, and in a template ${id} is the request's id, $${ is ${."""
    names = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}
    parts = re.split(r"(?<!\$)\$\{id\}", text) if is_template else [text]
    written = [re.sub(rb"\\(?:x([0-9A-Fa-f]{2})|([nrt\\]))", lambda match: bytes([int(match[1], 16)]) if match[1] else
                      names[match[2].decode()].encode(), mi.encode(part.replace("$${", "${") if is_template else part))
               for part in parts]
    return lambda request_id: mi.encode(mi.json_text(request_id)).join(written)


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
    return mi.Module(pathlib.Path(path).stem, commands, path)


def check_canned(content: Any, path: str, text: str) -> None:
    """Check the values of a ConfigObj against its specification, then its keys; ConfigError."""
    results = content.validate(Validator({"range_ms": range_ms}), preserve_errors=True)
    for sections, key, problem in configobj.flatten_errors(content, results):
        form = f"; the form is {key} = NUMBER" if key in ("code", "delay") else ""
        raise mi.ConfigError(path, mi.line_of(text, key or f"[{sections[-1]}"), f"{'/'.join(sections)}: {key}: {problem}{form}")
    for sections, name in configobj.get_extra_values(content):
        kind, keys = "section" if sections else "command", content.configspec["__many__"].scalars
        raise mi.ConfigError(path, mi.line_of(text, name), f'"{name}" is no key of a {kind}; '
                                                     f"keys are {', '.join(keys)}{mi.nearest(name, keys)}")


def canned_command(section: Any, path: str, text: str) -> Callable:
    """The handler of a command: the first case whose patterns fit answers. ConfigError."""
    cases = [canned_case(section[name], path, text) for name in section.sections]
    if not cases or set(section.scalars) - set(section.defaults) - {"help", "replace"}:  # the command's own keys, after its cases
        cases.append(canned_case(section, path, text))

    def answer(ctx, *arguments):
        case = next((case for case in cases if case.fits(ctx.request, arguments) and case.is_left(ctx)), None)
        if case is None:
            counts = [len(case.patterns or ()) for case in cases]
            raise mi.BAD_PARAMETER if len(arguments) in counts else mi.WRONG_COUNT
        if case.delay_ms[1]:
            time.sleep(random.uniform(*case.delay_ms) / 1000)
        return case.reply._replace(raw=case.raw(ctx.request.id)) if case.raw else case.reply

    function: Any = mi.command(section.name, help=section["help"], pure=all(case.constant for case in cases),
                       json=mi.JsonForm(nameless=True), replace=section["replace"])(answer)
    function.mi_line = mi.line_of(text, f"[{section.name}]")
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
    raw = None if section["raw"] is None else raw_reply(section["raw"], section["template"])
    return Canned(section.name, patterns, mi.Reply(section["code"], section["reason"], nodes, result=result), section["delay"],
                  section["dialect"], section["times"], raw)
