"""domain -- the domains that a server is responsible for, as OpenSIPS' module shows them.

The table is read at the start and by domain_reload, into one key of the store.
"""
from __future__ import annotations

import json

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, BUCKETS = "domain", 128
REPLACED = (SPACE,)  # by load(), in one step
LEAST_BYTES = {"text": 1, "jsonrpc": 12}  # of a domain in a reply, besides its texts
DOMAIN = opensips.table("domain", [1, 2, 3, 4], "domain attrs?", "%s_col")

PARAMS = [
    mi.Param("db_url", "", mi.string, "database with the table: text://DIRECTORY or sqlite://FILE"),
    mi.Param("db_mode", 0, mi.integer(0), "1: the table is in memory, and the commands show it; 0: they show nothing"),
    mi.Param("domain_table", "domain", mi.string, "name of the table"),
    *opensips.columns(DOMAIN),
    *opensips.without_effect("accept_subdomain_col"),
]


def take_in(view: dict, key: str, value: str | None) -> None:
    """Keep the table in a view: its domains as they are shown."""
    view[key] = json.loads(value or "[]")


def read_domains(ctx) -> None:
    """Read the table; TableError."""
    made = []
    for row in opensips.in_turns(reversed(opensips.rows_of(ctx, *opensips.place(ctx, DOMAIN, "domain_table")))):
        name, attrs = row["domain"] or "", {"attributes": row["attrs"]} if row["attrs"] else {}
        made.append((opensips.core_hash(mi.encode(name.lower())) % BUCKETS, {"name": name, **attrs}))
    ctx.store.put(SPACE, "", json.dumps([item for _, item in sorted(made, key=lambda pair: pair[0])]))


def init(ctx):
    """Check the table."""
    if ctx.param("db_mode"):
        opensips.check_tables(ctx, opensips.place(ctx, DOMAIN, "domain_table"))


def load(ctx):
    """Read the table."""
    if ctx.param("db_mode"):
        read_domains(ctx)


def child_init(ctx):
    """Have the table before a request wants it."""
    ctx.view(SPACE, take_in)


def check_mode(ctx) -> None:
    """Refuse a command without a table in memory; mi.Error."""
    if not ctx.param("db_mode"):
        raise mi.Error(500, "DB is disabled (db_mode=0)" if opensips.is_40(ctx) else "command not activated")


@opensips.command(timed=False)
def domain_reload(ctx):
    """Read the table again."""
    check_mode(ctx)
    with opensips.reloading(ctx, mi.Error(500, "Domain table reload failed")):
        read_domains(ctx)
    return mi.Reply()


@opensips.command
def domain_dump(ctx):
    """Show the domains with their attributes."""
    check_mode(ctx)
    domains = ctx.view(SPACE, take_in).get("", [])
    texts = [text for item in domains for text in item.values()]
    labels = [" attributes="] * (len(texts) - len(domains))
    opensips.check_size(ctx, len(domains), LEAST_BYTES[ctx.request.dialect], [*texts, *labels])
    return opensips.reply(ctx, {"Domains": domains}, depends=(SPACE,))
