"""What a teacher is asked about a trajectory and what comes back, against a plain float32 forward of its own ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from rollout.conversation import join
from scoring.request_builder import RequestBuilder, make_aligner
from tests.factories import make_trajectory, student_reads, teacher_reads
from tests.models import make_tiny_model, make_tokenizer
from tests.scoring.reference import Reference, load_teacher
from tests.tokenizers import pruned, sentencepiece
from tutelage.chat import seen_by_teacher
from tutelage.records.prompt import Message, Prompt
from tutelage.records.signal import ScoringRequest, SignalNeeds, TeacherSignal
from tutelage.records.trajectory import FinishReason, PolicySpan, Trajectory

PROMPT = Prompt("p", (Message("user", "what is the old library?"),))
OTHER_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]\n{{ m['content'] }}"
    "{{ '<|im_end|>' if m['role'] == 'assistant' else '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]\n{% endif %}"
)
ANSWERS = ("Light travels faster.", "The river begins unbelievably small 🙂", "12, 345", "puzzling jewels, naïve")
ASKED = ("why?", "and the thunder?", "again, please")
NEEDS = SignalNeeds(candidates=4)
WATCHED = replace(NEEDS, watched_top_k=2)


@dataclass(frozen=True)
class Pair:
    """A teacher whose tokenizer is not the student's."""

    path: Path
    student: PreTrainedTokenizerBase
    teacher: PreTrainedTokenizerBase


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    student = make_tokenizer()
    teacher, _ = pruned(student, 250)
    teacher.chat_template = OTHER_TEMPLATE
    path = make_tiny_model(tmp_path_factory.mktemp("finer"), tied=False, seed=3, tokenizer=teacher)
    return Pair(path, student, teacher)


def answer_of(
    tokenizer: PreTrainedTokenizerBase, prompt_ids: NDArray[np.int32], text: str, version: int, ended: bool = True
) -> Trajectory:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id] * ended
    rng = np.random.default_rng(len(prompt_ids))
    named = np.argsort(rng.random((len(ids), len(tokenizer))), axis=1)[:, :12].astype(np.int32)
    named[:, 0] = ids
    return make_trajectory(
        prompt_ids,
        ids,
        sampling_logprobs=-rng.random(len(ids)).astype(np.float32),
        candidate_ids=named,
        spans=(PolicySpan(version, 0, len(ids)),),
        finish_reason=FinishReason.STOP if ended else FinishReason.LENGTH,
    )


def conversation(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], asked: Sequence[str], ended: bool = True
) -> Trajectory:
    """As the engine would make it, whatever it samples."""
    said = tuple(Message("user", text) for text in asked)
    rendering = student_reads(tokenizer, replace(PROMPT, follow_ups=said))
    prompt_ids, follow_ups, found = rendering.ids, rendering.follow_ups, []
    for index, text in enumerate(answers):
        last = index == len(answers) - 1
        found.append(answer_of(tokenizer, prompt_ids, text, index, ended or not last))
        if not last:
            rest = follow_ups[index].ids[follow_ups[index].closing :]
            prompt_ids = np.concatenate([prompt_ids, found[-1].response_ids, rest])
    return join(found, follow_ups)


def rendered(tokenizer: PreTrainedTokenizerBase, asked: Sequence[str], context: str | None) -> tuple[NDArray, list]:
    said = tuple(Message("user", text) for text in asked)
    rendering = teacher_reads(tokenizer, replace(PROMPT, follow_ups=said), context)
    return rendering.ids, list(rendering.follow_ups)


def whole_text(
    tokenizer: PreTrainedTokenizerBase, context: str | None, answers: Sequence[str], asked: Sequence[str]
) -> str:
    """The conversation by the template alone, up to and with the last answer."""
    messages = [{"role": m.role, "content": m.content} for m in seen_by_teacher(PROMPT, context, None).messages]
    for answer, question in zip(answers, asked, strict=False):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + answers[-1]


def scores(path: Path, request: ScoringRequest) -> tuple[TeacherSignal, NDArray[np.float64]]:
    """The teacher's answer, and the log-probs [L] of every token of the rendering by a plain forward."""
    (signal,) = load_teacher(path).score([request])
    every = Reference(path).logprobs(replace(request, scored_mask=None)).double()
    return signal, every.gather(1, every.new_tensor(request.response_ids).long()[:, None])[:, 0].numpy()


