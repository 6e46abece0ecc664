"""The command line. Every command is a thin layer over the Python interface; torch is imported by the commands that need it.

Exit status: 0, 1 for a mistake that the user can mend (one line on standard error), 2 for wrong usage of the command line.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from qcompiler.errors import ArtifactError, CalibrationError, CaptureError, QCompilerError, UnknownNameError
from qcompiler.files import replacing

if TYPE_CHECKING:
    import torch

    from qcompiler.api import Module
    from qcompiler.calibration.data import DataSource
    from qcompiler.capture.dynamic import DynamicShapes
    from qcompiler.ir.program import Program, ValueSpec
    from qcompiler.ir.types import Stage
    from qcompiler.pipeline.instruments import Instrument

app = typer.Typer(
    help="Compile trained neural networks to integer-only artifacts.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Artifact = Annotated[Path, typer.Argument(metavar="FILE.qca", help="a compiled artifact")]
Threads = Annotated[int | None, typer.Option(min=1, help="threads a call uses (default: all that this process may run on)")]

Sizes = Annotated[
    list[str] | None,
    typer.Option(
        metavar="INPUT[DIM]=SIZE",
        help="an open size of an input: 128 (ONNX files), 1..128, or sequence:1..128 for several; may be repeated",
    ),
]
FixedBatch = Annotated[bool, typer.Option("--fixed-batch", help="dimension 0 of the inputs is no batch of independent samples")]
_SIZE = re.compile(r"(.+)\[(\d+)\]=(?:(\w+):(?=\d+\.\.))?(\d+)(?:\.\.(\d+))?")

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


@app.command("compile")
def compile_command(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="file.pt2, file.onnx, or package.module:factory that gives a module or (module, example_inputs)"
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.qca", help="where the artifact goes")],
    calibration: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="file.npz, a folder of .npy/.npz, or package.module:factory; a quantized ONNX model needs none"),
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="see 'qcompiler recipes'")] = "int8",
    passes: Annotated[str | None, typer.Option(metavar="TEXT", help="a pipeline in place of the recipe's")] = None,
    option: Annotated[list[str] | None, typer.Option(metavar="PASS.OPTION=VALUE", help="replace an option; may be repeated")] = None,
    allow_float: Annotated[
        list[str] | None, typer.Option(metavar="OP", help="an op that may stay in float, as aten.sin.default; may be repeated")
    ] = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Annotated[str, typer.Option(help="see 'qcompiler targets'")] = "native",
    dump_ir: Annotated[Path | None, typer.Option(metavar="DIR", help="write the graph after every pass")] = None,
    sqnr: Annotated[bool, typer.Option("--sqnr", help="measure what each pass loses, on a few calibration samples")] = False,
) -> None:
    """Capture, quantize and compile a model."""
    options = dict(_key_and_value(item) for item in option or ())
    _check_output(output)
    # Names are looked up before torch and the model are loaded: a typing error shows at once.
    _check_names(recipe, passes, options, target)

    from qcompiler import api
    from qcompiler.calibration.data import open_data
    from qcompiler.ir.types import Stage
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    with _quiet_libraries(context.obj["verbose"]):
        program = _capture(model, calibration, allow_float, size, fixed_batch)
    if calibration is None and program.stage is Stage.FLOAT:
        raise CalibrationError(f"the model is at stage {program.stage.value}: give --calibration DATA to quantize it")
    if calibration is None and sqnr:
        raise CalibrationError("--sqnr measures on calibration samples: give --calibration DATA")
    data = None if calibration is None else open_data(calibration, program.inputs)
    instruments = _instruments(program, data, dump_ir, sqnr)
    module = api.compile(
        program,
        calibration_data=data,
        recipe=recipe,
        options=options,
        passes=passes,
        allow_float=allow_float or (),
        instruments=instruments,
        target=target,
        progress=progress,
    )
    module.save(output)
    history = module.program.history
    if context.obj["verbose"]:
        _print_lines(f"{record.name}: {note}" for record in history for note in record.notes)
    _print_noise(instruments)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, target {module.target}, {_ops(module.program)}")
    _print_lines(note for record in history for note in record.notes if note.startswith("stays in float: "))


@app.command()
def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as 'compile' takes it, or an artifact FILE.qca for format 'integer'")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="where the file goes")],
    format: Annotated[str, typer.Option(metavar="NAME", help="integer, qdq or float")] = "integer",
    opset: Annotated[int | None, typer.Option(help="version of ONNX (default: 21)")] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="file.npz, a folder of .npy/.npz, or package.module:factory; float needs none")
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="see 'qcompiler recipes'")] = "int8",
    option: Annotated[list[str] | None, typer.Option(metavar="PASS.OPTION=VALUE", help="replace an option; may be repeated")] = None,
    allow_float: Annotated[
        list[str] | None, typer.Option(metavar="OP", help="an op that may stay in float, as aten.sin.default; may be repeated")
    ] = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
) -> None:
    """Write a model as an ONNX file: integers only, quantized for other runtimes, or float."""
    options = dict(_key_and_value(item) for item in option or ())
    _check_output(output)
    _check_names(recipe, None, options, "native")

    from qcompiler import api
    from qcompiler.pipeline.registry import find_exporter

    exporter = find_exporter("onnx")
    exporter.check(format, opset)
    if model.endswith(".qca"):
        program = api.open_artifact(model).program
    else:
        with _quiet_libraries(context.obj["verbose"]):
            program = _capture(model, calibration, allow_float, size, fixed_batch)
        program = _at_stage(program, exporter.stage(format), calibration, recipe, options, allow_float or ())
    api.export_onnx(program, output, format, opset)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, format {format}")


@app.command()
def run(
    artifact: Artifact,
    data: Annotated[str, typer.Argument(metavar="DATA", help="file.npz, a folder of .npy/.npz, or package.module:factory")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT.npz", help="write the outputs as arrays")] = None,
    threads: Threads = None,
) -> None:
    """Run an artifact on data, floats in and floats out."""
    if output is not None:
        _check_output(output)
    import torch

    from qcompiler import api
    from qcompiler.calibration.data import CalibrationData, open_data

    module = api.load(artifact, threads)
    specs = module.program.inputs
    results = [_tuple(module(*batch)) for batch in CalibrationData(open_data(data, specs), specs)]
    outputs = {spec.name: torch.cat(parts) for spec, parts in zip(module.program.outputs, zip(*results, strict=True), strict=True)}
    if output is not None:
        _save_arrays(output, outputs)
    for name, value in outputs.items():
        typer.echo(f"{name}: {list(value.shape)} {_dtype(value.dtype)}, min {value.min():.6g}, max {value.max():.6g}")


@app.command()
def inspect(
    artifact: Artifact,
    text: Annotated[bool, typer.Option("--text", help="print the whole integer program")] = False,
) -> None:
    """Show what an artifact holds. No code of it is loaded: any machine will do."""
    from qcompiler import api

    module = api.open_artifact(artifact)
    if text:
        typer.echo(module.program.text())
        return
    _print_lines(_facts(artifact, module))


@app.command()
def verify(artifact: Artifact, threads: Threads = None) -> None:
    """Check hashes, prove integer-only and ranges again, and replay the test vectors on this machine."""
    from qcompiler import api

    typer.echo(f"{artifact}: hashes right; {api.load(artifact, threads).verify()}")


@app.command()
def bench(
    artifact: Artifact,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0.01, help="how long to measure")] = 3.0,
) -> None:
    """Latency of one sample on this machine, quantization and dequantization included."""
    import torch

    from qcompiler import api
    from qcompiler.ir.sizes import concrete_shape
    from qcompiler.measure import latency

    module = api.load(artifact, threads)
    sample = [torch.zeros(concrete_shape(spec.shape), dtype=spec.dtype) for spec in module.program.inputs]
    measured = latency(lambda: module(*sample), seconds)
    typer.echo(
        f"{artifact}: target {module.target}, {threads or 'all'} threads, batch 1: median {measured.median * 1e3:.3f} ms, "
        f"fastest {measured.fastest * 1e3:.3f} ms, 95 % under {measured.slow * 1e3:.3f} ms ({measured.runs} runs)"
    )


@app.command()
def profile(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as 'compile' takes it")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE.json", help="where the table goes")],
    bits: Annotated[str, typer.Option(metavar="N,N,...", help="bits of the weights")] = "2,4,8",
    activation_bits: Annotated[str, typer.Option(metavar="N,N,...", help="bits of the values")] = "8",
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="as 'compile' takes it; without it random numbers: times do not depend on values")
    ] = None,
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="see 'qcompiler recipes'")] = "int8",
    option: Annotated[list[str] | None, typer.Option(metavar="PASS.OPTION=VALUE", help="replace an option; may be repeated")] = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Annotated[str, typer.Option(help="see 'qcompiler targets'; this machine must be able to run it")] = "native",
    threads: Threads = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="time kernels again that were timed before")] = False,
) -> None:
    """Time a model's layers on this machine at each bit-width, for 'allocate{latency=...}'."""
    widths = {"weight_bits": _numbers("--bits", bits), "activation_bits": _numbers("--activation-bits", activation_bits)}
    options = dict(_key_and_value(item) for item in option or ())
    _check_output(output)
    _check_names(recipe, None, options, target)

    from qcompiler.calibration.data import open_data
    from qcompiler.latency import profile as measure
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    with _quiet_libraries(context.obj["verbose"]):
        program = _capture(model, calibration, None, size, fixed_batch)
    data = None if calibration is None else open_data(calibration, program.inputs)
    settings: dict[str, Any] = {"recipe": recipe, "options": options, "target": target, "threads": threads, "fresh": fresh, **widths}
    table = measure(program, data, progress=progress, **settings)
    table.save(output)
    machine = table.machine
    typer.echo(f"{output}: {len(table.layers)} layers, {len(table.kernels)} kernels, target {machine.target}, {machine.threads} threads")
    for pair in sorted(next(iter(table.layers.values()), {})):
        whole = table.predict(dict.fromkeys(table.layers, pair))
        typer.echo(f"W{pair[0]}A{pair[1]} everywhere: {whole * 1e3:.3f} ms, {(whole - table.rest) * 1e3:.3f} ms of it in layers")


