"""The template that tests every registered pass before its author writes a test.

Each pass runs with its default options over generated networks at the stage it takes, and must keep its promise, leave its input as it
was, be honest about having modified something, and give the same result twice.
"""

from __future__ import annotations

import functools
import random

import pytest
import torch
from torch import nn

from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.collector import StatisticsCollector
from qcompiler.pipeline.contract import Equivalent, Exact, Lossy, Pass, PassContext, PassResult
from qcompiler.pipeline.instruments import signal_to_noise
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.progress import SilentProgress
from qcompiler.pipeline.registry import find_pass, pass_names
from qcompiler.pipeline.text import make_pass, parse_pipeline

SEEDS = range(3)
# What brings a captured network to each stage; a pass from FLOAT is also tried on the network as captured.
TO_STAGE = {
    Stage.FLOAT: "canonicalize",
    Stage.QDQ: "canonicalize,quantize",
    Stage.INTEGER: "canonicalize,quantize,lower-integer",
}
# Options with which a pass that works long ends soon, and those that a pass must be given.
QUICK: dict[str, dict[str, object]] = {name: {"steps": 10} for name in ("adaround", "reconstruct-blocks", "adaquant", "tune-bias")}
QUICK["allocate"] = {"metric": "perturbation", "average_weight_bits": 5.0}


class RandomNetwork(nn.Module):
    """A small CNN with branches, drawn by a seed: [N, 3, 12, 12] to [N, 5]."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.stem = self._convolution(draw, 3, 8, stride=1)
        self.blocks = nn.ModuleList(self._block(draw, 8) for _ in range(draw.randint(1, 3)))
        self.joins = [draw.choice(("add", "mul", "cat", "chain")) for _ in self.blocks]
        self.squeezes = nn.ModuleList(nn.Conv2d(16, 8, 1) if join == "cat" else nn.Dropout() for join in self.joins)
        self.pool = draw.choice((nn.MaxPool2d(2), nn.AvgPool2d(3, 2, padding=1), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)))
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        for block, join, squeeze in zip(self.blocks, self.joins, self.squeezes, strict=True):
            y = block(x)
            if join == "cat":
                x = squeeze(torch.cat([x, y], 1))
            elif join == "mul":
                x = x * torch.sigmoid(y)
            else:
                x = x + y if join == "add" else squeeze(y)
        x = self.pool(x)
        return self.head(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))

    def _block(self, draw: random.Random, channels: int) -> nn.Module:
        layers = [self._convolution(draw, channels, channels, stride=1) for _ in range(draw.randint(1, 2))]
        if draw.random() < 0.3:
            layers.append(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(channels, channels, 3)))
        return nn.Sequential(*layers)

    @staticmethod
    def _convolution(draw: random.Random, inputs: int, outputs: int, stride: int) -> nn.Sequential:
        kernel = draw.choice((1, 3, 5))
        groups = draw.choice((1, outputs)) if inputs == outputs else 1
        normalized = draw.random() < 0.7
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=draw.random() < 0.5 or not normalized)
        ]
        if normalized:
            layers.append(nn.BatchNorm2d(outputs))
        layers.append(draw.choice((nn.ReLU(), nn.ReLU6(), nn.Hardswish(), nn.Identity(), nn.SiLU())))
        return nn.Sequential(*layers)


@functools.cache
def images() -> torch.Tensor:
    return torch.randn(16, 3, 12, 12, generator=torch.Generator().manual_seed(7))


@functools.cache
def captured(seed: int) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = RandomNetwork(seed).train()
        with torch.no_grad():
            network(torch.randn(64, 3, 12, 12))  # batch norms get statistics of their own
    return capture(network.eval(), images()[:2])


@functools.cache
def program_at(stage: Stage, seed: int) -> Program:
    program = captured(seed)
    return PassManager(parse_pipeline(TO_STAGE[stage])).run(program, CalibrationData(images(), program.inputs))


@functools.cache
def reference_of(seed: int) -> Program:
    """The float program that ``program_at(Stage.QDQ, seed)`` was quantized from."""
    return PassManager(parse_pipeline("canonicalize")).run(captured(seed))


def run_alone(item: Pass, program: Program, reference: Program | None = None) -> PassResult:
    data = CalibrationData(images(), program.inputs)
    collector = StatisticsCollector(data, SilentProgress())
    return item.run(program, PassContext(collector.answer(program, [item]), data=data, reference=reference))


def contents(program: Program) -> tuple[str, dict[str, torch.Tensor]]:
    """Everything that a program is: its text and its tensors."""
    return program.text(), {name: tensor.clone() for name, tensor in program.graph_module.named_buffers()}


def same(first: tuple[str, dict[str, torch.Tensor]], second: tuple[str, dict[str, torch.Tensor]]) -> bool:
    tensors, others = first[1], second[1]
    return first[0] == second[0] and tensors.keys() == others.keys() and all(torch.equal(tensors[name], others[name]) for name in tensors)


def outputs(program: Program) -> list[torch.Tensor]:
    if program.stage is Stage.INTEGER:
        return list(program.run_integer(*program.quantize_inputs((images(),))))
    return list(program.run(images()))


def check_promise(item: Pass, before: Program, result: PassResult) -> None:
    if before.stage is result.program.stage:
        old, new = outputs(before), outputs(result.program)
    else:
        old, new = list(before.run(images())), list(result.program.run(images()))
    if isinstance(item.promise, Exact):
        assert all(torch.equal(a, b) for a, b in zip(old, new, strict=True))
    elif isinstance(item.promise, Equivalent):
        for a, b in zip(old, new, strict=True):
            assert (b - a).abs().max() <= item.promise.tolerance * a.abs().max()
    else:
        assert isinstance(item.promise, Lossy)
        assert result.notes or not result.modified, "a lossy pass reports what it lost"
        # Far above what a wrong scale or a lost operand would leave, far below what eight bits do.
        assert signal_to_noise(old, new) > 15.0


def check(item: Pass, program: Program, reference: Program | None = None) -> None:
    before = contents(program)
    result = run_alone(item, program, reference)
    assert same(contents(program), before), "the input program was changed"
    assert result.program.stage is item.gives
    result.program.verify()
    if result.modified:
        assert not same(contents(result.program), before)
    else:
        assert result.program.graph_module is program.graph_module
    assert same(contents(run_alone(item, program, reference).program), contents(result.program)), "two runs differ"
    check_promise(item, program, result)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", pass_names())
def test_pass_keeps_its_promise(name: str, seed: int) -> None:
    stage = find_pass(name).takes
    check(make_pass(name, QUICK.get(name, {})), program_at(stage, seed), reference_of(seed) if stage is Stage.QDQ else None)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in pass_names() if find_pass(name).takes is find_pass(name).gives is Stage.FLOAT])
def test_float_pass_keeps_its_promise_on_networks_as_captured(name: str, seed: int) -> None:
    check(make_pass(name, QUICK.get(name, {})), captured(seed))
