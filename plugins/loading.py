"""loading -- has load() of the plug-ins run once for a configuration: in one of its children, for which the others wait."""
from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import time
from collections.abc import Callable
from typing import Any


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
