"""Bits of layers: ``sensitivity``, ``correlate``, ``profile``, ``allocate``, ``pareto``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from qcompiler.cli.arguments import Calibration, FixedBatch, Model, Options, Recipe, Sizes, Target, Threads, parse_limits, parse_widths
from qcompiler.cli.checks import check_ending, check_metric, checked_options
from qcompiler.cli.models import capture_with_data
from qcompiler.cli.printing import print_lines, table_lines
from qcompiler.errors import CalibrationError, UnknownNameError


def sensitivity(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE.json|.csv", help="where the table goes")],
    metric: Annotated[str, typer.Option(metavar="NAME{OPTIONS}", help="as 'hessian-trace{probes=16}'; see docs/sensitivity.md")],
    calibration: Calibration = None,
    synthesize: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="in its place N images made of the model's batch norms")
    ] = None,
    labels: Annotated[
        Path | None, typer.Option(metavar="FILE.npy", help="class of each sample; without it the model's own output is the target")
    ] = None,
    bits: Annotated[str, typer.Option(metavar="N,N,...", help="bit-widths, of 2 to 8")] = "2,3,4,6,8",
    samples: Annotated[int, typer.Option(min=0, help="samples that are looked at, at most; 0: all")] = 64,
    batch: Annotated[int, typer.Option(min=1, help="samples at once, which bounds memory")] = 16,
    loss: Annotated[str, typer.Option(help="cross-entropy or squared-error, of the first output")] = "cross-entropy",
    seed: Annotated[int, typer.Option(help="of every random choice")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="processes")] = 1,
    checkpoint: Annotated[Path | None, typer.Option(metavar="DIR", help="keep finished evaluations there, and continue from them")] = None,
    channels: Annotated[
        bool, typer.Option("--channels", help="tell output channels apart, for allocate.channel_groups; TABLE.json alone")
    ] = False,
    recipe: Recipe = "int8",
    option: Options = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
) -> None:
    """Measure what each weight and activation of a model costs at each bit-width."""
    widths = parse_widths("--bits", bits)
    check_ending("table of channels" if channels else "table", output, (".json",) if channels else (".json", ".csv"))
    if calibration is not None and synthesize is not None:
        raise typer.BadParameter("--calibration and --synthesize exclude each other")
    options = checked_options(recipe, option, output)
    check_metric(metric)

    from qcompiler import analysis
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    program, data = capture_with_data(context, model, calibration, size, fixed_batch)
    if synthesize is not None:
        data = analysis.synthesize(program, synthesize, seed=seed, progress=progress)
    given = None if labels is None else _load_labels(labels)
    how: dict[str, Any] = {"recipe": recipe, "options": options, "samples": samples, "batch": batch, "loss": loss, "seed": seed}
    how |= {"channels": channels, "workers": workers, "checkpoint": checkpoint, "progress": progress}
    table = analysis.sensitivity(program, data, metric, widths, labels=given, **how)
    table.save(output)
    kinds = [sum(item.kind == kind for item in table.items) for kind in ("weight", "activation")]
    typer.echo(f"{output}: {table.metric} of {kinds[0]} weights and {kinds[1]} activations at {', '.join(map(str, widths))} bits")


def correlate(
    first: Annotated[Path, typer.Argument(metavar="TABLE", help="a table of 'sensitivity'")],
    second: Annotated[Path, typer.Argument(metavar="TABLE", help="another one")],
    bits: Annotated[int | None, typer.Option(min=2, max=16, help="one bit-width alone (default: each by itself)")] = None,
    kind: Annotated[str | None, typer.Option(metavar="weight|activation", help="one kind alone (default: each by itself)")] = None,
) -> None:
    """Compare two sensitivity tables by ranks: how far they order the same rows alike."""
    from qcompiler.sensitivity import ITEM_KINDS, SensitivityTable, rank_correlation

    if kind not in (None, *ITEM_KINDS):
        raise typer.BadParameter(f"--kind takes {' or '.join(ITEM_KINDS)}, got '{kind}'")

    tables = SensitivityTable.load(first), SensitivityTable.load(second)
    common = {(item.kind, width) for item, width in tables[0].rows.keys() & tables[1].rows.keys()}
    asked = [row for row in common if kind in (None, row[0]) and bits in (None, row[1])]
    if not asked:
        raise CalibrationError(f"'{first}' and '{second}' have no such rows in common: measure one at the items and bits of the other")
    for each, width in sorted(asked, key=lambda row: (ITEM_KINDS.index(row[0]), row[1])):
        found = rank_correlation(*tables, bits=width, kind=each)
        typer.echo(f"{each}s at {width} bits: Spearman {found.spearman:+.3f}, Kendall {found.kendall:+.3f}, {found.rows} rows")


def profile(
    context: typer.Context,
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE.json", help="where the table goes")],
    bits: Annotated[str, typer.Option(metavar="N,N,...", help="bits of the weights")] = "2,4,8",
    activation_bits: Annotated[str, typer.Option(metavar="N,N,...", help="bits of the values")] = "8",
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="as 'compile' takes it; without it random numbers: times do not depend on values")
    ] = None,
    recipe: Recipe = "int8",
    option: Options = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Annotated[str, typer.Option(help="see 'qcompiler targets'; this machine must be able to run it")] = "native",
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="time kernels again that were timed before")] = False,
) -> None:
    """Time a model's layers on this machine at each bit-width, for 'allocate{latency=...}'."""
    widths = {"weight_bits": parse_widths("--bits", bits), "activation_bits": parse_widths("--activation-bits", activation_bits)}
    options = checked_options(recipe, option, output, target=target)

    from qcompiler.latency import profile as measure
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    program, data = capture_with_data(context, model, calibration, size, fixed_batch)
    settings: dict[str, Any] = {"recipe": recipe, "options": options, "target": target, "threads": threads, "fresh": fresh, **widths}
    table = measure(program, data, progress=progress, **settings)
    table.save(output)
    machine = table.machine
    typer.echo(f"{output}: {len(table.layers)} layers, {len(table.kernels)} kernels, target {machine.target}, {machine.threads} threads")
    for pair in sorted(next(iter(table.layers.values()), {})):
        whole = table.predict(dict.fromkeys(table.layers, pair))
        typer.echo(f"W{pair[0]}A{pair[1]} everywhere: {whole * 1e3:.3f} ms, {(whole - table.rest) * 1e3:.3f} ms of it in layers")


