"""A few short sequences through every worker that takes part, and again with other weights.

engine samples ─► learner's log-probs of the same tokens
               ─► the teacher's scores ─► a plain forward's, and the divergence from the student
perturbed weights ─► engine samples ─► learner's log-probs ─► the old weights again ─► the same once more
"""

import time
from collections.abc import Sequence, Set
from dataclasses import dataclass, replace
from itertools import cycle, islice, zip_longest

import numpy as np
from numpy.typing import NDArray

from diagnostics.check import Check, Status
from diagnostics.preflight.agreement import (
    Tolerance,
    check_agreement,
    check_new_weights,
    check_packing,
    check_quantised,
    check_response_ends,
    check_restored,
    check_teacher_differs,
)
from diagnostics.preflight.budget import Measured
from learner.records import Example
from orchestration.config.facts import shows_whole, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.config.stages import STAGES
from orchestration.measure.both_models import BothModels
from orchestration.pipeline.fleet import Fleet
from orchestration.pipeline.requests import roll_out_all, rollout_request
from orchestration.prepare.inputs import Prepared
from scoring.context import ContextTemplate
from scoring.group import ScoringGroup
from scoring.pool import REFERENCE
from tutelage.records.prompt import RenderedPrompt, with_ids
from tutelage.records.signal import ScoringRequest, TeacherSignal
from tutelage.records.trajectory import FinishReason, RolloutRequest, Trajectory, derive_seed

PROMPTS = 4
MAX_TOKENS = 16
LONGEST_PROMPT = 256  # tokens: a longer one would take too long
NOISE = 0.1  # of the perturbed weights, over their own spread
_Logprobs = list[NDArray[np.float32]]


@dataclass(frozen=True)
class Sampled:
    """What the engines sampled at one state of the weights, and what the learner says of it."""

    trajectories: list[Trajectory]
    learner: _Logprobs
    rollout_seconds: float
    learner_seconds: float

    @property
    def engine(self) -> _Logprobs:
        return [trajectory.sampling_logprobs for trajectory in self.trajectories]


@dataclass(frozen=True)
class ScoredAnswers:
    """What a scoring service was asked, what it answered, and in how many seconds."""

    trajectories: list[Trajectory]
    requests: list[ScoringRequest]
    signals: list[TeacherSignal]
    seconds: float


