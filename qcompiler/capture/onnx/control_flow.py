"""``If`` with a known condition, ``Loop`` and ``Scan`` with a known number of turns: the branch that is taken, the turns written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.call import Value, is_constant
from qcompiler.capture.onnx.model import Graph, Node
from qcompiler.capture.onnx.types import traced_dtype
from qcompiler.errors import CaptureError, UnsupportedOpError

if TYPE_CHECKING:
    from qcompiler.capture.onnx.interpreter import OnnxModule

# Ops with subgraphs that are run here.
OPS = frozenset({"If", "Loop", "Scan"})

# Each turn is written out: more would make a program of many thousand nodes.
_MOST_TURNS = 256


def run(module: OnnxModule, node: Node, operands: list[Value], environment: dict[str, Value]) -> tuple[Value, ...]:
    """The outputs of a node that has subgraphs.

    Raises:
        CaptureError: the condition, or the number of turns, depends on the inputs.
        UnsupportedOpError: another op with subgraphs.
    """
    if node.op == "If":
        return _branch(module, node, operands, environment)
    if node.op == "Loop":
        return _turns(module, node, operands, environment)
    if node.op == "Scan":
        oldest = module.model.opsets.get("", 1) < 9
        return (_scan_samples if oldest else _scan)(module, node, operands, environment)
    raise UnsupportedOpError(f"node {node.label} is not supported: control flow on tensors is not compiled; write the steps out")


def _branch(module: OnnxModule, node: Node, operands: list[Value], environment: dict[str, Value]) -> tuple[Value, ...]:
    taken = node.attributes["then_branch" if _known(node, operands[0], "condition") else "else_branch"]
    return tuple(module.run_graph(_graph(node, taken), environment))


def _turns(module: OnnxModule, node: Node, operands: list[Value], environment: dict[str, Value]) -> tuple[Value, ...]:
    body = _graph(node, node.attributes["body"])
    most = _MOST_TURNS + 1 if operands[0] is None else int(_known(node, operands[0], "number of turns"))
    going = operands[1] is None or bool(_known(node, operands[1], "condition"))
    carried, scanned = list(operands[2:]), [list[Value]() for _ in body.outputs[1 + len(operands) - 2 :]]
    turn = 0
    while going and turn < most:
        if turn == _MOST_TURNS:
            raise CaptureError(f"node {node.label} makes more than {_MOST_TURNS} turns: each would be written out")
        with _disable_current_modes():  # constants, even while the model is traced
            count, condition = torch.tensor(turn), torch.tensor(going)
        results = module.run_graph(body, environment, [count, condition, *carried])
        going = bool(_known(node, results[0], "condition"))
        carried = results[1 : 1 + len(carried)]
        for values, value in zip(scanned, results[1 + len(carried) :], strict=True):
            values.append(value)
        turn += 1
    return (*carried, *(_stacked(node, values) for values in scanned))


def _scan(module: OnnxModule, node: Node, operands: list[Value], environment: dict[str, Value]) -> tuple[Value, ...]:
    """State variables and scan inputs -> last states and scan outputs: one turn for each position of the scan inputs."""
    body, attributes = _graph(node, node.attributes["body"]), node.attributes
    count = int(attributes["num_scan_inputs"])
    carried, scanned = operands[: len(operands) - count], [_tensor(node, value) for value in operands[len(operands) - count :]]
    axes = list(attributes.get("scan_input_axes") or [0] * count)
    backwards = list(attributes.get("scan_input_directions") or attributes.get("directions") or [0] * count)
    turns = _length(node, scanned, axes)
    rows = [list[Value]() for _ in body.outputs[len(carried) :]]
    for turn in range(turns):
        parts = [
            _part(value, axis, turns - 1 - turn if reverse else turn) for value, axis, reverse in zip(scanned, axes, backwards, strict=True)
        ]
        results = module.run_graph(body, environment, [*carried, *parts])
        carried = results[: len(carried)]
        for values, value in zip(rows, results[len(carried) :], strict=True):
            values.append(value)
    to, prepended = attributes.get("scan_output_axes") or [0] * len(rows), attributes.get("scan_output_directions") or [0] * len(rows)
    outputs = (_stacked(node, values[::-1] if reverse else values, axis) for values, axis, reverse in zip(rows, to, prepended, strict=True))
    return (*carried, *outputs)


def _scan_samples(module: OnnxModule, node: Node, operands: list[Value], environment: dict[str, Value]) -> tuple[Value, ...]:
    """Opset 8: the first operand holds lengths, and dimension 0 of the others is the batch, of which each sample is scanned by itself."""
    if operands[0] is not None:
        raise CaptureError(f"node {node.label} has sequences of several lengths: pad them, and leave the lengths out")
    values = [_tensor(node, value) for value in operands[1:]]
    count = _length(node, values, [0] * len(values))
    samples = [_scan(module, node, [_part(value, 0, sample) for value in values], environment) for sample in range(count)]
    return tuple(_stacked(node, list(results)) for results in zip(*samples, strict=True))


def _length(node: Node, values: list[torch.Tensor], axes: list[int]) -> int:
    """The one size of these axes."""
    sizes = [value.shape[axis] for value, axis in zip(values, axes, strict=True) if -value.ndim <= axis < value.ndim]
    if not sizes or len(sizes) != len(values) or not all(isinstance(size, int) and size == sizes[0] for size in sizes):
        raise CaptureError(f"node {node.label} runs over axes of sizes {sizes}: they must be known, and the same")
    if sizes[0] > _MOST_TURNS:
        raise CaptureError(f"node {node.label} makes more than {_MOST_TURNS} turns: each would be written out")
    return sizes[0]


def _tensor(node: Node, value: Value) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise CaptureError(f"node {node.label} reads what is no tensor, or is computed from sizes that are open")
    return value


def _part(value: torch.Tensor, axis: int, position: int) -> torch.Tensor:
    if not is_constant(value):
        return value.select(axis, position)
    with _disable_current_modes():  # it stays a constant
        return value.select(axis, position)


def _stacked(node: Node, values: list[Value], axis: int = 0) -> Value:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not tensors or len(tensors) != len(values):
        raise CaptureError(f"node {node.label} makes no turn, or gives sizes: its outputs have no shape")
    if not all(is_constant(value) for value in tensors):
        return torch.stack([value.to(traced_dtype(value.dtype)) for value in tensors], axis)
    with _disable_current_modes():
        return torch.stack(tensors, axis)


def _known(node: Node, value: Value, what: str) -> float | int | bool:
    if not isinstance(value, torch.Tensor) or not is_constant(value) or value.numel() != 1:
        raise CaptureError(f"node {node.label} has a {what} that depends on the inputs: control flow on tensors is not compiled")
    with _disable_current_modes():  # what is traced must not see it
        number: float | int | bool = value.reshape(()).item()
    return number


def _graph(node: Node, value: object) -> Graph:
    if not isinstance(value, Graph):
        raise CaptureError(f"node {node.label} lacks a branch")
    return value
