"""``correct-bias``: what rounding adds to the mean of each output channel of a layer is taken from the layer's bias.

    b[o] - (mean of the quantized layer's channel o - mean of the float layer's channel o)

Rounded weights give errors that do not average out: the mean of a channel moves, and layers behind see it. Source: Data-Free Quantization
(arXiv 1906.04721), section 4.2, and its appendix D for the form used here: means are those of the calibration data, and layers are
corrected one after the other, each seeing the quantized and corrected layers before it. (Section 4.2 derives the means from batch norm.)

All samples go through the graph side by side, one node at a time, so that one run corrects all layers. Memory is that of the values alive
at a time, for ``samples`` samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import CalibrationError, PassError
from qcompiler.ir import edit
from qcompiler.ir.layers import CHANNEL_AXIS, channel_axis, is_layer
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Lossy, Pass, PassContext, PassResult, Promise
from qcompiler.pipeline.rewrite import LEFT_ALONE


@dataclass(frozen=True)
class CorrectBias(Pass):
    """The shift that rounding gives the mean of each channel is taken from the biases (DFQ).

    Options:
        samples: so many calibration samples, the first ones, decide.
    """

    name: ClassVar[str] = "correct-bias"
    takes: ClassVar[Stage] = Stage.QDQ
    gives: ClassVar[Stage] = Stage.QDQ
    promise: ClassVar[Promise] = Lossy()
    needs_data: ClassVar[bool] = True

    samples: int = 64

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise CalibrationError(f"{self.name}: samples must be at least 1, got {self.samples}")

    def run(self, program: Program, context: PassContext) -> PassResult:
        if context.data is None or context.reference is None:
            missing = "calibration data" if context.data is None else "the float program: run it after 'quantize' in one pipeline"
            raise PassError(f"{self.name}: compares with the float program on calibration data, and lacks {missing}")
        batches = list(_first(context.data, self.samples))
        layers = [node.name for node in edit.calls(program.graph, *CHANNEL_AXIS)]
        if not layers:
            return PassResult(program, False, ("nothing to do: no layer with weights",))
        means = _Means(context.reference, frozenset(layers)).over(batches)
        work = edit.copy(program)
        notes = _Correction(work.graph_module, means, self.name).run(batches)
        edit.erase_dead(work)
        return PassResult(work, True, notes)


def _first(data: CalibrationData, samples: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Batches until there are ``samples`` samples; the last one is cut."""
    missing = samples
    for batch in data:
        count = batch[0].shape[0] if batch[0].dim() else 1
        yield tuple(value[:missing] if value.dim() else value for value in batch)
        missing -= count
        if missing <= 0:
            return


def _channel_mean(values: Sequence[torch.Tensor], axis: int) -> torch.Tensor:
    """Over all batches and all other dimensions; float64 [channels]."""
    rows = torch.cat([value.movedim(axis, -1).flatten(0, -2) for value in values])
    return rows.double().mean(0)


class _Means(fx.Interpreter):
    """The mean of each channel of the layers named ``layers``, in the float program."""

    def __init__(self, program: Program, layers: frozenset[str]) -> None:
        super().__init__(program.graph_module, garbage_collect_values=True)
        self._layers = layers
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, int] = {}

    def over(self, batches: Sequence[tuple[torch.Tensor, ...]]) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            for batch in batches:
                self.run(*batch)
        return {name: total / self._counts[name] for name, total in self._sums.items()}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.name in self._layers and is_layer(n):
            rows = value.movedim(channel_axis(n), -1).flatten(0, -2).double()
            self._sums[n.name] = self._sums.get(n.name, 0) + rows.sum(0)
            self._counts[n.name] = self._counts.get(n.name, 0) + len(rows)
        return value


class _Correction:
    """Runs all batches side by side through the QDQ graph and corrects each layer when its turn comes."""

    def __init__(self, graph_module: fx.GraphModule, means: dict[str, torch.Tensor], made_by: str) -> None:
        self._graph_module, self._means, self._made_by = graph_module, means, made_by
        self._values: dict[fx.Node, list[Any]] = {}

    def run(self, batches: Sequence[tuple[torch.Tensor, ...]]) -> tuple[str, ...]:
        nodes = list(self._graph_module.graph.nodes)
        finished: dict[fx.Node, list[fx.Node]] = {node: [] for node in nodes}  # what each node is the last one to read
        for operand, last in {operand: node for node in nodes for operand in node.all_input_nodes}.items():
            finished[last].append(operand)
        inputs = iter(zip(*batches, strict=True))
        notes: list[str] = []
        with torch.no_grad():
            for node in itertools.takewhile(lambda each: each.op != "output", nodes):
                self._values[node] = list(next(inputs)) if node.op == "placeholder" else self._compute(node, len(batches))
                if is_layer(node):
                    notes.append(self._correct(node))
                for operand in finished[node]:
                    del self._values[operand]
        return tuple(notes)

    def _compute(self, node: fx.Node, count: int) -> list[Any]:
        if node.op == "get_attr":
            return [edit.constant_value(node)] * count
        return [self._call(node, position) for position in range(count)]

    def _call(self, node: fx.Node, position: int) -> Any:
        """The node for one batch."""
        args = map_arg(node.args, lambda operand: self._values[operand][position])
        kwargs: Any = map_arg(node.kwargs, lambda operand: self._values[operand][position])
        return node.target(*args, **kwargs)  # type: ignore[operator]  # a call of an op

    def _correct(self, node: fx.Node) -> str:
        if node.name not in self._means:
            return f"{node.name} {LEFT_ALONE}: the float program has no layer of that name"
        bias = edit.argument(node, "bias")
        constant = edit.constant_value(bias)
        if bias is not None and constant is None:
            return f"{node.name} {LEFT_ALONE}: its bias is computed: {describe(node)}"
        axis = channel_axis(node)
        surplus = (_channel_mean(self._values[node], axis) - self._means[node.name]).float()
        corrected = -surplus if constant is None else constant - surplus
        edit.set_constant(self._graph_module, node, "bias", corrected, f"{node.name}_bias", self._made_by)
        column = surplus.reshape(-1, *[1] * (-axis - 1))
        self._values[node] = [value - column for value in self._values[node]]
        return f"{node.name}: means were off by up to {float(surplus.abs().max()):.3g}"
