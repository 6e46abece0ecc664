"""The pass ``allocate``: bits go into the program, stay there, and ``quantize`` gives them."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler as qc
from qcompiler.calibration.data import CalibrationData
from qcompiler.capture import capture
from qcompiler.errors import CalibrationError, PassError, QCompilerError, TargetError, UnknownNameError
from qcompiler.ir import edit, serialize
from qcompiler.ir.program import Program
from qcompiler.ir.types import Precision, Stage
from qcompiler.latency import LatencyTable, Machine
from qcompiler.passes.allocate.channel_orders import LAYERS
from qcompiler.passes.allocate.costs import stored_bits
from qcompiler.passes.allocate.items import find_items
from qcompiler.passes.allocate.problem import AllocationError
from qcompiler.pipeline.manager import PassManager
from qcompiler.pipeline.text import parse_pipeline
from qcompiler.sensitivity import Item, SensitivityTable


class Network(nn.Module):
    """Four layers with a residual add; [N, 3, 8, 8] to [N, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 8, 3, padding=1)
        self.right = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.right(torch.relu(self.left(x))) + x)
        return self.head(x.mean((2, 3)))


@functools.cache
def float_program() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        program = capture(Network().eval(), images()[:2])
    return PassManager(parse_pipeline("canonicalize")).run(program)


@functools.cache
def images() -> torch.Tensor:
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def run(text: str, program: Program | None = None) -> Program:
    chosen = program or float_program()
    return PassManager(parse_pipeline(text)).run(chosen, CalibrationData(images(), chosen.inputs))


def weight_bits(program: Program) -> dict[str, int]:
    """Bits of the weights of a FLOAT program as they were asked for."""
    asked = {node.name: node.meta.get("precision") for node in program.graph.nodes}
    return {name: found.weight for name, found in asked.items() if isinstance(found, Precision) and found.weight is not None}


def table(path: Path, **changes: float) -> Path:
    """A table by hand: the first convolution matters most."""
    items = find_items(float_program())
    rows = {(item, bits): (10.0 if item.name == "conv2d" else 1.0) * 4.0**-bits for item in items.candidates for bits in (2, 3, 4, 6, 8)}
    rows |= {(Item(name, "weight"), 2): value for name, value in changes.items()}
    SensitivityTable("by-hand", "", rows).save(path)
    return path


def test_bits_keep_the_budget_and_quantize_gives_them() -> None:
    program = run("allocate{metric=perturbation,average_weight_bits=4.5}")
    bits = weight_bits(program)
    sizes = {item.name: size.elements for item, size in find_items(float_program()).sizes.items() if item.kind == "weight"}
    assert bits.keys() == sizes.keys()
    assert sum(bits[name] * size for name, size in sizes.items()) <= 4.5 * sum(sizes.values())
    assert len(set(bits.values())) > 1
    quantized = run("quantize", program)
    for name, wanted in bits.items():
        (weight,) = (node.args[1] for node in quantized.graph.nodes if node.name == name)
        assert weight.meta["quantized"].integer.bits == wanted


def test_the_graph_computes_what_it_computed() -> None:
    program = run("allocate{metric=perturbation,average_weight_bits=4}")
    assert torch.equal(program(images()), float_program()(images()))  # type: ignore[arg-type]  # one output


def test_bits_survive_canonicalize_text_and_serialization() -> None:
    program = run("allocate{metric=perturbation,average_weight_bits=4,activation_bits=(4,8),bops=1e7}")
    asked = {node.name: node.meta["precision"] for node in program.graph.nodes if "precision" in node.meta}
    again = serialize.load(*serialize.dump(program))
    for other in (run("canonicalize", program), again):
        assert {node.name: node.meta["precision"] for node in other.graph.nodes if "precision" in node.meta} == asked
    assert again.text() == program.text()
    assert "asks=W" in program.text() and "asks=" not in float_program().text()


def test_values_get_bits_where_they_may() -> None:
    program = run("allocate{metric=sqnr-layer,bops=1.8e6,bits=(4,8),activation_bits=(4,8)}")
    asked = [node.meta["precision"] for node in program.graph.nodes if "precision" in node.meta]
    assert {found.activation for found in asked} >= {4}
    quantized = run("quantize", program)
    assert any(node.meta["quantized"].integer.bits == 4 for node in quantized.graph.nodes if node.name.endswith("_quantize"))


