"""What the planner decides, as plain data: which kernels run in which order on which addresses. Stored as ``plan.json``."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qcompiler.backends.tvm import kernels
from qcompiler.backends.tvm.kernels import Kernel, PackedKernel
from qcompiler.errors import ArtifactError

FORMAT = 4
Space = Literal["arena", "parameters", "input", "output", "extents"]


@dataclass(frozen=True)
class Pointer:
    """A byte address: ``offset`` into the arena, the parameters, one sample of the input or output number ``index``, or the extents."""

    space: Space
    offset: int
    index: int = 0


@dataclass(frozen=True)
class Step:
    """One call of a kernel for the nodes that it computes, with its pointers in the kernel's order."""

    kernel: Kernel
    pointers: tuple[Pointer, ...]
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Constant:
    """The bytes of a buffer of the program, row-major."""

    buffer: str


@dataclass(frozen=True)
class Packed:
    """Array number ``index`` of what ``parameters.packed_arrays`` makes of these buffers (role to name) for a kernel.

    A role that occurs several times is that of several layers, which ``parameters.joined_constants`` puts together.
    """

    kernel: PackedKernel
    constants: tuple[tuple[str, str], ...]
    index: int
    group: int = 0  # inputs whose weights share one of the constant ``factors``; 0: there are none

    @property
    def layers(self) -> int:
        """How many layers the kernel computes, each by as many nodes."""
        return sum(role == self.constants[0][0] for role, _ in self.constants)


@dataclass(frozen=True)
class Numbers:
    """What a kernel's pointer ``numbers`` points to."""

    values: tuple[int, ...]


@dataclass(frozen=True)
class Scale:
    """A parameter of the border between floats and integers: of input or output number ``index`` of the program."""

    port: Literal["input", "output"]
    index: int
    role: Literal["reciprocal", "scale", "zero_point"]


Source = Constant | Packed | Numbers | Scale


@dataclass(frozen=True)
class Parameter:
    """Bytes at ``offset`` of the parameters, computed from the program when it is loaded."""

    offset: int
    size: int
    source: Source


@dataclass(frozen=True)
class Port:
    """An input or output of one sample; ``outer`` is the dtype at the float border, ``inner`` that of the integers.

    Only the outermost dimension of a sample may be dynamic (but for dimensions of size 1), so that its strides are numbers.
    """

    name: str
    sample_shape: tuple[kernels.Size, ...]
    outer: str
    inner: str


@dataclass(frozen=True)
class Symbol:
    """The one dynamic size of a program: its name and the values that it may take."""

    name: str
    minimum: int
    maximum: int


@dataclass(frozen=True)
class Plan:
    """A whole program. With ``batched`` the first dimension of every port is the batch, else the program has no batch.

    A float run does ``quantize``, ``body``, ``dequantize`` for each sample; an integer run ``load``, ``body``, ``store``.
    """

    target: str
    batched: bool
    symbol: Symbol | None
    arena_size: int
    parameters_size: int
    parameters: tuple[Parameter, ...]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    quantize: tuple[Step, ...]
    load: tuple[Step, ...]
    body: tuple[Step, ...]
    dequantize: tuple[Step, ...]
    store: tuple[Step, ...]

    @property
    def steps(self) -> tuple[Step, ...]:
        return (*self.quantize, *self.load, *self.body, *self.dequantize, *self.store)

    def packed_weights(self) -> tuple[str, ...]:
        """A line for each width of weights that kernels unpack in registers, and of weights and inputs whose bits they multiply, with
        the layers."""
        layers: dict[str, list[str]] = {}
        packed = {parameter.offset: parameter.source for parameter in self.parameters if isinstance(parameter.source, Packed)}
        for step in self.body:
            kind = _weight_kind(step.kernel) if isinstance(step.kernel, kernels.ConvolutionKernel) else None
            if kind is not None:
                sources = (packed.get(pointer.offset) for pointer in step.pointers if pointer.space == "parameters")
                count = next(source.layers for source in sources if source is not None)
                layers.setdefault(kind, []).extend(step.nodes[:: len(step.nodes) // count])
        return tuple(f"{kind}: {', '.join(dict.fromkeys(names))}" for kind, names in sorted(layers.items()))


def _weight_kind(kernel: kernels.ConvolutionKernel) -> str | None:
    if kernel.bit_planes is not None:
        return f"bits counted, weights of {kernel.bit_planes.weights} by inputs of {kernel.bit_planes.inputs}"
    return f"weights read as {kernel.weight_bits} bits" if kernel.weight_bits < 8 else None


_KINDS: Mapping[str, type] = {
    cls.__name__: cls
    for cls in (
        *(value for value in vars(kernels).values() if isinstance(value, type) and dataclasses.is_dataclass(value)),
        *(Pointer, Step, Constant, Packed, Numbers, Scale, Parameter, Port, Symbol, Plan),
    )
}


def encode(value: Any) -> Any:
    """Dataclasses as objects with their ``kind``, tuples as lists: what ``decode`` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": type(value).__name__, **fields}
    return [encode(item) for item in value] if isinstance(value, tuple) else value


def decode(value: Any) -> Any:
    """The inverse of ``encode``. Raises ArtifactError for an unknown kind, a missing or unknown field, a value of another type."""
    if isinstance(value, list):
        return tuple(decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ArtifactError(f"the plan holds an unknown kind '{kind}': it was written by another version, compile again")
    hints = typing.get_type_hints(_KINDS[kind])
    fields = {name: decode(item) for name, item in value.items() if name != "kind"}
    if fields.keys() != hints.keys():
        raise ArtifactError(
            f"the plan's {kind} has other fields than this version knows: {', '.join(sorted(fields.keys() ^ hints.keys()))}"
        )
    wrong = [name for name, item in fields.items() if not _conforms(item, hints[name])]
    if wrong:
        raise ArtifactError(f"the plan's {kind} holds a value of the wrong type in {', '.join(wrong)}")
    return _KINDS[kind](**fields)


def dumps(plan: Plan) -> bytes:
    """Stable JSON: the same plan gives the same bytes."""
    return json.dumps({"format": FORMAT, "plan": encode(plan)}, indent=1, sort_keys=True).encode()


def loads(data: bytes) -> Plan:
    """Read a plan. Raises ArtifactError for anything but a whole plan of this format."""
    try:
        document = json.loads(data)
    except ValueError as error:
        raise ArtifactError(f"the plan is not JSON ({error}): the artifact is damaged") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ArtifactError(f"the plan is not of format {FORMAT}: it was written by another version, compile again")
    plan = decode(document.get("plan"))
    if not isinstance(plan, Plan):
        raise ArtifactError("the plan file holds something else than a plan: the artifact is damaged")
    return plan


def _conforms(value: Any, hint: Any) -> bool:
    """Whether a decoded value is of the annotated type; the annotations here are classes, literals, unions and tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is None:
        return type(value) is hint or (hint is type(None) and value is None)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        items = [arguments[0]] * len(value) if arguments[1:] == (Ellipsis,) else list(arguments)
        return len(items) == len(value) and all(_conforms(item, wanted) for item, wanted in zip(value, items, strict=True))
    return any(_conforms(value, option) for option in arguments)
