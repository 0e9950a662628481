"""What the lab must show: the runs that each phenomenon needs, and the claims that their figures bear out or do not.

A claim is a quantity of one seed's runs that is above zero if the claim is right.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from orchestration.lab.outcome import Outcome

Outcomes = Mapping[str, Outcome]  # of one seed, by the variant's name
REVERSED = "reversed_digits"
_NEAR = 0.1  # in accuracy: two runs that end alike


@dataclass(frozen=True)
class Variant:
    """One run at any seed, as on the command line."""

    name: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Claim:
    """What should be so, as a quantity that is above zero if it is."""

    text: str
    quantity: Callable[[Outcomes], float]
    unit: str = ""


@dataclass(frozen=True)
class Phenomenon:
    """Something that was published, the runs that show it, and what is claimed of them."""

    name: str
    source: str  # where it was published
    variants: tuple[Variant, ...]
    claims: tuple[Claim, ...]


def _experiment(name: str, *overrides: str, label: str | None = None) -> Variant:
    return Variant(label or name, (f"experiment=lab/{name}", *overrides))


def _support(label: str, *overrides: str) -> Variant:
    return _experiment("compatible", *overrides, label=label)


_TOPK = "objective=student_topk_reverse_kl"
_UNSAFE = "objective.unsafe_baseline=true"
_BOTH_TASKS = f"+data.heldout.task_options.mixture=[{{}}, {{task: {REVERSED}}}]"

COMPATIBLE = _experiment("compatible")
OTHER_PATTERN = _experiment("other_pattern")
NOTHING_NEW, NEW_KNOWLEDGE = _experiment("nothing_new"), _experiment("new_knowledge")
PAIRS = (
    COMPATIBLE,
    OTHER_PATTERN,
    NOTHING_NEW,
    NEW_KNOWLEDGE,
    _experiment("own_future"),
    _experiment("longer_trained"),
    _experiment("own_reinforcement"),
    _experiment("reverse"),
    _experiment("deceptive"),
    _experiment("halfway"),
    _experiment("other_family"),
    _experiment("crossed"),
    _experiment("reinforced_further"),
    _experiment("shared_rule"),
    _experiment("instance_answers"),
    _experiment("other_end"),
)
_ENDS = (
    _experiment("other_end"),
    _experiment("other_end", "sampling.stops=as_they_are", label="ends_as_they_are"),
)
_SUPPORTS = (
    _support("top_1", _TOPK, "objective.k=1"),
    _support("top_4", _TOPK, "objective.k=4"),
    _support("top_16", _TOPK, "objective.k=16"),
    _support("top_64", _TOPK, "objective.k=64"),
    _support("intersection_16", "objective=intersection_renormalised", "objective.normalisation=raw"),
    _support("symmetric_difference_16", "objective=symmetric_difference", _UNSAFE),
    _support("sampled", "objective=sampled_reverse_kl"),
)
_LONG = "pipeline.steps=80"
_NORMALISATIONS = (
    _support("naive_4", "objective=naive_student_topk", _UNSAFE, "objective.k=4", _LONG),
    _support("stop_gradient_4", _TOPK, "objective.k=4", _LONG),
    _support("renormalised_4", "objective=student_topk_renormalised", "objective.k=4", _LONG),
    _support("tail_4", "objective=student_topk_tail", "objective.k=4", _LONG),
)
_COLD = (
    _experiment("compatible", "recipe=lab_cold_start", label="compatible_after_cold_start"),
    _experiment("other_pattern", "recipe=lab_cold_start", label="other_pattern_after_cold_start"),
)
_FORGETTING = (
    _experiment("compatible", _BOTH_TASKS, label="two_tasks_distilled"),
    _experiment("compatible", _BOTH_TASKS, "stage=cold_start", "objective=supervised", label="two_tasks_fine_tuned"),
    _experiment(
        "compatible",
        _BOTH_TASKS,
        "stage=reinforce",
        "objective=grpo",
        "pipeline.batch_size=256",
        "pipeline.max_replaced_groups=32",
        "sampling.samples_per_prompt=8",
        "learner.learning_rate=2e-4",
        label="two_tasks_reinforced",
    ),
)


def _forgotten(outcome: Outcome) -> float:
    return outcome.domain_accuracy(REVERSED, "student_before") - outcome.domain_accuracy(REVERSED)


def _higher(one: str, other: str) -> Callable[[Outcomes], float]:
    """How much more accurate the student of one run ends than that of another."""
    return lambda o: o[one].accuracy_after - o[other].accuracy_after


def _alike(one: str, other: str) -> Callable[[Outcomes], float]:
    """Room that is left between the two students' accuracies and a difference of `_NEAR`."""
    return lambda o: _NEAR - abs(o[one].accuracy_after - o[other].accuracy_after)


def _starts_higher(one: str, other: str) -> Callable[[Outcomes], float]:
    return lambda o: o[one].accuracy_started - o[other].accuracy_started


def _recovery(outcome: Outcome) -> float:
    """0 where there is no gap that could be closed."""
    return outcome.recovery or 0.0


