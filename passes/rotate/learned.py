"""A rotation that is learned: steps along the orthogonal matrices that lower the error of rounding values and weights.

With values x (rows) that layers with weights W read, quantizers q_a (one range for all values) and q_w (one scale for each output channel):

    L(R) = E |q_a(x R^T) q_w(W R^T)^T - x W^T|^2 / E |x W^T|^2

Rounding passes gradients straight through; ranges are those of the values at hand. A step is the Cayley transform of the skew part of the
gradient G (Li et al., "Efficient Riemannian Optimization on the Stiefel Manifold via the Cayley Transform", ICLR 2020):

    A = G R^T - R G^T        R' = (I + t/2 A)^-1 (I - t/2 A) R

which is orthogonal whatever t is. The step t is scaled by |A| and falls to zero; the best R seen is kept, the start among them: never
worse than it on these samples. At most 1,024 rows of values and as many of weights take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 1024  # of values and of weights: a step multiplies the one by the other
_FIRST_STEP = 0.3  # of the Frobenius norm of A, which becomes that many radians


@dataclass(frozen=True)
class Objective:
    """``samples``: [rows, channels] of values; ``weights``: [outputs, channels] of each layer that reads them."""

    samples: Tensor
    weights: Sequence[Tensor] = ()


def learn(start: Tensor, objective: Objective, w: int, a: int, steps: int) -> Tensor:
    """The best orthogonal matrix on the way from ``start``, float64."""
    samples, weight = _thinned(objective.samples.float()), _thinned(torch.cat([*objective.weights]).float())
    target = samples @ weight.T
    scale = target.square().mean().clamp(min=1e-30)
    rotation = best = start.double()
    least = float("inf")
    for step in range(steps):
        current = rotation.float().requires_grad_()
        loss = (_rounded_rows(samples @ current.T, a) @ _rounded_weights(weight @ current.T, w).T - target).square().mean() / scale
        error = float(loss.detach())
        if error < least:
            least, best = error, rotation
        (gradient,) = torch.autograd.grad(loss, current)
        rotation = cayley(rotation, gradient.double(), _FIRST_STEP * (1.0 - step / steps))
    return nearest_orthogonal(best)


def _thinned(rows: Tensor) -> Tensor:
    """At most ``_ROWS`` of them, evenly."""
    return rows[:: -(-rows.shape[0] // _ROWS)]


def cayley(rotation: Tensor, gradient: Tensor, step: float) -> Tensor:
    """One step against the gradient, orthogonal to rounding."""
    skew = gradient @ rotation.T - rotation @ gradient.T
    half = skew * (step / 2 / skew.norm().clamp(min=1e-30))
    eye = torch.eye(rotation.shape[0], dtype=rotation.dtype)
    stepped: Tensor = torch.linalg.solve(eye + half, (eye - half) @ rotation)
    return stepped


def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """U V^T of the singular value decomposition: rounding of many steps removed."""
    left, _, right = torch.linalg.svd(matrix)
    orthogonal: Tensor = left @ right
    return orthogonal


def _rounded_rows(x: Tensor, bits: int) -> Tensor:
    """One affine range for all values."""
    low, high = x.detach().min().clamp(max=0.0), x.detach().max().clamp(min=0.0)
    step = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return _straight_through(x, (torch.round(x / step).clamp(torch.round(low / step), torch.round(high / step)) * step))


def _rounded_weights(weight: Tensor, bits: int) -> Tensor:
    """One symmetric scale for each output channel."""
    step = (weight.detach().abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)).clamp(min=1e-12)
    return _straight_through(weight, torch.round(weight / step) * step)


def _straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()
