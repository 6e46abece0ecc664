"""Modules of the user that a command line names as ``package.module:factory``."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from types import ModuleType


def import_user_module(name: str) -> ModuleType:
    """Import ``name`` as ``python -m`` would: the current folder is looked in first."""
    with _current_folder_first():
        return importlib.import_module(name)


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before
