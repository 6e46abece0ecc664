"""``decompose-interpolation``: linear and cubic resizing become products with a constant matrix, one dimension after the other.

Interpolation is linear in its input and separable: with the matrix M_d of each resized dimension d,

    interpolate(x) = M_2 x_(2) M_3' for an image x_(2) of each channel        M_d [new size, size]

Column i of M_d is what the op itself gives for the unit vector i along that dimension, so that every rule about borders, corners and
scales is torch's own. A dimension that keeps its size has no product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

INTERPOLATIONS = (_aten.upsample_linear1d.vec, _aten.upsample_bilinear2d.vec, _aten.upsample_bicubic2d.vec)


@dataclass(frozen=True)
class DecomposeInterpolation(RewritePass[fx.Node]):
    """Linear, bilinear and bicubic resizing as linear layers along each dimension."""

    name: ClassVar = "decompose-interpolation"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if edit.is_call(node, *INTERPOLATIONS) else None

    def check(self, match: fx.Node) -> str | None:
        if any(isinstance(size, torch.SymInt) for value in (match, _source(match)) for size in value.meta["val"].shape[2:]):
            return "it resizes sizes that are known at run time only: leave them out of dynamic_shapes"
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> str | None:
        site = Site(graph_module, match, self.name)
        value = _source(match)
        rank = value.meta["val"].ndim
        for dim in range(rank - 1, 1, -1):
            matrix = _matrix(match, dim)
            if matrix.shape[0] != matrix.shape[1] or not torch.equal(matrix, torch.eye(len(matrix))):
                value = _along(site, value, dim, site.constant(f"{match.name}_{dim}", matrix))
        site.replace(value)
        return None


def _along(site: Site, value: fx.Node, dim: int, matrix: fx.Node) -> fx.Node:
    last = value.meta["val"].ndim - 1
    if dim == last:
        return site.call(_aten.linear.default, value, matrix, None)
    moved = site.call(_aten.transpose.int, value, dim, last)
    return site.call(_aten.transpose.int, site.call(_aten.linear.default, moved, matrix, None), dim, last)


def _matrix(node: fx.Node, dim: int) -> torch.Tensor:
    """[new size, size] along a dimension."""
    before, after = _source(node).meta["val"].shape, node.meta["val"].shape
    length, alone = before[dim], [1] * (len(before) - 2)
    sizes, factors = (edit.argument(node, name) for name in ("output_size", "scale_factors"))
    if factors is not None:
        factors = [factor if position == dim - 2 else 1.0 for position, factor in enumerate(factors)]
    else:
        sizes = [after[dim] if position == dim - 2 else 1 for position in range(len(alone))]
    alone[dim - 2] = length
    units = torch.eye(length).reshape(length, 1, *alone)
    resized = node.target(units, sizes, edit.argument(node, "align_corners"), factors)  # type: ignore[operator]  # one of INTERPOLATIONS
    return torch.as_tensor(resized).reshape(length, after[dim]).t().contiguous()


def _source(node: fx.Node) -> fx.Node:
    source = edit.argument(node, "input")
    assert isinstance(source, fx.Node)  # it resizes a tensor
    return source
