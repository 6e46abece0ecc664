"""``qc.allocate`` and ``qc.pareto_front``: allocations to look at."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.errors import QCompilerError, UnknownNameError
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


def test_other_budgets_hold_at_every_point(program: qc.Program) -> None:
    free = qc.pareto_front(program, samples(), "size", points=3, options=OPTIONS)
    held = qc.pareto_front(program, samples(), "size", points=3, options={**OPTIONS, "allocate.average_weight_bits": 3})
    assert held[-1].costs["size"] < free[-1].costs["size"]
    assert all(each.costs["average_weight_bits"] <= 3.0 for each in held)


def test_mistakes_are_named(program: qc.Program) -> None:
    with pytest.raises(UnknownNameError, match="unknown budget 'bytes': did you mean"):
        qc.pareto_front(program, samples(), "bytes")
    with pytest.raises(QCompilerError, match="no pass 'allocate' before 'quantize': use recipe 'mixed'"):
        qc.allocate(program, samples(), recipe="int8")
    with pytest.raises(QCompilerError, match="no budget is given"):
        qc.allocate(program, samples(), options=OPTIONS)
