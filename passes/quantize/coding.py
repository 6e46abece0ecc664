"""Values rounded to unequal steps: which quantizer each gets, from values seen on the first calibration batches."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import INT16, QuantizedType
from qcompiler.passes.quantize.grouping import ValueGroups
from qcompiler.passes.quantize.levels import Levels, levels
from qcompiler.pipeline.contract import PassContext

_BATCHES = 4
_KEPT = 1 << 16  # values of one batch


@dataclass(frozen=True)
class Coding:
    """``kind`` of the quantizer, its levels, and the type of the integers that stand for them."""

    kind: str
    levels: Levels
    quantized: QuantizedType


def coded_values(
    program: Program, groups: ValueGroups, context: PassContext, chosen: Mapping[object, tuple[str, int]]
) -> dict[fx.Node, Coding]:
    """A coding for each rounded value of an op in ``chosen`` (op -> kind and bits).

    Raises:
        CalibrationError: there are no calibration data, or the values do not suit the kind.
    """
    nodes = [node for node, owner in groups.narrow.items() if node.target in chosen and owner is node]
    if not nodes:
        return {}
    if context.data is None:
        raise CalibrationError(f"{describe(nodes[0])} is to be rounded to unequal steps, which values decide: give calibration data")
    seen = _values(program, nodes, context)
    codings: dict[fx.Node, Coding] = {}
    for node in nodes:
        kind, bits = chosen[node.target]
        try:
            found = levels(kind, bits, seen[node.name])
        except CalibrationError as error:
            raise CalibrationError(f"{describe(node)}: {error}") from error
        codings[node] = Coding(kind, found, QuantizedType(INT16, (found.scale,)))
    return codings


def _values(program: Program, nodes: list[fx.Node], context: PassContext) -> dict[str, torch.Tensor]:
    """Some of the values of each node on the first batches."""
    recorder = _Recorder(program.graph_module, {node.name for node in nodes})
    assert context.data is not None  # the caller checked
    with torch.no_grad():
        for batch in itertools.islice(context.data, _BATCHES):
            recorder.run(*batch)
    return {name: torch.cat(pieces) for name, pieces in recorder.seen.items()}


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps values of some nodes, evenly thinned, with the extremes."""

    def __init__(self, graph_module: fx.GraphModule, names: set[str]) -> None:
        super().__init__(graph_module, garbage_collect_values=True)
        self.extra_traceback = False
        self._names = names
        self.seen: dict[str, list[torch.Tensor]] = defaultdict(list)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, torch.Tensor):
            flat = value.detach().reshape(-1)
            self.seen[n.name] += [flat[:: flat.numel() // _KEPT + 1].clone(), torch.stack(torch.aminmax(flat))]
        return value
