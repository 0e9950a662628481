"""From what the learner examined to what is said of one place of an answer."""

import numpy as np

from diagnostics.alignment import Node, View
from learner.examination import ExampleTokens


def node_view(
    tokens: ExampleTokens, sampled: int, node: Node, candidates: int, teacher: str, has_context: bool
) -> View:
    """What student and teacher say at a node, on {ŷ_u} ∪ TopK(p, candidates) ∪ TopK(q, candidates).

    Args:
        tokens: of the node's answer, all of whose tokens are loss tokens, with at least `candidates` top ids.
        sampled: id of the token that came.
    """
    place, top = node.position, slice(candidates)
    values = {name: float(value[place]) for name, value in tokens.values.items()}
    pairs = {sampled: (values["student_logprob"], values["teacher_logprob"])}
    for ids, ours, theirs in (
        (tokens.student_top_ids, tokens.student_top_logprobs, tokens.teacher_logprobs_at_student_top),
        (tokens.teacher_top_ids, tokens.student_logprobs_at_teacher_top, tokens.teacher_top_logprobs),
    ):
        listed = zip(ids[place, top].tolist(), ours[place, top].tolist(), theirs[place, top].tolist(), strict=True)
        for token, p, q in listed:
            pairs.setdefault(token, (p, q))
    logprobs = np.array(list(pairs.values()), dtype=np.float64)
    return View(
        teacher=teacher,
        has_context=has_context,
        candidate_ids=np.array(list(pairs), dtype=np.int32),
        student_logprobs=logprobs[:, 0],
        teacher_logprobs=logprobs[:, 1],
        proxies=_proxies(tokens, values, node),
    )


def _proxies(tokens: ExampleTokens, values: dict[str, float], node: Node) -> dict[str, float]:
    ratios = tokens.values["teacher_logprob"] - tokens.values["student_logprob"]
    ratio = values["teacher_logprob"] - values["student_logprob"]
    return {
        "reverse_kl": values["reverse_kl"],
        "forward_kl": values["forward_kl"],
        "sampled_log_ratio": ratio,
        "abs_sampled_log_ratio": abs(ratio),
        "student_entropy": values["student_entropy"],
        "teacher_entropy": values["teacher_entropy"],
        "overlap_ratio": values["overlap_ratio"],
        "sequence_mean_reward": float(ratios.mean(dtype=np.float64)),
        "answer_is_incorrect": float(not node.correct),
        "position": float(node.position),
    }
