"""How long the layers of a model take on a machine at each bit-width: measured in place, kept, saved, and added up to predict a latency.

    predicted = rest + sum over layers of the time of its kernels at (bits of the weight, bits of the value that it reads)

A layer is timed inside a compiled program in which all layers have these bits, so that its inputs are as warm as they will be. Layers with
the same kernel are one measurement: its mean. ``rest`` is everything else, the call itself included. Times are the least of many: other
work on the machine only adds to them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import qcompiler
from qcompiler import api, native
from qcompiler.cache import cache_folder
from qcompiler.calibration.data import DataSource
from qcompiler.errors import CalibrationError, QCompilerError, TargetError
from qcompiler.files import replacing
from qcompiler.ir import edit
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.sizes import concrete_shape
from qcompiler.ir.types import Stage
from qcompiler.measure import latency
from qcompiler.pipeline.backend import Executable, Profiler, StepTime, Versioned
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.progress import Progress, SilentProgress, default_progress
from qcompiler.pipeline.recipes import choose_passes, override
from qcompiler.pipeline.registry import find_target

_qc = torch.ops.qc

Pair = tuple[int, int]
"""Bits of a weight, and of the value that its layer reads."""

_FORMAT = 1
_REPEATS = 5
_PROFILES, _RUNS = 10, 3
_CALL_SECONDS = 0.2
_SAMPLES = 32
_SUFFIX = "_accumulator"  # what lowering adds to the name of a layer


@dataclass(frozen=True)
class Machine:
    """What times depend on besides the program."""

    cpu: str
    features: tuple[str, ...]
    target: str
    threads: int
    qcompiler: str
    backend: str

    @classmethod
    def here(cls, target: str = "native", threads: int | None = None) -> Machine:
        """This machine. ``threads`` None: as many as this process may run on.

        Raises:
            UnknownNameError: no such target.
        """
        backend, name = find_target(target)
        version = backend.version if isinstance(backend, Versioned) else ""
        count = threads or len(os.sched_getaffinity(0))
        features = tuple(sorted(native.cpu_features()))
        return cls(_cpu_model(), features, name, count, qcompiler.__version__, f"{backend.name} {version}".strip())

    def difference(self, other: Machine) -> str | None:
        """The first thing in which two differ, in words; None: nothing."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if mine != theirs:
                return f"{_WORDS[field.name]} {_shown(mine)} in place of {_shown(theirs)}"
        return None

    @property
    def digest(self) -> str:
        """A name for files."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:16]


_WORDS = {
    "cpu": "the CPU",
    "features": "instruction sets",
    "target": "target",
    "threads": "threads",
    "qcompiler": "qcompiler",
    "backend": "back end",
}


@dataclass(frozen=True)
class LatencyTable:
    """Times of kernels, and which of them each layer uses.

    kernels: seconds by name. layers: name -> bits -> names of its kernels. rest: seconds of everything else in a call with one sample.
    """

    machine: Machine
    kernels: Mapping[str, float]
    layers: Mapping[str, Mapping[Pair, tuple[str, ...]]]
    rest: float

    def seconds(self, layer: str, weight: int, activation: int) -> float:
        """Of a layer. Bits that were not measured take the time of the next wider ones that were.

        Raises:
            CalibrationError: the layer or so wide a type was not measured.
        """
        found = self.layers.get(layer)
        if found is None:
            raise CalibrationError(
                f"the latency table has no layer '{layer}': it was measured on another model, or after other passes: profile again"
            )
        wide_enough = [pair for pair in found if pair[0] >= weight and pair[1] >= activation]
        if not wide_enough:
            known = ", ".join(f"W{w}A{a}" for w, a in sorted(found))
            raise CalibrationError(f"the latency table has no W{weight}A{activation} for layer '{layer}' (it has {known}): profile it")
        return sum(self.kernels[name] for name in found[min(wide_enough)])

    def predict(self, bits: Mapping[str, Pair]) -> float:
        """Seconds of a call with one sample whose layers have these bits; all layers of the table must be given."""
        missing = sorted(self.layers.keys() - bits.keys())
        if missing:
            raise CalibrationError(f"the prediction lacks the bits of layer '{missing[0]}'")
        return self.rest + sum(self.seconds(layer, *pair) for layer, pair in bits.items())

    def check_machine(self, here: Machine) -> None:
        """Guard before a table is used.

        Raises:
            TargetError: it was measured elsewhere, for another target, number of threads or version.
        """
        difference = self.machine.difference(here)
        if difference is not None:
            raise TargetError(f"the latency table was measured with {difference}: run 'qcompiler profile' here")

    def save(self, path: str | Path) -> None:
        """Write as JSON, all or nothing; ``load`` gives an equal table.

        Raises:
            CalibrationError: the file cannot be written.
        """
        layers = {name: {f"{w}x{a}": list(kernels) for (w, a), kernels in pairs.items()} for name, pairs in self.layers.items()}
        machine = dataclasses.asdict(self.machine)
        content = {"format": _FORMAT, "machine": machine, "rest": self.rest, "kernels": dict(self.kernels), "layers": layers}
        try:
            _write(Path(path), content)
        except OSError as error:
            raise CalibrationError(f"cannot write the latency table '{path}': {error.strerror}") from error

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read what ``save`` wrote.

        Raises:
            CalibrationError: the file is missing or no latency table.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CalibrationError(f"latency table '{path}' cannot be read: {error}") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CalibrationError(f"'{path}' is no latency table of format {_FORMAT}: run 'qcompiler profile' to make one")
        try:
            return _from_json(content)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CalibrationError(f"latency table '{path}' is damaged ({type(error).__name__}: {error}): profile again") from error


def profile(
    program: Program,
    calibration_data: DataSource | None = None,
    *,
    recipe: str | Path = "int8",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    weight_bits: Sequence[int] = (2, 4, 8),
    activation_bits: Sequence[int] = (8,),
    target: str = "native",
    threads: int | None = None,
    fresh: bool = False,
    progress: Progress | None = None,
) -> LatencyTable:
    """Time the layers of a FLOAT program on this machine at each bit-width.

    One program for each pair of bits is quantized, compiled and timed. Kernels that were timed before are taken from the cache
    (``cache.cache_folder``), which has a file for each machine, target, number of threads and version.

    Args:
        program: what ``capture`` gives.
        calibration_data: as ``quantize`` takes them; None: random numbers, as times do not depend on values.
        recipe, options, passes: what brings the program to integers, as ``quantize`` takes them. Passes that choose bits or integers of
            weights are left out.
        weight_bits, activation_bits: which ones; each layer is timed at every pair.
        target, threads: as ``compile`` takes them; this machine must be able to run the target.
        fresh: time all kernels anew.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        UnknownNameError: no such target, recipe or option.
        TargetError: this machine cannot run the target, or its code cannot be timed step by step.
        QCompilerError: no bits are asked for, or the program is at another stage.
        Whatever ``quantize`` raises.
    """
    if program.stage is not Stage.FLOAT:
        raise QCompilerError(f"the program is at stage {program.stage.value}: profile takes what capture gives")
    if not weight_bits or not activation_bits:
        raise QCompilerError("no bits to profile: give one or more for weights and for activations each")
    machine = Machine.here(target, threads)
    telling = progress or default_progress()
    pairs = [(weight, activation) for weight in sorted(weight_bits) for activation in sorted(activation_bits)]
    data = calibration_data if calibration_data is not None else _random_batch(program.inputs)
    chosen = _without_choices(choose_passes(recipe, options, passes))
    timed = {}
    for pair in telling.track(pairs, "compiling at each bit-width", len(pairs)):
        timed[pair] = _Timed(_quantized(program, data, chosen, pair), machine)
    cache = _Cache(machine, fresh)
    _time_all([item for item in timed.values() if not cache.knows(item)], cache, telling)
    layers = {name: {pair: item.kernels_of[name] for pair, item in timed.items()} for name in timed[pairs[-1]].kernels_of}
    names = {name for item in timed.values() for name in item.layer_kernels}
    return LatencyTable(machine, {name: cache.kernels[name] for name in sorted(names)}, layers, cache.rest[timed[pairs[-1]].digest])


# ---- measuring --------------------------------------------------------------------------------------------------------------------


class _Timed:
    """One program, loaded: which kernels each of its layers uses, and its times so far (the least of each)."""

    def __init__(self, program: Program, machine: Machine) -> None:
        backend, _ = find_target(machine.target)
        self._executable: Executable = backend.load(program, backend.compile(program, machine.target), machine.threads)
        self._inputs = program.samples[0]
        layers = {
            node.name: node.name.removesuffix(_SUFFIX) for node in edit.calls(program.graph, _qc.convolution.default, _qc.linear.default)
        }
        steps = self._steps(runs=1)
        self._layers_of_step = [tuple(dict.fromkeys(layers[node] for node in step.nodes if node in layers)) for step in steps]
        # Of layers that one kernel computes, each is given an equal part of its time, under a name of its own.
        self._names = [
            f"{step.kernel}/{len(owners)}" if len(owners) > 1 else step.kernel
            for step, owners in zip(steps, self._layers_of_step, strict=True)
        ]
        self.kernels_of: dict[str, tuple[str, ...]] = {
            layer: tuple(name for name, owners in zip(self._names, self._layers_of_step, strict=True) if layer in owners)
            for layer in layers.values()
        }
        self._seconds = [float("inf")] * len(steps)
        self._call = float("inf")

    @property
    def layer_kernels(self) -> set[str]:
        return {name for names in self.kernels_of.values() for name in names}

    @property
    def digest(self) -> str:
        """Of the whole sequence of kernels."""
        return hashlib.sha256(" ".join(self._names).encode()).hexdigest()[:16]

    def measure(self) -> None:
        """Once more."""
        for _ in range(_PROFILES):
            self._seconds = [min(old, step.seconds) for old, step in zip(self._seconds, self._steps(_RUNS), strict=True)]
        self._call = min(self._call, latency(lambda: self._executable.run(*self._inputs), _CALL_SECONDS).fastest)

    def kernel_times(self) -> dict[str, float]:
        """The mean of each kernel over the layers that use it."""
        times: dict[str, list[float]] = {}
        for name, owners, seconds in zip(self._names, self._layers_of_step, self._seconds, strict=True):
            if owners:
                times.setdefault(name, []).append(seconds / len(owners))
        return {name: statistics.fmean(found) for name, found in times.items()}

    def rest(self) -> float:
        """What a call takes besides the kernels of its layers."""
        inside = sum(seconds for seconds, owners in zip(self._seconds, self._layers_of_step, strict=True) if owners)
        return max(self._call - inside, 0.0)

    def _steps(self, runs: int) -> tuple[StepTime, ...]:
        if not isinstance(self._executable, Profiler):
            raise TargetError("code for this target has no steps to be timed: profile another target")
        return self._executable.profile(*self._inputs, runs=runs)


class _Cache:
    """Times that were measured on a machine, in a file of its own; one that cannot be written is not used."""

    def __init__(self, machine: Machine, fresh: bool) -> None:
        self._path = cache_folder() / "latency" / f"{machine.digest}.json"
        self.kernels: dict[str, float] = {}
        self.rest: dict[str, float] = {}
        if not fresh:
            self._read()

    def knows(self, item: _Timed) -> bool:
        """Whether nothing of a program has to be timed."""
        return item.digest in self.rest and item.layer_kernels <= self.kernels.keys()

    def add(self, items: Iterable[_Timed]) -> None:
        """Keep the times of these programs."""
        for item in items:
            self.kernels |= item.kernel_times()
            self.rest[item.digest] = item.rest()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            _write(self._path, {"kernels": self.kernels, "rest": self.rest})
        except OSError:
            return

    def _read(self) -> None:
        try:
            content = json.loads(self._path.read_text(encoding="utf-8"))
            self.kernels, self.rest = dict(content["kernels"]), dict(content["rest"])
        except (OSError, ValueError, KeyError, TypeError):
            return


def _time_all(items: Sequence[_Timed], cache: _Cache, progress: Progress) -> None:
    """In turn, so that what disturbs the machine for a while disturbs all alike."""
    rounds = [item for _ in range(_REPEATS) for item in items]
    for item in progress.track(rounds, "timing", len(rounds)):
        item.measure()
    if items:
        cache.add(items)


def _quantized(program: Program, data: DataSource, passes: Sequence[Pass], pair: Pair) -> Program:
    weight, activation = pair
    uniform = override(passes, {"quantize.w": weight, "quantize.a": activation})
    return api.quantize(program, data, passes=uniform, progress=SilentProgress())


def _without_choices(passes: Sequence[Pass]) -> list[Pass]:
    """Of a recipe: not what chooses bits or weights, which decides nothing about how long a kernel takes."""
    return [item for item in passes if not (item.takes is item.gives is Stage.QDQ) and item.name != "allocate"]


def _random_batch(specs: Sequence[ValueSpec]) -> Callable[[], Iterator[tuple[torch.Tensor, ...]]]:
    """Normal numbers; of integers 0 and 1, which ids and masks may be."""

    def batches() -> Iterator[tuple[torch.Tensor, ...]]:
        generator = torch.Generator().manual_seed(0)
        yield tuple(_random_values(spec, generator) for spec in specs)

    return batches


def _random_values(spec: ValueSpec, generator: torch.Generator) -> torch.Tensor:
    shape = concrete_shape(spec.shape, _SAMPLES)
    if spec.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(spec.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(spec.dtype)


# ---- this machine, files ----------------------------------------------------------------------------------------------------------


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else f"'{value}'"


def _from_json(content: Mapping[str, Any]) -> LatencyTable:
    machine = Machine(**{**content["machine"], "features": tuple(content["machine"]["features"])})
    kernels = {str(name): float(seconds) for name, seconds in content["kernels"].items()}
    layers = {
        str(name): {_pair(text): tuple(map(str, names)) for text, names in pairs.items()} for name, pairs in content["layers"].items()
    }
    unknown = {name for pairs in layers.values() for names in pairs.values() for name in names} - kernels.keys()
    if unknown:
        raise ValueError(f"kernel '{min(unknown)}' has no time")
    return LatencyTable(machine, kernels, layers, float(content["rest"]))


def _pair(text: str) -> Pair:
    weight, _, activation = text.partition("x")
    return int(weight), int(activation)


def _write(path: Path, content: object) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
