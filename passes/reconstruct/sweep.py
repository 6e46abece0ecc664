"""The way through a program block by block, with the values of one block at a time in files.

For each block in topological order: the float program gives its targets; a method changes its layers; the quantized block, as it is then,
gives the inputs of the next. The program is never run from its start again, so that the work is linear in its depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import PassError
from qcompiler.ir import elementwise
from qcompiler.ir.fingerprint import Fingerprint
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe
from qcompiler.passes.reconstruct.blocks import Block, float_inputs, side_inputs
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer, dequantized
from qcompiler.passes.reconstruct.store import ValueStore
from qcompiler.passes.reconstruct.subgraph import Subgraph
from qcompiler.passes.reconstruct.units import RUN_AT_ONCE, Unit, run_in_pieces

Stores = dict[fx.Node, ValueStore]


class Programs:
    """The QDQ program and its float original, side by side, run over stored samples."""

    def __init__(self, program: Program, reference: Program, folder: Path) -> None:
        self.graph, self.float_graph = program.graph, reference.graph
        batch = program.inputs[0].shape[0] if program.inputs[0].shape else None
        self.fixed_batch = batch if isinstance(batch, int) else None
        self._original = {node.name: node for node in reference.graph.nodes}
        self._folder, self._count = folder, 0
        self._sides: Stores = {}

    def read(self, data: CalibrationData, limit: int) -> tuple[Stores, Fingerprint]:
        """The float inputs of up to ``limit`` samples (0: all) in files, and the fingerprint of all inputs."""
        stores = {node: self.new_store() for node in self.graph.nodes if node.op == "placeholder"}
        fingerprint = Fingerprint()
        for batch in _first(data, limit, self.fixed_batch):
            for store, value in zip(stores.values(), batch, strict=True):
                store.append(value)
                fingerprint.add_tensor(value)
        self._sides = {node: stores[node] for node in side_inputs(self.graph)}
        return {node: stores[node] for node in float_inputs(self.graph)}, fingerprint

    def original(self, node: fx.Node) -> fx.Node:
        """The node of the float program that computes the same value."""
        original: fx.Node = self._original[node.name]
        return original

    def knows(self, node: fx.Node) -> bool:
        """Whether the float program computes the value."""
        return node.name in self._original

    def subgraph(self, graph: fx.Graph, values: Stores, outputs: Sequence[fx.Node]) -> tuple[Subgraph, Stores]:
        """What computes ``outputs`` from ``values`` and integer inputs, and the stores of all its sources in their order.

        Raises:
            PassError: they depend on another float input of the program too.
        """
        sides = self._sides if graph is self.graph else {self.original(node): store for node, store in self._sides.items()}
        sources = {**values, **sides}
        subgraph = Subgraph(graph, sources, outputs)
        if subgraph.unreached:
            raise PassError(f"{describe(outputs[0])} also depends on the input '{subgraph.unreached[0].name}', past the cut before it")
        return subgraph, sources

    def run(
        self, graph: fx.Graph, values: Stores, outputs: Sequence[fx.Node], replaced: Mapping[fx.Node, Tensor] | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """The values of ``outputs``, batch after batch, without gradients."""
        subgraph, sources = self.subgraph(graph, values, outputs)
        for batch in zip(*(store.batches(RUN_AT_ONCE) for store in sources.values()), strict=True):
            with torch.no_grad():
                result = run_in_pieces(subgraph, dict(zip(sources, batch, strict=True)), replaced or {}, self.fixed_batch)
            yield result

    def compute(
        self, graph: fx.Graph, values: Stores, outputs: Sequence[fx.Node], replaced: Mapping[fx.Node, Tensor] | None = None
    ) -> Stores:
        """As ``run``, into new files."""
        stores = {node: self.new_store() for node in outputs}
        for results in self.run(graph, values, outputs, replaced):
            for store, result in zip(stores.values(), results, strict=True):
                store.append(result)
        return stores

    def compute_original(self, values: Stores, outputs: Sequence[fx.Node]) -> Stores:
        """The float program's values for ``outputs`` from its ``values``, all by the nodes of the QDQ program."""
        originals = {self.original(node): store for node, store in values.items()}
        stores = self.compute(self.float_graph, originals, [self.original(node) for node in outputs])
        return dict(zip(outputs, stores.values(), strict=True))

    def new_store(self) -> ValueStore:
        self._count += 1
        return ValueStore(self._folder / f"values-{self._count}")


