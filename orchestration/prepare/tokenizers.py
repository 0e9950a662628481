"""A model's tokenizer held against the student's: the same, the same but for a few added tokens, or another one."""

from collections.abc import Iterator, Mapping

from transformers import PreTrainedTokenizerBase

from orchestration.config.facts import learns_from_teacher
from orchestration.config.schema import RunConfig
from tutelage.settings import ConfigError, Refusal

_MOST_ADDED = 256  # tokens by which two tokenizers may differ and still be one family's


def compare_tokenizers(other: PreTrainedTokenizerBase, path: str, key: str, student: PreTrainedTokenizerBase) -> None:
    """Refuse a model that scores the student's tokens with another tokenizer."""
    ours, theirs = student.get_vocab(), other.get_vocab()
    if ours != theirs:
        raise ConfigError(_other_tokenizer(ours, theirs, path, key))


def _other_tokenizer(ours: Mapping[str, int], theirs: Mapping[str, int], path: str, key: str) -> Refusal:
    different = [token for token in sorted(set(ours) | set(theirs)) if ours.get(token) != theirs.get(token)]
    fix = (
        f"its tokenizer differs from the student's in {len(different)} tokens (first: {different[0]!r}, "
        f"{ours.get(different[0])} here and {theirs.get(different[0])} there); token log-probs are comparable only "
        "with one vocabulary: choose a model of the same family, or, for a teacher, set teacher.tokenizer to the "
        "student's model if the ids that both have stand for the same text and the teacher merely has a few more, "
        "or set teacher.cross_tokenizer=true to align the two byte by byte"
    )
    return Refusal(key, path, fix)


def uncommon_tokens(
    teacher: PreTrainedTokenizerBase, path: str, key: str, student: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The ids of tokens that were added to only one of two tokenizers, which are the same but for those.

    Raises:
        ConfigError: they differ in more than that.
    """
    ours, theirs = student.get_vocab(), teacher.get_vocab()
    only_ours, only_theirs = ours.keys() - theirs.keys(), theirs.keys() - ours.keys()
    added = only_ours <= student.get_added_vocab().keys() and only_theirs <= teacher.get_added_vocab().keys()
    common = {token: token_id for token, token_id in ours.items() if token in theirs}
    same = all(theirs[token] == token_id for token, token_id in common.items())
    uncommon = frozenset({ours[token] for token in only_ours} | {theirs[token] for token in only_theirs})
    # Behind all others, so that a head without them is that of the common ids.
    behind = not uncommon or min(uncommon) > max(common.values(), default=-1)
    if not (same and added and behind and len(uncommon) <= _MOST_ADDED):
        raise ConfigError(_other_tokenizer(ours, theirs, path, key))
    return uncommon


def added_token_refusals(
    config: RunConfig, uncommon: frozenset[int], student: PreTrainedTokenizerBase, key: str, path: str, rows: float
) -> Iterator[Refusal]:
    """What a teacher cannot do whose tokenizer differs from the student's in some added tokens.

    Args:
        path: the teacher's.
        rows: of its embedding.
    """
    seen = f"its tokenizer and the student's differ in {len(uncommon)} added tokens"
    if beyond := sorted(token for token in student.get_vocab().values() if token >= rows):
        fix = f"{seen}, and it has no embedding for the student's id {beyond[0]}; set teacher.cross_tokenizer=true"
        yield Refusal(key, path, fix)
    unreadable = uncommon - set(student.get_vocab().values())
    if unreadable and learns_from_teacher(config):
        fix = (
            f"{seen}, so the teacher's own sequences may hold ids that the student cannot read; set it to dataset, "
            f"objective.sequences.on_policy_fraction=1, or {key.removesuffix('.model')}.tokenizer to the student's"
        )
        yield Refusal("objective.sequences.other_source", "teacher", fix)
