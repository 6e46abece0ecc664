"""What rotations give at W4A4 and W4A8 on trained transformers, as integers: writes the tables of ``docs/rotation.md``.

``PYTHONPATH=examples python benchmarks/rotation.py [--tables vit-w4a4 ...] [--rows REGEX] [--again]``

Every row is a pipeline that ends in an integer-only program, compiled for this machine. Figures are kept in ``build/results``, so that a
run that was cut short goes on where it was. 1,000 test images of CIFAR-10 (every tenth JPEG), 460 pairs of STS-B (every third of the test).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

import torch

import results
import sentences
from models.bert import load_minilm
from results import MINILM_COLUMNS, VIT_COLUMNS, Figures, Row, Table

BEGIN, END = "<!-- results: begin, written by benchmarks/rotation.py -->", "<!-- results: end -->"

IMAGE_STEP, PAIR_STEP = 10, 3
PRE_NORM = "layer-norm-to-rms-norm,rotate-residual-stream{{kind={kind}}}"
HEADS = "rotate-value-output,rotate-query-key"
REPQ = "reparameterize-layer-norm{{bits={a}}}"
QUANTIZE = "quantize{{w=4,a={a},score_bits=8,function_bits=8,edge_bits=8{probabilities}}}"


@functools.cache
def _pairs(assets: Path) -> sentences.Pairs:
    whole = sentences.read_pairs(assets / "stsb" / "sts-test.csv")
    return sentences.Pairs(whole.first[::PAIR_STEP], whole.second[::PAIR_STEP], whole.scores[::PAIR_STEP])


@functools.cache
def _minilm_floats(assets: Path) -> tuple[float, torch.Tensor]:
    return sentences.spearman(load_minilm(), _pairs(assets))


def measure_minilm(assets: Path, row: Row) -> Figures:
    """As ``results.measure_minilm``, on every third pair."""
    correlation, expected = _minilm_floats(assets)
    found = expected
    if not row.is_float:
        data = _padded(results.minilm_calibration(assets)) if "gptq" in str(row.passes) else results.minilm_calibration(assets)
        module = results.compiled(load_minilm(), data[0], data, row, dynamic=True)
        correlation, found = sentences.spearman(module, _pairs(assets))
    cosines = torch.nn.functional.cosine_similarity(expected, found)
    return {"pairs": len(expected) // 2, "spearman": correlation, "cosine": float(cosines.mean()), "least": float(cosines.min())}


def _padded(batches: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """All of one length, as reconstruction wants them; what is padded is masked."""
    longest = max(ids.shape[1] for ids, _ in batches)

    def pad(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, longest - values.shape[1]))

    return [(pad(ids), pad(mask)) for ids, mask in batches]


def _row(name: str, a: int, *before: str, after: str = "", kind: str = "hadamard") -> Row:
    probabilities = ",probability_quantizer=log-sqrt2" if a < 8 else ""
    parts = [part.format(kind=kind, a=a) for part in before]
    return Row(name, passes=",".join([*parts, QUANTIZE.format(a=a, probabilities=probabilities), *([after] if after else [])]))


def _vit_rows(a: int, *, all_kinds: bool) -> tuple[Row, ...]:
    everything = (PRE_NORM, HEADS, "rotate-mlp")
    parts = (_row("and value/output, query/key", a, PRE_NORM, HEADS),) if all_kinds else ()
    kinds = ("randomized", "block", "pca", "learned") if all_kinds else ()
    return (
        Row("float"),
        _row("no rotation", a),
        _row("residual stream", a, PRE_NORM),
        *parts,
        _row("all, MLP online", a, *everything),
        *(_row(f"all, stream {kind}", a, *everything, kind=kind) for kind in kinds),
        _row("all, gptq", a, *everything, after="gptq"),
        _row("reparameterize-layer-norm in place of rotations", a, REPQ),
        _row("reparameterize-layer-norm, gptq", a, REPQ, after="gptq"),
    )


def _minilm_rows(a: int) -> tuple[Row, ...]:
    return (
        Row("float"),
        _row("no rotation", a),
        _row("value/output, query/key", a, HEADS),
        _row("and MLP (online)", a, HEADS, "rotate-mlp"),
        _row("and what norms give (online): all", a, HEADS, "rotate-mlp{{inputs=all}}"),
        _row("all, gptq", a, HEADS, "rotate-mlp{{inputs=all}}", after="gptq"),
        _row("no rotation, gptq", a, after="gptq"),
    )


TABLES: dict[str, Table] = {
    **{
        f"{network}-w4a{a}": Table(f"{title}, W4A{a}", network, _vit_rows(a, all_kinds=a < 8 and "spread" in network), VIT_COLUMNS)
        for network, title in (("vit-1000", "vit_cifar10"), ("vit-spread-1000", "vit_cifar10 after `spread_channels`"))
        for a in (4, 8)
    },
    **{f"minilm-460-w4a{a}": Table(f"MiniLM, W4A{a}", "minilm-460", _minilm_rows(a), MINILM_COLUMNS) for a in (4, 8)},
}
results.MEASURES.update(
    {
        "vit-1000": functools.partial(results.measure_vit, spread=False, step=IMAGE_STEP),
        "vit-spread-1000": functools.partial(results.measure_vit, spread=True, step=IMAGE_STEP),
        "minilm-460": measure_minilm,
    }
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and write the tables."""
    results.command(__doc__ or "", TABLES, "rotation.md", results.between(BEGIN, END, "###"), arguments)


if __name__ == "__main__":
    main()
