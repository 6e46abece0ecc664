"""``equalize-cross-layer``: the weights of two layers in a row get the same range in every channel between them.

    r1[c] = max|W1[c, :]|,   r2[c] = max|W2[:, c]|,   s[c] = sqrt(r1[c] / r2[c]):   W1 / s, b1 / s, W2 s

after which both have the range sqrt(r1 r2). Allowed where what stands between the layers commutes with a positive factor: nothing, relu,
leaky relu, pooling, data movement. Pairs overlap, so that all of them are gone over until no factor matters any more. No data are
needed. Source: Data-Free Quantization (arXiv 1906.04721), section 4.1, equation 11; for several layers after one, r2 is the largest of
theirs. ReLU6 does not commute (the paper replaces it by ReLU, which changes the function): such pairs are left alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.calibration.statistics import Observation, ObserverSpec
from qcompiler.errors import CalibrationError
from qcompiler.ir.layers import as_layer
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Affine, MigrationPass, Source, layer_sources
from qcompiler.pipeline.contract import Equivalent, PassContext, Promise

# A round whose largest factor is nearer to 1 than this ends the iteration.
_SETTLED = 1.0 + 1e-3
# A channel with a weight of next to nothing on one side stays as it is rather than be blown up.
_LARGEST_FACTOR = 1e4


@dataclass(frozen=True)
class EqualizeCrossLayer(MigrationPass):
    """Weights of layers in a row get equal ranges channel by channel (DFQ).

    Options:
        rounds: at most so many goes over all pairs.
    """

    name: ClassVar[str] = "equalize-cross-layer"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    rounds: int = 20

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise CalibrationError(f"{self.name}: rounds must be at least 1, got {self.rounds}")

    def sources(self, program: Program) -> list[Source]:
        return layer_sources(program)

    def declines(self, source: Source) -> str | None:
        return source.readers.why_pinned()

    def observer(self, source: Source) -> ObserverSpec | None:
        return None

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        layer = as_layer(source.node)
        assert layer is not None  # layer_sources found it
        before, after = layer.output_magnitudes(), source.readers.weight_magnitudes()
        factor = (before / after).sqrt().clamp(1.0 / _LARGEST_FACTOR, _LARGEST_FACTOR)
        scale = source.readers.free(torch.where((before > 0.0) & (after > 0.0), factor, 1.0), 1.0)
        farthest = float(torch.maximum(scale, 1.0 / scale).max())
        if farthest < _SETTLED:
            return None
        return Affine(scale, torch.zeros_like(scale), f"factors {float(scale.min()):.2g} to {float(scale.max()):.2g}")

    def rewrite(self, sources: Sequence[Source], work: Program, context: PassContext) -> tuple[str, ...]:
        notes: dict[str, None] = {}
        for _ in range(self.rounds):
            changed = super().rewrite(sources, work, context)
            if not changed:
                break
            notes |= dict.fromkeys(changed) if not notes else {}  # the first round tells how far apart the ranges were
        return tuple(notes)
