"""QuantizeLinear and DequantizeLinear files against the simulation in torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.backends.onnx.export import make_model
from qcompiler.backends.onnx.files import checked
from qcompiler.errors import UnsupportedOpError
from qcompiler.ir.program import Program


def _distance_in_steps(want: torch.Tensor, got: torch.Tensor, step: float) -> float:
    return float((want - got).abs().max()) / step


@pytest.mark.parametrize("opset", [13, 19, 21, 26])
def test_equals_the_simulation_within_a_step(opset: int, small_qdq: Program, session: Any) -> None:
    """QuantizeLinear divides where we multiply by the reciprocal: a value next to a tie falls to the other side, one step away.

    The logits are sums of 8 such values, each a mean whose own inputs may have moved.
    """
    x = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    (want,), (got,) = small_qdq.run(x), session(checked(make_model(small_qdq, "qdq", opset)))(x)
    assert _distance_in_steps(want, got, float(want.abs().max()) / 255) <= 1


def test_pairs_are_those_that_runtimes_fuse(small_qdq: Program) -> None:
    graph = checked(make_model(small_qdq, "qdq", 13)).graph
    producers = {name: node for node in graph.node for name in node.output}
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        x, weight = (producers[name] for name in node.input[:2])
        assert x.op_type == weight.op_type == "DequantizeLinear"
        assert producers[x.input[0]].op_type == "QuantizeLinear"
        integers, scale, zero_point = (constants[name] for name in weight.input)
        assert integers.dtype == np.int8 and scale.shape == (integers.shape[0],) and not zero_point.any()
        assert next(a.i for a in weight.attribute if a.name == "axis") == 0
        assert constants[node.input[2]].dtype == np.float32


def test_weights_with_factors_for_groups_are_int8_constants(session: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 40)
    program = qc.capture(nn.Sequential(nn.Linear(40, 9), nn.ReLU(), nn.Linear(9, 5)).eval(), (x,), dynamic_batch=True)
    simulated = qc.quantize(program, [x], passes="canonicalize,quantize{w=4,weight_group=16}")
    model = checked(make_model(simulated, "qdq"))
    assert {tuple(tensor.dims) for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8} >= {(9, 40)}
    (want,), (got,) = simulated.run(x), session(model)(x)
    assert _distance_in_steps(want, got, float(want.abs().max()) / 255) <= 1


class Mixer(nn.Module):
    """Linear layers on three dimensions, a residual stream, layer normalization, softmax."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.up, self.down, self.head = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.down(nn.functional.gelu(self.up(self.norm(x))))
        x = x + torch.softmax(x @ x.transpose(1, 2), -1) @ x
        return self.head(self.norm(x).mean(1))


@pytest.fixture(scope="module")
def mixer() -> tuple[Program, list[torch.Tensor]]:
    data = list(torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(0)).split(4))
    return qc.capture(Mixer().eval(), data[0]), data


def _quantized(mixer: Any, **options: object) -> Program:
    program, data = mixer
    chosen = ",".join(f"{name}={value}" for name, value in {"w": 8, "a": 8, **options}.items())
    return qc.quantize(program, data, passes=f"canonicalize,quantize{{{chosen}}}")


@pytest.mark.parametrize(("options", "opset"), [({}, 21), ({"residual_bits": 8}, 13), ({"a": 4, "residual_bits": 12}, 21)])
def test_transformers(mixer: Any, options: dict[str, object], opset: int, session: Any) -> None:
    """A residual stream of 16 bits needs opset 21; bits that no dtype has are a Clip. One percent is less than a step of 4 bits."""
    program = _quantized(mixer, **options)
    run = session(checked(make_model(program, "qdq", opset)))
    x = mixer[1][0]
    (want,), (got,) = program.run(x), run(x)
    noise = float((want - got).square().sum() / want.square().sum())
    assert noise < 1e-4


def test_a_linear_layer_on_three_dimensions_has_its_weight_transposed(mixer: Any) -> None:
    graph = checked(make_model(_quantized(mixer), "qdq", 21)).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    weights = [node for node in graph.node if node.op_type == "DequantizeLinear" and shapes.get(node.input[0]) == (16, 32)]
    assert len(weights) == 1 and next(a.i for a in weights[0].attribute if a.name == "axis") == 1
    assert not any(node.op_type == "Transpose" and node.input[0] == weights[0].output[0] for node in graph.node)


def test_16_bits_before_opset_21_are_declined_at_their_node(mixer: Any) -> None:
    with pytest.raises(UnsupportedOpError, match=r"'x_quantize' \(qc.quantize.default\).*knows i16 from opset 21 on, not 20"):
        make_model(_quantized(mixer), "qdq", 20)


def test_unequal_steps_are_declined(mixer: Any) -> None:
    program = _quantized(mixer, probability_quantizer="log2")
    with pytest.raises(UnsupportedOpError, match="'softmax.*unequal steps has no QuantizeLinear"):
        make_model(program, "qdq", 21)
