"""Getting on with avalanche-lib 0.6 (``pip install 'continual[avalanche]'``): its streams, its loop, its strategies.

    stream(benchmark)       a benchmark of avalanche-lib as a stream of ours
    benchmark(stream)       a stream of ours as a benchmark of avalanche-lib
    Plugin(strategy, ...)   a strategy of ours in avalanche-lib's training loop

Its strategies stand where ours can, ``continual run split-digits finetune avalanche:EWC:ewc_lambda=0.4``: see
:mod:`continual.avalanche.foreign`. The names are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from continual.avalanche.plugin import Plugin as Plugin
    from continual.avalanche.streams import benchmark as benchmark
    from continual.avalanche.streams import stream as stream

_PLACES = {
    "Plugin": "continual.avalanche.plugin",
    "benchmark": "continual.avalanche.streams",
    "stream": "continual.avalanche.streams",
}

__all__ = [*_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'continual.avalanche' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
