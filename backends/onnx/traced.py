"""Row ops, written by running their reference kernel: every elementary op that torch meets in it becomes an ONNX node.

``qc.softmax``, ``qc.normalize``, ``qc.nonlinear`` and ``qc.divide`` have more than a dozen forms, each with a formula in
``qcompiler.arithmetic``. The kernel runs on fake tensors (shapes and dtypes without data) and a dispatch mode writes what it does, so
the formula stands in one place. ``_ELEMENTARY`` is what those kernels are made of: elementwise integer arithmetic and reductions of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from qcompiler import arithmetic
from qcompiler.backends.onnx import masks, shifts
from qcompiler.backends.onnx.graph import BOOL, INT32, INT64, GraphWriter, dtype_of
from qcompiler.backends.onnx.pooling import reduce
from qcompiler.backends.onnx.writers import Call, Operand, Registry, bind_arguments
from qcompiler.errors import UnsupportedOpError

WRITERS = Registry()

_ELEMENTARY = Registry()

# Their results stand for the same values: a constant broadcasts, and double is only what a bit length is read from.
_ALIKE = ("aten.expand.default", "aten.clone.default", "aten.detach.default", "aten.view.default", "aten.alias.default")


def _kernel(name: str, kernel: Callable[..., Tensor]) -> None:
    @WRITERS.writes(name)
    def write(w: GraphWriter, call: Call) -> ir.Value:
        return trace(w, call, kernel)


_kernel("qc.softmax.default", arithmetic.softmax)
_kernel("qc.normalize.default", arithmetic.normalize)
_kernel("qc.nonlinear.default", arithmetic.nonlinear)
_kernel("qc.divide.default", arithmetic.divide)


def trace(w: GraphWriter, call: Call, kernel: Callable[..., Tensor]) -> ir.Value:
    """Run ``kernel`` on the fake tensors of the call and give the value that stands for its result."""
    mode = _WriterMode(w)
    arguments = {name: mode.enter_operand(value) if isinstance(value, Operand) else value for name, value in call.arguments.items()}
    with torch.no_grad(), _fake_mode(call.result), enable_python_dispatcher(), mode:
        result = kernel(**arguments)
    return w.cast(mode.value_of(result), call.dtype)


class _WriterMode(TorchDispatchMode):
    """Writes each op after it ran on fake tensors."""

    def __init__(self, w: GraphWriter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self._writer = w
        self._values: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def enter_operand(self, operand: Operand) -> Tensor:
        """A fake tensor of its own for the operand, so that one value given twice stays two arguments."""
        fake = operand.meta.detach()
        self._values[fake] = operand.value
        return fake

    def value_of(self, fake: Tensor) -> ir.Value:
        found: ir.Value = self._values[fake]
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self._values[result] = self._write(func, args, kwargs or {}, result)
        elif isinstance(result, tuple | list):  # frexp: mantissa and exponent
            self._values[result[1]] = self._write(func, args, kwargs or {}, result[1])
        return result  # else a question about a tensor: its device, its size

    def _write(self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Tensor) -> ir.Value:
        name = str(func)
        arguments = {key: self._operand(value) for key, value in bind_arguments(func, args, kwargs).items()}
        writer = _ELEMENTARY.get(_functional(name))
        if writer is None:
            raise UnsupportedOpError(f"the reference kernel computes {name}, which has no ONNX form yet: export it in another form")
        written = writer(self._writer, Call(name, arguments, result))
        assert isinstance(written, ir.Value)  # no elementary op is a quantized weight
        return written

    def _operand(self, argument: Any) -> Any:
        if isinstance(argument, list | tuple):
            return [self._operand(item) for item in argument]
        if not isinstance(argument, Tensor):
            return argument
        value = self._values.get(argument)
        if value is None:
            raise UnsupportedOpError("the reference kernel reads a tensor that is not computed from its arguments")
        return Operand(argument, lambda: value)


def _functional(name: str) -> str:
    """``aten.add_.Tensor`` writes as ``aten.add.Tensor``."""
    packet = name.split(".")[1]
    plain = packet.removesuffix("_") if not packet.endswith("__") else packet
    return name.replace(f".{packet}.", f".{plain}.", 1)


def _fake_mode(result: Tensor) -> FakeTensorMode:
    mode = getattr(result, "fake_mode", None)
    assert isinstance(mode, FakeTensorMode)  # every node of a program carries a fake value
    return mode


def _number(w: GraphWriter, argument: Any, dtype: ir.DataType) -> ir.Value:
    """An operand or a number in ``dtype``."""
    return w.cast(argument.value, dtype) if isinstance(argument, Operand) else w.constant(argument, dtype)


@_ELEMENTARY.writes(*_ALIKE)
def _same(w: GraphWriter, call: Call) -> ir.Value:
    return call.value("self")


@_ELEMENTARY.writes("aten._to_copy.default")
def _to_copy(w: GraphWriter, call: Call) -> ir.Value:
    return call.value("self") if call.result.dtype == torch.float64 else w.cast(call.value("self"), call.dtype)


@_ELEMENTARY.writes("aten.frexp.Tensor")
def _frexp(w: GraphWriter, call: Call) -> ir.Value:
    """The exponent, of integers: their bit length."""
    return shifts.bit_length(w, call.value("self"))


@_ELEMENTARY.writes("aten.ones_like.default", "aten.full_like.default", "aten.scalar_tensor.default", "aten.zeros_like.default")
def _constant(w: GraphWriter, call: Call) -> ir.Value:
    """As a scalar: what it meets next has the shape."""
    names = {"aten.ones_like.default": 1, "aten.zeros_like.default": 0}
    number = names[call.target] if call.target in names else call["fill_value" if "fill_value" in call.arguments else "s"]
    return w.constant(int(number), call.dtype)


def _binary(op_type: str, *names: str) -> None:
    @_ELEMENTARY.writes(*(f"aten.{name}" for name in names))
    def write(w: GraphWriter, call: Call) -> ir.Value:
        return w.op(op_type, *(_number(w, call[name], call.dtype) for name in ("self", "other")))


_binary("Add", "add.Tensor")
_binary("Sub", "sub.Tensor")
_binary("Mul", "mul.Tensor")
_binary("Mod", "remainder.Tensor", "remainder.Scalar")


@_ELEMENTARY.writes("aten.minimum.default", "aten.maximum.default")
def _minimum_or_maximum(w: GraphWriter, call: Call) -> ir.Value:
    operands = (_number(w, call[name], call.dtype) for name in ("self", "other"))
    return shifts.extreme(w, "Min" if "minimum" in call.target else "Max", *operands)


@_ELEMENTARY.writes("aten.rsub.Scalar")
def _reverse_subtract(w: GraphWriter, call: Call) -> ir.Value:
    return w.op("Sub", *(_number(w, call[name], call.dtype) for name in ("other", "self")))


@_ELEMENTARY.writes("aten.pow.Tensor_Scalar")
def _square(w: GraphWriter, call: Call) -> ir.Value:
    if call["exponent"] != 2:
        raise UnsupportedOpError(f"the reference kernel takes the power {call['exponent']}, which has no integer form in ONNX")
    return w.op("Mul", call.value("self"), call.value("self"))


def _unary(op_type: str, name: str) -> None:
    @_ELEMENTARY.writes(name)
    def write(w: GraphWriter, call: Call) -> ir.Value:
        return w.op(op_type, call.value("self"))


_unary("Abs", "aten.abs.default")
_unary("Neg", "aten.neg.default")
_unary("Sign", "aten.sign.default")


@_ELEMENTARY.writes(
    "aten.bitwise_right_shift.Tensor", "aten.bitwise_right_shift.Tensor_Scalar", "aten.__rshift__.Scalar", "aten.__rshift__.Tensor"
)
def _right(w: GraphWriter, call: Call) -> ir.Value:
    return shifts.shift_right(w, _number(w, call["self"], call.dtype), _amount(call["other"]))


@_ELEMENTARY.writes(
    "aten.bitwise_left_shift.Tensor", "aten.bitwise_left_shift.Tensor_Scalar", "aten.__lshift__.Scalar", "aten.__lshift__.Tensor"
)
def _left(w: GraphWriter, call: Call) -> ir.Value:
    return shifts.shift_left(w, _number(w, call["self"], call.dtype), _amount(call["other"]))


def _amount(argument: Any) -> shifts.Amount:
    return argument.value if isinstance(argument, Operand) else int(argument)


@_ELEMENTARY.writes("aten.clamp.default")
def _clamp(w: GraphWriter, call: Call) -> ir.Value:
    low, high = (None if call[end] is None else w.constant(int(call[end]), call.dtype) for end in ("min", "max"))
    return shifts.clip(w, call.value("self"), low, high)


@_ELEMENTARY.writes("aten.floor_divide.default", "aten.div.Tensor_mode", "aten.div.Scalar_mode")
def _floor_divide(w: GraphWriter, call: Call) -> ir.Value:
    mode = call.arguments.get("rounding_mode", "floor")  # floor_divide has none
    if mode != "floor":
        raise UnsupportedOpError(f"the reference kernel divides with rounding mode {mode}, which has no exact form in ONNX here")
    return shifts.floor_divide(w, *(_number(w, call[name], call.dtype) for name in ("self", "other")))


@_ELEMENTARY.writes("aten.amax.default")
def _largest(w: GraphWriter, call: Call) -> ir.Value:
    return reduce(w, "ReduceMax", call.value("self"), list(call["dim"]), bool(call["keepdim"]))


@_ELEMENTARY.writes("aten.sum.dim_IntList")
def _sum(w: GraphWriter, call: Call) -> ir.Value:
    return reduce(w, "ReduceSum", w.cast(call.value("self"), call.dtype), list(call["dim"]), bool(call["keepdim"]))


@_ELEMENTARY.writes("aten.where.self")
def _where(w: GraphWriter, call: Call) -> ir.Value:
    condition, *choices = (call.value("condition"), *(w.cast(call.value(name), call.dtype) for name in ("self", "other")))
    return w.op("Where", condition, *choices, dtype=call.dtype)


@_ELEMENTARY.writes(*(f"aten.{name}.Scalar" for name in ("eq", "ne", "gt", "ge", "lt", "le")))
def _compare(w: GraphWriter, call: Call) -> ir.Value:
    x = call.value("self")
    assert x.dtype in (INT32, INT64)
    return masks.compared(w, call.target.split(".")[1], x, w.constant(call["other"], x.dtype))


@_ELEMENTARY.writes("aten.eq.Tensor")
def _equal(w: GraphWriter, call: Call) -> ir.Value:
    return masks.compared(w, "eq", call.value("self"), w.cast(call.value("other"), dtype_of(call.operand("self").meta)))


@_ELEMENTARY.writes("aten.bitwise_and.Tensor")
def _both(w: GraphWriter, call: Call) -> ir.Value:
    if call.dtype != BOOL:
        raise UnsupportedOpError("the reference kernel combines bits of two numbers, which has no ONNX form before opset 18")
    return w.op("And", call.value("self"), call.value("other"))


@_ELEMENTARY.writes("aten.__and__.Scalar", "aten.bitwise_and.Scalar")
def _low_bits(w: GraphWriter, call: Call) -> ir.Value:
    """``x & (2^k - 1)``: the remainder of x modulo 2^k, which Mod rounds down for as Python does."""
    mask = int(call["other"])
    if mask & (mask + 1):
        raise UnsupportedOpError(f"the reference kernel masks by {mask}, which is none of 2^k - 1")
    return w.op("Mod", call.value("self"), w.constant(mask + 1, call.dtype))


@_ELEMENTARY.writes("aten.index.Tensor")
def _index(w: GraphWriter, call: Call) -> ir.Value:
    (index,) = call["indices"]
    return w.op("Gather", call.value("self"), index.value, axis=0)
