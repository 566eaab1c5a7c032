"""The conformance suite: what every strategy, built-in or foreign, has to keep to.

``continual check my_pkg.mine:Mine`` runs it, and the tests run it over everything registered. It trains on a small
made-up stream in float64, so that what should be equal is equal to many digits.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from continual import config
from continual.errors import BadChain, Mistake
from continual.learning.models import MLP, Net
from continual.learning.notes import tensors
from continual.learning.optimizers import SGD, Constant
from continual.learning.seeds import Learners, Recipe
from continual.learning.step import Program
from continual.learning.strategy import HOOKS, Batch, Chain, Memory, Step, Strategy
from continual.learning.train import Course, State, Stopped, Watch, schedule, train
from continual.learning.training import Training
from continual.streams.rng import key
from continual.streams.stream import Samples, Stream, Task

if TYPE_CHECKING:
    from torch import Tensor

CLASSES, TASKS, PER_CLASS, TESTED = 6, 3, 12, 8
TRAINING = Training(seeds=3, epochs=2, batch=9, precision="float64", train_samples=0)
"""Of a task's 24 samples, an epoch's last batch is a partial one."""
MANY_TASKS = 6


class Failed(Exception):
    """A check that a strategy does not pass, in words."""


def check(strategy: Any) -> None:
    """Raise ``AssertionError`` with every failed check of a strategy: an object, or text as for the command line."""
    problems = [f"{name}: {problem}" for name, problem in checks(config.make_strategy(strategy)) if problem]
    if problems:
        raise AssertionError("\n".join(problems))


def checks(strategy: Strategy) -> Iterator[tuple[str, str | None]]:
    """Each check's name, and what is wrong, or None; BadChain for a strategy whose hooks are not used."""
    if strategy.trains_itself:
        raise BadChain(f"{type(strategy).__name__} is another library's and trains in its own loop: there are no hooks "
                       "to check")  # fmt: skip
    for name, function in CHECKS.items():
        yield name, _problem(function, strategy)


def _problem(function: Callable[[Strategy], None], strategy: Strategy) -> str | None:
    try:
        function(strategy)
    except Failed as failure:
        return str(failure)
    except Exception as error:  # whatever a strategy raises is what its author wants to see
        return _said(error, strategy)
    return None


def _said(error: Exception, strategy: Strategy) -> str:
    """What went wrong, and the last line of the strategy's own file on the way there."""
    # a mistake says itself what to do
    where = "" if isinstance(error, Mistake) else _where(traceback.extract_tb(error.__traceback__), strategy)
    return f"{type(error).__name__}: {error}{where}"


def _where(frames: Sequence[traceback.FrameSummary], strategy: Strategy) -> str:
    """The last line of the strategy's own file among these, as ``" (mine.py, line 3)"``, if there is one."""
    own = {getattr(sys.modules.get(type(part).__module__), "__file__", None) for part in strategy.parts}
    lines = [frame for frame in frames if frame.filename in own]
    return f" ({Path(lines[-1].filename).name}, line {lines[-1].lineno})" if lines else ""


# ---- a small stream, and runs on it


def small_stream(seed: int, scenario: str = "class", tasks: int = TASKS) -> Stream:
    """Classes of 3x3 images, each scattered around an image of its own, two in each task."""
    classes = CLASSES // TASKS * tasks
    centres = key(1).uniform("centres", classes, 1, 9) * 200
    noise = key(2).uniform("noise", classes, 2 * PER_CLASS, 9) * 55
    x = (centres + noise).to(torch.uint8).unflatten(-1, (1, 3, 3))
    y = torch.arange(classes)[:, None].expand(classes, PER_CLASS).flatten()
    y_test = torch.arange(classes)[:, None].expand(classes, TESTED).flatten()
    train_x, test_x = x[:, :PER_CLASS].flatten(0, 1), x[:, -TESTED:].flatten(0, 1)
    return Stream.from_arrays(train_x, y, test_x, y_test, tasks=tasks, scenario=scenario).stream(seed)


def suited_stream(strategy: Strategy, seed: int) -> Stream:
    """The small stream, class-incremental or else in the first scenario that suits the strategy."""
    for scenario in ("class", "task"):
        stream = small_stream(seed, scenario)
        with contextlib.suppress(BadChain):
            strategy.suits(stream, small_net(stream))
            return stream
    return small_stream(seed, "domain")


