"""ONNX models as packages of PyPI ship them: imported, compared with onnxruntime, quantized and compiled."""

from __future__ import annotations

import pytest
import torch

import onnx_models
from onnx_models import EXAMPLES, Outcome

NEAR = 1e-4


@pytest.fixture(autouse=True)
def random_numbers() -> None:
    torch.manual_seed(0)


def outcome(name: str, import_only: bool = False) -> Outcome:
    if EXAMPLES[name].model() is None:
        pytest.skip(f"needs the package {EXAMPLES[name].package}")
    found = onnx_models.run(EXAMPLES[name], import_only)
    assert found.difference is not None and found.difference < NEAR, found
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["angle-classifier", "text-recognition", "magika", "silero-vad", "silero-vad-16k"])
def test_compiled_code_equals_the_reference(name: str) -> None:
    found = outcome(name)
    assert found.equal, found


def test_text_detection_is_imported_as_onnxruntime_computes_it() -> None:
    outcome("text-detection", import_only=True)
