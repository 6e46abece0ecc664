"""A whole small vision transformer at W3A8, and a text encoder with a mask, which bypasses every cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.passes.reconstruct.blocks import find_blocks
from qcompiler.passes.reconstruct.layers import find_layers
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

WIDTH, HEADS = 16, 2


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.fc1, self.fc2 = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.proj(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """[N, 3, 8, 8] to [N, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 2, 2)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


class TextEncoder(nn.Module):
    """Token ids and their mask, [N, 8] both, to [N, 8, WIDTH]."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids)
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :].bool())
        return x


@pytest.fixture(scope="module")
def vision(cases: Any) -> Any:
    torch.manual_seed(0)
    return cases.quantized(VisionTransformer(), cases.images(64, 1), cases.images(64, 2), w=3)


@pytest.mark.parametrize(("text", "factor"), [("gptq", 0.8), ("reconstruct-blocks{steps=60}", 0.9)])
def test_a_vision_transformer(vision: Any, text: str, factor: float) -> None:
    assert vision.error(vision.run(text)) < factor * vision.error(vision.qdq)


def test_blocks_are_attention_and_mlp(vision: Any) -> None:
    layers, _ = find_layers(vision.qdq, vision.reference)
    assert [len(block.layers) for block in find_blocks(vision.qdq, vision.reference, layers)] == [1, 2, 2, 2, 2, 1]


def test_a_mask_bypasses_the_cuts() -> None:
    torch.manual_seed(0)
    ids, mask = torch.randint(0, 50, (32, 8)), (torch.arange(8) < torch.randint(3, 9, (32, 1))).long()
    reference = PassManager(parse_pipeline("canonicalize")).run(capture(TextEncoder().eval(), (ids[:2], mask[:2])))
    data = CalibrationData([(ids, mask)], reference.inputs)
    qdq = PassManager(parse_pipeline("quantize{w=3}")).run(reference, data)
    layers, declined = find_layers(qdq, reference)
    assert not declined
    assert [len(block.layers) for block in find_blocks(qdq, reference, layers)] == [2, 2, 2, 2]
    result = PassManager(parse_pipeline("reconstruct-blocks{steps=50}")).run(qdq, data, reference=reference)
    expected, before, after = (program.run(ids, mask)[0][mask.bool()] for program in (reference, qdq, result))
    assert (after - expected).square().sum() < 0.9 * (before - expected).square().sum()
