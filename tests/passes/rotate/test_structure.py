"""What is found by structure alone, and the reasons for what is left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

TOLERANCE = 1e-4


class Bottlenecks(nn.Module):
    """Inverted residual blocks: between them channels that no function touches (MobileNetV2, EfficientNet)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.expand, self.project = (nn.ModuleList(nn.Conv2d(a, b, 1) for _ in range(2)) for a, b in ((12, 24), (24, 12)))
        self.depthwise = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1, groups=24) for _ in range(2))
        self.head = nn.Conv2d(12, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for expand, depthwise, project in zip(self.expand, self.depthwise, self.project, strict=True):
            x = x + project(F.relu6(depthwise(F.relu6(expand(x)))))
        return self.head(x).mean((2, 3))


class Residual(nn.Module):
    """Two ResNet blocks: relu behind each sum."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.layers[0](x))
        for layer in self.layers[1:]:
            x = F.relu(x + layer(x))
        return x


class Norms(nn.Module):
    """``function(module, x)`` over a stream made by a layer."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.make, self.read = function, nn.Linear(6, 16), nn.Linear(16, 4)
        self.norm, self.other, self.wide = nn.LayerNorm(16), nn.LayerNorm(16), nn.LayerNorm(32)
        for norm in (self.norm, self.other, self.wide):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, self.make(x))


def test_channels_of_linear_bottlenecks_rotate(network_of: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    network = network_of(Bottlenecks(), torch.randn(2, 3, 9, 7))
    for kind in ("hadamard", "pca"):
        after = network.after(f"rotate-residual-stream{{kind={kind}}}")
        assert network.difference(after) < TOLERANCE
        assert "stream of 12 channels" in network.notes(after)
        assert network.text_of_weights(after) != network.text_of_weights(network.program)


class Scores(nn.Module):
    """Queries and keys with so many heads of 8; those of the fewer ones serve several."""

    def __init__(self, query_heads: int, key_heads: int) -> None:
        super().__init__()
        self.heads = max(query_heads, key_heads)
        self.query, self.key = nn.Linear(16, 8 * query_heads), nn.Linear(16, 8 * key_heads)

    def split(self, x: Tensor) -> Tensor:
        heads = x.unflatten(-1, (-1, 8)).transpose(1, 2)
        count = heads.shape[1]
        return heads[:, :, None].expand(-1, -1, self.heads // count, -1, -1).reshape(x.shape[0], self.heads, x.shape[1], 8)

    def forward(self, x: Tensor) -> Tensor:
        return (self.split(self.query(x)) @ self.split(self.key(x)).transpose(-1, -2)).softmax(-1)


@pytest.mark.parametrize("kind", ["hadamard", "pca"])
@pytest.mark.parametrize(("heads", "note"), [((4, 2), "4 pairs of heads of 8"), ((2, 4), "meets several heads of keys")])
def test_heads_that_serve_several(heads: tuple[int, int], note: str, kind: str, network_of: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    network = network_of(Scores(*heads), torch.randn(2, 5, 16))
    after = network.after(f"rotate-query-key{{kind={kind}}}")
    assert note in network.notes(after)
    assert network.difference(after) < TOLERANCE


def test_relu_behind_the_sum_is_the_reason(network_of: Callable[..., Any]) -> None:
    network = network_of(Residual(), torch.randn(2, 8, 6, 6))
    after = network.after("rotate-residual-stream")
    assert "stream of 8 channels from 'conv2d_1'" in network.notes(after) and "left alone: 'relu_1'" in network.notes(after)


DECLINED: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "a layer reads the stream itself": (lambda m, x: m.read(m.norm(x)) + m.read(x), "reads it without a norm"),
    "the norm is the stream": (lambda m, x: m.read(m.other(m.norm(x) + x) + 0), "whose scale is part of the stream"),
    "an output is the stream": (lambda m, x: (m.read(m.norm(x)), x), "it is an output of the program"),
    "a norm of two positions": (lambda m, x: (m.read(m.norm(x)), m.wide(x.reshape(-1, 4, 32))), "across channels"),
    "a function reads the norm": (lambda m, x: m.read(m.norm(x).relu()), "a shift does not pass"),
}


@pytest.mark.parametrize("name", DECLINED)
def test_reasons_of_layer_norms(name: str, network_of: Callable[..., Any]) -> None:
    function, reason = DECLINED[name]
    network = network_of(Norms(function), torch.randn(2, 8, 6))
    after = network.after("layer-norm-to-rms-norm")
    assert reason in network.notes(after)
    assert network.difference(after) < TOLERANCE


def test_one_norm_of_a_stream_may_stay(network_of: Callable[..., Any]) -> None:
    """The mean is gone from the stream; a layer norm does not mind."""
    network = network_of(Norms(lambda m, x: m.read(m.norm(x)) + m.other(x)[..., :4]), torch.randn(2, 8, 6))
    after = network.after("layer-norm-to-rms-norm")
    targets = [str(node.target) for node in after.graph.nodes]
    assert targets.count("aten.rms_norm.default") == targets.count("aten.layer_norm.default") == 1
    assert network.difference(after) < TOLERANCE


def test_nothing_to_do(network_of: Callable[..., Any]) -> None:
    network = network_of(nn.Sequential(nn.Linear(6, 4)), torch.randn(2, 6))
    for item in ("layer-norm-to-rms-norm", "rotate-residual-stream", "rotate-value-output", "rotate-query-key", "rotate-mlp"):
        after = network.after(item)
        assert "nothing to do: no" in network.notes(after), item


def test_blocks_of_an_online_transform(network_of: Callable[..., Any]) -> None:
    network = network_of(nn.Sequential(nn.Linear(6, 48), nn.GELU(), nn.Linear(48, 4)), torch.randn(2, 6))
    after = network.after("rotate-mlp{block=16}")
    assert "3 blocks of 16" in network.notes(after)
    assert network.difference(after) < TOLERANCE
    assert "left alone: 48 channels have no blocks of 32" in network.notes(network.after("rotate-mlp{block=32}"))
