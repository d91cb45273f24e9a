"""gateway -- `midatagram.py gateway --to ADDRESS -s SOCKET` serves a socket in front of another server, without a file."""
from __future__ import annotations

import midatagram as mi


def main(argv: list[str]) -> int:
    """Serve as the options say, with the module upstream; returns the exit status."""
    parser = mi.server_parser()
    parser.prog, parser.description = "midatagram.py gateway", "Forward all commands to another server. See docs/gateway.md."
    parser.add_argument("--to", metavar="ADDRESS", action="append", required=True,
                        help="forward to this server: [NAME]ADDRESS[;KEY=VALUE...], where ADDRESS is a UNIX path or "
                             'udp:HOST:PORT, as in modparam("upstream", "server", ...). For several servers, repeat --to with a '
                             "[NAME] each; the first one is the default")
    options = parser.parse_args(argv)
    places = [place if place.startswith("[") else f"[server]{place}" for place in options.to]
    options.more = [mi.Directive("loadmodule", ("upstream.so",), "--to", 0),
                    *(mi.Directive("modparam", ("upstream", "server", place), "--to", 0) for place in places)]
    return mi.serve(options)
