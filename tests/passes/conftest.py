"""What the tests of quantization and lowering share: from a network to its QDQ and INTEGER programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.instruments import Instrument
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


@dataclass(frozen=True)
class Compiled:
    """A network at each stage, and inputs like those that it was calibrated on."""

    qdq: Program
    integer: Program
    inputs: tuple[Tensor, ...]

    @property
    def ops(self) -> Counter[str]:
        """How often each op of the integer program is called: {"qc.convolution": 2, "aten.cat": 1}."""
        calls = [node for node in self.integer.graph.nodes if node.op == "call_function"]
        return Counter(str(node.target).rsplit(".", 1)[0] for node in calls)

    def steps_apart(self) -> float:
        """Largest difference between QDQ and INTEGER, in steps of the output; for one of 16 bits in 1/255 of its spread."""
        kind = self.integer.outputs[0].quantized
        assert kind is not None
        wanted, found = self.qdq.run(*self.inputs)[0], self.integer.run(*self.inputs)[0]
        step = kind.scale[0] if kind.integer.bits <= 8 else float(wanted.max() - wanted.min()) / 255
        return float((wanted - found).abs().max()) / step


class _Keep(Instrument):
    def __init__(self) -> None:
        self.programs: dict[str, Program] = {}

    def after_pass(self, item: Pass, program: Program, seconds: float) -> None:
        self.programs[item.name] = program


Compile = Callable[..., Compiled]


@pytest.fixture
def compile_network() -> Compile:
    """``compile_network(model, *shapes, quantize="", lower="", canonicalize=True)``: shapes with the batch; every stage is verified."""

    def run(model: nn.Module, *shapes: Sequence[int], quantize: str = "", lower: str = "", canonicalize: bool = True) -> Compiled:
        torch.manual_seed(0)
        inputs = tuple(torch.randn(*shape) for shape in shapes)
        program = capture(model.eval(), inputs)
        keep = _Keep()
        text = f"{'canonicalize,' if canonicalize else ''}quantize{{{quantize}}},lower-integer{{{lower}}}"
        integer = PassManager(parse_pipeline(text), instruments=[keep]).run(program, CalibrationData([inputs], program.inputs))
        return Compiled(keep.programs["quantize"], integer, inputs)

    return run
