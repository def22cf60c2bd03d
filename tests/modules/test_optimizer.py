"""Parameter groups and schedules."""

from __future__ import annotations

import pytest
import torch
from torch.nn import Parameter

from modules.optimizer import (
    as_optimizer_groups,
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


def groups_of(rate, *, paths=None, **options):
    by_path = {path: [p] for path, p in (paths or parameters()).items()}
    return make_groups(by_path, rate, components=COMPONENTS, where="train.learning_rate", **options)


def test_one_rate_for_all():
    groups = groups_of(1e-4)
    assert [(g.name, g.count, g.learning_rate) for g in groups] == [
        ("unet", 6, 1e-4),
        ("text_encoders.0", 4, 1e-4),
        ("text_encoders.1", 5, 1e-4),
    ]
    assert as_optimizer_groups(groups)[0]["lr"] == 1e-4


def test_the_longest_name_wins():
    rates = {"unet": 1e-4, "text_encoders": 5e-5, "text_encoders.1": 1e-5}
    groups = groups_of(rates)
    assert [g.learning_rate for g in groups] == [1e-4, 5e-5, 1e-5]


def test_rates_by_pattern_make_few_groups():
    names = ["down.0.attn1.q", "down.0.attn2.q", "mid.attn2.q", "up.1.attn2.q", "up.2.conv"]
    paths = {f"unet.{name}": Parameter(torch.zeros(2)) for name in names}
    paths["text_encoders.0.mlp"] = Parameter(torch.zeros(3))
    paths["text_encoders.1.mlp"] = Parameter(torch.zeros(4))
    rates = {"unet": 1.0, "unet.up": 2.0, "unet.*.attn2": 3.0, "text_encoders": 4.0}
    groups = groups_of(rates, paths=paths, owner="lora")
    assert [(g.name, g.learning_rate, g.count) for g in groups] == [
        ("lora.unet", 1.0, 2),
        ("lora.unet.*.attn2", 3.0, 6),
        ("lora.unet.up", 2.0, 2),
        ("lora.text_encoders.0", 4.0, 3),
        ("lora.text_encoders.1", 4.0, 4),
    ]
    assert sum(len(g.parameters) for g in groups) == len(paths)


def test_factors_and_what_does_not_decay_have_groups_of_their_own():
    paths = {
        f"{where}.{own}": Parameter(torch.zeros(2))
        for where in ("unet.a", "unet.b")
        for own in ("lora_down.weight", "lora_up.weight", "dora_scale")
    }
    options = {"factors": {"*.lora_up": 16.0}, "undecayed": ("*.dora_scale",)}
    groups = groups_of(0.5, paths=paths, owner="x", **options)
    assert [(g.name, g.learning_rate, g.decays, g.count) for g in groups] == [
        ("x.unet", 0.5, True, 4),
        ("x.unet.lora_up", 8.0, True, 4),
        ("x.unet.dora_scale", 0.5, False, 4),
    ]
    optimizer = torch.optim.AdamW(as_optimizer_groups(groups), lr=1.0, weight_decay=0.1)
    assert [(g["lr"], g["weight_decay"]) for g in optimizer.param_groups] == [
        (0.5, 0.1),
        (8.0, 0.1),
        (0.5, 0.0),
    ]


def test_a_network_of_ones_own_may_name_its_parameters_as_it_likes():
    paths = {"unet": Parameter(torch.zeros(2)), "image_encoder": Parameter(torch.zeros(3))}
    groups = groups_of({"unet": 1.0, "image_encoder": 2.0}, paths=paths, owner="ip")
    assert [(g.name, g.learning_rate) for g in groups] == [
        ("ip.unet", 1.0),
        ("ip.image_encoder", 2.0),
    ]


def test_rates_must_fit_what_is_trained():
    where = "train.learning_rate"
    with pytest.raises(ValueError, match=r"has no rate for 'text_encoders\.0\.b'; it names unet; "):
        groups_of({"unet": 1e-4})
    check_rates({"unet": 1e-4, "text_encoders": 1e-4}, parameters(), where=where)
    check_rates(1e-4, (), where=where)
    with pytest.raises(
        ValueError,
        match=r"learning_rate\.vae: nothing of 'vae' is trained with it; it is for text_encoders, ",
    ):
        check_rates({"unet": 1e-4, "vae": 1.0}, parameters(), where=where)
    with pytest.raises(ValueError, match=r"'unet\.up' is trained with it; it is for unet\.a$"):
        check_rates({"unet.up": 1e-4}, parameters(), where=where)
    with pytest.raises(ValueError, match="it is for nothing"):
        check_rates({"unet": 1e-4}, (), where=where)


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
