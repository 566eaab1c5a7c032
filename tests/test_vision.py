"""Networks for images: against PyTorch's and torchvision's own modules, and what becomes of running statistics."""

from __future__ import annotations

import copy
import hashlib
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import continual as cl
from continual import config, ready, runner, workers
from continual.errors import BadChain, BadData, BadOption, Notice
from continual.execution import Choice, Way
from continual.learning import frozen, importance, layers, modules, norms, vision
from continual.learning.models import MLP, LinearNet, Net
from continual.learning.optimizers import AdamW, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.strategy import Strategy
from continual.learning.train import Course, State, Watch, train
from continual.learning.training import Training
from continual.learning.vision import CNN, ReducedResNet18, ResNet18, Torchvision
from continual.progress import Progress
from continual.results import plots
from continual.strategies.packnet import PackNet
from continual.streams.augment import Augmentation
from continual.streams.data import Data
from continual.streams.rng import key
from continual.streams.stream import Split, Stream, permuted

SMALL = ReducedResNet18(width=2)
TASKS = torch.tensor([0, 0, 1, 0, 1, 1, 1, 0])


def images(n: int = 8, channels: int = 3, side: int = 8, seed: int = 0) -> torch.Tensor:
    return key(seed).normal("images", n, channels, side, side).double()


def photographs(tasks: int = 2, scenario: str = "class", each: int = 6) -> Stream:
    """Noise around a colour of its own for each of six classes."""
    numbers = np.random.default_rng(0)
    y = np.repeat(np.arange(6), each)
    colours = numbers.integers(40, 216, (6, 3, 1, 1))
    parts = [np.clip(colours[y] + numbers.integers(-40, 40, (len(y), 3, 8, 8)), 0, 255).astype(np.uint8)
             for _ in range(2)]  # fmt: skip
    return Stream.from_arrays(parts[0], y, parts[1], y, tasks=tasks, scenario=scenario)


def filled(module: nn.Module, net: modules.ModuleNet, theta: torch.Tensor) -> nn.Module:
    """A module with the numbers of θ."""
    values = {name: value.detach().clone() for name, value in net.parameters(theta).items()}
    found = module.double().load_state_dict(values, strict=False)
    assert not found.unexpected_keys and all("num_batches" in name for name in found.missing_keys)
    return module


# ---- BatchNorm


def test_batch_norm_is_pytorchs() -> None:
    ours, theirs = norms.BatchNorm(3).double(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        for one in (ours, theirs):
            one.weight.copy_(torch.tensor([1.0, 2, 3]))
            one.bias.copy_(torch.tensor([0.5, 0, -1]))
    for step in range(4):
        x = images(seed=step) * 3 + 1
        ours.batch_statistics = True
        torch.testing.assert_close(ours(x), theirs(x))
        assert ours.fresh is not None
        ours.running_mean, ours.running_var = ours.fresh
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    ours.batch_statistics = False
    torch.testing.assert_close(ours(x), theirs.eval()(x))


def test_batch_norm_by_task_is_one_for_each_task() -> None:
    ours = norms.BatchNorm(3, tasks=3).double()
    theirs = [nn.BatchNorm2d(3).double() for _ in range(3)]
    for step in range(3):
        x = images(seed=step) + TASKS[:, None, None, None]
        ours.batch_statistics, ours.tasks = True, TASKS
        got = ours(x)
        for task in range(2):
            torch.testing.assert_close(got[task == TASKS], theirs[task](x[task == TASKS]))
        assert ours.fresh is not None
        ours.running_mean, ours.running_var = ours.fresh
    for task in range(3):
        torch.testing.assert_close(ours.running_mean[task], theirs[task].running_mean)
        torch.testing.assert_close(ours.running_var[task], theirs[task].running_var)
    ours.batch_statistics = False
    got = ours(x)
    for task in range(2):
        torch.testing.assert_close(got[task == TASKS], theirs[task].eval()(x[task == TASKS]))
    ours.tasks = None
    with pytest.raises(BadChain, match="has to be told each sample's task"):
        ours(x)


def test_of_a_single_value_there_is_no_variance() -> None:
    """Neither its mean nor its variance moves the running ones then, with one for all tasks or one for each."""
    whole, by_task = norms.BatchNorm(3).double(), norms.BatchNorm(3, tasks=3).double()
    whole.batch_statistics = by_task.batch_statistics = True
    x, by_task.tasks = images(3, side=1), torch.tensor([1, 0, 0])
    whole(x[:1])
    by_task(x)
    assert whole.fresh is not None and by_task.fresh is not None
    moved = 0.1 * x[1:, :, 0, 0].mean(0), 0.9 + 0.1 * x[1:, :, 0, 0].var(0)
    for one, each, before, after in zip(whole.fresh, by_task.fresh, (0, 1), moved, strict=True):
        assert (one == before).all() and (each[1:] == before).all()
        torch.testing.assert_close(each[0], after)


def test_statistics_by_task_are_not_rounded_with_the_images() -> None:
    """Each lies 10 or more from zero, where bfloat16 has steps of a sixteenth."""
    ours, theirs = norms.BatchNorm(3, tasks=2), nn.BatchNorm2d(3)
    ours.batch_statistics, ours.tasks = True, torch.ones(len(TASKS), dtype=torch.int64)
    x = images(seed=0).float() + 10.03
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, wanted = ours(x), theirs(x)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert ours.fresh is not None
    torch.testing.assert_close(ours.fresh[0][1], theirs.running_mean)


@pytest.mark.parametrize(("kind", "wanted"), [("layer", nn.GroupNorm(1, 20)), ("group", nn.GroupNorm(1, 20)),
                                              ("none", nn.Identity())], ids=str)  # fmt: skip
def test_other_norms(kind: Any, wanted: nn.Module) -> None:
    x = images(channels=20).float()
    torch.testing.assert_close(norms.norm(kind, 20, None)(x), wanted(x))
    assert isinstance(norms.norm("group", 64, None), nn.GroupNorm) and norms.norm("group", 64, None).num_groups == 4


# ---- networks as functions of θ


@pytest.mark.parametrize(
    "model", [CNN(channels=(3, 5), units=7), SMALL, replace(SMALL, norm="group"), ResNet18(width=2)], ids=str
)
def test_a_network_is_its_module(model: Any) -> None:
    net = model.build((3, 8, 8), 4)
    theta = net.initial(key(3), torch.float64)
    assert theta.shape == (net.size,) and torch.equal(theta, net.initial(key(3), torch.float64))
    assert not torch.equal(theta, net.initial(key(4), torch.float64))
    module = filled(net.make(), net, theta)
    x, out = images(), net.forward(theta, images())
    logits, features = module(x)
    torch.testing.assert_close(out.logits, logits)
    torch.testing.assert_close(out.features, features)
    assert out.logits.shape == (8, 4) and torch.equal(net.head_rows(theta, torch.ones(4, dtype=torch.bool)).sum(),
                                                      torch.tensor(4 * (features.shape[1] + 1)))  # fmt: skip


def test_the_cnn_is_the_one_that_is_described() -> None:
    net = CNN().build((3, 32, 32), 10)
    shapes = [shape for name, shape in net.shapes.items() if name.endswith("weight")]
    assert shapes == [(64, 3, 3, 3), (128, 64, 3, 3), (1024, 128 * 8 * 8), (10, 1024)]


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last], ids=["first", "last"])
def test_the_gradient_of_flattened_images_lies_as_they_do(form: torch.memory_format) -> None:
    x = images(4, channels=3, side=5).contiguous(memory_format=form).requires_grad_()
    factors = images(4, channels=3, side=5, seed=1).flatten(1)

    def gradient(flatten: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda x: (flatten(x).square() * factors).sum())(x)

    wanted = gradient(nn.Flatten(), x)
    (got,) = torch.autograd.grad((modules.Flatten()(x).square() * factors).sum(), x)
    assert torch.equal(got, wanted) and torch.equal(gradient(modules.Flatten(), x), wanted)
    assert got.is_contiguous(memory_format=form) and got.stride() == x.stride()
    seeds = torch.stack([x.detach(), 2 * x.detach()])
    mapped = torch.func.vmap(lambda x: gradient(modules.Flatten(), x))(seeds)
    assert torch.equal(mapped, torch.stack([wanted, 2 * wanted]))
    forward = torch.func.jvp(lambda x: gradient(modules.Flatten(), x), (x.detach(),), (x.detach(),))[1]
    torch.testing.assert_close(forward, wanted)  # it is linear in x


