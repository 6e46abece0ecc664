"""How commands say things."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    import torch

    from qcompiler.ir.program import Program


def print_lines(lines: Iterable[str]) -> None:
    """Each line by itself, as soon as it is there."""
    for line in lines:
        typer.echo(line)


def table_lines(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """Columns that end together, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    return ("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in (heading, *rows))


def ops_text(program: Program) -> str:
    """How many ops work on integers, and how many on floats: none but islands that the user allowed, each with its two conversions."""
    from qcompiler.ir.verifier import integer_report

    report = integer_report(program)
    return f"{report.integer_ops} integer ops, {report.float_ops} float ops"


def dtype_text(dtype: torch.dtype) -> str:
    """``float32``."""
    return str(dtype).removeprefix("torch.")
