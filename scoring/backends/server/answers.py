"""What a completions endpoint says of a prompt, and the scores that are in it.

An answer has, for each token of the prompt but the first, log-probs by id: of the token that came, and of the k most
likely ones, which may be one of them.

Shape suffixes: N prompt tokens, T scored tokens, K most likely ids a position.
"""

from typing import Annotated, NotRequired, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from scoring.backends.server.client import GarbledAnswer

Answer = TypeVar("Answer", bound=BaseModel)
_ROUNDING = 1e-4  # nats by which a log-prob may come out above 0
_MAX_MASS = 1.01  # of probabilities that do not overlap; a teacher in half precision rounds


class TokenLogprob(TypedDict):
    logprob: Annotated[float, Field(le=_ROUNDING, allow_inf_nan=False)]
    rank: NotRequired[int | None]  # 1: the most likely
    decoded_token: NotRequired[str | None]


PromptLogprobs = list[dict[int, TokenLogprob] | None]  # [N]


class ModelCard(BaseModel):
    id: str
    max_model_len: int | None = None  # vLLM's own


class _Choice(BaseModel):
    prompt_logprobs: PromptLogprobs | None = None


class _Completion(BaseModel):
    choices: Annotated[list[_Choice], Field(min_length=1)]


class _Models(BaseModel):
    data: list[ModelCard]


def completion_question(model: str, ids_N: NDArray[np.int32], top_k: int) -> dict[str, object]:
    """What to ask about every token of a prompt; one token has to be generated, and is not looked at."""
    return {"model": model, "prompt": ids_N.tolist(), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": top_k}


def read_models(content: bytes) -> list[ModelCard]:
    """Read the answer to GET /models.

    Raises:
        GarbledAnswer: it is none.
    """
    return _validated(_Models, content).data


def read_prompt_logprobs(content: bytes) -> PromptLogprobs | None:
    """Read the answer to POST /completions; None if it has no log-probs.

    Raises:
        GarbledAnswer: it is no completion, or a log-prob is not finite or is positive.
    """
    return _validated(_Completion, content).choices[0].prompt_logprobs


def check_positions(entries: PromptLogprobs | None, ids_N: NDArray[np.int32], vocabulary: int) -> PromptLogprobs:
    """See that the log-probs are about these tokens: one entry each, and each entry has its token.

    Args:
        vocabulary: number of ids that there are.

    Raises:
        GarbledAnswer: they are not.
    """
    if entries is None or len(entries) != len(ids_N):
        raise GarbledAnswer(
            f"log-probs of {0 if entries is None else len(entries)} tokens where {len(ids_N)} were sent"
        )
    for position, token_id in enumerate(ids_N.tolist()):
        entry = entries[position]
        if position and (entry is None or token_id not in entry):
            raise GarbledAnswer(f"no log-prob of token {token_id} at position {position} of the prompt")
        foreign = next((other for other in entry or () if not 0 <= other < vocabulary), None)
        if foreign is not None:
            raise GarbledAnswer(
                f"a log-prob of id {foreign} at position {position} of the prompt, and the vocabulary has {vocabulary}"
            )
    return entries


def scored_logprobs(
    entries: PromptLogprobs, ids_N: NDArray[np.int32], positions_T: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Pick the log-probs [T] of the tokens at some positions of the prompt, checked before; nats."""
    pairs = [(entries[position], int(ids_N[position])) for position in positions_T.tolist()]
    values = [entry[token_id]["logprob"] for entry, token_id in pairs if entry is not None]
    return np.minimum(np.array(values, np.float32), 0)


def scored_top(
    entries: PromptLogprobs, positions_T: NDArray[np.int64], top_k: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Pick ids and log-probs [T, K] of the most likely tokens at some positions, most likely first.

    Args:
        top_k: at least 1.

    Raises:
        GarbledAnswer: there are fewer, or their probabilities add up to more than 1.
    """
    rows = [_most_likely(entries[position], position, top_k) for position in positions_T.tolist()]
    ids_TK = np.array([[token_id for token_id, _ in row] for row in rows], np.int32)
    logprobs_TK = np.array([[logprob for _, logprob in row] for row in rows], np.float32)
    masses_T = np.exp(logprobs_TK).sum(-1)
    if masses_T.max() > _MAX_MASS:
        position = int(positions_T[masses_T.argmax()])
        raise GarbledAnswer(f"the probabilities at position {position} of the prompt add up to {masses_T.max():.3g}")
    return ids_TK, np.minimum(logprobs_TK, 0)


def _most_likely(entry: dict[int, TokenLogprob] | None, position: int, top_k: int) -> list[tuple[int, float]]:
    # The token that came may be one entry more than was asked for; it is then the last, and the cut drops it.
    ordered = sorted((entry or {}).items(), key=lambda item: (-item[1]["logprob"], _rank(item[1])))[:top_k]
    known = [token_id for token_id, logprob in ordered if _rank(logprob) <= top_k]
    if len(known) < top_k:
        raise GarbledAnswer(f"{len(known)} of the most likely ids at position {position} of the prompt, not {top_k}")
    return [(token_id, logprob["logprob"]) for token_id, logprob in ordered]


def _rank(logprob: TokenLogprob) -> int:
    return logprob.get("rank") or 0  # not told: it is taken for one of the most likely


def _validated(kind: type[Answer], content: bytes) -> Answer:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise GarbledAnswer(f"{where}: {first['msg']}") from None
