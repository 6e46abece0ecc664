"""Heads of attention: which output channels of which layer each head is made of, and which inputs of which layers read it.

The numbers of channels are sent through the very ops between a layer and a product (``qcompiler.ir.channels``), so that it does not matter
how heads are split, permuted, repeated for grouped queries, or cut out of one projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.channels import MOVES, channel_numbers, moved, shape_of
from qcompiler.ir.layers import as_layer, channel_axis, is_layer
from qcompiler.passes.rotate.stream import place

_aten = torch.ops.aten


class Declined(Exception):
    """Why a rotation cannot be merged here, one clause. Caught by the pass."""


@dataclass(frozen=True)
class Heads:
    """An operand of a product whose rows are heads of a layer's output: ``channels`` [leading dims as one, size of a head]."""

    layer: fx.Node
    channels: torch.Tensor

    @property
    def groups(self) -> list[tuple[int, ...]]:
        """The channels of each head once; heads that serve several queries repeat."""
        return list(dict.fromkeys(tuple(row) for row in self.channels.tolist()))


@dataclass(frozen=True)
class Place:
    """A layer that reads heads: for each head's channels (a group) the input channels that they are."""

    layer: fx.Node
    inputs: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]


def heads_of(operand: fx.Node, axis: int) -> Heads:
    """The heads along ``axis`` (-1, or -2 of transposed keys) of an operand of a product.

    Raises:
        Declined: something but movement lies between the product and a layer, or a row mixes positions.
    """
    chain = _chain(operand)
    layer = chain[0]
    numbers = channel_numbers(layer, channel_axis(layer))
    for node in chain[1:]:
        numbers = moved(node, numbers) if node.target in MOVES else numbers
    rows = numbers.movedim(axis, -1)
    rows = rows.reshape(-1, *rows.shape[-2:])
    if not bool((rows == rows[:, :1]).all()):
        raise Declined(f"{place(operand)} has other channels at each position")
    heads = Heads(layer, rows[:, 0])
    used = [channel for group in heads.groups for channel in group]
    if len(used) != len(set(used)):
        raise Declined(f"{place(operand)} has heads that overlap")
    return heads


def _chain(operand: fx.Node) -> list[fx.Node]:
    """From the layer that makes a value to the value, through movement and changes of scale."""
    chain = [operand]
    while not is_layer(chain[0]):
        node = chain[0]
        source = node.args[0] if node.target in MOVES or _is_scaling(node) else None
        if not isinstance(source, fx.Node):
            raise Declined(f"{place(node)} lies between the product and a layer")
        chain.insert(0, source)
    layer = as_layer(chain[0])
    if layer is None or layer.weight.shape[0] != 1:
        raise Declined(f"{place(chain[0])} has no constant weight that mixes all channels")
    return chain


def check_only_read_by(heads: Heads, products: Sequence[fx.Node]) -> None:
    """Raises Declined where anything but ``products`` reads a channel of these heads."""
    channels = torch.tensor([channel for group in heads.groups for channel in group])
    reached = {heads.layer: channel_numbers(heads.layer, channel_axis(heads.layer))}
    for node in heads.layer.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in reached]
        for source in sources:
            if node.target in MOVES and node.args[0] is source:
                reached[node] = moved(node, reached[source])
            elif _is_scaling(node):
                reached[node] = reached[source]
            elif node not in products and bool(torch.isin(reached[source], channels).any()):
                raise Declined("it is an output of the program" if node.op == "output" else f"{place(node)} reads it too")


def readers_of_heads(product: fx.Node, heads: Heads) -> list[Place]:
    """The layers that read the columns of a product of probabilities and ``heads``.

    Raises:
        Declined: something else reads them, or reads parts of heads apart.
    """
    shape = shape_of(product)
    size = shape[-1]
    lead = torch.arange(heads.channels.shape[0]).reshape(*shape[:-2], 1, 1)
    numbers = (lead * size + torch.arange(size)).expand(shape)
    reached, found = {product: numbers}, []
    for node in product.graph.nodes:
        for source in [source for source in node.all_input_nodes if source in reached]:
            if node.target in MOVES and node.args[0] is source:
                reached[node] = moved(node, reached[source])
            elif _is_scaling(node):
                reached[node] = reached[source]
            elif is_layer(node) and node.args[0] is source:
                found.append(_place(node, reached[source], heads))
            else:
                raise Declined("it is an output of the program" if node.op == "output" else f"{place(node)} reads it")
    if not found:
        raise Declined("no layer reads it")
    return found


def _place(node: fx.Node, numbers: torch.Tensor, heads: Heads) -> Place:
    layer = as_layer(node)
    if layer is None or layer.weight.shape[0] != 1:
        raise Declined(f"{place(node)} has no constant weight that mixes all channels")
    rows = numbers.movedim(layer.axis, -1).reshape(-1, layer.inputs)
    size = heads.channels.shape[1]
    lead, element = rows // size, rows % size
    if not (torch.equal(element, element[:1].expand_as(element)) and _same_channels(heads.channels[lead, element])):
        raise Declined(f"{place(node)} reads other channels at each position")
    inputs = []
    for head in lead[0].unique().tolist():
        positions = (lead[0] == head).nonzero().flatten()
        order = positions[torch.argsort(element[0][positions])]
        apart = not torch.equal(element[0][order], torch.arange(size)) or bool((lead[:, order] != lead[:, order[:1]]).any())
        if apart:
            raise Declined(f"{place(node)} reads parts of a head")
        inputs.append((tuple(heads.channels[head].tolist()), tuple(order.tolist())))
    return Place(node, tuple(inputs))


def _same_channels(channels: torch.Tensor) -> bool:
    return torch.equal(channels, channels[:1].expand_as(channels))


def _is_scaling(node: fx.Node) -> bool:
    return edit.is_call(node, _aten.mul.Tensor, _aten.div.Tensor) and isinstance(node.args[1], int | float)


def spread_over(total: int, blocks: Sequence[tuple[Sequence[int], torch.Tensor]]) -> torch.Tensor:
    """The identity, with a matrix at each set of channels, float64 [total, total]."""
    matrix = torch.eye(total, dtype=torch.float64)
    for channels, block in blocks:
        index = torch.tensor(list(channels))
        matrix[index[:, None], index] = block
    return matrix
