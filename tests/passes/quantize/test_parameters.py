from __future__ import annotations

import torch

from qcompiler import arithmetic
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.ir.types import INT8, INT32, UINT8, QuantizedType
from qcompiler.passes.quantize.parameters import accumulator_type, activation_type, quantize_constant, quantize_weight

INPUT = QuantizedType(UINT8, (0.5,), (3,))


def symmetric(axis: int | None, bits: int = 8) -> ObserverSpec:
    return ObserverSpec("min-max", axis=axis, bits=bits, symmetric=True)


def test_activations_are_affine_and_represent_zero() -> None:
    kind = activation_type(Observation((1.0,), (6.0,)), UINT8, symmetric=False)
    assert kind.zero_point == (0,) and arithmetic.dequantize(torch.tensor([0], dtype=torch.uint8), kind).item() == 0.0


def test_symmetric_activations_have_zero_point_0() -> None:
    kind = activation_type(Observation((-1.0,), (6.0,)), INT8, symmetric=True)
    assert kind.zero_point == (0,) and round(kind.scale[0] * 127, 5) == 6.0


def test_weights_of_each_channel_reach_127_and_never_minus_128() -> None:
    torch.manual_seed(0)
    weight = torch.randn(5, 3, 3, 3) * torch.logspace(-3, 2, 5)[:, None, None, None]
    constant = quantize_weight(weight, None, INPUT, symmetric(0))
    assert constant.integers.dtype is torch.int8 and constant.quantized.axis == 0
    assert torch.equal(constant.integers.abs().flatten(1).amax(1), torch.full((5,), 127, dtype=torch.int8))
    scale = torch.tensor(constant.quantized.scale)[:, None, None, None]
    assert ((constant.integers * scale - weight).abs() <= scale / 2 * (1 + 1e-6)).all()


def test_four_bits_reach_7() -> None:
    constant = quantize_weight(torch.linspace(-1, 1, 9).reshape(1, 9), None, INPUT, symmetric(0, bits=4))
    assert constant.integers.min() == -7 and constant.integers.max() == 7


def test_one_scale_for_the_whole_weight() -> None:
    constant = quantize_weight(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.zeros(2), INPUT, symmetric(None))
    assert constant.quantized.axis is None and len(constant.quantized.scale) == 1


def test_a_dead_channel_with_a_bias_gets_a_scale_at_which_the_bias_fits() -> None:
    weight, bias = torch.tensor([[1e-30, 0.0], [1.0, 2.0]]), torch.tensor([100.0, 0.0])
    kind = quantize_weight(weight, bias, INPUT, symmetric(0)).quantized
    assert 100.0 / (INPUT.scale[0] * kind.scale[0]) <= 2**30 * (1 + 1e-6)
    assert kind.scale[1] == torch.tensor(2 / 127).item()


def test_a_weight_of_zeros_is_quantized_to_zeros() -> None:
    assert not quantize_weight(torch.zeros(2, 2), torch.ones(2), INPUT, symmetric(0)).integers.any()


def test_constants_are_quantized_by_their_own_range() -> None:
    values = torch.tensor([[-1.0, 0.0, 2.0]])
    constant = quantize_constant(values, UINT8, symmetric=False)
    assert (arithmetic.dequantize(constant.integers, constant.quantized) - values).abs().max() <= constant.quantized.scale[0] / 2 * (
        1 + 1e-6
    )


def test_the_scale_of_an_accumulator_is_the_product_of_both() -> None:
    weight = QuantizedType(INT8, (0.25, 2.0), (0,), axis=0)
    assert accumulator_type(INPUT, weight, 2, axis=1) == QuantizedType(INT32, (0.125, 1.0), axis=1)
    grouped = accumulator_type(INPUT, QuantizedType(INT8, (0.25, 2.0), (0,), axis=1), 4, axis=1)
    assert grouped.scale == (0.125, 1.0, 0.125, 1.0), "a transposed convolution of two groups uses its scales twice"
    assert accumulator_type(INPUT, QuantizedType(INT8, (0.25,)), 4, axis=1) == QuantizedType(INT32, (0.125,))
