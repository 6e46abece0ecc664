"""Errors a user can meet. Each message is one line: the thing, the place in the user's model, and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class QCompilerError(Exception):
    """Base of every error that a user can cause and mend; the command line prints it without a traceback, status 1."""

    def within(self, context: str) -> Self:
        """The same error; its message now starts with where it happened."""
        self.args = (f"{context}: {self}", *self.args[1:])
        return self


class CaptureError(QCompilerError):
    """The model could not be turned into a program."""


class UnsupportedOpError(CaptureError):
    """The model uses an op that has no meaning at the stage it is needed for."""


class VerificationError(QCompilerError):
    """A program breaks its stage's specification, or a promise (range, exactness) cannot be proven."""


class PassError(QCompilerError):
    """A pass failed; the message names the pass, the passes before it, and the node."""


class CalibrationError(QCompilerError):
    """Calibration data are empty, non-finite or of the wrong shape."""


class ArtifactError(QCompilerError):
    """A .qca file is damaged, of an unknown version, or does not match its hashes."""


class TargetError(QCompilerError):
    """The target is unknown, not available on this machine, or a kernel could not be built for it."""


class UnknownNameError(QCompilerError):
    """A recipe, pass, option or target that nobody registered; carries the nearest known name."""

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        candidates = sorted(known)
        nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.0)
        hint = f"did you mean '{nearest[0]}'?" if nearest else f"no {kind} is registered"
        super().__init__(f"unknown {kind} '{name}': {hint} (known: {', '.join(candidates) or 'none'})")
        self.kind, self.name, self.known = kind, name, tuple(candidates)
