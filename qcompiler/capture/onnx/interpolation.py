"""Coordinates and coefficients of Resize along one dimension, as the ONNX standard gives them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """From ``length`` to ``result`` elements; ``scale`` is their ratio, or what the model gives; ``region`` that of tf_crop_and_resize."""

    length: int
    result: int
    scale: float
    region: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class Method:
    """The attributes of the node."""

    mode: str
    coordinates: str
    nearest: str
    cubic: float = -0.75
    exclude_outside: bool = False
    antialias: bool = False


def positions(axis: Axis, method: Method) -> Floats:
    """Where each element of the result lies in the input."""
    x = np.arange(axis.result, dtype=np.float64)
    wanted = axis.scale * axis.length
    match method.coordinates:
        case "asymmetric":
            return x / axis.scale
        case "align_corners":
            return x * (axis.length - 1) / (wanted - 1) if wanted != 1 else np.zeros_like(x)
        case "pytorch_half_pixel":
            return (x + 0.5) / axis.scale - 0.5 if wanted > 1 else np.full_like(x, 0.0)
        case "half_pixel":
            return (x + 0.5) / axis.scale - 0.5
        case "half_pixel_symmetric":
            adjustment = axis.result / wanted
            return axis.length / 2 * (1 - adjustment) + (x + 0.5) / axis.scale - 0.5
        case "tf_half_pixel_for_nn":
            return (x + 0.5) / axis.scale
        case "tf_crop_and_resize":
            start, end = axis.region
            if axis.result > 1:
                return start * (axis.length - 1) + x * (end - start) * (axis.length - 1) / (axis.result - 1)
            return np.full_like(x, 0.5 * (start + end) * (axis.length - 1))
    raise ValueError(f"unknown coordinate_transformation_mode '{method.coordinates}'")


def nearest(axis: Axis, method: Method) -> list[int]:
    """The one element that each element of the result is."""
    x = positions(axis, method)
    match method.nearest:
        case "round_prefer_floor":
            rounded = np.ceil(x - 0.5)
        case "round_prefer_ceil":
            rounded = np.floor(x + 0.5)
        case "floor":
            rounded = np.floor(x)
        case "ceil":
            rounded = np.ceil(x)
        case _:
            raise ValueError(f"unknown nearest_mode '{method.nearest}'")
    return [int(position) for position in np.clip(rounded, 0, axis.length - 1)]


def outside(axis: Axis, method: Method) -> npt.NDArray[np.bool_]:
    """Which elements of the result lie outside of the input: tf_crop_and_resize gives them another value."""
    x = positions(axis, method)
    return (x < 0) | (x > axis.length - 1) if method.coordinates == "tf_crop_and_resize" else np.zeros(x.shape, dtype=np.bool_)


def matrix(axis: Axis, method: Method) -> npt.NDArray[np.float32]:
    """[result, length]: each row the coefficients of one element; elements beyond the ends are those at the ends."""
    stretch = min(axis.scale, 1.0) if method.antialias else 1.0
    reach = (1.0 if method.mode == "linear" else 2.0) / stretch
    rows = np.zeros((axis.result, axis.length))
    for row, x in zip(rows, positions(axis, method), strict=True):
        taps = np.arange(math.floor(x - reach) + 1, math.ceil(x + reach) + (0 if method.antialias else 1))
        weights = _kernel(np.abs(taps - x) * stretch, method)
        if method.exclude_outside or method.antialias:
            weights = np.where((taps < 0) | (taps >= axis.length), 0.0, weights) if method.exclude_outside else weights
            weights = weights / weights.sum()
        np.add.at(row, np.clip(taps, 0, axis.length - 1), weights)
    return rows.astype(np.float32)


def _kernel(distance: Floats, method: Method) -> Floats:
    """The triangle, or Keys' cubic convolution (1981) with the parameter a."""
    if method.mode == "linear":
        return np.clip(1.0 - distance, 0.0, None)
    a, d = method.cubic, distance
    near = ((a + 2) * d - (a + 3)) * d**2 + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))
