"""From an INTEGER program to a plan: values become strided views of one arena, nodes become calls of kernels.

The plan is that of one sample; the generated driver loops over the batch. Four-dimensional values lie as NHWC. A value that a
padded convolution or pooling reads is made with the halo that its reader needs, so that padding costs a fill of the border only.

A program may have one dynamic size besides the batch (a sequence length). Everything is planned for its maximum; loops end earlier.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from qcompiler.backends.tvm import arena, operations, products
from qcompiler.backends.tvm.concatenation import channel_dim, find_places
from qcompiler.backends.tvm.fuse import Fusion, find_fusions
from qcompiler.backends.tvm.fuse_hadamard import find_hadamard_fusions
from qcompiler.backends.tvm.fuse_layers import find_joint_layers
from qcompiler.backends.tvm.fuse_products import find_product_fusions
from qcompiler.backends.tvm.fuse_rows import find_row_fusions
from qcompiler.backends.tvm.kernels import (
    ITEM_SIZE,
    Activation,
    Copy,
    Dequantize,
    ElementwiseKernel,
    Extent,
    HaloKernel,
    Kernel,
    Operation,
    PackedKernel,
    Quantize,
    Size,
    is_dynamic,
    maximum,
    shifted,
)
from qcompiler.backends.tvm.parameters import joined_constants, packed_arrays
from qcompiler.backends.tvm.plan import Constant, Numbers, Packed, Parameter, Plan, Pointer, Port, Scale, Source, Step, Symbol
from qcompiler.backends.tvm.sharing import share
from qcompiler.backends.tvm.target import KernelTarget
from qcompiler.backends.tvm.views import Storage, View, dense, feature_maps, joined, loop_nest, pointer_offset, same_place, sample_stride
from qcompiler.errors import TargetError, UnknownNameError
from qcompiler.ir import edit
from qcompiler.ir.batch import check_independent_samples
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.provenance import describe
from qcompiler.ir.sizes import concrete_shape, dynamic_sizes, expression, named, symbols_of
from qcompiler.ir.types import DynamicSize

Halo = tuple[int, int, int, int]
NO_HALO: Halo = (0, 0, 0, 0)


def make_plan(program: Program, target: KernelTarget, keep: Sequence[str] = ()) -> Plan:
    """Plan a verified INTEGER program. ``keep`` names nodes whose values become outputs after the program's own.

    Raises TargetError for an op without a kernel, UnknownNameError for a name in ``keep`` that no node has, CaptureError for a
    program that mixes the samples of a symbolic batch.
    """
    check_independent_samples(program)
    nodes = {node.name: node for node in program.graph.nodes if node.op in ("placeholder", "call_function")}
    unknown = next((name for name in keep if name not in nodes), None)
    if unknown is not None:
        raise UnknownNameError("node", unknown, nodes)
    return Planner(program, target, [nodes[name] for name in keep]).plan()


@dataclass(frozen=True)
class _Call:
    kernel: Kernel
    operands: tuple[tuple[Storage, int], ...]  # byte offset into each storage
    nodes: tuple[str, ...]


class Planner:
    """The state of planning; ``operations`` holds what is done for each op."""

    def __init__(self, program: Program, target: KernelTarget, kept: Sequence[fx.Node]) -> None:
        self.program, self.target, self._kept = program, target, tuple(kept)
        self.batched = any(spec.shape[:1] == (None,) for spec in program.inputs)
        self.symbol = _symbol(program)
        self.tensors = _sample_tensors(program)
        self._sizes = _Sizes(program)
        self._fusions = find_fusions(program.graph, self.tensors, set(kept))
        self._fused = {node: fusion for fusion in self._fusions.values() for node in fusion.nodes}
        self._row_fusions = find_row_fusions(program.graph, self.tensors, set(kept), self._fused)
        self._in_row_fusion = {node: fusion for fusion in self._row_fusions.values() for node in fusion.nodes}
        self._product_fusions = find_product_fusions(program.graph, self.tensors, set(kept))
        self._in_product_fusion = {node for fusion in self._product_fusions.values() for node in fusion.nodes}
        self._hadamard_fusions = find_hadamard_fusions(program.graph, self.tensors, set(kept), self._fusions)
        self._in_hadamard_fusion = {node for fusion in self._hadamard_fusions.values() for node in fusion.nodes}
        self._places = find_places(program.graph, self.tensors, self.shape, self._fusions)
        self._joint_layers = find_joint_layers(program.graph, self._fusions, self._places, self.constant)
        self._in_joint_layers = {fusion.last for fusions in self._joint_layers.values() for fusion in fusions}
        self._values: dict[fx.Node, View] = {}
        self._maps: dict[tuple[fx.Node, Halo, int], View] = {}
        self._calls: list[_Call] = []
        self._parameters: dict[Source, View] = {}

    def plan(self) -> Plan:
        quantize, load = self._inputs()
        for node in self.program.graph.nodes:
            if node.op == "call_function" and not _is_size(node):
                self._plan_node(node)
        body, self._calls = self._calls, []
        dequantize, store = self._outputs()
        arena_size = self._place_values([[*quantize, *load], *([call] for call in body), [*dequantize, *store]])
        parameters_size = arena.place_all([view.storage for view in self._parameters.values()])
        return Plan(
            target=self.target.name,
            batched=self.batched,
            symbol=self.symbol,
            arena_size=arena_size,
            parameters_size=parameters_size,
            parameters=tuple(Parameter(v.storage.offset, v.storage.size, source) for source, v in self._parameters.items()),
            inputs=tuple(map(self._input_port, self.program.inputs, self._placeholders())),
            outputs=tuple(self._output_port(node, spec) for node, spec in self._results()),
            quantize=_steps(quantize),
            load=_steps(load),
            body=_steps(body),
            dequantize=_steps(dequantize),
            store=_steps(store),
        )

    # What the operations use: values in, kernels and values out.

    def shape(self, node: fx.Node) -> tuple[Size, ...]:
        """The sizes of one sample of a node's value; ``tensors`` has them for the maximum of dynamic ones."""
        return tuple(self._sizes.of(node, size) for size in node.meta["val"].shape)

    def decline(self, node: fx.Node, reason: str) -> NoReturn:
        """Raise TargetError: what the node does cannot be done on this target."""
        raise TargetError(f"{describe(node)} cannot be compiled for target {self.target.name}: {reason}")

    def value(self, node: fx.Node) -> View:
        """Where the value of a node lies; a constant is put among the parameters when it is first used."""
        if node.op == "get_attr":
            return self.parameter(Constant(str(node.target)), self.tensors[node])
        return self._values[node]

    def parameter(self, source: Source, tensor: torch.Tensor) -> View:
        """Reserve room among the parameters for a tensor of this shape and dtype."""
        if source not in self._parameters:
            dtype = dtype_name(tensor)
            size = tensor.numel() * ITEM_SIZE[dtype]
            self._parameters[source] = dense(Storage("parameters", size), dtype, tuple(tensor.shape))
        return self._parameters[source]

    def set_value(self, node: fx.Node, view: View) -> None:
        self._values[node] = view

    def allocate(self, node: fx.Node, like: View | None = None) -> View:
        """Room for a node's value, set as its value: NHWC for four dimensions (with the halo that its readers want), else row-major.

        A value of four dimensions that no padded window reads keeps the order of ``like`` where that is row-major. One that is made in
        its place of a concatenation lies as that does.
        """
        if node in self._places:
            return self._allocate_in_place(node)
        tensor = self.tensors[node]
        halo, halo_value = self._wanted_halo(node)
        row_major = tensor.dim() != 4 or self.is_dynamic(node) or (like is not None and halo == NO_HALO and _is_row_major_image(like))
        view = self._matrix(node) if row_major else self._feature_maps(tensor, halo, halo_value, (node.name,))
        self.set_value(node, view)
        return view

    def allocate_matrix(self, node: fx.Node) -> View:
        """Room for a node's value as dense rows of its last dimension, set as its value."""
        view = self._matrix(node)
        self.set_value(node, view)
        return view

    def allocate_rows(self, node: fx.Node) -> View:
        """Room for a node's value as rows of its last dimension, dense or in their place of a concatenation, set as its value."""
        shape = self.shape(node)
        in_place = node in self._places and channel_dim(shape) == len(shape) - 1
        return self._allocate_in_place(node) if in_place else self.allocate_matrix(node)

    def _allocate_in_place(self, node: fx.Node) -> View:
        """The value's place in the concatenation that reads it, whose own room is there from the first part on."""
        place = self._places[node]
        whole = self._values.get(place.concatenation) or self.allocate(place.concatenation)
        view = whole.slice(place.dim, place.start, place.start + place.size)
        self.set_value(node, view)
        return view

    def concatenate(self, node: fx.Node, parts: Sequence[View], dim: int) -> None:
        """Set the value of a concatenation: where its parts lie if they are neighbours, else room of its own with copies of those that are
        not in their place."""
        neighbours = None if node in self._values else joined(parts, dim)
        if neighbours is not None:
            self.set_value(node, neighbours)
            return
        whole, start = self._values.get(node) or self.allocate(node), 0
        for part in parts:
            place = whole.slice(dim, start, shifted(part.shape[dim], start))
            if not same_place(place, part):
                self.elementwise(Copy(), [part], place, node)
            start += part.maxima[dim]

    def packed(self, kernel: PackedKernel, *constants: Mapping[str, fx.Node], group: int = 0) -> list[View]:
        """The packed parameters of a kernel, in the kernel's order; ``constants`` by role, of each layer that it computes.

        ``group``: inputs that share a factor.
        """
        names = tuple((role, str(node.target)) for layer in constants for role, node in layer.items())
        tensors = joined_constants((role, getattr(self.program.graph_module, name)) for role, name in names)
        arrays = packed_arrays(kernel, self.target.name, tensors, group)
        return [self.parameter(Packed(kernel, names, index, group), array) for index, array in enumerate(arrays)]

    def call(self, kernel: Kernel, operands: Iterable[tuple[Storage, int]], *nodes: fx.Node) -> None:
        """Append a call; ``operands`` are storages with byte offsets in the kernel's order."""
        self._calls.append(self._call(kernel, operands, tuple(node.name for node in nodes)))

    def elementwise(self, operation: Operation, operands: Sequence[View], output: View, *nodes: fx.Node) -> None:
        """``output = operation(operands)``; the operands broadcast to the output's shape."""
        if output.elements:
            self._calls.append(self._elementwise_call(operation, operands, output, tuple(node.name for node in nodes)))

    def feature_map(self, node: fx.Node, halo: Halo = NO_HALO, halo_value: int = 0, gaps: bool = True) -> View:
        """The value as NHWC maps with at least this halo: where it lies if possible, else a copy (made once).

        ``gaps``: whether it may be some of the channels of wider maps.
        """
        view = self.value(node)
        self.check_fixed(node)
        found = _as_feature_map(view, halo, halo_value)
        if found is not None and (gaps or found.activation is None or found.activation.pitch is None):
            return found
        key = (node, halo, halo_value)
        if key not in self._maps:
            self._maps[key] = self._feature_maps(self.tensors[node], halo, halo_value, (node.name,))
            self.elementwise(Copy(), [view], self._maps[key], node)
        return self._maps[key]

    def matrix(self, node: fx.Node) -> View:
        """The value as dense rows of its last dimension, on an aligned address."""
        view = self.value(node)
        if view.is_dense() and view.aligned and view.storage.space == "arena":
            return dataclasses.replace(view, activation=self.rows_of(node))
        return self.materialize(node)

    def rows(self, node: fx.Node) -> View:
        """The value as rows of its last dimension, with gaps between them where it is some columns of a wider matrix."""
        view = self.value(node)
        pitch = view.row_pitch()
        if view.is_dense() or pitch is None or view.storage.space != "arena":
            return self.matrix(node)
        return dataclasses.replace(view, activation=dataclasses.replace(self.rows_of(node), pitch=pitch))

    def rows_of(self, node: fx.Node) -> Activation:
        """The value as a matrix: rows of its last dimension, as many as the maximum of a dynamic size gives."""
        tensor = self.tensors[node]
        rows, columns = _rows(tensor.shape)
        return Activation(1, rows, columns, dtype_name(tensor))  # type: ignore[arg-type]  # an integer type by the stage

    def materialize(self, node: fx.Node) -> View:
        """A row-major copy of the value."""
        copy = self._matrix(node)
        self.elementwise(Copy(), [self.value(node)], copy, node)
        return copy

    def constant(self, node: fx.Node) -> torch.Tensor:
        """The value of a constant."""
        tensor = getattr(self.program.graph_module, str(node.target))
        assert isinstance(tensor, torch.Tensor)  # verified: get_attr nodes name buffers
        return tensor

    def is_kept(self, node: fx.Node) -> bool:
        """Whether the node's value has to exist in memory though nothing may read it."""
        return node in self._kept

    def fusion(self, node: fx.Node) -> Fusion:
        return self._fusions[node]

    # Halos.

    def _wanted_halo(self, node: fx.Node) -> tuple[Halo, int]:
        """The union of the halos of all readers that want the same value in it as the first one; others will make copies."""
        wishes = [wish for user in edit.users_of(node) if (wish := self._wish(user, node)) is not None]
        if not wishes:
            return NO_HALO, 0
        value = wishes[0][1]
        top, bottom, left, right = (max(sides) for sides in zip(*(halo for halo, wanted in wishes if wanted == value), strict=True))
        return (top, bottom, left, right), value

    def _wish(self, user: fx.Node, node: fx.Node) -> tuple[Halo, int] | None:
        window = operations.window_of(self, user)
        return (window.halo, window.pad_value) if window is not None and window.x is node and window.halo != NO_HALO else None

    def _feature_maps(self, tensor: torch.Tensor, halo: Halo, halo_value: int, nodes: tuple[str, ...]) -> View:
        samples, channels, height, width = tensor.shape
        dtype = dtype_name(tensor)
        activation = Activation(height, width, channels, dtype, halo)  # type: ignore[arg-type]  # an integer type by the stage
        stride = sample_stride(samples, activation) * ITEM_SIZE[dtype]
        view = feature_maps(Storage("arena", samples * stride), samples, activation, halo_value)
        if halo != NO_HALO:
            kernel = HaloKernel(activation, halo_value)
            self._calls.extend(self._call(kernel, [(view.storage, n * stride)], nodes) for n in range(samples))
        return view

    def fewest(self, size: Size) -> int:
        """The least number that a size may be in a call."""
        if not isinstance(size, Extent) or self.symbol is None:
            return maximum(size)
        return self.symbol.minimum + size.offset

    def is_dynamic(self, node: fx.Node) -> bool:
        """Whether any size of the node's value is dynamic."""
        return any(isinstance(size, Extent) for size in self.shape(node))

    def check_fixed(self, node: fx.Node) -> None:
        """Raise TargetError for a value whose sizes are dynamic: windows slide over feature maps of fixed sizes."""
        if self.is_dynamic(node):
            self.decline(node, f"windows slide over feature maps of fixed sizes, and this one depends on '{self._symbol_name}'")

    @property
    def _symbol_name(self) -> str:
        return self.symbol.name if self.symbol is not None else ""

    def _matrix(self, node: fx.Node) -> View:
        rows = self.rows_of(node)
        view = dense(Storage("arena", rows.elements * ITEM_SIZE[rows.dtype]), rows.dtype, self.shape(node))
        return dataclasses.replace(view, activation=rows)

    # The border: inputs and outputs.

    def _placeholders(self) -> list[fx.Node]:
        return [node for node in self.program.graph.nodes if node.op == "placeholder"]

    def _results(self) -> list[tuple[fx.Node, ValueSpec | None]]:
        """The program's outputs with their specifications, then the kept values, which stay integers."""
        (outputs,) = (node.args[0] for node in self.program.graph.nodes if node.op == "output")
        own = list(zip(outputs, self.program.outputs, strict=True))
        return [*own, *((node, None) for node in self._kept)]

    def _inputs(self) -> tuple[list[_Call], list[_Call]]:
        quantize, load = [], []
        for index, (node, spec) in enumerate(zip(self._placeholders(), self.program.inputs, strict=True)):
            value = self.allocate(node)
            self._check_port(node)
            integers = dense(Storage("input", 0, index), value.dtype, value.shape)
            load.append(self._elementwise_call(Copy(), [integers], value, (node.name,)))
            if spec.quantized is None:
                quantize.append(load[-1])
                continue
            kind = spec.quantized.integer
            floats = dense(Storage("input", 0, index), "float32", value.shape)
            scaling = [self._scale(Scale("input", index, role), spec, value.shape) for role in ("reciprocal", "zero_point")]
            quantize.append(self._elementwise_call(Quantize(kind.low, kind.high), [floats, *scaling], value, (node.name,)))
        return quantize, load

    def _outputs(self) -> tuple[list[_Call], list[_Call]]:
        dequantize, store = [], []
        for index, (node, spec) in enumerate(self._results()):
            value = self.value(node)
            self._check_port(node)
            integers = dense(Storage("output", 0, index), value.dtype, value.shape)
            store.append(self._elementwise_call(Copy(), [value], integers, (node.name,)))
            if spec is None or spec.quantized is None:
                dequantize.append(store[-1])
                continue
            floats = dense(Storage("output", 0, index), "float32", value.shape)
            scaling = [self._scale(Scale("output", index, role), spec, value.shape) for role in ("scale", "zero_point")]
            dequantize.append(self._elementwise_call(Dequantize(), [value, *scaling], floats, (node.name,)))
        return dequantize, store

    def _check_port(self, node: fx.Node) -> None:
        """A user's tensor has no room for the maximum, so its strides are numbers only if the dynamic dimension is outermost."""
        shape = self._sample_shape(node)
        dynamic = [d for d, size in enumerate(shape) if isinstance(size, Extent)]
        if len(dynamic) > 1 or any(math.prod(self.tensors[node].shape[: d + self.batched]) != 1 for d in dynamic):
            self.decline(node, f"only the first dimension of an input's or output's sample may depend on '{self._symbol_name}'")

    def _scale(self, source: Scale, spec: ValueSpec, shape: Sequence[Size]) -> View:
        """A parameter of the border, one element or one for each index of the axis, as it broadcasts against the value."""
        assert spec.quantized is not None  # the callers' guard
        count = len(spec.quantized.scale)
        dtype = torch.int32 if source.role == "zero_point" else torch.float32
        view = self.parameter(source, torch.empty(count, dtype=dtype, device="meta"))
        axis = spec.quantized.axis
        if axis is None:
            return view.drop(0)
        aligned = view.reshape([count if d == axis % len(shape) else 1 for d in range(len(shape))])
        assert aligned is not None  # a vector takes any such shape
        return aligned

    def _input_port(self, spec: ValueSpec, node: fx.Node) -> Port:
        inner = dtype_name(self.tensors[node])
        return Port(spec.name, self._sample_shape(node), "float32" if spec.quantized else inner, inner)

    def _output_port(self, node: fx.Node, spec: ValueSpec | None) -> Port:
        inner = dtype_name(self.tensors[node])
        outer = "float32" if spec is not None and spec.quantized else inner
        return Port(spec.name if spec is not None else node.name, self._sample_shape(node), outer, inner)

    def _sample_shape(self, node: fx.Node) -> tuple[Size, ...]:
        shape = self.shape(node)
        return shape[1:] if self.batched else shape

    # Nodes and memory.

    def _plan_node(self, node: fx.Node) -> None:
        if node in self._in_row_fusion:
            if node in self._row_fusions:
                operations.normalization(self, self._row_fusions[node])
            return
        if node in self._in_product_fusion:
            if node in self._product_fusions:
                products.emit(self, self._product_fusions[node])
            return
        if node in self._in_hadamard_fusion:
            if node in self._hadamard_fusions:
                operations.hadamard(self, self._hadamard_fusions[node])
            return
        if node in self._in_joint_layers:
            if node in self._joint_layers:
                operations.joint_layers(self, self._joint_layers[node])
            return
        fusion = self._fused.get(node)
        if fusion is not None and fusion.last is not node:
            return  # computed with the fusion's last node
        self.plan_alone(node, fusion.root.target if fusion is not None else node.target)

    def plan_alone(self, node: fx.Node, target: object = None) -> None:
        """Call what computes this node, or the fusion that ends with it and whose root has this target. Raises TargetError for an op
        without a kernel."""
        handler = operations.HANDLERS.get(target if target is not None else node.target)
        if handler is None:
            known = ", ".join(sorted(str(target) for target in operations.HANDLERS))
            raise TargetError(f"no kernel for {describe(node)} on target {self.target.name}; there are kernels for {known}")
        handler(self, node)

    def _elementwise_call(self, operation: Operation, operands: Sequence[View], output: View, nodes: tuple[str, ...]) -> _Call:
        views = [*(view.expand(output.shape) for view in operands), output]
        shape, walked = loop_nest(output.shape, views)
        kernel = ElementwiseKernel(operation, shape, tuple(walked[:-1]), walked[-1])
        return self._call(kernel, [(view.storage, pointer_offset(view) * ITEM_SIZE[view.dtype]) for view in views], nodes)

    def _call(self, kernel: Kernel, operands: Iterable[tuple[Storage, int]], nodes: tuple[str, ...]) -> _Call:
        """The call of the kernel that all kernels share that differ from it in numbers alone."""
        shared, numbers = share(kernel)
        pointers = list(operands)
        if numbers:
            view = self.parameter(Numbers(numbers), torch.empty(len(numbers), dtype=torch.int64, device="meta"))
            pointers.append((view.storage, 0))
        return _Call(shared, tuple(pointers), nodes)

    def _place_values(self, moments: Sequence[Sequence[_Call]]) -> int:
        """Calls of one moment happen together: their storages are all alive then."""
        first: dict[Storage, int] = {}
        last: dict[Storage, int] = {}
        for moment, calls in enumerate(moments):
            for storage in (storage for call in calls for storage, _ in call.operands if storage.space == "arena"):
                first.setdefault(storage, moment)
                last[storage] = moment
        return arena.place([arena.Lifetime(storage, first[storage], last[storage]) for storage in first])


