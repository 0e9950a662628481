"""Every figure that CI holds finds an offender that is planted, and nothing in what is as it should be."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("figures", ROOT / ".ci" / "figures.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FIGURES = load()
LONG = "    x = 0\n" * 60
PLANTED = {
    "class names defined twice": {
        "learner/a.py": "class Twice:\n    pass\n",
        "rollout/a.py": "class Twice:\n    pass\n",
    },
    "folders of more than 20 files": {f"scoring/{i}.py": "" for i in range(21)},
    "one-caller helpers <= 3 lines, per 1,000 lines": {
        "learner/a.py": "def helper(x: int) -> int:\n    return x + 1\n\n\nnumbers = [helper(1)]\n"
    },
    'docstrings that begin with "Of"': {"diagnostics/a.py": 'class Part:\n    """Of a whole."""\n'},
    "functions of more than 60 lines": {"benchmarks/a.py": f"def endless() -> None:\n{LONG}"},
    "functions not annotated": {"tests/a.py": "def untold(x) -> None:\n    pass\n"},
    "files of more than 400 lines": {"tests/a.py": "x = 0\n" * 401},
    "imports of test modules": {"tests/rollout/test_b.py": "from tests.rollout.test_a import helper\n"},
}


def exceeded(root: Path, files: dict[str, str]) -> dict[str, list[str]]:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return {figure.name: list(figure.offenders) for figure in FIGURES.figures(root) if figure.exceeded}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_offender_is_found_and_named(name: str, tmp_path: Path) -> None:
    offenders = exceeded(tmp_path, PLANTED[name])
    assert list(offenders) == [name]
    assert len(offenders[name]) == 1
    assert any(offenders[name][0].startswith(str(Path(path).parent)) for path in PLANTED[name])


def test_every_figure_has_a_planted_offender(tmp_path: Path) -> None:
    assert [figure.name for figure in FIGURES.figures(tmp_path)] == list(PLANTED)


@pytest.mark.parametrize(
    "source",
    [
        "def helper() -> int:\n    return 1\n\n\nx, y = helper(), helper()\n",  # two callers
        "def helper() -> int:\n    return 1\n\n\ntable = {'one': helper}\n",  # a value
        "def helper() -> int:\n    a = 1\n    b = 2\n    c = 3\n    return a + b + c\n\n\nhelper()\n",  # four lines
        "@cache\ndef helper() -> int:\n    return 1\n\n\nhelper()\n",  # decorated
        "class A:\n    def helper(self) -> int:\n        return 1\n\n\n"
        "class B(A):\n    def helper(self) -> int:\n        return 2\n\n\nA().helper()\n",  # an interface
        "class Worker:\n    def helper(self) -> int:\n        return 1\n\n\nactor.helper.remote()\n",  # an actor
        "def around() -> None:\n    def helper() -> int:\n        return 1\n\n    helper()\n",  # a closure
    ],
)
def test_what_cannot_be_inlined_or_is_worth_its_name_is_no_small_helper(source: str, tmp_path: Path) -> None:
    assert exceeded(tmp_path, {"learner/a.py": source}) == {}


def test_limits_are_met_exactly(tmp_path: Path) -> None:
    files = {f"scoring/{i}.py": "" for i in range(20)}
    files["tests/a.py"] = "x = 0\n" * 400
    files["benchmarks/a.py"] = "def just_short_enough() -> None:\n" + LONG.removesuffix("    x = 0\n")
    files["learner/a.py"] = 'class Part:\n    """Often seen."""\n'
    files["rollout/a.py"] = "def told(*rest: int, given: str, **more: int) -> None:\n    pass\n"
    assert exceeded(tmp_path, files) == {}
