from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

Command = Callable[..., Any]


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
        ({"calibration": "absent.npz"}, "data file 'absent.npz': no such file"),
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


def test_an_op_that_may_stay_in_float(folder: Path, command: Command) -> None:
    refused = command(*compile_arguments(model="my_models:with_sinh"))
    assert refused.status == 1 and "aten.sinh.default" in refused.err and "allow_float" in refused.err
    done = command(*compile_arguments(model="my_models:with_sinh"), "--allow-float", "aten.sinh.default")
    assert done.status == 0, done.err
    assert re.search(r"\d+ integer ops, 3 float ops", done.out) and "stays in float: 'sinh_float'" in done.out
    verified = command("verify", "model.qca")
    assert verified.status == 0 and "islands sinh_float" in verified.out
