"""What there is: ``passes``, ``recipes``, ``targets``."""

from __future__ import annotations

import typer

from qcompiler.cli.printing import print_lines


def passes() -> None:
    """List the passes with their stages and options."""
    import dataclasses

    from qcompiler.pipeline import option_types
    from qcompiler.pipeline.registry import find_pass, pass_names

    for name in pass_names():
        found = find_pass(name)
        typer.echo(f"{name}  ({found.takes.value} -> {found.gives.value}, {type(found.promise).__name__.lower()})")
        typer.echo(f"    {_first_line(found.__doc__)}")
        types = option_types.types_of(found)
        for field in dataclasses.fields(found):
            default = option_types.to_text(option_types.default(field)) if option_types.has_default(field) else "must be given"
            typer.echo(f"    {field.name}: {option_types.expected(types[field.name])} [{default}]")


def recipes() -> None:
    """List the built-in recipes with their pipelines and options."""
    from qcompiler.pipeline.recipes import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        typer.echo(f"{name}: {recipe.summary}")
        typer.echo(f"    {','.join(step.text for step in recipe.steps)}")
        print_lines(f"    {option}: {meaning}" for option, meaning in recipe.options.items())


def targets() -> None:
    """List the targets, and which of them this machine can run."""
    from qcompiler.pipeline.registry import backend_names, find_backend, find_target

    _, best = find_target("native")
    for backend in (find_backend(name) for name in backend_names()):
        for target in backend.targets():
            reason = backend.available(target)
            native = "  (native)" if target == best else ""
            typer.echo(f"{target}: {'runs here' if reason is None else reason}{native}")


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
