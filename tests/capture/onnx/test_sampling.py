"""TopK, GridSample, Col2Im and Scan at stage FLOAT; the first two have no integer form: declined by name, or float islands."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper

import qcompiler as qc
from qcompiler.capture import capture
from qcompiler.errors import CaptureError, QCompilerError, UnsupportedOpError

Make = Callable[..., onnx.ModelProto]
SORTED = ("aten.argsort.stable", "aten.gather.default")


def top(make: Make, axis: int, count: int = 2, **attributes: int) -> onnx.ModelProto:
    node = helper.make_node("TopK", ["x", "k"], ["values", "positions"], "top", axis=axis, **attributes)
    return make(
        [node],
        {"x": ["N", 5]},
        {"values": ["a", "b"], "positions": ["a", "b"]},
        {"k": np.array([count])},
        types={"positions": TensorProto.INT64},
    )


def test_equal_elements_come_in_the_order_of_their_positions(make: Make) -> None:
    x = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0], [2.0, 2.0, 0.0, 2.0, 0.0]])
    values, positions = capture(top(make, -1, 3), allow_float=SORTED).run(x)
    assert values.tolist() == [[3.0, 3.0, 3.0], [2.0, 2.0, 2.0]] and positions.tolist() == [[1, 2, 4], [0, 1, 3]]
    values, positions = capture(top(make, 1, 2, largest=0), allow_float=SORTED).run(x)
    assert values.tolist() == [[0.0, 1.0], [0.0, 0.0]] and positions.tolist() == [[3, 0], [2, 4]]


def test_sorting_has_no_integer_form_and_never_mixes_samples(make: Make) -> None:
    with pytest.raises(UnsupportedOpError, match=r"aten\.argsort\.stable\).*'top' \(TopK\).*allow_float"):
        capture(top(make, 1))
    with pytest.raises(QCompilerError, match=r"argsort|gather"):
        qc.quantize(capture(top(make, 1), allow_float=SORTED), [torch.randn(4, 5)])
    with pytest.raises(CaptureError, match="mixes the samples"):
        capture(top(make, 0, 2), allow_float=SORTED)
    with pytest.raises(CaptureError, match="'top' .*takes 6 along axis 1"):
        capture(top(make, 1, 6), allow_float=SORTED)


@pytest.mark.parametrize("padding", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("mode", ["linear", "nearest", "cubic"])
def test_samples_at_computed_positions(make: Make, mode: str, padding: str) -> None:
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], "sample", mode=mode, padding_mode=padding, align_corners=1)
    model = make([node], {"x": ["N", 2, 5, 6], "grid": ["N", 3, 4, 2]}, {"y": ["N", 2, 3, 4]}, opset=20)
    with pytest.raises(UnsupportedOpError, match=r"'sample' \(GridSample\).*allow_float"):
        capture(model)
    program = capture(model, allow_float=("aten.grid_sampler.default",))
    x, grid = torch.randn(3, 2, 5, 6), torch.rand(3, 3, 4, 2) * 3 - 1.5
    old = {"linear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}[mode]
    assert torch.equal(program(x, grid), F.grid_sample(x, grid, old, padding, True))
    if (mode, padding) == ("linear", "zeros"):
        assert len(qc.quantize(program, [(x, grid)]).islands) == len(program.islands) == 1


def test_cubic_sampling_of_a_volume_is_declined(make: Make) -> None:
    node = helper.make_node("GridSample", ["x", "grid"], ["y"], "sample", mode="cubic")
    model = make([node], {"x": ["N", 2, 5, 6, 4], "grid": ["N", 3, 4, 2, 3]}, {"y": ["N", 2, 3, 4, 2]}, opset=20)
    with pytest.raises(CaptureError, match="'sample' .*5 dimensions by mode 'cubic'"):
        capture(model)


@pytest.mark.parametrize(("strides", "dilations", "padding"), [((1, 1), (1, 1), 0), ((2, 3), (1, 2), 1), ((3, 2), (2, 1), 2)])
def test_windows_add_up_to_an_image(make: Make, strides: tuple[int, int], dilations: tuple[int, int], padding: int) -> None:
    image, block = (7, 8), (3, 2)
    columns = F.unfold(torch.randn(2, 3, *image), block, dilations, padding, strides)
    attributes = {"strides": strides, "dilations": dilations, "pads": [padding] * 4}
    node = helper.make_node("Col2Im", ["x", "image", "block"], ["y"], "add", **attributes)
    constants = {"image": np.array(image), "block": np.array(block)}
    program = capture(make([node], {"x": ["N", *columns.shape[1:]]}, {"y": ["N", 3, *image]}, constants))
    expected = F.fold(columns, image, block, dilations, padding, strides)
    torch.testing.assert_close(program(columns), expected)


def test_windows_have_an_integer_form(make: Make) -> None:
    """A transposed convolution with ones: what INTEGER adds to the rounding of input and output is the rounding of a scale."""
    node = helper.make_node("Col2Im", ["x", "image", "block"], ["y"], "add", strides=[2, 2])
    constants = {"image": np.array([6, 6]), "block": np.array([3, 3])}
    program = capture(make([node], {"x": ["N", 18, 4]}, {"y": ["N", 2, 6, 6]}, constants))
    x = torch.randn(16, 18, 4)
    integer, expected = qc.quantize(program, [x]), program(x)
    step = 2 * float(expected.abs().max()) / 255
    assert float((integer(x) - expected).abs().max()) <= 4 * float(x.abs().max()) / 255 + 2 * step


def scan(make: Make, length: int, **attributes: object) -> onnx.ModelProto:
    """The running sum of rows."""
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [helper.make_node("Add", ["state", "row"], ["next"]), helper.make_node("Identity", ["next"], ["out"])],
        "body",
        [info(name, TensorProto.FLOAT, None) for name in ("state", "row")],
        [info(name, TensorProto.FLOAT, None) for name in ("next", "out")],
    )
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["zeros_like"], keepdims=0),
        helper.make_node("Mul", ["zeros_like", "zero"], ["first"]),
        helper.make_node("Scan", ["first", "x"], ["last", "y"], "scan", body=body, num_scan_inputs=1, **attributes),
    ]
    constants = {"axes": np.array([1]), "zero": np.zeros((), np.float32)}
    return make(nodes, {"x": ["N", length, 3]}, {"last": ["N", 3], "y": ["a", "b", 3]}, constants)


def test_scans_are_written_out(make: Make) -> None:
    x = torch.randn(2, 4, 3)
    last, sums = capture(scan(make, 4, scan_input_axes=[1], scan_output_axes=[1])).run(x)
    torch.testing.assert_close(sums, x.cumsum(1))
    torch.testing.assert_close(last, x.sum(1))
    backwards = {"scan_input_directions": [1], "scan_output_directions": [1]}
    _, sums = capture(scan(make, 4, scan_input_axes=[1], scan_output_axes=[1], **backwards)).run(x)
    torch.testing.assert_close(sums, x.flip(1).cumsum(1).flip(1))


def test_scans_of_many_or_unknown_turns_are_declined(make: Make) -> None:
    with pytest.raises(CaptureError, match="'scan' .*more than 256 turns"):
        capture(scan(make, 300, scan_input_axes=[1]))
    with pytest.raises(CaptureError, match="'scan' .*must be known"):
        capture(scan(make, 4))
