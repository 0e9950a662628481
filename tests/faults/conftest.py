"""docs/reliability.md is written from what the runs with faults came to, where FAULT_MATRIX names it."""

import os
from pathlib import Path

import pytest

from orchestration.results.provenance import machine
from tutelage.files import write_text

_HEAD = """# What dies, and what comes of it

Written by `make faults`, which runs each row: real engines, Ray and DeepSpeed on tiny models, with a fault at the named
call of the named process. "same" means that the rows of `metrics.jsonl` (but times and counts of restarts), the samples
and `final/` are bit-equal to those of a run without the fault; what is started again is in `restarts` of
`summary.json`. What is counted, how often, and which settings bound it: [running.md](running.md).

"""
_ROWS: list[tuple[str, ...]] = []


@pytest.fixture
def matrix_row() -> list[str]:
    """What a test fills with who, what happens, where, and what came of it."""
    return []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    outcome = yield
    report = outcome.get_result()
    row = getattr(item, "funcargs", {}).get("matrix_row")
    if report.when == "call" and row:
        who, action, where, result = row
        _ROWS.append((who, action, f"`{where}`", result if report.passed else "**fails**", f"{report.duration:.0f}"))


def pytest_sessionfinish() -> None:
    path = os.environ.get("FAULT_MATRIX")
    if path and _ROWS:
        about = machine()
        table = ["| who | what happens | where | what comes of it | seconds |", "|---|---|---|---|---:|"]
        table += [f"| {' | '.join(row)} |" for row in _ROWS]
        foot = f"\n{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; seconds of the whole run.\n"
        write_text(Path(path), _HEAD + "\n".join(table) + "\n" + foot)
