"""GELU, SiLU, sigmoid, tanh, exp and erf on vectors of int32: ``arithmetic.nonlinear`` and the papers' functions one to one."""

from __future__ import annotations

from tvm.tirx.script import builder as T

from qcompiler.arithmetic import i_bert, i_vit
from qcompiler.arithmetic.exponential import ONE
from qcompiler.arithmetic.nonlinear import EXPONENTIAL_FRACTION_BITS, NORMAL_FRACTION_BITS, NORMAL_LOGIT
from qcompiler.backends.tvm.kernels import Nonlinear
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import exponential as x
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.emission import Expr
from qcompiler.backends.tvm.templates.row import Row

_PRODUCTS = ("gelu", "silu")
_NORMAL = ("gelu", "erf")
_SMALLEST = -(2**31)


class NonlinearRows:
    """Element by element, but for ``shift-gelu``, which first wants the maximum of the row."""

    def __init__(self, operation: Nonlinear) -> None:
        self._operation = operation

    def emit(self, row: Row) -> None:
        """One row."""
        if self._operation.form == "shift-gelu":
            self._shift_gelu(row)
            return
        row.over(lambda at, rest: row.store(at, rest, self._value(self._centred(row, at))))

    def _centred(self, row: Row, at: Expr) -> Expr:
        loaded = row.load(at)
        return T.Bind(loaded - v.like(loaded, self._operation.zero_point)) if self._operation.zero_point else loaded

    def _value(self, centred: Expr) -> Expr:
        operation, zero = self._operation, v.like(centred, 0)
        if operation.form == "i-gelu":
            if operation.function == "erf":
                return T.Bind(zero - _i_erf(centred, operation.constants))
            *erf, one = operation.constants
            return T.Bind(T.Bind(zero - centred) * T.Bind(_i_erf(centred, tuple(erf)) + v.like(centred, one)))
        if operation.form == "i-exp":
            return _i_exp(centred, operation.constants)
        if operation.function == "exp":
            *base2, bound = operation.constants
            below = v.maximum(v.like(centred, bound) - centred, zero)
            return x.power(x.fixed_point(below, base2), operation.form, EXPONENTIAL_FRACTION_BITS)
        return self._logistic(centred)

    def _logistic(self, centred: Expr) -> Expr:
        operation, one = self._operation, v.like(centred, ONE)
        z = x.fixed_point(T.Bind(T.abs(centred)), operation.constants)
        exponential = x.power(_normal_logit(z) if operation.function in _NORMAL else z, operation.form)
        positive = x.newton_reciprocal(x.shift_right(T.Bind(exponential + one), 1))
        sigmoid = T.Bind(T.Select(centred >= v.like(centred, 0), positive, T.Bind(one - positive)))
        if operation.function == "sigmoid":
            return sigmoid
        return T.Bind(centred * sigmoid) if operation.function in _PRODUCTS else T.Bind(sigmoid + sigmoid - one)

    def _shift_gelu(self, row: Row) -> None:
        step, n, bits = self._operation.constants
        largest = v.Register(e.constant(_SMALLEST, "int32", row.lanes))
        row.over(lambda at, rest: largest.set(v.maximum(largest.value, v.only_first(self._centred(row, at), rest, _SMALLEST))))
        top = v.reduce("smax", largest.value)
        own = v.splat(_exponential_of_maximum(top, step, n), row.lanes)
        tops = v.splat(top, row.lanes)

        def emit(at: Expr, rest: Expr | None) -> None:
            centred = self._centred(row, at)
            # Past the end of a row there may be anything: a divisor of 0 must not come of it.
            exponential = x.shift_exponential(v.maximum(T.Bind(tops - centred), v.like(centred, 0)), step, n)
            total = v.minimum(T.Bind(exponential + own), v.like(own, i_vit.LARGEST_FACTOR))
            factor = T.Bind(T.truncdiv(v.like(total, i_vit.LARGEST_FACTOR), v.maximum(total, v.like(total, 1))))
            sigmoid = e.reinterpret(x.shift_right(T.Bind(exponential * factor), 32 - bits), "int32")
            row.store(at, rest, T.Bind(centred * sigmoid))

        row.over(emit)


def _exponential_of_maximum(top: Expr, step: int, n: int) -> Expr:
    """``arithmetic.i_vit.shift_exponential`` of p = -top, which may be positive, as one uint32 of at most 2^31 - 1."""
    p = T.Bind(T.int64(0) - T.cast(top, "int64"))
    scaled = T.Bind(T.max(p + T.shift_right(p, T.int64(1)) - T.shift_right(p, T.int64(4)), T.int64(n * step)))
    # floor(p / step) = floor(-p / -step), and the rest lies in (step, 0].
    quotient = T.Bind(T.floordiv(T.Bind(T.int64(0) - scaled), T.int64(-step)))
    mantissa = T.Bind(scaled - quotient * T.int64(step) - T.int64(2 * step))
    amount = T.Bind(T.max(T.min(T.int64(n) - quotient, T.int64(40)), T.int64(0)))
    value = T.Bind(T.shift_right(T.shift_left(mantissa, amount), T.int64(1)))
    return T.Bind(T.cast(T.min(value, T.int64(i_vit.LARGEST_FACTOR)), "uint32"))


def _normal_logit(t: Expr) -> Expr:
    first, third = NORMAL_LOGIT
    square = x.shift_right(T.Bind(t * t), NORMAL_FRACTION_BITS)
    slope = T.Bind(v.like(t, first) + x.shift_right(T.Bind(square * v.like(t, third)), NORMAL_FRACTION_BITS + 1))
    return x.shift_right(T.Bind(t * slope), 11)


def _i_erf(centred: Expr, constants: tuple[int, ...]) -> Expr:
    b, c, n = constants
    root = T.Bind(v.minimum(T.Bind(T.abs(centred)), v.like(centred, -b)) + v.like(centred, b))
    value, zero = T.Bind(root * root + v.like(centred, c)), v.like(centred, 0)
    positive = T.Bind(T.Select(centred > zero, value, zero))
    return x.shift_right(T.Bind(T.Select(centred < zero, T.Bind(zero - value), positive)), n)


def _i_exp(centred: Expr, constants: tuple[int, ...]) -> Expr:
    step, b, c, n, bound = constants
    below = v.maximum(v.like(centred, bound) - centred, v.like(centred, 0))
    value, quotient = x.polynomial(below, (step, b, c), i_bert.EXPONENTIAL_BITS)
    return T.Bind(T.shift_right(x.shift_left(value, n), quotient))
