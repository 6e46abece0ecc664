"""Which layers read the channels of a value, and through what.

A value x is followed through every op that leaves ``s[c] x[c] + t[c]`` a map of the same kind, until layers with constant weights take
it. Where each element comes from is found out by running the ops themselves on the numbers of the channels, so that it does not matter
how heads are split, windows partitioned, or queries, keys and values cut out of one product.

========================================  ======================================================================
op                                        lets through
========================================  ======================================================================
reshape, permute, slice, flip, expand,    factors and shifts
roll as slices, mean and max over others
concatenation                             factors and shifts; other values joined along the channels do not matter
relu, leaky relu, max and average pools   positive factors
product with another value or number      factors
matmul, second operand                    factors of its columns (attention's values)
linear, convolution                       end here; a shift only where no border sees zeros
========================================  ======================================================================

Anything else (a residual sum, an output of the program, attention's queries and keys) *pins* the channels that it reads: they stay.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.fx.node import map_arg

from qcompiler.ir import edit
from qcompiler.ir.float_ops import MOVEMENT_OPS
from qcompiler.ir.layers import CHANNEL_AXIS, Layer, as_layer

_aten = torch.ops.aten

# Stands for an element that does not come from the value that is followed.
_ELSEWHERE = -1
# A symbolic size stands for any number of samples or positions: two tell them apart.
_SYMBOLIC = 2

# Only move elements: the op itself, on numbers instead of values, says where to (``moved``).
MOVES = MOVEMENT_OPS - {_aten.cat.default, _aten.constant_pad_nd.default}
_POSITIVE = frozenset({_aten.relu.default, _aten.leaky_relu.default})
_POOLS = frozenset({_aten.max_pool2d.default, _aten.avg_pool2d.default, _aten.adaptive_avg_pool2d.default})
_REDUCTIONS = frozenset({_aten.mean.dim, _aten.amax.default, _aten.sum.dim_IntList})


@dataclass(frozen=True)
class Reader:
    """A layer, and for each of its input channels the channel of the value that it is; -1 for one of another value."""

    node: fx.Node
    channel: torch.Tensor

    @property
    def layer(self) -> Layer:
        """With its weights as they are now."""
        layer = as_layer(self.node)
        assert layer is not None  # it was found as one
        return layer

    @property
    def value(self) -> fx.Node:
        """What it reads."""
        return self.node.args[0]  # type: ignore[return-value]  # a layer's input is a node

    def of_inputs(self, values: torch.Tensor, elsewhere: float) -> torch.Tensor:
        """Values of the followed channels in the order of the layer's inputs."""
        extended = torch.cat([values, torch.tensor([elsewhere], dtype=values.dtype)])
        return extended[self.channel]  # -1 is the last one

    def magnitudes(self, channels: int) -> torch.Tensor:
        """max |w| over what multiplies each followed channel, [channels]."""
        result = np.zeros(channels + 1)
        np.maximum.at(result, self.channel.numpy(), self.layer.input_magnitudes().numpy())
        return torch.from_numpy(result[:channels])  # -1 is the last one


