"""Where workers go by what nodes have free: never more than fits, together or apart; and what is said where none is."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tutelage.placement import ClusterNode, NoRoom, Resources, choose_seats
from tutelage.settings import Placement


def node(name: str, cpus: float, gpus: float = 0) -> ClusterNode:
    return ClusterNode(name, f"10.0.0.{name}", cpus, gpus)


def needs(cpus: float, gpus: float = 0) -> Resources:
    return Resources(cpus, gpus, threads=1)


THREE = [node("1", 4), node("2", 2), node("3", 3)]


@pytest.mark.parametrize(
    ("placement", "count", "expected"),
    [
        (Placement.pack, 2, {"2": 2}),  # the smallest that holds both
        (Placement.pack, 4, {"1": 4}),
        (Placement.pack, 6, {"1": 4, "2": 2}),  # then likewise
        (Placement.spread, 3, {"1": 1, "2": 1, "3": 1}),
        (Placement.spread, 2, {"1": 1, "3": 1}),  # where most is free
        (Placement.spread, 9, {"1": 4, "2": 2, "3": 3}),
        (Placement.near, 2, {"2": 2}),
        (Placement.away, 3, {"1": 2, "3": 1}),
    ],
)
def test_workers_go_where_they_are_asked_to(placement: Placement, count: int, expected: dict[str, int]) -> None:
    assert Counter(choose_seats(THREE, needs(1), count, placement, {"2"})) == expected


@pytest.mark.parametrize(
    ("placement", "need", "count", "words"),
    [
        (Placement.spread, needs(5), 1, "1 times 5 CPUs are asked for; free there: 10.0.0.1 4 CPUs"),
        (Placement.near, needs(1), 3, "3 times 1 CPUs are asked for beside the learner; free there: 10.0.0.2 2 CPUs"),
        (Placement.away, needs(4), 2, "away from the learner; free there: 10.0.0.1 4 CPUs, 0 GPUs; 10.0.0.3"),
        (Placement.pack, needs(1, 0.5), 1, "1 CPUs and 0.5 GPUs"),
    ],
)
def test_what_is_missing_is_said(placement: Placement, need: Resources, count: int, words: str) -> None:
    with pytest.raises(NoRoom) as caught:
        choose_seats(THREE, need, count, placement, {"2"})
    assert words in str(caught.value)


def test_away_from_a_learner_that_is_nowhere_yet_is_nowhere() -> None:
    with pytest.raises(NoRoom, match="no such node is there"):
        choose_seats(THREE, needs(1), 1, Placement.away, set())


def test_shares_of_a_gpu_add_up() -> None:
    gpu = node("1", 8, 1)
    assert choose_seats([gpu], needs(0, 0.3), 3, Placement.pack, set()) == ["1"] * 3
    assert gpu.without(needs(2, 0.3), 2) == node("1", 4, 0.4)
    with pytest.raises(NoRoom):
        choose_seats([gpu], needs(0, 0.3), 4, Placement.pack, set())


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 4)), min_size=1, max_size=5),
    st.integers(0, 3),
    st.sampled_from([0, 0.25, 0.5, 1]),
    st.integers(1, 6),
    st.sampled_from([Placement.pack, Placement.spread]),
)
def test_no_node_gets_more_than_it_holds(
    sizes: list[tuple[int, int]], cpus: int, gpus: float, count: int, placement: Placement
) -> None:
    nodes = [node(str(i), *size) for i, size in enumerate(sizes)]
    need = needs(cpus, gpus)
    if sum(n.holds(need) for n in nodes) < count:
        with pytest.raises(NoRoom):
            choose_seats(nodes, need, count, placement, set())
        return
    taken = Counter(choose_seats(nodes, need, count, placement, set()))
    assert taken.total() == count
    assert all(taken[n.id] * cpus <= n.cpus and taken[n.id] * gpus <= n.gpus for n in nodes)
