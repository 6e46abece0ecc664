"""RNN, GRU and LSTM over a sequence of known length: each step is written out.

Gates and their order as in the ONNX standard: [batch, input] W' + [batch, hidden] R' + both biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from qcompiler.capture.onnx.call import Call
from qcompiler.capture.onnx.registry import converter

Activation = Callable[[Tensor], Tensor]

_LONGEST = 256
_ACTIVATIONS: Mapping[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": F.softsign,
    "softplus": F.softplus,
    "hardsigmoid": lambda x: torch.clamp(x * 0.2 + 0.5, 0.0, 1.0),
}


@dataclass(frozen=True)
class Direction:
    """Weights of one direction: [gates * hidden, input], [gates * hidden, hidden], two biases, and for LSTM the peepholes."""

    weight: Tensor
    recurrence: Tensor
    bias: Tensor
    recurrent_bias: Tensor
    peepholes: list[Tensor]
    activations: list[Activation]
    backwards: bool


State = tuple[Tensor, ...]
Step = Callable[[Call, Direction, Tensor, State], State]


def _elman(call: Call, given: Direction, x: Tensor, state: State) -> State:
    """h' = f(x W' + h R' + b)."""
    gates = F.linear(x, given.weight, given.bias) + F.linear(state[0], given.recurrence, given.recurrent_bias)
    return (given.activations[0](gates),)


def _gru(call: Call, given: Direction, x: Tensor, state: State) -> State:
    """h' = (1 - z) n + z h; the reset gate works before or after the product with the recurrence of n."""
    (hidden,), width = state, state[0].shape[-1]
    f, g = given.activations[:2]
    outer = F.linear(x, given.weight, given.bias)
    weights, biases = given.recurrence.split(width), given.recurrent_bias.split(width)
    update = f(outer[..., :width] + F.linear(hidden, weights[0], biases[0]))
    reset = f(outer[..., width : 2 * width] + F.linear(hidden, weights[1], biases[1]))
    if call.flag("linear_before_reset"):
        new = g(outer[..., 2 * width :] + reset * F.linear(hidden, weights[2], biases[2]))
    else:
        new = g(outer[..., 2 * width :] + F.linear(reset * hidden, weights[2], biases[2]))
    return (torch.rsub(update, 1) * new + update * hidden,)


def _lstm(call: Call, given: Direction, x: Tensor, state: State) -> State:
    """c' = f c + i g, h' = o h(c'); gates in the order i, o, f, g."""
    hidden, cell = state
    f, g, h = given.activations[:3]
    gates = F.linear(x, given.weight, given.bias) + F.linear(hidden, given.recurrence, given.recurrent_bias)
    entry, output, forget, new = gates.chunk(4, -1)
    if given.peepholes:
        entry, forget = entry + given.peepholes[0] * cell, forget + given.peepholes[2] * cell
    cell = f(forget) * cell + f(entry) * g(new)
    output = output + given.peepholes[1] * cell if given.peepholes else output
    return f(output) * h(cell), cell


@dataclass(frozen=True)
class Kind:
    """An op: its step, how many gates and states it has, and its activations."""

    step: Step
    gates: int
    states: int
    activations: tuple[str, ...]


_KINDS = {
    "RNN": Kind(_elman, 1, 1, ("Tanh",)),
    "GRU": Kind(_gru, 3, 1, ("Sigmoid", "Tanh")),
    "LSTM": Kind(_lstm, 4, 2, ("Sigmoid", "Tanh", "Tanh")),
}


@converter(*_KINDS)
def recurrent(call: Call) -> tuple[Tensor, ...]:
    """Y [length, directions, batch, hidden] and the last state(s); with ``layout=1`` the batch comes first."""
    kind, batch_first = _KINDS[call.node.op_type], call.flag("layout")
    x = call.tensor(0).transpose(0, 1) if batch_first else call.tensor(0)
    length = x.shape[0]
    if not isinstance(length, int) or length > _LONGEST:
        raise call.fail(f"runs over {length} steps: their number must be known and at most {_LONGEST}, for each is written out")
    if call.has(4) and not (call.is_constant(4) and set(call.numbers(4)) == {length}):
        raise call.fail("has sequences of several lengths: pad them")
    outputs, lasts = [], []
    for number in range(call.tensor(1).shape[0]):
        rows, last = _run(call, kind, _direction(call, kind, number), x, number, batch_first)
        outputs.append(torch.stack(rows))
        lasts.append(last)
    y = torch.stack(outputs, 1)
    states = [torch.stack(parts, 1 if batch_first else 0) for parts in zip(*lasts, strict=True)]
    return (y.permute(2, 0, 1, 3) if batch_first else y, *states)


def _run(call: Call, kind: Kind, given: Direction, x: Tensor, number: int, batch_first: bool) -> tuple[list[Tensor], State]:
    state = tuple(_initial(call, given, x, 5 + position, number, batch_first) for position in range(kind.states))
    rows: list[Tensor] = []
    for position in reversed(range(x.shape[0])) if given.backwards else range(x.shape[0]):
        state = kind.step(call, given, x[position], state)
        rows.append(state[0])
    return rows[::-1] if given.backwards else rows, state


def _initial(call: Call, given: Direction, x: Tensor, position: int, number: int, batch_first: bool) -> Tensor:
    if call.has(position):
        return call.tensor(position).select(1 if batch_first else 0, number)
    return torch.zeros([x.shape[1], given.recurrence.shape[-1]])


def _direction(call: Call, kind: Kind, number: int) -> Direction:
    if call.attribute("clip") is not None or call.flag("input_forget"):
        raise call.fail("clips its gates or couples them: neither is supported")
    names = call.attribute("activations") or kind.activations * 2
    each = len(kind.activations)
    chosen = [str(name).lower() for name in names[number * each : (number + 1) * each]]
    unknown = [name for name in chosen if name not in _ACTIVATIONS]
    if unknown:
        raise call.fail(f"has the activation '{unknown[0]}': {', '.join(_ACTIVATIONS)} are supported")
    weight, recurrence = call.tensor(1)[number], call.tensor(2)[number]
    zeros = torch.zeros([weight.shape[0]])
    bias, recurrent_bias = call.tensor(3)[number].chunk(2) if call.has(3) else (zeros, zeros)
    peepholes = list(call.tensor(7)[number].chunk(3)) if call.has(7) else []
    backwards = number == 1 or call.text("direction", "forward") == "reverse"
    return Direction(weight, recurrence, bias, recurrent_bias, peepholes, [_ACTIVATIONS[name] for name in chosen], backwards)
