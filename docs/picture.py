#!/usr/bin/env python3
"""picture -- draws docs/picture.svg: clients, sockets, attendant, children, plug-ins and upstream.

    docs/picture.py           write the file
    docs/picture.py --check   write nothing; exit status 1 when the file is not what would be written
"""

import pathlib
import sys
from typing import NamedTuple
from xml.sax.saxutils import escape

PICTURE = pathlib.Path(__file__).resolve().with_name("picture.svg")
WIDTH, HEIGHT, LINE = 880, 350, 17  # pixels


class Box(NamedTuple):
    """A box with its place and size in pixels, a title, and lines below it."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple = ()
    kind: str = "box"


CLIENTS = Box(10, 20, 170, 84, "clients of 2.x", ("scripts, panels,", "exporters: text"))
NEW_CLIENTS = Box(10, 130, 170, 84, "clients of 3.x and 4.x", ("opensips-cli, Python:", "JSON-RPC"))
SUBSCRIBERS = Box(10, 240, 170, 84, "subscribers", ("get events as", "datagrams"))
SERVER = Box(230, 10, 410, 330, "midatagram", (), "frame")
SOCKETS = Box(250, 76, 100, 190, "sockets", ("UNIX", "UDP"))
ATTENDANT = Box(390, 36, 230, 56, "attendant", ("starts, watches, reloads",))
BACK = Box(402, 124, 218, 84, "")
CHILDREN = Box(390, 114, 218, 84, "children", ("a pool of greenlets each;", "read, answer, send"))
PLUGINS = Box(390, 226, 110, 96, "plug-ins", ("commands", "canned replies", "lab, modules"))
STORE = Box(510, 226, 110, 96, "store", ("cache, state,", "subscriptions,", "counters"))
UPSTREAM = Box(690, 114, 180, 84, "upstream", ("OpenSIPS or Kamailio", "behind the gateway"))
KEEPER = Box(690, 30, 180, 66, "keepers", ("systemd, supervisor, cron",))
COLLECTOR = Box(690, 232, 180, 66, "collectors", ("traces: HEP, files",))
BOXES = (SERVER, CLIENTS, NEW_CLIENTS, SUBSCRIBERS, SOCKETS, ATTENDANT, BACK, CHILDREN, PLUGINS, STORE, KEEPER, UPSTREAM,
         COLLECTOR)
ARROWS = (  # from, to, in pixels; both: an arrow head at either end
    ((180, 62), (250, 120), "both"), ((180, 172), (250, 172), "both"), ((250, 230), (180, 282), ""),
    ((350, 160), (390, 160), "both"), ((505, 92), (505, 114), ""), ((445, 198), (445, 226), "both"),
    ((565, 208), (565, 226), "both"), ((620, 156), (690, 156), "both"), ((620, 196), (690, 240), ""), ((690, 64), (620, 64), ""),
)
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


def picture():
    """The lines of the picture."""
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">'
    yield "<title>Clients, sockets, attendant, children, plug-ins and upstream of midatagram</title>"
    yield f"<style>\n{STYLE}\n</style>"
    yield ('<defs><marker id="head" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
           'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z"/></marker></defs>')
    for box in BOXES:
        yield from drawn_box(box)
    for arrow in ARROWS:
        yield drawn_arrow(*arrow)
    yield "</svg>"


def main():
    """Write the file, or check it."""
    text = "\n".join(picture()) + "\n"
    if "--check" in sys.argv[1:]:
        return PICTURE.read_text() != text
    PICTURE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
