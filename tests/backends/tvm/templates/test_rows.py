"""Row kernels, alone: their machine code against ``qcompiler.arithmetic`` on strided rows, with tails, masks and dynamic sizes."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qcompiler import arithmetic
from qcompiler.backends.tvm.kernels import (
    ArgumentMaximum,
    Bucketize,
    Divide,
    Embedding,
    Extent,
    Nonlinear,
    Normalize,
    Operand,
    RowKernel,
    Softmax,
    is_dynamic,
    maximum,
)
from qcompiler.backends.tvm.target import available

Array = NDArray[Any]
# No row kernel has an instruction of AMX: its code for that target is that for AVX512-VNNI.
TARGETS = ("x86-64-v3", "x86-64-vnni")
GUARD = 0x5A
SLACK = 256
LAUNCHER = """
#include <stddef.h>
static int launch(int (*task)(int, void *, void *), void *data, int count)
{ struct { void *sync; int tasks; } group = {NULL, 1}; (void)count; return task(0, &group, data); }
int (*__TVMBackendParallelLaunch)(int (*)(int, void *, void *), void *, int) = launch;
"""


@dataclass(frozen=True)
class Case:
    """A kernel, its arrays in the kernel's order, and what it must give for the first ``rows`` rows of ``length`` elements."""

    kernel: RowKernel
    inputs: tuple[Array, ...]
    want: Array
    symbol: int = 0


def _rows(random: np.random.Generator, dtype: str, rows: int, length: int, spare: int = 3) -> Array:
    """Random numbers of the whole type, in rows that lie ``spare`` elements apart."""
    limits = np.iinfo(dtype)
    return random.integers(limits.min, int(limits.max) + 1, (rows, length + spare)).astype(dtype)


def _tensor(array: Array, length: int) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array[:, :length]))


def softmax(form: str, dtype: str, length: int, bits: int, mask: str = "", most: int | None = None, scale: float = 0.02) -> Case:
    """``mask``: "" none, "row" one for all rows, "each" one a row. ``most``: the length is dynamic, of at most so many."""
    random, rows, whole = np.random.default_rng(length), 5, most or length
    x = _rows(random, dtype, rows, whole)
    if dtype == "int16":
        x = (x >> 4).astype(dtype)
    table, constants = arithmetic.softmax_parameters(form, scale)
    kept = random.integers(0, 2, (rows if mask == "each" else 1, whole)).astype(bool)
    kept[0] &= mask != "each"  # a row of which nothing is kept
    wanted = torch.from_numpy(kept[:, :length]) if mask else None
    want = arithmetic.softmax(_tensor(x, length), table, wanted, form, constants, bits).numpy()
    size = Extent(whole) if most else length
    kernel = RowKernel(
        operation=Softmax(form, tuple(constants), bits),
        shape=(rows,),
        length=size,
        operand=Operand(dtype, (x.shape[1], 1)),
        output=Operand(str(want.dtype), (whole + 2, 1)),
        second=Operand("bool", (kept.shape[1] if mask == "each" else 0, 1)) if mask else None,
    )
    arrays = [x, *([kept.astype(np.uint8)] if mask else []), *([table.numpy()] if table is not None else [])]
    return Case(kernel, tuple(arrays), want, length)


def nonlinear(function: str, form: str, dtype: str, length: int, scale: float) -> Case:
    random, rows, zero_point = np.random.default_rng(length), 4, 3
    x = _rows(random, dtype, rows, length)
    limits = np.iinfo(dtype)
    constants, _ = arithmetic.nonlinear_parameters(function, form, scale, max(limits.max - zero_point, zero_point - limits.min))
    want = arithmetic.nonlinear(_tensor(x, length), zero_point, function, form, constants).numpy()
    operation = Nonlinear(zero_point, function, form, tuple(constants))
    kernel = RowKernel(operation, (rows,), length, Operand(dtype, (x.shape[1], 1)), Operand("int32", (length + 2, 1)))
    return Case(kernel, (x,), want)


def normalize(form: str, dtype: str, length: int, centre: bool) -> Case:
    random, rows = np.random.default_rng(length), 5
    x = _rows(random, dtype, rows, length)
    x[0] = 3  # no spread at all
    want = arithmetic.normalize(_tensor(x, length), 3, 0, centre, form).numpy()
    operation = Normalize(3, 0, centre, form)
    return Case(RowKernel(operation, (rows,), length, Operand(dtype, (x.shape[1], 1)), Operand("int32", (length + 2, 1))), (x,), want)


