"""Integer functions on torch tensors: the one definition of every number the compiler computes.

The reference kernels of the ``qc::`` ops, the proofs of the verifier and every back end cite these formulas.
``docs/arithmetic.md`` derives them, with their error bounds.
"""

from __future__ import annotations

from qcompiler.arithmetic.dyadic import (
    Dyadic,
    ResidualDyadic,
    choose,
    choose_exact64,
    choose_high,
    choose_narrow,
    choose_residual,
)
from qcompiler.arithmetic.elementwise import clamp, dilate, lookup, multiply
from qcompiler.arithmetic.linear import convolution, linear, matmul
from qcompiler.arithmetic.normalize import integer_epsilon, normalize
from qcompiler.arithmetic.pooling import adaptive_max_pool2d, adaptive_sum_pool2d, max_pool2d, reduce_sum, sum_pool2d
from qcompiler.arithmetic.quantize import dequantize, quantize, scale_and_zero_point
from qcompiler.arithmetic.requantize import (
    REQUANTIZE,
    centre,
    requantize_exact64,
    requantize_high,
    requantize_narrow,
    residual_add,
    saturate,
)
from qcompiler.arithmetic.softmax import exponential_table, softmax
from qcompiler.arithmetic.tables import build_table

__all__ = [
    "REQUANTIZE",
    "Dyadic",
    "ResidualDyadic",
    "adaptive_max_pool2d",
    "adaptive_sum_pool2d",
    "build_table",
    "centre",
    "choose",
    "choose_exact64",
    "choose_high",
    "choose_narrow",
    "choose_residual",
    "clamp",
    "convolution",
    "dequantize",
    "dilate",
    "linear",
    "exponential_table",
    "integer_epsilon",
    "lookup",
    "matmul",
    "max_pool2d",
    "multiply",
    "normalize",
    "quantize",
    "reduce_sum",
    "requantize_exact64",
    "requantize_high",
    "requantize_narrow",
    "residual_add",
    "saturate",
    "softmax",
    "scale_and_zero_point",
    "sum_pool2d",
]
