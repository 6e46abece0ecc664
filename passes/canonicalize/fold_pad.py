"""``fold-pad``: padding by zeros before a convolution or pooling becomes the padding of that op.

    conv(pad(x, [p…]), padding q) = conv(x, padding p + q)

where p is the same on both sides of each dimension, pads spatial dimensions only and with zeros. The same holds for average pooling that
counts what it pads; and for max pooling, which pads with -inf, where x is nowhere negative: each of its windows holds at least one
element of x, and a zero beside an element that is not negative never wins alone.

``padding="same"`` and ``"valid"`` are written out. "Same" with an even kernel pads one more at the end: that stays a
``constant_pad_nd`` before a convolution without padding, as asymmetric padding does that the model itself asks for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Equivalent
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten

_NAMED_PADDING: Mapping[object, edit.Target] = {
    _aten.conv1d.padding: _aten.conv1d.default,
    _aten.conv2d.padding: _aten.conv2d.default,
}
# Ops that can take padding over -> the number of their spatial dimensions.
_SPATIAL: Mapping[object, int] = {
    _aten.conv1d.default: 1,
    _aten.conv2d.default: 2,
    _aten.avg_pool1d.default: 1,
    _aten.avg_pool2d.default: 2,
    _aten.max_pool1d.default: 1,
    _aten.max_pool2d.default: 2,
}
_AVERAGES = frozenset({_aten.avg_pool1d.default, _aten.avg_pool2d.default})
_MAXIMA = frozenset({_aten.max_pool1d.default, _aten.max_pool2d.default})
_NEVER_NEGATIVE = frozenset(
    {_aten.relu.default, _aten.relu6.default, _aten.sigmoid.default, _aten.hardsigmoid.default, _aten.abs.default, _aten.exp.default}
)


@dataclass(frozen=True)
class FoldPad(RewritePass[fx.Node]):
    """Fold zero padding into the convolution or pooling that reads it, and write named padding out."""

    name: ClassVar = "fold-pad"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Equivalent(1e-5)

    def match(self, node: fx.Node) -> fx.Node | None:
        if node.op != "call_function":
            return None
        padded = node.target in _SPATIAL and edit.is_call(node.args[0], _aten.constant_pad_nd.default)
        return node if padded or node.target in _NAMED_PADDING else None

    def check(self, match: fx.Node) -> str | None:
        return None if match.target in _NAMED_PADDING else _reason(match, match.args[0])  # type: ignore[arg-type]  # match saw a node

    def rewrite(self, graph_module: fx.GraphModule, match: fx.Node) -> None:
        site = Site(graph_module, match, self.name)
        if match.target in _NAMED_PADDING:
            site.replace(_written_out(site, match))
            return
        pad = match.args[0]
        assert isinstance(pad, fx.Node)  # match saw that it is one
        total = [own + extra for own, extra in zip(_padding(match), _amounts(pad, match)[0], strict=True)]
        edit.set_argument(match, "padding", total)
        match.replace_input_with(pad, pad.args[0])  # type: ignore[arg-type]  # constant_pad_nd works on a tensor
        match.meta["provenance"] = match.meta["provenance"].then(self.name)


def _padding(node: fx.Node) -> list[int]:
    padding = edit.argument(node, "padding")
    values = list(padding) if isinstance(padding, list | tuple) else [padding]
    return values * _SPATIAL[node.target] if len(values) == 1 else values


def _amounts(pad: fx.Node, reader: fx.Node) -> tuple[list[int], list[int]]:
    """(before, after) of each spatial dimension of ``reader``; torch lists them from the last dimension."""
    size = 2 * _SPATIAL[reader.target]
    amounts = [*edit.argument(pad, "pad"), *[0] * size][:size]
    return amounts[-2::-2], amounts[::-2]


def _reason(node: fx.Node, pad: fx.Node) -> str | None:
    before, after = _amounts(pad, node)
    if any(edit.argument(pad, "pad")[2 * len(before) :]):
        return f"'{pad.name}' pads more than the spatial dimensions"
    if edit.argument(pad, "value") != 0:
        return f"'{pad.name}' pads with {edit.argument(pad, 'value')}, not with zeros"
    if before != after or min(before) < 0:
        return f"'{pad.name}' does not pad both sides alike"
    return _reason_of_pooling(node, pad, [own + extra for own, extra in zip(_padding(node), before, strict=True)])


def _reason_of_pooling(node: fx.Node, pad: fx.Node, total: list[int]) -> str | None:
    if node.target not in _AVERAGES | _MAXIMA:
        return None
    kernel = edit.argument(node, "kernel_size")
    kernel = list(kernel) * len(total) if len(kernel) == 1 else list(kernel)
    if any(2 * amount > size for amount, size in zip(total, kernel, strict=True)):
        return "pooling pads by at most half its window"
    if edit.argument(node, "ceil_mode"):
        return "rounding its output size up makes windows that depend on where the padding is"
    if node.target in _AVERAGES:
        return None if edit.argument(node, "count_include_pad") else "it does not count what it pads"
    return None if _never_negative(pad.args[0]) else "max pooling pads with -inf, and what it reads may be negative"


def _never_negative(value: object) -> bool:
    if not isinstance(value, fx.Node) or value.op != "call_function":
        return False
    if value.target in _MAXIMA:
        return _never_negative(value.args[0])
    if edit.is_call(value, _aten.clamp.default, _aten.hardtanh.default):
        low = edit.argument(value, "min" if edit.is_call(value, _aten.clamp.default) else "min_val")
        return low is not None and bool(low >= 0)
    return value.target in _NEVER_NEGATIVE


def _written_out(site: Site, node: fx.Node) -> fx.Node:
    """ "same": dilation * (kernel - 1) in total, half of it before, the larger half after. "valid": none."""
    source, weight = node.args[0], edit.argument(node, "weight")
    bias, stride, dilation, groups = (edit.argument(node, name) for name in ("bias", "stride", "dilation", "groups"))
    kernel = weight.meta["val"].shape[2:]
    dilation = list(dilation) * len(kernel) if len(dilation) == 1 else list(dilation)
    same = edit.argument(node, "padding") == "same"
    totals = [step * (size - 1) if same else 0 for step, size in zip(dilation, kernel, strict=True)]
    padding = [total // 2 for total in totals]
    if any(total % 2 for total in totals):
        pads = [amount for total in reversed(totals) for amount in (total // 2, total - total // 2)]
        source, padding = site.call(_aten.constant_pad_nd.default, source, pads, 0.0), [0] * len(totals)
    return site.call(_NAMED_PADDING[node.target], source, weight, bias, stride, padding, dilation, groups)
