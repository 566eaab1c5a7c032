"""Augmentation: images as a step shows them, each at random in its own way; evaluation shows them as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from continual.errors import BadOption, counted
from continual.options import Configured, option
from continual.streams.pieces import channels_last, taken

if TYPE_CHECKING:
    from torch import Tensor

    from continual.streams.rng import Key

GREY = (0.299, 0.587, 0.114)
"""How bright red, green and blue look (ITU-R BT.601), as PIL and torchvision have it."""


class Ways(NamedTuple):
    """How crops can lie across an image: where they begin, and which of a row's values are the image's and not black.

    ``first`` (K,), as :meth:`Images.moved` lays images down; ``seen`` (K, values of a row), 1 or 0.
    """

    first: Tensor
    seen: Tensor


@dataclass(frozen=True)
class Shown:
    """How a step shows images: by an augmentation, at random from the step's key.

    ``number`` () is the index of its task; ``ways`` are those of :meth:`Augmentation.ways`, the same in every step.
    """

    augmentation: Augmentation
    key: Key
    number: Tensor
    ways: Ways | None = None

    def moved(self, pixels: Tensor, tasks: Tensor) -> Tensor:
        """Pixels (B, C, H, W) as they are stored, of samples of ``tasks`` (B,), in other places."""
        return self.augmentation.moved(pixels, self.augmentation.free(tasks, self.number), self.key, self.ways)

    def coloured(self, x: Tensor, tasks: Tensor, most: float) -> Tensor:
        """Images in [0, most] in other colours."""
        return self.augmentation.coloured(x, self.augmentation.free(tasks, self.number), self.key, most)

    def covered(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Normalised images with a part covered."""
        return self.augmentation.covered(x, self.augmentation.free(tasks, self.number), self.key)


@dataclass(frozen=True)
class Augmentation(Configured):
    """Images as they are.

    In the methods of a step ``free`` (B,) says which samples are augmented; None: all.
    """

    @property
    def active(self) -> bool:
        """Whether it does anything."""
        return False

    def suits(self, name: str, pixels: Tensor, top: float) -> None:
        """Raise :class:`~continual.errors.BadOption` where the samples (N, ...) of a data set are not images.

        ``top`` is the value that stands for 1.
        """
        if self.active and pixels.ndim != 4:
            raise BadOption(f"augment: it is for images (C, H, W), and the samples of {name} are "
                            f"{tuple(pixels.shape[1:])}; leave it out")  # fmt: skip

    @property
    def by_task(self) -> bool:
        """Whether :meth:`free` looks at the tasks."""
        return False

    def free(self, tasks: Tensor, number: Tensor) -> Tensor | None:
        """Which of the samples of ``tasks`` (B,) are augmented in one of task ``number`` (): bool (B,); None: all."""
        return None

    def ways(self, pixels: Tensor, device: torch.device) -> Ways | None:
        """What :meth:`moved` would else make anew at every step, for such pixels; None if that is nothing.

        On the ``device`` of the step, which the pixels may have to be brought to.
        """
        return None

    def moved(self, pixels: Tensor, free: Tensor | None, key: Key, ways: Ways | None = None) -> Tensor:
        """Pixels (B, C, H, W) in other places, laid out in memory as they are."""
        return pixels

    def coloured(self, x: Tensor, free: Tensor | None, key: Key, most: float) -> Tensor:
        """Images in other colours."""
        return x

    def covered(self, x: Tensor, free: Tensor | None, key: Key) -> Tensor:
        """Images with a part covered."""
        return x

    def views(self, x: Tensor) -> list[Tensor]:
        """The views of images (B, C, H, W) whose scores are averaged in evaluation."""
        return [x]


