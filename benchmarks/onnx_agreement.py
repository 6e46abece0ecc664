"""How far the integers of a quantized ONNX model are from onnxruntime's, layer by layer.

onnxruntime runs the file as it is written, ``ORT_DISABLE_ALL``: QDQ models in float between their roundings, QOperator models with its own
integer kernels. Every value that the file quantizes is compared with ours, by the name of the node that gives it, in one of two ways:

- *given*: each layer reads onnxruntime's integers, so that what is seen is the rounding of that layer alone;
- *running*: each layer reads our integers of the layer before, so that differences add up.

Running, one integer that falls on the other side of a tie changes the layers behind it, and no two float evaluations of a file agree. So a
third evaluation stands beside: the same graph in float64 between its roundings. How far onnxruntime is from it bounds any agreement with
onnxruntime; how far our integers are from it is what our arithmetic adds.

    PYTHONPATH=examples python benchmarks/onnx_agreement.py model.onnx images.npy
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, ValueInfoProto, helper
from torch import Tensor, fx

import qcompiler as qc
from qcompiler.ir.edit import argument
from qcompiler.ir.program import Program
from qcompiler.ir.types import QuantizedType

PIPELINE = "canonicalize-qdq,lower-integer{requantize=high,softmax=auto,activation=auto}"  # what qc.quantize takes
_qc = torch.ops.qc


@dataclass(frozen=True)
class Agreement:
    """Shares of the values of one layer that lie within one step of onnxruntime's, and that are equal; the largest difference."""

    node: str
    within_one: float
    equal: float
    largest: int

    def row(self) -> str:
        return f"| {self.node} | {100 * self.within_one:.3f} | {100 * self.equal:.2f} | {self.largest} |"


@dataclass(frozen=True)
class Running:
    """Three evaluations by themselves, compared in pairs."""

    ours: list[Agreement]  # with onnxruntime
    bound: list[Agreement]  # of float64 with onnxruntime
    exact: list[Agreement]  # ours with float64


def agreement(model: ModelProto, inputs: Sequence[np.ndarray]) -> list[Agreement]:
    """Each layer given onnxruntime's integers: one entry for each quantized value, in the order of the file."""
    layers = {output: name for name, output in _quantized_values(model)}
    reference = dict(zip(layers, _run(_with_outputs(model, list(layers)), inputs), strict=True))
    program = _lowered(qc.capture(_opened(model, inputs, reference), dynamic_batch=False))
    values = program.run(*(torch.from_numpy(value) for value in (*inputs, *reference.values())))
    return _all_compared(layers, list(reference.values()), values)


def running(model: ModelProto, inputs: Sequence[np.ndarray]) -> Running:
    """Each layer reads what the same evaluation gave before it; values that have the batch in front."""
    layers = {output: name for name, output in _quantized_values(model)}
    reference = dict(zip(layers, _run(_with_outputs(model, list(layers)), inputs), strict=True))
    layers = {output: name for output, name in layers.items() if reference[output].shape[:1] == inputs[0].shape[:1]}
    captured = qc.capture(_with_outputs(model, list(layers), reference), dynamic_batch=True)
    tensors = [torch.from_numpy(value) for value in inputs]
    ours, real = _lowered(captured).run(*tensors), Float64(captured.graph_module).run(*tensors)
    expected, exact = [reference[output] for output in layers], [value.numpy() for value in real]
    return Running(_all_compared(layers, expected, ours), _all_compared(layers, expected, real), _all_compared(layers, exact, ours))


class Float64(fx.Interpreter):
    """A program at stage QDQ, in float64 between its roundings, which divide by the scale as ONNX says."""

    def run_node(self, n: fx.Node) -> Any:
        """Constants in float64, quantize and dequantize of it."""
        if n.target in (_qc.quantize.default, _qc.dequantize.default):
            x = self.env[argument(n, "x")]
            kind = QuantizedType.from_arguments(*(argument(n, name) for name in ("scale", "zero_point", "axis", "bits", "signed")))
            return (_quantized if n.target is _qc.quantize.default else _real)(x, kind)
        value = super().run_node(n)
        return value.double() if n.op in ("get_attr", "placeholder") and value.is_floating_point() else value


def _quantized(x: Tensor, kind: QuantizedType) -> Tensor:
    scale, zero_point = _parameters(x, kind)
    return (torch.round(x / scale) + zero_point).clamp(kind.integer.low, kind.integer.high).to(kind.integer.dtype)


def _real(x: Tensor, kind: QuantizedType) -> Tensor:
    scale, zero_point = _parameters(x, kind)
    return (x.double() - zero_point) * scale


