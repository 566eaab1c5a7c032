"""Networks of one's own that are PyTorch modules: what drops units and what normalises by the batch."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from test_resume import Killed, outcome
from torch import nn
from torchvision.ops import StochasticDepth

import continual as cl
from continual import ready
from continual.conformance import TRAINING, small_stream, suited_stream
from continual.errors import BadChain, BadOption
from continual.learning import modules, norms
from continual.learning.importance import fisher
from continual.learning.models import Net
from continual.learning.optimizers import SGD, Constant
from continual.learning.plain import plain as ordinary
from continual.learning.seeds import Learners, Recipe
from continual.learning.strategy import Strategy
from continual.learning.train import State, Watch, program_of, schedule, steps_done, train
from continual.learning.training import Training
from continual.options import Configured, option
from continual.strategies import CWRStar, DERPlusPlus, Finetune, PackNet, Replay, SharedTrunk, gss
from continual.streams.rng import key, pytorch_left_alone, seed_pytorch
from continual.streams.stream import Stream

CPU = torch.device("cpu")
SIZE = small_stream(0).shape


def body(*middle: nn.Module) -> modules.Headed:
    """A small network around some layers of ten units."""
    inputs = int(np.prod(SIZE))
    return modules.Headed(nn.Sequential(nn.Flatten(), nn.Linear(inputs, 10), *middle, nn.ReLU()), 10, 6)


class Drops(nn.Module):
    """A layer that somebody wrote, which drops units where it learns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.3, self.training)


class Path(Drops):
    """The same, beside an attribute that says of something else that it drops nothing."""

    dropout = 0


def wrapped(function: Any) -> Any:
    @functools.wraps(function)
    def other(*given: Any) -> Any:
        return function(*given)

    return other


class Within(nn.Module):
    """It looks whether it learns within a function of a decorated one."""

    @wrapped
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return next(nn.functional.dropout(one, 0.3, self.training) for one in (x,))


class Tokens(nn.Module):
    """Attention between ten tokens of four numbers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.into, self.layer = nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 8, dropout, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layer(self.into(x.unsqueeze(-1)))[..., 0]
        return out


MADE: dict[str, Callable[[], modules.Headed]] = {
    "dropout": lambda: body(nn.Dropout(0.5)),
    "alpha dropout": lambda: body(nn.AlphaDropout(0.2)),
    "one's own": lambda: body(Drops()),
    "one's own, wrapped": lambda: body(Within()),
    "attention": lambda: body(Tokens(0.2)),
    "both": lambda: body(nn.BatchNorm1d(10), nn.Dropout(0.5)),
    "random slopes": lambda: body(nn.RReLU(), nn.Linear(10, 10)),
}
DROPPING = pytest.mark.parametrize("make", MADE.values(), ids=MADE)


def learners_of(make: Any, strategy: Strategy | None = None, seeds: tuple[int, ...] = (0,), **given: Any) -> Learners:
    strategy = strategy or Finetune()
    streams = [suited_stream(strategy, seed) for seed in seeds]
    net = modules.ModuleNet(make, **given)
    recipe = Recipe(net, strategy, SGD(lr=0.1), Constant(), keep_optimizer=True, precision="float64")
    return Learners(recipe, streams, list(seeds))


def trained(make: Any, training: Training = TRAINING, watch: Watch | None = None, **given: Any) -> dict[str, bytes]:
    learners = learners_of(make, **given)
    arrays, stopped = train(learners, training, watch or Watch())
    assert not stopped
    return outcome(learners, arrays)


@DROPPING
@pytest.mark.parametrize(
    "strategy", [Finetune(), Replay(capacity=5), DERPlusPlus(capacity=5)], ids=["", "replay", "der-pp"]
)
def test_what_is_dropped_is_a_matter_of_seed_task_and_step(make: Any, strategy: Strategy) -> None:
    """Whatever was drawn before, and whoever draws between."""
    torch.manual_seed(1)
    first = trained(make, strategy=strategy)
    torch.rand(7)
    before = torch.get_rng_state()
    assert trained(make, strategy=strategy, watch=Watch(lambda *_: torch.rand(3))) == first
    assert torch.equal(torch.get_rng_state(), before), "the generator of who calls is as it was"
    assert trained(make, strategy=strategy, seeds=(1,)) != first


@pytest.mark.usefixtures("often")
@DROPPING
def test_what_is_dropped_is_the_same_recorded(make: Any) -> None:
    training = replace(TRAINING, batch=7, epochs=3, evaluate_every=2)
    learners = learners_of(make)
    arrays, _ = train(learners, training, Watch())
    assert program_of(steps_done(learners, training)) == "captured"
    assert outcome(learners, arrays) == trained(make, replace(training, program="eager"))


@DROPPING
@pytest.mark.parametrize("at", [(0, 2), (1, 1), (2, 0)])
def test_what_is_dropped_is_the_same_after_an_interruption(make: Any, at: tuple[int, int]) -> None:
    kept: list[State] = []

    def stop(task: int, step: int, steps: int) -> None:
        if kept:
            raise Killed

    def keep(state: State) -> None:
        kept.append(State({name: value.clone() for name, value in state.tensors.items()}, state.facts))

    whole = trained(make, replace(TRAINING, epochs=3))
    where = [0, 0]

    def due(done: int) -> bool:
        where[0] += done == 0
        return (where[0], done) == at

    with pytest.raises(Killed):
        trained(make, replace(TRAINING, epochs=3), Watch(stop, due=due, keep=keep))
    assert trained(make, replace(TRAINING, epochs=3), Watch(start=kept[0])) == whole


def test_it_learns_as_a_loop_of_pytorch_s_modules_does() -> None:
    """Dropout and BatchNorm, with a BatchNorm's own momentum: training mode in a step, and not where it is measured."""
    learners = learners_of(lambda: body(nn.BatchNorm1d(10, momentum=0.3), nn.Dropout(0.5)))
    stream, training, net = learners.streams[0], replace(TRAINING, batch=5), learners.net
    mine = body(nn.BatchNorm1d(10, momentum=0.3), nn.Dropout(0.5)).double()
    mine.load_state_dict(net.parameters(learners.theta.clone()), strict=False)
    arrays, _ = train(learners, training, Watch())
    optimizer, losses = torch.optim.SGD(mine.parameters(), 0.1), []
    for index, task in enumerate(stream.tasks):
        for number, rows in enumerate(schedule(task.train, training, torch.tensor(0), index)):
            seed_pytorch(CPU, 0, index, number)
            logits = mine(stream.samples.images(rows, torch.float64)).logits
            logits = logits.masked_fill(~task.seen_units, -torch.inf)
            loss = nn.functional.cross_entropy(logits, stream.samples.y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
    torch.testing.assert_close(arrays["loss"], torch.stack(losses))
    found, wanted = net.parameters(learners.theta), {**dict(mine.named_parameters()), **dict(mine.named_buffers())}
    assert {"body.2.running_mean", "body.2.running_var"} < found.keys()
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name].detach())
    mine.eval()
    for j, task in enumerate(stream.tasks):
        logits = mine(stream.test_samples.images(task.test, torch.float64)).logits
        right = (logits.argmax(-1) == stream.test_samples.y[task.test]).double().mean()
        torch.testing.assert_close(arrays["accuracy"][-1, j], right.detach())


