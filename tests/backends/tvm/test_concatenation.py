"""Concatenations along channels: parts are made in their place, and what lies side by side is not copied."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler.backends.tvm.kernels import ConvolutionKernel, Copy, ElementwiseKernel, HaloKernel, ResidualAdd
from qcompiler.backends.tvm.plan import Plan
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.ir.types import DynamicSize, IntegerType, QuantizedType

TARGET = TARGETS["x86-64-v3"]


def _copies(plan: Plan) -> list[tuple[str, ...]]:
    return [step.nodes for step in plan.body if isinstance(step.kernel, ElementwiseKernel) and isinstance(step.kernel.operation, Copy)]


def _layers(plan: Plan) -> list[ConvolutionKernel]:
    return [step.kernel for step in plan.body if isinstance(step.kernel, ConvolutionKernel)]


def _layer(p: Any, x: fx.Node, channels: int, size: int = 1, **options: Any) -> fx.Node:
    accumulator, bound = p.convolution(x, channels, (size, size), padding=[size // 2] * 4, **options)
    return p.requantize(accumulator, bound, (channels, 1, 1))


def _rows(p: Any, x: fx.Node, features: int) -> fx.Node:
    accumulator, bound = p.linear(x, features)
    return p.requantize(accumulator, bound, (features,))


def test_convolutions_store_into_the_map_that_joins_them(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 16, 8, 8)
    joined = p.call("aten.cat", [_layer(p, x, 5), _layer(p, x, 3, 3), _layer(p, x, 24)], 1)
    plan = make_plan(p.finish(_layer(p, joined, 8, 3)), TARGET)
    parts = _layers(plan)[:3]
    assert not _copies(plan)
    assert [(part.output.channels, part.output.pitch, part.output.halo) for part in parts] == [(n, 32, (1, 1, 1, 1)) for n in (5, 3, 24)]
    starts = [[pointer.offset for pointer in step.pointers if pointer.space == "arena"][-1] for step in plan.body if step.kernel in parts]
    assert [start - starts[0] for start in starts] == [0, 5, 8]
    assert sum(isinstance(step.kernel, HaloKernel) for step in plan.body) == 2  # of x and of the joined map
    assert _layers(plan)[3].input.pitch is None


def test_linear_layers_store_into_the_matrix_that_joins_them(integer_program: Any) -> None:
    p = integer_program()
    x, other = p.input(None, 7, 16), p.input(None, 7, 8)
    plan = make_plan(p.finish(_rows(p, p.call("aten.cat", [_rows(p, x, 24), _rows(p, other, 8)], -1), 4)), TARGET)
    assert not _copies(plan)
    assert [(part.output.channels, part.output.pitch) for part in _layers(plan)] == [(24, 32), (8, 32), (4, None)]


@pytest.mark.parametrize("rank", [3, 4])
def test_channels_of_a_residual_operand_are_read_where_they_lie(integer_program: Any, rank: int) -> None:
    p = integer_program()
    shape, dim = ((16, 8, 8), 1) if rank == 4 else ((7, 16), 2)
    x = p.input(None, *shape)
    parts = []
    for start, stop in ((0, 6), (6, 16)):
        source = p.input(None, *shape)
        accumulator, bound = p.convolution(source, stop - start) if rank == 4 else p.linear(source, stop - start)
        parts.append(p.add(accumulator, p.call("aten.slice:Tensor", x, dim, start, stop), bound, 255))
    plan = make_plan(p.finish(p.call("aten.cat", parts, dim)), TARGET)
    assert not _copies(plan)
    epilogues = [layer.epilogue for layer in _layers(plan)]
    assert [each.operand.pitch for each in epilogues if isinstance(each, ResidualAdd)] == [16, 16]


def _split(p: Any, x: fx.Node, added: fx.Node | None, sizes: list[int], size: int = 3) -> fx.Node:
    """What ``split-channels`` makes of a layer, with a residual add where a value is ``added``."""
    parts, start = [], 0
    for channels in sizes:
        if added is None:
            parts.append(_layer(p, x, channels, size))
        else:
            accumulator, bound = p.convolution(x, channels, (size, size), padding=[size // 2] * 4)
            operand = p.call("aten.slice:Tensor", added, 1, start, start + channels)
            parts.append(
                p.builder.call(
                    torch.ops.qc.add.default, accumulator, operand, *_factors(p, bound, channels), 21, 0, 7, 90, 0, 255, 8, False
                )
            )
        start += channels
    return p.call("aten.cat", parts, 1)


def _factors(p: Any, bound: int, channels: int) -> list[fx.Node]:
    """Of each channel of an accumulator, and one for all of a residual operand."""
    numbers = [
        torch.full((channels, 1, 1), 30 - bound.bit_length()),
        p.multiplier((channels, 1, 1)),
        torch.tensor(22),
        torch.tensor(1 << 29),
    ]
    return [p.constant("factor", each.to(torch.int32)) if isinstance(each, torch.Tensor) else each for each in numbers]


@pytest.mark.parametrize("added", [False, True])
def test_parts_of_a_layer_are_one_kernel_where_vectors_would_be_half_empty(integer_program: Any, added: bool) -> None:
    p = integer_program()
    x = p.call("qc.clamp", p.input(None, 16, 8, 8), 3, 250)
    joined = _split(p, x, x if added else None, [4, 8, 4])
    plan = make_plan(p.finish(joined), TARGETS["x86-64-vnni"])
    (layer,) = _layers(plan)
    assert (layer.output.channels, layer.output.pitch) == (16, None) and not _copies(plan)
    step = next(step for step in plan.body if step.kernel is layer)
    assert sum(name.startswith("convolution") for name in step.nodes) == 3


def test_layers_that_round_otherwise_or_are_read_otherwise_are_kernels_of_their_own(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 16, 8, 8)
    accumulator, bound = p.convolution(x, 8)
    other_form = p.requantize(accumulator, bound, (8, 1, 1), "narrow")
    read_before = _layer(p, x, 8)
    reader = p.call("qc.clamp", read_before, 3, 250)
    joined = p.call("aten.cat", [_layer(p, x, 8), other_form, _layer(p, x, 8, 3), read_before, _layer(p, x, 8), _layer(p, x, 8)], 1)
    plan = make_plan(p.finish(joined, reader), TARGETS["x86-64-vnni"])
    assert [layer.output.channels for layer in _layers(plan)] == [8, 8, 8, 8, 16] and not _copies(plan)


def test_layers_of_few_bits_stay_alone_where_that_is_faster(integer_program: Any) -> None:
    """Weights of 2 bits that are read from memory take a quarter of the time, which one kernel of 8 bits for both would lose."""
    p = integer_program()
    x = p.input(None, 1, 2048)
    parts = []
    for bits in (2, 8):  # and not bits that are counted: nothing is known of the input's range
        weight = p.integers("weight", -(1 << (bits - 1)), (1 << (bits - 1)) - 1, (2048, 2048), torch.int8)
        weight.meta["quantized"] = QuantizedType(IntegerType(bits, True), (0.5,) * 2048, axis=0)
        accumulator = p.call("qc.linear", x, weight, p.integers("bias", -5000, 5000, (2048,)))
        parts.append(p.requantize(accumulator, 127 * 255 * 2048 + 5000, (2048,)))
    plan = make_plan(p.finish(p.call("aten.cat", parts, -1)), TARGETS["x86-64-vnni"])
    assert [layer.weight_bits for layer in _layers(plan)] == [2, 8]


def test_a_value_with_other_readers_that_want_it_by_itself_is_copied(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 16, 8, 8)
    first, second = _layer(p, x, 16), _layer(p, x, 16)
    joined = p.call("aten.cat", [first, second], 1, name="joined")
    plan = make_plan(p.finish(joined, _layer(p, first, 8, 3)), TARGET)
    assert _copies(plan) == [("joined",)]


def test_the_same_part_twice_is_copied_once(integer_program: Any) -> None:
    p = integer_program()
    part = _layer(p, p.input(None, 16, 8, 8), 16)
    assert _copies(make_plan(p.finish(p.call("aten.cat", [part, part], 1, name="joined")), TARGET)) == [("joined",)]


def test_joins_of_more_and_more_parts_are_parts_of_the_last(integer_program: Any) -> None:
    p = integer_program()
    parts = [p.call("qc.clamp", p.input(None, 16, 8, 8), 3, 250)]
    for _ in range(3):
        joined = parts[0] if len(parts) == 1 else p.call("aten.cat", parts, 1)
        parts.append(_layer(p, p.call("qc.clamp", joined, 5, 240), 16, 3))
    plan = make_plan(p.finish(p.call("aten.cat", parts, 1)), TARGET)
    assert not _copies(plan)


def test_a_join_of_joins_has_one_memory(integer_program: Any) -> None:
    p = integer_program()
    x = p.input(None, 32, 8, 8)
    inner = p.call("aten.cat", [_layer(p, x, 8), _layer(p, x, 8)], 1)
    plan = make_plan(
        p.finish(p.call("aten.cat", [_layer(p, x, 4), inner, p.call("qc.max_pool2d", x, [1, 1], [1, 1], [0] * 4, [1, 1])], 1)), TARGET
    )
    assert not _copies(plan)
    assert {layer.output.pitch for layer in _layers(plan)} == {52}


@pytest.mark.parametrize(("channels", "copies"), [(8, 2), (16, 1), (32, 0)])
def test_short_loops_are_not_made_shorter(integer_program: Any, channels: int, copies: int) -> None:
    p = integer_program()
    x, y = p.input(None, channels, 8, 8), p.input(None, channels, 8, 8)
    parts = [p.call("qc.clamp", x, 3, 250), p.call("qc.max_pool2d", y, [2, 2], [1, 1], [0, 1, 0, 1], [1, 1])]
    assert len(_copies(make_plan(p.finish(p.call("aten.cat", parts, 1)), TARGET))) == copies


def test_halves_that_are_joined_again_are_the_whole(integer_program: Any) -> None:
    p = integer_program()
    x = p.call("qc.clamp", p.input(None, 16, 8, 8), 3, 250)
    halves = [p.call("aten.slice:Tensor", x, 1, start, start + 8) for start in (0, 8)]
    plan = make_plan(
        p.finish(_layer(p, p.call("aten.cat", halves, 1), 8), _layer(p, p.call("aten.cat", halves[::-1], 1, name="swapped"), 8)), TARGET
    )
    assert _copies(plan) == [("swapped",), ("swapped",)]
    assert _layers(plan)[0].input.pitch is None


def test_half_of_the_channels_is_read_where_it_lies_where_that_is_as_fast(integer_program: Any) -> None:
    p = integer_program()
    x = p.call("qc.clamp", p.input(None, 32, 8, 8), 3, 250)
    half = p.call("aten.slice:Tensor", x, 1, 16, 32)
    program = p.finish(_layer(p, half, 8, 3), _layer(p, half, 8), _layer(p, x, 8, 3))
    plan = make_plan(program, TARGETS["x86-64-vnni"])
    assert not _copies(plan)
    assert [layer.input.pitch for layer in _layers(plan)] == [32, 32, None]
    # A kernel row of three runs of 16 channels would take three tiles of AMX where one of 48 takes one.
    assert len(_copies(make_plan(program, TARGETS["x86-64-amx"]))) == 1


def test_kept_parts_and_outputs_can_be_read(integer_program: Any, compile_for: Any, differences: Any) -> None:
    def joined(*outputs: str) -> Any:
        p = integer_program()
        x = p.input(3, 16, 6, 5)  # a fixed batch: three samples of one plan
        first, second = _layer(p, x, 24, 3), _layer(p, x, 8)
        values = {"first": first, "second": second, "last": _layer(p, p.call("aten.cat", [first, second], 1), 8, 3)}
        return p.finish(*(values[name] for name in outputs)), second.name

    program, kept = joined("last", "first")
    module = compile_for(program, "x86-64-v3", keep=[kept])
    assert not differences(joined("last", "first", "second")[0], module, ["last", "first", "second"], batches=(3,))


def test_columns_of_a_matrix_of_any_number_of_rows(integer_program: Any, compile_for: Any, differences: Any) -> None:
    p = integer_program()
    x = p.input(None, DynamicSize("length", 1, 40), 16)
    first, second = _rows(p, x, 24), _rows(p, x, 40)
    joined = p.call("aten.cat", [first, second, first], -1)
    accumulator, bound = p.linear(joined, 24)
    total = p.add(accumulator, p.call("aten.slice:Tensor", joined, 2, 17, 41), bound, 255)
    program = p.finish(total, joined)
    assert _copies(make_plan(program, TARGET)) == [(joined.name,)]
    assert not differences(program, compile_for(program, "x86-64-v3"), ["total", "joined"], batches=(2,), lengths=(1, 7, 33, 40))


def _grow(p: Any, choose: random.Random, maps: list[fx.Node]) -> fx.Node:
    """One more 8-bit map made of those that exist."""
    x = choose.choice(maps[-6:])
    channels = int(x.meta["val"].shape[1])
    kind = choose.choice(
        ["layer", "layer", "layer", "depthwise", "residual", "cat", "cat", "cat", "split", "split", "slice", "table", "pool", "alone"]
    )
    if kind == "layer":
        size = choose.choice([1, 3])
        return _layer(p, x, choose.choice([3, 8, 16, 24]), size, pad_value=choose.choice([7, 9]))
    if kind == "depthwise":
        return _layer(p, x, channels, 3, groups=channels)
    if kind == "residual":
        start = choose.randrange(channels)
        accumulator, bound = p.convolution(choose.choice(maps[-4:]), channels - start, (3, 3), padding=(1, 1, 1, 1))
        return p.add(accumulator, p.call("aten.slice:Tensor", x, 1, start, channels), bound, 255)
    if kind == "split":
        return _split(p, x, choose.choice([None, x]), [channels // 3 or 1, channels - (channels // 3 or 1)], choose.choice([1, 3]))
    if kind == "cat":
        return p.call("aten.cat", [x, *choose.choices(maps[-5:], k=choose.choice([1, 2]))], 1)
    if kind == "slice":
        return p.call("aten.slice:Tensor", x, 1, channels // 3, channels)
    if kind == "table":
        accumulator, bound = p.convolution(x, 8)
        rounded = p.requantize(accumulator, bound, (8, 1, 1))
        return p.call("qc.lookup", rounded, p.integers("table", 0, 255, (256,), rounded.meta["val"].dtype), 8, False)
    if kind == "alone":
        table = p.integers("table", 0, 255, (256,), x.meta["val"].dtype)
        ops = [lambda: p.call("qc.lookup", x, table, 8, False), lambda: p.call("qc.clamp", x, 20, 230), lambda: p.add(x, x, 255, 255)]
        return choose.choice(ops)()  # type: ignore[no-any-return]
    return p.call("qc.max_pool2d", x, [3, 3], [1, 1], [1, 1, 1, 1], [1, 1])


@pytest.mark.parametrize(("seed", "target"), [(0, "x86-64-v3"), (1, "x86-64-vnni"), (2, "x86-64-amx")])
def test_random_programs(
    seed: int, target: str, integer_program: Any, compile_for: Any, differences: Any, request: pytest.FixtureRequest
) -> None:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    p, choose = integer_program(seed), random.Random(seed)
    maps = [p.input(None, 12, 6, 5)]
    for _ in range(12):
        maps.append(_grow(p, choose, maps))
    outputs = [node for node in maps if not node.users or choose.random() < 0.1]
    program = p.finish(*dict.fromkeys(outputs))
    assert not differences(program, compile_for(program, target), [spec.name for spec in program.outputs], batches=(1, 3))
