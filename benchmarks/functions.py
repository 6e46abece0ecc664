"""Worst-case errors of the integer forms of non-linear functions over whole input ranges, as tables and as figures.

``python benchmarks/arithmetic.py functions`` prints the tables of docs/arithmetic.md, sections 7 to 10, and draws docs/figures/.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qcompiler.arithmetic import (
    NORMALIZE_FORMS,
    SOFTMAX_FORMS,
    has_form,
    nonlinear,
    nonlinear_parameters,
    normalize,
    normalized_scale,
    softmax,
    softmax_parameters,
    softmax_scale,
)
from qcompiler.errors import VerificationError

FIGURES = Path(__file__).resolve().parent.parent / "docs" / "figures"
REAL: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.nn.functional.gelu,
    "silu": torch.nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "exp": torch.exp,
}
FORMS = ("table", "poly", "shift", "shift-gelu", "i-gelu", "i-exp")
BYTES = torch.arange(-128, 128, dtype=torch.int8)
WORDS = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
BYTE_SCALES = [float(scale) for scale in torch.logspace(math.log10(0.0045), math.log10(0.0625), 40, dtype=torch.float64)]
WORD_SCALES = [4.0 / 32768, 6.0 / 32768, 8.0 / 32768]
SOFTMAX_SCALES = [float(scale) for scale in torch.logspace(-2.5, -0.5, 40, dtype=torch.float64)]
ROW_LENGTHS = (16, 64, 197, 768)
ROWS = 200
COLOURS = {
    "table": "black",
    "wide-table": "tab:purple",
    "poly": "tab:blue",
    "shift": "tab:orange",
    "shift-gelu": "tab:red",
    "shiftmax": "tab:red",
    "i-layernorm": "tab:red",
    "i-gelu": "tab:green",
    "i-exp": "tab:green",
    "i-softmax": "tab:green",
    "i-bert": "tab:green",
    "newton": "tab:blue",
}


def print_functions() -> None:
    """Tables of activations, softmax and normalization."""
    print("| function | form | all 8-bit inputs | all 16-bit inputs |\n|---|---|---|---|")
    for function in REAL:
        for form in FORMS[1:]:
            if has_form(function, form):
                cells = [_cell(worst_activation(function, form, *inputs)) for inputs in ((BYTES, BYTE_SCALES), (WORDS, WORD_SCALES))]
                print(f"| {function} | `{form}` | {' | '.join(cells)} |")
    print("\n| form | two elements | 16 elements | 197 elements | sum of rows, 197 elements |\n|---|---|---|---|---|")
    for form in SOFTMAX_FORMS:
        cells = [f"{worst_softmax(form, length):.3f}" for length in (2, 16, 197)]
        print(f"| `{form}` | {' | '.join(cells)} | {smallest_sum(form):.3f} |")
    print("\n| row length | " + " | ".join(f"`{form}`, int8 rows | `{form}`, int16 rows" for form in NORMALIZE_FORMS) + " |")
    print("|---|" + "---|" * (2 * len(NORMALIZE_FORMS)))
    for length in ROW_LENGTHS:
        cells = [f"{worst_normalization(form, length, spread):.1e}" for form in NORMALIZE_FORMS for spread in (30, 8000)]
        print(f"| {length} | {' | '.join(cells)} |")


def activation_error(function: str, form: str, x: Tensor, scale: float) -> Tensor:
    """Of every input; of exp relative to its largest value."""
    bound = int(x.max()) if function == "exp" else -int(x.min())
    constants, output_scale = nonlinear_parameters(function, form, scale, bound)
    unit = math.exp(bound * scale) if function == "exp" else 1.0
    result = nonlinear(x, 0, function, form, constants).double() * output_scale
    return (result - REAL[function](x.double() * scale)) / unit


def worst_activation(function: str, form: str, x: Tensor, scales: list[float]) -> float | None:
    """Largest absolute error over all inputs of all scales; None where the form serves none of the scales."""
    worst = None
    for scale in scales:
        try:
            error = float(activation_error(function, form, x, scale).abs().max())
        except VerificationError:
            continue
        worst = error if worst is None else max(worst, error)
    return worst


def softmax_error(form: str, x: Tensor, scale: float, bits: int = 8) -> Tensor:
    """In steps of 1 / (2^bits - 1)."""
    table, constants = softmax_parameters(form, scale)
    result = softmax(x, table, None, form, constants, bits).double() * softmax_scale(form, bits)
    return (result - torch.softmax(x.double() * scale, -1)) * ((1 << bits) - 1)


def worst_softmax(form: str, length: int) -> float:
    """Rows of the largest score, each of the 256 values, and random others."""
    others = torch.randint(-128, 128, (256, length - 2), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.full((256, 1), 127, dtype=torch.int8), BYTES[:, None], others], -1)
    return max(float(softmax_error(form, x, scale).abs().max()) for scale in SOFTMAX_SCALES)


def smallest_sum(form: str) -> float:
    """Of the probabilities of rows of 197 normally distributed scores with standard deviation 1, of which the largest are at 127."""
    x = torch.randn(ROWS, 197, generator=torch.Generator().manual_seed(0))
    scale = float(x.max()) / 127
    integers = (x / scale).round().clamp(-128, 127).to(torch.int8)
    table, constants = softmax_parameters(form, scale)
    return float((softmax(integers, table, None, form, constants, 8).double() * softmax_scale(form, 8)).sum(-1).min())


def normalization_error(form: str, rows: Tensor) -> Tensor:
    """Relative to the largest result of each row."""
    exact = torch.nn.functional.layer_norm(rows.double(), (rows.shape[-1],), eps=0.0) / rows.shape[-1] ** 0.5
    result = normalize(rows, 0, 0, True, form).double() * normalized_scale(form, rows.shape[-1], centre=True)
    return (result - exact) / exact.abs().amax(-1, keepdim=True)


def worst_normalization(form: str, length: int, spread: int) -> float:
    """Rows of normally distributed integers."""
    return float(normalization_error(form, random_rows(length, spread)).abs().max())


def random_rows(length: int, spread: int) -> Tensor:
    """int32 [ROWS, length] with this standard deviation, cut at four of them."""
    rows = torch.randn(ROWS, length, generator=torch.Generator().manual_seed(length)) * spread
    return rows.round().clamp(-4 * spread, 4 * spread).to(torch.int32)


def _cell(worst: float | None) -> str:
    return "—" if worst is None else f"{worst:.2g}"


# ---- figures ----------------------------------------------------------------------------------------------------------------------


def draw_figures(folder: Path = FIGURES) -> None:
    """Write activations.svg, softmax.svg and normalization.svg. Needs matplotlib (extra ``examples``)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3})
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (("activations", _draw_activations), ("softmax", _draw_softmax), ("normalization", _draw_normalization)):
        draw().savefig(folder / f"{name}.svg", metadata={"Date": None})
        print(f"{folder / name}.svg")


