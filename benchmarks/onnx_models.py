"""ONNX models that ship in packages of PyPI: imported, compared with onnxruntime, quantized, compiled.

    python benchmarks/onnx_models.py [NAME…] [--import-only]

Inputs are random: the figures say that the programs compute what the files say, not how accurate they are.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

import qcompiler as qc
from qcompiler.errors import QCompilerError

Inputs = tuple[torch.Tensor, ...]
Sizes = Mapping[str | int, Mapping[int, int]]


@dataclass(frozen=True)
class Example:
    """``file`` inside ``package``; ``inputs`` of a batch; ``constants``: inputs that decide about control flow and are fixed."""

    package: str
    file: str
    inputs: Callable[[], Inputs]
    sizes: Sizes = field(default_factory=dict)
    dynamic_batch: bool = True
    constants: Mapping[str, int] = field(default_factory=dict)

    def model(self) -> onnx.ModelProto | None:
        """The file with its constants; None where the package is missing."""
        found = importlib.util.find_spec(self.package)
        folders = list(found.submodule_search_locations or ()) if found is not None else []
        paths = [Path(folder) / self.file for folder in folders]
        existing = [path for path in paths if path.is_file()]
        return _fixed(onnx.load(existing[0]), self.constants) if existing else None


def _fixed(model: onnx.ModelProto, constants: Mapping[str, int]) -> onnx.ModelProto:
    for given in [given for given in model.graph.input if given.name in constants]:
        model.graph.input.remove(given)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(given.type.tensor_type.elem_type)
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(constants[given.name], dtype=dtype), given.name))
    return model


def _image(height: int, width: int) -> Callable[[], Inputs]:
    return lambda: (torch.rand(2, 3, height, width) * 2 - 1,)


def _sound() -> Inputs:
    return torch.randn(1, 576) * 0.1, torch.randn(2, 1, 128) * 0.1


EXAMPLES: Mapping[str, Example] = {
    "angle-classifier": Example("rapidocr", "models/ch_ppocr_mobile_v2.0_cls_mobile.onnx", _image(48, 192), {0: {2: 48, 3: 192}}),
    "text-recognition": Example("rapidocr", "models/PP-OCRv6_rec_small.onnx", _image(48, 160), {0: {3: 160}}),
    "text-detection": Example("rapidocr", "models/PP-OCRv6_det_small.onnx", _image(160, 160), {0: {2: 160, 3: 160}}),
    "magika": Example("magika", "models/standard_v3_3/model.onnx", lambda: (torch.randint(0, 257, (2, 2048), dtype=torch.int32),)),
    "silero-vad": Example("silero_vad", "data/silero_vad.onnx", _sound, {0: {1: 576}, 1: {1: 1}}, False, {"sr": 16000}),
    "silero-vad-16k": Example("silero_vad", "data/silero_vad_openvino_16k.onnx", _sound, {}, False),
}


@dataclass(frozen=True)
class Outcome:
    """How near the FLOAT program is to onnxruntime, whether compiled code equals the reference, and why it did not come further."""

    difference: float | None = None
    equal: bool | None = None
    reason: str = ""

    def __str__(self) -> str:
        parts = [f"imported, at most {self.difference:.1e} from onnxruntime"] if self.difference is not None else []
        if self.equal is not None:
            parts.append(f"compiled, {'equal' if self.equal else 'NOT equal'} to the reference")
        return "; ".join([*parts, *([self.reason] if self.reason else [])])


def run(example: Example, import_only: bool = False) -> Outcome:
    """Capture, compare, quantize, compile, compare."""
    model = example.model()
    if model is None:
        return Outcome(reason=f"the package {example.package} is missing")
    try:
        program = qc.capture(model, dynamic_shapes=example.sizes, dynamic_batch=example.dynamic_batch)
    except QCompilerError as error:
        return Outcome(reason=f"not imported: {error}")
    inputs = example.inputs()
    difference = _difference(program.run(*inputs), _reference(model, inputs))
    if import_only:
        return Outcome(difference)
    samples = [example.inputs() for _ in range(4)]
    try:
        quantized = qc.quantize(program, [tuple(value[: _samples(value, example)] for value in sample) for sample in samples])
        module = qc.compile(quantized)
    except QCompilerError as error:
        return Outcome(difference, reason=f"not compiled: {error}")
    integers = quantized.quantize_inputs(inputs)
    return Outcome(difference, all(map(torch.equal, module.run_integer(*integers), quantized.run_integer(*integers))))


def _samples(value: torch.Tensor, example: Example) -> int:
    """One sample of a batch; all of an input that has none."""
    return 1 if example.dynamic_batch else value.shape[0]


def _reference(model: onnx.ModelProto, inputs: Inputs) -> Sequence[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    results: Sequence[np.ndarray] = session.run(None, {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)})
    return results


def _difference(found: Sequence[torch.Tensor], expected: Sequence[np.ndarray]) -> float:
    return max(float(np.abs(a.numpy() - b).max()) for a, b in zip(found, expected, strict=True))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(EXAMPLES))
    parser.add_argument("--import-only", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    for name in arguments.names or EXAMPLES:
        print(f"{name}: {run(EXAMPLES[name], arguments.import_only)}", flush=True)


if __name__ == "__main__":
    main()