@app.command()
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


@app.command()
def recipes() -> None:
    """List the built-in recipes with their pipelines and options."""
    from qcompiler.pipeline.recipes import load_recipe, recipe_names

    for name in recipe_names():
        recipe = load_recipe(name)
        typer.echo(f"{name}: {recipe.summary}")
        typer.echo(f"    {','.join(step.text for step in recipe.steps)}")
        _print_lines(f"    {option}: {meaning}" for option, meaning in recipe.options.items())


@app.command()
def targets() -> None:
    """List the targets, and which of them this machine can run."""
    from qcompiler.pipeline.registry import backend_names, find_backend, find_target

    _, best = find_target("native")
    for backend in (find_backend(name) for name in backend_names()):
        for target in backend.targets():
            reason = backend.available(target)
            native = "  (native)" if target == best else ""
            typer.echo(f"{target}: {'runs here' if reason is None else reason}{native}")


@app.command()
def sensitivity(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as 'compile' takes it")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="TABLE.json|.csv", help="where the table goes")],
    metric: Annotated[str, typer.Option(metavar="NAME{OPTIONS}", help="as 'hessian-trace{probes=16}'; see docs/sensitivity.md")],
    calibration: Annotated[str | None, typer.Option(metavar="DATA", help="as 'compile' takes it")] = None,
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
    recipe: Annotated[str, typer.Option(metavar="NAME|FILE.yaml", help="see 'qcompiler recipes'")] = "int8",
    option: Annotated[list[str] | None, typer.Option(metavar="PASS.OPTION=VALUE", help="replace an option; may be repeated")] = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
) -> None:
    """Measure what each weight and activation of a model costs at each bit-width."""
    options = dict(_key_and_value(item) for item in option or ())
    widths = _numbers("--bits", bits)
    _check_output(output)
    if output.suffix not in (".json", ".csv"):
        raise typer.BadParameter(f"the table is written as .json or .csv, got '{output}'")
    if calibration is not None and synthesize is not None:
        raise typer.BadParameter("--calibration and --synthesize exclude each other")
    _check_names(recipe, None, options, "native")
    _check_metric(metric)

    from qcompiler import analysis
    from qcompiler.calibration.data import open_data
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    with _quiet_libraries(context.obj["verbose"]):
        program = _capture(model, calibration, None, size, fixed_batch)
    data: Any = None if calibration is None else open_data(calibration, program.inputs)
    if synthesize is not None:
        data = analysis.synthesize(program, synthesize, seed=seed, progress=progress)
    given = None if labels is None else _load_labels(labels)
    how: dict[str, Any] = {"recipe": recipe, "options": options, "samples": samples, "batch": batch, "loss": loss, "seed": seed}
    table = analysis.sensitivity(
        program, data, metric, widths, labels=given, workers=workers, checkpoint=checkpoint, progress=progress, **how
    )
    table.save(output)
    kinds = [sum(item.kind == kind for item in table.items) for kind in ("weight", "activation")]
    typer.echo(f"{output}: {table.metric} of {kinds[0]} weights and {kinds[1]} activations at {', '.join(map(str, widths))} bits")