@pytest.mark.parametrize("context", [None, "The library burned down."])
@pytest.mark.parametrize("template", [None, OTHER_TEMPLATE])
@pytest.mark.parametrize("turns", [1, 2, 3, 4])
def test_marks_of_a_conversation_equal_a_plain_forward(
    tiny_untied: Path, turns: int, template: str | None, context: str | None
) -> None:
    student, teacher = make_tokenizer(), make_tokenizer()
    teacher.chat_template = template or teacher.chat_template
    answers, asked = ANSWERS[:turns], ASKED[: turns - 1]
    trajectory = conversation(student, answers, asked)
    prompt_ids, follow_ups = rendered(teacher, asked, context)
    view = RequestBuilder(WATCHED).build("teacher", prompt_ids, trajectory, follow_ups)
    text = whole_text(teacher, context, answers, asked)
    expected_ids = [*teacher(text, add_special_tokens=False)["input_ids"], teacher.eos_token_id]
    assert [*view.request.prompt_ids.tolist(), *view.request.response_ids.tolist()] == expected_ids
    if context is None and template is None:
        np.testing.assert_array_equal(view.request.response_ids, trajectory.response_ids)
    signal, plain = scores(tiny_untied, view.request)
    found = view.to_student_tokens(signal)
    own = trajectory.loss_mask
    scored_mask = np.ones(len(plain), dtype=np.bool_) if view.request.scored_mask is None else view.request.scored_mask
    assert view.request.response_ids[scored_mask].tolist() == trajectory.response_ids[own].tolist()
    np.testing.assert_allclose(found.logprobs[own], plain[scored_mask], atol=1e-4)
    for rows in (found.logprobs, found.entropy, found.support_logprobs, found.top_logprobs):
        assert rows is not None and len(rows) == len(own)
        assert np.isnan(rows[~own]).all() and np.isfinite(rows[own]).all()
    assert found.support_ids is not None and trajectory.candidate_ids is not None
    np.testing.assert_array_equal(found.support_ids[own], trajectory.candidate_ids[own, :4])
    np.testing.assert_allclose(found.support_logprobs[own, 0], found.logprobs[own], atol=1e-5)


def test_where_turns_begin_and_end() -> None:
    tokenizer = make_tokenizer()
    trajectory = conversation(tokenizer, ANSWERS[:3], ASKED[:2])
    ends = [answer.stop - 1 for answer in trajectory.answers]
    assert [trajectory.response_ids[end] for end in ends] == [tokenizer.eos_token_id] * 3
    assert ends[-1] == len(trajectory.response_ids) - 1 and trajectory.answers[0].start == 0
    assert trajectory.loss_mask[ends].all() and not trajectory.loss_mask[[end + 1 for end in ends[:-1]]].any()
    for answer, text in zip(trajectory.answers, ANSWERS, strict=False):
        assert tokenizer.decode(trajectory.response_ids[answer], skip_special_tokens=True) == text
        assert trajectory.loss_mask[answer].all()
    assert [turn.text for turn in trajectory.turns] == ["", ASKED[0], "", ASKED[1], ""]
    assert [span.version for span in trajectory.spans] == [0, 1, 2]
    assert [(s.start, s.stop) for s in trajectory.spans] == [(a.start, a.stop) for a in trajectory.answers]
    assert np.isnan(trajectory.sampling_logprobs).tolist() == (~trajectory.loss_mask).tolist()


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12).map(lambda text: f"x{text}x")


@settings(max_examples=40)
@given(answers=st.lists(TEXT, min_size=1, max_size=4), data=st.data(), other=st.booleans(), told=st.booleans())
def test_turns_are_rendered_as_the_template_renders_them(
    answers: list[str], data: st.DataObject, other: bool, told: bool
) -> None:
    asked = data.draw(st.lists(TEXT, min_size=len(answers) - 1, max_size=len(answers) - 1))
    student, teacher = make_tokenizer(), make_tokenizer()
    teacher.chat_template = OTHER_TEMPLATE if other else teacher.chat_template
    trajectory = conversation(student, answers, asked)
    context = "told" if told else None
    view = RequestBuilder(SignalNeeds()).build("teacher", *_swap(rendered(teacher, asked, context), trajectory))
    ids = [*view.request.prompt_ids.tolist(), *view.request.response_ids.tolist()]
    assert teacher.decode(ids) == whole_text(teacher, context, answers, asked) + teacher.eos_token


