"""The log-probs of the loss tokens against a softmax of all logits."""

import torch

from learner.lm_head import Head
from learner.token_logprobs import split_by_example, token_logprobs
from scoring.lm_head import LogitTransform


def test_log_probs_are_those_of_the_tempered_softmax_whatever_the_chunk() -> None:
    torch.manual_seed(0)
    head = Head(torch.randn(11, 5), torch.randn(11), LogitTransform(factor=2.0, cap=3.0))
    hidden, targets, temperatures = torch.randn(7, 5), torch.randint(11, (7,)), torch.linspace(0.5, 2, 7)
    logits = 3 * torch.tanh(2 * (hidden.double() @ head.weight.double().T + head.bias.double()) / 3)
    expected = (logits / temperatures[:, None]).log_softmax(-1).gather(1, targets[:, None])[:, 0]
    for chunk in (1, 3, 128):
        found = token_logprobs(head, hidden, targets, temperatures, chunk)
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)


def test_rows_go_to_their_examples_in_the_order_of_the_response() -> None:
    values, owners = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([4, 1, 4, 1])
    first, second = split_by_example(values, owners, torch.tensor([1, 0, 0, 1]))
    assert (first.example_index, first.values.tolist()) == (1, [1.0, 3.0])
    assert (second.example_index, second.values.tolist()) == (4, [2.0, 0.0])
