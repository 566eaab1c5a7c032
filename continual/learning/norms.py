"""Normalisation between layers; what a batch does to running statistics is given back, never written in place."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from continual.errors import BadChain, BadOption

Norm = Literal["batch", "group", "layer", "none"]
Statistics = Literal["running", "task", "frozen"]
MOMENTUM = 0.1  # the part of the newest batch in running statistics, as PyTorch's default has it


class BatchNorm(nn.Module):
    """Batch normalisation (Ioffe & Szegedy 2015) of (B, C, ...), with running statistics as its buffers.

    With ``batch_statistics`` it normalises by the batch's own and leaves the new running ones in ``fresh``; else by the
    running ones. Running variances are unbiased, as in PyTorch. With ``tasks`` each task has running statistics of its
    own, (T, C), and the samples of a batch (B, C, H, W) are normalised among those of their task.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, tasks: int | None = None, eps: float = 1e-5, momentum: float = MOMENTUM) -> None:
        super().__init__()
        shape = (channels,) if tasks is None else (tasks, channels)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.count, self.eps, self.momentum = tasks, eps, momentum
        self.batch_statistics = False
        self.tasks: Tensor | None = None
        self.fresh: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """The batch (B, C, H, W), normalised."""
        if self.count is not None:
            return self._by_task(x, self.count)
        if not self.batch_statistics:
            return torch.nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        # new running statistics, which the kernel that normalises writes; of a single value there is no variance
        before_mean, before_var = self._latest()
        self.fresh = before_mean.clone(), before_var.clone()
        mean, variance = self.fresh if x.numel() > x.shape[1] else (None, None)
        out: Tensor = torch.batch_norm(
            x, self.weight, self.bias, mean, variance, True, self.momentum, self.eps, torch.backends.cudnn.enabled
        )
        return out

    def _latest(self) -> tuple[Tensor, Tensor]:
        """The running statistics, as they are after an earlier call of the same pass."""
        return self.fresh or (self.running_mean, self.running_var)

    def _by_task(self, x: Tensor, count: int) -> Tensor:
        """Each sample by its own task's statistics."""
        if self.tasks is None:
            raise BadChain(
                "statistics=task: this network has to be told each sample's task: net.logits(theta, x, tasks)"
            )
        mean, variance = self.running_mean, self.running_var
        if self.batch_statistics:
            with torch.autocast(x.device.type, enabled=False):  # it would round them as it does the images
                mean, variance = self._of_batch(x, self.tasks, count)
        factor = self.weight * (variance + self.eps).rsqrt()
        term = self.bias - mean * factor
        factor, term = (part[self.tasks][..., None, None].to(x.dtype) for part in (factor, term))
        return torch.addcmul(term, x, factor)

    def _of_batch(self, x: Tensor, tasks: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The mean and the variance (count, C) of each task's samples, which the running statistics follow."""
        kind = self.running_mean.dtype
        member = (tasks[:, None] == torch.arange(count, device=x.device)).to(kind)
        n = member.sum(0)[:, None] * x.shape[2] * x.shape[3]
        mean = member.T @ x.sum((2, 3), dtype=kind) / n.clamp_min(1)
        from_mean = (x - mean[tasks][..., None, None]).square().sum((2, 3), dtype=kind)
        variance = member.T @ from_mean / n.clamp_min(1)
        # of a single value there is no variance
        unbiased, several = (variance * n / (n - 1).clamp_min(1)).detach(), n > 1
        before_mean, before_var = self._latest()
        self.fresh = (
            torch.where(several, torch.lerp(before_mean, mean.detach(), self.momentum), before_mean),
            torch.where(several, torch.lerp(before_var, unbiased, self.momentum), before_var),
        )
        return mean, variance


def norm(kind: Norm, channels: int, tasks: int | None) -> nn.Module:
    """A normalisation layer; groups are of 16 channels or what divides them (Wu & He 2018), ``layer`` has one group."""
    if kind == "batch":
        return BatchNorm(channels, tasks)
    if kind == "none":
        return nn.Identity()
    return nn.GroupNorm(1 if kind == "layer" else math.gcd(channels, max(1, channels // 16)), channels)


OF_PYTORCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
"""What ours does the work of; a class that derives from them may do something else."""


def replaced(module: nn.Module, kind: Norm, tasks: int | None) -> nn.Module:
    """The same network with PyTorch's BatchNorm replaced, which keeps its weights and statistics where it can.

    Raises :class:`~continual.errors.BadOption` where one is of a kind that ours is not.
    """
    norms = (one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm))
    shared: dict[nn.Parameter, nn.Parameter] = {}
    return exchanged(module, {one: _like(one, kind, tasks, shared) for one in norms if type(one) in OF_PYTORCH})


def exchanged(module: nn.Module, new: dict[Any, nn.Module]) -> nn.Module:
    """The same network with ``new`` modules in the place of some within it."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():  # one that is there twice, too
            if child in new:
                setattr(parent, name, new[child])
    return module


def _like(
    old: nn.modules.batchnorm._BatchNorm, kind: Norm, tasks: int | None, shared: dict[nn.Parameter, nn.Parameter]
) -> nn.Module:
    """What takes the place of a layer; ``shared``: the parameters that were made for others, by theirs."""
    if not old.affine or not old.track_running_stats or old.momentum is None:
        raise BadOption(f"{old}: BatchNorm is known here with affine=True, track_running_stats=True and a momentum")
    new: Any = norm(kind, old.num_features, tasks)
    if kind == "none":
        return nn.Identity()
    if isinstance(new, BatchNorm):
        for name in ("weight", "bias"):  # which two may have in common
            own = getattr(old, name)
            if own not in shared:
                shared[own] = nn.Parameter(own.detach().clone(), own.requires_grad)
            setattr(new, name, shared[own])
        new.eps, new.momentum = old.eps, old.momentum
        for name in ("running_mean", "running_var"):
            getattr(new, name).copy_(getattr(old, name))
        return new
    with torch.no_grad():
        new.weight.copy_(old.weight)
        new.bias.copy_(old.bias)
    made: nn.Module = new
    return made.requires_grad_(old.weight.requires_grad)
