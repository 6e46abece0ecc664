from __future__ import annotations

import hashlib
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from qcompiler import artifact
from qcompiler.artifact import TestVector
from qcompiler.artifact.container import pack, unpack
from qcompiler.artifact.file import from_bytes
from qcompiler.errors import ArtifactError, VerificationError
from qcompiler.ir import edit
from qcompiler.ir.program import Program
from qcompiler.ir.types import Stage
from qcompiler.pipeline.backend import CompiledProgram


def rewritten(data: bytes, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> bytes:
    """The archive after a change of members and manifest, with every digest made right again: only meaning can be wrong."""
    members = unpack(data)
    manifest = json.loads(members["manifest.json"])
    change(members, manifest)
    manifest["members"] |= {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in members.items()
        if name in manifest["members"]
    }
    members["manifest.json"] = canonical(manifest)
    members["manifest.sha256"] = hashlib.sha256(members["manifest.json"]).hexdigest().encode()
    return pack(members)


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def test_round_trip(path: Path, program: Program, compiled: CompiledProgram, vectors: tuple[TestVector, ...]) -> None:
    content = artifact.read(path)
    assert content.program.text() == program.text()
    assert content.program.history == program.history and content.program.inputs == program.inputs
    assert content.compiled == compiled
    assert content.recipe == "int8"
    for ours, theirs in zip(content.vectors, vectors, strict=True):
        assert all(torch.equal(a, b) for a, b in zip((*ours.inputs, *ours.outputs), (*theirs.inputs, *theirs.outputs), strict=True))
    x = torch.randn(3, 2, 4, 4)
    assert torch.equal(content.program(x), program(x))


def test_same_content_same_bytes(
    path: Path, tmp_path: Path, program: Program, compiled: CompiledProgram, vectors: tuple[TestVector, ...]
) -> None:
    members = dict(reversed(compiled.members.items()))
    artifact.write(tmp_path / "again.qca", edit.copy(program), CompiledProgram(compiled.target, members, compiled.notes), vectors, "int8")
    assert (tmp_path / "again.qca").read_bytes() == path.read_bytes()


def test_what_was_read_is_written_back_to_the_same_bytes(path: Path, tmp_path: Path) -> None:
    content = artifact.read(path)
    artifact.write(tmp_path / "again.qca", content.program, content.compiled, content.vectors, content.recipe)
    assert (tmp_path / "again.qca").read_bytes() == path.read_bytes()


def test_the_manifest_tells_what_the_file_is(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        manifest = json.loads(archive.read("manifest.json"))
    code = ["code/library.so", "code/plan.json"]
    assert names == ["manifest.json", "manifest.sha256", *code, "program.json", "vectors.safetensors", "weights.safetensors"]
    assert manifest["format"] == 4 and manifest["target"] == "x86-64-v3" and manifest["recipe"] == "int8"
    assert manifest["inputs"][0]["quantized"]["scale"] == [0.1]
    assert manifest["history"][0]["name"] == "lower-integer"
    assert manifest["members"].keys() == set(names[2:])


def assert_rejected(data: bytes, message: str | None = None) -> None:
    with pytest.raises(ArtifactError, match=message) as error:
        from_bytes(data)
    assert "\n" not in str(error.value)


def test_every_changed_byte_of_the_manifest_is_rejected(path: Path) -> None:
    data = path.read_bytes()
    manifest = unpack(data)["manifest.json"]
    start = data.index(manifest)
    generator = random.Random(0)
    for position in range(start, start + len(manifest)):
        changed = bytearray(data)
        changed[position] ^= 1 << generator.randrange(8)
        assert_rejected(bytes(changed))


def test_a_thousand_changed_bits_anywhere_are_rejected(path: Path) -> None:
    data = path.read_bytes()
    generator = random.Random(1)
    for _ in range(1000):
        changed = bytearray(data)
        changed[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        assert_rejected(bytes(changed))


def test_changed_content_with_right_checksums_of_zip_is_rejected(path: Path) -> None:
    """CRC-32 is no protection: someone who edits a member mends it too. The SHA-256 in the manifest is."""
    members = unpack(path.read_bytes())
    for name, content in members.items():
        changed = bytes([content[0] ^ 1]) + content[1:]
        assert_rejected(pack(members | {name: changed}), f"'{name if name != 'manifest.sha256' else 'manifest.json'}' does not match")


def test_every_truncation_is_rejected(path: Path) -> None:
    data = path.read_bytes()
    for length in [*range(0, len(data), 7), len(data) - 1]:
        assert_rejected(data[:length])


def set_field(name: str, value: object) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    return lambda members, manifest: manifest.__setitem__(name, value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_field("format", 1), "it has format version 1, this qcompiler reads 4: compile the model again"),
        (set_field("format", None), "it has format version None"),
        (set_field("surprise", 1), "the manifest has the unknown field 'surprise'"),
        (set_field("target", 3), "the manifest's field 'target' is missing or no str"),
        (set_field("notes", [3]), "'notes' holds something that is no text"),
        (set_field("history", []), "the manifest does not describe the rest of the file"),
        (lambda members, manifest: manifest.pop("recipe"), "the manifest's field 'recipe' is missing"),
        (lambda members, manifest: members.__setitem__("code/more.so", b""), "'code/more.so' is not in the manifest"),
        (lambda members, manifest: members.pop("code/plan.json"), "'code/plan.json' is missing"),
        (lambda members, manifest: (members.pop("weights.safetensors"), manifest["members"].pop("weights.safetensors")), "is missing"),
        (lambda members, manifest: members.pop("manifest.sha256"), "'manifest.sha256'"),
        (lambda members, manifest: members.__setitem__("program.json", b"[1"), "'program.json' is no JSON"),
        (lambda members, manifest: members.__setitem__("program.json", b'{"a": 1}'), "'program.json' is not JSON as an artifact holds it"),
        (lambda members, manifest: members.__setitem__("program.json", b"[1e999]"), "'program.json' is no JSON"),
        (lambda members, manifest: members.__setitem__("weights.safetensors", b"12345678"), "'weights.safetensors' holds no tensors"),
    ],
)
def test_wrong_meaning_with_right_digests_is_rejected(
    path: Path, change: Callable[[dict[str, bytes], dict[str, Any]], None], message: str
) -> None:
    if "manifest.sha256" in message:
        members = dict(unpack(path.read_bytes()))
        del members["manifest.sha256"]
        assert_rejected(pack(members), "it has no member 'manifest.sha256'")
        return
    assert_rejected(rewritten(path.read_bytes(), change), message)


def test_a_member_of_unknown_kind_is_rejected(path: Path) -> None:
    def change(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        members["extra.bin"] = b""
        manifest["members"]["extra.bin"] = {}

    assert_rejected(rewritten(path.read_bytes(), change), "'extra.bin' is of no known kind")


def change_program(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
    def apply(members: dict[str, bytes], manifest: dict[str, Any]) -> None:
        description = json.loads(members["program.json"])
        change(description)
        members["program.json"] = canonical(description)

    return apply


def call_of(description: Mapping[str, Any]) -> dict[str, Any]:
    entry: dict[str, Any] = next(node for node in description["nodes"] if node["op"] == "call")
    return entry


def test_an_op_outside_of_the_stage_tables_is_rejected(path: Path) -> None:
    change = change_program(lambda d: call_of(d).update(target="os.system"))
    assert_rejected(rewritten(path.read_bytes(), change), "uses the op 'os.system', which stage integer of this qcompiler does not know")


def test_vectors_that_do_not_fit_the_program_are_rejected(
    tmp_path: Path, program: Program, compiled: CompiledProgram, vectors: tuple[TestVector, ...]
) -> None:
    (x,), (y,) = vectors[0].inputs, vectors[0].outputs
    for wrong in (TestVector((x.int(),), (y,)), TestVector((x,), (y[..., :2],)), TestVector((x, x), (y,))):
        with pytest.raises(ArtifactError, match="a test vector"):
            artifact.write(tmp_path / "wrong.qca", program, compiled, [wrong])
    assert list(tmp_path.iterdir()) == []


def test_only_verified_integer_programs_are_written(tmp_path: Path, program: Program, compiled: CompiledProgram) -> None:
    with pytest.raises(ArtifactError, match="at stage qdq: only integer programs"):
        artifact.write(tmp_path / "x.qca", program.replace(stage=Stage.QDQ), compiled, ())
    broken = edit.copy(program)
    next(edit.calls(broken.graph, torch.ops.qc.requantize.default)).update_arg(7, 300)
    edit.finish(broken.graph_module)
    with pytest.raises(VerificationError):
        artifact.write(tmp_path / "x.qca", broken, compiled, ())
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_and_no_other(
    path: Path, program: Program, compiled: CompiledProgram, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ArtifactError, match=r"cannot write .*model.qca: No space left on device"):
        artifact.write(path, program, compiled, ())
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_paths_that_cannot_be_read_or_written(tmp_path: Path, program: Program, compiled: CompiledProgram) -> None:
    with pytest.raises(ArtifactError, match=r"cannot read .*none.qca: No such file or directory; give the path of a .qca file"):
        artifact.read(tmp_path / "none.qca")
    with pytest.raises(ArtifactError, match="Is a directory"):
        artifact.read(tmp_path)
    with pytest.raises(ArtifactError, match="cannot write"):
        artifact.write(tmp_path / "no" / "folder.qca", program, compiled, ())


def test_errors_of_reading_name_the_file(tmp_path: Path) -> None:
    file = tmp_path / "x.qca"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../x", b"")
    file.write_bytes(buffer.getvalue())
    with pytest.raises(ArtifactError, match=r"x.qca is no usable artifact: the member name '../x' is not allowed"):
        artifact.read(file)
