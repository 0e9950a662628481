"""The page of architectures, from what became of each small copy."""

from benchmarks.architectures import page
from tutelage.lm.packable import PackingTrial


def test_every_outcome_has_its_table() -> None:
    rows = [
        ("llama", "LlamaForCausalLM", PackingTrial(difference=4e-7)),
        ("opt", "OPTForCausalLM", PackingTrial(difference=0.5)),
        ("gemma2", "Gemma2ForCausalLM", PackingTrial(problem="needs <softcap> | more")),
        ("zaya", "ZayaForCausalLM", PackingTrial(untried="no default configuration")),
    ]
    text = page(rows)
    agreeing, refused, untried = text.split("\n## ")[1:]
    assert agreeing.startswith("1 agree") and "| llama | LlamaForCausalLM | 4e-07 |" in agreeing
    assert refused.startswith("2 are refused") and "| opt |" in refused and "&lt;softcap> \\| more" in refused
    assert untried.startswith("1 could not be tried") and "| zaya |" in untried
