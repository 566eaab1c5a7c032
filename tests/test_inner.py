"""A network that a strategy trains within its hooks, alone and for seeds side by side."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from continual.learning.inner import Trained, adam_step, untrained
from continual.learning.models import LinearNet
from continual.learning.strategy import Memory
from continual.streams.rng import key

OUTER, INNER, STEPS = LinearNet((3, 2)), LinearNet((5, 4, 3)), 4


def problem(seed: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """θ of the inner network, images (B, 5), of which one pixel is always black, and labels."""
    x = key(seed).uniform("x", 8, 5).to(dtype)
    x[:, 2] = 0
    return INNER.initial(key(seed), dtype), x, key(seed).integers("y", 8, 3)


def after(state: Trained, x: torch.Tensor, y: torch.Tensor, lr: float) -> Trained:
    def loss(theta: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(INNER.logits(theta, x), y)

    return adam_step(OUTER, INNER, loss, state, lr)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mapped", [False, True])
def test_it_takes_the_steps_of_torch_s_adam(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, mapped: bool) -> None:
    """Two seeds, alone or side by side; a weight without a gradient stays."""
    seeds = [problem(seed, dtype) for seed in range(2)]
    states = [untrained(theta) for theta, _, _ in seeds]
    monkeypatch.setattr(OUTER, "mapped", mapped)
    monkeypatch.setattr(INNER, "mapped", mapped)
    modules, theirs = list[torch.nn.Module](), list[torch.optim.Optimizer]()
    for theta, _, _ in seeds:
        module = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).to(dtype)
        torch.nn.utils.vector_to_parameters(theta.clone(), module.parameters())
        modules.append(module)
        theirs.append(torch.optim.Adam(module.parameters(), lr=0.01))
    for _ in range(STEPS):
        if mapped:
            joined = [torch.stack(parts) for parts in zip(*states, strict=True)]
            x, y = (torch.stack(parts) for parts in zip(*(one[1:] for one in seeds), strict=True))
            found = torch.vmap(lambda *one: tuple(after(Trained(*one[:4]), *one[4:], 0.01)))(*joined, x, y)
            states = [Trained(*parts) for parts in zip(*found, strict=True)]
        else:
            states = [after(state, x, y, 0.01) for state, (_, x, y) in zip(states, seeds, strict=True)]
        for module, adam, (_, x, y) in zip(modules, theirs, seeds, strict=True):
            adam.zero_grad()
            torch.nn.functional.cross_entropy(module(x), y).backward()
            adam.step()
    for state, module, (theta, _, _) in zip(states, modules, seeds, strict=True):
        wanted = torch.nn.utils.parameters_to_vector(module.parameters()).detach()
        tight = {"rtol": 1e-6, "atol": 1e-8} if dtype is torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
        torch.testing.assert_close(state.theta, wanted, **tight)
        assert int(state.steps) == STEPS and state.theta.dtype is dtype
        weights, before = (INNER.parameters(one)["layer1.weight"] for one in (state.theta, theta))
        assert torch.equal(weights[:, 2], before[:, 2]) and not torch.equal(weights[:, 1], before[:, 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_there_was_stays_as_it_is(dtype: torch.dtype) -> None:
    theta, x, y = problem(0, dtype)
    before: Memory = untrained(theta)._asdict()
    copies = {name: value.clone() for name, value in before.items()}
    with torch.no_grad():  # as in a hook
        found = after(after(Trained(**before), x, y, 0.1), x, y, 0.1)
    assert all(torch.equal(value, copies[name]) for name, value in before.items())
    assert not any(value.requires_grad for value in found) and not torch.equal(found.theta, theta)


LOSSES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "of one parameter": lambda theta: INNER.parameters(theta)["head.bias"].square().sum(),
    "whose gradient is one number": lambda theta: INNER.parameters(theta)["head.bias"].sum(),
    "whose gradient lies turned": lambda theta: (
        INNER.parameters(theta)["layer1.weight"].T.contiguous() * torch.arange(20.0).reshape(5, 4)).sum(),
    "of the whole": lambda theta: theta.square().sum(),
    "of the whole and a parameter": lambda theta: theta.square().sum() + INNER.parameters(theta)["head.weight"].sum(),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_each_loss_has_its_gradient(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The first moment is a tenth of the gradient, alone and side by side."""
    theta = problem(0, torch.float32)[0]
    wanted = torch.func.grad(LOSSES[name])(theta) / 10
    alone = adam_step(OUTER, INNER, LOSSES[name], untrained(theta), 0.1)
    monkeypatch.setattr(OUTER, "mapped", True)
    mapped = adam_step(OUTER, INNER, LOSSES[name], untrained(theta), 0.1)
    for found in (alone, mapped):
        torch.testing.assert_close(found.first, wanted)
        torch.testing.assert_close(found.second, wanted.square() / 10)
        assert torch.equal(found.theta != theta, wanted != 0)
