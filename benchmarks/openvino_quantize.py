"""Quantize an ONNX model to int8 for OpenVINO: ``openvino_quantize.py MODEL.onnx IMAGES.npy OUT.xml``.

Runs in the environment that ``make peers`` makes.
"""

from __future__ import annotations

import sys

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Calibrate on every image of the file ([N, C, H, W]); NNCF's default preset."""
    model, images, out = sys.argv[1:4]
    samples = np.load(images)
    dataset = nncf.Dataset([samples[i : i + 1] for i in range(len(samples))])
    quantized = nncf.quantize(ov.Core().read_model(model), dataset, subset_size=len(samples))
    ov.save_model(quantized, out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
