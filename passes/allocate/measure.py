"""From a float program and a metric to a sensitivity table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import CalibrationError, UnknownNameError
from qcompiler.ir.fingerprint import Fingerprint
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.allocate.items import ALLOWED, BITS, Items, find_items
from qcompiler.passes.allocate.metrics.base import REST_BITS, Metric, OutputMetric, make_metric
from qcompiler.passes.allocate.rounding import activation_types
from qcompiler.passes.allocate.study import (
    Labels,
    Loss,
    OpenStudy,
    Study,
    has_single_samples,
    write_program,
    write_samples,
    write_weights,
)
from qcompiler.passes.allocate.table import fingerprint
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.executor import Executor, Ledger, LocalExecutor, Result, run_tasks
from qcompiler.pipeline.progress import Progress, SilentProgress
from qcompiler.sensitivity import Item, SensitivityTable


def measure(
    program: Program,
    metric: Metric | str,
    data: CalibrationData | None,
    *,
    quantize: Quantize | None = None,
    bits: Sequence[int] = BITS,
    labels: Labels = None,
    samples: int = 64,
    batch: int = 16,
    loss: Loss = "cross-entropy",
    seed: int = 0,
    items: Iterable[Item] | None = None,
    channels: bool = False,
    executor: Executor | None = None,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> SensitivityTable:
    """The sensitivity of each item of a FLOAT program at each bit-width.

    Args:
        program: as ``quantize`` will get it: after all passes that change the float graph.
        metric: or its text, such as ``hessian-trace{probes=16}``.
        data: None only for a metric that looks at weights alone; activations are then left out.
        quantize: which values are rounded, how their ranges are found, and which items are fixed.
        bits: 2..8.
        labels: class numbers of the samples in their order [samples, ...], or targets for ``squared-error``. None: the float program's
            own output is the target.
        samples: at most so many; 0: all. batch: at once, which bounds memory.
        loss: of the first output. seed: of every random choice.
        items: those to be measured; None: all candidates.
        channels: tell the output channels of weights apart too, where the metric can (``SensitivityTable.channels``).
        executor: where evaluations run; None: here, one after the other.
        checkpoint: folder that keeps finished evaluations, so that a run that was killed continues. The result is the same for an equal
            number of threads.

    Raises:
        CalibrationError: no data where the metric needs them, data or labels that do not fit, or bits out of range.
        QCompilerError: an evaluation failed; the message names the item or the piece of samples; or the checkpoint is of other work.
    """
    chosen = make_metric(metric) if isinstance(metric, str) else metric
    sampling, progress = _Sampling(samples, batch, loss, seed), progress or SilentProgress()
    _check(program, chosen, data, bits)
    quantize = quantize or Quantize()
    found = _selected(find_items(program, quantize, bits=bits), items, data)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        prepared = _Preparation(program, quantize, found, sampling, Path(folder), progress)
        study, identity = prepared.study(chosen, data, labels, channels)
        ledger = Ledger(checkpoint, identity) if checkpoint else None
        work = Evaluations(study, chosen, program)
        tasks, executor = chosen.tasks(study), executor or LocalExecutor()
        results = run_tasks(work, tasks, executor, ledger=ledger, progress=progress, description=f"measuring {chosen.name}")
        opened = OpenStudy(study, program)
        rows, weights = chosen.rows(opened, results), chosen.channel_weights(opened, results)
    settings = {
        **chosen.settings(),
        "samples": str(study.samples),
        "seed": str(seed),
        "labels": "given" if study.labelled else "own output",
    }
    if chosen.labels == "optional":
        settings["loss"] = loss
    return SensitivityTable(chosen.name, fingerprint(program), {key: float(value) for key, value in rows.items()}, settings, weights)


def measure_together(
    program: Program,
    metric: OutputMetric,
    data: CalibrationData,
    allocation: Mapping[Item, int],
    *,
    quantize: Quantize | None = None,
    labels: Labels = None,
    samples: int = 64,
    batch: int = 16,
    loss: Loss = "cross-entropy",
    progress: Progress | None = None,
) -> float:
    """What a metric of the outputs says of an allocation: all its items rounded at once, all others in float.

    Arguments and errors are those of ``measure``. Compare with the sum of the table's rows to see how far sensitivities add up.
    """
    _check(program, metric, data, tuple(allocation.values()))
    quantize = quantize or Quantize()
    items = find_items(program, quantize, include_fixed=True)
    chosen = {items.find(item.name, item.kind)[0]: bits for item, bits in allocation.items()}
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        candidates = {item: replace(items.candidates[item], bits=(bits,)) for item, bits in chosen.items()}
        sampling = _Sampling(samples, batch, loss, 0)
        prepared = _Preparation(
            program, quantize, replace(items, candidates=candidates), sampling, Path(folder), progress or SilentProgress()
        )
        study, _ = prepared.study(metric, data, labels)
        return metric.together(OpenStudy(study, program), chosen)


@dataclass(frozen=True)
class Evaluations:
    """The work of one metric on one study, as executors take it.

    Workers of this process and its forks have the program as it is. It goes into the folder when the work is first sent elsewhere.
    """

    study: Study
    metric: Metric
    program: Program | None = field(default=None, compare=False, repr=False)

    def open(self) -> Callable[[str], Result]:
        """The function that does tasks; maps the program where it is not at hand."""
        opened = OpenStudy(self.study, self.program)
        return lambda task: self.metric.do(opened, task)

    def __reduce__(self) -> tuple[type[Evaluations], tuple[Study, Metric]]:
        if self.program is not None:
            write_program(self.study.folder, self.program)
        return Evaluations, (self.study, self.metric)


@dataclass(frozen=True)
class _Sampling:
    """Which samples are looked at, and how the loss is measured on them; see ``measure``."""

    samples: int
    batch: int
    loss: Loss
    seed: int

    def __post_init__(self) -> None:
        if self.samples < 0 or self.batch < 1:
            raise CalibrationError(f"samples must be 0 (all) or more and batch 1 or more, got {self.samples} and {self.batch}")
        if self.loss not in get_args(Loss):
            raise UnknownNameError("loss", self.loss, get_args(Loss))


@dataclass(frozen=True)
class _Preparation:
    """What is written and decided before the first evaluation."""

    program: Program
    quantize: Quantize
    items: Items
    sampling: _Sampling
    folder: Path
    progress: Progress

    def study(self, metric: Metric, data: CalibrationData | None, labels: Labels, channels: bool = False) -> tuple[Study, str]:
        """The study, and a hash of all that its results depend on."""
        sampling, used = self.sampling, labels if metric.labels == "optional" else None
        pieces: tuple[int, ...] = ()
        samples = ""
        if data is not None:
            pieces, samples = write_samples(self.folder, self.program, data, used, sampling.samples, sampling.batch, self.progress)
        bits = {item: candidate.bits for item, candidate in self.items.candidates.items()}
        widths = self._widths(metric, bits)
        types = {} if data is None else activation_types(self.program, self.items, self.quantize, data, widths, self.progress)
        types |= write_weights(self.folder, self.program, self.items, self.quantize, widths, types)
        single = has_single_samples(self.program)
        chosen = (self.quantize, types, bits, pieces, single, used is not None, sampling.loss, sampling.seed, channels)
        study = Study(self.folder, self.items, *chosen)
        identity = Fingerprint()
        facts = (repr(metric), repr(sampling), repr(self.quantize), repr(bits), repr(types), samples, fingerprint(self.program))
        for text in (*facts, *(["channels"] if channels else [])):
            identity.add_text(text)
        return study, identity.hexdigest()

    def _widths(self, metric: Metric, bits: Mapping[Item, tuple[int, ...]]) -> dict[Item, tuple[int, ...]]:
        """The bit-widths at which types are needed: those that are measured, and what the rest of the network has."""
        if not isinstance(metric, OutputMetric) or metric.rest == "float":
            return dict(bits)
        rest = {item: self.items.fixed.get(item, REST_BITS) for item in self.items.sizes}
        return {item: tuple(sorted({*bits.get(item, ()), width})) for item, width in rest.items()}


def _check(program: Program, metric: Metric, data: CalibrationData | None, bits: Sequence[int]) -> None:
    if program.stage is not Stage.FLOAT:
        raise CalibrationError(f"the program is at stage {program.stage.value}: sensitivity is measured at stage float, before 'quantize'")
    if data is None and metric.needs_data:
        raise CalibrationError(f"metric '{metric.name}' looks at samples: give calibration data, or images that 'synthesize' makes")
    if not bits or any(width not in ALLOWED for width in bits):
        raise CalibrationError(f"bits must be among 2..8, got {', '.join(map(str, bits)) or 'none'}")


def _selected(items: Items, chosen: Iterable[Item] | None, data: CalibrationData | None) -> Items:
    """The items to be measured; all others count as if they had no bits of their own. Without data these are weights."""
    wanted = items.candidates if chosen is None else {item: items.candidates[items.find(item.name, item.kind)[0]] for item in chosen}
    kept = {item: candidate for item, candidate in wanted.items() if item.kind == "weight" or data is not None}
    if not kept:
        raise CalibrationError("there is nothing to measure: no layer has a constant weight, or their bits are all fixed by options")
    return replace(items, candidates=kept)
