from __future__ import annotations

import operator
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MOVEMENT_OPS
from qcompiler.passes.canonicalize.normalize_views import NormalizeViews

SHAPE = (1, 8, 6, 4)


class Model(nn.Module):
    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "ops"),
    [
        (lambda x: x.view(x.size(0), -1), {"reshape": 1}),
        (lambda x: x.flatten(2), {"reshape": 1}),
        (lambda x: x.unflatten(1, (2, 4)), {"reshape": 1}),
        (lambda x: x.unsqueeze(2).squeeze(2), {"reshape": 1}),
        (lambda x: x.narrow(1, 0, 1).squeeze(), {"slice": 1, "reshape": 1}),
        (lambda x: x.reshape(-1, 4, 48).view(-1, 192).reshape(-1, 2, 96), {"reshape": 1}),
        (lambda x: x.transpose(1, -1), {"permute": 1}),
        (lambda x: x.swapaxes(2, 3), {"permute": 1}),
        (lambda x: x.movedim(1, 3), {"permute": 1}),
        (lambda x: x.permute(0, -1, 1, 2).permute(0, 2, 3, 1), {"permute": 1}),
        (lambda x: x.permute(0, 2, 3, 1).reshape(x.size(0), -1), {"permute": 1, "reshape": 1}),
        (lambda x: x.narrow(1, 2, 3)[..., -2:], {"slice": 2}),
        (lambda x: x.select(1, -1), {"slice": 1, "reshape": 1}),
        (lambda x: x.narrow(-1, -2, 1), {"slice": 1}),
        (lambda x: x.chunk(3, 1), {"slice": 3}),
        (lambda x: torch.split(x, [1, 5, 2], -3), {"slice": 3}),
        (lambda x: x.split(3, 1), {"slice": 3}),
        (lambda x: x.unbind(3), {"slice": 4, "reshape": 4}),
        (lambda x: torch.cat([x, x], -1), {"cat": 1}),
        (lambda x: torch.stack([x, x * 2], 2), {"mul": 1, "reshape": 2, "cat": 1}),
        (lambda x: torch.concat([x, x * 2], 1), {"mul": 1, "cat": 1}),
        (lambda x: x.narrow(1, 0, 1).expand(x.size(0), 8, -1, -1), {"slice": 1, "expand": 1}),
        (lambda x: x.narrow(2, 0, 1).expand_as(x), {"slice": 1, "expand": 1}),
        (lambda x: F.pad(x, (1, 2, 0, 1), value=3.0), {"constant_pad_nd": 1}),
        (lambda x: F.channel_shuffle(x, 2), {"reshape": 2, "permute": 1}),
        (lambda x: F.pixel_shuffle(x, 2), {"reshape": 2, "permute": 1}),
        (lambda x: F.pixel_unshuffle(x, 2), {"reshape": 2, "permute": 1}),
        (lambda x: F.interpolate(x, scale_factor=2), {"reshape": 2, "expand": 1}),
        (lambda x: F.interpolate(x, size=(18, 4)), {"reshape": 2, "expand": 1}),
        (lambda x: F.interpolate(x.flatten(2), scale_factor=3.0), {"reshape": 2, "expand": 1}),
    ],
)
def test_forms(rewrite: Callable, function: Callable, ops: dict[str, int]) -> None:
    rewritten = rewrite(NormalizeViews(), Model(function), SHAPE)
    assert rewritten.ops == ops
    calls = [node for node in rewritten.program.graph.nodes if node.op == "call_function"]
    assert all(node.target in MOVEMENT_OPS or "mul" in node.name for node in calls)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: F.interpolate(x, size=(9, 4)), "does not repeat whole pixels: [6, 4] become [9, 4]"),
        (lambda x: F.interpolate(x, size=(3, 2)), "does not repeat whole pixels: [6, 4] become [3, 2]"),
        (lambda x: x + torch.ones(1, 8, 6, 4).expand(x.size(0), -1, -1, -1), "repeats a value for each sample"),
    ],
)
def test_left_alone(rewrite: Callable, function: Callable, reason: str) -> None:
    notes = rewrite(NormalizeViews(), Model(function), SHAPE).result.notes
    assert len([note for note in notes if reason in note]) == 1, notes


def test_symbolic_batch_is_minus_one_and_its_size_is_not_asked(rewrite: Callable) -> None:
    program = rewrite(NormalizeViews(), Model(lambda x: x.view(x.size(0), 4, -1)), SHAPE).program
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    assert [list(node.args[1]) for node in calls] == [[-1, 4, 48]]


def test_positions_of_max_pooling_are_no_split(rewrite: Callable) -> None:
    rewritten = rewrite(NormalizeViews(), nn.AdaptiveMaxPool2d(2), SHAPE)
    assert not rewritten.result.modified
    assert [node for node in rewritten.program.graph.nodes if edit.is_call(node, operator.getitem)]


@pytest.mark.parametrize("shifts", [(-2, -2), (3, 0), (5, 7)])
def test_roll_is_slices_and_a_cat(rewrite: Callable, network: type, shifts: tuple[int, int]) -> None:
    rewritten = rewrite(NormalizeViews(), network(lambda m, x: torch.roll(x, shifts, (1, -1))), (2, 5, 7))
    assert "roll" not in rewritten.ops and rewritten.ops["slice"] == 2 * sum(
        shift % size != 0 for shift, size in zip(shifts, (5, 7), strict=True)
    )


def test_roll_of_all_elements_is_declined(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(NormalizeViews(), network(lambda m, x: torch.roll(x, 1)), (1, 4), dynamic_batch=False)
    assert "it rolls all elements in a row" in rewritten.result.notes[0]
