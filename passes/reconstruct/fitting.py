"""Gradient descent on the weights of a unit, and whether its result is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx

from qcompiler.passes.reconstruct.layers import LayerChange, QuantizedLayer, dequantized
from qcompiler.passes.reconstruct.twins import Dropping
from qcompiler.passes.reconstruct.units import Unit, relative


class Model(Protocol):
    """How the weight or bias of one layer depends on what is learned."""

    layer: QuantizedLayer

    def parameters(self) -> list[dict[str, Any]]:
        """Groups of tensors with their learning rates, as ``torch.optim.Adam`` takes them."""

    def replaced(self) -> Mapping[fx.Node, Tensor]:
        """The constants of the graph as differentiable functions of the parameters."""

    def penalty(self, progress: float) -> Tensor:
        """Sum over the weights of what keeps them from being integers, when the share ``progress`` of the steps is done."""

    def change(self) -> LayerChange:
        """What the layer becomes with the parameters as they are."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` of Adam on ``batch`` samples each.

    penalty: weight of the models' mean penalty; the output error counts as 1 before the first step.
    dropping: probability that a rounding of an activation inside is left out, for each element and step.
    float_share: probability that an input is taken from the float program, for each element and step.
    decay: learning rates fall linearly to zero, without which weights that go to and fro between two integers end at either by chance.
    """

    steps: int
    batch: int
    penalty: float = 0.0
    dropping: float = 0.0
    float_share: float = 0.0
    decay: bool = False


@dataclass(frozen=True)
class Outcome:
    """The changes that were taken, and a note for each layer or block."""

    changes: tuple[LayerChange, ...]
    notes: tuple[str, ...]


Fitting = Generator[None, None, Outcome]


def fit(unit: Unit, models: Sequence[Model], schedule: Schedule, seed: int) -> Fitting:
    """Minimize ``mean |f(inputs) - targets|^2 / its value before + penalty``; yields after each step.

    A result whose error over all samples, rounded to integers, is not below that before is not taken.
    """
    before, powers = unit.errors({}), unit.powers()
    if not any(before):
        return Outcome((), (f"{unit.name}: no error to reduce",))
    generator = torch.Generator().manual_seed(_seed_of(unit.name, seed))
    yield from _descend(unit, models, schedule, before, generator)
    changes = tuple(model.change() for model in models)
    after = unit.errors(
        {node: value for model, change in zip(models, changes, strict=True) for node, value in dequantized(model.layer, change)}
    )
    return judge(unit.name, relative(before, powers), relative(after, powers), changes)


def judge(name: str, before: float, after: float, changes: tuple[LayerChange, ...]) -> Outcome:
    """Take the changes if they lower the error; the note says from what to what."""
    figures = f"{name}: relative output error {before:.3g} -> {after:.3g}"
    return Outcome(changes, (figures,)) if after < before else Outcome((), (f"{figures}, which is no gain: not taken",))


def _descend(
    unit: Unit, models: Sequence[Model], schedule: Schedule, before: Sequence[float], generator: torch.Generator
) -> Generator[None, None, None]:
    optimizer = torch.optim.Adam([group for model in models for group in model.parameters()])
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    dropping = Dropping(schedule.dropping, generator) if schedule.dropping > 0.0 else None
    weights = sum(model.layer.integers.numel() for model in models)
    for step in range(schedule.steps):
        index = _draw(unit, schedule.batch, generator)
        inputs = _mixed_inputs(unit, index, schedule.float_share, generator)
        replaced = {node: value for model in models for node, value in model.replaced().items()}
        outputs = unit.outputs(inputs, replaced, dropping)
        targets = [store.rows(index) for store in unit.targets]
        shares = [(y - t).square().mean() / e for y, t, e in zip(outputs, targets, before, strict=True) if e > 0.0]
        loss = torch.stack(shares).mean()
        if schedule.penalty > 0.0:
            loss = loss + schedule.penalty / weights * torch.stack([model.penalty(step / schedule.steps) for model in models]).sum()
        if schedule.decay:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1.0 - step / schedule.steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield


def _draw(unit: Unit, batch: int, generator: torch.Generator) -> Tensor:
    """Numbers of samples, without repetition; as many as a graph with a fixed batch can take."""
    count = min(batch, unit.samples)
    if unit.fixed_batch is not None:
        count = max(unit.fixed_batch, count // unit.fixed_batch * unit.fixed_batch)
    return torch.randperm(unit.samples, generator=generator)[:count]


def _mixed_inputs(unit: Unit, index: Tensor, float_share: float, generator: torch.Generator) -> list[Tensor]:
    inputs = [store.rows(index) for store in unit.inputs]
    if unit.float_inputs is None or float_share == 0.0:
        return inputs
    mixed = []
    for value, store, own in zip(inputs, unit.float_inputs, unit.inputs, strict=True):
        if store is own:
            mixed.append(value)
            continue
        chosen = torch.rand(value.shape, generator=generator) < float_share
        mixed.append(torch.where(chosen, store.rows(index), value))
    return mixed


def _seed_of(name: str, seed: int) -> int:
    """One seed for each unit, so that a run that was resumed draws as one that was not."""
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:6], "big")
