"""Continual learning in PyTorch: sequential task streams, strategies, and what is forgotten.

    import continual as cl
    result = cl.run(cl.benchmarks.SplitMNIST(scenario="class"), cl.strategies.EWC(strength=600), seeds=10)
    result.average_accuracy, result.forgetting

The names below are loaded when they are first used, so that importing this package is quick.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual import avalanche as avalanche
    from continual import benchmarks as benchmarks
    from continual import strategies as strategies
    from continual.cli import script as script
    from continual.conformance import check as check
    from continual.errors import Mistake as Mistake
    from continual.learning.strategy import Batch as Batch
    from continual.learning.strategy import Chain as Chain
    from continual.learning.strategy import Step as Step
    from continual.learning.strategy import Strategy as Strategy
    from continual.options import option as option
    from continual.runner import run as run
    from continual.streams.stream import Stream as Stream
    from continual.tracking.tracker import Tracker as Tracker
    from continual.trained import learner as learner

__version__ = "0.1.0"

# Threads of PyTorch that wait for each other spin before they sleep, by GNU OpenMP's default 300,000 times: beside
# another busy process a run takes six times as long and more. It is read as PyTorch is imported.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")

_PLACES = {
    "Batch": "continual.learning.strategy",
    "Chain": "continual.learning.strategy",
    "Mistake": "continual.errors",
    "Step": "continual.learning.strategy",
    "Strategy": "continual.learning.strategy",
    "Stream": "continual.streams.stream",
    "Tracker": "continual.tracking.tracker",
    "check": "continual.conformance",
    "learner": "continual.trained",
    "option": "continual.options",
    "run": "continual.runner",
    "script": "continual.cli",
}
_PACKAGES = ("avalanche", "benchmarks", "strategies")

__all__ = [*_PACKAGES, *_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return importlib.import_module(f"continual.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'continual' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
