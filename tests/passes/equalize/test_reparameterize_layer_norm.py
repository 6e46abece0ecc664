from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qcompiler.api import capture, quantize
from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.passes.equalize.reparameterize_layer_norm import ReparameterizeLayerNorm, enough_values
from qcompiler.pipeline.contract import PassContext

GOLDEN = Path(__file__).resolve().parents[2] / "golden"


def quantized(x: Tensor, scale: Tensor, zero_point: Tensor, bits: int) -> Tensor:
    return ((x / scale).round() + zero_point).clamp(0, (1 << bits) - 1)


@pytest.mark.parametrize("outliers", ["none", "mad"])
@pytest.mark.parametrize("bits", [4, 8])
def test_one_scale_gives_the_integers_of_many(bits: int, outliers: str) -> None:
    """The point of the method: x' with (S, Z) has the integers of x with a scale and zero point for each channel."""
    torch.manual_seed(0)
    x = torch.randn(200, 6, dtype=torch.float64) * torch.tensor([0.01, 0.1, 1, 1, 10, 100]) + torch.tensor([1.0, 0, 3, -2, 0, 50])
    seen = Observation(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()), -1)
    ratio, shift = ReparameterizeLayerNorm(bits=bits, outliers=outliers).ratio_and_shift(seen)
    scales = (x.amax(0) - x.amin(0)) / ((1 << bits) - 1)
    changed = (x - shift) / ratio
    common = torch.median(scales) if outliers == "mad" else scales.mean()
    assert torch.allclose(scales / ratio, common)
    zero_point = torch.round(-changed.amin() / common)
    # A zero point of a channel is a real number here; its integers are counted from the channel's least value.
    want = ((x - x.amin(0)) / scales).round()
    assert torch.equal(quantized(changed, common, zero_point, bits), want)
    assert torch.allclose(changed.amin(0), changed.amin(0)[0].expand(6)) and torch.allclose(changed.amax(0), changed.amax(0)[0].expand(6))


def test_a_channel_that_never_changes_is_not_blown_up() -> None:
    seen = Observation((0.0, 1.0, -1.0), (1.0, 1.0, 1.0), -1)
    ratio, shift = ReparameterizeLayerNorm().ratio_and_shift(seen)
    assert float(ratio.min()) >= 1e-5 and bool(torch.isfinite(shift).all())


def test_no_channel_ever_changes() -> None:
    ratio, shift = ReparameterizeLayerNorm().ratio_and_shift(Observation((1.0, 2.0), (1.0, 2.0), -1))
    assert ratio.tolist() == [1.0, 1.0] and shift.tolist() == [0.0, 0.0]


def test_dual_clipping_gains_where_single_values_stand_out(apply: Callable, feed_forward: Callable) -> None:
    """One token in every second channel is far out: with the range of what was seen most steps of four bits are wasted."""
    torch.manual_seed(0)
    x = torch.randn(8192, 128)
    x[range(64), range(64)] = 100.0
    model = feed_forward(nn.LayerNorm(128), 128)
    plain, clipped = (apply(ReparameterizeLayerNorm(bits=4, clip=clip), model, x) for clip in ("none", "dual"))
    assert clipped.difference < 1e-5

    def error(program: Program) -> float:
        """Of the values after the norm with four bits for all channels at once, relative to each channel's deviation."""
        norm, *_ = edit.calls(program.graph, torch.ops.aten.layer_norm.default)
        weight, bias = (edit.constant_value(operand) for operand in norm.args[2:4])
        y = nn.functional.layer_norm(x, (128,), weight, bias)
        low, high = (float(end) for end in (observe(y).low[0], observe(y).high[0]))
        rounded = ((y - low) / (high - low) * 15).round().clamp(0, 15) / 15 * (high - low) + low
        return float(((rounded - y) / y.std(0)).square().mean())

    assert error(clipped.result.program) < 0.8 * error(plain.result.program)


def observe(y: Tensor) -> Observation:
    """The range for four bits that quantization chooses by default."""
    observer = make_observer(ObserverSpec("mse", bits=4))
    observer.update(y)
    return observer.result()


def test_the_head_reads_one_token(apply: Callable) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(x)[:, 0])

    done = apply(ReparameterizeLayerNorm(), Head(), torch.randn(4, 5, 8))
    assert done.difference < 1e-5
    assert "into 'linear': scales of channels were" in done.notes


