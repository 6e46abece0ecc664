"""Quantized ONNX ops at capture: integers of weights are kept, parameters are those of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

import qcompiler as qc
from qcompiler.capture import capture
from qcompiler.errors import CaptureError, UnsupportedOpError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage

Make = Callable[..., onnx.ModelProto]
TYPES = {"int8": TensorProto.INT8, "uint8": TensorProto.UINT8, "int16": TensorProto.INT16, "uint16": TensorProto.UINT16}


def pair(make: Make, zero_point: np.ndarray, scale: object, shape: list[object], axis: int = 1, **more: int) -> onnx.ModelProto:
    """x -> QuantizeLinear -> DequantizeLinear -> y."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize", axis=axis, **more),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize", axis=axis, **more),
    ]
    return make(nodes, {"x": shape}, {"y": shape}, {"s": np.array(scale, np.float32), "z": zero_point}, opset=21)


def calls(program: Program, name: str) -> list[torch.fx.Node]:
    return [node for node in program.graph.nodes if str(node.target) == f"qc.{name}.default"]


@pytest.mark.parametrize(("dtype", "bits", "signed"), [("int8", 8, True), ("uint8", 8, False), ("int16", 16, True), ("uint16", 16, False)])
def test_rounds_half_to_even_and_saturates(make: Make, dtype: str, bits: int, signed: bool) -> None:
    kind = np.iinfo(dtype)
    zero_point = 3
    program = capture(pair(make, np.array(zero_point, dtype), 0.5, ["N", 6]))
    program.verify()
    (quantize,) = calls(program, "quantize")
    assert program.stage is Stage.QDQ
    assert quantize.args[1:] == ([0.5], [zero_point], -1, bits, signed)
    x = torch.tensor([[0.25, 0.75, -0.25, -0.75, 1e9, -1e9]])
    expected = torch.tensor([0, 2, 0, -2, kind.max - zero_point, kind.min - zero_point]) * 0.5
    assert torch.equal(program(x)[0], expected.float())


def test_one_scale_for_each_channel(make: Make) -> None:
    program = capture(pair(make, np.array([0, 10, 20], np.uint8), [1.0, 2.0, 4.0], ["N", 3, 2]))
    (quantize,) = calls(program, "quantize")
    assert quantize.args[1:4] == ([1.0, 2.0, 4.0], [0, 10, 20], 1)
    assert torch.equal(program(torch.full((1, 3, 2), 5.0))[0, :, 0], torch.tensor([5.0, 4.0, 4.0]))


def test_one_scale_for_each_block(make: Make) -> None:
    model = pair(make, np.zeros((1, 2), np.int8), [[1.0, 4.0]], [1, 3], axis=1, block_size=2)
    assert torch.equal(
        capture(model, dynamic_batch=False, allow_float=("aten.round.default",))(torch.tensor([[1.2, 2.6, 7.0]])),
        torch.tensor([[1.0, 3.0, 8.0]]),
    )


