r"""GPTQ (Frantar et al., "Accurate Post-Training Quantization for Generative Pre-trained Transformers", arXiv 2210.17323, Algorithm 1).

For one row w of a layer's weight, with inputs X and H = 2 X X^T, rounding the weights one by one and moving each rounding error into those
that are left::

    error_i = (w_i - q_i) / U_ii          q_i = round(w_i),  U^T U = (H + damping mean(diag H) I)^-1,  U upper triangular
    w_j    -= error_i U_ij                for j > i

which minimizes |w X - q X|^2 greedily. Columns are taken in blocks: within a block each error is applied at once, to those after it once a
block (the paper's lazy batch updates; the same numbers up to rounding). With ``act_order`` columns go by falling diag H.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from qcompiler.errors import CalibrationError
from qcompiler.ir import edit
from qcompiler.ir.edit import argument
from qcompiler.passes.reconstruct.blocks import Block
from qcompiler.passes.reconstruct.fitting import Fitting, Outcome, judge
from qcompiler.passes.reconstruct.grid import Grid
from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer
from qcompiler.passes.reconstruct.reconstruction import Reconstruction
from qcompiler.passes.reconstruct.sweep import BlockWork

_aten = torch.ops.aten


@dataclass(frozen=True)
class Gptq(Reconstruction):
    """GPTQ: rounds weights column by column, and lets those that are left make up for each error (arXiv 2210.17323).

    Options:
        damping: share of the mean of diag H that is added to it.
        act_order: take columns by falling diag H, so that the largest inputs are rounded while most weights are left.
        columns: how many columns a block of lazy updates has; changes no result but for the rounding of floats.
        samples, seed, checkpoint: as in every reconstruction; nothing is drawn at random.

    Inputs are those of the quantized layers before; each layer is solved once those are. Scales stay. Transposed convolutions are left
    alone: the columns of their weights share no input.
    """

    name: ClassVar[str] = "gptq"

    damping: float = 0.01
    act_order: bool = True
    columns: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.damping <= 0.0 or self.columns < 1:
            raise CalibrationError(f"gptq: damping must be above 0 and columns at least 1, got {self.damping} and {self.columns}")

    def ticks(self, block: Block) -> int:
        return len(block.layers)

    def reconstruct(self, work: BlockWork) -> Fitting:
        changes: list[LayerChange] = []
        notes: list[str] = []
        for layer in work.block.layers:
            if edit.is_call(layer.node, _aten.conv_transpose2d.input):
                notes.append(f"{layer.name} left alone: the columns of a transposed convolution share no input")
            else:
                outcome = self._solve(layer, work.layer_inputs(layer))
                work.take(outcome.changes)
                changes += outcome.changes
                notes += outcome.notes
            yield
        return Outcome(tuple(changes), tuple(notes))

    def _solve(self, layer: QuantizedLayer, inputs: Iterable[Tensor]) -> Outcome:
        weight, scale = as_matrices(layer, layer.original), as_matrices(layer, layer.scale.expand_as(layer.original))
        hessian = hessian_of(layer, inputs)
        integers = gptq(weight, hessian, scale, layer.grid, self.damping, self.act_order, self.columns)
        present = as_matrices(layer, layer.integers)
        power = quadratic(weight, hessian)
        errors = [quadratic(candidate * scale - weight, hessian) / max(power, 1e-300) for candidate in (present, integers)]
        change = LayerChange(layer.name, integers.reshape(layer.integers.shape).to(layer.integers.dtype))
        return judge(layer.name, errors[0], errors[1], (change,))


def gptq(
    weight: Tensor,
    hessian: Tensor,
    scale: Tensor,
    grid: Grid,
    damping: float = 0.01,
    act_order: bool = True,
    columns: int = 128,
) -> Tensor:
    """The integers of Algorithm 1, float64 [G, N, K].

    weight: [G, N, K]: N rows in each of G groups that have inputs of their own (1 but for grouped convolutions).
    hessian: [G, K, K], any multiple of X X^T. An input that is always zero leaves its column rounded to nearest.
    scale: [G, N, K], so that it may differ along a row (groups of columns) as well as between rows.
    grid: the integers that there are.
    """
    weight, scale, hessian = weight.double().clone(), scale.double(), hessian.double().clone()
    groups, _, width = weight.shape
    order = _order(hessian, act_order)
    weight, scale = (torch.gather(x, 2, order[:, None].expand_as(x)) for x in (weight, scale))
    rows = torch.gather(hessian, 1, order[:, :, None].expand_as(hessian))
    factor = _inverse_factor(torch.gather(rows, 2, order[:, None].expand_as(rows)), damping)
    integers = torch.empty_like(weight)
    for start in range(0, width, columns):
        stop = min(start + columns, width)
        errors = torch.empty(groups, weight.shape[1], stop - start, dtype=torch.float64)
        for i in range(start, stop):
            integers[:, :, i] = grid.nearest(weight[:, :, i] / scale[:, :, i])
            error = (weight[:, :, i] - integers[:, :, i] * scale[:, :, i]) / factor[:, i, i, None]
            weight[:, :, i + 1 : stop] -= error[:, :, None] * factor[:, None, i, i + 1 : stop]
            errors[:, :, i - start] = error
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return torch.empty_like(integers).scatter_(2, order[:, None].expand_as(integers), integers)


def quadratic(difference: Tensor, hessian: Tensor) -> float:
    """``sum_n d_n H d_n^T`` over all rows: the squared error of the outputs that a difference of weights makes."""
    difference = difference.double()
    return float(((difference @ hessian.double()) * difference).sum())


def hessian_of(layer: QuantizedLayer, inputs: Iterable[Tensor]) -> Tensor:
    """2 X X^T over all samples and positions, float64 [G, K, K]: products of a batch in float32, their sum in float64."""
    total: Tensor | None = None
    for batch in inputs:
        columns = columns_of(layer, batch)
        product = (2.0 * columns @ columns.transpose(1, 2)).double()
        total = product if total is None else total + product
    if total is None:
        raise CalibrationError("the calibration data are empty")
    return total


def columns_of(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """The inputs that meet the columns of the weight, [G, K, positions]: a convolution's are the patches under its kernel."""
    if edit.is_call(layer.node, _aten.linear.default):
        return x.reshape(1, -1, x.shape[-1]).transpose(1, 2)
    stride, padding, dilation, groups = (argument(layer.node, name) for name in ("stride", "padding", "dilation", "groups"))
    kernel = layer.integers.shape[2:]
    patches = nn.functional.unfold(x, tuple(kernel), tuple(dilation), tuple(padding), tuple(stride))  # [B, G * K, L]
    grouped = patches.reshape(patches.shape[0], groups, -1, patches.shape[-1])
    return grouped.permute(1, 2, 0, 3).reshape(groups, grouped.shape[2], -1)


def as_matrices(layer: QuantizedLayer, weight: Tensor) -> Tensor:
    """[G * N, K...] as [G, N, K]."""
    groups = 1 if edit.is_call(layer.node, _aten.linear.default) else argument(layer.node, "groups")
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def _order(hessian: Tensor, act_order: bool) -> Tensor:
    """[G, K]: the columns in the order in which they are rounded."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    if act_order:
        return torch.argsort(diagonal, dim=1, descending=True, stable=True)
    return torch.arange(hessian.shape[1]).expand(hessian.shape[0], -1)


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """U of the module's docstring. Inputs that are always zero get a diagonal of their own, so that they neither move nor are moved."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    added = damping * diagonal.mean(dim=1, keepdim=True)
    added = torch.where(added > 0, added, 1.0)  # nothing but zeros came in
    damped = hessian + torch.diag_embed(added.expand_as(diagonal))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor
