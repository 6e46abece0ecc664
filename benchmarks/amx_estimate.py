"""How long a compiled model would take with AMX, on a machine without it: python benchmarks/amx_estimate.py MODEL.qca [--size N] [--steps]

An estimate of one call on one thread from two parts, by kinds of kernels (``--steps``: by steps):

1. "rest": what is not AMX, measured. Every tile instruction of the library is overwritten by NOPs of its length, and the steps are timed
   as ``split.py`` does, with what a call takes outside of them. (The numbers come out wrong; no kernel's time depends on them.)
2. "tiles": the tile instructions, counted where an emulator executes them one by one, times the cycles that they occupy the unit by the
   table of throughput and latency in Intel's "64 and IA-32 Architectures Optimization Reference Manual", chapter on AMX: TDP 16,
   TILELOADD 8, TILELOADDT1 33, TILESTORED 16, TILEZERO 0; of those without a throughput the latency: LDTILECFG 204, STTILECFG 19,
   TILERELEASE 13. The unit loads while it multiplies, so of these two the longer counts:
   tiles = max(16 TDP, 8 TILELOADD + 33 TILELOADDT1) + 16 TILESTORED + 204 LDTILECFG + 19 STTILECFG + 13 TILERELEASE.

A step takes rest + tiles if nothing overlaps, and max(rest, tiles) if all does; no step overlaps the next one. ``--clock`` is that of
the machine with AMX; one that reaches 7.1 to 7.5 TOPS multiplies 2048 x 3.5 GHz.

What is not in it: cache misses and bank conflicts of tile loads and stores, the latency of a TDP whose sum the next one needs (52
cycles), and that the rest is measured on this machine, of another maker and at its own clock. NOPs fetch no weights: how long it takes
here to read as many bytes once, from whatever cache holds them, is printed below the totals and not in them.

A file for another target is compiled for x86-64-amx first. Needs objdump (binutils), gcc, and AVX512-VNNI for the rest.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from amx_emulator import KINDS, AmxEmulator
from qcompiler import artifact
from qcompiler.backends.tvm import LIBRARY, PLAN, TvmBackend, target
from qcompiler.backends.tvm.plan import Plan, loads
from qcompiler.backends.tvm.runtime import TvmExecutable
from qcompiler.errors import TargetError
from qcompiler.ir.sizes import concrete_shape, dynamic_sizes
from qcompiler.measure import latency
from qcompiler.pipeline.backend import StepTime
from split import random_input

TARGET = "x86-64-amx"
CALL = "(outside of steps)"
MULTIPLICATION, LOADS = "tdp", ("tileloadd", "tileloaddt1")
CYCLES = {
    "tdp": 16,
    "tileloadd": 8,
    "tileloaddt1": 33,
    "tilestored": 16,
    "tilezero": 0,
    "ldtilecfg": 204,
    "sttilecfg": 19,
    "tilerelease": 13,
}
# The forms that Intel's SDM (volume 2, NOP) recommends, by their length.
NOPS = tuple(map(bytes.fromhex, ("90", "6690", "0f1f00", "0f1f4000", "0f1f440000", "660f1f440000", "0f1f8000000000", "0f1f840000000000")))
SECTION = re.compile(r"^ *\d+ \.text +[0-9a-f]+ +([0-9a-f]+) +[0-9a-f]+ +([0-9a-f]+)", re.MULTILINE)  # its address, its place in the file
LEGEND = """rest: measured here without tile instructions; tiles: these counted, times cycles of the manual; apart: rest + tiles;
overlapped: the longer of both. Not in it: cache misses of tile loads, latency of a TDP whose sum the next one needs, and that the rest
was measured on this CPU, of another maker"""
INSTRUCTION = re.compile(r"^ *([0-9a-f]+):\t((?:[0-9a-f]{2} )+) *\t(?:tile|tdp|ldtilecfg|sttilecfg)", re.MULTILINE)


@dataclass(frozen=True)
class Estimate:
    """One or several steps: seconds of the rest and of the tiles, and of both together if nothing overlaps and if all does.

    ``counts`` has the order of ``KINDS``.
    """

    kind: str
    steps: int
    counts: tuple[int, ...]
    rest: float
    tiles: float
    apart: float
    overlapped: float


@dataclass(frozen=True)
class Report:
    """What an artifact would take: its steps without tile instructions, the estimate of each, and the weights that tiles load."""

    steps: list[StepTime]
    parts: list[Estimate]
    weight_bytes: int


def tile_seconds(counts: Sequence[int], clock: float) -> float:
    """Of tile instructions, counted in the order of ``KINDS``, at ``clock`` cycles a second; the module's formula."""
    cycles = {kind: count * CYCLES[kind] for kind, count in zip(KINDS, counts, strict=True)}
    multiplications, loads = cycles.pop(MULTIPLICATION), sum(cycles.pop(kind) for kind in LOADS)
    return (max(multiplications, loads) + sum(cycles.values())) / clock


