"""siptrace -- the module tracer as it was called until 2.4, whose command is sip_trace."""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips_base")
tracer = mi.shared("tracer")

PARAMS = tracer.params("""db_url duplicate_uri duplicate_with_hep enable_ack_trace hep_capture_id hep_version table trace_flag
    trace_table_avp trace_to_database traced_user_avp traced_user_column""")
STATS = tracer.STATS
load = tracer.load


def registered(ctx, registry):
    """Have the commands of 3.4, too."""
    tracer.share_name(registry, "sip_trace", "trace")
    for function in (tracer.trace_start, tracer.trace_stop):
        registry.names.setdefault(function.mi_command.name, mi.Command(ctx.own, function))


@opensips.command(bind=opensips.no_values, also="siptrace:sip_trace")
def sip_trace(ctx, id=..., mode=...):
    """Show where SIP is traced to, or switch tracing or that of an ID on or off."""
    return tracer.show_or_switch(ctx, id, mode)
