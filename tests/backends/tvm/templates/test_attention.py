"""Attention kernels, alone: machine code against ``qcompiler.arithmetic``, for every instruction set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcompiler import arithmetic
from qcompiler.arithmetic import requantize
from qcompiler.arithmetic.softmax import newton_reciprocal
from qcompiler.backends.tvm.kernels import AttentionKernel, Extent, Operand, Requantization

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
NAMES = {"uint8": torch.uint8, "int8": torch.int8}


@dataclass(frozen=True)
class Case:
    """Heads side by side in rows of tokens, as a linear layer gives them."""

    heads: int
    queries: int
    keys: int
    depth: int
    value_depth: int
    dtypes: tuple[Any, Any, Any] = ("int8", "int8", "int8")
    zero_points: tuple[int, int, int] = (0, 0, 0)
    form: Any = "narrow"
    scores: Any = "int8"
    output: Any = "int8"
    bits: int = 8
    mask: Literal["", "keys", "full"] = ""
    length: int | None = None  # of a dynamic sequence, of which the sizes above are the maximum
    scale: float = 0.07
    transposed: bool = False  # keys and values contiguous along the tokens

    def spec(self, dtype: str) -> Requantization:
        limits = np.iinfo(dtype)  # type: ignore[type-var]  # a name of an integer type
        return Requantization(self.form, False, 3 if dtype == "uint8" else -2, int(limits.min), int(limits.max))

    @property
    def kernel(self) -> AttentionKernel:
        queries, keys = (size if self.length is None else Extent(size) for size in (self.queries, self.keys))

        def operand(dtype: str, depth: int, transposed: bool = False) -> Operand:
            return Operand(dtype, (depth * self.keys, 1, self.keys) if transposed else (depth, self.heads * depth, 1))

        return AttentionKernel(
            batch=(self.heads,),
            queries=queries,
            keys=keys,
            depth=self.depth,
            value_depth=self.value_depth,
            q=operand(self.dtypes[0], self.depth),
            k=operand(self.dtypes[1], self.depth, self.transposed),
            v=operand(self.dtypes[2], self.value_depth, self.transposed),
            output=operand(self.output, self.value_depth),
            zero_points=self.zero_points,
            scores=self.spec(self.scores),
            scores_dtype=self.scores,
            bits=self.bits,
            result=self.spec(self.output),
            mask=Operand("bool", (0, self.keys if self.mask == "full" else 0, 1)) if self.mask else None,
        )


UNSIGNED: dict[str, Any] = {"dtypes": ("uint8", "uint8", "uint8"), "zero_points": (100, 130, 120), "scores": "uint8", "output": "uint8"}
CASES = {
    "one token": Case(1, 1, 1, 16, 16),
    "fewer tokens than lanes": Case(2, 9, 9, 16, 16),
    "zero points": Case(2, 37, 29, 24, 40, form="high", **UNSIGNED),
    "few bits": Case(1, 13, 70, 64, 64, ("int8", "uint8", "int8"), (3, 100, -5), "exact64", output="uint8", bits=6),
    "mask of keys": Case(2, 37, 29, 32, 32, mask="keys"),
    "mask of pairs": Case(2, 27, 129, 33, 20, mask="full"),
    "deep heads": Case(1, 20, 66, 128, 128, form="high"),
    "contiguous along tokens": Case(2, 19, 35, 20, 24, transposed=True, zero_points=(1, 2, 3)),
    "sharp": Case(1, 10, 100, 16, 16, scale=1.0),
    "flat": Case(1, 10, 300, 16, 16, scale=1e-4),
    "a few keys more than vectors": Case(1, 69, 139, 64, 24, **UNSIGNED),
    "a few keys more, shallow heads": Case(2, 20, 66, 24, 16, output="uint8"),
    "a few keys more, words": Case(2, 21, 75, 24, 40, ("int16", "int8", "uint8"), (3, -4, 120)),
    "dynamic": Case(2, 37, 37, 32, 16, length=21),
    "dynamic, all at once": Case(2, 100, 100, 32, 16, form="high", mask="full", length=70, **UNSIGNED),
    "dynamic, at its maximum": Case(1, 70, 70, 32, 16, length=70),
}


def _activations(random: np.random.Generator, dtype: str, shape: tuple[int, ...], zero_point: int) -> NDArray[Any]:
    limits = np.iinfo(dtype)  # type: ignore[type-var]  # a name of an integer type
    return random.normal(zero_point, 36, shape).round().clip(limits.min, limits.max).astype(dtype)


def _parameters(form: str, total: NDArray[np.int64]) -> list[NDArray[np.int32]]:
    """A requantization to about 8 bits."""
    bits = int(np.abs(total).max()).bit_length()
    values = {"high": (30 - bits, 1_300_000_000, 22), "narrow": (max(bits - 15, 0), 20_000, 7), "exact64": (0, 1_300_000_000, bits + 23)}
    return [np.array([value], np.int32) for value in values[form]]


def _rounded(total: NDArray[np.int64], spec: Any, parameters: list[NDArray[np.int32]], dtype: str) -> torch.Tensor:
    scaled = requantize.REQUANTIZE[spec.form](torch.from_numpy(total), *map(torch.from_numpy, parameters))
    return requantize.saturate(scaled, spec.zero_point, spec.low, spec.high, NAMES[dtype])


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_equals_reference(name: str, target: str, run_function: Callable[..., Any]) -> None:
    from qcompiler.backends.tvm.templates import attention

    case, random = CASES[name], np.random.default_rng(0)
    tokens = (case.queries, case.keys, case.keys)
    depths = (case.depth, case.depth, case.value_depth)
    q, k, v = (
        _activations(random, dtype, (count, case.heads, depth), zero)
        for dtype, count, depth, zero in zip(case.dtypes, tokens, depths, case.zero_points, strict=True)
    )
    queries, keys = (case.queries if case.length is None else case.length, case.keys if case.length is None else case.length)
    counts = (queries, keys, keys)
    centred = [
        array[:count].transpose(1, 0, 2).astype(np.int64) - zero
        for array, count, zero in zip((q, k, v), counts, case.zero_points, strict=True)
    ]
    mask = random.random((case.queries if case.mask == "full" else 1, case.keys)) < 0.7
    mask[-1, : keys // 2] = False
    if case.mask == "full":
        mask[0] = False  # a row of which nothing is kept
    scores = centred[0] @ centred[1].transpose(0, 2, 1)
    score_parameters = _parameters(case.form, scores)
    table = arithmetic.exponential_table(case.scale).to(torch.int32)
    kept = torch.from_numpy(np.broadcast_to(mask[:queries, :keys], (queries, keys)).copy()) if case.mask else None
    rounded = _rounded(scores, case.spec(case.scores), score_parameters, case.scores)
    probabilities = arithmetic.softmax(rounded, table, kept, "table", [], case.bits)
    total = np.asarray(probabilities).astype(np.int64) @ centred[2]
    result_parameters = _parameters(case.form, total)
    want = np.asarray(_rounded(total, case.spec(case.output), result_parameters, case.output))

    if case.transposed:
        k, v = (np.ascontiguousarray(array.transpose(1, 2, 0)) for array in (k, v))
    masks = [mask.astype(np.uint8)] if case.mask else []
    arrays = [q, k, v, *score_parameters, np.asarray(table), *masks, *result_parameters]
    after = [np.array([case.length], np.int32)] if case.length is not None else []
    size = case.queries * case.heads * case.value_depth
    got = run_function(attention.emit, case.kernel, target, arrays, size, case.output, after)
    assert np.array_equal(got.reshape(case.queries, case.heads, -1)[:queries].transpose(1, 0, 2), want)


def test_reciprocals_keep_to_16_bits() -> None:
    """What the module's derivation needs of y, for every normalized sum, and of u for the largest exponential."""
    y = newton_reciprocal(torch.arange(1 << 14, 1 << 15))
    assert int(y.min()) > 0 and int(y.max()) < 1 << 16
    assert int((((1 << 15) - 1) * y).max() >> 15) <= 1 << 15


def test_rescaled_probabilities_are_those_of_the_formula() -> None:
    """The instructions that the module's docstring names, on every u and for every s, against the formula they stand for."""
    u = torch.arange((1 << 15) + 1, dtype=torch.int64)
    for bits in range(1, 9):
        high = (1 << bits) - 1
        reduced = (u * (high << 8)) >> 16
        for s in range(14, 31):
            factor = (1 << 23) >> s
            assert torch.equal((reduced * factor + (1 << 14)) >> 15, (u * high + (1 << (s - 1))) >> s)
