"""Sizes that are known when a program is called."""

from __future__ import annotations

import pytest
import torch

from qcompiler.errors import QCompilerError, VerificationError
from qcompiler.ir.program import ValueSpec
from qcompiler.ir.sizes import bind, concrete_shape, dynamic_sizes, fits, shape_text
from qcompiler.ir.types import DynamicSize

LENGTH = DynamicSize("sequence", 1, 128)
LONGER = DynamicSize("sequence", 1, 128, offset=1)


def spec(name: str, *shape: int | DynamicSize | None) -> ValueSpec:
    return ValueSpec(name, torch.int32, shape)


def test_concrete_shapes_are_of_the_maximum_where_nothing_is_said() -> None:
    assert concrete_shape((None, LONGER, 7)) == (1, 129, 7)
    assert concrete_shape((None, LONGER, 7), batch=4, values={"sequence": 9}) == (4, 10, 7)


def test_a_shape_fits_within_the_bounds_of_its_symbols() -> None:
    assert fits((None, LONGER), (3, 2))
    assert fits((None, LONGER), (3, 129))
    assert not fits((None, LONGER), (3, 1))
    assert not fits((None, LONGER), (3, 130))
    assert not fits((None, LENGTH), (3,))


def test_text_names_symbol_and_bounds() -> None:
    assert shape_text((None, LONGER, 7)) == "N, sequence+1 (2 to 129), 7"


def test_symbols_of_a_call() -> None:
    specs = (spec("ids", None, LENGTH), spec("mask", None, LONGER))
    assert dynamic_sizes(specs) == {"sequence": LENGTH}
    assert bind(specs, ((2, 5), (2, 6))) == {"sequence": 5}
    with pytest.raises(QCompilerError, match="inputs 'ids' and 'mask' must agree in 'sequence', got 5 and 6"):
        bind(specs, ((2, 5), (2, 7)))


@pytest.mark.parametrize(("name", "minimum", "maximum", "offset"), [("a b", 1, 4, 0), ("s", 0, 4, 0), ("s", 5, 4, 0), ("s", 1, 4, -2)])
def test_a_dynamic_size_is_bounded(name: str, minimum: int, maximum: int, offset: int) -> None:
    with pytest.raises(VerificationError, match="dynamic size"):
        DynamicSize(name, minimum, maximum, offset)
