"""``split-channels``: a layer of each width, joined behind what is fused with it; nothing is left of the permutation."""

from __future__ import annotations

import functools
import random
from collections import OrderedDict
from collections.abc import Callable, Mapping

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

import qcompiler as qc
from qcompiler.errors import PassError
from qcompiler.ir import edit, serialize
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import provenance_of
from qcompiler.ir.types import Precision
from qcompiler.passes.allocate.channel_orders import LAYERS
from qcompiler.passes.allocate.split_channels import SplitChannels, why_whole
from qcompiler.pipeline.contract import PassContext, PassResult
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

_aten = torch.ops.aten


def program_of(model: nn.Module, inputs: Tensor) -> Program:
    return PassManager(parse_pipeline("canonicalize")).run(qc.capture(model.eval(), (inputs[:2],)))


def asked(program: Program, bits: Mapping[str, tuple[int, ...]]) -> Program:
    """A copy that asks for the bits of channels, by names of layers."""
    result = edit.copy(program)
    for node in result.graph.nodes:
        if node.name in bits:
            node.meta["precision"] = Precision(weight=max(bits[node.name]), channels=bits[node.name])
    return result


def run(program: Program) -> PassResult:
    return SplitChannels().run(program, PassContext())


def lines(program: Program) -> list[str]:
    """Calls as ``name = op(operands)``, with the bits that they ask for."""
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function":
            asks = node.meta.get("precision") or Precision()
            of = f"  W{asks.weight}" if asks.weight is not None else ""
            found.append(f"{node.name} = {edit.op_name(node.target)}({', '.join(each.name for each in node.all_input_nodes)}){of}")
    return found


def check_equal(before: Program, after: Program, inputs: Tensor) -> None:
    """The same function: sums of a layer run over its inputs in another order, each product rounded to 24 bits."""
    for wanted, found in zip(before.run(inputs), after.run(inputs), strict=True):
        assert (wanted - found).abs().max() <= 1e-5 * wanted.abs().max()


def mlp(activation: nn.Module, hidden: int = 6) -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    layers = OrderedDict(first=nn.Linear(8, hidden), activation=activation, second=nn.Linear(hidden, 3))
    return program_of(nn.Sequential(layers), inputs), inputs


class Residual(nn.Module):
    """Two convolutions around a residual add, with odd numbers of channels; batch norm is folded."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 7, 3, padding=1), nn.BatchNorm2d(7)
        self.left, self.right = nn.Conv2d(7, 5, 3, padding=1, stride=1), nn.Conv2d(5, 7, 1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        x = (self.right(self.left(x).relu()) + x).relu()
        result: Tensor = self.head(x.mean((2, 3)))
        return result


class Transformer(nn.Module):
    """Patches, positions, a pre-norm MLP and attention of two heads: the residual stream has one order, heads pin theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.positions = nn.Conv2d(3, 8, 2, stride=2), nn.Parameter(torch.randn(1, 9, 8))
        self.norm, self.other_norm, self.last_norm = (nn.LayerNorm(8, elementwise_affine=True) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 10), nn.Linear(10, 8), nn.Linear(8, 4)
        for norm in (self.norm, self.other_norm, self.last_norm):
            nn.init.normal_(norm.weight, 1.0)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        y = self.norm(x)
        q, k, v = (layer(y).unflatten(-1, (2, 4)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        y = (q @ k.transpose(-1, -2)).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).flatten(2))
        x = x + self.down(nn.functional.gelu(self.up(self.other_norm(x))))
        result: Tensor = self.head(self.last_norm(x).mean(1))
        return result