def estimate(steps: Sequence[StepTime], counts: Sequence[Sequence[int]], clock: float) -> list[Estimate]:
    """Of each step."""
    found = []
    for step, numbers in zip(steps, counts, strict=True):
        rest, tiles = step.seconds, tile_seconds(numbers, clock)
        found.append(Estimate(step.kind, 1, tuple(numbers), rest, tiles, rest + tiles, max(rest, tiles)))
    return found


def added(kind: str, parts: Sequence[Estimate]) -> Estimate:
    """Several estimates as one."""
    counts = tuple(map(sum, zip(*(part.counts for part in parts), strict=True)))
    sums = (sum(getattr(part, name) for part in parts) for name in ("rest", "tiles", "apart", "overlapped"))
    return Estimate(kind, sum(part.steps for part in parts), counts, *sums)


def by_kinds(parts: Sequence[Estimate]) -> list[Estimate]:
    """The longest first."""
    kinds = dict.fromkeys(part.kind for part in parts)
    return sorted((added(kind, [part for part in parts if part.kind == kind]) for kind in kinds), key=lambda part: -part.apart)


def tile_instructions(library: bytes) -> list[tuple[int, int]]:
    """Where they stand in the file, and their lengths.

    Raises TargetError where there are none, and without objdump.
    """
    if shutil.which("objdump") is None:
        raise TargetError("objdump finds the tile instructions and is missing: install binutils")
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(library)
        file.flush()
        command = ["objdump", "--section-headers", "--disassemble", "--section=.text", "--wide", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    section = SECTION.search(text)
    found = [(int(address, 16), len(code.split())) for address, code in INSTRUCTION.findall(text)]
    if section is None or not found:
        raise TargetError("the compiled library has no tile instruction: there is nothing to estimate, time it by split.py")
    shift = int(section[2], 16) - int(section[1], 16)
    return [(address + shift, length) for address, length in found]


def without_tiles(library: bytes) -> bytes:
    """The library with NOPs in the place of all tile instructions."""
    code = bytearray(library)
    for start, length in tile_instructions(library):
        whole, rest = divmod(length, len(NOPS))
        code[start : start + length] = NOPS[-1] * whole + (NOPS[rest - 1] if rest else b"")
    return bytes(code)


class CountedExecutable(TvmExecutable):
    """A program whose tile instructions are counted."""

    def count(self, emulator: AmxEmulator, *inputs: torch.Tensor) -> list[list[int]]:
        """How many of ``KINDS`` each step of ``run`` executes. The library writes a step's time when it is done with it."""
        idle = idle_steps(self._plan)
        times = torch.tensor([int(number in idle) for number in range(len(self._plan.steps))])
        with emulator.following(times) as counts:
            self._library.qc_set_profile(times.data_ptr())
            try:
                self.run(*inputs)
            finally:
                self._library.qc_set_profile(None)
        return [row for number, row in enumerate(counts.tolist()) if number not in idle]


def idle_steps(plan: Plan) -> set[int]:
    """Numbers of those of the integer border, which a run on floats does not execute."""
    first, steps = len(plan.quantize), len(plan.steps)
    return {*range(first, first + len(plan.load)), *range(steps - len(plan.store), steps)}


def weight_bytes(plan: Plan, counts: Sequence[Sequence[int]]) -> int:
    """Of the constants that steps with tile instructions read; ``counts`` are of the steps that run."""
    idle = idle_steps(plan)
    running = [step for number, step in enumerate(plan.steps) if number not in idle]
    with_tiles = [step for step, numbers in zip(running, counts, strict=True) if any(numbers)]
    starts = {pointer.offset for step in with_tiles for pointer in step.pointers if pointer.space == "parameters"}
    return sum(parameter.size for parameter in plan.parameters if parameter.offset in starts)


def read_seconds(size: int) -> float:
    """Of reading ``size`` bytes again and again, one thread."""
    block = torch.ones(size // 8, dtype=torch.int64)
    return latency(block.sum, seconds=0.2).median


def measure_rest(executable: TvmExecutable, emulator: AmxEmulator, inputs: Sequence[torch.Tensor], runs: int) -> list[StepTime]:
    """Each step of a library without tile instructions, the median of ``runs``, and at the end what a call takes besides.

    Raises TargetError where a tile instruction is left.
    """
    before = emulator.executed
    steps = executable.profile(*inputs, runs=runs)
    call = latency(lambda: executable.run(*inputs), seconds=0.5).median
    if emulator.executed != before:
        raise TargetError("objdump did not find all tile instructions of the compiled library: install a newer binutils")
    return [*steps, StepTime(CALL, CALL, (), max(0.0, call - sum(step.seconds for step in steps)))]


def estimate_file(path: Path, size: int | None, clock: float, runs: int) -> Report:
    """``size``: the value of a dynamic size; None: its maximum. ``clock``: cycles a second.

    Raises ArtifactError as ``artifact.read``, and TargetError where this machine cannot run what is not AMX.
    """
    reason = target.available("x86-64-vnni")
    if reason is not None:
        raise TargetError(f"{reason}: the part of {TARGET} that is not AMX needs the same")
    content = artifact.read(path)
    program, compiled = content.program, content.compiled
    if compiled.target != TARGET:
        compiled = TvmBackend().compile(program, TARGET)
    plan = loads(compiled.members[PLAN])
    values = dict.fromkeys(dynamic_sizes(program.inputs), size) if size else {}
    inputs = [random_input(spec, concrete_shape(spec.shape, 1, values)) for spec in program.inputs]
    with tempfile.TemporaryDirectory() as folder, AmxEmulator(Path(folder)) as emulator:
        counts = CountedExecutable(program, plan, compiled.members[LIBRARY], threads=1).count(emulator, *inputs)
        rest = TvmExecutable(program, plan, without_tiles(compiled.members[LIBRARY]), threads=1)
        steps = measure_rest(rest, emulator, inputs, runs)
    return Report(steps, estimate(steps, [*counts, [0] * len(KINDS)], clock), weight_bytes(plan, counts))


def table(parts: Sequence[Estimate], labels: Sequence[str]) -> str:
    """A line for each part; times in microseconds."""
    head = ("rest", "TDP", "loads", "stores", "configs", "tiles", "apart", "overlapped")
    lines = ["".join(f"{title:>11}" for title in head)]
    for part, label in zip(parts, labels, strict=True):
        counts = dict(zip(KINDS, part.counts, strict=True))
        columns = (counts[MULTIPLICATION], sum(counts[kind] for kind in LOADS), counts["tilestored"], counts["ldtilecfg"])
        times = [f"{seconds * 1e6:11.1f}" for seconds in (part.rest, part.tiles, part.apart, part.overlapped)]
        lines.append(times[0] + "".join(f"{column:11}" for column in columns) + "".join(times[1:]) + f"  {label}")
    return "\n".join(lines)


def main() -> None:
    """Print the estimate."""
    arguments = _arguments()
    torch.set_num_threads(1)  # for reading the weights
    report = estimate_file(arguments.artifact, arguments.size, arguments.clock * 1e9, arguments.runs)
    print(f"{arguments.artifact}: an ESTIMATE for AMX at {arguments.clock:g} GHz, 1 thread, microseconds; this is no measurement")
    kinds = by_kinds(report.parts)
    print(table([*kinds, added("all", report.parts)], [*(f"{part.kind} ({part.steps})" for part in kinds), "all"]))
    reading = read_seconds(report.weight_bytes)
    print(f"{reading * 1e6:11.1f}  to read the {report.weight_bytes / 1e6:.1f} MB of weights once, not in the totals")
    if arguments.steps:
        print(table(report.parts, [f"{step.kernel}: {', '.join(step.nodes)}" for step in report.steps]))
    print(LEGEND)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--size", type=int, help="the value of a dynamic size; default: its maximum")
    parser.add_argument("--clock", type=float, default=3.5, help="GHz of the machine with AMX (default: 3.5)")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--steps", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
