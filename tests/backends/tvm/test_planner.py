from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.backends.tvm.kernels import Argument, ConvolutionKernel, Copy, ElementwiseKernel, HaloKernel, ReductionKernel, ResidualAdd
from qcompiler.backends.tvm.plan import Numbers, Plan, Step
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.errors import CaptureError, TargetError, UnknownNameError

TARGET = TARGETS["x86-64-v3"]


def _kernels(plan: Plan) -> list[str]:
    return [type(step.kernel).__name__ for step in plan.body]


def _numbers(plan: Plan, step: Step) -> tuple[int, ...]:
    """What the kernel of a step reads at run time."""
    sources = {parameter.offset: parameter.source for parameter in plan.parameters}
    source = sources[step.pointers[-1].offset]
    assert isinstance(source, Numbers)
    return source.values


def _copies(plan: Plan) -> list[tuple[str, ...]]:
    return [step.nodes for step in plan.body if isinstance(step.kernel, ElementwiseKernel) and isinstance(step.kernel.operation, Copy)]


def _layer(p: Any, x: Any, channels: int, name: str, **options: Any) -> Any:
    accumulator, bound = p.convolution(x, channels, **options)
    return p.call("qc.clamp", p.requantize(accumulator, bound, (channels, 1, 1)), 0, 255, name=name)


def test_one_convolution_computes_accumulator_residual_and_table(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 16, 8, 8)
    accumulator, bound = p.convolution(x, 16, (3, 3), padding=(1, 1, 1, 1))
    total = p.add(x, accumulator, 255, bound, zero_points=(7, 0))
    table = p.integers("table", 0, 255, (256,), torch.uint8)
    plan = make_plan(p.finish(p.call("qc.lookup", total, table, 8, False)), TARGET)
    assert _kernels(plan) == ["HaloKernel", "ConvolutionKernel"]
    kernel = plan.body[1].kernel
    assert isinstance(kernel, ConvolutionKernel) and kernel.table
    assert isinstance(kernel.epilogue, ResidualAdd) and kernel.epilogue.operand_zero_point == Argument(0)
    assert kernel.input.halo == (1, 1, 1, 1) == kernel.epilogue.operand.halo
    assert _numbers(plan, plan.body[1])[0] == 7
    assert plan.body[1].nodes == ("convolution", "add", "lookup")


@pytest.mark.parametrize("kept", ["convolution", "requantize"])
def test_a_kept_value_is_not_fused_away(integer_program: Any, kept: str) -> None:
    p = integer_program()
    accumulator, bound = p.convolution(p.input(None, 16, 8, 8), 16)
    table = p.integers("table", 0, 255, (256,), torch.uint8)
    program = p.finish(p.call("qc.lookup", p.requantize(accumulator, bound, (16, 1, 1)), table, 8, False))
    assert _kernels(make_plan(program, TARGET)) == ["ConvolutionKernel"]
    plan = make_plan(program, TARGET, keep=[kept])
    assert plan.body[0].nodes[-1] == kept and plan.outputs[-1].name == kept


def test_an_accumulator_with_two_readers_is_stored(integer_program: Any) -> None:
    p = integer_program()
    accumulator, bound = p.convolution(p.input(None, 16, 8, 8), 16)
    plan = make_plan(p.finish(p.requantize(accumulator, bound), p.requantize(accumulator, bound, signed=True)), TARGET)
    assert _kernels(plan) == ["ConvolutionKernel", "ElementwiseKernel", "ElementwiseKernel"]


def test_readers_with_equal_padding_share_one_halo_and_others_copy(integer_program: Any) -> None:
    p = integer_program()
    x = p.call("qc.clamp", p.input(None, 16, 8, 8), 0, 200, name="x")
    small = _layer(p, x, 8, "small", kernel=(3, 3), padding=(1, 1, 1, 1))
    large = _layer(p, x, 8, "large", kernel=(5, 5), padding=(2, 2, 2, 2))
    other = _layer(p, x, 8, "other", kernel=(3, 3), padding=(1, 1, 1, 1), pad_value=9)
    plan = make_plan(p.finish(small, large, other), TARGET)
    halos = [(step.kernel.activation.halo, _numbers(plan, step)) for step in plan.body if isinstance(step.kernel, HaloKernel)]
    assert halos == [((2, 2, 2, 2), (7,)), ((1, 1, 1, 1), (9,))]
    assert _copies(plan) == [("x",)]


