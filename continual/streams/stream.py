"""A stream: a sequence of tasks over one table of samples, and the ways to make one from a data set.

A row number names a sample: which image it is, which task it belongs to and which output unit is right for it. So a
batch, an exemplar memory and a validation set are all lists of row numbers, whatever the scenario.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
import torch

from continual.errors import BadOption, BadStream, brief, counted, listed
from continual.options import Configured, option
from continual.streams.pieces import channels_last, taken
from continual.streams.rng import Key, key
from continual.streams.transforms import Permute, Rotate, Transform, rotation_grids, scaled

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.augment import Shown
    from continual.streams.data import Data

Scenario = Literal["task", "domain", "class"]
Active = Literal["task", "seen", "all"]
ACTIVE: dict[str, Active] = {"task": "task", "domain": "all", "class": "seen"}


MOST_PADDED = 64
"""Black pixels on each side, at most."""


@dataclass(frozen=True, eq=False, repr=False)
class Samples:
    """A table of samples over images that are kept as they were packed (``uint8``), on one device.

    ``pixels`` (M, C, H, W), which may lie with their channels last, and in the host's memory while the rest is on a
    GPU; for each of N rows ``image`` (index into pixels), ``y`` (output unit) and ``task``, (N,) int64 each. A pixel
    value v is shown as ``v * scale + shift``; ``top`` is the value that stands for 1. Where channels differ,
    ``channel`` (2, C, 1, 1) has a factor and a term for each instead; where a step wants images with their
    ``channels_last``, (2, C, H, W), the same for each pixel, as they lie then. Where they lie ``in_file``, they are
    read from it as they are needed.
    """

    pixels: Tensor
    image: Tensor
    y: Tensor
    task: Tensor
    scale: float
    shift: float
    top: float
    channel: Tensor | None = None
    transforms: tuple[Transform, ...] = ()
    shown: Shown | None = None
    in_file: bool = False
    channels_last: bool = False

    def __repr__(self) -> str:
        kind = f"{'x'.join(map(str, self.pixels.shape[1:]))} {str(self.pixels.dtype).removeprefix('torch.')}"
        return f"<Samples: {len(self.image)} rows, {len(self.pixels)} images of {kind} on {self.pixels.device}>"

    def images(self, rows: Tensor, dtype: torch.dtype) -> Tensor:
        """The images of the rows (B,) as their tasks show them, normalised: (B, C, H, W); in a step also augmented."""
        # index_select is several times faster than indexing on a CPU
        index = self.image.index_select(0, rows)
        pixels = self.taken(index.to(self.pixels.device)).to(index.device)
        shown, by_task = self.shown, self.transforms or (self.shown is not None and self.shown.augmentation.by_task)
        tasks = self.task.index_select(0, rows) if by_task else rows
        if shown is not None:
            pixels = shown.moved(pixels, tasks)
        given = x = scaled(pixels, self.scale, dtype)
        if shown is not None:
            x = shown.coloured(x, tasks, self.scale * self.top)
        for transform in self.transforms:
            x = transform(x, tasks)
        x = x + self.shift if self.shift else x
        seen, x = x, self._laid_out(x)
        if self.channel is not None:
            factor, term = self.channel
            own = x is given or x is not seen  # what was made here can be changed in place
            x = x.mul_(factor) if own else x * factor
            x = x.add_(term)  # addcmul takes three times as long on a CPU where there is one number for each channel
        return x if shown is None else self._laid_out(shown.covered(x, tasks))

    def taken(self, image: Tensor) -> Tensor:
        """The pixels (B, C, H, W) of some images (B,), as they are stored."""
        last = channels_last(self.pixels)
        stored = self.pixels.movedim(1, -1) if last else self.pixels  # each image is then copied as one piece
        found = taken(stored, image)
        return found.movedim(-1, 1) if last else found

    def _laid_out(self, x: Tensor) -> Tensor:
        if self.channels_last and x.shape[1] == 1:
            # kernels go by the strides, which contiguous() leaves alone where there is one channel
            return x.contiguous().squeeze(1).unsqueeze(-1).movedim(-1, 1)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x.contiguous()

    def labels(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The output units and the tasks of the rows (B,): (B,) each."""
        return self.y.index_select(0, rows), self.task.index_select(0, rows)

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What may differ between the streams of two seeds."""
        return (self.image, self.y, self.task, *(transform.table for transform in self.transforms))

    def with_tables(self, tables: tuple[Tensor, ...]) -> Samples:
        """The same pixels under other tables."""
        image, y, task, *rest = tables
        shown = tuple(dataclasses.replace(old, table=new) for old, new in zip(self.transforms, rest, strict=True))
        return dataclasses.replace(self, image=image, y=y, task=task, transforms=shown)


def only(scores: Tensor, active: Tensor | None) -> Tensor:
    """The scores (B, K), those of outputs that are not active at the lowest number there is.

    ``active``: bool (K,) or (B, K); None: all.
    """
    return scores if active is None else scores.masked_fill(~active, torch.finfo(scores.dtype).min)


@dataclass(frozen=True, eq=False, repr=False)
class Outputs:
    """The active outputs: which logits take part. ``units`` (T, K) bool says which units are a task's own."""

    active: Active
    units: Tensor
    seen: Tensor = dataclasses.field(init=False)
    """The units of each task and of those before it (T, K)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "seen", self.units.cumsum(0) > 0)

    def __repr__(self) -> str:
        return f"<Outputs: {self.active} of {self.units.shape[1]}>"

    def among(self, seen: Tensor, tasks: Tensor) -> Tensor | None:
        """When units ``seen`` (K,) have been, for samples of ``tasks`` (B,): bool (K,) or (B, K); None means all."""
        if self.active == "all":
            return None
        return self.units[tasks] if self.active == "task" else seen

    def mask(self, index: int, tasks: Tensor) -> Tensor | None:
        """The same while task ``index`` is the latest."""
        return self.among(self.seen[index], tasks)

    def apply(self, scores: Tensor, index: int, tasks: Tensor) -> Tensor:
        """The scores (B, K) with those of inactive outputs at the lowest number there is."""
        return only(scores, self.mask(index, tasks))

    def own(self, scores: Tensor, tasks: Tensor) -> Tensor:
        """The scores (B, K) of the outputs of each sample's own task (B,), whichever are active; see :func:`only`."""
        return only(scores, self.units[tasks])

    @property
    def told(self) -> Outputs:
        """The same where each sample's task is told: its own outputs are active."""
        return dataclasses.replace(self, active="task")

    def to(self, device: torch.device | str) -> Outputs:
        """The outputs on a device."""
        return dataclasses.replace(self, units=self.units.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """One task, as hooks and readers see it.

    ``index`` counts from 0 among ``count`` tasks; ``classes`` are the names of its classes in the order of their
    units; ``train`` and ``validation`` are rows of ``samples``, ``test`` rows of the stream's test samples, (n,) int64
    each; ``outputs`` are the active outputs in training; ``key`` is where its random numbers come from.
    """

    index: int
    count: int
    classes: tuple[str, ...]
    train: Tensor
    validation: Tensor
    test: Tensor
    samples: Samples
    outputs: Outputs
    key: Key

    def __repr__(self) -> str:
        parts = {"training": self.train, "validation": self.validation, "test": self.test}
        rows = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if len(part))
        return f"<Task {self.index + 1} of {self.count}: {listed(self.classes, 6)}; rows: {rows or 'none'}>"

    @property
    def first(self) -> bool:
        """Whether it is the first task."""
        return self.index == 0

    @property
    def number(self) -> Tensor:
        """``index`` as a tensor, () int64."""
        return torch.full((), self.index, device=self.outputs.units.device)  # made there, for which nobody waits

    @property
    def own_units(self) -> Tensor:
        """Which output units are this task's own: bool (K,)."""
        return self.outputs.units[self.index]

    @property
    def past_units(self) -> Tensor:
        """Which output units belong to an earlier task: bool (K,)."""
        return self.outputs.units[: self.index].any(0)

    @property
    def old_units(self) -> Tensor:
        """Which output units belong to an earlier task and not to this one: bool (K,)."""
        return self.past_units & ~self.own_units

    @property
    def seen_units(self) -> Tensor:
        """Which output units belong to this task or an earlier one: bool (K,)."""
        return self.outputs.seen[self.index]

    def mask(self, tasks: Tensor) -> Tensor | None:
        """The active outputs for samples of ``tasks`` (B,): bool (K,) or (B, K); None means all."""
        return self.outputs.among(self.seen_units, tasks)

    def active(self, scores: Tensor, tasks: Tensor) -> Tensor:
        """The scores (B, K) of samples of ``tasks`` (B,), those of inactive outputs at the lowest number there is."""
        return only(scores, self.mask(tasks))

    def with_key(self, key: Key) -> Task:
        """The same task with another key."""
        return dataclasses.replace(self, key=key)


