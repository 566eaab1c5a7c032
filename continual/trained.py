"""What a seed has learnt, as a network that answers: put together again from a run's record and what it kept.

The record has everything that the network, the strategy and the stream are made of; θ and memory are what a run keeps
with ``keep_learners``. So it does not matter whether the run has just ended or was stored a year ago.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from continual import config
from continual.errors import BadFolder, BadOption, Mistake, Notice, counted, listed
from continual.execution import at_speed, helps
from continual.learning.evaluate import Evaluation
from continual.learning.plain import Plain, plain
from continual.learning.seeds import Learners
from continual.learning.strategy import within
from continual.ready import network, recipe_of
from continual.repeat import configuration, options_only
from continual.results import store
from continual.results.store import Result
from continual.runner import choose_device, code_of
from continual.streams.benchmark import look_again
from continual.streams.placement import choose, laid_out, place
from continual.streams.rng import pytorch_left_alone
from continual.streams.sets import data_root
from continual.streams.stream import Samples

if TYPE_CHECKING:
    from torch import Tensor

    from continual.config import Plan
    from continual.learning.models import Net
    from continual.learning.strategy import Memory, Strategy
    from continual.streams.stream import Stream

FEW = 3
"""So many differences are told."""


def learner(
    result: Result | str | Path, seed: int | None = None, learnt: int | None = None, *, data: str | Path | None = None,
    device: str = "auto", benchmark: Any = None, strategy: Any = None, model: Any = None,
) -> Learner:  # fmt: skip
    """The network of a ``seed`` as it was when so many tasks were ``learnt``, with its data, to ask and to look into.

    ``result``: what :func:`~continual.runner.run` gave with ``keep_learners`` (``"last"``, or ``"all"`` for after each
    task and, 0, before the first), or the folder of such a run. By default it is that of the first seed which was not
    stopped, after the last task. ``data`` and ``device`` as for a run, which need not be those of this one.
    ``benchmark``, ``strategy`` and ``model``: the objects, where a record cannot name what they are made of, as streams
    and classes within functions.

    Raises:
        BadOption: for a learner that was not kept, or where what is given, or the data, is not what the run was of.
        BadFolder: where the folder is not that of a run, or is damaged.
    """
    result = result if isinstance(result, Result) else _stored(Path(result))
    names = list(result.learners)
    seed, learnt = _which(result, names, seed, learnt)
    target, root = choose_device(device), data_root(data)
    plan = _plan(result, {"benchmark": benchmark, "strategies": strategy and [strategy], "model": model}, seed)
    look_again()
    first = plan.benchmark.stream(result.seeds[0], root)  # the checksum of whose data the record has
    _check(result, plan, first, root)
    stream = first if seed == result.seeds[0] else plan.benchmark.stream(seed, root)
    net = network(plan.model, stream)
    # images lie as the run had them, by which kernels round
    last = result.record["seeds_as"] != "map" and helps(net, stream.shape, target, plan.training.precision)
    (stream,) = laid_out(place([stream], target, choose([stream], target, plan.training.pixels)), last)
    with pytorch_left_alone(target):
        learners = Learners(recipe_of(plan, plan.strategies[0], net), [stream], [seed])
    start = f"{seed}/{learnt}/"
    kept = {name.removeprefix(start): result.learners[name] for name in names if name.startswith(start)}
    if kept["theta"].shape != learners.theta.shape:
        raise BadFolder(f"what seed {seed} has learnt are {len(kept['theta']):,} parameters, and the network that is "
                        f"made of the run's record has {len(learners.theta):,}")  # fmt: skip
    learners.theta.copy_(kept["theta"])
    learners.memory = {name: value.to(target, copy=True) for name, value in within("memory/", kept).items()}
    return Learner(learners, plan, learnt)


def _stored(folder: Path) -> Result:
    """The one run in a folder."""
    found = store.find(folder)
    if len(found) > 1:
        raise BadOption(f"{folder} holds {len(found)} runs; give the folder of one, as in {folder}/EXPERIMENT/STRATEGY")
    return found[0]


def _which(result: Result, names: Sequence[str], seed: int | None, learnt: int | None) -> tuple[int, int]:
    """The seed and the number of tasks learnt of what is asked for."""
    kept: dict[int, list[int]] = {one: [] for one in result.seeds}
    for name in names:
        of, count, what = name.split("/", 2)
        if what == "theta":
            kept[int(of)].append(int(count))
    stopped = {one["seed"]: store.why_stopped(one) for one in result.record.get("stopped", ())}
    if not any(kept.values()) and len(stopped) < len(kept):
        raise BadOption(f"{result.name}: no learners of the run are there; run it with keep_learners=last "
                        "(--keep-learners last), or all for before the first and after each")  # fmt: skip
    first = next((one for one in kept if one not in stopped), result.seeds[0])
    try:
        seed = operator.index(first if seed is None else seed)
        learnt = None if learnt is None else operator.index(learnt)
    except TypeError:
        raise BadOption(f"seed {seed!r}, learnt {learnt!r}: these are whole numbers") from None
    if seed not in kept:
        raise BadOption(f"{result.name}: there is no seed {seed}; there are {listed(kept, 10)}")
    there = sorted(kept[seed])
    after = f"kept is what it had learnt after {listed(there, 10)}" if there else "nothing of it was kept"
    if seed in stopped and learnt not in there:
        raise BadOption(f"{result.name}: seed {seed} was stopped: {stopped[seed]}; {after}")
    learnt = there[-1] if learnt is None else learnt
    if learnt not in there:
        raise BadOption(f"{result.name}: seed {seed} after {counted(learnt, 'task')}: {after}; keep_learners=all keeps "
                        "it after each")  # fmt: skip
    return seed, learnt


def _plan(result: Result, given: dict[str, Any], seed: int) -> Plan:
    """The plan of a run, for one seed of it, with the objects that are ``given`` in place of what its record says."""
    said: dict[str, Any] = configuration([result]) | {"seeds": [seed]}
    objects = {name: one for name, one in given.items() if one is not None}
    try:
        return config.plan(options_only(said | objects))
    except Mistake as mistake:
        raise BadOption(f"{result.name}: what was run cannot be made here from its record: {mistake} (objects can be "
                        "given: learner(result, benchmark=..., strategy=..., model=...))") from mistake  # fmt: skip


def _check(result: Result, plan: Plan, first: Stream, root: Path) -> None:
    """Raise BadOption where the plan is of other data, or another network, than the run; say where code is other.

    ``first``: the stream of the run's first seed.
    """
    (made,), record = plan.strategies, result.record
    parts = [config.describe("strategies", part) for part in made.parts]
    now = {"strategy": parts, "protocol": plan.protocol(root), "data": {"sha256": first.data.sha256}}
    both: tuple[dict[str, Any], ...] = (record, now)
    was, here = (
        store.leaves(store.plain({
            "strategies": len(one["strategy"]), "strategy": one["strategy"],
            "protocol": one["protocol"] | {"seeds": []}, "data": {"sha256": one["data"]["sha256"]},
        }))
        for one in both
    )  # fmt: skip
    # a later version may have options more
    other = [name for name in was if name not in here or here[name] != was[name]]
    if other:
        told = "; ".join(f"{name} is {here.get(name, 'not there')} and was {was[name]}" for name in other[:FEW])
        raise BadOption(f"{result.name}: this is not what the run was of: {told}")
    code = code_of(plan, made)
    changed = sorted(name for name in code if code[name] != record["code"].get(name))
    if changed:
        told = f"{result.name}: {listed(changed, 10)} may have changed since the run; the code of today is asked"
        warnings.warn(Notice(told), stacklevel=3)


class Learner:
    """A network that has learnt, and what it learnt from.

    Attributes:
        seed: the seed.
        learnt: how many tasks it has learnt; 0 of the untrained network.
        stream: the :class:`~continual.streams.stream.Stream`, with its tasks and samples, on the learner's device.
        strategy: the strategy.
    """

    def __init__(self, learners: Learners, plan: Plan, learnt: int) -> None:
        self._learners, self._plan = learners, plan
        self.seed, self.learnt = learners.seeds[0], learnt
        self.stream: Stream = learners.streams[0]
        self.strategy: Strategy = learners.strategy

    def __repr__(self) -> str:
        return (f"<Learner: seed {self.seed}, {config.strategy_title(self.strategy)}, after {self.learnt} of "
                f"{len(self.stream.tasks)} tasks, {len(self.theta):,} parameters>")  # fmt: skip

    @property
    def theta(self) -> Tensor:
        """θ (P,)."""
        return self._learners.theta

    @property
    def memory(self) -> Memory:
        """What the strategy keeps, tensors by name."""
        return self._learners.memory

    @property
    def net(self) -> Net:
        """The network, a function of θ, as memory makes it."""
        return self._learners.network(self.memory)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters by name, and the running statistics of BatchNorm, as views of θ; and what was not trained."""
        return {**self.net.kept, **self.net.parameters(self.theta)}

    def changed(self, theta: Tensor | None = None, memory: Memory | None = None) -> Learner:
        """The same with another θ (P,), or another memory, of which it has copies: to mix and prune, and to measure."""
        learners = copy.copy(self._learners)
        given = self.theta if theta is None else theta
        if given.shape != self.theta.shape:
            raise BadOption(f"θ {tuple(given.shape)}: it has {len(self.theta):,} parameters here")
        learners.theta = given.detach().to(self.theta.device, self.theta.dtype, copy=True)
        kept = self.memory if memory is None else memory
        learners.memory = {name: value.detach().clone() for name, value in kept.items()}
        return Learner(learners, self._plan, self.learnt)

    def module(self) -> Plain:
        """The network as an ordinary module of PyTorch with weights of its own, in evaluation mode; it gives logits.

        Of what a strategy does beside the network to answer (nearest means, corrected outputs) it knows nothing; see
        :meth:`scores`. Its BatchNorm is PyTorch's, whose statistics move where it is trained further, frozen or not.
        Raises :class:`~continual.errors.BadChain` for a network whose units or running statistics differ by task, whose
        head is a strategy's own, or which has a forward of its own.
        """
        return plain(self.net, self.theta).eval()

    def samples(self, task: int, part: str = "test") -> tuple[Tensor, Tensor]:
        """The images (n, C, H, W) of task ``task`` (from 0), as the network is shown them, and their output units (n,).

        ``part``: ``test``, ``train`` or ``validation``. Raises :class:`~continual.errors.BadOption`.
        """
        if part not in ("test", "train", "validation"):
            raise BadOption(f"samples: part was given {part!r}; it takes test, train or validation")
        samples = self.stream.test_samples if part == "test" else self.stream.samples
        rows = getattr(self.stream.tasks[self._numbered(task)], part)
        return samples.images(rows, self._dtype), samples.y[rows]

    def show(self, pixels: Tensor, task: int) -> Tensor:
        """Images of one's own (B, C, H, W), as the data set has them, as task ``task`` (from 0) shows them.

        ``pixels`` have the type and the form of the data's own: ``uint8`` where it was read from images. Raises
        :class:`~continual.errors.BadOption`.
        """
        own, pad, shape = self.stream.samples, self.stream.options.pad, tuple(self.stream.data.x.shape[1:])
        if tuple(pixels.shape[1:]) != shape or pixels.dtype != own.pixels.dtype:
            raise BadOption(f"images {tuple(pixels.shape)} of {pixels.dtype}: the data's are "
                            f"(B, {', '.join(map(str, shape))}) of {own.pixels.dtype}")  # fmt: skip
        every = torch.arange(len(pixels), device=own.image.device)
        tasks = torch.full_like(every, self._numbered(task))
        padded = torch.nn.functional.pad(pixels, [pad] * 4) if pad else pixels
        shown = Samples(padded.to(every.device), every, every, tasks, own.scale, own.shift, own.top, own.channel,
                        own.transforms, channels_last=own.channels_last)  # fmt: skip
        return shown.images(every, self._dtype)

    def logits(self, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """The network's logits (B, K) of images as it is shown them; ``tasks`` as in :meth:`scores`.

        Gradients go through them: to ``x``, and to θ where it is asked to want some.
        """
        return self.net.logits(self.theta, x, self._told(x, tasks))

    def features(self, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """What the network's last layer takes (B, D); as :meth:`logits`."""
        return self.net.features(self.theta, x, self._told(x, tasks))

    def scores(self, x: Tensor, tasks: Tensor | None = None) -> Tensor:
        """What was answered by (B, K): the answer is the highest; outputs that are not active have the lowest there is.

        They are those of the evaluation: what the strategy says, the mean over the views that a run with test-time
        augmentation takes of an image, in the precision that was measured in. ``tasks`` (B,) are the images' own, which
        have to be told in the task scenario, and which nobody asks for elsewhere. Raises
        :class:`~continual.errors.BadOption` where they are missing.
        """
        told, net, learners = self._told(x, tasks), self.net, self._learners
        with learners.measuring():
            views = learners.recipe.augmentation.views(x)
            scores = [self.strategy.predict(net, self.theta, self.memory, view, told) for view in views]
        return self.stream.test_outputs.apply(torch.stack(scores).mean(0), self._latest, told)

    def accuracy(self) -> Tensor:
        """The accuracy (T,) on the test samples of every task: the row ``learnt`` of the run's accuracy matrix."""
        learners, plan = self._learners, self._plan
        rows = [[task.test for task in self.stream.tasks]]
        with pytorch_left_alone(learners.device), at_speed(plan.training, learners.recipe.net, learners.streams):
            learners.seed_pytorch(self.learnt - 1, "measured")
            return Evaluation(learners, "test_samples", rows)(self.learnt - 1).cpu()

    @property
    def _latest(self) -> int:
        """The task by which is answered: one that has learnt nothing answers as in the first."""
        return max(self.learnt - 1, 0)

    @property
    def _dtype(self) -> torch.dtype:
        return self._learners.recipe.dtype

    def _numbered(self, task: int) -> int:
        """The number of a task."""
        if not hasattr(task, "__index__") or task not in range(len(self.stream.tasks)):
            raise BadOption(f"task {task!r}: there are 0 to {len(self.stream.tasks) - 1}")
        return operator.index(task)

    def _told(self, x: Tensor, tasks: Tensor | None) -> Tensor:
        """The tasks that are told of images."""
        if self.stream.scenario == "task" and tasks is None:
            raise BadOption("in the task scenario the tasks (B,) of the images have to be told")
        latest = torch.full((len(x),), self._latest, device=x.device)
        return latest if self.stream.scenario != "task" or tasks is None else tasks
