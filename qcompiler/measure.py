"""How long a call takes on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qcompiler.pipeline.backend import StepTime


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


@dataclass(frozen=True)
class Share:
    """What the steps of one kind take together."""

    kind: str
    steps: int
    seconds: float
    fraction: float


def split(steps: Sequence[StepTime]) -> tuple[Share, ...]:
    """The time of a call by kinds of kernels, the longest first."""
    total = sum(step.seconds for step in steps) or 1.0
    kinds = {step.kind: [other.seconds for other in steps if other.kind == step.kind] for step in steps}
    shares = (Share(kind, len(times), sum(times), sum(times) / total) for kind, times in kinds.items())
    return tuple(sorted(shares, key=lambda share: -share.seconds))


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Durations of calls until ``seconds`` have passed; at least one."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
