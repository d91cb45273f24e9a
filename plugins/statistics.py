"""statistics -- the statistics of a script, which OpenSIPS' module of that name declares.

No script runs here: lab_count of lab_sip moves them.
"""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips_base")


def variable(value) -> tuple[str, bool]:
    """Converter: `NAME[/no_reset]` to the name and whether it can be reset."""
    name, *flags = [part.strip() for part in mi.string(value).split("/")]
    if not name or {flag.lower() for flag in flags} - {"no_reset"}:
        raise ValueError('takes "NAME", "NAME/no_reset" or "GROUP:NAME"')
    return name, not flags


def names(value) -> tuple:
    """Converter: names with commas between them."""
    return tuple(name.strip() for name in mi.string(value).split(",") if name.strip())


PARAMS = [
    mi.Param("variable", (), variable, "a statistic in the group script: NAME[/no_reset]; GROUP:NAME of stat_groups is in that "
             "group as well", repeat=True),
    mi.Param("stat_groups", (), names, "groups of statistics, comma-separated"),
    *opensips.without_effect("stat_series_profile"),
]


STATS = opensips.SIP_STATS


def init(ctx):
    """Declare the statistics: the last one first, as OpenSIPS lists them."""
    for name, resettable in reversed(dict(ctx.param("variable")).items()):
        group, _, rest = name.partition(":")
        if rest and group in ctx.param("stat_groups"):  # a script that counts `GROUP:NAME` makes it
            ctx.own.stats.append(mi.Stat(rest, "of the script", group, resettable))
        ctx.own.stats.append(mi.Stat(name, "of the script", "script", resettable))