def layer(make: Make, weight: np.ndarray, zero_point: object, bias: bool = False, **types: int) -> onnx.ModelProto:
    """x -> Q -> DQ -> MatMul with DQ(weight), and a sum with DQ(int32)."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], "weight", axis=1),
        helper.make_node("MatMul", ["d", "dw"], ["p"], "product"),
        helper.make_node("DequantizeLinear", ["b", "sb"], ["db"], "bias"),
        helper.make_node("Add", ["p", "db"], ["y"], "sum"),
    ]
    constants = {
        "s": np.float32(0.1),
        "z": np.array(0, np.int8),
        "w": weight,
        "sw": np.float32(0.25),
        "zw": np.array(zero_point, weight.dtype),
        "b": np.arange(weight.shape[1], dtype=np.int32),
        "sb": np.float32(0.025),
    }
    return make(nodes, {"x": ["N", weight.shape[0]]}, {"y": ["N", weight.shape[1]]}, constants, opset=21)


def test_weights_and_biases_stay_integers(make: Make) -> None:
    weight = np.arange(-6, 6, dtype=np.int8).reshape(4, 3)
    program = capture(layer(make, weight, 0))
    constants = {tensor.dtype: tensor for _, tensor in program.graph_module.named_buffers()}
    assert torch.equal(constants[torch.int8], torch.from_numpy(weight))
    assert torch.equal(constants[torch.int32], torch.arange(3, dtype=torch.int32))


def test_four_bits_take_a_byte_each(make: Make) -> None:
    model = layer(make, np.arange(12, dtype=np.uint8).reshape(4, 3), 8)
    for tensor in model.graph.initializer:
        if tensor.name in ("w", "zw"):
            values = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.UINT4, values.shape, values.reshape(-1)))
    program = capture(model)
    weight = next(node for node in calls(program, "dequantize") if node.args[0].op == "get_attr" and node.args[4] == 4)
    assert weight.args[1:] == ([0.25], [8], -1, 4, False)


def test_computed_scales_are_arithmetic(make: Make) -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dequantize"),
    ]
    with pytest.raises(CaptureError, match=r"node 'dynamic' \(DynamicQuantizeLinear\): has one scale for all samples of a batch"):
        capture(make(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}))
    program = capture(
        make(nodes, {"x": [1, 4]}, {"y": [1, 4]}), dynamic_batch=False, allow_float=("aten.round.default", "aten.amin.default")
    )
    assert program.stage is Stage.FLOAT
    x = torch.tensor([[-1.0, 0.0, 0.3, 2.0]])
    assert float((program(x) - x).abs().max()) <= 3 / 255 / 2 * 1.01


@pytest.mark.parametrize(
    ("zero_point", "scale", "shape", "message"),
    [
        (np.array(0, np.int8), 0.0, ["N", 3], "a scale that is not positive and finite"),
        (np.array(0, np.int8), float("nan"), ["N", 3], "a scale that is not positive and finite"),
        (np.zeros(2, np.int8), [1.0, 2.0], ["N", 3], "2 scales along dimension 1 of size 3"),
        (np.zeros(3, np.int8), [1.0, 2.0], ["N", 3], "2 scales and 3 zero points"),
    ],
)
def test_parameters_that_mean_nothing(make: Make, zero_point: np.ndarray, scale: object, shape: list[object], message: str) -> None:
    with pytest.raises(CaptureError, match=rf"node 'quantize' \(QuantizeLinear\).*{message}"):
        capture(pair(make, zero_point, scale, shape))


def test_scales_along_the_batch(make: Make) -> None:
    with pytest.raises(CaptureError, match="scales along dimension 0, whose size is open"):
        capture(pair(make, np.zeros(2, np.int8), [1.0, 2.0], ["N", 3], axis=0))


def test_floats_of_eight_bits(make: Make) -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s"], ["q"], "quantize", output_dtype=TensorProto.FLOAT8E4M3FN),
        helper.make_node("DequantizeLinear", ["q", "s"], ["y"], "dequantize"),
    ]
    model = make(nodes, {"x": ["N", 2]}, {"y": ["N", 2]}, {"s": np.float32(2)}, opset=21)
    with pytest.raises(UnsupportedOpError, match=r"node 'quantize'.*aten.round.default"):
        capture(model)
    program = capture(model, allow_float=("aten.round.default",))
    assert program.stage is Stage.FLOAT
    assert program(torch.tensor([[34.5, -1e9]])).tolist() == [[36.0, -896.0]]
    nodes[0].attribute.append(helper.make_attribute("saturate", 0))
    unbounded = capture(
        make(nodes, {"x": ["N", 2]}, {"y": ["N", 2]}, {"s": np.float32(2)}, opset=21), allow_float=("aten.round.default", "aten.where.self")
    )
    assert torch.equal(unbounded(torch.tensor([[34.5, -1e9]])).isnan(), torch.tensor([[False, True]]))


@pytest.mark.parametrize(("transposed", "op"), [(False, "MatMulInteger"), (True, "QGemm")])
def test_integer_products(make: Make, transposed: bool, op: str) -> None:
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, 256, (3, 5), dtype=np.uint8), generator.integers(-128, 128, (5, 4), dtype=np.int8)
    expected = (a.astype(np.int64) - 7) @ b.astype(np.int64)
    constants: dict[str, object] = {"b": b.T.copy() if transposed else b, "za": np.array(7, np.uint8), "zb": np.array(0, np.int8)}
    if op == "MatMulInteger":
        nodes = [helper.make_node(op, ["a", "b", "za", "zb"], ["y"], "product")]
        types = {"a": TensorProto.UINT8, "y": TensorProto.INT32}
    else:
        nodes = [helper.make_node(op, ["a", "s", "za", "b", "s", "zb", "c"], ["y"], "product", domain="com.microsoft", transB=1, alpha=2.0)]
        constants |= {"s": np.float32(0.5), "c": np.arange(4, dtype=np.int32)}
        expected = 2.0 * 0.25 * (expected + np.arange(4))
        types = {"a": TensorProto.UINT8, "y": TensorProto.FLOAT}
    model = make(nodes, {"a": ["N", 5]}, {"y": ["N", 4]}, constants, opset=13, types=types, **{"com.microsoft": 1})
    program = capture(model)
    assert program.stage is Stage.QDQ
    assert torch.equal(program(torch.from_numpy(a)).double(), torch.from_numpy(expected).double())


# ---- as tools write them ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "zero_points"), [(4, False), (4, True), (8, True), (2, False)])
def test_matrix_product_of_few_bits(make: Make, bits: int, zero_points: bool) -> None:
    """onnxruntime's MatMulNBits, as NNCF writes it too: without an import of its domain."""
    generator, rows, columns, block = np.random.default_rng(0), 3, 40, 16
    codes = generator.integers(0, 2**bits, (rows, 3, block))
    zeros = generator.integers(0, 2**bits, (rows, 3)) if zero_points else np.full((rows, 3), 2 ** (bits - 1))
    scales = generator.random((rows, 3)).astype(np.float32) - 0.3

    def packed(values: np.ndarray) -> np.ndarray:
        each = 8 // bits
        padded = np.concatenate([values, np.zeros((*values.shape[:-1], -values.shape[-1] % each), values.dtype)], -1)
        return (padded.reshape(*values.shape[:-1], -1, each) << (np.arange(each) * bits)).sum(-1).astype(np.uint8)

    constants: dict[str, object] = {"b": packed(codes), "s": scales.reshape(-1), "z": packed(zeros).reshape(-1)}
    names = ["x", "b", "s", "z"] if zero_points else ["x", "b", "s"]
    node = helper.make_node("MatMulNBits", names, ["y"], "product", "", "com.microsoft", K=columns, N=rows, bits=bits, block_size=block)
    program = capture(make([node], {"x": ["N", columns]}, {"y": ["N", rows]}, constants))
    weight = ((codes - zeros[..., None]) * scales[..., None]).reshape(rows, -1)[:, :columns]
    x = torch.randn(2, columns)
    assert program.stage is Stage.FLOAT
    assert torch.allclose(program(x), x @ torch.from_numpy(weight).float().t(), rtol=1e-5, atol=1e-4)


