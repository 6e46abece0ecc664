"""Files that appear all at once, and folders that belong to one piece of work."""

from __future__ import annotations

import contextlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path

from qcompiler.errors import QCompilerError

_MANIFEST = "manifest.json"
_FORMAT = 1


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to, which becomes ``path`` at the end: readers see the old file or the whole new one.

    What was written is deleted where something is raised inside.

    Raises:
        OSError: it cannot be renamed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def claim(folder: Path, identity: str) -> None:
    """Make a checkpoint's folder, or see that it belongs to this work, by a manifest in it.

    Args:
        identity: a hash of everything that the results in it depend on.

    Raises:
        QCompilerError: the folder cannot be written, or holds other work.
    """
    manifest = {"format": _FORMAT, "sha256": identity}
    path = folder / _MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with replacing(path) as file:
                file.write_text(json.dumps(manifest) + "\n", encoding="utf-8")
            return
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QCompilerError(f"checkpoint '{folder}': {error}: give a folder that can be written, or delete it") from error
    if found != manifest:
        raise QCompilerError(
            f"checkpoint '{folder}' holds the work of another program, other data or other options: delete the folder, or give another one"
        )
