"""text_dialect -- reads the MI tree that a text reply shows: midatagram.read_tree."""
from __future__ import annotations

import re

import midatagram as mi


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
