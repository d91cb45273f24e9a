"""pike -- the IPs that are blocked, as OpenSIPS' module shows them.

No traffic is watched here: lab_block of lab_sip blocks an IP. It is a key of the store.
"""
from __future__ import annotations

import ipaddress

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE = "pike"  # IP -> BLOCKED, or KNOWN for one that is blocked no more
BLOCKED, KNOWN = "blocked", "known"

PARAMS = [
    mi.Param("remove_latency", 120, mi.integer(1), "how long pike remembers an IP after it is unblocked, seconds"),
    *opensips.without_effect("check_route pike_log_level reqs_density_per_unit sampling_time_unit"),
]
EVENTS = [mi.Event("E_PIKE_BLOCKED", "an IP is blocked")]


def take_in(view: dict, ip: str, value: str | None) -> None:
    """Keep the IPs in a view, in the order in which they were blocked first."""
    if value is None:
        view.pop(ip, None)
    else:
        view[ip] = value


def in_order(ips: list) -> list:
    """IPs in the order of the original's tree: by their first byte, then the newest branch of each byte first."""
    oldest: dict[bytes, int] = {}  # where the first IP of a branch is
    for at, ip in enumerate(ips):
        for length in range(2, len(ip.packed) + 1):
            oldest.setdefault(ip.packed[:length], at)
    return sorted(ips, key=lambda ip: (ip.packed[0], *[-oldest[ip.packed[:length]] for length in range(2, len(ip.packed) + 1)]))


@opensips.command
def pike_list(ctx):
    """Show the IPs that are blocked."""
    view = ctx.view(SPACE, take_in)
    opensips.check_size(ctx, [*view.values()].count(BLOCKED), len("1.1.1.1\n"))
    blocked = [str(ip) for ip in in_order([*map(ipaddress.ip_address, view)]) if view[str(ip)] == BLOCKED]
    return opensips.reply(ctx, {"IPs": blocked}, depends=(SPACE,))


@opensips.command
def pike_rm(ctx, ip):
    """Unblock an IP."""
    try:
        key = str(ipaddress.IPv4Address(opensips.text(ctx, "ip", ip)))
    except ValueError:
        raise mi.Error(500, "Bad IP") from None

    def step(value: str | None) -> str:
        if value is None:
            raise mi.Error(404, "Match not found")
        if value == KNOWN:
            raise mi.Error(400, "IP not blocked")
        return KNOWN

    ctx.store.change(SPACE, key, step, ctx.param("remove_latency"))
    return mi.Reply()


def block(ctx, ip: str) -> None:
    """Block an IP; mi.Error if it is none."""
    try:
        key = str(ipaddress.ip_address(ip))
    except ValueError:
        raise mi.Error(400, "Bad IP") from None
    ctx.store.put(SPACE, key, BLOCKED)
    opensips.raise_event(ctx, "E_PIKE_BLOCKED", ip=key)
