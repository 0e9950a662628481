"""Who died is told whatever happens to the list of workers meanwhile."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from orchestration.pipeline.fleet import Fleet


@dataclass
class Dying:
    """A worker that, when it is asked, first lets others be struck off or added."""

    name: str
    dead: bool
    among: list["Dying"]
    struck: list[int] = field(default_factory=list)
    added: int = 0

    async def death_report(self) -> str | None:
        await asyncio.sleep(0)
        for place in self.struck:
            if self.among:
                self.among.pop(place % len(self.among))
        self.among.extend(Dying(f"new-{self.name}-{i}", False, self.among) for i in range(self.added))
        await asyncio.sleep(0)
        return f"{self.name} died" if self.dead else None


@given(
    deaths=st.lists(
        st.tuples(st.booleans(), st.lists(st.integers(0, 9), max_size=3), st.integers(0, 2)), min_size=1, max_size=6
    )
)
def test_reports_are_of_those_that_were_asked(deaths: list[tuple[bool, list[int], int]]) -> None:
    scorers: list[Dying] = []
    scorers += [Dying(f"teacher-{i}", *rest[:1], scorers, *rest[1:]) for i, rest in enumerate(deaths)]
    nobody = SimpleNamespace(workers=[])
    fleet = Fleet(*cast(Any, (None, nobody, SimpleNamespace(workers=scorers), nobody)))
    expected = {f"teacher-{i}": f"teacher-{i} died" for i, (dead, _, _) in enumerate(deaths) if dead}
    assert asyncio.run(fleet.death_reports()) == expected
