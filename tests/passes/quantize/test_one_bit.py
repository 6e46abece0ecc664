"""Weights of 1 bit, -1 and +1, and activations of 1 bit, 0 and 1: what ``quantize`` makes of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler import arithmetic
from qcompiler.calibration.data import CalibrationData
from qcompiler.calibration.statistics import Observation
from qcompiler.capture import capture
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.types import INT2, UINT8, IntegerType, Precision, QuantizedType, Stage
from qcompiler.passes.lower.lower_integer import LowerInteger
from qcompiler.passes.quantize.parameters import activation_type, quantize_binary_weight
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

ONE = IntegerType(1, signed=False)


class Network(nn.Module):
    """Four layers of three kinds; [N, 3, 6, 6] to [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.up, self.head = nn.ConvTranspose2d(8, 6, 2), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x).relu()).relu()
        result: Tensor = self.head(self.up(x).relu().mean((2, 3)))
        return result


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Program, CalibrationData]:
    torch.manual_seed(0)
    model = Network().eval()
    program = PassManager(parse_pipeline("canonicalize")).run(capture(model, torch.zeros(2, 3, 6, 6)))
    return model, program, CalibrationData(torch.randn(16, 3, 6, 6), program.inputs)


def quantized(network: tuple[nn.Module, Program, CalibrationData], *then: Pass, **options: Any) -> Program:
    _, program, data = network
    return PassManager([Quantize(**options), *then]).run(program, data)


def weights(program: Program) -> dict[str, tuple[Tensor, QuantizedType]]:
    constants = [node for node in program.graph.nodes if node.op == "get_attr" and "weight" in node.name]
    return {str(node.target): (program.graph_module.get_buffer(str(node.target)), node.meta["quantized"]) for node in constants}


def values(program: Program) -> dict[str, IntegerType]:
    nodes = [node for node in program.graph.nodes if node.target is torch.ops.qc.quantize.default]
    return {node.name: node.meta["quantized"].integer for node in nodes}


@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_are_signs_times_their_mean_magnitude(network: Any, per_channel: bool) -> None:
    layers = [network[0].stem, network[0].depthwise, network[0].up, network[0].head]
    found = weights(quantized(network, w=1, per_channel=per_channel, weight_group=4 if per_channel else 0))
    assert len(found) == len(layers)
    for layer, (integers, kind) in zip(layers, found.values(), strict=True):
        axis = None if not per_channel else 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        assert kind.integer == INT2 and kind.zero_point == (0,) and kind.axis == axis
        assert torch.equal(integers, torch.where(layer.weight >= 0, 1, -1).to(torch.int8))
        rest = [dim for dim in range(layer.weight.dim()) if dim != axis]
        torch.testing.assert_close(torch.tensor(kind.scale), layer.weight.detach().abs().mean(rest).reshape(-1))


def test_activations_are_0_and_1(network: Any) -> None:
    program = quantized(network, a=1, edge_bits=8)
    assert set(values(program).values()) == {ONE, UINT8}
    rounded = [
        node for node in program.graph.nodes if node.target is torch.ops.qc.quantize.default and node.meta["quantized"].integer == ONE
    ]
    for node in rounded:  # what follows a relu is either nothing or its one step
        assert node.meta["quantized"].zero_point == (0,)
    values_of_two = arithmetic.quantize(torch.tensor([-1.0, 0.2, 0.6, 9.0]), QuantizedType(ONE, (1.0,)))
    assert values_of_two.dtype is torch.uint8 and values_of_two.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("low", "high", "levels"), [(0.0, 3.0, [0.0, 3.0]), (-1.0, 3.0, [0.0, 4.0]), (-3.0, 1.0, [-4.0, 0.0]), (-2.0, -1.0, [-2.0, 0.0])]
)
def test_one_of_the_two_levels_is_zero(low: float, high: float, levels: list[float]) -> None:
    kind = activation_type(Observation((low,), (high,)), ONE, symmetric=False)
    assert arithmetic.dequantize(torch.tensor([0, 1], dtype=torch.uint8), kind).tolist() == levels


