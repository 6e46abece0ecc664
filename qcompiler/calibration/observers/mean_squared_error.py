"""The range whose quantization loses least: argmin over ranges of the sum over the histogram of count * (x - quantized(x))^2.

A value stands for its whole bin at the bin's centre. For a range [l, h] that contains zero and n steps, quantized(x) is
``scale * (clamp(rint(x / scale) + z, 0, n) - z)`` with ``scale = (h - l) / n`` and ``z = rint(-l / scale)``; magnitudes (symmetric) have
l = 0 and half the steps. The search shrinks both ends of what was seen: a coarse grid of pairs, then ever finer ones around the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibration.observers.histogram import HistogramObserver, occupied

_COARSE = 16
_REFINEMENTS = 3
_PAIRS_AT_ONCE = 16
_TABLE = 1 << 17  # numbers in a table of errors (channels x pairs x bins) that stays in the cache
_MOST_CHANNELS = 256  # searched together
_FINER = np.arange(-3, 4, dtype=np.float64) / 4.0

Floats = NDArray[np.float64]


class MeanSquaredErrorObserver(HistogramObserver):
    """See the module's docstring."""

    def _range(self) -> tuple[Floats, Floats]:
        histogram = self.histogram()
        bins = [occupied(histogram, channel) for channel in range(len(histogram.low))]
        values, counts = [(lower + upper) / 2.0 for lower, upper, _ in bins], [count.astype(np.float64) for _, _, count in bins]
        low, high = histogram.low.double().numpy(), histogram.high.double().numpy()
        steps = (1 << (self.spec.bits - 1 if self.spec.symmetric else self.spec.bits)) - 1
        if self.spec.through_zero:
            return best_ranges(values, counts, np.minimum(low, 0.0), np.maximum(high, 0.0), steps)
        # Anywhere: what was seen is moved so that its middle is zero, and the answer moved back.
        middle = (low + high) / 2.0
        moved = [value - shift for value, shift in zip(values, middle, strict=True)]
        best_low, best_high = best_ranges(moved, counts, low - middle, high - middle, steps)
        return best_low + middle, best_high + middle


