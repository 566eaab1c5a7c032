"""The conformance suite: everything registered passes every check, and each check sees what it is there for."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import pytest
import torch

from continual import config, conformance, plugins
from continual.conformance import CHECKS, Asked, check, checks
from continual.errors import BadChain, Mistake
from continual.learning.models import Net, Out
from continual.learning.strategy import Batch, Chain, Memory, Step, Strategy
from continual.options import option
from continual.strategies import L2, MIR, Finetune, Replay
from continual.streams.stream import Stream, Task

YAML, PURE, READS, FIRST, MAPPED, RECORDED, SPARES, ASKS, GROWS, INERT, GOES_ON = CHECKS

VARIANTS = [
    *plugins.registered("strategies"),
    "ewc:label=sampled,fisher_samples=5",
    "ewc:label=true,fisher_batch=4,half=false",
    "ewc:label=argmax,terms=last,decay=0.5",
    "l2:towards=zero",
    "l1:towards=zero,strength=0.01",
    "si:clamp=true,damping=0.01",
    "mas:batch_size=1,mean=false",
    "replay:capacity=7,fill=reservoir",
    "replay:capacity=2,per_class=true,share=0.25",
    "replay:capacity=4,fill=reservoir,samples=3,share=0.5",
    "replay:capacity=2",
    "shared-trunk:trunk=frozen",
    "shared-trunk:trunk=trained",
    "ewc+replay",
    "replay:capacity=8+ewc:strength=40",
    "replay:capacity=7+replay:capacity=9,fill=reservoir",
    "si+replay:fill=reservoir,capacity=6",
    "ewc+si+l2",
    "shared-trunk+ewc+replay:capacity=6",
    "mas+shared-trunk:trunk=slowed,rate=0.5",
    "replay:capacity=9+mir:past=true",
    "cumulative+l1",
    "finetune+l2",
]


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("text", VARIANTS)
def test_every_strategy_passes_every_check(text: str, name: str) -> None:
    strategy = config.make_strategy(text)
    assert conformance._problem(CHECKS[name], strategy) is None


def test_checks_are_all_of_them_in_their_order() -> None:
    found = dict(checks(Finetune()))
    assert list(found) == list(CHECKS) and set(found.values()) == {None}


# ---- what each check is there for
#
# Each strategy below is L2, which passes, with one mistake. Where a mistake cannot but break two checks, BAD has both.


@dataclass(frozen=True)
class InPlace(L2):
    """Counts its steps in a tensor of its memory."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return super().init(net, theta, stream) | {"steps": theta.new_zeros(())}

    def after_step(
        self, net: Net, theta: torch.Tensor, memory: Memory, step: Step, task: Task
    ) -> tuple[torch.Tensor, Memory]:
        memory["steps"].add_(1)
        return theta, memory

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, memory | super().after_task(net, theta, memory, task)[1]


@dataclass(frozen=True)
class ThetaInPlace(L2):
    """Scales θ where it lies."""

    def before_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta.mul_(0.5 if task.index else 1.0), memory


@dataclass(frozen=True)
class GradientInPlace(L2):
    """Scales the gradient where it lies, from the second task on."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient.mul_(0.5 if task.index else 1.0)


@dataclass(frozen=True)
class PassesTooMuch(MIR):
    """Gives the step another gradient than that of its own samples; MIR, as L2 has nothing in a batch."""

    def incoming(self, net: Net, theta: torch.Tensor, batch: Batch, task: Task) -> tuple[Out, torch.Tensor]:
        out, gradient = super().incoming(net, theta, batch, task)
        return out, 1.1 * gradient


@dataclass(frozen=True)
class Growing(L2):
    """Keeps the anchor of every task, in a tensor that grows."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return super().init(net, theta, stream) | {"anchors": theta.new_zeros(0, len(theta))}

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        anchors = torch.cat([memory["anchors"], theta[None]])
        return theta, super().after_task(net, theta, memory, task)[1] | {"anchors": anchors}


@dataclass(frozen=True)
class OtherType(L2):
    """Keeps its anchor in single precision."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, super().after_task(net, theta, memory, task)[1] | {"anchor": theta.float()}


@dataclass(frozen=True)
class NewName(L2):
    """Has more in memory after a task than at the start."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, super().after_task(net, theta, memory, task)[1] | {"last": theta}


@dataclass(frozen=True)
class Peeks(L2):
    """It takes the rows of tests for rows of the training table."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        task.samples.images(task.test, theta.dtype)
        return super().after_task(net, theta, memory, task)


@dataclass(frozen=True)
class Rereads(L2):
    """Replays rows of the first task without having stored them."""

    def batch(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        return batch.join(batch.row % 24, task) if task.index else batch


@dataclass(frozen=True)
class LooksAhead(L2):
    """Looks at the images of a later task between tasks."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        images = task.samples.images(task.train[-1:] + 1 if task.index == 0 else task.train[:1], theta.dtype)
        return theta + 0 * images.sum(), super().after_task(net, theta, memory, task)[1]