def divide(shared: bool, length: int, bits: int) -> Case:
    random, rows = np.random.default_rng(length), 6
    x = random.integers(-(2**20), 2**20, (rows, length + 1)).astype(np.int32)
    divisor = random.integers(1, 2**20, (rows, 1 if shared else length)).astype(np.int32)
    divisor[0], divisor[1] = 1, 2**10
    x[0] >>= bits
    want = arithmetic.divide(_tensor(x, length), torch.from_numpy(divisor), bits).numpy()
    strides = (1, 0) if shared else (length, 1)
    kernel = RowKernel(
        *(Divide(bits), (rows,), length, Operand("int32", (length + 1, 1)), Operand("int32", (length + 2, 1)), Operand("int32", strides))
    )
    return Case(kernel, (x, divisor), want)


def bucketize(dtype: str, length: int, count: int) -> Case:
    random, rows = np.random.default_rng(length), 3
    x = _rows(random, dtype, rows, length)
    boundaries = np.sort(random.choice(x[:, :length].reshape(-1), count)).astype(np.int32)
    want = arithmetic.bucketize(_tensor(x, length), torch.from_numpy(boundaries)).numpy().astype(np.uint8)
    kernel = RowKernel(Bucketize(count), (rows,), length, Operand(dtype, (x.shape[1], 1)), Operand("uint8", (length + 2, 1)))
    return Case(kernel, (x, boundaries), want)


def argument_maximum(dtype: str, length: int) -> Case:
    random, rows = np.random.default_rng(length), 7
    x = (_rows(random, dtype, rows, length) >> 4).astype(dtype)  # several elements are the largest
    kernel = RowKernel(ArgumentMaximum(), (rows,), length, Operand(dtype, (x.shape[1], 1)), Operand("int64", (2,)))
    return Case(kernel, (x,), x[:, :length].argmax(axis=1)[:, None])


def embedding(dtype: str, length: int, ids: str) -> Case:
    random, rows = np.random.default_rng(length), 9
    table, numbers = _rows(random, dtype, 20, length, 0), random.integers(0, 20, rows).astype(ids)
    kernel = RowKernel(Embedding(), (rows,), length, Operand(ids, (1, 0)), Operand(dtype, (length + 2, 1)), Operand(dtype, (length, 1)))
    return Case(kernel, (numbers, table), table[numbers])


CASES: dict[str, Callable[[], Case]] = {
    "softmax table": lambda: softmax("table", "int8", 197, 8),
    "softmax table uint8 narrow": lambda: softmax("table", "uint8", 5, 4),
    "softmax table masked": lambda: softmax("table", "int8", 70, 8, "row"),
    "softmax table, 16 bits, masks": lambda: softmax("table", "uint8", 130, 16, "each"),
    "softmax table, dynamic": lambda: softmax("table", "int8", 67, 8, "each", most=200),
    "softmax table, dynamic, short": lambda: softmax("table", "int8", 1, 8, most=200),
    "softmax wide table": lambda: softmax("wide-table", "int8", 197, 8, scale=0.1),
    "softmax wide table, 24 bits, masks": lambda: softmax("wide-table", "uint8", 70, 24, "each"),
    "softmax wide table of equal scores": lambda: softmax("wide-table", "int8", 5000, 1, scale=1e-5),
    "softmax wide table, longest row": lambda: softmax("wide-table", "int8", 1 << 16, 24, scale=1e-5),
    "softmax wide table, one element": lambda: softmax("wide-table", "uint8", 1, 24, scale=2.0),
    "softmax wide table, dynamic": lambda: softmax("wide-table", "int8", 1, 16, "row", most=200),
    "softmax shift": lambda: softmax("shift", "int8", 197, 8),
    "softmax shift int16": lambda: softmax("shift", "int16", 50, 12, scale=0.003),
    "softmax poly": lambda: softmax("poly", "int16", 197, 8, "row", scale=0.003),
    "softmax poly, dynamic": lambda: softmax("poly", "int8", 64, 16, most=128),
    "softmax shiftmax": lambda: softmax("shiftmax", "int8", 197, 8),
    "softmax shiftmax masked": lambda: softmax("shiftmax", "int8", 33, 16, "each"),
    "softmax i-softmax": lambda: softmax("i-softmax", "int8", 197, 8),
    "softmax i-softmax masked": lambda: softmax("i-softmax", "int8", 33, 16, "each"),
    **{
        f"nonlinear {function} {form}": lambda function=function, form=form: nonlinear(function, form, "int16", 77, 0.0005)  # type: ignore[misc]  # defaults bind
        for function in ("gelu", "silu", "sigmoid", "tanh", "exp", "erf")
        for form in ("shift", "poly")
    },
    "nonlinear gelu shift uint8": lambda: nonlinear("gelu", "shift", "uint8", 3, 0.05),
    "nonlinear gelu shift-gelu": lambda: nonlinear("gelu", "shift-gelu", "int8", 37, 0.05),
    "nonlinear gelu i-gelu": lambda: nonlinear("gelu", "i-gelu", "int8", 37, 0.05),
    "nonlinear erf i-gelu": lambda: nonlinear("erf", "i-gelu", "int8", 37, 0.05),
    "nonlinear exp i-exp": lambda: nonlinear("exp", "i-exp", "int8", 37, 0.05),
    "normalize i-layernorm": lambda: normalize("i-layernorm", "int16", 193, True),
    "normalize i-layernorm not centred": lambda: normalize("i-layernorm", "uint8", 31, False),
    "normalize i-bert": lambda: normalize("i-bert", "int16", 193, True),
    "normalize i-bert bytes": lambda: normalize("i-bert", "int8", 64, False),
    "divide shared": lambda: divide(True, 19, 10),
    "divide each": lambda: divide(False, 37, 3),
    "bucketize": lambda: bucketize("int16", 45, 15),
    "bucketize bytes": lambda: bucketize("uint8", 200, 255),
    "argmax": lambda: argument_maximum("int8", 50),
    "argmax int32": lambda: argument_maximum("int32", 1000),
    "embedding": lambda: embedding("int8", 100, "int64"),
    "embedding int16": lambda: embedding("int16", 32, "int32"),
}


