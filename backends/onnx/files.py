"""Writing the file: checked before it appears, in one step, weights beside it where it would pass 2 GB."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
import onnx_ir as ir

from qcompiler.errors import ArtifactError

LARGEST_FILE = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB; the rest is for nodes
_EXTERNAL_BYTES = 1024

Check = Callable[[onnx.ModelProto], None]


def write(model: ir.Model, path: Path, check: Check | None = None, largest: int = LARGEST_FILE) -> None:
    """Write ``path``; a model with more than ``largest`` bytes of weights puts them into ``path`` + ``.data``.

    ``onnx.checker`` and ``check`` see what was written before it gets its name; large weights are then not in the model that they see.

    Raises:
        ArtifactError: the file cannot be written; an older one of that name is as it was.
    """
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            proto = _write(model, Path(folder) / path.name, external=weight_bytes(model) > largest)
            if check is not None:
                check(proto)
            # The weights go first: until the file itself is there, nobody reads them.
            for written in sorted(Path(folder).iterdir(), reverse=True):
                os.replace(written, path.parent / written.name)
    except OSError as error:
        raise ArtifactError(f"cannot write '{path}': {error.strerror or error}") from error


def _write(model: ir.Model, path: Path, *, external: bool) -> onnx.ModelProto:
    if external:
        ir.save(model, path, external_data=f"{path.name}.data", size_threshold_bytes=_EXTERNAL_BYTES)
        onnx.checker.check_model(str(path), full_check=True)
        return onnx.load(str(path), load_external_data=False)
    proto = checked(model)
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return proto


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def checked(model: ir.Model) -> onnx.ModelProto:
    """The protobuf, after ``onnx.checker``; for models that fit one."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto
