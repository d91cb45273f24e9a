"""figures -- the statistics of load and memory that OpenSIPS' core has: groups load, shmem and pkmem."""

from __future__ import annotations

import bisect
import collections
import contextlib
import functools
import os
import re
import time
from collections.abc import Callable, Iterable

import midatagram as mi

LOADS = {"load": 1, "load1m": 60, "load10m": 600}  # statistic -> period, s
MEMORY = {"total_size": "VmSize", "used_size": "RssAnon", "real_used_size": "VmRSS", "max_used_size": "VmHWM",
          "free_size": "free", "fragments": "p"}  # statistic -> its name in memory_of()


def load_groups(children: int) -> dict[str, Iterable[int]]:
    """Suffix of the statistics in LOADS -> the ranks whose mean they show."""
    everyone = range(children + 1)
    return {"": everyone[1:], "-all": everyone, **{f"-proc-{rank}": (rank,) for rank in everyone}}


def each_second(read: Callable[[], dict]) -> Callable[[], dict]:
    """A function that calls read() at most once a second, and returns its last result."""
    once = functools.lru_cache(1)(lambda second: read())
    return lambda: once(int(time.monotonic()))


def memory_of(pid: int) -> collections.Counter[str]:
    """Sizes of a process' memory in bytes, its private (p) and its shared mappings (s), from /proc/PID/status and maps, see
    proc(5). All are 0 when the process is gone."""
    memory: collections.Counter[str] = collections.Counter()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as status, open(f"/proc/{pid}/maps") as maps:
        memory.update({name: int(kb) * 1024 for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", status.read(), re.M)})
        memory.update(re.findall(r"^\S+ ...([ps])", maps.read(), re.M))
        memory["free"] = memory["VmSize"] - memory["VmRSS"]
    return memory


def shared_memory(counters: mi.Counters, processes: mi.Processes) -> dict[str, int]:
    """The figures of group shmem: the tables that all processes map."""
    memory, total = memory_of(os.getpid()), counters.slots.nbytes + processes.slots.nbytes
    used = memory["RssShmem"]
    return dict(zip(MEMORY, (total, used, used, used, max(0, total - used), memory["s"])))


def own_memory(processes: mi.Processes, children: int) -> dict[str, int]:
    """The figures of group pkmem: what each process maps for itself."""
    pids = {rank: pid for rank, pid, _, _ in processes.living()}
    memories = [(rank, memory_of(pids.get(rank, 0))) for rank in range(children + 1)]
    return {f"{rank}-{name}": memory[key] for rank, memory in memories for name, key in MEMORY.items()}


def stats_of(counters: mi.Counters, processes: mi.Processes, children: int,
             core: list[mi.Stat]) -> list[mi.Stat]:
    """The statistics of so many children, under OpenSIPS' names, those of group core among them. The attendant sets the loads."""
    shared = each_second(functools.partial(shared_memory, counters, processes))
    own = each_second(functools.partial(own_memory, processes, children))
    text = "memory {}, bytes (fragments: mappings)"
    shmem = [mi.Stat(name, text.format("shared by all processes"), "shmem", False, shared) for name in MEMORY]
    load = [mi.Stat(name + suffix, "CPU usage, percent", "load", False) for suffix in load_groups(children) for name in LOADS]
    pkmem = [mi.Stat(f"{rank}-{name}", text.format("of one process"), "pkmem", False, own)
             for rank in range(children + 1) for name in MEMORY]
    return [*shmem, *core, *load, *pkmem]


class Loads:
    """The CPU that the processes use over the last second, minute and ten minutes, in per cent."""

    def __init__(self, counters: mi.Counters, processes: mi.Processes):
        self.counters, self.processes = counters, processes
        self.samples: dict[int, collections.deque] = {}  # pid -> (when, seconds of CPU)

    def measure(self, counted: memoryview, children: int, now_s: float) -> None:
        """Set the statistics of the attendant and of so many children in a row of the counters."""
        pids = {rank: pid for rank, pid, _, _ in self.processes.living()}
        loads = {rank: self.of(pid, now_s) for rank, pid in pids.items()}
        self.samples = {pid: samples for pid, samples in self.samples.items() if pid in pids.values()}
        for suffix, ranks in load_groups(children).items():
            shown = [loads[rank] for rank in ranks if rank in loads] or [[0] * len(LOADS)]
            for name, values in zip(LOADS, zip(*shown)):
                counted[self.counters.column("load", name + suffix)] = sum(values) // len(values)

    def of(self, pid: int, now_s: float) -> list[int]:
        """The loads of a process."""
        try:
            used_s = time.clock_gettime(~pid << 3 | 2)  # its CPU time, see clock_getcpuclockid(3)
        except OSError:
            return [0] * len(LOADS)
        samples = self.samples.setdefault(pid, collections.deque(maxlen=1300))
        samples.append((now_s, used_s))
        firsts = [samples[bisect.bisect_left(samples, (now_s - span_s - 0.5,))] for span_s in LOADS.values()]
        return [round(100 * (used_s - first_s) / (now_s - then_s or 1)) for then_s, first_s in firsts]
