"""``If`` with a known condition, ``Loop`` with a known number of turns: the branch that is taken, the turns written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils._python_dispatch import _disable_current_modes

from qcompiler.capture.onnx.call import Value, is_constant
from qcompiler.capture.onnx.model import Graph, Node
from qcompiler.errors import CaptureError, UnsupportedOpError

if TYPE_CHECKING:
    from qcompiler.capture.onnx.interpreter import OnnxModule

# Ops with subgraphs that are run here.
OPS = frozenset({"If", "Loop"})

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


def _stacked(node: Node, values: list[Value]) -> Value:
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    if not tensors or len(tensors) != len(values):
        raise CaptureError(f"node {node.label} makes no turn, or gives sizes: its outputs have no shape")
    return torch.stack(tensors)


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
