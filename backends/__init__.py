"""Back ends: each turns an INTEGER program into something that runs and gives the same integers."""

from __future__ import annotations

# name -> "module:object", in the order in which targets are looked for. A back end is imported when a target is asked for.
BACKENDS: dict[str, str] = {
    "tvm": "qcompiler.backends.tvm:backend",
}
