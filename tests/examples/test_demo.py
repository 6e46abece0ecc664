"""The demonstration's pictures: all from installed packages, crops repeatable and inside the photograph."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from demo import Prediction, centre_crop, photographs, random_crops


def test_photographs_need_nothing_but_packages() -> None:
    images = photographs()
    assert len(images) == 7
    assert all(image.mode == "RGB" and min(image.size) >= 224 for image in images.values())


def test_random_crops_depend_on_the_seed_alone() -> None:
    images = list(photographs().values())[:2]
    first = random_crops(images, 5, seed=3)
    assert first.shape == (5, 224, 224, 3)
    assert first.dtype == torch.uint8
    assert torch.equal(first, random_crops(images, 5, seed=3))
    assert not torch.equal(first, random_crops(images, 5, seed=4))


def test_centre_crop_takes_the_middle() -> None:
    """A picture whose columns grow from left to right: what the crop leaves out is the same on both sides."""
    columns = np.linspace(0, 255, 512).astype(np.uint8)
    image = Image.fromarray(np.repeat(np.tile(columns, (256, 1))[..., None], 3, axis=2))
    crop = centre_crop(image).double()
    assert crop.shape == (224, 224, 3)
    assert abs(float(crop.mean()) - 127.5) < 1
    assert torch.equal(crop[0], crop[-1])


def test_prediction_is_named_with_its_probability() -> None:
    logits = torch.zeros(1, 1000)
    logits[0, 285] = 20.0
    assert str(Prediction.of(logits)) == "Egyptian cat 100.0%"
