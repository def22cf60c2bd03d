import pytest

from modules.schedule import Every, total_steps, warmup_steps


@pytest.mark.parametrize(
    ("every", "due"),
    [
        (Every(), []),
        (Every(steps=4), [4, 8, 12]),
        (Every(steps=1), list(range(1, 13))),
        (Every(epochs=1), [5, 10]),
        (Every(epochs=2), [10]),
        (Every(steps=20), []),
    ],
)
def test_every(every, due):
    assert [step for step in range(13) if every.is_due(step, steps_per_epoch=5)] == due


def test_total_steps():
    assert total_steps(max_train_steps=7, max_train_epochs=None, steps_per_epoch=3) == 7
    assert total_steps(max_train_steps=None, max_train_epochs=7, steps_per_epoch=3) == 21


@pytest.mark.parametrize(
    ("steps", "ratio", "expected"),
    [
        (5, None, 5),
        (0, None, 0),
        (None, 0.1, 20),
        (None, 0.0, 0),
        (None, 1.0, 200),
        (None, None, 0),
    ],
)
def test_warmup_steps(steps, ratio, expected):
    assert warmup_steps(steps=steps, ratio=ratio, total=200) == expected


@pytest.mark.parametrize("every", [Every(steps=3), Every(epochs=2), Every()])
@pytest.mark.parametrize(("after", "to"), [(0, 20), (3, 12), (4, 5), (7, 7)])
def test_how_often_something_is_due(every, after, to):
    due = sum(every.is_due(step, steps_per_epoch=4) for step in range(after + 1, to + 1))
    assert every.count(after=after, to=to, steps_per_epoch=4) == due