def small_net(stream: Stream) -> Net:
    """An untrained network of ten hidden units."""
    return MLP(layers=(10,)).build(stream.shape, stream.units)


def learners_of(strategy: Strategy, seeds: list[int], streams: list[Stream] | None = None) -> Learners:
    """Untrained learners of a small network, on a small stream that suits the strategy if none is given."""
    streams = streams or [suited_stream(strategy, seed) for seed in seeds]
    net = small_net(streams[0])
    strategy.suits(streams[0], net)
    recipe = Recipe(net, strategy, SGD(lr=0.1, momentum=0.9), Constant(), keep_optimizer=True, precision="float64")
    return Learners(recipe, streams, seeds)


def outcome(learners: Learners, watch: Watch | None = None) -> dict[str, Tensor]:
    """Everything that training gave: accuracies, losses, θ and memory."""
    arrays, stopped = train(learners, TRAINING, watch or Watch())
    return _outcome(learners, arrays, stopped)


def _outcome(learners: Learners, arrays: dict[str, Tensor], stopped: list[Stopped]) -> dict[str, Tensor]:
    if stopped:
        raise Failed(f"seed {stopped[0].seed} was stopped: {stopped[0].why} at task {stopped[0].task}, "
                     f"step {stopped[0].step}")  # fmt: skip
    memory = {f"memory[{name!r}]": value for name, value in learners.memory.items()}
    return arrays | {"θ": learners.theta.detach()} | memory


