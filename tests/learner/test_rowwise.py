"""Row-wise operations against their plain forms."""

import pytest
import torch

from learner import rowwise
from learner.rowwise import log_softmax_, row_blocks, row_dots, write_rows


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks for a few rows."""
    monkeypatch.setitem(rowwise._BLOCK_NUMBERS, "cpu", 1000)


@pytest.mark.parametrize(("rows", "width"), [(0, 10), (1, 10), (7, 300), (7, 5000)])
def test_blocks_cover_every_row_once(rows: int, width: int) -> None:
    covered = [row for block in row_blocks(torch.empty(rows, width)) for row in range(block.start, block.stop)]
    assert covered == list(range(rows))


@pytest.mark.parametrize("rows", [0, 1, 9])
def test_log_softmax_and_dots(rows: int) -> None:
    torch.manual_seed(0)
    logits, other = 30 * torch.randn(rows, 400), torch.randn(rows, 400)
    torch.testing.assert_close(row_dots(logits, other), (logits * other).sum(-1))
    expected = logits.log_softmax(-1).clamp(min=-20.0)
    result = log_softmax_(logits, -20.0)
    assert result is logits
    torch.testing.assert_close(result, expected)


def test_rows_are_written_where_they_belong() -> None:
    values: dict[str, torch.Tensor] = {}
    write_rows(values, slice(2, 3), {"loss": torch.tensor([3.0])}, 3)
    write_rows(values, slice(0, 2), {"loss": torch.tensor([1.0, 2.0])}, 3)
    assert values["loss"].tolist() == [1.0, 2.0, 3.0]
