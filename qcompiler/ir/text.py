"""Text form of a program, for people and golden files, and its machine readable twin.

Both are functions of the program alone: no addresses, no symbol numbers, no paths of the machine. Long lists are abbreviated and
constants left out, but each with a digest of its content, so that different programs have different texts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import fx

from qcompiler.ir.edit import constant_value
from qcompiler.ir.program import PassRecord, Program, ValueSpec
from qcompiler.ir.provenance import Provenance, provenance_of
from qcompiler.ir.sizes import named, symbols_of
from qcompiler.ir.stages import target_text
from qcompiler.ir.types import DynamicSize, Precision, QuantizedType, SpecSize

FORMAT_VERSION = 2

_BATCH = "B"
_LONGEST_LIST = 8
_SHORT_DTYPES = {
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.int16: "i16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.float32: "f32",
    torch.float64: "f64",
    torch.bool: "bool",
}


def program_text(program: Program) -> str:
    """One line for each input, node, output and pass that ran.

    A node reads ``%name: type[shape] scale=… zp=… range=[…] = op(operands, attributes)  # source line (passes that made it)``.
    """
    sizes = SizeNames(program)
    lines = [f"stage {program.stage.value}"]
    lines += [f"input {_spec_text(spec)}" for spec in program.inputs]
    lines += [_node_text(node, sizes) for node in program.graph.nodes]
    lines += [f"output {_spec_text(spec)}" for spec in program.outputs]
    lines += [f"pass {_record_text(record)}" for record in program.history]
    return "\n".join(lines) + "\n"


def program_dict(program: Program) -> dict[str, Any]:
    """The program as JSON values, complete but for the data of its constants, which it holds as SHA-256 digests."""
    sizes = SizeNames(program)
    return {
        "format": FORMAT_VERSION,
        "stage": program.stage.value,
        "inputs": [spec_dict(spec) for spec in program.inputs],
        "outputs": [spec_dict(spec) for spec in program.outputs],
        "nodes": [_node_dict(node, sizes) for node in program.graph.nodes],
        "history": [record_dict(record) for record in program.history],
        "islands": list(program.islands),
    }


class SizeNames:
    """Symbolic sizes by stable names: the batch is ``B``, other sizes have names of their own, whatever number torch gave the symbols."""

    def __init__(self, program: Program) -> None:
        self._symbols = symbols_of(program)

    def __call__(self, size: int | torch.SymInt) -> int | str:
        return size if isinstance(size, int) else named(size, self._symbols, _BATCH)


# ---- text -------------------------------------------------------------------------------------------------------------------------


def _node_text(node: fx.Node, sizes: SizeNames) -> str:
    if node.op == "output":
        outputs = node.args[0] if isinstance(node.args[0], tuple) else node.args
        return f"return {', '.join(map(_argument_text, outputs))}"
    head = f"%{node.name}: {_quantized_text(_type_text(node.meta.get('val'), sizes), node.meta.get('quantized'))}{_precision_text(node)}"
    return f"{head} = {_operation_text(node)}{_provenance_text(provenance_of(node))}"


def _operation_text(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "get_attr":
        tensor = constant_value(node)
        alias = "" if node.target == node.name else f" {node.target}"
        return f"constant{alias} digest={tensor_digest(tensor)[:12]}" if tensor is not None else f"constant{alias} missing"
    positions = zip(_parameter_names(node), node.args, strict=False)
    arguments = [_argument_text(value) if _holds_node(value) else f"{name}={_argument_text(value)}" for name, value in positions]
    arguments += [f"{name}={_argument_text(value)}" for name, value in node.kwargs.items()]
    return f"{_target(node).removesuffix('.default')}({', '.join(arguments)})"


def _type_text(value: Any, sizes: SizeNames) -> str:
    if isinstance(value, torch.Tensor):
        dtype = _SHORT_DTYPES.get(value.dtype, str(value.dtype).removeprefix("torch."))
        return f"{dtype}[{','.join(str(sizes(size)) for size in value.shape)}]"
    if isinstance(value, list | tuple):
        return f"({', '.join(_type_text(item, sizes) for item in value)})"
    return "int" if isinstance(value, int | torch.SymInt) else "?"


def _quantized_text(kind: str, quantized: QuantizedType | None) -> str:
    """``u8[B,3] scale=… zp=…``; the integer type is named where it is not the storage type: ``i32[B,3] as u12 scale=…``."""
    if quantized is None:
        return kind
    parts = [kind] if kind.startswith(f"{quantized.integer}[") else [kind, f"as {quantized.integer}"]
    parts += [f"scale={_numbers_text(quantized.scale)}", f"zp={_numbers_text(quantized.zero_point)}"]
    parts += [f"axis={quantized.axis}"] if quantized.axis is not None else []
    parts += [f"range={quantized.range}"] if quantized.range is not None else []
    return " ".join(parts)


def _precision_text(node: fx.Node) -> str:
    """`` asks=W4A8``: the bits that were asked for here; ``W[8, 8, 4, 4]``: for each output channel."""
    asked = node.meta.get("precision")
    if not isinstance(asked, Precision) or asked == Precision():
        return ""
    weight = _list_text([str(bits) for bits in asked.channels]) if asked.channels else asked.weight
    parts = [f"{letter}{bits}" for letter, bits in (("W", weight), ("A", asked.activation)) if bits is not None]
    return f" asks={''.join(parts)}"


def _numbers_text(numbers: Sequence[float]) -> str:
    return _number_text(numbers[0]) if len(numbers) == 1 else _list_text([_number_text(number) for number in numbers])


def _number_text(number: float) -> str:
    """Shortest text that names the number among those of float32; a float64 that is none of them is marked with a ``d``."""
    if not isinstance(number, float):
        return repr(number)
    single = np.float32(number)
    return str(single) if float(single) == number else f"{number!r}d"


def _list_text(items: Sequence[str]) -> str:
    if len(items) <= _LONGEST_LIST:
        return f"[{', '.join(items)}]"
    digest = hashlib.sha256(", ".join(items).encode()).hexdigest()[:8]
    return f"[{', '.join(items[:3])}, … {len(items)} in all, digest={digest}]"


def _argument_text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, list | tuple):
        return _list_text([_argument_text(item) for item in value])
    return str(value).removeprefix("torch.") if isinstance(value, torch.dtype | torch.memory_format | torch.layout) else repr(value)


def _provenance_text(provenance: Provenance) -> str:
    passes = f"({', '.join(provenance.made_by)})" if provenance.made_by else ""
    comment = " ".join(filter(None, (provenance.location, passes)))
    return f"  # {comment}" if comment else ""


def _spec_text(spec: ValueSpec) -> str:
    shape = ",".join(map(_size_text, spec.shape))
    kind = _quantized_text(f"{_SHORT_DTYPES.get(spec.dtype, spec.dtype)}[{shape}]", spec.quantized)
    return f"{spec.name}: {kind}{f' range={spec.range}' if spec.range is not None else ''}"


def _size_text(size: SpecSize) -> str:
    if isinstance(size, DynamicSize):
        return f"{size}:{size.minimum}..{size.maximum}"
    return _BATCH if size is None else str(size)


def _record_text(record: PassRecord) -> str:
    options = ",".join(f"{name}={json.dumps(plain(value), ensure_ascii=False)}" for name, value in sorted(record.options.items()))
    return f"{record.name}{{{options}}} {'modified' if record.modified else 'unchanged'}{''.join(f'; {note}' for note in record.notes)}"


# ---- machine readable -------------------------------------------------------------------------------------------------------------


def _node_dict(node: fx.Node, sizes: SizeNames) -> dict[str, Any]:
    if node.op == "output":
        return {"op": "output", "args": argument_dict(node.args[0])}
    entry: dict[str, Any] = {"op": _KINDS.get(node.op, node.op), "name": node.name}
    if node.op == "get_attr":
        tensor = constant_value(node)
        entry |= {"attribute": str(node.target), "sha256": tensor_digest(tensor) if tensor is not None else None}
    elif node.op == "call_function":
        kwargs = {name: argument_dict(value) for name, value in node.kwargs.items()}
        entry |= {"target": _target(node), "args": argument_dict(node.args), "kwargs": kwargs}
    entry["value"] = _value_dict(node.meta.get("val"), sizes)
    entry["quantized"] = quantized_dict(node.meta.get("quantized"))
    asked = node.meta.get("precision")
    if isinstance(asked, Precision) and asked != Precision():
        entry["precision"] = {name: value for name, value in asdict(asked).items() if name != "channels" or value}
    origin = provenance_of(node)
    entry["provenance"] = {"source": origin.source, "module_path": origin.module_path, "made_by": list(origin.made_by)}
    return entry


_KINDS = {"placeholder": "input", "get_attr": "constant", "call_function": "call"}


def argument_dict(value: Any) -> Any:
    """An argument of a call as a JSON value; what JSON lacks becomes an object with one key that says its kind."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, list | tuple):
        return [argument_dict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return {type(value).__name__: str(value).removeprefix("torch.")}


def _value_dict(value: Any, sizes: SizeNames) -> Any:
    if isinstance(value, torch.Tensor):
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": [sizes(size) for size in value.shape]}
    if isinstance(value, list | tuple):
        return [_value_dict(item, sizes) for item in value]
    return sizes(value) if isinstance(value, int | torch.SymInt) else None


def quantized_dict(quantized: QuantizedType | None) -> dict[str, Any] | None:
    """A quantized type as a JSON object."""
    if quantized is None:
        return None
    return {
        "bits": quantized.integer.bits,
        "signed": quantized.integer.signed,
        "scale": list(quantized.scale),
        "zero_point": list(quantized.zero_point),
        "axis": quantized.axis,
        "range": None if quantized.range is None else [quantized.range.low, quantized.range.high],
    }


def spec_dict(spec: ValueSpec) -> dict[str, Any]:
    """The specification of an input or output as a JSON object; null in the shape is the batch, an object a dynamic size."""
    return {
        "name": spec.name,
        "dtype": str(spec.dtype).removeprefix("torch."),
        "shape": [asdict(size) if isinstance(size, DynamicSize) else size for size in spec.shape],
        "quantized": quantized_dict(spec.quantized),
        "range": None if spec.range is None else [spec.range.low, spec.range.high],
    }


def record_dict(record: PassRecord) -> dict[str, Any]:
    """One pass of the history as a JSON object."""
    return {"name": record.name, "options": plain(record.options), "modified": record.modified, "notes": list(record.notes)}


def plain(value: Any) -> Any:
    """An option of a pass as a JSON value; what JSON lacks is given by its text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if (value is None or isinstance(value, bool | int | float | str)) and finite else str(value)


def tensor_digest(tensor: torch.Tensor) -> str:
    """SHA-256 of dtype, shape and little-endian content."""
    content = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{content.dtype}{tuple(content.shape)}".encode())
    digest.update(content.reshape(-1).view(torch.uint8).numpy().tobytes() if content.numel() else b"")
    return digest.hexdigest()


def _target(node: fx.Node) -> str:
    return target_text(node.target) if callable(node.target) else str(node.target)


def _parameter_names(node: fx.Node) -> Iterator[str]:
    schema = getattr(node.target, "_schema", None)
    names = [parameter.name for parameter in schema.arguments] if schema is not None else []
    yield from names
    for position in range(len(names), len(node.args)):
        yield f"argument_{position}"


def _holds_node(value: Any) -> bool:
    return isinstance(value, fx.Node) or (isinstance(value, list | tuple) and any(_holds_node(item) for item in value))
