"""What the recipes give on trained transformers, as integers: writes ``docs/results.md``.

``PYTHONPATH=examples python benchmarks/results.py [--tables vit-8bit vit-w3a4 ...] [--rows REGEX] [--again]``

Every row is a recipe with some of its options replaced, or a pipeline. It is quantized, compiled for this machine and measured; the
figures are kept in ``build/results``, so that a run that was cut short goes on where it was, and ``--again`` measures anew. Networks
and data lie in ``../shared/assets`` beside the repository (``--assets``).
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import qcompiler as qc
import sentences
from models import vit
from models.bert import load_minilm
from qcompiler.documents import replaced
from qcompiler.pipeline.instruments import signal_to_noise

ROOT = Path(__file__).resolve().parent.parent
# What makes integers of a QDQ program in every recipe.
LOWERING = "lower-integer,optimize"
AUTHORS = (
    "For comparison, the fake quantization of RepQ-ViT's authors on the same images, which leaves softmax, GELU, LayerNorm and the "
    "residual stream in float: W8A8 75.95, W6A6 75.40, W4A4 74.15; plain layer-wise quantization 73.15, 42.10, 14.65; float 75.65."
)
VIT_CALIBRATION_IMAGES = 256
VIT_BATCH = 16
MINILM_CALIBRATION_SENTENCES = 128
console = Console(stderr=True)
Figures = dict[str, float]


@dataclass(frozen=True)
class Row:
    """One line of a table: how it is called, and the recipe or the passes that make it; neither: the float network."""

    name: str
    recipe: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)
    passes: str | None = None

    @property
    def is_float(self) -> bool:
        return self.recipe is None and self.passes is None


@dataclass(frozen=True)
class Table:
    """Rows measured alike; ``columns`` maps figures to their headings and formats."""

    title: str
    network: str
    rows: Sequence[Row]
    columns: Mapping[str, tuple[str, str]]
    remark: str = ""


# ---- vision transformer ----------------------------------------------------------------------------------------------------------


@functools.cache
def vit_images(assets: Path) -> tuple[Tensor, Tensor]:
    """The 10,000 JPEG test images, uint8 [N, 32, 32, 3], and their labels."""
    with np.load(assets / "cifar10" / "cifar10_test_jpeg.npz") as data:
        return torch.from_numpy(data["images"]), torch.from_numpy(data["labels"]).long()


@functools.cache
def vit_calibration(assets: Path) -> list[Tensor]:
    """Every n-th training image: the file is sorted by class."""
    with np.load(assets / "cifar10" / "cifar10_train_jpeg_2000.npz") as data:
        pixels = torch.from_numpy(data["images"])
    chosen = pixels[:: len(pixels) // VIT_CALIBRATION_IMAGES][:VIT_CALIBRATION_IMAGES]
    return list(vit.normalize_cifar(chosen).split(VIT_BATCH))


def load_vit(assets: Path, spread: bool) -> vit.VisionTransformer:
    """The trained network; with ``spread`` its LayerNorm outputs have the spread between channels of large transformers."""
    model = vit.load_vit_cifar10(assets / "vit_cifar10" / "vit_cifar10.safetensors")
    return vit.spread_channels(model) if spread else model


@functools.cache
def _vit_floats(assets: Path, spread: bool, step: int) -> tuple[Tensor, Tensor]:
    """Logits of the float network on every ``step``-th test image, and the labels."""
    model = load_vit(assets, spread)
    pixels, labels = (values[::step] for values in vit_images(assets))
    return _outputs(model, pixels), labels


def measure_vit(assets: Path, row: Row, *, spread: bool, step: int) -> Figures:
    """Top-1 on every ``step``-th test image, predictions that differ from float, signal-to-noise ratio of the logits."""
    reference, labels = _vit_floats(assets, spread, step)
    logits = reference
    if not row.is_float:
        data = vit_calibration(assets)
        logits = _outputs(compiled(load_vit(assets, spread), (data[0][:2],), data, row), vit_images(assets)[0][::step])
    return classification(reference, logits, labels)


def classification(reference: Tensor, logits: Tensor, labels: Tensor) -> Figures:
    """Of logits [images, classes]: top-1, predictions that differ from those of the float network, signal-to-noise ratio."""
    right, predicted = reference.argmax(1), logits.argmax(1)
    top1, top1_of_float = (100 * float((classes == labels).double().mean()) for classes in (predicted, right))
    return {
        "images": len(labels),
        "top1": top1,
        "loss": top1 - top1_of_float,
        "differ": int((right != predicted).sum()),
        "sqnr": signal_to_noise([reference], [logits]),
    }


def _outputs(run: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(vit.normalize_cifar(batch)) for batch in pixels.split(250)])


# ---- sentence encoder ------------------------------------------------------------------------------------------------------------


@functools.cache
def _minilm_floats(assets: Path) -> tuple[float, Tensor]:
    return sentences.spearman(load_minilm(), sentences.read_pairs(assets / "stsb" / "sts-test.csv"))


def minilm_calibration(assets: Path) -> list[tuple[Tensor, Tensor]]:
    """Ids and masks of every n-th training sentence."""
    train = sentences.read_pairs(assets / "stsb" / "sts-train.csv").first
    chosen = train[:: len(train) // MINILM_CALIBRATION_SENTENCES][:MINILM_CALIBRATION_SENTENCES]
    return [(ids, mask) for _, ids, mask in sentences.token_batches(chosen, size=16)]


def measure_minilm(assets: Path, row: Row) -> Figures:
    """Spearman's rank correlation on the 1,379 test pairs, and how far the embeddings are from the float ones."""
    correlation, expected = _minilm_floats(assets)
    found = expected
    if not row.is_float:
        data = minilm_calibration(assets)
        module = compiled(load_minilm(), data[0], data, row, dynamic=True)
        correlation, found = sentences.spearman(module, sentences.read_pairs(assets / "stsb" / "sts-test.csv"))
    cosines = torch.nn.functional.cosine_similarity(expected, found)
    return {"pairs": len(expected) // 2, "spearman": correlation, "cosine": float(cosines.mean()), "least": float(cosines.min())}


def compiled(model: torch.nn.Module, example: tuple[Tensor, ...], data: Sequence[object], row: Row, *, dynamic: bool = False) -> qc.Module:
    """The network, quantized as the row says on ``data`` and compiled for this machine; ``dynamic``: for any length of its sequences."""
    sequence = torch.export.Dim("sequence", min=2, max=sentences.LONGEST)
    shapes = {position: {1: sequence} for position in range(len(example))} if dynamic else None
    program = qc.capture(model, example, dynamic_shapes=shapes)
    passes = f"canonicalize,{row.passes},{LOWERING}" if row.passes is not None else None
    module = qc.compile(qc.quantize(program, data, recipe=row.recipe or "int8", options=row.options, passes=passes))
    module.verify()  # that what is measured is what the reference computes
    return module


# ---- tables ----------------------------------------------------------------------------------------------------------------------

MEASURES: dict[str, Callable[[Path, Row], Figures]] = {
    "vit": functools.partial(measure_vit, spread=False, step=1),
    "vit-spread": functools.partial(measure_vit, spread=True, step=1),
    "vit-2000": functools.partial(measure_vit, spread=False, step=5),
    "vit-spread-2000": functools.partial(measure_vit, spread=True, step=5),
    "minilm": measure_minilm,
}
VIT_COLUMNS = {
    "top1": ("top-1 %", ".2f"),
    "loss": ("against float", "+.2f"),
    "differ": ("predictions that differ", ".0f"),
    "sqnr": ("SQNR of logits dB", ".1f"),
}
MINILM_COLUMNS = {
    "spearman": ("Spearman", ".4f"),
    "cosine": ("mean cosine to float", ".4f"),
    "least": ("least cosine", ".3f"),
}
NON_LINEAR_ROWS = (
    Row("float"),
    Row("int8", "int8"),
    Row("int8, shift", "int8", {"lower-integer.softmax": "shift", "lower-integer.activation": "shift"}),
    Row("int8, poly", "int8", {"lower-integer.softmax": "poly", "lower-integer.activation": "poly"}),
    Row("i-vit", "i-vit"),
    Row("i-bert", "i-bert"),
    Row("smoothquant", "smoothquant"),
)


_8_BITS_WHERE_FREE = "score_bits=8,function_bits=8,edge_bits=8"


def _low_bits(bits: int, before: str = "", quantizer: str = "", after: str = "") -> str:
    """Passes for weights and activations of few bits: what goes before and after ``quantize``, and its options."""
    options = ",".join(part for part in (f"w={bits},a={bits}", quantizer) if part)
    return ",".join(part for part in (before, f"quantize{{{options}}}", after) if part)


def _low_bit_rows(bits: int) -> tuple[Row, ...]:
    norm = f"reparameterize-layer-norm{{bits={bits}}}"
    both = f"{_8_BITS_WHERE_FREE},probability_quantizer=log-sqrt2"
    return (
        Row("float"),
        Row(f"W{bits}A{bits}: quantize alone", passes=_low_bits(bits)),
        Row("scores, GELU inputs and edges at 8 bits", passes=_low_bits(bits, quantizer=_8_BITS_WHERE_FREE)),
        Row("that and log-sqrt2 probabilities", passes=_low_bits(bits, quantizer=both)),
        Row("that and reparameterize-layer-norm: recipe repq-vit", f"repq-vit-w{bits}a{bits}"),
        Row("repq-vit without log-sqrt2", passes=_low_bits(bits, norm, _8_BITS_WHERE_FREE)),
    )


def _variants() -> tuple[Row, ...]:
    """What takes the place of a part of recipe repq-vit-w4a4, or comes to it."""
    norm, quantizer = "reparameterize-layer-norm{bits=4}", f"{_8_BITS_WHERE_FREE},probability_quantizer=log-sqrt2"
    instead = (
        ("reparameterize-layer-norm{clip=dual}", "reparameterize-layer-norm{bits=4,clip=dual}"),
        ("reparameterize-layer-norm{outliers=mad}", "reparameterize-layer-norm{bits=4,outliers=mad}"),
        ("smooth-quant", "smooth-quant"),
        ("smooth-quant-bias", "smooth-quant-bias"),
        ("outlier-suppression-plus", "outlier-suppression-plus"),
    )
    kinds = ("adalog", "shift-uniform-log2", "tanq")
    return (
        *(Row(f"{name} in place of it", passes=_low_bits(4, before, quantizer)) for name, before in instead),
        *(
            Row(f"{kind} in place of log-sqrt2", passes=_low_bits(4, norm, f"{_8_BITS_WHERE_FREE},probability_quantizer={kind}"))
            for kind in kinds
        ),
        *(Row(f"repq-vit and {name}", passes=_low_bits(4, norm, quantizer, name)) for name in ("correct-bias", "gptq")),
        Row("recipe repquant-w4a4", "repquant-w4a4"),
        Row("recipe adalog-w4a4", "adalog-w4a4"),
    )


def _reconstruction_rows(weights: int, activations: int) -> tuple[Row, ...]:
    norm = f"reparameterize-layer-norm{{bits={activations}}}"
    quantizer = ",probability_quantizer=log-sqrt2" if activations < 8 else ""
    quantize = f"quantize{{w={weights},a={activations},{_8_BITS_WHERE_FREE}{quantizer}}}"
    methods = (
        ("nearest", ""),
        ("correct-bias", "correct-bias"),
        ("tune-bias", "tune-bias{steps=200}"),
        ("gptq", "gptq"),
        ("adaround", "adaround{steps=300}"),
        ("adaquant", "adaquant{steps=300}"),
        ("reconstruct-blocks without dropping (BRECQ)", "reconstruct-blocks{steps=300,drop=0}"),
        ("reconstruct-blocks (BRECQ, QDrop)", "reconstruct-blocks{steps=300}"),
    )
    rows = (Row(name, passes=",".join(part for part in (norm, quantize, after) if part)) for name, after in methods)
    return Row("float"), *rows


TABLES: dict[str, Table] = {
    "vit-8bit": Table("ViT on CIFAR-10, W8A8, 10,000 test images", "vit", NON_LINEAR_ROWS, VIT_COLUMNS),
    "vit-spread-8bit": Table(
        "ViT on CIFAR-10 after `spread_channels`, W8A8, 10,000 test images", "vit-spread", NON_LINEAR_ROWS, VIT_COLUMNS
    ),
    "vit-spread-6bit": Table("ViT after `spread_channels`, W6A6, 2,000 images", "vit-spread-2000", _low_bit_rows(6), VIT_COLUMNS),
    "vit-spread-4bit": Table("ViT after `spread_channels`, W4A4, 2,000 images", "vit-spread-2000", _low_bit_rows(4), VIT_COLUMNS, AUTHORS),
    "vit-spread-variants": Table("Variants of recipe repq-vit-w4a4, same images", "vit-spread-2000", _variants(), VIT_COLUMNS),
    "vit-w3a4": Table("Reconstruction at W3A4, ViT as trained, 2,000 images", "vit-2000", _reconstruction_rows(3, 4), VIT_COLUMNS),
    "vit-w2a8": Table("Reconstruction at W2A8, ViT as trained, 2,000 images", "vit-2000", _reconstruction_rows(2, 8), VIT_COLUMNS),
    "minilm": Table("all-MiniLM-L6-v2 on STS-B test, 1,379 pairs", "minilm", NON_LINEAR_ROWS, MINILM_COLUMNS),
}


def kept_path(folder: Path, table: str, row: Row) -> Path:
    """The file that holds the figures of a row."""
    return folder / table / f"{re.sub('[^a-z0-9]+', '-', row.name.lower())}.json"


def measured(name: str, table: Table, row: Row, arguments: argparse.Namespace) -> Figures | None:
    """The figures of a row, from the file that an earlier run left or, where the row is asked for, from a measurement."""
    kept = kept_path(arguments.results, name, row)
    description = {"recipe": row.recipe, "options": dict(row.options), "passes": row.passes, "network": table.network}
    asked = name in arguments.tables and re.search(arguments.rows, row.name)
    if kept.exists() and not (asked and arguments.again):
        document = json.loads(kept.read_text())
        if document["row"] == description:
            return dict(document["figures"])
    if not asked:
        return None
    start = time.perf_counter()
    figures = MEASURES[table.network](arguments.assets, row)
    console.print(f"{name}: {row.name}: {figures} in {time.perf_counter() - start:.0f} s", highlight=False)
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"row": description, "figures": figures}, indent=1) + "\n")
    return figures


