"""The range whose quantization keeps most information: the least Kullback-Leibler divergence of quantized from original histogram.

Source: S. Migacz, "8-bit Inference with TensorRT", GTC 2017. For a threshold t the range spans the occupied bins inside [-t, t]. P is the
histogram inside, with everything outside added to the end bins. Q is the histogram inside without the rest, quantized: its bins fall into
2^bits groups (2^(bits-1) for magnitudes), and each group's count is spread evenly over those of its bins that hold something.
The threshold with the least KL(P || Q) = sum P log(P / Q), both normalized, wins.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.calibration.observers.histogram import Histogram, HistogramObserver

_CANDIDATES = 256


class EntropyObserver(HistogramObserver):
    """See the module's docstring."""

    def _search(self, histogram: Histogram, channel: int) -> tuple[float, float]:
        low, high = min(float(histogram.low[channel]), 0.0), max(float(histogram.high[channel]), 0.0)
        groups = 1 << (self.spec.bits - 1 if self.spec.symmetric else self.spec.bits)
        counts, edges = _without_spike(histogram.counts[channel].numpy(), -int(histogram.first[channel])), histogram.edges(channel)
        best, best_divergence = (low, high), np.inf
        for start, stop in _windows(counts, edges, groups):
            divergence = window_divergence(counts, start, stop, groups)
            if divergence < best_divergence:
                best, best_divergence = (max(low, min(edges[start], 0.0)), min(high, max(edges[stop], 0.0))), divergence
        return float(best[0]), float(best[1])


def _without_spike(counts: NDArray[np.int64], zero_bin: int) -> NDArray[np.int64]:
    """The bin that starts at zero, cut down to its higher neighbour.

    A rectifier puts half of all values at exactly zero, which every range represents. Spread over a group, that spike alone would make the
    divergence, and the narrowest range would win (NVIDIA's pytorch-quantization treats it likewise).
    """
    if not 0 <= zero_bin < len(counts):
        return counts
    cut = counts.copy()
    neighbours = counts[[bin_number for bin_number in (zero_bin - 1, zero_bin + 1) if 0 <= bin_number < len(counts)]]
    cut[zero_bin] = min(counts[zero_bin], max(1, neighbours.max()))
    return cut


def _windows(counts: NDArray[np.int64], edges: NDArray[np.float64], groups: int) -> list[tuple[int, int]]:
    """The bins [start, stop) inside each threshold, widest first: at least one bin a group, else nothing is lost by definition."""
    (filled,) = np.nonzero(counts)
    lower, upper = edges[filled], edges[filled + 1]
    thresholds = np.unique(np.maximum(np.abs(lower), np.abs(upper)))[::-1]
    chosen = np.unique(np.linspace(0, len(thresholds) - 1, min(_CANDIDATES, len(thresholds))).astype(np.int64))
    inside = [filled[(lower >= -threshold) & (upper <= threshold)] for threshold in thresholds[chosen]]
    windows = dict.fromkeys((int(bins[0]), int(bins[-1]) + 1) for bins in inside if len(bins))
    return [(start, stop) for start, stop in windows if stop - start >= groups]


def window_divergence(counts: NDArray[np.int64], start: int, stop: int, groups: int) -> float:
    """KL(P || Q) of the bins [start, stop), of which the first and the last hold something (else it would be infinite)."""
    inside = counts[start:stop].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    group = np.arange(len(inside)) * groups // len(inside)
    filled = inside > 0
    group_count = np.bincount(group, weights=inside, minlength=groups)
    group_filled = np.bincount(group, weights=filled, minlength=groups)
    quantized = np.where(filled, (group_count / np.maximum(group_filled, 1.0))[group], 0.0)
    p, q = reference[filled] / reference.sum(), quantized[filled] / quantized.sum()
    return float(np.sum(p * np.log(p / q)))
