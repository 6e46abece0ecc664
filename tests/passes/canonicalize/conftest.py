"""What the tests of the float passes share: capture a small network, run one pass, and check what every pass promises."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qcompiler.capture import capture
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.sizes import concrete_shape
from qcompiler.pipeline.contract import Exact, Pass, PassContext, PassResult


@dataclass(frozen=True)
class Rewritten:
    before: Program
    result: PassResult

    @property
    def program(self) -> Program:
        return self.result.program

    @property
    def ops(self) -> Counter[str]:
        """How often each op is called: {"conv2d": 2, "relu": 1}."""
        return op_counts(self.program)

    @property
    def lines(self) -> list[str]:
        """The calls of the program's text, without types, provenance and the sign before names."""
        lines = [line.partition("  #")[0] for line in self.program.text().splitlines() if " = aten." in line or " = qc." in line]
        return [re.sub(r"%(\w+): \S+ = ", r"\1 = ", line).replace("%", "") for line in lines]

    @property
    def expressions(self) -> list[str]:
        """The same without the names on the left."""
        return [line.partition(" = ")[2] for line in self.lines]


def op_counts(program: Program) -> Counter[str]:
    calls = [node for node in program.graph.nodes if node.op == "call_function"]
    return Counter(str(node.target).removeprefix("aten.").split(".")[0] for node in calls)


class Lambda(nn.Module):
    """A module that computes ``function(module, *inputs)``; the keywords are its submodules, parameters and buffers."""

    def __init__(self, function: Callable[..., object], **members: object) -> None:
        super().__init__()
        self.function = function
        for name, member in members.items():
            if isinstance(member, Tensor) and not isinstance(member, nn.Parameter):
                self.register_buffer(name, member)
            else:
                setattr(self, name, member)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def randomized(model: nn.Module) -> nn.Module:
    """Batch norms whose folding would show if it were wrong."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.eval()


def assert_same_function(first: Program, second: Program, batch: int, tolerance: float) -> None:
    """|first - second| <= tolerance * max|first| for every output on random inputs; tolerance 0 means equal."""
    inputs = [random_input(spec, batch) for spec in first.inputs]
    for left, right in zip(first.run(*inputs), second.run(*inputs), strict=True):
        assert left.shape == right.shape and left.dtype == right.dtype
        if not left.is_floating_point():
            assert torch.equal(left, right)
            continue
        assert (left - right).abs().max() <= tolerance * left.abs().max()


def random_input(spec: ValueSpec, batch: int) -> Tensor:
    """Floats, or zeros and ones of which the first of each row is 1: what masks, and ids of tables with two rows, may hold."""
    shape = concrete_shape(spec.shape, batch, {"sequence": 7})
    if spec.dtype.is_floating_point:
        return torch.randn(shape)
    value = torch.randint(0, 2, shape)
    value[..., 0] = 1
    return value.to(spec.dtype)


RunPass = Callable[..., Rewritten]


@pytest.fixture
def rewrite() -> RunPass:
    """``rewrite(pass, model, *inputs)``, inputs by shape or as tensors: capture and run the pass, then check its promise, the
    verifier, that the program that came in is untouched, and that a second run finds nothing and gives back the very program."""
    torch.manual_seed(0)

    def run(
        item: Pass, model: nn.Module | Program, *shapes: Sequence[int] | Tensor, before: Sequence[Pass] = (), **options: Any
    ) -> Rewritten:
        inputs = [shape if isinstance(shape, Tensor) else torch.zeros(shape) for shape in shapes]
        program = model if isinstance(model, Program) else capture(randomized(model), inputs, **options)
        for other in before:
            program = other.run(program, PassContext()).program
        text = program.text()
        result = item.run(program, PassContext())
        assert program.text() == text
        assert result.modified == (result.program is not program)
        result.program.verify()
        tolerance = 0.0 if isinstance(item.promise, Exact) else 1e-5
        for batch in (1, 3):
            assert_same_function(program, result.program, batch, tolerance)
        again = item.run(result.program, PassContext())
        assert not again.modified and again.program is result.program
        return Rewritten(program, result)

    return run


@pytest.fixture
def network() -> type[Lambda]:
    """``network(function, **members)``: a module that computes ``function(module, *inputs)``."""
    return Lambda
