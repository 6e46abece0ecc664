"""Arguments that several commands take, and the texts among them that are parsed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from qcompiler.capture.dynamic import DynamicShapes

Artifact = Annotated[Path, typer.Argument(metavar="FILE.qca", help="a compiled artifact")]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="as 'compile' takes it")]
Recipe = Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="see 'qcompiler recipes'")]
Options = Annotated[list[str] | None, typer.Option(metavar="PASS.OPTION=VALUE", help="replace an option; may be repeated")]
AllowFloat = Annotated[
    list[str] | None, typer.Option(metavar="OP", help="an op that may stay in float, as aten.sin.default; may be repeated")
]
Calibration = Annotated[str | None, typer.Option(metavar="DATA", help="as 'compile' takes it")]
Target = Annotated[str, typer.Option(help="see 'qcompiler targets'")]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT[DIM]=SIZE",
        help="an open size of an input: 128 (ONNX files), 1..128, or sequence:1..128 for several; may be repeated",
    ),
]
FixedBatch = Annotated[bool, typer.Option("--fixed-batch", help="dimension 0 of the inputs is no batch of independent samples")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads a call uses (default: all that this process may run on)")]

_SIZE = re.compile(r"(.+)\[(\d+)\]=(?:(\w+):(?=\d+\.\.))?(\d+)(?:\.\.(\d+))?")


def parse_options(items: Iterable[str] | None) -> dict[str, str]:
    """``quantize.a=7``, ... by name."""
    return dict(_key_and_value(item) for item in items or ())


def parse_widths(option: str, text: str) -> tuple[int, ...]:
    """``2,4,8``."""
    if not re.fullmatch(r"[2-8](,[2-8])*", text):
        raise typer.BadParameter(f"{option} takes numbers from 2 to 8 with commas between them, got '{text}'")
    return tuple(int(number) for number in text.split(","))


def parse_limits(option: str, text: str) -> tuple[float, ...]:
    """``1e6,2.5e6``."""
    try:
        numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or any(not 0.0 < number < math.inf for number in numbers):
        raise typer.BadParameter(f"{option} takes numbers above 0 with commas between them, got '{text}'")
    return numbers


def parse_sizes(items: Sequence[str]) -> DynamicShapes:
    """``ids[1]=128``, ``ids[1]=1..128`` or ``ids[1]=sequence:1..128``: inputs whose sizes have one name are equal in it."""
    from qcompiler.ir.types import DynamicSize

    shapes: dict[str | int, dict[int, Any]] = {}
    for item in items:
        found = _SIZE.fullmatch(item)
        if found is None:
            raise typer.BadParameter(f"--size takes INPUT[DIM]=NUMBER or INPUT[DIM]=[NAME:]MIN..MAX, got '{item}'")
        name, dim, symbol, low, high = found.groups()
        size = int(low) if high is None else DynamicSize(symbol or f"{name}_{dim}", int(low), int(high))
        shapes.setdefault(name, {})[int(dim)] = size
    return shapes


def _key_and_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--option takes PASS.OPTION=VALUE, got '{text}'")
    return key, value
