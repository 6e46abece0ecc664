"""Which output channels of each layer get bits together: by what each adds to the layer's sensitivity.

    salience of channel c at b bits = s_b h_c e_c / sum over channels i of h_i e_i        e_c = ||Q_b(w_c) - w_c||^2

s_b is the sensitivity of the layer. h_c is what the metric says of the channel: its trace of the Hessian (``hessian-trace``) or of the
Fisher information (``fisher``, ``taylor``). Other metrics say nothing, and h_c = 1: exact where they are a sum over channels
(``perturbation``), a proxy elsewhere.

Channels are sorted by their salience at the fewest bits where their order is free (``channel_orders``), together with those of all layers
that share the order, since these need the same channels in one group. Where it is pinned, groups are runs of neighbouring channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.channel_orders import ChannelOrders, Order
from qcompiler.passes.allocate.groups import ChannelGroup, Groups, channel_groups
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.allocate.problem import Array
from qcompiler.passes.allocate.rounding import rounded_weights
from qcompiler.passes.allocate.split_channels import why_whole
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.sensitivity import Item, SensitivityTable


@dataclass(frozen=True)
class LayerGroups:
    """The groups of each weight that is split, and why others with a choice are not, one clause each."""

    groups: Mapping[Item, tuple[ChannelGroup, ...]] = field(default_factory=dict)
    whole: Mapping[Item, str] = field(default_factory=dict)

    @property
    def by_name(self) -> Groups:
        """As the problem calls the items."""
        return {str(item): groups for item, groups in self.groups.items()}


def layer_groups(program: Program, items: Items, quantize: Quantize, count: int, table: SensitivityTable | None) -> LayerGroups:
    """``count`` groups of each weight that can be split.

    ``table``: sensitivities of all candidates. None: channels do not differ, which is enough to know what groups cost.
    """
    if count == 1:
        return LayerGroups()
    nodes = {node.name: node for node in program.graph.nodes}
    choices = {item: nodes[item.name] for item, size in items.candidates.items() if item.kind == "weight" and len(size.bits) > 1}
    reasons = {item: why_whole(layer) or _too_few(items.candidates[item].channels, count) for item, layer in choices.items()}
    layers = {item: choices[item] for item, reason in reasons.items() if reason is None}
    saliences = dict(_saliences(program, items, quantize, layers, table))
    orders = ChannelOrders(program.graph)
    by_order: dict[Order, list[Item]] = {}
    for item, layer in layers.items():
        by_order.setdefault(orders.of(layer), []).append(item)
    groups = {
        item: channel_groups(saliences[item], count, positions)
        for order, members in by_order.items()
        for positions in [_positions(order, [saliences[item] for item in members])]
        for item in members
    }
    return LayerGroups({item: groups[item] for item in layers}, {item: reason for item, reason in reasons.items() if reason is not None})


def _too_few(channels: int, count: int) -> str | None:
    return f"it has {channels} output channels for {count} groups" if channels < count else None


def _positions(order: Order, saliences: Sequence[Array]) -> NDArray[np.intp]:
    """The channels of layers that share an order, as groups take them."""
    together: Array = np.sum([salience[0] for salience in saliences], axis=0)
    return np.arange(together.size) if order.pinned else np.argsort(-together, kind="stable")


def _saliences(
    program: Program, items: Items, quantize: Quantize, layers: Mapping[Item, fx.Node], table: SensitivityTable | None
) -> Iterator[tuple[Item, Array]]:
    """What each channel adds at each bit-width, [options, channels]; nothing below zero, as differences that were measured may be."""
    if table is None:
        for item in layers:
            yield item, np.ones((len(items.candidates[item].bits), items.candidates[item].channels))
        return
    bits = {item: items.candidates[item].bits for item in layers}
    for item, constants in rounded_weights(program, items, quantize, bits, {}):
        weight = edit.constant_value(layers[item].args[1])
        assert weight is not None  # what an item means
        errors = np.stack([_channel_errors(weight, arithmetic.dequantize(each.integers, each.quantized)) for each in constants.values()])
        errors = errors * _weights(table, item, weight.shape[0])
        lost = np.array([max(table.rows[item, width], 0.0) for width in constants])
        totals = errors.sum(1)
        yield item, errors * np.where(totals > 0.0, lost / np.where(totals > 0.0, totals, 1.0), 0.0)[:, None]


def _weights(table: SensitivityTable, item: Item, channels: int) -> Array:
    """h of each channel; alike where the metric says nothing.

    Raises:
        CalibrationError: the table is of other channels.
    """
    found = np.array(table.channels.get(item, ()))
    if found.size not in (0, channels):
        raise CalibrationError(f"the sensitivity table has {found.size} channels of {item}, which has {channels}: measure again")
    return found if found.any() else np.ones(channels)


def _channel_errors(weight: torch.Tensor, rounded: torch.Tensor) -> Array:
    """||Q(w_c) - w_c||^2 for each output channel, of a layer whose first dimension runs over them."""
    errors: Array = (rounded - weight).double().square().flatten(1).sum(1).numpy()
    return errors
