"""What is asked of an endpoint before a run begins, so that nothing has to be refused in its middle."""

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, PreTrainedTokenizerBase

from scoring.backends.server.answers import (
    ModelCard,
    PromptLogprobs,
    check_positions,
    completion_question,
    read_models,
    read_prompt_logprobs,
)
from scoring.backends.server.client import Endpoint, EndpointRefusal
from scoring.config import ScoringConfig, TeacherConfig

log = logging.getLogger("tutelage")
# Words, numbers, code and several scripts: another tokenizer's ids of these are other pieces of text.
CANARY = (
    "The students wrote 3.14159 * 2 = 6.28318, didn't they?\ndef area(r):\n    return 3 * r ** 2  # roughly\n"
    "Les élèves, zwölf Äpfel, Привет мир, 数学, مرحبا."
)
_CANARY_TOKENS = 96
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # of bytes that are no whole character


def vocabulary_size(path: str, tokenizer: PreTrainedTokenizerBase, trust_remote_code: bool) -> int:
    """Ids of the model whose tokenizer it is, or of the tokenizer alone where there is no config.json."""
    if not (Path(path) / "config.json").exists():
        return len(tokenizer)
    return int(AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code).get_text_config().vocab_size)


async def check_endpoint(
    endpoint: Endpoint, teacher: TeacherConfig, scoring: ScoringConfig, path: str, tokenizer: PreTrainedTokenizerBase
) -> int:
    """See that it knows the model, takes long enough prompts, gives their log-probs, and has the tokenizer's ids.

    Args:
        path: the directory of the tokenizer.

    Returns:
        The size of the vocabulary.

    Raises:
        ValueError: it does not, naming the key, the value and the fix.
        EndpointFailure: it does not answer.
    """
    try:
        card = _card(await endpoint.ask("models", None, read_models), teacher)
    except EndpointRefusal as error:
        raise ValueError(_explained(error, teacher)) from error
    _check_length(card, scoring, teacher)
    longest = min(_CANARY_TOKENS, (card.max_model_len or _CANARY_TOKENS + 1) - 1)
    ids_N = np.array(tokenizer(CANARY, add_special_tokens=False)["input_ids"][:longest], np.int32)
    vocabulary = vocabulary_size(path, tokenizer, teacher.trust_remote_code)
    entries = await _canary_logprobs(endpoint, teacher, ids_N, vocabulary)
    given = min((len(entry) for entry in entries[1:] if entry is not None), default=0)
    if given < teacher.server.max_top_k:
        raise ValueError(_too_many(teacher, f"{given} ids a position"))
    _check_ids(entries, tokenizer, teacher)
    return vocabulary


def _explained(error: EndpointRefusal, teacher: TeacherConfig) -> str:
    """Explain a refusal of whatever is asked, and what to do about it."""
    url, variable = teacher.server.url, teacher.server.api_key_env
    if error.status not in (401, 403):
        return f"teacher.server.url={url}: it answers {error}; give the address up to and with /v1"
    if variable is None:
        return (
            f"teacher.server.api_key_env=null: {url} wants a key ({error}); put one into an environment variable and "
            "name that"
        )
    return (
        f"teacher.server.api_key_env={variable}: {url} does not take the key in this variable ({error}); set it to a "
        "key of that endpoint"
    )


def _card(cards: list[ModelCard], teacher: TeacherConfig) -> ModelCard:
    for card in cards:
        if card.id == teacher.model:
            return card
    known = ", ".join(card.id for card in cards[:20])
    raise ValueError(
        f"teacher.model={teacher.model}: {teacher.server.url} does not know it and has {known or 'no model'}; set it "
        "to the name of one of these"
    )


def _check_length(card: ModelCard, scoring: ScoringConfig, teacher: TeacherConfig) -> None:
    """The endpoint counts the token that it generates, and a prompt that fills its model is refused."""
    needed, given = scoring.max_model_len, card.max_model_len
    if needed is not None and given is not None and given <= needed:
        raise ValueError(
            f"scoring.max_model_len={needed}: {teacher.model} at {teacher.server.url} takes {given} tokens, one of "
            f"which it generates; lower rollout.max_model_len to {given - 1}, or start it with --max-model-len "
            f"{needed + 1}"
        )


def _read_canary(ids_N: NDArray[np.int32], vocabulary: int, content: bytes) -> PromptLogprobs | None:
    entries = read_prompt_logprobs(content)
    return None if entries is None else check_positions(entries, ids_N, vocabulary)


async def _canary_logprobs(
    endpoint: Endpoint, teacher: TeacherConfig, ids_N: NDArray[np.int32], vocabulary: int
) -> PromptLogprobs:
    limit, where = teacher.server.max_top_k, f"teacher.server.url={teacher.server.url}"
    question, read = partial(completion_question, teacher.model, ids_N), partial(_read_canary, ids_N, vocabulary)
    try:
        entries = await endpoint.ask("completions", question(limit), read)
    except EndpointRefusal as error:
        if error.status in (401, 403):
            raise ValueError(_explained(error, teacher)) from error
        if limit and await _is_answered(endpoint, question(0), read):
            raise ValueError(_too_many(teacher, str(error))) from error
        raise ValueError(
            f"{where}: refuses to tell a prompt's log-probs ({error}); use an endpoint that takes token ids and "
            "prompt_logprobs, as vllm serve does, or teacher.backend=transformers"
        ) from error
    if entries is None:
        raise ValueError(
            f"{where}: its completions have no prompt_logprobs; use an endpoint that returns them, as vllm serve does, "
            "or teacher.backend=transformers"
        )
    return entries


async def _is_answered(endpoint: Endpoint, question: object, read: Callable[[bytes], PromptLogprobs | None]) -> bool:
    try:
        return await endpoint.ask("completions", question, read) is not None
    except EndpointRefusal:
        return False


def _too_many(teacher: TeacherConfig, what: str) -> str:
    limit = teacher.server.max_top_k
    return (
        f"teacher.server.max_top_k={limit}: more than {teacher.server.url} gives ({what}); lower it to what it gives, "
        f"or start it with --max-logprobs {limit}"
    )


def _check_ids(entries: PromptLogprobs, tokenizer: PreTrainedTokenizerBase, teacher: TeacherConfig) -> None:
    """Compare the text of every id that has come: those of the canary, and the most likely ones."""
    told = [pair for entry in entries if entry is not None for pair in entry.items()]
    texts = {i: text for i, token in told if i < len(tokenizer) and (text := token.get("decoded_token")) is not None}
    comparable = 0
    for token_id, text in texts.items():
        ours = str(tokenizer.decode([token_id]))
        # Pieces of characters, and spaces before words, are shown in more than one way.
        if not text or _REPLACEMENT in ours + text:
            continue
        comparable += 1
        if ours.strip() != text.strip():
            raise ValueError(
                f"teacher.tokenizer={teacher.tokenizer or 'null'}: id {token_id} is {ours!r} there and {text!r} to "
                f"{teacher.model} at {teacher.server.url}, so that it would score other tokens; set teacher.tokenizer "
                "to the tokenizer of that model, and teacher.cross_tokenizer=true if it is not the student's"
            )
    if not comparable:
        log.warning("%s tells no text of its tokens: its tokenizer could not be compared", teacher.server.url)
