"""The contract between planner and templates: sizes that are known at run time."""

from __future__ import annotations

from qcompiler.backends.tvm.kernels import Copy, ElementwiseKernel, Extent, Operand, is_dynamic, maxima


def kernel(*shape: int | Extent) -> ElementwiseKernel:
    walk = Operand("int8", (1,) * len(shape))
    return ElementwiseKernel(Copy(), shape, (walk,), walk)


def test_a_kernel_is_dynamic_if_any_of_its_sizes_is() -> None:
    assert not is_dynamic(kernel(3, 4))
    assert is_dynamic(kernel(3, Extent(4)))


def test_memory_is_planned_for_the_maximum() -> None:
    assert maxima((3, Extent(129, offset=1))) == (3, 129)
