"""What bit allocation gives, as plain data, with its files. ``qcompiler.analysis`` has the functions that make it."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qcompiler.errors import ArtifactError
from qcompiler.files import replacing
from qcompiler.sensitivity import Item

BUDGETS: Mapping[str, str] = {"average_weight_bits": "bits", "size": "bytes", "bops": "bit operations", "latency": "ms"}
"""What can be bounded, and its unit."""

_FORMAT = 1


@dataclass(frozen=True)
class Allocation:
    """Bits of each item that has a choice, and the sum of their sensitivities.

    costs: what they cost of each budget. limits: those that bound it. Units: ``BUDGETS``.
    method: which solver found it. average_weight_bits: mean over the elements of all weights, fixed ones too.
    channels: weight -> bits of each output channel, where these differ; ``bits`` has the most of them.
    """

    bits: Mapping[Item, int]
    objective: float
    costs: Mapping[str, float]
    method: str
    limits: Mapping[str, float]
    average_weight_bits: float
    channels: Mapping[Item, tuple[int, ...]] = field(default_factory=dict)

    def shown(self, item: Item) -> str:
        """The bits of an item in words: ``W4``, ``A8``, ``W8 for 16 channels, W4 for 48 channels``."""
        if item not in self.channels:
            return f"{'W' if item.kind == 'weight' else 'A'}{self.bits[item]}"
        counts = Counter(self.channels[item])
        return ", ".join(f"W{bits} for {count} channels" for bits, count in sorted(counts.items(), reverse=True))

    def save(self, path: str | Path) -> None:
        """Write as JSON, all or nothing.

        Raises:
            ArtifactError: the file cannot be written.
        """
        _write(Path(path), _json_text({"format": _FORMAT, **_content(self)}))


def save_front(front: Sequence[Allocation], budget: str, path: str | Path) -> None:
    """Write what ``pareto_front`` gave for a budget as ``.json`` or as ``.csv``, all or nothing.

    In CSV each allocation is a row: limit, cost, sensitivity, average bits, and the bits of each item, as ``conv2d:w``; of a weight
    whose channels differ their mean.

    Raises:
        ArtifactError: the file cannot be written, or its name has another ending.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise ArtifactError(f"cannot write '{path}': the name of a front's file ends in .json or .csv")
    content = {"format": _FORMAT, "budget": budget, "allocations": [_content(each) for each in front]}
    _write(path, _csv_text(front, budget) if path.suffix == ".csv" else _json_text(content))


def draw_front(front: Sequence[Allocation], budget: str, path: str | Path) -> None:
    """Draw the sum of sensitivities against what the allocations cost of a budget, as ``.svg`` or ``.png``. Needs matplotlib.

    Raises:
        ArtifactError: the file cannot be written, or its name has another ending; or matplotlib is not installed.
    """
    path = Path(path)
    if path.suffix not in (".svg", ".png"):
        raise ArtifactError(f"cannot write '{path}': the name of a figure ends in .svg or .png")
    check_drawing(path)
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "qcompiler", "font.size": 8}):
        figure = Figure(figsize=(4, 2.8), layout="constrained")
        axis = figure.subplots()
        lost = [each.objective for each in front]
        axis.step([each.costs[budget] for each in front], lost, "o-", where="post", markersize=3, linewidth=1)
        # Sensitivities span orders of magnitude; measured differences of losses may be negative.
        axis.set_yscale("log" if min(lost, default=0.0) > 0.0 else "linear")
        axis.set(xlabel=f"{budget}, {BUDGETS[budget]}", ylabel="sum of sensitivities")
        axis.grid(alpha=0.3)
        stream = io.BytesIO()
        figure.savefig(stream, format=path.suffix[1:], dpi=200, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None})
    _write(path, stream.getvalue())


def check_drawing(path: str | Path) -> None:
    """Tell before the work, not after it, that nothing can be drawn. Raises ArtifactError: matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ArtifactError(f"cannot draw '{path}': matplotlib is not installed: run 'pip install matplotlib'")


def _content(allocation: Allocation) -> dict[str, Any]:
    return {
        "method": allocation.method,
        "sensitivity": allocation.objective,
        "average_weight_bits": allocation.average_weight_bits,
        "limits": dict(allocation.limits),
        "costs": dict(allocation.costs),
        "items": [
            {"kind": item.kind, "name": item.name, "bits": bits}
            | ({"channels": list(allocation.channels[item])} if item in allocation.channels else {})
            for item, bits in allocation.bits.items()
        ],
    }


def _json_text(content: object) -> str:
    return json.dumps(content, indent=1) + "\n"


def _csv_text(front: Sequence[Allocation], budget: str) -> str:
    items = list(front[0].bits) if front else []
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("limit", budget, "sensitivity", "average_bits", *(f"{item.name}:{item.kind[0]}" for item in items)))
    for each in front:
        figures = (each.limits.get(budget, math.inf), each.costs[budget], each.objective, each.average_weight_bits)
        writer.writerow((*map(repr, figures), *(_mean_bits(each, item) for item in items)))
    return stream.getvalue()


def _mean_bits(allocation: Allocation, item: Item) -> float:
    return statistics.fmean(allocation.channels[item]) if item in allocation.channels else allocation.bits[item]


def _write(path: Path, content: str | bytes) -> None:
    try:
        with replacing(path) as file:
            file.write_bytes(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise ArtifactError(f"cannot write '{path}': {error.strerror}") from error
