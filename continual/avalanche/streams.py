"""Streams there and back: a benchmark of avalanche-lib as a stream of ours, a stream of ours as its benchmark."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Dataset

from continual.avalanche.library import part, quiet
from continual.errors import BadStream
from continual.streams.data import Data
from continual.streams.given import Given

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.stream import Samples, Stream

READY = 2**31  # so many bytes of images are normalised once; more, one by one, when they are fetched
LEVELS = 256
FEW = 4096  # images among which the levels of their values are looked for


# ---- theirs as ours


def stream(benchmark: Any, name: str = "avalanche", seed: int = 0, **options: Any) -> Stream:
    """A stream of ours from a benchmark (scenario) of avalanche-lib: each experience is a task.

    Every image is read once, as evaluation shows it, so what makes the tasks (a permutation, a rotation) is kept and a
    random augmentation is not: give that to the run (``--augment``). Images whose values have at most 256 evenly
    spaced levels in each channel, as those of 8 bits have however they were normalised, are kept as ``uint8``.

    The scenario comes from the task labels, unless ``options`` name one: one label for each experience is ``task``; the
    same label for all is ``domain`` where every experience has the same classes, else ``class``, where classes may come
    again. A test stream of one experience tests every task on its own classes. ``options`` are those of all streams
    (``train_outputs``, ``validation``, ...). Raises :class:`~continual.errors.BadStream` where that does not fit.
    """
    train, test = _experiences(benchmark, "train_stream"), _experiences(benchmark, "test_stream")
    if len(test) not in (1, len(train)):
        raise BadStream(f"{name}: {len(train)} experiences to train on and {len(test)} to test on; there must be as "
                        "many, or one that tests all")  # fmt: skip
    data = Data.from_datasets(_Pairs(train), _Pairs(test), name)
    task, task_test = _numbers(train), _numbers(test)
    if len(test) != len(train):
        task_test = torch.full_like(task_test, -1)
    data, levels = _packed(data)
    scenario = options.pop("scenario", None) or _scenario(train, name)
    return Given.of(task, task_test, levels, scenario=scenario, **options).build(data, seed)


def _experiences(benchmark: Any, which: str) -> list[Any]:
    """The data set of each experience, as evaluation shows it."""
    found = getattr(benchmark, which, None)
    if found is None:
        raise BadStream(f"{type(benchmark).__name__} has no {which}: it takes a benchmark of avalanche-lib, such as "
                        "avalanche.benchmarks.SplitMNIST(n_experiences=5)")  # fmt: skip
    with quiet():
        return [experience.dataset.eval() for experience in found]


def _labels(dataset: Any) -> list[int]:
    """The task labels that occur in a data set; those without any are all alike."""
    labels = getattr(dataset, "targets_task_labels", None)
    return sorted(labels.uniques) if labels is not None else [0]


def _scenario(train: list[Any], name: str) -> str:
    labels = [_labels(dataset) for dataset in train]
    flat = [label for own in labels for label in own]
    if len(flat) == len(labels) > 1 and len(set(flat)) == len(flat):
        return "task"
    if len(set(flat)) == 1:
        classes = [set(dataset.targets.uniques) for dataset in train]
        return "domain" if all(one == classes[0] for one in classes) and len(classes) > 1 else "class"
    raise BadStream(f"{name}: the task labels of the experiences are {labels}; for the task scenario each has one of "
                    "its own, for the others all have the same: give scenario=task, domain or class")  # fmt: skip


def _numbers(datasets: list[Any]) -> Tensor:
    """The number of its experience for each sample."""
    counts = torch.tensor([len(dataset) for dataset in datasets])
    return torch.repeat_interleave(torch.arange(len(datasets)), counts)


class _Pairs(Dataset[Any]):
    """The samples of several data sets of avalanche-lib, one after the other, without their task labels."""

    def __init__(self, datasets: list[Any]) -> None:
        self.places = [(dataset, row) for dataset in datasets for row in range(len(dataset))]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        dataset, row = self.places[index]
        x, y, *_ = dataset[row]
        return x, int(y)


def _packed(data: Data) -> tuple[Data, Tensor | None]:
    """The data with floating-point images as levels, where they have few, and what the levels stand for (2, C)."""
    if data.x.dtype == torch.uint8 or data.x.ndim != 4:
        return data, None
    channels = [_grid(torch.cat([x[:, c].flatten() for x in (data.x, data.x_test)])) for c in range(data.x.shape[1])]
    grids = [grid for grid in channels if grid is not None]
    if len(grids) < len(channels):
        return data, None
    table = torch.tensor(grids, dtype=torch.float64).T.contiguous()
    steps, lowest = table[:, :, None, None]

    def levels(x: Tensor) -> Tensor:
        return torch.cat([((some - lowest) / steps).round().to(torch.uint8) for some in x.split(FEW)])

    return dataclasses.replace(data, x=levels(data.x), x_test=levels(data.x_test), top=LEVELS - 1.0), table


def _grid(values: Tensor) -> tuple[float, float] | None:
    """Step and lowest of the evenly spaced levels that all values lie on, or nothing where there are none."""
    lowest, highest = float(values.min()), float(values.max())
    known = values[:: max(1, len(values) // (FEW * LEVELS))].double().unique()
    if lowest == highest or len(known) > LEVELS:
        return None if lowest != highest else (1.0, lowest)
    step = _step(torch.cat([known, known.new_tensor([lowest, highest])]) - lowest)
    if step is None or (highest - lowest) / step > LEVELS - 0.5:
        return None
    for some in values.split(FEW * LEVELS):
        numbers = (some.double() - lowest) / step
        if (numbers - numbers.round()).abs().max() > 0.01:
            return None
    return step, lowest


def _step(distances: Tensor) -> float | None:
    """The largest step of which all distances from the lowest are multiples: of at most 255, as exact as float32 is."""
    span = float(distances.max())
    for count in range(1, LEVELS):
        numbers = distances * (count / span)
        if (numbers - numbers.round()).abs().max() < 1e-3:
            return span / count
    return None


# ---- ours as theirs


class Rows(Dataset[Any]):
    """Rows of a table of samples as pairs of image and label, on the CPU, as our networks see them."""

    def __init__(self, samples: Samples, rows: Tensor, dtype: torch.dtype, ready: bool) -> None:
        self.samples, self.rows, self.dtype = samples, rows, dtype
        self.y = samples.y[rows].tolist()
        self.x = torch.cat([self._images(some) for some in rows.split(FEW)]) if ready and len(rows) else None

    def _images(self, rows: Tensor) -> Tensor:
        return self.samples.images(rows, self.dtype).cpu()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self._images(self.rows[index : index + 1])[0] if self.x is None else self.x[index]
        return x, self.y[index]


def benchmark(stream: Stream, rows: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A benchmark of avalanche-lib from a stream of ours: each task is an experience.

    Labels are output units, images are as our networks see them. In the task scenario an experience's task label is
    its task's index, in the others it is 0 throughout. Streams: ``train``, ``test``, and ``valid`` where rows were set
    aside. With ``rows`` a sample is (x, y, row, task label), as :func:`~continual.avalanche.plugin.Plugin` needs it.
    """
    parts = {
        "train": (stream.samples, [task.train for task in stream.tasks]),
        "test": (stream.test_samples, [task.test for task in stream.tasks]),
        "valid": (stream.samples, [task.validation for task in stream.tasks]),
    }
    if not any(len(own) for own in parts["valid"][1]):
        del parts["valid"]
    return from_rows(stream, parts, rows, dtype)