def test_first_and_last_layer_keep_the_bits_of_the_edges(network: Any) -> None:
    program = quantized(network, w=1, a=1, edge_bits=8)
    assert [kind.integer.bits for _, kind in weights(program).values()] == [8, 2, 2, 8]
    assert values(program) == {
        "x_quantize": UINT8,
        "relu_quantize": ONE,
        "relu_1_quantize": ONE,
        "relu_2_quantize": ONE,
        "mean_quantize": UINT8,
    }


@pytest.mark.parametrize(("w", "a", "bound"), [(1, 1, 1e-5), (1, 8, 0.02)])
def test_integers_follow_the_simulation(w: int, a: int, bound: float) -> None:
    """Without biases, which the simulation does not round to steps of the accumulator: with few bits these are wide.

    Activations of 1 bit are the same ones but for ties, and here are none; of 8 bits a few lie one step apart, of 255.
    """
    torch.manual_seed(0)
    model = Network().eval()
    with torch.no_grad():
        for layer in model.children():
            layer.bias.zero_()  # type: ignore[operator]  # a parameter
    program = PassManager(parse_pipeline("canonicalize")).run(capture(model, torch.zeros(2, 3, 6, 6)))
    network = model, program, CalibrationData(torch.randn(16, 3, 6, 6, generator=torch.Generator().manual_seed(2)), program.inputs)
    simulated, integer = quantized(network, w=w, a=a), quantized(network, LowerInteger(), w=w, a=a)
    assert integer.stage is Stage.INTEGER
    x = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(3))
    want = simulated(x)
    torch.testing.assert_close(integer(x), want, rtol=0.0, atol=bound * float(want.max() - want.min()))


def test_precision_asks_for_1_bit_at_one_node(network: Any) -> None:
    _, program, data = network
    layer = next(node for node in program.graph.nodes if node.name == "conv2d_1")
    relu = next(iter(layer.users))
    asked = {layer: Precision(weight=1), relu: Precision(activation=1)}
    try:
        for node, precision in asked.items():
            node.meta["precision"] = precision
        found = PassManager([Quantize()]).run(program, data)
        with pytest.raises(CalibrationError, match=r"relu.*: 1 bit has no integers on both sides of 0: use 2 bits, or symmetric=false"):
            PassManager([Quantize(symmetric=True)]).run(program, data)
    finally:
        for node in asked:
            del node.meta["precision"]
    assert [kind.integer.bits for _, kind in weights(found).values()] == [8, 2, 8, 8]
    assert [name for name, kind in values(found).items() if kind == ONE] == [f"{relu.name}_quantize"]


@pytest.mark.parametrize("option", ["a", "residual_bits", "score_bits", "function_bits", "edge_bits"])
def test_symmetric_activations_of_1_bit_are_an_error(option: str) -> None:
    with pytest.raises(CalibrationError, match=f"quantize: {option}=1 has no integers on both sides of 0: use 2 bits, or symmetric=false"):
        Quantize(symmetric=True, **{option: 1})


def test_a_channel_without_weights_gives_its_bias() -> None:
    """As pruning leaves it: its integers cannot be 0, its scale is as good as 0; and a tiny one lets its bias fit int32."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        model[0].weight[3], model[2].weight[5], model[2].weight[1] = 0.0, 0.0, 1e-30
    x = torch.randn(64, 16) * 1e-4
    program = PassManager(parse_pipeline("canonicalize,quantize{w=1},lower-integer")).run(
        capture(model, x[:2]), CalibrationData(x, capture(model, x[:2]).inputs)
    )
    bias = model[2].bias.detach()
    torch.testing.assert_close(program(x[:2])[:, [1, 5]], bias[[1, 5]].expand(2, 2), rtol=1e-5, atol=0.0)
    kind = quantize_binary_weight(torch.tensor([[1e-30], [2.0]]), torch.tensor([100.0, 0.0]), QuantizedType(UINT8, (0.5,)), 0).quantized
    assert 100.0 / (0.5 * kind.scale[0]) <= 2**30 * (1 + 1e-6) and kind.scale[1] == 2.0
