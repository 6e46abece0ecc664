"""Convolution kernels as TIR, one template a module: ``emit`` chooses it by the kernel's shape and the target's instruction set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qcompiler.backends.tvm.kernels import ConvolutionKernel
from qcompiler.backends.tvm.templates.layout import instruction_set, is_depthwise, reads_words
from qcompiler.backends.tvm.templates.matrix_layout import is_packed
from qcompiler.backends.tvm.templates.winograd_layout import uses_winograd

if TYPE_CHECKING:
    from tvm import tirx


def emit(kernel: ConvolutionKernel, target: str, symbol: str) -> tirx.PrimFunc:
    """The kernel as a function of raw pointers: input, [residual operand], what ``packing.pack`` gives, output.

    Raises TargetError for a target without templates.
    """
    from qcompiler.backends.tvm.templates import amx, depthwise, matrix, planes, winograd  # TVM takes seconds to import

    instruction_set(target)
    if is_depthwise(kernel):
        function = depthwise.emit(kernel, target)
    elif kernel.bit_planes is not None:
        function = planes.emit(kernel, target)
    elif uses_winograd(kernel, target):
        function = winograd.emit(kernel)
    elif uses_amx(kernel, target):
        function = amx.emit(kernel, target)
    else:
        function = matrix.emit(kernel, target)
    return function.with_attr("global_symbol", symbol)


def uses_amx(kernel: ConvolutionKernel, target: str) -> bool:
    """Whether ``amx`` computes a kernel that is a matrix product: tiles hold whole bytes."""
    return target == "x86-64-amx" and not reads_words(kernel) and not is_packed(kernel)
