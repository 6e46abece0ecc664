"""Every qc:: op: its kernel and its shape function agree, with sizes that are numbers and with a symbolic batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from qcompiler import arithmetic
from qcompiler.ir import ops
from qcompiler.ir.types import UINT8, QuantizedType

qc = torch.ops.qc


def integers(*shape: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    limits = torch.iinfo(dtype)
    size = torch.Size(shape).numel()
    return (torch.arange(size) * 37 % (limits.max - limits.min + 1) + limits.min).to(dtype).reshape(shape)


def parameters(*values: int) -> list[Tensor]:
    return [torch.tensor(v, dtype=torch.int32) for v in values]


IMAGE = (3, 4, 9, 7)  # batch 3
WEIGHT = integers(6, 2, 3, 3, dtype=torch.int8)
BIAS = torch.arange(6, dtype=torch.int32)
DYADIC = [p.reshape(4, 1, 1) for p in (torch.arange(4), torch.full((4,), 1 << 30), torch.full((4,), 9))]


def softmax_of(x: Tensor, form: str, mask: Tensor | None = None) -> Tensor:
    table, constants = arithmetic.softmax_parameters(form, 0.1)
    return qc.softmax(x, table, mask, form, constants, 8)


def nonlinear_of(x: Tensor, function: str, form: str) -> Tensor:
    return qc.nonlinear(x, 3, function, form, arithmetic.nonlinear_parameters(function, form, 0.01, 1 << 15)[0])


# Case: (input, function of the input).
CASES: dict[str, tuple[Tensor, Callable[[Tensor], Tensor]]] = {
    "quantize": (torch.rand(IMAGE), lambda x: qc.quantize(x, [0.1], [3], -1, 8, False)),
    "quantize-per-channel": (torch.rand(IMAGE), lambda x: qc.quantize(x, [0.1, 0.2, 0.3, 0.4], [0, 0, 0, 0], 1, 8, True)),
    "quantize-16": (torch.rand(IMAGE), lambda x: qc.quantize(x, [0.1], [3], -1, 16, False)),
    "dequantize": (integers(*IMAGE), lambda x: qc.dequantize(x, [0.1], [3], -1, 8, False)),
    "convolution": (integers(*IMAGE), lambda x: qc.convolution(x, WEIGHT, BIAS, [2, 1], [1, 0, 2, 1], [1, 2], 2, 5)),
    "linear": (integers(3, 5, 8), lambda x: qc.linear(x, integers(6, 8, dtype=torch.int8), BIAS)),
    "requantize-high": (
        integers(*IMAGE, dtype=torch.int16),
        lambda x: qc.requantize(x, *(p.int() for p in DYADIC), 2, 7, 0, 255, "high", 8, False),
    ),
    "requantize-narrow": (
        integers(*IMAGE, dtype=torch.int16),
        lambda x: qc.requantize(x, *parameters(2, 20000, 5), 2, -7, -128, 127, "narrow", 8, True),
    ),
    "requantize-exact64": (
        integers(*IMAGE, dtype=torch.int16),
        lambda x: qc.requantize(x, *parameters(0, 1 << 30, 36), 0, 0, -32768, 32767, "exact64", 16, True),
    ),
    "add": (
        integers(*IMAGE),
        lambda x: qc.add(x, x, *parameters(20, 1 << 30, 20, 1 << 30), 18, 3, 4, 5, 0, 255, 8, False),
    ),
    "add-broadcast": (
        integers(*IMAGE),
        lambda x: qc.add(x, integers(4, 1, 1), *parameters(20, 1 << 30, 20, 1 << 30), 18, 3, 4, 5, 0, 255, 8, False),
    ),
    "multiply": (integers(*IMAGE), lambda x: qc.multiply(x, x, 3, 4)),
    "multiply-broadcast": (integers(*IMAGE), lambda x: qc.multiply(x, qc.sum(x, [2, 3], True, 0), 3, 0)),
    "lookup": (integers(*IMAGE), lambda x: qc.lookup(x, integers(256, dtype=torch.int8), 8, True)),
    "lookup-per-channel": (integers(*IMAGE), lambda x: qc.lookup(x, integers(4, 256, dtype=torch.int16), 16, True)),
    "scale_groups": (integers(6, 7, 2, dtype=torch.int8), lambda x: qc.scale_groups(x, x[:, :3, 0], 3)),
    "matmul": (integers(*IMAGE), lambda x: qc.matmul(x, x.transpose(-2, -1), 3, 4)),
    "softmax": (integers(*IMAGE), lambda x: qc.softmax(x, arithmetic.exponential_table(0.1), None, "table", [], 8)),
    "softmax-16": (integers(*IMAGE, dtype=torch.int8), lambda x: qc.softmax(x, arithmetic.exponential_table(0.1), None, "table", [], 16)),
    "normalize": (integers(*IMAGE, dtype=torch.int16), lambda x: qc.normalize(x, 3, 1000, True, "newton")),
    "softmax-masked": (integers(*IMAGE), lambda x: softmax_of(x, "shift", integers(9, 7) > 99)),
    "softmax-poly": (integers(*IMAGE, dtype=torch.int16), lambda x: softmax_of(x, "poly")),
    "softmax-shiftmax": (integers(*IMAGE), lambda x: softmax_of(x, "shiftmax")),
    "softmax-i-softmax": (integers(*IMAGE), lambda x: softmax_of(x, "i-softmax")),
    "normalize-i-layernorm": (integers(*IMAGE, dtype=torch.int16), lambda x: qc.normalize(x, 3, 0, True, "i-layernorm")),
    "normalize-i-bert": (integers(*IMAGE, dtype=torch.int16), lambda x: qc.normalize(x, 3, 0, False, "i-bert")),
    "nonlinear": (integers(*IMAGE, dtype=torch.int16), lambda x: nonlinear_of(x, "gelu", "shift")),
    "nonlinear-shift-gelu": (integers(*IMAGE), lambda x: nonlinear_of(x, "gelu", "shift-gelu")),
    "nonlinear-i-exp": (integers(*IMAGE), lambda x: nonlinear_of(x, "exp", "i-exp")),
    "bucketize": (integers(*IMAGE), lambda x: qc.bucketize(x, torch.tensor([5, 5, 200], dtype=torch.int32), 4)),
    "embedding": (integers(3, 8), lambda x: qc.embedding(integers(256, 6, dtype=torch.int8), x)),
    "hadamard": (integers(3, 5, 24), lambda x: qc.hadamard(x, 12, 9)),
    "hadamard-float": (torch.rand(3, 5, 24), lambda x: qc.hadamard(x, 8)),
    "divide": (integers(*IMAGE), lambda x: qc.divide(x, torch.arange(1, 10, dtype=torch.int32)[:, None], 4)),
    "encode": (torch.rand(IMAGE), lambda x: qc.encode(x, [0.1, 0.4, 0.5])),
    "decode": (integers(*IMAGE), lambda x: qc.decode(x, [float(level) for level in range(256)])),
    "clamp": (integers(*IMAGE), lambda x: qc.clamp(x, 10, 300)),
    "max_pool2d": (integers(*IMAGE), lambda x: qc.max_pool2d(x, [3, 2], [2, 1], [1, 0, 0, 1], [1, 2])),
    "sum_pool2d": (integers(*IMAGE), lambda x: qc.sum_pool2d(x, [3, 2], [2, 3], [1, 0, 0, 1], 9)),
    "adaptive_sum_pool2d": (integers(*IMAGE), lambda x: qc.adaptive_sum_pool2d(x, [2, 3], 9)),
    "adaptive_max_pool2d": (integers(*IMAGE), lambda x: qc.adaptive_max_pool2d(x, [2, 3])),
    "sum": (integers(*IMAGE), lambda x: qc.sum(x, [2, -1], False, 9)),
    "sum-keepdim": (integers(*IMAGE), lambda x: qc.sum(x, [1], True, 9)),
    "dilate": (integers(*IMAGE), lambda x: qc.dilate(x, [2, 3], 9)),
}

cases = pytest.mark.parametrize("name", CASES)


def test_every_op_has_a_case() -> None:
    assert {name.split("-")[0] for name in CASES} == set(ops.SCHEMAS)


@cases
def test_fake_and_real_results_have_the_same_layout(name: str) -> None:
    x, function = CASES[name]
    real = function(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = function(mode.from_tensor(x))
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@cases
def test_permuted_inputs_give_the_same_values_and_the_layout_of_the_shape_function(name: str) -> None:
    """A view that follows must mean the same on the graph's fake tensors and at run time."""
    x, function = CASES[name]
    permuted = x.transpose(0, 1).contiguous().transpose(0, 1)
    assert not permuted.is_contiguous()
    real = function(permuted)
    assert real.is_contiguous()
    assert torch.equal(real, function(x))


