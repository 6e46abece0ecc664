"""``allocate``: bits for each layer by what they lose and what they cost.

    minimize    sum of the sensitivities of the bits chosen       subject to budgets, pins and ties

A metric measures what each weight (and each value, with ``activation_bits``) loses at each bit-width, or a table says so. The integer
linear program of ``solver`` chooses, and writes ``node.meta["precision"]``, which ``quantize`` reads. The graph itself stays as it is.
Where output channels of one layer get different bits, ``split-channels`` behind this pass makes a layer of each width.

Sources: HAWQ-V3 (Yao et al., arXiv 2011.10680) for the program; HAWQ-V2 (arXiv 1911.03852) for the metric of the default; MixLLM (Zheng et
al., arXiv 2412.14590) for groups of channels.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from qcompiler.allocation import BUDGETS, Allocation
from qcompiler.errors import CalibrationError, PassError, UnknownNameError
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.passes.allocate import pareto
from qcompiler.passes.allocate import table as tables
from qcompiler.passes.allocate.costs import average_bits, average_budget, bops_budget, make_problem, size_budget
from qcompiler.passes.allocate.groups import channel_bits, split
from qcompiler.passes.allocate.items import ALLOWED, Candidate, Items, find_items, with_bits
from qcompiler.passes.allocate.latency import latency_budget, latency_table
from qcompiler.passes.allocate.measure import measure
from qcompiler.passes.allocate.pins import OPTIONS, parse_pins
from qcompiler.passes.allocate.problem import AllocationError, Budget, Problem, Solution
from qcompiler.passes.allocate.salience import LayerGroups, layer_groups
from qcompiler.passes.allocate.solver import Method, solve
from qcompiler.passes.allocate.split_channels import SplitChannels
from qcompiler.passes.quantize.quantize import Quantize
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult, Promise
from qcompiler.pipeline.executor import LocalExecutor
from qcompiler.sensitivity import Item, ItemKind, SensitivityTable

_NO_CHOICE = "no layer has bits to choose: the options of quantize fix them all"


@dataclass(frozen=True)
class Stated:
    """A problem and the items, and groups of their channels, that its names stand for."""

    items: Items
    metric: str
    problem: Problem
    layers: LayerGroups = LayerGroups()

    def allocation(self, solution: Solution) -> Allocation:
        """A solution in terms of items."""
        channels = {item: channel_bits(solution.chosen, str(item), groups) for item, groups in self.layers.groups.items()}
        bits = {item: max(channels[item]) if item in channels else solution.chosen[str(item)] for item in self.items.candidates}
        average = average_bits(self.items, bits | {item: statistics.fmean(widths) for item, widths in channels.items()})
        apart = {item: widths for item, widths in channels.items() if len(set(widths)) > 1}
        limits = {name: limit for name, limit in solution.limits.items() if math.isfinite(limit)}
        return Allocation(bits, solution.objective, solution.costs, solution.method, limits, average, apart)


@dataclass(frozen=True)
class Allocate(Pass):
    """Bits for each layer: least summed sensitivity under budgets, by integer linear programming (HAWQ-V3).

    Options:
        metric: what measures sensitivities, with its options in braces: hessian-trace, fisher, sqnr-layer, ...
        table: file of a sensitivity table (.json, .csv) to be used instead; empty: measure.
        average_weight_bits: budget: mean bits of the elements of all weights.
        size: budget: bytes of the weights as artifacts store them (2, 4 or 8 bits), with their scales.
        bops: budget: bit operations of one sample.
        latency: budget: milliseconds of a call with one sample.
        latency_table: file that 'qcompiler profile' wrote on this machine; empty: the layers are timed now.
        threads: of the latency; none: all that this process may run on.
        bits: what weights may have.
        activation_bits: what values may have; empty: quantize decides about them.
        pins: items with given bits, as (conv2d:w8, relu_3:a4, linear:w8a8), by the names of their nodes.
        ties: operands of residual adds, inputs of concatenations, queries and keys get equal bits.
        channel_groups: into how many groups the output channels of each linear layer and convolution fall, each with bits of its own, of
            which 'split-channels' makes layers; 1: none. The latency budget counts a group's share of its layer's time, without the calls
            that more layers take.
        solver: ilp, greedy or dynamic-programming.
        samples: calibration samples that the metric looks at, at most; 0: all.
        workers: processes that measure, with one thread each.
        seed: of the metric's random choices.
        checkpoint: folder in which the metric keeps finished work; empty: the manager's folder, if it has one.

    One budget at least must be given; all that are given hold together. Which values have fixed bits the options of the pass quantize
    behind this one say.
    """

    name: ClassVar[str] = "allocate"
    takes: ClassVar[Stage] = Stage.FLOAT
    gives: ClassVar[Stage] = Stage.FLOAT
    promise: ClassVar[Promise] = Exact()

    metric: str = "hessian-trace"
    table: str = ""
    average_weight_bits: float | None = None
    size: float | None = None
    bops: float | None = None
    latency: float | None = None
    latency_table: str = ""
    threads: int | None = None
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    activation_bits: tuple[int, ...] = ()
    pins: tuple[str, ...] = ()
    ties: bool = False
    channel_groups: int = 1
    solver: Method = "ilp"
    samples: int = 64
    workers: int = 1
    seed: int = 0
    checkpoint: str = ""

    def __post_init__(self) -> None:
        for option in ("bits", "activation_bits"):
            widths = getattr(self, option)
            if any(width not in ALLOWED for width in widths) or len(set(widths)) < len(widths):
                raise PassError(f"{self.name}: {option} must be different numbers among 2..8, got {widths}")
        if not self.bits:
            raise PassError(f"{self.name}: bits must name one width at least")
        if self.channel_groups < 1:
            raise PassError(f"{self.name}: channel_groups must be 1 (none) or more, got {self.channel_groups}")
        for option in BUDGETS:
            limit = getattr(self, option)
            if limit is not None and not limit > 0.0:
                raise PassError(f"{self.name}: {option} must be positive, got {limit}")

    def run(self, program: Program, context: PassContext) -> PassResult:
        stated = self.state(program, context)
        if not stated.items.candidates:
            return PassResult(program, False, (_NO_CHOICE,))
        solution = solve(stated.problem, self.solver)
        found = stated.allocation(solution)
        whole = (f"{item.name}: not split, as {reason}" for item, reason in stated.layers.whole.items())
        notes = (_summary(stated, solution), *_layer_notes(stated.items, found), *whole)
        return PassResult(with_bits(program, found.bits, found.channels), True, notes)

    def state(self, program: Program, context: PassContext) -> Stated:
        """The problem that the options make of a program; where no item has a choice it is empty.

        Raises:
            PassError: there is no budget, or nothing splits layers by their channels.
            AllocationError: no allocation keeps all constraints.
            CalibrationError, TargetError, UnknownNameError: a table does not fit, a pin names no item, there are no data to measure with.
        """
        if all(getattr(self, budget) is None for budget in BUDGETS):
            raise PassError(f"no budget is given: give one of {', '.join(BUDGETS)}")
        quantize = self._quantize(context)
        items = self.items(program, quantize)
        pins = parse_pins(self.pins, items)
        budgets = self._budgets(program, items, context) if items.candidates else []
        if not budgets:
            return Stated(items, self.metric, Problem((), ()))
        # Where nothing keeps the budgets it says so before anything is measured.
        layers = layer_groups(program, items, quantize, self.channel_groups, None)
        solve(split(make_problem(items, None, budgets, pins, self.ties), layers.by_name))
        table = self._table(program, items, quantize, context)
        layers = layer_groups(program, items, quantize, self.channel_groups, table)
        return Stated(items, table.metric, split(make_problem(items, table, budgets, pins, self.ties), layers.by_name), layers)

    def items(self, program: Program, quantize: Quantize) -> Items:
        """The items with the bits that the options allow; those of values are fixed where ``activation_bits`` is empty."""
        found = find_items(program, quantize, bits=self.bits)
        allowed: Mapping[ItemKind, tuple[int, ...]] = {
            "weight": tuple(sorted(self.bits)),
            "activation": tuple(sorted(self.activation_bits)),
        }
        candidates = {item: replace(size, bits=allowed[item.kind]) for item, size in found.candidates.items() if allowed[item.kind]}
        given = {item: quantize.a for item in found.candidates if not allowed[item.kind]}
        ties = tuple(replace(tie, items=tuple(item for item in tie.items if item in candidates)) for tie in found.ties)
        return replace(found, candidates=candidates, fixed={**found.fixed, **given}, ties=tuple(tie for tie in ties if len(tie.items) > 1))

    def _quantize(self, context: PassContext) -> Quantize:
        """The pass behind this one that will round; with its defaults where there is none."""
        position = next((number for number, item in enumerate(context.following) if isinstance(item, Quantize)), None)
        if position is None:
            return Quantize()
        if self.channel_groups > 1 and not any(isinstance(item, SplitChannels) for item in context.following[:position]):
            raise PassError(f"channel_groups={self.channel_groups} needs the pass 'split-channels' between allocate and quantize: add it")
        found = context.following[position]
        assert isinstance(found, Quantize)  # as it was looked for
        return found

    def _budgets(self, program: Program, items: Items, context: PassContext) -> list[Budget]:
        budgets = []
        if self.average_weight_bits is not None:
            budgets.append(average_budget(items, self.average_weight_bits))
        if self.size is not None:
            budgets.append(size_budget(items, self.size))
        if self.bops is not None:
            budgets.append(bops_budget(items, self.bops))
        if self.latency is not None:
            times = latency_table(program, context, self.latency_table, self.threads, self.bits, self.activation_bits)
            budgets.append(latency_budget(items, times, self.latency))
        return budgets

    def _table(self, program: Program, items: Items, quantize: Quantize, context: PassContext) -> SensitivityTable:
        """The sensitivities of all items that have a choice."""
        needed = [item for item, size in items.candidates.items() if len(size.bits) > 1]
        if self.table:
            return _completed(_checked(SensitivityTable.load(self.table), program, items, needed), items)
        parts = []
        for kind in ("weight", "activation"):
            chosen = [item for item in needed if item.kind == kind]
            if chosen:
                parts.append(self._measure(program, chosen, items.candidates[chosen[0]].bits, quantize, context))
        if not parts:
            return SensitivityTable(self.metric, "", _single(items))
        merged = {row: value for part in parts for row, value in part.rows.items()}
        return _completed(replace(parts[0], rows=merged), items)

    def _measure(
        self, program: Program, chosen: Sequence[Item], bits: Sequence[int], quantize: Quantize, context: PassContext
    ) -> SensitivityTable:
        folder = Path(self.checkpoint) if self.checkpoint else context.directory
        return measure(
            program,
            self.metric,
            context.data,
            quantize=quantize,
            bits=bits,
            samples=self.samples,
            seed=self.seed,
            items=chosen,
            channels=self.channel_groups > 1,
            executor=LocalExecutor(self.workers),
            checkpoint=folder / chosen[0].kind if folder else None,
            progress=context.progress,
        )


def _checked(table: SensitivityTable, program: Program, items: Items, needed: Sequence[Item]) -> SensitivityTable:
    tables.check(table, program, items, needed)
    for item in needed:
        missing = [bits for bits in items.candidates[item].bits if (item, bits) not in table.rows]
        if missing:
            raise CalibrationError(
                f"the sensitivity table of metric '{table.metric}' has no row for {item} at {missing[0]} bits: measure it, or leave out "
                f"{missing[0]} of the option '{OPTIONS[item.kind]}'"
            )
    return table


def _completed(table: SensitivityTable, items: Items) -> SensitivityTable:
    return replace(table, rows={**_single(items), **table.rows})


def _single(items: Items) -> dict[tuple[Item, int], float]:
    """What has no choice loses nothing that another choice would not."""
    return {(item, size.bits[0]): 0.0 for item, size in items.candidates.items() if len(size.bits) == 1}


def _with_choice(stated: Stated) -> Stated:
    """Guard for those who ask for an allocation."""
    if not stated.items.candidates:
        raise AllocationError(_NO_CHOICE)
    return stated


def _summary(stated: Stated, solution: Solution) -> str:
    budgets = stated.problem.budgets
    costs = ", ".join(f"{budget.name} {budget.shown(solution.costs[budget.name])} of {budget.shown(budget.limit)}" for budget in budgets)
    proof = f", at most {solution.gap:.2%} above the least" if solution.proven else ""
    return f"{solution.method}: sum of sensitivities ({stated.metric}) {solution.objective:.6g}{proof}; {costs}"


def _layer_notes(items: Items, found: Allocation) -> list[str]:
    notes = []
    for item in found.bits:
        size: Candidate = items.candidates[item]
        place = f" ({size.place})" if size.place else ""
        notes.append(f"{item.name}: {found.shown(item)}{place}")
    return notes


def pareto_front(
    program: Program, item: Allocate, budget: str, limits: Sequence[float] | None, points: int, context: PassContext
) -> tuple[Allocation, ...]:
    """What the pass would choose for several limits of one budget: ``pareto.pareto_front`` in terms of items."""
    if budget not in BUDGETS:
        raise UnknownNameError("budget", budget, BUDGETS)
    open_ended = replace(item, **{budget: math.inf})  # type: ignore[arg-type]  # an option of that name
    stated = _with_choice(open_ended.state(program, context))
    front = pareto.pareto_front(stated.problem, budget, limits, points=points, method=item.solver)
    return tuple(stated.allocation(solution) for solution in front)


def allocation(program: Program, item: Allocate, context: PassContext) -> Allocation:
    """What the pass would choose."""
    stated = _with_choice(item.state(program, context))
    return stated.allocation(solve(stated.problem, item.solver))
