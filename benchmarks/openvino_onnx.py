"""Whether OpenVINO reads an exported ONNX file and computes what the program does; run with the interpreter of ``.venv-peers``.

``.venv-peers/bin/python benchmarks/openvino_onnx.py FILE.onnx DATA.npz``: the data hold the file's inputs by name and the expected
outputs as ``expected_0``, ``expected_1``, … Prints the largest difference and the signal-to-noise ratio of each output.
"""

from __future__ import annotations

import sys

import numpy as np


def main(model: str, data: str) -> None:
    """Read, run, compare."""
    import openvino

    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with np.load(data) as arrays:
        inputs = {port.any_name: arrays[port.any_name] for port in compiled.inputs}
        results = compiled(inputs)
        for position, port in enumerate(compiled.outputs):
            expected, found = arrays[f"expected_{position}"].astype(np.float64), results[port].astype(np.float64)
            error = np.abs(expected - found)
            noise = float(np.square(error).sum()) or np.finfo(np.float64).tiny
            decibels = 10 * np.log10(float(np.square(expected).sum()) / noise)
            print(f"{port.any_name}: largest difference {error.max():.3g} of {np.abs(expected).max():.3g}, {decibels:.1f} dB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
