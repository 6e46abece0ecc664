"""Mistakes that show at once, before torch and the model are loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import typer

from qcompiler.cli.arguments import parse_options
from qcompiler.errors import ArtifactError, UnknownNameError


def checked_options(
    recipe: str, items: Iterable[str] | None, *outputs: Path | None, target: str = "native", passes: str | None = None
) -> dict[str, str]:
    """What ``--option`` gave, by name, after a look at every name and at the paths of the outputs.

    Raises:
        ArtifactError: an output cannot be written.
        UnknownNameError: no such recipe, pass, option or target.
    """
    from qcompiler.pipeline.recipes import choose_passes
    from qcompiler.pipeline.registry import find_target

    options = parse_options(items)
    for output in outputs:
        if output is not None:
            check_output(output)
    choose_passes(recipe, options, passes)
    find_target(target)
    return options


def check_output(path: Path) -> None:
    """Tell before the work, not after it, that the result cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        raise ArtifactError(f"cannot write '{path}': there is no folder '{folder}'")
    if path.is_dir():
        raise ArtifactError(f"cannot write '{path}': it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ArtifactError(f"cannot write '{path}': no permission")


def check_ending(what: str, path: Path, endings: tuple[str, ...]) -> None:
    """The format of a file is what its name ends in."""
    if path.suffix not in endings:
        raise typer.BadParameter(f"the {what} is written as {' or '.join(endings)}, got '{path}'")


def check_metric(text: str) -> None:
    """Guard: what stands there with its options is a metric that there is."""
    from qcompiler.pipeline.registry import metric_names
    from qcompiler.pipeline.text import split_pipeline

    for written in split_pipeline(text):
        if written.name not in metric_names():
            raise UnknownNameError("metric", written.name, metric_names())
