"""The loss whose increase is estimated or measured: of the program's first output, summed over samples and positions.

- ``cross-entropy`` over the last dimension, [..., classes]: against labels [...], or against the float program's own softmax.
- ``squared-error``: half the squared distance to labels of the output's shape, or to the float program's own output.

Against its own output a network is at a minimum: the loss increase is never negative, its gradient is zero and its Hessian is the
Gauss-Newton matrix, which needs no labels. Where a gradient is needed a label stands in: the likeliest class, or one drawn from the model.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from qcompiler.errors import CalibrationError
from qcompiler.passes.allocate.study import Loss, Piece


def positions(piece: Piece, loss: Loss) -> int:
    """How many classifications, or samples, the loss is a sum over."""
    logits = piece.outputs[0]
    return logits.numel() // logits.shape[-1] if loss == "cross-entropy" else logits.shape[0]


def total_loss(output: Tensor, piece: Piece, loss: Loss) -> Tensor:
    """Sum of the losses of a piece, for the network's first output."""
    if loss == "squared-error":
        return (output - _target(piece)).square().sum() / 2.0
    if piece.labels is None:
        own = piece.outputs[0].softmax(-1)
        return -(own * output.log_softmax(-1)).sum()
    return _classification(output, piece.labels)


def surrogate_loss(output: Tensor, piece: Piece, loss: Loss, generator: torch.Generator | None) -> Tensor:
    """As ``total_loss`` with labels; without them against the likeliest class, or with a generator against one drawn from the model.

    Raises:
        CalibrationError: squared error without labels has no gradient to look at, unless it is drawn.
    """
    if piece.labels is not None:
        return total_loss(output, piece, loss)
    own = piece.outputs[0]
    if loss == "squared-error":
        if generator is None:
            raise CalibrationError("the squared error to the float program's own output has no first-order term: give labels")
        drawn = own + torch.randn(own.shape, generator=generator)
        return (output - drawn).square().sum() / 2.0
    return _classification(output, _drawn_class(own, generator) if generator is not None else own.argmax(-1))


def _drawn_class(logits: Tensor, generator: torch.Generator) -> Tensor:
    probabilities = logits.flatten(0, -2).softmax(-1)
    return torch.multinomial(probabilities, 1, generator=generator).reshape(logits.shape[:-1])


def _classification(output: Tensor, labels: Tensor) -> Tensor:
    if labels.shape != output.shape[:-1] or labels.is_floating_point():
        raise CalibrationError(
            f"labels of shape {list(labels.shape)} ({labels.dtype}) for outputs of shape {list(output.shape)}: "
            "give a class number for each, or use loss='squared-error'"
        )
    classes = output.shape[-1]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise CalibrationError(f"labels from {int(labels.min())} to {int(labels.max())} for {classes} classes: number classes from 0")
    return functional.cross_entropy(output.flatten(0, -2), labels.flatten().long(), reduction="sum")


def _target(piece: Piece) -> Tensor:
    own = piece.outputs[0]
    if piece.labels is None:
        return own
    if piece.labels.shape != own.shape:
        raise CalibrationError(f"labels of shape {list(piece.labels.shape)} for outputs of shape {list(own.shape)}: give targets")
    return piece.labels.to(own.dtype)
