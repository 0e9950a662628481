"""Scores on disk: what comes back is what was kept, or nothing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from safetensors.numpy import load_file, save_file

from scoring.backends.store import Coverage, SignalStore, Unreadable
from tests.scoring.backends.coverage import EXTENTS, asked, assert_same, damage_bytes, invented
from tests.scoring.reference import random_request
from tutelage.lm.head import LMHead, LogitTransform
from tutelage.records.signal import TeacherSignal


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kept=EXTENTS, wanted=EXTENTS)
def test_an_answer_serves_every_request_that_it_covers_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, kept: Coverage, wanted: Coverage
) -> None:
    store = SignalStore(str(tmp_path_factory.mktemp("scores")), "t")
    whole = invented(asked(kept))
    store.keep(asked(kept), whole)
    found = store.find(asked(wanted))
    assert found is not None and found.extent == kept
    possible = wanted.top_k <= kept.top_k and wanted.entropy <= kept.entropy and wanted.hidden_states <= (
        kept.hidden_states
    )  # fmt: skip
    assert (found.signal is not None) == kept.covers(wanted) == possible
    if found.signal is None:
        return
    k = wanted.top_k
    expected = replace(
        whole,
        entropy=whole.entropy if wanted.entropy else None,
        top_ids=whole.top_ids[:, :k] if k and whole.top_ids is not None else None,
        top_logprobs=whole.top_logprobs[:, :k] if k and whole.top_logprobs is not None else None,
        hidden_states=whole.hidden_states if wanted.hidden_states else None,
    )
    assert_same(found.signal, expected)


@given(EXTENTS, EXTENTS)
def test_the_union_of_two_extents_is_the_least_that_covers_both(first: Coverage, second: Coverage) -> None:
    both = first | second
    assert both.covers(first) and both.covers(second)
    assert both == second | first
    assert both in (first, second) or not (first.covers(second) or second.covers(first))


def test_every_part_of_a_request_is_part_of_its_key(tmp_path: Path) -> None:
    store = SignalStore(str(tmp_path), "t")
    request = random_request(5, 7, support=3)
    scored_mask = np.ones(7, np.bool_)
    scored_mask[2] = False
    assert request.support_ids is not None
    others = [
        replace(request, prompt_ids=request.prompt_ids[:-1]),
        replace(request, prompt_ids=np.append(request.prompt_ids, request.response_ids[0]),
                response_ids=request.response_ids[1:], support_ids=request.support_ids[1:]),
        replace(request, response_ids=request.response_ids[::-1]),
        replace(request, support_ids=None),
        replace(request, support_ids=request.support_ids[:, :2]),
        replace(request, support_ids=request.support_ids[:, ::-1]),
        replace(request, scored_mask=scored_mask, support_ids=request.support_ids[scored_mask]),
        replace(request, scored_mask=~scored_mask, support_ids=request.support_ids[~scored_mask]),
    ]  # fmt: skip
    store.keep(request, invented(request))
    assert len({store.path(other) for other in [request, *others]}) == len(others) + 1
    assert all(store.find(other) is None for other in others)
    assert SignalStore(str(tmp_path), "another teacher").find(request) is None


def test_what_a_teacher_is_called_does_not_matter_and_neither_does_a_mask_of_all(tmp_path: Path) -> None:
    store = SignalStore(str(tmp_path), "t")
    request = random_request(5, 7, support=3)
    store.keep(request, invented(request))
    other = replace(request, teacher="maths", scored_mask=np.ones(7, np.bool_))
    found = store.find(other)
    assert found is not None and found.signal is not None
    assert_same(found.signal, replace(invented(request), teacher="maths"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def replace_by_text(path: Path) -> None:
    path.write_text("these are no scores")


def replace_by_other_tensors(path: Path) -> None:
    save_file({"logprobs": np.zeros(7, np.float32)}, path)


def change_about(path: Path, **changes: str) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        about = file.metadata()
    save_file(load_file(path), path, about | {key.replace("_", " "): value for key, value in changes.items()})


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "a flipped bit": (damage_bytes, "are not those that were written"),
    "cut short": (cut, "Error"),
    "no safetensors": (replace_by_text, "Error"),
    "empty": (lambda path: path.write_bytes(b""), "Error"),
    "somebody else's tensors": (replace_by_other_tensors, "its format is None"),
    "an older format": (lambda path: change_about(path, format="tutelage marks 0"), "its format is 'tutelage marks 0'"),
    "another teacher's": (lambda path: change_about(path, teacher="u"), "its teacher is 'u'"),
    "another request's": (lambda path: change_about(path, request="0"), "another request"),
    "an extent that is none": (lambda path: change_about(path, extent="[]"), "Error"),
    "an extent that promises too much": (
        lambda path: change_about(path, extent=json.dumps(vars(Coverage(9, True, True)))), "fewer than the 9 asked for"
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_files_that_cannot_be_trusted_are_named(tmp_path: Path, fault: str) -> None:
    store = SignalStore(str(tmp_path), "t")
    request = asked(Coverage(4, True, True))
    store.keep(request, invented(request))
    damage, message = FAULTS[fault]
    damage(store.path(request))
    with pytest.raises(Unreadable, match=message) as caught:
        store.find(asked(Coverage(9 if "too much" in fault else 4, True, True)))
    assert str(store.path(request)) in str(caught.value)


def test_a_file_holds_what_answers_the_request_under_the_names_of_its_arrays(tmp_path: Path) -> None:
    store = SignalStore(str(tmp_path), "t")
    request = asked(Coverage(4, True, True))
    store.keep(request, replace(invented(request), reference_logprobs=np.zeros(7, np.float32)))
    assert load_file(store.path(request)).keys() == {
        "logprobs", "entropy", "support_logprobs", "top_ids", "top_logprobs", "hidden_states"
    }  # fmt: skip


def test_nothing_scored_is_answered_with_no_rows_of_everything() -> None:
    request = replace(asked(Coverage(4, True, True)), scored_mask=np.zeros(7, np.bool_), support_ids=np.empty((0, 3)))
    empty, some = TeacherSignal.empty(request, width=8), invented(asked(Coverage(4, True, True)))
    assert empty.arrays.keys() == some.arrays.keys()
    for name in request.row_shapes:
        assert empty.arrays[name].shape == (0, *some.arrays[name].shape[1:])
        assert empty.arrays[name].dtype == some.arrays[name].dtype


def test_no_half_written_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = SignalStore(str(tmp_path), "t")
    request = random_request(5, 7)

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        store.keep(request, invented(request))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"format": "tutelage marks 0"}'])
def test_a_description_that_cannot_be_trusted_is_named(tmp_path: Path, text: str) -> None:
    store = SignalStore(str(tmp_path), "t")
    store.keep_about({"model": "m"})
    (store.folder / "teacher.json").write_text(text)
    with pytest.raises(Unreadable, match=r"teacher\.json.*delete its folder"):
        store.about()


@pytest.mark.parametrize("bias", [None, np.arange(4, dtype=np.float32)])
def test_the_head_and_who_the_teacher_is(tmp_path: Path, bias: np.ndarray | None) -> None:
    store = SignalStore(str(tmp_path), "t")
    assert store.about() is None and not store.has_head
    head = LMHead(np.arange(12, dtype=np.float32).reshape(4, 3), bias, LogitTransform(0.5, 30.0))
    store.keep_head(head)
    store.keep_about({"model": "m", "vocabulary_size": 4})
    found = store.head()
    assert store.has_head and found.transform == head.transform
    np.testing.assert_array_equal(found.weight, head.weight)
    assert (found.bias is None) == (bias is None) and (bias is None or np.array_equal(found.bias, bias))
    assert store.about() == {"format": "tutelage marks 1", "model": "m", "vocabulary_size": 4}
