from __future__ import annotations

import io
import stat
import zipfile

import pytest

from qcompiler.artifact.container import check_name, pack, unpack
from qcompiler.errors import ArtifactError

MEMBERS = {"weights.bin": b"abc" * 50, "manifest.json": b"{}", "code/a.so": b"", "manifest.sha256": b"00"}


def zipped(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return buffer.getvalue()


def test_round_trip_in_a_fixed_order() -> None:
    data = pack(MEMBERS)
    assert list(unpack(data)) == ["manifest.json", "manifest.sha256", "code/a.so", "weights.bin"]
    assert unpack(data) == MEMBERS
    assert pack(dict(reversed(MEMBERS.items()))) == data


def test_any_unzip_program_reads_it() -> None:
    with zipfile.ZipFile(io.BytesIO(pack(MEMBERS))) as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == MEMBERS
        info = archive.getinfo("code/a.so")
    assert info.date_time == (1980, 1, 1, 0, 0, 0) and info.external_attr >> 16 == stat.S_IFREG | 0o644


@pytest.mark.parametrize(
    "name",
    ["../evil", "a/../evil", "/etc/passwd", "a//b", "a/", "", ".hidden", "..", "C:\\x", "a\\b", "a\nb", "a\0b", "ä", "a" * 201, "a/./b"],
)
def test_names_that_leave_the_archive_are_rejected(name: str) -> None:
    with pytest.raises(ArtifactError, match="is not allowed: members are plain relative paths"):
        check_name(name)
    with pytest.raises(ArtifactError):
        pack({name: b""})


@pytest.mark.parametrize("name", ["../evil", "/etc/passwd", "code/../../evil"])
def test_archives_of_others_with_such_names_are_rejected(name: str) -> None:
    with pytest.raises(ArtifactError, match="plain relative paths"):
        unpack(zipped((name, b"x")))


def test_a_symbolic_link_is_rejected() -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(ArtifactError, match="'link' is a symbolic link"):
        unpack(zipped((link, b"/etc/passwd")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicates_are_rejected() -> None:
    with pytest.raises(ArtifactError, match="two members 'a'"):
        unpack(zipped(("a", b"1"), ("a", b"2")))


def test_compressed_members_are_rejected_unread() -> None:
    bomb = zipped(("a", bytes(50_000_000)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ArtifactError, match="'a' is compressed"):
        unpack(bomb)


def test_members_that_claim_more_than_the_file_holds_are_rejected_unread() -> None:
    data = bytearray(pack({"a": b"123"}))
    directory = data.index(b"PK\1\2")
    data[directory + 20 : directory + 28] = (1 << 30).to_bytes(4, "little") * 2
    with pytest.raises(ArtifactError, match="claims 1073741824 bytes, more than the file can hold"):
        unpack(bytes(data))


def test_too_many_members_are_rejected() -> None:
    members = {f"m{index}": b"" for index in range(1001)}
    with pytest.raises(ArtifactError, match="at most 1000 members"):
        pack(members)
    with pytest.raises(ArtifactError, match="1001 members"):
        unpack(zipped(*members.items()))


def test_the_same_content_zipped_by_others_is_rejected() -> None:
    with pytest.raises(ArtifactError, match="the file was changed near byte 0"):
        unpack(zipped(*MEMBERS.items()))


@pytest.mark.parametrize("surplus", [b"\0", b"PK\5\6" + bytes(18)])
def test_bytes_before_or_after_the_archive_are_rejected(surplus: bytes) -> None:
    for data in (pack(MEMBERS) + surplus, surplus + pack(MEMBERS)):
        with pytest.raises(ArtifactError):
            unpack(data)


def test_a_comment_is_rejected() -> None:
    data = pack(MEMBERS)
    with pytest.raises(ArtifactError):
        unpack(data[:-2] + b"\2\0hi")


@pytest.mark.parametrize("data", [b"", b"PK", b"not a zip at all", bytes(1000)])
def test_what_is_no_zip_is_rejected(data: bytes) -> None:
    with pytest.raises(ArtifactError, match="no complete zip archive"):
        unpack(data)


def test_every_bit_of_headers_counts() -> None:
    """Contents are protected by digests one level up; here every other byte is changed, in every bit."""
    data = pack(MEMBERS)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(ArtifactError):
                unpack(bytes(changed))