def best_ranges(values: Sequence[Floats], counts: Sequence[Floats], low: Floats, high: Floats, steps: int) -> tuple[Floats, Floats]:
    """The best range of each channel inside [low, high]; ``values[i]`` are the bins of channel i, each ``counts[i]`` times.

    An end that is zero stays zero. Channels with the same ends free are searched together, and few bins with few.
    """
    if steps == 1 and bool(((low < 0) & (high > 0)).any()):
        return _best_sides(values, counts, low, high)
    best_low, best_high = low.copy(), high.copy()
    for free_low, free_high in ((True, True), (True, False), (False, True)):
        (fitting,) = np.nonzero(((low < 0) == free_low) & ((high > 0) == free_high))
        channels: list[int] = sorted(fitting.tolist(), key=lambda channel: len(values[channel]))
        while channels:
            widest = len(values[channels[min(len(channels), _MOST_CHANNELS) - 1]])
            count = min(_MOST_CHANNELS, max(1, _TABLE // (_PAIRS_AT_ONCE * widest)))
            together, channels = channels[:count], channels[count:]
            bins = _Bins.of([values[channel] for channel in together], [counts[channel] for channel in together])
            low_shares, high_shares = _search(bins, low[together], high[together], steps, free_low, free_high)
            best_low[together], best_high[together] = low_shares * low[together], high_shares * high[together]
    return best_low, best_high


def _best_sides(values: Sequence[Floats], counts: Sequence[Floats], low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Of one step: the levels are 0 and a number, best where it is the mean of what is rounded to it, so one end of the range is zero."""
    bins, zero = _Bins.of(values, counts), np.zeros_like(low)
    left, right = best_ranges(values, counts, low, zero, 1)[0], best_ranges(values, counts, zero, high, 1)[1]
    losses = [
        np.where(low < high, bins.squared_errors(low[:, None], np.where(low < high, high, low + 1.0)[:, None], 1)[:, 0], np.inf)
        for low, high in ((left, zero), (zero, right))
    ]
    is_left = losses[0] < losses[1]
    return np.where(is_left, left, zero), np.where(is_left, zero, right)


@dataclass(frozen=True)
class _Bins:
    """Values and counts of several channels; ``values`` [channels, most bins] is filled up with zeros."""

    values: Floats
    counts: tuple[Floats, ...]

    @staticmethod
    def of(values: Sequence[Floats], counts: Sequence[Floats]) -> _Bins:
        filled = np.zeros((len(values), max(len(value) for value in values)))
        for row, value in zip(filled, values, strict=True):
            row[: len(value)] = value
        return _Bins(filled, tuple(counts))

    def squared_errors(self, low: Floats, high: Floats, steps: int) -> Floats:
        """Sum of the squared errors of each channel for each of its ranges, all [channels, ranges]."""
        scale = ((high - low) / steps)[:, :, None]
        zero_point = np.rint(-low[:, :, None] / scale)
        table = self.values[:, None, :] / scale
        np.rint(table, out=table)
        table += zero_point
        np.clip(table, 0, steps, out=table)
        table -= zero_point
        table *= scale
        np.subtract(self.values[:, None, :], table, out=table)
        np.square(table, out=table)
        return np.stack([rows[:, : len(count)] @ count for rows, count in zip(table, self.counts, strict=True)])


def _search(bins: _Bins, low: Floats, high: Floats, steps: int, free_low: bool, free_high: bool) -> tuple[Floats, Floats]:
    """The shares of ``low`` and ``high``, [channels] each, whose range loses least; an end that is not free keeps all of it."""
    spacing = 1.0 / _COARSE
    coarse = np.tile(np.arange(1, _COARSE + 1, dtype=np.float64)[::-1] * spacing, (len(low), 1))
    all_of_it = np.ones((len(low), 1))
    low_shares, high_shares = (coarse if free else all_of_it for free in (free_low, free_high))
    for _ in range(_REFINEMENTS + 1):
        best_low, best_high = _best_shares(bins, low, high, steps, low_shares, high_shares)
        low_shares = _around(best_low, spacing) if free_low else all_of_it
        high_shares = _around(best_high, spacing) if free_high else all_of_it
        spacing /= 4.0
    return best_low, best_high


def _best_shares(bins: _Bins, low: Floats, high: Floats, steps: int, low_shares: Floats, high_shares: Floats) -> tuple[Floats, Floats]:
    """The best pair of the grid of each channel, [channels, shares] both, widest first: ties go to the widest range."""
    pairs_low = np.repeat(low_shares, high_shares.shape[1], axis=1)
    pairs_high = np.tile(high_shares, (1, low_shares.shape[1]))
    errors = np.empty_like(pairs_low)
    for start in range(0, pairs_low.shape[1], _PAIRS_AT_ONCE):
        some = slice(start, start + _PAIRS_AT_ONCE)
        some_low, some_high = pairs_low[:, some], pairs_high[:, some]
        usable = (np.minimum(some_low, some_high) > 0.0) & (np.maximum(some_low, some_high) <= 1.0)
        some_low, some_high = np.where(usable, some_low, 1.0), np.where(usable, some_high, 1.0)
        found = bins.squared_errors(low[:, None] * some_low, high[:, None] * some_high, steps)
        errors[:, some] = np.where(usable, found, np.inf)
    best = np.argmin(errors, axis=1)[:, None]
    return np.take_along_axis(pairs_low, best, 1)[:, 0], np.take_along_axis(pairs_high, best, 1)[:, 0]


def _around(shares: Floats, spacing: float) -> Floats:
    """[channels, shares], falling; those outside (0, 1] are no candidates."""
    return shares[:, None] + spacing * _FINER[::-1]