def _buffer(array: Array) -> Array:
    """The array at a 64-byte boundary, between guards that may be read."""
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    memory = np.full(raw.size + 2 * SLACK + 64, GUARD, np.uint8)
    start = SLACK + (-memory.ctypes.data - SLACK) % 64
    memory[start : start + raw.size] = raw
    return memory[start : start + raw.size].view(array.dtype)


def _library(cases: Sequence[Case], target: str, folder: Path) -> ctypes.CDLL:
    from qcompiler.backends.tvm import codegen
    from qcompiler.backends.tvm.target import TARGETS as KERNEL_TARGETS
    from qcompiler.backends.tvm.templates import rows

    for number, case in enumerate(cases):
        code = codegen.build_object(rows.emit(case.kernel, KERNEL_TARGETS[target]), KERNEL_TARGETS[target], f"kernel{number}")
        (folder / f"{number}.o").write_bytes(code)
    (folder / "launcher.c").write_text(LAUNCHER)
    objects = [folder / f"{number}.o" for number in range(len(cases))]
    subprocess.run(["cc", "-fPIC", "-shared", "-Wl,-z,muldefs", folder / "launcher.c", *objects, "-o", folder / "rows.so"], check=True)
    return ctypes.CDLL(str(folder / "rows.so"))


def _run(function: Any, case: Case) -> Array:
    output = case.kernel.output
    memory = _buffer(np.full((case.kernel.shape[0], output.strides[0]), GUARD, output.dtype))
    arrays = [*map(_buffer, case.inputs), memory]
    if is_dynamic(case.kernel):
        arrays.append(_buffer(np.array([case.symbol], np.int32)))
    function(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
    return memory.reshape(-1, output.strides[0])


@pytest.mark.parametrize("target", TARGETS)
def test_equals_arithmetic(target: str, tmp_path: Path) -> None:
    reason = available(target)
    if reason is not None:
        pytest.skip(reason)
    cases = {name: make() for name, make in CASES.items()}
    library, wrong = _library([*cases.values()], target, tmp_path), []
    for number, (name, case) in enumerate(cases.items()):
        got = _run(getattr(library, f"kernel{number}"), case)
        columns = case.want.shape[1]
        if not (got[:, :columns] == case.want).all() or not (got[:, columns:] == np.array(GUARD, got.dtype)).all():
            wrong.append(name)
    assert not wrong


def test_longest_row_of_a_dynamic_kernel_is_its_maximum() -> None:
    assert maximum(softmax("table", "int8", 67, 8, most=200).kernel.length) == 200
