"""What the pass ``quantize`` puts into the graph."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.errors import CalibrationError, UnsupportedOpError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import INT8, INT16, IntegerRange, Precision
from qcompiler.passes.quantize.coding import coded_values
from qcompiler.passes.quantize.grouping import group_values
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.contract import PassContext
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

qc = torch.ops.qc


class Mixer(nn.Module):
    """A norm around a GELU layer, and scores."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        y = (y @ y.transpose(1, 2)).softmax(-1) @ y
        return self.down(F.gelu(self.up(y))) + x


def quantized(options: str = "", model: nn.Module | None = None, *inputs: Tensor) -> Program:
    torch.manual_seed(0)
    inputs = inputs or (torch.randn(4, 6, 8),)
    program = capture((model or Mixer()).eval(), inputs)
    return PassManager(parse_pipeline(f"canonicalize,quantize{{{options}}}")).run(program, CalibrationData([inputs], program.inputs))


def calls(program: Program, target: edit.Target) -> list[torch.fx.Node]:
    return list(edit.calls(program.graph, target))


def test_the_narrow_type_is_rounded_from_the_wide_one() -> None:
    class PostNorm(Mixer):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x)
            return self.norm(self.down(F.gelu(self.up(y))) + y)

    nodes = {node.name: node for node in quantized("", PostNorm()).graph.nodes}
    wide, narrow = nodes["layer_norm_quantize"], nodes["layer_norm_narrow_quantize"]
    assert wide.meta["quantized"].integer == INT16 and narrow.args[0] is nodes["layer_norm_dequantize"]
    assert list(nodes["layer_norm_narrow_dequantize"].users) == [nodes["linear"]]


def test_a_wide_range_has_room_for_twice_what_was_seen() -> None:
    x = torch.zeros(1, 2, 8)
    x[0, 0, 0] = 3.0
    program = quantized("", Mixer(), x)
    kind = next(node for node in program.graph.nodes if node.name == "x_quantize").meta["quantized"]
    assert kind.integer == INT16 and kind.scale[0] * 32767 == pytest.approx(6.0)


@pytest.mark.parametrize("kind", ["log2", "log-sqrt2", "adalog", "shift-uniform-log2"])
def test_probabilities_with_unequal_steps(kind: str) -> None:
    program = quantized(f"a=4,probability_quantizer={kind}")
    (encode,), (decode,) = calls(program, qc.encode.default), calls(program, qc.decode.default)
    assert str(encode.args[0].target) == "aten.softmax.int" and len(decode.args[1]) <= 16
    assert f"softmax: {kind} levels" in program.history[-1].notes


def test_codes_become_a_count_of_boundaries_and_a_table() -> None:
    program = quantized("a=4,probability_quantizer=log2,activation_quantizer=tanq,score_bits=8,function_bits=8")
    integer = PassManager(parse_pipeline("lower-integer")).run(program)
    assert len(calls(integer, qc.bucketize.default)) == 2
    x = torch.randn(3, 6, 8)
    simulated, computed = program(x), integer(x)
    assert signal_to_noise([simulated], [computed]) > 20.0


def test_unequal_steps_need_values() -> None:
    program = capture(Mixer().eval(), torch.randn(2, 6, 8))
    groups, chosen = group_values(program.graph), {torch.ops.aten.softmax.int: ("log2", 4)}
    with pytest.raises(CalibrationError, match=r"softmax.*is to be rounded to unequal steps, which values decide: give calibration data"):
        coded_values(program, groups, PassContext(), chosen)


def test_unequal_steps_need_two_bits() -> None:
    with pytest.raises(CalibrationError, match=r"softmax.*'log2': bits must be 2..8, got 1: .*probability_bits=2.*'uniform'"):
        quantized("a=1,residual_bits=8,probability_quantizer=log2")


