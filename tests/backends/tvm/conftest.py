"""What the tests of the TVM back end share: AMX on machines without it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from amx_emulator import AmxEmulator
from qcompiler import native


@pytest.fixture(scope="session")
def emulated_amx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], int]]:
    """From here on this process executes AMX instructions, by ``amx_emulator.c`` where the machine has none of its own.

    The function gives the number of instructions that were emulated so far.
    """
    if native.request_amx():
        yield lambda: 0
        return
    with AmxEmulator(tmp_path_factory.mktemp("amx")) as emulator:
        yield lambda: emulator.executed


@pytest.fixture
def amx_machine(emulated_amx: Callable[[], int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Target detection sees a machine with AMX, real or emulated."""
    features = native.cpu_features() | {"amx-tile", "amx-int8"}
    monkeypatch.setattr(native, "cpu_features", lambda: features)
    monkeypatch.setattr(native, "request_amx", lambda: True)
