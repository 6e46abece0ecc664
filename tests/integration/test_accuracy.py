"""Trained networks lose almost nothing: the goals of the recipe int8, on real images.

``benchmarks/accuracy.py`` measures the same on all images. EfficientNet-Lite0 is checked on a quarter of them here; the bounds are those of
the quarter, and the signal-to-noise ratio of the logits, which moves long before predictions do, guards the rest.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from accuracy import Images, Task, cifar_task, imagenet_task, measure, quantize
from qcompiler.ir.types import Stage


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "least_sqnr"), [(20, 30.0), (56, 29.0)])
def test_resnets_differ_from_float_in_at_most_3_of_200_predictions(assets: Path, depth: int, least_sqnr: float) -> None:
    task = cifar_task(depth, assets)
    program = quantize(task, {})
    assert program.stage is Stage.INTEGER
    row = measure(task, program, task.measured[0])
    assert row.images == 200 and row.differing <= 3
    assert row.logits_sqnr >= least_sqnr


@pytest.mark.slow
def test_resnet20_loses_nothing_on_a_thousand_jpeg_images(assets: Path) -> None:
    """Images unlike those of the calibration; sorted by class, hence the stride."""
    task = cifar_task(20, assets)
    row = measure(task, quantize(task, {}), _every(10, task.measured[1]))
    assert row.images == 1000 and abs(row.float_top1 - row.integer_top1) <= 0.01
    assert row.differing <= 30


@pytest.mark.slow
def test_efficientnet_lite0_stays_within_three_quarters_of_a_point(assets: Path) -> None:
    """0.75 points of 200 images are one image and a half. The float model: 88.1 % of all 1,000, 200 within 6.3 points of it."""
    pytest.importorskip("PIL", reason="needs Pillow to read the images")
    task: Task = imagenet_task(assets)
    row = measure(task, quantize(task, {}), _every(4, task.measured[0]))
    assert row.images == 200 and abs(row.float_top1 - 0.881) < 0.063
    assert row.float_top1 - row.integer_top1 <= 1.5 / 200
    assert row.differing <= 6 and row.logits_sqnr >= 18.0


def _every(step: int, images: Images) -> Images:
    return replace(images, name=f"{images.name}, every {step}th", pixels=images.pixels[::step], labels=images.labels[::step])