@app.command()
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


def _end(error: Exception, message: str, traceback: bool) -> NoReturn:
    if traceback:
        raise error
    # One line, whatever a library put into its message.
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(1)


def _check_output(path: Path) -> None:
    """Tell before the work, not after it, that the result cannot be written."""
    folder = path.parent
    if not folder.is_dir():
        raise ArtifactError(f"cannot write '{path}': there is no folder '{folder}'")
    if path.is_dir():
        raise ArtifactError(f"cannot write '{path}': it is a folder")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise ArtifactError(f"cannot write '{path}': no permission")


def _check_names(recipe: str, passes: str | None, options: dict[str, str], target: str) -> None:
    from qcompiler.pipeline.recipes import choose_passes
    from qcompiler.pipeline.registry import find_target

    choose_passes(recipe, options, passes)
    find_target(target)


def _check_metric(text: str) -> None:
    from qcompiler.pipeline.registry import metric_names
    from qcompiler.pipeline.text import split_pipeline

    for written in split_pipeline(text):
        if written.name not in metric_names():
            raise UnknownNameError("metric", written.name, metric_names())


def _load_labels(path: Path) -> Any:
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CalibrationError(f"labels '{path}' cannot be read as .npy: {error}") from error
    if not isinstance(found, np.ndarray):
        raise CalibrationError(f"labels '{path}' are several arrays: give a .npy file with one")
    return found


