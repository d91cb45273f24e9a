#!/usr/bin/env python3
"""picture -- draws docs/picture.svg, the parts of a server, and docs/gateway.svg, what a gateway does with a request.

    docs/picture.py           write both files
    docs/picture.py --check   write nothing; exit status 1 when a file is not what would be written
"""

import pathlib
import sys
from typing import NamedTuple
from xml.sax.saxutils import escape

DOCS = pathlib.Path(__file__).resolve().parent
WIDTH, LINE = 880, 17  # pixels


class Box(NamedTuple):
    """A box with its place and size in pixels, a title, and lines below it."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple = ()
    kind: str = "box"


class Picture(NamedTuple):
    """A picture with its height in pixels, its boxes, and its arrows: from, to, in pixels; both: an arrow head at either end."""

    title: str
    height: int
    boxes: tuple
    arrows: tuple


SERVER = Picture(
    "Clients, sockets, attendant, children, plug-ins and upstream of midatagram", 350, (
        Box(230, 10, 410, 330, "midatagram", (), "frame"),
        Box(10, 20, 170, 84, "clients of 2.x", ("scripts, panels,", "exporters: text")),
        Box(10, 130, 170, 84, "clients of 3.x and 4.x", ("opensips-cli, Python:", "JSON-RPC")),
        Box(10, 240, 170, 84, "subscribers", ("get events as", "datagrams")),
        Box(250, 76, 100, 190, "sockets", ("UNIX", "UDP")),
        Box(390, 36, 230, 56, "attendant", ("starts, watches, reloads",)),
        Box(402, 124, 218, 84, ""),
        Box(390, 114, 218, 84, "children", ("a pool of greenlets each;", "read, answer, send")),
        Box(390, 226, 110, 96, "plug-ins", ("commands", "canned replies", "lab, modules")),
        Box(510, 226, 110, 96, "store", ("cache, state,", "subscriptions,", "counters")),
        Box(690, 30, 180, 66, "keepers", ("systemd, supervisor, cron",)),
        Box(690, 114, 180, 84, "upstream", ("OpenSIPS or Kamailio", "behind the gateway")),
        Box(690, 232, 180, 66, "collectors", ("traces: HEP, files",)),
    ), (
        ((180, 62), (250, 120), "both"), ((180, 172), (250, 172), "both"), ((250, 230), (180, 282), ""),
        ((350, 160), (390, 160), "both"), ((505, 92), (505, 114), ""), ((445, 198), (445, 226), "both"),
        ((565, 208), (565, 226), "both"), ((620, 156), (690, 156), "both"), ((620, 196), (690, 240), ""),
        ((690, 64), (620, 64), ""),
    ))
GATEWAY = Picture(
    "What a gateway does with a request: access, route, translation, and a reply in time", 270, (
        Box(210, 10, 470, 250, "midatagram gateway", (), "frame"),
        Box(10, 50, 150, 66, "text clients", ("scripts and panels", "of 2.4")),
        Box(10, 160, 150, 66, "JSON-RPC clients", ("opensips-cli, Python",)),
        Box(230, 50, 130, 84, "access", ("allow_from", "allow_command", "disable")),
        Box(380, 50, 130, 84, "route", ("by command, or", "by socket; keep:", "answered here")),
        Box(530, 50, 130, 84, "translation", ("where the dialects", "differ")),
        Box(230, 176, 280, 66, "reply", ("the server's, or 502, 503, 504 in time",)),
        Box(530, 176, 130, 66, "copies", ("trace, record",)),
        Box(720, 50, 150, 66, "main", ("OpenSIPS, the default",)),
        Box(720, 160, 150, 66, "other", ("OpenSIPS or Kamailio",)),
    ), (
        ((160, 80), (230, 80), ""), ((160, 182), (230, 118), ""), ((360, 92), (380, 92), ""), ((510, 92), (530, 92), ""),
        ((660, 84), (720, 84), "both"), ((660, 120), (720, 180), "both"), ((530, 130), (470, 176), ""),
        ((230, 192), (160, 112), ""), ((230, 216), (160, 204), ""), ((510, 209), (530, 209), ""),
    ))
PICTURES = {"picture.svg": SERVER, "gateway.svg": GATEWAY}  # file -> what it shows
STYLE = """\
text { font: 13px sans-serif; fill: #1f2328; text-anchor: middle }
.title { font-weight: bold }
.box { fill: #ffffff; stroke: #57606a }
.frame { fill: #f6f8fa; stroke: #57606a; stroke-dasharray: 5 4 }
.arrow { stroke: #0969da; stroke-width: 1.6 }
#head path { fill: #0969da }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .box { fill: #161b22; stroke: #8b949e }
  .frame { fill: #0d1117; stroke: #8b949e }
  .arrow { stroke: #58a6ff }
  #head path { fill: #58a6ff }
}"""


def drawn_box(box):
    """The elements of a box."""
    yield f'<rect class="{box.kind}" x="{box.x}" y="{box.y}" width="{box.width}" height="{box.height}" rx="6"/>'
    middle = box.x + box.width // 2
    first = box.y + 19 if box.kind == "frame" else box.y + (box.height - LINE * len(box.lines)) // 2 + 4
    for number, line in enumerate((box.title, *box.lines)):
        mark = ' class="title"' if number == 0 else ""
        yield f'<text{mark} x="{middle}" y="{first + number * LINE}">{escape(line)}</text>'


def drawn_arrow(start, end, ends):
    """The element of an arrow."""
    (x1, y1), (x2, y2) = start, end
    tail = ' marker-start="url(#head)"' if ends == "both" else ""
    return f'<line class="arrow" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" marker-end="url(#head)"{tail}/>'


def drawn(picture):
    """The lines of a picture."""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {picture.height}" role="img">'
    yield f"<title>{escape(picture.title)}</title>"
    yield f"<style>\n{STYLE}\n</style>"
    yield ('<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
           'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z"/></marker></defs>')
    for box in picture.boxes:
        yield from drawn_box(box)
    for arrow in picture.arrows:
        yield drawn_arrow(*arrow)
    yield "</svg>"


def main():
    """Write the files, or check them."""
    texts = {DOCS / name: "\n".join(drawn(picture)) + "\n" for name, picture in PICTURES.items()}
    if "--check" in sys.argv[1:]:
        return int(any(not path.exists() or path.read_text() != text for path, text in texts.items()))
    for path, text in texts.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
