"""What bits cost: bytes of the weights, bit operations, average bits. And the problem that items, a table and budgets make together.

    size      = sum over weights of ceil(elements * stored bits / 8) + 4 bytes for each scale
                + 1 byte for each factor of a group of inputs
    bops      = sum over layers and products of activations of multiply-accumulates * bits of one operand * bits of the other
    average   = sum over weights of elements * bits / sum of elements

Artifacts store weights in 2, 4 or 8 bits. Weights with fixed bits are in every sum. BOPS as in HAWQ-V3 (Yao et al., arXiv 2011.10680).
Biases, tables of embeddings and scales of activations do not depend on the allocation and are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from qcompiler.allocation import BUDGETS
from qcompiler.artifact.packing import stored_bits
from qcompiler.passes.allocate.items import Candidate, Items
from qcompiler.passes.allocate.problem import Array, Budget, Cost, Problem, Variable
from qcompiler.sensitivity import Item, SensitivityTable

_BYTE = 8
_SCALE_BYTES = 4

Options = Mapping[Item, tuple[int, ...]]


def options_of(items: Items) -> dict[Item, tuple[int, ...]]:
    """The bits that each item may have; one number for fixed items."""
    return {item: (items.fixed[item],) if item in items.fixed else items.candidates[item].bits for item in items.sizes}


def variables(items: Items, table: SensitivityTable | None) -> tuple[Variable, ...]:
    """An item each, by its text; fixed items lose nothing. ``table`` has a row for every candidate and bit-width; None: nothing is lost."""
    found = []
    for item, options in options_of(items).items():
        known = None if item in items.fixed else table
        lost = (0.0,) * len(options) if known is None else tuple(known.rows[item, bits] for bits in options)
        found.append(Variable(str(item), options, lost))
    return tuple(found)


def make_problem(items: Items, table: SensitivityTable | None, budgets: Sequence[Budget], pins: Mapping[Item, int], ties: bool) -> Problem:
    """The allocation problem; without a table that of the constraints alone. ``ties``: items that ``items.ties`` joins get equal bits."""
    joined = tuple(tuple(map(str, tie.items)) for tie in items.ties) if ties else ()
    return Problem(variables(items, table), tuple(budgets), joined, {str(item): bits for item, bits in pins.items()})


def weight_bytes(size: Candidate, bits: int) -> int:
    """Of one layer's weight: its integers, its scales, and a byte for each factor of its groups."""
    return -(-size.elements * stored_bits(bits) // _BYTE) + _SCALE_BYTES * size.channels + size.factors.get(bits, 0)


def average_bits(items: Items, bits: Mapping[Item, float]) -> float:
    """Mean over the elements of all weights of the bits that these have; fixed weights count too. 0 where there are none."""
    chosen = {**items.fixed, **bits}
    elements = {item: size.elements for item, size in items.sizes.items() if item.kind == "weight"}
    return sum(count * chosen[item] for item, count in elements.items()) / max(sum(elements.values()), 1)


def size_budget(items: Items, limit: float) -> Budget:
    """Bytes of all weights."""
    options = options_of(items)
    costs = [
        Cost((str(item),), np.array([weight_bytes(size, bits) for bits in options[item]], dtype=np.float64))
        for item, size in items.sizes.items()
        if item.kind == "weight"
    ]
    return Budget("size", limit, tuple(costs), BUDGETS["size"])


def average_budget(items: Items, limit: float) -> Budget:
    """Mean over the elements of all weights of their bits."""
    options = options_of(items)
    weights = {item: size.elements for item, size in items.sizes.items() if item.kind == "weight"}
    total = sum(weights.values())
    costs = [Cost((str(item),), np.array(options[item]) * (elements / total)) for item, elements in weights.items()]
    return Budget("average_weight_bits", limit, tuple(costs), BUDGETS["average_weight_bits"])


def bops_budget(items: Items, limit: float) -> Budget:
    """Bit operations of one sample."""
    options = options_of(items)
    costs = tuple(_operations(product.operands, product.macs, options) for product in items.products)
    return Budget("bops", limit, costs, BUDGETS["bops"])


def _operations(operands: tuple[Item | None, Item | None], macs: int, options: Options) -> Cost:
    """An operand without a choice has 8 bits; an operand that is multiplied by itself has one choice."""
    known = [operand for operand in operands if operand is not None]
    bits = [np.array(options[operand], dtype=np.float64) if operand is not None else np.array([float(_BYTE)]) for operand in operands]
    values: Array = macs * np.multiply.outer(*bits)
    if len(known) == 2 and known[0] == known[1]:
        return Cost((str(known[0]),), np.diagonal(values).copy())
    return Cost(tuple(map(str, known)), values.reshape([len(options[item]) for item in known]))