def test_a_stride_that_does_not_reach_the_padding_needs_less_halo(integer_program: Any) -> None:
    p = integer_program()
    accumulator, _ = p.convolution(p.input(None, 3, 8, 8), 8, (3, 3), (2, 2), (1, 1, 1, 1))
    plan = make_plan(p.finish(accumulator), TARGET)
    assert [step.kernel.activation.halo for step in plan.body if isinstance(step.kernel, HaloKernel)] == [(1, 0, 1, 0)]


def test_movement_without_copies(integer_program: Any) -> None:
    p = integer_program()
    x = p.call("qc.clamp", p.input(None, 16, 8, 8), 0, 200)
    part = p.call("aten.slice:Tensor", p.call("aten.flip", x, [2]), 1, 2, 10, 2)
    rows = p.call("aten.permute", p.call("aten.flatten:using_ints", part, 2), [0, 2, 1])
    pooled = p.call("qc.max_pool2d", x, [8, 8], [8, 8], [0, 0, 0, 0], [1, 1])
    features, _ = p.linear(p.call("aten.flatten:using_ints", pooled, 1), 4)
    plan = make_plan(p.finish(p.call("qc.clamp", rows, 3, 100), features), TARGET)
    # Rows and columns of a flipped map do not merge, so that flattening is one copy; nothing else moves.
    assert _copies(plan) == [("slice_1",)]
    assert [kind for kind in _kernels(plan) if kind != "ElementwiseKernel"] == ["ReductionKernel", "ConvolutionKernel"]


def test_arena_is_smaller_than_the_sum_of_values(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 16, 32, 32)
    for step in range(10):
        x = p.call("qc.clamp", x, step, 255)
    assert make_plan(p.finish(x), TARGET).arena_size == 2 * 16 * 32 * 32 + 512


def test_irregular_adaptive_pooling_takes_few_distinct_kernels(integer_program: Any) -> None:
    p = integer_program()
    plan = make_plan(p.finish(p.call("qc.adaptive_max_pool2d", p.input(None, 8, 10, 10), [7, 7])), TARGET)
    reductions = [step.kernel for step in plan.body if isinstance(step.kernel, ReductionKernel)]
    assert len(reductions) == 49 and len(set(reductions)) <= 4


def test_a_fixed_batch_is_one_sample_of_the_driver(integer_program: Any) -> None:
    p = integer_program()
    accumulator, _ = p.convolution(p.input(3, 8, 6, 6), 8, (3, 3), padding=(1, 1, 1, 1))
    plan = make_plan(p.finish(accumulator), TARGET)
    assert not plan.batched and plan.inputs[0].sample_shape == (3, 8, 6, 6)
    assert _kernels(plan).count("ConvolutionKernel") == 3


def test_samples_must_be_independent(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 8, 6, 6)
    with pytest.raises(CaptureError, match="'flip' .* mixes the samples of a batch"):
        make_plan(p.finish(p.call("aten.flip", x, [0])), TARGET)


def test_op_without_a_kernel(integer_program: Any) -> None:
    p = integer_program()
    program = p.finish(p.call("aten.tril", p.input(None, 4)))
    with pytest.raises(TargetError, match=r"no kernel for 'tril' \(aten.tril.default\) on target x86-64-v3; there are kernels for aten"):
        make_plan(program, TARGET)


def test_unknown_kept_node(integer_program: Any) -> None:
    p = integer_program()
    program = p.finish(p.call("qc.clamp", p.input(None, 4), 0, 9))
    with pytest.raises(UnknownNameError, match="unknown node 'clmp': did you mean 'clamp'"):
        make_plan(program, TARGET, keep=["clmp"])
