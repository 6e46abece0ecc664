"""``retune-batch-norm``: means and deviations of every layer's channels are those of the float program again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from qcompiler.errors import PassError
from qcompiler.ir.layers import CHANNEL_AXIS
from qcompiler.ir.program import Program
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline


class _Channels(fx.Interpreter):
    """Means and deviations of each channel of each layer."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.found: dict[str, tuple[Tensor, Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.target in CHANNEL_AXIS:
            rows = value.movedim(CHANNEL_AXIS[n.target], -1).flatten(0, -2).double()
            self.found[n.name] = rows.mean(0), rows.std(0, correction=0)
        return value


def channels(program: Program, samples: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    interpreter = _Channels(program)
    with torch.no_grad():
        interpreter.run(samples)
    return interpreter.found


def test_every_channel_has_its_float_mean_and_deviation_back(network: Any) -> None:
    retuned = network.run("retune-batch-norm")
    wanted, before, after = (channels(program, network.samples) for program in (network.reference, network.qdq, retuned))
    for name, (mean, deviation) in wanted.items():
        # float32 sums of a few dozen products, and scales in float32.
        assert torch.allclose(after[name][0], mean, atol=2e-5 * float(deviation.max()))
        assert torch.allclose(after[name][1], deviation, rtol=1e-4)
        assert not torch.allclose(before[name][1], deviation, rtol=1e-3)


def test_it_brings_the_outputs_nearer(network: Any) -> None:
    assert network.error(network.run("retune-batch-norm")) < 0.9 * network.error(network.qdq)


def test_means_alone(network: Any) -> None:
    retuned = network.run("retune-batch-norm{scales=false}")
    wanted, after = (channels(program, network.samples) for program in (network.reference, retuned))
    assert all(torch.allclose(after[name][0], mean, atol=2e-5 * float(deviation.max())) for name, (mean, deviation) in wanted.items())
    scales = [
        [node.args[1] for node in program.graph.nodes if "weight" in node.name and node.op == "call_function"]
        for program in (network.qdq, retuned)
    ]
    assert scales[0] == scales[1]


def test_no_op_is_added_and_no_integer_changes(network: Any) -> None:
    retuned = network.run("retune-batch-norm")
    assert [node.target for node in retuned.graph.nodes if node.op == "call_function"] == [
        node.target for node in network.qdq.graph.nodes if node.op == "call_function"
    ]
    integers = [
        sorted(tensor.sum().item() for tensor in program.graph_module.buffers() if tensor.dtype == torch.int8)
        for program in (network.qdq, retuned)
    ]
    assert integers[0] == integers[1]


def test_the_integer_program_follows(network: Any) -> None:
    lowered = PassManager(parse_pipeline("lower-integer")).run(network.run("retune-batch-norm"))
    retuned = network.run("retune-batch-norm")
    expected = retuned.run(network.others)[0]
    assert (lowered.run(network.others)[0] - expected).abs().max() < 0.05 * expected.abs().max()


def test_a_killed_run_continues_with_the_same_result(network: Any, tmp_path: Path) -> None:
    whole = network.run("retune-batch-norm")
    first = network.run(f"retune-batch-norm{{checkpoint={tmp_path}}}")
    for path in sorted(tmp_path.glob("*.safetensors"))[2:]:
        path.unlink()
    again = network.run(f"retune-batch-norm{{checkpoint={tmp_path}}}")
    outputs = [program.run(network.others)[0] for program in (whole, first, again)]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])


def test_what_it_leaves_alone_it_names(cases: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 4, 3))
    found = cases.quantized(model, cases.images(16, 1), cases.images(16, 2), w=4)
    notes = found.run("retune-batch-norm").history[-1].notes
    assert "conv2d: left alone: it has no bias of its own" in notes
    assert any(note.startswith("conv2d_1: relative error ") for note in notes)


def test_without_the_float_program_it_says_what_to_do(network: Any) -> None:
    with pytest.raises(PassError, match="float program"):
        PassManager(parse_pipeline("retune-batch-norm")).run(network.qdq, network.data())
