"""What a run is warned of before it starts: settings that can work, and that are hardly what was meant."""

import os
from collections.abc import Iterator

from orchestration.config.schema import RunConfig
from orchestration.prepare.inputs import Prepared
from tutelage.settings import Refusal

_USUAL_RATES = 1e-8, 5e-3  # 1e-6 to 1e-4 for whole models, ten times as much for adapters, 2e-3 for tiny ones
_HOT = 2.0  # a sampling temperature above it makes noise of most models


def warnings(config: RunConfig, prepared: Prepared) -> Iterator[Refusal]:
    """Say what is unusual about a run that nothing refuses, each with what to write instead."""
    yield from _learning(config)
    yield from _counts(config, prepared)
    yield from _sampling(config)
    if config.cluster.address == "local":
        yield from _threads(config)


def _learning(config: RunConfig) -> Iterator[Refusal]:
    learner = config.learner
    slowest, fastest = _USUAL_RATES
    if learner.learning_rate > fastest:
        fix = "hundreds of times what is usual, and likely to destroy the student; 1e-6 to 1e-4 are usual"
        yield Refusal("learner.learning_rate", learner.learning_rate, fix)
    if learner.learning_rate < slowest:
        fix = "so small that the student will hardly change; 1e-6 to 1e-4 are usual"
        yield Refusal("learner.learning_rate", learner.learning_rate, fix)
    if learner.warmup_steps >= config.pipeline.steps:
        fix = f"the run ends after pipeline.steps={config.pipeline.steps}, before learning_rate is reached; lower it"
        yield Refusal("learner.warmup_steps", learner.warmup_steps, fix)
    if learner.weight_decay > 1:
        fix = "draws the weights to 0 faster than they learn; 0 to 0.1 are usual"
        yield Refusal("learner.weight_decay", learner.weight_decay, fix)


def _counts(config: RunConfig, prepared: Prepared) -> Iterator[Refusal]:
    """More of something than there is, or than there is time for."""
    pipeline, samples, steps = config.pipeline, config.sampling.samples_per_prompt, config.pipeline.steps
    if pipeline.batch_size % samples:
        fix = f"no multiple of sampling.samples_per_prompt={samples}, so the samples of a prompt fall into two steps"
        yield Refusal("pipeline.batch_size", pipeline.batch_size, f"{fix}; set one")
    if pipeline.batch_size > len(prepared.train) * samples:
        fix = f"more than one pass over the {len(prepared.train)} training prompts in every step; lower it"
        yield Refusal("pipeline.batch_size", pipeline.batch_size, fix)
    if config.evaluation.prompts > len(prepared.heldout):
        fix = f"only {len(prepared.heldout)} held-out prompts are there; lower it, or add rows to data.heldout"
        yield Refusal("evaluation.prompts", config.evaluation.prompts, fix)
    if config.alignment.enabled and config.alignment.questions > len(prepared.train):
        fix = f"only {len(prepared.train)} training prompts are there; lower it, or add rows to data.train"
        yield Refusal("alignment.questions", config.alignment.questions, fix)
    if config.evaluation.every >= steps > 1:
        yield Refusal("evaluation.every", config.evaluation.every, f"never comes within pipeline.steps={steps}; set 0")
    if pipeline.max_staleness >= steps > 1:
        fix = f"lets every one of pipeline.steps={steps} learn from the untrained student; 0 or 1 are usual"
        yield Refusal("pipeline.max_staleness", pipeline.max_staleness, fix)
    for name, rule in config.alarms.rules.items():
        needed = rule.window + rule.patience - 1
        if needed > steps and rule.remedy.value != "warn":
            fix = f"needs {needed} steps of pipeline.steps={steps}, so the alarm cannot be raised; lower it"
            yield Refusal(f"alarms.rules.{name}.window", rule.window, fix)


def _sampling(config: RunConfig) -> Iterator[Refusal]:
    temperatures = {
        "sampling.temperature": config.sampling.temperature,
        "evaluation.temperature": config.evaluation.temperature,
    }
    for key, temperature in temperatures.items():
        if temperature > _HOT:
            yield Refusal(key, temperature, "most of what is sampled so hot is noise; 0.6 to 1.2 are usual")


def _threads(config: RunConfig) -> Iterator[Refusal]:
    cores = os.cpu_count() or 1
    for key in ("rollout", "scoring", "learner"):
        threads = getattr(config, key).threads
        if threads > cores:
            fix = f"this machine has {cores} cores, and more threads than cores are slower; lower it"
            yield Refusal(f"{key}.threads", threads, fix)
