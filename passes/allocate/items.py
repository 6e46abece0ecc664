"""What of a FLOAT program can get bits of its own, and what each bit costs: parameters, values, multiply-accumulates.

1. A *weight* item is a layer with a constant weight (``passes/quantize/rules.WEIGHT_AXIS``), by the name of its node.
2. An *activation* item is a value that is rounded to the narrow type, by its representative (``passes/quantize/grouping``): all values that
   share its parameters have its bits.
3. A value or weight whose bits the options of ``quantize`` state for its kind alone (``edge_bits``, ``score_bits``, ``function_bits``,
   ``probability_bits``, levels with unequal steps), or whose node has a ``Precision`` already, is *fixed* and no item, unless asked for.
4. The residual stream is wide and no item, nor are tables of embeddings, biases and constants that are added: they have bits of their own.

An allocation goes into the program as ``node.meta["precision"]`` at the layer or at the representative (``with_bits``): ``quantize`` reads
it there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import sympy
import torch
from torch import fx

from qcompiler.errors import UnknownNameError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import provenance_of
from qcompiler.ir.sizes import expression, symbols_of
from qcompiler.ir.types import DynamicSize, Precision
from qcompiler.passes.quantize.grouping import ValueGroups, Width
from qcompiler.passes.quantize.precision import Precisions
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.passes.quantize.rules import SUMS, WEIGHT_AXIS, Role, role_of
from qcompiler.sensitivity import Item

_aten = torch.ops.aten

BITS: tuple[int, ...] = (2, 3, 4, 6, 8)
"""Bit-widths that are looked at unless others are asked for."""
ALLOWED = range(2, 9)
"""Bit-widths that may be asked for: narrow integers end at 8 bits, and one of 1 bit that is only rounded guesses."""


@dataclass(frozen=True)
class Candidate:
    """An item and its size.

    elements: parameters of a weight; values of one sample of an activation.
    channels: output channels of a weight (rows with a scale of their own); 1 for an activation.
    factors: bits -> factors for groups of inputs that a weight has there (``quantize{weight_group=...}``); not there: none.
    bits: what it can have.
    place: where it comes from in the user's model; empty if unknown.
    """

    item: Item
    elements: int
    channels: int = 1
    bits: tuple[int, ...] = BITS
    place: str = ""
    factors: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Product:
    """Multiply-accumulates of one node for one sample; ``operands``: what it multiplies, the activation first.

    An operand is a candidate or a fixed item; None: a value without a choice, of 8 bits (rows of a table).
    """

    name: str
    macs: int
    operands: tuple[Item | None, Item | None]


@dataclass(frozen=True)
class Tie:
    """Items that may be asked to have equal bits.

    kind:
        ``sum``             operands of a sum (a residual add) that are both rounded.
        ``concatenation``   inputs of a concatenation and its result.
        ``product``         two activations that are multiplied: query and key, probabilities and values.
        ``shared-weight``   layers that use one weight.
    node: the op that joins them, or the weight.
    """

    kind: str
    node: str
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Items:
    """What can get bits, in topological order, weights before activations.

    candidates: by item. fixed: item -> bits that the options of ``quantize`` state for it. products: see there; topological.
    ties: see there; of candidates alone.
    """

    candidates: Mapping[Item, Candidate]
    fixed: Mapping[Item, int]
    products: tuple[Product, ...]
    ties: tuple[Tie, ...]
    sizes: Mapping[Item, Candidate] = field(repr=False, default_factory=dict)
    """Also of fixed items."""

    def find(self, name: str, kind: str | None = None) -> tuple[Item, ...]:
        """The candidates with that name: one of each kind at most.

        Raises:
            UnknownNameError: there is none; carries the nearest known name.
        """
        found = tuple(item for item in self.candidates if item.name == name and kind in (None, item.kind))
        if not found:
            raise UnknownNameError(kind or "item", name, {item.name for item in self.candidates if kind in (None, item.kind)})
        return found


def find_items(program: Program, quantize: Quantize | None = None, *, bits: Sequence[int] = BITS, include_fixed: bool = False) -> Items:
    """The items of a FLOAT program as the pass ``quantize``, with these options, will round it.

    Args:
        quantize: with its options; None: the defaults. It decides what is rounded, what is wide and what is fixed.
        bits: what candidates may have.
        include_fixed: make fixed weights and values candidates too.
    """
    chosen = quantize or Quantize()
    finder = _Finder(program, chosen, tuple(sorted(bits)))
    fixed = {} if include_fixed else finder.fixed()
    candidates = {item: size for item, size in finder.sizes.items() if item not in fixed}
    return Items(candidates, fixed, tuple(finder.products()), tuple(finder.ties(candidates)), finder.sizes)


def with_bits(program: Program, bits: Mapping[Item, int], channels: Mapping[Item, tuple[int, ...]] | None = None) -> Program:
    """A copy of the program with the bits of these items in ``node.meta["precision"]``; what stands there for others stays.

    ``channels``: weight -> bits of each output channel, of which ``bits`` has the most; ``split-channels`` makes layers of them.

    Raises:
        UnknownNameError: the program has no node of such a name.
    """
    result = edit.copy(program)
    nodes = {node.name: node for node in result.graph.nodes}
    for item, width in bits.items():
        if item.name not in nodes:
            raise UnknownNameError(item.kind, item.name, nodes)
        meta = nodes[item.name].meta
        of_channels = {"channels": (channels or {}).get(item, ())} if item.kind == "weight" else {}
        meta["precision"] = replace(meta.get("precision") or Precision(), **{item.kind: width}, **of_channels)
    return result


class _Finder:
    """One program and one ``quantize``."""

    def __init__(self, program: Program, quantize: Quantize, bits: tuple[int, ...]) -> None:
        self._program, self._quantize, self._bits = program, quantize, bits
        self._groups: ValueGroups = quantize.value_groups(program)
        self._symbols = _sizes_of_one_sample(program)
        self._batch = _fixed_batch(program)
        skipped = self._groups.without_integer_form
        self._layers = [
            node for node in program.graph.nodes if node.target in WEIGHT_AXIS and role_of(node) is Role.ACCUMULATE and node not in skipped
        ]
        self._activations = list(dict.fromkeys(self._groups.narrow.values()))
        self.sizes = {size.item: size for size in (*map(self._weight, self._layers), *map(self._activation, self._activations))}

    def fixed(self) -> dict[Item, int]:
        """Items whose bits do not follow the options ``w`` and ``a``: rule 3."""
        few, more = (Precisions(self._program.graph, self._groups, replace(self._quantize, w=bits, a=bits).bits()) for bits in (2, 3))
        found: dict[Item, int] = {}
        for layer in self._layers:
            if few.weight(layer) == more.weight(layer):
                found[Item(layer.name, "weight")] = few.weight(layer)
        for value in self._activations:
            bits = few.value(value, Width.NARROW).bits
            coded = self._quantize.coded_bits(value)
            if coded is not None or bits == more.value(value, Width.NARROW).bits:
                found[Item(value.name, "activation")] = coded or bits
        return found

    def products(self) -> list[Product]:
        layers = set(self._layers)
        found = []
        for node in self._program.graph.nodes:
            if node in layers:
                read = self._item_read(node.args[0], node)
                found.append(Product(node.name, self._macs(node), (read, Item(node.name, "weight"))))
            elif _multiplies_activations(node):
                left, right = (self._item_read(operand, node) for operand in node.args[:2])
                found.append(Product(node.name, self._count(node) * self._number(node.args[0].meta["val"].shape[-1]), (left, right)))
        return found

    def ties(self, candidates: Mapping[Item, Candidate]) -> list[Tie]:
        found = []
        for node in self._program.graph.nodes:
            kind, values = self._joined(node)
            items = [self._item_read(value, node) for value in values]
            if kind == "concatenation":
                items.append(self._item_of(node))
            found.append(Tie(kind, node.name, tuple(dict.fromkeys(item for item in items if item in candidates and item is not None))))
        weights: dict[str, list[Item]] = {}
        for layer in self._layers:
            weights.setdefault(str(edit.argument(layer, "weight").target), []).append(Item(layer.name, "weight"))
        found += [Tie("shared-weight", name, tuple(item for item in items if item in candidates)) for name, items in weights.items()]
        return [tie for tie in found if len(tie.items) > 1]

    def _weight(self, layer: fx.Node) -> Candidate:
        weight = edit.constant_value(layer.args[1])
        assert weight is not None  # what rule 1 asks for
        channels = weight.shape[WEIGHT_AXIS[layer.target]]
        factors = {bits: count for bits in range(1, 9) if (count := self._quantize.weight_factors(layer, bits))}
        return Candidate(Item(layer.name, "weight"), weight.numel(), channels, self._bits, provenance_of(layer).location, factors)

    def _activation(self, value: fx.Node) -> Candidate:
        return Candidate(Item(value.name, "activation"), self._count(value), 1, self._bits, provenance_of(value).location)

    def _joined(self, node: fx.Node) -> tuple[str, list[object]]:
        if node.target in SUMS and role_of(node) is Role.ROUND:
            return "sum", list(node.args[:2])
        if node.target is _aten.cat.default and isinstance(node.args[0], list | tuple):
            return "concatenation", list(node.args[0])
        return ("product", list(node.args[:2])) if _multiplies_activations(node) else ("", [])

    def _item_read(self, value: object, reader: fx.Node) -> Item | None:
        if not isinstance(value, fx.Node) or value not in self._groups.narrow:
            return None
        return self._item_of(value) if self._groups.width_read(value, reader) is Width.NARROW else None

    def _item_of(self, value: fx.Node) -> Item | None:
        representative = self._groups.narrow.get(value)
        return Item(representative.name, "activation") if representative is not None else None

    def _macs(self, layer: fx.Node) -> int:
        weight = edit.constant_value(layer.args[1])
        assert weight is not None  # what rule 1 asks for
        if layer.target is _aten.conv_transpose2d.input:  # each input is multiplied by all weights of its channel
            source = layer.args[0]
            assert isinstance(source, fx.Node)  # an op's tensor
            return self._count(source) * weight[0].numel()
        return self._count(layer) * weight[0].numel()

    def _count(self, node: fx.Node) -> int:
        """Elements of one sample."""
        total = math.prod(self._number(size) for size in node.meta["val"].shape)
        return total // self._batch if self._batch and total % self._batch == 0 else total

    def _number(self, size: int | torch.SymInt) -> int:
        return int(expression(size).subs(self._symbols))


def _multiplies_activations(node: fx.Node) -> bool:
    constant = any(edit.constant_value(operand) is not None for operand in node.args[:2])
    return edit.is_call(node, _aten.matmul.default) and role_of(node) is Role.ACCUMULATE and not constant


def _sizes_of_one_sample(program: Program) -> dict[sympy.Symbol, int]:
    """A batch of one; dynamic sizes at their largest."""
    symbols = symbols_of(program).items()
    return {symbol: size.maximum if isinstance(size, DynamicSize) else 1 for symbol, size in symbols}


def _fixed_batch(program: Program) -> int:
    """How many samples a program with a fixed batch takes at once; 0 for a symbolic batch."""
    first = program.inputs[0].shape[:1] if program.inputs else ()
    return first[0] if first and isinstance(first[0], int) else 0
