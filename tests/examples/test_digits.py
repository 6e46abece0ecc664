"""The committed weights of the digits example keep their accuracy."""

from __future__ import annotations

import pytest
import torch

from digits_models import Digits, load_data, load_network


@pytest.fixture(scope="module")
def digits() -> Digits:
    return load_data()


def test_the_split_is_fixed_and_disjoint(digits: Digits) -> None:
    assert (len(digits.train_images), len(digits.test_images)) == (1400, 397)
    assert digits.test_labels[:10].tolist() == load_data().test_labels[:10].tolist()


@pytest.mark.parametrize(("name", "correct"), [("cnn", 397), ("vit", 386)])
def test_float_accuracy_of_the_committed_weights(digits: Digits, name: str, correct: int) -> None:
    with torch.inference_mode():
        hits = int((load_network(name)(digits.test_images).argmax(1) == digits.test_labels).sum())
    assert abs(hits - correct) <= 1, "rounding of another machine's floats moves one borderline digit at most"
