"""Networks with parameters of a strategy's own: around the network they leave it as it is, in a step as well."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import pytest
import torch
from test_own_networks import CPU, SIZE, body, learners_of
from torch import nn

from continual.conformance import TRAINING, Failed, not_inert, small_stream
from continual.errors import BadChain
from continual.learning import modules
from continual.learning.models import Extended, Gated, LinearNet, Net, Out
from continual.learning.modules import ModuleNet
from continual.learning.norms import BatchNorm
from continual.learning.optimizers import SGD, Constant
from continual.learning.plain import plain
from continual.learning.seeds import Learners, Recipe
from continual.learning.strategy import Batch, Chain, Strategy, cross_entropy
from continual.learning.train import Watch, schedule, train
from continual.strategies import HAT, L2, Finetune, XdG
from continual.strategies.hat import Attention
from continual.strategies.xdg import ContextGates
from continual.streams.rng import key, seed_pytorch
from continual.streams.stream import Stream, Task

Tensor = torch.Tensor
EXTRA = {"projection.weight": (3, 10), "projection.bias": (3,)}


class Projected(Extended):
    """A network with a linear layer behind its features."""

    def project(self, theta: Tensor, features: Tensor) -> Tensor:
        p = self.parameters(theta)
        return nn.functional.linear(features, p["projection.weight"], p["projection.bias"])


@dataclass(frozen=True)
class Projecting(Strategy):
    """Fine-tuning, and what is projected shall be small, as much as ``much`` says."""

    first_task_like_finetuning: ClassVar[bool] = False

    much: float = 0.5
    kind: Any = Projected

    def extend(self, net: Net, stream: Stream) -> Net:
        extended: Net = self.kind(net, EXTRA)
        return extended

    def loss(self, net: Net, theta: Tensor, memory: Any, batch: Batch, out: Out, task: Task) -> Tensor:
        usual = cross_entropy(task.active(out.logits, batch.task), batch.y, batch.weight)
        if not self.much:
            return usual
        return usual + self.much * cast(Projected, net).project(theta, out.features).square().mean()


MIDDLES: dict[str, Any] = {
    "nothing": lambda: (),
    "BatchNorm": lambda: (nn.BatchNorm1d(10, momentum=0.3),),
    "dropout": lambda: (nn.Dropout(0.5),),
    "both": lambda: (nn.BatchNorm1d(10), nn.Dropout(0.5)),
    "frozen": lambda: (nn.BatchNorm1d(10),),
    "by task": lambda: (nn.Unflatten(1, (10, 1, 1)), BatchNorm(10, tasks=3), nn.Flatten()),
}


def how(middle: Any) -> dict[str, str]:
    """What becomes of the statistics."""
    return {"statistics": "frozen"} if middle is MIDDLES["frozen"] else {}


each_middle = pytest.mark.parametrize("middle", MIDDLES.values(), ids=list(MIDDLES))


@each_middle
@pytest.mark.parametrize("seeds", [(0,), (0, 1)])
def test_what_is_not_used_changes_nothing(middle: Any, seeds: tuple[int, ...]) -> None:
    if len(seeds) > 1 and any(isinstance(one, nn.Dropout) for one in middle()):
        pytest.skip("what drops units is not mapped over seeds")
    make = lambda: body(*middle())  # noqa: E731
    alone, extended = (learners_of(make, one, seeds, **how(middle)) for one in (Finetune(), Projecting(much=0.0)))
    start = extended.theta.clone()
    found = [train(learners, TRAINING, Watch())[0] for learners in (alone, extended)]
    assert torch.equal(extended.theta[..., 33:], alone.theta) and torch.equal(extended.theta[..., :33], start[..., :33])
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())
    assert extended.net.statistics == alone.net.statistics and extended.net.mixes == alone.net.mixes
    assert extended.net.work(SIZE) == alone.net.work(SIZE) + 33 and extended.net.widest(SIZE) == alone.net.widest(SIZE)


def test_it_learns_as_a_loop_of_pytorch_s_modules_does() -> None:
    make = lambda: body(nn.BatchNorm1d(10, momentum=0.3), nn.Dropout(0.5))  # noqa: E731
    learners, training = learners_of(make, Projecting()), replace(TRAINING, batch=5)
    stream, net, mine, projection = learners.streams[0], learners.net, make().double(), nn.Linear(10, 3).double()
    begun = net.parameters(learners.theta.clone())
    mine.load_state_dict(begun, strict=False)
    projection.load_state_dict({name.partition(".")[2]: begun[name] for name in EXTRA})
    train(learners, training, Watch())
    optimizer = torch.optim.SGD([*mine.parameters(), *projection.parameters()], 0.1)
    for index, task in enumerate(stream.tasks):
        for number, rows in enumerate(schedule(task.train, training, torch.tensor(0), index)):
            seed_pytorch(CPU, 0, index, number)
            out = mine(stream.samples.images(rows, torch.float64))
            logits = out.logits.masked_fill(~task.seen_units, -torch.inf)
            loss = nn.functional.cross_entropy(logits, stream.samples.y[rows])
            optimizer.zero_grad()
            (loss + 0.5 * projection(out.features).square().mean()).backward()
            optimizer.step()
    wanted = {**dict(mine.named_parameters()), **dict(mine.named_buffers())}
    wanted |= {f"projection.{name}": value for name, value in projection.named_parameters()}
    for name, value in net.parameters(learners.theta).items():
        torch.testing.assert_close(value, wanted[name].detach())


def test_seeds_side_by_side_learn_as_each_by_itself() -> None:
    make = lambda: body(nn.BatchNorm1d(10))  # noqa: E731
    both = learners_of(make, Projecting(), (0, 1))
    train(both, TRAINING, Watch())
    for seed in (0, 1):
        one = learners_of(make, Projecting(), (seed,))
        train(one, TRAINING, Watch())
        torch.testing.assert_close(both.theta[seed], one.theta)


def test_how_extra_parameters_begin() -> None:
    inner = LinearNet((math.prod(SIZE), 10, 6))
    net = Projected(inner, EXTRA)
    p = net.parameters(net.initial(key(3), torch.float64))
    assert not p["projection.bias"].any() and p["projection.weight"].abs().max() <= 1 / math.sqrt(10)
    assert p["projection.weight"].unique().numel() == 30, "they are drawn"
    assert torch.equal(net.inside(net.initial(key(3), torch.float64)), inner.initial(key(3), torch.float64))
    with pytest.raises(BadChain, match=r"parameters named head\.bias already"):
        Projected(inner, {"head.bias": (3,)})


def test_what_is_known_of_the_network_is_known_of_the_extended_one() -> None:
    front = nn.Sequential(nn.Conv2d(1, 4, 1, 2), nn.Flatten())
    inner = ModuleNet(lambda: modules.Headed(copy.deepcopy(front), 16, 6), lambda name: "head" in name)
    net = Projected(inner, {"projection.weight": (3, 16)})
    assert (net.convolves, net.skips, net.frozen) == (inner.convolves, inner.skips, inner.frozen) == (True, True, 8)
    net.mapped = True
    assert net.mapped and net.inner.mapped and not inner.mapped, "the given one may be used for one seed"


class Counts(nn.Module):
    """A layer that counts its calls in what is no part of θ."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def test_what_writes_beside_theta_is_refused_also_there() -> None:
    with pytest.raises(BadChain, match=r"the network writes to its body\.2\.calls"):
        train(learners_of(lambda: body(Counts()), Projecting(much=0.0)), TRAINING, Watch())


