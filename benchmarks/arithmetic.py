"""Worst-case errors of the requantization forms, and the speed of the reference kernels: the tables of docs/arithmetic.md.

``python benchmarks/arithmetic.py errors`` multiplies every integer of [-2^20, 2^20] by random factors of each order of magnitude and
compares with the real product, in 64-bit integers, hence exactly. ``rows`` compares softmax and normalization with float64 on random
rows. ``functions`` compares every form of every non-linear function with float64 over whole input ranges, and draws the figures.
``speed`` times the integer layers of ResNet-20.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict

import torch
from torch import Tensor

import functions
import qcompiler.ir.ops  # noqa: F401  # registers torch.ops.qc
from qcompiler.arithmetic import REQUANTIZE, Dyadic, choose, choose_residual, exponential_table, normalize, normalized_scale, softmax
from qcompiler.arithmetic.dyadic import FORMS

Seconds = defaultdict[str, float]

BOUND = 1 << 20
ROWS, ROW_LENGTHS = 500, (16, 64, 197, 384, 768, 4096)
LIMIT = 255  # of |y - zero point| in an 8-bit output
NUMERATOR_BITS = 40  # factors are 40-bit integers over a power of two: their products with BOUND stay under 2^60
EXPONENTS = (-20, -16, -12, -8, -6, -4, -2, 0)


def main() -> None:
    """Print the table that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["errors", "rows", "functions", "speed"])
    parser.add_argument("--factors", type=int, default=20, help="factors tried in each order of magnitude")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    if arguments.table == "errors":
        print_errors(arguments.factors)
    elif arguments.table == "rows":
        print_rows()
    elif arguments.table == "functions":
        functions.print_functions()
        functions.draw_figures()
    else:
        print_speed(arguments.images)


def print_errors(count: int) -> None:
    """Error over 1/2 in output steps, clamped to 8 bits: the largest that was measured, and the largest that was derived."""
    generator = torch.Generator().manual_seed(0)
    print("| factor | " + " | ".join(f"{form}: measured | {form}: bound" for form in FORMS) + " |")
    print("|---|" + "---|" * (2 * len(FORMS)))
    for exponent in EXPONENTS:
        numerators = torch.randint(1 << (NUMERATOR_BITS - 1), 1 << NUMERATOR_BITS, (count,), generator=generator).tolist()
        cells = [worst_errors(form, numerators, exponent) for form in FORMS]
        row = " | ".join(f"{measured - 0.5:.1e} | {bound - 0.5:.1e}" for measured, bound in cells)
        print(f"| 2^{exponent - 1} .. 2^{exponent} | {row} |")


def print_rows() -> None:
    """Largest error of softmax in steps of its 8- and 16-bit outputs, and of normalization relative to the largest value."""
    generator = torch.Generator().manual_seed(0)
    print("| row length | softmax, 8 bits | softmax, 16 bits | normalize, int8 rows | normalize, int16 rows |\n|---|---|---|---|---|")
    for length in ROW_LENGTHS:
        scores = torch.randint(0, 256, (ROWS, length), dtype=torch.uint8, generator=generator)
        cells = [f"{worst_softmax_error(scores, bits):.3f}" for bits in (8, 16)]
        for spread in (30, 8000):
            rows = (torch.randn(ROWS, length, generator=generator) * spread).round().clamp(-4 * spread, 4 * spread)
            cells.append(f"{worst_normalization_error(rows.to(torch.int32)):.1e}")
        print(f"| {length} | " + " | ".join(cells) + " |")


def worst_softmax_error(scores: Tensor, bits: int) -> float:
    """In output steps, over several scales of the scores."""
    worst = 0.0
    for scale in (0.01, 0.03, 0.1):
        exact = torch.softmax(scores.double() * scale, dim=-1) * ((1 << bits) - 1)
        worst = max(worst, float((softmax(scores, exponential_table(scale), None, "table", [], bits) - exact).abs().max()))
    return worst


