"""The two-mode example shows what it says: who covers, who chooses, who ends somewhere else."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.two_modes import (
    FREE,
    FREE_PANELS,
    ONE_BELL,
    ONE_BELL_PANELS,
    PRESETS,
    TOP,
    TOP_K,
    Panel,
    bell,
    descend,
    divergences,
    draw,
    expected_gradient,
    two_modes,
)
from benchmarks.two_modes import composed as compose_preset

Q = two_modes().exp()


def panel(preset: str) -> Panel:
    return next(panel for panel in (*ONE_BELL_PANELS, *FREE_PANELS) if panel.preset == preset)


def mass_of_larger_mode(p: Tensor) -> float:
    return float(p[:15].sum())


def test_forward_kl_covers_what_reverse_kl_leaves_out() -> None:
    covers, chooses = (descend(panel(name), ONE_BELL, 600) for name in ("full_forward_kl", "full_reverse_kl"))
    assert mass_of_larger_mode(chooses) > 0.99
    assert 0.4 < mass_of_larger_mode(covers) < 0.7
    assert divergences(chooses, Q)[0] < divergences(covers, Q)[0]
    assert divergences(covers, Q)[1] < divergences(chooses, Q)[1]


def test_every_sample_together_has_the_gradient_of_the_exact_divergence() -> None:
    logits = bell(14, 5).log()
    sampled, exact = (
        expected_gradient(compose_preset(name, ()), logits, two_modes(), 0)
        for name in ("sampled_reverse_kl", "full_reverse_kl")
    )
    torch.testing.assert_close(sampled, exact)


def test_the_baselines_end_away_from_the_teacher() -> None:
    sound = divergences(descend(panel("student_topk_reverse_kl"), FREE, 600), Q)
    naive = divergences(descend(panel("naive_student_topk"), FREE, 600), Q)
    assert naive[0] > 4 * sound[0]
    truncated = descend(panel("teacher_topk_forward_kl"), FREE, 600)
    outside = torch.ones_like(Q).scatter(0, Q.topk(TOP_K).indices, 0).bool()
    assert truncated[outside].sum() < 0.1 * Q[outside].sum()


@pytest.mark.parametrize("panels", [ONE_BELL_PANELS, FREE_PANELS], ids=["bell", "free"])
def test_the_picture_is_drawn(panels: tuple[Panel, ...], tmp_path: Path) -> None:
    draw({"one": [(panel, Q) for panel in panels], "two": [(panel, Q) for panel in panels]}, tmp_path / "modes.png")
    assert (tmp_path / "modes.png").read_bytes().startswith(b"\x89PNG")


CLAIMED = set(
    re.findall(
        r"^\| `(\w+)` \|.*\| (?:p = q(?: on S)?(?:, equal tails)?|p̄ = q̄) \|",
        (Path(__file__).parents[2] / "docs" / "objectives.md").read_text(),
        re.MULTILINE,
    )
)


# The table of divergences, which are no presets, has the same column; minillm needs tokens that follow.
@pytest.mark.parametrize("preset", [p.stem for p in sorted(PRESETS.glob("*.yaml")) if p.stem in CLAIMED - {"minillm"}])
def test_where_the_documentation_has_the_teacher_as_fixed_point_the_gradient_is_zero(preset: str) -> None:
    gradients = [expected_gradient(compose_preset(preset, ()), two_modes(), two_modes(), step) for step in range(3)]
    assert torch.stack(gradients).abs().max() < 1e-12


def test_the_documentation_has_many_such_claims() -> None:
    assert len(CLAIMED) > 20


def test_the_naive_form_has_a_gradient_at_the_teacher() -> None:
    objective = compose_preset("naive_student_topk", TOP)
    assert expected_gradient(objective, two_modes(), two_modes(), 0).abs().max() > 1e-3
