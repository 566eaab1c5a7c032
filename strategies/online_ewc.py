"""Online EWC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from continual.options import option
from continual.strategies.ewc import EWC


@dataclass(frozen=True)
class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018, "Progress and compress", eq. 9-10): one Fisher with decay, one anchor.

    loss + ½ λ Σ_i F̃_i (θ_i - θ*_i)², with F̃ = γ F̃ + F_t after each task and θ* the last task's weights. It is EWC
    with other defaults; its choices are EWC's (see :class:`EWC`), and one more: the paper's penalty, and that of van de
    Ven's code, has γ F̃ for F̃, so λ here is γ times theirs. Hsu et al. 2018 have γ = 1.
    """

    terms: Literal["each", "last"] = option("last", "all importance around the last weights, or one term per task")
    decay: float = option(0.9, "γ, the factor on the earlier tasks' Fisher when a task is added", ge=0, le=1)