def test_reduced_resnet_has_the_published_size() -> None:
    """Lopez-Paz & Ranzato 2017 count 1.09 million parameters for CIFAR-100's images and 100 outputs."""
    net = ReducedResNet18().build((3, 32, 32), 100)
    assert net.size - net.statistics == 1_109_240 and net.statistics == 2 * sum(
        shape[0] for name, shape in net.shapes.items() if name.endswith("running_mean")
    )
    full = ResNet18().build((3, 32, 32), 10)
    assert full.size - full.statistics == 11_173_962 and not full.frozen


@pytest.mark.parametrize("training", [True, False])
def test_torchvisions_network_is_torchvisions(training: bool) -> None:
    import torchvision

    net = Torchvision(weights="new").build((3, 32, 32), 5)
    theta, x = net.initial(key(0), torch.float64), images(side=32)
    theirs = torchvision.models.resnet18(num_classes=5).double()
    values = {name.replace("body.", "").replace("head.", "fc."): value for name, value in net.parameters(theta).items()}
    theirs.load_state_dict({name: value.detach().clone() for name, value in values.items()}, strict=False)
    theirs.train(training)
    wanted = theirs(x)
    if not training:
        torch.testing.assert_close(net.logits(theta, x), wanted)
        return
    out, statistics = net.learn(theta, x, torch.zeros(8, dtype=torch.int64))
    torch.testing.assert_close(out.logits, wanted)
    after = torch.cat([value.flatten() for name, value in theirs.state_dict().items() if "running" in name])
    torch.testing.assert_close(statistics, after)


def test_torchvisions_network_sees_grey_as_three_channels_alike(weights: Path) -> None:
    grey, coloured = (Torchvision(weights=str(weights)).build((channels, 32, 32), 5) for channels in (1, 3))
    x = images(4, channels=1, side=32)
    given = [net.features(net.initial(key(0), torch.float64), seen)
             for net, seen in ((grey, x), (coloured, x.expand(-1, 3, -1, -1)))]  # fmt: skip
    torch.testing.assert_close(*given)
    assert given[0].std() > 0 and grey.size < coloured.size


