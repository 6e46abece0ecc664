"""How convolutions and pooling slide over their input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir.edit import argument, is_call

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

_aten, _qc = torch.ops.aten, torch.ops.qc


@dataclass(frozen=True)
class Window:
    """How an op slides over its input: the halo around ``x`` that its windows reach, and what must lie there."""

    x: fx.Node
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    halo: tuple[int, int, int, int]
    pad_value: int


def window_of(planner: Planner, node: fx.Node) -> Window | None:
    """The window of a convolution or a pooling; None for other ops.

    The halo is what the windows reach, which at the bottom and right may be less than the padding of the op.
    """
    if is_call(node, _qc.convolution.default):
        kernel, dilation = tuple(planner.tensors[argument(node, "weight")].shape[2:]), tuple(argument(node, "dilation"))
        pad_value = argument(node, "pad_value")
    elif is_call(node, _qc.max_pool2d.default):
        kernel, dilation = tuple(argument(node, "kernel")), tuple(argument(node, "dilation"))
        pad_value = torch.iinfo(planner.tensors[node].dtype).min
    elif is_call(node, _qc.sum_pool2d.default):
        kernel, dilation, pad_value = tuple(argument(node, "kernel")), (1, 1), argument(node, "zero_point")
    else:
        return None
    x, stride, padding = argument(node, "x"), tuple(argument(node, "stride")), argument(node, "padding")
    sizes, outputs = planner.tensors[x].shape[2:], planner.tensors[node].shape[2:]
    before = (padding[0], padding[2])
    after = [max(0, (outputs[d] - 1) * stride[d] + (kernel[d] - 1) * dilation[d] + 1 - sizes[d] - before[d]) for d in range(2)]
    return Window(x, kernel, stride, dilation, (before[0], after[0], before[1], after[1]), pad_value)
