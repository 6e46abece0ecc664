"""Writing and reading .qca files.

Members of the archive (``container``): ``manifest.json``, ``manifest.sha256`` (its digest), ``program.json`` (the integer program),
``weights.safetensors``, ``vectors.safetensors`` and ``code/…`` (what the back end made). The manifest holds the size and SHA-256 of all
but the first two, and which constants of few bits are packed (``packing``). Everything is checked before the caller gets anything; no
code is loaded here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

import qcompiler
from qcompiler.artifact import packing
from qcompiler.artifact.container import DIGEST, MANIFEST, check_name, pack, unpack
from qcompiler.artifact.verify import TestVector
from qcompiler.errors import ArtifactError
from qcompiler.files import replacing
from qcompiler.ir import serialize
from qcompiler.ir.program import Program, ValueSpec
from qcompiler.ir.sizes import fits
from qcompiler.ir.text import record_dict, spec_dict
from qcompiler.ir.types import Stage
from qcompiler.pipeline.backend import CompiledProgram

FORMAT_VERSION = 4

_PROGRAM, _WEIGHTS, _VECTORS, _CODE = "program.json", "weights.safetensors", "vectors.safetensors", "code/"


@dataclass(frozen=True)
class Artifact:
    """What a .qca file holds: the INTEGER program, the code for one target, test vectors, and the name of the recipe (may be empty)."""

    program: Program
    compiled: CompiledProgram
    vectors: tuple[TestVector, ...] = ()
    recipe: str = ""
    compiler: str = qcompiler.__version__


def write(path: str | Path, program: Program, compiled: CompiledProgram, vectors: Sequence[TestVector], recipe: str = "") -> None:
    """Write a .qca file: the same content gives the same bytes. A failure leaves no file behind and an older one as it was.

    Raises:
        VerificationError: the program is not at stage INTEGER or does not keep its specification.
        ArtifactError: the content cannot be stored, or the file cannot be written.
    """
    if program.stage is not Stage.INTEGER:
        raise ArtifactError(f"the program is at stage {program.stage.value}: only integer programs become artifacts, lower it first")
    program.verify()
    for vector in vectors:
        _check_vector(program, vector)
    _replace_file(Path(path), to_bytes(Artifact(program, compiled, tuple(vectors), recipe)))


def read(path: str | Path) -> Artifact:
    """Read a .qca file.

    Raises:
        ArtifactError: the file is missing, damaged anywhere, of an unknown version, or holds what this release does not know.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror or error}; give the path of a .qca file") from error
    try:
        return from_bytes(data)
    except ArtifactError as error:
        raise ArtifactError(f"{path} is no usable artifact: {error}") from error


def to_bytes(artifact: Artifact) -> bytes:
    """The file's content."""
    description, weights = serialize.dump(artifact.program)
    members = {
        _PROGRAM: _json_bytes(description),
        _WEIGHTS: _tensor_bytes(packing.pack(weights, packing.packings(artifact.program))),
        _VECTORS: _tensor_bytes(_named_vectors(artifact.vectors)),
    }
    for name, content in artifact.compiled.members.items():
        check_name(name)
        members[_CODE + name] = bytes(content)
    manifest = _json_bytes(_manifest(artifact, members))
    members |= {MANIFEST: manifest, DIGEST: _digest(manifest).encode("ascii")}
    return pack(members)


def from_bytes(data: bytes) -> Artifact:
    """The artifact in a file's content. Raises as ``read``."""
    members = unpack(data)
    manifest = _read_manifest(members)
    description = _parse(members[_PROGRAM], _PROGRAM)
    weights = packing.unpack(_tensors(members[_WEIGHTS], _WEIGHTS), packing.from_json(manifest["packed"]))
    program = serialize.load(description, weights)
    vectors = _unnamed_vectors(_tensors(members[_VECTORS], _VECTORS), len(program.inputs), len(program.outputs))
    for vector in vectors:
        _check_vector(program, vector)
    code = {name.removeprefix(_CODE): content for name, content in members.items() if name.startswith(_CODE)}
    compiled = CompiledProgram(manifest["target"], code, tuple(manifest["notes"]))
    artifact = Artifact(program, compiled, vectors, manifest["recipe"], manifest["compiler"])
    if _json_bytes(_manifest(artifact, members)) != members[MANIFEST]:
        raise ArtifactError("the manifest does not describe the rest of the file")
    return artifact


# ---- manifest ---------------------------------------------------------------------------------------------------------------------


def _manifest(artifact: Artifact, members: Mapping[str, bytes]) -> dict[str, Any]:
    program = artifact.program
    return {
        "format": FORMAT_VERSION,
        "compiler": artifact.compiler,
        "target": artifact.compiled.target,
        "notes": list(artifact.compiled.notes),
        "recipe": artifact.recipe,
        "packed": packing.to_json(packing.packings(program)),
        "inputs": [spec_dict(spec) for spec in program.inputs],
        "outputs": [spec_dict(spec) for spec in program.outputs],
        "history": [record_dict(record) for record in program.history],
        "members": {
            name: {"bytes": len(content), "sha256": _digest(content)} for name, content in members.items() if name not in (MANIFEST, DIGEST)
        },
    }