def _parameters(x: Tensor, kind: QuantizedType) -> tuple[Tensor, Tensor]:
    """Scale and zero point in float64, shaped to broadcast against x."""
    values = (torch.tensor(each, dtype=torch.float64) for each in (kind.scale, kind.zero_point))
    shape = [-1 if dim == kind.axis else 1 for dim in range(x.dim())]
    scale, zero_point = (each.reshape(shape) if each.numel() > 1 else each.reshape(()) for each in values)
    return scale, zero_point


def table(rows: Sequence[Agreement], most: int = 8) -> str:
    """The layers that agree least, as Markdown."""
    worst = sorted(rows, key=lambda row: (row.within_one, row.equal))[:most]
    lines = ["| node | within one step, % | equal, % | largest difference |", "|---|---|---|---|", *(row.row() for row in worst)]
    return "\n".join(lines)


def summary(rows: Sequence[Agreement]) -> str:
    """One line: how many layers, the least share within one step, the mean share of equal values."""
    least, equal = min(row.within_one for row in rows), sum(row.equal for row in rows) / len(rows)
    return f"{len(rows)} layers, at least {100 * least:.3f} % within one step, {100 * equal:.3f} % equal on average"


def _quantized_values(model: ModelProto) -> list[tuple[str, str]]:
    """Node and output of each op that gives integers with a scale, of anything but weights."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [(node.name, node.output[0]) for node in model.graph.node if _quantizes(node) and not weights.issuperset(node.input)]


def _quantizes(node: NodeProto) -> bool:
    if node.op_type == "QGemm":
        return len(node.input) > 7 and bool(node.input[7])
    return node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")


def _run(model: ModelProto, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(None, {each.name: value for each, value in zip(session.get_inputs(), inputs, strict=True)})
    return results


def _with_outputs(model: ModelProto, names: Sequence[str], known: dict[str, np.ndarray] | None = None) -> ModelProto:
    """The model with other outputs; ``known``: values of them, for their types and shapes behind the batch."""
    changed = _copy(model)
    del changed.graph.output[:]
    for name in names:
        typed = known is not None
        changed.graph.output.append(_value_info(name, known[name], "batch") if typed and known else ValueInfoProto(name=name))
    return changed


def _opened(model: ModelProto, inputs: Sequence[np.ndarray], known: dict[str, np.ndarray]) -> ModelProto:
    """The model cut behind every quantized value: each is an output, and its readers read an input of its own."""
    changed = _with_outputs(model, list(known), known)
    del changed.graph.output[:]
    changed.graph.output.extend(_value_info(name, value) for name, value in known.items())
    given = {name: f"{name}_given" for name in known}
    for node in changed.graph.node:
        for position, name in enumerate(node.input):
            node.input[position] = given.get(name, name)
    for declared, value in zip(changed.graph.input, inputs, strict=True):
        declared.CopyFrom(_value_info(declared.name, value))
    changed.graph.input.extend(_value_info(given[name], value) for name, value in known.items())
    del changed.graph.value_info[:]
    return changed


def _value_info(name: str, value: np.ndarray, first: str | None = None) -> ValueInfoProto:
    shape = list(value.shape) if first is None else [first, *value.shape[1:]]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), shape)


def _copy(model: ModelProto) -> ModelProto:
    copied = ModelProto()
    copied.CopyFrom(model)
    return copied


def _lowered(captured: Program) -> Program:
    return qc.quantize(captured, passes=PIPELINE)


def _all_compared(layers: dict[str, str], expected: Sequence[np.ndarray], values: Sequence[Tensor]) -> list[Agreement]:
    return [_compared(name, wanted, value) for name, wanted, value in zip(layers.values(), expected, values, strict=True)]


def _compared(name: str, expected: np.ndarray, value: torch.Tensor) -> Agreement:
    difference = (torch.from_numpy(expected.astype(np.int64)) - value.to(torch.int64)).abs()
    within_one, equal = (float((difference <= bound).double().mean()) for bound in (1, 0))
    return Agreement(name, within_one, equal, int(difference.max()))


def main(path: str, images: str) -> None:
    """Print all comparisons of a model on the images of a ``.npy`` file."""
    model, inputs = onnx.load(Path(path)), [np.load(images)]
    given = agreement(model, inputs)
    print(f"given: {summary(given)}\n\n{table(given)}\n")
    found = running(model, inputs)
    print(f"running: {summary(found.ours)}\n\n{table(found.ours)}\n")
    print(f"float64 and onnxruntime: {summary(found.bound)}\nours and float64: {summary(found.exact)}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
