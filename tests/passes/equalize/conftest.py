"""What the tests of equalization share: small transformers and CNNs, one pass run with its statistics, and fake quantization."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.collector import StatisticsCollector
from qcompiler.pipeline.contract import Pass, PassContext, PassResult
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import SilentProgress
from qcompiler.pipeline.text import parse_pipeline


@dataclass(frozen=True)
class Rewritten:
    """A canonical program before and after a pass, and the inputs that it was calibrated on."""

    before: Program
    result: PassResult
    inputs: tuple[Tensor, ...]

    @property
    def notes(self) -> str:
        return "\n".join(self.result.notes)

    @property
    def difference(self) -> float:
        """max |after - before| / max |before| over the outputs."""
        pairs = zip(self.before.run(*self.inputs), self.result.program.run(*self.inputs), strict=True)
        return max(float((b - a).abs().max() / a.abs().max()) for a, b in pairs)

    def gain(self, w: int, a: int) -> float:
        """By how many dB the signal-to-noise ratio of the outputs rises when both are quantized alike."""
        return self.noise_ratio(self.result.program, w, a) - self.noise_ratio(self.before, w, a)

    def noise_ratio(self, program: Program, w: int, a: int) -> float:
        """Signal to noise of a FLOAT program's outputs, in dB, with w bits of weights and a bits of activations."""
        want = self.before.run(*self.inputs)[0]
        return signal_to_noise([want], [fake_quantized(program, w, a, self.inputs)])


def fake_quantized(program: Program, w: int, a: int, inputs: tuple[Tensor, ...]) -> Tensor:
    """The first output of a graph whose layers round their weights (per output channel) and inputs (one range over all of them)."""

    def rounded(node: torch.fx.Node, values: list[Tensor]) -> list[Tensor]:
        steps = (1 << a) - 1
        low, high = min(float(values[0].min()), 0.0), max(float(values[0].max()), 0.0)
        scale = max((high - low) / steps, 1e-12)
        zero = round(-low / scale)
        x = (((values[0] / scale).round() + zero).clamp(0, steps) - zero) * scale
        largest = (1 << (w - 1)) - 1
        transposed = "transpose" in str(node.target)
        dims = [dim for dim in range(values[1].dim()) if dim != (1 if transposed else 0)]
        weight_scale = values[1].abs().amax(dims, keepdim=True).clamp(min=1e-12) / largest
        return [x, (values[1] / weight_scale).round().clamp(-largest, largest) * weight_scale, *values[2:]]

    class Rounding(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            if any(name in str(n.target) for name in ("aten.linear", "aten.conv")):
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                return n.target(*rounded(n, list(args[:2])), *args[2:], **kwargs)
            return super().run_node(n)

    with torch.no_grad():
        return Rounding(program.graph_module).run(*inputs)[0]


def canonical(model: nn.Module, inputs: tuple[Tensor, ...]) -> Program:
    return PassManager(parse_pipeline("canonicalize")).run(capture(model.eval(), inputs))


def run_pass(item: Pass, before: Program, *inputs: Tensor) -> Rewritten:
    """Give the pass its statistics and run it; what every pass promises is checked."""
    collector = StatisticsCollector(CalibrationData([inputs], before.inputs), SilentProgress())
    text, buffers = before.text(), {name: tensor.clone() for name, tensor in before.graph_module.named_buffers()}
    result = item.run(before, PassContext(collector.answer(before, [item])))
    result.program.verify()
    assert before.text() == text and all(torch.equal(value, buffers[name]) for name, value in before.graph_module.named_buffers())
    assert result.modified == (result.program.graph_module is not before.graph_module)
    return Rewritten(before, result, inputs)


class Attention(nn.Module):
    """Self-attention with queries, keys and values from one product or from three."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.heads, self.fused = heads, fused
        self.qkv = nn.Linear(width, 3 * width) if fused else nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        if self.fused:
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        else:
            q, k, v = (layer(x).reshape(n, t, self.heads, c // self.heads).transpose(1, 2) for layer in self.qkv)
        p = ((q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5).softmax(-1)
        return self.projection((p @ v).transpose(1, 2).reshape(n, t, c))


class RMSNorm(nn.RMSNorm):
    """As canonical programs have it."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.rms_norm(x, [x.shape[-1]], self.weight, 1e-6)


class Block(nn.Module):
    """A transformer block, drawn by a seed: before or after the sums normalized, MLP with GELU, ReLU or a gate."""

    def __init__(self, seed: int, *, pre_norm: bool | None = None) -> None:
        super().__init__()
        draw = random.Random(seed)
        width = draw.choice((16, 24))
        self.width = width
        self.pre_norm = draw.random() < 0.7 if pre_norm is None else pre_norm
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attention = Attention(width, 4, fused=draw.random() < 0.5)
        self.activation = draw.choice((F.gelu, F.relu, None))
        self.up = nn.Linear(width, 2 * width)
        self.gate = nn.Linear(width, 2 * width) if self.activation is None else nn.Identity()
        self.down = nn.Linear(2 * width, width)
        for norm in self.norms:
            nn.init.normal_(norm.weight, 1.0, 0.3)
            nn.init.normal_(norm.bias, 0.0, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        if not self.pre_norm:
            x = self.norms[0](x + self.attention(x))
            return self.norms[1](x + self.mlp(x))
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))

    def mlp(self, x: Tensor) -> Tensor:
        if self.activation is None:
            return self.down(F.silu(self.gate(x)) * self.up(x))
        return self.down(self.activation(self.up(x)))


