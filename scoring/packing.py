"""Which requests share a forward."""

from collections.abc import Sequence


def first_group(lengths: Sequence[int], budget: int) -> int:
    """How many of the first sequences fit in one forward of `budget` tokens; a longer one runs alone.

    Order is kept, so what shares a forward depends on lengths and order only.
    """
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > budget:
            return max(count, 1)
    return len(lengths)
