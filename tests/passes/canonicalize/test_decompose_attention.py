from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

from qcompiler.capture import capture
from qcompiler.passes.canonicalize.decompose_attention import DecomposeAttention
from qcompiler.passes.canonicalize.normalize_arithmetic import NormalizeArithmetic
from qcompiler.passes.canonicalize.normalize_views import NormalizeViews
from qcompiler.pipeline.contract import PassContext

HEADS = (2, 3, 5, 4)


def test_golden(rewrite: Callable, network: type) -> None:
    rewritten = rewrite(DecomposeAttention(), network(lambda m, q, k, v: F.scaled_dot_product_attention(q, k, v)), HEADS, HEADS, HEADS)
    assert rewritten.lines == [
        "permute = aten.permute(inputs_1, dims=[0, 1, 3, 2])",
        "matmul = aten.matmul(inputs_0, permute)",
        "mul = aten.mul.Tensor(matmul, other=0.5)",
        "softmax = aten.softmax.int(mul, dim=-1)",
        "matmul_1 = aten.matmul(softmax, inputs_2)",
    ]


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"scale": 0.1}, 1),
        ({"is_causal": True}, 1),
        ({"attn_mask": torch.randn(5, 5)}, 1),
        ({"attn_mask": torch.randn(5, 5) > -1}, 1),
        ({"attn_mask": torch.ones(3, 5, 5, dtype=torch.bool).tril()}, 1),
    ],
)
def test_arguments(rewrite: Callable, network: type, options: dict, count: int) -> None:
    def attention(m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, **options)

    rewritten = rewrite(DecomposeAttention(), network(attention), HEADS, HEADS, HEADS)
    assert rewritten.ops["softmax"] == count and rewritten.ops["scaled_dot_product_attention"] == 0


def test_computed_boolean_mask(rewrite: Callable, network: type) -> None:
    def attention(m: nn.Module, q: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, attn_mask=mask[:, None, None, :])

    rewritten = rewrite(DecomposeAttention(), network(attention), HEADS, torch.ones(2, 5, dtype=torch.bool))
    assert rewritten.ops["logical_not"] == rewritten.ops["masked_fill"] == 1


def test_grouped_queries(rewrite: Callable, network: type) -> None:
    def attention(m: nn.Module, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)

    rewritten = rewrite(DecomposeAttention(), network(attention), (2, 6, 5, 4), (2, 2, 5, 4), (2, 2, 5, 4))
    assert rewritten.ops["expand"] == 2


def test_causal_mask_of_a_sequence_is_sliced(rewrite: Callable, network: type) -> None:
    def attention(m: nn.Module, q: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, q, q, is_causal=True)

    length = {0: {2: Dim("sequence", min=1, max=9)}}
    rewritten = rewrite(DecomposeAttention(), network(attention), HEADS, dynamic_shapes=length)
    assert rewritten.ops["slice"] == 2
    (mask,) = [tensor for name, tensor in rewritten.program.graph_module.named_buffers() if name.endswith("later")]
    assert mask.shape == (9, 9)


def test_scale_of_an_operand_moves_behind_the_product(rewrite: Callable, network: type) -> None:
    model = network(lambda m, q, k: (q * 0.5).permute(0, 2, 1) @ (k / 3))
    rewritten = rewrite(DecomposeAttention(), model, (2, 4, 3), (2, 4, 5), before=[NormalizeArithmetic()])
    assert rewritten.lines[-1] == "mul_2 = aten.mul.Tensor(matmul_1, other=0.16666666666666666)"
    assert rewritten.ops == {"permute": 1, "matmul": 1, "mul": 1}


def test_a_scale_that_an_exporter_split_is_one_again(rewrite: Callable, network: type) -> None:
    half = float(torch.tensor(24.0).rsqrt().sqrt())

    def scores(m: nn.Module, q: Tensor, k: Tensor) -> Tensor:
        return (q * half).flatten(2)[:, :3] @ (k * half).permute(0, 2, 1)

    rewritten = rewrite(DecomposeAttention(), network(scores), (2, 5, 2, 12), (2, 4, 24), before=[NormalizeViews(), NormalizeArithmetic()])
    assert rewritten.lines[-1] == f"mul_2 = aten.mul.Tensor(matmul_1, other={1 / math.sqrt(24)})" and rewritten.ops["mul"] == 1


def test_batched_products(rewrite: Callable, network: type) -> None:
    model = network(lambda m, a, b, c: torch.baddbmm(c, a, torch.bmm(a, b), beta=0.5, alpha=2))
    assert rewrite(DecomposeAttention(), model, (2, 3, 3), (2, 3, 3), (2, 3, 3)).ops == {"matmul": 2, "mul": 2, "add": 1}


def test_scale_that_others_read_stays(rewrite: Callable, network: type) -> None:
    def scores(m: nn.Module, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        scaled = q * 0.5
        return scaled @ k, scaled

    assert not rewrite(DecomposeAttention(), network(scores), (2, 3, 4), (2, 4, 3)).result.modified


def test_dropout_is_declined(rewrite: Callable, network: type) -> None:
    model = network(lambda m, q: F.scaled_dot_product_attention(q, q, q, dropout_p=0.1))
    result = DecomposeAttention().run(capture(model, torch.zeros(HEADS)), PassContext())
    assert not result.modified and "it drops elements with probability 0.1" in result.notes[0]
