"""A zip archive with one byte sequence for each content: stored members, fixed order, fixed times, nothing between or after them.

``pack`` writes the bytes itself, so that they depend on no library version. ``unpack`` accepts what ``pack`` would write for the
content that it finds, and nothing else: padding, comments, extra fields, flags or compression have no place to hide. Any unzip
program reads the result.
"""

from __future__ import annotations

import io
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping

from qcompiler.errors import ArtifactError

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"

_FIRST = (MANIFEST, DIGEST)
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")
_LONGEST_NAME = 200
_MOST_MEMBERS = 1000
_LARGEST_FILE = (1 << 32) - 1  # past it zip needs other headers
_MADE_BY_UNIX, _VERSION, _REGULAR_FILE = 3 << 8 | 20, 20, (stat.S_IFREG | 0o644) << 16
_MIDNIGHT, _JANUARY_1980 = 0, 1 << 5 | 1  # the earliest time that zip can tell
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_END = struct.Struct("<4s4H2IH")


def pack(members: Mapping[str, bytes]) -> bytes:
    """The archive. Members come in a fixed order: the manifest, its digest, then the others by name."""
    for name in members:
        check_name(name)
    if len(members) > _MOST_MEMBERS or sum(map(len, members.values())) > _LARGEST_FILE // 2:
        raise ArtifactError(f"an artifact holds at most {_MOST_MEMBERS} members and 2 GiB: compile a smaller part of the model")
    return b"".join(_pieces(members))


def unpack(data: bytes) -> dict[str, bytes]:
    """The members by name.

    Raises:
        ArtifactError: the data is no zip, or not byte for byte what ``pack`` gives for the members found in it.
    """
    if len(data) > _LARGEST_FILE:
        raise ArtifactError("the file is larger than any artifact")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            _check_listing(archive.infolist(), len(data))
            members = {info.filename: archive.read(info) for info in archive.infolist()}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, struct.error, zlib.error) as error:
        raise ArtifactError(f"the file is no complete zip archive ({error})") from error
    _check_canonical(members, data)
    return members


def check_name(name: str) -> None:
    """Raise ArtifactError unless the name is a plain relative path: no ``..``, no absolute path, no drive, no control character."""
    if len(name) > _LONGEST_NAME or _NAME.fullmatch(name) is None:
        raise ArtifactError(f"the member name {name[:_LONGEST_NAME]!r} is not allowed: members are plain relative paths")


def _check_listing(infos: list[zipfile.ZipInfo], size: int) -> None:
    """Judge the directory before any member is read."""
    if len(infos) > _MOST_MEMBERS:
        raise ArtifactError(f"the file has {len(infos)} members, more than any artifact")
    seen: set[str] = set()
    for info in infos:
        check_name(info.orig_filename)
        if info.filename in seen:
            raise ArtifactError(f"the file has two members '{info.filename}'")
        if stat.S_ISLNK(info.external_attr >> 16):
            raise ArtifactError(f"the member '{info.filename}' is a symbolic link")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ArtifactError(f"the member '{info.filename}' is compressed, members of an artifact never are")
        if info.file_size != info.compress_size or info.file_size > size:
            raise ArtifactError(f"the member '{info.filename}' claims {info.file_size} bytes, more than the file can hold")
        seen.add(info.filename)


def _check_canonical(members: Mapping[str, bytes], data: bytes) -> None:
    offset = 0
    view = memoryview(data)
    for piece in _pieces(members):
        if view[offset : offset + len(piece)] != piece:
            raise ArtifactError(f"the file was changed near byte {offset}: its zip headers are not those of an artifact")
        offset += len(piece)
    if offset != len(data):
        raise ArtifactError(f"the file has {len(data) - offset} bytes after its end")


def _pieces(members: Mapping[str, bytes]) -> Iterator[bytes]:
    """The archive in order: header and content of each member, the directory, the end record."""
    directory: list[bytes] = []
    offset = 0
    for name in sorted(members, key=lambda name: (name not in _FIRST, name)):
        content, label = members[name], name.encode("ascii")
        size, checksum = len(content), zlib.crc32(content)
        times = (_MIDNIGHT, _JANUARY_1980)
        header = _LOCAL_HEADER.pack(b"PK\3\4", _VERSION, 0, 0, *times, checksum, size, size, len(label), 0) + label
        entry = (b"PK\1\2", _MADE_BY_UNIX, _VERSION, 0, 0, *times, checksum, size, size, len(label), 0, 0, 0, 0, _REGULAR_FILE, offset)
        directory.append(_CENTRAL_HEADER.pack(*entry) + label)
        yield header
        yield content
        offset += len(header) + size
    index = b"".join(directory)
    yield index
    yield _END.pack(b"PK\5\6", 0, 0, len(members), len(members), len(index), offset, 0)