@pytest.mark.parametrize("label", ["true", "expected", "sampled"])
@pytest.mark.parametrize(
    "model",
    [
        CNN(channels=(3, 4), units=5),
        *(replace(SMALL, width=4, norm=norm) for norm in ("batch", "group", "layer")),
        replace(SMALL, width=4, statistics="task"),
    ],
    ids=lambda made: "-".join(map(str, made.values().values())),
)
def test_a_fisher_layer_by_layer_is_that_of_each_samples_gradient(
    model: Any, label: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against one backward pass of the whole network for each sample and label."""
    stream = photographs()
    task, net = stream.tasks[1], model.build(stream.shape, stream.units, 2)
    theta = net.initial(key(1), torch.float64)
    if net.statistics:  # as if something had been learnt
        theta[-net.statistics :] += 0.1 * (key(2).uniform("moved", net.statistics) - 0.5)
    rows = torch.cat([task.train[:5], stream.tasks[0].train[:3]])
    got = importance.fisher(net, theta, task, rows, label)
    monkeypatch.setattr(importance, "IMAGES", 3)
    monkeypatch.setattr(layers, "HELD", 1)
    torch.testing.assert_close(importance.fisher(net, theta, task, rows, label), got)
    monkeypatch.undo()
    x, tasks, wanted = task.samples.images(rows, torch.float64), task.samples.task[rows], torch.zeros_like(theta)
    live = theta.clone().requires_grad_()
    log_p = torch.log_softmax(task.outputs.apply(net.logits(live, x, tasks), task.index, tasks), 1)
    lots = task.key.child("fisher").uniform("label", len(rows))
    weights = importance.label_weights(log_p.exp().detach(), task.samples.y[rows], label, lots)
    for weight, row in itertools.product(weights, range(len(rows))):
        (gradient,) = torch.autograd.grad((weight[row] * log_p[row]).sum(), live, retain_graph=True)
        wanted += gradient.square() / len(rows)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-14)
    assert (net.weights(got) > 0).sum() > 10 and not got[len(net.weights(got)) :].any()


@pytest.mark.parametrize(
    ("arch", "train", "known"),
    [("resnet18", "all", True), ("resnet18", "block", True), ("resnet18", "head", True), ("vit_b_16", "all", False)],
)
def test_what_layers_of_torchvisions_networks_are_known(
    weights: Path, arch: str, train: Any, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    side = 224 if arch == "vit_b_16" else 32
    given = str(weights) if arch == "resnet18" else "new"
    net = Torchvision(arch=arch, weights=given, train=train).build((3, side, side), 5)  # type: ignore[arg-type]
    theta, x = net.initial(key(0), torch.float64).requires_grad_(), images(2, side=side)
    found = net.layered(theta, x)
    if not known:
        assert found is None
        return
    assert found is not None
    logits, seen = found
    torch.testing.assert_close(logits, net.logits(theta, x))
    deltas = torch.autograd.grad(logits[0, 1], [layer.output for layer in seen])
    (wanted,) = torch.autograd.grad(net.logits(theta, x)[0, 1], theta)
    squares = [layer.squares([delta]) for layer, delta in zip(seen, deltas, strict=True)]
    got = {name: value for one in squares for name, value in one.items()}
    for name, value in net.parameters(wanted.square()).items():
        if name in net.trained:  # type: ignore[attr-defined]
            torch.testing.assert_close(got[name], value, rtol=1e-8, atol=1e-12)
    assert set(got) == set(net.trained)  # type: ignore[attr-defined]


def test_a_gradient_of_the_network_is_autograds() -> None:
    net = SMALL.build((3, 8, 8), 4)
    theta, x = net.initial(key(3), torch.float64), images()
    gradient = torch.func.grad(lambda t: net.logits(t, x).square().sum())(theta)
    module = filled(net.make(), net, theta)
    module(x)[0].square().sum().backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in module.parameters()])
    torch.testing.assert_close(net.weights(gradient), wanted)
    assert not gradient[-net.statistics :].any(), "no gradient goes through running statistics"


# ---- statistics in training


def learners(strategy: Strategy, model: Any, stream: Stream, seeds: int = 1, **optimizer: Any) -> Learners:
    net = model.build(stream.shape, stream.units, len(stream.tasks))
    made = AdamW(**{"lr": 0.01} | optimizer)
    recipe = Recipe(net, strategy, made, Constant(), keep_optimizer=True, precision="float64")
    return Learners(recipe, [stream.stream(seed) for seed in range(seeds)], list(range(seeds)))


TRAINING = Training(seeds=1, epochs=1, batch=6, precision="float64", train_samples=0)


def statistics(net: Net, theta: torch.Tensor) -> torch.Tensor:
    return theta[..., -net.statistics :].detach().clone()


def test_running_statistics_follow_the_batches_and_nothing_else() -> None:
    """Neither weight decay nor a penalty moves them; the network that one would train by hand has the same."""
    stream = photographs(tasks=1)
    alone = learners(Strategy(), SMALL, stream, weight_decay=0.5)
    net = alone.net
    assert isinstance(net, modules.ModuleNet)
    batches: list[torch.Tensor] = []
    body = filled(net.make(), net, alone.theta.clone())
    by_hand = _with_pytorchs_norms(body)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, weight_decay=0.5)
    from continual.learning import step

    once = step.Program.__call__

    def seen(self: Any, number: int, rows: torch.Tensor) -> torch.Tensor:
        batches.append(rows)
        return once(self, number, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step.Program, "__call__", seen)
        train(alone, replace(TRAINING, program="eager"), Watch())
    by_hand.train()
    for rows in batches:
        optimizer.zero_grad()
        x = stream.samples.images(rows, torch.float64)
        torch.nn.functional.cross_entropy(by_hand(x)[0], stream.samples.y[rows]).backward()
        optimizer.step()
    running = [value for name, value in by_hand.state_dict().items() if "running" in name]
    torch.testing.assert_close(statistics(net, alone.theta), torch.cat([value.flatten() for value in running]))
    weights = torch.cat([parameter.detach().flatten() for parameter in by_hand.parameters()])
    torch.testing.assert_close(net.weights(alone.theta), weights, rtol=1e-6, atol=1e-8)


def _with_pytorchs_norms(module: nn.Module) -> nn.Module:
    for name, child in module.named_children():
        if isinstance(child, norms.BatchNorm):
            new = nn.BatchNorm2d(len(child.weight)).double()
            new.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, new)
        else:
            _with_pytorchs_norms(child)
    return module


@pytest.mark.parametrize("text", ["ewc:strength=0", "lwf:strength=0", "mas:strength=0", "l2:strength=0",
                                  "a-gem:samples=4,capacity=12", "si:strength=0"])  # fmt: skip
def test_a_strategys_own_passes_never_move_the_statistics(text: str) -> None:
    """With nothing to hold on to, everything is as under fine-tuning; A-GEM's gradients leave no trace either."""
    stream = photographs()
    one, other = (learners(config.make_strategy(given), SMALL, stream) for given in (text, "finetune"))
    results = [train(group, TRAINING, Watch())[0] for group in (one, other)]
    if text.startswith("a-gem"):
        batches = 3
        one, other = (learners(config.make_strategy(given), SMALL, photographs(1)) for given in (text, "finetune"))
        results = [{"loss": train(group, TRAINING, Watch())[0]["loss"][:batches]} for group in (one, other)]
    torch.testing.assert_close(results[0]["loss"], results[1]["loss"])
    torch.testing.assert_close(one.theta, other.theta)


def test_the_penalty_of_l2_leaves_statistics_out() -> None:
    net = SMALL.build((3, 8, 8), 4)
    theta = net.initial(key(0), torch.float64)
    strategy, moved = cl.strategies.L2(strength=2.0, towards="zero"), theta.clone()
    moved[-net.statistics :] += 5
    stream = photographs()
    memory = strategy.init(net, theta, stream)
    batch: Any = None
    got = [float(strategy.penalty(net, one, memory, batch, batch, stream.tasks[0])) for one in (theta, moved)]
    assert got[0] == got[1] == pytest.approx(2 * float(net.weights(theta).square().sum()))


def test_frozen_statistics_stay_as_the_first_task_left_them() -> None:
    stream = photographs(tasks=3)
    group = learners(Strategy(), replace(SMALL, statistics="frozen"), stream)
    seen = []

    class Look(Watch):
        pass

    def look(task: int, number: int, steps: int) -> None:
        if number == 0:
            seen.append(statistics(group.net, group.theta))

    train(group, TRAINING, Watch(look))
    seen.append(statistics(group.net, group.theta))
    assert not torch.equal(seen[0], seen[1]) and torch.equal(seen[1], seen[2]) and torch.equal(seen[1], seen[3])


@pytest.mark.parametrize("text", ["joint", "joint:every=false", "from-scratch", "gdumb:capacity=30", "cumulative",
                                  "cumulative:every=false"])  # fmt: skip
@pytest.mark.parametrize("seeds", [1, 2])
def test_frozen_statistics_are_those_of_the_first_task_that_a_new_network_learns(text: str, seeds: int) -> None:
    """Who begins each task with a new network learns its statistics in each, as with running ones."""
    stream, seen = photographs(tasks=3), dict[str, torch.Tensor]()
    for name in ("running", "frozen"):
        group = learners(config.make_strategy(text), replace(SMALL, statistics=name), stream, seeds)
        course, found = Course(group, TRAINING, Watch()), []
        for _ in range(3):
            course.learn()
            found.append(statistics(group.net, group.theta))
        seen[name] = torch.stack(found)
    if text == "cumulative":
        assert torch.equal(seen["frozen"][0], seen["running"][0])
        assert torch.equal(seen["frozen"], seen["frozen"][:1].expand_as(seen["frozen"]))
        assert not torch.equal(seen["running"][1], seen["running"][0])
    else:
        assert torch.equal(seen["frozen"], seen["running"])
        assert not torch.equal(seen["running"][2], seen["running"][1])


@pytest.mark.parametrize("text", ["finetune", "joint"])
def test_a_task_that_is_gone_on_with_leaves_statistics_as_it_began(text: str) -> None:
    """In the midst of joint training's second task its statistics have moved already, and go on moving."""
    stream, states = photographs(tasks=3), list[State]()

    def course(start: State | None = None) -> torch.Tensor:
        group = learners(config.make_strategy(text), replace(SMALL, statistics="frozen"), stream)
        train(group, TRAINING, Watch(due=lambda done: done == 2, keep=keep, start=start))
        return group.theta

    def keep(state: State) -> None:
        states.append(State({name: value.clone() for name, value in state.tensors.items()}, dict(state.facts)))

    whole = course()
    for state in states[:3]:
        assert torch.equal(course(state), whole)
    assert [state.facts["notes"]["fixed"] for state in states[:3]] == [False, text == "finetune", text == "finetune"]


BY_TASK = replace(SMALL, width=4, statistics="task")


def own_statistics(net: Net, theta: torch.Tensor) -> torch.Tensor:
    """The running statistics of each task (..., T, n)."""
    assert isinstance(net, modules.ModuleNet)
    return torch.cat([net.parameters(theta)[name] for name in net.buffers], -1).detach().clone()


@pytest.mark.parametrize("seeds", [1, 2])
def test_statistics_by_task_move_with_their_task_and_are_then_those_of_the_later_ones(seeds: int) -> None:
    group = learners(Strategy(), BY_TASK, photographs(tasks=3, scenario="task"), seeds)
    seen: dict[tuple[int, str], torch.Tensor] = {}

    def look(task: int, number: int, steps: int) -> None:
        if number in (0, steps - 1):
            seen[task, "last" if number else "first"] = own_statistics(group.net, group.theta)

    train(group, TRAINING, Watch(look))
    seen[3, "first"] = own_statistics(group.net, group.theta)
    for task in range(3):
        begun, last, after = seen[task, "first"], seen[task, "last"], seen[task + 1, "first"]
        moved = (last != begun).flatten(0, -3).any(0).any(-1) if seeds > 1 else (last != begun).any(-1)
        assert moved.tolist() == [one == task for one in range(3)], "while it is learnt, its own alone"
        assert torch.equal(after[..., :task, :], begun[..., :task, :])
        assert not torch.equal(after[..., task, :], last[..., task, :])
        assert torch.equal(after[..., task:, :], after[..., task : task + 1, :].expand_as(after[..., task:, :]))


def test_a_teacher_knows_the_next_tasks_statistics_too() -> None:
    """What a strategy keeps of θ when a task ends is what the next task begins with."""
    group = learners(config.make_strategy("lwf"), BY_TASK, photographs(tasks=3, scenario="task"))
    course = Course(group, TRAINING, Watch())
    course.learn()
    assert torch.equal(group.memory["teacher"], group.theta)
    found = own_statistics(group.net, group.memory["teacher"])
    assert torch.equal(found[1], found[0]) and found[0].unique().numel() > 2


@pytest.mark.parametrize(("text", "seeds"), [("replay:capacity=9", 1), ("lwf", 2)])
def test_statistics_by_task_are_handed_on_however_a_run_is_done(text: str, seeds: int) -> None:
    """Seeds side by side and one by one, and gone on with from each checkpoint."""
    stream, states = photographs(tasks=3, scenario="task"), list[State]()

    def course(start: State | None = None) -> torch.Tensor:
        group = learners(config.make_strategy(text), BY_TASK, stream, seeds)
        train(group, TRAINING, Watch(due=lambda done: done in (0, 2), keep=keep, start=start))
        return group.theta

    def keep(state: State) -> None:
        states.append(State({name: value.clone() for name, value in state.tensors.items()}, dict(state.facts)))

    whole = course()
    assert [state.facts["done"] for state in states] == [2, 0, 2, 0, 2]
    for state in states[:5]:
        assert torch.equal(course(state), whole)
    alone = learners(config.make_strategy(text), BY_TASK, stream)
    train(alone, TRAINING, Watch())
    torch.testing.assert_close(alone.theta, whole[0] if seeds > 1 else whole)


@pytest.mark.parametrize("how", ["running", "task"])
def test_packnet_frees_no_running_statistics(how: Any) -> None:
    group = learners(PackNet(), replace(BY_TASK, statistics=how), photographs(tasks=3, scenario="task"))
    train(group, TRAINING, Watch())
    assert (statistics(group.net, group.memory["owner"]) == 0).all(), "the first task's, as biases are"
    assert statistics(group.net, group.theta).all() and (group.memory["owner"] == -1).any()


def test_a_network_that_begins_anew_has_untrained_statistics_again() -> None:
    group = learners(config.make_strategy("from-scratch"), BY_TASK, photographs(tasks=3, scenario="task"))
    course = Course(group, TRAINING, Watch())
    start = own_statistics(group.net, group.memory["start"])
    course.learn()
    course.learn()
    found = own_statistics(group.net, group.theta)
    assert torch.equal(found[0], start[0]) and torch.equal(found[2], found[1]) and not torch.equal(found[1], start[1])


@pytest.mark.parametrize("text", ["finetune", "ewc:strength=10", "replay:capacity=6", "lwf"])
@pytest.mark.parametrize("model", [SMALL, replace(SMALL, width=4, statistics="task"), replace(SMALL, norm="layer"),
                                   CNN(channels=(3,), units=5)], ids=str)  # fmt: skip
def test_mapped_seeds_are_looped_seeds(text: str, model: Any) -> None:
    stream = photographs(scenario="task")
    strategy = config.make_strategy(text)
    group = learners(strategy, model, stream, seeds=2)
    train(group, replace(TRAINING, seeds=2), Watch())
    for seed in range(2):
        net = model.build(stream.shape, stream.units, len(stream.tasks))
        recipe = Recipe(net, strategy, AdamW(lr=0.01), Constant(), keep_optimizer=True, precision="float64")
        alone = Learners(recipe, [stream.stream(seed)], [seed])
        train(alone, TRAINING, Watch())
        torch.testing.assert_close(group.theta[seed], alone.theta, rtol=1e-6, atol=1e-8)


# ---- weights from elsewhere


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file with weights of torchvision's resnet18."""
    import torchvision

    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = torchvision.models.resnet18()
    with torch.no_grad():
        module.bn1.running_mean.fill_(0.25)
    torch.save(module.state_dict(), tmp_path / "resnet18.pth")
    return tmp_path / "resnet18.pth"


@pytest.mark.filterwarnings("error")
def test_weights_from_a_file_are_the_networks(weights: Path) -> None:
    given = torch.load(weights, weights_only=True)
    net = Torchvision(weights=str(weights)).build((3, 32, 32), 5)
    one, other = (net.parameters(net.initial(key(seed), torch.float32)) for seed in range(2))
    for name, value in given.items():
        if not name.startswith("fc.") and "num_batches" not in name:
            assert torch.equal(one[f"body.{name}"], value) and torch.equal(other[f"body.{name}"], value)
    assert not torch.equal(one["head.weight"], other["head.weight"]), "the head is new, and the seed's own"


def test_statistics_of_given_weights_are_frozen_from_the_start(weights: Path) -> None:
    net = Torchvision(weights=str(weights), statistics="frozen").build((3, 32, 32), 5)
    theta = net.initial(key(0), torch.float32)
    assert net.fixed(theta) and not Torchvision(weights=str(weights)).build((3, 32, 32), 5).fixed(theta)
    out, after = net.learn(theta, images(side=32).float(), torch.zeros(8, dtype=torch.int64), fixed=True)
    assert after is not None and torch.equal(after, theta[-net.statistics :])
    torch.testing.assert_close(out.logits, net.logits(theta, images(side=32).float()))


@pytest.mark.parametrize(("train", "names"), [("head", {"head"}), ("block", {"head", "layer4"})])
def test_what_is_trained_is_theta(weights: Path, train: Any, names: set[str]) -> None:
    whole = Torchvision(weights=str(weights)).build((3, 32, 32), 5)
    net = Torchvision(weights=str(weights), train=train).build((3, 32, 32), 5)
    assert isinstance(net, modules.ModuleNet)
    assert {name.removeprefix("body.").split(".")[0] for name in net.trained} == names
    theta, x = net.initial(key(0), torch.float32), images(side=32).float()
    torch.testing.assert_close(net.logits(theta, x), whole.logits(whole.initial(key(0), torch.float32), x))


def test_weights_that_are_not_there_or_damaged_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(BadData, match=r"resnet50's weights are not there; download https://\S+\.pth to \S+\.pth, or"):
        Torchvision(arch="resnet50").build((3, 32, 32), 5)
    with pytest.raises(BadData, match=r"there is no file nowhere\.pth"):
        Torchvision(weights="nowhere.pth").build((3, 32, 32), 5)
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    with pytest.raises(BadData, match=r"bad.pth has no weights of torchvision's resnet18: it cannot be read") as raised:
        Torchvision(weights=str(tmp_path / "bad.pth")).build((3, 32, 32), 5)
    assert "weights_only" not in str(raised.value), "PyTorch's advice is not for here"


@pytest.mark.parametrize(
    ("saved", "told"),
    [
        (lambda state: {"state_dict": state}, "it lacks conv1.weight, .* and it has state_dict$"),
        (lambda state: {f"module.{name}": one for name, one in state.items()}, "it has module.conv1.weight, .* more$"),
        (lambda state: state | {"conv1.weight": torch.zeros(2)}, r"conv1.weight: .*\(\[2\]\) .*\(\[64, 3, 7, 7\]\)$"),
        (lambda state: {name: one[None] for name, one in state.items()}, r"\[64, 3, 7, 7\]\); and 99 more like it$"),
        (lambda state: {name: one for name, one in state.items() if name != "bn1.bias"}, "it lacks bn1.bias$"),
        (list, "dict-like"),
        (lambda state: state | {"conv1.weight": 3}, "conv1.weight"),
        (lambda state: state | {"bn1.bias": torch.full((64,), torch.nan)}, "bn1.bias has values that are not finite$"),
        (lambda state: state | {"bn1.bias": torch.zeros(64, dtype=torch.int64)}, "bn1.bias is of int64$"),
    ],
)
def test_what_is_wrong_with_weights_is_told(tmp_path: Path, weights: Path, saved: Any, told: str) -> None:
    torch.save(saved(dict(torch.load(weights, weights_only=True))), tmp_path / "other.pth")
    with pytest.raises(BadData, match=r"other.pth has no weights of torchvision's resnet18: " + ".*" + told):
        Torchvision(weights=str(tmp_path / "other.pth")).build((3, 32, 32), 5)


@pytest.mark.parametrize("head", ["another", "none"])
def test_weights_may_come_with_another_head_which_is_not_used(tmp_path: Path, weights: Path, head: str) -> None:
    state = torch.load(weights, weights_only=True)
    body = {name: one for name, one in state.items() if not name.startswith("fc.")}
    other = {"fc.weight": torch.zeros(7, 512), "fc.bias": torch.zeros(7)} if head == "another" else {}
    torch.save(body | other, tmp_path / "own.pth")
    one, same = (Torchvision(weights=str(file)).build((3, 32, 32), 5) for file in (weights, tmp_path / "own.pth"))
    assert torch.equal(one.initial(key(0), torch.float32), same.initial(key(0), torch.float32))


def test_weights_without_the_count_of_batches_are_taken_as_older_ones_are(tmp_path: Path, weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    torch.save({name: one for name, one in state.items() if "num_batches" not in name}, tmp_path / "old.pth")
    net = Torchvision(weights=str(tmp_path / "old.pth")).build((3, 32, 32), 5)
    assert torch.equal(net.parameters(net.initial(key(0), torch.float32))["body.conv1.weight"], state["conv1.weight"])


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: CNN().build((64,), 10),
            r"cnn takes images of \(channels, height, width\), not samples of 64; use model=mlp$",
        ),
        (lambda: CNN(channels=(1,) * 4).build((1, 8, 8), 10), "16 or more pixels"),
        (lambda: ResNet18().build((3, 4, 4), 10), "8 or more pixels"),
        (lambda: Torchvision(arch="vit_b_16", weights="new").build((3, 64, 64), 10), "with 224 pixels .* size=224"),
        (lambda: Torchvision(arch="vit_b_16", weights="new").build((3, 256, 256), 10), "with 224 pixels .* size=224"),
        (lambda: Torchvision(weights="new").build((2, 32, 32), 10), "takes images of 3 channels .* not 2x32x32"),
        (lambda: Torchvision(weights="new", train="head"), "weights=new makes no sense"),
        (lambda: ResNet18(norm="group", statistics="task"), "norm=group has none"),
        (lambda: Torchvision(arch="vit_b_16", norm="group"), "LayerNorm throughout"),
        (lambda: Torchvision(train="head", statistics="task"), "statistics=task does nothing with train=head"),
        (lambda: Torchvision(train="block", norm="group"), "was learnt with BatchNorm"),
    ],
)
def test_what_is_refused(make: Any, told: str) -> None:
    with pytest.raises(BadOption, match=told):
        make()


