"""One clear line for each way in which an ONNX model cannot be captured."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from qcompiler.capture import capture
from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.types import DynamicSize

Make = Callable[..., onnx.ModelProto]
X, Y = {"x": ["N", 4]}, {"y": ["N", 4]}


def _fails(model: onnx.ModelProto | Path, message: str, **options: object) -> None:
    with pytest.raises(CaptureError, match=message) as caught:
        capture(model, **options)  # type: ignore[arg-type]  # options of the test
    assert "\n" not in str(caught.value)


def test_a_truncated_file(tmp_path: Path, make: Make) -> None:
    path = tmp_path / "cut.onnx"
    data = make([helper.make_node("Relu", ["x"], ["y"], "relu")], X, Y).SerializeToString()
    path.write_bytes(data[: len(data) // 2])
    _fails(path, "cut.onnx: not a readable ONNX file: it is truncated or damaged")
    _fails(tmp_path / "absent.onnx", "absent.onnx: no such file")


def test_a_cycle(make: Make) -> None:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"], "first"), helper.make_node("Relu", ["a"], ["b"], "second")]
    _fails(make([*nodes, helper.make_node("Relu", ["b"], ["y"], "last")], X, Y), "topologically sorted.*first")


def test_an_unknown_op_and_an_unknown_domain(make: Make) -> None:
    _fails(make([helper.make_node("Nonsense", ["x"], ["y"], "here")], X, Y), "No Op registered for Nonsense.*here")
    _fails(make([helper.make_node("Relu", ["x"], ["y"], "here", domain="somewhere")], X, Y), "somewhere")
    known = make([helper.make_node("Relu", ["x"], ["y"], "here", domain="somewhere")], X, Y, somewhere=1)
    _fails(known, re.escape("node 'here' (somewhere.Relu) is not supported"))
    assert issubclass(UnsupportedOpError, CaptureError)


def test_types_that_do_not_fit(make: Make) -> None:
    model = make([helper.make_node("Add", ["x", "c"], ["y"], "sum")], X, Y, {"c": np.ones(4, dtype=np.int64)})
    _fails(model, "node name: sum.*inconsistent type")


def test_shapes_that_do_not_fit(make: Make) -> None:
    model = make([helper.make_node("Reshape", ["x", "s"], ["y"], "view")], {"x": [2, 4]}, Y, {"s": np.array([3, 3])})
    _fails(model, "view")


@pytest.mark.parametrize("size", [0, -5])
def test_sizes_that_are_not_positive(make: Make, size: int) -> None:
    _fails(
        make([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": ["N", size]}, Y), f"input 'x' has the shape .*{size}.*must be positive"
    )


def test_opsets(make: Make) -> None:
    for opset in (1, 6, onnx.defs.onnx_opset_version() + 1):
        _fails(make([helper.make_node("Relu", ["x"], ["y"], "relu")], X, Y, opset=opset), f"opset {opset} is not read")


def test_external_data(tmp_path: Path, make: Make) -> None:
    model = make([helper.make_node("Add", ["x", "w"], ["y"], "sum")], X, Y, {"w": np.arange(4, dtype=np.float32)})
    path = tmp_path / "model" / "m.onnx"
    path.parent.mkdir()
    onnx.save(model, path, save_as_external_data=True, location="weights", size_threshold=0)
    x = torch.ones(3, 4)
    assert torch.equal(capture(path).run(x)[0], x + torch.arange(4.0))
    (path.parent / "weights").write_bytes(b"short")
    _fails(path, "tensor 'w' needs 16 bytes at 0 of 'weights'")
    (path.parent / "weights").unlink()
    _fails(path, "tensor 'w' lies in 'weights', and there is no such file")
    _fails(onnx.load(path, load_external_data=False), "give the path of the model")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link"])
def test_external_data_outside_of_the_folder_are_refused(tmp_path: Path, make: Make, location: str) -> None:
    model = make([helper.make_node("Add", ["x", "w"], ["y"], "sum")], X, Y, {"w": np.arange(4, dtype=np.float32)})
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (folder / "link").symlink_to(tmp_path / "secret")
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    _fails(folder / "m.onnx", "outside of the model's folder")


def test_a_model_on_which_the_inference_of_shapes_aborts(make: Make) -> None:
    """An assertion in C++ ends a process, but not this one."""
    split = helper.make_node("Split", ["x"], ["a", "b"], "split", axis=1, num_outputs=1)
    _fails(make([split, helper.make_node("Add", ["a", "b"], ["y"], "sum")], X, Y), "types or shapes do not fit")


def test_open_sizes_need_a_maximum(make: Make) -> None:
    model = make([helper.make_node("Relu", ["x"], ["y"], "relu")], {"x": ["N", "length"]}, {"y": ["N", "length"]})
    _fails(model, r"input 'x' leaves its dimension 1 \('length'\) open.*dynamic_shapes=\{'x': \{1: number\}\}.*Dim\('length'")
    assert capture(model, dynamic_shapes={"x": {1: 7}}).inputs[0].shape == (None, 7)
    length = DynamicSize("length", 1, 16)
    assert capture(model, dynamic_shapes={0: {1: length}}).outputs[0].shape == (None, length)
    _fails(model, "names the input 'z'", dynamic_shapes={"z": {1: 7}})
    _fails(model, "dimension 0 of the input 'x' is the batch", dynamic_shapes={"x": {0: 7}})


def test_inputs_that_share_no_batch(make: Make) -> None:
    model = make([helper.make_node("Add", ["x", "z"], ["y"], "sum")], {"x": ["N", 4], "z": [1, 4]}, Y)
    _fails(model, "input 'z' has no open batch.*dynamic_batch=False")
    assert capture(model, dynamic_batch=False).inputs[0].shape == (1, 4)


def test_errors_of_later_stages_name_the_node(make: Make) -> None:
    _fails(make([helper.make_node("Sin", ["x"], ["y"], "wave")], X, Y), re.escape("'sin' (aten.sin.default) at node 'wave' (Sin)"))


def test_control_flow_on_values(make: Make) -> None:
    branch = helper.make_graph([helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", 1, None)])
    node = helper.make_node("If", ["c"], ["y"], "choice", then_branch=branch, else_branch=branch)
    model = make([node], {"x": [1, 4], "c": [1]}, Y, types={"c": TensorProto.BOOL})
    _fails(model, r"node 'choice' \(If\) has a condition that depends on the inputs")