@dataclass(frozen=True, eq=False, repr=False)
class Stream:
    """A sequence of tasks; ``data`` and ``options`` are what it was made of."""

    scenario: Scenario
    samples: Samples
    test_samples: Samples
    tasks: tuple[Task, ...]
    test_outputs: Outputs
    data: Data
    options: StreamOptions
    as_built: bool = dataclasses.field(default=False, init=False)
    """Whether it is what the options make of the data, and nothing was replaced in it."""

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.shape))
        return (f"<Stream {self.data.name}: {len(self.tasks)} tasks, {self.scenario} scenario, "
                f"{self.units} outputs, images of {shape}>")  # fmt: skip

    def with_samples(self, train: Samples, test: Samples) -> Stream:
        """The same stream, of whose samples each row is another one."""
        tasks = tuple(dataclasses.replace(task, samples=train) for task in self.tasks)
        made = dataclasses.replace(self, samples=train, tasks=tasks, test_samples=test)
        return made.called_built() if self.as_built else made

    def called_built(self) -> Self:
        """The stream, of which is known that it can be made anew."""
        object.__setattr__(self, "as_built", True)
        return self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image, (C, H, W)."""
        return tuple(self.samples.pixels.shape[1:])

    @property
    def units(self) -> int:
        """The number K of output units."""
        return self.test_outputs.units.shape[1]

    @property
    def record(self) -> dict[str, Any]:
        """What a run's record says of it: the data with its checksum, the kind of stream, every option."""
        made = {"name": self.data.name, "sha256": self.data.sha256, "stream": type(self.options).__name__.lower()}
        return made | {"top": self.data.top} | self.options.values() | self.options.checksums()

    @classmethod
    def from_arrays(
        cls, x: Any, y: Any, x_test: Any, y_test: Any, name: str = "arrays", classes: Sequence[str] | None = None,
        top: float | None = None, seed: int = 0, **options: Any,
    ) -> Stream:  # fmt: skip
        """A split stream from arrays, tensors or lists: images (N, ...) and integer labels (N,).

        ``classes`` and ``top`` as in :meth:`continual.streams.data.Data.from_arrays`; ``seed`` is the one whose stream
        it is, and a run makes those of its own seeds; ``options`` are those of
        :class:`Split` (``tasks``, ``scenario``, ``order``, ...). Raises :class:`~continual.errors.BadData` for arrays
        that don't fit, :class:`~continual.errors.BadOption` for options that are not allowed,
        :class:`~continual.errors.BadStream` for tasks that cannot be made of them.
        """
        from continual.streams.data import Data

        return split(Data.from_arrays(x, y, x_test, y_test, name, classes, top), seed=seed, **options)

    @classmethod
    def from_datasets(
        cls, train: Any, test: Any, name: str = "datasets", classes: Sequence[str] | None = None,
        top: float | None = None, seed: int = 0, **options: Any,
    ) -> Stream:  # fmt: skip
        """The same from two map-style ``torch.utils.data.Dataset`` objects that give (image, label)."""
        from continual.streams.data import Data

        return split(Data.from_datasets(train, test, name, classes, top), seed=seed, **options)

    def stream(self, seed: int, root: Any = None) -> Stream:
        """The same stream for another seed of a run: a stream can stand where a benchmark can.

        Raises :class:`~continual.errors.BadStream` where something was replaced in it, which would be lost.
        """
        if not self.as_built:
            raise BadStream(f"{self.data.name}: something was replaced in this stream after it was made, and a run "
                            "makes it anew for each seed; use the options, or a benchmark of your own")  # fmt: skip
        return self.options.build(self.data, seed)


