"""A data set as verified tensors, from arrays or datasets; other modules read published ones."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from continual.errors import BadData, Notice, brief, listed, nearest
from continual.progress import waited

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch.utils.data import Dataset

PARTS = ("x", "y", "x_test", "y_test")
CHUNK = 2**20  # values that are worked on at a time
NEAR = 1e-4  # of what stands for 1: what rounding may have left beyond it
Room = Callable[[tuple[int, ...]], "npt.NDArray[np.uint8]"]
"""Gives an array of a shape for images: in memory, or in a file where they may be more than fits."""


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A training set and a test set, on the CPU.

    Make one with :meth:`from_arrays`, :meth:`from_datasets` or :func:`load`, which check what they are given.
    """

    name: str
    x: Tensor
    """Training images, (N, C, H, W) ``uint8``; or a user's own samples, (N, ...) ``float32``."""
    y: Tensor
    """Training labels, (N,) ``int64`` in 0..len(classes)-1."""
    x_test: Tensor
    """Test images, in the type and sample shape of ``x``."""
    y_test: Tensor
    """Test labels, (M,) ``int64``; every one occurs in training too."""
    classes: tuple[str, ...]
    """The name of each label."""
    top: float = 255.0
    """The pixel value that stands for 1.0: 255 for most images, 16 for the digits, 1 for ``float32`` data."""
    skipped: tuple[str, ...] = ()
    """The files that were left out because they could not be decoded."""
    joined: tuple[int, ...] = ()
    """Where it was made of several sets, the number of classes of each."""
    packed: bool = False
    """Whether the samples are mapped from a packed file; else they lie in memory."""

    def __repr__(self) -> str:
        kind, shape = str(self.x.dtype).removeprefix("torch."), tuple(self.x.shape[1:])
        rows = f"{len(self.y)} + {len(self.y_test)} test samples"
        return f"Data({self.name!r}: {rows} {shape} {kind}, {len(self.classes)} classes)"

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 over all samples and labels, in hexadecimal."""
        return digest({part: getattr(self, part) for part in PARTS})

    def check(self) -> None:
        """:class:`~continual.errors.BadData` where types, lengths or labels do not go with each other."""
        for part, x, y in (("training", self.x, self.y), ("test", self.x_test, self.y_test)):
            known = x.dtype in (torch.uint8, torch.float32)
            if not known or (x.dtype, x.shape[1:]) != (self.x.dtype, self.x.shape[1:]):
                raise BadData(f"{self.name}: {part} samples are {tuple(x.shape[1:])} {x.dtype}")
            if y.dtype != torch.int64 or y.shape != (len(x),) or not len(y):
                raise BadData(f"{self.name}: {len(x)} {part} samples have labels {tuple(y.shape)} {y.dtype}")
            if int(y.min()) < 0 or int(y.max()) >= len(self.classes):
                raise BadData(f"{self.name}: {part} labels are not in 0..{len(self.classes) - 1}")
        if not all(isinstance(name, str) for name in (*self.classes, *self.skipped)):
            raise BadData(f"{self.name}: classes and skipped files are names")
        if self.joined and sum(self.joined) != len(self.classes):
            raise BadData(f"{self.name}: {len(self.classes)} classes are not those of sets of {self.joined}")
        _checked_top(self.top, self.name)

    def pad(self, pixels: int) -> Data:
        """The same images with ``pixels`` zeros added on each side, (N, C, H + 2 pixels, W + 2 pixels).

        Raises :class:`~continual.errors.BadData` for a negative number, or for samples that are not images.
        """
        if pixels < 0:
            raise BadData(f"{self.name}: pad was given {pixels}; it takes 0 or more pixels")
        if self.x.ndim != 4:
            raise BadData(f"{self.name}: samples {tuple(self.x.shape[1:])} cannot be padded; only (C, H, W) images can")
        grown = functools.partial(torch.nn.functional.pad, pad=(pixels,) * 4)
        return replace(self, x=grown(self.x), x_test=grown(self.x_test), packed=False)

    def resized(self, size: int) -> Data:
        """The same images at ``size`` x ``size`` pixels (bilinear with antialiasing, in the type that they have)."""
        if self.x.ndim != 4:
            raise BadData(
                f"{self.name}: samples {tuple(self.x.shape[1:])} cannot be resized; only (C, H, W) images can"
            )
        if self.x.shape[-2:] == (size, size):
            return self

        def at(x: Tensor) -> Tensor:
            return torch.cat([_resized(part, size) for part in in_parts(x)])

        return replace(self, x=at(self.x), x_test=at(self.x_test), packed=False)

    def only(self, classes: Sequence[str]) -> Data:
        """The samples of some classes, numbered in the order in which they are given."""
        if tuple(classes) == self.classes:
            return self
        for name in classes:
            if name not in self.classes:
                known = f"it has {len(self.classes)}: {', '.join(self.classes[:10])}"
                raise BadData(f"{self.name} has no class '{name}'{nearest(name, self.classes)} ({known})")
        labels = torch.full((len(self.classes),), -1)
        labels[[self.classes.index(name) for name in classes]] = torch.arange(len(classes))
        kept, kept_test = labels[self.y] >= 0, labels[self.y_test] >= 0
        return replace(
            self, x=self.x[kept], y=labels[self.y][kept], x_test=self.x_test[kept_test],
            y_test=labels[self.y_test][kept_test], classes=tuple(classes), packed=False,
        )  # fmt: skip

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any,
        x_test: Any,
        y_test: Any,
        name: str = "arrays",
        classes: Sequence[str] | None = None,
        top: float | None = None,
    ) -> Data:
        """Data from tensors, numpy arrays or lists.

        Args:
            x: training samples, (N, ...): integers in 0..255 become ``uint8``, floats ``float32``. Integers of shape
                (N, H, W) are grey images and become (N, 1, H, W). Not copied where the type is right already.
            y: training labels, (N,) integers.
            x_test: test samples, as ``x``.
            y_test: test labels, each of which must occur in ``y``.
            name: what the data is called in messages and records.
            classes: the names of the labels 0, 1, ...; without them, the labels that occur (say 3 and 7) are
                numbered from 0 in ascending order and named "3" and "7".
            top: the value that stands for 1.0; default: 255 for integers, 1 for floats.

        Raises:
            BadData: lengths, shapes, types or labels that do not fit, no samples, or a value that is not finite.
        """
        x, x_test = _samples(x, f"{name}: training samples"), _samples(x_test, f"{name}: test samples")
        if top is None and x.is_floating_point() and x.ndim == 4:
            _tell_levels(x, name)
        y, y_test = integers(y, f"{name}: training labels"), integers(y_test, f"{name}: test labels")
        for part, samples, labels in (("training", x, y), ("test", x_test, y_test)):
            if len(samples) != len(labels):
                raise BadData(f"{name}: {len(samples)} {part} samples, but {len(labels)} {part} labels; give one each")
        if (x.shape[1:], x.dtype) != (x_test.shape[1:], x_test.dtype):
            raise BadData(
                f"{name}: training samples are {_kind(x[0])} and test samples {_kind(x_test[0])}; they must be alike"
            )
        y, y_test, names = _numbered(y, y_test, classes, name)
        usual = 255.0 if x.dtype == torch.uint8 else 1.0
        return cls(name, x, y, x_test, y_test, names, _checked_top(usual if top is None else top, name))

    @classmethod
    def from_datasets(
        cls,
        train: Dataset[Any],
        test: Dataset[Any],
        name: str = "datasets",
        classes: Sequence[str] | None = None,
        top: float | None = None,
    ) -> Data:
        """Data from two map-style datasets whose samples are pairs (x, y).

        Every sample is read once, in order, so a random augmentation is drawn once and for all: leave it out here.

        Args:
            train: gives x as a PIL image (becomes ``uint8`` (1, H, W) where grey, else (3, H, W)), or as a tensor or
                numpy array that is taken as it is (so images must be (C, H, W)), and y as an integer.
            test: as ``train``.
            name: what the data is called in messages and records.
            classes: see :meth:`from_arrays`.
            top: see :meth:`from_arrays`.

        Raises:
            BadData: a sample that cannot be read or differs from the first in shape or type (named by its index), or
                what :meth:`from_arrays` refuses.
        """
        x, y = _collected(train, f"{name}: training set")
        x_test, y_test = _collected(test, f"{name}: test set")
        return cls.from_arrays(x, y, x_test, y_test, name, classes, top)


# Arrays


def in_memory(shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """Room for images in memory."""
    return np.empty(shape, np.uint8)


def joined(parts: Sequence[Data], size: int, room: Room = in_memory) -> Data:
    """Several data sets as one, in colour at ``size`` x ``size`` pixels of 8 bits, their classes one after the other.

    A class whose name two sets have is named with its set, ``mnist/3``; where a set comes twice, ``mnist-2/3``. Files
    that were left out are all named with theirs, ``imagenet/train/cat/0.jpg``. ``room`` gives the arrays that images
    are written into, a few at a time; without it they lie in memory.
    """
    for part in parts:
        if part.x.ndim != 4 or part.x.shape[1] not in (1, 3):
            raise BadData(f"{part.name}: samples {tuple(part.x.shape[1:])} are no images of one or three channels")

    def together(images: Sequence[Tensor]) -> Tensor:
        x, start = torch.from_numpy(room((sum(map(len, images)), 3, size, size))), 0
        for part, own in zip(parts, images, strict=True):
            for some in in_parts(own):
                if float(some.min()) < -NEAR * part.top or float(some.max()) > (1 + NEAR) * part.top:
                    raise BadData(f"{part.name}: images of a sequence have pixels from 0 to the value that stands for "
                                  f"1, here {part.top:g}, and these go from {float(own.min()):.4g} to "
                                  f"{float(own.max()):.4g}; scale them, or say top=VALUE")  # fmt: skip
                x[start : start + len(some)] = _resized(_in_colour(some, 255.0 / part.top), size)
                start += len(some)
        return x

    names = [name for part in parts for name in part.classes]
    sets = _told_apart(parts)
    starts = [sum(len(part.classes) for part in parts[:number]) for number in range(len(parts))]
    return Data(
        name="+".join(part.name for part in parts),
        x=together([part.x for part in parts]),
        y=torch.cat([part.y + start for part, start in zip(parts, starts, strict=True)]),
        x_test=together([part.x_test for part in parts]),
        y_test=torch.cat([part.y_test + start for part, start in zip(parts, starts, strict=True)]),
        classes=tuple(
            name if names.count(name) == 1 else f"{of}/{name}"
            for of, part in zip(sets, parts, strict=True)
            for name in part.classes
        ),
        skipped=tuple(file for files in left_out(parts) for file in files),
        joined=tuple(len(part.classes) for part in parts),
    )


def left_out(parts: Sequence[Data]) -> list[tuple[str, ...]]:
    """The files that were left out of each data set, named with the set."""
    return [tuple(f"{of}/{file}" for file in part.skipped) for of, part in zip(_told_apart(parts), parts, strict=True)]


def _told_apart(parts: Sequence[Data]) -> list[str]:
    """The names of data sets, with a number behind that of one that was there before: ``mnist``, ``mnist-2``."""
    before = [sum(other.name == part.name for other in parts[:number]) for number, part in enumerate(parts)]
    return [f"{part.name}-{count + 1}" if count else part.name for part, count in zip(parts, before, strict=True)]


def in_parts(x: Tensor) -> tuple[Tensor, ...]:
    """Samples (N, ...) a few at a time: what is made of them needs little memory."""
    parts: tuple[Tensor, ...] = x.split(max(1, CHUNK // max(1, x[0].numel())))
    return parts


def _resized(x: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) at ``size`` x ``size`` pixels."""
    if x.shape[-2:] == (size, size):
        return x
    made = torch.nn.functional.interpolate(x.float(), (size, size), mode="bilinear", antialias=True)
    return made.round().clamp(0, 255).to(x.dtype) if x.dtype == torch.uint8 else made