@dataclass(frozen=True)
class HiddenRows(Replay):
    """Replays, but does not say where its rows are."""

    def init(self, net: Net, theta: torch.Tensor, stream: Stream) -> Memory:
        return {"stored": super().init(net, theta, stream)["rows"]}

    def batch(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, task: Task) -> Batch:
        return super().batch(net, theta, {"rows": memory["stored"]}, batch, task)

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta, {"stored": super().after_task(net, theta, {"rows": memory["stored"]}, task)[1]["rows"]}


@dataclass(frozen=True)
class PullsFromTheStart(L2):
    """Pulls to zero in the first task too, and does not say so."""

    first_task_like_finetuning = True  # type: ignore[assignment]
    towards: Literal["last", "zero"] = option("zero", "θ*")


@dataclass(frozen=True)
class OneStepLess(L2):
    """Leaves a row of each task out."""

    def rows(self, memory: Memory, task: Task) -> torch.Tensor:
        return task.train[:-1]


@dataclass(frozen=True)
class AsksItem(L2):
    """Looks at its loss."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return super().penalty(net, theta, memory, batch, out, task) + 0 * out.logits.sum().item()


@dataclass(frozen=True)
class IndexesByANumber(L2):
    """Takes the line of its task from a table by the task's number."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        strengths = torch.linspace(0.5, 1.5, task.count, dtype=theta.dtype)
        return strengths[task.number] * super().penalty(net, theta, memory, batch, out, task)


@dataclass(frozen=True)
class AsksCpu(L2):
    """Copies to the host in a step, which under vmap and on a processor nobody notices."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return super().penalty(net, theta, memory, batch, out, task) + 0 * out.logits.cpu().sum()


@dataclass(frozen=True)
class Branches(L2):
    """Branches on a tensor."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient if gradient.norm() < 1e6 else gradient / gradient.norm()


@dataclass(frozen=True)
class BooleanIndex(L2):
    """Selects with a mask, from the second task on."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        usual = super().penalty(net, theta, memory, batch, out, task)
        return usual + 0 * theta[theta > 0].sum() if task.index else usual


@dataclass(frozen=True)
class GlobalRandomness(L2):
    """Draws from PyTorch's global generator in a step, from the second task on."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient + 0.01 * torch.randn_like(gradient) if task.index else gradient


@dataclass(frozen=True)
class GlobalRandomnessBetween(L2):
    """Draws from PyTorch's global generator between tasks."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return theta + 0.01 * torch.rand_like(theta), super().after_task(net, theta, memory, task)[1]


@dataclass(frozen=True)
class Unmappable(L2):
    """Fills a buffer of its own, which works for one learner only."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        buffer = torch.zeros(gradient.shape, dtype=gradient.dtype)
        buffer[:] = gradient
        return buffer


@dataclass(frozen=True)
class MixesSeeds(L2):
    """Is another with several seeds: it looks for the batch dimension, and finds it."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        mapped = torch._C._functorch.is_batchedtensor(gradient)
        return gradient * (0.9 if mapped and task.index else 1.0)


@dataclass(frozen=True)
class TermPerTask(L2):
    """Has a term for each task that was learnt, and does not say that it grows."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return sum((super(TermPerTask, self).penalty(net, theta, memory, batch, out, task)
                    for _ in range(task.index)), theta.new_zeros(()))  # fmt: skip


