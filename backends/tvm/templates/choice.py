"""Which template computes a convolution or linear layer on a target, by predicted cycles (no TVM here)."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import is_depthwise, reads_words
from qcompiler.backends.tvm.templates.matrix_layout import can_unpack, cycles, matrix_layout
from qcompiler.backends.tvm.templates.winograd_layout import uses_winograd

PACKED_BITS = (2, 4)  # that weights may have in memory, besides 8


def weight_storage(kernel: ConvolutionKernel, target: str, bits: int, group: int = 0) -> ConvolutionKernel:
    """The kernel for weights of ``bits`` bits, with a factor for each ``group`` inputs unless that is 0.

    It unpacks them in registers where it is predicted to be faster for it, mostly because reading weights is what takes the time. Else it
    is the kernel of 8 bits: the weights are expanded to bytes when the program is loaded.
    """
    packed = next((stored for stored in PACKED_BITS if bits <= stored), 8)
    if packed == 8 or is_depthwise(kernel) or reads_words(kernel) or uses_winograd(kernel, target):
        return kernel
    candidate = replace(kernel, weight_bits=packed, weight_group=group)
    small, plain = matrix_layout(candidate, target), matrix_layout(kernel, target)
    return candidate if can_unpack(small) and cycles(small, kernel) < cycles(plain, kernel) else kernel
