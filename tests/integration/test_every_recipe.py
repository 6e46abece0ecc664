"""Every recipe gives integers alone, and compiled code that computes the very same ones."""

from __future__ import annotations

import pytest
import torch

import qcompiler as qc
from models.vit import PatchEmbed, VisionTransformer
from qcompiler.ir.types import Stage
from qcompiler.pipeline.recipes import recipe_names

# Fewer steps and samples than anyone would take, for recipes that fit weights.
QUICK = {
    "is-vit-w3a4": {"reconstruct-blocks.steps": 2},
    "repquant-w4a4": {"gptq.samples": 8},
    "rotate-w4a4": {"gptq.samples": 8},
    "hawq-v3": {"allocate.average_weight_bits": 6},
    "mixed": {"allocate.bops": 4e6, "allocate.size": 1e5, "allocate.activation_bits": (4, 8)},
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", recipe_names())
def test_compiled_code_equals_the_reference(recipe: str) -> None:
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(4, 24), patches=16, width=24, depth=2, heads=2, classes=5).eval()
    images = torch.randn(8, 3, 16, 16)
    program = qc.quantize(qc.capture(model, images[:2]), images.split(4), recipe=recipe, options=QUICK.get(recipe, {}))
    assert program.stage is Stage.INTEGER and not program.islands
    module = qc.compile(program, target="x86-64-vnni", threads=1)
    for batch in (images, images[:1]):
        assert torch.equal(module(batch), program(batch))
