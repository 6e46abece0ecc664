from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from qcompiler.ir import edit
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.ranges import annotate
from qcompiler.ir.text import program_dict, program_text
from qcompiler.ir.types import INT32, UINT8, QuantizedType, Stage

aten, qc = torch.ops.aten, torch.ops.qc
GOLDEN = Path(__file__).parent.parent / "golden"


def check_golden(name: str, text: str) -> None:
    assert text == (GOLDEN / name).read_text(encoding="utf-8")


def integer_program(batch: int | None = None) -> Program:
    place = Provenance("net.py:7 in forward: x = self.conv(x)", "conv", ("capture", "lower-integer"))
    builder = GraphBuilder()
    x = builder.input("x", (batch, 2, 4, 4), torch.uint8)
    weight = builder.constant("conv.weight", torch.full((16, 2, 3, 3), 3, dtype=torch.int8), Provenance(module_path="conv"))
    bias = builder.constant("conv.bias", torch.arange(16, dtype=torch.int32), place)
    accumulator = builder.call(qc.convolution.default, x, weight, bias, [1, 1], [1] * 4, [1, 1], 1, 3, provenance=place)
    parameters = [builder.constant(name, torch.tensor(value, dtype=torch.int32)) for name, value in (("l", 8), ("m", 1 << 30), ("s", 12))]
    y = builder.call(qc.requantize.default, accumulator, *parameters, 0, 10, 0, 255, "high", 8, False, provenance=place)
    both = builder.call(aten.cat.default, [y, y], 1)
    float32 = torch.float32
    x_type, y_type = QuantizedType(UINT8, (float(torch.tensor(0.1)),), (3,)), QuantizedType(UINT8, (0.3,), (10,))
    scales = tuple(0.5 / (1 + channel) for channel in range(16))
    for node, kind in ((x, x_type), (accumulator, QuantizedType(INT32, scales, axis=1)), (y, y_type), (both, y_type)):
        node.meta["quantized"] = kind
    specs = ValueSpec("x", float32, (batch, 2, 4, 4), x_type), ValueSpec("y", float32, (batch, 32, 4, 4), y_type)
    history = (
        PassRecord("lower-integer", {"requantize": "auto", "narrow_tolerance": 0.02}, True, ("1 layer lowered",)),
        PassRecord("merge"),
    )
    program = Program(builder.finish(both, both), Stage.INTEGER, specs[:1], (specs[1], specs[1]), history)
    annotate(program)
    return program


def test_golden_text_of_an_integer_program() -> None:
    check_golden("ir_integer.txt", program_text(integer_program()))


def test_golden_text_of_a_captured_network() -> None:
    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(1, 2, 3, bias=False)
            self.conv.weight.data.fill_(0.5)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            first, second = torch.relu(self.conv(x)).chunk(2, 1)
            return first, torch.clamp(second, max=float("inf"))

    from qcompiler.capture import capture

    text = program_text(capture(Network(), torch.zeros(1, 1, 4, 4)))
    first_line = Network.forward.__code__.co_firstlineno
    for offset in (1, 2):
        text = text.replace(f"test_text.py:{first_line + offset}", f"test_text.py:{offset}")
    check_golden("ir_float.txt", text)


def test_golden_machine_readable_twin() -> None:
    check_golden("ir_integer.json", json.dumps(program_dict(integer_program()), indent=1) + "\n")


def test_the_same_program_has_the_same_text_however_its_symbols_are_numbered() -> None:
    program = integer_program()
    assert program_text(integer_program()) == program_text(program) == program_text(edit.copy(program))
    assert "B" not in program_text(integer_program(batch=1)).replace("By", "")


def test_whatever_differs_is_seen() -> None:
    """Constants and long lists are abbreviated, yet each change of them changes the text."""
    texts = {program_text(integer_program())}
    program = integer_program()
    program.graph_module.conv_weight[3, 1, 2, 2] = 4
    texts.add(program_text(program))
    program = integer_program()
    node = next(edit.calls(program.graph, qc.convolution.default))
    scales = list(node.meta["quantized"].scale)
    scales[9] *= 1.0001
    node.meta["quantized"] = replace(node.meta["quantized"], scale=tuple(scales))
    texts.add(program_text(program))
    program = integer_program()
    next(edit.calls(program.graph, qc.requantize.default)).update_arg(5, 11)
    texts.add(program_text(program))
    assert len(texts) == 4


def test_values_that_share_bytes_but_not_shape_or_dtype_differ() -> None:
    program, other, third = integer_program(), integer_program(), integer_program()
    other.graph_module.conv_bias = program.graph_module.conv_bias.reshape(4, 4)
    third.graph_module.conv_bias = program.graph_module.conv_bias.view(torch.int8)
    assert len({program_text(program), program_text(other), program_text(third)}) == 3


def test_broken_programs_still_have_a_text() -> None:
    """A dump is what one looks at when something is wrong."""
    program = integer_program()
    node = next(edit.calls(program.graph, qc.requantize.default))
    del node.meta["val"], node.meta["provenance"]
    program.graph.output_node().args = (node,)
    del program.graph_module.l
    text = program_text(program)
    assert "%requantize: ? as u8 scale=" in text and "= constant missing" in text and "return %requantize" in text
    assert json.dumps(program_dict(program))


def test_twin_of_every_random_program_is_json(random_program: Callable[[int], Program]) -> None:
    for seed in range(10):
        program = random_program(seed)
        assert json.loads(json.dumps(program_dict(program))) == program_dict(program)
