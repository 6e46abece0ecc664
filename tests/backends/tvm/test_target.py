from __future__ import annotations

import pytest

from qcompiler import native
from qcompiler.backends.tvm import backend
from qcompiler.backends.tvm.target import TARGETS, available, detect, resolve
from qcompiler.errors import TargetError, UnknownNameError
from qcompiler.pipeline.backend import CompiledProgram

AVX2 = frozenset({"avx2", "fma"})
VNNI = AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512-vnni", "avx512-vbmi", "avx512-vpopcntdq"}
AMX = VNNI | {"amx-tile", "amx-int8"}


@pytest.mark.parametrize(
    ("features", "granted", "best"),
    [(AVX2, False, "x86-64-v3"), (VNNI, False, "x86-64-vnni"), (AMX, False, "x86-64-vnni"), (AMX, True, "x86-64-amx")],
)
def test_native_is_the_best_that_the_machine_has(
    monkeypatch: pytest.MonkeyPatch, features: frozenset[str], granted: bool, best: str
) -> None:
    monkeypatch.setattr(native, "cpu_features", lambda: features)
    monkeypatch.setattr(native, "request_amx", lambda: granted)
    assert detect() == best == resolve("native").name
    assert available(best) is None


def test_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cpu_features", lambda: VNNI)
    assert available("x86-64-amx") == "this machine lacks amx-int8, amx-tile, which target x86-64-amx needs"
    monkeypatch.setattr(native, "cpu_features", lambda: AMX)
    monkeypatch.setattr(native, "request_amx", lambda: False)
    assert "operating system does not grant" in (available("x86-64-amx") or "")
    monkeypatch.setattr(native, "cpu_features", lambda: frozenset())
    assert available("native") == "this machine lacks avx2, fma, which target x86-64-v3 needs"


def test_unknown_target() -> None:
    with pytest.raises(UnknownNameError, match="unknown target 'x86-64-vnmi': did you mean 'x86-64-vnni'"):
        resolve("x86-64-vnmi")


def test_load_refuses_what_the_machine_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "cpu_features", lambda: AVX2)
    with pytest.raises(TargetError, match="lacks .*avx512f.*: compile for 'x86-64-v3' or 'native' instead"):
        backend.load(None, CompiledProgram("x86-64-vnni", {}))  # type: ignore[arg-type]  # refused before the program is looked at


def test_targets_are_those_of_the_backend() -> None:
    assert tuple(backend.targets()) == tuple(TARGETS)
