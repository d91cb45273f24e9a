"""opensips_core -- statistics and events of OpenSIPS that the recordings ask for and this server has not."""

import midatagram as mi


def stats(group, counters="", figures=""):
    """Rows of one group: counters, and figures that are read (0)."""
    return [*(mi.Stat(name, "of OpenSIPS", group) for name in counters.split()),
            *(mi.Stat(name, "of OpenSIPS", group, False, lambda: 0) for name in figures.split())]


STATS = [
    *stats("core", "rcv_requests rcv_replies fwd_requests fwd_replies drop_requests drop_replies err_requests err_replies "
                   "bad_URIs_rcvd unsupported_methods bad_msg_hdr"),
    *stats("net", figures="waiting_udp waiting_tcp waiting_tls"),
    *stats("tm", "received_replies relayed_replies local_replies UAS_transactions UAC_transactions 2xx_transactions "
                 "3xx_transactions 4xx_transactions 5xx_transactions 6xx_transactions", "inuse_transactions"),
    *stats("sl", "1xx_replies 2xx_replies 3xx_replies 4xx_replies 5xx_replies 6xx_replies sent_replies sent_err_replies "
                 "received_ACKs"),
    *stats("usrloc", "location-expires", "registered_users location-users location-contacts"),
    *stats("registrar", "accepted_regs rejected_regs", "max_expires max_contacts default_expire"),
    *stats("dialog", "processed_dialogs expired_dialogs failed_dialogs create_sent update_sent delete_sent create_recv "
                     "update_recv delete_recv", "active_dialogs early_dialogs"),
    *stats("siptrace", "traced_requests traced_replies"),
    *stats("script", "my_counter", "my_fixed"),
    *stats("grp1", "in_group"),
    mi.Stat("positive checks", "of OpenSIPS", "uri"), mi.Stat("negative_checks", "of OpenSIPS", "uri"),
]
EVENTS = [mi.Event(name, "of OpenSIPS") for name in (
    "E_CORE_THRESHOLD", "E_CORE_SHM_THRESHOLD", "E_CORE_PKG_THRESHOLD", "E_UL_AOR_INSERT", "E_UL_AOR_DELETE",
    "E_UL_CONTACT_INSERT", "E_UL_CONTACT_DELETE", "E_UL_CONTACT_UPDATE", "E_UL_LATENCY_UPDATE", "E_DLG_STATE_CHANGED",
    "E_DISPATCHER_STATUS", "E_DROUTING_STATUS", "E_LOAD_BALANCER_STATUS", "E_RTPPROXY_STATUS", "E_PIKE_BLOCKED")]
