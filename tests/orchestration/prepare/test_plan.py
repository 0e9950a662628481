"""Whether a cluster's nodes can hold the workers of a run, each on one of them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from orchestration.prepare.plan import join_cluster, learner_placement
from orchestration.prepare.roles import Roles
from scoring.group import Scorer
from tests.factories import configured
from tutelage.placement import ClusterNode
from tutelage.settings import ConfigError, Placement


def nodes(*cpus: float, gpus: float = 0) -> list[ClusterNode]:
    return [ClusterNode(f"id-{i}", f"10.0.0.{i}", free, gpus) for i, free in enumerate(cpus)]


def refused(there: list[ClusterNode], *overrides: str) -> str:
    config = configured("cluster.address=auto", *overrides)
    roles = Roles({"teacher": Scorer("scoring", "path", config.teacher)})
    session: Any = SimpleNamespace(cluster=lambda _: SimpleNamespace(nodes=lambda free: there))
    try:
        join_cluster(config, roles, cast(Any, session))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("there", "overrides", "words"),
    [
        (nodes(1, 1, 1), (), ""),
        (nodes(0.5, 1, 0.4, 0.4), (), "scoring.workers=1: 1 times 0.5 CPUs are asked for; free there: 10.0.0.0 0 CPUs"),
        (nodes(1, 0.5), (), "rollout.workers=1: the workers ask for 2 CPUs and the cluster has 1.5"),
        (nodes(2, 2), ("rollout.cpus_per_worker=2",), ""),  # ranks and teachers share a node
        (nodes(3, 3), ("rollout.cpus_per_worker=4",), "rollout.workers=1: 1 times 4 CPUs are asked for"),
        (nodes(4), ("cluster.placement.engines=away",), "away from the learner; free there: no such node is there"),
        (nodes(1, 4), ("cluster.placement.engines=near",), ""),
        (nodes(1, 1, 1), ("cluster.placement.engines=near",), "asked for beside the learner"),
        (nodes(2, 2), ("learner.weight_transfer=shared_memory",), "reaches engines of the learner's node only"),
        (nodes(4), ("learner.weight_transfer=shared_memory",), ""),
    ],
)
def test_what_no_node_can_hold_is_refused(there: list[ClusterNode], overrides: tuple[str, ...], words: str) -> None:
    text = refused(there, *overrides)
    assert words in text if words else text == ""


@pytest.mark.parametrize(("there", "expected"), [((3, 2, 1), Placement.spread), ((3, 1), Placement.pack)])
def test_ranks_leave_a_node_to_engines_that_belong_away_from_them(
    there: tuple[float, ...], expected: Placement
) -> None:
    config = configured(
        "learner.ranks=2", "cluster.placement.learner=spread", "cluster.placement.engines=away", "cluster.address=auto"
    )
    assert learner_placement(config, Roles(), nodes(*there)) is expected
