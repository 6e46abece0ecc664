from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.arithmetic.hadamard import hadamard_matrix
from qcompiler.errors import VerificationError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.ranges import Bounds, accumulator_bounds, analyze, annotate
from qcompiler.ir.stages import STAGES, target_text
from qcompiler.ir.types import INT8, UINT8, IntegerRange, IntegerType, QuantizedType, Stage

aten, qc = torch.ops.aten, torch.ops.qc


class Recorder(fx.Interpreter):
    """Runs a graph and checks every value against its proven bounds, channel by channel."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.bounds = analyze(program)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n in self.bounds:
            assert isinstance(value, torch.Tensor)
            assert value.dtype == n.meta["val"].dtype, n
            low, high = self.bounds[n].low, self.bounds[n].high
            assert low.ndim == value.ndim, n
            assert bool((value >= low).all()) and bool((value <= high).all()), n
        return value


@pytest.mark.parametrize("seed", range(80))
def test_every_value_of_random_programs_lies_in_its_bounds(seed: int, random_program: Callable[[int], Program]) -> None:
    program = random_program(seed)
    shape = program.inputs[0].shape[1:]
    assert program.inputs[0].quantized is not None
    kind = program.inputs[0].quantized.integer
    generator = torch.Generator().manual_seed(seed)
    extremes = torch.tensor([kind.low, kind.high])[torch.randint(0, 2, (4, *shape), generator=generator)]  # type: ignore[arg-type]
    inside = torch.randint(kind.low, kind.high + 1, (2, *shape), generator=generator)  # type: ignore[arg-type]
    Recorder(program).run(torch.cat([extremes, inside]).to(kind.dtype))


def test_the_random_programs_use_every_op_of_the_table(random_program: Callable[[int], Program]) -> None:
    used = {node.target for seed in range(80) for node in random_program(seed).graph.nodes if node.op == "call_function"}
    assert [target_text(target) for target in STAGES[Stage.INTEGER].ops if target not in used] == []


def test_accumulator_bounds_are_reached() -> None:
    generator = torch.Generator().manual_seed(1)
    weight = torch.randint(-128, 128, (6, 2, 3, 3), generator=generator).to(torch.int8)
    bias = torch.randint(-99, 99, (6,), generator=generator, dtype=torch.int32)
    low_x, high_x = torch.arange(6) - 4, torch.arange(6) * 3 + 1
    low, high = accumulator_bounds((low_x, high_x), weight, bias, groups=3)
    for channel in range(6):
        inputs = slice(channel // 2 * 2, channel // 2 * 2 + 2)
        ends = (low_x[inputs, None, None], high_x[inputs, None, None])
        wide = weight[channel].to(torch.int64)
        assert low[channel] == (wide * torch.where(wide > 0, *ends[::1])).sum() + bias[channel]
        assert high[channel] == (wide * torch.where(wide > 0, ends[1], ends[0])).sum() + bias[channel]


def test_accumulator_bounds_without_bias_of_one_interval() -> None:
    low, high = accumulator_bounds(IntegerRange(0, 255), torch.tensor([[1, -2], [3, 4]], dtype=torch.int8))
    assert low.tolist() == [-510, 0] and high.tolist() == [255, 255 * 7]


def test_bounds_per_index_of_a_dimension() -> None:
    bounds = Bounds(torch.tensor([[[1, 2], [3, 0]]]), torch.tensor([[[5, 6], [7, 8]]]))
    assert bounds.along(1).low.tolist() == [1, 0] and bounds.along(-1).high.tolist() == [7, 8]
    assert bounds.range == IntegerRange(0, 8)


def program_of(build: Callable[[GraphBuilder, fx.Node], fx.Node], kind: IntegerType = UINT8, size: int = 8) -> Program:
    builder = GraphBuilder()
    x = builder.input("x", (None, 2, size, size), kind.dtype)
    y = build(builder, x)
    shape = tuple(None if isinstance(s, torch.SymInt) else s for s in y.meta["val"].shape)
    inputs = ValueSpec("x", torch.float32, (None, 2, size, size), QuantizedType(kind, (1.0,)))
    return Program(builder.finish(y), Stage.INTEGER, (inputs,), (ValueSpec("y", y.meta["val"].dtype, shape),))


def output_bounds(program: Program) -> Bounds:
    outputs = program.graph.output_node().args[0]
    assert isinstance(outputs, tuple) and isinstance(outputs[0], fx.Node)
    return analyze(program)[outputs[0]]


def scalar(builder: GraphBuilder, name: str, *values: int) -> fx.Node:
    return builder.constant(name, torch.tensor(values, dtype=torch.int32))


PLACE = Provenance("model.py:42 in forward: x = self.conv(x)", "conv", ("capture", "lower-integer"))


def test_padding_value_widens_the_interval_of_a_convolution() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        small = builder.call(qc.clamp.default, x, 10, 20)
        weight = builder.constant("weight", torch.ones(1, 2, 3, 3, dtype=torch.int8))
        return builder.call(qc.convolution.default, small, weight, scalar(builder, "bias", 0), [1, 1], padding, [1, 1], 1, 100)

    padding = [1, 1, 1, 1]
    assert output_bounds(program_of(build)).range == IntegerRange(180, 1800)
    padding = [0, 0, 0, 0]
    assert output_bounds(program_of(build)).range == IntegerRange(180, 360)


def test_channels_keep_their_own_intervals_through_movement() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        weight = builder.constant("weight", torch.tensor([1, -1], dtype=torch.int8).reshape(2, 1, 1, 1))
        signs = builder.call(qc.convolution.default, x, weight, scalar(builder, "bias", 0, 0), [1, 1], [0] * 4, [1, 1], 2, 0)
        swapped = builder.call(aten.flip.default, signs, [1])
        moved = builder.call(aten.permute.default, swapped, [0, 2, 3, 1])
        return builder.call(aten.reshape.default, moved, [-1, 128])

    bounds = output_bounds(program_of(build))
    assert bounds.low[0, :4].tolist() == [-255, 0, -255, 0] and bounds.high[0, :4].tolist() == [0, 255, 0, 255]


def test_lookup_only_reads_entries_of_its_input_range() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        table = torch.full((256,), 100, dtype=torch.int8)
        table[128 + 5 : 128 + 8] = torch.tensor([-3, 4, 1], dtype=torch.int8)
        return builder.call(qc.lookup.default, builder.call(qc.clamp.default, x, 5, 7), builder.constant("table", table), 8, True)

    assert output_bounds(program_of(build, INT8)).range == IntegerRange(-3, 4)


def test_a_window_of_padding_alone_gives_the_minimum_of_the_type() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        return builder.call(qc.max_pool2d.default, builder.call(qc.clamp.default, x, 5, 7), [2, 2], [1, 1], padding, [1, 1])

    padding = [1, 1, 1, 1]
    assert output_bounds(program_of(build)).range == IntegerRange(5, 7)
    padding = [2, 0, 0, 0]
    assert output_bounds(program_of(build)).range == IntegerRange(0, 7)


def requantize(builder: GraphBuilder, x: fx.Node, **changes: object) -> fx.Node:
    arguments: dict[str, object] = {"pre_shift": 8, "multiplier": 1 << 30, "shift": 8, "input_zero_point": 0, "zero_point": 0}
    arguments |= {"low": 0, "high": 255, "form": "high", "bits": 8, "signed": False} | changes
    for name in DYADIC_PARAMETERS:
        value = arguments[name]
        assert isinstance(value, int)
        arguments[name] = scalar(builder, name, value)
    return builder.call(qc.requantize.default, x, *arguments.values(), provenance=PLACE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"pre_shift": 24},
            r"a << pre_shift \(up to 24\) lies in \[0, 4278190080\], outside \[-2147483648, 2147483647\]; use a smaller pre_shift",
        ),
        ({"pre_shift": 32}, r"pre_shift lies in \[32, 32\], outside \[0, 31\]"),
        ({"shift": 0}, r"shift lies in \[0, 0\], outside \[1, 30\]"),
        ({"multiplier": -2}, r"multiplier lies in \[-2, -2\], outside \[0, 2147483647\]"),
        ({"multiplier": (1 << 30) + 1}, r"multiplier has odd entries"),
        ({"high": 256}, r"the clamp \[0, 256\] does not lie in its type's \[0, 255\]"),
        ({"low": 9, "high": 3}, r"the clamp \[9, 3\] does not lie"),
        ({"input_zero_point": -(1 << 31)}, r"x - input_zero_point lies in \[2147483648, 2147483903\]"),
        ({"form": "narrow", "multiplier": 1 << 15}, r"multiplier lies in \[32768, 32768\], outside \[0, 32767\]"),
        ({"form": "narrow", "multiplier": 1 << 14, "shift": 16}, r"shift lies in \[16, 16\], outside \[0, 15\]"),
        ({"form": "narrow", "multiplier": 1 << 14, "input_zero_point": -(1 << 31) + 256}, r"a \+ 2\^\(pre_shift - 1\) lies in"),
        ({"form": "exact64"}, r"pre_shift lies in \[8, 8\], outside \[0, 0\]"),
        ({"form": "exact64", "pre_shift": 0, "shift": 63}, r"shift lies in \[63, 63\], outside \[0, 62\]"),
    ],
)
def test_requantization_that_could_overflow_is_rejected(changes: dict[str, object], message: str) -> None:
    program = program_of(lambda builder, x: requantize(builder, x, **changes))
    with pytest.raises(VerificationError, match=message) as error:
        analyze(program)
    assert str(error.value).startswith("'requantize' (qc.requantize.default) at model.py:42 in forward: x = self.conv(x) [module conv]")
    assert "\n" not in str(error.value)


def residual(builder: GraphBuilder, x: fx.Node, pre_shift: int, multiplier: int, shift: int) -> fx.Node:
    parameters = [scalar(builder, "parameter", value) for value in (pre_shift, multiplier) * 2]
    return builder.call(qc.add.default, x, x, *parameters, shift, 0, 0, 0, 0, 255, 8, False, provenance=PLACE)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ((24, 1 << 30, 8), r"a << pre_shift_a \(up to 24\) lies in"),
        ((23, (1 << 31) - 2, 31), r"the sum of both high halves and the rounding term lies in \[1073741824, 3\d+\]"),
        ((24, -(1 << 30), 8), r"a << pre_shift_a \(up to 24\) lies in"),
        ((8, 3, 8), "multiplier_a has odd entries"),
        ((8, 1 << 30, 0), r"shift is 0, outside \[1, 31\]"),
    ],
)
def test_residual_additions_that_could_overflow_are_rejected(parameters: tuple[int, int, int], message: str) -> None:
    with pytest.raises(VerificationError, match=message):
        analyze(program_of(lambda builder, x: residual(builder, x, *parameters)))


def test_an_accumulator_that_could_overflow_names_layer_bound_and_remedy() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        flat = builder.call(aten.flatten.using_ints, x, 1)
        weight = builder.constant("weight", torch.full((3, 2 * 192 * 192), 127, dtype=torch.int8))
        return builder.call(qc.linear.default, flat, weight, scalar(builder, "bias", 0, 0, 0), provenance=PLACE)

    with pytest.raises(VerificationError) as error:
        analyze(program_of(build, size=192))
    assert str(error.value) == (
        "'linear' (qc.linear.default) at model.py:42 in forward: x = self.conv(x) [module conv] [made by capture, lower-integer]: "
        "the accumulator over 73728 products lies in [0, 2387681280], outside [-2147483648, 2147483647]; "
        "split the layer's input channels, or quantize weights or activations to fewer bits"
    )


def test_factors_that_leave_int8_are_rejected() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        codes = builder.constant("codes", torch.full((3, 5), -8, dtype=torch.int8))
        factors = builder.constant("factors", torch.tensor([[16, 16], [16, 17], [16, 16]], dtype=torch.int8))
        weight = builder.call(qc.scale_groups.default, codes, factors, 4)
        flat = builder.call(aten.slice.Tensor, builder.call(aten.flatten.using_ints, x, 1), 1, 0, 5)
        return builder.call(qc.linear.default, flat, weight, scalar(builder, "bias", 0, 0, 0))

    with pytest.raises(VerificationError, match=r"'scale_groups'.*the result lies in \[-136, -128\], outside \[-128, 127\]"):
        analyze(program_of(build))


def test_ends_of_a_hadamard_transform_are_reached() -> None:
    """Sums of the ends by the signs of the matrix, for channels with ranges of their own."""
    low, high = torch.tensor([-7, 0, 3, 100, -128, 5, 5, -1] * 3), torch.tensor([-7, 9, 120, 127, 127, 5, 6, 0] * 3)

    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        rows = builder.constant("rows", torch.stack([low, high]).to(torch.int8))
        return builder.call(qc.hadamard.default, rows, 24, 3)

    bounds = analyze(program := program_of(build))
    node = next(node for node in program.graph.nodes if node.target is qc.hadamard.default)
    signs = hadamard_matrix(24).T
    ends = [torch.where(signs > 0, a - 3, 3 - b).sum(1) for a, b in ((low, high), (high, low))]
    assert torch.equal(bounds[node].low.flatten(), ends[0]) and torch.equal(bounds[node].high.flatten(), ends[1])


def test_zero_points_of_another_type_and_rows_of_17_bits_are_rejected() -> None:
    with pytest.raises(VerificationError, match="its zero point 300 is no value of what it reads"):
        analyze(program_of(lambda b, x: b.call(qc.hadamard.default, x, 8, 300)))

    def normalized(size: int) -> Program:
        """Sums of 2 size numbers up to 255."""

        def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
            return builder.call(qc.normalize.default, builder.call(qc.sum.default, x, [1, 2], False, 0), 32000, 0, True, "newton")

        return program_of(build, size=size)

    analyze(normalized(128))
    with pytest.raises(VerificationError, match=r"its rows lie in \[0, 66300\], neither int16 nor uint16"):
        analyze(normalized(130))


def test_a_table_that_leaves_the_declared_type_is_rejected() -> None:
    program = program_of(lambda b, x: b.call(qc.lookup.default, x, b.constant("table", torch.full((256,), 9, dtype=torch.int8)), 4, True))
    with pytest.raises(VerificationError, match=r"the table lies in \[9, 9\], outside \[-8, 7\]"):
        analyze(program)


def test_sums_and_products_that_could_overflow_are_rejected() -> None:
    def wide(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        return builder.call(qc.multiply.default, x, x, 0, 0)

    for build, what in [
        (lambda b, x: b.call(qc.multiply.default, wide(b, x), wide(b, x), 0, 0), "the product"),
        (lambda b, x: b.call(qc.sum.default, wide(b, x), [1, 2, 3], False, 0), "the sum"),
        (lambda b, x: b.call(qc.sum_pool2d.default, wide(b, x), [256, 256], [1, 1], [0] * 4, 0), "the sum of 65536 values"),
        (lambda b, x: b.call(qc.adaptive_sum_pool2d.default, wide(b, x), [1, 1], 0), "the sum of 65536 values"),
    ]:
        with pytest.raises(VerificationError, match=f"{what} lies in"):
            analyze(program_of(build, size=256))


def test_sum_over_the_batch_has_no_bound() -> None:
    with pytest.raises(VerificationError, match="which has no maximum: give it one"):
        analyze(program_of(lambda b, x: b.call(qc.sum.default, x, [0], False, 0)))


def test_computed_weights_cannot_be_proven() -> None:
    def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
        weight = builder.constant("weight", torch.ones(1, 2, 1, 1, dtype=torch.int8))
        computed = builder.call(aten.flip.default, weight, [1])
        return builder.call(qc.convolution.default, x, computed, scalar(builder, "bias", 0), [1, 1], [0] * 4, [1, 1], 1, 0)

    with pytest.raises(VerificationError, match="weight is computed, but must be a constant"):
        analyze(program_of(build))


def test_only_integer_programs_are_analyzed() -> None:
    program = program_of(lambda b, x: b.call(qc.clamp.default, x, 0, 9))
    with pytest.raises(VerificationError, match="the program is at qdq"):
        analyze(program.replace(stage=Stage.QDQ))


def test_annotate_writes_the_proven_range() -> None:
    program = program_of(lambda b, x: b.call(qc.clamp.default, x, 3, 9))
    node = next(n for n in program.graph.nodes if n.name == "clamp")
    node.meta["quantized"] = QuantizedType(UINT8, (0.5,))
    annotate(program)
    assert node.meta["quantized"] == QuantizedType(UINT8, (0.5,), range=IntegerRange(3, 9))


def test_parameters_that_do_not_fit_are_rejected() -> None:
    def with_multiplier(*shape: int) -> Program:
        def build(builder: GraphBuilder, x: fx.Node) -> fx.Node:
            wide = builder.constant("wide", torch.full(shape, 1 << 30, dtype=torch.int32))
            y = requantize(builder, x)
            y.update_arg(2, wide)
            return builder.call(qc.clamp.default, y, 0, 9)

        return program_of(build)

    analyze(with_multiplier(2, 1, 1))
    for shape in [(3, 1, 1), (5, 1, 1, 1), (1, 1, 2, 1, 1)]:
        with pytest.raises(VerificationError, match=r"do not broadcast to its result \[s\d+, 2, 8, 8\]"):
            analyze(with_multiplier(*shape))


def test_tables_and_clamps_that_do_not_fit_are_rejected() -> None:
    short = torch.zeros(128, dtype=torch.int8)
    with pytest.raises(VerificationError, match="its table has 128 entries; give one for each of the 256 values"):
        analyze(program_of(lambda b, x: b.call(qc.lookup.default, x, b.constant("table", short), 8, True)))
    with pytest.raises(VerificationError, match=r"no value of its type lies in \[300, 400\]"):
        analyze(program_of(lambda b, x: b.call(qc.clamp.default, x, 300, 400)))
