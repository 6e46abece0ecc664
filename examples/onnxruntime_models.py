"""The same network for onnxruntime, to compare with: float ONNX, and int8 as onnxruntime's own tools make it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

Sample = tuple[torch.Tensor, ...]


def input_names(sample: Sample) -> list[str]:
    """The names that ``export_float`` gives to a model's inputs, in order."""
    return [f"input{position}" for position in range(len(sample))]


def feeds(sample: Sample) -> dict[str, object]:
    """One sample as onnxruntime takes it."""
    return {name: value.numpy() for name, value in zip(input_names(sample), sample, strict=True)}


class CalibrationSamples(CalibrationDataReader):
    """Feeds one sample after the other, each a batch of one."""

    def __init__(self, samples: Iterable[Sample]) -> None:
        self._samples = iter(samples)

    def get_next(self) -> dict[str, object] | None:
        """The next feed, None at the end."""
        sample = next(self._samples, None)
        return None if sample is None else feeds(sample)


def export_float(model: nn.Module, sample: Sample, path: Path) -> None:
    """Write ``model`` in float32 with the fixed shapes of ``sample``; the exporter's own chatter is dropped."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(model, sample, path, input_names=input_names(sample), dynamo=True, external_data=False)


def quantize_u8s8(float_path: Path, samples: Iterable[Sample], path: Path) -> None:
    """onnxruntime's static quantization, its fast form on x86: QDQ, uint8 activations, int8 weights per channel, min-max ranges."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_path), str(prepared), skip_symbolic_shape=True)  # it fails on exported transformers
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            str(prepared),
            str(path),
            CalibrationSamples(samples),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()
