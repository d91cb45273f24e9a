"""tracing -- brings traces to their destinations, which other plug-ins have; each child has a Tracer for each of them.

What is traced is put into a bounded queue, which costs a reply next to nothing. A greenlet writes it in batches. A
destination knows how to open, write and close; all that can go wrong with it is handled here, and never reaches a reply.
"""

import contextlib
import functools
import logging
import random
import re
import time
from collections.abc import Callable, Iterable
from typing import Any

import midatagram as mi

NOTICE = 25  # midatagram's level between INFO and WARNING
QUEUE = 1000  # traces that wait, per destination and child; further ones are dropped
BATCH = 200  # traces written at once
PAUSE_S = 0.002  # how long a trace may wait for others to be written with it
TIMEOUT_S = 5.0  # for connecting, and for writing a batch
BACKOFF_S = (1.0, 30.0)  # first and longest pause after a failure; the pause doubles, give or take a fifth
STEADY_S = 5.0  # a connection that lasted so long makes the next pause short again

FIGURES = {
    "queued": "packets queued", "sent": "packets sent", "dropped": "packets dropped", "errors": "failed connects and writes",
    "reconnects": "connects after the first", "depth": "packets in the queue", "connected": "connected children",
}


def read_list(value: Any) -> tuple[bool, tuple]:
    """Read `b:` or `w:` and a comma list of commands, which may be empty or end in one comma: whether these are traced, or
    else all others, and their names; ValueError."""
    match = re.fullmatch(r"[ \t\n\v\f\r]*([bBwW])[ \t\n\v\f\r]*:(.*)", mi.string(value), re.S)
    if not match:
        raise ValueError('takes "w: NAME, NAME" (these only) or "b: NAME, NAME" (all but these)')
    kind, names = match.groups()
    return kind in "wW", mi.patterns(names.removesuffix(",")) if names else ()


def stats_of(name: str, group: str) -> list[mi.Stat]:
    """The counters of one destination; the last two figures are levels."""
    return [mi.Stat(f"{name}-{word}", text, group, word not in ("depth", "connected")) for word, text in FIGURES.items()]


def declared(modules: Iterable[mi.Module]) -> dict[str, Callable | None]:
    """The destinations that plug-ins declare, by name: a function that makes a Tracer, or None for one that cannot be
    traced to. The modules get the statistics of theirs. ConfigError."""
    makers: dict[str, Callable | None] = {}
    for module, function in [(one, function) for one in modules for function in one.destinations]:
        with mi.plugin_code(module.path, f"{function.__name__}: "):
            for name, destination in function(mi.Context(module)).items():
                makers[name] = destination and functools.partial(Tracer, name, module, destination)
                module.stats += stats_of(name, module.name) if destination else []
    return makers


def wanted(loader: mi.Loader) -> dict[str, Callable]:
    """The destinations that trace_destination names, as declared() has them; what is wrong with them is noted. ConfigError."""
    makers, module = declared(loader.modules.values()), loader.modules["mi_datagram"]
    names = module.settings["trace_destination"]
    for name in names:
        if name not in makers:
            hint = mi.nearest(name, makers) or ", is its module loaded?"
            text = f'no tracing destination "{name}"{hint}; commands are not traced to it'
            loader.note(module.where("trace_destination"), text, logging.ERROR)
    return {name: maker for name in names if (maker := makers.get(name))}


class Tracer:
    """Brings traces to one destination; lives in a child."""

    def __init__(self, name: str, module: Any, destination: Any):
        import gevent.event

        self.name, self.module, self.destination = name, module, destination
        self.packets = getattr(destination, "packets_per_trace", 1)
        self.check = getattr(destination, "check", lambda: None)  # raises OSError when a connection is lost already
        self.queue: list[mi.Trace] = []
        self.batch: list[mi.Trace] = []  # what is being written
        self.columns = {word: module.columns[f"{name}-{word}"] for word in FIGURES}
        self.connected = self.complained = False
        self.opened_s, self.pause_s = 0.0, BACKOFF_S[0]
        self.log, self.filled = logging.getLogger(f"midatagram.{module.name}"), gevent.event.Event()
        self.sender = gevent.spawn(self.run)

    def count(self, word: str, traces: list[mi.Trace]) -> None:
        """Count the packets of some traces, and set the level of the queue."""
        self.module.row[self.columns[word]] += len(traces) * self.packets
        self.module.row[self.columns["depth"]] = len(self.queue) * self.packets

    def put(self, traces: list[mi.Trace]) -> None:
        """Queue traces, and drop those for which there is no room."""
        room = QUEUE - len(self.queue)
        self.queue += traces[:room]
        self.count("queued", traces[:room])
        self.count("dropped", traces[room:])
        self.filled.set()

    def run(self) -> None:
        """Write what is queued, for ever."""
        import gevent

        while True:
            if not self.queue:
                self.filled.clear()
            self.filled.wait()
            gevent.sleep(PAUSE_S if len(self.queue) < BATCH else 0)
            try:
                self.bring()
            except OSError as error:
                self.fail(error)
                gevent.sleep(self.pause_s * random.uniform(0.8, 1.2))
                self.pause_s = min(self.pause_s * 2, BACKOFF_S[1])
            else:
                if time.monotonic() > self.opened_s + STEADY_S:
                    self.pause_s = BACKOFF_S[0]

    def limited(self, act: Callable, *values: Any) -> None:
        """Let the destination act; OSError for whatever it raises, which must not stop tracing, and when it takes too long."""
        import gevent

        try:
            with gevent.Timeout(TIMEOUT_S, False):
                return act(*values)
        except gevent.GreenletExit:  # flush() ends the sender
            raise
        except BaseException as error:
            raise OSError(str(error) or repr(error)) from None
        raise OSError("timed out")

    def bring(self) -> None:
        """Open the destination unless it is open, and write a batch; one whose write fails counts as dropped, since it may
        have arrived in part."""
        if not self.connected:
            self.limited(self.destination.open)
            self.log.log(NOTICE, "tracing to %s", self.name)
            if self.opened_s:
                self.module.row[self.columns["reconnects"]] += 1
            self.opened_s, self.connected, self.complained = time.monotonic(), True, False
            self.module.row[self.columns["connected"]] = 1
        self.limited(self.check)
        self.batch, self.queue, outcome = self.queue[:BATCH], self.queue[BATCH:], "dropped"
        try:
            self.limited(self.destination.write, self.batch)
            outcome = "sent"
        finally:
            self.count(outcome, self.batch)
            self.batch = []

    def fail(self, error: OSError) -> None:
        """Close after a failure; logged only when it changes the state."""
        self.module.row[self.columns["errors"]] += 1
        if not self.complained:
            what = "is lost" if self.connected else "cannot be reached"
            self.log.error("tracing destination %s %s: %s", self.name, what, error)
            self.complained = True
        self.close()

    def close(self) -> None:
        """Close the destination."""
        self.connected = False
        self.module.row[self.columns["connected"]] = 0
        with contextlib.suppress(OSError):
            self.limited(self.destination.close)

    def flush(self, limit_s: float) -> None:
        """At the end: write what is queued, for at most so long; the rest is dropped."""
        import gevent

        with gevent.Timeout(limit_s, False):
            while (self.queue or self.batch) and not self.complained:
                gevent.sleep(PAUSE_S)
        self.sender.kill()
        rest, self.queue = self.batch + self.queue, []
        self.count("dropped", rest)
        self.close()