class Canary:
    """Checks on real workers, which must be connected with each other and hold the initial student."""

    def __init__(self, config: RunConfig, prepared: Prepared, fleet: Fleet, version: int) -> None:
        self._config, self._prepared, self._fleet, self._version = config, prepared, fleet, version
        self._both = BothModels(fleet, config.learner, version)
        self._prompts = _choose(prepared, max(PROMPTS, 2 * config.rollout.workers, config.scoring.workers))
        self._by_id = with_ids(self._prompts)
        self._eos: int | None = prepared.tokenizer.eos_token_id
        self._dtypes = [config.rollout.dtype.value, config.learner.dtype.value]
        self._tolerance = Tolerance.of(self._dtypes)

    async def sample(self) -> Sampled:
        """The engines' answers and the learner's log-probs of them."""
        started = time.perf_counter()
        trajectories = await roll_out_all(self._fleet.rollouts, self._requests())
        sampled = time.perf_counter()
        logprobs = await self._both.student_logprobs(trajectories)
        return Sampled(trajectories, logprobs, sampled - started, time.perf_counter() - sampled)

    def check_first(self, first: Sampled, stops: Set[int]) -> list[Check]:
        """Engine against learner with the initial weights, and how the engine ends responses."""
        name, sides = "canary: engine and learner", ("engine", "learner")
        trajectories = first.trajectories
        return [
            check_agreement(name, sides, first.engine, first.learner, self._tolerance),
            check_response_ends(
                [len(t.response_ids) for t in trajectories],
                [t.finish_reason is FinishReason.STOP for t in trajectories],
                [int(t.response_ids[-1]) for t in trajectories],
                [request.max_tokens for request in self._requests()],
                stops,
            ),
        ]

    async def check_given_tokens(self, first: Sampled) -> Check:
        """Every engine on one whole response that the tokenizer's EOS ends, whoever sampled it."""
        chosen = max(first.trajectories, key=lambda t: (len(t.response_ids), -len(t.prompt_ids)))
        room = self._config.rollout.max_model_len - len(chosen.prompt_ids) - 1  # the engine adds a token
        response = chosen.response_ids[:room].copy()
        if self._eos is not None:
            response[-1] = self._eos
        ended = replace(
            chosen,
            response_ids=response,
            loss_mask=np.ones(len(response), dtype=np.bool_),
            sampling_logprobs=np.full(len(response), np.nan, dtype=np.float32),
            temperature=1.0,
        )
        # The engine scores given tokens one by one: where their ends are one action, all but the end are compared.
        compared = len(response) - (self._prepared.ends.merged is not None)
        (learner,) = await self._both.student_logprobs([ended])
        ids = np.concatenate([chosen.prompt_ids, response]).tolist()
        engines = [values[-len(response) :][:compared] for values in await self._fleet.rollouts.prompt_logprobs(ids)]
        sides = "engine, told the tokens", "learner"
        return check_agreement(
            "canary: ended answer", sides, engines, [learner[:compared]] * len(engines), self._tolerance
        )

    async def ask(self, first: Sampled, scorers: ScoringGroup, key: str | None = None) -> ScoredAnswers:
        """What a scoring service says of the engines' answers, with the states behind it where it shows them.

        Args:
            key: of the teacher that it is; None: of no teacher, which sees what the student sees.
        """
        prompts = [self._by_id[trajectory.prompt_id] for trajectory in first.trajectories]
        asked = [
            trajectory
            for trajectory, item in zip(first.trajectories, prompts, strict=True)
            if key is None or key == item.prompt.teacher or key in item.views
        ]
        requests = [self._scoring_request(item, key) for item in asked]
        started = time.perf_counter()
        signals = await scorers.score_all(requests)
        return ScoredAnswers(asked, requests, signals, time.perf_counter() - started)

    def _scoring_request(self, trajectory: Trajectory, key: str | None) -> ScoringRequest:
        item, stops = self._by_id[trajectory.prompt_id], self._prepared.ends.merged
        if key is None:
            return ScoringRequest(REFERENCE, trajectory.prompt_ids, trajectory.response_ids, stops=stops)
        teacher, prompt_ids = self._prepared.teachers[key].tokenizer, item.views.get(key, item.teacher_ids)
        response = trajectory.response_ids
        if teachers_of(self._config)[key].cross_tokenizer:  # ids of its own: the same text
            text = self._prepared.tokenizer.decode(response, skip_special_tokens=True)
            response = np.array(teacher(text, add_special_tokens=False)["input_ids"], dtype=np.int32)
        return ScoringRequest(key, prompt_ids, response, hidden_states=shows_whole(self._config, key), stops=stops)

    async def check_scores(self, scores: ScoredAnswers, scorers: ScoringGroup, who: str) -> Check:
        """The service against a plain forward."""
        name, plain = f"canary: {who}'s scores", await scorers.reference_logprobs_for_check(scores.requests)
        if plain is None:
            tokens = sum(len(signal.logprobs) for signal in scores.signals)
            seen = f"{tokens} tokens were scored, and there is no other forward of this model here to compare with"
            return Check(name, Status.passed, seen)
        return check_agreement(
            name,
            (f"the {who}'s service", "a plain forward of it"),
            [signal.logprobs for signal in scores.signals],
            plain,
            Tolerance.of([self._config.scoring.dtype.value]),
        )

    async def check_learner_packing(self, first: Sampled) -> Check:
        """The learner on a short sequence alone, and on as many beside as long a one as a micro-batch takes."""
        short = min(first.trajectories, key=lambda t: len(t.prompt_ids) + len(t.response_ids))
        room = self._config.learner.micro_batch_tokens - len(short.prompt_ids) - 2 * len(short.response_ids)
        long = replace(short, prompt_ids=self._lengthened(short.prompt_ids, room))
        ranks = self._config.learner.ranks
        (alone,) = await self._both.student_logprobs([short])
        packed = (await self._both.student_logprobs([long] * ranks + [short] * ranks))[ranks:]
        tolerance = Tolerance.of([self._config.learner.dtype.value])
        return check_packing("learner", packed, [alone] * ranks, tolerance)

    async def check_scorer_packing(self, scores: ScoredAnswers, scorers: ScoringGroup, key: str) -> Check:
        """A teacher on a sequence alone, and beside as long a one as a forward takes."""
        first, last = (replace(request, hidden_states=False) for request in (scores.requests[0], scores.requests[-1]))
        room = self._config.scoring.max_tokens_per_forward - len(last.prompt_ids) - 2 * len(last.response_ids)
        long = replace(last, prompt_ids=self._lengthened(last.prompt_ids, room))
        (alone,) = await scorers.score_all([last])
        # The first one keeps the worker busy until the other two wait together.
        *_, packed = await scorers.score_all([first, long, last])
        tolerance = Tolerance.of([self._config.scoring.dtype.value])
        return check_packing(key, [packed.logprobs], [alone.logprobs], tolerance)

    def _lengthened(self, prompt_ids: NDArray[np.int32], tokens: int) -> NDArray[np.int32]:
        """A prompt of `tokens` tokens, or as many as the model takes with a response, of another beginning."""
        most = self._config.rollout.max_model_len - MAX_TOKENS
        return np.resize(prompt_ids[::-1], max(min(tokens, most), len(prompt_ids)))

    async def check_quantised(self, scores: ScoredAnswers, scorers: ScoringGroup) -> list[Check]:
        """The teacher against its own full weights, where it is quantised."""
        bias = await scorers.quantization_bias(scores.requests)
        return [check_quantised(bias)] if bias is not None else []

    async def check_teacher_differs(self, scores: ScoredAnswers, key: str) -> Check:
        examples = [Example(t, s) for t, s in zip(scores.trajectories, scores.signals, strict=True)]
        tokens = await self._both.tokens(examples, 1)
        divergence = float(np.concatenate([record.values["reverse_kl"] for record in tokens]).mean())
        config = self._config
        own_answers = STAGES[config.stage].collects and config.data.is_graded
        teacher = teachers_of(config)[key]
        waits = teacher.context is not None and bool(ContextTemplate(teacher.context).waits_for)
        has_context = waits or any(item.has_context for item in self._prompts)
        dtypes = [config.learner.dtype.value, config.scoring.dtype.value]
        return check_teacher_differs(divergence, dtypes, has_context, own_answers)

    async def check_weights(self, first: Sampled) -> tuple[list[Check], Sampled, float]:
        """Perturbed weights and then the old ones; with the perturbed samples and the seconds of publishing."""
        learner = self._fleet.learner
        await learner.perturb(derive_seed(self._config.seed, 0), NOISE)
        try:
            await learner.publish(self._version, again=True)
            perturbed = await self.sample()
        finally:
            await learner.restore_weights()
        report = await learner.publish(self._version, again=True)
        restored = await roll_out_all(self._fleet.rollouts, self._requests())
        # Together, since what sequences have in common is computed once.
        logprobs = await self._both.student_logprobs([*restored, *perturbed.trajectories, *first.trajectories])
        count = len(first.trajectories)
        learner_of_restored, before, again = logprobs[:count], logprobs[count : 2 * count], logprobs[2 * count :]
        engine = [trajectory.sampling_logprobs for trajectory in restored]
        checks = [
            check_new_weights(perturbed.engine, perturbed.learner, before, perturbed.learner, self._tolerance),
            check_restored(engine, learner_of_restored, first.learner, again, self._tolerance),
        ]
        return checks, perturbed, report.seconds

    def measured(self, samples: Sequence[Sampled], scores: ScoredAnswers | None, sync_seconds: float) -> Measured:
        """The fastest of several samples: the first ones pay for what is set up at first use."""
        return Measured(
            rollout_seconds=min(s.rollout_seconds for s in samples),
            sequences=-(-len(self._prompts) // self._config.rollout.workers),
            sampled_tokens=min(max(len(t.response_ids) for t in s.trajectories) for s in samples),
            learner_seconds=min(s.learner_seconds for s in samples),
            learner_tokens=sum(len(t.prompt_ids) + len(t.response_ids) for t in samples[0].trajectories),
            scoring_seconds=scores.seconds if scores else None,
            scoring_tokens=sum(len(r.prompt_ids) + len(r.response_ids) for r in scores.requests) if scores else 0,
            sync_seconds=sync_seconds,
        )

    def _requests(self) -> list[RolloutRequest]:
        """Sampled as in training but from the whole distribution; the first one is cut after one token."""
        limit = min(MAX_TOKENS, self._config.sampling.max_tokens)
        return [
            rollout_request(
                item,
                slot,
                derive_seed(self._config.seed, slot),
                limit if slot else 1,
                temperature=self._config.sampling.temperature,
            )
            for slot, item in enumerate(self._prompts)
        ]


def _choose(prepared: Prepared, count: int) -> list[RenderedPrompt]:
    """The longest prompt of moderate length and the first ones of each teacher, over and over where there are few."""
    short = [item for item in prepared.train if len(item.teacher_ids) <= LONGEST_PROMPT]
    short = short or [min(prepared.train, key=lambda item: len(item.teacher_ids))]
    longest = max(short, key=lambda item: len(item.student_ids))
    by_teacher: dict[str, list[RenderedPrompt]] = {}
    for item in short:
        by_teacher.setdefault(item.prompt.teacher, []).append(item)
    turns = [item for turn in zip_longest(*by_teacher.values()) for item in turn if item is not None]
    pool = [longest, *(item for item in turns[:count] if item is not longest)]
    return list(islice(cycle(pool), count))
