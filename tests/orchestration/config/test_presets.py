"""Every preset: composed, described and built; and what the command itself says of presets and wrong objectives."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from learner.objectives import build_objective
from learner.objectives.config import Support
from learner.objectives.describe import describe
from learner.objectives.terms import shaping_of
from orchestration import launch
from orchestration.cli import run
from tests.factories import CONF, NEEDED_BY_PRESETS, configured
from tests.learner.positions import backward, close, compute, make_rows, random_pair

PRESETS = sorted(path.stem for path in (CONF / "objective").glob("*.yaml"))
Command = Callable[..., tuple[int, str]]


def overrides(preset: str) -> list[str]:
    return [f"objective={preset}", *NEEDED_BY_PRESETS.get(preset, ())]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_composes_names_its_paper_and_builds(preset: str) -> None:
    config = configured(*overrides(preset)).objective
    assert config.name == preset
    assert re.search(r"arXiv \d{4}\.\d{5}|20\d\d", config.paper)
    assert len(describe(config).formula) == len(config.further_terms) + 3
    build_objective(config)


def test_no_two_presets_are_described_alike_but_those_of_one_formula() -> None:
    said: dict[tuple[str, ...], list[str]] = {}
    for preset in PRESETS:
        found = describe(configured(*overrides(preset)).objective)
        said.setdefault((*found.words, *found.formula), []).append(preset)
    alike = [names for names in said.values() if len(names) > 1]
    assert alike == [["student_topk_renormalised", "thunlp_topk_paper"]]  # the same equation in two papers


def test_presets_can_be_overridden_in_every_part() -> None:
    config = configured(
        "objective=entropy_aware",
        "objective.ratio_cap=4",
        "objective.tokens.special_tokens=false",
        "objective.further_terms.forward.weight=0.5",
        "objective.further_terms.forward.k=32",
        "objective.further_terms.forward.tokens.teacher_entropy_above=1.5",
        "+objective.further_terms={more: {support: union, normalisation: tail, weight: 0.1}}",
    ).objective
    assert config.ratio_cap == 4 and not config.tokens.special_tokens
    forward, more = config.further_terms["forward"], config.further_terms["more"]
    assert (forward.weight, forward.k, forward.tokens.teacher_entropy_above) == (0.5, 32, 1.5)
    assert (more.support, more.weight) == (Support.union, 0.1)
    assert configured("objective.k=32").objective.k == 32


def test_the_length_aware_recipes_are_chosen_by_name() -> None:
    """Near a teacher the advantage is compressed by a logarithm, far from one it is clipped."""
    near, far = (configured(f"objective=length_aware_clips{more}").objective for more in ("", "_large_gap"))
    advantage = torch.tensor([-30.0, -4.0, 0.0, 4.999, 5.001, 30.0])
    torch.testing.assert_close(shaping_of(near)(advantage), advantage.sign() * (1 + advantage.abs()).log())
    torch.testing.assert_close(shaping_of(far)(advantage), advantage.clamp(-5, 5))


def test_entropy_aware_compares_renormalised_distributions_on_the_teachers_top_16() -> None:
    """The sum of the sampled token's policy gradient and KL(q' || p') where the teacher is unsure."""
    logits, logq = random_pair(3, positions=9, vocabulary=40)
    logq = (logq * torch.linspace(1, 8, 9, dtype=logq.dtype)[:, None]).log_softmax(-1)  # surer and surer
    rows = make_rows(logits, logq, k=16)
    unsure = rows.teacher_entropy > 0.8
    assert unsure.any() and not unsure.all()
    leaf = logits.clone().requires_grad_()
    logp = leaf.log_softmax(-1)
    on_top = [x.gather(1, rows.teacher_top_ids) for x in (logp, logq)]
    own, teachers = (x.log_softmax(-1) for x in on_top)
    forward = (teachers.exp() * (teachers - own)).sum(-1) * unsure
    sampled = logp.gather(1, rows.target_ids[:, None])[:, 0]
    expected = forward - (rows.teacher_logprobs - sampled).detach() * sampled
    found = compute(configured("objective=entropy_aware").objective, logits, rows)
    close(found.loss, expected.detach())
    close(found.grad_logits, backward(expected, leaf))


def test_what_a_preset_needs_is_what_its_parts_need() -> None:
    needs = {preset: build_objective(configured(*overrides(preset)).objective).requirements for preset in PRESETS}
    assert {name for name, need in needs.items() if need.hidden_states} == {
        "full_reverse_kl", "full_forward_kl", "gkd", "skewed_reverse_kl", "skewed_forward_kl", "minillm",
        "control_variate",
    }  # fmt: skip
    assert needs["tropd"].teacher_top_k == 64 and needs["tropd"].candidates == 0
    assert needs["union_tail"].teacher_top_k == needs["union_tail"].candidates == 16
    assert {name for name, need in needs.items() if need.reference_logprobs} == {"reward_extrapolation"}
    assert {name for name, need in needs.items() if need.task_advantages} == {
        "task_reward_mix", "grpo", "grpo_classic",
    }  # fmt: skip


