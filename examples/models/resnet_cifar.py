"""ResNet-20 and ResNet-56 for CIFAR-10 (He et al., "Deep Residual Learning for Image Recognition", 2015, section 4.2).

Shortcuts are "option A": no parameters; every second row and column, new channels padded with zeros on both sides.
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

MEAN, STANDARD_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around an option-A shortcut."""

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, planes, 3, stride, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False), nn.BatchNorm2d(planes)
        self.shrinks = inputs != planes
        self.new_channels = planes // 4

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.shrinks:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.new_channels, self.new_channels))
        return F.relu(y + x)


class ResNetCifar(nn.Module):
    """Depth 6n + 2 with n blocks a group: [N, 3, 32, 32] to logits [N, 10]."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.layer1 = self._group(16, 16, 1, blocks)
        self.layer2 = self._group(16, 32, 2, blocks)
        self.layer3 = self._group(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _group(inputs: int, planes: int, stride: int, blocks: int) -> nn.Sequential:
        return nn.Sequential(BasicBlock(inputs, planes, stride), *(BasicBlock(planes, planes, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean(dim=(2, 3)))


def normalize(images: Tensor) -> Tensor:
    """uint8 RGB [N, 32, 32, 3] to the network's float input [N, 3, 32, 32]: (x / 255 - mean) / standard deviation."""
    mean, deviation = torch.tensor(MEAN), torch.tensor(STANDARD_DEVIATION)
    return ((images.float() / 255 - mean) / deviation).permute(0, 3, 1, 2).contiguous()


def load_resnet20(path: Path) -> ResNetCifar:
    """ResNet-20 in evaluation mode with the weights of a safetensors file."""
    return _load(3, path)


def load_resnet56(path: Path) -> ResNetCifar:
    """ResNet-56 in evaluation mode with the weights of a safetensors file."""
    return _load(9, path)


def _load(blocks: int, path: Path) -> ResNetCifar:
    model = ResNetCifar(blocks)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()
