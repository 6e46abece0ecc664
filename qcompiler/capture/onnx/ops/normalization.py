"""Normalization by statistics of a sample or of training, and softmax."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter


@converter("BatchNormalization")
def batch_normalization(call: Call) -> Tensor:
    if call.flag("training_mode"):
        raise call.fail("is in training mode: export the model for inference")
    x, scale, bias, mean, variance = (call.tensor(position) for position in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.real("epsilon", 1e-5))


@converter("InstanceNormalization")
def instance_normalization(call: Call) -> Tensor:
    x = call.tensor(0)
    return _grouped(call, x, x.shape[1], call.tensor(1), call.tensor(2))


@converter("GroupNormalization", since=18)
def group_normalization_by_group(call: Call) -> Tensor:
    """Scale and bias for each group, in opset 18 to 20."""
    x, groups = call.tensor(0), call.integer("num_groups")
    each = x.shape[1] // groups
    return _grouped(call, x, groups, call.tensor(1).repeat_interleave(each), call.tensor(2).repeat_interleave(each))


@converter("GroupNormalization", since=21)
def group_normalization(call: Call) -> Tensor:
    return _grouped(call, call.tensor(0), call.integer("num_groups"), call.tensor(1), call.tensor(2))


def _grouped(call: Call, x: Tensor, groups: int, scale: Tensor, bias: Tensor) -> Tensor:
    """LayerNorm over the elements of each group of channels; then each channel's own scale and bias."""
    sizes = [size for size in x.shape[1:] if isinstance(size, int)]
    if len(sizes) != x.ndim - 1 or groups < 1 or sizes[0] % groups:
        raise call.fail(f"normalizes {x.shape[1]} channels in {groups} groups over sizes that must be known: fix them with dynamic_shapes")
    length = math.prod(sizes) // groups
    rows = F.layer_norm(x.reshape(-1, groups, length), [length], None, None, call.real("epsilon", 1e-5))
    shape = [sizes[0], *[1] * (x.ndim - 2)]
    return rows.reshape(x.shape) * scale.reshape(shape) + bias.reshape(shape)


@converter("LayerNormalization")
def layer_normalization(call: Call) -> Tensor | tuple[Tensor, ...]:
    x, scale, bias, epsilon = call.tensor(0), call.tensor(1), call.optional(2), call.real("epsilon", 1e-5)
    shape = _normalized(call, x)
    normalized = _affine(x, shape, scale, bias, epsilon)
    if not any(call.node.outputs[1:]):
        return normalized
    dims = list(range(x.ndim - len(shape), x.ndim))
    mean = x.mean(dims, keepdim=True)
    deviation = torch.rsqrt((x - mean).square().mean(dims, keepdim=True) + epsilon)
    return normalized, mean, deviation


def _affine(x: Tensor, shape: list[int], scale: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    if list(scale.shape) == shape and (bias is None or list(bias.shape) == shape):
        return F.layer_norm(x, shape, scale, bias, epsilon)
    rows = F.layer_norm(x, shape, None, None, epsilon) * scale
    return rows if bias is None else rows + bias


def _normalized(call: Call, x: Tensor) -> list[int]:
    axis = call.integer("axis", -1)
    axis += x.ndim if axis < 0 else 0
    sizes = [size for size in x.shape[axis:] if isinstance(size, int)]
    if not 0 <= axis < x.ndim or len(sizes) != x.ndim - axis:
        raise call.fail(f"normalizes from axis {axis} of {x.ndim} on, where sizes must be known")
    return sizes


@converter("RMSNormalization", since=23)
@converter("SimplifiedLayerNormalization")
@converter("SimplifiedLayerNormalization", domain="com.microsoft")
def rms_normalization(call: Call) -> Tensor:
    x, scale = call.tensor(0), call.tensor(1)
    shape = _normalized(call, x)
    if list(scale.shape) == shape:
        return F.rms_norm(x, shape, scale, call.real("epsilon", 1e-5))
    return F.rms_norm(x, shape, None, call.real("epsilon", 1e-5)) * scale


@converter("SkipLayerNormalization", domain="com.microsoft")
def skip_layer_normalization(call: Call) -> tuple[Tensor | None, ...]:
    """LayerNorm of input + skip + bias, which is the fourth output."""
    total = call.tensor(0) + call.tensor(1)
    total = total + call.tensor(4) if call.has(4) else total
    return _affine(total, [total.shape[-1]], call.tensor(2), call.optional(3), call.real("epsilon", 1e-12)), None, None, total


@converter("LpNormalization")
def lp_normalization(call: Call) -> Tensor:
    return F.normalize(call.tensor(0), p=call.real("p", 2), dim=call.integer("axis", -1))


@converter("LRN")
def local_response_normalization(call: Call) -> Tensor:
    """x / (bias + alpha / size * (sum of squares of ``size`` channels around))^beta."""
    x, size = call.tensor(0), call.integer("size")
    channels = x.shape[1]
    rows = torch.square(x).reshape(-1, 1, channels, math.prod(x.shape[2:]))
    means = F.avg_pool2d(F.pad(rows, [0, 0, (size - 1) // 2, size // 2]), [size, 1], [1, 1]).reshape(x.shape)
    return x / torch.pow(means * call.real("alpha", 1e-4) + call.real("bias", 1.0), call.real("beta", 0.75))


# ---- softmax ----------------------------------------------------------------------------------------------------------------------


def _softmax(x: Tensor, dim: int) -> Tensor:
    return torch.softmax(x, dim)


def _log_softmax(x: Tensor, dim: int) -> Tensor:
    """x - max - log(sum(exp(x - max))): ops that stage FLOAT has."""
    shifted = x - torch.amax(x, [dim], keepdim=True)
    return shifted - torch.log(torch.exp(shifted).sum([dim], keepdim=True))


def _hardmax(x: Tensor, dim: int) -> Tensor:
    """1 at the first maximum, else 0."""
    positions = torch.arange(x.shape[dim]).reshape([-1, *[1] * (x.ndim - 1 - dim % x.ndim)])
    return (torch.argmax(x, dim, keepdim=True) == positions).to(x.dtype)


_ROWS: dict[str, Callable[[Tensor, int], Tensor]] = {"Softmax": _softmax, "LogSoftmax": _log_softmax, "Hardmax": _hardmax}


@converter(*_ROWS)
def softmax_of_matrix(call: Call) -> Tensor:
    """Before opset 13: over all dimensions from ``axis`` (1) on, together."""
    x, axis = call.tensor(0), call.integer("axis", 1)
    axis += x.ndim if axis < 0 else 0
    function = _ROWS[call.node.op_type]
    if axis == x.ndim - 1:
        return function(x, axis)
    return function(x.flatten(axis), axis).reshape(x.shape)


@converter(*_ROWS, since=13)
def softmax(call: Call) -> Tensor:
    return _ROWS[call.node.op_type](call.tensor(0), call.integer("axis", -1))
