"""Which nodes one convolution kernel computes: the convolution or linear layer, its epilogue, a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.backends.tvm.kernels import Activation, Requantization, ResidualAdd
from qcompiler.ir import edit

qc = torch.ops.qc
CONVOLUTION, LINEAR = qc.convolution.default, qc.linear.default
_TABLE_ENTRIES = 256


@dataclass(frozen=True)
class Fusion:
    """``root`` makes the accumulator; ``epilogue`` (requantize or add) and ``table`` (lookup) follow it where they can be fused."""

    root: fx.Node
    epilogue: fx.Node | None = None
    table: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in (self.root, self.epilogue, self.table) if node is not None)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def accumulator_side(self) -> str:
        """Which operand of a fused ``qc::add`` the accumulator is."""
        return "a" if self.epilogue is not None and edit.argument(self.epilogue, "a") is self.root else "b"

    @property
    def residual_side(self) -> str:
        return "b" if self.accumulator_side == "a" else "a"

    @property
    def residual(self) -> fx.Node | None:
        """The feature map that a fused ``qc::add`` adds to the accumulator."""
        if self.epilogue is None or self.epilogue.target is not qc.add.default:
            return None
        return edit.argument(self.epilogue, self.residual_side)  # type: ignore[no-any-return]  # schema: a Tensor, so a node

    @property
    def weight_group(self) -> int:
        """Inputs whose weights share a factor; 0 where weights have none."""
        weight = edit.argument(self.root, "weight")
        return int(edit.argument(weight, "length")) if edit.is_call(weight, qc.scale_groups.default) else 0

    def constants(self) -> dict[str, fx.Node]:
        """The constants by the roles that ``kernels`` documents; of a weight with factors ``weight`` are the codes."""
        roles = {role: edit.argument(self.root, role) for role in ("weight", "bias")}
        if self.weight_group:
            roles |= {role: edit.argument(roles["weight"], name) for role, name in (("factors", "factors"), ("weight", "codes"))}
        if self.residual is not None:
            sides = {"a": self.accumulator_side, "b": self.residual_side}
            roles |= {f"{name}_{role}": self._epilogue_argument(f"{name}_{side}") for role, side in sides.items() for name in _SCALING}
        elif self.epilogue is not None:
            roles |= {name: self._epilogue_argument(name) for name in (*_SCALING, "shift")}
        if self.table is not None:
            roles["table"] = edit.argument(self.table, "table")
        return roles

    def kernel_epilogue(self, per_channel: bool, operand: Activation | None) -> Requantization | ResidualAdd | None:
        """The epilogue as the templates know it; ``operand`` is where the residual of an addition lies."""
        if self.epilogue is None:
            return None
        limits = {name: self._epilogue_argument(name) for name in ("zero_point", "low", "high")}
        if operand is None:
            return Requantization(form=self._epilogue_argument("form"), per_channel=per_channel, **limits)
        return ResidualAdd(
            operand=operand,
            per_channel=per_channel,
            operand_zero_point=self._epilogue_argument(f"zero_point_{self.residual_side}"),
            shift=self._epilogue_argument("shift"),
            **limits,
        )

    def _epilogue_argument(self, name: str) -> Any:
        return edit.argument(self.epilogue, name) if self.epilogue is not None else None


_SCALING = ("pre_shift", "multiplier")


def find_fusions(graph: fx.Graph, shapes: Mapping[fx.Node, torch.Tensor], kept: Collection[fx.Node]) -> dict[fx.Node, Fusion]:
    """Every convolution and linear layer with what can be fused to it, by the last node of each fusion.

    A value in ``kept`` must exist in memory, so nothing is fused behind it.
    """
    fusions = (_fuse(root, shapes, kept) for root in edit.calls(graph, CONVOLUTION, LINEAR))
    return {fusion.last: fusion for fusion in fusions}


def _fuse(root: fx.Node, shapes: Mapping[fx.Node, torch.Tensor], kept: Collection[fx.Node]) -> Fusion:
    epilogue = _only_user(root, kept)
    fusible = epilogue is not None and (_is_requantize_of(epilogue, root, shapes) or _is_add_of(epilogue, root, shapes))
    if epilogue is None or not fusible:
        return Fusion(root)
    table = _only_user(epilogue, kept)
    if table is None or not _is_table_of(table, epilogue, shapes):
        return Fusion(root, epilogue)
    return Fusion(root, epilogue, table)


def _only_user(node: fx.Node, kept: Collection[fx.Node]) -> fx.Node | None:
    users = edit.users_of(node)
    return users[0] if len(users) == 1 and node not in kept else None


def _is_requantize_of(node: fx.Node, root: fx.Node, shapes: Mapping[fx.Node, torch.Tensor]) -> bool:
    if not edit.is_call(node, qc.requantize.default) or edit.argument(node, "input_zero_point") != 0:
        return False
    return all(_is_per_channel_or_scalar(edit.argument(node, name), root, shapes) for name in (*_SCALING, "shift"))


def _is_add_of(node: fx.Node, root: fx.Node, shapes: Mapping[fx.Node, torch.Tensor]) -> bool:
    """The accumulator has zero point 0, the other operand is a computed 8- or 16-bit map of the same shape, scaled per tensor."""
    if not edit.is_call(node, qc.add.default):
        return False
    fusion = Fusion(root, node)
    other = fusion.residual
    if other is None or other is root or other.op == "get_attr" or shapes[other].shape != shapes[root].shape:
        return False
    return (
        shapes[other].dtype != torch.int32
        and edit.argument(node, f"zero_point_{fusion.accumulator_side}") == 0
        and all(_is_per_channel_or_scalar(edit.argument(node, f"{name}_{fusion.accumulator_side}"), root, shapes) for name in _SCALING)
        and all(shapes[edit.argument(node, f"{name}_{fusion.residual_side}")].numel() == 1 for name in _SCALING)
    )


def _is_table_of(node: fx.Node, producer: fx.Node, shapes: Mapping[fx.Node, torch.Tensor]) -> bool:
    if not edit.is_call(node, qc.lookup.default) or edit.argument(node, "x") is not producer:
        return False
    table = shapes[edit.argument(node, "table")]
    # The kernel has one type for indices and entries.
    return table.shape == (_TABLE_ENTRIES,) and shapes[node].element_size() == 1 and shapes[producer].dtype == shapes[node].dtype


def _is_per_channel_or_scalar(parameter: fx.Node, root: fx.Node, shapes: Mapping[fx.Node, torch.Tensor]) -> bool:
    """Whether a parameter of the epilogue varies over nothing but the output channels."""
    if shapes[parameter].numel() == 1:
        return True
    channel = shapes[root].dim() - 1 if root.target is LINEAR else 1
    shape = (1,) * (shapes[root].dim() - shapes[parameter].dim()) + tuple(shapes[parameter].shape)
    return all(extent == 1 or d == channel for d, extent in enumerate(shape))
