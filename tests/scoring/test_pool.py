"""Several teachers: who scores what, what is refused, and what happens when a replica dies."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from orchestration.config.facts import capabilities_of, shows_whole
from orchestration.prepare.inputs import prepare
from orchestration.prepare.plan import required_cpus
from orchestration.runs.diagnosis import diagnosis_refusals
from scoring.config import TeacherWeights
from scoring.context import ContextTemplate
from scoring.group import Scorer, ScoringGroup
from scoring.pool import BASE, REFERENCE, STARVING_STEPS, TeacherPool
from tests.factories import configured, message, refusal
from tutelage.cluster import Cluster
from tutelage.errors import WorkerFailure, WorkerLost
from tutelage.records.signal import ScoringRequest, TeacherSignal

REQUEST = ScoringRequest("teacher", np.ones(3, np.int32), np.ones(2, np.int32))
ADDED = "+teacher@further_teachers"
BLEND = (f"{ADDED}.blend=mixture", "+further_teachers.blend.mixture={teacher:0.25,other:0.75}")
A, B = f"{ADDED}.a=checkpoint", f"{ADDED}.b=checkpoint"
MIXED = (f"{ADDED}.a=mixture",)


def rows(folder: Path, *extra: dict[str, str]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"prompt": f"Say {i}", "answer": str(i)} | row) + "\n" for i, row in enumerate(extra))
    )
    return path


@pytest.fixture
def two(tmp_path: Path, tiny_tied: Path, tiny_untied: Path) -> Callable[..., list[str]]:
    """Settings of a run with a second teacher, on given rows."""

    def settings(*extra: dict[str, str]) -> list[str]:
        path = rows(tmp_path, *extra)
        return [
            f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null",
            f"{ADDED}.other=checkpoint", f"further_teachers.other.model={tiny_untied}",
            "further_teachers.other.context='Be {answer}.'",
            "further_teachers.other.domains=[sums]", f"data.train.path={path}", f"data.heldout.path={path}",
            "rollout.max_model_len=256",
        ]  # fmt: skip

    return settings


def test_a_row_a_domain_or_nothing_decides_who_scores(two: Callable[..., list[str]], tiny_tied: Path) -> None:
    found = prepare(
        configured(*two({}, {"domain": "sums"}, {"domain": "sums", "teacher": "teacher"}, {"teacher": "other"}))
    )
    assert [item.prompt.teacher for item in found.train] == ["teacher", "other", "teacher", "other"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_tied)
    assert ["Be 3." in tokenizer.decode(item.teacher_ids) for item in found.train] == [False, False, False, True]
    assert [item.has_context for item in found.train] == [False, True, False, True]


def test_an_unknown_teacher_is_named_with_its_row(two: Callable[..., list[str]]) -> None:
    text = refusal(two({}, {"teacher": "nobody"}))
    assert "row 1" in text and "'nobody'" in text and "teacher, other" in text and "further_teachers.nobody" in text


def test_a_mixture_shows_each_of_its_teachers_its_own_view(two: Callable[..., list[str]]) -> None:
    config = configured(*two({"teacher": "blend"}), *BLEND)
    found = prepare(config)
    (item,) = found.train
    assert list(item.views) == ["teacher", "other"] and item.has_context
    np.testing.assert_array_equal(item.views["teacher"], item.student_ids)
    assert len(item.teacher_ids) == len(item.views["other"]) > len(item.student_ids)
    assert list(found.roles.mixtures) == ["blend"] and [role for role in found.roles.scorers if role != BASE] == [
        "teacher",
        "other",
    ]
    assert shows_whole(config, "blend") and not capabilities_of(config, "blend").entropy


def test_who_marks_nothing_gets_no_workers(two: Callable[..., list[str]]) -> None:
    config = configured(*two({"teacher": "other"}))
    assert [role for role in prepare(config).roles.scorers if role != BASE] == ["other"]


def test_each_teacher_that_needs_workers_of_its_own_is_counted(two: Callable[..., list[str]], tiny_tied: Path) -> None:
    def cpus(*changes: str) -> float:
        config = configured(*two({}, {"teacher": "other"}), *changes)
        return required_cpus(config, prepare(config).roles)

    other = f"further_teachers.other.model={tiny_tied}"
    assert cpus(other) - cpus() == configured().scoring.cpus_per_worker  # the same checkpoint: the same workers
    assert cpus("further_teachers.other.quantization=int8") == cpus(other)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([f"{ADDED}.reference=checkpoint"], ["further_teachers=reference", "no name"]),
        ([A, B, "further_teachers.a.domains=[d]", "further_teachers.b.domains=[d]"], ["further_teachers.b.domains=d"]),
        ([*MIXED, "+further_teachers.a.mixture={teacher:1.5}"], ["sum to 1.5"]),
        ([*MIXED, "+further_teachers.a.mixture={teacher:0.5,nobody:0.5}"], ["a.mixture=nobody", "there are teacher"]),
        ([*MIXED, B, "+further_teachers.a.mixture={teacher:1.0,b:0.0}"], ["a.mixture.b=0.0"]),
        ([A, "objective=gkd", "objective.sequences.other_source=teacher"], ["one teacher"]),
        ([*MIXED, "+further_teachers.a.mixture={teacher:1.0}", "objective=entropy_aware"], ["entropy of a mixture"]),
        (["teacher.weights=current", "teacher.model=x"], ["teacher.weights=current", "teacher.model=smollm2"]),
        (["teacher.weights=ema", "teacher.ema_rate=1"], ["teacher.ema_rate=1"]),
        (["teacher.weights=current", "objective=full_reverse_kl"], ["another LM head", "student_topk_reverse_kl"]),
        (["teacher.weights=current", "learner=gpu", "rollout=gpu"], ["nccl"]),
        (["teacher.weights=ema", "scoring.cache_dir=x"], ["scoring.cache_dir=x"]),
        (["teacher.backend=server", "teacher.quantization=int8"], ["quantization=int8"]),
        (["teacher.twin_candidates=0"], ["teacher.twin_candidates=0", "at least 1"]),
        (
            ["teacher.cross_tokenizer=true", "teacher.backend=server", "objective=sampled_reverse_kl"],
            ["teacher.tokenizer=null", "name its checkpoint"],
        ),
        (["teacher.context='{sibling}'"], ["{sibling}", "data.verifier"]),
        (["teacher.context='{sibling}'", "data.verifier=exact"], ["samples_per_prompt=4"]),
        (
            ["teacher.context='{attempt}'", "objective=gkd", "objective.sequences.other_source=dataset"],
            ["on_policy_fraction=1"],
        ),
        (["recovery.max_restarts=-1"], ["recovery.max_restarts=-1"]),
        (["scoring.max_restarts=2"], ["write recovery.max_restarts=2"]),
    ],
)  # fmt: skip
def test_wrong_settings_are_named(overrides: list[str], words: list[str]) -> None:
    text = message(*overrides)
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("text", "kind", "waits"),
    [
        ("Be brief.", "shared rule", ()),
        ('It is {answer}; use {"json"}.', "instance-specific", ()),
        ("{completion} {sibling} {feedback}", "instance-specific", ("feedback", "sibling")),
    ],
)
def test_a_context_says_what_kind_it_is(text: str, kind: str, waits: tuple[str, ...]) -> None:
    template = ContextTemplate(text)
    assert (template.kind, template.waits_for) == (kind, waits)


def test_a_context_is_filled_and_other_braces_stay() -> None:
    assert ContextTemplate('{answer} {"a": {b}}').filled({"answer": "7"}) == '7 {"a": {b}}'


def test_whoever_holds_the_initial_weights_is_the_base(two: Callable[..., list[str]], tiny_tied: Path) -> None:
    def serving(*changes: str) -> str | None:
        scorers = prepare(configured(*two({}), *changes)).roles.scorers
        return next((role for role in scorers if scorers[role] is scorers.get("base")), None)

    assert serving() is None
    assert serving("evaluation.base_kl=always") == "base"
    assert serving(f"teacher.model={tiny_tied}", "teacher.context=x") == "teacher"
    assert serving(f"teacher.model={tiny_tied}", "teacher.weights=ema", "teacher.context=x") is None
    assert serving(f"teacher.model={tiny_tied}", "teacher.context=x", "evaluation.base_kl=never") is None
    assert serving("objective=reward_extrapolation", "objective.reference.model=student") == REFERENCE


# ---- replicas --------------------------------------------------------------------------------------------------


class Replica:
    """Stands for a Ray worker: answers until it is told to die."""

    def __init__(self, name: str) -> None:
        self.name, self.dead, self.stopped = name, False, False
        self.served: list[ScoringRequest] = []

    async def call(self, method: str, *args: Any, deadline: float) -> Any:
        await asyncio.sleep(0.01)
        if self.dead:
            raise WorkerLost(f"{self.name} died during {method}")
        if method == "score":
            if not len(args[0].response_ids):
                raise WorkerFailure(f"{self.name} failed in score: ValueError('nothing')")
            self.served.append(args[0])
            return TeacherSignal("teacher", np.zeros(2, np.float32))
        if method == "save_weights":
            Path(args[0]).write_bytes(b"an average" * 9)
        return None

    async def death_report(self) -> str | None:
        return f"{self.name} died" if self.dead else None

    def stop(self) -> None:
        self.stopped = True


class Group(ScoringGroup):
    """Replicas of which some die; those that replace them live."""

    def __init__(self, replicas: int, max_restarts: int = 3) -> None:
        config = configured(f"scoring.workers={replicas}", f"recovery.max_restarts={max_restarts}")
        scorer = Scorer("scoring", "path", config.teacher)
        cluster = Cluster(Path())
        super().__init__(scorer, config.scoring, config.timeouts, cluster, config.recovery)
        self.hired: list[Replica] = []
        for name in cluster.names("scoring", replicas):
            self.enlist(Replica(name))  # type: ignore[arg-type]

    async def _start_workers(self, names: Any) -> Any:
        await asyncio.sleep(0.05)
        self.hired += [Replica(name) for name in names]
        return self.hired[-len(names) :]


def run_many(group: Group, dying: int, count: int = 20) -> list[Any]:
    async def score() -> list[Any]:
        replicas = list(group.workers)
        tasks = [asyncio.create_task(group.score(REQUEST)) for _ in range(count)]
        await asyncio.sleep(0)
        for replica in replicas[:dying]:
            replica.dead = True  # type: ignore[attr-defined]
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(score())


@pytest.mark.parametrize("dying", [1, 2])
def test_what_a_dead_replica_was_asked_others_answer(dying: int) -> None:
    group = Group(replicas=2)
    answers = run_many(group, dying)
    assert all(isinstance(answer, TeacherSignal) for answer in answers)
    assert group.restarts == dying and group.counts.retries > 0
    assert {replica.name for replica in group.hired} <= {f"scoring-{2 + i}" for i in range(dying)}
    assert bool(group.hired) == (dying == 2)  # one that is left answers before another is there
    assert group.counts.requests == 20


def test_a_death_is_noticed_before_anybody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.crew.HEALTH_SECONDS", 0.01)
    group = Group(replicas=1)
    group.workers[0].dead = True  # type: ignore[attr-defined]

    async def watch() -> None:
        task = asyncio.create_task(group._keep_watch())
        await asyncio.sleep(0.3)
        task.cancel()

    asyncio.run(watch())
    assert [worker.name for worker in group.workers] == ["scoring-1"]


def test_after_so_many_replacements_the_failure_is_told() -> None:
    group = Group(replicas=1, max_restarts=0)
    answers = run_many(group, dying=1)
    assert all(isinstance(answer, WorkerFailure) and "recovery.max_restarts" in str(answer) for answer in answers)
    assert not group.hired


def test_a_refused_request_is_not_asked_again() -> None:
    group = Group(replicas=2)
    empty = ScoringRequest("teacher", np.ones(3, np.int32), np.ones(0, np.int32))
    with pytest.raises(WorkerFailure, match="nothing"):
        asyncio.run(group.score(empty))
    assert len(group.workers) == 2 and group.counts.retries == 0


def test_the_replica_with_the_fewest_tokens_is_asked() -> None:
    group = Group(replicas=3)
    run_many(group, dying=0, count=30)
    assert [len(worker.served) for worker in group.workers] == [10, 10, 10]  # type: ignore[attr-defined]


def test_a_teacher_without_requests_is_reported_once() -> None:
    busy, idle = Group(replicas=1), Group(replicas=1)
    pool = TeacherPool({"teacher": busy, "other": idle}, {})
    named = []
    for _ in range(STARVING_STEPS + 3):
        asyncio.run(pool.score(REQUEST, {}))
        metrics = pool.step_metrics()
        named.append(pool.starving)
    assert metrics["teacher/teacher/requests"] == 1 and metrics["teacher/other/requests"] == 0
    assert metrics["teacher/other/steps_without_request"] == STARVING_STEPS + 3
    assert named.count(["other"]) == 1 and named[STARVING_STEPS - 1] == ["other"]


def test_teachers_that_share_a_group_are_counted_each_for_itself() -> None:
    group = Group(replicas=2)
    pool = TeacherPool({"teacher": group, "other": group, REFERENCE: group}, {})
    asyncio.run(pool.score(REQUEST))
    asyncio.run(pool.score(replace(REQUEST, teacher=REFERENCE)))
    metrics = pool.step_metrics()
    assert (metrics["teacher/teacher/requests"], metrics["teacher/other/requests"]) == (1, 0)
    assert metrics["teacher/other/steps_without_request"] == 1
    assert pool.distinct == {"teacher": group} and len(pool.workers) == 2 and group.counts.requests == 2


@pytest.mark.parametrize("name", ["teacher.safetensors", "manifest.json"])
@pytest.mark.parametrize("spoil", ["flip", "cut", "remove"])
def test_an_average_that_is_not_what_was_saved_is_named_and_not_gone_on_from(
    name: str, spoil: str, tmp_path: Path
) -> None:
    group, folder = Group(1), tmp_path / "teachers"
    averaging = replace(configured().teacher, weights=TeacherWeights.ema)
    group._scorer = replace(group._scorer, teacher=averaging)
    pool = TeacherPool({"teacher": group}, {})
    asyncio.run(pool.save(folder, 9.0))
    asyncio.run(pool.restore(folder, 9.0))
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content if spoil == "flip" else content[: len(content) // 2])
    if spoil == "remove":
        (folder / name).unlink()
    with pytest.raises(WorkerFailure, match=rf"teachers is not what was saved: {name}"):
        asyncio.run(pool.restore(folder, 9.0))


def test_a_group_with_several_roles_is_started_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    async def start(scorer: Scorer, *_settings: Any) -> Group:
        started.append(scorer.name)
        return Group(replicas=1)

    monkeypatch.setattr(ScoringGroup, "start", start)
    config = configured()
    one, other = Scorer("scoring", "path", config.teacher), Scorer("scoring-other", "elsewhere", config.teacher)
    scorers = {"teacher": one, "twin": one, "other": other}
    cluster: Any = None
    pool = asyncio.run(TeacherPool.start(scorers, {}, config.scoring, config.timeouts, cluster, config.recovery))
    assert started == ["scoring", "scoring-other"]
    assert pool.groups["teacher"] is pool.groups["twin"] is not pool.groups["other"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((A,), ["further_teachers=a", "one teacher at a time"]),
        (("teacher.backend=vllm", "objective=sampled_reverse_kl"), ["teacher.backend=vllm", "transformers"]),
    ],
)
def test_a_diagnosis_looks_at_one_teacher_that_shows_itself(overrides: tuple[str, ...], words: list[str]) -> None:
    (refusal,) = diagnosis_refusals(configured(*overrides))
    assert all(word in str(refusal) for word in words)


def test_marks_that_a_server_gave_need_no_checkpoint(two: Callable[..., list[str]], tiny_tied: Path) -> None:
    """What is asked of the cache is what the server that filled it was asked."""
    options = [setting for setting in two({"completion": "1"}) if "further" not in setting]
    options += [
        "objective=teacher_topk_forward_kl", "objective.k=5", "objective.sequences.on_policy_fraction=0",
        "objective.sequences.other_source=dataset", "teacher.model=big", "teacher.server.url=http://127.0.0.1:1/v1",
        "scoring.cache_dir=scores",
    ]  # fmt: skip
    cached, served = (configured(*options, f"teacher.backend={backend}") for backend in ("cache", "server"))
    assert prepare(cached).teachers["teacher"].path == prepare(served).teachers["teacher"].path == str(tiny_tied)
    given = capabilities_of(served, "teacher")
    assert capabilities_of(cached, "teacher") == replace(given, new_responses=False) and given.new_responses
