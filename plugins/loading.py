"""loading -- has load() of the plug-ins run once for a configuration: in one of its children, for which the others wait; and
names a plug-in that holds up a loader."""
from __future__ import annotations

import contextlib
import fcntl
import logging
import mmap
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import midatagram as mi

LATE_S = 5.0  # after which it is named


def once(server: Any) -> Callable[[], None]:
    """The function that each child calls before it serves; to be made before the first of them."""
    loaded = mmap.mmap(-1, 1)  # whether load() has run

    def load() -> None:
        import gevent

        with open(os.path.join(server.store.folder, "load"), "ab") as lock:
            while not loaded[0]:
                with contextlib.suppress(BlockingIOError):
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process closes it, or ends
                    if not loaded[0]:
                        server.call_hooks("load")
                        loaded[0] = 1
                server.processes.beats[server.row] = int(time.monotonic() * 1000)  # who waits is not stalled
                gevent.sleep(0 if loaded[0] else 0.01)

    return load


def watched(load: Callable[[], Any]) -> Any:
    """What load() returns. If that takes long, a line of the log says where a plug-in is."""
    before = mi.original("signal", "signal")(signal.SIGALRM, lambda number, frame: name_plugin(frame))
    signal.setitimer(signal.ITIMER_REAL, LATE_S)
    try:
        return load()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        mi.original("signal", "signal")(signal.SIGALRM, before)


def name_plugin(frame: Any) -> None:
    """Log which line of a plug-in is being run: of the one that was loaded, not of others that it calls."""
    import greenlet

    main = greenlet.getcurrent()
    while main.parent:
        main = main.parent
    at, place = main.gr_frame or frame, ""  # it waits while a hub runs
    while at:
        if at.f_globals is not globals() and at.f_globals.get("__name__", "").startswith(mi.PLUGIN_PREFIX):
            place = f", at {at.f_code.co_filename}:{at.f_lineno}"
        at = at.f_back
    logging.getLogger("midatagram").warning("the configuration is not loaded after %g s%s", LATE_S, place)
