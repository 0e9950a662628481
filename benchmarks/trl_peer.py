"""TRL's `DistillationTrainer` on a job given as JSON; prints what each of its steps cost, as JSON.

    .venv-bench/bin/python -m benchmarks.trl_peer JOB.json FIGURES.json

Run by `benchmarks.against_trl`, in the environment that `make bench` builds. What the job does not name keeps TRL's
own default: mixed precision in bfloat16 over float32 weights, gradient checkpointing, full-vocabulary reverse KL,
and 8 completions in a micro-batch, here two of them.
"""

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback
from trl import DistillationConfig, DistillationTrainer

from benchmarks.processes import cpu_seconds, machine_cpu_seconds

PROMPTS_PER_MICRO_BATCH = 8  # TRL's default


class StepRecorder(TrainerCallback):
    """Time, CPU seconds and completion tokens when each step has ended."""

    def __init__(self, process: int, completions: int) -> None:
        self._process, self._completions = process, completions
        self.steps: list[dict[str, float]] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        spent = sum(cpu_seconds(self._process, lambda _process: "all").values())
        here = {"seconds": time.monotonic(), "cpu_seconds": spent, "machine": machine_cpu_seconds()}
        self.steps.append(here)

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float], **_: Any) -> None:
        mean_length = logs.get("completions/mean_length")
        if mean_length is not None:
            self.steps[-1]["tokens"] = mean_length * self._completions


def configure(job: dict[str, Any], output_dir: str) -> DistillationConfig:
    return DistillationConfig(
        output_dir=output_dir,
        use_cpu=True,
        max_steps=job["steps"],
        per_device_train_batch_size=PROMPTS_PER_MICRO_BATCH,
        gradient_accumulation_steps=job["batch_size"] // PROMPTS_PER_MICRO_BATCH,
        max_completion_length=job["max_tokens"],
        temperature=job["temperature"],
        shuffle_dataset=False,
        seed=job["seed"],
        learning_rate=job["learning_rate"],
        lr_scheduler_type=job["schedule"],
        warmup_steps=job["warmup_steps"],
        weight_decay=job["weight_decay"],
        adam_beta1=job["betas"][0],
        adam_beta2=job["betas"][1],
        max_grad_norm=job["max_grad_norm"],
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        **job["options"],
    )


def train(job: dict[str, Any]) -> list[dict[str, float]]:
    torch.set_num_threads(job["threads"])
    recorder = StepRecorder(process=os.getpid(), completions=job["batch_size"])
    with tempfile.TemporaryDirectory(prefix="tutelage-trl-") as output_dir:
        trainer = DistillationTrainer(
            model=job["model"],
            teacher_model=job["teacher"],
            args=configure(job, output_dir),
            train_dataset=Dataset.from_list([{"prompt": messages} for messages in job["prompts"]]),
            callbacks=[recorder],
        )
        trainer.train()
    return recorder.steps


def main() -> None:
    job_path, figures_path = map(Path, sys.argv[1:])
    job = json.loads(job_path.read_text())
    figures_path.write_text(json.dumps(train(job)))


if __name__ == "__main__":
    main()