@cases
def test_shape_functions_keep_a_symbolic_batch(name: str) -> None:
    x, function = CASES[name]
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    dynamic = torch.fx.experimental.symbolic_shapes.StatelessSymbolicContext(
        dynamic_sizes=[torch.fx.experimental.symbolic_shapes.DimDynamic.DYNAMIC]
        + [torch.fx.experimental.symbolic_shapes.DimDynamic.STATIC] * (x.dim() - 1),
    )
    with mode:
        fake = function(mode.from_tensor(x, symbolic_context=dynamic))
    assert isinstance(fake.shape[0], torch.SymInt)
    assert [int(size) for size in fake.shape] == list(function(x).shape)
    assert all(isinstance(size, int) for size in fake.shape[1:])


@cases
def test_results_share_no_memory_with_the_input(name: str) -> None:
    x, function = CASES[name]
    before = x.clone()
    function(x).zero_()
    assert torch.equal(x, before)


@cases
def test_samples_do_not_depend_on_their_batch(name: str) -> None:
    x, function = CASES[name]
    whole = function(x)
    assert torch.equal(torch.cat([function(x[i : i + 1]) for i in range(len(x))]), whole)


@pytest.mark.parametrize("name", sorted(ops.SCHEMAS))
def test_ops_can_be_nodes_of_a_graph(name: str) -> None:
    x, function = CASES[name if name in CASES else f"{name}-high"]
    module = fx.symbolic_trace(function)
    assert getattr(torch.ops.qc, name) in {node.target for node in module.graph.nodes}
    assert torch.equal(module(x), function(x))