class Around(Strategy):
    """It puts the network into another one each time, which is the same."""

    def network(self, net: Net, memory: Any) -> Net:
        return net


def test_only_one_of_a_chain_makes_a_network() -> None:
    for other in (Around(), HAT(), XdG()):
        with pytest.raises(BadChain, match=rf"^Projecting and {type(other).__name__} cannot be chained: each puts"):
            Chain((Projecting(much=0.0), L2(), other))
    train(learners_of(lambda: body(nn.BatchNorm1d(10)), Chain((L2(), Projecting()))), TRAINING, Watch())


@pytest.mark.parametrize("strategy", [HAT(), XdG()])
def test_what_has_gates_drops_nothing(strategy: Strategy) -> None:
    """A network of linear layers whose step is another one, which gates would not see."""

    class Dropping(LinearNet):
        def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
            return self.forward(theta, x * (x > 0.5), tasks), None

    stream = small_stream(0, "task")
    recipe = Recipe(Dropping((9, 10, 6)), strategy, SGD(lr=0.1), Constant(), keep_optimizer=True, precision="float64")
    with pytest.raises(BadChain, match="gates are for networks that learn as they answer, and a Dropping"):
        train(Learners(recipe, [stream], [0]), TRAINING, Watch())


class Naive(Net):
    """A network around another one that knows nothing of what that does in a step."""

    def __init__(self, inner: Net, extra: dict[str, Any]) -> None:
        super().__init__(inner.shapes | extra)
        self.inner, self.head = inner, inner.head

    def initial(self, key: Any, dtype: torch.dtype) -> Tensor:
        start = self.inner.initial(key, dtype)
        return torch.cat([start, start.new_zeros(self.size - self.inner.size)])

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return self.inner.forward(theta[..., : self.inner.size], x, tasks)


