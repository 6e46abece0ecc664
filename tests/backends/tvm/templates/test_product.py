"""Products of two activations, alone: machine code against ``qcompiler.arithmetic``, for every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.arithmetic import requantize
from qcompiler.backends.tvm.kernels import Extent, MatrixProductKernel, Operand, Requantization
from qcompiler.backends.tvm.templates import product_layout

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
NAMES = {"uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16}


@dataclass(frozen=True)
class Case:
    """[batch, rows, length] times [batch, length, columns], the latter contiguous along the length where ``transposed``."""

    batch: int
    rows: int
    columns: int
    length: int
    left: Any = "uint8"
    right: Any = "int8"
    transposed: bool = False
    zero_points: tuple[int, int] = (0, 0)
    form: Any = None
    output: Any = "int32"
    extents: dict[str, int] = field(default_factory=dict)  # by the name of a size: its value; the size above is its maximum

    @property
    def spec(self) -> Requantization | None:
        limits = np.iinfo(self.output)
        return Requantization(self.form, False, 3, int(limits.min) + 1, int(limits.max) - 2) if self.form else None

    def size(self, name: str) -> int | Extent:
        return Extent(getattr(self, name)) if name in self.extents else getattr(self, name)  # type: ignore[no-any-return]

    @property
    def kernel(self) -> MatrixProductKernel:
        """Rows lie apart by some elements more than they have."""
        pitch = self.length + 5
        right = (self.columns * pitch, 1, pitch) if self.transposed else (self.length * (self.columns + 3), self.columns + 3, 1)
        return MatrixProductKernel(
            batch=(self.batch,),
            rows=self.size("rows"),
            columns=self.size("columns"),
            length=self.size("length"),
            a=Operand(self.left, (self.rows * pitch, pitch, 1)),
            b=Operand(self.right, right),
            output=Operand(self.output, (self.rows * self.columns, self.columns, 1)),
            zero_point_a=self.zero_points[0],
            zero_point_b=self.zero_points[1],
            epilogue=self.spec,
        )


CASES = {
    "one element": Case(1, 1, 1, 1),
    "shorter than a group": Case(2, 7, 5, 3, transposed=True, zero_points=(3, 0)),
    "flipped both": Case(2, 13, 70, 17, "int8", "uint8", zero_points=(-3, 7)),
    "flipped both, transposed": Case(2, 13, 70, 130, "int8", "uint8", True, (-3, 7), "narrow", "int8"),
    "long rows": Case(1, 5, 20, 515, zero_points=(9, -4), form="high", output="uint8"),
    "exact64": Case(1, 33, 40, 65, "uint8", "uint8", True, (5, 200), "exact64", "uint8"),
    "words": Case(1, 33, 40, 65, "int16", "int8", zero_points=(0, 1), form="high", output="int8"),
    "words, accumulator": Case(2, 6, 9, 31, "int16", "uint8", True, (0, 100)),
    "wide output": Case(1, 17, 50, 64, "int8", "int8", form="narrow", output="int16"),
    "dynamic rows and columns": Case(2, 40, 70, 36, "int8", "int8", True, (1, 2), "high", "int8", {"rows": 23, "columns": 23}),
    "dynamic length": Case(2, 9, 40, 90, "uint8", "uint8", False, (0, 120), "high", "int8", {"length": 37}),
    "dynamic length, transposed": Case(2, 9, 40, 90, "int8", "int8", True, (5, 6), "high", "int8", {"length": 37}),
}


def _random(random: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Any:
    limits = np.iinfo(dtype)
    return random.integers(limits.min, int(limits.max) + 1, shape).astype(dtype)


def _parameters(case: Case, largest: int) -> list[Any]:
    """A requantization that uses about all of the output's range."""
    bits, wanted = largest.bit_length(), 14 if case.output == "int16" else 7
    values = {
        "high": (30 - bits, 1_300_000_000, 30 - wanted),
        "narrow": (max(bits - 15, 0), 20_000, 14 - wanted),
        "exact64": (0, 1_300_000_000, bits + 31 - wanted),
    }
    return [np.array([value], np.int32) for value in values[case.form]] if case.form else []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str, target: str, run_function: Callable[..., Any]) -> None:
    from qcompiler.backends.tvm.templates import product

    case, random = CASES[name], np.random.default_rng(0)
    kernel, pitch = case.kernel, case.length + 5
    a = _random(random, case.left, (case.batch, case.rows, pitch))
    b = _random(random, case.right, (case.batch, case.columns, pitch) if case.transposed else (case.batch, case.length, case.columns + 3))
    rows, columns, length = (case.extents.get(size, getattr(case, size)) for size in ("rows", "columns", "length"))
    right = b.transpose(0, 2, 1) if case.transposed else b
    left, right = (array.astype(np.int64) for array in (a[:, :rows, :length], right[:, :length, :columns]))
    total = (left - case.zero_points[0]) @ (right - case.zero_points[1])
    parameters = _parameters(case, int(np.abs(total).max()))
    spec: Any = case.spec
    want = total
    if spec is not None:
        scaled = requantize.REQUANTIZE[case.form](torch.from_numpy(total), *map(torch.from_numpy, parameters))
        want = np.asarray(requantize.saturate(scaled, spec.zero_point, spec.low, spec.high, NAMES[case.output]))
    after = [np.array([next(iter(case.extents.values()))], np.int32)] if case.extents else []
    size = case.batch * case.rows * case.columns
    got = run_function(product.emit, kernel, target, [a, b, *parameters], size, case.output, after)
    assert np.array_equal(got.reshape(case.batch, case.rows, case.columns)[:, :rows, :columns], want)


def test_scratch_grows_with_the_length() -> None:
    assert product_layout.fits_stack(Case(1, 8, 8, 4096).kernel, "x86-64-vnni")
    assert not product_layout.fits_stack(Case(1, 8, 8, 65536).kernel, "x86-64-vnni")
