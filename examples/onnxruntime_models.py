"""The same network for onnxruntime, to compare with: float ONNX, and int8 as onnxruntime's own tools make it."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import nn

INPUT = "image"


class CalibrationImages(CalibrationDataReader):
    """Feeds single images [1, C, H, W] of a batch."""

    def __init__(self, images: torch.Tensor) -> None:
        self._images = iter(images.split(1))

    def get_next(self) -> dict[str, object] | None:
        """The next feed, None at the end."""
        image = next(self._images, None)
        return None if image is None else {INPUT: image.numpy()}


def export_float(model: nn.Module, image: torch.Tensor, path: Path) -> None:
    """Write ``model`` in float32 with the fixed shape of ``image``; the exporter's own chatter is dropped."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.onnx.export(model, (image,), path, input_names=[INPUT], dynamo=True, external_data=False)


def quantize_u8s8(float_path: Path, images: torch.Tensor, path: Path) -> None:
    """onnxruntime's static quantization, its fast form on x86: QDQ, uint8 activations, int8 weights per channel, min-max ranges."""
    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(float_path), str(prepared))
    with contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            str(prepared),
            str(path),
            CalibrationImages(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()
