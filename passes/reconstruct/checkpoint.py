"""What is finished, in a folder: one safetensors file a block, and a manifest that says what they belong to."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from qcompiler.errors import CalibrationError
from qcompiler.ir.program import Program
from qcompiler.passes.reconstruct.fitting import Outcome
from qcompiler.passes.reconstruct.layers import LayerChange

_MANIFEST = "manifest.json"
_FORMAT = 1
_ABOUT = "about"
_PARTS = ("integers", "scale", "bias")


class Checkpoint:
    """Remembers the changes and notes of each finished block in ``folder``.

    A file is written under another name and then renamed, so that a killed run leaves a block finished or not there.

    Raises:
        CalibrationError: the folder cannot be written, or holds the work of another program, other data or other options.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._folder = folder
        manifest = {"format": _FORMAT, "sha256": identity}
        path = folder / _MANIFEST
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if path.exists():
                _check(folder, json.loads(path.read_text(encoding="utf-8")), manifest)
            else:
                _write(path, (json.dumps(manifest) + "\n").encode())
        except (OSError, ValueError) as error:
            raise CalibrationError(f"checkpoint '{folder}': {error}: give a folder that can be written, or delete it") from error

    def load(self, block: int) -> Outcome | None:
        """What came of a block; None where it is not finished."""
        path = self._path(block)
        if not path.exists():
            return None
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()[_ABOUT])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # the file is no dict
        changes = [LayerChange(name, **{part: tensors.get(f"{name}/{part}") for part in _PARTS}) for name in about["layers"]]
        return Outcome(tuple(changes), tuple(about["notes"]))

    def save(self, block: int, outcome: Outcome) -> None:
        tensors: dict[str, Tensor] = {}
        for change in outcome.changes:
            parts = ((part, getattr(change, part)) for part in _PARTS)
            tensors |= {f"{change.name}/{part}": value.contiguous() for part, value in parts if value is not None}
        # One entry: safetensors writes several in no fixed order.
        about = {"layers": [change.name for change in outcome.changes], "notes": outcome.notes}
        _write(self._path(block), safetensors.torch.save(tensors, {_ABOUT: json.dumps(about)}))

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block:04}.safetensors"


class Fingerprint:
    """SHA-256 over programs, data and options."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add_text(self, text: str) -> None:
        self._hash.update(f"{len(text)} {text}".encode())

    def add_tensor(self, tensor: Tensor) -> None:
        self.add_text(f"{tensor.dtype} {list(tensor.shape)}")
        self._hash.update(tensor.detach().contiguous().numpy().tobytes())

    def add_program(self, program: Program) -> None:
        self.add_text(program.text())
        for name, tensor in sorted(program.graph_module.named_buffers()):
            self.add_text(name)
            self.add_tensor(tensor)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


def _check(folder: Path, found: object, expected: object) -> None:
    if found != expected:
        raise CalibrationError(
            f"checkpoint '{folder}' holds the work of another program, other calibration data or other options: "
            "delete the folder, or give another one"
        )


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(content)
    os.replace(temporary, path)
