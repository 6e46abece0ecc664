"""The integer linear program against all allocations there are, and what it says where there is none."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.errors import UnknownNameError
from qcompiler.passes.allocate import solver
from qcompiler.passes.allocate.pareto import pareto_front
from qcompiler.passes.allocate.problem import AllocationError, Budget, Cost, Problem, Solution, Variable, evaluate, keeps_budgets
from qcompiler.passes.allocate.solver import METHODS, least, solve

BITS = (2, 4, 8)


def problem(
    seed: int,
    layers: int = 3,
    share: float = 0.5,
    kinds: Sequence[str] = ("bops", "size"),
    readers: int = 2,
    bits: Sequence[int] = BITS,
) -> Problem:
    """Layers whose weights and inputs have bits of their own; ``readers`` layers read one input. ``share``: of the range of costs."""
    draw = np.random.default_rng(seed)
    widths = np.array(bits, dtype=float)
    variables, size, bops = [], [], []
    for layer in range(layers):
        weight, value = f"w{layer}", f"a{layer // readers}"
        names = [weight] if layer % readers else [weight, value]
        variables += [Variable(name, tuple(bits), tuple(draw.lognormal(0, 2) * 4.0**-widths)) for name in names]
        parameters, macs = int(draw.integers(10, 1000)), int(draw.integers(1000, 100_000))
        size.append(Cost((weight,), parameters * widths / 8))
        bops.append(Cost((weight, value), macs * np.outer(widths, widths)))
    costs = {"size": size, "bops": bops}
    budgets = [Budget(kind, _between(costs[kind], share), tuple(costs[kind])) for kind in kinds]
    return Problem(tuple(variables), tuple(budgets))


def _between(costs: Sequence[Cost], share: float) -> float:
    low, high = (sum(float(choose(cost.values)) for cost in costs) for choose in (np.min, np.max))
    return low + share * (high - low)


def best_of_all(given_problem: Problem) -> Solution | None:
    """By trying every allocation."""
    names = [variable.name for variable in given_problem.variables]
    best = None
    for options in itertools.product(*(variable.options for variable in given_problem.variables)):
        chosen = dict(zip(names, options, strict=True))
        if any(chosen[name] != option for name, option in given_problem.pins.items()):
            continue
        if any(len({chosen[name] for name in tie}) > 1 for tie in given_problem.ties):
            continue
        found = evaluate(given_problem, chosen, "all")
        if keeps_budgets(given_problem, found) and (best is None or found.objective < best.objective):
            best = found
    return best


@given(st.integers(0, 10_000), st.floats(0.0, 1.0), st.sampled_from([("size",), ("bops",), ("bops", "size")]), st.booleans(), st.booleans())
def test_the_program_finds_the_best_of_all_allocations(seed: int, share: float, kinds: tuple[str, ...], tied: bool, pinned: bool) -> None:
    given_problem = problem(seed, share=share, kinds=kinds)
    given_problem = Problem(given_problem.variables, given_problem.budgets, (("a0", "a1"),) if tied else (), {"w1": 4} if pinned else {})
    expected = best_of_all(given_problem)
    if expected is None:
        with pytest.raises(AllocationError):
            solve(given_problem)
        return
    found = solve(given_problem)
    assert keeps_budgets(given_problem, found)
    assert expected.objective <= found.objective <= expected.objective * (1 + 2 * solver._RELATIVE_GAP) + 1e-12
    assert found.chosen.keys() == expected.chosen.keys()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["size", "bops"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.8])
def test_every_solver_keeps_the_budget(method: str, kind: str, share: float) -> None:
    given_problem = problem(1, layers=20, share=share, kinds=(kind,), bits=(2, 3, 4, 6, 8))
    found = solve(given_problem, method)
    assert keeps_budgets(given_problem, found)
    assert found.objective >= solve(given_problem).objective * (1 - 2 * solver._RELATIVE_GAP)


def test_dynamic_programming_comes_near_the_program() -> None:
    for kind in ("size", "bops"):
        given_problem = problem(2, layers=30, share=0.3, kinds=(kind,))
        assert solve(given_problem, "dynamic-programming").objective <= solve(given_problem).objective * 1.02


def test_a_joint_cost_is_exactly_that_of_the_options_chosen() -> None:
    """One value is read by several layers: each pair costs what the table says for the two options."""
    given_problem = problem(3, layers=6, share=0.2, kinds=("bops",), readers=3)
    found = solve(given_problem)
    cost = sum(
        item.values[BITS.index(found.chosen[item.items[0]]), BITS.index(found.chosen[item.items[1]])]
        for item in given_problem.budgets[0].costs
    )
    assert found.costs["bops"] == pytest.approx(cost, rel=1e-12)


def test_the_number_of_rows_and_columns_grows_with_the_layers_alone() -> None:
    """What a solution takes is counted, not timed: x of each item, y of each pair, one equality for each item and each row of a pair."""

    def size(layers: int) -> tuple[int, int]:
        program = solver._LinearProgram(solver.reduce(problem(0, layers, 0.3, ("bops",), 1, (2, 3, 4, 6, 8, 16))))
        return program._columns, program._equalities().right.size

    assert size(1) == (6 + 6 + 36, 2 + 12)
    assert size(200) == (200 * 48, 200 * 14)


def test_few_columns_are_left_to_the_solver(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    original = solver.milp
    monkeypatch.setattr(solver, "milp", lambda costs, **rest: (counts.append(costs.size), original(costs, **rest))[1])
    given_problem = problem(0, 200, 0.1, ("bops",), 1, (2, 3, 4, 6, 8, 16))
    solve(given_problem)
    assert sum(counts) <= 2000  # of 9600


def test_what_only_one_option_is_left_of_has_no_column() -> None:
    given_problem = problem(0, 10, 0.3, ("bops",), 1)
    pinned = Problem(given_problem.variables, given_problem.budgets, pins={f"a{number}": 8 for number in range(10)})
    assert solver._LinearProgram(solver.reduce(pinned))._columns == 10 * len(BITS)


def test_a_budget_below_the_minimum_says_what_the_minimum_is() -> None:
    given_problem = problem(4, kinds=("size",), share=0.0)
    minimum = given_problem.budgets[0].limit
    with pytest.raises(AllocationError, match=rf"^budget size = 1 is below the minimum of {minimum:g}: raise size to {minimum:g}$"):
        solve(given_problem.with_limit("size", 1.0))
    assert least(given_problem, "size") == pytest.approx(minimum)


def test_a_conflict_names_each_constraint_that_takes_part_and_no_other() -> None:
    given_problem = problem(5, kinds=("size", "bops"), share=0.0)
    conflicting = Problem(given_problem.variables, given_problem.budgets, (("a0", "a1"),), {"w0": 8, "a0": 2})
    with pytest.raises(AllocationError) as error:
        solve(conflicting.with_limit("bops", 1e12))
    assert "budget size" in str(error.value) and "pin of w0 to 8" in str(error.value)
    assert "a0" not in str(error.value) and "bops" not in str(error.value)


def test_budgets_that_only_together_cannot_be_kept() -> None:
    """One layer whose latency falls with its bits while its size rises."""
    layer = Variable("w", (4, 8), (1.0, 0.0))
    size = Budget("size", 5.0, (Cost(("w",), np.array([4.0, 8.0])),), "bytes")
    latency = Budget("latency", 1.0, (Cost(("w",), np.array([2.0, 1.0])),), "ms")
    with pytest.raises(AllocationError) as error:
        solve(Problem((layer,), (size, latency)))
    assert str(error.value) == (
        "no allocation keeps these together: budget size = 5 bytes; budget latency = 1 ms: raise size to 8 bytes or raise latency to 2 ms"
    )


def test_wrong_pins_and_ties_are_named() -> None:
    given_problem = problem(6)
    variables, budgets = given_problem.variables, given_problem.budgets
    with pytest.raises(UnknownNameError, match="unknown item 'w9': did you mean 'w"):
        Problem(variables, budgets, pins={"w9": 4})
    with pytest.raises(AllocationError, match="w0 is pinned to 5, which is not among its options: 2, 4, 8"):
        Problem(variables, budgets, pins={"w0": 5})
    with pytest.raises(AllocationError, match="pinned to different options"):
        solve(Problem(variables, budgets, (("w0", "w1"),), {"w0": 4, "w1": 8}))
    with pytest.raises(AllocationError, match="no option in common"):
        solve(Problem((Variable("a", (2,), (0.0,)), Variable("b", (4,), (0.0,))), ties=(("a", "b"),)))


def test_dynamic_programming_takes_one_budget() -> None:
    with pytest.raises(AllocationError, match="takes one budget, not 2"):
        solve(problem(0), "dynamic-programming")


def test_an_unknown_solver_is_named() -> None:
    with pytest.raises(UnknownNameError, match="solver 'gready'"):
        solve(problem(0), "gready")


def test_the_front_falls_and_every_point_is_the_best_for_its_limit() -> None:
    given_problem = problem(7, layers=4, kinds=("size",))
    front = pareto_front(given_problem, "size", points=8)
    objectives, costs = [point.objective for point in front], [point.costs["size"] for point in front]
    assert objectives == sorted(objectives, reverse=True) and costs == sorted(costs)
    assert objectives[-1] == pytest.approx(sum(min(variable.sensitivities) for variable in given_problem.variables))
    for point in front:
        assert point.objective == pytest.approx(best_of_all(given_problem.with_limit("size", point.costs["size"])).objective, rel=1e-3)  # type: ignore[union-attr]


def test_sensitivities_of_any_size_are_told_apart() -> None:
    """2 bits may lose a million times what 8 bits lose: differences between the good options must still decide."""
    variables = tuple(Variable(f"w{k}", (2, 4, 8), (1e6, 1e-3 * (k + 1), 1e-9)) for k in range(4))
    costs = tuple(Cost((variable.name,), np.array([2.0, 4.0, 8.0])) for variable in variables)
    found = solve(Problem(variables, (Budget("size", 24.0, costs),)))
    assert dict(found.chosen) == {"w0": 4, "w1": 4, "w2": 8, "w3": 8}
