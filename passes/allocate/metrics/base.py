"""What a sensitivity metric is: a frozen dataclass with a name and options, whose work falls into independent tasks.

A metric names its tasks, does any one of them alone (in a worker that knows nothing of the others), and makes the table's rows of all
results. Results are sums of numbers, so that a checkpoint can keep them. There are two kinds of metrics:

- ``SampleMetric``: a task is a piece of the samples; one run of the network serves all items, and sums over pieces are added up.
- ``OutputMetric``: a task is an item; the network runs from the item on for each of its bit-widths, and outputs are compared.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qcompiler.errors import PassError, QCompilerError, UnknownNameError
from qcompiler.passes.allocate.sites import Cut, Sites
from qcompiler.passes.allocate.study import OpenStudy, Piece, Study
from qcompiler.pipeline import option_types
from qcompiler.pipeline.executor import Result
from qcompiler.pipeline.registry import find_metric
from qcompiler.pipeline.text import split_pipeline
from qcompiler.sensitivity import Item

LabelUse = Literal["unused", "optional"]

REST_BITS = 8
"""What ``rest=8-bit`` means for items that have no bits of their own."""


@dataclass(frozen=True)
class Metric(ABC):
    """Base of all metrics; the fields of a subclass are its options.

    name: by which it is registered (entry-point group ``qcompiler.metrics``, or ``qcompiler.passes.METRICS``).
    labels: what it does with labels where there are any.
    needs_data: whether it looks at samples; without them it measures weights alone.
    """

    name: ClassVar[str]
    labels: ClassVar[LabelUse] = "unused"
    needs_data: ClassVar[bool] = True

    @abstractmethod
    def tasks(self, study: Study) -> Sequence[str]:
        """Names of independent pieces of work; all that is needed to do one is its name and the study."""

    @abstractmethod
    def do(self, opened: OpenStudy, task: str) -> Result:
        """One task."""

    @abstractmethod
    def rows(self, opened: OpenStudy, results: Mapping[str, Result]) -> dict[tuple[Item, int], float]:
        """The sensitivity of every item at every bit-width, from the results of all tasks by name."""

    def channel_weights(self, opened: OpenStudy, results: Mapping[str, Result]) -> dict[Item, tuple[float, ...]]:
        """How much a squared error in each output channel of a weight counts beside one in another; none where the metric cannot say."""
        return {}

    def settings(self) -> dict[str, str]:
        """The options as a table names them."""
        return {field.name: option_types.to_text(getattr(self, field.name)) for field in dataclasses.fields(self)}


class SampleMetric(Metric):
    """Base of metrics that add up numbers over samples. Not a dataclass: it has no options of its own."""

    def tasks(self, study: Study) -> Sequence[str]:
        return [f"piece {number}" for number in range(len(study.pieces))]

    def do(self, opened: OpenStudy, task: str) -> Result:
        number = int(task.removeprefix("piece "))
        return self.sums(opened, opened.piece(number), number)

    def rows(self, opened: OpenStudy, results: Mapping[str, Result]) -> dict[tuple[Item, int], float]:
        totals = _totals(results)
        return {(item, bits): self.sensitivity(opened, totals, item, bits) for item, bits in opened.study.rows()}

    def channel_weights(self, opened: OpenStudy, results: Mapping[str, Result]) -> dict[Item, tuple[float, ...]]:
        """By the sums over channels that ``errors.add_channels`` made, where there are any; estimates below zero count as zero."""
        totals = _totals(results)
        found: dict[Item, tuple[float, ...]] = {}
        for item in opened.study.items.candidates:
            count = opened.study.items.sizes[item].channels
            if channel_key(item, 0) in totals:
                found[item] = tuple(max(totals[channel_key(item, number)], 0.0) for number in range(count))
        return found

    @abstractmethod
    def sums(self, opened: OpenStudy, piece: Piece, number: int) -> Result:
        """What is added up over pieces, by names of the metric's own choice (see ``key``)."""

    @abstractmethod
    def sensitivity(self, opened: OpenStudy, totals: Mapping[str, float], item: Item, bits: int) -> float:
        """One row, from the sums over all pieces."""


