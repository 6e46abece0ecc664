"""One artifact for every batch and every sequence length: a small BERT from the model to the library."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import qcompiler as qc
from models.bert import BertConfiguration, SentenceEncoder
from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program
from qcompiler.ir.types import DynamicSize

LENGTH = DynamicSize("sequence", 1, 24)
WORDS = 40
CALLS = [(batch, length) for batch in (1, 2, 5) for length in (1, 7, 24)]


def sentences(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask; each sentence is shorter than the one before."""
    random = torch.Generator().manual_seed(batch * 100 + length)
    kept = torch.tensor([max(1, length - 3 * index) for index in range(batch)])
    return torch.randint(0, WORDS, (batch, length), generator=random), (torch.arange(length) < kept[:, None]).to(torch.int64)


@pytest.fixture(scope="module")
def model() -> SentenceEncoder:
    torch.manual_seed(0)
    return SentenceEncoder(BertConfiguration(vocabulary=WORDS, width=32, layers=1, heads=2, hidden=64, positions=48)).eval()


@pytest.fixture(scope="module")
def quantized(model: SentenceEncoder) -> Program:
    captured = qc.capture(model, sentences(1, 8), dynamic_shapes={"ids": {1: LENGTH}, "mask": {1: LENGTH}})
    return qc.quantize(captured, [sentences(4, length) for length in (5, 12, 24)])


def test_integers_are_close_to_the_floats_at_every_length(model: SentenceEncoder, quantized: Program) -> None:
    assert [spec.shape for spec in quantized.inputs] == [(None, LENGTH), (None, LENGTH)]
    for batch, length in CALLS:
        inputs = sentences(batch, length)
        similar = torch.nn.functional.cosine_similarity(quantized.run(*inputs)[0], model(*inputs))
        assert similar.min() > 0.99, (batch, length)


@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64-vnni"])
def test_one_artifact_equals_the_reference_for_every_batch_and_length(target: str, quantized: Program, tmp_path: Path) -> None:
    qc.compile(quantized, target=target, threads=1).save(tmp_path / "model.qca")
    module = qc.load(tmp_path / "model.qca", threads=1)
    assert module.program.text() == quantized.text()
    for batch, length in CALLS:
        inputs = sentences(batch, length)
        assert torch.equal(module.run_integer(*inputs)[0], quantized.run_integer(*inputs)[0]), (batch, length)
    module.verify()


def test_wrong_inputs_are_named(quantized: Program) -> None:
    module = qc.compile(quantized, target="reference")
    ids, mask = sentences(2, 9)
    with pytest.raises(QCompilerError, match="inputs 'ids' and 'mask' must agree in 'sequence', got 9 and 8"):
        module(ids, mask[:, :8])
    with pytest.raises(QCompilerError, match=r"input 'ids': expected torch.int64 \[N, sequence \(1 to 24\)\], got torch.int64 \[2, 27\]"):
        module(ids.repeat(1, 3), mask.repeat(1, 3))
    with pytest.raises(QCompilerError, match=r"input 'ids' holds 40, but its integers must lie in \[0, 39\]"):
        module(ids.clamp(min=WORDS), mask)


@pytest.mark.slow
def test_bert_of_transformers_as_it_is() -> None:
    """Both of its outputs, from the module that users have to compiled code."""
    transformers = pytest.importorskip("transformers", reason="needs the library transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "max_position_embeddings": 48}
    model = transformers.BertModel(transformers.BertConfig(vocab_size=WORDS, **sizes)).eval()
    captured = qc.capture(model, sentences(1, 8), dynamic_shapes={"input_ids": {1: LENGTH}, "attention_mask": {1: LENGTH}})
    quantized = qc.quantize(captured, [sentences(4, length) for length in (5, 12, 24)])
    module = qc.compile(quantized, target="x86-64-vnni", threads=1)
    for batch, length in CALLS:
        ids, mask = sentences(batch, length)
        states, pooled = module(ids, mask)
        assert all(torch.equal(*pair) for pair in zip(quantized(ids, mask), (states, pooled), strict=True)), (batch, length)
        wanted = model(input_ids=ids, attention_mask=mask)
        kept = mask.bool()
        assert torch.nn.functional.cosine_similarity(states[kept], wanted.last_hidden_state[kept]).mean() > 0.99
        assert torch.nn.functional.cosine_similarity(pooled, wanted.pooler_output).min() > 0.98