def _swap(found: tuple[NDArray, list], trajectory: Trajectory) -> tuple[NDArray, Trajectory, list]:
    return found[0], trajectory, found[1]


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("turns", [1, 3])
def test_another_tokenizer_marks_by_the_chain_rule(pair: Pair, turns: int, ended: bool) -> None:
    answers, asked = ANSWERS[:turns], ASKED[: turns - 1]
    trajectory = conversation(pair.student, answers, asked, ended)
    prompt_ids, follow_ups = rendered(pair.teacher, asked, "The library burned down.")
    views = RequestBuilder(WATCHED, aligners={"teacher": make_aligner(pair.student, pair.teacher)})
    view = views.build("teacher", prompt_ids, trajectory, follow_ups)
    text = whole_text(pair.teacher, "The library burned down.", answers, asked)
    expected_ids = pair.teacher(text, add_special_tokens=False)["input_ids"] + [pair.teacher.eos_token_id] * ended
    assert [*view.request.prompt_ids.tolist(), *view.request.response_ids.tolist()] == expected_ids
    signal, plain = scores(pair.path, view.request)
    found = view.to_student_tokens(signal)
    assert found.known is not None and found.merged is not None and found.spans is not None
    np.testing.assert_array_equal(found.known, trajectory.loss_mask)
    positions = walk(pair, trajectory, view.request)
    for span in np.unique(found.spans[found.known]).tolist():
        rows = np.flatnonzero(found.spans == span)
        theirs = positions[rows[0]]
        np.testing.assert_allclose(found.logprobs[rows].sum(dtype=np.float64), plain[theirs].sum(), atol=1e-4)
        assert found.merged[rows].all() == (len(rows) > 1 or len(theirs) > 1)
    assert 0 < found.merged.sum() < found.known.sum()
    check_candidates(pair, trajectory, view.request, found, positions)


def walk(pair: Pair, trajectory: Trajectory, request: ScoringRequest) -> dict[int, list[int]]:
    """For each of the student's tokens that begins where one of the teacher's does: the places of the teacher's tokens
    from there to the next such place, found by laying both answers side by side."""
    assert request.scored_mask is not None
    cuts = np.flatnonzero(np.diff(np.concatenate([[0], request.scored_mask.astype(int), [0]])))
    found: dict[int, list[int]] = {}
    for answer, start, stop in zip(trajectory.answers, cuts[::2], cuts[1::2], strict=True):
        ours = [pair.student.convert_ids_to_tokens(int(i)) for i in trajectory.response_ids[answer]]
        theirs = [pair.teacher.convert_ids_to_tokens(int(i)) for i in request.response_ids[start:stop]]
        assert "".join(ours) == "".join(theirs)
        place, token = 0, start
        while place < len(ours):
            first, left, right = place, ours[place], theirs[token - start]
            place, theirs_here, token = place + 1, [token], token + 1
            while left != right:
                if len(left) < len(right):
                    left, place = left + ours[place], place + 1
                else:
                    right, theirs_here, token = right + theirs[token - start], [*theirs_here, token], token + 1
            found[answer.start + first] = theirs_here
    return found


def check_candidates(
    pair: Pair,
    trajectory: Trajectory,
    request: ScoringRequest,
    found: TeacherSignal,
    positions: dict[int, list[int]],
) -> None:
    """The first of the student's candidates that the teacher has too, with its log-probs after the same bytes."""
    assert found.support_ids is not None and found.support_logprobs is not None and trajectory.candidate_ids is not None
    assert found.known is not None and found.spans is not None and request.scored_mask is not None
    every = Reference(pair.path).logprobs(replace(request, scored_mask=None)).numpy()
    pieces = pair.teacher.get_vocab()
    seen: set[int] = set()
    for row in np.flatnonzero(found.known):
        named = [pair.student.convert_ids_to_tokens(int(i)) for i in trajectory.candidate_ids[row]]
        both = [(n, pieces[n]) for n in named if n in pieces and n not in ("<|im_start|>", "<|endoftext|>")][:4]
        kept = found.support_ids[row][found.support_ids[row] >= 0]
        if int(found.spans[row]) in seen:
            assert len(kept) == 0 and np.isneginf(found.support_logprobs[row]).all()
            continue
        seen.add(int(found.spans[row]))
        assert [pair.student.convert_ids_to_tokens(int(i)) for i in kept] == [n for n, _ in both]
        expected = every[positions[row][0], [i for _, i in both]]
        np.testing.assert_allclose(found.support_logprobs[row, : len(both)], expected, atol=1e-4)


