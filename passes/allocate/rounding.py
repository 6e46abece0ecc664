"""How items would be rounded at each bit-width, decided once: types of activations from one sweep over the data, integers of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.statistics import ObserverSpec, StatisticRequest
from qcompiler.calibration.sweep import collect
from qcompiler.ir.program import Program
from qcompiler.ir.types import IntegerType, QuantizedType, probability_type
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.quantize.parameters import GroupedWeight, QuantizedConstant, activation_type
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.progress import Progress
from qcompiler.sensitivity import Item

Types = Mapping[tuple[Item, int], QuantizedType]

_softmax = torch.ops.aten.softmax.int


def activation_types(
    program: Program,
    items: Items,
    quantize: Quantize,
    data: CalibrationData,
    bits: Mapping[Item, Sequence[int]],
    progress: Progress | None = None,
) -> dict[tuple[Item, int], QuantizedType]:
    """The type of each activation at each of its bit-widths. Values are counted once, whatever the number of widths."""
    nodes = {node.name: node for node in program.graph.nodes}
    values = [(item, width) for item in items.sizes if item.kind == "activation" for width in bits.get(item, ())]
    types = {(item, width): probability_type(width) for item, width in values if _is_probability(nodes[item.name])}
    requests = {key: StatisticRequest(key[0].name, _activation_observer(quantize, key[1])) for key in values if key not in types}
    answers = collect(program, requests.values(), data, progress)
    for (item, width), request in requests.items():
        integer = IntegerType(width, signed=quantize.symmetric)
        types[item, width] = activation_type(answers[request], integer, quantize.symmetric)
    return types


def rounded_weights(
    program: Program, items: Items, quantize: Quantize, bits: Mapping[Item, Sequence[int]], types: Types
) -> Iterator[tuple[Item, dict[int, QuantizedConstant]]]:
    """Each weight at each of its bit-widths: the integers that multiply (with the factors of groups in them), and what they mean.

    ``types``: of activations: at the most bits that are looked at a layer's input bounds its bias, and that its scale.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    for item in items.sizes:
        if item.kind == "weight" and item in bits:
            read = _type_read(items, item, types)
            yield item, {width: _round_weight(nodes[item.name], quantize, width, read) for width in bits[item]}


def _activation_observer(quantize: Quantize, bits: int) -> ObserverSpec:
    return ObserverSpec(quantize.observer, bits=bits, symmetric=quantize.symmetric, groups=quantize.groups)


def _is_probability(node: fx.Node) -> bool:
    return node.target is _softmax


def _type_read(items: Items, weight: Item, types: Types) -> QuantizedType | None:
    """The type of the layer's input at the most bits that are looked at: it bounds the bias that fits the accumulator."""
    source = next((product.operands[0] for product in items.products if product.operands[1] == weight), None)
    known = [width for item, width in types if item == source]
    return types[source, max(known)] if source is not None and known else None


def _round_weight(layer: fx.Node, quantize: Quantize, bits: int, read: QuantizedType | None) -> QuantizedConstant:
    rounded = quantize.round_weight(layer, bits, read)
    if not isinstance(rounded, GroupedWeight):
        return rounded
    return QuantizedConstant(arithmetic.scale_groups(rounded.codes, rounded.factors, rounded.length), rounded.quantized)
