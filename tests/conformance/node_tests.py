"""Node tests of the package ``onnx``: each is imported, run at stage FLOAT and compared with the output that it expects."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from onnx.backend.test.case.test_case import TestCase
from onnx.backend.test.loader import load_model_tests

from qcompiler.capture import capture
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program

# Ops that stage FLOAT has no place for, but that a program may hold as float islands: the importer must get them right too.
ISLANDS = tuple(
    f"aten.{name}"
    for name in (
        "acos.default acosh.default asin.default asinh.default atan.default atanh.default ceil.default cos.default cosh.default "
        "floor.default round.default sign.default sin.default sinh.default tan.default isinf.default isnan.default "
        "pow.Tensor_Tensor fmod.Tensor remainder.Tensor div.Tensor_mode logical_xor.default bitwise_xor.Tensor bitwise_left_shift.Tensor "
        "bitwise_right_shift.Tensor bitwise_not.default conv3d.default avg_pool3d.default conv_transpose3d.input max_pool3d.default "
        "cumsum.default cumprod.default prod.dim_int amin.default gather.default scatter.src scatter_reduce.two index_put.default "
        "diagonal.default add.Scalar"
    ).split()
)


def cases() -> dict[str, TestCase]:
    """All node tests by name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {case.name: case for case in load_model_tests(kind="node")}


def failure(case: TestCase) -> str | None:
    """Why a test does not pass, in one line; None if it does."""
    try:
        program = capture(case.model, dynamic_batch=False, allow_float=ISLANDS)
    except QCompilerError as error:
        return str(error)
    for inputs, outputs in case.data_sets:
        difference = _difference(program, inputs, outputs, case)
        if difference is not None:
            return difference
    return None


def _difference(program: Program, inputs: list[Any], outputs: list[Any], case: TestCase) -> str | None:
    try:
        results = program.run(*(_given(value, spec.dtype) for value, spec in zip(inputs, program.inputs, strict=False)))
    except (RuntimeError, IndexError, ValueError, TypeError) as error:
        return f"the program fails: {type(error).__name__}: {str(error).splitlines()[0]}"
    for result, expected in zip(results, outputs, strict=True):
        found = _mismatch(result, np.asarray(expected), case)
        if found is not None:
            return found
    return None


def _given(value: Any, dtype: torch.dtype) -> torch.Tensor:
    """An input of the test in the type that the program takes: float32 for every float."""
    array = np.asarray(value)
    if array.dtype.kind in "fV":
        array = array.astype(np.float32)
    return torch.from_numpy(np.array(array)).to(dtype)


def _mismatch(result: torch.Tensor, expected: np.ndarray, case: TestCase) -> str | None:
    if tuple(result.shape) != expected.shape:
        return f"the result has the shape {list(result.shape)}, expected {list(expected.shape)}"
    if expected.dtype.kind in "fV":
        expected = expected.astype(np.float32)
        close = np.allclose(result.to(torch.float32).numpy(), expected, case.rtol, case.atol, equal_nan=True)
        return None if close else "the result differs"
    if expected.dtype.kind in "iu":
        return None if np.array_equal(result.to(torch.int64).numpy(), expected.astype(np.int64)) else "the result differs"
    return None if np.array_equal(result.numpy(), expected) else "the result differs"


def results() -> Iterator[tuple[str, str | None]]:
    """Name and reason of each test, for scripts."""
    for name, case in cases().items():
        yield name, failure(case)
