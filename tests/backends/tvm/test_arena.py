from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from qcompiler.backends.tvm.arena import SLACK, Lifetime, place, place_all
from qcompiler.backends.tvm.views import Storage

LIFETIMES = st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 20), st.integers(0, 5)), max_size=20)


@given(LIFETIMES)
def test_values_alive_together_do_not_overlap(items: list[tuple[int, int, int]]) -> None:
    lifetimes = [Lifetime(Storage("arena", size), first, first + length) for size, first, length in items]
    total = place(lifetimes)
    for lifetime in lifetimes:
        storage = lifetime.storage
        assert storage.offset % 64 == 0 and storage.offset >= SLACK and storage.offset + storage.size <= total - SLACK
        for other in lifetimes:
            if other is not lifetime and other.overlaps(lifetime):
                assert storage.offset + storage.size <= other.storage.offset or other.storage.offset + other.storage.size <= storage.offset


def test_a_chain_needs_its_two_largest_neighbours() -> None:
    sizes = [640, 1280, 320, 1280, 640]
    lifetimes = [Lifetime(Storage("arena", size), step, step + 1) for step, size in enumerate(sizes)]
    assert place(lifetimes) == 2 * SLACK + 640 + 1280


def test_parameters_never_share() -> None:
    storages = [Storage("parameters", 10), Storage("parameters", 100)]
    assert place_all(storages) == 2 * SLACK + 64 + 128
    assert storages[1].offset == SLACK and storages[0].offset == SLACK + 128
