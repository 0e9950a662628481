"""What is unusual is said before a run starts, and nothing of an ordinary one."""

import pytest

from orchestration.prepare.plan import check_local_resources, print_plan
from orchestration.prepare.roles import Roles
from orchestration.prepare.warnings import warnings
from tests.factories import configured, prepared
from tutelage.settings import ConfigError

UNUSUAL = {
    "learner.learning_rate=0.01": "learner.learning_rate",
    "learner.learning_rate=1e-12": "learner.learning_rate",
    "learner.weight_decay=2": "learner.weight_decay",
    "learner.warmup_steps=25": "learner.warmup_steps",
    "sampling.samples_per_prompt=4": "pipeline.batch_size",
    "pipeline.batch_size=64": "pipeline.batch_size",
    "evaluation.prompts=7": "evaluation.prompts",
    "evaluation.every=25": "evaluation.every",
    "pipeline.max_staleness=25": "pipeline.max_staleness",
    "sampling.temperature=30": "sampling.temperature",
    "rollout.threads=5000": "rollout.threads",
}
USUAL = ("pipeline.batch_size=6", "evaluation.prompts=6")


def test_an_ordinary_run_has_none(overrides: list[str]) -> None:
    run = prepared(overrides, *USUAL)
    assert [str(warning) for warning in warnings(configured(*overrides, *USUAL), run)] == []


@pytest.mark.parametrize("setting", UNUSUAL)
def test_the_unusual_is_named(setting: str, overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    importance = ["objective.importance=none", "objective.support=student_topk"]
    config = configured(*overrides, *USUAL, *importance, setting)
    print_plan(config, prepared(overrides, *USUAL, *importance, setting), config.output_root)  # type: ignore[arg-type]
    assert f"warning: {UNUSUAL[setting]}=" in capsys.readouterr().out


@pytest.mark.parametrize("setting", ["cluster.object_store_gib", "rollout.kv_cache_gib"])
def test_more_memory_than_the_machine_has_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=rf"{setting}=1000000000\.0.*this machine has"):
        check_local_resources(configured(f"{setting}=1e9", "cluster.cpus=64"), Roles())


def test_gpus_that_are_not_there_are_what_is_said() -> None:
    config = configured("rollout=gpu", "learner=gpu", "cluster.cpus=64")
    with pytest.raises(ConfigError, match=r"rollout\.gpus_per_worker=1.*none is there.*rollout=cpu"):
        check_local_resources(config, Roles())
