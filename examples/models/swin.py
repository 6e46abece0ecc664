"""Swin Transformer: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", 2021.

The names of the modules follow the authors' code (patch_embed, layers.N.blocks.M.attn.qkv, layers.N.downsample.reduction, norm, head),
and so does the way in which windows join the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class SwinConfiguration:
    """Sizes; the defaults are those of Swin-T for images of 224x224."""

    image: int = 224
    patch: int = 4
    width: int = 96
    depths: Sequence[int] = (2, 2, 6, 2)
    heads: Sequence[int] = (3, 6, 12, 24)
    window: int = 7
    classes: int = 1000


def partition(x: Tensor, window: int) -> Tensor:
    """[B, H, W, C] -> [B * windows, window * window, C]."""
    batch, height, width, channels = x.shape
    x = x.view(batch, height // window, window, width // window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, window * window, channels)


def join(windows: Tensor, window: int, height: int, width: int) -> Tensor:
    """The inverse of ``partition``."""
    channels = windows.shape[-1]
    x = windows.view(-1, height // window, width // window, window, window, channels)
    return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, height, width, channels)


def relative_positions(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window (section 3.2): int64 [window², window²]."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()])
    differences = places[:, :, None] - places[:, None, :] + window - 1
    return differences[0] * (2 * window - 1) + differences[1]


def shifted_mask(size: int, window: int, shift: int) -> Tensor:
    """-100 between positions of a shifted window that are no neighbours in the image (figure 4): [windows, window², window²]."""
    regions = torch.zeros(1, size, size, 1)
    bounds = (slice(0, -window), slice(-window, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((rows, columns) for rows in bounds for columns in bounds):
        regions[:, rows, columns, :] = number
    regions = partition(regions, window).squeeze(-1)
    apart = regions[:, None, :] != regions[:, :, None]
    return torch.zeros(apart.shape).masked_fill(apart, -100.0)


class WindowAttention(nn.Module):
    """Multi-head attention inside windows with a bias for each relative position."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        windows, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(windows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]  # type: ignore[operator]  # a buffer
        scores = scores + bias.view(tokens, tokens, -1).permute(2, 0, 1).contiguous().unsqueeze(0)
        if mask is not None:
            count = mask.shape[0]
            scores = scores.view(windows // count, count, self.heads, tokens, tokens) + mask.unsqueeze(1).unsqueeze(0)
            scores = scores.view(-1, self.heads, tokens, tokens)
        attended = (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(windows, tokens, width)
        result: Tensor = self.proj(attended)
        return result


class Mlp(nn.Module):
    """Two linear layers with GELU between."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class Block(nn.Module):
    """Attention in windows, shifted or not, and a perceptron, each behind a LayerNorm."""

    def __init__(self, size: int, width: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.size, self.window, self.shift = size, window, shift
        self.norm1, self.attn = nn.LayerNorm(width), WindowAttention(width, heads, window)
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)
        self.register_buffer("attn_mask", shifted_mask(size, window, shift) if shift else None)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.norm1(x).view(batch, self.size, self.size, width)
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn(partition(y, self.window), self.attn_mask)
        y = join(y, self.window, self.size, self.size)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y.reshape(batch, tokens, width)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class PatchMerging(nn.Module):
    """Four neighbouring tokens become one of twice the width."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.size = size
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        x = x.view(batch, self.size, self.size, width)
        x = torch.cat([x[:, row::2, column::2, :] for column in (0, 1) for row in (0, 1)], -1)
        merged: Tensor = self.reduction(self.norm(x.view(batch, -1, 4 * width)))
        return merged


class Stage(nn.Module):
    """Blocks at one resolution, every second one with shifted windows, and the merging of patches behind all but the last stage."""

    def __init__(self, size: int, width: int, depth: int, heads: int, window: int, merges: bool) -> None:
        super().__init__()
        window = min(window, size)
        shifts = [window // 2 if position % 2 and size > window else 0 for position in range(depth)]
        self.blocks = nn.ModuleList(Block(size, width, heads, window, shift) for shift in shifts)
        self.downsample = PatchMerging(size, width) if merges else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class PatchEmbed(nn.Module):
    """An image as tokens, normalized."""

    def __init__(self, patch: int, width: int) -> None:
        super().__init__()
        self.proj, self.norm = nn.Conv2d(3, width, patch, patch), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.proj(x).flatten(2).transpose(1, 2))
        return tokens


class SwinTransformer(nn.Module):
    """Images [B, 3, H, W] -> logits [B, classes] from the mean over the last tokens."""

    def __init__(self, configuration: SwinConfiguration | None = None) -> None:
        super().__init__()
        c = configuration or SwinConfiguration()
        self.patch_embed = PatchEmbed(c.patch, c.width)
        self.layers = nn.ModuleList()
        for position, (depth, heads) in enumerate(zip(c.depths, c.heads, strict=True)):
            size, width = c.image // c.patch >> position, c.width << position
            self.layers.append(Stage(size, width, depth, heads, c.window, position < len(c.depths) - 1))
        last = c.width << (len(c.depths) - 1)
        self.norm, self.head = nn.LayerNorm(last), nn.Linear(last, c.classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x).mean(1))
        return logits


def random_swin(configuration: SwinConfiguration | None = None, seed: int = 0) -> SwinTransformer:
    """Random weights, the biases of relative positions too."""
    torch.manual_seed(seed)
    model = SwinTransformer(configuration)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                parameter.normal_(std=0.5)
    return model.eval()
