"""Bit allocation against what it should beat: writes the tables of ``docs/allocation.md`` and the figure beside it.

``PYTHONPATH=examples python benchmarks/allocation.py [--networks resnet20 efficientnet-lite0 vit] [--threads 2] [--only accuracy groups]``

Accuracy at 4.5 average weight bits, A8: the integer linear program, greedy and dynamic programming over the sensitivities of each metric,
uniform 4-bit weights, and random draws of equal size. Groups: the same program over groups of output channels, and what the layers that are
split by them cost. Latency: predicted from the table of ``qcompiler profile`` and measured. What was measured is kept in
``build/allocation``, so that a run that was cut short goes on where it was. Networks and images lie in ``../shared/assets`` beside the
repository (``--assets``).
"""

from __future__ import annotations

import argparse
import functools
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import qcompiler as qc
from allocation_study import BITS, NETWORKS, Accuracy, NetworkStudy
from qcompiler.documents import replaced
from qcompiler.ir import edit
from qcompiler.latency import Machine, profile
from qcompiler.measure import latency
from qcompiler.passes.allocate.items import with_bits
from qcompiler.passes.allocate.solver import METHODS, solve
from qcompiler.pipeline.progress import default_progress
from qcompiler.pipeline.registry import metric_names
from qcompiler.sensitivity import Item

ROOT = Path(__file__).resolve().parent.parent
AVERAGE = 4.5
FRONT = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
FRONT_METRIC = "hessian-trace"
AFTER = ("gptq", "gptq,retune-batch-norm")
GROUPS = (1, 2, 4)
GROUP_METRICS = ("fisher", "hessian-trace", "perturbation")
GROUP_TARGETS = ("x86-64-vnni", "x86-64-v3")
PARTS = ("accuracy", "after", "front", "latency", "groups", "groups-after", "split")
SHORT = {"ilp": "ILP", "greedy": "greedy", "dynamic-programming": "DP"}
console = Console(stderr=True)


# ---- accuracy ---------------------------------------------------------------------------------------------------------------------


def accuracy_table(studies: Sequence[NetworkStudy], metrics: Sequence[str], draws: int) -> str:
    """One row a metric and solver, then what they are compared with; top-1 in % and SQNR of the logits in dB."""
    lines = [f"| | {' | '.join(study.network.title for study in studies)} |", f"|---{'|---' * len(studies)}|"]
    for metric in metrics:
        for method in METHODS:
            cells = []
            for study in studies:
                solution = solve(study.problem(metric, AVERAGE), method)
                cells.append(_cell(_evaluated(study, study.bits_of(solution.chosen), f"{metric}, {method}")))
            lines.append(f"| `{metric}`, {SHORT[method]} | {' | '.join(cells)} |")
    lines.append(_row("uniform W4", [_cell(_evaluated(study, study.uniform(4), "uniform 4")) for study in studies]))
    lines.append(_row("uniform W8", [_cell(_evaluated(study, study.uniform(8), "uniform 8")) for study in studies]))
    lines.append(_row("float", [f"{study.float_top1:.1f}" for study in studies]))
    lines += _random_rows(studies, draws)
    return "\n".join(lines)


def verdict(studies: Sequence[NetworkStudy], metrics: Sequence[str], draws: int) -> str:
    """Where the program is beaten by the median of the random draws, and by how much it beats uniform 4-bit weights."""
    lines = ["| | least gain over median random, dB (metric) | gain over uniform W4, dB: least, median, best |", "|---|---|---|"]
    for study in studies:
        gains = {}
        median = statistics.median(found.sqnr for found in _drawn(study, draws))
        uniform = _evaluated(study, study.uniform(4), "uniform 4").sqnr
        for metric in metrics:
            solution = solve(study.problem(metric, AVERAGE))
            gains[metric] = _evaluated(study, study.bits_of(solution.chosen), f"{metric}, ilp").sqnr
        worst = min(gains, key=lambda metric: gains[metric])
        over = sorted(gain - uniform for gain in gains.values())
        lines.append(
            f"| {study.network.title} | {gains[worst] - median:+.1f} (`{worst}`) "
            f"| {over[0]:+.1f}, {statistics.median(over):+.1f}, {over[-1]:+.1f} |"
        )
    return "\n".join(lines)