def _read_manifest(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The manifest, once its digest, its version and the digests of all members are found right."""
    for name in (MANIFEST, DIGEST):
        if name not in members:
            raise ArtifactError(f"it has no member '{name}'")
    if members[DIGEST] != _digest(members[MANIFEST]).encode("ascii"):
        raise ArtifactError(f"'{MANIFEST}' does not match its SHA-256")
    manifest = _parse(members[MANIFEST], MANIFEST)
    version = manifest.get("format")
    if version != FORMAT_VERSION:
        raise ArtifactError(f"it has format version {version!r}, this qcompiler reads {FORMAT_VERSION}: compile the model again")
    _check_fields(manifest)
    _check_digests(manifest["members"], members)
    return manifest


def _check_fields(manifest: Mapping[str, Any]) -> None:
    kinds: dict[str, type] = {"format": int, "compiler": str, "target": str, "notes": list, "recipe": str}
    kinds |= {"inputs": list, "outputs": list, "history": list, "members": dict, "packed": dict}
    if unknown := sorted(manifest.keys() - kinds.keys()):
        raise ArtifactError(f"the manifest has the unknown field '{unknown[0]}'")
    for name, kind in kinds.items():
        if not isinstance(manifest.get(name), kind):
            raise ArtifactError(f"the manifest's field '{name}' is missing or no {kind.__name__}")
    if not all(isinstance(note, str) for note in manifest["notes"]):
        raise ArtifactError("the manifest's field 'notes' holds something that is no text")


def _check_digests(listed: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
    contents = {name: content for name, content in members.items() if name not in (MANIFEST, DIGEST)}
    if unknown := sorted(name for name in contents if name not in listed):
        raise ArtifactError(f"the member '{unknown[0]}' is not in the manifest")
    if missing := sorted({*listed, _PROGRAM, _WEIGHTS, _VECTORS} - contents.keys()):
        raise ArtifactError(f"the member '{missing[0]}' is missing")
    for name, content in contents.items():
        if name not in (_PROGRAM, _WEIGHTS, _VECTORS) and not name.startswith(_CODE):
            raise ArtifactError(f"the member '{name}' is of no known kind")
        if listed[name] != {"bytes": len(content), "sha256": _digest(content)}:
            raise ArtifactError(f"the member '{name}' does not match its SHA-256")


# ---- members ----------------------------------------------------------------------------------------------------------------------


def _named_vectors(vectors: Sequence[TestVector]) -> dict[str, torch.Tensor]:
    named = {}
    for position, vector in enumerate(vectors):
        for kind, tensors in (("input", vector.inputs), ("output", vector.outputs)):
            named.update({f"{position}.{kind}.{index}": tensor for index, tensor in enumerate(tensors)})
    return named


def _unnamed_vectors(tensors: Mapping[str, torch.Tensor], inputs: int, outputs: int) -> tuple[TestVector, ...]:
    count = len(tensors) // (inputs + outputs)
    try:
        vectors = tuple(
            TestVector(
                tuple(tensors[f"{position}.input.{index}"] for index in range(inputs)),
                tuple(tensors[f"{position}.output.{index}"] for index in range(outputs)),
            )
            for position in range(count)
        )
    except KeyError as error:
        raise ArtifactError(f"the test vectors lack the tensor {error}") from error
    if len(tensors) != count * (inputs + outputs):
        raise ArtifactError("the test vectors hold more tensors than the program has inputs and outputs")
    return vectors


def _check_vector(program: Program, vector: TestVector) -> None:
    for kind, specs, tensors in (("input", program.inputs, vector.inputs), ("output", program.outputs, vector.outputs)):
        if len(specs) != len(tensors):
            raise ArtifactError(f"a test vector has {len(tensors)} {kind}s, the program {len(specs)}")
        for spec, tensor in zip(specs, tensors, strict=True):
            if not _fits(spec, tensor):
                raise ArtifactError(
                    f"a test vector's {kind} '{spec.name}' is {tensor.dtype} {list(tensor.shape)}, against its specification"
                )


def _fits(spec: ValueSpec, tensor: torch.Tensor) -> bool:
    dtype = spec.dtype if spec.quantized is None else spec.quantized.integer.dtype
    return fits(spec.shape, tensor.shape) and tensor.dtype == dtype


def _tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    # Tensors that share memory are stored each by itself.
    return safetensors.torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()})


def _tensors(content: bytes, name: str) -> dict[str, torch.Tensor]:
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"'{name}' holds no tensors ({error})") from error


def _json_bytes(value: object) -> bytes:
    return serialize.canonical_json(value).encode("ascii")


def _parse(content: bytes, name: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
        canonical = _json_bytes(value)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"'{name}' is no JSON ({error})") from error
    if not isinstance(value, dict) or canonical != content:
        raise ArtifactError(f"'{name}' is not JSON as an artifact holds it")
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _replace_file(path: Path, content: bytes) -> None:
    """Whole and on the disk before it gets its name."""
    try:
        with replacing(path) as temporary, open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise ArtifactError(f"cannot write {path}: {error.strerror or error}") from error