class Separable(nn.Module):
    """A depthwise convolution, a slope for each channel, a gate, a concatenation along the channels and one along the rows."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise, self.slopes = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.PReLU(6)
        self.squeeze, self.excite, self.project = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1), nn.Conv2d(6, 5, 1)
        self.both, self.head = nn.Conv2d(8, 4, (2, 1)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.slopes(self.depthwise(torch.relu(self.expand(x))))
        y = y * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        y = torch.cat([self.project(y), x], 1)
        y = torch.relu(self.both(nn.functional.pad(torch.cat([y, y.flip(2)], 2), (0, 0, 1, 0))))
        result: Tensor = self.head(y.amax((2, 3)))
        return result


MODELS: Mapping[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3, 6, 6)),
    "transformer": (Transformer, (3, 6, 6)),
    "separable": (Separable, (3, 6, 6)),
}


@functools.cache
def model(name: str) -> tuple[Program, Tensor]:
    make, shape = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        inputs = torch.randn(16, *shape)
        network = make().train()
        with torch.no_grad():
            network(inputs)  # batch norms get statistics of their own
    return program_of(network, inputs), inputs


def test_each_part_has_its_activation_and_the_order_goes_into_the_next_layer() -> None:
    before, inputs = mlp(nn.GELU())
    result = run(asked(before, {"linear": (4, 8, 4, 4, 8, 4)}))
    assert lines(result.program) == [
        "linear_w8 = linear(input_1, first_weight_1, first_bias_1)  W8",
        "linear_w4 = linear(input_1, first_weight_2, first_bias_2)  W4",
        "gelu_1 = gelu(linear_w8)",
        "gelu_2 = gelu(linear_w4)",
        "cat = cat(gelu_1, gelu_2)",
        "linear_1 = linear(cat, second_weight, second_bias)",
    ]
    check_equal(before, result.program, inputs)
    assert result.notes == ("linear (first): W8 for 2 channels, W4 for 4 channels",)
    columns = [edit.constant_value(node.args[1]) for node in edit.calls(result.program.graph, _aten.linear.default)][-1]
    old = [edit.constant_value(node.args[1]) for node in edit.calls(before.graph, _aten.linear.default)][-1]
    assert columns is not None and old is not None and torch.equal(columns, old[:, [1, 4, 0, 2, 3, 5]])


def test_a_residual_add_goes_with_its_layer_and_all_that_is_added_has_one_order() -> None:
    before, inputs = model("residual")
    bits = {"conv2d": (4, 8, 4, 8, 4, 4, 8), "conv2d_1": (2, 4, 4, 8, 2), "conv2d_2": (8, 4, 4, 4, 8, 4, 4)}
    result = run(asked(before, bits))
    check_equal(before, result.program, inputs)
    graph = result.program.graph
    for node in graph.nodes:
        if edit.is_call(node, _aten.cat.default):
            assert all(edit.is_call(part, _aten.relu.default) for part in node.args[0])
    widths = [node.meta["precision"].weight for node in edit.calls(graph, *LAYERS) if "precision" in node.meta]
    assert widths == [8, 4, 8, 4, 2, 4, 8]  # the last begins with the width that it has in the first part of the stem
    sums = list(edit.calls(graph, _aten.add.Tensor))
    assert len(sums) == 2 and all(edit.is_call(node.args[0], *LAYERS) and edit.is_call(node.args[1], _aten.slice.Tensor) for node in sums)
    assert not any("order stays" in note for note in result.notes)


def test_heads_pin_the_order_and_the_stream_of_a_transformer_does_not() -> None:
    before, inputs = model("transformer")
    by_module = {_module(node): node.name for node in edit.calls(before.graph, *LAYERS)}
    bits = dict.fromkeys((by_module["patches"], by_module["down"], by_module["value"]), (4, 8, 4, 8, 8, 8, 4, 4))
    result = run(asked(before, bits))
    check_equal(before, result.program, inputs)
    notes = {note.partition(" (")[0]: note for note in result.notes}
    assert "W4 for 1 channels, W8 for 1 channels" in notes[by_module["value"]] and "their order stays, as '" in notes[by_module["value"]]
    for name in ("patches", "down"):
        assert notes[by_module[name]].endswith(": W8 for 4 channels, W4 for 4 channels")


@settings(max_examples=12, deadline=None, derandomize=True)
@given(name=st.sampled_from(sorted(MODELS)), seed=st.integers(0, 1000))
def test_the_function_stays_whatever_bits_channels_get(name: str, seed: int) -> None:
    before, inputs = model(name)
    draw = random.Random(seed)
    layers = [node for node in edit.calls(before.graph, *LAYERS) if not why_whole(node)]
    bits = {layer.name: tuple(draw.choice((2, 4, 8)) for _ in range(_channels(layer))) for layer in layers if draw.random() < 0.7}
    after = run(asked(before, bits)).program
    after.verify()
    check_equal(before, after, inputs)
    asks = [node.meta["precision"] for node in after.graph.nodes if "precision" in node.meta]
    assert not any(each.channels for each in asks)


def test_depthwise_convolutions_and_slopes_carry_the_order() -> None:
    before, inputs = model("separable")
    first = next(edit.calls(before.graph, _aten.conv2d.default))
    result = run(asked(before, {first.name: (2, 8, 2, 8, 2, 8)}))
    check_equal(before, result.program, inputs)
    assert result.notes[0].endswith("W8 for 3 channels, W2 for 3 channels")


def test_what_is_asked_of_values_is_asked_of_all_parts_and_their_concatenation() -> None:
    before, _ = mlp(nn.ReLU())
    program = asked(before, {"linear": (4, 8, 4, 4, 8, 4)})
    next(edit.calls(program.graph, _aten.relu.default)).meta["precision"] = Precision(activation=4)
    after = run(program).program
    asks = [node.meta["precision"].activation for node in edit.calls(after.graph, _aten.relu.default, _aten.cat.default)]
    assert asks == [4, 4, 4]


def test_an_island_of_float_stays_one_in_each_part() -> None:
    before, _ = mlp(nn.GELU())
    after = run(asked(before.replace(islands=("gelu",)), {"linear": (4, 8, 4, 4, 8, 4)})).program
    assert after.islands == ("gelu_1", "gelu_2")


def test_an_output_of_the_program_stays_whole_with_the_most_bits() -> None:
    before, inputs = mlp(nn.ReLU())
    result = run(asked(before, {"linear_1": (2, 8, 4)}))
    assert result.notes == ("linear_1 (second) left alone: it is an output of the program, which is not rounded",)
    assert next(node for node in result.program.graph.nodes if node.name == "linear_1").meta["precision"] == Precision(weight=8)
    assert torch.equal(before.run(inputs)[0], result.program.run(inputs)[0])


def test_equal_bits_of_all_channels_are_those_of_the_layer() -> None:
    before, _ = mlp(nn.ReLU())
    after = run(asked(before, {"linear": (4,) * 6})).program
    assert len(list(edit.calls(after.graph, _aten.linear.default))) == 2
    assert next(edit.calls(after.graph, _aten.linear.default)).meta["precision"] == Precision(weight=4)


def test_without_bits_of_channels_nothing_happens() -> None:
    before, _ = mlp(nn.ReLU())
    result = run(before)
    assert result.program is before and not result.modified


def test_bits_of_other_channels_are_a_mistake() -> None:
    before, _ = mlp(nn.ReLU())
    with pytest.raises(PassError, match=r"'linear' .* asks for the bits of 3 channels, which it does not have: allocate again"):
        run(asked(before, {"linear": (4, 8, 4)}))


def test_bits_of_channels_are_part_of_the_text_and_survive_serialization() -> None:
    program = asked(mlp(nn.ReLU())[0], {"linear": (4, 8, 4, 4, 8, 4)})
    assert "asks=W[4, 8, 4, 4, 8, 4]" in program.text()
    again = serialize.load(*serialize.dump(program))
    assert again.text() == program.text()
    assert lines(run(again).program) == lines(run(program).program)


def _channels(layer: fx.Node) -> int:
    weight = edit.constant_value(layer.args[1])
    assert weight is not None
    return weight.shape[0]


def _module(layer: fx.Node) -> str:
    return provenance_of(layer).module_path
