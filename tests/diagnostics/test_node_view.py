import numpy as np

from diagnostics.node_view import node_view
from learner.examination import ExampleTokens
from tests.diagnostics.nodes import node


def test_candidates_are_the_sampled_token_and_the_top_of_both_models_each_once() -> None:
    generator = np.random.default_rng(0)
    logp, logq = (np.log(generator.dirichlet(np.ones(9), size=3)).astype(np.float32) for _ in range(2))
    top_p, top_q = (np.argsort(-table, axis=1)[:, :4].astype(np.int32) for table in (logp, logq))

    def at(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
        return np.take_along_axis(table, ids, axis=1)

    sampled = np.array([0, 4, int(top_p[2, 1])])
    rows = np.arange(3)
    names = ("reverse_kl", "forward_kl", "student_entropy", "teacher_entropy", "overlap_ratio")
    values = {name: generator.random(3).astype(np.float32) for name in names}
    values |= {"student_logprob": logp[rows, sampled], "teacher_logprob": logq[rows, sampled]}
    tokens = ExampleTokens(0, np.arange(3, dtype=np.int32), values, top_p, at(logp, top_p), at(logq, top_p),
                           top_q, at(logq, top_q), at(logp, top_q))  # fmt: skip
    for place in range(3):
        found = node_view(tokens, int(sampled[place]), node(position=place), 2, "t", has_context=True)
        ids = found.candidate_ids.tolist()
        assert ids[0] == sampled[place] and len(set(ids)) == len(ids)
        assert set(ids) == {sampled[place], *top_p[place, :2].tolist(), *top_q[place, :2].tolist()}
        np.testing.assert_allclose(found.student_logprobs, logp[place, ids])
        np.testing.assert_allclose(found.teacher_logprobs, logq[place, ids])
        ratio = float(values["teacher_logprob"][place]) - float(values["student_logprob"][place])
        assert found.proxies["sampled_log_ratio"] == ratio
        mean = np.mean(values["teacher_logprob"] - values["student_logprob"], dtype=np.float64)
        assert found.proxies["sequence_mean_reward"] == mean
