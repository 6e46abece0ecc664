"""The float program as a function of all its weights and activations that can be differentiated with respect to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from qcompiler.passes.allocate.sites import Sites
from qcompiler.passes.allocate.study import OpenStudy, Piece
from qcompiler.sensitivity import Item


@dataclass(frozen=True, eq=False)
class Values:
    """One run: the first output, and the tensor of every item as the network read it; ``extra``: what else was asked for."""

    output: Tensor
    items: Mapping[Item, Tensor]
    extra: tuple[Tensor, ...]

    def gradients(self, of: Tensor, *, retain_graph: bool | None = None) -> dict[Item, Tensor]:
        """The derivatives of a number; zeros for an item that it does not depend on."""
        return derivatives(of, self.items, retain_graph=retain_graph)


class Differentiable:
    """Runs the program on pieces of samples, so that gradients reach the candidates of a study."""

    def __init__(self, opened: OpenStudy, sites: Sites | None = None, extra: tuple[fx.Node, ...] = ()) -> None:
        self._opened, self._sites = opened, sites or opened.sites
        candidates = opened.study.items.candidates
        self._weights = {item: self._sites.tensor(item).clone().requires_grad_() for item in candidates if item.kind == "weight"}
        self._activations = [item for item in candidates if item.kind == "activation"]
        nodes = [self._sites.site[item] for item in self._activations]
        self._whole = self._sites.whole([self._sites.outputs[0], *nodes, *extra])

    def run(self, piece: Piece) -> Values:
        with torch.enable_grad():
            weights = {self._sites.site[item]: weight for item, weight in self._weights.items()}
            output, *rest = self._whole.run(self._opened.inputs(self._sites, piece), weights)
        count = len(self._activations)
        activations = dict(zip(self._activations, rest[:count], strict=True))
        return Values(output, {**self._weights, **activations}, tuple(rest[count:]))


def derivatives(
    of: Tensor, items: Mapping[Item, Tensor], *, create_graph: bool = False, retain_graph: bool | None = None
) -> dict[Item, Tensor]:
    """The gradient of a number with respect to each tensor; zeros where there is none."""
    reached = {item: value for item, value in items.items() if value.requires_grad}
    zeros = {item: torch.zeros_like(value) for item, value in items.items()}
    if not reached or not of.requires_grad:
        return zeros
    found = torch.autograd.grad(of, list(reached.values()), create_graph=create_graph, retain_graph=retain_graph, allow_unused=True)
    return zeros | {item: gradient for item, gradient in zip(reached, found, strict=True) if gradient is not None}