@pytest.mark.parametrize(
    ("model", "shape", "widest"),
    [
        (MLP(layers=(7, 50)), (1, 3, 3), 50),
        (MLP(layers=(7,)), (1, 3, 4), 12),
        (CNN(), (3, 32, 32), 64 * 32 * 32),
        (ReducedResNet18(), (3, 16, 16), 20 * 16 * 16),
        (ReducedResNet18(statistics="task"), (3, 16, 16), 20 * 16 * 16),
    ],
)
def test_the_widest_activation(model: Any, shape: tuple[int, ...], widest: int) -> None:
    """However many parameters there are."""
    assert model.build(shape, 10, 2).widest(shape) == widest


def test_the_work_of_a_network_is_counted_by_its_layers_trained_or_not(weights: Path) -> None:
    convolutions = 5 * 3 * 9 * 16 * 16 + 7 * 5 * 9 * 8 * 8  # outputs x inputs x 3x3 x places, at 16 and at 8 pixels
    assert CNN(channels=(5, 7), units=11).build((3, 16, 16), 4).work((3, 16, 16)) == (
        convolutions + 7 * 4 * 4 * 11 + 11 * 4
    )
    built = [Torchvision(weights=str(weights), train=train).build((3, 32, 32), 4) for train in ("all", "head")]
    assert built[0].work((3, 32, 32)) == built[1].work((3, 32, 32)) > 10**7 > built[1].size and built[1].convolves


