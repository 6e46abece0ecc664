"""The passes together: real networks, and small ones with odd corners."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.float_ops import CANONICAL_OPS
from qcompiler.passes.canonicalize.canonicalize import Canonicalize
from qcompiler.pipeline.contract import PassContext


class Model(nn.Module):
    """``function(module, *inputs)``; the keywords are submodules and buffers."""

    def __init__(self, function: Callable, **members: object) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, Tensor):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def split_and_joined(m: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    left, right = m.conv(x).chunk(2, 1)
    return torch.cat([right, left.relu()], 1), torch.stack([left, right], 2), left.select(1, -1)


def shuffled_by_hand(m: nn.Module, x: Tensor) -> Tensor:
    batch, channels, height, width = x.shape
    return m.conv(x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous().view(batch, -1, height, width))


def written_out_activations(m: nn.Module, x: Tensor) -> Tensor:
    return x * F.relu6(x + 3) / 6 + x * torch.sigmoid(x) + 0.5 * x * (1 + torch.erf(x / 2**0.5)) + x * F.softplus(x).tanh()


def channels_last_mixer(m: nn.Module, x: Tensor) -> Tensor:
    return m.linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).transpose(-1, -2).swapaxes(2, 3)


IMAGE = (1, 8, 9, 7)
NETWORKS: dict[str, tuple[nn.Module, list[tuple[int, ...]], dict[str, int]]] = {
    "grouped and dilated": (
        nn.Sequential(
            nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4),
            nn.BatchNorm2d(8),
            nn.ReLU6(inplace=True),
            nn.Conv2d(8, 16, (3, 1), stride=(2, 1)),
            nn.BatchNorm2d(16),
            nn.Hardswish(),
        ),
        [IMAGE],
        {"conv2d": 2, "clamp": 1, "hardswish": 1},
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(8, 6, 3, stride=2, padding=1, output_padding=1, groups=2, bias=False),
            nn.BatchNorm2d(6),
            nn.LeakyReLU(0.1, inplace=True),
            nn.ConvTranspose2d(6, 4, 2, stride=2),
        ),
        [IMAGE],
        {"conv_transpose2d": 2, "leaky_relu": 1},
    ),
    "one dimension": (
        nn.Sequential(
            nn.Conv1d(4, 8, 5, padding=2, stride=2),
            nn.BatchNorm1d(8),
            nn.ReLU(),
            nn.MaxPool1d(2),
            nn.Conv1d(8, 8, 3, padding="same", groups=8),
            nn.BatchNorm1d(8),
            nn.ELU(),
            nn.AvgPool1d(2),
            nn.ConvTranspose1d(8, 4, 4, stride=2),
            nn.AdaptiveAvgPool1d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
            nn.BatchNorm1d(3),
        ),
        [(1, 4, 40)],
        {"reshape": 2, "conv2d": 2, "relu": 1, "max_pool2d": 1, "elu": 1, "avg_pool2d": 2, "conv_transpose2d": 1, "linear": 1},
    ),
    "perceptron": (
        nn.Sequential(nn.Flatten(), nn.Linear(72, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(), nn.BatchNorm1d(16), nn.Linear(16, 5)),
        [(1, 8, 9)],
        {"reshape": 1, "linear": 2, "gelu": 1},
    ),
    "two inputs": (
        Model(
            lambda m, image, vector: (m.conv(image) * torch.sigmoid(m.linear(vector))[:, :, None, None], m.linear(vector)),
            conv=nn.Conv2d(3, 4, 3, padding=1),
            linear=nn.Linear(5, 4),
        ),
        [(1, 3, 6, 6), (1, 5)],
        {"conv2d": 1, "linear": 2, "sigmoid": 1, "reshape": 1, "mul": 1},
    ),
    "splits": (
        Model(split_and_joined, conv=nn.Conv2d(8, 8, 1)),
        [IMAGE],
        {"conv2d": 1, "slice": 3, "relu": 1, "cat": 2, "reshape": 3},
    ),
    "channel shuffle": (
        Model(lambda m, x: m.conv(F.channel_shuffle(x, 4)), conv=nn.Conv2d(8, 8, 1, groups=2)),
        [IMAGE],
        {"reshape": 2, "permute": 1, "conv2d": 1},
    ),
    "channel shuffle by hand": (
        Model(shuffled_by_hand, conv=nn.Conv2d(8, 8, 1, groups=2)),
        [IMAGE],
        {"reshape": 2, "permute": 1, "conv2d": 1},
    ),
    "pixel shuffle and back": (nn.Sequential(nn.PixelShuffle(2), nn.PixelUnshuffle(2)), [IMAGE], {}),
    "upsampling": (
        nn.Sequential(nn.Upsample(scale_factor=(2, 3)), nn.Conv2d(8, 2, 1)),
        [IMAGE],
        {"reshape": 2, "expand": 1, "conv2d": 1},
    ),
    "activations": (Model(written_out_activations), [IMAGE], {"hardswish": 1, "silu": 1, "gelu": 1, "mish": 1, "add": 3}),
    "normalized input": (
        Model(
            lambda m, x: m.conv((x / 255 - m.mean) / m.deviation),
            mean=torch.rand(8, 1, 1),
            deviation=torch.rand(8, 1, 1) + 0.5,
            conv=nn.Conv2d(8, 4, 3),
        ),
        [IMAGE],
        {"conv2d": 1},
    ),
    "scaled residual": (
        Model(lambda m, x: x + 0.1 * m.conv(x) * m.gain, conv=nn.Conv2d(8, 8, 3, padding=1), gain=torch.rand(1, 8, 1, 1)),
        [IMAGE],
        {"conv2d": 1, "add": 1},
    ),
    "padding": (
        nn.Sequential(
            nn.ZeroPad2d(1),
            nn.Conv2d(8, 8, 3, padding=(1, 0)),
            nn.ReLU(),
            nn.ZeroPad2d(1),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(8, 2, 3, padding="same"),
        ),
        [IMAGE],
        {"conv2d": 2, "relu": 1, "max_pool2d": 1},
    ),
    "dense block": (
        Model(
            lambda m, x: m.tail(torch.cat([m.first(x), m.second(x), x], 1)),
            first=nn.Conv2d(8, 4, 1),
            second=nn.Conv2d(8, 4, 3, padding=1),
            tail=nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 1)),
        ),
        [IMAGE],
        {"conv2d": 4, "cat": 1, "relu": 1},
    ),
    "squeeze and excitation": (
        Model(
            lambda m, x: x * F.hardsigmoid(m.up(F.relu(m.down(x.mean((2, 3), keepdim=True))))),
            down=nn.Conv2d(8, 2, 1),
            up=nn.Conv2d(2, 8, 1),
        ),
        [IMAGE],
        {"mean": 1, "conv2d": 2, "relu": 1, "hardsigmoid": 1, "mul": 1},
    ),
    "channels last": (Model(channels_last_mixer, linear=nn.Linear(8, 4)), [IMAGE], {"permute": 2, "linear": 1}),
    "shared layer": (
        Model(lambda m, x: m.norm(m.conv(x)) + m.conv(x * 0.5), conv=nn.Conv2d(8, 8, 3, padding=1), norm=nn.BatchNorm2d(8)),
        [IMAGE],
        {"conv2d": 2, "add": 1},
    ),
    "in place": (
        Model(lambda m, x: m.conv(x).add_(1).relu_().mul_(2).flatten(1).clamp_(max=3), conv=nn.Conv2d(8, 4, 1)),
        [IMAGE],
        {"conv2d": 1, "relu": 1, "mul": 1, "clamp": 1, "reshape": 1},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_small_network(rewrite: Callable, name: str) -> None:
    model, shapes, ops = NETWORKS[name]
    rewritten = rewrite(Canonicalize(), model, *shapes)
    assert rewritten.ops == ops
    targets = {node.target for node in rewritten.program.graph.nodes if node.op == "call_function"}
    assert targets <= CANONICAL_OPS


@pytest.mark.parametrize("name", ["grouped and dilated", "one dimension", "splits", "squeeze and excitation"])
def test_fixed_batch(name: str) -> None:
    model, shapes, ops = NETWORKS[name]
    inputs = [torch.randn(2, *shape[1:]) for shape in shapes]
    before = capture(model, inputs, dynamic_batch=False)
    after = Canonicalize().run(before, PassContext()).program
    assert sum(node.op == "call_function" for node in after.graph.nodes) == sum(ops.values())
    for left, right in zip(before.run(*inputs), after.run(*inputs), strict=True):
        assert (left - right).abs().max() <= 1e-5 * left.abs().max()


def test_nothing_to_do(rewrite: Callable) -> None:
    rewritten = rewrite(Canonicalize(), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), (1, 3, 6, 6))
    assert not rewritten.result.modified and rewritten.result.notes == ()


def test_notes_name_the_step_and_what_was_left_alone(rewrite: Callable) -> None:
    model = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    notes = rewrite(Canonicalize(), model, (1, 3, 6, 6)).result.notes
    assert notes == (
        "normalize-views: 1 rewritten",
        "fold-batch-norm: 1 rewritten",
        "fold-pad: conv2d (1) left alone: 'constant_pad_nd' does not pad both sides alike",
    )


def test_resnet20(resnet20: nn.Module, cifar10_test: tuple[Tensor, Tensor]) -> None:
    _check_real_network(
        resnet20, cifar10_test[0][:16], {"conv2d": 19, "relu": 19, "add": 9, "slice": 4, "constant_pad_nd": 2, "mean": 1, "linear": 1}
    )


def test_resnet56(resnet56: nn.Module, cifar10_test: tuple[Tensor, Tensor]) -> None:
    _check_real_network(
        resnet56, cifar10_test[0][:4], {"conv2d": 55, "relu": 55, "add": 27, "slice": 4, "constant_pad_nd": 2, "mean": 1, "linear": 1}
    )


def test_efficientnet_lite0(efficientnet_lite0: nn.Module) -> None:
    # The five paddings left are the asymmetric ones of the stem and of the layers with stride 2.
    ops = {"conv2d": 49, "clamp": 33, "add": 9, "constant_pad_nd": 5, "mean": 1, "linear": 1}
    _check_real_network(efficientnet_lite0, torch.randn(2, 3, 224, 224), ops)


def _check_real_network(model: nn.Module, images: Tensor, ops: dict[str, int]) -> None:
    before = capture(model, images[:1])
    after = Canonicalize().run(before, PassContext()).program
    after.verify()
    calls = [str(node.target).split(".")[1] for node in after.graph.nodes if node.op == "call_function"]
    assert {name: calls.count(name) for name in calls} == ops
    # Each layer rounds to 2^-24 of its values; some fifty of them in a row stay far below 1e-5 of the largest logit.
    assert (before(images) - after(images)).abs().max() <= 1e-5 * before(images).abs().max()
