"""The methods by gradient descent, one table: how far each lowers the error of layers and networks that it has not seen the samples of."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch

from qcompiler.errors import CalibrationError, PassError, QCompilerError
from qcompiler.ir.program import Program
from qcompiler.passes.reconstruct.layers import find_layers
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline

STEPS = "steps=120"


@pytest.mark.parametrize("w", [3, 2])
@pytest.mark.parametrize(("text", "factor"), [("adaround", 0.5), ("reconstruct-blocks", 0.6), ("adaquant", 0.8)])
def test_a_layer_with_correlated_inputs(text: str, factor: float, w: int, cases: Any) -> None:
    case = cases.linear(w)
    assert case.error(case.run(f"{text}{{{STEPS}}}")) < factor * case.error(case.qdq)


@pytest.mark.parametrize(
    ("text", "factor"),
    [
        (f"adaround{{{STEPS}}}", 0.7),
        (f"reconstruct-blocks{{{STEPS}}}", 0.5),
        ("adaquant{steps=120,learning_rate=0.02}", 0.7),
        ("tune-bias{steps=120}", 0.9),
    ],
)
def test_a_network(network: Any, text: str, factor: float) -> None:
    result = network.run(text)
    assert network.error(result) < factor * network.error(network.qdq)
    figures = [note.partition("relative output error ")[2].split(" -> ") for note in result.history[-1].notes if "not taken" not in note]
    assert len(figures) > 2 and all(float(after) <= float(before) for before, after in figures[1:])


@pytest.mark.parametrize("name", ["gptq", "adaround", "reconstruct-blocks", "tune-bias"])
def test_scales_and_the_program_that_came_in_stay(network: Any, name: str) -> None:
    before = weights(network.qdq, network.reference)
    text = network.qdq.text()
    result = network.run(name if name == "gptq" else f"{name}{{steps=5}}")
    assert network.qdq.text() == text
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(before, weights(network.qdq, network.reference), strict=True))
    changed = weights(result, network.reference)
    assert [scale for _, scale in changed] == [scale for _, scale in before]
    if name == "tune-bias":
        assert all(torch.equal(a, b) for (a, _), (b, _) in zip(before, changed, strict=True))


def test_adaquant_moves_scales_with_what_is_noted_about_them(network: Any) -> None:
    result = network.run("adaquant{steps=20,scale_learning_rate=0.02}")
    layers, _ = find_layers(result, network.reference)
    originals, _ = find_layers(network.qdq, network.reference)
    assert any(new.kind.scale != old.kind.scale for new, old in zip(layers, originals, strict=True))
    assert all(layer.weight.meta["quantized"] == layer.kind for layer in layers)
    integer = PassManager(parse_pipeline("lower-integer")).run(result)
    expected, got = result.run(network.others)[0], integer.run(network.others)[0]
    assert float((got - expected).abs().max()) < 0.05 * float(expected.abs().max())


def test_a_result_that_is_worse_is_not_taken(network: Any) -> None:
    result = network.run("tune-bias{steps=3,learning_rate=50.0}")
    assert not result.history[-1].modified
    assert all(note.endswith("which is no gain: not taken") for note in result.history[-1].notes[1:])


def test_the_whole_network_at_once(network: Any) -> None:
    assert network.run("tune-bias{steps=2,whole=true}").history[-1].notes[0].endswith("in 1 blocks")


def test_same_seed_same_bytes(network: Any) -> None:
    texts = ["reconstruct-blocks{steps=5}"] * 2 + ["reconstruct-blocks{steps=5,seed=1}"]
    first, second, other = (weights(network.run(text), network.reference) for text in texts)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for (a, _), (b, _) in zip(first, other, strict=True))


def test_a_fixed_batch(cases: Any) -> None:
    case = cases.linear(3)
    fixed = [program.replace(inputs=(fixed_spec(program),)) for program in (case.qdq, case.reference)]
    result = PassManager(parse_pipeline("adaround{steps=20,learning_rate=0.05}"), verify=False).run(
        fixed[0], case.data(), reference=fixed[1]
    )
    any_batch = result.replace(inputs=case.qdq.inputs)
    assert case.error(any_batch) < case.error(case.qdq)


def fixed_spec(program: Program) -> object:
    return replace(program.inputs[0], shape=(16, *program.inputs[0].shape[1:]))


def test_without_the_float_program(network: Any) -> None:
    with pytest.raises(PassError, match="^pass 'gptq': compares with the float program, which is not known: quantize in the same pipeline"):
        PassManager(parse_pipeline("gptq")).run(network.qdq, network.data())


def test_without_data(network: Any) -> None:
    with pytest.raises(CalibrationError, match="^pass 'gptq' runs the model on calibration data, and there are none"):
        PassManager(parse_pipeline("gptq")).run(network.qdq, reference=network.reference)


@pytest.mark.parametrize("text", ["gptq{damping=0.0}", "adaround{steps=0}", "reconstruct-blocks{drop=1.5}", "gptq{samples=-1}"])
def test_options_out_of_range(text: str) -> None:
    with pytest.raises(QCompilerError, match="got"):
        parse_pipeline(text)


def weights(program: Program, reference: Program) -> list[tuple[torch.Tensor, tuple[float, ...]]]:
    layers, _ = find_layers(program, reference)
    return [(layer.integers, layer.kind.scale) for layer in layers]


def test_a_pass_can_be_the_first_thing_that_is_imported() -> None:
    code = "from qcompiler.pipeline.registry import find_pass; find_pass('gptq')"
    subprocess.run([sys.executable, "-c", code], check=True)
