"""The node tests of the package ``onnx``: all but those that ``node_tests.yaml`` lists with a reason pass, and those do not."""

from __future__ import annotations

import gc
import re
import zlib
from collections.abc import Iterator

import node_tests
import pytest

# A capture takes some 25 ms, and there are 1400.
PARTS = 4


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Tracing makes many small objects that die at once: looking for cycles among them takes a third of the time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_the_list_names_tests_that_exist() -> None:
    cases, listed = node_tests.cases(), node_tests.expected_failures()
    assert set(listed) <= set(cases)
    assert len(cases) - len(listed) >= 1100


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_node_tests_pass_or_are_listed(part: int, no_collections: None) -> None:
    listed, wrong = node_tests.expected_failures(), []
    for name, case in node_tests.cases().items():
        if zlib.crc32(name.encode()) % PARTS != part:
            continue
        found, group = node_tests.failure(case), listed.get(name)
        if group is None and found is not None:
            wrong.append(f"{name} fails, and is not listed: {found}")
        elif group is not None and found is None:
            wrong.append(f"{name} passes: take it off the list")
        elif group is not None and not re.search(group.message, f"{name}: {found}"):
            wrong.append(f"{name} fails, but not as listed ({group.reason}): {found}")
    assert not wrong, "\n".join(wrong)
