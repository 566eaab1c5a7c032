"""Training from scratch: a network of its own for each task."""

from __future__ import annotations

from dataclasses import dataclass

from continual.strategies.joint import Restarted


@dataclass(frozen=True)
class FromScratch(Restarted):
    """Training from scratch: for each task a fresh network on that task's rows alone. What can be learnt of one task.

    Nothing is transferred and nothing is kept, so what counts is the accuracy on a task just after it was learnt (the
    diagonal of the accuracy matrix): methods that transfer do better. It is avalanche-lib's FromScratchTraining.

    Choices: 1. each task begins with the same untrained network, the one that the run began with, and a fresh
    optimiser, as in avalanche-lib; 2. the network is the whole one, not a part of it that has the size of a task.
    """
