"""The public functions that look at a program without changing it: sensitivity, images for when there are no data, bits.

``qc.quantize(program, data, recipe="mixed", options={"allocate.size": 1e6})`` allocates and gives the quantized program at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.allocation import Allocation
from qcompiler.calibration.data import CalibrationData, DataSource
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Pass, PassContext
from qcompiler.pipeline.executor import Executor, LocalExecutor
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import Progress, default_progress
from qcompiler.pipeline.recipes import choose_passes
from qcompiler.pipeline.registry import find_analysis
from qcompiler.sensitivity import SensitivityTable

if TYPE_CHECKING:
    import torch

__all__ = ["allocate", "pareto_front", "sensitivity", "synthesize"]

# Where a pipeline is cut: what comes before has changed the float program for good.
_DECIDING = ("allocate", "quantize")


def sensitivity(
    program: Program,
    data: DataSource | None = None,
    metric: str = "hessian-trace",
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    *,
    labels: Any = None,
    recipe: str | Path = "int8",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    samples: int = 64,
    batch: int = 16,
    loss: str = "cross-entropy",
    seed: int = 0,
    channels: bool = False,
    workers: int = 1,
    executor: Executor | None = None,
    checkpoint: str | Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """How much the model suffers when one weight or one activation gets few bits, for each of them at each bit-width.

    The passes of the recipe that come before ``allocate`` or ``quantize`` run first, so that names and weights are those that these will
    meet; ``quantize`` says what is rounded and how ranges are found.

    Args:
        program: what ``capture`` gives; left as it is.
        data: as ``quantize`` takes them. None: metrics that look at weights alone.
        metric: one of ``docs/sensitivity.md``, with options as in a pipeline: ``hessian-trace{probes=16}``.
        bits: of 2..8.
        labels: a class number for each sample, in order (tensor, array, or list). None: the float model's own output is the target.
        recipe, options, passes: as ``quantize`` takes them.
        samples: at most so many; 0: all. ``batch``: how many at once, which bounds memory.
        loss: ``cross-entropy`` over the last dimension of the first output, or ``squared-error``.
        seed: of every random choice.
        channels: tell the output channels of weights apart too, where the metric can, for ``allocate.channel_groups``.
        workers: processes, with one thread each. ``executor``: in their place, anything that ``pipeline.executor`` calls an executor.
        checkpoint: folder that keeps finished evaluations, so that a run that was killed continues.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        UnknownNameError: no such metric, recipe, pass or option.
        CalibrationError: data, labels or bits do not fit; the message says how.
        QCompilerError: an evaluation failed; the message names the item.
    """
    prepared = _Prepared.of(program, data, choose_passes(recipe, options, passes), progress)
    measure = find_analysis("sensitivity")
    table: SensitivityTable = measure(
        prepared.program,
        metric,
        prepared.context.data,
        quantize=prepared.quantize,
        bits=tuple(bits),
        labels=labels,
        samples=samples,
        batch=batch,
        loss=loss,
        seed=seed,
        channels=channels,
        executor=executor or LocalExecutor(workers),
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        progress=prepared.context.progress,
    )
    return table


def synthesize(
    program: Program, samples: int = 32, *, batch: int = 32, steps: int = 200, seed: int = 0, progress: Progress | None = None
) -> torch.Tensor:
    """Images [samples, ...] made from the batch norms of a captured model (ZeroQ), for when there are no data.

    Args:
        program: what ``capture`` gives, with one float input; ``canonicalize`` must not have run, since it folds batch norms.
        samples, batch, steps: how many images, how many are made together, and by how many steps of gradient descent.
        seed: the same gives the same images.

    Raises:
        CalibrationError: the program has no batch norms, or other inputs.
    """
    make = find_analysis("synthesize")
    images: torch.Tensor = make(program, samples, batch=batch, steps=steps, seed=seed, progress=progress or default_progress())
    return images


def allocate(
    program: Program,
    data: DataSource | None = None,
    *,
    recipe: str | Path = "mixed",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> Allocation:
    """What the pass ``allocate`` of a recipe would choose; the passes before it run first.

    Args:
        program: what ``capture`` gives; left as it is.
        data: as ``quantize`` takes them; a table, or a metric that looks at weights alone, needs none.
        recipe, options, passes, target: as ``quantize`` takes them; the budgets are options: ``{"allocate.size": 1e6}``.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        AllocationError: no allocation keeps all constraints; the message names those that conflict and the nearest that can be kept.
        UnknownNameError: no such recipe, option, metric or pinned layer.
        TargetError: a latency table of another machine.
    """
    prepared = _Prepared.of(program, data, choose_passes(recipe, options, passes), progress, target)
    found: Allocation = find_analysis("allocation")(prepared.program, prepared.allocate, prepared.context)
    return found


def pareto_front(
    program: Program,
    data: DataSource | None,
    budget: str,
    limits: Sequence[float] | None = None,
    *,
    points: int = 16,
    recipe: str | Path = "mixed",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    target: str | None = None,
    progress: Progress | None = None,
) -> tuple[Allocation, ...]:
    """The best allocation for each of several limits of one budget; sensitivities are measured once.

    Args:
        budget: ``average_weight_bits``, ``size``, ``bops`` or ``latency``. Other budgets among the options hold for every point.
        limits: of that budget; None: ``points`` of them, evenly from the least that is possible to that of the least sensitive allocation.
        program, data, recipe, options, passes, target, progress: as ``allocate`` takes them.

    Raises:
        Whatever ``allocate`` raises.
    """
    prepared = _Prepared.of(program, data, choose_passes(recipe, options, passes), progress, target)
    draw = find_analysis("pareto-front")
    front: tuple[Allocation, ...] = draw(prepared.program, prepared.allocate, budget, limits, points, prepared.context)
    return front


@dataclass(frozen=True)
class _Prepared:
    """A program as the first pass that decides about bits will meet it, and what that pass, the first of ``passes``, may look at."""

    program: Program
    passes: tuple[Pass, ...]
    context: PassContext

    @classmethod
    def of(
        cls, program: Program, data: DataSource | None, passes: Sequence[Pass], progress: Progress | None, target: str | None = None
    ) -> _Prepared:
        """Run the passes before that one."""
        telling = progress or default_progress()
        first = next((position for position, item in enumerate(passes) if item.name in _DECIDING), None)
        if first is None:
            raise QCompilerError("the pipeline has no pass 'allocate' or 'quantize', which decide about bits: add one")
        if any(item.gives is not Stage.FLOAT for item in passes[:first]):
            raise QCompilerError(f"the pipeline leaves stage float before '{passes[first].name}', which takes a float program")
        read = None if data is None else CalibrationData(data, program.inputs)
        prepared = PassManager(passes[:first], progress=telling).run(program, read, target)
        context = PassContext(target=target, data=read, progress=telling, following=tuple(passes[first + 1 :]))
        return cls(prepared, tuple(passes[first:]), context)

    @property
    def allocate(self) -> Pass:
        """The pass that chooses bits."""
        if self.passes[0].name != "allocate":
            raise QCompilerError("the pipeline has no pass 'allocate' before 'quantize': use recipe 'mixed', or add it")
        return self.passes[0]

    @property
    def quantize(self) -> Pass:
        """The pass that says what is rounded."""
        found = next((item for item in self.passes if item.name == "quantize"), None)
        if found is None:
            raise QCompilerError("the pipeline has no pass 'quantize', which says what is rounded: add it")
        return found
