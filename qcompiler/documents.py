"""Tables that are generated into documents, between two marks, so that a test can compare them with the code."""

from __future__ import annotations


def replaced(text: str, begin: str, end: str, content: str) -> str:
    """The text with ``content`` between the marks ``begin`` and ``end``, which stay."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{content}\n{end}{after}"
