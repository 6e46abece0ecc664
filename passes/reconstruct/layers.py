"""The layers whose weights can be chosen anew, and what a method changes about them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler import arithmetic
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.quantized_constants import quantized_type
from qcompiler.ir.types import INT2, QuantizedType
from qcompiler.passes.reconstruct.grid import BINARY, Grid

_aten, _qc = torch.ops.aten, torch.ops.qc

WEIGHTED = frozenset({_aten.conv2d.default, _aten.conv_transpose2d.input, _aten.linear.default})


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """A convolution or linear layer of a QDQ program, with its float original.

    node: the layer; ``source`` the node of its input, ``weight`` the dequantize of its constant, ``bias`` the node of its float bias.
    integers: the weight's integers as they are, [N, ...]; ``kind`` what they mean, but for
    factors: what a step of each integer is multiplied by, where groups of inputs have factors (``qc.scale_groups``); they stay. Broadcasts.
    original: the float program's weight; ``present_bias`` the float bias as it is, where the layer has one of its own.
    """

    node: fx.Node
    source: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    integers: Tensor
    kind: QuantizedType
    original: Tensor
    present_bias: Tensor | None
    factors: Tensor | None = None

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def scale(self) -> Tensor:
        """Of a step, float32, broadcasts against the weight."""
        return self.steps_of(torch.tensor(self.kind.scale, dtype=torch.float32))

    def steps_of(self, scale: Tensor) -> Tensor:
        """What a step of each integer means for one scale for each index of the weight's axis (or for all)."""
        steps = broadcast_scale(scale, self.kind, self.integers.dim())
        return steps if self.factors is None else steps * self.factors

    @cached_property
    def grid(self) -> Grid:
        """From -high, as ``quantize`` leaves the lowest integer unused, unless the weight uses it already. A weight of 2 bits without a 0
        is binary and stays so."""
        integer = self.kind.integer
        if integer == INT2 and arithmetic.is_binary(self.integers):
            return BINARY
        return Grid(min(-integer.high, int(self.integers.min())), integer.high)


@dataclass(frozen=True, eq=False)
class LayerChange:
    """What becomes of the layer called ``name``; None: stays as it is. ``scale`` has one number for each index of the weight's axis."""

    name: str
    integers: Tensor | None = None
    scale: Tensor | None = None
    bias: Tensor | None = None


def broadcast_scale(scale: Tensor, kind: QuantizedType, dims: int) -> Tensor:
    """One scale for each index of the weight's axis (or one for all) in a shape that broadcasts against a weight of ``dims`` dimensions."""
    shape = [1] * dims
    if kind.axis is not None:
        shape[kind.axis] = -1
    return scale.reshape(shape)


def uses_its_grid(layer: QuantizedLayer) -> Tensor:
    """For each scale whether its integers reach half of the highest one; of a binary weight, before they were rounded."""
    axis = layer.kind.axis
    magnitude = (layer.original / layer.scale if layer.grid is BINARY else layer.integers.to(torch.int32)).abs()
    rows = magnitude.reshape(1, -1) if axis is None else magnitude.movedim(axis, 0).flatten(1)
    return rows.amax(1) * 2 >= layer.grid.high


def find_layers(program: Program, reference: Program) -> tuple[list[QuantizedLayer], list[str]]:
    """The layers of a QDQ program in topological order, and a note for each that must be left alone."""
    originals = {node.name: node for node in reference.graph.nodes}
    layers: list[QuantizedLayer] = []
    notes: list[str] = []
    for node in edit.calls(program.graph, *WEIGHTED):
        found = _layer(node, originals.get(node.name))
        if isinstance(found, str):
            notes.append(f"left alone: {describe(node)}: {found}")
        else:
            layers.append(found)
    return layers, notes


def _layer(node: fx.Node, original: fx.Node | None) -> QuantizedLayer | str:
    """The layer, or why its weight must stay."""
    weight, bias, source = argument(node, "weight"), argument(node, "bias"), argument(node, "input")
    if not edit.is_call(weight, _qc.dequantize.default):
        return "its weight is not quantized"
    constant = _codes(weight)
    integers = edit.constant_value(constant)
    if integers is None:
        return "its weight is computed"
    readers = max(len(weight.users), len(weight.args[0].users) if constant is not weight.args[0] else 1)
    if readers > 1:
        return f"its weight is shared by {readers} layers"
    if original is None or original.target is not node.target:
        return "the float program has no layer of its name"
    kind, values = quantized_type(weight), edit.constant_value(argument(original, "weight"))
    if values is None or values.shape != integers.shape:
        return "the float program's weight has another shape"
    if any(kind.zero_point):
        return "its weight has a zero point"
    if constant is not weight.args[0]:
        kind = replace(kind, integer=constant.meta["quantized"].integer)
    own_bias = bias if isinstance(bias, fx.Node) and bias.op == "get_attr" and len(bias.users) == 1 else None
    factors = _factors(weight, integers)
    return QuantizedLayer(node, source, weight, own_bias, integers, kind, values, edit.constant_value(own_bias), factors)


