"""Hadamard transforms of rows, with the requantization behind them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qcompiler.arithmetic.hadamard import LARGEST_ONLINE_ORDER, SMALLEST_RUN, is_online_order
from qcompiler.backends.tvm.kernels import ITEM_SIZE, HadamardKernel
from qcompiler.backends.tvm.operations.elementwise import requantize_operation
from qcompiler.backends.tvm.views import Storage, View, loop_nest, pointer_offset
from qcompiler.ir.edit import argument

if TYPE_CHECKING:
    from torch import fx

    from qcompiler.backends.tvm.fuse_hadamard import HadamardFusion
    from qcompiler.backends.tvm.planner import Planner

ADVICE = f"a power of two, {SMALLEST_RUN} at least, times an order up to {LARGEST_ONLINE_ORDER}"


def hadamard(planner: Planner, fusion: HadamardFusion) -> None:
    """The call of the kernel for all nodes of the fusion. Raises TargetError for blocks without a kernel."""
    root, rounding, block = fusion.root, fusion.rounding, argument(fusion.root, "block")
    if not is_online_order(block):
        planner.decline(root, f"no kernel transforms blocks of {block}; choose {ADVICE}")
    x, output = _rows(planner, argument(root, "x")), planner.allocate_matrix(fusion.last)
    shape = planner.shape(root)
    outer, walks = loop_nest(shape[:-1], [view.select(len(shape) - 1, 0) for view in (x, output)])
    operands = [dataclasses.replace(walk, strides=(*walk.strides, 1)) for walk in walks]
    kernel = HadamardKernel(
        block=block,
        zero_point=argument(root, "zero_point"),
        shape=outer,
        length=int(planner.tensors[root].shape[-1]),
        operand=operands[0],
        output=operands[1],
        rounding=requantize_operation(rounding) if rounding is not None else None,
    )
    names = ("pre_shift", "multiplier", "shift")
    factors = [planner.value(argument(rounding, name)) for name in names] if rounding is not None else []
    planner.call(kernel, [_pointer(view) for view in (x, *factors, output)], *fusion.nodes)


def _rows(planner: Planner, node: fx.Node) -> View:
    """The value with a contiguous last dimension."""
    view = planner.value(node)
    return view if view.strides[-1] == 1 else planner.materialize(node)


def _pointer(view: View) -> tuple[Storage, int]:
    return view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]
