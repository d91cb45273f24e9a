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


def json_string(body: str) -> str:
    """What stands between the quotes, without its escapes."""
    return json.loads(f'"{body}"', strict=False) if "\\" in body else body


SCALARS: dict[str, Callable] = {
    "string": json_string, "number": json_number,
    "word": {"null": None, "true": True, "false": False}.get}


def matched(pattern: re.Pattern, text: str, at: int, what: str) -> re.Match:
    """What a pattern fits at a place; ParseError."""
    match = pattern.match(text, at)
    if not match:
        raise mi.ParseError(f"no {what} at {at}")
    return match


def read(text: str):
    """Read the JSON value that `text` begins with, as cJSON takes it, at any depth."""
    closings, starts = [""], [0]  # of the value itself and each open array and object: its closing bracket, where its items begin
    items: list[Any] = []  # of all that is open: values, and before those of an object their names
    at = 0
    while True:
        if closings[-1] == "}":
            match = matched(NAME, text, at, "name of a member")
            items.append(json_string(match["string"]))
            at = match.end()
        match = matched(VALUE, text, at, "JSON value")
        kind, at = str(match.lastgroup), match.end()
        if kind == "opening":
            opened = [CLOSING[mark] for mark in match[kind] if mark in CLOSING]
            closings += opened
            starts += [len(items)] * len(opened)
            if not text.startswith(closings[-1], at):
                continue
            value: Any = [] if closings.pop() == "]" else {}
            starts.pop()
            at += 1
        else:
            value = SCALARS[kind](match[kind])
        while True:  # the value is complete and belongs to the innermost open one, which may be complete in turn
            items.append(value)
            closing = closings[-1]
            if not closing:
                return value
            after = AFTER.match(text, at)
            if not after or after["mark"] not in (closing, ","):
                raise mi.ParseError(f"neither a comma nor {closing} at {at}")
            at = after.end()
            if after["mark"] == ",":
                break
            closings.pop()
            value = items[starts[-1]:]
            del items[starts.pop():]
            if closing == "}":
                value = mi.json_object(list(zip(value[::2], value[1::2])))
