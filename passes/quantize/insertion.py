"""The graph edits of quantization: ``value -> qc.quantize -> qc.dequantize -> readers``."""

from __future__ import annotations

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir import edit
from qcompiler.ir.types import QuantizedType
from qcompiler.passes.quantize.parameters import QuantizedConstant

_qc = torch.ops.qc


def insert_rounding(value: fx.Node, quantized: QuantizedType, made_by: str) -> None:
    """Round ``value`` for all its readers, the program's outputs included."""
    following = _first_call(value.graph) if value.op == "placeholder" else value.next
    integers = _insert(_qc.quantize.default, value, quantized, following, f"{value.name}_quantize", made_by)
    rounded = _insert(_qc.dequantize.default, integers, quantized, following, f"{value.name}_dequantize", made_by)
    value.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not integers)


def replace_operand(user: fx.Node, constant: fx.Node, integers: QuantizedConstant, made_by: str) -> None:
    """Let ``user`` read the dequantized ``integers`` in the place of the float ``constant``."""
    owner = user.graph.owning_module
    assert owner is not None  # the graph of a program belongs to its module
    name = f"{constant.name}_int{integers.quantized.integer.bits}"
    node = edit.add_constant(owner, name, integers.integers, provenance_from=[constant], made_by=made_by)
    node.meta["quantized"] = integers.quantized
    user.replace_input_with(constant, _insert(_qc.dequantize.default, node, integers.quantized, user, f"{name}_dequantize", made_by))


def _insert(target: edit.Target, x: fx.Node, quantized: QuantizedType, before: fx.Node, name: str, made_by: str) -> fx.Node:
    axis = -1 if quantized.axis is None else quantized.axis
    parameters = (list(quantized.scale), list(quantized.zero_point), axis, quantized.integer.bits, quantized.integer.signed)
    node = edit.insert_call(x.graph, target, (x, *parameters), before=before, name=name, provenance_from=[x], made_by=made_by)
    node.meta["quantized"] = quantized
    return node


def _first_call(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(node for node in graph.nodes if node.op == "call_function")
    return first
