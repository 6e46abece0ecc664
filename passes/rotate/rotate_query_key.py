"""``rotate-query-key``: a rotation of each head's queries and keys, which their product does not see.

    (Q R^T) (K R^T)^T  =  Q R^T R K^T  =  Q K^T

Merged into the projections of both where nothing but movement lies between them and the product. Rotary positions do: they turn pairs of
channels by angles of their own, which no rotation over all channels commutes with. There, with ``online``, a Hadamard transform of both
operands is computed (``qc.hadamard``), and the product divided by its order. Source: QuaRot (arXiv 2404.00456), section 4, stage 1e.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.arithmetic.hadamard import is_online_order
from qcompiler.ir import edit
from qcompiler.ir.layers import channel_axis, write_layer
from qcompiler.ir.program import Program
from qcompiler.passes.rotate.heads import Declined, Heads, check_only_read_by, heads_of, spread_over
from qcompiler.passes.rotate.learned import Objective
from qcompiler.passes.rotate.merge import layer_of
from qcompiler.passes.rotate.rotating import RotatingPass
from qcompiler.passes.rotate.samples import sample_rows
from qcompiler.passes.rotate.stream import axis_of_operand, place
from qcompiler.pipeline.contract import PassContext, PassResult
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten, _qc = torch.ops.aten, torch.ops.qc

# Rows of the other side that stand for what one side is multiplied by.
_PARTNERS = 256


@dataclass(frozen=True)
class RotateQueryKey(RotatingPass):
    """A rotation of the queries and keys of each head, merged into their projections, or online behind rotary positions (QuaRot).

    Options: as of ``rotate-residual-stream``; ``online``: where it cannot be merged, Hadamard transforms of both are computed.
    """

    name: ClassVar[str] = "rotate-query-key"

    online: bool = False

    def run(self, program: Program, context: PassContext) -> PassResult:
        found, declined = _sites(program)
        if not found and not (self.online and declined):
            reasons = tuple(f"{place(product)} {LEFT_ALONE}: {reason}" for product, reason in declined.items())
            return PassResult(program, False, reasons or ("nothing to do: no product of queries and keys before a softmax",))
        layers = [layer for site in found for layer in site.layers] if self.needs_samples else []
        axes = {layer.name: channel_axis(layer) for layer in layers}
        rows = sample_rows(program, axes, context.data, self.name) if axes else {}
        work = edit.copy(program)
        notes = []
        sites, others = _sites(work)
        for site in sites:
            pairs = {pair: self.matrix(len(pair[0]), _objective(site, pair, rows)) for pair in site.pairs}
            _merge(work.graph_module, site, pairs, self.name)
            size = len(next(iter(pairs))[0])
            names = " and ".join(place(layer) for layer in dict.fromkeys(site.layers))
            notes.append(f"{place(site.product)}: {len(pairs)} pairs of heads of {size}, {self.describe(size)}, merged into {names}")
        for product, reason in others.items():
            done = _transform(work.graph_module, product, self.name) if self.online else None
            notes.append(f"{place(product)}: {done}, as {reason}" if done else f"{place(product)} {LEFT_ALONE}: {reason}")
        if not sites and not any(edit.calls(work.graph, _qc.hadamard.default)):
            return PassResult(program, False, tuple(notes))
        edit.erase_dead(work)
        return PassResult(work, True, tuple(notes))


Pair = tuple[tuple[int, ...], tuple[int, ...]]  # channels of a head of queries, and of the head of keys that it meets


@dataclass(frozen=True)
class _Site:
    """A product of queries and keys."""

    product: fx.Node
    queries: Heads
    keys: Heads

    @property
    def layers(self) -> tuple[fx.Node, fx.Node]:
        return self.queries.layer, self.keys.layer

    @property
    def pairs(self) -> list[Pair]:
        rows = zip(self.queries.channels.tolist(), self.keys.channels.tolist(), strict=True)
        return list(dict.fromkeys((tuple(query), tuple(key)) for query, key in rows))


def _sites(program: Program) -> tuple[list[_Site], dict[fx.Node, str]]:
    """Products whose operands come from layers, and the others with the reason why not."""
    sites, declined = [], {}
    for product in edit.calls(program.graph, _aten.matmul.default):
        if not _feeds_softmax(product):
            continue
        try:
            sites.append(_site(product))
        except Declined as reason:
            declined[product] = str(reason)
    return sites, declined


def _feeds_softmax(product: fx.Node) -> bool:
    """Whether scores of two computed values come out of it."""
    node = product
    while len(node.users) == 1 and node.target is not _aten.softmax.int:
        (node,) = node.users
    return node.target is _aten.softmax.int and all(isinstance(each, fx.Node) and each.op != "get_attr" for each in product.args)


def _site(product: fx.Node) -> _Site:
    queries, keys = heads_of(product.args[0], -1), heads_of(product.args[1], -2)  # type: ignore[arg-type]  # nodes: both are computed
    if queries.channels.shape != keys.channels.shape:
        raise Declined("queries and keys broadcast")
    for side in (queries, keys):
        check_only_read_by(side, [product])
    site = _Site(product, queries, keys)
    if len(site.pairs) > len(queries.groups):
        raise Declined("a head of queries meets several heads of keys, whose rotations may differ")
    return site


def _objective(site: _Site, pair: Pair, rows: dict[str, torch.Tensor]) -> Objective | None:
    """Queries, which keys multiply as weights would. One matrix serves all queries of a key: the first decides."""
    if not rows:
        return None
    query, key = (rows[layer.name][:, list(channels)] for layer, channels in zip(site.layers, pair, strict=True))
    return Objective(query, [key[:: max(1, key.shape[0] // _PARTNERS)].double()])


def _merge(graph_module: fx.GraphModule, site: _Site, pairs: dict[Pair, torch.Tensor], made_by: str) -> None:
    by_key: dict[tuple[int, ...], torch.Tensor] = {}
    for (_, key), matrix in pairs.items():
        by_key.setdefault(key, matrix)
    queries = {query: by_key[key] for query, key in pairs}
    for layer, blocks in ((site.queries.layer, queries), (site.keys.layer, by_key)):
        maker = layer_of(layer)
        write_layer(graph_module, maker.mix_outputs(spread_over(maker.outputs, list(blocks.items()))), made_by)


def _transform(graph_module: fx.GraphModule, product: fx.Node, made_by: str) -> str | None:
    """Hadamard transforms of both operands, and the product divided by the order; None where the size of a head has none."""
    size = int(product.args[0].meta["val"].shape[-1])  # type: ignore[union-attr]  # a node
    places = [_origin(product, position, axis) for position, axis in ((0, -1), (1, -2))]
    if not is_online_order(size) or any(found is None for found in places):
        return None
    for found in places:
        assert found is not None  # looked at above
        origin, reader = found
        transformed = edit.insert_call(
            graph_module.graph, _qc.hadamard.default, (origin, size), after=origin, provenance_from=[product], made_by=made_by
        )
        reader.replace_input_with(origin, transformed)
    scaled = edit.insert_call(
        graph_module.graph, _aten.mul.Tensor, (product, 1.0 / size), after=product, provenance_from=[product], made_by=made_by
    )
    edit.replace(product, scaled)
    return f"online Hadamard transforms of {size} channels"


def _origin(product: fx.Node, position: int, axis: int) -> tuple[fx.Node, fx.Node] | None:
    """The value furthest up whose last dimension is the head's, and what reads it on the way to the product."""
    value, reader, found = product.args[position], product, None
    while isinstance(value, fx.Node):
        if axis == -1:
            found = value, reader
        source = value.args[0] if value.args else None
        above = axis_of_operand(value, source, axis) if isinstance(source, fx.Node) else None
        if above is None or len(value.users) != 1 or len(value.all_input_nodes) != 1:
            return found
        reader, axis = value, above
        value = source
    return found
