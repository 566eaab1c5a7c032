"""Where only the head of a network is trained, what it takes never changes: computed once, and learnt from as data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from continual.learning.models import LinearNet, Net
from continual.learning.modules import ModuleNet
from continual.streams.data import PATIENCE

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.rng import Key
    from continual.streams.stream import Samples, Stream

CHUNK = 256


class Head(LinearNet):
    """The head of a network alone, with the untrained head that the whole network has."""

    def __init__(self, whole: ModuleNet) -> None:
        units, features = whole.shapes["head.weight"]
        super().__init__((features, units))
        self.whole = whole

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """See :meth:`Net.initial`."""
        return self.whole.initial(key, dtype)


def features_once(net: Net, streams: list[Stream], dtype: torch.dtype) -> tuple[Net, list[Stream]]:
    """The head and streams of features, where nothing else of the network is trained; else both as they are.

    The streams must show their images as they are (no augmentation). Features take the place of pixels, in ``dtype``,
    of the images that some task uses.
    """
    if not isinstance(net, ModuleNet) or set(net.shapes) != set(net.head):
        return net, streams
    found: list[tuple[Samples, Tensor]] = []
    theta = net.initial(streams[0].tasks[0].key, dtype)

    def embedded(samples: Samples, used: Tensor) -> Samples:
        # where all tasks show an image alike, its features are computed once for all seeds; else for each row
        alike = all((shown.table == shown.table[:1]).all() for shown in samples.transforms)
        rows = _one_of_each(samples.image, used) if alike else used
        task = torch.zeros_like(samples.task) if alike else samples.task
        # what is learnt of an image does not change what it shows
        shown = dataclasses.replace(samples, image=samples.image[rows], y=torch.zeros_like(rows), task=task[rows])
        features = next((features for known, features in found if _same(known, shown)), None)
        if features is None:
            features = _features(net, theta, shown, dtype)
            found.append((shown, features))
        place = torch.zeros(len(samples.pixels) if alike else len(samples.image), dtype=torch.int64, device=rows.device)
        place[samples.image[rows] if alike else rows] = torch.arange(len(rows), device=rows.device)
        return dataclasses.replace(
            samples, pixels=features, image=place[samples.image] if alike else place, scale=1.0, shift=0.0, top=1.0,
            channel=None, transforms=(), mapped=False, channels_last=False,
        )  # fmt: skip

    def one(stream: Stream) -> Stream:
        learnt = torch.cat([part for task in stream.tasks for part in (task.train, task.validation)])
        samples = embedded(stream.samples, learnt)
        tasks = tuple(dataclasses.replace(task, samples=samples) for task in stream.tasks)
        tested = embedded(stream.test_samples, torch.cat([task.test for task in stream.tasks]))
        return dataclasses.replace(stream, samples=samples, tasks=tasks, test_samples=tested)

    return Head(net), [one(stream) for stream in streams]


def _one_of_each(image: Tensor, used: Tensor) -> Tensor:
    """A row of each image that the rows show, in the images' order, by which seeds that use the same are known."""
    last = torch.full((int(image.max()) + 1,), -1, device=image.device)
    last[image[used]] = used
    return last[last >= 0]


def _features(net: ModuleNet, theta: Tensor, samples: Samples, dtype: torch.dtype) -> Tensor:
    """The features of all rows (N, D), with a progress bar where that takes long."""
    from tqdm import tqdm

    parts = torch.arange(len(samples.image), device=samples.image.device).split(CHUNK)
    with torch.no_grad():
        return torch.cat([
            net.features(theta, samples.images(part, dtype), samples.task[part])
            for part in tqdm(parts, desc="features", delay=PATIENCE, leave=False, disable=None)
        ])  # fmt: skip


def _same(a: Samples, b: Samples) -> bool:
    """Whether rows show the same images alike."""
    of_a, of_b = ([*one.tables, *([] if one.channel is None else [one.channel])] for one in (a, b))
    if a.pixels is not b.pixels or (a.scale, a.shift, len(of_a)) != (b.scale, b.shift, len(of_b)):
        return False
    return all(torch.equal(*pair) for pair in zip(of_a, of_b, strict=True))
