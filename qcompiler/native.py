"""The small C library of ``native/``: which instruction sets this machine has, and the permission that AMX needs."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import qcompiler
from qcompiler.errors import TargetError

LIBRARY_NAMES = ("libqcompiler_native.so", "libqcompiler_native.dylib")
AMX_GRANTED = 0  # native/include/qcompiler/cpu.h, enum qc_amx_request


def library_path() -> Path:
    """Where the build put the shared library. An editable install keeps it beside the sources' own directory on ``__path__``.

    Raises TargetError where it was never built.
    """
    folders = [Path(entry) / "_native" for entry in qcompiler.__path__]
    for candidate in (folder / name for folder in folders for name in LIBRARY_NAMES):
        if candidate.exists():
            return candidate
    places = ", ".join(map(str, folders))
    raise TargetError(f"the native library of qcompiler is not built (looked in {places}): install the package, e.g. 'pip install -e .'")


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    library.qc_cpu_features.argtypes, library.qc_cpu_features.restype = [], ctypes.c_uint64
    library.qc_cpu_feature_name.argtypes, library.qc_cpu_feature_name.restype = [ctypes.c_uint], ctypes.c_char_p
    library.qc_request_amx.argtypes, library.qc_request_amx.restype = [], ctypes.c_int
    return library


@functools.cache
def cpu_features() -> frozenset[str]:
    """Instruction sets that integer kernels care about and that this machine can execute, e.g. ``{"avx2", "avx512-vnni"}``."""
    library = _library()
    present = library.qc_cpu_features()
    return frozenset(library.qc_cpu_feature_name(bit).decode() for bit in range(present.bit_length()) if present >> bit & 1)


def request_amx() -> bool:
    """Ask the operating system for the AMX tile registers, once per process; False where the machine has none or refuses."""
    return bool(_library().qc_request_amx() == AMX_GRANTED)
