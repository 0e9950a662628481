"""How good a policy is on the held-out prompts: the student now, and the teacher once.

held-out prompts ─► rollout workers ─► the teacher's hidden states ─► learner: exact KLs ─► intervals
                                   └─► verifier: accuracy
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from diagnostics.intervals import Interval, ratio_interval
from learner.batch import Batch, Example
from learner.config import LearnerConfig
from learner.evaluation import ExampleDivergence
from learner.packing import pack
from orchestration.config import RunConfig
from orchestration.needs import marks_new_responses
from orchestration.preparation import Prepared, RenderedPrompt, teacher_view, with_ids
from orchestration.schedule import derive_seed
from orchestration.summary import Evaluation
from orchestration.workers import RolloutGroup, Workers
from rollout.trajectory import FinishReason, RolloutRequest, Trajectory
from rollout.verifiers import Verifier
from scoring.packed_model import shares_prefixes
from scoring.signal import ScoringRequest

TEACHER = "teacher"  # key of the one teacher


@dataclass(frozen=True)
class Answers:
    """An evaluation with the texts behind it."""

    evaluation: Evaluation
    texts: dict[str, str] = field(default_factory=dict)  # prompt id -> answer


def requests(prompts: Sequence[RenderedPrompt], config: RunConfig) -> list[RolloutRequest]:
    """One answer for each prompt, always with the same seeds."""
    settings = config.evaluation
    return [
        RolloutRequest(
            slot=index,
            prompt_id=item.prompt.id,
            sample_index=0,
            prompt_ids=item.student_ids,
            seed=derive_seed(settings.seed, index),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
        )
        for index, item in enumerate(prompts)
    ]


def full_request(item: RenderedPrompt, trajectory: Trajectory) -> ScoringRequest:
    """Ask the teacher for its whole distribution at each token of a response to this prompt."""
    return ScoringRequest(item.prompt.teacher, item.teacher_ids, trajectory.response_ids, hidden_states=True)


def pack_to_examine(examples: Sequence[Example], learner: LearnerConfig, version: int) -> Batch:
    """A batch that the learner at `version` looks at and does not learn from."""
    share_prefixes = shares_prefixes(learner.attention)
    return pack(examples, learner.ranks, learner.micro_batch_tokens, version, share_prefixes)


def examined_k(learner: LearnerConfig) -> int:
    """The k of both models' most likely ids where tokens are examined, also in a run that measures no overlap."""
    return learner.overlap_k or LearnerConfig().overlap_k


class Evaluator:
    def __init__(self, config: RunConfig, prepared: Prepared, verifier: Verifier | None) -> None:
        self._config = config
        self._prepared = prepared
        self._prompts = with_ids(prepared.heldout)
        self._verifier = verifier

    async def student(self, workers: Workers, version: int) -> Answers:
        """The current student on its own answers, with exact KLs to the teacher if there is one."""
        answers = await self._answers(workers.rollouts, self._prepared.heldout)
        if workers.scorers is None or not marks_new_responses(self._config):
            return self._judge(answers, None)
        signals = await workers.scorers.score_all(
            [full_request(self._prompts[answer.prompt_id], answer) for answer in answers]
        )
        examples = [Example(t, s) for t, s in zip(answers, signals, strict=True)]
        batch = pack_to_examine(examples, self._config.learner, version)
        return self._judge(answers, await workers.learner.evaluate(batch, TEACHER))

    async def teacher(self, rollouts: RolloutGroup) -> Answers:
        """The teacher's own answers, from workers that hold its weights."""
        prompts = [teacher_view(item) for item in self._prepared.heldout]
        return self._judge(await self._answers(rollouts, prompts), None)

    async def _answers(self, rollouts: RolloutGroup, prompts: Sequence[RenderedPrompt]) -> list[Trajectory]:
        answers = [item async for item in rollouts.roll_out(requests(prompts, self._config))]
        return sorted(answers, key=lambda item: item.slot)

    def _judge(self, answers: Sequence[Trajectory], divergences: Sequence[ExampleDivergence] | None) -> Answers:
        texts = {
            a.prompt_id: self._prepared.tokenizer.decode(a.response_ids, skip_special_tokens=True) for a in answers
        }
        lengths = np.array([len(a.response_ids) for a in answers], dtype=float)
        ones = np.ones_like(lengths)
        columns = {
            "mean_response_tokens": (lengths, ones),
            "truncated_share": (
                np.array([float(a.finish_reason is FinishReason.LENGTH) for a in answers]),
                ones,
            ),
        }
        if self._verifier is not None:
            rewards = [self._verifier(self._prompts[key].prompt, text) for key, text in texts.items()]
            columns["accuracy"] = (np.array(rewards), ones)
        if divergences is not None:
            tokens = np.array([d.tokens for d in divergences], dtype=float)
            measured = ("overlap_ratio",) if self._config.learner.overlap_k else ()
            for name in ("reverse_kl", "forward_kl", *measured):
                columns[name] = (np.array([getattr(d, name) for d in divergences]), tokens)
        intervals = {name: ratio_interval(total, weight) for name, (total, weight) in columns.items()}
        means = {name: interval.mean for name, interval in intervals.items()}
        if "accuracy" in columns:
            intervals |= self._accuracy_by_domain(answers, columns["accuracy"][0])
        return Answers(Evaluation(n_prompts=len(answers), intervals=intervals, **means), texts)

    def _accuracy_by_domain(self, answers: Sequence[Trajectory], rewards: NDArray[np.float64]) -> dict[str, Interval]:
        """Where the prompts are of several domains."""
        domains = np.array([self._prompts[answer.prompt_id].prompt.domain for answer in answers])
        names = sorted(set(domains.tolist()))
        if len(names) < 2:
            return {}
        chosen = {name: rewards[domains == name] for name in names}
        return {f"accuracy/{name}": ratio_interval(found, np.ones_like(found)) for name, found in chosen.items()}
