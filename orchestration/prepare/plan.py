"""What a run is going to do, for people: printed before it starts, and all that a dry run does."""

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.table import Table

from diagnostics.preflight.prompts import check_overlap
from learner.objectives.describe import describe
from orchestration.config.facts import needs_teacher_rollouts, teachers_of
from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared
from orchestration.prepare.roles import Roles
from orchestration.prepare.warnings import warnings
from scoring.config import TeacherConfig, TeacherWeights
from scoring.context import ContextTemplate
from tutelage.cluster import Cluster, Session, local_cpus
from tutelage.console import PlainConsole
from tutelage.placement import ClusterNode, NoRoom, choose_seats
from tutelage.settings import Placement, Refusal, Refusals, WeightTransfer

_CONTAINER_LIMIT = Path("/sys/fs/cgroup/memory.max")


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
    refusals, cpus_needed, gpus_needed = Refusals(), required_cpus(config, roles), required_gpus(config, roles)
    asked = f"scoring.workers={config.scoring.workers} or learner.ranks={config.learner.ranks}"
    if gpus_needed > gpus == 0:
        fix = (
            f"the workers ask for {gpus_needed:g} GPUs and none is there: run it where nvidia-smi lists some, or on "
            "CPUs with rollout=cpu scoring=cpu learner=cpu"
        )
        shares = {
            "rollout.gpus_per_worker": config.rollout.gpus_per_worker,
            "scoring.gpus_per_worker": config.scoring.gpus_per_worker,
            "learner.gpus_per_rank": config.learner.gpus_per_rank,
        }
        key, share = next((key, share) for key, share in shares.items() if share)
        refusals.append(Refusal(key, share, fix))
    elif gpus_needed > gpus:
        fix = (
            f"the workers ask for {gpus_needed:g} GPUs and the cluster has {gpus:g}; lower it, {asked} or their shares "
            "of a GPU (gpus_per_worker, gpus_per_rank), or join more nodes"
        )
        refusals.append(Refusal("rollout.workers", config.rollout.workers, fix))
    if cpus_needed > cpus:
        fix = (
            f"the workers ask for {cpus_needed:g} CPUs and the cluster has {cpus:g}; lower it, {asked} (or their share "
            f"of CPUs), or join more nodes; on one machine cluster.cpus={math.ceil(cpus_needed)} lets them share its "
            "cores"
        )
        refusals.append(Refusal("rollout.workers", config.rollout.workers, fix))
    refusals.raise_all()


def check_local_resources(config: RunConfig, roles: Roles) -> None:
    """`check_resources` for a cluster of the run's own, which is known before it is started, and its memory."""
    if config.cluster.address == "local":
        check_resources(config, roles, local_cpus(config.cluster), torch.cuda.device_count())
        _check_sizes(config)


def host_memory_gib() -> float:
    """Memory of this machine, or of its container."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = _CONTAINER_LIMIT.read_text().strip() if _CONTAINER_LIMIT.is_file() else "max"
    return min(machine, int(text) if text.isdigit() else machine) / 2**30


def _check_sizes(config: RunConfig) -> None:
    """Refuse buffers that this machine has not the memory for.

    Raises:
        ConfigError: with each of them.
    """
    memory, refusals = host_memory_gib(), Refusals()
    sizes = {"cluster.object_store_gib": (config.cluster.object_store_gib, 1)}
    if config.rollout.gpus_per_worker == 0:
        sizes["rollout.kv_cache_gib"] = config.rollout.kv_cache_gib, _rollout_workers(config)
    if config.scoring.gpus_per_worker == 0 and any(t.backend == "vllm" for t in teachers_of(config).values()):
        sizes["scoring.engine.kv_cache_gib"] = config.scoring.engine.kv_cache_gib, config.scoring.workers
    for key, (gib, count) in sizes.items():
        if gib * count > memory:
            fix = f"{count} of it are {gib * count:g} GiB, and this machine has {memory:.1f} GiB of memory; lower it"
            refusals.append(Refusal(key, gib, fix))
    refusals.raise_all()


def join_cluster(config: RunConfig, roles: Roles, session: Session) -> Cluster:
    """The session's cluster, once it is known that the workers fit.

    Raises:
        ConfigError: no cluster at `cluster.address`, or more workers than it has room for.
    """
    cluster = session.cluster(config.cluster)
    nodes = cluster.nodes(free=False)
    check_resources(config, roles, sum(node.cpus for node in nodes), sum(node.gpus for node in nodes))
    refusals = Refusals()
    if len(nodes) > 1 and config.learner.weight_transfer is WeightTransfer.shared_memory:
        fix = f"reaches engines of the learner's node only, and the cluster has {len(nodes)} nodes; set auto"
        refusals.append(Refusal("learner.weight_transfer", WeightTransfer.shared_memory, fix))
    refusals.extend(_unplaceable(config, roles, nodes, learner_placement(config, roles, nodes)))
    refusals.raise_all()
    return cluster


def learner_placement(config: RunConfig, roles: Roles, nodes: Sequence[ClusterNode]) -> Placement:
    """Where the learner's ranks go: as configured if all others find room then, else as they do."""
    configured = config.cluster.placement.learner
    choices = (configured, Placement.pack, Placement.spread)
    return next((choice for choice in choices if not [*_unplaceable(config, roles, nodes, choice)]), configured)


def _unplaceable(
    config: RunConfig, roles: Roles, nodes: Sequence[ClusterNode], learners_go: Placement
) -> Iterator[Refusal]:
    """The first role whose workers the nodes cannot hold one by one, though they could all together."""
    learner, rollout, scoring, placement = config.learner, config.rollout, config.scoring, config.cluster.placement
    asked = (
        ("learner.ranks", learner.needs, learner.ranks, learners_go),
        ("rollout.workers", rollout.needs, rollout.workers, placement.engines),
        ("scoring.workers", scoring.needs, _scoring_workers(config, roles), Placement.spread),
        ("rollout.workers", rollout.needs, _rollout_workers(config) - rollout.workers, Placement.spread),
    )
    learners: set[str] = set()
    for key, need, count, where in asked:
        try:
            seats = choose_seats(nodes, need, count, where, learners)
        except NoRoom as error:
            fix = f"{error}, beside those before them; lower it or its share of CPUs and GPUs, or join larger nodes"
            yield Refusal(key, count, f"{fix}; see cluster.placement" if where is not Placement.spread else fix)
            return
        learners = learners or set(seats)
        nodes = [node.without(need, seats.count(node.id)) for node in nodes]


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
    table = Table(title=f"{config.name}: what this run does", show_header=False, title_justify="left")
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
        table.add_row(name, value)
    console = PlainConsole()
    console.print(table)
    for warning in warnings(config, prepared):
        console.print(f"warning: {warning}", style="yellow", soft_wrap=True)