PHENOMENA = (
    Phenomenon(
        "success and failure",
        "arXiv 2604.13016, 4.1",
        (COMPATIBLE, OTHER_PATTERN),
        (
            Claim("compatible: the overlap ratio rises", lambda o: o["compatible"].change("train/overlap_ratio")),
            Claim(
                "compatible: the student's mass on the overlap rises",
                lambda o: o["compatible"].change("train/overlap_mass_student"),
            ),
            Claim(
                "compatible: the overlap-token advantage rises towards 0",
                lambda o: o["compatible"].change("train/overlap_token_advantage"),
                "nats",
            ),
            Claim(
                "compatible: the entropy gap narrows", lambda o: -o["compatible"].change("train/entropy_gap"), "nats"
            ),
            Claim("compatible: more than half of the gap is recovered", lambda o: _recovery(o["compatible"]) - 0.5),
            Claim("other pattern: less than a tenth is", lambda o: 0.1 - _recovery(o["other_pattern"])),
            Claim(
                "other pattern: the overlap ratio rises less",
                lambda o: (
                    o["compatible"].change("train/overlap_ratio") - o["other_pattern"].change("train/overlap_ratio")
                ),
            ),
            Claim(
                "compatible: larger gradient norm",
                lambda o: o["compatible"].mean("train/grad_norm") - o["other_pattern"].mean("train/grad_norm"),
            ),
        ),
    ),
    Phenomenon(
        "equal scores, different pattern",
        "arXiv 2604.13016, 3.1",
        (COMPATIBLE, OTHER_PATTERN),
        (Claim("the compatible teacher's student ends higher", _higher("compatible", "other_pattern")),),
    ),
    Phenomenon(
        "nothing new",
        "arXiv 2604.13016, 3.2",
        (NOTHING_NEW, NEW_KNOWLEDGE),
        (
            Claim("almost nothing is gained: less than 0.05", lambda o: 0.05 - o["nothing_new"].gain),
            Claim("less is gained than from new knowledge", lambda o: o["new_knowledge"].gain - o["nothing_new"].gain),
        ),
    ),
    Phenomenon(
        "reverse distillation",
        "arXiv 2604.13016, 3.3",
        (_experiment("reverse"),),
        (
            Claim("the reinforced student loses accuracy", lambda o: -o["reverse"].gain),
            Claim(
                "it ends within 0.05 of its teacher's score",
                lambda o: 0.05 - abs(o["reverse"].accuracy_after - (o["reverse"].accuracy_teacher or 0.0)),
            ),
        ),
    ),
    Phenomenon(
        "support",
        "arXiv 2604.13016, 4.2 and 6.3",
        _SUPPORTS,
        (
            Claim("student top-16 and the intersection end alike", _alike("top_16", "intersection_16")),
            Claim(
                "the intersection ends higher than the symmetric difference",
                _higher("intersection_16", "symmetric_difference_16"),
            ),
            Claim("top-4 ends higher than top-1", _higher("top_4", "top_1")),
            Claim("sampled ends higher than top-1", _higher("sampled", "top_1")),
            *(Claim(f"sampled and top-{k} end alike", _alike("sampled", f"top_{k}")) for k in (4, 16, 64)),
        ),
    ),
    Phenomenon(
        "naive top-k",
        "arXiv 2605.11182",
        _NORMALISATIONS,
        (
            Claim("naive: mass leaves the support", lambda o: o["naive_4"].change("train/student_tail_mass")),
            Claim("naive ends lower than stop-gradient", _higher("stop_gradient_4", "naive_4")),
            Claim("naive ends lower than renormalised", _higher("renormalised_4", "naive_4")),
            Claim("naive ends lower than tail", _higher("tail_4", "naive_4")),
        ),
    ),
    Phenomenon(
        "shared rule or instance answers",
        "arXiv 2605.11182",
        (_experiment("shared_rule"), _experiment("instance_answers")),
        (
            Claim("a shared rule: more than half of the gap is recovered", lambda o: _recovery(o["shared_rule"]) - 0.5),
            Claim("instance answers: less than a tenth is", lambda o: 0.1 - _recovery(o["instance_answers"])),
        ),
    ),
    Phenomenon(
        "cold start",
        "arXiv 2604.13016, 5.1",
        (COMPATIBLE, OTHER_PATTERN, *_COLD),
        (
            Claim(
                "compatible: distillation starts higher after a cold start",
                _starts_higher("compatible_after_cold_start", "compatible"),
            ),
            Claim(
                "compatible: it ends higher, for as many teacher tokens",
                _higher("compatible_after_cold_start", "compatible"),
            ),
            Claim(
                "other pattern: distillation starts higher after a cold start",
                _starts_higher("other_pattern_after_cold_start", "other_pattern"),
            ),
            Claim(
                "other pattern: it ends higher, for as many teacher tokens",
                _higher("other_pattern_after_cold_start", "other_pattern"),
            ),
            Claim(
                "other pattern: more than half of the gap is recovered after a cold start",
                lambda o: _recovery(o["other_pattern_after_cold_start"]) - 0.5,
            ),
        ),
    ),
    Phenomenon(
        "another end of turn",
        "arXiv 2609.20511",
        _ENDS,
        (
            Claim("as they are: nearly every answer is cut", lambda o: o["ends_as_they_are"].truncated_after - 0.9),
            Claim("semantic: one answer in twenty at most is", lambda o: 0.05 - o["other_end"].truncated_after),
            Claim("semantic ends higher than as they are", _higher("other_end", "ends_as_they_are")),
        ),
    ),
    Phenomenon(
        "forgetting",
        "the distributional view of post-training",
        _FORGETTING,
        (
            Claim(
                "distillation forgets less of the second task than fine-tuning",
                lambda o: _forgotten(o["two_tasks_fine_tuned"]) - _forgotten(o["two_tasks_distilled"]),
            ),
            Claim(
                "reinforcement forgets less of it than fine-tuning",
                lambda o: _forgotten(o["two_tasks_fine_tuned"]) - _forgotten(o["two_tasks_reinforced"]),
            ),
        ),
    ),
)