def markdown(table: Table, figures: Sequence[Figures | None]) -> str:
    """The table with its title and remark; rows without figures are left out."""
    headings = [heading for heading, _ in table.columns.values()]
    lines = [f"## {table.title}", "", "| | " + " | ".join(headings) + " |", "|---" * (len(headings) + 1) + "|"]
    for row, values in zip(table.rows, figures, strict=True):
        if values is None:
            continue
        cells = [format(values[key], form) for key, (_, form) in table.columns.items()]
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(["", table.remark] if table.remark else [])]) + "\n"


INTRODUCTION = """# Results on trained transformers

Written by `PYTHONPATH=examples python benchmarks/results.py`; every row is an integer-only program, compiled and run on the CPU.

Measured since normalization keeps every bit of a row (arithmetic, section 8) and a norm of few rows has ranges by moments (equalization,
section 2): rows `int8` and `smoothquant` of the W8A8 tables of ViT, and the W6A6 and W4A4 tables. Row `int8` of MiniLM was measured after
the first of the two, all others before both, when 11 bits of a deviation were kept: the noise of their logits is the same to 0.1 dB, and
single predictions differ.

"""


def command(
    description: str,
    tables: Mapping[str, Table],
    document: str,
    written: Callable[[str, list[str]], str],
    arguments: Sequence[str] | None = None,
) -> None:
    """Measure what is asked for, by the command line, and write ``docs/<document>``.

    Args:
        description: of the command.
        tables: by the names that ``--tables`` takes.
        written: the document's new text, from its old one and the tables of which anything was measured.
        arguments: of the command line; none: those of the process.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--tables", nargs="+", choices=list(tables), default=list(tables))
    parser.add_argument("--rows", default="", help="measure rows whose names this regular expression finds; others stay as measured before")
    parser.add_argument("--again", action="store_true", help="measure rows that were measured before")
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "results")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / document)
    options = parser.parse_args(arguments)
    parts = []
    for name, table in tables.items():
        figures = [measured(name, table, row, options) for row in table.rows]
        if any(values is not None for values in figures):
            parts.append(markdown(table, figures))
    options.output.write_text(written(options.output.read_text() if options.output.exists() else "", parts))


def between(begin: str, end: str, heading: str) -> Callable[[str, list[str]], str]:
    """For ``command``: tables between two marks of a document, under headings of this level (``###``)."""
    return lambda text, parts: replaced(text, begin, end, "\n".join(part.replace("## ", f"{heading} ", 1) for part in parts).strip())


def main() -> None:
    """Measure what is asked for and write the document."""
    command(__doc__, TABLES, "results.md", lambda _, parts: INTRODUCTION + "\n".join(parts))


if __name__ == "__main__":
    main()
