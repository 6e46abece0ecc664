from __future__ import annotations

import dataclasses

import pytest
import torch

from qcompiler import arithmetic
from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.statistics import OBSERVER_KINDS, Observation, ObserverKind, ObserverSpec
from qcompiler.errors import CalibrationError, UnknownNameError
from qcompiler.ir.types import IntegerType, QuantizedType

every_kind = pytest.mark.parametrize("kind", OBSERVER_KINDS)


def planted() -> dict[str, torch.Tensor]:
    """Many image tokens, and few text tokens with a range of their own: 0.4 % of the values."""
    generator = torch.Generator().manual_seed(0)
    return {"image": 0.3 * torch.randn(500, 64, generator=generator), "text": 3.0 * torch.randn(2, 64, generator=generator)}


def observe(spec: ObserverSpec, groups: dict[str, torch.Tensor]) -> Observation:
    observer = make_observer(spec)
    for group, values in groups.items():
        for batch in values.split(100):
            observer.update(batch, group)
    return observer.result()


def group_errors(seen: Observation, groups: dict[str, torch.Tensor], bits: int) -> dict[str, float]:
    """Squared error of each group as a share of its power, quantized with the range that was found."""
    integer = IntegerType(bits, signed=False)
    kind = QuantizedType(integer, *arithmetic.scale_and_zero_point(seen.low, seen.high, integer, symmetric=False))
    rounded = {group: arithmetic.dequantize(arithmetic.quantize(values, kind), kind) for group, values in groups.items()}
    return {group: float((rounded[group] - values).square().sum() / values.square().sum()) for group, values in groups.items()}


@pytest.mark.parametrize(("kind", "bits"), [("mse", 6), ("percentile", 8), ("entropy", 6)])
def test_balance_gains_on_a_planted_imbalance(kind: ObserverKind, bits: int) -> None:
    spec = ObserverSpec(kind, bits=bits, percentile=99.5)
    groups = planted()
    pooled = group_errors(observe(spec, groups), groups, bits)
    balanced = group_errors(observe(dataclasses.replace(spec, groups="balanced"), groups), groups, bits)
    # What the pooled range cuts off of the text is most of its error; the balanced range keeps it, at the cost of the image.
    assert balanced["text"] < 0.05 * pooled["text"]
    if kind != "mse":  # which weighs absolute errors: the small values of the image count little, balanced or not
        assert max(balanced.values()) < 0.5 * max(pooled.values())


@every_kind
def test_one_group_is_as_no_group(kind: ObserverKind) -> None:
    spec, values = ObserverSpec(kind), {"image": planted()["image"]}
    pooled = observe(spec, values)
    assert observe(dataclasses.replace(spec, groups="balanced"), values) == pooled
    assert observe(dataclasses.replace(spec, groups="per-group"), values).groups == (("image", pooled),)


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("kind", ["percentile", "mse", "entropy", "moments"])
def test_balance_is_what_equally_large_groups_give(kind: ObserverKind, axis: int | None) -> None:
    groups = planted()
    even = {"image": groups["image"], "text": groups["text"].repeat(250, 1)}
    spec = ObserverSpec(kind, axis=axis, bits=6)
    balanced, pooled = observe(dataclasses.replace(spec, groups="balanced"), groups), observe(spec, even)
    assert balanced.low == pooled.low and balanced.high == pooled.high
    assert balanced.mean == pytest.approx(pooled.mean) and balanced.deviation == pytest.approx(pooled.deviation)


def test_per_group_answers_are_kept_and_averaged() -> None:
    steps = {str(step): torch.full((4,), float(step)) * torch.tensor([-1.0, 0.0, 0.5, 1.0]) for step in (3, 1, 2)}
    seen = observe(ObserverSpec("min-max", groups="per-group"), steps)
    assert seen.groups == tuple((str(step), Observation((-float(step),), (float(step),))) for step in (1, 2, 3))
    assert (seen.low, seen.high) == ((-2.0,), (2.0,))


def test_min_max_and_moving_average_of_groups() -> None:
    groups = {"a": torch.tensor([-1.0, 1.0]), "b": torch.tensor([-3.0, 9.0])}
    assert observe(ObserverSpec("min-max", groups="balanced"), groups) == Observation((-3.0,), (9.0,))
    assert observe(ObserverSpec("moving-average", groups="balanced"), groups) == Observation((-2.0,), (5.0,))


def test_nothing_seen() -> None:
    with pytest.raises(CalibrationError, match="no value was observed"):
        make_observer(ObserverSpec(groups="balanced")).result()


def test_unknown_aggregation() -> None:
    with pytest.raises(UnknownNameError, match="unknown aggregation of groups 'balance': did you mean 'balanced'"):
        ObserverSpec(groups="balance")  # type: ignore[arg-type]
