"""nathelper -- whether contacts behind NAT are pinged, as OpenSIPS' module shows it; nothing is pinged."""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE = "nathelper"
PARAMS = [
    mi.Param("natping_interval", 0, mi.integer(0), "0: nh_enable_ping replies with an error"),
    *opensips.without_effect("""cluster_id cluster_sharing_tag force_socket max_pings_lost natping_partitions natping_processes
        natping_socket natping_tcp nortpproxy_str oldip_skip ping_nated_only ping_threshold received_avp remove_on_timeout_bflag
        rtpproxy_disable_tout rtpproxy_retr rtpproxy_sock rtpproxy_tout
        sipping_bflag sipping_from sipping_ignore_rpl_codes sipping_latency_flag sipping_method"""),
]


@opensips.command
def nh_enable_ping(ctx, status=...):
    """Show whether contacts are pinged, or set it: 0 or 1."""
    if not ctx.param("natping_interval"):
        raise mi.Error(400, "NATping disabled from script")
    is_shown = ctx.request.dialect == "text" and not ctx.request.values
    return opensips.switch(ctx, SPACE, ... if is_shown else status, opensips.hexuint)
