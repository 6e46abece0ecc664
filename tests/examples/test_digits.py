"""The committed weights of the digits example keep their accuracy, as floats and as integers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from digits_models import Digits, load_data, load_network
from evaluate import evaluate


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


def test_the_integer_cnn_agrees_with_float_and_with_its_compiled_code(digits: Digits) -> None:
    result = evaluate(load_network("cnn"), digits)
    assert result.obstacle is None
    assert result.exact
    assert result.agreeing is not None and result.agreeing >= 395


def test_an_obstacle_is_said_in_the_compilers_own_words(digits: Digits) -> None:
    result = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softsign()), digits)
    assert (result.integer_accuracy, result.exact) == (None, None)
    assert result.obstacle is not None and "aten.div.Tensor" in str(result)
