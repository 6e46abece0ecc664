"""An allocation that is changed one class at a time: what each change would lose and cost is known at any time without adding up anew."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qcompiler.passes.allocate.problem import TOLERANCE, Array, Reduced

# A change of one class has to lessen the sum of sensitivities by more than this share of it, or the search might never end.
_LEAST_GAIN = 1e-12


class Moves:
    """``positions`` of the options of each class. A *move* is a class and an option that it might take; moves are numbered.

    owner, option: the class and the position of the option of each move, [moves].
    sensitivities: of each move's option, [moves].
    costs: what the class would cost with that option beside the others as they are, [budgets, moves].
    totals: what the allocation costs, [budgets]; ``limits`` alike.
    """

    def __init__(self, reduced: Reduced, positions: Sequence[int]) -> None:
        sizes = [len(group.options) for group in reduced.classes]
        self.owner: NDArray[np.intp] = np.repeat(np.arange(len(sizes)), sizes)
        self.option: NDArray[np.intp] = np.concatenate([np.arange(size) for size in sizes])
        self._start: NDArray[np.intp] = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.intp)
        self.sensitivities: Array = np.concatenate([group.sensitivities for group in reduced.classes])
        self.positions: NDArray[np.intp] = np.array(positions, dtype=np.intp)
        self.limits: Array = np.array([budget.limit for budget in reduced.budgets])
        # For each class its pairs: budget, values with the class first, the other class.
        self._pairs: list[list[tuple[int, Array, int]]] = [[] for _ in sizes]
        self.costs: Array = np.zeros((len(reduced.budgets), self.owner.size))
        for number, budget in enumerate(reduced.budgets):
            for group, values in budget.unary.items():
                self.costs[number, self._slots(group)] += values
            for (one, other), values in budget.pairs.items():
                self._pairs[one].append((number, values, other))
                self._pairs[other].append((number, values.T, one))
                self.costs[number, self._slots(one)] += values[:, self.positions[other]]
                self.costs[number, self._slots(other)] += values[self.positions[one]]
        fixed = np.array([budget.fixed for budget in reduced.budgets])
        joint = np.zeros(len(reduced.budgets))  # counted with both classes of each pair
        for number, budget in enumerate(reduced.budgets):
            joint[number] = sum(values[self.positions[one], self.positions[other]] for (one, other), values in budget.pairs.items())
        self.totals: Array = fixed + self.costs[:, self._present].sum(1) - joint

    @property
    def objective(self) -> float:
        """The sum of sensitivities."""
        return float(self.sensitivities[self._present].sum())

    @property
    def losses(self) -> Array:
        """By how much each move raises the sum of sensitivities, [moves]."""
        return self.sensitivities - self.sensitivities[self._present[self.owner]]

    @property
    def expenses(self) -> Array:
        """By how much each move raises each total, [budgets, moves]."""
        return self.costs - self.costs[:, self._present[self.owner]]

    def exceeded(self) -> NDArray[np.bool_]:
        """Which budgets are, [budgets]."""
        return self.totals > self.limits + TOLERANCE * np.abs(self.limits)

    def take(self, move: int) -> None:
        """Change the class of a move to its option."""
        group, after = int(self.owner[move]), int(self.option[move])
        before = int(self.positions[group])
        self.totals = self.totals + self.costs[:, move] - self.costs[:, self._start[group] + before]
        self.positions[group] = after
        for number, values, other in self._pairs[group]:
            self.costs[number, self._slots(other)] += values[after] - values[before]

    def repair(self) -> bool:
        """Until all budgets are kept, take the move that loses least for what it saves; False where none leads on.

        What a move saves is by how much it lessens the excess, the sum over budgets of what is above their limit as a share of it. A
        move that overshoots saves no more than the excess, and one that exceeds another budget as much less.
        """
        while self.exceeded().any():
            saved = self._excess(self.totals[:, None])[0] - self._excess(self.totals[:, None] + self.expenses)
            useful = saved > TOLERANCE
            if not useful.any():
                return False
            self.take(int(np.argmin(np.where(useful, self.losses / np.where(useful, saved, 1.0), np.inf))))
        return True

    def improve(self) -> None:
        """While any move, or any two to neighbouring options, lessens the sum of sensitivities and keeps the budgets, take it.

        Two moves are looked at where their classes have no joint cost. Needs an allocation that keeps the budgets.
        """
        apart = self._apart()
        while True:
            room = (self.limits - self.totals)[:, None]
            losses, expenses = self.losses, self.expenses
            least = -_LEAST_GAIN * max(abs(self.objective), 1e-300)
            alone = np.where((expenses <= room).all(0), losses, np.inf)
            near = np.flatnonzero(np.abs(self.option - self.positions[self.owner]) <= 1)
            both = losses[near][:, None] + losses[near]
            allowed = apart[np.ix_(self.owner[near], self.owner[near])] & (both < least)
            for number in range(len(self.limits)):
                allowed &= expenses[number, near][:, None] + expenses[number, near] <= room[number]
            both = np.where(allowed, both, np.inf)
            one, two = int(np.argmin(alone)), int(np.argmin(both)) if both.size else 0
            if min(alone[one], both.flat[two] if both.size else np.inf) >= least:
                return
            if not both.size or alone[one] <= both.flat[two]:
                self.take(one)
            else:
                for move in divmod(two, near.size):
                    self.take(int(near[move]))

    def _excess(self, totals: Array) -> Array:
        """Of several possible totals, [budgets, n] to [n]."""
        units = np.where(np.isfinite(self.limits) & (self.limits != 0.0), np.abs(self.limits), 1.0)
        return np.asarray((np.maximum(totals - self.limits[:, None], 0.0) / units[:, None]).sum(0))

    @property
    def _present(self) -> NDArray[np.intp]:
        """The number of the move that each class is at."""
        return self._start + self.positions

    def _slots(self, group: int) -> slice:
        end = self._start[group + 1] if group + 1 < self._start.size else self.owner.size
        return slice(int(self._start[group]), int(end))

    def _apart(self) -> NDArray[np.bool_]:
        """Whether two classes differ and have no joint cost, [classes, classes]."""
        apart = ~np.eye(self._start.size, dtype=bool)
        for group, pairs in enumerate(self._pairs):
            for _, _, other in pairs:
                apart[group, other] = False
        return apart
