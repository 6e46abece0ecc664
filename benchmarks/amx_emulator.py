"""AMX on machines without it, in this process: ``tests/native/amx_emulator.c``, which gcc compiles. For tests and ``amx_estimate.py``."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import torch

SOURCE = Path(__file__).resolve().parent.parent / "tests" / "native" / "amx_emulator.c"
# The order of the C file's ``enum kind``.
KINDS = ("ldtilecfg", "sttilecfg", "tilerelease", "tilezero", "tileloadd", "tileloaddt1", "tilestored", "tdp")


class AmxEmulator:
    """In a ``with`` block, tile instructions that this process has no leave to execute are carried out all the same.

    ``folder`` is where the library is built; it must not be built twice in the same place.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / "amx_emulator.so"
        subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o", path, SOURCE], check=True)
        self._library = ctypes.CDLL(str(path))
        self._library.amx_emulator_count.restype = ctypes.c_ulong
        self._library.amx_emulator_follow.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]

    @property
    def executed(self) -> int:
        """Instructions so far, of all threads."""
        return int(self._library.amx_emulator_count())

    @contextmanager
    def following(self, times: torch.Tensor) -> Iterator[torch.Tensor]:
        """Counts, int64 [steps, KINDS], of the tile instructions in the block by steps, of one thread.

        ``times``: int64 [steps]. A step is over once something was written to its entry; what is in it before is no step that runs.
        """
        counts = torch.zeros((len(times), len(KINDS)), dtype=torch.int64)
        self._library.amx_emulator_follow(times.data_ptr(), counts.data_ptr(), len(times))
        try:
            yield counts
        finally:
            self._library.amx_emulator_follow(None, None, 0)

    def __enter__(self) -> AmxEmulator:
        if self._library.amx_emulator_install():
            raise OSError("the handler of SIGILL could not be installed")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._library.amx_emulator_remove()
