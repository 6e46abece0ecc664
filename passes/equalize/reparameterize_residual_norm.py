"""``reparameterize-residual-norm``: quantization for each channel after a layer norm that a residual sum reads too.

A post-norm transformer (BERT) adds the normalized value x itself to the residual stream, so that ``reparameterize-layer-norm`` cannot
change the layer norm. But x lies in the stream with 16 bits, and the layers after it read a copy of 8 bits. The copy may as well be

    x' = (x - t) / r,      x = r x' + t

with r and t as there (RepQ-ViT, arXiv 2212.08254, section 3.2): the layers take r and t over, ``(W r) x' + (b + W t)``, and in integers
the rounding to 8 bits has a multiplier and an offset for each channel, one op as without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.layers import as_layer, write_layer
from qcompiler.ir.program import Program
from qcompiler.passes.equalize.migration import Affine, Source, norm_sources
from qcompiler.passes.equalize.reparameterize_layer_norm import ReparameterizeLayerNorm
from qcompiler.pipeline.contract import PassContext

_aten = torch.ops.aten


@dataclass(frozen=True)
class ReparameterizeResidualNorm(ReparameterizeLayerNorm):
    """Ranges of single channels go into the narrow copy of a normalized value that stays in the residual stream (post-norm).

    Options:
        bits: of the narrow copy, 2..8.
        clip: how the range of a channel is chosen, ``none`` or ``dual``.
        outliers: how the common scale is chosen, ``none`` or ``mad``.
    """

    name: ClassVar[str] = "reparameterize-residual-norm"

    def sources(self, program: Program) -> list[Source]:
        return norm_sources(program)

    def declines(self, source: Source) -> str | None:
        readers = _linear_readers(source.node)
        if not readers:
            return "no linear layer reads it directly"
        return "linear layers alone read it: reparameterize-layer-norm takes it" if len(readers) == len(source.node.users) else None

    def rewrite(self, sources: Sequence[Source], work: Program, context: PassContext) -> tuple[str, ...]:
        notes = []
        for source in sources:
            affine = self.affine(source, context.statistics[source.node.name])
            if affine is not None:
                names = ", ".join(f"'{reader.name}'" for reader in _linear_readers(source.node))
                notes.append(f"the copy of {source.name} for {names}: {affine.note}")
                _insert_copy(work.graph_module, source.node, affine, self.name)
        return tuple(notes)


def _linear_readers(node: fx.Node) -> list[fx.Node]:
    """The linear layers with constant weights that read the value itself."""
    return [user for user in edit.users_of(node) if user.target is _aten.linear.default and as_layer(user) is not None]


def _insert_copy(graph_module: fx.GraphModule, node: fx.Node, affine: Affine, made_by: str) -> None:
    """``node -> mul -> add -> linear layers``, which take the inverse over."""
    readers = _linear_readers(node)
    dtype = node.meta["val"].dtype
    slope, offset = 1.0 / affine.scale, -affine.shift / affine.scale
    value = node
    for target, values in ((_aten.mul.Tensor, slope), (_aten.add.Tensor, offset)):
        name = f"{node.name}_copy_{edit.op_name(target)}"
        constant = edit.add_constant(graph_module, name, values.to(dtype), provenance_from=[node], made_by=made_by)
        arguments = (value, constant)
        value = edit.insert_call(node.graph, target, arguments, after=value, name=name, provenance_from=[node], made_by=made_by)
    for reader in readers:
        reader.replace_input_with(node, value)
        layer = as_layer(reader)
        assert layer is not None  # what _linear_readers asks for
        write_layer(graph_module, layer.add_bias(layer.product(affine.shift)).scale_inputs(affine.scale), made_by)