def from_rows(stream: Stream, parts: dict[str, tuple[Samples, list[Tensor]]], rows: bool, dtype: torch.dtype) -> Any:
    """A benchmark of avalanche-lib whose streams have these rows of each task."""
    scenarios = part("benchmarks.scenarios")
    size = sum(sum(map(len, own)) for _, own in parts.values()) * stream.samples.pixels[0].numel() * dtype.itemsize
    streams = {
        name: [
            dataset(Rows(samples, own, dtype, size <= READY), t if stream.scenario == "task" else 0, rows)
            for t, own in enumerate(each)
        ]
        for name, (samples, each) in parts.items()
    }
    with quiet():
        each = [
            scenarios.EagerCLStream(
                name, [_experience(scenarios.DatasetExperience)(dataset=one, current_experience=t)
                       for t, one in enumerate(datasets)],
            )
            for name, datasets in streams.items()
        ]  # fmt: skip
        made = scenarios.with_task_labels(scenarios.with_classes_timeline(scenarios.CLScenario(each)))
    _describe(made, stream)
    return made


@functools.cache
def _experience(base: Any) -> Any:
    """An experience whose data set can be replaced, as some of avalanche-lib's strategies do (BiC)."""

    class Experience(base):  # type: ignore[misc]
        @property
        def dataset(self) -> Any:
            """The data set."""
            return self._dataset

        @dataset.setter
        def dataset(self, value: Any) -> None:
            self._dataset = value

    return Experience


def _describe(made: Any, stream: Stream) -> None:
    """What some of avalanche-lib's strategies ask an experience's benchmark for (iCaRL)."""
    groups = [units.nonzero().squeeze(1).tolist() for units in stream.test_outputs.units.cpu()]
    made.n_classes, made.n_classes_per_exp = stream.units, [len(group) for group in groups]
    made.classes_order = [unit for group in groups for unit in group]
    for each in made.streams.values():
        for experience in each:
            experience.benchmark = made


def dataset(rows: Rows, label: int, with_rows: bool) -> Any:
    """Rows as a data set of avalanche-lib."""
    kinds, attribute = part("benchmarks.utils.classification_dataset"), part("benchmarks.utils.data_attribute")
    given = [attribute.DataAttribute(rows.y, "targets")]
    if with_rows:
        given.append(attribute.DataAttribute(rows.rows.tolist(), "row", use_in_getitem=True))
    given.append(attribute.DataAttribute([label] * len(rows), "targets_task_labels", use_in_getitem=True))
    return kinds.TaskAwareSupervisedClassificationDataset([rows], data_attributes=given)