def after_table(studies: Sequence[NetworkStudy]) -> str:
    """What reconstruction and retuning give after allocation."""
    lines = [f"| | {' | '.join(study.network.title for study in studies)} |", f"|---{'|---' * len(studies)}|"]
    for name, chosen in ((f"`{FRONT_METRIC}`, ILP", None), ("uniform W4", 4)):
        for passes in ("", *AFTER):
            cells = []
            for study in studies:
                bits = study.uniform(chosen) if chosen else study.bits_of(solve(study.problem(FRONT_METRIC, AVERAGE)).chosen)
                cells.append(_cell(_evaluated(study, bits, f"{name}, {passes}", passes)))
            lines.append(_row(f"{name}{''.join(f', `{part}`' for part in passes.split(',') if part)}", cells))
    return "\n".join(lines)


def _random_rows(studies: Sequence[NetworkStudy], draws: int) -> list[str]:
    found = [_drawn(study, draws) for study in studies]
    rows = []
    for name, choose in (("best", max), ("median", statistics.median), ("worst", min)):
        cells = [_cell(Accuracy(choose(each.top1 for each in some), choose(each.sqnr for each in some))) for some in found]
        rows.append(_row(f"random, {name} of {draws}", cells))
    return rows


def _drawn(study: NetworkStudy, draws: int) -> list[Accuracy]:
    chosen = study.random_draws(draws, AVERAGE)
    return [_evaluated(study, bits, f"random draw {number}") for number, bits in enumerate(chosen)]


def _evaluated(study: NetworkStudy, bits: Mapping[Item, int], what: str, passes: str = "") -> Accuracy:
    found = study.evaluate(bits, passes)
    console.print(f"{study.name}: {what}: {found.top1:.2f} %, {found.sqnr:.2f} dB at {study.average(bits):.3f} bits", highlight=False)
    return found


def _cell(found: Accuracy) -> str:
    return f"{found.top1:.1f} ({found.sqnr:.1f})"


def _row(name: str, cells: Sequence[str]) -> str:
    return f"| {name} | {' | '.join(cells)} |"


# ---- groups of channels -----------------------------------------------------------------------------------------------------------


def groups_table(studies: Sequence[NetworkStudy], counts: Sequence[int], metrics: Sequence[str], passes: str = "") -> str:
    """One row a metric and number of groups: top-1 in % and SQNR of the logits in dB, after ``passes`` from QDQ to QDQ."""
    lines = [f"| | groups | {' | '.join(study.network.title for study in studies)} |", f"|---|---{'|---' * len(studies)}|"]
    for metric in metrics:
        for count in counts:
            cells = []
            for study in studies:
                found = study.grouped(metric, AVERAGE, count)
                accuracy = study.evaluate(found.bits, passes, found.channels)
                said = f"{accuracy.top1:.2f} %, {accuracy.sqnr:.2f} dB at {found.average_weight_bits:.3f} bits"
                console.print(f"{study.name}: {metric}, {count} groups: {said}", highlight=False)
                cells.append(_cell(accuracy))
            lines.append(f"| `{metric}` | {count} | {' | '.join(cells)} |")
    return "\n".join(lines)


