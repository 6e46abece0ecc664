"""How far the integers of a quantized ONNX model are from onnxruntime's, layer by layer.

onnxruntime runs the file as it is written, ``ORT_DISABLE_ALL``: QDQ models in float between their roundings, QOperator models with its own
integer kernels. Every value that the file quantizes is compared with ours, by the name of the node that gives it, in one of two ways:

- *given*: each layer reads onnxruntime's integers, so that what is seen is the rounding of that layer alone;
- *running*: each layer reads our integers of the layer before, so that differences add up.

    PYTHONPATH=examples python benchmarks/onnx_agreement.py model.onnx images.npy
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

import qcompiler as qc
from qcompiler.ir.program import Program

PIPELINE = "canonicalize-qdq,lower-integer{requantize=high}"


@dataclass(frozen=True)
class Agreement:
    """Shares of the values of one layer that lie within one step of onnxruntime's, and that are equal; the largest difference."""

    node: str
    within_one: float
    equal: float
    largest: int

    def row(self) -> str:
        return f"| {self.node} | {100 * self.within_one:.3f} | {100 * self.equal:.2f} | {self.largest} |"


def agreement(model: ModelProto, inputs: Sequence[np.ndarray], given: bool = True) -> list[Agreement]:
    """One entry for each quantized value, in the order of the file."""
    layers = {output: name for name, output in _quantized_values(model)}
    reference = dict(zip(layers, _run(_with_outputs(model, list(layers)), inputs), strict=True))
    if given:
        program = _lowered(_opened(model, inputs, reference), dynamic_batch=False)
        values = program.run(*(torch.from_numpy(value) for value in (*inputs, *reference.values())))
    else:
        layers = {output: name for output, name in layers.items() if reference[output].shape[:1] == inputs[0].shape[:1]}
        program = _lowered(_with_outputs(model, list(layers), reference), dynamic_batch=True)
        values = program.run(*(torch.from_numpy(value) for value in inputs))
    return [_compared(name, reference[output], value) for (output, name), value in zip(layers.items(), values, strict=True)]


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


def _lowered(model: ModelProto, dynamic_batch: bool) -> Program:
    return qc.quantize(qc.capture(model, dynamic_batch=dynamic_batch), passes=PIPELINE)


def _compared(name: str, expected: np.ndarray, value: torch.Tensor) -> Agreement:
    difference = (torch.from_numpy(expected.astype(np.int64)) - value.to(torch.int64)).abs()
    within_one, equal = (float((difference <= bound).double().mean()) for bound in (1, 0))
    return Agreement(name, within_one, equal, int(difference.max()))


def main(path: str, images: str) -> None:
    """Print both comparisons of a model on the images of a ``.npy`` file."""
    model, inputs = onnx.load(Path(path)), [np.load(images)]
    for given in (True, False):
        rows = agreement(model, inputs, given)
        print(f"{'given' if given else 'running'}: {summary(rows)}\n\n{table(rows)}\n")


if __name__ == "__main__":
    main(*sys.argv[1:3])
