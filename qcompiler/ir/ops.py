"""The ``qc::`` ops: schema, shape function and exact reference kernel of each, registered with torch.library.

Kernels only call ``qcompiler.arithmetic``, where every formula stands. Importing this module registers the ops.
"""

from __future__ import annotations

import torch

LIBRARY = torch.library.Library("qc", "DEF")

SCHEMAS: dict[str, str] = {
    "quantize": "(Tensor x, float[] scale, int[] zero_point, int axis, int bits, bool signed) -> Tensor",
    "dequantize": "(Tensor x, float[] scale, int[] zero_point, int axis, int bits, bool signed) -> Tensor",
    "convolution": "(Tensor x, Tensor weight, Tensor bias, int[] stride, int[] padding, int[] dilation, int groups, int pad_value) -> Tensor",
    "linear": "(Tensor x, Tensor weight, Tensor bias) -> Tensor",
    "requantize": (
        "(Tensor x, Tensor pre_shift, Tensor multiplier, Tensor shift, int input_zero_point, int zero_point,"
        " int low, int high, str form, int bits, bool signed) -> Tensor"
    ),
    "add": (
        "(Tensor a, Tensor b, Tensor pre_shift_a, Tensor multiplier_a, Tensor pre_shift_b, Tensor multiplier_b, int shift,"
        " int zero_point_a, int zero_point_b, int zero_point, int low, int high, int bits, bool signed) -> Tensor"
    ),
    "multiply": "(Tensor a, Tensor b, int zero_point_a, int zero_point_b) -> Tensor",
    "lookup": "(Tensor x, Tensor table, int bits, bool signed) -> Tensor",
    "clamp": "(Tensor x, int low, int high) -> Tensor",
    "max_pool2d": "(Tensor x, int[] kernel, int[] stride, int[] padding, int[] dilation) -> Tensor",
    "sum_pool2d": "(Tensor x, int[] kernel, int[] stride, int[] padding, int zero_point) -> Tensor",
    "adaptive_sum_pool2d": "(Tensor x, int[] output_size, int zero_point) -> Tensor",
    "adaptive_max_pool2d": "(Tensor x, int[] output_size) -> Tensor",
    "sum": "(Tensor x, int[] dim, bool keepdim, int zero_point) -> Tensor",
    "dilate": "(Tensor x, int[] factor, int value) -> Tensor",
}

for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)
