"""The largest numbers of each row, with ties, remainders and any k."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tutelage.lm.top_k import top_k


@given(
    rows=st.integers(0, 5),
    numbers=st.integers(1, 700),
    share=st.floats(0, 1),
    levels=st.sampled_from([2, 30, 10**6]),  # few levels make many ties
    seed=st.integers(0, 999),
    in_order=st.booleans(),
)
def test_as_a_selection_over_the_whole_row(
    rows: int, numbers: int, share: float, levels: int, seed: int, in_order: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, levels, (rows, numbers), generator=generator).float()
    k = max(1, round(share * share * numbers))
    largest, places = top_k(values, k, in_order)
    torch.testing.assert_close(values.gather(1, places), largest, atol=0, rtol=0)
    ordered = largest if in_order else largest.sort(-1, descending=True).values
    torch.testing.assert_close(ordered, values.topk(k).values, atol=0, rtol=0)
    assert all(len(set(row)) == k for row in places.tolist())


@pytest.mark.parametrize("place", [0, 63, 64, 49_151, 49_152, 49_159])
def test_one_number_stands_out_wherever_it_is(place: int) -> None:
    """Also behind the last whole block."""
    values = torch.full((2, 49_160), -5.0)
    values[1, place] = 3.0
    found, places = top_k(values, 16)
    assert places[1, 0] == place and found[1, 0] == 3.0 and found[0, 0] == -5.0
