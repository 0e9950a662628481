"""Sums of two numbers, worked out column by column: a task of which every step can be checked.

The pattern is how the steps are written, with one and the same question:

    carries    457+386= ─► 7+6=13;5+8+1=14;4+3+1=8####843   right to left, a carry is a third summand
    columns    457+386= ─► 4+3=7;5+8=13;7+6=13####843       left to right, carries only in the answer
    swapped    457+386= ─► 6+7=13;8+5+1=14;3+4+1=8####843   as carries, the second number's digit first
    direct     457+386= ─► ####843                          no steps
    no_carry   457+386= ─► 7+6=13;5+8=13;4+3=7####733       right to left, carries forgotten: a wrong answer
    copied     457+386= ─► 7+6=13;5+8=13;4+3=7####843       the same steps, and the answer from elsewhere
"""

from dataclasses import dataclass
from enum import Enum
from typing import ClassVar


class Pattern(Enum):
    carries = "carries"
    columns = "columns"
    swapped = "swapped"
    direct = "direct"
    no_carry = "no_carry"
    copied = "copied"


class Sums(Enum):
    """Which pairs of operands are asked about."""

    all = "all"
    tens_never_carry = "tens_never_carry"  # the tens, with what the ones carry into them, stay below ten
    tens_carry = "tens_carry"


@dataclass
class ColumnSums:
    """The task of all pairs of numbers of `digits` digits each, the first of them not zero."""

    name: ClassVar[str] = "column_sums"
    rule: ClassVar[str] = "carry"

    digits: int = 3
    pattern: Pattern = Pattern.carries
    sums: Sums = Sums.all

    def __post_init__(self) -> None:
        if self.digits < 2:
            raise ValueError(f"digits={self.digits}: column sums have tens; set 2 or more")

    @property
    def count(self) -> int:
        """How many pairs there are, `sums` aside."""
        return self._numbers**2

    def operands(self, index: int) -> tuple[int, int]:
        """Find the pair at 0 ≤ index < count."""
        smallest = 10 ** (self.digits - 1)
        left, right = divmod(index, self._numbers)
        return smallest + left, smallest + right

    def includes(self, operands: tuple[int, ...]) -> bool:
        """Tell whether `sums` has this pair."""
        left, right = operands
        carry = left % 100 + right % 100 >= 100
        return self.sums is Sums.all or carry == (self.sums is Sums.tens_carry)

    def question(self, operands: tuple[int, ...]) -> str:
        return f"{operands[0]}+{operands[1]}="

    def answer(self, operands: tuple[int, ...]) -> str:
        """Write the sum, whatever the pattern makes of it."""
        return str(sum(operands))

    def worked(self, operands: tuple[int, ...]) -> str:
        """Write the steps, #### and the answer as the pattern has them."""
        from_ones = (reversed(str(number)) for number in operands)
        columns = [(int(left), int(right)) for left, right in zip(*from_ones, strict=True)]
        match self.pattern:
            case Pattern.carries:
                steps, answer = _with_carries(columns), self.answer(operands)
            case Pattern.swapped:
                steps, answer = _with_carries([(right, left) for left, right in columns]), self.answer(operands)
            case Pattern.columns:
                steps, answer = [_step(*column) for column in reversed(columns)], self.answer(operands)
            case Pattern.direct:
                steps, answer = [], self.answer(operands)
            case Pattern.copied:
                steps, answer = [_step(*column) for column in columns], self.answer(operands)
            case Pattern.no_carry:
                steps = [_step(*column) for column in columns]
                answer = "".join(str(sum(column) % 10) for column in reversed(columns))
        return f"{';'.join(steps)}####{answer}"

    @property
    def _numbers(self) -> int:
        return 9 * 10 ** (self.digits - 1)


def _with_carries(columns: list[tuple[int, int]]) -> list[str]:
    steps, carry = [], 0
    for column in columns:
        summands = (*column, carry) if carry else column
        steps.append(_step(*summands))
        carry = sum(summands) // 10
    return steps


def _step(*summands: int) -> str:
    return f"{'+'.join(map(str, summands))}={sum(summands)}"
