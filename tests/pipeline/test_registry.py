from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from qcompiler.errors import QCompilerError, UnknownNameError
from qcompiler.pipeline import registry

PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar
from qcompiler.ir.types import Stage
from qcompiler.pipeline.contract import Exact, Pass, PassResult

TABLE = {"third-party": "third_party_passes:ThirdParty", "absent": "third_party_passes:Absent", "misnamed": "third_party_passes:ThirdParty"}
CONFLICT = {"quantize": "third_party_passes:ThirdParty"}

@dataclass(frozen=True)
class ThirdParty(Pass):
    name: ClassVar[str] = "third-party"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Exact] = Exact()

    def run(self, program, context):
        return PassResult(program, modified=False)
"""


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    (tmp_path / "third_party_passes.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    yield monkeypatch
    monkeypatch.undo()
    sys.modules.pop("third_party_passes", None)
    registry.refresh()


def install(monkeypatch: pytest.MonkeyPatch, value: str, group: str = "qcompiler.passes") -> None:
    point = EntryPoint("mine", value, group)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == point.group else [])


def test_every_registered_pass_can_be_imported() -> None:
    names = registry.pass_names()
    assert {"canonicalize", "quantize", "lower-integer"} <= set(names)
    for name in names:
        assert registry.find_pass(name).name == name


def test_third_parties_add_passes_by_an_entry_point(plug_in: pytest.MonkeyPatch) -> None:
    install(plug_in, "third_party_passes:TABLE")
    assert {"third-party", "quantize"} <= set(registry.pass_names())
    assert registry.find_pass("third-party").__module__ == "third_party_passes"
    with pytest.raises(QCompilerError, match="'absent' is registered as 'third_party_passes:Absent', which cannot be imported"):
        registry.find_pass("absent")
    with pytest.raises(QCompilerError, match="'misnamed' is registered for .*ThirdParty, which calls itself 'third-party'"):
        registry.find_pass("misnamed")


def test_third_parties_add_metrics_by_an_entry_point(plug_in: pytest.MonkeyPatch) -> None:
    install(plug_in, "third_party_passes:TABLE", "qcompiler.metrics")
    assert {"third-party", "hessian-trace"} <= set(registry.metric_names())
    assert registry.find_metric("third-party").__module__ == "third_party_passes"
    with pytest.raises(UnknownNameError, match="unknown metric 'hessian': did you mean 'hessian-trace'"):
        registry.find_metric("hessian")


def test_every_registered_metric_can_be_imported() -> None:
    for name in registry.metric_names():
        assert registry.find_metric(name).name == name


def test_a_name_is_registered_once(plug_in: pytest.MonkeyPatch) -> None:
    install(plug_in, "third_party_passes:CONFLICT")
    with pytest.raises(QCompilerError, match="'quantize' is registered twice"):
        registry.pass_names()


def test_a_broken_plug_in_is_told_and_left_out(plug_in: pytest.MonkeyPatch) -> None:
    install(plug_in, "no_such_module:TABLE")
    with pytest.warns(UserWarning, match="entry point 'mine' .* cannot be used"):
        assert "quantize" in registry.pass_names()


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="unknown pass 'quantise': did you mean 'quantize'"):
        registry.find_pass("quantise")
    with pytest.raises(UnknownNameError, match="unknown target 'x86-64-vnn': did you mean 'x86-64-vnni'"):
        registry.find_target("x86-64-vnn")


def test_native_is_a_target_of_this_machine() -> None:
    backend, target = registry.find_target("native")
    assert target in backend.targets() and registry.find_target(target) == (backend, target)


def test_looking_up_names_imports_no_pass_and_no_compiler() -> None:
    script = (
        "import sys; from qcompiler.pipeline import registry; registry.pass_names(); print('torch' in sys.modules, 'tvm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
