"""``relevance``: how much of the decision flows through an item, times how far rounding moves it.

    sensitivity = R ||Q(x) - x||^2 / ||x||^2         R = sum |relevance| at the item / sum |relevance| of the outputs, over samples

For an activation R is that of the value itself, for a weight that of its layer's output. Relevance starts as the logit of the label (the
likeliest class without labels) and is handed back so that every op shares out what it got among its inputs, in proportion to what each
put in. With c = R / z for every value z this is a backward pass by these rules:

1. linear ops (layers, sums, means, moves): c goes back as a gradient does (LRP-0; the bias keeps its share).
2. y = f(x), element by element, and softmax: c_x = c_y y / x: all relevance goes to x.
3. a product of two activations: half to each.
4. normalizations: mean and deviation count as constants of the sample.

Source: LRP-QViT (Ranjan and Savakis, arXiv 2401.11243) scores layers by relevance; Mix-QViT (arXiv 2501.06357) multiplies by the
sensitivity to rounding, for which the relative squared error stands here. Rules: Bach et al., PLoS ONE 10(7), 2015 (1); Chefer et al.,
arXiv 2012.09838 (3); Ali et al., arXiv 2202.07304 (4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from qcompiler.ir.elementwise import CLAMPS, is_function
from qcompiler.passes.allocate.metrics.base import LabelUse, SampleMetric, key
from qcompiler.passes.allocate.metrics.errors import activation_errors, relative_weight_error, share
from qcompiler.passes.allocate.metrics.gradients import Differentiable, derivatives
from qcompiler.passes.allocate.sites import Rules
from qcompiler.passes.allocate.study import Loss, OpenStudy, Piece
from qcompiler.pipeline.executor import Result
from qcompiler.sensitivity import Item

_aten, _qc = torch.ops.aten, torch.ops.qc


@dataclass(frozen=True)
class Relevance(SampleMetric):
    """See the module's docstring."""

    name: ClassVar[str] = "relevance"
    labels: ClassVar[LabelUse] = "optional"

    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        sites = opened.sites_with(rules=_rules(opened))
        candidates = opened.study.items.candidates
        layers = [item for item in candidates if item.kind == "weight"]
        run = Differentiable(opened, sites, tuple(sites.products[item.name] for item in layers)).run(piece)
        decision = _decision(run.output, piece, opened.study.loss)
        values = {item: value for item, value in run.items.items() if item.kind == "activation"} | dict(zip(layers, run.extra, strict=True))
        shares = derivatives(decision.sum(), values)
        result = activation_errors(opened, run.items)
        result["decision"] = float(decision.detach().double().abs().sum())
        for item, value in values.items():
            result[key(item, "relevance")] = float((shares[item] * value.detach()).double().abs().sum())
        return result

    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        relevance = share(totals[key(item, "relevance")], totals["decision"])
        if item.kind == "weight":
            return relevance * relative_weight_error(opened, item, bits)
        return relevance * share(totals[key(item, bits)], totals[key(item, "power")])


def _decision(output: Tensor, piece: Piece, loss: Loss) -> Tensor:
    """The logits whose relevance is looked at; all outputs where they are no classes."""
    if loss == "squared-error":
        return output
    classes = piece.labels.long() if piece.labels is not None else piece.outputs[0].argmax(-1)
    return output.gather(-1, classes.unsqueeze(-1))


def _rules(opened: OpenStudy) -> Rules:
    """The rules for the ops of the program; other ops keep their own gradient."""
    rules: dict[object, Callable[..., Tensor]] = {}
    for node in opened.program.graph.nodes:
        if node.op != "call_function" or node.target in _RULES:
            continue
        if is_function(node) and not _is_linear(node.target):
            rules[node.target] = _proportional(node.target)
    return {**rules, **_RULES}


def _is_linear(target: object) -> bool:
    return target in (_aten.mul.Tensor, _aten.div.Tensor, _aten.neg.default)


def _proportional(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rule 2: the function's values; backward y / x, and nothing where x is zero or masked out."""

    def rule(x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        with torch.no_grad():
            y = function(x, *arguments, **named)
            usable = (x != 0.0) & x.isfinite()
            ratio = torch.where(usable, y / x, 0.0)
        return _with_gradient(y, torch.where(usable, x, 0.0) * ratio)

    return rule


def _halved(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Rule 3; a product with a constant keeps all."""

    def rule(left: Tensor, right: Tensor | float) -> Tensor:
        if not (isinstance(right, Tensor) and left.requires_grad and right.requires_grad):
            return function(left, right)
        return (function(left, right.detach()) + function(left.detach(), right)) / 2.0

    return rule


def _layer_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5, _cudnn: bool = True
) -> Tensor:
    """Rule 4."""
    dims = tuple(range(-len(shape), 0))
    with torch.no_grad():
        factor = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
        mean = x.mean(dims, keepdim=True)
    normalized = (x - mean) * factor
    scaled = normalized if weight is None else normalized * weight
    return scaled if bias is None else scaled + bias


def _rms_norm(x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None) -> Tensor:
    """Rule 4, without a mean."""
    with torch.no_grad():
        mean_square = x.square().mean(tuple(range(-len(shape), 0)), keepdim=True)
        factor = (mean_square + (torch.finfo(x.dtype).eps if eps is None else eps)).rsqrt()
    return x * factor if weight is None else x * factor * weight


def _l2_normalize(x: Tensor, eps: float) -> Tensor:
    """Rule 4: the norm counts as a constant."""
    norm: Tensor = x.detach().norm(dim=-1, keepdim=True)
    return x / norm.clamp(min=eps)


def _with_gradient(values: Tensor, smooth: Tensor) -> Tensor:
    """``values`` forward, the gradient of ``smooth`` backward."""
    return values.detach() + (smooth - smooth.detach())


_RULES: dict[object, Callable[..., Tensor]] = {
    **{clamp: _proportional(clamp) for clamp in CLAMPS},
    _aten.softmax.int: _proportional(_aten.softmax.int),
    _aten.matmul.default: _halved(_aten.matmul.default),
    _aten.mul.Tensor: _halved(_aten.mul.Tensor),
    _aten.layer_norm.default: _layer_norm,
    _aten.rms_norm.default: _rms_norm,
    _qc.l2_normalize.default: _l2_normalize,
}