def _at_stage(
    program: Program, stage: Stage, calibration: str | None, recipe: str, options: dict[str, str], allow_float: Sequence[str]
) -> Program:
    """The program at the stage that a format is written from, by those passes of the recipe that lead there from its own."""
    from qcompiler import api
    from qcompiler.calibration.data import open_data
    from qcompiler.ir.types import Stage
    from qcompiler.pipeline.recipes import load_recipe

    order = list(Stage)
    first, last = order.index(program.stage), order.index(stage)
    if first >= last:
        return program
    chosen = [item for item in load_recipe(recipe).passes(options) if order.index(item.takes) >= first and order.index(item.gives) <= last]
    if program.stage is not Stage.FLOAT:
        return api.quantize(program, recipe=recipe, options=options, allow_float=allow_float)
    if calibration is None:
        raise CalibrationError(f"the model is at stage {program.stage.value}: give --calibration DATA to bring it to stage {stage.value}")
    return api.quantize(program, open_data(calibration, program.inputs), passes=chosen, allow_float=allow_float)


def _capture(
    model: str, calibration: str | None, allow_float: Sequence[str] | None, sizes: Sequence[str] | None, fixed_batch: bool
) -> Program:
    from qcompiler import api
    from qcompiler.ir.program import Program

    how: dict[str, Any] = {
        "dynamic_batch": not fixed_batch,
        "dynamic_shapes": _dynamic_shapes(sizes or ()),
        "allow_float": tuple(allow_float or ()),
    }
    if ":" not in model:
        return api.capture(model, **how)
    made = _make_model(model)
    if isinstance(made, Program):
        return made
    module, example = made if isinstance(made, tuple) else (made, None)
    if example is None and calibration is not None:
        example = _first_input(calibration)
    return api.capture(module, example, **how)


