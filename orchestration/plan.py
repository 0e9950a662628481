"""What a run is going to do, for people: printed before it starts, and all that a dry run does."""

import math
import os
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from learner.objectives.describe import describe
from orchestration.config import ConfigError, RunConfig
from orchestration.contexts import ContextTemplate
from orchestration.needs import needs_reference_scorers, needs_teacher_rollouts
from orchestration.preparation import Prepared
from orchestration.routing import teachers_of
from scoring.config import TeacherBackend, TeacherConfig, TeacherWeights


def _rollout_workers(config: RunConfig) -> int:
    return config.rollout.workers * (2 if needs_teacher_rollouts(config) else 1)


def _scoring_workers(config: RunConfig) -> int:
    teachers = sum(not teacher.mixture for teacher in teachers_of(config).values())
    return config.scoring.workers * (teachers + needs_reference_scorers(config))


def required_cpus(config: RunConfig) -> float:
    return (
        _rollout_workers(config) * config.rollout.cpus_per_worker
        + _scoring_workers(config) * config.scoring.cpus_per_worker
        + config.learner.ranks * config.learner.cpus_per_rank
    )


def required_gpus(config: RunConfig) -> float:
    return (
        _rollout_workers(config) * config.rollout.gpus_per_worker
        + _scoring_workers(config) * config.scoring.gpus_per_worker
        + config.learner.ranks * config.learner.gpus_per_rank
    )


def check_resources(config: RunConfig, cpus: float, gpus: float) -> None:
    """Refuse more workers than the cluster can hold.

    Raises:
        ConfigError: naming what is asked for, what there is, and the keys that ask.
    """
    for name, needed, there in (("CPUs", required_cpus(config), cpus), ("GPUs", required_gpus(config), gpus)):
        if needed > there:
            raise ConfigError(
                f"the workers ask for {needed:g} {name} and the cluster has {there:g}: lower rollout.workers="
                f"{config.rollout.workers}, scoring.workers={config.scoring.workers} or learner.ranks="
                f"{config.learner.ranks} (or their share of {name}), or join more nodes; on one machine cluster.cpus="
                f"{math.ceil(required_cpus(config))} lets them share its cores"
            )


def check_local_resources(config: RunConfig) -> None:
    """`check_resources` for a cluster of the run's own, which is known before it is started."""
    if config.cluster.address == "local":
        check_resources(config, local_cpus(config), local_gpus())


def local_cpus(config: RunConfig) -> float:
    return float(config.cluster.cpus or os.cpu_count() or 1)


def local_gpus() -> float:
    return float(torch.cuda.device_count())


def _named(name: str, paper: str) -> str:
    return f"{name} ({paper})" if paper else name


def _student(config: RunConfig, prepared: Prepared) -> str:
    name, lora = config.student.model, config.student.lora
    if not lora.rank:
        return name
    layers = ", ".join(lora.targets) or "all linear layers"
    return f"{name}, trained by adapters of rank {lora.rank} on {layers} ({prepared.adapter_parameters:,} parameters)"


def _teachers(config: RunConfig, prepared: Prepared) -> str:
    """One line for each, with the training prompts that it marks where there are several."""
    teachers = teachers_of(config)
    shares = Counter(item.prompt.teacher for item in prepared.train)
    lines = []
    for key, teacher in teachers.items():
        line = _teacher(teacher)
        lines.append(line if len(teachers) == 1 else f"{key}: {line}; {shares[key]} training prompts")
    return "\n".join(lines) or "none"


def _teacher(teacher: TeacherConfig) -> str:
    if teacher.mixture:
        return "the mixture " + " + ".join(f"{weight:g} {member}" for member, weight in teacher.mixture.items())
    words = [teacher.model]
    if teacher.backend is not TeacherBackend.transformers:
        words.append(f"by {teacher.backend.value}")
    if teacher.weights is not TeacherWeights.fixed:
        words.append(f"weights: the student's {teacher.weights.value}")
    if teacher.context:
        words.append(f"told ({ContextTemplate(teacher.context).kind}): {teacher.context!r}")
    return ", ".join(words)


def print_plan(config: RunConfig, prepared: Prepared, outputs: Path) -> None:
    table = Table(title=f"{config.experiment}: what this run does", show_header=False, title_justify="left")
    pipeline, sampling = config.pipeline, config.sampling
    staleness = pipeline.max_staleness
    objective = describe(config.objective)
    rows = {
        "stage": config.stage.value,
        "student": _student(config, prepared),
        "teacher": _teachers(config, prepared),
        "prompts": f"{len(prepared.train)} to train on, {len(prepared.heldout)} held out, "
        f"{prepared.over_length} too long and left out",
        "objective": _named(config.objective.name, config.objective.paper),
        "in words": "\n".join(objective.words),
        "formula": "\n".join(objective.formula),
        "steps": f"{pipeline.steps} of {pipeline.batch_size} trajectories, at most {sampling.max_tokens} tokens each, "
        f"temperature {sampling.temperature:g}",
        "staleness": "strictly on-policy" if staleness == 0 else f"at most {staleness}",
        "workers": f"{_rollout_workers(config)} rollout, {_scoring_workers(config)} scoring, "
        f"{config.learner.ranks} learner rank(s), ZeRO-{config.learner.zero_stage}, {config.learner.dtype.value}",
        "resources": f"{required_cpus(config):g} CPUs, {required_gpus(config):g} GPUs",
        "outputs": str(outputs),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))  # a formula's brackets are not markup
    Console().print(table)
