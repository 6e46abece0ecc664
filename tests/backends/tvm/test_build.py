from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qcompiler.backends.tvm.build import build_library
from qcompiler.backends.tvm.planner import make_plan
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.errors import TargetError

HANGING_WORKER = """
import sys, time
from qcompiler.backends.tvm import worker

compile_kernel = worker.compile_kernel

def hang_on_clamp(kernel, target, symbol):
    while symbol.startswith("clamp"):
        time.sleep(1)
    return compile_kernel(kernel, target, symbol)

worker.compile_kernel = hang_on_clamp
worker.main()
"""


@pytest.fixture(scope="module")
def plan(integer_program: Any) -> Any:
    program = integer_program()
    x = program.input(None, 4, 5, 5)
    clamped = program.call("qc.clamp", x, 3, 200, name="squash")
    return make_plan(program.finish(program.call("aten.flip", clamped, [2])), TARGETS["x86-64-v3"])


@pytest.fixture
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_kernel_over_its_time_limit_is_stopped_and_named(plan: Any, empty_cache: Path) -> None:
    with pytest.raises(
        TargetError, match=r"kernel clamp_[0-9a-f]{16} \(for squash\) on target x86-64-v3 took longer than its limit of 2 s"
    ):
        build_library(plan, time_limit=2, worker=(sys.executable, "-c", HANGING_WORKER))


def test_kernel_that_fails_is_named(plan: Any, empty_cache: Path) -> None:
    failing = "from qcompiler.backends.tvm import worker\nworker.compile_kernel = lambda *_: 1 / 0\nworker.main()"
    with pytest.raises(TargetError, match=r"kernel \w+ \(for \w+\) on target x86-64-v3 could not be compiled: ZeroDivisionError"):
        build_library(plan, time_limit=60, worker=(sys.executable, "-c", failing))


def test_worker_that_dies_is_reported(plan: Any, empty_cache: Path) -> None:
    with pytest.raises(TargetError, match="the compiler process died on its start"):
        build_library(plan, time_limit=60, worker=(sys.executable, "-c", "raise SystemExit(3)"))


def test_idle_worker_serves_the_next_call(plan: Any, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = tmp_path / "starts"
    code = f"open({str(starts)!r}, 'a').write('.')\nfrom qcompiler.backends.tvm import worker\nworker.main()"
    for name in ("one", "two"):
        monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / name))
        build_library(plan, time_limit=60, worker=(sys.executable, "-c", code))
    assert starts.read_text() == "."


def test_same_plan_gives_the_same_bytes_with_and_without_the_cache(plan: Any, empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_library(plan, time_limit=60)
    assert sorted((empty_cache / "kernels").iterdir())
    cached = build_library(plan, time_limit=60, worker=("no such worker",))
    monkeypatch.setenv("QCOMPILER_CACHE", str(empty_cache.parent / "another"))
    assert first == cached == build_library(plan, time_limit=60)


def test_library_holds_no_path_and_needs_no_tvm(plan: Any) -> None:
    library = build_library(plan, time_limit=60)
    assert b"/tmp" not in library and b"libtvm" not in library


def test_cache_that_cannot_be_written_is_not_used(plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("QCOMPILER_CACHE", str(tmp_path / "file" / "cache"))
    assert build_library(plan, time_limit=60)


def test_missing_c_compiler(plan: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(TargetError, match="no C compiler to link the compiled program .*install one"):
        build_library(plan, time_limit=60)
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(TargetError, match="CC names 'no-such-compiler'"):
        build_library(plan, time_limit=60)


def test_tvm_is_imported_in_child_processes_only() -> None:
    modules = ", ".join(f"qcompiler.backends.tvm.{name}" for name in ("build", "planner", "runtime"))
    subprocess.run([sys.executable, "-c", f"import sys, {modules}; assert 'tvm' not in sys.modules"], check=True)
