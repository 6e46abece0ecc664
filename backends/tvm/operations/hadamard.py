"""Hadamard transforms of rows, with the requantization behind them and the linear layer before them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.arithmetic.hadamard import LARGEST_ONLINE_ORDER, SMALLEST_RUN, is_online_order
from qcompiler.backends.tvm.kernels import ITEM_SIZE, HadamardKernel, LinearHadamardKernel, Operand, Size
from qcompiler.backends.tvm.operations.elementwise import requantize_operation
from qcompiler.backends.tvm.operations.layers import buffer_pointer, layer_parameters, linear_inputs, linear_kernel
from qcompiler.backends.tvm.templates import linear_hadamard_layout
from qcompiler.backends.tvm.views import Storage, View, loop_nest, pointer_offset
from qcompiler.ir.edit import argument

if TYPE_CHECKING:
    from torch import fx

    from qcompiler.backends.tvm.fuse import Fusion
    from qcompiler.backends.tvm.fuse_hadamard import HadamardFusion
    from qcompiler.backends.tvm.planner import Planner

_BYTE = 8
ADVICE = f"a power of two, {SMALLEST_RUN} at least, times an order up to {LARGEST_ONLINE_ORDER}"


def hadamard(planner: Planner, fusion: HadamardFusion) -> None:
    """The call of the kernel for all nodes of the fusion, with the layer before it where one kernel is no slower than two.

    Raises TargetError for blocks without a kernel.
    """
    block = argument(fusion.root, "block")
    if not is_online_order(block):
        planner.decline(fusion.root, f"no kernel transforms blocks of {block}; choose {ADVICE}")
    if fusion.layer is None:
        _transform(planner, fusion)
    elif not _layer_and_transform(planner, fusion, fusion.layer):
        planner.plan_alone(fusion.layer.last, fusion.layer.root.target)
        _transform(planner, fusion.alone)


def _transform(planner: Planner, fusion: HadamardFusion) -> None:
    x, output = _rows(planner, argument(fusion.root, "x")), planner.allocate_matrix(fusion.last)
    shape = planner.shape(fusion.root)
    outer, walks = loop_nest(shape[:-1], [view.select(len(shape) - 1, 0) for view in (x, output)])
    operands = [dataclasses.replace(walk, strides=(*walk.strides, 1)) for walk in walks]
    kernel = _kernel(planner, fusion, outer, operands[0], operands[1])
    planner.call(kernel, [_pointer(x), *_factors(planner, fusion), _pointer(output)], *fusion.nodes)


def _layer_and_transform(planner: Planner, fusion: HadamardFusion, layer: Fusion) -> bool:
    """Whether one kernel does both; if so it is called."""
    of_layer = linear_kernel(planner, layer)
    rows = of_layer.rows or of_layer.output.width
    block_rows = linear_hadamard_layout.block_rows(of_layer, planner.fewest(rows), planner.target.name)
    if block_rows is None or of_layer.weight_bits < _BYTE or of_layer.bit_planes is not None:
        return False
    result = planner.rows_of(fusion.last)
    operands = [Operand(each.dtype, (each.channels, 1)) for each in (of_layer.output, result)]
    kernel = LinearHadamardKernel(of_layer, _kernel(planner, fusion, (rows,), *operands), block_rows)
    inputs = [buffer_pointer(view) for view in linear_inputs(planner, layer)]
    parameters = layer_parameters(planner, kernel.part, layer)
    output = buffer_pointer(planner.allocate_matrix(fusion.last))
    planner.call(kernel, [*inputs, *parameters, *_factors(planner, fusion), output], *fusion.nodes)
    return True


def _kernel(planner: Planner, fusion: HadamardFusion, shape: tuple[Size, ...], operand: Operand, output: Operand) -> HadamardKernel:
    return HadamardKernel(
        block=argument(fusion.root, "block"),
        zero_point=argument(fusion.root, "zero_point"),
        shape=shape,
        length=int(planner.tensors[fusion.root].shape[-1]),
        operand=operand,
        output=output,
        rounding=requantize_operation(fusion.rounding) if fusion.rounding is not None else None,
    )


def _factors(planner: Planner, fusion: HadamardFusion) -> list[tuple[Storage, int]]:
    if fusion.rounding is None:
        return []
    return [_pointer(planner.value(argument(fusion.rounding, name))) for name in DYADIC_PARAMETERS]


def _rows(planner: Planner, node: fx.Node) -> View:
    """The value with a contiguous last dimension."""
    view = planner.value(node)
    return view if view.strides[-1] == 1 else planner.materialize(node)


def _pointer(view: View) -> tuple[Storage, int]:
    return view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]
