"""Cumulative training: an upper bound that is not trained from the start each time."""

from __future__ import annotations

from dataclasses import dataclass

from continual.strategies.joint import AllData


@dataclass(frozen=True)
class Cumulative(AllData):
    """Cumulative training: for each task the last network is trained on, on all data so far. An upper bound.

    Avalanche-lib has it under the same name. Choices: 1. :class:`~continual.strategies.joint.Joint` restarts the
    network and the optimiser for each task; here both go on, so the data of early tasks have been gone through more
    often than those of late ones; 2. ``every=false`` is Joint's, and there is then no difference.
    """