def test_external_data_of_a_file_that_does_not_import_a_domain(make: Make, tmp_path: Path) -> None:
    """As NNCF writes models of many bytes."""
    node = helper.make_node("MatMulNBits", ["x", "b", "s"], ["y"], "product", "", "com.microsoft", K=16, N=3, bits=8, block_size=16)
    constants = {"b": np.full((3, 1, 16), 130, np.uint8), "s": np.full(3, 0.5, np.float32)}
    path = tmp_path / "model.onnx"
    onnx.save(make([node], {"x": ["N", 16]}, {"y": ["N", 3]}, constants), path, save_as_external_data=True, size_threshold=0)
    assert capture(path)(torch.ones(1, 16)).tolist() == [[16.0] * 3]


@pytest.mark.parametrize(
    ("scale", "axis", "block"),
    [
        (np.full((5, 1, 1), 0.5), 0, 0),  # NNCF: more dimensions than one
        (np.full((5, 1), -0.5), 0, 8),  # ModelOpt: the axis of the untransposed weight; onnxruntime: negative scales
        (np.full((5, 2), 0.5), 1, 2),
    ],
)
def test_weights_alone_become_floats(make: Make, scale: np.ndarray, axis: int, block: int) -> None:
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"], "weight", axis=axis, **({"block_size": block} if block else {})),
        helper.make_node("Gemm", ["x", "d"], ["y"], "product", transB=1),
    ]
    weight = np.arange(-10, 10, dtype=np.int8).reshape(5, 4)
    program = capture(make(nodes, {"x": ["N", 4]}, {"y": ["N", 5]}, {"w": weight, "s": scale.astype(np.float32)}, opset=21))
    assert program.stage is Stage.FLOAT
    x = torch.randn(2, 4)
    assert torch.allclose(program(x), x @ (torch.from_numpy(weight) * float(scale.flat[0])).t(), atol=1e-5)


