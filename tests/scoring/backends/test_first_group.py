import pytest

from scoring.backends.model import first_group


@pytest.mark.parametrize(
    ("lengths", "budget", "count"),
    [
        ([3, 3, 3], 9, 3),
        ([3, 3, 3], 8, 2),
        ([3, 3, 3], 2, 1),
        ([10, 1], 9, 1),
        ([1, 10, 1], 9, 1),
        ([0, 0], 1, 2),
        ([], 1, 0),
    ],
)
def test_first_group(lengths: list[int], budget: int, count: int) -> None:
    assert first_group(lengths, budget) == count
