"""What a network's parts in front give, where they are not trained, never changes: computed once, and learnt from.

Such features of a packed data set's images are kept beside it, ``<root>/packed/features/*.safetensors``, for all runs
of the same weights, images, way to show them, precision, versions and kind of device, where all tasks show images
alike. A file that is deleted is made again when it is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from continual.errors import BadFolder, Notice
from continual.learning.modules import ModuleNet
from continual.progress import waited
from continual.streams import packed
from continual.streams.data import digest

if TYPE_CHECKING:
    from torch import Tensor

    from continual.learning.models import Net
    from continual.learning.modules import Still
    from continual.streams.stream import Samples, Stream

CHUNK = 256
FORMAT = "continual features 1"


@dataclass(frozen=True, eq=False)
class Needed:
    """The training or the test samples of a stream.

    Features are needed of the images of ``rows``, one of each where all tasks show an image ``alike``; ``shown`` are
    those rows as samples of their own. ``name``: what the images are called in a file; none: they are in none.
    """

    samples: Samples
    rows: Tensor
    alike: bool
    shown: Samples
    name: list[str] | None

    @classmethod
    def of(cls, stream: Stream, name: str, used: Tensor) -> Needed:
        """Those of a stream that go by this name, of whose rows these are ``used``."""
        samples: Samples = getattr(stream, name)
        alike = all(bool((shown.table == shown.table[:1]).all()) for shown in samples.transforms)
        rows = _one_of_each(samples.image, used) if alike else used
        task = torch.zeros_like(samples.task) if alike else samples.task
        # what is learnt of an image does not change what it shows
        shown = dataclasses.replace(samples, image=samples.image[rows], y=torch.zeros_like(rows), task=task[rows])
        kept = stream.data.packed and alike  # others are many, of one stream alone
        return cls(samples, rows, alike, shown, [name, stream.data.sha256] if kept else None)

    def learnt_from(self, features: Tensor, start: int) -> Samples:
        """The samples with features, those of their rows from ``start`` on, in the place of pixels."""
        samples, rows = self.samples, self.rows
        known = samples.image[rows] if self.alike else rows
        size = len(samples.pixels if self.alike else samples.image)
        place = torch.zeros(size, dtype=torch.int64, device=rows.device)
        place[known] = start + torch.arange(len(rows), device=rows.device)
        return dataclasses.replace(
            samples, pixels=features, image=place[samples.image] if self.alike else place, scale=1.0, shift=0.0,
            top=1.0, channel=None, transforms=(), in_file=False, channels_last=False,
        )  # fmt: skip


def features_once(
    net: Net, streams: list[Stream], dtype: torch.dtype, root: Path | None = None, room: float = math.inf,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Net, list[Stream]]:  # fmt: skip
    """What is left of the network, and streams of features, where parts in front are not trained; else both as given.

    The streams must show their images as they are (no augmentation). Features take the place of pixels, in ``dtype``,
    of the images that some task uses. With a data ``root``, those of packed images are kept there. Where they would
    take more than ``room`` bytes, both stay as given. ``say`` is told either.
    """
    still = net.still() if isinstance(net, ModuleNet) else None
    if still is None:
        return net, streams
    learnt = [[rows for task in one.tasks for rows in (task.train, task.validation)] for one in streams]
    trains = [Needed.of(one, "samples", torch.cat(rows)) for one, rows in zip(streams, learnt, strict=True)]
    tests = [Needed.of(one, "test_samples", torch.cat([task.test for task in one.tasks])) for one in streams]
    first = {one: next(other for other in some if _same(one.shown, other.shown)) for some in (trains, tests)
             for one in some}  # fmt: skip
    like = _some(still, trains[0].shown, torch.zeros_like(trains[0].rows[:1]), dtype)
    needed = sum(len(one.rows) for one in set(first.values())) * like.nbytes
    if needed > room:
        say(f"{streams[0].data.name}: what is not trained of the network is computed at every step (once for all, it "
            f"would take {needed / 1e6:,.1f} MB, and it may take {room / 1e6:,.1f})")  # fmt: skip
        return net, streams
    weights = digest({name: value.detach().cpu() for name, value in still.kept.items()}) if root else ""

    def found(one: Needed) -> Tensor:
        file = None
        if root is not None and one.name is not None:
            name = _name(one.name, one.shown, [repr(still.front), weights], dtype)
            file = root / "packed" / "features" / f"{name}.safetensors"
        return _kept(file, functools.partial(_features, still, one.shown, like), say).to(one.rows.device)

    made: list[Stream] = []
    shown = (_together({one: first[one] for one in some}, like, found) for some in (trains, tests))
    for stream, train, test in zip(streams, *shown, strict=True):
        made.append(stream.with_samples(train, test))
    return still.behind(), made


def _together(first: dict[Needed, Needed], like: Tensor, found: Callable[[Needed], Tensor]) -> list[Samples]:
    """The samples of all seeds, whose features lie in one tensor, as pixels do, which seeds side by side share.

    ``first``: for each, the first that shows the same images alike; ``found`` gives its features, each ``like`` one.
    """
    own = list(dict.fromkeys(first.values()))
    ends = list(itertools.accumulate(len(one.rows) for one in own))
    starts = dict(zip(own, [0, *ends], strict=False))
    if len(own) == 1:
        whole = found(own[0])  # they may lie in their file
    else:
        whole = like.new_empty(ends[-1], *like.shape[1:])
        for one in own:
            whole[starts[one] : starts[one] + len(one.rows)] = found(one)
    return [one.learnt_from(whole, starts[same]) for one, same in first.items()]


def _name(images: list[str], samples: Samples, body: list[str], dtype: torch.dtype) -> str:
    """A name for the features of all rows, which is another where anything differs that they depend on.

    ``images`` says which those are that the rows are of, ``body`` what computes the features, its weights among it.
    """
    tables = {str(n): table.cpu() for n, table in enumerate(samples.tables)}
    tables |= {} if samples.channel is None else {"channel": samples.channel.cpu()}
    transforms = [type(one).__name__ for one in samples.transforms]
    shown = [samples.scale, samples.shift, list(samples.pixels.shape), transforms, digest(tables)]
    device = samples.image.device
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    rounding = [str(dtype), card, torch.backends.cudnn.allow_tf32]
    code = [FORMAT, *(version(name) for name in ("continual", "torch", "torchvision"))]
    said = [images, shown, body, rounding, code]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:32]


def _kept(file: Path | None, compute: Callable[[], Tensor], say: Callable[[str], None]) -> Tensor:
    """The features in a file, which is written where it is not there; none: they are computed."""
    if file is None:
        return compute()
    facts = {"format": FORMAT, "name": "features"}
    features = None
    try:
        if not os.path.exists(file):
            features = compute().cpu()
            packed.write(file, {"features": features}, facts)
            say(f"features are kept in {file} ({features.nbytes / 1e6:,.1f} MB)")
        return packed.read(file, facts, ("features",), "they are computed again")[0]["features"]
    except BadFolder as error:  # it cannot be written, or not be read
        warnings.warn(Notice(f"{error}; until then features are computed at every start"), stacklevel=2)
        return compute() if features is None else features


def _one_of_each(image: Tensor, used: Tensor) -> Tensor:
    """A row of each image that the rows show, in the images' order, by which seeds that use the same are known."""
    last = torch.full((int(image.max()) + 1,), -1, device=image.device)
    last[image[used]] = used
    return last[last >= 0]


def _features(still: Still, samples: Samples, like: Tensor) -> Tensor:
    """The features of all rows (N, ...), ``like`` those of one (1, ...), shown how far it is where that takes long."""
    every = torch.arange(len(samples.image), device=samples.image.device)
    features = like.new_empty(len(every), *like.shape[1:])
    parts = every.split(CHUNK)
    for rows in waited(parts, len(parts), "features"):
        features.index_copy_(0, rows, _some(still, samples, rows, like.dtype))
    return features


def _some(still: Still, samples: Samples, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """The features of some rows (B,): (B, ...)."""
    with torch.no_grad():
        return still(samples.images(rows, dtype), samples.task[rows])


def _same(a: Samples, b: Samples) -> bool:
    """Whether rows show the same images alike."""
    of_a, of_b = ([*one.tables, *([] if one.channel is None else [one.channel])] for one in (a, b))
    if a.pixels is not b.pixels or (a.scale, a.shift, len(of_a)) != (b.scale, b.shift, len(of_b)):
        return False
    return all(torch.equal(*pair) for pair in zip(of_a, of_b, strict=True))
