from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import weakref

import pytest
import torch

from qcompiler.calibration import sweep as sweep_module
from qcompiler.calibration.data import CalibrationData, Labelled
from qcompiler.calibration.observers import make_observer
from qcompiler.calibration.observers.min_max import MinMaxObserver
from qcompiler.calibration.statistics import ObserverSpec, StatisticRequest
from qcompiler.calibration.sweep import collect
from qcompiler.errors import CalibrationError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import Stage


def small_program(*, reciprocal: bool = False) -> Program:
    """y = relu(x * w), and 1 / x on request."""
    builder = GraphBuilder()
    x = builder.input("x", (None, 3), torch.float32)
    product = builder.call(torch.ops.aten.mul.Tensor, x, builder.constant("w", torch.tensor([1.0, -2.0, 3.0])), name="product")
    result = builder.call(torch.ops.aten.relu.default, product, name="activation")
    if reciprocal:
        result = builder.call(torch.ops.aten.reciprocal.default, x, name="inverse")
    spec = ValueSpec("x", torch.float32, (None, 3))
    return Program(builder.finish(result), Stage.FLOAT, (spec,), (ValueSpec("y", torch.float32, (None, 3)),))


def sweep(program: Program, requests: list[StatisticRequest], batches: list[torch.Tensor]) -> dict[StatisticRequest, object]:
    return dict(collect(program, requests, CalibrationData(batches, program.inputs)))


def test_one_sweep_answers_everything() -> None:
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    requests = [
        StatisticRequest("x", ObserverSpec()),
        StatisticRequest("w", ObserverSpec()),
        StatisticRequest("product", ObserverSpec(axis=1)),
        StatisticRequest("product", ObserverSpec(symmetric=True)),
        StatisticRequest("activation", ObserverSpec()),
        StatisticRequest("activation", ObserverSpec()),
    ]
    answers = sweep(small_program(), requests, list(values.split(6)))
    product = values * torch.tensor([1.0, -2.0, 3.0])
    expected = {
        requests[0]: (values.min(), values.max()),
        requests[1]: (torch.tensor(-2.0), torch.tensor(3.0)),
        requests[2]: (product.amin(0), product.amax(0)),
        requests[3]: (-product.abs().max(), product.abs().max()),
        requests[4]: (torch.tensor(0.0), product.max()),
    }
    assert answers.keys() == expected.keys()
    for request, (low, high) in expected.items():
        assert (answers[request].low, answers[request].high) == (tuple(low.reshape(-1).tolist()), tuple(high.reshape(-1).tolist()))


def test_nothing_asked_reads_nothing() -> None:
    def forbidden() -> list[torch.Tensor]:
        raise AssertionError("the data were read")

    program = small_program()
    assert collect(program, [], CalibrationData(forbidden, program.inputs)) == {}


def test_a_value_that_becomes_infinite_is_told_with_node_and_sample() -> None:
    program = small_program(reciprocal=True)
    batches = [torch.ones(1, 3), torch.tensor([[1.0, 0.0, 1.0]])]
    with pytest.raises(CalibrationError, match=r"^calibration sample 1, node 'inverse' \(aten.reciprocal.default\).*infinities or NaN"):
        sweep(program, [StatisticRequest("inverse", ObserverSpec())], batches)


def test_requests_that_make_no_sense() -> None:
    with pytest.raises(CalibrationError, match="'absent', which is no node of the graph"):
        sweep(small_program(), [StatisticRequest("absent", ObserverSpec())], [torch.ones(1, 3)])
    with pytest.raises(CalibrationError, match="node 'product'.*no axis 2"):
        sweep(small_program(), [StatisticRequest("product", ObserverSpec(axis=2))], [torch.ones(1, 3)])
    with pytest.raises(CalibrationError, match="gathered from floats"):
        sweep(small_program().replace(stage=Stage.INTEGER), [StatisticRequest("x", ObserverSpec())], [torch.ones(1, 3)])


