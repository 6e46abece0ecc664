from __future__ import annotations

import torch

from qcompiler.arithmetic import bucketize, decode, embedding, encode


def test_bucketize_counts_the_boundaries_that_are_reached() -> None:
    x, boundaries = torch.arange(-5, 9, dtype=torch.int16), torch.tensor([-3, 0, 0, 7], dtype=torch.int32)
    expected = [sum(int(boundary) <= int(value) for boundary in boundaries) for value in x]
    assert bucketize(x, boundaries).tolist() == expected


def test_encode_and_decode() -> None:
    codes = encode(torch.tensor([-1.0, 0.1, 0.25, 3.0, float("inf")]), [0.1, 0.5, 2.0])
    assert codes.tolist() == [0, 1, 1, 3, 3]
    assert torch.equal(decode(codes, [0.0, 0.3, 1.0, 4.0]), torch.tensor([0.0, 0.3, 0.3, 4.0, 4.0]))


def test_embedding_takes_rows() -> None:
    weight = torch.arange(12, dtype=torch.int8).reshape(4, 3)
    assert embedding(weight, torch.tensor([[3, 0]])).tolist() == [[[9, 10, 11], [0, 1, 2]]]
