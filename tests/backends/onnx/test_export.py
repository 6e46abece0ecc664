"""Files: what they carry, what is refused, how they are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

import qcompiler as qc
from qcompiler.backends.onnx import files, integer
from qcompiler.backends.onnx.export import export, make_model, newest_opset
from qcompiler.backends.onnx.files import checked
from qcompiler.errors import ArtifactError, QCompilerError, UnknownNameError, UnsupportedOpError, VerificationError
from qcompiler.ir.program import Program
from qcompiler.pipeline.registry import find_exporter

INPUT = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("format", ["integer", "qdq", "float"])
def test_files_name_their_maker_and_the_users_lines(format: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    program = request.getfixturevalue(f"small_{format}")
    qc.export_onnx(program, tmp_path / "m.onnx", format)
    model = onnx.load(tmp_path / "m.onnx")
    assert (model.producer_name, model.producer_version, model.opset_import[0].version) == ("qcompiler", qc.__version__, 21)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["qcompiler.stage"] == program.stage.value
    names = [record["name"] for record in json.loads(metadata["qcompiler.history"])]
    assert names[: len(program.history)] == [record.name for record in program.history]
    compute = next(node for node in model.graph.node if node.op_type in ("Conv", "ConvInteger"))
    assert compute.name.startswith("conv2d") and "[module 0]" in compute.doc_string
    assert [entry.name for entry in model.graph.input] == [spec.name for spec in program.inputs]
    assert [entry.name for entry in model.graph.output] == [spec.name for spec in program.outputs]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_integer_files_equal_the_program(small_integer: Program, session: Any, tmp_path: Path) -> None:
    for opset in (13, 17, 21, 26):
        export(small_integer, tmp_path / "m.onnx", "integer", opset)
        assert torch.equal(small_integer.run(INPUT)[0], session(tmp_path / "m.onnx")(INPUT)[0])


def test_the_newest_opset_is_written(small_integer: Program, small_qdq: Program, small_float: Program, tmp_path: Path) -> None:
    """onnx checks it; onnxruntime may not know it yet."""
    for program, format in ((small_integer, "integer"), (small_qdq, "qdq"), (small_float, "float")):
        qc.export_onnx(program, tmp_path / "m.onnx", format, newest_opset())


def test_the_same_program_gives_the_same_bytes(small_integer: Program, tmp_path: Path) -> None:
    for name in ("a", "b"):
        qc.export_onnx(small_integer, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_other_stages_are_refused_with_the_way_out(
    small_float: Program, small_qdq: Program, small_integer: Program, tmp_path: Path
) -> None:
    path = tmp_path / "m.onnx"
    with pytest.raises(
        QCompilerError, match="stage float, but format 'integer' is written from stage integer: export format 'float', or quant"
    ):
        qc.export_onnx(small_float, path)
    with pytest.raises(QCompilerError, match="lower it with the pass 'lower-integer'"):
        qc.export_onnx(small_qdq, path, "float")
    with pytest.raises(QCompilerError, match="a pipeline that ends before 'lower-integer'"):
        qc.export_onnx(small_integer, path, "qdq")
    with pytest.raises(UnknownNameError, match="unknown format 'qqd': did you mean 'qdq'"):
        qc.export_onnx(small_qdq, path, "qqd")
    for opset in (12, newest_opset() + 1):
        with pytest.raises(QCompilerError, match=f"opset {opset} cannot be written: use 13 to {newest_opset()}"):
            qc.export_onnx(small_integer, path, opset=opset)
    assert not list(tmp_path.iterdir())


def test_the_exporter_is_found_by_its_name() -> None:
    assert find_exporter("onnx").formats == ("integer", "qdq", "float")
    with pytest.raises(UnknownNameError, match="unknown exporter 'onxx': did you mean 'onnx'"):
        find_exporter("onxx")


class Island(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.relu(x + 0.5))


def test_float_islands_have_no_place(tmp_path: Path) -> None:
    program = qc.capture(Island(), INPUT, allow_float=("aten.sin.default",))
    quantized = qc.quantize(program, [INPUT], allow_float=("aten.sin.default",))
    with pytest.raises(UnsupportedOpError, match="float islands \\(sin_float\\), for which an integer-only file has no place"):
        qc.export_onnx(quantized, tmp_path / "m.onnx")
    with pytest.raises(UnsupportedOpError, match=r"'sin' \(aten.sin.default\) at test_export.py:\d+ in forward.*has no ONNX writer"):
        qc.export_onnx(program, tmp_path / "m.onnx", "float")
    assert not list(tmp_path.iterdir())


def test_the_checker_finds_floats_between_the_borders(small_integer: Program) -> None:
    model = checked(make_model(small_integer, "integer"))
    assert integer.float_values(model) == []
    position, node = next((i, node) for i, node in enumerate(model.graph.node) if node.op_type == "ConvInteger")
    there = onnx.helper.make_node("Cast", [node.output[0]], ["as_float"], to=onnx.TensorProto.FLOAT)
    back = onnx.helper.make_node("Cast", ["as_float"], ["as_integer"], to=onnx.TensorProto.INT32, doc_string="planted")
    reader = model.graph.node[position + 1]
    reader.input[list(reader.input).index(node.output[0])] = "as_integer"
    model.graph.node.insert(position + 1, there)
    model.graph.node.insert(position + 2, back)
    assert integer.float_values(model) == ["as_float"]
    with pytest.raises(VerificationError, match="'as_float' is a float tensor between the borders"):
        integer.check_integer_only(model)


def test_the_checker_finds_what_leaves_a_border_early(small_integer: Program) -> None:
    """The float that QuantizeLinear reads is read by another node as well."""
    model = checked(make_model(small_integer, "integer"))
    scaled = next(node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear")
    model.graph.node.append(onnx.helper.make_node("Relu", [scaled], ["early"]))
    assert set(integer.float_values(model)) == {scaled, "early"}


def test_large_weights_lie_beside_the_file(small_integer: Program, session: Any, tmp_path: Path) -> None:
    model = make_model(small_integer, "integer")
    files.write(model, tmp_path / "m.onnx", integer.check_integer_only, largest=100)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "m.onnx.data"}
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    assert torch.equal(small_integer.run(INPUT)[0], session(tmp_path / "m.onnx")(INPUT)[0])


def test_a_failure_leaves_the_older_file(small_integer: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.onnx"
    path.write_text("older")

    def refuse(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(ArtifactError, match="cannot write '.*m.onnx': No space left on device"):
        qc.export_onnx(small_integer, path)
    assert path.read_text() == "older" and list(tmp_path.iterdir()) == [path]


def test_what_a_check_refuses_never_appears(small_integer: Program, tmp_path: Path) -> None:
    def refuse(proto: onnx.ModelProto) -> None:
        raise VerificationError(f"{len(proto.graph.node)} nodes")

    with pytest.raises(VerificationError, match="nodes"):
        files.write(make_model(small_integer, "integer"), tmp_path / "m.onnx", refuse, largest=100)
    assert not list(tmp_path.iterdir())


def test_there_must_be_a_folder(small_integer: Program, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot write '.*nowhere/m.onnx': No such file or directory"):
        qc.export_onnx(small_integer, tmp_path / "nowhere" / "m.onnx")
