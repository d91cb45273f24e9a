"""rtpproxy -- sets of RTP proxies, enabled or not, as OpenSIPS' module shows them.

No proxy is ever asked: all are as those that do not answer, until a command says otherwise.
"""
from __future__ import annotations

import json
import re
from typing import NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE = "rtpproxy"
REPLACED = (SPACE,)  # by load(), in one step
LEAST_BYTES = 50  # of a proxy in a reply
FOR_GOOD = 2**32 - 1  # ticks, in place of the moment when a proxy is tried again
ANY_SET = 2**32 - 1
TABLE = opensips.table("rtpproxy_sockets", [0], "rtpproxy_sock=rtpp_socket_col set_id#=set_id_col")


def nodes_of(text: str) -> list[tuple[str, int]]:
    """The URLs and weights of `URL=WEIGHT URL|ADVERTISED ...`."""
    found = []
    for word in text.split():
        url, sign, weight = word.partition("=")
        digits = re.match("[-+]?[0-9]+", weight)
        found.append((url.rpartition("|")[0] or url, int(digits[0] if digits else 0) & 0xFFFFFFFF if sign else 1))
    return found


def proxy_set(value) -> tuple:
    """Converter: `SET == URL=WEIGHT URL ...` to the number of the set, or None, and its URLs and weights."""
    head, mark, rest = mi.string(value).partition("==")
    nodes = nodes_of(rest if mark else head)
    if mark and not (nodes and re.fullmatch(r"\s*[0-9]+\s*", head)):
        raise ValueError('takes "SET == URL=WEIGHT URL ..."')
    return opensips.uint(head.strip()) if mark else None, nodes


PARAMS = [
    mi.Param("rtpproxy_sock", (), proxy_set, "a set of proxies: `SET == URL=WEIGHT URL ...`", repeat=True),
    mi.Param("default_set", 0, mi.integer(0), "set of the lines without a set"),
    mi.Param("rtpproxy_disable_tout", 60, mi.integer(0), "time until a proxy is tried again, as rtpproxy_show shows it, seconds"),
    mi.Param("db_url", "", mi.string, "database with the table, instead of rtpproxy_sock: text://DIRECTORY or sqlite://FILE"),
    mi.Param("db_table", "rtpproxy_sockets", mi.string, "name of the table"),
    *opensips.columns(TABLE),
    *opensips.without_effect("""generated_sdp_media_ip generated_sdp_port_max generated_sdp_port_min nortpproxy_str
        rtpp_notify_socket rtpproxy_autobridge rtpproxy_retr rtpproxy_timeout rtpproxy_tout"""),
]
EVENTS = [mi.Event("E_RTPPROXY_STATUS", "a proxy was enabled or disabled"), mi.Event("E_RTPPROXY_DTMF", "never raised here")]


class Proxy(NamedTuple):
    """A proxy as the store has it; at: its place among all; recheck: when it is tried again, seconds since the start."""

    url: str
    at: int
    weight: int
    disabled: int
    recheck: int

    def shown(self) -> dict:
        """The proxy as 3.4 shows it."""
        return {"url": self.url, "index": self.at, "disabled": self.disabled, "weight": self.weight,
                "recheck_ticks": self.recheck}


###############################################################################
# State
###############################################################################


