from __future__ import annotations

from pathlib import Path

import pytest

from qcompiler.errors import QCompilerError
from qcompiler.files import claim, replacing


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), replacing(path) as written:
        written.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with replacing(path) as written:
        written.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_folder_belongs_to_one_piece_of_work(tmp_path: Path) -> None:
    claim(tmp_path / "work", "ab")
    claim(tmp_path / "work", "ab")
    with pytest.raises(QCompilerError, match="holds the work of another program, other data or other options: delete the folder"):
        claim(tmp_path / "work", "cd")
    (tmp_path / "file").write_text("")
    with pytest.raises(QCompilerError, match="checkpoint '.*file'.*: give a folder that can be written, or delete it"):
        claim(tmp_path / "file", "ab")
