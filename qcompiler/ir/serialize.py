"""A program to and from JSON values and a table of tensors; exact in both directions, and strict when reading.

Only the stage tables turn a name into an op. Whatever names a part of generated code is checked to be an identifier. A program that
was read is described again and compared with what was read, so nothing unknown, missing or of a wrong type goes unnoticed.
"""

from __future__ import annotations

import json
import keyword
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import fx

from qcompiler.errors import ArtifactError, QCompilerError
from qcompiler.ir.builder import GraphBuilder
from qcompiler.ir.edit import constant_value
from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import Provenance
from qcompiler.ir.stages import Target, island_target, target_names, target_text
from qcompiler.ir.text import FORMAT_VERSION, program_dict
from qcompiler.ir.types import DynamicSize, IntegerRange, IntegerType, Precision, QuantizedType, SpecSize, Stage

T = TypeVar("T")

_SCALARS = (bool, int, float, str, type(None))
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_OBJECTS: dict[str, Callable[[str], Any]] = {
    "float": {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}.__getitem__,
    "dtype": _DTYPES.__getitem__,
    "device": {"cpu": torch.device("cpu")}.__getitem__,
    "layout": {"strided": torch.strided}.__getitem__,
    "memory_format": {
        str(value).removeprefix("torch."): value for value in (torch.contiguous_format, torch.preserve_format, torch.channels_last)
    }.__getitem__,
}


def dump(program: Program) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """The program's description and its constants by name.

    Raises:
        ArtifactError: the program holds what its stage does not know, so that it could not be read again.
    """
    description = program_dict(program)
    tensors = {}
    for node in program.graph.nodes:
        if (tensor := constant_value(node)) is not None:
            tensors[str(node.target)] = tensor
    load(description, tensors)
    return description, tensors


