"""The Python code in the documentation runs as it stands, block after block, on the small CNN of the digits example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from digits_models import load_data, load_network

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#:]+)\)")


@pytest.mark.parametrize("document", ["README.md", "docs/getting-started.md"])
def test_code_blocks_run(document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = load_data()
    names: dict[str, object] = {
        "model": load_network("cnn"),
        "example": data.test_images[:2],
        "samples": data.train_images[:50].split(1),
        "images": data.test_images[:5],
    }
    monkeypatch.chdir(tmp_path)
    blocks = BLOCK.findall((ROOT / document).read_text(encoding="utf-8"))
    assert blocks
    for block in blocks:
        exec(compile(block, document, "exec"), names)  # the repository's own documentation


def test_links_lead_somewhere() -> None:
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in LINK.findall(document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"
