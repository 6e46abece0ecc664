"""The integers that a weight is rounded to: all from ``low`` to ``high``, or -1 and +1 alone."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from qcompiler import arithmetic


@dataclass(frozen=True)
class Grid:
    """Every ``step``-th integer from ``low`` to ``high``, both among them; the step is 1, or 2 for a binary weight."""

    low: int
    high: int
    step: int = 1

    def nearest(self, x: Tensor) -> Tensor:
        """The nearest integer of the grid; half to even, for a binary weight the sign."""
        return arithmetic.binarize(x).to(x.dtype) if self.step == 2 else x.round().clamp(self.low, self.high)

    def below(self, x: Tensor) -> Tensor:
        """The next integer that is not above ``x``, of the grid continued beyond its ends."""
        offset = self.low % self.step
        return ((x - offset) / self.step).floor() * self.step + offset


BINARY = Grid(-1, 1, 2)
