from __future__ import annotations

import gc
import os
import re
import zlib
from collections.abc import Iterator

import node_tests
import pytest

# A capture takes some 25 ms, and there are 1400: by default every second one is run.
ALL = "QCOMPILER_ALL_NODE_TESTS" in os.environ


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Tracing makes many small objects that die at once: looking for cycles among them takes a third of the time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _is_run(name: str) -> bool:
    return ALL or zlib.crc32(name.encode()) % 2 == 0


@pytest.mark.slow
def test_node_tests_pass_or_are_listed(no_collections: None) -> None:
    cases, listed = node_tests.cases(), node_tests.expected_failures()
    assert set(listed) <= set(cases), "a test that the package onnx does not have"
    assert len(cases) - len(listed) >= 950
    wrong = []
    for name, case in cases.items():
        if not _is_run(name):
            continue
        found, group = node_tests.failure(case), listed.get(name)
        if group is None and found is not None:
            wrong.append(f"{name} fails, and is not listed: {found}")
        elif group is not None and found is None:
            wrong.append(f"{name} passes: take it off the list")
        elif group is not None and not re.search(group.message, f"{name}: {found}"):
            wrong.append(f"{name} fails, but not as listed ({group.reason}): {found}")
    assert not wrong, "\n".join(wrong)