def _codes(weight: fx.Node) -> fx.Node:
    """What the constant integers of a dequantized weight should be: its operand, or that operand's codes."""
    operand = weight.args[0]
    codes = argument(operand, "codes") if isinstance(operand, fx.Node) and edit.is_call(operand, _qc.scale_groups.default) else operand
    assert isinstance(codes, fx.Node)  # the ops' tensors
    return codes


def _factors(weight: fx.Node, codes: Tensor) -> Tensor | None:
    """The factor of each input, float32 [N, K, 1...]; None for a weight without groups."""
    operand = weight.args[0]
    if not isinstance(operand, fx.Node) or not edit.is_call(operand, _qc.scale_groups.default):
        return None
    factors = edit.constant_value(argument(operand, "factors"))
    assert factors is not None  # quantize makes them constants
    return arithmetic.expand_factors(factors, argument(operand, "length"), codes).float()


def dequantized(layer: QuantizedLayer, change: LayerChange) -> Iterator[tuple[fx.Node, Tensor]]:
    """The constants that a change replaces when the graph is run, and their values."""
    if change.integers is not None:
        scale = layer.scale if change.scale is None else layer.steps_of(change.scale)
        yield layer.weight, change.integers.to(torch.float32) * scale
    if change.bias is not None and layer.bias is not None:
        yield layer.bias, change.bias


def apply(program: Program, layers: Iterable[QuantizedLayer], changes: Iterable[LayerChange], made_by: str) -> Program:
    """A copy of the program with the changes written into its constants."""
    result = edit.copy(program)
    nodes = {node.name: node for node in result.graph.nodes}
    layer_of = {layer.name: layer for layer in layers}
    for change in changes:
        layer = layer_of[change.name]
        weight, node = nodes[layer.weight.name], nodes[layer.name]
        if change.integers is not None:
            codes = _codes(weight)
            (reader,) = (each for each in codes.users if each is weight or each is weight.args[0])
            _replace_constant(result, reader, codes, change.integers.to(layer.integers.dtype), made_by)
        if change.scale is not None:
            _rescale(node, weight, layer.kind, change.scale)
        if change.bias is not None and layer.bias is not None:
            _replace_constant(result, node, nodes[layer.bias.name], change.bias, made_by)
    edit.erase_dead(result)
    return result


def _replace_constant(program: Program, reader: fx.Node, constant: object, values: Tensor, made_by: str) -> None:
    """Let ``reader`` alone read ``values``: the tensor behind ``constant`` may serve other nodes, and the program that came in."""
    assert isinstance(constant, fx.Node)  # the operand of a layer that _layer found
    new = edit.add_constant(program.graph_module, str(constant.target), values, provenance_from=[constant], made_by=made_by)
    new.meta |= {key: value for key, value in constant.meta.items() if key == "quantized"}
    reader.replace_input_with(constant, new)


def _rescale(node: fx.Node, weight: fx.Node, kind: QuantizedType, scale: Tensor) -> None:
    """New scales in the dequantize, and in what is noted about the weight and about the accumulator."""
    renewed = QuantizedType(kind.integer, tuple(scale.tolist()), kind.zero_point, kind.axis)
    parameters = (list(renewed.scale), list(renewed.zero_point), *weight.args[3:])
    weight.args = (weight.args[0], *parameters)
    multiplied = quantized_type(weight).integer
    for noted, integer in ((weight, multiplied), (weight.args[0], multiplied), (_codes(weight), kind.integer)):
        assert isinstance(noted, fx.Node)  # the dequantize and its constants
        noted.meta["quantized"] = replace(renewed, integer=integer)
    accumulator = node.meta.get("quantized")
    if isinstance(accumulator, QuantizedType) and accumulator.integer.bits == 32:
        factors = torch.tensor(renewed.scale, dtype=torch.float64) / torch.tensor(kind.scale, dtype=torch.float64)
        old = torch.tensor(accumulator.scale, dtype=torch.float64)
        scaled = (old * factors.repeat(old.numel() // factors.numel())).to(torch.float32)
        node.meta["quantized"] = QuantizedType(accumulator.integer, tuple(scaled.tolist()), accumulator.zero_point, accumulator.axis)
