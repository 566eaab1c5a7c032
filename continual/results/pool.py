"""Some seeds and others as one: of the groups of a run, and of stored runs that differ in their seeds alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from continual.errors import BadOption, mistakes_of
from continual.results.store import Result, canonical

SHARED = ("trace_task", "trace_step")
"""Arrays that all seeds have in common."""
HOW = ("device", "asked", "seeds_as", "threads", "products", "program", "versions")
"""What a record says of how numbers were computed, which may move last bits."""


class Group(Protocol):
    """Seeds, and their arrays with R in front, but for those that are shared."""

    @property
    def seeds(self) -> list[int]:
        """The R seeds."""

    @property
    def arrays(self) -> Mapping[str, NDArray[Any]]:
        """What they gave."""


def same_steps(groups: Sequence[Group]) -> dict[str, NDArray[Any]]:
    """The steps and tasks of all evaluations between steps, which are those of all seeds.

    But for seeds that were stopped: from there on theirs may be others. Raises :class:`~continual.errors.BadOption`
    where seeds were measured at different steps.
    """
    measured = [group.arrays for group in groups if all(name in group.arrays for name in SHARED)]
    lengths = [_measured(arrays["trace"]) for arrays in measured]
    whole = [arrays for arrays, n in zip(measured, lengths, strict=True) if n == arrays["trace"].shape[1]]
    first = max(whole or measured, key=lambda arrays: len(arrays[SHARED[0]]), default={})
    for arrays, n in zip(measured, lengths, strict=True):
        until = n if n < arrays["trace"].shape[1] else None
        if any(not np.array_equal(arrays[name][:until], first[name][:until]) for name in SHARED):
            raise BadOption("its seeds were measured at different steps, as they differ in how many rows they learn "
                            "from, and cannot be taken as one; give iterations, not epochs, and evaluate_every as a "
                            "number of steps")  # fmt: skip
    return {name: first[name] for name in SHARED} if first else {}


def _measured(trace: NDArray[Any]) -> int:
    """How many evaluations (R, E, T) there are until all seeds were stopped."""
    there = np.flatnonzero(np.isfinite(trace).any((0, 2)))
    return int(there[-1]) + 1 if len(there) else 0


def join(groups: Sequence[Group], seeds: list[int]) -> dict[str, Any]:
    """The arrays of all seeds in this order; of one that is in several groups, that of the first.

    Seeds may differ in how many steps they took: the shorter ``loss`` ends in NaN, and so do traces of seeds that were
    stopped. What a group does not have, as it is of an earlier version, is left out. Raises what :func:`same_steps`
    does.
    """
    shared = same_steps(groups)
    found = [seed for group in groups for seed in group.seeds]
    order = [found.index(seed) for seed in seeds]
    joined: dict[str, Any] = {}
    for name in groups[0].arrays:
        values = [group.arrays[name] for group in groups if name in group.arrays]
        if len(values) < len(groups):
            continue
        if name in SHARED:
            joined[name] = shared[name]
            continue
        if name == "loss":
            values = [_of_length(one, max(value.shape[1] for value in values)) for one in values]
        elif name.endswith("trace"):
            values = [_of_length(one, len(shared[SHARED[0]])) for one in values]
        joined[name] = np.concatenate(values)[order]
    return joined


def _of_length(values: NDArray[Any], length: int) -> NDArray[Any]:
    """The values (R, n, ...) up to a length, NaN behind them."""
    rest = ((0, 0),) * (values.ndim - 2)
    return np.pad(values[:, :length], ((0, 0), (0, max(0, length - values.shape[1])), *rest), constant_values=np.nan)


def pooled(results: Sequence[Result]) -> list[Result]:
    """Each run with the seeds of those that differ from it in their seeds alone, not in protocol, code or data.

    They stand where the first of them stood, in the order of their seeds. A seed that is in several counts once. What
    seeds do not have each for itself is said of the first run, but for how they were computed, which is said where all
    were so, and else named under ``differing``, and for the seconds, which add up where no seed is in two of them and
    they are of one kind of device.

    Raises what :func:`same_steps` does.
    """
    alike: dict[bytes, list[Result]] = {}
    for one in results:
        record = one.record
        protocol = record["protocol"] | {"seeds": []}
        of = [record["strategy"], protocol, record.get("code"), record.get("data", {}).get("sha256")]
        alike.setdefault(canonical(of), []).append(one)
    return [runs[0] if len(runs) == 1 else _one(runs) for runs in alike.values()]


def _one(runs: list[Result]) -> Result:
    """Runs of different seeds as one."""
    seeds, record = sorted({seed for run in runs for seed in run.seeds}), runs[0].record
    own = {seed: run for run in reversed(runs) for seed in run.seeds}  # the run that a seed is taken from
    stopped = [one for run in runs for one in run.record.get("stopped", ()) if own[one["seed"]] is run]
    record = record | {"protocol": record["protocol"] | {"seeds": seeds}, "stopped": stopped}
    differing = [name for name in HOW if any(run.record.get(name) != record.get(name) for run in runs)]
    record = {name: value for name, value in record.items() if name not in differing}
    record |= {"differing": differing} if differing else {}
    once = len(seeds) == sum(len(run.seeds) for run in runs)
    if once and "device" not in differing and all("seconds" in run.record.get("time", {}) for run in runs):
        record["time"] = record["time"] | {"seconds": sum(run.record["time"]["seconds"] for run in runs)}
    else:
        record.pop("time", None)
    with mistakes_of(runs[0].name):
        return Result(record, join(runs, seeds))  # what was kept of learners lies with their own runs
