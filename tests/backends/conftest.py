"""Small INTEGER programs built by hand, and the comparison of a compiled program with the reference."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import fx, nn

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.api import quantize
from qcompiler.backends.reference import backend as reference
from qcompiler.backends.tvm import backend as tvm
from qcompiler.capture import capture
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.sizes import concrete_shape, dynamic_sizes, specified, symbols_of
from qcompiler.ir.types import UINT8, QuantizedType, SpecSize, Stage
from qcompiler.pipeline.backend import Executable


class IntegerProgram:
    """Builds an INTEGER program: every placeholder is uint8 with scale 0.05 and zero point 7, every constant random."""

    def __init__(self, seed: int = 0) -> None:
        self.builder = GraphBuilder()
        self.random = torch.Generator().manual_seed(seed)
        self._inputs: list[ValueSpec] = []

    def input(self, *shape: SpecSize) -> fx.Node:
        name = f"x{len(self._inputs)}"
        self._inputs.append(ValueSpec(name, torch.float32, shape, QuantizedType(UINT8, (0.05,), (7,))))
        return self.builder.input(name, shape, torch.uint8)

    def call(self, op: str, *args: object, name: str | None = None) -> fx.Node:
        namespace, _, packet = op.partition(".")
        target = getattr(getattr(torch.ops, namespace), packet.partition(":")[0])
        return self.builder.call(getattr(target, packet.partition(":")[2] or "default"), *args, name=name)

    def constant(self, name: str, tensor: torch.Tensor) -> fx.Node:
        return self.builder.constant(name, tensor)

    def integers(self, name: str, low: int, high: int, shape: Sequence[int] = (), dtype: torch.dtype = torch.int32) -> fx.Node:
        return self.constant(name, torch.randint(low, high + 1, tuple(shape), generator=self.random).to(dtype))

    def multiplier(self, shape: Sequence[int] = ()) -> fx.Node:
        return self.constant("multiplier", 2 * torch.randint(1 << 29, 1 << 30, tuple(shape), generator=self.random).to(torch.int32))

    def requantize(self, x: fx.Node, bound: int, channels: Sequence[int] = (), form: str = "high", signed: bool = False) -> fx.Node:
        """To about the whole range of 8 bits, for |x| <= bound."""
        bits = bound.bit_length()
        low, high = (-128, 127) if signed else (0, 255)
        if form == "high":
            # (bound << pre_shift) * multiplier >> 32 is about 2^(29 or 30): shift down to 8 bits
            pre_shift, multiplier, shift = self.constant("pre_shift", _full(30 - bits, channels)), self.multiplier(channels), 20
        elif form == "narrow":
            pre_shift = self.constant("pre_shift", _full(max(bits - 14, 0), channels))
            multiplier, shift = self.integers("multiplier", 1 << 14, (1 << 15) - 1, channels), 6
        else:
            pre_shift, multiplier, shift = self.constant("pre_shift", _full(0, channels)), self.multiplier(channels), bits + 22
        shifts = self.constant("shift", _full(shift, channels))
        return self.call("qc.requantize", x, pre_shift, multiplier, shifts, 0, 0 if signed else 100, low, high, form, 8, signed)

    def add(
        self, a: fx.Node, b: fx.Node, bound_a: int, bound_b: int, channels: Sequence[int] = (), zero_points: Sequence[int] = (0, 0)
    ) -> fx.Node:
        """Operand a may have a multiplier for each channel."""
        scaling = [
            self.constant("pre_shift_a", _full(30 - bound_a.bit_length(), channels)),
            self.multiplier(channels),
            self.constant("pre_shift_b", _full(30 - bound_b.bit_length(), ())),
            self.multiplier(),
        ]
        return self.call("qc.add", a, b, *scaling, 21, *zero_points, 90, 0, 255, 8, False)

    def convolution(
        self,
        x: fx.Node,
        channels: int,
        kernel: tuple[int, int] = (1, 1),
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0, 0, 0),
        dilation: Sequence[int] = (1, 1),
        groups: int = 1,
        pad_value: int = 7,
    ) -> tuple[fx.Node, int]:
        """The accumulator and a bound of its magnitude."""
        shape = (channels, x.meta["val"].shape[1] // groups, *kernel)
        weight = self.integers("weight", -127, 127, shape, torch.int8)
        bias = self.integers("bias", -5000, 5000, (channels,))
        node = self.call("qc.convolution", x, weight, bias, list(stride), list(padding), list(dilation), groups, pad_value)
        return node, 127 * 255 * shape[1] * kernel[0] * kernel[1] + 5000

    def linear(self, x: fx.Node, features: int, largest: int = 255) -> tuple[fx.Node, int]:
        """The accumulator of a layer whose inputs are at most ``largest`` in magnitude, and a bound of it."""
        inputs = x.meta["val"].shape[-1]
        weight = self.integers("weight", -127, 127, (features, inputs), torch.int8)
        return self.call("qc.linear", x, weight, self.integers("bias", -5000, 5000, (features,))), 127 * largest * inputs + 5000

    def finish(self, *outputs: fx.Node) -> Program:
        program = Program(self.builder.finish(*outputs), Stage.INTEGER, tuple(self._inputs), ())
        symbols = symbols_of(program)
        shapes = [tuple(specified(size, symbols) for size in node.meta["val"].shape) for node in outputs]
        specs = [ValueSpec(node.name, node.meta["val"].dtype, shape) for node, shape in zip(outputs, shapes, strict=True)]
        return program.replace(outputs=tuple(specs))


def _full(value: int, shape: Sequence[int]) -> torch.Tensor:
    return torch.full(tuple(shape), value, dtype=torch.int32)


def _random_inputs(program: Program, batch: int, seed: int = 0, length: int | None = None) -> tuple[torch.Tensor, ...]:
    """Integer inputs over the whole range of uint8; ``length``: the value of a dynamic size, its maximum where not given."""
    random = torch.Generator().manual_seed(seed)
    values = dict.fromkeys(dynamic_sizes(program.inputs), length) if length is not None else None
    shapes = [concrete_shape(spec.shape, batch, values) for spec in program.inputs]
    return tuple(torch.randint(0, 256, shape, generator=random).to(torch.uint8) for shape in shapes)


@pytest.fixture(scope="session")
def random_inputs() -> Callable[..., tuple[torch.Tensor, ...]]:
    return _random_inputs


@pytest.fixture(scope="session")
def integer_program() -> Callable[..., IntegerProgram]:
    return IntegerProgram


@pytest.fixture(scope="session")
def compile_for() -> Callable[..., Executable]:
    """Compile and load for a target; skips where this machine cannot run its code."""

    def compile_and_load(program: Program, target: str, keep: Sequence[str] = (), threads: int = 1) -> Executable:
        backend = reference if target == "reference" else tvm
        reason = backend.available(target)
        if reason is not None:
            pytest.skip(reason)
        return backend.load(program, backend.compile(program, target, keep=keep), threads)

    return compile_and_load


@pytest.fixture(scope="session")
def differences() -> Callable[..., list[str]]:
    """Names of the outputs in which an executable differs from the reference, for several batches and numbers of threads."""

    def compare(
        program: Program,
        executable: Executable,
        names: Sequence[str],
        batches: Sequence[int] = (1, 3, 17),
        lengths: Sequence[int | None] = (None,),
    ) -> list[str]:
        found = []
        for batch, length, threads in itertools.product(batches, lengths, (1, 2)):
            inputs = _random_inputs(program, batch, seed=batch, length=length)
            executable.set_threads(threads)
            for name, want, got in zip(names, program.run_integer(*inputs), executable.run_integer(*inputs), strict=True):
                if want.dtype != got.dtype or not torch.equal(want, got):
                    found.append(f"{name} at batch {batch}, length {length}, {threads} thread(s)")
        return found

    return compare


class OneBit(nn.Module):
    """Convolutions of three kinds, a residual sum, a linear layer; [N, 3, 8, 8] to [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 70, 3, padding=1), nn.Conv2d(70, 70, 3, padding=1, groups=70)
        self.point, self.up, self.head = nn.Conv2d(70, 70, 1), nn.ConvTranspose2d(70, 12, 2, stride=2), nn.Linear(768, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.stem(x).relu()).relu()
        x = (x + self.point(x)).relu()
        result: torch.Tensor = self.head(nn.functional.max_pool2d(self.up(x).relu(), 2).flatten(1))
        return result


@pytest.fixture(scope="session")
def one_bit() -> Callable[[str], tuple[Program, torch.Tensor]]:
    """``one_bit("w=1,a=2")``: the INTEGER program of a network with these options of quantize, and the inputs it was calibrated on."""
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8)
    program = capture(OneBit().eval(), x[:2], dynamic_batch=True)

    @functools.cache
    def quantized(options: str) -> tuple[Program, torch.Tensor]:
        return quantize(program, x.split(8), passes=f"canonicalize,quantize{{{options}}},lower-integer,optimize"), x

    return quantized
