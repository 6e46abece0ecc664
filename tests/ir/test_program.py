from __future__ import annotations

import pytest
import torch

from qcompiler.errors import QCompilerError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.types import UINT8, IntegerRange, QuantizedType, Stage

aten, qc = torch.ops.aten, torch.ops.qc


def integer_program() -> Program:
    builder = GraphBuilder()
    x, y = builder.input("x", (None, 2), torch.uint8), builder.input("y", (None, 2), torch.uint8)
    total = builder.call(qc.multiply.default, x, y, 1, 0)
    x_type = QuantizedType(UINT8, (0.5,), (1,))
    float32, shape = torch.float32, (None, 2)
    inputs = ValueSpec("x", float32, shape, x_type), ValueSpec("y", torch.uint8, shape)
    outputs = ValueSpec("total", torch.int32, shape), ValueSpec("x", float32, shape, x_type)
    return Program(builder.finish(total, x), Stage.INTEGER, inputs, outputs)


def test_floats_are_quantized_at_the_border_and_integers_pass() -> None:
    total, x = integer_program()(torch.tensor([[1.0, 2.24]]), torch.tensor([[3, 4]], dtype=torch.uint8))
    assert total.tolist() == [[6, 16]] and total.dtype == torch.int32
    assert x.tolist() == [[1.0, 2.0]]


def test_the_bare_integers() -> None:
    x, y = torch.tensor([[3, 5]], dtype=torch.uint8), torch.tensor([[3, 4]], dtype=torch.uint8)
    total, same = integer_program().run_integer(x, y)
    assert total.tolist() == [[6, 16]] and torch.equal(same, x)


def test_a_single_output_is_bare_and_run_gives_a_tuple() -> None:
    builder = GraphBuilder()
    x = builder.input("x", (None, 2), torch.float32)
    specs = (ValueSpec("x", torch.float32, (None, 2)),)
    program = Program(builder.finish(builder.call(aten.relu.default, x)), Stage.FLOAT, specs, specs)
    value = torch.tensor([[-1.0, 2.0]])
    assert torch.equal(program(value), torch.tensor([[0.0, 2.0]]))  # type: ignore[arg-type]
    assert isinstance(program.run(value), tuple)
    with pytest.raises(QCompilerError, match="at stage float: lower it with the pass 'lower-integer' before run_integer"):
        program.run_integer(value)


def test_the_number_of_inputs_is_checked() -> None:
    with pytest.raises(QCompilerError, match=r"takes 2 input\(s\) \(x, y\), got 1"):
        integer_program()(torch.ones(1, 2))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(1, 3), r"input 'x': expected torch.float32 \[N, 2\], got torch.float32 \[1, 3\]"),
        (torch.ones(2), r"input 'x': expected torch.float32 \[N, 2\], got torch.float32 \[2\]"),
        (torch.ones(1, 2, dtype=torch.float64), r"input 'x': expected torch.float32 \[N, 2\], got torch.float64 \[1, 2\]"),
        ([[1.0, 2.0]], "input 0 is of type list: pass torch tensors"),
    ],
)
def test_inputs_that_do_not_fit_are_declined(x: torch.Tensor, message: str) -> None:
    program, y = integer_program(), torch.ones(1, 2, dtype=torch.uint8)
    with pytest.raises(QCompilerError, match=message):
        program(x, y)
    with pytest.raises(QCompilerError, match=r"input 'x': expected torch.uint8 \[N, 2\], got torch.float32"):
        program.run_integer(torch.ones(1, 2), y)


def test_text_and_verify_are_those_of_the_modules() -> None:
    program = integer_program()
    program.verify()
    assert program.text().startswith("stage integer\ninput x: f32[B,2] as u8 scale=0.5 zp=1\n")
    assert program.replace(stage=Stage.QDQ).stage is Stage.QDQ


def test_integers_that_the_user_gives_keep_their_range() -> None:
    builder = GraphBuilder()
    ids = builder.input("ids", (None, 2), torch.int64)
    spec = ValueSpec("ids", torch.int64, (None, 2), range=IntegerRange(0, 9))
    program = Program(builder.finish(builder.call(aten.permute.default, ids, [1, 0])), Stage.FLOAT, (spec,), (spec,))
    assert program.run(torch.tensor([[0, 9]]))[0].tolist() == [[0], [9]]
    with pytest.raises(QCompilerError, match=r"input 'ids' holds 10, but its integers must lie in \[0, 9\]"):
        program.run(torch.tensor([[0, 10]]))
    with pytest.raises(QCompilerError, match="input 'ids' holds -1"):
        program.run(torch.tensor([[-1, 10]]))
