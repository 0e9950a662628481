"""The sequences that a cold start learns from: collected once, judged one by one, and kept in the run's folder.

    the teacher's engines ─┐
                           ├─► grade ─► judge: kept, or why not ─► sequences.jsonl ─► the stage
    the data's completions ┘

The file holds every sequence with its verdict, so that a resumed run learns from the same ones.
"""

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

from diagnostics.monitors import repetition
from orchestration.config.facts import learns_from_data
from orchestration.config.schema import ColdStartConfig, RunConfig
from orchestration.pipeline.fleet import TeacherEngines
from orchestration.pipeline.sources import TrajectorySource
from orchestration.prepare.inputs import Prepared
from rollout.grading import Grader
from tutelage.files import sha256, write_text
from tutelage.records.trajectory import CORRECT, FinishReason, Origin, Trajectory

_FILE, _DIGEST = "sequences.jsonl", "sequences.sha256"
_REPORTS = 10  # lines about how far the collection is


class SequenceVerdict(Enum):
    """What becomes of a sequence; where several reasons hold, the first."""

    kept = "kept"
    truncated = "truncated"  # did not end within sampling.max_tokens
    incorrect = "incorrect"  # below the verifier's full score
    repetitive = "repetitive"
    duplicate = "duplicate"  # another one with the same prompt and response is kept


@dataclass(frozen=True)
class JudgedSequence:
    """One response to a training prompt."""

    prompt_id: str
    sample_index: int
    origin: str  # "teacher" or "dataset"
    verdict: str
    reward: float | None
    response: str
    response_ids: tuple[int, ...]  # [T]


class NothingToLearn(RuntimeError):
    """No sequence was kept, or they are not those that were; the message says why."""


def load_sequences(run_dir: Path) -> list[JudgedSequence]:
    """Read what was collected.

    Raises:
        NothingToLearn: the file is not as it was written.
    """
    file, digest = run_dir / _FILE, run_dir / _DIGEST
    if digest.is_file() and digest.read_bytes() != sha256(file).encode():  # older versions wrote none
        fix = f"restore it, or delete it and {_DIGEST} and begin anew"
        raise NothingToLearn(f"{file} is not what was collected, so the run would learn from something else; {fix}")
    rows = map(json.loads, file.read_bytes().splitlines())  # of bytes: responses may hold other ends of lines
    return [JudgedSequence(**row | {"response_ids": tuple(row["response_ids"])}) for row in rows]


def verdict_counts(sequences: Sequence[JudgedSequence]) -> dict[str, int]:
    counts = Counter(sequence.verdict for sequence in sequences)
    return {f"sequences_{verdict.value}": counts[verdict.value] for verdict in SequenceVerdict}


def teacher_tokens(sequences: Sequence[JudgedSequence]) -> int:
    """All that the teacher wrote, whatever became of it."""
    return sum(len(sequence.response_ids) for sequence in sequences if sequence.origin == Origin.TEACHER.value)


async def collect_once(
    config: RunConfig,
    prepared: Prepared,
    teacher: TeacherEngines,
    grader: Grader,
    run_dir: Path,
    say: Callable[[str], None],
) -> list[JudgedSequence]:
    """Read what an earlier start of the run collected, or collect all there is now.

    That is the data's completions, or the teacher's `sampling.samples_per_prompt` responses to each prompt.

    Raises:
        NothingToLearn: none of them is kept.
    """
    if not (run_dir / _FILE).is_file():
        source = TrajectorySource(
            config, prepared.train, 0, None, None if learns_from_data(config) else await teacher.get()
        )
        say("collecting the sequences to learn from …")
        trajectories = await _collect(source, _slots(config, prepared), say)
        graded = await asyncio.gather(*(grader.grade(trajectory) for trajectory in trajectories))
        _write(graded, sequence_verdicts(graded, config.cold_start), prepared, run_dir)
    sequences = load_sequences(run_dir)
    say(_report(verdict_counts(sequences), config.pipeline.steps * config.pipeline.batch_size))
    return sequences


def _slots(config: RunConfig, prepared: Prepared) -> range:
    """The slots of one epoch; a prompt has one completion and any number of the teacher's responses."""
    samples = config.sampling.samples_per_prompt
    return range(0, len(prepared.train) * samples, samples if learns_from_data(config) else 1)


async def _collect(source: TrajectorySource, slots: range, say: Callable[[str], None]) -> list[Trajectory]:
    """In order of slot, whatever order they come in."""
    collected: list[Trajectory] = []
    async for trajectory in source.roll_out(slots):
        collected.append(trajectory)
        if len(collected) * _REPORTS // len(slots) > (len(collected) - 1) * _REPORTS // len(slots):
            say(f"{len(collected)} of {len(slots)} sequences")
    return sorted(collected, key=lambda trajectory: trajectory.slot)


def _write(
    trajectories: Sequence[Trajectory], verdicts: Sequence[SequenceVerdict], prepared: Prepared, run_dir: Path
) -> None:
    rows = [
        JudgedSequence(
            prompt_id=trajectory.prompt_id,
            sample_index=trajectory.sample_index,
            origin=trajectory.origin.value,
            verdict=verdict.value,
            reward=trajectory.reward,
            response=prepared.tokenizer.decode(trajectory.response_ids, skip_special_tokens=True),
            response_ids=tuple(trajectory.response_ids.tolist()),
        )
        for trajectory, verdict in zip(trajectories, verdicts, strict=True)
    ]
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    write_text(
        run_dir / _DIGEST, hashlib.sha256(text.encode()).hexdigest()
    )  # first: without the other it means nothing
    write_text(run_dir / _FILE, text)


def _report(counts: Mapping[str, int], trained: int) -> str:
    words = ", ".join(f"{number} {name.removeprefix('sequences_')}" for name, number in counts.items())
    kept = counts["sequences_kept"]
    if not kept:
        raise NothingToLearn(
            f"no sequence is left to learn from ({words}): raise sampling.max_tokens where they are truncated, or see "
            f"cold_start.only_correct and cold_start.max_repetition; {_FILE} has them all"
        )
    return f"sequences: {words}; the steps make {trained / kept:.3g} epochs"


def sequence_verdicts(trajectories: Sequence[Trajectory], config: ColdStartConfig) -> list[SequenceVerdict]:
    """Decide what becomes of each; of equal responses to equal prompts the first one stays."""
    kept: set[tuple[bytes, bytes]] = set()
    verdicts = []
    for trajectory in trajectories:
        key = (trajectory.prompt_ids.tobytes(), trajectory.response_ids.tobytes())
        verdict = _fault(trajectory, config) or (
            SequenceVerdict.duplicate if key in kept and not config.keep_duplicates else SequenceVerdict.kept
        )
        if verdict is SequenceVerdict.kept:
            kept.add(key)
        verdicts.append(verdict)
    return verdicts


def _fault(trajectory: Trajectory, config: ColdStartConfig) -> SequenceVerdict | None:
    """What is wrong with a sequence by itself."""
    if trajectory.finish_reason is FinishReason.LENGTH:
        return SequenceVerdict.truncated
    if config.only_correct and trajectory.reward is not None and trajectory.reward < CORRECT:
        return SequenceVerdict.incorrect
    if repetition(trajectory.response_ids.tolist(), config.repetition_tokens) > config.max_repetition:
        return SequenceVerdict.repetitive
    return None
