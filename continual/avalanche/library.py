"""avalanche-lib itself: imported when it is needed, and missed in one sentence."""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any

from continual.errors import Mistake

NAME = "avalanche-lib"
PARTS = (
    "feature_extractor", "classifier", "cwr_layer_name", "last_layer_name", "buffer_transform", "n_classes",
    "num_classes",
)  # fmt: skip
"""What a strategy may ask for beside its options, and is given: parts of the network, and what the stream says."""


def part(name: str) -> Any:
    """The module ``avalanche.<name>``."""
    try:
        with quiet():
            return importlib.import_module(f"avalanche.{name}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "avalanche":
            raise
        raise Mistake("this needs avalanche-lib, which is not installed: pip install 'continual[avalanche]'") from None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within it, what avalanche-lib prints goes to standard error, and what it and its imports warn of goes nowhere."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        warnings.showwarning = lambda *_, **__: None  # it sets a filter of its own before it warns of itself
        yield
