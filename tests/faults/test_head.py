"""A head that is lost and comes back, on a cluster whose tables are in a Redis: the run does not notice."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.nodes import Nodes, booted, why_not
from tests.integration.launching import ONE_THREAD, Launched, tiny_run_settings

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200), pytest.mark.faults]

DRIVER, ENGINE = 1, 2
SETTINGS = (
    "cluster.address=auto", "cluster.placement.engines=away", "pipeline.max_staleness=0", "pipeline.steps=300",
    "checkpoint.every=50", "evaluation.every=0", "scoring.max_tokens_per_forward=1", "preflight.enabled=false",
)  # fmt: skip


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    if reason := why_not("redis-server"):
        pytest.skip(reason)
    with booted(tmp_path_factory.mktemp("nodes"), (0, 3, 1), ONE_THREAD, has_store=True) as made:
        yield made


@pytest.fixture(scope="module")
def launch(
    nodes: Nodes, tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path, tiny_untied: Path
) -> Callable[[Path], Launched]:
    settings = tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_untied)

    def start(run_dir: Path) -> Launched:
        through = nodes.nodes[DRIVER].enter()  # what runs on the head goes with it
        return Launched(run_dir, *settings, *SETTINGS, environment=nodes.environment, through=through)

    return start


def test_a_head_with_a_store_may_go_and_come_back(
    nodes: Nodes, launch: Callable[[Path], Launched], tmp_path: Path, matrix_row: list[str]
) -> None:
    where = "tables in a Redis, driver on another node"
    matrix_row += ["head node, gcs_server with it", "power fails, comes back", where, "nothing is started again; same"]
    undisturbed = launch(tmp_path / "undisturbed")
    assert undisturbed.wait(500) == 0, undisturbed.text()
    run = launch(tmp_path / "run")
    run.wait_for_step(20)
    nodes.head.kill()
    then = len(run.steps())
    run.wait_for_step(then + 5)  # nobody needs the head to go on
    nodes.boot(0)
    assert run.wait(500) == 0, run.text()
    assert run.summary()["restarts"] == {} and run.steps() == undisturbed.steps() == list(range(1, 301))
    assert [r["train/loss"] for r in run.step_rows()] == [r["train/loss"] for r in undisturbed.step_rows()]
    ours, theirs = (load_file(r.run_dir / "final" / "model.safetensors") for r in (run, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
