"""Which nodes one kernel of a Hadamard transform computes: the transform, the requantization behind it, the linear layer before it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.backends.tvm.fuse import LINEAR, Fusion
from qcompiler.ir import edit
from qcompiler.ir.edit import argument

qc = torch.ops.qc
_FORMS = ("high", "narrow")  # that ``templates.rescaling`` has

Tensors = Mapping[fx.Node, torch.Tensor]


@dataclass(frozen=True)
class HadamardFusion:
    """``rounding``: a requantization with one factor that alone reads the transform. ``layer``: a linear layer, with what is fused to it,
    that only the transform reads; the planner decides whether it is computed in the same kernel."""

    root: fx.Node
    rounding: fx.Node | None = None
    layer: Fusion | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        before = self.layer.nodes if self.layer is not None else ()
        return (*before, self.root) if self.rounding is None else (*before, self.root, self.rounding)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def alone(self) -> HadamardFusion:
        """Without the layer."""
        return replace(self, layer=None)


def find_hadamard_fusions(
    graph: fx.Graph, tensors: Tensors, kept: Collection[fx.Node], layers: Mapping[fx.Node, Fusion]
) -> dict[fx.Node, HadamardFusion]:
    """Every Hadamard transform with what is fused to it, by the last node of each fusion. A value in ``kept`` must exist in memory.

    ``layers``: what ``find_fusions`` gave.
    """
    roots = edit.calls(graph, qc.hadamard.default)
    fusions = (HadamardFusion(root, _rounding(root, tensors, kept), _layer(root, kept, layers)) for root in roots)
    return {fusion.last: fusion for fusion in fusions}


def _rounding(root: fx.Node, tensors: Tensors, kept: Collection[fx.Node]) -> fx.Node | None:
    users = edit.users_of(root)
    if len(users) != 1 or root in kept or not edit.is_call(users[0], qc.requantize.default):
        return None
    per_tensor = all(tensors[argument(users[0], name)].numel() == 1 for name in DYADIC_PARAMETERS)
    return users[0] if per_tensor and argument(users[0], "form") in _FORMS else None


def _layer(root: fx.Node, kept: Collection[fx.Node], layers: Mapping[fx.Node, Fusion]) -> Fusion | None:
    fusion = layers.get(argument(root, "x"))
    if fusion is None or fusion.root.target is not LINEAR or fusion.last in kept or edit.users_of(fusion.last) != (root,):
        return None
    return fusion
