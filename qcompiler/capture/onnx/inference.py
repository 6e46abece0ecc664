"""Types and shapes of a model's values by ``onnx.shape_inference``, in a process of its own.

On damaged models its C++ code does not only raise: it may run into an assertion and take the process along, or compute a constant that
fills the memory. The child has limits of time and memory that grow with the model.
"""

from __future__ import annotations

import faulthandler
import os
import sys
from collections.abc import Callable
from pathlib import Path

from onnx import ModelProto, shape_inference

from qcompiler.errors import CaptureError

_GAVE_TYPES, _RAISED = b"+", b"-"
_SECONDS, _BYTES_A_SECOND = 10, 1 << 20
_MEMORY, _COPIES = 1 << 30, 8


def inferred(proto: ModelProto) -> ModelProto:
    """The model with the types and shapes that follow from its inputs.

    Raises CaptureError where they do not fit, and where inference itself breaks off.
    """
    answer = _in_child(lambda: _infer(proto), proto.ByteSize()) if hasattr(os, "fork") else _infer(proto)
    kind, content = answer[:1], answer[1:]
    if kind == _GAVE_TYPES:
        result: ModelProto = ModelProto.FromString(content)
        return result
    reason = content.decode(errors="replace") or "to infer them takes more time or memory than a sound model does"
    raise CaptureError(f"types or shapes do not fit: {reason}")


def _infer(proto: ModelProto) -> bytes:
    try:
        typed: bytes = shape_inference.infer_shapes(proto, check_type=True).SerializeToString()
        return _GAVE_TYPES + typed
    except Exception as error:  # C++ exceptions of several kinds
        text = " ".join(str(error).split())
        return _RAISED + (b"" if "bad_alloc" in text else text.encode())


def _in_child(work: Callable[[], bytes], size: int) -> bytes:
    """What ``work`` on a model of ``size`` bytes gives in a forked process; nothing where that process dies."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(writer, work, size)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer: bytes = pipe.read()
    _, status = os.waitpid(child, 0)
    return answer if status == 0 else b""


def _answer(writer: int, work: Callable[[], bytes], size: int) -> None:
    """The child's whole life: no handler or buffer of the parent's runs in it."""
    status = 1
    try:
        _limit(size)
        faulthandler.disable()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what an assertion prints
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(work())
        status = 0
    finally:
        os._exit(status)


def _limit(size: int) -> None:
    """Of this process: what a sound model of ``size`` bytes needs many times over."""
    import resource  # only where processes fork

    seconds = _SECONDS + size // _BYTES_A_SECOND
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    statistics = Path("/proc/self/statm")  # where the system has it
    if statistics.exists():
        mapped = int(statistics.read_text().split()[0]) * resource.getpagesize()
        most = mapped + _MEMORY + _COPIES * size
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
