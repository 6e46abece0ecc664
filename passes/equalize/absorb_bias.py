"""``absorb-bias``: what a rectified channel always exceeds goes into the next layers' biases.

    relu(W1 x + b1) = relu(W1 x + b1 - c) + c    where W1 x + b1 >= c >= 0
    b1 - c,   b2 + W2 c

Large biases, as cross-layer equalization makes them, widen the ranges of activations; without c the range is narrower by c.
Source: Data-Free Quantization (arXiv 1906.04721), section 4.1.2: c = max(0, mean - 3 deviation), which a normal variable exceeds in
99.865 % of all cases. The paper knows mean and deviation from batch norm, here they are those of the calibration data, and c never exceeds
the least value seen there. Not where a next layer pads: its zeros stand behind the relu and would have to be -c. (The paper absorbs there
all the same.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.calibration.statistics import Observation, ObserverSpec, StatisticRequest
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.channels import Readers, readers_of
from qcompiler.ir.layers import CHANNEL_AXIS, as_layer, channel_axis, write_layer
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Source, left_alone, take_shift_over
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise

_aten = torch.ops.aten


@dataclass(frozen=True)
class AbsorbBias(Pass):
    """What rectified channels always exceed goes into the next biases (DFQ).

    Options:
        deviations: c lies so many standard deviations below the mean.
    """

    name: ClassVar[str] = "absorb-bias"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Lossy()

    deviations: float = 3.0

    def __post_init__(self) -> None:
        if self.deviations < 0.0:
            raise CalibrationError(f"{self.name}: deviations must not be negative, got {self.deviations}")

    def statistics(self, program: Program) -> Sequence[StatisticRequest]:
        return [
            StatisticRequest(source.node.name, ObserverSpec("moments", axis=source.axis))
            for source, readers in _rectified(program)
            if readers.why_unshiftable() is None
        ]

    def run(self, program: Program, context: PassContext) -> PassResult:
        found = _rectified(program)
        declined = tuple(left_alone(source, reason) for source, readers in found if (reason := readers.why_unshiftable()) is not None)
        if len(declined) == len(found):
            return PassResult(program, False, declined or ("nothing to do: no layer whose rectified result other layers read",))
        work = edit.copy(program)
        done = []
        for source, readers in _rectified(work):
            if readers.why_unshiftable() is None:
                shift = readers.free_shift(self._exceeded(context.statistics[source.node.name]))
                if bool(shift.any()):
                    done.append(f"{source.name}: up to {float(shift.max()):.3g} of {int((shift > 0).sum())} channels absorbed")
                    self._absorb(work.graph_module, source.node, readers, shift)
        if not done:
            return PassResult(program, False, ("nothing to do: no channel stays above zero", *declined))
        edit.erase_dead(work)
        return PassResult(work, True, (*done, *declined))

    def _exceeded(self, seen: Observation) -> torch.Tensor:
        """c of the module's docstring."""
        low, mean, deviation = (torch.tensor(column, dtype=torch.float64) for column in (seen.low, seen.mean, seen.deviation))
        return torch.minimum(mean - self.deviations * deviation, low).clamp(min=0.0)

    def _absorb(self, graph_module: fx.GraphModule, node: fx.Node, readers: Readers, shift: torch.Tensor) -> None:
        layer = as_layer(node)
        assert layer is not None  # _rectified found it
        write_layer(graph_module, layer.add_bias(-shift), self.name)
        take_shift_over(graph_module, readers, shift, self.name)


def _rectified(program: Program) -> list[tuple[Source, Readers]]:
    """Layers whose result only a relu reads, and what reads that."""
    found = []
    for node in edit.calls(program.graph, *CHANNEL_AXIS):
        users = edit.users_of(node)
        if as_layer(node) is not None and len(users) == 1 and edit.is_call(users[0], _aten.relu.default):
            axis = channel_axis(node)
            found.append((Source(node, axis), readers_of(users[0], axis)))
    return found
