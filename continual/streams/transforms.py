"""What is done to a batch of images on the device: scale them, and show them the way their task does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


def scaled(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """``x * scale`` in floating point, from ``uint8`` or floating-point values."""
    if scale == 1:
        return x.to(dtype)
    # what conversion made anew can be scaled in place
    return x * scale if x.dtype == dtype else x.to(dtype).mul_(scale)


@dataclass(frozen=True, eq=False)
class Transform:
    """How each task shows its images; ``table`` (T, ...) holds one row of what is needed for each task."""

    table: Tensor

    def __call__(self, x: Tensor, tasks: Tensor) -> Tensor:
        """The images ``x`` (B, ...) as the tasks ``tasks`` (B,) show them."""
        raise NotImplementedError


class Permute(Transform):
    """Pixels in another order; ``table`` (T, pixels) holds the source of each pixel."""

    def __call__(self, x: Tensor, tasks: Tensor) -> Tensor:
        """See :class:`Transform`."""
        return x.flatten(1).gather(1, self.table[tasks]).reshape(x.shape)


class Rotate(Transform):
    """Images turned about their centre; ``table`` (T, H, W, 2) holds the sampling grids (bilinear, black outside)."""

    def __call__(self, x: Tensor, tasks: Tensor) -> Tensor:
        """See :class:`Transform`."""
        grid = self.table[tasks].to(x.dtype)
        return torch.nn.functional.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def rotation_grids(degrees: list[float], height: int, width: int) -> Tensor:
    """The table of :class:`Rotate` for counter-clockwise angles in degrees, shape (T, H, W, 2)."""
    turns = [(math.cos(angle), math.sin(angle)) for angle in map(math.radians, degrees)]
    long, wide = height / width, width / height  # a grid goes from -1 to 1 along either side
    affine = torch.tensor([[[cos, -sin * long, 0.0], [sin * wide, cos, 0.0]] for cos, sin in turns])
    return torch.nn.functional.affine_grid(affine, [len(degrees), 1, height, width], align_corners=False)
