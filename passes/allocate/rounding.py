"""The integer types that items would have at each bit-width: decided once, from one sweep over the data, as ``quantize`` decides them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import fx

from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.statistics import ObserverSpec, StatisticRequest
from qcompiler.calibration.sweep import collect
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import IntegerType, QuantizedType, probability_type
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.quantize.parameters import activation_type, quantize_weight
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.passes.quantize.rules import WEIGHT_AXIS
from qcompiler.pipeline.progress import Progress
from qcompiler.sensitivity import Item

Types = Mapping[tuple[Item, int], QuantizedType]

_softmax = torch.ops.aten.softmax.int


def decide_types(
    program: Program,
    items: Items,
    quantize: Quantize,
    data: CalibrationData | None,
    bits: Mapping[Item, Sequence[int]],
    progress: Progress | None = None,
) -> dict[tuple[Item, int], QuantizedType]:
    """The type of each item at each of its bit-widths. Values are counted once, whatever the number of widths.

    Without data activations have none.
    """
    nodes = {node.name: node for node in program.graph.nodes}
    values = [item for item in items.sizes if item.kind == "activation"] if data is not None else []
    types = {(item, width): probability_type(width) for item in values if _is_probability(nodes[item.name]) for width in bits.get(item, ())}
    requests = {
        (item, width): StatisticRequest(item.name, _activation_observer(quantize, width))
        for item in values
        for width in bits.get(item, ())
        if not _is_probability(nodes[item.name])
    }
    if requests and data is not None:
        answers = collect(program, requests.values(), data, progress)
        for (item, width), request in requests.items():
            integer = IntegerType(width, signed=quantize.symmetric)
            types[item, width] = activation_type(answers[request], integer, quantize.symmetric)
    for item in items.sizes:
        if item.kind == "weight":
            read = _type_read(items, item, types)
            types |= {(item, width): _weight_type(nodes[item.name], quantize, width, read) for width in bits.get(item, ())}
    return types


def _activation_observer(quantize: Quantize, bits: int) -> ObserverSpec:
    return ObserverSpec(quantize.observer, bits=bits, symmetric=quantize.symmetric, groups=quantize.groups)


def _is_probability(node: fx.Node) -> bool:
    return node.target is _softmax


def _type_read(items: Items, weight: Item, types: Types) -> QuantizedType | None:
    """The type of the layer's input at the most bits that are looked at: it bounds the bias that fits the accumulator."""
    source = next((product.operands[0] for product in items.products if product.operands[1] == weight), None)
    known = [width for item, width in types if item == source]
    return types[source, max(known)] if source is not None and known else None


def _weight_type(layer: fx.Node, quantize: Quantize, bits: int, read: QuantizedType | None) -> QuantizedType:
    weight, bias = edit.constant_value(layer.args[1]), edit.constant_value(edit.argument(layer, "bias"))
    assert weight is not None  # what an item means
    axis = WEIGHT_AXIS[layer.target] if quantize.per_channel else None
    return quantize_weight(weight, bias, read, ObserverSpec(quantize.weight_observer, axis=axis, bits=bits, symmetric=True)).quantized
