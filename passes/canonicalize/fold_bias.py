"""``fold-bias``: a constant that is added to a layer becomes its bias.

    linear(x, W) + b = linear(x, W, b)

with one entry of b for each output channel. Unlike ``fold-affine`` this leaves the weight alone, so that it may be integers, and b
too: tools write the bias of a matrix product as the int32 constant of a separate sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.quantized_constants import dequantized_constant
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_LAYERS = frozenset({_aten.linear.default, _aten.conv2d.default, _aten.conv_transpose2d.input})


@dataclass(frozen=True)
class FoldBias(RewritePass[tuple[fx.Node, fx.Node, fx.Node]]):
    """Give layers without bias the constant that is added to their result."""

    name: ClassVar = "fold-bias"
    takes: ClassVar = Stage.QDQ
    gives: ClassVar = Stage.QDQ
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> tuple[fx.Node, fx.Node, fx.Node] | None:
        """The sum, the layer and the constant."""
        if not edit.is_call(node, _aten.add.Tensor) or len(node.args) != 2 or node.kwargs:
            return None
        for layer, constant in (node.args, node.args[::-1]):
            if _is_open_layer(layer) and _is_constant(constant):
                assert isinstance(layer, fx.Node) and isinstance(constant, fx.Node)  # as asked
                return (node, layer, constant) if _fits(layer, constant) else None
        return None

    def rewrite(self, graph_module: fx.GraphModule, match: tuple[fx.Node, fx.Node, fx.Node]) -> None:
        node, layer, constant = match
        site = Site(graph_module, node, self.name)
        bias = constant if constant.meta["val"].ndim == 1 else site.call(_aten.reshape.default, constant, [-1])
        biased = site.call(layer.target, *layer.args, **layer.kwargs)  # type: ignore[arg-type]  # an op overload
        edit.set_argument(biased, "bias", bias)
        site.replace(biased)


def _is_open_layer(value: object) -> bool:
    """Whether it is a layer without bias that nobody else reads."""
    return isinstance(value, fx.Node) and value.target in _LAYERS and edit.argument(value, "bias") is None and len(value.users) == 1


def _is_constant(value: object) -> bool:
    return edit.is_constant(value) or dequantized_constant(value) is not None


def _fits(layer: fx.Node, constant: fx.Node) -> bool:
    """Whether the constant has one entry for each channel, along the channels."""
    result, shape = layer.meta["val"], list(constant.meta["val"].shape)
    behind = 0 if layer.target is _aten.linear.default else result.ndim - 2
    axis = len(shape) - 1 - behind
    return (
        axis >= 0 and len(shape) <= result.ndim and shape[axis] == result.shape[-1 - behind] and constant.meta["val"].numel() == shape[axis]
    )
