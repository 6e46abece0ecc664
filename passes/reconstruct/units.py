"""A unit: a layer or block whose output is to come near its float original, with the inputs and targets of all calibration samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.passes.reconstruct.layers import QuantizedLayer
from qcompiler.passes.reconstruct.store import ValueStore
from qcompiler.passes.reconstruct.subgraph import Subgraph
from qcompiler.passes.reconstruct.twins import Dropping

# Samples that are run at once where no gradient is needed.
RUN_AT_ONCE = 32

Values = dict[fx.Node, Tensor]


@dataclass(frozen=True, eq=False)
class Unit:
    """``f(inputs; weights)`` against ``targets``.

    name: for notes and for the seed of its random numbers.
    subgraph: f, in the QDQ program.
    inputs: values of the subgraph's sources, as the quantized layers before it give them.
    float_inputs: the same as the float program gives them; None where the unit starts behind a rounding.
    targets: what the float program gives for the subgraph's outputs.
    replaced: constants that differ from those of the graph: layers that were changed already.
    fixed_batch: how many samples the graph takes at once; None: any number.
    """

    name: str
    subgraph: Subgraph
    inputs: tuple[ValueStore, ...]
    float_inputs: tuple[ValueStore, ...] | None
    targets: tuple[ValueStore, ...]
    layers: tuple[QuantizedLayer, ...]
    replaced: Mapping[fx.Node, Tensor]
    fixed_batch: int | None = None

    @property
    def samples(self) -> int:
        return len(self.targets[0])

    def outputs(self, inputs: Sequence[Tensor], replaced: Mapping[fx.Node, Tensor], dropping: Dropping | None = None) -> tuple[Tensor, ...]:
        """f of some samples, with ``replaced`` constants besides those that are replaced anyway."""
        values = dict(zip(self.subgraph.sources, inputs, strict=True))
        return run_in_pieces(self.subgraph, values, {**self.replaced, **replaced}, self.fixed_batch, dropping)

    def errors(self, replaced: Mapping[fx.Node, Tensor]) -> tuple[float, ...]:
        """Mean squared error of each output over all samples."""
        sums = [0.0] * len(self.targets)
        for inputs, targets in zip(_batches(self.inputs), _batches(self.targets), strict=True):
            with torch.no_grad():
                outputs = self.outputs(inputs, replaced)
            for number, (output, target) in enumerate(zip(outputs, targets, strict=True)):
                sums[number] += float((output - target).square().sum(dtype=torch.float64))
        return tuple(total / store.numel for total, store in zip(sums, self.targets, strict=True))

    def powers(self) -> tuple[float, ...]:
        """Mean square of each target over all samples; what errors are compared with."""
        sums = [0.0] * len(self.targets)
        for targets in _batches(self.targets):
            for number, target in enumerate(targets):
                sums[number] += float(target.square().sum(dtype=torch.float64))
        return tuple(total / store.numel for total, store in zip(sums, self.targets, strict=True))


def run_in_pieces(
    subgraph: Subgraph,
    values: Mapping[fx.Node, Tensor],
    replaced: Mapping[fx.Node, Tensor],
    fixed_batch: int | None,
    dropping: Dropping | None = None,
) -> tuple[Tensor, ...]:
    """``subgraph.run``, as often as a graph with a fixed batch needs."""
    if fixed_batch is None:
        return subgraph.run(values, replaced, dropping)
    nodes = list(values)
    split = zip(*(values[node].split(fixed_batch) for node in nodes), strict=True)
    pieces = [subgraph.run(dict(zip(nodes, piece, strict=True)), replaced, dropping) for piece in split]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def relative(errors: Sequence[float], powers: Sequence[float]) -> float:
    """Mean over the outputs of error / power."""
    shares = [error / power if power > 0.0 else error for error, power in zip(errors, powers, strict=True)]
    return sum(shares) / len(shares)


def _batches(stores: Sequence[ValueStore]) -> Iterator[tuple[Tensor, ...]]:
    return zip(*(store.batches(RUN_AT_ONCE) for store in stores), strict=True)
