"""Vision transformers: DeiT (Touvron et al., "Training data-efficient image transformers", 2021) and a small one for CIFAR-10.

The names of the modules follow the usual ones (patch_embed, blocks.N.attn.qkv, blocks.N.mlp.fc1, norm, head).
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

CIFAR_MEAN, CIFAR_DEVIATION = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PatchEmbed(nn.Module):
    """An image as tokens: one convolution whose kernel is its stride."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(x)
        return tokens.flatten(2).transpose(1, 2)


class ConvolutionalStem(nn.Module):
    """Three 3x3 convolutions with batch norm and ReLU (strides 1, 2, 2), then a 1x1 projection: 32x32 pixels become 8x8 tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, stride in ((3, 48, 1), (48, 96, 2), (96, 192, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
        self.stem = nn.Sequential(*layers)
        self.proj = nn.Conv2d(192, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.proj(self.stem(x))
        return tokens.flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        result: Tensor = self.proj(attended.transpose(1, 2).reshape(batch, tokens, width))
        return result


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width, eps=1e-6), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width, eps=1e-6), Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class VisionTransformer(nn.Module):
    """Class token, learned positions, ``depth`` blocks, logits from the class token."""

    def __init__(self, patch_embed: nn.Module, patches: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.patch_embed = patch_embed
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x)[:, 0])
        return logits


def deit(width: int, heads: int, seed: int = 0) -> VisionTransformer:
    """DeiT for 224x224 images with patches of 16: 197 tokens, 12 blocks, 1000 classes; random weights."""
    torch.manual_seed(seed)
    model = VisionTransformer(PatchEmbed(16, width), 196, width, 12, heads, 1000)
    with torch.no_grad():
        for parameter in (model.cls_token, model.pos_embed):
            parameter.normal_(std=0.02)
    return model.eval()


def deit_tiny() -> VisionTransformer:
    """Width 192, 3 heads, 5.7 M parameters."""
    return deit(192, 3)


def deit_small() -> VisionTransformer:
    """Width 384, 6 heads, 22 M parameters."""
    return deit(384, 6)


def load_vit_cifar10(path: Path) -> VisionTransformer:
    """The network for CIFAR-10 (65 tokens of width 192, 6 blocks, 3 heads) with the weights of a safetensors file."""
    model = VisionTransformer(ConvolutionalStem(192), 64, 192, 6, 3, 10)
    model.load_state_dict(load_file(path))
    return model.eval()


def normalize_cifar(pixels: Tensor) -> Tensor:
    """uint8 RGB [N, 32, 32, 3] -> the network's input, float32 [N, 3, 32, 32]."""
    mean, deviation = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (CIFAR_MEAN, CIFAR_DEVIATION))
    return (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / deviation


def spread_channels(model: VisionTransformer, sigma: float = 1.2, seed: int = 0) -> VisionTransformer:
    """Give the LayerNorm outputs the spread between channels of large vision transformers; the function stays.

    Each output channel of a block's LayerNorm is multiplied by ``exp(sigma N(0, 1))``, and the matching input column of the next
    linear layer divided by it. Changes ``model`` in place and returns it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.blocks:
            assert isinstance(block, Block)  # what the model is made of
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                factor = torch.exp(sigma * torch.randn(norm.weight.numel(), generator=generator))
                norm.weight.mul_(factor)
                norm.bias.mul_(factor)
                linear.weight.div_(factor)
    return model
