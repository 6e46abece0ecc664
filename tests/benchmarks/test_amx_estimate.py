"""Tile instructions of two small layers, counted as one counts them by hand, and what follows from numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import amx_estimate
import qcompiler as qc
from amx_emulator import KINDS
from qcompiler import native
from qcompiler.errors import TargetError
from qcompiler.pipeline.backend import StepTime

MICROSECOND = 1e-6


def _counts(**numbers: int) -> tuple[int, ...]:
    return tuple(numbers.get(kind, 0) for kind in KINDS)


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of 48 rows, 128 to 64 and 64 to 32 features."""
    torch.manual_seed(0)
    model, rows = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32)).eval(), torch.randn(4, 1, 48, 128)
    path = tmp_path_factory.mktemp("layers") / "two.qca"
    qc.compile(model, (rows[0],), calibration_data=rows.unbind(), target="x86-64-amx").save(path)
    return path


@pytest.mark.skipif("avx512-vnni" not in native.cpu_features(), reason="needs a machine with AVX512-VNNI")
@pytest.mark.skipif("amx-tile" in native.cpu_features(), reason="a machine with AMX measures")
def test_counts_of_two_layers(two_layers: Path) -> None:
    report = amx_estimate.estimate_file(two_layers, None, 3.5e9, runs=3)
    layers = [dict(zip(KINDS, part.counts, strict=True)) for part in report.parts if part.kind == "convolution"]
    # A TDP multiplies 16 rows of 64 inputs by 16 outputs; a tile of sums is stored once; its inputs and weights are loaded at least once.
    assert [layer["tdp"] for layer in layers] == [3 * 2 * 4, 3 * 1 * 2]
    assert [layer["tilestored"] for layer in layers] == [3 * 4, 3 * 2]
    assert all(least <= layer["tileloadd"] <= 2 * layer["tdp"] for layer, least in zip(layers, (3 * 2 + 8, 3 * 1 + 2), strict=True))
    assert [layer["ldtilecfg"] for layer in layers] == [1, 1]  # once a thread, not once a block of sums
    assert all(part.tiles == 0 and not any(part.counts) for part in report.parts if part.kind != "convolution")
    assert all(step.seconds > 0 for step in report.steps[:-1]) and report.steps[-1].kind == amx_estimate.CALL
    assert report.weight_bytes >= 128 * 64 + 64 * 32


def test_code_without_tiles_is_refused() -> None:
    with pytest.raises(TargetError, match="no tile instruction"):
        amx_estimate.without_tiles(native.library_path().read_bytes())


def test_seconds_of_tiles() -> None:
    """Loads are hidden behind multiplications, or these behind loads."""
    assert amx_estimate.tile_seconds(_counts(tdp=10, tileloadd=20), 1.0) == 160
    assert amx_estimate.tile_seconds(_counts(tdp=10, tileloadd=20, tileloaddt1=1), 1.0) == 193
    both = _counts(tdp=10, tilestored=2, tilezero=3, ldtilecfg=1, sttilecfg=1, tilerelease=1)
    assert amx_estimate.tile_seconds(both, 2.0) == (160 + 32 + 204 + 19 + 13) / 2


def test_totals_add_up_steps() -> None:
    """No step overlaps the next one: what one has of tiles does not hide what another has of the rest."""
    steps = [StepTime("product", "product", (), seconds * MICROSECOND) for seconds in (1, 5)]
    parts = amx_estimate.estimate(steps, [_counts(tdp=1000), _counts(tdp=500)], 4e9)
    total = amx_estimate.added("all", parts)
    assert [part.tiles for part in parts] == pytest.approx([4 * MICROSECOND, 2 * MICROSECOND])
    assert (total.apart, total.overlapped) == pytest.approx((12 * MICROSECOND, 9 * MICROSECOND))
    assert (total.steps, total.counts) == (2, _counts(tdp=1500))
    assert amx_estimate.by_kinds(parts) == [amx_estimate.added("product", parts)]
    assert "1500" in amx_estimate.table([total], ["all"])
