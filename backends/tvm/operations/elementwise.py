"""Ops that work element by element."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import (
    Add,
    Clamp,
    Combine,
    Compare,
    Copy,
    Lookup,
    Multiply,
    Operation,
    Requantize,
)
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.ir.edit import argument

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


_COMPARISONS = (_aten.eq.Scalar, _aten.ne.Scalar, _aten.gt.Scalar, _aten.ge.Scalar, _aten.lt.Scalar, _aten.le.Scalar)


def _requantize(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, requantize_operation(node), ("x", "pre_shift", "multiplier", "shift"))


def requantize_operation(node: fx.Node) -> Requantize:
    """What a ``qc::requantize`` computes, for a kernel."""
    return Requantize(**{name: argument(node, name) for name in ("form", "input_zero_point", "zero_point", "low", "high")})


def _add(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, add_operation(node), ("a", "b", "pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b"))


def add_operation(node: fx.Node) -> Add:
    """What a ``qc::add`` computes, for a kernel."""
    return Add(**{name: argument(node, name) for name in ("shift", "zero_point_a", "zero_point_b", "zero_point", "low", "high")})


def _multiply(planner: Planner, node: fx.Node) -> None:
    operation = Multiply(argument(node, "zero_point_a"), argument(node, "zero_point_b"))
    call_elementwise(planner, node, operation, ("a", "b"))


def _clamp(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, Clamp(argument(node, "low"), argument(node, "high")), ("x",))


def call_elementwise(planner: Planner, node: fx.Node, operation: Operation, names: Sequence[str]) -> None:
    """The call of a kernel that applies ``operation`` to the arguments ``names`` of the node."""
    operands = [planner.value(argument(node, name)) for name in names]
    output = planner.allocate(node, like=operands[0])
    planner.elementwise(operation, operands, output, node)


def _lookup(planner: Planner, node: fx.Node) -> None:
    """A table for each channel is a view that only its channel moves; the entry is added by the kernel."""
    x, table = planner.value(argument(node, "x")), planner.value(argument(node, "table"))
    rows = table.select(len(table.shape) - 1, 0)
    if rows.shape:
        spread = rows.reshape([extent if d == 1 else 1 for d, extent in enumerate(x.maxima)])
        assert spread is not None  # one dimension takes any such shape
        rows = spread
    output = planner.allocate(node, like=x)
    planner.elementwise(Lookup(torch.iinfo(planner.tensors[argument(node, "x")].dtype).min), [x, rows], output, node)


def _compare(planner: Planner, node: fx.Node) -> None:
    relation = str(node.target).split(".")[1]
    number = int(argument(node, "other"))
    call_elementwise(planner, node, Compare(relation, number), ("self",))  # type: ignore[arg-type]  # one of the handlers' six


def _logical_not(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, Compare("eq", 0), ("self",))


def _mask_and(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, Combine("and"), ("self", "other"))


def _mask_or(planner: Planner, node: fx.Node) -> None:
    call_elementwise(planner, node, Combine("or"), ("self", "other"))


def _cast(planner: Planner, node: fx.Node) -> None:
    """Between integers a copy; to bool a comparison with 0."""
    operation = Compare("ne", 0) if planner.tensors[node].dtype == torch.bool else Copy()
    call_elementwise(planner, node, operation, ("self",))


HANDLERS: Mapping[object, Handler] = {
    **dict.fromkeys(_COMPARISONS, _compare),
    _aten.logical_not.default: _logical_not,
    _aten.logical_and.default: _mask_and,
    _aten.bitwise_and.Tensor: _mask_and,
    _aten.bitwise_or.Tensor: _mask_or,
    _aten.to.dtype: _cast,
    _qc.requantize.default: _requantize,
    _qc.add.default: _add,
    _qc.multiply.default: _multiply,
    _qc.lookup.default: _lookup,
    _qc.clamp.default: _clamp,
}
