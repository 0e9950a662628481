from rollout.data.digit_tasks import ReversedDigits


def test_a_number_is_written_backwards() -> None:
    task = ReversedDigits()
    assert task.question((58312,)) == "reverse 58312"
    assert task.worked((58310,)) == "####01385"
    assert task.answer((58310,)) == "01385"


def test_operands_are_all_numbers() -> None:
    task = ReversedDigits(digits=3)
    assert [task.operands(index) for index in range(task.count)] == [(number,) for number in range(100, 1000)]
