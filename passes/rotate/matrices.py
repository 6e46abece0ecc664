"""Orthogonal matrices by kind, float64 [channels, channels]; x becomes R x (a row of values: x R^T).

hadamard      H / sqrt(b) in blocks of the largest known order b that divides the channels (all of them, where there is a matrix of that
              order). A single large channel is spread over b channels, each with its b-th share of the energy. QuaRot, arXiv 2404.00456.
randomized    H diag(signs) / sqrt(b), signs drawn by the seed: no direction of the data is favoured by chance of H's structure, as a
              constant over the channels is by its first row. QuIP#, arXiv 2402.04396; SpinQuant's start, arXiv 2405.16406.
block         blocks of ``block`` channels after a permutation: the channels, ordered by max|x|, are dealt out to the blocks in zigzag
              order (0, 1, ..., k, k, ..., 1, 0, ...), so that each block has its share of the outliers. DuQuant, arXiv 2406.01721, section
              3.2. Differs: the rotation in a block is a Hadamard matrix, not their greedy search; one round, not two.
pca           H U^T with the eigenvectors U of the covariance E[x x^T]: in U^T x the channels are uncorrelated, and H gives each of them the
              mean of all the variances, exactly. QUAD, arXiv 2503.19353, and ResQ, arXiv 2412.14363, use U to keep the first channels
              in more bits; a value here has one width, so that H spreads them instead.
learned       Cayley steps from ``randomized``, see ``learned``. SpinQuant, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from qcompiler.arithmetic.hadamard import block_of, hadamard_matrix
from qcompiler.errors import CalibrationError
from qcompiler.passes.rotate.learned import Objective, learn

Kind = Literal["hadamard", "randomized", "block", "pca", "learned"]

FROM_SAMPLES: frozenset[Kind] = frozenset({"block", "pca", "learned"})


@dataclass(frozen=True)
class MatrixOptions:
    """How the matrices of a pass are made. ``block``: channels of a block of kind ``block``; bits and steps: of kind ``learned``."""

    kind: Kind = "hadamard"
    seed: int = 0
    block: int = 64
    steps: int = 100
    w: int = 4
    a: int = 4

    def __post_init__(self) -> None:
        if self.block < 1 or self.steps < 1:
            raise CalibrationError(f"a rotation needs blocks and steps of at least 1, got block={self.block}, steps={self.steps}")
        for what, bits, least in (("w", self.w, 2), ("a", self.a, 1)):
            if not least <= bits <= 8:
                raise CalibrationError(f"a rotation is learned for {what} of {least}..8 bits, got {bits}")

    @property
    def needs_samples(self) -> bool:
        return self.kind in FROM_SAMPLES

    def matrix(self, channels: int, objective: Objective | None = None) -> torch.Tensor:
        """R; ``objective``: values that R will be applied to and the weights that read them, for the kinds in ``FROM_SAMPLES``."""
        if self.kind == "hadamard":
            return spread(channels)
        if self.kind == "randomized" or objective is None:
            return spread(channels) * signs(channels, self.seed)
        if self.kind == "block":
            return zigzag(objective.samples.abs().amax(0), self.block)
        if self.kind == "pca":
            return principal(objective.samples)
        return learn(spread(channels) * signs(channels, self.seed), objective, self.w, self.a, self.steps)

    def describe(self, channels: int) -> str:
        """For the notes: kind and size of the blocks."""
        size = _dealt_block(channels, self.block) if self.kind == "block" else block_of(channels)
        blocks = f", {channels // size} blocks of {size}" if size < channels and self.kind not in ("pca", "learned") else ""
        return f"{self.kind}{blocks}"


def spread(channels: int, block: int | None = None) -> torch.Tensor:
    """Normalized Hadamard matrices along the diagonal."""
    size = block_of(channels) if block is None else block
    matrix = hadamard_matrix(size).double() / size**0.5
    diagonal: torch.Tensor = torch.block_diag(*[matrix] * (channels // size))
    return diagonal


def signs(channels: int, seed: int) -> torch.Tensor:
    """+-1 for each channel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (channels,), generator=generator).double() * 2 - 1


def zigzag(magnitudes: torch.Tensor, block: int) -> torch.Tensor:
    """Deal the channels out by falling magnitude, then rotate each block."""
    channels = magnitudes.numel()
    size = _dealt_block(channels, block)
    blocks = channels // size
    order = torch.argsort(magnitudes, descending=True, stable=True).reshape(size, blocks)
    order[1::2] = order[1::2].flip(1)  # back again in every second round
    return spread(channels, size) @ torch.eye(channels, dtype=torch.float64)[order.T.flatten()]


def principal(samples: torch.Tensor) -> torch.Tensor:
    """H U^T, the eigenvectors ordered by their variance, each with its largest entry positive."""
    rows = samples.double()
    _, vectors = torch.linalg.eigh(rows.T @ rows / rows.shape[0])
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    rotation: torch.Tensor = spread(samples.shape[1]) @ (vectors * largest.sign()).T
    return rotation


def _dealt_block(channels: int, block: int) -> int:
    """The largest order up to ``block`` that divides the channels."""
    return next(size for size in range(min(block, channels), 0, -1) if channels % size == 0 and block_of(size) == size)
