"""What the tests of the TVM back end share: AMX on machines without it."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from qcompiler import native

SOURCE = Path(__file__).resolve().parents[2] / "native" / "amx_emulator.c"


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], int]:
    """From here on this process executes AMX instructions, by ``amx_emulator.c`` where the machine has none of its own.

    The function gives the number of instructions that were emulated so far.
    """
    if native.request_amx():
        return lambda: 0
    path = tmp_path_factory.mktemp("amx") / "amx_emulator.so"
    subprocess.run(["gcc", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-shared", "-o", path, SOURCE], check=True)
    library = ctypes.CDLL(str(path))
    library.amx_emulator_count.restype = ctypes.c_ulong
    assert library.amx_emulator_install() == 0
    return lambda: int(library.amx_emulator_count())


@pytest.fixture
def amx_machine(emulated_amx: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Target detection sees a machine with AMX, real or emulated."""
    features = native.cpu_features() | {"amx-tile", "amx-int8"}
    monkeypatch.setattr(native, "cpu_features", lambda: features)
    monkeypatch.setattr(native, "request_amx", lambda: True)