def test_precision_of_single_nodes_wins() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    program = PassManager(parse_pipeline("canonicalize")).run(capture(Mixer().eval(), x))
    linear = next(node for node in program.graph.nodes if node.name == "linear")
    linear.meta["precision"] = Precision(weight=3, activation=5)
    result = PassManager([Quantize(w=6, a=7)]).run(program, CalibrationData([(x,)], program.inputs))
    bits = {node.name: node.meta["quantized"].integer.bits for node in result.graph.nodes if "quantized" in node.meta}
    assert bits["linear_quantize"] == 5 and bits["gelu_quantize"] == 7
    assert (bits["up_weight_int3"], bits["down_weight_int6"]) == (3, 6)


@pytest.mark.parametrize("option", ["residual_bits=17", "score_bits=0", "edge_bits=9", "probability_bits=12"])
def test_widths_that_do_not_exist(option: str) -> None:
    with pytest.raises(CalibrationError, match=r"must be 1\.\."):
        quantized(option)


class Lookup(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(7, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, weight: Tensor) -> Tensor:
        return self.linear(self.table(ids) * weight[..., None].float())


@pytest.mark.parametrize(("most", "expected"), [(1, IntegerRange(0, 1)), (9, IntegerRange(0, 255)), (300, IntegerRange(-32768, 32767))])
def test_ranges_of_integer_inputs(most: int, expected: IntegerRange) -> None:
    ids, weight = torch.arange(6).reshape(2, 3), torch.full((2, 3), most)
    program = quantized("", Lookup(), ids, weight)
    assert [spec.range for spec in program.inputs] == [IntegerRange(0, 6), expected]
    integer = PassManager(parse_pipeline("lower-integer")).run(program)
    assert integer.run(ids, weight)[0].shape == (2, 3, 3)


def test_integers_past_16_bits() -> None:
    with pytest.raises(CalibrationError, match=r"input 'weight' holds integers in \[70000, 70000\], and 16 bits are the most"):
        quantized("", Lookup(), torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 70000))


def test_rows_of_a_table_are_int8_and_not_rounded_again() -> None:
    program = quantized("", Lookup(), torch.arange(6).reshape(2, 3), torch.ones(2, 3, dtype=torch.long))
    node = next(node for node in program.graph.nodes if node.name == "embedding")
    assert node.meta["quantized"].integer == INT8 and not any(user.target is qc.quantize.default for user in node.users)


class Island(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.maximum(torch.sinh(self.first(x)), x))


OPS = "allow_float=(aten.sinh.default,aten.maximum.default)"


def island_programs() -> tuple[Program, Program, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    program = capture(Island().eval(), x, allow_float=("aten.sinh.default",))
    data = CalibrationData([x], program.inputs)
    qdq = PassManager(parse_pipeline(f"canonicalize,quantize{{{OPS}}}")).run(program, data)
    return qdq, PassManager(parse_pipeline("lower-integer")).run(qdq), x


def test_float_islands_are_declared_and_told() -> None:
    qdq, integer, x = island_programs()
    assert [note for note in qdq.history[-1].notes if note.startswith("left in float, as allowed: 'sinh'")]
    assert integer.islands == ("sinh_float", "maximum_float")
    notes = integer.history[-1].notes
    assert "float islands, as allowed: 2" in notes and any(note.startswith("stays in float: 'maximum_float'") for note in notes)
    assert torch.allclose(qdq(x), integer(x), atol=0.1 * float(qdq(x).abs().max()))


def test_an_op_without_integer_form_names_itself_and_the_way_out() -> None:
    x = torch.randn(4, 8)
    program = capture(nn.Sequential(nn.Linear(8, 8), Maximum()).eval(), x)
    text = "canonicalize,quantize,lower-integer"
    with pytest.raises(
        UnsupportedOpError, match=r"'maximum' \(aten\.maximum\.default\) at .*test_quantize\.py.* has no integer form.*allow_float"
    ):
        PassManager(parse_pipeline(text)).run(program, CalibrationData([x], program.inputs))


class Maximum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.maximum(x, x.flip(1))
