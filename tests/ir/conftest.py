"""Random INTEGER programs: every op of the stage's table, in random order, with parameters chosen as the lowering pass does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.ranges import Bounds, bounds_of
from qcompiler.ir.types import INT8, INT32, UINT8, IntegerRange, QuantizedType, Stage

aten, qc = torch.ops.aten, torch.ops.qc


class RandomProgram:
    """Grows a program op by op; ``known`` holds the proven bounds of what is there."""

    def __init__(self, seed: int) -> None:
        self.choice = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.builder = GraphBuilder()
        self.known: dict[fx.Node, Bounds] = {}
        self.input_type = QuantizedType(self.choice.choice([UINT8, INT8]), (0.05,), (self.choice.randint(0, 100),))
        size = self.choice.randint(6, 9)
        self.x = self.builder.input("x", (None, 3, size, size + 1), self.input_type.integer.dtype)
        kind = self.input_type.integer
        ends = IntegerRange(kind.low, kind.high)
        self.known[self.x] = Bounds(torch.full((1, 1, 1, 1), ends.low), torch.full((1, 1, 1, 1), ends.high))

    def integers(self, shape: tuple[int, ...], low: int, high: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=self.generator).to(dtype)

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        node = self.builder.constant(name, tensor)
        self.known[node] = bounds_of(node, self.known)
        return node

    def call(self, target: Callable[..., object], *args: object) -> fx.Node:
        node = self.builder.call(target, *args, provenance=Provenance(f"net.py:{len(self.known)} in forward: y", "net", ("random",)))
        self.known[node] = bounds_of(node, self.known)
        return node

    def requantize(self, x: fx.Node) -> fx.Node:
        """Any int32 to 8 bits, with a factor that uses about half of the output's range, per channel or per tensor."""
        bounds = self.known[x].along(min(1, x.meta["val"].ndim - 1))
        kind = self.choice.choice([UINT8, INT8])
        input_zero_point = self.choice.choice([0, 7])
        magnitude = torch.maximum((bounds.low - input_zero_point).abs(), (bounds.high - input_zero_point).abs()).clamp(min=1)
        if self.choice.random() < 0.5 or x.meta["val"].ndim != 4 or magnitude.numel() != x.meta["val"].shape[1]:
            magnitude = magnitude.amax(0)
        else:
            magnitude = magnitude[:, None, None]
        factor = self.choice.uniform(20, 200) / magnitude.double()
        form = self.choice.choice(["auto", "high", "exact64"])
        dyadic = arithmetic.choose(factor, magnitude, form)
        parameters = [self.constant(name, getattr(dyadic, name)) for name in arithmetic.DYADIC_PARAMETERS]
        zero_point = self.choice.randint(kind.low, kind.high)
        low = self.choice.choice([kind.low, zero_point])
        return self.call(
            qc.requantize.default, x, *parameters, input_zero_point, zero_point, low, kind.high, dyadic.form, kind.bits, kind.signed
        )

    def to_bytes(self, x: fx.Node) -> fx.Node:
        return x if x.meta["val"].dtype in (torch.int8, torch.uint8) else self.requantize(x)

    # ---- one method for each op of the table, [B, C, H, W] -> [B, C', H', W'] ----

    def convolution(self, x: fx.Node) -> fx.Node:
        x = self.to_bytes(x)
        channels = x.meta["val"].shape[1]
        groups = self.choice.choice([1, channels])
        outputs = groups * self.choice.randint(1, 2) if groups > 1 else self.choice.randint(2, 5)
        kernel = self.choice.choice([1, 2, 3]) if min(x.meta["val"].shape[2:]) > 3 else 1
        weight = self.constant("weight", self.integers((outputs, channels // groups, kernel, kernel), -128, 127, torch.int8))
        bias = self.constant("bias", self.integers((outputs,), -9999, 9999, torch.int32))
        padding = [self.choice.randint(0, kernel - 1) for _ in range(4)]
        pad_value = self.choice.randint(*((0, 255) if x.meta["val"].dtype == torch.uint8 else (-128, 127)))
        return self.call(qc.convolution.default, x, weight, bias, [1, self.choice.randint(1, 2)], padding, [1, 1], groups, pad_value)

    def add(self, x: fx.Node) -> fx.Node:
        other = self.requantize(x)
        operands = [x, other]
        self.choice.shuffle(operands)
        zero_points = [self.choice.randint(-5, 99) for _ in operands]
        bounds = [self.known[node].minus(zero).range for node, zero in zip(operands, zero_points, strict=True)]
        magnitudes = [max(abs(b.low), abs(b.high), 1) for b in bounds]
        factors = [self.choice.uniform(20, 150) / magnitude for magnitude in magnitudes]
        chosen = arithmetic.choose_residual(factors[0], magnitudes[0], factors[1], magnitudes[1])
        names = ("pre_shift_a", "multiplier_a", "pre_shift_b", "multiplier_b")
        sign = self.choice.choice([1, -1])
        values = {name: getattr(chosen, name) * (sign if name == "multiplier_b" else 1) for name in names}
        parameters = [self.constant(name, value) for name, value in values.items()]
        return self.call(qc.add.default, *operands, *parameters, chosen.shift, *zero_points, 3, -100, 127, 8, True)

    def multiply(self, x: fx.Node) -> fx.Node:
        x = self.to_bytes(x)
        gate = self.call(qc.adaptive_max_pool2d.default, x, [1, 1])
        return self.call(qc.multiply.default, x, gate, self.choice.randint(-5, 5), self.choice.randint(-5, 5))

    def matmul(self, x: fx.Node) -> fx.Node:
        x = self.to_bytes(x)
        turned = self.call(aten.permute.default, x, [0, 1, 3, 2])
        return self.call(qc.matmul.default, x, turned, self.choice.randint(-5, 5), self.choice.randint(-5, 5))

    def softmax(self, x: fx.Node) -> fx.Node:
        x, form = self.to_bytes(x), self.choice.choice(arithmetic.SOFTMAX_FORMS)
        table, constants = arithmetic.softmax_parameters(form, self.choice.uniform(0.01, 0.5))
        entries = self.constant("table", table) if table is not None else None
        mask = self.mask(x) if self.choice.random() < 0.5 else None
        return self.call(qc.softmax.default, x, entries, mask, form, constants, self.choice.choice([4, 8]))

    def mask(self, x: fx.Node) -> fx.Node:
        compare = self.choice.choice([aten.eq.Scalar, aten.ne.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.lt.Scalar, aten.le.Scalar])
        first = self.call(compare, x, self.choice.randint(-20, 99))
        second = self.call(aten.logical_not.default, self.call(aten.select.int, first, 1, 0))
        second = self.call(aten.unsqueeze.default, second, 1)
        combine = self.choice.choice([aten.logical_and.default, aten.bitwise_and.Tensor, aten.bitwise_or.Tensor])
        return self.call(combine, first, second)

    def masked(self, x: fx.Node) -> fx.Node:
        x = self.to_bytes(x)
        return self.call(qc.multiply.default, x, self.call(aten.to.dtype, self.mask(x), torch.uint8), 3, 0)

    def normalize(self, x: fx.Node) -> fx.Node:
        epsilon, form = self.choice.choice([0, 100, 1 << 40]), self.choice.choice(arithmetic.NORMALIZE_FORMS)
        return self.call(qc.normalize.default, self.to_bytes(x), self.choice.randint(-5, 99), epsilon, self.choice.random() < 0.5, form)

    def hadamard(self, x: fx.Node) -> fx.Node:
        width = x.meta["val"].shape[-1]
        block = self.choice.choice([order for order in (1, 2, 4) if width % order == 0])
        return self.call(qc.hadamard.default, self.to_bytes(x), block, self.choice.randint(0, 99))

    def nonlinear(self, x: fx.Node) -> fx.Node:
        functions = ("gelu", "silu", "sigmoid", "tanh", "exp", "erf")
        forms = ("shift", "poly", "shift-gelu", "i-gelu", "i-exp")
        pairs = [(function, form) for function in functions for form in forms if arithmetic.has_form(function, form)]
        function, form = self.choice.choice(pairs)
        constants, _ = arithmetic.nonlinear_parameters(function, form, self.choice.uniform(0.01, 0.1), 512)
        return self.call(qc.nonlinear.default, self.to_bytes(x), self.choice.randint(-5, 99), function, form, constants)

    def bucketize(self, x: fx.Node) -> fx.Node:
        boundaries = self.integers((self.choice.randint(1, 15),), -100, 200, torch.int32).sort().values
        return self.call(qc.bucketize.default, x, self.constant("boundaries", boundaries), self.choice.choice([4, 8]))

    def divide(self, x: fx.Node) -> fx.Node:
        divisor = self.call(qc.clamp.default, self.call(qc.sum.default, self.bucketize(x), [1], True, 0), 1, 1 << 20)
        return self.call(qc.divide.default, self.to_bytes(x), divisor, self.choice.randint(0, 8))

    def embedding(self, x: fx.Node) -> fx.Node:
        rows = x.meta["val"].shape[1]
        table = self.constant("embedding", self.integers((rows, self.choice.randint(1, 4)), -128, 127, torch.int8))
        found = self.call(qc.embedding.default, table, self.call(aten.argmax.default, x, 1))
        return self.call(aten.permute.default, found, [0, 3, 1, 2])

    def lookup(self, x: fx.Node) -> fx.Node:
        x = self.to_bytes(x)
        rows = self.choice.choice([(256,), (x.meta["val"].shape[1], 256)])
        return self.call(qc.lookup.default, x, self.constant("table", self.integers(rows, 0, 255, torch.uint8)), 8, False)

    def clamp(self, x: fx.Node) -> fx.Node:
        return self.call(qc.clamp.default, x, self.choice.randint(-20, 5), self.choice.randint(30, 90))

    def max_pool2d(self, x: fx.Node) -> fx.Node:
        padding, dilation = [self.choice.randint(0, 3) for _ in range(4)], [1, self.choice.randint(1, 2)]
        return self.call(qc.max_pool2d.default, self.to_bytes(x), [2, 2], [self.choice.randint(1, 2), 1], padding, dilation)

    def sum_pool2d(self, x: fx.Node) -> fx.Node:
        padding = [self.choice.randint(0, 1) for _ in range(4)]
        return self.call(qc.sum_pool2d.default, self.to_bytes(x), [2, 2], [1, 1], padding, self.choice.randint(0, 50))

    def adaptive_sum_pool2d(self, x: fx.Node) -> fx.Node:
        return self.call(qc.adaptive_sum_pool2d.default, self.to_bytes(x), [4, 3], self.choice.randint(0, 50))

    def adaptive_max_pool2d(self, x: fx.Node) -> fx.Node:
        return self.call(qc.adaptive_max_pool2d.default, x, [4, 5])

    def dilate(self, x: fx.Node) -> fx.Node:
        return self.call(qc.dilate.default, x, [self.choice.randint(1, 2), 2], self.choice.randint(0, 9))

    def movement(self, x: fx.Node) -> fx.Node:
        channels, height, width = x.meta["val"].shape[1:]
        moves: list[Callable[[], fx.Node]] = [
            lambda: self.call(aten.cat.default, [x, self.call(aten.flip.default, x, [1])], 1),
            lambda: self.call(aten.constant_pad_nd.default, x, [1, 0, 0, 2], self.choice.randint(0, 99)),
            lambda: self.call(aten.permute.default, x, [0, 1, 3, 2]),
            lambda: self.call(aten.transpose.int, x, 1, 2),
            lambda: self.call(aten.unflatten.int, self.call(aten.flatten.using_ints, x, 2, 3), 2, [width, height]),
            lambda: self.call(aten.reshape.default, x, [self.call(aten.sym_size.int, x, 0), channels, width, height]),
            lambda: self.call(aten.slice.Tensor, x, 1, 0, channels - 1) if channels > 1 else x,
            lambda: self.call(aten.unsqueeze.default, self.call(aten.select.int, x, 1, channels - 1), 1),
            lambda: self.call(aten.view.default, self.clamp(x), [-1, height, channels, width]),
            lambda: self.call(aten.reshape.default, self.call(aten.clone.default, x), [-1, width, channels, height]),
            lambda: self.call(
                aten.squeeze.dims, self.call(aten.expand.default, self.call(aten.unsqueeze.default, x, 1), [-1, 1, -1, -1, -1]), [1]
            ),
        ]
        return self.choice.choice(moves)()

    def head(self, x: fx.Node) -> fx.Node:
        pooled = self.requantize(self.call(qc.sum.default, self.to_bytes(x), [2], False, self.choice.randint(0, 9)))
        flat = self.call(aten.flatten.using_ints, pooled, 1)
        features = flat.meta["val"].shape[1]
        weight = self.grouped_weight(features) if self.choice.random() < 0.5 else self.byte_weight(features)
        return self.call(qc.linear.default, flat, weight, self.constant("head_bias", self.integers((5,), -99, 99, torch.int32)))

    def byte_weight(self, features: int) -> fx.Node:
        return self.constant("head_weight", self.integers((5, features), -128, 127, torch.int8))

    def grouped_weight(self, features: int) -> fx.Node:
        length = self.choice.randint(1, features)
        codes = self.constant("head_codes", self.integers((5, features), -7, 7, torch.int8))
        factors = self.constant("head_factors", self.integers((5, -(-features // length)), 1, 18, torch.int8))
        return self.call(qc.scale_groups.default, codes, factors, length)

    def build(self, ops: int) -> Program:
        names = ["convolution", "add", "multiply", "lookup", "clamp", "max_pool2d", "sum_pool2d", "adaptive_sum_pool2d"]
        names += [
            "adaptive_max_pool2d",
            "dilate",
            "matmul",
            "softmax",
            "normalize",
            "hadamard",
            "masked",
            "nonlinear",
            "bucketize",
            "divide",
            "embedding",
            *["movement"] * 4,
        ]
        x = self.x
        for _ in range(ops):
            x = getattr(self, self.choice.choice(names))(x)
        y = self.head(x)
        for node in (self.x, y):
            node.meta["quantized"] = self.input_type if node is self.x else QuantizedType(INT32, (0.001,))
        graph_module = self.builder.finish(y)
        inputs = ValueSpec("x", torch.float32, (None, *self.x.meta["val"].shape[1:]), self.input_type)
        outputs = ValueSpec("y", torch.float32, (None, 5), QuantizedType(INT32, (0.001,)))
        return Program(graph_module, Stage.INTEGER, (inputs,), (outputs,))


@pytest.fixture
def random_program() -> Callable[[int], Program]:
    return lambda seed: RandomProgram(seed).build(ops=6)
