from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from qcompiler.passes.canonicalize.weights_to_int8 import WeightsToInt8

qc = torch.ops.qc
INPUT = ([0.5], [3], -1, 8, False)


def layer(network: Callable, weight: torch.Tensor, *kind: object, groups: int = 1) -> object:
    def function(m: object, x: torch.Tensor) -> torch.Tensor:
        x = qc.dequantize(qc.quantize(x, *INPUT), *INPUT)
        w = qc.dequantize(m.w, *kind)
        return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, groups=groups)

    return network(function, w=weight)


def integers(program: object) -> torch.Tensor:
    return next(tensor for tensor in program.graph_module.buffers())


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(([0.1], [128], -1, 8, False), 0, 256), (([0.1], [8], -1, 4, False), 0, 16), (([0.1, 0.2, 0.3], [5, 8, 1], 0, 4, False), 0, 16)],
)
def test_zero_points_are_subtracted(rewrite: Callable, network: Callable, kind: tuple, low: int, high: int) -> None:
    weight = torch.randint(low, high, (3, 5), dtype=torch.uint8)
    found = rewrite(WeightsToInt8(), layer(network, weight, *kind), (1, 5))
    expected = weight.int() - torch.tensor(kind[1]).reshape(-1, 1)
    assert integers(found.program).dtype is torch.int8 and torch.equal(integers(found.program).int(), expected.int())


@pytest.mark.parametrize(("shape", "groups"), [((3, 5), 1), ((4, 2, 3, 3), 1), ((4, 1, 3, 3), 4), ((4, 2, 1, 1), 2)])
def test_nine_bits_are_two_weights(rewrite: Callable, network: Callable, shape: tuple[int, ...], groups: int) -> None:
    weight = torch.randint(0, 256, shape, dtype=torch.uint8)
    weight.view(-1)[:2] = torch.tensor([0, 255])
    model = layer(network, weight, [0.1], [90], -1, 8, False, groups=groups)
    inputs = (1, shape[1] * groups) if len(shape) == 2 else (1, shape[1] * groups, 4, 4)
    found = rewrite(WeightsToInt8(), model, inputs)
    assert integers(found.program).shape[1] == 2 * shape[1]
    assert any("reads its input 2 times" in note for note in found.result.notes)


def test_nine_bits_behind_movement(rewrite: Callable, network: Callable) -> None:
    """What attention gives is moved before the projection reads it."""
    qc, byte = torch.ops.qc, ([0.1], [0], -1, 8, True)

    def function(m: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        moved = qc.dequantize(qc.quantize(x, *byte), *byte).permute(0, 2, 1).reshape(-1, 6)
        return torch.nn.functional.linear(moved, qc.dequantize(m.w, [0.1], [90], -1, 8, False))

    weight = torch.arange(0, 256, 15, dtype=torch.int16).to(torch.uint8).reshape(3, 6)
    found = rewrite(WeightsToInt8(), network(function, w=weight), (1, 2, 3))
    assert any("reads its input 2 times" in note for note in found.result.notes)


def test_sixteen_bits_are_left_alone(rewrite: Callable, network: Callable) -> None:
    model = layer(network, torch.full((3, 5), 3000, dtype=torch.int16), [0.1], [0], -1, 16, True)
    found = rewrite(WeightsToInt8(), model, (1, 5))
    assert not found.result.modified and "integers of 16 bits" in found.result.notes[0]
