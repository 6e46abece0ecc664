"""Times of steps, added up."""

from __future__ import annotations

from qcompiler.measure import latency, split
from qcompiler.pipeline.backend import StepTime


def test_split_adds_up_kinds_and_puts_the_longest_first() -> None:
    steps = [StepTime("copy", "a", ("x",), 1.0), StepTime("convolution", "b", ("y",), 2.0), StepTime("copy", "c", ("z",), 5.0)]
    first, second = split(steps)
    assert (first.kind, first.steps, first.seconds, first.fraction) == ("copy", 2, 6.0, 0.75)
    assert (second.kind, second.fraction) == ("convolution", 0.25)
    assert split([]) == ()


def test_latency_orders_its_figures() -> None:
    measured = latency(lambda: None, 0.01)
    assert measured.fastest <= measured.median <= measured.slow and measured.runs > 0