def test_numbers_in_float16_are_float32_in_a_program(make: Make) -> None:
    """ModelOpt casts what it computes from shapes."""
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], start=1),
        helper.make_node("Cast", ["shape"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Sqrt", ["half"], ["root"]),
        helper.make_node("Cast", ["x"], ["hx"], to=TensorProto.FLOAT16),
        helper.make_node("Mul", ["hx", "root"], ["hy"]),
        helper.make_node("Cast", ["hy"], ["y"], to=TensorProto.FLOAT),
    ]
    program = capture(make(nodes, {"x": ["N", 9]}, {"y": ["N", 9]}))
    program.verify()
    assert program(torch.ones(1, 9)).tolist() == [[3.0] * 9]


@pytest.mark.parametrize("dtype", ["int16", "uint16"])
def test_weights_of_sixteen_bits(make: Make, dtype: str) -> None:
    """Alone they are the reals of a FLOAT program; a layer that reads quantized values has no kernel for them, and says so."""
    zero = 0 if dtype == "int16" else 1 << 15
    integers = np.random.default_rng(0).integers(-30_000, 30_000, (4, 6))
    constants = {"w": (integers + zero).astype(dtype), "ws": np.full(4, 1e-5, np.float32), "wz": np.full(4, zero, dtype)}
    weight = helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["dw"], "weight", axis=0)
    alone = make([weight, helper.make_node("Gemm", ["x", "dw"], ["y"], "gemm", transB=1)], {"x": ["N", 6]}, {"y": ["N", 4]}, constants, 21)
    program, x = capture(alone), torch.randn(3, 6)
    assert program.stage is Stage.FLOAT
    torch.testing.assert_close(program(x), x @ torch.from_numpy(integers.T).float() * 1e-5)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantize"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantize"),
        weight,
        helper.make_node("Gemm", ["d", "dw"], ["g"], "gemm", transB=1),
        helper.make_node("QuantizeLinear", ["g", "s", "z"], ["r"], "requantize"),
        helper.make_node("DequantizeLinear", ["r", "s", "z"], ["y"], "result"),
    ]
    constants |= {"s": np.array(0.02, np.float32), "z": np.array(128, np.uint8)}
    both = capture(make(nodes, {"x": ["N", 6]}, {"y": ["N", 4]}, constants, 21))
    assert both.stage is Stage.QDQ
    with pytest.raises(
        UnsupportedOpError, match=r"^[^\n]*'gemm' \(Gemm\)[^\n]*has no integer form: its weight is not a constant of int8[^\n]*$"
    ):
        qc.quantize(both)
