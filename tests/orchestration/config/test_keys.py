"""Names of settings: former ones are refused with what they are called now, wherever they stand."""

from pathlib import Path

import pytest

from orchestration.cli import explain
from orchestration.config.keys import RENAMED, keys_of, unknown_key
from orchestration.config.schema import RunConfig
from tests.factories import configured, message

NOW = {
    "objective.realisation=direct": "objective.gradient=backprop",
    "objective.realisation=policy_gradient": "objective.gradient=policy_gradient",
    "objective.averaging=sequences": "objective.loss_reduction=sequences",
    "objective.states.student_share=0.5": "objective.sequences.on_policy_fraction=0.5",
    "objective.states.others=dataset": "objective.sequences.other_source=dataset",
}


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize("old", NOW)
def test_a_former_key_is_refused_with_the_present_one(old: str, plus: str) -> None:
    text = message(plus + old)
    assert text.startswith(f"{old}: is called ") and f"write {NOW[old]}" in text


def test_a_former_key_of_a_further_term_is_refused_too() -> None:
    text = message("objective=entropy_aware", "objective.further_terms.forward.realisation=direct")
    assert "write objective.further_terms.forward.gradient=backprop" in text
    assert "objective.further_terms.more.gradient" in message("+objective.further_terms={more: {realisation: direct}}")


@pytest.mark.parametrize("text", ["realisation: direct", "states:\n  student_share: 0.5", "averaging: tokens"])
def test_a_former_key_in_a_preset_of_the_users_own_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "objective").mkdir()
    (tmp_path / "objective" / "mine.yaml").write_text(f"name: mine\n{text}\n")
    said = message(f"hydra.searchpath=[file://{tmp_path}]", "objective=mine")
    key = text.partition(":")[0]
    assert said.startswith(f"objective.{key}: is called {RENAMED[f'objective.{key}'].key} now")


def test_present_names_exist_and_former_ones_do_not() -> None:
    known = set(keys_of(RunConfig))
    assert not known & RENAMED.keys()
    assert {renamed.key for renamed in RENAMED.values()} <= known


def test_a_key_that_is_added_and_that_nothing_reads_is_refused() -> None:
    text = message("+learner.learning_rat=1", "+objective.sequences.share=0.5")
    assert "learner.learning_rat=1: there is no such configuration key; did you mean learner.learning_rate?" in text
    assert "objective.sequences.share=0.5" in text and len(text.splitlines()) == 2
    assert "there is no such" in unknown_key("nothing.like.it")


def test_keys_of_dictionaries_are_the_users_own() -> None:
    configured("+data.train.task_options={anything: 1}", "+teacher@further_teachers.other=checkpoint")


def test_a_removed_former_key_is_named() -> None:
    with pytest.raises(Exception) as caught:
        configured("~objective.averaging")
    assert "objective.loss_reduction" in explain(caught.value)
