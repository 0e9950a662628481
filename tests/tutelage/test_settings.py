"""Settings: ranges on their fields, everything that is wrong at once, and nothing that changes once frozen."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.settings import Bounds, ConfigError, DType, Refusal, Refusals, Settings, setting


@dataclass
class Part(Settings):
    count: int = setting(3, at_least=1, meaning="how many there are")
    share: float | None = setting(None, above=0, below=1)


@dataclass
class Whole(Settings):
    part: Part = setting(Part, resume=False)
    named: dict[str, Part] = setting(dict)
    listed: list[Part] = setting(list)


def test_every_value_out_of_its_bounds_is_named_wherever_it_is() -> None:
    whole = Whole(Part(count=0), {"a": Part(share=1.0)}, [Part(), Part(count=-1, share=0.0)])
    assert [str(refusal) for refusal in whole.refusals("room.")] == [
        "room.part.count=0: must be at least 1; how many there are",
        "room.named.a.share=1.0: must be above 0 and below 1",
        "room.listed[1].count=-1: must be at least 1; how many there are",
        "room.listed[1].share=0.0: must be above 0 and below 1",
    ]
    assert not list(Whole().refusals())


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(-2, 2))
def test_bounds_are_what_they_are_called(value: float, low: float, high: float) -> None:
    assert (Bounds(at_least=low, below=high).refusal("key", value) is None) == (low <= value < high)
    assert (Bounds(above=low, at_most=high).refusal("key", value) is None) == (low < value <= high)


def test_frozen_settings_stay_and_can_be_copied() -> None:
    whole = Whole(named={"a": Part()}, listed=[Part()])
    whole.part.count = 5
    whole.freeze()
    for part in (whole.part, whole.named["a"], whole.listed[0]):
        with pytest.raises(AttributeError, match="frozen after composition: count cannot change"):
            part.count = 1
    copy = replace(whole.part, share=0.5)
    copy.count = 7
    assert (copy.count, whole.part.count, whole.part) == (7, 5, Part(count=5))


@pytest.mark.parametrize(
    ("value", "written"), [(None, "null"), (True, "true"), (DType.float32, "float32"), ("", "''"), (0.5, "0.5")]
)
def test_a_value_is_shown_as_it_is_written(value: object, written: str) -> None:
    assert str(Refusal("key", value, "is wrong")) == f"key={written}: is wrong"


def test_refusals_are_collected_over_blocks_and_raised_together() -> None:
    refusals = Refusals([Refusal("a", 1, "no")])
    with refusals.collecting():
        raise ConfigError(Refusal("b", 2, "no"), Refusal("c", 3, "no"))
    with refusals.collecting():
        pass
    with pytest.raises(ConfigError, match=r"a=1: no\nb=2: no\nc=3: no"):
        refusals.raise_all()
    Refusals().raise_all()
