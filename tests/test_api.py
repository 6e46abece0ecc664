from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler import api
from qcompiler.errors import (
    ArtifactError,
    CalibrationError,
    QCompilerError,
    TargetError,
    UnknownNameError,
    UnsupportedOpError,
    VerificationError,
)
from qcompiler.ir.program import Program
from qcompiler.ir.types import DynamicSize, Stage
from qcompiler.pipeline.backend import CompiledProgram


class InterpretedProgram:
    """Runs the integer program itself."""

    def __init__(self, program: Program) -> None:
        self.program, self.threads = program, 0

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.program.run_integer(*inputs)

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.program.run(*inputs)

    def set_threads(self, threads: int) -> None:
        self.threads = threads


class InterpretingBackend:
    """A back end that generates nothing: the interface is tested without a compiler."""

    name = "interpreting"
    lacks: str | None = None

    def targets(self) -> Sequence[str]:
        return ("interpreted",)

    def detect(self) -> str:
        return "interpreted"

    def available(self, target: str) -> str | None:
        return self.lacks

    def compile(self, program: Program, target: str, *, keep: Sequence[str] = (), time_limit: float = 60.0) -> CompiledProgram:
        return CompiledProgram(target, {"code.txt": b"none"})

    def load(self, program: Program, compiled: CompiledProgram, threads: int | None = None) -> InterpretedProgram:
        if self.lacks:
            raise TargetError(self.lacks)
        executable = InterpretedProgram(program)
        executable.threads = threads or 0
        return executable


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> InterpretingBackend:
    found = InterpretingBackend()
    monkeypatch.setattr(api, "find_target", lambda target: (found, "interpreted"))
    return found


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)]
        return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(40, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program(model: nn.Module, images: torch.Tensor) -> Program:
    return qc.capture(model, images[:2])


@pytest.fixture(scope="module")
def quantized(program: Program, images: torch.Tensor) -> Program:
    return qc.quantize(program, images)


def test_quantize_ends_on_integers_near_the_float_program(program: Program, quantized: Program, images: torch.Tensor) -> None:
    assert program.stage is Stage.FLOAT and quantized.stage is Stage.INTEGER
    quantized.verify()
    expected = program.run(images)[0]
    assert (quantized.run(images)[0] - expected).abs().max() < 0.05 * expected.abs().max()


def test_options_recipe_files_and_pipelines_say_the_same(program: Program, images: torch.Tensor, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("name: mine\nsummary: as int8\npipeline: canonicalize,quantize{a=7},lower-integer\n")
    texts = {
        qc.quantize(program, images, recipe=recipe).text(),
        qc.quantize(program, images, recipe=recipe, options={"a": 7}).text(),
        qc.quantize(program, images, passes="canonicalize,quantize,lower-integer", options={"quantize.a": 7}).text(),
    }
    assert len(texts) == 1


def test_part_of_a_pipeline_may_be_run(program: Program, images: torch.Tensor) -> None:
    assert qc.quantize(program, images, passes="canonicalize,quantize").stage is Stage.QDQ


def test_mistakes_are_told_before_the_data_are_read(program: Program) -> None:
    def forbidden() -> list[torch.Tensor]:
        raise AssertionError("the data were read")

    for arguments in ({"recipe": "int9"}, {"options": {"quantize.obsever": "mse"}}, {"passes": "canonicalise"}):
        with pytest.raises(UnknownNameError, match="did you mean"):
            qc.quantize(program, forbidden, **arguments)  # type: ignore[arg-type]  # one of several types


def test_data_that_do_not_fit(program: Program) -> None:
    with pytest.raises(CalibrationError, match=r"calibration sample 0, input '.*': expected float32 \[N, 3, 8, 8\]"):
        qc.quantize(program, [torch.zeros(1, 8, 8, 3)])
    with pytest.raises(CalibrationError, match="the calibration data are empty"):
        qc.quantize(program, [])


def test_a_module_runs_saves_and_loads(quantized: Program, images: torch.Tensor, backend: InterpretingBackend, tmp_path: Path) -> None:
    module = qc.compile(quantized)
    assert module.target == "interpreted" and module.program is quantized
    result = module(images)
    assert isinstance(result, torch.Tensor) and torch.equal(result, quantized.run(images)[0])
    integers = quantized.quantize_inputs((images,))
    assert torch.equal(module.run_integer(*integers)[0], quantized.run_integer(*integers)[0])
    module.save(tmp_path / "model.qca")
    loaded = qc.load(tmp_path / "model.qca", threads=2)
    assert torch.equal(loaded(images), result)
    assert loaded.program.text() == quantized.text()
    loaded.save(tmp_path / "again.qca")
    assert (tmp_path / "again.qca").read_bytes() == (tmp_path / "model.qca").read_bytes()


def test_the_same_model_gives_the_same_bytes(model: nn.Module, images: torch.Tensor, backend: InterpretingBackend, tmp_path: Path) -> None:
    for name in ("first.qca", "second.qca"):
        qc.compile(model, images[:2], calibration_data=images.split(8)).save(tmp_path / name)
    assert (tmp_path / "first.qca").read_bytes() == (tmp_path / "second.qca").read_bytes()
    assert api.open_artifact(tmp_path / "first.qca").recipe == "int8"


def test_vectors_come_from_the_samples_and_from_random_integers(quantized: Program, images: torch.Tensor) -> None:
    vectors = api.make_test_vectors(quantized)
    assert len(vectors) == 5
    for position in range(4):
        (expected,) = quantized.quantize_inputs((images[position : position + 1],))
        assert torch.equal(vectors[position].inputs[0], expected)
    assert all(torch.equal(a, b) for v in vectors for a, b in zip(v.outputs, quantized.run_integer(*v.inputs), strict=True))
    noise = vectors[4].inputs[0]
    assert noise.min() < 5 and noise.max() > 250


def test_verify_replays_the_vectors(quantized: Program, backend: InterpretingBackend) -> None:
    module = qc.compile(quantized)
    proven = module.verify()
    assert (proven.vectors, proven.integer_ops) == (5, sum(node.op == "call_function" for node in quantized.graph.nodes))
    wrong = module.vectors[0].outputs[0] + 1
    bad = api.Module(quantized, module.compiled, backend, [api.TestVector(module.vectors[0].inputs, (wrong,))])
    with pytest.raises(VerificationError, match="test vector 0"):
        bad.verify()


def test_code_for_another_machine_is_saved_but_not_run(
    quantized: Program, images: torch.Tensor, backend: InterpretingBackend, tmp_path: Path
) -> None:
    backend.lacks = "this machine lacks everything"
    module = qc.compile(quantized)
    module.save(tmp_path / "model.qca")
    with pytest.raises(TargetError, match="lacks everything"):
        module(images)
    with pytest.raises(TargetError, match="lacks everything"):
        qc.load(tmp_path / "model.qca")
    assert api.open_artifact(tmp_path / "model.qca").program.text() == quantized.text()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"takes 1 input\(s\) \(.*\), got 0"),
        ((torch.zeros(1, 3, 8, 7),), r"expected torch.float32 \[N, 3, 8, 8\], got torch.float32 \[1, 3, 8, 7\]"),
        ((torch.zeros(3, 8, 8),), r"expected torch.float32 \[N, 3, 8, 8\], got torch.float32 \[3, 8, 8\]"),
        ((torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), r"expected torch.float32 .* got torch.uint8"),
        (([[0.0]],), r"input 0 is of type list: pass torch tensors"),
    ],
)
def test_wrong_inputs_never_reach_the_code(
    quantized: Program, backend: InterpretingBackend, inputs: tuple[torch.Tensor, ...], message: str
) -> None:
    module = qc.compile(quantized)
    with pytest.raises(QCompilerError, match=message):
        module(*inputs)
    with pytest.raises(QCompilerError, match=r"expected torch.uint8 \[N, 3, 8, 8\], got torch.float32"):
        module.run_integer(torch.zeros(1, 3, 8, 8))


