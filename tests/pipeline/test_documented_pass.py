"""The pass that ``docs/passes.md`` shows works as it stands."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import qcompiler as qc

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "passes.md"


def test_the_documented_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    block = re.search(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert block
    module = ModuleType("documented_pass")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # dataclasses look their module up
    exec(compile(block[1], str(DOCUMENT), "exec"), module.__dict__)  # the repository's own documentation
    program = qc.capture(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(3, 2)), torch.zeros(2, 3))
    result = qc.quantize(program, torch.randn(4, 3), passes=[module.RemoveDoubleRelu()])
    assert result.text().count("aten.relu") == 1
    assert result.history[-1].notes == ("1 removed",)
