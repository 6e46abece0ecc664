"""How long a call takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Latency:
    """Seconds a call took: in the middle, at best, and in 95 of 100 cases at most."""

    median: float
    fastest: float
    slow: float
    runs: int


def latency(call: Callable[[], object], seconds: float) -> Latency:
    """Call for about ``seconds``, after a tenth of that for warming up."""
    _times(call, seconds / 10)
    times = sorted(_times(call, seconds))
    return Latency(statistics.median(times), times[0], times[int(0.95 * (len(times) - 1))], len(times))


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Durations of calls until ``seconds`` have passed; at least one."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
