"""Which channels share a group, and what metrics say of channels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.errors import CalibrationError
from qcompiler.ir.types import Precision
from qcompiler.passes.allocate.items import Items, find_items
from qcompiler.passes.allocate.salience import layer_groups
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import Item, SensitivityTable

BITS = (2, 3, 4, 6, 8)


def table_of(items: Items, weights: dict[str, tuple[float, ...]]) -> SensitivityTable:
    rows = {(item, bits): 4.0**-bits for item in items.candidates for bits in BITS}
    return SensitivityTable("by-hand", "", rows, channels={Item(name, "weight"): given for name, given in weights.items()})


def test_layers_whose_values_are_added_have_the_same_channels_in_their_groups(residual: Any) -> None:
    items = find_items(residual.program)
    layers = layer_groups(residual.program, items, Quantize(), 2, table_of(items, {}))
    channels = {item.name: [group.channels.tolist() for group in groups] for item, groups in layers.groups.items()}
    assert channels["conv2d"] == channels["conv2d_1"]
    assert layers.whole == {Item("linear", "weight"): "it is an output of the program, which is not rounded"}


def test_neighbours_share_a_group_where_the_order_is_pinned(residual: Any) -> None:
    items = find_items(residual.program)
    weights = {"conv2d_2": (1.0, 1e6, 1.0, 1e6)}
    layers = layer_groups(residual.program, items, Quantize(), 2, table_of(items, weights))
    assert [group.channels.tolist() for group in layers.groups[Item("conv2d_2", "weight")]] == [[0, 1], [2, 3]]


def test_a_curvature_decides_which_channels_are_salient(make: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    case = make(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 6))
    items = find_items(case.program)
    table_of(items, {"linear": (0.001,) * 4 + (1000.0,) * 4}).save(tmp_path / "table.json")
    table = SensitivityTable.load(tmp_path / "table.json")
    first, _ = layer_groups(case.program, items, Quantize(), 2, table).groups[Item("linear", "weight")]
    assert first.channels.tolist() == [4, 5, 6, 7] and min(first.shares) > 0.99
    wrong = table_of(items, {"linear": (1.0,)})
    with pytest.raises(CalibrationError, match="the sensitivity table has 1 channels of weight 'linear', which has 8: measure again"):
        layer_groups(case.program, items, Quantize(), 2, wrong)


def test_the_trace_of_a_channel_is_that_of_its_own_hessian(make: Any) -> None:
    """Of y = D W x and squared errors it is d_c^2 |x|^2, whatever signs are drawn."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False))
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight.copy_(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    case = make(model, torch.rand(4, 6))  # samples of one batch add products of mean zero
    table = case.measure("hessian-trace", loss="squared-error", samples=1, channels=True)
    found = torch.tensor(table.channels[Item("linear", "weight")])
    assert torch.allclose(found / found[0], torch.tensor([1.0, 4.0, 9.0]), rtol=1e-5)
    assert table.rows == case.measure("hessian-trace", loss="squared-error", samples=1).rows


@pytest.mark.parametrize("metric", ["fisher", "taylor", "hessian-trace"])
def test_metrics_of_curvature_tell_channels_apart_and_change_no_row(residual: Any, metric: str) -> None:
    table = residual.measure(metric, channels=True, samples=4)
    assert {item.name: len(weights) for item, weights in table.channels.items()} == {"conv2d": 8, "conv2d_1": 8, "conv2d_2": 4, "linear": 5}
    plain = residual.measure(metric, samples=4)
    assert not plain.channels
    assert {key: pytest.approx(value) for key, value in plain.rows.items()} == table.rows
    assert not residual.measure("perturbation", channels=True, samples=4).channels


def test_a_saved_table_makes_the_groups_that_measuring_makes(residual: Any, tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    qc.sensitivity(residual.program, [residual.inputs], "fisher", passes="quantize", channels=True, samples=4).save(path)

    def bits(options: str) -> dict[str, Precision]:
        passes = parse_pipeline(f"allocate{{{options},average_weight_bits=3.7,channel_groups=4}}")
        found = PassManager(passes).run(residual.program, residual.data)
        return {node.name: node.meta["precision"] for node in found.graph.nodes if "precision" in node.meta}

    measured = bits("metric=fisher,samples=4")
    assert any(found.channels for found in measured.values())
    assert bits(f"table={path}") == measured


def test_channels_of_a_table_survive_its_file(tmp_path: Path) -> None:
    table = SensitivityTable("by-hand", "", {(Item("a", "weight"), 4): 1.0}, channels={Item("a", "weight"): (0.5, 2.0)})
    table.save(tmp_path / "table.json")
    assert SensitivityTable.load(tmp_path / "table.json") == table
    text = (tmp_path / "table.json").read_text()
    (tmp_path / "broken.json").write_text(text.replace("0.5", '"half"'))
    with pytest.raises(CalibrationError, match="the key 'channels' must hold a list of numbers for each name of a weight"):
        SensitivityTable.load(tmp_path / "broken.json")
    with pytest.raises(CalibrationError, match="the channels of weight 'a' must have finite numbers, none negative"):
        dataclasses.replace(table, channels={Item("a", "weight"): (-1.0,)})
