"""The range that holds the wanted share of the values; what lies outside will be clipped.

``high`` is the p-th percentile (the smallest value that at least p % of the values do not exceed) and ``low`` that of -x, negated;
for symmetric quantization both come from the percentile of |x|. Each is exact to one bin, on the outer side, and never outside
what was seen.
"""

from __future__ import annotations

import math

import numpy as np

from qcompiler.calibration.observers.histogram import Histogram, HistogramObserver, occupied


class PercentileObserver(HistogramObserver):
    """See the module's docstring."""

    def _search(self, histogram: Histogram, channel: int) -> tuple[float, float]:
        lower, upper, counts = occupied(histogram, channel)
        total = int(counts.sum())
        rank = max(1, math.ceil(self.spec.percentile / 100.0 * total))
        high = upper[np.searchsorted(np.cumsum(counts), rank)]
        low = lower[::-1][np.searchsorted(np.cumsum(counts[::-1]), rank)]
        return max(float(low), float(histogram.low[channel])), min(float(high), float(histogram.high[channel]))
