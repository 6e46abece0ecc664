"""``rotate-value-output``: a rotation of each head's values, merged into the projection that makes them and the one that reads them.

    P (V R^T) W'^T  =  P V W^T        with W' = W R^T on the inputs that are this head; the projection of values gets R W_v, R b_v

Probabilities P multiply rows, R columns: they do not meet. Source: QuaRot (arXiv 2404.00456), section 4, stage 1d; SpinQuant's R2
(arXiv 2405.16406). Works in pre-norm and post-norm transformers alike, and where keys and values serve several queries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import channel_axis, write_layer
from qcompiler.ir.program import Program
from qcompiler.passes.rotate.heads import Declined, Heads, Place, check_only_read_by, heads_of, readers_of_heads, spread_over
from qcompiler.passes.rotate.learned import Objective
from qcompiler.passes.rotate.merge import layer_of
from qcompiler.passes.rotate.rotating import RotatingPass
from qcompiler.passes.rotate.samples import sample_rows
from qcompiler.passes.rotate.stream import place
from qcompiler.pipeline.contract import PassContext, PassResult
from qcompiler.pipeline.rewrite import LEFT_ALONE

_aten = torch.ops.aten


@dataclass(frozen=True)
class RotateValueOutput(RotatingPass):
    """A rotation of the values of each head, merged into the layers before and after attention (QuaRot, SpinQuant).

    Options: as of ``rotate-residual-stream``; ``block`` and ``pca`` look at one head's channels.
    """

    name: ClassVar[str] = "rotate-value-output"

    def run(self, program: Program, context: PassContext) -> PassResult:
        found, declined = _sites(program)
        if not found:
            return PassResult(program, False, declined or ("nothing to do: no product of attention with values of a layer",))
        asked = {site.heads.layer.name: channel_axis(site.heads.layer) for site in found} if self.needs_samples else {}
        rows = sample_rows(program, asked, context.data, self.name) if asked else {}
        work = edit.copy(program)
        notes = []
        for site in _sites(work)[0]:
            samples = rows.get(site.heads.layer.name)
            matrices = {}
            for group in site.heads.groups:
                objective = Objective(samples[:, list(group)], _weights(site, group)) if samples is not None else None
                matrices[group] = self.matrix(len(group), objective)
            _rotate(work.graph_module, site, matrices, self.name)
            size = len(site.heads.groups[0])
            readers = ", ".join(place(each.layer) for each in site.places)
            notes.append(f"{place(site.heads.layer)} into {readers}: {len(matrices)} heads of {size}, {self.describe(size)}")
        edit.erase_dead(work)
        return PassResult(work, True, (*notes, *declined))


@dataclass(frozen=True)
class _Site:
    """Values of a layer, and all layers that read products with them."""

    heads: Heads
    places: tuple[Place, ...]


def _sites(program: Program) -> tuple[list[_Site], tuple[str, ...]]:
    """One site for each layer that makes values, and the notes of what was declined."""
    products: dict[fx.Node, list[fx.Node]] = {}
    declined = []
    for product in edit.calls(program.graph, _aten.matmul.default):
        if not _weighs(product):
            continue
        try:
            products.setdefault(heads_of(product.args[1], -1).layer, []).append(product)  # type: ignore[arg-type]  # a node: it is computed
        except Declined as reason:
            declined.append(f"{place(product)} {LEFT_ALONE}: {reason}")
    sites = []
    for layer, readers in products.items():
        try:
            sites.append(_site(readers))
        except Declined as reason:
            declined.append(f"values of {place(layer)} {LEFT_ALONE}: {reason}")
    return sites, tuple(declined)


def _weighs(product: fx.Node) -> bool:
    """Whether a product takes weighted sums of rows: of attention, its first operand comes out of a softmax."""
    left, right = product.args
    while isinstance(left, fx.Node) and left.target is not _aten.softmax.int and len(left.all_input_nodes) == 1:
        left = left.all_input_nodes[0]
    return edit.is_call(left, _aten.softmax.int) and isinstance(right, fx.Node) and right.op != "get_attr"


def _site(products: list[fx.Node]) -> _Site:
    all_heads = [heads_of(product.args[1], -1) for product in products]  # type: ignore[arg-type]  # as above
    heads = all_heads[0]
    if any(set(other.groups) != set(heads.groups) for other in all_heads):
        raise Declined("its readers split it into other heads")
    check_only_read_by(heads, products)
    places = [each for product, own in zip(products, all_heads, strict=True) for each in readers_of_heads(product, own)]
    return _Site(heads, tuple(places))


def _weights(site: _Site, group: tuple[int, ...]) -> list[torch.Tensor]:
    """The columns of all readers that read one head, [outputs, size of the head] each."""
    columns = []
    for each in site.places:
        weight = layer_of(each.layer).weight.squeeze(0).movedim(1, -1)
        columns += [weight[..., list(inputs)].reshape(-1, len(inputs)) for channels, inputs in each.inputs if channels == group]
    return columns


def _rotate(graph_module: fx.GraphModule, site: _Site, matrices: dict[tuple[int, ...], torch.Tensor], made_by: str) -> None:
    for each in site.places:
        layer = layer_of(each.layer)
        inverse = spread_over(layer.inputs, [(inputs, matrices[channels].T) for channels, inputs in each.inputs])
        write_layer(graph_module, layer.mix_inputs(inverse), made_by)
    maker = layer_of(site.heads.layer)
    write_layer(graph_module, maker.mix_outputs(spread_over(maker.outputs, list(matrices.items()))), made_by)
