"""What the record and the arrays of a run must look like, so that whatever reads them can rely on it.

Checksums tell what was damaged. This tells what was never right, such as a record that another program has written.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, NotRequired, TypedDict

import msgspec
import numpy as np

from continual.errors import choices
from continual.results.metrics import ACCURACIES

if TYPE_CHECKING:
    from numpy.typing import NDArray

Count = Annotated[int, msgspec.Meta(ge=0, le=2**53)]
Counts = Annotated[list[Count], msgspec.Meta(min_length=1)]
Described = str | dict[str, Any]
ROUNDING = 1e-6
"""So far above 1 the mean of float32 accuracies may be."""


class Protocol(TypedDict):
    """What the runs of an experiment share."""

    benchmark: Described
    model: Described
    training: Described
    seeds: Counts


class Stopped(TypedDict):
    """A seed that was given up."""

    seed: Count
    task: Count
    step: Count
    why: str


class Time(TypedDict):
    """When a run began, and how long it took."""

    began: NotRequired[str]
    seconds: NotRequired[Annotated[float, msgspec.Meta(ge=0, le=1e12)]]


class Size(TypedDict):
    """What a learner holds."""

    parameters: NotRequired[Count | Counts]
    statistics: NotRequired[Count]
    frozen_parameters: NotRequired[Count]
    memory_bytes: NotRequired[Count]
    sample_bytes: NotRequired[Count]
    stored_samples_per_task: NotRequired[list[Count]]
    train_samples_per_task: NotRequired[list[Count]]


class Record(TypedDict):
    """A run's record; further keys may be there."""

    strategy: Annotated[list[dict[str, Any]], msgspec.Meta(min_length=1)]
    protocol: Protocol
    title: NotRequired[str]
    heading: NotRequired[str]
    tasks: NotRequired[list[str]]
    written: NotRequired[str]
    device: NotRequired[dict[str, str]]
    versions: NotRequired[dict[str, str]]
    code: NotRequired[dict[str, str | None]]
    time: NotRequired[Time]
    size: NotRequired[Size]
    stopped: NotRequired[list[Stopped]]


def check_record(record: dict[str, Any]) -> None:
    """ValueError where what the run's folder is named after is missing."""
    protocol, strategy = record.get("protocol"), record.get("strategy")
    parts = Protocol.__annotations__
    if not isinstance(protocol, dict) or not all(name in protocol for name in parts):
        raise ValueError(f"the record has no protocol with {choices(parts)}")
    named = isinstance(strategy, list) and strategy and all(
        isinstance(part, dict) and isinstance(part.get("name"), str) for part in strategy
    )  # fmt: skip
    if not named:
        raise ValueError("the record's strategy is not a list of strategies with a name each")


def check_types(record: dict[str, Any]) -> None:
    """ValueError where something that is read of a record, as JSON has it, is of another type, or is no text."""
    json.dumps(record, ensure_ascii=False).encode()
    try:
        msgspec.convert(record, Record)
    except msgspec.ValidationError as error:
        raise ValueError(f"the record is not that of a run: {error}") from None
    seeds = record["protocol"]["seeds"]
    if len(set(seeds)) < len(seeds):
        raise ValueError("the record has a seed twice")


def check_arrays(arrays: dict[str, NDArray[Any]], R: int) -> None:
    """ValueError where accuracies are missing or none, or an array has a shape that does not go with the others."""
    if "accuracy" not in arrays:
        raise ValueError("there is no array named accuracy")
    T = arrays["accuracy"].shape[-1] if arrays["accuracy"].ndim else 0
    if not T:
        raise ValueError(f"the array accuracy has shape {arrays['accuracy'].shape}, without a task")
    expected: dict[str, tuple[int, ...]] = {}
    for name in ACCURACIES:
        expected[name] = (R, T + 1, T)
    expected["test_samples"] = (R, T)
    if "trace" in arrays:
        E = arrays["trace"].shape[1] if arrays["trace"].ndim == 3 else 0
        expected |= {"trace": (R, E, T), "trace_step": (E,), "trace_task": (E,)}
        expected |= {name: (R, E, T) for name in ("training_trace", "validation_trace") if name in arrays}
        if missing := {"trace_step", "trace_task"} - set(arrays):
            raise ValueError(f"a trace goes with {choices(missing)}")
        if not E:
            raise ValueError(f"the array trace has shape {arrays['trace'].shape}, in which nothing was measured")
    for name, array in arrays.items():
        if array.shape != expected.get(name, array.shape):
            raise ValueError(f"the array {name} has shape {array.shape} and not {expected[name]}")
    for name in expected:
        if name in arrays:
            _check_values(name, arrays[name], T)


def _check_values(name: str, array: NDArray[Any], T: int) -> None:
    """ValueError for values that the array of this name cannot have."""
    if name in ("trace_step", "trace_task", "test_samples"):
        most = T - 1 if name == "trace_task" else 2**53
        if array.dtype.kind not in "iu" or (array < 0).any() or (array > most).any():
            raise ValueError(f"the array {name} takes whole numbers from 0 to {most}")
        return
    values = array[np.isfinite(array)] if array.dtype.kind == "f" else array
    if array.dtype.kind not in "fiub" or np.isinf(array).any() or (values < 0).any() or (values > 1 + ROUNDING).any():
        raise ValueError(f"the array {name} takes fractions from 0 to 1, or NaN")
