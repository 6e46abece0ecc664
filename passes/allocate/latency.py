"""Latency as a budget: measured times of a model's layers at each pair of bits (``qcompiler.latency``)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qcompiler.allocation import BUDGETS
from qcompiler.ir.program import Program
from qcompiler.latency import LatencyTable, Machine, profile
from qcompiler.passes.allocate.costs import options_of
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.allocate.problem import Budget, Cost
from qcompiler.pipeline.contract import PassContext

_MILLISECONDS = 1e3
_BYTE = 8


def latency_table(
    program: Program, context: PassContext, path: str, threads: int | None, bits: Sequence[int], activation_bits: Sequence[int]
) -> LatencyTable:
    """The table in a file, if it was measured on this machine; else the layers are timed now.

    Raises:
        TargetError: the table was measured elsewhere, for another target, number of threads or version.
        CalibrationError: the file is missing or damaged.
    """
    target = context.target or "native"
    if path:
        table = LatencyTable.load(path)
        table.check_machine(Machine.here(target, threads))
        return table
    return profile(
        program,
        context.data,
        passes=context.following,
        weight_bits=bits,
        activation_bits=activation_bits or (_BYTE,),
        target=target,
        threads=threads,
        progress=context.progress,
    )


def latency_budget(items: Items, table: LatencyTable, limit: float) -> Budget:
    """Milliseconds of a call with one sample; ``limit`` alike. Each layer's time depends on its weight's bits and its input's.

    Raises:
        CalibrationError: the table lacks a layer, or the bits that it may have.
    """
    options = options_of(items)
    costs = [Cost((), np.array(table.rest * _MILLISECONDS))]
    for product in items.products:
        read, weight = product.operands
        if weight is None or weight.kind != "weight":
            continue  # a product of two values: its kernel is the same for all narrow types
        read_bits = options[read] if read is not None else (_BYTE,)
        seconds = [[table.seconds(product.name, one, other) for other in read_bits] for one in options[weight]]
        values = np.array(seconds) * _MILLISECONDS
        costs.append(Cost((str(weight), str(read)), values) if read is not None else Cost((str(weight),), values[:, 0]))
    return Budget("latency", limit, tuple(costs), BUDGETS["latency"])
