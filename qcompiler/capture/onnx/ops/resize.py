"""Resize and Upsample: nearest neighbours are picked, linear and cubic interpolation are products with a constant matrix."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx import interpolation
from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.interpolation import Axis, Method
from qcompiler.capture.onnx.registry import converter


@converter("Upsample", since=7)
def upsample(call: Call) -> Tensor:
    x = call.tensor(0)
    scales = [float(scale) for scale in call.attribute("scales") or call.numbers(1)]
    method = Method(call.text("mode", "nearest").replace("bilinear", "linear"), "asymmetric", "floor")
    return _resized(call, {dim: _scaled(call, dim, scale) for dim, scale in enumerate(scales) if scale != 1.0 or x.ndim == 0}, method)


@converter("Resize", since=10)
def resize_by_scales(call: Call) -> Tensor:
    scales = [float(scale) for scale in call.numbers(1)]
    method = Method(call.text("mode", "nearest"), "asymmetric", "floor")
    return _resized(call, {dim: _scaled(call, dim, scale) for dim, scale in enumerate(scales) if scale != 1.0}, method)


@converter("Resize", since=11)
def resize(call: Call) -> Tensor:
    """Sizes or scales for ``axes``; dimensions that keep their size are left alone."""
    method = Method(
        call.text("mode", "nearest"),
        call.text("coordinate_transformation_mode", "half_pixel"),
        call.text("nearest_mode", "round_prefer_floor"),
        call.real("cubic_coeff_a", -0.75),
        call.flag("exclude_outside"),
        call.flag("antialias"),
    )
    return _resized(call, _axes(call), method)


def _axes(call: Call) -> dict[int, Axis]:
    x = call.tensor(0)
    dims = [axis % x.ndim for axis in call.integers("axes") or range(x.ndim)]
    regions = _regions(call, len(dims))
    if call.has(2) and call.constant(2).numel():
        scales = [float(scale) for scale in call.numbers(2)]
        found = {dim: _scaled(call, dim, scale) for dim, scale in zip(dims, scales, strict=True) if scale != 1.0 or regions}
    else:
        sizes = call.sizes(3)
        found = _sized(call, {dim: size for dim, size in zip(dims, sizes, strict=True) if not _same(size, x.shape[dim]) or regions})
    if not regions:
        return found
    return {dim: Axis(axis.length, axis.result, axis.scale, regions[dims.index(dim)]) for dim, axis in found.items()}


def _same(a: object, b: object) -> bool:
    return a is b or (isinstance(a, int) and isinstance(b, int) and a == b)


def _regions(call: Call, count: int) -> list[tuple[float, float]]:
    if call.text("coordinate_transformation_mode") != "tf_crop_and_resize":
        return []
    ends = [float(end) for end in call.numbers(1)]
    return list(zip(ends[:count], ends[count:], strict=True))


def _length(call: Call, dim: int) -> int:
    length = call.tensor(0).shape[dim]
    if not isinstance(length, int):
        raise call.fail(f"resizes dimension {dim}, whose size is open: fix it with dynamic_shapes")
    return length


def _scaled(call: Call, dim: int, scale: float) -> Axis:
    length = _length(call, dim)
    if not 0 < scale * length < 1 << 16:
        raise call.fail(f"scales {length} elements by {scale}")
    return Axis(length, int(np.floor(length * np.float32(scale))), scale)


def _sized(call: Call, wanted: dict[int, object]) -> dict[int, Axis]:
    """The policy may keep the aspect: the smallest (or largest) of the scales serves all."""
    sizes = {dim: size for dim, size in wanted.items() if isinstance(size, int) and 0 < size < 1 << 16}
    if len(sizes) != len(wanted):
        raise call.fail(f"resizes to {list(wanted.values())}: sizes must be known and positive")
    lengths = {dim: _length(call, dim) for dim in sizes}
    policy = call.text("keep_aspect_ratio_policy", "stretch")
    if policy == "stretch" or not sizes:
        return {dim: Axis(lengths[dim], size, size / lengths[dim]) for dim, size in sizes.items()}
    ratios = [size / lengths[dim] for dim, size in sizes.items()]
    scale = min(ratios) if policy == "not_larger" else max(ratios)
    return {dim: Axis(lengths[dim], int(np.floor(scale * lengths[dim] + 0.5)), scale) for dim in sizes}


def _resized(call: Call, axes: dict[int, Axis], method: Method) -> Tensor:
    x = call.tensor(0)
    if method.mode == "nearest":
        return _nearest(x, axes, method)
    for dim, axis in axes.items():
        weights = torch.from_numpy(interpolation.matrix(axis, method))
        last = dim == x.ndim - 1
        x = F.linear(x if last else x.transpose(dim, -1), weights)
        x = x if last else x.transpose(dim, -1)
    return _extrapolated(call, x, axes, method)


def _nearest(x: Tensor, axes: dict[int, Axis], method: Method) -> Tensor:
    """Where each element is repeated a whole number of times it is torch's upsampling."""
    picked = {dim: interpolation.nearest(axis, method) for dim, axis in axes.items()}
    factors = {dim: axis.result // axis.length for dim, axis in axes.items()}
    repeated = all(
        positions == [position for position in range(axes[dim].length) for _ in range(factors[dim])] for dim, positions in picked.items()
    )
    if repeated and x.ndim == 4 and set(axes) <= {2, 3} and x.is_floating_point():
        return F.interpolate(x, scale_factor=[float(factors.get(2, 1)), float(factors.get(3, 1))], mode="nearest")
    for dim, positions in picked.items():
        x = torch.index_select(x, dim, torch.tensor(positions))
    return x


def _extrapolated(call: Call, x: Tensor, axes: dict[int, Axis], method: Method) -> Tensor:
    """Elements from outside of the input get a value of their own."""
    beyond = {dim: interpolation.outside(axis, method) for dim, axis in axes.items()}
    for dim, found in beyond.items():
        if found.any():
            mask = torch.from_numpy(found).reshape([-1 if other == dim else 1 for other in range(x.ndim)])
            x = torch.where(mask, torch.tensor(call.real("extrapolation_value")), x)
    return x
