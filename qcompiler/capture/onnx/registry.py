"""The converters: which function of torch stands for which ONNX op, from which version of the op's domain on.

    @converter("Softmax", since=13)
    def softmax(call: Call) -> torch.Tensor:
        return torch.softmax(call.tensor(0), call.integer("axis", -1))

A converter with ``since=13`` serves opset 13 and later, until one with a larger ``since`` takes over. Modules of
``qcompiler.capture.onnx.ops`` register theirs when they are imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qcompiler.capture.onnx.call import Call

Convert = Callable[["Call"], Any]


@dataclass(frozen=True)
class Converter:
    """``folds``: whether a call on constants alone is computed before tracing, and so leaves no node in the program."""

    op_type: str
    domain: str
    since: int
    convert: Convert
    folds: bool = True


_CONVERTERS: dict[tuple[str, str], list[Converter]] = {}


def converter(*op_types: str, since: int = 1, domain: str = "", folds: bool = True) -> Callable[[Convert], Convert]:
    """Register a function for ops. It gets a ``Call`` and gives one value, or a tuple with one for each output."""

    def register(convert: Convert) -> Convert:
        for op_type in op_types:
            known = _CONVERTERS.setdefault((domain, op_type), [])
            if any(other.since == since for other in known):
                raise ValueError(f"two converters of {domain}.{op_type} since version {since}")
            known.append(Converter(op_type, domain, since, convert, folds))
            known.sort(key=lambda found: found.since)
        return convert

    return register


def find(domain: str, op_type: str, version: int) -> Converter | None:
    """The newest converter that serves the version; None if there is none."""
    serving = [found for found in _CONVERTERS.get((domain, op_type), ()) if found.since <= version]
    return serving[-1] if serving else None


def converters() -> Iterator[Converter]:
    """All of them, sorted by domain, op and version: for the table of ``docs/onnx-support.md``."""
    for key in sorted(_CONVERTERS):
        yield from _CONVERTERS[key]
