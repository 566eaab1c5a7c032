"""Where only the head of a network is trained, what it takes never changes: computed once, and learnt from as data.

Features of a packed data set's images are kept beside it, ``<root>/packed/features/*.safetensors``, for all runs of the
same weights, images, way to show them, precision, versions and kind of device, where all tasks show images alike. A
file that is deleted is made again when it is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from continual.errors import BadFolder, Notice
from continual.learning.models import LinearNet, Net
from continual.learning.modules import ModuleNet
from continual.streams import packed
from continual.streams.data import PATIENCE, digest

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.rng import Key
    from continual.streams.stream import Samples, Stream

CHUNK = 256
FORMAT = "continual features 1"


class Head(LinearNet):
    """The head of a network alone, with the untrained head that the whole network has."""

    def __init__(self, whole: ModuleNet) -> None:
        units, features = whole.shapes["head.weight"]
        super().__init__((features, units))
        self.whole = whole

    def initial(self, key: Key, dtype: torch.dtype) -> Tensor:
        """See :meth:`Net.initial`."""
        return self.whole.initial(key, dtype)


def features_once(
    net: Net, streams: list[Stream], dtype: torch.dtype, root: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Net, list[Stream]]:  # fmt: skip
    """The head and streams of features, where nothing else of the network is trained; else both as they are.

    The streams must show their images as they are (no augmentation). Features take the place of pixels, in ``dtype``,
    of the images that some task uses. With a data ``root``, those of packed images are kept there; ``say`` is told
    where.
    """
    if not isinstance(net, ModuleNet) or set(net.shapes) != set(net.head):
        return net, streams
    found: list[tuple[Samples, Tensor]] = []
    theta = net.initial(streams[0].tasks[0].key, dtype)

    @functools.cache
    def weights() -> str:
        return digest({name: value.detach().cpu() for name, value in net.kept.items()})

    def embedded(stream: Stream, part: str, used: Tensor) -> Samples:
        samples: Samples = getattr(stream, part)
        # where all tasks show an image alike, its features are computed once for all seeds; else for each row
        alike = all((shown.table == shown.table[:1]).all() for shown in samples.transforms)
        rows = _one_of_each(samples.image, used) if alike else used
        task = torch.zeros_like(samples.task) if alike else samples.task
        # what is learnt of an image does not change what it shows
        shown = dataclasses.replace(samples, image=samples.image[rows], y=torch.zeros_like(rows), task=task[rows])
        features = next((features for known, features in found if _same(known, shown)), None)
        if features is None:
            file = None
            if root is not None and stream.data.packed and alike:  # others are many, of one stream alone
                name = _name([part, stream.data.sha256], shown, [repr(net.module), weights()], dtype)
                file = root / "packed" / "features" / f"{name}.safetensors"
            features = _kept(file, lambda: _features(net, theta, shown, dtype), say).to(theta.device)
            found.append((shown, features))
        place = torch.zeros(len(samples.pixels) if alike else len(samples.image), dtype=torch.int64, device=rows.device)
        place[samples.image[rows] if alike else rows] = torch.arange(len(rows), device=rows.device)
        return dataclasses.replace(
            samples, pixels=features, image=place[samples.image] if alike else place, scale=1.0, shift=0.0, top=1.0,
            channel=None, transforms=(), mapped=False, channels_last=False,
        )  # fmt: skip

    def one(stream: Stream) -> Stream:
        learnt = torch.cat([part for task in stream.tasks for part in (task.train, task.validation)])
        samples = embedded(stream, "samples", learnt)
        tasks = tuple(dataclasses.replace(task, samples=samples) for task in stream.tasks)
        tested = embedded(stream, "test_samples", torch.cat([task.test for task in stream.tasks]))
        return dataclasses.replace(stream, samples=samples, tasks=tasks, test_samples=tested)

    return Head(net), [one(stream) for stream in streams]


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
            say(f"features are kept in {file} ({features.nbytes / 1e6:,.0f} MB)")
        return packed.read(file, facts, ("features",), "they are computed again")[0]["features"]
    except BadFolder as error:  # it cannot be written, or not be read
        warnings.warn(Notice(f"{error}; until then features are computed at every start"), stacklevel=2)
        return compute() if features is None else features


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
