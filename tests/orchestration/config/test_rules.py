"""Composition, and every rule on the values alone."""

import pytest
from omegaconf import OmegaConf

from orchestration.cli import explain
from orchestration.config.schema import RunConfig
from tests.factories import CONF, NEEDED_BY_PRESETS, configured, message
from tutelage.settings import ConfigError, Refusal

ADDED_GROUPS = ("probe",)  # that no run has unless it is asked for
GROUPS = [
    f"{'+' * (group.name in ADDED_GROUPS)}{group.name}={path.relative_to(group).with_suffix('')}"
    for group in sorted(path for path in CONF.iterdir() if path.is_dir())
    for path in sorted(group.rglob("*.yaml"))
]  # every option of every group
GRADED = ("+probe=alignment", "teacher=self_after_feedback", "teacher=self_told_sibling")


@pytest.mark.parametrize("option", [option for option in GROUPS if not option.startswith("tracking=online")])
def test_every_yaml_composes(option: str) -> None:
    gpus = ["rollout=gpu", "learner=gpu"] if option in ("rollout=gpu", "learner=gpu") else []
    verifier = ["data.verifier=exact", "sampling.samples_per_prompt=4"] if option in GRADED else []
    configured(option, *gpus, *verifier, *NEEDED_BY_PRESETS.get(option.removeprefix("objective="), ()))


def test_yaml_values_are_choices_not_a_second_set_of_defaults() -> None:
    config = configured()
    assert config.objective.k == RunConfig().objective.k
    assert config.objective.name == "student_topk_reverse_kl"


def test_a_built_config_is_read_only() -> None:
    config = configured("objective=entropy_aware")
    with pytest.raises(AttributeError, match="frozen"):
        config.learner.learning_rate = 1.0
    with pytest.raises(AttributeError, match="frozen"):
        config.objective.further_terms["forward"].weight = 2.0


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("learner.learning_rat=1", ["learner.learning_rat", "did you mean learner.learning_rate"]),
        ("pipline.steps=3", ["pipline.steps", "did you mean pipeline.steps"]),
        ("objective=student_topk", ["student_topk_reverse_kl", "did you mean"]),
        ("learner.lr=1", ["learner.lr", "learner has", "learning_rate"]),
        ("learner.dtype=float8", ["learner.dtype"]),
        ("pipeline.steps=many", ["pipeline.steps"]),
        ("pipeline.batch_size=0", ["pipeline.batch_size=0", "at least 1"]),
        ("pipeline.max_staleness=-1", ["pipeline.max_staleness=-1"]),
        ("sampling.temperature=0", ["sampling.temperature=0"]),
        ("learner.zero_stage=4", ["learner.zero_stage=4"]),
        ("learner.overlap_k=-1", ["learner.overlap_k=-1", "0"]),
        ("student.lora.rank=-1", ["student.lora.rank=-1", "0"]),
        ("student.lora={rank:4,alpha:0}", ["student.lora.alpha=0", "above 0"]),
        ("student.lora={rank:4,dropout:1}", ["student.lora.dropout=1", "below 1"]),
        ("student.lora.targets=[q_proj]", ["student.lora.targets=['q_proj']", "student.lora.rank=0", "set a rank"]),
        ("sampling.max_tokens=4096", ["rollout.max_model_len"]),
        ("learner.weight_transfer=nccl", ["learner.weight_transfer=nccl", "shared_memory"]),
        ("rollout=gpu", ["learner.gpus_per_rank", "learner=gpu"]),
        ("data.train.path=''", ["data.train.path"]),
        ("data.verifier=reasoning_gym", ["data.verifier=reasoning_gym"]),
        ("probe.prompts=201", ["probe.prompts=201", "200"]),
        ("probe.depths=[]", ["probe.depths=[]", "0.125"]),
        ("probe.depths=[0.5,1]", ["probe.depths"]),
        ("probe.max_tokens=0", ["probe.max_tokens=0"]),
        ("probe.representation=-1", ["probe.representation=-1"]),
    ],
)
def test_a_wrong_setting_is_named_with_its_fix(override: str, parts: list[str]) -> None:
    text = message(override)
    for part in parts:
        assert part in text
    assert "Traceback" not in text


def test_heldout_tasks_are_no_training_tasks() -> None:
    text = message("experiment=reasoning_gym", "data.heldout.seed=1200")
    assert "data.heldout.seed=1200" in text and "use 1256 or more" in text
    configured("experiment=reasoning_gym", "data.heldout.seed=1256")


def test_heldout_problems_are_no_training_problems() -> None:
    kinds = ["data.train.kind=digit_tasks", "data.heldout.kind=digit_tasks", "data.train.task=column_sums"]
    text = message(*kinds, "data.heldout.task=column_sums", "data.heldout.seed=1")
    assert "data.heldout.split=train" in text and "data.heldout.split=heldout" in text
    configured(*kinds, "data.heldout.task=column_sums", "data.heldout.split=heldout")
    configured(*kinds, "data.heldout.task=reversed_digits")
    mixture = "data.heldout.task_options.mixture=[{task:reversed_digits},{}]"
    assert "data.heldout.split" in message(*kinds, "data.heldout.task=column_sums", f"+{mixture}")
    assert "data.heldout.task=''" in message(*kinds) and "reversed_digits" in message(*kinds)


