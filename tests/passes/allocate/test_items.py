from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError, UnknownNameError
from qcompiler.passes.allocate.items import Items, Product, find_items, with_bits
from qcompiler.passes.allocate.table import check, fingerprint
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.manager import PassManager
from qcompiler.sensitivity import Item, SensitivityTable


def names(items: Items, kind: str) -> list[str]:
    return [item.name for item in items.candidates if item.kind == kind]


def test_items_of_a_network_with_a_residual_add(residual: Any) -> None:
    items = find_items(residual.program)
    assert names(items, "weight") == ["conv2d", "conv2d_1", "conv2d_2", "linear"]
    assert names(items, "activation") == ["x", "relu", "relu_1", "cat", "mean"]  # relu_2 has the parameters of cat
    sizes = {item.name: candidate.elements for item, candidate in items.candidates.items() if item.kind == "weight"}
    assert sizes == {"conv2d": 3 * 8 * 9, "conv2d_1": 8 * 8 * 9, "conv2d_2": 8 * 4, "linear": 12 * 5}
    assert items.candidates[Item("relu", "activation")].elements == 8 * 8 * 8
    assert items.products[1] == Product("conv2d_1", 8 * 64 * 72, (Item("relu", "activation"), Item("conv2d_1", "weight")))
    assert items.fixed == {}


def test_items_of_attention(attention: Any) -> None:
    items = find_items(attention.program)
    assert {"softmax", "layer_norm", "linear", "linear_1"} <= set(names(items, "activation"))
    products = {product.name: product for product in items.products}
    assert products["matmul"].macs == products["matmul_1"].macs == 5 * 5 * 8
    assert all(item in items.candidates for item in products["matmul"].operands)
    assert {tie.kind for tie in items.ties} == {"product"}
    assert [len(tie.items) for tie in items.ties] == [2, 2]


def test_what_options_state_is_fixed(attention: Any) -> None:
    options = Quantize(edge_bits=8, probability_bits=6, function_bits=8, score_bits=7)
    items = find_items(attention.program, options)
    fixed = {str(item): bits for item, bits in items.fixed.items()}
    assert fixed["activation 'softmax'"] == 6 and fixed["weight 'linear'"] == 8 and fixed["weight 'linear_4'"] == 8
    assert not set(items.fixed) & set(items.candidates) and set(items.sizes) == {*items.fixed, *items.candidates}
    assert set(find_items(attention.program, options, include_fixed=True).candidates) == set(items.sizes)


def test_levels_with_unequal_steps_are_fixed(attention: Any) -> None:
    items = find_items(attention.program, Quantize(probability_quantizer="log2", probability_bits=4))
    assert items.fixed == {Item("softmax", "activation"): 4}


class Joined(nn.Module):
    """Two layers with one weight; a sum of two values that are both read elsewhere; a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.one(x).relu()
        z = self.one(y).relu()
        return y + z, torch.cat([y, z], 1)


def test_ties(make: Any) -> None:
    items = find_items(make(Joined(), torch.randn(3, 4)).program)
    activations = [Item(name, "activation") for name in ("relu", "relu_1")]
    assert {tie.kind: tie.items for tie in items.ties} == {
        "sum": tuple(activations),
        "concatenation": (*activations, Item("cat", "activation")),
        "shared-weight": (Item("linear", "weight"), Item("linear_1", "weight")),
    }


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1), (4, 8, 8), 6 * 16 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (4, 8, 8), 64 * 4 * 6 * 4),
        (nn.Linear(4, 6), (7, 4), 7 * 24),
    ],
)
def test_multiply_accumulates(layer: nn.Module, shape: tuple[int, ...], macs: int, make: Any) -> None:
    (product,) = find_items(make(layer, torch.randn(3, *shape)).program).products
    assert product.macs == macs


def test_bits_go_into_the_program(residual: Any) -> None:
    chosen = {Item("conv2d_1", "weight"): 3, Item("relu", "activation"): 5, Item("linear", "weight"): 2}
    program = with_bits(residual.program, chosen)
    assert fingerprint(program) == fingerprint(residual.program)
    assert set(chosen) <= set(find_items(program).fixed)  # they are decided
    quantized = PassManager([Quantize()]).run(program, residual.data)
    nodes = {node.name: node for node in quantized.graph.nodes}
    assert nodes["relu"].meta["quantized"].integer.bits == 5 and nodes["relu_1"].meta["quantized"].integer.bits == 8
    weights = {name: nodes[name].args[1].meta["quantized"].integer.bits for name in ("conv2d", "conv2d_1", "linear")}
    assert weights == {"conv2d": 8, "conv2d_1": 3, "linear": 2}
    assert not any("precision" in node.meta for node in residual.program.graph.nodes)


def test_unknown_names(residual: Any) -> None:
    with pytest.raises(UnknownNameError, match="unknown weight 'conv2d_9': did you mean 'conv2d"):
        find_items(residual.program).find("conv2d_9", "weight")
    with pytest.raises(UnknownNameError, match="unknown activation 'nothing'"):
        with_bits(residual.program, {Item("nothing", "activation"): 4})


def test_tables_of_other_programs_are_refused(residual: Any, attention: Any) -> None:
    items = find_items(residual.program)
    row = {(Item("conv2d", "weight"), 4): 1.0}
    check(SensitivityTable("m", fingerprint(residual.program), row), residual.program, items)
    check(SensitivityTable("m", "", row), residual.program, items, [Item("conv2d", "weight")])
    with pytest.raises(CalibrationError, match="was measured on another program"):
        check(SensitivityTable("m", fingerprint(attention.program), row), residual.program, items)
    with pytest.raises(CalibrationError, match="has no row for weight 'linear': measure it, or add one"):
        check(SensitivityTable("m", "", row), residual.program, items, [Item("linear", "weight")])
    with pytest.raises(UnknownNameError, match="table of metric 'm': unknown weight 'konv': did you mean 'conv"):
        check(SensitivityTable("m", "", {(Item("konv", "weight"), 4): 1.0}), residual.program, items)
