from __future__ import annotations

import dataclasses

from qcompiler.backends.tvm import sharing
from qcompiler.backends.tvm.kernels import (
    Activation,
    Add,
    Argument,
    ConvolutionKernel,
    MatrixProductKernel,
    NormalizationKernel,
    Normalize,
    Operand,
    Requantization,
    RowAffine,
)

MAP = Activation(1, 8, 16, "uint8")
ROWS = Operand("int16", (64, 1))


def _layer(zero_point: int, high: int = 255) -> ConvolutionKernel:
    return ConvolutionKernel(MAP, MAP, (1, 1), (1, 1), (0, 0), (1, 1), 1, Requantization("narrow", True, zero_point, 0, high))


def _product(a: int, b: int) -> MatrixProductKernel:
    return MatrixProductKernel((), 8, 8, 64, ROWS, ROWS, ROWS, a, b)


def test_layers_that_differ_in_numbers_share_a_kernel() -> None:
    one, other = sharing.share(_layer(3)), sharing.share(_layer(130))
    assert one[0] == other[0] != sharing.share(_layer(0))[0]
    assert (one[1], other[1]) == ((3,), (130,))
    assert sharing.share(_layer(3, 200))[1] == (3, 200)


def test_zero_points_of_a_product_stay_where_none_needs_a_correction() -> None:
    assert sharing.share(_product(128, 0)) == (_product(128, 0), ())
    assert sharing.share(_product(128, 5))[1] == (128, 5)
    assert sharing.share(_product(0, 5))[1] == (5,)


def test_resolving_undoes_sharing() -> None:
    """Numbers that the packed parameters contain are gone."""
    affine = RowAffine(2, 14, 120, 0, 255, offset_has_zero_point=True, constant_zero_point=9)
    kernel = NormalizationKernel(
        Normalize(0, 1 << 40, True), (8,), 64, ROWS, ROWS, Add(12, 0, 5, 3, -32768, 32767), affine, output=Operand("uint8", (64, 1))
    )
    shared, numbers = sharing.share(kernel)
    assert isinstance(shared, NormalizationKernel) and shared.operation.epsilon == Argument(0)
    assert sharing.count(shared) == len(numbers) == 6
    assert sharing.resolved(shared, numbers.__getitem__) == dataclasses.replace(
        kernel, affine=dataclasses.replace(affine, zero_point=0, constant_zero_point=0)
    )