def test_the_documentation_names_every_preset() -> None:
    text = (CONF.parent / "docs" / "objectives.md").read_text()
    assert [preset for preset in PRESETS if f"| `{preset}` |" not in text] == []
    assert set(re.findall(r"^\| `(\w+)` \| .*arxiv", text, re.MULTILINE)) <= set(PRESETS)


@pytest.fixture
def command(
    tmp_path: Path, tiny_tied: Path, tiny_untied: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> Command:
    """`python -m orchestration.launch … dry_run=true` in this process: its exit code, and what it wrote."""
    rows = [{"prompt": f"What is {i} and {i}?", "answer": str(2 * i), "completion": "It is."} for i in range(8)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = [
        f"student.model={tiny_tied}", f"teacher.model={tiny_untied}", "teacher.context=null", "dry_run=true",
        f"data.train.path={tmp_path}/prompts.jsonl", f"data.heldout.path={tmp_path}/prompts.jsonl",
        "rollout.max_model_len=256", "evaluation.prompts=2", "cluster.cpus=16", f"output_root={tmp_path}",
    ]  # fmt: skip
    assert isinstance(capsys, pytest.CaptureFixture)

    def call(*more: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["launch", *settings, *more])
        monkeypatch.setenv("COLUMNS", "200")
        code = 0
        try:
            run(launch.main)
        except SystemExit as exit:
            code = exit.code if isinstance(exit.code, int) else 1
        written = capsys.readouterr()
        return code, written.out + written.err

    return call


@pytest.mark.parametrize("preset", ["student_topk_reverse_kl", "gkd", "minillm", "tropd", "task_reward_mix"])
def test_a_dry_run_prints_the_objective_in_words_and_its_formula(command: Command, preset: str) -> None:
    code, text = command(*overrides(preset))
    assert code == 0, text
    assert f"{preset} (" in text and "l(t) = " in text and "loss = Σ_t l(t) / number of response tokens" in text
    first = describe(configured(*overrides(preset)).objective).formula[0]
    assert first[:60] in text


SAMPLED = ["objective.support=sampled", "objective.gradient=policy_gradient", "objective.importance=truncated"]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (["objective.support=sampled"], ["objective.estimator=k1", "zero", "estimator=k2"]),
        (["objective.gradient=scalar_advantage"], ["objective.gradient=scalar_advantage", "gradient=backprop"]),
        ([*SAMPLED, "objective.gradient=scalar_advantage"], ["objective.gradient=scalar_advantage", "zero"]),
        (["objective=sampled_reverse_kl", "sampling.top_p=0.9"], ["sampling.top_p=0.9", "sampling.top_p=1"]),
        (["objective=entropy_aware", "sampling.top_k=20"], ["sampling.top_k=20", "sampling.top_k=-1"]),
        (["objective=minillm", "sampling.top_p=0.9"], ["sampling.top_p=0.9"]),
        (
            ["objective=sampled_k2", "objective.sequences.on_policy_fraction=0.5"],
            ["on_policy_fraction=0.5", "teacher_topk or full"],
        ),
        (["objective=gkd", "objective.support=student_topk"], ["on_policy_fraction=0.5", "top-k ids"]),
        (["objective=sampled_reverse_kl", "objective.importance=none"], ["objective.importance=none", "truncated"]),
        (["objective=full_reverse_kl", "objective.importance=truncated"], ["objective.importance=truncated", "none"]),
        (["objective.teacher_temperature=2"], ["objective.teacher_temperature=2.0", "support=full"]),
        (["objective=naive_student_topk"], ["objective.normalisation=naive", "objective.unsafe_baseline=true"]),
        (["objective=symmetric_difference"], ["objective.support=symmetric_difference", "unsafe_baseline=true"]),
        (["objective=task_reward_mix"], ["objective.task_reward.mix=convex", "data.verifier"]),
        (["objective=sampled_k3", "objective.divergence=reverse_kl"], ["objective.estimator=k3", "estimator=k2"]),
        (["objective.name=sampled_reverse_kl"], ["objective.name=sampled_reverse_kl", "objective=sampled_reverse_kl"]),
        (
            ["objective=entropy_aware", "objective.further_terms.forward.shaping=clip"],
            ["objective.further_terms.forward.shaping=clip", "gradient=policy_gradient"],
        ),
    ],
)  # fmt: skip
def test_the_command_refuses_a_wrong_objective(command: Command, settings: list[str], parts: list[str]) -> None:
    code, text = command(*settings)
    assert code == 1
    for part in parts:
        assert part in text
    assert "Traceback" not in text and "what this run does" not in text
