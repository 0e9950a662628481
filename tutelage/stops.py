"""What ends an answer, also where student and teacher end theirs with different tokens.

A base model ends a text (<|endoftext|>) and a chat model a turn (<|im_end|>). Token by token the teacher then gives the
student's end a probability of almost nothing, and the student learns never to stop. As one action the ends can be
compared (semantic stop class, arXiv 2609.20511):

    p(stop) = sum over s in S of p(s)        S: the ids that end a turn on one side or the other

One id of S stands for all of them. Its logit becomes their logsumexp and theirs become -inf, before any temperature, in
the engines that sample and in every head that scores or learns; all that follows, supports, entropies and divergences
included, is of the distribution over V - |S| + 1 actions without knowing it.

Shape suffixes: C positions, V vocabulary, S ids of a class.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.configuration_auto import CONFIG_MAPPING


@dataclass(frozen=True)
class StopClass:
    """The ids that end a turn on one side or the other, as one action."""

    kept: int  # stands for all of them
    others: tuple[int, ...]  # have no probability of their own

    @property
    def ids(self) -> tuple[int, ...]:
        """[S], the kept one first."""
        return (self.kept, *self.others)

    def merge_(self, logits_CV: Tensor) -> Tensor:
        """Make the class one action, in place.

        Returns:
            [C, S]: the share that each of `ids` had in the class, through which a gradient goes back.
        """
        ids_S = torch.tensor(self.ids, device=logits_CV.device)
        logits_CS = logits_CV.index_select(1, ids_S)
        logits_CV.index_fill_(1, ids_S, -torch.inf)
        logits_CV[:, self.kept] = logits_CS.logsumexp(-1)
        return logits_CS.softmax(-1)

    def spread_(self, grad_CV: Tensor, shares_CS: Tensor) -> Tensor:
        """Carry a gradient on the merged logits back to those that `merge_` was given, in place.

        d logsumexp(z) / d z_s = p(s) / p(S)
        """
        ids_S = torch.tensor(self.ids, device=grad_CV.device)
        return grad_CV.index_copy_(1, ids_S, grad_CV[:, self.kept, None] * shares_CS)

    def renamed(self, ids: Tensor) -> Tensor:
        """The same ids with the kept one for each of the class."""
        return ids.masked_fill(torch.isin(ids, torch.tensor(self.others, device=ids.device)), self.kept)


@dataclass(frozen=True)
class Swap:
    """A student's end and a teacher's, each in the other's place among the teacher's ids."""

    student: int
    teacher: int

    def of(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The ids with the two exchanged; twice makes none."""
        return np.where(ids == self.student, self.teacher, np.where(ids == self.teacher, self.student, ids)).astype(
            np.int32
        )


@dataclass(frozen=True)
class TurnEnds:
    """What a run makes of the ends of its models."""

    stop_ids: tuple[int, ...] = ()  # end an answer in the engines, beside those that each checkpoint names
    merged: StopClass | None = None
    swaps: Mapping[str, Swap] = field(default_factory=dict)  # by key of a teacher

    @property
    def in_words(self) -> str:
        """What is made of them, for people; empty where nothing is."""
        ids = ", ".join(map(str, self.stop_ids))
        if self.merged is not None:
            return f"ids {ids} are one action, under {self.merged.kept}"
        if self.swaps:
            pairs = {f"{swap.student} as the teacher's {swap.teacher}" for swap in self.swaps.values()}
            return "scored: the student's " + ", ".join(sorted(pairs))
        return f"ids {ids}, each for itself" if ids else ""


AS_THEY_ARE = TurnEnds()


def generation_ends(path: str) -> frozenset[int]:
    """Read the ids that end a response by a checkpoint's generation config, as vLLM reads it.

    Those of its config.json where it has no generation config; none of a tokenizer's folder, which has neither.
    """
    if Path(path, "generation_config.json").is_file():
        ends = GenerationConfig.from_pretrained(path).eos_token_id
    elif not Path(path, "config.json").is_file():
        return frozenset()
    else:
        settings, _ = PreTrainedConfig.get_config_dict(path)
        kind = settings.get("model_type")  # of a type that comes with code: what is written in the file is enough
        config_class = CONFIG_MAPPING[kind] if kind in CONFIG_MAPPING else PreTrainedConfig  # noqa: SIM401, its get is empty
        ends = GenerationConfig.from_model_config(config_class.from_dict(settings)).eos_token_id
    return frozenset() if ends is None else frozenset([ends] if isinstance(ends, int) else ends)


def stop_token_ids(tokenizer: PreTrainedTokenizerBase, generation_ids: Collection[int]) -> frozenset[int]:
    """Collect the ids that end a response in the engine: the tokenizer's EOS and those of the generation config.

    Raises:
        ValueError: there is none, so that no response would ever end.
    """
    ids = frozenset({tokenizer.eos_token_id, *generation_ids} - {None})
    if not ids:
        raise ValueError(
            f"model {tokenizer.name_or_path!r} has no EOS token; set eos_token in its tokenizer_config.json or "
            "eos_token_id in its generation_config.json"
        )
    return ids
