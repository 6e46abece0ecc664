"""A decoder with every rotation, also the online ones on 16-bit gates and behind rotary positions, as integers: code and ONNX agree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import qcompiler as qc
from models.llama_block import Llama, LlamaConfiguration


@pytest.mark.slow
def test_integers_are_the_same_everywhere(network_of: Callable[..., Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    configuration = LlamaConfiguration(vocabulary=30, width=32, layers=1, heads=2, key_heads=1, hidden=48, positions=6)
    network = network_of(Llama(configuration), torch.randint(0, 30, (4, 6)))
    options = {"rotate-query-key.online": True, "gptq.samples": 4}
    program = qc.quantize(network.program, [network.inputs], recipe="rotate-w4a4", options=options)
    transforms = [node for node in program.graph.nodes if str(node.target) == "qc.hadamard.default"]
    assert len(transforms) == 3
    assert {node.args[0].meta["val"].dtype for node in transforms} == {torch.int16}
    want = program(*network.inputs)
    module = qc.compile(program, target="x86-64-v3", threads=1)
    assert torch.equal(module(*network.inputs), want)
    qc.export_onnx(program, tmp_path / "model.onnx", format="integer")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: network.inputs[0].numpy()})
    assert np.array_equal(got, want.numpy())
