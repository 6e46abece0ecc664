"""Integer functions on torch tensors: the one definition of every number the compiler computes.

The reference kernels of the ``qc::`` ops, the proofs of the verifier and every back end cite these formulas.
``docs/arithmetic.md`` derives them, with their error bounds.
"""

from __future__ import annotations

from qcompiler.arithmetic.binary import binarize, binary_scale, is_binary
from qcompiler.arithmetic.codes import bucketize, decode, embedding, encode
from qcompiler.arithmetic.dyadic import (
    DYADIC_PARAMETERS,
    Dyadic,
    ResidualDyadic,
    choose,
    choose_exact64,
    choose_high,
    choose_narrow,
    choose_residual,
)
from qcompiler.arithmetic.elementwise import clamp, dilate, lookup, multiply
from qcompiler.arithmetic.groups import choose_groups, expand_factors, largest_factor, scale_groups
from qcompiler.arithmetic.hadamard import hadamard, is_order
from qcompiler.arithmetic.linear import convolution, linear, matmul
from qcompiler.arithmetic.nonlinear import has_form, nonlinear, nonlinear_parameters
from qcompiler.arithmetic.normalize import NORMALIZE_FORMS, integer_epsilon, normalize, normalized_scale
from qcompiler.arithmetic.pooling import adaptive_max_pool2d, adaptive_sum_pool2d, max_pool2d, reduce_sum, sum_pool2d
from qcompiler.arithmetic.quantize import dequantize, quantize, scale_and_zero_point
from qcompiler.arithmetic.reciprocal import divide
from qcompiler.arithmetic.requantize import (
    REQUANTIZE,
    centre,
    requantize_exact64,
    requantize_high,
    requantize_narrow,
    residual_add,
    saturate,
)
from qcompiler.arithmetic.softmax import (
    PAPER_FORMS,
    ROUNDINGS,
    SOFTMAX_FORMS,
    TABLE_FORMS,
    exponential_table,
    most_probability_bits,
    softmax,
    softmax_parameters,
    softmax_scale,
)
from qcompiler.arithmetic.tables import build_table

__all__ = [
    "DYADIC_PARAMETERS",
    "NORMALIZE_FORMS",
    "PAPER_FORMS",
    "REQUANTIZE",
    "ROUNDINGS",
    "SOFTMAX_FORMS",
    "TABLE_FORMS",
    "Dyadic",
    "ResidualDyadic",
    "adaptive_max_pool2d",
    "adaptive_sum_pool2d",
    "binarize",
    "binary_scale",
    "bucketize",
    "build_table",
    "centre",
    "choose",
    "choose_exact64",
    "choose_groups",
    "choose_high",
    "choose_narrow",
    "choose_residual",
    "clamp",
    "convolution",
    "decode",
    "dequantize",
    "dilate",
    "divide",
    "embedding",
    "encode",
    "expand_factors",
    "exponential_table",
    "hadamard",
    "has_form",
    "integer_epsilon",
    "is_binary",
    "is_order",
    "largest_factor",
    "linear",
    "lookup",
    "matmul",
    "max_pool2d",
    "most_probability_bits",
    "multiply",
    "nonlinear",
    "nonlinear_parameters",
    "normalize",
    "normalized_scale",
    "quantize",
    "reduce_sum",
    "requantize_exact64",
    "requantize_high",
    "requantize_narrow",
    "residual_add",
    "saturate",
    "scale_and_zero_point",
    "scale_groups",
    "softmax",
    "softmax_parameters",
    "softmax_scale",
    "sum_pool2d",
]
