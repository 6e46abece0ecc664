"""``one-d-to-two-d``: ops on [batch, channels, length] become ops on [batch, channels, 1, length].

A kernel of size k becomes one of size 1 x k, a stride s becomes (1, s), a padding p becomes (0, p): the new dimension has one row, and a
window of one row sees that row and nothing else. ``sink-reshapes`` then joins the reshapes of neighbouring layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

# The op on two dimensions, and what its additional row has for each argument that is a list over spatial dimensions.
_TWO_D: Mapping[object, tuple[edit.Target, Mapping[str, int]]] = {
    _aten.conv1d.default: (_aten.conv2d.default, {"stride": 1, "padding": 0, "dilation": 1}),
    _aten.conv_transpose1d.default: (_aten.conv_transpose2d.input, {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}),
    _aten.max_pool1d.default: (_aten.max_pool2d.default, {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}),
    _aten.avg_pool1d.default: (_aten.avg_pool2d.default, {"kernel_size": 1, "stride": 1, "padding": 0}),
    _aten.adaptive_avg_pool1d.default: (_aten.adaptive_avg_pool2d.default, {"output_size": 1}),
}


@dataclass(frozen=True)
class OneDToTwoD(RewritePass[fx.Node]):
    """Convolution and pooling along one dimension become those along two, the first of size 1."""

    name: ClassVar = "one-d-to-two-d"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        return node if node.op == "call_function" and node.target in _TWO_D else None

    def check(self, match: fx.Node) -> str | None:
        if match.meta["val"].ndim != 3:
            return f"its input has {match.meta['val'].ndim} dimensions, not 3"
        names = [parameter.name for parameter in match.target._schema.arguments]  # type: ignore[union-attr]  # an op overload
        constant = "weight" not in names or edit.is_constant(edit.argument(match, "weight"))
        return None if constant else "its weight is computed"

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        target, row = _TWO_D[match.target]
        arguments = [
            _in_two_d(site, parameter.name, edit.argument(match, parameter.name), row)
            for parameter in match.target._schema.arguments  # type: ignore[union-attr]  # an op overload
        ]
        result = site.call(target, *arguments)
        batch, channels, length = _sizes(match)
        site.replace(site.call(_aten.reshape.default, result, [batch, channels, length]))


def _in_two_d(site: Site, name: str, value: Any, row: Mapping[str, int]) -> Any:
    if name in ("input", "self"):
        batch, channels, length = _sizes(value)
        return site.call(_aten.reshape.default, value, [batch, channels, 1, length])
    if name == "weight":
        weight = edit.constant_value(value)
        assert weight is not None  # check looked already
        return site.constant(str(value.target), weight.unsqueeze(-2))
    if name not in row or value == []:  # the stride of pooling may be empty: it is the kernel's size
        return value
    values: Sequence[int] = value if isinstance(value, list | tuple) else [value]
    return [row[name], *values]


def _sizes(node: fx.Node) -> list[int]:
    return [size if isinstance(size, int) else -1 for size in node.meta["val"].shape]
