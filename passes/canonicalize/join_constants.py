"""``join-constants``: a constant token in front of or behind computed ones becomes padding and a sum.

    cat([c, x, d], dim) = pad(x) + [c, 0, d]

with zeros for the tokens that stand at the place of c and d, and c and d the same for each sample: class and distillation tokens
(Touvron et al., "Training data-efficient image transformers", 2021), register tokens. The position embedding that follows is added to
the same constant by ``normalize-arithmetic``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from qcompiler.ir import edit
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact
from qcompiler.pipeline.rewrite import RewritePass, Site

_aten = torch.ops.aten


@dataclass(frozen=True)
class Joined:
    """``node`` joins the constants ``before`` and ``after`` onto ``source`` along ``dim``."""

    node: fx.Node
    dim: int
    before: list[torch.Tensor]
    source: fx.Node
    after: list[torch.Tensor]


@dataclass(frozen=True)
class JoinConstants(RewritePass[Joined]):
    """Write the concatenation of one computed value with constants as padding and a sum."""

    name: ClassVar = "join-constants"
    takes: ClassVar = Stage.FLOAT
    gives: ClassVar = Stage.FLOAT
    promise: ClassVar = Exact()

    def match(self, node: fx.Node) -> Joined | None:
        if not edit.is_call(node, _aten.cat.default) or not node.meta["val"].is_floating_point():
            return None
        parts: list[fx.Node] = list(node.args[0])  # type: ignore[arg-type]  # aten.cat(Tensor[], int)
        constants = [_repeated_constant(part) for part in parts]
        computed = [position for position, constant in enumerate(constants) if constant is None]
        if len(computed) != 1 or len(parts) == 1:
            return None
        (place,) = computed
        dim = edit.argument(node, "dim") % node.meta["val"].ndim
        before, after = ([each for each in group if each is not None] for group in (constants[:place], constants[place + 1 :]))
        return Joined(node, dim, before, parts[place], after)

    def check(self, match: Joined) -> str | None:
        shape = match.node.meta["val"].shape
        if match.dim == 0:
            return "it joins along the first dimension"
        if any(isinstance(size, torch.SymInt) for size in shape[1:]):
            return "its size is known at run time only"
        same = all(constant.shape[0] == 1 or _repeats(constant) for constant in (*match.before, *match.after))
        return None if same else "what it joins on differs between samples"

    def rewrite(self, graph_module: fx.GraphModule, match: Joined) -> None:
        site = Site(graph_module, match.node, self.name)
        shape = [1, *match.node.meta["val"].shape[1:]]
        middle = [1, *match.source.meta["val"].shape[1:]]
        parts = [*match.before, torch.zeros(middle), *match.after]
        rows = [part[:1].expand(_resized(shape, match.dim, part.shape[match.dim])) for part in parts]
        amounts = [sum(part.shape[match.dim] for part in group) for group in (match.before, match.after)]
        pad = [*[0, 0] * (len(shape) - 1 - match.dim), *amounts]
        padded = site.call(_aten.constant_pad_nd.default, match.source, pad, 0.0)
        constant = site.constant(f"{match.node.name}_constant", torch.cat(rows, match.dim))
        site.replace(site.call(_aten.add.Tensor, padded, constant))


def _repeated_constant(node: fx.Node) -> torch.Tensor | None:
    """A constant, or one that is repeated for each sample."""
    return edit.constant_value(node.args[0] if edit.is_call(node, _aten.expand.default) else node)


def _repeats(constant: torch.Tensor) -> bool:
    return bool((constant == constant[:1]).all())


def _resized(shape: list[int], dim: int, size: int) -> list[int]:
    return [size if position == dim else each for position, each in enumerate(shape)]