@dataclass(frozen=True)
class Images(Augmentation):
    """What is done to photographs: random crops, flips, colours, and a covered square, for each sample anew."""

    crop: int = option(
        0, "black pixels on each side, from which a crop of the image's size is taken at random", ge=0, le=1024
    )
    flip: bool = option(False, "mirror left and right, one time in two")
    brightness: float = option(0.0, "b: times a factor in 1 - b to 1 + b", ge=0, le=1)
    contrast: float = option(0.0, "c: away from or towards its mean grey by a factor in 1 - c to 1 + c", ge=0, le=1)
    saturation: float = option(0.0, "s: away from or towards its grey image by a factor in 1 - s to 1 + s", ge=0, le=1)
    hue: float = option(0.0, "h: colours turned round the circle of hues by a part of it in -h to h", ge=0, le=0.5)
    cutout: int = option(0, "side of a square at a random place that is set to 0 (DeVries & Taylor 2017)", ge=0)
    replayed: bool = option(True, "whether samples of earlier tasks are augmented too, anew each time")
    flip_tests: bool = option(False, "in evaluation, average the scores of an image and of its mirror image")

    @property
    def active(self) -> bool:
        """See :class:`Augmentation`."""
        return any((self.crop, self.flip, self.colours, self.cutout, self.flip_tests))

    @property
    def colours(self) -> bool:
        """Whether colours are changed."""
        return any((self.brightness, self.contrast, self.saturation, self.hue))

    def suits(self, name: str, pixels: Tensor, top: float) -> None:
        """See :class:`Augmentation`; something is done, an image is left, and colours are for values from 0 to 1."""
        super().suits(name, pixels, top)
        if not self.active:
            raise BadOption("augment: nothing is said of what is done; say it, as in images:crop=4,flip=true")
        for option_name, given in (("crop", self.crop), ("cutout", self.cutout)):
            if given >= min(pixels.shape[2:]):
                raise BadOption(f"augment: {option_name}={given} is not less than the sides of the images of {name}, "
                                f"{pixels.shape[2]}x{pixels.shape[3]}, of which nothing may be left")  # fmt: skip
        for option_name, suited in (("saturation", pixels.shape[1] > 1), ("hue", pixels.shape[1] == 3)):
            given = getattr(self, option_name)
            if given and not suited:
                raise BadOption(f"augment: {option_name}={given:g} is for images of red, green and blue, and those of "
                                f"{name} have {counted(pixels.shape[1], 'channel')}; leave it out")  # fmt: skip
        if self.colours and pixels.is_floating_point():
            low, high = float(pixels.min()), float(pixels.max())
            if low < 0 or high > top:
                raise BadOption(f"augment: brightness, contrast, saturation and hue are for pixels from 0 to {top:g}; "
                                f"those of {name} go from {low:.3g} to {high:.3g}: give them unstandardised, "
                                "with normalize=standard")  # fmt: skip

    @property
    def by_task(self) -> bool:
        """See :class:`Augmentation`."""
        return not self.replayed

    def free(self, tasks: Tensor, number: Tensor) -> Tensor | None:
        """See :class:`Augmentation`."""
        return None if self.replayed else tasks == number

    def ways(self, pixels: Tensor, device: torch.device) -> Ways | None:
        """See :class:`Augmentation`: for crops from the leftmost to the rightmost, then for the same mirrored."""
        if not (self.crop or self.flip):
            return None
        height, width, values = _planes(pixels).shape[2:]
        shifts = torch.arange(-self.crop, self.crop + 1, device=device)
        columns = shifts[:, None] + torch.arange(width, device=device)
        seen = ((columns >= 0) & (columns < width)).to(pixels.dtype).repeat_interleave(values, 1)
        first = self._border * width - self.crop * width + shifts  # of the topmost crops
        if not self.flip:
            return Ways(first, seen)
        behind = (self._border + height) * width  # where the mirrored image lies, whose rightmost crop is the first
        return Ways(torch.cat([first, behind + first.flip(0)]), torch.cat([seen, seen.flip(0)]))

    @property
    def _border(self) -> int:
        """Black rows above an image: a crop's, and one for what it has at its sides. Below it are those of the next."""
        return self.crop + 1 if self.crop else 0

    def moved(self, pixels: Tensor, free: Tensor | None, key: Key, ways: Ways | None = None) -> Tensor:
        """See :class:`Augmentation`: crop and flip, each image copied as one piece.

        A crop's rows follow each other in memory as the image's do, so a crop is what lies there from another pixel on.
        Above and below it are rows of black. Beside it are pixels of the rows before or after, which are made black: by
        a product with 0, as they are finite, since filling under a mask takes ten times as long on a CPU.
        """
        ways = self.ways(pixels, pixels.device) if ways is None else ways
        if ways is None:
            return pixels
        planes = _planes(pixels)
        n, each, height, width, values = planes.shape
        shown = (planes, planes.flip(3)) if self.flip else (planes,)
        # below the last image are the black rows of one more, which is never seen
        room = pixels.new_empty(n * each * len(shown) + 1, self._border + height, width * values)
        room[:, : self._border].zero_()
        for place, images in zip(room[:-1].unflatten(0, (-1, len(shown))).unbind(1), shown, strict=True):
            place[:, self._border :].copy_(images.reshape(n * each, height, width * values))
        line = _where(free, key.integers("flip", n, 2), 0) if self.flip else None
        if self.crop:
            drawn = key.integers("crop", 2 * n, 2 * self.crop + 1).unflatten(0, (2, n))
            down, across = _where(free, drawn, self.crop)  # in the middle they are as they were
            line = across if line is None else torch.add(across, line, alpha=2 * self.crop + 1)
        assert line is not None
        first = ways.first.index_select(0, line)
        first = torch.add(first, down, alpha=width) if self.crop else first
        size = len(shown) * (self._border + height) * width
        start = torch.arange(0, n * each * size, size, device=pixels.device).view(n, each) + first[:, None]
        found = taken(room.flatten(), start.flatten(), height * width * values, values)
        if self.crop:
            found = found.view(n, each * height, width * values).mul_(taken(ways.seen, line)[:, None])
        return found.view(n, each, height, width, values).movedim(-1, 2).flatten(1, 2)

    def coloured(self, x: Tensor, free: Tensor | None, key: Key, most: float) -> Tensor:
        """See :class:`Augmentation`: brightness, contrast, saturation and hue, in this order."""
        for name in ("brightness", "contrast", "saturation"):
            amount = getattr(self, name)
            if not amount:
                continue
            factor = 1 + amount * (2 * key.uniform(name, len(x)).to(x.dtype) - 1)
            factor = _where(free, factor, 1.0)[:, None, None, None]
            if name == "brightness":
                x = (x * factor).clamp(0, most)
                continue
            grey = self._grey(x)
            x = torch.lerp(grey.mean((2, 3), keepdim=True) if name == "contrast" else grey, x, factor).clamp(0, most)
        if not self.hue:
            return x
        other = turned(x, self.hue * (2 * key.uniform("hue", len(x)).to(x.dtype) - 1))
        return other if free is None else torch.where(free[:, None, None, None], other, x)  # as they were to the bit

    def covered(self, x: Tensor, free: Tensor | None, key: Key) -> Tensor:
        """See :class:`Augmentation`: cutout, whose square may reach over the edge."""
        if not self.cutout:
            return x
        n, _, height, width = x.shape
        middle = key.uniform("cutout", 2, n).to(x.dtype)
        hidden = []
        for side, part in ((height, middle[0]), (width, middle[1])):
            first = (part * side).floor() - self.cutout // 2
            place = torch.arange(side, device=x.device) - first[:, None]
            hidden.append((place >= 0) & (place < self.cutout))
        square = hidden[0][:, :, None] & hidden[1][:, None]
        square = square if free is None else square & free[:, None, None]
        return x.masked_fill(square[:, None], 0.0)

    def views(self, x: Tensor) -> list[Tensor]:
        """See :class:`Augmentation`."""
        return [x, x.flip(-1)] if self.flip_tests else [x]

    @staticmethod
    def _grey(x: Tensor) -> Tensor:
        """The grey image (B, 1, H, W)."""
        if x.shape[1] != 3:
            return x.mean(1, keepdim=True)
        red, green, blue = (weight * channel for weight, channel in zip(GREY, x.unbind(1), strict=True))
        return (red + green + blue)[:, None]


