"""Which values share the order of their channels, and what pins it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import qcompiler as qc
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.channel_orders import LAYERS, ChannelOrders, Order
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


class Layers(nn.Module):
    """Convolutions and linear layers for ``function`` to use."""

    def __init__(self, function: Callable[[Layers, Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.depthwise, self.grouped = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 1, groups=2)
        self.head = nn.Linear(4, 2)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def orders_of(function: Callable[[Layers, Tensor], Tensor]) -> tuple[Program, list[Order]]:
    """The orders of the layers that the function calls, in the order of the calls."""
    program = PassManager(parse_pipeline("canonicalize")).run(qc.capture(Layers(function).eval(), (torch.randn(2, 3, 4, 4),)))
    orders = ChannelOrders(program.graph)
    return program, [orders.of(node) for node in edit.calls(program.graph, *LAYERS)]


def mean(m: Layers, x: Tensor) -> Tensor:
    return m.head(x.mean((2, 3)))  # type: ignore[no-any-return]  # a layer's result


FREE: dict[str, Callable[[Layers, Tensor], Tensor]] = {
    "functions and numbers": lambda m, x: mean(m, torch.sigmoid(m.one(x)) * 2 + 1),
    "pooling": lambda m, x: mean(m, nn.functional.max_pool2d(m.one(x), 2)),
    "moves along other dimensions": lambda m, x: mean(m, nn.functional.pad(m.one(x).flip(2)[:, :, 1:], (1, 1))),
    "tokens": lambda m, x: m.head(m.one(x).flatten(2).transpose(1, 2)).mean(1),
    "a pooled gate": lambda m, x: mean(m, m.one(x) * torch.sigmoid(m.one(x).amax((2, 3), keepdim=True))),
    "a value for all channels": lambda m, x: mean(m, m.one(x) + x.mean(1, keepdim=True)),
    "a sum over the channels": lambda m, x: mean(m, m.one(x)) + m.one(x).mean(1).flatten(1)[:, :2],
}

PINNED: dict[str, tuple[Callable[[Layers, Tensor], Tensor], str]] = {
    "a slice": (lambda m, x: m.one(x)[:, 1:], "'slice_3' reads its channels as they stand"),
    "a padding": (lambda m, x: mean(m, m.one(x) + nn.functional.pad(x, (0, 0, 0, 0, 0, 1))), "'add' reads its channels as they stand"),
    "a concatenation": (lambda m, x: torch.cat([m.one(x), x], 1).mean((2, 3)), "'cat' reads its channels as they stand"),
    "a value of another origin": (lambda m, x: mean(m, m.one(x) * torch.cat([x, x[:, :1]], 1)), "'mul' reads its channels"),
    "groups": (lambda m, x: m.grouped(m.one(x)).mean((2, 3)), "'conv2d_1' reads its channels as they stand"),
    "heads": (lambda m, x: m.one(x).unflatten(1, (2, 2)).mean((2, 3)), "reads its channels as they stand"),
    "an output": (lambda m, x: torch.relu(m.one(x)), "it is an output of the program"),
    "a softmax over them": (lambda m, x: mean(m, m.one(x).softmax(1)), "reads its channels as they stand"),
}


@pytest.mark.parametrize("name", FREE)
def test_free(name: str) -> None:
    _, (first, *_) = orders_of(FREE[name])
    assert not first.pinned and first.channels == 4


@pytest.mark.parametrize("name", PINNED)
def test_pinned(name: str) -> None:
    function, reason = PINNED[name]
    _, (first, *_) = orders_of(function)
    assert reason in first.pinned


def test_layers_whose_values_are_added_share_an_order() -> None:
    _, (one, two, three, _) = orders_of(lambda m, x: mean(m, m.three(torch.relu(m.one(x) + m.two(x)))))
    assert one is two and one is not three
    assert [layer.name for layer in one.layers] == ["conv2d", "conv2d_1"]
    assert {(operand.node.name, operand.name, operand.dim) for operand in one.operands} == {
        ("conv2d", "weight", 0),
        ("conv2d", "bias", 0),
        ("conv2d_1", "weight", 0),
        ("conv2d_1", "bias", 0),
        ("conv2d_2", "weight", 1),
    }


def test_a_layer_may_read_and_write_one_order() -> None:
    def function(m: Layers, x: Tensor) -> Tensor:
        y = m.one(x)
        return mean(m, m.three(y) + y)

    _, (one, three, _) = orders_of(function)
    assert three is one
    assert {(operand.name, operand.dim) for operand in one.operands if operand.node.name == "conv2d_1"} == {
        ("weight", 0),
        ("weight", 1),
        ("bias", 0),
    }


def test_depthwise_convolutions_go_on() -> None:
    _, (one, depthwise, _) = orders_of(lambda m, x: mean(m, m.depthwise(m.one(x))))
    assert one is depthwise and [layer.name for layer in one.layers] == ["conv2d"]
    assert ("conv2d_1", "weight", 0) in {(operand.node.name, operand.name, operand.dim) for operand in one.operands}


def test_a_dynamic_length_pins_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2)).eval()
    exported = torch.export.export(model, (torch.randn(2, 5, 4),), dynamic_shapes=({0: Dim.AUTO, 1: Dim("length", max=9)},))
    program = PassManager(parse_pipeline("canonicalize")).run(qc.capture(exported))
    first, _ = (ChannelOrders(program.graph).of(node) for node in edit.calls(program.graph, *LAYERS))
    assert not first.pinned and len(first.operands) == 5
