"""Values of some nodes over the calibration data, a bounded number of rows of each, drawn evenly from all batches."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program

ROWS = 2048


def sample_rows(program: Program, axes: Mapping[str, int], data: CalibrationData | None, asked_by: str) -> dict[str, torch.Tensor]:
    """For each node its values as rows [at most ``ROWS``, channels], float32; ``axes``: of the channels, from the last dimension.

    Memory is that of one batch and twice the rows. Which rows are kept follows from the shapes alone.

    Raises:
        CalibrationError: there are no data.
    """
    if data is None:
        raise CalibrationError(f"{asked_by}: this kind of rotation follows the data: give calibration data, or take kind=randomized")
    recorder = _Recorder(program, axes)
    with torch.no_grad():
        for batch in data:
            recorder.run(*batch)
    if not all(kept.rows for kept in recorder.kept.values()):
        raise CalibrationError(f"{asked_by}: the calibration data are empty")
    return {name: torch.cat(kept.rows) for name, kept in recorder.kept.items()}


class _Kept:
    """Every ``stride``-th row; where there are too many, every second of these is dropped."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []
        self.stride, self._next, self._seen = 1, 0, 0

    def add(self, rows: torch.Tensor) -> None:
        first = self._next - self._seen
        self._seen += rows.shape[0]
        if first >= rows.shape[0]:
            return
        taken = rows[first :: self.stride].float().clone()
        self.rows.append(taken)
        self._next += taken.shape[0] * self.stride
        self._thin()

    def _thin(self) -> None:
        while sum(part.shape[0] for part in self.rows) > ROWS:
            whole = torch.cat(self.rows)
            self.rows = [whole[::2].clone()]
            self._next += self.stride * (whole.shape[0] % 2)  # the last row stayed: the next one is two strides on
            self.stride *= 2


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps rows of some values."""

    def __init__(self, program: Program, axes: Mapping[str, int]) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True)
        self.extra_traceback = False
        self._axes = axes
        self.kept = {name: _Kept() for name in axes}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self._axes and isinstance(value, torch.Tensor):
            moved = value.movedim(self._axes[n.name], -1)
            self.kept[n.name].add(moved.reshape(-1, moved.shape[-1]))
        return value
