from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.vit import PatchEmbed, VisionTransformer
from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.passes.canonicalize.canonicalize import Canonicalize
from qcompiler.passes.canonicalize.hoist_slices import HoistSlices
from qcompiler.pipeline.contract import PassContext

SHAPE = (2, 5, 8)


def part(x: Tensor, start: int = 0, end: int = 1) -> Tensor:
    """x[:, start:end]"""
    return torch.ops.aten.slice.Tensor(x, 1, start, end)


def test_a_layer_computes_the_rows_that_are_read(rewrite: Callable, network: type) -> None:
    model = network(lambda m, x: part(torch.relu(m.layer(x)), 1, 3), layer=nn.Linear(8, 4))
    rewritten = rewrite(HoistSlices(), model, SHAPE)
    assert [line.split("(")[0] for line in rewritten.expressions] == ["aten.slice.Tensor", "aten.linear", "aten.relu"]
    assert rewritten.expressions[0] == "aten.slice.Tensor(inputs_0, dim=1, start=1, end=3, step=1)"


def test_both_operands_of_a_sum_are_cut_but_not_what_is_broadcast(rewrite: Callable, network: type) -> None:
    members = {"layer": nn.Linear(8, 8), "row": torch.randn(8), "rows": torch.randn(5, 8)}
    model = network(lambda m, x: part(m.layer(x) + m.rows + m.row + x), **members)
    rewritten = rewrite(HoistSlices(), model, SHAPE)
    assert rewritten.ops["slice"] == 3  # of x twice, and of the rows
    assert all("row," not in line and "%row)" not in line for line in rewritten.lines if "slice" in line)


def test_two_readers_that_take_the_same_part(rewrite: Callable, network: type) -> None:
    """A residual connection: the sum and the layer norm after it read the same row of what is before."""

    def block(m: nn.Module, x: Tensor) -> Tensor:
        y = m.first(x)
        return part(y + m.second(m.norm(y)))

    rewritten = rewrite(HoistSlices(), network(block, first=nn.Linear(8, 8), norm=nn.LayerNorm(8), second=nn.Linear(8, 8)), SHAPE)
    assert rewritten.ops["slice"] == 1
    assert all(node.meta["val"].shape[1] == 1 for node in edit.calls(rewritten.program.graph, torch.ops.aten.linear.default))


def test_the_last_block_of_a_vision_transformer_serves_the_class_token_alone() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(4, 16), patches=16, width=16, depth=2, heads=2, classes=4).eval()
    program = Canonicalize().run(capture(model, torch.randn(2, 3, 16, 16)), PassContext()).program
    tokens = [int(node.meta["val"].shape[1]) for node in edit.calls(program.graph, torch.ops.aten.linear.default)][:-1]
    assert tokens == [17, 17, 17, 17, 17, 1, 1, 1]  # of the last block only queries, keys and values of all tokens
    scores = [tuple(node.meta["val"].shape[1:]) for node in edit.calls(program.graph, torch.ops.aten.softmax.int)]
    assert scores == [(2, 17, 17), (2, 1, 17)]
    images = torch.randn(3, 3, 16, 16)
    assert torch.allclose(program(images), model(images), atol=1e-5)


def test_left_alone(rewrite: Callable, network: type) -> None:
    def declined(function: Callable[..., object], **members: object) -> bool:
        return not rewrite(HoistSlices(), network(function, **members), SHAPE).result.modified

    layer = nn.Linear(8, 8)
    assert declined(lambda m, x: m.layer(x)[..., :3], layer=layer), "a linear layer works on all of the last dimension"
    assert declined(lambda m, x: part(torch.relu(x))), "no work is saved, and an activation would be parted from its layer"
    assert declined(lambda m, x: (lambda y: (part(y), y))(m.layer(x)), layer=layer), "somebody reads the rest"
    assert declined(lambda m, x: (lambda y: (part(y), part(y, 1, 2)))(m.layer(x)), layer=layer), "two parts"
    assert declined(lambda m, x: part(torch.softmax(x, 1))), "softmax over that dimension"
    assert declined(lambda m, x: part(torch.nn.functional.layer_norm(x, (5, 8)))), "layer norm over both dimensions"
