"""The proof that a program keeps its stage's specification; the pass manager asks for it after every pass.

1. Structure: the conventions of ``Program`` (flat constants, one tuple of outputs, ``val`` and ``provenance`` everywhere, code up to date).
2. Specification: ops, dtypes and attributes are those of the stage's table (``qcompiler.ir.stages``).
3. Values: ``val`` of every node is what the op's own shape function gives; inputs and outputs are what their ``ValueSpec`` say.
4. Islands: float ops that the user allowed, by name in ``Program.islands``. At INTEGER each reads ``qc.dequantize`` or an island and is
   read by ``qc.quantize`` or another island; nothing else there may be float.
5. At INTEGER: every value stays in its type for all inputs (``qcompiler.ir.ranges``), and declared ranges hold what is proven.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.errors import QCompilerError, VerificationError
from qcompiler.ir.edit import argument, constant_value, evaluate
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance, describe
from qcompiler.ir.ranges import Bounds, analyze
from qcompiler.ir.sizes import Symbols, shape_text, specified, symbols_of
from qcompiler.ir.stages import STAGES, OpSpecification, StageSpecification
from qcompiler.ir.types import QuantizedType, Stage

_qc = torch.ops.qc

_WAY_OUT = {
    Stage.FLOAT: "rewrite that line with supported ops",
    Stage.QDQ: "keep float ops and quantize/dequantize only",
    Stage.INTEGER: "lower it with the pass 'lower-integer'",
}


class IntegerReport(NamedTuple):
    """How many calls of a graph work on integers alone, and how many touch a float value or a float attribute."""

    integer_ops: int
    float_ops: int


def verify(program: Program) -> None:
    """Raise VerificationError unless the program keeps the specification of its stage; the message names the first node that does not."""
    specification = STAGES[program.stage]
    _check_structure(program)
    islands = frozenset(node for node in program.graph.nodes if node.name in program.islands)
    known: dict[str, str] = {}
    for node in program.graph.nodes:
        if node in islands or _is_shore(node, islands, program.stage):
            _check_island(node, islands, program.stage)
        else:
            _check_node(node, specification, known)
    _check_signature(program)
    if program.stage is Stage.INTEGER:
        _check_ranges(program, analyze(program))


def prove_integer_only(program: Program) -> str:
    """Verify an INTEGER program and give the line that says so: ``integer-only: proven (N integer ops, 0 float ops)``.

    With islands it is not, and the line says which float ops were allowed; everything else is proven all the same.
    """
    if program.stage is not Stage.INTEGER:
        raise VerificationError(f"the program is at stage {program.stage.value}, not integer: lower it with the pass 'lower-integer'")
    verify(program)
    report = integer_report(program)
    if program.islands:
        names = ", ".join(program.islands)
        return f"integers but for islands: proven ({report.integer_ops} integer ops, {report.float_ops} float ops in the islands {names})"
    return f"integer-only: proven ({report.integer_ops} integer ops, {report.float_ops} float ops)"


def integer_report(program: Program) -> IntegerReport:
    """Count the calls of a program at any stage; proves nothing (``prove_integer_only`` does)."""
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    float_ops = sum(_touches_float(node) for node in calls)
    return IntegerReport(len(calls) - float_ops, float_ops)


# ---- structure --------------------------------------------------------------------------------------------------------------------


def _check_structure(program: Program) -> None:
    graph_module = program.graph_module
    try:
        graph_module.graph.lint()
    except (RuntimeError, AssertionError) as error:
        raise VerificationError(f"the graph is inconsistent: {_first_line(error)}; edit it with the functions of ir.edit") from error
    if graph_module.code != graph_module.graph.python_code("self").src:
        raise VerificationError("the graph was edited after its code was made: end every edit with ir.edit.finish or ir.edit.erase_dead")
    for node in graph_module.graph.nodes:
        _check_kind(node)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(program.inputs):
        raise VerificationError(f"the graph has {len(placeholders)} inputs but the program specifies {len(program.inputs)}")
    if len(_outputs(program)) != len(program.outputs):
        raise VerificationError(f"the graph has {len(_outputs(program))} outputs but the program specifies {len(program.outputs)}")


def _check_kind(node: fx.Node) -> None:
    if node.op not in ("placeholder", "get_attr", "call_function", "output"):
        raise VerificationError(f"{describe(node)} is a '{node.op}' node: programs hold inputs, constants, calls and one output")
    if node.op == "output":
        return
    if "val" not in node.meta:
        raise VerificationError(f"{describe(node)} has no meta 'val': make nodes with ir.edit")
    if not isinstance(node.meta.get("provenance"), Provenance):
        raise VerificationError(f"{describe(node)} has no meta 'provenance': make nodes with ir.edit and say what they stand for")
    if node.op == "get_attr" and ("." in str(node.target) or constant_value(node) is None):
        raise VerificationError(f"{describe(node)} names no flat constant ('{node.target}'): register it with ir.edit.add_constant")


def _outputs(program: Program) -> Sequence[fx.Node]:
    outputs = program.graph.output_node().args[0]
    if not isinstance(outputs, tuple) or not all(isinstance(output, fx.Node) for output in outputs):
        raise VerificationError("the output of a graph must be a tuple of nodes, whatever their number")
    return [output for output in outputs if isinstance(output, fx.Node)]


# ---- specification and values -----------------------------------------------------------------------------------------------------


def _check_node(node: fx.Node, specification: StageSpecification, known: dict[str, str]) -> None:
    """``known``: what equal calls were found to give; the blocks of a transformer repeat each other."""
    if node.op == "output":
        return
    if node.op == "call_function":
        _check_call(node, specification)
        question = _question(node)
        if question not in known:
            known[question] = _signature(_evaluated(node))
        _check_value(node, known[question], "its op gives")
        return
    if node.op == "get_attr":
        _check_value(node, _signature(constant_value(node)), "the constant is")
    _check_dtypes(node, node.meta["val"], specification.dtypes, "its value", specification.stage)


def _is_shore(node: fx.Node, islands: frozenset[fx.Node], stage: Stage) -> bool:
    """Whether the node is the conversion at the border of an island, of which only INTEGER takes notice."""
    if stage is not Stage.INTEGER or node.op != "call_function":
        return False
    if node.target is _qc.dequantize.default:
        return bool(node.users) and islands.issuperset(node.users)
    return node.target is _qc.quantize.default and node.args[0] in islands


def _check_island(node: fx.Node, islands: frozenset[fx.Node], stage: Stage) -> None:
    """An island computes floats from floats; at INTEGER none of them leaves it but through a quantize."""
    if not (isinstance(node.target, torch._ops.OpOverload) and not node.target._schema.is_mutable):
        raise VerificationError(
            f"{describe(node)} is declared a float island, but is no op without side effects; keep it out of allow_float"
        )
    _check_value(node, _signature(_evaluated(node)), "its op gives")
    if stage is not Stage.INTEGER or node.target is _qc.quantize.default:
        return
    for user in node.users:
        if user not in islands and not _is_shore(user, islands, stage):
            raise VerificationError(f"{describe(node)} is a float island, but {describe(user)} reads it; quantize its result first")


def _check_call(node: fx.Node, specification: StageSpecification) -> None:
    row = specification.ops.get(node.target) if callable(node.target) else None
    if row is None:
        stage = specification.stage
        raise VerificationError(f"{describe(node)} is no op of stage {stage.value}; {_WAY_OUT[stage]}")
    for value in _attributes((node.args, node.kwargs)):
        if not isinstance(value, specification.attributes):
            raise VerificationError(
                f"{describe(node)} has the attribute {value!r}, but stage {specification.stage.value} allows no {type(value).__name__};"
                f" {_WAY_OUT[specification.stage]}"
            )
    _check_row(node, row, specification.stage)


def _check_row(node: fx.Node, row: OpSpecification, stage: Stage) -> None:
    for name, dtypes in row.operands.items():
        _check_dtypes(node, _value_of(argument(node, name)), dtypes, name, stage)
    _check_dtypes(node, node.meta["val"], row.results, "its result", stage)
    for name, allowed in row.choices.items():
        if argument(node, name) not in allowed:
            choices = ", ".join(sorted(map(str, allowed)))
            raise VerificationError(f"{describe(node)}: {name} is '{argument(node, name)}'; choose one of {choices}")


def _check_dtypes(node: fx.Node, value: Any, allowed: frozenset[torch.dtype], what: str, stage: Stage) -> None:
    for tensor in _tensors(value):
        if tensor.dtype not in allowed:
            names = ", ".join(sorted(_dtype_name(dtype) for dtype in allowed))
            raise VerificationError(
                f"{describe(node)}: {what} is {_dtype_name(tensor.dtype)}, stage {stage.value} allows {names} there; {_WAY_OUT[stage]}"
            )


def _evaluated(node: fx.Node) -> Any:
    try:
        return evaluate(node)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise VerificationError(f"{describe(node)} does not accept its arguments: {_first_line(error)}") from error


def _question(node: fx.Node) -> str:
    """A call as far as the shape and dtype of its result depend on it."""

    def of(argument: fx.Node) -> str:
        value = argument.meta["val"]
        strides = _signature(value.stride()) if isinstance(value, torch.Tensor) else ""
        return f"{_signature(value)}{strides}"

    return f"{node.target}{map_arg(node.args, of)}{map_arg(dict(node.kwargs), of)}"


def _check_value(node: fx.Node, wanted: str, origin: str) -> None:
    found = _signature(node.meta["val"])
    if found != wanted:
        raise VerificationError(f"{describe(node)}: meta 'val' says {found} but {origin} {wanted}; recompute it with ir.edit.propagate")


def _signature(value: Any) -> str:
    """Dtype and shape of every tensor of a value, sizes by their symbolic expressions."""
    if isinstance(value, torch.Tensor):
        return f"{_dtype_name(value.dtype)}[{', '.join(map(_signature, value.shape))}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_signature, value))})"
    return str(value.node.expr) if isinstance(value, torch.SymInt) else str(value)


def _check_signature(program: Program) -> None:
    inputs = [node for node in program.graph.nodes if node.op == "placeholder"]
    symbols = symbols_of(program)
    for kind, nodes, specs in (("input", inputs, program.inputs), ("output", _outputs(program), program.outputs)):
        for node, spec in zip(nodes, specs, strict=True):
            _check_spec(kind, node, spec, program.stage, symbols)


def _check_spec(kind: str, node: fx.Node, spec: ValueSpec, stage: Stage, symbols: Symbols) -> None:
    value = node.meta["val"]
    dtype = spec.quantized.integer.dtype if spec.quantized is not None and stage is Stage.INTEGER else spec.dtype
    if value.dtype != dtype:
        raise VerificationError(
            f"{kind} '{spec.name}' is {_dtype_name(dtype)} by specification, but {describe(node)} is {_signature(value)}"
        )
    if not _specifies(spec, value, symbols):
        raise VerificationError(
            f"{kind} '{spec.name}' has the shape [{shape_text(spec.shape)}] by specification, but {describe(node)} is {_signature(value)}"
        )


def _specifies(spec: ValueSpec, value: torch.Tensor, symbols: Symbols) -> bool:
    try:
        return tuple(specified(size, symbols) for size in value.shape) == spec.shape
    except QCompilerError:  # a size that no specification can hold
        return False


# ---- ranges -----------------------------------------------------------------------------------------------------------------------


def _check_ranges(program: Program, bounds: dict[fx.Node, Bounds]) -> None:
    for node in bounds:
        if "quantized" in node.meta:
            _check_annotation(node, node.meta["quantized"], bounds[node])
    for node, spec in zip(_outputs(program), program.outputs, strict=True):
        if spec.quantized is not None and not bounds[node].range.within(spec.quantized.integer):
            raise VerificationError(
                f"output '{spec.name}' is {spec.quantized.integer} by specification, but {describe(node)} lies in {bounds[node].range};"
                " requantize it to that type"
            )


def _check_annotation(node: fx.Node, quantized: QuantizedType, bounds: Bounds) -> None:
    value, proven = node.meta["val"], bounds.range
    if quantized.integer.dtype != value.dtype:
        raise VerificationError(f"{describe(node)} is annotated as {quantized.integer} but its values are {_dtype_name(value.dtype)}")
    if quantized.axis is not None and value.shape[quantized.axis] != len(quantized.scale):
        raise VerificationError(
            f"{describe(node)} is annotated with {len(quantized.scale)} scales along dimension {quantized.axis} of {_signature(value)}"
        )
    if not proven.within(quantized.integer):
        raise VerificationError(
            f"{describe(node)} is annotated as {quantized.integer}, but lies in {proven}; clamp it or annotate a wider type"
        )
    declared = quantized.range
    if declared is not None and not (declared.low <= proven.low and proven.high <= declared.high):
        raise VerificationError(f"{describe(node)} declares the range {declared}, but {proven} is what can be proven; annotate it anew")


# ---- small helpers ----------------------------------------------------------------------------------------------------------------


def _touches_float(node: fx.Node) -> bool:
    values = [node.meta.get("val"), *(operand.meta.get("val") for operand in node.all_input_nodes)]
    floats = any(tensor.is_floating_point() or tensor.is_complex() for tensor in _tensors(values))
    return floats or any(isinstance(value, float) for value in _attributes((node.args, node.kwargs)))


def _value_of(value: Any) -> Any:
    if isinstance(value, fx.Node):
        return value.meta["val"]
    return [_value_of(item) for item in value] if isinstance(value, list | tuple) else value


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _attributes(value: Any) -> Iterator[Any]:
    """The leaves of arguments that are not nodes."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from _attributes(item)
    elif isinstance(value, dict):
        yield from _attributes(list(value.values()))
    elif isinstance(value, slice):
        yield from _attributes((value.start, value.stop, value.step))
    elif not isinstance(value, fx.Node):
        yield value


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
