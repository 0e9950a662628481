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
_ROWS: dict[tuple[str, str, str], tuple[str, str]] = {}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one part of the faults where FAULT_PART=2/3, say, asks for the second of three."""
    asked = os.environ.get("FAULT_PART")
    if asked:
        number, parts = map(int, asked.split("/"))
        faults = [item for item in items if item.get_closest_marker("faults")]
        left_out = [item for index, item in enumerate(faults) if index % parts != number - 1]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


@pytest.fixture
def matrix_row() -> list[str]:
    """What a test fills with who, what happens, where, and what came of it."""
    return []


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> object:
    outcome = yield
    row = getattr(item, "funcargs", {}).get("matrix_row")
    if call.when == "call" and row:
        outcome.get_result().user_properties.append(("matrix_row", row))  # reaches the process that writes the page


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    for name, value in report.user_properties if report.when == "call" else ():
        if name == "matrix_row":
            who, action, where, result = value
            came_of_it = result if report.passed else "**fails**"
            _ROWS[who, action, f"`{where}`"] = came_of_it, f"{report.duration:.0f}"


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the rows of this run, and those of earlier ones that were not run again."""
    path = os.environ.get("FAULT_MATRIX")
    if path and _ROWS and not hasattr(session.config, "workerinput"):
        earlier = Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []
        cells = [line.strip("| ").split(" | ") for line in earlier if line.startswith("| ")][1:]
        rows = {(who, action, where): (result, seconds) for who, action, where, result, seconds in cells} | _ROWS
        table = ["| who | what happens | where | what comes of it | seconds |", "|---|---|---|---|---:|"]
        table += [f"| {' | '.join((*key, *values))} |" for key, values in rows.items()]
        about = machine()
        foot = f"\n{about['cpu']}, {about['cores']} cores, {about['memory_gib']} GiB; seconds of a whole run.\n"
        write_text(Path(path), _HEAD + "\n".join(table) + "\n" + foot)
