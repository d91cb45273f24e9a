"""registrar -- the settings and counters of OpenSIPS' registrar, which has no commands.

What a REGISTER would leave is done by usrloc's register().
"""
from __future__ import annotations

import functools

import midatagram as mi

opensips = mi.shared("opensips_base")


def thousandths(value) -> int:
    """Converter: a q times 1000; -1: none."""
    return mi.integer(-1, 1000)(value)


PARAMS = [
    mi.Param("default_expires", 3600, mi.integer(1), "lifetime of a contact without an expires, seconds"),
    mi.Param("min_expires", 60, mi.integer(0), "the shortest time a contact lasts, seconds"),
    mi.Param("max_expires", 0, mi.integer(0), "the longest time a contact lasts, seconds; 0: any"),
    mi.Param("max_contacts", 0, mi.integer(0), "maximum number of contacts of an AOR; 0: any"),
    mi.Param("default_q", -1, thousandths, "q of a contact without a q, times 1000"),
    mi.Param("case_sensitive", True, mi.boolean, "whether AORs are case-sensitive"),
    *opensips.without_effect("""append_branches attr_avp disable_gruu expires_max_deviation gruu_secret max_aor_len
        max_contact_len max_domain_len max_username_len mcontact_avp method_filtering path_mode path_use_received
        pn_ct_match_params pn_enable pn_enable_purr pn_inv_timeout pn_pnsreg_interval pn_providers pn_refresh_timeout
        pn_skip_pn_interval pn_trigger_interval realm_prefix received_avp received_param retry_after sock_hdr_name
        tcp_persistent_flag use_domain use_path"""),
]


def lifetimes(ctx, dialect: str) -> tuple[int, int, int]:
    """The default, the shortest and the longest lifetime of a contact, 0 for any: 3.4 makes them fit one another."""
    default, least, most = ctx.param("default_expires"), ctx.param("min_expires"), ctx.param("max_expires")
    if dialect == "jsonrpc":
        most = most and max(most, least)
        default = max(default, least)
        default = min(default, most or default)
    return default, least, most


def settings(ctx, dialect: str = "text") -> dict[str, int]:
    """The statistics that show parameters."""
    default, _, most = lifetimes(ctx, dialect)
    return {"max_expires": most, "max_contacts": ctx.param("max_contacts"), "default_expire": default}


STATS = [
    *opensips.SIP_STATS,
    mi.Stat("max_expires", "the parameter max_expires", read=settings),
    mi.Stat("max_contacts", "the parameter max_contacts", read=settings),
    mi.Stat("default_expire", "the parameter default_expires", read=settings),
    mi.Stat("accepted_regs", "REGISTER requests that were accepted"),
    mi.Stat("rejected_regs", "REGISTER requests that were rejected"),
]


def init(ctx):
    """Have the statistics that show parameters once for each dialect."""
    reads = {dialect: functools.partial(settings, ctx, dialect) for dialect in ("text", "jsonrpc")}
    ctx.own.stats[:] = [one for stat in ctx.own.stats for one in (
        [stat._replace(dialect=dialect, read=read) for dialect, read in reads.items()] if stat.read else [stat])]


def expiry(ctx, expires: int | None) -> int:
    """How long a contact lasts that asks for `expires` seconds, 0 to be removed; None: it does not say."""
    default, least, most = lifetimes(ctx, ctx.request.dialect)
    if expires == 0:
        return 0
    wanted = max(default if expires is None else expires, least)
    return min(wanted, most) if most else wanted


def settled(ctx, aor: str, expires: int | None, q: int | None) -> tuple[str, int, int]:
    """An AOR, a lifetime and a q as the registrar takes them, None for what is not given."""
    return (aor if ctx.param("case_sensitive") else aor.lower(), expiry(ctx, expires),
            ctx.param("default_q") if q is None else q)


def has_room(ctx, count: int) -> bool:
    """Whether an AOR that has so many contacts may have one more."""
    return not ctx.param("max_contacts") or count < ctx.param("max_contacts")
