from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.errors import CalibrationError
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


def network() -> nn.Sequential:
    """Batch norms that remember inputs with means of 1, -2, 0.5 and what they make of those."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=None), nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, momentum=None), nn.ReLU())
    images = torch.randn(64, 3, 8, 8) * torch.tensor([0.5, 2.0, 1.0])[:, None, None] + torch.tensor([1.0, -2.0, 0.5])[:, None, None]
    model.train()(images)
    return model.eval()


def test_images_have_the_statistics_that_the_network_remembers() -> None:
    model = network()
    images = qc.synthesize(qc.capture(model, torch.zeros(1, 3, 8, 8)), 24, batch=24, steps=150)
    assert images.shape == (24, 3, 8, 8)
    noise = torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    @torch.no_grad()
    def distance(x: torch.Tensor) -> float:
        return sum(
            float(
                (value.mean((0, 2, 3)) - norm.running_mean).square().mean()
                + (value.std((0, 2, 3)) - norm.running_var.sqrt()).square().mean()
            )
            for norm, value in ((model[0], x), (model[2], model[:2](x)))
        )

    assert distance(images) < 0.5 * distance(noise)  # the input's own term pulls to mean 0 and deviation 1


def test_the_same_seed_gives_the_same_images() -> None:
    program = qc.capture(network(), torch.zeros(1, 3, 8, 8))
    first, second, other = (qc.synthesize(program, 5, batch=2, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other) and first.shape[0] == 5


def test_they_serve_as_data() -> None:
    program = qc.capture(network(), torch.zeros(1, 3, 8, 8))
    table = qc.sensitivity(program, qc.synthesize(program, 4, batch=4, steps=2), "sqnr-output", (2, 8))
    assert all(table.rows[item, 2] > table.rows[item, 8] for item in table.items)


def test_a_model_without_batch_norm() -> None:
    program = qc.capture(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8))
    with pytest.raises(CalibrationError, match="the program has no batch norm with its statistics; give calibration data"):
        qc.synthesize(program)
    folded = PassManager(parse_pipeline("canonicalize")).run(qc.capture(network(), torch.zeros(1, 3, 8, 8)))
    with pytest.raises(CalibrationError, match="as it was captured if 'fold-batch-norm' has run"):
        qc.synthesize(folded)


def test_other_inputs_and_numbers() -> None:
    with pytest.raises(CalibrationError, match="batch >= 2, got 4, 200 and 1"):
        qc.synthesize(qc.capture(network(), torch.zeros(1, 3, 8, 8)), 4, batch=1)
    with pytest.raises(CalibrationError, match="one float input and a symbolic batch"):
        qc.synthesize(qc.capture(network(), torch.zeros(2, 3, 8, 8), dynamic_batch=False))
