"""One block of memory for all values of a sample: values that never live at the same time share addresses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.backends.tvm.views import ALIGNMENT, Storage

SLACK = 256  # bytes before the first and after the last block: vector loads may reach that far past a value


@dataclass(frozen=True)
class Lifetime:
    """A storage is written first at step ``first`` and read last at step ``last``."""

    storage: Storage
    first: int
    last: int

    def overlaps(self, other: Lifetime) -> bool:
        return self.first <= other.last and other.first <= self.last


def align(size: int) -> int:
    """The next multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def place(lifetimes: Sequence[Lifetime]) -> int:
    """Give each storage its offset and return the size of the block, slack included.

    Largest first, each into the smallest gap that holds it between the blocks alive at the same time (greedy by size with best
    fit: Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference, 2020, section 4.3).
    """
    placed: list[Lifetime] = []
    for lifetime in sorted(lifetimes, key=lambda item: (-item.storage.size, item.first, item.last)):
        alive = sorted((item.storage for item in placed if item.overlaps(lifetime)), key=lambda storage: storage.offset)
        lifetime.storage.offset = _best_gap(alive, lifetime.storage.size)
        placed.append(lifetime)
    return max((item.storage.offset + align(item.storage.size) for item in placed), default=SLACK) + SLACK


def place_all(storages: Sequence[Storage]) -> int:
    """One after the other, as for parameters, which live for ever."""
    return place([Lifetime(storage, 0, 0) for storage in storages])


def _best_gap(alive: Sequence[Storage], size: int) -> int:
    best, best_length, end = None, None, SLACK
    for storage in alive:
        length = storage.offset - end
        if length >= align(size) and (best_length is None or length < best_length):
            best, best_length = end, length
        end = max(end, storage.offset + align(storage.size))
    return end if best is None else best
