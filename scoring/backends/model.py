"""One teacher's forward: packed sequences in, scores of every response token out.

Shape suffixes: N packed tokens, S sequences, R response tokens of a forward, C of them in a chunk of the head,
T response tokens of a sequence, K support ids a position, V vocabulary, d hidden size.

    requests ─ pack ─► backbone [N, d] ─ response positions ─► [R, d] ─ chunk ─► logits [C, V] ─► scores
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from scoring.backends.loading import load_teacher
from scoring.capabilities import check_request
from scoring.config import ScoringConfig, TeacherConfig
from tutelage.lm.head import Head, LMHead, LogitTransform
from tutelage.lm.packed import final_hidden_states, shares_prefixes
from tutelage.lm.prefix_tree import lay_out
from tutelage.lm.top_k import top_k
from tutelage.records.signal import ScoringRequest, TeacherSignal

_CPU_ROWS = 8  # of logits that are worked on at a time: what is written stays in the processor's cache until it is read


def forward_tokens(request: ScoringRequest) -> int:
    """Tokens of a request that go through the backbone: nothing is asked of the state after the last scored one."""
    return len(request.prompt_ids) + int(request.scored_positions[-1]) if request.num_scored else 0


class TeacherModel:
    """A causal language model that scores responses. Log-probs are those of temperature 1, computed in float32."""

    def __init__(self, path: str, teacher: TeacherConfig, scoring: ScoringConfig) -> None:
        """Load the checkpoint in directory `path`, onto GPUs if workers have any.

        Raises:
            ValueError: as `load_teacher`, or the LM head is not a linear layer.
        """
        model = load_teacher(path, teacher, scoring)
        self._ids_device = model.get_input_embeddings().weight.device
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise ValueError(f"teacher.model={path}: its LM head is {type(head).__name__}, not a linear layer")
        self._model, self._backbone, self._head_layer = model, model.base_model, head
        # The head runs in float32 whatever the model's dtype: logits rounded to bfloat16 are off by up to 0.06.
        bias = None if head.bias is None else head.bias.detach()
        self._head = Head.of(head.weight.detach(), bias, LogitTransform.of(model.config))
        self.device = self._head.weight.device  # of all that follows the backbone
        self._max_tokens = scoring.max_tokens_per_forward
        self._share_prefixes = shares_prefixes(scoring.attention.value)
        # Reused by every chunk, since first-touched memory is slow.
        self._chunks_CV = self._head.weight.new_empty(2, scoring.head_chunk_tokens, len(self._head))

    @property
    def vocabulary_size(self) -> int:
        """V: rows of the LM head, which may be more than the tokenizer has ids."""
        return len(self._head)

    def named_parameters(self) -> dict[str, Tensor]:
        """By their names in the checkpoint; a tied LM head under both of its names."""
        return dict(self._model.named_parameters(remove_duplicate=False))

    def refresh_head(self) -> None:
        """Take over an LM head whose weights have changed in place."""
        self._head.weight.copy_(self._head_layer.weight.detach())
        if self._head.bias is not None:
            self._head.bias.copy_(self._head_layer.bias.detach())

    def lm_head(self) -> LMHead:
        """Copy the head, which makes whole distributions of a signal's hidden states."""
        bias = None if self._head.bias is None else self._head.bias.cpu().numpy()
        return LMHead(self._head.weight.cpu().numpy(), bias, self._head.transform)

    def check(self, request: ScoringRequest) -> None:
        """Refuse what cannot be scored.

        Raises:
            ValueError: an empty prompt, ids that the model does not have, or a support of another length.
        """
        check_request(request)
        if request.top_k > self.vocabulary_size:
            raise ValueError(f"ScoringRequest.top_k={request.top_k} exceeds the vocabulary of {self.vocabulary_size}")
        for name in ("prompt_ids", "response_ids", "support_ids"):
            self._check_ids(name, getattr(request, name))

    def _check_ids(self, name: str, ids: NDArray[np.int32] | None) -> None:
        unknown = [] if ids is None else np.unique(ids[(ids < 0) | (ids >= self.vocabulary_size)]).tolist()
        if unknown:
            raise ValueError(
                f"ScoringRequest.{name} contains ids {unknown[:8]} and the teacher's LM head has only "
                f"{self.vocabulary_size} rows; student and teacher must share one vocabulary"
            )

    @torch.inference_mode()
    def score(self, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
        """Score every request, in order; consecutive ones share a forward up to the token budget.

        Raises:
            ValueError: as `check`.
        """
        for request in requests:
            self.check(request)
        pending = [request for request in requests if request.num_scored]
        signals: list[TeacherSignal] = []
        while len(signals) < len(pending):
            rest = pending[len(signals) :]
            count = first_group([forward_tokens(request) for request in rest], self._max_tokens)
            signals += self._score_together(rest[:count])
        answers = iter(signals)
        return [next(answers) if r.num_scored else TeacherSignal.empty(r, self._head.width) for r in requests]

    @torch.inference_mode()
    def reference_logprobs_for_check(self, request: ScoringRequest) -> NDArray[np.float32]:
        """[T]: what `score` should say of the scored tokens, by transformers' own attention.

        The sequence runs alone, whole and unpacked, and one softmax goes over all of its logits. For checks of a few
        short sequences; nothing else may run meanwhile.
        """
        self.check(request)
        ids_N = self._tensor(np.concatenate([request.prompt_ids, request.response_ids]))
        packed_attention = self._backbone.config._attn_implementation
        self._backbone.set_attn_implementation("sdpa")
        try:
            output = self._backbone(input_ids=ids_N[None].to(self._ids_device), use_cache=False)
        finally:
            self._backbone.set_attn_implementation(packed_attention)
        states_Nd = output.last_hidden_state[0].to(self.device).float()
        logits_NV = torch.nn.functional.linear(states_Nd, self._head.weight, self._head.bias)
        logits_NV = self._head.transform.apply_(logits_NV)
        if request.stops is not None:
            request.stops.merge_(logits_NV)
            ids_N = request.stops.renamed(ids_N)
        logprobs_NV = logits_NV.log_softmax(-1)
        places_T = self._tensor(len(request.prompt_ids) + request.scored_positions)
        return logprobs_NV[places_T - 1].gather(1, ids_N[places_T, None])[:, 0].cpu().numpy()

    def _score_together(self, requests: Sequence[ScoringRequest]) -> list[TeacherSignal]:
        states_Td = self._response_states(requests)
        states_Rd = torch.cat(states_Td).float()
        scores: list[list[_Scores]] = [[] for _ in requests]
        for first_row, logprobs_CV, entropy_C in self._distributions(states_Rd, requests):
            for index, rows, positions in _overlaps(requests, first_row, len(logprobs_CV)):
                entropies = None if entropy_C is None else entropy_C[rows]
                scores[index].append(_scores_of(requests[index], positions, logprobs_CV[rows], entropies))
        return [
            _signal(request, pieces, states)
            for request, pieces, states in zip(requests, scores, states_Td, strict=True)
        ]

    def _response_states(self, requests: Sequence[ScoringRequest]) -> list[Tensor]:
        """For each request [T, d]: the states that predict its scored tokens."""
        sequences = [np.concatenate([r.prompt_ids, r.response_ids])[: forward_tokens(r)] for r in requests]
        tree = lay_out(sequences, self._share_prefixes)
        states_Nd = final_hidden_states(
            self._backbone,
            *(
                torch.from_numpy(part).to(self._ids_device)
                for part in (tree.token_ids, tree.position_ids, tree.segment_starts, tree.segment_parents)
            ),
        ).to(self.device)
        before = [len(request.prompt_ids) - 1 + request.scored_positions for request in requests]
        return [states_Nd[self._tensor(rows[places])] for rows, places in zip(tree.rows, before, strict=True)]

    def _distributions(
        self, states_Rd: Tensor, requests: Sequence[ScoringRequest]
    ) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield first row, log-probs [C, V] and entropy [C] of each chunk; the next chunk overwrites them."""
        logits_CV, logprobs_CV = self._chunks_CV
        entropy = any(request.entropy for request in requests)
        for start in range(0, len(states_Rd), len(logits_CV)):
            chunk_Cd = states_Rd[start : start + len(logits_CV)]
            logits, logprobs = logits_CV[: len(chunk_Cd)], logprobs_CV[: len(chunk_Cd)]
            self._head.logits(chunk_Cd, out=logits)
            for index, chunk_rows, _positions in _overlaps(requests, start, len(logits)):
                if (stops := requests[index].stops) is not None:
                    stops.merge_(logits[chunk_rows])
            rows = _CPU_ROWS if self.device.type == "cpu" else len(logits)
            parts = zip(logits.split(rows), logprobs.split(rows), strict=True)
            entropies = [_normalise(*part, entropy) for part in parts]
            yield start, logprobs, torch.cat(entropies) if entropy else None

    def _tensor(self, ids: NDArray[np.integer]) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self.device)


# Log-probs [T], entropy [T], support log-probs [T, K], top ids and top log-probs [T, top_k] of a few positions.
_Scores = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]


def _normalise(logits_CV: Tensor, logprobs_CV: Tensor, entropy: bool) -> Tensor:
    """Write log-probs, and return entropies [C] if they are asked for; the logits are lost then."""
    torch.log_softmax(logits_CV, dim=-1, out=logprobs_CV)
    # A log-prob of -inf would make 0 * -inf in an entropy; the lowest finite number makes it 0.
    logprobs_CV.clamp_(min=torch.finfo(logprobs_CV.dtype).min)
    if not entropy:
        return logprobs_CV.new_empty(0)
    return -torch.exp(logprobs_CV, out=logits_CV).mul_(logprobs_CV).sum(-1)


def _overlaps(requests: Sequence[ScoringRequest], first_row: int, rows: int) -> Iterator[tuple[int, slice, slice]]:
    """Which requests the rows `first_row`, … belong to: index, rows of the chunk, positions of the response."""
    begin = 0
    for index, request in enumerate(requests):
        end = begin + request.num_scored
        low, high = max(begin, first_row), min(end, first_row + rows)
        if low < high:
            yield index, slice(low - first_row, high - first_row), slice(low - begin, high - begin)
        begin = end


def _scores_of(request: ScoringRequest, positions: slice, logprobs_CV: Tensor, entropy_C: Tensor | None) -> _Scores:
    """Pick what was asked about `positions` of the scored tokens from their full distributions."""
    device = logprobs_CV.device
    targets_C = torch.from_numpy(request.scored_ids[positions].astype(np.int64)).to(device)
    if request.stops is not None:
        targets_C = request.stops.renamed(targets_C)
    support = top_ids = top_logprobs = None
    if request.support_ids is not None:
        ids_CK = torch.from_numpy(request.support_ids[positions].astype(np.int64)).to(device)
        support = logprobs_CV.gather(1, ids_CK)
    if request.top_k:
        top_logprobs, top_ids = top_k(logprobs_CV, request.top_k)
    return logprobs_CV.gather(1, targets_C[:, None])[:, 0], entropy_C, support, top_ids, top_logprobs


def _signal(request: ScoringRequest, pieces: Sequence[_Scores], states_Td: Tensor) -> TeacherSignal:
    """Join the pieces of one response and move them to the host."""
    logprobs, entropy, support, top_ids, top_logprobs = (
        None if column[0] is None else torch.cat(column).cpu().numpy() for column in zip(*pieces, strict=True)
    )
    assert logprobs is not None  # every piece has them
    return TeacherSignal(
        teacher=request.teacher,
        logprobs=logprobs,
        entropy=entropy if request.entropy else None,
        support_ids=request.support_ids,
        support_logprobs=support,
        top_ids=None if top_ids is None else top_ids.astype(np.int32),
        top_logprobs=top_logprobs,
        hidden_states=states_Td.float().cpu().numpy() if request.hidden_states else None,
    )


def first_group(lengths: Sequence[int], budget: int) -> int:
    """How many of the first sequences fit in one forward of `budget` tokens; a longer one runs alone.

    Order is kept, so what shares a forward depends on lengths and order only.
    """
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if total > budget:
            return max(count, 1)
    return len(lengths)
