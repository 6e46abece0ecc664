"""Which template computes a convolution or linear layer on a target, by predicted cycles (no TVM here)."""

from __future__ import annotations

from dataclasses import replace

from qcompiler.backends.tvm.kernels import BitPlanes, ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import is_depthwise, reads_words
from qcompiler.backends.tvm.templates.matrix_layout import can_unpack, cycles, matrix_layout
from qcompiler.backends.tvm.templates.planes_layout import planes_cycles, suits_planes
from qcompiler.backends.tvm.templates.winograd_layout import uses_winograd, winograd_cycles

PACKED_BITS = (2, 4)  # that weights may have in memory, besides 8


def weight_storage(kernel: ConvolutionKernel, target: str, bits: int, group: int = 0, planes: BitPlanes | None = None) -> ConvolutionKernel:
    """The kernel for weights of ``bits`` bits, with a factor for each ``group`` inputs unless that is 0.

    Whatever is predicted to be the fastest of three: the kernel of 8 bits, for which weights are expanded to bytes when the program is
    loaded; the same with weights unpacked in registers, mostly where reading them is what takes the time; products of bits, where
    weights and inputs are numbers of so few bits that ``planes`` says what they are.
    """
    if is_depthwise(kernel) or reads_words(kernel):
        return kernel
    candidates = [kernel]
    packed = next((stored for stored in PACKED_BITS if bits <= stored), 8)
    if packed < 8 and not uses_winograd(kernel, target):
        small = replace(kernel, weight_bits=packed, weight_group=group)
        candidates += [small] if can_unpack(matrix_layout(small, target)) else []
    if planes is not None and not group:
        of_bits = replace(kernel, bit_planes=planes)
        candidates += [of_bits] if suits_planes(of_bits, target) else []
    return min(candidates, key=lambda candidate: predicted_cycles(candidate, target))


def predicted_cycles(kernel: ConvolutionKernel, target: str) -> float:
    """Of one core, epilogue not included; of a kernel that is not depthwise."""
    if kernel.bit_planes is not None:
        return planes_cycles(kernel, target)
    return winograd_cycles(kernel) if uses_winograd(kernel, target) else cycles(matrix_layout(kernel, target), kernel)
