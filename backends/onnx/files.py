"""Writing the file: checked, under a temporary name first, weights beside it where it would pass 2 GB."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import onnx
import onnx_ir as ir

from qcompiler.errors import ArtifactError

LARGEST_FILE = (1 << 31) - (1 << 24)  # protobuf ends at 2 GiB; the rest is for nodes
_EXTERNAL_BYTES = 1024


def write(model: ir.Model, path: Path, largest: int = LARGEST_FILE) -> None:
    """Write ``path``; a model with more than ``largest`` bytes of weights puts them into ``path`` + ``.data``.

    Raises:
        ArtifactError: the file cannot be written; an older one of that name is as it was.
    """
    external = weight_bytes(model) > largest
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    data = path.with_name(f"{path.name}.data")
    try:
        if external:
            ir.save(model, temporary, external_data=data.name, size_threshold_bytes=_EXTERNAL_BYTES)
        else:
            temporary.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
        os.replace(temporary, path)
    except OSError as error:
        raise ArtifactError(f"cannot write '{path}': {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of all constants."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)


def checked(model: ir.Model) -> onnx.ModelProto:
    """The protobuf, after ``onnx.checker``; for models that fit one."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return proto
