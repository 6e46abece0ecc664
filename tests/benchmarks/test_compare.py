"""The worker protocol on a network of two layers, and the table."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from compare import REFERENCE, Contender, Worker, markdown, measure


@pytest.fixture
def contender(tmp_path: Path) -> Contender:
    image = torch.zeros(1, 3, 8, 8)
    np.savez(tmp_path / "inputs.npz", input0=image.numpy())
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (image,)), tmp_path / "float.pt2")
    return Contender("torch", "torch", sys.executable, tmp_path / "float.pt2")


def test_workers_time_what_they_are_asked_for(contender: Contender) -> None:
    with Worker(contender, contender.model.with_name("inputs.npz"), threads=1) as worker:
        times = worker.run(3)
    assert len(times) == 3
    assert all(time > 0 for time in times)


def test_contenders_take_turns_and_report_one_median_each(contender: Contender) -> None:
    medians = measure([contender], contender.model.with_name("inputs.npz"), threads=1, rounds=2, runs=2)
    assert medians.keys() == {"torch"}


def test_a_worker_that_dies_says_why(contender: Contender) -> None:
    lost = Contender("lost", "torch", sys.executable, contender.model.with_name("absent.pt2"))
    with pytest.raises(RuntimeError, match=r"(?s)lost stopped: .*absent\.pt2"):
        Worker(lost, contender.model.with_name("inputs.npz"), threads=1)


def test_table_has_medians_and_ratios_and_leaves_gaps_empty() -> None:
    table = markdown({"net, 1 thread(s)": {REFERENCE: 8.0, "ours": 2.0}, "net, 2 thread(s)": {REFERENCE: 4.0}})
    assert table.splitlines()[2:] == [f"| {REFERENCE} | 8.00 (1.00) | 4.00 (1.00) |", "| ours | 2.00 (4.00) |  |"]
