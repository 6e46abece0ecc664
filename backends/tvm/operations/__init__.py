"""What the planner does for each op of the INTEGER stage: a change of view, or calls of kernels. A module for each family of ops."""

from __future__ import annotations

from collections.abc import Mapping

from qcompiler.backends.tvm.operations import elementwise, islands, layers, movement, reductions, rows
from qcompiler.backends.tvm.operations.hadamard import hadamard
from qcompiler.backends.tvm.operations.handler import Handler
from qcompiler.backends.tvm.operations.layers import joint_layers
from qcompiler.backends.tvm.operations.rows import normalization
from qcompiler.backends.tvm.operations.windows import Window, window_of

__all__ = ["HANDLERS", "Handler", "Window", "hadamard", "joint_layers", "normalization", "window_of"]

HANDLERS: Mapping[object, Handler] = {
    **layers.HANDLERS,
    **elementwise.HANDLERS,
    **islands.HANDLERS,
    **reductions.HANDLERS,
    **rows.HANDLERS,
    **movement.HANDLERS,
}
