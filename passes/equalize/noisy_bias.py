"""``noisy-bias``: a fixed noise is added to activations before they are rounded and taken away exactly in the next layers' biases.

    W x + b = W (x + N) + (b - W N),   N[c] drawn once from the uniform distribution over [-n, n]

Where a long-tailed distribution leaves most values in one or two steps of the quantizer, their rounding error is large and the same for
all; with N it is that of a uniform distribution. Source: NoisyQuant (arXiv 2211.16056), section 3.

How it lives in a graph of integers: N is part of the bias of the op that makes x, before its one rounding, and -W N part of the next
biases. No op is added and nothing is float. That is possible behind a layer norm, and behind a layer whose result goes to the next one
without an activation. Elsewhere x comes out of a table or of another rounding, where adding N afterwards would only add one more
rounding: such layers are left alone. The authors search n for each layer on calibration data (theirs: up to 2 steps); here it is an option.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import ClassVar

import torch

from qcompiler.calibration.statistics import Observation
from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.equalize.migration import Affine, MigrationPass, Source, sources_in_order
from qcompiler.pipeline.contract import Equivalent, Promise


@dataclass(frozen=True)
class NoisyBias(MigrationPass):
    """A fixed noise before rounding, taken away exactly in the next biases (NoisyQuant).

    Options:
        bits: of the activations to come, 2..8.
        amplitude: n in steps of their quantizer.
        seed: of the noise; the same seed always gives the same program.
    """

    name: ClassVar[str] = "noisy-bias"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Equivalent(1e-4)

    bits: int = 8
    amplitude: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise CalibrationError(f"{self.name}: bits must be 2..8, got {self.bits}")
        if self.amplitude <= 0.0:
            raise CalibrationError(f"{self.name}: amplitude must be positive, got {self.amplitude}")

    def sources(self, program: Program) -> list[Source]:
        return sources_in_order(program)

    def declines(self, source: Source) -> str | None:
        return source.readers.why_unshiftable() if source.takes_shifts else "an RMS norm has no bias to hold the noise"

    def affine(self, source: Source, seen: Observation) -> Affine | None:
        step = (max(seen.high) - min(seen.low)) / ((1 << self.bits) - 1)
        generator = torch.Generator().manual_seed(self.seed ^ zlib.crc32(source.node.name.encode()))
        noise = (torch.rand(source.channels, generator=generator, dtype=torch.float64) * 2.0 - 1.0) * (self.amplitude * step)
        shift = source.readers.free_shift(-noise)
        if not bool(shift.any()):
            return None
        return Affine(
            torch.ones_like(shift), shift, f"noise of up to {float(shift.abs().max()):.2g}, {self.amplitude} steps of {self.bits} bits"
        )
