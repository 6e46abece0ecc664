"""Which blocks the kernel of Hadamard transforms takes; no TVM, so that planning does not import it."""

from __future__ import annotations

from qcompiler.arithmetic.hadamard import small_order

# Larger small matrices would be more code than is reasonable to write out.
LARGEST_SMALL_ORDER = 60
SMALLEST_RUN = 4  # elements of a vector
ADVICE = f"a power of two times an order up to {LARGEST_SMALL_ORDER}, a multiple of {SMALLEST_RUN} times it"


def serves(block: int) -> bool:
    """Whether there is a kernel for blocks of this size."""
    small = small_order(block)
    return small is not None and small <= LARGEST_SMALL_ORDER and block // small >= SMALLEST_RUN