def worst_normalization_error(rows: Tensor) -> float:
    """Over the largest magnitude of the exact results."""
    exact = torch.nn.functional.layer_norm(rows.double(), (rows.shape[-1],), eps=0.0) / rows.shape[-1] ** 0.5
    result = normalize(rows, 0, 0, True, "newton").double() * normalized_scale("newton", rows.shape[-1], centre=True)
    return float((result - exact).abs().max() / exact.abs().max())


def worst_errors(form: str, numerators: list[int], exponent: int) -> tuple[float, float]:
    """Measured and derived worst case over the factors ``numerator * 2^(exponent - 40)``."""
    denominator_bits = NUMERATOR_BITS - exponent
    measured, derived = 0.0, 0.0
    for numerator in numerators:
        factor = numerator * 2.0**-denominator_bits
        dyadic = choose(factor, BOUND, form)
        measured = max(measured, measured_error(dyadic, numerator, denominator_bits))
        derived = max(derived, float(dyadic.error_bound(factor, BOUND, LIMIT)))
    return measured, derived


def measured_error(dyadic: Dyadic, numerator: int, denominator_bits: int) -> float:
    """Largest ``|y - a * numerator / 2^denominator_bits|`` over all |a| <= BOUND, both clamped."""
    a = torch.arange(-BOUND, BOUND + 1)
    y = REQUANTIZE[dyadic.form](a.to(torch.int32), dyadic.pre_shift, dyadic.multiplier, dyadic.shift).clamp(-LIMIT, LIMIT)
    limit = min(LIMIT << denominator_bits, 1 << 61)  # past 2^61 it cannot bind
    return float(((y << denominator_bits) - (a * numerator).clamp(-limit, limit)).abs().max()) * 2.0**-denominator_bits


def print_speed(images: int) -> None:
    """Seconds that the convolutions, requantizations and residual adds of ResNet-20 take, all samples in one batch."""
    seconds = Seconds(float)
    x = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    resnet20(x[:10], Seconds(float))
    resnet20(x, seconds)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {images} images of 32x32, ResNet-20:")
    print(", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()) + f", together {sum(seconds.values()):.2f} s")


def resnet20(x: Tensor, seconds: Seconds) -> Tensor:
    """The integer layers of ResNet-20 with random weights; a block that changes the shape has no residual."""
    residual = choose_residual(0.5, 255, 0.5, 255)
    x = layer(x, 16, 1, seconds)
    for channels in (16, 32, 64):
        for block in range(3):
            y = layer(x, channels, 2 if channels > 16 and block == 0 else 1, seconds)
            y = layer(y, channels, 1, seconds)
            if y.shape == x.shape:
                parameters = (residual.pre_shift_a, residual.multiplier_a, residual.pre_shift_b, residual.multiplier_b, residual.shift)
                y = timed("add", seconds, y, x, *parameters, 0, 0, 0, 0, 255, 8, False)
            x = y
    return x


def layer(x: Tensor, channels: int, stride: int, seconds: Seconds) -> Tensor:
    """3x3 convolution, then requantization per channel with a factor that keeps the outputs in range."""
    weight = torch.randint(-127, 128, (channels, x.shape[1], 3, 3), dtype=torch.int8)
    bias = torch.zeros(channels, dtype=torch.int32)
    accumulator = timed("convolution", seconds, x, weight, bias, [stride, stride], [1, 1, 1, 1], [1, 1], 1, 0)
    dyadic = choose(torch.full((channels, 1, 1), 2.0**-9), 1 << 24, "high")
    return timed("requantize", seconds, accumulator, dyadic.pre_shift, dyadic.multiplier, dyadic.shift, 0, 0, 0, 255, "high", 8, False)


def timed(name: str, seconds: Seconds, *arguments: object) -> Tensor:
    """Result of the op ``qc::name``; its time is added to ``seconds[name]``."""
    start = time.perf_counter()
    result: Tensor = getattr(torch.ops.qc, name)(*arguments)
    seconds[name] += time.perf_counter() - start
    return result


if __name__ == "__main__":
    main()