def test_the_work_of_a_network_is_what_pytorch_counts() -> None:
    net, x = SMALL.build((3, 16, 16), 4), torch.zeros(1, 3, 16, 16)
    with FlopCounterMode(display=False) as counter:
        net.logits(torch.zeros(net.size), x)
    assert net.work((3, 16, 16)) == counter.get_total_flops() // 2


@pytest.mark.parametrize("arch", vision.ARCHITECTURES)
def test_the_work_of_torchvisions_networks_is_what_it_says(arch: Any) -> None:
    published = getattr(torchvision.models, vision.ARCHITECTURES[arch][0]).IMAGENET1K_V1.meta["_ops"]
    work = Torchvision(arch=arch, weights="new").build((3, 224, 224), 1000).work((3, 224, 224))
    assert round(work / 1e9, 3) == pytest.approx(published, abs=0.0011)


def test_weights_are_part_of_what_a_run_is_recognised_by(weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(weights.read_bytes() + b" ")
    ours, theirs = (
        config.plan({"model": Torchvision(weights=str(path), train="head")}).protocol(tmp_path)["model"]
        for path in (weights, other)
    )
    assert ours["weights_sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest() != theirs["weights_sha256"]


def test_statistics_by_task_in_bfloat16() -> None:
    settings: dict[str, Any] = {"seeds": 1, "epochs": 1, "batch": 6, "precision": "bfloat16"}
    result = cl.run(photographs(), model="reduced-resnet18:width=2,statistics=task", **settings)
    assert np.isfinite(result.arrays["loss"]).all()


def test_a_vision_transformer_goes_through() -> None:
    net = Torchvision(arch="vit_b_16", weights="new").build((3, 224, 224), 4)
    theta = net.initial(key(0), torch.float32)
    out = net.forward(theta, images(1, side=224).float())
    assert out.logits.shape == (1, 4) and out.features.shape == (1, 768) and not net.statistics


def test_a_run_with_a_network_for_images() -> None:
    result = cl.run(photographs(), "replay:capacity=6", model="reduced-resnet18:width=2", seeds=2, epochs=2, batch=6)
    assert result.accuracy.shape == (2, 3, 2)
    assert result.record["protocol"]["model"]["statistics"] == "running"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images went through the first block of torchvision's network, each time."""
    numbers: list[int] = []
    once = torchvision.models.resnet.BasicBlock.forward

    def counted(self: Any, x: torch.Tensor) -> torch.Tensor:
        if self.conv1.in_channels == 64 and self.downsample is None:
            numbers.append(len(x))
        return once(self, x)

    monkeypatch.setattr(torchvision.models.resnet.BasicBlock, "forward", counted)
    return numbers


class Idle(Augmentation):
    """It does nothing, so that all is computed at every step."""

    active = True  # type: ignore[assignment]


def noise(classes: int = 4, each: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Images for training and testing, and their labels."""
    numbers = np.random.default_rng(0)
    shape = (2, classes * each, 3, 32, 32)
    return numbers.integers(0, 256, shape, dtype=np.uint8), np.repeat(np.arange(classes), each)


# a layer of 512 units; or with it the last block: four convolutions, one of 1x1, five BatchNorms with their statistics
@pytest.mark.parametrize(("train", "parameters", "statistics"), [
    ("head", 4 * 513, 0),
    ("block", 9 * (256 * 512 + 3 * 512 * 512) + 256 * 512 + 5 * 4 * 512 + 4 * 513, 5 * 2 * 512),
])  # fmt: skip
def test_what_is_not_trained_is_computed_once(
    weights: Path, seen: list[int], train: Any, parameters: int, statistics: int
) -> None:
    """The numbers are those of computing it at every step."""
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2, normalize="imagenet")
    settings: dict[str, Any] = {"model": Torchvision(weights=str(weights), train=train), "seeds": 2, "epochs": 2}
    settings |= {"batch": 4, "strategy": "replay:capacity=4", "precision": "float64"}
    settings |= {"optimizer": "sgd:lr=0.001"}  # in training whatever is above the last bits would grow
    kept = cl.run(stream, **settings)
    # there are two such blocks, and one image more says how large features are
    assert sum(seen) == 2 * (24 + 1) and kept.record["features_once"] is True
    seen.clear()
    each = cl.run(stream, augment=Idle(), **settings)
    assert sum(seen) > 3 * 2 * 24 and each.record["features_once"] is False
    assert kept.record["size"]["parameters"] == each.record["size"]["parameters"] == parameters
    assert kept.record["size"]["sample_bytes"] == each.record["size"]["sample_bytes"] == 3 * 32 * 32
    # the body's weights are 11,176,512, its statistics 9,600
    rest = {"statistics": statistics, "frozen_parameters": 11_176_512 + 9_600 + 4 * 513 - parameters}
    assert all(one.record["size"].items() >= rest.items() for one in (kept, each))
    numbers = parameters + rest["frozen_parameters"]
    assert plots.held(kept) == 8 * numbers + kept.record["size"]["memory_bytes"] + 4 * 3 * 32 * 32
    np.testing.assert_allclose(kept.arrays["loss"], each.arrays["loss"], rtol=1e-6)
    assert np.array_equal(kept.accuracy, each.accuracy)


@pytest.mark.parametrize("strategy", ["owm", "gss:capacity=6", "gem", "generative-replay:layers=9,latent=3"])
def test_whether_there_is_augmentation_decides_nothing_else(weights: Path, strategy: str) -> None:
    """OWM needs linear layers, of which a network has the head that alone is trained; a generator needs images."""
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    settings: dict[str, Any] = {"strategy": strategy, "seeds": 1, "epochs": 1, "batch": 8, "precision": "float64"}
    settings |= {"optimizer": "sgd:lr=0.001", "model": Torchvision(weights=str(weights), train="head")}
    kept, each = cl.run(stream, **settings), cl.run(stream, augment=Idle(), **settings)
    np.testing.assert_allclose(kept.arrays["loss"], each.arrays["loss"], rtol=1e-6)
    assert np.array_equal(kept.accuracy, each.accuracy)
    assert kept.record["features_once"] is (strategy[:4] != "gene") and each.record["features_once"] is False


def test_a_strategy_that_makes_images_does_not_keep_others_from_features(weights: Path) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    model = Torchvision(weights=str(weights), train="head")
    asked = {"benchmark": stream, "strategies": ["generative-replay:layers=9,latent=3", "ewc"], "model": model}
    found = runner.run_plan(config.plan(asked | {"seeds": 1, "epochs": 1}), out=None)
    assert [one.record["features_once"] for one in found] == [False, True]


def test_how_seeds_of_images_are_done_is_not_what_was_found_for_features(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    asked = {"benchmark": stream, "strategies": ["generative-replay:layers=9,latent=3", "ewc"], "seeds": 2, "epochs": 1}

    def choose(recipe: Recipe, training: Training, streams: Any, processes: bool) -> Choice:
        return Choice("map" if len(streams[0].shape) == 1 else "loop", f"of {streams[0].shape}")

    told: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, line: told.append(line))
    monkeypatch.setattr("continual.execution.choose", choose)
    found = runner.run_plan(config.plan(asked | {"model": Torchvision(weights=str(weights), train="head")}), out=None)
    assert [one.record["seeds_as"] for one in found] == ["loop", "map"]
    assert [line for line in told if line.startswith("of ")] == ["of (512,)", "of (3, 32, 32)"]


def test_what_cannot_be_trained_is_refused_before_features_are_computed(weights: Path, seen: list[int]) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2, normalize="imagenet")
    with pytest.raises(BadChain, match="all scaled alike"):
        cl.run(stream, "generative-replay+ewc", model=Torchvision(weights=str(weights), train="head"), seeds=1)
    asked = {"benchmark": stream, "strategies": ["finetune", "generative-replay"], "seeds": 1}
    with pytest.raises(BadChain, match="all scaled alike"):
        runner.run_plan(config.plan(asked | {"model": Torchvision(weights=str(weights), train="head")}), out=None)
    assert not seen


@pytest.mark.parametrize(
    ("strategy", "statistics"),  # each method, and each kind of statistics with and without a Fisher or a teacher
    [("ewc:strength=10", "running"), ("ewc:strength=10", "task"), ("si", "frozen"), ("lwf", "frozen"),
     ("lwf", "running"), ("joint", "task")],
)  # fmt: skip
def test_methods_are_the_same_behind_what_is_computed_once(weights: Path, strategy: str, statistics: Any) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2, scenario="task")
    settings: dict[str, Any] = {"strategy": strategy, "seeds": 1, "epochs": 1, "batch": 8, "precision": "float64"}
    settings |= {"optimizer": "sgd:lr=0.001"}
    settings["model"] = Torchvision(weights=str(weights), train="block", statistics=statistics)
    kept, each = cl.run(stream, **settings), cl.run(stream, augment=Idle(), **settings)
    np.testing.assert_allclose(kept.arrays["loss"], each.arrays["loss"], rtol=1e-6)
    assert np.array_equal(kept.accuracy, each.accuracy)
    assert (kept.record["features_once"], each.record["features_once"]) == (True, False)


def test_where_there_is_no_room_all_is_computed_at_every_step(
    weights: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    asked: dict[str, Any] = {"model": Torchvision(weights=str(weights), train="block"), "seeds": 1, "epochs": 2}
    monkeypatch.setattr(ready, "free_memory", lambda device: 40_000)
    told: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, line: told.append(line))
    result = cl.run(stream, **asked)
    assert sum(seen) > 3 * 2 * 24 and result.record["features_once"] is False
    # 24 images of 256 channels and 2x2 places
    wanted = "what is not trained of the network is computed at every step (once for all, it would take 0.1 MB"
    assert any(wanted in line for line in told), told


@pytest.mark.parametrize(
    ("settings", "processes"), [({}, 1), ({"seeds_as": "loop"}, 1), ({"seeds_as": "processes"}, 2)]
)
def test_processes_each_have_a_part_of_the_room(
    weights: Path, settings: dict[str, Any], processes: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    asked = {"model": Torchvision(weights=str(weights), train="head"), "seeds": 2, "benchmark": stream} | settings
    size = 24 * 512 * 4  # of the features of all images, for which half of what is free may be taken
    monkeypatch.setattr(workers, "cores", lambda: 2)

    def kept(free: int) -> bool:
        monkeypatch.setattr(ready, "free_memory", lambda device: free)
        plan = config.plan(asked)
        return ready.prepare(plan, [Strategy()], tmp_path, torch.device("cpu"), Progress()).way.features

    assert kept(2 * size * processes) and not kept(2 * size * processes - 2 * processes)


@pytest.mark.parametrize(("shown", "taken", "said"), [("unit", "FILE", True), ("imagenet", "FILE", False),
                                                      ("unit", "new", False)])  # fmt: skip
def test_weights_that_were_learnt_from_images_shown_otherwise_are_told(
    weights: Path, shown: str, taken: str, said: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / "imagenet"
    for part in ("train", "val"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            Image.new("RGB", (32, 32), (9, 8, 7)).save(folder / part / name / "one.png")
    model = {"name": "torchvision", "weights": str(weights) if taken == "FILE" else taken}
    plan = config.plan({"benchmark": f"split-imagenet:tasks=2,normalize={shown}", "model": model, "seeds": 1})
    told: list[str] = []
    monkeypatch.setattr(Progress, "note", lambda self, line: told.append(line))
    found = ready.prepare(plan, [Strategy()], tmp_path, torch.device("cpu"), Progress())
    assert found.streams[0].data.classes == ("a", "b")
    assert any("were learnt with normalize=imagenet" in line for line in told) == said


@pytest.mark.parametrize(("shown", "said"), [("unit", True), ("standard", False)])
def test_grey_images_are_best_shown_standardised_to_weights_of_coloured_ones(
    weights: Path, shown: str, said: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, told = {"name": "torchvision", "weights": str(weights)}, list[str]()
    plan = config.plan({"benchmark": f"split-digits:pad=12,normalize={shown}", "model": model, "seeds": 1})
    monkeypatch.setattr(Progress, "note", lambda self, line: told.append(line))
    ready.prepare(plan, [Strategy()], tmp_path, torch.device("cpu"), Progress())
    assert any("give the benchmark normalize=standard" in line for line in told) == said


def test_a_run_goes_on_with_features_as_it_was_begun(weights: Path, tmp_path: Path) -> None:
    x, y = noise()
    stream = Stream.from_arrays(x[0], y, x[1], y, tasks=2)
    plan = config.plan({"benchmark": stream, "model": Torchvision(weights=str(weights), train="block"), "seeds": 1})
    for features in (True, False):
        way = Way("loop", "loop", "device", 2, 2, features)
        found = ready.prepare(plan, [Strategy()], tmp_path, torch.device("cpu"), Progress(), way=way)
        assert found.way.features is features

        class Begun:
            """A run that was begun in the other way, while the first of the command was begun in this one."""

            def begin(self, way: Way) -> Way:
                return replace(way, features=not way.features)

        other = found.begun(Strategy(), Begun(), Progress(), False)  # type: ignore[arg-type]
        assert other.way.features is not features and (other.streams[0].shape == (3, 32, 32)) is features
        assert found.streams[0].shape == ((256, 2, 2) if features else (3, 32, 32))


def small_transformer() -> torchvision.models.VisionTransformer:
    return torchvision.models.VisionTransformer(32, 16, num_layers=3, num_heads=2, hidden_dim=8, mlp_dim=12)


@pytest.mark.parametrize("make", [small_transformer, torchvision.models.resnet18, torchvision.models.resnet50])
def test_the_parts_of_torchvisions_networks_are_the_network(make: Any) -> None:
    whole = make().double().eval()
    whole.heads = whole.fc = nn.Identity()
    x, chain = images(3, side=32), modules.chain(copy.deepcopy(whole))
    torch.testing.assert_close(chain(x).flatten(1), whole(x))
    count = [sum(one.numel() for one in module.parameters()) for module in (chain, whole)]
    assert count[0] == count[1] > 1000


def random_trunk() -> modules.Headed:
    """A network whose parts, which are not called as they come, are drawn anew each time."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Conv2d(4, 5, 3), nn.Flatten())
    return modules.Headed(body, 5 * 12 * 12, 4)


def transformer() -> modules.Headed:
    return modules.Headed(modules.chain(small_transformer_without_head()), 8, 4)


def small_transformer_without_head() -> torchvision.models.VisionTransformer:
    module = small_transformer()
    module.heads = nn.Sequential()
    return module


@pytest.mark.parametrize(
    ("make", "trained", "parts"),
    [
        (random_trunk, ("head.", "body.2."), 2),
        (random_trunk, ("head.", "body.3."), 3),
        (random_trunk, ("head.",), 5),
        (random_trunk, ("head.weight",), 5),
        (transformer, ("head.", "body.encoder_layer_2."), 3),
        (transformer, ("head.", "body.ln."), 4),
        (transformer, ("head.", "body.encoder_layer_1."), 2),
    ],
)
def test_a_network_is_what_stays_and_what_is_behind_it(make: Any, trained: tuple[str, ...], parts: int) -> None:
    net = modules.ModuleNet(make, lambda name: name.startswith(trained))
    still = net.still()
    assert still is not None and still.count == parts
    behind, x, tasks = still.behind(), images(3, side=32), torch.zeros(3, dtype=torch.int64)
    theta = net.initial(key(1), torch.float64)
    assert torch.equal(theta, behind.initial(key(1), torch.float64)) and net.shapes == behind.shapes
    torch.testing.assert_close(behind.logits(theta, still(x, tasks)), net.logits(theta, x))
    one, other = (torch.func.grad(lambda t, f=f: f(t).square().sum())(theta) for f in (  # type: ignore[misc]
        lambda t: behind.logits(t, still(x, tasks)), lambda t: net.logits(t, x)))  # fmt: skip
    torch.testing.assert_close(one, other)
    assert one.any() and isinstance(behind, LinearNet) == (trained == ("head.",))


class Twice(nn.Sequential):
    """A sequence that goes its own way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(2 * x)


def own_sequence() -> modules.Headed:
    whole = random_trunk()
    return modules.Headed(Twice(*whole.body), 5 * 12 * 12, 4)  # type: ignore[arg-type]


def with_part(part: nn.Module) -> Any:
    def make() -> modules.Headed:
        whole = random_trunk()
        return modules.Headed(nn.Sequential(part, *whole.body), 5 * 12 * 12, 4)  # type: ignore[arg-type]

    return make


@pytest.mark.parametrize("make", [own_sequence, with_part(nn.RReLU()), with_part(nn.Dropout(0.5)),
                                  with_part(nn.Sequential(nn.Dropout2d(0.1)))])  # fmt: skip
def test_what_may_be_another_each_time_is_not_kept(make: Any) -> None:
    assert modules.ModuleNet(make, lambda name: name.startswith(("head.", "body.3."))).still() is None


def test_a_batch_norm_that_is_not_trained_stays_as_it_is() -> None:
    net = modules.ModuleNet(with_part(nn.BatchNorm2d(3)), lambda name: name.startswith("head."))
    assert net.still() is not None and not net.statistics and not net.mixes


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook",
                                      "register_full_backward_hook"])  # fmt: skip
@pytest.mark.parametrize("name", ["", "body", "body.0", "body.3", "head"])
def test_what_somebody_watches_is_not_kept(register: str, name: str) -> None:
    """A hook sees each pass of the network, of the images and not of their features."""

    def make(watched: bool = True) -> modules.Headed:
        whole = modules.Headed(random_trunk().body, 5 * 12 * 12, 4)
        if watched:
            getattr(whole.get_submodule(name), register)(lambda *given: None)
        return whole

    assert modules.ModuleNet(lambda: make(False), lambda name: name.startswith("head.")).still() is not None
    assert modules.ModuleNet(make, lambda name: name.startswith("head.")).still() is None


def test_a_layer_that_is_called_again_behind_is_not_kept() -> None:
    def make() -> modules.Headed:
        layer = nn.Conv2d(3, 3, 3, padding=1)
        body = nn.Sequential(layer, nn.Conv2d(3, 3, 3, padding=1), layer, nn.Flatten())
        return modules.Headed(body, 3 * 8 * 8, 4)

    assert modules.ModuleNet(make, lambda name: name.startswith(("head.", "body.1."))).still() is None


@pytest.mark.parametrize("train", ["head", "block"])
def test_seeds_that_show_images_differently_learn_from_their_own_features(weights: Path, train: Any) -> None:
    x, y = noise(classes=2, each=4)
    data = Data.from_arrays(x[0], y, x[1], y)
    stream = permuted(data, tasks=2)
    settings: dict[str, Any] = {
        "seeds": 2,
        "epochs": 1,
        "batch": 8,
        "precision": "float64",
        "strategy": "replay:capacity=4",
    }
    settings |= {"model": Torchvision(weights=str(weights), train=train), "optimizer": "sgd:lr=0.001"}
    loop, mapped = (cl.run(stream, seeds_as=how, **settings) for how in ("loop", "map"))
    each = cl.run(stream, seeds_as="loop", augment=Idle(), **settings)
    assert loop.record["features_once"] and mapped.record["features_once"] and not each.record["features_once"]
    for found in (loop, mapped):
        np.testing.assert_allclose(found.arrays["loss"], each.arrays["loss"], rtol=1e-6)
    assert not np.allclose(each.arrays["loss"][0], each.arrays["loss"][1], rtol=1e-5)


@pytest.mark.parametrize("trained", [("head.", "body."), ("head.", "body.0.weight")])
def test_nothing_stays_where_the_first_part_is_trained(trained: tuple[str, ...]) -> None:
    assert modules.ModuleNet(random_trunk, lambda name: name.startswith(trained)).still() is None


def test_a_network_that_goes_its_own_way_is_computed_at_every_step() -> None:
    class Own(modules.ModuleNet):
        def forward(self, theta: torch.Tensor, x: torch.Tensor, tasks: torch.Tensor | None = None) -> Any:
            return super().forward(theta, 2 * x, tasks)

    assert Own(random_trunk, lambda name: name.startswith("head.")).still() is None


@pytest.mark.parametrize("trained", [("head.",), ("head.bias",)])
def test_a_body_that_is_no_sequence_stays_as_a_whole(trained: tuple[str, ...]) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(48, 5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.layer(x.flatten(1)))

    net = modules.ModuleNet(lambda: modules.Headed(Body(), 5, 4), lambda name: name.startswith(trained))
    still, x, tasks = net.still(), images(3, side=4), torch.zeros(3, dtype=torch.int64)
    assert still is not None
    theta = net.initial(key(1), torch.float64)
    torch.testing.assert_close(still.behind().logits(theta, still(x, tasks)), net.logits(theta, x))


def test_parts_without_parameters_are_not_worth_keeping() -> None:
    def make() -> modules.Headed:
        return modules.Headed(nn.Sequential(nn.Flatten(), nn.Linear(48, 5)), 5, 4)

    assert modules.ModuleNet(make).still() is None


@pytest.mark.parametrize("train", ["head", "block"])
def test_features_are_those_of_the_images_that_are_used(weights: Path, train: Any) -> None:
    x, y = noise(each=10)
    net = Torchvision(weights=str(weights), train=train).build((3, 32, 32), 4)
    theta = net.initial(key(0), torch.float32)
    for options in ({"limit": 2}, {"limit": 2, "validation": 0.2}):
        whole = Stream.from_arrays(x[0], y, x[1], y, tasks=2, **options)
        behind, (few,) = frozen.features_once(net, [whole], torch.float32)
        used = sum(len(task.train) + len(task.validation) for task in whole.tasks)
        assert len(few.samples.pixels) == used < 40

        def same(kept: Any, samples: Any, rows: torch.Tensor, behind: Net = behind) -> None:
            given = net.features(theta, samples.images(rows, torch.float32))
            got = behind.features(theta, kept.images(rows, torch.float32))
            torch.testing.assert_close(got, given, rtol=1e-4, atol=1e-5)

        for task in whole.tasks:
            for rows in (task.train, task.validation):
                same(few.samples, whole.samples, rows)
            same(few.test_samples, whole.test_samples, task.test)


def class_folders(folder: Path, classes: int, train: int, test: int) -> None:
    """Noise as images in class folders."""
    numbers = np.random.default_rng(0)
    for part, each in (("train", train), ("val", test)):
        for label in range(classes):
            (folder / part / f"class{label}").mkdir(parents=True)
            for number in range(each):
                image = Image.fromarray(numbers.integers(0, 256, (32, 32, 3), dtype=np.uint8))
                image.save(folder / part / f"class{label}" / f"{number}.png")


def test_features_of_packed_images_are_kept_for_other_runs(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also for those with other tasks, but not for other weights, another way to show images, or other images."""
    class_folders(tmp_path / "birds", classes=4, train=4, test=2)
    computed: list[int] = []
    features = frozen._features

    def counted(still: Any, samples: Any, like: Any) -> torch.Tensor:
        computed.append(len(samples.image))
        return features(still, samples, like)

    monkeypatch.setattr(frozen, "_features", counted)
    model, asked = Torchvision(weights=str(weights), train="head"), "split-imagenet:folder=birds,size=32,tasks="

    def run(benchmark: str, model: Torchvision = model, **settings: Any) -> Any:
        computed.clear()
        return cl.run(benchmark, "finetune", model=model, seeds=2, epochs=1, batch=4, data=tmp_path, **settings)

    monkeypatch.setattr("continual.progress.BETWEEN", 0.0)
    monkeypatch.setattr(frozen, "CHUNK", 6)
    first = run(f"{asked}2")
    assert computed == [16, 8]
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("features: ")]
    assert [line.partition(" after ")[0] for line in told] == [
        "features: 1 of 3",
        "features: 2 of 3",
        "features: 1 of 2",
    ]
    folder = tmp_path / "packed" / "features"
    assert len(list(folder.iterdir())) == 2
    again = run(f"{asked}2")
    assert computed == [] and np.array_equal(first.arrays["loss"], again.arrays["loss"])
    run(f"{asked}4")
    assert computed == [], "other tasks of the same images"
    run(f"{asked}2,normalize=channel")
    run(f"{asked}2", precision="float64")
    assert len(list(folder.iterdir())) == 6
    other = tmp_path / "other.pt"
    torch.save({name: 1.01 * value for name, value in torch.load(weights).items()}, other)
    run(f"{asked}2", model=replace(model, weights=str(other)))
    assert computed == [16, 8] and len(list(folder.iterdir())) == 8
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(BadData, match=r"is damaged .*; delete this file, and they are computed again"):
        run(f"{asked}2")


def test_features_that_cannot_be_kept_are_computed(weights: Path, tmp_path: Path) -> None:
    class_folders(tmp_path / "birds", classes=2, train=2, test=1)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "features").write_text("no folder")
    with pytest.warns(Notice, match="cannot be written .*; until then features are computed at every start"):
        cl.run("split-imagenet:folder=birds,size=32,tasks=2", "finetune", seeds=1, data=tmp_path,
               model=Torchvision(weights=str(weights), train="head"))  # fmt: skip


def test_features_are_shared_where_images_are_shown_alike(weights: Path) -> None:
    numbers = np.random.default_rng(0)
    x, y = numbers.integers(0, 256, (2, 8, 3, 32, 32), dtype=np.uint8), np.repeat(np.arange(2), 4)
    net = Torchvision(weights=str(weights), train="head").build((3, 32, 32), 2)
    data = Data.from_arrays(x[0], y, x[1], y)
    one, other, again = (Split(tasks=2, normalize=given).build(data) for given in ("channel", "imagenet", "channel"))
    _, found = frozen.features_once(net, [one, other, again], torch.float32)
    held = {id(stream.samples.pixels): stream.samples.pixels for stream in found}
    assert [len(pixels) for pixels in held.values()] == [16], "of two ways to show eight images, for all"
    first, second, third = (stream.samples.images(torch.arange(8), torch.float32) for stream in found)
    assert torch.equal(first, third) and not torch.allclose(first, second)


def test_batch_norm_that_is_not_trained_keeps_its_statistics(weights: Path) -> None:
    net = Torchvision(weights=str(weights), train="block").build((3, 32, 32), 5)
    assert isinstance(net, modules.ModuleNet)
    assert net.statistics == 2 * 512 * 5 and all("layer4" in name for name in net.buffers)
    assert "body.bn1.running_mean" in net.kept


def test_batch_norm_by_task_that_is_not_trained_has_the_given_statistics_in_each_task(weights: Path) -> None:
    x, tasks = images(side=32).float(), torch.arange(8) % 3
    by_task, running = (
        Torchvision(weights=str(weights), train="block", statistics=how).build((3, 32, 32), 5, tasks=3)  # type: ignore[arg-type]
        for how in ("task", "running")
    )
    one, other = (net.initial(key(0), torch.float32) for net in (by_task, running))
    torch.testing.assert_close(by_task.logits(one, x, tasks), running.logits(other, x, tasks))
    assert isinstance(by_task, modules.ModuleNet)
    _, fresh = by_task.learn(one, x, tasks)
    assert fresh is not None and len(fresh) == 2 * 512 * 5 * 3, "those of the last block, in each task"
    one[-by_task.statistics :] = fresh
    by_task.hand_on(one, 0)
    torch.testing.assert_close(by_task.logits(one, x, tasks), by_task.logits(one, x, torch.zeros_like(tasks)))
    before = other.clone()
    running.hand_on(other, 0)
    assert torch.equal(other, before), "where all tasks have the same there is nothing to do"


@pytest.mark.parametrize("optimizer", ["adam", "sgd:lr=0.05,momentum=0.9", "adagrad"])
@pytest.mark.parametrize("model", [CNN(channels=(4, 6), units=8), replace(SMALL, width=4)], ids=["cnn", "resnet"])
def test_seeds_give_the_same_however_they_are_done_and_images_lie(model: Any, optimizer: str) -> None:
    """Side by side images have their channels first, one by one last, and so have the gradients of convolutions."""
    found = [
        cl.run(photographs(each=12), "replay:capacity=20", seeds=2, epochs=4, batch=8, model=model, optimizer=optimizer,
               seeds_as=way, precision="float64", device="cpu")
        for way in ("map", "loop")
    ]  # fmt: skip
    first, second = (one.arrays["loss"][:, :20] for one in found)  # later rounding has grown
    np.testing.assert_allclose(first, second, rtol=1e-6)
    assert np.ptp(found[0].arrays["loss"]) > 0.1
