"""MODEL and DATA: what the user's arguments name, loaded."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from qcompiler.cli.arguments import parse_sizes
from qcompiler.errors import CaptureError, QCompilerError

if TYPE_CHECKING:
    import torch

    from qcompiler.calibration.data import DataSource
    from qcompiler.ir.program import Program


def capture_with_data(
    context: typer.Context,
    model: str,
    calibration: str | None,
    sizes: Sequence[str] | None,
    fixed_batch: bool,
    allow_float: Sequence[str] | None = None,
) -> tuple[Program, DataSource | None]:
    """As ``capture``, and the calibration data if there are any."""
    from qcompiler.calibration.data import open_data

    program = capture(context, model, calibration, sizes, fixed_batch, allow_float)
    return program, None if calibration is None else open_data(calibration, program.inputs)


def capture(
    context: typer.Context,
    model: str,
    calibration: str | None,
    sizes: Sequence[str] | None,
    fixed_batch: bool,
    allow_float: Sequence[str] | None = None,
) -> Program:
    """The program that MODEL names; where its factory gives no example input the first calibration input is one."""
    from qcompiler import api
    from qcompiler.ir.program import Program

    how: dict[str, Any] = {
        "dynamic_batch": not fixed_batch,
        "dynamic_shapes": parse_sizes(sizes or ()),
        "allow_float": tuple(allow_float or ()),
    }
    with _quiet_libraries(context.obj["verbose"]):
        if ":" not in model:
            return api.capture(model, **how)
        made = _make_model(model)
        if isinstance(made, Program):
            return made
        module, example = made if isinstance(made, tuple) else (made, None)
        if example is None and calibration is not None:
            example = _first_input(calibration)
        return api.capture(module, example, **how)


@contextlib.contextmanager
def _quiet_libraries(verbose: bool) -> Iterator[None]:
    """Keep torch's own prints and log lines about a model that it cannot export out of the way of our one line."""
    if verbose:
        yield
        return
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


def _make_model(address: str) -> Any:
    """What the factory ``package.module:factory`` gives: a module, (module, example inputs), an exported program or a program."""
    from qcompiler.user_code import import_user_module

    module_name, _, name = address.partition(":")
    try:
        factory = getattr(import_user_module(module_name), name)
        return factory()
    except QCompilerError:
        raise
    except Exception as error:  # the user's module may raise anything
        raise CaptureError(f"model '{address}' cannot be made: {type(error).__name__}: {error}") from error


def _first_input(calibration: str) -> tuple[torch.Tensor, ...]:
    """The first calibration input: an example for capture where the model's factory gives none."""
    import torch

    from qcompiler.calibration.data import first_item

    return tuple(torch.as_tensor(value) for value in first_item(calibration))
