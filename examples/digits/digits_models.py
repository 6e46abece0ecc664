"""The data and the two networks of the digits example: a small residual CNN and a small vision transformer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

WEIGHTS = Path(__file__).resolve().parent
TEST_IMAGES = 397


class DigitsCNN(nn.Module):
    """Four 3x3 convolutions with batch norm, one of them around a shortcut: [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv4, self.bn4 = nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.bn3(self.conv3(x)) + x)
        x = F.relu(self.bn4(self.conv4(x)))
        return self.head(x.mean(dim=(2, 3)))


class Attention(nn.Module):
    """Multi-head self-attention over tokens [N, T, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.query_key_value, self.projection = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        split = self.query_key_value(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = (part.transpose(1, 2) for part in split.unbind(2))
        weights = torch.softmax(query @ key.transpose(-2, -1) * self.scale, dim=-1)
        return self.projection((weights @ value).transpose(1, 2).reshape(batch, tokens, width))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then a two-layer perceptron with GELU, each around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.perceptron(self.norm2(x))


class DigitsViT(nn.Module):
    """16 patches of 2x2, width 64, 3 blocks, 4 heads, mean over the tokens: [N, 1, 8, 8] to logits [N, 10]."""

    def __init__(self, width: int = 64, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.positions = nn.Parameter(torch.randn(1, 16, width) * 0.02)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


NETWORKS: dict[str, type[nn.Module]] = {"cnn": DigitsCNN, "vit": DigitsViT}


@dataclass(frozen=True)
class Digits:
    """scikit-learn's 1797 digits, split by a fixed permutation; images [N, 1, 8, 8] in [-1, 1], labels [N]."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def load_data() -> Digits:
    """1400 images for training and calibration, 397 held out."""
    data = load_digits()
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    labels = torch.from_numpy(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    train, test = order[:-TEST_IMAGES], order[-TEST_IMAGES:]
    return Digits(images[train], labels[train], images[test], labels[test])


def weights_path(name: str) -> Path:
    """Where the committed weights of a network stand."""
    return WEIGHTS / f"digits_{name}.safetensors"


def load_network(name: str) -> nn.Module:
    """A trained network in evaluation mode; ``name`` is a key of NETWORKS."""
    network = NETWORKS[name]()
    network.load_state_dict(safetensors.torch.load_file(weights_path(name)))
    return network.eval()