def class_order(order: str | tuple[int, ...], classes: int, seed: int) -> list[int]:
    """The order in which classes come: ``natural``, ``seed`` (drawn anew for each seed), ``icarl``'s, or given."""
    if order == "natural":
        return list(range(classes))
    if order == "icarl":
        return cast(list[int], np.random.RandomState(1993).permutation(classes).tolist())
    if order == "seed":
        return cast(list[int], key(seed).permutation("class order", classes).tolist())
    given = [int(label) for label in order]
    if sorted(given) != list(range(classes)):
        raise BadStream(f"class order {'-'.join(map(str, given))}: give each of the {classes} classes 0 to "
                        f"{classes - 1} once")  # fmt: skip
    return given


def set_aside(y: Tensor, fraction: float, seed: int) -> Tensor:
    """Which rows are for validation: bool (N,), the fraction of every class, rounded down, chosen by the seed."""
    chosen = torch.zeros(len(y), dtype=torch.bool)
    for label in y.unique().tolist():
        rows = (y == label).nonzero().squeeze(1)
        shuffled = rows[key(seed, task=label).permutation("validation", len(rows))]
        # the fraction as it is written: 0.29 of 100 rows are 29, where 0.29 * 100 is a little less
        chosen[shuffled[: int(Fraction(str(fraction)) * len(rows))]] = True
    return chosen


