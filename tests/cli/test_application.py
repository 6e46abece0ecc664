from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qcompiler import cli
from qcompiler.errors import ArtifactError

Command = Callable[..., Any]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["compile"],
        ["compile", "my_models:small"],
        ["no-such-command"],
        ["verify"],
        ["compile", "my_models:small", "--calibration", "images.npz", "--output", "model.qca", "--option", "novalue"],
        ["--no-such-flag"],
    ],
)
def test_wrong_usage_is_status_2(command: Command, arguments: list[str]) -> None:
    assert command(*arguments).status == 2


def test_traceback_on_request(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["qcompiler", "verify", "absent.qca", "--traceback"])
    with pytest.raises(ArtifactError):
        cli.main()


def test_a_defect_of_ours_is_one_line_too(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble() -> None:
        raise KeyError("axis")

    monkeypatch.setattr("qcompiler.pipeline.registry.pass_names", stumble)
    done = command("passes")
    assert (done.status, done.err) == (1, "error: internal error, please report it with --traceback: KeyError: 'axis'\n")


def test_help_is_quick_and_imports_no_torch() -> None:
    script = "import sys, atexit; sys.argv = ['qcompiler', '--help']; atexit.register(lambda: print('torch' in sys.modules));"
    script += "from qcompiler import cli; cli.main()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    for name in ("compile", "run", "inspect", "verify", "bench", "passes", "recipes", "targets"):
        assert f"  {name} " in done.stdout
