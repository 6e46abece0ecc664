"""Quantize an ONNX model to int8 for OpenVINO: ``openvino_quantize.py MODEL.onnx SAMPLES.npz OUT.xml [--transformer]``.

SAMPLES holds one array for each input of the model, in the order of their names, samples along the first axis. Runs in the
environment that ``make peers`` makes.
"""

from __future__ import annotations

import argparse

import nncf
import numpy as np
import openvino as ov


def main() -> None:
    """Calibrate on every sample of the file, one at a time; NNCF's preset for the kind of model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("samples")
    parser.add_argument("out")
    parser.add_argument("--transformer", action="store_true", help="NNCF's settings for transformers (SmoothQuant among them)")
    arguments = parser.parse_args()
    with np.load(arguments.samples) as stored:
        columns = [stored[name] for name in sorted(stored.files)]
    rows = [[column[i : i + 1] for column in columns] for i in range(len(columns[0]))]
    kind = nncf.ModelType.TRANSFORMER if arguments.transformer else None
    quantized = nncf.quantize(ov.Core().read_model(arguments.model), nncf.Dataset(rows), subset_size=len(rows), model_type=kind)
    ov.save_model(quantized, arguments.out, compress_to_fp16=False)


if __name__ == "__main__":
    main()