@DROPPING
def test_only_what_learns_drops(make: Any) -> None:
    net = modules.ModuleNet(make)
    theta, x, tasks = net.initial(key(0), torch.float64), torch.randn(9, *SIZE).double(), torch.zeros(9).long()
    assert net.mixes and torch.equal(net.logits(theta, x), net.logits(theta, x))
    learnt = [net.learn(theta, x, tasks)[0].logits for _ in range(2)]
    assert not torch.equal(*learnt)
    assert torch.equal(net.logits(theta, x), net.logits(theta, x)), "afterwards, too"


@pytest.mark.parametrize(("layer", "changes"), [
    (nn.Dropout(0.1), True), (nn.Dropout(0.0), False), (nn.MultiheadAttention(4, 2, 0.1), True),
    (nn.MultiheadAttention(4, 2), False), (nn.LSTM(2, 2, 2, dropout=0.1), True), (nn.LSTM(2, 2), False),
    (nn.RReLU(), True), (nn.Linear(2, 2), False), (nn.GroupNorm(1, 2), False), (Drops(), True), (Within(), True),
    (norms.BatchNorm(2), False), (nn.Sequential(nn.Dropout(0.1)), False), (StochasticDepth(0.5, "row"), True),
    (StochasticDepth(0.0, "row"), False), (nn.TransformerEncoderLayer(4, 2), False), (Path(), True),
])  # fmt: skip
def test_which_layers_do_something_else_as_they_learn(layer: nn.Module, changes: bool) -> None:
    assert modules._changes(layer) == changes


def test_attention_that_drops_nothing_goes_side_by_side_and_is_recorded(often: None) -> None:
    def make() -> modules.Headed:
        return body(Tokens(0.0))

    together = learners_of(make, seeds=(0, 1))
    arrays, _ = train(together, TRAINING, Watch())
    assert program_of(steps_done(together, TRAINING)) == "captured"
    for r in range(2):
        alone = learners_of(make, seeds=(r,))
        torch.testing.assert_close(train(alone, TRAINING, Watch())[0]["loss"], arrays["loss"][r])
        torch.testing.assert_close(alone.theta, together.theta[r])


