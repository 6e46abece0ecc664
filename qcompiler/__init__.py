"""qcompiler: a compiler for quantized neural networks whose whole graph runs on integers only."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qcompiler.allocation import Allocation
    from qcompiler.analysis import allocate, pareto_front, sensitivity, synthesize
    from qcompiler.api import Module, capture, compile, export_onnx, load, quantize
    from qcompiler.ir.program import Program
    from qcompiler.latency import LatencyTable, profile
    from qcompiler.sensitivity import SensitivityTable, rank_correlation

__version__ = "0.1.0"

# torch takes seconds to import: every public name is resolved when first used (PEP 562).
_LAZY = {
    "capture": "qcompiler.api",
    "quantize": "qcompiler.api",
    "compile": "qcompiler.api",
    "load": "qcompiler.api",
    "export_onnx": "qcompiler.api",
    "Module": "qcompiler.api",
    "Program": "qcompiler.ir.program",
    "Allocation": "qcompiler.allocation",
    "allocate": "qcompiler.analysis",
    "pareto_front": "qcompiler.analysis",
    "LatencyTable": "qcompiler.latency",
    "profile": "qcompiler.latency",
    "sensitivity": "qcompiler.analysis",
    "synthesize": "qcompiler.analysis",
    "SensitivityTable": "qcompiler.sensitivity",
    "rank_correlation": "qcompiler.sensitivity",
}

__all__ = [
    "Allocation",
    "LatencyTable",
    "Module",
    "Program",
    "SensitivityTable",
    "allocate",
    "capture",
    "compile",
    "export_onnx",
    "load",
    "pareto_front",
    "profile",
    "quantize",
    "rank_correlation",
    "sensitivity",
    "synthesize",
]


class _Package(ModuleType):
    """Keeps ``qcompiler.capture`` the function: importing the subpackage of that name would put the module in its place."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _LAZY and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module 'qcompiler' has no attribute '{name}'")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
