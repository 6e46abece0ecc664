"""From a torch module to a ``torch.export`` program: evaluation mode, symbolic batch, and errors in one line."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from qcompiler.capture.dynamic import BATCH_NAME, Resolved
from qcompiler.errors import CaptureError

# torch.export treats the sizes 0 and 1 as constants, so a symbolic dimension needs an example of at least this size.
SMALLEST_DYNAMIC_BATCH = 2

Tensors = tuple[torch.Tensor, ...]

_TORCH_DIRECTORY = str(Path(torch.__file__).parent)
_RESTRICTED = re.compile(r"Constraints violated(?: \((\w+))?")
# ``T = Dim('T', max=64)``, or ``H = 8*_H`` where it takes multiples alone.
_SUGGESTED = re.compile(r"^ +(\w+) = (Dim\(.*\)|(\d+)\*_\1)$", re.MULTILINE)
_SPECIALIZED = re.compile(r"specialized it to be a constant \((\d+)\)")
# Where shapes do not fit torch logs a traceback before it raises.
_LOUD = logging.getLogger("torch._subclasses.fake_tensor")


def export_module(model: nn.Module, inputs: Tensors, dynamic_batch: bool, dynamic: Resolved = ()) -> ExportedProgram:
    """``torch.export.export`` of the module in evaluation mode; dimension 0 of every input is one symbol if ``dynamic_batch``, and
    those of ``dynamic`` are others.

    Raises:
        CaptureError: as ``capture`` says; the error of torch stays attached as its cause.
    """
    _check_devices(model, inputs)
    traced = _with_traceable_batch(inputs) if dynamic_batch else tuple(value.detach().clone() for value in inputs)
    shapes = _shapes(traced, dynamic_batch, dynamic or ({},) * len(inputs))
    with _evaluation_mode(model), torch.no_grad():
        try:
            with _silenced(_LOUD):
                return torch.export.export(model, traced, dynamic_shapes=shapes)
        except CaptureError:  # of the interpreter of ONNX graphs, which names the node
            raise
        except Exception as error:  # torch.export lets every error of the model through, besides its own many kinds
            raise _explain(error, model, inputs, traced) from error


def _shapes(traced: Tensors, dynamic_batch: bool, dynamic: Resolved) -> Any:
    """The dynamic dimensions as torch.export takes them (a ShapesCollection, though its annotation does not say so)."""
    if not dynamic_batch and not any(dynamic):
        return None
    shapes = ShapesCollection()
    for value, sizes in zip(traced, dynamic, strict=True):
        dims = {dim: Dim(size.name, min=size.minimum, max=size.maximum) for dim, size in sizes.items()}
        shapes[value] = {0: Dim(BATCH_NAME), **dims} if dynamic_batch else dims
    return shapes


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """``model.eval()`` for the time of the block; afterwards each submodule has the mode that it had before.

    ``nn.TransformerEncoderLayer`` and ``nn.MultiheadAttention`` call one fused op in evaluation mode: it is off, for the ops it is made of.
    """
    modes = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in modes.items():
            module.training = training


@contextmanager
def _silenced(logger: logging.Logger) -> Iterator[None]:
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def _check_devices(model: nn.Module, inputs: Tensors) -> None:
    devices = {str(value.device) for value in (*model.parameters(), *model.buffers(), *inputs)} - {"cpu"}
    if devices:
        raise CaptureError(f"{model._get_name()} has tensors on {', '.join(sorted(devices))}: move the model and its inputs with .cpu()")


def _with_traceable_batch(inputs: Tensors) -> Tensors:
    """Fresh tensors with a batch of at least two; fresh, because one tensor given twice would count as one input."""
    sizes = {value.shape[0] for value in inputs if value.ndim}
    if len(sizes) != 1 or any(value.ndim == 0 for value in inputs):
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise CaptureError(f"inputs of shapes {shapes} do not share a batch in dimension 0: capture with dynamic_batch=False")
    batch = sizes.pop()
    if batch == 0:
        raise CaptureError("the example inputs are an empty batch: give at least one sample")
    if batch >= SMALLEST_DYNAMIC_BATCH:
        return tuple(value.detach().clone() for value in inputs)
    return tuple(value.detach()[:1].repeat(SMALLEST_DYNAMIC_BATCH, *[1] * (value.ndim - 1)) for value in inputs)


def _explain(error: Exception, model: nn.Module, inputs: Tensors, traced: Tensors) -> CaptureError:
    """One line for whatever ``torch.export`` raised on ``traced``, the user's ``inputs`` with a batch of two at least."""
    name = model._get_name()
    if isinstance(error, GuardOnDataDependentSymNode):
        return CaptureError(
            f"{name} decides by the values of a tensor{_place(error)}: control flow and shapes must not depend on values;"
            " use torch.where or clamp, or move the decision out of the model"
        )
    specialized, restricted = _SPECIALIZED.search(str(error)), _RESTRICTED.search(str(error))
    if restricted and restricted[1] not in (None, BATCH_NAME):
        what = f"fixes the size '{restricted[1]}' to {specialized[1]}" if specialized else f"does not take every size '{restricted[1]}'"
        return CaptureError(f"{name} {what}: {_way_out_of_sizes(str(error), restricted[1])}")
    if specialized or restricted:
        what = f"fixes the batch size to {specialized[1]}" if specialized else "does not take every batch size"
        return CaptureError(f"{name} {what}: capture with dynamic_batch=False, or write its shapes with x.shape[0]")
    failure = _failure(model, inputs)
    if failure is not None:
        return CaptureError(f"{name} fails on the example inputs{_place(failure)}: {_first_line(failure)}")
    failure = _failure(model, traced)
    if failure is not None:
        return CaptureError(
            f"{name} fixes the batch size to {inputs[0].shape[0]}{_place(failure)}: capture with dynamic_batch=False,"
            " or write its shapes with x.shape[0]"
        )
    return CaptureError(f"torch.export cannot trace {name}{_place(error)}: {_first_line(error)}")


def _way_out_of_sizes(text: str, size: str) -> str:
    suggested = {match[1]: match for match in _SUGGESTED.finditer(text)}.get(size)
    if suggested is not None and suggested[3] is not None:
        return (
            f"it takes multiples of {suggested[3]} alone; leave it out of dynamic_shapes, and capture a program for each size that you need"
        )
    bounds = f" (torch.export suggests {suggested[2]})" if suggested is not None else ""
    return f"leave it out of dynamic_shapes, narrow its bounds{bounds}, or write shapes with x.shape"


def _failure(model: nn.Module, inputs: Tensors) -> Exception | None:
    try:
        model(*inputs)
    except Exception as failure:  # whatever the user's code raises
        return failure
    return None


def _place(error: BaseException) -> str:
    """`` at file:line (code)`` of the innermost frame that belongs to the user's model, or nothing."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame.filename)]
    return f" at {frames[-1].filename}:{frames[-1].lineno} ({frames[-1].line})" if frames else ""


def _is_users(filename: str) -> bool:
    return not filename.startswith((_TORCH_DIRECTORY, "<")) and filename != __file__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
