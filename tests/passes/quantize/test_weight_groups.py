"""The option ``weight_group`` from the pass to the integer program, to ONNX and to passes that round weights anew."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import arithmetic
from qcompiler.api import quantize
from qcompiler.artifact.packing import packings
from qcompiler.calibration.statistics import ObserverSpec
from qcompiler.capture import capture
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.quantized_constants import integer_constant
from qcompiler.passes.quantize.parameters import quantize_grouped_weight, quantize_weight
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.instruments import signal_to_noise

qc = torch.ops.qc
LENGTH = 16


class Network(nn.Module):
    """A convolution and a linear layer whose weights have groups of very different size; a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.up = nn.Conv2d(40, 6, 3), nn.ConvTranspose2d(6, 20, 2)
        self.linear = nn.Linear(500, 7)
        with torch.no_grad():
            for weight in (self.convolution.weight, self.linear.weight):
                weight.mul_((10.0 ** -(torch.arange(weight.shape[1]) // LENGTH % 2)).reshape(-1, *[1] * (weight.dim() - 2)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(self.up(torch.relu(self.convolution(x))).flatten(1))
        return y


@pytest.fixture(scope="module")
def network() -> tuple[Program, Tensor]:
    torch.manual_seed(0)
    x = torch.rand(8, 40, 6, 6)
    return capture(Network().eval(), (x,), dynamic_batch=True), x


def integer(network: tuple[Program, Tensor], **options: Any) -> Program:
    program, x = network
    return quantize(program, [x], recipe="int8", options={f"quantize.{name}": value for name, value in options.items()})


@pytest.mark.parametrize("bias", [True, False])
def test_channels_without_weights(bias: bool) -> None:
    """As pruning leaves them: any scale serves, of a size that its product with the input's is one too."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(16, 32, bias=bias), nn.ReLU(), nn.Linear(32, 8, bias=bias))
    with torch.no_grad():
        layers[0].weight[3], layers[2].weight[5], layers[2].weight[1] = 0.0, 0.0, 1e-30
    x = torch.randn(64, 16) * 1e-4
    program = quantize(
        capture(layers.eval(), (x,), dynamic_batch=True), [x], recipe="int8", options={"quantize.w": 4, "quantize.weight_group": 4}
    )
    found, want = program(x), layers(x).detach()
    assert len(groups(program)) == 2
    torch.testing.assert_close(found, want, rtol=0.0, atol=0.2 * float(want.abs().max()))


def groups(program: Program) -> list[torch.fx.Node]:
    return list(edit.calls(program.graph, qc.scale_groups.default))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_layers_have_codes_and_factors(network: tuple[Program, Tensor], bits: int) -> None:
    program = integer(network, w=bits, weight_group=LENGTH)
    convolution, linear = groups(program)
    assert [tuple(edit.argument(node, "factors").meta["val"].shape) for node in (convolution, linear)] == [(6, 3), (7, 32)]
    assert all(edit.argument(node, "codes").meta["quantized"].integer.bits == bits for node in (convolution, linear))
    assert [packing.bits for packing in packings(program).values()] == [2 if bits == 2 else 4] * 3
    x = torch.randint(0, 256, (3, 40, 6, 6), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    for node in (convolution, linear):  # the product with a factor is the weight that the program computes with
        (reader,) = node.users
        weight = integer_constant(node)
        assert weight is not None and int(weight.to(torch.int32).abs().max()) <= 127
        plain = edit.copy(program)
        copied = next(each for each in plain.graph.nodes if each.name == reader.name)
        copied.replace_input_with(
            edit.argument(copied, "weight"), edit.add_constant(plain.graph_module, "w", weight, provenance_from=[node], made_by="test")
        )
        edit.erase_dead(plain)
        assert all(map(torch.equal, plain.run_integer(x), program.run_integer(x)))


@pytest.mark.parametrize(("bits", "gain"), [(4, 2.0), (3, 1.0), (2, 0.3)])
def test_groups_lose_less(bits: int, gain: float) -> None:
    """Of weights with heavy tails, in dB of the weights themselves."""
    weight = torch.distributions.Laplace(0.0, 1.0).sample((32, 512))
    spec = ObserverSpec("mse", axis=0, bits=bits, symmetric=True)
    plain, grouped = quantize_weight(weight, None, None, spec), quantize_grouped_weight(weight, None, None, spec, 32)
    integers = arithmetic.scale_groups(grouped.codes, grouped.factors, 32)
    found = [part * torch.tensor(kind.scale)[:, None] for part, kind in ((integers, grouped.quantized), (plain.integers, plain.quantized))]
    assert signal_to_noise([weight], found[:1]) > signal_to_noise([weight], found[1:]) + gain


def test_no_factors_where_they_say_nothing(network: tuple[Program, Tensor]) -> None:
    assert not groups(integer(network, w=8, weight_group=LENGTH))
    assert not groups(integer(network, w=4, weight_group=500))
    assert len(groups(integer(network, w=4, weight_group=499))) == 1


@pytest.mark.parametrize(("length", "per_channel"), [(-1, True), (16, False)])
def test_options_that_contradict_each_other(length: int, per_channel: bool) -> None:
    with pytest.raises(CalibrationError, match=f"weight_group={length} needs a positive number of inputs and per_channel=true"):
        Quantize(weight_group=length, per_channel=per_channel)


@pytest.mark.parametrize("method", ["gptq", "adaquant{steps=40}"])
def test_weights_are_rounded_anew_by_their_own_steps(network: tuple[Program, Tensor], method: str) -> None:
    """Codes change, factors stay, and the output comes nearer."""
    program, x = network
    before, after = (
        quantize(program, [x], passes=f"canonicalize,quantize{{w=3,weight_group={LENGTH},weight_observer=min-max}},{rounding}lower-integer")
        for rounding in ("", f"{method},")
    )
    for old, new in zip(groups(before), groups(after), strict=True):
        codes, factors = ([edit.constant_value(edit.argument(node, name)) for node in (old, new)] for name in ("codes", "factors"))
        assert torch.equal(*factors) and not torch.equal(*codes) and int(codes[1].abs().max()) <= 3
    expected = [program(x)]
    assert signal_to_noise(expected, [after(x)]) > signal_to_noise(expected, [before(x)])
