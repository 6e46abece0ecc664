"""What bit allocation gives, as plain data. ``qcompiler.analysis`` has the functions that make it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qcompiler.sensitivity import Item


@dataclass(frozen=True)
class Allocation:
    """Bits of each item that has a choice, the sum of their sensitivities, and what they cost of each budget."""

    bits: Mapping[Item, int]
    objective: float
    costs: Mapping[str, float]
    method: str
