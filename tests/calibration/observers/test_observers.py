from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.observers.entropy import window_divergence
from qcompiler.calibration.statistics import OBSERVER_KINDS, Observation, ObserverKind, ObserverSpec
from qcompiler.errors import CalibrationError, UnknownNameError


def observe(values: torch.Tensor, spec: ObserverSpec, batch: int = 7) -> Observation:
    observer = make_observer(spec)
    for part in values.split(batch):
        observer.update(part)
    return observer.result()


def distributions() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(32, 3, 9, 9, generator=generator)
    outliers = normal.clone()
    outliers[0, 0, 0, 0], outliers[1, 1, 0, 0] = 40.0, -25.0
    return {"normal": normal, "relu": normal.relu() * 3, "outliers": outliers, "shifted": normal + 10.0, "negative": -normal.abs() - 1.0}


DISTRIBUTIONS = distributions()
every_distribution = pytest.mark.parametrize("values", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)


def rows_of(values: torch.Tensor, axis: int | None) -> np.ndarray:
    rows = values.reshape(1, -1) if axis is None else values.movedim(axis, 0).flatten(1)
    return rows.double().numpy()


@every_distribution
@pytest.mark.parametrize("axis", [None, 1])
def test_min_max(values: torch.Tensor, axis: int | None) -> None:
    seen = observe(values, ObserverSpec("min-max", axis=axis))
    rows = rows_of(values, axis)
    assert seen == Observation(tuple(rows.min(1)), tuple(rows.max(1)), axis)
    symmetric = observe(values, ObserverSpec("min-max", axis=axis, symmetric=True))
    assert symmetric.high == tuple(np.abs(rows).max(1)) == tuple(-low for low in symmetric.low)


@every_distribution
def test_moving_average(values: torch.Tensor) -> None:
    seen = observe(values, ObserverSpec("moving-average", momentum=0.75), batch=8)
    low, high = math.nan, math.nan
    for position, batch in enumerate(values.double().split(8)):
        low = float(batch.min()) if position == 0 else 0.75 * low + 0.25 * float(batch.min())
        high = float(batch.max()) if position == 0 else 0.75 * high + 0.25 * float(batch.max())
    assert (seen.low, seen.high) == (pytest.approx((low,), rel=1e-12), pytest.approx((high,), rel=1e-12))


def bin_width(row: np.ndarray, bins: int) -> float:
    return float(2 * (row.max() - row.min()) / (bins - 2))


@every_distribution
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.99, 100.0])
def test_percentile_within_a_bin_of_numpy(values: torch.Tensor, axis: int | None, percentile: float) -> None:
    seen = observe(values, ObserverSpec("percentile", axis=axis, percentile=percentile))
    for low, high, row in zip(seen.low, seen.high, rows_of(values, axis), strict=True):
        exact_high = np.percentile(row, percentile, method="inverted_cdf")
        exact_low = -np.percentile(-row, percentile, method="inverted_cdf")
        width = bin_width(row, 4096)
        assert exact_high <= high <= exact_high + width
        assert exact_low - width <= low <= exact_low


@every_distribution
def test_symmetric_percentile_is_that_of_the_magnitudes(values: torch.Tensor) -> None:
    seen = observe(values, ObserverSpec("percentile", percentile=99.0, symmetric=True))
    magnitudes = np.abs(rows_of(values, None)[0])
    exact = np.percentile(magnitudes, 99.0, method="inverted_cdf")
    assert exact <= seen.high[0] <= exact + bin_width(magnitudes, 4096)
    assert seen.low[0] == -seen.high[0]


def squared_error(row: np.ndarray, low: float, high: float, bits: int, symmetric: bool) -> float:
    """The definition, from the values themselves."""
    steps = 2 ** (bits - 1) - 1 if symmetric else 2**bits - 1
    bottom = -steps if symmetric else 0
    scale = high / steps if symmetric else (high - low) / steps
    zero_point = 0 if symmetric else np.rint(-low / scale)
    quantized = (np.clip(np.rint(row / scale) + zero_point, bottom, steps) - zero_point) * scale
    return float(np.square(row - quantized).sum())


@every_distribution
@pytest.mark.parametrize(("bits", "symmetric"), [(8, False), (4, False), (1, False), (4, True), (3, True)])
def test_mse_is_near_the_best_of_a_brute_force_search(values: torch.Tensor, bits: int, symmetric: bool) -> None:
    seen = observe(values, ObserverSpec("mse", bits=bits, symmetric=symmetric))
    row = rows_of(values, None)[0]
    found = squared_error(row, seen.low[0], seen.high[0], bits, symmetric)
    low, high = min(row.min(), 0.0), max(row.max(), 0.0)
    shares = np.arange(1, 33) / 32
    if symmetric:
        best = min(squared_error(row, 0.0, share * max(-low, high), bits, True) for share in shares)
    else:
        lows, highs = (shares if low < 0 else [1.0]), (shares if high > 0 else [1.0])
        best = min(squared_error(row, a * low, b * high, bits, False) for a, b in itertools.product(lows, highs))
    # The search goes beyond the grid, on bin centres in place of values: it may win, and must not lose by more than bins are wide.
    assert found <= best * 1.02


