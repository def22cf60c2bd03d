"""Parameter groups and schedules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from modules.optimizer import (
    as_optimizer_groups,
    base_parameters,
    check_rates,
    learning_rate_schedule,
    make_groups,
)

COMPONENTS = ("unet", "text_encoders.0", "text_encoders.1")


def parameters() -> dict[str, Parameter]:
    return {
        "unet.a": Parameter(torch.zeros(2, 3)),
        "text_encoders.0.b": Parameter(torch.zeros(4)),
        "text_encoders.1.c": Parameter(torch.zeros(5)),
    }


def base_groups(rate):
    return make_groups(base_parameters(parameters(), COMPONENTS), rate, where="train.learning_rate")


def test_one_rate_for_all():
    groups = base_groups(1e-4)
    assert [(g.name, g.count, g.learning_rate) for g in groups] == [
        ("unet", 6, 1e-4),
        ("text_encoders.0", 4, 1e-4),
        ("text_encoders.1", 5, 1e-4),
    ]
    assert as_optimizer_groups(groups)[0]["lr"] == 1e-4


def test_the_longest_name_wins():
    rates = {"unet": 1e-4, "text_encoders": 5e-5, "text_encoders.1": 1e-5}
    groups = base_groups(rates)
    assert [g.learning_rate for g in groups] == [1e-4, 5e-5, 1e-5]


def test_rates_must_fit_what_is_trained():
    where = "train.learning_rate"
    with pytest.raises(ValueError, match=r"learning_rate: has no rate for 'text_encoders\.0'"):
        base_groups({"unet": 1e-4})
    check_rates({"unet": 1e-4, "text_encoders": 1e-4}, COMPONENTS, where=where)
    check_rates(1e-4, (), where=where)
    with pytest.raises(
        ValueError, match=r"learning_rate\.vae: nothing of 'vae' is trained with it"
    ):
        check_rates({"unet": 1e-4, "vae": 1.0}, COMPONENTS, where=where)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0]),
    ],
)
def test_warm_up_then_the_schedule(name, expected):
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
    schedule = learning_rate_schedule(optimizer, name=name, warmup_steps=2, total_steps=8)
    rates = []
    for _ in range(8):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    assert rates == pytest.approx(expected)


def test_restarts_and_power_reach_the_schedule():
    def rates(**options):
        optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=1.0)
        schedule = learning_rate_schedule(optimizer, warmup_steps=0, total_steps=8, **options)
        found = []
        for _ in range(7):
            optimizer.step()
            schedule.step()
            found.append(schedule.get_last_lr()[0])
        return found

    assert rates(name="cosine_with_restarts", num_cycles=2)[3] == pytest.approx(1.0)
    assert rates(name="cosine_with_restarts", num_cycles=1)[3] == pytest.approx(0.5)
    assert rates(name="polynomial", power=2.0)[3] == pytest.approx(0.25, abs=1e-3)
