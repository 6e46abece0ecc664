from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

Command = Callable[..., Any]


def test_lists(command: Command) -> None:
    assert re.search(r"^quantize  \(float -> qdq, lossy\)$", command("passes").out, re.MULTILINE)
    assert "    w: an integer [8]" in command("passes").out
    assert re.search(r"^int8: ", command("recipes").out, re.MULTILINE)
    targets = command("targets").out
    assert "x86-64-v3: " in targets and targets.count("(native)") == 1
