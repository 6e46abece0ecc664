"""The .qca file: one zip with the integer program, its weights, the compiled code and test vectors; written and read strictly."""

from __future__ import annotations

from qcompiler.artifact.file import FORMAT_VERSION, Artifact, read, write
from qcompiler.artifact.verify import TestVector, Verification, verify

__all__ = ["FORMAT_VERSION", "Artifact", "TestVector", "Verification", "read", "verify", "write"]
