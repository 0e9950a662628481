"""Tasks that reasoning-gym generates, the same ones in every process.

Task i of a source is made from seed + i. Some of the library's families draw from Python's sets, whose order follows
the string hashes of the process. Tasks are therefore generated in a child process with fixed hashes:

    python -m rollout.data.reasoning_gym '{"task": …, "seed": …, "size": …, "options": …}'
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from rollout.config import PromptSourceConfig
from rollout.data.base import PromptSource, count_refusals, generated_count
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import ConfigError, Refusal

_SECONDS = 600
_TAIL_CHARACTERS = 2000


class ReasoningGymSource(PromptSource):
    """Tasks of one family; `metadata` of each prompt keeps the entry, from which the family's own verifier grades."""

    def refusals(self, settings: PromptSourceConfig, key: str) -> Iterator[Refusal]:
        if not settings.task:
            fix = "name a reasoning-gym task family, for instance basic_arithmetic"
            yield Refusal(f"{key}.task", settings.task, fix)
        yield from count_refusals(settings, key)

    def overlaps(self, train: PromptSourceConfig, heldout: PromptSourceConfig) -> Iterator[Refusal]:
        if (train.task, train.task_options) != (heldout.task, heldout.task_options):
            return
        behind = train.seed + train.size
        if behind > heldout.seed and heldout.seed + heldout.size > train.seed:
            fix = f"reasoning-gym makes task i from seed + i, so held-out tasks would be training tasks; use {behind}"
            yield Refusal("data.heldout.seed", heldout.seed, f"{fix} or more")

    def load(self, settings: PromptSourceConfig, key: str) -> list[Prompt]:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

        task, options = settings.task, settings.task_options
        if task not in DATASETS:
            nearest = get_close_matches(task, DATASETS, n=1, cutoff=0.0)
            raise ConfigError(
                Refusal(f"{key}.task", task, f"reasoning_gym has no such task; the nearest is {nearest[0]!r}")
            )
        size = generated_count(settings)
        try:
            reasoning_gym.create_dataset(task, seed=settings.seed, size=size, **options)
            entries = _generate(task, settings.seed, size, options)
        # reasoning_gym checks its options with assert; unknown ones are a TypeError of the config's constructor.
        except (AssertionError, TypeError, ValueError) as error:
            raise ConfigError(Refusal(f"{key}.task_options", options, f"{task} refuses them ({error})")) from error
        return [_to_prompt(index, entry, settings) for index, entry in enumerate(entries)]


def _to_prompt(index: int, entry: dict[str, Any], settings: PromptSourceConfig) -> Prompt:
    answer = entry["answer"]
    return Prompt(
        id=f"{settings.task}-{settings.seed}-{index}",
        messages=(Message("user", entry["question"]),),
        answer=None if answer is None else str(answer),
        metadata={"task": settings.task, "entry": entry},
        domain=settings.task,
    )


def _generate(task: str, seed: int, size: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """Make `size` entries of a task family in a child process: question, answer and whatever its scorer needs.

    Raises:
        ValueError: the family cannot make such tasks.
        subprocess.TimeoutExpired: it took longer than ten minutes.
    """
    job = json.dumps({"task": task, "seed": seed, "size": size, "options": options})
    command = [sys.executable, "-m", "rollout.data.reasoning_gym", job]
    done = subprocess.run(command, env=os.environ | {"PYTHONHASHSEED": "0"}, capture_output=True, timeout=_SECONDS)
    if done.returncode:
        raise ValueError(f"generating it failed:\n{done.stderr.decode(errors='replace')[-_TAIL_CHARACTERS:]}")
    # Entries hold tuples and objects that JSON would change under the scorer; the bytes come from our own child.
    entries: list[dict[str, Any]] = pickle.loads(done.stdout)
    return entries


def main() -> None:
    """Write the entries of the job on the command line to standard output, as a pickle."""
    job = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        import reasoning_gym

        tasks = reasoning_gym.create_dataset(job["task"], seed=job["seed"], size=job["size"], **job["options"])
        entries = [tasks[index] for index in range(job["size"])]
    sys.stdout.buffer.write(pickle.dumps(entries))


if __name__ == "__main__":
    main()
