"""``split-channels``: a layer whose output channels were given different bits becomes one layer for each width, and a concatenation.

``allocate{channel_groups=...}`` writes the bits of each channel into ``node.meta["precision"]``; here rows of the weight and elements of
the bias are taken apart, so that ``quantize`` finds layers with one width each.

1. *Order.* Channels of one width should follow one another. Where everything that reads the layer's channels can take them in another order
   (``channel_orders``), they are sorted by their widths, the widest first, and the permutation goes into the constants around: nothing of
   it is left to compute. Layers whose values are added share one order, sorted by the widths of the first, then of the second. Where the
   order is pinned it stays. Each run of channels of one width becomes a layer.
2. *Concatenation.* It comes behind what the layer is fused with: activations, sums with a constant, a residual add. Each part has its own,
   and reads its channels of the value that is added. The parts share the scale of the concatenation, where nothing else reads them.

The function stays as it is. What is an output of the program itself stays whole, since it is never rounded, with the most bits of any of
its channels.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from qcompiler.errors import PassError
from qcompiler.ir import edit
from qcompiler.ir.float_ops import UNARY_OPS
from qcompiler.ir.layers import channel_axis
from qcompiler.ir.program import Program
from qcompiler.ir.provenance import describe, provenance_of
from qcompiler.ir.types import Precision, Stage
from qcompiler.passes.allocate.channel_orders import LAYERS, ChannelOrders, Operand, Order
from qcompiler.pipeline.contract import Equivalent, Pass, PassContext, PassResult, Promise
from qcompiler.pipeline.rewrite import LEFT_ALONE, Site

_aten = torch.ops.aten

_SUMS = (_aten.add.Tensor, _aten.sub.Tensor)
_FACTORS = (_aten.mul.Tensor, _aten.div.Tensor)


@dataclass(frozen=True)
class Run:
    """Output channels start..stop-1 of a layer, which get ``bits``."""

    start: int
    stop: int
    bits: int

    def of(self, values: torch.Tensor, dim: int) -> torch.Tensor:
        return values.narrow(dim, self.start, self.stop - self.start).contiguous()


@dataclass(frozen=True)
class SplitChannels(Pass):
    """Layers whose output channels were given different bits become one layer for each width, joined behind their activations."""

    name: ClassVar[str] = "split-channels"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-5)

    def run(self, program: Program, context: PassContext) -> PassResult:
        if not any(_channel_bits(node) for node in program.graph.nodes):
            return PassResult(program, False)
        result = edit.copy(program)
        layers = [node for node in result.graph.nodes if _channel_bits(node)]
        orders = ChannelOrders(result.graph)
        notes = [f"{_place(layer)} {LEFT_ALONE}: {why}" for layer in layers if (why := why_whole(layer))]
        split = [layer for layer in layers if not why_whole(layer)]
        for order in dict.fromkeys(orders.of(layer) for layer in split):
            _sort(result, order, split, self.name)
        notes += [_note(layer, orders.of(layer)) for layer in split]
        copies: dict[str, list[str]] = {}
        for layer in reversed(split):  # of two layers whose results are added the later one keeps the sum
            _split(result, layer, copies, self.name)
        for layer in layers:
            _write(layer, replace(_precision(layer), channels=()))
        edit.erase_dead(result)
        islands = [name for island in program.islands for name in copies.get(island, [island])]
        return PassResult(result.replace(islands=tuple(islands)), True, tuple(notes))


def why_whole(layer: fx.Node) -> str | None:
    """Why a layer with a constant weight cannot be split by its output channels, one clause; None if it can."""
    if layer.target not in LAYERS:
        return "it is neither a linear layer nor a convolution"
    if layer.target is _aten.conv2d.default and edit.argument(layer, "groups") != 1:
        return "its channels belong to groups"
    if any(user.op == "output" for user in layer.users):
        return "it is an output of the program, which is not rounded"
    return None


def _precision(node: fx.Node) -> Precision:
    found = node.meta.get("precision")
    return found if isinstance(found, Precision) else Precision()


def _write(node: fx.Node, precision: Precision) -> None:
    node.meta["precision"] = precision


def _channel_bits(node: fx.Node) -> tuple[int, ...]:
    """The bits of each output channel.

    Raises:
        PassError: there are not as many as channels.
    """
    bits = _precision(node).channels
    weight = edit.constant_value(node.args[1]) if bits else None
    if bits and (weight is None or len(bits) != weight.shape[0]):
        raise PassError(f"{describe(node)} asks for the bits of {len(bits)} channels, which it does not have: allocate again")
    return bits


# ---- order ------------------------------------------------------------------------------------------------------------------------


def _sort(program: Program, order: Order, split: Sequence[fx.Node], made_by: str) -> None:
    """Channels of one width follow one another in all layers of the order that are to be split, if it is not pinned."""
    if order.pinned:
        return
    layers = [layer for layer in order.layers if layer in split]
    chosen = _by_width(range(order.channels), [_channel_bits(layer) for layer in layers])
    if chosen == list(range(order.channels)):
        return
    positions = torch.tensor(chosen)
    for operand in order.operands:
        _permute(program, operand, positions, made_by)
    for layer in layers:
        bits = _channel_bits(layer)
        _write(layer, replace(_precision(layer), channels=tuple(bits[channel] for channel in chosen)))


def _by_width(channels: Sequence[int], bits: Sequence[Sequence[int]], widest_first: bool = True) -> list[int]:
    """Channels sorted by their bits in the first layer, those with equal ones by their bits in the second, and so on.

    The direction turns from one width of the first to the next, so that where one ends and another begins the second may stay at its own.
    """
    if not bits:
        return list(channels)
    result: list[int] = []
    turns = itertools.cycle((widest_first, not widest_first))
    for width in sorted({bits[0][channel] for channel in channels}, reverse=widest_first):
        result += _by_width([channel for channel in channels if bits[0][channel] == width], bits[1:], next(turns))
    return result


def _permute(program: Program, operand: Operand, positions: torch.Tensor, made_by: str) -> None:
    constant = edit.argument(operand.node, operand.name)
    values = edit.constant_value(constant)
    assert values is not None  # what an operand is
    permuted = values.index_select(operand.dim, positions)
    edit.set_constant(program.graph_module, operand.node, operand.name, permuted, str(constant.target), made_by)


# ---- parts ------------------------------------------------------------------------------------------------------------------------


def _runs(bits: Sequence[int]) -> list[Run]:
    runs, start = [], 0
    for width, channels in itertools.groupby(bits):
        stop = start + len(list(channels))
        runs.append(Run(start, stop, width))
        start = stop
    return runs


def _split(program: Program, layer: fx.Node, copies: dict[str, list[str]], made_by: str) -> None:
    """The layer and what is fused with it once for each run, then a concatenation. ``copies``: by name, of what is fused."""
    runs = _runs(_channel_bits(layer))
    if len(runs) == 1:
        return
    chain = _fused(layer)
    last = chain[-1]
    axis = last.meta["val"].ndim + channel_axis(layer)
    site = Site(program.graph_module, last, made_by)
    parts = [_part(site, chain, run, axis) for run in runs]
    for position, op in enumerate(chain):
        copies[op.name] = [part[position].name for part in parts]
    joined = site.call(_aten.cat.default, [part[-1] for part in parts], axis)
    _write(joined, Precision(activation=_precision(last).activation))
    last.replace_all_uses_with(joined)


def _fused(layer: fx.Node) -> list[fx.Node]:
    """The layer and the ops behind it that work on each channel alone and are computed with it, each the only reader of the one before."""
    chain = [layer]
    while len(chain[-1].users) == 1:
        (reader,) = chain[-1].users
        if not _stays_with(chain[-1], reader):
            break
        chain.append(reader)
    return chain


def _stays_with(value: fx.Node, reader: fx.Node) -> bool:
    if reader.op != "call_function" or reader.meta["val"].shape != value.meta["val"].shape or any(map(_is_node, reader.kwargs.values())):
        return False
    others = [operand for operand in reader.args if isinstance(operand, fx.Node) and operand is not value]
    if reader.target in UNARY_OPS:
        return not others
    if reader.target not in _SUMS + _FACTORS or reader.args[:2].count(value) != 1:
        return False
    return all(edit.is_constant(other) or (reader.target in _SUMS and _is_added(other, value)) for other in others)


def _is_added(other: fx.Node, value: fx.Node) -> bool:
    """Whether ``other`` is added to an accumulator, and not the accumulator to which ``value`` is added: the later one."""
    later = other.target in LAYERS and len(other.users) == 1 and value < other
    return other.meta["val"].shape == value.meta["val"].shape and not later


def _is_node(value: object) -> bool:
    return isinstance(value, fx.Node)


def _part(site: Site, chain: Sequence[fx.Node], run: Run, axis: int) -> list[fx.Node]:
    """The chain for the channels of one run."""
    layer = chain[0]
    site = replace(site, node=layer)
    constants = [_rows(site, edit.argument(layer, name), run, 0) for name in ("weight", "bias")]
    value = edit.insert_call(
        layer.graph,
        layer.target,  # type: ignore[arg-type]  # an op overload
        [layer.args[0], *constants, *layer.args[3:]],
        {name: value for name, value in layer.kwargs.items() if name != "bias"},
        before=layer,
        name=f"{layer.name}_w{run.bits}",
        provenance_from=[layer],
        made_by=site.made_by,
    )
    _write(value, Precision(weight=run.bits, activation=_precision(layer).activation))
    part = [value]
    for before, op in itertools.pairwise(chain):
        site = replace(site, node=op)
        args = [part[-1] if operand is before else _of_channels(site, operand, run, axis - op.meta["val"].ndim) for operand in op.args]
        part.append(site.call(op.target, *args, **op.kwargs))  # type: ignore[arg-type]  # an op overload
        if "precision" in op.meta:
            _write(part[-1], _precision(op))
    return part


def _rows(site: Site, constant: object, run: Run, dim: int) -> fx.Node | None:
    values = edit.constant_value(constant)
    if values is None or not isinstance(constant, fx.Node):
        return None
    return site.constant(str(constant.target), run.of(values, dim))


def _of_channels(site: Site, operand: object, run: Run, axis: int) -> object:
    """The channels of the run; ``axis`` is counted from the last dimension."""
    if not isinstance(operand, fx.Node):
        return operand
    shape = operand.meta["val"].shape
    if -axis > len(shape) or shape[axis] == 1:
        return operand
    if edit.is_constant(operand):
        return _rows(site, operand, run, len(shape) + axis)
    return site.call(_aten.slice.Tensor, operand, len(shape) + axis, run.start, run.stop)


# ---- notes ------------------------------------------------------------------------------------------------------------------------


def _note(layer: fx.Node, order: Order) -> str:
    runs = ", ".join(f"W{run.bits} for {run.stop - run.start} channels" for run in _runs(_channel_bits(layer)))
    return f"{_place(layer)}: {runs}{f'; their order stays, as {order.pinned}' if order.pinned else ''}"


def _place(layer: fx.Node) -> str:
    location = provenance_of(layer).location
    return f"{layer.name}{f' ({location})' if location else ''}"
