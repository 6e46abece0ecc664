"""Greedy allocation: from the options of least sensitivity down, always the change that loses least for what it saves.

It cannot step back, and sees no two changes at once. It is there to be compared with the integer linear program, which needs about as long.
"""

from __future__ import annotations

import numpy as np

from qcompiler.passes.allocate.moves import Moves
from qcompiler.passes.allocate.problem import Reduced


def solve(reduced: Reduced) -> list[int] | None:
    """The position of the option of each class; None where no change leads on while a budget is exceeded."""
    moves = Moves(reduced, [int(np.argmin(group.sensitivities)) for group in reduced.classes])
    return moves.positions.tolist() if moves.repair() else None
