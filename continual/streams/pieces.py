"""Rows of a table, and runs of memory, each copied as one piece, for one seed or for seeds side by side."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether images (N, C, H, W) lie in memory with the values of a pixel side by side; of one channel none do."""
    return x.ndim == 4 and x.shape[1] > 1 and x.stride(1) == 1


def taken(memory: Tensor, index: Tensor, size: int = 0, step: int = 1) -> Tensor:
    """The rows ``index`` (B,) of a table (N, ...): (B, ...). It is for what is not learnt: no gradient need come back.

    With a ``size`` memory is (N,), and what is taken are runs of so many values, (B, size), that begin at ``index``
    times ``step``, which divides N. Where seeds have memory of their own, it is not seen that an index is out of range.
    """
    # PyTorch's compiler knows no rule of ours
    if torch.compiler.is_compiling() or not any(map(torch._C._functorch.is_batchedtensor, (memory, index))):
        return _of_one(memory, index, size, step)
    found: Tensor = _of_all().apply(memory, index, size, step)
    return found


def _of_one(memory: Tensor, index: Tensor, size: int, step: int) -> Tensor:
    return (memory.unfold(0, size, step) if size else memory).index_select(0, index)


@functools.cache
def _of_all() -> Any:
    """:func:`taken` of seeds side by side, all at once; made when it is needed, as PyTorch is."""

    class Taken(torch.autograd.Function):
        """PyTorch's own rule for ``index_select`` under ``vmap`` is a gather, of each value by itself."""

        forward = staticmethod(_of_one)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            """What PyTorch asks for; nothing is kept for a gradient."""
            ctx.mark_non_differentiable(output)

        @staticmethod
        def vmap(
            info: Any, in_dims: tuple[int | None, ...], memory: Tensor, index: Tensor, size: int, step: int
        ) -> tuple[Tensor, int]:
            """Of seeds whose memory, index or both lie along dimensions of their own."""
            of_memory, of_index, *_ = in_dims
            index = index.expand(info.batch_size, -1) if of_index is None else index.movedim(of_index, 0)
            if of_memory is not None:
                memory = memory.movedim(of_memory, 0)
                seeds = torch.arange(info.batch_size, device=index.device)
                index = index + seeds[:, None] * (memory.shape[1] // step)
                memory = memory.flatten(0, 1)
            return taken(memory, index.flatten(), size, step).unflatten(0, index.shape), 0

    return Taken
