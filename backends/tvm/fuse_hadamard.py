"""Which nodes one kernel of a Hadamard transform computes: the transform and the requantization behind it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir import edit
from qcompiler.ir.edit import argument

qc = torch.ops.qc
_FORMS = ("high", "narrow")
_PARAMETERS = ("pre_shift", "multiplier", "shift")

Tensors = Mapping[fx.Node, torch.Tensor]


@dataclass(frozen=True)
class HadamardFusion:
    """``rounding``: a requantization with one factor that alone reads the transform."""

    root: fx.Node
    rounding: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (self.root,) if self.rounding is None else (self.root, self.rounding)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


def find_hadamard_fusions(graph: fx.Graph, tensors: Tensors, kept: Collection[fx.Node]) -> dict[fx.Node, HadamardFusion]:
    """Every Hadamard transform with what is fused to it, by the last node of each fusion. A value in ``kept`` must exist in memory."""
    fusions = (_fuse(root, tensors, kept) for root in edit.calls(graph, qc.hadamard.default))
    return {fusion.last: fusion for fusion in fusions}


def _fuse(root: fx.Node, tensors: Tensors, kept: Collection[fx.Node]) -> HadamardFusion:
    users = edit.users_of(root)
    if len(users) != 1 or root in kept or not edit.is_call(users[0], qc.requantize.default):
        return HadamardFusion(root)
    per_tensor = all(tensors[argument(users[0], name)].numel() == 1 for name in _PARAMETERS)
    return HadamardFusion(root, users[0] if per_tensor and argument(users[0], "form") in _FORMS else None)