def dtype_name(tensor: torch.Tensor) -> str:
    """``uint8`` for torch.uint8, as kernels call it."""
    return str(tensor.dtype).removeprefix("torch.")


def _steps(calls: Iterable[_Call]) -> tuple[Step, ...]:
    return tuple(Step(call.kernel, _pointers(call), call.nodes) for call in calls)


def _pointers(call: _Call) -> tuple[Pointer, ...]:
    extents = [Pointer("extents", 0)] if is_dynamic(call.kernel) else []
    return (*(_pointer(*operand) for operand in call.operands), *extents)


def _pointer(storage: Storage, byte_offset: int) -> Pointer:
    """The offset of an input's or output's storage is its number."""
    if storage.space in ("input", "output"):
        return Pointer(storage.space, byte_offset, storage.offset)
    return Pointer(storage.space, storage.offset + byte_offset)


def _as_feature_map(view: View, halo: Halo, halo_value: int) -> View | None:
    """The view itself if it has the halo; without a halo any aligned NHWC view will do."""
    if view.storage.space != "arena":
        return None
    own = view.activation
    if own is not None and view.maxima[1:] == (own.channels, own.height, own.width):
        covered = all(have >= want for have, want in zip(own.halo, halo, strict=True))
        return view if covered and (halo == NO_HALO or view.halo_value == halo_value) else None
    samples, channels, height, width = view.maxima
    activation = Activation(height, width, channels, view.dtype)  # type: ignore[arg-type]  # an integer type by the stage
    wanted = (sample_stride(samples, activation), 1, activation.row_stride, channels)
    same = all(extent == 1 or have == want for extent, have, want in zip(view.maxima, view.strides, wanted, strict=True))
    return dataclasses.replace(view, strides=wanted, activation=activation) if same and view.aligned and halo == NO_HALO else None