PEAK = textwrap.dedent(
    """
    import re, torch
    from pathlib import Path
    torch.set_num_threads(1)
    from torch import nn
    from qcompiler.calibration.data import CalibrationData, Labelled
    from qcompiler.calibration.statistics import OBSERVER_KINDS, ObserverSpec, StatisticRequest
    from qcompiler.calibration.sweep import collect
    from qcompiler.capture import capture

    {model}
    program = capture(model, torch.zeros(1, 3, {side}, {side}))
    values = [node.name for node in program.graph.nodes if node.target is torch.ops.aten.relu.default]
    requests = [StatisticRequest(name, ObserverSpec("mse")) for name in values]
    requests += [StatisticRequest(values[0], ObserverSpec(kind, axis=1)) for kind in OBSERVER_KINDS]
    for count in (10, {count}):
        images = (torch.randn(10, 3, {side}, {side}) for _ in range(0, count, 10))
        collect(program, requests, CalibrationData(images, program.inputs))
        # Of this program alone: ru_maxrss would count the process that started it too.
        print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
    """
)

SMALL = (
    "model = nn.Sequential("
    "nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1)).eval()"
)
RESNET20 = "from models.resnet_cifar import load_resnet20; model = load_resnet20(Path({path!r}))"


def peak_memory(model: str, count: int, side: int) -> tuple[int, int]:
    """Kilobytes that a fresh process held at most when it had calibrated on 10 images, and then on ``count`` more."""
    script = PEAK.format(model=model, count=count, side=side)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600, env=environment)
    few, many = map(int, done.stdout.split())
    return few, many


def test_memory_does_not_depend_on_the_number_of_images() -> None:
    """The images alone are 49 MB, three times what is allowed."""
    few, many = peak_memory(SMALL, 1000, side=64)
    assert many - few < 0.05 * few


def test_a_value_is_freed_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a chain of ten, its operand and itself are held when a value is observed."""
    builder = GraphBuilder()
    x = value = builder.input("x", (None, 3), torch.float32)
    for step in range(10):
        value = builder.call(torch.ops.aten.add.Tensor, value, x if step == 0 else 1.0, name=f"value_{step}")
    program = Program(
        builder.finish(value),
        Stage.FLOAT,
        (ValueSpec("x", torch.float32, (None, 3)),),
        (ValueSpec("y", torch.float32, (None, 3)),),
    )
    seen: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []
    update = MinMaxObserver.update

    def watched(self: MinMaxObserver, value: torch.Tensor, group: str = "") -> None:
        seen.append(weakref.ref(value))
        held.append(sum(each() is not None for each in seen))
        update(self, value, group)

    monkeypatch.setattr(MinMaxObserver, "update", watched)
    sweep(program, [StatisticRequest(f"value_{step}", ObserverSpec()) for step in range(10)], [torch.ones(4, 3)] * 3)
    assert len(held) == 30 and max(held) == 2


@pytest.mark.slow
def test_memory_of_resnet20_on_10_and_on_10000_images(assets: object) -> None:
    """Images of a quarter of the size that the network was trained on: their number counts."""
    few, many = peak_memory(RESNET20.format(path=f"{assets}/resnet20_cifar10/resnet20.safetensors"), 10_000, side=16)
    assert many - few < 0.05 * few


def test_labels_reach_the_observers() -> None:
    program = small_program()
    items = [Labelled(torch.full((3, 3), 4.0), 10), Labelled((torch.full((1, 3), 2.0),), 20), torch.full((5, 3), 1.0)]
    request = StatisticRequest("x", ObserverSpec("min-max", groups="per-group"))
    data = CalibrationData(items, program.inputs)
    seen = collect(program, [request], data)[request]
    assert [(group, answer.high) for group, answer in seen.groups] == [("", (1.0,)), ("10", (4.0,)), ("20", (2.0,))]
    assert [group for group, _ in data.labelled()] == ["10", "20", ""]
    assert torch.equal(data.samples()[0][0], torch.full((1, 3), 4.0))


def test_several_bit_widths_share_what_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    specs = [
        ObserverSpec(kind, bits=bits, groups=groups) for kind in ("mse", "entropy") for groups in ("pooled", "balanced") for bits in (3, 8)
    ]
    batches = [Labelled(batch, group) for batch, group in zip(values.split([30, 10, 10]), "aab", strict=True)]

    def ask(specs: list[ObserverSpec]) -> dict[ObserverSpec, object]:
        program = small_program()
        answers = collect(program, [StatisticRequest("x", spec) for spec in specs], CalibrationData(batches, program.inputs))
        return {request.observer: answer for request, answer in answers.items()}

    alone = {spec: ask([spec])[spec] for spec in specs}
    made: list[ObserverSpec] = []
    monkeypatch.setattr(sweep_module, "make_observer", lambda spec: made.append(spec) or make_observer(spec))
    assert ask(specs) == alone and len(set(map(str, alone.values()))) > len(specs) / 2
    assert len(made) == len(specs) / 2
