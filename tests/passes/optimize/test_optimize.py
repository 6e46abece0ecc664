from __future__ import annotations

import torch

from qcompiler.passes.optimize.optimize import Optimize

BYTE = (0, 255)


def test_one_pass_uncovers_work_for_another(builder, run_pass, all_bytes, ops) -> None:
    """Clamp into table, table into table, and only then two requantizations stand next to each other in one table."""
    reverse = torch.arange(255, -1, -1).to(torch.uint8)
    y = builder.clamp(builder.lookup(builder.start(), reverse), 10, 200)
    y = builder.clamp(builder.lookup(builder.requantize(y, 0.5, (0, 20), BYTE), reverse), 30, 240)
    program = builder.program(y)
    result = run_pass(Optimize(), program)
    assert ops(result.program) == ["lookup"]
    assert {note.partition(":")[0] for note in result.notes} == {"fuse-clamp", "fuse-lookup"}
    x = all_bytes(torch.uint8)
    assert torch.equal(program.run_integer(x)[0], result.program.run_integer(x)[0])


def test_options_reach_merge_requantize(builder, run_pass) -> None:
    y = builder.requantize(builder.widen(builder.start()), 0.01, (0, 20), (0, 255))
    program = builder.program(builder.requantize(y, 0.5, (20, 100), BYTE))
    forms = [run_pass(Optimize(requantize=form), program).program.text() for form in ("high", "narrow")]
    assert "high" in forms[0] and "narrow" not in forms[0]
    assert "narrow" in forms[1] and "high" not in forms[1].replace("high=", "")
