from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qcompiler.calibration.observers.histogram import Histogram
from qcompiler.errors import CalibrationError


def count(rows: torch.Tensor, bins: int, pieces: int) -> Histogram:
    histogram = Histogram(rows.shape[0], bins)
    for piece in rows.tensor_split(pieces, dim=1):
        if piece.shape[1]:
            histogram.add(piece, *torch.aminmax(piece, dim=1))
    return histogram


finite = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-30)


@settings(max_examples=200)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=finite), st.integers(1, 6))
def test_counts_are_those_of_numpy_on_the_same_edges(values: np.ndarray, pieces: int) -> None:
    histogram = count(torch.from_numpy(values), 64, pieces)
    for channel, row in enumerate(values):
        edges = histogram.edges(channel)
        # A bin holds its lower edge and not its upper one, the last one too.
        expected = np.bincount(np.searchsorted(edges, row.astype(np.float64), side="right") - 1, minlength=64)
        np.testing.assert_array_equal(histogram.counts[channel].numpy(), expected)


@given(hnp.arrays(np.float32, 40, elements=finite), st.integers(2, 10), st.randoms())
def test_batches_and_their_order_do_not_matter(values: np.ndarray, pieces: int, random: object) -> None:
    whole = count(torch.from_numpy(values)[None], 64, 1)
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(values))[None]
    parts = count(shuffled, 64, pieces)
    assert torch.equal(whole.counts, parts.counts)
    assert torch.equal(whole.exponent, parts.exponent) and torch.equal(whole.first, parts.first)


@given(hnp.arrays(np.float32, 40, elements=finite))
def test_bins_are_as_narrow_as_promised(values: np.ndarray) -> None:
    histogram = count(torch.from_numpy(values)[None], 64, 1)
    edges = histogram.edges(0)
    spread, magnitude = float(values.max()) - float(values.min()), float(np.abs(values).max())
    assert edges[0] <= values.min() and values.max() < edges[-1]
    assert edges[1] - edges[0] <= max(2 * spread / 62, magnitude * 2.0**-22, 2.0**-120)


def test_a_constant_value_fills_one_bin() -> None:
    histogram = count(torch.zeros(1, 10), 64, 3)
    assert histogram.counts.sum() == 10 and histogram.counts.max() == 10


def test_other_channels_than_before_are_refused() -> None:
    histogram = Histogram(3, 64)
    with pytest.raises(CalibrationError, match="4 channels now and had 3"):
        histogram.add(torch.zeros(4, 5), torch.zeros(4), torch.zeros(4))