@dataclass(frozen=True)
class WiderEachTask(L2):
    """Does the same operations on more with every task."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        pulls = (theta - memory["anchor"]).expand(task.index + 1, -1)
        return memory["weight"] * pulls.square().sum() / (task.index + 1)


@dataclass(frozen=True)
class SaysItGrows(L2):
    """Says that its steps grow, and they do not."""

    step_grows = True


@dataclass(frozen=True)
class Inert(L2):
    """Has all its hooks, and pulls with a strength of nothing."""

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return 0 * super().penalty(net, theta, memory, batch, out, task)


@dataclass(frozen=True)
class ChangesItsOptions(L2):
    """Halves its strength when it is made, so that it is another when it is made again."""

    def check(self) -> None:
        object.__setattr__(self, "strength", self.strength / 2)


@dataclass(frozen=True)
class HasMoreThanOptions(L2):
    """Has a setting that is no option, so nobody can write it down."""

    scale: float = field(default=1.0, init=False)

    def check(self) -> None:
        object.__setattr__(self, "scale", 1.0 + len(MADE))
        MADE.append(self.scale)


MADE: list[float] = []


@dataclass(frozen=True)
class OptionYamlCannotWrite(L2):
    """Has an option of a type that YAML does not know."""

    kinds: frozenset[int] = option(frozenset({1, 2}), "a set")


@dataclass(frozen=True)
class RemembersInItself(L2):
    """Notes in the object, and not in memory, which task began."""

    def before_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        object.__setattr__(self, "began", task.index)
        return theta, memory

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        return getattr(self, "began", 0) * super().penalty(net, theta, memory, batch, out, task)


@dataclass(frozen=True)
class ComputesElsewhere(L2):
    """Computes in another thread, where nobody records it."""

    first_task_like_finetuning: ClassVar[bool] = False

    def penalty(
        self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task
    ) -> torch.Tensor:
        usual = super().penalty(net, theta, memory, batch, out, task) + 0.01 * theta.square().sum()
        if torch._C._functorch.is_batchedtensor(theta):  # type: ignore[attr-defined]
            return usual * theta.detach().square().sum()
        with ThreadPoolExecutor(1) as pool:
            return usual * pool.submit(lambda: theta.detach().square().sum()).result()


BAD: dict[type[Strategy], dict[str, str]] = {
    InPlace: {PURE: "after_step changes what it is given in place"},
    ThetaInPlace: {PURE: "before_task changes what it is given in place"},
    GradientInPlace: {PURE: "gradient changes what it is given in place"},
    Growing: {PURE: r"after_task gives a memory of another form than init did: .*anchors.*\(1, 166\)"},
    OtherType: {PURE: r"after_task gives a memory of another form than init did: .*anchor.*float32"},
    NewName: {PURE: "after_task gives a memory of another form than init did: .*last"},
    Peeks: {READS: r"row \d+ is read, which is neither the task's nor in memory"},
    Rereads: {READS: r"row \d+ is read, which is neither the task's nor in memory"},
    LooksAhead: {READS: "row 24 is read, which is neither the task's nor in memory"},
    HiddenRows: {READS: r"row \d+ is read, which is neither the task's nor in memory"},
    PullsFromTheStart: {FIRST: "the first task should be learnt as under fine-tuning, but loss differs by up to"},
    OneStepLess: {FIRST: "the first task should be learnt as under fine-tuning"},
    AsksItem: {ASKS: "in task 1 a step called .*item.*, which waits for the device", MAPPED: "item"},
    IndexesByANumber: {ASKS: r"called _local_scalar_dense \(test_conformance.py, line \d+\), which .* of one number"},
    AsksCpu: {ASKS: r"in task 1 a step called cpu \(test_conformance.py, line \d+\), which waits for the device"},
    Branches: {ASKS: "in task 1 a step called .*is_nonzero|_local_scalar_dense.*, which waits", MAPPED: "vmap"},
    BooleanIndex: {
        ASKS: "in task 2 a step called .*index with a boolean index",
        MAPPED: "vmap",
        GROWS: "in the class scenario a step of task 6 takes",  # as many as are positive
    },
    GlobalRandomness: {
        PURE: "gradient gives something else when it is called again",
        MAPPED: "random",
    },
    GlobalRandomnessBetween: {
        PURE: "after_task gives something else when it is called again",
    },
    RemembersInItself: {GOES_ON: "interrupted and gone on with it should end the same, but .* differs by up to"},
    Unmappable: {MAPPED: "vmap"},
    MixesSeeds: {MAPPED: r"seed 0 should be the same in a group and alone, but .* differs by up to"},
    ComputesElsewhere: {RECORDED: "a step should be the same recorded and done by hooks, but .* differs by up to"},
    PassesTooMuch: {SPARES: "without what its batch hook has 'passed' it should end the same, but .* differs by up to"},
    TermPerTask: {GROWS: "in the class scenario a step of task 6 takes .* operations, .* one of task 2"},
    WiderEachTask: {GROWS: "in the class scenario a step of task 6 takes .* bytes .* one of task 2"},
    SaysItGrows: {GROWS: "it says that its steps grow .*, and they do not"},
    Inert: {INERT: "all losses and accuracies are those of fine-tuning: the strategy does nothing"},
    ChangesItsOptions: {
        YAML: "read back from YAML it is another strategy: .*strength",
        GOES_ON: "interrupted and gone on with it should end the same, but .* differs by up to",
    },
    HasMoreThanOptions: {YAML: "read back from YAML it is another strategy"},
    OptionYamlCannotWrite: {YAML: "RepresenterError: .*frozenset"},
}


def problems_of(strategy: Strategy) -> dict[str, str]:
    return {name: problem for name, problem in checks(strategy) if problem}


@pytest.mark.parametrize("cls", BAD, ids=lambda cls: cls.__name__)
def test_a_mistake_is_seen_by_the_check_that_is_there_for_it(cls: type[Strategy]) -> None:
    found, wanted = problems_of(cls()), BAD[cls]
    assert set(found) == set(wanted), found
    for name, message in wanted.items():
        assert_matches(found[name], message)


@pytest.mark.parametrize("cls", BAD, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize(
    "around",
    [lambda bad: (bad, L2(strength=0.01)), lambda bad: (L2(strength=0.01), bad)],
    ids=["first", "last"],
)
def test_a_mistake_is_seen_in_a_chain(cls: type[Strategy], around: Callable[[Strategy], tuple[Strategy, ...]]) -> None:
    """All but what the other part makes up for: a chain is inert only if both parts are, and has all pass."""
    found, wanted = problems_of(Chain(around(cls()))), set(BAD[cls]) - {INERT, SPARES}
    assert set(found) == wanted, found


def assert_matches(text: str, pattern: str) -> None:
    assert re.search(pattern, text, re.DOTALL), f"{text!r} does not say {pattern!r}"


def test_every_check_has_a_mistake_that_only_it_sees() -> None:
    alone = {next(iter(wanted)) for wanted in BAD.values() if len(wanted) == 1}
    assert alone == set(CHECKS)


def test_a_mapped_division_by_a_number_is_no_question() -> None:
    """Under vmap PyTorch turns the number itself into an operation's argument."""
    with Asked() as asked:
        got = torch.vmap(lambda one: one.sum() / 8)(torch.ones(3, 4, dtype=torch.float64))
    assert got.tolist() == [0.5] * 3 and not asked.found