@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_without_weights_gets_them(affine: bool, apply: Callable, feed_forward: Callable) -> None:
    done = apply(ReparameterizeLayerNorm(), feed_forward(nn.LayerNorm(16, elementwise_affine=affine)), torch.randn(9, 16))
    assert done.difference < 1e-5 and done.result.modified


def test_computed_weights_are_no_candidate(apply: Callable) -> None:
    class Adaptive(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.out = nn.Linear(8, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(nn.functional.layer_norm(x, (8,)) * self.linear(x))

    done = apply(ReparameterizeLayerNorm(), Adaptive(), torch.randn(4, 8))
    assert "left alone: 'linear_1' reads it through an op that a shift does not pass" in done.notes


def test_options() -> None:
    with pytest.raises(CalibrationError, match="bits must be 2..8, got 9"):
        ReparameterizeLayerNorm(bits=9)


class Golden(nn.Module):
    """Powers of two, so that the text is the same on every machine."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(4), nn.Linear(4, 3), nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            for layer in (self.first, self.second):
                layer.weight.copy_(torch.arange(layer.weight.numel()).reshape(layer.weight.shape) - 4)
            self.first.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        return torch.cat([self.first(y), self.second(y)], -1)


@pytest.mark.parametrize("when", ["before", "after"])
def test_golden_text(when: str) -> None:
    program = capture(Golden().eval(), torch.zeros(2, 4))
    if when == "after":
        seen = Observation((-1.0, -2.0, -1.0, 0.0), (1.0, 2.0, 1.0, 8.0), -1)
        program = ReparameterizeLayerNorm(bits=2).run(program, PassContext({"layer_norm": seen})).program
    assert program.text() == (GOLDEN / f"reparameterize-{when}.txt").read_text()


def test_enough_values_are_where_clipping_costs_less_than_rounding() -> None:
    assert [enough_values(bits) for bits in (4, 6, 8)] == [51, 357, 3054]


def observed(x: Tensor) -> Observation:
    observer = make_observer(ObserverSpec("moments", axis=-1))
    observer.update(x)
    return observer.result()


def test_channels_that_were_hardly_seen_get_the_range_of_their_moments() -> None:
    """Channels of one distribution: ranges of 40 values differ by chance, and would clip a twentieth of the values to come."""
    torch.manual_seed(0)
    x = torch.randn(40, 64) * 3 + 1
    ratio, _ = ReparameterizeLayerNorm().ratio_and_shift(observed(x))
    by_range, _ = ReparameterizeLayerNorm().ratio_and_shift(Observation(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()), -1))
    assert 3 * float(ratio.log().std()) < float(by_range.log().std())


def test_channels_that_differ_beyond_chance_keep_what_they_differ_by() -> None:
    torch.manual_seed(0)
    deviations = torch.logspace(-2, 2, 64)
    ratio, _ = ReparameterizeLayerNorm().ratio_and_shift(observed(torch.randn(40, 64) * deviations))
    torch.testing.assert_close(ratio.float() / ratio.mean().float(), deviations / deviations.mean(), rtol=0.5, atol=0.0)


def test_channels_that_were_seen_often_keep_their_range() -> None:
    torch.manual_seed(0)
    x = torch.rand(enough_values(8), 6)
    plain = Observation(tuple(x.amin(0).tolist()), tuple(x.amax(0).tolist()), -1)
    for found, want in zip(
        ReparameterizeLayerNorm().ratio_and_shift(observed(x)), ReparameterizeLayerNorm().ratio_and_shift(plain), strict=True
    ):
        assert torch.equal(found, want)


def test_a_pooled_norm_of_few_samples_loses_nothing() -> None:
    """The last norm of a ConvNeXt: one row an image. Ranges of 32 values clipped what came later: 15 dB less than without the pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 10)).eval()
    program, later = capture(model, torch.randn(2, 32)), torch.randn(500, 32)
    losses = []
    for first in ("", "reparameterize-layer-norm,"):
        rounded = quantize(program, [torch.randn(32, 32)], passes=f"canonicalize,{first}quantize{{w=8,a=8}}")
        losses.append(float((rounded(later) - program(later)).square().mean()))  # type: ignore[operator]  # one output
    assert losses[1] < 3 * losses[0]
