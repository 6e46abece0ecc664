"""Float ops of the stages FLOAT and QDQ, in the forms that ``canonicalize`` leaves them in."""

from __future__ import annotations

import math
from collections.abc import Sequence

import onnx_ir as ir
import torch

from qcompiler.arithmetic.pooling import adaptive_windows
from qcompiler.backends.onnx.graph import FLOAT, INT32, INT64, GraphWriter
from qcompiler.backends.onnx.pooling import reduce, sliced
from qcompiler.backends.onnx.writers import Call, Operand, Registry
from qcompiler.errors import UnsupportedOpError

WRITERS = Registry()
_INDEX_DTYPES = (INT32, INT64)


@WRITERS.writes("aten.conv2d.default")
def conv2d(w: GraphWriter, call: Call) -> ir.Value:
    """Conv; the bias stays float, which every runtime takes beside quantized operands."""
    height, width = call["padding"]
    return w.op(
        "Conv",
        *_present(call, "input", "weight", "bias"),
        strides=list(call["stride"]),
        pads=[height, width, height, width],
        dilations=list(call["dilation"]),
        group=int(call["groups"]),
    )


@WRITERS.writes("aten.conv_transpose2d.input")
def conv_transpose2d(w: GraphWriter, call: Call) -> ir.Value:
    """ConvTranspose, whose weight has torch's layout."""
    height, width = call["padding"]
    return w.op(
        "ConvTranspose",
        *_present(call, "input", "weight", "bias"),
        strides=list(call["stride"]),
        pads=[height, width, height, width],
        output_padding=list(call["output_padding"]),
        dilations=list(call["dilation"]),
        group=int(call["groups"]),
    )


@WRITERS.writes("aten.linear.default")
def linear(w: GraphWriter, call: Call) -> ir.Value:
    """Gemm of matrices; else MatMul with the transposed weight, which stays a constant where it is one."""
    x, weight = call.operand("input"), call.operand("weight")
    if x.rank == 2 and weight.rank == 2:
        return w.op("Gemm", *_present(call, "input", "weight", "bias"), transB=1)
    product = w.op("MatMul", x.value, _transposed(w, weight))
    return w.op("Add", product, call.value("bias")) if call["bias"] is not None else product


def _transposed(w: GraphWriter, weight: Operand) -> ir.Value:
    if weight.transposed is not None:
        return weight.transposed()
    if weight.constant is not None:
        return w.constant(weight.constant.t(), FLOAT, "weight_transposed")
    return w.op("Transpose", weight.value, perm=[1, 0])


@WRITERS.writes("aten.matmul.default")
def matmul(w: GraphWriter, call: Call) -> ir.Value:
    """Broadcasts leading dimensions as torch does."""
    return w.op("MatMul", call.value("self"), call.value("other"))


@WRITERS.writes("aten.max_pool2d.default")
def max_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """A window that ``ceil_mode`` lets begin inside reaches into more padding at the end."""
    stride, dilation = list(call["stride"]) or list(call["kernel_size"]), list(call["dilation"])
    pads = _pads(call, stride, dilation)
    return w.op("MaxPool", call.value("self"), kernel_shape=list(call["kernel_size"]), strides=stride, pads=pads, dilations=dilation)


@WRITERS.writes("aten.avg_pool2d.default")
def avg_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """AveragePool; another divisor is a factor."""
    kernel, included = list(call["kernel_size"]), bool(call["count_include_pad"])
    stride, divisor = list(call["stride"]) or kernel, call["divisor_override"]
    padded = any(call["padding"])
    pads = _pads(call, stride, [1, 1])
    if call["ceil_mode"] and included and padded:
        raise UnsupportedOpError("ceil_mode with a padding that counts means other windows in ONNX: pad explicitly before the pooling")
    average = w.op(
        "AveragePool", call.value("self"), kernel_shape=kernel, strides=stride, pads=pads, count_include_pad=int(included and padded)
    )
    return average if divisor is None else w.op("Mul", average, w.constant(math.prod(kernel) / divisor, FLOAT))