@dataclass(frozen=True)
class Own(Configured):
    """The network as a run has it."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> modules.ModuleNet:
        """See ``continual.learning.models``."""

        def make() -> modules.Headed:
            part = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Dropout(0.5))
            return modules.Headed(part, 12, units)

        return modules.ModuleNet(make)


@pytest.mark.parametrize("how", ["auto", "processes"])
def test_a_run_drops_the_same_units_however_its_seeds_are_done(how: Any) -> None:
    settings: dict[str, Any] = {"model": Own(), "seeds": 2, "epochs": 2, "precision": "float64"}
    loop, other = (cl.run("split-digits:limit=10", "finetune", seeds_as=one, **settings) for one in ("loop", how))
    np.testing.assert_allclose(other.arrays["loss"], loop.arrays["loss"])
    assert not np.allclose(loop.arrays["loss"][0], loop.arrays["loss"][1])


def test_side_by_side_units_cannot_be_dropped() -> None:
    with pytest.raises(BadOption, match=r"seeds_as=map: the network, or a hook, draws .*; use seeds_as=loop or auto"):
        cl.run("split-digits:limit=10", "finetune", seeds_as="map", model=Own(), seeds=2, epochs=1)


class Recurrent(nn.Module):
    """Rows of an image one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 10, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.gru(x.flatten(1, 2))[0][:, -1]
        return out


@dataclass(frozen=True)
class Rows(Configured):
    """A recurrent network."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """See ``continual.learning.models``."""
        return modules.ModuleNet(lambda: modules.Headed(Recurrent(), 10, units))


def test_what_pytorch_cannot_do_side_by_side_is_named() -> None:
    with pytest.raises(BadOption, match=r"seeds_as=map: .* a step with aten::\w+, which seeds side by side"):
        cl.run("split-digits:limit=10", "finetune", seeds_as="map", model=Rows(), seeds=2, epochs=1)


@pytest.mark.parametrize("held", [gss.HELD, 1])
def test_gradients_of_single_samples_are_taken_one_by_one_where_a_layer_cannot_be_mapped(
    held: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gss, "HELD", held)
    stream = cl.benchmarks.SplitDigits(limit=5).stream(0)
    net, task = Rows().build(stream.shape, stream.units), stream.tasks[0]
    theta = net.initial(key(0), torch.float64)

    def gradient(row: torch.Tensor) -> torch.Tensor:
        live = theta.clone().requires_grad_()
        logits = net.logits(live, stream.samples.images(row[None], torch.float64))
        loss = nn.functional.cross_entropy(logits[:, task.seen_units], stream.samples.y[row][None])
        return torch.autograd.grad(loss, live)[0]

    rows, others = task.train[:3], task.train[4:6]
    wanted = torch.stack([torch.stack([torch.cosine_similarity(gradient(a), gradient(b), 0) for b in others])
                          for a in rows])  # fmt: skip
    torch.testing.assert_close(gss.cosines(net, theta, rows, others, task), wanted)
    options: dict[str, Any] = {"model": Rows(), "seeds": 1, "epochs": 1, "batch": 5}
    result = cl.run("split-digits:limit=5", "gss:capacity=6,compare=2,samples=3", **options)
    assert np.isfinite(result.arrays["loss"]).all()


class Headless(modules.Headed):
    """A head without biases, and one whose weights are a layer's before it."""

    def __init__(self, units: int, tied: bool) -> None:
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(SIZE)), units), nn.ReLU()), units, units)
        self.head = nn.Linear(units, units, bias=False)
        if tied:
            self.body.append(nn.Linear(units, units))
            self.head.weight = self.body[3].weight


@pytest.mark.parametrize("strategy", [SharedTrunk(), PackNet(), CWRStar(), CWRStar(bias="trained")], ids=str)
def test_a_head_without_biases_has_weights_alone(strategy: Strategy) -> None:
    learners = learners_of(lambda: Headless(6, tied=False), strategy)
    net, started = learners.net, learners.theta.clone()
    assert net.head == ("head.weight",)
    train(learners, TRAINING, Watch())
    assert learners.theta.isfinite().all() and not torch.equal(learners.theta, started)
    memory, last = learners.memories()[0], learners.streams[0].tasks[-1]
    if isinstance(strategy, CWRStar):
        x = learners.streams[0].samples.images(last.test, torch.float64)
        scores = strategy.predict(net, learners.theta, memory, x, torch.full((len(x),), last.index))
        torch.testing.assert_close(scores, net.features(learners.theta, x) @ memory["weight"].T)
        assert "bias" not in memory and bool(memory["weight"].any(1).all())
    if isinstance(strategy, SharedTrunk):
        rates = net.parameters(memory["rate"])["head.weight"]
        assert torch.equal(rates, last.own_units[:, None].expand(-1, 6).to(rates.dtype))


