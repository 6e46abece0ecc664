"""Which nodes one row kernel computes: residual add, normalization, affine part, narrower copy. Decided by the graph's structure alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.ir import edit
from qcompiler.ir.edit import argument

qc = torch.ops.qc
_NARROW = (torch.int8, torch.uint8, torch.int16)
_BYTES = (torch.int8, torch.uint8)
_SCALING = ("pre_shift", "multiplier")
_FORM = "newton"
_WHOLE_VECTORS = 16  # elements: rows of constants must not be read past their end

Tensors = Mapping[fx.Node, torch.Tensor]


@dataclass(frozen=True)
class RowFusion:
    """``root`` normalizes; ``addition`` makes its input, ``affine`` (add of a constant, or requantize) and ``narrowing`` follow it.

    The kernel runs where the first of the nodes stands: everything that it reads besides that node's operands is constant.
    """

    root: fx.Node
    addition: fx.Node | None = None
    affine: fx.Node | None = None
    narrowing: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return tuple(node for node in (self.addition, self.root, self.affine, self.narrowing) if node is not None)

    @property
    def first(self) -> fx.Node:
        return self.nodes[0]

    def constants(self) -> dict[str, fx.Node]:
        """The constants by the roles that ``packing_rows`` documents."""
        roles: dict[str, fx.Node] = {}
        if self.addition is not None:
            roles |= {f"sum_{name}_{side}": argument(self.addition, f"{name}_{side}") for side in "ab" for name in _SCALING}
        if self.affine is not None:
            roles |= affine_constants(self.affine, self.root)
        if self.narrowing is not None and self.affine is not None:
            roles |= {f"narrow_{role}": node for role, node in affine_constants(self.narrowing, self.affine).items()}
        return roles


def computed_side(addition: fx.Node, operand: fx.Node) -> str:
    """Which operand of a ``qc::add`` of a constant the computed one is."""
    return "a" if argument(addition, "a") is operand else "b"


def other_side(side: str) -> str:
    """The other one of ``a`` and ``b``."""
    return "b" if side == "a" else "a"


def affine_constants(node: fx.Node, operand: fx.Node) -> dict[str, fx.Node]:
    """Of a ``qc::add`` of a constant to ``operand``, or of its ``qc::requantize``."""
    if node.target is not qc.add.default:
        return {name: argument(node, name) for name in (*_SCALING, "shift")}
    side = computed_side(node, operand)
    other = other_side(side)
    roles = {name: argument(node, f"{name}_{side}") for name in _SCALING}
    return roles | {f"constant_{name}": argument(node, f"{name}_{other}") for name in _SCALING} | {"constant": argument(node, other)}


def find_row_fusions(graph: fx.Graph, tensors: Tensors, kept: Collection[fx.Node], taken: Collection[fx.Node]) -> dict[fx.Node, RowFusion]:
    """Every normalization that has a row kernel, with what can be fused to it, by the first node of each fusion.

    Nodes in ``taken`` belong to other fusions; a value in ``kept`` must exist in memory, which ``qc::normalize`` alone cannot give
    once something follows it.
    """
    fusions = (_fuse(root, tensors, kept, taken) for root in edit.calls(graph, qc.normalize.default) if has_row_kernel(root))
    return {fusion.first: fusion for fusion in fusions}


def has_row_kernel(root: fx.Node) -> bool:
    """Whether the fused kernel computes this form of normalization."""
    return bool(argument(root, "form") == _FORM)


def _fuse(root: fx.Node, tensors: Tensors, kept: Collection[fx.Node], taken: Collection[fx.Node]) -> RowFusion:
    x = argument(root, "x")
    addition = x if x not in taken and _is_addition(x, tensors) else None
    users = edit.users_of(root)
    affine = users[0] if len(users) == 1 and root not in kept and users[0] not in taken else None
    if affine is None or not (_is_affine_of_normalized(affine, root, tensors) or _is_affine_requantize(affine, root, tensors)):
        return RowFusion(root, addition)
    narrowing = next((user for user in edit.users_of(affine) if user not in taken and _is_narrowing(user, affine, tensors)), None)
    return RowFusion(root, addition, affine, narrowing)


def _is_addition(node: fx.Node, tensors: Tensors) -> bool:
    """Both operands are 8- or 16-bit values that vary along the row, scaled per tensor."""
    if not edit.is_call(node, qc.add.default) or tensors[node].dtype not in _NARROW:
        return False
    operands = [argument(node, side) for side in "ab"]
    if any(tensors[argument(node, f"{name}_{side}")].numel() != 1 for side in "ab" for name in _SCALING):
        return False
    return all(_is_row_operand(operand, tensors[node].shape[-1], tensors) for operand in operands)


def _is_row_operand(node: fx.Node, length: int, tensors: Tensors) -> bool:
    tensor = tensors[node]
    if tensor.dtype not in _NARROW or tensor.dim() == 0 or tensor.shape[-1] != length:
        return False
    return node.op != "get_attr" or length % _WHOLE_VECTORS == 0


def _is_affine_add(node: fx.Node, root: fx.Node, tensors: Tensors) -> bool:
    if not edit.is_call(node, qc.add.default):
        return False
    constant = argument(node, other_side(computed_side(node, root)))
    parameters = [argument(node, f"{name}_{each}") for each in "ab" for name in _SCALING]
    return (
        constant.op == "get_attr"
        and tensors[node].shape == tensors[root].shape
        and all(_is_per_channel(each, root, tensors) for each in (constant, *parameters))
    )


def _is_affine_of_normalized(node: fx.Node, root: fx.Node, tensors: Tensors) -> bool:
    return _is_affine_add(node, root, tensors) and argument(node, f"zero_point_{computed_side(node, root)}") == 0


def _is_affine_requantize(node: fx.Node, root: fx.Node, tensors: Tensors) -> bool:
    if not edit.is_call(node, qc.requantize.default) or argument(node, "form") != "high" or argument(node, "input_zero_point") != 0:
        return False
    return all(_is_per_channel(argument(node, name), root, tensors) for name in (*_SCALING, "shift"))


def _is_narrowing(node: fx.Node, affine: fx.Node, tensors: Tensors) -> bool:
    """16 bits to 8, alike or with an offset in each channel; ``exact64`` is left to a kernel of its own."""
    if node.op != "call_function" or tensors[affine].dtype != torch.int16 or tensors[node].dtype not in _BYTES:
        return False
    if _is_affine_add(node, affine, tensors):
        return True
    if not edit.is_call(node, qc.requantize.default) or argument(node, "x") is not affine or argument(node, "form") == "exact64":
        return False
    return all(_is_per_channel(argument(node, name), affine, tensors) for name in (*_SCALING, "shift"))


def _is_per_channel(parameter: fx.Node, root: fx.Node, tensors: Tensors) -> bool:
    """Whether a constant varies over nothing but the last dimension."""
    tensor = tensors[parameter]
    return tensor.numel() == 1 or (tensor.numel() == tensor.shape[-1] == tensors[root].shape[-1])
