"""Hashes that say whether work is about the same program, data and options."""

from __future__ import annotations

import hashlib

from torch import Tensor

from qcompiler.ir.program import Program


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
