"""Layers that read the same value and are neighbours in a concatenation: one kernel can compute them.

``split-channels`` makes such layers, one for each width of weights, and so do the branches of a network. A kernel computes whole vectors of
channels: two layers of 8 channels take as long as two of 16. Whether one kernel for several is faster is decided when it is planned
(``operations.layers``); here is which of them differ in nothing but weights, biases and the factors of their channels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.concatenation import Place
from qcompiler.backends.tvm.fuse import CONVOLUTION, Fusion
from qcompiler.ir import edit
from qcompiler.ir.edit import argument

Constant = Callable[[fx.Node], torch.Tensor]

_GEOMETRY = ("stride", "padding", "dilation", "groups", "pad_value")
_LIMITS = ("zero_point", "low", "high", "bits", "signed")


@dataclass(frozen=True)
class Channels:
    """Some channels of a value, from ``start`` to ``stop``."""

    value: fx.Node
    start: int
    stop: int


def find_joint_layers(
    graph: fx.Graph, fusions: Mapping[fx.Node, Fusion], places: Mapping[fx.Node, Place], constant: Constant
) -> dict[fx.Node, tuple[Fusion, ...]]:
    """Neighbouring layers in the order of their channels, by the last node of theirs in the graph: what all of them read exists then."""
    order = {node: position for position, node in enumerate(graph.nodes)}
    groups: dict[fx.Node, tuple[Fusion, ...]] = {}
    for run in _runs(fusions, places, constant):
        groups[max((fusion.last for fusion in run), key=order.__getitem__)] = tuple(run)
    return groups


def residual_channels(fusions: Sequence[Fusion]) -> Channels | None:
    """What the layers of a group add to their accumulators: neighbouring channels of one value."""
    parts = [_residual(fusion) for fusion in fusions]
    first, last = parts[0], parts[-1]
    return Channels(first.value, first.start, last.stop) if first is not None and last is not None else None


def _runs(fusions: Mapping[fx.Node, Fusion], places: Mapping[fx.Node, Place], constant: Constant) -> Iterator[list[Fusion]]:
    candidates = [node for node, place in places.items() if node in fusions and _may_join(fusions[node], place)]
    run: list[Fusion] = []
    for node in sorted(candidates, key=lambda each: (places[each].concatenation.name, places[each].start)):
        fusion = fusions[node]
        if run and not (_are_neighbours(run[-1], fusion, places) and _alike(run[-1], fusion, constant)):
            if len(run) > 1:
                yield run
            run = []
        run.append(fusion)
    if len(run) > 1:
        yield run


def _may_join(fusion: Fusion, place: Place) -> bool:
    """Its value is read by the concatenation alone, so that it may be computed later, and its channels are of the whole input."""
    readers = {user for user in fusion.last.users if user.op != "output"}
    is_convolution = edit.is_call(fusion.root, CONVOLUTION)
    whole = argument(fusion.root, "groups") == 1 if is_convolution else place.dim == fusion.last.meta["val"].dim() - 1
    return whole and readers == {place.concatenation} and fusion.weight_group == 0


def _are_neighbours(a: Fusion, b: Fusion, places: Mapping[fx.Node, Place]) -> bool:
    first, second = places[a.last], places[b.last]
    if first.concatenation is not second.concatenation or first.start + first.size != second.start:
        return False
    if a.residual is None or b.residual is None:
        return a.residual is b.residual
    x, y = _residual(a), _residual(b)
    return x is not None and y is not None and x.value is y.value and x.stop == y.start


def _residual(fusion: Fusion) -> Channels | None:
    """The residual operand of a layer as channels of a value that has more of them."""
    node = fusion.residual
    if not edit.is_call(node, torch.ops.aten.slice.Tensor) or node is None or argument(node, "step") != 1:
        return None
    source, dims = argument(node, "self"), node.meta["val"].dim()
    dim = argument(node, "dim") % dims
    size = source.meta["val"].shape[dim]
    if dim != (1 if edit.is_call(fusion.root, CONVOLUTION) else dims - 1) or not isinstance(size, int):
        return None
    start, stop, _ = slice(argument(node, "start"), argument(node, "end")).indices(size)
    return Channels(source, start, stop)


def _alike(a: Fusion, b: Fusion, constant: Constant) -> bool:
    return _signature(a, constant) == _signature(b, constant)


def _signature(fusion: Fusion, constant: Constant) -> Hashable:
    """All that the layers of one kernel have in common."""
    root = fusion.root
    geometry: tuple[object, ...] = ()
    if edit.is_call(root, CONVOLUTION):
        arguments = (argument(root, name) for name in _GEOMETRY)
        geometry = (
            *(tuple(each) if isinstance(each, Sequence) else each for each in arguments),
            argument(root, "weight").meta["val"].shape[2:],
        )
    table = None if fusion.table is None else _numbers(constant(argument(fusion.table, "table")))
    return root.target, argument(root, "x"), geometry, _epilogue(fusion, constant), table


def _epilogue(fusion: Fusion, constant: Constant) -> Hashable:
    epilogue = fusion.epilogue
    if epilogue is None:
        return None
    limits = tuple(argument(epilogue, name) for name in _LIMITS)
    if fusion.residual is None:
        return argument(epilogue, "form"), *limits
    side = fusion.residual_side
    factors = (_numbers(constant(argument(epilogue, f"{name}_{side}"))) for name in ("pre_shift", "multiplier"))
    return side, argument(epilogue, "shift"), argument(epilogue, f"zero_point_{side}"), *factors, *limits


def _numbers(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.flatten().tolist())