def test_threads(quantized: Program, backend: InterpretingBackend) -> None:
    module = qc.compile(quantized, threads=1)
    executable = module.executable()
    assert isinstance(executable, InterpretedProgram) and executable.threads == 1
    module.set_threads(2)
    assert executable.threads == 2
    with pytest.raises(QCompilerError, match="threads must be at least 1, got 0"):
        module.set_threads(0)


def test_only_integer_programs_are_compiled(program: Program, images: torch.Tensor, backend: InterpretingBackend) -> None:
    with pytest.raises(CalibrationError, match="at stage float: give calibration_data"):
        qc.compile(program)
    with pytest.raises(QCompilerError, match="the pipeline ends at stage qdq"):
        qc.compile(program, calibration_data=images, passes="canonicalize,quantize")


def test_files_that_are_no_artifacts(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        qc.load(tmp_path / "absent.qca")
    (tmp_path / "text.qca").write_text("not a zip")
    with pytest.raises(ArtifactError):
        qc.load(tmp_path / "text.qca")


def test_unknown_target(quantized: Program) -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'x86-64-v33': did you mean 'x86-64-v3'"):
        qc.compile(quantized, target="x86-64-v33")


class Sentences(nn.Module):
    """Ids to the mean of their rows."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(9, 8), nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(torch.sinh(self.table(ids)).mean(1))
        return result


def test_islands_and_sizes_from_model_to_module(backend: InterpretingBackend) -> None:
    ids = torch.arange(20).reshape(4, 5) % 9
    shapes = {"ids": {1: DynamicSize("length", 1, 16)}}
    with pytest.raises(UnsupportedOpError, match=r"allow_float=\(\"aten.sinh.default\",\)"):
        qc.compile(Sentences().eval(), ids, calibration_data=[ids], dynamic_shapes=shapes)
    module = qc.compile(Sentences().eval(), ids, calibration_data=[ids], dynamic_shapes=shapes, allow_float=["aten.sinh.default"])
    assert module.program.islands == ("sinh_float",)
    assert module(ids[:, :3]).shape == (4, 3)  # type: ignore[union-attr]  # one output
    assert all(int(vector.inputs[0].max()) < 9 for vector in module.vectors)
    with pytest.raises(QCompilerError, match=r"input 'ids' holds 9, but its integers must lie in \[0, 8\]"):
        module(torch.full((1, 4), 9))
