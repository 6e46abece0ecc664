"""Random programs: layers, residuals, pooling and movement in any order, each value with any number of readers."""

from __future__ import annotations

import random
from typing import Any

import pytest
from torch import fx

NODES = 25


def _grow(p: Any, choose: random.Random, maps: list[fx.Node]) -> fx.Node:
    """One more 8-bit map made of those that exist; a hidden zero point of 100 is what ``requantize`` gives."""
    x = choose.choice(maps)
    channels, height, width = (int(size) for size in x.meta["val"].shape[1:])
    kind = choose.choice(["convolution", "depthwise", "residual", "residual", "pool", "cat", "slice", "flip", "clamp", "pad", "table"])
    if kind in ("convolution", "depthwise"):
        groups = channels if kind == "depthwise" else 1
        outputs = channels if kind == "depthwise" else choose.choice([8, 16, 24])
        size, stride = choose.choice([1, 3, 5]), choose.choice([1, 1, 2])
        padding = [size // 2] * 4
        accumulator, bound = p.convolution(
            x, outputs, (size, size), (stride, stride), padding, groups=groups, pad_value=choose.randrange(256)
        )
        return p.requantize(accumulator, bound, choose.choice([(), (outputs, 1, 1)]), choose.choice(["high", "narrow", "exact64"]))
    if kind == "residual":
        accumulator, bound = p.convolution(choose.choice(_like(maps, x)), channels, (3, 3), padding=(1, 1, 1, 1))
        operands = [(accumulator, bound), (x, 255)]
        first, second = operands if choose.random() < 0.5 else operands[::-1]
        return p.add(first[0], second[0], first[1], second[1])
    if kind == "pool":
        return p.call("qc.max_pool2d", x, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1])
    if kind == "cat":
        return p.call("aten.cat", [x, choose.choice(_like(maps, x))], 1)
    if kind == "slice":
        return p.call("aten.slice:Tensor", x, 1, choose.randrange(channels // 2), channels, choose.choice([1, 2]))
    if kind == "flip":
        return p.call("aten.flip", x, [choose.choice([1, 2, 3])])
    if kind == "pad":
        return p.call("aten.constant_pad_nd", x, [1, 0, -min(1, height - 1), 2], 9)
    if kind == "table":
        return p.call("qc.lookup", x, p.integers("table", 0, 255, (256,), x.meta["val"].dtype), 8, False)
    return p.call("qc.clamp", x, 20, 230)


def _like(maps: list[fx.Node], x: fx.Node) -> list[fx.Node]:
    """The maps of the same size and channels."""
    return [other for other in maps if other.meta["val"].shape[1:] == x.meta["val"].shape[1:]]


@pytest.mark.parametrize(("seed", "target"), [(0, "x86-64-v3"), (1, "x86-64-v3"), (2, "x86-64-vnni"), (3, "x86-64-vnni")])
def test_equals_reference(seed: int, target: str, integer_program: Any, compile_for: Any, differences: Any) -> None:
    p, choose = integer_program(seed), random.Random(seed)
    maps = [p.input(None, 16, 12, 10)]
    for _ in range(NODES):
        maps.append(_grow(p, choose, maps))
    outputs = [node for node in maps if not node.users or choose.random() < 0.2]
    program = p.finish(*dict.fromkeys(outputs))
    assert not differences(program, compile_for(program, target), [spec.name for spec in program.outputs], batches=(1, 3))
