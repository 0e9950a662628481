"""Whether two tokenizers say the same with the same ids."""

from collections.abc import Mapping

from transformers import PreTrainedTokenizerBase

from diagnostics.check import Check, Status

PROBE = "Let f(x) = 3x² + 12, x ∈ ℝ.\n\tWhat's  f(1024)? Ünïcode 你好 🙂 <think>\n```py\nprint('a', 0.5)\n```"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def check_tokenizers(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> list[Check]:
    """Id maps, special ids, and what a text with some of everything is cut into."""
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    if ours != theirs:
        return [_other_ids(ours, theirs)]
    ids = Check("tokenizer ids", Status.passed, f"student and teacher have the same {len(ours)} ids")
    return [ids, _check_special(student, teacher), _check_cutting(student, teacher)]


def _other_ids(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Check:
    different = [token for token in sorted(ours.keys() | theirs.keys()) if ours.get(token) != theirs.get(token)]
    shown = ", ".join(f"{token!r} is {ours.get(token)} and {theirs.get(token)}" for token in different[:3])
    return Check(
        "tokenizer ids",
        Status.failed,
        f"{len(different)} tokens have other ids in the student's and the teacher's tokenizer: {shown}",
        "choose a teacher of the same family: token log-probs are comparable only with one vocabulary",
    )


def _check_special(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> Check:
    pairs = {name: (getattr(student, name), getattr(teacher, name)) for name in _SPECIAL}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    seen = ", ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in (different or pairs).items())
    if "eos_token_id" in different:
        fix = "set the same eos_token in both tokenizer_config.json: one would end where the other goes on"
        return Check("special ids", Status.failed, f"student and teacher: {seen}", fix)
    if different:
        fix = "harmless unless a prompt has them; else set the same tokens in both tokenizer_config.json"
        return Check("special ids", Status.warned, f"student and teacher: {seen}", fix)
    agreed = ", ".join(f"{name} {ours}" for name, (ours, _theirs) in pairs.items())
    return Check("special ids", Status.passed, f"the same in both: {agreed}")


def _check_cutting(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> Check:
    ours, theirs = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher))
    if ours == theirs:
        return Check("text into tokens", Status.passed, f"a text of {len(ours)} tokens is cut alike by both")
    place = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    seen = f"the same ids, but a text is cut otherwise from token {place} on: {len(ours)} and {len(theirs)} tokens"
    fix = "use one tokenizer.json for both: the teacher has learned from texts that were cut in its own way"
    return Check("text into tokens", Status.warned, seen, fix)
