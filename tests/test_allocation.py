"""``qc.allocate`` and ``qc.pareto_front``: allocations to look at, and their files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.allocation import draw_front, save_front
from qcompiler.errors import ArtifactError, QCompilerError, UnknownNameError
from qcompiler.sensitivity import Item

OPTIONS = {"allocate.metric": "perturbation", "quantize.edge_bits": None}


@pytest.fixture(scope="module")
def program() -> qc.Program:
    torch.manual_seed(0)
    return qc.capture(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), samples()[:2])


def samples() -> torch.Tensor:
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(1))


def test_an_allocation_says_what_each_layer_would_get(program: qc.Program) -> None:
    found = qc.allocate(program, samples(), options={**OPTIONS, "allocate.average_weight_bits": 4})
    assert found.bits.keys() == {Item(name, "weight") for name in ("linear", "linear_1", "linear_2")}
    assert found.costs["average_weight_bits"] <= 4.0 and found.method == "ilp"
    quantized = qc.quantize(program, samples(), recipe="mixed", options={**OPTIONS, "allocate.average_weight_bits": 4})
    (record,) = (record for record in quantized.history if record.name == "allocate")
    assert all(any(note.startswith(f"{item.name}: W{bits}") for note in record.notes) for item, bits in found.bits.items())


def test_a_front_comes_in_one_call(program: qc.Program) -> None:
    front = qc.pareto_front(program, samples(), "size", points=5, options=OPTIONS)
    sizes, lost = [each.costs["size"] for each in front], [each.objective for each in front]
    assert sizes == sorted(sizes) and lost == sorted(lost, reverse=True) and 2 <= len(front) <= 5
    assert set(front[-1].bits.values()) == {8}
    (single,) = qc.pareto_front(program, samples(), "average_weight_bits", [4.0], options=OPTIONS)
    assert single.costs["average_weight_bits"] <= 4.0


def test_groups_of_channels_are_part_of_an_allocation_and_of_its_file(program: qc.Program, tmp_path: Path) -> None:
    options = {**OPTIONS, "allocate.channel_groups": 4}
    (found,) = qc.pareto_front(program, samples(), "average_weight_bits", [4.5], options=options)
    item, widths = next(iter(found.channels.items()))
    assert len(widths) == 16 and found.bits[item] == max(widths) > min(widths)
    assert (
        found.shown(item)
        == f"W{max(widths)} for {widths.count(max(widths))} channels, W{min(widths)} for {widths.count(min(widths))} channels"
    )
    found.save(tmp_path / "allocation.json")
    (saved,) = (each for each in json.loads((tmp_path / "allocation.json").read_text())["items"] if each["name"] == item.name)
    assert tuple(saved["channels"]) == widths and saved["bits"] == max(widths)
    save_front([found], "average_weight_bits", tmp_path / "front.csv")
    first, row = (line.split(",") for line in (tmp_path / "front.csv").read_text().splitlines())
    assert float(row[first.index(f"{item.name}:w")]) == sum(widths) / len(widths)


def test_other_budgets_hold_at_every_point(program: qc.Program) -> None:
    free = qc.pareto_front(program, samples(), "size", points=3, options=OPTIONS)
    held = qc.pareto_front(program, samples(), "size", points=3, options={**OPTIONS, "allocate.average_weight_bits": 3})
    assert held[-1].costs["size"] < free[-1].costs["size"]
    assert all(each.costs["average_weight_bits"] <= 3.0 for each in held)


def test_files_say_what_was_found(program: qc.Program, tmp_path: Path) -> None:
    front = qc.pareto_front(program, samples(), "size", points=3, options=OPTIONS)
    save_front(front, "size", tmp_path / "front.json")
    written = json.loads((tmp_path / "front.json").read_text())
    assert written["budget"] == "size" and len(written["allocations"]) == len(front)
    for each, allocation in zip(written["allocations"], front, strict=True):
        assert {Item(item["name"], item["kind"]): item["bits"] for item in each["items"]} == allocation.bits
        assert (each["sensitivity"], each["costs"], each["limits"]) == (allocation.objective, allocation.costs, allocation.limits)
        allocation.save(tmp_path / "single.json")
        assert json.loads((tmp_path / "single.json").read_text()) == {"format": 1, **each}
    draw_front(front, "size", tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    for write in (save_front, draw_front):
        with pytest.raises(ArtifactError, match="cannot write '.*front.txt': the name of a f"):
            write(front, "size", tmp_path / "front.txt")
        with pytest.raises(ArtifactError, match="cannot write .*No such file or directory"):
            write(front, "size", tmp_path / "absent" / ("front.csv" if write is save_front else "front.svg"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["front.json", "front.png", "single.json"]


def test_what_draws_may_be_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ArtifactError, match="cannot draw .*front.svg': matplotlib is not installed: run 'pip install matplotlib'"):
        draw_front((), "size", tmp_path / "front.svg")


def test_mistakes_are_named(program: qc.Program) -> None:
    with pytest.raises(UnknownNameError, match="unknown budget 'bytes': did you mean"):
        qc.pareto_front(program, samples(), "bytes")
    with pytest.raises(QCompilerError, match="no pass 'allocate' before 'quantize': use recipe 'mixed'"):
        qc.allocate(program, samples(), recipe="int8")
    with pytest.raises(QCompilerError, match="no budget is given"):
        qc.allocate(program, samples(), options=OPTIONS)
