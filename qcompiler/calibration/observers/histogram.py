"""A histogram with a fixed number of bins over a range that is not known beforehand: exact counts after one sweep.

Every bin edge is a multiple of the bin width, and the width is a power of two: 2^e. When a batch exceeds the range, the width
doubles until all fits and neighbouring bins merge. An edge of the coarse lattice is an edge of the fine one, so that merging moves no
count across an edge, and the result is what one histogram over all values with the final edges would have counted: it does not
depend on the batches or on their order.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.calibration.observers.base import Observer, check_channels
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError

# Values are binned in pieces that stay in the cache, so that the working memory does not depend on the size of a batch.
_PIECE = 1 << 16
# A float32 has 24 significant bits: narrower bins than 2^-23 of the largest magnitude separate nothing, and while bin numbers stay
# under 2^24 they are exact in float32.
_FINEST = 23
_SMALLEST_EXPONENT = -120


class Histogram:
    """Counts of float32 values, for each of ``channels`` rows in ``bins`` bins: bin i covers [first + i, first + i + 1) * 2^e."""

    def __init__(self, channels: int, bins: int) -> None:
        self.bins = bins
        self.low = torch.full((channels,), torch.inf)
        self.high = torch.full((channels,), -torch.inf)
        self.exponent = torch.full((channels,), _SMALLEST_EXPONENT, dtype=torch.int64)
        self.first = torch.zeros(channels, dtype=torch.int64)
        self.counts = torch.zeros((channels, bins), dtype=torch.int64)

    def add(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        """Count float32 [channels, values] with the given extremes."""
        check_channels(self.low, low)
        self._grow(torch.minimum(self.low, low), torch.maximum(self.high, high))
        channels = rows.shape[0]
        inverse_width = torch.ldexp(torch.ones(channels, 1), -self.exponent[:, None])
        first = self.first.to(torch.int32)[:, None]
        start = torch.arange(channels, dtype=torch.int32)[:, None] * self.bins
        # A piece has as many values as there are bins, at least: else adding up the counts would cost more than counting.
        for piece in rows.split(max(_PIECE // channels, self.bins), dim=1):
            bin_number = torch.floor(piece * inverse_width).to(torch.int32) - first + start
            self.counts += torch.bincount(bin_number.flatten(), minlength=channels * self.bins).view_as(self.counts)

    @classmethod
    def balanced(cls, parts: Sequence[Histogram]) -> Histogram:
        """All parts in one, each with the same total in every row: counts are scaled up to the largest total and rounded.

        Bins merge without moving a count across an edge, as everywhere here.
        """
        low, high = (torch.stack([getattr(part, end) for part in parts]) for end in ("low", "high"))
        merged = cls(len(parts[0].low), parts[0].bins)
        merged._grow(low.amin(0), high.amax(0))
        totals = torch.stack([part.counts.sum(1) for part in parts]).double()
        for part, factor in zip(parts, totals.amax(0) / totals, strict=True):
            moved = part._numbers_among(merged.exponent, merged.first)
            merged.counts.scatter_add_(1, moved, (part.counts * factor[:, None]).round().long())
        return merged

    def edges(self, channel: int) -> NDArray[np.float64]:
        """The ``bins + 1`` edges of a row; exact."""
        numbers = np.arange(self.bins + 1, dtype=np.float64) + int(self.first[channel])
        return np.ldexp(numbers, int(self.exponent[channel]))

    def _grow(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Cover [low, high] with the narrowest bins that can, and move the counts over, if there are any yet."""
        exponent = self._narrowest(low, high)
        first = _bin_number(low, exponent)
        counted = bool(self.low.isfinite().any())
        if counted and not (torch.equal(exponent, self.exponent) and torch.equal(first, self.first)):
            moved = self._numbers_among(exponent, first)
            self.counts = torch.zeros_like(self.counts).scatter_add_(1, moved, self.counts)
        self.low, self.high, self.exponent, self.first = low, high, exponent, first

    def _numbers_among(self, exponent: torch.Tensor, first: torch.Tensor) -> torch.Tensor:
        """[channels, bins]: the number of the wider bin, of a histogram with this exponent and first bin, that each bin lies in."""
        doublings = (exponent - self.exponent).clamp(max=62)[:, None]
        old_numbers = self.first[:, None] + torch.arange(self.bins)
        # Empty bins may fall outside; clamping moves nothing but zeros.
        return ((old_numbers >> doublings) - first[:, None]).clamp(0, self.bins - 1)

    def _narrowest(self, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        """The least e for which [low, high] meets at most ``bins`` bins of width 2^e. It can only rise as the range grows."""
        spread = (high.double() - low.double()) / self.bins
        magnitude = torch.maximum(low.abs(), high.abs())
        exponent = torch.maximum(_floor_log2(spread), _floor_log2(magnitude) - _FINEST).clamp(min=_SMALLEST_EXPONENT)
        while True:
            too_many = _bin_number(high, exponent) - _bin_number(low, exponent) >= self.bins
            if not bool(too_many.any()):
                return exponent
            exponent = exponent + too_many.long()


class HistogramObserver(Observer):
    """Base of the observers that search a range in a histogram: of the values, or of their magnitudes where ``symmetric``."""

    def __init__(self, spec: ObserverSpec) -> None:
        super().__init__(spec)
        self._histogram: Histogram | None = None

    def _update(self, rows: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> None:
        if self.spec.symmetric:
            rows = rows.abs()
            low, high = torch.aminmax(rows, dim=1)
        if self._histogram is None:
            self._histogram = Histogram(rows.shape[0], self.spec.bins)
        self._histogram.add(rows, low, high)

    @classmethod
    def balanced(cls, members: Sequence[Observer]) -> Observation:
        """What one observer would say of the histograms together."""
        whole = cls(members[0].spec)
        whole._histogram = Histogram.balanced([member.histogram() for member in members if isinstance(member, HistogramObserver)])
        return whole.result()

    def histogram(self) -> Histogram:
        """What was counted so far."""
        if self._histogram is None:
            raise CalibrationError("no value was observed: the calibration data were empty or do not reach the node")
        return self._histogram

    def _range(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        histogram = self.histogram()
        ranges = [self._search(histogram, channel) for channel in range(len(histogram.low))]
        return np.array([low for low, _ in ranges]), np.array([high for _, high in ranges])

    def _search(self, histogram: Histogram, channel: int) -> tuple[float, float]:
        """Low and high of one row of the histogram; where ``symmetric`` only the high counts. A subclass has this, or a ``_range``."""
        raise NotImplementedError


def occupied(histogram: Histogram, channel: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Lower edges, upper edges and counts of the bins of a row that hold something."""
    counts = histogram.counts[channel].numpy()
    (filled,) = np.nonzero(counts)
    first, exponent = int(histogram.first[channel]), int(histogram.exponent[channel])
    lower, upper = (np.ldexp((filled + offset).astype(np.float64), exponent) for offset in (first, first + 1))
    return lower, upper, counts[filled]


def _bin_number(values: torch.Tensor, exponent: torch.Tensor) -> torch.Tensor:
    return torch.floor(torch.ldexp(values.double(), -exponent)).long()


def _floor_log2(values: torch.Tensor) -> torch.Tensor:
    """floor(log2(v)) exactly; far below every exponent in use for 0."""
    _, exponent = torch.frexp(values.double())
    return torch.where(values > 0, exponent.long() - 1, -1000)
