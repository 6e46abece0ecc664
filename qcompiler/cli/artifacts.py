"""Artifacts: ``run``, ``inspect``, ``verify``, ``bench``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli.arguments import Artifact, Threads
from qcompiler.cli.checks import check_output
from qcompiler.cli.printing import dtype_text, ops_text, print_lines
from qcompiler.errors import ArtifactError
from qcompiler.files import replacing

if TYPE_CHECKING:
    import torch

    from qcompiler.api import Module
    from qcompiler.ir.program import ValueSpec


def run(
    artifact: Artifact,
    data: Annotated[str, typer.Argument(metavar="DATA", help="file.npz, a folder of .npy/.npz, or package.module:factory")],
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="OUT.npz", help="write the outputs as arrays")] = None,
    threads: Threads = None,
) -> None:
    """Run an artifact on data, floats in and floats out."""
    if output is not None:
        check_output(output)
    import torch

    from qcompiler import api
    from qcompiler.calibration.data import CalibrationData, open_data

    module = api.load(artifact, threads)
    specs = module.program.inputs
    results = [_tuple(module(*batch)) for batch in CalibrationData(open_data(data, specs), specs, "input")]
    outputs = {spec.name: torch.cat(parts) for spec, parts in zip(module.program.outputs, zip(*results, strict=True), strict=True)}
    if output is not None:
        _save_arrays(output, outputs)
    for name, value in outputs.items():
        typer.echo(f"{name}: {list(value.shape)} {dtype_text(value.dtype)}, min {value.min():.6g}, max {value.max():.6g}")


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
    print_lines(_facts(artifact, module))


def verify(artifact: Artifact, threads: Threads = None) -> None:
    """Check hashes, prove integer-only and ranges again, and replay the test vectors on this machine."""
    from qcompiler import api

    typer.echo(f"{artifact}: hashes right; {api.load(artifact, threads).verify()}")


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


def _facts(path: Path, module: Module) -> Iterable[str]:
    program = module.program
    recipe = f", recipe {module.recipe}" if module.recipe else ""
    yield f"{path}: {path.stat().st_size / 1e6:.2f} MB, target {module.target}{recipe}"
    for kind, specs in (("input", program.inputs), ("output", program.outputs)):
        yield from (f"{kind} {_describe(spec)}" for spec in specs)
    yield f"{ops_text(program)}, {len(module.vectors)} test vectors"
    for record in program.history:
        options = ", ".join(f"{key}={value}" for key, value in record.options.items())
        yield f"pass {record.name}{f' ({options})' if options else ''}{'' if record.modified else ': nothing to do'}"


def _describe(spec: ValueSpec) -> str:
    from qcompiler.ir.sizes import shape_text

    quantized = spec.quantized
    inside = f" as {quantized.integer}, scale {quantized.scale[0]:.6g}, zero point {quantized.zero_point[0]}" if quantized else ""
    return f"{spec.name}: {dtype_text(spec.dtype)} [{shape_text(spec.shape)}]{inside}"


def _save_arrays(path: Path, arrays: dict[str, torch.Tensor]) -> None:
    """As ``.npz``, all or nothing."""
    import numpy as np

    try:
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, **{name: value.numpy() for name, value in arrays.items()})  # type: ignore[arg-type]  # names are the user's
    except OSError as error:
        raise ArtifactError(f"cannot write '{path}': {error.strerror}") from error


def _tuple(value: torch.Tensor | tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
