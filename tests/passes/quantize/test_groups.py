from __future__ import annotations

import torch
from torch import nn

from qcompiler.calibration.data import CalibrationData, Labelled
from qcompiler.capture import capture
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


def test_balanced_groups_keep_the_rare_one() -> None:
    """Many items of small values, one of large ones, which the pooled range cuts off."""
    generator = torch.Generator().manual_seed(0)
    common, rare = 0.3 * torch.randn(500, 8, generator=generator), 3.0 * torch.randn(1, 8, generator=generator)
    torch.manual_seed(0)
    program = capture(nn.Linear(8, 4).eval(), common[:2])
    data = CalibrationData([*(Labelled(batch, "image") for batch in common.split(100)), Labelled(rare, "text")], program.inputs)
    expected = program.run(rare)[0]
    errors = {}
    for groups in ("pooled", "balanced"):
        passes = parse_pipeline(f"canonicalize,quantize{{a=4,groups={groups}}}")
        errors[groups] = float((PassManager(passes).run(program, data).run(rare)[0] - expected).square().sum())
    assert errors["balanced"] < 0.3 * errors["pooled"]