def test_mse_of_two_levels() -> None:
    """0 and the mean of what lies above half of it, for rectified values: 1.224 for a normal x."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu()
    seen = observe(values, ObserverSpec("mse", bits=1))
    assert seen.low == (0.0,)
    assert abs(float(values[values > seen.high[0] / 2].mean()) - seen.high[0]) < 0.02 and abs(seen.high[0] - 1.224) < 0.04


def test_mse_of_one_channel_does_not_depend_on_the_others() -> None:
    values = DISTRIBUTIONS["outliers"]
    spec = ObserverSpec("mse", bits=4, axis=1)
    together = observe(values, spec)
    for channel in range(3):
        alone = observe(values[:, channel : channel + 1], spec)
        assert (together.low[channel], together.high[channel]) == (alone.low[0], alone.high[0])


def divergence_by_loops(counts: list[int], start: int, stop: int, groups: int) -> float:
    """TensorRT's procedure, bin by bin."""
    inside = counts[start:stop]
    reference = [float(c) for c in inside]
    reference[0] += sum(counts[:start])
    reference[-1] += sum(counts[stop:])
    quantized = [0.0] * len(inside)
    for group in range(groups):
        members = [i for i in range(len(inside)) if i * groups // len(inside) == group]
        filled = [i for i in members if inside[i]]
        for i in filled:
            quantized[i] = sum(inside[j] for j in members) / len(filled)
    p = [r / sum(reference) for r in reference]
    q = [v / sum(quantized) for v in quantized]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_divergence_follows_its_definition() -> None:
    counts = np.random.default_rng(0).poisson(3.0, 100)
    counts[[10, 79]] = 5
    for groups in (7, 16, 64):
        assert window_divergence(counts, 10, 80, groups) == pytest.approx(divergence_by_loops(counts.tolist(), 10, 80, groups), abs=1e-12)


def test_entropy_cuts_what_costs_resolution() -> None:
    values = DISTRIBUTIONS["outliers"]
    seen = observe(values, ObserverSpec("entropy", symmetric=True))
    assert 2.0 < seen.high[0] < 10.0
    assert observe(DISTRIBUTIONS["relu"], ObserverSpec("entropy")).low == (0.0,)


@pytest.mark.parametrize("symmetric", [False, True])
def test_entropy_is_not_led_astray_by_the_zeros_of_a_rectifier(symmetric: bool) -> None:
    values = DISTRIBUTIONS["relu"]
    high = observe(values, ObserverSpec("entropy", symmetric=symmetric)).high[0]
    assert high > 0.7 * float(values.max())


@pytest.mark.parametrize("kind", OBSERVER_KINDS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_all_observers_stay_inside_what_was_seen(kind: ObserverKind, symmetric: bool) -> None:
    for values in DISTRIBUTIONS.values():
        seen = observe(values, ObserverSpec(kind, axis=1, symmetric=symmetric))
        assert len(seen.low) == 3 and seen.axis == 1
        for low, high, row in zip(seen.low, seen.high, rows_of(values, 1), strict=True):
            limit = np.abs(row).max()
            assert -limit <= low <= high <= limit
            assert not symmetric or low == -high


@pytest.mark.parametrize("kind", OBSERVER_KINDS)
def test_a_value_that_is_always_zero(kind: ObserverKind) -> None:
    seen = observe(torch.zeros(8, 3), ObserverSpec(kind))
    assert (seen.low, seen.high, seen.axis) == ((0.0,), (0.0,), None)


@every_distribution
@pytest.mark.parametrize("axis", [None, 1])
def test_moments(values: torch.Tensor, axis: int | None) -> None:
    seen, rows = observe(values, ObserverSpec("moments", axis=axis)), rows_of(values, axis)
    np.testing.assert_allclose(seen.mean, rows.mean(1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(seen.deviation, rows.std(1), rtol=1e-9)
    assert (seen.low, seen.high) == (tuple(rows.min(1)), tuple(rows.max(1)))


@every_distribution
def test_a_free_range_loses_no_more_than_one_through_zero(values: torch.Tensor) -> None:
    def error(spec: ObserverSpec) -> float:
        seen = observe(values, spec)
        scale = (seen.high[0] - seen.low[0]) / 15
        rounded = ((values - seen.low[0]) / scale).round().clamp(0, 15) * scale + seen.low[0]
        return float((rounded - values).square().mean())

    assert error(ObserverSpec("mse", bits=4, through_zero=False)) <= 1.05 * error(ObserverSpec("mse", bits=4))


@pytest.mark.parametrize("kind", OBSERVER_KINDS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_non_finite_values_are_refused(kind: ObserverKind, bad: float) -> None:
    with pytest.raises(CalibrationError, match=r"infinities or NaN in a tensor of shape \[2, 2\]"):
        make_observer(ObserverSpec(kind)).update(torch.tensor([[1.0, 2.0], [bad, 3.0]]))


@pytest.mark.parametrize("kind", OBSERVER_KINDS)
def test_nothing_seen(kind: ObserverKind) -> None:
    observer = make_observer(ObserverSpec(kind))
    observer.update(torch.zeros(0, 3))
    with pytest.raises(CalibrationError, match="no value was observed"):
        observer.result()


def test_wrong_axis_and_changing_channels() -> None:
    with pytest.raises(CalibrationError, match=r"no axis 2 in a value of shape \[4, 3\]"):
        make_observer(ObserverSpec(axis=2)).update(torch.zeros(4, 3))
    observer = make_observer(ObserverSpec("moving-average", axis=1))
    observer.update(torch.zeros(4, 3))
    with pytest.raises(CalibrationError, match="5 channels now and had 3"):
        observer.update(torch.zeros(4, 5))


def test_a_specification_checks_itself() -> None:
    with pytest.raises(UnknownNameError, match="unknown observer 'minmax': did you mean 'min-max'"):
        ObserverSpec("minmax")  # type: ignore[arg-type]  # the mistake under test
    for options in ({"bits": 0}, {"bits": 1, "symmetric": True}, {"percentile": 50.0}, {"momentum": 1.0}, {"bins": 8}):
        with pytest.raises(CalibrationError):
            ObserverSpec("mse", **options)  # type: ignore[arg-type]  # one of several types
