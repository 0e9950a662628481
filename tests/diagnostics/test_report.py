"""What the pages of runs and diagnoses say, that they escape what models write, and that they fetch nothing."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diagnostics.report.charts import Chart, Series, ticks
from diagnostics.report.diagnosis_page import render_diagnosis
from diagnostics.report.figures import figure, interval
from diagnostics.report.run_page import RunRecord, render_recipe, render_run
from diagnostics.report.tokens import SHOWN_TOKENS, token_view
from tests.diagnostics import report_examples as examples
from tests.diagnostics.report_examples import ATTACK, hostile_diagnosis


class Text(HTMLParser):
    """What is read on a page, and what it is made of."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self._hidden, self._parts = "", [""]
        self.feed(page)
        self.text = " ".join(" ".join(self._parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._hidden = tag if tag in ("script", "style") else self._hidden
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset")]
        assert not [name for name, _value in attrs if name.startswith("on")]

    def handle_endtag(self, tag: str) -> None:
        self._hidden = "" if tag == self._hidden else self._hidden

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self._parts.append(data)


def signals(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="signals">(.*?)</script>', page, re.S)
    assert found is not None
    return json.loads(found[1])


def test_the_verdict_comes_first_with_its_interval_and_what_to_do() -> None:
    text = Text(render_diagnosis(examples.diagnosis())).text
    places = [
        text.rindex(part)
        for part in (
            "Go, after a cold start",
            "predicted change, accuracy +0.310 +0.290 to +0.340",
            "The teacher scores 0.99",
            "python -m orchestration.launch recipe=cold_start_then_distil",
            "1 failed, 1 passed",
            "Do they agree?",
            "Token by token",
            "student.model=lab/student",
        )
    ]
    assert places == sorted(places)


def test_every_part_of_a_diagnosis_is_there() -> None:
    text = Text(render_diagnosis(examples.diagnosis())).text
    for part in (
        "train and held-out overlap",
        "another split",
        "overlap ratio share of the two top k",
        "AUROC of 0.830 [0.810, 0.860]",
        "50% 0.500 [0.480, 0.530] 0.650 [0.630, 0.680] 0.150 [0.130, 0.180] 64",
        "5–8 0.400 [0.380, 0.430]",
        "sums letters",
        "solved none of its samples of 9 prompts",
        "linear CKA",
        "incorrect 0.410 [0.390, 0.440] 61",
        "reverse kl 0.110 [0.090, 0.140] 0.420 [0.400, 0.450]",
        "advantage 0.630 [0.610, 0.660] entropy –",
        "By token token jsd x 0.250 x 0.250",
        "teacher.context=null",
    ):
        assert part in text


@pytest.mark.parametrize(
    "missing", [*examples.diagnosis(), *(f"probe.{name}" for name in examples.diagnosis()["probe"])]
)
@pytest.mark.parametrize("left_out", [True, False], ids=["left out", "null"])
def test_what_is_missing_is_left_out(missing: str, left_out: bool) -> None:
    diagnosis = examples.diagnosis()
    *path, name = missing.split(".")
    holder = diagnosis[path[0]] if path else diagnosis
    if left_out:
        del holder[name]
    else:
        holder[name] = None
    page = render_diagnosis(diagnosis)
    assert "None" not in Text(page).text and page.count("</section>") >= 3


def test_where_it_cannot_tell_nothing_is_recommended() -> None:
    record = examples.diagnosis()
    unsure = {**record["verdict"], "verdict": "cannot_tell", "recommended_command": None, "evidence": ["no verifier"]}
    text = Text(render_diagnosis({**record, "verdict": unsure})).text
    assert text.index("Cannot tell") < text.index("no verifier")
    assert "orchestration.launch" not in text and "Go" not in text.split("no verifier")[0]


def test_without_a_verdict_failed_checks_are_named_first() -> None:
    text = Text(render_diagnosis({**examples.diagnosis(), "verdict": None})).text
    assert "Not ready A run with this set-up would mean nothing. Why prompts: train and held-out overlap" in text


def test_nothing_that_models_or_prompts_say_becomes_markup() -> None:
    page = render_diagnosis(hostile_diagnosis())
    read = Text(page)
    assert "img" not in read.tags and read.tags.count("script") == 2
    assert ATTACK in read.text
    assert signals(page)[0][0][0] == ATTACK


def test_nothing_that_a_run_says_becomes_markup() -> None:
    sample = {**examples.run_sample(ATTACK), "tokens": [ATTACK, ATTACK], "prompt": ATTACK, "origin": ATTACK}
    record = replace(
        examples.run(),
        name=ATTACK,
        settings={"name": ATTACK},
        samples={1: [sample]},
        summary=examples.summary(alarms=[ATTACK], counts={ATTACK: 1}),
        metrics=[
            {"policy_version": 1, "train/loss": 1.0, ATTACK: 1.0},
            {"policy_version": 2, "train/loss": 1.0, ATTACK: 2.0},
        ],
    )
    read = Text(render_run(record))
    assert "img" not in read.tags and read.tags.count("script") == 2 and read.text.count(ATTACK) > 5


@pytest.mark.parametrize(
    "page",
    [
        render_diagnosis(examples.diagnosis()),
        render_run(examples.run()),
        render_recipe("folder", {}, {"status": "completed", "wall_seconds": 1.0, "stages": []}),
    ],
    ids=["diagnosis", "run", "recipe"],
)
def test_a_page_needs_nothing_else(page: str) -> None:
    assert all(address.startswith(("#", "data:")) for address in Text(page).addresses)
    assert not re.search(r"https?://|@import|url\(", page)


def test_correct_and_incorrect_answers_are_side_by_side() -> None:
    view = token_view(examples.diagnosis()["trajectories"])
    assert view is not None
    assert [(column.title, len(column.trajectories)) for column in view.columns] == [("Correct", 1), ("Incorrect", 1)]
    ungraded = token_view([{**item, "reward": None} for item in examples.diagnosis()["trajectories"]])
    assert ungraded is not None and [len(column.trajectories) for column in ungraded.columns] == [2]


def test_tokens_are_coloured_by_what_the_teacher_thinks_of_them() -> None:
    page = render_diagnosis(examples.diagnosis())
    classes = dict(re.findall(r'<span id="(t\d+-\d+)" class="t ([^"]*)"', page))
    assert classes == {"t0-0": "up2 k0", "t0-1": "r0 k1", "t1-0": "down5 k5", "t1-1": "r0 k0"}
    assert 'tabindex="-1">⏎\n</span>' in page


def test_the_worst_tokens_come_with_what_the_teacher_wanted() -> None:
    text = Text(render_diagnosis(examples.diagnosis())).text
    assert "(start) nine eight 88% −0.250 −6.50 −6.25 6.25" in text


def test_long_trajectories_are_cut_and_say_so() -> None:
    tokens = [examples.token("x", -1.0, -1.0)] * (SHOWN_TOKENS + 7)
    view = token_view([examples.trajectory(0, None, *tokens)])
    assert view is not None and len(view.signals[0]) == SHOWN_TOKENS
    assert view.columns[0].trajectories[0].left_out == 7


def test_signals_that_are_not_known_are_null() -> None:
    view = token_view([examples.trajectory(0, None, {"text": "x", "teacher_logprob": float("nan")})])
    assert view is not None and view.signals == [[["x", None, None, None, [], []]]] and not view.worst


# Runs


def test_a_run_says_first_what_came_out() -> None:
    text = Text(render_run(examples.run())).text
    assert text.index("Accuracy rose from 0.570 to 0.910") < text.index("Held-out prompts")
    assert "0.570 [0.550, 0.600] before, 0.910 [0.890, 0.940] after. 81% of the gap" in text
    assert "monitor/hedges" in text  # whatever else was logged has a curve too


@pytest.mark.parametrize(
    ("before", "after", "title"),
    [(0.9, 0.5, "Accuracy fell from 0.900 to 0.500"), (0.5, 0.51, "Accuracy shows no clear change")],
)
def test_harm_and_doubt_are_named(before: float, after: float, title: str) -> None:
    roles = {"student_before": examples.evaluation(before, 0.2), "student_after": examples.evaluation(after, 0.1)}
    found = examples.summary(evaluation={**roles, "teacher": None}, gap_recovery=None)
    assert title in Text(render_run(replace(examples.run(), summary=found))).text


def test_without_a_verifier_the_divergence_is_the_outcome() -> None:
    roles = {"student_before": examples.evaluation(None, 0.25), "student_after": examples.evaluation(None, 0.04)}
    found = examples.summary(evaluation={**roles, "teacher": examples.evaluation(None, None)}, gap_recovery=None)
    page = render_run(replace(examples.run(), summary=found))
    assert "Divergence from the teacher fell from 0.250 to 0.0400" in Text(page).text and "headline good" in page


@pytest.mark.parametrize(("status", "tone"), [("interrupted", "careful"), ("failed", "bad")])
def test_runs_that_stopped_early_say_so(status: str, tone: str) -> None:
    stopped = examples.summary(
        status, steps=2, evaluation={"student_before": None, "student_after": None, "teacher": None}
    )
    page = render_run(replace(examples.run(), summary=stopped))
    assert f"{status.capitalize()} after step 2 of 3" in Text(page).text and f"headline {tone}" in page


def test_a_run_that_an_alarm_stopped_says_what_it_ends_with() -> None:
    page = render_run(
        replace(examples.run(), summary=examples.summary("stopped", steps=2, alarms=["step 2: too long"]))
    )
    text = Text(page).text
    assert "Stopped by an alarm, with the student of step 2 of 3 Accuracy rose from 0.570 to 0.910." in text
    assert text.index("step 2: too long") < text.index("Stopped") and "headline careful" in page


def test_a_run_that_has_nothing_yet_has_a_page() -> None:
    assert "Not finished step 0 so far" in Text(render_run(RunRecord("new"))).text
    assert "step 3 of 3 so far" in Text(render_run(replace(examples.run(), summary=None))).text


def test_alarms_stand_above_the_outcome() -> None:
    found = examples.summary(alarms=["responses grow"], remedies=["rolled back to step 2"])
    text = Text(render_run(replace(examples.run(), summary=found))).text
    assert text.index("responses grow") < text.index("rolled back to step 2") < text.index("Accuracy rose")


def test_samples_of_the_first_and_the_last_step_are_shown() -> None:
    text = Text(render_run(examples.run())).text
    assert "step 3: last" in text and "step 1: first" in text and "between" not in text
    last, _first = signals(render_run(examples.run()))
    assert last[1] == ["5", -0.2, -5.0, None, [], [["6", None, -0.01]]]


def test_a_recipe_links_the_pages_of_its_stages() -> None:
    stages = [
        {
            "name": "warm",
            "stage": "cold_start",
            "status": "completed",
            "folder": "1-warm",
            "summary": examples.summary(),
        },
        {"name": "distil", "stage": "distil", "status": "not started", "folder": "2-distil", "summary": None},
    ]
    page = render_recipe("folder", {}, {"status": "failed", "wall_seconds": 3.0, "stages": stages})
    assert "1-warm/report.html" in Text(page).addresses and "2-distil/report.html" not in page
    assert "0.910 [0.890, 0.940]" in Text(page).text


# Figures and charts


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (0.0, "0"), (-0.25, "−0.250"), (0.0534, "0.0534"), (0.0023, "0.0023"),
     (1.5, "1.50"), (26.1, "26.1"), (4096.0, "4096"), (2e-5, "2.0e−05")],
)  # fmt: skip
def test_figures_have_three_digits(value: float | None, text: str) -> None:
    assert figure(value) == text


def test_an_interval_has_the_decimals_of_its_mean() -> None:
    assert interval({"mean": 0.996, "low": 0.988, "high": 1.0}) == "0.996 [0.988, 1.000]"
    assert interval({"mean": 0.0001, "low": -0.01, "high": 0.01}, signed=True) == "+0.0001 [−0.0100, +0.0100]"
    assert interval(None) == interval({"mean": None}) == "–"


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_and_inside(low: float, width: float) -> None:
    found = ticks(low, low + width, 4)
    assert len(found) <= 6 and all(low - width / 100 <= tick <= low + width * 1.01 for tick in found)


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), max_size=8))
def test_every_curve_stays_in_its_picture(values: list[float | None]) -> None:
    picture = str(Chart("a", [Series("b", list(range(len(values))), values, values, values)], "x").svg())
    points = re.findall(r'<polyline points="([^"]*)"', picture)
    pairs = [tuple(map(float, pair.split(","))) for line in points for pair in line.split()]
    assert all(0 <= x <= 420 and 0 <= y <= 250 for x, y in pairs)
    assert len(pairs) == sum(value is not None for value in values)