@functools.lru_cache(maxsize=8)
def prepared(data: Data, pad: int, normalize: str) -> tuple[Data, float, float]:
    """The data padded, with the (scale, shift) of its pixel values; once for all seeds, it reads every pixel.

    ``standard`` takes values to mean 0 and deviation 1 over all training pixels, the others take them to [0, 1].
    """
    data = data.pad(pad) if pad else data
    if normalize != "standard":
        return data, 1.0 / data.top, 0.0
    if data.x.dtype == torch.uint8:
        from continual.streams.data import in_parts

        counts = torch.stack([torch.bincount(part.flatten(), minlength=256) for part in in_parts(data.x)]).sum(0)
        counts, values = counts.double(), torch.arange(256).double()
        mean = (counts * values).sum() / counts.sum()
        deviation = ((counts * (values - mean).square()).sum() / counts.sum()).sqrt()
    else:
        mean, deviation = data.x.double().mean(), data.x.double().std(correction=0)
    if deviation == 0:
        raise BadStream(f"{data.name}: all pixels are equal, so they cannot be standardised; use normalize=unit")
    return data, float(1 / deviation), float(-mean / deviation)


@dataclass(frozen=True)
class StreamOptions(Configured):
    """What all streams can be asked for; a subclass says which classes each task has."""

    scenario: Scenario = option(
        "class", "task: the task is told at test time; domain: all tasks share their outputs; class: nothing is told"
    )
    train_outputs: Literal["default", "task", "seen", "all"] = option(
        "default", "outputs active in training; default: task in the task scenario, seen in class, all in domain"
    )
    test_outputs: Literal["default", "task", "seen", "all"] = option("default", "outputs active in evaluation")
    validation: float = option(0.0, "fraction of each class's training rows set aside for validation", ge=0, lt=1)
    validation_seed: int = option(0, "which rows are set aside", ge=0, lt=2**31)
    normalize: Literal["unit", "standard", "channel", "imagenet"] = option(
        "unit",
        "pixels to [0, 1]; to mean 0 and deviation 1, of all or of each channel; or by ImageNet's means and deviations",
    )
    pad: int = option(0, "black pixels added on each side", ge=0, le=MOST_PADDED)
    limit: int | None = option(
        None, "at most so many training rows of each class, and validation rows in proportion", ge=1
    )
    limit_by: Literal["seed", "task"] | None = option(
        None,
        "which training rows a limit leaves: drawn anew for each seed, or for each seed and task; none: the first of "
        "each class",
    )
    test_limit: int | None = option(None, "at most so many test rows of each class", ge=1)

    def check(self) -> None:
        """What a limit leaves needs a limit."""
        if self.limit is None:
            self.check_unused("without limit", "limit_by")

    def __init_subclass__(cls, **options: Any) -> None:
        """What a subclass builds it can build again."""
        super().__init_subclass__(**options)
        if build := vars(cls).get("build"):

            @functools.wraps(build)
            def built(self: StreamOptions, *given: Any, **named: Any) -> Stream:
                made: Stream = build(self, *given, **named)
                return made.called_built()

            cls.build = built  # type: ignore[method-assign]

    def build(self, data: Data, seed: int = 0) -> Stream:
        """The stream of a seed from loaded data; :class:`~continual.errors.BadStream` where it cannot be made."""
        raise NotImplementedError

    def assemble(self, data: Data, groups: list[list[int]], seed: int, *transforms: Transform) -> Stream:
        """The stream whose tasks have these classes."""
        source, (data, scale, shift) = data, prepared(data, self.pad, self.normalize)
        channel = None
        if self.normalize in ("channel", "imagenet"):
            channel, scale = channels(data, self.normalize), 1.0  # one factor for both
        held = set_aside(data.y, self.validation, self.validation_seed)
        # where each task shows its images in a way of its own, a class is another one in each
        units, positions = units_of(groups, "task" if transforms and self.scenario == "class" else self.scenario)
        as_shown: dict[str, Any] = {"scale": scale, "shift": shift, "top": data.top, "channel": channel}
        train, test = (
            table(x, y, positions, **as_shown, transforms=transforms)
            for x, y in ((data.x, data.y), (data.x_test, data.y_test))
        )
        names = [tuple(data.classes[label] for label in labels) for labels in groups]
        return self.divided(source, train, test, units, names, held, seed)

    def divided(
        self, data: Data, train: Samples, test: Samples, units: Tensor, names: list[tuple[str, ...]], held: Tensor,
        seed: int,
    ) -> Stream:  # fmt: skip
        """The stream of two tables whose rows have their tasks already.

        ``units`` (T, K) bool are each task's output units and ``names`` the names of its classes; ``held`` (N,) bool
        says which of the data's training rows are for validation.
        """
        outputs = [
            Outputs(ACTIVE[self.scenario] if given == "default" else given, units)
            for given in (self.train_outputs, self.test_outputs)
        ]
        part, rest = Fraction(str(self.validation)), self.limit
        if self.limit and self.validation:  # as many as belong to so many training rows
            rest = max(1, int(self.limit * part / (1 - part)))
        each = len(names) if self.limit_by == "task" else 1  # else all tasks have the same
        drawn = [self._drawn(seed, index) for index in range(each)]
        kept = [~held & _some(data.y, held, self.limit, one) for one in drawn]
        aside = [held & _some(data.y, ~held, rest, one) for one in drawn]
        tested = _some(data.y_test, torch.zeros_like(data.y_test, dtype=torch.bool), self.test_limit)
        tasks = tuple(
            Task(
                index=index,
                count=len(names),
                classes=classes,
                train=_rows(train, index, kept[index % each]),
                validation=_rows(train, index, aside[index % each]),
                test=_rows(test, index, tested),
                samples=train,
                outputs=outputs[0],
                key=key(seed, index),
            )
            for index, classes in enumerate(names)
        )
        for task in tasks:
            if not len(task.train) or not len(task.test):
                few = [f"{name}={limit}" for name in ("limit", "test_limit") if (limit := getattr(self, name))]
                raise BadStream(f"{data.name}: task {task.index + 1} ({', '.join(task.classes)}) has {len(task.train)} "
                                f"training and {len(task.test)} test rows{' with ' if few else ''}{' and '.join(few)}; "
                                "every task needs some of both")  # fmt: skip
        return Stream(self.scenario, train, test, tasks, outputs[1], data, self)

    def _drawn(self, seed: int, index: int) -> Key | None:
        """Where the rows that a limit leaves to a task are drawn from; None: they are the first."""
        return {None: None, "seed": key(seed), "task": key(seed, index)}[self.limit_by]

    def checksums(self) -> dict[str, Any]:
        """What a run's record says of a stream beside its data and these options."""
        return {}


