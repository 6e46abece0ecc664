"""Products of two activations and attention inside a program: which nodes become one kernel, and that it gives the reference's integers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from qcompiler import arithmetic
from qcompiler.backends.tvm import planner, products, target
from qcompiler.backends.tvm.kernels import AttentionKernel, ElementwiseKernel, MatrixProductKernel, ProductKernel

TARGETS = ("x86-64-v3", "x86-64-vnni", "x86-64-amx")
TOKENS, HEADS, WIDTH = 21, 3, 16


class Attention:
    """A program whose input holds queries, keys and values of several heads side by side, as a linear layer leaves them."""

    def __init__(self, new: Callable[[], Any]) -> None:
        self.p = new()
        self.tokens = self.p.input(None, TOKENS, 3 * HEADS * WIDTH)
        self.mask_source = self.p.input(None, 1, 1, TOKENS)

    def heads(self, index: int, transposed: bool = False) -> fx.Node:
        """[batch, head, token, width], the last two exchanged where ``transposed``."""
        part = self.p.call("aten.slice:Tensor", self.tokens, 2, index * HEADS * WIDTH, (index + 1) * HEADS * WIDTH, 1)
        split = self.p.call("aten.unflatten:int", part, 2, [HEADS, WIDTH])
        return self.p.call("aten.permute", split, [0, 2, 3, 1] if transposed else [0, 2, 1, 3])

    def scores(self, form: str = "high") -> tuple[fx.Node, fx.Node]:
        """The accumulator and its rounding."""
        product = self.p.call("qc.matmul", self.heads(0), self.heads(1, transposed=True), 100, 120)
        return product, self.p.requantize(product, 155 * 155 * WIDTH, form=form, signed=True)

    def probabilities(self, scores: fx.Node, mask: fx.Node | None = None, bits: int = 8) -> fx.Node:
        table = self.p.constant("exponentials", arithmetic.exponential_table(0.05))
        return self.p.call("qc.softmax", scores, table, mask, "table", [], bits)

    def result(self, probabilities: fx.Node, form: str = "high") -> fx.Node:
        product = self.p.call("qc.matmul", probabilities, self.heads(2), 0, 127)
        return self.p.requantize(product, 255 * 155, form=form)

    def side_by_side(self, heads: fx.Node) -> fx.Node:
        return self.p.call("aten.flatten:using_ints", self.p.call("aten.permute", heads, [0, 2, 1, 3]), 2)


def _plain(a: Attention) -> list[fx.Node]:
    return [a.side_by_side(a.result(a.probabilities(a.scores()[1])))]


def _narrow(a: Attention) -> list[fx.Node]:
    return [a.result(a.probabilities(a.scores("narrow")[1]), "narrow")]


def _before_linear(a: Attention) -> list[fx.Node]:
    accumulator, bound = a.p.linear(_plain(a)[0], 24)
    return [a.p.requantize(accumulator, bound, (24,))]


def _masked(a: Attention) -> list[fx.Node]:
    mask = a.p.call("aten.ge:Scalar", a.mask_source, 90)
    return [a.side_by_side(a.result(a.probabilities(a.scores()[1], mask)))]


def _causal(a: Attention) -> list[fx.Node]:
    mask = a.p.constant("causal", torch.ones(TOKENS, TOKENS).tril().bool())
    return [a.side_by_side(a.result(a.probabilities(a.scores()[1], mask)))]


def _biased(a: Attention, shape: tuple[int, ...], dtype: torch.dtype, mask: fx.Node | None = None, first: bool = True) -> list[fx.Node]:
    product = a.p.call("qc.matmul", a.heads(0), a.heads(1, transposed=True), 100, 120)
    low, high = (0, 255) if dtype == torch.uint8 else (-20000, 20000)
    bias = a.p.integers("bias", low, high, shape, dtype)
    if first:
        return [a.side_by_side(a.result(a.probabilities(a.p.add(product, bias, 155 * 155 * WIDTH, high, zero_points=(0, 118)), mask)))]
    return [a.result(a.probabilities(a.p.add(bias, product, high, 155 * 155 * WIDTH, zero_points=(5, 0)), mask))]


def _bias_of_heads(a: Attention) -> list[fx.Node]:
    return _biased(a, (1, HEADS, TOKENS, TOKENS), torch.uint8)


def _bias_of_keys(a: Attention) -> list[fx.Node]:
    return _biased(a, (HEADS, 1, TOKENS), torch.int16, a.p.call("aten.ge:Scalar", a.mask_source, 50), first=False)


def _scores_read_twice(a: Attention) -> list[fx.Node]:
    _, rounded = a.scores()
    return [a.result(a.probabilities(rounded)), rounded]


def _accumulator_read_twice(a: Attention) -> list[fx.Node]:
    product, rounded = a.scores()
    return [a.result(a.probabilities(rounded)), product]


def _wide_probabilities(a: Attention) -> list[fx.Node]:
    return [a.probabilities(a.scores()[1], bits=16)]


def _of_words(a: Attention) -> list[fx.Node]:
    """int16 on the left, as from tables of codes."""
    words = a.p.call("qc.lookup", a.heads(0), a.p.integers("levels", -30000, 30000, (256,), torch.int16), 16, True)
    values = a.p.call("qc.lookup", a.heads(2, transposed=True), a.p.integers("few", -3, 3, (256,), torch.int8), 8, True)
    return [a.p.requantize(a.p.call("qc.matmul", words, values, 0, 1), 4 * 30000 * WIDTH)]


# What is built, and the kernels that it takes: attention, matrix products, plain products.
CASES: dict[str, tuple[Callable[[Attention], list[fx.Node]], tuple[int, int, int]]] = {
    "plain": (_plain, (1, 0, 0)),
    "narrow": (_narrow, (1, 0, 0)),
    "before_linear": (_before_linear, (1, 0, 0)),
    "masked": (_masked, (1, 0, 0)),
    "causal": (_causal, (1, 0, 0)),
    "bias_of_heads": (_bias_of_heads, (1, 0, 0)),
    "bias_of_keys": (_bias_of_keys, (1, 0, 0)),
    "scores_read_twice": (_scores_read_twice, (0, 2, 0)),
    "accumulator_read_twice": (_accumulator_read_twice, (0, 2, 0)),
    "wide_probabilities": (_wide_probabilities, (0, 1, 0)),
    "of_words": (_of_words, (0, 1, 0)),
}


def _counts(plan: Any) -> tuple[int, ...]:
    return tuple(sum(isinstance(step.kernel, kind) for step in plan.body) for kind in (AttentionKernel, MatrixProductKernel, ProductKernel))


@pytest.mark.parametrize("case", CASES)
def test_nodes_of_a_kernel(case: str, integer_program: Any) -> None:
    build, expected = CASES[case]
    attention = Attention(integer_program)
    assert _counts(planner.make_plan(attention.p.finish(*build(attention)), target.resolve("x86-64-v3"))) == expected


@pytest.mark.parametrize("name", TARGETS)
def test_equals_reference(name: str, integer_program: Any, compile_for: Any, differences: Any, request: pytest.FixtureRequest) -> None:
    if name == "x86-64-amx":
        request.getfixturevalue("amx_machine")
    attention = Attention(integer_program)
    outputs = [(case, node) for case, (build, _) in CASES.items() for node in build(attention)]
    program = attention.p.finish(*(node for _, node in outputs))
    assert not differences(program, compile_for(program, name), [case for case, _ in outputs], batches=(1, 3))


def test_a_kept_value_is_not_fused_away(integer_program: Any) -> None:
    attention = Attention(integer_program)
    _, rounded = attention.scores()
    program = attention.p.finish(attention.result(attention.probabilities(rounded)))
    assert _counts(planner.make_plan(program, target.resolve("x86-64-v3"), [rounded.name])) == (0, 2, 0)


def test_heads_lie_side_by_side_without_a_copy(integer_program: Any) -> None:
    """The rows that a linear layer reads are what attention has written."""
    attention = Attention(integer_program)
    plan = planner.make_plan(attention.p.finish(*_before_linear(attention)), target.resolve("x86-64-v3"))
    assert not [step for step in plan.body if isinstance(step.kernel, ElementwiseKernel)]


@pytest.mark.parametrize("build", [_plain, _bias_of_keys])
def test_too_much_stack(
    build: Callable[[Attention], list[fx.Node]], integer_program: Any, compile_for: Any, differences: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention falls apart into its kernels, and these into plain loops."""
    monkeypatch.setattr(products, "fits_stack", lambda kernel, name: False)
    attention = Attention(integer_program)
    program = attention.p.finish(*build(attention))
    assert _counts(planner.make_plan(program, target.resolve("x86-64-v3"))) == (0, 0, 2)
    assert not differences(program, compile_for(program, "x86-64-v3"), ["plain"], batches=(2,))