@dataclass(frozen=True)
class OutputMetric(Metric):
    """Base of metrics that compare outputs of the network with one item rounded, and the float program's.

    Options:
        rest: what the rest of the network has: ``float``, or ``8-bit``: all other weights and values are rounded to 8 bits (or to what is
            stated for them); then what that alone costs is taken off.
    """

    rest: Literal["float", "8-bit"] = "float"

    def tasks(self, study: Study) -> Sequence[str]:
        items = [_task(item) for item in study.items.candidates]
        return items if self.rest == "float" else ["baseline", *items]

    def do(self, opened: OpenStudy, task: str) -> Result:
        sites = opened.sites if self.rest == "float" else _rounded_sites(opened)
        if task == "baseline":
            return self._baseline(opened, sites)
        item = next(item for item in opened.study.items.candidates if _task(item) == task)
        cut = sites.cut(item, sites.outputs)
        sums: Result = {}
        for piece in opened.pieces():
            with torch.no_grad():
                self._add(opened, sites, cut, item, piece, sums)
        return sums

    def rows(self, opened: OpenStudy, results: Mapping[str, Result]) -> dict[tuple[Item, int], float]:
        alone = self.value(results["baseline"], "baseline") if "baseline" in results else 0.0
        return {(item, bits): self.value(results[_task(item)], str(bits)) - alone for item, bits in opened.study.rows()}

    @abstractmethod
    def compare(self, study: Study, piece: Piece, outputs: Sequence[Tensor]) -> tuple[float, float]:
        """Numerator and denominator, each summed over all pieces, of what is measured."""

    def value(self, sums: Result, name: str) -> float:
        """What was measured: the quotient of the sums."""
        return sums[f"{name} over"] / sums[f"{name} under"] if sums[f"{name} under"] != 0.0 else 0.0

    def _add(self, opened: OpenStudy, sites: Sites, cut: Cut, item: Item, piece: Piece, sums: Result) -> None:
        """Run what comes before the item once, and what comes behind it for each bit-width."""
        kept = cut.run_before(opened.inputs(sites, piece))
        values = sites.tensor(item) if item.kind == "weight" else kept[cut.source]
        for bits in opened.study.bits[item]:
            outputs = cut.run_behind(kept, opened.rounded(item, bits, values))
            _add_pair(sums, str(bits), self.compare(opened.study, piece, outputs))

    def together(self, opened: OpenStudy, bits: Mapping[Item, int]) -> float:
        """What is measured with all of these items rounded at once, and the rest in float."""
        return self.value(self._baseline(opened, opened.sites_with(bits)), "baseline")

    def _baseline(self, opened: OpenStudy, sites: Sites) -> Result:
        whole = sites.whole(sites.outputs)
        sums: Result = {}
        for piece in opened.pieces():
            with torch.no_grad():
                _add_pair(sums, "baseline", self.compare(opened.study, piece, whole.run(opened.inputs(sites, piece))))
        return sums


def key(item: Item, what: str | int) -> str:
    """The name of a sum that belongs to an item: what it is, or at how many bits."""
    return f"{item.kind} {item.name} {what}"


def channel_key(item: Item, number: int) -> str:
    """The name of the sum that belongs to an output channel of a weight."""
    return key(item, f"output channel {number}")


def make_metric(text: str) -> Metric:
    """The metric that a text such as ``hessian-trace{probes=16}`` names, with its options.

    Raises:
        UnknownNameError: no such metric or option; carries the nearest known name.
        PassError: the text breaks the grammar, or an option has a value of the wrong type.
    """
    written = split_pipeline(text)
    if len(written) != 1:
        raise PassError(f"'{text}' names {len(written)} metrics: give one")
    chosen = find_metric(written[0].name)
    types = option_types.types_of(chosen)
    for option in written[0].options:
        if option not in types:
            raise UnknownNameError(f"option of metric '{chosen.name}':", option, types)
    place = f"metric '{chosen.name}'"
    values = {
        option: option_types.convert(types[option], value, f"{place}, option '{option}'") for option, value in written[0].options.items()
    }
    try:
        return chosen(**values)  # type: ignore[no-any-return]  # the registry knows classes by name alone
    except QCompilerError as error:
        raise error.within(place) from None


def _totals(results: Mapping[str, Result]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for result in results.values():
        for name, value in result.items():
            totals[name] = totals.get(name, 0.0) + value
    return totals


def _task(item: Item) -> str:
    return f"{item.kind} {item.name}"


def _add_pair(sums: Result, name: str, pair: tuple[float, float]) -> None:
    for part, value in zip(("over", "under"), pair, strict=True):
        sums[f"{name} {part}"] = sums.get(f"{name} {part}", 0.0) + value


def _rounded_sites(opened: OpenStudy) -> Sites:
    """Everything at its fixed bits or at 8; what would have levels with unequal steps stays in float."""
    items, nodes = opened.study.items, {node.name: node for node in opened.program.graph.nodes}
    coded = {item for item in items.fixed if opened.study.quantize.coded_bits(nodes[item.name]) is not None}
    return opened.sites_with({item: items.fixed.get(item, REST_BITS) for item in items.sizes if item not in coded})