@pytest.mark.parametrize("strategy", [SharedTrunk(), PackNet(), CWRStar()], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_a_head_without_weights_of_its_own_is_refused_where_they_are_kept_apart(strategy: Strategy, tied: bool) -> None:
    net = modules.ModuleNet(lambda: Headless(6, tied), lambda name: tied or not name.startswith("head"))
    with pytest.raises(BadChain, match="keeps each output's weights apart, and this network has none for them"):
        strategy.suits(suited_stream(strategy, 0), net)


def test_what_is_not_trained_is_the_same_in_every_run() -> None:
    first, second = (learners_of(body, trained=lambda name: name.startswith("head.")) for _ in range(2))
    for name, value in first.net.kept.items():  # type: ignore[attr-defined]
        assert torch.equal(value, second.net.kept[name])  # type: ignore[attr-defined]


def test_what_wants_no_gradient_rests() -> None:
    """A part of which nothing is trained drops nothing, and its statistics stay."""

    def make() -> modules.Headed:
        front = nn.Sequential(nn.Linear(10, 10), nn.BatchNorm1d(10), nn.Dropout(0.5)).requires_grad_(False)
        return body(front, nn.Dropout(0.1))

    group = learners_of(make)
    net, first = group.net, group.theta.clone()
    assert isinstance(net, modules.ModuleNet) and not net.statistics
    assert net.frozen == 10 * 11 + 4 * 10  # the layer, and BatchNorm with its statistics
    assert [name for name in net.trained if name.startswith("body.2.")] == []
    assert [one.p for one in net.modes if isinstance(one, nn.Dropout)] == [0.1]
    train(group, TRAINING, Watch())
    assert not torch.equal(first, group.theta)


def test_what_a_module_keeps_has_its_own_type() -> None:
    """A mask is true or false, places are whole numbers, and a number may be complex."""

    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("places", torch.arange(9, -1, -1))
            self.register_buffer("mask", torch.arange(10) > 4)
            self.register_buffer("turn", torch.tensor(1j))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(self.mask, x[:, self.places], (x * self.turn * self.turn).real)  # type: ignore[index,arg-type,operator]

    net = modules.ModuleNet(lambda: body(Keeps()))
    theta, x = net.initial(key(0), torch.float64), torch.randn(4, *SIZE).double()
    plain = body(Keeps()).double()
    plain.load_state_dict(net.parameters(theta), strict=False)
    plain.body[2].turn = torch.tensor(1j)  # type: ignore[index]
    torch.testing.assert_close(net.logits(theta, x), plain(x).logits)


def test_the_statistics_of_a_layer_that_is_called_twice_or_never() -> None:
    def make() -> modules.Headed:
        layer = nn.BatchNorm1d(10)
        made = body(layer, nn.Linear(10, 10), layer)
        made.never = nn.BatchNorm1d(3)
        return made

    net, plain = modules.ModuleNet(make), make().double()
    theta, x = net.initial(key(0), torch.float64), torch.randn(9, *SIZE).double()
    plain.load_state_dict(net.parameters(theta), strict=False)
    out, statistics = net.learn(theta, x, torch.zeros(9).long())
    torch.testing.assert_close(out.logits, plain(x).logits)
    assert statistics is not None
    theta[-net.statistics :] = statistics
    for name, value in dict(plain.named_buffers()).items():
        if name in net.shapes:
            torch.testing.assert_close(net.parameters(theta)[name], value)


class Ghost(nn.BatchNorm1d):
    """It normalises in its own way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) / 2


class Phases(nn.Module):
    """Complex numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.phases = nn.Parameter(torch.ones(10, dtype=torch.complex64))


ONE = body()


@pytest.mark.parametrize(("make", "given", "said"), [
    (lambda: ONE, {}, "make gives the same parameters each time"),
    (lambda: nn.Sequential(nn.Linear(4, 4)), {}, "make gives a Sequential; it gives a module with a body and a linear"),
    (lambda: None, {}, "make gives a NoneType; it gives a module with a body and a linear head"),
    (lambda: body(nn.LazyLinear(10)), {}, "lazy layers.*give the sizes"),
    (body, {"trained": lambda name: name == "no"}, "none of the network's parameters is trained; it has body.1.bias, "),
    (lambda: body(Phases()), {}, r"body.2.phases is complex, and θ is of real numbers"),
    (lambda: body(nn.Embedding(4, 3, sparse=True)), {}, "body.2 is an Embedding with sparse=True"),
    (lambda: body(nn.EmbeddingBag(4, 3, max_norm=1.0)), {}, "body.2 is an EmbeddingBag with .* max_norm"),
    (lambda: body(torch.jit.script(nn.Linear(10, 10))), {}, "body.2 was compiled by TorchScript"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_make_that_is_none_is_refused(make: Any, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        learners_of(make, **given)


class Places(nn.Module):
    """Whole numbers that are never trained."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.arange(10).flip(0), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, self.places]


def test_whole_numbers_may_lie_beside_theta() -> None:
    group = learners_of(lambda: body(Places()))
    assert not train(group, TRAINING, Watch())[1] and "body.2.places" not in group.net.shapes


def test_a_copy_each_time_is_a_new_module() -> None:
    one = body()
    assert not train(learners_of(lambda: copy.deepcopy(one)), TRAINING, Watch())[1]


def test_a_batch_norm_that_is_there_twice_is_one_afterwards() -> None:
    layer = nn.BatchNorm1d(10, eps=0.1)
    layer.running_mean.fill_(3.0)  # type: ignore[union-attr]
    module = norms.replaced(body(layer, nn.Sequential(nn.Linear(10, 10), layer)), "batch", None)
    found = [one for one in module.modules() if isinstance(one, norms.BatchNorm)]
    assert len(found) == 1 and found[0].eps == 0.1 and bool((found[0].running_mean == 3).all())
    assert module.body[2] is module.body[3][1] is found[0]  # type: ignore[index]


@pytest.mark.parametrize(("layer", "given", "said"), [
    (nn.BatchNorm1d(10, affine=False), {}, "BatchNorm is known here with affine=True"),
    (nn.BatchNorm1d(10, track_running_stats=False), {}, "BatchNorm is known here with affine=True"),
    (nn.BatchNorm1d(10, momentum=None), {}, "BatchNorm is known here with affine=True"),
    (nn.BatchNorm1d(10), {"statistics": "task"}, "statistics=task: PyTorch's BatchNorm knows of no tasks"),
])  # fmt: skip
def test_a_batch_norm_that_is_not_known_is_refused(layer: nn.Module, given: dict[str, Any], said: str) -> None:
    with pytest.raises(BadOption, match=said):
        modules.ModuleNet(lambda: body(layer), **given)


class Counts(nn.Module):
    """Writes to a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.add_(1)  # type: ignore[operator]
        return x / (1 + self.seen)  # type: ignore[operator]


@pytest.mark.parametrize(("layer", "name"), [
    (Counts, "body.2.seen"), (lambda: Ghost(10), "body.2."),
    (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(10, 10)), "body.2.parametriz"),
])  # fmt: skip
def test_what_a_network_keeps_beside_theta_is_refused(layer: Any, name: str) -> None:
    with pytest.raises(BadChain, match=f"the network writes to its {name}.*, which is not part of θ"):
        train(learners_of(lambda: body(layer())), TRAINING, Watch())


class Turned(nn.Module):
    """A linear layer of each of five places, which lie one behind the other, or as a dimension of their own."""

    def __init__(self, flat: bool) -> None:
        super().__init__()
        self.flat, self.linear = flat, nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = x.view(-1, 2) if self.flat else x.view(-1, 5, 2)
        out: torch.Tensor = self.linear(places).view(-1, 10)
        return out


def tied() -> modules.Headed:
    made = body(nn.Linear(10, 10), nn.Linear(10, 10))
    made.body[3].weight = made.body[2].weight  # type: ignore[index]
    return made


def twice() -> modules.Headed:
    layer = nn.Linear(10, 10)
    return body(layer, nn.Tanh(), layer)


class Cosine(nn.Linear):
    """A linear layer that goes its own way."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, nn.functional.normalize(self.weight), self.bias)


class Again(nn.Module):
    """It uses a weight by its name, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.scale = nn.Linear(10, 10), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(x) + self.scale * torch.tanh(x) @ self.fc.weight
        return out


class Weight(nn.Module):
    """It uses a weight by its name, too, which a later layer hides, and has no parameter else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.tanh(self.fc(x)) @ self.fc.weight)


def keyword() -> modules.Headed:
    layer = nn.Linear(10, 10)

    class Calls(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.layer(input=x)
            return out

    return body(Calls())


def hooked() -> modules.Headed:
    made = body(nn.Linear(10, 10))
    made.body[2].register_forward_hook(lambda _, given, out: out * 2)  # type: ignore[index]
    return made


NETWORKS: dict[str, tuple[Any, str]] = {
    "batch norm": (lambda: body(nn.BatchNorm1d(10)), ""),
    "group norm": (lambda: body(nn.GroupNorm(2, 10)), ""),
    "called twice": (twice, ""),
    "tied": (tied, ""),
    "places as samples": (lambda: body(Turned(True)), ""),
    "places": (lambda: body(Turned(False)), ""),
    "attention": (lambda: body(Tokens(0.1)), ""),
    "channels of places": (lambda: body(nn.Unflatten(1, (5, 2)), nn.BatchNorm1d(5), nn.Flatten()), ""),
    "trained in part": (body, "head.weight"),
    "a derived layer": (lambda: body(Cosine(10, 10)), ""),
    "a weight by its name": (lambda: body(Again()), ""),
    "a weight by its name, hidden": (lambda: body(Weight()), ""),
    "called by keyword": (keyword, ""),
    "old weight norm": (lambda: body(nn.utils.weight_norm(nn.Linear(10, 10))), ""),
    "weight norm": (lambda: body(nn.utils.parametrizations.weight_norm(nn.Linear(10, 10))), ""),
    "a hook": (hooked, ""),
    "what cannot be mapped": (lambda: body(nn.PReLU(), nn.Linear(10, 10)), ""),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize(("make", "trained"), NETWORKS.values(), ids=NETWORKS)
def test_the_fisher_of_any_network_is_that_of_a_loop(make: Any, trained: str) -> None:
    group = learners_of(make, trained=lambda name: name.startswith(trained))
    net, task = group.net, group.streams[0].tasks[0]
    theta, rows = group.theta.clone(), task.train[:4]
    if net.statistics:
        theta[-net.statistics :] += 0.5
    found = fisher(net, theta, task, rows, "expected")
    wanted = torch.zeros_like(theta)
    for row in rows.split(1):
        live = theta.clone().requires_grad_()
        logits = task.active(net.logits(live, task.samples.images(row, torch.float64)), task.samples.task[row])
        log_p = logits.log_softmax(-1)[0]
        for k in task.own_units.nonzero().flatten():
            (gradient,) = torch.autograd.grad(log_p[k], live, retain_graph=True)
            wanted += log_p[k].exp().detach() * gradient.square() / len(rows)
    torch.testing.assert_close(net.weights(found), net.weights(wanted))
    assert net.weights(found).any()


def test_pytorch_s_generator_is_seeded_by_all_of_a_place() -> None:
    found = []
    with pytorch_left_alone(CPU):
        for place in ((0, 1, 2), (0, 2, 1), (1, 1, 2), (0, 1, "measured"), (0, 12), (0, 1, 2)):
            seed_pytorch(CPU, *place)
            found.append(tuple(torch.rand(2).tolist()))
    assert len(set(found)) == 5 and found[0] == found[-1]


class Centred(nn.Module):
    """It writes to what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sub_(0.5)


@dataclass(frozen=True)
class Wrong(Configured):
    """A model with one mistake."""

    mistake: str = option("none", "which one")

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Any:
        """What should be a network."""
        if self.mistake == "raises":
            raise KeyError("no")
        if self.mistake == "headed":
            return body()
        features = 11 if self.mistake == "features" else 10
        inputs = 3 if self.mistake == "inputs" else 64
        centred: Any = Centred() if self.mistake == "writes" else nn.Identity()
        outputs = units + 1 if self.mistake == "units" else units

        def make() -> modules.Headed:
            front = nn.Sequential(nn.Flatten(), centred, nn.Linear(inputs, 10))
            if self.mistake == "single":
                front.append(nn.Unflatten(1, (10, 1, 1))).append(nn.GroupNorm(10, 10)).append(nn.Flatten())
            made = modules.Headed(front, features, outputs)
            if self.mistake == "logits":
                made.forward = lambda x: made.head(made.body(x))  # type: ignore[method-assign]
            return nn.Sequential(front) if self.mistake == "headless" else made  # type: ignore[return-value]

        return modules.ModuleNet(make)


@pytest.mark.parametrize(("mistake", "said"), [
    ("raises", r"build\(shape=\(1, 8, 8\), units=10, tasks=5\) raises KeyError: 'no' \(.*test_own_networks.py, line"),
    ("headed", r"build gives a Headed; it gives a network, such as .*ModuleNet\(make\)"),
    ("headless", r"make gives a Sequential; it gives a module with a body and a linear head"),
    ("inputs", r"given two images of shape \(1, 8, 8\), raises RuntimeError: mat1 and mat2 .* \(2x64 and 3x10\)"),
    ("features", r"raises RuntimeError: mat1 and mat2"),
    ("single", r"given a single image of shape \(1, 8, 8\), raises ValueError: Expected more than 1 value per channel"),
    ("units", r"gives \(2, 11\) and \(2, 10\) for two images; it gives logits \(2, 10\) and features \(2, D\)"),
    ("logits", r"gives a Tensor for two images; it gives logits \(2, 10\)"),
    ("writes", r"writes to its images, .* x = x.clone\(\)$"),
])  # fmt: skip
def test_a_mistake_in_a_network_is_told_before_the_run(mistake: str, said: str) -> None:
    with pytest.raises(BadOption, match=rf"^model test_own_networks:Wrong:mistake={mistake}: .*{said}"):
        cl.run("split-digits:limit=5", "finetune", model=Wrong(mistake=mistake), seeds=1)


def test_a_network_without_a_mistake_is_run() -> None:
    assert cl.run("split-digits:limit=5", "finetune", model=Wrong(), seeds=1, iterations=2).accuracy.any()


def test_a_layer_that_is_there_twice_is_so_in_the_ordinary_module() -> None:
    def twice() -> modules.Headed:
        norm = nn.BatchNorm1d(10)
        return body(norm, nn.ReLU(), norm)

    net = modules.ModuleNet(twice)
    theta = net.initial(key(0), torch.float64)
    theta[-2 * 10 :] = torch.rand(20, dtype=torch.float64) + 0.5  # means and variances
    made, x = ordinary(net, theta), torch.randn(7, *SIZE, dtype=torch.float64)
    norms = [one for one in made.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 1 and type(norms[0]).__mro__[1] is nn.BatchNorm2d
    assert sum(one.numel() for one in made.parameters()) == net.size - net.statistics
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(x), net.logits(theta, x))


@dataclass(frozen=True)
class OfSignals(Configured):
    """Convolutions of what comes as a vector."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> Net:
        """See :class:`continual.learning.models.MLP`."""
        length = int(np.prod(shape))
        return modules.ModuleNet(lambda: modules.Headed(
            nn.Sequential(nn.Unflatten(1, (1, 1, length)), nn.Conv2d(1, 3, 1), nn.Flatten()), 3 * length, units
        ))  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 2])
def test_vectors_have_no_channels_that_could_be_last(seeds: int) -> None:
    x, y = torch.rand(40, 16), torch.arange(40) % 4
    stream = Stream.from_arrays(x, y, x, y, tasks=2, scenario="class")
    found = cl.run(stream, "finetune", model=OfSignals(), seeds=seeds, batch=10, epochs=1)
    assert np.isfinite(found.arrays["loss"]).all()


@dataclass(frozen=True)
class Encoder(Configured):
    """PyTorch's own transformer with its defaults, of which it has a faster way in evaluation."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> modules.ModuleNet:
        """See ``continual.learning.models``."""

        def make() -> modules.Headed:
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            rows = nn.Sequential(nn.Flatten(2), nn.Unflatten(2, (8, 8)), nn.Flatten(1, 2))
            return modules.Headed(nn.Sequential(rows, layer, nn.Flatten()), 64, units)

        return modules.ModuleNet(make)


@pytest.mark.parametrize("strategy", ["finetune", "lwf", "icarl:capacity=20", "bic:capacity=40"])
def test_attention_is_the_same_operations_in_a_recorded_step(strategy: str) -> None:
    usual = torch.backends.mha.get_fastpath_enabled()
    found = [
        cl.run("split-digits:limit=20,tasks=2", strategy, seeds=1, epochs=9, batch=16, model=Encoder(), program=program)
        for program in ("auto", "eager")
    ]
    assert found[0].record["program"].startswith("captured")
    np.testing.assert_array_equal(found[0].arrays["loss"], found[1].arrays["loss"])
    np.testing.assert_array_equal(found[0].accuracy, found[1].accuracy)
    assert torch.backends.mha.get_fastpath_enabled() is usual


@dataclass(frozen=True)
class Rolls(Configured):
    """A network whose answers are random in evaluation, too, where it is ``forgotten`` to ask."""

    forgotten: bool = cl.option(True, "whether it drops whatever it is done for")

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> modules.ModuleNet:
        """See ``continual.learning.models``."""
        forgotten = self.forgotten

        class Dropped(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.dropout(x.flatten(1), 0.5, training=forgotten or self.training)

        return modules.ModuleNet(lambda: modules.Headed(nn.Sequential(Dropped(), nn.Linear(64, 8)), 8, units))


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_network_that_answers_otherwise_each_time_is_told_of(forgotten: bool) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        stream = cl.benchmarks.SplitDigits(limit=5).stream(0)
        ready.network(Rolls(forgotten=forgotten), stream)
    said = [str(one.message) for one in told if "gives something else each time in evaluation" in str(one.message)]
    assert len(said) == forgotten


class CosineLayer(nn.Linear):
    """A head that is no plain linear layer."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * nn.functional.linear(nn.functional.normalize(x), nn.functional.normalize(self.weight))


@dataclass(frozen=True)
class Angles(Configured):
    """A frozen body, whose features are kept, and a head that is learnt."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> modules.ModuleNet:
        """See ``continual.learning.models``."""

        def make() -> modules.Headed:
            made = modules.Headed(nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU()), 12, units)
            made.head = CosineLayer(12, units)
            return made

        return modules.ModuleNet(make, lambda name: name.startswith("head"))


def test_a_head_of_another_kind_behind_features_that_are_kept_is_that_head() -> None:
    run: dict[str, Any] = {"seeds": 1, "epochs": 1, "precision": "float64", "keep_learners": "last"}
    kept = cl.run("split-digits:limit=10", "finetune", model=Angles(), **run)
    assert kept.record["features_once"]
    np.testing.assert_array_equal(cl.learner(kept, 0).accuracy(), kept.accuracy[0, -1])
    net = Angles().build((1, 8, 8), 10)
    x, theta = torch.rand(3, 1, 8, 8, dtype=torch.float64), net.initial(key(0), torch.float64)
    assert net.linear_layers(theta, x) is None
    still = net.still()
    assert still is not None
    front = still(x, torch.zeros(3, dtype=torch.int64))
    torch.testing.assert_close(still.behind().logits(theta, front), net.logits(theta, x))


class Scaled(modules.Headed):
    """A network whose pass is its own."""

    def forward(self, x: torch.Tensor) -> modules.Out:
        out = super().forward(x)
        return out._replace(logits=4 * out.logits)


def test_no_ordinary_module_is_made_of_a_pass_of_ones_own() -> None:
    net = modules.ModuleNet(lambda: Scaled(nn.Sequential(nn.Flatten(), nn.Linear(9, 4)), 4, 6))
    with pytest.raises(BadChain, match="that has a forward of its own"):
        ordinary(net, net.initial(key(0), torch.float64))


@dataclass(frozen=True)
class Viewed(Configured):
    """Convolutions with a ``view`` behind them, which images with their channels last do not suit."""

    def build(self, shape: tuple[int, ...], units: int, tasks: int = 1) -> modules.ModuleNet:
        """See ``continual.learning.models``."""

        class Body(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.first = nn.Conv2d(shape[0], 4, 3, padding=1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return nn.functional.max_pool2d(torch.relu(self.first(x)), 4).view(x.size(0), -1)

        return modules.ModuleNet(lambda: modules.Headed(Body(), 16, units))


@pytest.mark.parametrize("seeds_as", ["loop", "map"])
def test_a_view_behind_convolutions_is_shown_images_as_they_usually_lie(seeds_as: str) -> None:
    y = np.arange(24) % 4
    x = np.random.default_rng(0).integers(0, 256, (24, 3, 8, 8), dtype=np.uint8)
    stream = Stream.from_arrays(x, y, x, y, tasks=2)
    for strategy in ("finetune", "ewc", "lwf"):
        found = cl.run(stream, strategy, model=Viewed(), seeds=2, epochs=2, batch=4, seeds_as=seeds_as)
        assert np.isfinite(found.arrays["loss"]).all()


def test_a_batch_norm_of_which_the_bias_alone_is_trained_goes_by_its_batch() -> None:
    def make() -> modules.Headed:
        return body(nn.BatchNorm1d(10))

    net = modules.ModuleNet(make, lambda name: name.endswith("bias") or name.startswith("head"))
    assert list(net.norms) == ["body.2"] and net.statistics == 20


def test_two_batch_norms_with_the_same_parameters_keep_them_in_common() -> None:
    def make() -> modules.Headed:
        one, other = nn.BatchNorm1d(10), nn.BatchNorm1d(10)
        other.weight, other.bias = one.weight, one.bias
        return body(one, nn.ReLU(), other)

    net = modules.ModuleNet(make)
    assert [name for name in net.shapes if name.startswith("body.4")] == ["body.4.running_mean", "body.4.running_var"]
    assert net.module.body[2].weight is net.module.body[4].weight


class Warmth(nn.Module):
    """A parameter that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.warmth = nn.Parameter(torch.tensor(1.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.warmth


def test_a_parameter_that_is_a_number_goes_side_by_side() -> None:
    def make() -> modules.Headed:
        return body(Warmth())

    together = learners_of(make, seeds=(0, 1))
    train(together, TRAINING, Watch())
    for r in range(2):
        alone = learners_of(make, seeds=(r,))
        train(alone, TRAINING, Watch())
        torch.testing.assert_close(together.theta[r], alone.theta)
