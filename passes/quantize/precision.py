"""How many bits each value and each weight gets: the options of ``quantize``, layers at the edges, and ``Precision`` of single nodes.

The first that says something wins:

1. ``node.meta["precision"]`` (``qcompiler.ir.types.Precision``): what bit allocation or a recipe asks for at one node;
2. the first and the last layer with weights, and what they read: ``edge_bits``;
3. scores, which a softmax reads: ``score_bits``; what functions such as GELU and gates alone read: ``function_bits``; the residual
   stream: ``residual_bits``; what a Hadamard transform alone reads: 8 at least;
4. ``w`` for weights, ``a`` for all other values.

Probabilities have ``probability_bits``. Integers of more than 8 bits are signed, around zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.errors import CalibrationError
from qcompiler.ir import elementwise
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import IntegerType, Precision
from qcompiler.passes.quantize.grouping import ValueGroups, Width
from qcompiler.passes.quantize.rules import WEIGHT_AXIS, Role, is_whole, role_of

_aten, _qc = torch.ops.aten, torch.ops.qc

_BYTE = 8


@dataclass(frozen=True)
class Bits:
    """The options of ``quantize`` that say how many bits; see there."""

    weight: int
    activation: int
    residual: int
    score: int
    function: int
    probability: int
    edge: int | None
    symmetric: bool


class Precisions:
    """The bits of the values and weights of one graph."""

    def __init__(self, graph: fx.Graph, groups: ValueGroups, bits: Bits) -> None:
        self._groups, self._bits = groups, bits
        self._edges = _edge_layers(graph) if bits.edge is not None else ()
        self._at_edges = {groups.narrow.get(source) for layer in self._edges for source in layer.all_input_nodes[:1]}
        self._asked = _asked(groups)

    def weight(self, layer: fx.Node) -> int:
        """Bits of a layer's weight."""
        asked = _precision(layer).weight
        if asked is not None:
            return asked
        return self._bits.edge if layer in self._edges and self._bits.edge is not None else self._bits.weight

    def value(self, representative: fx.Node, width: Width) -> IntegerType:
        """The integers of a rounded value.

        Raises:
            CalibrationError: ``Precision`` asks for 1 bit where values are symmetric.
        """
        bits = self._value_bits(representative, width)
        signed = representative.target is not _aten.softmax.int and (self._bits.symmetric or bits > _BYTE)
        if bits == 1 and signed:
            raise CalibrationError(f"{describe(representative)}: 1 bit has no integers on both sides of 0: use 2 bits, or symmetric=false")
        return IntegerType(bits, signed)

    def constant(self, width: Width) -> IntegerType:
        """The integers of a constant that is added or moved: never fewer than 8 bits, it costs nothing."""
        bits = self._bits.residual if width is Width.WIDE else max(self._bits.activation, _BYTE)
        return IntegerType(bits, signed=self._bits.symmetric or bits > _BYTE)

    def _value_bits(self, node: fx.Node, width: Width) -> int:
        asked = self._asked.get((node, width))
        if asked is not None:
            return asked
        if width is Width.WIDE:
            return self._bits.residual
        if node.target is _aten.softmax.int:
            return self._bits.probability
        if node in self._at_edges and self._bits.edge is not None:
            return self._bits.edge
        if feeds_softmax(node):
            return self._bits.score
        if _feeds_hadamard(node):
            return max(self._bits.activation, _BYTE)
        return self._bits.function if _feeds_functions(node) else self._bits.activation


def feeds_softmax(node: fx.Node) -> bool:
    """Whether the value goes into softmaxes alone, masked or at another scale or not."""
    return bool(node.users) and all(
        user.target is _aten.softmax.int or (role_of(user) in (Role.MASK, Role.SCALE) and feeds_softmax(user)) for user in node.users
    )


def _feeds_hadamard(node: fx.Node) -> bool:
    """Whether Hadamard transforms alone read it: sums, before which nothing is gained by fewer than 8 bits."""
    return bool(node.users) and all(user.target is _qc.hadamard.default for user in node.users)


def _feeds_functions(node: fx.Node) -> bool:
    """Whether functions of one value and gates alone read it: tables, and products of elements, which cost no more in 8 bits."""
    return bool(node.users) and all(elementwise.is_function(user) or _is_gate(user) for user in node.users)


def _is_gate(node: fx.Node) -> bool:
    """A product, element by element, of two computed values."""
    operands = node.args[:2]
    computed = all(isinstance(each, fx.Node) and each.op != "get_attr" and not is_whole(each) for each in operands)
    return node.target is _aten.mul.Tensor and len(operands) == 2 and computed


def _asked(groups: ValueGroups) -> Mapping[tuple[fx.Node, Width], int]:
    """What ``Precision`` asks for at values: the most of all that share the parameters. More than 8 bits are asked of the wide type."""
    asked: dict[tuple[fx.Node, Width], int] = {}
    for width, values in ((Width.NARROW, groups.narrow), (Width.WIDE, groups.wide)):
        for node, representative in values.items():
            bits = _precision(node).activation
            if bits is not None and (bits > _BYTE) == (width is Width.WIDE):
                key = representative, width
                asked[key] = max(bits, asked.get(key, 0))
    return asked


def _precision(node: fx.Node) -> Precision:
    found = node.meta.get("precision")
    return found if isinstance(found, Precision) else Precision()


def _edge_layers(graph: fx.Graph) -> tuple[fx.Node, ...]:
    layers = [node for node in graph.nodes if node.target in WEIGHT_AXIS and role_of(node) is Role.ACCUMULATE]
    return (layers[0], layers[-1]) if layers else ()
