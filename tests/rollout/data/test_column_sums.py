import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.data.column_sums import ColumnSums, Pattern, Sums

OPERANDS = st.tuples(st.integers(100, 999), st.integers(100, 999))


@pytest.mark.parametrize(
    ("pattern", "worked"),
    [
        (Pattern.carries, "7+6=13;5+8+1=14;4+3+1=8####843"),
        (Pattern.columns, "4+3=7;5+8=13;7+6=13####843"),
        (Pattern.swapped, "6+7=13;8+5+1=14;3+4+1=8####843"),
        (Pattern.direct, "####843"),
        (Pattern.copied, "7+6=13;5+8=13;4+3=7####843"),
        (Pattern.no_carry, "7+6=13;5+8=13;4+3=7####733"),
    ],
)
def test_worked_examples(pattern: Pattern, worked: str) -> None:
    task = ColumnSums(pattern=pattern)
    assert task.question((457, 386)) == "457+386="
    assert task.worked((457, 386)) == worked
    assert task.answer((457, 386)) == "843"


def test_a_forgotten_carry_leaves_zeros_in_front() -> None:
    assert ColumnSums(pattern=Pattern.no_carry).worked((163, 943)) == "3+3=6;6+4=10;1+9=10####006"


@given(OPERANDS, st.sampled_from([Pattern.carries, Pattern.columns, Pattern.direct, Pattern.swapped, Pattern.copied]))
def test_the_right_patterns_end_in_the_sum(operands: tuple[int, int], pattern: Pattern) -> None:
    _, answer = ColumnSums(pattern=pattern).worked(operands).split("####")
    assert int(answer) == sum(operands)


@given(OPERANDS, st.sampled_from([Pattern.carries, Pattern.columns, Pattern.no_carry, Pattern.swapped]))
def test_every_step_is_true(operands: tuple[int, int], pattern: Pattern) -> None:
    steps = ColumnSums(pattern=pattern).worked(operands).split("####")[0].split(";")
    assert len(steps) == 3
    for step in steps:
        summands, total = step.split("=")
        assert sum(map(int, summands.split("+"))) == int(total)


@given(OPERANDS)
def test_the_right_to_left_steps_add_up(operands: tuple[int, int]) -> None:
    """The last digits of the totals, and the whole of the last total, are the sum."""
    steps = ColumnSums().worked(operands).split("####")[0].split(";")
    totals = [step.split("=")[1] for step in steps]
    assert int(totals[-1] + totals[1][-1] + totals[0][-1]) == sum(operands)


@given(OPERANDS)
def test_forgotten_carries_are_wrong_exactly_where_there_are_some(operands: tuple[int, int]) -> None:
    answer = ColumnSums(pattern=Pattern.no_carry).worked(operands).split("####")[1]
    carries = any(int(a) + int(b) >= 10 for a, b in zip(*map(str, operands), strict=True))
    assert (int(answer) != sum(operands)) == carries


@given(OPERANDS)
def test_sums_are_of_one_kind_or_the_other(operands: tuple[int, int]) -> None:
    carries = (operands[0] % 100 + operands[1] % 100) // 100 == 1
    assert ColumnSums(sums=Sums.all).includes(operands)
    assert ColumnSums(sums=Sums.tens_carry).includes(operands) == carries
    assert ColumnSums(sums=Sums.tens_never_carry).includes(operands) != carries
    last_step = ColumnSums().worked(operands).split("####")[0].split(";")[-1]
    assert (last_step.count("+") == 2) == carries


def test_operands_are_all_pairs() -> None:
    task = ColumnSums(digits=2)
    pairs = [task.operands(index) for index in range(task.count)]
    assert len(set(pairs)) == 90 * 90
    assert {len(str(number)) for pair in pairs for number in pair} == {2}


def test_one_digit_has_no_tens() -> None:
    with pytest.raises(ValueError, match="digits=1"):
        ColumnSums(digits=1)
