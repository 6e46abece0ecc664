"""What each reconstruction gains at low bits: top-1 of the QDQ program on JPEG CIFAR-10 test images, as a table in markdown.

``PYTHONPATH=examples python benchmarks/reconstruction.py [--models vit resnet20] [--bits w=3,a=4] [--methods gptq] [--checkpoint DIR]``

Networks and images lie in ``../shared/assets`` beside the repository (``--assets``). With ``--checkpoint`` a run that was cut short
continues. With ``--integers`` the integer program is measured.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from models import resnet_cifar, vit
from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Case:
    """A network, where its calibration images lie, and how images are made inputs."""

    load: Callable[[Path], nn.Module]
    calibration: str
    normalize: Callable[[Tensor], Tensor]


CASES = {
    "vit": Case(
        lambda assets: vit.load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors"),
        "cifar10_train_jpeg_2000.npz",
        vit.normalize_cifar,
    ),
    "resnet20": Case(
        lambda assets: resnet_cifar.load_resnet20(assets / "resnet20_cifar10" / "resnet20.safetensors"),
        "cifar10_calibration_lossless.npz",
        resnet_cifar.normalize,
    ),
}


def methods(steps: int) -> tuple[str, ...]:
    """Pipelines after ``quantize``; the empty one rounds to nearest."""
    with_steps = (f"{name}{{steps={steps}}}" for name in ("adaround", "reconstruct-blocks", "adaquant", "tune-bias"))
    return ("", "gptq", *with_steps, f"gptq,tune-bias{{steps={steps}}}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, row by row."""
    options = _parse(arguments)
    torch.set_num_threads(options.threads)
    print("| network | bits | method | top-1 % | minutes |\n|---|---|---|---|---|")
    for name in options.models:
        case = CASES[name]
        images, labels = _images(options.assets, "cifar10_test_jpeg.npz", case, options.every)
        samples, _ = _images(options.assets, case.calibration, case, 1)
        samples = samples[torch.randperm(len(samples), generator=torch.Generator().manual_seed(0))[: options.samples]]
        reference = PassManager(parse_pipeline("canonicalize")).run(capture(case.load(options.assets), samples[:2]))
        print(f"| {name} | float | | {_top1(reference, images, labels):.2f} | |", flush=True)
        for bits in options.bits:
            qdq = PassManager(parse_pipeline(f"quantize{{{bits}}}")).run(reference, CalibrationData(samples, reference.inputs))
            for text in methods(options.steps) if options.methods is None else options.methods:
                start = time.perf_counter()
                folder = options.checkpoint / f"{name}-{bits}-{text}" if options.checkpoint else None
                passes = ",".join(filter(None, (text, "lower-integer" if options.integers else "")))
                result = _reconstruct(passes, qdq, reference, samples, folder) if passes else qdq
                minutes = (time.perf_counter() - start) / 60.0
                print(f"| {name} | {bits} | {text or 'nearest'} | {_top1(result, images, labels):.2f} | {minutes:.1f} |", flush=True)


def _reconstruct(text: str, qdq: Program, reference: Program, samples: Tensor, folder: Path | None) -> Program:
    manager = PassManager(parse_pipeline(text), directory=folder)
    return manager.run(qdq, CalibrationData(samples, qdq.inputs), reference=reference)


def _images(assets: Path, name: str, case: Case, every: int) -> tuple[Tensor, Tensor]:
    with np.load(assets / "cifar10" / name) as data:
        labels = data["labels"][::every] if "labels" in data else np.zeros(0, np.int64)
        return case.normalize(torch.from_numpy(data["images"][::every])), torch.from_numpy(labels)


def _top1(program: Program, images: Tensor, labels: Tensor) -> float:
    predictions = torch.cat([program.run(batch)[0].argmax(1) for batch in images.split(100)])
    return 100.0 * float((predictions == labels).double().mean())


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", nargs="+", choices=tuple(CASES), default=tuple(CASES))
    parser.add_argument("--bits", nargs="+", default=["w=3,a=4", "w=2,a=8"])
    parser.add_argument("--methods", nargs="+", help="pipelines after quantize; '' rounds to nearest")
    parser.add_argument("--integers", action="store_true")
    parser.add_argument("--samples", type=int, default=256, help="calibration images")
    parser.add_argument("--every", type=int, default=5, help="every how many of the 10,000 test images is measured")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
