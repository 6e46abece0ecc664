"""The C library must agree with what the kernel says about the processor, by its own and independent reading of CPUID."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

import qcompiler
from qcompiler import native
from qcompiler.errors import TargetError

CPUINFO = Path("/proc/cpuinfo")
X86_FLAGS = {
    "avx2": "avx2",
    "fma": "fma",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512vl": "avx512vl",
    "avx512-vnni": "avx512_vnni",
    "avx-vnni": "avx_vnni",
    "avx512-vbmi": "avx512vbmi",
    "avx512-vpopcntdq": "avx512_vpopcntdq",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
}
ARM_FLAGS = {"neon-dotprod": "asimddp", "neon-i8mm": "i8mm"}


def kernel_flags() -> set[str]:
    """The flags of the first processor in /proc/cpuinfo."""
    for line in CPUINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return set(value.split())
    return set()


@pytest.mark.skipif(not CPUINFO.exists(), reason="only Linux has /proc/cpuinfo to compare with")
def test_features_agree_with_the_kernel() -> None:
    flags = kernel_flags()
    expected = X86_FLAGS if platform.machine() == "x86_64" else ARM_FLAGS
    assert native.cpu_features() == {name for name, flag in expected.items() if flag in flags}


def test_every_feature_has_a_name_and_the_list_ends() -> None:
    library = native._library()
    names = [library.qc_cpu_feature_name(bit) for bit in range(len(X86_FLAGS) + len(ARM_FLAGS))]
    assert {name.decode() for name in names} == set(X86_FLAGS) | set(ARM_FLAGS)
    assert library.qc_cpu_feature_name(len(names)) is None


def test_amx_is_granted_exactly_where_it_exists() -> None:
    assert native.request_amx() == ("amx-int8" in native.cpu_features())
    assert native.request_amx() == native.request_amx()


def test_a_missing_library_is_a_target_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qcompiler, "__path__", [str(tmp_path)])
    with pytest.raises(TargetError, match="not built .*pip install -e"):
        native.library_path()
