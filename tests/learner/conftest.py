"""The table of what was verified about the objectives: written by a complete and passing run of their tests."""

from collections import defaultdict
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "docs" / "objectives_verified.md"
_MATRIX = "gradients"


class Ledger:
    """Claims of the tests that passed, with the number of cases and, for the matrix, their parameters."""

    def __init__(self) -> None:
        self.cases: dict[tuple[str, str], int] = defaultdict(int)
        self.matrix: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
        self.complete = True
        self.items = 0  # that passed and verify something

    def passed(self, item: pytest.Function) -> None:
        self.items += any(item.iter_markers("verifies"))
        for marker in item.iter_markers("verifies"):
            section, claim = marker.args
            if section == _MATRIX:
                divergence, support, normalisation = (
                    item.callspec.params[name] for name in ("divergence", "support", "normalisation")
                )
                self.matrix[claim, divergence][normalisation.value].append(support.value)
            else:
                self.cases[section, claim] += 1


_LEDGER = pytest.StashKey[Ledger]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "verifies(section, claim): enters the table of docs/objectives_verified.md")
    config.stash[_LEDGER] = Ledger()


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        if any(item.iter_markers("verifies")):
            item.config.stash[_LEDGER].complete = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport:
    report: pytest.TestReport = yield
    ledger = item.config.stash[_LEDGER]
    if report.failed:
        ledger.complete = False
    elif call.when == "call" and report.passed and isinstance(item, pytest.Function):
        ledger.passed(item)
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table if every one of the objectives' tests ran and passed."""
    ledger, here = session.config.stash[_LEDGER], Path(__file__).parent
    ran = {item.path for item in session.items}
    partial = any("::" in argument for argument in session.config.args)
    # A run that was interrupted has items that neither passed nor failed.
    every_item_passed = ledger.items == sum(any(item.iter_markers("verifies")) for item in session.items)
    whole = ledger.complete and every_item_passed and not partial
    if whole and set((here / "objectives").glob("test_*.py")) <= ran:
        TABLE.write_text(_render(ledger), encoding="utf-8")


def _render(ledger: Ledger) -> str:
    sections = sorted({section for section, _ in ledger.cases})
    return "\n".join(
        [
            "# What is verified about the objectives",
            "",
            "Written by `python -m pytest tests/learner` when all of it passes. In float64 unless a line says",
            "otherwise; formulas agree to 1e-10 (to 1e-7 under hypothesis, whose instances may be",
            "ill-conditioned), descents reach their fixed point to 1e-4 (the collapse, which slows down towards",
            "its end, to 1e-2).",
            "",
            *_matrix(ledger),
            *(line for section in sections for line in _claims(ledger, section)),
        ]
    )


def _matrix(ledger: Ledger) -> list[str]:
    """A table a gradient: for each divergence and normalisation, on how many supports."""
    lines = ["## Loss and gradient on the logits against autograd of the formula", ""]
    for gradient in dict.fromkeys(gradient for gradient, _ in ledger.matrix):
        tables = {name: cells for (found, name), cells in ledger.matrix.items() if found == gradient}
        columns = list(dict.fromkeys(column for cells in tables.values() for column in cells))
        lines += [f"Supports, {gradient}:", "", f"| divergence | {' | '.join(columns)} |"]
        lines += ["|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | {' | '.join(str(len(cells[c])) for c in columns)} |" for name, cells in tables.items()]
        lines += ["", *_legend(tables), ""]
    return lines


def _legend(tables: dict[str, dict[str, list[str]]]) -> list[str]:
    """Which supports the counts of a table stand for."""
    supports: dict[str, set[str]] = defaultdict(set)
    for cells in tables.values():
        for column, found in cells.items():
            supports[", ".join(found)].add(column)
    return [f"{len(names.split(', '))}: {names}." for names in supports]


def _claims(ledger: Ledger, section: str) -> list[str]:
    rows = [f"| {claim} | {count} |" for (found, claim), count in sorted(ledger.cases.items()) if found == section]
    return [f"## {section[0].upper()}{section[1:]}", "", "| claim | cases |", "|---|---|", *rows, ""]
