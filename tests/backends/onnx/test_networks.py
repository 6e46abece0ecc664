"""Whole networks: the integer-only file equals the program on every input, whatever the recipe and the length."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import fx, nn

import qcompiler as qc
from models.bert import BertConfiguration, SentenceEncoder
from models.vit import PatchEmbed, VisionTransformer
from qcompiler.ir.program import Program
from qcompiler.ir.types import DynamicSize

NODES = 25
QUICK = {"quantize.observer": "min-max", "quantize.weight_observer": "min-max"}
WORDS = 40


def _equal(program: Program, session: Any, path: Any, calls: list[tuple[torch.Tensor, ...]], opset: int | None = None) -> None:
    qc.export_onnx(program, path / "m.onnx", opset=opset)
    run = session(path / "m.onnx")
    for call in calls:
        for want, got in zip(program.run(*call), run(*call), strict=True):
            assert want.dtype == got.dtype and torch.equal(want, got)


def test_resnet20(resnet20: nn.Module, cifar10_calibration: Any, cifar10_test: Any, session: Any, tmp_path: Any) -> None:
    program = qc.capture(resnet20, cifar10_calibration[:2])
    program = qc.quantize(program, cifar10_calibration[:40].split(20), options=QUICK)
    _equal(program, session, tmp_path, [(images,) for images in cifar10_test[0][:40].split((1, 7, 32))])


@pytest.mark.parametrize("recipe", ["int8", "repq-vit-w4a4"])
def test_vision_transformer(recipe: str, session: Any, tmp_path: Any) -> None:
    """Tables of softmax and GELU, LayerNorm; codes with unequal steps."""
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(4, 32), 16, 32, 1, 2, 10).eval()
    data = list(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0)).split(4))
    program = qc.quantize(qc.capture(model, data[0]), data, recipe=recipe, options=QUICK)
    _equal(program, session, tmp_path, [(data[0],), (torch.cat(data)[:7],)])


def test_sentence_encoder_at_every_length(session: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = SentenceEncoder(BertConfiguration(vocabulary=WORDS, width=32, layers=1, heads=2, hidden=64, positions=48)).eval()
    length = DynamicSize("sequence", 1, 24)
    program = qc.capture(model, _sentences(1, 8), dynamic_shapes={"ids": {1: length}, "mask": {1: length}})
    program = qc.quantize(program, [_sentences(4, length) for length in (5, 12, 24)], options=QUICK)
    _equal(program, session, tmp_path, [_sentences(batch, length) for batch in (1, 2, 5) for length in (1, 7, 24)])


def _sentences(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; each sentence is shorter than the one before."""
    generator = torch.Generator().manual_seed(batch * 100 + length)
    kept = torch.tensor([max(1, length - 3 * index) for index in range(batch)])
    return torch.randint(0, WORDS, (batch, length), generator=generator), (torch.arange(length) < kept[:, None]).to(torch.int64)


def _grow(p: Any, choose: random.Random, maps: list[fx.Node]) -> fx.Node:
    """One more 8-bit map made of those that exist."""
    x = choose.choice(maps)
    channels, height, _ = (int(size) for size in x.meta["val"].shape[1:])
    alike = [other for other in maps if other.meta["val"].shape[1:] == x.meta["val"].shape[1:]]
    kind = choose.choice(["convolution", "depthwise", "residual", "pool", "cat", "slice", "flip", "pad", "table", "scale"])
    if kind in ("convolution", "depthwise"):
        groups, outputs = (channels, channels) if kind == "depthwise" else (1, choose.choice([8, 16, 24]))
        size, stride = choose.choice([1, 3, 5]), choose.choice([1, 1, 2])
        sides = [size // 2] * 4
        accumulator, bound = p.convolution(
            x, outputs, (size, size), (stride, stride), sides, groups=groups, pad_value=choose.randrange(256)
        )
        return p.requantize(accumulator, bound, choose.choice([(), (outputs, 1, 1)]), choose.choice(["high", "narrow", "exact64"]))
    if kind == "residual":
        accumulator, bound = p.convolution(choose.choice(alike), channels, (3, 3), padding=(1, 1, 1, 1))
        return p.add(accumulator, x, bound, 255)
    simple = {
        "pool": lambda: p.call("qc.max_pool2d", x, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1]),
        "cat": lambda: p.call("aten.cat", [x, choose.choice(alike)], 1),
        "slice": lambda: p.call("aten.slice:Tensor", x, 1, choose.randrange(channels // 2), channels, choose.choice([1, 2])),
        "flip": lambda: p.call("aten.flip", x, [choose.choice([1, 2, 3])]),
        "pad": lambda: p.call("aten.constant_pad_nd", x, [1, 0, -min(1, height - 1), 2], 9),
        "table": lambda: p.call("qc.lookup", x, p.integers("table", 0, 255, (256,), torch.uint8), 8, False),
        "scale": lambda: p.requantize(p.call("qc.multiply", x, choose.choice(alike), 3, 250), 1 << 16),
    }
    return simple[kind]()


@pytest.mark.parametrize("seed", range(4))
def test_random_programs(seed: int, integer_program: Any, differing: Any) -> None:
    p, choose = integer_program(seed), random.Random(seed)
    maps = [p.input(None, 16, 12, 10)]
    for _ in range(NODES):
        maps.append(_grow(p, choose, maps))
    outputs = [node for node in maps if not node.users or choose.random() < 0.2]
    program = p.finish(*dict.fromkeys(outputs))
    assert not differing(program, [spec.name for spec in program.outputs], (1, 3), opset=choose.choice([13, 18, 21, 26]))
