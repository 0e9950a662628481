"""Where a prompt begins, what the chat templates make of it, where the response begins and what ends it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from diagnostics.check import Check, Status
from tutelage.chat import Chat, end_of_answer, seen_by_student
from tutelage.records.prompt import Message, Prompt
from tutelage.settings import ConfigError
from tutelage.stops import AS_THEY_ARE, TurnEnds

_ANSWER = "Blue whales sing."
_THINKING = "<think>"
_TAIL_TOKENS = 8  # of a prompt, shown where the response begins
_SHOWN_EDITS = 4


def check_templates(student: Chat, teacher: Chat, prompts: Sequence[Prompt], system_prompt: str | None) -> list[Check]:
    """The prompts as the student reads them, and as the teacher does by its own template."""
    seen = [replace(seen_by_student(prompt, system_prompt), follow_ups=()) for prompt in prompts]
    ours = [rendering.ids for rendering in student.render(seen)]
    checks = [_check_contents(student.tokenizer, prompts, ours), _check_boundary(student, ours[0])]
    if teacher is student:
        same = f"{len(ours)} prompts are read alike by both: one tokenizer, one template"
        return [*checks, Check("chat templates", Status.passed, same)]
    try:
        theirs = [rendering.ids for rendering in teacher.render(seen)]
    except ConfigError as error:
        fix = "prompts of these roles are new to the teacher; choose another teacher, or other prompts"
        return [*checks, Check("chat templates", Status.warned, f"the teacher's own template refuses: {error}", fix)]
    return [*checks, _compare(student.tokenizer, teacher.tokenizer, ours, theirs)]


def _check_contents(
    student: PreTrainedTokenizerBase, prompts: Sequence[Prompt], rendered: Sequence[NDArray[np.int32]]
) -> Check:
    texts = [_folded(student.decode(ids)) for ids in rendered]
    lost = [p.id for p, text in zip(prompts, texts, strict=True) if _folded(p.messages[-1].content) not in text]
    if lost:
        seen = f"{len(lost)} of {len(prompts)} rendered prompts lack their last message (first: {lost[0]!r})"
        return Check("prompt texts", Status.failed, seen, "repair chat_template in the student's tokenizer")
    return Check("prompt texts", Status.passed, f"{len(prompts)} rendered prompts have their last message")


def _folded(text: str) -> str:
    return "".join(text.split())


def _check_boundary(student: Chat, ids: NDArray[np.int32]) -> Check:
    tail = student.tokenizer.decode(ids[-_TAIL_TOKENS:])
    thinks = ", inside a thinking part" if tail.rstrip().endswith(_THINKING) else ""
    seen = f"it begins after {tail!r}{thinks}"
    asks = [Message("user", _ANSWER)]
    if student.tokenizer.chat_template and student.text(asks) == student.text(asks, opens_answer=False):
        fix = "add the assistant's header under add_generation_prompt to chat_template in the student's tokenizer"
        return Check("first response token", Status.warned, f"{seen}: the template opens no answer", fix)
    return Check("first response token", Status.passed, seen)


def _compare(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    ours: Sequence[NDArray[np.int32]],
    theirs: Sequence[NDArray[np.int32]],
) -> Check:
    different = [index for index in range(len(ours)) if not np.array_equal(ours[index], theirs[index])]
    if not different:
        seen = f"{len(ours)} prompts are the same tokens by the student's template and by the teacher's own"
        return Check("chat templates", Status.passed, seen)
    first = different[0]
    pieces = [_pieces(student, ours[first]), _pieces(teacher, theirs[first])]
    seen = (
        f"each model reads prompts by its own template, and {len(different)} of {len(ours)} are other tokens for the "
        f"teacher than for the student; the first one: {_edits(*pieces)}. {_boundaries(*pieces)}"
    )
    return Check("chat templates", Status.passed, seen)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: NDArray[np.int32]) -> list[str]:
    return [tokenizer.decode([token]) for token in ids.tolist()]


def _edits(ours: Sequence[str], theirs: Sequence[str]) -> str:
    """Token diff: what only the student's rendering has as -'…', what only the teacher's has as +'…'."""
    changes = [op for op in SequenceMatcher(None, ours, theirs, autojunk=False).get_opcodes() if op[0] != "equal"]
    shown = [
        f"at token {i} " + " ".join(f"{sign}{''.join(part)!r}" for sign, part in sides if part)
        for _tag, i, i_end, j, j_end in changes[:_SHOWN_EDITS]
        for sides in [(("-", ours[i:i_end]), ("+", theirs[j:j_end]))]
    ]
    return ", ".join(shown) + (f" and {len(changes) - _SHOWN_EDITS} more" if len(changes) > _SHOWN_EDITS else "")


def _boundaries(ours: Sequence[str], theirs: Sequence[str]) -> str:
    tails = ["".join(side[-_TAIL_TOKENS:]) for side in (ours, theirs)]
    if tails[0] == tails[1]:
        return "The response begins after the same tokens"
    return f"The response begins after {tails[0]!r} and after {tails[1]!r}"


def check_bos(tokenizer: PreTrainedTokenizerBase, rendered: Sequence[NDArray[np.int32]]) -> Check:
    """The BOS token stands at the beginning once where the tokenizer begins texts with one, and never twice.

    Args:
        rendered: the prompts as the models see them, [P] each.
    """
    bos = tokenizer.bos_token_id
    begins = bos is not None and tokenizer("a")["input_ids"][0] == bos
    twice = sum(len(ids) > 1 and ids[0] == ids[1] == bos for ids in rendered)
    missing = sum(ids[0] != bos for ids in rendered) if begins else 0
    if twice or missing:
        seen = f"of {len(rendered)} prompts {twice} begin with BOS twice, {missing} lack it"
        fix = "let either chat_template or the tokenizer write BOS (add_bos_token in tokenizer_config.json), not both"
        return Check("BOS", Status.failed, seen, fix)
    seen = f"once at the beginning of {len(rendered)} prompts" if begins else "the tokenizer begins texts without one"
    return Check("BOS", Status.passed, seen)


def check_end_of_turn(tokenizer: PreTrainedTokenizerBase, generation_ids: Collection[int], name: str = "EOS") -> Check:
    """Whether what ends an assistant's turn in the template also ends a response in the engine.

    Args:
        generation_ids: those that end a response by the generation config (`generation_ends`).
        name: of the check.
    """
    eos, stops = tokenizer.eos_token_id, {tokenizer.eos_token_id, *generation_ids} - {None}
    ids = f"tokenizer {eos}, generation config {sorted(generation_ids) or 'none'}"
    if not stops:
        fix = "set eos_token in tokenizer_config.json or eos_token_id in generation_config.json: no answer would end"
        return Check(name, Status.failed, f"there is none: {ids}", fix)
    written = end_of_answer(tokenizer)
    ids += "" if written is None else f", template {written} ({tokenizer.decode([written])!r})"
    if tokenizer.chat_template and written is None:
        fix = "end the assistant's messages with eos_token in chat_template: the model learns no end from it"
        return Check(name, Status.warned, f"the template writes no special token after an answer; {ids}", fix)
    if written is not None and written not in stops:
        fix = f"add {written} to eos_token_id in generation_config.json: answers would go on behind the end of the turn"
        return Check(name, Status.failed, f"the template ends turns with what does not stop a response; {ids}", fix)
    if eos is None or (generation_ids and eos not in generation_ids):
        fix = "make eos_token of the tokenizer one of eos_token_id in generation_config.json"
        return Check(name, Status.warned, f"tokenizer and generation config disagree; {ids}", fix)
    return Check(name, Status.passed, f"one end of a response: {ids}")


PROBE = "Let f(x) = 3x² + 12, x ∈ ℝ.\n\tWhat's  f(1024)? Ünïcode 你好 🙂 <think>\n```py\nprint('a', 0.5)\n```"
_SPECIAL = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


def check_tokenizers(
    student: PreTrainedTokenizerBase,
    teacher: PreTrainedTokenizerBase,
    ends: TurnEnds = AS_THEY_ARE,
    uncommon: Collection[int] = (),
) -> list[Check]:
    """Id maps, special ids, and what a text with some of everything is cut into.

    Args:
        ends: what the run makes of ends that differ.
        uncommon: ids of added tokens that only one of the two has, which the run leaves out.
    """
    ours, theirs = (
        {token: i for token, i in side.get_vocab().items() if i not in uncommon} for side in (student, teacher)
    )
    if ours != theirs:
        return [_other_ids(ours, theirs)]
    left_out = f"; {len(uncommon)} added tokens that only one of them has are left out" if uncommon else ""
    ids = Check("tokenizer ids", Status.passed, f"student and teacher have the same {len(ours)} ids{left_out}")
    return [ids, _check_special(student, teacher, ends), _check_cutting(student, teacher)]


def _other_ids(ours: Mapping[str, int], theirs: Mapping[str, int]) -> Check:
    different = [token for token in sorted(ours.keys() | theirs.keys()) if ours.get(token) != theirs.get(token)]
    shown = ", ".join(f"{token!r} is {ours.get(token)} and {theirs.get(token)}" for token in different[:3])
    return Check(
        "tokenizer ids",
        Status.failed,
        f"{len(different)} tokens have other ids in the student's and the teacher's tokenizer: {shown}",
        "choose a teacher of the same family: token log-probs are comparable only with one vocabulary",
    )


def _check_special(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ends: TurnEnds) -> Check:
    pairs = {name: (getattr(student, name), getattr(teacher, name)) for name in _SPECIAL}
    different = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    seen = ", ".join(f"{name} {ours} and {theirs}" for name, (ours, theirs) in (different or pairs).items())
    if "eos_token_id" in different:
        if ends.merged is not None:
            texts = ", ".join(student.decode([id]) for id in ends.merged.ids)
            made = f"ids {list(ends.merged.ids)} ({texts}) end a turn as one action"
            return Check("special ids", Status.passed, f"student and teacher: {seen}; {made}")
        fix = (
            "the teacher hardly ever writes the student's end, so answers may grow without one; set "
            "sampling.stops=semantic, which makes one action of all ends"
        )
        made = "; the student's end is scored as the teacher's" if ends.swaps else ""
        status = Status.passed if ends.swaps else Status.warned
        return Check("special ids", status, f"student and teacher: {seen}{made}", "" if ends.swaps else fix)
    if different:
        fix = "harmless unless a prompt has them; else set the same tokens in both tokenizer_config.json"
        return Check("special ids", Status.warned, f"student and teacher: {seen}", fix)
    agreed = ", ".join(f"{name} {ours}" for name, (ours, _theirs) in pairs.items())
    return Check("special ids", Status.passed, f"the same in both: {agreed}")


def _check_cutting(student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase) -> Check:
    ours, theirs = (tokenizer(PROBE, add_special_tokens=False)["input_ids"] for tokenizer in (student, teacher))
    if ours == theirs:
        return Check("text into tokens", Status.passed, f"a text of {len(ours)} tokens is cut alike by both")
    first = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), len(ours))
    seen = f"the same ids, but a text is cut otherwise from token {first} on: {len(ours)} and {len(theirs)} tokens"
    fix = "use one tokenizer.json for both: the teacher has learned from texts that were cut in its own way"
    return Check("text into tokens", Status.warned, seen, fix)