def _dynamic_shapes(items: Sequence[str]) -> DynamicShapes:
    """``ids[1]=128``, ``ids[1]=1..128`` or ``ids[1]=sequence:1..128``: inputs whose sizes have one name are equal in it."""
    from qcompiler.ir.types import DynamicSize

    shapes: dict[str | int, dict[int, Any]] = {}
    for item in items:
        found = _SIZE.fullmatch(item)
        if found is None:
            raise typer.BadParameter(f"--size takes INPUT[DIM]=NUMBER or INPUT[DIM]=[NAME:]MIN..MAX, got '{item}'")
        name, dim, symbol, low, high = found.groups()
        size = int(low) if high is None else DynamicSize(symbol or f"{name}_{dim}", int(low), int(high))
        shapes.setdefault(name, {})[int(dim)] = size
    return shapes


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


def _instruments(program: Program, data: DataSource | None, dump_ir: Path | None, sqnr: bool) -> list[Instrument]:
    from qcompiler.calibration.data import CalibrationData
    from qcompiler.pipeline.instruments import Dump, SignalToNoise

    instruments: list[Instrument] = []
    if dump_ir is not None:
        instruments.append(Dump(dump_ir))
    if sqnr and data is not None:
        instruments.append(SignalToNoise(CalibrationData(data, program.inputs).samples))
    return instruments


def _print_noise(instruments: Sequence[Instrument]) -> None:
    from qcompiler.pipeline.instruments import SignalToNoise

    for instrument in instruments:
        if isinstance(instrument, SignalToNoise):
            _print_lines(f"SQNR after {record.name}: {record.decibels:.1f} dB" for record in instrument.records)


def _key_and_value(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise typer.BadParameter(f"--option takes PASS.OPTION=VALUE, got '{text}'")
    return key, value


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """``2,4,8``."""
    if not re.fullmatch(r"[2-8](,[2-8])*", text):
        raise typer.BadParameter(f"{option} takes numbers from 2 to 8 with commas between them, got '{text}'")
    return tuple(int(number) for number in text.split(","))


def _facts(path: Path, module: Module) -> Iterable[str]:
    program = module.program
    recipe = f", recipe {module.recipe}" if module.recipe else ""
    yield f"{path}: {path.stat().st_size / 1e6:.2f} MB, target {module.target}{recipe}"
    for kind, specs in (("input", program.inputs), ("output", program.outputs)):
        yield from (f"{kind} {_describe(spec)}" for spec in specs)
    yield f"{_ops(program)}, {len(module.vectors)} test vectors"
    for record in program.history:
        options = ", ".join(f"{key}={value}" for key, value in record.options.items())
        yield f"pass {record.name}{f' ({options})' if options else ''}{'' if record.modified else ': nothing to do'}"


def _describe(spec: ValueSpec) -> str:
    from qcompiler.ir.sizes import shape_text

    quantized = spec.quantized
    inside = f" as {quantized.integer}, scale {quantized.scale[0]:.6g}, zero point {quantized.zero_point[0]}" if quantized else ""
    return f"{spec.name}: {_dtype(spec.dtype)} [{shape_text(spec.shape)}]{inside}"


def _save_arrays(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    """As ``.npz``, all or nothing."""
    import numpy as np

    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]  # names are the user's
    except OSError as error:
        raise ArtifactError(f"cannot write '{path}': {error.strerror}") from error


def _ops(program: Program) -> str:
    """How many ops work on integers, and how many on floats: none but islands that the user allowed, each with its two conversions."""
    from qcompiler.ir.verifier import integer_report

    report = integer_report(program)
    return f"{report.integer_ops} integer ops, {report.float_ops} float ops"


def _print_lines(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


def _tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
