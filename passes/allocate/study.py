"""What all evaluations of one sensitivity analysis share, in a folder: samples, rounded weights, and the program for workers elsewhere.

The float program runs once over the samples. ``Study`` is small and picklable: a worker on any machine that sees the folder can open it.
Weights are mapped, not copied, and a piece of samples is read when it is needed: what is in memory is one program and the activations of
one piece.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from qcompiler import arithmetic
from qcompiler.calibration.data import CalibrationData
from qcompiler.errors import CalibrationError
from qcompiler.ir import serialize
from qcompiler.ir.fingerprint import Fingerprint
from qcompiler.ir.program import Program
from qcompiler.ir.types import QuantizedType
from qcompiler.passes.allocate.items import Items
from qcompiler.passes.allocate.rounding import Types, rounded_weights
from qcompiler.passes.allocate.sites import Rules, Sites
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.progress import Progress
from qcompiler.sensitivity import Item

Loss = Literal["cross-entropy", "squared-error"]
Labels: TypeAlias = Tensor | NDArray[np.generic] | Sequence[int] | None

_PROGRAM, _WEIGHTS = "program.json", "weights.safetensors"


@dataclass(frozen=True)
class Study:
    """What a worker needs to know; everything large lies in ``folder``.

    items, types, bits: what is measured: the candidates of ``items``, each at the widths ``bits`` has for it.
    quantize: which values are rounded.
    pieces: number of samples in each piece, in order.
    single: whether a piece can be cut into single samples (not where the program's batch is fixed).
    labelled: whether samples have labels; without them the float program's own output is the target.
    loss: of the first output: cross entropy of its last dimension, or half the squared error.
    seed: of every random choice.
    channels: whether metrics also tell the output channels of a weight apart, if they can.
    """

    folder: Path
    items: Items
    quantize: Quantize
    types: Types
    bits: Mapping[Item, tuple[int, ...]]
    pieces: tuple[int, ...]
    single: bool
    labelled: bool
    loss: Loss
    seed: int
    channels: bool = False

    @property
    def samples(self) -> int:
        return sum(self.pieces)

    def rows(self) -> Iterator[tuple[Item, int]]:
        """Every item at every one of its bit-widths."""
        return ((item, bits) for item in self.items.candidates for bits in self.bits[item])


@dataclass(frozen=True, eq=False)
class Piece:
    """Some samples: the program's inputs, the float program's outputs for them, and labels where there are any."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    labels: Tensor | None

    def one_by_one(self) -> Iterator[Piece]:
        """Pieces of one sample."""
        for number in range(self.inputs[0].shape[0]):
            some = slice(number, number + 1)
            labels = self.labels[some] if self.labels is not None else None
            yield Piece(tuple(value[some] for value in self.inputs), tuple(value[some] for value in self.outputs), labels)


class OpenStudy:
    """A study with its program, in a worker."""

    def __init__(self, study: Study, program: Program | None = None) -> None:
        """``program``: the study's own, where it is at hand; else it is read."""
        self.study = study
        self.program = program if program is not None else _read_program(study.folder)
        self._mapped: dict[Item, dict[str, Tensor]] = {}

    def piece(self, number: int) -> Piece:
        """The piece with that number."""
        tensors = safetensors.torch.load_file(_piece_path(self.study.folder, number))
        inputs, outputs = (
            tuple(tensors[f"{kind}-{position}"] for position in range(sum(name.startswith(f"{kind}-") for name in tensors)))
            for kind in ("input", "output")
        )
        return Piece(inputs, outputs, tensors.get("labels"))

    def pieces(self) -> Iterator[Piece]:
        return (self.piece(number) for number in range(len(self.study.pieces)))

    @functools.cached_property
    def sites(self) -> Sites:
        """The float program; nothing is rounded."""
        return self.sites_with()

    def sites_with(self, bits: Mapping[Item, int] | None = None, rules: Rules | None = None) -> Sites:
        """The program with some items rounded, or with other rules for some ops."""
        roundings = {item: functools.partial(self.rounded, item, width) for item, width in (bits or {}).items()}
        return Sites(self.program, self.study.quantize, self.study.items, roundings, rules)

    def inputs(self, sites: Sites, piece: Piece) -> dict[fx.Node, Tensor]:
        """The values of the program's inputs."""
        return dict(zip(sites.inputs, piece.inputs, strict=True))

    def rounded(self, item: Item, bits: int, values: Tensor) -> Tensor:
        """The values of an item at so many bits; a weight's are those that ``quantize`` would give it."""
        kind = self.study.types[item, bits]
        integers = self._integers(item)[str(bits)] if item.kind == "weight" else arithmetic.quantize(values.detach(), kind)
        return arithmetic.dequantize(integers, kind)

    def _integers(self, item: Item) -> dict[str, Tensor]:
        """By bits as text; mapped."""
        if item not in self._mapped:
            self._mapped[item] = safetensors.torch.load_file(_weight_path(self.study.folder, item))
        return self._mapped[item]

    def weight_error(self, item: Item, bits: int) -> Tensor:
        """Q(w) - w."""
        weight = self.sites.tensor(item)
        return self.rounded(item, bits, weight) - weight


def write_program(folder: Path, program: Program) -> None:
    """The part of the folder that is the program; written once."""
    if (folder / _PROGRAM).exists():
        return
    description, tensors = serialize.dump(program)
    contiguous = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(contiguous, folder / _WEIGHTS)
    (folder / _PROGRAM).write_text(json.dumps(description), encoding="utf-8")


def _read_program(folder: Path) -> Program:
    description = json.loads((folder / _PROGRAM).read_text(encoding="utf-8"))
    return serialize.load(description, safetensors.torch.load_file(folder / _WEIGHTS))


def write_weights(
    folder: Path, program: Program, items: Items, quantize: Quantize, bits: Mapping[Item, Sequence[int]], types: Types
) -> dict[tuple[Item, int], QuantizedType]:
    """Round every weight at each of its bit-widths, one file a weight; gives what the integers mean."""
    kinds: dict[tuple[Item, int], QuantizedType] = {}
    for item, constants in rounded_weights(program, items, quantize, bits, types):
        integers = {str(width): constant.integers.contiguous() for width, constant in constants.items()}
        safetensors.torch.save_file(integers, _weight_path(folder, item))
        kinds |= {(item, width): constant.quantized for width, constant in constants.items()}
    return kinds


def write_samples(
    folder: Path, program: Program, data: CalibrationData, labels: Labels, samples: int, batch: int, progress: Progress
) -> tuple[tuple[int, ...], str]:
    """Run the float program over up to ``samples`` samples (0: all); write each piece with its outputs and labels.

    Gives the number of samples in each piece, and a fingerprint of inputs and labels.

    Raises:
        CalibrationError: there are fewer labels than samples.
    """
    given = None if labels is None else torch.as_tensor(labels)
    pieces: list[int] = []
    fingerprint = Fingerprint()
    cut = _pieces(data, samples, batch, has_single_samples(program))
    for number, inputs in enumerate(progress.track(cut, "running the float program", None)):
        tensors = {f"input-{position}": value.contiguous() for position, value in enumerate(inputs)}
        if given is not None:
            tensors["labels"] = _labels(given, sum(pieces), _count(inputs))
        for value in tensors.values():
            fingerprint.add_tensor(value)
        with torch.no_grad():
            outputs = program.run(*inputs)
        tensors |= {f"output-{position}": value.detach().clone().contiguous() for position, value in enumerate(outputs)}
        safetensors.torch.save_file(tensors, _piece_path(folder, number))
        pieces.append(_count(inputs))
    return tuple(pieces), fingerprint.hexdigest()


def has_single_samples(program: Program) -> bool:
    """Whether the program takes one sample at a time, of any number."""
    return all(spec.shape[:1] == (None,) for spec in program.inputs)


def _pieces(data: CalibrationData, samples: int, batch: int, single: bool) -> Iterator[tuple[Tensor, ...]]:
    """Up to ``samples`` samples, at most ``batch`` at a time; batches as they are where they cannot be cut."""
    taken = 0
    for inputs in data:
        count = _count(inputs)
        for start in range(0, count, batch) if single else (0,):
            size = min(batch, count - start, samples - taken if samples else count) if single else count
            yield tuple(value[start : start + size].clone() for value in inputs) if single else inputs
            taken += size
            if samples and taken >= samples:
                return


def _count(inputs: Sequence[Tensor]) -> int:
    """Samples of a batch: what the first dimension of the first input runs over."""
    return inputs[0].shape[0] if inputs[0].dim() else 1


def _labels(labels: Tensor, first: int, count: int) -> Tensor:
    if len(labels) < first + count:
        raise CalibrationError(f"there are {len(labels)} labels for {first + count} samples or more: give one for each, or fewer samples")
    return labels[first : first + count].clone().contiguous()


def _weight_path(folder: Path, item: Item) -> Path:
    return folder / f"weight-{item.name}.safetensors"


def _piece_path(folder: Path, number: int) -> Path:
    return folder / f"samples-{number:05}.safetensors"
