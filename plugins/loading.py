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


TO_RUN, HAS_RUN, TO_RUN_AGAIN = range(3)


def once(server: Any) -> Callable[[bool], None]:
    """The function that each child calls before it serves; to be made before the first of them. Called with True, as after a
    reload that was taken back, it has load() run again; what fails then is logged, for the other children serve."""
    state = mmap.mmap(-1, 1)

    def load(again: bool) -> None:
        import gevent

        if again:
            state[0] = TO_RUN_AGAIN
        with open(os.path.join(server.store.folder, "load"), "ab") as lock:
            while state[0] != HAS_RUN:
                with contextlib.suppress(BlockingIOError):
                    fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process closes it, or ends
                    if state[0] == TO_RUN:
                        server.call_hooks("load")
                    elif state[0] == TO_RUN_AGAIN:
                        for wrong in call_each(server):
                            logging.getLogger("midatagram").error("load() after a reload that was taken back: %s", wrong)
                    state[0] = HAS_RUN
                server.processes.beats[server.row] = int(time.monotonic() * 1000)  # who waits is not stalled
                gevent.sleep(0 if state[0] == HAS_RUN else 0.01)

    return load


def call_each(server: Any, kind: type = mi.Context) -> list[str]:
    """Call load() of each plug-in, whether or not others' fail, with a context of this kind; returns what went wrong."""
    wrong = []
    for module in server.registry.modules:
        try:
            if "load" in module.hooks:
                module.hooks["load"](kind(module))
        except Exception as error:  # of any plug-in, such as a table that cannot be read
            wrong.append(f"{module.name}: {error}")
    return wrong


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
