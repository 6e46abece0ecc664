from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir import edit
from qcompiler.ir.channels import Readers, readers_of
from qcompiler.ir.program import Program
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

_aten = torch.ops.aten


def followed(model: nn.Module, *inputs: Tensor, target: Callable = _aten.linear.default, axis: int = -1) -> tuple[Program, Readers]:
    """What reads the channels of the first call of ``target``."""
    program = PassManager(parse_pipeline("canonicalize")).run(capture(model.eval(), inputs))
    return program, readers_of(next(edit.calls(program.graph, target)), axis)


class Model(nn.Module):
    """``function(module, x)`` with layers at hand."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def attention(module: nn.Module, x: Tensor) -> Tensor:
    n, t, c = x.shape
    q, k, v = module.qkv(x).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    p = (q @ k.transpose(-2, -1)).softmax(-1)
    return module.projection((p @ v).transpose(1, 2).reshape(n, t, c))


def test_values_of_attention_reach_the_projection_queries_and_keys_are_pinned() -> None:
    _, readers = followed(Model(attention, qkv=nn.Linear(8, 24), projection=nn.Linear(8, 8)), torch.randn(2, 5, 8))
    assert readers.pinned.tolist() == [True] * 16 + [False] * 8
    (projection,) = readers.layers
    assert projection.channel.tolist() == list(range(16, 24))  # through the heads
    assert bool(readers.unshiftable[16:].all())  # rows of rounded probabilities need not sum to one
    assert "'matmul' reads it too" in readers.reasons


def test_channels_are_followed_through_windows() -> None:
    def windows(module: nn.Module, x: Tensor) -> Tensor:
        y = module.first(x).roll((1, 1), (1, 2)).reshape(2, 2, 2, 2, 2, 6).permute(0, 1, 3, 2, 4, 5).reshape(8, 4, 6)
        return module.second(y)

    model = Model(windows, first=nn.Linear(3, 6), second=nn.Linear(6, 2))
    program = PassManager(parse_pipeline("canonicalize")).run(capture(model.eval(), torch.randn(2, 4, 4, 3), dynamic_batch=False))
    readers = readers_of(next(edit.calls(program.graph, _aten.linear.default)), -1)
    assert readers.why_not_all() is None
    assert readers.layers[0].channel.tolist() == list(range(6))


def test_merged_patches_read_a_channel_several_times() -> None:
    def merge(module: nn.Module, x: Tensor) -> Tensor:
        y = module.first(x)
        return module.second(torch.cat([y[:, 0::2], y[:, 1::2]], -1))

    _, readers = followed(Model(merge, first=nn.Linear(3, 4), second=nn.Linear(8, 2)), torch.randn(2, 6, 3))
    assert readers.why_not_all() is None
    assert readers.layers[0].channel.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]


def test_other_values_joined_along_the_channels_do_not_matter() -> None:
    def join(module: nn.Module, x: Tensor) -> Tensor:
        return module.second(torch.cat([module.first(x), x], -1))

    _, readers = followed(Model(join, first=nn.Linear(3, 4), second=nn.Linear(7, 2)), torch.randn(2, 3))
    assert readers.why_not_all() is None
    assert readers.layers[0].channel.tolist() == [0, 1, 2, 3, -1, -1, -1]


def test_other_values_joined_along_the_tokens_pin() -> None:
    def join(module: nn.Module, x: Tensor) -> Tensor:
        return module.second(torch.cat([module.first(x), x], 1))

    _, readers = followed(Model(join, first=nn.Linear(4, 4), second=nn.Linear(4, 2)), torch.randn(2, 3, 4))
    assert readers.why_pinned() == "'linear_1' reads several channels as one"


def test_channels_that_fall_together_pin() -> None:
    def shuffle(module: nn.Module, x: Tensor) -> Tensor:
        return module.second(module.first(x).transpose(1, 2))

    _, readers = followed(Model(shuffle, first=nn.Linear(4, 3), second=nn.Linear(5, 2)), torch.randn(2, 5, 4))
    assert readers.why_pinned() == "'linear_1' reads several channels as one"


def test_a_gate_and_a_relu_let_factors_through_and_no_shift() -> None:
    def gated(module: nn.Module, x: Tensor) -> Tensor:
        return module.second(module.first(x) * torch.sigmoid(x))

    for function in (gated, lambda module, x: module.second(F.relu(module.first(x)))):
        _, readers = followed(Model(function, first=nn.Linear(4, 4), second=nn.Linear(4, 2)), torch.randn(2, 4))
        assert readers.why_pinned() is None
        assert readers.why_unshiftable() == "'linear_1' reads it through an op that a shift does not pass"


def test_a_border_of_zeros_lets_no_shift_through() -> None:
    def row(module: nn.Module, x: Tensor) -> Tensor:
        return module.second(module.first(x))

    model = Model(row, first=nn.Conv2d(3, 4, 1), second=nn.Conv2d(4, 2, 3, padding=1))
    _, readers = followed(model, torch.randn(2, 3, 6, 6), target=_aten.conv2d.default, axis=-3)
    assert readers.why_pinned() is None
    assert readers.why_unshiftable() == "'conv2d_1' pads with zeros"


def test_an_output_pins() -> None:
    def both(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        y = module.first(x)
        return module.second(y), y

    _, readers = followed(Model(both, first=nn.Linear(3, 4), second=nn.Linear(4, 2)), torch.randn(2, 3))
    assert readers.why_pinned() == "it is an output of the program"
