"""The one intermediate representation: a torch.fx graph, its stage, what goes in and out, and how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.errors import QCompilerError
from qcompiler.ir.types import IntegerRange, QuantizedType, SpecSize, Stage


@dataclass(frozen=True)
class ValueSpec:
    """One input or output of a program: name, dtype and shape seen by the user (None: the symbolic batch; see ``ir.sizes``).

    At INTEGER ``quantized`` says how the float value outside becomes the integer value inside (inputs) or back (outputs);
    None there means that the value itself is an integer on both sides; the integers of such an input lie in ``range``, which every
    run checks and every proof may rely on (None: any value of the dtype).
    """

    name: str
    dtype: torch.dtype
    shape: tuple[SpecSize, ...]
    quantized: QuantizedType | None = None
    range: IntegerRange | None = None

    def check_range(self, value: torch.Tensor) -> None:
        """Guard for integers that the user gives.

        Raises:
            QCompilerError: an element lies outside ``range``; names the input and the element.
        """
        if self.range is None or value.numel() == 0:
            return
        low, high = (int(end) for end in torch.aminmax(value.to(torch.int64)))
        if low < self.range.low or high > self.range.high:
            found = low if low < self.range.low else high
            raise QCompilerError(f"input '{self.name}' holds {found}, but its integers must lie in {self.range}: correct the input")


@dataclass(frozen=True)
class PassRecord:
    """One line of a program's history: which pass ran, with which options, and what it noted."""

    name: str
    options: Mapping[str, object] = field(default_factory=dict)
    modified: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """A model at one stage. Running it in torch is the reference for everything that is generated from it."""

    graph_module: fx.GraphModule
    stage: Stage
    inputs: tuple[ValueSpec, ...]
    outputs: tuple[ValueSpec, ...]
    history: tuple[PassRecord, ...] = ()
    # Names of the float ops that stay at INTEGER because the user allowed them, each between a dequantize and a quantize.
    islands: tuple[str, ...] = ()
    # A few calibration inputs, each a batch of one: test vectors of the artifact are made from them.
    samples: tuple[tuple[torch.Tensor, ...], ...] = field(default=(), compare=False, repr=False)

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Float in, float out at every stage; a single output is returned bare."""
        results = self.run(*inputs)
        return results[0] if len(results) == 1 else results

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """As ``__call__``, always a tuple. At INTEGER: quantize the inputs, run the integers, dequantize the outputs.

        Raises:
            QCompilerError: the inputs do not have the number, shapes and dtypes of ``inputs``.
        """
        if self.stage is not Stage.INTEGER:
            self._check(inputs, integers=False)
            return self._execute(inputs)
        return self.dequantize_outputs(self.run_integer(*self.quantize_inputs(inputs)))

    def run_integer(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The bare integers of the INTEGER stage, in and out."""
        if self.stage is not Stage.INTEGER:
            raise QCompilerError(f"the program is at stage {self.stage.value}: lower it with the pass 'lower-integer' before run_integer")
        self._check(inputs, integers=True)
        return self._execute(inputs)

    def quantize_inputs(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """The integers inside for the floats outside; integers that the user gives stay.

        Raises:
            QCompilerError: as ``run``.
        """
        self._check(inputs, integers=False)
        return tuple(arithmetic.quantize(x, s.quantized) if s.quantized else x for x, s in zip(inputs, self.inputs, strict=True))

    def dequantize_outputs(self, outputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(arithmetic.dequantize(x, s.quantized) if s.quantized else x for x, s in zip(outputs, self.outputs, strict=True))

    def text(self) -> str:
        """Stable text form: one line a node, types, scales, ranges and provenance; the same program gives the same text."""
        from qcompiler.ir.text import program_text

        return program_text(self)

    def verify(self) -> None:
        """Raise VerificationError unless the graph keeps its stage's specification (at INTEGER: integers only, ranges proven)."""
        from qcompiler.ir.verifier import verify

        verify(self)

    def replace(self, **changes: object) -> Program:
        return replace(self, **changes)  # type: ignore[arg-type]  # dataclasses.replace checks the names itself

    def _execute(self, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        for spec, value in zip(self.inputs, inputs, strict=True):
            spec.check_range(value)
        with torch.no_grad():
            result = self.graph_module(*inputs)
        return tuple(result)

    def _check(self, inputs: Sequence[torch.Tensor], *, integers: bool) -> None:
        from qcompiler.ir.inputs import check_inputs

        check_inputs(self.inputs, inputs, integers, "program")
