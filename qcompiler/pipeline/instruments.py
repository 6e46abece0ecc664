"""Instruments: small objects that look on while the manager runs passes. They never change a program."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from qcompiler.calibration.data import Samples
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.pipeline.contract import Pass
from qcompiler.pipeline.dump import program_json


class Instrument:
    """Base: looks at nothing."""

    def before_pass(self, item: Pass, program: Program) -> None:
        """``item`` is about to run on ``program``."""

    def after_pass(self, item: Pass, program: Program, seconds: float) -> None:
        """``item`` made ``program``, which was verified."""

    def on_rejection(self, item: Pass, program: Program) -> None:
        """``item`` made ``program``, which the verifier rejects."""


@dataclass(frozen=True)
class PassTime:
    """How long a pass ran."""

    name: str
    seconds: float


class Timing(Instrument):
    """Wall time of each pass, statistics and verification not included."""

    def __init__(self) -> None:
        self.records: list[PassTime] = []

    def after_pass(self, item: Pass, program: Program, seconds: float) -> None:
        self.records.append(PassTime(item.name, seconds))


class Dump(Instrument):
    """Writes the program into a folder: ``00-input``, then ``NN-pass-name`` after each pass, as ``.txt`` and as ``.json``.

    A program that the verifier rejects is written too, as ``NN-pass-name-rejected.txt``.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise QCompilerError(f"cannot write the dump into '{folder}': {error.strerror}") from error

    def before_pass(self, item: Pass, program: Program) -> None:
        if self._count == 0:
            self._write("00-input", program)
        self._count += 1

    def after_pass(self, item: Pass, program: Program, seconds: float) -> None:
        self._write(f"{self._count:02}-{item.name}", program)

    def on_rejection(self, item: Pass, program: Program) -> None:
        self._save(f"{self._count:02}-{item.name}-rejected.txt", program.text())

    def _write(self, name: str, program: Program) -> None:
        self._save(f"{name}.txt", program.text())
        self._save(f"{name}.json", json.dumps(program_json(program), indent=1) + "\n")

    def _save(self, name: str, text: str) -> None:
        try:
            (self._folder / name).write_text(text, encoding="utf-8")
        except OSError as error:
            raise QCompilerError(f"cannot write the dump '{self._folder / name}': {error.strerror}") from error


@dataclass(frozen=True)
class PassNoise:
    """Signal to quantization noise after a pass, in dB; infinite where nothing was lost."""

    name: str
    decibels: float


class SignalToNoise(Instrument):
    """SQNR of the program's outputs after each pass: 10 log10(sum f^2 / sum (f - q)^2) over some samples, f the first program's outputs."""

    def __init__(self, samples: Callable[[], Samples]) -> None:
        self._samples = samples
        self._reference: list[torch.Tensor] | None = None
        self.records: list[PassNoise] = []

    def before_pass(self, item: Pass, program: Program) -> None:
        if self._reference is None:
            self._reference = self._outputs(program)

    def after_pass(self, item: Pass, program: Program, seconds: float) -> None:
        self.records.append(PassNoise(item.name, signal_to_noise(self._reference or [], self._outputs(program))))

    def _outputs(self, program: Program) -> list[torch.Tensor]:
        return [output for sample in self._samples() for output in program.run(*sample)]


def signal_to_noise(reference: list[torch.Tensor], outputs: list[torch.Tensor]) -> float:
    """10 log10(sum f^2 / sum (f - q)^2) in dB, over all values of all tensors together."""
    pairs = [(f.double(), q.double()) for f, q in zip(reference, outputs, strict=True)]
    signal = sum(float(f.square().sum()) for f, _ in pairs)
    noise = sum(float((f - q).square().sum()) for f, q in pairs)
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf
