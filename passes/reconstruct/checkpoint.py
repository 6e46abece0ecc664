"""What is finished, in a folder: one safetensors file a block, and a manifest that says what they belong to."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from qcompiler.files import claim, replacing
from qcompiler.passes.reconstruct.fitting import Outcome
from qcompiler.passes.reconstruct.layers import LayerChange

_ABOUT = "about"
_PARTS = ("integers", "scale", "bias")


class Checkpoint:
    """Remembers the changes and notes of each finished block in ``folder``.

    A file is written under another name and then renamed, so that a killed run leaves a block finished or not there.

    Raises:
        QCompilerError: the folder cannot be written, or holds the work of another program, other data or other options.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        claim(folder, identity)
        self._folder = folder

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
        with replacing(self._path(block)) as file:
            file.write_bytes(safetensors.torch.save(tensors, {_ABOUT: json.dumps(about)}))

    def _path(self, block: int) -> Path:
        return self._folder / f"block-{block:04}.safetensors"
