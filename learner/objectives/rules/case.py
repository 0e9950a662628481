"""What a rule about an objective is: one entry of a table, judged on one term within its objective and run."""

from collections.abc import Callable
from dataclasses import dataclass

from learner.objectives.config import TOPK_SUPPORTS, Gradient, ObjectiveConfig, Support, TermConfig, is_likelihood
from learner.objectives.divergences import DIVERGENCES, divergence_of


@dataclass(frozen=True)
class RunFacts:
    """What the rest of a run's configuration says that an objective depends on."""

    temperature: float = 1.0  # of sampling
    top_p: float = 1.0
    top_k: int = -1
    max_staleness: int = 0
    samples_per_prompt: int = 1
    batch_size: int = 1
    has_verifier: bool = False
    cross_tokenizer: bool = False  # a teacher's tokens are not the student's


@dataclass(frozen=True)
class Case:
    """One term within its objective and run."""

    term: TermConfig
    objective: ObjectiveConfig
    run: RunFacts

    @property
    def is_first(self) -> bool:
        return self.term is self.objective

    @property
    def terms(self) -> dict[str, TermConfig]:
        """Every term of the objective under the key of its settings."""
        further = {f"objective.further_terms.{name}": term for name, term in self.objective.further_terms.items()}
        return {"objective": self.objective, **further}

    @property
    def has_returns(self) -> bool:
        return self.is_first and self.objective.returns.discount > 0

    @property
    def learns_from_sample(self) -> bool:
        """The term is about a token that the student sampled, so the sampling distribution matters."""
        sampled = self.term.support is Support.sampled and not is_likelihood(self.term)
        return sampled or self.has_returns

    @property
    def on_sample_as_reward(self) -> bool:
        return self.term.support is Support.sampled and self.term.gradient is Gradient.policy_gradient

    @property
    def on_topk(self) -> bool:
        return self.term.support in TOPK_SUPPORTS

    @property
    def moves_at_agreement(self) -> bool:
        """On a truncated support the divergence pulls mass into it even where both models agree, as forward KLs do."""
        return self.term.divergence in DIVERGENCES and divergence_of(self.term).baseline != 0


@dataclass(frozen=True)
class Rule:
    """`setting` is relative to the term, or to the objective; `why` says the reason and the right alternative."""

    setting: str
    broken: Callable[[Case], bool]
    why: str
