"""Latency at batch 1 beside the peers: qcompiler on every available target, onnxruntime, OpenVINO and torch, in one run.

``make bench`` runs it, or ``PYTHONPATH=examples python benchmarks/compare.py [--models resnet18] [--threads 1] [--peers PYTHON]``.
Each engine lives in a process of its own and gets the same inputs; the engines take turns, round after round, so that what else the
machine does falls on all alike. Reported are medians over all inferences. Without ``--peers`` (the interpreter of ``make peers``)
OpenVINO is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from rich.console import Console
from torch import nn

import qcompiler as qc
from models.bert import BertConfiguration, random_minilm
from models.efficientnet_lite import load_efficientnet_lite0
from models.resnet_imagenet import resnet18, resnet50
from models.vit import deit_small, deit_tiny
from onnxruntime_models import Sample, export_float, quantize_u8s8
from qcompiler import native
from qcompiler.pipeline import registry

HERE = Path(__file__).resolve().parent
REFERENCE = "onnxruntime int8 (U8S8)"
CALIBRATION_SAMPLES = 8
SENTENCE = 128  # tokens
WARMUP = 5
console = Console(stderr=True)


@dataclass(frozen=True)
class Workload:
    """A network and how its samples are made, each a batch of one; transformers have settings of their own in NNCF."""

    model: Callable[[], nn.Module]
    samples: Callable[[], list[Sample]]
    transformer: bool = False


def images() -> list[Sample]:
    """Noise of 224x224: the time of none of the engines depends on what it computes."""
    pixels = np.random.default_rng(0).standard_normal((CALIBRATION_SAMPLES, 3, 224, 224), dtype=np.float32)
    return [(image,) for image in torch.from_numpy(pixels).split(1)]


def sentences() -> list[Sample]:
    """Random token ids without padding, and their mask."""
    ids = np.random.default_rng(0).integers(0, BertConfiguration().vocabulary, (CALIBRATION_SAMPLES, SENTENCE))
    return [(row, torch.ones_like(row)) for row in torch.from_numpy(ids).split(1)]


WORKLOADS: dict[str, Workload] = {
    "resnet18": Workload(resnet18, images),
    "resnet50": Workload(resnet50, images),
    "efficientnet-lite0": Workload(load_efficientnet_lite0, images),
    "deit-tiny": Workload(deit_tiny, images, transformer=True),
    "deit-small": Workload(deit_small, images, transformer=True),
    "minilm": Workload(random_minilm, sentences, transformer=True),
}


@dataclass(frozen=True)
class Contender:
    """One row: an engine of ``worker.py``, the interpreter it runs in, and the file it loads."""

    label: str
    engine: str
    python: str
    model: Path


class Worker:
    """A contender in a process of its own."""

    def __init__(self, contender: Contender, inputs: Path, threads: int) -> None:
        command = [contender.python, str(HERE / "worker.py")]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._label = contender.label
        configuration = {"engine": contender.engine, "model": str(contender.model), "inputs": str(inputs), "threads": threads}
        self._ask({**configuration, "warmup": WARMUP})

    def run(self, runs: int) -> list[float]:
        """Milliseconds of ``runs`` inferences."""
        return [float(value) for value in self._ask({"runs": runs})["milliseconds"]]

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.communicate()

    def _ask(self, request: Mapping[str, object]) -> dict[str, list[float]]:
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the worker was started without pipes")
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        if not reply:
            raise RuntimeError(f"{self._label} stopped: {self._process.communicate()[1].strip()[-2000:]}")
        return dict(json.loads(reply))


def available_targets() -> list[str]:
    """Targets whose code this machine can run, apart from the reference interpreter."""
    return [name for name in registry.target_names() if name != "reference" and registry.find_target(name)[0].available(name) is None]


def prepare(name: str, folder: Path, peers: str | None) -> list[Contender]:
    """Make every file that the contenders load, from one float model and the same calibration samples."""
    folder.mkdir(parents=True, exist_ok=True)
    workload = WORKLOADS[name]
    model, samples = workload.model(), workload.samples()
    _save_samples(folder / "inputs.npz", samples[:1])
    _save_samples(folder / "calibration.npz", samples)
    torch.export.save(torch.export.export(model, samples[0]), folder / "float.pt2")
    export_float(model, samples[0], folder / "float.onnx")
    quantize_u8s8(folder / "float.onnx", samples, folder / "int8.onnx")
    contenders = [
        Contender("torch float32 (eager)", "torch", sys.executable, folder / "float.pt2"),
        Contender("onnxruntime float32", "onnxruntime", sys.executable, folder / "float.onnx"),
        Contender(REFERENCE, "onnxruntime", sys.executable, folder / "int8.onnx"),
    ]
    if peers is not None:
        contenders += openvino_contenders(folder, peers, workload.transformer)
    program = qc.quantize(qc.capture(model, samples[0]), samples)
    for target in available_targets():
        artifact = folder / f"{target}.qca"
        qc.compile(program, target=target).save(artifact)
        contenders.append(Contender(f"qcompiler {target}", "qcompiler", sys.executable, artifact))
    return contenders


def openvino_contenders(folder: Path, peers: str, transformer: bool) -> list[Contender]:
    """OpenVINO's own precision on the float model (bf16 where the CPU has it), and int8 by NNCF."""
    quantized = folder / "openvino.xml"
    arguments = [folder / "float.onnx", folder / "calibration.npz", quantized, *(["--transformer"] if transformer else [])]
    subprocess.run([peers, HERE / "openvino_quantize.py", *arguments], check=True, stdout=subprocess.DEVNULL)
    return [
        Contender("OpenVINO float (default hint)", "openvino-default", peers, folder / "float.onnx"),
        Contender("OpenVINO int8 (NNCF, default hint)", "openvino-default", peers, quantized),
        Contender("OpenVINO int8 (NNCF, f32 hint)", "openvino", peers, quantized),
    ]