def split_table(studies: Sequence[NetworkStudy], counts: Sequence[int], seconds: float, form: str) -> str:
    """What the layers of each width cost: their number, steps and milliseconds of the compiled program; whether it equals the reference."""
    targets = " | ".join(f"`{target}`: steps, ms, equal" for target in GROUP_TARGETS)
    lines = [f"| | groups | layers | {targets} |", f"|---|---|---|{'---|' * len(GROUP_TARGETS)}"]
    for study in studies:
        found = [study.grouped(GROUP_METRICS[0], AVERAGE, count) for count in counts]
        passes = f"quantize,lower-integer{{requantize={form}}},optimize"
        programs = [qc.quantize(study.split(each.bits, each.channels), study.data, passes=passes) for each in found]
        columns = [_by_turns(programs, target, study.network.calibration[0], seconds) for target in GROUP_TARGETS]
        for count, program, *cells in zip(counts, programs, *columns, strict=True):
            layers = list(edit.calls(program.graph, torch.ops.qc.convolution.default, torch.ops.qc.linear.default))
            row = f"{len(layers)} | {' | '.join(cells)}"
            console.print(f"{study.name}: {count} groups: {row}", highlight=False)
            lines.append(f"| {study.network.title} | {count} | {row} |")
    return "\n".join([*lines, "", f"{Machine.here(threads=1).cpu}, one thread, one sample."])


def _by_turns(programs: Sequence[qc.Program], target: str, samples: torch.Tensor, seconds: float) -> list[str]:
    """A cell for each program; the fastest calls of five rounds, in each of which every program has its turn."""
    modules = [qc.compile(program, target=target, threads=1) for program in programs]
    calls = [functools.partial(module, samples[:1]) for module in modules]
    rounds = [[latency(call, seconds).fastest for call in calls] for _ in range(5)]
    fastest = [min(times) for times in zip(*rounds, strict=True)]
    return [
        f"{len(module.profile(samples[:1]))}, {time * 1e3:.3f}, {'yes' if _is_equal(program, module, samples) else 'NO'}"
        for program, module, time in zip(programs, modules, fastest, strict=True)
    ]


def _is_equal(program: qc.Program, module: qc.Module, samples: torch.Tensor) -> bool:
    inputs = program.quantize_inputs((samples,))
    pairs = zip(program.run_integer(*inputs), module.run_integer(*inputs), strict=True)
    return all(torch.equal(wanted, torch.as_tensor(found)) for wanted, found in pairs)


# ---- front ------------------------------------------------------------------------------------------------------------------------


