"""sl -- the counters of OpenSIPS' module for stateless replies, which has no commands.

lab_count of lab_sip moves them.
"""
from __future__ import annotations

import midatagram as mi

opensips = mi.shared("opensips_base")

PARAMS = opensips.without_effect("enable_stats")
STATS = [
    *opensips.SIP_STATS,
    *opensips.counters("1xx_replies 2xx_replies 3xx_replies 4xx_replies 5xx_replies 6xx_replies", "stateless replies by code"),
    *opensips.counters("sent_replies", "stateless replies"),
    *opensips.counters("sent_err_replies", "replies to requests that failed"),
    *opensips.counters("received_ACKs", "ACKs to stateless replies"),
]
