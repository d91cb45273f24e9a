"""verify -- asks a live server what a file of canned replies answers, and prints what differs: `midatagram.py verify`."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from typing import Any, NamedTuple

import configobj

import midatagram as mi

record = mi.import_plugin(os.path.join(os.path.dirname(__file__), "record.py"))


BY_CHANCE = {"action", "after", "every", "probability"}  # keys of cases that do not answer as they are written


class Question(NamedTuple):
    """A request that a file answers: its name and values, the requests in the dialects in which it does, and the places whose
    values may differ."""

    words: tuple[str, ...]
    requests: dict[str, bytes]
    varies: set[str]


def questions(path: str) -> tuple[list[Question], int]:
    """The requests of a file, each as often as its case says, and how many cases are no such. ConfigError."""
    try:
        with open(path, "rb") as file:
            content = configobj.ConfigObj(mi.decode(file.read()).split("\n"), interpolation=False, raise_errors=True)
    except OSError as error:
        raise mi.ConfigError(path, 0, f"cannot be read: {error.strerror}") from None
    except configobj.ConfigObjError as error:
        raise mi.ConfigError(path, error.line_number or 0, str(error)) from None
    asked: list[Question] = []
    known: dict[tuple, Question] = {}
    passed = 0
    for name in content.sections:
        for section, comments in cases_of(content, name):
            values = values_of(section.get("arguments", []))
            if values is None or name.startswith(":") or BY_CHANCE.intersection(section.scalars):
                passed += 1
                continue
            words, dialects = (name, *values), (section["dialect"],) if "dialect" in section else ("text", "jsonrpc")
            question = known.setdefault((words, dialects), Question(words, requests_of(words, dialects, comments), set()))
            question.varies.update(mi.decode(record.unescaped(line.partition("varies: ")[2])) for line in comments)
            asked += int(section.get("times", 1)) * [question]
    return asked, passed


def requests_of(words: tuple[str, ...], dialects: tuple[str, ...], comments: list[str]) -> dict[str, bytes]:
    """The requests in these dialects: those of the comments, else the values by position, where they can be written so."""
    requests = {}
    for dialect in dialects:
        with contextlib.suppress(ValueError):
            requests[dialect] = record.request_for(dialect, words[0], words[1:])
    for line in comments:
        _, found, text = line.partition("asked: ")
        if found:
            request = record.unescaped(text)
            requests["text" if request.startswith(b":") else "jsonrpc"] = request
    return requests


def cases_of(content: Any, name: str) -> Iterator[tuple[Any, list[str]]]:
    """The cases of a command with the comments before them: its sections, and its own keys if there are any."""
    own = content[name]
    for case in own.sections:
        yield own[case], own.comments[case]
    if set(own.scalars) - {"help", "replace"} or not own.sections:
        yield own, content.comments[name]


def values_of(patterns: list[str] | str) -> list[str] | None:
    """The only arguments that fit some patterns; None if others may do so, too."""
    patterns = [patterns] if isinstance(patterns, str) else patterns
    values = [re.sub(r"\\x(..)|\\u(.{4})|\\U(.{8})|\\(\W)", plain, pattern) for pattern in patterns]
    written = [record.literal(value).replace("\\.", ".") for value in values]
    return values if written == [pattern.replace("\\.", ".") for pattern in patterns] else None


def plain(match: re.Match) -> str:
    """The character that an escape of a pattern means."""
    return match[4] or chr(int(match[1] or match[2] or match[3], 16))


def main(argv: list[str]) -> int:
    """`midatagram.py verify`: 0 if the server answers as the file does, 1 if it does not."""
    options = verify_parser().parse_args(argv)
    asked, passed = questions(options.recording)
    server = record.Live(record.call.place_of(options), options.timeout)
    different = count = 0
    with record.replaying(options.recording) as trial:
        for question in asked:
            for dialect, request in question.requests.items():
                if dialect not in server.names:
                    continue
                lines = compared(server, request, trial.ask(request), question.varies)
                count += 1
                if lines:
                    different += 1
                    print("\n  ".join([f"{shlex.join(question.words)} ({dialect})", *lines]))
    more = f"; {passed} cases fit more than one request, or apply by chance, and are not asked" if passed else ""
    print(f"{count} asked, {different} different{more}")
    return mi.EXIT_CRASH if different or not count else mi.EXIT_OK


def compared(server: Any, request: bytes, wanted: bytes, varies: set[str]) -> list[str]:
    """What differs between the reply that a file has and that of a server, a line for each place."""
    try:
        reply, _ = server.send(request)
    except OSError as error:
        return [f"no reply: {error.strerror or error}"]
    was, now = record.values_of(wanted), record.values_of(reply)
    places = [place for place in dict.fromkeys([*was, *now]) if place not in varies and was.get(place) != now.get(place)]
    if not places and was.keys() == now.keys() and list(was) != list(now):
        return ["the order differs"]
    return [f"{place}: {shown(was, place)} in the file, {shown(now, place)} from the server" for place in places]


def shown(values: dict[str, Any], place: str) -> str:
    """A value as it is printed."""
    return "absent" if place not in values else "nothing" if values[place] is None else f"{values[place]}"


def verify_parser() -> argparse.ArgumentParser:
    """The command line of `verify`."""
    parser = argparse.ArgumentParser(
        "midatagram.py verify", description="Send a server the requests of a file of canned replies, and print what differs.",
        epilog="Exit status: 0 all replies are the same, 1 some differ, 2 usage, 3 no reply, 78 the file has no canned replies.")
    record.call.add_server(parser.add_argument)
    parser.add_argument("recording", metavar="FILE.conf", help="file of canned replies")
    return parser
