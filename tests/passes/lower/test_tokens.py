"""Ids, masks, counts, codes and islands at INTEGER, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir import edit
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import DynamicSize, Stage
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

aten, qc = torch.ops.aten, torch.ops.qc


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.modules_ = function, nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*self.modules_, *inputs)


def lowered(model: nn.Module, inputs: Sequence[Tensor], quantize: str = "", **capturing: object) -> Program:
    program = capture(model.eval(), tuple(inputs), **capturing)  # type: ignore[arg-type]  # what the test says
    text = f"canonicalize,quantize{{{quantize}}},lower-integer"
    return PassManager(parse_pipeline(text)).run(program, CalibrationData([tuple(inputs)], program.inputs))


def test_rows_of_a_table_are_exact() -> None:
    torch.manual_seed(0)
    table, ids = nn.Embedding(9, 4), torch.arange(9).reshape(3, 3)
    integer = lowered(Function(lambda t, i: t(i), table), [ids])
    (spec,) = integer.outputs
    assert spec.quantized is not None and float((integer(ids) - table(ids)).abs().max()) <= spec.quantized.scale[0] / 2 * 1.001


@pytest.mark.parametrize("lengths", [[1, 5], [5, 5], [3, 2]])
def test_a_masked_mean_counts_what_is_there(lengths: list[int]) -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 5, 4), (torch.arange(5) < torch.tensor(lengths)[:, None]).long()

    def mean(x: Tensor, mask: Tensor) -> Tensor:
        weight = mask[..., None].float()
        return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-9)

    integer = lowered(Function(mean), [x, mask])
    assert len(list(edit.calls(integer.graph, qc.divide.default))) == 1
    assert float((integer(x, mask) - mean(x, mask)).abs().max()) < 2e-4, "16 bits in, 16 bits out"


def test_a_mean_over_a_length_that_only_the_call_knows() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 1, 4).expand(64, 6, 4)  # means as large as those of single rows
    integer = lowered(Function(lambda x: F.layer_norm(x, (4,)).mean(1)), [x], dynamic_shapes={0: {1: DynamicSize("length", 1, 12)}})
    for length in (1, 4, 12):
        y = torch.randn(2, length, 4)
        assert float((integer(y) - F.layer_norm(y, (4,)).mean(1)).abs().max()) < 0.03


def test_a_mean_over_the_batch_is_refused() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 4), torch.float32)
    kind = ([0.5], [0], -1, 8, True)
    real = builder.call(qc.dequantize.default, builder.call(qc.quantize.default, x, *kind), *kind)
    total = builder.call(aten.mean.dim, real, [0])
    result = builder.call(qc.dequantize.default, builder.call(qc.quantize.default, total, *kind), *kind)
    spec, output = ValueSpec("x", torch.float32, (None, 4)), ValueSpec("output", torch.float32, (4,))
    with pytest.raises(UnsupportedOpError, match="it reduces over the batch"):
        PassManager(parse_pipeline("lower-integer")).run(Program(builder.finish(result), Stage.QDQ, (spec,), (output,)))


def test_what_is_no_whole_number_does_not_divide() -> None:
    x = torch.rand(2, 4) + 1.0
    with pytest.raises(UnsupportedOpError, match=r"aten\.div\.Tensor.*has no integer form"):
        lowered(Function(lambda x: x / x.mean(1, keepdim=True)), [x])


def test_subtraction_of_the_stream_is_a_negative_multiplier() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    integer = lowered(Function(lambda x, y: F.layer_norm(x - y, (8,))), [x, y])
    assert not list(edit.calls(integer.graph, qc.lookup.default))
    assert float((integer(x, y) - F.layer_norm(x - y, (8,))).abs().max()) < 0.01


def test_masks_become_the_softmax_s_own() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(2, 4, 8), torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        scores = (x @ x.transpose(1, 2)).masked_fill(mask[:, None, :] == 0, float("-inf"))
        return scores.softmax(-1)

    integer = lowered(Function(attend), [x, mask])
    result = integer(x, mask)
    assert bool((result[0, :, 2:] == 0).all()) and float((result - attend(x, mask)).abs().max()) < 0.03


@pytest.mark.parametrize("form", ["log2", "log-sqrt2", "adalog", "shift-uniform-log2", "tanq", "twin-uniform"])
def test_codes_are_those_of_the_simulation(form: str) -> None:
    """The probabilities that a code stands for are levels of the quantizer, and nearly always the simulation's."""
    torch.manual_seed(0)
    x, value = torch.randn(4, 6, 8), torch.eye(6).expand(4, 6, 6).contiguous()
    model = Function(lambda x, v: (x @ x.transpose(1, 2)).softmax(-1) @ v)
    options = f"a=8,probability_bits=4,probability_quantizer={form},observer=min-max"
    program = capture(model.eval(), (x, value))
    data = CalibrationData([(x, value)], program.inputs)
    qdq = PassManager(parse_pipeline(f"canonicalize,quantize{{{options}}}")).run(program, data)
    integer = PassManager(parse_pipeline("lower-integer")).run(qdq)
    assert [node.meta["val"].dtype for node in edit.calls(integer.graph, qc.bucketize.default)] == [torch.uint8]
    step = integer.outputs[0].quantized.scale[0]  # type: ignore[union-attr]  # it is quantized
    apart = (qdq(x, value) - integer(x, value)).abs() / step
    assert float((apart > 1.001).float().mean()) < 0.03


def test_islands_may_follow_one_another() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    model = Function(lambda a, x: torch.sinh(torch.maximum(a(x), x)), nn.Linear(8, 8)).eval()
    names = "(aten.sinh.default,aten.maximum.default)"
    program = capture(model, x, allow_float=("aten.sinh.default",))
    data = CalibrationData([x], program.inputs)
    integer = PassManager(parse_pipeline(f"canonicalize,quantize{{allow_float={names}}},lower-integer")).run(program, data)
    integer.verify()
    assert integer.islands == ("maximum_float", "sinh_float")
    assert float((integer(x) - model(x)).abs().max()) < 0.05 * float(model(x).abs().max())


def test_an_island_does_not_read_float_constants() -> None:
    x, constant = torch.randn(4, 8), torch.randn(8)
    program = capture(Function(lambda x: torch.maximum(x, constant)).eval(), x)
    text = "canonicalize,quantize{allow_float=(aten.maximum.default)},lower-integer"
    with pytest.raises(UnsupportedOpError, match=r"it reads the float constant '.*'; islands read computed values and numbers only"):
        PassManager(parse_pipeline(text)).run(program, CalibrationData([x], program.inputs))
