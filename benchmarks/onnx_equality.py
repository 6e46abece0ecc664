"""Integer-only ONNX of the four networks against the reference: 100 inputs each, integers compared by equality.

``PYTHONPATH=examples python benchmarks/onnx_equality.py [--networks resnet20 efficientnet-lite0 vit minilm] [--inputs 100]``

Each network is quantized by the recipe ``int8``, exported, and run by onnxruntime on one thread without graph optimizations, in
batches of several sizes. Printed: how many inputs gave equal outputs, nodes, megabytes, and milliseconds an input in the largest batch.
Networks and images lie in ``../shared/assets`` beside the repository (``--assets``).
"""

from __future__ import annotations

import argparse
import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image

import qcompiler as qc
from models import efficientnet_lite, resnet_cifar, vit
from models.bert import load_minilm
from qcompiler.ir.types import DynamicSize
from results import vit_calibration

ROOT = Path(__file__).resolve().parent.parent
BATCHES = (1, 2, 5, 12)  # then the rest
LENGTHS = (5, 16, 33, 64)
VOCABULARY = 30522
Inputs = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Network:
    """A program with calibration inputs, and the batches to be compared."""

    program: qc.Program
    calibration: Sequence[Inputs]
    batches: Sequence[Inputs]


def resnet20(assets: Path, count: int) -> Network:
    """CIFAR-10, lossless images."""
    model = resnet_cifar.load_resnet20(assets / "resnet20_cifar10" / "resnet20.safetensors")
    calibration, test = (_images(assets / "cifar10" / name) for name in ("cifar10_calibration_lossless.npz", "ic01_200.npz"))
    calibration, test = resnet_cifar.normalize(calibration[:100]), resnet_cifar.normalize(test[:count])
    return Network(qc.capture(model, test[:2]), [(x,) for x in calibration.split(20)], _split(test))


def efficientnet_lite0(assets: Path, count: int) -> Network:
    """ImageNet crops."""
    with tarfile.open(assets / "imagenet_sample" / "imagenet_sample_224.tar") as archive:
        streams = (archive.extractfile(member) for member in archive.getmembers())
        pixels = [np.asarray(Image.open(io.BytesIO(s.read())).convert("RGB")).copy() for s in islice(filter(None, streams), count)]
    images = efficientnet_lite.normalize(torch.from_numpy(np.stack(pixels)))
    program = qc.capture(efficientnet_lite.load_efficientnet_lite0(), images[:2])
    return Network(program, [(x,) for x in images[:16].split(4)], _split(images))


def vit_cifar10(assets: Path, count: int) -> Network:
    """CIFAR-10 at 32 pixels."""
    images = torch.cat(vit_calibration(assets))
    program = qc.capture(vit.load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors"), images[:2])
    return Network(program, [(x,) for x in images[:32].split(8)], _split(images[-count:]))


def minilm(assets: Path, count: int) -> Network:
    """Random sentences of four lengths, padded by masks."""
    calibration = [_sentences(4, length) for length in (8, 16)]
    sequence = DynamicSize("sequence", 2, max(LENGTHS))
    program = qc.capture(load_minilm(), calibration[0], dynamic_shapes={"ids": {1: sequence}, "mask": {1: sequence}})
    each = max(1, count // len(LENGTHS))
    sizes = [1, each - 1] if each > 1 else [1]
    return Network(program, calibration, [_sentences(batch, length) for length in LENGTHS for batch in sizes])


NETWORKS: dict[str, Callable[[Path, int], Network]] = {
    "resnet20": resnet20,
    "efficientnet-lite0": efficientnet_lite0,
    "vit": vit_cifar10,
    "minilm": minilm,
}


def compare(name: str, network: Network) -> str:
    """One row of the table."""
    program = qc.quantize(network.program, network.calibration)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        qc.export_onnx(program, path)
        nodes, size = len(onnx.load(path).graph.node), path.stat().st_size / 1e6
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options)
    names = [entry.name for entry in session.get_inputs()]
    equal = total = 0
    milliseconds = 0.0
    for batch in network.batches:
        start = time.perf_counter()
        found = session.run(None, {key: value.numpy() for key, value in zip(names, batch, strict=True)})
        milliseconds = (time.perf_counter() - start) * 1e3 / len(batch[0])
        wanted = program.run(*batch)
        same = [torch.equal(want, torch.from_numpy(got)) for want, got in zip(wanted, found, strict=True)]
        total += len(batch[0])
        equal += len(batch[0]) if all(same) else 0
    sizes = ", ".join(str(len(batch[0])) for batch in network.batches)
    return f"| {name} | {equal} of {total} | {sizes} | {nodes} | {size:.1f} | {milliseconds:.1f} |"


def _images(path: Path) -> torch.Tensor:
    with np.load(path) as data:
        return torch.from_numpy(data["images"])


def _split(images: torch.Tensor) -> list[Inputs]:
    sizes = [size for position, size in enumerate(BATCHES) if sum(BATCHES[: position + 1]) < len(images)]
    return [(batch,) for batch in images.split([*sizes, len(images) - sum(sizes)])]


def _sentences(batch: int, length: int) -> Inputs:
    random = torch.Generator().manual_seed(batch * 1000 + length)
    ids = torch.randint(0, VOCABULARY, (batch, length), generator=random)
    real = torch.randint(1, length + 1, (batch, 1), generator=random)
    return ids, (torch.arange(length) < real).long()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--inputs", type=int, default=100)
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | equal | batches | nodes | MB | ms an input |\n|---|---|---|---|---|---|")
    for name in arguments.networks:
        print(compare(name, NETWORKS[name](arguments.assets, arguments.inputs)), flush=True)


if __name__ == "__main__":
    main()