def allocate(
    context: typer.Context,
    model: Model,
    calibration: Calibration = None,
    recipe: Recipe = "mixed",
    option: Annotated[
        list[str] | None,
        typer.Option(metavar="PASS.OPTION=VALUE", help="a budget, as allocate.size=1e6, or another option; may be repeated"),
    ] = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Target = "native",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT.json", help="write the allocation")] = None,
) -> None:
    """Show which bits a recipe with a pass 'allocate' would give to each layer."""
    options = checked_options(recipe, option, output, target=target)
    if output is not None:
        check_ending("allocation", output, (".json",))

    from qcompiler import analysis
    from qcompiler.allocation import BUDGETS
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    program, data = capture_with_data(context, model, calibration, size, fixed_batch)
    found = analysis.allocate(program, data, recipe=recipe, options=options, target=target, progress=progress)
    if output is not None:
        found.save(output)
    print_lines(f"{item.name}: {found.shown(item)}" for item in found.bits)
    print_lines(
        f"{budget} {cost:.6g} of {found.limits.get(budget, math.inf):.6g} {BUDGETS[budget]}" for budget, cost in found.costs.items()
    )
    typer.echo(f"sum of sensitivities {found.objective:.6g}, {found.average_weight_bits:.3f} bits on average ({found.method})")


def pareto(
    context: typer.Context,
    model: Model,
    budget: Annotated[str, typer.Option(metavar="NAME", help="what varies: average_weight_bits, size, bops or latency")],
    calibration: Calibration = None,
    limits: Annotated[str | None, typer.Option(metavar="X,X,...", help="limits of the budget (default: --points of them)")] = None,
    points: Annotated[int, typer.Option(min=2, help="how many limits, evenly from the least that is possible to the least sensitive")] = 16,
    recipe: Recipe = "mixed",
    option: Options = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Target = "native",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FRONT.json|.csv", help="write the allocations")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FRONT.svg|.png", help="draw sensitivity against cost; needs matplotlib")] = None,
) -> None:
    """Find the best bits of each layer for each of several limits of a budget; sensitivities are measured once."""
    given = None if limits is None else parse_limits("--limits", limits)
    options = checked_options(recipe, option, output, plot, target=target)
    _check_front(budget, output, plot)

    from qcompiler import analysis
    from qcompiler.allocation import BUDGETS, draw_front, save_front
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    program, data = capture_with_data(context, model, calibration, size, fixed_batch)
    how: dict[str, Any] = {"recipe": recipe, "options": options, "target": target, "progress": progress}
    front = analysis.pareto_front(program, data, budget, given, points=points, **how)
    if plot is not None:
        draw_front(front, budget, plot)
    if output is not None:
        save_front(front, budget, output)
    unit = BUDGETS[budget]
    rows = [
        [*(f"{x:.6g}" for x in (each.limits[budget], each.costs[budget], each.objective)), f"{each.average_weight_bits:.3f}"]
        for each in front
    ]
    print_lines(table_lines((f"limit, {unit}", f"{budget}, {unit}", "sensitivity", "average bits"), rows))


def _check_front(budget: str, output: Path | None, plot: Path | None) -> None:
    """Guards before the work: the budget's name, the files' endings, and what draws."""
    from qcompiler.allocation import BUDGETS, check_drawing

    if budget not in BUDGETS:
        raise UnknownNameError("budget", budget, BUDGETS)
    if output is not None:
        check_ending("front", output, (".json", ".csv"))
    if plot is not None:
        check_ending("figure", plot, (".svg", ".png"))
        check_drawing(plot)


def _load_labels(path: Path) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"labels '{path}' cannot be read as .npy: {error}") from error
    if not isinstance(found, np.ndarray):
        raise CalibrationError(f"labels '{path}' are several arrays: give a .npy file with one")
    return found
