"""Networks whose weights are -1 and +1, with activations of few bits: the integer-only file equals the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import qcompiler as qc


@pytest.mark.parametrize("options", ["w=1,a=1", "w=1,a=2", "w=1,a=8,edge_bits=8"])
def test_equals_the_reference(options: str, one_bit: Any, session: Any, tmp_path: Any) -> None:
    program, x = one_bit(options)
    qc.export_onnx(program, tmp_path / "model.onnx")
    run = session(tmp_path / "model.onnx")
    for inputs in (x, x[:1], x[:3]):
        (want,), (found,) = program.run(inputs), run(inputs)
        assert torch.equal(found, want) and want.dtype == found.dtype
