"""Which nodes one kernel computes around products of two activations: a rounding behind one, or whole attention.

Attention is found from its softmax, by the graph's structure alone::

    matmul(q, k) -> requantize, or add of a bias -> softmax (form table, any mask) -> matmul(p, v) -> requantize

Each value between has the next node as its only reader. What does not fit stays single kernels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler.arithmetic import DYADIC_PARAMETERS
from qcompiler.backends.tvm.templates.product_layout import LONGEST_ROW
from qcompiler.ir import edit
from qcompiler.ir.edit import argument, is_call

qc = torch.ops.qc
_BYTES = (torch.int8, torch.uint8)

Tensors = Mapping[fx.Node, torch.Tensor]


@dataclass(frozen=True)
class ProductFusion:
    """A product and the requantization that alone reads it."""

    product: fx.Node
    rounding: fx.Node | None = None

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (self.product,) if self.rounding is None else (self.product, self.rounding)

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass(frozen=True)
class AttentionFusion:
    """The product of the scores and its rounding (a requantization or an addition), the softmax, the product of the result with its own."""

    scores: fx.Node
    rounding: fx.Node
    softmax: fx.Node
    result: ProductFusion

    @property
    def nodes(self) -> tuple[fx.Node, ...]:
        return (self.scores, self.rounding, self.softmax, *self.result.nodes)

    @property
    def last(self) -> fx.Node:
        return self.result.last

    @property
    def adds(self) -> bool:
        """Whether a bias is added to the scores."""
        return is_call(self.rounding, qc.add.default)

    @property
    def scores_side(self) -> str:
        """Which operand of the addition the scores are."""
        return "a" if argument(self.rounding, "a") is self.scores else "b"

    @property
    def bias_side(self) -> str:
        return "b" if self.scores_side == "a" else "a"


def find_product_fusions(graph: fx.Graph, tensors: Tensors, kept: Collection[fx.Node]) -> dict[fx.Node, ProductFusion | AttentionFusion]:
    """Every product of two activations with what is fused to it, by the last node of each fusion.

    A value in ``kept`` must exist in memory, so nothing is fused behind it.
    """
    attentions = [found for node in edit.calls(graph, qc.softmax.default) if (found := _attention(node, tensors, kept)) is not None]
    fused = {node for attention in attentions for node in attention.nodes}
    products = [product(node, tensors, kept) for node in edit.calls(graph, qc.matmul.default) if node not in fused]
    fusions: list[ProductFusion | AttentionFusion] = [*attentions, *products]
    return {fusion.last: fusion for fusion in fusions}


def product(node: fx.Node, tensors: Tensors, kept: Collection[fx.Node]) -> ProductFusion:
    """A product with its rounding, if one of 8 bits and per tensor alone reads it and the kernel takes the operands."""
    reader = _only_user(node, kept)
    if reader is None or not has_matrix_kernel(node, tensors) or not _is_rounding(reader, tensors):
        return ProductFusion(node)
    return ProductFusion(node, reader)


def has_matrix_kernel(node: fx.Node, tensors: Tensors) -> bool:
    """Whether MatrixProductKernel takes the operands' types."""
    a, b = (tensors[argument(node, name)].dtype for name in "ab")
    return b in _BYTES and (a in _BYTES or (a == torch.int16 and argument(node, "zero_point_a") == 0))


def _attention(softmax: fx.Node, tensors: Tensors, kept: Collection[fx.Node]) -> AttentionFusion | None:
    if argument(softmax, "form") != "table" or argument(softmax, "rounding") != "nearest" or tensors[softmax].dtype not in _BYTES:
        return None
    rounding, reader = argument(softmax, "x"), _only_user(softmax, kept)
    if not is_call(rounding, qc.requantize.default, qc.add.default) or _only_user(rounding, kept) is not softmax:
        return None
    assert isinstance(rounding, fx.Node)  # a call
    scores = _scores(rounding)
    if scores is None or _only_user(scores, kept) is not rounding or not is_call(reader, qc.matmul.default):
        return None
    assert reader is not None  # a call
    result = product(reader, tensors, kept)
    if result.rounding is None or argument(reader, "a") is not softmax:
        return None
    fusion = AttentionFusion(scores, rounding, softmax, result)
    return fusion if _is_score_rounding(fusion, tensors) and _fits(fusion, tensors) else None


def _scores(rounding: fx.Node) -> fx.Node | None:
    """The product that is rounded."""
    names = ("x",) if rounding.target is qc.requantize.default else ("a", "b")
    operands: list[fx.Node] = [argument(rounding, name) for name in names]
    return next((node for node in operands if is_call(node, qc.matmul.default)), None)


def _is_score_rounding(fusion: AttentionFusion, tensors: Tensors) -> bool:
    """Of 8 bits and per tensor; a bias has at most 16 bits and as many keys as the scores."""
    node = fusion.rounding
    if not fusion.adds:
        return _is_rounding(node, tensors)
    bias = argument(node, fusion.bias_side)
    scaling = [argument(node, f"{name}_{side}") for name in ("pre_shift", "multiplier") for side in "ab"]
    return (
        bias is not fusion.scores
        and tensors[node].dtype in _BYTES
        and argument(node, f"zero_point_{fusion.scores_side}") == 0
        and tensors[bias].dtype in (*_BYTES, torch.int16)
        and tensors[bias].shape[-1] == tensors[node].shape[-1]
        and all(tensors[parameter].numel() == 1 for parameter in scaling)
    )


def _fits(fusion: AttentionFusion, tensors: Tensors) -> bool:
    """The softmax is no values of its own, its zero point is 0, and q, k and v have 8 bits."""
    scores, result = fusion.scores, fusion.result.product
    values = argument(result, "b")
    bytes_only = all(tensors[node].dtype in _BYTES for node in (argument(scores, "a"), argument(scores, "b"), values))
    same_heads = tensors[fusion.softmax].shape[:-2] == tensors[result].shape[:-2]
    short = tensors[fusion.softmax].shape[-1] <= LONGEST_ROW
    return values is not fusion.softmax and argument(result, "zero_point_a") == 0 and bytes_only and same_heads and short


def _only_user(node: fx.Node, kept: Collection[fx.Node]) -> fx.Node | None:
    users = edit.users_of(node)
    return users[0] if len(users) == 1 and node not in kept else None


def _is_rounding(node: fx.Node, tensors: Tensors) -> bool:
    """A requantization per tensor to 8 bits."""
    if not is_call(node, qc.requantize.default) or argument(node, "input_zero_point") != 0 or tensors[node].dtype not in _BYTES:
        return False
    return all(tensors[argument(node, name)].numel() == 1 for name in DYADIC_PARAMETERS)
