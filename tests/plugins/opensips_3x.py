"""opensips_3x -- what the JSON-RPC recordings ask for and this server has not: commands, statistics, events of 3.4."""

import midatagram as mi

STATS = [mi.Stat("grp:other", "of a script", "script", False, lambda: 0), mi.Stat("myvar", "of a script", "script"),
         mi.Stat("rcv_requests", "of OpenSIPS", "core")]
EVENTS = [mi.Event(name, "of OpenSIPS") for name in (
    "E_CORE_SR_STATUS_CHANGED", "E_CORE_THRESHOLD", "E_CORE_SHM_THRESHOLD", "E_CORE_PKG_THRESHOLD")]

LEVELS, MUTED = {"stderror": 0, "syslog": 0, "event": 0}, {"stderror": 0, "syslog": 1, "event": 0}


def consumer_figure(figures, name, consumer, value):
    """Show or set a figure of a log consumer."""
    if consumer not in figures:
        raise mi.Error(404, "Unknown log consumer")
    if value is None:
        return mi.Reply(nodes=[mi.Node(name, figures[consumer])])
    figures[consumer] = value
    return mi.Reply()


FILTER_FIRST = mi.JsonForm(order=("level_filter", "mute_state"))


@mi.command(json=FILTER_FIRST, level_filter=mi.integer())
def log_level_filter(ctx, consumer, level_filter=None):
    """As 3.4 has it."""
    return consumer_figure(LEVELS, "Log level filter", consumer, level_filter)


@mi.command(json=FILTER_FIRST, mute_state=mi.integer())
def log_mute_state(ctx, consumer, mute_state=None):
    """As 3.4 has it."""
    return consumer_figure(MUTED, "mute state", consumer, mute_state)


def declare(name, *recipes):
    """A command of 3.4 that is only looked at, never called."""
    def handler(ctx, *values):
        return mi.Reply()
    return mi.command(name, json=mi.JsonForm(recipes=[recipe.split() for recipe in recipes]), help="as 3.4 has it")(handler)


t_uac_dlg = declare(
    "t_uac_dlg", "method ruri headers", "method ruri headers next_hop", "method ruri headers socket",
    "method ruri headers body", "method ruri headers next_hop socket", "method ruri headers next_hop body",
    "method ruri headers socket body", "method ruri headers next_hop socket body")
ul_add = declare("ul_add", "table_name aor contact expires q flags cflags methods")
ul_dump = declare("ul_dump", "", "brief")
dlg_list = declare("dlg_list", "", "callid", "callid from_tag", "index counter")
dr_reload = declare("dr_reload", "", "partition_name")
dr_gw_status = declare("dr_gw_status", "", "partition_name", "gw_id", "gw_id status", "partition_name gw_id",
                       "partition_name gw_id status")
ds_list = declare("ds_list", "", "partition", "full", "full partition")
lb_status = declare("lb_status", "destination_id", "destination_id new_status")
t_reply = declare("t_reply", "code reason trans_id to_tag", "code reason trans_id to_tag new_headers",
                  "code reason trans_id to_tag body", "code reason trans_id to_tag new_headers body")
