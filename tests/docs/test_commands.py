"""Every command that a page of the documentation, or a message, tells a reader to type."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from tests.factories import configured

ROOT = Path(__file__).parents[2]
ROOMS = ("tutelage", "rollout", "scoring", "learner", "diagnostics", "orchestration")
# Its commands are run, with the extensions that they name, by test_extending.
PAGES = [ROOT / "README.md", *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.stem != "extending")]
PLACEHOLDER = re.compile(r"[<…]|PATH|\[the settings")
NOT_SETTINGS = {"-m", "--cfg", "job"}


COMMAND = re.compile(r"^ *(?:ray job submit -- )?python -m orchestration\.(?:launch|diagnose|precompute) (.*)$", re.M)


def commands() -> list[str]:
    """What follows the module, on one line, of the commands that take a run's settings and leave nothing to fill in."""
    texts = [page.read_text(encoding="utf-8").replace("\\\n", " ") for page in PAGES]
    lines = [" ".join(line.split()) for text in texts for line in COMMAND.findall(text)]
    return [line for line in lines if not PLACEHOLDER.search(line)]


@pytest.mark.parametrize("command", commands())
def test_a_command_of_the_documentation_is_composed_and_accepted(command: str) -> None:
    words = shlex.split(command, comments=True)
    settings = [word for word in words if word not in NOT_SETTINGS]
    configured(*(word.partition(",")[0] if "-m" in words else word for word in settings))


def test_a_module_that_is_named_as_a_command_is_one() -> None:
    text = "\n".join(
        path.read_text(encoding="utf-8")
        for path in (*PAGES, *(file for room in ROOMS for file in (ROOT / room).rglob("*.py")))
    )
    modules = set(re.findall(r"python -m ((?:orchestration|rollout|benchmarks)(?:\.\w+)+)", text))
    assert {"orchestration.launch", "orchestration.lab", "benchmarks.verdict"} <= modules
    for module in modules:
        spec = importlib.util.find_spec(module)
        assert spec is not None, module
        entry = Path(str(spec.origin))
        if spec.submodule_search_locations:
            assert entry.with_name("__main__.py").is_file(), module
        else:
            assert '__name__ == "__main__"' in entry.read_text(encoding="utf-8"), module