@dataclass
class Readers:
    """Everything that reads a value's channels.

    pinned: bool [channels], channels that cannot be scaled; unshiftable: likewise shifted; reasons: by what, one clause each.
    """

    channels: int
    layers: list[Reader] = field(default_factory=list)
    pinned: torch.Tensor = field(init=False)
    unshiftable: torch.Tensor = field(init=False)
    reasons: dict[str, None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pinned = torch.zeros(self.channels, dtype=torch.bool)
        self.unshiftable = torch.zeros(self.channels, dtype=torch.bool)

    def weight_magnitudes(self) -> torch.Tensor:
        """max |w| over all layers, [channels]."""
        return torch.stack([reader.magnitudes(self.channels) for reader in self.layers]).amax(0)

    def free(self, values: torch.Tensor, neutral: float) -> torch.Tensor:
        """``values`` where a channel can be scaled, else ``neutral``."""
        return torch.where(self.pinned, neutral, values.double())

    def free_shift(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` where a channel can be shifted, else 0."""
        return torch.where(self.pinned | self.unshiftable, 0.0, values.double())

    def why_pinned(self) -> str | None:
        """Why no channel can be scaled; None if one can."""
        return None if self.layers and not bool(self.pinned.all()) else self._reason

    def why_unshiftable(self) -> str | None:
        """Why no channel can be shifted; None if one can."""
        return None if self.layers and not bool((self.pinned | self.unshiftable).all()) else self._reason

    def why_not_all(self) -> str | None:
        """Why not every channel can be scaled and shifted; None if each can."""
        return None if self.layers and not bool((self.pinned | self.unshiftable).any()) else self._reason

    @property
    def _reason(self) -> str:
        return next(iter(self.reasons), "no layer with constant weights reads it")


def readers_of(node: fx.Node, axis: int) -> Readers:
    """Follow the channels of ``node``, which run along ``axis`` (counted from the last dimension)."""
    found = Readers(shape_of(node)[axis])
    _Walk(found, {node: _Trace(channel_numbers(node, axis), True)}).run()
    return found


@dataclass(frozen=True)
class _Trace:
    """The channel that each element of a value comes from, and whether a shift would have come through."""

    channel: torch.Tensor
    shifts: bool


@dataclass
class _Walk:
    """Goes through the graph in topological order from the followed value on."""

    found: Readers
    traces: dict[fx.Node, _Trace]

    def run(self) -> None:
        (start,) = self.traces
        pending = False
        for node in start.graph.nodes:
            pending = pending or node is start
            if pending and node is not start and any(operand in self.traces for operand in node.all_input_nodes):
                self._visit(node)

    def _visit(self, node: fx.Node) -> None:
        rule = _RULES.get(node.target)
        trace = None if rule is None else rule(self, node)
        if trace is not None:
            self.traces[node] = trace
        elif rule is not _Walk.layer:
            self.pin(node)

    def pin(self, node: fx.Node) -> None:
        """``node`` needs the values as they are."""
        for operand in node.all_input_nodes:
            if operand in self.traces:
                self._mark(self.found.pinned, self.traces[operand].channel, _reader(node))

    def _mark(self, marks: torch.Tensor, numbers: torch.Tensor, reason: str) -> None:
        touched = torch.zeros(self.found.channels + 1, dtype=torch.bool)
        touched[numbers.reshape(-1)] = True  # what comes from elsewhere is -1, the last one
        marks |= touched[:-1]
        self.found.reasons[reason] = None

    def layer(self, node: fx.Node) -> _Trace | None:
        """Ends here."""
        operand = node.args[0]
        layer = as_layer(node)
        if layer is None or not isinstance(operand, fx.Node) or operand not in self.traces:
            self.pin(node)
            return None
        trace = self.traces[operand]
        rows = trace.channel.movedim(layer.axis, -1).reshape(-1, layer.inputs)
        mixed = (rows != rows[0]).any(0)
        if bool(mixed.any()):
            self._mark(self.found.pinned, rows[:, mixed], f"'{node.name}' reads several channels as one")
        if not (trace.shifts and layer.takes_shifts):
            why = "pads with zeros" if trace.shifts else "reads it through an op that a shift does not pass"
            self._mark(self.found.unshiftable, rows[0], f"'{node.name}' {why}")
        self.found.layers.append(Reader(node, rows[0]))
        return None

    def move(self, node: fx.Node) -> _Trace | None:
        trace = self.traces[node.args[0]]  # type: ignore[index]  # the tensor that moves comes first
        return _Trace(moved(node, trace.channel), trace.shifts)

    def positive(self, node: fx.Node) -> _Trace | None:
        return _Trace(self.traces[node.args[0]].channel, False)  # type: ignore[index]  # as above

    def pool(self, node: fx.Node) -> _Trace | None:
        numbers = self.traces[node.args[0]].channel  # type: ignore[index]  # as above
        corner = numbers[..., :1, :1]
        return _Trace(corner.expand(shape_of(node)), False) if bool((numbers == corner).all()) else None

    def reduce(self, node: fx.Node) -> _Trace | None:
        trace = self.traces[node.args[0]]  # type: ignore[index]  # as above
        dims = edit.argument(node, "dim")
        largest, least = (torch.amax(sign * trace.channel, dims, edit.argument(node, "keepdim")) * sign for sign in (1, -1))
        shifts = trace.shifts and node.target is not _aten.sum.dim_IntList
        return _Trace(largest, shifts) if torch.equal(largest, least) else None

    def multiply(self, node: fx.Node) -> _Trace | None:
        followed = [operand for operand in node.args if operand in self.traces]
        if len(followed) != 1 or node.kwargs:
            return None
        return _Trace(self.traces[followed[0]].channel.expand(shape_of(node)), False)  # type: ignore[index]  # a node, as it is followed

    def matmul(self, node: fx.Node) -> _Trace | None:
        left, right = node.args
        if left in self.traces or right not in self.traces:
            return None
        numbers = self.traces[right].channel  # type: ignore[index]  # a node, as it is followed
        row = numbers[..., :1, :]
        return _Trace(row.expand(shape_of(node)), False) if bool((numbers == row).all()) else None

    def concatenate(self, node: fx.Node) -> _Trace | None:
        operands: Any = node.args[0]
        followed = [self.traces[operand] for operand in operands if operand in self.traces]
        parts = [
            self.traces[operand].channel if operand in self.traces else torch.full(shape_of(operand), _ELSEWHERE) for operand in operands
        ]
        return _Trace(torch.cat(parts, edit.argument(node, "dim")), all(trace.shifts for trace in followed))


_RULES: dict[Any, Callable[[_Walk, fx.Node], _Trace | None]] = {
    **dict.fromkeys(CHANNEL_AXIS, _Walk.layer),
    **dict.fromkeys(MOVES, _Walk.move),
    **dict.fromkeys(_POSITIVE, _Walk.positive),
    **dict.fromkeys(_POOLS, _Walk.pool),
    **dict.fromkeys(_REDUCTIONS, _Walk.reduce),
    _aten.mul.Tensor: _Walk.multiply,
    _aten.matmul.default: _Walk.matmul,
    _aten.cat.default: _Walk.concatenate,
}


def _reader(node: fx.Node) -> str:
    return "it is an output of the program" if node.op == "output" else f"'{node.name}' reads it too"


def shape_of(node: fx.Node) -> list[int]:
    """The sizes of a value, with a number in the place of symbols."""
    return [_number(size) for size in node.meta["val"].shape]


def _number(size: int | torch.SymInt) -> int:
    """A size, or what stands for it."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, _SYMBOLIC)))


def channel_numbers(node: fx.Node, axis: int) -> torch.Tensor:
    """For each element of a value the number of its channel along ``axis``, which is counted from the last dimension."""
    shape = shape_of(node)
    return torch.arange(shape[axis]).reshape(-1, *[1] * (-axis - 1)).expand(shape)


def moved(node: fx.Node, numbers: torch.Tensor) -> torch.Tensor:
    """The op on numbers instead of the values of its first operand."""

    def concrete(argument: fx.Node) -> Any:
        return numbers if argument is node.args[0] else _number(argument.meta["val"])

    args, kwargs = map_arg(node.args, concrete), map_arg(node.kwargs, concrete)
    result: torch.Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # an op overload
    return result
