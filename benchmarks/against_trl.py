"""Completion tokens a second and a CPU-second against TRL's `DistillationTrainer`.

    python -m benchmarks.against_trl [--json PATH] [--peers trl trl_float32]

Both sides train the quickstart's student on the same prompts in the same order, as many completions a step, with the
same length limit, sampling, optimiser settings and the same two cores; ours with streaming (max_staleness 1) and one
thread for each worker, TRL with two threads. Runs take turns, start-up and the first two steps are left out, and every
process counts, Ray's own too. The learning rate is TRL's default, so low that neither student gets to shorter
answers within these few steps: the lengths stay the same.

What differs is what each side does by default. TRL computes in bfloat16 over float32 weights with gradient
checkpointing, generates with transformers, and compares whole distributions with a teacher that sees the student's
prompt, since it cannot show the teacher another one. Ours computes in float32, compares at the student's top 16
tokens, and its teacher reads a system prompt besides. `trl_float32` is TRL as a user could tune it for this machine:
float32 throughout, no gradient checkpointing.

TRL's vLLM mode does not run on CPU: colocated, its weight sync fails in vLLM's `load_weights`, since the CPU engine
has packed its weights away ("'Parameter' object has no attribute 'weight_loader'"); its server mode needs NCCL.
`--peers trl_vllm` shows it.
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ideal import interleaved_ratio
from benchmarks.job import CORES, WARM_UP_STEPS, on_two_cores, run_job, window
from benchmarks.report import finish, print_table
from orchestration.config.schema import RunConfig
from orchestration.prepare.checkpoints import resolve_model
from rollout.data.sources import load_prompts

PEER_PYTHON = Path(".venv-bench/bin/python")
PEERS: dict[str, dict[str, Any]] = {
    "trl": {},
    "trl_float32": {
        "bf16": False,
        "gradient_checkpointing": False,
        "teacher_model_init_kwargs": {"dtype": "float32"},
    },
    "trl_vllm": {"use_vllm": True, "vllm_max_model_length": 1024},
}
MAX_STALENESS = 1
LEARNING_RATE = 1e-6  # TRL's default
OUR_STEPS, PEER_STEPS, REPEATS = 6, 2, 2
TAIL_CHARACTERS = 3000


@dataclass(frozen=True)
class Speed:
    """What the steps after the warm-up took."""

    tokens_per_step: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    neighbours: float  # cores busy with something else

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.seconds_per_step

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens_per_step / self.cpu_seconds_per_step


def run_ours() -> tuple[Speed, RunConfig]:
    overrides = (
        "data.shuffle=false",
        f"learner.learning_rate={LEARNING_RATE}",
        f"pipeline.max_staleness={MAX_STALENESS}",
        f"pipeline.steps={OUR_STEPS}",
    )
    steps, config = run_job(overrides)
    steady = window(steps, MAX_STALENESS)
    speed = Speed(
        tokens_per_step=steady.tokens / steady.steps,
        seconds_per_step=steady.seconds / steady.steps,
        cpu_seconds_per_step=sum(steady.cpu.values()) / steady.steps,
        neighbours=steady.neighbours,
    )
    return speed, config


def peer_job(config: RunConfig, options: dict[str, Any]) -> dict[str, Any]:
    """Our run's settings as `benchmarks.trl_peer` reads them."""
    learner, sampling = config.learner, config.sampling
    return {
        "model": resolve_model(config.student.model),
        "teacher": resolve_model(config.teacher.model),
        "prompts": [[asdict(message) for message in prompt.messages] for prompt in load_prompts(config.data.train)],
        "steps": PEER_STEPS + WARM_UP_STEPS,
        "batch_size": config.pipeline.batch_size,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": config.seed,
        "learning_rate": learner.learning_rate,
        "schedule": learner.schedule.value,
        "warmup_steps": learner.warmup_steps,
        "weight_decay": learner.weight_decay,
        "betas": list(learner.betas),
        "max_grad_norm": learner.max_grad_norm,
        "threads": CORES,
        "options": options,
    }


def run_peer(job: dict[str, Any]) -> Speed:
    """Raises RuntimeError, with the end of what it printed, if TRL fails."""
    with tempfile.TemporaryDirectory(prefix="tutelage-benchmark-") as folder:
        job_path, figures_path = Path(folder) / "job.json", Path(folder) / "figures.json"
        job_path.write_text(json.dumps(job))
        environment = os.environ | {"OMP_NUM_THREADS": str(CORES), "VLLM_CPU_KVCACHE_SPACE": "1"}
        command = [str(PEER_PYTHON), "-m", "benchmarks.trl_peer", str(job_path), str(figures_path)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, preexec_fn=on_two_cores)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr[-TAIL_CHARACTERS:]}")
        return speed_of(json.loads(figures_path.read_text()))


def speed_of(steps: Sequence[dict[str, float]]) -> Speed:
    """From the end of the warm-up to the end of the last step."""
    first, last, inside = steps[WARM_UP_STEPS - 1], steps[-1], steps[WARM_UP_STEPS:]
    spent = {name: last[name] - first[name] for name in ("seconds", "cpu_seconds", "machine")}
    return Speed(
        tokens_per_step=sum(step["tokens"] for step in inside) / len(inside),
        seconds_per_step=spent["seconds"] / len(inside),
        cpu_seconds_per_step=spent["cpu_seconds"] / len(inside),
        neighbours=(spent["machine"] - spent["cpu_seconds"]) / spent["seconds"],
    )


def ratio_over(ours: Sequence[Speed], theirs: Sequence[Speed], quantity: str) -> float:
    return interleaved_ratio([getattr(run, quantity) for run in ours], [getattr(run, quantity) for run in theirs])


def compare(peers: Sequence[str], json_path: Path | None) -> None:
    speeds: dict[str, list[Speed]] = {"tutelage": [], **{name: [] for name in peers}}
    for _ in range(REPEATS):
        ours, config = run_ours()
        speeds["tutelage"].append(ours)
        for name in peers:
            speeds[name].append(run_peer(peer_job(config, PEERS[name])))
    rows = [
        (
            name,
            speed.tokens_per_step,
            speed.seconds_per_step,
            speed.cpu_seconds_per_step,
            speed.tokens_per_second,
            speed.tokens_per_cpu_second,
            speed.neighbours,
        )
        for name, runs in speeds.items()
        for speed in runs
    ]
    columns = ("", "tokens/step", "s/step", "CPU s/step", "tokens/s", "tokens/CPU s", "others' cores")
    print_table("The quickstart's job against TRL's DistillationTrainer, two cores", columns, rows)
    figures = {
        f"{quantity}_over_{name}": ratio_over(speeds["tutelage"], speeds[name], quantity)
        for name in peers
        for quantity in ("tokens_per_second", "tokens_per_cpu_second")
    }
    finish(figures, json_path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=["trl"], help="what to compare with")
    arguments = parser.parse_args()
    if not PEER_PYTHON.exists():
        parser.error(f"{PEER_PYTHON} is missing; make bench builds it")
    compare(arguments.peers, arguments.json)


if __name__ == "__main__":
    main()
