"""Small integer programs, node by node."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import fx

import qcompiler.ir.ops  # noqa: F401  # registers the qc:: ops
from qcompiler import arithmetic
from qcompiler.ir import ranges
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import INT8, INT16, INT32, UINT8, IntegerType, QuantizedType, Stage
from qcompiler.pipeline.contract import Pass, PassContext, PassResult

_qc = torch.ops.qc


class IntegerBuilder(GraphBuilder):
    """A program of one input; each method adds an op on a value and notes the type of its result."""

    def start(self, integer: IntegerType = UINT8, zero_point: int = 7, shape: tuple[int | None, ...] = (None, 3, 4, 4)) -> fx.Node:
        self.kind = QuantizedType(integer, (1.0,), (zero_point,))
        self.shape = shape
        return self._typed(self.input("x", shape, integer.dtype), integer, zero_point)

    def requantize(
        self, x: fx.Node, factor: float | torch.Tensor, zeros: tuple[int, int], limits: tuple[int, int], form: str = "auto"
    ) -> fx.Node:
        bound = 1 << 20 if x.meta["val"].dtype is torch.int32 else 255
        dyadic = arithmetic.choose(factor, bound, form)
        parameters = [self.constant(name, getattr(dyadic, name)) for name in arithmetic.DYADIC_PARAMETERS]
        signed = min(limits) < 0
        call = self.call(_qc.requantize.default, x, *parameters, *zeros, *limits, dyadic.form, 8, signed)
        return self._typed(call, IntegerType(8, signed), zeros[1])

    def clamp(self, x: fx.Node, low: int, high: int) -> fx.Node:
        kind = x.meta["quantized"]
        return self._typed(self.call(_qc.clamp.default, x, low, high), kind.integer, kind.zero_point[0])

    def lookup(self, x: fx.Node, table: torch.Tensor) -> fx.Node:
        integer = {torch.int8: INT8, torch.int16: INT16}.get(table.dtype, UINT8)
        return self._typed(self.call(_qc.lookup.default, x, self.constant("table", table), integer.bits, integer.signed), integer, 0)

    def bucketize(self, x: fx.Node, *boundaries: int) -> fx.Node:
        return self.call(_qc.bucketize.default, x, self.constant("boundaries", torch.tensor(boundaries, dtype=torch.int32)), 4)

    def widen(self, x: fx.Node) -> fx.Node:
        """int32 sums of 2x2 windows."""
        return self._typed(self.call(_qc.sum_pool2d.default, x, [2, 2], [1, 1], [0, 0, 0, 0], 7), INT32, 0)

    def program(self, *outputs: fx.Node) -> Program:
        graph_module = self.finish(*outputs)
        specs = tuple(
            ValueSpec(f"y{index}", torch.float32, (None, *node.meta["val"].shape[1:]), node.meta["quantized"])
            for index, node in enumerate(outputs)
        )
        program = Program(graph_module, Stage.INTEGER, (ValueSpec("x", torch.float32, self.shape, self.kind),), specs)
        ranges.annotate(program)
        program.verify()
        return program

    def _typed(self, node: fx.Node, integer: IntegerType, zero_point: int) -> fx.Node:
        node.meta["quantized"] = QuantizedType(integer, (1.0,), (zero_point,))
        return node


@pytest.fixture
def builder() -> IntegerBuilder:
    return IntegerBuilder()


@pytest.fixture
def all_bytes() -> Callable[[torch.dtype], torch.Tensor]:
    """Every 8-bit integer in every channel: [16, 3, 4, 4]."""

    def make(dtype: torch.dtype) -> torch.Tensor:
        low = torch.iinfo(dtype).min
        return torch.arange(low, low + 256).to(dtype).reshape(16, 1, 4, 4).repeat(1, 3, 1, 1)

    return make


Ops = Callable[[Program], list[str]]


@pytest.fixture
def ops() -> Ops:
    """Names of the calls of a program, in order."""
    return lambda program: [str(node.target).split(".")[1] for node in program.graph.nodes if node.op == "call_function"]


RunPass = Callable[[Pass, Program], PassResult]


@pytest.fixture
def run_pass() -> RunPass:
    """Run one pass; verify what it gives, that its argument stays as it was, and that a second run finds nothing."""

    def run(item: Pass, program: Program) -> PassResult:
        text = program.text()
        result = item.run(program, PassContext())
        assert program.text() == text and result.modified == (result.program is not program)
        result.program.verify()
        assert not item.run(result.program, PassContext()).modified
        return result

    return run