@functools.cache
def transformer(seed: int, pre_norm: bool | None = None) -> tuple[Program, Tensor]:
    """A canonical block with its tokens."""
    torch.manual_seed(seed)
    block = Block(seed, pre_norm=pre_norm)
    tokens = torch.randn(8, 9, block.width)
    return canonical(block, (tokens,)), tokens


class Convolutions(nn.Module):
    """Convolutions in a row, drawn by a seed: depthwise, grouped, padded or not, with ReLU, leaky ReLU, ReLU6 or nothing between."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        layers: list[nn.Module] = []
        channels = 3
        for _ in range(4):
            outputs = draw.choice((8, 12))
            groups = channels if channels == outputs and draw.random() < 0.7 else 1
            kernel = draw.choice((1, 3))
            layers.append(nn.Conv2d(channels, outputs, kernel, padding=draw.choice((0, kernel // 2)), groups=groups))
            layers.append(draw.choice((nn.ReLU(), nn.LeakyReLU(0.1), nn.ReLU6(), nn.Identity(), nn.MaxPool2d(2, 1))))
            channels = outputs
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


@functools.cache
def convolutions(seed: int) -> tuple[Program, Tensor]:
    """A canonical network with its images."""
    torch.manual_seed(seed)
    network, images = Convolutions(seed), torch.randn(8, 3, 14, 14)
    return canonical(network, (images,)), images


class FeedForward(nn.Module):
    """A norm and two layers that read it."""

    def __init__(self, norm: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.norm, self.first, self.second = norm, nn.Linear(width, 24), nn.Linear(width, 24)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(self.norm(x)) + self.second(self.norm(x)).relu()


@torch.no_grad()
def plant(norm: nn.Module, *layers: nn.Linear, factor: float = 60.0, channels: tuple[int, ...] = (1, 5)) -> None:
    """Outliers in some channels of a norm's result that the layers after it undo: the function stays."""
    for channel in channels:
        norm.weight[channel] *= factor
        if getattr(norm, "bias", None) is not None:
            norm.bias[channel] *= factor
        for layer in layers:
            layer.weight[:, channel] /= factor


@pytest.fixture(name="apply")
def apply_fixture() -> Callable[..., Rewritten]:
    """``apply(item, model or canonical program, *inputs)``: what a pass makes of it."""

    def apply(item: Pass, model: nn.Module | Program, *inputs: Tensor) -> Rewritten:
        return run_pass(item, model if isinstance(model, Program) else canonical(model, inputs), *inputs)

    return apply


@pytest.fixture(name="transformer")
def transformer_fixture() -> Callable[..., tuple[Program, Tensor]]:
    """``transformer(seed, pre_norm=None)``: a random block and its tokens."""
    return transformer


@pytest.fixture(name="convolutions")
def convolutions_fixture() -> Callable[[int], tuple[Program, Tensor]]:
    """``convolutions(seed)``: a random network and its images."""
    return convolutions


@pytest.fixture(name="plant")
def plant_fixture() -> Callable[..., None]:
    """``plant(norm, *layers)``: outliers that leave the function as it is."""
    return plant


@pytest.fixture(name="feed_forward")
def feed_forward_fixture() -> Callable[..., nn.Module]:
    """``feed_forward(norm)``: the norm, two linear layers that read it, and their sum."""
    return FeedForward
