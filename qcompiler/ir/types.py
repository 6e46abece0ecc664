"""What a value is at the stages QDQ and INTEGER: its integer type, its scale, and the range proven for it."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from qcompiler.errors import VerificationError


class Stage(enum.Enum):
    """The way of the data goes one direction: FLOAT, then QDQ, then INTEGER."""

    FLOAT = "float"
    QDQ = "qdq"
    INTEGER = "integer"


@dataclass(frozen=True)
class IntegerType:
    """A two's-complement (or unsigned) integer of ``bits`` bits; knows its bounds and how torch stores it."""

    bits: int
    signed: bool

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 32 or (not self.signed and self.bits > 16):
            raise VerificationError(f"no integer type has {self.bits} bits, signed={self.signed}: use 1..32 signed or 1..16 unsigned")

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        return (1 << (self.bits - 1)) - 1 if self.signed else (1 << self.bits) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest torch dtype that holds every value: unsigned 9..16 bits are stored in int32."""
        if self.bits <= 8:
            return torch.int8 if self.signed else torch.uint8
        return torch.int16 if self.signed and self.bits <= 16 else torch.int32

    def __str__(self) -> str:
        return f"{'i' if self.signed else 'u'}{self.bits}"


INT2 = IntegerType(2, True)  # of weights of 1 bit too, which are -1 and +1: their integers tell them from others
INT8, UINT8, INT16, INT32 = IntegerType(8, True), IntegerType(8, False), IntegerType(16, True), IntegerType(32, True)


@dataclass(frozen=True)
class IntegerRange:
    """Every value of a tensor lies in [low, high]; proven by interval analysis, never measured."""

    low: int
    high: int

    def within(self, kind: IntegerType) -> bool:
        return kind.low <= self.low and self.high <= kind.high

    def union(self, other: IntegerRange) -> IntegerRange:
        return IntegerRange(min(self.low, other.low), max(self.high, other.high))

    def intersection(self, other: IntegerRange) -> IntegerRange:
        return IntegerRange(max(self.low, other.low), min(self.high, other.high))

    def __str__(self) -> str:
        return f"[{self.low}, {self.high}]"


@dataclass(frozen=True)
class QuantizedType:
    """real = scale * (integer - zero_point), per tensor (one scale) or per channel along ``axis``.

    Scales are float32 values held as Python floats. At INTEGER ``range`` is the interval proven for the integers.
    An int32 accumulator has a scale too (product of input and weight scale) and zero point 0.
    """

    integer: IntegerType
    scale: tuple[float, ...]
    zero_point: tuple[int, ...] = (0,)
    axis: int | None = None
    range: IntegerRange | None = None

    def __post_init__(self) -> None:
        if not self.scale or any(not (s > 0 and s < float("inf")) for s in self.scale):
            raise VerificationError(f"scales must be positive and finite, got {self.scale[:4]}")
        if len(self.zero_point) not in (1, len(self.scale)):
            raise VerificationError(f"{len(self.scale)} scales but {len(self.zero_point)} zero points")
        if (self.axis is None) != (len(self.scale) == 1) and self.axis is None:
            raise VerificationError(f"{len(self.scale)} scales need an axis")

    @classmethod
    def from_arguments(cls, scale: Sequence[float], zero_point: Sequence[int], axis: int, bits: int, signed: bool) -> QuantizedType:
        """The type that ``qc::quantize`` and ``qc::dequantize`` state after their tensor; axis -1: per tensor."""
        return cls(IntegerType(bits, signed), tuple(scale), tuple(zero_point), None if axis < 0 else axis)

    @property
    def arguments(self) -> tuple[list[float], list[int], int, int, bool]:
        """What these ops take after their tensor."""
        return list(self.scale), list(self.zero_point), -1 if self.axis is None else self.axis, self.integer.bits, self.integer.signed

    @property
    def per_channel(self) -> bool:
        return self.axis is not None

    def with_range(self, low: int, high: int) -> QuantizedType:
        return replace(self, range=IntegerRange(low, high))


@dataclass(frozen=True)
class DynamicSize:
    """A size that is known when the program is called: the value of the symbol ``name``, in [``minimum``, ``maximum``], plus ``offset``.

    Sizes with one name have one value in a call. The batch is no such size: nothing bounds it, and samples do not see it.
    """

    name: str
    minimum: int
    maximum: int
    offset: int = 0

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise VerificationError(f"the dynamic size {self.name!r} needs a name that is an identifier")
        if not 1 <= self.minimum <= self.maximum or self.maximum < 2:
            raise VerificationError(
                f"the dynamic size '{self.name}' lies in [{self.minimum}, {self.maximum}]: give 1 <= minimum <= maximum and maximum >= 2"
            )
        if self.minimum + self.offset < 0:
            raise VerificationError(f"the dynamic size '{self}' is negative for the minimum {self.minimum}")

    @property
    def largest(self) -> int:
        return self.maximum + self.offset

    def __str__(self) -> str:
        return f"{self.name}{self.offset:+d}" if self.offset else self.name


# A size in a specification: a number, the batch (None), or a size with a symbol of its own.
SpecSize = int | DynamicSize | None


@dataclass(frozen=True)
class Precision:
    """Bits asked for at one node, ``node.meta["precision"]``: of its weight and of the value that it gives.

    None leaves the decision to the options of the pass that quantizes. Bit allocation and recipes for single layers write it at FLOAT.
    A weight of 1 bit is -1 or +1, an activation of 1 bit 0 or 1.

    channels: bits of each output channel of the weight, where they differ; ``weight`` is the most of them then. ``split-channels`` makes
        a layer of each width.
    """

    weight: int | None = None
    activation: int | None = None
    channels: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        of_channels = (("channel", bits, 8) for bits in self.channels)
        for what, bits, most in (("weight", self.weight, 8), ("activation", self.activation, 16), *of_channels):
            if bits is not None and not 1 <= bits <= most:
                raise VerificationError(f"a precision of {bits} bits for {what}s: use 1..{most}")


def probability_type(bits: int) -> QuantizedType:
    """What the results of ``qc::softmax`` with ``bits`` bits mean: unsigned, and the largest integer is 1."""
    scale = torch.tensor(1.0 / ((1 << bits) - 1), dtype=torch.float32)
    return QuantizedType(IntegerType(bits, signed=False), (float(scale),))
