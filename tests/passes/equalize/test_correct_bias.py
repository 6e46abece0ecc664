from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.errors import CalibrationError, PassError
from qcompiler.ir.program import Program
from qcompiler.passes.equalize.correct_bias import CorrectBias
from qcompiler.pipeline.contract import PassContext
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

BATCHES = 3


class Shifted(nn.Module):
    """Inputs whose mean is far from zero and few weight bits: rounding moves the means of the results."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv2d(3, 8, 3, bias=bias)
        self.linear = nn.Linear(8, 4, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.convolution(x).relu().mean((2, 3)))


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(16, 3, 8, 8, generator=generator) + 2.0 for _ in range(BATCHES)]


def compiled(model: nn.Module, passes: str) -> tuple[Program, Program]:
    """The float program and what the passes make of it."""
    program = capture(model.eval(), images()[0])
    return program, PassManager(parse_pipeline(passes)).run(program, CalibrationData(images(), program.inputs))


@pytest.mark.parametrize("bias", [True, False])
def test_means_of_the_outputs_are_those_of_the_float_program(bias: bool) -> None:
    program, corrected = compiled(Shifted(bias), "quantize{w=3},correct-bias")
    _, plain = compiled(Shifted(bias), "quantize{w=3}")
    x = torch.cat(images())
    want, before, after = (item(x).mean(0) for item in (program, plain, corrected))
    assert float((after - want).abs().max()) < 1e-4 < 0.005 < float((before - want).abs().max())


def test_error_of_the_outputs_falls() -> None:
    program, corrected = compiled(Shifted(True), "quantize{w=3},correct-bias")
    _, plain = compiled(Shifted(True), "quantize{w=3}")
    x = torch.rand(64, 3, 8, 8) + 2.0  # not those of calibration
    errors = [float((item(x) - program(x)).square().mean()) for item in (plain, corrected)]
    assert errors[1] < 0.2 * errors[0]  # measured: a fiftieth


def test_integers_and_scales_stay_and_biases_are_lowered() -> None:
    _, corrected = compiled(Shifted(True), "quantize{w=3},correct-bias,lower-integer")
    _, plain = compiled(Shifted(True), "quantize{w=3},lower-integer")
    weights = [
        [value for value in program.graph_module.state_dict().values() if value.dtype == torch.int8] for program in (plain, corrected)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_notes_name_the_layers() -> None:
    _, corrected = compiled(Shifted(True), "quantize{w=3},correct-bias")
    record = corrected.history[-1]
    assert [note.split(":")[0] for note in record.notes] == ["conv2d", "linear"]
    assert "means were off by up to" in record.notes[0]


def test_samples_bound_what_is_read() -> None:
    read = []

    class Counted:
        def __iter__(self) -> object:
            for batch in images():
                read.append(len(batch))
                yield batch

    program, plain = compiled(Shifted(True), "quantize{w=3}")
    CorrectBias(samples=20).run(plain, PassContext(data=CalibrationData(Counted(), program.inputs), reference=program))
    assert read == [16, 16]


def test_nothing_to_compare_with() -> None:
    program, plain = compiled(Shifted(True), "quantize")
    data = CalibrationData(images(), program.inputs)
    with pytest.raises(PassError, match="lacks calibration data"):
        CorrectBias().run(plain, PassContext(reference=program))
    with pytest.raises(PassError, match="lacks the float program: run it after 'quantize' in one pipeline"):
        CorrectBias().run(plain, PassContext(data=data))
    with pytest.raises(CalibrationError, match="samples must be at least 1"):
        CorrectBias(samples=0)