def read_sets(value: str | None) -> list:
    """The sets of a value of the store: pairs of a number and proxies."""
    return [(number, [Proxy(*row) for row in rows]) for number, rows in json.loads(value or "[]")]


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep the sets in a view, which is {"": sets}."""
    view[key] = read_sets(value)


def declared(ctx) -> list[tuple]:
    """The numbers of sets, and the URLs and weights of each line or row; TableError."""
    if not ctx.param("db_url"):
        return [(ctx.param("default_set") if number is None else number, nodes) for number, nodes in ctx.param("rtpproxy_sock")]
    return [(ctx.param("default_set") if row["set_id"] < 0 else row["set_id"], nodes_of(row["rtpproxy_sock"] or ""))
            for row in opensips.rows_of(ctx, *opensips.place(ctx, TABLE, "db_table"))]


def read_proxies(ctx, *, again: bool = False) -> None:
    """Take the proxies from the configuration or the table. Those that stay are enabled or not as before; again: none is, but
    sets stay, empty ones as well. TableError."""
    sets: dict[int, list] = {number: [] for number, _ in read_sets(ctx.store.get(SPACE, "") if again else None)}
    for number, nodes in declared(ctx):
        for url, weight in nodes:
            at = sum(map(len, sets.values()))
            sets.setdefault(number, []).append(Proxy(url, at, weight, 1, ctx.param("rtpproxy_disable_tout")))

    def step(value: str | None) -> str:
        old = {(number, one.url): one for number, ones in read_sets(value) for one in ones} \
            if not again and not opensips.is_reset(ctx) else {}
        return json.dumps([(number, [inherit(one, old.get((number, one.url), one)) for one in ones])
                           for number, ones in sets.items()])

    ctx.store.change(SPACE, "", step)


def inherit(new: Proxy, old: Proxy) -> Proxy:
    """A proxy with the state of the one that was in its place."""
    return new._replace(disabled=old.disabled, recheck=old.recheck)


def init(ctx):
    """Check the table."""
    if ctx.param("db_url"):
        opensips.check_tables(ctx, opensips.place(ctx, TABLE, "db_table"))


def load(ctx):
    """Take the proxies from the configuration or the table."""
    read_proxies(ctx)


def child_init(ctx):
    """Have the table before a request wants it."""
    ctx.view(SPACE, take_in)


###############################################################################
# Commands
###############################################################################


def bind_enable(request) -> list:
    """The URL, what is said of it and the set in a text request: `URL [SET] ENABLE`, what follows is ignored; mi.Error."""
    if len(request.values) < 2 and not (request.values and not request.values[0]):  # a URL that is NULL is looked at first
        raise mi.WRONG_COUNT
    url, *numbers = request.values
    return [url, *numbers[:2][::-1]] if numbers else [url, None]


@opensips.command(bind=bind_enable)
def rtpproxy_enable(ctx, url, enable, setid=...):
    """Enable (1) or disable (0) the proxy of a URL, in all sets or in one."""
    set_id = ANY_SET if setid is ... else opensips.number(ctx, "setid", setid, opensips.hexuint) & 0xFFFFFFFF
    url = opensips.text(ctx, "url", url)
    if not url:
        raise mi.BAD_PARAMETER
    on = opensips.number(ctx, "enable", enable, opensips.hexuint) != 0
    found: list[str] = []

    def step(value: str | None) -> str:
        found.clear()
        made = []
        for known, ones in read_sets(value):
            at = [place for place, one in enumerate(ones) if one.url == url and set_id in (known, ANY_SET)]
            found.extend(url for _ in at)
            made.append((known, [one._replace(disabled=int(not on), recheck=0 if on else FOR_GOOD) if place in at else one
                                 for place, one in enumerate(ones)]))
        return json.dumps(made)

    ctx.store.change(SPACE, "", step)
    if not found:
        raise mi.Error(404, "RTP proxy not found")
    for one in found:  # the original says the opposite of what it does
        opensips.raise_event(ctx, "E_RTPPROXY_STATUS", socket=one, status="inactive" if on else "active")
    return mi.Reply()


@opensips.command
def rtpproxy_show(ctx):
    """Show all sets of proxies."""
    sets = ctx.view(SPACE, take_in).get("", [])
    opensips.check_size(ctx, sum(len(ones) for _, ones in sets), LEAST_BYTES)
    return opensips.reply(ctx, [{"Set": number, "Nodes": [one.shown() for one in ones]} for number, ones in sets],
                          depends=(SPACE,))


@opensips.command(timed=False)
def rtpproxy_reload(ctx):
    """Read the table again; all proxies are as those that do not answer, and sets stay."""
    if not ctx.param("db_url"):
        raise mi.Error(400, "Bad parameter")
    with opensips.reloading(ctx, mi.Error(500, "Server Internal Error")):
        read_proxies(ctx, again=True)
    return mi.Reply()
