from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler import latency

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


def test_a_table_tells_channels_apart_where_it_is_asked_to(command: Command, folder: Path) -> None:
    given = ("sensitivity", "my_models:small", "--calibration", "images.npz", "--metric", "fisher", "--bits", "4,8", "--samples", "8")
    done = command(*given, "--channels", "-o", "table.json")
    assert done.status == 0, done.err
    channels = json.loads((folder / "table.json").read_text())["channels"]
    assert {name: len(weights) for name, weights in channels.items()} == {"conv2d": 8, "linear": 4}


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
        (["--metric", "fisher", "--channels", "-o", "table.csv"], 2, "the table of channels is written as .json, got"),
        (["--metric", "fisher", "-o", "table.txt"], 2, "the table is written as .json or .csv"),
    ],
)
def test_sensitivity_mistakes(command: Command, folder: Path, arguments: list[str], status: int, message: str) -> None:
    done = command("sensitivity", "my_models:with_example", "-o", "table.json", *arguments)
    assert done.status == status and message in " ".join(done.err.split()), done.err
    assert not list(folder.glob("table.*"))


def test_profile_writes_a_latency_table(command: Command, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_CALL_SECONDS", 0.01)
    ended = command("profile", "my_models:with_example", "-o", "table.json", "--bits", "4,8", "--threads", "1", "--target", "x86-64-v3")
    assert ended.status == 0, ended.err
    assert "table.json: 2 layers" in ended.out and "W4A8 everywhere: " in ended.out and "W8A8 everywhere: " in ended.out
    assert set(json.loads((folder / "table.json").read_text())["layers"]) == {"conv2d", "linear"}


def test_profile_names_mistakes_before_it_works(command: Command) -> None:
    assert "no folder 'nowhere'" in command("profile", "my_models:with_example", "-o", "nowhere/table.json").err
    assert command("profile", "my_models:with_example", "-o", "table.json", "--bits", "9").status == 2
    assert "unknown target 'x87'" in command("profile", "my_models:with_example", "-o", "table.json", "--target", "x87").err


FREE = ("--option", "allocate.metric=perturbation", "--option", "quantize.edge_bits=none")


def test_an_allocation_is_shown_and_written(command: Command, folder: Path) -> None:
    asked = ("allocate", "my_models:small", "--calibration", "images.npz", *FREE)
    done = command(*asked, "--option", "allocate.average_weight_bits=5", "-o", "chosen.json")
    assert done.status == 0, done.err
    written = json.loads((folder / "chosen.json").read_text())
    bits = {item["name"]: item["bits"] for item in written["items"]}
    assert bits.keys() == {"conv2d", "linear"} and written["limits"] == {"average_weight_bits": 5.0}
    average = written["costs"]["average_weight_bits"]
    assert average <= 5.0 and average == pytest.approx(written["average_weight_bits"], rel=1e-12)  # summed in two orders
    lines = done.out.splitlines()[-4:]
    assert lines[:2] == [f"{name}: W{width}" for name, width in bits.items()]
    assert lines[2] == f"average_weight_bits {average:.6g} of 5 bits" and lines[3].endswith(" bits on average (ilp)")


def test_a_front_is_a_table_a_file_and_a_figure(command: Command, folder: Path) -> None:
    asked = ("pareto", "my_models:small", "--calibration", "images.npz", "--budget", "size", *FREE)
    done = command(*asked, "--points", "5", "-o", "front.csv", "--plot", "front.svg")
    assert done.status == 0, done.err
    first, *rows = (line.split(",") for line in (folder / "front.csv").read_text().splitlines())
    assert first == ["limit", "size", "sensitivity", "average_bits", "conv2d:w", "linear:w"]
    heading, *shown = done.out.splitlines()[-len(rows) - 1 :]
    assert heading.split("  ") == ["limit, bytes", "size, bytes", "sensitivity", "average bits"]
    assert [line.split() for line in shown] == [[*(f"{float(cell):.6g}" for cell in row[:3]), f"{float(row[3]):.3f}"] for row in rows]
    assert (folder / "front.svg").read_text().count("<svg") == 1
    again = command(*asked, "--limits", "150,200", "-o", "front.json")
    assert again.status == 0, again.err
    assert all(
        each["costs"]["size"] <= each["limits"]["size"] <= 200 for each in json.loads((folder / "front.json").read_text())["allocations"]
    )


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["pareto", "--budget", "bytes"], 1, "error: unknown budget 'bytes': did you mean"),
        (["pareto", "--budget", "size", "--limits", "5;6"], 2, "--limits takes numbers above 0 with commas between them, got '5;6'"),
        (["pareto", "--budget", "size", "-o", "chosen.txt"], 2, "the front is written as .json or .csv, got 'chosen.txt'"),
        (["pareto", "--budget", "size", "--plot", "chosen.pdf"], 2, "the figure is written as .svg or .png, got 'chosen.pdf'"),
        (["pareto", "--budget", "size", "--plot", "nowhere/chosen.svg"], 1, "error: cannot write 'nowhere/chosen.svg': there is no folder"),
        (
            ["pareto", "--budget", "size", "--limits", "10", "-o", "chosen.csv", *FREE],
            1,
            "error: budget size = 10 bytes is below the minimum of",
        ),
        (["allocate", *FREE, "-o", "chosen.json"], 1, "error: no budget is given: give one of average_weight_bits, size"),
        (["allocate", "--option", "allocate.size=9", "-o", "chosen.json"], 1, "error: no layer has bits to choose"),
        (["allocate", "--recipe", "int8"], 1, "error: the pipeline has no pass 'allocate' before 'quantize': use recipe 'mixed'"),
        (["allocate", "-o", "chosen.csv"], 2, "the allocation is written as .json, got 'chosen.csv'"),
    ],
)
def test_mistakes_of_allocations_leave_no_file(command: Command, folder: Path, arguments: list[str], status: int, message: str) -> None:
    name, *options = arguments
    done = command(name, "my_models:with_example", "--calibration", "images.npz", *options)
    assert done.status == status and message in " ".join(done.err.split()), done.err
    assert not list(folder.glob("chosen.*"))