def test_truncated_sampling_is_refused_where_ratios_are_needed() -> None:
    text = message("objective=sampled_reverse_kl", "sampling.top_p=0.9")
    assert "sampling.top_p=0.9" in text
    assert "sampling.top_p=1" in text
    assert "sampling.top_k=20" in message("objective=sampled_reverse_kl", "sampling.top_k=20")


def test_online_tracking_needs_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert "WANDB_API_KEY" in message("tracking=online")
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    configured("tracking=online")


def test_secrets_are_not_part_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a-very-secret-key")
    assert "a-very-secret-key" not in OmegaConf.to_yaml(OmegaConf.structured(configured("tracking=online")))


def test_a_config_error_explains_itself() -> None:
    assert explain(ConfigError(Refusal("a.b", 1, "no"))) == "a.b=1: no"


SERVER = ("teacher.backend=server", "teacher.server.url=http://127.0.0.1:8000/v1", "teacher.model=big")


@pytest.mark.parametrize("objective", ["sampled_reverse_kl", "teacher_topk_forward_kl", "reward_extrapolation"])
def test_objectives_that_an_endpoint_can_serve(objective: str) -> None:
    assert configured(*SERVER, f"objective={objective}").teacher.server.max_top_k == 20


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "teacher.backend=server: the objective needs the log-probs of 16 given ids"),
        (["objective=full_reverse_kl"], "teacher.backend=server: the objective needs its distribution over the whole"),
        (["objective=entropy_aware"], "its exact entropy"),
        (["objective=teacher_topk_forward_kl", "objective.k=32"], "its 32 most likely ids (it gives 20 at most)"),
        (["objective=sampled_reverse_kl", "learner.overlap_k=32"], "learner.overlap_k=32: teacher.server.max_top_k=20"),
        (["objective=sampled_reverse_kl", "teacher.server.url=''"], "teacher.server.url='': is no endpoint"),
        (["objective=sampled_reverse_kl", "teacher.weights=ema"], "teacher.weights=ema: teacher.backend=server"),
        (
            ["objective=sampled_reverse_kl", "teacher.backend=vllm", "teacher.quantization=nf4"],
            "teacher.quantization=nf4",
        ),
        (["teacher.backend=vllm"], "teacher.backend=vllm: the objective needs the log-probs of 16 given ids"),
    ],
)
def test_a_backend_that_cannot_give_what_the_run_wants_is_refused(overrides: list[str], words: str) -> None:
    assert words in message(*SERVER, *overrides)


def test_an_engine_on_gpus_marks_given_ids() -> None:
    assert configured("teacher.backend=vllm", "scoring=gpu").objective.name == "student_topk_reverse_kl"


def test_teachers_must_take_what_the_engines_write() -> None:
    for scoring in ("cpu", "gpu"):
        assert configured(f"scoring={scoring}", "rollout.max_model_len=777").scoring.max_model_len == 777


OFFLINE = (
    "objective=teacher_topk_forward_kl",
    "objective.sequences.on_policy_fraction=0",
    "objective.sequences.other_source=dataset",
    "scoring.cache_dir=scores",
    "teacher.backend=cache",
)


def test_a_teacher_that_is_only_a_cache() -> None:
    configured(*OFFLINE)
    assert "scoring.cache_dir, which is null" in message(*OFFLINE, "scoring.cache_dir=null")
    for own_samples in ("objective.sequences.on_policy_fraction=0.5", "objective.sequences.other_source=teacher"):
        assert "teacher.backend=cache: cannot score what the student samples" in message(*OFFLINE, own_samples)


@pytest.mark.parametrize("weights", ["current", "ema"])
def test_what_moves_is_neither_kept_nor_quantised(weights: str) -> None:
    moving = f"teacher.weights={weights}"
    assert f"scoring.cache_dir=scores: keeps what a teacher said, and {moving}" in message(
        "scoring.cache_dir=scores", moving
    )
    assert "or teacher.quantization=none" in message("teacher.quantization=nf4", moving)


def test_a_cache_of_several_machines_has_one_place() -> None:
    assert "absolute path" in message("scoring.cache_dir=scores", "cluster.address=auto")
    configured("scoring.cache_dir=/shared/scores", "cluster.address=auto")
    configured("scoring.cache_dir='~/scores'", "cluster.address=auto")


def test_only_models_of_our_own_are_quantised() -> None:
    configured("teacher.quantization=int8")
    configured(*OFFLINE, "teacher.quantization=int8")  # the scores of a quantised teacher
    assert "teacher.backend=vllm takes weights as they are" in message(
        "teacher.quantization=int8", "teacher.backend=vllm"
    )


def test_gpus_of_a_scoring_worker_are_a_share_of_one_or_whole() -> None:
    for gpus in ("0.5", "1", "2"):
        configured(f"scoring.gpus_per_worker={gpus}")
    assert "scoring.gpus_per_worker=1.5" in message("scoring.gpus_per_worker=1.5")
