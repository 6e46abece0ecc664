"""The built-in back ends: name -> "module:object". A back end is imported when a target is looked for, its compiler later still."""

from __future__ import annotations

BACKENDS: dict[str, str] = {
    "tvm": "qcompiler.backends.tvm:backend",
}
