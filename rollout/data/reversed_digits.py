"""Numbers written backwards: a second task, on which the forgetting of another one is measured.

reverse 58312 ─► ####21385
"""

from dataclasses import dataclass
from typing import ClassVar


@dataclass
class ReversedDigits:
    """The task of all numbers of `digits` digits, the first of them not zero."""

    name: ClassVar[str] = "reversed_digits"
    rule: ClassVar[str] = "backwards"

    digits: int = 5

    def __post_init__(self) -> None:
        if self.digits < 1:
            raise ValueError(f"digits={self.digits}: a number has digits; set 1 or more")

    @property
    def count(self) -> int:
        return 9 * 10 ** (self.digits - 1)

    def operands(self, index: int) -> tuple[int]:
        """Find the number at 0 ≤ index < count."""
        return (10 ** (self.digits - 1) + index,)

    def includes(self, operands: tuple[int, ...]) -> bool:
        return True

    def question(self, operands: tuple[int, ...]) -> str:
        return f"reverse {operands[0]}"

    def answer(self, operands: tuple[int, ...]) -> str:
        return str(operands[0])[::-1]

    def worked(self, operands: tuple[int, ...]) -> str:
        return f"####{self.answer(operands)}"
