"""Every rule of the verifier, each with a program that breaks it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import fx

from qcompiler.errors import VerificationError
from qcompiler.ir import edit
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.ranges import analyze, annotate
from qcompiler.ir.types import INT8, INT32, UINT8, IntegerRange, QuantizedType, Stage
from qcompiler.ir.verifier import IntegerReport, integer_report, prove_integer_only, verify

aten, qc = torch.ops.aten, torch.ops.qc
PLACE = Provenance("net.py:7 in forward: x = self.conv(x)", "conv", ("capture",))
HERE = r"'\w+' \(\S+\) at net.py:7 in forward: x = self.conv\(x\) \[module conv\] \[made by capture\]"


def integer_program() -> Program:
    builder = GraphBuilder()
    x = builder.input("x", (None, 2, 4, 4), torch.uint8)
    weight = builder.constant("weight", torch.full((3, 2, 3, 3), 3, dtype=torch.int8), PLACE)
    bias = builder.constant("bias", torch.tensor([5, -6, 70], dtype=torch.int32), PLACE)
    accumulator = builder.call(qc.convolution.default, x, weight, bias, [1, 1], [1] * 4, [1, 1], 1, 3, provenance=PLACE)
    parameters = [builder.constant(name, torch.tensor(value, dtype=torch.int32)) for name, value in (("l", 8), ("m", 1 << 30), ("s", 12))]
    y = builder.call(qc.requantize.default, accumulator, *parameters, 0, 10, 0, 255, "high", 8, False, provenance=PLACE)
    x_type, y_type = QuantizedType(UINT8, (0.1,), (3,)), QuantizedType(UINT8, (0.3,), (10,))
    for node, kind in ((x, x_type), (accumulator, QuantizedType(INT32, (0.5, 0.25, 0.125), axis=1)), (y, y_type)):
        node.meta["quantized"] = kind
    specs = ValueSpec("x", torch.float32, (None, 2, 4, 4), x_type), ValueSpec("y", torch.float32, (None, 3, 4, 4), y_type)
    program = Program(builder.finish(y), Stage.INTEGER, specs[:1], specs[1:])
    annotate(program)
    return program


def float_program() -> Program:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.float32)
    y = builder.call(aten.relu.default, x, provenance=PLACE)
    specs = ValueSpec("x", torch.float32, (None, 3)), ValueSpec("y", torch.float32, (None, 3))
    return Program(builder.finish(y), Stage.FLOAT, specs[:1], specs[1:])


def call(program: Program, target: edit.Target = qc.requantize.default) -> fx.Node:
    return next(edit.calls(program.graph, target))


def rejects(program: Program, message: str) -> None:
    with pytest.raises(VerificationError, match=message) as error:
        verify(program)
    assert "\n" not in str(error.value)


def test_programs_that_keep_their_specification_pass(random_program: Callable[[int], Program]) -> None:
    verify(float_program())
    verify(integer_program())
    for seed in range(30):
        verify(random_program(seed))


def test_the_proof_in_one_line() -> None:
    assert prove_integer_only(integer_program()) == "integer-only: proven (2 integer ops, 0 float ops)"
    assert integer_report(float_program()) == IntegerReport(integer_ops=0, float_ops=1)
    with pytest.raises(VerificationError, match="at stage float, not integer: lower it"):
        prove_integer_only(float_program())


# ---- planted floats -------------------------------------------------------------------------------------------------------------------


def after(program: Program, target: edit.Target, *rest: object) -> fx.Node:
    """Plant a call between the requantization and the output."""
    last = call(program)
    node = edit.insert_call(program.graph, target, (last, *rest), after=last, provenance_from=[last])
    edit.replace(last, node)
    edit.finish(program.graph_module)
    return node


def test_a_planted_float_op_is_caught() -> None:
    program = integer_program()
    after(program, aten.sigmoid.default)
    rejects(program, rf"{HERE} is no op of stage integer; lower it with the pass 'lower-integer'")
    assert integer_report(program) == IntegerReport(integer_ops=2, float_ops=1)


def test_a_planted_conversion_to_float_and_back_is_caught() -> None:
    program = integer_program()
    node = after(program, aten.to.dtype, torch.float32)
    back = edit.insert_call(program.graph, aten.to.dtype, (node, torch.uint8), after=node, provenance_from=[node])
    edit.replace(node, back)
    edit.finish(program.graph_module)
    rejects(program, rf"{HERE}: its result is float32, stage integer allows bool, int16")
    assert integer_report(program) == IntegerReport(integer_ops=2, float_ops=2)


def test_a_planted_quantize_is_caught() -> None:
    program = integer_program()
    after(program, qc.dequantize.default, [0.1], [0], -1, 8, False)
    rejects(program, "is no op of stage integer")


def test_a_planted_float_constant_is_caught() -> None:
    program = integer_program()
    edit.add_constant(program.graph_module, "one_half", torch.tensor(0.5))
    edit.finish(program.graph_module)
    rejects(program, r"'one_half' \(get_attr\): its value is float32, stage integer allows bool, int16, int32, int64, int8, uint8 there")


def test_a_float_attribute_is_caught() -> None:
    program = integer_program()
    after(program, aten.constant_pad_nd.default, [1, 1], 0.5)
    rejects(program, rf"{HERE} has the attribute 0.5, but stage integer allows no float")
    assert integer_report(program).float_ops == 1


def test_a_float_input_is_caught() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.float32)
    spec = ValueSpec("x", torch.float32, (None, 3))
    rejects(Program(builder.finish(x), Stage.INTEGER, (spec,), (spec,)), r"'x' \(placeholder\): its value is float32")


# ---- dtypes, attributes, values -------------------------------------------------------------------------------------------------------


def test_a_wrong_dtype_of_an_operand_is_caught() -> None:
    program = integer_program()
    program.graph_module.weight = torch.ones(3, 2, 3, 3, dtype=torch.int16)
    edit.propagate(program.graph_module)
    rejects(program, rf"{HERE}: weight is int16, stage integer allows int8 there")


def test_an_unknown_form_is_caught() -> None:
    program = integer_program()
    call(program).update_arg(8, "highest")
    edit.finish(program.graph_module)
    rejects(program, rf"{HERE}: form is 'highest'; choose one of exact64, high, narrow")


def test_values_that_are_out_of_date_are_caught() -> None:
    program = integer_program()
    program.graph_module.weight = torch.ones(4, 2, 3, 3, dtype=torch.int8)
    rejects(program, r"meta 'val' says int8\[3, 2, 3, 3\] but the constant is int8\[4, 2, 3, 3\]; recompute it with ir.edit.propagate")
    program = integer_program()
    call(program).update_arg(10, True)
    edit.finish(program.graph_module)
    rejects(program, rf"{HERE}: meta 'val' says uint8\[s\d+, 3, 4, 4\] but its op gives int8\[s\d+, 3, 4, 4\]")


def test_arguments_that_do_not_fit_are_caught() -> None:
    program = integer_program()
    program.graph_module.l = torch.tensor([8, 8], dtype=torch.int32)
    edit.propagate(program.graph_module)
    rejects(program, rf"{HERE}: its parameters of shape \[1, 3, 1, 2\] do not broadcast to its result \[s\d+, 3, 4, 4\]")
    program = integer_program()
    call(program, qc.convolution.default).update_arg(3, [1])
    edit.finish(program.graph_module)
    rejects(program, rf"{HERE} does not accept its arguments: ")


def test_specifications_of_inputs_and_outputs_hold() -> None:
    program = integer_program()
    (x,), (y,) = program.inputs, program.outputs
    rejects(program.replace(inputs=(x, x)), "the graph has 1 inputs but the program specifies 2")
    rejects(program.replace(outputs=()), "the graph has 1 outputs but the program specifies 0")
    rejects(program.replace(inputs=(replace(x, quantized=QuantizedType(INT8, (1.0,))),)), r"input 'x' is int8 by specification, but 'x' ")
    rejects(program.replace(outputs=(replace(y, quantized=None),)), "output 'y' is float32 by specification")
    rejects(program.replace(outputs=(replace(y, shape=(None, 3, 4, 5)),)), r"output 'y' has the shape \[N, 3, 4, 5\] by specification")
    rejects(program.replace(inputs=(replace(x, shape=(1, 2, 4, 4)),)), r"input 'x' has the shape \[1, 2, 4, 4\] by specification")


# ---- ranges ---------------------------------------------------------------------------------------------------------------------------


def test_a_planted_overflow_of_an_accumulator_is_caught() -> None:
    program = integer_program()
    program.graph_module.bias = torch.tensor([0, (1 << 31) - 100, 0], dtype=torch.int32)
    rejects(program, rf"{HERE}: the accumulator over 18 products lies in \[0, 2147497318\], outside \[-2147483648, 2147483647\]; split")


def test_a_pre_shift_that_is_too_wide_is_caught() -> None:
    program = integer_program()
    program.graph_module.l = torch.tensor(18, dtype=torch.int32)
    rejects(program, rf"{HERE}: a << pre_shift \(up to 18\) lies in .* use a smaller pre_shift")


def test_annotations_hold_what_is_proven() -> None:
    for kind, message in [
        (QuantizedType(INT32, (1.0,)), "is annotated as i32 but its values are uint8"),
        (QuantizedType(UINT8, (1.0, 2.0), axis=1), r"is annotated with 2 scales along dimension 1 of uint8\[s\d+, 3, 4, 4\]"),
        (QuantizedType(replace(UINT8, bits=4), (1.0,)), r"is annotated as u4, but lies in \[10, 226\]; clamp it or annotate a wider type"),
        (QuantizedType(UINT8, (1.0,)).with_range(10, 20), r"declares the range \[10, 20\], but \[10, 226\] is what can be proven"),
    ]:
        program = integer_program()
        call(program).meta["quantized"] = kind
        rejects(program, f"{HERE} {message}")


def test_outputs_stay_in_their_specified_type() -> None:
    program = integer_program()
    del call(program).meta["quantized"]
    (y,) = program.outputs
    narrow = replace(y, quantized=QuantizedType(replace(UINT8, bits=4), (1.0,)))
    rejects(program.replace(outputs=(narrow,)), rf"output 'y' is u4 by specification, but {HERE} lies in \[10, 226\]; requantize it")


def test_annotated_ranges_are_those_of_the_analysis() -> None:
    program = integer_program()
    accumulator = call(program, qc.convolution.default).meta["quantized"].range
    assert accumulator == IntegerRange(-6, 70 + 255 * 3 * 18)


# ---- structure ------------------------------------------------------------------------------------------------------------------------


def test_code_that_is_out_of_date_is_caught() -> None:
    program = float_program()
    relu = call(program, aten.relu.default)
    relu.target = aten.neg.default
    rejects(program, "the graph was edited after its code was made: end every edit with ir.edit.finish")


def test_nodes_without_value_or_provenance_are_caught() -> None:
    for key in ("val", "provenance"):
        program = float_program()
        del call(program, aten.relu.default).meta[key]
        rejects(program, rf"'relu' .* has no meta '{key}'")


def test_other_kinds_of_nodes_are_caught() -> None:
    program = float_program()
    relu = call(program, aten.relu.default)
    with program.graph.inserting_after(relu):
        program.graph.call_method("neg", (relu,))
    edit.finish(program.graph_module)
    rejects(program, "'neg' .* is a 'call_method' node: programs hold inputs, constants, calls and one output")


def test_nested_constants_are_caught() -> None:
    program = float_program()
    program.graph_module.inner = torch.nn.Linear(2, 2)
    with program.graph.inserting_before(call(program, aten.relu.default)):
        node = program.graph.get_attr("inner.weight")
    node.meta |= {"val": torch.ones(2, 2), "provenance": Provenance()}
    edit.finish(program.graph_module)
    rejects(program, r"names no flat constant \('inner.weight'\): register it with ir.edit.add_constant")


def test_an_output_that_is_no_tuple_is_caught() -> None:
    program = float_program()
    program.graph.output_node().args = (call(program, aten.relu.default),)
    edit.finish(program.graph_module)
    rejects(program, "the output of a graph must be a tuple of nodes")


def test_an_inconsistent_graph_is_caught() -> None:
    program = float_program()
    relu = call(program, aten.relu.default)
    relu.append(next(node for node in program.graph.nodes if node.op == "placeholder"))
    rejects(program, "the graph is inconsistent: .*; edit it with the functions of ir.edit")


def test_mutation_is_no_op_of_stage_float() -> None:
    program = float_program()
    relu = call(program, aten.relu.default)
    relu.target = aten.relu_.default
    edit.finish(program.graph_module)
    rejects(program, r"'relu' \(aten.relu_.default\) at net.py:7 .* is no op of stage float; rewrite that line with supported ops")


def island_program() -> Program:
    """uint8 -> dequantize -> sin -> quantize -> clamp, with the sine declared."""
    builder = GraphBuilder()
    x = builder.input("x", (None, 4), torch.uint8)
    real = builder.call(qc.dequantize.default, x, [0.1], [3], -1, 8, False, provenance=PLACE)
    sine = builder.call(aten.sin.default, real, provenance=PLACE)
    back = builder.call(qc.quantize.default, sine, [0.01], [0], -1, 8, True, provenance=PLACE)
    y = builder.call(qc.clamp.default, back, -50, 99, provenance=PLACE)
    kinds = QuantizedType(UINT8, (0.1,), (3,)), QuantizedType(INT8, (0.01,))
    specs = tuple(ValueSpec(name, torch.float32, (None, 4), kind) for name, kind in zip("xy", kinds, strict=True))
    return Program(builder.finish(y), Stage.INTEGER, specs[:1], specs[1:], islands=(sine.name,))


def test_declared_islands_are_allowed_and_counted() -> None:
    program = island_program()
    verify(program)
    assert prove_integer_only(program) == "integers but for islands: proven (1 integer ops, 3 float ops in the islands sin)"
    assert call(program, qc.clamp.default) in analyze(program)


def test_an_island_that_nobody_declared_is_caught() -> None:
    rejects(replace(island_program(), islands=()), "is no op of stage integer")


def test_floats_do_not_leave_an_island() -> None:
    program = island_program()
    sine = call(program, aten.sin.default)
    edit.insert_call(program.graph, aten.neg.default, (sine,), after=sine, provenance_from=[sine])
    edit.finish(program.graph_module)
    rejects(program, "is a float island, but 'neg' .* reads it; quantize its result first")