class BlockWork:
    """One block: what goes into it (``values``, and ``float_values`` in the float program), and the ``targets`` that should come out."""

    def __init__(self, programs: Programs, block: Block, values: Stores, float_values: Stores) -> None:
        self.block = block
        self.targets = programs.compute_original(float_values, block.outputs)
        self.replaced: dict[fx.Node, Tensor] = {}
        self._programs, self._values, self._float_values = programs, values, float_values

    def take(self, changes: Sequence[LayerChange]) -> None:
        """Compute with these changes from now on."""
        layers = {layer.name: layer for layer in self.block.layers}
        for change in changes:
            self.replaced |= dict(dequantized(layers[change.name], change))

    def whole(self) -> Unit:
        """The block as one unit."""
        subgraph, sources = self._programs.subgraph(self._programs.graph, self._values, self.block.outputs)
        floats = {**sources, **self._float_values}
        inputs, float_inputs = tuple(sources.values()), tuple(floats[node] for node in sources)
        targets = tuple(self.targets.values())
        name, fixed_batch = f"block to {self.block.name}", self._programs.fixed_batch
        return Unit(name, subgraph, inputs, float_inputs, targets, self.block.layers, self.replaced, fixed_batch)

    def layer_inputs(self, layer: QuantizedLayer) -> Iterator[Tensor]:
        """What goes into a layer, batch after batch, behind all roundings and changed layers before it."""
        return (values for (values,) in self._programs.run(self._programs.graph, self._values, [layer.source], self.replaced))

    def layer_outputs(self, layer: QuantizedLayer) -> Iterator[tuple[Tensor, Tensor]]:
        """What a layer gives behind all roundings and changed layers before it, and in the float program, batch after batch."""
        programs = self._programs
        originals = {programs.original(node): store for node, store in self._float_values.items()}
        quantized = programs.run(programs.graph, self._values, [layer.node], self.replaced)
        floats = programs.run(programs.float_graph, originals, [programs.original(layer.node)])
        return ((one, other) for (one,), (other,) in zip(quantized, floats, strict=True))

    def layer(self, layer: QuantizedLayer) -> Unit:
        """A layer and the activation fused into it as a unit; ``delete`` its stores when it is done."""
        programs = self._programs
        outputs = (_with_activation(layer.node, programs),)
        inputs = programs.compute(programs.graph, self._values, [layer.source], self.replaced)
        targets = programs.compute_original(self._float_values, outputs)
        subgraph = Subgraph(programs.graph, inputs, outputs)
        stores, fixed_batch = tuple(inputs.values()), programs.fixed_batch
        return Unit(layer.name, subgraph, stores, None, tuple(targets.values()), (layer,), self.replaced, fixed_batch)

    def leave(self) -> tuple[Stores, Stores]:
        """Run the block as it is now: its outputs, quantized and float. What went into it is forgotten."""
        values = self._programs.compute(self._programs.graph, self._values, self.block.outputs, self.replaced)
        for store in dict.fromkeys((*self._values.values(), *self._float_values.values())):
            store.delete()
        return values, self.targets


def start(programs: Programs, values: Stores, block: Block) -> Stores:
    """What goes into the first block, which need not start at the program's inputs."""
    return values if set(block.sources) == set(values) else programs.compute(programs.graph, values, block.sources)


def delete(unit: Unit) -> None:
    """Delete the files that ``BlockWork.layer`` made."""
    for store in (*unit.inputs, *unit.targets):
        store.delete()


def _with_activation(node: fx.Node, programs: Programs) -> fx.Node:
    """The bound (relu, clamp) that alone reads the layer, else the layer itself."""
    while len(node.users) == 1:
        (user,) = node.users
        if user.target not in elementwise.CLAMPS or not programs.knows(user):
            break
        node = user
    return node


def _first(data: CalibrationData, limit: int, fixed_batch: int | None) -> Iterator[tuple[Tensor, ...]]:
    """Batches up to ``limit`` samples in all (0: no limit); a whole number of fixed batches, at least one."""
    left = limit
    if limit and fixed_batch is not None:
        left = max(fixed_batch, limit // fixed_batch * fixed_batch)
    for batch in data:
        yield tuple(value[:left] for value in batch) if limit else batch
        left -= batch[0].shape[0]
        if limit and left <= 0:
            return
