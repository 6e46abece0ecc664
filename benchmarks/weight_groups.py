"""What factors for groups of inputs give at W4A8 on trained networks, as integers: writes a table of ``docs/recipes.md``.

``PYTHONPATH=examples python benchmarks/weight_groups.py [--tables vit-w4a8-groups ...] [--rows REGEX] [--again]``

Every row is recipe w4a8 with another ``quantize.weight_group``. Transformers, images and pairs are those of ``benchmarks/rotation.py``;
figures are kept in ``build/results``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

import allocation_study
import results
import rotation
from results import MINILM_COLUMNS, VIT_COLUMNS, Figures, Row, Table

BEGIN, END = "<!-- groups: begin, written by benchmarks/weight_groups.py -->", "<!-- groups: end -->"
# Recipe w4a8, without what results.compiled puts around every pipeline.
PASSES = "reparameterize-layer-norm,reparameterize-residual-norm,quantize{w=4,a=8,edge_bits=8},gptq,retune-batch-norm"
GROUPS = {"a scale for each channel": 0, "groups of 128": 128, "groups of 64": 64, "groups of 32": 32}
ROWS = (Row("float"), *(Row(name, options={"quantize.weight_group": group}, passes=PASSES) for name, group in GROUPS.items()))
IMAGES = 1000
TABLES = {
    "resnet20-w4a8-groups": Table("ResNet-20 on CIFAR-10, 1,000 test images", "resnet20-1000", ROWS, VIT_COLUMNS),
    "vit-w4a8-groups": Table("ViT on CIFAR-10, 1,000 test images", "vit-1000", ROWS, VIT_COLUMNS),
    "minilm-w4a8-groups": Table("all-MiniLM-L6-v2, 460 pairs of STS-B", "minilm-460", ROWS, MINILM_COLUMNS),
}


def measure_resnet20(assets: Path, row: Row) -> Figures:
    """As ``results.measure_vit``; calibrated as the allocation benchmark."""
    network = allocation_study.load_resnet20(assets, IMAGES)
    batches = network.batches()
    with torch.no_grad():
        reference = torch.cat([network.model(batch) for batch in batches])
    logits = reference
    if not row.is_float:
        module = results.compiled(network.model, (network.calibration[0][:2],), network.calibration, row)
        logits = torch.cat([module(batch) for batch in batches])
    return results.classification(reference, logits, network.labels)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and write the tables."""
    results.MEASURES["resnet20-1000"] = measure_resnet20
    assert rotation.TABLES  # its import registers the others
    results.command(__doc__ or "", TABLES, "recipes.md", results.between(BEGIN, END, "####"), arguments)


if __name__ == "__main__":
    main()
