"""A decoder as Llama has it (Touvron et al., 2023): RMSNorm, rotary positions, grouped queries, SwiGLU, causal attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class LlamaConfiguration:
    """Sizes; the defaults are small."""

    vocabulary: int = 256
    width: int = 64
    layers: int = 2
    heads: int = 4
    key_heads: int = 2
    hidden: int = 192
    positions: int = 32
    epsilon: float = 1e-5


def rotate_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary positions (Su et al., 2021): pair (i, i + d / 2) of a head is turned by an angle that grows with the position."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat([-second, first], -1) * sine


class Attention(nn.Module):
    """Causal self-attention; each key head serves several query heads."""

    def __init__(self, configuration: LlamaConfiguration) -> None:
        super().__init__()
        self.heads, self.key_heads = configuration.heads, configuration.key_heads
        size = configuration.width // configuration.heads
        self.q_proj = nn.Linear(configuration.width, configuration.heads * size, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(configuration.width, configuration.key_heads * size, bias=False) for _ in range(2))
        self.o_proj = nn.Linear(configuration.width, configuration.width, bias=False)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        q = self.q_proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.key_heads, -1)).transpose(1, 2) for layer in (self.k_proj, self.v_proj))
        q, k = rotate_pairs(q, cosine, sine), rotate_pairs(k, cosine, sine)
        k, v = (each[:, :, None].expand(-1, -1, self.heads // self.key_heads, -1, -1).flatten(1, 2) for each in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        result: Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return result


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, configuration: LlamaConfiguration) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(configuration.width, configuration.hidden, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(configuration.hidden, configuration.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return result


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, configuration: LlamaConfiguration) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(configuration.width, configuration.epsilon)
        self.self_attn = Attention(configuration)
        self.post_attention_layernorm = nn.RMSNorm(configuration.width, configuration.epsilon)
        self.mlp = Mlp(configuration)

    def forward(self, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cosine, sine)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Llama(nn.Module):
    """Token ids [N, positions] -> logits [N, positions, vocabulary]."""

    def __init__(self, configuration: LlamaConfiguration | None = None) -> None:
        super().__init__()
        configuration = configuration or LlamaConfiguration()
        self.embed_tokens = nn.Embedding(configuration.vocabulary, configuration.width)
        self.layers = nn.ModuleList(Block(configuration) for _ in range(configuration.layers))
        self.norm = nn.RMSNorm(configuration.width, configuration.epsilon)
        self.lm_head = nn.Linear(configuration.width, configuration.vocabulary, bias=False)
        size = configuration.width // configuration.heads
        angles = torch.arange(configuration.positions)[:, None] * 10000.0 ** (-torch.arange(0, size, 2) / size)
        self.register_buffer("cosine", angles.cos().repeat(1, 2))
        self.register_buffer("sine", angles.sin().repeat(1, 2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, self.cosine, self.sine)
        logits: Tensor = self.lm_head(self.norm(x))
        return logits
