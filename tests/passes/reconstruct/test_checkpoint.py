from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from qcompiler.errors import QCompilerError
from qcompiler.ir.program import Program

TEXT = 'reconstruct-blocks{{steps={steps},checkpoint="{folder}"}}'
CHILD = """
import runpy, sys, torch
torch.set_num_threads(1)
cases = runpy.run_path(sys.argv[2])["Cases"]()
torch.manual_seed(0)
case = cases.quantized(cases.residual(), cases.images(64, 1), cases.images(64, 2), w=3)
case.run(sys.argv[1])
"""


def same(first: Program, second: Program) -> bool:
    tensors = [dict(program.graph_module.named_buffers()) for program in (first, second)]
    return tensors[0].keys() == tensors[1].keys() and all(torch.equal(tensors[0][name], tensors[1][name]) for name in tensors[0])


def test_a_killed_run_continues_to_the_same_bytes(network: Any, tmp_path: Path) -> None:
    torch.set_num_threads(1)  # as the child: sums in another order would be other floats
    text = TEXT.format(steps=40, folder=tmp_path / "killed")
    child = subprocess.Popen([sys.executable, "-c", CHILD, text, str(Path(__file__).with_name("conftest.py"))])
    finished = tmp_path / "killed" / "block-0001.safetensors"
    deadline = time.monotonic() + 120.0
    while not finished.exists() and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in finished.parent.glob("block-*")}
    assert finished.name in kept and "block-0003.safetensors" not in kept, "the child was killed too late"
    resumed = network.run(text)
    assert all((finished.parent / name).stat().st_mtime_ns == when for name, when in kept.items()), "a finished block was done again"
    uninterrupted = network.run(TEXT.format(steps=40, folder=tmp_path / "other"))
    assert same(resumed, uninterrupted) and resumed.history[-1].notes == uninterrupted.history[-1].notes
    names = sorted(path.name for path in finished.parent.iterdir())
    assert names == [
        "block-0000.safetensors",
        "block-0001.safetensors",
        "block-0002.safetensors",
        "block-0003.safetensors",
        "manifest.json",
    ]
    assert all((tmp_path / "killed" / name).read_bytes() == (tmp_path / "other" / name).read_bytes() for name in names[:4])


def test_other_options_are_refused(network: Any, tmp_path: Path) -> None:
    network.run(TEXT.format(steps=2, folder=tmp_path))
    with pytest.raises(QCompilerError, match="holds the work of another program, other data or other options: delete"):
        network.run(TEXT.format(steps=3, folder=tmp_path))


def test_a_folder_that_cannot_be_written(network: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QCompilerError, match="checkpoint '.*file'.*: give a folder that can be written"):
        network.run(TEXT.format(steps=2, folder=tmp_path / "file"))
