"""How sensitivity metrics agree, and what they cost: rank correlations and seconds, as tables in markdown.

``PYTHONPATH=examples python benchmarks/sensitivity.py [--model resnet20|vit|efficientnet-lite0] [--samples 64] [--bits 4 ...]
[--batch 16] [--metrics NAME ...] [--synthesize] [--together]``

Correlations are Spearman's, over all weights and over all activations at one bit-width (over several, all metrics agree that fewer bits are
worse); the most memory that the process held is printed too. Networks and images lie in ``../shared/assets`` beside the repository
(``--assets``). One thread.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import qcompiler as qc
from accuracy import imagenet_task
from models import resnet_cifar, vit
from qcompiler.calibration.data import CalibrationData
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.measure import measure, measure_together
from qcompiler.passes.allocate.metrics.kl_divergence import KlDivergence
from qcompiler.passes.allocate.metrics.sqnr_output import SqnrOutput
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.registry import metric_names
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import ITEM_KINDS, ItemKind, SensitivityTable, rank_correlation

ROOT = Path(__file__).resolve().parent.parent
MODELS = ("resnet20", "vit", "efficientnet-lite0")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure by every metric and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--bits", type=int, nargs="+", default=[4], help="correlations are those of the first")
    parser.add_argument("--batch", type=int, default=16, help="samples at once")
    parser.add_argument("--metrics", nargs="+", default=metric_names())
    parser.add_argument("--synthesize", action="store_true", help="compare images and synthesized images too, by the loss")
    parser.add_argument("--together", action="store_true", help="also how far the sensitivities of single items add up")
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    options = parser.parse_args(arguments)
    if options.synthesize and "loss" not in options.metrics:
        parser.error("--synthesize compares tables of the metric 'loss': add it to --metrics")
    torch.set_num_threads(1)
    program, images = load(options.model, options.assets, options.samples)
    tables: dict[str, SensitivityTable] = {}
    seconds: dict[str, float] = {}
    for metric in options.metrics:
        start = time.perf_counter()
        tables[metric] = qc.sensitivity(program, images, metric, options.bits, samples=options.samples, batch=options.batch)
        seconds[metric] = time.perf_counter() - start
    print(f"{options.model}, {options.samples} images in pieces of {options.batch}, {' and '.join(map(str, options.bits))} bits\n")
    print_seconds(seconds)
    print(f"\nmost memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    for kind in ITEM_KINDS:
        print_correlations(tables, kind, options.bits[0])
    if options.together:
        print_together(program, images)
    if options.synthesize:
        print_synthesized(program, tables["loss"], options.samples, options.bits[0])


def load(model: str, assets: Path, samples: int) -> tuple[Program, Tensor]:
    """A captured network and calibration images, without labels."""
    if model == "efficientnet-lite0":
        task = imagenet_task(assets)
        images = task.normalize(task.calibration[:samples])
        return qc.capture(task.model, images[:1]), images
    if model == "vit":
        network, file = vit.load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors"), "cifar10_train_jpeg_2000.npz"
        normalize = vit.normalize_cifar
    else:
        network, file = resnet_cifar.load_resnet20(assets / "resnet20_cifar10" / "resnet20.safetensors"), "cifar10_calibration_lossless.npz"
        normalize = resnet_cifar.normalize
    with np.load(assets / "cifar10" / file) as data:
        images = normalize(torch.from_numpy(data["images"][:samples]))
    return qc.capture(network, images[:1]), images


def print_seconds(seconds: dict[str, float]) -> None:
    """One row for each metric."""
    print("| metric | seconds |\n|---|---|")
    for metric, value in seconds.items():
        print(f"| `{metric}` | {value:.1f} |")


def print_correlations(tables: dict[str, SensitivityTable], kind: ItemKind, bits: int) -> None:
    """Every metric against every other."""
    names = list(tables)
    print(f"\n{kind}s:\n\n| | {' | '.join(f'`{name}`' for name in names)} |\n|---|{'---|' * len(names)}")
    for first in names:
        cells = (f"{rank_correlation(tables[first], tables[second], bits=bits, kind=kind).spearman:.2f}" for second in names)
        print(f"| `{first}` | {' | '.join(cells)} |")


def print_together(program: Program, images: Tensor) -> None:
    """The sum over items of what each costs alone, and what all cost together."""
    prepared = PassManager(parse_pipeline("canonicalize")).run(program)
    data = CalibrationData(images, prepared.inputs)
    print("\n| bits | metric | sum over items | all together |\n|---|---|---|---|")
    for bits in (4, 6, 8):
        for metric in (SqnrOutput(), KlDivergence()):
            table = measure(prepared, metric, data, bits=(bits,), samples=len(images))
            together = measure_together(prepared, metric, data, dict.fromkeys(table.items, bits), samples=len(images))
            print(f"| W{bits}A{bits} | `{metric.name}` | {sum(table.rows.values()):.3g} | {together:.3g} |")


def print_synthesized(program: Program, real: SensitivityTable, samples: int, bits: int) -> None:
    """The same metric on images made of batch norms."""
    start = time.perf_counter()
    made = qc.synthesize(program, samples)
    seconds = time.perf_counter() - start
    table = qc.sensitivity(program, made, real.metric, (bits,), samples=samples)
    found = ", ".join(f"{kind}s {rank_correlation(real, table, bits=bits, kind=kind).spearman:.2f}" for kind in ITEM_KINDS)
    print(f"\n`{real.metric}` on images and on {samples} synthesized in {seconds:.0f} s: {found}")


if __name__ == "__main__":
    main()