def test_a_table_decides_instead_of_a_metric(tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv")
    bits = weight_bits(run(f"allocate{{table={path},average_weight_bits=4}}"))
    assert bits["conv2d"] > bits["conv2d_1"]
    edited = table(tmp_path / "edited.json", conv2d_1=0.0)
    assert weight_bits(run(f"allocate{{table={edited},average_weight_bits=4}}"))["conv2d_1"] == 2


def test_pins_hold(tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv")
    assert weight_bits(run(f"allocate{{table={path},average_weight_bits=4,pins=(conv2d:w3)}}"))["conv2d"] == 3


def test_fixed_weights_count_and_stay_with_quantize() -> None:
    """What edge_bits fixes gets no bits of its own, but is in the average."""
    program = run("allocate{metric=perturbation,average_weight_bits=5},quantize{edge_bits=8}")
    (record,) = (record for record in program.history if record.name == "allocate")
    assert not any(note.startswith(("conv2d:", "linear:")) for note in record.notes)
    assert any(note.startswith("conv2d_1: W") for note in record.notes)


class Joined(nn.Module):
    """A value that a concatenation and another layer read."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.both, self.other = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.relu(self.left(x)), torch.relu(self.right(x))
        return self.both(torch.cat([left, right], 1)) * self.other(left)


def test_inputs_of_a_concatenation_get_equal_bits_where_they_are_tied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(16, 8)
    program = PassManager(parse_pipeline("canonicalize")).run(capture(Joined().eval(), inputs[:2]))
    items = find_items(program)
    (tie,) = (tie for tie in items.ties if tie.kind == "concatenation")
    first, second = tie.items
    rows = {(item, bits): (100.0 if item == first else 1e-6) * 2.0**-bits for item in items.candidates for bits in (4, 8)}
    SensitivityTable("by-hand", "", rows).save(tmp_path / "table.json")
    for ties in (False, True):
        text = f"allocate{{table={tmp_path}/table.json,bops=12000,bits=(4,8),activation_bits=(4,8),ties={str(ties).lower()}}}"
        allocated = PassManager(parse_pipeline(text)).run(program, CalibrationData(inputs, program.inputs))
        asked = {node.name: node.meta["precision"].activation for node in allocated.graph.nodes if "precision" in node.meta}
        assert (asked[first.name] == asked[second.name]) is ties


@pytest.mark.parametrize("solver", ["greedy", "dynamic-programming"])
def test_other_solvers_keep_the_budget_too(solver: str, tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv")
    (record,) = run(f"allocate{{table={path},average_weight_bits=4,solver={solver}}}").history[-1:]
    assert record.notes[0].startswith(f"{solver}: sum of sensitivities (by-hand) ")


def test_a_latency_budget_reads_the_table_of_this_machine_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "table.csv")
    layers = [node.name for node in float_program().graph.nodes if node.name in ("conv2d", "conv2d_1", "conv2d_2", "linear")]
    kernels = {"slow": 2e-3, "fast": 1e-3}
    here = LatencyTable(Machine.here(threads=1), kernels, {name: {(4, 8): ("fast",), (8, 8): ("slow",)} for name in layers}, 1e-3)
    here.save(tmp_path / "here.json")
    text = f"allocate{{table={path},threads=1,bits=(4,8),latency_table={tmp_path}"
    bits = weight_bits(run(f"{text}/here.json,latency=6.5}}"))
    assert bits == {"conv2d": 8, "conv2d_1": 4, "conv2d_2": 4, "linear": 4}
    baseline = dataclasses.replace(here, machine=Machine.here("x86-64-v3", threads=1))
    baseline.save(tmp_path / "baseline.json")
    options: dict[str, object] = {"table": str(path), "latency_table": str(tmp_path / "baseline.json"), "latency": 6.5, "threads": 1}
    passes = "allocate{bits=(4,8)},quantize,lower-integer"
    assert qc.allocate(float_program(), None, passes=passes, options=options, target="x86-64-v3").costs["latency"] <= 6.5
    assert qc.quantize(float_program(), images(), passes=passes, options=options, target="x86-64-v3").stage is Stage.INTEGER
    with pytest.raises(TargetError, match="measured with target 'x86-64-v3' in place of"):
        qc.quantize(float_program(), images(), passes=passes, options=options, target="x86-64-vnni")
    with pytest.raises(AllocationError, match="latency = 4 ms is below the minimum of 5 ms: raise latency to 5 ms"):
        run(f"{text}/here.json,latency=4}}")
    elsewhere = LatencyTable(Machine("Other CPU", (), "x86-64-v3", 1, "0", "none"), kernels, here.layers, 0.0)
    elsewhere.save(tmp_path / "elsewhere.json")
    with pytest.raises(TargetError, match="measured with the CPU 'Other CPU' in place of .*: run 'qcompiler profile' here"):
        run(f"{text}/elsewhere.json,latency=6}}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ("samples=8", PassError, "no budget is given: give one of average_weight_bits, size, bops, latency"),
        ("average_weight_bits=1.5", AllocationError, "average_weight_bits = 1.5 bits is below the minimum of 2 bits: raise"),
        ("size=10", AllocationError, "budget size = 10 bytes is below the minimum of"),
        ("average_weight_bits=4,pins=(conv2d_9:w4)", UnknownNameError, "unknown weight in a pin: 'conv2d_9': did you mean 'conv2d"),
        (
            "average_weight_bits=4,pins=(conv2d:w5)",
            PassError,
            "pin of weight 'conv2d' to 5 bits: it may have 2, 3, 4, 6, 8: add 5 to the option 'bits'",
        ),
        (
            "average_weight_bits=4,pins=(conv2d:w1)",
            PassError,
            "pin of weight 'conv2d' to 1 bits: it may have 2, 3, 4, 6, 8: choose one of these",
        ),
        (
            "average_weight_bits=4,pins=(relu:a4)",
            PassError,
            "pin of activation 'relu' to 4 bits: it is fixed at 8: give activation_bits, or",
        ),
        ("average_weight_bits=4,pins=(conv2d=8)", PassError, "column"),
        ("average_weight_bits=4,pins=(conv2d)", PassError, "pin 'conv2d': write NAME:w4"),
        ("average_weight_bits=4,metric=nonsense", UnknownNameError, "nonsense"),
        ("average_weight_bits=0", PassError, "average_weight_bits must be positive"),
        ("bits=(1,4)", PassError, "bits must be different numbers among 2..8"),
        ("average_weight_bits=4,table=missing.csv", CalibrationError, "missing.csv"),
        ("latency=1,latency_table=missing.json", CalibrationError, "latency table 'missing.json' cannot be read"),
    ],
)
def test_mistakes_are_named(options: str, error: type[QCompilerError], message: str) -> None:
    with pytest.raises(error, match=message) as caught:
        run(f"allocate{{metric=perturbation,{options}}}" if "metric=" not in options else f"allocate{{{options}}}")
    assert "\n" not in str(caught.value)


def test_budgets_that_nothing_keeps_are_told_before_anything_is_measured() -> None:
    """Without data nothing could be measured."""
    options = "metric=loss,size=600,pins=(conv2d:w8,conv2d_1:w8)"
    with pytest.raises(AllocationError, match="budget size = 600 bytes; pin of weight 'conv2d_1' to 8: raise size to") as caught:
        PassManager(parse_pipeline(f"allocate{{{options}}}")).run(float_program())
    assert "\n" not in str(caught.value)


def test_a_table_without_a_row_says_which(tmp_path: Path) -> None:
    rows = {(item, bits): 4.0**-bits for item in find_items(float_program()).candidates for bits in (2, 4, 8)}
    SensitivityTable("by-hand", "", rows).save(tmp_path / "table.json")
    with pytest.raises(CalibrationError, match="no row for weight 'conv2d' at 3 bits: measure it, or leave out 3 of the option 'bits'"):
        run(f"allocate{{table={tmp_path}/table.json,average_weight_bits=4}}")


# ---- groups of channels -----------------------------------------------------------------------------------------------------------


def notes_of(program: Program, name: str) -> tuple[str, ...]:
    (record,) = (record for record in program.history if record.name == name)
    return record.notes


@functools.cache
def grouped(options: str = "") -> Program:
    """Bits of channels, before any layer is split."""
    return run(f"allocate{{metric=fisher,average_weight_bits=4.5,channel_groups=4{options}}}")


def test_groups_get_bits_of_their_own_under_the_same_budget() -> None:
    asked = {node.name: node.meta["precision"] for node in grouped().graph.nodes if "precision" in node.meta}
    sizes = {item.name: size for item, size in find_items(float_program()).sizes.items() if item.kind == "weight"}
    apart = {name: found.channels for name, found in asked.items() if found.channels}
    assert apart and all(len(apart[name]) == sizes[name].channels and asked[name].weight == max(apart[name]) for name in apart)
    total = sum(
        sum(apart.get(name, (asked[name].weight,) * size.channels)) * size.elements // size.channels for name, size in sizes.items()
    )
    assert total <= 4.5 * sum(size.elements for size in sizes.values())
    for name, widths in apart.items():
        (note,) = (note for note in notes_of(grouped(), "allocate") if note.startswith(f"{name}: W"))
        assert f"W{max(widths)} for {widths.count(max(widths))} channels" in note


def test_groups_lose_no_more_than_layers() -> None:
    unsplit = run("allocate{metric=fisher,average_weight_bits=4.5}")
    lost = [float(notes_of(program, "allocate")[0].split("(fisher) ")[1].split(",")[0]) for program in (grouped(), unsplit)]
    assert lost[0] < lost[1]


def test_pins_hold_for_all_groups() -> None:
    program = grouped(",pins=(conv2d:w3)")
    assert next(node for node in program.graph.nodes if node.name == "conv2d").meta["precision"] == Precision(weight=3)


def test_other_budgets_hold_for_groups() -> None:
    """Of 8 channels 8 groups: bytes and bit operations are those of the channels."""
    program = run("allocate{metric=fisher,size=560,bops=3.2e6,channel_groups=8}")
    sizes = {item.name: size for item, size in find_items(float_program()).sizes.items() if item.kind == "weight"}
    asked = {node.name: node.meta["precision"] for node in program.graph.nodes if "precision" in node.meta}
    assert any(found.channels for found in asked.values())
    spent = 0
    for name, size in sizes.items():
        widths = asked[name].channels or (asked[name].weight,) * size.channels
        spent += sum(-(-size.elements // size.channels * stored_bits(bits) // 8) + 4 for bits in widths)
    assert spent <= 560


def test_quantize_gives_each_part_its_bits_and_all_parts_one_scale() -> None:
    program = run("split-channels,quantize", grouped())
    found = [node for node in program.graph.nodes if "_w" in node.name and node.target in LAYERS]
    assert found
    for part in found:
        assert part.args[1].meta["quantized"].integer.bits == int(part.name.partition("_w")[2].split("_")[0])
    for node in edit.calls(program.graph, torch.ops.aten.cat.default):
        assert len({part.meta["quantized"].scale for part in node.args[0]}) == 1


def test_compiled_parts_give_the_integers_of_the_reference() -> None:
    program = run("split-channels,quantize,lower-integer,optimize", grouped())
    assert len(list(edit.calls(program.graph, torch.ops.qc.convolution.default))) > 3
    inputs = program.quantize_inputs((images(),))
    found = qc.compile(program, target="x86-64-v3", threads=1).run_integer(*inputs)
    assert all(torch.equal(wanted, torch.as_tensor(each)) for wanted, each in zip(program.run_integer(*inputs), found, strict=True))


def test_a_recipe_splits_where_it_is_asked_to() -> None:
    options = {"allocate.metric": "fisher", "allocate.average_weight_bits": 4.5, "quantize.edge_bits": None}
    captured = capture(Network().eval(), images()[:2])
    program = qc.quantize(captured, images(), recipe="mixed", options={**options, "allocate.channel_groups": 4})
    assert notes_of(program, "split-channels")
    allocation = qc.allocate(captured, images(), options={**options, "allocate.channel_groups": 4})
    assert allocation.channels and allocation.average_weight_bits <= 4.5
    assert all(allocation.bits[item] == max(widths) for item, widths in allocation.channels.items())


def test_mistakes_about_groups_are_named() -> None:
    with pytest.raises(PassError, match=r"channel_groups must be 1 \(none\) or more, got 0"):
        run("allocate{channel_groups=0,size=500}")
    with pytest.raises(PassError, match=r"channel_groups=2 needs the pass 'split-channels' between allocate and quantize: add it"):
        run("allocate{metric=perturbation,size=500,channel_groups=2},quantize")
    notes = notes_of(run("allocate{metric=perturbation,average_weight_bits=4.5,channel_groups=9}"), "allocate")
    assert "conv2d: not split, as it has 8 output channels for 9 groups" in notes
