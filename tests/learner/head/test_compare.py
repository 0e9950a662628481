"""The log-probs of the loss tokens against a softmax of all logits."""

import numpy as np
import torch

from learner.head.compare import by_example, examine_rows, example_tokens, token_logprobs
from learner.records import Rows
from tutelage.lm.head import Head, LogitTransform


def test_values_are_those_of_the_full_distributions_in_double_precision() -> None:
    torch.manual_seed(0)
    rows, width, vocabulary, k = 7, 5, 11, 3
    student, teacher = (
        Head(torch.randn(vocabulary + extra, width), torch.randn(vocabulary + extra), LogitTransform())
        for extra in (2, 0)  # a student whose head has padding rows
    )
    hidden, teacher_hidden = torch.randn(rows, width), torch.randn(rows, width)
    targets = torch.randint(vocabulary, (rows,))
    found = examine_rows(student, hidden, teacher, teacher_hidden, targets, k, chunk_tokens=3)
    logp, logq = (
        (states.double() @ head.weight[:vocabulary].double().T + head.bias[:vocabulary].double()).log_softmax(-1)
        for head, states in ((student, hidden), (teacher, teacher_hidden))
    )
    expected = {
        "student_logprob": logp.gather(1, targets[:, None])[:, 0],
        "teacher_logprob": logq.gather(1, targets[:, None])[:, 0],
        "student_entropy": -(logp.exp() * logp).sum(-1),
        "teacher_entropy": -(logq.exp() * logq).sum(-1),
        "reverse_kl": (logp.exp() * (logp - logq)).sum(-1),
        "forward_kl": (logq.exp() * (logq - logp)).sum(-1),
        "student_top_logprobs": logp.topk(k).values,
        "teacher_logprobs_at_student_top": logq.gather(1, logp.topk(k).indices),
        "student_logprobs_at_teacher_top": logp.gather(1, logq.topk(k).indices),
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, atol=1e-5, rtol=1e-5)
    assert torch.equal(found["teacher_top_ids"], logq.topk(k).indices)


def test_rows_go_to_their_examples_in_the_order_of_the_response() -> None:
    rows, k = 5, 2
    tops = {
        name: torch.arange(rows * k).reshape(rows, k)
        for name in ("student_top_ids", "student_top_logprobs", "teacher_logprobs_at_student_top")
    }
    tops |= {
        name: torch.arange(rows * k).reshape(rows, k)
        for name in ("teacher_top_ids", "teacher_top_logprobs", "student_logprobs_at_teacher_top")
    }
    values = {"reverse_kl": torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]), **tops}
    records = example_tokens(values, rows_of([3, 1, 3, 1, 1], [4, 2, 0, 0, 1]))
    assert [record.example_index for record in records] == [1, 3]
    assert records[0].positions.tolist() == [0, 1, 2]
    assert records[0].values["reverse_kl"].tolist() == [3.0, 4.0, 1.0]
    assert records[1].student_top_ids.tolist() == [[4, 5], [0, 1]]
    assert records[1].values["reverse_kl"].dtype == np.float32


def test_log_probs_are_those_of_the_tempered_softmax_whatever_the_chunk() -> None:
    torch.manual_seed(0)
    head = Head(torch.randn(11, 5), torch.randn(11), LogitTransform(factor=2.0, cap=3.0))
    hidden, targets, temperatures = torch.randn(7, 5), torch.randint(11, (7,)), torch.linspace(0.5, 2, 7)
    logits = 3 * torch.tanh(2 * (hidden.double() @ head.weight.double().T + head.bias.double()) / 3)
    expected = (logits / temperatures[:, None]).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    for chunk in (1, 3, 128):
        found = token_logprobs(head, hidden, targets, temperatures, chunk)["logprob"]
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_logprobs_go_to_their_examples_in_the_order_of_the_response() -> None:
    values = {"logprob": torch.tensor([0.0, 1.0, 2.0, 3.0])}
    records = by_example(values, rows_of([4, 1, 4, 1], [1, 0, 0, 1]))
    assert {index: arrays["logprob"].tolist() for index, arrays in records.items()} == {1: [1.0, 3.0], 4: [2.0, 0.0]}


def test_no_rows_have_values_of_every_name() -> None:
    head, none = Head(torch.randn(11, 5), None, LogitTransform()), torch.empty(0, 5)
    targets = torch.empty(0, dtype=torch.int64)
    found = examine_rows(head, none, head, none, targets, 3, chunk_tokens=4)
    some = examine_rows(head, torch.randn(2, 5), head, torch.randn(2, 5), torch.tensor([1, 2]), 3, chunk_tokens=4)
    assert {name: value.shape[1:] for name, value in found.items()} == {n: v.shape[1:] for n, v in some.items()}
    assert all(len(value) == 0 for value in found.values())
    assert len(token_logprobs(head, none, targets, torch.empty(0), 4)["logprob"]) == 0


def rows_of(example_index: list[int], positions: list[int]) -> Rows:
    values, owners = torch.zeros(len(positions)), torch.tensor(example_index)
    return Rows(owners, values, values, values, example_index=owners, positions=torch.tensor(positions))
