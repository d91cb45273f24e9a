"""Traces to feed tracing destinations with, and what stands for the script that feeds them."""

import logging

from hypothesis import strategies as st

import midatagram as mi

TRACE = mi.Trace(1795396991.589172, 1795396991.58928, ("127.0.0.1", 9363), ("127.0.0.1", 9362),
                 mi.Exchange(b":which:\n", "which", None, 200, "OK", b"200 OK\n\n"))


def exchanged(**fields):
    """TRACE with other fields of its exchange."""
    return TRACE._replace(exchange=TRACE.exchange._replace(**fields))


PORTS = st.integers(0, 65535)
SIDES = st.one_of(
    st.tuples(*[st.tuples(st.ip_addresses(v=4).map(str), PORTS)] * 2),
    st.tuples(*[st.tuples(st.ip_addresses(v=6).map(str), PORTS, st.just(0), st.just(0))] * 2),
    st.tuples(st.sampled_from(["/tmp/c", b"\0c", None]), st.just("/run/mi.sock")))
TEXTS = st.one_of(st.text(), st.text(st.characters()), st.binary().map(mi.decode))
REPEATED = st.builds(lambda some, times: some * times, st.binary(min_size=1, max_size=9), st.integers(1, 9000))
LONG = st.one_of(st.binary(), REPEATED)
TRACES = st.builds(
    lambda times, sides, *fields: mi.Trace(*times, *sides, mi.Exchange(*fields)),
    st.tuples(*[st.floats(0, 2**32 - 1)] * 2), SIDES, LONG, st.one_of(st.just(""), TEXTS, LONG.map(mi.decode)),
    st.none() | st.lists(st.none() | TEXTS | LONG.map(mi.decode), max_size=4).map(tuple),
    st.integers(0, 2**32 - 1), TEXTS | LONG.map(mi.decode), st.none() | LONG)


class FakeContext:
    """What a destination needs of a Context: parameters, a log, and counters that are kept in `counted`."""

    def __init__(self, **params):
        self.params, self.counted, self.log = params, {}, logging.getLogger("traces")

    def param(self, name):
        return self.params.get(name)

    def count(self, name, by=1):
        self.counted[name] = self.counted.get(name, 0) + by
