from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import fuzz
import pytest


@pytest.fixture
def quiet() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")
def test_damaged_models_end_with_a_program_or_one_line(tmp_path: Path, quiet: None) -> None:
    outcomes = {seed: fuzz.outcome(seed, tmp_path) for seed in (*range(90), 5003)}  # 5003 once hung
    assert not {seed: found for seed, found in outcomes.items() if found.startswith("WRONG")}
    assert {"program", "CaptureError"} <= set(outcomes.values())


@pytest.mark.parametrize("model", fuzz.MODELS)
def test_the_undamaged_models_are_captured(model: fuzz.Callable[[], fuzz.ModelProto]) -> None:
    assert fuzz.capture(model()).inputs[0].shape[0] is None
