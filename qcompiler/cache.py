"""The folder in which work is kept that is the same in every run on this machine: compiled kernels, measured times."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """``QCOMPILER_CACHE``, else ``qcompiler`` in the user's cache folder. It may be deleted at any time."""
    explicit = os.environ.get("QCOMPILER_CACHE")
    if explicit:
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qcompiler"