def test_large_tensors_go_by_blocks_of_samples() -> None:
    x = integers(40, 4, 64, 64, dtype=torch.int16)
    name, function = "requantize-high", CASES["requantize-high"][1]
    assert x.numel() > 2 * ops._BLOCK, name
    blocks = torch.cat([function(part) for part in x.split(1)])
    assert torch.equal(function(x), blocks)
    y = x.to(torch.uint8)
    add = CASES["add"][1]
    assert torch.equal(add(y), torch.cat([add(part) for part in y.split(1)]))


def test_parameters_that_vary_over_the_first_dimension_are_not_split() -> None:
    x = torch.arange(1 << 19, dtype=torch.int32).reshape(2, -1)
    shift = torch.tensor([[9], [12]], dtype=torch.int32)
    y = qc.requantize(x, *parameters(0, 1 << 30), shift, 0, 0, -128, 127, "high", 8, True)
    for row in range(2):
        assert torch.equal(y[row], qc.requantize(x[row], *parameters(0, 1 << 30), shift[row], 0, 0, -128, 127, "high", 8, True))


def test_quantize_is_the_function_of_arithmetic() -> None:
    x = torch.linspace(-3, 30, 500)
    assert torch.equal(qc.quantize(x, [0.1], [3], -1, 8, False), arithmetic.quantize(x, QuantizedType(UINT8, (0.1,), (3,))))


def test_an_unknown_form_is_refused_by_the_shape_function() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.raises(RuntimeError, match="unknown form of requantization 'low'"):
        qc.requantize(mode.from_tensor(integers(2)), *parameters(0, 0, 1), 0, 0, 0, 255, "low", 8, False)


def test_a_weight_that_does_not_fit_is_refused_by_the_shape_function() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        with pytest.raises(RuntimeError, match="channels and groups"):
            qc.convolution(mode.from_tensor(integers(1, 3, 5, 5)), WEIGHT, BIAS, [1, 1], [0, 0, 0, 0], [1, 1], 1, 0)
        with pytest.raises(RuntimeError, match="last dimension"):
            qc.linear(mode.from_tensor(integers(1, 3)), integers(6, 8, dtype=torch.int8), BIAS)
