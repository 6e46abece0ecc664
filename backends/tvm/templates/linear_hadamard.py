"""Linear layers whose rows are transformed (``hadamard``) before they are stored.

The tiles of a layer hold no whole rows: its kernel goes panel by panel, over all rows each time. Here a task is a block of rows. The
layer's tiles of a block go to a buffer on the stack, panel by panel too, so that a panel of weights in the first-level cache meets all rows
of the block; then the block's rows are transformed, rounded and stored. What the layer gives never leaves the second-level cache.

Blocks are as long as each other (``linear_hadamard_layout``). Where the last one would pass the end of the rows it starts earlier, and its
rows that belong to the block before are computed again, not stored again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tvm import tirx
from tvm.tirx.script import builder as T

from qcompiler.backends.tvm.kernels import ConvolutionKernel, LinearHadamardKernel, ResidualAdd
from qcompiler.backends.tvm.templates import emission as e
from qcompiler.backends.tvm.templates import hadamard, rescaling, uses_amx
from qcompiler.backends.tvm.templates import vectors as v
from qcompiler.backends.tvm.templates.amx import AmxKernel
from qcompiler.backends.tvm.templates.emission import Buffer, Expr
from qcompiler.backends.tvm.templates.layout import Parameter, kernel_parameters
from qcompiler.backends.tvm.templates.matrix import MatrixKernel
from qcompiler.backends.tvm.templates.matrix_layout import matrix_layout

if TYPE_CHECKING:
    from qcompiler.backends.tvm.target import KernelTarget

_TRANSFORM = "transform_"  # names of parameters that a layer has as well


def emit(kernel: LinearHadamardKernel, target: KernelTarget) -> tirx.PrimFunc:
    """The kernel's function."""
    sizes, layer, length = v.Sizes(kernel), kernel.part, kernel.transform.length
    parameters = [*_parameters(kernel, target), *sizes.parameters]

    def body(buffers: list[Buffer]) -> None:
        sizes.bind(buffers)
        named = {parameter.name: buffer for parameter, buffer in zip(parameters, buffers, strict=True)}
        rows = sizes(kernel.layer.rows if kernel.layer.rows is not None else kernel.layer.output.width)
        with e.parallel(e.ceiling(rows, kernel.block_rows)) as number:
            wanted = T.Bind(number * kernel.block_rows)
            first = T.Bind(T.min(wanted, kernel.layer.output.width - kernel.block_rows))
            end = T.Bind(T.min(wanted + kernel.block_rows, rows))
            between = e.scratch(layer.output.elements, layer.output.dtype.removeprefix("u"))
            _tiles(layer, target, {**_rows_from(layer, named, first), "output": between}).emit_first(T.Bind(end - first))
            e.keep_loads_here()
            block = hadamard.Block(e.resolved(kernel.transform, named), target.vector_bytes, _of_transform(named, between))
            with T.serial(0, end - wanted) as row, T.serial(0, length // kernel.transform.block) as part:
                column = T.Bind(part * kernel.transform.block)
                block.emit(T.Bind((wanted - first + row) * length + column), T.Bind((wanted + row) * length + column))

    return e.function(parameters, body)


def _parameters(kernel: LinearHadamardKernel, target: KernelTarget) -> list[Parameter]:
    layout = matrix_layout(kernel.part, target.name)
    of_part = kernel_parameters(kernel.part, layout.weights, layout.channels, layout.factors)
    whole = {"input": kernel.layer.input.elements}
    if isinstance(kernel.layer.epilogue, ResidualAdd):
        whole["operand"] = kernel.layer.epilogue.operand.elements
    return [
        *(Parameter(each.name, each.dtype, whole.get(each.name, each.size)) for each in of_part if each.name not in ("output", "numbers")),
        *(rescaling.rounding_parameters(_TRANSFORM) if kernel.transform.rounding is not None else []),
        v.parameter("output", kernel.transform.output, (*kernel.transform.shape, kernel.transform.length)),
    ]


def _tiles(layer: ConvolutionKernel, target: KernelTarget, buffers: Mapping[str, Buffer]) -> MatrixKernel | AmxKernel:
    template = AmxKernel if uses_amx(layer, target.name) else MatrixKernel
    return template(layer, matrix_layout(layer, target.name), buffers)


def _rows_from(layer: ConvolutionKernel, named: Mapping[str, Buffer], first: Expr) -> dict[str, Buffer]:
    """The buffers with those of input and residual operand starting at row ``first``."""
    maps = {"input": layer.input} | ({"operand": layer.epilogue.operand} if isinstance(layer.epilogue, ResidualAdd) else {})
    return {**named, **{name: e.part(named[name], first * rows.channels, rows.elements) for name, rows in maps.items()}}


def _of_transform(named: Mapping[str, Buffer], between: Buffer) -> dict[str, Buffer]:
    own = {name.removeprefix(_TRANSFORM): buffer for name, buffer in named.items() if name.startswith(_TRANSFORM)}
    return {**own, "operand": between, "output": named["output"]}
