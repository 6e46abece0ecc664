"""What quantization costs on trained networks: float against the integer program, on the same images, as a table in markdown.

``PYTHONPATH=examples python benchmarks/accuracy.py [--models resnet20 resnet56 efficientnet-lite0] [--options quantize.observer=mse]``

Networks and images lie in ``../shared/assets`` beside the repository (``--assets``). ResNets: calibrated on 1,000 lossless unlabelled
training images, measured on 200 lossless test images and on 10,000 JPEG copies of test images, on which both lose ten points:
only differences count. EfficientNet-Lite0: calibrated on every fifth of 1,000 ImageNet crops sorted by label, measured on the
other 800; most likely they are training images, so again only differences count.
"""

from __future__ import annotations

import argparse
import io
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import qcompiler as qc
from models import efficientnet_lite, resnet_cifar
from qcompiler.pipeline.instruments import signal_to_noise

ROOT = Path(__file__).resolve().parent.parent
BATCH = 20
Normalize = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Images:
    """uint8 RGB [N, H, W, 3] and labels [N]."""

    name: str
    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Task:
    """A trained network, what it is calibrated on and what it is measured on."""

    model: nn.Module
    normalize: Normalize
    calibration: Tensor
    measured: tuple[Images, ...]


@dataclass(frozen=True)
class Accuracy:
    """One row: fractions of right predictions, number of predictions that differ, signal-to-noise ratio of the logits in dB."""

    images: int
    float_top1: float
    integer_top1: float
    differing: int
    logits_sqnr: float


def cifar_task(depth: int, assets: Path) -> Task:
    """ResNet-20 or ResNet-56."""
    load = {20: resnet_cifar.load_resnet20, 56: resnet_cifar.load_resnet56}[depth]
    calibration = np.load(assets / "cifar10" / "cifar10_calibration_lossless.npz")["images"]
    measured = tuple(
        _images(name, assets / "cifar10" / file)
        for name, file in (("200 lossless", "ic01_200.npz"), ("10,000 JPEG", "cifar10_test_jpeg.npz"))
    )
    model = load(assets / "resnet20_cifar10" / f"resnet{depth}.safetensors")
    return Task(model, resnet_cifar.normalize, torch.from_numpy(calibration), measured)


def imagenet_task(assets: Path) -> Task:
    """EfficientNet-Lite0."""
    pixels, labels = imagenet_images(assets / "imagenet_sample" / "imagenet_sample_224.tar")
    calibrates = torch.arange(len(labels)) % 5 == 0
    measured = Images("800 ImageNet crops", pixels[~calibrates], labels[~calibrates])
    return Task(efficientnet_lite.load_efficientnet_lite0(), efficientnet_lite.normalize, pixels[calibrates], (measured,))


def imagenet_images(archive: Path) -> tuple[Tensor, Tensor]:
    """The crops sorted by label, uint8 [1000, 224, 224, 3], and their labels."""
    from PIL import Image

    with tarfile.open(archive) as files:
        members = sorted(files.getmembers(), key=lambda member: member.name)
        streams = [(int(Path(member.name).name.split("_")[0]), files.extractfile(member)) for member in members if member.isfile()]
        pixels = [np.array(Image.open(io.BytesIO(stream.read())).convert("RGB")) for _, stream in streams if stream is not None]
    return torch.from_numpy(np.stack(pixels)), torch.tensor([label for label, _ in streams])


def _images(name: str, path: Path) -> Images:
    with np.load(path) as data:
        return Images(name, torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]))


def quantize(task: Task, options: dict[str, str]) -> qc.Program:
    """The integer program of the task's network, by the recipe int8."""
    program = qc.capture(task.model, task.normalize(task.calibration[:2]))
    batches = [task.normalize(batch) for batch in task.calibration.split(BATCH)]
    return qc.quantize(program, batches, recipe="int8", options=options)


def measure(task: Task, program: qc.Program, images: Images) -> Accuracy:
    """Both networks on all images, batch by batch."""
    logits: list[tuple[Tensor, Tensor]] = []
    for pixels in images.pixels.split(BATCH):
        inputs = task.normalize(pixels)
        with torch.no_grad():
            expected = task.model(inputs)
        found = program(inputs)
        assert isinstance(found, Tensor)  # one output
        logits.append((expected, found))
    expected, found = (torch.cat(column) for column in zip(*logits, strict=True))
    right, integer = expected.argmax(1), found.argmax(1)
    float_top1, integer_top1 = (float((classes == images.labels).double().mean()) for classes in (right, integer))
    noise = signal_to_noise([expected], [found])
    return Accuracy(len(images.labels), float_top1, integer_top1, int((right != integer).sum()), noise)


TASKS: dict[str, Callable[[Path], Task]] = {
    "resnet20": lambda assets: cifar_task(20, assets),
    "resnet56": lambda assets: cifar_task(56, assets),
    "efficientnet-lite0": imagenet_task,
}


def main() -> None:
    """Print the table, one row for each network and set of images as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--options", nargs="*", default=[], metavar="PASS.OPTION=VALUE", help="options of the recipe int8")
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    arguments = parser.parse_args()
    options = dict(option.split("=", 1) for option in arguments.options)
    print("| network | images | float top-1 % | integer top-1 % | difference | predictions that differ | SQNR of logits dB | s |")
    print("|---|---|---|---|---|---|---|---|")
    for name in arguments.models:
        task = TASKS[name](arguments.assets)
        program = quantize(task, options)
        for images in task.measured:
            start = time.perf_counter()
            row = measure(task, program, images)
            before, after = 100 * row.float_top1, 100 * row.integer_top1
            print(
                f"| {name} | {images.name} | {before:.2f} | {after:.2f} | {after - before:+.2f} | {row.differing} of {row.images} "
                f"| {row.logits_sqnr:.1f} | {time.perf_counter() - start:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
