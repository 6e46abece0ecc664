"""Interval analysis of INTEGER programs: for every value an interval that holds whatever the inputs are.

The analysis *is* the overflow proof: it follows the actual weights from the input types down, and raises VerificationError at
the first accumulator, pre-shift or output that could leave its type. Intervals are kept per channel (wider where that is enough).

- **Sums of products** (convolution, linear). For output channel n, inputs x_k in [l_k, h_k] and weights w_nk::

      high_n = bias_n + sum_k (max(w_nk, 0) h_k + min(w_nk, 0) l_k)        low_n likewise with l and h exchanged

  No bound can be tighter when every x_k is free. Two's-complement additions may wrap on the way and still give the right sum,
  so only the sum itself has to fit, whatever the order in which a kernel adds.
- **Monotone ops** (requantize, add, clamp, pooling by maximum) are evaluated by their own reference kernels at both ends; an operand
  of ``add`` with a negative multiplier, with its ends exchanged.
- **Data movement** is executed on the intervals themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from qcompiler.errors import VerificationError
from qcompiler.ir.edit import argument
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.ranges import movement, pooling, products, rescaling, rows
from qcompiler.ir.ranges.bounds import Bounds, Known, Rule, check_shape, dtype_range, of_constant, of_input, of_type, require, settled
from qcompiler.ir.ranges.products import accumulator_bounds
from qcompiler.ir.stages import INTEGER_COMPARISON_OPS, INTEGER_MASK_OPS, INTEGER_MOVEMENT_OPS
from qcompiler.ir.types import IntegerType, Stage

__all__ = ["Bounds", "accumulator_bounds", "analyze", "annotate", "bounds_of", "dtype_range"]

_aten, _qc = torch.ops.aten, torch.ops.qc


def analyze(program: Program) -> dict[fx.Node, Bounds]:
    """Bounds of every value of an INTEGER program for all inputs of its input types.

    Raises:
        VerificationError: a value cannot be proven to stay in its type; names the node, the bound and what to change.
    """
    if program.stage is not Stage.INTEGER:
        raise VerificationError(f"ranges are proven at stage integer, the program is at {program.stage.value}: lower it first")
    known: dict[fx.Node, Bounds] = {}
    specs = iter(program.inputs)
    for node in program.graph.nodes:
        if node.op == "placeholder":
            spec = next(specs)
            known[node] = of_type(node, spec.quantized.integer) if spec.quantized else of_input(node, spec.range)
        elif node.op != "output" and _has_bounds(node, program):
            known[node] = bounds_of(node, known)
    return known


def _has_bounds(node: fx.Node, program: Program) -> bool:
    """Sizes have none, and neither have the floats of islands that the program declares."""
    value = node.meta["val"]
    return isinstance(value, torch.Tensor) and not (bool(program.islands) and value.is_floating_point())


def bounds_of(node: fx.Node, known: Known) -> Bounds:
    """Bounds of a constant or a call, given those of its operands. Raises as ``analyze``."""
    if node.op == "get_attr":
        return of_constant(node)
    if node.target is _qc.quantize.default:  # behind a float island: whatever comes out of it saturates
        return of_type(node, IntegerType(argument(node, "bits"), argument(node, "signed")))
    rule = _RULES.get(node.target) if callable(node.target) else None
    if rule is None:
        raise VerificationError(f"{describe(node)}: no range can be proven for this op at stage integer; lower it to qc:: ops first")
    try:
        bounds = rule(node, known)
    except RuntimeError as error:  # torch cannot broadcast or reshape the parameters
        raise VerificationError(f"{describe(node)}: its operands and parameters do not fit together ({error})") from error
    if not isinstance(node.meta["val"], torch.Tensor):
        return bounds  # a size, no value of the program
    check_shape(node, bounds)
    bounds = settled(node, bounds)
    require(node, bounds, dtype_range(node.meta["val"].dtype), "the result", "choose a wider type for the result")
    return bounds


def annotate(program: Program) -> None:
    """Write the proven range of every value into its ``meta["quantized"]``, in place: the last step of a pass that gives INTEGER."""
    for node, bounds in analyze(program).items():
        if "quantized" in node.meta:
            proven = bounds.range
            node.meta["quantized"] = node.meta["quantized"].with_range(proven.low, proven.high)


_RULES: dict[Callable[..., Any], Rule] = {
    _qc.convolution.default: products.convolution,
    _qc.linear.default: products.linear,
    _qc.matmul.default: products.matmul,
    _qc.scale_groups.default: products.scale_groups,
    _qc.softmax.default: rows.softmax,
    _qc.normalize.default: rows.normalize,
    _qc.nonlinear.default: rows.nonlinear,
    _qc.embedding.default: rows.embedding,
    _qc.bucketize.default: rescaling.bucketize,
    _qc.hadamard.default: rows.hadamard,
    _qc.divide.default: rows.divide,
    _qc.requantize.default: rescaling.requantize,
    _qc.add.default: rescaling.add,
    _qc.multiply.default: products.multiply,
    _qc.lookup.default: rescaling.lookup,
    _qc.clamp.default: rescaling.clamp,
    _qc.max_pool2d.default: pooling.max_pool,
    _qc.adaptive_max_pool2d.default: pooling.adaptive_max_pool,
    _qc.sum_pool2d.default: pooling.sum_pool,
    _qc.adaptive_sum_pool2d.default: pooling.adaptive_sum_pool,
    _qc.sum.default: pooling.total,
    _qc.dilate.default: pooling.dilate,
    _aten.argmax.default: rows.argmax,
    _aten.to.dtype: movement.cast,
    _aten.sym_size.int: movement.size,
    **dict.fromkeys(INTEGER_COMPARISON_OPS | INTEGER_MASK_OPS, movement.mask),
    **dict.fromkeys(INTEGER_MOVEMENT_OPS, movement.movement),
}
