"""The command ``qcompiler``: flags that hold for all commands, the commands in the order of the help, and how errors end it."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from qcompiler.cli.artifacts import bench, inspect, run, verify
from qcompiler.cli.bits import allocate, correlate, pareto, profile, sensitivity
from qcompiler.cli.building import compile_model, export
from qcompiler.cli.lists import passes, recipes, targets
from qcompiler.errors import QCompilerError

app = typer.Typer(
    help="Compile trained neural networks to integer-only artifacts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

_GLOBAL_FLAGS = ("--traceback", "--verbose")


def main() -> NoReturn:
    """Entry point of the command ``qcompiler``."""
    arguments = sys.argv[1:]
    given = [flag for flag in _GLOBAL_FLAGS if flag in arguments]
    # The global flags may stand anywhere, before or after the command.
    arguments = given + [argument for argument in arguments if argument not in _GLOBAL_FLAGS]
    try:
        app(arguments, prog_name="qcompiler")
    except QCompilerError as error:
        _end(error, str(error), "--traceback" in given)
    except BrokenPipeError:
        # The reader of our output (head, less) went away; nothing more can be printed, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = f"internal error, please report it with --traceback: {type(error).__name__}: {error}"
        _end(error, message, "--traceback" in given)
    sys.exit(0)


@app.callback()
def _global_options(
    context: typer.Context,
    traceback: Annotated[bool, typer.Option("--traceback", help="show where in the code an error was raised")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="show what each pass noted, and warnings of libraries")] = False,
) -> None:
    context.obj = {"verbose": verbose}
    if not verbose:
        warnings.simplefilter("ignore")


def _end(error: Exception, message: str, traceback: bool) -> NoReturn:
    if traceback:
        raise error
    # One line, whatever a library put into its message.
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


app.command("compile")(compile_model)
for _command in (export, run, inspect, verify, bench, profile, passes, recipes, targets, sensitivity, correlate, allocate, pareto):
    app.command()(_command)