class Behind(Naive):
    """It learns as the other one does, and has its own parameters where the statistics should be."""

    def __init__(self, inner: Net, extra: dict[str, Any]) -> None:
        super().__init__(inner, extra)
        self.statistics = inner.statistics

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        return self.inner.learn(theta[..., : self.inner.size], x, tasks, fixed)


class Cosine(Extended):
    """A head of its own, said once."""

    def answer(self, p: dict[str, Tensor], out: Out) -> Out:
        normal = nn.functional.normalize
        return out._replace(logits=p["scale"] * normal(out.features) @ normal(p["head.weight"]).T)

    def start(self, key: Any, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, 5.0)


class CosineTwice(Extended):
    """The same, written into both ways through the network."""

    def cosine(self, theta: Tensor, out: Out) -> Out:
        return Cosine.answer(cast(Cosine, self), self.parameters(theta), out)

    start = Cosine.start

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return self.cosine(theta, self.inner.forward(self.inside(theta), x, tasks))

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        out, statistics = self.inner.learn(self.inside(theta), x, tasks, fixed)
        return self.cosine(theta, out), statistics


@dataclass(frozen=True)
class Headed(Strategy):
    """Fine-tuning with another head."""

    first_task_like_finetuning: ClassVar[bool] = False

    kind: Any = Cosine

    def extend(self, net: Net, stream: Stream) -> Net:
        made: Net = self.kind(net, {"scale": (1,)})
        return made


@each_middle
def test_a_head_of_its_own_is_that_of_a_step_and_of_a_test(middle: Any) -> None:
    one, other, usual = (
        learners_of(lambda: body(*middle()), strategy) for strategy in (Headed(), Headed(CosineTwice), Finetune())
    )
    measured = [train(group, TRAINING, Watch())[0] for group in (one, other, usual)]
    assert torch.equal(one.theta, other.theta)
    for name, values in measured[0].items():
        assert torch.equal(values.nan_to_num(-1), measured[1][name].nan_to_num(-1)), name
    assert not torch.equal(measured[0]["loss"], measured[2]["loss"])
    p = one.net.parameters(one.theta)
    assert abs(float(p["scale"]) - 5) > 1e-3, "it was not trained"
    x = torch.randn(3, *SIZE, dtype=one.theta.dtype)
    with torch.no_grad():
        out = one.net.forward(one.theta, x, torch.zeros(3, dtype=torch.int64))
        wanted = [[float(p["scale"]) * float(f @ w / (f.norm() * w.norm())) for w in p["head.weight"]]
                  for f in out.features]  # fmt: skip
    torch.testing.assert_close(out.logits, torch.tensor(wanted, dtype=x.dtype))
    with pytest.raises(BadChain, match=r"the strategy's Cosine, .* whose head is its own"):
        plain(one.net, one.theta)


