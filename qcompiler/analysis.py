"""The public functions that look at a program without changing it: sensitivity, and images for when there are no data."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.calibration.data import CalibrationData, DataSource
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.executor import Executor, LocalExecutor
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import Progress, SilentProgress, TerminalProgress
from qcompiler.pipeline.recipes import load_recipe, override
from qcompiler.pipeline.registry import find_analysis
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import SensitivityTable

if TYPE_CHECKING:
    import torch

__all__ = ["sensitivity", "synthesize"]

# Where a pipeline is cut: what comes before has changed the float program for good.
_CONSUMERS = ("allocate", "quantize")


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
        workers: processes, with one thread each. ``executor``: in their place, anything that ``pipeline.executor`` calls an executor.
        checkpoint: folder that keeps finished evaluations, so that a run that was killed continues.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        UnknownNameError: no such metric, recipe, pass or option.
        CalibrationError: data, labels or bits do not fit; the message says how.
        QCompilerError: an evaluation failed; the message names the item.
    """
    progress = progress or (TerminalProgress() if sys.stderr.isatty() else SilentProgress())
    chosen = load_recipe(recipe).passes(options) if passes is None else _overridden(passes, options or {})
    before, quantize = _split(chosen)
    read = None if data is None else CalibrationData(data, program.inputs)
    prepared = PassManager(before, progress=progress).run(program, read)
    measure = find_analysis("sensitivity")
    table: SensitivityTable = measure(
        prepared,
        metric,
        read,
        quantize=quantize,
        bits=tuple(bits),
        labels=labels,
        samples=samples,
        batch=batch,
        loss=loss,
        seed=seed,
        executor=executor or LocalExecutor(workers),
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        progress=progress,
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
    progress = progress or (TerminalProgress() if sys.stderr.isatty() else SilentProgress())
    images: torch.Tensor = find_analysis("synthesize")(program, samples, batch=batch, steps=steps, seed=seed, progress=progress)
    return images


def _overridden(passes: str | Sequence[Pass], options: Mapping[str, object]) -> list[Pass]:
    return override(parse_pipeline(passes) if isinstance(passes, str) else passes, options)


def _split(passes: Sequence[Pass]) -> tuple[list[Pass], Pass]:
    """The passes before bits are decided, and the pass that rounds."""
    names = [item.name for item in passes]
    if "quantize" not in names:
        raise QCompilerError("the pipeline has no pass 'quantize', which says what is rounded: add it")
    first = min(position for position, name in enumerate(names) if name in _CONSUMERS)
    before = list(passes[:first])
    if any(item.gives is not Stage.FLOAT for item in before):
        raise QCompilerError("the pipeline leaves stage float before 'quantize': sensitivity is measured on a float program")
    return before, passes[names.index("quantize")]
