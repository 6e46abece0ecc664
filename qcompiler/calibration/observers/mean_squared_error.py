"""The range whose quantization loses least: argmin over ranges of the sum over the histogram of count * (x - quantized(x))^2.

A value stands for its whole bin at the bin's centre. For a range [l, h] that contains zero and n steps, quantized(x) is
``scale * (clamp(rint(x / scale) + z, 0, n) - z)`` with ``scale = (h - l) / n`` and ``z = rint(-l / scale)``; magnitudes (symmetric) have
l = 0 and half the steps. The search shrinks both ends of what was seen: a coarse grid of pairs, then ever finer ones around the best.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibration.observers.histogram import Histogram, HistogramObserver, occupied

_COARSE = 16
_REFINEMENTS = 3
_PIECE = 16
_FINER = np.arange(-3, 4, dtype=np.float64) / 4.0


class MeanSquaredErrorObserver(HistogramObserver):
    """See the module's docstring."""

    def _search(self, histogram: Histogram, channel: int) -> tuple[float, float]:
        lower, upper, counts = occupied(histogram, channel)
        steps = (1 << (self.spec.bits - 1 if self.spec.symmetric else self.spec.bits)) - 1
        if not self.spec.through_zero:
            return _free_range((lower + upper) / 2.0, counts, float(histogram.low[channel]), float(histogram.high[channel]), steps)
        low, high = min(float(histogram.low[channel]), 0.0), max(float(histogram.high[channel]), 0.0)
        if low == high:
            return low, high
        return _best_range((lower + upper) / 2.0, counts, low, high, steps)


def _free_range(values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float, steps: int) -> tuple[float, float]:
    """The best range anywhere: what was seen is moved so that its middle is zero, and the answer moved back."""
    middle = (low + high) / 2.0
    if low == high:
        return low, high
    best_low, best_high = _best_range(values - middle, counts, low - middle, high - middle, steps)
    return best_low + middle, best_high + middle


def squared_error(
    values: NDArray[np.float64], counts: NDArray[np.int64], low: NDArray[np.float64], high: NDArray[np.float64], steps: int
) -> NDArray[np.float64]:
    """Sum of the squared errors of ``values`` (each ``counts`` times) for each of the ranges [low, high]."""
    scale = ((high - low) / steps)[:, None]
    zero_point = np.rint(-low[:, None] / scale)
    quantized = (np.clip(np.rint(values / scale) + zero_point, 0, steps) - zero_point) * scale
    errors: NDArray[np.float64] = np.square(values - quantized) @ counts.astype(np.float64)
    return errors


def _best_range(values: NDArray[np.float64], counts: NDArray[np.int64], low: float, high: float, steps: int) -> tuple[float, float]:
    spacing = 1.0 / _COARSE
    low_shares = high_shares = np.arange(1, _COARSE + 1, dtype=np.float64) * spacing
    for _ in range(_REFINEMENTS + 1):
        best_low, best_high = _best_shares(values, counts, low, high, steps, low_shares, high_shares)
        low_shares, high_shares = _around(best_low, spacing), _around(best_high, spacing)
        spacing /= 4.0
    return best_low * low, best_high * high


def _best_shares(
    values: NDArray[np.float64],
    counts: NDArray[np.int64],
    low: float,
    high: float,
    steps: int,
    low_shares: NDArray[np.float64],
    high_shares: NDArray[np.float64],
) -> tuple[float, float]:
    """The best pair of the grid; an end that is zero anyway has only itself to offer. Ties go to the widest range."""
    low_shares = low_shares[::-1] if low < 0 else np.ones(1)
    high_shares = high_shares[::-1] if high > 0 else np.ones(1)
    pairs_low, pairs_high = np.repeat(low_shares, len(high_shares)), np.tile(high_shares, len(low_shares))
    errors = [
        squared_error(values, counts, low * some_low, high * some_high, steps)
        for some_low, some_high in zip(_pieces(pairs_low), _pieces(pairs_high), strict=True)
    ]
    best = int(np.argmin(np.concatenate(errors)))
    return float(pairs_low[best]), float(pairs_high[best])


def _pieces(pairs: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """A few pairs at a time: the table of errors (pairs x bins) then stays in the cache."""
    return [pairs[start : start + _PIECE] for start in range(0, len(pairs), _PIECE)]


def _around(share: float, spacing: float) -> NDArray[np.float64]:
    shares = share + spacing * _FINER
    return shares[(shares > 0) & (shares <= 1)]