@pytest.mark.parametrize("room", [0, 1, 5, 12])
def test_what_the_teacher_has_no_room_for_is_unknown(pair: Pair, room: int) -> None:
    trajectory = conversation(pair.student, ANSWERS[:2], ASKED[:1])
    prompt_ids, follow_ups = rendered(pair.teacher, ASKED[:1], None)
    aligner = make_aligner(pair.student, pair.teacher)
    whole = RequestBuilder(NEEDS, aligners={"teacher": aligner}).build("teacher", prompt_ids, trajectory, follow_ups)
    cut = RequestBuilder(NEEDS, aligners={"teacher": aligner}, max_tokens=len(prompt_ids) + room).build(
        "teacher", prompt_ids, trajectory, follow_ups
    )
    np.testing.assert_array_equal(cut.request.response_ids, whole.request.response_ids[:room])
    (all_scores,), (scores_in_room,) = (
        load_teacher(pair.path).score([whole.request]),
        load_teacher(pair.path).score([cut.request]),
    )
    everything, found = whole.to_student_tokens(all_scores), cut.to_student_tokens(scores_in_room)
    assert found.known is not None and found.known.sum() <= room
    assert found.known.any() == (room > 1) or room == 1
    np.testing.assert_allclose(found.logprobs[found.known], everything.logprobs[found.known], atol=1e-5)
    assert np.isnan(found.logprobs[~found.known]).all() and not found.known[room:].any()


def test_a_space_that_only_the_teacher_writes(tmp_path: Path) -> None:
    """Sentencepiece begins a text with a space: so do the equals of the student's candidates there, and only there."""
    student, teacher = make_tokenizer(), sentencepiece(tmp_path)
    trajectory = conversation(student, ["the library"], [])
    named = np.full_like(trajectory.candidate_ids, student.convert_tokens_to_ids("the"))
    named[:, 1] = student.convert_tokens_to_ids("Ġand")
    view = RequestBuilder(NEEDS, aligners={"teacher": make_aligner(student, teacher)}).build(
        "teacher", np.array([1], dtype=np.int32), replace(trajectory, candidate_ids=named)
    )
    request = view.request
    assert teacher.convert_ids_to_tokens(request.response_ids.tolist()) == ["▁the", "▁library", "</s>"]
    assert request.support_ids is not None
    first, second, _ = (teacher.convert_ids_to_tokens(row[:2].tolist()) for row in request.support_ids)
    assert first[0] == "▁the" and second == ["the", "▁and"]
    scores_of_three = np.array([-1.0, -2.0, -4.0], dtype=np.float32)
    found = view.to_student_tokens(
        TeacherSignal("teacher", scores_of_three, support_logprobs=np.zeros((3, 4), dtype=np.float32))
    )
    tokens = len(trajectory.response_ids)
    assert tokens > 3 and found.merged is not None and found.support_ids is not None
    np.testing.assert_allclose(found.logprobs, [-1.0, *[-2.0 / (tokens - 2)] * (tokens - 2), -4.0])
    assert found.merged.tolist() == [False, *[True] * (tokens - 2), False]
    assert (found.support_ids[2:-1] == -1).all() and (found.support_ids[[0, 1, -1], 0] >= 0).all()


def test_two_ends_of_a_student_are_one_twin_of_the_teachers_end() -> None:
    student, teacher = make_tokenizer(), pruned(make_tokenizer(), 250)[0]
    student.eos_token = "<|endoftext|>"  # of a text; its template ends turns with <|im_end|>
    ends = student.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    ids = student("the old library")["input_ids"] + ends[:1]
    candidates = np.tile(np.array([*ends, *student("abc")["input_ids"]], np.int32), (len(ids), 1))
    trajectory = make_trajectory([1], ids, candidate_ids=candidates)
    needs = SignalNeeds(candidates=candidates.shape[1])
    builder = RequestBuilder(needs, aligners={"teacher": make_aligner(student, teacher)})
    view = builder.build("teacher", np.array([1], np.int32), trajectory)
    assert view.support_ids is not None
    for row in view.support_ids:
        assert ends[0] in row.tolist() and ends[1] not in row.tolist()
