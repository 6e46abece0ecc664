from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler import cli

MODELS = """
import torch
from torch import nn

def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()

def with_example():
    return small(), (torch.zeros(1, 3, 8, 8),)

def branching():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x
    return Branching().eval(), (torch.zeros(1, 3, 8, 8),)

def with_sinh():
    class Sinh(nn.Module):
        def forward(self, x):
            return torch.sinh(x)
    return nn.Sequential(small(), Sinh(), nn.Linear(4, 4)).eval()

def failing():
    raise RuntimeError("no\\nweights")
"""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder of the command: a module of models, and data."""
    (tmp_path / "my_models.py").write_text(MODELS)
    images = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "images.npz", images)
    images[17, 0, 0, 0] = np.nan
    np.savez(tmp_path / "nan.npz", images)
    np.savez(tmp_path / "channels_last.npz", images.transpose(0, 2, 3, 1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_models", raising=False)
    return tmp_path


@pytest.fixture
def command(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """``qcompiler`` with these arguments, in this process."""

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["qcompiler", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return Ended(int(end.value.code or 0), printed.out, printed.err)

    return run


def compile_arguments(**changes: str) -> list[str]:
    options = {"model": "my_models:small", "calibration": "images.npz", "output": "model.qca"} | changes
    model = options.pop("model")
    return ["compile", model, *(part for name, value in options.items() for part in (f"--{name}", value))]


def test_from_model_to_artifact_and_back(folder: Path, command: Command) -> None:
    done = command(*compile_arguments(), "--dump-ir", "dump", "--sqnr", "--verbose")
    assert done.status == 0, done.err
    assert re.search(r"model.qca: .* MB, target x86-64-\S+, \d+ integer ops, 0 float ops", done.out)
    assert re.search(r"SQNR after lower-integer: \d\d\.\d dB", done.out)
    assert (folder / "dump" / "00-input.txt").exists() and (folder / "dump" / "04-quantize.json").exists()

    inspected = command("inspect", "model.qca")
    assert inspected.status == 0 and "recipe int8" in inspected.out and "pass lower-integer" in inspected.out
    assert "qc.convolution" in command("inspect", "model.qca", "--text").out

    verified = command("verify", "model.qca")
    assert verified.status == 0 and re.search(r"integer-only: proven \(\d+ integer ops, 0 float ops\)", verified.out)

    ran = command("run", "model.qca", "images.npz", "-o", "outputs.npz", "--threads", "1")
    assert ran.status == 0 and "[24, 4] float32" in ran.out
    with np.load("outputs.npz") as outputs:
        (result,) = (outputs[name] for name in outputs.files)
    sys.path.insert(0, str(folder))
    import my_models

    sys.path.remove(str(folder))
    with np.load("images.npz") as images, torch.no_grad():
        expected = my_models.small()(torch.from_numpy(images["arr_0"])).numpy()
    assert np.abs(result - expected).max() < 0.05 * np.abs(expected).max()

    assert re.search(r"batch 1: median [\d.]+ ms", command("bench", "model.qca", "--seconds", "0.05").out)

    size = (folder / "model.qca").stat().st_size
    (folder / "cut.qca").write_bytes((folder / "model.qca").read_bytes()[: size // 2])
    for name in ("verify", "inspect", "bench"):
        cut = command(name, "cut.qca")
        assert cut.status == 1 and len(cut.err.splitlines()) == 1 and cut.err.startswith("error: ")


def test_open_sizes_of_an_onnx_file(command: Command, folder: Path) -> None:
    helper = pytest.importorskip("onnx.helper")
    x, y = (helper.make_tensor_value_info(name, 1, ["N", "length", 4]) for name in "xy")
    weight = helper.make_tensor("w", 1, [4, 4], np.linspace(-1, 1, 16).tolist())
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], "product"), helper.make_node("Relu", ["p"], ["y"], "relu")]
    graph = helper.make_graph(nodes, "rows", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    (folder / "rows.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "rows.npz", np.random.default_rng(0).standard_normal((8, 6, 4)).astype(np.float32))
    given = ("compile", "rows.onnx", "--calibration", "rows.npz", "-o", "rows.qca", "--target", "reference")
    asked = command(*given)
    assert asked.status == 1 and "input 'x' leaves its dimension 1 ('length') open" in asked.err
    for size, shown in (("x[1]=6", "6, 4"), ("x[1]=1..8", "x_1 (1 to 8), 4"), ("x[1]=words:2..8", "words (2 to 8), 4")):
        assert command(*given, "--size", size).status == 0
        assert shown in command("inspect", "rows.qca").out
    wrong = command(*given, "--size", "x=7")
    assert wrong.status == 2 and "--size takes INPUT[DIM]=NUMBER" in wrong.err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "absent.pt2"}, "absent.pt2: no such file"),
        ({"model": "model.onnx"}, "model.onnx: no such file"),
        ({"model": "no_such_module:small"}, "model 'no_such_module:small' cannot be made: ModuleNotFoundError"),
        ({"model": "my_models:big"}, "model 'my_models:big' cannot be made: AttributeError"),
        ({"model": "my_models:failing"}, "model 'my_models:failing' cannot be made: RuntimeError: no weights"),
        ({"model": "my_models:branching"}, "control flow"),
        ({"calibration": "absent.npz"}, "calibration file 'absent.npz': no such file"),
        ({"calibration": "nan.npz"}, "calibration sample 0, input 'input_1': 1 of 4608 values are NaN or infinite"),
        (
            {"calibration": "channels_last.npz", "model": "my_models:with_example"},
            "expected float32 [N, 3, 8, 8], got float32 [24, 8, 8, 3]",
        ),
        ({"recipe": "int9"}, "unknown recipe 'int9': did you mean 'int8'?"),
        ({"recipe": "absent.yaml"}, "recipe 'absent.yaml' cannot be read"),
        ({"passes": "canonicalise,quantize"}, "unknown pass 'canonicalise': did you mean 'canonicalize'?"),
        ({"passes": "quantize{w=8"}, "pipeline, column 13: expected '}', got the end"),
        ({"passes": "canonicalize,quantize{obsever=mse}"}, "unknown option of pass 'quantize': 'obsever': did you mean 'observer'?"),
        ({"option": "quantize.b=8"}, "unknown option 'quantize.b': did you mean 'quantize."),
        ({"option": "quantize.a=many"}, "pass 'quantize', option 'a': expected an integer, got 'many'"),
        ({"target": "x86-64-v33"}, "unknown target 'x86-64-v33': did you mean 'x86-64-v3'?"),
        ({"output": "absent/model.qca"}, "cannot write 'absent/model.qca': there is no folder 'absent'"),
        ({"output": "."}, "it is a folder"),
    ],
)
def test_a_mistake_is_one_clear_line_and_leaves_no_file(folder: Path, command: Command, changes: dict[str, str], message: str) -> None:
    before = set(folder.iterdir())
    done = command(*compile_arguments(**changes))
    assert done.status == 1
    assert message in done.err
    assert done.err.startswith("error: ") and len(done.err.splitlines()) == 1
    assert {path for path in folder.iterdir() if path.name != "__pycache__"} == before


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compile"],
        ["compile", "my_models:small"],
        ["no-such-command"],
        ["verify"],
        compile_arguments(option="novalue"),
        ["--no-such-flag"],
    ],
)
def test_wrong_usage_is_status_2(command: Command, arguments: list[str]) -> None:
    assert command(*arguments).status == 2


def test_traceback_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["qcompiler", "verify", "absent.qca", "--traceback"])
    with pytest.raises(cli.ArtifactError):
        cli.main()


def test_a_defect_of_ours_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble() -> None:
        raise KeyError("axis")

    monkeypatch.setattr("qcompiler.pipeline.registry.pass_names", stumble)
    done = command("passes")
    assert (done.status, done.err) == (1, "error: internal error, please report it with --traceback: KeyError: 'axis'\n")


def test_lists(command: Command) -> None:
    assert re.search(r"^quantize  \(float -> qdq, lossy\)$", command("passes").out, re.MULTILINE)
    assert "    w: an integer [8]" in command("passes").out
    assert re.search(r"^int8: ", command("recipes").out, re.MULTILINE)
    targets = command("targets").out
    assert "x86-64-v3: " in targets and targets.count("(native)") == 1


def test_help_is_quick_and_imports_no_torch() -> None:
    script = "import sys, atexit; sys.argv = ['qcompiler', '--help']; atexit.register(lambda: print('torch' in sys.modules));"
    script += "from qcompiler import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for name in ("compile", "run", "inspect", "verify", "bench", "passes", "recipes", "targets"):
        assert f"  {name} " in done.stdout


def test_an_op_that_may_stay_in_float(folder: Path, command: Command) -> None:
    refused = command(*compile_arguments(model="my_models:with_sinh"))
    assert refused.status == 1 and "aten.sinh.default" in refused.err and "allow_float" in refused.err
    done = command(*compile_arguments(model="my_models:with_sinh"), "--allow-float", "aten.sinh.default")
    assert done.status == 0, done.err
    assert re.search(r"\d+ integer ops, 3 float ops", done.out) and "stays in float: 'sinh_float'" in done.out
    verified = command("verify", "model.qca")
    assert verified.status == 0 and "islands sinh_float" in verified.out


def test_sensitivity_tables_are_measured_and_compared(command: Command, folder: Path) -> None:
    np.save(folder / "labels.npy", np.arange(24) % 4)
    for name, metric in (("first.csv", "hessian-trace{probes=2}"), ("second.json", "fisher")):
        done = command(
            *("sensitivity", "my_models:small", "--calibration", "images.npz", "--metric", metric, "--bits", "4,8", "-o", name),
            *("--labels", "labels.npy", "--workers", "2", "--checkpoint", f"kept-{name}"),
        )
        assert done.status == 0, done.err
        assert done.out.endswith(f"{name}: {metric.partition('{')[0]} of 2 weights and 3 activations at 4, 8 bits\n")
    compared = command("correlate", "first.csv", "second.json", "--bits", "4", "--kind", "activation")
    assert re.fullmatch(r"activations at 4 bits: Spearman [+-][\d.]+, Kendall [+-][\d.]+, 3 rows\n", compared.out), compared.err
    (folder / "other.csv").write_text("kind,name,bits,sensitivity\nweight,other,4,1\n")
    refused = command("correlate", "first.csv", "other.csv")
    assert refused.status == 1 and refused.err.startswith("error: 'first.csv' and 'other.csv' have no such rows in common: measure one")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--metric", "fishy"], 1, "error: unknown metric 'fishy': did you mean 'fisher'?"),
        (["--metric", "fisher", "--synthesize", "4"], 1, "error: images cannot be synthesized: the program has no batch norm"),
        (["--metric", "fisher", "--calibration", "nan.npz"], 1, "1 of 4608 values are NaN or infinite"),
        (
            ["--metric", "fisher", "--calibration", "images.npz", "--labels", "images.npz"],
            1,
            "labels 'images.npz' are several arrays: give a .npy",
        ),
        (["--metric", "fisher"], 1, "error: metric 'fisher' looks at samples: give calibration data"),
        (["--metric", "fisher", "--bits", "4;8"], 2, "--bits takes numbers from 2 to 8 with commas"),
        (["--metric", "fisher", "-o", "table.txt"], 2, "the table is written as .json or .csv"),
    ],
)
def test_sensitivity_mistakes(command: Command, folder: Path, arguments: list[str], status: int, message: str) -> None:
    done = command("sensitivity", "my_models:with_example", "-o", "table.json", *arguments)
    assert done.status == status and message in " ".join(done.err.split()), done.err
    assert not list(folder.glob("table.*"))


def test_profile_writes_a_latency_table(command: Command, folder: Path) -> None:
    ended = command("profile", "my_models:with_example", "-o", "table.json", "--bits", "4,8", "--threads", "1", "--target", "x86-64-v3")
    assert ended.status == 0, ended.err
    assert "table.json: 2 layers" in ended.out and "W4A8 everywhere: " in ended.out and "W8A8 everywhere: " in ended.out
    assert set(json.loads((folder / "table.json").read_text())["layers"]) == {"conv2d", "linear"}


def test_profile_names_mistakes_before_it_works(command: Command) -> None:
    assert "no folder 'nowhere'" in command("profile", "my_models:with_example", "-o", "nowhere/table.json").err
    assert command("profile", "my_models:with_example", "-o", "table.json", "--bits", "9").status == 2
    assert "unknown target 'x87'" in command("profile", "my_models:with_example", "-o", "table.json", "--target", "x87").err
