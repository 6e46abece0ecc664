"""Sensitivity tables and the programs that they were measured on. The table itself is ``qcompiler.sensitivity.SensitivityTable``."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx.node import map_arg

from qcompiler.errors import CalibrationError, UnknownNameError
from qcompiler.ir import edit
from qcompiler.ir.fingerprint import Fingerprint
from qcompiler.ir.program import Program
from qcompiler.passes.allocate.items import Items
from qcompiler.sensitivity import Item, SensitivityTable


def fingerprint(program: Program) -> str:
    """SHA-256 over ops, arguments, names and constants: equal for equal float programs, wherever and in whatever file they were made.

    Bits that were asked for (``Precision``) do not count, so that a table holds before and after an allocation.
    """
    result = Fingerprint()
    for node in program.graph.nodes:
        arguments = map_arg((node.args, node.kwargs), lambda operand: _Name(operand.name))
        result.add_text(f"{node.op} {node.name} {node.target if node.op == 'call_function' else ''} {arguments!r}")
        constant = edit.constant_value(node)
        if constant is not None:
            result.add_tensor(constant)
    return result.hexdigest()


def check(table: SensitivityTable, program: Program, items: Items, needed: Iterable[Item] = ()) -> None:
    """Guard before a table is used for a program: same model, known items, and all of those that are ``needed``.

    Raises:
        CalibrationError: the table was measured on another program, or lacks a needed item.
        UnknownNameError: it has an item that the program does not have; carries the nearest known name.
    """
    if table.model and table.model != fingerprint(program):
        raise CalibrationError(
            f"the sensitivity table of metric '{table.metric}' was measured on another program (other weights, or other passes before): "
            "measure again, or empty its field 'model' if its names are meant for this one"
        )
    for item in table.items:
        if item not in items.sizes:
            raise UnknownNameError(item.kind, item.name, {known.name for known in items.sizes if known.kind == item.kind}).within(
                f"sensitivity table of metric '{table.metric}'"
            )
    measured = set(table.items)
    for item in needed:
        if item not in measured:
            raise CalibrationError(f"the sensitivity table of metric '{table.metric}' has no row for {item}: measure it, or add one")


class _Name(str):
    """Prints without quotes, as the name of a value and not as text."""

    def __repr__(self) -> str:
        return f"%{self}"