def _in_colour(x: Tensor, factor: float) -> Tensor:
    """Images of one or three channels with three, (N, 3, H, W) ``uint8``, their values times a factor."""
    scaled = x if factor == 1 else (x.float() * factor).round().clamp(0, 255)
    return scaled.to(torch.uint8).expand(-1, 3, -1, -1)


def _kind(sample: Tensor) -> str:
    return f"{tuple(sample.shape)} {str(sample.dtype).removeprefix('torch.')}"


def _tensor(given: Any, what: str) -> Tensor:
    """What a user gave as a tensor on the CPU; numpy's wide integers become ``int64`` and its floats ``float32``."""
    try:
        if isinstance(given, Tensor):
            if given.is_nested or given.layout is not torch.strided:
                raise TypeError("it is a sparse or nested tensor; give it dense, as its method to_dense does")
            return given.detach().cpu()
        if isinstance(given, (list, tuple)) and given and isinstance(given[0], Tensor):
            return torch.stack(list(given)).detach().cpu()
        if isinstance(given, np.ma.MaskedArray) and given.mask.any():
            raise TypeError("some of it is masked, and what is masked would be learnt; leave it out, or fill it")
        array = np.asarray(given)
        wide = {"b": np.bool_, "u": np.int64, "i": np.int64, "f": np.float32}.get(array.dtype.kind)
        if wide is None:
            raise TypeError(f"its dtype is {array.dtype}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is named by its row
            # torch shares memory with what is in C order and writable, and complains of anything else
            return torch.from_numpy(np.require(array, array.dtype if array.dtype == np.uint8 else wide, ["C", "W"]))
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadData(f"{what} cannot be read as one array of numbers: {error}") from None


def _samples(given: Any, what: str) -> Tensor:
    """Samples as ``uint8`` or finite ``float32``, (N, ...)."""
    x = _tensor(given, what)
    if x.numel() == 0:
        raise BadData(f"{what} are empty (shape {tuple(x.shape)})")
    if x.ndim < 2:
        raise BadData(f"{what} have shape {tuple(x.shape)}; they take (N, C, H, W) or (N, features)")
    if x.is_complex():
        raise BadData(f"{what} are complex; they take integers in 0..255 or floats")
    if _looks_channels_last(x):
        raise BadData(f"{what} have shape {tuple(x.shape)}, with the channels last; they take (N, C, H, W), which "
                      "numpy's x.transpose(0, 3, 1, 2) gives")  # fmt: skip
    if x.is_floating_point() or x.dtype == torch.bool:
        x = x.float()
        _every(x.isfinite(), x, what, "is not finite")
        return x.contiguous()
    if x.dtype != torch.uint8:
        x = x.long()
        _every((x >= 0) & (x <= 255), x, what, "is not in 0..255, where integers must be; give float32 for others")
    return (x.to(torch.uint8).unsqueeze(1) if x.ndim == 3 else x.to(torch.uint8)).contiguous()


def _looks_channels_last(x: Tensor) -> bool:
    """Whether samples look like images (N, H, W, C); floats may be signals of any shape, so only square ones do."""
    if x.ndim != 4:
        return False
    if x.is_floating_point() or x.dtype == torch.bool:
        return x.shape[3] in (1, 3) and x.shape[1] == x.shape[2] > 3
    return x.shape[3] in (1, 3, 4) and min(x.shape[1:3]) > 4


def _every(good: Tensor, x: Tensor, what: str, fault: str) -> None:
    """:class:`BadData` naming the first row and value where ``good`` does not hold."""
    if not good.all():
        first = tuple(int(i) for i in (~good).nonzero()[0])
        raise BadData(f"{what}: the value {x[first].item()} in row {first[0]} {fault}")


def integers(given: Any, what: str) -> Tensor:
    """Labels, or other whole numbers of samples, as ``int64``, (N,)."""
    y = _tensor(given, what)
    if y.numel() == 0:
        raise BadData(f"{what} are empty (shape {tuple(y.shape)})")
    if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise BadData(f"{what} are {str(y.dtype).removeprefix('torch.')}; they must be integers")
    if y.ndim != 1:
        raise BadData(f"{what} have shape {tuple(y.shape)}; they must be (N,), one integer for each sample")
    return y.long().contiguous()


def _numbered(
    y: Tensor, y_test: Tensor, classes: Sequence[str] | None, name: str
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Training and test labels numbered from 0, and the classes' names."""
    known: Tensor = torch.unique(y)  # ascending
    fault = f"is no label of the training set ({listed(known.tolist(), 10)})"
    _every(torch.isin(y_test, known), y_test, f"{name}: test labels", fault)
    if classes is None:
        return torch.searchsorted(known, y), torch.searchsorted(known, y_test), tuple(map(str, known.tolist()))
    if not isinstance(classes, (list, tuple)) or not all(isinstance(text, str) for text in classes):
        raise BadData(f"{name}: classes was given {classes!r}; it takes a list of names")
    if twice := [text for text in dict.fromkeys(classes) if classes.count(text) > 1]:
        raise BadData(f"{name}: classes names {brief(twice[0])} twice; every label has a name of its own")
    fault = f"has no name: classes names the labels 0..{len(classes) - 1}"
    _every((y >= 0) & (y < len(classes)), y, f"{name}: training labels", fault)
    return y, y_test, tuple(classes)


def _tell_levels(x: Tensor, name: str) -> None:
    """Say so where images are floats that look like the levels of 8 bits, and will not be taken for them."""
    least, most = float(x.min()), float(x.max())
    if 0 <= least < 1 < most <= 255 and all(bool((part == part.round()).all()) for part in in_parts(x)):
        warnings.warn(Notice(f"{name}: images of floats that are whole numbers from {least:g} to {most:g} are shown as "
                             "they are; give top=255 to have them from 0 to 1"), stacklevel=4)  # fmt: skip


def _checked_top(top: float, name: str) -> float:
    try:
        given = float(top)
    except (TypeError, ValueError, RuntimeError):
        given = math.nan
    if not (math.isfinite(given) and given > 0):
        raise BadData(f"{name}: top was given {top}; it takes the value that stands for 1.0, finite and above 0")
    return given


# Datasets


def _collected(dataset: Any, what: str) -> tuple[Tensor, Tensor]:
    """All samples of a map-style dataset, (N, ...), and their labels, (N,)."""
    try:
        count = len(dataset)
    except TypeError:
        raise BadData(f"{what} has no length; it takes a map-style torch.utils.data.Dataset") from None
    if count == 0:
        raise BadData(f"{what} is empty")
    x, y = torch.empty(0), torch.empty(count, dtype=torch.int64)
    for row in waited(range(count), count, what):
        sample, y[row] = _sample(dataset, row, what)
        if row == 0:
            x = sample.new_empty((count, *sample.shape))
        if (sample.shape, sample.dtype) != (x.shape[1:], x.dtype):
            raise BadData(f"{what}: sample {row} is {_kind(sample)}, but sample 0 is {_kind(x[0])}; they must be alike")
        x[row] = sample
    return x, y


def _sample(dataset: Any, row: int, what: str) -> tuple[Tensor, int]:
    """One sample and its label."""
    try:
        found = dataset[row]
        if isinstance(found, (dict, str)):  # whose names, or letters, would be taken for sample and label
            raise TypeError(f"it is {brief(found)}")
        sample, label = found
    except Exception as error:
        raise BadData(f"{what}: sample {row} is no pair (x, y): {type(error).__name__}: {error}") from error
    try:
        label = operator.index(label)
    except TypeError:
        raise BadData(f"{what}: the label of sample {row} is {brief(label)}; it must be an integer") from None
    if not -(2**63) <= label < 2**63:
        raise BadData(f"{what}: the label of sample {row} is {brief(label)}; it takes one of 64 bits")
    return _pixels(sample, f"{what}: x of sample {row}"), label


def _pixels(sample: Any, what: str) -> Tensor:
    """A PIL image as ``uint8`` (C, H, W); tensors and arrays as they are."""
    if not hasattr(sample, "getbands"):
        return _tensor(sample, what)
    if sample.mode[0] in "IF":
        raise BadData(f"{what} is a PIL image of mode {sample.mode}; it takes images of 8 bits, or tensors")
    image = np.array(sample.convert("L" if sample.mode in ("1", "L") else "RGB"))
    return torch.from_numpy(np.atleast_3d(image)).permute(2, 0, 1)


def digest(tensors: dict[str, Tensor]) -> str:
    """The SHA-256 over tensors in their order, in hexadecimal; the same however they lie in memory."""
    shapes = [[part, str(tensor.dtype), list(tensor.shape)] for part, tensor in tensors.items()]
    digest = hashlib.sha256(json.dumps(shapes).encode())
    for tensor in tensors.values():
        for some in (tensor,) if tensor.is_contiguous() else in_parts(tensor):
            digest.update(content(some))
    return digest.hexdigest()


def content(tensor: Tensor) -> memoryview:
    """The bytes of a tensor; without a copy where they lie one after another."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data
