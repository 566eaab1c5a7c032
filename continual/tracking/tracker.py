"""The contract of a tracker: a frozen dataclass of options that begins a log for each run that is followed."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

from continual.errors import Mistake
from continual.options import Configured, option, typed
from continual.results.store import leaves

LONGEST = 100  # characters of a title in a name


class Unreachable(Mistake):
    """A tracker that is not installed, not logged in, or does not answer."""


class Point(NamedTuple):
    """Values by name at one place of an axis: ``step`` counts steps over the whole stream, ``task`` tasks learnt."""

    axis: Literal["step", "task"]
    at: int
    values: dict[str, float]


@dataclass(frozen=True)
class Followed:
    """What one log is about: the mean over the seeds of a run, or one seed of it.

    ``experiment`` is the name that the runs of one protocol share, ``title`` the strategy with its options, ``seed``
    the seed (None: the mean over all), ``among`` whether the run has other logs beside this one, ``record`` what
    is known of the run before it begins (see :class:`~continual.results.store.Result`), and ``mark`` letters and digits
    that it shares with nothing but itself, when it was killed and goes on.
    """

    experiment: str
    title: str
    seed: int | None
    among: bool
    record: dict[str, Any]
    mark: str = ""

    @property
    def name(self) -> str:
        """The strategy and the seed, as people read it."""
        return f"{self.title}, {self.part}" if self.among else self.title

    @property
    def part(self) -> str:
        """``mean`` or ``seed-3``."""
        return "mean" if self.seed is None else f"seed-{self.seed}"

    @property
    def path(self) -> str:
        """A name for files: experiment, strategy, and the seed where there are several."""
        readable = re.sub(r"[^\w.=+,-]+", "-", self.title)
        if len(readable) > LONGEST:
            readable = f"{readable[:LONGEST]}-{hashlib.sha256(self.title.encode()).hexdigest()[:8]}"
        return "/".join([self.experiment, readable, *([self.part] if self.among else [])])

    @property
    def configuration(self) -> dict[str, Any]:
        """The strategy's and the protocol's options, nested, with the device and the versions."""
        kept = ("device", "versions", "code")
        parts: dict[str, Any] = {}
        for part in self.record["strategy"]:
            same = sum(name.partition("#")[0] == part["name"] for name in parts)
            parts[f"{part['name']}#{same + 1}" if same else part["name"]] = {
                name: value for name, value in part.items() if name != "name"
            }
        more = {name: self.record[name] for name in kept if self.record.get(name)}
        return {"strategy": self.title, "strategies": parts, "seed": self.part, **self.record["protocol"], **more}

    @property
    def flat(self) -> dict[str, bool | int | float | str]:
        """:attr:`configuration` in one level: ``training.epochs``, ``strategies.ewc.strength``."""
        found = leaves(self.configuration)
        return {name: one if isinstance(one, bool | int | float | str) else typed(one) for name, one in found.items()}


@dataclass(frozen=True)
class Ended:
    """How a run ended: its metrics, the folder that it will lie in (None: not stored), and the seeds given up."""

    metrics: dict[str, float]
    folder: str | None
    stopped: tuple[str, ...]

    @property
    def facts(self) -> dict[str, str]:
        """What is no number, as text by name."""
        told = {"folder": self.folder or "", "stopped": "; ".join(self.stopped)}
        return {name: text for name, text in told.items() if text}


class Log:
    """One followed run at a tracker. Values are finite; the points of an axis come in its order.

    A run that was killed and goes on gives all points anew.
    """

    def write(self, points: Sequence[Point]) -> None:
        """What is new, when a task has ended."""

    def end(self, ended: Ended) -> None:
        """The run is over."""

    def fail(self) -> None:
        """The run was broken off."""


@dataclass(frozen=True)
class Tracker(Configured):
    """Somewhere a run is followed. A subclass says in :meth:`begin` how; it trains nothing and changes no number."""

    package: ClassVar[str] = ""
    """The package that it needs, as it is imported."""
    extra: ClassVar[str] = ""
    """What installs that package."""

    seeds: Literal["mean", "each", "both"] = option(
        "mean", "what is followed: the mean over the seeds, each seed by itself, or both"
    )

    def reach(self) -> None:
        """Before anything is trained: raise :class:`Unreachable` where nothing can be followed there."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise Unreachable(f"{type(self).__name__} needs the package {self.package}, which is not installed: pip "
                              f"install '{self.extra}'")  # fmt: skip

    def begin(self, followed: Followed) -> Log:
        """The log of what begins now."""
        raise NotImplementedError
