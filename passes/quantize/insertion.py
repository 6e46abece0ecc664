"""The graph edits of quantization: ``value -> qc.quantize -> qc.dequantize -> readers``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir import edit
from qcompiler.ir.types import IntegerType, QuantizedType
from qcompiler.passes.quantize.levels import Levels
from qcompiler.passes.quantize.parameters import GroupedWeight, QuantizedConstant

_qc = torch.ops.qc


def insert_rounding(
    value: fx.Node, quantized: QuantizedType, made_by: str, name: str | None = None, only: Callable[[fx.Node], bool] | None = None
) -> fx.Node:
    """Round ``value`` for all its readers, the program's outputs included, or for those for which ``only`` holds; gives the result."""
    following = _first_call(value.graph) if value.op == "placeholder" else value.next
    name = name or value.name
    integers = _insert(_qc.quantize.default, value, quantized, following, f"{name}_quantize", made_by)
    rounded = _insert(_qc.dequantize.default, integers, quantized, following, f"{name}_dequantize", made_by)
    value.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not integers and (only is None or only(user)))
    return rounded


def insert_coding(value: fx.Node, levels: Levels, made_by: str) -> None:
    """As ``insert_rounding``, to unequal steps: ``value -> qc.encode -> qc.decode -> readers``."""
    following = value.next

    def insert(target: edit.Target, x: fx.Node, numbers: tuple[float, ...], name: str) -> fx.Node:
        arguments = (x, list(numbers))
        return edit.insert_call(x.graph, target, arguments, before=following, name=name, provenance_from=[value], made_by=made_by)

    codes = insert(_qc.encode.default, value, levels.boundaries, f"{value.name}_encode")
    rounded = insert(_qc.decode.default, codes, levels.levels, f"{value.name}_decode")
    value.replace_all_uses_with(rounded, delete_user_cb=lambda user: user is not codes)


def replace_operand(user: fx.Node, constant: fx.Node, integers: QuantizedConstant, made_by: str) -> None:
    """Let ``user`` read the dequantized ``integers`` in the place of the float ``constant``."""
    owner = user.graph.owning_module
    assert owner is not None  # the graph of a program belongs to its module
    name = f"{constant.name}_int{integers.quantized.integer.bits}"
    node = edit.add_constant(owner, name, integers.integers, provenance_from=[constant], made_by=made_by)
    node.meta["quantized"] = integers.quantized
    user.replace_input_with(constant, _insert(_qc.dequantize.default, node, integers.quantized, user, f"{name}_dequantize", made_by))


def replace_grouped_weight(user: fx.Node, constant: fx.Node, weight: GroupedWeight, made_by: str) -> None:
    """Let ``user`` read the dequantized product of codes and factors. The codes' type says their bits; a step of it means factor times
    scale."""
    owner = user.graph.owning_module
    assert owner is not None  # the graph of a program belongs to its module
    name = f"{constant.name}_int{weight.bits}"
    codes, factors = (
        edit.add_constant(owner, label, tensor, provenance_from=[constant], made_by=made_by)
        for label, tensor in ((name, weight.codes), (f"{name}_factors", weight.factors))
    )
    codes.meta["quantized"] = replace(weight.quantized, integer=IntegerType(weight.bits, signed=True))
    arguments = (codes, factors, weight.length)
    label = f"{name}_scaled"
    scaled = edit.insert_call(
        user.graph, _qc.scale_groups.default, arguments, before=user, name=label, provenance_from=[constant], made_by=made_by
    )
    scaled.meta["quantized"] = weight.quantized
    user.replace_input_with(constant, _insert(_qc.dequantize.default, scaled, weight.quantized, user, f"{name}_dequantize", made_by))


def _insert(target: edit.Target, x: fx.Node, quantized: QuantizedType, before: fx.Node, name: str, made_by: str) -> fx.Node:
    node = edit.insert_call(x.graph, target, (x, *quantized.arguments), before=before, name=name, provenance_from=[x], made_by=made_by)
    node.meta["quantized"] = quantized
    return node


def _first_call(graph: fx.Graph) -> fx.Node:
    first: fx.Node = next(node for node in graph.nodes if node.op == "call_function")
    return first