@dataclass(frozen=True)
class Split(StreamOptions):
    """Tasks that divide the classes; where they don't divide evenly the first ones that could have one class more."""

    tasks: int = option(5, "number of tasks", ge=1)
    order: Literal["natural", "seed", "icarl"] | tuple[int, ...] = option(
        "natural",
        "class order: natural, drawn anew for each seed, that of iCaRL's code and its successors' (NumPy's legacy "
        "generator with seed 1993), or given as in 3-1-4-0-2",
        ge=0,
    )
    first: int | None = option(None, "classes of the first task; none: as many as others have", ge=1)

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        return self.assemble(data, self.in_order(len(data.classes), seed, data.name), seed)

    def in_order(self, classes: int, seed: int, name: str) -> list[list[int]]:
        """The classes of each task, of a data set with so many: those of :meth:`groups`, in the order of classes."""
        ordered, groups = class_order(self.order, classes, seed), self._groups(classes, seed, name)
        if len(groups) != self.tasks:
            raise BadStream(f"{name}: {type(self).__name__}.groups divides its classes into "
                            f"{counted(len(groups), 'task')}, and tasks is {self.tasks}; give tasks={len(groups)}, or "
                            "make it the default")  # fmt: skip
        if self.first not in (None, len(groups[0])):
            raise BadStream(
                f"{name}: {type(self).__name__}.groups has a first task of "
                f"{counted(len(groups[0]), 'class', 'classes')}, and first is {self.first}; leave it out"
            )
        return [[ordered[place] for place in group] for group in groups]

    def _groups(self, classes: int, seed: int, name: str) -> list[list[int]]:
        """What :meth:`groups` gives, in whatever it comes, as lists of places."""
        given = self.groups(classes, seed, name)
        parts: Iterable[Any] = given if isinstance(given, Iterable) else ()
        groups = [[_place(one) for one in part] if isinstance(part, Iterable) else [] for part in parts]
        if not groups or not all(len(set(one)) == len(one) > 0 <= min(one) <= max(one) < classes for one in groups):
            raise BadStream(f"{name}: {type(self).__name__}.groups gives {brief(given)}; it takes a list for each task "
                            f"of one number or more from 0 to {classes - 1}, each once")  # fmt: skip
        return groups

    def groups(self, classes: int, seed: int, name: str) -> list[list[int]]:
        """The places of each task's classes in the order of classes, from 0: one behind the other."""
        tasks, first = self.tasks, self.first
        if first is None and tasks > classes:
            raise BadStream(f"{name} has {counted(classes, 'class', 'classes')}, too few for {tasks} tasks; give it "
                            f"{counted(classes, 'task')}{' or fewer' if classes > 1 else ''}")  # fmt: skip
        left, others = classes - (first or 0), tasks - (first is not None)
        if left < others or (left and not others):
            further = f"{counted(others, 'further task')}, each of which takes one at least"
            raise BadStream(f"{name} has {counted(classes, 'class', 'classes')}, of which first={first} leaves "
                            f"{max(0, left)} to {further if others else 'no further task'}")  # fmt: skip
        sizes = [left // others + (t < left % others) for t in range(others)]
        sizes = sizes if first is None else [first, *sizes]
        starts = [sum(sizes[:t]) for t in range(tasks)]
        return [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=True)]