def turned(x: Tensor, angle: Tensor) -> Tensor:
    """Images of red, green and blue (B, 3, H, W), whose hues are turned by parts (B,) of the circle.

    Value and saturation (Smith 1978, "Color gamut transform pairs") stay. A colour is v - (v - m) max(0, min(k, 4 - k,
    1)), with v and m the largest and the smallest of the three, and k = n + 6 hue mod 6, n = 5, 3, 1.
    """
    value, least = x.amax(1), x.amin(1)
    span = value - least
    red, green, blue = x.unbind(1)
    some = torch.where(span > 0, span, 1)  # grey has no hue
    hue = torch.where(
        value == red, (green - blue) / some,
        torch.where(value == green, 2 + (blue - red) / some, 4 + (red - green) / some),
    )  # fmt: skip
    hue = hue + 6 * angle[:, None, None]
    sixths = [(n + hue) % 6 for n in (5, 3, 1)]
    return torch.stack([value - span * torch.minimum(k, 4 - k).clamp(0, 1) for k in sixths], 1)


def _planes(pixels: Tensor) -> Tensor:
    """Images (B, C, H, W) as they lie in memory: (B, planes, H, W, values of a pixel side by side)."""
    return pixels.movedim(1, -1)[:, None] if channels_last(pixels) else pixels[..., None]


def _where(free: Tensor | None, drawn: Tensor, otherwise: float) -> Tensor:
    """What was drawn for the samples that are free (None: all), (..., B); for the others what leaves them alone."""
    return drawn if free is None else torch.where(free, drawn, otherwise)
