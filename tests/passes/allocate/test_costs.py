"""What the budgets count, against what artifacts hold."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.artifact import packing
from qcompiler.ir import edit, serialize
from qcompiler.passes.allocate.costs import average_bits, average_budget, size_budget, weight_bytes
from qcompiler.passes.allocate.items import find_items, with_bits
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import Item


@pytest.fixture(scope="module")
def program() -> qc.Program:
    """Weights with odd numbers of elements, depthwise and transposed ones among them."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 21, 3), nn.ReLU(), nn.Conv2d(21, 21, 3, groups=21), nn.ReLU(), nn.ConvTranspose2d(21, 11, 1), nn.ReLU())
    module = nn.Sequential(*layers, nn.Conv2d(11, 9, 1), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 16, 7)).eval()
    return PassManager(parse_pipeline("canonicalize")).run(qc.capture(module, samples()[:2]))


def samples() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def bytes_of_weights(program: qc.Program) -> int:
    """Of an INTEGER program: the constants of 8 bits and less as an artifact stores them, and 4 bytes a scale."""
    _, tensors = serialize.dump(program)
    stored = packing.pack(tensors, packing.packings(program))
    scales = {
        str(node.target): len(kind.scale) for node in program.graph.nodes if edit.is_constant(node) and (kind := node.meta.get("quantized"))
    }
    narrow = {name: tensor for name, tensor in stored.items() if tensor.dtype != torch.int32}
    return sum(tensor.numel() * tensor.element_size() + 4 * scales.get(name, 0) for name, tensor in narrow.items())


@pytest.mark.parametrize("group", [0, 4, 16])
@pytest.mark.parametrize("bits", [(2, 2, 2, 2, 2), (3, 4, 8, 4, 6), (8, 3, 2, 1, 4), (8, 8, 8, 8, 8)])
def test_size_is_what_an_artifact_holds(program: qc.Program, group: int, bits: tuple[int, ...]) -> None:
    quantize = Quantize(weight_group=group)
    items = find_items(program, quantize, include_fixed=True)
    chosen = dict(zip((item for item in items.candidates if item.kind == "weight"), bits, strict=True))
    assert [item.name for item in chosen] == ["conv2d", "conv2d_1", "conv_transpose2d", "conv2d_2", "linear"]
    quantized = qc.quantize(with_bits(program, chosen), samples(), passes=[quantize, *parse_pipeline("lower-integer,optimize")])
    assert sum(weight_bytes(items.sizes[item], width) for item, width in chosen.items()) == bytes_of_weights(quantized)


def test_budgets_sum_over_weights_fixed_ones_too(program: qc.Program) -> None:
    items = find_items(program, Quantize(edge_bits=8, weight_group=16))
    assert {item.name for item in items.fixed if item.kind == "weight"} == {"conv2d", "linear"}
    chosen = {item: 4 if item.kind == "weight" else 8 for item in items.candidates}
    everywhere: Mapping[Item, int] = {**chosen, **items.fixed}
    position = {str(item): {width: at for at, width in enumerate(size.bits)} for item, size in items.candidates.items()}
    position |= {str(item): {width: 0} for item, width in items.fixed.items()}
    named = {str(item): width for item, width in everywhere.items()}
    expected = sum(weight_bytes(size, everywhere[item]) for item, size in items.sizes.items() if item.kind == "weight")
    assert size_budget(items, 1.0).total(named, position) == expected
    assert average_budget(items, 1.0).total(named, position) == pytest.approx(
        average_bits(items, chosen), rel=1e-12
    )  # summed in two orders
