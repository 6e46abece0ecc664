"""What holds for the package as a whole: quick to import, typed, layered, its entry points resolve."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import qcompiler

ROOT = Path(qcompiler.__file__).resolve().parent.parent
FORBIDDEN = {
    "qcompiler": ("qcompiler.passes", "qcompiler.backends"),
    "passes": ("qcompiler.backends",),
    "backends": ("qcompiler.passes",),
}


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_is_quick_and_loads_neither_torch_nor_tvm() -> None:
    """Below 0.2 s; the best of five, for other tests run beside this one."""
    code = "import time; start = time.perf_counter(); import qcompiler; print(time.perf_counter() - start)"
    assert min(float(run(code)) for _ in range(5)) < 0.2
    assert run("import sys, qcompiler; print({'torch', 'tvm', 'tvm_ffi', 'numpy', 'onnx'} & set(sys.modules))") == "set()"


def test_every_public_name_resolves() -> None:
    for name in qcompiler.__all__:
        assert getattr(qcompiler, name) is not None
        assert name in dir(qcompiler)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = qcompiler.quantise


def test_capture_stays_the_function_when_its_subpackage_is_imported() -> None:
    code = "import qcompiler.capture, qcompiler as qc; print(callable(qc.capture)); from qcompiler import capture; print(callable(capture))"
    assert run(code).split() == ["True", "True"]


def test_the_package_is_typed() -> None:
    assert (Path(qcompiler.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("group", ["qcompiler.passes", "qcompiler.backends"])
def test_entry_points_name_tables(group: str) -> None:
    (point,) = [point for point in entry_points(group=group) if point.name == "builtin"]
    table = point.load()
    assert table
    assert all(":" in address for address in table.values())


def imported_modules(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", sorted(FORBIDDEN))
def test_layers_do_not_import_each_other(layer: str) -> None:
    """The lint rules say the same; this catches imports that a ``noqa`` would hide."""
    links = (ROOT / "qcompiler" / "passes", ROOT / "qcompiler" / "backends")
    sources = [path for path in (ROOT / layer).rglob("*.py") if not any(path.is_relative_to(link) for link in links)]
    assert sources
    offences = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources
        for module in imported_modules(path)
        for forbidden in FORBIDDEN[layer]
        if module == forbidden or module.startswith(f"{forbidden}.")
    ]
    assert offences == []
