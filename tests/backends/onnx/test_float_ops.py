"""Writers of float ops against torch, within the rounding of float32: the order of sums is onnxruntime's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.backends.onnx import quantized
from qcompiler.backends.onnx.export import make_model
from qcompiler.backends.onnx.files import checked
from qcompiler.ir.float_ops import CANONICAL_OPS
from qcompiler.ir.program import Program
from qcompiler.ir.stages import target_text
from qcompiler.ir.types import DynamicSize
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

TOLERANCE = 2e-6  # of the largest magnitude: sums of up to 100 products, each rounded to 2^-24

IMAGE: dict[str, Callable[[Tensor], Tensor]] = {
    **{name: getattr(F, name) for name in ("relu", "gelu", "silu", "hardswish", "hardsigmoid", "mish", "softplus", "leaky_relu", "elu")},
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu_scaled": lambda x: torch.ops.aten.elu.default(x, 1.7, 1.1, 1.0),
    "elu_with_inner_scale": lambda x: torch.ops.aten.elu.default(x, 1.7, 1.1, 0.5),
    "softplus_steep": lambda x: F.softplus(x, 3.0),
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "erf": torch.erf,
    "abs": torch.abs,
    "neg": torch.neg,
    "log_sqrt": lambda x: torch.log(torch.sqrt(x.abs() + 1)),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 1),
    "reciprocal": lambda x: torch.reciprocal(x.abs() + 1),
    "square": lambda x: x**2,
    "cube": lambda x: x**3,
    "clamp": lambda x: torch.clamp(x, -0.3, 0.7),
    "clamp_low": lambda x: torch.clamp(x, min=0.1),
    "arithmetic": lambda x: (x + 1.5 * x.flip(1)) * (2 - x) / (x.abs() + 2) - x,
    "scaled_sum": lambda x: torch.add(x, x, alpha=2),
    "extremes": lambda x: torch.maximum(x, -x) + torch.minimum(x, x.flip(2)),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "max_pool_ceil": lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True),
    "average_pool": lambda x: F.avg_pool2d(x, 3, 2, 1),
    "average_pool_ceil": lambda x: F.avg_pool2d(x, (2, 3), (3, 2), ceil_mode=True, count_include_pad=False),
    "average_pool_excluding": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "average_pool_divisor": lambda x: F.avg_pool2d(x, 3, 1, 0, divisor_override=5),
    "global_average": lambda x: F.adaptive_avg_pool2d(x, 1),
    "equal_windows": lambda x: F.adaptive_avg_pool2d(x, (4, 3)),
    "unequal_windows": lambda x: F.adaptive_avg_pool2d(x, (5, 4)),
    "adaptive_max": lambda x: F.adaptive_max_pool2d(x, (5, 4)),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1, keepdim=True),
    "amax": lambda x: x.amax((2, 3)),
    "softmax": lambda x: F.softmax(x, -1),
    "softmax_channels": lambda x: F.softmax(x, 1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "hadamard": lambda x: torch.ops.qc.hadamard(x.permute(0, 2, 3, 1), 4),
    "layer_norm_plain": lambda x: F.layer_norm(x, (9,)),
    "rms_norm": lambda x: F.rms_norm(x, (9,), torch.arange(9.0)),
    "masked_fill": lambda x: x.masked_fill(x > 0.2, -1.0),
    "where": lambda x: torch.where((x > 0.2) & ~(x >= 1) | (x < -1), x, x + 1),
    "argmax": lambda x: x.argmax(1),
    "rows": lambda x: F.embedding(x.argmax(1), torch.arange(32.0).reshape(8, 4)),
    "moved": lambda x: x.permute(0, 2, 3, 1).reshape(-1, 12, 72)[:, 1:, ::3],
    "joined": lambda x: torch.cat([x, F.pad(x, (1, 0, 0, 0), value=0.5)[..., :9]], 1),
    "expanded": lambda x: x[:, :1].expand(-1, 3, -1, -1) + 0,
    "matmul": lambda x: x @ x.transpose(2, 3),
    "linear_of_images": lambda x: F.linear(x, torch.arange(45.0).reshape(5, 9) / 45, torch.arange(5.0)),
    "cast": lambda x: (x > 0.1).to(torch.float32),
}


class EveryOp(nn.Module):
    """Gives one result a function, and those of layers with weights."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(
            [
                nn.Conv2d(8, 6, 3, 2, 1, 1, 2),
                nn.Conv2d(8, 4, (3, 1), dilation=2, bias=False),
                nn.ConvTranspose2d(8, 4, 3, 2, 1, 1),
                nn.PReLU(8),
                nn.LayerNorm(9),
                nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)),
            ]
        )

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return (*(function(x) for function in IMAGE.values()), *(layer(x) for layer in self.layers))


@pytest.fixture(scope="module")
def every_op() -> Program:
    program = qc.capture(EveryOp().eval(), torch.randn(2, 8, 12, 9))
    return PassManager(parse_pipeline("canonicalize")).run(program)


@pytest.mark.parametrize("opset", [13, 17, 21, 26])
def test_equals_torch(opset: int, every_op: Program, session: Any) -> None:
    x = torch.randn(3, 8, 12, 9, generator=torch.Generator().manual_seed(1))
    names = [*IMAGE, *(type(layer).__name__ for layer in EveryOp().layers)]
    got = session(checked(make_model(every_op, "float", opset)))(x)
    for name, want, found in zip(names, every_op.run(x), got, strict=True):
        assert want.dtype == found.dtype and want.shape == found.shape, name
        assert float((want.double() - found.double()).abs().max()) <= TOLERANCE * max(1.0, float(want.abs().max())), name


def test_every_canonical_op_has_a_writer() -> None:
    assert {target_text(target) for target in CANONICAL_OPS} - set(quantized.FLOAT_WRITERS) == {"aten.sym_size.int"}


class Attention(nn.Module):
    """Tokens of a length that is known when it is called, with positions and a mask."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens, self.positions = nn.Embedding(50, 16), nn.Embedding(40, 16)
        self.norm, self.mix = nn.LayerNorm(16), nn.Linear(16, 48)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.norm(self.tokens(ids) + self.positions(torch.arange(ids.shape[1])))
        q, k, v = self.mix(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4).unbind(0)
        kept = (mask != 0)[:, None, None, :]
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=kept).transpose(1, 2).flatten(2)
        weight = mask[..., None].to(torch.float32)
        return (attended * weight).sum(1) / weight.sum(1).clamp(min=1)


@pytest.mark.parametrize("opset", [13, 21])
def test_open_lengths(opset: int, session: Any) -> None:
    ids = torch.randint(0, 50, (2, 8))
    length = DynamicSize("sequence", 2, 40)
    program = qc.capture(Attention().eval(), (ids, torch.ones_like(ids)), dynamic_shapes={"ids": {1: length}, "mask": {1: length}})
    program = PassManager(parse_pipeline("canonicalize")).run(program)
    run = session(checked(make_model(program, "float", opset)))
    for batch, size in ((1, 2), (3, 40), (2, 7)):
        ids = torch.randint(0, 50, (batch, size))
        mask = (torch.arange(size) < torch.randint(1, size + 1, (batch, 1))).long()
        (want,), (got,) = program.run(ids, mask), run(ids, mask)
        assert torch.allclose(want, got, rtol=0, atol=TOLERANCE * 4)