@dataclass(frozen=True)
class Permuted(StreamOptions):
    """Tasks that all have every class, each with its own order of the pixels (the first task: as they are)."""

    scenario: Scenario = option("domain", "as for a split stream")
    tasks: int = option(10, "number of tasks", ge=1, le=1000)
    permutation_seed: int | None = option(
        None, "where the orders are drawn from; none: the seed of the run", ge=0, lt=2**31
    )

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        if self.normalize in ("channel", "imagenet") and data.x.ndim == 4 and data.x.shape[1] > 1:
            raise BadStream(f"{data.name}: permuted tasks take pixels of one channel to another's place, so none is "
                            f"normalised by itself; use normalize=standard, not {self.normalize}")  # fmt: skip
        source = seed if self.permutation_seed is None else self.permutation_seed
        pixels = prepared(data, self.pad, self.normalize)[0].x[0].numel()
        drawn = [key(source, task=t).permutation("pixels", pixels) for t in range(1, self.tasks)]
        everything = [list(range(len(data.classes)))] * self.tasks
        return self.assemble(data, everything, seed, Permute(torch.stack([torch.arange(pixels), *drawn])))


@dataclass(frozen=True)
class Rotated(StreamOptions):
    """Tasks that all have every class, each with the images turned by one angle."""

    scenario: Scenario = option("domain", "as for a split stream")
    angles: tuple[int, ...] = option((0, 36, 72, 108, 144), "counter-clockwise degrees, one per task", ge=0, lt=360)

    def check(self) -> None:
        """There is a task."""
        super().check()
        if not self.angles:
            raise BadOption("angles: give at least one, such as 0-45-90")

    def build(self, data: Data, seed: int = 0) -> Stream:
        """See :meth:`StreamOptions.build`."""
        if data.x.ndim != 4:
            raise BadStream(f"{data.name}: rotated tasks need images with a height and a width")
        height, width = prepared(data, self.pad, self.normalize)[0].x.shape[-2:]
        everything = [list(range(len(data.classes)))] * len(self.angles)
        grids = rotation_grids([float(angle) for angle in self.angles], height, width)
        return self.assemble(data, everything, seed, Rotate(grids))