# ---- the command's face


def test_check_says_all_that_is_wrong_and_by_which_check() -> None:
    with pytest.raises(AssertionError) as raised:
        check(AsksItem())
    lines = str(raised.value).splitlines()
    assert any(line.startswith(f"{ASKS}: ") for line in lines) and any(line.startswith(f"{MAPPED}: ") for line in lines)
    check("ewc:strength=3+replay:capacity=6")
    check(Finetune())
    with pytest.raises(Mistake, match="did you mean 'ewc'"):
        check("ewk")


@dataclass(frozen=True)
class Raises(L2):
    """Raises an error of its own."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        raise ZeroDivisionError("no task is ever over")


def test_an_error_in_a_strategy_is_told_and_does_not_stop_the_checks() -> None:
    found = problems_of(Raises())
    assert set(found) == set(CHECKS) - {YAML, SPARES}  # it has no batch hook
    place = f"(test_conformance.py, line {Raises.after_task.__code__.co_firstlineno + 1})"
    assert found.pop(PURE) == f"after_task: ZeroDivisionError: no task is ever over {place}"
    assert set(found.values()) == {f"ZeroDivisionError: no task is ever over {place}"}


@dataclass(frozen=True)
class GivesNothing(L2):
    """Forgets to return."""

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        return None  # type: ignore[return-value]


def test_a_hook_that_gives_nothing_is_named() -> None:
    assert_matches(problems_of(GivesNothing())[PURE], "after_task: BadChain: GivesNothing.after_task gives a NoneType")


@dataclass(frozen=True)
class Diverges(L2):
    """Its loss is not finite from the second task on."""

    def loss(self, net: Net, theta: torch.Tensor, memory: Memory, batch: Batch, out: Out, task: Task) -> torch.Tensor:
        return super().loss(net, theta, memory, batch, out, task) * (torch.nan if task.index else 1.0)


def test_a_loss_that_is_lost_is_told_with_its_place() -> None:
    assert_matches(
        problems_of(Diverges())[INERT], "seed 0 was stopped: loss or parameters not finite at task 2, step 1"
    )


@dataclass(frozen=True)
class NotThisStream(L2):
    """Says that it does not suit the stream of the checks."""

    def suits(self, stream: Stream, net: Net) -> None:
        raise BadChain("it wants images of 5x5")


def test_a_strategy_that_does_not_suit_the_small_stream_is_told_why() -> None:
    assert "BadChain: it wants images of 5x5" in problems_of(NotThisStream()).values()


@dataclass(frozen=True)
class Saves(L2):
    """Randomness as it should be: from the key, in a step and between tasks."""

    def gradient(
        self, net: Net, theta: torch.Tensor, memory: Memory, gradient: torch.Tensor, batch: Batch, task: Task
    ) -> torch.Tensor:
        return gradient + 0.01 * batch.key.normal("noise", len(gradient)) if task.index else gradient

    def after_task(self, net: Net, theta: torch.Tensor, memory: Memory, task: Task) -> tuple[torch.Tensor, Memory]:
        noise = task.key.normal("noise", len(theta))
        return theta + 0.01 * noise, super().after_task(net, theta, memory, task)[1]


def test_randomness_from_the_key_is_no_mistake() -> None:
    assert problems_of(Saves()) == {}
