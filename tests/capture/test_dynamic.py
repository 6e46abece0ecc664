"""Sizes besides the batch that are open: names, bounds, several inputs with one symbol, and what is declined."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from qcompiler.capture import capture
from qcompiler.capture.dynamic import DynamicShapes
from qcompiler.errors import CaptureError
from qcompiler.ir.serialize import dump, load
from qcompiler.ir.text import program_text
from qcompiler.ir.types import DynamicSize

LENGTH = DynamicSize("sequence", 1, 32)
BOTH: DynamicShapes = {"ids": {1: LENGTH}, "mask": {1: LENGTH}}
EXAMPLES = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 4, dtype=torch.int64)


class Attention(nn.Module):
    """One head over embedded ids with positions, keys with mask 0 left out."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(10, 8), nn.Parameter(torch.randn(32, 8))
        self.joint = nn.Linear(8, 24)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        batch, length = ids.shape
        x = self.words(ids) + self.positions[:length]
        q, k, v = self.joint(x).view(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-1, -2)).masked_fill(mask[:, None, None, :] == 0, float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, 8)


@pytest.fixture(scope="module")
def model() -> Attention:
    return Attention().eval()


def call(batch: int, length: int) -> tuple[Tensor, Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[:, length // 2 + 1 :] = 0
    return torch.randint(0, 10, (batch, length)), mask


def test_one_program_for_every_batch_and_length(model: Attention) -> None:
    program = capture(model, EXAMPLES, dynamic_shapes=BOTH)
    program.verify()
    assert [spec.shape for spec in program.inputs] == [(None, LENGTH), (None, LENGTH)]
    assert program.outputs[0].shape == (None, LENGTH, 8)
    for batch, length in ((1, 1), (2, 7), (3, 32)):
        inputs = call(batch, length)
        assert torch.equal(program(*inputs), model(*inputs))  # type: ignore[arg-type]


def test_a_program_that_was_read_has_its_symbols_and_bounds_again(model: Attention) -> None:
    program = capture(model, EXAMPLES, dynamic_shapes=BOTH)
    again = load(*dump(program))
    again.verify()
    assert program_text(again) == program_text(program)
    assert "input ids: i64[B,sequence:1..32]" in program_text(program)
    value = next(node for node in again.graph.nodes if node.op == "placeholder").meta["val"]
    environment, symbol = value.fake_mode.shape_env, value.shape[1].node.expr
    assert environment.var_to_range[symbol].upper == 32
    inputs = call(3, 5)
    assert torch.equal(again(*inputs), program(*inputs))  # type: ignore[arg-type]


def test_a_dimension_of_torch_export_is_taken_too(model: Attention) -> None:
    length = Dim("sequence", min=1, max=32)
    assert capture(model, EXAMPLES, dynamic_shapes={0: {-1: length}, 1: {1: length}}).inputs[0].shape == (None, LENGTH)


@pytest.mark.parametrize(
    "shapes", [({1: LENGTH}, [None, LENGTH]), [(None, LENGTH), {0: None, 1: LENGTH}], {0: [None, LENGTH], "mask": {1: LENGTH}}]
)
def test_the_forms_of_torch_export_are_taken(model: Attention, shapes: DynamicShapes) -> None:
    assert capture(model, EXAMPLES, dynamic_shapes=shapes).text() == capture(model, EXAMPLES, dynamic_shapes=BOTH).text()


def test_the_batch_may_be_fixed(model: Attention) -> None:
    assert capture(model, EXAMPLES, dynamic_batch=False, dynamic_shapes=BOTH).inputs[0].shape == (1, LENGTH)


def test_an_output_may_be_longer_than_the_input() -> None:
    class Prefixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([x[:, :1], x], 1)

    program = capture(Prefixed(), torch.zeros(1, 4, 3), dynamic_shapes={"x": {1: LENGTH}})
    assert program.outputs[0].shape == (None, DynamicSize("sequence", 1, 32, offset=1), 3)
    program.verify()


def test_an_exported_program_keeps_its_bounds(model: Attention) -> None:
    batch, length = Dim("batch"), Dim("sequence", min=1, max=32)
    inputs = tuple(value.repeat(2, 1) for value in EXAMPLES)
    exported = torch.export.export(model, inputs, dynamic_shapes=({0: batch, 1: length}, {0: batch, 1: length}))
    assert capture(exported).inputs[1].shape == (None, DynamicSize("ids_1", 1, 32))
    unbounded = Dim("sequence")
    exported = torch.export.export(Scaled(), inputs[:1], dynamic_shapes=({0: batch, 1: unbounded},))
    with pytest.raises(CaptureError, match=r"dimension 1 of input 'x' has no maximum, and memory is planned for it: export with Dim"):
        capture(exported)


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": {1: Dim("sequence")}}, "the dynamic size 'sequence' has no maximum, and memory is planned for it"),
        ({"y": {1: LENGTH}}, "dynamic_shapes names the input 'y': Scaled has x"),
        ({1: {1: LENGTH}}, "dynamic_shapes names the input 1: Scaled has x"),
        ({"x": {2: LENGTH}}, "dynamic_shapes names dimension 2 of the input 'x', which has 2 dimensions"),
        ({"x": {0: LENGTH}}, "dimension 0 of the input 'x' is the batch"),
        ({"x": {1: DynamicSize("batch", 1, 8)}}, "must be a name of its own"),
        ({"x": LENGTH}, "dynamic_shapes gives the input 'x' a DynamicSize: give {dimension: Dim"),
        ({"x": {1: DynamicSize("sequence", 1, 3)}}, "the example inputs give 'sequence' the value 4: choose one of 2 to 3"),
    ],
)
def test_sizes_that_cannot_be(shapes: DynamicShapes, message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture(Scaled(), torch.zeros(1, 4), dynamic_shapes=shapes)


def test_inputs_that_share_a_name_agree(model: Attention) -> None:
    with pytest.raises(CaptureError, match="the example inputs give 'sequence' the values 4 and 5: make them equal"):
        capture(model, (EXAMPLES[0], torch.ones(1, 5, dtype=torch.int64)), dynamic_shapes=BOTH)
    other = {"ids": {1: LENGTH}, "mask": {1: DynamicSize("sequence", 2, 32)}}
    with pytest.raises(CaptureError, match="'sequence' is given two bounds"):
        capture(model, EXAMPLES, dynamic_shapes=other)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x.reshape(x.shape[0], 4, 3) * 2, "fixes the size 'sequence' to 4: leave it out of dynamic_shapes"),
        (lambda x: x[:, :7] * 2, "does not take every size 'sequence': leave it out of dynamic_shapes, narrow its bounds"),
        (lambda x: x[:, :7] * 2, "(torch.export suggests Dim('sequence', "),
        (lambda x: x.reshape(x.shape[0], -1, 2, 3) * 2, "'sequence': it takes multiples of 2 alone; leave it out of dynamic_shapes, and"),
        (lambda x: torch.cat([x, x], 1), "the size 2*sequence is neither a number, the batch, nor a dynamic size plus a number"),
    ],
)
def test_models_that_do_not_take_every_length(function: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(CaptureError) as raised:
        capture(Function(function), torch.zeros(1, 4, 3), dynamic_shapes={"x": {1: LENGTH}})
    assert message in str(raised.value) and "\n" not in str(raised.value)
