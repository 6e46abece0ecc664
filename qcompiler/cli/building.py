"""Models to files: ``compile``, ``export``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli.arguments import AllowFloat, FixedBatch, Options, Recipe, Sizes, Target
from qcompiler.cli.checks import checked_options
from qcompiler.cli.models import capture, capture_with_data
from qcompiler.cli.printing import ops_text, print_lines
from qcompiler.errors import CalibrationError

if TYPE_CHECKING:
    from qcompiler.calibration.data import DataSource
    from qcompiler.ir.program import Program
    from qcompiler.ir.types import Stage
    from qcompiler.pipeline.instruments import Instrument


def compile_model(
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
    recipe: Recipe = "int8",
    passes: Annotated[str | None, typer.Option(metavar="TEXT", help="a pipeline in place of the recipe's")] = None,
    option: Options = None,
    allow_float: AllowFloat = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
    target: Target = "native",
    dump_ir: Annotated[Path | None, typer.Option(metavar="DIR", help="write the graph after every pass")] = None,
    sqnr: Annotated[bool, typer.Option("--sqnr", help="measure what each pass loses, on a few calibration samples")] = False,
) -> None:
    """Capture, quantize and compile a model."""
    options = checked_options(recipe, option, output, target=target, passes=passes)

    from qcompiler import api
    from qcompiler.ir.types import Stage
    from qcompiler.pipeline.progress import command_progress

    progress = command_progress()
    program, data = capture_with_data(context, model, calibration, size, fixed_batch, allow_float)
    if calibration is None and program.stage is Stage.FLOAT:
        raise CalibrationError(f"the model is at stage {program.stage.value}: give --calibration DATA to quantize it")
    if calibration is None and sqnr:
        raise CalibrationError("--sqnr measures on calibration samples: give --calibration DATA")
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
        print_lines(f"{record.name}: {note}" for record in history for note in record.notes)
    _print_noise(instruments)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, target {module.target}, {ops_text(module.program)}")
    print_lines(note for record in history for note in record.notes if note.startswith("stays in float: "))


def export(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="as 'compile' takes it, or an artifact FILE.qca for format 'integer'")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.onnx", help="where the file goes")],
    format: Annotated[str, typer.Option(metavar="NAME", help="integer, qdq or float")] = "integer",
    opset: Annotated[int | None, typer.Option(help="version of ONNX (default: 21)")] = None,
    calibration: Annotated[
        str | None, typer.Option(metavar="DATA", help="file.npz, a folder of .npy/.npz, or package.module:factory; float needs none")
    ] = None,
    recipe: Recipe = "int8",
    option: Options = None,
    allow_float: AllowFloat = None,
    size: Sizes = None,
    fixed_batch: FixedBatch = False,
) -> None:
    """Write a model as an ONNX file: integers only, quantized for other runtimes, or float."""
    options = checked_options(recipe, option, output)

    from qcompiler import api
    from qcompiler.pipeline.registry import find_exporter

    exporter = find_exporter("onnx")
    exporter.check(format, opset)
    if model.endswith(".qca"):
        program = api.open_artifact(model).program
    else:
        program = capture(context, model, calibration, size, fixed_batch, allow_float)
        program = _at_stage(program, exporter.stage(format), calibration, recipe, options, allow_float or ())
    api.export_onnx(program, output, format, opset)
    typer.echo(f"{output}: {output.stat().st_size / 1e6:.2f} MB, format {format}")


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
            print_lines(f"SQNR after {record.name}: {record.decibels:.1f} dB" for record in instrument.records)
