"""``fold-batch-norm``: a batch norm in evaluation mode is a per-channel affine map, and layers with weights absorb it.

    y = gamma (x - mean) / sqrt(variance + epsilon) + beta = s x + t,   s = gamma / sqrt(variance + epsilon),   t = beta - s mean

In this order:

1. *After a layer* (convolution, transposed convolution, linear) whose result nobody else reads: (s W) x + (s b + t).
2. *Before a layer* that alone reads it: (W s) x + (b + W t). Not where the layer pads and t is not zero, since padding inserts zeros
   behind the batch norm and not t.
3. Alone: a depthwise 1x1 convolution with weight s and bias t, so that later passes meet only channels.

The algebra per layer stands in ``affine.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.passes.canonicalize.affine import (
    ChannelAffine,
    fold_after,
    fold_before,
    reason_not_after,
    reason_not_before,
)
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

# By the rank of the value: [batch, channels], with one spatial dimension, with two.
_DEPTHWISE = {2: _aten.conv1d.default, 3: _aten.conv1d.default, 4: _aten.conv2d.default}


@dataclass(frozen=True)
class FoldBatchNorm(RewritePass[fx.Node]):
    """Fold batch norms into the layers beside them; one that stands alone becomes a depthwise 1x1 convolution."""

    name: ClassVar = "fold-batch-norm"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if edit.is_call(node, _aten.batch_norm.default) else None

    def check(self, match: fx.Node) -> str | None:
        if any(edit.constant_value(edit.argument(match, name)) is None for name in ("running_mean", "running_var")):
            return "its statistics are not constants"
        if any(_is_computed(edit.argument(match, name)) for name in ("weight", "bias")):
            return "its weight or bias is computed"
        rank = match.meta["val"].ndim
        return None if rank in _DEPTHWISE else f"its input has {rank} dimensions, not 2 to 4"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> str | None:
        affine = as_affine(match)
        not_after = reason_not_after(affine)
        if not_after is None:
            fold_after(graph_module, affine, self.name)
            return None
        not_before = reason_not_before(affine)
        if not_before is None:
            fold_before(graph_module, affine, self.name)
            return None
        self._as_depthwise(graph_module, affine)
        return f"became a depthwise convolution: {not_after}, and {not_before}"

    def _as_depthwise(self, graph_module: fx.GraphModule, affine: ChannelAffine) -> None:
        node, channels = affine.node, len(affine.scale)
        value = node.meta["val"]
        site = Site(graph_module, node, self.name)
        spatial = [1] * max(value.ndim - 2, 1)
        weight = site.constant(f"{node.name}_scale", affine.scale.to(value.dtype).reshape(channels, 1, *spatial))
        bias = site.constant(f"{node.name}_shift", affine.shift.to(value.dtype))
        source = affine.source if value.ndim > 2 else site.call(_aten.unsqueeze.default, affine.source, -1)
        padding = [0] * len(spatial)
        result = site.call(_DEPTHWISE[value.ndim], source, weight, bias, spatial, padding, spatial, channels)
        site.replace(result if value.ndim > 2 else site.call(_aten.squeeze.dim, result, -1))


def as_affine(node: fx.Node) -> ChannelAffine:
    """s and t of a batch norm whose statistics are constants."""
    mean, variance, gamma, beta = (
        edit.constant_value(edit.argument(node, name)) for name in ("running_mean", "running_var", "weight", "bias")
    )
    assert mean is not None and variance is not None  # FoldBatchNorm.check looked already
    scale = (variance.double() + edit.argument(node, "eps")).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -scale * mean.double()
    if beta is not None:
        shift = shift + beta.double()
    return ChannelAffine(node, edit.argument(node, "input"), scale, shift, 1 - node.meta["val"].ndim)


def _is_computed(node: fx.Node | None) -> bool:
    return node is not None and edit.constant_value(node) is None
