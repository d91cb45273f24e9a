"""trial -- a configuration in the process of a test, without a socket: midatagram.Trial."""
from __future__ import annotations

import functools
import logging
import shutil
import tempfile
import time
from typing import Any

import midatagram as mi

log = logging.getLogger("midatagram")


class Trial:
    """A configuration in this process, for tests of plug-ins; ConfigError.

    lines: as in midatagram.conf, without a socket. folders: of plug-ins, before the usual ones. To be closed, or `with`.
    """

    server: mi.Server

    def __init__(self, lines: str, *folders: str):
        processes, counters, started_s = mi.Processes(), mi.Counters(), time.time()
        text = f'{lines}\nmodparam("mi_datagram", "socket_name", "trial")'
        stats = functools.partial(mi.core_stats, counters, processes, lambda: self.server.store.time_s() - started_s,
                                  mi.shared("figures"))
        loader = mi.Loader("trial", list(folders), stats)
        setup = loader.load(mi.ConfigReader({"trial": text}.get, loader.calls_of).read("trial"))
        for level, text in setup.notes:
            log.log(level, "%s", text)  # of a module that is passed over, say
        self.folder = tempfile.mkdtemp(prefix="midatagram-")
        self.pair = mi.event_pair()
        store = mi.Store(self.folder, setup.own["store_size"])
        self.server = mi.Server(setup, counters, processes, store, self.pair, started_s)
        self.answers = mi.answers_of(self.server)
        self.server.load_once(False)
        self.server.call_hooks("child_init")

    def answer(self, data: bytes) -> mi.Answer:
        """What a datagram leads to, from a client without an address."""
        return self.answers.answer(data, (None, None))

    def ask(self, data: bytes) -> bytes:
        """The datagrams that a request is answered with, joined."""
        return b"".join(reply for _, reply in self.answer(data).datagrams)

    def close(self) -> None:
        """Stop, and leave nothing behind."""
        self.server.call_hooks("destroy")
        self.server.store.close()
        for end in self.pair:
            end.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Trial:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()