def _save_samples(path: Path, samples: Sequence[Sample]) -> None:
    """One array for each input, samples along the first axis, named so that their order is that of the inputs."""
    columns = [torch.cat(column).numpy() for column in zip(*samples, strict=True)]
    np.savez(path, **{f"input{position}": column for position, column in enumerate(columns)})


def measure(contenders: Iterable[Contender], inputs: Path, threads: int, rounds: int, runs: int) -> dict[str, float]:
    """Median milliseconds of each contender; they take turns in every round."""
    with ExitStack() as stack:
        workers = {contender.label: stack.enter_context(Worker(contender, inputs, threads)) for contender in contenders}
        times: dict[str, list[float]] = {label: [] for label in workers}
        for _ in range(rounds):
            for label, worker in workers.items():
                times[label] += worker.run(runs)
    return {label: statistics.median(values) for label, values in times.items()}


def machine() -> dict[str, object]:
    """What the figures depend on besides the code."""
    packages = ("qcompiler", "torch", "onnxruntime", "apache-tvm")
    return {
        "processor": platform.processor() or platform.machine(),
        "instruction sets": sorted(native.cpu_features()),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def markdown(results: Mapping[str, Mapping[str, float]]) -> str:
    """A table: one row a contender, one column a model and thread count; milliseconds and, in brackets, onnxruntime int8 time over it."""
    columns = list(results)
    labels = dict.fromkeys(label for column in results.values() for label in column)
    lines = ["| median ms (times faster than onnxruntime int8) | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for label in labels:
        cells = []
        for column in columns:
            median = results[column].get(label)
            cells.append("" if median is None else f"{median:.2f} ({results[column][REFERENCE] / median:.2f})")
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Latency at batch 1 beside the peers.")
    parser.add_argument("--models", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each engine")
    parser.add_argument("--runs", type=int, default=5, help="inferences in a turn")
    parser.add_argument("--peers", help="Python interpreter of the environment with OpenVINO ('make peers')")
    parser.add_argument("--output", type=Path, default=HERE.parent / "build" / "benchmarks")
    return parser.parse_args()


def main() -> None:
    """Prepare, measure, print the table and write it beside the JSON."""
    arguments = parse_arguments()
    results: dict[str, dict[str, float]] = {}
    for name in arguments.models:
        console.print(f"{name}: quantizing and compiling for every engine", highlight=False)
        contenders = prepare(name, arguments.output / name, arguments.peers)
        for threads in arguments.threads:
            console.print(f"{name}: measuring on {threads} thread(s)", highlight=False)
            inputs = arguments.output / name / "inputs.npz"
            results[f"{name}, {threads} thread(s)"] = measure(contenders, inputs, threads, arguments.rounds, arguments.runs)
    table = markdown(results)
    (arguments.output / "latency.md").write_text(table)
    (arguments.output / "latency.json").write_text(json.dumps({"machine": machine(), "median milliseconds": results}, indent=1) + "\n")
    print(table, end="")


if __name__ == "__main__":
    main()
