"""ratelimit -- pipes and what is counted in them, as OpenSIPS' module shows them.

No traffic is limited here: lab_pipe of lab_sip makes pipes. A pipe is a key of the store.
"""
from __future__ import annotations

import ctypes
import json
import re
from typing import NamedTuple

import midatagram as mi

opensips = mi.shared("opensips_base")

SPACE, SETTINGS = "ratelimit", "ratelimit_settings"  # spaces of the store: pipes, and the key PID
LEAST_BYTES = 44  # of a pipe in a reply
ALGORITHMS = ("TAILDROP", "RED", "SBT", "NETWORK", "FEEDBACK")
PID, NAMES = (-25, 0, 0), ("ki", "kp", "kd")
LONGEST = 4  # characters of a parameter of rl_set_pid

PARAMS = [
    mi.Param("hash_size", 1024, mi.integer(1), "number of buckets of the table, a power of two; rl_list is in their order"),
    *opensips.without_effect("""accept_pipes_from accept_pipes_timeout bridge_repl_timer_expire bridge_repl_timer_interval
        bridge_replication cachedb_url db_prefix default_algorithm expire_time limit_per_interval pipe_replication_cluster
        repl_buffer_threshold repl_pipes_auth_check repl_timer_expire repl_timer_interval replicate_pipes_to slot_period
        timer_interval window_size"""),
]


class Pipe(NamedTuple):
    """A pipe as the store has it."""

    algorithm: str
    limit: int
    counter: int

    def shown(self, name: str) -> dict:
        """The pipe as rl_list shows it."""
        return {"id": name, **self._asdict()}


take_in = opensips.kept(lambda value: Pipe(*json.loads(value)))


def in_order(ctx, names: list[str]) -> list[str]:
    """The names of pipes in the original's order."""
    buckets = ctx.param("hash_size") - 1
    return sorted(names, key=lambda name: (opensips.core_hash(mi.encode(name)) & buckets, name))


def fits(pattern: str, name: str) -> bool:
    """Whether a name fits a shell pattern, which the C library knows better than Python: `[^a]`, `[[:digit:]]`, `\\*`."""
    return not ctypes.CDLL(None).fnmatch(mi.encode(pattern), mi.encode(name), 0)


@opensips.command
def rl_list(ctx, pipe=None, filter=None, filter_out=None):
    """Show all pipes, or one; in JSON also those whose names fit the shell pattern FILTER, or do not fit FILTER_OUT."""
    found, given = ctx.view(SPACE, take_in), {"pipe": pipe, "filter": filter, "filter_out": filter_out}
    texts = {name: opensips.text(ctx, name, value) for name, value in given.items()
             if value is not None or name in (ctx.request.names or ())}
    name, wanted, unwanted = map(texts.get, given)
    if name and name not in found:
        raise mi.Failed(f"there is no pipe {name}") if ctx.request.dialect == "text" else mi.Error(404, "Pipe Not Found")
    if name:
        return opensips.reply(ctx, {"Pipe": found[name].shown(name), "drop_rate": 0}, depends=(SPACE,))
    names = [name for name in found if (not wanted or fits(wanted, name)) and not (unwanted and fits(unwanted, name))]
    opensips.check_size(ctx, len(names), LEAST_BYTES)
    shown = [found[name].shown(name) for name in in_order(ctx, names)]
    return opensips.reply(ctx, {"Pipes": shown, "drop_rate": 0}, depends=(SPACE,))


@opensips.command
def rl_reset_pipe(ctx, pipe):
    """Set the counter of a PIPE to 0."""
    name = opensips.text(ctx, "pipe", pipe)

    def step(value: str | None) -> str:
        if value is None:
            raise mi.BAD_PARAMETER
        return json.dumps(Pipe(*json.loads(value))._replace(counter=0))

    ctx.store.change(SPACE, name, step)
    return mi.Reply()


def pid_part(text: str) -> int:
    """A parameter of rl_set_pid as the original reads it: a C number, cut to an integer, or the least if it is none; mi.Error."""
    if not 0 < len(text) <= LONGEST:
        raise mi.BAD_PARAMETER
    match = re.match(r"[ \t]*([+-]?(?:0x[\da-f]+|inf|nan|(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?))", text, re.I | re.A)
    number = (float.fromhex(match[1]) if "x" in match[1].lower() else float(match[1])) if match else 0
    return int(number) if abs(number) < 2**31 else -2**31


@opensips.command
def rl_set_pid(ctx, ki, kp=None, kd=None):
    """Set the parameters of the controller that the algorithm FEEDBACK has."""
    made = []
    for at, (name, value) in enumerate(zip(NAMES, (ki, kp, kd))):
        if ctx.request.dialect == "text" and at >= len(ctx.request.values):
            raise mi.WRONG_COUNT
        made.append(pid_part(opensips.text(ctx, name, value)))
    ctx.store.put(SETTINGS, "PID", json.dumps(made))
    return mi.Reply()


@opensips.command
def rl_get_pid(ctx):
    """Show the parameters of the controller."""
    parts = json.loads(ctx.store.get(SETTINGS, "PID") or json.dumps(PID))
    return opensips.reply(ctx, {"PID": {name: f"{part:.3f}" for name, part in zip(NAMES, parts)}})


@opensips.command
def rl_bin_status(ctx):
    """Show where pipes are replicated from: nowhere; of 2.4."""
    return mi.Reply() if ctx.request.dialect == "text" else mi.NOT_AVAILABLE


@opensips.command
def rl_dump_pipe(ctx, pipe):
    """Show a PIPE and where it is replicated from."""
    name = opensips.text(ctx, "pipe", pipe)
    one = ctx.view(SPACE, take_in).get(name)
    if one is None:
        raise mi.Error(404, "Pipe not found")
    return opensips.reply(ctx, {"Pipe": name, "Algorithm": one.algorithm, "Counter": one.counter, "Replication Nodes": [],
                                "Total": one.counter}, depends=(SPACE,))


def put_pipe(ctx, name: str, algorithm: str, limit: int, counter: int) -> None:
    """Have a pipe; mi.Error for an algorithm that is none."""
    if algorithm.upper() not in ALGORITHMS:
        raise mi.Error(400, f"algorithm is one of {', '.join(ALGORITHMS)}")
    ctx.store.put(SPACE, name, json.dumps(Pipe(algorithm.upper(), limit, counter)))
