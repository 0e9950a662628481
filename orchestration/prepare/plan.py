"""What a run is going to do, for people: printed before it starts, and all that a dry run does."""

import math
from collections import Counter
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnostics.preflight.prompts import check_overlap
from learner.objectives.describe import describe
from orchestration.config.facts import needs_teacher_rollouts, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.roles import Roles
from scoring.config import TeacherConfig, TeacherWeights
from scoring.context import ContextTemplate
from tutelage.cluster import Cluster, Session, local_cpus
from tutelage.settings import ConfigError, Refusal


def _rollout_workers(config: RunConfig) -> int:
    return config.rollout.workers * (2 if needs_teacher_rollouts(config) else 1)


def _scoring_workers(config: RunConfig, roles: Roles) -> int:
    return config.scoring.workers * sum(not scorer.occasional for scorer in roles.groups)


def required_cpus(config: RunConfig, roles: Roles) -> float:
    return (
        _rollout_workers(config) * config.rollout.cpus_per_worker
        + _scoring_workers(config, roles) * config.scoring.cpus_per_worker
        + config.learner.ranks * config.learner.cpus_per_rank
    )


def required_gpus(config: RunConfig, roles: Roles) -> float:
    occasional = sum(scorer.occasional for scorer in roles.groups)
    return (
        _rollout_workers(config) * config.rollout.gpus_per_worker
        + (_scoring_workers(config, roles) + occasional) * config.scoring.gpus_per_worker
        + config.learner.ranks * config.learner.gpus_per_rank
    )


def check_resources(config: RunConfig, roles: Roles, cpus: float, gpus: float) -> None:
    """Refuse more workers than the cluster can hold.

    Raises:
        ConfigError: naming what is asked for, what there is, and the keys that ask.
    """
    for name, needed, there in (
        ("CPUs", required_cpus(config, roles), cpus),
        ("GPUs", required_gpus(config, roles), gpus),
    ):
        if needed > there:
            fix = (
                f"the workers ask for {needed:g} {name} and the cluster has {there:g}; lower it, scoring.workers="
                f"{config.scoring.workers} or learner.ranks={config.learner.ranks} (or their share of {name}), or join "
                f"more nodes; on one machine cluster.cpus={math.ceil(required_cpus(config, roles))} lets them share "
                "its cores"
            )
            raise ConfigError(Refusal("rollout.workers", config.rollout.workers, fix))


def check_local_resources(config: RunConfig, roles: Roles) -> None:
    """`check_resources` for a cluster of the run's own, which is known before it is started."""
    if config.cluster.address == "local":
        check_resources(config, roles, local_cpus(config.cluster), torch.cuda.device_count())


def join_cluster(config: RunConfig, roles: Roles, session: Session) -> Cluster:
    """The session's cluster, once it is known that the workers fit.

    Raises:
        ConfigError: more workers than the cluster has room for.
        ConnectionError: no cluster at `cluster.address`.
    """
    cluster = session.cluster(config.cluster)
    check_resources(config, roles, *cluster.resources())
    return cluster


def _student(config: RunConfig, prepared: Prepared) -> str:
    name, lora = config.student.model, config.student.lora
    if not lora.rank:
        return name
    layers = ", ".join(lora.targets) or "all linear layers"
    return f"{name}, trained by adapters of rank {lora.rank} on {layers} ({prepared.adapter_parameters:,} parameters)"


def _teachers(config: RunConfig, prepared: Prepared) -> str:
    """One line for each, with the training prompts that it scores where there are several."""
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
    if teacher.backend != TeacherConfig.backend:
        words.append(f"by {teacher.backend}")
    if teacher.weights is not TeacherWeights.fixed:
        words.append(f"weights: the student's {teacher.weights.value}")
    if teacher.context:
        words.append(f"told ({ContextTemplate(teacher.context).kind}): {teacher.context!r}")
    return ", ".join(words)


def _overlap(prepared: Prepared) -> str:
    check = check_overlap([item.prompt for item in prepared.train], [item.prompt for item in prepared.heldout])
    return f"{check.seen}; {check.fix}" if check.fix else check.seen


def print_plan(config: RunConfig, prepared: Prepared, outputs: Path) -> None:
    table = Table(title=f"{config.experiment}: what this run does", show_header=False, title_justify="left")
    pipeline, sampling = config.pipeline, config.sampling
    staleness = pipeline.max_staleness
    objective = describe(config.objective)
    rows = {
        "stage": config.stage,
        "student": _student(config, prepared),
        "teacher": _teachers(config, prepared),
        **({"ends of turns": prepared.ends.in_words} if prepared.ends.in_words else {}),
        "prompts": f"{len(prepared.train)} to train on, {len(prepared.heldout)} held out, "
        f"{prepared.over_length} too long and {prepared.blank} blank left out",
        "held-out prompts": _overlap(prepared),
        "objective": config.objective.name + (f" ({config.objective.paper})" if config.objective.paper else ""),
        "in words": "\n".join(objective.words),
        "formula": "\n".join(objective.formula),
        "steps": f"{pipeline.steps} of {pipeline.batch_size} trajectories, at most {sampling.max_tokens} tokens each, "
        f"temperature {sampling.temperature:g}",
        "staleness": "strictly on-policy" if staleness == 0 else f"at most {staleness}",
        "workers": f"{_rollout_workers(config)} rollout, {_scoring_workers(config, prepared.roles)} scoring, "
        f"{config.learner.ranks} learner rank(s), ZeRO-{config.learner.zero_stage}, {config.learner.dtype.value}",
        "resources": f"{required_cpus(config, prepared.roles):g} CPUs, {required_gpus(config, prepared.roles):g} GPUs",
        "outputs": str(outputs),
    }
    for name, value in rows.items():
        table.add_row(name, Text(value))  # a formula's brackets are not markup
    Console().print(table)