def _pads(call: Call, stride: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Pads with which rounding down gives as many windows as the result has."""
    padding, kernel, x = list(call["padding"]), list(call["kernel_size"]), call.operand("self").meta
    if not call["ceil_mode"]:
        return [*padding, *padding]
    ends = []
    for i in (0, 1):
        reach = (call.result.shape[i - 2] - 1) * stride[i] + dilation[i] * (kernel[i] - 1) + 1
        ends.append(max(padding[i], int(reach - x.shape[i - 2] - padding[i])))
    return [*padding, *ends]


@WRITERS.writes("aten.adaptive_avg_pool2d.default")
def adaptive_avg_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """GlobalAveragePool, AveragePool where the windows are equal, else one mean a window."""
    return _adaptive(w, call, "GlobalAveragePool", "AveragePool", "ReduceMean")


@WRITERS.writes("aten.adaptive_max_pool2d.default")
def adaptive_max_pool2d(w: GraphWriter, call: Call) -> ir.Value:
    """As the average."""
    return _adaptive(w, call, "GlobalMaxPool", "MaxPool", "ReduceMax")


def _adaptive(w: GraphWriter, call: Call, whole: str, equal: str, reduction: str) -> ir.Value:
    x, counts = call.operand("self"), [int(count) for count in call["output_size"]]
    if counts == [1, 1]:
        return w.op(whole, x.value)
    sizes = list(x.meta.shape[-2:])
    if not all(isinstance(size, int) for size in sizes):
        raise UnsupportedOpError("adaptive windows over a dynamic size have no ONNX form: capture the model with that size fixed")
    if all(size % count == 0 for size, count in zip(sizes, counts, strict=True)):
        kernel = [int(size) // count for size, count in zip(sizes, counts, strict=True)]
        return w.op(equal, x.value, kernel_shape=kernel, strides=kernel)
    result = x.value
    for dim, size, count in zip((-2, -1), sizes, counts, strict=True):
        windows = adaptive_windows(int(size), count)
        parts = [reduce(w, reduction, sliced(w, result, dim, start, end), [dim], keepdims=True) for start, end in windows]
        result = w.op("Concat", *parts, axis=dim)
    return result


def _reduction(op_type: str, *names: str) -> None:
    @WRITERS.writes(*names)
    def write(w: GraphWriter, call: Call) -> ir.Value:
        dims = call["dim"] or list(range(call.operand("self").rank))
        return reduce(w, op_type, w.cast(call.value("self"), call.dtype), list(dims), bool(call["keepdim"]))


_reduction("ReduceMean", "aten.mean.dim")
_reduction("ReduceSum", "aten.sum.dim_IntList")
_reduction("ReduceMax", "aten.amax.default")


def _unary(op_type: str, name: str) -> None:
    @WRITERS.writes(name)
    def write(w: GraphWriter, call: Call) -> ir.Value:
        return w.op(op_type, call.value("self"))


for _name in ("relu", "sigmoid", "tanh", "exp", "log", "erf", "abs", "neg", "sqrt", "reciprocal"):
    _unary(_name.capitalize(), f"aten.{_name}.default")


@WRITERS.writes("aten.clamp.default")
def clamp(w: GraphWriter, call: Call) -> ir.Value:
    """Either bound may be absent."""
    x = w.cast(call.value("self"), call.dtype)
    return w.op("Clip", x, *(None if call[end] is None else w.constant(call[end], call.dtype) for end in ("min", "max")))


@WRITERS.writes("aten.leaky_relu.default")
def leaky_relu(w: GraphWriter, call: Call) -> ir.Value:
    """LeakyRelu."""
    return w.op("LeakyRelu", call.value("self"), alpha=float(call["negative_slope"]))


@WRITERS.writes("aten.elu.default")
def elu(w: GraphWriter, call: Call) -> ir.Value:
    """``scale max(x, 0) + scale alpha (exp(input_scale min(x, 0)) - 1)``."""
    scale, input_scale = float(call["scale"]), float(call["input_scale"])
    x = call.value("self")
    if input_scale == 1:
        plain = w.op("Elu", x, alpha=float(call["alpha"]))
        return plain if scale == 1 else w.op("Mul", plain, w.constant(scale, FLOAT))
    zero = w.constant(0.0, FLOAT)
    negative = w.op("Elu", w.op("Mul", w.op("Min", x, zero), w.constant(input_scale, FLOAT)), alpha=float(call["alpha"]))
    return w.op("Mul", w.op("Add", w.op("Max", x, zero), negative), w.constant(scale, FLOAT))


@WRITERS.writes("aten.gelu.default")
def gelu(w: GraphWriter, call: Call) -> ir.Value:
    """One op from opset 20 on; before by its definition."""
    x, form = call.value("self"), str(call["approximate"])
    if w.opset >= 20:
        return w.op("Gelu", x, approximate=form)
    if form == "tanh":
        cube = w.op("Mul", w.op("Mul", x, x), x)
        inner = w.op("Add", x, w.op("Mul", cube, w.constant(0.044715, FLOAT)))
        gate = w.op("Tanh", w.op("Mul", inner, w.constant(math.sqrt(2 / math.pi), FLOAT)))
    else:
        gate = w.op("Erf", w.op("Mul", x, w.constant(math.sqrt(0.5), FLOAT)))
    half = w.op("Mul", x, w.constant(0.5, FLOAT))
    return w.op("Mul", half, w.op("Add", gate, w.constant(1.0, FLOAT)))


@WRITERS.writes("aten.silu.default")
def silu(w: GraphWriter, call: Call) -> ir.Value:
    """``x sigmoid(x)``."""
    return w.op("Mul", call.value("self"), w.op("Sigmoid", call.value("self")))


@WRITERS.writes("aten.hardsigmoid.default")
def hardsigmoid(w: GraphWriter, call: Call) -> ir.Value:
    """``clamp(x / 6 + 1 / 2, 0, 1)``."""
    return w.op("HardSigmoid", call.value("self"), alpha=1 / 6, beta=0.5)


@WRITERS.writes("aten.hardswish.default")
def hardswish(w: GraphWriter, call: Call) -> ir.Value:
    """``x hardsigmoid(x)``; one op from opset 14 on."""
    x = call.value("self")
    return w.op("HardSwish", x) if w.opset >= 14 else w.op("Mul", x, w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


@WRITERS.writes("aten.mish.default")
def mish(w: GraphWriter, call: Call) -> ir.Value:
    """``x tanh(softplus(x))``."""
    return w.op("Mul", call.value("self"), w.op("Tanh", w.op("Softplus", call.value("self"))))


@WRITERS.writes("aten.softplus.default")
def softplus(w: GraphWriter, call: Call) -> ir.Value:
    """``log(1 + exp(beta x)) / beta``; beyond torch's threshold both are x up to the rounding of float32."""
    beta, x = float(call["beta"]), call.value("self")
    if beta == 1:
        return w.op("Softplus", x)
    factor = w.constant(beta, FLOAT)
    return w.op("Div", w.op("Softplus", w.op("Mul", x, factor)), factor)


@WRITERS.writes("aten.rsqrt.default")
def rsqrt(w: GraphWriter, call: Call) -> ir.Value:
    """``1 / sqrt(x)``."""
    return w.op("Reciprocal", w.op("Sqrt", call.value("self")))


@WRITERS.writes("aten.pow.Tensor_Scalar")
def power(w: GraphWriter, call: Call) -> ir.Value:
    """A square is a product."""
    x = w.cast(call.value("self"), call.dtype)
    return w.op("Mul", x, x) if call["exponent"] == 2 else w.op("Pow", x, w.constant(float(call["exponent"]), FLOAT))


def _binary(op_type: str, *names: str) -> None:
    @WRITERS.writes(*names)
    def write(w: GraphWriter, call: Call) -> ir.Value:
        first, second = (_operand(w, call, name) for name in ("self", "other"))
        alpha = call.arguments.get("alpha", 1)
        if alpha != 1:
            second = w.op("Mul", second, w.constant(alpha, call.dtype))
        return w.op(op_type, first, second)


def _operand(w: GraphWriter, call: Call, name: str) -> ir.Value:
    given = call[name]
    return w.cast(given.value, call.dtype) if isinstance(given, Operand) else w.constant(given, call.dtype)


_binary("Add", "aten.add.Tensor")
_binary("Sub", "aten.sub.Tensor")
_binary("Mul", "aten.mul.Tensor")
_binary("Div", "aten.div.Tensor")
_binary("Max", "aten.maximum.default")
_binary("Min", "aten.minimum.default")


@WRITERS.writes("aten.prelu.default")
def prelu(w: GraphWriter, call: Call) -> ir.Value:
    """One slope, or one for each channel (dimension 1)."""
    rank, slope = call.operand("self").rank, call.operand("weight")
    if slope.meta.numel() == 1 or rank <= 2:
        return w.op("PRelu", call.value("self"), slope.value)
    return w.op("PRelu", call.value("self"), w.op("Reshape", slope.value, w.axes(-1, *[1] * (rank - 2))))


@WRITERS.writes("aten.softmax.int")
def softmax(w: GraphWriter, call: Call) -> ir.Value:
    """Along one dimension."""
    return w.op("Softmax", w.cast(call.value("self"), call.dtype), axis=call["dim"])


@WRITERS.writes("aten.layer_norm.default")
def layer_norm(w: GraphWriter, call: Call) -> ir.Value:
    """One op from opset 17 on; before by its definition."""
    x, shape = call.value("input"), [int(size) for size in call["normalized_shape"]]
    weight = w.constant(torch.ones(shape), FLOAT, "ones") if call["weight"] is None else call.value("weight")
    bias = () if call["bias"] is None else (call.value("bias"),)
    if w.opset >= 17:
        return w.op("LayerNormalization", x, weight, *bias, axis=-len(shape), epsilon=float(call["eps"]))
    axes = list(range(-len(shape), 0))
    centred = w.op("Sub", x, reduce(w, "ReduceMean", x, axes, keepdims=True))
    normalized = w.op("Mul", w.op("Div", centred, _deviation(w, centred, axes, float(call["eps"]))), weight)
    return w.op("Add", normalized, *bias) if bias else normalized


@WRITERS.writes("aten.rms_norm.default")
def rms_norm(w: GraphWriter, call: Call) -> ir.Value:
    """``x / sqrt(mean(x^2) + eps) weight``."""
    x, eps = call.value("input"), call["eps"]
    axes = list(range(-len(call["normalized_shape"]), 0))
    normalized = w.op("Div", x, _deviation(w, x, axes, torch.finfo(torch.float32).eps if eps is None else float(eps)))
    return normalized if call["weight"] is None else w.op("Mul", normalized, call.value("weight"))


def _deviation(w: GraphWriter, centred: ir.Value, axes: list[int], eps: float) -> ir.Value:
    mean = reduce(w, "ReduceMean", w.op("Mul", centred, centred), axes, keepdims=True)
    return w.op("Sqrt", w.op("Add", mean, w.constant(eps, FLOAT)))


@WRITERS.writes("qc.l2_normalize.default")
def l2_normalize(w: GraphWriter, call: Call) -> ir.Value:
    """``x / max(sqrt(sum(x^2)), eps)`` over the last dimension."""
    x = call.value("x")
    length = reduce(w, "ReduceL2", x, [-1], keepdims=True)
    return w.op("Div", x, w.op("Max", length, w.constant(float(call["eps"]), FLOAT)))


@WRITERS.writes("aten.masked_fill.Scalar")
def masked_fill(w: GraphWriter, call: Call) -> ir.Value:
    """The number where the mask is."""
    return w.op("Where", call.value("mask"), w.constant(call["value"], call.dtype), call.value("self"), dtype=call.dtype)


@WRITERS.writes("aten.where.self")
def where(w: GraphWriter, call: Call) -> ir.Value:
    """Both choices in the dtype of the result."""
    return w.op("Where", call.value("condition"), *(w.cast(call.value(name), call.dtype) for name in ("self", "other")), dtype=call.dtype)


@WRITERS.writes("aten.embedding.default")
def embedding(w: GraphWriter, call: Call) -> ir.Value:
    """Rows of the table."""
    ids = call.value("indices")
    index = ids if ids.dtype in _INDEX_DTYPES else w.cast(ids, INT64)
    return w.op("Gather", call.value("weight"), index, axis=0)


def _present(call: Call, *names: str) -> list[ir.Value]:
    return [call.value(name) for name in names if call[name] is not None]
