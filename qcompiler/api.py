"""The public functions: capture, quantize, compile, load, export_onnx; and Module, what they end in."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qcompiler import artifact
from qcompiler.artifact import TestVector, Verification
from qcompiler.calibration.data import CalibrationData, DataSource
from qcompiler.capture import Model, capture
from qcompiler.capture.dynamic import DynamicShapes
from qcompiler.errors import CalibrationError, QCompilerError, TargetError
from qcompiler.ir.inputs import check_signature, signature
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.sizes import concrete_shape
from qcompiler.ir.types import Stage
from qcompiler.pipeline.backend import Backend, CompiledProgram, Executable, Profiler, StepTime
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.instruments import Instrument
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import Progress, default_progress
from qcompiler.pipeline.recipes import choose_passes, load_recipe
from qcompiler.pipeline.registry import find_exporter, find_target
from qcompiler.pipeline.text import parse_pipeline

__all__ = ["Module", "Verification", "capture", "compile", "export_onnx", "load", "quantize"]


def quantize(
    program: Program,
    calibration_data: DataSource | None = None,
    recipe: str | Path = "int8",
    options: Mapping[str, object] | None = None,
    *,
    passes: str | Sequence[Pass] | None = None,
    allow_float: Sequence[str] = (),
    instruments: Sequence[Instrument] = (),
    target: str | None = None,
    progress: Progress | None = None,
) -> Program:
    """Run a recipe: from a FLOAT program to an INTEGER one, with a few samples kept for the artifact's test vectors.

    A program at stage QDQ, as ``capture`` gives it of a model that was quantized elsewhere, has its scales already: of the recipe
    it takes the part from ``lower-integer`` on, after ``canonicalize-qdq``, and needs no data. Its requantizations have the form ``high``
    unless ``options`` say otherwise, so that the integers are those of the tool that made the scales.

    Args:
        program: what ``capture`` gives; left as it is.
        calibration_data: an iterable of inputs like those the model will meet, each a tensor or a tuple with one entry for each input;
            or a tensor of samples; or a function that gives such an iterable. 100 to 1000 samples are usual. None: a program at stage
            QDQ needs none.
        recipe: name of a built-in recipe, or path of a ``.yaml`` file.
        options: replace options of the recipe, such as ``{"quantize.a": 8}``, or ``{"observer": "mse"}`` where that is unambiguous.
        passes: a pipeline, as text or as passes, in place of the recipe's.
        allow_float: full names of ops ("aten.sin.default") that may stay in float, each between a dequantize and a quantize. The notes
            list them, ``Program.islands`` names them. Ops that ``capture`` let through for this reason are allowed anyway.
        instruments: see ``qcompiler.pipeline.instruments``.
        target: what code will be generated for, where a pass asks: ``allocate`` for the latencies of its budget. None: this machine.
        progress: who is told; by default a bar where standard error is a terminal, else nobody.

    Raises:
        UnknownNameError: no such recipe, pass or option.
        CalibrationError: the data are empty, non-finite or do not fit the program's inputs.
        UnsupportedOpError: the model uses an op that cannot be quantized or lowered.
        VerificationError: a range cannot be proven; the message says of which layer and what to change.
    """
    chosen = _allowing(choose_passes(recipe, options, passes), allow_float)
    if program.stage is Stage.FLOAT and calibration_data is None:
        raise CalibrationError(f"the program is at stage {program.stage.value}: give calibration_data to quantize it")
    if program.stage is Stage.QDQ and passes is None:
        chosen = _from_qdq(chosen, options or {})
    data = None if calibration_data is None else CalibrationData(calibration_data, program.inputs)
    samples = () if data is None else data.samples()
    manager = PassManager(chosen, instruments=instruments, progress=progress or default_progress())
    return manager.run(program, data, target).replace(samples=samples)


def compile(
    model: Program | Model,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    dynamic_shapes: DynamicShapes | None = None,
    calibration_data: DataSource | None = None,
    recipe: str | Path = "int8",
    options: Mapping[str, object] | None = None,
    passes: str | Sequence[Pass] | None = None,
    allow_float: Sequence[str] = (),
    instruments: Sequence[Instrument] = (),
    target: str = "native",
    threads: int | None = None,
    time_limit: float = 60.0,
    progress: Progress | None = None,
) -> Module:
    """Generate code for a target, from an INTEGER program or all the way from a model.

    Args:
        model: a program, or what ``capture`` takes; unless it is an INTEGER program it is quantized first, which needs data if it is at
            stage FLOAT.
        example_inputs, dynamic_shapes: as ``capture`` takes them.
        calibration_data, recipe, options, passes, allow_float, instruments, progress: as ``quantize`` takes them.
        target: ``native`` (the best of this machine) or one of ``qcompiler targets``; it need not be one that this machine can run.
        threads: how many threads a call uses; None: as many as this process may run on.
        time_limit: seconds that a single kernel may take to compile.

    Raises:
        UnknownNameError: no such target.
        TargetError: a kernel could not be compiled, or not in time.
        Whatever ``capture`` and ``quantize`` raise.
    """
    backend, target = find_target(target)
    program = _captured(model, example_inputs, dynamic_shapes, allow_float)
    recipe_name = ""
    if program.stage is not Stage.INTEGER:
        recipe_name = load_recipe(recipe).name if passes is None else ""
        if calibration_data is None and program.stage is Stage.FLOAT:
            raise CalibrationError(f"the program is at stage {program.stage.value}: give calibration_data, or quantize it first")
        given = {"passes": passes, "allow_float": allow_float, "instruments": instruments, "progress": progress, "target": target}
        program = quantize(program, calibration_data, recipe, options, **given)  # type: ignore[arg-type]  # as this function takes them
    if program.stage is not Stage.INTEGER:
        raise QCompilerError(f"the pipeline ends at stage {program.stage.value}: only an integer program has code; add 'lower-integer'")
    (progress or default_progress()).say(f"generating code for target {target}")
    compiled = backend.compile(program, target, time_limit=time_limit)
    return Module(program, compiled, backend, make_test_vectors(program), threads, recipe_name)


def export_onnx(program: Program, path: str | Path, format: str = "integer", opset: int | None = None) -> None:
    """Write a program as an ONNX file, in one step: a failure leaves an older file as it was.

    Args:
        program: at stage INTEGER for ``integer``, QDQ for ``qdq`` (``quantize`` with ``passes`` that end before ``lower-integer``), FLOAT
            for ``float``, which is written in the form that ``canonicalize`` gives.
        path: where the file goes; weights of more than 2 GB go beside it, into ``path`` + ``.data``.
        format: ``integer``: standard ops on integers between QuantizeLinear and DequantizeLinear, which give the very integers of
            ``program.run_integer``; ``qdq``: float ops between pairs of QuantizeLinear and DequantizeLinear, for runtimes that fuse
            those; ``float``.
        opset: from 13 to the newest that ``onnx`` knows; None: 21.

    Raises:
        UnknownNameError: no such format.
        QCompilerError: the program is at another stage; says what to do.
        UnsupportedOpError: an op has no form in ONNX, or none in that opset; names the node.
        ArtifactError: the file cannot be written.
    """
    exporter = find_exporter("onnx")
    exporter.check(format, opset)
    if exporter.stage(format) is Stage.FLOAT and program.stage is Stage.FLOAT:
        program = PassManager(parse_pipeline("canonicalize")).run(program)
    exporter.export(program, Path(path), format, opset)


def load(path: str | Path, threads: int | None = None) -> Module:
    """Read a ``.qca`` file and make it runnable. No code is loaded before every hash in the file was found right.

    Raises:
        ArtifactError: the file is missing, damaged, or of a version that this release does not know.
        TargetError: this machine cannot run the file's target; the message says what it lacks.
    """
    module = open_artifact(path, threads)
    module.executable()
    return module


def open_artifact(path: str | Path, threads: int | None = None) -> Module:
    """As ``load``, for a target of any machine: the code is loaded when the module is first run."""
    content = artifact.read(path)
    backend, _ = find_target(content.compiled.target)
    return Module(content.program, content.compiled, backend, content.vectors, threads, content.recipe)


_REMEMBERED_SIGNATURES = 64  # of inputs that were found to be right


class Module:
    """A compiled program: float in, float out, integers in between. Batches of any size run sample by sample."""

    def __init__(
        self,
        program: Program,
        compiled: CompiledProgram,
        backend: Backend,
        vectors: Sequence[TestVector],
        threads: int | None = None,
        recipe: str = "",
    ) -> None:
        self.program = program
        self.compiled = compiled
        self.vectors = tuple(vectors)
        self.recipe = recipe
        self._backend, self._threads = backend, threads
        self._executable: Executable | None = None
        self._check = functools.lru_cache(_REMEMBERED_SIGNATURES)(functools.partial(check_signature, program.inputs, "module"))

    @property
    def target(self) -> str:
        """The instruction set that the code is for."""
        return self.compiled.target

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Floats in, floats out, as ``Program.__call__``; a single output is returned bare.

        Raises:
            QCompilerError: the inputs do not have the number, shapes and dtypes of ``program.inputs``.
            TargetError: this machine cannot run the target.
        """
        self._check(False, signature(inputs))
        outputs = self.executable().run(*inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The bare integers, in and out; equal to ``program.run_integer`` on every target."""
        self._check(True, signature(inputs))
        return self.executable().run_integer(*inputs)

    def set_threads(self, threads: int) -> None:
        """Use that many threads from the next call on; results do not depend on it."""
        if threads < 1:
            raise QCompilerError(f"threads must be at least 1, got {threads}")
        self._threads = threads
        if self._executable is not None:
            self._executable.set_threads(threads)

    def profile(self, *inputs: torch.Tensor, runs: int = 10) -> tuple[StepTime, ...]:
        """Median time of each step of a call on these inputs, in the order of execution; ``measure.split`` adds them up by kind.

        Raises:
            QCompilerError: as ``__call__``.
            TargetError: code for this target has no steps of its own.
        """
        self._check(False, signature(inputs))
        executable = self.executable()
        if not isinstance(executable, Profiler):
            raise TargetError(f"code for target {self.target} has no steps to be timed: compile for another target")
        return executable.profile(*inputs, runs=runs)

    def save(self, path: str | Path) -> None:
        """Write the artifact. The same module gives the same bytes; a failure leaves no file behind.

        Raises:
            ArtifactError: the file cannot be written.
        """
        artifact.write(path, self.program, self.compiled, self.vectors, self.recipe)

    def verify(self) -> Verification:
        """Prove again that the program is integer-only and cannot overflow, and replay the test vectors here, comparing exactly.

        Raises:
            VerificationError: a proof fails, or a vector comes out differently from the stored integers.
        """
        return artifact.verify(self.program, self.vectors, self.executable())

    def executable(self) -> Executable:
        """The loaded code."""
        if self._executable is None:
            self._executable = self._backend.load(self.program, self.compiled, self._threads)
        return self._executable


def make_test_vectors(program: Program) -> tuple[TestVector, ...]:
    """Quantized inputs and the reference's outputs: of the program's samples, and of one input of seeded random integers."""
    inputs = [program.quantize_inputs(sample) for sample in program.samples]
    generator = torch.Generator().manual_seed(0)
    inputs.append(tuple(_random_integers(spec, generator) for spec in program.inputs))
    return tuple(TestVector(values, program.run_integer(*values)) for values in inputs)


def _random_integers(spec: ValueSpec, generator: torch.Generator) -> torch.Tensor:
    """One sample over the whole range of the input's integers; zeros where the user gives integers, of unknown range."""
    shape = concrete_shape(spec.shape)
    if spec.quantized is not None:
        kind = spec.quantized.integer
        return torch.randint(kind.low, kind.high + 1, shape, generator=generator).to(kind.dtype)
    if spec.range is not None:
        return torch.randint(spec.range.low, spec.range.high + 1, shape, generator=generator).to(spec.dtype)
    return torch.zeros(shape, dtype=spec.dtype)


# Instead of forms that are taken unless something else is said: those that come nearest to the tool that made the scales.
_FORMS_OF_QDQ = {"requantize": ("auto", "high"), "softmax": ("table", "auto"), "activation": ("table", "auto")}


def _from_qdq(passes: Sequence[Pass], options: Mapping[str, object]) -> list[Pass]:
    """What is left of a pipeline for a program that has its scales: all from the pass that lowers it on."""
    stated = {key.rpartition(".")[2] for key in options}
    for option, (usual, form) in _FORMS_OF_QDQ.items():
        if option not in stated:
            passes = [replace(item, **{option: form}) if item.options().get(option) == usual else item for item in passes]
    first = next((position for position, item in enumerate(passes) if item.takes is Stage.QDQ and item.gives is Stage.INTEGER), None)
    if first is None:
        raise QCompilerError("the program is at stage qdq, and the pipeline has no pass from there to integer: add 'lower-integer'")
    return [*parse_pipeline("canonicalize-qdq,quantize-rest"), *passes[first:]]


def _allowing(passes: Sequence[Pass], allow_float: Sequence[str]) -> list[Pass]:
    """The passes, those with an option ``allow_float`` with more ops in it."""
    return [
        replace(item, allow_float=tuple(dict.fromkeys([*item.options()["allow_float"], *allow_float])))  # type: ignore[call-arg,misc]  # it has
        if allow_float and "allow_float" in item.options()
        else item
        for item in passes
    ]


def _captured(
    model: Program | Model,
    example_inputs: torch.Tensor | Sequence[torch.Tensor] | None,
    dynamic_shapes: DynamicShapes | None,
    allow_float: Sequence[str],
) -> Program:
    if isinstance(model, Program):
        return model
    return capture(model, example_inputs, dynamic_shapes=dynamic_shapes, allow_float=tuple(allow_float))