def _axes(rows: int, columns: int) -> tuple[Any, list[Any]]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(rows, columns, figsize=(9, 2.4 * rows), layout="constrained", squeeze=False)
    return figure, [axis for line in axes for axis in line]


def _finish(axis: Any, title: str, label: str = "") -> None:
    axis.set_title(title)
    axis.set_xlabel(label)
    axis.minorticks_off()
    axis.legend()


def _draw_activations() -> Any:
    """Absolute error of each form on 8-bit inputs from -6 to 6, every third one."""
    figure, axes = _axes(2, 3)
    scale, shown = 6 / 128, slice(None, None, 3)
    for axis, function in zip(axes, REAL, strict=True):
        for form in FORMS[1:]:
            if has_form(function, form):
                error = activation_error(function, form, BYTES, scale).abs().clamp(min=1e-6)
                axis.semilogy(BYTES[shown] * scale, error[shown], label=form, color=COLOURS[form], linewidth=1)
        _finish(axis, f"{function}: error" + (" / exp(6)" if function == "exp" else ""))
    return figure


def _draw_softmax() -> Any:
    """Largest error in a row of 197 against the scale of the scores, and the sum of the row."""
    figure, axes = _axes(1, 2)
    others = torch.randint(-128, 128, (64, 197), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    for form in SOFTMAX_FORMS:
        errors = [float(softmax_error(form, others, scale).abs().max()) for scale in SOFTMAX_SCALES]
        axes[0].loglog(SOFTMAX_SCALES, errors, label=form, color=COLOURS[form], linewidth=1)
        sums = [1 + float(softmax_error(form, others, scale).sum(-1).mean()) / 255 for scale in SOFTMAX_SCALES]
        axes[1].semilogx(SOFTMAX_SCALES, sums, label=form, color=COLOURS[form], linewidth=1)
    for axis, title in zip(axes, ("largest error, in steps of 1/255", "mean sum of a row of 197"), strict=True):
        _finish(axis, title, "scale of the scores")
    return figure


def _draw_normalization() -> Any:
    """Largest error against the standard deviation of the rows, relative to the largest result."""
    figure, axes = _axes(1, 2)
    spreads = [float(spread) for spread in torch.logspace(0.3, 3.9, 25)]
    for axis, length in zip(axes, (64, 768), strict=True):
        for form in NORMALIZE_FORMS:
            errors = [worst_normalization(form, length, round(spread)) for spread in spreads]
            axis.loglog(spreads, errors, label=form, color=COLOURS[form], linewidth=1)
        _finish(axis, f"rows of {length}: largest error / largest result", "standard deviation in steps")
    return figure
