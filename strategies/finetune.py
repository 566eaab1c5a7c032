"""Fine-tuning: the lower bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from continual.learning.strategy import Strategy


@dataclass(frozen=True)
class Finetune(Strategy):
    """Fine-tuning: each task in turn, with nothing done against forgetting. The lower bound."""

    is_finetuning: ClassVar[bool] = True
