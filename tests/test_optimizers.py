"""Optimisers and schedules against their published formulas, written out."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from continual import plugins
from continual.errors import BadOption
from continual.learning.optimizers import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    Constant,
    Cosine,
    Linear,
    Milestones,
    Optimizer,
    Schedule,
    Step,
    Warmed,
)

SCALE = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=torch.float64)
GOAL = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
START = torch.tensor([0.3, 0.7, -1.1, 2.0], dtype=torch.float64)
STEPS = 20
Rule = Callable[[Any, torch.Tensor, torch.Tensor, dict[str, torch.Tensor], int, float], torch.Tensor]


def gradient(theta: torch.Tensor) -> torch.Tensor:
    """Of the quadratic ½ Σ s (θ - g)²."""
    return SCALE * (theta - GOAL)


def sgd(
    o: SGD, theta: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor], t: int, lr: float
) -> torch.Tensor:
    g = g + o.weight_decay * theta
    velocity = o.momentum * state["v"] + g if "v" in state else g
    state["v"] = velocity
    return theta - lr * (g + o.momentum * velocity if o.nesterov else velocity)


def adam(
    o: Adam, theta: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor], t: int, lr: float
) -> torch.Tensor:
    if isinstance(o, AdamW):
        theta = theta * (1 - lr * o.weight_decay)
    else:
        g = g + o.weight_decay * theta
    zero = torch.zeros_like(theta)
    state["m"] = o.beta1 * state.get("m", zero) + (1 - o.beta1) * g
    state["v"] = o.beta2 * state.get("v", zero) + (1 - o.beta2) * g * g
    mean, square = state["m"] / (1 - o.beta1**t), state["v"] / (1 - o.beta2**t)
    return theta - lr * mean / (square.sqrt() + o.eps)


def adagrad(
    o: Adagrad, theta: torch.Tensor, g: torch.Tensor, state: dict[str, torch.Tensor], t: int, lr: float
) -> torch.Tensor:
    g = g + o.weight_decay * theta
    state["s"] = state.get("s", torch.zeros_like(theta)) + g * g
    return theta - lr * g / (state["s"].sqrt() + o.eps)


CASES: list[tuple[Optimizer, Rule, Callable[[list[torch.Tensor]], torch.optim.Optimizer]]] = [
    (SGD(lr=0.05), sgd, lambda p: torch.optim.SGD(p, 0.05)),
    (SGD(lr=0.05, momentum=0.9), sgd, lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)),
    (SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1), sgd,
     lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=0.1)),
    (SGD(lr=0.05, weight_decay=0.3), sgd, lambda p: torch.optim.SGD(p, 0.05, weight_decay=0.3)),
    (Adam(lr=0.1), adam, lambda p: torch.optim.Adam(p, 0.1)),
    (Adam(lr=0.1, beta1=0.5, beta2=0.7, eps=0.01, weight_decay=0.2), adam,
     lambda p: torch.optim.Adam(p, 0.1, betas=(0.5, 0.7), eps=0.01, weight_decay=0.2)),
    (Adam(lr=0.1, beta1=0.0), adam, lambda p: torch.optim.Adam(p, 0.1, betas=(0.0, 0.999))),
    (AdamW(lr=0.1), adam, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01)),
    (AdamW(lr=0.1, weight_decay=0.3, beta2=0.9), adam,
     lambda p: torch.optim.AdamW(p, 0.1, betas=(0.9, 0.9), weight_decay=0.3)),
    (Adagrad(lr=0.5), adagrad, lambda p: torch.optim.Adagrad(p, 0.5)),
    (Adagrad(lr=0.5, eps=0.1, weight_decay=0.2), adagrad,
     lambda p: torch.optim.Adagrad(p, 0.5, eps=0.1, weight_decay=0.2)),
]  # fmt: skip


def followed(optimizer: Optimizer, start: torch.Tensor, rates: list[float]) -> torch.Tensor:
    """θ after each step: (STEPS, P)."""
    theta, path = start.clone(), []
    pieces = [theta[..., :1], theta[..., 1:]] if start.dim() == 1 else [theta]
    state = optimizer.start(pieces)
    for rate in rates:
        slope = gradient(theta)
        optimizer.step(pieces, [slope[..., :1], slope[..., 1:]] if start.dim() == 1 else [slope], state, rate)
        path.append(theta.clone())
    return torch.stack(path)


def pytorchs(made: torch.optim.Optimizer, leaf: torch.Tensor, rates: list[float]) -> torch.Tensor:
    """The same by an optimiser object."""
    path = []
    for rate in rates:
        leaf.grad = gradient(leaf.detach())
        made.param_groups[0]["lr"] = rate
        made.step()
        path.append(leaf.detach().clone())
    return torch.stack(path)


@pytest.mark.parametrize("varied", [False, True], ids=["constant rate", "changing rate"])
@pytest.mark.parametrize(
    ("optimizer", "rule", "reference"), CASES, ids=lambda one: repr(one) if isinstance(one, Optimizer) else ""
)
def test_every_step_is_the_formulas_and_pytorchs(
    optimizer: Optimizer, rule: Rule, reference: Callable[[list[torch.Tensor]], torch.optim.Optimizer], varied: bool
) -> None:
    rates = [optimizer.lr * (1 - number / STEPS if varied else 1) for number in range(STEPS)]
    got = followed(optimizer, START, rates)
    theta, state, path = START, {}, []
    for number, rate in enumerate(rates):
        theta = rule(optimizer, theta, gradient(theta), state, number + 1, rate)
        path.append(theta)
    torch.testing.assert_close(got, torch.stack(path), rtol=1e-9, atol=1e-11)
    for make in (reference, optimizer.of):
        plain = START.clone().requires_grad_()
        torch.testing.assert_close(got, pytorchs(make([plain]), plain, rates), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES], ids=repr)
def test_rows_of_theta_are_followed_each_for_itself(optimizer: Optimizer) -> None:
    """Seeds are rows of θ: what happens to one row, were it NaN, must not reach another."""
    wanted = followed(optimizer, START, [optimizer.lr] * STEPS)[-1]
    got = followed(optimizer, torch.stack([START, START + torch.nan, START * 2]), [optimizer.lr] * STEPS)[-1]
    torch.testing.assert_close(got[0], wanted)
    assert got[1].isnan().all() and got[2].isfinite().all()


@pytest.mark.parametrize("name", plugins.registered("optimizers"))
def test_every_registered_optimizer_goes_downhill_and_begins_afresh(name: str) -> None:
    optimizer = plugins.find("optimizers", name).read({"lr": 0.05})
    assert isinstance(optimizer, Optimizer)
    paths = [followed(optimizer, START, [optimizer.lr] * STEPS) for _ in range(2)]
    assert torch.equal(*paths), "it starts with a fresh state"
    before, after = ((SCALE * (theta - GOAL).square()).sum() for theta in (START, paths[0][-1]))
    assert after < before


@pytest.mark.parametrize(
    ("cls", "options"),
    [(SGD, {"lr": -1}), (SGD, {"momentum": 1}), (Adam, {"beta1": 1}), (Adam, {"eps": 0}), (AdamW, {"weight_decay": -1}),
     (Adagrad, {"lr": "nan"}), (Step, {"parts": 0}), (Cosine, {"floor": 1.1})],
)  # fmt: skip
def test_what_no_formula_is_made_for_is_refused(cls: type[Optimizer], options: dict[str, Any]) -> None:
    with pytest.raises(BadOption, match=next(iter(options))):
        cls.read(options)


FACTORS: list[tuple[Schedule, Callable[[int, int], float]]] = [
    (Constant(), lambda step, steps: 1.0),
    (Cosine(), lambda step, steps: math.cos(math.pi * step / steps / 2) ** 2),
    (Cosine(floor=0.2), lambda step, steps: 0.2 + 0.8 * math.cos(math.pi * step / steps / 2) ** 2),
    (Linear(), lambda step, steps: (steps - step) / steps),
    (Linear(floor=0.25), lambda step, steps: (steps - 0.75 * step) / steps),
    (Step(), lambda step, steps: 1.0 if 2 * step < steps else 0.1),
    (Step(gamma=0.5, parts=4), lambda step, steps: 0.5 ** sum(4 * step >= part * steps for part in (1, 2, 3))),
    (Step(gamma=0.5, parts=1), lambda step, steps: 1.0),
    (Step(gamma=0.0, parts=2), lambda step, steps: 1.0 if 2 * step < steps else 0.0),
    (Milestones(), lambda step, steps: 0.1 ** sum(step >= max(1, round(place * steps)) for place in (0.7, 0.9))),
    (Milestones(at=(0.5,), gamma=0.3), lambda step, steps: 1.0 if step < max(1, round(steps / 2)) else 0.3),
]


@pytest.mark.parametrize("steps", [1, 2, 7, 100])
@pytest.mark.parametrize(
    ("schedule", "wanted"), FACTORS, ids=lambda one: repr(one) if isinstance(one, Schedule) else ""
)
def test_the_factor_of_every_step(schedule: Schedule, wanted: Callable[[int, int], float], steps: int) -> None:
    got = [schedule.factor(step, steps) for step in range(steps)]
    assert got == pytest.approx([wanted(step, steps) for step in range(steps)], abs=1e-12)
    assert got[0] == 1, "a task begins with the full rate"
    warm = dataclasses.replace(schedule, warmup=0.3) if isinstance(schedule, Warmed) else None
    rising = round(0.3 * steps)
    if warm is not None:
        rates = [warm.factor(step, steps) for step in range(steps)]
        assert rates[:rising] == pytest.approx([(step + 1) / (rising + 1) for step in range(rising)])
        later = steps - rising
        assert rates[rising:] == pytest.approx([wanted(step, later) for step in range(later)], abs=1e-12)


def test_milestones_are_pytorchs_at_the_epochs_of_icarl() -> None:
    """49 and 63 of 70 epochs; here of three steps each."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
    theirs, rates = torch.optim.lr_scheduler.MultiStepLR(optimizer, [49, 63], gamma=0.2), []
    for _ in range(70):
        rates += [optimizer.param_groups[0]["lr"]] * 3
        optimizer.step()
        theirs.step()
    ours = Milestones(at=(0.7, 0.9), gamma=0.2)
    assert [ours.factor(step, 210) for step in range(210)] == pytest.approx(rates)


@pytest.mark.parametrize("floor", [0.0, 0.3])
def test_cosine_and_linear_are_pytorchs(floor: float) -> None:
    for schedule, make in (
        (Cosine(floor=floor), lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10, eta_min=floor)),
        (Linear(floor=floor), lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1 - (1 - floor) * k / 10)),
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0)
        other, rates = make(optimizer), []
        for _ in range(10):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            other.step()
        assert [schedule.factor(step, 10) for step in range(10)] == pytest.approx(rates, abs=1e-9)
