"""Back ends: each turns an INTEGER program into something that runs and gives the same integers."""

from __future__ import annotations

# Name -> address of its ``backend`` object, imported when first used. Targets are looked for in this order.
BACKENDS = {
    "tvm": "qcompiler.backends.tvm:backend",
    "reference": "qcompiler.backends.reference:backend",
}

# Formats of files for other runtimes: name -> address of the ``exporter`` object.
EXPORTERS = {"onnx": "qcompiler.backends.onnx:exporter"}
