"""A run over three nodes, the learner's ranks on two and the engine on the third; and what becomes of lost nodes."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.nodes import Nodes, booted, why_not
from tests.integration.launching import ONE_THREAD, Launched, tiny_run_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200), pytest.mark.faults]

HEAD, SECOND, ENGINE = range(3)  # ranks on the first two
SETTINGS = (
    "cluster.address=auto", "cluster.placement.learner=spread", "cluster.placement.engines=away", "learner.ranks=2",
    "learner.zero_stage=2", "pipeline.max_staleness=0", "pipeline.steps=30", "checkpoint.every=5",
    "scoring.max_tokens_per_forward=1", "preflight.enabled=false",
)  # fmt: skip
WHERE = "three nodes, step 7 of 30"
WHERE = "three nodes, step 7 of 30"
Start = Callable[..., Launched]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    if reason := why_not():
        pytest.skip(reason)
    with booted(tmp_path_factory.mktemp("nodes"), (3, 2, 1), ONE_THREAD) as made:
        yield made


@pytest.fixture(scope="module")
def submit(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path, tiny_untied: Path) -> Start:
    settings = tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_untied)

    def start(run_dir: Path, *overrides: str) -> Launched:
        through = [*nodes.head.enter(), "ray", "job", "submit", "--"]
        return Launched(run_dir, *settings, *SETTINGS, *overrides, environment=nodes.environment, through=through)

    return start


@pytest.fixture(scope="module")
def undisturbed(submit: Start, tmp_path_factory: pytest.TempPathFactory) -> Launched:
    run = submit(tmp_path_factory.mktemp("undisturbed") / "run")
    assert run.wait(500) == 0, run.text()
    return run


def assert_same(run: Launched, undisturbed: Launched) -> None:
    assert run.steps() == undisturbed.steps() == list(range(1, 31))
    assert [r["train/loss"] for r in run.step_rows()] == [r["train/loss"] for r in undisturbed.step_rows()]
    ours, theirs = (load_file(r.run_dir / "final" / "model.safetensors") for r in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_run_over_three_nodes_has_the_logs_of_all(undisturbed: Launched) -> None:
    logs = {path.stem for path in (undisturbed.run_dir / "logs").iterdir() if path.stat().st_size}
    assert {"learner-0", "learner-1", "rollout-0"} <= logs
    assert undisturbed.summary()["restarts"] == {}


def test_the_engine_s_node_is_waited_for(
    nodes: Nodes, submit: Start, undisturbed: Launched, tmp_path: Path, matrix_row: list[str]
) -> None:
    matrix_row += ["node of the engine", "power fails, comes back", WHERE, "waited for; same"]
    run = submit(tmp_path / "run")
    run.wait_for_step(7)
    nodes.nodes[ENGINE].kill()
    nodes.wait_for(2, 120)
    nodes.boot(ENGINE)
    assert run.wait(500) == 0, run.text()
    assert run.summary()["restarts"] == {"rollout": 1}
    assert_same(run, undisturbed)


@pytest.mark.parametrize("seconds", [5, 60])
def test_a_link_that_is_down_for_a_while(
    seconds: int, nodes: Nodes, submit: Start, undisturbed: Launched, tmp_path: Path, matrix_row: list[str]
) -> None:
    matrix_row += ["node of the engine", f"link down for {seconds} s", WHERE, "same"]
    run = submit(tmp_path / "run")
    run.wait_for_step(7)
    nodes.nodes[ENGINE].cut(seconds)
    assert run.wait(500) == 0, run.text()
    nodes.wait_for(3, 120)
    assert_same(run, undisturbed)


def test_a_rank_whose_node_is_lost_goes_on_elsewhere(
    nodes: Nodes, submit: Start, undisturbed: Launched, tmp_path: Path, matrix_row: list[str]
) -> None:
    matrix_row += ["node of a learner rank", "power fails, for good", WHERE, "the rank goes to another node; same"]
    run = submit(tmp_path / "run")
    run.wait_for_step(7)
    nodes.nodes[SECOND].kill()
    assert run.wait(500) == 0, run.text()
    assert run.summary()["restarts"]["run"] == 1
    assert_same(run, undisturbed)


def test_a_node_that_joins_gets_an_engine_and_takes_it_away_again(
    nodes: Nodes, submit: Start, tmp_path: Path, matrix_row: list[str]
) -> None:
    """Comes last: the other nodes are down."""
    result = "an engine more as soon as it is up, then one less; every step once"
    matrix_row += ["node of a second engine", "joins, then power fails", "rollout.max_workers=2", result]
    for number in (SECOND, ENGINE):
        nodes.nodes[number].kill()
    nodes.wait_for(1, 120)
    alone = ("rollout.cpus_per_worker=2", "learner.ranks=1", "cluster.placement.engines=spread")
    run = submit(tmp_path / "run", *alone, "rollout.max_workers=2", "pipeline.steps=800", "checkpoint.every=0")
    run.wait_for_step(3)
    nodes.boot(SECOND)
    nodes.wait_for(2, 120)
    log = run.run_dir / "run.log"
    run.wait_until(lambda: "rollout-1 joins: there is room for it" in log.read_text(), 240)  # an engine's own start
    then = len(run.steps())
    nodes.nodes[SECOND].kill()
    run.wait_for_step(then + 20)
    assert run.wait(900) == 0, run.text()
    assert run.steps() == list(range(1, 801)) and run.summary()["restarts"] in ({}, {"rollout": 1})
