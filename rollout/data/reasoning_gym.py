"""Tasks that reasoning-gym generates, the same ones in every process.

Some of its families draw from Python's sets, whose order follows the string hashes of the process. Tasks are therefore
generated in a child process with fixed hashes:

    python -m rollout.data.reasoning_gym '{"task": …, "seed": …, "size": …, "options": …}'
"""

import contextlib
import json
import os
import pickle
import subprocess
import sys
from typing import Any

_SECONDS = 600
_TAIL_CHARACTERS = 2000


def generate(task: str, seed: int, size: int, options: dict[str, Any]) -> list[dict[str, Any]]:
    """`size` entries of a task family: question, answer and whatever its scorer needs.

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
    job = json.loads(sys.argv[1])
    with contextlib.redirect_stdout(sys.stderr):
        import reasoning_gym

        tasks = reasoning_gym.create_dataset(job["task"], seed=job["seed"], size=job["size"], **job["options"])
        entries = [tasks[index] for index in range(job["size"])]
    sys.stdout.buffer.write(pickle.dumps(entries))


if __name__ == "__main__":
    main()