def compare(got: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> None:
    """Raise :class:`Failed` where two outcomes differ by more than rounding."""
    for name, value in wanted.items():
        if not torch.allclose(got[name], value, rtol=1e-6, atol=1e-9, equal_nan=True):
            raise Failed(f"{what}, but {name} differs by up to {(got[name] - value).abs().max():.1e}")


# ---- the checks


def survives_yaml(strategy: Strategy) -> None:
    """Options survive a round trip through YAML."""
    import yaml

    written = yaml.safe_dump([config.describe("strategies", part) for part in strategy.parts])
    if config.make_strategy(yaml.safe_load(written)) != strategy:
        raise Failed(f"read back from YAML it is another strategy: {written!r}")


def pure(strategy: Strategy) -> None:
    """Hooks change nothing in place, give the same twice, and keep the memory's names, shapes and types."""
    outcome(learners_of(Spy(strategy), [0]))


def reads_its_own(strategy: Strategy) -> None:
    """No row is read that is neither the current task's nor in memory (under a name that ends in ``rows``)."""
    spy = Spy(strategy, pure=False)
    stream = suited_stream(strategy, 0)
    watched = WatchedSamples(**vars(stream.samples))
    watched.watch(spy)
    tasks = tuple(replace(task, samples=watched) for task in stream.tasks)
    outcome(learners_of(spy, [0], [replace(stream, samples=watched, tasks=tasks)]))


def first_task_like_finetuning(strategy: Strategy) -> None:
    """The first task comes out as under fine-tuning, where the strategy says it does."""
    if not strategy.first_task_like_finetuning:
        return
    steps = TRAINING.steps(CLASSES // TASKS * PER_CLASS)  # nothing is added to those of the first task
    stream = suited_stream(strategy, 0)
    got, wanted = (outcome(learners_of(one, [0], [stream]))["loss"][:steps] for one in (strategy, Strategy()))
    compare({"loss": got}, {"loss": wanted}, "the first task should be learnt as under fine-tuning")


def mapped_equals_looped(strategy: Strategy) -> None:
    """Seeds side by side give what they give one after the other."""
    if not strategy.can_be_captured:
        return  # they are never mapped
    group = outcome(learners_of(strategy, [0, 1, 2]))
    for r in range(3):
        alone = outcome(learners_of(strategy, [r]))
        got = {name: value[r] for name, value in group.items()}
        compare(got, alone, f"seed {r} should be the same in a group and alone")


def recorded_like_one_by_one(strategy: Strategy) -> None:
    """Steps that are recorded and done again without Python give what they give one by one."""
    found = []
    for program in ("eager", "auto"):
        with torch.random.fork_rng(devices=[]):  # who draws from it fails another check
            torch.manual_seed(0)
            learners = learners_of(strategy, [0])
            course = Course(learners, replace(TRAINING, program=program), Watch())
            if course.captured is not None:
                course.captured.least = 1  # they are few
            while course.task < course.tasks:
                course.learn()
        found.append(_outcome(learners, course.arrays(), course.stopped))
    compare(found[1], found[0], "a step should be the same recorded and done by hooks")


class Passing(Chain):
    """A strategy whose ``batch`` hook spares the step no pass."""

    def batch(self, net: Net, theta: Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        """See :meth:`Strategy.batch`."""
        return super().batch(net, theta, memory, batch, task)._replace(passed=None)


def spares_what_it_has(strategy: Strategy) -> None:
    """What a ``batch`` hook has of a pass of the step's own samples is what the step would have found."""
    if strategy.has("batch"):
        stream = suited_stream(strategy, 0)
        spared, whole = (outcome(learners_of(kind(strategy.parts), [0], [stream])) for kind in (Chain, Passing))
        compare(spared, whole, "without what its batch hook has 'passed' it should end the same")


def asks_nothing(strategy: Strategy) -> None:
    """A step never asks the device for a value, unless the strategy says that it cannot be captured."""
    if not strategy.can_be_captured:
        return
    learners = learners_of(strategy, [0])
    for index in range(2):
        batches = schedule(learners.begin(index), TRAINING, learners.seed, index)
        program = Program(learners, index, batches)
        with Asked(strategy) as asked:
            for number, rows in enumerate(batches):
                program(number, rows)
        if asked.found:
            called = ", ".join(f"{name}{asked.found[name]}" for name in sorted(asked.found))
            raise Failed(f"in task {index + 1} a step called {called}, which waits for the device (.item(), a branch "
                         "on a tensor, an index that is a tensor of one number, a boolean one, .cpu())")  # fmt: skip
        learners.end(index)


def does_not_grow(strategy: Strategy) -> None:
    """A step of a late task is as much work as one of the second, unless the strategy says that it grows."""
    if not strategy.can_be_captured:
        return  # what a step does may depend on values, and what numpy does is not counted
    grows = False
    for scenario in ("class", "task", "domain"):
        stream = small_stream(0, scenario, MANY_TASKS)
        with contextlib.suppress(BadChain):
            done = [(task, work) for task, work in enumerate(steps_work(strategy, stream)) if task and work != Work()]
            first, *later = done or [(1, Work())]
            grown = [one for one in later if one[1] != first[1]]
            grows = grows or bool(grown)
            if grown and not strategy.step_grows:
                last = grown[-1]
                raise Failed(f"in the {scenario} scenario a step of task {last[0] + 1} takes {last[1]}, one of task "
                             f"{first[0] + 1} {first[1]}; where the method is so, the strategy says step_grows = True"
                             )  # fmt: skip
    if strategy.step_grows and not grows:
        raise Failed("it says that its steps grow with the tasks that were learnt (step_grows), and they do not")


def steps_work(strategy: Strategy, stream: Stream) -> list[Work]:
    """The work of a step of each task, of those that are like all but a few: with a whole batch and not the first."""
    learners, found = learners_of(strategy, [0], [stream]), []
    for index in range(len(stream.tasks)):
        batches = schedule(learners.begin(index), TRAINING, learners.seed, index)
        program, done = Program(learners, index, batches), Work()
        for number, rows in enumerate(batches):
            with Works() as works:
                program(number, rows)
            if number > 1 and rows.shape[-1] == TRAINING.batch:
                done = works.done
                break
        found.append(done)
        learners.end(index)
    return found


def not_inert(strategy: Strategy) -> None:
    """After all tasks something differs from fine-tuning."""
    if strategy.is_finetuning:
        return
    if not any(strategy.has(hook) for hook in HOOKS):
        raise Failed("it has no hook of its own: it is fine-tuning (is_finetuning = True says that this is meant)")
    stream = suited_stream(strategy, 0)
    got, wanted = (outcome(learners_of(one, [0], [stream])) for one in (strategy, Strategy()))
    # θ is another's where there are parameters beside it, and says nothing then
    alike = [name for name, value in wanted.items() if name != "θ" or got[name].shape == value.shape]
    if all(torch.allclose(got[name], wanted[name], rtol=1e-9, atol=1e-12) for name in alike):
        raise Failed("all losses and accuracies are those of fine-tuning: the strategy does nothing")


def goes_on(strategy: Strategy) -> None:
    """Gone on with from the midst of a task, by another object, it ends as if it had not been interrupted."""
    kept: list[State] = []

    def keep(state: State) -> None:
        kept.append(State({name: value.clone() for name, value in state.tensors.items()}, state.facts))

    stream = suited_stream(strategy, 0)
    whole = outcome(learners_of(strategy, [0], [stream]), Watch(due=lambda done: done == 2, keep=keep))
    anew = tuple(replace(part) for part in strategy.parts)
    other = anew[0] if len(anew) == 1 else Chain(anew)
    for state in kept[len(kept) // 2 :][:1]:  # there may be no steps in some tasks
        again = outcome(learners_of(other, [0], [stream]), Watch(start=state))
        compare(again, whole, "interrupted and gone on with it should end the same")


CHECKS: dict[str, Callable[[Strategy], None]] = {
    "options survive YAML": survives_yaml,
    "hooks are pure and memory keeps its shapes": pure,
    "reads only its task and its memory": reads_its_own,
    "first task as under fine-tuning, if it says so": first_task_like_finetuning,
    "seeds side by side as one by one": mapped_equals_looped,
    "steps recorded as one by one": recorded_like_one_by_one,
    "a pass before the step is as one in it": spares_what_it_has,
    "a step asks the device for nothing, unless it says so": asks_nothing,
    "a step does not grow with the tasks, unless it says so": does_not_grow,
    "differs from fine-tuning": not_inert,
    "goes on from a checkpoint": goes_on,
}


# ---- how they look


class Asked:
    """A context that notes the calls that would make the host wait for a device.

    ``found`` has where each was first made in a file of the strategy's, if it was in one.
    """

    def __init__(self, strategy: Strategy | None = None) -> None:
        self.strategy = strategy or Strategy()
        self.found: dict[str, str] = {}
        self.muted = False
        self.modes = contextlib.ExitStack()

    def note(self, name: str) -> None:
        """A call of this name was made."""
        if name not in self.found:
            self.found[name] = _where(traceback.extract_stack(), self.strategy)

    def __enter__(self) -> Asked:
        self.modes.enter_context(_Operations(self))
        self.modes.enter_context(_Functions(self))
        return self

    def __exit__(self, *error: object) -> None:
        self.modes.close()


class _Operations(TorchDispatchMode):
    """Sees every operation, whoever calls it."""

    WAITING = frozenset({
        "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2", "item",
        "unique_consecutive", "nonzero_numpy",
    })  # fmt: skip

    def __init__(self, asked: Asked) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.asked = asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See :class:`TorchDispatchMode`."""
        name = func.overloadpacket.__name__
        kwargs = kwargs or {}
        indexed = name in ("index", "index_put", "index_put_")
        # a single number under a mask is a masked_fill, which some versions of PyTorch call index_put_ at first
        number = indexed and len(args) > 2 and args[2].numel() == 1 and args[2].device.type == "cpu"
        boolean = indexed and not number and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )  # fmt: skip
        to_host = (
            name == "_to_copy"
            and isinstance(args[0], torch.Tensor)
            and args[0].device.type != "cpu"
            and str(kwargs.get("device")) == "cpu"
        )
        if not self.asked.muted and (name in self.WAITING or boolean or to_host):
            self.asked.note(f"{name} with a boolean index" if boolean else name)
        return func(*args, **kwargs)


class Work(NamedTuple):
    """What a step does: how many operations, how many bytes they write, and how many multiplications and additions."""

    operations: int = 0
    bytes: int = 0
    flops: int = 0

    def __str__(self) -> str:
        return f"{self.operations:,} operations, {self.bytes:,} bytes and {self.flops:,} FLOPs"


class Works(TorchDispatchMode):
    """Counts what is done within it."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.done = Work()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See :class:`TorchDispatchMode`."""
        gave = func(*args, **(kwargs or {}))
        written = 0 if func.is_view else sum(tensor.nbytes for tensor in tensors(gave))
        count = flop_registry.get(func.overloadpacket)
        flops = count(*args, **(kwargs or {}), out_val=gave) if count else 0
        self.done = Work(self.done.operations + 1, self.done.bytes + written, self.done.flops + flops)
        return gave


class _Functions(TorchFunctionMode):
    """Sees what a processor's tensors answer without an operation, or in another one than a GPU's."""

    WAITING = frozenset({"tolist", "numpy", "cpu", "__array__", "bincount", "repeat_interleave", "item"})

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See :class:`TorchFunctionMode`."""
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        if name in self.WAITING and "output_size" not in kwargs:
            self.asked.note(name)
        # one_hot checks its classes by their values on a processor only
        self.asked.muted = name == "one_hot" and (len(args) > 1 or "num_classes" in kwargs)
        try:
            return func(*args, **kwargs)
        finally:
            self.asked.muted = False


class Spy(Chain):
    """A strategy whose every call is looked at."""

    def __init__(self, strategy: Strategy, pure: bool = True) -> None:
        super().__init__((strategy,))
        self.pure, self.form, self.allowed = pure, dict[str, Any](), set[int]()

    def has(self, hook: str) -> bool:
        """Every hook of the strategy, and those that tell where training is."""
        return hook in ("before_task", "batch") or super().has(hook)

    def called(self, hook: str, *arguments: Any) -> Any:
        """Call a hook of the strategy, twice, and look at what it does."""
        self._note_rows(hook, arguments)
        function = getattr(super(), hook)
        if not self.pure:
            return function(*arguments)
        given = tensors([vars(one) if isinstance(one, Step) else one for one in arguments])
        copies = [tensor.detach().clone() for tensor in given]
        try:
            gave, again = function(*arguments), function(*arguments)
        except Failed:
            raise
        except Exception as error:  # whatever it raises, as in :func:`_problem`; this one knows in which hook
            raise Failed(f"{hook}: {_said(error, self)}") from error
        if not all(torch.equal(old, new) for old, new in zip(copies, given, strict=True)):
            raise Failed(f"{hook} changes what it is given in place")
        if not all(torch.equal(a, b) for a, b in zip(tensors(gave), tensors(again), strict=True)):
            raise Failed(f"{hook} gives something else when it is called again with the same")
        if hook == "init" or (isinstance(gave, tuple) and not isinstance(gave, Batch)):
            self._keeps_form(hook, gave if hook == "init" else gave[1])
        return gave

    def _note_rows(self, hook: str, arguments: tuple[Any, ...]) -> None:
        """Which rows may be read from now on: the task's, and those in memory."""
        tasks = [item for item in arguments if isinstance(item, Task)]
        if tasks:
            memory = arguments[0 if hook == "rows" else 2]
            stored = [value for name, value in memory.items() if name.endswith("rows")]
            self.allowed = {int(row) for part in (tasks[0].train, *stored) for row in part.flatten()}

    def _keeps_form(self, hook: str, memory: Memory) -> None:
        form = {name: (tuple(value.shape), value.dtype) for name, value in memory.items()}
        if hook != "init" and form != self.form:
            changed = sorted(set(form.items()) ^ set(self.form.items()), key=str)
            raise Failed(f"{hook} gives a memory of another form than init did: {changed}")
        self.form = form


def _watched(hook: str) -> Callable[..., Any]:
    return lambda spy, *arguments: Spy.called(spy, hook, *arguments)


for _hook in HOOKS:
    setattr(Spy, _hook, _watched(_hook))


@dataclass(frozen=True, eq=False)
class WatchedSamples(Samples):
    """Samples that tell which rows are read."""

    def watch(self, spy: Spy) -> None:
        """Hold every read from now on against what the spy allows."""
        object.__setattr__(self, "spy", spy)

    def images(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """See :class:`Samples`."""
        strange = {int(row) for row in rows} - self.spy.allowed  # type: ignore[attr-defined]
        if strange:
            raise Failed(f"row {min(strange)} is read, which is neither the task's nor in memory")
        return super().images(rows, dtype)
