"""Programs that were quantized elsewhere: integers at the border, integer biases, sums of integers as results."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qcompiler as qc
from qcompiler.errors import CalibrationError, UnsupportedOpError, VerificationError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.ir.verifier import prove_integer_only

ops = torch.ops.qc
X, Y = ([0.1], [7], -1, 8, False), ([0.5], [-3], -1, 8, True)
W = ([0.25, 0.5, 0.125], [0, 0, 0], 0, 8, True)


class Layer(nn.Module):
    """uint8 or float in, int8 or float out: linear with int8 weights and an int32 bias at the scale of its accumulator."""

    def __init__(self, integer_input: bool = False, integer_output: bool = False, bias: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("w", torch.randint(-128, 128, (3, 6), generator=generator, dtype=torch.int8))
        self.register_buffer("b", torch.tensor([bias, -bias, 0], dtype=torch.int32))
        self.integer_input, self.integer_output = integer_input, integer_output

    def forward(self, x: Tensor) -> Tensor:
        x = ops.dequantize(x if self.integer_input else ops.quantize(x, *X), *X)
        bias = ops.dequantize(self.b, [0.1 * 0.25, 0.1 * 0.5, 0.1 * 0.125], [0, 0, 0], 0, 32, True)
        q = ops.quantize(F.linear(x, ops.dequantize(self.w, *W), bias), *Y)
        return q if self.integer_output else ops.dequantize(q, *Y)


def steps_of_output(layer: Layer, x: Tensor) -> Tensor:
    """What the layer rounds, in float64 from exact sums."""
    sums = (x.double() - 7) @ layer.w.double().t() + layer.b.double()
    return sums * 0.1 * torch.tensor([0.25, 0.5, 0.125]).double() / 0.5


def lowered(model: nn.Module, x: Tensor, **others: object) -> Program:
    program = qc.capture(model.eval(), (x,))
    assert program.stage is Stage.QDQ
    return qc.quantize(program, **others)  # type: ignore[arg-type]  # what the test says


def integers() -> Tensor:
    return torch.randint(0, 256, (32, 6), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


@pytest.mark.parametrize("integer_output", [False, True])
@pytest.mark.parametrize("integer_input", [False, True])
def test_integers_at_the_border(integer_input: bool, integer_output: bool) -> None:
    layer, x = Layer(integer_input, integer_output), integers()
    given = x if integer_input else (x.float() - 7) * 0.1
    program = lowered(layer, given)
    assert "0 float ops" in prove_integer_only(program)
    found = program(given)
    found = found.double() if integer_output else found.double() / 0.5 - 3
    exact = steps_of_output(layer, x)
    # docs/arithmetic.md: the form 'high' may take a value within 2^-8 of a tie to either side.
    decided = ((exact - exact.floor()) - 0.5).abs() > 2.0**-8
    assert torch.equal(found[decided], (exact.round() - 3).clamp(-128, 127)[decided]) and bool(decided.any())
    assert set((found - (exact.floor() - 3).clamp(-128, 127)).unique().tolist()) <= {0.0, 1.0}
    assert torch.equal(qc.compile(program)(given), program(given))


def test_large_biases_are_exact() -> None:
    program = lowered(Layer(bias=1_234_567_891), torch.zeros(1, 6))
    bias = next(tensor for name, tensor in program.graph_module.named_buffers() if name.endswith("bias_int32"))
    layer = Layer(bias=1_234_567_891)
    assert torch.equal(bias, layer.b - 7 * layer.w.int().sum(1).int())


def test_sums_are_results() -> None:
    class Sums(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            reals = ops.dequantize(x, [1.0], [7], -1, 8, False)
            return F.linear(reals, ops.dequantize(self.w, [1.0], [0], -1, 8, True)).to(torch.int32)

    model, x = Sums(), integers()
    model.register_buffer("w", Layer().w)
    found = lowered(model, x)(x)
    assert found.dtype is torch.int32 and torch.equal(found, (x.int() - 7) @ model.w.int().t())


def test_sums_with_a_scale_behind_casts() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            reals = ops.dequantize(x, [1.0], [7], -1, 8, False)
            sums = F.linear(reals, ops.dequantize(self.w, [1.0], [0], -1, 8, True)).to(torch.int32)
            return ops.dequantize(ops.quantize(sums.to(torch.float32) * 0.01, *Y), *Y)

    model, x = Scaled(), integers()
    model.register_buffer("w", Layer().w)
    program = lowered(model, x)
    assert "0 float ops" in prove_integer_only(program)
    assert float((program(x) - model(x)).abs().max()) <= 0.5


def test_what_waits_for_its_rounding_moves() -> None:
    class Moved(Layer):
        def forward(self, x: Tensor) -> Tensor:
            x = ops.dequantize(ops.quantize(x, *X), *X)
            moved = F.linear(x, ops.dequantize(self.w, *W)).unflatten(1, (3, 1)).transpose(1, 2)
            return ops.dequantize(ops.quantize(torch.relu(moved), *Y), *Y)

    layer, x = Moved(), (integers().float() - 7) * 0.1
    assert float((lowered(layer, x)(x) - layer(x)).abs().max()) <= 0.5


def test_ops_between_floats_are_declined_by_name() -> None:
    class Missing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = ops.dequantize(ops.quantize(x, *X), *X)
            return ops.dequantize(ops.quantize(torch.softmax(torch.tanh(x), -1), *Y), *Y)

    program = qc.capture(Missing(), (torch.zeros(1, 4),))
    with pytest.raises(UnsupportedOpError, match="'softmax'.*reads tanh, which is not quantized"):
        qc.quantize(program, passes="canonicalize-qdq,lower-integer")
    assert "0 float ops" in prove_integer_only(qc.quantize(program))  # quantize-rest rounds it


def test_weights_in_floats_are_declined() -> None:
    class Floats(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return ops.dequantize(ops.quantize(super().forward(ops.dequantize(ops.quantize(x, *X), *X)), *Y), *Y)

    program = qc.capture(Floats(4, 3), (torch.zeros(1, 4),))
    with pytest.raises(UnsupportedOpError, match="'linear'.*a scale for each block.*per channel or per tensor"):
        qc.quantize(program, passes="canonicalize-qdq,lower-integer")
    assert "0 float ops" in prove_integer_only(qc.quantize(program))  # quantize-rest rounds them


def test_scales_are_needed_or_data() -> None:
    program = qc.capture(nn.Linear(3, 2), (torch.zeros(1, 3),))
    with pytest.raises(CalibrationError, match="give calibration_data"):
        qc.quantize(program)


@pytest.mark.parametrize("form", ["auto", "high", "exact64"])
def test_a_scale_that_no_form_reaches_is_declined_with_its_place(form: str) -> None:
    class Fine(Layer):
        def forward(self, x: Tensor) -> Tensor:
            fine = ([1e-20], [0], -1, 8, True)
            return ops.dequantize(ops.quantize(super().forward(x), *fine), *fine)

    program = qc.capture(Fine(), (torch.zeros(1, 6),))
    with pytest.raises(VerificationError, match=r"'quantize_2' .* at .*: the form 'exact64' cannot .*: raise the scale of the result"):
        qc.quantize(program, options={"lower-integer.requantize": form})


def test_the_form_of_requantizations_may_be_chosen() -> None:
    forms = {
        option: lowered(Layer(), torch.zeros(1, 6), options={"lower-integer.requantize": option}).text() for option in ("high", "narrow")
    }
    assert 'form="narrow"' in forms["narrow"].replace("'", '"') and 'form="high"' in forms["high"].replace("'", '"')
    assert "form='high'" in lowered(Layer(), torch.zeros(1, 6)).text()
