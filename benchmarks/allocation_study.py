"""One network of the allocation benchmark: its sensitivities, and the accuracy of any bits for its weights. Everything measured is kept.

Only weights get bits, or groups of their output channels; activations have 8. All layers may have 2, 3, 4, 6 or 8 bits, the first and the
last too, so that uniform 4-bit, random draws and the solvers choose from the same. An evaluation runs the QDQ program in torch: statistics
of activations do not depend on weights and are gathered once for all programs that are not split. ``evaluations.json`` and one table for
each metric lie in a folder of the network, and what lies there is not measured again.
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import qcompiler as qc
from accuracy import cifar_task, imagenet_task
from models import resnet_cifar, vit
from qcompiler.allocation import Allocation
from qcompiler.calibration.data import CalibrationData
from qcompiler.files import replacing
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.allocate import Stated
from qcompiler.passes.allocate.costs import average_budget, make_problem
from qcompiler.passes.allocate.groups import split
from qcompiler.passes.allocate.items import Items, find_items, with_bits
from qcompiler.passes.allocate.measure import measure
from qcompiler.passes.allocate.problem import Problem
from qcompiler.passes.allocate.salience import layer_groups
from qcompiler.passes.allocate.solver import solve
from qcompiler.passes.allocate.split_channels import SplitChannels
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.collector import StatisticsCollector
from qcompiler.pipeline.contract import PassContext
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import Progress
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import Item, SensitivityTable
from results import load_vit, vit_calibration, vit_images

BITS = (2, 3, 4, 6, 8)
BEFORE = "canonicalize,reparameterize-layer-norm,reparameterize-residual-norm"
CALIBRATION_IMAGES = 128
SAMPLES = 64
BATCH = 32
CURVATURES = ("fisher", "hessian-trace", "taylor")  # which tell channels apart
Bits = Mapping[Item, int]
Channels = Mapping[Item, tuple[int, ...]]


@dataclass(frozen=True)
class Network:
    """A trained network: inputs to calibrate on, inputs to be measured on in batches, and their labels."""

    title: str
    model: nn.Module
    calibration: list[Tensor]
    batches: Callable[[], Sequence[Tensor]]
    labels: Tensor


@dataclass(frozen=True)
class Accuracy:
    """Top-1 in %, signal-to-noise ratio of the logits in dB."""

    top1: float
    sqnr: float


def load_resnet20(assets: Path, images: int) -> Network:
    """Calibrated on lossless training images, measured on JPEG copies of test images."""
    task = cifar_task(20, assets)
    jpeg = task.measured[1]
    step = max(1, len(jpeg.labels) // (images or 1000))
    pixels, labels = jpeg.pixels[::step], jpeg.labels[::step]
    calibration = list(resnet_cifar.normalize(task.calibration[:CALIBRATION_IMAGES]).split(BATCH))
    return Network("ResNet-20", task.model, calibration, lambda: [resnet_cifar.normalize(part) for part in pixels.split(BATCH)], labels)


def load_efficientnet(assets: Path, images: int) -> Network:
    """Calibrated on every fifth crop, measured on others."""
    task = imagenet_task(assets)
    (crops,) = task.measured
    step = max(1, len(crops.labels) // (images or 125))
    pixels, labels = crops.pixels[::step], crops.labels[::step]
    calibration = [task.normalize(part) for part in task.calibration[:SAMPLES].split(BATCH // 4)]
    return Network(
        "EfficientNet-Lite0", task.model, calibration, lambda: [task.normalize(part) for part in pixels.split(BATCH // 4)], labels
    )


def load_vit_cifar10(assets: Path, images: int) -> Network:
    """As trained, calibrated on JPEG training images, measured on JPEG test images."""
    pixels, labels = vit_images(assets)
    step = max(1, len(labels) // (images or 1000))
    pixels, labels = pixels[::step], labels[::step]
    calibration = vit_calibration(assets)[: CALIBRATION_IMAGES // 16]
    model = load_vit(assets, spread=False)
    return Network("ViT on CIFAR-10", model, calibration, lambda: [vit.normalize_cifar(part) for part in pixels.split(BATCH)], labels)


NETWORKS: dict[str, Callable[[Path, int], Network]] = {
    "resnet20": load_resnet20,
    "efficientnet-lite0": load_efficientnet,
    "vit": load_vit_cifar10,
}


class NetworkStudy:
    """What is known about one network, in ``folder``; what is not known is measured when it is asked for."""

    def __init__(self, name: str, network: Network, folder: Path, progress: Progress) -> None:
        self.name, self.network = name, network
        self._folder, self._progress = folder, progress
        folder.mkdir(parents=True, exist_ok=True)
        captured = qc.capture(network.model, network.calibration[0][:2])
        self.captured = captured
        self.data = CalibrationData(network.calibration, captured.inputs)
        self.program: Program = PassManager(parse_pipeline(BEFORE)).run(captured, self.data)
        self.quantize = Quantize(w=8, a=8)
        self._collector = StatisticsCollector(self.data, progress)

    @functools.cached_property
    def items(self) -> Items:
        """The weights; activations are fixed at 8 bits."""
        found = find_items(self.program, self.quantize, bits=BITS)
        weights = {item: size for item, size in found.candidates.items() if item.kind == "weight"}
        values = {item: 8 for item in found.candidates if item.kind == "activation"}
        return Items(weights, {**found.fixed, **values}, found.products, (), found.sizes)

    @property
    def weights(self) -> list[Item]:
        return list(self.items.candidates)

    def average(self, bits: Bits) -> float:
        """Mean bits of the elements of all weights."""
        sizes = {item: self.items.candidates[item].elements for item in self.weights}
        return sum(bits[item] * size for item, size in sizes.items()) / sum(sizes.values())

    def table(self, metric: str, channels: bool = False) -> SensitivityTable:
        """The sensitivities by one metric; with those of output channels where the metric knows them."""
        kind = f"{metric}-channels" if channels else metric
        path = self._folder / f"{kind}.json"
        if not path.exists():
            table = measure(
                self.program,
                metric,
                self.data,
                quantize=self.quantize,
                bits=BITS,
                samples=SAMPLES,
                batch=BATCH // 4,
                items=self.weights,
                channels=channels,
                checkpoint=self._folder / f"{kind}-work",
                progress=self._progress,
            )
            table.save(path)
        return SensitivityTable.load(path)

    def problem(self, metric: str, average: float) -> Problem:
        """Least summed sensitivity at so many bits on average."""
        return make_problem(self.items, self.table(metric), [average_budget(self.items, average)], {}, False)

    def grouped(self, metric: str, average: float, count: int) -> Allocation:
        """As ``problem``, solved, with ``count`` groups of output channels in each layer."""
        table = self.table(metric, channels=count > 1 and metric in CURVATURES)
        budgets = [average_budget(self.items, average)]
        layers = layer_groups(self.program, self.items, self.quantize, count, table)
        stated = Stated(self.items, metric, split(make_problem(self.items, table, budgets, {}, False), layers.by_name), layers)
        return stated.allocation(solve(stated.problem))

    def bits_of(self, chosen: Mapping[str, int]) -> dict[Item, int]:
        """A solution in terms of items."""
        return {item: chosen[str(item)] for item in self.weights}

    def uniform(self, bits: int) -> dict[Item, int]:
        return dict.fromkeys(self.weights, bits)

    def random_draws(self, count: int, average: float, slack: float = 0.1) -> list[dict[Item, int]]:
        """Bits drawn for each layer alike; draws with an average in (average - slack, average] are kept."""
        draw = random.Random(0)
        kept: list[dict[Item, int]] = []
        while len(kept) < count:
            bits = {item: draw.choice(BITS) for item in self.weights}
            if average - slack < self.average(bits) <= average:
                kept.append(bits)
        return kept

    def evaluate(self, bits: Bits, passes: str = "", channels: Channels | None = None) -> Accuracy:
        """The QDQ program with these bits, after ``passes`` from QDQ to QDQ; ``channels``: bits of output channels where they differ."""
        kept = self._kept()
        key = _key(bits, passes, len(self.network.labels), channels or {})
        if key not in kept:
            found = self._measure(self._quantized(bits, passes, channels or {}))
            kept = self._kept() | {key: {"top1": found.top1, "sqnr": found.sqnr, "average": self.average(bits)}}
            with replacing(self._evaluations) as file:
                file.write_text(json.dumps(kept, indent=1) + "\n")
        return Accuracy(kept[key]["top1"], kept[key]["sqnr"])

    @functools.cached_property
    def float_logits(self) -> Tensor:
        """Of the images that are measured."""
        with torch.no_grad():
            return torch.cat([self.network.model(batch) for batch in self.network.batches()])

    @property
    def float_top1(self) -> float:
        return self._top1(self.float_logits)

    def split(self, bits: Bits, channels: Channels) -> Program:
        """The float program that asks for these bits, a layer for each width."""
        return SplitChannels().run(with_bits(self.program, bits, channels), PassContext()).program

    def _quantized(self, bits: Bits, passes: str, channels: Channels) -> Program:
        asked = self.split(bits, channels)
        context = PassContext(self._collector.answer(asked, [self.quantize]), data=self.data, progress=self._progress)
        result = self.quantize.run(asked, context).program
        return PassManager(parse_pipeline(passes)).run(result, self.data, reference=asked) if passes else result

    def _measure(self, program: Program) -> Accuracy:
        batches = self._progress.track(self.network.batches(), f"{self.name}: evaluating", None)
        logits = torch.cat([program.run(batch)[0] for batch in batches])
        return Accuracy(self._top1(logits), signal_to_noise([self.float_logits], [logits]))

    def _top1(self, logits: Tensor) -> float:
        return 100.0 * float((logits.argmax(1) == self.network.labels).double().mean())

    @property
    def _evaluations(self) -> Path:
        return self._folder / "evaluations.json"

    def _kept(self) -> dict[str, dict[str, float]]:
        return dict(json.loads(self._evaluations.read_text())) if self._evaluations.exists() else {}


def _key(bits: Bits, passes: str, images: int, channels: Channels) -> str:
    text = " ".join(f"{item}={width}" for item, width in sorted(bits.items()))
    text += "".join(f" {item}={widths}" for item, widths in sorted(channels.items()))
    return hashlib.sha256(f"{text} {passes} {images}".encode()).hexdigest()[:20]