def _is_row_major_image(view: View) -> bool:
    return len(view.shape) == 4 and view.is_dense() and view.strides[1] != 1


def _rows(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns of the matrix whose rows are the last dimension."""
    columns = shape[-1] if shape else 1
    rows = 1
    for extent in shape[:-1]:
        rows *= extent
    return rows, columns


def _symbol(program: Program) -> Symbol | None:
    sizes = list(dynamic_sizes(program.inputs).values())
    if len(sizes) > 1:
        names = ", ".join(size.name for size in sizes)
        raise TargetError(f"the program has {len(sizes)} dynamic sizes besides the batch ({names}): leave one of them open")
    return Symbol(sizes[0].name, sizes[0].minimum, sizes[0].maximum) if sizes else None


def _is_size(node: fx.Node) -> bool:
    """Sizes are known by the planner, and computed by nobody."""
    return isinstance(node.meta["val"], int | torch.SymInt)


class _Sizes:
    """Symbolic sizes as those of one sample: a number, or the dynamic size plus a number."""

    def __init__(self, program: Program) -> None:
        self._symbols = symbols_of(program)
        self._one_sample = {symbol: expression(1) for symbol, size in self._symbols.items() if size is None}

    def of(self, node: fx.Node, size: int | torch.SymInt) -> Size:
        """A size of a node's value. Raises TargetError for any other function of the dynamic size."""
        if isinstance(size, int):
            return size
        expr = expression(size).xreplace(self._one_sample)
        if expr.is_Integer:
            return int(expr)
        for symbol, known in self._symbols.items():
            offset = expr - symbol
            if isinstance(known, DynamicSize) and offset.is_Integer:
                return Extent(known.maximum + int(offset), int(offset))
        raise TargetError(
            f"{describe(node)} has a dimension of {named(size, self._symbols)} elements: memory is planned for sizes that are numbers, or"
            " the dynamic size plus a number; keep the dynamic dimension apart in reshapes"
        )


class _SampleShapes(fx.Interpreter):
    """Runs torch's shape functions on one sample; nothing is computed."""

    def __init__(self, graph_module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph_module)
        self.mode = mode
        self.tensors: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, torch.Tensor):
            self.tensors[n] = result
        return result

    def get_attr(self, target: object, args: object, kwargs: object) -> torch.Tensor:
        return edit.fake_like(getattr(self.module, str(target)), self.mode)


def _sample_tensors(program: Program) -> dict[fx.Node, torch.Tensor]:
    """Shape and dtype of every value where the batch, if symbolic, is 1 and a dynamic size is its maximum."""
    mode = FakeTensorMode()
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    with mode:
        samples = [
            torch.empty(concrete_shape(spec.shape), dtype=node.meta["val"].dtype)
            for spec, node in zip(program.inputs, placeholders, strict=True)
        ]
        shapes = _SampleShapes(program.graph_module, mode)
        shapes.run(*samples, enable_io_processing=False)
    return shapes.tensors
