"""opensips_3x -- what the JSON-RPC recordings ask for and this server has not: commands, statistics, events of 3.4."""

import midatagram as mi

STATS = [mi.Stat("other", "of a script", "script", False, lambda: 0), mi.Stat("myvar", "of a script", "script"),
         mi.Stat("rcv_requests", "of OpenSIPS", "core")]
EVENTS = [mi.Event(name, "of OpenSIPS") for name in (
    "E_CORE_SR_STATUS_CHANGED", "E_CORE_THRESHOLD", "E_CORE_SHM_THRESHOLD", "E_CORE_PKG_THRESHOLD")]
