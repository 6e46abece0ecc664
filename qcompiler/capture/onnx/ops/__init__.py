"""The converters, grouped as the documentation of ONNX groups its ops."""

from __future__ import annotations

import importlib
import pkgutil


def register_all() -> None:
    """Import every module of this package; each registers its converters once."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
