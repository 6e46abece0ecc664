"""Planted outliers, as large transformers have them: what rounding loses with and without rotations.

A uniform quantizer with one scale has a step in proportion to the largest value. A channel that is L times the others costs the others
20 log10(L) dB: at L = 16 that is all that 4 bits have (25 dB for Gaussian values without outliers), and at L = 100 most of 8 bits (49 dB).

- After a norm, L comes from its weight, which moves into the next layers: nothing is left of it, whatever L is.
- In a hidden layer nothing can take it over. Spread over n channels it adds L / sqrt(n) to each: no more than all others together up to
  L = sqrt(n), here 16 = sqrt(256). Another 6 dB, one bit, is what a sum of two parts of equal size costs against one.

So of what the outliers cost, rotations win back at least half in dB, and W8A8 comes within 6 dB of the network without outliers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from models.llama_block import Llama, LlamaConfiguration
from models.vit import PatchEmbed, VisionTransformer
from qcompiler.arithmetic.hadamard import hadamard_matrix
from qcompiler.pipeline.instruments import signal_to_noise

ALL = "layer-norm-to-rms-norm,rotate-residual-stream{kind=randomized},rotate-value-output,rotate-query-key,rotate-mlp"
QUANTIZE = "quantize{{w={bits},a={bits},score_bits=8,function_bits=8,probability_bits=8,edge_bits=8,observer=min-max}}"


def _stream_outlier(model: VisionTransformer, factor: float) -> VisionTransformer:
    """A channel of every block's norms x factor, undone by the weights that read it: activations have it, the function stays."""
    with torch.no_grad():
        for block in model.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                norm.weight[3] *= factor
                norm.bias[3] *= factor
                linear.weight[:, 3] /= factor
    return model


def _massive_activations(model: Llama, factor: float) -> Llama:
    """A channel of what each down projection reads x factor, undone by its weight."""
    with torch.no_grad():
        for layer in model.layers:
            layer.mlp.down_proj.weight *= 8  # or the embeddings would be most of the output
            layer.mlp.up_proj.weight[5] *= factor
            layer.mlp.down_proj.weight[:, 5] /= factor
    return model


def _vit(factor: float) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = VisionTransformer(PatchEmbed(8, 48), 16, 48, 1, 3, 10)
    nn.init.normal_(model.pos_embed, std=0.5)
    return _stream_outlier(model, factor), torch.randn(8, 3, 32, 32)


def _llama(factor: float) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(1)
    model = Llama(LlamaConfiguration(vocabulary=50, width=64, layers=1, heads=4, key_heads=2, hidden=256, positions=12))
    return _massive_activations(model, factor), torch.randint(0, 50, (8, 12))


@pytest.mark.parametrize(("make", "outlier"), [(_vit, 100.0), (_llama, 16.0)])
def test_rotations_win_back_what_outliers_cost(
    make: Callable[[float], tuple[nn.Module, torch.Tensor]], outlier: float, network_of: Callable[..., Any]
) -> None:
    plain, planted = (network_of(*make(factor)) for factor in (1.0, outlier))
    rotated = planted.after(ALL)
    for bits in (4, 8):
        quantize = QUANTIZE.format(bits=bits)
        without, with_outliers = (each.noise_ratio(each.after(quantize)) for each in (plain, planted))
        recovered = planted.noise_ratio(planted.after(f"{ALL},{quantize}"))
        assert without - with_outliers > 2.0
        assert recovered - with_outliers > 0.5 * (without - with_outliers)
        assert bits < 8 or recovered > without - 6.0
    assert planted.difference(rotated) < 1e-4


def test_a_mean_is_no_outlier() -> None:
    """Values behind GELU have one. Sylvester's matrix puts sqrt(n) times it into one channel, which is 7 dB at 4 bits; ours into all."""
    channels = 1024
    values = nn.functional.gelu(torch.randn(1000, channels, generator=torch.Generator().manual_seed(0)))
    sylvester = torch.ones(1, 1)
    while len(sylvester) < channels:
        sylvester = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), sylvester)
    ratios = [_rounded_to_4_bits(values @ matrix / channels**0.5) for matrix in (sylvester, hadamard_matrix(channels).float())]
    assert ratios == pytest.approx([7.8, 14.4], abs=0.2)
    assert _rounded_to_4_bits(values) == pytest.approx(17.9, abs=0.2)


def _rounded_to_4_bits(values: torch.Tensor) -> float:
    """Signal to noise in dB, with one scale from the least value to the largest."""
    low, high = values.min(), values.max()
    scale = (high - low) / 15
    return signal_to_noise([values], [((values - low) / scale).round() * scale + low])
