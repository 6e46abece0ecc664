"""The example networks reproduce the accuracy known for their weights: the figures in the assets' READMEs, float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.efficientnet_lite import same_padding
from models.resnet_imagenet import resnet18, resnet50


def correct(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> int:
    with torch.inference_mode():
        return int((model(images).argmax(1) == labels).sum())


def test_resnet20_classifies_180_of_200(resnet20: nn.Module, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert correct(resnet20, *cifar10_test) == 180


def test_resnet56_classifies_182_of_200(resnet56: nn.Module, cifar10_test: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert correct(resnet56, *cifar10_test) == 182


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"), [(224, 3, 2, (0, 1)), (56, 5, 2, (1, 2)), (112, 3, 1, (1, 1)), (7, 1, 1, (0, 0))]
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == expected


def test_sizes_and_parameters(efficientnet_lite0: nn.Module) -> None:
    def parameters(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters())

    assert parameters(efficientnet_lite0) == 4_652_008
    assert parameters(resnet18()) == 11_689_512
    assert parameters(resnet50()) == 25_557_032