def test_gates_around_a_head_of_its_own_leave_it() -> None:
    inner = Cosine(LinearNet((4, 3, 2)), {"scale": (1,)})
    net = GatedForward(inner)
    theta, x = net.initial(key(0), torch.float64), torch.randn(5, 4, dtype=torch.float64)
    tasks = torch.zeros(5, dtype=torch.int64)
    assert torch.equal(net.logits(theta, x, tasks), inner.logits(inner.initial(key(0), torch.float64), x))


class ForwardAlone(Extended):
    """What a test asks, and a step does not."""

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return super().forward(theta, x, tasks)


class ApplyAlone(Extended):
    """What neither asks."""

    def apply(self, p: dict[str, Tensor], x: Tensor, gates: Any = None) -> Out:
        return super().apply(p, x, gates)


class LogitsAlone(Extended):
    """What most tests ask, and no step."""

    def logits(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        return 2 * super().logits(theta, x, tasks)


class FeaturesAlone(Extended):
    """What prototypes ask."""

    def features(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        return 2 * super().features(theta, x, tasks)


class Both(ForwardAlone, ApplyAlone):
    """Neither is that of a step."""


class GatedApply(Gated):
    """Gates that go by way of what the network inside applies."""

    def gates(self, p: dict[str, Tensor], tasks: Tensor) -> list[Tensor]:
        return [torch.ones(len(tasks), units, dtype=p["head.weight"].dtype) for units in self.inner.hidden]

    apply = ApplyAlone.apply


class LearnAlone(Extended):
    """Noise in a step, and none in a test: what a step does is said."""

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        return super().learn(theta, x, tasks, fixed)


class GatedForward(GatedApply):
    """A forward pass of its own, which that of a step is as well."""

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return super().forward(theta, x, tasks)


@pytest.mark.parametrize(("kind", "unheard"), [
    (ForwardAlone, ["forward"]), (ApplyAlone, ["apply"]), (Both, ["forward"]),
    (LogitsAlone, ["logits"]), (FeaturesAlone, ["features"]), (GatedApply, ["apply"]),
    (Extended, []), (Cosine, []), (CosineTwice, []), (LearnAlone, []), (GatedForward, []), (Attention, []),
    (ContextGates, []),
])  # fmt: skip
def test_a_way_through_the_network_that_a_step_does_not_take_is_refused(kind: Any, unheard: list[str]) -> None:
    net = kind.__new__(kind)
    assert net.unheard() == unheard
    if unheard and not issubclass(kind, Gated):
        with pytest.raises(BadChain, match=rf"extend gives a {kind.__name__} with {unheard[0]} of its own, .*answer"):
            learners_of(body, Headed(kind))


def test_parameters_that_nothing_is_made_of_are_fine_tuning() -> None:
    with pytest.raises(Failed, match="the strategy does nothing"):
        not_inert(Headed(Extended))
    not_inert(Headed())


class Forgetful(Extended):
    """It says nothing of what becomes of statistics between tasks."""

    fixed, hand_on = Net.fixed, Net.hand_on


@each_middle
@pytest.mark.parametrize("kind", [Naive, Behind, Forgetful])
def test_what_would_be_lost_is_refused(middle: Any, kind: Any) -> None:
    net = ModuleNet(lambda: body(*middle()))
    dropped = kind is Naive and net.mixes and not net.statistics
    if not (net.statistics or dropped):
        learners_of(lambda: body(*middle()), Projecting(much=0.0, kind=kind))
        return
    lost = "drops units" if dropped else "running statistics"
    if kind is Forgetful:
        lost += r".* \(it does not say fixed, hand_on\)"
    with pytest.raises(BadChain, match=rf"extend gives a {kind.__name__}.* {lost}.*models\.Extended"):
        learners_of(lambda: body(*middle()), Projecting(much=0.0, kind=kind))


@dataclass(frozen=True)
class Wrapping(Strategy):
    """Fine-tuning that puts the network into another one before every hook."""

    kind: Any = Extended
    extra: Any = None

    def network(self, net: Net, memory: Any) -> Net:
        wrapped: Net = self.kind(net, self.extra or {})
        return wrapped


@each_middle
def test_what_the_network_hook_gives_is_asked_the_same(middle: Any) -> None:
    plain, wrapped = (learners_of(lambda: body(*middle()), one) for one in (Finetune(), Wrapping()))
    for group in (plain, wrapped):
        train(group, TRAINING, Watch())
    assert torch.equal(plain.theta, wrapped.theta)
    with pytest.raises(BadChain, match="network gives a Projected with other parameters than θ has"):
        learners_of(lambda: body(*middle()), Wrapping(Projected, EXTRA))
    if plain.net.mixes:
        with pytest.raises(BadChain, match=r"network gives a Naive around a network that .* in silence"):
            learners_of(lambda: body(*middle()), Wrapping(Naive))


class Twice(Net):
    """Two networks, the second of which takes no part; with the statistics of both at the end of θ."""

    def __init__(self, inner: ModuleNet, extra: dict[str, Any]) -> None:
        cut = len(inner.shapes) - len(inner.buffers)
        first, last = (dict(list(inner.shapes.items())[part]) for part in (slice(cut), slice(cut, None)))
        other = [{f"other.{name}": shape for name, shape in part.items()} for part in (first, last)]
        super().__init__(other[0] | first | other[1] | last)
        self.inner, self.head, self.statistics = inner, inner.head, 2 * inner.statistics

    def inside(self, theta: Tensor) -> Tensor:
        p = self.parameters(theta)
        return torch.cat([p[name].flatten() for name in self.inner.shapes])

    def initial(self, key: Any, dtype: torch.dtype) -> Tensor:
        found = self.inner.parameters(self.inner.initial(key, dtype))
        return torch.cat([found[name.removeprefix("other.")].flatten() for name in self.shapes])

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return self.inner.forward(self.inside(theta), x, tasks)

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        out, after = self.inner.learn(self.inside(theta), x, tasks, fixed)
        assert after is not None
        count = 2 * self.inner.statistics
        return out, torch.cat([theta[..., -count : -count // 2].detach(), after])

    def fixed(self, theta: Tensor) -> bool:
        return False

    def hand_on(self, theta: Tensor, index: int) -> None:
        """There are no statistics of tasks."""


class Stacked(Net):
    """The network by itself, its statistics under one name."""

    def __init__(self, inner: ModuleNet, extra: dict[str, Any]) -> None:
        first = list(inner.shapes.items())[: len(inner.shapes) - len(inner.buffers)]
        super().__init__({**dict(first), "statistics": (1, inner.statistics)})
        self.inner, self.head, self.statistics = inner, inner.head, inner.statistics
        self.initial = inner.initial  # type: ignore[method-assign]

    def forward(self, theta: Tensor, x: Tensor, tasks: Tensor | None = None) -> Out:
        return self.inner.forward(theta[:], x, tasks)  # without the names of this one

    def learn(self, theta: Tensor, x: Tensor, tasks: Tensor, fixed: bool = False) -> tuple[Out, Tensor | None]:
        return self.inner.learn(theta[:], x, tasks, fixed)

    def fixed(self, theta: Tensor) -> bool:
        return False

    def hand_on(self, theta: Tensor, index: int) -> None:
        """There are no statistics of tasks."""


@pytest.mark.parametrize("kind", [Twice, Stacked])
def test_a_network_with_statistics_of_its_own_is_taken(kind: Any) -> None:
    make = lambda: body(nn.BatchNorm1d(10))  # noqa: E731
    alone, both = learners_of(make, Finetune()), learners_of(make, Projecting(much=0.0, kind=kind))
    for learners in (alone, both):
        train(learners, TRAINING, Watch())
    theta = cast(Twice, both.net).inside(both.theta) if kind is Twice else both.theta
    torch.testing.assert_close(theta, alone.theta)
