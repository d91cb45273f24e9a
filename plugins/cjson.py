"""cjson -- reads what the standard library refuses, but the parser of OpenSIPS 3.x, an early cJSON, takes for JSON.

    white space is any byte from 1 to 32
    number  = what C's strtod takes, once it begins with "-" or a digit
    string  = any bytes, control characters and broken UTF-8 as well; only the
              escapes of JSON, and of \\u no NUL and no half of a surrogate pair
    object  = of a repeated name the first counts
"""
from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import midatagram as mi

STRING = (r'"(?P<string>[^"\\]*(?:\\(?:["\\/bfnrt]|u(?!0000|[dD][89a-fA-F])[0-9a-fA-F]{4}'
          r'|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})[^"\\]*)*)')
VALUE = re.compile(r"(?P<opening>(?:\[[\x01-\x20]*)+|{[\x01-\x20]*)|"  # what may open at once
                   + STRING + r'(?:"|\Z)'  # the closing quote may be missing at the very end
                   r"|(?P<number>(?=[-0-9])-?(?:0[xX][0-9a-fA-F]{1,16}"  # 64 bits of hexadecimal are plenty
                   r"|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|(?i:inf(?:inity)?)))"
                   r"|(?P<word>null|true|false)")
NAME = re.compile(STRING + r'"[\x01-\x20]*:[\x01-\x20]*')
AFTER = re.compile(r"[\x01-\x20]*(?P<mark>[,\]}])[\x01-\x20]*")  # what may follow a value
CLOSING = {"[": "]", "{": "}"}


def json_number(text: str):
    """An int, or a float for a fraction, an infinity or an integer of thousands of digits."""
    if "x" in text.lower():
        return int(text, 16)
    try:
        return int(text)
    except ValueError:  # no integer, or more digits than int() takes, since its time grows with their square
        return float(text)


SCALARS: dict[str, Callable] = {
    "string": lambda body: json.loads(f'"{body}"', strict=False), "number": json_number,
    "word": {"null": None, "true": True, "false": False}.get}


def read(text: str):
    """Read the JSON value that `text` begins with, as cJSON takes it, at any depth."""
    levels: list[tuple] = [("", [], [])]  # the value itself, and the open arrays and objects: (closing bracket, names, values)
    at = 0
    while True:
        if levels[-1][0] == "}":
            match = NAME.match(text, at)
            if not match:
                raise mi.ParseError(f"no name of a member at {at}")
            levels[-1][1].append(SCALARS["string"](match["string"]))
            at = match.end()
        match = VALUE.match(text, at)
        if not match:
            raise mi.ParseError(f"no JSON value at {at}")
        kind, at = str(match.lastgroup), match.end()
        if kind == "opening":
            levels += [(CLOSING[mark], [], []) for mark in match[kind] if mark in CLOSING]
            if not text.startswith(levels[-1][0], at):
                continue
            value: Any = [] if levels.pop()[0] == "]" else {}
            at += 1
        else:
            value = SCALARS[kind](match[kind])
        while True:  # the value is complete and belongs to the innermost open one, which may be complete in turn
            closing, names, values = levels[-1]
            values.append(value)
            if not closing:
                return value
            after = AFTER.match(text, at)
            if not after or after["mark"] not in (closing, ","):
                raise mi.ParseError(f"neither a comma nor {closing} at {at}")
            at = after.end()
            if after["mark"] == ",":
                break
            levels.pop()
            value = mi.json_object(list(zip(names, values))) if names else values
