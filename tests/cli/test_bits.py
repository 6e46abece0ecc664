from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Command = Callable[..., Any]


def test_sensitivity_tables_are_measured_and_compared(command: Command, folder: Path) -> None:
    np.save(folder / "labels.npy", np.arange(24) % 4)
    for name, metric in (("first.csv", "hessian-trace{probes=2}"), ("second.json", "fisher")):
        done = command(
            *("sensitivity", "my_models:small", "--calibration", "images.npz", "--metric", metric, "--bits", "4,8", "-o", name),
            *("--labels", "labels.npy", "--workers", "2", "--checkpoint", f"kept-{name}"),
        )
        assert done.status == 0, done.err
        assert done.out.endswith(f"{name}: {metric.partition('{')[0]} of 2 weights and 3 activations at 4, 8 bits\n")
    compared = command("correlate", "first.csv", "second.json", "--bits", "4", "--kind", "activation")
    assert re.fullmatch(r"activations at 4 bits: Spearman [+-][\d.]+, Kendall [+-][\d.]+, 3 rows\n", compared.out), compared.err
    (folder / "other.csv").write_text("kind,name,bits,sensitivity\nweight,other,4,1\n")
    refused = command("correlate", "first.csv", "other.csv")
    assert refused.status == 1 and refused.err.startswith("error: 'first.csv' and 'other.csv' have no such rows in common: measure one")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--metric", "fishy"], 1, "error: unknown metric 'fishy': did you mean 'fisher'?"),
        (["--metric", "fisher", "--synthesize", "4"], 1, "error: images cannot be synthesized: the program has no batch norm"),
        (["--metric", "fisher", "--calibration", "nan.npz"], 1, "1 of 4608 values are NaN or infinite"),
        (
            ["--metric", "fisher", "--calibration", "images.npz", "--labels", "images.npz"],
            1,
            "labels 'images.npz' are several arrays: give a .npy",
        ),
        (["--metric", "fisher"], 1, "error: metric 'fisher' looks at samples: give calibration data"),
        (["--metric", "fisher", "--bits", "4;8"], 2, "--bits takes numbers from 2 to 8 with commas"),
        (["--metric", "fisher", "-o", "table.txt"], 2, "the table is written as .json or .csv"),
    ],
)
def test_sensitivity_mistakes(command: Command, folder: Path, arguments: list[str], status: int, message: str) -> None:
    done = command("sensitivity", "my_models:with_example", "-o", "table.json", *arguments)
    assert done.status == status and message in " ".join(done.err.split()), done.err
    assert not list(folder.glob("table.*"))


def test_profile_writes_a_latency_table(command: Command, folder: Path) -> None:
    ended = command("profile", "my_models:with_example", "-o", "table.json", "--bits", "4,8", "--threads", "1", "--target", "x86-64-v3")
    assert ended.status == 0, ended.err
    assert "table.json: 2 layers" in ended.out and "W4A8 everywhere: " in ended.out and "W8A8 everywhere: " in ended.out
    assert set(json.loads((folder / "table.json").read_text())["layers"]) == {"conv2d", "linear"}


def test_profile_names_mistakes_before_it_works(command: Command) -> None:
    assert "no folder 'nowhere'" in command("profile", "my_models:with_example", "-o", "nowhere/table.json").err
    assert command("profile", "my_models:with_example", "-o", "table.json", "--bits", "9").status == 2
    assert "unknown target 'x87'" in command("profile", "my_models:with_example", "-o", "table.json", "--target", "x87").err
