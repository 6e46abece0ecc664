from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qcompiler.arithmetic import has_form, nonlinear, nonlinear_parameters
from qcompiler.arithmetic.nonlinear import FUNCTIONS, check_nonlinear
from qcompiler.errors import UnknownNameError, VerificationError

REAL: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "exp": torch.exp,
    "erf": torch.erf,
}
# docs/arithmetic.md, section 10: absolute errors; of exp relative to its largest value.
BOUNDS = {
    ("gelu", "shift"): 2.3e-3,
    ("gelu", "poly"): 5.6e-4,
    ("silu", "shift"): 2.9e-3,
    ("silu", "poly"): 4e-5,
    ("sigmoid", "shift"): 3.3e-3,
    ("sigmoid", "poly"): 1.3e-4,
    ("tanh", "shift"): 6.6e-3,
    ("tanh", "poly"): 2.6e-4,
    ("exp", "shift"): 1.29e-2,
    ("exp", "poly"): 2e-4,
    ("erf", "shift"): 7e-3,
    ("erf", "poly"): 7e-4,
}
# Times |x|: the bits of the sigmoid.
RELATIVE = {"gelu": 2.0**-13, "silu": 2.0**-13}
forms = pytest.mark.parametrize(("function", "form"), BOUNDS)


def bound_of(function: str, form: str, real: Tensor) -> Tensor:
    return BOUNDS[function, form] + RELATIVE.get(function, 0.0) * real.abs()


def worst(x: Tensor, zero_point: int, scale: float, function: str, form: str) -> None:
    centred = x.to(torch.int64) - zero_point
    bound = int(centred.max()) if function == "exp" else int(centred.abs().max())
    constants, output_scale = nonlinear_parameters(function, form, scale, bound)
    low, high = check_nonlinear(function, form, constants, int(centred.min()), int(centred.max()))
    result = nonlinear(x, zero_point, function, form, constants)
    assert low <= int(result.min()) and int(result.max()) <= high
    real = centred.double() * scale
    exact, unit = REAL[function](real), math.exp(scale * bound) if function == "exp" else 1.0
    error = (result.double() * output_scale - exact).abs() / unit
    assert bool((error <= bound_of(function, form, real)).all()), float((error - bound_of(function, form, real)).max())


@forms
@pytest.mark.parametrize("zero_point", [0, -128, 37])
def test_all_8_bit_inputs_of_many_scales(function: str, form: str, zero_point: int) -> None:
    x = torch.arange(-128, 128, dtype=torch.int8)
    for scale in (1e-4, 0.001, 0.0039, 0.01, 0.02, 0.037, 0.05, 0.1, 0.25):
        worst(x, zero_point, scale, function, form)


@forms
def test_all_16_bit_inputs(function: str, form: str) -> None:
    x = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    for scale in (1e-5, 2.4e-4, 6e-4):
        worst(x, 0, scale, function, form)


@given(st.sampled_from(sorted(BOUNDS)), st.integers(-(2**15), 2**15 - 1), st.integers(-(2**15), 2**15 - 1), st.floats(2e-6, 0.02))
def test_16_bit_inputs_with_zero_points(key: tuple[str, str], x: int, zero_point: int, scale: float) -> None:
    function, form = key
    if function == "exp" and scale * abs(x - zero_point) > 80:
        return
    worst(torch.tensor([x], dtype=torch.int16), zero_point, scale, function, form)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("form", ["shift", "poly"])
def test_the_same_integers_in_int64_so_nothing_overflows(function: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step again with int32 made int64: equal results mean that no product wrapped."""
    x = torch.arange(-(1 << 15), 1 << 15, 3, dtype=torch.int32)
    for scale in (1e-5, 3e-4, 0.01, 2.0):
        bound = (1 << 15) - 1 if function == "exp" else 1 << 15
        if function == "exp" and scale > 0.001:
            continue
        constants, _ = nonlinear_parameters(function, form, scale, bound)
        narrow = nonlinear(x, 0, function, form, constants)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "int32", torch.int64)
            wide = nonlinear(x, 0, function, form, constants)
        assert wide.dtype == torch.int64 and torch.equal(narrow.to(torch.int64), wide)


def test_odd_functions_are_odd() -> None:
    x = torch.arange(1, 128, dtype=torch.int8)
    for function, form in (("tanh", "shift"), ("erf", "poly")):
        constants, _ = nonlinear_parameters(function, form, 0.03, 128)
        assert torch.equal(nonlinear(x, 0, function, form, constants), -nonlinear(-x, 0, function, form, constants))


def test_forms_that_do_not_exist() -> None:
    assert not has_form("silu", "shift-gelu")
    with pytest.raises(UnknownNameError, match="unknown integer form 'shift-gelu silu'"):
        nonlinear_parameters("silu", "shift-gelu", 0.1)
    with pytest.raises(VerificationError, match="gelu has no form 'fast': forms are shift, poly"):
        check_nonlinear("gelu", "fast", [], 0, 1)


def test_exponentials_of_more_than_they_are_scaled_for_are_refused() -> None:
    constants, _ = nonlinear_parameters("exp", "poly", 0.1, 100)
    with pytest.raises(VerificationError, match="up to 100, but they reach 127"):
        check_nonlinear("exp", "poly", constants, -128, 127)