def draw_front(studies: Sequence[NetworkStudy], draws: int, path: Path) -> None:
    """SQNR of the logits against average bits: the program, uniform bits, random draws. Needs matplotlib (extra ``examples``)."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "qcompiler", "svg.fonttype": "none", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(studies), figsize=(3 * len(studies), 2.6), layout="constrained", squeeze=False)
    for axis, study in zip(axes[0], studies, strict=True):
        _draw(axis, study, draws)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _draw(axis: Any, study: NetworkStudy, draws: int) -> None:
    allocated = [study.bits_of(solve(study.problem(FRONT_METRIC, average)).chosen) for average in FRONT]
    uniform = [study.uniform(bits) for bits in BITS]
    for label, chosen, style in (("ILP", allocated, "o-"), ("uniform", uniform, "s--")):
        found = [_evaluated(study, bits, f"front, {label}") for bits in chosen]
        axis.plot([study.average(bits) for bits in chosen], [each.sqnr for each in found], style, label=label, markersize=3, linewidth=1)
    drawn = study.random_draws(draws, AVERAGE)
    axis.plot(
        [study.average(bits) for bits in drawn],
        [each.sqnr for each in _drawn(study, draws)],
        "x",
        label="random",
        color="gray",
        markersize=3,
    )
    axis.set_title(study.network.title)
    axis.set_xlabel("average weight bits")
    axis.set_ylabel("SQNR of logits, dB")
    axis.legend()


# ---- latency ----------------------------------------------------------------------------------------------------------------------


def latency_table(studies: Sequence[NetworkStudy], seconds: float) -> str:
    """Predicted and measured milliseconds of a call with one sample, one thread."""
    lines = ["| | bits | predicted ms | measured ms | difference |", "|---|---|---|---|---|"]
    for study in studies:
        table = profile(study.captured, study.data, weight_bits=(2, 4, 8), threads=1, progress=default_progress())
        for name, bits in _timed_allocations(study):
            predicted = table.predict({item.name: (width, 8) for item, width in bits.items()})
            measured = _measured(study, bits, seconds)
            row = f"{predicted * 1e3:.3f} | {measured * 1e3:.3f} | {predicted / measured - 1.0:+.1%}"
            console.print(f"{study.name}: {name}: {row}", highlight=False)
            lines.append(f"| {study.network.title} | {name} | {row} |")
    machine = Machine.here(threads=1)
    return "\n".join([*lines, "", f"{machine.cpu}, target {machine.target}, one thread."])


def _timed_allocations(study: NetworkStudy) -> list[tuple[str, Mapping[Item, int]]]:
    draw = random.Random(1)
    return [
        ("W8", study.uniform(8)),
        ("W4", study.uniform(4)),
        (f"ILP at {AVERAGE}", study.bits_of(solve(study.problem("perturbation", AVERAGE)).chosen)),
        ("random", {item: draw.choice(BITS) for item in study.weights}),
    ]


def _measured(study: NetworkStudy, bits: Mapping[Item, int], seconds: float) -> float:
    integers = qc.quantize(with_bits(study.program, bits), study.data, passes="quantize,lower-integer,optimize")
    module = qc.compile(integers, threads=1)
    sample = study.network.calibration[0][:1]
    return min(latency(lambda: module(sample), seconds).fastest for _ in range(5))


# ---- document ---------------------------------------------------------------------------------------------------------------------


def write(path: Path, part: str, content: str) -> None:
    """Put a table between its marks."""
    begin, end = f"<!-- {part}: begin, generated by benchmarks/allocation.py -->", f"<!-- {part}: end -->"
    path.write_text(replaced(path.read_text(), begin, end, content))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is asked for and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--metrics", nargs="+", choices=metric_names(), default=list(metric_names()))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which tables")
    parser.add_argument("--images", type=int, default=0, help="how many are measured (default: 1000; 134 for EfficientNet-Lite0)")
    parser.add_argument("--groups", type=int, nargs="+", default=list(GROUPS), help="of output channels in each layer")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each of five latency measurements")
    parser.add_argument("--requantize", default="auto", help="the form of requantizations where the cost of groups is measured")
    parser.add_argument("--assets", type=Path, default=ROOT.parent / "shared" / "assets")
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "allocation")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "allocation.md")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs" / "figures" / "allocation.svg")
    chosen = parser.parse_args(arguments)
    if not chosen.output.exists():
        parser.error(f"there is no document '{chosen.output}' with the marks that tables go between")
    torch.set_num_threads(chosen.threads)
    studies = [
        NetworkStudy(name, NETWORKS[name](chosen.assets, chosen.images), chosen.results / name, default_progress())
        for name in chosen.networks
    ]
    group_metrics = [name for name in GROUP_METRICS if name in chosen.metrics]
    if "latency" in chosen.only:
        write(chosen.output, "latency", latency_table(studies, chosen.seconds))
    if "accuracy" in chosen.only:
        write(chosen.output, "accuracy", accuracy_table(studies, chosen.metrics, chosen.draws))
        write(chosen.output, "verdict", verdict(studies, chosen.metrics, chosen.draws))
    if "groups" in chosen.only:
        write(chosen.output, "groups", groups_table(studies, chosen.groups, group_metrics))
    if "groups-after" in chosen.only:
        write(chosen.output, "groups-after", groups_table(studies, chosen.groups, group_metrics, AFTER[-1]))
    if "split" in chosen.only:
        write(chosen.output, "split", split_table(studies, chosen.groups, chosen.seconds, chosen.requantize))
    if "after" in chosen.only:
        write(chosen.output, "after", after_table(studies))
    if "front" in chosen.only:
        draw_front(studies, chosen.draws, chosen.figure)


if __name__ == "__main__":
    main()
