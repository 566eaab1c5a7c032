"""avalanche-lib's strategies where ours can stand: ``continual run split-digits ewc avalanche:EWC:ewc_lambda=0.4``.

They train in avalanche-lib's own loop, on the run's protocol: the same untrained weights, optimiser, learning rate,
batch size, epochs, rows and active outputs. Their random numbers are PyTorch's, seeded with the run's seed.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from continual.avalanche import library
from continual.errors import BadChain, BadOption, UnknownName, choices, unknown
from continual.learning.strategy import Strategy
from continual.options import members, option

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.learning.seeds import Learners
    from continual.learning.train import Stopped, Watch
    from continual.learning.training import Training
    from continual.streams.augment import Augmentation
    from continual.streams.stream import Stream

USUAL = (
    "self", "model", "optimizer", "criterion", "train_mb_size", "train_epochs", "eval_mb_size", "device", "plugins",
    "evaluator", "eval_every", "peval_mode",
)  # fmt: skip
REFUSED = {
    "JointTraining": "is trained once, on all tasks, and has no accuracies after each; use joint:every=false, or "
    "avalanche:Cumulative",
    "ER_AML": "waits for ever, in avalanche-lib 0.6, for classes that its memory does not hold yet; use "
    "avalanche:ER_ACE",
}


@dataclass(frozen=True)
class Theirs(Strategy):
    """A strategy of avalanche-lib; its options are the arguments that its constructor takes."""

    trains_itself: ClassVar[bool] = True
    can_be_captured: ClassVar[bool] = False
    libraries: ClassVar[tuple[str, ...]] = (library.NAME,)
    their_name: ClassVar[str]
    required: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def read(cls, values: dict[str, Any], owner: str = "") -> Self:
        """See :class:`~continual.options.Configured`; what has no default has to be given."""
        missing = [name for name in cls.required if values.get(name) is None]
        if missing:
            given = ",".join(f"{name}=VALUE" for name in missing)
            raise BadOption(
                f"{owner} needs {choices(missing)}, which avalanche-lib has no default for: {owner}:{given}"
            )
        return super().read(values, owner)

    def suits(self, stream: Stream, net: Net) -> None:
        """See :meth:`Strategy.suits`."""
        import torch

        from continual.avalanche.networks import plain

        super().suits(stream, net)
        plain(net, torch.zeros(net.size))

    def suits_training(self, training: Training, augmentation: Augmentation) -> None:
        """See :meth:`Strategy.suits_training`."""
        title = f"avalanche:{self.their_name}"
        if augmentation.active:
            raise BadChain(f"{title}: avalanche-lib's loop is given images as they are; run it with --augment none")
        if training.keep_learners != "none":
            raise BadChain(f"{title}: avalanche-lib's loop gives no learner that could be kept; leave keep_learners "
                           "(--keep-learners) out")  # fmt: skip
        if training.unused_outputs == "hold":
            raise BadChain(f"{title}: in avalanche-lib's loop the optimiser moves all outputs; leave unused_outputs "
                           "(--unused-outputs) out")  # fmt: skip
        if training.precision == "bfloat16":
            raise BadChain(f"{title}: avalanche-lib's loop computes in the precision of its weights; give "
                           "--precision float32, tf32 or float64")  # fmt: skip

    def train(self, learners: Learners, training: Training, watch: Watch) -> tuple[dict[str, Tensor], list[Stopped]]:
        """See :meth:`Strategy.train`."""
        from continual.avalanche.loop import Loop

        return Loop(self.their_name, self.values(), learners, training, watch).run()


@functools.cache
def strategy(name: str) -> type[Theirs]:
    """The strategy, or the plug-in with ``Naive``, that has this name in avalanche-lib, as a strategy of ours."""
    cls = _class(name)
    given = inspect.signature(inspect.unwrap(cls.__init__)).parameters
    hints = _hints(cls)
    if not {"model", *library.PARTS} & set(given) and not issubclass(cls, library.part("core").SupervisedPlugin):
        raise UnknownName(f"strategy 'avalanche:{name}' brings a network of its own, so it cannot be held against "
                          "others; use avalanche-lib itself, on continual.avalanche.benchmark(stream)")  # fmt: skip
    fields: list[tuple[str, Any, Any]] = []
    required = []
    for one in given.values():
        hint = _hint(hints.get(one.name, one.annotation), one.default)
        if one.name in (*USUAL, *library.PARTS) or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
            continue
        if hint is None and one.default is one.empty:
            raise UnknownName(f"strategy 'avalanche:{name}' needs {one.name}, which a run cannot give it; use "
                              "avalanche-lib itself, on continual.avalanche.benchmark(stream)")  # fmt: skip
        if hint is not None:
            required += [one.name] if one.default is one.empty else []
            default = _empty(hint) if one.default is one.empty else one.default
            fields.append((one.name, hint, option(default, f"see avalanche-lib's {name}")))
    namespace = {"__module__": __name__, "__doc__": cls.__doc__ or cls.__init__.__doc__, "their_name": name,
                 "required": tuple(required)}  # fmt: skip
    return dataclasses.make_dataclass(cls.__name__, fields, bases=(Theirs,), frozen=True, namespace=namespace)


def _class(name: str) -> Any:
    """The class of a strategy or plug-in."""
    strategies, plugins = library.part("training.supervised"), library.part("training.plugins")
    template, plugin = (
        library.part("training.templates.base_sgd").BaseSGDTemplate,
        library.part("core").SupervisedPlugin,
    )
    known = {
        found: value
        for module, base in ((plugins, plugin), (strategies, template))
        for found, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name in REFUSED:
        raise UnknownName(f"strategy 'avalanche:{name}' {REFUSED[name]}")
    if name not in known:
        raise unknown("strategy of avalanche-lib", name, known)
    return known[name]


def _hints(cls: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(inspect.unwrap(cls.__init__))
    except (NameError, TypeError):  # a name that is there for type checkers alone
        return {}


def _hint(given: Any, default: Any) -> Any:
    """The type of an argument that text can give: a number, a word, or one of these or none; else nothing."""
    if given is inspect.Parameter.empty:
        given = type(default)
    kinds = members(given)
    plain = [one for one in kinds if one in (bool, int, float, str)]
    if not plain or (default is not None and type(default) not in (bool, int, float, str, type)):
        return None
    first = float if isinstance(default, float) else plain[0]  # some are said to be integers and are not
    return first | None if type(None) in kinds or default is None else first


def _empty(hint: Any) -> Any:
    """A value that stands where one has to be given."""
    return next((kind() for kind in (bool, int, float, str) if hint is kind), None)
