"""text_dialect -- what clients do in it: midatagram.write_request, and read_tree, which reads the MI tree of a reply."""
from __future__ import annotations

import re
from collections.abc import Iterable

import midatagram as mi


def write_request(name: str, arguments: Iterable[tuple]) -> bytes:
    """The text request that reads back as this command and these (name, value) pairs; ValueError if none can."""
    request = mi.encode(f":{name}:\n" + "".join(mi.write_argument(*pair) for pair in arguments))
    if mi.first_line(name) is None:
        raise ValueError(f"a command's name cannot hold NUL, and a colon only as MODULE:NAME: {name!r}")
    if len(request) > mi.LIMIT:
        raise ValueError(f"the request has {len(request)} bytes, {mi.LIMIT} is the most")
    return request


def read_tree(text: str) -> list[mi.Node]:
    """The MI tree that a text reply shows: a TAB per level, `NAME:: VALUE`, attributes behind a second blank."""
    levels: list[list] = [[]]
    for line in text.split("\n") if text else []:
        bare = line.lstrip("\t")
        name, colons, rest = bare.partition(":: ")
        attributes = []
        if colons and rest.startswith(" "):
            attributes = [tuple(item.split("=", 1)) for item in re.split(r" (?=[^\s=]+=)", rest[1:]) if "=" in item]
        value = None if attributes else (rest or None) if colons else bare
        depth = min(len(line) - len(bare), len(levels) - 1)
        del levels[depth + 1:]
        levels.append([])
        levels[depth].append(mi.Node(name if colons else None, value, tuple(attributes), levels[-1]))
    return levels[0]
