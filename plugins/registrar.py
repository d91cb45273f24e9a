"""registrar -- the settings and counters of OpenSIPS' registrar, which has no commands.

What a REGISTER would leave is done by usrloc's register().
"""
from __future__ import annotations

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


def settings(ctx):
    """The statistics that show parameters."""
    return {"max_expires": ctx.param("max_expires"), "max_contacts": ctx.param("max_contacts"),
            "default_expire": ctx.param("default_expires")}


STATS = [
    *opensips.SIP_STATS,
    mi.Stat("max_expires", "the parameter max_expires", read=settings),
    mi.Stat("max_contacts", "the parameter max_contacts", read=settings),
    mi.Stat("default_expire", "the parameter default_expires", read=settings),
    mi.Stat("accepted_regs", "REGISTER requests that were accepted"),
    mi.Stat("rejected_regs", "REGISTER requests that were rejected"),
]


def expiry(ctx, expires: int | None) -> int:
    """How long a contact lasts that asks for `expires` seconds, 0 to be removed; None: it does not say."""
    wanted = ctx.param("default_expires") if expires is None else expires
    if not wanted:
        return 0
    longest = ctx.param("max_expires") or wanted
    return min(max(wanted, ctx.param("min_expires")), longest)


def settled(ctx, aor: str, expires: int | None, q: int | None) -> tuple[str, int, int]:
    """An AOR, a lifetime and a q as the registrar takes them, None for what is not given."""
    return (aor if ctx.param("case_sensitive") else aor.lower(), expiry(ctx, expires),
            ctx.param("default_q") if q is None else q)


def has_room(ctx, count: int) -> bool:
    """Whether an AOR that has so many contacts may have one more."""
    return not ctx.param("max_contacts") or count < ctx.param("max_contacts")
