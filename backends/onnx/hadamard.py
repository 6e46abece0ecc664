"""Hadamard transforms: a product with a matrix of entries +-1 for each factor of H = H_m kron H_2^a kron H_2^b, in int32 or float."""

from __future__ import annotations

import onnx_ir as ir
import torch

from qcompiler.arithmetic.hadamard import hadamard_matrix, small_matrix, small_order
from qcompiler.backends.onnx.graph import FLOAT, INT32, INT64, GraphWriter
from qcompiler.backends.onnx.products import centred
from qcompiler.backends.onnx.writers import Call, Registry

WRITERS = Registry()

_LARGEST_FACTOR = 64  # a power of four: an odd power of two has its pair on the highest bit


@WRITERS.writes("qc.hadamard.default")
def hadamard(w: GraphWriter, call: Call) -> ir.Value:
    """``(x - zero_point) H`` block by block. onnxruntime multiplies int32 matrices modulo 2^32, of which the sums fit half."""
    x = call.value("x")
    y = x if x.dtype == FLOAT else centred(w, x, int(call["zero_point"]))
    factors = _factors(int(call["block"]))
    rest = int(call["block"])
    for factor in factors:
        order = factor.shape[0]
        rest //= order
        y = w.op("Reshape", y, w.axes(-1, order, rest))
        y = w.op("MatMul", w.constant(factor.T, y.dtype or INT32, "hadamard"), y)
    return w.op("Reshape", y, w.op("Shape", x, dtype=INT64))


def _factors(block: int) -> list[torch.Tensor]:
    """Matrices whose Kronecker product is the block's, none of them large but the one that has no factors."""
    small = small_order(block)
    assert small is not None  # the op's shape function has checked it
    factors = [small_matrix(small)] if small > 1 else []
    rest, powers = block // small, 0
    while rest > _LARGEST_FACTOR:
        rest, powers = rest // _LARGEST_FACTOR, powers + 1
    return [*factors, hadamard_matrix(rest), *[hadamard_matrix(_LARGEST_FACTOR)] * powers]
