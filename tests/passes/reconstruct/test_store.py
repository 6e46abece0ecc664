from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qcompiler.errors import CalibrationError
from qcompiler.passes.reconstruct.store import ValueStore


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_rows_and_batches(tmp_path: Path, dtype: torch.dtype) -> None:
    values = torch.arange(7 * 6).reshape(7, 2, 3).remainder(5).to(dtype)
    store = ValueStore(tmp_path / "values")
    for batch in values.split(3):
        store.append(batch)
    assert len(store) == 7 and store.numel == 42
    assert torch.equal(store.rows(torch.tensor([6, 0, 3])), values[[6, 0, 3]])
    assert torch.equal(torch.cat(list(store.batches(4))), values)
    rows = store.rows(torch.tensor([1]))
    store.delete()
    assert torch.equal(rows, values[[1]]) and not (tmp_path / "values").exists()


def test_samples_of_different_shapes(tmp_path: Path) -> None:
    store = ValueStore(tmp_path / "values")
    store.append(torch.zeros(2, 5))
    with pytest.raises(CalibrationError, match=r"shapes \[5\] and \[6\].*pad sequences to one length"):
        store.append(torch.zeros(2, 6))
