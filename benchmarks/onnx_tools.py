"""Files that other tools quantize: made, imported, lowered to integers without data, compared with onnxruntime.

    PYTHONPATH=examples python benchmarks/onnx_tools.py nncf modelopt aimet onnxruntime

The networks are ResNet-20 and two blocks of the vision transformer, calibrated on 16 images. A tool must be installed where the script
runs: ``nncf``, ``nvidia-modelopt[onnx]``, ``aimet-onnx``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

import qcompiler as qc
import results
from models.resnet_cifar import load_resnet20, normalize
from qcompiler.errors import QCompilerError
from qcompiler.ir.types import Stage
from qcompiler.pipeline.instruments import signal_to_noise

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
IMAGES = 16

# Name of a file -> what makes it of a float file and images.
Makers = Mapping[str, Callable[[Path, np.ndarray], onnx.ModelProto]]


def networks() -> Iterator[tuple[str, torch.nn.Module, torch.Tensor]]:
    """Name, network, images."""
    with np.load(ASSETS / "cifar10" / "cifar10_calibration_lossless.npz") as data:
        yield (
            "resnet20",
            load_resnet20(ASSETS / "resnet20_cifar10" / "resnet20.safetensors"),
            normalize(torch.from_numpy(data["images"][:IMAGES])),
        )
    vit = results.load_vit(ASSETS, spread=False)
    vit.blocks = vit.blocks[:2]
    yield "vit", vit, torch.cat(list(results.vit_calibration(ASSETS)))[:IMAGES]


def nncf() -> Makers:
    """Its ONNX backend."""
    tool = importlib.import_module("nncf")

    def quantized(source: Path, images: np.ndarray, **options: Any) -> Any:
        data = tool.Dataset(list(np.split(images, len(images))), lambda image: {"input": image})
        return tool.quantize(onnx.load(source), data, subset_size=len(images), **options)

    def compressed(source: Path, images: np.ndarray) -> Any:
        return tool.compress_weights(onnx.load(source), mode=tool.CompressWeightsMode.INT4_SYM, ratio=1.0, group_size=32, all_layers=True)

    mixed, transformer = {"preset": tool.QuantizationPreset.MIXED}, {"model_type": tool.ModelType.TRANSFORMER}
    return {
        "quantize": quantized,
        "quantize, mixed": lambda source, images: quantized(source, images, **mixed),
        "quantize, transformer": lambda source, images: quantized(source, images, **transformer),
        "compress_weights, int4": compressed,
    }


def modelopt() -> Makers:
    """Its ``modelopt.onnx``."""
    tool = importlib.import_module("modelopt.onnx.quantization")

    def quantized(source: Path, images: np.ndarray, mode: str) -> Any:
        target = source.with_suffix(".modelopt.onnx")
        options = {"calibration_eps": ["cpu"], "calibration_shapes": "input:1x3x32x32", "log_level": "ERROR", "output_path": str(target)}
        tool.quantize(str(source), quantize_mode=mode, calibration_data={"input": images}, **options)
        return onnx.load(target)

    def maker(mode: str) -> Callable[[Path, np.ndarray], onnx.ModelProto]:
        return lambda source, images: quantized(source, images, mode)

    return {mode: maker(mode) for mode in ("int8", "int4", "fp8")}


def aimet() -> Makers:
    """Its simulation, written as QDQ."""
    tool = importlib.import_module("aimet_onnx.quantsim")

    def quantized(source: Path, images: np.ndarray) -> Any:
        options = {"param_type": "int8", "activation_type": "int8", "providers": ["CPUExecutionProvider"]}
        simulation = tool.QuantizationSimModel(onnx.load(source), **options)
        simulation.compute_encodings([{"input": image} for image in np.split(images, len(images))])
        return simulation.to_onnx_qdq()

    return {"to_onnx_qdq, int8": quantized}


def ort() -> Makers:
    """Static in each format, dynamic, weights of 4 bits in blocks."""
    tool = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")

    def prepared(source: Path) -> Path:
        target = source.with_suffix(".prepared.onnx")
        shapes.quant_pre_process(source, target, skip_symbolic_shape=True)
        return target

    def static(format: str, activation: str, weight: str, channel: bool) -> Callable[[Path, np.ndarray], onnx.ModelProto]:
        def quantized(source: Path, images: np.ndarray) -> onnx.ModelProto:
            feeds = [{"input": image} for image in np.split(images, len(images))]
            reader = type("Reader", (tool.CalibrationDataReader,), {"get_next": lambda self: feeds.pop() if feeds else None})()
            types = {"activation_type": tool.QuantType[activation], "weight_type": tool.QuantType[weight]}
            target = source.with_suffix(".quantized.onnx")
            tool.quantize_static(prepared(source), target, reader, quant_format=tool.QuantFormat[format], per_channel=channel, **types)
            return onnx.load(target)

        return quantized

    def dynamic(source: Path, images: np.ndarray) -> onnx.ModelProto:
        target = source.with_suffix(".dynamic.onnx")
        tool.quantize_dynamic(prepared(source), target, weight_type=tool.QuantType.QInt8)
        return onnx.load(target)

    def few_bits(source: Path, images: np.ndarray) -> Any:
        quantizer = importlib.import_module("onnxruntime.quantization.matmul_nbits_quantizer")
        options = quantizer.DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True)
        work = quantizer.MatMulNBitsQuantizer(onnx.load(prepared(source)), algo_config=options)
        work.process()
        return work.model.model

    forms = {
        "QDQ, U8S8, per channel": ("QDQ", "QUInt8", "QInt8", True),
        "QDQ, S8S8, per channel": ("QDQ", "QInt8", "QInt8", True),
        "QDQ, U8U8": ("QDQ", "QUInt8", "QUInt8", False),
        "QDQ, 4-bit weights": ("QDQ", "QUInt8", "QInt4", True),
        "QDQ, 16-bit activations": ("QDQ", "QUInt16", "QUInt8", False),
        "QOperator, U8U8": ("QOperator", "QUInt8", "QUInt8", False),
        "QOperator, S8S8, per channel": ("QOperator", "QInt8", "QInt8", True),
    }
    return {**{name: static(*form) for name, form in forms.items()}, "dynamic": dynamic, "MatMulNBits": few_bits}


TOOLS: Mapping[str, Callable[[], Makers]] = {"nncf": nncf, "modelopt": modelopt, "aimet": aimet, "onnxruntime": ort}


def outcome(model: onnx.ModelProto, images: torch.Tensor) -> str:
    """The stage that is reached without data, what got bits beyond the file, and how near the integers are to onnxruntime."""
    islands = ("aten.round.default",)
    try:
        program = qc.capture(model, allow_float=islands)
        if program.stage is not Stage.QDQ:
            return f"imported at stage {program.stage.value}: weights alone are quantized, or nothing is"
        integer = qc.quantize(program)
    except QCompilerError as error:
        return f"declined: {error}"
    added = sum(len(record.notes) for record in integer.history if record.name == "quantize-rest")
    (found,), expected = integer.run(images), _reference(model, images)
    noise = signal_to_noise([expected], [found])
    same = int((found.argmax(1) == expected.argmax(1)).sum())
    return f"integers; {added} values beyond the file; {noise:.1f} dB, {same} of {len(images)} predictions of onnxruntime"


def _reference(model: onnx.ModelProto, images: torch.Tensor) -> torch.Tensor:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return torch.from_numpy(np.concatenate([session.run(None, {"input": image.numpy()})[0] for image in images.split(1)]))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tools", nargs="+", choices=TOOLS, metavar="TOOL")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(4)
    for network, module, images in networks():
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "float.onnx"
            axes = {"input": {0: "batch"}, "output": {0: "batch"}}
            names: dict[str, Any] = {"input_names": ["input"], "output_names": ["output"], "dynamic_axes": axes}
            torch.onnx.export(module.eval(), (images[:2],), source, dynamo=False, opset_version=17, **names)
            for tool in arguments.tools:
                for name, make in TOOLS[tool]().items():
                    print(f"{network} | {tool} | {name} | {outcome(make(source, images.numpy()), images)}", flush=True)


if __name__ == "__main__":
    main()