def load(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Program:
    """The program that ``dump`` described.

    Raises:
        ArtifactError: another format version, an unknown op or field, a missing or surplus tensor, or anything inconsistent.
    """
    version = description.get("format") if isinstance(description, Mapping) else None
    if version != FORMAT_VERSION:
        raise ArtifactError(f"the program has format version {version!r}, this qcompiler reads {FORMAT_VERSION}: compile the model again")
    try:
        program = _program(description, tensors)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise ArtifactError(f"the program's description is damaged ({type(error).__name__}: {_first_line(error)})") from error
    except ArtifactError:
        raise
    except QCompilerError as error:
        raise ArtifactError(f"the program's description is damaged: {error}") from error
    _compare(description, program_dict(program))
    return program


def canonical_json(value: object) -> str:
    """The one JSON text of a value: sorted keys, no spaces, ASCII only, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _program(description: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Program:
    stage = Stage(description["stage"])
    inputs, outputs = (tuple(_spec(entry) for entry in description[name]) for name in ("inputs", "outputs"))
    islands = tuple(_of(str, name) for name in description["islands"])
    graph_module = _GraphReader(stage, inputs, tensors, islands).read(description["nodes"])
    history = tuple(_record(entry) for entry in description["history"])
    return Program(graph_module, stage, inputs, outputs, history, islands)


# The conversions at the border of a float island, which only a program with islands may hold.
_SHORES: dict[str, Target] = {target_text(target): target for target in (torch.ops.qc.quantize.default, torch.ops.qc.dequantize.default)}


class _GraphReader:
    """Builds the graph node by node; ``nodes`` are those read so far, by name."""

    def __init__(self, stage: Stage, inputs: tuple[ValueSpec, ...], tensors: Mapping[str, torch.Tensor], islands: tuple[str, ...]) -> None:
        self.stage, self.tensors, self.islands = stage, tensors, frozenset(islands)
        self.targets = target_names(stage) | (_SHORES if islands else {})
        self.inputs = iter(inputs)
        self.builder = GraphBuilder()
        self.nodes: dict[str, fx.Node] = {}

    def read(self, entries: list[Mapping[str, Any]]) -> fx.GraphModule:
        *entries, last = entries
        for name, tensor in self._constants(entries):
            self.builder.graph_module.register_buffer(name, tensor)
        for entry in entries:
            self._add(entry)
        if last["op"] != "output":
            raise ArtifactError("the program has no output node at its end")
        return self.builder.finish(*(self.argument(item) for item in last["args"]))

    def _constants(self, entries: list[Mapping[str, Any]]) -> Iterator[tuple[str, torch.Tensor]]:
        names = dict.fromkeys(_identifier(entry["attribute"]) for entry in entries if entry["op"] == "constant")
        if missing := sorted(names.keys() - self.tensors.keys()):
            raise ArtifactError(f"the program's constant '{missing[0]}' is missing")
        if surplus := sorted(self.tensors.keys() - names.keys()):
            raise ArtifactError(f"the tensor '{surplus[0]}' belongs to no constant of the program")
        for name in names:
            if hasattr(self.builder.graph_module, name):
                raise ArtifactError(f"the program's constant '{name}' has a reserved name")
            yield name, self.tensors[name]

    def _add(self, entry: Mapping[str, Any]) -> None:
        name = _identifier(entry["name"])
        provenance = Provenance(**{**entry["provenance"], "made_by": tuple(entry["provenance"]["made_by"])})
        node = self._make(name, entry, provenance)
        if node.name != name:
            raise ArtifactError(f"the program has a second node '{name}', or the name is reserved")
        node.meta["provenance"] = provenance
        if entry["quantized"] is not None:
            node.meta["quantized"] = _quantized(entry["quantized"])
        if "precision" in entry:
            node.meta["precision"] = Precision(**{**entry["precision"], "channels": tuple(entry["precision"].get("channels", ()))})
        self.nodes[name] = node

    def _make(self, name: str, entry: Mapping[str, Any], provenance: Provenance) -> fx.Node:
        if entry["op"] == "input":
            spec = next(self.inputs, None)
            if spec is None:
                raise ArtifactError(f"the program specifies no input for the node '{name}'")
            quantized = spec.quantized if self.stage is Stage.INTEGER else None
            return self.builder.input(name, spec.shape, quantized.integer.dtype if quantized else spec.dtype)
        if entry["op"] == "constant":
            return self.builder.attribute(name, entry["attribute"], provenance)
        if entry["op"] != "call":
            raise ArtifactError(f"the program's node '{name}' is of the unknown kind '{entry['op']}'")
        target = self._target(name, entry["target"])
        args, kwargs = self.argument(entry["args"]), self.keywords(target, entry["kwargs"])
        return self.builder.call(target, *args, name=name, provenance=provenance, **kwargs)

    def _target(self, node: str, name: str) -> Target:
        target = island_target(name) if node in self.islands else self.targets.get(name)
        if target is None:
            raise ArtifactError(f"the program uses the op '{name}', which stage {self.stage.value} of this qcompiler does not know")
        return target

    def keywords(self, target: Target, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Keyword arguments; only names of the op's schema may become a part of the generated code."""
        schema = getattr(target, "_schema", None)
        known = {parameter.name for parameter in schema.arguments} if schema is not None else set()
        if unknown := sorted(kwargs.keys() - known):
            raise ArtifactError(f"the op {target} has no argument '{unknown[0]}'")
        return {name: self.argument(value) for name, value in kwargs.items()}

    def argument(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.argument(item) for item in value]
        if isinstance(value, _SCALARS):
            return value
        ((kind, content),) = value.items()
        if kind == "node":
            if content not in self.nodes:
                raise ArtifactError(f"the program reads the node '{content}' before it is computed")
            return self.nodes[content]
        return _OBJECTS[kind](content)


def _spec(entry: Mapping[str, Any]) -> ValueSpec:
    quantized = None if entry["quantized"] is None else _quantized(entry["quantized"])
    shape = tuple(map(_size, entry["shape"]))
    return ValueSpec(_of(str, entry["name"]), _DTYPES[entry["dtype"]], shape, quantized, _range(entry["range"]))


def _size(entry: object) -> SpecSize:
    if isinstance(entry, Mapping):
        return DynamicSize(_of(str, entry["name"]), *(_of(int, entry[field]) for field in ("minimum", "maximum", "offset")))
    return None if entry is None else _of(int, entry)


def _range(ends: Sequence[object] | None) -> IntegerRange | None:
    return None if ends is None else IntegerRange(*(_of(int, end) for end in ends))


def _quantized(entry: Mapping[str, Any]) -> QuantizedType:
    integer = IntegerType(_of(int, entry["bits"]), _of(bool, entry["signed"]))
    scale = tuple(_of(float, item) for item in entry["scale"])
    zero_point = tuple(_of(int, item) for item in entry["zero_point"])
    axis = None if entry["axis"] is None else _of(int, entry["axis"])
    return QuantizedType(integer, scale, zero_point, axis, _range(entry["range"]))


def _record(entry: Mapping[str, Any]) -> PassRecord:
    notes = tuple(_of(str, note) for note in entry["notes"])
    return PassRecord(_of(str, entry["name"]), dict(entry["options"]), _of(bool, entry["modified"]), notes)


def _of(kind: type[T], value: object) -> T:
    """The value, if it is of exactly that type: a bool is no int here."""
    if type(value) is not kind:
        raise ArtifactError(f"the program's description holds {value!r} where it needs {kind.__name__}")
    return value


def _identifier(name: object) -> str:
    if not isinstance(name, str) or not (name.isascii() and name.isidentifier()) or keyword.iskeyword(name):
        raise ArtifactError(f"the program uses the name {name!r}, which is no identifier")
    return name


def _compare(description: Mapping[str, Any], again: Mapping[str, Any]) -> None:
    """Raise ArtifactError naming the first place where the program that was read differs from its description."""
    for key in sorted({*description, *again}):
        if key not in again:
            raise ArtifactError(f"the program's description has the unknown field '{key}'")
        given, read = description[key], again[key]
        if key == "nodes":
            for one, other in zip(given, read, strict=True):
                if canonical_json(one) != canonical_json(other):
                    name = one.get("name", "output")
                    raise ArtifactError(f"the program's node '{name}' is not what its description says: {_difference(one, other)}")
        elif canonical_json(given) != canonical_json(read):
            raise ArtifactError(f"the field '{key}' of the program's description holds values that are not allowed")


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    fields = [key for key in sorted({*one, *other}) if canonical_json(one.get(key)) != canonical_json(other.get(key))]
    return f"field '{fields[0]}'" if fields else "a field is null"


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0]
