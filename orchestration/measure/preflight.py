"""The preflight: will this run mean anything? Checked on the real workers before they train, in seconds.

texts, prompts, sampling, plan ─► checks that need no worker
canary ─► engine, learner, teacher on the same few tokens, with the initial weights, with others, with the initial again
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text
from safetensors import safe_open
from transformers import AutoConfig

from diagnostics.check import Check, Status, worst
from diagnostics.preflight.budget import (
    ModelSize,
    StepPlan,
    WorkerMemory,
    check_arithmetic,
    check_memory,
    check_time,
    engine_memory,
    learner_memory,
    scorer_memory,
)
from diagnostics.preflight.prompts import (
    EMPTY_RESPONSES,
    VerifierTrial,
    check_grades,
    check_overlap,
    check_prompts,
    check_verifier,
    graded_prompts,
    reference_responses,
)
from diagnostics.preflight.sampling import check_sampling, check_teacher_temperature
from diagnostics.preflight.tokenizers import check_bos, check_end_of_turn, check_templates, check_tokenizers
from orchestration.config.facts import capabilities_of, needs_teacher_rollouts, run_facts, shows_whole, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.measure.canary import Canary, Sampled, ScoredAnswers
from orchestration.pipeline.fleet import Fleet
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.plan import host_memory_gib
from orchestration.prepare.prompts import make_chats
from rollout.grading import VerifierPool
from scoring.backends.factory import kind_of
from scoring.config import TEACHER
from scoring.pool import REFERENCE
from tutelage.console import PlainConsole
from tutelage.errors import WorkerFailure
from tutelage.records.prompt import Prompt, with_ids
from tutelage.records.trajectory import FinishReason
from tutelage.settings import DType
from tutelage.stops import generation_ends, stop_token_ids

SHOWN_PROMPTS = 16  # rendered by both templates
_COLOURS = {Status.passed: "green", Status.warned: "yellow", Status.failed: "red"}


@dataclass(frozen=True)
class Preflight:
    checks: list[Check]
    seconds: float

    @property
    def failed(self) -> bool:
        return worst(self.checks) is Status.failed

    def as_json(self) -> dict[str, Any]:
        rows = [{**asdict(check), "status": check.status.value} for check in self.checks]
        return {"checks": rows, "seconds": self.seconds}


async def run_preflight(
    config: RunConfig, prepared: Prepared, fleet: Fleet, verifier: VerifierPool | None, say: Callable[[str], None]
) -> Preflight:
    """Every check that applies to this run; the workers go on to be used, with the weights that they had.

    The engines must hold the initial student, and learner and engines be connected; the learner needs the teacher's
    head where there is a teacher (a stage's `restore` does all of it).

    Raises:
        WorkerFailure: a worker died, or missed a deadline.
    """
    started = time.monotonic()
    say("preflight: tokenizers, templates, prompts and plan …")
    checks = await asyncio.to_thread(_check_texts, config, prepared)
    checks += await asyncio.to_thread(_check_prompts, config, prepared)
    checks.append(await _check_verifier(prepared, verifier))
    if worst(checks) is Status.failed:
        say("preflight: what failed has to be repaired first; the workers are not checked")
    else:
        say("preflight: a canary through engine, learner and teacher, with other weights and back …")
        checks += await _check_workers(config, prepared, fleet, verifier)
    return Preflight(checks, time.monotonic() - started)


def print_checks(console: PlainConsole, checks: Sequence[Check]) -> None:
    table = Table(title="preflight", title_justify="left", show_lines=True)
    for column in ("check", "", "seen", "what to do"):
        table.add_column(column, overflow="fold")
    for check in checks:
        status = Text(check.status.value, style=_COLOURS[check.status])
        table.add_row(check.name, status, check.seen, check.fix)
    console.print(table)


def _check_texts(config: RunConfig, prepared: Prepared) -> list[Check]:
    """Tokenizers, templates, beginnings and ends."""
    student, items = prepared.tokenizer, (*prepared.train, *prepared.heldout)
    checks = [
        check_bos(student, [ids for item in items for ids in (item.student_ids, item.teacher_ids)]),
        check_end_of_turn(student, generation_ends(prepared.student_path) | {*prepared.ends.stop_ids}),
    ]
    if not prepared.teachers:
        return [*checks, _not_applicable("teacher's tokenizer and template", "no teacher takes part")]
    prompts = [item.prompt for item in prepared.train[:SHOWN_PROMPTS]]
    student_chat, chats = make_chats(config, student, prepared.teachers)
    about_teachers: list[Check] = []
    for key, teacher in prepared.teachers.items():
        if teachers_of(config)[key].cross_tokenizer:
            continue  # its ids, template and ends are its own, and aligned
        ends = check_end_of_turn(teacher.tokenizer, generation_ends(teacher.path), "teacher's EOS")
        if ends.status is Status.failed:  # the teacher scores what the student ends; only its own answers would not end
            ends = replace(ends, status=Status.warned)
        about_teacher = [
            *check_tokenizers(student, teacher.tokenizer, prepared.ends, teacher.uncommon),
            *check_templates(student_chat, chats[key], prompts, config.data.system_prompt),
            ends,
        ]
        about_teachers += (
            about_teacher if key == TEACHER else [replace(c, name=f"{key}: {c.name}") for c in about_teacher]
        )
    return [*about_teachers, *checks]


def _not_applicable(name: str, why: str) -> Check:
    return Check(name, Status.passed, f"not checked: {why}")


def _check_prompts(config: RunConfig, prepared: Prepared) -> list[Check]:
    """The prompts, the sampling, and what the workers are asked for."""
    train, heldout = ([item.prompt for item in items] for items in (prepared.train, prepared.heldout))
    checks = [*check_prompts(train, prepared.over_length, len(heldout), prepared.blank), check_overlap(train, heldout)]
    checks.append(check_sampling(config.objective, run_facts(config)))
    if prepared.teachers:
        checks.append(check_teacher_temperature(config.objective))
    there = host_memory_gib() if config.cluster.address == "local" else None
    return [*checks, check_memory(_memory(config, prepared), there), check_arithmetic(_plan(config, prepared))]


async def _check_verifier(prepared: Prepared, verifier: VerifierPool | None) -> Check:
    """The verifier on the reference answers of some prompts of both splits, and on nothing."""
    if verifier is None:
        return _not_applicable("verifier", "data.verifier=none grades nothing")

    async def trial(prompt: Prompt) -> VerifierTrial:
        responses, scores = reference_responses(prompt), list[float]()
        for text in (*responses, *EMPTY_RESPONSES):
            try:
                grade = await verifier.grade(prompt, text)
            except WorkerFailure as error:
                return VerifierTrial(prompt.id, error=str(error))
            if grade.overran:
                return VerifierTrial(prompt.id, overran=True)
            scores.append(grade.score)
        best = max(scores[: len(responses)], default=None)
        return VerifierTrial(prompt.id, best, max(scores[len(responses) :]))

    splits = ([item.prompt for item in items] for items in (prepared.train, prepared.heldout))
    return check_verifier(await asyncio.gather(*(trial(p) for split in splits for p in graded_prompts(split))))


async def _check_workers(
    config: RunConfig, prepared: Prepared, fleet: Fleet, verifier: VerifierPool | None
) -> list[Check]:
    """The canary, and the time that follows from it."""
    canary = Canary(config, prepared, fleet, version=0)
    first = await canary.sample()
    stops = stop_token_ids(prepared.tokenizer, generation_ends(prepared.student_path)) | {*prepared.ends.stop_ids}
    checks = [*canary.check_first(first, stops), await canary.check_given_tokens(first)]
    checks.append(await canary.check_learner_packing(first))
    about_scores, scores = await _check_scores(config, canary, first, fleet)
    about_weights, perturbed, sync_seconds = await canary.check_weights(first)
    checks += [*about_scores, *about_weights]
    if verifier is not None:
        checks.append(await _check_grades(prepared, first, verifier))
    measured = canary.measured([first, perturbed], scores, sync_seconds)
    return [*checks, check_time(_plan(config, prepared), measured)]


async def _check_scores(
    config: RunConfig, canary: Canary, first: Sampled, fleet: Fleet
) -> tuple[list[Check], ScoredAnswers | None]:
    """What the teacher's service says, and the reference's where it is another; with the teacher's scores."""
    checks: list[Check] = []
    scores: ScoredAnswers | None = None
    groups = fleet.teachers.teachers
    if not groups:
        checks.append(_not_applicable("canary: teacher's scores", "no teacher takes part"))
    for key, group in groups.items():
        if not capabilities_of(config, key).new_responses:
            checks.append(_not_applicable(f"canary: {key}'s scores", f"{key} knows no new responses (backend=cache)"))
            continue
        its_scores = await canary.ask(first, group, key)
        if not its_scores.requests:
            checks.append(_not_applicable(f"canary: {key}'s scores", "none of the training prompts is this teacher's"))
            continue
        scores = scores or its_scores
        checks.append(await canary.check_scores(its_scores, group, key))
        if kind_of(teachers_of(config)[key]).packs:
            checks.append(await canary.check_scorer_packing(its_scores, group, key))
        checks += await canary.check_quantised(its_scores, group)
        if shows_whole(config, key):
            checks.append(await canary.check_teacher_differs(its_scores, key))
    reference = fleet.teachers.groups.get(REFERENCE)
    if reference is not None and reference not in groups.values():
        checks.append(await canary.check_scores(await canary.ask(first, reference), reference, "reference"))
    return checks, scores


async def _check_grades(prepared: Prepared, sampled: Sampled, verifier: VerifierPool) -> Check:
    prompts, tokenizer = with_ids(prepared.train), prepared.tokenizer
    ended = [t for t in sampled.trajectories if t.finish_reason is FinishReason.STOP]
    texts = [tokenizer.decode(t.response_ids, skip_special_tokens=True) for t in ended]
    asked = [verifier.grade(prompts[t.prompt_id].prompt, text) for t, text in zip(ended, texts, strict=True)]
    return check_grades([grade.score for grade in await asyncio.gather(*asked)])


def _bytes(dtype: DType) -> int:
    return 4 if dtype is DType.float32 else 2


def model_size(path: str, trust_remote_code: bool) -> ModelSize:
    """Count a checkpoint's numbers from the headers of its weights and from config.json; nothing is loaded."""
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config()
    parameters = 0
    for file in sorted(Path(path).glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            for name in weights.keys():  # noqa: SIM118, the file is no mapping
                parameters += math.prod(weights.get_slice(name).get_shape())
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return ModelSize(
        parameters=parameters,
        head=config.vocab_size * config.hidden_size,
        vocabulary=config.vocab_size,
        cache=2 * config.num_hidden_layers * heads * head_size,
    )


def _memory(config: RunConfig, prepared: Prepared) -> list[WorkerMemory]:
    rollout, scoring, learner = config.rollout, config.scoring, config.learner
    student = model_size(prepared.student_path, config.student.trust_remote_code)
    engine = engine_memory(student, _bytes(rollout.dtype), rollout.kv_cache_gib)
    rank = learner_memory(
        student,
        _bytes(learner.dtype),
        learner.zero_stage,
        learner.ranks,
        learner.head_chunk_tokens,
        prepared.adapter_parameters,
    )
    memory = [
        WorkerMemory("engine(s)", rollout.workers, engine, rollout.gpus_per_worker > 0),
        WorkerMemory("learner rank(s)", learner.ranks, rank, learner.gpus_per_rank > 0),
    ]
    for scorer in prepared.roles.groups:
        if kind_of(scorer.teacher).loads_model(scorer.teacher):
            parts = scorer_memory(
                model_size(scorer.path, scorer.teacher.trust_remote_code),
                _bytes(scoring.dtype),
                scoring.head_chunk_tokens,
            )
            count = 1 if scorer.occasional else scoring.workers
            memory.append(WorkerMemory(scorer.name, count, parts, scoring.gpus_per_worker > 0))
    if needs_teacher_rollouts(config) and prepared.teacher_path is not None:
        teacher = model_size(prepared.teacher_path, config.teacher.trust_remote_code)
        parts = engine_memory(teacher, _bytes(rollout.dtype), rollout.kv_cache_gib)
        memory.append(WorkerMemory("teacher's engine(s)", rollout.workers, parts, rollout.gpus_per_worker > 0))
    return memory


def _plan(config: RunConfig, prepared: Prepared) -> StepPlan:
    pipeline, rollout, learner = config.pipeline, config.rollout, config.learner
    lengths = [len(item.student_ids) for item in prepared.train]
    numbers = model_size(prepared.student_path, config.student.trust_remote_code).cache * _bytes(rollout.dtype)
    return StepPlan(
        batch_size=pipeline.batch_size,
        max_staleness=pipeline.max_staleness,
        max_tokens=config.sampling.max_tokens,
        prompt_tokens=sum(lengths) / len(lengths),
        longest=max(lengths) + config.sampling.max_tokens,
        steps=pipeline.steps,
        engines=rollout.workers,
        max_num_seqs=rollout.max_num_seqs,
        cache_tokens=None if rollout.gpus_per_worker else int(rollout.kv_cache_gib * 2**30 / numbers),
        scorers=config.scoring.workers * sum(not scorer.occasional for scorer in prepared.roles.groups),
        ranks=learner.ranks,
        micro_batch_tokens=learner.micro_batch_tokens,
        is_on_policy=not STAGES[config.stage].collects,
    )
