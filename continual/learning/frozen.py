"""Where only the head of a network is trained, what it takes never changes: computed once, and learnt from as data."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch

from continual.learning.models import LinearNet, Net
from continual.learning.modules import ModuleNet

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

    The streams must show their images as they are (no augmentation). Features take the place of pixels, in ``dtype``.
    """
    if not isinstance(net, ModuleNet) or set(net.shapes) != set(net.head):
        return net, streams
    found: list[tuple[Samples, Tensor]] = []

    def embedded(samples: Samples) -> Samples:
        # where all tasks show an image alike, its features are computed once for all seeds; else for each row
        alike = all((shown.table == shown.table[:1]).all() for shown in samples.transforms)
        each = torch.arange(len(samples.pixels if alike else samples.image), device=samples.image.device)
        none = torch.zeros_like(each)
        every = dataclasses.replace(samples, image=each, task=none) if alike else samples
        every = dataclasses.replace(every, y=none)  # what is learnt of an image does not change what it shows
        features = next((features for known, features in found if _same(known, every)), None)
        if features is None:
            theta = net.initial(streams[0].tasks[0].key, dtype)
            with torch.no_grad():
                features = torch.cat([net.features(theta, every.images(part, dtype)) for part in each.split(CHUNK)])
            found.append((every, features))
        image = samples.image if alike else each
        return dataclasses.replace(
            samples, pixels=features, image=image, scale=1.0, shift=0.0, top=1.0, transforms=(), mapped=False,
            channels_last=False,
        )  # fmt: skip

    def one(stream: Stream) -> Stream:
        samples = embedded(stream.samples)
        tasks = tuple(dataclasses.replace(task, samples=samples) for task in stream.tasks)
        return dataclasses.replace(stream, samples=samples, tasks=tasks, test_samples=embedded(stream.test_samples))

    return Head(net), [one(stream) for stream in streams]


def _same(a: Samples, b: Samples) -> bool:
    return a.pixels is b.pixels and all(map(torch.equal, a.tables, b.tables))
