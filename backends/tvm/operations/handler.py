"""What the planner calls for an op."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import fx

if TYPE_CHECKING:
    from qcompiler.backends.tvm.planner import Planner

Handler = Callable[["Planner", fx.Node], None]
