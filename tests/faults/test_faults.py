"""Real runs in which something dies, hangs or fails at a named call: they end as if nothing had happened."""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from tests.faults.plans import ENGINE, FAULTS, ROLLOUT, RUN, STEP, Fault
from tests.integration.launching import KeptWorkers, Run, Series, injected, tiny_run_settings
from tests.scoring.backends.server import endpoints
from tests.scoring.backends.server.endpoints import FakeEndpoint, dropped, silent, text, trickling

pytestmark = pytest.mark.timeout(900)

REPEATABLE = (
    "pipeline.max_staleness=0", "pipeline.steps=5", "checkpoint.every=2", "scoring.max_tokens_per_forward=1",
    "preflight.enabled=false", "cluster.cpus=3",
)  # fmt: skip
# What says how long something took, or how often it was tried.
_OF_THE_COURSE = ("time/", "rollout/restarts", "teacher/restarts", "teacher/retries", "run/restarts")
_NUMBERS = count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the processes of a run look for the fault that is planned."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def workers(folder: Path) -> Iterator[KeptWorkers]:
    workers = KeptWorkers(injected(folder))
    yield workers
    workers.close()


@pytest.fixture(scope="module")
def series(
    workers: KeptWorkers, tmp_path_factory: pytest.TempPathFactory, tiny_tied: Path, tiny_untied: Path
) -> Series:
    settings = tiny_run_settings(tmp_path_factory.mktemp("data"), tiny_tied, tiny_untied)
    return Series(workers, [*settings, *REPEATABLE])


@pytest.fixture(scope="module")
def run_with(series: Series, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    def run(fault: Fault, *overrides: str) -> Run:
        plan = {"id": next(_NUMBERS), **{name: getattr(fault, name) for name in ("point", "call", "action", "where")}}
        (folder / "fault.json").write_text(json.dumps(plan))
        try:
            overrides = (*fault.set_up, *fault.overrides, *overrides)
            return series.run(tmp_path_factory.mktemp("run") / "run", *overrides)
        finally:
            calls = folder / f"calls-{plan['id']}"
            assert calls.is_file() and calls.stat().st_size >= fault.call, "the fault never came"
            (folder / "fault.json").unlink()

    return run


@pytest.fixture(scope="module")
def undisturbed(series: Series, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    @cache
    def run(*set_up: str) -> Run:
        return series.run(tmp_path_factory.mktemp("undisturbed") / "run", *set_up)

    return run


def results(run: Run) -> list[dict[str, Any]]:
    """All rows without what tells of the course that the run took."""
    return [{name: x for name, x in row.items() if not name.startswith(_OF_THE_COURSE)} for row in run.rows()]


def assert_same(run: Run, undisturbed: Run) -> None:
    assert run.steps() == undisturbed.steps() == [1, 2, 3, 4, 5]
    assert results(run) == results(undisturbed)
    assert run.samples() == undisturbed.samples()
    ours, theirs = (load_file(one.run_dir / "final" / "model.safetensors") for one in (run, undisturbed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert not list(run.run_dir.rglob("*.partial"))


def test_the_page_has_a_row_for_each_fault() -> None:
    page = (Path(__file__).parents[2] / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [f"| {fault.who} | {fault.action} | `{fault.place}` | same; " for fault in FAULTS]
    assert [row for row in rows if row not in page] == []


@pytest.mark.integration
@pytest.mark.faults
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_a_run_ends_as_if_nothing_had_happened(
    fault: Fault,
    run_with: Callable[..., Run],
    undisturbed: Callable[..., Run],
    workers: KeptWorkers,
    matrix_row: list[str],
) -> None:
    restarted = ", ".join(fault.restarts) or "nothing"
    matrix_row += [fault.who, fault.action, fault.place, f"same; started again: {restarted}"]
    expected = undisturbed(*fault.set_up)
    run = run_with(fault)
    assert_same(run, expected)
    assert run.summary()["restarts"] == fault.restarts
    for name in ("EngineCore", "ray::RolloutWorker", "ray::ScoringWorker"):
        assert len(workers.left(name, expected=1)) == 1  # of those that died nothing is left


@pytest.mark.integration
@pytest.mark.faults
@pytest.mark.parametrize(("who", "action"), [("learner", "kill"), ("rollout worker", "kill")])
def test_with_requests_under_way_every_prompt_is_trained_once(
    who: str, action: str, run_with: Callable[..., Run], undisturbed: Callable[..., Run], matrix_row: list[str]
) -> None:
    """Engines and teachers that are kept drop what they were asked for the batch after the next."""
    point = STEP if who == "learner" else f"{ENGINE}.generate"
    fault = Fault(who, action, point, 3, RUN if who == "learner" else ROLLOUT)
    matrix_row += [who, action, f"{fault.place}, with max_staleness=1", "every step and every prompt trained once"]
    run = run_with(fault, "pipeline.max_staleness=1", "sampling.max_tokens=96")
    assert run.steps() == [1, 2, 3, 4, 5] and run.summary()["restarts"] == fault.restarts
    assert run.trained_prompts() == undisturbed().trained_prompts()
    assert max(row["rollout/staleness_max"] for row in run.step_rows()) == 1


@pytest.mark.integration
@pytest.mark.faults
def test_a_step_that_is_not_finite_is_skipped_and_told(
    run_with: Callable[..., Run], undisturbed: Callable[..., Run], matrix_row: list[str]
) -> None:
    fault = Fault("loss", "NaN", "learner.head.fused_loss:fused_head_loss", 3, {})
    matrix_row += [fault.who, fault.action, fault.place, "the step is skipped, the others are taken"]
    run = run_with(fault)
    rows = [row for row in run.rows() if "train/skipped" in row]
    assert [row["train/skipped"] for row in rows] == [0, 0, 1, 0, 0] and "train/loss" not in rows[2]
    assert results(run)[:3] == results(undisturbed())[:3]
    assert "step 3 was skipped: the gradient of" in run.text() and run.summary()["status"] == "completed"


@pytest.fixture(scope="module")
def in_background() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in the event loop of a thread, which goes on between them."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def give_up() -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run_coroutine_threadsafe(give_up(), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.mark.integration
@pytest.mark.faults
@pytest.mark.parametrize(
    ("action", "fault"),
    [("hangs", silent), ("never ends", trickling), ("drops connections", dropped), ("answers garbage", text("[1, 2"))],
)
def test_an_endpoint_is_waited_for(
    action: str,
    fault: endpoints.Fault,
    series: Series,
    tiny_tied: Path,
    tmp_path: Path,
    in_background: Callable[[Coroutine[Any, Any, Any]], Any],
    matrix_row: list[str],
) -> None:
    matrix_row += ["endpoint of a teacher", action, "requests 8 to 13", "asked again; same"]
    endpoint = FakeEndpoint(AutoTokenizer.from_pretrained(tiny_tied))
    in_background(endpoint.__aenter__())
    settings = (
        "teacher.backend=server", f"teacher.server.url={endpoint.url}", f"teacher.model={endpoints.MODEL}",
        "objective=sampled_reverse_kl", "teacher.server.request_timeout=3", "learner.overlap_k=0",
    )  # fmt: skip
    try:
        expected = series.run(tmp_path / "undisturbed", *settings)
        asked = len(endpoint.seen)
        endpoint.faults.extend([None] * 8 + [fault] * 6)
        run = series.run(tmp_path / "run", *settings)
    finally:
        in_background(endpoint.__aexit__())
    assert asked > 14 and not endpoint.faults
    assert_same(run, expected)
    assert run.summary()["restarts"] == {} and re.search(r"asked \d+ times, 6 of them again", run.text())