def _place(given: Any) -> int:
    """A place in the order of classes; -1 for what is none."""
    try:
        return -1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        return -1


def split(data: Data, *, seed: int = 0, **options: Any) -> Stream:
    """A stream whose tasks divide the classes; ``options`` are those of :class:`Split`."""
    return Split.read(options, "a split stream").build(data, seed)


def permuted(data: Data, *, seed: int = 0, **options: Any) -> Stream:
    """A stream whose tasks show the pixels in orders of their own; ``options`` are those of :class:`Permuted`."""
    return Permuted.read(options, "a permuted stream").build(data, seed)


def rotated(data: Data, *, seed: int = 0, **options: Any) -> Stream:
    """A stream whose tasks turn the images; ``options`` are those of :class:`Rotated`."""
    return Rotated.read(options, "a rotated stream").build(data, seed)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and deviations of ImageNet's channels, which torchvision's pretrained networks are made for."""


@functools.lru_cache(maxsize=8)
def channels(data: Data, normalize: str) -> Tensor:
    """Factor and term (2, C, 1, 1), which take the pixels of each channel to mean 0 and deviation 1.

    The data's own are those of all training pixels, which are read for it.
    """
    from continual.streams.data import in_parts

    if data.x.ndim != 4:
        raise BadStream(f"{data.name}: samples {tuple(data.x.shape[1:])} have no channels; use normalize=standard")
    if normalize == "imagenet":
        if data.x.shape[1] != 3:
            raise BadStream(
                f"{data.name}: normalize=imagenet is for images of 3 channels, these have {data.x.shape[1]}"
            )
        mean, deviation = (torch.tensor(values, dtype=torch.float64) for values in IMAGENET)
    else:
        sums, squares = torch.zeros(2, data.x.shape[1], dtype=torch.float64)
        for part in in_parts(data.x):
            values = part.double() / data.top
            sums, squares = sums + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
        count = data.x.numel() / data.x.shape[1]
        mean, deviation = sums / count, (squares / count - (sums / count).square()).clamp_min(0).sqrt()
        small = deviation <= 1e-6 * mean.abs()  # of equal pixels rounding may leave something
        alike = (deviation == 0).any() or (small.any() and (data.x.amin((0, 2, 3)) == data.x.amax((0, 2, 3))).any())
        if alike:
            raise BadStream(f"{data.name}: all pixels of a channel are equal, so it cannot be standardised; use "
                            "normalize=unit")  # fmt: skip
    return torch.stack([1 / (deviation * data.top), -mean / deviation])[..., None, None].float()


def units_of(groups: list[list[int]], scenario: str) -> tuple[Tensor, list[dict[int, int]]]:
    """Which units are each task's own, bool (T, K), and for each task the unit of each of its classes.

    ``task``: each task has units of its own; ``domain``: all have the same; ``class``: each class has one, whatever
    tasks it occurs in.
    """
    if scenario == "class":
        place = {label: n for n, label in enumerate(dict.fromkeys(label for part in groups for label in part))}
        positions = [{label: place[label] for label in part} for part in groups]
    else:
        sizes = [0 if scenario == "domain" else len(part) for part in groups]
        positions = [{label: sum(sizes[:t]) + n for n, label in enumerate(part)} for t, part in enumerate(groups)]
    units = torch.zeros(len(positions), 1 + max(max(of.values()) for of in positions), dtype=torch.bool)
    for own, of in zip(units, positions, strict=True):
        own[list(of.values())] = True
    return units, positions


def table(
    x: Tensor, y: Tensor, positions: list[dict[int, int]], task: Tensor | None = None, **as_shown: Any
) -> Samples:
    """The rows of all tasks, in the tasks' order and within a task in the data's order.

    ``positions`` has for each task the unit of each of its classes. ``task`` (N,) is the one task that an image is of,
    or -1; such an image, and where there is no ``task`` every one, is of each task that has its class. ``as_shown``:
    how :class:`Samples` are shown.
    """
    image, unit, tasks = [], [], []
    task = torch.full_like(y, -1) if task is None else task
    for t, of in enumerate(positions):
        position = torch.full((1 + max(int(y.max()) if len(y) else 0, *of),), -1)
        position[list(of)] = torch.tensor(list(of.values()))
        mine = ((task == t) | ((task == -1) & (position[y] >= 0))).nonzero().squeeze(1)
        image.append(mine)
        unit.append(position[y[mine]])
        tasks.append(torch.full_like(mine, t))
    return Samples(x, torch.cat(image), torch.cat(unit), torch.cat(tasks), **as_shown)


def _rows(samples: Samples, task: int, images: Tensor) -> Tensor:
    """The rows of a task, of the given images only (bool, by image)."""
    return ((samples.task == task) & images[samples.image]).nonzero().squeeze(1)


def _some(y: Tensor, held: Tensor, limit: int | None, drawn: Key | None = None) -> Tensor:
    """Which rows are among ``limit`` of their class that are not held out, the first or ``drawn``: bool (N,)."""
    if limit is None:
        return torch.ones_like(held)
    free = (~held).nonzero().squeeze(1)
    free = free if drawn is None else free[drawn.permutation("limit", len(free))]
    labels, order = y[free].sort(stable=True)
    rank = torch.arange(len(free)) - torch.searchsorted(labels, labels)
    kept = torch.zeros_like(held)
    kept[free[order[rank < limit]]] = True
    return kept
